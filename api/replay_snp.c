#include "api/replay.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arch/snp.h"

struct machine {
	struct pw_mem mem;
	struct snp m;
};

/* What a step says, read. */
struct step {
	struct snp_rmpupdate update;
	struct snp_psmash smash;
	struct snp_target target;
	bool validate;
	struct snp_cmd cmd;
	uint8_t *content;
};

/* What it answers. */
struct answer {
	json_t *ret;
	bool refused;
};

/* Operands. */

static enum pw_status read_below(const json_t *args, const char *name, uint64_t end, uint64_t *out, struct pw_err *err)
{
	if (replay_u64(args, name, 0, out, err) != PW_OK)
		return err->status;
	return *out < end ? PW_OK : pw_fail(err, PW_INVALID, "member \"%s\" is out of range", name);
}

static enum pw_status read_page(const json_t *args, const char *name, uint64_t *out, struct pw_err *err)
{
	if (!json_object_get(args, name))
		return pw_fail(err, PW_INVALID, "member \"%s\" is missing", name);
	return read_below(args, name, TREE_PAGES, out, err);
}

static enum pw_status read_flag(const json_t *args, const char *name, bool *out, struct pw_err *err)
{
	const json_t *v = json_object_get(args, name);
	uint64_t number;

	if (json_is_boolean(v)) {
		*out = json_is_true(v);
		return PW_OK;
	}
	if (read_below(args, name, 2, &number, err) != PW_OK)
		return err->status;
	*out = number == 1;
	return PW_OK;
}

static enum pw_status read_size(const json_t *args, enum snp_size *out, struct pw_err *err)
{
	const char *text = "4K";

	if (json_object_get(args, "size") && replay_str(args, "size", &text, err) != PW_OK)
		return err->status;
	if (strcmp(text, "4K") != 0 && strcmp(text, "2M") != 0)
		return pw_fail(err, PW_INVALID, "size is neither \"4K\" nor \"2M\"");
	*out = strcmp(text, "2M") == 0 ? SNP_2M : SNP_4K;
	return PW_OK;
}

static enum pw_status read_asid(const json_t *args, unsigned *out, struct pw_err *err)
{
	uint64_t asid;

	if (read_below(args, "asid", (uint64_t)1 << 32, &asid, err) != PW_OK)
		return err->status;
	*out = (unsigned)asid;
	return PW_OK;
}

static enum pw_status read_perms(const json_t *args, uint8_t perms[SNP_VMPLS], struct pw_err *err)
{
	const json_t *v = json_object_get(args, "vmpl");

	if (!v)
		return PW_OK;
	if (json_array_size(v) != SNP_VMPLS - 1)
		return pw_fail(err, PW_INVALID, "vmpl is not an array of three masks");
	for (size_t i = 1; i < SNP_VMPLS; i++) {
		const json_t *mask = json_array_get(v, i - 1);

		if (!json_is_integer(mask) || json_integer_value(mask) < 0 || json_integer_value(mask) > 255)
			return pw_fail(err, PW_INVALID, "vmpl[%zu] is not a mask", i - 1);
		perms[i] = (uint8_t)json_integer_value(mask);
	}
	return PW_OK;
}

static int hex_digit(char c)
{
	const char *digits = "0123456789abcdef", *at = memchr(digits, c | 0x20, 16);

	if (c >= '0' && c <= '9')
		return c - '0';
	return at && at - digits > 9 ? (int)(at - digits) : -1;
}

static enum pw_status read_hex(const json_t *args, struct step *s, struct pw_err *err)
{
	const char *hex;
	size_t n;

	if (replay_str(args, "hex", &hex, err) != PW_OK)
		return err->status;
	n = strlen(hex);
	if (n % 2 || n / 2 > (size_t)SNP_PAGE * SNP_LARGE)
		return pw_fail(err, PW_INVALID, "hex is not a page's content");
	s->content = malloc(n / 2 + 1);
	if (!s->content)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	for (size_t i = 0; i < n / 2; i++) {
		int high = hex_digit(hex[2 * i]), low = hex_digit(hex[2 * i + 1]);

		if (high < 0 || low < 0)
			return pw_fail(err, PW_INVALID, "hex has another character than a digit");
		s->content[i] = (uint8_t)(high << 4 | low);
	}
	s->cmd.content = s->content;
	s->cmd.content_len = n / 2;
	return PW_OK;
}

static enum pw_status read_content(const json_t *args, struct step *s, struct pw_err *err)
{
	uint64_t fill;

	if (json_object_get(args, "hex") && json_object_get(args, "fill"))
		return pw_fail(err, PW_INVALID, "both hex and fill");
	if (json_object_get(args, "hex"))
		return read_hex(args, s, err);
	if (read_below(args, "fill", 256, &fill, err) != PW_OK)
		return err->status;
	s->cmd.fill = (uint8_t)fill;
	return PW_OK;
}

/* Operations. */

static enum pw_status read_rmpupdate(const json_t *args, struct step *s, struct pw_err *err)
{
	struct snp_rmpupdate *u = &s->update;

	if (read_page(args, "pfn", &u->pfn, err) != PW_OK || read_flag(args, "assigned", &u->assigned, err) != PW_OK ||
	    read_asid(args, &u->asid, err) != PW_OK || replay_u64(args, "gfn", 0, &u->gfn, err) != PW_OK ||
	    read_size(args, &u->size, err) != PW_OK)
		return err->status;
	return read_flag(args, "immutable", &u->immutable, err);
}

static enum pw_status read_psmash(const json_t *args, struct step *s, struct pw_err *err)
{
	return read_page(args, "pfn", &s->smash.pfn, err);
}

static enum pw_status read_pvalidate(const json_t *args, struct step *s, struct pw_err *err)
{
	struct snp_target *t = &s->target;

	if (read_page(args, "pfn", &t->pfn, err) != PW_OK || read_page(args, "gfn", &t->gfn, err) != PW_OK ||
	    read_asid(args, &t->asid, err) != PW_OK || read_size(args, &t->size, err) != PW_OK)
		return err->status;
	return read_flag(args, "validate", &s->validate, err);
}

static enum pw_status read_context(const json_t *args, struct step *s, struct pw_err *err)
{
	return read_page(args, "ctx", &s->cmd.context, err);
}

static enum pw_status read_launch_start(const json_t *args, struct step *s, struct pw_err *err)
{
	if (read_context(args, s, err) != PW_OK)
		return err->status;
	return replay_u64(args, "policy", 0, &s->cmd.policy, err);
}

static enum pw_status read_activate(const json_t *args, struct step *s, struct pw_err *err)
{
	if (read_context(args, s, err) != PW_OK)
		return err->status;
	return read_asid(args, &s->cmd.asid, err);
}

static enum pw_status read_page_size(const json_t *args, struct step *s, struct pw_err *err)
{
	if (read_page(args, "pfn", &s->cmd.pfn, err) != PW_OK)
		return err->status;
	return read_size(args, &s->cmd.size, err);
}

static enum pw_status read_launch_update(const json_t *args, struct step *s, struct pw_err *err)
{
	uint64_t type;

	if (read_context(args, s, err) != PW_OK || read_page_size(args, s, err) != PW_OK ||
	    read_below(args, "type", 256, &type, err) != PW_OK || read_flag(args, "imi", &s->cmd.imi, err) != PW_OK ||
	    read_perms(args, s->cmd.perms, err) != PW_OK)
		return err->status;
	s->cmd.type = (unsigned)type;
	return read_content(args, s, err);
}

static enum pw_status read_page_move(const json_t *args, struct step *s, struct pw_err *err)
{
	if (read_context(args, s, err) != PW_OK || read_page(args, "src", &s->cmd.pfn, err) != PW_OK)
		return err->status;
	return read_page(args, "dst", &s->cmd.dst, err);
}

static enum pw_status read_md_init(const json_t *args, struct step *s, struct pw_err *err)
{
	if (read_context(args, s, err) != PW_OK)
		return err->status;
	return read_page(args, "pfn", &s->cmd.pfn, err);
}

static enum pw_status read_nothing(const json_t *args, struct step *s, struct pw_err *err)
{
	(void)args, (void)s, (void)err;
	return PW_OK;
}

static enum pw_status run_rmpupdate(struct snp *m, struct step *s, const json_t *expected, struct answer *a)
{
	enum snp_code code;
	enum pw_status st = snp_rmpupdate(m, &s->update, &code);

	(void)expected;
	if (st != PW_OK)
		return st;
	a->ret = json_integer(snp_code_value(code));
	a->refused = code != SNP_OK;
	return PW_OK;
}

/* The sources disagree on what PSMASH says of a page that does not qualify: 4 or 7, and 1 perhaps if it is unaligned.
 */
static int psmash_value(const struct snp *m, enum snp_code code, const json_t *expected)
{
	json_int_t said = json_integer_value(expected);
	bool open = code != SNP_OK && (m->why.rule == SNP_RULE_NOT_2M || m->why.rule == SNP_RULE_UNALIGNED);

	if (open && (said == SNP_PSMASH_MICROSOFT || said == snp_code_value(SNP_FAIL_PAGE)))
		return (int)said;
	return snp_code_value(code);
}

static enum pw_status run_psmash(struct snp *m, struct step *s, const json_t *expected, struct answer *a)
{
	enum snp_code code;
	enum pw_status st = snp_psmash(m, &s->smash, &code);

	if (st != PW_OK)
		return st;
	a->ret = json_integer(psmash_value(m, code, expected));
	a->refused = code != SNP_OK;
	return PW_OK;
}

/* Without a fault: the code, and CF where the line has it or the code means it. */
static enum pw_status run_pvalidate(struct snp *m, struct step *s, const json_t *expected, struct answer *a)
{
	bool unchanged = false;
	enum snp_code code;
	enum pw_status st = snp_pvalidate(m, &s->target, s->validate, &code, &unchanged);

	if (st != PW_OK)
		return st;
	a->refused = code != SNP_OK || unchanged;
	if (snp_code_value(code) < 0)
		a->ret = json_string(snp_code_name(code));
	else
		a->ret = json_pack("{s:i}", "code", snp_code_value(code));
	if (a->ret && snp_code_value(code) >= 0 && (code == SNP_OK || json_object_get(expected, "cf")))
		json_object_set_new(a->ret, "cf", json_integer(unchanged));
	return PW_OK;
}

static enum pw_status run_command(struct snp *m, struct step *s, const json_t *expected, struct answer *a)
{
	enum snp_status status;
	struct snp_entry e;
	enum pw_status st;

	(void)expected;
	if (s->cmd.op == SNP_CMD_PAGE_MOVE) { /* its operand is not part of the format: the source's size */
		snp_read(m, s->cmd.pfn, &e);
		s->cmd.size = e.size;
	}
	st = snp_command(m, &s->cmd, &status);
	if (st != PW_OK)
		return st;
	a->ret = json_integer(snp_status_value(status));
	a->refused = status != SNP_SUCCESS;
	return PW_OK;
}

static enum pw_status run_wbinvd(struct snp *m, struct step *s, const json_t *expected, struct answer *a)
{
	(void)s, (void)expected;
	snp_wbinvd(m);
	a->ret = json_integer(0);
	return PW_OK;
}

#define ARGS_MAX 11
static const struct op {
	const char *name;
	enum snp_command command; /* of run_command */
	enum pw_status (*read)(const json_t *args, struct step *s, struct pw_err *err);
	enum pw_status (*run)(struct snp *m, struct step *s, const json_t *expected, struct answer *a);
	const char *args[ARGS_MAX];
} ops[] = {
	{ "RMPUPDATE",
	  SNP_COMMAND_COUNT,
	  read_rmpupdate,
	  run_rmpupdate,
	  { "pfn", "assigned", "asid", "gfn", "size", "immutable" } },
	{ "PSMASH", SNP_COMMAND_COUNT, read_psmash, run_psmash, { "pfn" } },
	{ "PVALIDATE", SNP_COMMAND_COUNT, read_pvalidate, run_pvalidate, { "asid", "gfn", "pfn", "size", "validate" } },
	{ "SNP_GCTX_CREATE", SNP_CMD_GCTX_CREATE, read_context, run_command, { "ctx" } },
	{ "SNP_LAUNCH_FINISH", SNP_CMD_LAUNCH_FINISH, read_context, run_command, { "ctx" } },
	{ "SNP_DECOMMISSION", SNP_CMD_DECOMMISSION, read_context, run_command, { "ctx" } },
	{ "SNP_LAUNCH_START", SNP_CMD_LAUNCH_START, read_launch_start, run_command, { "ctx", "policy" } },
	{ "SNP_ACTIVATE", SNP_CMD_ACTIVATE, read_activate, run_command, { "ctx", "asid" } },
	{ "SNP_LAUNCH_UPDATE",
	  SNP_CMD_LAUNCH_UPDATE,
	  read_launch_update,
	  run_command,
	  { "ctx", "pfn", "type", "size", "imi", "vmpl", "fill", "hex" } },
	{ "SNP_PAGE_RECLAIM", SNP_CMD_PAGE_RECLAIM, read_page_size, run_command, { "pfn", "size" } },
	{ "SNP_PAGE_MOVE", SNP_CMD_PAGE_MOVE, read_page_move, run_command, { "ctx", "src", "dst" } },
	{ "SNP_PAGE_UNSMASH", SNP_CMD_PAGE_UNSMASH, read_page_size, run_command, { "pfn" } },
	{ "SNP_MD_INIT", SNP_CMD_MD_INIT, read_md_init, run_command, { "ctx", "pfn" } },
	{ "SNP_DF_FLUSH", SNP_CMD_DF_FLUSH, read_nothing, run_command, { NULL } },
	{ "WBINVD", SNP_COMMAND_COUNT, read_nothing, run_wbinvd, { NULL } },
};

/* The model. */

static enum pw_status read_config(const json_t *header, struct snp_config *c, struct pw_err *err)
{
	const json_t *rmp = json_object_get(header, "rmp");
	uint64_t first, last, max_asid;

	if (read_below(header, "frames", TREE_PAGES + 1, &c->frames, err) != PW_OK ||
	    read_below(header, "max_asid", SNP_ASIDS, &max_asid, err) != PW_OK)
		return err->status;
	c->max_asid = (unsigned)max_asid;
	if (!rmp)
		return PW_OK;
	if (json_array_size(rmp) != 2 || !json_is_integer(json_array_get(rmp, 0)) ||
	    !json_is_integer(json_array_get(rmp, 1)))
		return pw_fail(err, PW_INVALID, "rmp is not the first and the last frame of the RMP");
	first = (uint64_t)json_integer_value(json_array_get(rmp, 0));
	last = (uint64_t)json_integer_value(json_array_get(rmp, 1));
	if (last < first || last >= TREE_PAGES)
		return pw_fail(err, PW_INVALID, "rmp is no range of frames");
	c->rmp = (struct snp_range){ first, last - first + 1 };
	return PW_OK;
}

static enum pw_status read_fixed(const json_t *header, struct snp_config *c, struct snp_range **out, struct pw_err *err)
{
	const json_t *list = json_object_get(header, "hv_fixed");
	size_t n = json_array_size(list);

	*out = NULL;
	if (list && !json_is_array(list))
		return pw_fail(err, PW_INVALID, "hv_fixed is not an array");
	if (!n)
		return PW_OK;
	*out = calloc(n, sizeof **out);
	if (!*out)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	for (size_t i = 0; i < n; i++) {
		const json_t *v = json_array_get(list, i);

		if (!json_is_integer(v) || json_integer_value(v) < 0)
			return pw_fail(err, PW_INVALID, "hv_fixed[%zu] is not a frame", i);
		(*out)[i] = (struct snp_range){ (uint64_t)json_integer_value(v), 1 };
	}
	c->fixed = *out;
	c->fixed_count = n;
	return PW_OK;
}

/* To state INIT, and all ASIDs clean. */
static enum pw_status bring_up(struct snp *m)
{
	struct snp_cmd init = { .op = SNP_CMD_INIT }, flush = { .op = SNP_CMD_DF_FLUSH };
	enum snp_status status;

	if (snp_command(m, &init, &status) != PW_OK)
		return PW_NO_MEMORY;
	snp_wbinvd(m);
	return snp_command(m, &flush, &status);
}

static enum pw_status make(const struct snp_config *c, void **model, struct pw_err *err)
{
	struct machine *x = calloc(1, sizeof *x);
	enum pw_status st;

	if (!x)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	st = snp_init(&x->m, &x->mem, c);
	if (st == PW_OK)
		st = bring_up(&x->m);
	if (st == PW_OK) {
		*model = x;
		return PW_OK;
	}
	if (st != PW_INVALID)
		snp_release(&x->m);
	free(x);
	return pw_fail(err, st, st == PW_INVALID ? "the header's ranges are not within its frames" : "out of memory");
}

static enum pw_status snp_open(const json_t *header, void **model, struct pw_err *err)
{
	static const char *const members[] = { "type", "format",   "scenario", "frames",
					       "rmp",  "max_asid", "hv_fixed", NULL };
	struct snp_config c = { .smt = true };
	struct snp_range *fixed = NULL;
	enum pw_status st = replay_known(header, members, err);

	if (st == PW_OK)
		st = read_config(header, &c, err);
	if (st == PW_OK)
		st = read_fixed(header, &c, &fixed, err);
	if (st == PW_OK)
		st = make(&c, model, err);
	free(fixed);
	return st;
}

static void snp_close(void *model)
{
	struct machine *x = model;

	snp_release(&x->m);
	free(x);
}

/* Results. */

static json_t *page_member(const char *key, enum snp_state state, const struct snp_entry *e)
{
	if (strcmp(key, "state") == 0)
		return json_string(snp_state_name(state));
	if (strcmp(key, "asid") == 0)
		return json_integer(e->asid);
	if (strcmp(key, "gfn") == 0)
		return json_integer((json_int_t)e->gfn);
	if (strcmp(key, "size") == 0)
		return json_string(e->size == SNP_2M ? "2M" : "4K");
	return NULL;
}

static enum pw_status frame_of(const char *text, uint64_t *out, struct pw_err *err)
{
	char *end;

	*out = strtoull(text, &end, 10);
	if (*text < '0' || *text > '9' || *end || *out >= TREE_PAGES)
		return pw_fail(err, PW_INVALID, "\"%.64s\" is not a frame", text);
	return PW_OK;
}

static enum pw_status report_page(const struct snp *m, const char *frame, const json_t *asked, json_t *out,
				  struct pw_err *err)
{
	json_t *page = json_object(), *v;
	enum snp_state state;
	struct snp_entry e;
	const char *key;
	uint64_t pfn;

	if (json_object_set_new(out, frame, page) != 0)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	if (frame_of(frame, &pfn, err) != PW_OK)
		return err->status;
	if (!json_is_object(asked))
		return pw_fail(err, PW_INVALID, "post of frame %s is not an object", frame);
	state = snp_read(m, pfn, &e);
	json_object_foreach ((json_t *)(uintptr_t)asked, key, v)
		if (json_object_set_new(page, key, page_member(key, state, &e)) != 0)
			return pw_fail(err, PW_INVALID, "unknown post member \"%.64s\" of frame %s", key, frame);
	return PW_OK;
}

static enum pw_status report_pages(const struct snp *m, const json_t *asked, json_t *out, struct pw_err *err)
{
	const char *frame;
	json_t *page;

	json_object_foreach ((json_t *)(uintptr_t)asked, frame, page)
		if (report_page(m, frame, page, out, err) != PW_OK)
			return err->status;
	return PW_OK;
}

static json_t *digest_text(const struct snp_guest *g)
{
	char text[2 * SNP_DIGEST + 1];

	if (!g)
		return json_null();
	for (size_t i = 0; i < SNP_DIGEST; i++)
		snprintf(text + 2 * i, 3, "%02x", g->digest[i]);
	return json_string(text);
}

static enum pw_status report_digests(const struct snp *m, const json_t *asked, json_t *out, struct pw_err *err)
{
	const char *frame;
	json_t *v;

	json_object_foreach ((json_t *)(uintptr_t)asked, frame, v) {
		uint64_t context;

		if (frame_of(frame, &context, err) != PW_OK)
			return err->status;
		if (json_object_set_new(out, frame, digest_text(snp_guest(m, context))) != 0)
			return pw_fail(err, PW_NO_MEMORY, "out of memory");
	}
	return PW_OK;
}

static const struct report {
	const char *name;
	enum pw_status (*fn)(const struct snp *m, const json_t *asked, json_t *out, struct pw_err *err);
} reports[] = { { "pages", report_pages }, { "digest", report_digests } };

static enum pw_status report_post(const struct snp *m, const json_t *post, json_t *out, struct pw_err *err)
{
	static const char *const members[] = { "pages", "digest", NULL };

	if (!json_is_object(post))
		return pw_fail(err, PW_INVALID, "post is not an object");
	if (replay_known(post, members, err) != PW_OK)
		return err->status;
	for (size_t i = 0; i < PW_ARRAY_LEN(reports); i++) {
		const json_t *asked = json_object_get(post, reports[i].name);
		json_t *part;

		if (!asked)
			continue;
		part = json_object();
		if (json_object_set_new(out, reports[i].name, part) != 0)
			return pw_fail(err, PW_NO_MEMORY, "out of memory");
		if (!json_is_object(asked))
			return pw_fail(err, PW_INVALID, "post's %s is not an object", reports[i].name);
		if (reports[i].fn(m, asked, part, err) != PW_OK)
			return err->status;
	}
	return PW_OK;
}

static enum pw_status report(const struct snp *m, const json_t *line, json_t *ret, json_t **got, struct pw_err *err)
{
	const json_t *post = json_object_get(line, "post");
	json_t *out = json_object(), *part = post ? json_object() : NULL;

	*got = out;
	if (json_object_set_new(out, "ret", ret) != 0 || (post && json_object_set_new(out, "post", part) != 0))
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	return post ? report_post(m, post, part, err) : PW_OK;
}

/* Steps. */

static const struct op *op_named(const char *name)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(ops); i++)
		if (strcmp(ops[i].name, name) == 0)
			return &ops[i];
	return NULL;
}

static enum pw_status read_step(const json_t *line, const struct op **op, struct step *s, struct pw_err *err)
{
	static const char *const members[] = { "n", "op", "args", "ret", "post", NULL };
	const json_t *args = json_object_get(line, "args");
	const char *name;

	if (replay_known(line, members, err) != PW_OK || replay_str(line, "op", &name, err) != PW_OK)
		return err->status;
	*op = op_named(name);
	if (!*op)
		return pw_fail(err, PW_INVALID, "unknown operation \"%.64s\"", name);
	if (!json_is_object(args) || !json_object_get(line, "ret"))
		return pw_fail(err, PW_INVALID, "args or ret are missing");
	if (replay_known(args, (*op)->args, err) != PW_OK)
		return err->status;
	s->cmd.op = (*op)->command;
	return (*op)->read(args, s, err);
}

static enum pw_status snp_step(void *model, const json_t *line, json_t **got, bool *refused, struct pw_err *err)
{
	struct machine *x = model;
	struct step s = { 0 };
	struct answer a = { 0 };
	const struct op *op = NULL;
	enum pw_status st = read_step(line, &op, &s, err);

	*got = NULL;
	if (st == PW_OK && op->run(&x->m, &s, json_object_get(line, "ret"), &a) != PW_OK)
		st = pw_fail(err, PW_NO_MEMORY, "out of memory");
	free(s.content);
	if (st == PW_OK)
		st = report(&x->m, line, a.ret, got, err);
	if (st != PW_OK) {
		json_decref(*got);
		*got = NULL;
	}
	*refused = a.refused;
	return st;
}

static uint64_t snp_model_digest(const void *model)
{
	const struct machine *x = model;

	return snp_digest(&x->m);
}

static bool snp_model_check(const void *model, struct pw_err *err)
{
	const struct machine *x = model;

	if (snp_check(&x->m))
		return true;
	pw_fail(err, PW_CONFLICT, "the model's invariants are broken");
	return false;
}

extern const struct replay_format replay_snp; /* api/replay_formats.c lists it */
const struct replay_format replay_snp = {
	.name = "snp-trace/1",
	.open = snp_open,
	.close = snp_close,
	.step = snp_step,
	.digest = snp_model_digest,
	.check = snp_model_check,
};
