/* The sums of the page tree's tables against a model that keeps one word a page. SEED= repeats a run. */
#include "engine/sum.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define LEVEL1 ((uint64_t)512)
#define LEVEL2 (LEVEL1 * 512)
#define WINDOW (4 * 512 * 3)
#define OUT    ((uint64_t)1 << 62)
#define SHR    ((uint64_t)1 << 61)
#define ARCH   48

struct fixture {
	struct pw_mem mem;
	struct arena arena;
	struct tree tree;
	uint64_t base;          /* of the window of pages that the model knows; all others are empty */
	uint64_t model[WINDOW]; /* the entry of each */
};

static struct fixture *fixture_new(uint64_t base)
{
	struct fixture *f = calloc(1, sizeof *f);

	cr_assert(f);
	f->base = base;
	arena_init(&f->arena, &f->mem);
	tree_init(&f->tree, &f->arena);
	return f;
}

static void fixture_free(struct fixture *f)
{
	tree_release(&f->tree);
	arena_release(&f->arena);
	cr_assert_eq(f->mem.used, 0);
	free(f);
}

static uint64_t seed_new(void)
{
	const char *given = getenv("SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;

	fprintf(stderr, "SEED=%" PRIu64 "\n", seed);
	return seed;
}

static uint64_t next(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static void set(struct fixture *f, uint64_t at, uint64_t count, uint64_t entry)
{
	cr_assert_eq(tree_set(&f->tree, f->base + at, count, entry), PW_OK);
	for (uint64_t i = 0; i < count; i++)
		f->model[at + i] = tree_entry_after(entry, i);
}

static uint64_t random_entry(uint64_t *seed)
{
	static const uint64_t flags[] = { 0, OUT, SHR, TREE_LINEAR, TREE_LINEAR | (uint64_t)1 << 40 };
	uint64_t flag = flags[next(seed) % PW_ARRAY_LEN(flags)];
	uint64_t number = flag & TREE_LINEAR ? next(seed) % 4 * 4096 : 0;

	return flag | (next(seed) % 4 ? 0 : next(seed) % 16) << ARCH | number;
}

/* A few pages mostly, tables now and then, so that tables fold and unfold. */
static void change(struct fixture *f, uint64_t *seed)
{
	uint64_t at = next(seed) % WINDOW, most = WINDOW - at, count = 1 + next(seed) % 3;

	if (next(seed) % 8 == 0)
		count = 1 + next(seed) % most;
	if (next(seed) % 8 == 0) {
		at -= at % 512;
		count = 512;
	}
	set(f, at, count < WINDOW - at ? count : WINDOW - at, random_entry(seed));
}

/* The same, from the model's words. The pages before and after the window are empty. */
static struct tree_sum model_sum(const struct fixture *f, uint64_t from, uint64_t end)
{
	struct tree_sum s = { .all = ~(TREE_LINEAR | TREE_NUMBER) };

	for (uint64_t at = from; at < end; at++) {
		bool known = at >= f->base && at - f->base < WINDOW;
		uint64_t e = known ? f->model[at - f->base] : 0;

		s.pages[0] += (e & TREE_LINEAR) != 0;
		s.pages[1] += !(e & TREE_LINEAR) && e & OUT;
		s.pages[2] += !(e & TREE_LINEAR) && !(e & OUT) && e & SHR;
		s.kinds |= (uint64_t)1 << tree_kind(e);
		s.any |= e & TREE_LINEAR ? e & ~(TREE_LINEAR | TREE_NUMBER) : 0;
		s.all &= e & TREE_LINEAR ? e : ~(uint64_t)0;
	}
	return s;
}

static uint64_t model_runs(const struct fixture *f, uint64_t from, uint64_t end, uint64_t kinds)
{
	uint64_t runs = 0;

	for (uint64_t at = from; at < end;) {
		struct tree_run run = tree_run_at(&f->tree, at, end);

		runs += kinds >> tree_kind(run.entry) & 1;
		at += run.count;
	}
	return runs;
}

static bool model_find(const struct fixture *f, uint64_t from, uint64_t end, uint64_t kinds, uint64_t *at)
{
	for (*at = from; *at < end; ++*at)
		if (kinds >> tree_kind(tree_get(&f->tree, *at)) & 1)
			return true;
	return false;
}

/* One question of each kind about a range, whose walk may be cut short as often as it takes. */
static void ask(struct fixture *f, uint64_t from, uint64_t end, uint64_t kinds, uint64_t piece)
{
	struct tree_walk w = { 0, piece };
	struct tree_sum sum, want = model_sum(f, from, end);
	uint64_t runs = 0, at = from, page, least = model_runs(f, from, end, kinds);
	struct tree_run run;
	bool found;

	for (sum = tree_sum(&f->tree, from, end, &w); walk_is_over(&w); sum = tree_sum(&f->tree, from, end, &w))
		w.limit = w.steps + piece;
	sum.runs = 0;
	cr_assert(memcmp(&sum, &want, sizeof sum) == 0, "the sum of [%" PRIu64 ", %" PRIu64 ")", from, end);
	w.limit = w.steps + piece;
	for (found = tree_find_kind(&f->tree, from, end, kinds, &w, &run); walk_is_over(&w);
	     found = tree_find_kind(&f->tree, from, end, kinds, &w, &run))
		w.limit = w.steps + piece;
	cr_assert_eq(found, model_find(f, from, end, kinds, &page));
	cr_assert(!found || (run.first == page && run.count == tree_run_at(&f->tree, page, end).count &&
			     run.entry == tree_get(&f->tree, page)));
	do {
		w.limit = w.steps + piece;
		runs += tree_count_runs(&f->tree, &at, end, kinds, &w);
	} while (at < end);
	cr_assert(runs >= least && runs <= least + 4 * (WINDOW / 512 + 600), "%" PRIu64 " runs counted of %" PRIu64,
		  runs, least);
	cr_assert(tree_check(&f->tree) && tree_sums_check(&f->tree));
}

Test(sum, sums_and_searches_agree_with_a_model_that_counts_pages)
{
	static const uint64_t bases[] = { 0, LEVEL2 - 700, LEVEL2 * 512 - 1024, TREE_PAGES - WINDOW };
	uint64_t seed = seed_new();

	for (size_t i = 0; i < PW_ARRAY_LEN(bases); i++) {
		struct fixture *f = fixture_new(bases[i]);

		for (unsigned round = 0; round < 150; round++) {
			uint64_t from = f->base + next(&seed) % WINDOW, end = f->base + next(&seed) % WINDOW;

			for (uint64_t n = next(&seed) % 40; n > 0; n--)
				change(f, &seed);
			if (next(&seed) % 3 == 0) {
				from = f->base;
				end = f->base + WINDOW;
			}
			if (from < end)
				ask(f, from, end, next(&seed), next(&seed) % 2 ? UINT64_MAX / 2 : TREE_WALK_MIN);
		}
		fixture_free(f);
	}
}

Test(sum, what_lies_past_the_root_is_empty)
{
	struct fixture *f = fixture_new(0);
	struct tree_walk w = { .limit = UINT64_MAX };
	struct tree_run run;

	cr_assert_eq(tree_sum(&f->tree, 0, TREE_PAGES, &w).kinds, 1);
	set(f, 3, 2, OUT);
	cr_assert_eq(tree_sum(&f->tree, 0, TREE_PAGES, &w).pages[1], 2);
	cr_assert(tree_find_kind(&f->tree, 512, TREE_PAGES, 1, &w, &run));
	cr_assert(run.first == 512 && run.count == TREE_PAGES - 512);
	cr_assert_not(tree_find_kind(&f->tree, 5, TREE_PAGES, ~(uint64_t)1, &w, &run));
	fixture_free(f);
}

/* A tree of that many pages, no two neighbours alike. */
static void shatter(struct fixture *f, uint64_t pages)
{
	for (uint64_t p = 0; p < pages; p++)
		cr_assert_eq(tree_set(&f->tree, p, 1, p % 2 ? OUT : SHR), PW_OK);
}

Test(sum, what_nobody_changed_is_not_looked_at_again)
{
	const uint64_t pages = 8 * LEVEL2; /* 4096 leaves */
	struct fixture *f = fixture_new(0);
	struct tree_walk w = { .limit = UINT64_MAX };
	struct tree_run run;
	uint64_t once;

	shatter(f, pages);
	cr_assert_eq(tree_sum(&f->tree, 0, pages, &w).pages[1], pages / 2);
	once = w.steps;
	cr_assert(once > 4096 && once < 32 * 4096, "%" PRIu64 " steps to make the sums", once);
	cr_assert_eq(tree_sum(&f->tree, 0, pages, &w).pages[2], pages / 2);
	cr_assert_eq(w.steps, once, "all of it was there");
	cr_assert_not(tree_find_kind(&f->tree, 7, pages - 7, TREE_CLASS(3), &w, &run));
	cr_assert_leq(w.steps - once, TREE_WALK_MIN);
	once = w.steps;
	set(f, 700, 1, TREE_LINEAR | 5);
	cr_assert_eq(tree_sum(&f->tree, 0, pages, &w).pages[0], 1);
	cr_assert_leq(w.steps - once, 128, "one leaf and what is above it");
	fixture_free(f);
}

static void ignore_span(void *ctx, uint64_t first, uint64_t count)
{
}

static void ignore_run(void *ctx, const struct tree_run *run)
{
}

Test(sum, pictures_and_sums_leave_each_others_marks)
{
	static const struct tree_visitor nobody = { ignore_span, ignore_run, NULL };
	struct fixture *f = fixture_new(0);
	struct tree_walk w = { .limit = UINT64_MAX };

	set(f, 0, 5, OUT);
	cr_assert_eq(tree_sum(&f->tree, 0, 512, &w).pages[1], 5);
	cr_assert(f->tree.root & TREE_DIRTY && !(f->tree.root & TREE_STALE), "a sum is no picture");
	set(f, 9, 5, SHR);
	tree_clean(&f->tree, &nobody);
	cr_assert(!(f->tree.root & TREE_DIRTY) && f->tree.root & TREE_STALE, "and a picture no sum");
	cr_assert_eq(tree_sum(&f->tree, 0, 512, &w).pages[2], 5);
	set(f, 10, 1, OUT);
	cr_assert(f->tree.root & TREE_DIRTY && f->tree.root & TREE_STALE);
	fixture_free(f);
}

/* Readers beside each other, all of whom find the same stale tables. */

enum { READERS = 4, READER_PAGES = 64 * 512 };

static void *reader(void *arg)
{
	struct fixture *f = arg;
	struct tree_walk w = { .limit = UINT64_MAX };
	uint64_t *wrong = calloc(1, sizeof *wrong);

	cr_assert(wrong);
	for (uint64_t from = 0; from < READER_PAGES; from += 4096) {
		struct tree_run run = { 0 };

		*wrong += tree_sum(&f->tree, from, READER_PAGES, &w).pages[1] != (READER_PAGES - from) / 2;
		*wrong += tree_get(&f->tree, from + 1) != OUT;
		*wrong +=
			!tree_find_kind(&f->tree, from, READER_PAGES, TREE_CLASS(2), &w, &run) || run.first != from + 1;
	}
	return wrong;
}

Test(sum, readers_beside_each_other_make_the_same_sums)
{
	struct fixture *f = fixture_new(0);
	pthread_t threads[READERS];

	for (unsigned round = 0; round < 20; round++) {
		shatter(f, READER_PAGES);
		set(f, 0, 512, TREE_LINEAR);
		shatter(f, 512);
		for (unsigned i = 0; i < READERS; i++)
			cr_assert_eq(pthread_create(&threads[i], NULL, reader, f), 0);
		for (unsigned i = 0; i < READERS; i++) {
			void *wrong;

			cr_assert_eq(pthread_join(threads[i], &wrong), 0);
			cr_assert_eq(*(uint64_t *)wrong, 0);
			free(wrong);
		}
		cr_assert(tree_sums_check(&f->tree));
		cr_assert_eq(tree_set(&f->tree, 0, READER_PAGES, 0), PW_OK);
	}
	fixture_free(f);
}
