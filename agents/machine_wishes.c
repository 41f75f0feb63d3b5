#include "agents/machine_impl.h"

#include <errno.h>
#include <stdlib.h>
#include <time.h>

#define SCRIPT_POLL_MS 50

/* How many pages from gfn on one wish is about; 0: none wants this page out. */
static uint64_t wished_from(const struct machine *x, const struct pw_uuid *vm, uint64_t gfn)
{
	for (const struct wish *w = x->wishes; w; w = w->next)
		if (w->rq.want == WANT_PAGE_OUT && pw_uuid_equal(&w->rq.vm, vm) && gfn >= w->rq.gfn &&
		    gfn - w->rq.gfn < w->rq.count)
			return w->rq.count - (gfn - w->rq.gfn);
	return 0;
}

static void drop_wish(struct wish **at)
{
	struct wish *w = *at;

	*at = w->next;
	free(w);
}

static uint64_t resident_in(const struct machine *x, const struct machine_vm *vm, uint64_t gfn, uint64_t count)
{
	uint64_t n = 0, end = gfn + count;
	struct backend_run run;

	for (uint64_t at = gfn; at < end && machine_run_at(x, vm, at, end, &run); at = run.gfn + run.count)
		n += run.state == GFN_SECURE_RESIDENT ? run.count : 0;
	return n;
}

/* Pages that wishes are about and that are still resident. Wishes that came true by other ways are dropped. */
static uint64_t pages_wished(struct machine *x)
{
	uint64_t n = 0;

	for (struct wish **at = &x->wishes; *at;) {
		const struct machine_vm *vm = machine_find(x, &(*at)->rq.vm);
		bool is_out = (*at)->rq.want == WANT_PAGE_OUT;
		uint64_t still = vm && is_out ? resident_in(x, vm, (*at)->rq.gfn, (*at)->rq.count) : 0;

		n += still;
		if (still || !is_out)
			at = &(*at)->next;
		else
			drop_wish(at);
	}
	return n;
}

/* Without memory there is no wish. */
static void wish_add(struct machine *x, const struct backend_request *rq)
{
	struct wish *w = calloc(1, sizeof *w);
	struct wish **end = &x->wishes;

	if (!w)
		return;
	w->rq = *rq;
	w->rq.cookie = ++x->last_cookie;
	while (*end)
		end = &(*end)->next;
	*end = w;
	pthread_cond_signal(&x->some);
}

/* The next reserve wishes again if this is lost. */
static void wish_out(struct machine *x, const struct machine_vm *vm, uint64_t gfn, uint64_t count)
{
	wish_add(x, &(struct backend_request){ .vm = vm->id, .want = WANT_PAGE_OUT, .gfn = gfn, .count = count });
}

/* How far the run's first frame at or after pfn is from it, going round at the pool's end. */
static uint64_t distance(const struct machine *x, uint64_t pfn, struct backend_run *run)
{
	uint64_t skip = pfn > run->pfn && pfn < run->pfn + run->count ? pfn - run->pfn : 0;

	run->gfn += skip;
	run->pfn += skip;
	run->count -= skip;
	return run->pfn >= pfn ? run->pfn - pfn : x->pool.frames - pfn + run->pfn;
}

/* Which page the used frame next at or after pfn backs, and those after it; NULL: no frame is used. */
static const struct machine_vm *next_resident(const struct machine *x, uint64_t pfn, struct backend_run *out)
{
	const struct machine_vm *found = NULL;
	uint64_t best = UINT64_MAX, far;
	struct backend_run run;

	for (const struct machine_vm *vm = x->vms; vm; vm = vm->next) {
		for (uint64_t at = 0; machine_run_at(x, vm, at, TREE_PAGES, &run); at = run.gfn + run.count) {
			if (run.state != GFN_SECURE_RESIDENT)
				continue;
			far = distance(x, pfn, &run);
			if (far >= best)
				continue;
			best = far;
			found = vm;
			*out = run;
		}
	}
	return found;
}

/* Wishes the page under the clock's hand out, and those after it that it can; returns how many. The hand moves on. */
static uint64_t wish_at_hand(struct machine *x, uint64_t most, uint64_t *passed)
{
	struct backend_run run = { 0 };
	const struct machine_vm *vm;
	uint64_t known, n = 0;

	*passed = x->pool.frames;
	if (x->hand >= x->pool.base + x->pool.frames)
		x->hand = x->pool.base;
	vm = next_resident(x, x->hand, &run);
	if (!vm)
		return 0;
	known = wished_from(x, &vm->id, run.gfn);
	while (!known && n < run.count && n < most && !wished_from(x, &vm->id, run.gfn + n))
		n++;
	if (n)
		wish_out(x, vm, run.gfn, n);
	*passed = n ? n : known;
	x->hand = run.pfn + (*passed < run.count ? *passed : run.count);
	return n;
}

/* Wishes `missing` pages out, less what is wished already: the clock's hand goes round the pool once at most. */
void machine_wish_room(struct machine *x, uint64_t missing)
{
	uint64_t wished, passed;

	pthread_mutex_lock(&x->lock);
	wished = pages_wished(x);
	for (uint64_t round = 0; wished < missing && round < x->pool.frames; round += passed)
		wished += wish_at_hand(x, missing - wished, &passed);
	pthread_mutex_unlock(&x->lock);
}

/* What guests do by the script. */
static void read_script(struct machine *x)
{
	struct backend_request rq;

	while (x->script && machine_script_next(x->script, &rq))
		wish_add(x, &rq);
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

static struct wish *untold(const struct machine *x)
{
	struct wish *w = x->wishes;

	while (w && w->told)
		w = w->next;
	return w;
}

/* A wish, if one comes before `until`; the lock is held. With a script it has to be called again. */
static struct wish *await(struct machine *x, const struct timespec *until)
{
	struct wish *w;

	read_script(x);
	while (!(w = untold(x)) && !x->kicked)
		if (pthread_cond_timedwait(&x->some, &x->lock, until) == ETIMEDOUT)
			break;
	return w;
}

enum pw_status machine_wait(struct machine *x, unsigned timeout_ms, struct backend_request *out, struct pw_err *err)
{
	struct timespec until;
	struct wish *w;

	if (x->script && timeout_ms > SCRIPT_POLL_MS)
		timeout_ms = SCRIPT_POLL_MS;
	deadline(timeout_ms, &until);
	pthread_mutex_lock(&x->lock);
	w = await(x, &until);
	if (w) {
		w->told = true;
		*out = w->rq;
	} else {
		x->kicked = false;
	}
	pthread_mutex_unlock(&x->lock);
	return w ? PW_OK : pw_fail(err, PW_BUSY, "no request");
}

void machine_kick(struct machine *x)
{
	pthread_mutex_lock(&x->lock);
	x->kicked = true;
	pthread_cond_broadcast(&x->some);
	pthread_mutex_unlock(&x->lock);
}

void machine_complete(struct machine *x, const struct backend_request *rq)
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

void machine_wishes_init(struct machine *x)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&x->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&x->some, &attr);
	pthread_condattr_destroy(&attr);
}

void machine_wishes_release(struct machine *x)
{
	while (x->wishes)
		drop_wish(&x->wishes);
	pthread_cond_destroy(&x->some);
	pthread_mutex_destroy(&x->lock);
}
