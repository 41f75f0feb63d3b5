/* How fast the ledger is, and how much memory it takes. Prints name, value, unit. */
#include "engine/ledger.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/bench.h"

#define VM_PAGES   ((uint64_t)1 << 24) /* 64 GiB of 4 KiB pages */
#define BIG_PAGES  ((uint64_t)1 << 28) /* 1 TiB */
#define ITEM_RUNS  1024
#define WARM_UP    ((uint64_t)8 << 20) /* transitions */
#define ROUNDS     ((uint64_t)8 << 20)
#define CLAIMS     ((uint64_t)1 << 21)
#define CLAIM_RUNS 200000

struct bench {
	struct pw_mem mem;
	struct ledger *ledger;
	struct host *host;
	struct refusal why;
	uint64_t random;
};

static void must(struct bench *b, enum pw_problem p)
{
	if (p == PROBLEM_NONE)
		return;
	fprintf(stderr, "bench_engine: %s: %s\n", problem_slug(p), b->why.detail);
	exit(1);
}

static void apply(struct bench *b, const struct item *it)
{
	bool changed;

	must(b, ledger_apply(b->ledger, b->host, it, &changed, &b->why));
}

static void start(struct bench *b)
{
	struct host_spec spec = { .name = "bench",
				  .boot_id = "boot",
				  .arches = 1u << ARCH_SNP,
				  .has_local = true,
				  .frames = BIG_PAGES,
				  .page_shift = 12 };
	struct host_put put;

	*b = (struct bench){ .random = 88172645463325252 };
	b->ledger = ledger_new(&b->mem);
	if (!b->ledger)
		exit(1);
	must(b, ledger_host_put(b->ledger, &spec, &put, &b->why));
	b->host = put.host;
	ledger_commit(b->ledger);
}

static void stop(struct bench *b)
{
	ledger_free(b->ledger);
	if (b->mem.used)
		exit(1);
}

/* A secure VM, all of it paged out. */
static struct vm *vm_new(struct bench *b, uint64_t pages)
{
	struct slot slot = { 0, 0, pages };
	struct vm_spec spec = { .id = { { 1 } }, .host = b->host, .arch = ARCH_SNP, .slots = &slot, .slot_count = 1 };
	struct vm *vm;

	must(b, ledger_vm_create(b->ledger, &spec, &vm, &b->why));
	must(b, ledger_vm_event(b->ledger, vm, VM_INIT_START, &b->why));
	must(b, ledger_vm_event(b->ledger, vm, VM_INIT_DONE, &b->why));
	ledger_commit(b->ledger);
	return vm;
}

/* Items of `n` single pages at random, shared and unshared by turns, each item committed. Returns the seconds. */
static double flip(struct bench *b, const struct vm *vm, size_t n, uint64_t transitions)
{
	static struct gfn_run runs[ITEM_RUNS];
	struct item it = { .vm = vm->id, .runs = runs, .run_count = n };
	double spent = 0, from;

	for (uint64_t done = 0; done < transitions; done += n) {
		for (size_t i = 0; i < n; i++)
			runs[i] = (struct gfn_run){ next(&b->random) % VM_PAGES, 1, 0 };
		it.op = next(&b->random) & 1 ? GFN_SHARE : GFN_UNSHARE;
		if (n == 1) {
			apply(b, &it);
			ledger_commit(b->ledger);
			continue;
		}
		from = now_s();
		apply(b, &it);
		ledger_commit(b->ledger);
		spent += now_s() - from;
	}
	return spent;
}

static void bench_transitions(void)
{
	struct bench b;
	struct vm *vm;
	size_t before;
	double from;

	start(&b);
	vm = vm_new(&b, VM_PAGES);
	before = b.mem.used;
	flip(&b, vm, ITEM_RUNS, WARM_UP);
	report("ledger_transitions_items_of_1024", (double)ROUNDS / flip(&b, vm, ITEM_RUNS, ROUNDS) * 1e-6, "Mops/s");
	from = now_s();
	flip(&b, vm, 1, ROUNDS / 4);
	report("ledger_transitions_items_of_1", (double)ROUNDS / 4 / (now_s() - from) * 1e-6, "Mops/s");
	report("ledger_bytes_per_page_shattered", (double)(b.mem.used - before) / (double)VM_PAGES, "bytes");
	stop(&b);
}

static void bench_whole_vm(void)
{
	struct gfn_run run = { 0, BIG_PAGES, 0 };
	struct item it = { .op = GFN_SHARE, .runs = &run, .run_count = 1 };
	struct bench b;
	double from;

	start(&b);
	it.vm = vm_new(&b, BIG_PAGES)->id;
	from = now_s();
	apply(&b, &it);
	ledger_commit(b.ledger);
	report("ledger_share_1tib", (now_s() - from) * 1e6, "us");
	it = (struct item){
		.vm = it.vm, .op = GFN_UNSHARE, .framed = true, .pool = "local", .runs = &run, .run_count = 1
	};
	from = now_s();
	apply(&b, &it);
	ledger_commit(b.ledger);
	report("ledger_claim_1tib", (now_s() - from) * 1e6, "us");
	report("ledger_bytes_1tib", (double)b.mem.used, "bytes");
	stop(&b);
}

/* Runs of 512 pages, aligned to nothing: claimed, then paged out, each committed. */
static void bench_claim_512(void)
{
	struct gfn_run run = { 0, 512, 0 };
	struct item claim = { .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = &run, .run_count = 1 };
	struct item release = { .op = GFN_PAGE_OUT, .runs = &run, .run_count = 1 };
	double spent[2] = { 0 };
	struct bench b;

	start(&b);
	claim.vm = release.vm = vm_new(&b, VM_PAGES)->id;
	for (int i = 0; i < CLAIM_RUNS; i++) {
		double from = now_s(), mid;

		run.gfn = next(&b.random) % (VM_PAGES - 512);
		run.pfn = next(&b.random) % (BIG_PAGES - 512);
		apply(&b, &claim);
		ledger_commit(b.ledger);
		mid = now_s();
		apply(&b, &release);
		ledger_commit(b.ledger);
		spent[0] += mid - from;
		spent[1] += now_s() - mid;
	}
	report("ledger_claim_512_pages", spent[0] / CLAIM_RUNS * 1e6, "us");
	report("ledger_release_512_pages", spent[1] / CLAIM_RUNS * 1e6, "us");
	stop(&b);
}

/* The worst case: single pages in order of GFN, each on a frame far from the last. */
static void bench_random_frames(void)
{
	static struct gfn_run runs[ITEM_RUNS];
	struct item it = { .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = runs, .run_count = ITEM_RUNS };
	double spent = 0, from;
	struct bench b;
	size_t before;

	start(&b);
	it.vm = vm_new(&b, VM_PAGES)->id;
	before = b.mem.used;
	for (uint64_t done = 0; done < CLAIMS; done += ITEM_RUNS) {
		for (uint64_t i = 0; i < ITEM_RUNS; i++) /* an odd factor: every frame of 64 GiB once */
			runs[i] = (struct gfn_run){ done + i, 1, (done + i) * 10368889 % VM_PAGES };
		from = now_s();
		apply(&b, &it);
		ledger_commit(b.ledger);
		spent += now_s() - from;
	}
	report("ledger_claim_random_frames", (double)CLAIMS / spent * 1e-6, "Mops/s");
	report("ledger_bytes_per_page_sparse_frames", (double)(b.mem.used - before) / (double)CLAIMS, "bytes");
	stop(&b);
}

int main(void)
{
	bench_transitions();
	bench_whole_vm();
	bench_claim_512();
	bench_random_frames();
	return 0;
}
