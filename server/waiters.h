/* server/waiters.h
 *
 * Requests that wait for news (long polls), by what they wait for: a change wakes those that it concerns and costs
 * nothing to the others. Who is woken is taken out again a few at a time, so that ten thousand of them do not hold up
 * who takes them. Not thread-safe: the service keeps one under its `mutex`.
 */
#ifndef PW_SERVER_WAITERS_H
#define PW_SERVER_WAITERS_H
#include "server/request.h"

struct request_list {
	struct request *head, **tail;
};
void list_init(struct request_list *l);
void list_push(struct request_list *l, struct request *r);
struct request *list_pop(struct request_list *l);            /* the first, or NULL */
struct request *list_take(struct request_list *l);           /* all of it, linked by next */
uint64_t uuid_hash(const struct pw_uuid *id, uint64_t seed); /* nobody who does not know the seed makes two alike */

/* A binary heap; each request in it knows its place. */
struct request_heap {
	struct request **items;
	size_t count, capacity;
};

#define WAITERS_LISTS 4096
struct waiters {
	struct request_heap deadlines;        /* all that wait */
	struct request_heap revisions;        /* WAIT_REVISION */
	struct request *lists[WAITERS_LISTS]; /* the others, by their keys */
	struct request_list woken[2];         /* who goes first (agents' polls, operations), and feeds */
	uint64_t seed;                        /* of the lists: nobody chooses who shares one with whom */
	unsigned left;                        /* so many may still be taken until next_ms */
	int64_t next_ms;
};

void waiters_init(struct waiters *w, uint64_t seed);
void waiters_release(struct waiters *w); /* nobody waits any more */

/* r waits for r->wait_for (WAIT_REVISION: for a revision past r->wait_after) or its deadline.
 * PW_NO_MEMORY  it does not */
enum pw_status waiters_add(struct waiters *w, struct request *r) PW_MUST_CHECK;
/* The client has gone. False: it does not wait, or is woken already. */
bool waiters_remove(struct waiters *w, struct request *r) PW_MUST_CHECK;

/* Each returns how many it woke. */
size_t waiters_wake(struct waiters *w, const struct wait_key *key); /* WAIT_TOKEN: all whose token that is */
size_t waiters_wake_revision(struct waiters *w, uint64_t revision);
size_t waiters_wake_due(struct waiters *w, int64_t now_ms); /* their deadlines become 1: over */

/*
 * Takes some of those who are woken, linked by next: at most a hundredth of `rate` in 10 ms; 0: all. *next_ms becomes
 * the time when there is more to do, if that is earlier.
 */
struct request *waiters_take(struct waiters *w, unsigned rate, int64_t now_ms, int64_t *next_ms) PW_MUST_CHECK;

#endif
