#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/openapi.h"
#include "server/history_index.h"
#include "server/metrics.h"
#include "server/routes.h"
#include "server/service_impl.h"

static enum handled answer_text(struct request *r, unsigned status, const char *type, const char *text)
{
	char *body = strdup(text);

	if (!body)
		return answer_problem(r, PROBLEM_NO_MEMORY, "out of memory");
	r->response.status = status;
	r->response.body = body;
	r->response.size = strlen(body);
	r->response.content_type = type;
	return DONE;
}

enum handled healthz(struct service *sv, struct request *r)
{
	return answer_text(r, 200, "text/plain; charset=utf-8", "ok\n");
}

enum handled readyz(struct service *sv, struct request *r)
{
	struct service_progress p;
	char why[512];

	if (!sv->ready) {
		service_progress(sv, &p);
		return answer_starting(r, p.step, p.replayed, p.total);
	}
	if (sv->disk_refuses)
		return answer_problem(r, PROBLEM_STORAGE, "the disk refuses changes");
	if (picture_is_stale(sv, why, sizeof why))
		return answer_problem(r, PROBLEM_STORAGE, "%s", why);
	return answer_text(r, 200, "text/plain; charset=utf-8", "ready\n");
}

enum handled openapi_get(struct service *sv, struct request *r)
{
	return answer_text(r, 200, "application/json", openapi_json());
}

/* Counting everything. */

struct totals {
	uint64_t hosts[3]; /* up, unreachable, fenced */
	uint64_t vm_states[VM_STATE_COUNT], vm_arches[ARCH_COUNT];
	uint64_t pages[GFN_STATE_COUNT];
	uint64_t frames, bound, quarantined; /* local pools together */
	uint64_t operations[OPERATION_STATE_COUNT];
};
static const char *const host_states[] = { "up", "unreachable", "fenced" };

static void count_hosts(const struct service *sv, struct totals *t)
{
	int64_t now = clock_monotonic_ms();

	for (size_t i = 0; i < ledger_host_count(sv->ledger); i++) {
		const struct host *h = ledger_host_at(sv->ledger, i);
		const char *state = host_state(sv, h, now);

		for (size_t s = 0; s < PW_ARRAY_LEN(host_states); s++)
			t->hosts[s] += strcmp(state, host_states[s]) == 0;
		if (h->pools[0]) {
			t->frames += h->pools[0]->frames;
			t->bound += h->pools[0]->bound;
			t->quarantined += h->pools[0]->quarantined;
		}
	}
}

static void count_all(const struct service *sv, struct totals *t)
{
	*t = (struct totals){ 0 };
	count_hosts(sv, t);
	for (size_t i = 0; i < ledger_vm_count(sv->ledger); i++) {
		const struct vm *vm = ledger_vm_at(sv->ledger, i);

		t->vm_states[vm->state]++;
		t->vm_arches[vm->arch]++;
		for (int s = 0; s < GFN_STATE_COUNT; s++)
			t->pages[s] += vm->counts.pages[s];
	}
	for (int s = 0; s < OPERATION_STATE_COUNT; s++)
		t->operations[s] = sv->operation_counts[s];
}

static void write_frames(struct jsonw *w, const char *pool, uint64_t total, uint64_t bound, uint64_t quarantined)
{
	jsonw_open(w, '{');
	jsonw_m_str(w, "pool", pool);
	jsonw_m_u64(w, "total", total);
	jsonw_m_u64(w, "bound", bound);
	jsonw_m_u64(w, "quarantined", quarantined);
	jsonw_m_u64(w, "free", total - bound - quarantined);
	jsonw_close(w, '}');
}

static void write_totals(struct jsonw *w, const struct service *sv, const struct totals *t)
{
	static const char *const page_names[] = { [GFN_NORMAL] = "normal",
						  [GFN_SECURE_RESIDENT] = "secure_resident",
						  [GFN_SECURE_OUT] = "secure_out",
						  [GFN_SHARED] = "shared" };

	jsonw_key(w, "hosts");
	jsonw_open(w, '{');
	for (size_t i = 0; i < PW_ARRAY_LEN(host_states); i++)
		jsonw_m_u64(w, host_states[i], t->hosts[i]);
	jsonw_close(w, '}');
	jsonw_key(w, "vms");
	jsonw_open(w, '{');
	jsonw_key(w, "by_state");
	jsonw_open(w, '{');
	for (int s = 0; s < VM_STATE_COUNT; s++)
		jsonw_m_u64(w, vm_state_name((enum vm_state)s), t->vm_states[s]);
	jsonw_close(w, '}');
	jsonw_key(w, "by_arch");
	jsonw_open(w, '{');
	for (int a = 0; a < ARCH_COUNT; a++)
		jsonw_m_u64(w, arch_name((enum arch)a), t->vm_arches[a]);
	jsonw_close(w, '}');
	jsonw_close(w, '}');
	jsonw_key(w, "pages");
	jsonw_open(w, '{');
	for (int s = 0; s < GFN_STATE_COUNT; s++)
		jsonw_m_u64(w, page_names[s], t->pages[s]);
	jsonw_close(w, '}');
	jsonw_key(w, "frames");
	jsonw_open(w, '[');
	write_frames(w, "local", t->frames, t->bound, t->quarantined);
	for (size_t i = 0; i < ledger_pool_count(sv->ledger); i++) {
		const struct pool *p = ledger_pool_at(sv->ledger, i);

		write_frames(w, p->name, p->frames, p->bound, p->quarantined);
	}
	jsonw_close(w, ']');
	jsonw_key(w, "operations");
	jsonw_open(w, '{');
	for (int s = 0; s < OPERATION_STATE_COUNT; s++)
		jsonw_m_u64(w, operation_state_name((enum operation_state)s), t->operations[s]);
	jsonw_close(w, '}');
}

static void write_violations(struct jsonw *w, const struct service *sv)
{
	struct refusal_counts c;

	refusals_last_hour(sv->refusals, clock_utc_ms(), &c);
	jsonw_m_u64(w, "violations_last_hour", c.kept);
	jsonw_m_u64(w, "violation_repeats_last_hour", c.repeats);
	jsonw_m_u64(w, "violations_not_stored_last_hour", c.not_kept);
}

void summary_act(struct service *sv, struct request *r)
{
	struct totals t;
	struct jsonw w;

	count_all(sv, &t);
	jsonw_init(&w);
	jsonw_open(&w, '{');
	write_totals(&w, sv, &t);
	jsonw_m_u64(&w, "unknown_vms", sv->unknown.count);
	write_violations(&w, sv);
	jsonw_m_u64(&w, "revision", sv->revision);
	jsonw_close(&w, '}');
	answer_json(r, 200, &w);
}

enum handled summary_get(struct service *sv, struct request *r)
{
	return query_known(r, no_query) ? handle_read(sv, r) : DONE;
}

static void write_gauges(struct metrics_text *m, struct service *sv, const struct totals *t)
{
	static const char wal_help[] = "Size of a database's WAL file";
	struct wal_sizes wal;
	int64_t saved = atomic_load(&sv->picture_saved_ms);

	for (size_t i = 0; i < PW_ARRAY_LEN(host_states); i++)
		metrics_gauge_labelled(m, "pagewarden_hosts", "Hosts by state", "state", host_states[i],
				       (double)t->hosts[i]);
	for (int s = 0; s < VM_STATE_COUNT; s++)
		metrics_gauge_labelled(m, "pagewarden_vms", "VMs by state", "state", vm_state_name((enum vm_state)s),
				       (double)t->vm_states[s]);
	metrics_gauge_labelled(m, "pagewarden_pages", "Pages of all VMs by state", "state", "normal",
			       (double)t->pages[GFN_NORMAL]);
	metrics_gauge_labelled(m, "pagewarden_pages", "Pages of all VMs by state", "state", "secure_resident",
			       (double)t->pages[GFN_SECURE_RESIDENT]);
	metrics_gauge_labelled(m, "pagewarden_pages", "Pages of all VMs by state", "state", "secure_out",
			       (double)t->pages[GFN_SECURE_OUT]);
	metrics_gauge_labelled(m, "pagewarden_pages", "Pages of all VMs by state", "state", "shared",
			       (double)t->pages[GFN_SHARED]);
	for (int s = 0; s < OPERATION_STATE_COUNT; s++)
		metrics_gauge_labelled(m, "pagewarden_operations", "Operations by state", "state",
				       operation_state_name((enum operation_state)s), (double)t->operations[s]);
	metrics_gauge(m, "pagewarden_frames", "Frames of all local pools", (double)t->frames);
	metrics_gauge(m, "pagewarden_frames_bound", "Bound frames of all local pools", (double)t->bound);
	metrics_gauge(m, "pagewarden_frames_quarantined", "Quarantined frames of all local pools",
		      (double)t->quarantined);
	metrics_gauge(m, "pagewarden_unknown_vms", "VMs that hosts have and the ledger does not own",
		      (double)sv->unknown.count);
	metrics_gauge(m, "pagewarden_revision", "Last durable revision", (double)sv->durable);
	metrics_gauge(m, "pagewarden_picture_revision", "Revision of the last saved picture", (double)sv->pictured);
	metrics_gauge(m, "pagewarden_picture_age_seconds", "Time since a picture was saved, or since the start",
		      (double)(clock_utc_ms() - (saved ? saved : sv->started_ms)) / 1000);
	metrics_gauge(m, "pagewarden_picture_seconds", "How long the last saved picture took",
		      (double)atomic_load(&sv->picture_took_ms) / 1000);
	metrics_gauge(m, "pagewarden_engine_bytes", "Memory of the engine", (double)sv->mem.used);
	metrics_gauge(m, "pagewarden_long_polls", "Long polls that wait", (double)service_waiting(sv));
	if (sv->history)
		metrics_gauge(m, "pagewarden_history_lag_revisions",
			      "Revisions of the journal that the index of history has not reached yet",
			      (double)(sv->durable - history_index_reached(sv->history, 0, 0)));
	store_wal_sizes(sv->store, &wal);
	metrics_gauge_labelled(m, "pagewarden_wal_bytes", wal_help, "file", "journal.db", (double)wal.journal);
	metrics_gauge_labelled(m, "pagewarden_wal_bytes", wal_help, "file", "ledger.db", (double)wal.ledger);
	metrics_gauge(m, "pagewarden_disk_refuses", "1 while the disk refuses changes", sv->disk_refuses ? 1 : 0);
}

void metrics_act(struct service *sv, struct request *r)
{
	struct metrics_text m = { 0 };
	struct totals t;

	count_all(sv, &t);
	write_gauges(&m, sv, &t);
	metrics_write(&m);
	if (m.failed || !m.data) {
		free(m.data);
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory");
		return;
	}
	r->response.status = 200;
	r->response.body = m.data;
	r->response.size = m.used;
	r->response.content_type = "text/plain; version=0.0.4; charset=utf-8";
}
