/* The table of docs/arch-tdx.md is that of the model. */
#include <criterion/criterion.h>
#include <string.h>

#include "engine/arch/tdx.h"
#include "tests/lib/docs.h"

static void print_cell(FILE *out, const struct tdx_sept_cell *c)
{
	switch (c->kind) {
	case TDX_MOVE: fprintf(out, c->tracked ? " T(%s) |" : " %s |", tdx_sept_name(c->next)); break;
	case TDX_MOVE_AS_CHILDREN: fputs(" T(as its children) |", out); break;
	case TDX_STAY: fputs(" stays |", out); break;
	case TDX_REFUSE:
		if (c->code == TDX_EPT_ENTRY_STATE_INCORRECT)
			fputs(" S |", out);
		else
			fprintf(out, " *%s* |", tdx_code_name(c->code) + strlen("TDX_"));
		break;
	case TDX_EXIT: fputs(" *TD exit* |", out); break;
	case TDX_UNDECIDED: break;
	}
}

static void print_table(FILE *out)
{
	fputs("| call | leaf | levels |", out);
	for (int s = 0; s < TDX_SEPT_COUNT; s++)
		fprintf(out, " %s |", tdx_sept_name((enum tdx_sept)s));
	fputs("\n", out);
	docs_rule(out, TDX_SEPT_COUNT + 3);
	for (int n = TDX_SEPT_ADD; n < TDX_OP_COUNT; n++) {
		enum tdx_op op = (enum tdx_op)n;
		const struct tdx_op_rule *rule = tdx_op_rule(op);

		fprintf(out, "| %s | %d | %u..", tdx_op_name(op), tdx_op_leaf(op), rule->min_level);
		fprintf(out, rule->max_level == TDX_TO_ROOT ? "root |" : "%u |", rule->max_level);
		for (int s = 0; s < TDX_SEPT_COUNT; s++)
			print_cell(out, tdx_sept_cell((enum tdx_sept)s, op));
		fputs("\n", out);
	}
}

Test(tdx_docs, table_is_that_of_the_model)
{
	static const docs_print_fn tables[] = { print_table };

	docs_expect("docs/arch-tdx.md", tables, PW_ARRAY_LEN(tables));
}
