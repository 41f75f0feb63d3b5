#include "engine/uuid.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <string.h>

#define TEXT "f81d4fae-7dec-11d0-a765-00a0c91e6bf6" /* RFC 9562 section 4 */

static const struct pw_uuid binary = { { 0xf8, 0x1d, 0x4f, 0xae, 0x7d, 0xec, 0x11, 0xd0, 0xa7, 0x65, 0x00, 0xa0, 0xc9,
					 0x1e, 0x6b, 0xf6 } };

Test(uuid, text_reads_as_the_bytes_in_order)
{
	struct pw_uuid id;

	cr_assert(pw_uuid_parse(TEXT, strlen(TEXT), &id));
	cr_assert(pw_uuid_equal(&id, &binary));
}

Test(uuid, bytes_format_as_lower_case_text)
{
	char text[PW_UUID_TEXT];

	pw_uuid_format(&binary, text);
	cr_assert_str_eq(text, TEXT);
}

Test(uuid, no_more_than_36_characters_are_looked_at)
{
	char text[] = TEXT "-and-more";
	struct pw_uuid id;

	cr_assert(pw_uuid_parse(text, 36, &id));
	cr_assert(pw_uuid_equal(&id, &binary));
}

static struct refused {
	char text[48];
} refused[] = {
	{ "" },
	{ "f81d4fae" },
	{ "f81d4fae-7dec-11d0-a765-00a0c91e6bf" },
	{ "f81d4fae-7dec-11d0-a765-00a0c91e6bf66" },
	{ "F81D4FAE-7DEC-11D0-A765-00A0C91E6BF6" },
	{ "f81d4fae-7dec-11d0-a765-00a0c91e6bfg" },
	{ "f81d4fae-7dec-11d0-a765-00a0c91e6bf " },
	{ "f81d4fae-7dec-11d0-a765-00a0c91e6bf-" },
	{ "f81d4fae07dec-11d0-a765-00a0c91e6bf6" },
	{ "f81d4fa-e7dec-11d0-a765-00a0c91e6bf6" },
	{ "f81d4fae-7dec-11d0-a765000a0c91e6bf6" },
	{ "{81d4fae-7dec-11d0-a765-00a0c91e6bf}" },
	{ "f81d4fae7dec11d0a76500a0c91e6bf6" },
	{ "\xef"
	  "81d4fae-7dec-11d0-a765-00a0c91e6bf6" },
};

ParameterizedTestParameters(uuid, anything_else_is_refused)
{
	return cr_make_param_array(struct refused, refused, PW_ARRAY_LEN(refused));
}

ParameterizedTest(struct refused *c, uuid, anything_else_is_refused)
{
	struct pw_uuid id = binary;

	cr_assert_not(pw_uuid_parse(c->text, strlen(c->text), &id), "%s", c->text);
	cr_assert(pw_uuid_equal(&id, &binary), "a refusal writes nothing");
}

Test(uuid, text_with_a_nul_inside_is_refused)
{
	char text[] = TEXT;
	struct pw_uuid id;

	text[10] = '\0';
	cr_assert_not(pw_uuid_parse(text, 36, &id));
}

Test(uuid, every_byte_value_survives_text)
{
	for (unsigned v = 0; v < 256; v++) {
		struct pw_uuid id, back;
		char text[PW_UUID_TEXT];

		for (unsigned i = 0; i < sizeof id.b; i++)
			id.b[i] = (uint8_t)(v + i);
		pw_uuid_format(&id, text);
		cr_assert(pw_uuid_parse(text, strlen(text), &back) && pw_uuid_equal(&id, &back), "%s", text);
	}
}

Test(uuid, equality_looks_at_every_byte)
{
	for (unsigned i = 0; i < sizeof binary.b; i++) {
		struct pw_uuid other = binary;

		other.b[i] ^= 1;
		cr_assert_not(pw_uuid_equal(&binary, &other), "byte %u", i);
	}
}

Test(uuid, only_all_zeros_is_nil)
{
	struct pw_uuid id = { { 0 } };

	cr_assert(pw_uuid_is_nil(&id));
	cr_assert_not(pw_uuid_is_nil(&binary));
	id.b[15] = 1;
	cr_assert_not(pw_uuid_is_nil(&id));
}

Test(uuid, random_bytes_get_version_4_and_the_variant)
{
	uint8_t ones[16], zeros[16] = { 0 };
	struct pw_uuid id;
	char text[PW_UUID_TEXT];

	memset(ones, 0xff, sizeof ones);
	id = pw_uuid_from_random(ones);
	pw_uuid_format(&id, text);
	cr_assert_str_eq(text, "ffffffff-ffff-4fff-bfff-ffffffffffff");
	id = pw_uuid_from_random(zeros);
	pw_uuid_format(&id, text);
	cr_assert_str_eq(text, "00000000-0000-4000-8000-000000000000");
}
