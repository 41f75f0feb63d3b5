/* The plan of a launch: which of its pages are memory. */
#include "agents/ripas.h"

#include <criterion/criterion.h>
#include <string.h>

#include "api/operation_params.h"

static enum pw_status read_plan(const char *text, struct ripas_plan *out, struct pw_err *err)
{
	json_t *params = json_loads(text, 0, NULL);
	enum pw_status st;

	cr_assert(params, "%s", text);
	st = ripas_plan_read(params, out, err);
	json_decref(params);
	return st;
}

Test(ripas, the_last_run_that_names_a_page_counts)
{
	static const struct {
		uint64_t gfn, end, count;
		bool empty;
	} cases[] = {
		{ 0, 100, 8, false },  { 8, 100, 4, true },    { 9, 100, 3, true },  { 10, 11, 1, true },
		{ 12, 100, 2, false }, { 14, 100, 6, true },   { 19, 100, 1, true }, { 20, 100, 10, false },
		{ 30, 100, 1, true },  { 31, 100, 69, false },
	};
	struct ripas_plan p;
	struct pw_err err;
	uint64_t count;

	cr_assert_eq(
		read_plan("{\"ripas\":[[8,12,\"EMPTY\"],[12,2,\"RAM\"],[30,1,\"RAM\"],[30,1,\"EMPTY\"]]}", &p, &err),
		PW_OK);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		cr_expect_eq(ripas_plan_is_empty(&p, cases[i].gfn, cases[i].end, &count), cases[i].empty, "case %zu",
			     i);
		cr_expect_eq(count, cases[i].count, "case %zu: %" PRIu64, i, count);
	}
	ripas_plan_release(&p);
}

Test(ripas, without_a_plan_all_is_memory)
{
	struct ripas_plan p;
	struct pw_err err;
	uint64_t count;

	cr_assert_eq(read_plan("{}", &p, &err), PW_OK);
	cr_expect_not(ripas_plan_is_empty(&p, 5, 70, &count));
	cr_expect(count == 65 && p.n == 0);
	ripas_plan_release(&p);
	cr_assert_eq(read_plan("{\"ripas\":[]}", &p, &err), PW_OK);
	cr_expect_eq(p.n, 0);
	ripas_plan_release(&p);
}

Test(ripas, what_is_no_plan_is_refused)
{
	static const char *const wrong[] = {
		"{\"ripas\":{}}",
		"{\"ripas\":[8]}",
		"{\"ripas\":[[8,1]]}",
		"{\"ripas\":[[8,1,\"RAM\",0]]}",
		"{\"ripas\":[[8,1,\"DESTROYED\"]]}",
		"{\"ripas\":[[8,1,1]]}",
		"{\"ripas\":[[8,0,\"RAM\"]]}",
		"{\"ripas\":[[-1,1,\"RAM\"]]}",
		"{\"ripas\":[[8,1.0,\"RAM\"]]}",
		"{\"ripas\":[[1099511627776,1,\"RAM\"]]}",
		"{\"ripas\":[[0,1,\"RAM\"],[1099511627775,2,\"RAM\"]]}",
	};
	struct ripas_plan p;
	struct pw_err err;

	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		cr_expect_eq(read_plan(wrong[i], &p, &err), PW_INVALID, "%s", wrong[i]);
		cr_expect(strstr(err.msg, "params.ripas") && !p.v, "%s", err.msg);
	}
}

Test(ripas, a_plan_has_so_many_runs)
{
	json_t *list = json_array(), *params = json_pack("{s:o}", "ripas", list);
	struct ripas_plan p;
	struct pw_err err;

	for (int i = 0; i < OPERATION_RUNS_MAX; i++)
		cr_assert_eq(json_array_append_new(list, json_pack("[i,i,s]", i, 1, "EMPTY")), 0);
	cr_expect_eq(ripas_plan_read(params, &p, &err), PW_OK);
	cr_expect_eq(p.n, OPERATION_RUNS_MAX);
	ripas_plan_release(&p);
	cr_assert_eq(json_array_append_new(list, json_pack("[i,i,s]", 0, 1, "EMPTY")), 0);
	cr_expect_eq(ripas_plan_read(params, &p, &err), PW_INVALID);
	json_decref(params);
}
