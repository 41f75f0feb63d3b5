/* The tables of docs/arch-pkvm.md are those of the model. */
#include <criterion/criterion.h>

#include "engine/arch/pkvm.h"
#include "tests/lib/docs.h"

static const char *mark(enum pkvm_source s)
{
	return s == PKVM_TESTED ? "**" : s == PKVM_INFERRED ? "*" : "";
}

static void page_table(FILE *out)
{
	fputs("| | A | B | C | D | E | F | G |\n| --- | --- | --- | --- | --- | --- | --- | --- |\n", out);
	for (int op = 0; op < PKVM_PAGE_OP_COUNT; op++) {
		fprintf(out, "| %s |", pkvm_page_op_name((enum pkvm_page_op)op));
		for (int j = 0; j < PKVM_JOINT_COUNT; j++) {
			const struct pkvm_page_cell *c = pkvm_page_cell((enum pkvm_joint)j, (enum pkvm_page_op)op);
			const char *m = mark(c->source);

			if (c->kind == PKVM_REFUSE)
				fprintf(out, " %s%s%s |", m, pkvm_code_name(c->code) + 1, m);
			else
				fprintf(out, " %s%s%s%s%s |", m, pkvm_joint_name(c->next), m,
					c->contents == PKVM_ZEROED ? ", zeroed" : "",
					c->unless == PKVM_ALWAYS ? "" : " or EBUSY");
		}
		fputc('\n', out);
	}
}

static void leaf_table(FILE *out)
{
	static const enum pkvm_page_state order[] = { PKVM_NOPAGE, PKVM_BORROWED, PKVM_OWNED, PKVM_SHARED_OWNED,
						      PKVM_POISON };

	fputs("| |", out);
	for (size_t i = 0; i < PW_ARRAY_LEN(order); i++)
		fprintf(out, " %s |", pkvm_page_state_name(order[i]));
	fputs("\n| --- | --- | --- | --- | --- | --- |\n", out);
	for (int op = 0; op < PKVM_LEAF_OP_COUNT; op++) {
		fprintf(out, "| %s |", pkvm_leaf_op_name((enum pkvm_leaf_op)op));
		for (size_t i = 0; i < PW_ARRAY_LEN(order); i++) {
			const struct pkvm_leaf_cell *c = pkvm_leaf_cell(order[i], (enum pkvm_leaf_op)op);
			const char *m = mark(c->source);

			if (c->kind == PKVM_REFUSE)
				fprintf(out, " %s%s%s |", m, pkvm_code_name(c->code) + 1, m);
			else if (c->kind == PKVM_STAY)
				fprintf(out, " %s0%s |", m, m);
			else
				fprintf(out, " %s%s%s, page %s%s |", m, pkvm_page_state_name(c->leaf), m,
					pkvm_joint_name(c->next), c->contents == PKVM_ZEROED ? ", zeroed" : "");
		}
		fputc('\n', out);
	}
}

static void vm_table(FILE *out)
{
	fputs("| |", out);
	for (int op = 0; op < PKVM_VM_OP_COUNT; op++)
		fprintf(out, " %s |", pkvm_vm_op_name((enum pkvm_vm_op)op));
	fputs("\n| --- | --- | --- | --- | --- | --- | --- | --- | --- |\n", out);
	for (int s = 0; s < PKVM_VM_STATE_COUNT; s++) {
		fprintf(out, "| %s |", pkvm_vm_state_name((enum pkvm_vm_state)s));
		for (int op = 0; op < PKVM_VM_OP_COUNT; op++) {
			const struct pkvm_vm_cell *c = pkvm_vm_cell((enum pkvm_vm_state)s, (enum pkvm_vm_op)op);
			const char *m = mark(c->source);

			if (c->kind == PKVM_REFUSE)
				fprintf(out, " %s |", pkvm_code_name(c->code) + 1);
			else
				fprintf(out, " %s%s%s%s |", m,
					c->kind == PKVM_STAY ? "stays" : pkvm_vm_state_name(c->next), m,
					c->unreferenced ? " if unreferenced" : "");
		}
		fputc('\n', out);
	}
}

static void exit_table(FILE *out)
{
	static const char *const who[2][2] = { { "never", "android" }, { "mainline", "both" } };
	static const char *const modes[] = { "", "mode; ", "mode, A set; " };
	static const char *const syndromes[] = { "whole", "without register", "without valid bit", "constant" };

	fputs("| exit | reaches the host | the host sees | syndrome | the host may |\n| --- | --- | --- | --- | --- |\n",
	      out);
	for (int e = 0; e < PKVM_EXIT_COUNT; e++) {
		const struct pkvm_exit_row *r = pkvm_exit_row((enum pkvm_exit)e);

		fprintf(out, "| %s | %s | ", pkvm_exit_name((enum pkvm_exit)e),
			who[r->reaches_host[0]][r->reaches_host[1]]);
		if (r->regs)
			fprintf(out, r->regs > 1 ? "x0..x%u; " : "x%u; ", r->regs - 1);
		fprintf(out, "%s%s%s%s%s| %s | %s%s%s%s%s|\n", r->value ? "the value; " : "", modes[r->mode],
			r->endianness ? "endianness; " : "", r->page ? "page; " : "", r->va_low ? "low bits; " : "",
			syndromes[r->syndrome], r->may & PKVM_MAY_RESULT ? "set x0; " : "",
			r->may & PKVM_MAY_FILL ? "give the value; " : "", r->may & PKVM_MAY_SKIP ? "skip; " : "",
			r->may & PKVM_MAY_UNDEF ? "inject UNDEF; " : "",
			r->may & PKVM_MAY_ABORT ? "inject an abort; " : "");
	}
}

Test(pkvm_docs, show_the_tables_of_the_code)
{
	static const docs_print_fn tables[] = { page_table, leaf_table, vm_table, exit_table };

	docs_expect("docs/arch-pkvm.md", tables, PW_ARRAY_LEN(tables));
}
