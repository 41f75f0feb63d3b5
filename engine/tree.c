#include "engine/tree.h"

#include <assert.h>
#include <limits.h>
#include <string.h>

#define CACHE_LINE 64
#define GROUP      (CACHE_LINE / 8u) /* entries of one cache line */

static_assert(sizeof(struct tree_node) + CACHE_LINE - _Alignof(max_align_t) <= TREE_NODE_BYTES, "a node must fit");

/* What tree_set did to the word that it was given, and below it. */
enum touch {
	TOUCH_NONE = 0,
	TOUCH_BELOW = 1, /* a table under the word was written */
	TOUCH_WORD = 2,  /* the word itself was */
};

struct range {
	uint64_t first, end;
	uint64_t entry; /* of first */
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

/* Arena. */

void arena_init(struct arena *a, struct pw_mem *mem)
{
	*a = (struct arena){ .mem = mem };
}

static void spare_push(struct arena *a, struct tree_node *n)
{
	n->entry[0] = (uintptr_t)a->spare;
	a->spare = n;
	a->spares++;
}

static struct tree_node *spare_pop(struct arena *a)
{
	struct tree_node *n = a->spare;

	assert(n);
	a->spare = (struct tree_node *)(uintptr_t)n->entry[0];
	a->spares--;
	return n;
}

/* Places a node on the first cache line of its memory. */
static struct tree_node *node_at(void *memory)
{
	uintptr_t at = ((uintptr_t)memory + CACHE_LINE - 1) & ~(uintptr_t)(CACHE_LINE - 1);
	struct tree_node *n = (struct tree_node *)at;

	n->memory = memory;
	return n;
}

static void spares_free(struct arena *a, size_t keep)
{
	while (a->spares > keep)
		pw_mem_free(a->mem, spare_pop(a)->memory, TREE_NODE_BYTES);
}

static enum pw_status spares_fill(struct arena *a, size_t n)
{
	while (a->spares < n) {
		void *memory = pw_mem_alloc(a->mem, TREE_NODE_BYTES);

		if (!memory)
			return PW_NO_MEMORY;
		spare_push(a, node_at(memory));
	}
	return PW_OK;
}

void arena_release(struct arena *a)
{
	assert(a->nodes == 0);
	spares_free(a, 0);
}

void arena_trim(struct arena *a)
{
	spares_free(a, TREE_RESERVE);
}

void arena_trim_to(struct arena *a, size_t keep)
{
	spares_free(a, keep);
}

enum pw_status arena_reserve(struct arena *a)
{
	return spares_fill(a, TREE_RESERVE);
}

enum pw_status arena_reserve_sets(struct arena *a, size_t sets)
{
	return spares_fill(a, sets * TREE_RESERVE);
}

/* A new table's word, dirty, its entries not yet written. A spare node must be there. */
static uint64_t table_new(struct arena *a)
{
	struct tree_node *n = spare_pop(a);

	a->nodes++;
	return TREE_TABLE | TREE_DIRTY | TREE_DIRTY_OWN | TREE_STALE | (uintptr_t)n;
}

static void table_free(struct arena *a, uint64_t word)
{
	a->nodes--;
	spare_push(a, (struct tree_node *)tree_table(word));
}

/* Frees all tables under a word. Its level bounds the depth. */
static void tables_free(struct arena *a, uint64_t word, unsigned level)
{
	if (!(word & TREE_TABLE))
		return;
	for (unsigned i = 0; level > 1 && i < TREE_FANOUT; i++)
		tables_free(a, tree_table(word)[i], level - 1);
	table_free(a, word);
}

/* Folding. */

/* Do the entries of the group at `from` read as a block that has `entry` at index `at`? Is silent about `at` itself. */
static bool group_folds(const uint64_t *e, unsigned from, unsigned at, uint64_t entry, uint64_t step)
{
	uint64_t mask = step ? TREE_NUMBER : 0, keep = entry & ~mask;
	uint64_t number = entry + ((uint64_t)from - at) * step;
	uint64_t differ = 0;

	for (unsigned i = 0; i < GROUP; i++, number += step)
		differ |= from + i == at ? 0 : e[from + i] ^ (keep | (number & mask));
	return differ == 0;
}

/* The entries of a table that one block stands for, some at a time: vectors, because all 512 are read or written. */
#define LANES 2
typedef uint64_t lanes __attribute__((vector_size(LANES * sizeof(uint64_t))));
struct block_entries {
	lanes flags, number, step;
};

static inline struct block_entries block_entries(uint64_t first, uint64_t step)
{
	return (struct block_entries){ (first & ~TREE_NUMBER) - (lanes){ 0 },
				       { first, first + step },
				       LANES * step - (lanes){ 0 } };
}

static inline lanes block_next(struct block_entries *b)
{
	lanes now = b->flags | (b->number & TREE_NUMBER);

	b->number += b->step;
	return now;
}

enum { STRIDE = 64 }; /* entries: as many are compared before one looks at what came out */

/* Can one block stand for all entries, each of which stands for 512^level pages? Looks first around `near`. */
static bool table_folds(const uint64_t *e, unsigned level, unsigned near)
{
	uint64_t entry = e[near], step = entry & TREE_LINEAR ? tree_pages_at(level) : 0;
	struct block_entries block =
		block_entries((entry & ~TREE_NUMBER) | ((entry - near * step) & TREE_NUMBER), step);

	if (entry & TREE_TABLE || !group_folds(e, near & ~(GROUP - 1), near, entry, step))
		return false;
	for (unsigned from = 0; from < TREE_FANOUT; from += STRIDE) {
		lanes differ = { 0 };

		for (unsigned i = from; i < from + STRIDE; i += LANES) {
			lanes have;

			memcpy(&have, e + i, sizeof have);
			differ |= have ^ block_next(&block);
		}
		if (differ[0] | differ[1])
			return false;
	}
	return true;
}

static void fold(struct tree *t, uint64_t *word)
{
	uint64_t block = tree_table(*word)[0];

	table_free(t->arena, *word);
	*word = block;
}

/* Replaces a block of 512^level pages by a table that reads the same. */
static void unfold(struct tree *t, uint64_t *word, unsigned level)
{
	struct block_entries block = block_entries(*word, *word & TREE_LINEAR ? tree_pages_at(level - 1) : 0);
	uint64_t *e;

	*word = table_new(t->arena);
	e = tree_table(*word);
	for (unsigned i = 0; i < TREE_FANOUT; i += LANES) {
		lanes now = block_next(&block);

		memcpy(e + i, &now, sizeof now);
	}
}

/* The tree's top. */

void tree_init(struct tree *t, struct arena *a)
{
	*t = (struct tree){ .arena = a, .height = 1 };
}

void tree_release(struct tree *t)
{
	tables_free(t->arena, t->root, t->height);
	tree_init(t, t->arena);
}

static bool only_first_used(const uint64_t *e)
{
	for (unsigned i = 1; i < TREE_FANOUT; i++)
		if (e[i])
			return false;
	return true;
}

/* Lowers the root to what the content needs. */
static void lower(struct tree *t)
{
	while (t->height > 1 && t->root & TREE_TABLE && only_first_used(tree_table(t->root))) {
		fold(t, &t->root);
		t->height--;
		t->root_dirty = true;
	}
	if (t->root == 0)
		t->height = 1;
}

static unsigned height_for(uint64_t end)
{
	unsigned height = 1;

	while (end > tree_pages_at(height))
		height++;
	return height;
}

/* Puts tables above the root until it covers `end` pages. The content stays; `lower` takes it back. */
static enum pw_status raise(struct tree *t, uint64_t end)
{
	unsigned height = height_for(end);

	if (height <= t->height)
		return PW_OK;
	if (t->root == 0) {
		t->height = height;
		return PW_OK;
	}
	if (spares_fill(t->arena, height - t->height) != PW_OK)
		return PW_NO_MEMORY;
	while (t->height < height) {
		uint64_t word = table_new(t->arena);
		uint64_t *e = tree_table(word);

		for (unsigned i = 1; i < TREE_FANOUT; i++)
			e[i] = 0;
		e[0] = t->root;
		t->root = word;
		t->height++;
	}
	return PW_OK;
}

/* Setting. */

static bool reads_same(uint64_t block, uint64_t base, const struct range *r)
{
	uint64_t at = max_u64(base, r->first);

	return tree_entry_after(block, at - base) == tree_entry_after(r->entry, at - r->first);
}

/* How many blocks `set_word` would unfold. */
static size_t unfolds(uint64_t word, unsigned level, uint64_t base, const struct range *r)
{
	uint64_t step, from, to;
	bool table = word & TREE_TABLE;
	size_t n = !table;

	if (base >= r->end || base + tree_pages_at(level) <= r->first)
		return 0;
	if (r->first <= base && base + tree_pages_at(level) <= r->end)
		return 0;
	if (!table && reads_same(word, base, r))
		return 0;
	step = tree_pages_at(level - 1);
	from = base + (max_u64(r->first, base) - base) / step * step;
	to = base + (min_u64(r->end, base + tree_pages_at(level)) - 1 - base) / step * step;
	for (uint64_t at = from; at <= to; at += max_u64(to - from, step)) {
		uint64_t child =
			table ? tree_table(word)[tree_index(at, level - 1)] : tree_entry_after(word, at - base);

		n += unfolds(child, level - 1, at, r);
	}
	return n;
}

static enum touch set_table(struct tree *t, uint64_t *word, unsigned level, uint64_t base, const struct range *r);

/* Sets the part of a range that lies in the word's pages [base, base + 512^level); some of it does. */
static enum touch set_word(struct tree *t, uint64_t *word, unsigned level, uint64_t base, const struct range *r)
{
	enum touch touched = TOUCH_NONE;

	if (!(*word & TREE_TABLE) && reads_same(*word, base, r))
		return TOUCH_NONE;
	if (r->first <= base && base + tree_pages_at(level) <= r->end) {
		tables_free(t->arena, *word, level);
		*word = tree_entry_after(r->entry, base - r->first);
		return TOUCH_WORD;
	}
	if (!(*word & TREE_TABLE)) {
		unfold(t, word, level);
		touched = TOUCH_WORD;
	}
	return touched | set_table(t, word, level, base, r);
}

static enum touch set_table(struct tree *t, uint64_t *word, unsigned level, uint64_t base, const struct range *r)
{
	uint64_t *e = tree_table(*word);
	uint64_t step = tree_pages_at(level - 1);
	unsigned first = (unsigned)((max_u64(r->first, base) - base) / step);
	unsigned last = (unsigned)((min_u64(r->end, base + tree_pages_at(level)) - 1 - base) / step);
	enum touch touched = TOUCH_NONE;

	for (unsigned i = first; i <= last; i++)
		touched |= set_word(t, &e[i], level - 1, base + i * step, r);
	if (touched == TOUCH_NONE)
		return TOUCH_NONE;
	*word |= TREE_DIRTY | TREE_STALE;
	if (!(touched & TOUCH_WORD))
		return TOUCH_BELOW;
	*word |= TREE_DIRTY_OWN;
	if (!table_folds(e, level - 1, first))
		return TOUCH_BELOW;
	fold(t, word);
	return TOUCH_WORD;
}

static enum pw_status reserve_for(struct tree *t, const struct range *r)
{
	if (t->arena->spares >= TREE_RESERVE)
		return PW_OK;
	return spares_fill(t->arena, unfolds(t->root, t->height, 0, r));
}

static enum pw_status set_range(struct tree *t, struct range *r)
{
	enum pw_status st;

	if (r->entry == 0)
		r->end = min_u64(r->end, tree_pages_at(t->height));
	if (r->first >= r->end)
		return PW_OK;
	st = raise(t, r->end);
	if (st == PW_OK)
		st = reserve_for(t, r);
	if (st == PW_OK && set_word(t, &t->root, t->height, 0, r) & TOUCH_WORD)
		t->root_dirty = true;
	lower(t);
	return st;
}

enum pw_status tree_set(struct tree *t, uint64_t first, uint64_t count, uint64_t entry)
{
	struct range r = { first, first + count, entry };
	struct tree_spot at;

	assert(first <= TREE_PAGES && count <= TREE_PAGES - first && !(entry & TREE_TABLE));
	if (count != 1 || !tree_find(t, first, &at))
		return set_range(t, &r);
	tree_put(t, first, &at, entry);
	return PW_OK;
}

/* Marks the leaf table of a page dirty and stale, and the way to it. */
static __attribute__((noinline)) void mark_leaf(struct tree *t, uint64_t page)
{
	uint64_t *word = &t->root;

	for (unsigned level = t->height; level > 1; level--) {
		*word |= TREE_DIRTY | TREE_STALE;
		word = &tree_table(*word)[tree_index(page, level - 1)];
	}
	*word |= TREE_DIRTY | TREE_DIRTY_OWN | TREE_STALE;
}

/* Folds the leaf table of a page, which folds, and what then folds above it. */
static __attribute__((noinline)) void fold_up(struct tree *t, uint64_t page)
{
	uint64_t *way[TREE_LEVELS + 1] = { NULL }; /* way[n]: the word that stands for 512^n pages */
	unsigned level = t->height;

	way[level] = &t->root;
	for (; level > 1; level--)
		way[level - 1] = &tree_table(*way[level])[tree_index(page, level - 1)];
	for (;;) {
		fold(t, way[level]);
		if (level == t->height) {
			t->root_dirty = true;
			break;
		}
		*way[level + 1] |= TREE_DIRTY | TREE_DIRTY_OWN | TREE_STALE;
		if (!table_folds(tree_table(*way[level + 1]), level, tree_index(page, level)))
			break;
		level++;
	}
	if (level + 1 >= t->height)
		lower(t);
}

/*
 * May the table fold once `entry` is at index i? Compares the flags of the neighbours in one cache line. No branches,
 * for the answer of one would wait for memory, and all that comes after a wrong guess with it.
 */
static inline bool neighbours_agree(const uint64_t *e, unsigned i, uint64_t entry)
{
	uint64_t differ = 0;

	for (unsigned k = 1; k < GROUP; k++)
		differ |= e[i ^ k] ^ entry;
	return (differ & ~TREE_NUMBER) == 0;
}

/* The neighbours are read before the write, so that no wide load waits for a store that is under way. */
void tree_put(struct tree *t, uint64_t page, const struct tree_spot *at, uint64_t entry)
{
	const uint64_t marks = TREE_DIRTY | TREE_DIRTY_OWN | TREE_STALE;
	unsigned i = tree_index(page, 0);
	uint64_t *e = at->word - i;
	bool may_fold = neighbours_agree(e, i, entry);

	assert(!(entry & TREE_TABLE));
	if (e[i] == entry)
		return;
	e[i] = entry;
	if ((*at->table & marks) != marks)
		mark_leaf(t, page);
	if (may_fold && table_folds(e, 0, i))
		fold_up(t, page);
}

/* Reading runs. */

struct tree_run tree_run_at(const struct tree *t, uint64_t from, uint64_t end)
{
	const uint64_t *table[TREE_LEVELS];
	uint64_t size = tree_pages_at(t->height);
	struct tree_run run = { .first = from };
	unsigned level = t->height;
	uint64_t at = from, word = tree_word(&t->root);

	assert(from < end && end <= TREE_PAGES);
	if (from < size) {
		while (word & TREE_TABLE) {
			table[--level] = tree_table(word);
			word = tree_word(&table[level][tree_index(at, level)]);
		}
		run.entry = tree_entry_after(word, at & (tree_pages_at(level) - 1));
		at = (at | (tree_pages_at(level) - 1)) + 1;
	}
	while (at < end && at < size) {
		while (tree_index(at, level) == 0)
			level++;
		word = tree_word(&table[level][tree_index(at, level)]);
		while (word & TREE_TABLE) {
			table[--level] = tree_table(word);
			word = tree_word(&table[level][0]);
		}
		if (word != tree_entry_after(run.entry, at - from))
			break;
		at += tree_pages_at(level);
	}
	if (at >= size && run.entry == 0)
		at = end;
	run.count = min_u64(at, end) - from;
	return run;
}

/* Pictures. */

/* The entries [i, end) of a table are blocks: tells the visitor about them. */
static void visit_blocks(const uint64_t *e, unsigned i, unsigned end, unsigned level, uint64_t base,
			 const struct tree_visitor *v)
{
	uint64_t first = base + i * tree_pages_at(level);
	uint64_t past = min_u64(base + end * tree_pages_at(level), TREE_PAGES);

	if (first >= past)
		return;
	v->span(v->ctx, first, past - first);
	while (i < end) {
		struct tree_run run = { base + i * tree_pages_at(level), 0, e[i] };

		for (; i < end && e[i] == tree_entry_after(run.entry, run.count); i++)
			run.count += tree_pages_at(level);
		if (run.entry)
			v->run(v->ctx, &run);
	}
}

/* False: *nodes dirty tables were looked at, and this one or one below it is dirty still. */
static bool clean_table(uint64_t *word, unsigned level, uint64_t base, const struct tree_visitor *v, unsigned *nodes)
{
	uint64_t *e = tree_table(*word);
	bool own = *word & TREE_DIRTY_OWN;
	unsigned i = 0;

	if (!(*word & TREE_DIRTY))
		return true;
	if (*nodes == 0)
		return false;
	--*nodes;
	level--;
	while (i < TREE_FANOUT) {
		unsigned from = i;

		while (i < TREE_FANOUT && !(e[i] & TREE_TABLE))
			i++;
		if (own && from < i)
			visit_blocks(e, from, i, level, base, v);
		for (; i < TREE_FANOUT && e[i] & TREE_TABLE; i++)
			if (!clean_table(&e[i], level, base + i * tree_pages_at(level), v, nodes))
				return false;
	}
	*word &= ~(TREE_DIRTY | TREE_DIRTY_OWN);
	return true;
}

/* The root and the empty pages past it are like one more table. */
static void clean_top(struct tree *t, const struct tree_visitor *v)
{
	uint64_t size = tree_pages_at(t->height);
	uint64_t first = t->root & TREE_TABLE ? size : 0;
	struct tree_run run = { 0, size, t->root };

	if (!t->root_dirty || first >= TREE_PAGES)
		return;
	v->span(v->ctx, first, TREE_PAGES - first);
	if (first == 0 && t->root)
		v->run(v->ctx, &run);
}

bool tree_clean_some(struct tree *t, const struct tree_visitor *v, unsigned nodes)
{
	if (t->root & TREE_TABLE && !clean_table(&t->root, t->height, 0, v, &nodes))
		return false;
	clean_top(t, v);
	t->root_dirty = false;
	return true;
}

void tree_clean(struct tree *t, const struct tree_visitor *v)
{
	bool all = tree_clean_some(t, v, UINT_MAX);

	assert(all);
}

static void dirty_tables(uint64_t *word, unsigned level)
{
	if (!(*word & TREE_TABLE))
		return;
	*word |= TREE_DIRTY | TREE_DIRTY_OWN;
	for (unsigned i = 0; level > 1 && i < TREE_FANOUT; i++)
		dirty_tables(&tree_table(*word)[i], level - 1);
}

void tree_dirty_all(struct tree *t)
{
	dirty_tables(&t->root, t->height);
	t->root_dirty = true;
}

/* Accounts and checks. */

static size_t count_tables(uint64_t word, unsigned level)
{
	size_t n = 1;

	if (!(word & TREE_TABLE))
		return 0;
	for (unsigned i = 0; level > 1 && i < TREE_FANOUT; i++)
		n += count_tables(tree_table(word)[i], level - 1);
	return n;
}

size_t tree_bytes(const struct tree *t)
{
	return count_tables(t->root, t->height) * TREE_NODE_BYTES;
}

static bool check_word(uint64_t word, unsigned level, uint64_t base, bool may_be_dirty)
{
	const uint64_t *e;

	if (!(word & TREE_TABLE))
		return word == 0 || base < TREE_PAGES;
	if (level == 0 || base >= TREE_PAGES || (word & TREE_DIRTY && !may_be_dirty))
		return false;
	if (word & TREE_DIRTY_OWN && !(word & TREE_DIRTY))
		return false;
	e = tree_table(word);
	for (unsigned i = 0; i < TREE_FANOUT; i++)
		if ((e[i] & TREE_TABLE && e[i] & TREE_STALE && !(word & TREE_STALE)) ||
		    !check_word(e[i], level - 1, base + i * tree_pages_at(level - 1), word & TREE_DIRTY))
			return false;
	return !table_folds(e, level - 1, 0);
}

bool tree_check(const struct tree *t)
{
	if (t->height < 1 || t->height > TREE_LEVELS || !check_word(t->root, t->height, 0, true))
		return false;
	if (t->height > 1 && (t->root == 0 || (t->root & TREE_TABLE && only_first_used(tree_table(t->root)))))
		return false;
	return count_tables(t->root, t->height) <= t->arena->nodes;
}
