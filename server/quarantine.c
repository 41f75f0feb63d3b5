#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(frames)

/* The reasons: a small array, replaced as a whole when it changes, the old one kept until the change is final. */

struct reasons {
	struct quarantine_note *notes;
	size_t count;
};

static void put_reasons_back(void *ctx, const void *args)
{
	const struct reasons *old = args;
	struct service *sv = ctx;

	free(sv->quarantine);
	sv->quarantine = old->notes;
	sv->quarantine_count = old->count;
}

static void forget_reasons(void *ctx, const void *args)
{
	free(((const struct reasons *)args)->notes);
}

static enum pw_status reasons_replace(struct service *sv, struct quarantine_note *notes, size_t count)
{
	static const struct undo_ops replaced = { .rollback = put_reasons_back, .commit = forget_reasons };
	struct reasons old = { sv->quarantine, sv->quarantine_count };
	struct undo *u = ledger_undo(sv->ledger);

	if (undo_reserve(u, UNDO_RECORD(sizeof old)) != PW_OK) {
		free(notes);
		return PW_NO_MEMORY;
	}
	undo_push(u, &replaced, sv, &old, sizeof old);
	sv->quarantine = notes;
	sv->quarantine_count = count;
	return PW_OK;
}

static bool is_of(const struct quarantine_note *n, const struct pw_uuid *host, const char *pool)
{
	static const struct pw_uuid nil;

	return strcmp(n->pool, pool) == 0 && pw_uuid_equal(&n->host, strcmp(pool, "local") == 0 ? host : &nil);
}

enum pw_status reasons_forget(struct service *sv, const struct pw_uuid *host, const char *pool, uint64_t pfn,
			      uint64_t count)
{
	uint64_t end = count ? pfn + count : UINT64_MAX;
	struct quarantine_note *notes;
	size_t n = 0;

	if (sv->quarantine_count == 0)
		return PW_OK;
	notes = malloc((2 * sv->quarantine_count) * sizeof *notes);
	if (!notes)
		return PW_NO_MEMORY;
	for (size_t i = 0; i < sv->quarantine_count; i++) {
		const struct quarantine_note *old = &sv->quarantine[i];
		uint64_t old_end = old->pfn + old->count;

		if (!is_of(old, host, pool) || old_end <= pfn || old->pfn >= end) {
			notes[n++] = *old;
			continue;
		}
		if (old->pfn < pfn) {
			notes[n] = *old;
			notes[n++].count = pfn - old->pfn;
		}
		if (old_end > end) {
			notes[n] = *old;
			notes[n].pfn = end;
			notes[n++].count = old_end - end;
		}
	}
	return reasons_replace(sv, notes, n);
}

enum pw_status reason_add(struct service *sv, const struct quarantine_note *note)
{
	struct quarantine_note *notes = malloc((sv->quarantine_count + 1) * sizeof *notes);
	size_t at = sv->quarantine_count;

	if (!notes)
		return PW_NO_MEMORY;
	if (at)
		memcpy(notes, sv->quarantine, at * sizeof *notes);
	notes[at] = *note;
	return reasons_replace(sv, notes, at + 1);
}

/* The ledger's ranges of a body's items; false: *why says which pool is not attached. */
static bool ranges_of(const struct host *h, const struct frames_body *b, struct frame_range *ranges,
		      struct refusal *why)
{
	unsigned place;

	for (size_t i = 0; i < b->count; i++) {
		ranges[i] = (struct frame_range){ host_pool(h, b->items[i].pool, &place), b->items[i].pfn,
						  b->items[i].count };
		if (!ranges[i].pool) {
			refuse(why, PROBLEM_FRAME_OUT_OF_POOL, "items/%zu: pool %s is not attached to the host", i,
			       b->items[i].pool);
			snprintf(why->pool, sizeof why->pool, "%s", b->items[i].pool);
			return false;
		}
	}
	return true;
}

static enum pw_status keep_reasons(struct service *sv, const struct host *h, const struct frames_body *b,
				   int64_t time_ms)
{
	for (size_t i = 0; i < b->count; i++) {
		struct quarantine_note note = { .pfn = b->items[i].pfn,
						.count = b->items[i].count,
						.time_ms = time_ms };

		if (strcmp(b->items[i].pool, "local") == 0)
			note.host = h->id;
		snprintf(note.pool, sizeof note.pool, "%s", b->items[i].pool);
		snprintf(note.reason, sizeof note.reason, "%s", b->items[i].reason);
		if (reasons_forget(sv, &h->id, note.pool, note.pfn, note.count) != PW_OK ||
		    reason_add(sv, &note) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

static enum pw_status drop_reasons(struct service *sv, const struct host *h, const struct frames_body *b)
{
	for (size_t i = 0; i < b->count; i++)
		if (reasons_forget(sv, &h->id, b->items[i].pool, b->items[i].pfn, b->items[i].count) != PW_OK)
			return PW_NO_MEMORY;
	return PW_OK;
}

/* The VMs that lose frames change with them: their revision says so, to clients and to the picture. */
static bool touch_owners(struct service *sv, const struct frame_range *r, uint64_t revision)
{
	uint64_t end = r->pfn < TREE_PAGES && r->count <= TREE_PAGES - r->pfn ? r->pfn + r->count : r->pfn;
	struct frame_view f;

	for (uint64_t at = r->pfn; pool_next_bound(sv->ledger, r->pool, at, end, &f); at = f.pfn + f.count)
		if (f.vm->revision != revision && !touch(sv, &ledger_vm(sv->ledger, &f.vm->id)->revision, revision))
			return false;
	return true;
}

enum pw_problem do_quarantine(struct service *sv, struct host *h, const struct frames_body *b, int64_t time_ms,
			      uint64_t revision, struct refusal *why)
{
	struct frame_range *ranges = malloc((b->count + 1) * sizeof *ranges);
	undo_mark mark = ledger_mark(sv->ledger);
	enum pw_problem p;

	if (!ranges)
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while putting frames into quarantine");
	p = ranges_of(h, b, ranges, why) ? PROBLEM_NONE : why->problem;
	for (size_t i = 0; p == PROBLEM_NONE && i < b->count; i++)
		if (!touch_owners(sv, &ranges[i], revision))
			p = refuse(why, PROBLEM_NO_MEMORY, "out of memory while putting frames into quarantine");
	if (p == PROBLEM_NONE)
		p = ledger_quarantine(sv->ledger, h, ranges, b->count, why);
	if (p == PROBLEM_NONE && keep_reasons(sv, h, b, time_ms) != PW_OK)
		p = refuse(why, PROBLEM_NO_MEMORY, "out of memory while putting frames into quarantine");
	if (p != PROBLEM_NONE)
		ledger_rollback(sv->ledger, mark);
	free(ranges);
	return p;
}

enum pw_problem do_unquarantine(struct service *sv, struct host *h, const struct frames_body *b, struct refusal *why)
{
	struct frame_range *ranges = malloc((b->count + 1) * sizeof *ranges);
	undo_mark mark = ledger_mark(sv->ledger);
	enum pw_problem p;

	if (!ranges)
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while taking frames out of quarantine");
	p = ranges_of(h, b, ranges, why) ? ledger_unquarantine(sv->ledger, ranges, b->count, why) : why->problem;
	if (p == PROBLEM_NONE && drop_reasons(sv, h, b) != PW_OK) {
		ledger_rollback(sv->ledger, mark);
		p = refuse(why, PROBLEM_NO_MEMORY, "out of memory while taking frames out of quarantine");
	}
	free(ranges);
	return p;
}

static void write_note(struct jsonw *w, const struct quarantine_note *n)
{
	jsonw_open(w, '{');
	jsonw_m_str(w, "pool", n->pool);
	jsonw_m_u64(w, "pfn", n->pfn);
	jsonw_m_u64(w, "count", n->count);
	jsonw_m_str(w, "reason", n->reason);
	jsonw_m_time(w, "time", n->time_ms);
	jsonw_close(w, '}');
}

void quarantine_list(struct service *sv, struct request *r)
{
	static const char *const known[] = { "limit", "cursor", NULL };
	const struct host *h = arg_host(sv, r, 0);
	uint64_t limit, at;
	char next[24] = "";
	unsigned place;
	struct jsonw w;

	if (!h || !may_act_for(r, &h->id) || !query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit) ||
	    !query_u64(r, "cursor", 0, SIZE_MAX, 0, &at))
		return;
	list_begin(&w);
	for (; at < sv->quarantine_count; at++) {
		const struct quarantine_note *n = &sv->quarantine[at];

		if (!is_of(n, &h->id, n->pool) || !host_pool(h, n->pool, &place))
			continue;
		if (limit-- == 0) {
			snprintf(next, sizeof next, "%" PRIu64, at);
			break;
		}
		write_note(&w, n);
	}
	list_end(&w, next[0] ? next : NULL, &sv->revision);
	answer_json(r, 200, &w);
}

bool frames_prepare(struct service *sv, struct request *r)
{
	return query_known(r, no_query) && prepare_frames(sv, r);
}

static void write_items(struct jsonw *w, const struct frames_body *b)
{
	jsonw_key(w, "items");
	jsonw_open(w, '[');
	for (size_t i = 0; i < b->count; i++) {
		jsonw_open(w, '{');
		jsonw_m_str(w, "pool", b->items[i].pool);
		jsonw_m_u64(w, "pfn", b->items[i].pfn);
		jsonw_m_u64(w, "count", b->items[i].count);
		if (b->items[i].reason[0])
			jsonw_m_str(w, "reason", b->items[i].reason);
		jsonw_close(w, '}');
	}
	jsonw_close(w, ']');
}

static void answer_items(struct request *r, uint64_t revision, const struct frames_body *b)
{
	struct jsonw w;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_u64(&w, "revision", revision);
	write_items(&w, b);
	jsonw_close(&w, '}');
	answer_json(r, 200, &w);
}

static void say_frames(struct service *sv, struct request *r, const char *type, const struct host *h,
		       const struct frames_body *b)
{
	struct jsonw w;

	event_begin(&w, type, r);
	jsonw_m_uuid(&w, "host", &h->id);
	write_items(&w, b);
	answer_items(r, event_end(sv, &w), b);
}

/* An agent must be current; an admin may leave boot_id and epoch out, but not get them wrong. */
static bool is_current(struct request *r, const struct host *h, const struct frames_body *b)
{
	struct refusal why;

	if (!b->boot_id && r->who.role == ROLE_AGENT) {
		answer_problem(r, PROBLEM_INVALID_REQUEST, "an agent gives boot_id and epoch");
		return false;
	}
	if (b->boot_id && ledger_host_current(h, b->boot_id, b->epoch, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		return false;
	}
	return true;
}

void quarantine_act(struct service *sv, struct request *r)
{
	const struct frames_body *b = &((struct frames_job *)r->job)->b;
	struct host *h = arg_host(sv, r, 0);
	struct refusal why;

	if (!h || !may_act_for(r, &h->id) || !is_current(r, h, b))
		return;
	if (do_quarantine(sv, h, b, sv->group_time_ms, next_revision(sv), &why) != PROBLEM_NONE)
		answer_refusal(r, &why);
	else
		say_frames(sv, r, "quarantine.added", h, b);
}

void quarantine_release_act(struct service *sv, struct request *r)
{
	const struct frames_body *b = &((struct frames_job *)r->job)->b;
	struct host *h = arg_host(sv, r, 0);
	struct refusal why;

	if (!h || !is_current(r, h, b))
		return;
	if (do_unquarantine(sv, h, b, &why) != PROBLEM_NONE)
		answer_refusal(r, &why);
	else
		say_frames(sv, r, "quarantine.released", h, b);
}
