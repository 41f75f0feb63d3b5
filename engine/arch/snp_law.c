#include "engine/arch/law.h"

/* A GFN's states: those of the RMP entry of the frame behind it. What has no frame is named by whose it is. */
enum { NORMAL, PRE_GUEST, GUEST_INVALID, GUEST_VALID, PRE_SWAP, OUT, SHARED };
/* Of the guest, as firmware keeps it in its context page. From LAUNCH_FINISH to init_done it is RUNNING and runs
 * nothing. */
enum { LAUNCH_STATE, FINISHED, RUNNING, VM_STATES };
#define NO ARCH_REFUSED

/* clang-format off */
#define ROW(normal, pre_guest, guest_invalid, guest_valid, pre_swap, out, shared)                         \
	{ [NORMAL] = normal, [PRE_GUEST] = pre_guest, [GUEST_INVALID] = guest_invalid,                    \
	  [GUEST_VALID] = guest_valid, [PRE_SWAP] = pre_swap, [OUT] = out, [SHARED] = shared }
#define FRAMED true
#define PLAIN  false

#define ANY      1u << LAUNCH_STATE | 1u << FINISHED | 1u << RUNNING
#define CPU      ANY, "MS, Linux: the host's CPU knows no guest state"
#define LAUNCHED ANY, "AMD-ASPFW sev_mcmd.c: guest LAUNCH or RUNNING, else INVALID_GUEST_STATE"
#define NO_GUEST ANY, "AMD-ASPFW sev_mcmd.c, SNP_PAGE_RECLAIM: names no guest"
#define LAUNCHES 1u << LAUNCH_STATE, "AMD-ASPFW sev_mcmd.c, SNP_LAUNCH_UPDATE: guest LAUNCH, else INVALID_GUEST_STATE"
#define RUNS     1u << RUNNING, "MS pvalidate: an instruction of the guest, which runs once it is RUNNING"

/*
 * The first four name a Hypervisor frame for the GFN. Hardware would let RMPUPDATE take a page that is a guest's already;
 * this law does not, as the model does not in strict mode.
 */
static const struct arch_op ops[] = {
	{ "snp.rmpupdate", FRAMED, "Linux rmp_make_private, MS rmpupdate: to Guest-Invalid; refused on an assigned page by L1",
	  CPU, ROW(GUEST_INVALID, NO, NO, NO, NO, GUEST_INVALID, GUEST_INVALID) },
	{ "snp.rmpupdate_immutable", FRAMED, "Linux rmp_make_private, MS rmpupdate: to Pre-Guest; refused on an assigned page by L1",
	  CPU, ROW(PRE_GUEST, NO, NO, NO, NO, PRE_GUEST, PRE_GUEST) },
	{ "snp.launch_update", FRAMED, "Linux sev_gmem_post_populate: RMPUPDATE to Pre-Guest, SNP_LAUNCH_UPDATE; EEXIST on an assigned page",
	  LAUNCHES, ROW(GUEST_VALID, NO, NO, NO, NO, GUEST_VALID, GUEST_VALID) },
	{ "snp.swap_in", FRAMED, "AMD-ASPFW SNP_SWAP_IN: RMPUPDATE to Pre-Guest, then Pre-Swap, if a metadata entry is valid",
	  LAUNCHED, ROW(NO, NO, NO, NO, NO, PRE_SWAP, NO) },
	{ "snp.rmpupdate", PLAIN, "Linux rmp_make_shared, MS rmpupdate: to Hypervisor; FAIL_PERMISSION if immutable",
	  CPU, ROW(SHARED, NO, SHARED, SHARED, NO, SHARED, SHARED) },
	{ "snp.rmpupdate_immutable", PLAIN, "MS rmpupdate: the immutable bit alone, which keeps validated, inferred",
	  CPU, ROW(NO, NO, PRE_GUEST, PRE_SWAP, NO, NO, NO) },
	{ "snp.launch_update", PLAIN, "AMD-ASPFW SNP_LAUNCH_UPDATE: Pre-Guest only, else INVALID_PAGE_STATE",
	  LAUNCHES, ROW(NO, GUEST_VALID, NO, NO, NO, NO, NO) },
	{ "snp.pvalidate", PLAIN, "MS pvalidate, Linux coco/sev/shared.c; #NPF if immutable, inferred",
	  RUNS, ROW(NO, NO, GUEST_VALID, GUEST_VALID, NO, NO, NO) },
	{ "snp.pvalidate_rescind", PLAIN, "MS pvalidate, Linux coco/sev/shared.c; #NPF if immutable, inferred",
	  RUNS, ROW(NO, NO, GUEST_INVALID, GUEST_INVALID, NO, NO, NO) },
	{ "snp.page_reclaim", PLAIN, "AMD-ASPFW SNP_PAGE_RECLAIM: by state; nothing to do unless immutable",
	  NO_GUEST, ROW(NORMAL, GUEST_INVALID, GUEST_INVALID, GUEST_VALID, GUEST_VALID, OUT, SHARED) },
	{ "snp.swap_out", PLAIN, "AMD-ASPFW SNP_SWAP_OUT of an immutable page, then SNP_PAGE_RECLAIM, RMPUPDATE to Hypervisor",
	  LAUNCHED, ROW(NO, OUT, OUT, OUT, OUT, NO, NO) },
};

static const struct arch_vm_op vm_ops[] = {
	{ "snp.launch_finish", "AMD-ASPFW SNP_LAUNCH_FINISH: guest LAUNCH, else INVALID_GUEST_STATE",
	  { [LAUNCH_STATE] = FINISHED, [FINISHED] = NO, [RUNNING] = NO } },
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
	.vm_states = {
		[LAUNCH_STATE] = { "LAUNCH", VM_TRANSIENT, RUNNING },
		[FINISHED] = { "RUNNING", VM_TRANSIENT, RUNNING },
		[RUNNING] = { "RUNNING", VM_SECURE, ARCH_REFUSED },
	},
	.vm_state_count = VM_STATES,
	.vm_ops = vm_ops,
	.vm_op_count = PW_ARRAY_LEN(vm_ops),
	.sealed = "snp.launch_finish",
};
