/*
 * The pool of long reads without HTTP: reads that take as long as the test wants, and a request_resume that notes who
 * is through. One a token, bounded queue, and a stop with reads that wait and reads that run.
 */
#include <criterion/criterion.h>
#include <semaphore.h>
#include <stdlib.h>
#include <string.h>

#include "server/reads.h"
#include "server/service_impl.h"

static struct service sv;
static struct reads *pool;
static const struct config config = { .read_threads = 2, .read_queue = 3 };
static sem_t begun, go, through;
static _Atomic unsigned ran;

/* --- In place of http.c --- */

void request_resume(struct request *r)
{
	r->resumed = true;
	sem_post(&through);
}

const char *request_query(const struct request *r, const char *name)
{
	return NULL;
}

void request_each_query(const struct request *r, query_fn fn, void *ctx)
{
}

static enum handled slow_read(struct service *s, struct request *r)
{
	ran++;
	sem_post(&begun);
	sem_wait(&go);
	return answer_empty(r, 200);
}

static enum handled ask(struct request *r, unsigned token)
{
	*r = (struct request){ .path = "/", .body = "" };
	r->who.token.b[0] = (uint8_t)token;
	return reads_park(pool, r, slow_read);
}

static void forget(struct request *r)
{
	answer_drop(r);
}

static void wait_for(sem_t *s, unsigned n)
{
	while (n--)
		sem_wait(s);
}

static void start(void)
{
	struct pw_err err;

	sem_init(&begun, 0, 0);
	sem_init(&go, 0, 0);
	sem_init(&through, 0, 0);
	cr_assert_eq(reads_start(&sv, &config, &pool, &err), PW_OK);
}

static void finish(void)
{
	reads_cut(pool);
	reads_free(pool);
}
TestSuite(reads, .init = start, .fini = finish, .timeout = 60);

static void let_go(unsigned n)
{
	for (unsigned i = 0; i < n; i++)
		sem_post(&go);
}

Test(reads, a_token_has_one_at_a_time)
{
	struct request a, again, b;

	cr_expect_eq(ask(&a, 1), PARKED);
	wait_for(&begun, 1);
	cr_expect_eq(ask(&again, 1), DONE);
	cr_expect_eq(again.response.status, 429);
	cr_expect(strstr(again.response.headers, "Retry-After: "));
	forget(&again);
	cr_expect_eq(ask(&b, 2), PARKED, "another token's is another");
	wait_for(&begun, 1);
	let_go(2);
	wait_for(&through, 2);
	cr_expect_eq(a.response.status, 200);
	cr_expect_eq(ask(&again, 1), PARKED, "whoever has his answer may ask again");
	let_go(1);
	wait_for(&through, 1);
	cr_expect_eq(again.response.status, 200);
}

Test(reads, one_that_waits_counts_as_well)
{
	struct request r[3], again;

	for (unsigned i = 0; i < 3; i++)
		cr_expect_eq(ask(&r[i], i + 1), PARKED);
	wait_for(&begun, 2);
	cr_expect_eq(ask(&again, 3), DONE, "it waits behind the two that run");
	cr_expect_eq(again.response.status, 429);
	forget(&again);
	let_go(3);
	wait_for(&through, 3);
	cr_expect_eq(ran, 3);
}

Test(reads, no_more_wait_than_the_limit)
{
	struct request r[5], more;
	unsigned waiting, running;

	for (unsigned i = 0; i < 2; i++)
		cr_expect_eq(ask(&r[i], i + 1), PARKED);
	wait_for(&begun, 2);
	for (unsigned i = 2; i < 5; i++)
		cr_expect_eq(ask(&r[i], i + 1), PARKED);
	reads_count(pool, &waiting, &running);
	cr_expect_eq(waiting, 3);
	cr_expect_eq(running, 2);
	cr_expect_eq(ask(&more, 9), DONE);
	cr_expect_eq(more.response.status, 503);
	cr_expect(strstr(more.response.body, "read-queue") && strstr(more.response.headers, "Retry-After: "));
	forget(&more);
	let_go(5);
	wait_for(&through, 5);
}

Test(reads, a_stop_answers_what_waits_and_takes_no_more)
{
	struct request r[4], late;

	for (unsigned i = 0; i < 2; i++)
		cr_expect_eq(ask(&r[i], i + 1), PARKED);
	wait_for(&begun, 2);
	for (unsigned i = 2; i < 4; i++)
		cr_expect_eq(ask(&r[i], i + 1), PARKED);
	reads_drain(pool);
	cr_expect_eq(ask(&late, 9), DONE);
	cr_expect_eq(late.response.status, 503);
	forget(&late);
	reads_cut(pool);
	wait_for(&through, 2);
	for (unsigned i = 2; i < 4; i++) {
		cr_expect_eq(r[i].response.status, 503);
		forget(&r[i]);
	}
	let_go(2);
	wait_for(&through, 2);
	cr_expect(r[0].response.status == 200 && r[1].response.status == 200);
	cr_expect_eq(ran, 2);
}
