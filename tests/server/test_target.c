#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "server/target.h"

static bool decodes_to(const char *text, enum target_part part, const char *want)
{
	char out[128];

	return target_decode(text, strlen(text), part, out) && strcmp(out, want) == 0;
}

Test(target, escapes_are_decoded_and_plus_is_a_blank_in_queries_only)
{
	cr_assert(decodes_to("", TARGET_PATH, ""));
	cr_assert(decodes_to("a%20b%2fC%2F", TARGET_PATH, "a b/C/"));
	cr_assert(decodes_to("a+b", TARGET_PATH, "a+b"));
	cr_assert(decodes_to("a+b%2B", TARGET_QUERY, "a b+"));
	cr_assert(decodes_to("%f0%9f%98%80", TARGET_PATH, "\xf0\x9f\x98\x80"));
	cr_assert(decodes_to("%0a", TARGET_PATH, "\n"));
}

Test(target, what_is_no_text_is_refused)
{
	static const char *const bad[] = { "%",      "%1",        "%g0",          "%0g",         "%00",
					   "a%",     "%80",       "%c0%80",       "%c3",         "%c3a",
					   "%e2%82", "%ed%bf%bf", "%f4%90%80%80", "%f8",         "a b",
					   "\x7f",   "\xc3\xa9",  "%e0%80%80",    "%f0%80%80%80" };

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		char out[128];

		cr_assert_not(target_decode(bad[i], strlen(bad[i]), TARGET_QUERY, out), "%s", bad[i]);
	}
}

Test(target, a_query_is_split_into_parameters_in_order)
{
	char text[] = "&a=1&b&c=&A=x%3Dy=z&&=v&%64+e=f%26g";
	static const char *const want[][2] = { { "a", "1" },     { "b", "" }, { "c", "" },
					       { "A", "x=y=z" }, { "", "v" }, { "d e", "f&g" } };
	struct target_query q;

	cr_assert(target_query_parse(text, &q));
	cr_assert_eq(q.count, PW_ARRAY_LEN(want));
	for (size_t i = 0; i < PW_ARRAY_LEN(want); i++) {
		cr_assert_str_eq(q.names[i], want[i][0]);
		cr_assert_str_eq(q.values[i], want[i][1]);
	}
}

Test(target, bad_parameters_and_too_many_are_refused)
{
	char bad_name[] = "%=1", bad_value[] = "a=%ff";
	char many[4 * (TARGET_QUERY_MAX + 1) + 1] = "", most[4 * TARGET_QUERY_MAX + 1] = "";
	struct target_query q;

	for (int i = 0; i <= TARGET_QUERY_MAX; i++) {
		char *last = i < TARGET_QUERY_MAX ? most : many;

		memcpy(many + i * 4, "a=b&", 5);
		many[i * 4] = last[i * 4] = (char)('@' + i);
		memcpy(last + i * 4 + 1, "=b&", 4);
	}
	cr_assert_not(target_query_parse(bad_name, &q));
	cr_assert_not(target_query_parse(bad_value, &q));
	cr_assert_not(target_query_parse(many, &q));
	cr_assert(target_query_parse(most, &q));
	cr_assert_eq(q.count, TARGET_QUERY_MAX);
}

Test(target, mending_replaces_only_what_is_no_whole_character)
{
	char cut[] = "caf\xc3", mixed[] = "\xff\xe2\x82\xac\xe2\x82", fine[] = "d\xc3\xa9j\xc3\xa0";

	target_mend_utf8(cut);
	cr_assert_str_eq(cut, "caf?");
	target_mend_utf8(mixed);
	cr_assert_str_eq(mixed, "?\xe2\x82\xac??");
	target_mend_utf8(fine);
	cr_assert_str_eq(fine, "d\xc3\xa9j\xc3\xa0");
}

Test(target, a_name_given_twice_is_refused_however_it_is_written)
{
	static const char *const bad[] = { "a=1&a=2", "a=1&b=2&%61=1", "a&a=", "=&=1" };
	char good[] = "a=1&b=1&A=1&ab=1";
	struct target_query q;

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		char text[32];

		snprintf(text, sizeof text, "%s", bad[i]);
		cr_expect_not(target_query_parse(text, &q), "%s", bad[i]);
	}
	cr_expect(target_query_parse(good, &q) && q.count == 4);
}
