#include "tests/lib/docs.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

static char *read_page(const char *path)
{
	FILE *in = fopen(path, "r"), *out;
	char *text = NULL, block[4096];
	size_t size, n;

	cr_assert(in, "%s: run it from the project's root", path);
	out = open_memstream(&text, &size);
	cr_assert(out);
	while ((n = fread(block, 1, sizeof block, in)) > 0)
		fwrite(block, 1, n, out);
	fclose(in);
	cr_assert_eq(fclose(out), 0);
	return text;
}

static char *printed(docs_print_fn print)
{
	char *text = NULL;
	size_t size;
	FILE *out = open_memstream(&text, &size);

	cr_assert(out);
	print(out);
	cr_assert_eq(fclose(out), 0);
	return text;
}

/* The first line of the table that the page does not have. */
static void tell_difference(const char *path, const char *page, char *table)
{
	for (char *at = table, *line; (line = strsep(&at, "\n"));)
		if (!strstr(page, line)) {
			cr_expect(false, "%s lacks this line (WRITE_DOCS=1 prints all): %s", path, line);
			return;
		}
	cr_expect(false, "%s has its lines in another order, or others between them", path);
}

void docs_expect(const char *path, const docs_print_fn *tables, size_t n)
{
	char *page = read_page(path);

	for (size_t i = 0; i < n; i++) {
		char *table = printed(tables[i]);

		cr_assert(*table);
		if (getenv("WRITE_DOCS"))
			printf("%s\n", table);
		if (!strstr(page, table))
			tell_difference(path, page, table);
		free(table);
	}
	free(page);
}

void docs_rule(FILE *out, size_t columns)
{
	fputs("|", out);
	for (size_t i = 0; i < columns; i++)
		fputs(" --- |", out);
	fputs("\n", out);
}
