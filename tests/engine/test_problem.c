#include "engine/problem.h"

#include <criterion/criterion.h>
#include <string.h>

Test(problem, every_slug_reads_back_as_its_problem)
{
	for (int p = PROBLEM_NONE + 1; p < PROBLEM_COUNT; p++) {
		enum pw_problem back = PROBLEM_NONE;

		cr_assert(problem_from_slug(problem_slug((enum pw_problem)p), &back));
		cr_assert_eq(back, (enum pw_problem)p, "%s is there twice", problem_slug((enum pw_problem)p));
		cr_assert_gt(strlen(problem_title((enum pw_problem)p)), 0);
	}
}

Test(problem, no_problem_has_no_slug_to_read)
{
	enum pw_problem out = PROBLEM_STALE;

	cr_assert_not(problem_from_slug("none", &out));
	cr_assert_not(problem_from_slug("", &out));
	cr_assert_not(problem_from_slug("Frame-conflict", &out));
	cr_assert_eq(out, PROBLEM_STALE);
}

Test(problem, a_refusal_clears_the_facts_of_the_one_before)
{
	struct refusal why;

	memset(&why, 0xff, sizeof why);
	cr_assert_eq(refuse(&why, PROBLEM_STALE, "revision %d", 7), PROBLEM_STALE);
	cr_assert_eq(why.problem, PROBLEM_STALE);
	cr_assert_str_eq(why.detail, "revision 7");
	cr_assert(why.op == NULL && why.gfn == 0 && why.run_count == 0 && why.frames == 0 && why.pool[0] == 0);
}

Test(problem, nobody_need_listen)
{
	cr_assert_eq(refuse(NULL, PROBLEM_STALE, "revision %d", 7), PROBLEM_STALE);
}

Test(problem, a_long_detail_is_cut)
{
	struct refusal why;

	refuse(&why, PROBLEM_STALE, "%01000d", 7);
	cr_assert_eq(strlen(why.detail), sizeof why.detail - 1);
}
