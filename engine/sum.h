/* engine/sum.h
 *
 * What lies below each table of a page tree, so that maps, counts and "is there any?" cost the tables touched and not
 * the pages. A change only marks its tables stale (TREE_STALE, beside the marks that it writes anyway); whoever asks
 * makes the sums of stale tables again and keeps them.
 *
 * Several readers may ask at once, as long as nobody changes the tree: they make the same sums, each of its parts is
 * stored atomically, and the mark goes last. Sums are no content: asking for them leaves a const tree as it reads.
 */
#ifndef PW_ENGINE_SUM_H
#define PW_ENGINE_SUM_H
#include "engine/tree.h"

/*
 * How much was looked at, and how much may be: a step is some 10 to 100 ns. A call that gets past the limit ends early,
 * and what it answers is void; but the sums that it made are kept. Called again with TREE_WALK_MIN more steps it gets
 * further: where nothing is stale, tree_sum and tree_find_kind take fewer.
 */
#define TREE_WALK_MIN 8192
struct tree_walk {
	uint64_t steps; /* only grows */
	uint64_t limit; /* of steps; UINT64_MAX: none */
};
static inline bool walk_is_over(const struct tree_walk *w)
{
	return w->steps > w->limit;
}

/*
 * An entry's kind: its class (3, 2, 1 for the highest of bits 63, 62, 61 that it has, 0 for none) and bits 51..48. An
 * empty entry is of kind 0. Sets of kinds are words of 64 bits.
 */
#define TREE_KINDS 64
static inline unsigned tree_kind(uint64_t entry)
{
	const unsigned classes = 0xffa4; /* of the three bits, two bits each */

	return (classes >> (entry >> 61) * 2 & 3) << 4 | (unsigned)(entry >> 48 & 15);
}
#define TREE_CLASS(c) ((uint64_t)0xffff << 16 * (c)) /* all kinds of one class */

/* What lies in [from, end), end <= TREE_PAGES. */
struct tree_sum tree_sum(const struct tree *t, uint64_t from, uint64_t end, struct tree_walk *w);

/* The first run in [from, end) whose entries are of one of these kinds; it is cut at both. False: there is none. */
bool tree_find_kind(const struct tree *t, uint64_t from, uint64_t end, uint64_t kinds, struct tree_walk *w,
		    struct tree_run *out);

/*
 * How many runs of these kinds [*from, end) has, at most: one counts again in each table that it reaches into. What is
 * counted lies before *from then: that is end, unless the walk got past its limit.
 */
uint64_t tree_count_runs(const struct tree *t, uint64_t *from, uint64_t end, uint64_t kinds, struct tree_walk *w);

bool tree_sums_check(const struct tree *t); /* is every sum that is not stale right? walks the tree */

#endif
