#include "engine/ledger_impl.h"

/* A run of frames reads `entry` again. */
struct frames_undo {
	uint64_t pfn, count, entry;
};

static void account(struct pool *p, const struct frames_undo *r, uint64_t now, uint64_t next)
{
	if (now & FRAME_ENTRY_QUARANTINED)
		p->quarantined -= r->count;
	if (next & FRAME_ENTRY_QUARANTINED)
		p->quarantined += r->count;
}

static void put_frames_back(void *ctx, const void *args)
{
	const struct frames_undo *old = args;
	struct pool *p = ctx;

	account(p, old, tree_get(&p->owners, old->pfn), old->entry);
	if (tree_set(&p->owners, old->pfn, old->count, old->entry) != PW_OK)
		__builtin_trap(); /* the arena keeps what the forward change gave back */
}

/* Frames that are free or in quarantine (one run, reading old->entry) become the other. */
static enum pw_status mark_frames(struct ledger *l, struct pool *p, const struct frames_undo *old, uint64_t entry)
{
	static const struct undo_ops marked = { .rollback = put_frames_back };

	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof *old)) != PW_OK || arena_reserve(&l->arena) != PW_OK)
		return PW_NO_MEMORY;
	undo_push(&l->undo, &marked, p, old, sizeof *old);
	account(p, old, old->entry, entry);
	return tree_set(&p->owners, old->pfn, old->count, entry);
}

/* Unbinds what is bound in [pfn, end): the GFNs are paged out then. */
static enum pw_status unbind(struct ledger *l, struct pool *p, uint64_t pfn, uint64_t end)
{
	struct frame_view f;

	for (uint64_t at = pfn; pool_next_bound(l, p, at, end, &f); at = f.pfn + f.count) {
		struct vm *vm = ledger_vm_by_number(l, frame_entry_vm(tree_get(&p->owners, f.pfn)));
		struct tree_run run = { f.gfn, f.count, tree_get(&vm->pages, f.gfn) };

		if (vm_change_run(l, vm, &run, gfn_entry_after(vm, run.entry, GFN_SECURE_OUT, 0, 0)) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

static enum pw_status quarantine_range(struct ledger *l, const struct frame_range *r)
{
	uint64_t end = r->pfn + r->count;

	if (unbind(l, r->pool, r->pfn, end) != PW_OK)
		return PW_NO_MEMORY;
	for (uint64_t at = r->pfn; at < end;) {
		struct tree_run run = tree_run_at(&r->pool->owners, at, end);
		struct frames_undo old = { run.first, run.count, run.entry };

		if (!run.entry && mark_frames(l, r->pool, &old, FRAME_ENTRY_QUARANTINED) != PW_OK)
			return PW_NO_MEMORY;
		at += run.count;
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

enum pw_problem ledger_quarantine(struct ledger *l, struct host *h, const struct frame_range *r, size_t n,
				  struct refusal *why)
{
	undo_mark mark = ledger_mark(l);

	for (size_t i = 0; i < n; i++) {
		struct frame_view f;
		enum pw_problem p = check_range(&r[i], why);

		if (p != PROBLEM_NONE)
			return p;
		for (uint64_t at = r[i].pfn; pool_next_bound(l, r[i].pool, at, r[i].pfn + r[i].count, &f);
		     at = f.pfn + f.count)
			if (f.vm->host != h) {
				refuse(why, PROBLEM_VM_NOT_ON_HOST,
				       "frame %" PRIu64 " of pool %s belongs to a VM of another host", f.pfn,
				       r[i].pool->name);
				if (why) {
					why->vm = f.vm->id;
					why->host = f.vm->host->id;
				}
				return PROBLEM_VM_NOT_ON_HOST;
			}
	}
	for (size_t i = 0; i < n; i++)
		if (quarantine_range(l, &r[i]) != PW_OK) {
			ledger_rollback(l, mark);
			return refuse_memory(why, "putting frames into quarantine");
		}
	return PROBLEM_NONE;
}

static enum pw_status release_range(struct ledger *l, struct pool *p, uint64_t pfn, uint64_t end)
{
	struct frame_view f;

	for (uint64_t at = pfn; pool_next_quarantined(p, at, end, &f); at = f.pfn + f.count) {
		struct frames_undo old = { f.pfn, f.count, FRAME_ENTRY_QUARANTINED };

		if (mark_frames(l, p, &old, 0) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

enum pw_problem ledger_unquarantine(struct ledger *l, const struct frame_range *r, size_t n, struct refusal *why)
{
	undo_mark mark = ledger_mark(l);

	for (size_t i = 0; i < n; i++) {
		enum pw_problem p = check_range(&r[i], why);

		if (p != PROBLEM_NONE)
			return p;
	}
	for (size_t i = 0; i < n; i++)
		if (release_range(l, r[i].pool, r[i].pfn, r[i].pfn + r[i].count) != PW_OK) {
			ledger_rollback(l, mark);
			return refuse_memory(why, "taking frames out of quarantine");
		}
	return PROBLEM_NONE;
}

enum pw_status pool_unquarantine_all(struct ledger *l, struct pool *p)
{
	return p->quarantined ? release_range(l, p, 0, TREE_PAGES) : PW_OK;
}
