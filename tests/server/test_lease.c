/* Leases in virtual time: silence ends one, the server's own pause does not. */
#include "server/lease.h"

#include <criterion/criterion.h>

#include "agents/agent.h"

enum { TERM_S = 3, TERM = TERM_S * 1000, START = 1000000 };

/* A server with one host, in virtual time. */
static struct world {
	struct lease_clock clock;
	struct lease lease;
	int64_t now, boot;
} w;

static void begin(void)
{
	w = (struct world){ .now = START, .boot = 5 * START };
	lease_clock_start(&w.clock, TERM_S, w.now, w.boot);
	lease_renew(&w.lease, &w.clock, w.now);
}
TestSuite(lease, .init = begin);

/* As the writer does it. */
static bool tick(void)
{
	int64_t pause = lease_clock_pause_ms(&w.clock, w.now, w.boot);

	if (pause)
		lease_pause(&w.lease, &w.clock, w.now);
	lease_clock_tick(&w.clock, w.now, w.boot);
	return pause > 0;
}

static void sleep_ms(int64_t ms)
{
	w.now += ms;
	w.boot += ms;
}

/* The server hears for so long, and the host says nothing. */
static void hear(int64_t ms)
{
	for (; ms > 0; ms -= LEASE_TICK_MS) {
		sleep_ms(ms < LEASE_TICK_MS ? ms : LEASE_TICK_MS);
		cr_assert(!tick());
	}
}

static bool is_over(void)
{
	return lease_is_over(&w.lease, &w.clock, w.now);
}

Test(lease, is_over_after_a_term_without_a_beat)
{
	hear(TERM);
	cr_expect(!is_over());
	lease_renew(&w.lease, &w.clock, w.now);
	hear(TERM);
	cr_expect(!is_over());
	sleep_ms(1);
	cr_expect(is_over());
}

Test(lease, a_pause_of_the_server_gives_one_more_term)
{
	hear(1000);
	sleep_ms(60000);
	cr_expect(!is_over(), "before the tick that notices it");
	cr_expect(tick());
	hear(TERM);
	cr_expect(!is_over());
	sleep_ms(1);
	cr_expect(is_over(), "one more term, not two");
}

Test(lease, a_pause_brings_nobody_back)
{
	hear(TERM + 1000);
	cr_assert(is_over());
	sleep_ms(60000);
	cr_expect(is_over());
	cr_expect(tick());
	cr_expect(is_over());
	hear(1000);
	lease_renew(&w.lease, &w.clock, w.now);
	cr_expect(!is_over());
}

Test(lease, a_suspended_machine_has_paused)
{
	hear(TERM - 1000);
	w.boot += 3600 * 1000;
	cr_expect(tick());
	hear(TERM);
	cr_expect(!is_over());
	sleep_ms(1);
	cr_expect(is_over());
}

Test(lease, a_late_tick_is_no_pause)
{
	sleep_ms(LEASE_TICK_MS + TERM / 3);
	cr_expect(!tick());
	sleep_ms(TERM - (LEASE_TICK_MS + TERM / 3) + 1);
	cr_expect(is_over());
}

Test(lease, pauses_in_a_row_are_borne_and_do_not_hide_a_silent_host)
{
	for (int i = 0; i < 3; i++) { /* it hears a second at a time */
		sleep_ms(20000);
		cr_expect(tick());
		cr_expect(!is_over(), "pause %d", i);
		hear(1000);
		cr_expect(!is_over(), "pause %d", i);
	}
	for (int i = 0; i < 2; i++) {
		sleep_ms(20000);
		cr_expect(tick());
		hear(1000);
	}
	cr_expect(is_over(), "it heard nothing for two terms in all");
	sleep_ms(20000);
	cr_expect(tick());
	cr_expect(is_over(), "and it stays so");
}

Test(lease, who_was_unreachable_at_the_last_stop_is_so_until_its_first_beat)
{
	lease_expire(&w.lease, &w.clock);
	cr_expect(is_over());
	hear(1000);
	cr_expect(is_over());
	sleep_ms(60000);
	cr_expect(tick());
	cr_expect(is_over());
	lease_renew(&w.lease, &w.clock, w.now);
	cr_expect(!is_over());
}

/* Hosts beat three times a term when they can be heard; the server stops at random. */
Test(lease, however_the_server_stops_a_host_that_beats_is_in_reach_and_a_silent_one_is_not_for_long)
{
	uint64_t seed = 20261201;

	for (int round = 0; round < 500; round++) {
		int64_t beat = 0, heard = 0;

		begin();
		for (int i = 0; i < 60; i++) {
			if (next_random(&seed) % 4 == 0) {
				sleep_ms((int64_t)(next_random(&seed) % 30000));
				cr_assert(!is_over(), "round %d", round);
				tick();
				cr_assert(!is_over(), "round %d", round);
				beat = (int64_t)(next_random(&seed) % TERM / 3); /* until it is heard of again */
			}
			for (int64_t ms = 0; ms < LEASE_TICK_MS; ms += 100) {
				sleep_ms(100);
				beat -= 100;
				if (beat > 0)
					continue;
				lease_renew(&w.lease, &w.clock, w.now);
				beat = TERM / 3;
			}
			tick();
			cr_assert(!is_over(), "round %d", round);
		}
		while (!is_over()) {
			if (next_random(&seed) % 3 == 0)
				sleep_ms((int64_t)(next_random(&seed) % 30000));
			sleep_ms(LEASE_TICK_MS);
			tick();
			heard += LEASE_TICK_MS;
			cr_assert_leq(heard, 3 * TERM, "round %d", round);
		}
	}
}
