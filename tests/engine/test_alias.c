#include "engine/alias.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdlib.h>

#define TDX_48 ((struct gfn_alias){ (uint64_t)1 << 35 })
#define TDX_52 ((struct gfn_alias){ (uint64_t)1 << 39 })
#define NONE   ((struct gfn_alias){ 0 })

/* Definitions. */

Test(alias, worked_example_of_gpa_width_48)
{
	struct gfn_alias a;

	cr_assert_eq(alias_from_gpa_bit(47, 12, &a, NULL), PW_OK);
	cr_assert_eq(a.mask, TDX_48.mask);
	cr_assert(alias_is_private(a, 0x80000) && !alias_is_private(a, 0x800080000));
	cr_assert_eq(alias_unalias(a, 0x80000), 0x80000);
	cr_assert_eq(alias_unalias(a, 0x800080000), 0x80000);
}

Test(alias, with_gpa_width_52_bit_47_is_an_ordinary_address_bit)
{
	struct gfn_alias a;

	cr_assert_eq(alias_from_gpa_bit(51, 12, &a, NULL), PW_OK);
	cr_assert_eq(a.mask, TDX_52.mask);
	cr_assert(alias_is_private(a, 0x800080000));
	cr_assert_eq(alias_unalias(a, 0x800080000), 0x800080000);
}

Test(alias, stripping_the_bit_is_idempotent)
{
	static const uint64_t gfns[] = { 0, 1, 511, 0x80000, ((uint64_t)1 << 35) - 1 };
	const struct gfn_alias aliases[] = { TDX_48, TDX_52 };

	for (size_t k = 0; k < PW_ARRAY_LEN(aliases); k++) {
		for (size_t i = 0; i < PW_ARRAY_LEN(gfns); i++) {
			struct gfn_alias a = aliases[k];
			uint64_t shared = gfns[i] | a.mask;

			cr_assert_eq(alias_unalias(a, alias_unalias(a, shared)), gfns[i]);
			cr_assert_eq(alias_unalias(a, gfns[i]), gfns[i]);
			cr_assert(alias_is_private(a, gfns[i]) && !alias_is_private(a, shared));
		}
	}
}

Test(alias, vm_without_a_mask_has_no_private_pages)
{
	cr_assert_not(alias_is_private(NONE, 0));
	cr_assert_not(alias_is_private(NONE, 0x800080000));
	cr_assert_eq(alias_unalias(NONE, 0x800080000), 0x800080000);
}

static struct bit {
	unsigned bit, page_shift;
	enum pw_status status;
	uint64_t mask;
} bits[] = {
	{ 11, 12, PW_INVALID, 0 },
	{ 0, 12, PW_INVALID, 0 },
	{ 12, 12, PW_OK, 1 },
	{ 51, 12, PW_OK, (uint64_t)1 << 39 },
	{ 52, 12, PW_INVALID, 0 },
	{ UINT32_MAX, 12, PW_INVALID, 0 },
	{ 15, 16, PW_INVALID, 0 },
	{ 47, 16, PW_OK, (uint64_t)1 << 31 },
	{ 55, 16, PW_OK, (uint64_t)1 << 39 },
	{ 56, 16, PW_INVALID, 0 },
};

ParameterizedTestParameters(alias, bit_lies_between_page_offset_and_gpa_width)
{
	return cr_make_param_array(struct bit, bits, PW_ARRAY_LEN(bits));
}

ParameterizedTest(struct bit *c, alias, bit_lies_between_page_offset_and_gpa_width)
{
	struct gfn_alias a = { 12345 };
	struct pw_err err = { 0 };

	cr_assert_eq(alias_from_gpa_bit(c->bit, c->page_shift, &a, &err), c->status);
	cr_assert_eq(a.mask, c->status == PW_OK ? c->mask : 12345);
	cr_assert_eq(err.status, c->status);
}

static struct valid {
	uint64_t mask, gfn, count;
	bool valid;
} valids[] = {
	{ (uint64_t)1 << 35, 0, (uint64_t)1 << 35, true },
	{ (uint64_t)1 << 35, 0, ((uint64_t)1 << 35) + 1, false },
	{ (uint64_t)1 << 35, ((uint64_t)1 << 35) - 1, 1, true },
	{ (uint64_t)1 << 35, ((uint64_t)1 << 35) - 1, 2, false },
	{ (uint64_t)1 << 35, (uint64_t)1 << 35, 1, false },
	{ (uint64_t)1 << 35, (uint64_t)1 << 36, 1, false }, /* above the bit: refused, not masked */
	{ (uint64_t)1 << 35, 1, UINT64_MAX, false },
	{ (uint64_t)1 << 39, (uint64_t)1 << 36, 1, true },
	{ 0, TREE_PAGES - 1, 1, true },
	{ 0, TREE_PAGES - 1, 2, false },
	{ 0, TREE_PAGES, 1, false },
};

ParameterizedTestParameters(alias, valid_gfns_lie_below_the_shared_bit)
{
	return cr_make_param_array(struct valid, valids, PW_ARRAY_LEN(valids));
}

ParameterizedTest(struct valid *c, alias, valid_gfns_lie_below_the_shared_bit)
{
	cr_assert_eq(alias_is_valid_gfn((struct gfn_alias){ c->mask }, c->gfn, c->count), c->valid);
}

Test(alias, a_raw_gfn_is_read_by_either_alias_and_refused_past_both)
{
	static const struct {
		uint64_t mask, raw, gfn;
		bool valid;
	} cases[] = {
		{ (uint64_t)1 << 35, 0x80000, 0x80000, true },
		{ (uint64_t)1 << 35, 0x800080000, 0x80000, true },
		{ (uint64_t)1 << 35, (uint64_t)1 << 36, 0, false },
		{ (uint64_t)1 << 35, (uint64_t)3 << 35, 0, false },
		{ (uint64_t)1 << 39, (uint64_t)3 << 38, (uint64_t)1 << 38, true },
		{ (uint64_t)1 << 39, (uint64_t)1 << 40, 0, false },
		{ 0, TREE_PAGES - 1, TREE_PAGES - 1, true },
		{ 0, TREE_PAGES, 0, false },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		uint64_t gfn = 77;

		cr_expect_eq(alias_read((struct gfn_alias){ cases[i].mask }, cases[i].raw, &gfn), cases[i].valid, "%zu",
			     i);
		cr_expect_eq(gfn, cases[i].valid ? cases[i].gfn : 77, "%zu", i);
	}
}
