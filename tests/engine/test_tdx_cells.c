/* Every cell of the TDX table, read as the module's sources have it. What the calls make of them: test_tdx.c. */
#include "engine/arch/tdx.h"

#include <criterion/criterion.h>
#include <string.h>

/*
 * In the order of the states: FREE, MAPPED, PENDING, BLOCKED, PENDING_BLOCKED, NL_MAPPED, NL_BLOCKED, REMOVED. A
 * capital is the state that follows (as in `letters`), * that of the 512 children; = it stays; a small letter the
 * refusal: state incorrect, already blocked, not present, already accepted (done), page size mismatch (z); x a TD exit.
 */
static const char letters[] = "FMPBQLKR";
/* clang-format off */
static const struct row {
	enum tdx_op op;
	const char *expected;
	bool tracked; /* what it moves must have been tracked */
} rows[] = {
	/*                     FMPBQLKR */
	{ TDX_SEPT_ADD,      "Lsssssss", false },
	{ TDX_PAGE_ADD,      "Msssssss", false },
	{ TDX_PAGE_AUG,      "PssssssP", false },
	{ TDX_RANGE_BLOCK,   "sBQaaKas", false },
	{ TDX_RANGE_UNBLOCK, "sssMPsLs", true  },
	{ TDX_PAGE_REMOVE,   "sFFFFsss", true  },
	{ TDX_PAGE_RELOCATE, "sMPMPsss", true  },
	{ TDX_PAGE_PROMOTE,  "sssss**s", true  },
	{ TDX_PAGE_DEMOTE,   "sLLLLsss", true  },
	{ TDX_SEPT_REMOVE,   "sssssFFs", true  },
	{ TDX_MR_EXTEND,     "n=nnnnnn", false },
	{ TDX_SEPT_RD,       "========", false },
	{ TDX_ACCEPT,        "xdMxxzzx", false },
};
/* clang-format on */

static char refusal(enum tdx_code c)
{
	static const struct {
		enum tdx_code code;
		char letter;
	} known[] = {
		{ TDX_EPT_ENTRY_STATE_INCORRECT, 's' }, { TDX_GPA_RANGE_ALREADY_BLOCKED, 'a' },
		{ TDX_EPT_ENTRY_NOT_PRESENT, 'n' },     { TDX_PAGE_ALREADY_ACCEPTED, 'd' },
		{ TDX_PAGE_SIZE_MISMATCH, 'z' },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(known); i++)
		if (known[i].code == c)
			return known[i].letter;
	return '?';
}

static char outcome(const struct tdx_sept_cell *c)
{
	switch (c->kind) {
	case TDX_UNDECIDED: return '?';
	case TDX_MOVE: return letters[c->next];
	case TDX_MOVE_AS_CHILDREN: return '*';
	case TDX_STAY: return '=';
	case TDX_REFUSE: return refusal(c->code);
	case TDX_EXIT: break;
	}
	return 'x';
}

Test(tdx_cells, every_cell_is_the_sources)
{
	cr_assert_eq(PW_ARRAY_LEN(rows), TDX_OP_COUNT - TDX_SEPT_ADD);
	cr_assert_eq(strlen(letters), TDX_SEPT_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(rows); i++)
		for (int s = 0; s < TDX_SEPT_COUNT; s++) {
			const struct tdx_sept_cell *c = tdx_sept_cell((enum tdx_sept)s, rows[i].op);
			const char *op = tdx_op_name(rows[i].op), *state = tdx_sept_name((enum tdx_sept)s);

			cr_expect_eq(outcome(c), rows[i].expected[s], "%s of %s", op, state);
			if (c->kind != TDX_REFUSE)
				cr_expect_eq(c->tracked, rows[i].tracked, "tracking, %s of %s", op, state);
		}
}
