#include "api/problem.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

static const struct pw_uuid vm = { { 0xab, [15] = 0xcd } };
#define VM_TEXT "ab000000-0000-0000-0000-0000000000cd"

static json_t *written(const struct refusal *why, const char *request_id)
{
	struct jsonw w;
	json_t *v;
	char *text;
	size_t len;

	jsonw_init(&w);
	problem_write(&w, why, request_id, PROBLEM_CLOSED);
	text = jsonw_finish(&w, &len);
	cr_assert_not_null(text);
	v = json_loadb(text, len, JSON_REJECT_DUPLICATES, NULL);
	cr_assert_not_null(v, "%s", text);
	free(text);
	return v;
}

/* All members but those that every problem has, as text. */
static char *own_members(const struct refusal *why)
{
	static const char *const common[] = { "type", "title", "status", "detail", "retryable", "request_id" };
	json_t *v = written(why, "r-1");
	char *text;

	for (size_t i = 0; i < PW_ARRAY_LEN(common); i++)
		cr_assert_eq(json_object_del(v, common[i]), 0, "%s is missing", common[i]);
	text = json_dumps(v, JSON_COMPACT);
	json_decref(v);
	return text;
}

static void expect_members(const struct refusal *why, const char *want)
{
	char *got = own_members(why);

	cr_expect_str_eq(got, want, "%s: %s", problem_slug(why->problem), got);
	free(got);
}

Test(problem, says_what_every_problem_says)
{
	struct refusal why;
	json_t *v;

	refuse(&why, PROBLEM_STORAGE, "the \"disk\" is full");
	v = written(&why, NULL);
	cr_assert_str_eq(json_string_value(json_object_get(v, "type")), "/problems/storage");
	cr_assert_str_eq(json_string_value(json_object_get(v, "detail")), "the \"disk\" is full");
	cr_assert_eq(json_integer_value(json_object_get(v, "status")), 503);
	cr_assert(json_is_true(json_object_get(v, "retryable")));
	cr_assert_null(json_object_get(v, "request_id"));
	json_decref(v);
}

Test(problem, names_both_owners_of_a_conflict)
{
	struct refusal why;

	refuse(&why, PROBLEM_FRAME_CONFLICT, "taken");
	why.run_count = 1;
	why.frames = 9;
	why.runs[0] = (struct frame_run){ .pool = "local", .pfn = 7, .count = 2, .vm = vm, .gfn = 11 };
	expect_members(&why, "{\"conflicts\":[{\"pool\":\"local\",\"pfn\":7,\"count\":2,\"vm\":\"" VM_TEXT
			     "\",\"gfn\":11}],\"conflict_frames\":9}");
}

Test(problem, lists_quarantined_frames)
{
	struct refusal why;

	refuse(&why, PROBLEM_FRAME_QUARANTINED, "kept");
	why.run_count = 2;
	why.runs[0] = (struct frame_run){ .pool = "local", .pfn = 7, .count = 2 };
	why.runs[1] = (struct frame_run){ .pool = "cxl-0", .pfn = 9, .count = 1 };
	expect_members(&why, "{\"frames\":[{\"pool\":\"local\",\"pfn\":7,\"count\":2},"
			     "{\"pool\":\"cxl-0\",\"pfn\":9,\"count\":1}]}");
}

Test(problem, carries_the_members_of_its_kind)
{
	struct refusal why;

	refuse(&why, PROBLEM_GFN_TRANSITION, "no");
	why.gfn = 5;
	why.gfn_state = GFN_SECURE_RESIDENT;
	why.op = "page_in";
	expect_members(&why, "{\"gfn\":5,\"state\":\"secure\",\"resident\":true,\"op\":\"page_in\"}");
	why.gfn_state = GFN_SECURE_OUT;
	expect_members(&why, "{\"gfn\":5,\"state\":\"secure\",\"resident\":false,\"op\":\"page_in\"}");
	refuse(&why, PROBLEM_VM_TRANSITION, "no");
	why.vm_state = VM_NORMAL;
	why.op = "share";
	expect_members(&why, "{\"state\":\"normal\",\"op\":\"share\"}");
	why.op = NULL;
	why.vm_event = VM_INIT_DONE;
	expect_members(&why, "{\"state\":\"normal\",\"event\":\"init_done\"}");
	refuse(&why, PROBLEM_GFN_OUT_OF_SLOT, "no");
	why.gfn = 6;
	expect_members(&why, "{\"gfn\":6}");
	refuse(&why, PROBLEM_FRAME_OUT_OF_POOL, "no");
	memcpy(why.pool, "cxl-0", 6);
	expect_members(&why, "{\"pool\":\"cxl-0\"}");
	refuse(&why, PROBLEM_VM_NOT_FOUND, "no");
	why.vm = vm;
	expect_members(&why, "{\"vm\":\"" VM_TEXT "\"}");
	refuse(&why, PROBLEM_VM_NOT_ON_HOST, "no");
	why.host = vm;
	expect_members(&why, "{\"host\":\"" VM_TEXT "\"}");
	refuse(&why, PROBLEM_HOST_FENCED, "no");
	expect_members(&why, "{}");
}

Test(problem, has_the_status_that_the_contract_names)
{
	static const struct {
		const char *slug;
		unsigned status;
	} named[] = {
		{ "invalid-request", 400 },
		{ "unauthorized", 401 },
		{ "forbidden", 403 },
		{ "host-not-found", 404 },
		{ "method-not-allowed", 405 },
		{ "host-fenced", 409 },
		{ "pool-in-use", 409 },
		{ "vm-exists", 409 },
		{ "slot-overlap", 409 },
		{ "vm-busy", 409 },
		{ "vm-transition", 409 },
		{ "stale-batch", 409 },
		{ "batch-rejected", 409 },
		{ "compacted", 410 },
		{ "stale", 412 },
		{ "body-too-large", 413 },
		{ "uri-too-long", 414 },
		{ "head-too-large", 431 },
		{ "http-version-unsupported", 505 },
		{ "too-much-work", 413 },
		{ "rate-limited", 429 },
		{ "busy", 503 },
		{ "unsupported-media-type", 415 },
		{ "arch-unsupported", 422 },
		{ "idempotency-mismatch", 422 },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(named); i++) {
		enum pw_problem p;

		cr_assert(problem_from_slug(named[i].slug, &p), "%s", named[i].slug);
		cr_expect_eq(problem_status(p), named[i].status, "%s: %u", named[i].slug, problem_status(p));
	}
}

Test(problem, is_an_error_whatever_it_is)
{
	for (int p = PROBLEM_NONE + 1; p < PROBLEM_COUNT; p++) {
		unsigned status = problem_status((enum pw_problem)p);

		cr_expect(status >= 400 && status < 600);
		cr_expect_eq(problem_is_retryable((enum pw_problem)p), status == 503 || status == 429);
	}
}

Test(problem, can_be_left_open_for_more_members)
{
	struct refusal why;
	struct jsonw w;
	size_t len;
	char *text;

	refuse(&why, PROBLEM_INVALID_REQUEST, "no");
	jsonw_init(&w);
	problem_write(&w, &why, NULL, PROBLEM_OPEN);
	jsonw_m_str(&w, "pointer", "/a");
	jsonw_close(&w, '}');
	text = jsonw_finish(&w, &len);
	cr_assert_not_null(strstr(text, ",\"pointer\":\"/a\"}"), "%s", text);
	free(text);
}

Test(problem, stays_utf8_where_a_long_detail_was_cut)
{
	struct refusal why;
	char name[300] = "x";

	for (size_t i = 1; i + 1 < sizeof name; i += 2)
		memcpy(name + i, "\xc3\xa9", 2);
	name[sizeof name - 1] = '\0';
	refuse(&why, PROBLEM_INVALID_REQUEST, "%s", name);
	json_decref(written(&why, NULL)); /* jansson refuses bad UTF-8 */
	refuse(&why, PROBLEM_INVALID_REQUEST, "%s", name + 1);
	json_decref(written(&why, NULL));
}
