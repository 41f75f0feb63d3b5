#include "engine/arch/law.h"

/* A GFN's states: those of its secure EPT entry. The module keeps one FREE, whosever the page is; the VMM knows whose.
 */
enum { NORMAL, PENDING, MAPPED, BLOCKED, PENDING_BLOCKED, OUT, SHARED };
/* Of the TD: its OP_STATE. What is before MNG.INIT has no pages, and is INITIALIZED here too. */
enum { INITIALIZED, FINALIZED, RUNNABLE, VM_STATES };
#define NO ARCH_REFUSED

/* clang-format off */
#define ROW(normal, pending, mapped, blocked, pending_blocked, out, shared)                               \
	{ [NORMAL] = normal, [PENDING] = pending, [MAPPED] = mapped, [BLOCKED] = blocked,                 \
	  [PENDING_BLOCKED] = pending_blocked, [OUT] = out, [SHARED] = shared }
#define FRAMED true
#define PLAIN  false

#define BUILT    1u << INITIALIZED, "tdx-module 1.5 op_state_lookup: INITIALIZED, else OP_STATE_INCORRECT"
#define EITHER   1u << INITIALIZED | 1u << FINALIZED | 1u << RUNNABLE, "tdx-module 1.5 op_state_lookup: INITIALIZED, RUNNABLE"
#define AUGMENTS 1u << RUNNABLE, "Linux tdx.c: no AUG before the TD is RUNNABLE, though the module has it"
#define ACCEPTS  1u << RUNNABLE, "tdx-module 1.5 op_state_lookup: the guest's own call, by VP.ENTER of a RUNNABLE TD"
#define ASKED    1u << RUNNABLE, "GHCI MapGPA: the guest asks, by VP.ENTER of a RUNNABLE TD"

/*
 * The tdx.mem.* rows are what the module answers to a RUNNABLE TD (PAGE.ADD: to one before FINALIZE), after the TRACK that
 * it asks for. It would also ADD or AUG under a shared alias, which it cannot see: L9 refuses that here, and a
 * conversion has a name of its own. The tdx.mapgpa.* rows are the VMM's half of MapGPA, its calls in order.
 */
static const struct arch_op ops[] = {
	{ "tdx.mem.page.add", FRAMED, "tdx-module 1.5 sept_state_lookup, TDH.MEM.PAGE.ADD",
	  BUILT, ROW(MAPPED, NO, NO, NO, NO, MAPPED, NO) },
	{ "tdx.mem.page.aug", FRAMED, "tdx-module 1.5 sept_state_lookup, TDH.MEM.PAGE.AUG",
	  AUGMENTS, ROW(PENDING, NO, NO, NO, NO, PENDING, NO) },
	{ "tdx.mapgpa.private", FRAMED, "GHCI MapGPA; Linux tdx.c: unmap the shared alias, TDH.MEM.PAGE.AUG",
	  ASKED, ROW(PENDING, NO, NO, NO, NO, PENDING, PENDING) },
	{ "tdx.mem.page.accept", PLAIN, "tdx-module 1.5 tdg_mem_page_accept",
	  ACCEPTS, ROW(NO, MAPPED, NO, NO, NO, NO, NO) },
	{ "tdx.mem.range.block", PLAIN, "tdx-module 1.5 sept_state_lookup, TDH.MEM.RANGE.BLOCK",
	  EITHER, ROW(NO, PENDING_BLOCKED, BLOCKED, NO, NO, NO, NO) },
	{ "tdx.mem.range.unblock", PLAIN, "tdx-module 1.5 sept_state_lookup, TDH.MEM.RANGE.UNBLOCK, tracked",
	  EITHER, ROW(NO, NO, NO, MAPPED, PENDING, NO, NO) },
	{ "tdx.mem.page.remove", PLAIN, "tdx-module 1.5 sept_state_lookup, TDH.MEM.PAGE.REMOVE, tracked",
	  EITHER, ROW(NO, NO, NO, OUT, OUT, NO, NO) },
	{ "tdx.mapgpa.shared", PLAIN, "GHCI MapGPA; Linux tdx.c: RANGE.BLOCK, TRACK, PAGE.REMOVE, map the shared alias",
	  ASKED, ROW(SHARED, SHARED, SHARED, SHARED, SHARED, SHARED, SHARED) },
	{ "tdx.mapgpa.private", PLAIN, "GHCI MapGPA; Linux tdx.c: unmap the shared alias",
	  ASKED, ROW(OUT, PENDING, MAPPED, BLOCKED, PENDING_BLOCKED, OUT, OUT) },
};

static const struct arch_vm_op vm_ops[] = {
	{ "tdx.mr.finalize", "tdx-module 1.5 op_state_lookup, TDH.MR.FINALIZE: INITIALIZED, else OP_STATE_INCORRECT",
	  { [INITIALIZED] = FINALIZED, [FINALIZED] = NO, [RUNNABLE] = NO } },
};
/* clang-format on */
#undef NO

#define TRAIL(item, done)  \
	{                  \
		item, done \
	}

extern const struct arch_law tdx_law;
const struct arch_law tdx_law = {
	.name = "tdx",
	.state_count = SHARED + 1,
	.states = {
		[NORMAL] = { "FREE", GFN_NORMAL },
		[PENDING] = { "PENDING", GFN_SECURE_RESIDENT },
		[MAPPED] = { "MAPPED", GFN_SECURE_RESIDENT },
		[BLOCKED] = { "BLOCKED", GFN_SECURE_RESIDENT },
		[PENDING_BLOCKED] = { "PENDING_BLOCKED", GFN_SECURE_RESIDENT },
		[OUT] = { "FREE", GFN_SECURE_OUT },
		[SHARED] = { "FREE", GFN_SHARED },
	},
	.rest = {
		[GFN_NORMAL] = NORMAL, [GFN_SECURE_RESIDENT] = MAPPED,
		[GFN_SECURE_OUT] = OUT, [GFN_SHARED] = SHARED,
	},
	.ops = ops,
	.op_count = PW_ARRAY_LEN(ops),
	/* A guest that does not run yet asks for no MapGPA: what the VMM then shares and takes back is the law's own
	 * operation. So is page_out: block, track and remove, of which the ledger hears when the frames are back. */
	.trails = {
		[VM_TRANSIENT] = {
			[GFN_PAGE_IN] = TRAIL("tdx.mem.page.add", NULL),
		},
		[VM_SECURE] = {
			[GFN_PAGE_IN] = TRAIL("tdx.mem.page.aug", "tdx.mem.page.accept"),
			[GFN_UNSHARE_IN] = TRAIL("tdx.mapgpa.private", "tdx.mem.page.accept"),
			[GFN_SHARE] = TRAIL("tdx.mapgpa.shared", NULL),
			[GFN_UNSHARE] = TRAIL("tdx.mapgpa.private", NULL),
		},
	},
	.shared_bits = (uint64_t)1 << 47 | (uint64_t)1 << 51, /* MNG.INIT: of GPAs of 48 bits and of 52 */
	.vm_states = {
		[INITIALIZED] = { "INITIALIZED", VM_TRANSIENT, RUNNABLE },
		[FINALIZED] = { "RUNNABLE", VM_TRANSIENT, RUNNABLE },
		[RUNNABLE] = { "RUNNABLE", VM_SECURE, ARCH_REFUSED },
	},
	.vm_state_count = VM_STATES,
	.vm_ops = vm_ops,
	.vm_op_count = PW_ARRAY_LEN(vm_ops),
	.sealed = "tdx.mr.finalize",
};
