#include "engine/arch/pef.h"

#define TEXT_(name, text)         [name] = text,
#define TEXT3_(name, text, value) [name] = text,
#define VALUE_(name, text, value) [name] = value,
static const char *const code_names[PEF_CODE_COUNT] = { PEF_CODES(TEXT3_) };
static const int code_values[PEF_CODE_COUNT] = { PEF_CODES(VALUE_) };
static const char *const vm_state_names[PEF_VM_STATE_COUNT] = { PEF_VM_STATES(TEXT_) };
static const char *const vm_event_names[PEF_VM_EVENT_COUNT] = { PEF_VM_EVENTS(TEXT_) };
static const char *const gfn_state_names[PEF_GFN_STATE_COUNT] = { PEF_GFN_STATES(TEXT_) };
static const char *const gfn_op_names[PEF_GFN_OP_COUNT] = { PEF_GFN_OPS(TEXT_) };

const char *pef_code_name(enum pef_code c)
{
	return code_names[c];
}

int pef_code_value(enum pef_code c)
{
	return code_values[c];
}

const char *pef_vm_state_name(enum pef_vm_state s)
{
	return vm_state_names[s];
}

const char *pef_vm_event_name(enum pef_vm_event e)
{
	return vm_event_names[e];
}

const char *pef_gfn_state_name(enum pef_gfn_state s)
{
	return gfn_state_names[s];
}

const char *pef_gfn_op_name(enum pef_gfn_op op)
{
	return gfn_op_names[op];
}

/* The tables. Where the design says Error and the kernel has no code for it, H_STATE. */

/* clang-format off */
#define MOVE(s, c)   { PEF_VM_MOVE, PEF_VM_##s, PEF_H_##c, false }
#define STAY(s)      { PEF_VM_STAY, PEF_VM_##s, PEF_H_SUCCESS, false }
#define REFUSE(s, c) { PEF_VM_REFUSE, PEF_VM_##s, PEF_H_##c, false }
#define ERROR(s)     { PEF_VM_REFUSE, PEF_VM_##s, PEF_H_STATE, true } /* the design's; the kernel does not check */
#define ROW(start, done, abort, off) \
	{ [PEF_INIT_START] = start, [PEF_INIT_DONE] = done, [PEF_INIT_ABORT] = abort, [PEF_SVM_OFF] = off }

static const struct pef_vm_cell vm_cells[PEF_VM_STATE_COUNT][PEF_VM_EVENT_COUNT] = {
	/*                        INIT_START                 INIT_DONE                    INIT_ABORT                   SVM_OFF */
	[PEF_VM_NORMAL]    = ROW(MOVE(TRANSIENT, SUCCESS),  REFUSE(NORMAL, UNSUPPORTED), REFUSE(NORMAL, UNSUPPORTED), STAY(NORMAL)         ),
	[PEF_VM_TRANSIENT] = ROW(ERROR(TRANSIENT),          MOVE(SECURE, SUCCESS),       MOVE(NORMAL, PARAMETER),     MOVE(NORMAL, SUCCESS)),
	[PEF_VM_SECURE]    = ROW(ERROR(SECURE),             ERROR(SECURE),               REFUSE(SECURE, STATE),       MOVE(NORMAL, SUCCESS)),
};
#undef MOVE
#undef STAY
#undef REFUSE
#undef ERROR
#undef ROW

#define TO(s, contents, uv, c) { PEF_GFN_MOVE, PEF_##s, PEF_##contents, uv, PEF_##c, false }
#define INFER(s, contents, uv, c) { PEF_GFN_MOVE, PEF_##s, PEF_##contents, uv, PEF_##c, true }
#define STAY(s)                { PEF_GFN_STAY, PEF_##s, PEF_KEPT, 0, PEF_H_SUCCESS, false }
#define ASK(s)                 { PEF_GFN_STAY, PEF_##s, PEF_KEPT, 1, PEF_H_PARAMETER, false }
#define REFUSE(s)              { PEF_GFN_REFUSE, PEF_##s, PEF_KEPT, 0, PEF_H_PARAMETER, false }
#define ROW(page_in, share, page_out, touch, seal, migrate, seal_left, drop, abort)                    \
	{ [PEF_PAGE_IN] = page_in, [PEF_SHARE] = share, [PEF_PAGE_OUT] = page_out, [PEF_TOUCH] = touch, \
	  [PEF_SEAL] = seal, [PEF_MIGRATE] = migrate, [PEF_SEAL_LEFT] = seal_left, [PEF_DROP] = drop,   \
	  [PEF_ABORT] = abort }

/* An abort's page-out may be refused; its answer is then ignored, the contents are lost and the frame is free. */
static const struct pef_gfn_cell gfn_cells[PEF_GFN_STATE_COUNT][PEF_GFN_OP_COUNT] = {
	[PEF_SI] = ROW(
		/* page-in       */ REFUSE(SI),
		/* share         */ TO(SH, ZEROED, 1, H_PARAMETER),
		/* page-out      */ TO(SO, KEPT, 1, H_PARAMETER),
		/* touch         */ TO(SO, KEPT, 1, SIGBUS),
		/* seal          */ STAY(SI),
		/* migrate       */ STAY(SI),
		/* seal left     */ STAY(SI),
		/* drop          */ TO(NO, LOST, 0, H_SUCCESS),
		/* abort         */ INFER(NO, KEPT, 1, H_SUCCESS)),
	[PEF_SO] = ROW(
		/* page-in       */ TO(SI, KEPT, 1, H_PARAMETER),
		/* share         */ TO(SH, ZEROED, 1, H_PARAMETER),
		/* page-out      */ STAY(SO),
		/* touch         */ STAY(SO),
		/* seal          */ STAY(SO),
		/* migrate       */ STAY(SO),
		/* seal left     */ STAY(SO),
		/* drop          */ TO(NO, LOST, 0, H_SUCCESS),
		/* abort         */ TO(NO, LOST, 0, H_SUCCESS)),
	[PEF_SH] = ROW(
		/* page-in       */ TO(SI, ZEROED, 1, H_PARAMETER),
		/* share         */ ASK(SH),
		/* page-out      */ STAY(SH),
		/* touch         */ STAY(SH),
		/* seal          */ INFER(SO, ZEROED, 2, H_PARAMETER),
		/* migrate       */ STAY(SH),
		/* seal left     */ STAY(SH),
		/* drop          */ TO(NO, LOST, 0, H_SUCCESS),
		/* abort         */ TO(NO, KEPT, 0, H_SUCCESS)),
	[PEF_NO] = ROW(
		/* page-in       */ TO(SI, KEPT, 1, H_PARAMETER),
		/* share         */ TO(SH, ZEROED, 1, H_PARAMETER),
		/* page-out      */ STAY(NO),
		/* touch         */ STAY(NO),
		/* seal          */ INFER(SO, KEPT, 2, H_PARAMETER),
		/* migrate       */ INFER(SI, ZEROED, 0, H_STATE),
		/* seal left     */ INFER(SO, ZEROED, 0, H_STATE),
		/* drop          */ TO(NO, LOST, 0, H_SUCCESS),
		/* abort         */ STAY(NO)),
};
#undef TO
#undef INFER
#undef STAY
#undef ASK
#undef REFUSE
#undef ROW
/* clang-format on */

const struct pef_vm_cell *pef_vm_cell(enum pef_vm_state s, enum pef_vm_event e)
{
	return &vm_cells[s][e];
}

const struct pef_gfn_cell *pef_gfn_cell(enum pef_gfn_state s, enum pef_gfn_op op)
{
	return &gfn_cells[s][op];
}

bool pef_tables_are_total(void)
{
	for (int s = 0; s < PEF_VM_STATE_COUNT; s++)
		for (int e = 0; e < PEF_VM_EVENT_COUNT; e++)
			if (vm_cells[s][e].kind == PEF_VM_UNDECIDED)
				return false;
	for (int s = 0; s < PEF_GFN_STATE_COUNT; s++)
		for (int op = 0; op < PEF_GFN_OP_COUNT; op++)
			if (gfn_cells[s][op].kind == PEF_GFN_UNDECIDED)
				return false;
	return true;
}
