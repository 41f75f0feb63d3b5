#include "store/db.h"

#include <assert.h>
#include <limits.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>

#define STEPS_A_MOVE 1000 /* of SQLite's virtual machine */

static enum pw_status status_of(int rc)
{
	if (rc == SQLITE_IOERR_NOMEM)
		return PW_NO_MEMORY;
	switch (rc & 0xff) {
	case SQLITE_NOMEM: return PW_NO_MEMORY;
	case SQLITE_BUSY:
	case SQLITE_LOCKED: return PW_BUSY;
	case SQLITE_RANGE:
	case SQLITE_TOOBIG: return PW_INVALID;
	default: return PW_STORAGE;
	}
}

static enum pw_status fail_with(const struct db *db, int rc, const char *what, struct pw_err *err)
{
	const char *text = rc == sqlite3_extended_errcode(db->h) ? sqlite3_errmsg(db->h) : sqlite3_errstr(rc);

	return pw_fail(err, status_of(rc), "%s: %s: %s (sqlite %d)", db->file, what, text, rc);
}

enum pw_status db_fail(struct db *db, const char *what, struct pw_err *err)
{
	return fail_with(db, sqlite3_extended_errcode(db->h), what, err);
}

enum pw_status db_open(struct db *db, const char *dir, const char *file, int flags, struct pw_err *err)
{
	char path[PATH_MAX];
	int n = snprintf(path, sizeof path, "%s/%s", dir, file);

	*db = (struct db){ .file = file };
	if (n < 0 || (size_t)n >= sizeof path)
		return pw_fail(err, PW_INVALID, "%s: the path of its directory is too long", file);
	if (sqlite3_open_v2(path, &db->h, flags | SQLITE_OPEN_NOMUTEX | SQLITE_OPEN_EXRESCODE, NULL) != SQLITE_OK)
		return db->h ? db_fail(db, "opening", err) : pw_fail(err, PW_NO_MEMORY, "%s: opening", file);
	sqlite3_busy_timeout(db->h, BUSY_MS);
	return PW_OK;
}

static int note_move(void *moves)
{
	atomic_fetch_add_explicit((_Atomic uint64_t *)moves, 1, memory_order_relaxed);
	return 0; /* go on */
}

void db_tell(struct db *db, _Atomic uint64_t *moves)
{
	sqlite3_progress_handler(db->h, STEPS_A_MOVE, moves ? note_move : NULL, moves);
}

void db_close(struct db *db)
{
	sqlite3_stmt *q;

	if (!db->h)
		return;
	while ((q = sqlite3_next_stmt(db->h, NULL)))
		sqlite3_finalize(q);
	sqlite3_close(db->h);
	db->h = NULL;
}

enum pw_status db_exec(struct db *db, const char *sql, struct pw_err *err)
{
	if (sqlite3_exec(db->h, sql, NULL, NULL, NULL) == SQLITE_OK)
		return PW_OK;
	return db_fail(db, "running a fixed statement", err);
}

enum pw_status db_number(struct db *db, const char *sql, int64_t *out, struct pw_err *err)
{
	sqlite3_stmt *q = NULL;
	int64_t value;

	if (sqlite3_prepare_v2(db->h, sql, -1, &q, NULL) != SQLITE_OK)
		return db_fail(db, sql, err);
	if (sqlite3_step(q) != SQLITE_ROW) {
		enum pw_status st = db_fail(db, sql, err);

		sqlite3_finalize(q);
		return st;
	}
	value = sqlite3_column_int64(q, 0);
	sqlite3_finalize(q);
	*out = value;
	return PW_OK;
}

void db_rollback(struct db *db)
{
	if (!sqlite3_get_autocommit(db->h))
		sqlite3_exec(db->h, "ROLLBACK", NULL, NULL, NULL);
	assert(sqlite3_get_autocommit(db->h));
}

enum pw_status stmts_prepare(struct stmts *s, struct db *db, const struct sql_table *t, struct pw_err *err)
{
	assert(t->count <= STMTS_MAX);
	s->db = db;
	for (size_t i = 0; i < t->count; i++)
		if (sqlite3_prepare_v3(db->h, t->text[i], -1, SQLITE_PREPARE_PERSISTENT, &s->q[i], NULL) != SQLITE_OK)
			return db_fail(db, t->text[i], err);
	return PW_OK;
}

struct query query_begin(struct stmts *s, int which)
{
	return (struct query){ .db = s->db, .stmt = s->q[which] };
}

void query_end(struct query *q)
{
	sqlite3_reset(q->stmt);
	sqlite3_clear_bindings(q->stmt);
}

static void bound(struct query *q, int rc)
{
	if (q->rc == SQLITE_OK)
		q->rc = rc;
}

void bind_u64(struct query *q, uint64_t v)
{
	if (v > INT64_MAX) {
		q->bound++;
		bound(q, SQLITE_TOOBIG);
		return;
	}
	bind_i64(q, (int64_t)v);
}

void bind_i64(struct query *q, int64_t v)
{
	bound(q, sqlite3_bind_int64(q->stmt, ++q->bound, v));
}

void bind_null(struct query *q)
{
	bound(q, sqlite3_bind_null(q->stmt, ++q->bound));
}

void bind_text(struct query *q, const char *v)
{
	bound(q, sqlite3_bind_text(q->stmt, ++q->bound, v ? v : "", -1, SQLITE_STATIC));
}

void bind_text_sized(struct query *q, const char *v, size_t size)
{
	bound(q, sqlite3_bind_text64(q->stmt, ++q->bound, v, size, SQLITE_STATIC, SQLITE_UTF8));
}

void bind_blob(struct query *q, const void *v, size_t size)
{
	bound(q, sqlite3_bind_blob64(q->stmt, ++q->bound, size ? v : "", size, SQLITE_STATIC));
}

void bind_uuid(struct query *q, const struct pw_uuid *v)
{
	char text[PW_UUID_TEXT];

	if (pw_uuid_is_nil(v)) {
		bind_null(q);
		return;
	}
	pw_uuid_format(v, text);
	bound(q, sqlite3_bind_text(q->stmt, ++q->bound, text, PW_UUID_TEXT - 1, SQLITE_TRANSIENT));
}

enum pw_status query_step(struct query *q, const char *what, struct pw_err *err)
{
	int rc = q->rc;

	if (rc != SQLITE_OK)
		return fail_with(q->db, rc, what, err);
	rc = sqlite3_step(q->stmt);
	if (rc == SQLITE_ROW)
		return PW_OK;
	return rc == SQLITE_DONE ? PW_NOT_FOUND : fail_with(q->db, rc, what, err);
}

enum pw_status query_run(struct query *q, const char *what, struct pw_err *err)
{
	enum pw_status st = query_step(q, what, err);

	query_end(q);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

static void bad_column(struct query *q, int column)
{
	if (!q->bad)
		q->bad = column + 1;
}

int64_t row_i64(struct query *q, int column)
{
	if (sqlite3_column_type(q->stmt, column) != SQLITE_INTEGER)
		bad_column(q, column);
	return sqlite3_column_int64(q->stmt, column);
}

uint64_t row_u64(struct query *q, int column, uint64_t most)
{
	int64_t v = row_i64(q, column);

	if (v >= 0 && (uint64_t)v <= most)
		return (uint64_t)v;
	bad_column(q, column);
	return 0;
}

const char *row_text(struct query *q, int column)
{
	const char *text = (const char *)sqlite3_column_text(q->stmt, column);

	if (text && strlen(text) == (size_t)sqlite3_column_bytes(q->stmt, column))
		return text;
	bad_column(q, column);
	return "";
}

const void *row_blob(struct query *q, int column, size_t *size)
{
	const void *p = sqlite3_column_blob(q->stmt, column);

	*size = (size_t)sqlite3_column_bytes(q->stmt, column);
	if (sqlite3_column_type(q->stmt, column) != SQLITE_BLOB || (*size && !p)) {
		bad_column(q, column);
		*size = 0;
	}
	return *size ? p : "";
}

void row_bytes(struct query *q, int column, void *out, size_t size)
{
	size_t have;
	const void *p = row_blob(q, column, &have);

	if (have == size)
		memcpy(out, p, size);
	else
		bad_column(q, column);
}

struct pw_uuid row_uuid(struct query *q, int column)
{
	const char *text = row_text(q, column);
	struct pw_uuid id = { { 0 } };

	if (!pw_uuid_parse(text, strlen(text), &id))
		bad_column(q, column);
	return id;
}

struct pw_uuid row_uuid_or_nil(struct query *q, int column)
{
	if (sqlite3_column_type(q->stmt, column) == SQLITE_NULL)
		return (struct pw_uuid){ { 0 } };
	return row_uuid(q, column);
}

enum pw_status row_check(const struct query *q, const char *table, struct pw_err *err)
{
	if (!q->bad)
		return PW_OK;
	if (sqlite3_errcode(q->db->h) == SQLITE_NOMEM)
		return pw_fail(err, PW_NO_MEMORY, "%s: table %s: out of memory", q->db->file, table);
	return pw_fail(err, PW_STORAGE, "%s: table %s: %s: not a value that pagewarden writes", q->db->file, table,
		       sqlite3_column_name(q->stmt, q->bad - 1));
}
