/*
 * Which frames a claim may have, and who keeps it off the others. A refusal tells the first runs in the way and how
 * many frames there are in all: neither costs more than the tables that they lie in.
 */
#include <string.h>

#include "engine/ledger_impl.h"

/* Frames in quarantine are one run, whatever was noted of each. */
static void add_run(const struct pool *p, struct refusal *why, const struct frame_view *f)
{
	struct frame_run *run = &why->runs[why->run_count], *last = why->run_count ? run - 1 : NULL;

	if (last && !f->vm && last->pfn + last->count == f->pfn) {
		last->count += f->count;
		return;
	}
	why->run_count++;
	memcpy(run->pool, p->name, sizeof run->pool);
	run->pfn = f->pfn;
	run->count = f->count;
	run->gfn = f->gfn;
	run->vm = f->vm ? f->vm->id : (struct pw_uuid){ { 0 } };
}

static bool has_room(const struct refusal *why)
{
	return why && why->run_count < REFUSAL_RUNS_MAX;
}

/* A stretch of frames, and the page that each of them is for (vm NULL: nobody has any of them yet). */
struct claim {
	struct ledger *l;
	const struct pool *pool;
	uint64_t pfn, count;
	const struct vm *vm;
	uint64_t gfn;
};

static bool next_frames(const struct claim *c, uint64_t from, uint64_t kinds, struct frame_view *f)
{
	struct tree_run run;

	if (!work_find(c->l, &c->pool->owners, from, c->pfn + c->count, kinds, &run))
		return false;
	*f = (struct frame_view){ .pfn = run.first, .count = run.count };
	if (run.entry & FRAME_ENTRY_BOUND) {
		f->vm = ledger_vm_by_number(c->l, frame_entry_vm(run.entry));
		f->gfn = run.entry & TREE_NUMBER;
	}
	return true;
}

static enum pw_problem refuse_quarantined(const struct claim *c, struct refusal *why)
{
	const struct pool *p = c->pool;
	struct frame_view f;

	if (!p->quarantined || !next_frames(c, c->pfn, FRAME_KINDS_QUARANTINED, &f))
		return PROBLEM_NONE;
	refuse(why, PROBLEM_FRAME_QUARANTINED, "frame %" PRIu64 " of pool %s is in quarantine", f.pfn, p->name);
	if (why)
		why->frames = work_sum(c->l, &p->owners, c->pfn, c->pfn + c->count).pages[1];
	for (uint64_t at = c->pfn; has_room(why) && next_frames(c, at, FRAME_KINDS_QUARANTINED, &f);
	     at = f.pfn + f.count)
		add_run(p, why, &f);
	return PROBLEM_FRAME_QUARANTINED;
}

/* The next run at or after `from` that another page has. */
static bool next_taken(const struct claim *c, uint64_t from, struct frame_view *f)
{
	for (; next_frames(c, from, FRAME_KINDS_BOUND, f); from = f->pfn + f->count)
		if (!c->vm || f->vm != c->vm || f->gfn - c->gfn != f->pfn - c->pfn)
			return true;
	return false;
}

/* Has the VM any of the frames for the very page that is to have it? Then they are told apart one by one. */
static bool may_have_own(const struct claim *c)
{
	return c->vm && work_sum(c->l, &c->vm->pages, c->gfn, c->gfn + c->count).pages[0] > 0;
}

static uint64_t count_taken(const struct claim *c)
{
	uint64_t frames = 0;
	struct frame_view f;

	if (!may_have_own(c))
		return work_sum(c->l, &c->pool->owners, c->pfn, c->pfn + c->count).pages[0];
	for (uint64_t at = c->pfn; next_taken(c, at, &f); at = f.pfn + f.count)
		frames += f.count;
	return frames;
}

static enum pw_problem refuse_bound(const struct claim *c, struct refusal *why)
{
	char id[PW_UUID_TEXT];
	struct frame_view f;

	if (!next_taken(c, c->pfn, &f))
		return PROBLEM_NONE;
	pw_uuid_format(&f.vm->id, id);
	refuse(why, PROBLEM_FRAME_CONFLICT, "frame %" PRIu64 " of pool %s is bound to VM %s, GFN %" PRIu64, f.pfn,
	       c->pool->name, id, f.gfn);
	if (why)
		why->frames = count_taken(c);
	for (uint64_t at = c->pfn; has_room(why) && next_taken(c, at, &f); at = f.pfn + f.count)
		add_run(c->pool, why, &f);
	return PROBLEM_FRAME_CONFLICT;
}

enum pw_problem pool_claimable(struct ledger *l, const struct pool *p, uint64_t pfn, uint64_t count,
			       const struct vm *vm, uint64_t gfn, struct refusal *why)
{
	const struct claim claim = { l, p, pfn, count, vm, gfn };
	struct tree_run run;
	enum pw_problem problem;

	if (pfn < p->base || count > p->frames || pfn - p->base > p->frames - count) {
		uint64_t bad = pfn < p->base || pfn >= p->base + p->frames ? pfn : p->base + p->frames;

		refuse(why, PROBLEM_FRAME_OUT_OF_POOL,
		       "frame %" PRIu64 " is outside pool %s: [%" PRIu64 ", +%" PRIu64 ")", bad, p->name, p->base,
		       p->frames);
		if (why)
			memcpy(why->pool, p->name, sizeof why->pool);
		return PROBLEM_FRAME_OUT_OF_POOL;
	}
	run = tree_run_at(&p->owners, pfn, pfn + count);
	if (run.entry == 0 && run.count == count)
		return PROBLEM_NONE;
	problem = refuse_quarantined(&claim, why);
	return problem != PROBLEM_NONE ? problem : refuse_bound(&claim, why);
}
