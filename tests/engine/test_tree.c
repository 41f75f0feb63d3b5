#include "engine/tree.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define WINDOW    (300 * 1024)
#define LEVEL1    ((uint64_t)512)
#define LEVEL2    (LEVEL1 * 512)
#define LEVEL3    (LEVEL2 * 512)
#define LEVEL4    (LEVEL3 * 512)
#define STATE_OUT ((uint64_t)1 << 62)
#define STATE_SHR ((uint64_t)1 << 61)

/* An allocator that refuses from its n-th allocation on. */
struct heap {
	size_t calls, fail_at;
};

static void *heap_alloc(void *ctx, size_t size)
{
	struct heap *h = ctx;

	return h->calls++ >= h->fail_at ? NULL : malloc(size);
}

static void heap_free(void *ctx, void *p)
{
	free(p);
}

struct fixture {
	struct heap heap;
	struct pw_mem mem;
	struct arena arena;
	struct tree tree;
};

static void fixture_init(struct fixture *f)
{
	*f = (struct fixture){ .heap = { .fail_at = SIZE_MAX } };
	f->mem = (struct pw_mem){ .alloc = heap_alloc, .free = heap_free, .ctx = &f->heap };
	arena_init(&f->arena, &f->mem);
	tree_init(&f->tree, &f->arena);
}

static void fixture_release(struct fixture *f)
{
	tree_release(&f->tree);
	cr_assert_eq(f->arena.nodes, 0);
	arena_release(&f->arena);
	cr_assert_eq(f->mem.used, 0);
}

static void set(struct tree *t, uint64_t first, uint64_t count, uint64_t entry)
{
	cr_assert_eq(tree_set(t, first, count, entry), PW_OK);
}

/* Randomness, with a seed that the test prints. */
static uint64_t seed_new(const char *test)
{
	const char *given = getenv("SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;

	fprintf(stderr, "%s: SEED=%" PRIu64 "\n", test, seed);
	return seed;
}

static uint64_t next(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static uint64_t below(uint64_t *seed, uint64_t n)
{
	return next(seed) % n;
}

/* The model: one word a page of a window. */
struct model {
	uint64_t base;
	uint64_t *page;
};

struct change {
	uint64_t first, count, entry;
};

static struct model model_new(uint64_t base)
{
	return (struct model){ base, calloc(WINDOW, sizeof(uint64_t)) };
}

static uint64_t one_later(uint64_t entry)
{
	if (entry >> 63 == 0)
		return entry;
	return (entry & 0xffffff0000000000u) | ((entry + 1) & 0xffffffffffu);
}

static void model_set(struct model *m, const struct change *c)
{
	uint64_t entry = c->entry;

	for (uint64_t i = 0; i < c->count; i++, entry = one_later(entry))
		m->page[c->first - m->base + i] = entry;
}

static uint64_t random_entry(uint64_t *seed, uint64_t first)
{
	static const uint64_t offsets[] = { 0, 0, 7, 512, (uint64_t)1 << 39 };

	switch (below(seed, 6)) {
	case 0: return 0;
	case 1: return STATE_OUT;
	case 2: return STATE_SHR;
	case 3: return below(seed, 2) ? STATE_SHR | 5 : TREE_LINEAR | (next(seed) & TREE_NUMBER);
	default: return TREE_LINEAR | ((first + offsets[below(seed, 5)]) & TREE_NUMBER);
	}
}

static struct change random_change(uint64_t *seed, uint64_t base)
{
	uint64_t first = base + below(seed, WINDOW), room, count = 1;

	switch (below(seed, 8)) {
	case 0:
	case 1:
	case 2: break;
	case 3: count = 1 + below(seed, 20); break;
	case 4: count = 1 + below(seed, 2000); break;
	case 5: count = 1 + below(seed, WINDOW); break;
	default:
		first = (first & ~(LEVEL1 - 1)) > base ? first & ~(LEVEL1 - 1) : base;
		count = LEVEL1 << below(seed, 4);
	}
	room = base + WINDOW - first;
	count = count < room ? count : room;
	return (struct change){ first, count, random_entry(seed, first) };
}

static void assert_reads_as(const struct tree *t, const struct model *m, uint64_t from, uint64_t end)
{
	for (uint64_t p = from; p < end; p++)
		cr_assert_eq(tree_get(t, p), m->page[p - m->base], "page %" PRIu64, p);
}

static void assert_runs_as(const struct tree *t, const struct model *m)
{
	uint64_t end = m->base + WINDOW;

	for (uint64_t at = m->base; at < end;) {
		struct tree_run run = tree_run_at(t, at, end);
		uint64_t i = at - m->base, n = 1;

		while (i + n < WINDOW && m->page[i + n] == one_later(m->page[i + n - 1]))
			n++;
		cr_assert_eq(run.first, at);
		cr_assert_eq(run.entry, m->page[i], "run at %" PRIu64, at);
		cr_assert_eq(run.count, n, "run at %" PRIu64 ": %" PRIu64 " pages, not %" PRIu64, at, run.count, n);
		at += n;
	}
}

/* The runs of a tree's window, as changes that make it. */
static size_t runs_of(const struct tree *t, uint64_t base, uint64_t pages, struct change **out)
{
	struct change *c = NULL;
	size_t n = 0, room = 0;

	for (uint64_t at = base; at < base + pages;) {
		struct tree_run run = tree_run_at(t, at, base + pages);

		if (n == room) {
			room = room ? 2 * room : 64;
			c = realloc(c, room * sizeof *c);
		}
		c[n++] = (struct change){ run.first, run.count, run.entry };
		at += run.count;
	}
	*out = c;
	return n;
}

static void assert_rebuilds_alike(const struct fixture *f, uint64_t base, uint64_t *seed)
{
	struct fixture other;
	struct change *c;
	size_t n = runs_of(&f->tree, base, WINDOW, &c);

	fixture_init(&other);
	set(&other.tree, below(seed, TREE_PAGES - 99999), 99999, STATE_OUT);
	set(&other.tree, 0, TREE_PAGES, STATE_SHR);
	for (size_t i = n; i > 0; i--) {
		size_t k = below(seed, i);

		set(&other.tree, c[k].first, c[k].count, c[k].entry);
		c[k] = c[i - 1];
	}
	set(&other.tree, 0, base, 0);
	set(&other.tree, base + WINDOW, TREE_PAGES - base - WINDOW, 0);
	cr_assert_eq(other.arena.nodes, f->arena.nodes);
	cr_assert_eq(other.tree.height, f->tree.height);
	free(c);
	fixture_release(&other);
}

static uint64_t bases[] = {
	0, 1, LEVEL2 - 1000, LEVEL3 - 123457, LEVEL4 - 200000, 5 * LEVEL4 - WINDOW / 2, TREE_PAGES - WINDOW,
};

ParameterizedTestParameters(tree, random_changes_read_as_an_array_would)
{
	return cr_make_param_array(uint64_t, bases, PW_ARRAY_LEN(bases));
}

ParameterizedTest(uint64_t *base, tree, random_changes_read_as_an_array_would)
{
	uint64_t seed = seed_new("random changes");
	struct model m = model_new(*base);
	struct fixture f;

	fixture_init(&f);
	for (unsigned step = 1; step <= 2000; step++) {
		struct change c = random_change(&seed, *base);
		uint64_t lo = c.first - *base > 600 ? c.first - 600 : *base;
		uint64_t hi = c.first + 600 < *base + WINDOW ? c.first + 600 : *base + WINDOW;

		set(&f.tree, c.first, c.count, c.entry);
		model_set(&m, &c);
		assert_reads_as(&f.tree, &m, lo, hi);
		if (step % 100)
			continue;
		cr_assert(tree_check(&f.tree));
		cr_assert_eq(tree_bytes(&f.tree), f.arena.nodes * TREE_NODE_BYTES);
		assert_reads_as(&f.tree, &m, *base, *base + WINDOW);
		assert_runs_as(&f.tree, &m);
		assert_rebuilds_alike(&f, *base, &seed);
	}
	set(&f.tree, *base, WINDOW, 0);
	cr_assert_eq(f.arena.nodes, 0);
	fixture_release(&f);
	free(m.page);
}

Test(tree, outside_of_what_was_set_all_is_empty)
{
	struct fixture f;
	struct tree_run run;

	fixture_init(&f);
	cr_assert_eq(tree_get(&f.tree, 0), 0);
	cr_assert_eq(tree_get(&f.tree, TREE_PAGES - 1), 0);
	set(&f.tree, LEVEL2, 3, STATE_OUT);
	cr_assert_eq(tree_get(&f.tree, LEVEL2 - 1), 0);
	cr_assert_eq(tree_get(&f.tree, TREE_PAGES - 1), 0);
	run = tree_run_at(&f.tree, LEVEL2 + 3, TREE_PAGES);
	cr_assert(run.entry == 0 && run.count == TREE_PAGES - LEVEL2 - 3);
	run = tree_run_at(&f.tree, 0, TREE_PAGES);
	cr_assert(run.entry == 0 && run.count == LEVEL2);
	fixture_release(&f);
}

Test(tree, runs_are_maximal_across_tables_of_every_level)
{
	uint64_t first = LEVEL4 - LEVEL3 - LEVEL2 - LEVEL1 - 3, end = LEVEL4 + LEVEL3 + LEVEL2 + LEVEL1 + 5;
	struct fixture f;
	struct tree_run run;

	fixture_init(&f);
	set(&f.tree, first, end - first, TREE_LINEAR | 77);
	run = tree_run_at(&f.tree, first, TREE_PAGES);
	cr_assert(run.count == end - first && run.entry == (TREE_LINEAR | 77));
	run = tree_run_at(&f.tree, LEVEL4 + 1, end - 1);
	cr_assert(run.count == end - LEVEL4 - 2 && run.entry == (TREE_LINEAR | (77 + LEVEL4 + 1 - first)));
	fixture_release(&f);
}

Test(tree, numbers_wrap_below_the_flags)
{
	struct fixture f;
	uint64_t entry = TREE_LINEAR | (uint64_t)9 << 40 | (TREE_NUMBER - 1);

	fixture_init(&f);
	set(&f.tree, 0, LEVEL2, entry);
	cr_assert_eq(tree_get(&f.tree, 1), entry + 1);
	cr_assert_eq(tree_get(&f.tree, 2), TREE_LINEAR | (uint64_t)9 << 40);
	set(&f.tree, 1, 1, 0);
	set(&f.tree, 1, 1, entry + 1);
	cr_assert(f.arena.nodes == 0 && tree_run_at(&f.tree, 0, TREE_PAGES).count == LEVEL2);
	fixture_release(&f);
}

Test(tree, page_by_page_filling_folds_at_each_level)
{
	struct fixture f;

	fixture_init(&f);
	for (uint64_t p = LEVEL2; p-- > 0;)
		set(&f.tree, p, 1, TREE_LINEAR | (p + 4711));
	cr_assert(f.arena.nodes == 0 && f.tree.root == (TREE_LINEAR | 4711) && f.tree.height == 2);
	for (uint64_t p = 0; p < LEVEL2; p++)
		set(&f.tree, p, 1, 0);
	cr_assert(f.arena.nodes == 0 && f.tree.root == 0 && f.tree.height == 1);
	fixture_release(&f);
}

Test(tree, spot_reads_and_changes_pages_that_have_a_table)
{
	struct tree_spot at;
	struct fixture f;

	fixture_init(&f);
	cr_assert_not(tree_find(&f.tree, 5, &at));
	cr_assert_not(tree_find(&f.tree, TREE_PAGES - 1, &at));
	set(&f.tree, LEVEL2, LEVEL1, STATE_OUT);
	cr_assert_not(tree_find(&f.tree, LEVEL2 + 5, &at));
	set(&f.tree, LEVEL2 + 5, 1, STATE_SHR);
	cr_assert(tree_find(&f.tree, LEVEL2 + 5, &at) && *at.word == STATE_SHR);
	tree_put(&f.tree, LEVEL2 + 5, &at, STATE_SHR | 1);
	cr_assert_eq(tree_get(&f.tree, LEVEL2 + 5), STATE_SHR | 1);
	tree_put(&f.tree, LEVEL2 + 5, &at, STATE_OUT);
	cr_assert_not(tree_find(&f.tree, LEVEL2 + 5, &at), "it must have folded");
	cr_assert(tree_check(&f.tree));
	fixture_release(&f);
}

/* Memory. */

Test(tree, homogeneous_tebibyte_costs_less_than_64_kib)
{
	static const uint64_t firsts[] = { 0, 12345, TREE_PAGES - LEVEL3 * 2 - 1 };

	for (size_t i = 0; i < PW_ARRAY_LEN(firsts); i++) {
		struct fixture f;

		fixture_init(&f);
		set(&f.tree, firsts[i], LEVEL3 * 2, TREE_LINEAR | 999);
		cr_assert_lt(f.mem.used, 64 * 1024u);
		cr_assert_eq(tree_bytes(&f.tree), f.mem.used);
		fixture_release(&f);
	}
}

Test(tree, shattered_memory_costs_at_most_nine_bytes_a_page)
{
	uint64_t pages = LEVEL2 * 4;
	struct fixture f;

	fixture_init(&f);
	for (uint64_t p = 0; p < pages; p++)
		set(&f.tree, p, 1, p % 2 ? STATE_OUT : STATE_SHR);
	cr_assert_leq(f.mem.used, 9 * pages);
	cr_assert_leq(tree_bytes(&f.tree), 9 * pages);
	set(&f.tree, 0, pages, 0);
	arena_trim(&f.arena);
	cr_assert_leq(f.mem.used, TREE_RESERVE * TREE_NODE_BYTES, "trim gives memory back");
	fixture_release(&f);
}

/* Takes all spare nodes of the arena. */
static void use_up_spares(struct fixture *f, struct tree *hog)
{
	for (uint64_t p = 0; f->arena.spares; p += LEVEL1)
		set(hog, p, 1, STATE_OUT);
}

static struct oom {
	struct change before[2];
	struct change change;
} ooms[] = {
	{ { { 0, 1, STATE_OUT } }, { TREE_PAGES / 2 - 3, 9, STATE_OUT } },
	{ { { 0, 1, STATE_OUT } }, { TREE_PAGES / 2 - 3, LEVEL4 * 2 + 2, TREE_LINEAR } },
	{ { { 0, 512, STATE_OUT } }, { 5, TREE_PAGES - 6, STATE_SHR } },
	{ { { 0, TREE_PAGES, TREE_LINEAR | 3 } }, { 5, TREE_PAGES - 10, 0 } },
	{ { { 0, TREE_PAGES, TREE_LINEAR | 3 } }, { LEVEL3 + 5, 1, 0 } },
	{ { { LEVEL3, LEVEL3, STATE_SHR } }, { LEVEL3 + LEVEL2 + 5, 600, STATE_OUT } },
	{ { { LEVEL3, 1, STATE_SHR }, { LEVEL3 + 9, 1, STATE_OUT } }, { 3, LEVEL3, STATE_OUT } },
	{ { { 0, 0, 0 } }, { TREE_PAGES - 1, 1, STATE_OUT } },
	{ { { 0, LEVEL4, STATE_OUT } }, { LEVEL4 + 1, 1, STATE_OUT } },
};

ParameterizedTestParameters(tree, set_without_memory_changes_nothing)
{
	return cr_make_param_array(struct oom, ooms, PW_ARRAY_LEN(ooms));
}

static size_t nodes_of(const struct tree *t)
{
	return tree_bytes(t) / TREE_NODE_BYTES;
}

/* One attempt, from an arena without spares, with an allocator that refuses from call n on. Did it refuse? */
static bool refused_at(const struct oom *c, size_t n)
{
	struct change *before, *after;
	size_t nodes, runs, runs_after;
	struct fixture f;
	struct tree hog;
	enum pw_status st;

	fixture_init(&f);
	tree_init(&hog, &f.arena);
	for (size_t i = 0; i < PW_ARRAY_LEN(c->before); i++)
		set(&f.tree, c->before[i].first, c->before[i].count, c->before[i].entry);
	use_up_spares(&f, &hog);
	nodes = nodes_of(&f.tree);
	runs = runs_of(&f.tree, 0, TREE_PAGES, &before);
	f.heap = (struct heap){ .fail_at = n };
	st = tree_set(&f.tree, c->change.first, c->change.count, c->change.entry);
	cr_assert(tree_check(&f.tree) && tree_check(&hog));
	if (st == PW_OK) {
		cr_assert_leq(f.heap.calls, (size_t)TREE_RESERVE, "more nodes than the reserve has");
	} else {
		cr_assert_eq(st, PW_NO_MEMORY);
		cr_assert_eq(nodes_of(&f.tree), nodes);
		runs_after = runs_of(&f.tree, 0, TREE_PAGES, &after);
		cr_assert(runs_after == runs && memcmp(before, after, runs * sizeof *before) == 0);
		free(after);
		f.heap.fail_at = SIZE_MAX;
		set(&f.tree, c->change.first, c->change.count, c->change.entry);
	}
	cr_assert_eq(tree_get(&f.tree, c->change.first), c->change.entry);
	free(before);
	tree_release(&hog);
	fixture_release(&f);
	return st != PW_OK;
}

ParameterizedTest(struct oom *c, tree, set_without_memory_changes_nothing)
{
	size_t n = 0;

	while (refused_at(c, n))
		n++;
	cr_assert_gt(n, 0, "the case must need memory");
}

ParameterizedTestParameters(tree, set_after_a_reserve_cannot_fail)
{
	return cr_make_param_array(struct oom, ooms, PW_ARRAY_LEN(ooms));
}

ParameterizedTest(struct oom *c, tree, set_after_a_reserve_cannot_fail)
{
	struct fixture f;
	struct tree hog;

	fixture_init(&f);
	tree_init(&hog, &f.arena);
	for (size_t i = 0; i < PW_ARRAY_LEN(c->before); i++)
		set(&f.tree, c->before[i].first, c->before[i].count, c->before[i].entry);
	use_up_spares(&f, &hog);
	cr_assert_eq(arena_reserve(&f.arena), PW_OK);
	f.heap = (struct heap){ .fail_at = 0 };
	set(&f.tree, c->change.first, c->change.count, c->change.entry);
	cr_assert_eq(f.heap.calls, 0);
	tree_release(&hog);
	fixture_release(&f);
}

Test(tree, clearing_what_is_empty_needs_no_memory)
{
	struct fixture f;

	fixture_init(&f);
	set(&f.tree, 0, 1, STATE_OUT);
	f.heap = (struct heap){ .fail_at = 0 };
	set(&f.tree, LEVEL3, LEVEL4, 0);
	set(&f.tree, 1, TREE_PAGES - 1, 0);
	set(&f.tree, 7, 0, STATE_OUT);
	cr_assert(f.heap.calls == 0 && f.arena.nodes == 1 && f.tree.height == 1);
	fixture_release(&f);
}

Test(tree, refused_reserve_keeps_what_it_got)
{
	struct fixture f;

	fixture_init(&f);
	f.heap.fail_at = 5;
	cr_assert_eq(arena_reserve_sets(&f.arena, 2), PW_NO_MEMORY);
	f.heap.fail_at = SIZE_MAX;
	cr_assert_eq(arena_reserve_sets(&f.arena, 2), PW_OK);
	cr_assert_eq(f.arena.spares, (size_t)2 * TREE_RESERVE);
	arena_trim(&f.arena);
	cr_assert_eq(f.arena.spares, (size_t)TREE_RESERVE);
	fixture_release(&f);
}

/* Undo: a log of old runs, set back newest change first, while the allocator refuses everything. */
#define UNDO_TREES 3
#define UNDO_STEPS 150
struct undone {
	unsigned tree;
	struct change *old;
	size_t n;
};

static void change_and_log(struct tree *t, const struct change *c, struct undone *log)
{
	log->n = runs_of(t, c->first, c->count, &log->old);
	cr_assert_eq(arena_reserve(t->arena), PW_OK);
	set(t, c->first, c->count, c->entry);
}

static void undo_all(struct tree trees[UNDO_TREES], struct undone *log, size_t n)
{
	while (n-- > 0) {
		for (size_t i = 0; i < log[n].n; i++) {
			const struct change *c = &log[n].old[i];

			set(&trees[log[n].tree], c->first, c->count, c->entry);
		}
		free(log[n].old);
	}
}

Test(tree, undoing_changes_never_needs_the_allocator)
{
	uint64_t seed = seed_new("undo");
	struct tree trees[UNDO_TREES];
	struct undone log[UNDO_STEPS];
	struct fixture f;

	fixture_init(&f);
	for (unsigned i = 0; i < UNDO_TREES; i++)
		tree_init(&trees[i], &f.arena);
	for (unsigned round = 0; round < 20; round++) {
		struct change *was[UNDO_TREES], *is;
		size_t runs[UNDO_TREES], nodes = f.arena.nodes;

		for (unsigned i = 0; i < UNDO_TREES; i++)
			runs[i] = runs_of(&trees[i], bases[i], WINDOW, &was[i]);
		for (unsigned step = 0; step < UNDO_STEPS; step++) {
			unsigned i = (unsigned)below(&seed, UNDO_TREES);
			struct change c = random_change(&seed, bases[below(&seed, 10) ? i : 4]);

			log[step].tree = i;
			if (step % 40 == 39)
				c = (struct change){ 0, TREE_PAGES, below(&seed, 2) ? 0 : STATE_OUT };
			change_and_log(&trees[i], &c, &log[step]);
		}
		f.heap = (struct heap){ .fail_at = 0 };
		undo_all(trees, log, UNDO_STEPS);
		cr_assert_eq(f.heap.calls, 0);
		f.heap.fail_at = SIZE_MAX;
		cr_assert_eq(f.arena.nodes, nodes);
		for (unsigned i = 0; i < UNDO_TREES; i++) {
			cr_assert(tree_check(&trees[i]));
			cr_assert_eq(runs_of(&trees[i], bases[i], WINDOW, &is), runs[i]);
			cr_assert_eq(memcmp(is, was[i], runs[i] * sizeof *is), 0);
			free(is);
			free(was[i]);
		}
		for (unsigned step = 0; step < 60; step++) {
			unsigned i = (unsigned)below(&seed, UNDO_TREES);
			struct change c = random_change(&seed, bases[i]);

			set(&trees[i], c.first, c.count, c.entry);
		}
		arena_trim(&f.arena);
	}
	for (unsigned i = 0; i < UNDO_TREES; i++)
		tree_release(&trees[i]);
	fixture_release(&f);
}

/* Pictures: a table of rows keyed by their first page, as a database would keep them. */
struct picture {
	const struct tree *tree;
	struct change *row; /* by first - base; count 0: none */
	uint64_t base;
	uint64_t past;  /* end of the last span */
	uint64_t first; /* start of the last span, or end of the last run in it */
	uint64_t spans, rows;
};

static void picture_span(void *ctx, uint64_t first, uint64_t count)
{
	struct picture *p = ctx;
	uint64_t from = first > p->base ? first - p->base : 0;
	uint64_t end = first + count > p->base ? first + count - p->base : 0;

	cr_assert(count > 0 && first >= p->past && first + count <= TREE_PAGES);
	p->past = first + count;
	p->first = first;
	p->spans++;
	for (uint64_t i = from; i < end && i < WINDOW; i++)
		p->row[i].count = 0;
}

static void picture_run(void *ctx, const struct tree_run *run)
{
	struct picture *p = ctx;

	cr_assert(run->entry && run->count && run->first >= p->first && run->first + run->count <= p->past);
	p->first = run->first + run->count;
	p->rows++;
	cr_assert_eq(p->row[run->first - p->base].count, 0, "two rows with the first page %" PRIu64, run->first);
	p->row[run->first - p->base] = (struct change){ run->first, run->count, run->entry };
}

static void picture_take(struct picture *p, struct tree *t)
{
	struct tree_visitor v = { picture_span, picture_run, p };

	p->past = p->first = p->spans = p->rows = 0;
	tree_clean(t, &v);
}

/* A piece of a picture: what it left out comes later. */
static bool picture_take_some(struct picture *p, struct tree *t, unsigned nodes)
{
	struct tree_visitor v = { picture_span, picture_run, p };

	p->past = p->first = 0;
	return tree_clean_some(t, &v, nodes);
}

static void assert_pictures(const struct picture *p, const struct model *m)
{
	uint64_t at = 0;

	for (uint64_t i = 0; i < WINDOW; i++) {
		const struct change *r = &p->row[i];
		uint64_t entry = r->entry;

		if (r->count == 0)
			continue;
		cr_assert(r->first == p->base + i && i >= at, "row %" PRIu64 " overlaps", r->first);
		for (; at < i; at++)
			cr_assert_eq(m->page[at], 0, "page %" PRIu64 " is in no row", p->base + at);
		for (; at < i + r->count; at++, entry = one_later(entry))
			cr_assert_eq(m->page[at], entry, "page %" PRIu64, p->base + at);
	}
	for (; at < WINDOW; at++)
		cr_assert_eq(m->page[at], 0, "page %" PRIu64 " is in no row", p->base + at);
}

ParameterizedTestParameters(tree, picture_of_dirty_tables_is_the_whole_tree)
{
	return cr_make_param_array(uint64_t, bases, PW_ARRAY_LEN(bases));
}

ParameterizedTest(uint64_t *base, tree, picture_of_dirty_tables_is_the_whole_tree)
{
	uint64_t seed = seed_new("picture");
	struct model m = model_new(*base);
	struct picture p = { .base = *base, .row = calloc(WINDOW, sizeof *p.row) };
	struct fixture f;

	fixture_init(&f);
	for (unsigned round = 0; round < 150; round++) {
		for (uint64_t n = 1 + below(&seed, 30); n > 0; n--) {
			struct change c = random_change(&seed, *base);

			if (below(&seed, 60) == 0)
				c = (struct change){ *base, WINDOW, below(&seed, 2) ? 0 : STATE_OUT };
			set(&f.tree, c.first, c.count, c.entry);
			model_set(&m, &c);
			if (round % 2 && below(&seed, 4) == 0 &&
			    picture_take_some(&p, &f.tree, TREE_LEVELS + (unsigned)below(&seed, 8)))
				assert_pictures(&p, &m);
			cr_assert(tree_check(&f.tree));
		}
		picture_take(&p, &f.tree);
		assert_pictures(&p, &m);
		picture_take(&p, &f.tree);
		cr_assert(p.spans == 0 && p.rows == 0, "a clean tree has nothing to tell");
	}
	memset(p.row, 0xff, WINDOW * sizeof *p.row); /* a picture of something else */
	tree_dirty_all(&f.tree);
	picture_take(&p, &f.tree);
	cr_assert_eq(p.past, TREE_PAGES);
	assert_pictures(&p, &m);
	free(p.row);
	free(m.page);
	fixture_release(&f);
}

Test(tree, picture_in_pieces_comes_to_an_end)
{
	struct model m = model_new(0);
	struct picture p = { .row = calloc(WINDOW, sizeof *p.row) };
	unsigned pieces = 1;
	struct fixture f;

	fixture_init(&f);
	for (uint64_t page = 0; page < WINDOW; page++) {
		struct change c = { page, 1, page % 2 ? STATE_OUT : STATE_SHR };

		set(&f.tree, page, 1, c.entry);
		model_set(&m, &c);
	}
	while (!picture_take_some(&p, &f.tree, TREE_LEVELS))
		cr_assert_lt(++pieces, WINDOW / TREE_FANOUT + 2);
	cr_assert_gt(pieces, 1);
	assert_pictures(&p, &m);
	picture_take(&p, &f.tree);
	cr_assert_eq(p.spans, 0);
	free(p.row);
	free(m.page);
	fixture_release(&f);
}

Test(tree, picture_of_one_change_is_one_table)
{
	struct picture p = { .row = calloc(WINDOW, sizeof *p.row) };
	struct fixture f;

	fixture_init(&f);
	for (uint64_t page = 0; page < WINDOW; page++)
		set(&f.tree, page, 1, page % 2 ? STATE_OUT : STATE_SHR);
	picture_take(&p, &f.tree);
	cr_assert_eq(p.rows, WINDOW);
	set(&f.tree, 1001, 1, STATE_SHR);
	picture_take(&p, &f.tree);
	cr_assert(p.spans == 1 && p.rows == 510 && p.past == 1024, "%" PRIu64 " rows", p.rows);
	set(&f.tree, 1001, 1, STATE_SHR);
	picture_take(&p, &f.tree);
	cr_assert_eq(p.spans, 0, "setting what is so already is no change");
	free(p.row);
	fixture_release(&f);
}

Test(tree, picture_follows_single_pages_that_unfold_and_fold)
{
	struct model m = model_new(0);
	struct picture p = { .row = calloc(WINDOW, sizeof *p.row) };
	struct change changes[] = { { 0, LEVEL2, TREE_LINEAR | 77 },
				    { LEVEL1, 1, 0 },
				    { LEVEL1, 1, TREE_LINEAR | 589 } };
	struct fixture f;

	fixture_init(&f);
	for (unsigned n = 0; n < 2; n++) {
		for (size_t i = 0; i < PW_ARRAY_LEN(changes); i++) {
			set(&f.tree, changes[i].first, changes[i].count, changes[i].entry);
			model_set(&m, &changes[i]);
			picture_take(&p, &f.tree);
			assert_pictures(&p, &m);
		}
		cr_assert_eq(p.rows, 1, "only the table that changed is told again");
		changes[0] = (struct change){ LEVEL2, LEVEL1, STATE_OUT };
		changes[1] = (struct change){ 5, 1, STATE_SHR };
		changes[2] = (struct change){ 5, 1, TREE_LINEAR | 82 };
	}
	free(p.row);
	free(m.page);
	fixture_release(&f);
}

Test(tree, releasing_one_tree_leaves_the_others)
{
	struct fixture f;
	struct tree other;

	fixture_init(&f);
	tree_init(&other, &f.arena);
	set(&f.tree, 3, 700, STATE_OUT);
	set(&other, 3, 700, STATE_SHR);
	tree_release(&other);
	cr_assert_eq(tree_get(&other, 3), 0);
	cr_assert_eq(tree_get(&f.tree, 3), STATE_OUT);
	cr_assert(tree_check(&f.tree) && tree_bytes(&f.tree) == f.arena.nodes * TREE_NODE_BYTES);
	fixture_release(&f);
}

Test(tree, check_sees_broken_trees)
{
	struct fixture f;
	uint64_t *e;

	fixture_init(&f);
	set(&f.tree, 0, 1, STATE_OUT);
	e = tree_table(f.tree.root);
	e[0] = 0;
	cr_assert_not(tree_check(&f.tree), "512 entries that fold");
	e[0] = STATE_OUT;
	f.tree.root = (f.tree.root | TREE_DIRTY_OWN) & ~TREE_DIRTY;
	cr_assert_not(tree_check(&f.tree), "a dirty table that tree_clean would not find");
	f.tree.root |= TREE_DIRTY;
	f.arena.nodes = 0;
	cr_assert_not(tree_check(&f.tree), "a node that the arena does not count");
	f.arena.nodes = 1;
	cr_assert(tree_check(&f.tree));
	fixture_release(&f);
}
