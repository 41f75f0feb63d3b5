/* history.db. One connection adds and trims, another one finds; `lock` is for the list of segments and the latter. What
 * it holds can be made anew from the journal, so its commits are not flushed one by one, and any nonsense in it is
 * answered with PW_STORAGE: the caller resets it. */
#include "store/history.h"

#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "store/inner.h"

#define HISTORY_FILE "history.db"
#define APPLICATION  0x50574831 /* "PWH1": also the version; another one is thrown away */
#define PIECE_BYTES  3600       /* of packed entries in a row */
#define ENTRY_MOST   40         /* bytes of one packed entry */
#define QUESTION     64         /* what a question costs, in bytes looked at */
#define LEVELS       41

static const char setup[] = "PRAGMA journal_mode = WAL;"
			    "PRAGMA synchronous = NORMAL;"
			    "PRAGMA secure_delete = OFF;"
			    "PRAGMA cache_size = -8192;"
			    "PRAGMA journal_size_limit = 16777216;";
static const char schema[] =
	"BEGIN;"
	"CREATE TABLE IF NOT EXISTS segment ("
	" number INTEGER PRIMARY KEY,"
	" first INTEGER NOT NULL, last INTEGER NOT NULL CHECK (last >= first),"
	" hash BLOB NOT NULL CHECK (length(hash) = 32)" /* of the journal's row that ends with last */
	") STRICT;"
	"CREATE TABLE IF NOT EXISTS subject ("
	" segment INTEGER NOT NULL, subject BLOB NOT NULL,"
	" levels INTEGER NOT NULL," /* one bit for each that has pieces */
	" PRIMARY KEY (segment, subject)"
	") STRICT, WITHOUT ROWID;"
	"CREATE TABLE IF NOT EXISTS piece ("
	" segment INTEGER NOT NULL, subject BLOB NOT NULL, level INTEGER NOT NULL,"
	" first INTEGER NOT NULL," /* page of its first entry */
	" until INTEGER NOT NULL," /* and of its last one */
	" entries BLOB NOT NULL"
	") STRICT;"
	"CREATE INDEX IF NOT EXISTS piece_by_page ON piece (segment, subject, level, first);"
	"PRAGMA application_id = 0x50574831;"
	"COMMIT;";

enum { BEGIN, COMMIT, ADD_SEGMENT, ADD_SUBJECT, ADD_PIECE, DROP_PIECES, DROP_SUBJECTS, DROP_SEGMENT };
static const char *const write_text[] = {
	[BEGIN] = "BEGIN IMMEDIATE",
	[COMMIT] = "COMMIT",
	[ADD_SEGMENT] = "INSERT INTO segment (number, first, last, hash) VALUES (?, ?, ?, ?)",
	[ADD_SUBJECT] = "INSERT INTO subject (segment, subject, levels) VALUES (?, ?, ?)",
	[ADD_PIECE] = "INSERT INTO piece (segment, subject, level, first, until, entries) VALUES (?, ?, ?, ?, ?, ?)",
	[DROP_PIECES] = "DELETE FROM piece WHERE segment = ?",
	[DROP_SUBJECTS] = "DELETE FROM subject WHERE segment = ?",
	[DROP_SEGMENT] = "DELETE FROM segment WHERE number = ?",
};
static const struct sql_table write_sql = { write_text, PW_ARRAY_LEN(write_text) };

enum { SEGMENTS, SUBJECT, PIECES };
static const char *const find_text[] = {
	[SEGMENTS] = "SELECT number, first, last, hash FROM segment ORDER BY number",
	[SUBJECT] = "SELECT levels FROM subject WHERE segment = ? AND subject = ?",
	[PIECES] = ("SELECT first, until, entries FROM piece WHERE segment = ? AND subject = ? AND level = ?"
		    " AND first <= ? ORDER BY first DESC, rowid DESC"),
};
static const struct sql_table find_sql = { find_text, PW_ARRAY_LEN(find_text) };

struct segment {
	uint64_t number, first, last;
};

struct history {
	struct store *store; /* borrowed */
	struct db writer;
	struct stmts write;
	pthread_mutex_t lock; /* what follows */
	struct db reader;
	struct stmts find;
	struct segment *segments; /* in order */
	size_t count, capacity;
};

/* --- Packing --- */

static unsigned level_of(uint64_t count)
{
	return count <= 1 ? 0 : 64 - (unsigned)__builtin_clzll(count - 1);
}

static size_t put(uint8_t *at, uint64_t v)
{
	size_t n = 0;

	for (; v >= 0x80; v >>= 7)
		at[n++] = (uint8_t)(v | 0x80);
	at[n++] = (uint8_t)v;
	return n;
}

static uint64_t fold(uint64_t from, uint64_t to)
{
	return to >= from ? (to - from) << 1 : (from - to) << 1 | 1;
}

static uint64_t unfold(uint64_t from, uint64_t z)
{
	return z & 1 ? from - (z >> 1) : from + (z >> 1);
}

static bool get(const uint8_t **at, const uint8_t *end, uint64_t *out)
{
	uint64_t v = 0;

	for (unsigned shift = 0; shift < 64 && *at < end; shift += 7) {
		uint8_t c = *(*at)++;

		v |= (uint64_t)(c & 0x7f) << shift;
		if (!(c & 0x80)) {
			*out = v;
			return true;
		}
	}
	return false;
}

static size_t pack(uint8_t *at, const struct history_entry *prev, const struct history_entry *e)
{
	size_t n = put(at, e->first - prev->first);

	n += put(at + n, e->count);
	n += put(at + n, fold(prev->revision, e->revision));
	return n + put(at + n, fold(prev->at, e->at));
}

static bool unpack(const uint8_t **at, const uint8_t *end, struct history_entry *e)
{
	uint64_t first, count, revision, place;

	if (!get(at, end, &first) || !get(at, end, &count) || !get(at, end, &revision) || !get(at, end, &place))
		return false;
	e->first += first;
	e->count = count;
	e->revision = unfold(e->revision, revision);
	e->at = (uint32_t)unfold(e->at, place);
	return true;
}

/* By level, first page, and the newest first: whoever wants the newest few of a page then has them at once. */
static int by_place(const void *a, const void *b)
{
	const struct history_entry *x = a, *y = b;
	unsigned lx = level_of(x->count), ly = level_of(y->count);

	if (lx != ly)
		return lx < ly ? -1 : 1;
	if (x->first != y->first)
		return x->first < y->first ? -1 : 1;
	return x->revision > y->revision ? -1 : x->revision < y->revision;
}

/* --- Opening --- */

static void close_all(struct history *h)
{
	db_close(&h->reader);
	db_close(&h->writer);
	h->write = h->find = (struct stmts){ 0 };
	h->count = 0;
}

static void delete_files(const struct history *h)
{
	static const char *const ends[] = { "", "-wal", "-shm" };
	char path[PATH_MAX];

	for (size_t i = 0; i < PW_ARRAY_LEN(ends); i++)
		if ((size_t)snprintf(path, sizeof path, "%s/" HISTORY_FILE "%s", h->store->dir, ends[i]) < sizeof path)
			unlink(path);
}

static enum pw_status segment_keep(struct history *h, const struct segment *s, struct pw_err *err)
{
	if (h->count == h->capacity) {
		size_t capacity = h->capacity ? 2 * h->capacity : 64;
		struct segment *more = reallocarray(h->segments, capacity, sizeof *more);

		if (!more)
			return pw_fail(err, PW_NO_MEMORY, "out of memory for segments of history");
		h->segments = more;
		h->capacity = capacity;
	}
	h->segments[h->count++] = *s;
	return PW_OK;
}

/* The last one must have been made of this journal. */
static enum pw_status load_segments(struct history *h, struct pw_err *err)
{
	struct query q = query_begin(&h->find, SEGMENTS);
	uint8_t hash[STORE_HASH] = { 0 }, there[STORE_HASH];
	struct journal_span span;
	uint64_t last = 0;
	enum pw_status st;

	while ((st = query_step(&q, "reading the segments of history", err)) == PW_OK) {
		struct segment s = { row_u64(&q, 0, INT64_MAX), row_u64(&q, 1, INT64_MAX), row_u64(&q, 2, INT64_MAX) };

		row_bytes(&q, 3, hash, sizeof hash);
		st = row_check(&q, "segment", err);
		if (st == PW_OK && (s.first <= last || s.last < s.first))
			st = pw_fail(err, PW_STORAGE, HISTORY_FILE ": its segments are not in order");
		if (st == PW_OK)
			st = segment_keep(h, &s, err);
		if (st != PW_OK)
			break;
		last = s.last;
	}
	query_end(&q);
	store_span(h->store, &span);
	if (st != PW_NOT_FOUND || last + 1 < span.oldest || !last)
		return st == PW_NOT_FOUND ? PW_OK : st;
	st = journal_hash_at(h->store, last, there, err);
	if (st == PW_OK && memcmp(hash, there, sizeof hash) != 0)
		st = pw_fail(err, PW_STORAGE, HISTORY_FILE ": it was made of another " JOURNAL_FILE " than this");
	return st;
}

static enum pw_status open_files(struct history *h, struct pw_err *err)
{
	const int flags = SQLITE_OPEN_READWRITE;
	int64_t application = 0, pages = 0;
	enum pw_status st = db_open(&h->writer, h->store->dir, HISTORY_FILE, flags | SQLITE_OPEN_CREATE, err);

	if (st == PW_OK)
		st = db_number(&h->writer, "PRAGMA page_count", &pages, err);
	if (st == PW_OK && pages)
		st = db_number(&h->writer, "PRAGMA application_id", &application, err);
	if (st == PW_OK && pages && application != APPLICATION)
		st = pw_fail(err, PW_STORAGE, HISTORY_FILE ": not of this version");
	if (st == PW_OK)
		st = db_exec(&h->writer, setup, err);
	if (st == PW_OK)
		st = db_exec(&h->writer, schema, err);
	if (st == PW_OK)
		st = stmts_prepare(&h->write, &h->writer, &write_sql, err);
	if (st == PW_OK)
		st = db_open(&h->reader, h->store->dir, HISTORY_FILE, flags, err);
	if (st == PW_OK)
		st = stmts_prepare(&h->find, &h->reader, &find_sql, err);
	return st == PW_OK ? load_segments(h, err) : st;
}

enum pw_status history_reset(struct history *h, struct pw_err *err)
{
	enum pw_status st;

	pthread_mutex_lock(&h->lock);
	close_all(h);
	delete_files(h);
	st = open_files(h, err);
	if (st != PW_OK)
		close_all(h);
	pthread_mutex_unlock(&h->lock);
	return st;
}

enum pw_status history_open(struct store *s, struct history **out, uint64_t *reached, struct pw_err *err)
{
	struct history *h = calloc(1, sizeof *h);
	enum pw_status st;

	if (!h)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while opening " HISTORY_FILE);
	h->store = s;
	pthread_mutex_init(&h->lock, NULL);
	st = open_files(h, err);
	if (st != PW_OK && st != PW_NO_MEMORY)
		st = history_reset(h, err);
	if (st != PW_OK) {
		history_close(h);
		return st;
	}
	*reached = h->count ? h->segments[h->count - 1].last : 0;
	*out = h;
	return PW_OK;
}

void history_close(struct history *h)
{
	if (!h)
		return;
	close_all(h);
	pthread_mutex_destroy(&h->lock);
	free(h->segments);
	free(h);
}

/* --- Adding --- */

static enum pw_status add_piece(struct history *h, uint64_t segment, const uint8_t *subject, unsigned level,
				const struct history_entry *v, size_t *used, size_t n, uint64_t base,
				struct pw_err *err)
{
	uint8_t packed[PIECE_BYTES + ENTRY_MOST];
	struct history_entry prev = { .first = v->first, .revision = base };
	struct query q = query_begin(&h->write, ADD_PIECE);
	size_t size = 0, i = 0;

	for (; i < n && size < PIECE_BYTES; i++) {
		size += pack(packed + size, &prev, &v[i]);
		prev = v[i];
	}
	*used = i;
	bind_u64(&q, segment);
	bind_blob(&q, subject, HISTORY_SUBJECT);
	bind_u64(&q, level);
	bind_u64(&q, v->first);
	bind_u64(&q, prev.first);
	bind_blob(&q, packed, size);
	return query_run(&q, "adding to history", err);
}

static enum pw_status add_list(struct history *h, uint64_t segment, uint64_t base, struct history_list *l,
			       struct pw_err *err)
{
	uint64_t levels = 0;
	enum pw_status st = PW_OK;
	struct query q;
	size_t used;

	qsort(l->v, l->n, sizeof *l->v, by_place);
	for (size_t i = 0; st == PW_OK && i < l->n; i += used) {
		unsigned level = level_of(l->v[i].count);
		size_t n = i;

		while (n < l->n && level_of(l->v[n].count) == level && n - i < PIECE_BYTES)
			n++;
		levels |= UINT64_C(1) << level;
		st = add_piece(h, segment, l->subject, level, l->v + i, &used, n - i, base, err);
	}
	if (st != PW_OK)
		return st;
	q = query_begin(&h->write, ADD_SUBJECT);
	bind_u64(&q, segment);
	bind_blob(&q, l->subject, HISTORY_SUBJECT);
	bind_u64(&q, levels);
	return query_run(&q, "adding to history", err);
}

static enum pw_status run(struct history *h, int which, struct pw_err *err)
{
	struct query q = query_begin(&h->write, which);

	return query_run(&q, "a transaction of history", err);
}

static enum pw_status add_segment(struct history *h, const struct segment *s, struct history_list *lists, size_t n,
				  struct pw_err *err)
{
	uint8_t hash[STORE_HASH];
	enum pw_status st = journal_hash_at(h->store, s->last, hash, err);
	struct query q;

	if (st == PW_OK)
		st = run(h, BEGIN, err);
	for (size_t i = 0; st == PW_OK && i < n; i++)
		if (lists[i].n)
			st = add_list(h, s->number, s->first, &lists[i], err);
	if (st == PW_OK) {
		q = query_begin(&h->write, ADD_SEGMENT);
		bind_u64(&q, s->number);
		bind_u64(&q, s->first);
		bind_u64(&q, s->last);
		bind_blob(&q, hash, sizeof hash);
		st = query_run(&q, "adding to history", err);
	}
	if (st == PW_OK)
		st = run(h, COMMIT, err);
	if (st != PW_OK)
		db_rollback(&h->writer);
	return st;
}

enum pw_status history_add(struct history *h, uint64_t first, uint64_t last, struct history_list *lists, size_t n,
			   struct pw_err *err)
{
	struct segment s = { .first = first, .last = last };
	enum pw_status st;

	if (!h->writer.h)
		return pw_fail(err, PW_STORAGE, HISTORY_FILE ": it could not be made");
	s.number = h->count ? h->segments[h->count - 1].number + 1 : 1;
	st = add_segment(h, &s, lists, n, err);
	if (st != PW_OK)
		return st;
	pthread_mutex_lock(&h->lock);
	st = segment_keep(h, &s, err);
	pthread_mutex_unlock(&h->lock);
	return st;
}

static enum pw_status drop(struct history *h, int which, uint64_t segment, struct pw_err *err)
{
	struct query q = query_begin(&h->write, which);

	bind_u64(&q, segment);
	return query_run(&q, "trimming history", err);
}

enum pw_status history_trim(struct history *h, uint64_t oldest, struct pw_err *err)
{
	uint64_t number = 0;
	enum pw_status st;

	pthread_mutex_lock(&h->lock);
	if (h->count && h->segments[0].last < oldest) {
		number = h->segments[0].number;
		memmove(h->segments, h->segments + 1, --h->count * sizeof *h->segments);
	}
	pthread_mutex_unlock(&h->lock);
	if (!number)
		return PW_NOT_FOUND;
	st = run(h, BEGIN, err);
	if (st == PW_OK)
		st = drop(h, DROP_PIECES, number, err);
	if (st == PW_OK)
		st = drop(h, DROP_SUBJECTS, number, err);
	if (st == PW_OK)
		st = drop(h, DROP_SEGMENT, number, err);
	if (st == PW_OK)
		st = run(h, COMMIT, err);
	if (st != PW_OK)
		db_rollback(&h->writer);
	return st;
}

/* --- Finding --- */

bool history_overlaps(const struct history_entry *e, const struct history_window *w)
{
	return e->revision < w->before && e->first < w->first + w->count && w->first < e->first + e->count;
}

static enum pw_status look_at(const uint8_t *at, size_t size, struct history_entry e, const struct history_window *w,
			      history_fn fn, void *ctx, struct pw_err *err)
{
	const uint8_t *end = at + size;

	while (at < end) {
		if (!unpack(&at, end, &e))
			return pw_fail(err, PW_STORAGE, HISTORY_FILE ": table piece: entries: damaged");
		if (history_overlaps(&e, w))
			fn(ctx, &e);
	}
	return PW_OK;
}

static enum pw_status find_level(struct history *h, const struct segment *s, unsigned level,
				 const struct history_window *w, history_fn fn, void *ctx, uint64_t *work,
				 struct pw_err *err)
{
	struct query q = query_begin(&h->find, PIECES);
	uint64_t reach = (UINT64_C(1) << level) - 1, lowest = w->first > reach ? w->first - reach : 0;
	enum pw_status st;

	bind_u64(&q, s->number);
	bind_blob(&q, w->subject, HISTORY_SUBJECT);
	bind_u64(&q, level);
	bind_u64(&q, w->first + w->count - 1);
	while ((st = query_step(&q, "looking into history", err)) == PW_OK) {
		struct history_entry e = { .first = row_u64(&q, 0, INT64_MAX), .revision = s->first };
		uint64_t until = row_u64(&q, 1, INT64_MAX);
		size_t size;
		const uint8_t *packed = row_blob(&q, 2, &size);

		*work += size + QUESTION;
		st = row_check(&q, "piece", err);
		if (st != PW_OK || until < lowest)
			break;
		st = look_at(packed, size, e, w, fn, ctx, err);
		if (st != PW_OK)
			break;
	}
	query_end(&q);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

static enum pw_status find_levels(struct history *h, const struct segment *s, const struct history_window *w,
				  uint64_t *levels, struct pw_err *err)
{
	struct query q = query_begin(&h->find, SUBJECT);
	enum pw_status st;

	bind_u64(&q, s->number);
	bind_blob(&q, w->subject, HISTORY_SUBJECT);
	*levels = 0;
	st = query_step(&q, "looking into history", err);
	if (st == PW_OK) {
		*levels = row_u64(&q, 0, INT64_MAX);
		st = row_check(&q, "subject", err);
	}
	query_end(&q);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

static const struct segment *segment_before(const struct history *h, uint64_t before)
{
	size_t lo = 0, hi = h->count;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (h->segments[mid].first < before)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo ? &h->segments[lo - 1] : NULL;
}

enum pw_status history_find(struct history *h, const struct history_window *w, history_fn fn, void *ctx, uint64_t *from,
			    uint64_t *work, struct pw_err *err)
{
	const struct segment *s;
	uint64_t levels = 0;
	enum pw_status st = PW_NOT_FOUND;

	pthread_mutex_lock(&h->lock);
	s = segment_before(h, w->before);
	if (s) {
		*from = s->first;
		*work += QUESTION;
		st = find_levels(h, s, w, &levels, err);
	}
	for (unsigned level = 0; st == PW_OK && level < LEVELS; level++)
		if (levels >> level & 1)
			st = find_level(h, s, level, w, fn, ctx, work, err);
	pthread_mutex_unlock(&h->lock);
	return st;
}
