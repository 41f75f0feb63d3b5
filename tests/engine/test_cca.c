#include "engine/arch/cca.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "engine/arch/cca_rim.h"
#include "tests/lib/cca_world.h"

#define OK     CODE(CCA_SUCCESS, 0)
#define INPUT  CODE(CCA_ERROR_INPUT, 0)
#define REALM  CODE(CCA_ERROR_REALM, 0)
#define REC    CODE(CCA_ERROR_REC, 0)
#define RTT(l) CODE(CCA_ERROR_RTT, l)
#define PAGE   ((uint64_t)0x3000)
#define HUGE_BASE \
	(((uint64_t)1 << 41) - ((uint64_t)1 << 30)) /* 1 GiB for tables, then the guest, aligned to all of it */
#define HUGE_AT(n) (HUGE_BASE + (uint64_t)(n)*CCA_GRANULE)

Test(cca, tables_decide_every_cell)
{
	cr_assert(cca_tables_are_total());
}

static struct cca_walk walk(const struct world *w, uint64_t ipa)
{
	return cca_walk(cca_realm_at(&w->m, WORLD_RD), ipa, 3);
}

static enum cca_entry entry(const struct world *w, uint64_t ipa)
{
	return walk(w, ipa).entry;
}

/* Brings `count` pages at ipa into a state, in a NEW realm, their granules from G(1024) on. */
static void reach(struct world *w, uint64_t ipa, uint64_t count, enum cca_entry e)
{
	uint64_t top = ipa + count * CCA_GRANULE, g = G(1024);
	bool destroyed = e == CCA_UNASSIGNED_DESTROYED || e == CCA_ASSIGNED_DESTROYED;

	if (e == CCA_UNASSIGNED_RAM || e == CCA_ASSIGNED_RAM || destroyed)
		cr_assert_eq(RMI(w, CCA_RTT_INIT_RIPAS, WORLD_RD, ipa, top), OK);
	if (destroyed) {
		cr_assert_eq(RUN(w, CCA_DATA_CREATE_UNKNOWN, count, WORLD_RD, g, ipa), count);
		cr_assert_eq(RUN(w, CCA_DATA_DESTROY, count, WORLD_RD, ipa), count);
	}
	if (e == CCA_ASSIGNED_EMPTY || e == CCA_ASSIGNED_RAM || e == CCA_ASSIGNED_DESTROYED)
		cr_assert_eq(RUN(w, CCA_DATA_CREATE_UNKNOWN, count, WORLD_RD, g, ipa), count);
	for (uint64_t i = 0; e == CCA_ASSIGNED_NS && i < count; i++)
		cr_assert_eq(RMI(w, CCA_RTT_MAP_UNPROTECTED, WORLD_RD, ipa + i * CCA_GRANULE, 3,
				 (0x40000000 + i * CCA_GRANULE) | 0xd8),
			     OK);
	cr_assert_eq(entry(w, ipa), e, "cannot reach %s", cca_entry_name(e));
}

static uint64_t home(enum cca_entry e)
{
	return (e == CCA_UNASSIGNED_NS || e == CCA_ASSIGNED_NS ? WORLD_NS : 0) + PAGE;
}

/* The transitions of one entry, from the specification: what the entry is after the command, or NO: RMI_ERROR_RTT. */
#define NO   CCA_ENTRY_COUNT
#define U(r) CCA_UNASSIGNED_##r
#define A(r) CCA_ASSIGNED_##r
static const struct {
	enum cca_entry from, create, unknown, destroy, init, ram, empty, ram_cd, empty_cd;
} law[] = {
	{ U(EMPTY), A(RAM), A(EMPTY), NO, U(RAM), U(RAM), U(EMPTY), U(RAM), U(EMPTY) },
	{ U(RAM), A(RAM), A(RAM), NO, U(RAM), U(RAM), U(EMPTY), U(RAM), U(EMPTY) },
	{ U(DESTROYED), A(RAM), A(DESTROYED), NO, NO, NO, NO, U(RAM), U(EMPTY) },
	{ A(EMPTY), NO, NO, U(EMPTY), NO, A(RAM), A(EMPTY), A(RAM), A(EMPTY) },
	{ A(RAM), NO, NO, U(DESTROYED), NO, A(RAM), A(EMPTY), A(RAM), A(EMPTY) },
	{ A(DESTROYED), NO, NO, U(DESTROYED), NO, NO, NO, A(RAM), A(EMPTY) },
};

static void expect(const struct world *w, const char *what, enum cca_entry from, enum cca_entry to, unsigned code,
		   uint64_t before)
{
	cr_expect_eq(code, to == NO ? RTT(3) : OK, "%s of %s: %#x", what, cca_entry_name(from), code);
	cr_expect_eq(entry(w, home(from)), to == NO ? from : to, "%s of %s", what, cca_entry_name(from));
	cr_expect(to != NO || cca_digest(&w->m) == before, "%s of %s changed something", what, cca_entry_name(from));
}

static void try_new(enum cca_entry from, enum cca_command cmd, enum cca_entry to, const uint64_t x[5])
{
	struct world w;
	uint64_t before;

	world_rec(&w);
	reach(&w, home(from), 1, from);
	before = cca_digest(&w.m);
	expect(&w, cca_command_name(cmd), from, to, world_rmi(&w, cmd, x), before);
	world_end(&w);
}

static void try_set(enum cca_entry from, enum cca_ripas value, bool cd, enum cca_entry to)
{
	struct world w;
	uint64_t before;

	world_rec(&w);
	reach(&w, home(from), 1, from);
	world_activate(&w);
	world_ask(&w, PAGE, PAGE + CCA_GRANULE, value, cd);
	before = cca_digest(&w.m);
	expect(&w, "SET_RIPAS", from, to, RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, PAGE, PAGE + CCA_GRANULE),
	       before);
	world_end(&w);
}

Test(cca, protected_pages_follow_the_specification)
{
	const uint64_t data = G(2000 - 500), top = PAGE + CCA_GRANULE;

	for (size_t i = 0; i < PW_ARRAY_LEN(law); i++) {
		enum cca_entry e = law[i].from;

		try_new(e, CCA_DATA_CREATE, law[i].create, (const uint64_t[5]){ WORLD_RD, data, PAGE, WORLD_HOST, 1 });
		try_new(e, CCA_DATA_CREATE_UNKNOWN, law[i].unknown, (const uint64_t[5]){ WORLD_RD, data, PAGE });
		try_new(e, CCA_DATA_DESTROY, law[i].destroy, (const uint64_t[5]){ WORLD_RD, PAGE });
		try_new(e, CCA_RTT_INIT_RIPAS, law[i].init, (const uint64_t[5]){ WORLD_RD, PAGE, top });
		try_set(e, CCA_RAM, false, law[i].ram);
		try_set(e, CCA_EMPTY, false, law[i].empty);
		try_set(e, CCA_RAM, true, law[i].ram_cd);
		try_set(e, CCA_EMPTY, true, law[i].empty_cd);
	}
}

Test(cca, unprotected_pages_follow_the_specification)
{
	const uint64_t at = WORLD_NS + PAGE;
	const uint64_t map[5] = { WORLD_RD, at, 3, 0x12345000 | 0xd8 }, unmap[5] = { WORLD_RD, at, 3 };

	try_new(CCA_UNASSIGNED_NS, CCA_RTT_MAP_UNPROTECTED, CCA_ASSIGNED_NS, map);
	try_new(CCA_ASSIGNED_NS, CCA_RTT_MAP_UNPROTECTED, NO, map);
	try_new(CCA_UNASSIGNED_NS, CCA_RTT_UNMAP_UNPROTECTED, NO, unmap);
	try_new(CCA_ASSIGNED_NS, CCA_RTT_UNMAP_UNPROTECTED, CCA_UNASSIGNED_NS, unmap);
}

/* Half and entry decide what may be done with the whole table below an entry. */
static const struct {
	enum cca_entry children;
	bool destroyed; /* may its table be? */
	enum cca_entry parent;
} folds[] = {
	{ U(EMPTY), true, U(DESTROYED) }, { U(RAM), true, U(DESTROYED) }, { U(DESTROYED), true, U(DESTROYED) },
	{ A(EMPTY), false, CCA_TABLE },   { A(RAM), false, CCA_TABLE },   { A(DESTROYED), false, CCA_TABLE },
	{ U(NS), true, U(NS) },           { A(NS), true, U(NS) },
};

static enum cca_entry parent(const struct world *w, uint64_t ipa)
{
	return cca_walk(cca_realm_at(&w->m, WORLD_RD), ipa, 2).entry;
}

Test(cca, fold_and_unfold_keep_every_page)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(folds); i++) {
		enum cca_entry e = folds[i].children;
		uint64_t at = home(e) - PAGE, before, table;
		struct cca_walk first, last;
		struct world w;

		world_tables(&w);
		reach(&w, at, 512, e);
		first = walk(&w, at);
		last = walk(&w, at + WORLD_BLOCK - CCA_GRANULE);
		before = cca_digest(&w.m);
		cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, at, 3), OK, "fold of %s", cca_entry_name(e));
		table = w.r.out[CCA_OUT_RTT];
		cr_expect_eq(walk(&w, at).level, 2);
		cr_expect_eq(parent(&w, at), e);
		cr_expect_eq(RMI(&w, CCA_RTT_DESTROY, WORLD_RD, at, 3), RTT(2), "no table to destroy: %s",
			     cca_entry_name(e));
		cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, at, 3), RTT(2), "no table to fold: %s", cca_entry_name(e));
		cr_assert_eq(parent(&w, at), e);
		cr_expect_eq(walk(&w, at).addr, first.addr);
		cr_expect_eq(RMI(&w, CCA_RTT_CREATE, WORLD_RD, table, at, 3), OK);
		cr_expect_eq(cca_digest(&w.m), before, "unfold of %s", cca_entry_name(e));
		cr_expect_eq(walk(&w, at + WORLD_BLOCK - CCA_GRANULE).addr, last.addr);
		world_end(&w);
	}
}

Test(cca, tables_are_destroyed_when_nothing_keeps_them)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(folds); i++) {
		enum cca_entry e = folds[i].children;
		uint64_t at = home(e) - PAGE, before;
		struct world w;

		world_tables(&w);
		reach(&w, at + PAGE, 1, e);
		before = cca_digest(&w.m);
		cr_expect_eq(RMI(&w, CCA_RTT_DESTROY, WORLD_RD, at, 3), folds[i].destroyed ? OK : RTT(3), "%s",
			     cca_entry_name(e));
		cr_expect(folds[i].destroyed || cca_digest(&w.m) == before);
		cr_expect_eq(parent(&w, at), folds[i].parent, "%s", cca_entry_name(e));
		world_end(&w);
	}
}

Test(cca, what_is_not_alike_does_not_fold)
{
	struct world w;

	world_tables(&w);
	reach(&w, 0, 511, A(RAM));
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, 0, 3), RTT(3), "one page is missing");
	cr_expect_eq(RMI(&w, CCA_RTT_INIT_RIPAS, WORLD_RD, 511 * CCA_GRANULE, WORLD_BLOCK), OK);
	cr_expect_eq(RMI(&w, CCA_DATA_CREATE_UNKNOWN, WORLD_RD, G(1024 + 600), 511 * CCA_GRANULE), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, 0, 3), RTT(3), "one page is elsewhere");
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, 0, 2), RTT(2), "a TABLE is there");
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, WORLD_NS, 2), RTT(2), "a TABLE is there");
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, 0x40000000, 2), RTT(1), "no table is there");
	world_end(&w);
	world_tables(&w);
	cr_expect_eq(RUN(&w, CCA_DATA_CREATE_UNKNOWN, 512, WORLD_RD, G(1025), 0), 512);
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, 0, 3), RTT(3), "the block would not be aligned");
	world_end(&w);
}

/* Tables of level 1 hang in level 0, where no leaf may be. */
static void begin_deep(struct world *w)
{
	struct cca_realm_params p = world_realm_params();
	struct cca_call call = world_call(CCA_REALM_CREATE, (const uint64_t[5]){ WORLD_RD, WORLD_HOST });

	world_begin(w);
	cr_assert_eq(RUN(w, CCA_GRANULE_DELEGATE, 64, G(0)), 64);
	p.s2sz = 41;
	p.rtt_level_start = 0;
	call.realm = &p;
	cr_assert_eq(cca_rmi(&w->m, &call, &w->r), PW_OK);
	cr_assert_eq(w->r.status, CCA_SUCCESS);
	cr_assert_eq(RMI(w, CCA_RTT_CREATE, WORLD_RD, G(20), 0, 1), OK);
}

Test(cca, tables_of_level_1_fold_without_pages)
{
	const uint64_t gib = (uint64_t)1 << 30, ns = (uint64_t)1 << 40;
	struct world w;

	begin_deep(&w);
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, 0, 1), OK, "UNASSIGNED/EMPTY");
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, WORLD_RD, G(20), 0, 1), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_INIT_RIPAS, WORLD_RD, 0, 512 * gib), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, 0, 1), OK, "UNASSIGNED/RAM");
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, WORLD_RD, G(20), 0, 1), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_DESTROY, WORLD_RD, 0, 1), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, WORLD_RD, G(20), 0, 1), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, 0, 1), OK, "UNASSIGNED/DESTROYED");
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, WORLD_RD, G(20), ns, 1), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, ns, 1), OK, "UNASSIGNED_NS");
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, WORLD_RD, G(20), ns, 1), OK);
	for (uint64_t i = 0; i < 512; i++)
		cr_assert_eq(RMI(&w, CCA_RTT_MAP_UNPROTECTED, WORLD_RD, ns + i * gib, 1, (i * gib) | 0xd8), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_FOLD, WORLD_RD, ns, 1), RTT(1), "ASSIGNED_NS");
	cr_expect_eq(RMI(&w, CCA_RTT_UNMAP_UNPROTECTED, WORLD_RD, ns, 0), INPUT, "no leaf at level 0");
	cr_expect_eq(RMI(&w, CCA_RTT_MAP_UNPROTECTED, WORLD_RD, ns + 512 * gib, 0, 0xd8), INPUT);
	world_end(&w);
}

/* Two faults at once, in commands and on hosts that no recording shows. */
Test(cca, the_first_fault_in_order_is_reported)
{
	struct cca_call call =
		world_call(CCA_DATA_CREATE, (const uint64_t[5]){ WORLD_RD, G(1024), PAGE, WORLD_HOST, 1 });
	struct cca_rec_params rec = world_rec_params();
	struct cca_rsi rsi;
	struct world w;

	world_rec(&w);
	call.source = NULL;
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(CODE(w.r.status, w.r.index), INPUT, "a source that cannot be read");
	reach(&w, PAGE, 1, A(RAM));
	call.arg[CCA_ARG_DATA] = G(1030);
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(CODE(w.r.status, w.r.index), RTT(3), "the entry comes before the source");
	call = world_call(CCA_REALM_CREATE, (const uint64_t[5]){ G(60), WORLD_HOST });
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(CODE(w.r.status, w.r.index), INPUT, "parameters that cannot be read");
	call = world_call(CCA_REC_CREATE, (const uint64_t[5]){ WORLD_RD, G(1100), WORLD_HOST });
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(CODE(w.r.status, w.r.index), INPUT);
	rec.mpidr = 1;
	rec.num_aux = 17;
	call.rec = &rec;
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(w.r.failed->kind, CCA_CHECK_AUX_MAX, "the list is not read past its end");
	rec.num_aux = 16;
	for (uint64_t i = 0; i < 16; i++)
		rec.aux[i] = G(1101 + i);
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_assert_eq(w.r.status, CCA_SUCCESS);
	world_activate(&w);
	cr_assert_eq(RMI(&w, CCA_REC_ENTER, WORLD_REC, WORLD_HOST), OK);
	cr_assert_eq(RMI(&w, CCA_REC_ENTER, G(1100), WORLD_HOST), OK);
	cr_assert_eq(cca_rsi_psci(cca_rec_at(&w.m, G(1100)), CCA_PSCI_SYSTEM_OFF, &rsi), PW_OK);
	cr_expect_eq(RMI(&w, CCA_REC_ENTER, WORLD_REC, WORLD_HOST), REC, "running comes before SYSTEM_OFF");
	world_end(&w);
}

Test(cca, recs_are_limited)
{
	struct cca_rec_params rec = world_rec_params();
	struct cca_call call = world_call(CCA_REC_CREATE, (const uint64_t[5]){ WORLD_RD, G(1100), WORLD_HOST });
	struct world w;

	world_rec(&w);
	rec.mpidr = 1;
	for (uint64_t i = 0; i < 16; i++)
		rec.aux[i] = G(1101 + i);
	call.rec = &rec;
	w.m.config.features0 = (CCA_FEATURES0 & ~((uint64_t)0xf << 38)) | (uint64_t)1 << 38;
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(CODE(w.r.status, w.r.index), REALM);
	cr_expect_eq(w.r.failed->kind, CCA_CHECK_REC_LIMIT);
	world_end(&w);
}

/* Commands on granules of every state, in turn. */
Test(cca, only_delegated_granules_are_given_back)
{
	static const struct {
		uint64_t at;
		enum cca_granule state;
		unsigned delegate, undelegate;
	} cases[] = {
		{ G(4000), CCA_UNDELEGATED, OK, INPUT },      { G(2), CCA_DELEGATED, INPUT, OK },
		{ WORLD_RD, CCA_RD, INPUT, INPUT },           { WORLD_REC, CCA_REC, INPUT, INPUT },
		{ G(41), CCA_REC_AUX, INPUT, INPUT },         { G(1024), CCA_DATA, INPUT, INPUT },
		{ WORLD_ROOT, CCA_RTT, INPUT, INPUT },        { G(22), CCA_RTT, INPUT, INPUT },
		{ G(3000), CCA_NOT_DELEGABLE, INPUT, INPUT }, { G(4096), CCA_NOT_DELEGABLE, INPUT, INPUT },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct world w;

		world_rec(&w);
		reach(&w, PAGE, 1, A(RAM));
		cr_assert_eq(cca_carve_out(&w.m, G(3000), 8), PW_OK);
		cr_expect_eq(cca_granule_state(&w.m, cases[i].at), cases[i].state);
		cr_expect_eq(RMI(&w, CCA_GRANULE_DELEGATE, cases[i].at), cases[i].delegate, "case %zu", i);
		world_end(&w);
		world_rec(&w);
		reach(&w, PAGE, 1, A(RAM));
		cr_assert_eq(cca_carve_out(&w.m, G(3000), 8), PW_OK);
		cr_expect_eq(RMI(&w, CCA_GRANULE_UNDELEGATE, cases[i].at), cases[i].undelegate, "case %zu", i);
		cr_expect_eq(RMI(&w, CCA_GRANULE_UNDELEGATE, cases[i].at + 8), INPUT);
		world_end(&w);
	}
}

Test(cca, carve_outs_are_whole_and_undelegated)
{
	struct world w;

	world_realm(&w);
	cr_expect_eq(cca_carve_out(&w.m, G(60), 8), PW_INVALID, "partly delegated");
	cr_expect_eq(cca_carve_out(&w.m, G(4000), 97), PW_INVALID, "past the end");
	cr_expect_eq(cca_carve_out(&w.m, G(4000) + 8, 1), PW_INVALID);
	cr_expect_eq(cca_carve_out(&w.m, G(4000), 0), PW_INVALID);
	cr_expect_eq(cca_carve_out(&w.m, G(4000), UINT64_MAX), PW_INVALID);
	world_end(&w);
}

/* Widths, start levels and numbers of root tables: the specification's limits, counted out. */
Test(cca, concatenated_root_tables_are_counted_exactly)
{
	static const struct {
		int64_t start;
		uint64_t width, roots; /* 0: refused whatever the number */
	} cases[] = {
		{ 0, 39, 0 }, { 0, 40, 1 },  { 0, 48, 1 }, { 0, 49, 0 },  { 1, 31, 0 },  { 1, 32, 1 },
		{ 1, 33, 1 }, { 1, 39, 1 },  { 1, 40, 2 }, { 1, 43, 16 }, { 1, 44, 0 },  { 2, 32, 4 },
		{ 2, 33, 8 }, { 2, 34, 16 }, { 2, 35, 0 }, { 3, 32, 0 },  { -1, 48, 0 }, { 4, 33, 0 },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		for (uint64_t n = 0; n <= 17; n++) {
			struct cca_realm_params p = world_realm_params();
			struct cca_call call =
				world_call(CCA_REALM_CREATE, (const uint64_t[5]){ WORLD_RD, WORLD_HOST });
			bool good = cases[i].roots && n == cases[i].roots;
			struct world w;

			world_begin(&w);
			cr_assert_eq(RUN(&w, CCA_GRANULE_DELEGATE, 64, G(0)), 64);
			p.s2sz = cases[i].width;
			p.rtt_level_start = cases[i].start;
			p.rtt_num_start = n;
			p.rtt_base = G(32);
			call.realm = &p;
			cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
			cr_expect_eq(w.r.status, good ? CCA_SUCCESS : CCA_ERROR_INPUT, "case %zu, %" PRIu64 " tables",
				     i, n);
			p.rtt_base = G(1024 - 8);
			world_end(&w);
		}
}

/* A PMU without counters needs CPUs that have FEAT_HPMN0. */
Test(cca, a_pmu_without_counters_needs_hpmn0)
{
	struct cca_realm_params p = world_realm_params();
	struct cca_call call = world_call(CCA_REALM_CREATE, (const uint64_t[5]){ WORLD_RD, WORLD_HOST });
	struct world w;

	world_begin(&w);
	cr_assert_eq(RUN(&w, CCA_GRANULE_DELEGATE, 64, G(0)), 64);
	p.flags = CCA_REALM_PMU;
	call.realm = &p;
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(w.r.status, CCA_ERROR_INPUT);
	w.m.config.hpmn0 = true;
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(w.r.status, CCA_SUCCESS);
	world_end(&w);
}

Test(cca, root_tables_are_aligned_to_all_of_them)
{
	struct cca_realm_params p = world_realm_params();
	struct cca_call call = world_call(CCA_REALM_CREATE, (const uint64_t[5]){ WORLD_RD, WORLD_HOST });
	struct world w;

	world_begin(&w);
	cr_assert_eq(RUN(&w, CCA_GRANULE_DELEGATE, 64, G(0)), 64);
	p.s2sz = 40;
	p.rtt_num_start = 2;
	p.rtt_base = G(17);
	call.realm = &p;
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(w.r.status, CCA_ERROR_INPUT);
	p.rtt_base = G(18);
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(w.r.status, CCA_SUCCESS);
	world_end(&w);
}

/* REC_CREATE: MPIDR fields, and what is counted. */
Test(cca, recs_come_in_the_order_of_their_mpidr)
{
	struct cca_rec_params p = world_rec_params();
	struct cca_call call = world_call(CCA_REC_CREATE, (const uint64_t[5]){ WORLD_RD, WORLD_REC, WORLD_HOST });
	static const uint64_t wrong[] = { 1, 0x10, 0x100, 0x10000, 0x1000000, (uint64_t)1 << 32, (uint64_t)1 << 40 };
	struct world w;

	world_tables(&w);
	call.rec = &p;
	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		p.mpidr = wrong[i];
		cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
		cr_expect_eq(w.r.status, CCA_ERROR_INPUT, "mpidr %#" PRIx64, wrong[i]);
	}
	for (uint64_t n = 0; n < 18; n++) {
		p.mpidr = (n & 15) | n >> 4 << 8;
		cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
		cr_expect_eq(w.r.status, CCA_SUCCESS, "REC %" PRIu64, n);
		cr_expect_eq(RMI(&w, CCA_REC_DESTROY, WORLD_REC), OK);
	}
	cr_expect_eq(cca_realm_at(&w.m, WORLD_RD)->rec_index, 18);
	world_end(&w);
}

/* What the realm's accesses meet. */
Test(cca, accesses_depend_on_both_states)
{
	static const struct {
		enum cca_entry e;
		bool fetches;
		enum cca_access want;
	} cases[] = {
		{ U(EMPTY), false, CCA_ACCESS_ABORTS },    { U(RAM), false, CCA_ACCESS_EXITS },
		{ U(DESTROYED), false, CCA_ACCESS_EXITS }, { A(EMPTY), false, CCA_ACCESS_ABORTS },
		{ A(RAM), false, CCA_ACCESS_WORKS },       { A(RAM), true, CCA_ACCESS_WORKS },
		{ A(DESTROYED), false, CCA_ACCESS_EXITS }, { U(NS), false, CCA_ACCESS_EXITS },
		{ A(NS), false, CCA_ACCESS_WORKS },        { A(NS), true, CCA_ACCESS_ABORTS },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		enum cca_access got;
		struct world w;

		world_rec(&w);
		reach(&w, home(cases[i].e), 1, cases[i].e);
		world_activate(&w);
		cr_assert_eq(RMI(&w, CCA_REC_ENTER, WORLD_REC, WORLD_HOST), OK);
		cr_assert_eq(cca_realm_access(cca_rec_at(&w.m, WORLD_REC), home(cases[i].e), cases[i].fetches, &got),
			     PW_OK);
		cr_expect_eq(got, cases[i].want, "%s", cca_entry_name(cases[i].e));
		cr_expect_eq(cca_rec_at(&w.m, WORLD_REC)->running, got != CCA_ACCESS_EXITS);
		world_end(&w);
	}
}

static unsigned enter(struct world *w, uint64_t flags, bool gic_invalid)
{
	struct cca_call call = world_call(CCA_REC_ENTER, (const uint64_t[5]){ WORLD_REC, WORLD_HOST });
	struct cca_run_params run = { .flags = flags, .gic_invalid = gic_invalid };

	call.run = &run;
	cr_assert_eq(cca_rmi(&w->m, &call, &w->r), PW_OK);
	return CODE(w->r.status, w->r.index);
}

Test(cca, entering_is_refused_in_the_order_of_its_checks)
{
	enum cca_access access;
	struct cca_rsi rsi;
	struct cca_rec *rec;
	struct world w;

	world_rec(&w);
	cr_expect_eq(enter(&w, 0, false), REALM, "NEW");
	world_activate(&w);
	rec = cca_rec_at(&w.m, WORLD_REC);
	cr_expect_eq(enter(&w, 0, true), REC, "GIC");
	cr_expect_eq(enter(&w, CCA_ENTER_SEA, false), REC);
	cr_expect_eq(enter(&w, CCA_ENTER_MMIO, false), REC);
	cr_expect_eq(enter(&w, 0, false), OK);
	cr_expect_eq(enter(&w, 0, false), REC, "running");
	cr_expect_eq(RMI(&w, CCA_REC_DESTROY, WORLD_REC), REC);
	cr_expect_eq(cca_realm_access(rec, WORLD_NS + PAGE, false, &access), PW_OK);
	cr_expect_eq(enter(&w, CCA_ENTER_MMIO, false), OK, "the abort was emulated");
	cr_expect_eq(cca_rsi_psci(rec, CCA_PSCI_CPU_ON, &rsi), PW_OK);
	cr_expect_eq(enter(&w, 0, false), REC, "a PSCI request is open");
	cr_expect_eq(cca_rsi_psci(rec, CCA_PSCI_CPU_OFF, &rsi), PW_CONFLICT, "not running");
	world_end(&w);
}

Test(cca, a_realm_that_is_off_stays_off)
{
	struct cca_rsi rsi;
	struct world w;

	world_rec(&w);
	world_activate(&w);
	cr_assert_eq(enter(&w, 0, false), OK);
	cr_expect_eq(cca_rsi_psci(cca_rec_at(&w.m, WORLD_REC), 1, &rsi), PW_INVALID);
	cr_expect_eq(cca_rsi_psci(cca_rec_at(&w.m, WORLD_REC), CCA_PSCI_SYSTEM_RESET, &rsi), PW_OK);
	cr_expect(rsi.exits && rsi.gpr0 == CCA_PSCI_SYSTEM_RESET);
	cr_expect_eq(enter(&w, 0, false), CODE(CCA_ERROR_REALM, 1));
	cr_expect_eq(RMI(&w, CCA_REALM_ACTIVATE, WORLD_RD), REALM);
	cr_expect_eq(RMI(&w, CCA_REALM_DESTROY, WORLD_RD), REALM, "a REC is left");
	world_end(&w);
}

Test(cca, a_cpu_that_is_off_is_not_runnable)
{
	struct cca_rsi rsi;
	struct world w;

	world_rec(&w);
	world_activate(&w);
	cr_assert_eq(enter(&w, 0, false), OK);
	cr_expect_eq(cca_rsi_psci(cca_rec_at(&w.m, WORLD_REC), CCA_PSCI_CPU_OFF, &rsi), PW_OK);
	cr_expect_eq(enter(&w, 0, false), REC);
	cr_expect_eq(w.r.failed->kind, CCA_CHECK_RUNNABLE);
	world_end(&w);
}

/* The request of the realm binds the host: its cursor, its end, its REC. */
Test(cca, set_ripas_goes_on_at_the_cursor_only)
{
	struct world w;

	world_rec(&w);
	world_activate(&w);
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, 0, PAGE), INPUT, "nobody asked");
	world_ask(&w, 0, 4 * CCA_GRANULE, CCA_RAM, false);
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, CCA_GRANULE, 2 * CCA_GRANULE), INPUT);
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, 0, 5 * CCA_GRANULE), INPUT);
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, 0, CCA_GRANULE + 8), INPUT, "top is not aligned");
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, 0, 2 * CCA_GRANULE), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, 0, 2 * CCA_GRANULE), INPUT, "never again");
	cr_expect_eq(enter(&w, CCA_ENTER_REJECT_RIPAS, false), OK);
	cr_expect(w.r.rsi_count == 3 && w.r.rsi[0] == 0 && w.r.rsi[1] == 2 * CCA_GRANULE && w.r.rsi[2] == 1);
	cr_expect_eq(cca_rec_exit(cca_rec_at(&w.m, WORLD_REC)), PW_OK);
	cr_expect_eq(cca_rec_exit(cca_rec_at(&w.m, WORLD_REC)), PW_CONFLICT);
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, 2 * CCA_GRANULE, 4 * CCA_GRANULE), INPUT);
	world_end(&w);
}

/* A range of level 2 entries ends before the first that is a TABLE. */
static void set_up_to_a_table(enum cca_ripas value, bool cd)
{
	const uint64_t base = 2 * WORLD_BLOCK, table = 4 * WORLD_BLOCK;
	struct world w;

	world_rec(&w);
	cr_assert_eq(RMI(&w, CCA_RTT_CREATE, WORLD_RD, G(30), table, 3), OK);
	world_activate(&w);
	world_ask(&w, base, 6 * WORLD_BLOCK, value, cd);
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, base, 6 * WORLD_BLOCK), OK);
	cr_expect_eq(w.r.out[CCA_OUT_OUT_TOP], table, "%s", cca_ripas_name(value));
	cr_expect_eq(RMI(&w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, table, 6 * WORLD_BLOCK), OK);
	cr_expect_eq(w.r.out[CCA_OUT_OUT_TOP], table + WORLD_BLOCK, "one table at a time");
	world_end(&w);
}

Test(cca, ripas_changes_stop_at_tables)
{
	set_up_to_a_table(CCA_RAM, false);
	set_up_to_a_table(CCA_RAM, true);
	set_up_to_a_table(CCA_EMPTY, false);
	set_up_to_a_table(CCA_EMPTY, true);
}

/* Measurements that others have published. */
static void expect_rim(const struct cca_rim *r, const char *hex)
{
	char text[2 * CCA_RIM_BYTES + 1] = "";

	for (size_t i = 0; i < strlen(hex) / 2; i++)
		(void)snprintf(text + 2 * i, 3, "%02x", r->value[i]);
	cr_expect_str_eq(text, hex);
}

Test(cca, measurements_are_those_of_independent_calculators)
{
	struct cca_realm_params p = { .s2sz = 48, .num_bps = 5, .num_wps = 3 };
	struct cca_rim r = { .hash = CCA_SHA256 };

	cca_rim_start(&r, &p);
	expect_rim(&r, "8960d56826370aaa6fc9b3a041d4240689582ba41e2ad8bb8f9adf6d2a0cd5e7");
	p = world_realm_params();
	cca_rim_start(&r, &p);
	expect_rim(&r, "39ad630fb9d2019f2be445c17430b6372c999e1d205f7ddaa5d00b5d13b83c76");
	cca_rim_ripas(&r, 0, 0x1000);
	expect_rim(&r, "0d08f28d4c42af6d1764411173cdc67863dfac097a145fc2be83a541fae11c33");
	for (uint64_t at = 0x1000; at < 0x4000; at += 0x1000)
		cca_rim_ripas(&r, at, at + 0x1000);
	expect_rim(&r, "97bdff9434afd550d50c10fbe8e9f863b5c67796685208e934c6e44e5650c18e");
}

Test(cca, the_measurement_ends_with_activation)
{
	uint8_t before[CCA_RIM_BYTES];
	struct cca_realm *r;
	struct world w;

	world_rec(&w);
	r = cca_realm_at(&w.m, WORLD_RD);
	memcpy(before, r->rim, sizeof before);
	cr_expect_eq(RMI(&w, CCA_DATA_CREATE_UNKNOWN, WORLD_RD, G(1024), 0), OK);
	cr_expect_eq(RMI(&w, CCA_DATA_DESTROY, WORLD_RD, 0), OK);
	cr_expect(memcmp(before, r->rim, sizeof before) == 0, "not measured");
	cr_expect_eq(RMI(&w, CCA_DATA_CREATE, WORLD_RD, G(1024), 0, WORLD_HOST, 0), OK);
	cr_expect(memcmp(before, r->rim, sizeof before) != 0, "measured");
	world_activate(&w);
	cr_expect_eq(RMI(&w, CCA_DATA_CREATE, WORLD_RD, G(1025), 0x1000, WORLD_HOST, 0), REALM);
	cr_expect_eq(RMI(&w, CCA_RTT_INIT_RIPAS, WORLD_RD, 0x1000, 0x2000), REALM);
	world_end(&w);
}

/* The machine's own form of a call. */
Test(cca, smc_packs_code_and_outputs)
{
	struct cca_call none = { 0 };
	struct world w;

	world_tables(&w);
	reach(&w, PAGE, 1, A(RAM));
	cr_assert_eq(cca_smc(&w.m, (uint64_t[6]){ CCA_FID_PSCI_COMPLETE }, &none), PW_INVALID);
	{
		uint64_t x[6] = { 0xC4000161, WORLD_RD, PAGE, 3 };

		cr_assert_eq(cca_smc(&w.m, x, &none), PW_OK);
		cr_expect(x[0] == 0 && x[1] == 3 && x[2] == 1 && x[3] == G(1024) && x[4] == CCA_RAM);
	}
	{
		uint64_t x[6] = { 0xC4000155, WORLD_RD, 0x40000000 };

		cr_assert_eq(cca_smc(&w.m, x, &none), PW_OK);
		cr_expect(x[0] == RTT(1) && x[1] == 0 && x[2] == WORLD_NS, "%#" PRIx64 " %#" PRIx64, x[0], x[2]);
	}
	{
		uint64_t x[6] = { 0xC4000150, 0x20000, CCA_VERSION }; /* X2 is no argument */

		cr_assert_eq(cca_smc(&w.m, x, &none), PW_OK);
		cr_expect(x[0] == INPUT && x[1] == CCA_VERSION && x[2] == CCA_VERSION);
	}
	{
		uint64_t x[6] = { 0xC4000163 };

		cr_assert_eq(cca_smc(&w.m, x, &none), PW_OK);
		cr_expect_eq(x[0], CCA_UNKNOWN_FID);
	}
	world_end(&w);
}

/* A refusal says what it met: state, operation, page, owner, source of the rule. */
Test(cca, refusals_name_page_owner_and_rule)
{
	const uint64_t again[5] = { WORLD_RD, G(1024), PAGE }, other[5] = { WORLD_RD, G(1030), PAGE };
	struct cca_call call = world_call(CCA_DATA_CREATE_UNKNOWN, again);
	struct pw_err err = { 0 };
	struct world w;

	world_tables(&w);
	reach(&w, PAGE, 1, A(RAM));
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cca_explain(&w.m, &call, &w.r, &err);
	cr_expect(strstr(err.msg, "DATA_CREATE_UNKNOWN") &&
			  strstr(err.msg, "0x80400000 is DATA of realm 0 at ipa 0x3000") &&
			  strstr(err.msg, "RMM B4.3.2"),
		  "%s", err.msg);
	call = world_call(CCA_DATA_CREATE_UNKNOWN, other);
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cca_explain(&w.m, &call, &w.r, &err);
	cr_expect(strstr(err.msg, "RMI_ERROR_RTT,3") &&
			  strstr(err.msg, "ipa 0x3000 of realm 0 is ASSIGNED/RAM at level 3"),
		  "%s", err.msg);
	call = world_call(CCA_REALM_DESTROY, other);
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cca_explain(&w.m, &call, &w.r, &err);
	cr_expect(strstr(err.msg, "realm 0 is NEW"), "%s", err.msg);
	cr_assert_eq(RMI(&w, CCA_FEATURES, 0), OK);
	cca_explain(&w.m, &call, &w.r, &err);
	cr_expect_eq(err.status, PW_OK);
	world_end(&w);
}

/* EL3 may refuse; that TF-RMM would stop there is said, not hidden. */
Test(cca, el3_refusals_change_nothing_and_are_marked)
{
	struct world w;
	struct pw_err err;

	world_realm(&w);
	w.m.el3_refuses = 2;
	cr_expect_eq(RMI(&w, CCA_GRANULE_DELEGATE, G(200)), INPUT);
	cr_expect_null(w.r.unverified);
	cr_expect_eq(RMI(&w, CCA_GRANULE_UNDELEGATE, G(2)), INPUT);
	cr_expect_not_null(w.r.unverified);
	cca_explain(&w.m, &(struct cca_call){ .cmd = CCA_GRANULE_UNDELEGATE, .arg[CCA_ARG_ADDR] = G(2) }, &w.r, &err);
	cr_expect(strstr(err.msg, "RMM B4.3.6, not verified"), "%s", err.msg);
	cr_expect_eq(RMI(&w, CCA_GRANULE_UNDELEGATE, G(2)), OK);
	world_end(&w);
}

Test(cca, the_law_sees_both_halves)
{
	static const struct {
		enum cca_realm_state realm;
		enum cca_entry p, u;
		enum gfn_state want;
		bool clash;
	} cases[] = {
		{ CCA_NEW, U(EMPTY), U(NS), GFN_NORMAL, false },
		{ CCA_NEW, U(RAM), U(NS), GFN_NORMAL, false },
		{ CCA_NEW, A(RAM), U(NS), GFN_SECURE_RESIDENT, false },
		{ CCA_NEW, U(EMPTY), A(NS), GFN_SHARED, false },
		{ CCA_ACTIVE, U(EMPTY), U(NS), GFN_SECURE_OUT, false },
		{ CCA_ACTIVE, U(DESTROYED), A(NS), GFN_SHARED, false },
		{ CCA_ACTIVE, A(EMPTY), A(NS), GFN_SECURE_RESIDENT, true },
		{ CCA_SYSTEM_OFF, U(RAM), U(NS), GFN_SECURE_OUT, false },
	};
	struct world w;

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		cr_expect_eq(cca_project(cases[i].realm, cases[i].p, cases[i].u), cases[i].want, "case %zu", i);
		cr_expect_eq(cca_aliases_clash(cases[i].p, cases[i].u), cases[i].clash, "case %zu", i);
	}
	world_tables(&w);
	reach(&w, PAGE, 1, A(RAM));
	reach(&w, WORLD_NS, 1, A(NS));
	cr_expect_eq(cca_gfn_state(cca_realm_at(&w.m, WORLD_RD), PAGE >> CCA_SHIFT), GFN_SECURE_RESIDENT);
	cr_expect_eq(cca_gfn_state(cca_realm_at(&w.m, WORLD_RD), 0), GFN_SHARED);
	cr_expect_eq(cca_gfn_state(cca_realm_at(&w.m, WORLD_RD), 1), GFN_NORMAL);
	cr_expect_eq(cca_project_realm(CCA_NEW), VM_TRANSIENT);
	cr_expect_eq(cca_project_realm(CCA_SYSTEM_OFF), VM_SECURE);
	world_end(&w);
}

Test(cca, machines_that_cannot_be_are_refused)
{
	static const struct cca_config bad[] = {
		{ .base = 8, .granules = 1 },
		{ .base = (uint64_t)1 << 52, .granules = 1 },
		{ .base = 0x1000, .granules = (uint64_t)1 << 40 },
		{ .base = 0, .granules = 1, .rec_aux_count = 17 },
	};
	struct pw_mem mem = { 0 };
	struct cca m;

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++)
		cr_expect_eq(cca_init(&m, &mem, &bad[i]), PW_INVALID, "case %zu", i);
}

Test(cca, memory_past_48_bits_holds_no_tables_and_no_data)
{
	struct cca_config config = { .base = ((uint64_t)1 << 48) - 64 * CCA_GRANULE,
				     .granules = 128,
				     .features0 = CCA_FEATURES0 };
	struct cca_realm_params p = world_realm_params();
	struct cca_call call;
	struct world w = { 0 };
	uint64_t base = config.base, done;

	cr_assert_eq(cca_init(&w.m, &w.mem, &config), PW_OK);
	call = world_call(CCA_GRANULE_DELEGATE, (const uint64_t[5]){ base });
	cr_assert_eq(cca_rmi_run(&w.m, &call, 128, &done, &w.r), PW_OK);
	p.rtt_base = base + CCA_GRANULE;
	call = world_call(CCA_REALM_CREATE, (const uint64_t[5]){ base, base });
	call.realm = &p;
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(w.r.status, CCA_ERROR_INPUT, "the parameter page is delegated");
	cr_assert_eq(RMI(&w, CCA_GRANULE_UNDELEGATE, base + 2 * CCA_GRANULE), OK);
	call.arg[CCA_ARG_PARAMS_PTR] = base + 2 * CCA_GRANULE;
	cr_assert_eq(cca_rmi(&w.m, &call, &w.r), PW_OK);
	cr_expect_eq(w.r.status, CCA_SUCCESS);
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, base, (uint64_t)1 << 48, 0, 2), INPUT);
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, base, (uint64_t)1 << 48, 0, 3), INPUT, "before the walk");
	cr_expect_eq(RMI(&w, CCA_DATA_CREATE_UNKNOWN, base, (uint64_t)1 << 48, 0), INPUT, "before the walk");
	cr_expect_eq(RMI(&w, CCA_DATA_CREATE, base, (uint64_t)1 << 48, 0, base + 2 * CCA_GRANULE, 0), INPUT);
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, base, base + 3 * CCA_GRANULE, 0, 2), OK);
	cr_expect_eq(RMI(&w, CCA_RTT_CREATE, base, base + 4 * CCA_GRANULE, 0, 3), OK);
	cr_expect_eq(RMI(&w, CCA_DATA_CREATE_UNKNOWN, base, (uint64_t)1 << 48, 0), INPUT);
	cr_expect_eq(RMI(&w, CCA_DATA_CREATE, base, (uint64_t)1 << 48, 0, base + 2 * CCA_GRANULE, 0), INPUT);
	cr_expect_eq(RUN(&w, CCA_DATA_CREATE_UNKNOWN, 100, base, base + 60 * CCA_GRANULE, 0), 4);
	cr_expect_eq(w.r.status, CCA_ERROR_INPUT);
	world_end(&w);
}

/* Half a terabyte of guest in 1 GiB blocks: every command counts, homogeneous stretches cost little. */
static void begin_huge(struct world *w, enum cca_entry e)
{
	const uint64_t gib = (uint64_t)1 << 30;
	struct cca_config config = { .base = HUGE_BASE,
				     .granules = 513 * (gib / CCA_GRANULE),
				     .features0 = CCA_FEATURES0 };
	struct cca_call call = world_call(CCA_REALM_CREATE, (const uint64_t[5]){ HUGE_BASE, HUGE_AT(8) });
	struct cca_realm_params p = world_realm_params();

	*w = (struct world){ 0 };
	cr_assert_eq(cca_init(&w->m, &w->mem, &config), PW_OK);
	cr_assert_eq(RUN(w, CCA_GRANULE_DELEGATE, config.granules, HUGE_BASE), config.granules);
	cr_assert_eq(RMI(w, CCA_GRANULE_UNDELEGATE, HUGE_AT(8)), OK);
	p.s2sz = 42;
	p.rtt_level_start = 0;
	p.rtt_base = HUGE_AT(1);
	call.realm = &p;
	cr_assert_eq(cca_rmi(&w->m, &call, &w->r), PW_OK);
	cr_assert_eq(w->r.status, CCA_SUCCESS);
	cr_assert_eq(RMI(w, CCA_RTT_CREATE, HUGE_BASE, HUGE_AT(16), 0, 1), OK);
	if (e == A(RAM))
		cr_assert_eq(RMI(w, CCA_RTT_INIT_RIPAS, HUGE_BASE, 0, 512 * gib), OK);
	if (e == A(DESTROYED)) {
		cr_assert_eq(RMI(w, CCA_RTT_DESTROY, HUGE_BASE, 0, 1), OK);
		cr_assert_eq(RMI(w, CCA_RTT_CREATE, HUGE_BASE, HUGE_AT(16), 0, 1), OK);
	}
}

Test(cca, huge_realms_of_blocks_are_cheap, .timeout = 60)
{
	const uint64_t gib = (uint64_t)1 << 30, pages = gib / CCA_GRANULE;

	for (enum cca_entry e = A(EMPTY); e <= A(DESTROYED); e++) {
		struct pw_err err = { 0 };
		struct world w;

		begin_huge(&w, e);
		for (uint64_t i = 0; i < 512; i++) {
			cr_assert_eq(RMI(&w, CCA_RTT_CREATE, HUGE_BASE, HUGE_AT(32), i * gib, 2), OK);
			cr_assert_eq(RUN(&w, CCA_RTT_CREATE, 512, HUGE_BASE, HUGE_AT(4096), i * gib, 3), 512);
			cr_assert_eq(
				RUN(&w, CCA_DATA_CREATE_UNKNOWN, pages, HUGE_BASE, HUGE_AT(pages * (i + 1)), i * gib),
				pages);
			cr_assert_eq(RUN(&w, CCA_RTT_FOLD, 512, HUGE_BASE, i * gib, 3), 512);
			cr_assert_eq(RMI(&w, CCA_RTT_FOLD, HUGE_BASE, i * gib, 2), OK);
		}
		cr_expect_not_null(w.r.unverified, "no recording has such a block");
		cr_expect_eq(cca_walk(cca_realm_at(&w.m, HUGE_BASE), 7 * gib, 3).entry, e);
		cr_expect_eq(RMI(&w, CCA_RTT_FOLD, HUGE_BASE, 0, 1), RTT(1), "512 blocks of 1 GiB are no block");
		cr_expect_lt(w.m.arena.nodes * TREE_NODE_BYTES, 100000);
		cr_expect(cca_check(&w.m, &err), "%s", err.msg);
		world_end(&w);
	}
}
