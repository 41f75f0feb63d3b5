#include "engine/arch/law.h"

/* A GFN's states are those of its stage-2 leaf. What has none is the law's normal or paged out: the same to the hyp. */
enum { NORMAL, OWNED, OUT, SHARED, POISON };
#define NO ARCH_REFUSED

/* clang-format off */
#define ROW(normal, owned, out, shared, poison) \
	{ [NORMAL] = normal, [OWNED] = owned, [OUT] = out, [SHARED] = shared, [POISON] = poison }
#define FRAMED true
#define PLAIN  false

/*
 * A page that a guest shares stays the guest's, and so would its frame, which the law releases. So this law has sharing
 * where there is no frame yet, as MEM_SHARE of an unmapped page does: the host donates a page of its own, beside the pool,
 * and the call is repeated. An owned page is relinquished first. Unsharing names the frame that is the guest's afterwards.
 */
static const struct arch_op ops[] = {
	{ "pkvm.host_donate_guest", FRAMED, "Linux mem_protect.c, __pkvm_host_donate_guest: EPERM on a taken or poisoned GFN",
	  ROW(OWNED, NO, OWNED, NO, NO) },
	{ "pkvm.guest_unshare_host", FRAMED, "Linux mem_protect.c, __pkvm_guest_unshare_host: SHARED_OWNED only, else EPERM",
	  ROW(NO, NO, NO, OWNED, NO) },
	{ "pkvm.guest_share_host", PLAIN, "Linux hypercalls.rst, MEM_SHARE; mem_protect.c, __pkvm_guest_share_host: "
	  "unmapped, it is repeated once the host has donated a page",
	  ROW(SHARED, NO, SHARED, NO, NO) },
	{ "pkvm.guest_relinquish", PLAIN, "Android 6.12 mem_protect.c, __pkvm_guest_relinquish_to_host: zeroed; without a page, nothing",
	  ROW(NORMAL, OUT, OUT, NO, POISON) },
	{ "pkvm.host_reclaim_page", PLAIN, "Linux mem_protect.c, __pkvm_host_reclaim_page_guest: of a dying VM; poison is passed over",
	  ROW(NO, OUT, NO, OUT, POISON) },
	{ "pkvm.host_force_reclaim", PLAIN, "Linux mem_protect.c, __pkvm_host_force_reclaim_page_guest: OWNED is zeroed, else EAGAIN or EPERM",
	  ROW(NO, POISON, NO, NO, NO) },
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
};
