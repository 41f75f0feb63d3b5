/* Random commands against the CCA model: invariants, refusals that change nothing, runs, lack of memory. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/arch/cca.h"
#include "tests/lib/cca_world.h"

#define LIVES    20
#define COMMANDS 400
#define POOL     ((uint64_t)128) /* granules that commands name */

struct random {
	uint64_t x;
};

static uint64_t next(struct random *r)
{
	r->x ^= r->x << 13;
	r->x ^= r->x >> 7;
	r->x ^= r->x << 17;
	return r->x;
}

static uint64_t below(struct random *r, uint64_t n)
{
	return next(r) % n;
}

/* CCA_SEED=n runs that seed again. */
static struct random seeded(void)
{
	const char *text = getenv("CCA_SEED");
	uint64_t seed = text ? strtoull(text, NULL, 0) : (uint64_t)time(NULL) * 2654435761u + 1;

	fprintf(stderr, "CCA_SEED=%" PRIu64 "\n", seed);
	return (struct random){ seed };
}

/* Mostly what makes sense, sometimes what does not. */
static uint64_t some_granule(struct random *r)
{
	uint64_t odd = below(r, 40);

	return odd == 0 ? G(below(r, POOL)) + 8 : odd == 1 ? G(WORLD_PAGES + below(r, 4)) : G(below(r, POOL));
}

static uint64_t some_rd(struct random *r)
{
	return below(r, 30) ? G(1 + below(r, 2)) : some_granule(r);
}

static uint64_t some_ipa(struct random *r)
{
	static const uint64_t at[] = { 0,
				       WORLD_BLOCK,
				       2 * WORLD_BLOCK,
				       0x40000000,
				       WORLD_NS - WORLD_BLOCK,
				       WORLD_NS,
				       WORLD_NS + WORLD_BLOCK,
				       2 * WORLD_NS - CCA_GRANULE };
	uint64_t ipa = at[below(r, PW_ARRAY_LEN(at))];

	if (below(r, 2))
		ipa += below(r, 4) * CCA_GRANULE;
	return below(r, 30) ? ipa : ipa + 8;
}

static uint64_t some_level(struct random *r)
{
	return below(r, 20) ? 1 + below(r, 3) : (uint64_t)below(r, 6) - 1;
}

static uint64_t some_arg(struct random *r, enum cca_arg a)
{
	switch (a) {
	case CCA_ARG_RD: return some_rd(r);
	case CCA_ARG_REC: return below(r, 4) ? G(40 + 20 * below(r, 2)) : some_granule(r);
	case CCA_ARG_ADDR:
	case CCA_ARG_DATA:
	case CCA_ARG_RTT: return some_granule(r);
	case CCA_ARG_IPA:
	case CCA_ARG_BASE:
	case CCA_ARG_TOP: return some_ipa(r);
	case CCA_ARG_SRC:
	case CCA_ARG_PARAMS_PTR:
	case CCA_ARG_RUN_PTR: return below(r, 20) ? WORLD_HOST : some_granule(r);
	case CCA_ARG_FLAGS: return below(r, 20) ? below(r, 2) : 2;
	case CCA_ARG_LEVEL: return some_level(r);
	case CCA_ARG_DESC: return below(r, 4) ? (uint64_t)0x40000000 | 0xd8 : next(r);
	case CCA_ARG_REQ:
	case CCA_ARG_INDEX:
	case CCA_ARG_COUNT: break;
	}
	return below(r, 2) * CCA_VERSION;
}

struct pages {
	struct cca_realm_params realm;
	struct cca_rec_params rec;
};

/* What tears down, ends a phase of life or only reads gives way to what pages go through. */
static enum cca_command some_command(struct random *r)
{
	static const enum cca_command pages[] = { CCA_DATA_CREATE,    CCA_DATA_CREATE_UNKNOWN, CCA_DATA_DESTROY,
						  CCA_RTT_INIT_RIPAS, CCA_RTT_SET_RIPAS,       CCA_REC_ENTER };
	static const bool rare[CCA_COMMAND_COUNT] = {
		[CCA_REALM_ACTIVATE] = true, [CCA_REALM_DESTROY] = true, [CCA_GRANULE_UNDELEGATE] = true,
		[CCA_REC_DESTROY] = true,    [CCA_RTT_DESTROY] = true,   [CCA_VERSION_CMD] = true,
		[CCA_FEATURES] = true,       [CCA_REC_AUX_COUNT] = true,
	};
	enum cca_command cmd = (enum cca_command)below(r, CCA_COMMAND_COUNT);

	return rare[cmd] && below(r, 8) ? pages[below(r, PW_ARRAY_LEN(pages))] : cmd;
}

/* Makes the parts of a call fit each other, as a host would. */
static void fit(struct random *r, struct cca_call *call)
{
	uint64_t level = call->arg[CCA_ARG_LEVEL], size;
	bool tables = call->cmd == CCA_RTT_CREATE || call->cmd == CCA_RTT_DESTROY || call->cmd == CCA_RTT_FOLD;

	if (below(r, 8) == 0)
		return;
	if (level >= 1 && level <= 3) {
		size = cca_level_size((unsigned)(tables ? level - 1 : level));
		call->arg[CCA_ARG_IPA] &= ~(size - 1);
		call->arg[CCA_ARG_DESC] &= ~(cca_level_size((unsigned)level) - 1) | 0xdc;
	}
	if (call->cmd == CCA_RTT_MAP_UNPROTECTED || call->cmd == CCA_RTT_UNMAP_UNPROTECTED)
		call->arg[CCA_ARG_IPA] |= WORLD_NS;
	if (call->cmd == CCA_DATA_CREATE || call->cmd == CCA_DATA_CREATE_UNKNOWN || call->cmd == CCA_DATA_DESTROY)
		call->arg[CCA_ARG_IPA] &= WORLD_NS - 1;
	if (call->arg[CCA_ARG_TOP] <= call->arg[CCA_ARG_BASE])
		call->arg[CCA_ARG_TOP] = call->arg[CCA_ARG_BASE] + (1 + below(r, 3)) * CCA_GRANULE;
}

/* SET_RIPAS at the cursor of a REC that has a request. */
static void fit_cursor(const struct world *w, struct random *r, struct cca_call *call)
{
	const struct cca_rec *rec = cca_rec_at(&w->m, call->arg[CCA_ARG_REC]);

	if (call->cmd != CCA_RTT_SET_RIPAS || !rec || !rec->ripas.open || below(r, 4) == 0)
		return;
	call->arg[CCA_ARG_RD] = rec->realm->rd << CCA_SHIFT;
	call->arg[CCA_ARG_BASE] = rec->ripas.cursor;
	call->arg[CCA_ARG_TOP] = rec->ripas.end;
}

static struct cca_call some_call(struct random *r, struct pages *p)
{
	enum cca_command cmd = some_command(r);
	const struct cca_command_row *row = cca_command_row(cmd);
	struct cca_call call;
	uint64_t x[5] = { 0 };

	for (unsigned i = 0; i < row->arg_count; i++)
		x[i] = some_arg(r, row->args[i]);
	call = world_call(cmd, x);
	fit(r, &call);
	p->realm = world_realm_params();
	p->realm.vmid = (uint16_t)below(r, 3);
	p->realm.rtt_base = G(16 + below(r, 4));
	p->rec = world_rec_params();
	p->rec.mpidr = below(r, 3);
	p->rec.flags = below(r, 2);
	p->rec.num_aux = 2;
	p->rec.aux[0] = G(41 + below(r, 8));
	p->rec.aux[1] = G(49 + below(r, 8));
	if (cmd == CCA_REALM_CREATE)
		call.realm = &p->realm;
	if (cmd == CCA_REC_CREATE)
		call.rec = &p->rec;
	return call;
}

/* Running RECs ask, look and leave. */
static void some_guest(struct world *w, struct random *r)
{
	struct cca_rec *rec = cca_rec_at(&w->m, G(40 + 20 * below(r, 2)));
	uint64_t base = below(r, 3) * WORLD_BLOCK + below(r, 3) * CCA_GRANULE;
	enum cca_access access;
	struct cca_rsi rsi;

	if (!rec || !rec->running)
		return;
	switch (below(r, 6)) {
	case 0:
	case 1:
	case 2:
		cr_assert_eq(cca_rsi_ipa_state_set(rec, base, base + (1 + below(r, 3)) * CCA_GRANULE, below(r, 3),
						   below(r, 2), &rsi),
			     PW_OK);
		break;
	case 3: cr_assert_eq(cca_rsi_ipa_state_get(rec, base, base + WORLD_BLOCK, &rsi), PW_OK); break;
	case 4: cr_assert_neq(cca_realm_access(rec, some_ipa(r), false, &access), PW_CONFLICT); break;
	default: cr_assert_eq(cca_rec_exit(rec), PW_OK); break;
	}
}

static void begin(struct world *w)
{
	struct cca_config config = {
		.base = WORLD_BASE, .granules = WORLD_PAGES, .features0 = CCA_FEATURES0, .rec_aux_count = 2
	};

	*w = (struct world){ 0 };
	cr_assert_eq(cca_init(&w->m, &w->mem, &config), PW_OK);
	cr_assert_eq(RUN(w, CCA_GRANULE_DELEGATE, POOL, G(0)), POOL);
}

static void begin_realm(struct world *w)
{
	begin(w);
	cr_assert_eq(RMI(w, CCA_REALM_CREATE, WORLD_RD, WORLD_HOST), CODE(CCA_SUCCESS, 0));
	cr_assert_eq(RMI(w, CCA_RTT_CREATE, WORLD_RD, G(20), 0, 2), CODE(CCA_SUCCESS, 0));
	cr_assert_eq(RMI(w, CCA_RTT_CREATE, WORLD_RD, G(21), 0, 3), CODE(CCA_SUCCESS, 0));
}

/* What holds between one state and the next, whatever the command (the model's own check sees one state alone). */
static void expect_monotonic(const struct world *w, uint64_t rec_index[2], uint64_t serial[2])
{
	for (uint64_t i = 0; i < 2; i++) {
		const struct cca_realm *r = cca_realm_at(&w->m, G(1 + i));

		cr_assert(!r || r->serial != serial[i] || r->rec_index >= rec_index[i], "rec_index went down");
		serial[i] = r ? r->serial : UINT64_MAX;
		rec_index[i] = r ? r->rec_index : 0;
	}
}

/* One command and something that a realm does; counts successes. */
static void one_step(struct world *w, struct random *r, uint64_t successes[CCA_COMMAND_COUNT])
{
	struct pages p;
	struct cca_call call = some_call(r, &p);
	const struct cca_realm *realm = cca_realm_at(&w->m, call.arg[CCA_ARG_RD]);
	uint64_t before = cca_digest(&w->m);
	struct pw_err err = { 0 };

	fit_cursor(w, r, &call);
	if (realm && below(r, 4))
		p.rec.mpidr = realm->rec_index & 15;
	cr_assert_eq(cca_rmi(&w->m, &call, &w->r), PW_OK);
	cr_assert(w->r.status == CCA_SUCCESS || cca_digest(&w->m) == before, "%s, refused, changed something",
		  cca_command_name(call.cmd));
	successes[call.cmd] += w->r.status == CCA_SUCCESS;
	some_guest(w, r);
	cr_assert(cca_check(&w->m, &err), "%s: %s", cca_command_name(call.cmd), err.msg);
}

/* Everything of both realms goes, pages before tables before realms. */
static void tear_down(struct world *w)
{
	for (uint64_t g = 0; g < POOL; g++) {
		struct cca_granule_view v = cca_granule_at(&w->m, G(g));
		struct cca_rec *rec = cca_rec_at(&w->m, G(g));

		if (rec && rec->running)
			cr_assert_eq(cca_rec_exit(rec), PW_OK);
		if (v.state == CCA_DATA)
			cr_assert_eq(RMI(w, CCA_DATA_DESTROY, v.realm->rd << CCA_SHIFT, v.ipa), CODE(CCA_SUCCESS, 0));
		if (v.state == CCA_REC)
			cr_assert_eq(RMI(w, CCA_REC_DESTROY, G(g)), CODE(CCA_SUCCESS, 0));
	}
	for (unsigned level = 3; level >= 1; level--)
		for (uint64_t g = 0; g < POOL; g++) {
			struct cca_granule_view v = cca_granule_at(&w->m, G(g));

			if (v.state == CCA_RTT && v.level == level && level > v.realm->start)
				cr_assert_eq(RMI(w, CCA_RTT_DESTROY, v.realm->rd << CCA_SHIFT, v.ipa, level),
					     CODE(CCA_SUCCESS, 0));
		}
	for (uint64_t g = 0; g < POOL; g++)
		if (cca_realm_at(&w->m, G(g)))
			cr_assert_eq(RMI(w, CCA_REALM_DESTROY, G(g)), CODE(CCA_SUCCESS, 0));
	for (uint64_t g = 0; g < POOL; g++)
		cr_assert_leq(cca_granule_state(&w->m, G(g)), CCA_DELEGATED, "granule %" PRIu64 " is left over", g);
}

Test(cca_property, random_commands_keep_the_invariants, .timeout = 120)
{
	struct random r = seeded();
	uint64_t successes[CCA_COMMAND_COUNT] = { 0 };
	unsigned succeeded = 0;

	for (unsigned life = 0; life < LIVES; life++) {
		uint64_t rec_index[2] = { 0 }, serial[2] = { UINT64_MAX, UINT64_MAX };
		struct world w;

		begin_realm(&w);
		for (unsigned i = 0; i < COMMANDS; i++) {
			one_step(&w, &r, successes);
			expect_monotonic(&w, rec_index, serial);
			if (i == COMMANDS / 2) {
				(void)RMI(&w, CCA_REALM_ACTIVATE, G(1));
				(void)RMI(&w, CCA_REALM_ACTIVATE, G(2));
			}
		}
		tear_down(&w);
		world_end(&w);
	}
	for (int c = 0; c < CCA_COMMAND_COUNT; c++)
		succeeded += successes[c] > 0;
	cr_expect_geq(succeeded, CCA_COMMAND_COUNT - 4, "%u of %d commands ever succeeded", succeeded,
		      CCA_COMMAND_COUNT);
}

/* A run is what its commands are one by one. */
static bool has_runs(enum cca_command c)
{
	return c == CCA_GRANULE_DELEGATE || c == CCA_GRANULE_UNDELEGATE || c == CCA_DATA_CREATE ||
	       c == CCA_DATA_CREATE_UNKNOWN || c == CCA_DATA_DESTROY || c == CCA_RTT_CREATE || c == CCA_RTT_DESTROY ||
	       c == CCA_RTT_FOLD;
}

static uint64_t one_by_one(struct world *w, struct cca_call call, uint64_t count)
{
	bool tables = call.cmd == CCA_RTT_CREATE || call.cmd == CCA_RTT_DESTROY || call.cmd == CCA_RTT_FOLD;
	uint64_t level = call.arg[CCA_ARG_LEVEL];

	for (uint64_t i = 0; i < count; i++) {
		cr_assert_eq(cca_rmi(&w->m, &call, &w->r), PW_OK);
		if (w->r.status != CCA_SUCCESS)
			return i;
		call.arg[CCA_ARG_IPA] += tables ? cca_level_size((unsigned)level - 1) : CCA_GRANULE;
		call.arg[CCA_ARG_ADDR] += CCA_GRANULE;
		call.arg[CCA_ARG_DATA] += CCA_GRANULE;
		call.arg[CCA_ARG_RTT] += CCA_GRANULE;
	}
	return count;
}

static uint64_t some_count(struct random *r)
{
	static const uint64_t counts[] = { 1, 2, 3, 7, 64, 511, 512, 513, 1024 };

	return counts[below(r, PW_ARRAY_LEN(counts))];
}

/* A command that has runs, mostly from where runs are long. */
static struct cca_call some_run(struct random *r, struct pages *p)
{
	struct cca_call call = some_call(r, p);
	static const enum cca_command with_runs[] = {
		CCA_GRANULE_DELEGATE, CCA_GRANULE_UNDELEGATE, CCA_DATA_CREATE_UNKNOWN, CCA_DATA_DESTROY, CCA_RTT_CREATE,
		CCA_RTT_DESTROY,      CCA_RTT_FOLD,           CCA_DATA_CREATE
	};
	static const uint8_t source[CCA_GRANULE] = { 3 };

	if (below(r, 3)) {
		call.cmd = with_runs[below(r, PW_ARRAY_LEN(with_runs))];
		call.arg[CCA_ARG_RD] = WORLD_RD;
		call.arg[CCA_ARG_LEVEL] = 2 + below(r, 2);
		call.arg[CCA_ARG_IPA] = below(r, 3) * WORLD_BLOCK;
	}
	if (call.cmd == CCA_DATA_CREATE) {
		call.arg[CCA_ARG_SRC] = WORLD_HOST;
		call.arg[CCA_ARG_FLAGS] = below(r, 2);
		call.source = source;
	}
	if (below(r, 3) && call.cmd != CCA_RTT_CREATE)
		call.arg[CCA_ARG_ADDR] = call.arg[CCA_ARG_DATA] = G(1024 + 512 * below(r, 4));
	return call;
}

/* Two thousand granules more, delegated, for long runs. */
static void begin_runs(struct world *w)
{
	begin_realm(w);
	cr_assert_eq(RUN(w, CCA_GRANULE_DELEGATE, 2048, G(1024)), 2048);
}

static void expect_same(const struct world *a, const struct world *b, const char *name)
{
	cr_assert(a->r.status == b->r.status && a->r.index == b->r.index && a->r.valid == b->r.valid, "%s", name);
	for (int o = 0; o < CCA_OUT_COUNT; o++)
		cr_assert(!(a->r.valid >> o & 1) || a->r.out[o] == b->r.out[o], "%s: %s", name,
			  cca_out_name((enum cca_out)o));
	cr_assert_eq(cca_digest(&a->m), cca_digest(&b->m), "%s", name);
}

Test(cca_property, runs_are_their_commands_one_by_one, .timeout = 120)
{
	struct random r = seeded();
	uint64_t in_runs = 0;
	struct world a, b;

	begin_runs(&a);
	begin_runs(&b);
	for (unsigned i = 0; i < 3000; i++) {
		struct pages p;
		struct cca_call call = some_run(&r, &p);
		bool tables = call.cmd == CCA_RTT_CREATE || call.cmd == CCA_RTT_DESTROY || call.cmd == CCA_RTT_FOLD;
		uint64_t count = tables ? 1 + below(&r, 4) : some_count(&r), done;

		if (!has_runs(call.cmd)) {
			cr_assert_eq(cca_rmi(&a.m, &call, &a.r), PW_OK);
			cr_assert_eq(cca_rmi(&b.m, &call, &b.r), PW_OK);
		} else {
			cr_assert_eq(cca_rmi_run(&a.m, &call, count, &done, &a.r), PW_OK);
			cr_assert_eq(one_by_one(&b, call, count), done, "%u: %s", i, cca_command_name(call.cmd));
			in_runs += done;
		}
		expect_same(&a, &b, cca_command_name(call.cmd));
	}
	cr_expect_gt(in_runs, 5000, "only %" PRIu64 " commands in runs", in_runs);
	world_end(&a);
	world_end(&b);
}

/* Where a run must end although its pages and granules would go on. */
Test(cca_property, runs_end_where_their_commands_do)
{
	static const struct {
		enum cca_command cmd;
		uint64_t x[5], count, done;
	} cases[] = {
		{ CCA_DATA_CREATE_UNKNOWN, { WORLD_RD, G(1024), 0 }, 1024, 512 },          /* no table behind */
		{ CCA_RTT_CREATE, { WORLD_RD, G(22), WORLD_BLOCK, 3 }, 3, 3 },             /* consecutive tables */
		{ CCA_DATA_CREATE_UNKNOWN, { WORLD_RD, G(1536), WORLD_BLOCK }, 700, 700 }, /* across tables */
		{ CCA_RTT_FOLD, { WORLD_RD, 0, 3 }, 4, 2 },                                /* the third is not alike */
		{ CCA_RTT_DESTROY, { WORLD_RD, 2 * WORLD_BLOCK, 3 }, 2, 0 },               /* live */
		{ CCA_RTT_DESTROY, { WORLD_RD, 3 * WORLD_BLOCK, 3 }, 2, 1 },               /* no second one */
		{ CCA_DATA_DESTROY, { WORLD_RD, 2 * WORLD_BLOCK }, 700, 188 },             /* no page behind */
		{ CCA_GRANULE_UNDELEGATE, { G(2224) }, 1000, 848 },                        /* not delegated behind */
		{ CCA_RTT_CREATE, { WORLD_RD, G(30), WORLD_NS, 2 }, 5, 4 },                /* past the space */
		{ CCA_RTT_CREATE, { WORLD_RD, G(40), WORLD_NS - WORLD_BLOCK, 3 }, 3, 0 },  /* no parent */
		{ CCA_RTT_CREATE, { WORLD_RD, G(40), 2 * WORLD_NS - WORLD_BLOCK, 3 }, 3, 1 },
		{ CCA_RTT_CREATE, { WORLD_RD, G(50), 0x40000000 - WORLD_BLOCK, 3 }, 3, 1 }, /* no parent behind */
		{ CCA_RTT_CREATE, { WORLD_RD, G(126), 8 * WORLD_BLOCK, 3 }, 4, 2 },         /* no granule behind */
		{ CCA_RTT_DESTROY, { WORLD_RD, WORLD_NS, 2 }, 9, 3 },                       /* one with a table */
	};
	struct world a, b;

	begin_runs(&a);
	begin_runs(&b);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct cca_call call = world_call(cases[i].cmd, cases[i].x);
		uint64_t done;

		cr_assert_eq(cca_rmi_run(&a.m, &call, cases[i].count, &done, &a.r), PW_OK);
		cr_expect_eq(done, cases[i].done, "case %zu: %" PRIu64, i, done);
		cr_expect_eq(one_by_one(&b, call, cases[i].count), cases[i].done, "case %zu", i);
		expect_same(&a, &b, cca_command_name(call.cmd));
	}
	world_end(&a);
	world_end(&b);
}

Test(cca_property, runs_of_other_commands_are_refused)
{
	struct cca_call call = world_call(CCA_REALM_ACTIVATE, (const uint64_t[5]){ 0 });
	struct world w;
	uint64_t done;

	begin(&w);
	cr_expect_eq(cca_rmi_run(&w.m, &call, 1, &done, &w.r), PW_INVALID);
	call.cmd = CCA_GRANULE_DELEGATE;
	cr_expect_eq(cca_rmi_run(&w.m, &call, UINT64_MAX, &done, &w.r), PW_INVALID);
	world_end(&w);
}

/* The n-th allocation fails: nothing has changed, and the same command then succeeds. */
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

#define AT_ONCE(cmd, ...)           \
	{                           \
		cmd,                \
		{                   \
			__VA_ARGS__ \
		}                   \
	}
static const struct {
	enum cca_command cmd;
	uint64_t x[5];
} story[] = {
	AT_ONCE(CCA_REALM_CREATE, WORLD_RD, WORLD_HOST),
	AT_ONCE(CCA_RTT_CREATE, WORLD_RD, G(20), 0, 2),
	AT_ONCE(CCA_RTT_CREATE, WORLD_RD, G(21), 0, 3),
	AT_ONCE(CCA_RTT_CREATE, WORLD_RD, G(22), WORLD_NS, 2),
	AT_ONCE(CCA_RTT_INIT_RIPAS, WORLD_RD, 0, 0x4000),
	AT_ONCE(CCA_DATA_CREATE, WORLD_RD, G(30), 0x1000, WORLD_HOST, 1),
	AT_ONCE(CCA_DATA_CREATE_UNKNOWN, WORLD_RD, G(35), 0x8000),
	AT_ONCE(CCA_RTT_MAP_UNPROTECTED, WORLD_RD, WORLD_NS + WORLD_BLOCK, 2, 0x402000d8),
	AT_ONCE(CCA_REC_CREATE, WORLD_RD, WORLD_REC, WORLD_HOST),
	AT_ONCE(CCA_DATA_DESTROY, WORLD_RD, 0x1000),
	AT_ONCE(CCA_DATA_DESTROY, WORLD_RD, 0x8000),
	AT_ONCE(CCA_RTT_DESTROY, WORLD_RD, 0, 3),
	AT_ONCE(CCA_REC_DESTROY, WORLD_REC),
	AT_ONCE(CCA_GRANULE_UNDELEGATE, G(30)),
};

static void tell_story(struct world *w, struct faulty *f)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(story); i++) {
		struct cca_call call = world_call(story[i].cmd, story[i].x);
		struct cca_realm_params realm = world_realm_params();
		struct cca_rec_params rec = world_rec_params();
		uint64_t before = cca_digest(&w->m);
		struct pw_err err = { 0 };
		enum pw_status st;

		rec.num_aux = 2;
		if (call.cmd == CCA_REALM_CREATE)
			call.realm = &realm;
		if (call.cmd == CCA_REC_CREATE)
			call.rec = &rec;
		arena_trim_to(&w->m.arena, 0);
		st = cca_rmi(&w->m, &call, &w->r);
		if (st == PW_NO_MEMORY) {
			cr_assert_eq(cca_digest(&w->m), before, "%s", cca_command_name(call.cmd));
			cr_assert(cca_check(&w->m, &err), "%s", err.msg);
			st = cca_rmi(&w->m, &call, &w->r);
		}
		cr_assert(st == PW_OK && w->r.status == CCA_SUCCESS, "%s, fault %" PRIu64, cca_command_name(call.cmd),
			  f->fail_at);
	}
}

Test(cca_property, no_memory_changes_nothing, .timeout = 120)
{
	struct faulty f = { 0 };

	for (f.fail_at = 1; f.fail_at == 1 || f.calls >= f.fail_at; f.fail_at++) {
		struct world w;

		begin(&w);
		w.m.mem->alloc = faulty_alloc;
		w.m.mem->free = faulty_free;
		w.m.mem->ctx = &f;
		f.calls = 0;
		tell_story(&w, &f);
		world_end(&w);
	}
	cr_expect_gt(f.fail_at, 100);
}
