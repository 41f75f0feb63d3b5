/* engine/index.h
 *
 * A registry: pointers in the order of their keys. Finding is a binary search; listing from a key on is free.
 */
#ifndef PW_ENGINE_INDEX_H
#define PW_ENGINE_INDEX_H
#include "engine/mem.h"

struct index {
	struct pw_mem *mem;                                /* borrowed */
	int (*compare)(const void *key, const void *item); /* <0: key sorts before item */
	void **items;                                      /* borrowed pointers */
	size_t count, capacity;
};

void index_init(struct index *x, struct pw_mem *mem, int (*compare)(const void *key, const void *item));
void index_release(struct index *x);
void *index_find(const struct index *x, const void *key); /* or NULL */
/* The first place whose item sorts after key; the place where key's item is, or would go. */
size_t index_after(const struct index *x, const void *key);
size_t index_place(const struct index *x, const void *key);
/* After this one insert cannot fail. */
enum pw_status index_reserve(struct index *x) PW_MUST_CHECK;
void index_insert(struct index *x, const void *key, void *item);
void index_remove(struct index *x, const void *key);

#endif
