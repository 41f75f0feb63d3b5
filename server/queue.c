/*
 * The writer's queue: a first-in first-out list for each caller, and one of the callers. Each turn takes one request
 * and sends its caller to the end. Under the service's `mutex`.
 */
#include "server/queue.h"

#include <stdatomic.h>
#include <string.h>

void queue_init(struct queue *q, uint64_t seed)
{
	memset(q, 0, sizeof *q);
	for (size_t i = 0; i < QUEUE_LANES; i++)
		list_init(&q->lanes[i].list);
	q->last = &q->first;
	q->seed = seed;
}

static struct lane *lane_of(struct queue *q, const struct request *r)
{
	const struct pw_uuid *id = r->who.role == ROLE_AGENT ? &r->who.host : &r->who.token;

	return &q->lanes[uuid_hash(id, q->seed) % QUEUE_LANES];
}

static void line_up(struct queue *q, struct lane *l)
{
	l->next = NULL;
	*q->last = l;
	q->last = &l->next;
	atomic_fetch_add(&q->waiting, 1);
}

void queue_push(struct queue *q, struct request *r)
{
	struct lane *l = lane_of(q, r);
	bool lines_up = !l->list.head;

	list_push(&l->list, r);
	if (lines_up)
		line_up(q, l);
	q->count++;
}

struct request *queue_take(struct queue *q)
{
	struct lane *l = q->first;
	struct request *r;

	if (!l)
		return NULL;
	q->first = l->next;
	if (!q->first)
		q->last = &q->first;
	atomic_fetch_sub(&q->waiting, 1);
	r = list_pop(&l->list);
	if (l->list.head)
		line_up(q, l);
	q->count--;
	return r;
}

struct request *queue_empty(struct queue *q)
{
	struct request_list all;
	struct request *r;

	list_init(&all);
	while ((r = queue_take(q)))
		list_push(&all, r);
	return all.head;
}

bool queue_has_others(const struct queue *q)
{
	return atomic_load_explicit(&q->waiting, memory_order_relaxed) > 0;
}
