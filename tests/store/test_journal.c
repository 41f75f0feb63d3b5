#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#include "tests/lib/store_dir.h"

static struct store_dir d;
static struct pw_err err;

static void setup(void)
{
	store_dir_make(&d);
}

static void teardown(void)
{
	store_dir_remove(&d);
}

TestSuite(journal, .init = setup, .fini = teardown, .timeout = 20);

Test(journal, new_one_is_empty)
{
	struct journal_span span;

	store_span(d.s, &span);
	cr_assert_eq(span.newest, 0);
	cr_assert_eq(span.oldest, 1);
	cr_assert_eq(span.rows, 0);
	cr_assert_eq(span.bytes, 0);
	cr_assert_eq(store_replay(d.s, 0), 0);
}

Test(journal, second_opener_of_a_directory_is_told_busy)
{
	struct store *other = NULL;

	cr_assert_eq(store_open(d.path, &other, &err), PW_BUSY);
	cr_assert_null(other);
}

Test(journal, missing_directory_and_too_long_path_are_refused)
{
	static char path[8000];
	struct store *other = NULL;

	cr_assert_eq(store_open("/tmp/pw-store.there-is-none", &other, &err), PW_STORAGE);
	memset(path, 'x', sizeof path - 1);
	cr_assert_eq(store_open(path, &other, &err), PW_STORAGE);
}

Test(journal, what_was_committed_is_there_after_reopening)
{
	struct journal_span before, after;

	store_fill(d.s, 1, 50);
	store_span(d.s, &before);
	store_dir_reopen(&d);
	store_span(d.s, &after);
	cr_assert_eq(memcmp(&before, &after, sizeof before), 0);
	cr_assert_eq(after.rows, 50);
	cr_assert_eq(store_replay(d.s, 0), 50);
	cr_assert_eq(store_replay(d.s, 20), 50);
	store_fill(d.s, 51, 51);
}

Test(journal, span_counts_the_bytes_of_records)
{
	struct journal_row row = { .first = 1, .last = 4, .time_ms = 5, .records = "abcdef", .size = 6 };
	struct journal_span span;

	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_append(d.s, &row, &err), PW_OK);
	store_span(d.s, &span);
	cr_assert_eq(span.newest, 0, "uncommitted");
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
	store_span(d.s, &span);
	cr_assert_eq(span.newest, 4);
	cr_assert_eq(span.rows, 1);
	cr_assert_eq(span.bytes, 6);
}

static struct wrong_range {
	uint64_t first, last;
} wrong[] = { { 1, 1 }, { 2, 2 }, { 5, 5 }, { 4, 3 }, { 0, 0 }, { UINT64_MAX, 0 } };

ParameterizedTestParameters(journal, revisions_that_do_not_follow_are_refused)
{
	return cr_make_param_array(struct wrong_range, wrong, PW_ARRAY_LEN(wrong));
}
ParameterizedTest(struct wrong_range *c, journal, revisions_that_do_not_follow_are_refused)
{
	struct journal_row row = { .first = c->first, .last = c->last, .records = "", .size = 0 };

	store_fill(d.s, 1, 3);
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_append(d.s, &row, &err), PW_CONFLICT);
	cr_assert_eq(store_commit(d.s, &err), PW_CONFLICT, "only a rollback remains");
	store_rollback(d.s);
	store_fill(d.s, 4, 4);
	cr_assert_eq(store_replay(d.s, 0), 4);
}

Test(journal, second_row_of_a_group_is_refused)
{
	struct journal_row row = { .first = 1, .last = 1, .records = "", .size = 0 };

	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_append(d.s, &row, &err), PW_OK);
	row.first = row.last = 2;
	cr_assert_eq(store_append(d.s, &row, &err), PW_CONFLICT);
	store_rollback(d.s);
	cr_assert_eq(store_replay(d.s, 0), 0);
}

Test(journal, nothing_is_written_outside_of_a_group)
{
	struct journal_row row = { .first = 1, .last = 1, .records = "", .size = 0 };
	struct answer a = { .headers = "", .body = "" };
	struct violation v = { .revision = 1, .actor = "", .json = "{}" };

	cr_assert_eq(store_append(d.s, &row, &err), PW_CONFLICT);
	cr_assert_eq(store_commit(d.s, &err), PW_CONFLICT);
	cr_assert_eq(store_answer_save(d.s, "s", "k", &a, &err), PW_CONFLICT);
	cr_assert_eq(store_answer_find(d.s, "s", "k", 0, &a, &err), PW_CONFLICT);
	cr_assert_eq(store_answers_expire(d.s, 0, 1, &(unsigned){ 0 }, &err), PW_CONFLICT);
	cr_assert_eq(store_violation_add(d.s, &v, &err), PW_CONFLICT);
	store_rollback(d.s);
	cr_assert_eq(store_newest(d.s), 0);
}

Test(journal, rolled_back_group_leaves_nothing)
{
	struct journal_row row = { .first = 1, .last = 9, .records = "x", .size = 1 };

	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_append(d.s, &row, &err), PW_OK);
	store_rollback(d.s);
	cr_assert_eq(store_newest(d.s), 0);
	store_fill(d.s, 1, 2);
	cr_assert_eq(store_replay(d.s, 0), 2);
}

Test(journal, group_without_a_row_commits)
{
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
	cr_assert_eq(store_newest(d.s), 0);
}

struct seen {
	uint64_t first[16];
	unsigned n, stop_after;
};

static bool note_row(void *ctx, const struct journal_row *row)
{
	struct seen *seen = ctx;

	seen->first[seen->n++] = row->first;
	return seen->n < seen->stop_after;
}

static void put_rows_of_three(void)
{
	for (uint64_t r = 1; r < 13; r += 3) {
		struct journal_row row = { .first = r, .last = r + 2, .records = "abc", .size = 3 };

		cr_assert_eq(store_begin(d.s, &err), PW_OK);
		cr_assert_eq(store_append(d.s, &row, &err), PW_OK);
		cr_assert_eq(store_commit(d.s, &err), PW_OK);
	}
}

static struct {
	uint64_t after;
	unsigned n;
	uint64_t first;
} forward[] = { { 0, 4, 1 }, { 1, 4, 1 },   { 2, 4, 1 },  { 3, 3, 4 },
		{ 5, 3, 4 }, { 11, 1, 10 }, { 12, 0, 0 }, { UINT64_MAX, 0, 0 } };

Test(journal, reading_forward_starts_with_the_row_that_holds_the_next_revision)
{
	put_rows_of_three();
	for (size_t i = 0; i < PW_ARRAY_LEN(forward); i++) {
		struct seen seen = { .stop_after = 16 };

		cr_assert_eq(store_read(d.s, forward[i].after, note_row, &seen, &err), PW_OK);
		cr_assert_eq(seen.n, forward[i].n, "after %" PRIu64, forward[i].after);
		cr_assert_eq(seen.first[0], forward[i].first);
	}
}

Test(journal, reading_back_ends_with_the_first_row)
{
	static const struct {
		uint64_t before;
		unsigned n;
		uint64_t first;
	} c[] = {
		{ UINT64_MAX, 4, 10 }, { 13, 4, 10 }, { 11, 4, 10 }, { 10, 3, 7 },
		{ 2, 1, 1 },           { 1, 0, 0 },   { 0, 0, 0 },
	};

	put_rows_of_three();
	for (size_t i = 0; i < PW_ARRAY_LEN(c); i++) {
		struct seen seen = { .stop_after = 16 };

		cr_assert_eq(store_read_back(d.s, c[i].before, note_row, &seen, &err), PW_OK);
		cr_assert_eq(seen.n, c[i].n, "before %" PRIu64, c[i].before);
		cr_assert_eq(seen.first[0], c[i].first);
	}
}

Test(journal, reading_stops_when_told_to)
{
	struct seen seen = { .stop_after = 2 };

	put_rows_of_three();
	cr_assert_eq(store_read(d.s, 0, note_row, &seen, &err), PW_OK);
	cr_assert_eq(seen.n, 2);
}

Test(journal, probe_writes_without_touching_the_journal)
{
	store_fill(d.s, 1, 1);
	cr_assert_eq(store_probe(d.s, &err), PW_OK);
	cr_assert_eq(store_probe(d.s, &err), PW_OK);
	cr_assert_eq(store_ask(d.path, "journal.db", "SELECT writes FROM probe"), 2);
	cr_assert_eq(store_newest(d.s), 1);
}

Test(journal, row_with_nonsense_is_refused_when_read)
{
	store_fill(d.s, 1, 3);
	store_tamper(d.path, "journal.db",
		     "PRAGMA ignore_check_constraints = 1; UPDATE journal SET hash = x'00' WHERE first = 2");
	cr_assert_eq(store_read(d.s, 0, note_row, &(struct seen){ .stop_after = 9 }, &err), PW_STORAGE);
	cr_assert(strstr(err.msg, "journal.db: table journal: hash"), "%s", err.msg);
}

static const char *const damage[] = {
	"DELETE FROM chain",
	"UPDATE chain SET revision = 99",
	"PRAGMA ignore_check_constraints = 1; UPDATE chain SET revision = 0, number = -1",
	"UPDATE chain SET number = 0; PRAGMA ignore_check_constraints = 1; UPDATE journal SET ends = -1 WHERE first = 3",
	"DROP TABLE journal",
};

Test(journal, damaged_end_stops_the_start)
{
	store_fill(d.s, 1, 3);
	store_close(d.s);
	d.s = NULL;
	for (size_t i = 0; i < PW_ARRAY_LEN(damage); i++) {
		store_tamper(d.path, "journal.db", damage[i]);
		cr_assert_eq(store_open(d.path, &d.s, &err), PW_STORAGE, "%s", damage[i]);
		cr_assert(strstr(err.msg, "journal.db"), "%s", err.msg);
		if (i == 0)
			store_tamper(d.path, "journal.db", "INSERT INTO chain VALUES (1, 0, 0, 0, zeroblob(32))");
	}
}

static _Atomic bool stop;

static void *read_on(void *ctx)
{
	uint64_t last = 0;

	(void)ctx;
	while (!atomic_load(&stop)) {
		uint64_t now = store_replay(d.s, last > 5 ? last - 5 : 0);

		cr_assert_geq(now, last);
		last = now;
	}
	return NULL;
}

Test(journal, more_readers_than_connections_go_on_beside_the_writer)
{
	pthread_t readers[6];

	for (size_t i = 0; i < PW_ARRAY_LEN(readers); i++)
		cr_assert_eq(pthread_create(&readers[i], NULL, read_on, NULL), 0);
	store_fill(d.s, 1, 200);
	atomic_store(&stop, true);
	for (size_t i = 0; i < PW_ARRAY_LEN(readers); i++)
		pthread_join(readers[i], NULL);
	cr_assert_eq(store_replay(d.s, 0), 200);
}
