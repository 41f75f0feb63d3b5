#include "agents/machine_pkvm.h"

struct pkvm_vm *machine_pkvm_vm(const struct pkvm_host *h, const struct pkvm_guest *g)
{
	return pkvm_vm_of(&h->hyp, g->handle);
}

enum pw_status machine_pkvm_no_memory(struct pw_err *err)
{
	return pw_fail(err, PW_NO_MEMORY, "no memory for the model of pKVM");
}

enum pw_status machine_pkvm_page_call(struct pkvm_host *h, enum pkvm_page_op op, const struct pkvm_call *c,
				      struct pw_err *err)
{
	struct pkvm_answer a;
	char why[sizeof err->msg];

	if (pkvm_page_call(&h->hyp, op, c, &a) != PW_OK)
		return machine_pkvm_no_memory(err);
	if (a.code == PKVM_OK)
		return PW_OK;
	pkvm_explain_page(op, c, &a, why, sizeof why);
	return pw_fail(err, PW_BACKEND, "%s", why);
}

enum pw_status machine_pkvm_leaf_call(struct pkvm_host *h, enum pkvm_leaf_op op, const struct pkvm_call *c,
				      struct pw_err *err)
{
	struct pkvm_answer a;
	char why[sizeof err->msg];

	if (pkvm_leaf_call(&h->hyp, op, c, &a) != PW_OK)
		return machine_pkvm_no_memory(err);
	if (a.code == PKVM_OK)
		return PW_OK;
	pkvm_explain_leaf(op, c, &a, why, sizeof why);
	return pw_fail(err, PW_BACKEND, "%s", why);
}

enum pw_status machine_pkvm_answer(const char *call, enum pkvm_code code, struct pw_err *err)
{
	if (code == PKVM_OK)
		return PW_OK;
	return pw_fail(err, PW_BACKEND, "%s of a VM: %s; pkvm.c, the table of VMs", call, pkvm_code_name(code));
}

void machine_pkvm_trim(struct pkvm_host *h)
{
	arena_trim_to(&h->hyp.arena, PKVM_NODES_KEPT);
	arena_trim(&h->notes);
}

/* Memory beside the pool. */

enum pw_status machine_pkvm_window_take(struct pkvm_host *h, const struct pkvm_guest *g, uint64_t gfn, uint64_t count,
					uint64_t *first, struct pw_err *err)
{
	struct pkvm_window **at = &h->windows, *w;
	uint64_t from = h->first;

	for (; *at && (*at)->first - from < count; at = &(*at)->next)
		from = (*at)->first + (*at)->count;
	if (!*at && h->end - from < count)
		return pw_fail(err, PW_BUSY, "no %" PRIu64 " pages left beside the pool", count);
	w = pw_mem_alloc(h->mem, sizeof *w);
	if (!w)
		return machine_pkvm_no_memory(err);
	*w = (struct pkvm_window){ .next = *at, .first = from, .count = count, .of = g, .gfn = gfn };
	*at = w;
	*first = from;
	return PW_OK;
}

static void window_drop(struct pkvm_host *h, struct pkvm_window **at)
{
	struct pkvm_window *w = *at;

	*at = w->next;
	pw_mem_free(h->mem, w, sizeof *w);
}

void machine_pkvm_window_give(struct pkvm_host *h, const struct pkvm_guest *g, uint64_t gfn)
{
	struct pkvm_window **at = &h->windows;

	while (*at && ((*at)->of != g || (*at)->gfn != gfn))
		at = &(*at)->next;
	if (*at)
		window_drop(h, at);
}

static void windows_give(struct pkvm_host *h, const struct pkvm_guest *g)
{
	struct pkvm_window **at = &h->windows;

	while (*at)
		if ((*at)->of == g)
			window_drop(h, at);
		else
			at = &(*at)->next;
}

uint64_t machine_pkvm_slot_page(const struct pkvm_host *h, const struct pkvm_guest *g, uint64_t gfn, uint64_t *count)
{
	const struct pkvm_window *w = h->windows;

	while (w->of != g || w->gfn == PKVM_NO_GFN || gfn < w->gfn || gfn - w->gfn >= w->count)
		w = w->next;
	*count = w->count - (gfn - w->gfn);
	return w->first + (gfn - w->gfn);
}

/* VMs and slots. */

static enum pw_status host_slot_add(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	uint64_t first;

	return machine_pkvm_window_take(model, vm->guest, s->base, s->pages, &first, err);
}

/* KVM keeps the memory slot of a protected VM that was made (EPERM): the guest gives all of it up, and nothing is left
 * behind it. */
static enum pw_status host_slot_remove(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	struct pkvm_host *h = model;
	enum pw_status st = PW_OK;

	if (vm->state != VM_NORMAL)
		st = machine_pkvm_empty(h, vm, s->base, s->pages, err);
	if (st == PW_OK)
		machine_pkvm_window_give(h, vm->guest, s->base);
	return st;
}

static void host_vm_free(void *model, struct machine_vm *vm)
{
	struct pkvm_host *h = model;
	struct pkvm_guest *g = vm->guest, **at = &h->guests;

	while (*at != g)
		at = &(*at)->next;
	*at = g->next;
	windows_give(h, g);
	tree_release(&g->paged_out);
	pw_mem_free(h->mem, g, sizeof *g);
	vm->guest = NULL;
}

static enum pw_status host_vm_new(void *model, struct machine_vm *vm, struct pw_err *err)
{
	struct pkvm_host *h = model;
	struct pkvm_guest *g = pw_mem_zalloc(h->mem, sizeof *g);
	enum pw_status st = PW_OK;

	if (!g)
		return machine_pkvm_no_memory(err);
	*g = (struct pkvm_guest){ .next = h->guests, .vm = vm, .handle = PKVM_NO_HANDLE };
	tree_init(&g->paged_out, &h->notes);
	h->guests = g;
	vm->guest = g;
	for (size_t i = 0; i < vm->slot_count && st == PW_OK; i++)
		st = host_slot_add(h, vm, &vm->slots[i], err);
	if (st != PW_OK)
		host_vm_free(h, vm);
	return st;
}

/* Life. */

static void host_close(void *model)
{
	struct pkvm_host *h = model;
	struct pw_mem *mem = h->mem;

	while (h->windows)
		window_drop(h, &h->windows);
	while (h->guests) {
		struct pkvm_guest *g = h->guests;

		h->guests = g->next;
		tree_release(&g->paged_out);
		pw_mem_free(mem, g, sizeof *g);
	}
	arena_release(&h->notes);
	pkvm_release(&h->hyp);
	pw_mem_free(mem, h, sizeof *h);
}

/* RAM is the pool, and what is beside it on its larger side. */
static size_t lay_out(struct pkvm_host *h, struct pkvm_region regions[2])
{
	uint64_t end = h->pool.base + h->pool.frames;
	bool below = h->pool.base > TREE_PAGES - end;
	struct pkvm_region pool = { .first = h->pool.base, .count = h->pool.frames };

	h->first = below ? 0 : end;
	h->end = below ? h->pool.base : TREE_PAGES;
	regions[below] = pool;
	regions[!below] = (struct pkvm_region){ .first = h->first, .count = h->end - h->first };
	return 2;
}

static enum pw_status host_open(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem, void **model,
				struct pw_err *err)
{
	struct pkvm_region regions[2];
	struct pkvm_host *h;
	size_t n;

	if (pool->frames == 0 || pool->frames >= TREE_PAGES || pool->base > TREE_PAGES - pool->frames)
		return pw_fail(err, PW_INVALID, "a pool of frames %" PRIu64 "+%" PRIu64 " makes no sense", pool->base,
			       pool->frames);
	h = pw_mem_zalloc(mem, sizeof *h);
	if (!h)
		return machine_pkvm_no_memory(err);
	h->machine = x;
	h->mem = mem;
	h->pool = *pool;
	arena_init(&h->notes, mem);
	n = lay_out(h, regions);
	if (pkvm_init(&h->hyp, mem, PKVM_ANDROID, regions, n, PKVM_VMS_MAX) != PW_OK) {
		pw_mem_free(mem, h, sizeof *h);
		return machine_pkvm_no_memory(err);
	}
	*model = h;
	return PW_OK;
}

/* Checks. */

static enum pw_status check_guest(const struct pkvm_host *h, const struct pkvm_guest *g, struct pw_err *err)
{
	const struct pkvm_vm *vm = machine_pkvm_vm(h, g);
	enum pkvm_vm_state s = vm ? vm->state : PKVM_VM_FREE;

	if (pkvm_project_vm(PKVM_PROTECTED, s, vm && vm->ran) == g->vm->state)
		return PW_OK;
	return pw_fail(err, PW_CONFLICT, "a VM that is %s is %s at the hypervisor", vm_state_name(g->vm->state),
		       pkvm_vm_state_name(s));
}

/* No frame of the pool is shared, and each is the host's or a guest's. */
static enum pw_status check_pool(const struct pkvm_host *h, struct pw_err *err)
{
	uint64_t end = h->pool.base + h->pool.frames;
	struct pkvm_page page;

	for (uint64_t at = h->pool.base; at < end; at += page.count) {
		page = pkvm_page_at(&h->hyp, at, end);
		if (page.joint != PKVM_A && page.joint != PKVM_F)
			return pw_fail(err, PW_CONFLICT, "frame %" PRIu64 " is in state %s", at,
				       pkvm_joint_name(page.joint));
	}
	return PW_OK;
}

static bool host_check(const void *model, struct pw_err *err)
{
	const struct pkvm_host *h = model;

	if (!pkvm_check(&h->hyp))
		return pw_fail(err, PW_CONFLICT, "the model of pKVM breaks its invariants") == PW_OK;
	for (const struct pkvm_guest *g = h->guests; g; g = g->next)
		if (check_guest(h, g, err) != PW_OK || !tree_check(&g->paged_out))
			return false;
	return check_pool(h, err) == PW_OK;
}

const struct machine_model machine_pkvm = {
	.arch = "pkvm",
	.help = "an exact model of an arm64 host with protected KVM, of Android's generation",
	.page_shift = PKVM_PAGE_SHIFT,
	.default_frames = (uint64_t)1 << 20,
	.swaps = false,
	.open = host_open,
	.close = host_close,
	.vm_new = host_vm_new,
	.vm_free = host_vm_free,
	.event = machine_pkvm_event,
	.slot_add = host_slot_add,
	.slot_remove = host_slot_remove,
	.page_in = machine_pkvm_page_in,
	.page_out = machine_pkvm_page_out,
	.share = machine_pkvm_share,
	.unshare = machine_pkvm_unshare,
	.run_at = machine_pkvm_run_at,
	.last_exit = machine_pkvm_last_exit,
	.check = host_check,
};
