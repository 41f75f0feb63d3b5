#include "tests/lib/replayed.h"

#include <criterion/criterion.h>
#include <glob.h>
#include <string.h>

enum pw_status replay_text(const char *text, struct replay_tally *t, struct pw_err *err)
{
	FILE *in = fmemopen((char *)(uintptr_t)text, strlen(text), "r");
	enum pw_status st;

	cr_assert(in);
	st = replay_file(in, "text", NULL, t, err);
	fclose(in);
	return st;
}

void replay_traces(const char *pattern, uint64_t steps)
{
	struct replay_tally t = { 0 };
	struct pw_err err = { 0 };
	glob_t found;

	cr_assert_eq(glob(pattern, 0, NULL, &found), 0, "run it from the project's root");
	for (size_t i = 0; i < found.gl_pathc; i++) {
		FILE *in = fopen(found.gl_pathv[i], "r");

		cr_assert(in);
		cr_expect_eq(replay_file(in, found.gl_pathv[i], stderr, &t, &err), PW_OK, "%s", err.msg);
		fclose(in);
	}
	globfree(&found);
	cr_expect_geq(t.steps, steps);
	cr_expect_eq(t.wrong, 0, "%" PRIu64 " of %" PRIu64 " steps are wrong", t.wrong, t.steps);
}
