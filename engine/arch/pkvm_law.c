#include "engine/arch/law.h"

/* A GFN's states are those of its stage-2 leaf. What has none is the law's normal or paged out: the same to the hyp. */
enum { NORMAL, OWNED, OUT, SHARED, POISON };
/* Of the VM: its place in the hypervisor's table, before the first run and after it. */
enum { CREATED, DYING, CREATED_RUN, DYING_RUN, VM_STATES };
#define NO ARCH_REFUSED

/* clang-format off */
#define ROW(normal, owned, out, shared, poison) \
	{ [NORMAL] = normal, [OWNED] = owned, [OUT] = out, [SHARED] = shared, [POISON] = poison }
#define FRAMED true
#define PLAIN  false

#define ALIVE  1u << CREATED | 1u << CREATED_RUN
#define DIES   1u << DYING | 1u << DYING_RUN
#define LOADED ALIVE, "Linux hyp-main.c: EINVAL without a loaded vCPU; pkvm.c: none of a dying VM is loaded"
#define RUNS   ALIVE, "Linux pkvm.c: a hypercall of the guest; no vCPU of a dying VM runs"
#define DEAD   DIES, "Linux pkvm.c, __pkvm_reclaim_dying_guest_page: EINVAL unless the VM is dying"
#define FORCED ALIVE | DIES, "Linux mem_protect.c, __pkvm_host_force_reclaim_page_guest: EAGAIN only once the VM is gone"

/*
 * A page that a guest shares stays the guest's, and so would its frame, which the law releases. So this law has sharing
 * where there is no frame yet, as MEM_SHARE of an unmapped page does: the host donates a page of its own, beside the pool,
 * and the call is repeated. An owned page is relinquished first. Unsharing names the frame that is the guest's afterwards.
 */
static const struct arch_op ops[] = {
	{ "pkvm.host_donate_guest", FRAMED, "Linux mem_protect.c, __pkvm_host_donate_guest: EPERM on a taken or poisoned GFN",
	  LOADED, ROW(OWNED, NO, OWNED, NO, NO) },
	{ "pkvm.guest_unshare_host", FRAMED, "Linux mem_protect.c, __pkvm_guest_unshare_host: SHARED_OWNED only, else EPERM",
	  RUNS, ROW(NO, NO, NO, OWNED, NO) },
	{ "pkvm.guest_share_host", PLAIN, "Linux hypercalls.rst, MEM_SHARE; mem_protect.c, __pkvm_guest_share_host: "
	  "unmapped, it is repeated once the host has donated a page",
	  RUNS, ROW(SHARED, NO, SHARED, NO, NO) },
	{ "pkvm.guest_relinquish", PLAIN, "Android 6.12 mem_protect.c, __pkvm_guest_relinquish_to_host: zeroed; without a page, nothing",
	  RUNS, ROW(NORMAL, OUT, OUT, NO, POISON) },
	{ "pkvm.host_reclaim_page", PLAIN, "Linux mem_protect.c, __pkvm_host_reclaim_page_guest: of a dying VM; poison is passed over",
	  DEAD, ROW(NO, OUT, NO, OUT, POISON) },
	{ "pkvm.host_force_reclaim", PLAIN, "Linux mem_protect.c, __pkvm_host_force_reclaim_page_guest: OWNED is zeroed, else EAGAIN or EPERM",
	  FORCED, ROW(NO, POISON, NO, NO, NO) },
};

static const struct arch_vm_op vm_ops[] = {
	{ "pkvm.start_teardown_vm", "Linux pkvm.c, __pkvm_start_teardown_vm: EINVAL if it is dying",
	  { [CREATED] = DYING, [DYING] = NO, [CREATED_RUN] = DYING_RUN, [DYING_RUN] = NO } },
};
/* clang-format on */
#undef NO

#define DONATE                                 \
	{                                      \
		"pkvm.host_donate_guest", NULL \
	}
#define RELINQUISH                            \
	{                                     \
		"pkvm.guest_relinquish", NULL \
	}

extern const struct arch_law pkvm_law;
const struct arch_law pkvm_law = {
	.name = "pkvm",
	.state_count = POISON + 1,
	.states = {
		[NORMAL] = { "NOPAGE", GFN_NORMAL },
		[OWNED] = { "OWNED", GFN_SECURE_RESIDENT },
		[OUT] = { "NOPAGE", GFN_SECURE_OUT },
		[SHARED] = { "SHARED_OWNED", GFN_SHARED },
		[POISON] = { "POISON", GFN_SECURE_OUT },
	},
	.rest = {
		[GFN_NORMAL] = NORMAL, [GFN_SECURE_RESIDENT] = OWNED, [GFN_SECURE_OUT] = OUT, [GFN_SHARED] = SHARED,
	},
	.ops = ops,
	.op_count = PW_ARRAY_LEN(ops),
	/* Sharing and unsharing are several calls each, from several states: the law's own operations tell of them. */
	.trails = {
		[VM_TRANSIENT] = { [GFN_PAGE_IN] = DONATE, [GFN_PAGE_OUT] = RELINQUISH },
		[VM_SECURE] = { [GFN_PAGE_IN] = DONATE, [GFN_PAGE_OUT] = RELINQUISH },
	},
	.vm_states = {
		[CREATED] = { "CREATED", VM_TRANSIENT, CREATED_RUN },
		[DYING] = { "DYING", VM_TRANSIENT, ARCH_REFUSED },
		[CREATED_RUN] = { "CREATED", VM_SECURE, ARCH_REFUSED },
		[DYING_RUN] = { "DYING", VM_SECURE, ARCH_REFUSED },
	},
	.vm_state_count = VM_STATES,
	.vm_ops = vm_ops,
	.vm_op_count = PW_ARRAY_LEN(vm_ops),
	.ending = "pkvm.start_teardown_vm",
};
