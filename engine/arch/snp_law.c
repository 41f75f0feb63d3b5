#include "engine/arch/law.h"

/* A GFN's states: those of the RMP entry of the frame behind it. What has no frame is named by whose it is. */
enum { NORMAL, PRE_GUEST, GUEST_INVALID, GUEST_VALID, PRE_SWAP, OUT, SHARED };
#define NO ARCH_REFUSED

/* clang-format off */
#define ROW(normal, pre_guest, guest_invalid, guest_valid, pre_swap, out, shared)                         \
	{ [NORMAL] = normal, [PRE_GUEST] = pre_guest, [GUEST_INVALID] = guest_invalid,                    \
	  [GUEST_VALID] = guest_valid, [PRE_SWAP] = pre_swap, [OUT] = out, [SHARED] = shared }
#define FRAMED true
#define PLAIN  false

/*
 * The first four name a Hypervisor frame for the GFN. Hardware would let RMPUPDATE take a page that is a guest's already;
 * this law does not, as the model does not in strict mode.
 */
static const struct arch_op ops[] = {
	{ "snp.rmpupdate", FRAMED, "Linux rmp_make_private, MS rmpupdate: to Guest-Invalid; refused on an assigned page by L1",
	  ROW(GUEST_INVALID, NO, NO, NO, NO, GUEST_INVALID, GUEST_INVALID) },
	{ "snp.rmpupdate_immutable", FRAMED, "Linux rmp_make_private, MS rmpupdate: to Pre-Guest; refused on an assigned page by L1",
	  ROW(PRE_GUEST, NO, NO, NO, NO, PRE_GUEST, PRE_GUEST) },
	{ "snp.launch_update", FRAMED, "Linux sev_gmem_post_populate: RMPUPDATE to Pre-Guest, SNP_LAUNCH_UPDATE; EEXIST on an assigned page",
	  ROW(GUEST_VALID, NO, NO, NO, NO, GUEST_VALID, GUEST_VALID) },
	{ "snp.swap_in", FRAMED, "AMD-ASPFW SNP_SWAP_IN: RMPUPDATE to Pre-Guest, then Pre-Swap, if a metadata entry is valid",
	  ROW(NO, NO, NO, NO, NO, PRE_SWAP, NO) },
	{ "snp.rmpupdate", PLAIN, "Linux rmp_make_shared, MS rmpupdate: to Hypervisor; FAIL_PERMISSION if immutable",
	  ROW(SHARED, NO, SHARED, SHARED, NO, SHARED, SHARED) },
	{ "snp.rmpupdate_immutable", PLAIN, "MS rmpupdate: the immutable bit alone, which keeps validated, inferred",
	  ROW(NO, NO, PRE_GUEST, PRE_SWAP, NO, NO, NO) },
	{ "snp.launch_update", PLAIN, "AMD-ASPFW SNP_LAUNCH_UPDATE: Pre-Guest only, else INVALID_PAGE_STATE",
	  ROW(NO, GUEST_VALID, NO, NO, NO, NO, NO) },
	{ "snp.pvalidate", PLAIN, "MS pvalidate, Linux coco/sev/shared.c; #NPF if immutable, inferred",
	  ROW(NO, NO, GUEST_VALID, GUEST_VALID, NO, NO, NO) },
	{ "snp.pvalidate_rescind", PLAIN, "MS pvalidate, Linux coco/sev/shared.c; #NPF if immutable, inferred",
	  ROW(NO, NO, GUEST_INVALID, GUEST_INVALID, NO, NO, NO) },
	{ "snp.page_reclaim", PLAIN, "AMD-ASPFW SNP_PAGE_RECLAIM: by state; nothing to do unless immutable",
	  ROW(NORMAL, GUEST_INVALID, GUEST_INVALID, GUEST_VALID, GUEST_VALID, OUT, SHARED) },
	{ "snp.swap_out", PLAIN, "AMD-ASPFW SNP_SWAP_OUT of an immutable page, then SNP_PAGE_RECLAIM, RMPUPDATE to Hypervisor",
	  ROW(NO, OUT, OUT, OUT, OUT, NO, NO) },
};
/* clang-format on */
#undef NO

#define LAUNCH                                                 \
	{                                                      \
		"snp.rmpupdate_immutable", "snp.launch_update" \
	}
#define ACCEPT                                   \
	{                                        \
		"snp.rmpupdate", "snp.pvalidate" \
	}
#define GIVE_UP(name)      \
	{                  \
		name, NULL \
	}

extern const struct arch_law snp_law;
const struct arch_law snp_law = {
	.name = "snp",
	.state_count = SHARED + 1,
	.states = {
		[NORMAL] = { "Hypervisor", GFN_NORMAL },
		[PRE_GUEST] = { "Pre-Guest", GFN_SECURE_RESIDENT },
		[GUEST_INVALID] = { "Guest-Invalid", GFN_SECURE_RESIDENT },
		[GUEST_VALID] = { "Guest-Valid", GFN_SECURE_RESIDENT },
		[PRE_SWAP] = { "Pre-Swap", GFN_SECURE_RESIDENT },
		[OUT] = { "Paged-Out", GFN_SECURE_OUT },
		[SHARED] = { "Hypervisor", GFN_SHARED },
	},
	.rest = {
		[GFN_NORMAL] = NORMAL, [GFN_SECURE_RESIDENT] = GUEST_VALID,
		[GFN_SECURE_OUT] = OUT, [GFN_SHARED] = SHARED,
	},
	.ops = ops,
	.op_count = PW_ARRAY_LEN(ops),
	/* An unshare without frames is the VMM's attribute alone: no RMP entry changes. */
	.trails = {
		[VM_TRANSIENT] = {
			[GFN_PAGE_IN] = LAUNCH, [GFN_UNSHARE_IN] = LAUNCH,
			[GFN_SHARE] = GIVE_UP("snp.rmpupdate"), [GFN_PAGE_OUT] = GIVE_UP("snp.swap_out"),
		},
		[VM_SECURE] = {
			[GFN_PAGE_IN] = ACCEPT, [GFN_UNSHARE_IN] = ACCEPT,
			[GFN_SHARE] = GIVE_UP("snp.rmpupdate"), [GFN_PAGE_OUT] = GIVE_UP("snp.swap_out"),
		},
	},
};
