/*
 * Violations: refusals that are recorded, in the feed and in the list of violations. On the writer thread, inside a
 * group, which takes a violation back as it takes back changes.
 */
#include <stdlib.h>

#include "server/metrics.h"
#include "server/service_impl.h"

static void violation_members(struct jsonw *w, const struct request *r, const struct host *h, const struct pw_uuid *vm,
			      const struct refusal *why)
{
	jsonw_m_str(w, "actor", actor_of(r));
	if (h)
		jsonw_m_uuid(w, "host", &h->id);
	if (vm)
		jsonw_m_uuid(w, "vm", vm);
	if (why->op)
		jsonw_m_str(w, "op", why->op);
	jsonw_key(w, "problem");
	problem_write(w, why, r ? r->id : NULL, PROBLEM_CLOSED);
}

void note_violation(struct service *sv, const struct request *r, const struct host *h, const struct pw_uuid *vm,
		    const struct refusal *why)
{
	struct violation v = { .time_ms = sv->group_time_ms, .actor = actor_of(r) };
	struct jsonw w, list;
	struct pw_err err;
	size_t len;
	char *text;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_str(&w, "type", "violation");
	violation_members(&w, r, h, vm, why);
	v.revision = event_end(sv, &w);
	if (sv->records.failed)
		return;
	jsonw_init(&list);
	jsonw_open(&list, '{');
	jsonw_m_u64(&list, "revision", v.revision);
	jsonw_m_time(&list, "time", v.time_ms);
	violation_members(&list, r, h, vm, why);
	jsonw_close(&list, '}');
	text = jsonw_finish(&list, &len);
	if (!text) {
		sv->records.failed = true;
		return;
	}
	v.json = text;
	if (h)
		v.host = h->id;
	if (vm)
		v.vm = *vm;
	sv->stored = true;
	if (group_store(sv) && store_violation_add(sv->store, &v, &err) != PW_OK)
		group_break(sv, &err);
	free(text);
	metrics_count(COUNT_VIOLATIONS, 1);
}
