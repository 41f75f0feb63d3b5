#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/inner.h"
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

TestSuite(upkeep, .init = setup, .fini = teardown, .timeout = 120);

static void paint(uint64_t revision)
{
	struct picture p = { .revision = revision };

	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
}

static void add_violation(uint64_t revision)
{
	struct violation v = { .revision = revision, .actor = "a", .json = "{}" };

	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_violation_add(d.s, &v, &err), PW_OK);
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
}

static struct verify_report verify(const char *dir)
{
	struct verify_report v;

	cr_assert_eq(store_verify(dir, NULL, &v, &err), PW_OK, "%s", err.msg);
	return v;
}

Test(upkeep, trim_takes_rows_and_violations_up_to_a_revision)
{
	struct journal_span span;

	store_fill(d.s, 1, 200);
	add_violation(150);
	add_violation(151);
	paint(180);
	cr_assert_eq(store_trim(d.s, 150, &err), PW_OK, "%s", err.msg);
	store_span(d.s, &span);
	cr_assert_eq(span.oldest, 151);
	cr_assert_eq(span.newest, 200);
	cr_assert_eq(span.rows, 50);
	cr_assert_eq(span.bytes, (uint64_t)store_ask(d.path, "journal.db", "SELECT sum(length(records)) FROM journal"));
	cr_assert_eq(store_ask(d.path, "journal.db", "SELECT min(revision) FROM violation"), 151);
	cr_assert_eq(store_replay(d.s, 150), 200);
	store_fill(d.s, 201, 205);
	store_dir_reopen(&d);
	store_span(d.s, &span);
	cr_assert_eq(span.oldest, 151);
	cr_assert_eq(span.rows, 55);
	cr_assert_eq(verify(d.path).rows, 55);
}

Test(upkeep, trim_never_passes_the_picture)
{
	struct journal_span span;

	store_fill(d.s, 1, 20);
	cr_assert_eq(store_trim(d.s, 20, &err), PW_OK);
	store_span(d.s, &span);
	cr_assert_eq(span.oldest, 1, "no picture yet");
	paint(7);
	cr_assert_eq(store_trim(d.s, UINT64_MAX, &err), PW_OK);
	store_span(d.s, &span);
	cr_assert_eq(span.oldest, 8);
}

Test(upkeep, row_that_reaches_past_the_bound_stays)
{
	struct journal_row row = { .first = 1, .last = 10, .records = "x", .size = 1 };
	struct journal_span span;

	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_append(d.s, &row, &err), PW_OK);
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
	paint(10);
	cr_assert_eq(store_trim(d.s, 9, &err), PW_OK);
	store_span(d.s, &span);
	cr_assert_eq(span.oldest, 1);
}

Test(upkeep, journal_that_was_trimmed_bare_goes_on_where_it_was)
{
	struct journal_span span;

	store_fill(d.s, 1, 9);
	paint(9);
	cr_assert_eq(store_trim(d.s, 9, &err), PW_OK);
	store_dir_reopen(&d);
	store_span(d.s, &span);
	cr_assert_eq(span.oldest, 10);
	cr_assert_eq(span.newest, 9);
	cr_assert_eq(span.rows, 0);
	cr_assert_eq(span.bytes, 0);
	cr_assert_eq(store_revision_before(d.s, INT64_MAX), 0);
	cr_assert_eq(store_revision_keeping(d.s, 0), 0);
	store_fill(d.s, 10, 12);
	cr_assert_eq(verify(d.path).newest, 12);
	cr_assert_eq(verify(d.path).oldest, 10);
}

Test(upkeep, revision_before_a_time)
{
	store_fill(d.s, 1, 40);
	cr_assert_eq(store_revision_before(d.s, store_put_time(1)), 0);
	for (uint64_t r = 1; r <= 40; r++)
		cr_assert_eq(store_revision_before(d.s, store_put_time(r) + 1), r);
	cr_assert_eq(store_revision_before(d.s, INT64_MAX), 40);
}

Test(upkeep, revision_keeping_leaves_at_most_so_many_bytes)
{
	struct journal_span span;

	store_fill(d.s, 1, 40);
	paint(40);
	cr_assert_eq(store_trim(d.s, 5, &err), PW_OK);
	store_span(d.s, &span);
	cr_assert_eq(store_revision_keeping(d.s, span.bytes), 0, "all of it fits");
	cr_assert_eq(store_revision_keeping(d.s, UINT64_MAX), 0);
	for (uint64_t most = 0; most < span.bytes; most += 997) {
		uint64_t r = store_revision_keeping(d.s, most);
		char sql[128];

		snprintf(sql, sizeof sql,
			 "SELECT coalesce(sum(length(records)), 0) FROM journal WHERE first > %" PRIu64, r);
		cr_assert_leq((uint64_t)store_ask(d.path, "journal.db", sql), most);
		snprintf(sql, sizeof sql, "SELECT sum(length(records)) FROM journal WHERE first >= %" PRIu64, r);
		cr_assert_gt((uint64_t)store_ask(d.path, "journal.db", sql), most, "no more than needed goes");
	}
}

Test(upkeep, verify_reports_an_intact_journal)
{
	struct verify_report v;

	store_fill(d.s, 1, 30);
	v = verify(d.path); /* while it is open */
	cr_assert_eq(v.rows, 30);
	cr_assert_eq(v.oldest, 1);
	cr_assert_eq(v.newest, 30);
	cr_assert_eq(v.broken, 0);
	store_close(d.s);
	d.s = NULL;
	cr_assert_eq(memcmp(v.head, verify(d.path).head, STORE_HASH), 0);
}

#define SWAP(column)                                                             \
	"UPDATE journal SET " column " = CASE first WHEN 7 THEN (SELECT " column \
	" FROM journal WHERE first = 8) ELSE (SELECT " column                    \
	" FROM journal WHERE first = 7) END WHERE first IN (7, 8)"
#define SWAP_ROWS                                                       \
	"UPDATE journal SET first = 1000, last = 1000 WHERE first = 7;" \
	"UPDATE journal SET first = 7, last = 7 WHERE first = 8;"       \
	"UPDATE journal SET first = 8, last = 8 WHERE first = 1000"
static const char *const tampering[] = {
	"UPDATE journal SET records = CAST(x'ff' || substr(records, 2) AS BLOB) WHERE first = 7",
	"UPDATE journal SET records = x'' WHERE first = 7",
	"UPDATE journal SET time_ms = time_ms + 1 WHERE first = 7",
	"DELETE FROM journal WHERE first = 7",
	"UPDATE journal SET last = 8 WHERE first = 7",
	"UPDATE journal SET hash = zeroblob(32) WHERE first = 7",
	"UPDATE journal SET number = number + 1 WHERE first = 7",
	"UPDATE journal SET ends = ends + 1 WHERE first = 7",
	SWAP("records"),
	SWAP_ROWS,
};

Test(upkeep, verify_finds_the_row_that_was_tampered_with)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(tampering); i++) {
		struct verify_report v;

		store_dir_remove(&d);
		store_dir_make(&d);
		store_fill(d.s, 1, 12);
		store_close(d.s);
		d.s = NULL;
		store_tamper(d.path, "journal.db", tampering[i]);
		v = verify(d.path);
		cr_assert_eq(v.broken, 7, "%s: %" PRIu64, tampering[i], v.broken);
		cr_assert_eq(v.rows, 6);
		cr_assert_eq(v.newest, 6);
	}
}

Test(upkeep, start_stops_at_the_row_that_was_tampered_with)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(tampering); i++) {
		store_dir_remove(&d);
		store_dir_make(&d);
		store_fill(d.s, 1, 12);
		if (i % 2)
			paint(12);
		store_close(d.s);
		d.s = NULL;
		store_tamper(d.path, "journal.db", tampering[i]);
		cr_assert_eq(store_open(d.path, &d.s, &err), PW_STORAGE, "%s", tampering[i]);
		cr_assert(strstr(err.msg, "revision 7 is missing") && strstr(err.msg, "--verify"), "%s", err.msg);
		d.s = NULL;
	}
}

/* Without a look at the records, as of rows that are old and in the picture. */
Test(upkeep, links_alone_show_a_row_that_is_missing)
{
	static const char *const breaks[] = {
		"DELETE FROM journal WHERE first = 7",
		"DELETE FROM journal WHERE first BETWEEN 7 AND 9",
		"UPDATE journal SET number = number + 1 WHERE first = 7",
		"UPDATE journal SET ends = ends + 1 WHERE first = 7",
		"UPDATE journal SET records = x'' WHERE first = 7",
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(breaks); i++) {
		store_dir_remove(&d);
		store_dir_make(&d);
		store_fill(d.s, 1, 12);
		paint(12);
		cr_assert_eq(journal_check(d.s, 0, &err), PW_OK, "%s", err.msg);
		store_tamper(d.path, "journal.db", breaks[i]);
		cr_assert_eq(journal_check(d.s, 0, &err), PW_STORAGE, "%s", breaks[i]);
		cr_assert(strstr(err.msg, "revision 7 is missing"), "%s", err.msg);
	}
}

Test(upkeep, verify_finds_a_missing_start)
{
	store_fill(d.s, 1, 12);
	store_tamper(d.path, "journal.db", "DELETE FROM journal WHERE first <= 3");
	cr_assert_eq(verify(d.path).broken, 1);
	store_tamper(d.path, "journal.db", "DELETE FROM chain");
	cr_assert_eq(store_verify(d.path, NULL, &(struct verify_report){ 0 }, &err), PW_STORAGE);
	cr_assert_eq(store_verify("/nowhere", NULL, &(struct verify_report){ 0 }, &err), PW_STORAGE);
}

Test(upkeep, verify_finds_a_chain_that_another_was_put_before)
{
	store_fill(d.s, 1, 12);
	paint(12);
	cr_assert_eq(store_trim(d.s, 4, &err), PW_OK);
	cr_assert_eq(verify(d.path).broken, 0);
	store_tamper(d.path, "journal.db", "UPDATE chain SET hash = zeroblob(32)");
	cr_assert_eq(verify(d.path).broken, 5);
}

static struct {
	_Atomic bool stop;
	_Atomic uint64_t newest;
} beside;

static void *write_on(void *arg)
{
	struct pw_err e = { 0 };
	uint64_t r = store_newest(d.s) + 1;

	(void)arg;
	for (; !atomic_load(&beside.stop); r++) {
		cr_assert_eq(store_put(d.s, r, &e), PW_OK, "%s", e.msg);
		atomic_store(&beside.newest, r);
	}
	return NULL;
}

static void wait_past(uint64_t revision)
{
	while (atomic_load(&beside.newest) <= revision)
		usleep(200);
}

Test(upkeep, backup_while_writing_is_a_store_of_its_own)
{
	struct store_dir copy = { 0 };
	uint64_t reached = 0, at_least;
	pthread_t writer;

	store_fill(d.s, 1, 100);
	paint(90);
	cr_assert_eq(pthread_create(&writer, NULL, write_on, NULL), 0);
	wait_past(105);
	cr_assert_lt((size_t)snprintf(copy.path, sizeof copy.path, "%s-copy", d.path), sizeof copy.path);
	at_least = atomic_load(&beside.newest);
	cr_assert_eq(store_backup(d.s, copy.path, NULL, &reached, &err), PW_OK, "%s", err.msg);
	cr_assert_geq(reached, at_least);
	wait_past(reached + 2);
	cr_assert_eq(verify(copy.path).newest, reached);
	store_dir_reopen(&copy);
	cr_assert_eq(store_newest(copy.s), reached);
	cr_assert_eq(store_replay(copy.s, 0), reached);
	store_fill(copy.s, reached + 1, reached + 2);
	cr_assert_eq(store_backup(d.s, copy.path, NULL, &reached, &err), PW_CONFLICT, "it is there already");
	store_dir_remove(&copy);
	atomic_store(&beside.stop, true);
	pthread_join(writer, NULL);
}

Test(upkeep, backup_to_nowhere_fails_and_leaves_nothing)
{
	uint64_t reached = 7;

	cr_assert_eq(store_backup(d.s, "/nowhere/at/all", NULL, &reached, &err), PW_STORAGE);
	cr_assert_eq(reached, 7);
}

static void *trim_on(void *arg)
{
	struct pw_err e = { 0 };

	(void)arg;
	while (!atomic_load(&beside.stop)) {
		struct picture p = { .revision = store_newest(d.s) };

		cr_assert_eq(store_save_picture(d.s, &p, &e), PW_OK, "%s", e.msg);
		cr_assert_eq(store_trim(d.s, p.revision, &e), PW_OK, "%s", e.msg);
		cr_assert_eq(store_wal_checkpoint(d.s, &e), PW_OK, "%s", e.msg);
	}
	return NULL;
}

Test(upkeep, writer_trimmer_and_backup_do_not_disturb_each_other)
{
	pthread_t writer, trimmer;
	char path[128];

	store_fill(d.s, 1, 10);
	cr_assert_eq(pthread_create(&writer, NULL, write_on, NULL), 0);
	cr_assert_eq(pthread_create(&trimmer, NULL, trim_on, NULL), 0);
	for (unsigned i = 0; i < 3; i++) {
		struct verify_report v;
		uint64_t reached;

		wait_past(20 + i * 20);
		snprintf(path, sizeof path, "%s-%u", d.path, i);
		cr_assert_eq(store_backup(d.s, path, NULL, &reached, &err), PW_OK, "%s", err.msg);
		v = verify(path);
		cr_assert_eq(v.broken, 0);
		cr_assert_eq(v.newest, reached);
		cr_assert_geq(store_ask(path, "ledger.db", "SELECT revision FROM meta") + 1, (int64_t)v.oldest);
		store_dir_delete(path);
	}
	atomic_store(&beside.stop, true);
	pthread_join(writer, NULL);
	pthread_join(trimmer, NULL);
	cr_assert_eq(verify(d.path).broken, 0);
}

static uint64_t wal_bytes(void)
{
	char path[128];
	struct stat st;

	snprintf(path, sizeof path, "%s/journal.db-wal", d.path);
	return stat(path, &st) == 0 ? (uint64_t)st.st_size : 0;
}

static void put_big(uint64_t revision)
{
	static unsigned char records[1 << 20];
	struct journal_row row = { .first = revision, .last = revision, .records = records, .size = sizeof records };

	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_append(d.s, &row, &err), PW_OK);
	cr_assert_eq(store_commit(d.s, &err), PW_OK, "%s", err.msg);
}

Test(upkeep, wal_is_made_ready_and_started_over_after_a_checkpoint)
{
	uint64_t ready = wal_bytes();

	cr_assert_geq(ready, 8u << 20);
	for (uint64_t r = 1; r <= 20; r++) {
		put_big(r);
		cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
	}
	cr_assert_eq(wal_bytes(), ready, "used again and again");
}

Test(upkeep, wal_stays_bounded_though_the_writer_never_rests)
{
	uint64_t r = 0;

	while (r < 150) {
		put_big(++r);
		if (r % 3 == 0)
			cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
		put_big(++r);
	}
	cr_assert_lt(wal_bytes(), 80u << 20);
}

Test(upkeep, checkpoint_starts_a_high_wal_over)
{
	uint64_t r = 0;

	while (atomic_load(&d.s->wal_pages) < WAL_HIGH)
		put_big(++r);
	cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
	cr_assert_lt(atomic_load(&d.s->wal_pages), 100);
	cr_assert_eq(verify(d.path).newest, r);
}

/* Somebody reads in the WAL, as a person with sqlite3 may: it grows. */
static sqlite3 *read_in_wal(void)
{
	char path[128];
	sqlite3 *h;

	snprintf(path, sizeof path, "%s/journal.db", d.path);
	cr_assert_eq(sqlite3_open_v2(path, &h, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	cr_assert_eq(sqlite3_exec(h, "BEGIN; SELECT count(*) FROM journal", NULL, NULL, NULL), SQLITE_OK);
	return h;
}

static uint64_t grow_wal(uint64_t r)
{
	while (wal_bytes() < 70u << 20) {
		put_big(++r);
		cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
	}
	return r;
}

static void expect_small(uint64_t newest)
{
	struct wal_sizes sizes;

	store_wal_sizes(d.s, &sizes);
	cr_assert_eq(sizes.journal, wal_bytes());
	cr_assert_leq(sizes.journal, sizes.bound);
	cr_assert_geq(sizes.journal, 8u << 20, "what was made ready stays");
	cr_assert_eq(verify(d.path).newest, newest);
	store_dir_reopen(&d);
	cr_assert_eq(store_newest(d.s), newest);
}

Test(upkeep, wal_shrinks_once_its_reader_is_gone_though_nobody_writes)
{
	sqlite3 *reader;
	uint64_t r;

	store_fill(d.s, 1, 1);
	reader = read_in_wal();
	r = grow_wal(1);
	sqlite3_close(reader);
	cr_assert_gt(wal_bytes(), 66u << 20);
	cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
	expect_small(r);
}

Test(upkeep, wal_shrinks_once_its_reader_is_gone_while_there_are_commits)
{
	sqlite3 *reader;
	uint64_t r;

	store_fill(d.s, 1, 1);
	reader = read_in_wal();
	r = grow_wal(1);
	sqlite3_close(reader);
	for (unsigned i = 0; i < 4; i++) {
		cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
		put_big(++r);
	}
	expect_small(r);
}

Test(upkeep, wal_that_a_killed_process_left_shrinks)
{
	char cmd[300], copy[128];
	sqlite3 *reader;
	uint64_t r;

	store_fill(d.s, 1, 1);
	reader = read_in_wal();
	r = grow_wal(1);
	snprintf(copy, sizeof copy, "%s-left", d.path); /* what is on the disk now */
	snprintf(cmd, sizeof cmd, "cp -r %s %s", d.path, copy);
	cr_assert_eq(system(cmd), 0);
	sqlite3_close(reader);
	store_dir_remove(&d);
	snprintf(d.path, sizeof d.path, "%.90s", copy);
	store_dir_reopen(&d);
	cr_assert_gt(wal_bytes(), 66u << 20);
	cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
	expect_small(r);
}

static bool look_at_row(void *ctx, const struct journal_row *row)
{
	(*(uint64_t *)ctx)++;
	return true;
}

/* Reads of the store itself, one after the other without a rest, and from both ends. */
static void *read_on(void *arg)
{
	struct pw_err e = { 0 };
	uint64_t rows = 0;

	(void)arg;
	while (!atomic_load(&beside.stop)) {
		cr_assert_eq(store_read(d.s, 0, look_at_row, &rows, &e), PW_OK, "%s", e.msg);
		cr_assert_eq(store_read_back(d.s, UINT64_MAX, look_at_row, &rows, &e), PW_OK, "%s", e.msg);
	}
	return NULL;
}

static void *move_on(void *arg)
{
	struct pw_err e = { 0 };

	(void)arg;
	while (!atomic_load(&beside.stop)) {
		cr_assert_eq(store_wal_checkpoint(d.s, &e), PW_OK, "%s", e.msg);
		usleep(1000);
	}
	return NULL;
}

Test(upkeep, long_reads_let_the_wal_start_over)
{
	pthread_t readers[2], mover;
	uint64_t r = 0, started_over = 0;

	store_fill(d.s, 1, 1);
	for (unsigned i = 0; i < 2; i++)
		cr_assert_eq(pthread_create(&readers[i], NULL, read_on, NULL), 0);
	cr_assert_eq(pthread_create(&mover, NULL, move_on, NULL), 0);
	for (r = 2; r < 400 && !started_over; r++) {
		uint64_t pages = atomic_load(&d.s->wal_pages);

		put_big(r);
		started_over += atomic_load(&d.s->wal_pages) < pages;
	}
	atomic_store(&beside.stop, true);
	for (unsigned i = 0; i < 2; i++)
		pthread_join(readers[i], NULL);
	pthread_join(mover, NULL);
	cr_assert_gt(started_over, 0, "within %" PRIu64 " MiB", r);
}
