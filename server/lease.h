/* server/lease.h
 *
 * When has a host been silent for too long? Told by a clock that is handed in, and by ticks that say when the server
 * could hear: its own pauses (stopped, suspended, a commit that stalls) are not its hosts' silence. Pure state.
 *
 * A tick that comes late is a pause. Every lease that was not over before it begins a new term when it ends; one that
 * was over stays so until its host is heard of. However often the server pauses: who is silent while it hears for two
 * terms in all is silent.
 *
 * Threads: one ticks; any may renew and ask.
 */
#ifndef PW_SERVER_LEASE_H
#define PW_SERVER_LEASE_H
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

#define LEASE_TICK_MS 1000 /* between ticks, if all is well */

struct lease_clock {
	int64_t term_ms;
	_Atomic int64_t ticked_ms; /* monotonic */
	_Atomic int64_t heard_ms;  /* how long it could hear, in all */
	int64_t ticked_boot_ms;    /* the ticking thread's own */
};

struct lease {
	_Atomic int64_t began_ms; /* its term; monotonic */
	_Atomic int64_t heard_ms; /* the clock's, when its host was heard of */
};

/* now_ms: monotonic; boot_ms: the same, with the time that the machine was suspended. */
void lease_clock_start(struct lease_clock *c, unsigned term_s, int64_t now_ms, int64_t boot_ms);
/* How long the server has been deaf, if it was; else 0. */
int64_t lease_clock_pause_ms(const struct lease_clock *c, int64_t now_ms, int64_t boot_ms);
/* Ends the time since the last tick. After a pause: every lease must have been given lease_pause first. */
void lease_clock_tick(struct lease_clock *c, int64_t now_ms, int64_t boot_ms);

void lease_renew(struct lease *l, const struct lease_clock *c, int64_t now_ms); /* the host was heard of */
void lease_expire(struct lease *l, const struct lease_clock *c);                /* it is over until then */
void lease_pause(struct lease *l, const struct lease_clock *c, int64_t now_ms);
bool lease_is_over(const struct lease *l, const struct lease_clock *c, int64_t now_ms);

#endif
