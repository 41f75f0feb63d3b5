#include "tests/lib/store_dir.h"

#include <criterion/criterion.h>
#include <dirent.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define RECORD_MOST 3000

void store_dir_make(struct store_dir *d)
{
	*d = (struct store_dir){ 0 };
	snprintf(d->path, sizeof d->path, "/tmp/pw-store.XXXXXX");
	cr_assert_not_null(mkdtemp(d->path));
	store_dir_reopen(d);
}

void store_dir_reopen(struct store_dir *d)
{
	struct pw_err err = { 0 };

	store_close(d->s);
	d->s = NULL;
	cr_assert_eq(store_open(d->path, &d->s, &err), PW_OK, "%s", err.msg);
}

void store_dir_delete(const char *path)
{
	char name[512];
	struct dirent *e;
	DIR *dir = opendir(path);

	if (!dir)
		return;
	while ((e = readdir(dir))) {
		snprintf(name, sizeof name, "%s/%s", path, e->d_name);
		if (e->d_name[0] != '.')
			unlink(name);
	}
	closedir(dir);
	rmdir(path);
}

void store_dir_remove(struct store_dir *d)
{
	store_close(d->s);
	d->s = NULL;
	store_dir_delete(d->path);
}

int64_t store_put_time(uint64_t revision)
{
	return 1700000000000 + (int64_t)revision * 10;
}

static size_t make_records(uint64_t revision, unsigned char out[RECORD_MOST])
{
	size_t n = (size_t)(revision * 7919 % RECORD_MOST);

	for (size_t i = 0; i < n; i++)
		out[i] = (unsigned char)(revision + i);
	return n;
}

enum pw_status store_put(struct store *s, uint64_t revision, struct pw_err *err)
{
	unsigned char records[RECORD_MOST];
	struct journal_row row = { .first = revision,
				   .last = revision,
				   .time_ms = store_put_time(revision),
				   .records = records,
				   .size = make_records(revision, records) };
	enum pw_status st = store_begin(s, err);

	if (st == PW_OK)
		st = store_append(s, &row, err);
	if (st == PW_OK)
		return store_commit(s, err);
	store_rollback(s);
	return st;
}

void store_fill(struct store *s, uint64_t first, uint64_t last)
{
	struct pw_err err = { 0 };

	for (uint64_t r = first; r <= last; r++)
		cr_assert_eq(store_put(s, r, &err), PW_OK, "%s", err.msg);
}

uint64_t store_newest(struct store *s)
{
	struct journal_span span;

	store_span(s, &span);
	return span.newest;
}

static bool replay_row(void *ctx, const struct journal_row *row)
{
	unsigned char expected[RECORD_MOST];
	size_t n = make_records(row->first, expected);
	uint64_t *at = ctx;

	cr_assert_eq(row->first, *at + 1);
	cr_assert_eq(row->last, row->first);
	cr_assert_eq(row->time_ms, store_put_time(row->first));
	cr_assert_eq(row->size, n);
	cr_assert(n == 0 || memcmp(row->records, expected, n) == 0);
	*at = row->last;
	return true;
}

uint64_t store_replay(struct store *s, uint64_t after)
{
	struct pw_err err = { 0 };

	cr_assert_eq(store_read(s, after, replay_row, &after, &err), PW_OK, "%s", err.msg);
	return after;
}

static sqlite3 *open_file(const char *dir, const char *file)
{
	char path[512];
	sqlite3 *h = NULL;

	snprintf(path, sizeof path, "%s/%s", dir, file);
	cr_assert_eq(sqlite3_open_v2(path, &h, SQLITE_OPEN_READWRITE, NULL), SQLITE_OK);
	return h;
}

void store_tamper(const char *dir, const char *file, const char *sql)
{
	sqlite3 *h = open_file(dir, file);
	int rc = sqlite3_exec(h, sql, NULL, NULL, NULL);

	cr_assert_eq(rc, SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(h));
	sqlite3_close(h);
}

int64_t store_ask(const char *dir, const char *file, const char *sql)
{
	sqlite3 *h = open_file(dir, file);
	sqlite3_stmt *q = NULL;
	int64_t n;

	cr_assert_eq(sqlite3_prepare_v2(h, sql, -1, &q, NULL), SQLITE_OK, "%s: %s", sql, sqlite3_errmsg(h));
	cr_assert_eq(sqlite3_step(q), SQLITE_ROW, "%s: %s", sql, sqlite3_errmsg(h));
	n = sqlite3_column_int64(q, 0);
	sqlite3_finalize(q);
	sqlite3_close(h);
	return n;
}

struct pw_uuid test_uuid(unsigned n)
{
	struct pw_uuid id = { { 0x42 } };

	for (unsigned i = 0; i < 4; i++)
		id.b[12 + i] = (uint8_t)(n >> (24 - 8 * i));
	return id;
}
