/*
 * The writer without HTTP: routes whose acts take as long as the test wants, and a request_resume that notes who is
 * through. A stop in the middle of a change, of its commit, and with everything else that can be parked.
 */
#include <criterion/criterion.h>
#include <semaphore.h>
#include <sodium.h>
#include <sqlite3.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/routes.h"
#include "server/service_impl.h"
#include "tests/lib/faulty_vfs.h"
#include "tests/lib/store_dir.h"

static struct service *sv;
static struct config config;
static char dir[] = "/tmp/pagewarden-writer-XXXXXX";
static sem_t begun, go, through; /* an act has begun; it may go on; a request was resumed */

/* --- In place of http.c --- */

void request_resume(struct request *r)
{
	r->resumed = true;
	sem_post(&through);
}

const char *request_query(const struct request *r, const char *name)
{
	return strcmp(name, "wait") == 0 ? "300" : NULL;
}

void request_each_query(const struct request *r, query_fn fn, void *ctx)
{
}

/* --- Routes --- */

static void change(struct service *s, struct request *r)
{
	struct jsonw w;

	sem_post(&begun);
	sem_wait(&go);
	event_begin(&w, "test", r);
	event_end(s, &w);
	(void)answer_empty(r, 204);
}

/* Lets readers in until it may go on. */
static void tear(struct service *s, struct request *r)
{
	struct jsonw w;

	sem_post(&begun);
	while (sem_trywait(&go) != 0)
		let_readers_in(s);
	event_begin(&w, "test", r);
	event_end(s, &w);
	(void)answer_empty(r, 204);
}

/* Takes three turns; the test says when the first one ends. */
static void change_in_turns(struct service *s, struct request *r)
{
	struct jsonw w;

	if (r->registration++ == 0) {
		sem_post(&begun);
		sem_wait(&go);
	}
	event_begin(&w, "test", r);
	event_end(s, &w);
	r->unfinished = r->registration < 3;
	if (!r->unfinished)
		(void)answer_empty(r, 204);
}

static void look(struct service *s, struct request *r)
{
	(void)answer_empty(r, 200);
}

/* As a backup: done before its answer is kept. */
static enum handled do_and_keep(struct service *s, struct request *r)
{
	r->settled = true;
	(void)answer_empty(r, 201);
	return park_change(s, r);
}

static void act_not(struct service *s, struct request *r)
{
}

static const struct route keeping = { .handle = do_and_keep, .act = act_not };
static const struct route changing = { .handle = handle_change, .act = change };
static const struct route deleting = { .handle = handle_change, .act = token_delete_act };
static const struct route tearing = { .handle = handle_change, .act = tear };
static const struct route turning = { .handle = handle_change, .act = change_in_turns };
static const struct route looking = { .handle = handle_read, .act = look };

static enum handled ask(struct request *r, const struct route *route)
{
	*r = (struct request){ .route = route, .path = "/", .body = "" };
	return route->handle(sv, r);
}

static enum handled ask_with_key(struct request *r, const struct route *route)
{
	*r = (struct request){ .route = route, .path = "/", .body = "", .idempotency_key = "a key" };
	return route->handle(sv, r);
}

static bool says(const struct request *r, unsigned status, const char *slug)
{
	return r->response.status == status && (!slug || (r->response.body && strstr(r->response.body, slug)));
}

static uint64_t revision(void)
{
	uint64_t durable;

	pthread_rwlock_rdlock(&sv->lock);
	durable = sv->durable;
	pthread_rwlock_unlock(&sv->lock);
	return durable;
}

static void start(void)
{
	struct pw_err err = { 0 };

	cr_assert_not_null(mkdtemp(dir));
	config = (struct config){ .data = dir, .lease_seconds = 15, .checkpoint_seconds = 3600 };
	sem_init(&begun, 0, 0);
	sem_init(&go, 0, 0);
	sem_init(&through, 0, 0);
	faulty_vfs_install();
	cr_assert_eq(service_open(&config, &sv, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(service_start(sv, &err), PW_OK, "%s", err.msg);
}

static void finish(void)
{
	struct pw_err err = { 0 };

	cr_expect_eq(service_close(sv, &err), PW_OK, "%s", err.msg);
	store_dir_delete(dir);
}
TestSuite(writer, .init = start, .fini = finish, .timeout = 60);

/* Until it is closed; the store waits for two seconds. */
static sqlite3 *stall_commits(void)
{
	char path[sizeof dir + 16];
	sqlite3 *other;

	snprintf(path, sizeof path, "%s/journal.db", dir);
	cr_assert_eq(sqlite3_open(path, &other), SQLITE_OK);
	sqlite3_busy_timeout(other, 30000); /* the writer's tick commits too */
	cr_assert_eq(sqlite3_exec(other, "BEGIN IMMEDIATE", NULL, NULL, NULL), SQLITE_OK);
	return other;
}

static void *look_later(void *request)
{
	cr_expect_eq(ask(request, &looking), DONE);
	return NULL;
}

Test(writer, a_stop_in_the_middle_of_a_change_answers_everybody)
{
	struct request slow, queued, late, seen, poll = { .path = "/", .body = "" };
	uint64_t before = revision();
	pthread_t reader;
	const char *why;

	cr_assert(wait_deadline(&poll) && park_wait(sv, &poll, WAIT_REVISION, NULL, before));
	cr_assert_eq(ask(&slow, &changing), PARKED);
	sem_wait(&begun);
	cr_assert_eq(ask(&queued, &changing), PARKED);
	cr_assert_eq(pthread_create(&reader, NULL, look_later, &seen), 0); /* waits for the state's lock */
	service_drain(sv);
	cr_assert_eq(ask(&late, &changing), DONE);
	cr_expect(says(&late, 503, "not-ready"));
	cr_expect(!queued.resumed && !queued.response.status, "what waits has its time");

	service_cut(sv);
	pthread_join(reader, NULL);
	cr_expect(says(&seen, 503, "not-ready"), "%u", seen.response.status);
	cr_expect(poll.resumed && says(&poll, 503, "not-ready"));
	cr_expect(queued.resumed && says(&queued, 503, "not-ready"));
	cr_expect(!slow.resumed);
	cr_expect_eq(service_left(sv, &why), PROBLEM_NOT_READY);

	sem_wait(&through);
	sem_wait(&through);
	sem_post(&go);
	sem_wait(&through);
	cr_expect(slow.resumed && says(&slow, 503, "nothing was changed"), "%s", slow.response.body);
	cr_expect_eq(revision(), before);
	for (struct request *const *r = (struct request *[]){ &slow, &queued, &late, &seen, &poll, NULL }; *r; r++)
		answer_drop(*r);
}

Test(writer, a_stop_in_the_middle_of_a_commit_cannot_know_how_it_ends)
{
	struct request slow, seen;
	uint64_t before = revision();
	sqlite3 *other = stall_commits();
	const char *why;

	sem_post(&go);
	cr_assert_eq(ask(&slow, &changing), PARKED);
	while (service_left(sv, &why) != PROBLEM_OUTCOME_UNKNOWN)
		usleep(1000);
	cr_assert_eq(ask(&seen, &looking), PARKED);
	service_drain(sv);
	service_cut(sv);
	cr_expect(seen.resumed && says(&seen, 503, "not-ready"));
	cr_expect(!slow.resumed);
	cr_expect_eq(service_left(sv, &why), PROBLEM_OUTCOME_UNKNOWN);

	sem_wait(&through);
	sqlite3_close(other);
	sem_wait(&through);
	cr_expect(slow.resumed && says(&slow, 204, NULL), "%s", slow.response.body);
	cr_expect_eq(revision(), before + 1);
	answer_drop(&seen);
}

Test(writer, a_stop_lets_finish_what_has_the_time)
{
	struct request slow, queued;
	uint64_t before = revision();

	cr_assert_eq(ask(&slow, &changing), PARKED);
	sem_wait(&begun);
	cr_assert_eq(ask(&queued, &changing), PARKED);
	service_drain(sv);
	sem_post(&go);
	sem_post(&go);
	sem_wait(&through);
	sem_wait(&through);
	cr_expect(says(&slow, 204, NULL) && says(&queued, 204, NULL));
	cr_expect_eq(revision(), before + 2);
	service_cut(sv);
}

Test(writer, what_is_done_is_answered_whether_or_not_the_answer_can_be_kept)
{
	struct request refused, slow, cut, late;

	faulty_vfs_arm(FAULT_CHANGES, 1, SQLITE_IOERR, FAULT_FROM);
	cr_assert_eq(ask_with_key(&refused, &keeping), PARKED);
	sem_wait(&through);
	cr_expect(faulty_vfs_disarm() && says(&refused, 201, NULL), "%u", refused.response.status);
	while (sv->disk_refuses)
		usleep(1000);

	cr_assert_eq(ask(&slow, &changing), PARKED);
	sem_wait(&begun);
	cr_assert_eq(ask_with_key(&cut, &keeping), PARKED);
	service_drain(sv);
	cr_assert_eq(ask_with_key(&late, &keeping), DONE);
	cr_expect(says(&late, 201, NULL));
	service_cut(sv);
	cr_expect(cut.resumed && says(&cut, 201, NULL));
	sem_post(&go);
	sem_wait(&through);
	sem_wait(&through);
	cr_expect(says(&slow, 503, NULL));
	answer_drop(&slow);
}

static bool is_known(const char *secret)
{
	struct principal who;

	return service_authenticate(sv, secret, strlen(secret), &who);
}

static void read_admin_secret(char secret[128])
{
	char path[sizeof dir + 16];
	FILE *f;

	snprintf(path, sizeof path, "%s/admin.token", dir);
	f = fopen(path, "re");
	cr_assert(f && fscanf(f, "%127s", secret) == 1);
	fclose(f);
}

/* Or every thread that takes requests would wait for the longest change. */
Test(writer, who_somebody_is_can_be_asked_while_a_change_is_made)
{
	struct request slow;
	char secret[128];

	read_admin_secret(secret);
	cr_assert_eq(ask(&slow, &changing), PARKED);
	sem_wait(&begun);
	cr_expect(is_known(secret));
	secret[40] ^= 1;
	cr_expect(!is_known(secret));
	sem_post(&go);
	sem_wait(&through);
	cr_expect(says(&slow, 204, NULL));
}

Test(writer, a_token_is_valid_until_its_deletion_is_durable)
{
	char secret[128], id[PW_UUID_TEXT];
	struct request gone = { .route = &deleting, .path = "/", .body = "", .args = { id } };
	struct pw_uuid uuid;
	sqlite3 *other;
	const char *why;

	read_admin_secret(secret);
	cr_assert_eq(sodium_hex2bin(uuid.b, sizeof uuid.b, secret + 2, 32, NULL, NULL, NULL), 0);
	pw_uuid_format(&uuid, id);

	faulty_vfs_arm(FAULT_CHANGES, 1, SQLITE_IOERR, FAULT_FROM);
	cr_assert_eq(handle_change(sv, &gone), PARKED);
	sem_wait(&through);
	cr_expect(faulty_vfs_disarm() && says(&gone, 503, NULL));
	cr_expect(is_known(secret), "its deletion was taken back");
	answer_drop(&gone);
	while (sv->disk_refuses)
		usleep(1000);

	other = stall_commits();
	cr_assert_eq(handle_change(sv, &gone), PARKED);
	while (service_left(sv, &why) != PROBLEM_OUTCOME_UNKNOWN)
		usleep(1000);
	cr_expect(is_known(secret), "the deletion may still be taken back");
	sqlite3_close(other);
	sem_wait(&through);
	cr_expect(says(&gone, 204, NULL));
	cr_expect(!is_known(secret));
}

Test(writer, a_long_change_lets_readers_in_but_shows_them_nothing)
{
	struct request change_, seen;

	cr_assert_eq(ask(&change_, &tearing), PARKED);
	sem_wait(&begun);
	while (ask(&seen, &looking) == DONE) /* came in before it was torn */
		answer_drop(&seen);
	cr_expect(!change_.resumed && seen.response.status == 0, "%u", seen.response.status);
	sem_post(&go);
	sem_wait(&through);
	sem_wait(&through);
	cr_expect(change_.resumed && says(&change_, 204, NULL));
	cr_expect(seen.resumed && seen.response.status == 0, "it looks again");
	cr_expect_eq(ask(&seen, &looking), DONE);
	cr_expect(says(&seen, 200, NULL));
}

Test(writer, a_change_in_turns_lets_others_go_first)
{
	struct request slow, other;
	uint64_t before = revision();

	cr_assert_eq(ask(&slow, &turning), PARKED);
	sem_wait(&begun);
	cr_assert_eq(ask(&other, &changing), PARKED);
	sem_post(&go); /* the first turn ends; the second one is behind the other's */
	sem_wait(&begun);
	cr_expect(!slow.resumed && slow.begun);
	sem_post(&go);
	sem_wait(&through);
	sem_wait(&through);
	cr_expect(says(&slow, 204, NULL) && says(&other, 204, NULL));
	cr_expect_eq(revision(), before + 4);
}

Test(writer, a_change_whose_later_turn_fails_says_that_a_part_is_done)
{
	struct request slow, other;
	uint64_t before = revision();

	cr_assert_eq(ask(&slow, &turning), PARKED);
	sem_wait(&begun);
	cr_assert_eq(ask(&other, &changing), PARKED);
	sem_post(&go);
	sem_wait(&begun); /* the first turn is durable; the second one is of this group */
	faulty_vfs_arm(FAULT_CHANGES, 1, SQLITE_IOERR, FAULT_FROM);
	sem_post(&go);
	sem_wait(&through);
	sem_wait(&through);
	cr_expect(faulty_vfs_disarm());
	cr_expect(says(&slow, 503, "outcome-unknown"), "%s", slow.response.body);
	cr_expect(says(&other, 503, NULL));
	cr_expect_eq(revision(), before + 1);
	answer_drop(&slow);
	answer_drop(&other);
}
