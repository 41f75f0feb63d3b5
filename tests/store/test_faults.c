#include <criterion/criterion.h>
#include <sqlite3.h>
#include <stdio.h>
#include <string.h>

#include "tests/lib/faulty_vfs.h"
#include "tests/lib/store_dir.h"

static struct store_dir d;
static struct pw_err err;

static void setup(void)
{
	faulty_vfs_install();
	store_dir_make(&d);
}

static void teardown(void)
{
	faulty_vfs_disarm();
	store_dir_remove(&d);
}

TestSuite(faults, .init = setup, .fini = teardown, .timeout = 60);

static const struct fault_case {
	unsigned ops;
	int rc;
	enum fault_mode mode;
} cases[] = {
	{ FAULT_CHANGES, SQLITE_FULL, FAULT_ONCE },        { FAULT_CHANGES, SQLITE_FULL, FAULT_FROM },
	{ FAULT_WRITE, SQLITE_IOERR_WRITE, FAULT_ONCE },   { FAULT_SYNC, SQLITE_IOERR_FSYNC, FAULT_ONCE },
	{ FAULT_CHANGES, SQLITE_IOERR_WRITE, FAULT_FROM }, { FAULT_READ, SQLITE_IOERR_READ, FAULT_ONCE },
	{ FAULT_READ, SQLITE_CORRUPT, FAULT_FROM },        { FAULT_READ, SQLITE_IOERR_NOMEM, FAULT_ONCE },
};
#define NTH_MOST 4000

static bool is_disk_trouble(enum pw_status st)
{
	return st == PW_STORAGE || st == PW_NO_MEMORY || st == PW_UNKNOWN;
}

/* A group with a row, an answer and a violation. */
static enum pw_status group(uint64_t revision)
{
	static unsigned char records[20000];
	struct journal_row row = { .first = revision, .last = revision, .records = records, .size = sizeof records };
	struct violation v = { .revision = revision, .host = test_uuid(1), .actor = "a", .json = "{}" };
	struct answer a = { .status = 200, .headers = "", .body = records, .size = 5000, .expires_ms = 1 };
	enum pw_status st = store_begin(d.s, &err);

	if (st == PW_OK)
		st = store_append(d.s, &row, &err);
	if (st == PW_OK)
		st = store_answer_save(d.s, "scope", "key", &a, &err);
	if (st == PW_OK)
		st = store_violation_add(d.s, &v, &err);
	if (st == PW_OK)
		return store_commit(d.s, &err);
	store_rollback(d.s);
	return st;
}

static bool count_row(void *ctx, const struct journal_row *row)
{
	uint64_t *at = ctx;

	cr_assert_eq(row->first, *at + 1);
	*at = row->last;
	return true;
}

static void add_violations(void *ctx, int64_t time_ms, uint64_t violations, uint64_t refusals)
{
	(void)time_ms;
	(void)refusals;
	*(uint64_t *)ctx += violations;
}

/* Memory, readers, violations and verification agree that the journal ends with `newest`. */
static void expect_newest(uint64_t newest)
{
	struct verify_report v;
	uint64_t at = 0, n = 0;

	cr_assert_eq(store_newest(d.s), newest);
	cr_assert_eq(store_read(d.s, 0, count_row, &at, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(at, newest);
	cr_assert_eq(store_violation_count(d.s, 0, add_violations, &n, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(n, newest);
	cr_assert_eq(store_verify(d.path, NULL, &v, &err), PW_OK, "%s", err.msg);
	cr_assert(v.broken == 0 && v.newest == newest, "broken at %" PRIu64, v.broken);
}

/* A disk that takes a write again ends what its failure has left open. */
static void disk_is_well(void)
{
	if (store_in_doubt(d.s))
		cr_assert_eq(store_probe(d.s, &err), PW_OK, "%s", err.msg);
}

static void sweep_group(const struct fault_case *c)
{
	uint64_t newest = store_newest(d.s);
	bool fired = true;

	for (unsigned nth = 1; fired; nth++) {
		enum pw_status st;

		cr_assert_lt(nth, NTH_MOST);
		faulty_vfs_arm(c->ops, nth, c->rc, c->mode);
		st = group(newest + 1);
		fired = faulty_vfs_disarm();
		cr_assert(st == PW_OK || (fired && is_disk_trouble(st)), "call %u: %s", nth, err.msg);
		if (st == PW_OK)
			newest++;
		expect_newest(newest);
		disk_is_well();
		if (st != PW_OK && nth % 2) {
			store_dir_reopen(&d);
			expect_newest(newest);
		}
		cr_assert_eq(group(newest + 1), PW_OK, "a retry after call %u: %s", nth, err.msg);
		expect_newest(++newest);
	}
}

Test(faults, group_is_committed_whole_or_not_at_all)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		sweep_group(&cases[i]);
}

Test(faults, error_says_what_the_disk_said)
{
	faulty_vfs_arm(FAULT_CHANGES, 1, SQLITE_FULL, FAULT_FROM);
	cr_assert_eq(group(1), PW_STORAGE);
	cr_assert(strstr(err.msg, "journal.db") && strstr(err.msg, "full"), "%s", err.msg);
	cr_assert_eq(store_probe(d.s, &err), PW_STORAGE);
	cr_assert(faulty_vfs_disarm());
	cr_assert_eq(store_probe(d.s, &err), PW_OK);
	cr_assert_eq(group(1), PW_OK);
}

Test(faults, commit_flushes_once)
{
	unsigned before;

	cr_assert_eq(group(1), PW_OK);
	before = faulty_vfs_count(FAULT_SYNC);
	for (uint64_t r = 2; r < 12; r++)
		cr_assert_eq(group(r), PW_OK);
	cr_assert_eq(faulty_vfs_count(FAULT_SYNC) - before, 10);
}

static enum pw_status open_again(void)
{
	store_close(d.s);
	d.s = NULL;
	return store_open(d.path, &d.s, &err);
}

static void sweep_open(const struct fault_case *c, unsigned more_ops)
{
	uint64_t newest = store_newest(d.s);
	bool fired = true;

	for (unsigned nth = 1; fired; nth += 1 + nth / 16) { /* most of them make the WAL ready, and are alike */
		enum pw_status st;

		cr_assert_lt(nth, NTH_MOST);
		cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
		cr_assert_eq(group(newest + 1), PW_OK, "%s", err.msg);
		newest++;
		faulty_vfs_arm(c->ops | more_ops, nth, c->rc, c->mode);
		st = open_again();
		fired = faulty_vfs_disarm();
		if (st != PW_OK)
			cr_assert_eq(open_again(), PW_OK, "call %u: %s", nth, err.msg);
		expect_newest(newest);
	}
}

Test(faults, failed_start_and_stop_lose_nothing)
{
	static const struct fault_case opening = { FAULT_OPEN, SQLITE_CANTOPEN, FAULT_ONCE };

	sweep_open(&cases[1], 0);
	sweep_open(&cases[3], 0);
	sweep_open(&opening, 0);
}

Test(faults, first_start_on_a_bad_disk_can_be_repeated)
{
	bool fired = true;

	for (unsigned nth = 1; fired; nth += 1 + nth / 16) { /* most of them make tables, and are alike */
		store_dir_remove(&d);
		store_dir_make(&d);
		store_close(d.s);
		d.s = NULL;
		for (size_t i = 0; i < 2; i++) {
			char path[128];

			snprintf(path, sizeof path, "%s/%s", d.path, i ? "journal.db" : "ledger.db");
			remove(path);
		}
		faulty_vfs_arm(FAULT_CHANGES | FAULT_OPEN, nth, SQLITE_FULL, FAULT_FROM);
		if (store_open(d.path, &d.s, &err) != PW_OK)
			d.s = NULL;
		fired = faulty_vfs_disarm();
		store_dir_reopen(&d);
		expect_newest(0);
		cr_assert_eq(group(1), PW_OK, "%s", err.msg);
	}
}

static struct host_row host = { .name = "a", .boot_id = "b", .backends = "[]", .agent_version = "", .epoch = 1 };
static struct vm_row vm = { .name = "v", .arch = "snp", .state = "secure", .epoch = 1 };
static struct extent_row extents[3000 + 1500];

static enum pw_status paint(uint64_t revision)
{
	struct picture p = { .revision = revision,
			     .full = true,
			     .hosts = &host,
			     .host_count = 1,
			     .vms = &vm,
			     .vm_count = 1,
			     .extents = extents,
			     .extent_count = PW_ARRAY_LEN(extents) };

	host.id = vm.host = test_uuid(1);
	vm.id = test_uuid(2);
	vm.revision = host.revision = revision;
	for (size_t n = 0, i = 0; n < PW_ARRAY_LEN(extents); n++) {
		if (i % 2 == 0)
			extents[n++] = (struct extent_row){ vm.id, i * 2, 4, 0, NULL };
		extents[n] = (struct extent_row){ vm.id, i * 2, 1, GFN_ENTRY_RESIDENT | (revision + i * 3), NULL };
		i++;
	}
	return store_save_picture(d.s, &p, &err);
}

static void expect_picture(uint64_t revision)
{
	cr_assert_eq(store_ask(d.path, "ledger.db", "SELECT revision FROM meta"), (int64_t)revision);
	cr_assert_eq(store_ask(d.path, "ledger.db", "SELECT revision FROM vm"), (int64_t)revision);
	cr_assert_eq(store_ask(d.path, "ledger.db", "SELECT count(*) FROM gfn_extent"), 3000);
	cr_assert_eq(store_ask(d.path, "ledger.db", "SELECT pfn FROM gfn_extent WHERE gfn = 4000"),
		     (int64_t)revision + 6000);
}

static void sweep_picture(const struct fault_case *c)
{
	uint64_t at = (uint64_t)store_ask(d.path, "ledger.db", "SELECT revision FROM meta");
	bool fired = true;

	for (unsigned nth = 1, step = 1; fired; nth += step) {
		enum pw_status st;

		step = 1 + nth / 8; /* later calls are alike */
		faulty_vfs_arm(c->ops, nth, c->rc, c->mode);
		st = paint(at + 1);
		fired = faulty_vfs_disarm();
		cr_assert(st == PW_OK || (fired && is_disk_trouble(st)), "call %u: %s", nth, err.msg);
		if (st == PW_OK)
			at++;
		expect_picture(at);
		cr_assert_eq(paint(at + 1), PW_OK, "a retry after call %u: %s", nth, err.msg);
		expect_picture(++at);
	}
}

Test(faults, picture_is_saved_whole_or_not_at_all)
{
	cr_assert_eq(paint(1), PW_OK, "%s", err.msg);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		sweep_picture(&cases[i]);
}

static void expect_chain(uint64_t newest)
{
	struct verify_report v;
	struct journal_span span;

	store_span(d.s, &span);
	cr_assert_eq(store_verify(d.path, NULL, &v, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(v.broken, 0);
	cr_assert_eq(v.newest, newest);
	cr_assert_eq(v.oldest, span.oldest);
	cr_assert_eq(v.rows, span.rows);
}

static void sweep_trim(const struct fault_case *c)
{
	uint64_t newest = store_newest(d.s);
	struct picture p = { 0 };
	bool fired = true;

	for (unsigned nth = 1; fired; nth++) {
		enum pw_status st;

		store_fill(d.s, newest + 1, newest + 70);
		p.revision = newest += 70;
		cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
		faulty_vfs_arm(c->ops, nth, c->rc, c->mode);
		st = store_trim(d.s, newest, &err);
		fired = faulty_vfs_disarm();
		cr_assert(st == PW_OK || (fired && is_disk_trouble(st)), "call %u: %s", nth, err.msg);
		expect_chain(newest);
		disk_is_well();
		if (nth % 4 == 0)
			store_dir_reopen(&d);
		expect_chain(newest);
		cr_assert_eq(store_trim(d.s, newest - 2, &err), PW_OK, "%s", err.msg);
		expect_chain(newest);
	}
}

Test(faults, trim_that_fails_leaves_a_chain)
{
	sweep_trim(&cases[0]);
	sweep_trim(&cases[1]);
	sweep_trim(&cases[5]);
}

Test(faults, checkpoint_that_fails_loses_nothing)
{
	uint64_t newest = 0;
	bool fired = true;

	for (unsigned nth = 1; fired; nth++) {
		enum pw_status st;

		cr_assert_eq(group(++newest), PW_OK, "%s", err.msg);
		cr_assert_eq(paint(newest), PW_OK, "%s", err.msg);
		faulty_vfs_arm(FAULT_CHANGES, nth, SQLITE_IOERR_WRITE, FAULT_FROM);
		st = store_wal_checkpoint(d.s, &err);
		fired = faulty_vfs_disarm();
		cr_assert_eq(st, fired ? PW_STORAGE : PW_OK, "call %u: %s", nth, err.msg);
		expect_newest(newest);
		cr_assert_eq(store_wal_checkpoint(d.s, &err), PW_OK, "%s", err.msg);
	}
}

Test(faults, backup_that_fails_leaves_no_directory)
{
	char dest[STORE_PATH + 8];
	uint64_t reached;
	bool fired = true;

	snprintf(dest, sizeof dest, "%s-copy", d.path);
	for (uint64_t r = 1; r < 6; r++)
		cr_assert_eq(group(r), PW_OK);
	for (unsigned nth = 1; fired; nth++) {
		enum pw_status st;

		faulty_vfs_arm(FAULT_CHANGES | FAULT_OPEN, nth, SQLITE_FULL, FAULT_FROM);
		st = store_backup(d.s, dest, NULL, &reached, &err);
		fired = faulty_vfs_disarm();
		cr_assert(st == (fired ? PW_STORAGE : PW_OK), "call %u: %s", nth, err.msg);
		cr_assert_eq(remove(dest) == 0, false,
			     "a directory that failed is gone, one that did not is not empty");
		store_dir_delete(dest);
	}
	cr_assert_eq(reached, 5);
}
