/* engine/tree.h
 *
 * The page tree: a 512-ary radix tree over 4 KiB pages (any page size, in fact: it counts pages) whose entries are
 * 64-bit words. An entry at an upper level is a block: it stands for 512, 512^2 ... pages. A number entry
 * (TREE_LINEAR) counts up page by page through its block, so that consecutive frames need one word.
 *
 * The tree is always fully folded: 512 entries that one block can stand for are one block, and the root is no higher
 * than the last page set needs. Its shape, and so its memory, is therefore a function of its content alone.
 *
 * Invariants (tree_check): no table whose 512 entries fold; no root table that only its first entry uses; no page at
 * or past 2^40; nodes counted in the arena; TREE_DIRTY on every way to a dirty node, TREE_STALE on every way to a stale
 * one.
 */
#ifndef PW_ENGINE_TREE_H
#define PW_ENGINE_TREE_H
#include "engine/mem.h"

#define TREE_PAGES  ((uint64_t)1 << 40)       /* pages are numbered below this */
#define TREE_LINEAR ((uint64_t)1 << 63)       /* bits 39..0 count up by one a page */
#define TREE_TABLE  ((uint64_t)1 << 60)       /* the tree's own mark: never part of an entry */
#define TREE_NUMBER (((uint64_t)1 << 40) - 1) /* bits 39..0 */

#define TREE_BITS   9
#define TREE_FANOUT (1 << TREE_BITS)
#define TREE_LEVELS 5 /* 512^5 pages are enough */

/*
 * What lies below one table (engine/sum.h reads and repairs it). Flags 63, 62 and 61 are what the entries' owner makes
 * of them; an entry counts for the highest one that it has.
 */
struct tree_sum {
	uint64_t pages[3]; /* by flag: of bit 63 (TREE_LINEAR), bit 62, bit 61 */
	uint64_t runs;  /* stretches that read as one, the empty ones too; one that a table's edge cuts counts twice */
	uint64_t kinds; /* bit tree_kind(entry) of every entry */
	uint64_t any, all; /* bits 62..40 that some, and that all linear entries have */
};

/*
 * The entries of one table. Dirty marks are kept in the word that names the table, so that they share a cache line
 * with what a walk reads anyway, and so that tree_clean need not look into clean tables. A node starts on a cache line,
 * so that 8 neighbours cost one.
 */
struct tree_node {
	uint64_t entry[TREE_FANOUT];
	struct tree_sum sum; /* of no meaning while the word that names the table has TREE_STALE */
	void *memory;        /* what pw_mem_alloc gave: up to 48 bytes before it */
};
#define TREE_NODE_BYTES 4208
#define TREE_DIRTY_OWN  ((uint64_t)1 << 0) /* block entries of this table were written */
#define TREE_DIRTY      ((uint64_t)1 << 1) /* this table or one below it is dirty */
#define TREE_STALE      ((uint64_t)1 << 2) /* this table or one below it was written since its sum was made */
#define TREE_MARKS      ((uint64_t)15)     /* nodes are aligned */

/*
 * The nodes of any number of trees. Nodes that a fold gives back stay here until arena_trim, so that whoever undoes
 * changes since the last trim never needs the allocator (see ledger_rollback): if arena_reserve was called before each
 * set, setting the old runs back, newest change first, finds all nodes here.
 */
struct arena {
	struct pw_mem *mem;      /* borrowed */
	struct tree_node *spare; /* linked by their first entries */
	size_t spares;
	size_t nodes; /* in use by trees */
};

void arena_init(struct arena *a, struct pw_mem *mem);
void arena_release(struct arena *a); /* all trees must have been released */
void arena_trim(struct arena *a);    /* give spare nodes back, all but a small reserve */
void arena_trim_to(struct arena *a, size_t keep);

struct tree {
	struct arena *arena; /* borrowed */
	uint64_t root;       /* an entry that stands for 512^height pages from page 0, or a table */
	unsigned height;     /* 1..TREE_LEVELS, the least that content allows; pages past it are empty */
	bool root_dirty;     /* root, or the emptiness past it, was written */
};

void tree_init(struct tree *t, struct arena *a); /* all empty: every entry 0 */
void tree_release(struct tree *t);

/* `entry` as it reads `pages` later in its run. */
static inline uint64_t tree_entry_after(uint64_t entry, uint64_t pages)
{
	return entry & TREE_LINEAR ? (entry & ~TREE_NUMBER) | ((entry + pages) & TREE_NUMBER) : entry;
}

/* Reads a word that another reader may be taking TREE_STALE off (engine/sum.h); nothing else changes while one reads.
 */
static inline uint64_t tree_word(const uint64_t *at)
{
	return __atomic_load_n(at, __ATOMIC_RELAXED);
}

/* How many pages an entry of a table whose entries stand for 512^level pages has. */
static inline uint64_t tree_pages_at(unsigned level)
{
	return (uint64_t)1 << (TREE_BITS * level);
}

/* The entries of the table that a TREE_TABLE word names. */
static inline uint64_t *tree_table(uint64_t word)
{
	return ((struct tree_node *)(uintptr_t)(word & ~(TREE_TABLE | TREE_MARKS)))->entry;
}

/* Where `page` is in a table whose entries stand for 512^level pages. */
static inline unsigned tree_index(uint64_t page, unsigned level)
{
	return (unsigned)(page >> (TREE_BITS * level)) & (TREE_FANOUT - 1);
}

/* The entry of one page, its number advanced to that page; 0 where nothing was set. page < TREE_PAGES. */
static inline uint64_t tree_get(const struct tree *t, uint64_t page)
{
	unsigned level = t->height;
	uint64_t word = tree_word(&t->root);

	if (page >> (TREE_BITS * level))
		return 0;
	while (word & TREE_TABLE)
		word = tree_word(&tree_table(word)[tree_index(page, --level)]);
	return tree_entry_after(word, page & (((uint64_t)1 << (TREE_BITS * level)) - 1));
}

/*
 * Sets [first, first + count), whose first page gets `entry` (linear entries count up from there). entry 0 clears.
 * Costs the edges of the range, not its length.
 * PW_NO_MEMORY  nothing changed. Can only happen if the arena has fewer than TREE_RESERVE spare nodes. Spare nodes are
 *               used as far as they go before any is allocated.
 */
enum pw_status tree_set(struct tree *t, uint64_t first, uint64_t count, uint64_t entry) PW_MUST_CHECK;

/* After this has succeeded, the next tree_set on any tree of the arena cannot fail. */
#define TREE_RESERVE 12
enum pw_status arena_reserve(struct arena *a) PW_MUST_CHECK;
/* The same for the next `sets` tree_sets together. */
enum pw_status arena_reserve_sets(struct arena *a, size_t sets) PW_MUST_CHECK;

/*
 * One page for check and change with one walk. A spot is void after any other change of the tree.
 *
 *	if (tree_find(t, page, &spot) && may_change(*spot.word))
 *		tree_put(t, page, &spot, entry);
 */
struct tree_spot {
	uint64_t *word;  /* the page's entry: read it here, change it by tree_put only */
	uint64_t *table; /* the word that names its table */
};
/* False if no table has an entry for this page alone: then tree_get reads it, and tree_set changes it. */
static inline bool tree_find(struct tree *t, uint64_t page, struct tree_spot *out)
{
	unsigned level = t->height;
	uint64_t *word = &t->root;

	if (page >> (TREE_BITS * level))
		return false;
	while (*word & TREE_TABLE) {
		out->table = word;
		word = &tree_table(*word)[tree_index(page, --level)];
	}
	out->word = word;
	return level == 0;
}
void tree_put(struct tree *t, uint64_t page, const struct tree_spot *at, uint64_t entry);

/*
 * Asks the cache for the entry of `page`, for use some hundred nanoseconds later. Forced inline: GCC takes a function
 * that only prefetches for pure, and drops the call.
 */
static inline __attribute__((always_inline)) void tree_prefetch(const struct tree *t, uint64_t page)
{
	unsigned level = t->height;
	uint64_t word = t->root;

	if (page >> (TREE_BITS * level))
		return;
	while (word & TREE_TABLE && level > 1)
		word = tree_table(word)[tree_index(page, --level)];
	if (word & TREE_TABLE)
		__builtin_prefetch(&tree_table(word)[tree_index(page, 0)], 1);
}

struct tree_run {
	uint64_t first, count;
	uint64_t entry; /* of the first page */
};

/*
 * The maximal run of equal (or, if linear, consecutive) entries that begins at `from`, cut at `end`.
 * Needs from < end <= TREE_PAGES. Empty stretches are runs of entry 0.
 */
struct tree_run tree_run_at(const struct tree *t, uint64_t from, uint64_t end);

/*
 * For pictures of the tree on disk. Every change marks the node that it wrote dirty. tree_clean calls `span` for each
 * maximal stretch [first, first + count) of block entries in a dirty node (an old picture of that stretch is void),
 * followed by `run` for every non-empty run inside it, and takes the marks away. Runs are cut at the edges of nodes.
 * What lies past the root is part of such a stretch too. Spans come in order and do not overlap. Clean parts cost
 * nothing.
 */
struct tree_visitor {
	void (*span)(void *ctx, uint64_t first, uint64_t count);
	void (*run)(void *ctx, const struct tree_run *run);
	void *ctx;
};
void tree_clean(struct tree *t, const struct tree_visitor *v);
/*
 * The same, in pieces: looks into no more than `nodes` dirty tables (at least TREE_LEVELS, or it may not get on).
 * False: some are dirty still. The tables above these may come again with the next piece, whose spans then lie before
 * those of this one; each reads as the tree does then, so the last one counts.
 */
bool tree_clean_some(struct tree *t, const struct tree_visitor *v, unsigned nodes) PW_MUST_CHECK;
void tree_dirty_all(struct tree *t); /* the next tree_clean visits everything, empty stretches too */

/* Bytes of memory that the tree's nodes take. Walks the tree. */
size_t tree_bytes(const struct tree *t);
bool tree_check(const struct tree *t); /* do the invariants hold? walks the tree */

#endif
