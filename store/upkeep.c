#include "store/store.h"

#include "store/inner.h"

/* So much is deleted while the writer waits: rows, and bytes of records past which no further row is. */
#define TRIM_STEP  64
#define TRIM_BYTES ((uint64_t)512 << 10)

enum { OLDEST, DROP_ROWS, DROP_VIOLATIONS, SET_CHAIN };
static const char *const trim_text[] = {
	[OLDEST] = "SELECT first, last, number, ends, hash FROM journal WHERE first <= ? ORDER BY first LIMIT ?",
	[DROP_ROWS] = "DELETE FROM journal WHERE first <= ?",
	[DROP_VIOLATIONS] = "DELETE FROM violation WHERE revision <= ?",
	[SET_CHAIN] = "UPDATE chain SET revision = ?, number = ?, ends = ?, hash = ?",
};
const struct sql_table trim_sql = { trim_text, PW_ARRAY_LEN(trim_text) };

enum { AT };
static const char *const read_text[] = {
	[AT] = "SELECT first, last, time_ms, ends FROM journal WHERE first <= ? ORDER BY first DESC LIMIT 1",
};
const struct sql_table upkeep_read_sql = { read_text, PW_ARRAY_LEN(read_text) };

/* The last of the oldest rows, at most a step of them, that ends at or before `through`. PW_NOT_FOUND: none does. */
static enum pw_status find_cut(struct store *s, uint64_t through, struct place *out, uint64_t *first,
			       struct pw_err *err)
{
	struct query q = query_begin(&s->trim, OLDEST);
	enum pw_status st;
	bool found = false;

	bind_u64(&q, through > INT64_MAX ? INT64_MAX : through);
	bind_u64(&q, TRIM_STEP);
	while ((st = query_step(&q, "looking for rows to trim", err)) == PW_OK) {
		struct place p = { .revision = row_u64(&q, 1, INT64_MAX) };

		p.number = row_u64(&q, 2, INT64_MAX);
		p.ends = row_u64(&q, 3, INT64_MAX);
		if (p.revision > through || (found && p.ends - s->trimmed.ends > TRIM_BYTES))
			break;
		row_bytes(&q, 4, p.hash, sizeof p.hash);
		*first = row_u64(&q, 0, INT64_MAX);
		*out = p;
		found = true;
	}
	if (st == PW_OK || st == PW_NOT_FOUND)
		st = row_check(&q, "journal", err);
	query_end(&q);
	return st == PW_OK && !found ? PW_NOT_FOUND : st;
}

static enum pw_status drop(struct store *s, int which, uint64_t bound, struct pw_err *err)
{
	struct query q = query_begin(&s->trim, which);

	bind_u64(&q, bound);
	return query_run(&q, "trimming", err);
}

static enum pw_status set_chain(struct store *s, const struct place *p, struct pw_err *err)
{
	struct query q = query_begin(&s->trim, SET_CHAIN);

	bind_u64(&q, p->revision);
	bind_u64(&q, p->number);
	bind_u64(&q, p->ends);
	bind_blob(&q, p->hash, sizeof p->hash);
	return query_run(&q, "trimming", err);
}

/* Under the turn. PW_NOT_FOUND: nothing is left to do. */
static enum pw_status trim_step(struct store *s, uint64_t through, struct pw_err *err)
{
	struct place cut;
	uint64_t first = 0;
	enum pw_status st = writer_begin(s, err);

	if (st == PW_OK)
		st = find_cut(s, through, &cut, &first, err);
	if (st == PW_OK)
		st = drop(s, DROP_ROWS, first, err);
	if (st == PW_OK)
		st = drop(s, DROP_VIOLATIONS, cut.revision, err);
	if (st == PW_OK)
		st = set_chain(s, &cut, err);
	if (st == PW_OK)
		st = writer_commit(s, err);
	if (st != PW_OK) {
		db_rollback(&s->writer);
		return st;
	}
	s->trimmed = cut;
	span_publish(s);
	return PW_OK;
}

enum pw_status store_trim(struct store *s, uint64_t through, struct pw_err *err)
{
	uint64_t painted = atomic_load(&s->painted);
	enum pw_status st;

	if (pthread_mutex_trylock(&s->trim_lock) != 0)
		return PW_OK; /* a backup is being made: next time */
	do {
		turn_take(&s->turn);
		st = trim_step(s, through < painted ? through : painted, err);
		turn_give(&s->turn);
		if (st == PW_OK && atomic_load(&s->wal_pages) >= WAL_HIGH)
			st = store_wal_checkpoint(s, err); /* all of it may take minutes */
	} while (st == PW_OK);
	pthread_mutex_unlock(&s->trim_lock);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

struct mark {
	uint64_t first, last, ends;
	int64_t time_ms;
};

/* The row that holds `revision`; false if there is none, or it cannot be read. */
static bool mark_at(struct reader *r, uint64_t revision, struct mark *out)
{
	struct query q = query_begin(&r->upkeep, AT);
	bool found;

	bind_u64(&q, revision);
	found = query_step(&q, "looking for a row", NULL) == PW_OK;
	if (found)
		*out = (struct mark){ .first = row_u64(&q, 0, INT64_MAX),
				      .last = row_u64(&q, 1, INT64_MAX),
				      .time_ms = row_i64(&q, 2),
				      .ends = row_u64(&q, 3, INT64_MAX) };
	found = found && row_check(&q, "journal", NULL) == PW_OK && out->last >= revision;
	query_end(&q);
	return found;
}

struct limits {
	int64_t time_ms; /* rows are old if older than this */
	uint64_t ends;   /* ... and if the next one begins at or before this */
};

static bool is_old(const struct mark *m, const struct limits *l)
{
	return m->time_ms < l->time_ms && m->ends <= l->ends;
}

/* By bisection, for which the rows' times are taken to grow. 0: none is old. */
static uint64_t newest_old(struct reader *r, uint64_t lo, uint64_t hi, const struct limits *l)
{
	uint64_t found = 0;
	struct mark m;

	while (lo <= hi) {
		if (!mark_at(r, lo + (hi - lo) / 2, &m))
			break;
		if (is_old(&m, l)) {
			found = m.last;
			lo = m.last + 1;
		} else {
			hi = m.first - 1;
		}
	}
	return found;
}

uint64_t store_revision_before(struct store *s, int64_t time_ms)
{
	struct limits l = { .time_ms = time_ms, .ends = UINT64_MAX };
	struct reader *r = reader_take(s);
	uint64_t found = newest_old(r, atomic_load(&s->oldest), atomic_load(&s->newest_revision), &l);

	reader_give(s, r);
	return found;
}

uint64_t store_revision_keeping(struct store *s, uint64_t max_bytes)
{
	struct limits l = { .time_ms = INT64_MAX };
	uint64_t oldest = atomic_load(&s->oldest), newest = atomic_load(&s->newest_revision), found = 0;
	struct reader *r = reader_take(s);
	struct mark last, m;

	if (oldest > newest || !mark_at(r, newest, &last) || last.ends <= max_bytes)
		goto out;
	/* Old is what ends where keeping the rest would still be too much; the row behind it has to go as well. */
	l.ends = last.ends - max_bytes - 1;
	found = newest_old(r, oldest, newest, &l);
	if (atomic_load(&s->bytes) <= max_bytes)
		found = 0;
	else if (mark_at(r, found ? found + 1 : oldest, &m))
		found = m.last;
out:
	reader_give(s, r);
	return found;
}
