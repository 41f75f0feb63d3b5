/* The tables of docs/arch-cca.md are those of the model. */
#include <criterion/criterion.h>
#include <string.h>

#include "engine/arch/cca.h"
#include "tests/lib/docs.h"

static void print_entries(FILE *out)
{
	fputs("| before |", out);
	for (int op = 0; op < CCA_ENTRY_OP_COUNT; op++)
		fprintf(out, " %s |", cca_entry_op_name((enum cca_entry_op)op));
	fputs("\n| --- |", out);
	for (int op = 0; op < CCA_ENTRY_OP_COUNT; op++)
		fputs(" --- |", out);
	for (int e = 0; e < CCA_ENTRY_COUNT; e++) {
		fprintf(out, "\n| %s |", cca_entry_name((enum cca_entry)e));
		for (int op = 0; op < CCA_ENTRY_OP_COUNT; op++) {
			const struct cca_cell *c = cca_cell((enum cca_entry)e, (enum cca_entry_op)op);

			fprintf(out, " %s |",
				c->kind == CCA_MOVE   ? cca_entry_name(c->next)
				: c->kind == CCA_SAME ? "="
				: c->kind == CCA_STOP ? "stop"
						      : "-");
		}
	}
	fputs("\n", out);
}

static void print_check(FILE *out, const struct cca_check *k, int n)
{
	fprintf(out, "%s%d ", n > 1 ? " · " : "", n);
	if (k->kind == CCA_CHECK_GRANULE)
		fprintf(out, "%s=%s", cca_arg_name(k->arg), cca_granule_name(k->state));
	else
		fprintf(out, "%s: %s", cca_check_text(k->kind), cca_status_name(k->status) + strlen("RMI_ERROR_"));
}

static void print_commands(FILE *out)
{
	fputs("| function | command | checks | source |\n| --- | --- | --- | --- |\n", out);
	for (int c = 0; c < CCA_COMMAND_COUNT; c++) {
		const struct cca_command_row *row = cca_command_row((enum cca_command)c);

		fprintf(out, "| 0x%X | %s(", cca_command_fid((enum cca_command)c),
			cca_command_name((enum cca_command)c));
		for (unsigned i = 0; i < row->arg_count; i++)
			fprintf(out, "%s%s", i ? ", " : "", cca_arg_name(row->args[i]));
		fputs(") | ", out);
		for (int i = 0; row->checks[i].kind != CCA_CHECK_NONE; i++)
			print_check(out, &row->checks[i], i + 1);
		fprintf(out, " | %s |\n", row->source);
	}
}

Test(cca_docs, tables_are_those_of_the_model)
{
	static const docs_print_fn tables[] = { print_entries, print_commands };

	docs_expect("docs/arch-cca.md", tables, PW_ARRAY_LEN(tables));
}
