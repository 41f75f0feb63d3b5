#include "engine/arch/cca.h"

#define TEXT_(name, text)            [name] = text,
#define TEXT3_(name, text, value)    [name] = text,
#define VALUE_(name, text, value)    [name] = value,
#define NAME_(name, text, hip, rip)  [name] = text,
#define HIPAS_(name, text, hip, rip) [name] = hip,
#define RIPAS_(name, text, hip, rip) [name] = rip,
static const char *const granule_names[CCA_GRANULE_COUNT] = { CCA_GRANULES(TEXT_) };
static const char *const realm_state_names[CCA_REALM_STATE_COUNT] = { CCA_REALM_STATES(TEXT_) };
static const char *const status_names[CCA_STATUS_COUNT] = { CCA_STATUSES(TEXT_) };
static const char *const ripas_names[CCA_RIPAS_COUNT] = { CCA_RIPAS(TEXT_) };
static const char *const entry_names[CCA_ENTRY_COUNT] = { CCA_ENTRIES(NAME_) };
static const char *const entry_hipas[CCA_ENTRY_COUNT] = { CCA_ENTRIES(HIPAS_) };
static const char *const entry_ripas[CCA_ENTRY_COUNT] = { CCA_ENTRIES(RIPAS_) };
static const char *const entry_op_names[CCA_ENTRY_OP_COUNT] = { CCA_ENTRY_OPS(TEXT_) };
static const char *const command_names[CCA_COMMAND_COUNT] = { CCA_COMMANDS(TEXT3_) };
static const uint32_t command_fids[CCA_COMMAND_COUNT] = { CCA_COMMANDS(VALUE_) };
static const char *const arg_names[CCA_ARG_COUNT] = { CCA_ARGS(TEXT_) };
static const char *const out_names[CCA_OUT_COUNT] = { CCA_OUTS(TEXT_) };
static const char *const exit_names[CCA_EXIT_COUNT] = { CCA_EXITS(TEXT_) };
static const char *const check_texts[CCA_CHECK_COUNT] = { CCA_CHECKS(TEXT_) };

const char *cca_granule_name(enum cca_granule g)
{
	return granule_names[g];
}

const char *cca_realm_state_name(enum cca_realm_state s)
{
	return realm_state_names[s];
}

const char *cca_status_name(enum cca_status s)
{
	return status_names[s];
}

const char *cca_ripas_name(enum cca_ripas r)
{
	return ripas_names[r];
}

const char *cca_entry_name(enum cca_entry e)
{
	return entry_names[e];
}

const char *cca_entry_hipas(enum cca_entry e)
{
	return entry_hipas[e];
}

const char *cca_entry_ripas(enum cca_entry e)
{
	return entry_ripas[e];
}

const char *cca_entry_op_name(enum cca_entry_op op)
{
	return entry_op_names[op];
}

const char *cca_command_name(enum cca_command c)
{
	return command_names[c];
}

uint32_t cca_command_fid(enum cca_command c)
{
	return command_fids[c];
}

const char *cca_arg_name(enum cca_arg a)
{
	return arg_names[a];
}

const char *cca_out_name(enum cca_out o)
{
	return out_names[o];
}

const char *cca_exit_name(enum cca_exit e)
{
	return exit_names[e];
}

const char *cca_check_text(enum cca_check_kind k)
{
	return check_texts[k];
}

/* clang-format off */

/* Entries: live, keeps its table, folds in a table of which levels (A5.3.1, A5.5.6). Level 0 tables have no parent, and
 * no leaf may stand in one, so pages and blocks fold from levels 2 and 3 only. */
#define L123 0xeu
#define L23  0xcu
static const struct cca_entry_kind entry_kinds[CCA_ENTRY_COUNT] = {
	[CCA_UNASSIGNED_EMPTY]     = { false, false, L123 },
	[CCA_UNASSIGNED_RAM]       = { false, false, L123 },
	[CCA_UNASSIGNED_DESTROYED] = { false, false, L123 },
	[CCA_ASSIGNED_EMPTY]       = { true,  true,  L23 },
	[CCA_ASSIGNED_RAM]         = { true,  true,  L23 },
	[CCA_ASSIGNED_DESTROYED]   = { true,  true,  L23 },
	[CCA_TABLE]                = { true,  true,  0 },
	[CCA_UNASSIGNED_NS]        = { false, false, L123 },
	[CCA_ASSIGNED_NS]          = { true,  false, L23 },
	[CCA_TABLE_NS]             = { true,  true,  0 },
};

/* Entries x operations (A5.3.5, B4.3; order and stops as TF-RMM). */
#define TO(s) { CCA_MOVE, CCA_##s }
#define SAME(s) { CCA_SAME, CCA_##s }
#define STOP(s) { CCA_STOP, CCA_##s }
#define DOWN(s) { CCA_DOWN, CCA_##s }
#define HALF(s) { CCA_OTHER_HALF, CCA_##s }
#define ROW(create, unknown, destroy, init, empty, ram, empty_cd, ram_cd, map, unmap, unfold, rtt_destroy, fold)       \
	{ [CCA_OP_DATA_CREATE] = create, [CCA_OP_DATA_UNKNOWN] = unknown, [CCA_OP_DATA_DESTROY] = destroy,             \
	  [CCA_OP_INIT_RIPAS] = init, [CCA_OP_SET_EMPTY] = empty, [CCA_OP_SET_RAM] = ram,                              \
	  [CCA_OP_SET_EMPTY_CD] = empty_cd, [CCA_OP_SET_RAM_CD] = ram_cd, [CCA_OP_MAP] = map, [CCA_OP_UNMAP] = unmap,  \
	  [CCA_OP_UNFOLD] = unfold, [CCA_OP_RTT_DESTROY] = rtt_destroy, [CCA_OP_FOLD] = fold }

static const struct cca_cell cells[CCA_ENTRY_COUNT][CCA_ENTRY_OP_COUNT] = {
	[CCA_UNASSIGNED_EMPTY] = ROW(
		/* DATA_CREATE    */ TO(ASSIGNED_RAM),
		/* DATA_UNKNOWN   */ TO(ASSIGNED_EMPTY),
		/* DATA_DESTROY   */ STOP(UNASSIGNED_EMPTY),
		/* INIT_RIPAS     */ TO(UNASSIGNED_RAM),
		/* SET EMPTY, RAM */ SAME(UNASSIGNED_EMPTY), TO(UNASSIGNED_RAM),
		/* with cd        */ SAME(UNASSIGNED_EMPTY), TO(UNASSIGNED_RAM),
		/* MAP, UNMAP     */ HALF(UNASSIGNED_EMPTY), HALF(UNASSIGNED_EMPTY),
		/* RTT_CREATE     */ SAME(UNASSIGNED_EMPTY),
		/* RTT_DESTROY    */ STOP(UNASSIGNED_EMPTY),
		/* FOLD           */ SAME(UNASSIGNED_EMPTY)),
	[CCA_UNASSIGNED_RAM] = ROW(
		/* DATA_CREATE    */ TO(ASSIGNED_RAM),
		/* DATA_UNKNOWN   */ TO(ASSIGNED_RAM),
		/* DATA_DESTROY   */ STOP(UNASSIGNED_RAM),
		/* INIT_RIPAS     */ SAME(UNASSIGNED_RAM),
		/* SET EMPTY, RAM */ TO(UNASSIGNED_EMPTY), SAME(UNASSIGNED_RAM),
		/* with cd        */ TO(UNASSIGNED_EMPTY), SAME(UNASSIGNED_RAM),
		/* MAP, UNMAP     */ HALF(UNASSIGNED_RAM), HALF(UNASSIGNED_RAM),
		/* RTT_CREATE     */ SAME(UNASSIGNED_RAM),
		/* RTT_DESTROY    */ STOP(UNASSIGNED_RAM),
		/* FOLD           */ SAME(UNASSIGNED_RAM)),
	[CCA_UNASSIGNED_DESTROYED] = ROW(
		/* DATA_CREATE    */ TO(ASSIGNED_RAM),
		/* DATA_UNKNOWN   */ TO(ASSIGNED_DESTROYED),
		/* DATA_DESTROY   */ STOP(UNASSIGNED_DESTROYED),
		/* INIT_RIPAS     */ STOP(UNASSIGNED_DESTROYED),
		/* SET EMPTY, RAM */ STOP(UNASSIGNED_DESTROYED), STOP(UNASSIGNED_DESTROYED),
		/* with cd        */ TO(UNASSIGNED_EMPTY), TO(UNASSIGNED_RAM),
		/* MAP, UNMAP     */ HALF(UNASSIGNED_DESTROYED), HALF(UNASSIGNED_DESTROYED),
		/* RTT_CREATE     */ SAME(UNASSIGNED_DESTROYED),
		/* RTT_DESTROY    */ STOP(UNASSIGNED_DESTROYED),
		/* FOLD           */ SAME(UNASSIGNED_DESTROYED)),
	[CCA_ASSIGNED_EMPTY] = ROW(
		/* DATA_CREATE    */ STOP(ASSIGNED_EMPTY),
		/* DATA_UNKNOWN   */ STOP(ASSIGNED_EMPTY),
		/* DATA_DESTROY   */ TO(UNASSIGNED_EMPTY),
		/* INIT_RIPAS     */ STOP(ASSIGNED_EMPTY),
		/* SET EMPTY, RAM */ SAME(ASSIGNED_EMPTY), TO(ASSIGNED_RAM),
		/* with cd        */ SAME(ASSIGNED_EMPTY), TO(ASSIGNED_RAM),
		/* MAP, UNMAP     */ HALF(ASSIGNED_EMPTY), HALF(ASSIGNED_EMPTY),
		/* RTT_CREATE     */ SAME(ASSIGNED_EMPTY),
		/* RTT_DESTROY    */ STOP(ASSIGNED_EMPTY),
		/* FOLD           */ SAME(ASSIGNED_EMPTY)),
	[CCA_ASSIGNED_RAM] = ROW(
		/* DATA_CREATE    */ STOP(ASSIGNED_RAM),
		/* DATA_UNKNOWN   */ STOP(ASSIGNED_RAM),
		/* DATA_DESTROY   */ TO(UNASSIGNED_DESTROYED),
		/* INIT_RIPAS     */ STOP(ASSIGNED_RAM),
		/* SET EMPTY, RAM */ TO(ASSIGNED_EMPTY), SAME(ASSIGNED_RAM),
		/* with cd        */ TO(ASSIGNED_EMPTY), SAME(ASSIGNED_RAM),
		/* MAP, UNMAP     */ HALF(ASSIGNED_RAM), HALF(ASSIGNED_RAM),
		/* RTT_CREATE     */ SAME(ASSIGNED_RAM),
		/* RTT_DESTROY    */ STOP(ASSIGNED_RAM),
		/* FOLD           */ SAME(ASSIGNED_RAM)),
	[CCA_ASSIGNED_DESTROYED] = ROW(
		/* DATA_CREATE    */ STOP(ASSIGNED_DESTROYED),
		/* DATA_UNKNOWN   */ STOP(ASSIGNED_DESTROYED),
		/* DATA_DESTROY   */ TO(UNASSIGNED_DESTROYED),
		/* INIT_RIPAS     */ STOP(ASSIGNED_DESTROYED),
		/* SET EMPTY, RAM */ STOP(ASSIGNED_DESTROYED), STOP(ASSIGNED_DESTROYED),
		/* with cd        */ TO(ASSIGNED_EMPTY), TO(ASSIGNED_RAM),
		/* MAP, UNMAP     */ HALF(ASSIGNED_DESTROYED), HALF(ASSIGNED_DESTROYED),
		/* RTT_CREATE     */ SAME(ASSIGNED_DESTROYED),
		/* RTT_DESTROY    */ STOP(ASSIGNED_DESTROYED),
		/* FOLD           */ SAME(ASSIGNED_DESTROYED)),
	[CCA_TABLE] = ROW(
		/* DATA_CREATE    */ DOWN(TABLE),
		/* DATA_UNKNOWN   */ DOWN(TABLE),
		/* DATA_DESTROY   */ DOWN(TABLE),
		/* INIT_RIPAS     */ STOP(TABLE),
		/* SET EMPTY, RAM */ STOP(TABLE), STOP(TABLE),
		/* with cd        */ STOP(TABLE), STOP(TABLE),
		/* MAP, UNMAP     */ HALF(TABLE), HALF(TABLE),
		/* RTT_CREATE     */ STOP(TABLE),
		/* RTT_DESTROY    */ TO(UNASSIGNED_DESTROYED),
		/* FOLD           */ STOP(TABLE)),
	[CCA_UNASSIGNED_NS] = ROW(
		/* DATA_CREATE    */ HALF(UNASSIGNED_NS),
		/* DATA_UNKNOWN   */ HALF(UNASSIGNED_NS),
		/* DATA_DESTROY   */ HALF(UNASSIGNED_NS),
		/* INIT_RIPAS     */ HALF(UNASSIGNED_NS),
		/* SET EMPTY, RAM */ HALF(UNASSIGNED_NS), HALF(UNASSIGNED_NS),
		/* with cd        */ HALF(UNASSIGNED_NS), HALF(UNASSIGNED_NS),
		/* MAP, UNMAP     */ TO(ASSIGNED_NS), STOP(UNASSIGNED_NS),
		/* RTT_CREATE     */ SAME(UNASSIGNED_NS),
		/* RTT_DESTROY    */ STOP(UNASSIGNED_NS),
		/* FOLD           */ SAME(UNASSIGNED_NS)),
	[CCA_ASSIGNED_NS] = ROW(
		/* DATA_CREATE    */ HALF(ASSIGNED_NS),
		/* DATA_UNKNOWN   */ HALF(ASSIGNED_NS),
		/* DATA_DESTROY   */ HALF(ASSIGNED_NS),
		/* INIT_RIPAS     */ HALF(ASSIGNED_NS),
		/* SET EMPTY, RAM */ HALF(ASSIGNED_NS), HALF(ASSIGNED_NS),
		/* with cd        */ HALF(ASSIGNED_NS), HALF(ASSIGNED_NS),
		/* MAP, UNMAP     */ STOP(ASSIGNED_NS), TO(UNASSIGNED_NS),
		/* RTT_CREATE     */ SAME(ASSIGNED_NS),
		/* RTT_DESTROY    */ STOP(ASSIGNED_NS),
		/* FOLD           */ SAME(ASSIGNED_NS)),
	[CCA_TABLE_NS] = ROW(
		/* DATA_CREATE    */ HALF(TABLE_NS),
		/* DATA_UNKNOWN   */ HALF(TABLE_NS),
		/* DATA_DESTROY   */ HALF(TABLE_NS),
		/* INIT_RIPAS     */ HALF(TABLE_NS),
		/* SET EMPTY, RAM */ HALF(TABLE_NS), HALF(TABLE_NS),
		/* with cd        */ HALF(TABLE_NS), HALF(TABLE_NS),
		/* MAP, UNMAP     */ STOP(TABLE_NS), STOP(TABLE_NS),
		/* RTT_CREATE     */ STOP(TABLE_NS),
		/* RTT_DESTROY    */ TO(UNASSIGNED_NS),
		/* FOLD           */ STOP(TABLE_NS)),
};
#undef TO
#undef SAME
#undef STOP
#undef DOWN
#undef HALF
#undef ROW

/* Commands: arguments, and checks in order with the code of each (B4.3; the order is TF-RMM's). */
#define A(name) CCA_ARG_##name
#define ST(arg, state) { CCA_CHECK_GRANULE, A(arg), CCA_##state, CCA_ERROR_INPUT }
#define INPUT(check)   { CCA_CHECK_##check, 0, 0, CCA_ERROR_INPUT }
#define LOW(arg_)      { CCA_CHECK_PA_BITS, A(arg_), 0, CCA_ERROR_INPUT }
#define REALM(check)   { CCA_CHECK_##check, 0, 0, CCA_ERROR_REALM }
#define REC(check)     { CCA_CHECK_##check, 0, 0, CCA_ERROR_REC }
#define RTT(check)     { CCA_CHECK_##check, 0, 0, CCA_ERROR_RTT }
#define NO_OP          CCA_ENTRY_OP_COUNT

static const struct cca_command_row rows[CCA_COMMAND_COUNT] = {
	[CCA_VERSION_CMD] = { { A(REQ) }, 1, false, NO_OP, "RMM B4.3.23", { INPUT(REQ) } },
	[CCA_GRANULE_DELEGATE] = { { A(ADDR) }, 1, false, NO_OP, "RMM B4.3.5",
		{ ST(ADDR, UNDELEGATED), INPUT(EL3) } },
	[CCA_GRANULE_UNDELEGATE] = { { A(ADDR) }, 1, false, NO_OP, "RMM B4.3.6",
		{ ST(ADDR, DELEGATED), INPUT(EL3) } },
	[CCA_DATA_CREATE] = { { A(RD), A(DATA), A(IPA), A(SRC), A(FLAGS) }, 5, false, CCA_OP_DATA_CREATE,
		"RMM B4.3.1, TF-RMM rtt.c",
		{ INPUT(FLAGS), ST(SRC, UNDELEGATED), ST(DATA, DELEGATED), ST(RD, RD), REALM(NEW), INPUT(IPA_DATA),
		  LOW(DATA), RTT(WALK_PAGE), RTT(ENTRY), INPUT(SOURCE) } },
	[CCA_DATA_CREATE_UNKNOWN] = { { A(RD), A(DATA), A(IPA) }, 3, false, CCA_OP_DATA_UNKNOWN,
		"RMM B4.3.2, TF-RMM rtt.c",
		{ ST(DATA, DELEGATED), ST(RD, RD), INPUT(IPA_DATA), LOW(DATA), RTT(WALK_PAGE), RTT(ENTRY) } },
	[CCA_DATA_DESTROY] = { { A(RD), A(IPA) }, 2, true, CCA_OP_DATA_DESTROY, "RMM B4.3.3, TF-RMM rtt.c",
		{ ST(RD, RD), INPUT(IPA_DATA), RTT(WALK_PAGE), RTT(ENTRY) } },
	[CCA_REALM_ACTIVATE] = { { A(RD) }, 1, false, NO_OP, "RMM B4.3.8", { ST(RD, RD), REALM(NEW) } },
	[CCA_REALM_CREATE] = { { A(RD), A(PARAMS_PTR) }, 2, false, NO_OP, "RMM B4.3.9, TF-RMM realm.c",
		{ ST(PARAMS_PTR, UNDELEGATED), INPUT(PARAMS), INPUT(FEATURES), INPUT(VMID), INPUT(ROOTS),
		  ST(RD, DELEGATED) } },
	[CCA_REALM_DESTROY] = { { A(RD) }, 1, false, NO_OP, "RMM B4.3.10",
		{ ST(RD, RD), REALM(NO_RECS), REALM(ROOTS_DEAD) } },
	[CCA_REC_CREATE] = { { A(RD), A(REC), A(PARAMS_PTR) }, 3, false, NO_OP, "RMM B4.3.12, TF-RMM rec.c",
		{ ST(PARAMS_PTR, UNDELEGATED), INPUT(PARAMS), INPUT(AUX_MAX), INPUT(AUX), INPUT(REC_NOT_AUX),
		  ST(REC, DELEGATED), ST(RD, RD), REALM(REC_LIMIT), REALM(NEW), INPUT(MPIDR), INPUT(AUX_COUNT) } },
	[CCA_REC_DESTROY] = { { A(REC) }, 1, false, NO_OP, "RMM B4.3.13", { ST(REC, REC), REC(NOT_RUNNING) } },
	[CCA_REC_ENTER] = { { A(REC), A(RUN_PTR) }, 2, false, NO_OP, "RMM B4.3.14, TF-RMM run.c",
		{ ST(RUN_PTR, UNDELEGATED), ST(REC, REC), REC(NOT_RUNNING), REALM(ACTIVE), REC(RUNNABLE), REC(NO_PSCI),
		  REC(GIC), REC(SEA), REC(MMIO) } },
	[CCA_RTT_CREATE] = { { A(RD), A(RTT), A(IPA), A(LEVEL) }, 4, false, CCA_OP_UNFOLD, "RMM B4.3.15, TF-RMM rtt.c",
		{ ST(RTT, DELEGATED), ST(RD, RD), INPUT(TABLE_PLACE), LOW(RTT), RTT(WALK_PARENT), RTT(ENTRY) } },
	[CCA_RTT_DESTROY] = { { A(RD), A(IPA), A(LEVEL) }, 3, true, CCA_OP_RTT_DESTROY, "RMM B4.3.16, TF-RMM rtt.c",
		{ ST(RD, RD), INPUT(TABLE_PLACE), RTT(WALK_PARENT), RTT(ENTRY), RTT(CHILD_DEAD) } },
	[CCA_RTT_MAP_UNPROTECTED] = { { A(RD), A(IPA), A(LEVEL), A(DESC) }, 4, false, CCA_OP_MAP,
		"RMM B4.3.19, TF-RMM rtt.c",
		{ INPUT(MAP_LEVEL), ST(RD, RD), INPUT(DESC), INPUT(MAP_PLACE), INPUT(UNPROTECTED), RTT(WALK_LEVEL),
		  RTT(ENTRY) } },
	[CCA_RTT_READ_ENTRY] = { { A(RD), A(IPA), A(LEVEL) }, 3, false, NO_OP, "RMM B4.3.20",
		{ ST(RD, RD), INPUT(READ_PLACE) } },
	[CCA_RTT_UNMAP_UNPROTECTED] = { { A(RD), A(IPA), A(LEVEL) }, 3, true, CCA_OP_UNMAP, "RMM B4.3.22, TF-RMM rtt.c",
		{ INPUT(MAP_LEVEL), ST(RD, RD), INPUT(MAP_PLACE), INPUT(UNPROTECTED), RTT(WALK_LEVEL), RTT(ENTRY) } },
	[CCA_FEATURES] = { { A(INDEX) }, 1, false, NO_OP, "RMM B4.3.4", { { 0 } } },
	[CCA_RTT_FOLD] = { { A(RD), A(IPA), A(LEVEL) }, 3, false, CCA_OP_FOLD, "RMM B4.3.17, TF-RMM rtt.c",
		{ ST(RD, RD), INPUT(TABLE_PLACE), RTT(WALK_PARENT), RTT(PARENT_TABLE), RTT(CHILD_ALIKE) } },
	[CCA_REC_AUX_COUNT] = { { A(RD) }, 1, false, NO_OP, "RMM B4.3.11", { ST(RD, RD) } },
	[CCA_RTT_INIT_RIPAS] = { { A(RD), A(BASE), A(TOP) }, 3, false, CCA_OP_INIT_RIPAS, "RMM B4.3.18, TF-RMM rtt.c",
		{ INPUT(RANGE_SIZE), ST(RD, RD), INPUT(RANGE_ALIGNED), INPUT(RANGE_PROTECTED), REALM(NEW),
		  RTT(BASE_ENTRY), RTT(PROGRESS) } },
	[CCA_RTT_SET_RIPAS] = { { A(RD), A(REC), A(BASE), A(TOP) }, 4, false, CCA_OP_SET_EMPTY,
		"RMM B4.3.21, TF-RMM rtt.c",
		{ INPUT(RANGE_SIZE), INPUT(TOP_ALIGNED), ST(RD, RD), ST(REC, REC), REC(NOT_RUNNING),
		  REC(REC_OF_REALM), INPUT(CURSOR), RTT(BASE_ENTRY), RTT(PROGRESS) } },
};
/* clang-format on */

const struct cca_entry_kind *cca_entry_kind(enum cca_entry e)
{
	return &entry_kinds[e];
}

const struct cca_cell *cca_cell(enum cca_entry e, enum cca_entry_op op)
{
	return &cells[e][op];
}

const struct cca_command_row *cca_command_row(enum cca_command c)
{
	return &rows[c];
}

bool cca_tables_are_total(void)
{
	for (int e = 0; e < CCA_ENTRY_COUNT; e++)
		for (int op = 0; op < CCA_ENTRY_OP_COUNT; op++)
			if (cells[e][op].kind == CCA_UNDECIDED)
				return false;
	for (int c = 0; c < CCA_COMMAND_COUNT; c++)
		if (!rows[c].source || !rows[c].arg_count)
			return false;
	return true;
}
