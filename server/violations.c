/*
 * Violations: refusals that are recorded, in the feed and in the list of violations. The same one again within a minute
 * is counted with the first, which is put down about once a second: what a crash takes back is at most the last second
 * of counting. Past an owner's budget a refusal is counted only. On the writer thread, inside a group, which takes back
 * all of this as it takes back changes.
 */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "server/metrics.h"
#include "server/service_impl.h"

enum { HOUR_MS = 3600 * 1000, MINUTE_MS = 60000, SAVED_AT_ONCE = 128 };

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

/* Whose budget it is: the host's whose agent it was, else the token's. */
static const struct pw_uuid *refused_one(const struct request *r)
{
	static const struct pw_uuid server;

	if (!r)
		return &server;
	return r->who.role == ROLE_AGENT ? &r->who.host : &r->who.token;
}

static void digest_text(crypto_generichash_state *st, const char *s)
{
	crypto_generichash_update(st, (const unsigned char *)s, strlen(s) + 1);
}

/* Items that begin with so many equal runs are the same. */
static void digest_runs(crypto_generichash_state *st, const struct item *it)
{
	crypto_generichash_update(st, (const unsigned char *)&it->run_count, sizeof it->run_count);
	for (size_t i = 0; i < it->run_count && i < REFUSAL_RUNS_MAX; i++) {
		const struct gfn_run *run = &it->runs[i];
		uint64_t numbers[] = { run->gfn, run->count, it->framed ? run->pfn : 0 };

		crypto_generichash_update(st, (const unsigned char *)numbers, sizeof numbers);
	}
}

/* Of who was refused what, and why: the detail names the offending value. */
static void key_of(const struct request *r, const struct host *h, const struct pw_uuid *vm, const struct item *it,
		   const struct refusal *why, uint8_t key[REFUSAL_KEY])
{
	crypto_generichash_state st;

	crypto_generichash_init(&st, NULL, 0, REFUSAL_KEY);
	digest_text(&st, actor_of(r));
	digest_text(&st, why->op ? why->op : "");
	digest_text(&st, problem_slug(why->problem));
	digest_text(&st, why->detail);
	digest_text(&st, why->pool);
	crypto_generichash_update(&st, (const unsigned char *)&why->gfn, sizeof why->gfn);
	crypto_generichash_update(&st, (const unsigned char *)&why->frames, sizeof why->frames);
	if (h)
		crypto_generichash_update(&st, h->id.b, sizeof h->id.b);
	if (vm)
		crypto_generichash_update(&st, vm->b, sizeof vm->b);
	for (unsigned i = 0; i < why->run_count; i++) {
		digest_text(&st, why->runs[i].pool);
		crypto_generichash_update(&st, (const unsigned char *)&why->runs[i].pfn, sizeof why->runs[i].pfn);
		crypto_generichash_update(&st, (const unsigned char *)&why->runs[i].count, sizeof why->runs[i].count);
	}
	if (it)
		digest_runs(&st, it);
	crypto_generichash_final(&st, key, REFUSAL_KEY);
}

/* The list's row: the event's members, with revision and time. NULL: out of memory. */
static char *row_text(const struct violation *v, const struct request *r, const struct host *h,
		      const struct pw_uuid *vm, const struct refusal *why)
{
	struct jsonw w;
	size_t len;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_u64(&w, "revision", v->revision);
	jsonw_m_time(&w, "time", v->time_ms);
	violation_members(&w, r, h, vm, why);
	jsonw_close(&w, '}');
	return jsonw_finish(&w, &len);
}

static void record_violation(struct service *sv, const struct request *r, const struct host *h,
			     const struct pw_uuid *vm, const struct refusal *why)
{
	struct violation v = { .time_ms = sv->group_time_ms, .actor = actor_of(r) };
	struct jsonw w;
	struct pw_err err;
	char *text;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_str(&w, "type", "violation");
	violation_members(&w, r, h, vm, why);
	v.revision = event_end(sv, &w);
	if (sv->records.failed)
		return;
	text = row_text(&v, r, h, vm, why);
	if (!text) {
		sv->records.failed = true;
		return;
	}
	v.json = text;
	if (h)
		v.host = h->id;
	if (vm)
		v.vm = *vm;
	if (group_store(sv) && store_violation_add(sv->store, &v, &err) != PW_OK)
		group_break(sv, &err);
	free(text);
}

static void save_repeats(struct service *sv, const struct repeats *p)
{
	struct pw_err err;
	enum pw_status st;

	if (!group_store(sv))
		return;
	st = store_violation_repeats(sv->store, p->revision, p->count, p->last_ms, &err);
	if (st != PW_OK)
		group_break(sv, &err);
}

static void note(struct service *sv, const struct request *r, const struct host *h, const struct pw_uuid *vm,
		 const struct item *it, const struct refusal *why)
{
	uint8_t key[REFUSAL_KEY];
	struct repeats lost;
	enum noted noted;

	key_of(r, h, vm, it, why, key);
	noted = refusals_note(sv->refusals, refused_one(r), key, sv->group_time_ms, next_revision(sv), &lost);
	sv->stored = true; /* it is taken back with the group alone */
	if (lost.revision)
		save_repeats(sv, &lost);
	switch (noted) {
	case NOTED_NEW:
		record_violation(sv, r, h, vm, why);
		metrics_count(COUNT_VIOLATIONS, 1);
		break;
	case NOTED_REPEAT: metrics_count(COUNT_REPEATS, 1); break;
	case NOTED_TOO_MANY: metrics_count(COUNT_NOT_KEPT, 1); break;
	case NOTED_NO_MEMORY: sv->records.failed = true; break;
	}
}

void note_violation(struct service *sv, const struct request *r, const struct host *h, const struct pw_uuid *vm,
		    const struct refusal *why)
{
	note(sv, r, h, vm, NULL, why);
}

void note_refused_item(struct service *sv, const struct request *r, const struct host *h, const struct item *it,
		       const struct refusal *why)
{
	note(sv, r, h, &it->vm, it, why);
}

bool violations_save_some(struct service *sv)
{
	struct repeats some[SAVED_AT_ONCE];
	size_t n = refusals_unsaved(sv->refusals, some, SAVED_AT_ONCE);
	enum pw_status st = PW_OK;
	struct pw_err err;

	if (!n || store_in_doubt(sv->store) || store_begin(sv->store, &err) != PW_OK)
		return false;
	for (size_t i = 0; st == PW_OK && i < n; i++)
		st = store_violation_repeats(sv->store, some[i].revision, some[i].count, some[i].last_ms, &err);
	if (st == PW_OK)
		st = store_commit(sv->store, &err);
	else
		store_rollback(sv->store);
	if (st == PW_OK)
		refusals_saved(sv->refusals, some, n);
	return st == PW_OK && n == SAVED_AT_ONCE;
}

static void load_minute(void *ctx, int64_t time_ms, uint64_t violations, uint64_t refusals)
{
	struct refusal_counts c = { .kept = violations, .repeats = refusals - violations };

	refusals_load(ctx, time_ms / MINUTE_MS, &c);
}

enum pw_status violations_load(struct service *sv, struct pw_err *err)
{
	return store_violation_count(sv->store, clock_utc_ms() - HOUR_MS, load_minute, sv->refusals, err);
}

void violation_write(struct service *sv, struct jsonw *w, const struct violation *v)
{
	struct repeats known = { .count = v->count, .last_ms = v->last_ms };
	size_t len = strlen(v->json);

	(void)!refusals_find(sv->refusals, v->revision, &known);
	jsonw_raw(w, v->json, len - 1); /* left open for more members */
	jsonw_m_u64(w, "count", known.count);
	jsonw_m_time(w, "first", v->time_ms);
	jsonw_m_time(w, "last", known.last_ms);
	jsonw_close(w, '}');
}
