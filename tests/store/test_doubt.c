/*
 * A commit that fails, and what a start finds after it: what was refused is not there, what was acknowledged is,
 * whether the process was killed or the power went, at whichever call the disk failed.
 */
#include <criterion/criterion.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/inner.h"
#include "tests/lib/faulty_vfs.h"
#include "tests/lib/store_dir.h"

#define NTH_MOST 200

/* Memory serves as well as a disk here, and the test has thousands of files to write and to flush. */
#define FOLDER   "/dev/shm"

static struct store_dir d;
static struct pw_err err;
static char second[STORE_PATH];
static uint64_t seed = 1;

static void setup(void)
{
	wal_ready_bytes = 256 << 10;
	faulty_vfs_install();
}

static void teardown(void)
{
	faulty_vfs_disarm();
	faulty_vfs_forget_disk();
}

TestSuite(doubt, .init = setup, .fini = teardown, .timeout = 120);

/* A store with three groups, whose disk is watched from its first page on. */
static void fresh_folder(char path[STORE_PATH])
{
	snprintf(path, STORE_PATH, "%s/pw-doubt.XXXXXX", access(FOLDER, W_OK) == 0 ? FOLDER : "/tmp");
	cr_assert_not_null(mkdtemp(path));
}

static void begin(void)
{
	fresh_folder(d.path);
	snprintf(second, sizeof second, "%.80s-2", d.path);
	faulty_vfs_keep_disk(d.path, ++seed);
	store_dir_reopen(&d);
}

static void end(void)
{
	store_dir_remove(&d);
	faulty_vfs_forget_disk();
}

/* One group: a row and an answer, which have to be there both or not at all. */
static enum pw_status group(uint64_t revision)
{
	static const unsigned char records[9000]; /* zeros, like the prepared log: half a frame may be a whole one */
	struct journal_row row = { .first = revision, .last = revision, .records = records, .size = sizeof records };
	struct answer a = { .status = 200, .headers = "", .body = records, .size = 5000, .expires_ms = 1 };
	enum pw_status st = store_begin(d.s, &err);
	char key[32];

	snprintf(key, sizeof key, "key-%" PRIu64, revision);
	if (st == PW_OK)
		st = store_append(d.s, &row, &err);
	if (st == PW_OK)
		st = store_answer_save(d.s, "scope", key, &a, &err);
	if (st == PW_OK)
		return store_commit(d.s, &err);
	store_rollback(d.s);
	return st;
}

/* The newest revision of a copied folder, of which everything fits; the copy goes. */
static uint64_t newest_of(struct store_dir *copy)
{
	struct verify_report v;
	uint64_t newest;

	store_dir_reopen(copy);
	newest = store_newest(copy->s);
	cr_assert_eq(store_verify(copy->path, NULL, &v, &err), PW_OK, "%s", err.msg);
	cr_assert(v.broken == 0 && v.newest == newest, "broken at %" PRIu64, v.broken);
	cr_assert_eq((uint64_t)store_ask(copy->path, "journal.db", "SELECT count(*) FROM answer"), newest);
	store_dir_remove(copy);
	return newest;
}

static struct store_dir empty_copy(void)
{
	struct store_dir copy = { 0 };

	fresh_folder(copy.path);
	return copy;
}

static uint64_t newest_without_power(const char *folder)
{
	struct store_dir copy = empty_copy();

	faulty_vfs_cut_power(folder, copy.path, ++seed);
	return newest_of(&copy);
}

/* kill -9, a start, and then the power goes: what the start has shown must still be there. */
static uint64_t newest_after_kill(void)
{
	struct store_dir copy = { 0 };
	uint64_t newest;

	cr_assert_eq(mkdir(second, 0700), 0);
	memcpy(copy.path, second, sizeof copy.path);
	faulty_vfs_kill(d.path, second);
	store_dir_reopen(&copy);
	newest = store_newest(copy.s);
	cr_assert_eq(newest_without_power(second), newest, "a start showed what the disk did not have");
	return newest_of(&copy) == newest ? newest : UINT64_MAX;
}

static void expect_everywhere(uint64_t least, uint64_t most, const char *when, unsigned nth)
{
	for (unsigned i = 0; i < 2; i++) {
		uint64_t newest = i ? newest_without_power(d.path) : newest_after_kill();

		cr_assert(newest >= least && newest <= most, "%s, call %u: a start %s finds %" PRIu64 ", not %" PRIu64,
			  when, nth, i ? "after a power cut" : "after kill -9", newest, least);
	}
}

static const struct fault_case {
	unsigned ops;
	int rc;
	enum fault_mode mode;
	bool may_be_unknown;
	unsigned rounds;   /* with other pages on the disk */
	bool log_is_empty; /* the commit is the first of its log */
} cases[] = {
	{ FAULT_SYNC, SQLITE_IOERR_FSYNC, FAULT_ONCE, false, 3, false },
	{ FAULT_WRITE, SQLITE_IOERR_WRITE, FAULT_ONCE, false, 1, false },
	{ FAULT_WRITE, SQLITE_FULL, FAULT_ONCE, false, 1, false },
	{ FAULT_SYNC, SQLITE_IOERR_FSYNC, FAULT_FROM, true, 4, false },
	{ FAULT_CHANGES, SQLITE_IOERR_WRITE, FAULT_FROM, true, 1, false },
	{ FAULT_CHANGES | FAULT_READ, SQLITE_FULL, FAULT_FROM, true, 1, false },
	{ FAULT_SYNC, SQLITE_IOERR_FSYNC, FAULT_ONCE, false, 3, true },
	{ FAULT_WRITE, SQLITE_FULL, FAULT_ONCE, false, 1, true },
	{ FAULT_CHANGES, SQLITE_IOERR_WRITE, FAULT_FROM, true, 1, true },
};

static void still_in_doubt(void)
{
	cr_assert(store_in_doubt(d.s));
	cr_assert_eq(group(4), PW_UNKNOWN, "in doubt nothing is begun");
	cr_assert_eq(store_trim(d.s, 1, &err), PW_UNKNOWN);
	cr_assert_neq(store_probe(d.s, &err), PW_OK, "the disk still refuses");
	cr_assert(store_in_doubt(d.s));
}

/* False: the fault was never reached. */
static bool fail_at(const struct fault_case *c, unsigned nth, unsigned *unknown)
{
	enum pw_status st;
	bool fired;

	begin();
	for (uint64_t r = 1; r <= 3; r++)
		cr_assert_eq(group(r), PW_OK, "%s", err.msg);
	if (c->log_is_empty)
		store_dir_reopen(&d);
	faulty_vfs_arm(c->ops, nth, c->rc, c->mode);
	st = group(4);
	if (st == PW_UNKNOWN)
		still_in_doubt();
	fired = faulty_vfs_disarm();
	cr_assert(st == PW_OK || fired, "%s", err.msg);
	cr_assert(st != PW_UNKNOWN || c->may_be_unknown, "call %u: %s", nth, err.msg);
	expect_everywhere(st == PW_OK ? 4 : 3, st == PW_OK || st == PW_UNKNOWN ? 4 : 3, pw_status_name(st), nth);
	*unknown += st == PW_UNKNOWN;
	if (st != PW_OK) {
		cr_assert_eq(store_probe(d.s, &err), PW_OK, "%s", err.msg);
		cr_assert_not(store_in_doubt(d.s));
		cr_assert_eq(group(4), PW_OK, "%s", err.msg);
		expect_everywhere(4, 4, "done again", nth);
	}
	end();
	return fired;
}

static void sweep(const struct fault_case *c)
{
	unsigned unknown = 0;

	for (unsigned round = 0; round < c->rounds; round++)
		for (unsigned nth = 1; fail_at(c, nth, &unknown); nth++)
			cr_assert_lt(nth, NTH_MOST);
	cr_assert_eq(unknown > 0, c->may_be_unknown);
}

/* One test each: they run side by side. */
Test(doubt, flush_that_fails_once)
{
	sweep(&cases[0]);
}

Test(doubt, write_that_fails_once)
{
	sweep(&cases[1]);
}

Test(doubt, disk_that_is_full_once)
{
	sweep(&cases[2]);
}

Test(doubt, flushes_that_fail_for_good)
{
	sweep(&cases[3]);
}

Test(doubt, disk_that_fails_for_good)
{
	sweep(&cases[4]);
}

Test(doubt, disk_that_cannot_even_be_read)
{
	sweep(&cases[5]);
}

Test(doubt, flush_of_an_empty_log_that_fails_once)
{
	sweep(&cases[6]);
}

Test(doubt, disk_that_is_full_once_for_an_empty_log)
{
	sweep(&cases[7]);
}

Test(doubt, disk_that_fails_for_good_for_an_empty_log)
{
	sweep(&cases[8]);
}

/* A disk that is full has no room for another frame: what failed is void all the same. */
Test(doubt, full_disk_leaves_none)
{
	begin();
	cr_assert_eq(group(1), PW_OK);
	faulty_vfs_arm(FAULT_WRITE, 1, SQLITE_FULL, FAULT_FROM);
	for (unsigned i = 0; i < 3; i++)
		cr_assert_eq(group(2), PW_STORAGE, "%s", err.msg);
	cr_assert(faulty_vfs_disarm());
	expect_everywhere(1, 1, "full", 1);
	end();
}

/* The log has just been started over, so its header goes with the frames that fail. */
Test(doubt, first_commit_of_a_log_may_fail)
{
	for (unsigned nth = 1; nth <= 3; nth++) {
		enum pw_status st;

		begin();
		for (uint64_t r = 1; r <= 3; r++)
			cr_assert_eq(group(r), PW_OK);
		cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK);
		faulty_vfs_arm(FAULT_SYNC, nth, SQLITE_IOERR_FSYNC, FAULT_ONCE);
		st = group(4);
		faulty_vfs_disarm();
		cr_assert_eq(st, nth < 3 ? PW_STORAGE : PW_OK, "flush %u: %s", nth, err.msg);
		expect_everywhere(nth < 3 ? 3 : 4, nth < 3 ? 3 : 4, "a new log", nth);
		cr_assert_eq(group(nth < 3 ? 4 : 5), PW_OK, "%s", err.msg);
		expect_everywhere(nth < 3 ? 4 : 5, nth < 3 ? 4 : 5, "a new log, again", nth);
		end();
	}
}

/* A start on a disk that does not take again what is in the log must not show it. */
Test(doubt, start_that_cannot_keep_what_it_found_shows_nothing)
{
	struct store *s = NULL;
	bool fired = true;

	for (unsigned nth = 1; fired; nth += 1 + nth / 4) {
		struct store_dir copy = empty_copy();
		enum pw_status st;

		begin();
		for (uint64_t r = 1; r <= 3; r++)
			cr_assert_eq(group(r), PW_OK);
		faulty_vfs_cut_power(d.path, copy.path, ++seed);
		faulty_vfs_arm(FAULT_SYNC, nth, SQLITE_IOERR_FSYNC, FAULT_FROM);
		st = store_open(copy.path, &s, &err);
		fired = faulty_vfs_disarm();
		if (nth == 1)
			cr_assert(st == PW_STORAGE && strstr(err.msg, "journal.db-wal"), "%s", err.msg);
		if (st == PW_OK)
			store_close(s);
		cr_assert_eq(newest_of(&copy), 3);
		end();
	}
}
