/*
 * The count of work: what keeps a command's cost within bounds, and lets others look at the state in the midst of a
 * long one. The tree's searches run in pieces of LEDGER_PAUSE steps: each keeps the sums that it made, so the next one
 * gets further.
 */
#include "engine/ledger_impl.h"

uint64_t ledger_work(const struct ledger *l)
{
	return l->work.walk.steps;
}

void ledger_set_work_limit(struct ledger *l, const char *flag, uint64_t steps)
{
	l->work.flag = flag;
	l->work.limit = steps;
}

void ledger_on_pause(struct ledger *l, void (*pause)(void *ctx), void *ctx)
{
	l->work.pause = pause;
	l->work.pause_ctx = ctx;
	l->work.pause_at = pause ? l->work.walk.steps + LEDGER_PAUSE : UINT64_MAX;
}

void work_begin(struct ledger *l, size_t runs)
{
	l->work.began = l->work.walk.steps;
	l->work.stop = l->work.limit ? l->work.began + l->work.limit + LEDGER_WORK_RUN * runs : UINT64_MAX;
}

void work_end(struct ledger *l)
{
	l->work.stop = UINT64_MAX;
}

void work_pause(struct ledger *l)
{
	l->work.pause(l->work.pause_ctx);
	l->work.pause_at = l->work.walk.steps + LEDGER_PAUSE;
}

enum pw_problem work_check(const struct ledger *l, uint64_t more, struct refusal *why)
{
	uint64_t limit = l->work.stop - l->work.began, asked = l->work.walk.steps - l->work.began + more;

	if (l->work.stop == UINT64_MAX || asked <= limit)
		return PROBLEM_NONE;
	refuse(why, PROBLEM_TOO_MUCH_WORK,
	       "this takes at least %" PRIu64 " steps: the limit is %" PRIu64 " (--%s, and %d for each run)", asked,
	       limit, l->work.flag, LEDGER_WORK_RUN);
	if (why) {
		why->flag = l->work.flag;
		why->limit = limit;
		why->asked = asked;
	}
	return PROBLEM_TOO_MUCH_WORK;
}

/* The next piece of a walk. False: there is none, the last one was not cut short or the command is over its limit. */
static bool next_piece(struct ledger *l)
{
	struct work *w = &l->work;

	if (!walk_is_over(&w->walk) || work_is_over(l))
		return false;
	if (w->walk.steps >= w->pause_at)
		work_pause(l);
	return true;
}

static struct tree_walk *piece(struct ledger *l)
{
	l->work.walk.limit = l->work.walk.steps + LEDGER_PAUSE;
	return &l->work.walk;
}

bool work_find(struct ledger *l, const struct tree *t, uint64_t from, uint64_t end, uint64_t kinds,
	       struct tree_run *out)
{
	bool found;

	do
		found = tree_find_kind(t, from, end, kinds, piece(l), out);
	while (next_piece(l));
	return found && !work_is_over(l);
}

uint64_t work_runs(struct ledger *l, const struct tree *t, uint64_t from, uint64_t end, uint64_t kinds)
{
	uint64_t runs = 0;

	do
		runs += tree_count_runs(t, &from, end, kinds, piece(l));
	while (next_piece(l) && from < end);
	return runs;
}

struct tree_sum work_sum(struct ledger *l, const struct tree *t, uint64_t from, uint64_t end)
{
	struct tree_sum s;

	do
		s = tree_sum(t, from, end, piece(l));
	while (next_piece(l));
	return s;
}
