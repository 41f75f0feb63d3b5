/* The pool of threads for long reads: a queue of parked requests, first come first served. It knows nothing of what
 * they read. Its lock is held for moments, with nothing taken under it. */
#include "server/reads.h"

#include <errno.h>
#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#include "server/service_impl.h"

struct reads {
	struct service *service; /* borrowed, as is: */
	const struct config *config;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct request *head, **tail; /* those that wait, and how many they are */
	unsigned waiting, running;
	struct pw_uuid *now; /* one a thread: whose read it does; nil: nobody's */
	pthread_t *threads;
	unsigned thread_count;
	bool draining, stop;
};

static struct request *take(struct reads *p)
{
	struct request *r = p->head;

	p->head = r->next;
	if (!p->head)
		p->tail = &p->head;
	p->waiting--;
	return r;
}

struct seat {
	struct reads *pool;
	unsigned number;
};

static void *reads_main(void *arg)
{
	struct seat seat = *(struct seat *)arg;
	struct reads *p = seat.pool;

	free(arg);
	pthread_mutex_lock(&p->lock);
	for (;;) {
		struct request *r;
		enum handled handled;

		while (!p->head && !p->stop)
			pthread_cond_wait(&p->wake, &p->lock);
		if (!p->head)
			break;
		r = take(p);
		p->now[seat.number] = r->who.token;
		p->running++;
		pthread_mutex_unlock(&p->lock);
		handled = r->read(p->service, r);
		pthread_mutex_lock(&p->lock);
		p->now[seat.number] = (struct pw_uuid){ { 0 } };
		p->running--;
		if (handled == DONE) { /* not before the token is free: who has his answer may ask again */
			pthread_mutex_unlock(&p->lock);
			request_resume(r);
			pthread_mutex_lock(&p->lock);
		}
	}
	pthread_mutex_unlock(&p->lock);
	return NULL;
}

/* With the lock held. */
static bool token_reads(const struct reads *p, const struct pw_uuid *token)
{
	if (pw_uuid_is_nil(token))
		return false;
	for (unsigned i = 0; i < p->thread_count; i++)
		if (pw_uuid_equal(&p->now[i], token))
			return true;
	for (const struct request *r = p->head; r; r = r->next)
		if (pw_uuid_equal(&r->who.token, token))
			return true;
	return false;
}

enum handled reads_park(struct reads *p, struct request *r, handler_fn read)
{
	enum { TAKEN, STOPS, FULL, OTHER } what;

	r->read = read;
	pthread_mutex_lock(&p->lock);
	what = p->draining ? STOPS : token_reads(p, &r->who.token) ? OTHER : TAKEN;
	if (what == TAKEN && p->waiting >= p->config->read_queue)
		what = FULL;
	if (what == TAKEN) {
		r->next = NULL;
		*p->tail = r;
		p->tail = &r->next;
		p->waiting++;
		pthread_cond_signal(&p->wake);
	}
	pthread_mutex_unlock(&p->lock);
	switch (what) {
	case TAKEN: return PARKED;
	case STOPS: return answer_stopping(r);
	case FULL: return answer_limit(r, PROBLEM_BUSY, p->config, "read-queue", (uint64_t)p->config->read_queue + 1);
	case OTHER: break;
	}
	answer_problem(r, PROBLEM_RATE_LIMITED, "this token has a long read under way already: one at a time");
	answer_header(r, "Retry-After", "%d", 1);
	return DONE;
}

void reads_drain(struct reads *p)
{
	pthread_mutex_lock(&p->lock);
	p->draining = true;
	pthread_mutex_unlock(&p->lock);
}

void reads_cut(struct reads *p)
{
	struct request *r, *following;

	pthread_mutex_lock(&p->lock);
	p->draining = true;
	r = p->head;
	p->head = NULL;
	p->tail = &p->head;
	p->waiting = 0;
	pthread_mutex_unlock(&p->lock);
	for (; r; r = following) {
		following = r->next;
		(void)answer_stopping(r);
		request_resume(r);
	}
}

void reads_count(struct reads *p, unsigned *waiting, unsigned *running)
{
	pthread_mutex_lock(&p->lock);
	*waiting = p->waiting;
	*running = p->running;
	pthread_mutex_unlock(&p->lock);
}

void reads_free(struct reads *p)
{
	if (!p)
		return;
	pthread_mutex_lock(&p->lock);
	p->stop = true;
	pthread_cond_broadcast(&p->wake);
	pthread_mutex_unlock(&p->lock);
	for (unsigned i = 0; i < p->thread_count; i++)
		pthread_join(p->threads[i], NULL);
	pthread_cond_destroy(&p->wake);
	pthread_mutex_destroy(&p->lock);
	free(p->threads);
	free(p->now);
	free(p);
}

static enum pw_status start_one(struct reads *p, struct pw_err *err)
{
	struct seat *seat = malloc(sizeof *seat);
	int e;

	if (!seat)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while starting the threads of long reads");
	*seat = (struct seat){ p, p->thread_count };
	e = pthread_create(&p->threads[p->thread_count], NULL, reads_main, seat);
	if (e) {
		free(seat);
		return pw_fail(err, PW_NO_MEMORY, "starting a thread of long reads: %s", strerror(e));
	}
	pthread_mutex_lock(&p->lock);
	p->thread_count++;
	pthread_mutex_unlock(&p->lock);
	return PW_OK;
}

enum pw_status reads_start(struct service *sv, const struct config *c, struct reads **out, struct pw_err *err)
{
	struct reads *p = calloc(1, sizeof *p);
	enum pw_status st = PW_OK;

	if (!p)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while starting the threads of long reads");
	p->service = sv;
	p->config = c;
	p->tail = &p->head;
	pthread_mutex_init(&p->lock, NULL);
	pthread_cond_init(&p->wake, NULL);
	p->threads = calloc(c->read_threads + 1, sizeof *p->threads);
	p->now = calloc(c->read_threads + 1, sizeof *p->now);
	if (!p->threads || !p->now) {
		reads_free(p);
		return pw_fail(err, PW_NO_MEMORY, "out of memory while starting the threads of long reads");
	}
	while (st == PW_OK && p->thread_count < c->read_threads)
		st = start_one(p, err);
	if (st == PW_OK)
		*out = p;
	else
		reads_free(p);
	return st;
}
