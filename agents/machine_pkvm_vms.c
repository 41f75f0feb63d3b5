#include "agents/machine_pkvm.h"

#define VM_PAGES    2u /* the hypervisor's VM structure */
#define TABLE_PAGES 2u /* the root of stage 2: 40 bits */
#define VCPU_PAGES  1u
enum own_page {
	OWN_HOST_VM,
	OWN_HOST_VCPU,
	OWN_VM,
	OWN_TABLE = OWN_VM + VM_PAGES,
	OWN_VCPU = OWN_TABLE + TABLE_PAGES,
	OWN_PAGES = OWN_VCPU + VCPU_PAGES
};
#define SETS_OF_LIFE 24 /* tree_sets of making or ending a VM */

/* Making a VM at the hypervisor. */

static uint64_t own(const struct pkvm_guest *g, enum own_page n)
{
	return g->own + n;
}

static enum pw_status call_init_vm(struct pkvm_host *h, const struct pkvm_guest *g, struct pw_err *err)
{
	struct pkvm_vm_params p = { .kind = PKVM_PROTECTED,
				    .vcpus = 1,
				    .host_page = own(g, OWN_HOST_VM),
				    .donated = own(g, OWN_VM) << PKVM_PAGE_SHIFT,
				    .donated_pages = VM_PAGES,
				    .table = own(g, OWN_TABLE) << PKVM_PAGE_SHIFT,
				    .table_pages = TABLE_PAGES };
	enum pkvm_code code;

	if (pkvm_init_vm(&h->hyp, g->handle, &p, &code) != PW_OK)
		return machine_pkvm_no_memory(err);
	return machine_pkvm_answer("init_vm", code, err);
}

static enum pw_status call_init_vcpu(struct pkvm_host *h, const struct pkvm_guest *g, struct pw_err *err)
{
	struct pkvm_vcpu_params p = { .host_page = own(g, OWN_HOST_VCPU),
				      .donated = own(g, OWN_VCPU) << PKVM_PAGE_SHIFT,
				      .donated_pages = VCPU_PAGES,
				      .setup = { .features = PKVM_FEATURE_PSCI_0_2, .primary = true } };
	enum pkvm_code code;

	if (pkvm_init_vcpu(&h->hyp, g->handle, &p, &code) != PW_OK)
		return machine_pkvm_no_memory(err);
	return machine_pkvm_answer("init_vcpu", code, err);
}

static enum pw_status call_load(struct pkvm_host *h, const struct pkvm_guest *g, struct pw_err *err)
{
	bool loaded;

	if (pkvm_load(&h->hyp, machine_pkvm_cpu(g), g->handle, 0, &loaded) != PW_OK)
		return machine_pkvm_no_memory(err);
	return loaded ? PW_OK : machine_pkvm_answer("load of the vCPU", PKVM_EINVAL, err);
}

static struct pkvm_call host_pages(const struct pkvm_guest *g)
{
	return (struct pkvm_call){ .pfn = own(g, OWN_HOST_VM), .nr = OWN_VM - OWN_HOST_VM };
}

/* The hypervisor forgets the VM and gives its memory back. */
static enum pw_status finalize(struct pkvm_host *h, struct pkvm_guest *g, struct pw_err *err)
{
	struct pkvm_call pages = host_pages(g);
	enum pkvm_code code;
	enum pw_status st;

	if (pkvm_finalize(&h->hyp, g->handle, &code) != PW_OK)
		return machine_pkvm_no_memory(err);
	st = machine_pkvm_answer("finalize", code, err);
	if (st != PW_OK)
		return st;
	st = machine_pkvm_page_call(h, PKVM_HUH, &pages, err);
	g->handle = PKVM_NO_HANDLE;
	machine_pkvm_window_give(h, g, PKVM_NO_GFN);
	return st;
}

static enum pw_status unmake(struct pkvm_host *h, struct pkvm_guest *g, enum pw_status st)
{
	struct pw_err later;
	enum pw_status undone = machine_pkvm_answer("start_teardown", pkvm_start_teardown(&h->hyp, g->handle), &later);

	if (undone == PW_OK)
		undone = finalize(h, g, &later);
	return undone == PW_OK ? st : undone;
}

static enum pw_status make(struct pkvm_host *h, struct pkvm_guest *g, struct pw_err *err)
{
	struct pkvm_call pages = host_pages(g);
	enum pw_status st = machine_pkvm_page_call(h, PKVM_HSH, &pages, err);

	if (st != PW_OK)
		return st;
	st = call_init_vm(h, g, err);
	if (st != PW_OK) {
		struct pw_err later;

		return machine_pkvm_page_call(h, PKVM_HUH, &pages, &later) == PW_OK ? st : later.status;
	}
	st = call_init_vcpu(h, g, err);
	if (st == PW_OK)
		st = call_load(h, g, err);
	return st == PW_OK ? st : unmake(h, g, st);
}

static enum pw_status reserve_and_make(struct pkvm_host *h, struct pkvm_guest *g, struct pw_err *err)
{
	enum pkvm_code code;
	enum pw_status st;

	if (pkvm_reserve(&h->hyp, &g->handle, &code) != PW_OK)
		return machine_pkvm_no_memory(err);
	if (code != PKVM_OK)
		return pw_fail(err, PW_BUSY, "reserve of a VM: %s; pkvm.c: %u VMs are all there can be",
			       pkvm_code_name(code), PKVM_VMS_MAX);
	st = make(h, g, err);
	if (st != PW_OK)
		pkvm_unreserve(&h->hyp, g->handle);
	return st;
}

static enum pw_status init_start(struct pkvm_host *h, struct pkvm_guest *g, struct pw_err *err)
{
	enum pw_status st;

	if (arena_reserve_sets(&h->hyp.arena, SETS_OF_LIFE) != PW_OK)
		return machine_pkvm_no_memory(err);
	st = machine_pkvm_window_take(h, g, PKVM_NO_GFN, OWN_PAGES, &g->own, err);
	if (st != PW_OK)
		return st;
	st = reserve_and_make(h, g, err);
	if (st != PW_OK) {
		g->handle = PKVM_NO_HANDLE;
		machine_pkvm_window_give(h, g, PKVM_NO_GFN);
	}
	machine_pkvm_trim(h);
	return st;
}

/* The first run: the guest is its own from here on. */
static enum pw_status init_done(struct pkvm_host *h, struct pkvm_guest *g, struct pw_err *err)
{
	enum pw_status st = machine_pkvm_first_exit(h, g, err);

	if (st != PW_OK)
		return st;
	tree_release(&g->paged_out);
	tree_init(&g->paged_out, &h->notes);
	return PW_OK;
}

/* Ending it. */

/* Which GFNs' frames will not come back; *runs: of pages to reclaim. */
static enum pw_status ask_back(struct pkvm_host *h, const struct pkvm_vm *vm, struct tree *stuck, uint64_t *runs)
{
	struct pkvm_leaf leaf;

	for (uint64_t at = 0; at < TREE_PAGES; at += leaf.count) {
		leaf = pkvm_leaf_at(vm, at, TREE_PAGES);
		if (leaf.state != PKVM_OWNED)
			continue;
		for (uint64_t i = machine_gives_back(h->machine, leaf.count); i < leaf.count;
		     i += 1 + machine_gives_back(h->machine, leaf.count - i - 1)) {
			if (tree_set(stuck, at + i, 1, 1) != PW_OK)
				return PW_NO_MEMORY;
			++*runs;
		}
	}
	return PW_OK;
}

/* Stuck frames are passed over: they are nobody's, once the VM is gone. */
static enum pw_status reclaim_all(struct pkvm_host *h, struct pkvm_vm *vm, const struct tree *stuck, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	struct pkvm_leaf leaf;

	for (uint64_t at = 0; at < TREE_PAGES && st == PW_OK; at += leaf.count) {
		struct tree_run keep;

		leaf = pkvm_leaf_at(vm, at, TREE_PAGES);
		keep = tree_run_at(stuck, at, at + leaf.count);
		leaf.count = keep.count;
		if (!keep.entry && (leaf.state == PKVM_OWNED || leaf.state == PKVM_SHARED_OWNED))
			st = machine_pkvm_leaf_call(
				h, PKVM_RCL, &(struct pkvm_call){ .vm = vm, .gfn = at, .calls = leaf.count }, err);
	}
	return st;
}

/* What is still a page of a VM that is gone: forced reclaim says why nobody gets it. */
static void keep_stuck(struct pkvm_host *h, const struct pkvm_vm *gone)
{
	struct pkvm_leaf leaf;

	for (uint64_t at = 0; at < TREE_PAGES; at += leaf.count) {
		leaf = pkvm_leaf_at(gone, at, TREE_PAGES);
		for (uint64_t i = 0; leaf.state == PKVM_OWNED && i < leaf.count; i++) {
			struct pkvm_call c = { .pfn = leaf.pfn + i };
			struct pw_err why = { 0 };

			if (machine_pkvm_page_call(h, PKVM_FRC, &c, &why) != PW_OK)
				machine_keep(h->machine, c.pfn, why.msg);
		}
	}
}

static enum pw_status tear_down(struct pkvm_host *h, struct pkvm_guest *g, struct tree *stuck, struct pw_err *err)
{
	struct pkvm_vm *vm = machine_pkvm_vm(h, g);
	uint64_t runs = 0;
	enum pw_status st;

	if (ask_back(h, vm, stuck, &runs) != PW_OK ||
	    arena_reserve_sets(&h->hyp.arena, SETS_OF_LIFE + 3 * runs) != PW_OK ||
	    pkvm_put(&h->hyp, machine_pkvm_cpu(g)) != PW_OK)
		return machine_pkvm_no_memory(err);
	st = machine_pkvm_answer("start_teardown", pkvm_start_teardown(&h->hyp, g->handle), err);
	if (st == PW_OK)
		st = reclaim_all(h, vm, stuck, err);
	if (st == PW_OK)
		st = finalize(h, g, err);
	if (st == PW_OK && runs)
		keep_stuck(h, vm);
	return st;
}

static enum pw_status end_vm(struct pkvm_host *h, struct pkvm_guest *g, struct pw_err *err)
{
	struct tree stuck;
	enum pw_status st;

	tree_init(&stuck, &h->notes);
	st = tear_down(h, g, &stuck, err);
	tree_release(&stuck);
	if (st == PW_OK) {
		tree_release(&g->paged_out);
		tree_init(&g->paged_out, &h->notes);
		g->exited = false;
	}
	machine_pkvm_trim(h);
	return st;
}

enum pw_status machine_pkvm_event(void *model, struct machine_vm *vm, enum vm_event e, struct pw_err *err)
{
	switch (e) {
	case VM_INIT_START: return init_start(model, vm->guest, err);
	case VM_INIT_DONE: return init_done(model, vm->guest, err);
	case VM_INIT_ABORT:
	case VM_TERMINATE: return end_vm(model, vm->guest, err);
	case VM_START:
	case VM_EVENT_COUNT: break;
	}
	return PW_OK;
}
