/* Random operations on the SEV-SNP model, failing allocations, and what large guests cost. */
#include "engine/arch/snp.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <time.h>

#include "tests/lib/snp_world.h"

static uint64_t next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

static uint64_t pick(uint64_t *x, const uint64_t *from, size_t n)
{
	return from[next(x) % n];
}

static const uint64_t frames[] = { 256,  257,  600,  601,  700,  701,  702,  1024,
				   1025, 1535, 1536, 1537, 2050, 3584, 4095, 5000 };

#define FRAME(x) pick(x, frames, PW_ARRAY_LEN(frames))

static struct snp_rmpupdate random_update(uint64_t *x)
{
	return (struct snp_rmpupdate){
		.pfn = FRAME(x),
		.assigned = next(x) % 4 != 0,
		.asid = (unsigned)(next(x) % 3 ? 5 + next(x) % 2 : 0),
		.gfn = next(x) % 2 ? 512 : 0,
		.size = next(x) % 4 ? SNP_4K : SNP_2M,
		.immutable = next(x) % 2,
	};
}

static struct snp_cmd random_command(uint64_t *x)
{
	return (struct snp_cmd){
		.op = (enum snp_command)(next(x) % SNP_COMMAND_COUNT),
		.reserved = next(x) % 16 == 0,
		.context = next(x) % 8 ? 256 + next(x) % 2 : FRAME(x),
		.pfn = FRAME(x),
		.dst = FRAME(x),
		.size = next(x) % 4 ? SNP_4K : SNP_2M,
		.policy = SNP_W_POLICY,
		.asid = (unsigned)(5 + next(x) % 2),
		.type = (unsigned)(next(x) % 7),
		.imi = next(x) % 2,
		.md = 600 + next(x) % 2,
		.offset = (uint32_t)(next(x) % 3 * 64),
		.root = next(x) % 2,
		.in_place = next(x) % 4 == 0,
		.iommu = next(x) % 2,
	};
}

/* One random step. True if it was refused. */
static bool random_step(struct snp *m, uint64_t *x, enum pw_status *st)
{
	struct snp_rmpupdate u = random_update(x);
	struct snp_cmd c = random_command(x);
	struct snp_target t = { .asid = u.asid, .gfn = u.gfn, .pfn = u.pfn, .size = u.size };
	struct snp_psmash p = { .pfn = u.pfn };
	enum snp_status status = SNP_SUCCESS;
	enum snp_code code = SNP_OK;
	bool unchanged = false;

	switch (next(x) % 11) {
	case 0:
	case 1:
	case 2: *st = snp_rmpupdate(m, &u, &code); break;
	case 3: *st = snp_psmash(m, &p, &code); break;
	case 4: *st = snp_pvalidate(m, &t, next(x) % 2, &code, &unchanged); break;
	case 5: *st = snp_rmpadjust(m, &t, (unsigned)(next(x) % 5), (uint8_t)(next(x) % 32), next(x) % 2, &code); break;
	case 6:
		*st = PW_OK;
		snp_wbinvd(m);
		break;
	default: *st = snp_command(m, &c, &status); break;
	}
	return code != SNP_OK || unchanged || status != SNP_SUCCESS;
}

Test(snp_random, invariants_hold_and_refusals_change_nothing)
{
	uint64_t seed = getenv("SNP_SEED") ? strtoull(getenv("SNP_SEED"), NULL, 0) : (uint64_t)time(NULL) | 1, x = seed;
	unsigned refused = 0, steps = 6000;
	struct snp_world w;
	enum pw_status st;

	snp_world_open(&w);
	for (unsigned i = 0; i < steps; i++) {
		uint64_t before = snp_digest(&w.m);
		bool no = random_step(&w.m, &x, &st);

		cr_assert_eq(st, PW_OK);
		cr_assert(snp_check(&w.m), "seed %llu, step %u", (unsigned long long)seed, i);
		if (no)
			cr_assert_eq(snp_digest(&w.m), before, "seed %llu, step %u", (unsigned long long)seed, i);
		refused += no;
	}
	cr_assert(refused > 100 && refused < steps - 100, "%u of %u refused", refused, steps);
	snp_world_close(&w);
}

/* What is heard of the RMP is all that happens to it: who only listens always knows every entry. */

struct listener {
	struct snp_entry known[SNP_W_FRAMES]; /* state is that of `states` */
	enum snp_state states[SNP_W_FRAMES];
	unsigned heard, moves[SNP_STATE_COUNT][SNP_STATE_COUNT];
	const char *broken;
};

static void listen(void *ctx, const struct snp_transition *t)
{
	struct listener *l = ctx;

	l->heard++;
	l->moves[t->from][t->to]++;
	for (uint64_t i = 0; i < t->count; i++) {
		struct snp_entry *e = &l->known[t->pfn + i];

		if (l->states[t->pfn + i] != t->from || e->asid != t->from_asid)
			l->broken = t->op;
		if (t->from_asid && e->gfn != t->from_gfn + i)
			l->broken = t->op;
		l->states[t->pfn + i] = t->to;
		e->asid = t->to_asid;
		e->gfn = t->to_asid ? t->to_gfn + i : 0;
	}
}

/* False: a frame is not what the listener thinks. */
static bool knows(const struct listener *l, const struct snp *m)
{
	struct snp_run run;

	for (uint64_t at = 0; at < SNP_W_FRAMES; at += run.count) {
		run = snp_run_at(m, at, SNP_W_FRAMES);
		for (uint64_t i = 0; i < run.count; i++)
			if (l->states[at + i] != run.state)
				return false;
	}
	for (uint64_t pfn = 0; pfn < SNP_W_FRAMES; pfn++) {
		struct snp_entry e;
		enum snp_state s = snp_read(m, pfn, &e);

		if (l->states[pfn] != s || l->known[pfn].asid != e.asid)
			return false;
		if (e.asid && l->known[pfn].gfn != e.gfn)
			return false;
	}
	return true;
}

static bool hears_nothing(struct snp *m, uint64_t *x, struct listener *l, enum pw_status *st)
{
	unsigned before = l->heard;

	return !random_step(m, x, st) || l->heard == before;
}

Test(snp_random, who_listens_knows_the_rmp_without_reading_it)
{
	uint64_t seed = getenv("SNP_SEED") ? strtoull(getenv("SNP_SEED"), NULL, 0) : (uint64_t)time(NULL) | 1, x = seed;
	static struct listener l;
	struct snp_world w = { 0 };
	const struct snp_config config = { .frames = SNP_W_FRAMES, .rmp = { 2048, 512 }, .max_asid = 15, .smt = true };
	unsigned kinds = 0;
	enum pw_status st;

	cr_assert_eq(snp_init(&w.m, &w.mem, &config), PW_OK);
	w.m.trace = listen;
	w.m.trace_ctx = &l;
	cr_assert_eq(snp_w_do(&w, &(struct snp_cmd){ .op = SNP_CMD_INIT }), SNP_SUCCESS);
	cr_assert(knows(&l, &w.m) && l.moves[SNP_HYPERVISOR][SNP_FIRMWARE] == 1, "the RMP's own frames");
	for (unsigned i = 0; i < 6000; i++) {
		cr_assert(hears_nothing(&w.m, &x, &l, &st), "seed %llu, step %u: a refused call",
			  (unsigned long long)seed, i);
		cr_assert_eq(st, PW_OK);
		cr_assert_null(l.broken, "seed %llu, step %u: %s", (unsigned long long)seed, i, l.broken);
		cr_assert(knows(&l, &w.m), "seed %llu, step %u", (unsigned long long)seed, i);
	}
	for (int from = 0; from < SNP_STATE_COUNT; from++)
		for (int to = 0; to < SNP_STATE_COUNT; to++)
			kinds += l.moves[from][to] != 0;
	cr_expect_gt(kinds, 15);
	snp_world_close(&w);
}

/* Failing allocations. */

struct rationed {
	long left; /* allocations until one fails; below 0: none does */
};

static void *ration_alloc(void *ctx, size_t size)
{
	struct rationed *r = ctx;

	return r->left-- == 0 ? NULL : malloc(size);
}

static void ration_free(void *ctx, void *p)
{
	(void)ctx;
	free(p);
}

/* The same sequence with the n-th allocation failing: the step says so, nothing has changed, and a retry succeeds. */
static bool run_rationed(long n, uint64_t seed)
{
	struct rationed ration = { .left = -1 };
	struct pw_mem mem = { .alloc = ration_alloc, .free = ration_free, .ctx = &ration };
	const struct snp_config config = { .frames = SNP_W_FRAMES, .rmp = { 2048, 512 }, .max_asid = 15, .smt = true };
	const struct snp_cmd init = { .op = SNP_CMD_INIT };
	enum snp_status status;
	enum pw_status st;
	struct snp m;
	bool failed = false;

	cr_assert_eq(snp_init(&m, &mem, &config), PW_OK);
	ration.left = n;
	for (unsigned i = 0; i < 600; i++) {
		uint64_t saved = seed, before = snp_digest(&m);

		if (i == 0)
			st = snp_command(&m, &init, &status);
		else
			random_step(&m, &seed, &st);
		if (st == PW_OK)
			continue;
		failed = true;
		cr_assert_eq(st, PW_NO_MEMORY);
		cr_assert_eq(snp_digest(&m), before, "allocation %ld, step %u", n, i);
		cr_assert(snp_check(&m));
		seed = saved;
		i--;
	}
	cr_assert(snp_check(&m));
	snp_release(&m);
	cr_assert_eq(mem.used, 0);
	return failed;
}

Test(snp_random, a_failed_allocation_changes_nothing_and_a_retry_succeeds)
{
	long n = 0;

	while (run_rationed(n, 88172645463325252))
		n++;
	cr_assert(n > 20, "%ld allocations failed", n);
}

Test(snp_random, a_launch_without_memory_undoes_itself)
{
	struct snp_launch_page pages[64];
	bool failed = true;

	for (size_t i = 0; i < PW_ARRAY_LEN(pages); i++)
		pages[i] = (struct snp_launch_page){ .pfn = 64 * i + 3, .gfn = i, .type = SNP_TYPE_UNMEASURED };
	for (long n = 0; failed; n++) {
		struct rationed ration = { .left = -1 };
		const struct snp_config config = { .frames = (uint64_t)1 << 30, .max_asid = 15, .smt = true };
		struct snp_world w = { .mem = { .alloc = ration_alloc, .free = ration_free, .ctx = &ration } };
		enum snp_status status;
		enum pw_status st;
		size_t done;

		cr_assert_eq(snp_init(&w.m, &w.mem, &config), PW_OK);
		cr_assert_eq(snp_w_do(&w, &(struct snp_cmd){ .op = SNP_CMD_INIT }), SNP_SUCCESS);
		snp_w_flush(&w);
		snp_w_launch(&w, 1, 5);
		for (size_t i = 0; i < PW_ARRAY_LEN(pages); i++)
			pages[i].pfn = (i + 1) << 18;
		ration.left = n;
		st = snp_launch_pages(&w.m, 1, pages, PW_ARRAY_LEN(pages), &done, &status);
		failed = st != PW_OK;
		ration.left = -1;
		cr_assert_eq(w.m.pages[5], failed ? 0 : PW_ARRAY_LEN(pages));
		cr_assert(snp_check(&w.m));
		snp_release(&w.m);
		cr_assert_eq(w.mem.used, 0);
	}
}

/* What large guests cost. */

Test(snp_random, a_tib_of_2m_pages_costs_a_few_nodes)
{
	const uint64_t tib = (uint64_t)1 << 28;
	const struct snp_config config = { .frames = 2 * tib, .max_asid = 15, .smt = true };
	struct snp_world w = { 0 };
	struct snp_run run;
	bool unchanged;

	cr_assert_eq(snp_init(&w.m, &w.mem, &config), PW_OK);
	for (uint64_t pfn = 0; pfn < tib; pfn += SNP_LARGE)
		cr_assert_eq(snp_w_update(&w, tib + pfn, 5, pfn, SNP_2M, false), SNP_OK);
	for (uint64_t pfn = 0; pfn < tib; pfn += SNP_LARGE)
		cr_assert_eq(snp_w_validate(&w, tib + pfn, 5, pfn, SNP_2M, true, &unchanged), SNP_OK);
	cr_assert_eq(w.m.pages[5], tib);
	run = snp_run_at(&w.m, tib, 2 * tib);
	cr_assert(run.count == tib && run.state == SNP_GUEST_VALID && run.size == SNP_2M);
	arena_trim(&w.m.arena);
	cr_assert(w.mem.used < (size_t)128 << 10, "%zu bytes", w.mem.used);
	for (uint64_t pfn = 0; pfn < tib; pfn += SNP_LARGE)
		cr_assert_eq(snp_w_share(&w, tib + pfn, SNP_2M), SNP_OK);
	cr_assert_eq(snp_run_at(&w.m, 0, 2 * tib).count, 2 * tib);
	snp_world_close(&w);
}
