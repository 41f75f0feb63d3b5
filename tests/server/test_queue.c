/*
 * Turns of the writer's queue: each caller's requests in order, the callers in turns, however many one of them sends.
 */
#include <criterion/criterion.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "server/queue.h"

enum { CALLERS = 5, MANY = 200 };

static struct queue q;

static void come_from(struct request *r, unsigned caller)
{
	memset(r, 0, sizeof *r);
	r->who.role = caller % 2 ? ROLE_AGENT : ROLE_OPERATOR;
	memcpy(r->who.role == ROLE_AGENT ? r->who.host.b : r->who.token.b, &caller, sizeof caller);
	queue_push(&q, r);
}

Test(queue, callers_take_turns_and_each_keeps_its_order)
{
	static struct request r[CALLERS][MANY];
	unsigned at[CALLERS] = { 0 }, n = 0;

	queue_init(&q, 42); /* under which these five have lanes of their own */
	cr_assert_null(queue_take(&q));
	for (unsigned caller = 0; caller < CALLERS; caller++)
		for (unsigned i = 0; i < (caller ? 3 : MANY); i++)
			come_from(&r[caller][i], caller);
	cr_expect_eq(q.count, MANY + 3 * (CALLERS - 1));
	for (struct request *next; (next = queue_take(&q)); n++) {
		unsigned caller = (unsigned)((next - &r[0][0]) / MANY);

		cr_expect_eq(next, &r[caller][at[caller]++]);
		if (n < 3 * CALLERS)
			cr_expect_eq(caller, n % CALLERS, "turn %u", n);
	}
	cr_expect_eq(n, MANY + 3 * (CALLERS - 1));
	cr_expect(!queue_has_others(&q) && q.count == 0);
}

Test(queue, a_late_caller_waits_for_one_turn_of_the_others)
{
	static struct request flood[MANY], late;

	queue_init(&q, 42);
	for (unsigned i = 0; i < MANY; i++)
		come_from(&flood[i], 0);
	cr_expect_eq(queue_take(&q), &flood[0]);
	come_from(&late, 1);
	cr_expect(queue_has_others(&q));
	cr_expect_eq(queue_take(&q), &flood[1]);
	cr_expect_eq(queue_take(&q), &late);
	cr_expect_eq(queue_take(&q), &flood[2]);
	cr_expect_eq(queue_empty(&q), &flood[3]);
	cr_expect_null(queue_take(&q));
}

Test(queue, callers_spread_over_the_lanes)
{
	static struct request r[QUEUE_LANES];

	queue_init(&q, 7);
	for (unsigned i = 0; i < QUEUE_LANES; i++)
		come_from(&r[i], i);
	cr_expect_gt(atomic_load(&q.waiting), QUEUE_LANES / 2); /* by chance: 1 - 1/e of them */
}
