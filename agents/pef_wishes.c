#include "agents/pef_machine.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

/* How many pages from gfn on one wish is about; 0: none wants this page out. */
static uint64_t wished_from(const struct pef_machine *x, const struct pw_uuid *vm, uint64_t gfn)
{
	for (const struct wish *w = x->wishes; w; w = w->next)
		if (pw_uuid_equal(&w->rq.vm, vm) && gfn >= w->rq.gfn && gfn - w->rq.gfn < w->rq.count)
			return w->rq.count - (gfn - w->rq.gfn);
	return 0;
}

static void drop_wish(struct wish **at)
{
	struct wish *w = *at;

	*at = w->next;
	free(w);
}

/* Pages that wishes are about and that are still resident. Wishes that came true by other ways are dropped. */
static uint64_t pages_wished(struct pef_machine *x)
{
	uint64_t n = 0;

	for (struct wish **at = &x->wishes; *at;) {
		const struct pef_guest *g = pef_machine_find(x, &(*at)->rq.vm);
		uint64_t gfn = (*at)->rq.gfn, count = (*at)->rq.count, still = 0;

		for (uint64_t i = 0; g && i < count; i++)
			still += pef_state(g->vm, gfn + i) == PEF_SI;
		n += still;
		if (still)
			at = &(*at)->next;
		else
			drop_wish(at);
	}
	return n;
}

static void wish_out(struct pef_machine *x, const struct pef_guest *g, uint64_t gfn, uint64_t count)
{
	struct wish *w = calloc(1, sizeof *w);
	struct wish **end = &x->wishes;

	if (!w)
		return; /* the next reserve wishes again */
	w->rq = (struct backend_request){
		.vm = g->id, .want = WANT_PAGE_OUT, .gfn = gfn, .count = count, .cookie = ++x->last_cookie
	};
	while (*end)
		end = &(*end)->next;
	*end = w;
	pthread_cond_signal(&x->some);
}

/* Wishes the page under the clock's hand out, and those after it that it can; returns how many. The hand moves on. */
static uint64_t wish_at_hand(struct pef_machine *x, uint64_t most, uint64_t *passed)
{
	struct pef_vm *vm;
	struct pef_run run;
	const struct pef_guest *g;
	uint64_t known, n = 0;

	*passed = x->model.frames;
	if (!pef_next_used(&x->model, x->hand % x->model.frames, &vm, &run))
		return 0;
	g = vm->note;
	known = wished_from(x, &g->id, run.first);
	while (!known && n < run.count && n < most && !wished_from(x, &g->id, run.first + n))
		n++;
	if (n)
		wish_out(x, g, run.first, n);
	*passed = n ? n : known;
	x->hand = run.frame + (*passed < run.count ? *passed : run.count);
	return n;
}

/* Wishes `missing` pages out, less what is wished already: the clock's hand goes round the pool once at most. */
void pef_machine_wish_room(struct pef_machine *x, uint64_t missing)
{
	uint64_t wished, passed;

	pthread_mutex_lock(&x->lock);
	wished = pages_wished(x);
	for (uint64_t round = 0; wished < missing && round < x->model.frames; round += passed)
		wished += wish_at_hand(x, missing - wished, &passed);
	pthread_mutex_unlock(&x->lock);
}

static void deadline(unsigned timeout_ms, struct timespec *out)
{
	clock_gettime(CLOCK_MONOTONIC, out);
	out->tv_sec += timeout_ms / 1000;
	out->tv_nsec += (long)(timeout_ms % 1000) * 1000000;
	if (out->tv_nsec >= 1000000000) {
		out->tv_nsec -= 1000000000;
		out->tv_sec++;
	}
}

static struct wish *untold(const struct pef_machine *x)
{
	struct wish *w = x->wishes;

	while (w && w->told)
		w = w->next;
	return w;
}

enum pw_status pef_machine_wait(struct pef_machine *x, unsigned timeout_ms, struct backend_request *out,
				struct pw_err *err)
{
	struct timespec until;
	struct wish *w;

	deadline(timeout_ms, &until);
	pthread_mutex_lock(&x->lock);
	while (!(w = untold(x)) && !x->kicked)
		if (pthread_cond_timedwait(&x->some, &x->lock, &until) == ETIMEDOUT)
			break;
	if (w) {
		w->told = true;
		*out = w->rq;
	} else {
		x->kicked = false;
	}
	pthread_mutex_unlock(&x->lock);
	return w ? PW_OK : pw_fail(err, PW_BUSY, "no request");
}

void pef_machine_kick(struct pef_machine *x)
{
	pthread_mutex_lock(&x->lock);
	x->kicked = true;
	pthread_cond_broadcast(&x->some);
	pthread_mutex_unlock(&x->lock);
}

void pef_machine_complete(struct pef_machine *x, const struct backend_request *rq)
{
	pthread_mutex_lock(&x->lock);
	for (struct wish **at = &x->wishes; *at; at = &(*at)->next) {
		if ((*at)->rq.cookie == rq->cookie) {
			drop_wish(at);
			break;
		}
	}
	pthread_mutex_unlock(&x->lock);
}

void pef_machine_wishes_init(struct pef_machine *x)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&x->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&x->some, &attr);
	pthread_condattr_destroy(&attr);
}

void pef_machine_wishes_release(struct pef_machine *x)
{
	while (x->wishes)
		drop_wish(&x->wishes);
	pthread_cond_destroy(&x->some);
	pthread_mutex_destroy(&x->lock);
}
