/* tdx-trace/1: one call a line, operands and results side by side in it. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/replay.h"
#include "engine/arch/tdx.h"

#define TDS_MAX 4096

struct world {
	struct pw_mem mem;
	struct tdx m;
	bool known[TDS_MAX]; /* by the trace's number of a TD */
	uint64_t tdr[TDS_MAX];
	unsigned levels;
	bool wide;
};

/* Operands, a bit each, and what a line may say of the answer. */
#define TD     1u
#define PFN    2u
#define GPA    4u
#define LEVEL  8u
#define HKID   16u
#define AFTER  32u
#define OUT    64u
#define EPOCH  128u
#define STATE  256u
#define PAGE   512u
#define INIT   1024u
#define NO_RC  2048u /* only the epoch is recorded */
#define ANY_TD 4096u /* `td` may be there, and is not read */
#define EVENT  TDX_OP_COUNT

static const struct verb {
	const char *name;
	enum tdx_op op; /* EVENT: a vCPU enters or leaves, as far as epochs are concerned */
	unsigned has;
} verbs[] = {
	{ "create", TDX_MNG_CREATE, TD | PFN | HKID },
	{ "keyconfig", TDX_KEY_CONFIG, TD },
	{ "addcx", TDX_MNG_ADDCX, TD | PFN },
	{ "init", TDX_MNG_INIT, TD | INIT },
	{ "finalize", TDX_MR_FINALIZE, TD },
	{ "sept_add", TDX_SEPT_ADD, TD | GPA | LEVEL | PFN | AFTER },
	{ "sept_remove", TDX_SEPT_REMOVE, TD | GPA | LEVEL | AFTER | OUT },
	{ "sept_rd", TDX_SEPT_RD, TD | GPA | STATE },
	{ "add", TDX_PAGE_ADD, TD | GPA | LEVEL | PFN | AFTER },
	{ "extend", TDX_MR_EXTEND, TD | GPA | AFTER },
	{ "aug", TDX_PAGE_AUG, TD | GPA | LEVEL | PFN | AFTER },
	{ "block", TDX_RANGE_BLOCK, TD | GPA | LEVEL | AFTER },
	{ "unblock", TDX_RANGE_UNBLOCK, TD | GPA | LEVEL | AFTER },
	{ "remove", TDX_PAGE_REMOVE, TD | GPA | LEVEL | AFTER | OUT },
	{ "relocate", TDX_PAGE_RELOCATE, TD | GPA | PFN | AFTER | OUT },
	{ "promote", TDX_PAGE_PROMOTE, TD | GPA | LEVEL | AFTER | OUT },
	{ "demote", TDX_PAGE_DEMOTE, TD | GPA | LEVEL | PFN | AFTER },
	{ "track", TDX_TRACK, TD | EPOCH },
	{ "vcpu_enter", EVENT, TD | EPOCH | NO_RC },
	{ "vcpu_exit", EVENT, TD | EPOCH | NO_RC },
	{ "accept", TDX_ACCEPT, TD | GPA | LEVEL | AFTER },
	{ "reclaim", TDX_PAGE_RECLAIM, PFN | PAGE },
	{ "wbinvd", TDX_PAGE_WBINVD, PFN },
	{ "rdmd", TDX_PAGE_RDMD, PFN | PAGE },
	{ "vpflushdone", TDX_VPFLUSHDONE, TD },
	{ "cachewb", TDX_CACHE_WB, ANY_TD },
	{ "freeid", TDX_KEY_FREEID, TD },
};

/* Which member each bit allows; those of operands are demanded. */
static const struct {
	const char *name;
	unsigned by;
	bool demanded;
} members[] = {
	{ "td", TD, true },        { "td", ANY_TD, false },   { "pfn", PFN, true },         { "gpa", GPA, true },
	{ "level", LEVEL, true },  { "level", STATE, false }, { "level", GPA, false }, /* of a call that has one level
											  only */
	{ "hkid", HKID, true },    { "gpaw", INIT, false },   { "levels", INIT, false },    { "vcpus", INIT, false },
	{ "after", AFTER, false }, { "out_pfn", OUT, false }, { "epoch", NO_RC, true },     { "epoch", EPOCH, false },
	{ "state", STATE, false }, { "pt", PAGE, false },     { "owner_pfn", PAGE, false }, { "size", PAGE, false },
};

static bool is_always_known(const char *key)
{
	return strcmp(key, "n") == 0 || strcmp(key, "op") == 0 || strcmp(key, "rc") == 0 || strcmp(key, "name") == 0;
}

static bool is_known(const struct verb *v, const char *key)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(members); i++)
		if (v->has & members[i].by && strcmp(members[i].name, key) == 0)
			return true;
	return is_always_known(key);
}

static enum pw_status check_members(const struct verb *v, const json_t *line, struct pw_err *err)
{
	const char *key;
	json_t *value;

	json_object_foreach ((json_t *)(uintptr_t)line, key, value)
		if (!is_known(v, key))
			return pw_fail(err, PW_INVALID, "unknown member \"%s\" of \"%s\"", key, v->name);
	for (size_t i = 0; i < PW_ARRAY_LEN(members); i++)
		if (v->has & members[i].by && members[i].demanded && !json_object_get(line, members[i].name))
			return pw_fail(err, PW_INVALID, "\"%s\" without \"%s\"", v->name, members[i].name);
	if (!(v->has & NO_RC) && !json_is_string(json_object_get(line, "rc")))
		return pw_fail(err, PW_INVALID, "\"%s\" without \"rc\"", v->name);
	return PW_OK;
}

/* A fresh platform. */

static enum pw_status read_range(const json_t *header, const char *member, uint64_t *first, uint64_t *last,
				 struct pw_err *err)
{
	const json_t *v = json_object_get(header, member);
	const json_t *a = json_array_get(v, 0), *b = json_array_get(v, 1);

	if (json_array_size(v) != 2 || !json_is_integer(a) || !json_is_integer(b) || json_integer_value(a) < 0 ||
	    json_integer_value(b) < json_integer_value(a))
		return pw_fail(err, PW_INVALID, "member \"%s\" is not [first, last]", member);
	*first = (uint64_t)json_integer_value(a);
	*last = (uint64_t)json_integer_value(b);
	return PW_OK;
}

static enum pw_status read_config(const json_t *header, struct tdx_config *c, struct world *w, struct pw_err *err)
{
	static const char *const known[] = { "type", "format",      "scenario", "tdmr_pfns", "private_hkids",
					     "gpaw", "sept_levels", "max_pa",   NULL };
	uint64_t gpaw, levels, max_pa, first, last, hkid, hkid_last;

	if (replay_known(header, known, err) != PW_OK || read_range(header, "tdmr_pfns", &first, &last, err) != PW_OK ||
	    read_range(header, "private_hkids", &hkid, &hkid_last, err) != PW_OK ||
	    replay_u64(header, "gpaw", 48, &gpaw, err) != PW_OK ||
	    replay_u64(header, "sept_levels", 4, &levels, err) != PW_OK ||
	    replay_u64(header, "max_pa", 52, &max_pa, err) != PW_OK)
		return err->status;
	if ((gpaw != 48 && gpaw != 52) || (levels != 4 && levels != 5) || max_pa > 64 || hkid_last > UINT16_MAX)
		return pw_fail(err, PW_INVALID, "GPA width %" PRIu64 ", %" PRIu64 " levels, %" PRIu64 " address bits",
			       gpaw, levels, max_pa);
	w->wide = gpaw == 52;
	w->levels = (unsigned)levels;
	*c = (struct tdx_config){ .tdmr = { { first, last + 1 } },
				  .tdmrs = 1,
				  .first_hkid = (uint32_t)hkid,
				  .last_hkid = (uint32_t)hkid_last,
				  .packages = 1,
				  .max_pa = (unsigned)max_pa };
	return PW_OK;
}

static enum pw_status open_world(const json_t *header, void **model, struct pw_err *err)
{
	struct world *w = calloc(1, sizeof *w);
	struct tdx_config c;
	enum pw_status st;

	if (!w)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	st = read_config(header, &c, w, err);
	if (st == PW_OK)
		st = tdx_init(&w->m, &w->mem, &c, err);
	if (st != PW_OK) {
		free(w);
		return st;
	}
	*model = w;
	return PW_OK;
}

static void close_world(void *model)
{
	struct world *w = model;

	tdx_release(&w->m);
	free(w);
}

/* Operands. */

static enum pw_status read_td(struct world *w, const struct verb *v, const json_t *line, struct tdx_call *c,
			      uint64_t *number, struct pw_err *err)
{
	if (replay_u64(line, "td", 0, number, err) != PW_OK)
		return err->status;
	if (*number >= TDS_MAX)
		return pw_fail(err, PW_INVALID, "TD %" PRIu64 " is past the %u that a trace may number", *number,
			       TDS_MAX);
	if (v->op == TDX_MNG_CREATE)
		return PW_OK;
	if (!w->known[*number])
		return pw_fail(err, PW_INVALID, "TD %" PRIu64 " was never created", *number);
	c->tdr = w->tdr[*number];
	return PW_OK;
}

static enum pw_status read_init(const struct world *w, const json_t *line, struct tdx_call *c, uint64_t *vcpus,
				struct pw_err *err)
{
	uint64_t gpaw, levels;

	if (replay_u64(line, "gpaw", w->wide ? 1 : 0, &gpaw, err) != PW_OK ||
	    replay_u64(line, "levels", w->levels, &levels, err) != PW_OK ||
	    replay_u64(line, "vcpus", 1, vcpus, err) != PW_OK)
		return err->status;
	if (gpaw > 1 || levels > UINT8_MAX)
		return pw_fail(err, PW_INVALID, "GPAW is 0 or 1, a secure EPT has 4 or 5 levels");
	c->wide = gpaw == 1;
	c->levels = (unsigned)levels;
	return PW_OK;
}

static enum pw_status read_operands(struct world *w, const struct verb *v, const json_t *line, struct tdx_call *c,
				    uint64_t *td, uint64_t *vcpus, struct pw_err *err)
{
	uint64_t level, hkid;

	*c = (struct tdx_call){ .op = v->op };
	*td = *vcpus = 0;
	if (v->has & TD && read_td(w, v, line, c, td, err) != PW_OK)
		return err->status;
	if (v->has & INIT && read_init(w, line, c, vcpus, err) != PW_OK)
		return err->status;
	if (replay_u64(line, "pfn", 0, &c->frame, err) != PW_OK || replay_u64(line, "gpa", 0, &c->gpa, err) != PW_OK ||
	    replay_u64(line, "level", 0, &level, err) != PW_OK || replay_u64(line, "hkid", 0, &hkid, err) != PW_OK)
		return err->status;
	c->level = level < TDX_TO_ROOT ? (unsigned)level : TDX_TO_ROOT;
	c->hkid = hkid < UINT32_MAX ? (uint32_t)hkid : UINT32_MAX;
	return PW_OK;
}

/* Results: those that the line carries, as the model has them; null where it has none. */

struct answer {
	const struct verb *verb;
	struct tdx_call call;
	struct tdx_result result;
	bool has_epoch;
};

static json_t *hex(uint64_t value)
{
	char text[19];

	snprintf(text, sizeof text, "0x%016" PRIx64, value);
	return json_string(text);
}

static json_t *after(const struct world *w, const struct answer *a)
{
	const struct tdx_td *td = tdx_td(&w->m, a->call.tdr);
	enum tdx_sept s;

	if (!td || !tdx_entry(td, a->call.gpa, a->call.level, &s))
		return json_null();
	return json_string(tdx_sept_name(s));
}

static json_t *result_named(const struct world *w, const struct answer *a, const char *key)
{
	const struct tdx_result *r = &a->result;

	if (strcmp(key, "rc") == 0)
		return r->exits ? json_string("td-exit") : hex(tdx_rax(r));
	if (strcmp(key, "after") == 0)
		return after(w, a);
	if (strcmp(key, "out_pfn") == 0)
		return r->has_frame ? json_integer((json_int_t)r->frame) : json_null();
	if (strcmp(key, "epoch") == 0)
		return a->has_epoch ? json_integer((json_int_t)r->epoch) : json_null();
	if (strcmp(key, "state") == 0)
		return r->code == TDX_SUCCESS ? json_string(tdx_sept_name(r->state)) : json_null();
	if (strcmp(key, "level") == 0 && a->verb->has & STATE)
		return json_integer((json_int_t)(r->code == TDX_SUCCESS ? r->level : a->call.level));
	if (strcmp(key, "pt") == 0)
		return json_string(tdx_page_type_name(r->type));
	if (strcmp(key, "owner_pfn") == 0)
		return json_integer((json_int_t)r->owner);
	if (strcmp(key, "size") == 0)
		return json_integer((json_int_t)r->size);
	return NULL;
}

static enum pw_status collect(const struct world *w, const struct answer *a, const json_t *line, json_t **got,
			      struct pw_err *err)
{
	static const char *const results[] = { "rc",    "after", "out_pfn",   "epoch", "state",
					       "level", "pt",    "owner_pfn", "size" };

	*got = json_object();
	for (size_t i = 0; *got && i < PW_ARRAY_LEN(results); i++) {
		bool is_operand = strcmp(results[i], "level") == 0 && !(a->verb->has & STATE);

		if (is_operand || !json_object_get(line, results[i]))
			continue;
		if (json_object_set_new(*got, results[i], result_named(w, a, results[i])) != 0) {
			json_decref(*got);
			*got = NULL;
		}
	}
	return *got ? PW_OK : pw_fail(err, PW_NO_MEMORY, "out of memory");
}

/* Steps. */

/* A vCPU that leaves is one that entered in the epoch which the line names. */
static enum pw_status run_event(struct world *w, const struct verb *v, const json_t *line, struct answer *a,
				struct pw_err *err)
{
	struct tdx_td *td = tdx_td(&w->m, a->call.tdr);
	uint64_t epoch;

	if (replay_u64(line, "epoch", 0, &epoch, err) != PW_OK)
		return err->status;
	if (!td)
		return PW_OK;
	if (strcmp(v->name, "vcpu_enter") == 0) {
		tdx_epoch_enter(td);
		epoch = td->epoch;
	} else if (!tdx_epoch_leave(td, epoch)) {
		return PW_OK;
	}
	a->has_epoch = true;
	a->result.epoch = epoch;
	return PW_OK;
}

static enum pw_status run_call(struct world *w, struct answer *a, uint64_t td, uint64_t vcpus, struct pw_err *err)
{
	enum pw_status st = tdx_call(&w->m, &a->call, &a->result, err);

	if (st != PW_OK)
		return st;
	a->has_epoch = a->call.op == TDX_TRACK;
	if (a->call.op == TDX_MNG_CREATE && (a->result.code == TDX_SUCCESS || !w->known[td])) {
		w->known[td] = true;
		w->tdr[td] = a->call.frame;
	}
	if (a->call.op == TDX_MNG_INIT && a->result.code == TDX_SUCCESS)
		tdx_assume_vcpus(tdx_td(&w->m, a->call.tdr), vcpus);
	return PW_OK;
}

static enum pw_status step(void *model, const json_t *line, json_t **got, bool *refused, struct pw_err *err)
{
	struct world *w = model;
	struct answer a = { 0 };
	uint64_t td, vcpus;
	const char *op;
	enum pw_status st;

	if (replay_str(line, "op", &op, err) != PW_OK)
		return err->status;
	for (size_t i = 0; i < PW_ARRAY_LEN(verbs) && !a.verb; i++)
		if (strcmp(verbs[i].name, op) == 0)
			a.verb = &verbs[i];
	if (!a.verb)
		return pw_fail(err, PW_INVALID, "unknown operation \"%s\"", op);
	st = check_members(a.verb, line, err);
	if (st == PW_OK)
		st = read_operands(w, a.verb, line, &a.call, &td, &vcpus, err);
	if (st == PW_OK)
		st = a.verb->op == EVENT ? run_event(w, a.verb, line, &a, err) : run_call(w, &a, td, vcpus, err);
	if (st != PW_OK)
		return st;
	*refused = a.result.code != TDX_SUCCESS || a.result.exits;
	return collect(w, &a, line, got, err);
}

static uint64_t digest(const void *model)
{
	return tdx_digest(&((const struct world *)model)->m);
}

static bool check(const void *model, struct pw_err *err)
{
	return tdx_check(&((const struct world *)model)->m, err);
}

const struct replay_format replay_tdx = {
	.name = "tdx-trace/1",
	.open = open_world,
	.close = close_world,
	.step = step,
	.digest = digest,
	.check = check,
};
