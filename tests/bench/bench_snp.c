/* How fast the SEV-SNP model is, and what a large guest costs. Prints name, value, unit. */
#include "engine/arch/snp.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/bench.h"

#define TIB    ((uint64_t)1 << 28)
#define SPAN   ((uint64_t)1 << 20) /* frames that the single operations go to: 4 GiB */
#define ROUNDS ((uint64_t)4 << 20)
#define ASID   5

static void must(bool good, const char *what)
{
	if (good)
		return;
	fprintf(stderr, "bench_snp: %s\n", what);
	exit(1);
}

static void update(struct snp *m, uint64_t pfn, bool assigned, uint64_t gfn, enum snp_size size)
{
	struct snp_rmpupdate u = { .pfn = pfn, .assigned = assigned, .asid = ASID, .gfn = gfn, .size = size };
	enum snp_code code;

	must(snp_rmpupdate(m, &u, &code) == PW_OK && code == SNP_OK, "RMPUPDATE failed");
}

static void validate(struct snp *m, uint64_t pfn, uint64_t gfn, enum snp_size size, bool on)
{
	struct snp_target t = { .asid = ASID, .gfn = gfn, .pfn = pfn, .size = size };
	enum snp_code code;
	bool unchanged;

	must(snp_pvalidate(m, &t, on, &code, &unchanged) == PW_OK && code == SNP_OK, "PVALIDATE failed");
}

static void open_model(struct snp *m, struct pw_mem *mem)
{
	const struct snp_config c = {
		.frames = 2 * TIB, .rmp = { 2 * TIB - 65536, 65536 }, .max_asid = 509, .smt = true
	};
	const struct snp_cmd init = { .op = SNP_CMD_INIT };
	enum snp_status status;

	must(snp_init(m, mem, &c) == PW_OK && snp_command(m, &init, &status) == PW_OK, "out of memory");
}

/* Each page assigned, validated, rescinded and given back, at random places, so that the tree is shattered. */
static void random_pages(struct snp *m)
{
	uint64_t x = 88172645463325252, ops = 0;
	double start = now_s();

	for (; ops < ROUNDS; ops += 4) {
		uint64_t pfn = next(&x) % SPAN;

		update(m, pfn, true, pfn ^ 1, SNP_4K);
		validate(m, pfn, pfn ^ 1, SNP_4K, true);
		validate(m, pfn, pfn ^ 1, SNP_4K, false);
		if (next(&x) % 4)
			update(m, pfn, true, pfn ^ 1, SNP_4K);
		else
			update(m, pfn, false, 0, SNP_4K);
	}
	report("snp_random_4k_operations", (double)ops / (now_s() - start) * 1e-6, "Mops/s");
	report("snp_bytes_per_page_shattered", (double)m->mem->used / (double)SPAN, "bytes");
}

static void refused(struct snp *m)
{
	struct snp_cmd c = { .op = SNP_CMD_LAUNCH_UPDATE, .context = 1, .pfn = 2 };
	double start = now_s();
	enum snp_status status;

	for (uint64_t i = 0; i < ROUNDS; i++) {
		c.pfn = i;
		must(snp_command(m, &c, &status) == PW_OK && status == SNP_INVALID_GUEST, "a command was not refused");
	}
	report("snp_refused_commands", (double)ROUNDS / (now_s() - start) * 1e-6, "Mops/s");
}

/* A guest of 1 TiB in 2 MiB pages: assigned and validated, converted to shared and back, torn down. */
static void large_guest(struct snp *m)
{
	double start = now_s();

	for (uint64_t pfn = 0; pfn < TIB; pfn += SNP_LARGE)
		update(m, pfn, true, pfn, SNP_2M);
	for (uint64_t pfn = 0; pfn < TIB; pfn += SNP_LARGE)
		validate(m, pfn, pfn, SNP_2M, true);
	report("snp_bytes_of_a_tib", (double)m->mem->used, "bytes");
	for (uint64_t pfn = 0; pfn < TIB; pfn += 4 * SNP_LARGE) {
		update(m, pfn, false, 0, SNP_2M);
		update(m, pfn, true, pfn, SNP_2M);
		validate(m, pfn, pfn, SNP_2M, true);
	}
	for (uint64_t pfn = 0; pfn < TIB; pfn += SNP_LARGE)
		update(m, pfn, false, 0, SNP_2M);
	report("snp_tib_built_converted_torn_down", now_s() - start, "s");
}

static void measured(struct snp *m)
{
	static const uint8_t content[SNP_PAGE];
	struct snp_measured page = { .type = SNP_TYPE_NORMAL, .content = content };
	uint8_t digest[SNP_DIGEST] = { 0 };
	double start = now_s();

	(void)m;
	for (page.gfn = 0; page.gfn < 16384; page.gfn++)
		snp_digest_extend(digest, &page);
	report("snp_measured_content", 64 / (now_s() - start), "MiB/s");
}

int main(void)
{
	static void (*const parts[])(struct snp * m) = { random_pages, refused, large_guest, measured };

	for (size_t i = 0; i < PW_ARRAY_LEN(parts); i++) {
		struct pw_mem mem = { 0 };
		struct snp m;

		open_model(&m, &mem);
		parts[i](&m);
		snp_release(&m);
	}
	return 0;
}
