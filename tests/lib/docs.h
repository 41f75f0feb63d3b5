/* tests/lib/docs.h
 *
 * Pages of docs/ whose tables are printed from the code's: a test of each page says which, and fails when they differ.
 * WRITE_DOCS=1 shows what the page has to say.
 */
#ifndef PW_TESTS_LIB_DOCS_H
#define PW_TESTS_LIB_DOCS_H
#include <stddef.h>
#include <stdio.h>

typedef void (*docs_print_fn)(FILE *out);

/* Expects that the page holds, word for word, what each of n functions prints. Run from the project's root. */
void docs_expect(const char *page, const docs_print_fn *tables, size_t n);

/* "| --- | --- |" and a newline. */
void docs_rule(FILE *out, size_t columns);

#endif
