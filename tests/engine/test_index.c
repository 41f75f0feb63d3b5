#include "engine/index.h"

#include <criterion/criterion.h>
#include <string.h>

static int compare(const void *key, const void *item)
{
	int a = *(const int *)key, b = *(const int *)item;

	return a < b ? -1 : a > b;
}

static void insert(struct index *x, int *item)
{
	cr_assert_eq(index_reserve(x), PW_OK);
	index_insert(x, item, item);
}

Test(index, items_are_found_and_in_the_order_of_their_keys)
{
	struct pw_mem mem = { 0 };
	struct index x;
	int items[1000];

	index_init(&x, &mem, compare);
	for (int i = 0; i < 1000; i++) {
		items[i] = i * 7919 % 1000 * 2; /* every even number below 2000, stirred */
		insert(&x, &items[i]);
	}
	cr_assert_eq(x.count, 1000);
	for (int key = 0; key < 2000; key++) {
		const int *found = index_find(&x, &key);

		cr_assert_eq(found ? *found : -1, key % 2 ? -1 : key);
		cr_assert_eq(index_place(&x, &key), (size_t)(key + 1) / 2);
		cr_assert_eq(index_after(&x, &key), (size_t)key / 2 + 1);
	}
	for (size_t i = 1; i < x.count; i++)
		cr_assert_lt(*(int *)x.items[i - 1], *(int *)x.items[i]);
	index_release(&x);
	cr_assert_eq(mem.used, 0);
}

Test(index, removed_items_are_gone_and_the_others_stay)
{
	struct pw_mem mem = { 0 };
	struct index x;
	int items[] = { 5, 1, 3 }, key = 3;

	index_init(&x, &mem, compare);
	for (size_t i = 0; i < PW_ARRAY_LEN(items); i++)
		insert(&x, &items[i]);
	index_remove(&x, &key);
	cr_assert_null(index_find(&x, &key));
	cr_assert_eq(x.items[0], &items[1]);
	cr_assert_eq(x.items[1], &items[0]);
	cr_assert_eq(x.count, 2);
	index_release(&x);
}

Test(index, an_empty_one_has_nothing)
{
	struct pw_mem mem = { 0 };
	struct index x;
	int key = 1;

	index_init(&x, &mem, compare);
	cr_assert_null(index_find(&x, &key));
	cr_assert_eq(index_after(&x, &key), 0);
	index_release(&x);
}

Test(index, a_refused_reserve_changes_nothing)
{
	struct pw_mem mem = { .limit = 16 * sizeof(void *) };
	struct index x;
	int items[17];

	index_init(&x, &mem, compare);
	for (int i = 0; i < 16; i++) {
		items[i] = i;
		insert(&x, &items[i]);
	}
	cr_assert_eq(index_reserve(&x), PW_NO_MEMORY);
	cr_assert_eq(x.count, 16);
	cr_assert_eq(index_find(&x, &items[15]), &items[15]);
	index_release(&x);
	cr_assert_eq(mem.used, 0);
}
