#include "store/store.h"

#include <sodium.h>
#include <string.h>

#include "store/inner.h"

enum { CHAIN, ROWS };
static const char *const text[] = {
	[CHAIN] = "SELECT revision, number, ends, hash FROM chain",
	[ROWS] = "SELECT first, last, time_ms, number, ends, hash, records FROM journal ORDER BY first",
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

static enum pw_status walk(struct stmts *s, struct verify_report *out, struct pw_err *err)
{
	struct place at;
	struct query q;
	enum pw_status st = read_chain(s, &at, err);

	if (st != PW_OK)
		return st;
	*out = (struct verify_report){ .oldest = at.revision + 1 };
	q = query_begin(s, ROWS);
	while ((st = query_step(&q, "reading the journal", err)) == PW_OK) {
		if (!row_follows(&q, &at)) {
			out->broken = at.revision + 1;
			break;
		}
		out->rows++;
	}
	query_end(&q);
	out->newest = at.revision;
	memcpy(out->head, at.hash, sizeof out->head);
	return st == PW_NOT_FOUND ? PW_OK : st;
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
	db_close(&db);
	if (st == PW_OK)
		*out = report;
	return st;
}
