/* server/reads.h
 *
 * Threads for long reads: whoever scans the journal or writes a long answer does so here, never on an HTTP thread.
 * A token has one read at a time, waiting or running; more are answered with rate-limited.
 */
#ifndef PW_SERVER_READS_H
#define PW_SERVER_READS_H
#include "server/config.h"
#include "server/request.h"

struct reads;

/* Starts config->read_threads threads; c and sv are borrowed. */
enum pw_status reads_start(struct service *sv, const struct config *c, struct reads **out,
			   struct pw_err *err) PW_MUST_CHECK;
/*
 * Gives the request to the pool: `read` runs on one of its threads, without any lock, and answers it (or parks it
 * anew, and says PARKED). Or answers it: rate-limited, busy, or not-ready at a stop.
 */
enum handled reads_park(struct reads *p, struct request *r, handler_fn read) PW_MUST_CHECK;
void reads_drain(struct reads *p); /* none is taken any more */
/* What waits is answered with not-ready. What runs is told by the service's `cut`, and looks at it between pieces. */
void reads_cut(struct reads *p);
void reads_free(struct reads *p); /* after both, and when no request is left; NULL is fine */
void reads_count(struct reads *p, unsigned *waiting, unsigned *running);

#endif
