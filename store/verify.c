#include "store/store.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#include "store/inner.h"

enum { CHAIN, LINKS, ROWS, HASH_AT };
static const char *const text[] = {
	[CHAIN] = "SELECT revision, number, ends, hash FROM chain",
	[HASH_AT] = JOURNAL_HASH_AT,
	[LINKS] = "SELECT first, last, number, ends, hash, length(records) FROM journal ORDER BY first",
	[ROWS] = "SELECT first, last, time_ms, number, ends, hash, records FROM journal WHERE first > ? ORDER BY first",
};
static const struct sql_table verify_sql = { text, PW_ARRAY_LEN(text) };

static enum pw_status read_chain(struct stmts *s, struct place *out, struct pw_err *err)
{
	struct query q = query_begin(s, CHAIN);
	enum pw_status st = query_step(&q, "reading where the chain starts", err);

	if (st == PW_OK) {
		out->revision = row_u64(&q, 0, INT64_MAX - 1);
		out->number = row_u64(&q, 1, INT64_MAX);
		out->ends = row_u64(&q, 2, INT64_MAX);
		row_bytes(&q, 3, out->hash, sizeof out->hash);
		st = row_check(&q, "chain", err);
	} else if (st == PW_NOT_FOUND) {
		st = pw_fail(err, PW_STORAGE, JOURNAL_FILE ": table chain: its row is missing");
	}
	query_end(&q);
	return st;
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

/* The rows after *at, with their hashes; *at moves on to the last one that holds. */
static enum pw_status walk_rows(struct stmts *s, struct place *at, bool *holds, struct pw_err *err)
{
	struct query q = query_begin(s, ROWS);
	enum pw_status st;

	*holds = true;
	bind_u64(&q, at->revision);
	while (*holds && (st = query_step(&q, "reading the journal", err)) == PW_OK)
		*holds = row_follows(&q, at);
	query_end(&q);
	return !*holds || st == PW_NOT_FOUND ? PW_OK : st;
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

static enum pw_status walk(struct stmts *s, struct verify_report *out, struct pw_err *err)
{
	struct place at = { 0 }, begins;
	enum pw_status st = read_chain(s, &at, err);
	bool holds = true;

	if (st != PW_OK)
		return st;
	begins = at;
	st = walk_rows(s, &at, &holds, err);
	*out = (struct verify_report){ .rows = at.number - begins.number,
				       .oldest = begins.revision + 1,
				       .newest = at.revision,
				       .broken = holds ? 0 : at.revision + 1 };
	memcpy(out->head, at.hash, sizeof out->head);
	return st;
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
		st = walk_rows(q, &at, &holds, err);
	if (st != PW_OK || holds)
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

static enum pw_status check_picture(const char *dir, struct stmts *journal, struct verify_report *out,
				    struct pw_err *err)
{
	struct db db = { 0 };
	struct seal seal = { 0 };
	struct pw_err why;
	struct sums sums;
	int64_t version = 0;
	enum pw_status st = db_open(&db, dir, LEDGER_FILE, SQLITE_OPEN_READONLY, err);

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
	return st;
}

enum pw_status store_verify(const char *dir, struct verify_report *out, struct pw_err *err)
{
	struct verify_report report = { 0 };
	struct db db = { 0 };
	struct stmts s = { 0 };
	enum pw_status st;

	if (sodium_init() < 0)
		return pw_fail(err, PW_STORAGE, "libsodium does not start");
	st = db_open(&db, dir, JOURNAL_FILE, SQLITE_OPEN_READONLY, err);
	if (st == PW_OK)
		st = stmts_prepare(&s, &db, &verify_sql, err);
	if (st == PW_OK)
		st = walk(&s, &report, err);
	if (st == PW_OK)
		st = check_picture(dir, &s, &report, err);
	db_close(&db);
	if (st == PW_OK)
		*out = report;
	return st;
}
