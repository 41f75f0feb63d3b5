#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(frames)

/* The ledger's ranges of a body's items; false: *why says which pool is not attached. */
static bool ranges_of(const struct host *h, const struct frames_body *b, int64_t time_ms, struct frame_range *ranges,
		      struct refusal *why)
{
	unsigned place;

	for (size_t i = 0; i < b->count; i++) {
		ranges[i] = (struct frame_range){ .pool = host_pool(h, b->items[i].pool, &place),
						  .pfn = b->items[i].pfn,
						  .count = b->items[i].count,
						  .reason = b->items[i].reason,
						  .time_ms = time_ms };
		if (!ranges[i].pool) {
			refuse(why, PROBLEM_FRAME_OUT_OF_POOL, "items/%zu: pool %s is not attached to the host", i,
			       b->items[i].pool);
			snprintf(why->pool, sizeof why->pool, "%s", b->items[i].pool);
			return false;
		}
	}
	return true;
}

static bool note_lost(struct service *sv, const struct pw_uuid *vm)
{
	size_t room = sv->lost_room ? 2 * sv->lost_room : 16;
	struct pw_uuid *grown;

	if (sv->lost_count == sv->lost_room) {
		grown = realloc(sv->lost, room * sizeof *grown);
		if (!grown)
			return false;
		sv->lost = grown;
		sv->lost_room = room;
	}
	sv->lost[sv->lost_count++] = *vm;
	return true;
}

/* The VMs that lose frames change with them: their revision says so, to clients and to the picture. */
static bool touch_owners(struct service *sv, const struct frame_range *r, uint64_t revision)
{
	struct frame_view f;

	for (uint64_t at = r->pfn; pool_next_bound(sv->ledger, r->pool, at, r->pfn + r->count, &f);
	     at = f.pfn + f.count)
		if (f.vm->revision != revision &&
		    (!note_lost(sv, &f.vm->id) || !touch(sv, &ledger_vm(sv->ledger, &f.vm->id)->revision, revision)))
			return false;
	return true;
}

enum pw_problem do_quarantine(struct service *sv, struct host *h, const struct frames_body *b, int64_t time_ms,
			      uint64_t revision, struct refusal *why)
{
	struct frame_range *ranges = malloc((b->count + 1) * sizeof *ranges);
	undo_mark mark = ledger_mark(sv->ledger);
	enum pw_problem p;

	sv->lost_count = 0;
	if (!ranges)
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while putting frames into quarantine");
	p = ranges_of(h, b, time_ms, ranges, why) ? ledger_quarantine_check(sv->ledger, h, ranges, b->count, why)
						  : why->problem;
	for (size_t i = 0; p == PROBLEM_NONE && i < b->count; i++)
		if (!touch_owners(sv, &ranges[i], revision))
			p = refuse(why, PROBLEM_NO_MEMORY, "out of memory while putting frames into quarantine");
	if (p == PROBLEM_NONE)
		p = ledger_quarantine(sv->ledger, h, ranges, b->count, why);
	if (p != PROBLEM_NONE)
		ledger_rollback(sv->ledger, mark);
	free(ranges);
	return p;
}

enum pw_problem do_unquarantine(struct service *sv, struct host *h, const struct frames_body *b, struct refusal *why)
{
	struct frame_range *ranges = malloc((b->count + 1) * sizeof *ranges);
	enum pw_problem p;

	if (!ranges)
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while taking frames out of quarantine");
	p = ranges_of(h, b, 0, ranges, why) ? ledger_unquarantine(sv->ledger, ranges, b->count, why) : why->problem;
	free(ranges);
	return p;
}

static void write_note(struct jsonw *w, const struct pool *p, const struct frame_view *f)
{
	jsonw_open(w, '{');
	jsonw_m_str(w, "pool", p->name);
	jsonw_m_u64(w, "pfn", f->pfn);
	jsonw_m_u64(w, "count", f->count);
	jsonw_m_str(w, "reason", f->reason);
	jsonw_m_time(w, "time", f->time_ms);
	jsonw_close(w, '}');
}

/* The next frames of the host's pools at or after a place: the pool's in the host's list, and the PFN. */
#define PLACE(pool, pfn) ((uint64_t)(pool) << 40 | (pfn))
static bool next_note(const struct service *sv, const struct host *h, uint64_t at, const struct pool **p,
		      struct frame_view *f, uint64_t *here)
{
	for (uint64_t place = at >> 40, pfn = at & TREE_NUMBER; place < HOST_POOLS_MAX; place++, pfn = 0) {
		*p = h->pools[place];
		if (!*p || !(*p)->quarantined || !pool_next_quarantined(sv->ledger, *p, pfn, TREE_PAGES, f))
			continue;
		*here = PLACE(place, f->pfn);
		return true;
	}
	return false;
}

void quarantine_list(struct service *sv, struct request *r)
{
	static const char *const known[] = { "limit", "cursor", NULL };
	const struct host *h = arg_host(sv, r, 0);
	uint64_t limit, at;
	char next[24] = "";
	const struct pool *p;
	struct frame_view f;
	struct jsonw w;

	if (!h || !may_act_for(r, &h->id) || !query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit) ||
	    !query_u64(r, "cursor", 0, PLACE(HOST_POOLS_MAX, 0), 0, &at))
		return;
	list_begin(&w);
	for (; next_note(sv, h, at, &p, &f, &at); at += f.count) {
		if (!list_goes_on(sv, &w, &limit)) {
			snprintf(next, sizeof next, "%" PRIu64, at);
			break;
		}
		write_note(&w, p, &f);
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

/* The VMs that have lost frames by the change that is being recorded. */
static void write_owners(struct jsonw *w, const struct service *sv)
{
	jsonw_key(w, "vms");
	jsonw_open(w, '[');
	for (size_t i = 0; i < sv->lost_count; i++)
		jsonw_uuid(w, &sv->lost[i]);
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

/* How many ranges the fullest of the pools has in quarantine, of those that the request names. */
static uint64_t most_ranges(const struct host *h, const struct frames_body *b)
{
	uint64_t most = 0;
	unsigned place;

	for (size_t i = 0; i < b->count; i++) {
		const struct pool *p = host_pool(h, b->items[i].pool, &place);

		if (p && p->notes > most)
			most = p->notes;
	}
	return most;
}

void quarantine_act(struct service *sv, struct request *r)
{
	const struct frames_body *b = &((struct frames_job *)r->job)->b;
	undo_mark mark = ledger_mark(sv->ledger);
	uint64_t before, after;
	struct refusal why;
	struct host *h;

	if (!frames_hold(sv, r))
		return;
	h = arg_host(sv, r, 0);
	if (!if_match(r, h->revision))
		return;
	before = most_ranges(h, b);
	if (do_quarantine(sv, h, b, sv->group_time_ms, next_revision(sv), &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		return;
	}
	after = most_ranges(h, b);
	if (after > before && after > sv->config->quarantine_ranges) {
		answer_limit(r, PROBLEM_LIMIT, sv->config, "quarantine-ranges", after);
		ledger_rollback(sv->ledger, mark);
	} else if (!b->boot_id && sv->lost_count && !unbinding_allowed(sv, r, h)) {
		ledger_rollback(sv->ledger, mark);
	} else {
		say_frames(sv, r, "quarantine.added", h, b);
	}
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
	sv->lost_count = 0;
	if (do_unquarantine(sv, h, b, &why) != PROBLEM_NONE)
		answer_refusal(r, &why);
	else
		say_frames(sv, r, "quarantine.released", h, b);
}
