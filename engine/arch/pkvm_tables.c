#include "engine/arch/pkvm.h"

#include <stdio.h>

#define TEXT_(name, text)         [name] = text,
#define TEXT3_(name, text, about) [name] = text,
#define ABOUT_(name, text, about) [name] = about,
static const char *const page_state_names[PKVM_PAGE_STATE_COUNT] = { PKVM_PAGE_STATES(TEXT_) };
static const char *const joint_names[PKVM_JOINT_COUNT] = { PKVM_JOINTS(TEXT3_) };
static const char *const joint_texts[PKVM_JOINT_COUNT] = { PKVM_JOINTS(ABOUT_) };
static const char *const page_op_names[PKVM_PAGE_OP_COUNT] = { PKVM_PAGE_OPS(TEXT3_) };
static const char *const leaf_op_names[PKVM_LEAF_OP_COUNT] = { PKVM_LEAF_OPS(TEXT3_) };
static const char *const kind_names[PKVM_KIND_COUNT] = { PKVM_KINDS(TEXT_) };
static const char *const vm_state_names[PKVM_VM_STATE_COUNT] = { PKVM_VM_STATES(TEXT_) };
static const char *const vm_op_names[PKVM_VM_OP_COUNT] = { PKVM_VM_OPS(TEXT_) };

const char *pkvm_page_state_name(enum pkvm_page_state s)
{
	return page_state_names[s];
}

const char *pkvm_joint_name(enum pkvm_joint j)
{
	return joint_names[j];
}

const char *pkvm_joint_text(enum pkvm_joint j)
{
	return joint_texts[j];
}

const char *pkvm_page_op_name(enum pkvm_page_op op)
{
	return page_op_names[op];
}

const char *pkvm_leaf_op_name(enum pkvm_leaf_op op)
{
	return leaf_op_names[op];
}

const char *pkvm_kind_name(enum pkvm_kind k)
{
	return kind_names[k];
}

const char *pkvm_vm_state_name(enum pkvm_vm_state s)
{
	return vm_state_names[s];
}

const char *pkvm_vm_op_name(enum pkvm_vm_op op)
{
	return vm_op_names[op];
}

/* Host and hyp, by joint state. */
static const enum pkvm_page_state views[PKVM_JOINT_COUNT][2] = {
	[PKVM_A] = { PKVM_OWNED, PKVM_NOPAGE },          [PKVM_B] = { PKVM_NOPAGE, PKVM_OWNED },
	[PKVM_C] = { PKVM_SHARED_OWNED, PKVM_BORROWED }, [PKVM_D] = { PKVM_SHARED_OWNED, PKVM_NOPAGE },
	[PKVM_E] = { PKVM_SHARED_OWNED, PKVM_NOPAGE },   [PKVM_F] = { PKVM_NOPAGE, PKVM_NOPAGE },
	[PKVM_G] = { PKVM_BORROWED, PKVM_NOPAGE },
};

enum pkvm_page_state pkvm_joint_host(enum pkvm_joint j)
{
	return views[j][0];
}

enum pkvm_page_state pkvm_joint_hyp(enum pkvm_joint j)
{
	return views[j][1];
}

/* clang-format off */

/* Operations that name a page: state x operation. */
#define TO(s, src)             { PKVM_MOVE, PKVM_##s, PKVM_ALWAYS, PKVM_KEPT, PKVM_OK, PKVM_##src }
#define TO_UNLESS(s, why, src) { PKVM_MOVE, PKVM_##s, PKVM_UNLESS_##why, PKVM_KEPT, PKVM_EBUSY, PKVM_##src }
#define WIPE_TO(s, src)        { PKVM_MOVE, PKVM_##s, PKVM_ALWAYS, PKVM_ZEROED, PKVM_OK, PKVM_##src }
#define NO(code, src)          { PKVM_REFUSE, PKVM_A, PKVM_ALWAYS, PKVM_KEPT, PKVM_##code, PKVM_##src }
#define ROW(op, a, b, c, d, e, f, g)                                                                \
	[PKVM_A][op] = a, [PKVM_B][op] = b, [PKVM_C][op] = c, [PKVM_D][op] = d, [PKVM_E][op] = e, \
	[PKVM_F][op] = f, [PKVM_G][op] = g

static const struct pkvm_page_cell page_cells[PKVM_JOINT_COUNT][PKVM_PAGE_OP_COUNT] = {
	ROW(PKVM_HSH,
		/* A */ TO(C, TESTED),
		/* B */ NO(EPERM, TESTED),
		/* C */ NO(EPERM, TESTED),
		/* D */ NO(EPERM, TESTED),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_HUH,
		/* A */ NO(EPERM, TESTED),
		/* B */ NO(EPERM, TESTED),
		/* C */ TO_UNLESS(A, PINNED, TESTED),
		/* D */ NO(EPERM, TESTED),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_HDH,
		/* A */ TO(B, READ),
		/* B */ NO(EPERM, TESTED),
		/* C */ NO(EPERM, TESTED),
		/* D */ NO(EPERM, TESTED),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_YDH,
		/* A */ NO(EPERM, TESTED),
		/* B */ TO_UNLESS(A, REFERENCED, TESTED),
		/* C */ NO(EPERM, TESTED),
		/* D */ NO(EPERM, TESTED),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_PIN,
		/* A */ NO(EPERM, TESTED),
		/* B */ NO(EPERM, TESTED),
		/* C */ TO(C, TESTED),
		/* D */ NO(EPERM, TESTED),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_UNPIN,
		/* A */ NO(EPERM, INFERRED),
		/* B */ NO(EPERM, INFERRED),
		/* C */ TO(C, TESTED),
		/* D */ NO(EPERM, INFERRED),
		/* E */ NO(EPERM, INFERRED),
		/* F */ NO(EPERM, INFERRED),
		/* G */ NO(EPERM, INFERRED)),
	ROW(PKVM_HSF,
		/* A */ TO(D, TESTED),
		/* B */ NO(EPERM, TESTED),
		/* C */ NO(EPERM, TESTED),
		/* D */ NO(EPERM, TESTED),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	/* The code tests for host SHARED_OWNED alone; its callers come with ranges that FF-A has. So C and E. */
	ROW(PKVM_HUF,
		/* A */ NO(EPERM, TESTED),
		/* B */ NO(EPERM, TESTED),
		/* C */ NO(EPERM, INFERRED),
		/* D */ TO(A, TESTED),
		/* E */ NO(EPERM, INFERRED),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_HSG,
		/* A */ TO(E, READ),
		/* B */ NO(EPERM, TESTED),
		/* C */ NO(EPERM, TESTED),
		/* D */ NO(EPERM, TESTED),
		/* E */ TO_UNLESS(E, COUNT_FULL, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_HSG_TAKEN,
		/* A */ NO(EPERM, INFERRED),
		/* B */ NO(EPERM, INFERRED),
		/* C */ NO(EPERM, INFERRED),
		/* D */ NO(EPERM, INFERRED),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_HDG,
		/* A */ TO(F, READ),
		/* B */ NO(EPERM, TESTED),
		/* C */ NO(EPERM, TESTED),
		/* D */ NO(EPERM, TESTED),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_HDG_TAKEN,
		/* A */ NO(EPERM, READ),
		/* B */ NO(EPERM, READ),
		/* C */ NO(EPERM, READ),
		/* D */ NO(EPERM, READ),
		/* E */ NO(EPERM, READ),
		/* F */ NO(EPERM, READ),
		/* G */ NO(EPERM, READ)),
	ROW(PKVM_FRC,
		/* A */ NO(EAGAIN, READ),
		/* B */ NO(EPERM, READ),
		/* C */ NO(EAGAIN, READ),
		/* D */ NO(EAGAIN, READ),
		/* E */ NO(EAGAIN, READ),
		/* F */ WIPE_TO(A, READ),
		/* G */ NO(EAGAIN, READ)),
};
#undef TO
#undef TO_UNLESS
#undef WIPE_TO
#undef NO
#undef ROW

/* Operations that name a GFN: leaf x operation. No leaf names a page in A to D. */
#define TO(s, leaf, src)      { PKVM_MOVE, PKVM_##s, PKVM_##leaf, PKVM_KEPT, PKVM_OK, PKVM_##src }
#define WIPE_TO(s, leaf, src) { PKVM_MOVE, PKVM_##s, PKVM_##leaf, PKVM_ZEROED, PKVM_OK, PKVM_##src }
#define STAY(leaf, src)       { PKVM_STAY, PKVM_A, PKVM_##leaf, PKVM_KEPT, PKVM_OK, PKVM_##src }
#define NO(leaf, code, src)   { PKVM_REFUSE, PKVM_A, PKVM_##leaf, PKVM_KEPT, PKVM_##code, PKVM_##src }
#define ROW(hug, tune, gsh, guh, rcl, rlq)                                                         \
	{ [PKVM_HUG] = hug, [PKVM_TUNE] = tune, [PKVM_GSH] = gsh, [PKVM_GUH] = guh, [PKVM_RCL] = rcl, \
	  [PKVM_RLQ] = rlq }

static const struct pkvm_leaf_cell leaf_cells[PKVM_PAGE_STATE_COUNT][PKVM_LEAF_OP_COUNT] = {
	[PKVM_NOPAGE] = ROW(
		/* HUG  */ NO(NOPAGE, ENOENT, TESTED),
		/* TUNE */ NO(NOPAGE, ENOENT, INFERRED),
		/* GSH  */ NO(NOPAGE, ENOENT, READ),
		/* GUH  */ NO(NOPAGE, ENOENT, READ),
		/* RCL  */ NO(NOPAGE, ENOENT, READ),
		/* RLQ  */ STAY(NOPAGE, READ)),
	[PKVM_BORROWED] = ROW(
		/* HUG  */ TO(A, NOPAGE, READ),
		/* TUNE */ STAY(BORROWED, INFERRED),
		/* GSH  */ NO(BORROWED, EPERM, READ),
		/* GUH  */ NO(BORROWED, EPERM, READ),
		/* RCL  */ NO(BORROWED, EPERM, READ),
		/* RLQ  */ STAY(BORROWED, READ)),
	[PKVM_OWNED] = ROW(
		/* HUG  */ NO(OWNED, EPERM, READ),
		/* TUNE */ NO(OWNED, EPERM, READ),
		/* GSH  */ TO(G, SHARED_OWNED, READ),
		/* GUH  */ NO(OWNED, EPERM, READ),
		/* RCL  */ WIPE_TO(A, NOPAGE, READ),
		/* RLQ  */ WIPE_TO(A, NOPAGE, READ)),
	[PKVM_SHARED_OWNED] = ROW(
		/* HUG  */ NO(SHARED_OWNED, EPERM, READ),
		/* TUNE */ NO(SHARED_OWNED, EPERM, READ),
		/* GSH  */ NO(SHARED_OWNED, EPERM, READ),
		/* GUH  */ TO(F, OWNED, READ),
		/* RCL  */ TO(A, NOPAGE, READ),
		/* RLQ  */ NO(SHARED_OWNED, EPERM, READ)),
	[PKVM_POISON] = ROW(
		/* HUG  */ NO(POISON, ENOENT, READ),
		/* TUNE */ NO(POISON, ENOENT, INFERRED),
		/* GSH  */ NO(POISON, EHWPOISON, READ),
		/* GUH  */ NO(POISON, EHWPOISON, READ),
		/* RCL  */ STAY(POISON, READ),
		/* RLQ  */ STAY(POISON, READ)),
};
#undef TO
#undef WIPE_TO
#undef STAY
#undef NO
#undef ROW

/* VMs: state of the slot in the table x operation. Where it refuses silently (load) the code is not told. */
#define TO(s)        { PKVM_MOVE, PKVM_VM_##s, false, PKVM_OK, PKVM_READ }
#define TO_FULL(s)   { PKVM_MOVE, PKVM_VM_##s, false, PKVM_ENOMEM, PKVM_READ }
#define TO_UNREF(s)  { PKVM_MOVE, PKVM_VM_##s, true, PKVM_EINVAL, PKVM_READ }
#define STAY(s, src) { PKVM_STAY, PKVM_VM_##s, false, PKVM_OK, PKVM_##src }
#define NO(s, code)  { PKVM_REFUSE, PKVM_VM_##s, false, PKVM_##code, PKVM_READ }
#define ROW(reserve, unreserve, init_vm, init_vcpu, load, start, reclaim, finalize)                        \
	{ [PKVM_RESERVE] = reserve, [PKVM_UNRESERVE] = unreserve, [PKVM_INIT_VM] = init_vm,                \
	  [PKVM_INIT_VCPU] = init_vcpu, [PKVM_LOAD] = load, [PKVM_START_TEARDOWN] = start,                 \
	  [PKVM_RECLAIM] = reclaim, [PKVM_FINALIZE] = finalize }

static const struct pkvm_vm_cell vm_cells[PKVM_VM_STATE_COUNT][PKVM_VM_OP_COUNT] = {
	[PKVM_VM_FREE] = ROW(
		/* reserve   */ TO_FULL(RESERVED),
		/* unreserve */ STAY(FREE, READ),
		/* init_vm   */ NO(FREE, EINVAL),
		/* init_vcpu */ NO(FREE, ENOENT),
		/* load      */ NO(FREE, EINVAL),
		/* teardown  */ NO(FREE, EINVAL),
		/* reclaim   */ NO(FREE, EINVAL),
		/* finalize  */ NO(FREE, EINVAL)),
	[PKVM_VM_RESERVED] = ROW(
		/* reserve   */ NO(RESERVED, EBUSY),
		/* unreserve */ TO(FREE),
		/* init_vm   */ TO(CREATED),
		/* init_vcpu */ NO(RESERVED, ENOENT),
		/* load      */ NO(RESERVED, EINVAL),
		/* teardown  */ NO(RESERVED, EINVAL),
		/* reclaim   */ NO(RESERVED, EINVAL),
		/* finalize  */ NO(RESERVED, EINVAL)),
	[PKVM_VM_CREATED] = ROW(
		/* reserve   */ NO(CREATED, EBUSY),
		/* unreserve */ STAY(CREATED, READ),
		/* init_vm   */ NO(CREATED, EINVAL),
		/* init_vcpu */ STAY(CREATED, READ),
		/* load      */ STAY(CREATED, READ),
		/* teardown  */ TO_UNREF(DYING),
		/* reclaim   */ NO(CREATED, EINVAL),
		/* finalize  */ NO(CREATED, EINVAL)),
	[PKVM_VM_DYING] = ROW(
		/* reserve   */ NO(DYING, EBUSY),
		/* unreserve */ STAY(DYING, READ),
		/* init_vm   */ NO(DYING, EINVAL),
		/* init_vcpu */ STAY(DYING, INFERRED),
		/* load      */ NO(DYING, EINVAL),
		/* teardown  */ NO(DYING, EINVAL),
		/* reclaim   */ STAY(DYING, READ),
		/* finalize  */ TO_UNREF(FREE)),
};
#undef TO
#undef TO_FULL
#undef TO_UNREF
#undef STAY
#undef NO
#undef ROW
/* clang-format on */

const struct pkvm_page_cell *pkvm_page_cell(enum pkvm_joint j, enum pkvm_page_op op)
{
	return &page_cells[j][op];
}

const struct pkvm_leaf_cell *pkvm_leaf_cell(enum pkvm_page_state s, enum pkvm_leaf_op op)
{
	return &leaf_cells[s][op];
}

const struct pkvm_vm_cell *pkvm_vm_cell(enum pkvm_vm_state s, enum pkvm_vm_op op)
{
	return &vm_cells[s][op];
}

bool pkvm_tables_are_total(void)
{
	for (int j = 0; j < PKVM_JOINT_COUNT; j++)
		for (int op = 0; op < PKVM_PAGE_OP_COUNT; op++)
			if (page_cells[j][op].kind == PKVM_UNDECIDED)
				return false;
	for (int s = 0; s < PKVM_PAGE_STATE_COUNT; s++)
		for (int op = 0; op < PKVM_LEAF_OP_COUNT; op++)
			if (leaf_cells[s][op].kind == PKVM_UNDECIDED)
				return false;
	for (int s = 0; s < PKVM_VM_STATE_COUNT; s++)
		for (int op = 0; op < PKVM_VM_OP_COUNT; op++)
			if (vm_cells[s][op].kind == PKVM_UNDECIDED)
				return false;
	for (int e = 0; e < PKVM_EXIT_COUNT; e++)
		if (!pkvm_exit_row((enum pkvm_exit)e)->decided)
			return false;
	return true;
}

/* The law's words. A protected VM's page that has no frame, or had it taken, is secure and out. */
enum gfn_state pkvm_project(enum pkvm_kind k, enum pkvm_page_state s)
{
	switch (s) {
	case PKVM_OWNED: return GFN_SECURE_RESIDENT;
	case PKVM_SHARED_OWNED: return GFN_SHARED;
	case PKVM_BORROWED: return GFN_NORMAL;
	case PKVM_POISON: return GFN_SECURE_OUT;
	case PKVM_NOPAGE:
	case PKVM_PAGE_STATE_COUNT: break;
	}
	return k == PKVM_PROTECTED ? GFN_SECURE_OUT : GFN_NORMAL;
}

enum vm_state pkvm_project_vm(enum pkvm_kind k, enum pkvm_vm_state s, bool ran)
{
	if (k != PKVM_PROTECTED || s == PKVM_VM_FREE || s == PKVM_VM_RESERVED)
		return VM_NORMAL;
	return ran ? VM_SECURE : VM_TRANSIENT;
}

/* Explaining. */

static const char *source_text(enum pkvm_source s)
{
	switch (s) {
	case PKVM_TESTED: return "asserted by pkvm_ownership_selftest";
	case PKVM_READ: return "read";
	case PKVM_INFERRED: break;
	}
	return "inferred, unverified";
}

void pkvm_explain_page(enum pkvm_page_op op, const struct pkvm_call *c, const struct pkvm_answer *a, char *out,
		       size_t size)
{
	snprintf(out, size, "%s of page %" PRIu64 " in state %s (host %s, hyp %s): %s (%s); mem_protect.c, %s",
		 pkvm_page_op_name(op), c->pfn + a->page, pkvm_joint_name(a->joint),
		 pkvm_page_state_name(pkvm_joint_host(a->joint)), pkvm_page_state_name(pkvm_joint_hyp(a->joint)),
		 pkvm_code_name(a->code), a->rule, source_text(a->source));
}

void pkvm_explain_leaf(enum pkvm_leaf_op op, const struct pkvm_call *c, const struct pkvm_answer *a, char *out,
		       size_t size)
{
	snprintf(out, size, "%s of GFN %" PRIu64 " in state %s: %s (%s); mem_protect.c, %s", pkvm_leaf_op_name(op),
		 c->gfn + a->page, pkvm_page_state_name(a->leaf), pkvm_code_name(a->code), a->rule,
		 source_text(a->source));
}
