/* Every cell of the CCA table, read as RMM 1.0 A5.3.5 and B4.3 have it. What the calls make of them: test_cca.c. */
#include "engine/arch/cca.h"

#include <criterion/criterion.h>
#include <string.h>

/*
 * In the order of the entries: UNASSIGNED with RIPAS EMPTY, RAM, DESTROYED, ASSIGNED with the same three, TABLE, and of
 * the unprotected half UNASSIGNED_NS, ASSIGNED_NS, TABLE_NS. A letter is the entry that follows (as in `letters`), a
 * dot that it stays, ! a stop, > that the walk goes on below, / that the address is refused before.
 */
static const char letters[] = "erdERDTnNt";
/* clang-format off */
static const struct row {
	enum cca_entry_op op;
	const char *expected;
} rows[] = {
	/*                        erdERDTnNt */
	{ CCA_OP_DATA_CREATE,    "RRR!!!>///" },
	{ CCA_OP_DATA_UNKNOWN,   "ERD!!!>///" }, /* it keeps the RIPAS */
	{ CCA_OP_DATA_DESTROY,   "!!!edd>///" }, /* RAM that had data is DESTROYED */
	{ CCA_OP_INIT_RIPAS,     "r.!!!!!///" },
	{ CCA_OP_SET_EMPTY,      ".e!.E!!///" },
	{ CCA_OP_SET_RAM,        "r.!R.!!///" },
	{ CCA_OP_SET_EMPTY_CD,   ".ee.EE!///" }, /* CHANGE_DESTROYED */
	{ CCA_OP_SET_RAM_CD,     "r.rR.R!///" },
	{ CCA_OP_MAP,            "///////N!!" },
	{ CCA_OP_UNMAP,          "///////!n!" },
	{ CCA_OP_UNFOLD,         "......!..!" },
	{ CCA_OP_RTT_DESTROY,    "!!!!!!d!!n" },
	{ CCA_OP_FOLD,           "......!..!" },
};
/* clang-format on */

static char outcome(enum cca_entry e, const struct cca_cell *c)
{
	switch (c->kind) {
	case CCA_UNDECIDED: return '?';
	case CCA_MOVE: return c->next == e ? '?' : letters[c->next];
	case CCA_SAME: return c->next == e ? '.' : '?';
	case CCA_STOP: return '!';
	case CCA_DOWN: return '>';
	case CCA_OTHER_HALF: break;
	}
	return '/';
}

Test(cca_cells, every_cell_is_the_specifications)
{
	cr_assert_eq(PW_ARRAY_LEN(rows), CCA_ENTRY_OP_COUNT);
	cr_assert_eq(strlen(letters), CCA_ENTRY_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(rows); i++)
		for (int e = 0; e < CCA_ENTRY_COUNT; e++)
			cr_expect_eq(outcome((enum cca_entry)e, cca_cell((enum cca_entry)e, rows[i].op)),
				     rows[i].expected[e], "%s of %s", cca_entry_op_name(rows[i].op),
				     cca_entry_name((enum cca_entry)e));
}
