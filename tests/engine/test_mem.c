#include "engine/mem.h"

#include <criterion/criterion.h>

Test(mem, counts_what_is_out)
{
	struct pw_mem mem = { 0 };
	void *a = pw_mem_alloc(&mem, 100), *b = pw_mem_zalloc(&mem, 28);

	cr_assert(a && b);
	cr_assert_eq(mem.used, 128);
	for (int i = 0; i < 28; i++)
		cr_assert_eq(((unsigned char *)b)[i], 0);
	pw_mem_free(&mem, a, 100);
	pw_mem_free(&mem, NULL, 1000);
	cr_assert_eq(mem.used, 28);
	pw_mem_free(&mem, b, 28);
	cr_assert_eq(mem.used, 0);
}

Test(mem, refuses_past_its_limit_and_not_before)
{
	struct pw_mem mem = { .limit = 100 };
	void *a = pw_mem_alloc(&mem, 60);

	cr_assert_not_null(a);
	cr_assert_null(pw_mem_alloc(&mem, 41));
	cr_assert_null(pw_mem_zalloc(&mem, SIZE_MAX));
	cr_assert_eq(mem.used, 60);
	pw_mem_free(&mem, a, 60);
	a = pw_mem_alloc(&mem, 100);
	cr_assert_not_null(a);
	pw_mem_free(&mem, a, 100);
}
