/* The agent's list of unknown VMs: JSON items as they are sent, by the VM's id. The ledger gets the whole list when it
 * has changed, and after each registration. */
#include "agents/unknown.h"

#include <string.h>

#include "api/text.h"

void disputes_add(struct disputes *d, const struct unknown_run *run)
{
	struct unknown_run *last = d->run_count ? &d->runs[d->run_count - 1] : NULL;

	d->pages += run->count;
	if (last && last->gfn + last->count == run->gfn && last->pfn + last->count == run->pfn &&
	    last->has_owner == run->has_owner && pw_uuid_equal(&last->owner, &run->owner) &&
	    (!run->has_owner || last->owner_gfn + last->count == run->owner_gfn))
		last->count += run->count;
	else if (d->run_count < UNKNOWN_RUNS_MAX)
		d->runs[d->run_count++] = *run;
}

static json_t *run_json(const struct unknown_run *run)
{
	json_t *json = json_pack("{s:I, s:I, s:I}", "gfn", (json_int_t)run->gfn, "count", (json_int_t)run->count, "pfn",
				 (json_int_t)run->pfn);
	char owner[PW_UUID_TEXT];

	if (!json || !run->has_owner)
		return json;
	pw_uuid_format(&run->owner, owner);
	if (json_object_set_new(json, "owner", json_string(owner)) == 0 &&
	    json_object_set_new(json, "owner_gfn", json_integer((json_int_t)run->owner_gfn)) == 0)
		return json;
	json_decref(json);
	return NULL;
}

static json_t *runs_json(const struct disputes *d)
{
	json_t *runs = json_array();
	int failed = 0;

	for (size_t i = 0; runs && d && i < d->run_count; i++)
		failed |= json_array_append_new(runs, run_json(&d->runs[i]));
	if (!failed)
		return runs;
	json_decref(runs);
	return NULL;
}

enum pw_status unknown_note(struct agent *a, const struct unknown_report *u, struct pw_err *err)
{
	char id[PW_UUID_TEXT], detail[CODEC_REASON_MAX];
	json_t *item, *known;

	pw_uuid_format(&u->vm, id);
	text_copy(detail, sizeof detail, u->detail);
	item = json_pack("{s:s, s:s, s:s, s:s, s:s, s:I, s:I, s:o}", "vm", id, "reason", unknown_reason_name(u->reason),
			 "detail", detail, "arch", a->info.arch, "state", vm_state_name(u->state), "pages",
			 (json_int_t)u->pages, "disputed_pages", (json_int_t)(u->disputes ? u->disputes->pages : 0),
			 "disputed", runs_json(u->disputes));
	if (!a->unknown)
		a->unknown = json_object();
	known = json_object_get(a->unknown, id);
	if (known && item && json_equal(known, item)) {
		json_decref(item);
		return PW_OK;
	}
	if (!item || json_object_set_new(a->unknown, id, item) != 0)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a report of an unknown VM");
	a->unknown_told = false;
	return PW_OK;
}

void unknown_clear(struct agent *a, const struct pw_uuid *vm)
{
	char id[PW_UUID_TEXT];

	pw_uuid_format(vm, id);
	if (json_object_del(a->unknown, id) == 0)
		a->unknown_told = false;
}

bool unknown_has(const struct agent *a, const struct pw_uuid *vm, const char **detail)
{
	char id[PW_UUID_TEXT];
	json_t *item;

	pw_uuid_format(vm, id);
	item = json_object_get(a->unknown, id);
	if (item && detail)
		*detail = json_string_value(json_object_get(item, "detail"));
	return item;
}

void unknown_refuse(const struct agent *a, const struct pw_uuid *vm, const char *what, struct refusal *why)
{
	char id[PW_UUID_TEXT];
	json_t *item;
	const char *reason, *detail;

	pw_uuid_format(vm, id);
	item = json_object_get(a->unknown, id);
	reason = json_string_value(json_object_get(item, "reason"));
	detail = json_string_value(json_object_get(item, "detail"));
	refuse(why, PROBLEM_UNKNOWN_VM, "%.250s", detail ? detail : what);
	why->vm = *vm;
	why->reason = "";
	for (int r = 0; reason && r < UNKNOWN_REASON_COUNT; r++)
		if (strcmp(reason, unknown_reason_name((enum unknown_reason)r)) == 0)
			why->reason = unknown_reason_name((enum unknown_reason)r);
	(void)!json_u64_member(item, "pages", &why->pages);
	(void)!json_u64_member(item, "disputed_pages", &why->frames);
}

enum pw_status unknown_report(struct worker *w, struct trouble *t)
{
	struct agent *a = w->agent;
	json_t *items, *item;
	const char *id;
	int failed = 0;
	enum pw_status st;

	if (a->unknown_told)
		return PW_OK;
	items = json_array();
	json_object_foreach (a->unknown, id, item) {
		if (json_array_size(items) < UNKNOWN_VMS_MAX)
			failed |= json_array_append(items, item);
	}
	if (!items || failed) {
		json_decref(items);
		return pw_fail(&t->err, PW_NO_MEMORY, "no memory for a report of unknown VMs");
	}
	if (json_array_size(items) < json_object_size(a->unknown))
		alog(ALOG_WARNING, "not all unknown VMs are reported", "%d of %zu", UNKNOWN_VMS_MAX,
		     json_object_size(a->unknown));
	st = remote_unknown(w, items, t);
	json_decref(items);
	a->unknown_told = st == PW_OK;
	return st;
}
