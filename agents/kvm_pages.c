#include "agents/kvm_machine.h"

#include <stdlib.h>
#include <string.h>

struct kvm_memory *machine_memory(const struct kvm_machine *m, uint64_t gfn, uint64_t count)
{
	for (size_t i = 0; i < m->memory_count; i++) {
		const struct slot *s = &m->memory[i]->slot;

		if (gfn >= s->base && gfn - s->base < s->pages)
			return count <= s->pages - (gfn - s->base) ? m->memory[i] : NULL;
	}
	return NULL;
}

static enum gfn_state state_of(uint64_t entry)
{
	if (entry & GFN_ENTRY_RESIDENT)
		return GFN_SECURE_RESIDENT;
	if (entry & GFN_ENTRY_OUT)
		return GFN_SECURE_OUT;
	return entry & GFN_ENTRY_SHARED ? GFN_SHARED : GFN_NORMAL;
}

enum gfn_state machine_gfn_state(const struct kvm_machine *m, uint64_t gfn)
{
	return state_of(tree_get(&m->pages, gfn));
}

static bool is_hidden(enum gfn_state s)
{
	return s == GFN_SECURE_RESIDENT || s == GFN_SECURE_OUT;
}

/* Double assignments on purpose: does another VM use this page of the file too? Then it is not ours to free (L6). */
static bool used_elsewhere(const struct kvm_machine *m, const struct kvm_memory *mem, uint64_t page)
{
	for (const struct kvm_machine *o = m->host->machines; o; o = o->next)
		for (size_t i = 0; o != m && i < o->memory_count; i++) {
			const struct kvm_memory *om = o->memory[i];
			enum gfn_state s;

			if (om->backing != mem->backing || page >= om->slot.pages)
				continue;
			s = machine_gfn_state(o, om->slot.base + page);
			if (s == GFN_SECURE_RESIDENT || s == GFN_SHARED)
				return true;
		}
	return false;
}

static enum pw_status punch(struct kvm_machine *m, struct kvm_memory *mem, uint64_t gfn, uint64_t count,
			    struct pw_err *err)
{
	const uint64_t page = gfn - mem->slot.base;
	enum pw_status st = PW_OK;

	if (mem->backing->users == 1)
		return memory_punch(mem, page, count, err);
	for (uint64_t i = 0; i < count && !st; i++)
		if (!used_elsewhere(m, mem, page + i))
			st = memory_punch(mem, page + i, 1, err);
	return st;
}

static enum pw_status memory_for(struct kvm_machine *m, uint64_t gfn, uint64_t count, struct kvm_memory **out,
				 struct pw_err *err)
{
	*out = count && count <= TREE_PAGES ? machine_memory(m, gfn, count) : NULL;
	if (!*out)
		return pw_fail(err, PW_INVALID, "gfn %" PRIu64 " and %" PRIu64 " more are not within one slot", gfn,
			       count ? count - 1 : 0);
	if (m->state == VM_NORMAL)
		return pw_fail(err, PW_CONFLICT, "gfn %" PRIu64 ": the VM is normal", gfn);
	return PW_OK;
}

/* ---- reserve ---- */

static enum pw_status read_frames(struct kvm_machine *m, struct kvm_memory *mem, uint64_t gfn, uint64_t count,
				  uint64_t *pfns, struct pw_err *err)
{
	struct memory_window w;
	enum pw_status st = memory_window_open(mem, gfn - mem->slot.base, count, &w, err);

	if (st)
		return st;
	st = memory_frames(&w, m->host->pagemap_fd, pfns, err);
	memory_window_close(&w);
	return st;
}

/* made[i] becomes true for pages that were not there before. */
static enum pw_status fill(struct kvm_memory *mem, uint64_t gfn, uint64_t count, bool *made, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (uint64_t i = 0; i < count && !st;) {
		const uint64_t page = gfn - mem->slot.base + i;
		struct presence p = memory_presence(mem, page, count - i);

		if (!p.present) {
			memset(&made[i], 1, (size_t)p.count);
			st = memory_fill(mem, page, p.count, err);
		}
		i += p.count;
	}
	return st;
}

enum pw_status pages_reserve(struct kvm_machine *m, uint64_t gfn, uint64_t count, uint64_t *pfns, struct pw_err *err)
{
	struct kvm_memory *mem;
	enum pw_status st = memory_for(m, gfn, count, &mem, err);
	bool *made;

	if (st)
		return st;
	made = calloc((size_t)count, sizeof(made[0]));
	if (!made)
		return pw_fail(err, PW_NO_MEMORY, "no memory to reserve %" PRIu64 " pages", count);
	st = fill(mem, gfn, count, made, err);
	if (!st)
		st = read_frames(m, mem, gfn, count, pfns, err);
	for (uint64_t i = 0; st && i < count; i++)
		if (made[i])
			(void)punch(m, mem, gfn + i, 1, NULL);
	free(made);
	return st;
}

void pages_unreserve(struct kvm_machine *m, uint64_t gfn, uint64_t count)
{
	struct kvm_memory *mem = machine_memory(m, gfn, count);
	const uint64_t end = gfn + count;

	while (mem && gfn < end) {
		struct tree_run r = tree_run_at(&m->pages, gfn, end);

		if (state_of(r.entry) == GFN_SECURE_OUT)
			(void)punch(m, mem, r.first, r.count, NULL);
		gfn = r.first + r.count;
	}
}

/* ---- changes: a plan of what differs, then steps that can fail and be undone, then steps that cannot fail ---- */

struct step {
	uint64_t gfn, count, old; /* the entry there was */
	enum gfn_state from, to;
};
struct plan {
	struct kvm_machine *m;
	struct kvm_memory *mem;
	enum gfn_op op;
	uint64_t gfn, count;
	const uint64_t *pfns;
	struct step *steps;
	size_t step_count, room;
	struct memory_window window; /* of the whole run; open if pages come in */
};

static enum pw_status plan_add(struct plan *p, const struct step *s, struct pw_err *err)
{
	if (p->step_count == p->room) {
		size_t room = p->room ? p->room * 2 : 8;
		struct step *steps = realloc(p->steps, room * sizeof(steps[0]));

		if (!steps)
			return pw_fail(err, PW_NO_MEMORY, "no memory for a change of %" PRIu64 " pages", p->count);
		p->steps = steps;
		p->room = room;
	}
	p->steps[p->step_count++] = *s;
	return PW_OK;
}

/* An op may come twice, after a lost reply. */
static enum pw_status is_done_already(const struct plan *p, const struct tree_run *r, bool *done, struct pw_err *err)
{
	const enum gfn_state s = state_of(r->entry);

	*done = p->op == GFN_PAGE_OUT && s == GFN_SECURE_OUT;
	if (p->op != GFN_UNSHARE_IN || s != GFN_SECURE_RESIDENT)
		return PW_OK;
	for (uint64_t i = 0; i < r->count; i++) {
		const uint64_t has = tree_entry_after(r->entry, i) & TREE_NUMBER;

		if (has != p->pfns[r->first + i - p->gfn])
			return pw_fail(err, PW_CONFLICT, "gfn %" PRIu64 " is resident in frame %" PRIu64 " already",
				       r->first + i, has);
	}
	*done = true;
	return PW_OK;
}

static enum pw_status plan_make(struct plan *p, struct pw_err *err)
{
	const uint64_t end = p->gfn + p->count;

	for (uint64_t at = p->gfn; at < end;) {
		const struct tree_run r = tree_run_at(&p->m->pages, at, end);
		struct step s = { .gfn = r.first, .count = r.count, .old = r.entry, .from = state_of(r.entry) };
		bool done;
		enum pw_status st = is_done_already(p, &r, &done, err);

		if (!st && !done && !gfn_step(s.from, p->op, &s.to))
			st = pw_fail(err, PW_CONFLICT, "gfn %" PRIu64 " is %s: no %s from there", r.first,
				     gfn_state_name(s.from), gfn_op_name(p->op));
		if (!st && !done && s.to != s.from)
			st = plan_add(p, &s, err);
		if (st)
			return st;
		at = r.first + r.count;
	}
	return PW_OK;
}

/* Whose content moves along? From shared (and to shared) it is lost, as real hardware loses it. */
static bool keeps_content(const struct step *s)
{
	return s->from != GFN_SHARED && s->to != GFN_SHARED;
}

static enum pw_status seal_step(struct plan *p, const struct step *s, struct pw_err *err)
{
	struct vault *v = &p->m->vault;
	enum pw_status st = PW_OK;

	for (uint64_t at = s->gfn, end = s->gfn + s->count; at < end && !st;) {
		struct presence there = memory_presence(p->mem, at - p->mem->slot.base, end - at);
		struct memory_window w;

		if (there.present) {
			st = memory_window_open(p->mem, at - p->mem->slot.base, there.count, &w, err);
			if (st)
				return st;
			for (uint64_t i = 0; i < there.count && !st; i++)
				if (s->from == GFN_SECURE_RESIDENT ||
				    !used_elsewhere(p->m, p->mem, at + i - p->mem->slot.base))
					st = vault_put(v, at + i, w.at + i * KVM_PAGE, err);
			memory_window_close(&w);
		}
		at += there.count;
	}
	return st;
}

static enum pw_status unseal_step(struct plan *p, const struct step *s, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	bool found;

	for (uint64_t i = 0; i < s->count && !st; i++)
		st = vault_get(&p->m->vault, s->gfn + i, p->window.at + (s->gfn + i - p->gfn) * KVM_PAGE, &found, err);
	return st;
}

/* The frames must be those that were reserved, which the ledger has claimed. */
static enum pw_status check_frames(struct plan *p, struct pw_err *err)
{
	uint64_t *now = calloc((size_t)p->count, sizeof(now[0]));
	enum pw_status st;

	if (!now)
		return pw_fail(err, PW_NO_MEMORY, "no memory to check %" PRIu64 " frames", p->count);
	st = memory_frames(&p->window, p->m->host->pagemap_fd, now, err);
	for (uint64_t i = 0; i < p->count && !st; i++)
		if (now[i] != p->pfns[i])
			st = pw_fail(err, PW_CONFLICT,
				     "gfn %" PRIu64 " has frame %" PRIu64 ", not %" PRIu64 " as reserved", p->gfn + i,
				     now[i], p->pfns[i]);
	free(now);
	return st;
}

/* What can fail in moving content. Nothing is visible to the guest or lost yet. */
static enum pw_status prepare_content(struct plan *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	if (p->op == GFN_UNSHARE_IN) {
		st = memory_window_open(p->mem, p->gfn - p->mem->slot.base, p->count, &p->window, err);
		if (!st)
			st = check_frames(p, err);
	}
	for (size_t i = 0; i < p->step_count && !st; i++) {
		const struct step *s = &p->steps[i];

		if (s->to == GFN_SECURE_OUT && keeps_content(s))
			st = seal_step(p, s, err);
		else if (s->to == GFN_SECURE_RESIDENT && s->from == GFN_SECURE_OUT)
			st = unseal_step(p, s, err);
	}
	return st;
}

static void undo_content(struct plan *p)
{
	for (size_t i = 0; i < p->step_count; i++)
		if (p->steps[i].to == GFN_SECURE_OUT)
			vault_drop(&p->m->vault, p->steps[i].gfn, p->steps[i].count);
}

static enum pw_status set_hidden(struct plan *p, const struct step *s, bool hide, struct pw_err *err)
{
	const uint64_t page = s->gfn - p->mem->slot.base;
	enum pw_status st;

	st = kvm_vm_set_private(&p->m->kvm, s->gfn << KVM_PAGE_SHIFT, s->count << KVM_PAGE_SHIFT, hide, err);
	if (st)
		return st;
	return hide ? memory_hide(p->mem, page, s->count, err) : memory_show(p->mem, page, s->count, err);
}

static void undo_hiding(struct plan *p, size_t steps)
{
	while (steps--) {
		const struct step *s = &p->steps[steps];

		if (is_hidden(s->from) != is_hidden(s->to))
			(void)set_hidden(p, s, is_hidden(s->from), NULL);
	}
}

static enum pw_status change_hiding(struct plan *p, struct pw_err *err)
{
	for (size_t i = 0; i < p->step_count; i++) {
		const struct step *s = &p->steps[i];
		enum pw_status st = PW_OK;

		if (is_hidden(s->from) != is_hidden(s->to))
			st = set_hidden(p, s, is_hidden(s->to), err);
		if (st) {
			undo_hiding(p, i + 1);
			return st;
		}
	}
	return PW_OK;
}

static enum pw_status set_entry(struct kvm_machine *m, uint64_t gfn, uint64_t count, uint64_t entry)
{
	enum pw_status st = arena_reserve(&m->host->arena);

	return st ? st : tree_set(&m->pages, gfn, count, entry);
}

static enum pw_status enter_frames(struct plan *p, const struct step *s)
{
	const uint64_t *pfns = &p->pfns[s->gfn - p->gfn];
	enum pw_status st = PW_OK;

	for (uint64_t i = 0, n; i < s->count && !st; i += n) {
		for (n = 1; i + n < s->count && pfns[i + n] == pfns[i] + n; n++)
			;
		st = set_entry(p->m, s->gfn + i, n, GFN_ENTRY_RESIDENT | pfns[i]);
	}
	return st;
}

/* The old runs need no more nodes than the arena was left with (see engine/tree.h). */
static void undo_entries(struct plan *p, size_t steps)
{
	while (steps--)
		(void)set_entry(p->m, p->steps[steps].gfn, p->steps[steps].count, p->steps[steps].old);
}

static enum pw_status change_entries(struct plan *p, struct pw_err *err)
{
	for (size_t i = 0; i < p->step_count; i++) {
		const struct step *s = &p->steps[i];
		enum pw_status st;

		if (s->to == GFN_SECURE_RESIDENT)
			st = enter_frames(p, s);
		else
			st = set_entry(p->m, s->gfn, s->count, s->to == GFN_SHARED ? GFN_ENTRY_SHARED : GFN_ENTRY_OUT);
		if (st) {
			undo_entries(p, i + 1);
			return pw_fail(err, st, "no memory to note %" PRIu64 " pages", p->count);
		}
	}
	return PW_OK;
}

/* Takes the pages that go out from the guest. */
static enum pw_status detach(struct plan *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < p->step_count && !st; i++)
		if (p->steps[i].to == GFN_SECURE_OUT)
			st = layout_hide(&p->m->layout, p->steps[i].gfn, p->steps[i].count, err);
	for (size_t i = 0; st && i < p->step_count; i++)
		if (p->steps[i].from != GFN_SECURE_OUT)
			layout_show(&p->m->layout, p->mem, p->steps[i].gfn, p->steps[i].count);
	return st;
}

/* The point of no return. PUNCH_HOLE of a range inside the file has no way to fail but memory, before it does anything.
 */
static enum pw_status finish(struct plan *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < p->step_count && !st; i++) {
		const struct step *s = &p->steps[i];
		const uint64_t page = s->gfn - p->mem->slot.base;

		if (s->from == GFN_SECURE_RESIDENT)
			memory_unlock(p->mem, page, s->count);
		if (s->to != GFN_SECURE_RESIDENT) {
			st = punch(p->m, p->mem, s->gfn, s->count, err);
		} else {
			if (s->from == GFN_SHARED)
				memset(p->window.at + (s->gfn - p->gfn) * KVM_PAGE, 0, (size_t)s->count * KVM_PAGE);
			memory_lock(p->mem, page, s->count);
		}
		if (s->from == GFN_SECURE_OUT)
			vault_drop(&p->m->vault, s->gfn, s->count);
		if (s->to != GFN_SECURE_OUT)
			layout_show(&p->m->layout, p->mem, s->gfn, s->count);
	}
	return st;
}

/* Host sight of a page that becomes shared opens a moment before its content is punched: mprotect can fail, and a
 * punch cannot be taken back. The vCPU stands still meanwhile, and the only reader would be this thread. */
static enum pw_status plan_run(struct plan *p, struct pw_err *err)
{
	enum pw_status st = prepare_content(p, err);

	if (st)
		goto fail_content;
	st = change_hiding(p, err);
	if (st)
		goto fail_content;
	st = change_entries(p, err);
	if (st)
		goto fail_hiding;
	st = detach(p, err);
	if (st)
		goto fail_entries;
	return finish(p, err);
fail_entries:
	undo_entries(p, p->step_count);
fail_hiding:
	undo_hiding(p, p->step_count);
fail_content:
	undo_content(p);
	return st;
}

enum pw_status pages_change(struct kvm_machine *m, enum gfn_op op, uint64_t gfn, uint64_t count, const uint64_t *pfns,
			    struct pw_err *err)
{
	struct plan p = { .m = m, .op = op, .gfn = gfn, .count = count, .pfns = pfns };
	enum pw_status st = memory_for(m, gfn, count, &p.mem, err);

	if (st)
		return st;
	st = plan_make(&p, err);
	if (!st && p.step_count)
		st = plan_run(&p, err);
	if (p.window.at)
		memory_window_close(&p.window);
	free(p.steps);
	arena_trim(&m->host->arena);
	return st;
}

/* ---- the whole VM ---- */

enum pw_status pages_drop_slot(struct kvm_machine *m, struct kvm_memory *mem, struct pw_err *err)
{
	const struct slot *s = &mem->slot;
	enum pw_status st =
		arena_reserve(&m->host->arena); /* so that nothing fails once the guest has lost the pages */

	if (!st)
		st = layout_hide(&m->layout, s->base, s->pages, err);
	if (!st)
		st = set_entry(m, s->base, s->pages, 0);
	if (st)
		return pw_fail(err, st, "slot %" PRIu32 " could not be taken away", s->number);
	memory_unlock(mem, 0, s->pages);
	vault_drop(&m->vault, s->base, s->pages);
	return punch(m, mem, s->base, s->pages, err);
}

enum pw_status pages_reset(struct kvm_machine *m, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < m->memory_count && !st; i++) {
		struct kvm_memory *mem = m->memory[i];
		const struct slot *s = &mem->slot;

		memory_unlock(mem, 0, s->pages);
		st = punch(m, mem, s->base, s->pages, err);
		if (!st)
			st = memory_show(mem, 0, s->pages, err);
		if (!st)
			st = kvm_vm_set_private(&m->kvm, s->base << KVM_PAGE_SHIFT, s->pages << KVM_PAGE_SHIFT, false,
						err);
		if (!st)
			layout_show(&m->layout, mem, s->base, s->pages);
	}
	if (st)
		return st;
	vault_release(&m->vault);
	tree_release(&m->pages);
	tree_init(&m->pages, &m->host->arena);
	arena_trim(&m->host->arena);
	return PW_OK;
}

/* ---- reading ---- */

struct reader {
	backend_run_fn fn;
	void *ctx;
	struct backend_run run; /* count 0: none yet */
	bool stopped;
};

static void emit(struct reader *r, const struct backend_run *run)
{
	struct backend_run *last = &r->run;
	bool more = last->count && last->state == run->state && last->gfn + last->count == run->gfn &&
		    (run->state != GFN_SECURE_RESIDENT || last->pfn + last->count == run->pfn);

	if (more) {
		last->count += run->count;
		return;
	}
	if (last->count && !r->stopped)
		r->stopped = !r->fn(r->ctx, last);
	*last = *run;
}

/* Resident as hardware has it: a page that is not there any more has lost its frame, and one that has moved (memfd
 * only) is read anew. */
static enum pw_status read_resident(struct kvm_machine *m, struct kvm_memory *mem, const struct tree_run *t,
				    struct reader *r, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (uint64_t i = 0; i < t->count && !r->stopped && !st;) {
		const uint64_t gfn = t->first + i;
		struct presence p = memory_presence(mem, gfn - mem->slot.base, t->count - i);
		struct backend_run run = { .gfn = gfn,
					   .count = p.count,
					   .state = p.present ? GFN_SECURE_RESIDENT : GFN_SECURE_OUT };

		if (p.present)
			run.pfn = tree_entry_after(t->entry, i) & TREE_NUMBER;
		if (p.present && !mem->backing->guest_memfd) {
			run.count = 1;
			st = read_frames(m, mem, gfn, 1, &run.pfn, err);
		}
		if (!st)
			emit(r, &run);
		i += run.count;
	}
	return st;
}

static enum pw_status read_slot(struct kvm_machine *m, struct kvm_memory *mem, uint64_t gfn, uint64_t end,
				struct reader *r, struct pw_err *err)
{
	const struct slot *s = &mem->slot;
	uint64_t at = gfn > s->base ? gfn : s->base;
	enum pw_status st = PW_OK;

	if (end > s->base + s->pages)
		end = s->base + s->pages;
	while (at < end && !r->stopped && !st) {
		const struct tree_run t = tree_run_at(&m->pages, at, end);
		const struct backend_run run = { .gfn = t.first, .count = t.count, .state = state_of(t.entry) };

		if (run.state == GFN_SECURE_RESIDENT)
			st = read_resident(m, mem, &t, r, err);
		else
			emit(r, &run);
		at = t.first + t.count;
	}
	if (!st && r->run.count && !r->stopped)
		r->stopped = !r->fn(r->ctx, &r->run);
	r->run.count = 0; /* a slot's edge ends a run */
	return st;
}

enum pw_status pages_read(struct kvm_machine *m, uint64_t gfn, uint64_t count, backend_run_fn fn, void *ctx,
			  struct pw_err *err)
{
	struct reader r = { .fn = fn, .ctx = ctx };
	uint64_t end = gfn < TREE_PAGES && count <= TREE_PAGES - gfn ? gfn + count : TREE_PAGES;
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < m->memory_count && !st && !r.stopped; i++) {
		const struct slot *s = &m->memory[i]->slot;

		if (s->base < end && gfn < s->base + s->pages)
			st = read_slot(m, m->memory[i], gfn, end, &r, err);
	}
	return st;
}
