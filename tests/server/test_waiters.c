/*
 * Who is woken by what: each kind of wait beside thousands of others, counted; deadlines in order; a token's deletion;
 * and how many are handed out at a time.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "server/waiters.h"

enum { MANY = 10000 };

static struct waiters w;
static struct request *many;

static struct pw_uuid id_of(unsigned n)
{
	struct pw_uuid id = { { 7 } };

	memcpy(&id.b[4], &n, sizeof n);
	return id;
}

static void wait_for(struct request *r, enum wait_kind kind, unsigned id, uint64_t after, int64_t deadline)
{
	r->wait_for = (struct wait_key){ .kind = kind };
	if (kind != WAIT_REVISION)
		r->wait_for.id = id_of(id);
	r->wait_after = after;
	r->deadline_ms = deadline;
	cr_assert_eq(waiters_add(&w, r), PW_OK);
}

static size_t wake(enum wait_kind kind, unsigned id)
{
	return waiters_wake(&w, &(struct wait_key){ .kind = kind, .id = id_of(id) });
}

static size_t take(unsigned rate, int64_t now)
{
	int64_t next = INT64_MAX;
	size_t n = 0;

	for (struct request *r = waiters_take(&w, rate, now, &next); r; r = r->next)
		n++;
	return n;
}

static void start(void)
{
	waiters_init(&w, 42);
	many = calloc(MANY, sizeof *many);
	cr_assert_not_null(many);
}

static void finish(void)
{
	waiters_release(&w);
	free(many);
}
TestSuite(waiters, .init = start, .fini = finish, .timeout = 60);

Test(waiters, an_event_wakes_those_that_wait_for_its_host_and_nobody_else)
{
	for (unsigned i = 0; i < MANY; i++)
		wait_for(&many[i], WAIT_EVENTS + i % 3, i / 3 % 100, 0, 1000);
	for (unsigned host = 0; host < 100; host++) {
		cr_expect_eq(wake(WAIT_EVENTS, host), (MANY + 299 - 3 * host) / 300, "host %u", host);
		cr_expect_eq(wake(WAIT_EVENTS, host), 0);
	}
	cr_expect_eq(wake(WAIT_DELIVERY, 100), 0);
	cr_expect_eq(wake(WAIT_OPERATION, 99), (MANY - 2 + 299 - 297) / 300);
	for (unsigned i = 0; i < MANY; i++)
		cr_expect_eq(many[i].waits, i % 3 != 0 && !(i % 3 == 2 && i / 3 % 100 == 99), "%u", i);
}

Test(waiters, a_revision_wakes_those_that_saw_less)
{
	for (unsigned i = 0; i < MANY; i++)
		wait_for(&many[i], WAIT_REVISION, 0, i * 7919u % MANY, 1000);
	cr_expect_eq(waiters_wake_revision(&w, 0), 0);
	for (uint64_t revision = 1; revision <= MANY; revision++)
		cr_assert_eq(waiters_wake_revision(&w, revision), 1);
	cr_expect_eq(w.deadlines.count, 0);
}

Test(waiters, deadlines_come_in_order_whatever_is_waited_for)
{
	for (unsigned i = 0; i < MANY; i++)
		wait_for(&many[i], i % 4, i, 5, 1 + (int64_t)(i * 7919u % MANY));
	for (unsigned i = 0; i < MANY; i += 2)
		cr_expect(waiters_remove(&w, &many[i]) && !waiters_remove(&w, &many[i]));
	for (int64_t now = 0; now <= MANY; now += 100) {
		waiters_wake_due(&w, now);
		for (unsigned i = 1; i < MANY; i += 2)
			cr_assert(many[i].waits ? many[i].deadline_ms > now : many[i].deadline_ms == 1);
	}
	cr_expect_eq(take(0, 1), MANY / 2);
	cr_expect_eq(wake(WAIT_EVENTS, 1) + waiters_wake_revision(&w, UINT64_MAX), 0);
}

Test(waiters, a_deleted_token_wakes_all_that_have_it)
{
	for (unsigned i = 0; i < MANY; i++) {
		many[i].who.token = id_of(i * 7919u % 7);
		wait_for(&many[i], i % 4, i, 5, 1 + (int64_t)(i * 104729u % 500));
	}
	cr_expect_geq(wake(WAIT_TOKEN, 3), MANY / 7);
	for (unsigned i = 0; i < MANY; i++)
		cr_expect_eq(many[i].waits, i * 7919u % 7 != 3);
	for (unsigned token = 0; token < 7; token++)
		wake(WAIT_TOKEN, token);
	cr_expect_eq(w.deadlines.count, 0);
	cr_expect_eq(w.revisions.count, 0);
}

Test(waiters, many_are_handed_out_a_few_at_a_time_agents_first)
{
	int64_t next = 100000;
	size_t agents = 0;

	for (unsigned i = 0; i < MANY; i++)
		wait_for(&many[i], i < 50 ? WAIT_DELIVERY : WAIT_REVISION, 1, 5, 90000);
	waiters_wake_revision(&w, 6);
	wake(WAIT_DELIVERY, 1);
	for (struct request *r = waiters_take(&w, 6000, 1000, &next); r; r = r->next)
		agents += r < &many[50];
	cr_expect_eq(agents, 50);
	cr_expect_eq(next, 1010);
	cr_expect_eq(take(6000, 1009), 0);
	cr_expect_eq(take(6000, 1010), 60);
	cr_expect_eq(take(0, 1011), MANY - 120);
}
