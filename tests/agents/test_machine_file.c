#include "agents/machine_file.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

static struct pw_err err;
static char dir[] = "/tmp/pw-machine-XXXXXX", path[64], lock[72];

static void begin(void)
{
	cr_assert(mkdtemp(dir));
	snprintf(path, sizeof path, "%s/file", dir);
	snprintf(lock, sizeof lock, "%s.lock", path);
}

static void end(void)
{
	unlink(path);
	unlink(lock);
	rmdir(dir);
}

/* Adds up what is read, group by group. */
struct sum {
	unsigned groups;
	uint64_t words, total;
};

static enum pw_status add_up(void *ctx, const uint64_t *at, size_t count, struct pw_err *e)
{
	struct sum *s = ctx;

	s->groups++;
	s->words += count;
	for (size_t i = 0; i < count; i++)
		s->total += at[i];
	return PW_OK;
}

static struct machine_file *reopen(struct sum *s)
{
	struct machine_file *f;

	*s = (struct sum){ 0 };
	cr_assert_eq(machine_file_open(path, add_up, s, &f, &err), PW_OK, "%s", err.msg);
	return f;
}

static void append(struct machine_file *f, uint64_t a, uint64_t b)
{
	struct words w = { 0 };

	words_add(&w, a);
	words_add(&w, b);
	cr_assert_eq(machine_file_append(f, &w, &err), PW_OK, "%s", err.msg);
	words_release(&w);
}

Test(machine_file, reads_back_what_was_appended, .init = begin, .fini = end)
{
	struct words all = { 0 };
	struct sum s;
	struct machine_file *f = reopen(&s);

	cr_expect_eq(s.groups, 0);
	append(f, 1, 2);
	append(f, 3, 4);
	machine_file_close(f);
	f = reopen(&s);
	cr_expect(s.groups == 2 && s.words == 4 && s.total == 10);
	words_add(&all, 7);
	cr_assert_eq(machine_file_rewrite(f, &all, &err), PW_OK);
	append(f, 5, 6);
	machine_file_close(f);
	machine_file_close(reopen(&s));
	cr_expect(s.groups == 2 && s.words == 3 && s.total == 18);
	words_release(&all);
}

Test(machine_file, cuts_a_torn_end_off_so_that_more_can_follow, .init = begin, .fini = end)
{
	const off_t group = 2 * 8 + 2 * 8;

	for (off_t cut = 1; cut < group; cut++) {
		struct sum s;
		struct machine_file *f;

		unlink(path);
		f = reopen(&s);
		append(f, 1, 2);
		append(f, 3, 4);
		machine_file_close(f);
		cr_assert_eq(truncate(path, 2 * group - cut), 0);
		f = reopen(&s);
		cr_expect(s.groups == 1 && s.total == 3);
		append(f, 5, 6);
		machine_file_close(f);
		machine_file_close(reopen(&s));
		cr_expect(s.groups == 2 && s.total == 14, "cut %d", (int)cut);
	}
}

Test(machine_file, refuses_damage_before_its_end, .init = begin, .fini = end)
{
	struct sum s;
	struct machine_file *f = reopen(&s);
	FILE *raw;

	append(f, 1, 2);
	append(f, 3, 4);
	machine_file_close(f);
	raw = fopen(path, "r+");
	cr_assert(raw);
	fseek(raw, 17, SEEK_SET);
	fputc(99, raw);
	fclose(raw);
	cr_expect_eq(machine_file_open(path, add_up, &s, &f, &err), PW_STORAGE);
}

Test(machine_file, is_open_once, .init = begin, .fini = end)
{
	struct sum s;
	struct machine_file *f = reopen(&s), *second;

	cr_expect_eq(machine_file_open(path, add_up, &s, &second, &err), PW_BUSY);
	machine_file_close(f);
	machine_file_close(reopen(&s));
}
