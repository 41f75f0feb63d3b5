/* How fast the CCA model is on one core (its CPU time), and how much memory large realms take. Prints name, value,
 * unit.
 */
#include <stdio.h>

#include <stdlib.h>

#include "tests/bench/bench.h"

#include "engine/arch/cca.h"

#define BASE   ((uint64_t)1 << 40)
#define GIB    ((uint64_t)1 << 30)
#define MIB2   ((uint64_t)1 << 21)
#define PAGES  ((uint64_t)1 << 20) /* of the page by page part: 4 GiB */
#define TIB    ((uint64_t)1 << 40)
#define BLOCKS (TIB / GIB)

struct machine {
	struct pw_mem mem;
	struct cca m;
	struct cca_result r;
	uint64_t commands;
};

static void die(const struct machine *b, const struct cca_call *call)
{
	struct pw_err err = { 0 };

	cca_explain(&b->m, call, &b->r, &err);
	fprintf(stderr, "bench_cca: %s\n", err.msg);
	exit(1);
}

static struct cca_call call_of(enum cca_command cmd, const uint64_t x[5])
{
	const struct cca_command_row *row = cca_command_row(cmd);
	struct cca_call call = { .cmd = cmd };

	for (unsigned i = 0; i < row->arg_count; i++)
		call.arg[row->args[i]] = x[i];
	return call;
}

static void run(struct machine *b, uint64_t count, enum cca_command cmd, const uint64_t x[5])
{
	struct cca_call call = call_of(cmd, x);
	uint64_t done;

	if (cca_rmi_run(&b->m, &call, count, &done, &b->r) != PW_OK || done != count)
		die(b, &call);
	b->commands += count;
}

static void one(struct machine *b, enum cca_command cmd, const uint64_t x[5])
{
	struct cca_call call = call_of(cmd, x);

	if (cca_rmi(&b->m, &call, &b->r) != PW_OK || b->r.status != CCA_SUCCESS)
		die(b, &call);
	b->commands++;
}
#define RUN(b, count, cmd, ...) run(b, count, cmd, (const uint64_t[5]){ __VA_ARGS__ })
#define ONE(b, cmd, ...)        one(b, cmd, (const uint64_t[5]){ __VA_ARGS__ })

/* Memory: [BASE, BASE + 1 GiB) for the RMM's own granules, the guest's behind it. */
static void begin(struct machine *b, uint64_t guest, uint64_t width)
{
	struct cca_config config = { .base = BASE,
				     .granules = (guest + GIB) / CCA_GRANULE,
				     .features0 = CCA_FEATURES0 };
	struct cca_realm_params p = { .s2sz = width, .num_bps = 1, .num_wps = 1, .rtt_num_start = 1 };
	struct cca_call create = call_of(CCA_REALM_CREATE, (const uint64_t[5]){ BASE, BASE + 16 * CCA_GRANULE });

	*b = (struct machine){ 0 };
	p.rtt_base = BASE + CCA_GRANULE;
	create.realm = &p;
	if (cca_init(&b->m, &b->mem, &config) != PW_OK)
		exit(1);
	RUN(b, config.granules, CCA_GRANULE_DELEGATE, BASE);
	ONE(b, CCA_GRANULE_UNDELEGATE, BASE + 16 * CCA_GRANULE);
	if (cca_rmi(&b->m, &create, &b->r) != PW_OK || b->r.status != CCA_SUCCESS)
		die(b, &create);
}

static void end(struct machine *b)
{
	cca_release(&b->m);
}

#define L1 (BASE + 32 * CCA_GRANULE)
#define L2 (BASE + 64 * CCA_GRANULE)
#define L3 (BASE + 4096 * CCA_GRANULE)

/* Pages in random order, each created, read and destroyed by a command of its own. */
static void page_by_page(void)
{
	uint64_t x = 88172645463325252, rounds = 2000000;
	struct machine b;
	double start;

	begin(&b, PAGES * CCA_GRANULE, 48);
	RUN(&b, 1, CCA_RTT_CREATE, BASE, L1, 0, 1);
	RUN(&b, 4, CCA_RTT_CREATE, BASE, L2, 0, 2);
	RUN(&b, PAGES / 512, CCA_RTT_CREATE, BASE, L3, 0, 3);
	start = now_s();
	for (uint64_t i = 0; i < PAGES; i++)
		ONE(&b, CCA_DATA_CREATE_UNKNOWN, BASE, BASE + GIB + i * CCA_GRANULE, (i ^ 1) * CCA_GRANULE);
	report("cca_data_create_unknown", (double)PAGES / (now_s() - start) * 1e-6, "Mops/s");
	report("cca_bytes_per_page_shattered", (double)b.mem.used / (double)PAGES, "bytes");
	start = now_s();
	for (uint64_t i = 0; i < rounds; i++)
		ONE(&b, CCA_RTT_READ_ENTRY, BASE, next(&x) % PAGES * CCA_GRANULE, 3);
	report("cca_rtt_read_entry_random", (double)rounds / (now_s() - start) * 1e-6, "Mops/s");
	start = now_s();
	for (uint64_t i = 0; i < rounds / 2; i++) {
		uint64_t ipa = next(&x) % PAGES * CCA_GRANULE;

		ONE(&b, CCA_DATA_DESTROY, BASE, ipa);
		ONE(&b, CCA_DATA_CREATE_UNKNOWN, BASE, b.r.out[CCA_OUT_DATA], ipa);
	}
	report("cca_destroy_create_random", (double)rounds / (now_s() - start) * 1e-6, "Mops/s");
	start = now_s();
	for (uint64_t i = 0; i < rounds / 2; i++) {
		uint64_t g = BASE + (L3 - BASE) + (PAGES / 512 + next(&x) % 100000) * CCA_GRANULE;

		ONE(&b, CCA_GRANULE_UNDELEGATE, g);
		ONE(&b, CCA_GRANULE_DELEGATE, g);
	}
	report("cca_granule_shatter_and_heal", (double)rounds / (now_s() - start) * 1e-6, "Mops/s");
	start = now_s();
	for (uint64_t i = 0; i < 100000; i++)
		ONE(&b, CCA_GRANULE_UNDELEGATE, L3 + (PAGES / 512 + i) * CCA_GRANULE);
	for (uint64_t i = 0; i < 100000; i++)
		ONE(&b, CCA_GRANULE_DELEGATE, L3 + (PAGES / 512 + i) * CCA_GRANULE);
	report("cca_granule_delegate", 200000 / (now_s() - start) * 1e-6, "Mops/s");
	start = now_s();
	for (uint64_t i = 0; i < rounds / 2; i++) {
		uint64_t ipa = (uint64_t)1 << 47;

		ONE(&b, CCA_RTT_CREATE, BASE, L2 + 100 * CCA_GRANULE, ipa, 1);
		ONE(&b, CCA_RTT_FOLD, BASE, ipa, 1);
	}
	report("cca_unfold_fold", (double)rounds / (now_s() - start) * 1e-6, "Mops/s");
	end(&b);
}

/* The measured way: each page hashed into the RIM. */
static void measured(void)
{
	static const uint8_t source[CCA_GRANULE] = { 1 };
	uint64_t pages = 100000;
	struct machine b;
	double start;

	begin(&b, PAGES * CCA_GRANULE, 48);
	RUN(&b, 1, CCA_RTT_CREATE, BASE, L1, 0, 1);
	RUN(&b, 1, CCA_RTT_CREATE, BASE, L2, 0, 2);
	RUN(&b, 512, CCA_RTT_CREATE, BASE, L3, 0, 3);
	start = now_s();
	for (uint64_t i = 0; i < pages; i++) {
		struct cca_call call =
			call_of(CCA_DATA_CREATE, (const uint64_t[5]){ BASE, BASE + GIB + i * CCA_GRANULE,
								      i * CCA_GRANULE, BASE + 16 * CCA_GRANULE, 0 });

		call.source = source;
		if (cca_rmi(&b.m, &call, &b.r) != PW_OK || b.r.status != CCA_SUCCESS)
			die(&b, &call);
	}
	report("cca_data_create_sha256_extend", (double)pages / (now_s() - start) * 1e-6, "Mops/s");
	end(&b);
}

/* 1 TiB of guest: built of 1 GiB blocks, every GiB's blocks unfolded and half of its pages converted, torn down. */
static void build(struct machine *b)
{
	RUN(b, 2, CCA_RTT_CREATE, BASE, L1, 0, 1);
	for (uint64_t i = 0; i < BLOCKS; i++) {
		ONE(b, CCA_RTT_CREATE, BASE, L2, i * GIB, 2);
		RUN(b, 512, CCA_RTT_CREATE, BASE, L3, i * GIB, 3);
		RUN(b, GIB / CCA_GRANULE, CCA_DATA_CREATE_UNKNOWN, BASE, BASE + GIB + i * GIB, i * GIB);
		RUN(b, 512, CCA_RTT_FOLD, BASE, i * GIB, 3);
		ONE(b, CCA_RTT_FOLD, BASE, i * GIB, 2);
	}
}

static void convert(struct machine *b)
{
	uint64_t ns = (uint64_t)1 << 47, block;

	RUN(b, 2, CCA_RTT_CREATE, BASE, L1 + 8 * CCA_GRANULE, ns, 1);
	for (uint64_t i = 0; i < BLOCKS; i++) {
		ONE(b, CCA_RTT_CREATE, BASE, L2 + i * CCA_GRANULE, i * GIB, 2);
		block = i * GIB + i % 512 * MIB2;
		ONE(b, CCA_RTT_CREATE, BASE, L3, block, 3);
		RUN(b, 512, CCA_DATA_DESTROY, BASE, block);
		ONE(b, CCA_RTT_DESTROY, BASE, block, 3);
		ONE(b, CCA_RTT_MAP_UNPROTECTED, BASE, ns + i * GIB, 1, (i * GIB) | 0xd8);
	}
}

static void tear_down(struct machine *b)
{
	for (uint64_t i = 0; i < BLOCKS; i++) {
		uint64_t hole = i % 512;

		ONE(b, CCA_RTT_UNMAP_UNPROTECTED, BASE, ((uint64_t)1 << 47) + i * GIB, 1);
		RUN(b, 512, CCA_RTT_CREATE, BASE, L3, i * GIB, 3);
		if (hole)
			RUN(b, hole * 512, CCA_DATA_DESTROY, BASE, i * GIB);
		if (hole < 511)
			RUN(b, (511 - hole) * 512, CCA_DATA_DESTROY, BASE, i * GIB + (hole + 1) * MIB2);
		RUN(b, 512, CCA_RTT_DESTROY, BASE, i * GIB, 3);
		ONE(b, CCA_RTT_DESTROY, BASE, i * GIB, 2);
	}
	RUN(b, 2, CCA_RTT_DESTROY, BASE, 0, 1);
	RUN(b, 2, CCA_RTT_DESTROY, BASE, (uint64_t)1 << 47, 1);
	ONE(b, CCA_REALM_DESTROY, BASE);
	RUN(b, GIB / CCA_GRANULE + TIB / CCA_GRANULE - 17, CCA_GRANULE_UNDELEGATE, BASE + 17 * CCA_GRANULE);
}

static void terabyte(void)
{
	struct pw_err err = { 0 };
	struct machine b;
	double start = now_s();

	begin(&b, TIB, 48);
	build(&b);
	report("cca_1tib_bytes_of_blocks", (double)b.m.arena.nodes * TREE_NODE_BYTES, "bytes");
	convert(&b);
	report("cca_1tib_bytes_converted", (double)b.m.arena.nodes * TREE_NODE_BYTES, "bytes");
	tear_down(&b);
	report("cca_1tib_build_convert_tear_down", now_s() - start, "s");
	report("cca_1tib_commands", (double)b.commands * 1e-6, "Mcommands");
	if (!cca_check(&b.m, &err)) {
		fprintf(stderr, "bench_cca: %s\n", err.msg);
		exit(1);
	}
	end(&b);
}

int main(void)
{
	page_by_page();
	measured();
	terabyte();
	return 0;
}
