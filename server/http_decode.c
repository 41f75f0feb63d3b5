/*
 * Threads on which requests with large bodies are begun: to decode 16 MiB of JSON takes longer than a heartbeat may
 * wait, so no HTTP thread does it. Such a request is parked like any other; its handler, called here, answers it or
 * parks it anew.
 */
#include <stdlib.h>
#include <string.h>

#include "server/http_impl.h"

#define THREADS 2

struct decoders {
	struct service *service; /* borrowed */
	pthread_mutex_t lock;    /* what follows */
	pthread_cond_t wake;
	struct request *first, **last; /* linked by `next` */
	bool stop;
	unsigned running;
	pthread_t threads[THREADS];
};

static struct request *take(struct decoders *d)
{
	struct request *r = d->first;

	if (!r)
		return NULL;
	d->first = r->next;
	if (!d->first)
		d->last = &d->first;
	return r;
}

static void begin(struct decoders *d, struct request *r)
{
	if (r->route->handle(d->service, r) == PARKED)
		return; /* by somebody else, who resumes it */
	if (!r->response.status)
		(void)answer_problem(r, PROBLEM_INTERNAL, "the handler gave no answer");
	request_resume(r);
}

static void *decode(void *arg)
{
	struct decoders *d = arg;

	pthread_mutex_lock(&d->lock);
	for (;;) {
		struct request *r = take(d);

		if (r) {
			pthread_mutex_unlock(&d->lock);
			begin(d, r);
			pthread_mutex_lock(&d->lock);
		} else if (d->stop) {
			break;
		} else {
			pthread_cond_wait(&d->wake, &d->lock);
		}
	}
	pthread_mutex_unlock(&d->lock);
	return NULL;
}

void decoders_take(struct decoders *d, struct request *r)
{
	pthread_mutex_lock(&d->lock);
	r->next = NULL;
	*d->last = r;
	d->last = &r->next;
	pthread_cond_signal(&d->wake);
	pthread_mutex_unlock(&d->lock);
}

void decoders_stop(struct decoders *d)
{
	if (!d)
		return;
	pthread_mutex_lock(&d->lock);
	d->stop = true;
	pthread_cond_broadcast(&d->wake);
	pthread_mutex_unlock(&d->lock);
	while (d->running)
		pthread_join(d->threads[--d->running], NULL);
	pthread_cond_destroy(&d->wake);
	pthread_mutex_destroy(&d->lock);
	free(d);
}

enum pw_status decoders_start(struct service *sv, struct decoders **out, struct pw_err *err)
{
	struct decoders *d = calloc(1, sizeof *d);
	int e = 0;

	if (!d)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the threads that decode bodies");
	d->service = sv;
	d->last = &d->first;
	pthread_mutex_init(&d->lock, NULL);
	pthread_cond_init(&d->wake, NULL);
	while (d->running < THREADS && e == 0) {
		e = pthread_create(&d->threads[d->running], NULL, decode, d);
		d->running += e == 0;
	}
	if (e) {
		decoders_stop(d);
		return pw_fail(err, PW_NO_MEMORY, "starting a thread that decodes bodies: %s", strerror(e));
	}
	*out = d;
	return PW_OK;
}
