#include "engine/ledger_impl.h"

/* A run of frames reads `entry` again. */
struct frames_undo {
	struct ledger *l;
	uint64_t pfn, count, entry;
};

/* The old note goes first: frames never have two. */
static void account(struct pool *p, const struct frames_undo *r, uint64_t now, uint64_t next)
{
	if (now & FRAME_ENTRY_QUARANTINED)
		p->quarantined -= r->count;
	if (next & FRAME_ENTRY_QUARANTINED)
		p->quarantined += r->count;
	note_frames_take(r->l, now, r->count);
	note_frames_add(r->l, next, r->count);
}

static void put_frames_back(void *ctx, const void *args)
{
	const struct frames_undo *old = args;
	struct pool *p = ctx;

	account(p, old, tree_get(&p->owners, old->pfn), old->entry);
	if (tree_set(&p->owners, old->pfn, old->count, old->entry) != PW_OK)
		__builtin_trap(); /* the arena keeps what the forward change gave back */
}

/* Frames that are free or in quarantine (one run, reading old->entry) become the other, or get another note. */
static enum pw_status mark_frames(struct ledger *l, struct pool *p, const struct frames_undo *old, uint64_t entry)
{
	static const struct undo_ops marked = { .rollback = put_frames_back };

	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof *old)) != PW_OK || arena_reserve(&l->arena) != PW_OK)
		return PW_NO_MEMORY;
	undo_push(&l->undo, &marked, p, old, sizeof *old);
	account(p, old, old->entry, entry);
	if (tree_set(&p->owners, old->pfn, old->count, entry) != PW_OK)
		return PW_NO_MEMORY;
	work_done(l, LEDGER_WORK_CHANGE);
	return PW_OK;
}

/* Unbinds what is bound in [pfn, end): the GFNs are paged out then. */
static enum pw_status unbind(struct ledger *l, struct pool *p, uint64_t pfn, uint64_t end)
{
	struct tree_run frames = { .first = pfn };

	while (work_find(l, &p->owners, frames.first + frames.count, end, FRAME_KINDS_BOUND, &frames)) {
		struct vm *vm = ledger_vm_by_number(l, frame_entry_vm(frames.entry));
		uint64_t gfn = frames.entry & TREE_NUMBER;
		struct tree_run run = tree_run_at(&vm->pages, gfn, gfn + frames.count);

		frames.count = run.count;
		if (vm_change_run(l, vm, &run, gfn_entry_after(vm, run.entry, GFN_SECURE_OUT, 0, 0)) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

static enum pw_status quarantine_range(struct ledger *l, const struct frame_range *r)
{
	struct tree_run run = { .first = r->pfn };
	uint64_t end = r->pfn + r->count;
	const struct note *note = note_new(l, r);

	if (!note || unbind(l, r->pool, r->pfn, end) != PW_OK)
		return PW_NO_MEMORY;
	while (work_find(l, &r->pool->owners, run.first + run.count, end, ~(uint64_t)0, &run)) {
		struct frames_undo old = { l, run.first, run.count, run.entry };

		if (mark_frames(l, r->pool, &old, FRAME_ENTRY_QUARANTINED | note->number) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

static enum pw_problem check_range(const struct frame_range *r, struct refusal *why)
{
	const struct pool *p = r->pool;

	if (range_fits(r->pfn, r->count) && r->pfn >= p->base && r->count <= p->frames &&
	    r->pfn - p->base <= p->frames - r->count)
		return PROBLEM_NONE;
	refuse(why, PROBLEM_FRAME_OUT_OF_POOL, "frames %" PRIu64 " +%" PRIu64 " are not all in pool %s", r->pfn,
	       r->count, p->name);
	for (size_t i = 0; why && i < sizeof why->pool; i++)
		why->pool[i] = p->name[i];
	return PROBLEM_FRAME_OUT_OF_POOL;
}

/* Frames of a local pool are its host's alone. */
static enum pw_problem check_owners(struct ledger *l, const struct host *h, const struct frame_range *r,
				    struct refusal *why)
{
	struct tree_run run = { .first = r->pfn };
	const struct vm *vm;

	while (!r->pool->host &&
	       work_find(l, &r->pool->owners, run.first + run.count, r->pfn + r->count, FRAME_KINDS_BOUND, &run)) {
		vm = ledger_vm_by_number(l, frame_entry_vm(run.entry));
		if (vm->host == h)
			continue;
		refuse(why, PROBLEM_VM_NOT_ON_HOST, "frame %" PRIu64 " of pool %s belongs to a VM of another host",
		       run.first, r->pool->name);
		if (why) {
			why->vm = vm->id;
			why->host = vm->host->id;
		}
		return PROBLEM_VM_NOT_ON_HOST;
	}
	return PROBLEM_NONE;
}

/* How much it would be to change all frames of these kinds. */
static enum pw_problem check_work(struct ledger *l, const struct frame_range *r, size_t n, uint64_t kinds,
				  struct refusal *why)
{
	uint64_t runs = 0;

	for (size_t i = 0; i < n && l->work.stop != UINT64_MAX && !work_is_over(l); i++)
		runs += work_runs(l, &r[i].pool->owners, r[i].pfn, r[i].pfn + r[i].count, kinds);
	return work_check(l, runs * LEDGER_WORK_CHANGE, why);
}

static enum pw_problem quarantine_check(struct ledger *l, const struct host *h, const struct frame_range *r, size_t n,
					struct refusal *why)
{
	enum pw_problem p = PROBLEM_NONE;

	for (size_t i = 0; p == PROBLEM_NONE && i < n && !work_is_over(l); i++) {
		p = check_range(&r[i], why);
		if (p == PROBLEM_NONE)
			p = check_owners(l, h, &r[i], why);
	}
	return p == PROBLEM_NONE || work_is_over(l) ? check_work(l, r, n, ~(uint64_t)0, why) : p;
}

enum pw_problem ledger_quarantine_check(struct ledger *l, const struct host *h, const struct frame_range *r, size_t n,
					struct refusal *why)
{
	enum pw_problem p;

	work_begin(l, n);
	p = quarantine_check(l, h, r, n, why);
	work_end(l);
	return p;
}

enum pw_problem ledger_quarantine(struct ledger *l, struct host *h, const struct frame_range *r, size_t n,
				  struct refusal *why)
{
	undo_mark mark = ledger_mark(l);
	enum pw_problem p = ledger_quarantine_check(l, h, r, n, why);

	for (size_t i = 0; p == PROBLEM_NONE && i < n; i++)
		if (quarantine_range(l, &r[i]) != PW_OK)
			p = refuse_memory(why, "putting frames into quarantine");
	if (p != PROBLEM_NONE)
		ledger_rollback(l, mark);
	return p;
}

static enum pw_status release_range(struct ledger *l, struct pool *p, uint64_t pfn, uint64_t end)
{
	struct tree_run run = { .first = pfn };

	while (work_find(l, &p->owners, run.first + run.count, end, FRAME_KINDS_QUARANTINED, &run)) {
		struct frames_undo old = { l, run.first, run.count, run.entry };

		if (mark_frames(l, p, &old, 0) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

enum pw_problem ledger_unquarantine(struct ledger *l, const struct frame_range *r, size_t n, struct refusal *why)
{
	undo_mark mark = ledger_mark(l);
	enum pw_problem p = PROBLEM_NONE;

	for (size_t i = 0; p == PROBLEM_NONE && i < n; i++)
		p = check_range(&r[i], why);
	work_begin(l, n);
	if (p == PROBLEM_NONE)
		p = check_work(l, r, n, FRAME_KINDS_QUARANTINED, why);
	work_end(l);
	for (size_t i = 0; p == PROBLEM_NONE && i < n; i++)
		if (release_range(l, r[i].pool, r[i].pfn, r[i].pfn + r[i].count) != PW_OK)
			p = refuse_memory(why, "taking frames out of quarantine");
	if (p != PROBLEM_NONE)
		ledger_rollback(l, mark);
	return p;
}

enum pw_status pool_unquarantine_all(struct ledger *l, struct pool *p)
{
	return p->quarantined ? release_range(l, p, 0, TREE_PAGES) : PW_OK;
}
