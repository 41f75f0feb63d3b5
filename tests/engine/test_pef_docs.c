/* The tables of docs/arch-pef.md are those of the model. */
#include <criterion/criterion.h>

#include "engine/arch/pef.h"
#include "tests/lib/docs.h"

static const char *mark(bool inferred)
{
	return inferred ? "*" : "";
}

static void print_events(FILE *out)
{
	fputs("| |", out);
	for (int e = 0; e < PEF_VM_EVENT_COUNT; e++)
		fprintf(out, " %s |", pef_vm_event_name((enum pef_vm_event)e));
	fputs("\n", out);
	docs_rule(out, PEF_VM_EVENT_COUNT + 1);
	for (int s = 0; s < PEF_VM_STATE_COUNT; s++) {
		fprintf(out, "| %s |", pef_vm_state_name((enum pef_vm_state)s));
		for (int e = 0; e < PEF_VM_EVENT_COUNT; e++) {
			const struct pef_vm_cell *c = pef_vm_cell((enum pef_vm_state)s, (enum pef_vm_event)e);

			fprintf(out, " %s", mark(c->inferred));
			if (c->kind == PEF_VM_STAY)
				fputs("stays", out);
			else if (c->kind == PEF_VM_MOVE)
				fputs(pef_vm_state_name(c->next), out);
			if (c->kind == PEF_VM_REFUSE || c->code != PEF_H_SUCCESS)
				fprintf(out, "%s%s", c->kind == PEF_VM_REFUSE ? "" : ", ", pef_code_name(c->code));
			fprintf(out, "%s |", mark(c->inferred));
		}
		fputs("\n", out);
	}
}

static void print_gfn_cell(FILE *out, const struct pef_gfn_cell *c)
{
	static const char *const contents[] = { "", ", zeroed", ", lost" };

	fprintf(out, " %s", mark(c->inferred));
	if (c->kind == PEF_GFN_REFUSE)
		fputs(pef_code_name(c->code), out);
	else if (c->kind == PEF_GFN_STAY)
		fputs("stays", out);
	else
		fprintf(out, "%s%s", pef_gfn_state_name(c->next), contents[c->contents]);
	if (c->asks_uv)
		fprintf(out, "; %u UV", c->asks_uv);
	if (c->asks_uv && c->code != PEF_H_SUCCESS)
		fprintf(out, " or %s", pef_code_name(c->code));
	fprintf(out, "%s |", mark(c->inferred));
}

static void print_gfns(FILE *out)
{
	fputs("| |", out);
	for (int s = 0; s < PEF_GFN_STATE_COUNT; s++)
		fprintf(out, " %s |", pef_gfn_state_name((enum pef_gfn_state)s));
	fputs("\n", out);
	docs_rule(out, PEF_GFN_STATE_COUNT + 1);
	for (int op = 0; op < PEF_GFN_OP_COUNT; op++) {
		fprintf(out, "| %s |", pef_gfn_op_name((enum pef_gfn_op)op));
		for (int s = 0; s < PEF_GFN_STATE_COUNT; s++)
			print_gfn_cell(out, pef_gfn_cell((enum pef_gfn_state)s, (enum pef_gfn_op)op));
		fputs("\n", out);
	}
}

static void print_codes(FILE *out)
{
	fputs("| code | value |\n", out);
	docs_rule(out, 2);
	for (int c = 0; c < PEF_CODE_COUNT; c++)
		fprintf(out, "| %s | %d |\n", pef_code_name((enum pef_code)c), pef_code_value((enum pef_code)c));
}

static void print_rules(FILE *out)
{
	fputs("| what must hold | source | |\n", out);
	docs_rule(out, 3);
	for (int r = 0; r < PEF_RULE_COUNT; r++)
		fprintf(out, "| %s | %s | %s |\n", pef_rule_text((enum pef_rule)r), pef_rule_source((enum pef_rule)r),
			pef_rule_is_verified((enum pef_rule)r) ? "verified" : "inferred");
}

Test(pef_docs, tables_are_those_of_the_model)
{
	static const docs_print_fn tables[] = { print_events, print_gfns, print_codes, print_rules };

	docs_expect("docs/arch-pef.md", tables, PW_ARRAY_LEN(tables));
}
