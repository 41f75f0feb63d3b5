/*
 * history.db against a naive scan: random runs of all sizes, many segments, windows of all sizes; that a trimmed, a
 * damaged or a foreign one is dropped.
 */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/history.h"
#include "tests/lib/store_dir.h"

enum { SUBJECTS = 3, SEGMENTS = 5, EACH = 2000, REVISIONS = 50 };
#define PAGES ((uint64_t)1 << 40)

static struct store_dir d;
static struct history *h;
static struct history_entry all[SEGMENTS * SUBJECTS * EACH];
static unsigned subject_of[PW_ARRAY_LEN(all)];
static size_t count;

struct test_random {
	uint64_t seed, x;
};

static struct test_random test_random_new(void)
{
	return (struct test_random){ 20261201, 20261201 };
}

static uint64_t test_below(struct test_random *r, uint64_t n)
{
	uint64_t z = r->x += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return n ? (z ^ z >> 31) % n : 0;
}

static void key_of(unsigned subject, uint8_t key[HISTORY_SUBJECT])
{
	memset(key, 0, HISTORY_SUBJECT);
	key[HISTORY_SUBJECT - 1] = (uint8_t)subject;
}

static void start(void)
{
	struct pw_err err = { 0 };
	uint64_t reached;

	store_dir_make(&d);
	store_fill(d.s, 1, SEGMENTS * REVISIONS);
	cr_assert_eq(history_open(d.s, &h, &reached, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(reached, 0);
}

static void finish(void)
{
	history_close(h);
	store_dir_remove(&d);
}
TestSuite(history, .init = start, .fini = finish, .timeout = 120);

/* Of any level, crowded around few places so that windows meet many. */
static struct history_entry entry_of(struct test_random *r, unsigned segment)
{
	struct history_entry e = { .revision = segment * REVISIONS + 1 + test_below(r, REVISIONS),
				   .at = (uint32_t)test_below(r, 1 << 20) };
	unsigned level = (unsigned)test_below(r, test_below(r, 3) ? 6 : 41);

	e.count = 1 + test_below(r, (uint64_t)1 << level);
	e.first = test_below(r, test_below(r, 4) ? 2000 : PAGES);
	if (e.first > PAGES - e.count)
		e.first = PAGES - e.count;
	return e;
}

static void add_segment(struct test_random *r, unsigned segment)
{
	struct history_list lists[SUBJECTS];
	static struct history_entry v[SUBJECTS][EACH];
	struct pw_err err = { 0 };

	for (unsigned s = 0; s < SUBJECTS; s++) {
		lists[s] = (struct history_list){ .v = v[s], .n = segment % 2 && s == 1 ? 0 : EACH };
		key_of(s, lists[s].subject);
		for (size_t i = 0; i < lists[s].n; i++) {
			v[s][i] = entry_of(r, segment);
			subject_of[count] = s;
			all[count++] = v[s][i];
		}
	}
	cr_assert_eq(history_add(h, segment * REVISIONS + 1, (segment + 1) * REVISIONS, lists, SUBJECTS, &err), PW_OK,
		     "%s", err.msg);
}

/* Order does not matter: what was found, as a sum and a number. */
struct seen {
	uint64_t n, sum;
};

static uint64_t mix(const struct history_entry *e)
{
	return (e->first * 31 + e->count) * 1000003 + e->revision * 8191 + e->at;
}

static void see(void *ctx, const struct history_entry *e)
{
	struct seen *s = ctx;

	s->n++;
	s->sum += mix(e);
}

static struct seen naive(unsigned subject, const struct history_window *w)
{
	struct seen s = { 0 };

	for (size_t i = 0; i < count; i++)
		if (subject_of[i] == subject && history_overlaps(&all[i], w))
			see(&s, &all[i]);
	return s;
}

static struct seen found(struct history_window w)
{
	struct seen s = { 0 };
	uint64_t from = 0, work = 0;
	struct pw_err err = { 0 };
	enum pw_status st;

	while ((st = history_find(h, &w, see, &s, &from, &work, &err)) == PW_OK) {
		cr_assert_lt(from, w.before);
		w.before = from;
	}
	cr_assert_eq(st, PW_NOT_FOUND, "%s", err.msg);
	return s;
}

static void compare(struct test_random *r, unsigned rounds)
{
	for (unsigned i = 0; i < rounds; i++) {
		unsigned subject = (unsigned)test_below(r, SUBJECTS + 1);
		struct history_window w = { .first = test_below(r, test_below(r, 4) ? 2100 : PAGES),
					    .count = 1 + test_below(r, test_below(r, 2) ? 1 : 500),
					    .before = 1 + test_below(r, SEGMENTS * REVISIONS + 2) };
		struct seen want, got;

		key_of(subject, w.subject);
		want = naive(subject, &w);
		got = found(w);
		cr_assert(want.n == got.n && want.sum == got.sum,
			  "seed %" PRIu64 ": subject %u, %" PRIu64 "+%" PRIu64 " before %" PRIu64 ": %" PRIu64
			  " found, not %" PRIu64,
			  r->seed, subject, w.first, w.count, w.before, got.n, want.n);
	}
}

Test(history, finds_what_a_scan_finds)
{
	struct test_random r = test_random_new();

	for (unsigned s = 0; s < SEGMENTS; s++)
		add_segment(&r, s);
	compare(&r, 400);
}

static uint64_t work_of(uint64_t first, uint64_t n)
{
	struct history_window w = { .first = first, .count = n, .before = INT64_MAX };
	uint64_t work = 0, from;
	struct seen s = { 0 };
	struct pw_err err;

	cr_assert_eq(history_find(h, &w, see, &s, &from, &work, &err), PW_OK);
	return work;
}

Test(history, a_page_costs_little_beside_all_there_is)
{
	static struct history_entry v[20000];
	struct history_list one = { .v = v, .n = PW_ARRAY_LEN(v) };
	struct test_random r = test_random_new();
	struct pw_err err = { 0 };

	for (size_t i = 0; i < one.n; i++)
		v[i] = (struct history_entry){ test_below(&r, 1 << 30), 1 + i % 8, 1 + i % REVISIONS, (uint32_t)i };
	cr_assert_eq(history_add(h, 1, REVISIONS, &one, 1, &err), PW_OK, "%s", err.msg);
	cr_expect_lt(work_of(1 << 29, 1) * 5, work_of(0, PAGES));
}

static void reopen(uint64_t want)
{
	struct pw_err err = { 0 };
	uint64_t reached;

	history_close(h);
	store_dir_reopen(&d);
	cr_assert_eq(history_open(d.s, &h, &reached, &err), PW_OK, "%s", err.msg);
	cr_expect_eq(reached, want);
}

Test(history, is_there_after_a_start_and_goes_with_the_journal)
{
	struct test_random r = test_random_new();
	struct pw_err err;
	size_t kept = 0;

	for (unsigned s = 0; s < SEGMENTS; s++)
		add_segment(&r, s);
	reopen(SEGMENTS * REVISIONS);
	compare(&r, 50);
	cr_assert_eq(history_trim(h, REVISIONS, &err), PW_NOT_FOUND, "the first segment has that revision");
	cr_assert_eq(history_trim(h, 2 * REVISIONS + 1, &err), PW_OK);
	cr_assert_eq(history_trim(h, 2 * REVISIONS + 1, &err), PW_OK);
	cr_assert_eq(history_trim(h, 2 * REVISIONS + 1, &err), PW_NOT_FOUND);
	for (size_t i = 0; i < count; i++)
		if (all[i].revision > 2 * REVISIONS) {
			subject_of[kept] = subject_of[i];
			all[kept++] = all[i];
		}
	count = kept;
	compare(&r, 100);
	cr_expect_eq(store_ask(d.path, "history.db", "SELECT count(*) FROM piece WHERE segment <= 2"), 0);
}

Test(history, of_another_journal_is_forgotten)
{
	struct test_random r = test_random_new();

	add_segment(&r, 0);
	store_tamper(d.path, "history.db", "UPDATE segment SET hash = zeroblob(32)");
	reopen(0);
}

Test(history, damage_is_told_and_can_be_forgotten)
{
	struct test_random r = test_random_new();
	struct history_window w = { .first = 0, .count = PAGES, .before = INT64_MAX };
	struct seen s = { 0 };
	uint64_t from, work = 0;
	struct pw_err err = { 0 };

	add_segment(&r, 0);
	store_tamper(d.path, "history.db", "UPDATE piece SET entries = x'ffffffffffffffffffffff'");
	cr_assert_eq(history_find(h, &w, see, &s, &from, &work, &err), PW_STORAGE);
	cr_assert_eq(history_reset(h, &err), PW_OK, "%s", err.msg);
	cr_expect_eq(history_find(h, &w, see, &s, &from, &work, &err), PW_NOT_FOUND);
	count = 0;
	add_segment(&r, 0);
	compare(&r, 50);
}

Test(history, what_is_no_database_is_made_anew)
{
	char path[STORE_PATH + 16];
	FILE *f;

	history_close(h);
	h = NULL;
	snprintf(path, sizeof path, "%s/history.db", d.path);
	f = fopen(path, "w");
	cr_assert_not_null(f);
	fputs("not a database, but long enough to look like something that is one", f);
	fclose(f);
	reopen(0);
}

Test(history, what_cannot_be_made_takes_nothing_until_it_can)
{
	struct test_random r = test_random_new();
	struct history_entry e = { 1, 1, 1, 0 };
	struct history_list one = { .v = &e, .n = 1 };
	char path[STORE_PATH + 16];
	struct pw_err err;

	add_segment(&r, 0);
	snprintf(path, sizeof path, "%s/history.db", d.path);
	cr_assert_eq(unlink(path), 0);
	cr_assert_eq(mkdir(path, 0700), 0);
	cr_assert_neq(history_reset(h, &err), PW_OK, "a folder is no database");
	cr_assert_eq(history_add(h, 1, REVISIONS, &one, 1, &err), PW_STORAGE);
	cr_assert_eq(history_trim(h, REVISIONS + 1, &err), PW_NOT_FOUND);
	cr_assert_eq(rmdir(path), 0);
	cr_assert_eq(history_reset(h, &err), PW_OK, "%s", err.msg);
	count = 0;
	add_segment(&r, 0);
	compare(&r, 50);
}
