#include "engine/index.h"

#include <assert.h>
#include <string.h>

void index_init(struct index *x, struct pw_mem *mem, int (*compare)(const void *key, const void *item))
{
	*x = (struct index){ .mem = mem, .compare = compare };
}

void index_release(struct index *x)
{
	pw_mem_free(x->mem, x->items, x->capacity * sizeof *x->items);
	index_init(x, x->mem, x->compare);
}

size_t index_place(const struct index *x, const void *key)
{
	size_t lo = 0, hi = x->count;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (x->compare(key, x->items[mid]) > 0)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

size_t index_after(const struct index *x, const void *key)
{
	size_t at = index_place(x, key);

	return at < x->count && x->compare(key, x->items[at]) == 0 ? at + 1 : at;
}

void *index_find(const struct index *x, const void *key)
{
	size_t at = index_place(x, key);

	return at < x->count && x->compare(key, x->items[at]) == 0 ? x->items[at] : NULL;
}

enum pw_status index_reserve(struct index *x)
{
	size_t capacity = x->capacity ? 2 * x->capacity : 16;
	void **items;

	if (x->count < x->capacity)
		return PW_OK;
	items = pw_mem_alloc(x->mem, capacity * sizeof *items);
	if (!items)
		return PW_NO_MEMORY;
	if (x->count)
		memcpy(items, x->items, x->count * sizeof *items);
	pw_mem_free(x->mem, x->items, x->capacity * sizeof *items);
	x->items = items;
	x->capacity = capacity;
	return PW_OK;
}

void index_insert(struct index *x, const void *key, void *item)
{
	size_t at = index_place(x, key);

	assert(x->count < x->capacity);
	memmove(x->items + at + 1, x->items + at, (x->count - at) * sizeof *x->items);
	x->items[at] = item;
	x->count++;
}

void index_remove(struct index *x, const void *key)
{
	size_t at = index_place(x, key);

	assert(at < x->count);
	memmove(x->items + at, x->items + at + 1, (x->count - at - 1) * sizeof *x->items);
	x->count--;
}
