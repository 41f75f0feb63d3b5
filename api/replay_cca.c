/* cca-trace/1: RMI commands to a Realm Management Monitor, with what realms do while they run. */
#include "api/replay_cca.h"

#include <stdlib.h>
#include <string.h>

#define REPEATS_MAX ((uint64_t)1 << 20)

/* Opening. */

static enum pw_status open_model(const json_t *header, void **model, struct pw_err *err)
{
	static const char *const members[] = { "type",      "format",        "scenario", "title",    "tags", "impl",
					       "features0", "rec_aux_count", "granules", "pa_align", "seed", "note",
					       NULL };
	struct cca_config config = { .base = CCA_REPLAY_MEMORY };
	uint64_t aux, align;
	struct cca_model *x;
	enum pw_status st;

	if (replay_known(header, members, err) != PW_OK ||
	    replay_u64(header, "features0", CCA_FEATURES0, &config.features0, err) != PW_OK ||
	    replay_u64(header, "rec_aux_count", CCA_AUX_MAX, &aux, err) != PW_OK ||
	    replay_u64(header, "granules", 0, &config.granules, err) != PW_OK ||
	    replay_u64(header, "pa_align", CCA_GRANULE, &align, err) != PW_OK)
		return err->status;
	if (aux > CCA_AUX_MAX || !config.granules || config.granules > (uint64_t)1 << 32 || !align ||
	    CCA_REPLAY_MEMORY % align)
		return pw_fail(err, PW_INVALID, "the header's numbers are out of range");
	config.rec_aux_count = (unsigned)aux;
	x = calloc(1, sizeof *x);
	if (!x)
		return cca_no_memory(err);
	st = cca_init(&x->m, &x->mem, &config);
	if (st != PW_OK) {
		free(x);
		return pw_fail(err, st, "no such machine");
	}
	*model = x;
	return PW_OK;
}

static void close_model(void *model)
{
	struct cca_model *x = model;

	cca_release(&x->m);
	free(x->told);
	free(x->owners);
	free(x);
}

/* Answers. */

static json_t *ret_json(const struct cca_result *r)
{
	return json_pack("{s:s, s:i}", "status", cca_status_name(r->status), "index", (int)r->index);
}

static json_t *out_value(const struct cca_model *x, enum cca_out o, uint64_t value)
{
	static const char *const states[] = { "UNASSIGNED", "ASSIGNED", "TABLE" };

	switch (o) {
	case CCA_OUT_LOWER:
	case CCA_OUT_HIGHER:
	case CCA_OUT_TOP:
	case CCA_OUT_OUT_TOP:
	case CCA_OUT_VALUE: return cca_hex_json(value);
	case CCA_OUT_DATA:
	case CCA_OUT_RTT:
	case CCA_OUT_DESC: return cca_address_json(x, value);
	case CCA_OUT_WALK_LEVEL:
	case CCA_OUT_AUX_COUNT: return json_integer((json_int_t)value);
	case CCA_OUT_STATE: return json_string(states[value]);
	case CCA_OUT_RIPAS: return json_string(cca_ripas_name((enum cca_ripas)value));
	case CCA_OUT_COUNT: break;
	}
	return NULL;
}

static enum pw_status out_json(const struct cca_model *x, const struct cca_result *r, json_t **out, struct pw_err *err)
{
	json_t *o = json_object();

	for (int i = 0; i < CCA_OUT_COUNT; i++)
		if (r->valid >> i & 1 &&
		    cca_put(o, cca_out_name((enum cca_out)i), out_value(x, (enum cca_out)i, r->out[i]), err) != PW_OK) {
			json_decref(o);
			return err->status;
		}
	*out = o;
	return o ? PW_OK : cca_no_memory(err);
}

/* What a realm does while it runs. */

struct entered {
	json_t *log;
	json_t *exit; /* NULL: the REC did not run */
};

static enum pw_status log_rsi(const struct entered *e, const uint64_t *values, unsigned count, struct pw_err *err)
{
	json_t *list = json_array();

	for (unsigned i = 0; i < count; i++)
		if (cca_append(list, cca_hex_json(values[i]), err) != PW_OK) {
			json_decref(list);
			return err->status;
		}
	return cca_append(e->log, json_pack("{s:o}", "rsi_ret", list), err);
}

static json_t *exit_json(const struct cca_rsi *rsi)
{
	const char *reason = cca_exit_name(rsi->exit);

	if (rsi->exit == CCA_EXIT_RIPAS_CHANGE)
		return json_pack("{s:s, s:o, s:o, s:s}", "reason", reason, "ripas_base", cca_hex_json(rsi->ripas_base),
				 "ripas_top", cca_hex_json(rsi->ripas_top), "ripas_value",
				 cca_ripas_name(rsi->ripas_value));
	if (rsi->exit == CCA_EXIT_PSCI)
		return json_pack("{s:s, s:o}", "reason", reason, "gpr0", cca_hex_json(rsi->gpr0));
	return json_pack("{s:s}", "reason", reason);
}

static enum pw_status guest_set(struct cca_rec *rec, const json_t *item, struct cca_rsi *rsi, struct pw_err *err)
{
	static const char *const members[] = { "rsi", "base", "top", "ripas", "change_destroyed", NULL };
	static const char *const values[] = { "EMPTY", "RAM", "DESTROYED", "DEV" };
	uint64_t base, top, cd, ripas = 0;
	const char *text;

	if (replay_known(item, members, err) != PW_OK || replay_u64(item, "base", 0, &base, err) != PW_OK ||
	    replay_u64(item, "top", 0, &top, err) != PW_OK ||
	    replay_u64(item, "change_destroyed", 0, &cd, err) != PW_OK ||
	    replay_str(item, "ripas", &text, err) != PW_OK)
		return err->status;
	while (ripas < PW_ARRAY_LEN(values) && strcmp(values[ripas], text) != 0)
		ripas++;
	if (ripas == PW_ARRAY_LEN(values) || cd > 1)
		return pw_fail(err, PW_INVALID, "unknown RIPAS \"%s\", or change_destroyed is not 0 or 1", text);
	return cca_rsi_ipa_state_set(rec, base, top, ripas, cd == 1, rsi);
}

static enum pw_status guest_get(struct cca_rec *rec, const json_t *item, struct cca_rsi *rsi, struct pw_err *err)
{
	static const char *const members[] = { "rsi", "base", "top", NULL };
	uint64_t base, top;

	if (replay_known(item, members, err) != PW_OK || replay_u64(item, "base", 0, &base, err) != PW_OK ||
	    replay_u64(item, "top", 0, &top, err) != PW_OK)
		return err->status;
	return cca_rsi_ipa_state_get(rec, base, top, rsi);
}

static enum pw_status guest_psci(struct cca_rec *rec, const json_t *item, const char *name, struct cca_rsi *rsi,
				 struct pw_err *err)
{
	static const char *const members[] = { "rsi", NULL };
	static const struct {
		const char *name;
		uint32_t function;
	} calls[] = {
		{ "PSCI_SYSTEM_OFF", CCA_PSCI_SYSTEM_OFF },
		{ "PSCI_SYSTEM_RESET", CCA_PSCI_SYSTEM_RESET },
		{ "PSCI_CPU_OFF", CCA_PSCI_CPU_OFF },
	};

	if (replay_known(item, members, err) != PW_OK)
		return err->status;
	for (size_t i = 0; i < PW_ARRAY_LEN(calls); i++)
		if (strcmp(calls[i].name, name) == 0)
			return cca_rsi_psci(rec, calls[i].function, rsi);
	return pw_fail(err, PW_INVALID, "unknown realm call \"%s\"", name);
}

static enum pw_status guest_rsi(struct cca_rec *rec, const json_t *item, const char *name, struct entered *e,
				struct pw_err *err)
{
	struct cca_rsi rsi = { 0 };
	enum pw_status st;

	if (strcmp(name, "IPA_STATE_SET") == 0)
		st = guest_set(rec, item, &rsi, err);
	else if (strcmp(name, "IPA_STATE_GET") == 0)
		st = guest_get(rec, item, &rsi, err);
	else
		st = guest_psci(rec, item, name, &rsi, err);
	if (st == PW_CONFLICT)
		return pw_fail(err, PW_INVALID, "a realm call while the REC is not running");
	if (st != PW_OK)
		return st;
	if (rsi.count && log_rsi(e, rsi.x, rsi.count, err) != PW_OK)
		return err->status;
	if (rsi.exits && !(e->exit = exit_json(&rsi)))
		return cca_no_memory(err);
	return PW_OK;
}

static enum pw_status guest_host(struct cca_model *x, const json_t *item, const char *name, struct entered *e,
				 struct pw_err *err)
{
	static const char *const members[] = { "host", "args", "params", "src_fill", "flags", NULL };
	struct cca_result r;
	struct cca_call call;
	struct cca_operands p;

	if (replay_known(item, members, err) != PW_OK || cca_read_call(x, item, name, &call, &p, err) != PW_OK)
		return err->status;
	if (cca_rmi(&x->m, &call, &r) != PW_OK)
		return cca_no_memory(err);
	if (call.cmd == CCA_REC_ENTER && r.status == CCA_SUCCESS)
		return pw_fail(err, PW_INVALID, "another REC that is entered while one runs has no steps");
	return cca_append(e->log, json_pack("{s:o}", "host_ret", ret_json(&r)), err);
}

static enum pw_status guest_exit(struct cca_rec *rec, const json_t *item, struct entered *e, struct pw_err *err)
{
	static const char *const members[] = { "exit", NULL };
	const char *reason;

	if (replay_known(item, members, err) != PW_OK || replay_str(item, "exit", &reason, err) != PW_OK)
		return err->status;
	if (strcmp(reason, "FIQ") != 0 && strcmp(reason, "IRQ") != 0)
		return pw_fail(err, PW_INVALID, "unknown exit \"%s\"", reason);
	if (cca_rec_exit(rec) != PW_OK)
		return pw_fail(err, PW_INVALID, "an exit while the REC is not running");
	e->exit = json_pack("{s:s}", "reason", reason);
	return e->exit ? PW_OK : cca_no_memory(err);
}

static enum pw_status guest_item(struct cca_model *x, struct cca_rec *rec, const json_t *item, struct entered *e,
				 struct pw_err *err)
{
	const char *rsi = json_string_value(json_object_get(item, "rsi"));
	const char *host = json_string_value(json_object_get(item, "host"));

	if (rsi)
		return guest_rsi(rec, item, rsi, e, err);
	if (host)
		return guest_host(x, item, host, e, err);
	if (!json_is_object(item))
		return pw_fail(err, PW_INVALID, "a guest's step is not an object");
	return guest_exit(rec, item, e, err);
}

/* The realm's steps up to the first that exits; those behind it never come to run. */
static enum pw_status run_guest(struct cca_model *x, const json_t *line, const struct cca_call *call,
				const struct cca_result *r, struct entered *e, struct pw_err *err)
{
	const json_t *guest = json_object_get(line, "guest");
	struct cca_rec *rec = cca_rec_at(&x->m, call->arg[CCA_ARG_REC]);

	if (guest && !json_is_array(guest))
		return pw_fail(err, PW_INVALID, "\"guest\" is not an array");
	e->exit = NULL;
	e->log = json_array();
	if (!e->log)
		return cca_no_memory(err);
	if (r->status != CCA_SUCCESS)
		return PW_OK;
	if (r->rsi_count && log_rsi(e, r->rsi, r->rsi_count, err) != PW_OK)
		return err->status;
	for (size_t i = 0; i < json_array_size(guest) && !e->exit; i++)
		if (guest_item(x, rec, json_array_get(guest, i), e, err) != PW_OK)
			return err->status;
	if (e->exit)
		return PW_OK;
	if (cca_rec_exit(rec) != PW_OK)
		return pw_fail(err, PW_INVALID, "the REC does not run any more");
	e->exit = json_pack("{s:s}", "reason", "FIQ");
	return e->exit ? PW_OK : cca_no_memory(err);
}

/* Steps. */

struct repeats {
	uint64_t count;
	uint64_t delta[CCA_ARG_COUNT];
};

static enum pw_status read_delta(const struct cca_call *call, const char *name, const json_t *v, struct repeats *rep,
				 struct pw_err *err)
{
	const struct cca_command_row *row = cca_command_row(call->cmd);
	const char *text = json_string_value(v);
	uint64_t delta;

	if (json_is_integer(v))
		delta = (uint64_t)json_integer_value(v) * CCA_GRANULE;
	else if (!text || !cca_read_hex(text, &delta))
		return pw_fail(err, PW_INVALID, "rep.step.%s is neither a number nor hex", name);
	for (unsigned i = 0; i < row->arg_count; i++)
		if (strcmp(cca_arg_name(row->args[i]), name) == 0) {
			rep->delta[row->args[i]] = row->args[i] == CCA_ARG_LEVEL ? delta / CCA_GRANULE : delta;
			return PW_OK;
		}
	return pw_fail(err, PW_INVALID, "rep.step names \"%s\", which is no argument", name);
}

static enum pw_status read_repeats(const json_t *line, const struct cca_call *call, struct repeats *rep,
				   struct pw_err *err)
{
	static const char *const members[] = { "count", "step", NULL };
	json_t *v, *o = json_object_get(line, "rep"), *step = json_object_get(o, "step");
	const char *name;

	*rep = (struct repeats){ .count = 1 };
	if (!o)
		return PW_OK;
	if (!json_is_object(o) || !json_is_object(step))
		return pw_fail(err, PW_INVALID, "\"rep\" has no count and step");
	if (replay_known(o, members, err) != PW_OK || replay_u64(o, "count", 0, &rep->count, err) != PW_OK)
		return err->status;
	if (!rep->count || rep->count > REPEATS_MAX || call->cmd == CCA_REC_ENTER)
		return pw_fail(err, PW_INVALID, "rep.count is out of range, or repeats REC_ENTER");
	json_object_foreach (step, name, v)
		if (read_delta(call, name, v, rep, err) != PW_OK)
			return err->status;
	return PW_OK;
}

/* All results must be that of the line: the first that is not, else the last, goes into *r. */
static enum pw_status run_call(struct cca_model *x, const json_t *line, struct cca_call *call, struct cca_result *r,
			       struct pw_err *err)
{
	const json_t *expected = json_object_get(line, "ret");
	struct repeats rep;
	bool right = true;
	json_t *ret;

	if (read_repeats(line, call, &rep, err) != PW_OK)
		return err->status;
	for (uint64_t i = 0; i < rep.count && right; i++) {
		for (int a = 0; i > 0 && a < CCA_ARG_COUNT; a++)
			call->arg[a] += rep.delta[a];
		if (cca_rmi(&x->m, call, r) != PW_OK)
			return cca_no_memory(err);
		ret = ret_json(r);
		if (!ret)
			return cca_no_memory(err);
		right = json_equal(ret, expected);
		json_decref(ret);
	}
	return PW_OK;
}

static enum pw_status step_results(struct cca_model *x, const json_t *line, const struct cca_call *call,
				   const struct cca_result *r, const struct cca_realm *realm, json_t *got,
				   struct pw_err *err)
{
	const json_t *post = json_object_get(line, "post");
	json_t *out = NULL;

	if (cca_put(got, "fid", json_sprintf("0x%" PRIx32, cca_command_fid(call->cmd)), err) != PW_OK ||
	    cca_put(got, "ret", ret_json(r), err) != PW_OK)
		return err->status;
	if (r->valid || json_object_get(line, "out")) {
		if (out_json(x, r, &out, err) != PW_OK || cca_put(got, "out", out, err) != PW_OK)
			return err->status;
	}
	return post ? cca_post_json(x, post, realm, got, err) : PW_OK;
}

static enum pw_status enter_results(struct cca_model *x, const json_t *line, const struct cca_call *call,
				    const struct cca_result *r, json_t *got, struct pw_err *err)
{
	struct entered e = { 0 };
	enum pw_status st = run_guest(x, line, call, r, &e, err);

	if (st == PW_OK)
		st = cca_put(got, "guest_log", json_incref(e.log), err);
	if (st == PW_OK && (e.exit || json_object_get(line, "exit")))
		st = cca_put(got, "exit", e.exit ? json_incref(e.exit) : json_null(), err);
	json_decref(e.log);
	json_decref(e.exit);
	return st;
}

static enum pw_status command(struct cca_model *x, const json_t *line, json_t *got, bool *refused, struct pw_err *err)
{
	static const char *const members[] = { "n",     "cmd",   "fid",       "args",     "ret",  "out",
					       "post",  "rep",   "params",    "src_fill", "note", "spec",
					       "flags", "guest", "guest_log", "exit",     NULL };
	struct cca_result r = { 0 };
	struct cca_call call;
	struct cca_operands p;
	const char *name;

	if (replay_known(line, members, err) != PW_OK || replay_str(line, "cmd", &name, err) != PW_OK ||
	    cca_read_call(x, line, name, &call, &p, err) != PW_OK)
		return err->status;
	if (!json_object_get(line, "ret"))
		return pw_fail(err, PW_INVALID, "a step without ret");
	if (call.cmd != CCA_REC_ENTER && (json_object_get(line, "guest") || json_object_get(line, "guest_log") ||
					  json_object_get(line, "exit") || json_object_get(line, "flags")))
		return pw_fail(err, PW_INVALID, "what a realm does, in a step that does not enter it");
	if (run_call(x, line, &call, &r, err) != PW_OK)
		return err->status;
	if (call.cmd == CCA_REC_CREATE && r.status == CCA_SUCCESS &&
	    cca_owner_put(x, call.arg[CCA_ARG_REC], cca_realm_at(&x->m, call.arg[CCA_ARG_RD])->serial, err) != PW_OK)
		return err->status;
	*refused = r.status != CCA_SUCCESS;
	if (call.cmd == CCA_REC_ENTER && enter_results(x, line, &call, &r, got, err) != PW_OK)
		return err->status;
	return step_results(x, line, &call, &r, cca_realm_of(x, &call), got, err);
}

static enum pw_status step(void *model, const json_t *line, json_t **got, bool *refused, struct pw_err *err)
{
	const char *type = json_string_value(json_object_get(line, "type"));
	enum pw_status st;

	*got = json_object();
	if (!*got)
		return cca_no_memory(err);
	if (!json_object_get(line, "type"))
		st = command(model, line, *got, refused, err);
	else if (type && (strcmp(type, "checkpoint") == 0 || strcmp(type, "final") == 0))
		st = cca_checkpoint(model, line, *got, err);
	else
		st = pw_fail(err, PW_INVALID, "unknown type of line");
	if (st != PW_OK) {
		json_decref(*got);
		*got = NULL;
	}
	return st;
}

static uint64_t digest(const void *model)
{
	return cca_digest(&((const struct cca_model *)model)->m);
}

static bool check(const void *model, struct pw_err *err)
{
	return cca_check(&((const struct cca_model *)model)->m, err);
}

extern const struct replay_format replay_cca;
const struct replay_format replay_cca = {
	.name = "cca-trace/1",
	.open = open_model,
	.close = close_model,
	.step = step,
	.digest = digest,
	.check = check,
};
