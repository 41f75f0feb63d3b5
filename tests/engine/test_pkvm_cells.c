/* Every cell of the pKVM tables, read as Linux mem_protect.c and pkvm.c have it. What calls make of them: test_pkvm.c.
 */
#include "engine/arch/pkvm.h"

#include <criterion/criterion.h>

/* A small letter is a refusal; = it stays. */
static char refusal(enum pkvm_code c)
{
	switch ((int)c) {
	case PKVM_EPERM: return 'p';
	case PKVM_EAGAIN: return 'g';
	case PKVM_ENOENT: return 'n';
	case PKVM_EHWPOISON: return 'h';
	case PKVM_EINVAL: return 'i';
	case PKVM_EBUSY: return 'b';
	default: return '?';
	}
}

static char outcome(enum pkvm_cell_kind kind, char next, enum pkvm_code code)
{
	switch (kind) {
	case PKVM_UNDECIDED: return '?';
	case PKVM_MOVE: return next;
	case PKVM_STAY: return '=';
	case PKVM_REFUSE: break;
	}
	return refusal(code);
}

/* clang-format off */
static const struct page_row {
	enum pkvm_page_op op;
	const char *expected; /* of A to G */
	char from;            /* ... whose move depends on */
	enum pkvm_unless unless;
	char wiped;           /* the state whose page is wiped on its way */
} page_rows[] = {
	/*                 ABCDEFG */
	{ PKVM_HSH,       "Cpppppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_HUH,       "ppApppp", 'C', PKVM_UNLESS_PINNED,     0   },
	{ PKVM_HDH,       "Bpppppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_YDH,       "pAppppp", 'B', PKVM_UNLESS_REFERENCED, 0   },
	{ PKVM_PIN,       "ppCpppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_UNPIN,     "ppCpppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_HSF,       "Dpppppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_HUF,       "pppAppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_HSG,       "EpppEpp", 'E', PKVM_UNLESS_COUNT_FULL, 0   },
	{ PKVM_HSG_TAKEN, "ppppppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_HDG,       "Fpppppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_HDG_TAKEN, "ppppppp", 0,   PKVM_ALWAYS,            0   },
	{ PKVM_FRC,       "gpgggAg", 0,   PKVM_ALWAYS,            'F' },
};

/* Of the leaf NOPAGE, BORROWED, OWNED, SHARED_OWNED, POISON: what becomes of the page, and what of the leaf. */
static const struct leaf_row {
	enum pkvm_leaf_op op;
	enum pkvm_page_state leaf;
	const char *page;
	enum pkvm_page_state then;
	enum pkvm_contents contents;
} leaf_rows[] = {
	{ PKVM_HUG,  PKVM_NOPAGE,       "n", PKVM_NOPAGE,       PKVM_KEPT   },
	{ PKVM_HUG,  PKVM_BORROWED,     "A", PKVM_NOPAGE,       PKVM_KEPT   },
	{ PKVM_HUG,  PKVM_OWNED,        "p", PKVM_OWNED,        PKVM_KEPT   },
	{ PKVM_HUG,  PKVM_SHARED_OWNED, "p", PKVM_SHARED_OWNED, PKVM_KEPT   },
	{ PKVM_HUG,  PKVM_POISON,       "n", PKVM_POISON,       PKVM_KEPT   },
	{ PKVM_TUNE, PKVM_NOPAGE,       "n", PKVM_NOPAGE,       PKVM_KEPT   },
	{ PKVM_TUNE, PKVM_BORROWED,     "=", PKVM_BORROWED,     PKVM_KEPT   },
	{ PKVM_TUNE, PKVM_OWNED,        "p", PKVM_OWNED,        PKVM_KEPT   },
	{ PKVM_TUNE, PKVM_SHARED_OWNED, "p", PKVM_SHARED_OWNED, PKVM_KEPT   },
	{ PKVM_TUNE, PKVM_POISON,       "n", PKVM_POISON,       PKVM_KEPT   },
	{ PKVM_GSH,  PKVM_NOPAGE,       "n", PKVM_NOPAGE,       PKVM_KEPT   },
	{ PKVM_GSH,  PKVM_BORROWED,     "p", PKVM_BORROWED,     PKVM_KEPT   },
	{ PKVM_GSH,  PKVM_OWNED,        "G", PKVM_SHARED_OWNED, PKVM_KEPT   },
	{ PKVM_GSH,  PKVM_SHARED_OWNED, "p", PKVM_SHARED_OWNED, PKVM_KEPT   },
	{ PKVM_GSH,  PKVM_POISON,       "h", PKVM_POISON,       PKVM_KEPT   },
	{ PKVM_GUH,  PKVM_NOPAGE,       "n", PKVM_NOPAGE,       PKVM_KEPT   },
	{ PKVM_GUH,  PKVM_BORROWED,     "p", PKVM_BORROWED,     PKVM_KEPT   },
	{ PKVM_GUH,  PKVM_OWNED,        "p", PKVM_OWNED,        PKVM_KEPT   },
	{ PKVM_GUH,  PKVM_SHARED_OWNED, "F", PKVM_OWNED,        PKVM_KEPT   },
	{ PKVM_GUH,  PKVM_POISON,       "h", PKVM_POISON,       PKVM_KEPT   },
	{ PKVM_RCL,  PKVM_NOPAGE,       "n", PKVM_NOPAGE,       PKVM_KEPT   },
	{ PKVM_RCL,  PKVM_BORROWED,     "p", PKVM_BORROWED,     PKVM_KEPT   },
	{ PKVM_RCL,  PKVM_OWNED,        "A", PKVM_NOPAGE,       PKVM_ZEROED },
	{ PKVM_RCL,  PKVM_SHARED_OWNED, "A", PKVM_NOPAGE,       PKVM_KEPT   },
	{ PKVM_RCL,  PKVM_POISON,       "=", PKVM_POISON,       PKVM_KEPT   },
	{ PKVM_RLQ,  PKVM_NOPAGE,       "=", PKVM_NOPAGE,       PKVM_KEPT   },
	{ PKVM_RLQ,  PKVM_BORROWED,     "=", PKVM_BORROWED,     PKVM_KEPT   },
	{ PKVM_RLQ,  PKVM_OWNED,        "A", PKVM_NOPAGE,       PKVM_ZEROED },
	{ PKVM_RLQ,  PKVM_SHARED_OWNED, "p", PKVM_SHARED_OWNED, PKVM_KEPT   },
	{ PKVM_RLQ,  PKVM_POISON,       "=", PKVM_POISON,       PKVM_KEPT   },
};

static const struct vm_row {
	enum pkvm_vm_op op;
	const char *expected; /* of FREE, RESERVED, CREATED, DYING */
	bool unreferenced;    /* it moves only what nobody refers to */
	enum pkvm_code code;  /* where it does not move though the cell does */
} vm_rows[] = {
	/*                      FRCD */
	{ PKVM_RESERVE,        "Rbbb", false, PKVM_ENOMEM },
	{ PKVM_UNRESERVE,      "=F==", false, PKVM_OK     },
	{ PKVM_INIT_VM,        "iCii", false, PKVM_OK     },
	{ PKVM_INIT_VCPU,      "nn==", false, PKVM_OK     },
	{ PKVM_LOAD,           "ii=i", false, PKVM_OK     },
	{ PKVM_START_TEARDOWN, "iiDi", true,  PKVM_EINVAL },
	{ PKVM_RECLAIM,        "iii=", false, PKVM_OK     },
	{ PKVM_FINALIZE,       "iiiF", true,  PKVM_EINVAL },
};
/* clang-format on */

Test(pkvm_cells, every_page_cell_is_the_sources)
{
	cr_assert_eq(PW_ARRAY_LEN(page_rows), PKVM_PAGE_OP_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(page_rows); i++)
		for (int j = 0; j < PKVM_JOINT_COUNT; j++) {
			const struct page_row *row = &page_rows[i];
			const struct pkvm_page_cell *c = pkvm_page_cell((enum pkvm_joint)j, row->op);
			bool depends = row->from == 'A' + j, wiped = row->wiped == 'A' + j;
			const char *op = pkvm_page_op_name(row->op);

			cr_expect_eq(outcome(c->kind, "ABCDEFG"[c->next], c -> code), row->expected[j], "%s of %c", op,
				     'A' + j);
			if (c->kind != PKVM_MOVE)
				continue;
			cr_expect_eq(c->unless, depends ? row->unless : PKVM_ALWAYS, "%s of %c", op, 'A' + j);
			cr_expect_eq(c->code, depends ? PKVM_EBUSY : PKVM_OK, "%s of %c", op, 'A' + j);
			cr_expect_eq(c->contents, wiped ? PKVM_ZEROED : PKVM_KEPT, "%s of %c", op, 'A' + j);
		}
}

Test(pkvm_cells, every_leaf_cell_is_the_sources)
{
	cr_assert_eq(PW_ARRAY_LEN(leaf_rows), PKVM_LEAF_OP_COUNT * PKVM_PAGE_STATE_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(leaf_rows); i++) {
		const struct leaf_row *row = &leaf_rows[i];
		const struct pkvm_leaf_cell *c = pkvm_leaf_cell(row->leaf, row->op);
		const char *op = pkvm_leaf_op_name(row->op), *leaf = pkvm_page_state_name(row->leaf);

		cr_expect_eq(outcome(c->kind, "ABCDEFG"[c->next], c -> code), row->page[0], "%s of %s", op, leaf);
		cr_expect_eq(c->leaf, row->then, "%s of %s", op, leaf);
		cr_expect_eq(c->contents, row->contents, "%s of %s", op, leaf);
		cr_expect(c->kind == PKVM_REFUSE || c->code == PKVM_OK, "%s of %s", op, leaf);
	}
}

Test(pkvm_cells, every_vm_cell_is_the_sources)
{
	cr_assert_eq(PW_ARRAY_LEN(vm_rows), PKVM_VM_OP_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(vm_rows); i++)
		for (int s = 0; s < PKVM_VM_STATE_COUNT; s++) {
			const struct vm_row *row = &vm_rows[i];
			const struct pkvm_vm_cell *c = pkvm_vm_cell((enum pkvm_vm_state)s, row->op);
			const char *op = pkvm_vm_op_name(row->op), *state = pkvm_vm_state_name((enum pkvm_vm_state)s);

			cr_expect_eq(outcome(c->kind, "FRCD"[c->next], c -> code), row->expected[s], "%s of %s", op,
				     state);
			if (c->kind == PKVM_STAY)
				cr_expect_eq(c->code, PKVM_OK, "%s of %s", op, state);
			if (c->kind != PKVM_MOVE)
				continue;
			cr_expect_eq(c->unreferenced, row->unreferenced, "%s of %s", op, state);
			cr_expect_eq(c->code, row->code, "%s of %s", op, state);
		}
}
