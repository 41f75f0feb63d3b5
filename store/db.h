/* store/db.h
 *
 * One SQLite connection, its prepared statements, and the few things that one does with them. A connection and its
 * statements belong to one thread at a time.
 */
#ifndef PW_STORE_DB_H
#define PW_STORE_DB_H
#include "engine/uuid.h"

#include <sqlite3.h>

#define BUSY_MS 2000 /* how long somebody else's transaction is waited for: a person with sqlite3 */

struct db {
	sqlite3 *h;
	const char *file; /* its name, for messages; static text */
};

/*
 * Opens dir/file; flags as for sqlite3_open_v2. db may be given to db_close even if this fails.
 * PW_INVALID the path is too long
 */
enum pw_status db_open(struct db *db, const char *dir, const char *file, int flags, struct pw_err *err) PW_MUST_CHECK;
/* From here on *moves grows while statements of the connection are at work. NULL: nobody wants to know. */
void db_tell(struct db *db, _Atomic uint64_t *moves);
void db_close(struct db *db); /* finalizes all of its statements; a zeroed db is fine */

/* Runs fixed SQL text, all statements of it. */
enum pw_status db_exec(struct db *db, const char *sql, struct pw_err *err) PW_MUST_CHECK;
/* The first column of the only row of fixed SQL text. */
enum pw_status db_number(struct db *db, const char *sql, int64_t *out, struct pw_err *err) PW_MUST_CHECK;
/* Ends the transaction, if there is one. Whatever went wrong, there is none afterwards. */
void db_rollback(struct db *db);

/* The connection's last error as a status and "FILE: what: SQLite's message". */
enum pw_status db_fail(struct db *db, const char *what, struct pw_err *err);

/* The statements of one subject on one connection. Each file has its named table of SQL and an enum for it. */
#define STMTS_MAX 48
struct stmts {
	struct db *db; /* borrowed */
	sqlite3_stmt *q[STMTS_MAX];
};
struct sql_table {
	const char *const *text;
	size_t count;
};
enum pw_status stmts_prepare(struct stmts *s, struct db *db, const struct sql_table *t,
			     struct pw_err *err) PW_MUST_CHECK;

/*
 * One run of a statement: bind the parameters in order, then step, then end it, on every path. Mistakes of binding
 * and of reading columns are kept until query_step or row_check asks.
 */
struct query {
	struct db *db;
	sqlite3_stmt *stmt;
	int bound; /* parameters so far */
	int rc;    /* of the first binding that failed */
	int bad;   /* the first column, from 1, that held nonsense */
};
struct query query_begin(struct stmts *s, int which);
void query_end(struct query *q); /* resets the statement and forgets the parameters */

void bind_u64(struct query *q, uint64_t v); /* fails above INT64_MAX */
void bind_i64(struct query *q, int64_t v);
void bind_null(struct query *q);
void bind_text(struct query *q, const char *v);                    /* borrowed until query_end; NULL is "" */
void bind_text_sized(struct query *q, const char *v, size_t size); /* the same, of so many bytes */
void bind_blob(struct query *q, const void *v, size_t size);       /* borrowed until query_end */
void bind_uuid(struct query *q, const struct pw_uuid *v);          /* as text; nil is NULL */

/* PW_OK: a row, PW_NOT_FOUND: no more rows (err untouched), else the failure. */
enum pw_status query_step(struct query *q, const char *what, struct pw_err *err) PW_MUST_CHECK;
/* Runs a statement that answers no rows, and ends it. */
enum pw_status query_run(struct query *q, const char *what, struct pw_err *err) PW_MUST_CHECK;

/* Columns of the row, from 0; text and blobs live until the next step. Out of range: see row_check. */
uint64_t row_u64(struct query *q, int column, uint64_t most);
int64_t row_i64(struct query *q, int column);
const char *row_text(struct query *q, int column);
const void *row_blob(struct query *q, int column, size_t *size);
void row_bytes(struct query *q, int column, void *out, size_t size); /* a blob of exactly that size */
struct pw_uuid row_uuid(struct query *q, int column);                /* NULL is nonsense */
struct pw_uuid row_uuid_or_nil(struct query *q, int column);
/* PW_STORAGE "FILE: table T: COLUMN: ..." if any column of this row was nonsense. */
enum pw_status row_check(const struct query *q, const char *table, struct pw_err *err) PW_MUST_CHECK;

#endif
