/*
 * Checks the parameters of an operation when it is asked for, by the rows of one table, so that an agent never meets
 * one that is malformed. What only the VM or its hardware can tell (is the GFN in a slot, are there frames) is not
 * decided here.
 */
#include "api/operation_params.h"

#include <stdlib.h>
#include <string.h>

#define CCA_ONLY ((uint32_t)1 << ARCH_CCA)
#define RANGE(kind, verb)                                                                    \
	{ kind, "gfn", PARAM_FIRST, JSON_REQUIRED, 0, "the first page to " verb },           \
	{                                                                                    \
		kind, "count", PARAM_COUNT, JSON_REQUIRED, 0, "how many pages from there on" \
	}

/* clang-format off */
const struct operation_param operation_params[] = {
	{ OPERATION_LAUNCH, "resident", PARAM_SHARE, JSON_OPTIONAL, 0, "how much to make resident; fewer is a failure. Absent: all that there are frames for" },
	{ OPERATION_LAUNCH, "shared", PARAM_RUNS, JSON_OPTIONAL, 0, "what is shared before the rest is secured" },
	{ OPERATION_LAUNCH, "plain", PARAM_BOOL, JSON_OPTIONAL, 0, "an ordinary VM: it stays normal" },
	{ OPERATION_LAUNCH, "guest", PARAM_GUEST, JSON_OPTIONAL, 0, "what the guest does, where the backend runs one" },
	{ OPERATION_LAUNCH, "share_backing", PARAM_TEXT, JSON_OPTIONAL, 0, "VMs of one such group get the same host pages (kvm): a double assignment on purpose" },
	{ OPERATION_LAUNCH, "ripas", PARAM_RIPAS, JSON_OPTIONAL, CCA_ONLY, "what the realm's pages are at first; absent: RAM (cca)" },
	RANGE(OPERATION_SHARE, "share"),
	RANGE(OPERATION_UNSHARE, "unshare"),
	{ OPERATION_UNSHARE, "resident", PARAM_BOOL, JSON_OPTIONAL, 0, "bring frames along" },
	RANGE(OPERATION_PAGE_IN, "page in"),
	RANGE(OPERATION_PAGE_OUT, "page out"),
	{ OPERATION_PLUG, "slot", PARAM_SLOT, JSON_REQUIRED, 0, "the slot's number" },
	{ OPERATION_PLUG, "base_gfn", PARAM_FIRST, JSON_REQUIRED, 0, "its first page" },
	{ OPERATION_PLUG, "pages", PARAM_COUNT, JSON_REQUIRED, 0, "how many pages it has" },
	{ OPERATION_UNPLUG, "slot", PARAM_SLOT, JSON_REQUIRED, 0, "the slot that goes, with its pages" },
	{ OPERATION_ADOPT, "host", PARAM_HOST, JSON_OPTIONAL, 0, "the host that has the VM, if several report it as unknown" },
	{ OPERATION_END, "host", PARAM_HOST, JSON_OPTIONAL, 0, "the host on whose hardware the VM ends, if several report it as unknown" },
	{ OPERATION_KIND_COUNT, NULL, PARAM_BOOL, JSON_OPTIONAL, 0, NULL },
};
/* clang-format on */

#define TEXT_(name, text) [name] = text,
static const char *const type_texts[] = { PARAM_TYPES(TEXT_) };

const char *param_type_text(enum param_type t)
{
	return type_texts[t];
}

/* What the readers of one request leave behind. */
struct draft {
	uint64_t first, count, number;
	bool flag;
	const char *text;
	struct pw_uuid host;
};

static bool to_slot(struct reader *r, json_t *v, void *at)
{
	return json_read_range(r, v, 0, UINT32_MAX, at);
}

static bool to_share(struct reader *r, json_t *v, void *at)
{
	uint64_t pages;

	if (json_is_integer(v))
		return json_read_range(r, v, 0, TREE_PAGES, &pages);
	if (json_is_real(v) && json_real_value(v) >= 0 && json_real_value(v) <= 1)
		return true;
	return json_fault_value(r, v, type_texts[PARAM_SHARE]);
}

static bool read_ripas(struct reader *r, json_t *v)
{
	const char *name = json_string_value(v);

	if (name && (strcmp(name, "EMPTY") == 0 || strcmp(name, "RAM") == 0))
		return true;
	return json_fault_value(r, v, "\"EMPTY\" or \"RAM\"");
}

/* One run: `members` of an array, the first two of them pages, the third what their RIPAS is. */
static bool read_run(struct reader *r, json_t *v, size_t members)
{
	uint64_t first, count;

	if (!json_check_array(r, v, members, members))
		return false;
	json_enter_at(r, 0);
	if (!json_to_page(r, json_array_get(v, 0), &first))
		return false;
	json_leave(r);
	json_enter_at(r, 1);
	if (!json_to_count(r, json_array_get(v, 1), &count))
		return false;
	if (count > TREE_PAGES - first)
		return json_fault(r, "the run [%" PRIu64 ", %" PRIu64 "] ends past 2^40", first, count);
	json_leave(r);
	if (members < 3)
		return true;
	json_enter_at(r, 2);
	if (!read_ripas(r, json_array_get(v, 2)))
		return false;
	json_leave(r);
	return true;
}

static bool read_runs(struct reader *r, json_t *v, size_t members)
{
	json_t *run;
	size_t i;

	if (!json_check_array(r, v, 0, OPERATION_RUNS_MAX))
		return false;
	json_array_foreach (v, i, run) {
		json_enter_at(r, i);
		if (!read_run(r, run, members))
			return false;
		json_leave(r);
	}
	return true;
}

static bool to_runs(struct reader *r, json_t *v, void *at)
{
	return read_runs(r, v, 2);
}

static bool to_ripas(struct reader *r, json_t *v, void *at)
{
	return read_runs(r, v, 3);
}

static bool to_rate(struct reader *r, json_t *v, void *at)
{
	return json_read_range(r, v, 0, OPERATION_RATE_MAX, at);
}

static bool to_guest(struct reader *r, json_t *v, void *at)
{
	static const struct json_field fields[] = {
		{ "seed", JSON_OPTIONAL, json_to_number, offsetof(struct draft, number), JSON_NO_FLAG },
		{ "rate", JSON_OPTIONAL, to_rate, offsetof(struct draft, number), JSON_NO_FLAG },
		{ "idle", JSON_OPTIONAL, json_to_bool, offsetof(struct draft, flag), JSON_NO_FLAG },
	};
	struct draft unused;

	return json_read_object(r, v, fields, PW_ARRAY_LEN(fields), &unused);
}

static bool to_group(struct reader *r, json_t *v, void *at)
{
	if (!json_to_name(r, v, at))
		return false;
	if (json_string_length(v) <= OPERATION_GROUP_MAX)
		return true;
	return json_fault_value(r, v, type_texts[PARAM_TEXT]);
}

static const struct {
	json_read_fn read;
	size_t at;
} readers[PARAM_TYPE_COUNT] = {
	[PARAM_FIRST] = { json_to_page, offsetof(struct draft, first) },
	[PARAM_COUNT] = { json_to_count, offsetof(struct draft, count) },
	[PARAM_SLOT] = { to_slot, offsetof(struct draft, number) },
	[PARAM_BOOL] = { json_to_bool, offsetof(struct draft, flag) },
	[PARAM_SHARE] = { to_share, 0 },
	[PARAM_RUNS] = { to_runs, 0 },
	[PARAM_RIPAS] = { to_ripas, 0 },
	[PARAM_GUEST] = { to_guest, 0 },
	[PARAM_TEXT] = { to_group, offsetof(struct draft, text) },
	[PARAM_HOST] = { json_to_uuid, offsetof(struct draft, host) },
};

/* The rows of the kind as fields; how many. *count is the name of the one that counts pages, or NULL. */
static size_t fields_of(enum operation_kind kind, struct json_field *fields, const char **count)
{
	size_t n = 0;

	*count = NULL;
	for (const struct operation_param *p = operation_params; p->name; p++) {
		if (p->kind != kind)
			continue;
		fields[n++] = (struct json_field){ p->name, p->need, readers[p->type].read, readers[p->type].at,
						   JSON_NO_FLAG };
		if (p->type == PARAM_COUNT)
			*count = p->name;
	}
	return n;
}

static bool read_params(struct reader *r, json_t *params, struct operation_body *out)
{
	struct json_field fields[JSON_FIELDS_MAX];
	struct draft d = { 0 };
	const char *count;
	size_t n = fields_of(out->kind, fields, &count);

	if (!json_read_object(r, params, fields, n, &d) || (count && !json_check_run(r, count, d.first, d.count)))
		return false;
	out->slot = (struct slot){ (uint32_t)d.number, d.first, d.count };
	out->host = d.host;
	out->has_host = !pw_uuid_is_nil(&d.host);
	out->arches = UINT32_MAX;
	for (const struct operation_param *p = operation_params; p->name; p++) {
		if (p->kind != out->kind || !p->arches || !json_object_get(params, p->name))
			continue;
		out->arches &= p->arches;
		out->narrow = p->name;
	}
	return true;
}

bool operation_params_read(struct reader *r, json_t *v, struct operation_body *out)
{
	json_t *params = json_object_get(v, "params"), *none = params ? NULL : json_object();
	bool ok;

	if (!params && !none)
		return json_fault_memory(r);
	json_enter(r, "params");
	ok = read_params(r, params ? params : none, out);
	json_decref(none);
	if (ok)
		json_leave(r);
	else
		r->why->problem = PROBLEM_INVALID_PARAMS;
	return ok;
}
