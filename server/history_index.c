/* The index of history. One thread follows the journal in bounded pieces, at low priority; readers look at the tail
 * under `lock`, which that thread takes for the time of one row's records. Order of locks: lock, then mutex. */
#include "server/history_index.h"

#include <errno.h>
#include <pthread.h>
#include <sodium.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>

#include "server/log.h"
#include "server/service_impl.h"

enum {
	BUCKETS = 4096,
	PIECE_BYTES = 4 << 20, /* of records that are read at once */
	LOOK_MS = 50,          /* how often it looks for news by itself */
	NICE = 10,
	KEEP_SORTED = 2, /* of a collection's room, in multiples of what is asked for */
};
#define ALL_PAGES TREE_PAGES

struct subject {
	uint8_t key[HISTORY_SUBJECT];
	struct history_entry *v; /* heap; revisions grow */
	size_t n, capacity;
	struct subject *next;
};

struct tail {
	uint64_t first, last; /* revisions that it is of; last: followed up to there */
	size_t entries, subjects;
	struct subject *bucket[BUCKETS];
};

struct history_index {
	struct store *store; /* borrowed */
	size_t tail_entries;
	struct history *history; /* the thread's, but for finding; NULL: there is none */
	pthread_rwlock_t lock;   /* tail */
	struct tail tail;
	pthread_mutex_t mutex; /* what follows */
	pthread_cond_t kick, moved;
	uint64_t reached; /* a copy of tail.last */
	bool stop, wrong;
	pthread_t thread;
	bool runs;
	/* The thread's own. */
	bool failed;
	struct pw_err err;
	size_t read;
};

void history_of_vm(const struct pw_uuid *vm, uint8_t subject[HISTORY_SUBJECT])
{
	_Static_assert(sizeof vm->b == HISTORY_SUBJECT, "a VM's key is its id");
	memcpy(subject, vm->b, HISTORY_SUBJECT);
}

void history_of_frames(const struct pw_uuid *host, const char *pool, uint8_t subject[HISTORY_SUBJECT])
{
	crypto_generichash_state h;

	crypto_generichash_init(&h, NULL, 0, HISTORY_SUBJECT);
	crypto_generichash_update(&h, host->b, sizeof host->b);
	crypto_generichash_update(&h, (const unsigned char *)pool, strlen(pool));
	crypto_generichash_final(&h, subject, HISTORY_SUBJECT);
}

bool history_is_told(const char *json, size_t len)
{
	static const char begin[] = "{\"type\":\"";
	static const char *const types[] = { "vm.lifecycle", "vm.reset",     "vm.created",      "vm.deleted",
					     "slot.added",   "slot.deleted", "quarantine.added" };

	if (len < sizeof begin - 1 || memcmp(json, begin, sizeof begin - 1) != 0)
		return false;
	json += sizeof begin - 1;
	len -= sizeof begin - 1;
	for (size_t i = 0; i < PW_ARRAY_LEN(types); i++) {
		size_t n = strlen(types[i]);

		if (len > n && memcmp(json, types[i], n) == 0 && json[n] == '"')
			return true;
	}
	return false;
}

/* --- The tail --- */

static unsigned bucket_of(const uint8_t *key)
{
	uint32_t v;

	memcpy(&v, key + HISTORY_SUBJECT - sizeof v, sizeof v);
	return v % BUCKETS;
}

static struct subject *subject_find(const struct tail *t, const uint8_t *key)
{
	struct subject *s = t->bucket[bucket_of(key)];

	while (s && memcmp(s->key, key, HISTORY_SUBJECT) != 0)
		s = s->next;
	return s;
}

static struct subject *subject_make(struct tail *t, const uint8_t *key)
{
	struct subject *s = subject_find(t, key), **bucket = &t->bucket[bucket_of(key)];

	if (s)
		return s;
	s = calloc(1, sizeof *s);
	if (!s)
		return NULL;
	memcpy(s->key, key, HISTORY_SUBJECT);
	s->next = *bucket;
	*bucket = s;
	t->subjects++;
	return s;
}

static bool note(struct history_index *x, const uint8_t *key, const struct history_entry *e)
{
	struct subject *s = subject_make(&x->tail, key);

	if (s && s->n == s->capacity) {
		size_t capacity = s->capacity ? 2 * s->capacity : 8;
		struct history_entry *more = reallocarray(s->v, capacity, sizeof *more);

		if (!more)
			s = NULL;
		else {
			s->v = more;
			s->capacity = capacity;
		}
	}
	if (!s) {
		pw_fail(&x->err, PW_NO_MEMORY, "out of memory for the index of history");
		x->failed = true;
		return false;
	}
	s->v[s->n++] = *e;
	x->tail.entries++;
	return true;
}

static void tail_clear(struct tail *t)
{
	for (size_t i = 0; i < BUCKETS; i++)
		while (t->bucket[i]) {
			struct subject *s = t->bucket[i];

			t->bucket[i] = s->next;
			free(s->v);
			free(s);
		}
	t->entries = t->subjects = 0;
	t->first = t->last + 1;
}

static bool note_item(struct history_index *x, const struct record *rec, uint32_t at)
{
	const struct item *it = &rec->item.item;
	static const struct pw_uuid nobody;
	uint8_t vm[HISTORY_SUBJECT], frames[HISTORY_SUBJECT];
	struct history_entry e = { .revision = rec->revision, .at = at };

	history_of_vm(&it->vm, vm);
	if (it->framed)
		history_of_frames(strcmp(it->pool, "local") == 0 ? &rec->item.host : &nobody, it->pool, frames);
	for (size_t i = 0; i < it->run_count; i++) {
		e.first = it->runs[i].gfn;
		e.count = it->runs[i].count;
		if (!note(x, vm, &e))
			return false;
		e.first = it->runs[i].pfn;
		if (it->framed && !note(x, frames, &e))
			return false;
	}
	return true;
}

/* Every VM that it names: each id in quotes may be one. */
static bool note_event(struct history_index *x, const struct record *rec, uint32_t at)
{
	struct history_entry e = { 0, ALL_PAGES, rec->revision, at };
	const char *json = rec->json, *end = json + rec->json_len;
	uint8_t key[HISTORY_SUBJECT];
	struct pw_uuid id;

	if (!history_is_told(json, rec->json_len))
		return true;
	while ((json = memchr(json, '"', (size_t)(end - json)))) {
		json++;
		if (end - json < PW_UUID_TEXT)
			break;
		if (json[PW_UUID_TEXT - 1] != '"' || !pw_uuid_parse(json, PW_UUID_TEXT - 1, &id))
			continue;
		history_of_vm(&id, key);
		if (!note(x, key, &e))
			return false;
		json += PW_UUID_TEXT - 1;
	}
	return true;
}

static void note_row(struct history_index *x, const struct journal_row *row)
{
	struct record_reader rd;
	struct record rec;
	enum pw_status st;
	size_t at = 0;

	record_read_init(&rd, row);
	for (; (st = record_next(&rd, &rec, &x->err)) == PW_OK; at = rd.at)
		if (rec.revision > x->tail.last &&
		    !(rec.is_item ? note_item(x, &rec, (uint32_t)at) : note_event(x, &rec, (uint32_t)at)))
			break;
	if (st != PW_NOT_FOUND)
		x->failed = true;
	record_read_release(&rd);
}

/* --- Following --- */

static bool is_stopping(struct history_index *x)
{
	bool stop;

	pthread_mutex_lock(&x->mutex);
	stop = x->stop || x->wrong;
	pthread_mutex_unlock(&x->mutex);
	return stop;
}

static void say_reached(struct history_index *x)
{
	pthread_mutex_lock(&x->mutex);
	x->reached = x->wrong ? 0 : x->tail.last;
	pthread_cond_broadcast(&x->moved);
	pthread_mutex_unlock(&x->mutex);
}

static bool follow_row(void *ctx, const struct journal_row *row)
{
	struct history_index *x = ctx;

	pthread_rwlock_wrlock(&x->lock);
	if (!x->tail.entries && row->first > x->tail.first)
		x->tail.first = row->first;
	note_row(x, row);
	if (!x->failed)
		x->tail.last = row->last;
	pthread_rwlock_unlock(&x->lock);
	say_reached(x);
	x->read += row->size;
	return !x->failed && x->read < PIECE_BYTES && x->tail.entries < x->tail_entries && !is_stopping(x);
}

static enum pw_status flush(struct history_index *x, struct pw_err *err)
{
	struct tail *t = &x->tail;
	struct history_list *lists = calloc(t->subjects, sizeof *lists);
	enum pw_status st;
	size_t n = 0;

	if (!lists)
		return pw_fail(err, PW_NO_MEMORY, "out of memory for the index of history");
	/* Copies, which get sorted: readers count on the tail's order. This thread alone changes the tail. */
	for (size_t i = 0; i < BUCKETS; i++)
		for (struct subject *s = t->bucket[i]; s; s = s->next) {
			struct history_entry *copy = malloc(s->n * sizeof *copy);

			if (!copy)
				continue;
			memcpy(copy, s->v, s->n * sizeof *copy);
			lists[n] = (struct history_list){ .v = copy, .n = s->n };
			memcpy(lists[n++].subject, s->key, HISTORY_SUBJECT);
		}
	st = n < t->subjects ? pw_fail(err, PW_NO_MEMORY, "out of memory for the index of history")
			     : history_add(x->history, t->first, t->last, lists, n, err);
	for (size_t i = 0; i < n; i++)
		free(lists[i].v);
	free(lists);
	if (st != PW_OK)
		return st;
	pthread_rwlock_wrlock(&x->lock);
	tail_clear(t);
	pthread_rwlock_unlock(&x->lock);
	return PW_OK;
}

static enum pw_status step(struct history_index *x, struct pw_err *err)
{
	struct journal_span span;
	enum pw_status st = PW_OK;

	store_span(x->store, &span);
	x->read = 0;
	if (x->tail.last < span.newest)
		st = store_read(x->store, x->tail.last, follow_row, x, err);
	if (st == PW_OK && x->failed) {
		*err = x->err;
		st = err->status;
	}
	x->failed = false;
	if (st == PW_OK && x->tail.entries >= x->tail_entries)
		st = flush(x, err);
	if (st == PW_OK) {
		st = history_trim(x->history, span.oldest, err);
		st = st == PW_NOT_FOUND ? PW_OK : st;
	}
	return st;
}

/* All is forgotten. */
static void start_over(struct history_index *x)
{
	struct pw_err err = { 0 };

	pthread_rwlock_wrlock(&x->lock);
	x->tail.last = 0;
	tail_clear(&x->tail);
	pthread_rwlock_unlock(&x->lock);
	pthread_mutex_lock(&x->mutex);
	x->reached = 0;
	x->wrong = false;
	pthread_mutex_unlock(&x->mutex);
	if (history_reset(x->history, &err) != PW_OK)
		log_line(LOG_ERROR_, "the index of history cannot be made", "error", err.msg, NULL);
}

static void rest(struct history_index *x, unsigned ms)
{
	struct timespec until;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)ms * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&x->mutex);
	if (!x->stop && !x->wrong)
		pthread_cond_timedwait(&x->kick, &x->mutex, &until);
	pthread_mutex_unlock(&x->mutex);
}

static void *index_main(void *arg)
{
	struct history_index *x = arg;
	bool stop = false;

	(void)setpriority(PRIO_PROCESS, 0, NICE); /* of this thread alone, on Linux */
	while (!stop) {
		struct journal_span span;
		struct pw_err err = { 0 };
		bool wrong;

		if (step(x, &err) != PW_OK) {
			log_line(LOG_WARNING_, "the index of history is made anew", "error", err.msg, NULL);
			start_over(x);
			rest(x, 1000);
		}
		store_span(x->store, &span);
		if (x->tail.last >= span.newest)
			rest(x, LOOK_MS);
		pthread_mutex_lock(&x->mutex);
		stop = x->stop;
		wrong = x->wrong;
		pthread_mutex_unlock(&x->mutex);
		if (wrong && !stop)
			start_over(x);
	}
	return NULL;
}

uint64_t history_index_reached(struct history_index *x, uint64_t wanted, unsigned wait_ms)
{
	struct timespec until;
	uint64_t reached;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += (long)wait_ms * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&x->mutex);
	if (wait_ms && x->reached < wanted)
		pthread_cond_signal(&x->kick);
	while (wait_ms && x->reached < wanted && !x->stop)
		if (pthread_cond_timedwait(&x->moved, &x->mutex, &until) != 0)
			break;
	reached = x->reached;
	pthread_mutex_unlock(&x->mutex);
	return reached;
}

void history_index_is_wrong(struct history_index *x, const char *why)
{
	log_line(LOG_WARNING_, "the index of history is made anew", "error", why, NULL);
	pthread_mutex_lock(&x->mutex);
	x->wrong = true;
	x->reached = 0;
	pthread_cond_signal(&x->kick);
	pthread_mutex_unlock(&x->mutex);
}

/* --- Finding --- */

/* The newest entries so far. Room for twice as many as are asked for: sorted whenever it is full. */
struct collection {
	struct history_entry *v; /* heap */
	size_t n, wanted;
	uint64_t floor; /* no older revision is wanted any more */
};

static int newest_first(const void *a, const void *b)
{
	const struct history_entry *x = a, *y = b;

	return x->revision > y->revision ? -1 : x->revision < y->revision;
}

static void settle(struct collection *c)
{
	size_t n = 0;

	qsort(c->v, c->n, sizeof *c->v, newest_first);
	for (size_t i = 0; i < c->n && n < c->wanted; i++)
		if (n == 0 || c->v[i].revision != c->v[n - 1].revision)
			c->v[n++] = c->v[i];
	c->n = n;
	if (n == c->wanted)
		c->floor = c->v[n - 1].revision;
}

static void collect(void *ctx, const struct history_entry *e)
{
	struct collection *c = ctx;

	if (e->revision <= c->floor || (c->n && c->v[c->n - 1].revision == e->revision))
		return;
	c->v[c->n++] = *e;
	if (c->n == KEEP_SORTED * c->wanted)
		settle(c);
}

/* False: there is no tail for revisions below w->before. */
static bool find_in_tail(struct history_index *x, const struct history_window *w, struct collection *c, uint64_t *from,
			 uint64_t *work)
{
	const struct subject *s;
	bool is_there;

	pthread_rwlock_rdlock(&x->lock);
	is_there = x->tail.first < w->before && x->tail.last >= x->tail.first;
	*from = x->tail.first;
	s = is_there ? subject_find(&x->tail, w->subject) : NULL;
	for (size_t i = s ? s->n : 0; i > 0 && s->v[i - 1].revision > c->floor; i--) {
		*work += sizeof(uint64_t);
		if (history_overlaps(&s->v[i - 1], w))
			collect(c, &s->v[i - 1]);
	}
	pthread_rwlock_unlock(&x->lock);
	return is_there;
}

enum pw_status history_index_find(struct history_index *x, const struct history_window *window, uint64_t most,
				  struct history_entry *out, size_t n, size_t *found, uint64_t *left, uint64_t *work,
				  struct pw_err *err)
{
	struct collection c = { .wanted = n, .v = malloc(KEEP_SORTED * n * sizeof *c.v) };
	struct history_window w = *window;
	enum pw_status st = PW_OK;
	uint64_t from;

	*found = 0;
	if (!c.v)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while reading history");
	if (find_in_tail(x, &w, &c, &from, work))
		w.before = from;
	settle(&c);
	while (st == PW_OK && c.n < n && *work < most) {
		st = history_find(x->history, &w, collect, &c, &from, work, err);
		if (st == PW_OK) {
			w.before = from;
			settle(&c);
		}
	}
	*left = st == PW_NOT_FOUND && c.n < n ? 0 : w.before;
	if (c.n == n)
		*left = c.v[n - 1].revision;
	if (st == PW_OK || st == PW_NOT_FOUND) {
		memcpy(out, c.v, c.n * sizeof *out);
		*found = c.n;
		st = PW_OK;
	}
	free(c.v);
	return st;
}

/* --- Life --- */

enum pw_status history_index_start(struct store *s, size_t tail_entries, struct history_index **out, struct pw_err *err)
{
	struct history_index *x = calloc(1, sizeof *x);
	pthread_condattr_t monotonic;
	uint64_t reached = 0;
	enum pw_status st;
	int e;

	if (!x)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while starting");
	x->store = s;
	x->tail_entries = tail_entries;
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_rwlock_init(&x->lock, NULL);
	pthread_mutex_init(&x->mutex, NULL);
	pthread_cond_init(&x->kick, &monotonic);
	pthread_cond_init(&x->moved, &monotonic);
	pthread_condattr_destroy(&monotonic);
	st = history_open(s, &x->history, &reached, err);
	if (st != PW_OK) {
		history_index_stop(x);
		return st;
	}
	x->tail.last = x->reached = reached;
	x->tail.first = reached + 1;
	e = pthread_create(&x->thread, NULL, index_main, x);
	x->runs = e == 0;
	if (e) {
		history_index_stop(x);
		return pw_fail(err, PW_NO_MEMORY, "starting the thread of history's index: %s", strerror(e));
	}
	*out = x;
	return PW_OK;
}

void history_index_stop(struct history_index *x)
{
	if (!x)
		return;
	pthread_mutex_lock(&x->mutex);
	x->stop = true;
	pthread_cond_broadcast(&x->kick);
	pthread_cond_broadcast(&x->moved);
	pthread_mutex_unlock(&x->mutex);
	if (x->runs)
		pthread_join(x->thread, NULL);
	tail_clear(&x->tail);
	history_close(x->history);
	pthread_cond_destroy(&x->kick);
	pthread_cond_destroy(&x->moved);
	pthread_mutex_destroy(&x->mutex);
	pthread_rwlock_destroy(&x->lock);
	free(x);
}
