/* The tables of docs/arch-cca.md are those of the model. CCA_DOCS=1 prints them. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arch/cca.h"

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

static char *printed(void (*print)(FILE *out))
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	cr_assert(out);
	print(out);
	fclose(out);
	return text;
}

static char *document(void)
{
	FILE *in = fopen("docs/arch-cca.md", "r");
	char *text = calloc(1, 65536);

	cr_assert(in && text, "run it from the project's root");
	cr_assert_lt(fread(text, 1, 65535, in), 65535);
	fclose(in);
	return text;
}

Test(cca_docs, tables_are_those_of_the_model)
{
	char *doc = document(), *entries = printed(print_entries), *commands = printed(print_commands);

	if (getenv("CCA_DOCS"))
		printf("%s\n%s", entries, commands);
	cr_expect(strstr(doc, entries), "the table of entries has changed: CCA_DOCS=1 prints it");
	cr_expect(strstr(doc, commands), "the table of commands has changed: CCA_DOCS=1 prints it");
	free(doc);
	free(entries);
	free(commands);
}
