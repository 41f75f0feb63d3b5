/* A1 to A11 are the requirements that the kvm list's review of stolen GPA bits (2022-03-31) led to. */
#include "engine/alias.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdlib.h>

#define TDX_48 ((struct gfn_alias){ (uint64_t)1 << 35 })
#define TDX_52 ((struct gfn_alias){ (uint64_t)1 << 39 })
#define NONE   ((struct gfn_alias){ 0 })
#define PAIR   ((struct gfn_alias){ (uint64_t)3 << 34 })

/* Definitions. */

Test(alias, worked_example_of_gpa_width_48)
{
	struct gfn_alias a;

	cr_assert_eq(alias_from_gpa_bit(47, 12, &a, NULL), PW_OK);
	cr_assert_eq(a.mask, TDX_48.mask);
	cr_assert_eq(alias_shared(a, 0x80000), 0x800080000);
	cr_assert_eq(alias_private(a, 0x80000), 0x80000);
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

Test(alias, conversions_are_idempotent_and_invert_each_other)
{
	static const uint64_t gfns[] = { 0, 1, 511, 0x80000, ((uint64_t)1 << 35) - 1 };
	const struct gfn_alias aliases[] = { NONE, TDX_48, TDX_52 };

	for (size_t k = 0; k < PW_ARRAY_LEN(aliases); k++) {
		for (size_t i = 0; i < PW_ARRAY_LEN(gfns); i++) {
			struct gfn_alias a = aliases[k];
			uint64_t shared = alias_shared(a, gfns[i]), private = alias_private(a, gfns[i]);

			cr_assert_eq(alias_shared(a, shared), shared);
			cr_assert_eq(alias_unalias(a, alias_unalias(a, shared)), gfns[i]);
			cr_assert_eq(private, gfns[i]);
			cr_assert_eq(alias_private(a, shared), private);
			cr_assert_eq(alias_is_private(a, private), a.mask != 0);
			cr_assert_not(alias_is_private(a, shared));
		}
	}
}

Test(alias, vm_without_a_mask_has_no_private_pages)
{
	cr_assert_not(alias_is_private(NONE, 0));
	cr_assert_not(alias_is_private(NONE, 0x800080000));
	cr_assert_eq(alias_shared(NONE, 0x80000), 0x80000);
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
	{ (uint64_t)3 << 34, (uint64_t)1 << 34, 1, false },
	{ (uint64_t)3 << 34, ((uint64_t)1 << 34) - 1, 1, true },
	{ 0, TREE_PAGES - 1, 1, true },
	{ 0, TREE_PAGES - 1, 2, false },
	{ 0, TREE_PAGES, 1, false },
};

ParameterizedTestParameters(alias, valid_gfns_lie_below_the_lowest_stolen_bit)
{
	return cr_make_param_array(struct valid, valids, PW_ARRAY_LEN(valids));
}

ParameterizedTest(struct valid *c, alias, valid_gfns_lie_below_the_lowest_stolen_bit)
{
	cr_assert_eq(alias_is_valid_gfn((struct gfn_alias){ c->mask }, c->gfn, c->count), c->valid);
}

/* A4, A5: flushing. */

Test(alias, a4_flush_covers_every_alias_whichever_one_it_is_asked_by)
{
	uint64_t by[] = { 0x80000, 0x800080000 };

	for (size_t i = 0; i < PW_ARRAY_LEN(by); i++) {
		struct alias_flush f = alias_flush_ranges(TDX_48, by[i], 512);

		cr_assert_eq(f.n, 2);
		cr_assert(f.range[0].gfn == 0x80000 && f.range[0].count == 512);
		cr_assert(f.range[1].gfn == 0x800080000 && f.range[1].count == 512);
	}
}

Test(alias, a4_flush_without_aliases_is_one_range)
{
	struct alias_flush f = alias_flush_ranges(NONE, 0x800080000, 7);

	cr_assert(f.n == 1 && f.range[0].gfn == 0x800080000 && f.range[0].count == 7);
}

Test(alias, a5_everything_is_flushed_only_where_ranges_do_not_suffice)
{
	cr_assert_eq(alias_flush_ranges(PAIR, 0, 1).n, 0);
	cr_assert_eq(alias_flush_ranges(TDX_48, 5, TDX_48.mask).n, 0, "the range runs into the other alias");
	cr_assert_eq(alias_flush_ranges(TDX_48, TDX_48.mask << 1, 1).n, 0);
	cr_assert_eq(alias_flush_ranges(TDX_48, 0, TDX_48.mask).n, 2);
}

/* A9: who may have a mask. */

Test(alias, a9_only_64_bit_guest_paging_may_have_a_mask)
{
	for (unsigned mode = 0; mode < PAGING_MODE_COUNT; mode++) {
		bool may = mode == PAGING_PAE || mode == PAGING_LONG;
		struct pw_err err = { 0 };

		cr_assert_eq(alias_allow(TDX_48, (enum paging_mode)mode, &err), may ? PW_OK : PW_INVALID);
		cr_assert_eq(err.status, may ? PW_OK : PW_INVALID);
		cr_assert_eq(alias_allow(NONE, (enum paging_mode)mode, &err), PW_OK);
	}
}

/* What is mapped. */
struct heap {
	size_t calls, fail_at;
};

static void *heap_alloc(void *ctx, size_t size)
{
	struct heap *h = ctx;

	return h->calls++ >= h->fail_at ? NULL : malloc(size);
}

static void heap_free(void *ctx, void *p)
{
	free(p);
}

struct fixture {
	struct heap heap;
	struct pw_mem mem;
	struct arena arena;
	struct alias_map map;
};

static void fixture_init(struct fixture *f, struct gfn_alias a)
{
	*f = (struct fixture){ .heap = { .fail_at = SIZE_MAX } };
	f->mem = (struct pw_mem){ .alloc = heap_alloc, .free = heap_free, .ctx = &f->heap };
	arena_init(&f->arena, &f->mem);
	alias_map_init(&f->map, a, &f->arena);
}

static void fixture_release(struct fixture *f)
{
	alias_map_release(&f->map);
	arena_release(&f->arena);
	cr_assert_eq(f->mem.used, 0);
}

static void add(struct fixture *f, uint64_t raw, uint64_t count)
{
	struct pw_err err = { 0 };

	cr_assert_eq(alias_map_add(&f->map, raw, count, &err), PW_OK, "%s", err.msg);
}

static void refuse(struct fixture *f, uint64_t raw, uint64_t count, enum pw_status st)
{
	struct pw_err err = { 0 };

	cr_assert_eq(alias_map_add(&f->map, raw, count, &err), st);
	cr_assert(err.status == st && err.msg[0]);
}

static void drop(struct fixture *f, uint64_t raw, uint64_t count)
{
	struct pw_err err = { 0 };

	cr_assert_eq(alias_map_remove(&f->map, raw, count, &err), PW_OK, "%s", err.msg);
}

Test(alias, a1_maps_are_keyed_by_the_unaliased_gfn)
{
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, alias_shared(TDX_48, 100), 10);
	cr_assert_eq(tree_run_at(&f.map.mapped_shared, 100, TREE_PAGES).count, 10);
	cr_assert_eq(tree_get(&f.map.mapped_shared, alias_shared(TDX_48, 100)), 0);
	fixture_release(&f);
}

Test(alias, a2_stolen_bit_decides_which_alias_is_mapped)
{
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, 100, 1);
	add(&f, alias_shared(TDX_48, 200), 1);
	cr_assert(alias_map_has(&f.map, 100) && !alias_map_has(&f.map, alias_shared(TDX_48, 100)));
	cr_assert(!alias_map_has(&f.map, 200) && alias_map_has(&f.map, alias_shared(TDX_48, 200)));
	fixture_release(&f);
}

Test(alias, a3_mapping_of_one_alias_does_not_serve_the_other)
{
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, 0, 4096);
	for (uint64_t gfn = 0; gfn < 4096; gfn++)
		cr_assert(alias_map_has(&f.map, gfn) && !alias_map_has(&f.map, alias_shared(TDX_48, gfn)));
	cr_assert_eq(f.map.mapped_shared.root, 0);
	fixture_release(&f);
}

Test(alias, a6_alignment_is_that_of_the_unaliased_gfn)
{
	struct gfn_alias odd = { (uint64_t)1 << 3 }; /* a stolen bit inside a 2 MiB block */
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, alias_shared(TDX_48, 512), 512);
	cr_assert_eq(f.arena.nodes, 1, "one block in one table: folded by the alignment of GFN 512");
	fixture_release(&f);
	fixture_init(&f, odd);
	add(&f, 7, 1);
	refuse(&f, 7, 2, PW_INVALID);
	fixture_release(&f);
}

Test(alias, a8_private_and_shared_mappings_of_a_gfn_never_coexist)
{
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, 100, 10);
	refuse(&f, alias_shared(TDX_48, 100), 1, PW_CONFLICT);
	refuse(&f, alias_shared(TDX_48, 90), 11, PW_CONFLICT);
	refuse(&f, alias_shared(TDX_48, 109), 1000, PW_CONFLICT);
	refuse(&f, alias_shared(TDX_48, 0), TDX_48.mask, PW_CONFLICT);
	cr_assert_eq(f.map.mapped_shared.root, 0, "a refusal changes nothing");
	add(&f, alias_shared(TDX_48, 90), 10);
	add(&f, alias_shared(TDX_48, 110), 10);
	refuse(&f, 95, 10, PW_CONFLICT);
	cr_assert_not(alias_map_has(&f.map, 99));
	drop(&f, 100, 10);
	add(&f, alias_shared(TDX_48, 100), 10);
	cr_assert_eq(tree_run_at(&f.map.mapped_shared, 90, TREE_PAGES).count, 30);
	fixture_release(&f);
}

Test(alias, a8_conflict_names_the_first_gfn_and_the_alias_that_has_it)
{
	struct pw_err err = { 0 };
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, 0x105, 10);
	cr_assert_eq(alias_map_add(&f.map, alias_shared(TDX_48, 0x100), 32, &err), PW_CONFLICT);
	cr_assert_str_eq(err.msg, "GFN 0x105 is mapped under its private alias");
	fixture_release(&f);
}

Test(alias, mapping_what_is_mapped_under_the_same_alias_is_ok)
{
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, 100, 10);
	add(&f, 95, 10);
	add(&f, 100, 10);
	cr_assert_eq(tree_run_at(&f.map.mapped_private, 95, TREE_PAGES).count, 15);
	fixture_release(&f);
}

Test(alias, a10_removal_by_any_alias_removes_every_alias)
{
	uint64_t by[] = { 100, alias_shared(TDX_48, 100) };

	for (size_t i = 0; i < PW_ARRAY_LEN(by); i++) {
		struct fixture f;

		fixture_init(&f, TDX_48);
		add(&f, 100, 5);
		add(&f, alias_shared(TDX_48, 105), 5);
		drop(&f, by[i], 10);
		cr_assert(f.map.mapped_private.root == 0 && f.map.mapped_shared.root == 0);
		drop(&f, by[i], 10);
		fixture_release(&f);
	}
}

static struct run {
	uint64_t mask, raw, count;
} runs[] = {
	{ (uint64_t)1 << 35, 0, 0 },
	{ (uint64_t)1 << 35, 5, UINT64_MAX - 2 },
	{ (uint64_t)1 << 35, ((uint64_t)1 << 35) - 1, 2 },
	{ (uint64_t)1 << 35, ((uint64_t)1 << 36) - 1, 2 },
	{ (uint64_t)1 << 35, (uint64_t)1 << 36, 1 },
	{ (uint64_t)1 << 35, UINT64_MAX, 1 },
	{ (uint64_t)3 << 34, (uint64_t)1 << 34, 1 }, /* one of two stolen bits: neither private nor shared */
	{ 0, TREE_PAGES, 1 },
	{ 0, TREE_PAGES - 1, 2 },
};

ParameterizedTestParameters(alias, malformed_runs_are_refused)
{
	return cr_make_param_array(struct run, runs, PW_ARRAY_LEN(runs));
}

ParameterizedTest(struct run *c, alias, malformed_runs_are_refused)
{
	struct fixture f;

	fixture_init(&f, (struct gfn_alias){ c->mask });
	refuse(&f, c->raw, c->count, PW_INVALID);
	cr_assert_eq(alias_map_remove(&f.map, c->raw, c->count, NULL), PW_INVALID);
	cr_assert_eq(f.arena.nodes, 0);
	fixture_release(&f);
}

Test(alias, a_raw_gfn_that_is_no_alias_is_not_mapped)
{
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, 0, 10);
	cr_assert_not(alias_map_has(&f.map, TDX_48.mask << 1));
	cr_assert_not(alias_map_has(&f.map, UINT64_MAX));
	fixture_release(&f);
}

Test(alias, without_a_mask_all_mappings_are_shared)
{
	struct fixture f;

	fixture_init(&f, NONE);
	add(&f, 0x800080000, 3);
	cr_assert(alias_map_has(&f.map, 0x800080002));
	cr_assert_eq(f.map.mapped_private.root, 0);
	fixture_release(&f);
}

/* Fails the n-th allocation of an add and a removal; were all of them let through? */
static bool survives(size_t fail_at)
{
	struct pw_err err = { 0 };
	enum pw_status added, removed;
	struct fixture f;

	fixture_init(&f, TDX_48);
	add(&f, 0, 2048);
	add(&f, alias_shared(TDX_48, 4096), 2048);
	f.heap = (struct heap){ .fail_at = fail_at };
	added = alias_map_add(&f.map, 10000000, 100, &err);
	cr_assert(added == PW_OK || added == PW_NO_MEMORY);
	cr_assert_eq(alias_map_has(&f.map, 10000000), added == PW_OK);
	removed = alias_map_remove(&f.map, 2000, 3000, &err);
	cr_assert(removed == PW_OK || removed == PW_NO_MEMORY);
	cr_assert_eq(alias_map_has(&f.map, 2047), removed != PW_OK);
	cr_assert_eq(alias_map_has(&f.map, alias_shared(TDX_48, 4096)), removed != PW_OK);
	cr_assert(alias_map_has(&f.map, 1999) && alias_map_has(&f.map, alias_shared(TDX_48, 5000)));
	f.heap.fail_at = SIZE_MAX;
	drop(&f, 2000, 3000);
	add(&f, 10000000, 100);
	cr_assert(tree_check(&f.map.mapped_private) && tree_check(&f.map.mapped_shared));
	fixture_release(&f);
	return added == PW_OK && removed == PW_OK;
}

Test(alias, without_memory_nothing_changes)
{
	size_t n = 0;

	while (!survives(n))
		n++;
	cr_assert_gt(n, 2);
}
