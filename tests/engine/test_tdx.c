#include "engine/arch/tdx.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define TDR   0x100
#define VCPU  0x110
#define POOL  0x1000 /* free frames: POOL..END */
#define END   0x100000
#define LARGE 0x20000
#define GPA   0x80000000ull
#define HKID  35

struct world {
	struct pw_mem mem;
	struct tdx m;
	struct tdx_td *td;
	struct tdx_result r;
	uint64_t next; /* free frame */
};
static const struct tdx_config platform = {
	.tdmr = { { 0, END } }, .tdmrs = 1, .first_hkid = 33, .last_hkid = 63, .packages = 1, .max_pa = 52
};

static uint64_t call(struct world *w, struct tdx_call c)
{
	struct pw_err err = { 0 };
	uint64_t before = tdx_digest(&w->m);

	if (c.tdr == 0)
		c.tdr = TDR;
	cr_assert_eq(tdx_call(&w->m, &c, &w->r, &err), PW_OK, "%s", err.msg);
	if ((w->r.code != TDX_SUCCESS && w->r.code != TDX_INTERRUPTED_RESUMABLE) || w->r.exits)
		cr_expect_eq(tdx_digest(&w->m), before, "%s was refused and changed something", tdx_op_name(c.op));
	return tdx_rax(&w->r);
}
#define CALL(w, ...)         call((w), (struct tdx_call){ .op = __VA_ARGS__ })
#define RAX(code, operand)   (TDX_##code##_ | (operand))
#define TDX_SUCCESS_         0ull
#define TDX_RESUMABLE_       0x8000000300000000ull
#define TDX_RESTARTABLE_     0x8000000400000000ull
#define TDX_OPERAND_INVALID_ 0xC000010000000000ull
#define TDX_ADDR_RANGE_      0xC000010100000000ull
#define TDX_BUSY_            0x8000020000000000ull
#define TDX_EPOCH_BUSY_      0x8000020100000000ull
#define TDX_METADATA_        0xC000030000000000ull
#define TDX_PAGES_EXIST_     0xC000040000000000ull
#define TDX_FATAL_           0xE000060400000000ull
#define TDX_TDCS_            0xC000060600000000ull
#define TDX_LIFECYCLE_       0xC000060700000000ull
#define TDX_OP_STATE_WRONG_  0xC000060800000000ull
#define TDX_NO_VCPUS_        0xC000060900000000ull
#define TDX_TDCX_NUM_        0xC000061000000000ull
#define TDX_NOT_ASSOCIATED_  0x8000070200000000ull
#define TDX_KEYS_            0x8000081000000000ull
#define TDX_KEY_CONFIGURED_  0x0000081500000000ull
#define TDX_WBCACHE_         0x8000081700000000ull
#define TDX_HKID_NOT_FREE_   0xC000082000000000ull
#define TDX_NO_HKID_         0x0000082100000000ull
#define TDX_FLUSHVP_         0x8000082400000000ull
#define TDX_WALK_            0xC0000B0000000000ull
#define TDX_NOT_PRESENT_     0xC0000B0300000000ull
#define TDX_NOT_BLOCKED_     0xC0000B0600000000ull
#define TDX_ALREADY_BLOCKED_ 0x00000B0700000000ull
#define TDX_NOT_TRACKED_     0xC0000B0800000000ull
#define TDX_PROMOTE_         0xC0000B0900000000ull
#define TDX_ACCEPTED_        0x00000B0A00000000ull
#define TDX_MISMATCH_        0xC0000B0B00000000ull
#define TDX_STATE_           0xC0000B0D00000000ull
#define TDX_NOT_FREE_        0xC0000B0E00000000ull
#define RCX                  1
#define RDX                  2
#define R8                   8
#define R9                   9

static void open_platform(struct world *w)
{
	struct pw_err err = { 0 };

	*w = (struct world){ .next = POOL };
	cr_assert_eq(tdx_init(&w->m, &w->mem, &platform, &err), PW_OK, "%s", err.msg);
}

static void close_platform(struct world *w)
{
	struct pw_err err = { 0 };

	cr_expect(tdx_check(&w->m, &err), "%s", err.msg);
	tdx_release(&w->m);
	cr_expect_eq(w->mem.used, 0);
}

/* A TD in INITIALIZED whose tables reach down to `level` at GPA. */
static void begin(struct world *w, unsigned level)
{
	open_platform(w);
	cr_assert_eq(CALL(w, TDX_MNG_CREATE, .frame = TDR, .hkid = HKID), 0);
	cr_assert_eq(CALL(w, TDX_KEY_CONFIG), 0);
	for (unsigned i = 1; i <= 6; i++)
		cr_assert_eq(CALL(w, TDX_MNG_ADDCX, .frame = TDR + i), 0);
	cr_assert_eq(CALL(w, TDX_MNG_INIT, .levels = 4), 0);
	w->td = tdx_td(&w->m, TDR);
	cr_assert(w->td);
	tdx_assume_vcpus(w->td, 1);
	for (unsigned l = 3; l > level; l--)
		cr_assert_eq(CALL(w, TDX_SEPT_ADD, .gpa = l == 3 ? 0 : GPA, .level = l, .frame = w->next++), 0);
}

static void run(struct world *w)
{
	cr_assert_eq(CALL(w, TDX_MR_FINALIZE), 0);
}

static enum tdx_sept state_of(const struct world *w, unsigned level)
{
	enum tdx_sept s = TDX_REMOVED;

	cr_assert(tdx_entry(w->td, GPA, level, &s));
	return s;
}

static void reach(struct world *w, unsigned level, enum tdx_sept s, unsigned children)
{
	uint64_t page = level ? LARGE : w->next++;

	if (s == TDX_FREE)
		return;
	if (tdx_sept_has_frame(s)) {
		cr_assert_eq(CALL(w, TDX_PAGE_AUG, .gpa = GPA, .level = level, .frame = page), 0);
		if (s == TDX_MAPPED || s == TDX_BLOCKED)
			cr_assert_eq(CALL(w, TDX_ACCEPT, .gpa = GPA, .level = level), 0);
	} else {
		cr_assert_eq(CALL(w, TDX_SEPT_ADD, .gpa = GPA, .level = level, .frame = w->next++), 0);
		for (unsigned i = 0; i < children; i++)
			cr_assert_eq(CALL(w, TDX_PAGE_AUG, .gpa = GPA + i * 4096ull, .frame = LARGE + i), 0);
	}
	if (tdx_sept_is_blocked(s))
		cr_assert_eq(CALL(w, TDX_RANGE_BLOCK, .gpa = GPA, .level = level), 0);
	cr_assert_eq(state_of(w, level), s);
}

Test(tdx, tables_decide_every_cell)
{
	cr_assert(tdx_tables_are_total());
}

Test(tdx, entries_are_numbered_as_the_module_does)
{
	static const struct {
		enum tdx_sept state;
		unsigned arch, encoded; /* in RDX, and in the entry */
	} cases[] = {
		{ TDX_FREE, 0, 0x0e },         { TDX_MAPPED, 4, 0x60 },          { TDX_PENDING, 2, 0x70 },
		{ TDX_BLOCKED, 1, 0x68 },      { TDX_PENDING_BLOCKED, 3, 0x78 }, { TDX_NL_MAPPED, 132, 0x00 },
		{ TDX_NL_BLOCKED, 129, 0x08 }, { TDX_REMOVED, 5, 0x0c },
	};

	cr_assert_eq(PW_ARRAY_LEN(cases), TDX_SEPT_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		cr_expect_eq(tdx_sept_arch(cases[i].state), cases[i].arch, "%s", tdx_sept_name(cases[i].state));
		cr_expect_eq(tdx_sept_encoded(cases[i].state), cases[i].encoded, "%s", tdx_sept_name(cases[i].state));
	}
}

/* Linux arch/x86/kvm/vmx/tdx.h and the module's tdx_api_defs.h. */
Test(tdx, calls_have_the_leaves_of_the_interface)
{
	static const struct {
		enum tdx_op op;
		int leaf;
	} cases[] = {
		{ TDX_MNG_CREATE, 9 },   { TDX_KEY_CONFIG, 8 },    { TDX_MNG_ADDCX, 1 },      { TDX_MNG_INIT, 21 },
		{ TDX_VP_CREATE, 10 },   { TDX_VP_ADDCX, 4 },      { TDX_VP_INIT, 22 },       { TDX_VP_ENTER, 0 },
		{ TDX_VP_EXIT, -1 },     { TDX_VP_FLUSH, 18 },     { TDX_MR_FINALIZE, 17 },   { TDX_VPFLUSHDONE, 19 },
		{ TDX_CACHE_WB, 40 },    { TDX_KEY_FREEID, 20 },   { TDX_KEY_RECLAIMID, 27 }, { TDX_PAGE_RECLAIM, 28 },
		{ TDX_PAGE_WBINVD, 41 }, { TDX_PAGE_RDMD, 24 },    { TDX_TRACK, 38 },         { TDX_SEPT_ADD, 3 },
		{ TDX_PAGE_ADD, 2 },     { TDX_PAGE_AUG, 6 },      { TDX_RANGE_BLOCK, 7 },    { TDX_RANGE_UNBLOCK, 39 },
		{ TDX_PAGE_REMOVE, 29 }, { TDX_PAGE_RELOCATE, 5 }, { TDX_PAGE_PROMOTE, 23 },  { TDX_PAGE_DEMOTE, 15 },
		{ TDX_SEPT_REMOVE, 30 }, { TDX_MR_EXTEND, 16 },    { TDX_SEPT_RD, 25 },       { TDX_ACCEPT, 6 },
	};

	cr_assert_eq(PW_ARRAY_LEN(cases), TDX_OP_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		cr_expect_eq(tdx_op_leaf(cases[i].op), cases[i].leaf, "%s", tdx_op_name(cases[i].op));
}

Test(tdx, operands_have_the_modules_numbers)
{
	static const struct {
		uint32_t id;
		const char *name;
	} cases[] = {
		{ 0, "" },           { 1, "RCX" },    { 2, "RDX" },         { 8, "R8" },           { 9, "R9" },
		{ 128, "TDR" },      { 144, "TDCS" }, { 146, "SEPT_TREE" }, { 147, "SEPT_ENTRY" }, { 169, "TD_EPOCH" },
		{ 172, "OP_STATE" }, { 186, "KOT" },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		cr_expect_str_eq(tdx_operand_name(cases[i].id), cases[i].name);
	cr_expect_str_eq(tdx_page_type_name(TDX_PT_EPT), "EPT");
}

/*
 * The state table as the reference prints it. S: state incorrect; A: already blocked; N: not present; -: no such entry
 * at that level; x: TD exit; =: stays; a small t before a state: needs tracking once the TD runs.
 */
static const struct row {
	enum tdx_op op;
	unsigned level;
	const char *cells[7];
} law[] = {
	/*                        FREE         MAPPED     PENDING            BLOCKED    PENDING_BL. NL_MAPPED NL_BLOCKED
	 */
	{ TDX_SEPT_ADD, 1, { "NL_MAPPED", "S", "S", "S", "S", "S", "S" } },
	{ TDX_PAGE_ADD, 0, { "MAPPED", "S", "S", "S", "S", "-", "-" } },
	{ TDX_PAGE_AUG, 0, { "PENDING", "S", "S", "S", "S", "-", "-" } },
	{ TDX_PAGE_AUG, 1, { "PENDING", "S", "S", "S", "S", "S", "S" } },
	{ TDX_RANGE_BLOCK, 0, { "S", "BLOCKED", "PENDING_BLOCKED", "A", "A", "-", "-" } },
	{ TDX_RANGE_BLOCK, 1, { "S", "BLOCKED", "PENDING_BLOCKED", "A", "A", "NL_BLOCKED", "A" } },
	{ TDX_RANGE_UNBLOCK, 0, { "S", "S", "S", "tMAPPED", "tPENDING", "-", "-" } },
	{ TDX_RANGE_UNBLOCK, 1, { "S", "S", "S", "tMAPPED", "tPENDING", "S", "tNL_MAPPED" } },
	{ TDX_PAGE_REMOVE, 0, { "S", "tFREE", "tFREE", "tFREE", "tFREE", "-", "-" } },
	{ TDX_PAGE_REMOVE, 1, { "S", "tFREE", "tFREE", "tFREE", "tFREE", "S", "S" } },
	{ TDX_PAGE_RELOCATE, 0, { "S", "tMAPPED", "tPENDING", "tMAPPED", "tPENDING", "-", "-" } },
	{ TDX_PAGE_PROMOTE, 1, { "S", "S", "S", "S", "S", "tPENDING", "tPENDING" } },
	{ TDX_PAGE_DEMOTE, 1, { "S", "tNL_MAPPED", "tNL_MAPPED", "tNL_MAPPED", "tNL_MAPPED", "S", "S" } },
	{ TDX_SEPT_REMOVE, 1, { "S", "S", "S", "S", "S", "tFREE", "tFREE" } },
	{ TDX_MR_EXTEND, 0, { "N", "=", "N", "N", "N", "-", "-" } },
	{ TDX_SEPT_RD, 1, { "=", "=", "=", "=", "=", "=", "=" } },
	{ TDX_ACCEPT, 0, { "x", "D", "MAPPED", "x", "x", "-", "-" } },
	{ TDX_ACCEPT, 1, { "x", "D", "MAPPED", "x", "x", "M", "M" } },
};
static const enum tdx_sept columns[7] = { TDX_FREE,      TDX_MAPPED,    TDX_PENDING, TDX_BLOCKED, TDX_PENDING_BLOCKED,
					  TDX_NL_MAPPED, TDX_NL_BLOCKED };

enum phase { INIT, RUNNING, RUNNING_TRACKED, RUNNING_INSIDE, PHASES };

/* What the table says that a call answers; *exits for a TD exit. */
static uint64_t lawful(const struct row *row, enum tdx_sept s, const char *cell, enum phase phase, bool *exits)
{
	bool only_init = row->op == TDX_PAGE_ADD || row->op == TDX_MR_EXTEND;

	*exits = cell[0] == 'x';
	if (only_init && phase != INIT)
		return RAX(OP_STATE_WRONG, 0);
	if (strcmp(cell, "S") == 0)
		return RAX(STATE, RCX);
	if (strcmp(cell, "A") == 0)
		return RAX(ALREADY_BLOCKED, RCX);
	if (strcmp(cell, "N") == 0)
		return RAX(NOT_PRESENT, RCX);
	if (strcmp(cell, "D") == 0)
		return RAX(ACCEPTED, row->level);
	if (strcmp(cell, "M") == 0)
		return RAX(MISMATCH, 1);
	if (cell[0] != 't' || phase == INIT)
		return 0;
	if (!tdx_sept_is_blocked(s))
		return RAX(NOT_BLOCKED, RCX);
	if (phase != RUNNING_TRACKED)
		return RAX(NOT_TRACKED, row->op == TDX_RANGE_UNBLOCK ? 146 : RCX);
	return 0;
}

static void try_cell(const struct row *row, unsigned column, enum phase phase)
{
	const char *cell = row->cells[column], *next = cell + (cell[0] == 't');
	enum tdx_sept s = columns[column];
	uint64_t frame = row->op == TDX_PAGE_AUG && row->level ? 2 * LARGE : 3 * LARGE + 1, want, got;
	struct world w;
	bool exits;

	begin(&w, row->level);
	if (phase != INIT)
		run(&w);
	if (phase == RUNNING_INSIDE)
		tdx_epoch_enter(w.td);
	reach(&w, row->level, s, row->op == TDX_PAGE_PROMOTE ? 512 : 0);
	if (phase == RUNNING_TRACKED || phase == RUNNING_INSIDE)
		cr_assert_eq(CALL(&w, TDX_TRACK), 0);
	want = lawful(row, s, cell, phase, &exits);
	got = call(&w, (struct tdx_call){ .op = row->op, .gpa = GPA, .level = row->level, .frame = frame });
	cr_expect(got == want && w.r.exits == exits, "%s of %s, phase %d: 0x%" PRIx64 " and not 0x%" PRIx64,
		  tdx_op_name(row->op), tdx_sept_name(s), phase, got, want);
	if (want || exits || cell[0] == '=')
		cr_expect_eq(state_of(&w, row->level), s);
	else
		cr_expect_str_eq(tdx_sept_name(state_of(&w, row->level)), next, "%s of %s", tdx_op_name(row->op),
				 tdx_sept_name(s));
	close_platform(&w);
}

Test(tdx, every_cell_is_the_references, .timeout = 60)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(law); i++)
		for (unsigned column = 0; column < PW_ARRAY_LEN(columns); column++)
			for (int phase = 0; law[i].cells[column][0] != '-' && phase < PHASES; phase++)
				try_cell(&law[i], column, (enum phase)phase);
}

/* During an import only, so no call leads there: the table itself is asked. */
Test(tdx, a_removed_entry_can_only_be_augmented)
{
	for (int op = TDX_SEPT_ADD; op < TDX_ACCEPT; op++) {
		const struct tdx_sept_cell *c = tdx_sept_cell(TDX_REMOVED, (enum tdx_op)op);

		if (op == TDX_PAGE_AUG)
			cr_expect(c->kind == TDX_MOVE && c->next == TDX_PENDING);
		else if (op == TDX_SEPT_RD)
			cr_expect_eq(c->kind, TDX_STAY);
		else
			cr_expect(c->kind == TDX_REFUSE &&
				  c->code == (op == TDX_MR_EXTEND ? TDX_EPT_ENTRY_NOT_PRESENT
								  : TDX_EPT_ENTRY_STATE_INCORRECT));
	}
	cr_expect_eq(tdx_sept_cell(TDX_REMOVED, TDX_ACCEPT)->kind, TDX_EXIT);
}

/* 4 KiB entries hold no tables, and ADD comes before tracking: again the table itself is asked. */
Test(tdx, cells_that_no_call_reaches_refuse)
{
	static const enum tdx_op ops[] = { TDX_PAGE_ADD, TDX_PAGE_RELOCATE };

	for (size_t i = 0; i < PW_ARRAY_LEN(ops); i++)
		for (int s = TDX_NL_MAPPED; s <= TDX_NL_BLOCKED; s++) {
			const struct tdx_sept_cell *c = tdx_sept_cell((enum tdx_sept)s, ops[i]);

			cr_expect(c->kind == TDX_REFUSE && c->code == TDX_EPT_ENTRY_STATE_INCORRECT);
		}
	for (int s = TDX_NL_MAPPED; s <= TDX_NL_BLOCKED; s++)
		cr_expect(tdx_sept_cell((enum tdx_sept)s, TDX_MR_EXTEND)->code == TDX_EPT_ENTRY_NOT_PRESENT);
	cr_expect(!tdx_sept_cell(TDX_FREE, TDX_PAGE_ADD)->tracked);
	cr_expect(!tdx_sept_cell(TDX_REMOVED, TDX_PAGE_AUG)->tracked);
	cr_expect(!tdx_sept_cell(TDX_PENDING, TDX_ACCEPT)->tracked);
}

Test(tdx, promotion_takes_the_children_s_state)
{
	struct world w;
	unsigned size;
	uint64_t owner, table;

	begin(&w, 1);
	reach(&w, 1, TDX_NL_MAPPED, 512);
	table = w.next - 1;
	for (unsigned i = 0; i < 512; i++)
		cr_assert_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA + i * 4096ull), 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_PROMOTE, .gpa = GPA, .level = 1, .interrupt = 1), RAX(RESTARTABLE, 0));
	cr_expect_eq(CALL(&w, TDX_PAGE_PROMOTE, .gpa = GPA, .level = 1), 0);
	cr_expect(w.r.has_frame && w.r.frame == table);
	cr_expect_eq(state_of(&w, 1), TDX_MAPPED);
	cr_expect_eq(tdx_page(&w.m, LARGE + 7, &size, &owner), TDX_PT_REG);
	cr_expect(size == 1 && owner == TDR);
	cr_expect_eq(tdx_page(&w.m, table, &size, &owner), TDX_PT_NDA);
	cr_expect_eq(w.td->chldcnt, 6 + 2 + 512);
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA, .frame = w.next), RAX(WALK, RCX), "below a large leaf");
	cr_expect_eq(CALL(&w, TDX_MR_EXTEND, .gpa = GPA + 0x1100), 0, "a leaf of any size");
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA + 0x1000), RAX(ACCEPTED, 1));
	cr_expect_eq(CALL(&w, TDX_PAGE_DEMOTE, .gpa = GPA, .level = 1, .frame = LARGE + 7), RAX(METADATA, R8));
	cr_expect_eq(CALL(&w, TDX_PAGE_DEMOTE, .gpa = GPA, .level = 1, .frame = table), 0);
	cr_expect_eq(tdx_page(&w.m, LARGE + 7, &size, &owner), TDX_PT_REG);
	cr_expect_eq(size, 0);
	cr_expect_eq(w.td->chldcnt, 6 + 3 + 512);
	close_platform(&w);
}

Test(tdx, promotion_needs_512_equal_children)
{
	static const struct {
		unsigned child;
		enum { HOLE, OTHER_STATE, BLOCKED_CHILD, STRIDE } flaw;
	} flaws[] = { { 0, HOLE },    { 511, HOLE }, { 7, OTHER_STATE }, { 0, OTHER_STATE }, { 300, BLOCKED_CHILD },
		      { 12, STRIDE }, { 0, STRIDE } };

	for (size_t i = 0; i < PW_ARRAY_LEN(flaws); i++) {
		uint64_t gpa = GPA + flaws[i].child * 4096ull;
		struct world w;

		begin(&w, 1);
		reach(&w, 1, TDX_NL_MAPPED, 512);
		switch (flaws[i].flaw) {
		case HOLE: cr_assert_eq(CALL(&w, TDX_PAGE_REMOVE, .gpa = gpa), 0); break;
		case OTHER_STATE: cr_assert_eq(CALL(&w, TDX_ACCEPT, .gpa = gpa), 0); break;
		case BLOCKED_CHILD: cr_assert_eq(CALL(&w, TDX_RANGE_BLOCK, .gpa = gpa), 0); break;
		case STRIDE: cr_assert_eq(CALL(&w, TDX_PAGE_RELOCATE, .gpa = gpa, .frame = w.next++), 0); break;
		}
		cr_expect_eq(CALL(&w, TDX_PAGE_PROMOTE, .gpa = GPA, .level = 1), RAX(PROMOTE, RCX), "flaw %zu", i);
		close_platform(&w);
	}
}

Test(tdx, frames_that_do_not_begin_a_large_page_are_not_promoted)
{
	struct world w;

	begin(&w, 1);
	cr_assert_eq(CALL(&w, TDX_SEPT_ADD, .gpa = GPA, .level = 1, .frame = w.next++), 0);
	for (unsigned i = 0; i < 512; i++)
		cr_assert_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + i * 4096ull, .frame = LARGE + 1 + i), 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_PROMOTE, .gpa = GPA, .level = 1), RAX(PROMOTE, RCX));
	close_platform(&w);
}

Test(tdx, gigabytes_are_promoted_and_demoted)
{
	struct world w;
	uint64_t owner;
	unsigned size;

	begin(&w, 1);
	for (uint64_t i = 0; i < 512; i++)
		cr_assert_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + i * 0x200000, .level = 1, .frame = 0x40000 + i * 512),
			     0);
	cr_assert_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA, .level = 1, .interrupt = 5), RAX(RESUMABLE, 0));
	cr_expect_eq(CALL(&w, TDX_PAGE_PROMOTE, .gpa = GPA, .level = 2), 0, "a half-done accept does not count");
	cr_expect_eq(state_of(&w, 2), TDX_PENDING);
	cr_expect_eq(tdx_page(&w.m, 0x40000 + 5000, &size, &owner), TDX_PT_REG);
	cr_expect_eq(size, 2);
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA, .level = 1), 0);
	cr_expect(w.r.exits, "a larger PENDING leaf");
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x40000000, .level = 1, .frame = 0x40200), RAX(WALK, RCX));
	cr_expect_eq(CALL(&w, TDX_PAGE_DEMOTE, .gpa = GPA, .level = 2, .frame = w.next++), 0);
	cr_expect_eq(state_of(&w, 1), TDX_PENDING);
	cr_expect_eq(CALL(&w, TDX_PAGE_REMOVE, .gpa = GPA, .level = 1), 0);
	cr_expect_eq(w.r.frame, 0x40000);
	close_platform(&w);
}

Test(tdx, a_frame_has_one_owner)
{
	struct world w;

	begin(&w, 1);
	cr_assert_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA, .level = 1, .frame = LARGE), 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x200000, .level = 1, .frame = LARGE), RAX(METADATA, R8));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .gpa = GPA + 0x200000, .level = 1, .frame = LARGE + 3), RAX(METADATA, R8));
	cr_assert_eq(CALL(&w, TDX_SEPT_ADD, .gpa = GPA + 0x200000, .level = 1, .frame = 2 * LARGE + 511), 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x400000, .level = 1, .frame = 2 * LARGE), RAX(METADATA, R8),
		     "one of its 4 KiB entries is taken");
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x400000, .level = 1, .frame = LARGE + 8),
		     RAX(OPERAND_INVALID, R8));
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x200000, .frame = END), RAX(ADDR_RANGE, R8));
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x200000, .frame = 1ull << 34), RAX(OPERAND_INVALID, R8),
		     "HKID bits");
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x200000, .frame = TDR), RAX(METADATA, R8));
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x200000, .frame = w.next, .busy = TDX_BUSY_FRAME),
		     RAX(BUSY, R8));
	cr_expect_eq(CALL(&w, TDX_PAGE_ADD, .gpa = GPA + 0x200000, .frame = TDR, .source = 1ull << 40),
		     RAX(OPERAND_INVALID, R9), "the source is looked at first");
	cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = LARGE), RAX(LIFECYCLE, 0));
	cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = LARGE + 1), RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = 5), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_PAGE_WBINVD, .frame = LARGE + 1), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_PAGE_WBINVD, .frame = 5), 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_RDMD, .frame = LARGE + 9), 0);
	cr_expect(w.r.type == TDX_PT_REG && w.r.owner == TDR && w.r.size == 1);
	cr_expect_eq(CALL(&w, TDX_PAGE_RDMD, .frame = END), RAX(ADDR_RANGE, RCX));
	close_platform(&w);
}

Test(tdx, reserved_holes_are_never_given)
{
	const struct tdx_range hole = { 0x3000, 0x3010 };
	struct tdx_config c = platform;
	struct world w = { 0 };

	c.reserved = &hole;
	c.reserveds = 1;
	cr_assert_eq(tdx_init(&w.m, &w.mem, &c, NULL), PW_OK);
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = 0x300f, .hkid = HKID), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = 0x3000), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_PAGE_WBINVD, .frame = 0x3000), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_PAGE_RDMD, .frame = 0x3000), 0);
	cr_expect_eq(w.r.type, TDX_PT_RSVD);
	close_platform(&w);
}

/* Where several refusals apply, the module's order decides. Each line has one flaw less than the one before. */
Test(tdx, checks_come_in_the_module_s_order)
{
	struct world w;

	begin(&w, 1);
	run(&w);
	reach(&w, 1, TDX_NL_MAPPED, 0);
	for (int fatal = 1; fatal >= 0; fatal--) {
		w.td->fatal = fatal;
		cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .version = 2, .tdr = 1ull << 40, .level = 7),
			     RAX(OPERAND_INVALID, 0));
		cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .version = 1, .tdr = 1ull << 40, .level = 7),
			     RAX(OPERAND_INVALID, RDX));
		cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .tdr = END, .level = 7), RAX(ADDR_RANGE, RDX));
		cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .tdr = TDR + 1, .level = 7, .busy = 127), RAX(BUSY, RDX));
		cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .tdr = TDR + 1, .level = 7), RAX(METADATA, RDX));
	}
	w.td->fatal = true;
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .level = 7, .busy = TDX_BUSY_OP_STATE), RAX(FATAL, 0));
	w.td->fatal = false;
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .level = 7, .busy = TDX_BUSY_OP_STATE), RAX(BUSY, 172));
	cr_expect_eq(CALL(&w, TDX_PAGE_ADD, .gpa = 3, .busy = TDX_BUSY_SEPT_TREE), RAX(OP_STATE_WRONG, 0));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .level = 4, .busy = TDX_BUSY_SEPT_TREE), RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .level = 0, .busy = TDX_BUSY_SEPT_TREE), RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .gpa = GPA + 4096, .level = 1, .busy = TDX_BUSY_SEPT_TREE),
		     RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .gpa = 1ull << 47, .level = 1, .busy = TDX_BUSY_SEPT_TREE),
		     RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .gpa = 1ull << 48, .level = 1, .busy = TDX_BUSY_SEPT_TREE),
		     RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(
		CALL(&w, TDX_SEPT_ADD, .gpa = 1ull << 40, .level = 1, .busy = TDX_BUSY_SEPT_TREE | TDX_BUSY_SEPT_ENTRY),
		RAX(BUSY, 146));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .gpa = 1ull << 40, .level = 1, .busy = TDX_BUSY_SEPT_ENTRY),
		     RAX(WALK, RCX));
	cr_expect(w.r.level == 3 && w.r.state == TDX_FREE);
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .gpa = GPA, .level = 1, .busy = TDX_BUSY_SEPT_ENTRY), RAX(BUSY, RCX));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .gpa = GPA, .level = 1, .frame = TDR), RAX(STATE, RCX));
	cr_expect_eq(CALL(&w, TDX_SEPT_REMOVE, .gpa = GPA, .level = 1), RAX(NOT_BLOCKED, RCX));
	cr_assert_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA, .frame = w.next++), 0);
	cr_expect_eq(CALL(&w, TDX_SEPT_REMOVE, .gpa = GPA, .level = 1), RAX(NOT_BLOCKED, RCX),
		     "before the page is looked at");
	cr_expect_eq(CALL(&w, TDX_PAGE_RELOCATE, .gpa = GPA, .frame = w.next - 1), RAX(OPERAND_INVALID, R8),
		     "before tracking");
	cr_expect_eq(CALL(&w, TDX_PAGE_RELOCATE, .gpa = GPA, .frame = TDR), RAX(NOT_BLOCKED, RCX),
		     "before the new frame");
	cr_expect_eq(CALL(&w, TDX_PAGE_PROMOTE, .gpa = GPA, .level = 1), RAX(NOT_BLOCKED, RCX), "before the children");
	cr_expect_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA, .version = 1), RAX(OPERAND_INVALID, 0),
		     "a call without versions");
	close_platform(&w);
}

Test(tdx, levels_of_each_call_are_bounded)
{
	static const struct {
		enum tdx_op op;
		unsigned min, max;
	} bounds[] = {
		{ TDX_SEPT_ADD, 1, 3 },      { TDX_PAGE_ADD, 0, 0 },      { TDX_PAGE_AUG, 0, 1 },
		{ TDX_RANGE_BLOCK, 0, 3 },   { TDX_RANGE_UNBLOCK, 0, 3 }, { TDX_PAGE_REMOVE, 0, 2 },
		{ TDX_PAGE_RELOCATE, 0, 0 }, { TDX_PAGE_PROMOTE, 1, 2 },  { TDX_PAGE_DEMOTE, 1, 2 },
		{ TDX_SEPT_REMOVE, 1, 3 },   { TDX_SEPT_RD, 0, 3 },       { TDX_ACCEPT, 0, 1 },
		{ TDX_MR_EXTEND, 0, 0 },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(bounds); i++)
		for (unsigned level = 0; level < 6; level++) {
			bool bad = level < bounds[i].min || level > bounds[i].max;
			struct world w;
			uint64_t rax;

			begin(&w, 0);
			rax = call(&w, (struct tdx_call){ .op = bounds[i].op, .level = level, .frame = LARGE });
			cr_expect_eq(rax == RAX(OPERAND_INVALID, RCX), bad, "%s at level %u: 0x%" PRIx64,
				     tdx_op_name(bounds[i].op), level, rax);
			close_platform(&w);
		}
}

Test(tdx, each_call_names_the_register_and_knows_its_versions)
{
	static const struct {
		enum tdx_op op;
		unsigned level;
		uint64_t operand;
		bool versioned;
	} calls[] = {
		{ TDX_SEPT_ADD, 1, RDX, true },       { TDX_PAGE_ADD, 0, RDX, false },
		{ TDX_PAGE_AUG, 0, RDX, false },      { TDX_RANGE_BLOCK, 0, RDX, false },
		{ TDX_RANGE_UNBLOCK, 0, RDX, false }, { TDX_PAGE_REMOVE, 0, RDX, false },
		{ TDX_PAGE_RELOCATE, 0, RDX, false }, { TDX_PAGE_PROMOTE, 1, RDX, true },
		{ TDX_PAGE_DEMOTE, 1, RDX, false },   { TDX_SEPT_REMOVE, 1, RDX, true },
		{ TDX_MR_EXTEND, 0, RDX, false },     { TDX_SEPT_RD, 0, RDX, false },
		{ TDX_TRACK, 0, RCX, true },          { TDX_MNG_ADDCX, 0, RDX, true },
		{ TDX_VP_CREATE, 0, RDX, true },      { TDX_MNG_INIT, 0, RCX, true },
		{ TDX_MR_FINALIZE, 0, RCX, true },    { TDX_KEY_CONFIG, 0, RCX, true },
		{ TDX_VPFLUSHDONE, 0, RCX, true },    { TDX_KEY_FREEID, 0, RCX, true },
		{ TDX_KEY_RECLAIMID, 0, RCX, true },
	};
	struct world w;

	begin(&w, 0);
	for (size_t i = 0; i < PW_ARRAY_LEN(calls); i++) {
		struct tdx_call c = { .op = calls[i].op, .tdr = TDR + 1, .gpa = GPA, .level = calls[i].level };

		cr_expect_eq(call(&w, c), TDX_METADATA_ | calls[i].operand, "%s", tdx_op_name(c.op));
		c.version = 1;
		cr_expect_eq(call(&w, c) == TDX_METADATA_ + calls[i].operand, calls[i].versioned, "%s",
			     tdx_op_name(c.op));
	}
	close_platform(&w);
}

Test(tdx, op_states_allow_what_the_bit_table_says)
{
	static const struct {
		enum tdx_op op;
		bool allowed[3];
	} bits[] = {
		{ TDX_MNG_INIT, { true, false, false } },     { TDX_VP_CREATE, { false, true, false } },
		{ TDX_PAGE_ADD, { false, true, false } },     { TDX_MR_EXTEND, { false, true, false } },
		{ TDX_MR_FINALIZE, { false, true, false } },  { TDX_SEPT_ADD, { false, true, true } },
		{ TDX_PAGE_AUG, { false, true, true } },      { TDX_RANGE_BLOCK, { false, true, true } },
		{ TDX_RANGE_UNBLOCK, { false, true, true } }, { TDX_PAGE_REMOVE, { false, true, true } },
		{ TDX_PAGE_PROMOTE, { false, true, true } },  { TDX_PAGE_DEMOTE, { false, true, true } },
		{ TDX_PAGE_RELOCATE, { false, true, true } }, { TDX_SEPT_REMOVE, { false, true, true } },
		{ TDX_SEPT_RD, { false, true, true } },       { TDX_TRACK, { false, true, true } },
		{ TDX_VP_ADDCX, { false, true, false } },     { TDX_VP_INIT, { false, true, false } },
		{ TDX_MNG_ADDCX, { true, false, false } },    { TDX_VP_ENTER, { false, false, true } },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(bits); i++)
		for (unsigned state = 0; state < 3; state++) {
			struct world w;
			uint64_t rax;

			begin(&w, 0);
			cr_assert_eq(CALL(&w, TDX_VP_CREATE, .frame = VCPU), 0);
			if (state == 2)
				run(&w);
			w.td->op_state = (enum tdx_op_state)state;
			rax = call(&w,
				   (struct tdx_call){
					   .op = bits[i].op, .gpa = GPA, .frame = w.next, .vcpu = VCPU, .levels = 4 });
			cr_expect_eq(rax != RAX(OP_STATE_WRONG, 0), bits[i].allowed[state], "%s in %s: 0x%" PRIx64,
				     tdx_op_name(bits[i].op), tdx_op_state_name((enum tdx_op_state)state), rax);
			tdx_release(&w.m);
		}
}

Test(tdx, blocking_a_table_leaves_what_is_below)
{
	struct world w;
	enum tdx_sept s;

	begin(&w, 0);
	reach(&w, 0, TDX_BLOCKED, 0);
	cr_assert_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 4096, .frame = w.next++), 0);
	cr_assert_eq(CALL(&w, TDX_RANGE_BLOCK, .gpa = GPA, .level = 1), 0);
	cr_expect_eq(CALL(&w, TDX_SEPT_RD, .gpa = GPA), RAX(WALK, RCX));
	cr_expect(w.r.level == 1 && w.r.state == TDX_NL_BLOCKED);
	cr_expect(!tdx_entry(w.td, GPA, 0, &s));
	cr_expect_eq(tdx_touch(w.td, GPA + 4096), TDX_TOUCH_EXIT);
	cr_expect_eq(CALL(&w, TDX_SEPT_REMOVE, .gpa = GPA, .level = 1), RAX(NOT_FREE, RCX));
	cr_assert_eq(CALL(&w, TDX_RANGE_UNBLOCK, .gpa = GPA, .level = 1), 0);
	cr_expect_eq(state_of(&w, 0), TDX_BLOCKED);
	cr_expect_eq(tdx_touch(w.td, GPA + 4096), TDX_TOUCH_VE);
	w.td->pending_ve_disable = true;
	cr_expect_eq(tdx_touch(w.td, GPA + 4096), TDX_TOUCH_EXIT_PENDING);
	close_platform(&w);
}

Test(tdx, a_page_is_tracked_when_all_old_vcpus_have_left)
{
	struct world w;

	begin(&w, 0);
	run(&w);
	tdx_epoch_enter(w.td);
	reach(&w, 0, TDX_BLOCKED, 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_REMOVE, .gpa = GPA), RAX(NOT_TRACKED, RCX), "no TRACK yet");
	cr_expect_eq(CALL(&w, TDX_TRACK), 0);
	cr_expect_eq(w.r.epoch, 2);
	tdx_epoch_enter(w.td);
	cr_expect_eq(CALL(&w, TDX_PAGE_REMOVE, .gpa = GPA), RAX(NOT_TRACKED, RCX), "one is inside");
	cr_expect_eq(CALL(&w, TDX_TRACK), RAX(EPOCH_BUSY, 0));
	cr_expect_eq(w.r.epoch, 2);
	cr_expect(tdx_epoch_leave(w.td, 1));
	cr_expect(!tdx_epoch_leave(w.td, 1));
	cr_expect_eq(CALL(&w, TDX_RANGE_UNBLOCK, .gpa = GPA), 0, "who entered later does not matter");
	cr_assert_eq(CALL(&w, TDX_RANGE_BLOCK, .gpa = GPA), 0);
	cr_expect_eq(CALL(&w, TDX_RANGE_UNBLOCK, .gpa = GPA), RAX(NOT_TRACKED, 146),
		     "a second block needs a new track");
	cr_expect_eq(CALL(&w, TDX_TRACK), 0);
	cr_expect_eq(CALL(&w, TDX_TRACK), RAX(EPOCH_BUSY, 0));
	cr_expect(tdx_epoch_leave(w.td, 2));
	cr_expect_eq(CALL(&w, TDX_TRACK), 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_REMOVE, .gpa = GPA), 0, "two epochs back");
	cr_expect_eq(CALL(&w, TDX_TRACK, .busy = TDX_BUSY_EPOCH), RAX(BUSY, 169));
	close_platform(&w);
}

Test(tdx, an_interrupted_accept_keeps_its_place_until_the_page_is_blocked)
{
	struct world w;
	uint64_t digest;

	begin(&w, 1);
	reach(&w, 1, TDX_PENDING, 0);
	digest = tdx_digest(&w.m);
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA, .level = 1, .interrupt = 200), RAX(RESUMABLE, 0));
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA, .level = 1, .interrupt = 200), RAX(RESUMABLE, 0));
	cr_expect_eq(state_of(&w, 1), TDX_PENDING);
	cr_expect_neq(tdx_digest(&w.m), digest);
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA, .level = 1, .interrupt = 200), 0, "112 pages were left");
	cr_expect_eq(state_of(&w, 1), TDX_MAPPED);
	cr_assert_eq(CALL(&w, TDX_PAGE_REMOVE, .gpa = GPA, .level = 1), 0);
	reach(&w, 1, TDX_PENDING, 0);
	cr_assert_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA, .level = 1, .interrupt = 500), RAX(RESUMABLE, 0));
	cr_assert_eq(CALL(&w, TDX_RANGE_BLOCK, .gpa = GPA, .level = 1), 0);
	cr_assert_eq(CALL(&w, TDX_RANGE_UNBLOCK, .gpa = GPA, .level = 1), 0);
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA, .level = 1, .interrupt = 500), RAX(RESUMABLE, 0));
	close_platform(&w);
}

Test(tdx, an_accept_is_checked_before_the_walk)
{
	struct world w;

	begin(&w, 0);
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA | 1ull << 47), RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA + 4096, .level = 1), RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA, .level = 2), RAX(OPERAND_INVALID, RCX));
	cr_expect_eq(CALL(&w, TDX_ACCEPT, .gpa = GPA + 0x200000), 0);
	cr_expect(w.r.exits, "no table there");
	close_platform(&w);
}

Test(tdx, a_td_lives_from_create_to_the_reclaim_of_its_tdr)
{
	struct world w;

	open_platform(&w);
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = TDR, .hkid = 32), RAX(OPERAND_INVALID, RDX));
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = END, .hkid = HKID), RAX(ADDR_RANGE, RCX));
	cr_expect_eq(CALL(&w, TDX_KEY_CONFIG), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = TDR, .hkid = HKID, .busy = TDX_BUSY_KOT), RAX(BUSY, 186));
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = TDR, .hkid = HKID), 0);
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = TDR, .hkid = 36), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = TDR + 1, .hkid = HKID), RAX(HKID_NOT_FREE, 0));
	cr_expect_eq(CALL(&w, TDX_MNG_ADDCX, .frame = TDR + 1), RAX(KEYS, 0));
	cr_expect_eq(CALL(&w, TDX_MNG_INIT, .levels = 4), RAX(KEYS, 0));
	cr_expect_eq(CALL(&w, TDX_KEY_CONFIG, .fails = true), 0x8000080000000000ull);
	cr_expect_eq(CALL(&w, TDX_KEY_CONFIG), 0);
	cr_expect_eq(CALL(&w, TDX_KEY_CONFIG), RAX(LIFECYCLE, 0));
	cr_expect_eq(CALL(&w, TDX_MNG_INIT, .levels = 4), RAX(TDCS, 0));
	for (unsigned i = 1; i <= 9; i++)
		cr_expect_eq(CALL(&w, TDX_MNG_ADDCX, .frame = TDR + i), 0);
	cr_expect_eq(CALL(&w, TDX_MNG_ADDCX, .frame = TDR + 10), RAX(TDCX_NUM, 0));
	cr_expect_eq(CALL(&w, TDX_MNG_INIT, .levels = 3), RAX(OPERAND_INVALID, RDX));
	cr_expect_eq(CALL(&w, TDX_MNG_INIT, .levels = 4), 0);
	cr_expect_eq(CALL(&w, TDX_MR_FINALIZE), RAX(NO_VCPUS, 0));
	cr_expect_eq(CALL(&w, TDX_VP_CREATE, .frame = TDR + 1), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_VP_CREATE, .frame = VCPU), 0);
	cr_expect_eq(CALL(&w, TDX_VP_INIT, .vcpu = VCPU), 0xC000070300000000ull);
	for (unsigned i = 1; i <= 5; i++)
		cr_expect_eq(CALL(&w, TDX_VP_ADDCX, .vcpu = VCPU, .frame = VCPU + i), 0);
	cr_expect_eq(CALL(&w, TDX_VP_INIT, .vcpu = VCPU), 0);
	cr_expect_eq(CALL(&w, TDX_VP_INIT, .vcpu = TDR), RAX(METADATA, RCX));
	cr_expect_eq(CALL(&w, TDX_VP_ENTER, .vcpu = VCPU), RAX(OP_STATE_WRONG, 0));
	cr_expect_eq(CALL(&w, TDX_MR_FINALIZE), 0);
	cr_expect_eq(CALL(&w, TDX_MR_FINALIZE), RAX(OP_STATE_WRONG, 0));
	cr_expect_eq(CALL(&w, TDX_VP_ENTER, .vcpu = VCPU), 0);
	cr_expect_eq(CALL(&w, TDX_VP_FLUSH, .vcpu = VCPU), RAX(BUSY, RCX));
	cr_expect_eq(CALL(&w, TDX_VP_EXIT, .vcpu = VCPU), 0);
	cr_expect_eq(CALL(&w, TDX_VPFLUSHDONE), RAX(FLUSHVP, 0));
	cr_expect_eq(CALL(&w, TDX_VP_FLUSH, .vcpu = VCPU), 0);
	cr_expect_eq(CALL(&w, TDX_VP_FLUSH, .vcpu = VCPU), RAX(NOT_ASSOCIATED, 0));
	cr_expect_eq(CALL(&w, TDX_CACHE_WB), RAX(NO_HKID, 0));
	cr_expect_eq(CALL(&w, TDX_KEY_FREEID), RAX(LIFECYCLE, 0));
	cr_expect_eq(CALL(&w, TDX_VPFLUSHDONE), 0);
	cr_expect_eq(CALL(&w, TDX_VPFLUSHDONE), RAX(LIFECYCLE, 0));
	cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .level = 9), RAX(KEYS, 0));
	cr_expect_eq(CALL(&w, TDX_KEY_FREEID), RAX(WBCACHE, 0));
	cr_expect_eq(CALL(&w, TDX_CACHE_WB, .interrupt = 1), RAX(RESUMABLE, 0));
	cr_expect_eq(CALL(&w, TDX_CACHE_WB), 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = TDR + 1), RAX(LIFECYCLE, 0));
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = 0x200, .hkid = HKID), RAX(HKID_NOT_FREE, 0));
	cr_expect_eq(CALL(&w, TDX_KEY_FREEID), 0);
	cr_expect_eq(CALL(&w, TDX_KEY_RECLAIMID), 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = TDR), RAX(PAGES_EXIST, 0));
	cr_expect_eq(CALL(&w, TDX_MNG_CREATE, .frame = 0x200, .hkid = HKID), 0, "the HKID is free, the TD still there");
	for (unsigned i = 1; i <= 9; i++)
		cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = TDR + i), 0);
	for (unsigned i = 0; i <= 5; i++)
		cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = VCPU + i), 0);
	cr_expect(w.r.type == TDX_PT_TDCX && w.r.owner == TDR && w.r.size == 0);
	cr_expect_eq(CALL(&w, TDX_PAGE_RECLAIM, .frame = TDR), 0);
	cr_expect(w.r.type == TDX_PT_TDR && w.r.owner == 0);
	cr_expect_null(tdx_td(&w.m, TDR));
	close_platform(&w);
}

Test(tdx, keys_and_caches_are_a_matter_of_each_package)
{
	struct tdx_config c = platform;
	struct world w = { 0 };
	struct tdx_call off = { .op = TDX_KEY_CONFIG, .tdr = TDR, .package = 2 };

	c.packages = 2;
	cr_assert_eq(tdx_init(&w.m, &w.mem, &c, NULL), PW_OK);
	cr_assert_eq(CALL(&w, TDX_MNG_CREATE, .frame = TDR, .hkid = HKID), 0);
	cr_expect_eq(CALL(&w, TDX_KEY_CONFIG, .package = 1), 0);
	cr_expect_eq(CALL(&w, TDX_KEY_CONFIG, .package = 1), RAX(KEY_CONFIGURED, 0));
	cr_expect_eq(CALL(&w, TDX_MNG_ADDCX, .frame = TDR + 1), RAX(KEYS, 0));
	cr_expect_eq(tdx_call(&w.m, &off, &w.r, NULL), PW_INVALID);
	cr_expect_eq(CALL(&w, TDX_VPFLUSHDONE), 0, "allowed before the keys are there");
	cr_expect_eq(CALL(&w, TDX_CACHE_WB), 0);
	cr_expect_eq(CALL(&w, TDX_CACHE_WB), RAX(NO_HKID, 0));
	cr_expect_eq(CALL(&w, TDX_KEY_FREEID), RAX(WBCACHE, 0));
	cr_expect_eq(CALL(&w, TDX_CACHE_WB, .package = 1), 0);
	cr_expect_eq(CALL(&w, TDX_KEY_FREEID), 0);
	close_platform(&w);
}

Test(tdx, the_width_of_gpas_decides_the_shared_bit)
{
	struct world w;

	for (int wide = 0; wide < 2; wide++) {
		begin(&w, 3);
		w.td->op_state = TDX_UNINITIALIZED;
		cr_assert_eq(CALL(&w, TDX_MNG_INIT, .levels = 5, .wide = wide), 0);
		cr_expect_eq(w.td->alias.mask, 1ull << (wide ? 39 : 35));
		cr_expect_eq(CALL(&w, TDX_SEPT_ADD, .gpa = 0, .level = 4, .frame = w.next++), 0);
		cr_expect_eq(CALL(&w, TDX_SEPT_RD, .gpa = 1ull << 47, .level = 3),
			     wide ? 0 : RAX(OPERAND_INVALID, RCX));
		cr_expect_eq(CALL(&w, TDX_SEPT_RD, .gpa = 1ull << 48, .level = 4),
			     wide ? 0 : RAX(OPERAND_INVALID, RCX));
		cr_expect_eq(CALL(&w, TDX_SEPT_RD, .gpa = 1ull << 51, .level = 4), RAX(OPERAND_INVALID, RCX));
		close_platform(&w);
	}
}

Test(tdx, one_alias_of_a_page_is_mapped_at_a_time)
{
	struct tdx_call aug = { .op = TDX_PAGE_AUG, .tdr = TDR, .gpa = GPA, .level = 1, .frame = LARGE };
	const uint64_t gfn = GPA >> 12, shared = 1ull << 47;
	struct pw_err err = { 0 };
	struct world w;
	uint64_t digest;

	begin(&w, 1);
	cr_assert_eq(tdx_map_shared(&w.m, w.td, gfn + 511, 1, &err), PW_OK);
	digest = tdx_digest(&w.m);
	cr_expect_eq(tdx_call(&w.m, &aug, &w.r, &err), PW_CONFLICT);
	cr_expect(strstr(err.msg, "0x801ff") && strstr(err.msg, "L9"), "%s", err.msg);
	cr_expect_eq(tdx_digest(&w.m), digest);
	cr_expect_eq(tdx_touch(w.td, shared | (GPA + 511 * 4096)), TDX_TOUCH_WORKS);
	cr_expect_eq(tdx_touch(w.td, shared | GPA), TDX_TOUCH_EXIT);
	cr_assert_eq(tdx_unmap_shared(&w.m, w.td, gfn + 511, 1, &err), PW_OK);
	cr_expect_eq(tdx_call(&w.m, &aug, &w.r, &err), PW_OK);
	cr_expect_eq(tdx_map_shared(&w.m, w.td, gfn - 3, 600, &err), PW_CONFLICT);
	cr_expect(strstr(err.msg, "0x80000 is PENDING"), "%s", err.msg);
	cr_expect_eq(tdx_map_shared(&w.m, w.td, (1ull << 35) - 1, 2, &err), PW_INVALID, "reaches the alias bit");
	cr_expect_eq(tdx_map_shared(&w.m, w.td, gfn + 512, 0, &err), PW_INVALID);
	cr_expect_eq(tdx_map_shared(&w.m, w.td, gfn + 512, 1000, &err), PW_OK);
	close_platform(&w);
}

Test(tdx, mapgpa_is_checked_and_cut_into_chunks)
{
	const uint64_t shared = 1ull << 47;
	struct tdx_mapgpa_chunk chunk;
	struct tdx_mapgpa q;
	struct world w;

	begin(&w, 1);
#define CHECK(g, b, on) tdx_mapgpa_check(w.td, &(struct tdx_mapgpa){ .gpa = (g), .bytes = (b), .enabled = (on) })
	cr_expect_eq(CHECK(3, 3, false), TDX_VMCALL_UNSUPPORTED);
	cr_expect_eq(CHECK(UINT64_MAX - 4095, 8192, true), TDX_VMCALL_INVALID);
	cr_expect_eq(CHECK(1ull << 48, 4096, true), TDX_VMCALL_INVALID);
	cr_expect_eq(CHECK(shared - 4096, 8192, true), TDX_VMCALL_INVALID, "both aliases");
	cr_expect_eq(CHECK(shared - 4097, 8192, true), TDX_VMCALL_INVALID, "before alignment");
	cr_expect_eq(CHECK(GPA + 1, 4096, true), TDX_VMCALL_ALIGN_ERROR);
	cr_expect_eq(CHECK(GPA, 4095, true), TDX_VMCALL_ALIGN_ERROR);
	cr_expect_eq(CHECK(GPA, 4096, true), TDX_VMCALL_SUCCESS);
	q = (struct tdx_mapgpa){ .gpa = shared | GPA, .bytes = 0x201000, .enabled = true };
	cr_expect_eq(tdx_mapgpa_check(w.td, &q), TDX_VMCALL_SUCCESS);
	cr_expect(tdx_mapgpa_next(w.td, &q, &chunk));
	cr_expect(chunk.gfn == 0x80000 && chunk.count == 512 && !chunk.to_private);
	cr_expect_eq(q.gpa, shared | (GPA + 0x200000), "R11 of a retry keeps the alias bit");
	cr_expect(tdx_mapgpa_next(w.td, &q, &chunk));
	cr_expect(chunk.gfn == 0x80200 && chunk.count == 1);
	cr_expect(!tdx_mapgpa_next(w.td, &q, &chunk));
	q = (struct tdx_mapgpa){ .gpa = GPA, .bytes = 4096, .enabled = true };
	cr_expect(tdx_mapgpa_next(w.td, &q, &chunk) && chunk.to_private);
	close_platform(&w);
}

Test(tdx, states_project_onto_the_law)
{
	struct world w;

	begin(&w, 0);
	cr_expect_eq(tdx_project_vm(NULL), VM_NORMAL);
	cr_expect_eq(tdx_project_vm(w.td), VM_TRANSIENT);
	cr_expect_eq(tdx_project(w.td, TDX_FREE, false), GFN_NORMAL);
	run(&w);
	cr_expect_eq(tdx_project_vm(w.td), VM_SECURE);
	cr_expect_eq(tdx_project(w.td, TDX_FREE, false), GFN_SECURE_OUT);
	cr_expect_eq(tdx_project(w.td, TDX_FREE, true), GFN_SHARED);
	for (int s = TDX_MAPPED; s <= TDX_PENDING_BLOCKED; s++)
		cr_expect_eq(tdx_project(w.td, (enum tdx_sept)s, false), GFN_SECURE_RESIDENT);
	close_platform(&w);
}

Test(tdx, refusals_name_state_page_owner_and_rule)
{
	struct tdx_call aug = { .op = TDX_PAGE_AUG, .tdr = TDR, .gpa = GPA, .frame = TDR + 3 };
	struct pw_err err = { 0 };
	struct world w;

	begin(&w, 0);
	cr_assert_eq(tdx_call(&w.m, &aug, &w.r, &err), PW_OK);
	tdx_explain(&w.m, &aug, &w.r, &err);
	cr_expect(strstr(err.msg, "frame 0x103 is TDCX of the TD in 0x100") && strstr(err.msg, "INCORRECT|R8"), "%s",
		  err.msg);
	reach(&w, 0, TDX_BLOCKED, 0);
	cr_assert_eq(tdx_call(&w.m, &aug, &w.r, &err), PW_OK);
	tdx_explain(&w.m, &aug, &w.r, &err);
	cr_expect(strstr(err.msg, "AUG of GPA 0x80000000 level 0") && strstr(err.msg, "BLOCKED") &&
			  strstr(err.msg, "state table"),
		  "%s", err.msg);
	close_platform(&w);
}

Test(tdx, leaves_are_read_in_runs)
{
	struct tdx_run run_;
	struct world w;
	uint64_t frame;
	unsigned level;

	begin(&w, 1);
	reach(&w, 1, TDX_PENDING, 0);
	cr_assert_eq(CALL(&w, TDX_PAGE_AUG, .gpa = GPA + 0x200000, .level = 1, .frame = LARGE + 512), 0);
	run_ = tdx_run_at(w.td, 0x80005, 0x90000);
	cr_expect(run_.first == 0x80005 && run_.count == 1024 - 5 && run_.frame == LARGE + 5 && run_.level == 1);
	run_ = tdx_run_at(w.td, 0x80400, 0x90000);
	cr_expect(run_.state == TDX_FREE && run_.count == 0x90000 - 0x80400);
	run_ = tdx_run_at(w.td, 0, 0x80000);
	cr_expect(run_.state == TDX_FREE && run_.count > 0);
	cr_expect_eq(tdx_leaf(w.td, 0x80207, &level, &frame), TDX_PENDING);
	cr_expect_eq(frame, LARGE + 0x207);
	close_platform(&w);
}

/* Random calls: what is refused changes nothing, and the invariants hold. */
static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static struct tdx_call random_call(uint64_t *x)
{
	static const uint64_t gpas[] = {
		0, GPA, GPA, GPA + 4096, GPA + 8192, GPA + 0x200000, GPA + 0x201000, GPA | 1ull << 47
	};
	struct tdx_call c = { .op = (enum tdx_op)(next_random(x) % TDX_OP_COUNT) };

	if (next_random(x) % 2)
		c.op = (enum tdx_op)(TDX_TRACK + next_random(x) % (TDX_OP_COUNT - TDX_TRACK));
	c.tdr = TDR + 0x20 * (next_random(x) % 3);
	c.gpa = gpas[next_random(x) % PW_ARRAY_LEN(gpas)];
	c.level = (unsigned)(next_random(x) % 8 ? next_random(x) % 2 : next_random(x) % 4);
	c.frame = next_random(x) % 4 ? POOL + next_random(x) % 48 : LARGE + next_random(x) % 4 * 512;
	if (next_random(x) % 8 == 0 || c.op == TDX_MNG_CREATE)
		c.frame = TDR + next_random(x) % 0x60;
	c.vcpu = POOL + next_random(x) % 48;
	c.hkid = 33 + (uint32_t)(next_random(x) % 3);
	c.levels = 4;
	c.busy = next_random(x) % 32 ? 0 : (unsigned)next_random(x) % 128;
	c.interrupt = c.op == TDX_ACCEPT && next_random(x) % 4 == 0 ? 1 + (unsigned)next_random(x) % 512 : 0;
	if (c.op == TDX_VPFLUSHDONE && next_random(x) % 16)
		c.op = TDX_PAGE_AUG;
	return c;
}

/* TDs whose tables reach down to 4 KiB entries, so that random calls have something to do. */
static void build_td(struct world *w, uint64_t tdr, uint32_t hkid)
{
	cr_assert_eq(CALL(w, TDX_MNG_CREATE, .tdr = tdr, .frame = tdr, .hkid = hkid), 0);
	cr_assert_eq(CALL(w, TDX_KEY_CONFIG, .tdr = tdr), 0);
	for (unsigned i = 1; i <= 6; i++)
		cr_assert_eq(CALL(w, TDX_MNG_ADDCX, .tdr = tdr, .frame = tdr + i), 0);
	cr_assert_eq(CALL(w, TDX_MNG_INIT, .tdr = tdr, .levels = 4), 0);
	tdx_assume_vcpus(tdx_td(&w->m, tdr), 1);
	for (unsigned l = 3; l > 0; l--)
		cr_assert_eq(
			CALL(w, TDX_SEPT_ADD, .tdr = tdr, .gpa = l == 3 ? 0 : GPA, .level = l, .frame = tdr + 6 + l),
			0);
}

Test(tdx, random_calls_keep_the_invariants, .timeout = 60)
{
	const char *given = getenv("SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u | 1, x = seed;
	uint64_t done = 0;
	struct pw_err err = { 0 };
	struct world w;

	fprintf(stderr, "tdx random calls: SEED=%" PRIu64 "\n", seed);
	open_platform(&w);
	build_td(&w, TDR, 33);
	build_td(&w, TDR + 0x20, 34);
	for (unsigned i = 0; i < 20000; i++) {
		struct tdx_call c = random_call(&x);
		struct tdx_td *td = tdx_td(&w.m, c.tdr);

		if (c.op == TDX_ACCEPT && (!td || td->op_state == TDX_UNINITIALIZED))
			continue;
		call(&w, c);
		done += w.r.code == TDX_SUCCESS;
		if (i % 16 == 0)
			cr_assert(tdx_check(&w.m, &err), "SEED=%" PRIu64 ", call %u (%s): %s", seed, i,
				  tdx_op_name(c.op), err.msg);
	}
	cr_expect_gt(done, 1000);
	close_platform(&w);
}

/* Allocations that fail. */
struct failing {
	uint64_t calls, fail_at;
};

static void *fail_alloc(void *ctx, size_t size)
{
	struct failing *f = ctx;

	return ++f->calls == f->fail_at ? NULL : malloc(size);
}

static void plain_free(void *ctx, void *p)
{
	(void)ctx;
	free(p);
}

static const struct tdx_call life[] = {
	{ .op = TDX_MNG_CREATE, .frame = TDR, .hkid = HKID },
	{ .op = TDX_KEY_CONFIG },
	{ .op = TDX_MNG_ADDCX, .frame = TDR + 1 },
	{ .op = TDX_MNG_ADDCX, .frame = TDR + 2 },
	{ .op = TDX_MNG_ADDCX, .frame = TDR + 3 },
	{ .op = TDX_MNG_ADDCX, .frame = TDR + 4 },
	{ .op = TDX_MNG_ADDCX, .frame = TDR + 5 },
	{ .op = TDX_MNG_ADDCX, .frame = TDR + 6 },
	{ .op = TDX_MNG_INIT, .levels = 4 },
	{ .op = TDX_VP_CREATE, .frame = VCPU },
	{ .op = TDX_SEPT_ADD, .gpa = 0, .level = 3, .frame = POOL },
	{ .op = TDX_SEPT_ADD, .gpa = GPA, .level = 2, .frame = POOL + 1 },
	{ .op = TDX_PAGE_AUG, .gpa = GPA, .level = 1, .frame = LARGE },
	{ .op = TDX_PAGE_DEMOTE, .gpa = GPA, .level = 1, .frame = POOL + 2 },
	{ .op = TDX_PAGE_RELOCATE, .gpa = GPA + 0x5000, .frame = POOL + 3 },
	{ .op = TDX_PAGE_RELOCATE, .gpa = GPA + 0x5000, .frame = LARGE + 5 },
	{ .op = TDX_PAGE_PROMOTE, .gpa = GPA, .level = 1 },
};

Test(tdx, a_failed_allocation_changes_nothing)
{
	struct failing f = { .fail_at = 1 };
	bool fired = true;

	for (; fired; f.fail_at++) {
		struct pw_mem mem = { .alloc = fail_alloc, .free = plain_free, .ctx = &f };
		struct tdx_result r;
		struct tdx m;

		f.calls = 0;
		fired = false;
		if (tdx_init(&m, &mem, &platform, NULL) != PW_OK) {
			fired = true;
			cr_expect_eq(mem.used, 0);
			continue;
		}
		for (size_t i = 0; i < PW_ARRAY_LEN(life); i++) {
			struct tdx_call c = life[i];
			uint64_t before = tdx_digest(&m);
			enum pw_status st;

			c.tdr = TDR;
			st = tdx_call(&m, &c, &r, NULL);
			if (st == PW_NO_MEMORY) {
				fired = true;
				cr_expect_eq(tdx_digest(&m), before, "%s", tdx_op_name(c.op));
				st = tdx_call(&m, &c, &r, NULL);
			}
			cr_assert(st == PW_OK && r.code == TDX_SUCCESS, "%s: %s", tdx_op_name(c.op),
				  tdx_code_name(r.code));
		}
		cr_expect(tdx_check(&m, NULL));
		tdx_release(&m);
		cr_expect_eq(mem.used, 0);
	}
	cr_expect_gt(f.fail_at, 20);
}

/* 1 TiB in blocks of 2 MiB costs a few nodes, and does not take long. */
Test(tdx, a_tebibyte_of_blocks_is_cheap, .timeout = 60)
{
	struct tdx_config c = platform;
	struct world w = { 0 };
	uint64_t blocks = 1ull << 19, first = 1ull << 30;
	struct timespec a, b;

	c.tdmr[0].end = 1ull << 33;
	cr_assert_eq(tdx_init(&w.m, &w.mem, &c, NULL), PW_OK);
	build_td(&w, TDR, 33);
	for (uint64_t gb = 0; gb < 1024; gb++) {
		struct tdx_call add = {
			.op = TDX_SEPT_ADD, .tdr = TDR, .gpa = gb << 30, .level = 2, .frame = POOL + gb
		};

		if (gb % 512 == 0 && gb)
			cr_assert_eq(CALL(&w, TDX_SEPT_ADD, .gpa = gb << 30, .level = 3, .frame = POOL + 2000), 0);
		if (gb != 2)
			cr_assert(tdx_call(&w.m, &add, &w.r, NULL) == PW_OK && w.r.code == TDX_SUCCESS);
	}
	clock_gettime(CLOCK_MONOTONIC, &a);
	for (uint64_t n = 0; n < blocks; n++) {
		struct tdx_call aug = {
			.op = TDX_PAGE_AUG, .tdr = TDR, .gpa = n << 21, .level = 1, .frame = first + n * 512
		};

		if (n == 1024)
			continue;
		cr_assert(tdx_call(&w.m, &aug, &w.r, NULL) == PW_OK && w.r.code == TDX_SUCCESS);
	}
	clock_gettime(CLOCK_MONOTONIC, &b);
	fprintf(stderr, "1 TiB of 2 MiB pages: %.3f s, %zu bytes\n",
		(double)(b.tv_sec - a.tv_sec) + (double)(b.tv_nsec - a.tv_nsec) * 1e-9, w.mem.used);
	arena_trim_to(&w.m.arena, 0);
	cr_expect_lt(w.mem.used, 256 * 1024);
	close_platform(&w);
}

/* As the module's interface numbers them, from its error code header and Linux' tdx_errno.h. */
Test(tdx, codes_have_the_numbers_of_the_interface)
{
	static const struct {
		enum tdx_code code;
		uint32_t high;
	} cases[] = {
		{ TDX_SUCCESS, 0x00000000 },
		{ TDX_INTERRUPTED_RESUMABLE, 0x80000003 },
		{ TDX_INTERRUPTED_RESTARTABLE, 0x80000004 },
		{ TDX_OPERAND_INVALID, 0xc0000100 },
		{ TDX_OPERAND_ADDR_RANGE_ERROR, 0xc0000101 },
		{ TDX_OPERAND_BUSY, 0x80000200 },
		{ TDX_PREVIOUS_TLB_EPOCH_BUSY, 0x80000201 },
		{ TDX_OPERAND_BUSY_HOST_PRIORITY, 0x80000204 },
		{ TDX_PAGE_METADATA_INCORRECT, 0xc0000300 },
		{ TDX_TD_ASSOCIATED_PAGES_EXIST, 0xc0000400 },
		{ TDX_TD_FATAL, 0xe0000604 },
		{ TDX_TDCS_NOT_ALLOCATED, 0xc0000606 },
		{ TDX_LIFECYCLE_STATE_INCORRECT, 0xc0000607 },
		{ TDX_OP_STATE_INCORRECT, 0xc0000608 },
		{ TDX_NO_VCPUS, 0xc0000609 },
		{ TDX_TDCX_NUM_INCORRECT, 0xc0000610 },
		{ TDX_VCPU_STATE_INCORRECT, 0xc0000700 },
		{ TDX_VCPU_NOT_ASSOCIATED, 0x80000702 },
		{ TDX_TDVPX_NUM_INCORRECT, 0xc0000703 },
		{ TDX_KEY_GENERATION_FAILED, 0x80000800 },
		{ TDX_TD_KEYS_NOT_CONFIGURED, 0x80000810 },
		{ TDX_KEY_STATE_INCORRECT, 0xc0000811 },
		{ TDX_KEY_CONFIGURED, 0x00000815 },
		{ TDX_WBCACHE_NOT_COMPLETE, 0x80000817 },
		{ TDX_HKID_NOT_FREE, 0xc0000820 },
		{ TDX_NO_HKID_READY_TO_WBCACHE, 0x00000821 },
		{ TDX_FLUSHVP_NOT_DONE, 0x80000824 },
		{ TDX_EPT_WALK_FAILED, 0xc0000b00 },
		{ TDX_EPT_ENTRY_NOT_PRESENT, 0xc0000b03 },
		{ TDX_GPA_RANGE_NOT_BLOCKED, 0xc0000b06 },
		{ TDX_GPA_RANGE_ALREADY_BLOCKED, 0x00000b07 },
		{ TDX_TLB_TRACKING_NOT_DONE, 0xc0000b08 },
		{ TDX_EPT_INVALID_PROMOTE_CONDITIONS, 0xc0000b09 },
		{ TDX_PAGE_ALREADY_ACCEPTED, 0x00000b0a },
		{ TDX_PAGE_SIZE_MISMATCH, 0xc0000b0b },
		{ TDX_EPT_ENTRY_STATE_INCORRECT, 0xc0000b0d },
		{ TDX_EPT_PAGE_NOT_FREE, 0xc0000b0e },
	};

	cr_assert_eq(PW_ARRAY_LEN(cases), TDX_CODE_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct tdx_result r = { .code = cases[i].code, .operand = 7 };

		cr_expect_eq(tdx_rax(&r), (uint64_t)cases[i].high << 32 | 7, "%s", tdx_code_name(cases[i].code));
	}
}
