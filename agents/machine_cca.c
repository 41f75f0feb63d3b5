#include "agents/machine_cca.h"

#define OWN_GRANULES   ((uint64_t)16384) /* beside the pool; and one for each 16 frames */
#define FRAMES_PER_OWN 16
#define STRETCH        ((uint64_t)512)
#define HALF_PAGES     ((uint64_t)1 << 35) /* of 48-bit physical memory, and of the widest realm */

/* Power. */

static uint64_t lender_gives_back(void *ctx, uint64_t count)
{
	const struct cca_machine *k = ctx;

	return k->undoing ? count : machine_gives_back(k->x, count);
}

static void lender_kept(void *ctx, uint64_t addr, const char *why)
{
	const struct cca_machine *k = ctx;

	machine_keep(k->x, addr >> CCA_SHIFT, why);
}

struct place {
	uint64_t base, granules; /* of all memory that can be delegated */
	uint64_t shared;
};

/* The host's own memory is behind the pool or before it, in its half of what 48 bits reach. */
static bool find_place(const struct machine_pool *pool, struct place *out)
{
	uint64_t own = OWN_GRANULES + pool->frames / FRAMES_PER_OWN, end = pool->base + pool->frames;
	uint64_t low = pool->base / HALF_PAGES * HALF_PAGES, high = low + HALF_PAGES;

	if (high > 2 * HALF_PAGES || end > high)
		return false;
	out->base = pool->base / STRETCH * STRETCH;
	if (end + own > high) {
		if (out->base - low < own + STRETCH)
			return false;
		out->base = (out->base - own) / STRETCH * STRETCH;
		out->granules = end - out->base;
	} else {
		out->granules = end + own - out->base;
	}
	out->shared = low ? 0 : HALF_PAGES;
	return true;
}

static enum pw_status power_on(struct cca_machine *k, const struct machine_pool *pool, const struct place *at)
{
	struct cca_config config = { .base = at->base << CCA_SHIFT,
				     .granules = at->granules,
				     .features0 = CCA_FEATURES0,
				     .rec_aux_count = CCA_AUX_MAX };
	struct cca_host_lender lender = { lender_gives_back, lender_kept, k };
	enum pw_status st = cca_init(&k->m, k->mem, &config);

	if (st != PW_OK)
		return st;
	k->shared = at->shared;
	arena_init(&k->arena, k->mem);
	st = cca_host_init(&k->h, &k->m, k->mem, config.base, config.granules, 1);
	if (st != PW_OK) {
		cca_release(&k->m);
		return st;
	}
	st = cca_host_lend(&k->h, pool->base << CCA_SHIFT, pool->frames, &lender);
	if (st != PW_OK) {
		cca_host_release(&k->h);
		cca_release(&k->m);
	}
	return st;
}

static enum pw_status cca_open(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem, void **model,
			       struct pw_err *err)
{
	struct cca_machine *k;
	struct place at;
	enum pw_status st;

	if (!find_place(pool, &at))
		return pw_fail(err, PW_INVALID,
			       "CCA: frames %" PRIu64 "+%" PRIu64 " leave no room for shared pages and the host's own "
			       "granules in 48 bits of physical memory",
			       pool->base, pool->frames);
	k = pw_mem_zalloc(mem, sizeof *k);
	if (!k)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a machine");
	k->x = x;
	k->mem = mem;
	st = power_on(k, pool, &at);
	if (st != PW_OK) {
		pw_mem_free(mem, k, sizeof *k);
		return pw_fail(err, st, "no memory for a machine");
	}
	*model = k;
	return PW_OK;
}

static void guest_free(struct cca_machine *k, struct cca_guest *g)
{
	struct cca_guest **at = &k->guests;

	while (*at != g)
		at = &(*at)->next;
	*at = g->next;
	tree_release(&g->booked);
	tree_release(&g->empty);
	pw_mem_free(k->mem, g, sizeof *g);
}

static void cca_close(void *model)
{
	struct cca_machine *k = model;

	while (k->guests)
		guest_free(k, k->guests);
	machine_cca_unpack(k);
	cca_host_release(&k->h);
	cca_release(&k->m);
	arena_release(&k->arena);
	pw_mem_free(k->mem, k, sizeof *k);
}

/* VMs. */

static enum pw_status slot_fits(const struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	uint64_t half = machine_cca_half(vm);

	if (s->base < half && s->pages <= half - s->base)
		return PW_OK;
	return pw_fail(err, PW_INVALID,
		       "slot %" PRIu32 " (GFN %" PRIu64 "+%" PRIu64
		       ") is not in the protected half of a realm of %u bits",
		       s->number, s->base, s->pages, machine_cca_width(vm));
}

static enum pw_status cca_vm_new(void *model, struct machine_vm *vm, struct pw_err *err)
{
	struct cca_machine *k = model;
	struct cca_guest *g;

	if (machine_cca_width(vm) < 32 || machine_cca_width(vm) > 48)
		return pw_fail(err, PW_INVALID,
			       "shared bit %u: a realm's is the highest of 32 to 48 address bits (RMM A5.2.1)",
			       vm->shared_bit);
	for (size_t i = 0; i < vm->slot_count; i++)
		if (slot_fits(vm, &vm->slots[i], err) != PW_OK)
			return PW_INVALID;
	g = pw_mem_zalloc(k->mem, sizeof *g);
	if (!g)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a VM");
	*g = (struct cca_guest){ .next = k->guests, .vm = vm };
	tree_init(&g->booked, &k->arena);
	tree_init(&g->empty, &k->arena);
	k->guests = g;
	vm->guest = g;
	return PW_OK;
}

static void cca_vm_free(void *model, struct machine_vm *vm)
{
	guest_free(model, vm->guest);
	vm->guest = NULL;
}

/* Slots. */

static enum pw_status cca_slot_add(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	struct cca_guest *g = vm->guest;
	enum pw_status st = slot_fits(vm, s, err);

	return st == PW_OK && g->r ? machine_cca_init_slot(model, g, s, err) : st;
}

/* Events. */

static bool vmid_is_used(const struct cca_machine *k, unsigned vmid)
{
	return k->m.vmids[vmid / 64] >> vmid % 64 & 1;
}

/* Takes all that is the realm's, whatever EL3 keeps (LEAK-1). */
static enum pw_status realm_end(struct cca_machine *k, struct cca_guest *g, struct pw_err *err)
{
	enum cca_host_code code = CCA_HOST_OK;
	enum pw_status st = PW_OK;

	if (!g->r)
		return PW_OK;
	for (size_t i = 0; i < g->vm->slot_count && st == PW_OK && code == CCA_HOST_OK && !g->r->gone; i++) {
		uint64_t at = g->vm->slots[i].base, end = at + g->vm->slots[i].pages;

		for (struct cca_now now; at < end && st == PW_OK && code == CCA_HOST_OK; at += now.count) {
			now = machine_cca_now_at(k, g, at, end);
			if (!now.resident)
				continue;
			st = cca_host_unmap_lent(g->r, at << CCA_SHIFT, now.count, &code);
			if (st == PW_OK && code == CCA_HOST_OK)
				st = cca_host_put_lent(&k->h, now.pfn << CCA_SHIFT, now.count);
		}
	}
	if (st == PW_OK && code == CCA_HOST_OK)
		st = cca_host_realm_end(g->r, &code);
	if (st != PW_OK || code != CCA_HOST_OK)
		return machine_cca_answer(k, st, code, "REALM_DESTROY", err);
	g->r = NULL;
	machine_cca_book_close(k, g);
	return PW_OK;
}

static enum pw_status init_start(struct cca_machine *k, struct cca_guest *g, struct pw_err *err)
{
	struct cca_host_wish wish = { .ipa_bits = machine_cca_width(g->vm), .hash = CCA_SHA256 };
	enum cca_host_code code;
	struct pw_err undone;
	enum pw_status st;
	unsigned vmid = 1;

	while (vmid < CCA_REALM_SLOTS && vmid_is_used(k, vmid))
		vmid++;
	if (vmid == CCA_REALM_SLOTS)
		return pw_fail(err, PW_BUSY, "REALM_CREATE: no VMID is free");
	wish.vmid = (uint16_t)vmid;
	st = cca_host_realm_new(&k->h, &wish, &g->r, &code);
	st = machine_cca_answer(k, st, code, "REALM_CREATE", err);
	if (st != PW_OK)
		return st;
	for (size_t i = 0; i < g->vm->slot_count && st == PW_OK; i++)
		st = machine_cca_init_slot(k, g, &g->vm->slots[i], err);
	if (st == PW_OK) {
		machine_cca_plan_close(k, g);
	} else {
		machine_cca_unpack(k);
		(void)!realm_end(k, g, &undone);
	}
	return st;
}

/* A REC that was made stays for the next attempt: its realm would not let the same one be made again. */
static enum pw_status init_done(struct cca_machine *k, struct cca_guest *g, struct pw_err *err)
{
	enum cca_host_code code = CCA_HOST_OK;
	enum pw_status st = g->r->rec_count ? PW_OK : cca_host_rec_new(g->r, 0, true, &code);

	st = machine_cca_answer(k, st, code, "REC_CREATE", err);
	if (st != PW_OK)
		return st;
	st = cca_host_activate(g->r, &code);
	st = machine_cca_answer(k, st, code, "REALM_ACTIVATE", err);
	if (st == PW_OK)
		machine_cca_book_close(k, g);
	return st;
}

static enum pw_status cca_event(void *model, struct machine_vm *vm, enum vm_event e, struct pw_err *err)
{
	struct cca_machine *k = model;
	enum pw_status st = e == VM_INIT_START || e == VM_INIT_DONE ? machine_cca_pack(k, err) : PW_OK;

	if (st != PW_OK)
		return st;
	switch (e) {
	case VM_INIT_START: return init_start(k, vm->guest, err);
	case VM_INIT_DONE: return init_done(k, vm->guest, err);
	case VM_INIT_ABORT:
	case VM_TERMINATE:
		st = realm_end(k, vm->guest, err);
		if (st != PW_NO_MEMORY)
			return st;
		machine_cca_unpack(k);
		return realm_end(k, vm->guest, err);
	case VM_START:
	case VM_EVENT_COUNT: break;
	}
	return PW_OK;
}

/* Invariants. */

/* L9, and that nothing is booked once the realm itself says it. */
static bool check_guest(const struct cca_machine *k, const struct cca_guest *g, struct pw_err *err)
{
	struct cca_now now;

	for (size_t i = 0; i < g->vm->slot_count && g->r; i++) {
		uint64_t at = g->vm->slots[i].base, end = at + g->vm->slots[i].pages;

		for (; at < end; at += now.count) {
			now = machine_cca_now_at(k, g, at, end);
			if (!cca_aliases_clash(now.entry, now.shared ? CCA_ASSIGNED_NS : CCA_UNASSIGNED_NS))
				continue;
			(void)pw_fail(err, PW_CONFLICT, "L9: both aliases of GFN %" PRIu64 " are mapped", at);
			return false;
		}
	}
	if (g->r && g->r->state == CCA_NEW)
		return true;
	if (tree_run_at(&g->booked, 0, TREE_PAGES).count == TREE_PAGES && !tree_get(&g->booked, 0))
		return true;
	(void)pw_fail(err, PW_CONFLICT, "the host's books are kept past the realm's activation");
	return false;
}

static bool cca_machine_check(const void *model, struct pw_err *err)
{
	const struct cca_machine *k = model;

	for (const struct cca_guest *g = k->guests; g; g = g->next)
		if (!check_guest(k, g, err))
			return false;
	return cca_check(&k->m, err) && cca_host_check(&k->h, err);
}

const struct machine_model machine_cca = {
	.arch = "cca",
	.help = "an exact model of an Arm host with a Realm Management Monitor",
	.page_shift = CCA_SHIFT,
	.default_frames = (uint64_t)1 << 20,
	.swaps = false,
	.open = cca_open,
	.close = cca_close,
	.vm_new = cca_vm_new,
	.vm_free = cca_vm_free,
	.event = cca_event,
	.slot_add = cca_slot_add,
	.slot_remove = machine_cca_slot_remove,
	.page_in = machine_cca_page_in,
	.page_out = machine_cca_page_out,
	.share = machine_cca_share,
	.unshare = machine_cca_unshare,
	.set_ripas = machine_cca_set_ripas,
	.is_empty = machine_cca_is_empty,
	.run_at = machine_cca_run_at,
	.check = cca_machine_check,
};
