#include "engine/undo.h"

#include <criterion/criterion.h>
#include <string.h>

/* Writes down in which order its records are called. */
struct diary {
	char text[64];
};

static void wrote(struct diary *d, char how, const char *arg)
{
	size_t n = strlen(d->text);

	d->text[n] = how;
	d->text[n + 1] = *arg;
}

static void rolled(void *ctx, const void *args)
{
	wrote(ctx, '-', args);
}

static void committed(void *ctx, const void *args)
{
	wrote(ctx, '+', args);
}

static const struct undo_ops both = { rolled, committed }, neither = { 0 };

static void push(struct undo *u, const struct undo_ops *ops, struct diary *d, const char *name)
{
	cr_assert_eq(undo_reserve(u, UNDO_RECORD(1)), PW_OK);
	undo_push(u, ops, d, name, 1);
}

Test(undo, rolls_back_the_newest_first_and_no_further_than_the_mark)
{
	struct pw_mem mem = { 0 };
	struct diary d = { "" };
	struct undo u;
	undo_mark mark;

	undo_init(&u, &mem);
	push(&u, &both, &d, "a");
	mark = undo_here(&u);
	push(&u, &both, &d, "b");
	push(&u, &neither, &d, "x");
	push(&u, &both, &d, "c");
	undo_rollback(&u, mark);
	cr_assert_str_eq(d.text, "-c-b");
	cr_assert_eq(undo_here(&u), mark);
	undo_rollback(&u, 0);
	cr_assert_str_eq(d.text, "-c-b-a");
	undo_release(&u);
	cr_assert_eq(mem.used, 0);
}

Test(undo, commits_the_oldest_first_and_is_empty_then)
{
	struct pw_mem mem = { 0 };
	struct diary d = { "" };
	struct undo u;

	undo_init(&u, &mem);
	push(&u, &both, &d, "a");
	push(&u, &neither, &d, "x");
	push(&u, &both, &d, "b");
	undo_commit(&u);
	cr_assert_str_eq(d.text, "+a+b");
	cr_assert_eq(undo_here(&u), 0);
	undo_rollback(&u, 0);
	undo_commit(&u);
	cr_assert_str_eq(d.text, "+a+b");
	undo_release(&u);
}

Test(undo, saved_bytes_of_any_size_come_back)
{
	struct pw_mem mem = { 0 };
	unsigned char bytes[100], was[100];
	struct undo u;

	undo_init(&u, &mem);
	for (size_t size = 0; size <= sizeof bytes; size++) {
		memset(bytes, (int)size, sizeof bytes);
		memcpy(was, bytes, sizeof was);
		cr_assert_eq(undo_reserve(&u, UNDO_RECORD(size)), PW_OK);
		undo_save(&u, bytes, size);
		memset(bytes, 0xee, size);
		undo_rollback(&u, 0);
		cr_assert_arr_eq(bytes, was, sizeof was);
	}
	undo_release(&u);
}

Test(undo, many_saves_of_one_place_end_at_its_oldest_value)
{
	struct pw_mem mem = { 0 };
	struct undo u;
	int value;

	undo_init(&u, &mem);
	for (value = 0; value < 100000; value++) {
		cr_assert_eq(undo_reserve(&u, UNDO_RECORD(sizeof value)), PW_OK);
		undo_save(&u, &value, sizeof value);
	}
	undo_rollback(&u, 50 * UNDO_RECORD(sizeof value));
	cr_assert_eq(value, 50);
	undo_rollback(&u, 0);
	cr_assert_eq(value, 0);
	undo_release(&u);
	cr_assert_eq(mem.used, 0);
}

Test(undo, a_refused_reserve_keeps_what_was_recorded)
{
	struct pw_mem mem = { .limit = 4096 };
	struct diary d = { "" };
	struct undo u;

	undo_init(&u, &mem);
	push(&u, &both, &d, "a");
	cr_assert_eq(undo_reserve(&u, 100000), PW_NO_MEMORY);
	undo_rollback(&u, 0);
	cr_assert_str_eq(d.text, "-a");
	undo_release(&u);
	cr_assert_eq(mem.used, 0);
}

Test(undo, a_large_log_is_given_back_at_commit_a_small_one_kept)
{
	struct pw_mem mem = { 0 };
	struct undo u;

	undo_init(&u, &mem);
	cr_assert_eq(undo_reserve(&u, UNDO_KEEP / 2), PW_OK);
	undo_commit(&u);
	cr_assert_geq(mem.used, UNDO_KEEP / 2);
	cr_assert_eq(undo_reserve(&u, UNDO_KEEP + 1), PW_OK);
	undo_commit(&u);
	cr_assert_eq(mem.used, 0);
	undo_release(&u);
}
