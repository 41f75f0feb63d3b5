/* kill -9 at any moment: what a child had acknowledged over a pipe is there, and the chain holds. */
#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tests/lib/store_dir.h"

static struct store_dir d;
static struct pw_err err;

static void setup(void)
{
	store_dir_make(&d);
	store_close(d.s);
	d.s = NULL;
}

static void teardown(void)
{
	store_dir_remove(&d);
}

TestSuite(crash, .init = setup, .fini = teardown, .timeout = 60);

/* Commits, paints, trims and moves the WAL until it is killed; tells each acknowledged revision. */
static _Noreturn void live(int out)
{
	struct store *s;
	struct pw_err e = { 0 };

	if (store_open(d.path, &s, &e) != PW_OK)
		_exit(1);
	for (uint64_t r = store_newest(s) + 1;; r++) {
		struct picture p = { .revision = r };

		if (store_put(s, r, &e) != PW_OK || write(out, &r, sizeof r) != (ssize_t)sizeof r)
			_exit(2);
		if (r % 16 == 0 && (store_save_picture(s, &p, &e) != PW_OK || store_trim(s, r - 10, &e) != PW_OK))
			_exit(3);
		if (r % 23 == 0 && store_wal_checkpoint(s, &e) != PW_OK)
			_exit(4);
	}
}

/* Kills it `after` microseconds from its first acknowledgement on, however slow the machine is. */
static uint64_t run_and_kill(useconds_t after, uint64_t acknowledged)
{
	int pipes[2], status = 0;
	uint64_t r;
	pid_t child;

	cr_assert_eq(pipe(pipes), 0);
	child = fork();
	cr_assert_geq(child, 0);
	if (child == 0) {
		close(pipes[0]);
		live(pipes[1]);
	}
	close(pipes[1]);
	if (read(pipes[0], &r, sizeof r) == (ssize_t)sizeof r)
		acknowledged = r;
	usleep(after);
	kill(child, SIGKILL);
	while (read(pipes[0], &r, sizeof r) == (ssize_t)sizeof r)
		acknowledged = r;
	close(pipes[0]);
	cr_assert_eq(waitpid(child, &status, 0), child);
	cr_assert(WIFSIGNALED(status), "it failed by itself: %d", WEXITSTATUS(status));
	return acknowledged;
}

Test(crash, every_acknowledged_revision_survives_kill_9)
{
	uint64_t acknowledged = 0;

	for (unsigned round = 0; round < 20; round++) {
		struct journal_span span;
		struct verify_report v;

		acknowledged = run_and_kill(5000 + round * 4000, acknowledged);
		cr_assert_eq(store_verify(d.path, NULL, &v, &err), PW_OK, "%s", err.msg);
		cr_assert_eq(v.broken, 0);
		store_dir_reopen(&d);
		store_span(d.s, &span);
		cr_assert_geq(span.newest, acknowledged, "round %u", round);
		cr_assert_leq(span.newest, acknowledged + 1, "at most the one that was about to be told");
		cr_assert_eq(store_replay(d.s, span.oldest - 1), span.newest);
		cr_assert_geq(store_ask(d.path, "ledger.db", "SELECT revision FROM meta") + 1, (int64_t)span.oldest);
		store_close(d.s);
		d.s = NULL;
		acknowledged = span.newest;
	}
	cr_assert_geq(acknowledged, 20, "at least one a round");
}
