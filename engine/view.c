#include "engine/digest.h"
#include "engine/ledger_impl.h"

static const struct slot *slot_at_or_after(const struct vm *vm, uint64_t gfn)
{
	const struct slot *s = vm_slot_at(vm, gfn);
	size_t lo = 0, hi = vm->slot_count;

	if (s)
		return s;
	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (vm->slots[mid].base < gfn)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo < vm->slot_count ? &vm->slots[lo] : NULL;
}

static const char *arch_state_name(const struct vm *vm, uint64_t entry)
{
	const struct arch_law *law = arch_laws[vm->arch];

	return law ? law->states[gfn_arch_state(law, entry)].name : NULL;
}

bool vm_next_run(const struct vm *vm, uint64_t from, uint64_t end, struct gfn_view *out)
{
	const struct slot *s = slot_at_or_after(vm, from);
	struct tree_run run;

	if (!s || s->base >= end || from >= end)
		return false;
	if (from < s->base)
		from = s->base;
	if (end > s->base + s->pages)
		end = s->base + s->pages;
	run = tree_run_at(&vm->pages, from, end);
	*out = (struct gfn_view){ .gfn = run.first,
				  .count = run.count,
				  .state = gfn_entry_state(run.entry),
				  .arch = gfn_entry_arch(run.entry),
				  .arch_state = arch_state_name(vm, run.entry) };
	if (out->state == GFN_SECURE_RESIDENT) {
		out->pool = vm->host->pools[gfn_entry_place(run.entry)];
		out->pfn = run.entry & TREE_NUMBER;
	}
	return true;
}

static bool next_frames(const struct pool *p, uint64_t from, uint64_t end, uint64_t kinds, struct tree_run *out)
{
	struct tree_walk w = { .limit = UINT64_MAX };

	return tree_find_kind(&p->owners, from, end < TREE_PAGES ? end : TREE_PAGES, kinds, &w, out);
}

bool pool_next_owned(const struct ledger *l, const struct pool *p, uint64_t from, uint64_t end, struct frame_view *out)
{
	struct tree_run run;

	if (!next_frames(p, from, end, FRAME_KINDS_BOUND, &run))
		return false;
	*out = (struct frame_view){ .pfn = run.first,
				    .count = run.count,
				    .vm = ledger_vm_by_number(l, frame_entry_vm(run.entry)),
				    .gfn = run.entry & TREE_NUMBER };
	return true;
}

bool pool_next_bound(const struct ledger *l, const struct pool *p, uint64_t from, uint64_t end, struct frame_view *out)
{
	struct tree_run pages;

	if (!pool_next_owned(l, p, from, end, out))
		return false;
	pages = tree_run_at(&out->vm->pages, out->gfn, out->gfn + out->count);
	out->count = pages.count;
	out->arch_state = arch_state_name(out->vm, pages.entry);
	return true;
}

bool pool_next_quarantined(const struct ledger *l, const struct pool *p, uint64_t from, uint64_t end,
			   struct frame_view *out)
{
	const struct note *note;
	struct tree_run run;

	if (!next_frames(p, from, end, FRAME_KINDS_QUARANTINED, &run))
		return false;
	note = note_of(l, run.entry);
	*out = (struct frame_view){
		.pfn = run.first, .count = run.count, .reason = note->reason, .time_ms = note->time_ms
	};
	return true;
}

/* The pages of [from, end) that lie in slots. */
static uint64_t pages_of_slots(const struct vm *vm, uint64_t from, uint64_t end)
{
	const struct slot *s = slot_at_or_after(vm, from);
	uint64_t pages = 0;

	for (; s && s < vm->slots + vm->slot_count && s->base < end; s++)
		pages += (s->base + s->pages < end ? s->base + s->pages : end) - (s->base > from ? s->base : from);
	return pages;
}

bool vm_count_pages(const struct vm *vm, uint64_t from, uint64_t end, struct tree_walk *w, struct vm_counts *out)
{
	struct tree_sum s = tree_sum(&vm->pages, from, end, w);

	*out = (struct vm_counts){ .pages = { [GFN_SECURE_RESIDENT] = s.pages[0],
					      [GFN_SECURE_OUT] = s.pages[1],
					      [GFN_SHARED] = s.pages[2] } };
	out->pages[GFN_NORMAL] = pages_of_slots(vm, from, end) - s.pages[0] - s.pages[1] - s.pages[2];
	return !walk_is_over(w);
}

static uint64_t stir(uint64_t digest, uint64_t v)
{
	digest = (digest ^ v) * 0x9e3779b97f4a7c15u;
	return digest ^ digest >> 29;
}

uint64_t digest_run(uint64_t digest, const struct gfn_view *run)
{
	digest = stir(digest, run->gfn);
	digest = stir(digest, run->count);
	digest = stir(digest, (uint64_t)run->state | (uint64_t)run->arch << 8);
	if (run->state != GFN_SECURE_RESIDENT)
		return digest;
	for (const char *c = run->pool && !run->pool->host ? run->pool->name : ""; *c; c++)
		digest = stir(digest, (uint64_t)*c);
	return stir(digest, run->pfn);
}

uint64_t vm_digest(const struct vm *vm, uint64_t gfn, uint64_t count)
{
	uint64_t digest = DIGEST_SEED;
	struct gfn_view run;

	for (uint64_t at = gfn; vm_next_run(vm, at, gfn + count, &run); at = run.gfn + run.count)
		digest = digest_run(digest, &run);
	return digest;
}

/* Checking everything. */

/* Is the architecture's state of the VM one of the law's? */
static bool has_sound_arch_state(const struct vm *vm)
{
	const struct arch_law *law = arch_laws[vm->arch];

	if (!law || vm->state == VM_NORMAL)
		return vm->arch_state == 0;
	return vm->arch_state < law->vm_state_count && law->vm_states[vm->arch_state].is == vm->state;
}

static bool check_vm(const struct ledger *l, const struct vm *vm, struct pw_err *err)
{
	uint64_t pages[GFN_STATE_COUNT] = { 0 }, gap = 0, end = 0;
	struct gfn_view run;

	if (vm->state != VM_NORMAL && !vm->on_hardware)
		return pw_fail(err, PW_CONFLICT, "L5: a VM that is %s is not on hardware", vm_state_name(vm->state)),
		       false;
	for (size_t i = 0; i < vm->slot_count; i++) {
		if (vm->slots[i].base < end)
			return pw_fail(err, PW_CONFLICT, "L4: slots overlap at GFN %" PRIu64, vm->slots[i].base), false;
		end = vm->slots[i].base + vm->slots[i].pages;
	}
	for (uint64_t at = 0; vm_next_run(vm, at, TREE_PAGES, &run); at = run.gfn + run.count) {
		pages[run.state] += run.count;
		if (!vm_entry_is_sound(vm, tree_get(&vm->pages, run.gfn)))
			return pw_fail(err, PW_CONFLICT, "GFN %" PRIu64 " has a state that its architecture lacks",
				       run.gfn),
			       false;
		if (vm->state == VM_NORMAL && (run.state != GFN_NORMAL || run.arch))
			return pw_fail(err, PW_CONFLICT, "L3: GFN %" PRIu64 " of a normal VM is not normal", run.gfn),
			       false;
		if (vm->state == VM_SECURE && run.state == GFN_NORMAL)
			return pw_fail(err, PW_CONFLICT, "L3: GFN %" PRIu64 " of a secure VM is normal", run.gfn),
			       false;
		if (run.state == GFN_SECURE_RESIDENT && !run.pool)
			return pw_fail(err, PW_CONFLICT, "L2: GFN %" PRIu64 " has a frame of no pool", run.gfn), false;
		for (uint64_t i = 0; run.pool && i < run.count;) {
			struct tree_run owner = tree_run_at(&run.pool->owners, run.pfn + i, run.pfn + run.count);

			if (owner.entry != frame_entry(vm->number, run.gfn + i))
				return pw_fail(err, PW_CONFLICT,
					       "L2: GFN %" PRIu64 " has frame %" PRIu64 ", which is not its own",
					       run.gfn + i, run.pfn + i),
				       false;
			i += owner.count;
		}
	}
	for (size_t i = 0; i <= vm->slot_count; i++) {
		uint64_t gap_end = i < vm->slot_count ? vm->slots[i].base : TREE_PAGES;

		if (gap < gap_end) {
			struct tree_run r = tree_run_at(&vm->pages, gap, gap_end);

			if (r.entry || r.count < gap_end - gap)
				return pw_fail(err, PW_CONFLICT, "L4: a state outside of slots at or past GFN %" PRIu64,
					       gap),
				       false;
		}
		gap = i < vm->slot_count ? vm->slots[i].base + vm->slots[i].pages : TREE_PAGES;
	}
	if (!has_sound_arch_state(vm))
		return pw_fail(err, PW_CONFLICT, "L3: a %s VM is in its architecture's state %u",
			       vm_state_name(vm->state), vm->arch_state),
		       false;
	for (int s = 0; s < GFN_STATE_COUNT; s++)
		if (pages[s] != vm->counts.pages[s])
			return pw_fail(err, PW_CONFLICT,
				       "counts: %" PRIu64 " pages counted for state %d, there are %" PRIu64,
				       vm->counts.pages[s], s, pages[s]),
			       false;
	return (tree_check(&vm->pages) && tree_sums_check(&vm->pages) && ledger_vm_by_number(l, vm->number) == vm) ||
	       (pw_fail(err, PW_CONFLICT, "a VM's page tree is broken"), false);
}

/* Do the notes of a pool have all its frames in quarantine, and no others? */
static bool notes_are_sound(const struct ledger *l, const struct pool *p)
{
	uint64_t frames = 0, notes = 0;
	struct tree_walk w = { .limit = UINT64_MAX };
	struct tree_run run = { 0 };

	while (tree_find_kind(&p->owners, run.first + run.count, TREE_PAGES, FRAME_KINDS_QUARANTINED, &w, &run))
		if (!note_of(l, run.entry) || note_of(l, run.entry)->pool != p)
			return false;
	for (uint32_t i = 0; i < l->notes.capacity; i++) {
		const struct note *note = l->notes.places[i].note;

		frames += note && note->pool == p ? note->frames : 0;
		notes += note && note->pool == p && note->frames > 0;
	}
	return frames == p->quarantined && notes == p->notes;
}

static bool check_pool(const struct ledger *l, const struct pool *p, struct pw_err *err)
{
	uint64_t bound = 0, quarantined = 0;
	struct frame_view f;

	for (uint64_t at = 0; pool_next_owned(l, p, at, TREE_PAGES, &f); at = f.pfn + f.count) {
		bound += f.count;
		for (uint64_t i = 0; i < f.count;) {
			struct gfn_view g;

			if (!f.vm || !vm_next_run(f.vm, f.gfn + i, f.gfn + f.count, &g) || g.gfn != f.gfn + i ||
			    g.pool != p || g.pfn != f.pfn + i)
				return pw_fail(err, PW_CONFLICT, "L1: frame %" PRIu64 " of pool %s has no GFN",
					       f.pfn + i, p->name),
				       false;
			i += g.count;
		}
	}
	for (uint64_t at = 0; pool_next_quarantined(l, p, at, TREE_PAGES, &f); at = f.pfn + f.count)
		quarantined += f.count;
	if (bound != p->bound || quarantined != p->quarantined)
		return pw_fail(err, PW_CONFLICT, "counts: pool %s has %" PRIu64 " bound, counted %" PRIu64, p->name,
			       bound, p->bound),
		       false;
	if (!notes_are_sound(l, p))
		return pw_fail(err, PW_CONFLICT, "notes: pool %s has %" PRIu64 " frames in quarantine", p->name,
			       quarantined),
		       false;
	if (pool_has_past(p, p->base, p->frames))
		return pw_fail(err, PW_CONFLICT, "pool %s: frames outside of it are taken", p->name), false;
	return (tree_check(&p->owners) && tree_sums_check(&p->owners)) ||
	       (pw_fail(err, PW_CONFLICT, "the tree of pool %s is broken", p->name), false);
}

bool ledger_check(const struct ledger *l, struct pw_err *err)
{
	uint64_t vms = 0;

	for (size_t i = 0; i < l->vms.count; i++)
		if (!check_vm(l, l->vms.items[i], err))
			return false;
	for (size_t i = 0; i < l->pools.count; i++)
		if (!check_pool(l, l->pools.items[i], err))
			return false;
	for (size_t i = 0; i < l->hosts.count; i++) {
		const struct host *h = l->hosts.items[i];

		vms += h->vms;
		if (h->pools[0] && !check_pool(l, h->pools[0], err))
			return false;
	}
	return vms == l->vms.count ||
	       (pw_fail(err, PW_CONFLICT, "counts: hosts have %" PRIu64 " VMs, there are %zu", vms, l->vms.count),
		false);
}
