/* The tables of docs/arch-snp.md are those of the model. */
#include <criterion/criterion.h>

#include "engine/arch/snp.h"
#include "tests/lib/docs.h"

static void print_cell(FILE *out, enum snp_state s, enum snp_page_op op)
{
	const struct snp_cell *c = snp_cell(s, op);

	switch (c->kind) {
	case SNP_MOVE: fprintf(out, " %s |", snp_state_name(c->next)); break;
	case SNP_STAY: fputs(" stays |", out); break;
	case SNP_REFUSE:
		if (c->code != SNP_OK && snp_code_value(c->code) < 0)
			fprintf(out, " *%s* |", snp_code_name(c->code));
		else if (c->code != SNP_OK)
			fprintf(out, " *%d* |", snp_code_value(c->code));
		else
			fprintf(out, " *%02X* |", snp_status_value(c->status));
		break;
	case SNP_UNDECIDED: break;
	}
}

static void print_table(FILE *out)
{
	fputs("| operation |", out);
	for (int s = 0; s < SNP_STATE_COUNT; s++)
		fprintf(out, " %s |", snp_state_name((enum snp_state)s));
	fputs("\n", out);
	docs_rule(out, SNP_STATE_COUNT + 1);
	for (int op = 0; op < SNP_PAGE_OP_COUNT; op++) {
		fprintf(out, "| %s |", snp_page_op_name((enum snp_page_op)op));
		for (int s = 0; s < SNP_STATE_COUNT; s++)
			print_cell(out, (enum snp_state)s, (enum snp_page_op)op);
		fputs("\n", out);
	}
}

static void print_rules(FILE *out)
{
	fputs("| what | source | |\n| --- | --- | --- |\n", out);
	for (int r = SNP_RULE_NONE + 1; r < SNP_RULE_COUNT; r++)
		fprintf(out, "| %s | %s | %s |\n", snp_rule_text((enum snp_rule)r), snp_rule_source((enum snp_rule)r),
			snp_rule_is_inferred((enum snp_rule)r) ? "inferred" : "verified");
}

Test(snp_docs, tables_are_those_of_the_model)
{
	static const docs_print_fn tables[] = { print_table, print_rules };

	docs_expect("docs/arch-snp.md", tables, PW_ARRAY_LEN(tables));
}
