#include "agents/machine.h"

#include "agents/tdx_host.h"

#define GIB              ((uint64_t)1 << 18) /* in pages */
#define MAX_PA           52
#define PFNS             ((uint64_t)1 << 30) /* that have room for HKID bits above them */
#define NARROW_BIT       47
#define WIDE_BIT         51
#define PAGES_BELOW(bit) ((uint64_t)1 << ((bit)-TDX_PAGE_SHIFT))

static uint64_t round_down(uint64_t n, uint64_t to)
{
	return n / to * to;
}

static uint64_t round_up(uint64_t n, uint64_t to)
{
	return (n + to - 1) / to * to;
}

/* The machine. */

static enum pw_status start_module(struct tdx_host *h, struct pw_err *err)
{
	uint64_t first = h->pool.base - h->shift, end = first + h->pool.frames;
	struct tdx_range holes[2];
	struct tdx_config c = { .tdmr = { { round_down(first, GIB), round_up(end, GIB) }, { 0 } },
				.tdmrs = 2,
				.reserved = holes,
				.first_hkid = 1,
				.last_hkid = TDX_HOST_HKIDS,
				.packages = TDX_HOST_PACKAGES,
				.max_pa = MAX_PA };

	if (c.tdmr[0].first < first)
		holes[c.reserveds++] = (struct tdx_range){ c.tdmr[0].first, first };
	if (end < c.tdmr[0].end)
		holes[c.reserveds++] = (struct tdx_range){ end, c.tdmr[0].end };
	h->control.first = c.tdmr[0].end + GIB; /* what lies past the pool is nobody's */
	h->control.end = h->control.first + TDX_HOST_CONTROL;
	h->control_hint = h->control.first + 1;
	c.tdmr[1] = h->control;
	return tdx_init(&h->module, h->mem, &c, err);
}

static enum pw_status tdx_open(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem, void **model,
			       struct pw_err *err)
{
	const uint64_t most = PFNS - TDX_HOST_CONTROL - 2 * GIB;
	struct tdx_host *h;
	enum pw_status st;

	if (pool->frames == 0 || pool->frames > most - GIB)
		return pw_fail(err, PW_INVALID, "a TDX host has 1 to %" PRIu64 " frames", most - GIB);
	h = pw_mem_zalloc(mem, sizeof *h);
	if (!h)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a TDX host");
	h->machine = x;
	h->mem = mem;
	h->pool = *pool;
	h->shift = pool->base <= most - pool->frames ? 0 : round_down(pool->base, GIB);
	arena_init(&h->nodes, mem);
	st = start_module(h, err);
	if (st != PW_OK) {
		pw_mem_free(mem, h, sizeof *h);
		return st;
	}
	tdx_host_ballast_take(h);
	*model = h;
	return PW_OK;
}

static void guest_free(struct tdx_host *h, struct tdx_guest *g)
{
	tree_release(&g->private);
	pw_mem_free(h->mem, g, sizeof *g);
}

static void tdx_close(void *model)
{
	struct tdx_host *h = model;
	struct tdx_guest *next;

	for (struct tdx_guest *g = h->guests; g; g = next) {
		next = g->next;
		guest_free(h, g);
	}
	tdx_release(&h->module);
	tdx_host_ballast_drop(h);
	arena_release(&h->nodes);
	pw_mem_free(h->mem, h, sizeof *h);
}

/* VMs and slots. */

static enum pw_status slot_is_sane(const struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	unsigned bit = vm->shared_bit ? vm->shared_bit : WIDE_BIT;

	if (s->base + s->pages <= PAGES_BELOW(bit))
		return PW_OK;
	return pw_fail(err, PW_INVALID, "slot %" PRIu32 " reaches GPA bit %u, which says what is shared", s->number,
		       bit);
}

static enum pw_status tdx_slot_add(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	const struct tdx_td *td = tdx_host_td(model, vm->guest);

	if (td && !alias_is_valid_gfn(td->alias, s->base, s->pages))
		return pw_fail(err, PW_INVALID, "slot %" PRIu32 " reaches over the shared bit of the TD", s->number);
	return slot_is_sane(vm, s, err);
}

static enum pw_status tdx_vm_new(void *model, struct machine_vm *vm, struct pw_err *err)
{
	struct tdx_host *h = model;
	enum pw_status st = PW_OK;
	struct tdx_guest *g;

	if (vm->shared_bit && vm->shared_bit != NARROW_BIT && vm->shared_bit != WIDE_BIT)
		return pw_fail(err, PW_INVALID, "GPA bit %u: TDX shares by bit %u or %u", vm->shared_bit, NARROW_BIT,
			       WIDE_BIT);
	for (size_t i = 0; i < vm->slot_count && st == PW_OK; i++)
		st = slot_is_sane(vm, &vm->slots[i], err);
	if (st != PW_OK)
		return st;
	g = pw_mem_zalloc(h->mem, sizeof *g);
	if (!g)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a VM");
	tree_init(&g->private, &h->nodes);
	g->next = h->guests;
	h->guests = g;
	vm->guest = g;
	return PW_OK;
}

static void tdx_vm_free(void *model, struct machine_vm *vm)
{
	struct tdx_host *h = model;
	struct tdx_guest **at = &h->guests;

	while (*at != vm->guest)
		at = &(*at)->next;
	*at = (*at)->next;
	guest_free(h, vm->guest);
	vm->guest = NULL;
}

/* Teardown. It goes by what the module says, so that one that was cut short goes on where it ended. */

static enum pw_status let_key_go(struct tdx_host *h, struct tdx_guest *g, struct pw_err *err)
{
	const struct tdx_td *td = tdx_host_td(h, g);
	const struct tdx_hkid *key = &h->module.hkids[td->hkid - h->module.first_hkid];
	enum pw_status st = PW_OK;

	if (td->vcpu_count && td->vcpus[0].inside)
		st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_VP_EXIT, .vcpu = g->vcpu }, err);
	if (st == PW_OK && td->vcpu_count && td->vcpus[0].associated)
		st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_VP_FLUSH, .vcpu = g->vcpu }, err);
	if (st == PW_OK && td->lifecycle < TDX_TD_BLOCKED)
		st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_VPFLUSHDONE }, err);
	for (unsigned i = 0; i < TDX_HOST_PACKAGES && st == PW_OK && td->lifecycle == TDX_TD_BLOCKED; i++)
		if (key->dirty & (uint32_t)1 << i)
			st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_CACHE_WB, .package = i }, err);
	if (st == PW_OK && td->lifecycle == TDX_TD_BLOCKED)
		st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_KEY_FREEID }, err);
	return st;
}

static enum pw_status wipe(struct tdx_host *h, struct tdx_guest *g, uint64_t pfn, uint64_t count, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (uint64_t i = 0; i < count && st == PW_OK; i++)
		st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_PAGE_WBINVD, .frame = pfn + i }, err);
	return st;
}

/* A page of the pool. One that the module does not give back is kept whole: only its owner could have split it. */
static enum pw_status reclaim_page(struct tdx_host *h, struct tdx_guest *g, uint64_t pfn, uint64_t count,
				   struct pw_err *err)
{
	struct tdx_call c = { .op = TDX_PAGE_RECLAIM, .frame = pfn };
	struct pw_err why = { 0 };
	enum pw_status st;

	if (machine_gives_back(h->machine, count) < count)
		c.busy = TDX_BUSY_FRAME;
	st = tdx_host_call(h, g, c, &why);
	if (st == PW_OK)
		return wipe(h, g, pfn, count, err);
	if (st != PW_BACKEND)
		return pw_fail(err, st, "%s", why.msg);
	pw_wrap(&why, "frame 0x%" PRIx64, pfn + h->shift);
	for (uint64_t i = 0; i < count; i++)
		machine_keep(h->machine, pfn + i + h->shift, why.msg);
	return PW_OK;
}

static enum pw_status reclaim_control(struct tdx_host *h, struct tdx_guest *g, uint64_t pfn, uint64_t count,
				      struct pw_err *err)
{
	enum pw_status st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_PAGE_RECLAIM, .frame = pfn }, err);

	if (st != PW_OK)
		return st;
	tdx_host_control_is_free(h, pfn);
	return wipe(h, g, pfn, count, err);
}

typedef enum pw_status (*reclaim_fn)(struct tdx_host *h, struct tdx_guest *g, uint64_t pfn, uint64_t count,
				     struct pw_err *err);

/* Every page of that size in [first, end) which the PAMT says is the TD's. */
static enum pw_status reclaim_all(struct tdx_host *h, struct tdx_guest *g, struct tdx_range in, unsigned size,
				  reclaim_fn fn, struct pw_err *err)
{
	const uint64_t pages = (uint64_t)1 << (TREE_BITS * size), end = round_up(in.end, pages) / pages;
	enum pw_status st = PW_OK;
	struct tree_run run;
	uint64_t owner;
	unsigned found;

	for (uint64_t at = in.first / pages; at < end && st == PW_OK; at += run.count) {
		run = tree_run_at(&h->module.pamt[size], at, end);
		if (run.entry == 0)
			continue;
		tdx_page(&h->module, at * pages, &found, &owner);
		for (uint64_t i = 0; i < run.count && owner == g->tdr && st == PW_OK; i++)
			st = fn(h, g, (at + i) * pages, pages, err);
	}
	return st;
}

static enum pw_status reclaim_everything(struct tdx_host *h, struct tdx_guest *g, struct pw_err *err)
{
	struct tdx_range pool = { h->pool.base - h->shift, h->pool.base - h->shift + h->pool.frames };
	enum pw_status st = reclaim_all(h, g, pool, 1, reclaim_page, err);

	if (st == PW_OK)
		st = reclaim_all(h, g, pool, 0, reclaim_page, err);
	if (st == PW_OK)
		st = reclaim_all(h, g, h->control, 0, reclaim_control, err);
	/* With a page left, CHLDCNT holds the TDR: it stays, and a new TD will have another. */
	if (st == PW_OK && tdx_host_td(h, g)->chldcnt == 0)
		st = reclaim_control(h, g, g->tdr, 1, err);
	return st;
}

static enum pw_status tear_down(struct tdx_host *h, struct tdx_guest *g, struct pw_err *err)
{
	enum pw_status st;

	if (!g->tdr)
		return PW_OK;
	tdx_host_ballast_drop(h);
	st = let_key_go(h, g, err);
	if (st == PW_OK)
		st = reclaim_everything(h, g, err);
	tdx_host_ballast_take(h);
	if (st != PW_OK)
		return st;
	g->tdr = g->vcpu = g->measured = 0;
	tree_release(&g->private);
	tree_init(&g->private, &h->nodes);
	return PW_OK;
}

/* Building. */

static enum pw_status create_td(struct tdx_host *h, struct tdx_guest *g, struct pw_err *err)
{
	struct tdx_call c = { .op = TDX_MNG_CREATE };
	uint32_t n = 0;

	while (n < TDX_HOST_HKIDS && h->module.hkids[n].state != TDX_HKID_FREE)
		n++;
	if (n == TDX_HOST_HKIDS)
		return pw_fail(err, PW_BUSY, "all %d HKIDs are in use", TDX_HOST_HKIDS);
	c.hkid = h->module.first_hkid + n;
	return tdx_host_call_control(h, g, c, &g->tdr, err);
}

static enum pw_status add_vcpu(struct tdx_host *h, struct tdx_guest *g, struct pw_err *err)
{
	enum pw_status st = tdx_host_call_control(h, g, (struct tdx_call){ .op = TDX_VP_CREATE }, &g->vcpu, err);

	for (int i = 0; i < TDX_VPCX && st == PW_OK; i++)
		st = tdx_host_call_control(h, g, (struct tdx_call){ .op = TDX_VP_ADDCX, .vcpu = g->vcpu }, NULL, err);
	if (st != PW_OK)
		return st;
	return tdx_host_call(h, g, (struct tdx_call){ .op = TDX_VP_INIT, .vcpu = g->vcpu }, err);
}

static bool is_wide(const struct machine_vm *vm)
{
	for (size_t i = 0; vm->shared_bit == 0 && i < vm->slot_count; i++)
		if (vm->slots[i].base + vm->slots[i].pages > PAGES_BELOW(NARROW_BIT))
			return true;
	return vm->shared_bit == WIDE_BIT;
}

static enum pw_status build(struct tdx_host *h, const struct machine_vm *vm, struct pw_err *err)
{
	struct tdx_guest *g = vm->guest;
	struct tdx_call init = { .op = TDX_MNG_INIT, .wide = is_wide(vm) };
	enum pw_status st = create_td(h, g, err);

	for (unsigned i = 0; i < TDX_HOST_PACKAGES && st == PW_OK; i++)
		st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_KEY_CONFIG, .package = i }, err);
	for (int i = 0; i < TDX_TDCX_MIN && st == PW_OK; i++)
		st = tdx_host_call_control(h, g, (struct tdx_call){ .op = TDX_MNG_ADDCX }, NULL, err);
	init.levels = init.wide ? TDX_LEVELS : TDX_LEVELS - 1;
	if (st == PW_OK)
		st = tdx_host_call(h, g, init, err);
	return st == PW_OK ? add_vcpu(h, g, err) : st;
}

static enum pw_status tdx_event(void *model, struct machine_vm *vm, enum vm_event e, struct pw_err *err)
{
	struct tdx_host *h = model;
	struct pw_err worse = { 0 };
	enum pw_status st;

	tdx_host_ballast_take(h);
	switch (e) {
	case VM_INIT_START:
		st = build(h, vm, err);
		if (st != PW_OK && tear_down(h, vm->guest, &worse) != PW_OK)
			pw_wrap(err, "could not be undone (%.80s)", worse.msg);
		return st;
	case VM_INIT_DONE: return tdx_host_finalize(h, vm, err);
	case VM_INIT_ABORT:
	case VM_TERMINATE: return tear_down(h, vm->guest, err);
	case VM_START:
	case VM_EVENT_COUNT: break;
	}
	return PW_OK;
}

static bool host_check(const void *model, struct pw_err *err)
{
	const struct tdx_host *h = model;

	if (!tdx_check(&h->module, err))
		return false;
	for (const struct tdx_guest *g = h->guests; g; g = g->next)
		if (!tree_check(&g->private) || (g->tdr && !tdx_host_td(h, g))) {
			pw_fail(err, PW_CONFLICT, "the host knows another TD in frame 0x%" PRIx64, g->tdr);
			return false;
		}
	return true;
}

const struct machine_model machine_tdx = {
	.arch = "tdx",
	.help = "Intel TDX: secure EPT, PAMT and the life of TDs, as KVM and QEMU drive the module",
	.page_shift = TDX_PAGE_SHIFT,
	.default_frames = 262144,
	.swaps = false,
	.open = tdx_open,
	.close = tdx_close,
	.vm_new = tdx_vm_new,
	.vm_free = tdx_vm_free,
	.event = tdx_event,
	.slot_add = tdx_slot_add,
	.slot_remove = tdx_host_slot_remove,
	.page_in = tdx_host_page_in,
	.page_out = tdx_host_page_out,
	.share = tdx_host_share,
	.unshare = tdx_host_unshare,
	.run_at = tdx_host_run_at,
	.check = host_check,
};
