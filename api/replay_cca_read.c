/* Lines of cca-trace/1, read. */
#include <endian.h>
#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "api/replay_cca.h"

#define BAD_COUNT ((uint64_t)1 << 16)

enum pw_status cca_no_memory(struct pw_err *err)
{
	return pw_fail(err, PW_NO_MEMORY, "out of memory");
}

/* Puts a new reference into the object, or fails if there is none. */
enum pw_status cca_put(json_t *object, const char *key, json_t *value, struct pw_err *err)
{
	return json_object_set_new(object, key, value) == 0 ? PW_OK : cca_no_memory(err);
}

enum pw_status cca_append(json_t *array, json_t *value, struct pw_err *err)
{
	return json_array_append_new(array, value) == 0 ? PW_OK : cca_no_memory(err);
}

/* Names. */

bool cca_read_number(const char *text, const char **end, uint64_t *out)
{
	char *stop;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*out = strtoull(text, &stop, 10);
	*end = stop;
	return errno == 0;
}

bool cca_read_hex(const char *text, uint64_t *out)
{
	char *stop;

	if (strncmp(text, "0x", 2) != 0 || !text[2] || strlen(text) > 18 ||
	    strspn(text + 2, "0123456789abcdefABCDEF") != strlen(text + 2))
		return false;
	*out = strtoull(text, &stop, 16);
	return true;
}

/* "g12", "g12+0x800", "bad0", or a number in hex. */
static bool address(const struct cca_model *x, const char *text, uint64_t *out)
{
	const char *end;
	uint64_t n, offset = 0;
	bool bad = strncmp(text, "bad", 3) == 0;

	if (cca_read_hex(text, out))
		return true;
	if ((!bad && text[0] != 'g') || !cca_read_number(text + (bad ? 3 : 1), &end, &n))
		return false;
	if (n >= (bad ? BAD_COUNT : x->m.config.granules) || (*end == '+' && !cca_read_hex(end + 1, &offset)))
		return false;
	*out = (bad ? CCA_REPLAY_BAD : CCA_REPLAY_MEMORY) + n * CCA_GRANULE + offset;
	return *end == '\0' || *end == '+';
}

json_t *cca_hex_json(uint64_t value)
{
	return json_sprintf("0x%" PRIx64, value);
}

json_t *cca_address_json(const struct cca_model *x, uint64_t addr)
{
	bool good = addr >= CCA_REPLAY_MEMORY && addr - CCA_REPLAY_MEMORY < x->m.config.granules * CCA_GRANULE;
	bool bad = addr >= CCA_REPLAY_BAD && addr - CCA_REPLAY_BAD < BAD_COUNT * CCA_GRANULE;
	uint64_t n = (addr - (good ? CCA_REPLAY_MEMORY : CCA_REPLAY_BAD)) / CCA_GRANULE;
	const char *kind = good ? "g" : "bad";

	if (!good && !bad)
		return cca_hex_json(addr);
	if (addr % CCA_GRANULE)
		return json_sprintf("%s%" PRIu64 "+0x%" PRIx64, kind, n, addr % CCA_GRANULE);
	return json_sprintf("%s%" PRIu64, kind, n);
}

/* Arguments. */

/* A level: a signed number. */
static enum pw_status signed_arg(const json_t *v, const char *name, uint64_t *out, struct pw_err *err)
{
	if (!json_is_integer(v))
		return pw_fail(err, PW_INVALID, "\"%s\" is missing or not an integer", name);
	*out = (uint64_t)json_integer_value(v);
	return PW_OK;
}

static enum pw_status address_arg(const struct cca_model *x, const json_t *v, const char *name, uint64_t *out,
				  struct pw_err *err)
{
	const char *text = json_string_value(v);

	if (json_is_integer(v) && json_integer_value(v) >= 0) {
		*out = (uint64_t)json_integer_value(v);
		return PW_OK;
	}
	if (!text || !address(x, text, out))
		return pw_fail(err, PW_INVALID, "\"%s\" is missing or not an address", name);
	return PW_OK;
}

static enum pw_status desc_arg(const struct cca_model *x, const json_t *v, uint64_t *out, struct pw_err *err)
{
	static const char *const members[] = { "pa", "attr", NULL };
	uint64_t pa, attr;

	if (!json_is_object(v))
		return pw_fail(err, PW_INVALID, "\"desc\" is missing or not an object");
	if (replay_known(v, members, err) != PW_OK ||
	    address_arg(x, json_object_get(v, "pa"), "pa", &pa, err) != PW_OK ||
	    address_arg(x, json_object_get(v, "attr"), "attr", &attr, err) != PW_OK)
		return err->status;
	*out = pa | attr;
	return PW_OK;
}

static enum pw_status read_args(const struct cca_model *x, const json_t *args, struct cca_call *call,
				struct pw_err *err)
{
	const struct cca_command_row *row = cca_command_row(call->cmd);
	const char *members[CCA_ARGS_MAX + 1] = { NULL };
	enum pw_status st = PW_OK;

	if (!json_is_object(args))
		return pw_fail(err, PW_INVALID, "args are missing or not an object");
	for (unsigned i = 0; i < row->arg_count; i++)
		members[i] = cca_arg_name(row->args[i]);
	st = replay_known(args, members, err);
	for (unsigned i = 0; i < row->arg_count && st == PW_OK; i++) {
		enum cca_arg a = row->args[i];
		const json_t *v = json_object_get(args, members[i]);

		if (a == CCA_ARG_LEVEL)
			st = signed_arg(v, members[i], &call->arg[a], err);
		else if (a == CCA_ARG_DESC)
			st = desc_arg(x, v, &call->arg[a], err);
		else
			st = address_arg(x, v, members[i], &call->arg[a], err);
	}
	return st;
}

/* Host pages that a command reads. */

static enum pw_status number(const struct cca_model *x, const json_t *o, const char *name, uint64_t absent,
			     uint64_t *out, struct pw_err *err)
{
	const json_t *v = json_object_get(o, name);

	*out = absent;
	return v ? address_arg(x, v, name, out, err) : PW_OK;
}

static enum pw_status read_realm(const struct cca_model *x, const json_t *o, struct cca_realm_params *p,
				 struct pw_err *err)
{
	static const char *const members[] = { "flags",           "s2sz",          "sve_vl",   "num_bps", "num_wps",
					       "pmu_num_ctrs",    "hash_algo",     "rpv_fill", "vmid",    "rtt_base",
					       "rtt_level_start", "rtt_num_start", NULL };
	const json_t *level = json_object_get(o, "rtt_level_start");
	uint64_t vmid, rpv, start = 0;

	if (replay_known(o, members, err) != PW_OK || number(x, o, "flags", 0, &p->flags, err) != PW_OK ||
	    number(x, o, "s2sz", 0, &p->s2sz, err) != PW_OK || number(x, o, "sve_vl", 0, &p->sve_vl, err) != PW_OK ||
	    number(x, o, "num_bps", 1, &p->num_bps, err) != PW_OK ||
	    number(x, o, "num_wps", 1, &p->num_wps, err) != PW_OK ||
	    number(x, o, "pmu_num_ctrs", 0, &p->pmu_num_ctrs, err) != PW_OK ||
	    number(x, o, "hash_algo", 0, &p->hash_algo, err) != PW_OK ||
	    number(x, o, "rpv_fill", 0, &rpv, err) != PW_OK || number(x, o, "vmid", 0, &vmid, err) != PW_OK ||
	    number(x, o, "rtt_base", 0, &p->rtt_base, err) != PW_OK ||
	    number(x, o, "rtt_num_start", 0, &p->rtt_num_start, err) != PW_OK ||
	    (level && signed_arg(level, "rtt_level_start", &start, err) != PW_OK))
		return err->status;
	if (vmid > UINT16_MAX)
		return pw_fail(err, PW_INVALID, "\"vmid\" has more than 16 bits");
	p->vmid = (uint16_t)vmid;
	p->rtt_level_start = (int64_t)start;
	return PW_OK;
}

static enum pw_status read_numbers(const struct cca_model *x, const json_t *o, const char *name, uint64_t *out,
				   size_t room, struct pw_err *err)
{
	const json_t *list = json_object_get(o, name);

	if (list && !json_is_array(list))
		return pw_fail(err, PW_INVALID, "\"%s\" is not an array", name);
	if (json_array_size(list) > room)
		return pw_fail(err, PW_INVALID, "\"%s\" is too long", name);
	for (size_t i = 0; i < json_array_size(list); i++)
		if (address_arg(x, json_array_get(list, i), name, &out[i], err) != PW_OK)
			return err->status;
	return PW_OK;
}

static enum pw_status read_rec(const struct cca_model *x, const json_t *o, struct cca_rec_params *p, struct pw_err *err)
{
	static const char *const members[] = { "flags", "mpidr", "pc", "gprs", "num_aux", "aux", NULL };

	if (replay_known(o, members, err) != PW_OK || number(x, o, "flags", 0, &p->flags, err) != PW_OK ||
	    number(x, o, "mpidr", 0, &p->mpidr, err) != PW_OK || number(x, o, "pc", 0, &p->pc, err) != PW_OK ||
	    number(x, o, "num_aux", 0, &p->num_aux, err) != PW_OK ||
	    read_numbers(x, o, "gprs", p->gprs, PW_ARRAY_LEN(p->gprs), err) != PW_OK ||
	    read_numbers(x, o, "aux", p->aux, PW_ARRAY_LEN(p->aux), err) != PW_OK)
		return err->status;
	return PW_OK;
}

/* What the line says of the page that the command reads; a page that it says nothing of is all zero. */
static enum pw_status read_pages(const struct cca_model *x, const json_t *line, struct cca_call *call,
				 struct cca_operands *p, struct pw_err *err)
{
	const json_t *params = json_object_get(line, "params");
	bool takes = call->cmd == CCA_REALM_CREATE || call->cmd == CCA_REC_CREATE;
	uint64_t fill;

	if (params && (!takes || !json_is_object(params)))
		return pw_fail(err, PW_INVALID, "params of a command that has none, or not an object");
	if (json_object_get(line, "src_fill") && call->cmd != CCA_DATA_CREATE)
		return pw_fail(err, PW_INVALID, "src_fill of a command that has none");
	if (call->cmd == CCA_REALM_CREATE) {
		call->realm = &p->realm;
		return read_realm(x, params, &p->realm, err);
	}
	if (call->cmd == CCA_REC_CREATE) {
		call->rec = &p->rec;
		return read_rec(x, params, &p->rec, err);
	}
	if (call->cmd == CCA_REC_ENTER) {
		call->run = &p->run;
		return replay_u64(line, "flags", 0, &p->run.flags, err);
	}
	if (call->cmd != CCA_DATA_CREATE)
		return PW_OK;
	if (replay_u64(line, "src_fill", 0, &fill, err) != PW_OK)
		return err->status;
	for (size_t i = 0; i < PW_ARRAY_LEN(p->source); i++)
		p->source[i] = htole64(fill);
	call->source = p->source;
	return PW_OK;
}

enum pw_status cca_read_call(const struct cca_model *x, const json_t *line, const char *name, struct cca_call *call,
			     struct cca_operands *p, struct pw_err *err)
{
	int cmd = 0;

	while (cmd < CCA_COMMAND_COUNT && strcmp(cca_command_name((enum cca_command)cmd), name) != 0)
		cmd++;
	if (cmd == CCA_COMMAND_COUNT)
		return pw_fail(err, PW_INVALID, "unknown command \"%s\"", name);
	memset(call, 0, sizeof *call);
	memset(p, 0, sizeof *p);
	call->cmd = (enum cca_command)cmd;
	if (read_args(x, json_object_get(line, "args"), call, err) != PW_OK)
		return err->status;
	return read_pages(x, line, call, p, err);
}
