#include "engine/arch/tdx.h"

#define TEXT_(name, text)          [name] = text,
#define TEXT3_(name, text, a)      [name] = text,
#define TEXT4_(name, text, a, b)   [name] = text,
#define FIRST3_(name, text, a)     [name] = a,
#define FIRST4_(name, text, a, b)  [name] = a,
#define SECOND4_(name, text, a, b) [name] = b,
static const char *const code_names[TDX_CODE_COUNT] = { TDX_CODES(TEXT4_) };
static const uint32_t code_values[TDX_CODE_COUNT] = { TDX_CODES(FIRST4_) };
static const char *const code_rules[TDX_CODE_COUNT] = { TDX_CODES(SECOND4_) };
static const char *const page_type_names[] = { TDX_PAGE_TYPES(TEXT3_) };
static const char *const sept_names[TDX_SEPT_COUNT] = { TDX_SEPT_STATES(TEXT4_) };
static const uint8_t sept_archs[TDX_SEPT_COUNT] = { TDX_SEPT_STATES(FIRST4_) };
static const uint8_t sept_codes[TDX_SEPT_COUNT] = { TDX_SEPT_STATES(SECOND4_) };
static const char *const op_names[TDX_OP_COUNT] = { TDX_OPS(TEXT3_) };
static const int op_leaves[TDX_OP_COUNT] = { TDX_OPS(FIRST3_) };
static const char *const lifecycle_names[TDX_LIFECYCLE_COUNT] = { TDX_LIFECYCLES(TEXT_) };
static const char *const op_state_names[TDX_OP_STATE_COUNT] = { TDX_OP_STATES(TEXT_) };
static const char *const hkid_state_names[TDX_HKID_STATE_COUNT] = { TDX_HKID_STATES(TEXT_) };
static const struct {
	uint32_t id;
	const char *name;
} operands[] = {
#define OPERAND_(symbol, text, value) { value, text },
	TDX_OPERANDS(OPERAND_)
};

const char *tdx_code_name(enum tdx_code c)
{
	return code_names[c];
}

const char *tdx_code_rule(enum tdx_code c)
{
	return code_rules[c];
}

uint64_t tdx_rax(const struct tdx_result *r)
{
	return (uint64_t)code_values[r->code] << 32 | r->operand;
}

const char *tdx_operand_name(uint32_t operand)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(operands); i++)
		if (operands[i].id == operand)
			return operands[i].name;
	return "";
}

const char *tdx_page_type_name(enum tdx_page_type t)
{
	return page_type_names[t];
}

const char *tdx_sept_name(enum tdx_sept s)
{
	return sept_names[s];
}

unsigned tdx_sept_arch(enum tdx_sept s)
{
	return sept_archs[s];
}

unsigned tdx_sept_encoded(enum tdx_sept s)
{
	return sept_codes[s];
}

bool tdx_sept_has_frame(enum tdx_sept s)
{
	return s == TDX_MAPPED || s == TDX_PENDING || s == TDX_BLOCKED || s == TDX_PENDING_BLOCKED;
}

bool tdx_sept_is_blocked(enum tdx_sept s)
{
	return s == TDX_BLOCKED || s == TDX_PENDING_BLOCKED || s == TDX_NL_BLOCKED;
}

const char *tdx_op_name(enum tdx_op op)
{
	return op_names[op];
}

int tdx_op_leaf(enum tdx_op op)
{
	return op_leaves[op];
}

const char *tdx_lifecycle_name(enum tdx_lifecycle s)
{
	return lifecycle_names[s];
}

const char *tdx_op_state_name(enum tdx_op_state s)
{
	return op_state_names[s];
}

const char *tdx_hkid_state_name(enum tdx_hkid_state s)
{
	return hkid_state_names[s];
}

/* The tables. */

/* clang-format off */
#define U 1u /* UNINITIALIZED */
#define I 2u /* INITIALIZED */
#define R 4u /* RUNNABLE */
#define ROOT TDX_TO_ROOT
#define RULE(tdr, min, max, versioned, states) { TDX_##tdr, min, max, versioned, states }
static const struct tdx_op_rule op_rules[TDX_OP_COUNT] = {
	[TDX_MNG_CREATE]    = RULE(RAX, 0, 0,    false, 0    ),
	[TDX_KEY_CONFIG]    = RULE(RCX, 0, 0,    false, 0    ),
	[TDX_MNG_ADDCX]     = RULE(RDX, 0, 0,    false, U    ), /* looked at beyond the 6th page */
	[TDX_MNG_INIT]      = RULE(RCX, 0, 0,    false, U    ),
	[TDX_VP_CREATE]     = RULE(RDX, 0, 0,    false, I    ),
	[TDX_VP_ADDCX]      = RULE(RAX, 0, 0,    false, I    ),
	[TDX_VP_INIT]       = RULE(RAX, 0, 0,    false, I    ),
	[TDX_VP_ENTER]      = RULE(RAX, 0, 0,    false, R    ),
	[TDX_VP_EXIT]       = RULE(RAX, 0, 0,    false, 0    ),
	[TDX_VP_FLUSH]      = RULE(RAX, 0, 0,    false, 0    ),
	[TDX_MR_FINALIZE]   = RULE(RCX, 0, 0,    false, I    ),
	[TDX_VPFLUSHDONE]   = RULE(RCX, 0, 0,    false, 0    ),
	[TDX_CACHE_WB]      = RULE(RAX, 0, 0,    false, 0    ),
	[TDX_KEY_FREEID]    = RULE(RCX, 0, 0,    false, 0    ),
	[TDX_KEY_RECLAIMID] = RULE(RCX, 0, 0,    false, 0    ),
	[TDX_PAGE_RECLAIM]  = RULE(RAX, 0, 0,    false, 0    ),
	[TDX_PAGE_WBINVD]   = RULE(RAX, 0, 0,    false, 0    ),
	[TDX_PAGE_RDMD]     = RULE(RAX, 0, 0,    false, 0    ),
	[TDX_TRACK]         = RULE(RCX, 0, 0,    false, I | R),
	[TDX_SEPT_ADD]      = RULE(RDX, 1, ROOT, true,  I | R),
	[TDX_PAGE_ADD]      = RULE(RDX, 0, 0,    false, I    ),
	[TDX_PAGE_AUG]      = RULE(RDX, 0, 1,    false, I | R),
	[TDX_RANGE_BLOCK]   = RULE(RDX, 0, ROOT, false, I | R),
	[TDX_RANGE_UNBLOCK] = RULE(RDX, 0, ROOT, false, I | R),
	[TDX_PAGE_REMOVE]   = RULE(RDX, 0, 2,    false, I | R),
	[TDX_PAGE_RELOCATE] = RULE(RDX, 0, 0,    false, I | R),
	[TDX_PAGE_PROMOTE]  = RULE(RDX, 1, 2,    true,  I | R),
	[TDX_PAGE_DEMOTE]   = RULE(RDX, 1, 2,    false, I | R),
	[TDX_SEPT_REMOVE]   = RULE(RDX, 1, ROOT, true,  I | R),
	[TDX_MR_EXTEND]     = RULE(RDX, 0, 0,    false, I    ),
	[TDX_SEPT_RD]       = RULE(RDX, 0, ROOT, false, I | R),
	[TDX_ACCEPT]        = RULE(RAX, 0, 1,    false, 0    ),
};
#undef U
#undef I
#undef R
#undef ROOT
#undef RULE

#define TO(s)   { TDX_MOVE, TDX_##s, TDX_SUCCESS, false }
#define T(s)    { TDX_MOVE, TDX_##s, TDX_SUCCESS, true }
#define TC      { TDX_MOVE_AS_CHILDREN, TDX_MAPPED, TDX_SUCCESS, true }
#define OK      { TDX_STAY, TDX_FREE, TDX_SUCCESS, false }
#define NO(c)   { TDX_REFUSE, TDX_FREE, TDX_##c, false }
#define S       NO(EPT_ENTRY_STATE_INCORRECT)
#define A       NO(GPA_RANGE_ALREADY_BLOCKED)
#define N       NO(EPT_ENTRY_NOT_PRESENT)
#define DONE    NO(PAGE_ALREADY_ACCEPTED)
#define MIS     NO(PAGE_SIZE_MISMATCH)
#define X       { TDX_EXIT, TDX_FREE, TDX_SUCCESS, false }
#define ROW(free, mapped, pending, blocked, pending_blocked, nl_mapped, nl_blocked, removed)             \
	{ [TDX_FREE] = free, [TDX_MAPPED] = mapped, [TDX_PENDING] = pending, [TDX_BLOCKED] = blocked,    \
	  [TDX_PENDING_BLOCKED] = pending_blocked, [TDX_NL_MAPPED] = nl_mapped,                          \
	  [TDX_NL_BLOCKED] = nl_blocked, [TDX_REMOVED] = removed }

static const struct tdx_sept_cell cells[TDX_OP_COUNT][TDX_SEPT_COUNT] = {
	/*                                FREE           MAPPED       PENDING              BLOCKED    PENDING_BL. NL_MAPPED     NL_BLOCKED    REMOVED */
	[TDX_SEPT_ADD]              = ROW(TO(NL_MAPPED), S,           S,                   S,         S,          S,            S,            S          ),
	[TDX_PAGE_ADD]              = ROW(TO(MAPPED),    S,           S,                   S,         S,          S,            S,            S          ),
	[TDX_PAGE_AUG]              = ROW(TO(PENDING),   S,           S,                   S,         S,          S,            S,            TO(PENDING)),
	[TDX_RANGE_BLOCK]           = ROW(S,             TO(BLOCKED), TO(PENDING_BLOCKED), A,         A,          TO(NL_BLOCKED), A,          S          ),
	[TDX_RANGE_UNBLOCK]         = ROW(S,             S,           S,                   T(MAPPED), T(PENDING), S,            T(NL_MAPPED), S          ),
	[TDX_PAGE_REMOVE]           = ROW(S,             T(FREE),     T(FREE),             T(FREE),   T(FREE),    S,            S,            S          ),
	[TDX_PAGE_RELOCATE]         = ROW(S,             T(MAPPED),   T(PENDING),          T(MAPPED), T(PENDING), S,            S,            S          ),
	[TDX_PAGE_PROMOTE]          = ROW(S,             S,           S,                   S,         S,          TC,           TC,           S          ),
	[TDX_PAGE_DEMOTE]           = ROW(S,             T(NL_MAPPED), T(NL_MAPPED),       T(NL_MAPPED), T(NL_MAPPED), S,       S,            S          ),
	[TDX_SEPT_REMOVE]           = ROW(S,             S,           S,                   S,         S,          T(FREE),      T(FREE),      S          ),
	[TDX_MR_EXTEND]             = ROW(N,             OK,          N,                   N,         N,          N,            N,            N          ),
	[TDX_SEPT_RD]               = ROW(OK,            OK,          OK,                  OK,        OK,         OK,           OK,           OK         ),
	[TDX_ACCEPT]                = ROW(X,             DONE,        TO(MAPPED),          X,         X,          MIS,          MIS,          X          ),
};
#undef TO
#undef T
#undef TC
#undef OK
#undef NO
#undef S
#undef A
#undef N
#undef DONE
#undef MIS
#undef X
#undef ROW
/* clang-format on */

const struct tdx_sept_cell *tdx_sept_cell(enum tdx_sept s, enum tdx_op op)
{
	return &cells[op][s];
}

const struct tdx_op_rule *tdx_op_rule(enum tdx_op op)
{
	return &op_rules[op];
}

bool tdx_tables_are_total(void)
{
	for (int op = TDX_SEPT_ADD; op < TDX_OP_COUNT; op++)
		for (int s = 0; s < TDX_SEPT_COUNT; s++)
			if (cells[op][s].kind == TDX_UNDECIDED)
				return false;
	for (int op = 0; op < TDX_OP_COUNT; op++)
		if (op_rules[op].max_level < op_rules[op].min_level)
			return false;
	return true;
}
