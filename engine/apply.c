#include <string.h>

#include "engine/ledger_impl.h"

enum gfn_state gfn_entry_state(uint64_t entry)
{
	if (entry & GFN_ENTRY_RESIDENT)
		return GFN_SECURE_RESIDENT;
	if (entry & GFN_ENTRY_OUT)
		return GFN_SECURE_OUT;
	return entry & GFN_ENTRY_SHARED ? GFN_SHARED : GFN_NORMAL;
}

uint64_t gfn_entry(enum gfn_state s, unsigned place, uint64_t pfn)
{
	switch (s) {
	case GFN_NORMAL: return 0;
	case GFN_SECURE_OUT: return GFN_ENTRY_OUT;
	case GFN_SHARED: return GFN_ENTRY_SHARED;
	case GFN_SECURE_RESIDENT: return GFN_ENTRY_RESIDENT | (uint64_t)place << GFN_ENTRY_POOL | pfn;
	case GFN_STATE_COUNT: break;
	}
	return 0;
}

/* Changing. */

/* Space must have been reserved in the arena: a set, and one for each side that is resident. */
static enum pw_status both_trees(struct vm *vm, const struct tree_run *old, uint64_t entry)
{
	if (old->entry & GFN_ENTRY_RESIDENT) {
		struct pool *p = vm->host->pools[gfn_entry_place(old->entry)];

		if (tree_set(&p->owners, old->entry & TREE_NUMBER, old->count, 0) != PW_OK)
			return PW_NO_MEMORY;
		p->bound -= old->count;
	}
	if (entry & GFN_ENTRY_RESIDENT) {
		struct pool *p = vm->host->pools[gfn_entry_place(entry)];

		if (tree_set(&p->owners, entry & TREE_NUMBER, old->count, frame_entry(vm->number, old->first)) != PW_OK)
			return PW_NO_MEMORY;
		p->bound += old->count;
	}
	vm->counts.pages[gfn_entry_state(old->entry)] -= old->count;
	vm->counts.pages[gfn_entry_state(entry)] += old->count;
	return tree_set(&vm->pages, old->first, old->count, entry);
}

static void put_run_back(void *ctx, const void *args)
{
	const struct tree_run *old = args;
	struct vm *vm = ctx;

	for (uint64_t at = old->first; at < old->first + old->count;) {
		struct tree_run now = tree_run_at(&vm->pages, at, old->first + old->count);

		if (both_trees(vm, &now, tree_entry_after(old->entry, at - old->first)) != PW_OK)
			__builtin_trap(); /* the arena keeps what the forward change gave back */
		at += now.count;
	}
}
static const struct undo_ops run_changed = { .rollback = put_run_back };

enum pw_status vm_change_run(struct ledger *l, struct vm *vm, const struct tree_run *old, uint64_t entry)
{
	size_t sets = (size_t)1 + !!(old->entry & GFN_ENTRY_RESIDENT) + !!(entry & GFN_ENTRY_RESIDENT);

	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof *old)) != PW_OK || arena_reserve_sets(&l->arena, sets) != PW_OK)
		return PW_NO_MEMORY;
	undo_push(&l->undo, &run_changed, vm, old, sizeof *old);
	return both_trees(vm, old, entry);
}

/* Checking frames. */

static void note_run(const struct pool *p, struct refusal *why, uint64_t pfn, uint64_t count, const struct vm *vm,
		     uint64_t gfn)
{
	struct frame_run *run = &why->runs[why->run_count];

	why->frames += count;
	if (why->run_count == REFUSAL_RUNS_MAX)
		return;
	memcpy(run->pool, p->name, sizeof run->pool);
	run->pfn = pfn;
	run->count = count;
	run->gfn = gfn;
	run->vm = vm ? vm->id : (struct pw_uuid){ { 0 } };
	why->run_count++;
}

static enum pw_problem refuse_quarantined(const struct pool *p, uint64_t pfn, uint64_t count, struct refusal *why)
{
	struct frame_view f;

	if (!pool_next_quarantined(p, pfn, pfn + count, &f))
		return PROBLEM_NONE;
	refuse(why, PROBLEM_FRAME_QUARANTINED, "frame %" PRIu64 " of pool %s is in quarantine", f.pfn, p->name);
	for (uint64_t at = pfn; why && pool_next_quarantined(p, at, pfn + count, &f); at = f.pfn + f.count)
		note_run(p, why, f.pfn, f.count, NULL, 0);
	return PROBLEM_FRAME_QUARANTINED;
}

static enum pw_problem refuse_bound(const struct ledger *l, const struct pool *p, uint64_t pfn, uint64_t count,
				    struct refusal *why)
{
	char id[PW_UUID_TEXT];
	struct frame_view f;

	if (!pool_next_bound(l, p, pfn, pfn + count, &f))
		return PROBLEM_NONE;
	pw_uuid_format(&f.vm->id, id);
	refuse(why, PROBLEM_FRAME_CONFLICT, "frame %" PRIu64 " of pool %s is bound to VM %s, GFN %" PRIu64, f.pfn,
	       p->name, id, f.gfn);
	for (uint64_t at = pfn; why && pool_next_bound(l, p, at, pfn + count, &f); at = f.pfn + f.count)
		note_run(p, why, f.pfn, f.count, f.vm, f.gfn);
	return PROBLEM_FRAME_CONFLICT;
}

enum pw_problem pool_claimable(const struct ledger *l, const struct pool *p, uint64_t pfn, uint64_t count,
			       struct refusal *why)
{
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
	problem = refuse_quarantined(p, pfn, count, why);
	return problem != PROBLEM_NONE ? problem : refuse_bound(l, p, pfn, count, why);
}

/* Checking GFNs. */

/* What one item is applied to, found once. */
struct target {
	struct vm *vm;
	enum gfn_op op;
	const struct slot *slot; /* of the last run */
	struct pool *pool;       /* NULL: the item names none that is attached */
	unsigned place;
};

static enum pw_problem refuse_gfn(const struct target *t, enum pw_problem p, uint64_t gfn, enum gfn_state s,
				  struct refusal *why)
{
	if (p == PROBLEM_GFN_OUT_OF_SLOT)
		refuse(why, p, "GFN %" PRIu64 " is not in the memory slot of its run", gfn);
	else
		refuse(why, p, "%s of GFN %" PRIu64 ", which is %s%s", gfn_op_name(t->op), gfn, gfn_state_name(s),
		       s == GFN_SECURE_RESIDENT ? " and resident"
		       : s == GFN_SECURE_OUT    ? " and paged out"
						: "");
	if (why) {
		why->gfn = gfn;
		why->gfn_state = s;
		why->op = gfn_op_name(t->op);
		why->vm = t->vm->id;
	}
	return p;
}

static enum pw_problem check_slot(struct target *t, const struct gfn_run *r, struct refusal *why)
{
	const struct slot *s = t->slot;

	if (!s || r->gfn < s->base || r->gfn - s->base >= s->pages)
		s = t->slot = vm_slot_at(t->vm, r->gfn);
	if (!s)
		return refuse_gfn(t, PROBLEM_GFN_OUT_OF_SLOT, r->gfn, GFN_NORMAL, why);
	if (r->count > s->pages - (r->gfn - s->base))
		return refuse_gfn(t, PROBLEM_GFN_OUT_OF_SLOT, s->base + s->pages, GFN_NORMAL, why);
	return PROBLEM_NONE;
}

static enum pw_problem check_gfns(struct target *t, const struct gfn_run *r, struct refusal *why)
{
	for (uint64_t at = r->gfn; at < r->gfn + r->count;) {
		struct tree_run run = tree_run_at(&t->vm->pages, at, r->gfn + r->count);
		enum gfn_state next;

		if (!gfn_step(gfn_entry_state(run.entry), t->op, &next))
			return refuse_gfn(t, PROBLEM_GFN_TRANSITION, at, gfn_entry_state(run.entry), why);
		at += run.count;
	}
	return PROBLEM_NONE;
}

static enum pw_problem check_frames(const struct ledger *l, const struct target *t, const struct item *it,
				    const struct gfn_run *r, struct refusal *why)
{
	if (!it->framed)
		return PROBLEM_NONE;
	if (t->pool)
		return pool_claimable(l, t->pool, r->pfn, r->count, why);
	refuse(why, PROBLEM_FRAME_OUT_OF_POOL, "pool %s is not attached to the host", it->pool);
	if (why)
		memccpy(why->pool, it->pool, 0, sizeof why->pool - 1);
	return PROBLEM_FRAME_OUT_OF_POOL;
}

/* Applying. */

static enum pw_status change_gfns(struct ledger *l, struct target *t, const struct gfn_run *r, bool *changed)
{
	for (uint64_t at = r->gfn; at < r->gfn + r->count;) {
		struct tree_run run = tree_run_at(&t->vm->pages, at, r->gfn + r->count);
		enum gfn_state now = gfn_entry_state(run.entry), next = now;

		if (gfn_step(now, t->op, &next) && next != now) {
			if (vm_change_run(l, t->vm, &run, gfn_entry(next, t->place, r->pfn + (at - r->gfn))) != PW_OK)
				return PW_NO_MEMORY;
			*changed = true;
		}
		at += run.count;
	}
	return PW_OK;
}

/*
 * The case that must be fast: one page that has a word of its own, no frame comes or goes. One walk checks and changes;
 * putting a word in place never allocates. False: not such a case, nothing done.
 */
static bool apply_page(struct ledger *l, const struct target *t, uint64_t gfn, bool *changed)
{
	enum gfn_state now, next;
	struct tree_spot spot;
	struct tree_run old;

	if (!tree_find(&t->vm->pages, gfn, &spot))
		return false;
	now = gfn_entry_state(*spot.word);
	if (now == GFN_SECURE_RESIDENT || !gfn_step(now, t->op, &next) || next == GFN_SECURE_RESIDENT)
		return false;
	if (next == now)
		return true;
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof old)) != PW_OK)
		return false;
	old = (struct tree_run){ gfn, 1, *spot.word };
	undo_push(&l->undo, &run_changed, t->vm, &old, sizeof old);
	t->vm->counts.pages[now]--;
	t->vm->counts.pages[next]++;
	tree_put(&t->vm->pages, gfn, &spot, gfn_entry(next, 0, 0));
	*changed = true;
	return true;
}

static enum pw_problem apply_run(struct ledger *l, struct target *t, const struct item *it, const struct gfn_run *r,
				 bool *changed, struct refusal *why)
{
	enum pw_problem p = check_slot(t, r, why);

	if (p == PROBLEM_NONE && r->count == 1 && !it->framed && apply_page(l, t, r->gfn, changed))
		return PROBLEM_NONE;
	if (p == PROBLEM_NONE)
		p = check_gfns(t, r, why);
	if (p == PROBLEM_NONE)
		p = check_frames(l, t, it, r, why);
	if (p == PROBLEM_NONE && change_gfns(l, t, r, changed) != PW_OK)
		p = refuse_memory(why, "changing GFNs");
	return p;
}

static enum pw_problem find_target(const struct ledger *l, const struct host *h, const struct item *it,
				   struct target *t, struct refusal *why)
{
	char id[PW_UUID_TEXT];

	t->vm = ledger_vm(l, &it->vm);
	t->op = it->op == GFN_UNSHARE && it->framed ? GFN_UNSHARE_IN : it->op;
	if (!t->vm) {
		pw_uuid_format(&it->vm, id);
		refuse(why, PROBLEM_VM_NOT_FOUND, "there is no VM %s", id);
		if (why)
			why->vm = it->vm;
		return PROBLEM_VM_NOT_FOUND;
	}
	if (t->vm->host != h) {
		pw_uuid_format(&t->vm->host->id, id);
		refuse(why, PROBLEM_VM_NOT_ON_HOST, "the VM is placed on host %s", id);
		if (why) {
			why->vm = it->vm;
			why->host = t->vm->host->id;
		}
		return PROBLEM_VM_NOT_ON_HOST;
	}
	if (t->vm->state == VM_NORMAL) {
		refuse(why, PROBLEM_VM_TRANSITION, "%s needs a VM that is transient or secure: it is normal",
		       gfn_op_name(t->op));
		if (why) {
			why->vm = it->vm;
			why->vm_state = VM_NORMAL;
			why->op = gfn_op_name(t->op);
		}
		return PROBLEM_VM_TRANSITION;
	}
	if (it->framed)
		t->pool = host_pool(h, it->pool, &t->place);
	return PROBLEM_NONE;
}

enum { AHEAD = 16 }; /* runs: so far ahead memory is asked for */

enum pw_problem ledger_apply(struct ledger *l, struct host *h, const struct item *it, bool *changed,
			     struct refusal *why)
{
	struct target t = { 0 };
	undo_mark mark = ledger_mark(l);
	enum pw_problem p = find_target(l, h, it, &t, why);

	*changed = false;
	for (size_t i = 0; p == PROBLEM_NONE && i < it->run_count; i++) {
		if (i + AHEAD < it->run_count)
			tree_prefetch(&t.vm->pages, it->runs[i + AHEAD].gfn);
		p = apply_run(l, &t, it, &it->runs[i], changed, why);
	}
	if (p != PROBLEM_NONE) {
		ledger_rollback(l, mark);
		*changed = false;
	}
	return p;
}

static size_t refusal_size(const struct refusal *why)
{
	return offsetof(struct refusal, runs) + why->run_count * sizeof why->runs[0];
}

static struct refusal *refusal_copy(struct ledger *l, const struct refusal *why)
{
	struct refusal *copy = pw_mem_alloc(l->mem, refusal_size(why));

	if (copy)
		memcpy(copy, why, refusal_size(why));
	return copy;
}

size_t ledger_apply_batch(struct ledger *l, struct host *h, const struct item *items, size_t n, bool atomic,
			  struct item_result *results)
{
	undo_mark mark = ledger_mark(l);
	struct refusal why;
	size_t refused = 0;

	for (size_t i = 0; i < n; i++) {
		results[i] = (struct item_result){ 0 };
		results[i].problem = ledger_apply(l, h, &items[i], &results[i].changed, &why);
		if (results[i].problem == PROBLEM_NONE)
			continue;
		results[i].why = refusal_copy(l, &why);
		refused++;
		if (atomic) {
			ledger_rollback(l, mark);
			break;
		}
	}
	return refused;
}

void ledger_results_release(struct ledger *l, struct item_result *results, size_t n)
{
	for (size_t i = 0; i < n; i++)
		if (results[i].why) {
			pw_mem_free(l->mem, results[i].why, refusal_size(results[i].why));
			results[i].why = NULL;
		}
}
