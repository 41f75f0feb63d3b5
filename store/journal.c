#include "store/store.h"

#include <sodium.h>
#include <string.h>

#include "store/inner.h"
#include "store/tail.h"

enum { BEGIN, COMMIT, APPEND, PROBE, NEWEST, CHAIN };
static const char *const group_text[] = {
	[BEGIN] = "BEGIN IMMEDIATE",
	[COMMIT] = "COMMIT",
	[APPEND] =
		"INSERT INTO journal (first, last, time_ms, number, ends, hash, records) VALUES (?, ?, ?, ?, ?, ?, ?)",
	[PROBE] = "UPDATE probe SET writes = writes + 1",
	[NEWEST] = "SELECT last, number, ends, hash FROM journal ORDER BY first DESC LIMIT 1",
	[CHAIN] = "SELECT revision, number, ends, hash FROM chain",
};
const struct sql_table group_sql = { group_text, PW_ARRAY_LEN(group_text) };

enum { FORWARD, BACK, HASH_AT };
static const char *const read_text[] = {
	[FORWARD] = "SELECT first, last, time_ms, hash, records FROM journal"
		    " WHERE first >= coalesce((SELECT max(first) FROM journal WHERE first <= ?1), 0) AND last > ?1"
		    " ORDER BY first",
	[BACK] = "SELECT first, last, time_ms, hash, records FROM journal WHERE first < ? ORDER BY first DESC",
	[HASH_AT] = JOURNAL_HASH_AT,
};
const struct sql_table journal_read_sql = { read_text, PW_ARRAY_LEN(read_text) };

static void put64(uint8_t out[8], uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		out[i] = (uint8_t)(v >> (8 * i));
}

void journal_hash(const uint8_t before[STORE_HASH], const struct journal_row *row, uint8_t out[STORE_HASH])
{
	crypto_generichash_state h;
	uint8_t numbers[24];

	put64(numbers, row->first);
	put64(numbers + 8, row->last);
	put64(numbers + 16, (uint64_t)row->time_ms);
	crypto_generichash_init(&h, NULL, 0, STORE_HASH);
	crypto_generichash_update(&h, before, STORE_HASH);
	crypto_generichash_update(&h, numbers, sizeof numbers);
	crypto_generichash_update(&h, row->records, row->size);
	crypto_generichash_final(&h, out, STORE_HASH);
}

static enum pw_status load_place(struct store *s, int which, const char *table, struct place *out, struct pw_err *err)
{
	struct query q = query_begin(&s->group, which);
	struct place p;
	enum pw_status st = query_step(&q, "reading the end of the journal", err);

	if (st == PW_OK) {
		p.revision = row_u64(&q, 0, INT64_MAX);
		p.number = row_u64(&q, 1, INT64_MAX);
		p.ends = row_u64(&q, 2, INT64_MAX);
		row_bytes(&q, 3, p.hash, sizeof p.hash);
		st = row_check(&q, table, err);
	}
	query_end(&q);
	if (st == PW_OK)
		*out = p;
	return st;
}

enum pw_status journal_load_span(struct store *s, struct pw_err *err)
{
	enum pw_status st = load_place(s, CHAIN, "chain", &s->trimmed, err);

	if (st == PW_NOT_FOUND)
		return pw_fail(err, PW_STORAGE, JOURNAL_FILE ": table chain: its row is missing");
	if (st != PW_OK)
		return st;
	st = load_place(s, NEWEST, "journal", &s->head, err);
	if (st == PW_NOT_FOUND)
		s->head = s->trimmed;
	else if (st != PW_OK)
		return st;
	if (s->head.revision < s->trimmed.revision || s->head.number < s->trimmed.number ||
	    s->head.ends < s->trimmed.ends)
		return pw_fail(err, PW_STORAGE, JOURNAL_FILE ": table chain: ahead of the journal");
	s->newest = s->head;
	span_publish(s);
	return PW_OK;
}

static enum pw_status begin_in_doubt(struct store *s, struct pw_err *err)
{
	struct query q = query_begin(&s->group, BEGIN);

	return query_run(&q, "beginning a transaction", err);
}

enum pw_status writer_begin(struct store *s, struct pw_err *err)
{
	if (!atomic_load(&s->in_doubt))
		return begin_in_doubt(s, err);
	return pw_fail(err, PW_UNKNOWN,
		       JOURNAL_FILE ": an earlier commit failed, and the disk did not let it be taken"
				    " back: whether it happened is not known yet");
}

/* A commit has failed: its frames may be in the log, whole. */
static bool take_back(struct store *s)
{
	bool gone = begin_in_doubt(s, NULL) == PW_OK && tail_void(&s->writer);

	db_rollback(&s->writer);
	return gone;
}

enum pw_status writer_commit(struct store *s, struct pw_err *err)
{
	struct query q = query_begin(&s->group, COMMIT);
	enum pw_status st = query_run(&q, "committing", err);

	if (st == PW_OK) {
		atomic_store(&s->in_doubt, false); /* an earlier one's frames are overwritten, durably */
		return PW_OK;
	}
	db_rollback(&s->writer);
	if (!atomic_load(&s->in_doubt) && take_back(s))
		return st;
	atomic_store(&s->in_doubt, true);
	(void)pw_wrap(err, "whether it happened is not known yet");
	if (err)
		err->status = PW_UNKNOWN;
	return PW_UNKNOWN;
}

bool store_in_doubt(const struct store *s)
{
	return atomic_load(&s->in_doubt);
}

/* This thread, as the owner of a group. */
static uint64_t mine(void)
{
	return (uint64_t)pthread_self();
}

static void group_end(struct store *s)
{
	atomic_store(&s->group_of, 0);
	s->failed = false;
	turn_give(&s->turn);
}

enum pw_status store_begin(struct store *s, struct pw_err *err)
{
	enum pw_status st;

	turn_take(&s->turn);
	st = writer_begin(s, err);
	if (st != PW_OK) {
		db_rollback(&s->writer);
		turn_give(&s->turn);
		return st;
	}
	atomic_store(&s->group_of, mine());
	s->newest = s->head;
	return PW_OK;
}

/* SQLite may end a transaction by itself when a statement fails: what came next would then be committed on its own. */
enum pw_status group_check(const struct store *s, struct pw_err *err)
{
	bool is_mine = atomic_load(&s->group_of) == mine();

	if (is_mine && !s->failed)
		return PW_OK;
	return pw_fail(err, PW_CONFLICT,
		       is_mine ? "journal: a part of this group had failed" : "journal: there is no group");
}

enum pw_status group_result(struct store *s, enum pw_status st)
{
	if (st != PW_OK && st != PW_NOT_FOUND)
		s->failed = true;
	return st;
}

static struct place place_after(const struct place *p, const struct journal_row *row)
{
	struct place next = { .revision = row->last, .number = p->number + 1, .ends = p->ends + row->size };

	journal_hash(p->hash, row, next.hash);
	return next;
}

enum pw_status store_append(struct store *s, const struct journal_row *row, struct pw_err *err)
{
	struct place next;
	struct query q;
	enum pw_status st;

	st = group_check(s, err);
	if (st != PW_OK)
		return st;
	if (row->first != s->newest.revision + 1 || row->last < row->first || s->newest.number != s->head.number)
		return group_result(s, pw_fail(err, PW_CONFLICT,
					       "journal: revisions %" PRIu64 "..%" PRIu64 " cannot follow %" PRIu64,
					       row->first, row->last, s->newest.revision));
	next = place_after(&s->newest, row);
	q = query_begin(&s->group, APPEND);
	bind_u64(&q, row->first);
	bind_u64(&q, row->last);
	bind_i64(&q, row->time_ms);
	bind_u64(&q, next.number);
	bind_u64(&q, next.ends);
	bind_blob(&q, next.hash, sizeof next.hash);
	bind_blob(&q, row->records, row->size);
	st = query_run(&q, "appending to the journal", err);
	if (st == PW_OK)
		s->newest = next;
	return group_result(s, st);
}

enum pw_status store_commit(struct store *s, struct pw_err *err)
{
	enum pw_status st = group_check(s, err);

	if (st != PW_OK) {
		store_rollback(s);
		return st;
	}
	st = writer_commit(s, err);
	if (st == PW_OK) {
		s->head = s->newest;
		span_publish(s);
	}
	group_end(s);
	return st;
}

void store_rollback(struct store *s)
{
	if (atomic_load(&s->group_of) != mine())
		return; /* its commit failed, and another thread may have begun one */
	db_rollback(&s->writer);
	group_end(s);
}

enum pw_status writer_probe(struct store *s, struct pw_err *err)
{
	enum pw_status st = begin_in_doubt(s, err);
	struct query q;

	if (st == PW_OK) {
		q = query_begin(&s->group, PROBE);
		st = query_run(&q, "probing", err);
	}
	if (st == PW_OK)
		return writer_commit(s, err);
	db_rollback(&s->writer);
	return st;
}

enum pw_status store_probe(struct store *s, struct pw_err *err)
{
	enum pw_status st;

	turn_take(&s->turn);
	st = writer_probe(s, err);
	turn_give(&s->turn);
	return st;
}

static enum pw_status read_row(struct query *q, struct journal_row *out, struct pw_err *err)
{
	out->first = row_u64(q, 0, INT64_MAX);
	out->last = row_u64(q, 1, INT64_MAX);
	out->time_ms = row_i64(q, 2);
	row_bytes(q, 3, out->hash, sizeof out->hash);
	out->records = row_blob(q, 4, &out->size);
	return row_check(q, "journal", err);
}

/* Rows from *bound on, which moves on; *more: the piece was full. */
static enum pw_status read_piece(struct reader *r, int which, uint64_t *bound, journal_fn fn, void *ctx, bool *more,
				 struct pw_err *err)
{
	struct query q = query_begin(&r->journal, which);
	size_t rows = 0, bytes = 0;
	struct journal_row row;
	enum pw_status st;

	*more = false;
	bind_u64(&q, *bound > INT64_MAX ? INT64_MAX : *bound);
	while (!*more && (st = query_step(&q, "reading the journal", err)) == PW_OK) {
		st = read_row(&q, &row, err);
		if (st != PW_OK || !fn(ctx, &row))
			break;
		*bound = which == BACK ? row.first : row.last;
		bytes += row.size;
		*more = ++rows == READ_ROWS || bytes >= READ_BYTES;
	}
	query_end(&q);
	return st;
}

static enum pw_status read_rows(struct store *s, int which, uint64_t bound, journal_fn fn, void *ctx,
				struct pw_err *err)
{
	enum pw_status st;
	bool more;

	do {
		struct reader *r = reader_take(s);

		st = read_piece(r, which, &bound, fn, ctx, &more, err);
		reader_give(s, r);
	} while (more);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

enum pw_status store_read(struct store *s, uint64_t after, journal_fn fn, void *ctx, struct pw_err *err)
{
	return read_rows(s, FORWARD, after, fn, ctx, err);
}

enum pw_status store_read_back(struct store *s, uint64_t before, journal_fn fn, void *ctx, struct pw_err *err)
{
	return read_rows(s, BACK, before, fn, ctx, err);
}

enum pw_status journal_hash_at(struct store *s, uint64_t revision, uint8_t out[STORE_HASH], struct pw_err *err)
{
	struct reader *r = reader_take(s);
	struct query q = query_begin(&r->journal, HASH_AT);
	enum pw_status st;

	memset(out, 0, STORE_HASH);
	bind_u64(&q, revision);
	st = query_step(&q, "reading a row's hash", err);
	if (st == PW_OK) {
		row_bytes(&q, 0, out, STORE_HASH);
		st = row_check(&q, "journal", err);
	}
	query_end(&q);
	reader_give(s, r);
	return st == PW_NOT_FOUND ? PW_OK : st;
}
