/* server/queue.h
 *
 * Changes that wait for the writer, in lanes by who asks: an agent's host, or the token. Lanes take turns, so who sends
 * much waits for himself and not the others for him. Callers are spread over the lanes by a seed that nobody knows; two
 * that share one share its turns. Not thread-safe: the service keeps one under its `mutex`.
 */
#ifndef PW_SERVER_QUEUE_H
#define PW_SERVER_QUEUE_H
#include "server/waiters.h"

#define QUEUE_LANES 1024
struct lane {
	struct request_list list;
	struct lane *next;
};
struct queue {
	struct lane lanes[QUEUE_LANES];
	struct lane *first, **last; /* those that have somebody, in order of their turns */
	_Atomic size_t waiting;     /* lanes among them; may be read without the mutex */
	size_t count;               /* requests */
	uint64_t seed;
};

void queue_init(struct queue *q, uint64_t seed);
void queue_push(struct queue *q, struct request *r); /* behind its caller's others */
struct request *queue_take(struct queue *q);         /* whose turn it is; NULL: nobody waits */
struct request *queue_empty(struct queue *q);        /* all, linked by next */
/* Somebody else than r's caller waits. Without the mutex; what r's caller sends meanwhile counts as somebody else. */
bool queue_has_others(const struct queue *q);

#endif
