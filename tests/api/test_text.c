/* api/text.c: which characters are plain, and how the others are shown. The whole of Unicode is walked by
 * tests/blackbox/test_names.py, against Python's tables. */
#include "api/text.h"

#include <criterion/criterion.h>
#include <jansson.h>
#include <stdlib.h>
#include <string.h>

Test(text, utf8_is_read_strictly)
{
	static const struct {
		const char *bytes;
		size_t n;
		uint32_t c;
	} cases[] = {
		{ "a", 1, 'a' },
		{ "\xc3\xa4x", 2, 0xe4 },
		{ "\xe2\x80\xae", 3, 0x202e },
		{ "\xf0\x9f\x98\x80", 4, 0x1f600 },
		{ "\xf4\x8f\xbf\xbf", 4, 0x10ffff },
		{ "\x9b", 1, TEXT_INVALID },             /* a continuation byte alone: C1 to a terminal of 8 bits */
		{ "\xc3", 1, TEXT_INVALID },             /* cut */
		{ "\xe2\x80", 1, TEXT_INVALID },         /* cut */
		{ "\xc0\x9b", 1, TEXT_INVALID },         /* longer than it must be */
		{ "\xe0\x82\x9b", 1, TEXT_INVALID },     /* longer */
		{ "\xf0\x80\x82\x9b", 1, TEXT_INVALID }, /* longer */
		{ "\xed\xa0\x80", 1, TEXT_INVALID },     /* a surrogate */
		{ "\xf4\x90\x80\x80", 1, TEXT_INVALID }, /* past U+10FFFF */
		{ "\xff", 1, TEXT_INVALID },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		uint32_t c;

		cr_expect_eq(text_next(cases[i].bytes, &c), cases[i].n, "case %zu", i);
		cr_expect_eq(c, cases[i].c, "case %zu: %#x", i, c);
	}
}

/* The edges of every range are in the table's own order: each is found from both sides. */
Test(text, the_categories_are_not_plain_and_their_neighbours_are)
{
	static const uint32_t out[] = { 0x1b,   0x7f,   0x80,    0x9b,    0x9f,    0xad,    0x600,   0x61c,
					0x180e, 0x200b, 0x200f,  0x2028,  0x2029,  0x202e,  0x2066,  0x2069,
					0xfeff, 0xfffb, 0x110bd, 0x1343f, 0x1d17a, 0xe0001, 0xe0020, 0xe007f };
	static const uint32_t in[] = { ' ',    '~',    0xa0,   0xac,   0xae,   0x606,   0x61d,   0x200a,  0x2010,
				       0x2027, 0x202f, 0x2065, 0x2070, 0xfffc, 0x1f600, 0xe0002, 0xe0080, 0x10ffff };

	for (size_t i = 0; i < PW_ARRAY_LEN(out); i++)
		cr_expect_not(text_is_plain_char(out[i]), "U+%04X", out[i]);
	for (size_t i = 0; i < PW_ARRAY_LEN(in); i++)
		cr_expect(text_is_plain_char(in[i]), "U+%04X", in[i]);
	cr_expect_not(text_is_plain_char(TEXT_INVALID));
	cr_expect(text_is_plain("M\xc3\xb6"
				"bel \xf0\x9f\x98\x80") &&
		  text_is_plain(""));
	cr_expect_not(text_is_plain("a\xe2\x80\xae"
				    "b"));
	cr_expect_not(text_is_plain("a\xff"));
}

Test(text, what_is_not_plain_is_shown_by_its_number)
{
	char *shown = text_shown("a\x1b[31m\xc2\x9b \xe2\x80\xae \xf3\xa0\x80\x81 \x9b \xc3\xa4");

	cr_assert_str_eq(shown, "a\\x1b[31m\\u009b \\u202e \\U000e0001 \\x9b \xc3\xa4");
	cr_assert(text_is_plain(shown));
	free(shown);
}

Test(text, a_copy_is_cut_between_characters)
{
	static const char text[] = "a\xc3\xa4\xe2\x80\xae";
	char out[16];

	for (size_t size = 1; size <= sizeof out; size++) {
		text_copy(out, size, text);
		cr_expect_str_eq(out,
				 size < 2    ? ""
				 : size < 4  ? "a"
				 : size < 10 ? "a\xc3\xa4"
					     : "a\xc3\xa4\\u202e",
				 "%zu", size);
	}
}

Test(text, json_stays_the_same_json)
{
	static const char text[] =
		"{\"k\xc2\x9b\":[\"\xe2\x80\xae\",\"\xf3\xa0\x80\x81\x7f\",\"\xc3\xa4\"],\n \"n\":1}";
	json_t *before = json_loads(text, 0, NULL), *after;
	char *shown = NULL;
	size_t size;
	FILE *f = open_memstream(&shown, &size);

	text_print_json(f, text);
	fclose(f);
	cr_assert_str_eq(shown, "{\"k\\u009b\":[\"\\u202e\",\"\\udb40\\udc01\\u007f\",\"\xc3\xa4\"],\n \"n\":1}");
	after = json_loads(shown, 0, NULL);
	cr_assert(before && after && json_equal(before, after));
	json_decref(before);
	json_decref(after);
	free(shown);
}
