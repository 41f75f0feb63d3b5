/*
 * The record of ends without a server: bounded in number and age, oldest first, undone like any change.
 */
#include <criterion/criterion.h>
#include <string.h>

#include "server/service_impl.h"

/* --- In place of http.c --- */

void request_resume(struct request *r)
{
}

const char *request_query(const struct request *r, const char *name)
{
	return NULL;
}

void request_each_query(const struct request *r, query_fn fn, void *ctx)
{
}

static struct service sv;

static void setup(void)
{
	memset(&sv, 0, sizeof sv);
	sv.ledger = ledger_new(&sv.mem);
	cr_assert(sv.ledger);
	index_init(&sv.ends, &sv.mem, ends_compare);
}

static void teardown(void)
{
	ledger_commit(sv.ledger);
	ends_release(&sv);
	ledger_free(sv.ledger);
	cr_expect_eq(sv.mem.used, 0, "memory is left over");
}

TestSuite(ends, .init = setup, .fini = teardown, .timeout = 60);

static struct pw_uuid vm_numbered(unsigned n)
{
	return (struct pw_uuid){ { (uint8_t)(n * 7), (uint8_t)(n >> 8), (uint8_t)n, 1 } };
}

static void put(unsigned vm, int64_t slot, uint64_t revision, int64_t time_ms)
{
	struct end e = { .vm = vm_numbered(vm), .slot = slot, .revision = revision, .time_ms = time_ms };

	cr_assert_eq(end_put(&sv, &e), PW_OK);
}

static uint64_t end_of(unsigned vm)
{
	struct pw_uuid id = vm_numbered(vm);

	return vm_end_revision(&sv, &id);
}

Test(ends, the_last_one_counts_and_a_slots_is_not_its_vms)
{
	put(1, END_OF_VM, 5, 0);
	put(1, 3, 7, 0);
	put(2, 0, 8, 0);
	cr_assert_eq(end_of(1), 5);
	cr_assert_eq(end_of(2), 0);
	put(1, END_OF_VM, 9, 0);
	cr_assert_eq(end_of(1), 9);
	cr_assert_eq(sv.ends.count, 3);
}

Test(ends, what_is_taken_back_was_never_there)
{
	undo_mark mark;

	put(1, END_OF_VM, 5, 0);
	ledger_commit(sv.ledger);
	mark = ledger_mark(sv.ledger);
	put(1, END_OF_VM, 6, 0);
	put(2, END_OF_VM, 7, 0);
	ledger_rollback(sv.ledger, mark);
	cr_assert_eq(end_of(1), 5);
	cr_assert_eq(end_of(2), 0);
}

Test(ends, old_ones_are_forgotten)
{
	const int64_t day = (int64_t)24 * 3600 * 1000;

	put(1, END_OF_VM, 5, 0);
	put(2, END_OF_VM, 6, 2 * day);
	ledger_commit(sv.ledger);
	ends_tick(&sv, 30 * day);
	cr_assert_eq(sv.ends.count, 2);
	ends_tick(&sv, 31 * day);
	cr_assert_eq(end_of(1), 0);
	cr_assert_eq(end_of(2), 6);
	cr_assert_eq(sv.ends_from, 6, "the picture is told");
}

Test(ends, of_too_many_the_oldest_go)
{
	enum { MOST = 16384, MORE = 20000 };

	for (unsigned i = 1; i <= MOST + MORE; i++)
		put(i, END_OF_VM, i, 0);
	ledger_commit(sv.ledger);
	ends_tick(&sv, 1);
	cr_assert_eq(sv.ends.count, MOST, "one tick forgets all that came since the last, not a few of them");
	cr_assert_eq(end_of(MORE), 0);
	cr_assert_eq(end_of(MORE + 1), MORE + 1);
	cr_assert_eq(sv.ends_from, MORE + 1);
}
