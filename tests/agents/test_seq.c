#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#include "agents/seq.h"

static char dir[32], path[64];

static void setup(void)
{
	snprintf(dir, sizeof dir, "/tmp/pw-seq-XXXXXX");
	cr_assert_not_null(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/seq", dir);
}

static void teardown(void)
{
	unlink(path);
	rmdir(dir);
}

TestSuite(seq, .init = setup, .fini = teardown);

static uint64_t take(struct seq *s)
{
	struct pw_err err = { 0 };
	uint64_t n = 0;

	cr_assert_eq(seq_take(s, &n, &err), PW_OK, "%s", err.msg);
	return n;
}

static struct seq opened(const char *file, uint64_t clock)
{
	struct pw_err err = { 0 };
	struct seq s;

	cr_assert_eq(seq_open(&s, file, clock, &err), PW_OK, "%s", err.msg);
	return s;
}

Test(seq, numbers_count_up_by_one)
{
	struct seq s = opened(path, 500);

	cr_assert_eq(take(&s), 500);
	cr_assert_eq(take(&s), 501);
	seq_release(&s);
}

Test(seq, a_restart_never_repeats_a_number_even_if_the_clock_went_back)
{
	struct seq s = opened(path, 1000);
	uint64_t last = 0;

	for (int i = 0; i < 10; i++)
		last = take(&s);
	seq_release(&s); /* as a crash: nothing is written at the end */
	s = opened(path, 3);
	cr_assert_gt(take(&s), last);
	seq_release(&s);
}

Test(seq, a_whole_block_survives_restarts_too)
{
	struct seq s = opened(path, 0);
	uint64_t last = 0;

	s.next = s.put_down = SEQ_BLOCK - 2;
	for (int i = 0; i < 4; i++)
		last = take(&s);
	seq_release(&s);
	s = opened(path, 0);
	cr_assert_gt(take(&s), last);
	seq_release(&s);
}

Test(seq, without_a_file_the_clock_decides)
{
	struct seq s = opened(NULL, 1234);

	cr_assert_eq(take(&s), 1234);
	seq_release(&s);
}

Test(seq, a_jump_goes_past_what_the_server_has_seen_and_never_back)
{
	struct seq s = opened(path, 10);

	seq_jump(&s, 99);
	cr_assert_eq(take(&s), 100);
	seq_jump(&s, 5);
	cr_assert_eq(take(&s), 101);
	seq_release(&s);
}

Test(seq, a_damaged_file_is_refused_and_named)
{
	struct pw_err err = { 0 };
	struct seq s;

	cr_assert_eq(file_write_line(path, "12x", &err), PW_OK);
	cr_assert_eq(seq_open(&s, path, 1, &err), PW_STORAGE);
	cr_assert(strstr(err.msg, "12x"));
}

Test(seq, a_number_is_not_taken_when_its_block_cannot_be_put_down)
{
	struct seq s = opened("/nonexistent-folder/seq", 7);
	struct pw_err err = { 0 };
	uint64_t n = 42;

	cr_assert_eq(seq_take(&s, &n, &err), PW_STORAGE);
	cr_assert_eq(n, 42);
	seq_release(&s);
}
