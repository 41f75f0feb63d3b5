/* Notes of quarantine against a model that keeps one number a frame. SEED= repeats a run. */
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/lib/ledger_world.h"

enum { FRAMES = 3000, ROUNDS = 400, MANY = 1 << 16 };

static struct world *world_new(void)
{
	static struct world w;

	w.heap.fail_at = SIZE_MAX;
	world_init(&w);
	return &w;
}

static uint64_t next(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

/* Every frame's note is that of the last range that was put there, and none is kept that no frame has. */
static void reads_as(struct world *w, const struct pool *p, const unsigned *model)
{
	struct frame_view f;
	char reason[16];
	uint64_t at = 0;

	for (; pool_next_quarantined(w->ledger, p, at, TREE_PAGES, &f); at = f.pfn + f.count) {
		for (; at < f.pfn; at++)
			cr_assert_eq(model[at], 0, "frame %" PRIu64, at);
		for (uint64_t i = 0; i < f.count; i++) {
			snprintf(reason, sizeof reason, "%u", model[f.pfn + i]);
			cr_assert_str_eq(f.reason, reason, "frame %" PRIu64, f.pfn + i);
			cr_assert_eq(f.time_ms, model[f.pfn + i]);
		}
	}
	for (; at < FRAMES; at++)
		cr_assert_eq(model[at], 0, "frame %" PRIu64, at);
	world_holds(w);
}

Test(quarantine, notes_follow_their_frames_through_cuts_and_undoing)
{
	static unsigned model[FRAMES], marked[FRAMES];
	const char *given = getenv("SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;
	struct world *w = world_new();
	struct pool *p = world_host(w, 1, "boot", 0, FRAMES)->pools[0];
	undo_mark mark;

	fprintf(stderr, "SEED=%" PRIu64 "\n", seed);
	ledger_commit(w->ledger);
	mark = ledger_mark(w->ledger);
	for (unsigned n = 1; n <= ROUNDS; n++) {
		char reason[16];
		struct frame_range r = { .pool = p, .pfn = next(&seed) % FRAMES, .reason = reason, .time_ms = n };
		bool adds = next(&seed) % 3 > 0;

		snprintf(reason, sizeof reason, "%u", n);
		r.count = 1 + next(&seed) % (next(&seed) % 4 ? 5 : FRAMES);
		r.count = r.count < FRAMES - r.pfn ? r.count : FRAMES - r.pfn;
		cr_assert_eq(adds ? ledger_quarantine(w->ledger, p->host, &r, 1, &w->why)
				  : ledger_unquarantine(w->ledger, &r, 1, &w->why),
			     PROBLEM_NONE);
		for (uint64_t i = 0; i < r.count; i++)
			model[r.pfn + i] = adds ? n : 0;
		if (next(&seed) % 8 == 0) {
			ledger_rollback(w->ledger, mark);
			memcpy(model, marked, sizeof model);
		}
		if (next(&seed) % 4 == 0) {
			ledger_commit(w->ledger);
			mark = ledger_mark(w->ledger);
			memcpy(marked, model, sizeof model);
		}
		if (n % 20 == 0)
			reads_as(w, p, model);
	}
	reads_as(w, p, model);
	world_release(w);
}

/* In descending order: what kept them in an array moved all of it for each. */
Test(quarantine, the_last_note_costs_what_the_first_did)
{
	struct world *w = world_new();
	struct pool *p = world_host(w, 1, "boot", 0, 2 * MANY)->pools[0];
	uint64_t most = 0;
	size_t used;

	ledger_commit(w->ledger);
	used = w->mem.used;
	for (uint64_t i = MANY; i > 0; i--) {
		const struct frame_range r = {
			.pool = p, .pfn = 2 * (i - 1), .count = 1, .reason = "RMP reset failed"
		};
		uint64_t before = ledger_work(w->ledger);

		cr_assert_eq(ledger_quarantine(w->ledger, p->host, &r, 1, &w->why), PROBLEM_NONE);
		ledger_commit(w->ledger);
		most = ledger_work(w->ledger) - before > most ? ledger_work(w->ledger) - before : most;
	}
	cr_assert_leq(most, 1000, "%" PRIu64 " steps for one of them", most);
	cr_assert_eq(p->notes, MANY);
	cr_assert_eq(ledger_unquarantine(w->ledger, &(struct frame_range){ .pool = p, .count = 2 * MANY }, 1, &w->why),
		     PROBLEM_NONE);
	ledger_commit(w->ledger);
	cr_assert_eq(p->notes, 0);
	cr_assert_leq(w->mem.used, used + 4 * MANY * sizeof(uint64_t) + 100000, "notes are given back");
	world_release(w);
}
