/* How fast the page tree is, and how much memory it takes. Prints name, value, unit. */
#include "engine/tree.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/bench.h"

#define VM_PAGES   ((uint64_t)1 << 24) /* 64 GiB of 4 KiB pages */
#define ROUNDS     ((uint64_t)20000000)
#define AHEAD      16
#define STATE_OUT  ((uint64_t)1 << 62)
#define STATE_SHR  ((uint64_t)1 << 61)
#define OTHER(now) ((now) ^ STATE_OUT ^ STATE_SHR)

static void set(struct tree *t, uint64_t first, uint64_t count, uint64_t entry)
{
	if (tree_set(t, first, count, entry) == PW_OK)
		return;
	fprintf(stderr, "bench_tree: out of memory\n");
	exit(1);
}

static void shatter(struct tree *t)
{
	double start = now_s();

	for (uint64_t p = 0; p < VM_PAGES; p++)
		set(t, p, 1, p % 2 ? STATE_OUT : STATE_SHR);
	report("tree_fill_page_by_page", (double)VM_PAGES / (now_s() - start) * 1e-6, "Mpages/s");
	report("tree_bytes_per_page_shattered", (double)t->arena->mem->used / (double)VM_PAGES, "bytes");
}

static void flip_at_random(struct tree *t)
{
	uint64_t x = 88172645463325252;
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS; n++) {
		uint64_t page = next(&x) % VM_PAGES;

		set(t, page, 1, OTHER(tree_get(t, page)));
	}
	report("tree_get_set_random", (double)ROUNDS / (now_s() - start) * 1e-6, "Mpairs/s");
}

static void flip_by_spot(struct tree *t)
{
	uint64_t x = 88172645463325252;
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS; n++) {
		uint64_t page = next(&x) % VM_PAGES;
		struct tree_spot at;

		if (tree_find(t, page, &at))
			tree_put(t, page, &at, OTHER(*at.word));
		else
			set(t, page, 1, OTHER(tree_get(t, page)));
	}
	report("tree_find_put_random", (double)ROUNDS / (now_s() - start) * 1e-6, "Mpairs/s");
}

static void flip_prefetched(struct tree *t)
{
	uint64_t x = 88172645463325252, ahead[AHEAD] = { 0 };
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS; n++) {
		uint64_t page = ahead[n % AHEAD];

		ahead[n % AHEAD] = next(&x) % VM_PAGES;
		tree_prefetch(t, ahead[n % AHEAD]);
		set(t, page, 1, OTHER(tree_get(t, page)));
	}
	report("tree_get_set_random_prefetched", (double)ROUNDS / (now_s() - start) * 1e-6, "Mpairs/s");
}

static void flip_by_spot_prefetched(struct tree *t)
{
	uint64_t x = 88172645463325252, ahead[AHEAD] = { 0 };
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS; n++) {
		uint64_t page = ahead[n % AHEAD];
		struct tree_spot at;

		ahead[n % AHEAD] = next(&x) % VM_PAGES;
		tree_prefetch(t, ahead[n % AHEAD]);
		if (tree_find(t, page, &at))
			tree_put(t, page, &at, OTHER(*at.word));
		else
			set(t, page, 1, OTHER(tree_get(t, page)));
	}
	report("tree_find_put_random_prefetched", (double)ROUNDS / (now_s() - start) * 1e-6, "Mpairs/s");
}

static void get_at_random(const struct tree *t)
{
	uint64_t x = 88172645463325252, sum = 0;
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS; n++)
		sum ^= tree_get(t, next(&x) % VM_PAGES);
	report("tree_get_random", (double)ROUNDS / (now_s() - start) * 1e-6, sum == 1 ? "" : "M/s");
}

static void scan(const struct tree *t)
{
	double start = now_s();
	uint64_t runs = 0;

	for (uint64_t at = 0; at < VM_PAGES; runs++)
		at += tree_run_at(t, at, VM_PAGES).count;
	report("tree_run_at_scan", (double)runs / (now_s() - start) * 1e-6, "Mruns/s");
}

static void ignore_span(void *ctx, uint64_t first, uint64_t count)
{
}

static void count_run(void *ctx, const struct tree_run *run)
{
	++*(uint64_t *)ctx;
}

static void picture(struct tree *t)
{
	uint64_t rows = 0;
	struct tree_visitor v = { ignore_span, count_run, &rows };
	double start = now_s();

	tree_clean(t, &v);
	report("tree_clean_all_dirty", (double)rows / (now_s() - start) * 1e-6, "Mruns/s");
	start = now_s();
	for (unsigned n = 0; n < 1000; n++) {
		set(t, 16777 * n, 1, OTHER(tree_get(t, 16777 * n)));
		tree_clean(t, &v);
	}
	report("tree_clean_one_dirty_table", (now_s() - start) * 1e3, "us");
}

/* Flips one range of 2 MiB to and fro in an otherwise homogeneous terabyte. */
static void flip_blocks(struct tree *t)
{
	uint64_t x = 88172645463325252, rounds = ROUNDS / 10;
	double start;

	set(t, 0, (uint64_t)1 << 28, STATE_OUT);
	start = now_s();
	for (uint64_t n = 0; n < rounds; n++) {
		uint64_t first = next(&x) % ((uint64_t)1 << 19) * 512;

		set(t, first, 512, OTHER(tree_get(t, first)));
	}
	report("tree_set_2mib_random", (double)rounds / (now_s() - start) * 1e-6, "M/s");
}

int main(void)
{
	struct pw_mem mem = { 0 };
	struct arena arena;
	struct tree t;

	arena_init(&arena, &mem);
	tree_init(&t, &arena);
	set(&t, 0, (uint64_t)1 << 28, TREE_LINEAR | 4711);
	report("tree_bytes_homogeneous_1tib", (double)tree_bytes(&t), "bytes");
	set(&t, 0, (uint64_t)1 << 28, 0);
	shatter(&t);
	flip_at_random(&t);
	flip_by_spot(&t);
	flip_prefetched(&t);
	flip_by_spot_prefetched(&t);
	get_at_random(&t);
	scan(&t);
	picture(&t);
	flip_blocks(&t);
	tree_release(&t);
	arena_release(&arena);
	return 0;
}
