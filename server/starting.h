/* server/starting.h
 *
 * While a server starts: tells systemd, the log and whoever sends a signal.
 */
#ifndef PW_SERVER_STARTING_H
#define PW_SERVER_STARTING_H
#include <pthread.h>
#include <signal.h>

#include "server/service.h"

struct starting {
	const struct service *service; /* borrowed */
	pthread_t thread;
	sigset_t awaited;
	bool runs;
};
/*
 * From here until starting_end a thread says how far service_start is: to systemd, which gives it more time for that,
 * and to the log. SIGTERM and SIGINT, which all threads must have blocked like SIGUSR1, end the process at once with
 * status 0: nothing was acknowledged yet.
 */
enum pw_status starting_begin(struct starting *s, const struct service *sv, struct pw_err *err) PW_MUST_CHECK;
void starting_end(struct starting *s); /* a zeroed one is fine */

#endif
