/* How fast the TDX model answers on one core, and what a large TD costs. Prints name, value, unit. */
#include "engine/arch/tdx.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/bench.h"

#define TDR      0x100
#define POOL     0x1000
#define BLOCKS   ((uint64_t)1 << 19) /* of 2 MiB: 1 TiB */
#define BASE     ((uint64_t)1 << 30) /* the PFN of the first */
#define PAGES    ((uint64_t)1 << 21) /* of 4 KiB: 8 GiB */
#define CONVERTS ((uint64_t)2000000)

static struct pw_mem mem;
static struct tdx m;
static uint64_t calls;

static void must(struct tdx_call c)
{
	struct tdx_result r;
	struct pw_err err = { 0 };

	c.tdr = TDR;
	calls++;
	if (tdx_call(&m, &c, &r, &err) == PW_OK && r.code == TDX_SUCCESS && !r.exits)
		return;
	tdx_explain(&m, &c, &r, &err);
	fprintf(stderr, "bench_tdx: %s\n", err.msg);
	exit(1);
}
#define CALL(...) must((struct tdx_call){ .op = __VA_ARGS__ })

/* A running TD whose tables reach down to `level` in the first `gbs` GiB. */
static void build(uint64_t gbs, unsigned level)
{
	uint64_t next = POOL;

	CALL(TDX_MNG_CREATE, .frame = TDR, .hkid = 40);
	CALL(TDX_KEY_CONFIG);
	for (uint64_t i = 1; i <= 6; i++)
		CALL(TDX_MNG_ADDCX, .frame = TDR + i);
	CALL(TDX_MNG_INIT, .levels = 4);
	tdx_assume_vcpus(tdx_td(&m, TDR), 1);
	for (unsigned l = 3; l > level; l--)
		for (uint64_t gpa = 0; gpa < gbs << 30; gpa += (uint64_t)1 << (12 + 9 * l))
			CALL(TDX_SEPT_ADD, .gpa = gpa, .level = l, .frame = next++);
	CALL(TDX_MR_FINALIZE);
}

static void tear_down(uint64_t step)
{
	CALL(TDX_VPFLUSHDONE);
	CALL(TDX_CACHE_WB);
	CALL(TDX_KEY_FREEID);
	for (uint64_t pfn = BASE; pfn < BASE + BLOCKS * 512; pfn += step) {
		unsigned size;
		uint64_t owner;

		if (tdx_page(&m, pfn, &size, &owner) == TDX_PT_NDA)
			break;
		CALL(TDX_PAGE_RECLAIM, .frame = pfn);
	}
	for (uint64_t pfn = POOL;; pfn++) {
		unsigned size;
		uint64_t owner;

		if (tdx_page(&m, pfn, &size, &owner) == TDX_PT_NDA)
			break;
		CALL(TDX_PAGE_RECLAIM, .frame = pfn);
	}
	for (uint64_t i = 1; i <= 6; i++)
		CALL(TDX_PAGE_RECLAIM, .frame = TDR + i);
	CALL(TDX_PAGE_RECLAIM, .frame = TDR);
}

/* 1 TiB in 2 MiB blocks: built and accepted, an eighth of it shared and taken back, torn down. */
static void tebibyte(void)
{
	double start, all = now_s();

	calls = 0;
	build(1024, 1);
	start = now_s();
	for (uint64_t n = 0; n < BLOCKS; n++)
		CALL(TDX_PAGE_AUG, .gpa = n << 21, .level = 1, .frame = BASE + n * 512);
	for (uint64_t n = 0; n < BLOCKS; n++)
		CALL(TDX_ACCEPT, .gpa = n << 21, .level = 1);
	report("tdx_1tib_build", now_s() - start, "s");
	report("tdx_1tib_bytes", (double)mem.used, "bytes");
	start = now_s();
	for (uint64_t n = 0; n < BLOCKS; n += 8)
		CALL(TDX_RANGE_BLOCK, .gpa = n << 21, .level = 1);
	CALL(TDX_TRACK);
	for (uint64_t n = 0; n < BLOCKS; n += 8)
		CALL(TDX_PAGE_REMOVE, .gpa = n << 21, .level = 1);
	for (uint64_t n = 0; n < BLOCKS; n += 8)
		CALL(TDX_PAGE_AUG, .gpa = n << 21, .level = 1, .frame = BASE + n * 512);
	report("tdx_1tib_convert_an_eighth", now_s() - start, "s");
	start = now_s();
	tear_down(512);
	report("tdx_1tib_teardown", now_s() - start, "s");
	report("tdx_1tib_in_all", now_s() - all, "s");
	report("tdx_2m_calls", (double)calls / (now_s() - all) * 1e-6, "Mops/s");
}

/* Frames in no order that folds; on a fragmented host some between them are nobody's, so that the PAMT does not fold.
 */
static uint64_t frame_of(uint64_t page, bool fragmented)
{
	return BASE + (page ^ 1) + (fragmented ? page / 62 * 2 : 0);
}

static void convert_at_random(bool fragmented)
{
	uint64_t x = 88172645463325252;

	for (uint64_t n = 0; n < CONVERTS; n += 5) {
		uint64_t page = next(&x) % PAGES;

		CALL(TDX_RANGE_BLOCK, .gpa = page << 12);
		CALL(TDX_TRACK);
		CALL(TDX_PAGE_REMOVE, .gpa = page << 12);
		CALL(TDX_PAGE_AUG, .gpa = page << 12, .frame = frame_of(page, fragmented));
		CALL(TDX_ACCEPT, .gpa = page << 12);
	}
}

static void small_pages(bool fragmented)
{
	const char *names[2][3] = {
		{ "tdx_4k_build_calls", "tdx_4k_bytes_per_page", "tdx_4k_random_conversion_calls" },
		{ "tdx_4k_fragmented_build_calls", "tdx_4k_fragmented_bytes_per_page",
		  "tdx_4k_fragmented_random_conversion_calls" },
	};
	double start;

	build(PAGES >> 18, 0);
	calls = 0;
	start = now_s();
	for (uint64_t n = 0; n < PAGES; n++)
		CALL(TDX_PAGE_AUG, .gpa = n << 12, .frame = frame_of(n, fragmented));
	for (uint64_t n = 0; n < PAGES; n++)
		CALL(TDX_ACCEPT, .gpa = n << 12);
	report(names[fragmented][0], (double)calls / (now_s() - start) * 1e-6, "Mops/s");
	report(names[fragmented][1], (double)mem.used / (double)PAGES, "bytes");
	calls = 0;
	start = now_s();
	convert_at_random(fragmented);
	report(names[fragmented][2], (double)calls / (now_s() - start) * 1e-6, "Mops/s");
}

static void open_host(void)
{
	static const struct tdx_config config = { .tdmr = { { 0, (uint64_t)1 << 33 } },
						  .tdmrs = 1,
						  .first_hkid = 33,
						  .last_hkid = 63,
						  .packages = 1,
						  .max_pa = 52 };
	struct pw_err err = { 0 };

	if (tdx_init(&m, &mem, &config, &err) == PW_OK)
		return;
	fprintf(stderr, "bench_tdx: %s\n", err.msg);
	exit(1);
}

int main(void)
{
	open_host();
	tebibyte();
	small_pages(false);
	tdx_release(&m);
	open_host();
	small_pages(true);
	tdx_release(&m);
	return 0;
}
