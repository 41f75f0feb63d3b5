#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(frames)

enum { REASONS_MAX = 65536 };

/* The reasons: an array, replaced as a whole when it changes, the old one kept until the change is final. */

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

static enum pw_status reasons_replace(struct service *sv, const struct reasons *by)
{
	static const struct undo_ops replaced = { .rollback = put_reasons_back, .commit = forget_reasons };
	struct reasons old = { sv->quarantine, sv->quarantine_count };
	struct undo *u = ledger_undo(sv->ledger);

	if (undo_reserve(u, UNDO_RECORD(sizeof old)) != PW_OK)
		return PW_NO_MEMORY;
	undo_push(u, &replaced, sv, &old, sizeof old);
	sv->quarantine = by->notes;
	sv->quarantine_count = by->count;
	return PW_OK;
}

/* What there is, with room for `more` beside it. */
static bool reasons_copy(const struct service *sv, size_t more, struct reasons *out)
{
	out->notes = malloc((sv->quarantine_count + more + 1) * sizeof *out->notes);
	out->count = sv->quarantine_count;
	if (out->notes && out->count)
		memcpy(out->notes, sv->quarantine, out->count * sizeof *out->notes);
	return out->notes;
}

/* Notes are in order of pool, host and PFN, and never overlap. Is n wholly before frame pfn of that pool? */
static bool is_before(const struct quarantine_note *n, const struct pw_uuid *host, const char *pool, uint64_t pfn)
{
	int order = strcmp(n->pool, pool);

	if (order == 0)
		order = memcmp(n->host.b, host->b, sizeof host->b);
	return order < 0 || (order == 0 && n->pfn + n->count <= pfn);
}

static bool is_of(const struct quarantine_note *n, const struct host *h)
{
	unsigned place;

	return strcmp(n->pool, "local") == 0 ? pw_uuid_equal(&n->host, &h->id) : host_pool(h, n->pool, &place) != NULL;
}

/* The first note that is not before that frame. */
static size_t reasons_place(const struct reasons *r, const struct pw_uuid *host, const char *pool, uint64_t pfn)
{
	size_t lo = 0, hi = r->count;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (is_before(&r->notes[mid], host, pool, pfn))
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

/* Puts n notes in the place of those in [from, to). */
static void reasons_splice(struct reasons *r, size_t from, size_t to, const struct quarantine_note *by, size_t n)
{
	memmove(r->notes + from + n, r->notes + to, (r->count - to) * sizeof *r->notes);
	if (n)
		memcpy(r->notes + from, by, n * sizeof *by);
	r->count = r->count - (to - from) + n;
}

/* Cuts [at->pfn, at->pfn + at->count) out of what there is; with a reason, puts *at there. Needs room for two more. */
static void reasons_set(struct reasons *r, const struct quarantine_note *at)
{
	uint64_t end = at->pfn + at->count;
	size_t from = reasons_place(r, &at->host, at->pool, at->pfn), to = from, n = 0;
	struct quarantine_note by[3];

	while (to < r->count && strcmp(r->notes[to].pool, at->pool) == 0 &&
	       pw_uuid_equal(&r->notes[to].host, &at->host) && r->notes[to].pfn < end)
		to++;
	if (from < to && r->notes[from].pfn < at->pfn) {
		by[n] = r->notes[from];
		by[n++].count = at->pfn - r->notes[from].pfn;
	}
	if (at->time_ms)
		by[n++] = *at;
	if (from < to && r->notes[to - 1].pfn + r->notes[to - 1].count > end) {
		by[n] = r->notes[to - 1];
		by[n].count = by[n].pfn + by[n].count - end;
		by[n++].pfn = end;
	}
	reasons_splice(r, from, to, by, n);
}

enum pw_status reasons_lift(struct service *sv, const struct pw_uuid *host)
{
	struct quarantine_note all = { .host = *host, .pool = "local", .count = TREE_PAGES };
	struct reasons r;

	if (sv->quarantine_count == 0)
		return PW_OK;
	if (!reasons_copy(sv, 2, &r))
		return PW_NO_MEMORY;
	reasons_set(&r, &all);
	if (reasons_replace(sv, &r) == PW_OK)
		return PW_OK;
	free(r.notes);
	return PW_NO_MEMORY;
}

enum pw_status reason_load(struct service *sv, const struct quarantine_note *note)
{
	struct reasons r = { sv->quarantine, sv->quarantine_count };
	struct quarantine_note *notes = realloc(r.notes, (r.count + 3) * sizeof *notes);

	if (!notes)
		return PW_NO_MEMORY;
	r.notes = notes;
	reasons_set(&r, note);
	sv->quarantine = r.notes;
	sv->quarantine_count = r.count;
	return PW_OK;
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

/* The items' reasons, of this time; time_ms 0: there are none any more. */
static enum pw_problem put_reasons(struct service *sv, const struct host *h, const struct frames_body *b,
				   int64_t time_ms, struct refusal *why)
{
	struct reasons r;

	if (!reasons_copy(sv, 2 * b->count, &r))
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while noting the quarantine");
	for (size_t i = 0; i < b->count; i++) {
		struct quarantine_note note = { .pfn = b->items[i].pfn,
						.count = b->items[i].count,
						.time_ms = time_ms };

		if (strcmp(b->items[i].pool, "local") == 0)
			note.host = h->id;
		snprintf(note.pool, sizeof note.pool, "%s", b->items[i].pool);
		snprintf(note.reason, sizeof note.reason, "%s", b->items[i].reason);
		reasons_set(&r, &note);
	}
	if (r.count > REASONS_MAX && r.count > sv->quarantine_count) {
		free(r.notes);
		return refuse(why, PROBLEM_LIMIT, "at most %d ranges of frames can be in quarantine", REASONS_MAX);
	}
	if (reasons_replace(sv, &r) == PW_OK)
		return PROBLEM_NONE;
	free(r.notes);
	return refuse(why, PROBLEM_NO_MEMORY, "out of memory while noting the quarantine");
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
	if (p == PROBLEM_NONE)
		p = put_reasons(sv, h, b, time_ms, why);
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
	if (p == PROBLEM_NONE)
		p = put_reasons(sv, h, b, 0, why);
	if (p != PROBLEM_NONE)
		ledger_rollback(sv->ledger, mark);
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
	struct jsonw w;

	if (!h || !may_act_for(r, &h->id) || !query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit) ||
	    !query_u64(r, "cursor", 0, SIZE_MAX, 0, &at))
		return;
	list_begin(&w);
	for (; at < sv->quarantine_count; at++) {
		const struct quarantine_note *n = &sv->quarantine[at];

		if (!is_of(n, h))
			continue;
		if (!list_goes_on(sv, &w, &limit)) {
			snprintf(next, sizeof next, "%" PRIu64, at);
			break;
		}
		write_note(&w, n);
	}
	list_end(&w, next[0] ? next : NULL, &sv->revision);
	answer_json(r, 200, &w);
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

/* Has the change that was just made, and is not recorded yet, taken frames from a VM? */
static bool took_frames(const struct service *sv)
{
	for (size_t i = 0; i < ledger_vm_count(sv->ledger); i++)
		if (ledger_vm_at(sv->ledger, i)->revision == next_revision(sv))
			return true;
	return false;
}

/* The VMs that have lost frames by the change that is being recorded. */
static void write_owners(struct jsonw *w, const struct service *sv)
{
	jsonw_key(w, "vms");
	jsonw_open(w, '[');
	for (size_t i = 0; i < ledger_vm_count(sv->ledger); i++)
		if (ledger_vm_at(sv->ledger, i)->revision == next_revision(sv))
			jsonw_uuid(w, &ledger_vm_at(sv->ledger, i)->id);
	jsonw_close(w, ']');
}

static void say_frames(struct service *sv, struct request *r, const char *type, const struct host *h,
		       const struct frames_body *b)
{
	struct jsonw w;

	event_begin(&w, type, r);
	jsonw_m_uuid(&w, "host", &h->id);
	write_items(&w, b);
	write_owners(&w, sv);
	answer_items(r, event_end(sv, &w), b);
}

/* An agent must be current; an admin may leave boot_id and epoch out, but not get them wrong. */
static bool frames_hold(struct service *sv, struct request *r)
{
	const struct frames_body *b = &((struct frames_job *)r->job)->b;
	const struct host *h = arg_host(sv, r, 0);

	return h && holder_is_sound(r, h, &(struct holder){ b->boot_id, b->epoch, false });
}

bool frames_prepare(struct service *sv, struct request *r)
{
	r->still_holds = frames_hold;
	return query_known(r, no_query) && prepare_frames(sv, r);
}

void quarantine_act(struct service *sv, struct request *r)
{
	const struct frames_body *b = &((struct frames_job *)r->job)->b;
	undo_mark mark = ledger_mark(sv->ledger);
	struct refusal why;
	struct host *h;

	if (!frames_hold(sv, r))
		return;
	h = arg_host(sv, r, 0);
	if (!if_match(r, h->revision))
		return;
	if (do_quarantine(sv, h, b, sv->group_time_ms, next_revision(sv), &why) != PROBLEM_NONE)
		answer_refusal(r, &why);
	else if (!b->boot_id && took_frames(sv) && !unbinding_allowed(sv, r, h))
		ledger_rollback(sv->ledger, mark);
	else
		say_frames(sv, r, "quarantine.added", h, b);
}

void quarantine_release_act(struct service *sv, struct request *r)
{
	const struct frames_body *b = &((struct frames_job *)r->job)->b;
	struct refusal why;
	struct host *h;

	if (!frames_hold(sv, r))
		return;
	h = arg_host(sv, r, 0);
	if (!if_match(r, h->revision))
		return;
	if (do_unquarantine(sv, h, b, &why) != PROBLEM_NONE)
		answer_refusal(r, &why);
	else
		say_frames(sv, r, "quarantine.released", h, b);
}
