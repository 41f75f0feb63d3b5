#include <string.h>

#include "agents/tdx_host.h"

#define LARGE ((uint64_t)TREE_FANOUT) /* pages of 2 MiB */

/* Pages that were alike before an op. */
struct was {
	uint64_t gfn, count;
	bool shared;
	struct tdx_run leaf;
};

/* A table that an op adds, takes out of the way of a 2 MiB page, or merges into one. */
struct table {
	uint64_t gfn;
	unsigned level;
	enum { TABLE_ADDED, TABLE_REMOVED, TABLE_MERGED } what;
};

/* One op on a range of pages, and what it takes to undo it. */
struct pages {
	struct tdx_host *h;
	struct tdx_guest *g;
	const struct machine_vm *vm; /* borrowed */
	struct tdx_td *td;           /* borrowed */
	uint64_t first, end;
	struct was *was; /* owned */
	size_t was_count, was_room;
	struct table *tables; /* owned; in order of their changes */
	size_t table_count, table_room;
	bool undoing; /* nothing is refused any more */
};

static uint64_t pages_of(unsigned level)
{
	return (uint64_t)1 << (TREE_BITS * level);
}

static enum pw_status call(struct pages *p, enum tdx_op op, uint64_t gfn, unsigned level, struct pw_err *err)
{
	return tdx_host_call(p->h, p->g, (struct tdx_call){ .op = op, .gpa = gfn << TDX_PAGE_SHIFT, .level = level },
			     err);
}

static bool grow(struct pw_mem *mem, void **at, size_t count, size_t *room, size_t size)
{
	size_t more = *room ? 2 * *room : 8;
	void *grown;

	if (count < *room)
		return true;
	grown = pw_mem_alloc(mem, more * size);
	if (!grown)
		return false;
	if (count)
		memcpy(grown, *at, count * size);
	pw_mem_free(mem, *at, *room * size);
	*at = grown;
	*room = more;
	return true;
}

/* An op begins: what is there? Whole 2 MiB pages are looked at, as one of them may have to be split. */

static struct was was_at(const struct tdx_td *td, uint64_t gfn, uint64_t end)
{
	struct was w = { .gfn = gfn, .leaf = tdx_run_at(td, gfn, end) };
	struct tree_run shared;

	w.count = w.leaf.count;
	if (tdx_sept_has_frame(w.leaf.state) || td->shared.root == 0)
		return w;
	shared = tree_run_at(&td->shared, gfn, gfn + w.count);
	w.count = shared.count;
	w.shared = shared.entry != 0;
	return w;
}

static void finish(struct pages *p)
{
	pw_mem_free(p->h->mem, p->was, p->was_room * sizeof *p->was);
	pw_mem_free(p->h->mem, p->tables, p->table_room * sizeof *p->tables);
}

static enum pw_status begin(struct pages *p, void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t count,
			    struct pw_err *err)
{
	uint64_t end = (gfn + count + LARGE - 1) / LARGE * LARGE;
	void *was;

	*p = (struct pages){ .h = model, .g = vm->guest, .vm = vm, .first = gfn, .end = gfn + count };
	tdx_host_ballast_take(p->h);
	p->td = tdx_host_td(p->h, p->g);
	if (!p->td)
		return pw_fail(err, PW_CONFLICT, "GFN 0x%" PRIx64 ": the VM has no TD", gfn);
	for (uint64_t at = gfn / LARGE * LARGE; at < end;) {
		struct was w = was_at(p->td, at, end);

		was = p->was;
		if (!grow(p->h->mem, &was, p->was_count, &p->was_room, sizeof w)) {
			finish(p);
			return pw_fail(err, PW_NO_MEMORY, "no memory for a change of %" PRIu64 " pages", count);
		}
		p->was = was;
		p->was[p->was_count++] = w;
		at += w.count;
	}
	return PW_OK;
}

/* Taking pages out: BLOCK, TRACK, REMOVE. */

typedef enum pw_status (*leaf_fn)(struct pages *p, const struct tdx_run *leaf, struct pw_err *err);

/* Each leaf of the range, which none of them leaves; fn may change the one that it is given. */
static enum pw_status each_leaf(struct pages *p, uint64_t first, uint64_t end, leaf_fn fn, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	struct tdx_run run;

	for (uint64_t at = first; at < end && st == PW_OK; at += run.count) {
		uint64_t size;

		run = tdx_run_at(p->td, at, end);
		size = pages_of(run.level);
		for (uint64_t i = 0; tdx_sept_has_frame(run.state) && i < run.count && st == PW_OK; i += size) {
			struct tdx_run leaf = { at + i, size, run.state, run.level, run.frame + i };

			st = fn(p, &leaf, err);
		}
	}
	return st;
}

static enum pw_status block_leaf(struct pages *p, const struct tdx_run *leaf, struct pw_err *err)
{
	if (tdx_sept_is_blocked(leaf->state))
		return PW_OK;
	return call(p, TDX_RANGE_BLOCK, leaf->first, leaf->level, err);
}

static enum pw_status remove_leaf(struct pages *p, const struct tdx_run *leaf, struct pw_err *err)
{
	struct tdx_call c = { .op = TDX_PAGE_REMOVE, .gpa = leaf->first << TDX_PAGE_SHIFT, .level = leaf->level };
	enum pw_status st;

	if (!p->undoing && machine_gives_back(p->h->machine, leaf->count) < leaf->count)
		c.busy = TDX_BUSY_SEPT_ENTRY;
	st = tdx_host_call(p->h, p->g, c, err);
	for (uint64_t i = 0; i < leaf->count && st == PW_OK; i++)
		st = tdx_host_call(p->h, p->g, (struct tdx_call){ .op = TDX_PAGE_WBINVD, .frame = leaf->frame + i },
				   err);
	return st;
}

static enum pw_status track(struct pages *p, struct pw_err *err)
{
	return tdx_host_runs(p->td) ? tdx_host_track(p->h, p->g, err) : PW_OK;
}

/* No 2 MiB page reaches over `gfn`. */
static enum pw_status split_at(struct pages *p, uint64_t gfn, struct pw_err *err)
{
	uint64_t frame, base = gfn / LARGE * LARGE;
	struct tdx_call c = { .op = TDX_PAGE_DEMOTE, .gpa = base << TDX_PAGE_SHIFT, .level = 1 };
	enum pw_status st;
	unsigned level;

	if (gfn == base || !tdx_sept_has_frame(tdx_leaf(p->td, gfn, &level, &frame)) || level == 0)
		return PW_OK;
	st = call(p, TDX_RANGE_BLOCK, base, 1, err);
	if (st == PW_OK)
		st = track(p, err);
	return st == PW_OK ? tdx_host_call_control(p->h, p->g, c, NULL, err) : st;
}

static bool has_leaf(const struct tdx_td *td, uint64_t first, uint64_t end)
{
	struct tdx_run run;

	for (uint64_t at = first; at < end; at += run.count) {
		run = tdx_run_at(td, at, end);
		if (tdx_sept_has_frame(run.state))
			return true;
	}
	return false;
}

static enum pw_status take_out(struct pages *p, uint64_t first, uint64_t end, struct pw_err *err)
{
	enum pw_status st;

	if (!has_leaf(p->td, first, end))
		return PW_OK;
	st = split_at(p, first, err);
	if (st == PW_OK)
		st = split_at(p, end, err);
	if (st == PW_OK)
		st = each_leaf(p, first, end, block_leaf, err);
	if (st == PW_OK)
		st = track(p, err);
	return st == PW_OK ? each_leaf(p, first, end, remove_leaf, err) : st;
}

/* Putting pages in. */

static enum pw_status entry_at(const struct pages *p, uint64_t gfn, unsigned level, enum tdx_sept *s,
			       struct pw_err *err)
{
	uint64_t base = gfn / pages_of(level) * pages_of(level);

	if (tdx_entry(p->td, base << TDX_PAGE_SHIFT, level, s))
		return PW_OK;
	return pw_fail(err, PW_BACKEND, "GFN 0x%" PRIx64 " has no secure EPT entry of level %u", base, level);
}

static enum pw_status note_table(struct pages *p, struct table t, struct pw_err *err)
{
	void *at = p->tables;

	if (!grow(p->h->mem, &at, p->table_count, &p->table_room, sizeof *p->tables))
		return pw_fail(err, PW_NO_MEMORY, "no memory for a table of the secure EPT");
	p->tables = at;
	p->tables[p->table_count++] = t;
	return PW_OK;
}

static enum pw_status add_table(struct pages *p, uint64_t gfn, unsigned level, struct pw_err *err)
{
	struct tdx_call c = { .op = TDX_SEPT_ADD, .gpa = gfn << TDX_PAGE_SHIFT, .level = level };

	return tdx_host_call_control(p->h, p->g, c, NULL, err);
}

static enum pw_status remove_table(struct pages *p, uint64_t gfn, unsigned level, struct pw_err *err)
{
	enum pw_status st = call(p, TDX_RANGE_BLOCK, gfn, level, err);

	if (st == PW_OK)
		st = track(p, err);
	if (st == PW_OK)
		st = call(p, TDX_SEPT_REMOVE, gfn, level, err);
	if (st == PW_OK)
		tdx_host_control_is_free(p->h, p->h->last.frame);
	return st;
}

/* Tables down to where a page of `level` goes; an empty one in the place of a large page goes away. */
static enum pw_status make_way(struct pages *p, uint64_t gfn, unsigned level, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	enum tdx_sept s;

	for (unsigned l = p->td->levels - 1; l > level && st == PW_OK; l--) {
		uint64_t base = gfn / pages_of(l) * pages_of(l);

		st = entry_at(p, base, l, &s, err);
		if (st != PW_OK || s != TDX_FREE)
			continue;
		st = note_table(p, (struct table){ base, l, TABLE_ADDED }, err);
		if (st == PW_OK)
			st = add_table(p, base, l, err);
	}
	if (st == PW_OK && level > 0)
		st = entry_at(p, gfn, level, &s, err);
	if (st != PW_OK || level == 0 || s == TDX_FREE)
		return st;
	st = note_table(p, (struct table){ gfn, level, TABLE_REMOVED }, err);
	return st == PW_OK ? remove_table(p, gfn, level, err) : st;
}

static enum pw_status map_page(struct pages *p, uint64_t gfn, unsigned level, uint64_t frame, struct pw_err *err)
{
	struct tdx_call c = { .op = TDX_PAGE_ADD,
			      .gpa = gfn << TDX_PAGE_SHIFT,
			      .level = level,
			      .frame = frame,
			      .source = p->h->control.first };
	enum pw_status st;

	if (!tdx_host_runs(p->td))
		return tdx_host_call(p->h, p->g, c, err);
	c.op = TDX_PAGE_AUG;
	st = tdx_host_call(p->h, p->g, c, err);
	return st == PW_OK ? call(p, TDX_ACCEPT, gfn, level, err) : st;
}

/* Does a 2 MiB page at `base` stay inside one slot, as KVM wants it? */
static bool fits_slot(const struct machine_vm *vm, uint64_t base)
{
	size_t low = 0, high = vm->slot_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (vm->slots[mid].base + vm->slots[mid].pages <= base)
			low = mid + 1;
		else
			high = mid;
	}
	return low < vm->slot_count && vm->slots[low].base <= base &&
	       base + LARGE <= vm->slots[low].base + vm->slots[low].pages;
}

/* A 2 MiB page, once the guest runs: TDH.MEM.PAGE.ADD knows 4 KiB alone. */
static bool goes_large(const struct pages *p, uint64_t gfn, uint64_t left, const uint64_t *pfns)
{
	if (!tdx_host_runs(p->td) || gfn % LARGE || left < LARGE || pfns[0] % LARGE || !fits_slot(p->vm, gfn))
		return false;
	for (uint64_t i = 1; i < LARGE; i++)
		if (pfns[i] != pfns[0] + i)
			return false;
	return true;
}

static enum pw_status merge(struct pages *p, uint64_t gfn, struct pw_err *err)
{
	enum pw_status st = call(p, TDX_RANGE_BLOCK, gfn, 1, err);

	if (st == PW_OK)
		st = track(p, err);
	if (st == PW_OK)
		st = call(p, TDX_PAGE_PROMOTE, gfn, 1, err);
	if (st == PW_OK)
		tdx_host_control_is_free(p->h, p->h->last.frame);
	return st;
}

/* The small pages around `gfn` become a large one if they can. */
static enum pw_status merge_around(struct pages *p, uint64_t gfn, struct pw_err *err)
{
	uint64_t base = gfn / LARGE * LARGE;
	struct tdx_run run = tdx_run_at(p->td, base, base + LARGE);
	enum pw_status st;

	if (!tdx_host_runs(p->td) || run.level || run.state != TDX_MAPPED || run.count < LARGE || run.frame % LARGE ||
	    !fits_slot(p->vm, base))
		return PW_OK;
	st = note_table(p, (struct table){ base, 1, TABLE_MERGED }, err);
	return st == PW_OK ? merge(p, base, err) : st;
}

static enum pw_status put_in(struct pages *p, const uint64_t *pfns, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	uint64_t n;

	for (uint64_t gfn = p->first; gfn < p->end && st == PW_OK; gfn += n) {
		const uint64_t *at = pfns + (gfn - p->first);
		unsigned level = goes_large(p, gfn, p->end - gfn, at) ? 1 : 0;

		n = LARGE - gfn % LARGE < p->end - gfn ? LARGE - gfn % LARGE : p->end - gfn;
		st = make_way(p, gfn, level, err);
		for (uint64_t i = 0; i < n && st == PW_OK; i += pages_of(level))
			st = map_page(p, gfn + i, level, at[i] - p->h->shift, err);
		if (st == PW_OK && level == 0)
			st = merge_around(p, gfn, err);
	}
	return st;
}

/* The first pages that a TD gets are its firmware: they are extended into MRTD, 256 bytes a call. */
static enum pw_status measure(struct pages *p, struct pw_err *err)
{
	uint64_t left = TDX_HOST_MEASURED - p->g->measured, n = p->end - p->first < left ? p->end - p->first : left;
	enum pw_status st = PW_OK;

	if (tdx_host_runs(p->td))
		return PW_OK;
	for (uint64_t i = 0; i < n && st == PW_OK; i++) {
		struct tdx_call c = { .op = TDX_MR_EXTEND, .gpa = (p->first + i) << TDX_PAGE_SHIFT };

		for (; c.gpa < (p->first + i + 1) << TDX_PAGE_SHIFT && st == PW_OK; c.gpa += 256)
			st = tdx_host_call(p->h, p->g, c, err);
	}
	p->g->measured += st == PW_OK ? n : 0;
	return st;
}

/* Undoing: the secure EPT is brought back to what it was, whatever it is now. */

static enum pw_status put_back_small(struct pages *p, uint64_t gfn, uint64_t frame, struct pw_err *err)
{
	enum tdx_sept s;
	enum pw_status st = entry_at(p, gfn, 0, &s, err);

	if (st == PW_OK && s == TDX_FREE)
		return map_page(p, gfn, 0, frame, err);
	return st == PW_OK && tdx_sept_is_blocked(s) ? call(p, TDX_RANGE_UNBLOCK, gfn, 0, err) : st;
}

static enum pw_status put_back_merged(struct pages *p, uint64_t gfn, uint64_t frame, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (uint64_t i = 0; i < LARGE && st == PW_OK; i++)
		st = put_back_small(p, gfn + i, frame + i, err);
	return st == PW_OK ? merge(p, gfn, err) : st;
}

static enum pw_status put_back(struct pages *p, const struct tdx_run *leaf, struct pw_err *err)
{
	enum tdx_sept s = TDX_FREE;
	enum pw_status st;

	if (leaf->level == 0)
		return put_back_small(p, leaf->first, leaf->frame, err);
	st = entry_at(p, leaf->first, leaf->level, &s, err);
	if (st == PW_OK && tdx_sept_is_blocked(s))
		st = call(p, TDX_RANGE_UNBLOCK, leaf->first, leaf->level, err);
	if (st == PW_OK && s == TDX_FREE)
		return map_page(p, leaf->first, leaf->level, leaf->frame, err);
	if (st == PW_OK && (s == TDX_NL_MAPPED || s == TDX_NL_BLOCKED))
		return put_back_merged(p, leaf->first, leaf->frame, err);
	return st;
}

static enum pw_status put_back_all(struct pages *p, const struct was *w, struct pw_err *err)
{
	uint64_t size = pages_of(w->leaf.level);
	enum pw_status st = PW_OK;

	for (uint64_t i = 0; i < w->count && st == PW_OK; i += size) {
		struct tdx_run leaf = { w->gfn + i, size, w->leaf.state, w->leaf.level, w->leaf.frame + i };

		st = put_back(p, &leaf, err);
	}
	return st;
}

static enum pw_status put_back_table(struct pages *p, const struct table *t, struct pw_err *err)
{
	enum tdx_sept s;
	enum pw_status st = entry_at(p, t->gfn, t->level, &s, err);

	if (st != PW_OK || t->what == TABLE_MERGED || (t->what == TABLE_ADDED) == (s == TDX_FREE))
		return st;
	return s == TDX_FREE ? add_table(p, t->gfn, t->level, err) : remove_table(p, t->gfn, t->level, err);
}

/* A table that is blocked hides what is below it. */
static enum pw_status unblock_table(struct pages *p, const struct table *t, struct pw_err *err)
{
	enum tdx_sept s;
	enum pw_status st = entry_at(p, t->gfn, t->level, &s, err);

	return st == PW_OK && s == TDX_NL_BLOCKED ? call(p, TDX_RANGE_UNBLOCK, t->gfn, t->level, err) : st;
}

/* Stretches without pages as wholes: a 2 MiB page may be where there were several kinds of them. */
static enum pw_status empty_again(struct pages *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0, k; i < p->was_count && st == PW_OK; i = k + 1) {
		for (k = i; k < p->was_count && !tdx_sept_has_frame(p->was[k].leaf.state);)
			k++;
		if (k > i)
			st = take_out(p, p->was[i].gfn, p->was[k - 1].gfn + p->was[k - 1].count, err);
	}
	return st;
}

static enum pw_status restore(struct pages *p, struct pw_err *err)
{
	enum pw_status st;

	p->undoing = true;
	tdx_host_ballast_drop(p->h);
	st = track(p, err); /* what is blocked can be unblocked */
	for (size_t i = p->table_count; i-- > 0 && st == PW_OK;)
		st = unblock_table(p, &p->tables[i], err);
	if (st == PW_OK)
		st = empty_again(p, err);
	for (size_t i = p->table_count; i-- > 0 && st == PW_OK;)
		st = put_back_table(p, &p->tables[i], err);
	for (size_t i = 0; i < p->was_count && st == PW_OK; i++) {
		if (tdx_sept_has_frame(p->was[i].leaf.state))
			st = put_back_all(p, &p->was[i], err);
		else if (p->was[i].shared)
			st = tdx_map_shared(&p->h->module, p->td, p->was[i].gfn, p->was[i].count, err);
	}
	tdx_host_ballast_take(p->h);
	return st;
}

/* An op ends: kept, or undone. */
static enum pw_status conclude(struct pages *p, enum pw_status st, struct pw_err *err)
{
	struct pw_err worse = { 0 };

	if (st != PW_OK && restore(p, &worse) != PW_OK)
		pw_wrap(err, "could not be undone (%.80s)", worse.msg);
	finish(p);
	return st;
}

/* The ops. */

static enum pw_status unmap_shared(struct pages *p, struct pw_err *err)
{
	if (p->td->shared.root == 0)
		return PW_OK;
	return tdx_unmap_shared(&p->h->module, p->td, p->first, p->end - p->first, err);
}

enum pw_status tdx_host_page_in(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, const uint64_t *pfns,
				struct pw_err *err)
{
	struct pages p;
	enum pw_status st = begin(&p, model, vm, gfn, count, err);

	if (st != PW_OK)
		return st;
	if (tdx_host_runs(p.td))
		st = tdx_host_enter(p.h, p.g, err);
	if (st == PW_OK)
		st = unmap_shared(&p, err);
	if (st == PW_OK)
		st = put_in(&p, pfns, err);
	if (st == PW_OK)
		st = measure(&p, err);
	return conclude(&p, st, err);
}

/* Room to say of pages, without fail, whether they are private. */
static enum pw_status mark_reserve(struct tdx_host *h, struct pw_err *err)
{
	return arena_reserve(&h->nodes) == PW_OK ? PW_OK : pw_fail(err, PW_NO_MEMORY, "no memory to mark pages");
}

static enum pw_status mark(struct pages *p, uint64_t entry, struct pw_err *err)
{
	if (tdx_host_runs(p->td))
		return PW_OK; /* every page that is not shared is private */
	if (tree_set(&p->g->private, p->first, p->end - p->first, entry) == PW_OK)
		return PW_OK;
	return pw_fail(err, PW_NO_MEMORY, "no memory to mark pages");
}

enum pw_status tdx_host_page_out(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	struct pages p;
	enum pw_status st = begin(&p, model, vm, gfn, count, err);

	if (st != PW_OK)
		return st;
	st = mark_reserve(p.h, err);
	if (st == PW_OK)
		st = take_out(&p, gfn, gfn + count, err);
	if (st == PW_OK)
		st = mark(&p, 1, err);
	return conclude(&p, st, err);
}

enum pw_status tdx_host_share(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	struct pages p;
	enum pw_status st = begin(&p, model, vm, gfn, count, err);

	if (st != PW_OK)
		return st;
	st = take_out(&p, gfn, gfn + count, err);
	if (st == PW_OK)
		st = tdx_map_shared(&p.h->module, p.td, gfn, count, err);
	return conclude(&p, st, err);
}

enum pw_status tdx_host_unshare(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	struct pages p;
	enum pw_status st = begin(&p, model, vm, gfn, count, err);

	if (st != PW_OK)
		return st;
	st = mark_reserve(p.h, err);
	if (st == PW_OK)
		st = unmap_shared(&p, err);
	if (st == PW_OK)
		st = mark(&p, 1, err);
	return conclude(&p, st, err);
}

enum pw_status tdx_host_slot_remove(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	struct pages p;
	enum pw_status st;

	if (!tdx_host_td(model, vm->guest))
		return PW_OK;
	st = begin(&p, model, vm, s->base, s->pages, err);
	if (st != PW_OK)
		return st;
	st = mark_reserve(p.h, err);
	if (st == PW_OK)
		st = take_out(&p, p.first, p.end, err);
	if (st == PW_OK)
		st = unmap_shared(&p, err);
	if (st == PW_OK)
		st = mark(&p, 0, err);
	return conclude(&p, st, err);
}

/* FINALIZE: what PAGE.ADD made of small pages becomes large where it can. Before it, no page is large. */

static enum pw_status merge_run(struct pages *p, const struct tdx_run *run, struct pw_err *err)
{
	uint64_t end = run->first + run->count;
	enum pw_status st = PW_OK;

	if (run->state != TDX_MAPPED || (run->first ^ run->frame) % LARGE)
		return PW_OK;
	for (uint64_t at = (run->first + LARGE - 1) / LARGE * LARGE; at + LARGE <= end && st == PW_OK; at += LARGE) {
		st = call(p, TDX_PAGE_PROMOTE, at, 1, err);
		if (st == PW_OK)
			tdx_host_control_is_free(p->h, p->h->last.frame);
	}
	return st;
}

static enum pw_status split_run(struct pages *p, const struct tdx_run *run, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	if (!tdx_sept_has_frame(run->state) || run->level == 0)
		return PW_OK;
	for (uint64_t at = 0; at < run->count && st == PW_OK; at += LARGE)
		st = tdx_host_call_control(p->h, p->g,
					   (struct tdx_call){ .op = TDX_PAGE_DEMOTE,
							      .gpa = (run->first + at) << TDX_PAGE_SHIFT,
							      .level = 1 },
					   NULL, err);
	return st;
}

static enum pw_status each_run(struct pages *p, leaf_fn fn, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	struct tdx_run run;

	for (size_t i = 0; i < p->vm->slot_count; i++) {
		const struct slot *s = &p->vm->slots[i];

		for (uint64_t at = s->base; at < s->base + s->pages && st == PW_OK; at += run.count) {
			run = tdx_run_at(p->td, at, s->base + s->pages);
			st = fn(p, &run, err);
		}
	}
	return st;
}

enum pw_status tdx_host_finalize(void *model, struct machine_vm *vm, struct pw_err *err)
{
	struct pages p = { .h = model, .g = vm->guest, .vm = vm, .td = tdx_host_td(model, vm->guest) };
	struct pw_err worse = { 0 };
	enum pw_status st = each_run(&p, merge_run, err);

	if (st == PW_OK)
		st = tdx_host_call(p.h, p.g, (struct tdx_call){ .op = TDX_MR_FINALIZE }, err);
	if (st == PW_OK)
		return PW_OK;
	tdx_host_ballast_drop(p.h);
	if (each_run(&p, split_run, &worse) != PW_OK)
		pw_wrap(err, "could not be undone (%.80s)", worse.msg);
	tdx_host_ballast_take(p.h);
	return st;
}

/* Reading. */

/* The law's number of an entry's state, + 1; 0: at rest. */
static unsigned law_state(enum tdx_sept s)
{
	const struct arch_law *law = arch_laws[ARCH_TDX];
	unsigned n = arch_state_find(law, tdx_sept_name(s), GFN_SECURE_RESIDENT);

	return n == ARCH_REFUSED || n == law->rest[GFN_SECURE_RESIDENT] ? 0 : n + 1;
}

struct backend_run tdx_host_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end)
{
	const struct tdx_host *h = model;
	const struct tdx_guest *g = vm->guest;
	const struct tdx_td *td = tdx_host_td(h, g);
	struct backend_run out = { .gfn = gfn, .count = end - gfn, .state = GFN_NORMAL };
	struct tree_run run;
	struct was now;

	if (!td)
		return out;
	now = was_at(td, gfn, end);
	out.count = now.count;
	out.state = tdx_project(td, now.leaf.state, now.shared);
	if (out.state == GFN_SECURE_RESIDENT) {
		out.pfn = now.leaf.frame + h->shift;
		out.arch = law_state(now.leaf.state);
	}
	if (out.state != GFN_NORMAL)
		return out;
	run = tree_run_at(&g->private, gfn, gfn + out.count);
	out.count = run.count;
	if (run.entry)
		out.state = GFN_SECURE_OUT;
	return out;
}
