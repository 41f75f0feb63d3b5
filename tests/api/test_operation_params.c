/* Parameters of operations: what each kind takes, and the pointer to what it refuses. */
#include "api/operation_params.h"

#include <criterion/criterion.h>
#include <string.h>

#define END (UINT64_C(1) << 40)

struct operation_case {
	const char *kind, *params;
	const char *pointer; /* NULL: taken */
};

static struct operation_case cases[] = {
	{ "launch", "{}", NULL },
	{ "launch", "{\"resident\":0,\"shared\":[],\"plain\":false,\"guest\":{},\"share_backing\":\"g\",\"ripas\":[]}",
	  NULL },
	{ "launch", "{\"resident\":1099511627776}", NULL },
	{ "launch", "{\"resident\":0.0}", NULL },
	{ "launch", "{\"resident\":1.0}", NULL },
	{ "launch", "{\"resident\":1.5}", "/params/resident" },
	{ "launch", "{\"resident\":-0.1}", "/params/resident" },
	{ "launch", "{\"resident\":-1}", "/params/resident" },
	{ "launch", "{\"resident\":1099511627777}", "/params/resident" },
	{ "launch", "{\"resident\":\"x\"}", "/params/resident" },
	{ "launch", "{\"resident\":true}", "/params/resident" },
	{ "launch", "{\"no_such\":1}", "/params/no_such" },
	{ "launch", "{\"plain\":1}", "/params/plain" },
	{ "launch", "{\"shared\":[[0,1],[5,1099511627771]]}", NULL },
	{ "launch", "{\"shared\":[[0,1],[5,1099511627772]]}", "/params/shared/1/1" },
	{ "launch", "{\"shared\":[[0,0]]}", "/params/shared/0/1" },
	{ "launch", "{\"shared\":[[-1,1]]}", "/params/shared/0/0" },
	{ "launch", "{\"shared\":[[1099511627776,1]]}", "/params/shared/0/0" },
	{ "launch", "{\"shared\":[[1]]}", "/params/shared/0" },
	{ "launch", "{\"shared\":[[1,2,3]]}", "/params/shared/0" },
	{ "launch", "{\"shared\":{}}", "/params/shared" },
	{ "launch", "{\"ripas\":[[0,4,\"EMPTY\"],[4,4,\"RAM\"]]}", NULL },
	{ "launch", "{\"ripas\":[[0,4,\"ram\"]]}", "/params/ripas/0/2" },
	{ "launch", "{\"ripas\":[[0,4]]}", "/params/ripas/0" },
	{ "launch", "{\"ripas\":[[1,1099511627775,\"RAM\"]]}", NULL },
	{ "launch", "{\"ripas\":[[2,1099511627775,\"RAM\"]]}", "/params/ripas/0/1" },
	{ "launch", "{\"guest\":{\"seed\":7,\"rate\":100000,\"idle\":true}}", NULL },
	{ "launch", "{\"guest\":{\"rate\":100001}}", "/params/guest/rate" },
	{ "launch", "{\"guest\":{\"seed\":-1}}", "/params/guest/seed" },
	{ "launch", "{\"guest\":{\"idle\":0}}", "/params/guest/idle" },
	{ "launch", "{\"guest\":{\"mood\":1}}", "/params/guest/mood" },
	{ "launch", "{\"guest\":[]}", "/params/guest" },
	{ "launch", "{\"share_backing\":\"\"}", "/params/share_backing" },
	{ "launch", "{\"share_backing\":7}", "/params/share_backing" },
	{ "launch", "{\"share_backing\":\"1234567890123456789012345678901234567890123456789012345678901234\"}",
	  "/params/share_backing" },
	{ "terminate", "{}", NULL },
	{ "terminate", "{\"gfn\":1}", "/params/gfn" },
	{ "abort", "{}", NULL },
	{ "abort", "{\"force\":true}", "/params/force" },
	{ "share", "{\"gfn\":1,\"count\":1099511627775}", NULL },
	{ "share", "{\"gfn\":2,\"count\":1099511627775}", "/params/count" },
	{ "share", "{\"gfn\":1}", "/params/count" },
	{ "share", "{\"count\":1}", "/params/gfn" },
	{ "share", "{\"gfn\":1,\"count\":0}", "/params/count" },
	{ "share", "{\"gfn\":1099511627776,\"count\":1}", "/params/gfn" },
	{ "share", "{\"gfn\":18446744073709551616,\"count\":1}", "" }, /* no number that JSON text may hold here */
	{ "share", "{\"gfn\":1,\"count\":1,\"resident\":true}", "/params/resident" },
	{ "unshare", "{\"gfn\":1,\"count\":1,\"resident\":true}", NULL },
	{ "unshare", "{\"gfn\":1,\"count\":1,\"resident\":1}", "/params/resident" },
	{ "page_in", "{\"gfn\":\"1\",\"count\":1}", "/params/gfn" },
	{ "page_out", "{\"gfn\":1.0,\"count\":1}", "/params/gfn" },
	{ "adopt", "{\"host\":\"11111111-2222-4333-8444-555555555555\"}", NULL },
	{ "adopt", "{\"host\":\"here\"}", "/params/host" },
	{ "end", "{\"vm\":\"11111111-2222-4333-8444-555555555555\"}", "/params/vm" },
};

static bool take(const char *kind, const char *params, struct operation_body *b, struct codec_fault *why)
{
	char text[512];
	struct body *owner;
	bool ok;

	if (params)
		snprintf(text, sizeof text, "{\"params\":%s,\"kind\":\"%s\"}", params, kind);
	else
		snprintf(text, sizeof text, "{\"kind\":\"%s\"}", kind);
	ok = codec_operation(text, strlen(text), b, &owner, why);
	codec_release(owner);
	return ok;
}

Test(operation_params, are_checked_by_kind_and_bounds)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		const struct operation_case *c = &cases[i];
		struct operation_body b;
		struct codec_fault why;
		bool ok = take(c->kind, c->params, &b, &why);

		cr_expect_eq(ok, c->pointer == NULL, "%s %s: %s", c->kind, c->params, ok ? "taken" : why.detail);
		if (ok || !c->pointer || !*c->pointer)
			continue;
		cr_expect_eq(why.problem, PROBLEM_INVALID_PARAMS, "%s %s", c->kind, c->params);
		cr_expect_str_eq(why.pointer, c->pointer, "%s %s: %s", c->kind, c->params, why.pointer);
	}
}

Test(operation_params, that_are_missing_are_refused_without_any_as_well)
{
	for (int k = 0; k < OPERATION_KIND_COUNT; k++) {
		struct operation_body b;
		struct codec_fault why;
		const char *first = NULL;
		char pointer[64];

		for (const struct operation_param *p = operation_params; p->name; p++)
			if ((int)p->kind == k && p->need == JSON_REQUIRED && !first)
				first = p->name;
		cr_expect_eq(take(operation_kind_name((enum operation_kind)k), NULL, &b, &why), first == NULL, "%d", k);
		if (!first)
			continue;
		snprintf(pointer, sizeof pointer, "/params/%s", first);
		cr_expect(why.problem == PROBLEM_INVALID_PARAMS && strcmp(why.pointer, pointer) == 0, "%s",
			  why.pointer);
	}
}

Test(operation_params, say_which_architectures_take_them)
{
	struct operation_body b;
	struct codec_fault why;

	cr_assert(take("launch", "{\"resident\":1}", &b, &why));
	cr_assert(b.arches == UINT32_MAX && !b.narrow);
	cr_assert(take("launch", "{\"ripas\":[[0,1,\"RAM\"]]}", &b, &why));
	cr_assert_eq(b.arches, 1u << ARCH_CCA);
	cr_assert_str_eq(b.narrow, "ripas");
}

Test(operation_params, hold_at_most_so_many_runs_as_an_agent_takes)
{
	for (size_t n = OPERATION_RUNS_MAX; n <= OPERATION_RUNS_MAX + 1; n++) {
		size_t size = 64 + n * 8, at = 0;
		char *text = malloc(size);
		struct operation_body b;
		struct codec_fault why;
		struct body *owner;
		bool ok;

		cr_assert_not_null(text);
		at += (size_t)snprintf(text, size, "{\"kind\":\"launch\",\"params\":{\"shared\":[");
		for (size_t i = 0; i < n; i++)
			at += (size_t)snprintf(text + at, size - at, "%s[1,1]", i ? "," : "");
		at += (size_t)snprintf(text + at, size - at, "]}}");
		ok = codec_operation(text, at, &b, &owner, &why);
		cr_assert_eq(ok, n == OPERATION_RUNS_MAX, "%zu: %s", n, why.detail);
		cr_assert(ok || (why.problem == PROBLEM_INVALID_PARAMS && strcmp(why.pointer, "/params/shared") == 0));
		codec_release(owner);
		free(text);
	}
}

Test(operation_params, of_another_type_than_an_object_are_no_request_at_all)
{
	struct operation_body b;
	struct codec_fault why;

	cr_assert(!take("launch", "[]", &b, &why));
	cr_assert(why.problem == PROBLEM_NONE && strcmp(why.pointer, "/params") == 0);
}

/* The table holds each parameter once, and explains it. */
Test(operation_params, are_in_a_table_without_doubles)
{
	size_t rows = 0;

	for (const struct operation_param *p = operation_params; p->name; p++, rows++) {
		cr_expect(p->help && *p->help && p->kind < OPERATION_KIND_COUNT && p->type < PARAM_TYPE_COUNT);
		for (const struct operation_param *q = operation_params; q < p; q++)
			cr_expect(q->kind != p->kind || strcmp(q->name, p->name) != 0, "%s twice", p->name);
		cr_expect(p == operation_params || p->kind >= p[-1].kind, "%s: not in order of kinds", p->name);
	}
	cr_assert(rows > 10);
	for (int t = 0; t < PARAM_TYPE_COUNT; t++)
		cr_expect(*param_type_text((enum param_type)t));
}
