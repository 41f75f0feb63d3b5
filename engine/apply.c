#include <stdio.h>
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

uint64_t gfn_entry_after(const struct vm *vm, uint64_t entry, enum gfn_state next, unsigned place, uint64_t pfn)
{
	const struct arch_law *law = arch_laws[vm->arch];
	unsigned arch = gfn_entry_arch(entry), to;

	if (arch == 0 || !law)
		return gfn_entry(next, place, pfn);
	to = arch_page_after(law, arch - 1, next);
	return gfn_entry(next, place, pfn) | (to == law->rest[next] ? 0 : (uint64_t)(to + 1) << GFN_ENTRY_ARCH);
}

const char *item_op_name(const struct item *it)
{
	if (it->vm_op)
		return it->vm_op->name;
	return it->arch_op ? it->arch_op->name : gfn_op_name(it->op);
}

bool vm_entry_is_sound(const struct vm *vm, uint64_t entry)
{
	const struct arch_law *law = arch_laws[vm->arch];
	enum gfn_state state = gfn_entry_state(entry);
	unsigned arch = gfn_entry_arch(entry);

	if ((entry & ~GFN_ENTRY_ARCH_ANY) != gfn_entry(state, gfn_entry_place(entry), entry & TREE_NUMBER))
		return false;
	return arch == 0 ||
	       (law && arch <= law->state_count && law->states[arch - 1].is == state && law->rest[state] != arch - 1);
}

/* Changing. */

/* Do two entries of a page differ in nothing but the architecture's state? */
static bool same_but_arch(uint64_t a, uint64_t b)
{
	return ((a ^ b) & ~GFN_ENTRY_ARCH_ANY) == 0;
}

/* Frames and counts of a run that gets another entry. */
static enum pw_status change_frames(struct vm *vm, const struct tree_run *old, uint64_t entry)
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
	return PW_OK;
}

/* How many sets both_trees makes. */
static size_t sets_of(uint64_t old, uint64_t entry)
{
	return same_but_arch(old, entry) ? 1
					 : (size_t)1 + !!(old & GFN_ENTRY_RESIDENT) + !!(entry & GFN_ENTRY_RESIDENT);
}

/* Space must have been reserved in the arena. */
static enum pw_status both_trees(struct vm *vm, const struct tree_run *old, uint64_t entry)
{
	if (!same_but_arch(old->entry, entry) && change_frames(vm, old, entry) != PW_OK)
		return PW_NO_MEMORY;
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
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof *old)) != PW_OK ||
	    arena_reserve_sets(&l->arena, sets_of(old->entry, entry)) != PW_OK)
		return PW_NO_MEMORY;
	undo_push(&l->undo, &run_changed, vm, old, sizeof *old);
	if (both_trees(vm, old, entry) != PW_OK)
		return PW_NO_MEMORY;
	work_done(l, LEDGER_WORK_CHANGE);
	return PW_OK;
}

/* Checking GFNs. */

/* What the operation does with pages of each kind (tree_kind). What depends on the page's frame too is in both sets. */
struct op_kinds {
	bool known;
	uint64_t refused, changed;
};

/* What one item is applied to, found once. */
struct target {
	struct vm *vm;
	const struct item *item;
	enum gfn_op op;          /* of the law's */
	const struct slot *slot; /* of the last run */
	struct pool *pool;       /* NULL: the item names none that is attached */
	unsigned place;
	struct op_kinds kinds; /* once they are known */
};

/* Does a resident page's entry have the frame that the item names for it? */
static bool has_frame(const struct target *t, uint64_t entry, uint64_t pfn)
{
	return t->pool && gfn_entry_place(entry) == t->place && (entry & TREE_NUMBER) == pfn;
}

/* Does a page that becomes `is` go with the frame that the item names for it, or with none? */
static bool frame_fits(const struct target *t, uint64_t entry, uint64_t pfn, enum gfn_state is)
{
	bool resident = entry & GFN_ENTRY_RESIDENT;

	if (!t->item->framed)
		return resident || is != GFN_SECURE_RESIDENT;
	return resident ? has_frame(t, entry, pfn) : is == GFN_SECURE_RESIDENT;
}

static bool next_arch_entry(const struct target *t, uint64_t entry, uint64_t pfn, uint64_t *next)
{
	const struct arch_law *law = t->item->arch_law;
	enum gfn_state now = gfn_entry_state(entry), is;
	unsigned to = t->item->arch_op->next[gfn_arch_state(law, entry)];

	if (to == ARCH_REFUSED || !arch_move_is_lawful(now, law->states[to].is))
		return false;
	is = law->states[to].is;
	if (!frame_fits(t, entry, pfn, is))
		return false;
	*next = is == now ? entry & ~GFN_ENTRY_ARCH_ANY : gfn_entry(is, t->place, pfn);
	if (law->rest[is] != to)
		*next |= (uint64_t)(to + 1) << GFN_ENTRY_ARCH;
	return true;
}

/* The entry that the item gives a page which reads `entry`; pfn is the frame that it names. False: an error cell. */
static inline bool next_entry(const struct target *t, uint64_t entry, uint64_t pfn, uint64_t *next)
{
	enum gfn_state now = gfn_entry_state(entry), is;

	if (t->item->arch_op)
		return next_arch_entry(t, entry, pfn, next);
	if (!gfn_step(now, t->op, &is))
		return false;
	*next = is == now ? entry : gfn_entry_after(t->vm, entry, is, t->place, pfn);
	return true;
}

/* Some entry of that kind; false: pages of the VM are never of it. */
static bool entry_of_kind(const struct vm *vm, unsigned kind, uint64_t *out)
{
	static const uint64_t classes[] = { 0, GFN_ENTRY_SHARED, GFN_ENTRY_OUT, GFN_ENTRY_RESIDENT };

	*out = classes[kind >> 4] | (uint64_t)(kind & 15) << GFN_ENTRY_ARCH;
	return vm_entry_is_sound(vm, *out);
}

static void find_kinds(struct target *t)
{
	uint64_t entry, next;

	if (t->kinds.known)
		return;
	t->kinds.known = true;
	for (unsigned kind = 0; kind < TREE_KINDS; kind++) {
		bool depends, lawful;

		if (!entry_of_kind(t->vm, kind, &entry))
			continue;
		depends = t->item->arch_op && t->item->framed && entry & GFN_ENTRY_RESIDENT;
		lawful = next_entry(t, entry, 0, &next);
		if (depends || !lawful)
			t->kinds.refused |= (uint64_t)1 << kind;
		if (depends || (lawful && next != entry))
			t->kinds.changed |= (uint64_t)1 << kind;
	}
}

static const char *residency(enum gfn_state s)
{
	return s == GFN_SECURE_RESIDENT ? " and resident" : s == GFN_SECURE_OUT ? " and paged out" : "";
}

static void refuse_arch_step(const struct target *t, uint64_t gfn, uint64_t entry, struct refusal *why)
{
	const struct arch_law *law = t->item->arch_law;
	const struct arch_op *op = t->item->arch_op;
	enum gfn_state s = gfn_entry_state(entry);
	unsigned state = gfn_arch_state(law, entry);
	bool cell = op->next[state] == ARCH_REFUSED;

	refuse(why, PROBLEM_GFN_TRANSITION, "%s of GFN %" PRIu64 ", which is %s (%s%s)%s: %s", op->name, gfn,
	       law->states[state].name, gfn_state_name(s), residency(s), cell ? "" : " and not on the frame named",
	       op->rule);
	if (why)
		why->arch_state = law->states[state].name;
}

static void refuse_out_of_slot(const struct vm *vm, uint64_t gfn, struct refusal *why)
{
	uint64_t plain;

	if (gfn & vm->alias.mask && alias_read(vm->alias, gfn, &plain))
		refuse(why, PROBLEM_GFN_OUT_OF_SLOT,
		       "GFN %" PRIu64 " is the shared alias of GFN %" PRIu64 ", and no GFN of a memory slot", gfn,
		       plain);
	else
		refuse(why, PROBLEM_GFN_OUT_OF_SLOT, "GFN %" PRIu64 " is not in the memory slot of its run", gfn);
}

static enum pw_problem refuse_gfn(const struct target *t, enum pw_problem p, uint64_t gfn, uint64_t entry,
				  struct refusal *why)
{
	enum gfn_state s = gfn_entry_state(entry);

	if (p == PROBLEM_GFN_OUT_OF_SLOT)
		refuse_out_of_slot(t->vm, gfn, why);
	else if (t->item->arch_op)
		refuse_arch_step(t, gfn, entry, why);
	else
		refuse(why, p, "%s of GFN %" PRIu64 ", which is %s%s", gfn_op_name(t->op), gfn, gfn_state_name(s),
		       residency(s));
	if (why) {
		why->gfn = gfn;
		why->gfn_state = s;
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
		return refuse_gfn(t, PROBLEM_GFN_OUT_OF_SLOT, r->gfn, 0, why);
	if (r->count > s->pages - (r->gfn - s->base))
		return refuse_gfn(t, PROBLEM_GFN_OUT_OF_SLOT, s->base + s->pages, 0, why);
	return PROBLEM_NONE;
}

/* The slot is known. A slot that is leaving gets no frames. */
static enum pw_problem check_leaving(struct target *t, const struct gfn_run *r, struct refusal *why)
{
	if (!t->item->framed || t->item->decided || !vm_slot_is_leaving(t->vm, t->slot->number))
		return PROBLEM_NONE;
	refuse_gfn(t, PROBLEM_GFN_TRANSITION, r->gfn, tree_get(&t->vm->pages, r->gfn), why);
	if (why)
		snprintf(why->detail, sizeof why->detail,
			 "GFN %" PRIu64 " is in slot %" PRIu32 ", which is leaving: operation unplug is running",
			 r->gfn, t->slot->number);
	return PROBLEM_GFN_TRANSITION;
}

/* A way through one of the item's runs. The first few runs of the tree are looked at one by one, which is quicker than
 * to think; after them only those of these kinds. */
enum { FEW = 64 };
struct way {
	const struct gfn_run *r;
	const uint64_t *kinds; /* of t->kinds */
	unsigned seen;
	struct tree_run run;
};

static bool next_run(struct ledger *l, struct target *t, struct way *w)
{
	uint64_t at = w->seen ? w->run.first + w->run.count : w->r->gfn, end = w->r->gfn + w->r->count;

	if (at >= end)
		return false;
	if (w->seen++ >= FEW) {
		find_kinds(t);
		return work_find(l, &t->vm->pages, at, end, *w->kinds, &w->run);
	}
	w->run = tree_run_at(&t->vm->pages, at, end);
	l->work.walk.steps++;
	return true;
}

/* *many: there are more than a few runs of the tree. */
static enum pw_problem check_gfns(struct ledger *l, struct target *t, const struct gfn_run *r, bool *many,
				  struct refusal *why)
{
	struct way w = { .r = r, .kinds = &t->kinds.refused };
	uint64_t next;

	while (next_run(l, t, &w))
		if (!next_entry(t, w.run.entry, r->pfn + (w.run.first - r->gfn), &next))
			return refuse_gfn(t, PROBLEM_GFN_TRANSITION, w.run.first, w.run.entry, why);
	*many = w.seen > FEW;
	return PROBLEM_NONE;
}

static enum pw_problem check_frames(struct ledger *l, const struct target *t, const struct gfn_run *r,
				    struct refusal *why)
{
	const struct item *it = t->item;

	if (!it->framed)
		return PROBLEM_NONE;
	if (t->pool)
		return pool_claimable(l, t->pool, r->pfn, r->count, t->vm, r->gfn, why);
	refuse(why, PROBLEM_FRAME_OUT_OF_POOL, "pool %s is not attached to the host", it->pool);
	if (why)
		memccpy(why->pool, it->pool, 0, sizeof why->pool - 1);
	return PROBLEM_FRAME_OUT_OF_POOL;
}

/* Applying. */

/* How much it would be to change all that changes, of more than a few runs of the tree. */
static enum pw_problem check_work(struct ledger *l, const struct target *t, const struct gfn_run *r,
				  struct refusal *why)
{
	uint64_t runs = 0;

	if (l->work.stop != UINT64_MAX && !work_is_over(l))
		runs = work_runs(l, &t->vm->pages, r->gfn, r->gfn + r->count, t->kinds.changed);
	return work_check(l, runs * LEDGER_WORK_CHANGE, why);
}

static enum pw_status change_gfns(struct ledger *l, struct target *t, const struct gfn_run *r, bool *changed)
{
	struct way w = { .r = r, .kinds = &t->kinds.changed };
	uint64_t next;

	while (next_run(l, t, &w))
		if (next_entry(t, w.run.entry, r->pfn + (w.run.first - r->gfn), &next) && next != w.run.entry) {
			if (vm_change_run(l, t->vm, &w.run, next) != PW_OK)
				return PW_NO_MEMORY;
			*changed = true;
		}
	return PW_OK;
}

/* One page that has a word of its own, and no frame comes or goes. False: out of memory, nothing done. Forced inline:
 * it ends the busiest path that there is. */
static inline __attribute__((always_inline)) bool put_page(struct ledger *l, struct vm *vm, uint64_t gfn,
							   const struct tree_spot *spot, uint64_t entry)
{
	struct tree_run old = { gfn, 1, *spot->word };

	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof old)) != PW_OK)
		return false;
	undo_push(&l->undo, &run_changed, vm, &old, sizeof old);
	tree_put(&vm->pages, gfn, spot, entry);
	return true;
}

static bool apply_arch_page(struct ledger *l, const struct target *t, uint64_t gfn, const struct tree_spot *spot,
			    bool *changed)
{
	uint64_t was = *spot->word, entry;

	if (!next_arch_entry(t, was, 0, &entry) || (was ^ entry) & GFN_ENTRY_RESIDENT)
		return false;
	if (entry == was)
		return true;
	if (!put_page(l, t->vm, gfn, spot, entry))
		return false;
	t->vm->counts.pages[gfn_entry_state(was)]--;
	t->vm->counts.pages[gfn_entry_state(entry)]++;
	*changed = true;
	return true;
}

/*
 * The case that must be fast: one page that has a word of its own, no frame comes or goes. One walk checks and changes;
 * putting a word in place never allocates. False: not such a case, nothing done.
 */
static bool apply_page(struct ledger *l, const struct target *t, uint64_t gfn, bool *changed)
{
	enum gfn_state now, next;
	struct tree_spot spot;

	if (!tree_find(&t->vm->pages, gfn, &spot))
		return false;
	if (t->item->arch_op)
		return apply_arch_page(l, t, gfn, &spot, changed);
	now = gfn_entry_state(*spot.word);
	if (now == GFN_SECURE_RESIDENT || !gfn_step(now, t->op, &next) || next == GFN_SECURE_RESIDENT)
		return false;
	if (next == now)
		return true;
	if (!put_page(l, t->vm, gfn, &spot, gfn_entry_after(t->vm, *spot.word, next, 0, 0)))
		return false;
	t->vm->counts.pages[now]--;
	t->vm->counts.pages[next]++;
	*changed = true;
	return true;
}

static enum pw_problem apply_run(struct ledger *l, struct target *t, const struct gfn_run *r, bool *changed,
				 struct refusal *why)
{
	enum pw_problem p = check_slot(t, r, why);
	bool many = false;

	if (p == PROBLEM_NONE && t->vm->leaving)
		p = check_leaving(t, r, why);
	if (p == PROBLEM_NONE && r->count == 1 && !t->item->framed && apply_page(l, t, r->gfn, changed))
		return PROBLEM_NONE;
	if (p == PROBLEM_NONE)
		p = check_gfns(l, t, r, &many, why);
	if (p == PROBLEM_NONE)
		p = check_frames(l, t, r, why);
	if ((p == PROBLEM_NONE && many) || work_is_over(l)) /* then what was found is void */
		p = check_work(l, t, r, why);
	if (p == PROBLEM_NONE && change_gfns(l, t, r, changed) != PW_OK)
		p = refuse_memory(why, "changing GFNs");
	if (p == PROBLEM_NONE && work_is_over(l))
		p = work_check(l, 0, why);
	return p;
}

/* Does the architecture have such an operation while the VM is in its state? */
static enum pw_problem check_vm_state(const struct target *t, struct refusal *why)
{
	const struct item *it = t->item;
	const struct vm *vm = t->vm;
	const char *rule;

	if (vm->state == VM_NORMAL)
		return refuse(why, PROBLEM_VM_TRANSITION, "%s needs a VM that is transient or secure: it is normal",
			      item_op_name(it));
	if (it->decided)
		return PROBLEM_NONE;
	if (it->framed && vm->leaving && vm->leaving->op)
		return refuse(why, PROBLEM_VM_TRANSITION,
			      "%s claims frames for a VM that is leaving: operation %s is running", item_op_name(it),
			      vm->leaving->op);
	if (it->vm_op && it->vm_op->next[vm->arch_state] == ARCH_REFUSED)
		rule = it->vm_op->rule;
	else if (it->arch_op && !arch_op_fits_vm(it->arch_op, vm->arch_state))
		rule = it->arch_op->vms_rule;
	else
		return PROBLEM_NONE;
	refuse(why, PROBLEM_VM_TRANSITION, "%s of a VM that is %s (%s): %s", item_op_name(it), vm_arch_state(vm),
	       vm_state_name(vm->state), rule);
	if (why)
		why->arch_state = vm_arch_state(vm);
	return PROBLEM_VM_TRANSITION;
}

/* Who may be named by the item at all? */
static enum pw_problem check_target(const struct target *t, const struct host *h, struct refusal *why)
{
	char id[PW_UUID_TEXT];
	enum pw_problem p;

	if (!t->vm) {
		pw_uuid_format(&t->item->vm, id);
		p = refuse(why, PROBLEM_VM_NOT_FOUND, "there is no VM %s", id);
	} else if (t->vm->host != h) {
		pw_uuid_format(&t->vm->host->id, id);
		p = refuse(why, PROBLEM_VM_NOT_ON_HOST, "the VM is placed on host %s", id);
	} else if ((t->item->arch_op || t->item->vm_op) && t->item->arch_law != arch_laws[t->vm->arch]) {
		p = refuse(why, PROBLEM_ARCH_UNSUPPORTED, "%s is no operation of arch %s, which the VM has",
			   item_op_name(t->item), arch_name(t->vm->arch));
	} else {
		p = check_vm_state(t, why);
	}
	if (why && p != PROBLEM_NONE) {
		why->vm_state = t->vm ? t->vm->state : why->vm_state;
		why->vm = t->item->vm;
		why->host = t->vm ? t->vm->host->id : why->host;
	}
	return p;
}

static enum pw_problem find_target(const struct ledger *l, const struct host *h, const struct item *it,
				   struct target *t, struct refusal *why)
{
	enum pw_problem p;

	*t = (struct target){ .vm = ledger_vm(l, &it->vm), .item = it, .op = it->op };
	if (it->op == GFN_UNSHARE && it->framed)
		t->op = GFN_UNSHARE_IN;
	p = check_target(t, h, why);
	if (p == PROBLEM_NONE && it->framed)
		t->pool = host_pool(h, it->pool, &t->place);
	return p;
}

/* A step of the VM itself, which was checked. */
static enum pw_problem apply_vm_op(struct ledger *l, const struct target *t, bool *changed, struct refusal *why)
{
	struct vm *vm = t->vm;
	uint8_t next = t->item->vm_op->next[vm->arch_state];

	if (next == vm->arch_state || next == ARCH_REFUSED)
		return PROBLEM_NONE;
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof vm->arch_state)) != PW_OK)
		return refuse_memory(why, "changing the VM");
	undo_save(&l->undo, &vm->arch_state, sizeof vm->arch_state);
	vm->arch_state = next;
	*changed = true;
	return PROBLEM_NONE;
}

enum { AHEAD = 16 }; /* runs: so far ahead memory is asked for */

enum pw_problem ledger_apply(struct ledger *l, struct host *h, const struct item *it, bool *changed,
			     struct refusal *why)
{
	struct target t;
	undo_mark mark = ledger_mark(l);
	enum pw_problem p = find_target(l, h, it, &t, why);

	*changed = false;
	if (!it->decided)
		work_begin(l, it->run_count);
	if (p == PROBLEM_NONE && it->vm_op)
		p = apply_vm_op(l, &t, changed, why);
	for (size_t i = 0; p == PROBLEM_NONE && i < it->run_count; i++) {
		if (i + AHEAD < it->run_count)
			tree_prefetch(&t.vm->pages, it->runs[i + AHEAD].gfn);
		work_done(l, 1);
		p = apply_run(l, &t, &it->runs[i], changed, why);
	}
	work_end(l);
	if (p != PROBLEM_NONE) {
		ledger_rollback(l, mark);
		*changed = false;
		if (why)
			why->op = item_op_name(it);
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
