#include "server/request.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

/* The query that the request under test has, in place of http.c's. */
static const char *query[4][2];
static struct request r;

const char *request_query(const struct request *request, const char *name)
{
	for (int i = 0; i < 4 && query[i][0]; i++)
		if (strcmp(query[i][0], name) == 0)
			return query[i][1];
	return NULL;
}

void request_each_query(const struct request *request, query_fn fn, void *ctx)
{
	for (int i = 0; i < 4 && query[i][0]; i++)
		if (!fn(ctx, query[i][0], query[i][1]))
			return;
}

static void clean(void)
{
	free(r.response.body);
	r = (struct request){ .id = "id-1" };
	memset(query, 0, sizeof query);
}
TestSuite(request, .init = clean, .fini = clean);

static struct jsonw some_json(void)
{
	struct jsonw w;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_close(&w, '}');
	return w;
}

Test(request, an_answer_takes_the_text_and_a_problem_replaces_it_with_its_headers)
{
	struct jsonw w = some_json();

	answer_etag(&r, 18446744073709551615u);
	cr_assert_eq(answer_json(&r, 201, &w), DONE);
	cr_assert(r.response.status == 201 && r.response.size == 2);
	cr_assert_str_eq(r.response.body, "{}");
	cr_assert_str_eq(r.response.headers, "ETag: \"18446744073709551615\"\n");
	cr_assert_null(w.data);
	cr_assert_eq(answer_problem(&r, PROBLEM_STALE, "revision %d", 7), DONE);
	cr_assert_eq(r.response.status, 412);
	cr_assert_str_eq(r.response.headers, "");
	cr_assert_not_null(strstr(r.response.body, "\"detail\":\"revision 7\""));
	cr_assert_not_null(strstr(r.response.body, "\"request_id\":\"id-1\""));
	cr_assert_eq(r.response.size, strlen(r.response.body));
	cr_assert_eq(answer_empty(&r, 204), DONE);
	cr_assert(r.response.status == 204 && !r.response.body && r.response.size == 0);
}

Test(request, a_failed_writer_becomes_a_retryable_problem)
{
	struct jsonw w = { .failed = true };

	cr_assert_eq(answer_json(&r, 200, &w), DONE);
	cr_assert_eq(r.response.status, 503);
	cr_assert_not_null(strstr(r.response.body, "/problems/no-memory"));
}

Test(request, what_does_not_fit_or_would_forge_a_header_is_dropped)
{
	char big[600];

	memset(big, 'x', sizeof big);
	big[sizeof big - 1] = '\0';
	answer_header(&r, "Location", "/v1/vms/%s", "a\r\nSet-Cookie: b");
	answer_header(&r, "Location", "caf\xc3\xa9");
	answer_header(&r, "X", "%s", big);
	cr_assert_str_eq(r.response.headers, "");
	answer_header(&r, "Location", "/v1/vms/%s", "a");
	answer_header(&r, "A", "%.*s", (int)(sizeof r.response.headers - 20 - 4), big);
	cr_assert_str_eq(r.response.headers, "Location: /v1/vms/a\n", "one byte too many");
	answer_header(&r, "A", "%.*s", (int)(sizeof r.response.headers - 20 - 5), big);
	cr_assert_eq(strlen(r.response.headers), sizeof r.response.headers - 1);
}

Test(request, a_fault_carries_its_pointer_and_bad_utf8_is_mended)
{
	struct codec_fault fault = { .pointer = "/items/0/\xff", .detail = "caf\xc3" };

	cr_assert_eq(answer_fault(&r, &fault), DONE);
	cr_assert_eq(r.response.status, 400);
	cr_assert_not_null(strstr(r.response.body, "\"pointer\":\"/items/0/?\""), "%s", r.response.body);
	cr_assert_not_null(strstr(r.response.body, "\"detail\":\"caf?\""), "%s", r.response.body);
	fault.no_memory = true;
	(void)answer_fault(&r, &fault);
	cr_assert_eq(r.response.status, 503);
}

Test(request, a_refusal_keeps_its_facts_and_is_not_changed)
{
	struct refusal why;

	refuse(&why, PROBLEM_GFN_OUT_OF_SLOT, "gfn 9 is \xff");
	why.gfn = 9;
	(void)answer_refusal(&r, &why);
	cr_assert_eq(r.response.status, 409);
	cr_assert_not_null(strstr(r.response.body, "\"gfn\":9"), "%s", r.response.body);
	cr_assert_not_null(strstr(r.response.body, "gfn 9 is ?"), "%s", r.response.body);
	cr_assert_str_eq(why.detail, "gfn 9 is \xff");
}

Test(request, numbers_of_the_query_are_strict_and_bounded)
{
	static const char *const bad[] = {
		"", " 1", "+1", "-1", "1 ", "1x", "0x1", "1.0", "0", "1001", "18446744073709551617"
	};
	uint64_t v = 5;

	cr_assert(query_u64(&r, "limit", 1, 1000, 100, &v) && v == 100);
	query[0][0] = "limit";
	query[0][1] = "1000";
	cr_assert(query_u64(&r, "limit", 1, 1000, 100, &v) && v == 1000);
	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		query[0][1] = bad[i];
		cr_assert_not(query_u64(&r, "limit", 1, 1000, 100, &v), "%s", bad[i]);
		cr_assert(r.response.status == 400 && strstr(r.response.body, "limit"), "%s", bad[i]);
	}
	cr_assert_eq(v, 1000, "refused numbers leave the result alone");
}

Test(request, unknown_parameters_are_refused_by_name)
{
	static const char *const names[] = { "limit", "cursor", NULL };

	query[0][0] = "cursor";
	query[0][1] = "x";
	cr_assert(query_known(&r, names));
	query[1][0] = "curser";
	query[1][1] = "x";
	cr_assert_not(query_known(&r, names));
	cr_assert(r.response.status == 400 && strstr(r.response.body, "curser"));
}

Test(request, only_a_lower_case_uuid_names_something)
{
	static const char *const bad[] = { "",
					   "x",
					   "0123456789ab",
					   "01234567-89AB-4def-8123-456789abcdef",
					   "01234567-89ab-4def-8123-456789abcdef0",
					   "01234567-89ab-4def-8123-456789abcde" };
	struct pw_uuid id = { { 0 } };

	r.args[1] = "01234567-89ab-4def-8123-456789abcdef";
	cr_assert(arg_uuid(&r, 1, PROBLEM_VM_NOT_FOUND, &id));
	cr_assert(id.b[0] == 0x01 && id.b[15] == 0xef && !r.response.status);
	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		r.args[1] = bad[i];
		cr_assert_not(arg_uuid(&r, 1, PROBLEM_VM_NOT_FOUND, &id), "%s", bad[i]);
		cr_assert(r.response.status == 404 && strstr(r.response.body, "/problems/vm-not-found"));
	}
}

Test(request, if_match_takes_any_list_of_entity_tags_and_weak_ones_match_nothing)
{
	static const struct {
		const char *text;
		enum tag_match at_7, absent;
	} cases[] = {
		{ "*", TAG_MATCHES, TAG_DIFFERS },
		{ "\"7\"", TAG_MATCHES, TAG_DIFFERS },
		{ "\"3\", \"7\"", TAG_MATCHES, TAG_DIFFERS },
		{ "\"7\",\"3\"", TAG_MATCHES, TAG_DIFFERS },
		{ " \"3\"\t, , \"7\" ,", TAG_MATCHES, TAG_DIFFERS },
		{ "W/\"3\", \"7\"", TAG_MATCHES, TAG_DIFFERS },
		{ "W/\"7\"", TAG_DIFFERS, TAG_DIFFERS },
		{ "\"3\", \"4\"", TAG_DIFFERS, TAG_DIFFERS },
		{ "\"77\", \"07\", \"\", \"7 \"", TAG_DIFFERS, TAG_DIFFERS },
		{ "\"0\"", TAG_DIFFERS, TAG_DIFFERS },
		{ "\"a,\\b\", \"7\"", TAG_MATCHES, TAG_DIFFERS },
		{ "", TAG_MALFORMED, TAG_MALFORMED },
		{ ",", TAG_MALFORMED, TAG_MALFORMED },
		{ "7", TAG_MALFORMED, TAG_MALFORMED },
		{ "\"7", TAG_MALFORMED, TAG_MALFORMED },
		{ "\"7\"x", TAG_MALFORMED, TAG_MALFORMED },
		{ "\"7\" \"8\"", TAG_MALFORMED, TAG_MALFORMED },
		{ "*, \"7\"", TAG_MALFORMED, TAG_MALFORMED },
		{ "\"7\", *", TAG_MALFORMED, TAG_MALFORMED },
		{ "w/\"7\"", TAG_MALFORMED, TAG_MALFORMED },
		{ "W/7", TAG_MALFORMED, TAG_MALFORMED },
	};

	static const unsigned status[] = { 0, 412, 400 };

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		cr_expect_eq(tag_match(cases[i].text, 7), cases[i].at_7, "%s at revision 7", cases[i].text);
		cr_expect_eq(tag_match(cases[i].text, 0), cases[i].absent, "%s of nothing", cases[i].text);
		r.if_match = cases[i].text;
		cr_expect_eq(if_match(&r, 7), cases[i].at_7 == TAG_MATCHES, "%s", cases[i].text);
		cr_expect_eq(r.response.status, status[cases[i].at_7], "%s", cases[i].text);
		answer_drop(&r);
	}
	r.if_match = NULL;
	cr_expect(if_match(&r, 7) && if_match(&r, 0));
}
