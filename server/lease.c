/*
 * Leases by the time in which the server could hear (lease.h). Nothing here reads a clock. While a pause lasts, and
 * until the tick that notices it, all is judged as of the last tick: nobody may be found silent in between.
 */
#include "server/lease.h"

/* A pause as long as a beat or two is in no danger of ending a lease: hosts beat three times a term. */
static int64_t late_ms(const struct lease_clock *c)
{
	return LEASE_TICK_MS + (c->term_ms / 3 > 250 ? c->term_ms / 3 : 250);
}

void lease_clock_start(struct lease_clock *c, unsigned term_s, int64_t now_ms, int64_t boot_ms)
{
	c->term_ms = (int64_t)term_s * 1000;
	c->ticked_ms = now_ms;
	c->heard_ms = 0;
	c->ticked_boot_ms = boot_ms;
}

int64_t lease_clock_pause_ms(const struct lease_clock *c, int64_t now_ms, int64_t boot_ms)
{
	int64_t awake = now_ms - c->ticked_ms, all = boot_ms - c->ticked_boot_ms;
	int64_t since = all > awake ? all : awake;

	return since > late_ms(c) ? since : 0;
}

void lease_clock_tick(struct lease_clock *c, int64_t now_ms, int64_t boot_ms)
{
	int64_t since = now_ms - c->ticked_ms;

	c->heard_ms += since > late_ms(c) ? LEASE_TICK_MS : since;
	c->ticked_boot_ms = boot_ms;
	c->ticked_ms = now_ms;
}

void lease_renew(struct lease *l, const struct lease_clock *c, int64_t now_ms)
{
	l->heard_ms = c->heard_ms;
	l->began_ms = now_ms;
}

void lease_expire(struct lease *l, const struct lease_clock *c)
{
	l->heard_ms = c->heard_ms;
	l->began_ms = c->ticked_ms - c->term_ms - 1;
}

void lease_pause(struct lease *l, const struct lease_clock *c, int64_t now_ms)
{
	if (!lease_is_over(l, c, c->ticked_ms))
		l->began_ms = now_ms;
}

bool lease_is_over(const struct lease *l, const struct lease_clock *c, int64_t now_ms)
{
	int64_t ticked = c->ticked_ms;

	if (now_ms - ticked > late_ms(c))
		now_ms = ticked;
	return now_ms - l->began_ms > c->term_ms || c->heard_ms - l->heard_ms > 2 * c->term_ms;
}
