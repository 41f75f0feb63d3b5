#include "agents/ops.h"

#include <string.h>

#include "agents/ripas.h"

#define WISHES_MAX CHANGES_MAX

static enum gfn_op op_of(enum backend_want want)
{
	switch (want) {
	case WANT_SHARE: return GFN_SHARE;
	case WANT_UNSHARE: return GFN_UNSHARE;
	case WANT_PAGE_IN: return GFN_PAGE_IN;
	case WANT_PAGE_OUT: return GFN_PAGE_OUT;
	case WANT_RIPAS:
	case WANT_TERMINATED: break;
	}
	return GFN_OP_COUNT;
}

/* Does it share no batch with others? */
static bool goes_alone(const struct backend_request *rq)
{
	return op_of(rq->want) == GFN_OP_COUNT;
}

static bool overlaps(const struct backend_request *a, const struct backend_request *b)
{
	return pw_uuid_equal(&a->vm, &b->vm) && a->gfn < b->gfn + b->count && b->gfn < a->gfn + a->count;
}

/* May `next` go into one batch with rq[0..n)? */
static bool goes_with(const struct backend_request *rq, size_t n, const struct backend_request *next)
{
	if (goes_alone(next))
		return false;
	for (size_t i = 0; i < n; i++)
		if (goes_alone(&rq[i]) || overlaps(&rq[i], next))
			return false;
	return true;
}

/* Finishes a wish that was too scattered for one change; takes all of it back if the rest fails. */
static enum pw_status finish_wish(struct worker *w, struct change *c)
{
	struct change rest = { .vm = c->vm, .op = c->op, .gfn = c->gfn + c->done, .count = c->count - c->done };
	struct record rec = { 0 };
	struct trouble t = { 0 };
	uint64_t moved = 0;
	enum pw_status st;

	if (c->st != PW_OK || rest.count == 0)
		return c->st;
	st = change_range(w, &rest, &rec, &moved, &t);
	if (st != PW_OK) {
		changes_undo(w, &c->vm, c->op, rec.v, rec.n);
		changes_undo(w, &c->vm, c->op, c->stretches, c->stretch_count);
	}
	record_release(&rec);
	trouble_clear(&t);
	return st;
}

static void grant(struct worker *w, const struct backend_request *rq, size_t n)
{
	struct backend *b = w->agent->backend;
	struct change c[WISHES_MAX];

	for (size_t i = 0; i < n; i++)
		c[i] = (struct change){
			.vm = rq[i].vm, .op = op_of(rq[i].want), .gfn = rq[i].gfn, .count = rq[i].count
		};
	changes_run(w, c, n);
	for (size_t i = 0; i < n; i++) {
		enum pw_status st = finish_wish(w, &c[i]);

		if (st != PW_OK)
			alog(ALOG_WARNING, "a guest's wish failed", "%s of GFN %" PRIu64 "+%" PRIu64 ": %s",
			     gfn_op_name(c[i].op), rq[i].gfn, rq[i].count, c[i].trouble.err.msg);
		b->ops->complete(b, &rq[i], st);
	}
	changes_release(c, n);
}

static void end_guest(struct worker *w, const struct backend_request *rq)
{
	struct backend *b = w->agent->backend;
	struct trouble t = { 0 };
	char id[PW_UUID_TEXT];
	enum pw_status st = vm_end(w, &rq->vm, &t);

	pw_uuid_format(&rq->vm, id);
	alog(ALOG_INFO, "a guest ended", "vm %s: %.100s", id, rq->detail);
	if (st != PW_OK) {
		alog(ALOG_WARNING, "a guest that ended could not be cleared away", "vm %s: %s", id, t.err.msg);
		agent_want_resync(w->agent);
	}
	b->ops->complete(b, rq, st);
	trouble_clear(&t);
}

static void serve(struct worker *w, const struct backend_request *rq, size_t n)
{
	struct backend *b = w->agent->backend;

	pthread_mutex_lock(&w->agent->work);
	w->in_hand = true;
	if (!agent_is_registered(w->agent)) {
		for (size_t i = 0; i < n; i++)
			b->ops->complete(b, &rq[i], PW_BUSY);
	} else if (rq[0].want == WANT_TERMINATED) {
		end_guest(w, &rq[0]);
	} else if (rq[0].want == WANT_RIPAS) {
		ripas_serve(w, &rq[0]);
	} else {
		grant(w, rq, n);
	}
	w->in_hand = false;
	pthread_mutex_unlock(&w->agent->work);
}

/* Collects wishes that can share a batch; the one that cannot is left in rq[n] (*over). */
static size_t gather(struct agent *a, struct backend_request *rq, bool *over)
{
	struct backend *b = a->backend;
	struct pw_err err;
	size_t n = 1;

	*over = false;
	while (n < WISHES_MAX && !goes_alone(&rq[0]) && b->ops->wait(b, 0, &rq[n], &err) == PW_OK) {
		*over = !goes_with(rq, n, &rq[n]);
		if (*over)
			break;
		n++;
	}
	return n;
}

void *guests_loop(void *agent)
{
	struct agent *a = agent;
	struct worker w = { 0 };
	struct backend_request rq[WISHES_MAX + 1];
	struct pw_err err = { 0 };
	bool over = false;

	if (worker_open(&w, a, &err) != PW_OK) {
		alog(ALOG_ERROR, "no guests are served", "%s", err.msg);
		return NULL;
	}
	while (!agent_is_stopping(a)) {
		size_t n;

		if (!agent_is_registered(a)) {
			agent_pause(a, 200);
			continue;
		}
		if (!over && a->backend->ops->wait(a->backend, 500, &rq[0], &err) != PW_OK)
			continue;
		n = gather(a, rq, &over);
		serve(&w, rq, n);
		if (over)
			rq[0] = rq[n];
	}
	worker_close(&w);
	return NULL;
}
