#include "engine/arch/cca_host_impl.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define BASE   ((uint64_t)0x100000000)
#define POOL   ((uint64_t)8192) /* granules: 32 MiB */
#define G(n)   (BASE + (uint64_t)(n)*CCA_GRANULE)
#define BLOCK  ((uint64_t)1 << 21)
#define NS     ((uint64_t)1 << 39) /* the unprotected half of a 40-bit realm */
#define SOURCE page_of_ones

static const uint8_t page_of_ones[CCA_GRANULE] = { 1 };

struct site {
	struct pw_mem mem;
	struct cca m;
	struct cca_host h;
	struct cca_host_realm *r;
	enum cca_host_code code;
};

static void begin_with(struct site *s, uint64_t pool, unsigned page_granules)
{
	struct cca_config config = { .base = BASE, .granules = POOL, .features0 = CCA_FEATURES0, .rec_aux_count = 3 };

	*s = (struct site){ 0 };
	cr_assert_eq(cca_init(&s->m, &s->mem, &config), PW_OK);
	cr_assert_eq(cca_host_init(&s->h, &s->m, &s->mem, BASE, pool, page_granules), PW_OK);
}

static enum cca_host_code realm(struct site *s, unsigned ipa_bits)
{
	struct cca_host_wish wish = { .ipa_bits = ipa_bits, .vmid = (uint16_t)(s->h.realms_made + 1) };

	cr_assert_eq(cca_host_realm_new(&s->h, &wish, &s->r, &s->code), PW_OK);
	return s->code;
}

static void begin(struct site *s)
{
	begin_with(s, POOL, 1);
	cr_assert_eq(realm(s, 40), CCA_HOST_OK);
}

static void sound(const struct site *s)
{
	struct pw_err err = { 0 };

	cr_assert(cca_check(&s->m, &err), "%s", err.msg);
	cr_assert(cca_host_check(&s->h, &err), "%s", err.msg);
}

static void end(struct site *s)
{
	sound(s);
	cca_host_release(&s->h);
	cca_release(&s->m);
	cr_expect_eq(s->mem.used, 0);
}

static enum cca_host_code went(const struct site *s, enum pw_status st)
{
	cr_assert_eq(st, PW_OK);
	return s->code;
}
#define DO(s, op, ...) went(s, cca_host_##op(__VA_ARGS__, &(s)->code))

static struct cca_walk at(const struct site *s, uint64_t ipa)
{
	return cca_walk(cca_realm_at(&s->m, s->r->rd), ipa, 3);
}

static uint64_t used(const struct site *s)
{
	return POOL - s->h.free;
}

/* How far tables go down is a matter of alignment and length. */
Test(cca_host, the_map_level_is_the_largest_entry_that_fits)
{
	static const struct {
		unsigned top, level;
		uint64_t base, end;
	} cases[] = {
		{ 1, 3, 0, 0x1000 },
		{ 1, 2, 0, BLOCK },
		{ 1, 3, 0, BLOCK - 0x1000 },
		{ 1, 3, 0x1000, BLOCK * 2 },
		{ 1, 1, 0, 0x40000000 },
		{ 2, 2, 0, 0x40000000 },
		{ 1, 2, BLOCK, 0x80000000 },
		{ 1, 1, 0x40000000, NS },
		{ 0, 1, 0, 0x40000000 },
		{ 0, 0, 0, NS },
		{ 1, 2, 0x40000000, 0x7fffffff },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		cr_expect_eq(cca_host_map_level(cases[i].top, cases[i].base, cases[i].end), cases[i].level, "case %zu",
			     i);
}

/* Start levels and root tables as the kernel chooses them. */
Test(cca_host, realms_have_the_roots_that_their_width_needs)
{
	static const struct {
		unsigned bits, start;
		uint64_t roots;
	} cases[] = { { 32, 2, 4 }, { 33, 2, 8 },  { 34, 2, 16 }, { 35, 1, 1 }, { 39, 1, 1 },
		      { 40, 1, 2 }, { 43, 1, 16 }, { 44, 0, 1 },  { 48, 0, 1 } };
	struct site s;

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		begin_with(&s, POOL, 1);
		cr_expect_eq(realm(&s, cases[i].bits), CCA_HOST_OK, "%u bits", cases[i].bits);
		cr_expect(s.r->start == cases[i].start && s.r->root_count == cases[i].roots, "%u bits", cases[i].bits);
		end(&s);
	}
	begin_with(&s, POOL, 1);
	cr_expect_eq(realm(&s, 31), CCA_HOST_EINVAL);
	cr_expect_eq(realm(&s, 49), CCA_HOST_EINVAL);
	end(&s);
}

/* SPARE-1: with the realm, or no realm; LEAK-2: what a failure had taken comes back. */
Test(cca_host, a_realm_without_spare_is_not_made)
{
	for (uint64_t pool = 0; pool <= 5; pool++) {
		struct site s;

		begin_with(&s, pool, 1);
		cr_expect_eq(realm(&s, 39), pool < 4 ? CCA_HOST_ENOMEM : CCA_HOST_OK, "%" PRIu64 " granules", pool);
		if (s.code == CCA_HOST_OK)
			cr_expect(s.r->spare_is_in && cca_host_use(&s.h, s.r->spare) == CCA_USE_SPARE);
		else
			cr_expect_eq(s.h.free, pool ? pool - 1 : 0, "all but the host's own page is free again");
		end(&s);
	}
}

Test(cca_host, a_realm_that_the_rmm_refuses_leaves_nothing)
{
	struct cca_host_wish wish = { .ipa_bits = 40, .vmid = 1 };
	struct cca_host_realm *other;
	uint64_t free;
	struct site s;

	begin(&s);
	wish.vmid = cca_realm_at(&s.m, s.r->rd)->vmid;
	free = s.h.free;
	cr_assert_eq(cca_host_realm_new(&s.h, &wish, &other, &s.code), PW_OK);
	cr_expect_eq(s.code, CCA_HOST_EIO, "the VMID is used");
	cr_expect_eq(s.h.last.status, CCA_ERROR_INPUT);
	cr_expect_eq(s.h.free, free);
	end(&s);
}

/* init_ripas: only while NEW, with the errors of the ioctl before any command. */
Test(cca_host, init_ripas_is_for_new_realms)
{
	uint64_t before;
	struct site s;

	begin(&s);
	cr_expect_eq(DO(&s, init_ripas, s.r, 0x2000, 0x1000), CCA_HOST_EINVAL, "its end is below its base");
	cr_expect_eq(DO(&s, init_ripas, s.r, 0x2001, 0x3000), CCA_HOST_EINVAL);
	cr_expect_eq(DO(&s, init_ripas, s.r, 0, NS + 0x1000), CCA_HOST_EINVAL);
	cr_expect_eq(DO(&s, init_ripas, s.r, 0x1000, 0x1000), CCA_HOST_OK, "empty");
	cr_expect_eq(DO(&s, init_ripas, s.r, 0x1000, 2 * BLOCK + 0x1000), CCA_HOST_OK);
	cr_expect_eq(at(&s, 0).entry, CCA_UNASSIGNED_EMPTY);
	cr_expect_eq(at(&s, 0x1000).entry, CCA_UNASSIGNED_RAM);
	cr_expect_eq(at(&s, BLOCK).level, 2, "no table where none is needed");
	cr_expect_eq(at(&s, 2 * BLOCK).entry, CCA_UNASSIGNED_RAM);
	cr_expect_eq(at(&s, 2 * BLOCK + 0x1000).entry, CCA_UNASSIGNED_EMPTY);
	cr_expect_eq(DO(&s, activate, s.r), CCA_HOST_OK);
	cr_expect_eq(DO(&s, activate, s.r), CCA_HOST_EPERM);
	before = cca_digest(&s.m);
	cr_expect_eq(DO(&s, init_ripas, s.r, 0x10000, 0x20000), CCA_HOST_EPERM);
	cr_expect_eq(DO(&s, populate, s.r, 0x10000, SOURCE, true), CCA_HOST_EPERM);
	cr_expect_eq(DO(&s, rec_new, s.r, 0, true), CCA_HOST_EPERM);
	cr_expect_eq(cca_digest(&s.m), before);
	end(&s);
}

/* A whole life: everything comes back. */
static void live(struct site *s)
{
	cr_assert_eq(DO(s, init_ripas, s->r, 0, 8 * BLOCK), CCA_HOST_OK);
	cr_assert_eq(DO(s, populate, s->r, 0x5000, SOURCE, true), CCA_HOST_OK);
	cr_assert_eq(DO(s, rec_new, s->r, 0x80000000, true), CCA_HOST_OK);
	cr_assert_eq(DO(s, rec_new, s->r, 0, false), CCA_HOST_OK);
	cr_assert_eq(DO(s, activate, s->r), CCA_HOST_OK);
	cr_assert_eq(DO(s, map, s->r, BLOCK, 4 * BLOCK), CCA_HOST_OK);
	cr_assert_eq(DO(s, map, s->r, 4 * BLOCK, 4 * BLOCK + 0x3000), CCA_HOST_OK);
	cr_assert_eq(DO(s, map_ns, s->r, 6 * BLOCK - 0x2000, 7 * BLOCK, 0x40000000 - 0x2000), CCA_HOST_OK);
}

Test(cca_host, a_realm_comes_and_goes_without_a_trace)
{
	struct site s;

	begin(&s);
	live(&s);
	cr_expect_eq(at(&s, 2 * BLOCK).level, 2, "a block");
	cr_expect_eq(at(&s, NS + 6 * BLOCK).level, 2, "a block of the host's");
	cr_expect_eq(at(&s, NS + 6 * BLOCK - 0x1000).level, 3);
	sound(&s);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	cr_expect_eq(used(&s), 1, "the host's own page");
	cr_expect_eq(s.h.leaked, 0);
	end(&s);
}

/* SPARE-3: with not one granule left in the pool, a realm of blocks still goes. */
Test(cca_host, teardown_takes_nothing_from_the_pool)
{
	struct cca_host_realm *greedy;
	uint64_t n = 0;
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, map, s.r, 0, 8 * BLOCK), CCA_HOST_OK);
	greedy = s.r;
	cr_assert_eq(realm(&s, 40), CCA_HOST_OK);
	while (DO(&s, map, s.r, n * CCA_GRANULE, (n + 1) * CCA_GRANULE) == CCA_HOST_OK)
		n++;
	cr_expect_eq(s.code, CCA_HOST_ENOMEM);
	cr_expect_eq(s.h.free, 0);
	sound(&s);
	cr_expect_eq(DO(&s, realm_end, greedy), CCA_HOST_OK);
	cr_expect_geq(s.h.free, 8 * 512);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	cr_expect_eq(used(&s), 1);
	end(&s);
}

/* Part of a block: that is no teardown, so its table comes from the pool, or not at all. */
Test(cca_host, the_spare_is_not_for_splitting_blocks)
{
	uint64_t n = 0, before;
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, map, s.r, 0, 2 * BLOCK), CCA_HOST_OK);
	cr_expect_eq(DO(&s, unmap, s.r, 0x3000, 0x5000), CCA_HOST_OK);
	cr_expect_eq(at(&s, 0x3000).entry, CCA_UNASSIGNED_EMPTY);
	cr_expect_eq(at(&s, 0x5000).entry, CCA_ASSIGNED_EMPTY);
	cr_expect(s.r->spare_is_in);
	for (; DO(&s, map, s.r, 4 * BLOCK + n * CCA_GRANULE, 4 * BLOCK + (n + 1) * CCA_GRANULE) == CCA_HOST_OK; n++)
		;
	before = cca_digest(&s.m);
	cr_expect_eq(DO(&s, unmap, s.r, BLOCK + 0x3000, BLOCK + 0x5000), CCA_HOST_ENOMEM);
	cr_expect_eq(cca_digest(&s.m), before);
	cr_expect_eq(DO(&s, unmap, s.r, BLOCK, 2 * BLOCK), CCA_HOST_OK, "all of it is");
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	end(&s);
}

/* SPARE-2: what a fold gives back serves the next block, and is not kept past the operation. */
Test(cca_host, folded_tables_serve_the_same_operation_only)
{
	uint64_t before;
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, map, s.r, 0, BLOCK), CCA_HOST_OK);
	before = used(&s);
	cr_assert_eq(DO(&s, map, s.r, BLOCK, 5 * BLOCK), CCA_HOST_OK);
	cr_expect_eq(used(&s), before + 4 * 512, "no table is left of four blocks");
	cr_expect_eq(s.r->handy, 0);
	end(&s);
}

/* SPARE-1 broken is said, not worked around. */
Test(cca_host, a_missing_spare_is_reported)
{
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, map, s.r, 0, BLOCK), CCA_HOST_OK);
	s.r->spare_is_in = false;
	cr_expect_eq(DO(&s, unmap, s.r, 0, BLOCK), CCA_HOST_ENOSPARE);
	cr_expect_not(cca_host_check(&s.h, NULL));
	s.r->spare_is_in = true;
	end(&s);
}

/* LEAK-1: refused granules are written down and never used again; the rest goes on. */
Test(cca_host, what_does_not_come_back_is_a_leak)
{
	struct cca_host_leak leak;
	uint64_t data, from = 0;
	unsigned leaks = 0;
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, map, s.r, 0x1000, 0x5000), CCA_HOST_OK);
	data = at(&s, 0x2000).addr;
	s.m.el3_refuses = 2;
	cr_expect_eq(DO(&s, unmap, s.r, 0x2000, 0x5000), CCA_HOST_OK);
	cr_expect_eq(s.h.leaked, 2);
	cr_assert(cca_host_next_leak(&s.h, 0, &leak));
	cr_expect(leak.addr == data && leak.last == CCA_USE_DATA && leak.realm == s.r->number &&
		  leak.cmd == CCA_GRANULE_UNDELEGATE && leak.status == CCA_ERROR_INPUT);
	sound(&s);
	s.m.el3_refuses = 1;
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	for (; cca_host_next_leak(&s.h, from, &leak); from = leak.addr + 1 + CCA_GRANULE - 1)
		leaks++;
	cr_expect_eq(leaks, 3);
	cr_expect_eq(s.h.leaked, 3);
	cr_expect_eq(used(&s), 4, "the leaks and the host's own page");
	cr_assert_eq(realm(&s, 40), CCA_HOST_OK);
	cr_assert_eq(DO(&s, map, s.r, 0, 0x40000), CCA_HOST_OK);
	cr_expect_eq(cca_host_use(&s.h, data), CCA_USE_LEAKED, "never used again");
	end(&s);
}

/* LEAK-3: a host page of 16 granules is free when all of them are. */
Test(cca_host, host_pages_are_free_as_a_whole)
{
	uint64_t free;
	struct site s;

	begin_with(&s, POOL, 16);
	cr_assert_eq(realm(&s, 40), CCA_HOST_OK);
	free = s.h.free;
	cr_expect_eq(free % 16, 0);
	cr_assert_eq(DO(&s, map, s.r, 0, 3 * CCA_GRANULE), CCA_HOST_OK);
	cr_expect_geq(s.h.free, free - 16, "granules of a used host page serve first");
	cr_assert_eq(DO(&s, map, s.r, BLOCK, 2 * BLOCK), CCA_HOST_OK);
	s.m.el3_refuses = 1;
	cr_expect_eq(DO(&s, unmap, s.r, BLOCK, 2 * BLOCK), CCA_HOST_OK);
	cr_expect_eq(s.h.leaked, 1);
	sound(&s);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	cr_expect_eq(s.h.free, POOL - 32, "the leak keeps its host page, and the host's own page");
	end(&s);
}

Test(cca_host, pools_are_whole_host_pages)
{
	struct pw_mem mem = { 0 };
	struct cca_host h;
	struct cca m;

	cr_expect_eq(cca_host_init(&h, &m, &mem, BASE, 64, 2), PW_INVALID);
	cr_expect_eq(cca_host_init(&h, &m, &mem, BASE + 0x1000, 64, 4), PW_INVALID);
	cr_expect_eq(cca_host_init(&h, &m, &mem, BASE, 65, 4), PW_INVALID);
}

/* Another CPU was first: the table is there, its granule is not lost (SPARE-4). */
Test(cca_host, occupied_pages_are_told_and_cost_nothing)
{
	uint64_t before;
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, map, s.r, 0x1000, 0x2000), CCA_HOST_OK);
	before = s.h.free;
	cr_expect_eq(DO(&s, map, s.r, 0x1000, 0x2000), CCA_HOST_EEXIST);
	cr_expect_eq(DO(&s, populate, s.r, 0x1000, SOURCE, false), CCA_HOST_EEXIST);
	cr_expect_eq(s.h.free, before);
	cr_expect_eq(DO(&s, map, s.r, 0, BLOCK), CCA_HOST_EEXIST, "one page of the block");
	cr_expect_eq(at(&s, 0).entry, CCA_ASSIGNED_EMPTY, "what was done stays");
	cr_expect_eq(s.h.free, before - 1);
	cr_expect_eq(DO(&s, map, s.r, 0x1001, 0x2000), CCA_HOST_EINVAL);
	cr_expect_eq(DO(&s, unmap, s.r, 0x1001, 0x2000), CCA_HOST_EINVAL);
	cr_expect_eq(DO(&s, map_ns, s.r, 0, 0x1000, 8), CCA_HOST_EINVAL);
	cr_expect_eq(DO(&s, unmap_ns, s.r, 0x2000, 0x1000), CCA_HOST_EINVAL);
	cr_expect_eq(DO(&s, populate, s.r, NS, SOURCE, false), CCA_HOST_EINVAL);
	end(&s);
}

Test(cca_host, the_unprotected_alias_takes_blocks_and_gives_pages)
{
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, map_ns, s.r, 0, 0x40000000, 0x80000000), CCA_HOST_OK);
	cr_expect_eq(at(&s, NS).level, 1);
	cr_expect_eq(DO(&s, map_ns, s.r, 0, 0x40000000, 0x80000000), CCA_HOST_EEXIST);
	cr_expect_eq(DO(&s, unmap_ns, s.r, 0x201000, 0x203000), CCA_HOST_OK);
	cr_expect_eq(at(&s, NS + 0x200000).addr, 0x80200000);
	cr_expect_eq(at(&s, NS + 0x201000).entry, CCA_UNASSIGNED_NS);
	cr_expect_eq(at(&s, NS + 0x203000).addr, 0x80203000);
	cr_expect_eq(at(&s, NS + 0x400000).level, 2);
	cr_expect_eq(DO(&s, unmap_ns, s.r, 0x200000, 0x400000), CCA_HOST_OK);
	cr_expect_eq(DO(&s, map_ns, s.r, 0x200000, 0x400000, 0x90000000), CCA_HOST_OK, "below the table that is there");
	cr_expect_eq(at(&s, NS + 0x3ff000).addr, 0x901ff000);
	cr_expect_eq(DO(&s, unmap_ns, s.r, 0, 0x40000000), CCA_HOST_OK);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	cr_expect_eq(used(&s), 1);
	end(&s);
}

/* Serving what a realm asks for: as far as the RMM goes, and tables where it stops. */
Test(cca_host, ripas_changes_are_served)
{
	struct cca_call enter = { .cmd = CCA_REC_ENTER };
	struct cca_result r;
	struct cca_rsi rsi;
	uint64_t done;
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, rec_new, s.r, 0, true), CCA_HOST_OK);
	cr_assert_eq(DO(&s, map, s.r, 0, BLOCK), CCA_HOST_OK);
	cr_assert_eq(DO(&s, activate, s.r), CCA_HOST_OK);
	enter.arg[CCA_ARG_REC] = s.r->recs[0];
	enter.arg[CCA_ARG_RUN_PTR] = s.h.page;
	cr_assert_eq(cca_rmi(&s.m, &enter, &r), PW_OK);
	cr_assert_eq(
		cca_rsi_ipa_state_set(cca_rec_at(&s.m, s.r->recs[0]), 0x3000, BLOCK + 0x2000, CCA_RAM, false, &rsi),
		PW_OK);
	cr_expect_eq(DO(&s, set_ripas, s.r, s.r->recs[0], rsi.ripas_base, rsi.ripas_top, &done), CCA_HOST_OK);
	cr_expect_eq(done, BLOCK + 0x2000);
	cr_expect_eq(at(&s, 0x2000).entry, CCA_ASSIGNED_EMPTY);
	cr_expect_eq(at(&s, 0x3000).entry, CCA_ASSIGNED_RAM);
	cr_expect_eq(at(&s, BLOCK).entry, CCA_UNASSIGNED_RAM);
	cr_expect_eq(DO(&s, set_ripas, s.r, s.r->recs[0], 0, 0x1000, &done), CCA_HOST_EIO, "nobody asked");
	cr_expect_eq(done, 0);
	cr_expect_eq(DO(&s, set_ripas, s.r, s.r->recs[0], 1, 0x1000, &done), CCA_HOST_EINVAL);
	end(&s);
}

static void ask_for(struct site *s, uint64_t base, uint64_t top, enum cca_ripas value)
{
	struct cca_call enter = { .cmd = CCA_REC_ENTER };
	struct cca_result r;
	struct cca_rsi rsi;

	enter.arg[CCA_ARG_REC] = s->r->recs[0];
	enter.arg[CCA_ARG_RUN_PTR] = s->h.page;
	cr_assert_eq(cca_rmi(&s->m, &enter, &r), PW_OK);
	cr_assert_eq(r.status, CCA_SUCCESS);
	cr_assert_eq(cca_rsi_ipa_state_set(cca_rec_at(&s->m, s->r->recs[0]), base, top, value, false, &rsi), PW_OK);
	cr_assert(rsi.exits && rsi.exit == CCA_EXIT_RIPAS_CHANGE);
}

/* The realm's base and top bound it, whatever the host meant to do: pages, blocks, and ranges that go on past it. */
Test(cca_host, a_ripas_change_stops_at_what_the_realm_asked)
{
	static const struct {
		uint64_t base, top, end;
		uint64_t done; /* to be */
	} cases[] = {
		{ 0x3000, 0x5000, 0x9000, 0x5000 },
		{ 0x3000, 0x5000, 0x4000, 0x4000 }, /* the host accepts a part */
		{ 0, BLOCK, 3 * BLOCK, BLOCK },
		{ 0x1000, BLOCK + 0x1000, 2 * BLOCK, BLOCK + 0x1000 },
		{ BLOCK - 0x1000, BLOCK, (uint64_t)1 << 30, BLOCK },
		{ 0, 2 * BLOCK + 0x1000, NS, 2 * BLOCK + 0x1000 },
	};
	struct site s;

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		uint64_t done;

		begin(&s);
		cr_assert_eq(DO(&s, rec_new, s.r, 0, true), CCA_HOST_OK);
		cr_assert_eq(DO(&s, map, s.r, 0, BLOCK), CCA_HOST_OK);
		cr_assert_eq(DO(&s, activate, s.r), CCA_HOST_OK);
		ask_for(&s, cases[i].base, cases[i].top, CCA_RAM);
		cr_expect_eq(DO(&s, set_ripas, s.r, s.r->recs[0], cases[i].base, cases[i].end, &done), CCA_HOST_OK);
		cr_expect_eq(done, cases[i].done, "case %zu: 0x%" PRIx64, i, done);
		for (uint64_t ipa = 0; ipa < 3 * BLOCK; ipa += CCA_GRANULE) {
			enum cca_entry e = at(&s, ipa).entry;
			bool ram = e == CCA_ASSIGNED_RAM || e == CCA_UNASSIGNED_RAM;

			cr_assert_eq(ram, ipa >= cases[i].base && ipa < done, "case %zu: ipa 0x%" PRIx64, i, ipa);
		}
		end(&s);
	}
}

/* What is left of a request is served later, from where it stands; then it is closed. */
Test(cca_host, a_ripas_change_goes_on_where_it_stands)
{
	uint64_t done;
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, rec_new, s.r, 0, true), CCA_HOST_OK);
	cr_assert_eq(DO(&s, activate, s.r), CCA_HOST_OK);
	ask_for(&s, 0x1000, 0x9000, CCA_RAM);
	cr_expect_eq(DO(&s, set_ripas, s.r, s.r->recs[0], 0x1000, 0x3000, &done), CCA_HOST_OK);
	cr_expect_eq(DO(&s, set_ripas, s.r, s.r->recs[0], 0x1000, 0x3000, &done), CCA_HOST_EIO, "that is behind it");
	cr_expect_eq(DO(&s, set_ripas, s.r, s.r->recs[0], 0x3000, 0x4000, &done), CCA_HOST_OK);
	ask_for(&s, 0x20000, 0x21000, CCA_EMPTY);
	cr_expect_eq(DO(&s, set_ripas, s.r, s.r->recs[0], 0x4000, 0x9000, &done), CCA_HOST_EIO, "another request");
	cr_expect_eq(at(&s, 0x3000).entry, CCA_UNASSIGNED_RAM);
	cr_expect_eq(at(&s, 0x4000).entry, CCA_UNASSIGNED_EMPTY);
	end(&s);
}

/* A block that the realm gave up is taken by the spare, and stays EMPTY: RTT_DESTROY would make it DESTROYED. */
Test(cca_host, a_block_that_was_given_up_goes_and_stays_empty)
{
	struct site s;

	begin(&s);
	cr_assert_eq(DO(&s, map, s.r, 0, 2 * BLOCK), CCA_HOST_OK);
	cr_assert_eq(at(&s, BLOCK).level, 2);
	cr_assert_eq(at(&s, BLOCK).entry, CCA_ASSIGNED_EMPTY);
	cr_expect_eq(DO(&s, unmap, s.r, BLOCK, 2 * BLOCK), CCA_HOST_OK);
	cr_expect_eq(at(&s, BLOCK).entry, CCA_UNASSIGNED_EMPTY);
	cr_expect_eq(at(&s, BLOCK).level, 2);
	cr_expect(s.r->spare_is_in);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	end(&s);
}

static void expect_clash(struct site *s, const char *alias, const char *ipa)
{
	struct pw_err err = { 0 };

	cr_expect_eq(s->code, CCA_HOST_EEXIST);
	cca_host_explain(&s->h, &err);
	cr_expect(strstr(err.msg, "L9") && strstr(err.msg, alias) && strstr(err.msg, ipa), "%s", err.msg);
}

/* L9: the RMM would map both. Nothing is done then, in pages or in blocks. */
Test(cca_host, the_second_alias_is_not_mapped_while_the_first_is)
{
	uint64_t digest, data = BASE + 4 * BLOCK;
	struct site s;

	begin(&s);
	cr_assert_eq(cca_host_lend(&s.h, data, 1024, &(struct cca_host_lender){ 0 }), PW_OK);
	cr_assert_eq(DO(&s, map, s.r, BLOCK + 0x3000, BLOCK + 0x4000), CCA_HOST_OK);
	cr_assert_eq(DO(&s, map_ns, s.r, 3 * BLOCK, 4 * BLOCK, 0x80000000), CCA_HOST_OK);
	digest = cca_digest(&s.m);
	DO(&s, map_ns, s.r, 0, 2 * BLOCK, 0x90000000);
	expect_clash(&s, "its protected one is ASSIGNED/EMPTY", "0x203000");
	DO(&s, map_ns, s.r, BLOCK + 0x3000, BLOCK + 0x4000, 0x90000000);
	expect_clash(&s, "protected", "0x203000");
	DO(&s, map, s.r, 2 * BLOCK, 5 * BLOCK);
	expect_clash(&s, "its unprotected one is ASSIGNED_NS", "0x600000");
	DO(&s, map_lent, s.r, 3 * BLOCK + 0x1000, 1, data, NULL);
	expect_clash(&s, "unprotected", "0x601000");
	DO(&s, restore_lent, s.r, 3 * BLOCK, 512, data, NULL);
	expect_clash(&s, "unprotected", "0x600000");
	DO(&s, populate, s.r, 3 * BLOCK + 0x5000, SOURCE, true);
	expect_clash(&s, "unprotected", "0x605000");
	cr_expect_eq(cca_digest(&s.m), digest, "nothing was done");
	cr_expect_eq(DO(&s, unmap_ns, s.r, 3 * BLOCK + 0x1000, 3 * BLOCK + 0x2000), CCA_HOST_OK);
	cr_expect_eq(DO(&s, map_lent, s.r, 3 * BLOCK + 0x1000, 1, data, NULL), CCA_HOST_OK, "one after the other");
	cr_expect_eq(DO(&s, unmap, s.r, BLOCK + 0x3000, BLOCK + 0x4000), CCA_HOST_OK);
	cr_expect_eq(DO(&s, map_ns, s.r, BLOCK, 2 * BLOCK, 0x90000000), CCA_HOST_OK);
	cr_expect_eq(DO(&s, map_ns, s.r, BLOCK, 2 * BLOCK, 0x90000000), CCA_HOST_EEXIST, "this one is the RMM's");
	cr_expect_not(s.h.alias.met);
	end(&s);
}

/* A realm whose REC runs is not taken down, and can be later. */
Test(cca_host, a_running_rec_keeps_its_realm)
{
	struct cca_call enter = { .cmd = CCA_REC_ENTER };
	struct cca_result r;
	struct site s;

	begin(&s);
	live(&s);
	enter.arg[CCA_ARG_REC] = s.r->recs[0];
	enter.arg[CCA_ARG_RUN_PTR] = s.h.page;
	cr_assert_eq(cca_rmi(&s.m, &enter, &r), PW_OK);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_EIO);
	cr_expect_eq(s.h.last.status, CCA_ERROR_REC);
	sound(&s);
	cr_assert_eq(cca_rec_exit(cca_rec_at(&s.m, s.r->recs[0])), PW_OK);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	cr_expect_eq(used(&s), 1);
	end(&s);
}

/* The n-th change of granule protection is refused, for every n: records and RMM agree at each end. */
Test(cca_host, refusals_of_el3_are_survived_everywhere, .timeout = 60)
{
	for (uint64_t n = 0; n < 24; n++) {
		struct site s;

		begin(&s);
		live(&s);
		s.m.el3_refuses = n;
		cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
		cr_expect_eq(s.h.leaked, n);
		cr_expect_eq(used(&s), n + 1);
		cr_expect_eq(s.m.el3_refuses, 0);
		end(&s);
	}
}

/* DELEGATE refused: the operation fails, and nothing is lost. */
Test(cca_host, refused_delegation_fails_the_operation)
{
	uint64_t before;
	struct site s;

	begin(&s);
	before = s.h.free;
	s.m.el3_refuses = 1;
	cr_expect_eq(DO(&s, map, s.r, 0x1000, 0x2000), CCA_HOST_EIO);
	cr_expect_eq(s.h.free, before);
	s.m.el3_refuses = 1;
	cr_expect_eq(DO(&s, rec_new, s.r, 0, true), CCA_HOST_EIO);
	cr_expect_eq(s.h.free, before);
	cr_expect_eq(DO(&s, rec_new, s.r, 0, true), CCA_HOST_OK);
	end(&s);
}

/* No memory for the model: an operation fails, and the realm can still be taken down to the last granule. */
struct faulty {
	uint64_t calls, fail_at;
};

static void *faulty_alloc(void *ctx, size_t size)
{
	struct faulty *f = ctx;

	return ++f->calls == f->fail_at ? NULL : malloc(size);
}

static void faulty_free(void *ctx, void *p)
{
	free(p);
}

/* What fails for memory is done again. */
#define AGAIN(op, ...)                                                             \
	do {                                                                       \
		arena_trim_to(&s->m.arena, 0);                                     \
		arena_trim_to(&s->h.arena, 0);                                     \
		if (cca_host_##op(__VA_ARGS__, &s->code) == PW_NO_MEMORY)          \
			cr_assert_eq(cca_host_##op(__VA_ARGS__, &s->code), PW_OK); \
	} while (0)

static void second_realm(struct site *s)
{
	struct cca_host_wish wish = { .ipa_bits = 34, .vmid = 77 };
	struct cca_host_realm *first = s->r;
	struct cca_host_realm *r = NULL;

	s->code = CCA_HOST_EIO;
	if (cca_host_realm_new(&s->h, &wish, &r, &s->code) == PW_NO_MEMORY)
		cr_assert_eq(cca_host_realm_new(&s->h, &wish, &r, &s->code), PW_OK);
	cr_assert_eq(s->code, CCA_HOST_OK);
	AGAIN(realm_end, r);
	s->r = first;
}

static void live_and_end(struct site *s)
{
	second_realm(s);
	AGAIN(init_ripas, s->r, 0, 0x3000);
	AGAIN(populate, s->r, 0x1000, SOURCE, true);
	AGAIN(rec_new, s->r, 0, true);
	AGAIN(activate, s->r);
	AGAIN(map, s->r, BLOCK, 2 * BLOCK);
	AGAIN(unmap, s->r, BLOCK + 0x1000, BLOCK + 0x2000);
	AGAIN(map_ns, s->r, 6 * BLOCK, 6 * BLOCK + 0x1000, 0);
	AGAIN(realm_end, s->r);
}

Test(cca_host, no_memory_loses_no_granule, .timeout = 120)
{
	struct faulty f = { 0 };

	for (f.fail_at = 1; f.fail_at == 1 || f.calls >= f.fail_at; f.fail_at += 5) {
		struct site s;

		begin(&s);
		s.mem.alloc = faulty_alloc;
		s.mem.free = faulty_free;
		s.mem.ctx = &f;
		f.calls = 0;
		live_and_end(&s);
		cr_expect_eq(s.code, CCA_HOST_OK, "fault %" PRIu64 ": %s", f.fail_at, cca_host_code_name(s.code));
		cr_expect_eq(used(&s), 1, "fault %" PRIu64 ": %" PRIu64 " granules are missing", f.fail_at,
			     used(&s) - 1);
		end(&s);
	}
	cr_expect_gt(f.fail_at, 200);
}

Test(cca_host, codes_have_the_kernels_numbers)
{
	cr_expect_eq(cca_host_code_value(CCA_HOST_EPERM), -1);
	cr_expect_eq(cca_host_code_value(CCA_HOST_EINVAL), -22);
	cr_expect_str_eq(cca_host_code_name(CCA_HOST_ENOMEM), "ENOMEM");
	cr_expect_str_eq(cca_host_use_name(CCA_USE_LEAKED), "leaked");
}

/* Lent granules: the lender names them, and hears of those that stay. */

struct lender {
	uint64_t until_refused;
	uint64_t kept;
	char why[192];
};

static uint64_t gives_back(void *ctx, uint64_t count)
{
	struct lender *l = ctx;
	uint64_t n = count <= l->until_refused ? count : l->until_refused;

	l->until_refused = n < count ? UINT64_MAX : l->until_refused - n;
	return n;
}

static void kept(void *ctx, uint64_t addr, const char *why)
{
	struct lender *l = ctx;

	l->kept = addr;
	(void)snprintf(l->why, sizeof l->why, "%s", why);
}

#define LENT       (4096)
#define LENT_COUNT (2048)

static void begin_lent(struct site *s, struct lender *l)
{
	struct cca_host_lender lender = { gives_back, kept, l };

	*l = (struct lender){ .until_refused = UINT64_MAX };
	begin(s);
	cr_assert_eq(cca_host_lend(&s->h, G(LENT), LENT_COUNT, &lender), PW_OK);
	sound(s);
}

Test(cca_host, lent_granules_are_taken_by_name_alone)
{
	struct site s;
	struct lender l;
	uint64_t before;

	begin_lent(&s, &l);
	before = s.h.free;
	cr_expect_eq(DO(&s, map, s.r, 0, 4 * BLOCK), CCA_HOST_OK);
	for (uint64_t i = 0; i < LENT_COUNT; i++)
		cr_assert_eq(cca_host_use(&s.h, G(LENT + i)), CCA_USE_LENT);
	cr_expect_eq(DO(&s, map_lent, s.r, 8 * BLOCK, 700, G(LENT + 512), NULL), CCA_HOST_OK);
	cr_expect_eq(at(&s, 8 * BLOCK).level, 2, "a block");
	cr_expect_eq(at(&s, 9 * BLOCK).addr, G(LENT + 1024));
	cr_expect_eq(DO(&s, map_lent, s.r, 20 * BLOCK, 1, G(LENT + 600), NULL), CCA_HOST_EINVAL, "used");
	cr_expect_eq(DO(&s, map_lent, s.r, 20 * BLOCK, 1, G(0), NULL), CCA_HOST_EINVAL, "not lent");
	cr_expect_eq(DO(&s, map_lent, s.r, 20 * BLOCK, 2, G(LENT + LENT_COUNT - 1), NULL), CCA_HOST_EINVAL);
	cr_expect_eq(DO(&s, unmap_lent, s.r, 8 * BLOCK, 700), CCA_HOST_OK);
	cr_expect_eq(cca_host_put_lent(&s.h, G(LENT), LENT_COUNT), PW_OK);
	cr_expect_eq(cca_host_use(&s.h, G(LENT + 600)), CCA_USE_LENT);
	cr_expect_lt(s.h.free, before);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	cr_expect_eq(s.h.free, POOL - LENT_COUNT - 1, "all but the host's own page");
	end(&s);
}

Test(cca_host, lending_needs_free_granules_and_small_pages)
{
	struct cca_host_lender lender = { NULL, NULL, NULL };
	struct site s;

	begin(&s);
	cr_expect_eq(cca_host_lend(&s.h, G(0), 16, &lender), PW_INVALID, "used");
	cr_expect_eq(cca_host_lend(&s.h, G(POOL - 1), 2, &lender), PW_INVALID);
	cr_expect_eq(cca_host_lend(&s.h, G(64) + 1, 2, &lender), PW_INVALID);
	cr_expect_eq(cca_host_lend(&s.h, G(64), 0, &lender), PW_INVALID);
	cr_expect_eq(cca_host_lend(&s.h, G(64), 16, &lender), PW_OK);
	cr_expect_eq(cca_host_lend(&s.h, G(128), 16, &lender), PW_INVALID, "once");
	end(&s);
	begin_with(&s, POOL, 4);
	cr_expect_eq(cca_host_lend(&s.h, G(64), 16, &lender), PW_INVALID);
	end(&s);
}

Test(cca_host, lent_granules_that_stay_are_told_to_the_lender)
{
	struct cca_host_leak leak;
	struct site s;
	struct lender l;

	begin_lent(&s, &l);
	cr_expect_eq(DO(&s, map_lent, s.r, 0, 600, G(LENT), NULL), CCA_HOST_OK);
	cr_expect_eq(DO(&s, unmap_lent, s.r, 0, 600), CCA_HOST_OK);
	l.until_refused = 530;
	cr_expect_eq(DO(&s, give_lent, &s.h, G(LENT), 600), CCA_HOST_EIO);
	cr_expect(s.h.leaked == 0 && cca_granule_state(&s.m, G(LENT + 530)) == CCA_DELEGATED);
	cr_expect_eq(cca_granule_state(&s.m, G(LENT + 529)), CCA_UNDELEGATED);
	cr_expect_eq(DO(&s, restore_lent, s.r, 0, 600, G(LENT), NULL), CCA_HOST_OK, "half of them delegated");
	sound(&s);
	cr_expect_eq(DO(&s, unmap_lent, s.r, 0, 600), CCA_HOST_OK);
	l.until_refused = 7;
	cr_expect_eq(cca_host_put_lent(&s.h, G(LENT), 600), PW_OK);
	cr_expect_eq(l.kept, G(LENT + 7));
	cr_expect(strstr(l.why, "GRANULE_UNDELEGATE") && strstr(l.why, "RMM B4.3.6"), "%s", l.why);
	cr_assert(cca_host_next_leak(&s.h, 0, &leak));
	cr_expect(leak.addr == G(LENT + 7) && leak.last == CCA_USE_DATA && leak.status == CCA_ERROR_INPUT);
	cr_expect_eq(DO(&s, realm_end, s.r), CCA_HOST_OK);
	end(&s);
}

/* SPARE-1: what was a block is one again without a granule of the pool. */
Test(cca_host, a_block_is_put_back_by_the_spare)
{
	struct site s;
	struct lender l;
	uint64_t taken = 0;

	begin_lent(&s, &l);
	cr_expect_eq(DO(&s, map_lent, s.r, 0, 1024, G(LENT), NULL), CCA_HOST_OK);
	while (cca_pool_has(&s.h, 1, 1)) {
		cr_assert_eq(cca_pool_take(&s.h, CCA_USE_HOST, 0, 1, 1, &(uint64_t){ 0 }, &s.code), PW_OK);
		taken++;
	}
	cr_expect_eq(DO(&s, unmap_lent, s.r, 0, 1024), CCA_HOST_OK);
	cr_expect_eq(DO(&s, map_lent, s.r, 0, 512, G(LENT), NULL), CCA_HOST_ENOMEM);
	cr_expect_eq(DO(&s, restore_lent, s.r, 0, 1024, G(LENT), NULL), CCA_HOST_OK);
	cr_expect(s.r->spare_is_in && at(&s, 0).level == 2 && at(&s, BLOCK).level == 2);
	cr_expect_gt(taken, 0);
	end(&s);
}
