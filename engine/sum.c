/*
 * Sums of tables, made from their entries when somebody asks. Runs on the writer's thread and, for reading, on any that
 * holds the state still; it changes nothing of a tree but sums and TREE_STALE.
 */
#include "engine/sum.h"

#include <string.h>

enum { STEPS_LEAF = 16, STEPS_UPPER = 32 }; /* to make the sum of one table */

#define FLAGS   (~(TREE_LINEAR | TREE_NUMBER)) /* what `any` and `all` are about */
#define NOTHING ((struct tree_sum){ .all = FLAGS })

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t max_u64(uint64_t a, uint64_t b)
{
	return a > b ? a : b;
}

static struct tree_node *node_of(uint64_t word)
{
	return (struct tree_node *)tree_table(word);
}

static uint64_t *root_of(const struct tree *t)
{
	return (uint64_t *)(uintptr_t)&t->root;
}

/* Sums are read and written part by part: see sum.h. */
#define PARTS (sizeof(struct tree_sum) / sizeof(uint64_t))

static struct tree_sum sum_load(uint64_t word)
{
	const uint64_t *from = (const uint64_t *)&node_of(word)->sum;
	uint64_t part[PARTS] = { 0 };
	struct tree_sum s;

	for (size_t i = 0; i < PARTS; i++)
		part[i] = __atomic_load_n(&from[i], __ATOMIC_RELAXED);
	memcpy(&s, part, sizeof s);
	return s;
}

static void sum_store(uint64_t *word, const struct tree_sum *s)
{
	uint64_t *to = (uint64_t *)&node_of(tree_word(word))->sum;
	uint64_t part[PARTS];

	memcpy(part, s, sizeof part);
	for (size_t i = 0; i < PARTS; i++)
		__atomic_store_n(&to[i], part[i], __ATOMIC_RELAXED);
	__atomic_fetch_and(word, ~TREE_STALE, __ATOMIC_RELEASE);
}

static void add_sum(struct tree_sum *to, const struct tree_sum *s)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(s->pages); i++)
		to->pages[i] += s->pages[i];
	to->runs += s->runs;
	to->kinds |= s->kinds;
	to->any |= s->any;
	to->all &= s->all;
}

/* `pages` of a block that reads `entry`; not its run. */
static void add_block(struct tree_sum *to, uint64_t entry, uint64_t pages)
{
	unsigned kind = tree_kind(entry), flag = 3 - (kind >> 4);

	if (flag < PW_ARRAY_LEN(to->pages))
		to->pages[flag] += pages;
	to->kinds |= (uint64_t)1 << kind;
	if (entry & TREE_LINEAR) {
		to->any |= entry & FLAGS;
		to->all &= entry & FLAGS;
	}
}

/* The sum of entries [i, end) of a table; tables among them must have theirs. */
static struct tree_sum sum_entries(const uint64_t *e, unsigned level, unsigned i, unsigned end)
{
	struct tree_sum s = NOTHING;
	uint64_t step = tree_pages_at(level), expected = TREE_TABLE;

	for (; i < end; i++) {
		uint64_t word = tree_word(&e[i]);

		if (word & TREE_TABLE) {
			struct tree_sum below = sum_load(word);

			add_sum(&s, &below);
			expected = TREE_TABLE;
			continue;
		}
		add_block(&s, word, step);
		s.runs += word != expected;
		expected = tree_entry_after(word, step);
	}
	return s;
}

static void make_sum(uint64_t *word, unsigned level, struct tree_walk *w)
{
	struct tree_sum s = sum_entries(tree_table(tree_word(word)), level - 1, 0, TREE_FANOUT);

	w->steps += level == 1 ? STEPS_LEAF : STEPS_UPPER;
	sum_store(word, &s);
}

/* A question about the pages of [from, end) of a tree. */
struct search {
	uint64_t from, end;
	uint64_t kinds;
	struct tree_walk *walk;
	struct tree_sum sum; /* answers: what is there, */
	uint64_t runs;       /* how many runs of these kinds, */
	uint64_t at;         /* and where the first is, or where counting ended early */
};

/* A table and which of its entries the search is about. */
struct table {
	uint64_t *word;
	const uint64_t *e;
	unsigned level; /* of its entries */
	uint64_t base;
	unsigned first, last;
	bool whole, stale;
};

static struct table table_at(const struct search *s, uint64_t *word, unsigned level, uint64_t base)
{
	uint64_t step = tree_pages_at(level - 1), past = base + tree_pages_at(level);
	uint64_t now = __atomic_load_n(word, __ATOMIC_ACQUIRE);

	return (struct table){ .word = word,
			       .e = tree_table(now),
			       .level = level - 1,
			       .base = base,
			       .first = (unsigned)((max_u64(s->from, base) - base) / step),
			       .last = (unsigned)((min_u64(s->end, past) - 1 - base) / step),
			       .whole = s->from <= base && past <= s->end,
			       .stale = now & TREE_STALE };
}

/* A leaf's sum costs no more than looking through it. */
static void mend_leaf(struct table *t, struct tree_walk *w)
{
	if (!t->stale || !t->whole || t->level > 0)
		return;
	make_sum(t->word, 1, w);
	t->stale = false;
}

/* All tables below a table have been mended. */
static void mend_upper(const struct table *t, struct tree_walk *w)
{
	if (t->stale && t->whole && !walk_is_over(w))
		make_sum(t->word, t->level + 1, w);
}

static uint64_t *entry_of(const struct table *t, unsigned i)
{
	return &tree_table(tree_word(t->word))[i];
}

/* Summing. */

static void sum_word(struct search *s, uint64_t *word, unsigned level, uint64_t base)
{
	uint64_t now = tree_word(word);
	struct table t;

	if (!(now & TREE_TABLE)) {
		add_block(&s->sum, now, min_u64(s->end, base + tree_pages_at(level)) - max_u64(s->from, base));
		s->sum.runs++;
		return;
	}
	t = table_at(s, word, level, base);
	mend_leaf(&t, s->walk);
	if (t.whole && !t.stale) {
		struct tree_sum below = sum_load(now);

		add_sum(&s->sum, &below);
		return;
	}
	for (unsigned i = t.first; i <= t.last && !walk_is_over(s->walk); i++)
		sum_word(s, entry_of(&t, i), t.level, base + i * tree_pages_at(t.level));
	mend_upper(&t, s->walk);
}

struct tree_sum tree_sum(const struct tree *t, uint64_t from, uint64_t end, struct tree_walk *w)
{
	struct search s = { .from = from, .end = end, .walk = w, .sum = NOTHING };
	uint64_t size = tree_pages_at(t->height);

	if (from < end && from < size)
		sum_word(&s, root_of(t), t->height, 0);
	if (from < end && end > size) {
		add_block(&s.sum, 0, end - max_u64(from, size));
		s.sum.runs++;
	}
	return s.sum;
}

/* Finding. */

static bool has_kind(const struct search *s, uint64_t entry)
{
	return s->kinds >> tree_kind(entry) & 1;
}

/* Nothing that is searched for is in the table, as far as its sum says. */
static bool is_without(const struct search *s, const struct table *t)
{
	return !t->stale && !(sum_load(tree_word(t->word)).kinds & s->kinds);
}

static bool find_word(struct search *s, uint64_t *word, unsigned level, uint64_t base)
{
	uint64_t now = tree_word(word);
	struct table t;

	if (!(now & TREE_TABLE)) {
		s->at = max_u64(base, s->from);
		return has_kind(s, now);
	}
	s->walk->steps++;
	t = table_at(s, word, level, base);
	mend_leaf(&t, s->walk);
	if (is_without(s, &t))
		return false;
	for (unsigned i = t.first; i <= t.last && !walk_is_over(s->walk); i++)
		if (find_word(s, entry_of(&t, i), t.level, base + i * tree_pages_at(t.level)))
			return true;
	mend_upper(&t, s->walk);
	return false;
}

bool tree_find_kind(const struct tree *t, uint64_t from, uint64_t end, uint64_t kinds, struct tree_walk *w,
		    struct tree_run *out)
{
	struct search s = { .from = from, .end = end, .kinds = kinds, .walk = w };
	uint64_t size = tree_pages_at(t->height);
	bool found = from < end && from < size && find_word(&s, root_of(t), t->height, 0);

	if (walk_is_over(w))
		return false;
	if (!found && from < end && end > size) {
		s.at = max_u64(from, size);
		found = has_kind(&s, 0);
	}
	if (found)
		*out = tree_run_at(t, s.at, end);
	return found;
}

/* Counting runs. */

static void count_entries(struct search *s, const struct table *t)
{
	uint64_t step = tree_pages_at(t->level), expected = TREE_TABLE;

	for (unsigned i = t->first; i <= t->last; i++) {
		uint64_t entry = tree_word(&t->e[i]);

		s->runs += entry != expected && has_kind(s, entry);
		expected = tree_entry_after(entry, step);
	}
	s->walk->steps += STEPS_LEAF;
}

static void count_word(struct search *s, uint64_t *word, unsigned level, uint64_t base)
{
	uint64_t now = tree_word(word);
	struct table t;

	if (!(now & TREE_TABLE)) {
		s->runs += has_kind(s, now);
		return;
	}
	s->walk->steps++;
	t = table_at(s, word, level, base);
	mend_leaf(&t, s->walk);
	if (is_without(s, &t))
		return;
	if (t.whole && !t.stale && !(sum_load(now).kinds & ~s->kinds)) {
		s->runs += sum_load(now).runs;
		return;
	}
	if (t.level == 0) {
		count_entries(s, &t);
		return;
	}
	for (unsigned i = t.first; i <= t.last; i++) {
		if (walk_is_over(s->walk)) {
			s->at = min_u64(s->at, max_u64(s->from, base + i * tree_pages_at(t.level)));
			return;
		}
		count_word(s, entry_of(&t, i), t.level, base + i * tree_pages_at(t.level));
	}
	mend_upper(&t, s->walk);
}

uint64_t tree_count_runs(const struct tree *t, uint64_t *from, uint64_t end, uint64_t kinds, struct tree_walk *w)
{
	struct search s = { .from = *from, .end = end, .kinds = kinds, .walk = w, .at = end };
	uint64_t size = tree_pages_at(t->height);

	if (s.from < end && s.from < size)
		count_word(&s, root_of(t), t->height, 0);
	if (s.from < end && s.at == end && end > size)
		s.runs += has_kind(&s, 0);
	*from = s.at;
	return s.runs;
}

/* Checking. */

static bool sum_is_right(uint64_t word, unsigned level)
{
	const uint64_t *e;
	struct tree_sum made, kept;

	if (!(word & TREE_TABLE))
		return true;
	e = tree_table(word);
	for (unsigned i = 0; level > 1 && i < TREE_FANOUT; i++)
		if (!sum_is_right(e[i], level - 1))
			return false;
	if (word & TREE_STALE)
		return true;
	made = sum_entries(e, level - 1, 0, TREE_FANOUT);
	kept = sum_load(word);
	return memcmp(&made, &kept, sizeof made) == 0;
}

bool tree_sums_check(const struct tree *t)
{
	return sum_is_right(t->root, t->height);
}
