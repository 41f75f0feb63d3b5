/* What commands cost, counted in the ledger's own steps: it follows the size of what is asked, whatever lies there. */
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/ledger_world.h"

enum {
	EXTENTS = 1 << 17,
	FRAMES = 2 * EXTENTS,
	QUIET = 6000,  /* steps of a look at tables: far fewer than there are extents */
	LIMIT = 100000 /* steps */
};

/* A host with a VM, all of whose pages are resident, each a run of its own; and one that has nothing. */
struct scene {
	struct world w;
	struct host *host;
	struct vm *vm, *thief;
};

static struct scene *scene_new(void)
{
	static struct scene s;
	const struct slot slot = { 0, 0, FRAMES };

	s.w.heap.fail_at = SIZE_MAX;
	world_init(&s.w);
	s.host = world_host(&s.w, 1, "boot", 0, FRAMES);
	s.vm = world_vm(&s.w, 1, s.host, &slot, 1);
	s.thief = world_vm(&s.w, 2, s.host, &slot, 1);
	world_vm_to(&s.w, s.vm, VM_SECURE);
	world_vm_to(&s.w, s.thief, VM_SECURE);
	for (uint64_t p = 0; p < EXTENTS; p++)
		cr_assert_eq(world_apply(&s.w, s.host, s.vm, GFN_PAGE_IN, p, 1, "local", p ^ 1), PROBLEM_NONE);
	ledger_commit(s.w.ledger);
	return &s;
}

static void scene_free(struct scene *s)
{
	world_holds(&s->w);
	world_release(&s->w);
}

/* One item of one run; its steps. */
static uint64_t cost(struct scene *s, const struct vm *vm, enum gfn_op op, uint64_t count, const char *pool,
		     enum pw_problem want)
{
	uint64_t before = ledger_work(s->w.ledger);

	cr_assert_eq(world_apply(&s->w, s->host, vm, op, 0, count, pool, 0), want, "%s", s->w.why.detail);
	return ledger_work(s->w.ledger) - before;
}

static const struct quiet {
	const char *name;
	bool thief;
	enum gfn_op op;
	uint64_t count;
	const char *pool;
	enum pw_problem problem;
} quiets[] = {
	{ "what changes nothing", false, GFN_UNSHARE, EXTENTS, NULL, PROBLEM_NONE },
	{ "what the last page refuses", false, GFN_PAGE_OUT, EXTENTS + 1, NULL, PROBLEM_GFN_TRANSITION },
	{ "what the first page refuses", false, GFN_PAGE_IN, EXTENTS, "local", PROBLEM_GFN_TRANSITION },
	{ "what others have", true, GFN_PAGE_IN, EXTENTS, "local", PROBLEM_FRAME_CONFLICT },
	{ "what others have some of", true, GFN_PAGE_IN, FRAMES, "local", PROBLEM_FRAME_CONFLICT },
};

Test(work, what_changes_nothing_or_is_refused_costs_tables_and_not_extents)
{
	struct scene *s = scene_new();

	for (size_t i = 0; i < PW_ARRAY_LEN(quiets); i++) {
		const struct quiet *q = &quiets[i];
		const struct vm *vm = q->thief ? s->thief : s->vm;
		uint64_t first = cost(s, vm, q->op, q->count, q->pool, q->problem), again;

		again = cost(s, vm, q->op, q->count, q->pool, q->problem);
		cr_assert_leq(again, QUIET, "%s: %" PRIu64 " steps, then %" PRIu64, q->name, first, again);
		cr_assert(q->problem != PROBLEM_FRAME_CONFLICT ||
			  (s->w.why.frames == EXTENTS && s->w.why.run_count == REFUSAL_RUNS_MAX));
	}
	scene_free(s);
}

Test(work, an_item_past_its_limit_is_refused_before_it_changes_anything)
{
	struct scene *s = scene_new();
	char *before;
	uint64_t steps;

	ledger_set_work_limit(s->w.ledger, "item-work", LIMIT);
	before = ledger_dump(s->w.ledger);
	steps = cost(s, s->vm, GFN_SHARE, EXTENTS, NULL, PROBLEM_TOO_MUCH_WORK);
	cr_assert_leq(steps, LIMIT + LEDGER_PAUSE);
	cr_assert_str_eq(s->w.why.flag, "item-work");
	cr_assert_eq(s->w.why.limit, LIMIT + LEDGER_WORK_RUN);
	cr_assert_gt(s->w.why.asked, s->w.why.limit);
	world_is_as(&s->w, before);
	steps = cost(s, s->vm, GFN_SHARE, LIMIT / LEDGER_WORK_CHANGE / 2, NULL, PROBLEM_NONE);
	cr_assert_leq(steps, LIMIT + LEDGER_WORK_RUN);
	scene_free(s);
}

Test(work, a_run_that_is_refused_undoes_no_more_than_the_limit)
{
	struct scene *s = scene_new();
	const struct gfn_run runs[] = { { 0, LIMIT / LEDGER_WORK_CHANGE / 2, 0 }, { FRAMES, 1, 0 } };
	const struct gfn_run more[] = { { 0, EXTENTS, 0 }, { FRAMES, 1, 0 } };
	struct item it = { .vm = s->vm->id, .op = GFN_SHARE, .runs = runs, .run_count = 2 };
	char *before = ledger_dump(s->w.ledger);
	uint64_t from = ledger_work(s->w.ledger);
	bool changed;

	ledger_set_work_limit(s->w.ledger, "item-work", LIMIT);
	cr_assert_eq(ledger_apply(s->w.ledger, s->host, &it, &changed, &s->w.why), PROBLEM_GFN_OUT_OF_SLOT);
	it.runs = more;
	cr_assert_eq(ledger_apply(s->w.ledger, s->host, &it, &changed, &s->w.why), PROBLEM_TOO_MUCH_WORK);
	cr_assert_leq(ledger_work(s->w.ledger) - from, 4 * LIMIT);
	world_is_as(&s->w, before);
	scene_free(s);
}

Test(work, an_item_may_have_as_many_runs_as_it_names)
{
	struct scene *s = scene_new();
	struct gfn_run *runs = calloc(EXTENTS, sizeof *runs);
	struct item it = { .vm = s->vm->id, .op = GFN_SHARE, .runs = runs, .run_count = EXTENTS };
	bool changed;

	cr_assert(runs);
	for (uint64_t i = 0; i < EXTENTS; i++)
		runs[i] = (struct gfn_run){ i, 1, 0 };
	ledger_set_work_limit(s->w.ledger, "item-work", 1000);
	cr_assert_eq(ledger_apply(s->w.ledger, s->host, &it, &changed, &s->w.why), PROBLEM_NONE, "%s", s->w.why.detail);
	cr_assert(changed && s->vm->counts.pages[GFN_SHARED] == EXTENTS);
	free(runs);
	scene_free(s);
}

Test(work, what_was_decided_is_redone_whatever_it_costs)
{
	struct scene *s = scene_new();
	const struct gfn_run all = { 0, EXTENTS, 0 };
	struct item it = { .vm = s->vm->id, .op = GFN_SHARE, .runs = &all, .run_count = 1, .decided = true };
	bool changed;

	ledger_set_work_limit(s->w.ledger, "item-work", 1000);
	cr_assert_eq(ledger_apply(s->w.ledger, s->host, &it, &changed, &s->w.why), PROBLEM_NONE, "%s", s->w.why.detail);
	cr_assert_eq(s->vm->counts.pages[GFN_SHARED], EXTENTS);
	scene_free(s);
}

Test(work, quarantine_has_the_same_limit)
{
	struct scene *s = scene_new();
	const struct frame_range all = { .pool = s->host->pools[0], .count = FRAMES },
				 few = { .pool = s->host->pools[0], .count = 1000 };
	char *before = ledger_dump(s->w.ledger);

	ledger_set_work_limit(s->w.ledger, "item-work", LIMIT);
	cr_assert_eq(ledger_quarantine(s->w.ledger, s->host, &all, 1, &s->w.why), PROBLEM_TOO_MUCH_WORK);
	world_is_as(&s->w, before);
	cr_assert_eq(ledger_quarantine(s->w.ledger, s->host, &few, 1, &s->w.why), PROBLEM_NONE);
	cr_assert_eq(s->host->pools[0]->quarantined, 1000);
	cr_assert_eq(ledger_unquarantine(s->w.ledger, &all, 1, &s->w.why), PROBLEM_NONE);
	cr_assert_eq(s->host->pools[0]->quarantined, 0);
	scene_free(s);
}

/* Long commands let others in. */

struct pauses {
	const struct ledger *l;
	uint64_t last, longest;
	unsigned n;
};

static void pause_noted(void *ctx)
{
	struct pauses *p = ctx;
	uint64_t now = ledger_work(p->l);

	p->longest = now - p->last > p->longest ? now - p->last : p->longest;
	p->last = now;
	p->n++;
}

static void must_pause(struct pauses *p, const char *what)
{
	cr_assert_geq(p->n, 8, "%s: %u pauses", what, p->n);
	cr_assert_leq(p->longest, 2 * LEDGER_PAUSE, "%s: %" PRIu64 " steps without a pause", what, p->longest);
	*p = (struct pauses){ .l = p->l, .last = ledger_work(p->l) };
}

Test(work, a_long_command_pauses_all_the_way)
{
	struct scene *s = scene_new();
	struct ledger *l = s->w.ledger;
	const struct frame_range all = { .pool = s->host->pools[0], .count = FRAMES };
	struct pauses p = { .l = l, .last = ledger_work(l) };
	undo_mark mark = ledger_mark(l);

	ledger_on_pause(l, pause_noted, &p);
	cost(s, s->vm, GFN_SHARE, EXTENTS, NULL, PROBLEM_NONE);
	must_pause(&p, "a change");
	ledger_rollback(l, mark);
	must_pause(&p, "taking it back");
	cr_assert_eq(ledger_quarantine(l, s->host, &all, 1, &s->w.why), PROBLEM_NONE);
	must_pause(&p, "quarantine");
	ledger_rollback(l, mark);
	must_pause(&p, "taking quarantine back");
	cr_assert_eq(ledger_vm_event(l, s->vm, VM_TERMINATE, &s->w.why), PROBLEM_NONE);
	must_pause(&p, "the end of a VM");
	ledger_rollback(l, mark);
	must_pause(&p, "taking the end back");
	ledger_on_pause(l, NULL, NULL);
	cost(s, s->vm, GFN_SHARE, EXTENTS, NULL, PROBLEM_NONE);
	cr_assert_eq(p.n, 0, "nobody is asked any more");
	scene_free(s);
}
