#include "agents/snp_pages.h"

static struct snp_act act_on(void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t count)
{
	return (struct snp_act){ .h = model, .g = vm->guest, .gfn = gfn, .end = gfn + count };
}

static enum pw_status machine_snp_open(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem,
				       void **model, struct pw_err *err)
{
	struct snp_host *h;
	enum pw_status st = snp_host_open(x, pool, mem, &h, err);

	if (st == PW_OK)
		*model = h;
	return st;
}

static void machine_snp_close(void *model)
{
	snp_host_close(model);
}

/* Its pages are what init_done makes of pages that are left over, if the VM is past that. */
static enum pw_status machine_snp_slot_add(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	struct snp_act a = act_on(model, vm, s->base, s->pages);
	enum pw_status st = PW_OK;

	if (s->base + s->pages > SNP_GFNS)
		return pw_fail(err, PW_BACKEND,
			       "slot %" PRIu32 " (GFN %" PRIu64 "+%" PRIu64
			       "): an RMP entry names GFNs below 2^39 (%s)",
			       s->number, s->base, s->pages, "LX struct rmpentry_raw");
	if (vm->state == VM_SECURE)
		st = snp_pages_reserve(a.h, s->pages, 1, err);
	if (st == PW_OK && vm->state == VM_SECURE)
		snp_pages_set(&a, s->base, s->pages, GPT_OUT);
	return st;
}

static enum pw_status machine_snp_vm_new(void *model, struct machine_vm *vm, struct pw_err *err)
{
	struct snp_host *h = model;
	struct snp_host_guest *g;
	enum pw_status st = PW_OK;

	for (size_t i = 0; st == PW_OK && i < vm->slot_count; i++)
		st = machine_snp_slot_add(model, vm, &vm->slots[i], err);
	if (st != PW_OK)
		return st;
	g = pw_mem_zalloc(h->mem, sizeof *g);
	if (!g)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a VM");
	tree_init(&g->pages, &h->nodes);
	g->next = h->guests;
	h->guests = g;
	vm->guest = g;
	return PW_OK;
}

static void machine_snp_vm_free(void *model, struct machine_vm *vm)
{
	struct snp_host *h = model;
	struct snp_host_guest *g = vm->guest, **at = &h->guests;

	while (*at != g)
		at = &(*at)->next;
	*at = g->next;
	snp_host_end(h, g);
	tree_release(&g->pages);
	snp_pages_trim(h);
	pw_mem_free(h->mem, g, sizeof *g);
	vm->guest = NULL;
}

/* Runs of the slot that are `from` become GPT_OUT. `count_only`: how many there are. */
static uint64_t seal(struct snp_act *a, enum gfn_state from, bool count_only)
{
	struct tree_run run;
	uint64_t n = 0;

	for (uint64_t at = a->gfn; at < a->end; at += run.count) {
		run = tree_run_at(&a->g->pages, at, a->end);
		if (snp_pages_state(run.entry) != from)
			continue;
		n++;
		if (!count_only)
			snp_pages_set(a, at, run.count, GPT_OUT);
	}
	return n;
}

static enum pw_status seal_reserve(struct snp_host *h, const struct machine_vm *vm, struct pw_err *err)
{
	uint64_t runs = 0, pages = 0;

	for (size_t i = 0; i < vm->slot_count; i++) {
		struct snp_act a = act_on(h, vm, vm->slots[i].base, vm->slots[i].pages);

		runs += seal(&a, GFN_NORMAL, true);
		pages += vm->slots[i].pages + (uint64_t)2 * TREE_FANOUT * TREE_LEVELS;
	}
	return snp_pages_reserve(h, pages, runs, err);
}

static enum pw_status finish_vm(struct snp_host *h, struct machine_vm *vm, struct pw_err *err)
{
	enum pw_status st = seal_reserve(h, vm, err);

	if (st == PW_OK)
		st = snp_host_finish(h, vm->guest, err);
	for (size_t i = 0; st == PW_OK && i < vm->slot_count; i++) {
		struct snp_act a = act_on(h, vm, vm->slots[i].base, vm->slots[i].pages);

		seal(&a, GFN_NORMAL, false);
	}
	snp_pages_trim(h);
	return st;
}

static enum pw_status end_vm(struct snp_host *h, struct machine_vm *vm, struct pw_err *err)
{
	struct snp_act a = act_on(h, vm, 0, TREE_PAGES);
	enum pw_status st = snp_host_room(h, err);
	struct tree_run run;

	if (st != PW_OK)
		return st;
	a.final = true;
	for (uint64_t at = 0; snp_pages_next_resident(&a, at, &run); at = run.first + run.count)
		snp_pages_end(&a, &run);
	tree_release(&a.g->pages);
	snp_host_end(h, a.g);
	snp_pages_trim(h);
	return PW_OK;
}

static enum pw_status machine_snp_event(void *model, struct machine_vm *vm, enum vm_event e, struct pw_err *err)
{
	switch (e) {
	case VM_INIT_START: return snp_host_start(model, vm->guest, err);
	case VM_INIT_DONE: return finish_vm(model, vm, err);
	case VM_INIT_ABORT:
	case VM_TERMINATE: return end_vm(model, vm, err);
	case VM_START:
	case VM_EVENT_COUNT: break;
	}
	return PW_OK;
}

static enum pw_status machine_snp_slot_remove(void *model, struct machine_vm *vm, const struct slot *s,
					      struct pw_err *err)
{
	struct snp_act a = act_on(model, vm, s->base, s->pages);

	return snp_pages_empty(&a, 0, err);
}

static enum pw_status machine_snp_page_in(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
					  const uint64_t *pfns, struct pw_err *err)
{
	struct snp_act a = act_on(model, vm, gfn, count);

	a.pfns = pfns;
	a.launching = vm->state == VM_TRANSIENT;
	return snp_pages_in(&a, err);
}

static enum pw_status machine_snp_page_out(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
					   struct pw_err *err)
{
	struct snp_act a = act_on(model, vm, gfn, count);
	size_t size = (size_t)count * sizeof *a.slots;
	enum pw_status st;

	a.slots = pw_mem_alloc(a.h->mem, size);
	if (!a.slots)
		return pw_fail(err, PW_NO_MEMORY, "no memory for %" PRIu64 " metadata entries", count);
	st = snp_pages_out(&a, err);
	pw_mem_free(a.h->mem, a.slots, size);
	return st;
}

static enum pw_status machine_snp_share(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
					struct pw_err *err)
{
	struct snp_act a = act_on(model, vm, gfn, count);

	return snp_pages_empty(&a, GPT_SHARED, err);
}

static enum pw_status machine_snp_unshare(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
					  struct pw_err *err)
{
	struct snp_act a = act_on(model, vm, gfn, count);
	enum pw_status st = snp_pages_reserve(a.h, count, seal(&a, GFN_NORMAL, true) + seal(&a, GFN_SHARED, true), err);

	if (st == PW_OK) {
		seal(&a, GFN_NORMAL, false);
		seal(&a, GFN_SHARED, false);
	}
	snp_pages_trim(a.h);
	return st;
}

static struct backend_run machine_snp_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end)
{
	const struct snp_host_guest *g = vm->guest;
	struct tree_run run = tree_run_at(&g->pages, gfn, end);
	enum gfn_state s = snp_pages_state(run.entry);

	return (struct backend_run){ .gfn = gfn,
				     .count = run.count,
				     .state = s,
				     .pfn = s == GFN_SECURE_RESIDENT ? run.entry & TREE_NUMBER : 0 };
}

/* Does the RMP say of the run what the VMM thinks? */
static bool resident_is_sound(const struct snp_host *h, const struct snp_host_guest *g, const struct tree_run *run)
{
	uint64_t pfn = run->entry & TREE_NUMBER;
	struct snp_run r;

	for (uint64_t done = 0; done < run->count; done += r.count) {
		r = snp_run_at(&h->m, pfn + done, pfn + run->count);
		if (r.state != SNP_GUEST_VALID || r.asid != g->asid || r.gfn != run->first + done)
			return false;
	}
	return pfn >= h->pool.base && pfn + run->count <= h->pool.base + h->pool.frames;
}

static bool slots_are_used(const struct snp_host_guest *g, const struct tree_run *run)
{
	uint64_t slot = run->entry & TREE_NUMBER;

	for (uint64_t end = slot + run->count; slot < end; slot++)
		if (slot / SNP_MD_SLOTS >= g->md_count || !(g->md[slot / SNP_MD_SLOTS].used >> slot % SNP_MD_SLOTS & 1))
			return false;
	return true;
}

static bool md_is_sound(const struct snp_host *h, const struct snp_host_guest *g, uint64_t swapped)
{
	uint64_t used = 0;

	for (size_t i = 0; i < g->md_count; i++) {
		used += (unsigned)__builtin_popcountll(g->md[i].used);
		if ((g->md[i].frame == 0) != (g->md[i].used == 0))
			return false;
		if (g->md[i].frame && snp_state(&h->m, g->md[i].frame) != SNP_METADATA)
			return false;
	}
	return used == swapped;
}

static bool guest_is_sound(const struct snp_host *h, const struct snp_host_guest *g)
{
	uint64_t resident = 0, swapped = 0;
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&g->pages, at, TREE_PAGES);
		if (snp_pages_state(run.entry) == GFN_SECURE_RESIDENT) {
			resident += run.count;
			if (!resident_is_sound(h, g, &run))
				return false;
		} else if (snp_pages_is_swapped(run.entry)) {
			swapped += run.count;
			if (!slots_are_used(g, &run))
				return false;
		}
	}
	if (g->asid && h->m.pages[g->asid] != resident + (g->vmsa ? 1 : 0) + g->lost)
		return false;
	return md_is_sound(h, g, swapped) && tree_check(&g->pages) && (g->asid || (!resident && !swapped));
}

static void machine_snp_figures(const void *model, backend_figure_fn fn, void *ctx)
{
	const struct snp_host *h = model;

	snp_trace_figures(&h->trace, fn, ctx);
}

static bool machine_snp_check(const void *model, struct pw_err *err)
{
	const struct snp_host *h = model;

	if (!snp_check(&h->m)) {
		pw_fail(err, PW_BACKEND, "the invariants of engine/arch/snp.h do not hold");
		return false;
	}
	for (const struct snp_host_guest *g = h->guests; g; g = g->next) {
		if (guest_is_sound(h, g))
			continue;
		pw_fail(err, PW_BACKEND, "the RMP and the pages of the guest with ASID %u differ", g->asid);
		return false;
	}
	return true;
}

const struct machine_model machine_snp = {
	.arch = "snp",
	.help = "AMD SEV-SNP: RMP, firmware commands and PVALIDATE, as KVM and QEMU drive them",
	.page_shift = 12,
	.default_frames = (uint64_t)1 << 20,
	.swaps = true,
	.open = machine_snp_open,
	.close = machine_snp_close,
	.vm_new = machine_snp_vm_new,
	.vm_free = machine_snp_vm_free,
	.event = machine_snp_event,
	.slot_add = machine_snp_slot_add,
	.slot_remove = machine_snp_slot_remove,
	.page_in = machine_snp_page_in,
	.page_out = machine_snp_page_out,
	.share = machine_snp_share,
	.unshare = machine_snp_unshare,
	.run_at = machine_snp_run_at,
	.figures = machine_snp_figures,
	.check = machine_snp_check,
};
