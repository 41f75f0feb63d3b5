#include "store/store.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "store/inner.h"

#define TOLD_STEPS 20000 /* of SQLite's machine, between two words about the progress */

enum { CHAIN, NEWEST, LINKS, ROWS, HASH_AT };
static const char *const text[] = {
	[CHAIN] = "SELECT revision, number, ends, hash FROM chain",
	[NEWEST] = "SELECT first, number, ends, hash FROM journal ORDER BY first DESC LIMIT 1",
	[HASH_AT] = (JOURNAL_HASH_AT),
	[LINKS] = "SELECT first, last, number, ends, hash, length(records) FROM journal ORDER BY first",
	[ROWS] = "SELECT first, last, time_ms, number, ends, hash, records FROM journal WHERE first > ? ORDER BY first",
};
static const struct sql_table verify_sql = { text, PW_ARRAY_LEN(text) };

static enum pw_status read_place(struct stmts *s, int which, const char *table, struct place *out, struct pw_err *err)
{
	struct query q = query_begin(s, which);
	enum pw_status st = query_step(&q, "reading where the chain starts or ends", err);

	if (st == PW_OK) {
		out->revision = row_u64(&q, 0, INT64_MAX - 1);
		out->number = row_u64(&q, 1, INT64_MAX);
		out->ends = row_u64(&q, 2, INT64_MAX);
		row_bytes(&q, 3, out->hash, sizeof out->hash);
		st = row_check(&q, table, err);
	}
	query_end(&q);
	return st;
}

static enum pw_status read_chain(struct stmts *s, struct place *out, struct pw_err *err)
{
	enum pw_status st = read_place(s, CHAIN, "chain", out, err);

	return st == PW_NOT_FOUND ? pw_fail(err, PW_STORAGE, JOURNAL_FILE ": table chain: its row is missing") : st;
}

/* Does the row of q follow `at`? If so, *at moves on to it. */
static bool row_follows(struct query *q, struct place *at)
{
	struct journal_row row = { .first = row_u64(q, 0, INT64_MAX),
				   .last = row_u64(q, 1, INT64_MAX),
				   .time_ms = row_i64(q, 2) };
	struct place next = { .revision = row.last,
			      .number = row_u64(q, 3, INT64_MAX),
			      .ends = row_u64(q, 4, INT64_MAX) };
	uint8_t hash[STORE_HASH];

	row_bytes(q, 5, next.hash, sizeof next.hash);
	row.records = row_blob(q, 6, &row.size);
	if (q->bad || row.first != at->revision + 1 || row.last < row.first || next.number != at->number + 1 ||
	    next.ends != at->ends + row.size)
		return false;
	journal_hash(at->hash, &row, hash);
	if (sodium_memcmp(hash, next.hash, sizeof hash) != 0)
		return false;
	*at = next;
	return true;
}

/* The rows after *at, with their hashes, until `most` bytes of records were read; *at moves on to the last one that
 * holds. PW_NOT_FOUND: there are no more. */
static enum pw_status walk_rows(struct stmts *s, struct place *at, uint64_t most, bool *holds, struct pw_err *err)
{
	struct query q = query_begin(s, ROWS);
	uint64_t from = at->ends;
	enum pw_status st = PW_OK;

	*holds = true;
	bind_u64(&q, at->revision);
	while (*holds && at->ends - from < most && (st = query_step(&q, "reading the journal", err)) == PW_OK)
		*holds = row_follows(&q, at);
	query_end(&q);
	return st;
}

/* Does the row of q follow `at`, its records and hash aside? If so, *at moves on to it. */
static bool link_follows(struct query *q, struct place *at)
{
	uint64_t first = row_u64(q, 0, INT64_MAX);
	struct place next = { .revision = row_u64(q, 1, INT64_MAX),
			      .number = row_u64(q, 2, INT64_MAX),
			      .ends = row_u64(q, 3, INT64_MAX) };

	row_bytes(q, 4, next.hash, sizeof next.hash);
	if (first != at->revision + 1 || next.revision < first || next.number != at->number + 1 ||
	    next.ends != at->ends + row_u64(q, 5, INT64_MAX) || q->bad)
		return false;
	*at = next;
	return true;
}

/* The rows after *at up to `until`: that none is missing, which needs no look at what they record. */
static enum pw_status walk_links(struct stmts *s, const struct place *until, struct place *at, bool *holds,
				 struct pw_err *err)
{
	struct query q = query_begin(s, LINKS);
	enum pw_status st = PW_OK;

	*holds = true;
	while (*holds && at->revision < until->revision && at->ends < until->ends &&
	       (st = query_step(&q, "reading the journal", err)) == PW_OK)
		*holds = link_follows(&q, at);
	query_end(&q);
	return !*holds || st == PW_NOT_FOUND ? PW_OK : st;
}

static enum pw_status given_up(struct pw_err *err)
{
	return pw_fail(err, PW_BUSY, "given up half-way");
}

/* What is told of the walk, and of what comes after it. */
struct told {
	const struct progress *p; /* NULL: nobody */
	uint64_t done, total;
};

static bool tell(const struct told *t)
{
	return !t->p || t->p->fn(t->p->ctx, t->done, t->total);
}

/* Rows may have been trimmed since the last piece: then it goes on behind them. */
static enum pw_status skip_trimmed(struct stmts *s, struct place *at, struct place *begins, struct pw_err *err)
{
	struct place chain = { 0 };
	enum pw_status st = read_chain(s, &chain, err);

	if (st != PW_OK || chain.revision <= at->revision)
		return st;
	*at = *begins = chain;
	return PW_OK;
}

static enum pw_status walk(struct stmts *s, struct told *t, struct verify_report *out, struct pw_err *err)
{
	struct place at = { 0 }, begins, until = { 0 };
	enum pw_status st = read_chain(s, &at, err);
	uint64_t from = at.ends;
	bool holds = true;

	begins = at;
	if (st == PW_OK)
		st = read_place(s, NEWEST, "journal", &until, NULL);
	if (st != PW_OK && st != PW_NOT_FOUND)
		until = (struct place){ .revision = INT64_MAX,
					.ends = at.ends }; /* the walk finds what is wrong with it */
	t->total = until.ends > from ? until.ends - from : 0;
	for (st = PW_OK; st == PW_OK && holds && at.revision < until.revision;) {
		st = walk_rows(s, &at, READ_BYTES, &holds, err);
		t->done = at.ends - from < t->total ? at.ends - from : t->total;
		if (st == PW_OK && !tell(t))
			return given_up(err);
		if (!holds) {
			uint64_t reached = at.revision;

			st = skip_trimmed(s, &at, &begins, err);
			holds = at.revision > reached;
		}
	}
	*out = (struct verify_report){ .rows = at.number - begins.number,
				       .oldest = begins.revision + 1,
				       .newest = at.revision,
				       .broken = holds ? 0 : at.revision + 1 };
	memcpy(out->head, at.hash, sizeof out->head);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

static enum pw_status check(struct store *s, struct stmts *q, uint64_t hashed, struct pw_err *err)
{
	struct place at = { 0 }, until = { .revision = atomic_load(&s->painted) };
	enum pw_status st = read_chain(q, &at, err);
	bool holds = true;

	until.ends = s->head.ends > hashed ? s->head.ends - hashed : 0;
	if (st == PW_OK)
		st = walk_links(q, &until, &at, &holds, err);
	if (st == PW_OK && holds)
		st = walk_rows(q, &at, UINT64_MAX, &holds, err);
	if (holds && (st == PW_OK || st == PW_NOT_FOUND))
		return PW_OK;
	if (holds)
		return st;
	return pw_fail(err, PW_STORAGE,
		       JOURNAL_FILE ": revision %" PRIu64
				    " is missing or is not what was written, so nothing after it can"
				    " be trusted; --verify checks all of it; restore a backup",
		       at.revision + 1);
}

enum pw_status journal_check(struct store *s, uint64_t hashed, struct pw_err *err)
{
	struct stmts q = { 0 };
	enum pw_status st = stmts_prepare(&q, &s->writer, &verify_sql, err);

	if (st == PW_OK)
		st = check(s, &q, hashed, err);
	for (size_t i = 0; i < verify_sql.count; i++)
		sqlite3_finalize(q.q[i]);
	return st;
}

const char *picture_verdict_name(enum picture_verdict v)
{
	switch (v) {
	case PICTURE_OK: return "ok";
	case PICTURE_UNSEALED: return "unsealed";
	case PICTURE_DAMAGED: break;
	}
	return "damaged";
}

static void picture_is_damaged(struct verify_report *out, const char *why)
{
	out->picture = PICTURE_DAMAGED;
	snprintf(out->picture_fault, sizeof out->picture_fault, "%.190s", why);
}

/* A journal that was trimmed past the picture, or that ends before it, is the start's business. */
static enum pw_status check_binding(struct stmts *journal, const struct seal *seal, struct verify_report *out,
				    struct pw_err *err)
{
	struct query q = query_begin(journal, HASH_AT);
	uint8_t hash[STORE_HASH];
	enum pw_status st;

	bind_u64(&q, seal->revision);
	st = query_step(&q, "reading a row's hash", err);
	if (st == PW_OK) {
		row_bytes(&q, 0, hash, sizeof hash);
		if (memcmp(hash, seal->journal_hash, sizeof hash) != 0 &&
		    !sodium_is_zero(seal->journal_hash, sizeof hash))
			picture_is_damaged(out, LEDGER_FILE ": it was made of another " JOURNAL_FILE " than this");
	}
	query_end(&q);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

static int tell_sqlite(void *told)
{
	return !tell(told);
}

static enum pw_status check_picture(const char *dir, struct stmts *journal, struct told *t, struct verify_report *out,
				    struct pw_err *err)
{
	struct db db = { 0 };
	struct seal seal = { 0 };
	struct pw_err why;
	struct sums sums;
	int64_t version = 0;
	enum pw_status st = db_open(&db, dir, LEDGER_FILE, SQLITE_OPEN_READONLY, err);

	if (st == PW_OK && t->p)
		sqlite3_progress_handler(db.h, TOLD_STEPS, tell_sqlite, t);
	if (st == PW_OK)
		st = db_exec(&db, "BEGIN", err); /* sums and tables of one moment */
	if (st == PW_OK)
		st = db_number(&db, "PRAGMA user_version", &version, err);
	out->picture = PICTURE_UNSEALED;
	if (st == PW_OK && version >= CHECKSUM_SINCE) {
		st = checksum_check(&db, (uint64_t)version, &sums, &seal, &why);
		out->picture_revision = seal.revision;
		if (st == PW_OK && seal.schema == (uint64_t)version) {
			out->picture = PICTURE_OK;
			st = check_binding(journal, &seal, out, err);
		} else if (st == PW_CONFLICT) {
			picture_is_damaged(out, why.msg);
			st = PW_OK;
		} else if (st != PW_OK && err) {
			*err = why;
		}
	}
	db_close(&db);
	return st != PW_OK && !tell(t) ? given_up(err) : st;
}

enum pw_status store_verify(const char *dir, const struct progress *p, struct verify_report *out, struct pw_err *err)
{
	struct verify_report report = { 0 };
	struct told told = { .p = p };
	struct db db = { 0 };
	struct stmts s = { 0 };
	enum pw_status st;

	if (sodium_init() < 0)
		return pw_fail(err, PW_STORAGE, "libsodium does not start");
	st = db_open(&db, dir, JOURNAL_FILE, SQLITE_OPEN_READONLY, err);
	if (st == PW_OK)
		st = stmts_prepare(&s, &db, &verify_sql, err);
	if (st == PW_OK)
		st = walk(&s, &told, &report, err);
	if (st == PW_OK)
		st = check_picture(dir, &s, &told, &report, err);
	db_close(&db);
	if (st == PW_OK)
		*out = report;
	return st;
}
