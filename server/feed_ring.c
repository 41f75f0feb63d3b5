/* Rows in a ring, each with a count of those who read it, so that nobody copies one and the lock is held for moments.
 */
#include "server/feed_ring.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

enum { ROWS = 1 << 16, AT_ONCE = 64 };

struct held {
	_Atomic unsigned holders;
	struct journal_row row;
	char records[];
};

struct feed_ring {
	size_t most, bytes;
	pthread_mutex_t lock;
	struct held *rows[ROWS];
	uint64_t begins, ends; /* numbers of rows that are here; each at its number modulo ROWS */
};

struct feed_ring *feed_ring_new(size_t bytes)
{
	struct feed_ring *g = calloc(1, sizeof *g);

	if (!g)
		return NULL;
	g->most = bytes;
	pthread_mutex_init(&g->lock, NULL);
	return g;
}

static void let_go(struct held *h)
{
	if (atomic_fetch_sub(&h->holders, 1) == 1)
		free(h);
}

/* With the lock. */
static void drop_oldest(struct feed_ring *g)
{
	struct held *h = g->rows[g->begins++ % ROWS];

	g->bytes -= sizeof *h + h->row.size;
	let_go(h);
}

void feed_ring_free(struct feed_ring *g)
{
	if (!g)
		return;
	while (g->begins < g->ends)
		drop_oldest(g);
	pthread_mutex_destroy(&g->lock);
	free(g);
}

static struct held *hold(const struct journal_row *row, const struct records *records)
{
	size_t room = records->used;
	struct held *h;

	for (size_t i = 0; i < records->whole_count; i++)
		room -= records->whole[i].ends - records->whole[i].at;
	h = malloc(sizeof *h + room);
	if (!h)
		return NULL;
	records_brief(records, h->records, &room);
	h->row = *row;
	h->row.records = h->records;
	h->row.size = room;
	atomic_init(&h->holders, 1);
	return h;
}

void feed_ring_add(struct feed_ring *g, const struct journal_row *row, const struct records *records)
{
	struct held *h = hold(row, records);

	pthread_mutex_lock(&g->lock);
	while (g->begins < g->ends && (!h || g->ends - g->begins == ROWS || g->bytes + h->row.size > g->most))
		drop_oldest(g);
	if (h && h->row.size <= g->most) {
		g->rows[g->ends++ % ROWS] = h;
		g->bytes += sizeof *h + h->row.size;
		h = NULL;
	}
	pthread_mutex_unlock(&g->lock);
	free(h);
}

/* The number of the row with the revision behind `after`. With the lock. False: it is not here. */
static bool find(const struct feed_ring *g, uint64_t after, uint64_t *out)
{
	uint64_t lo = g->begins, hi = g->ends;

	if (lo == hi || g->rows[lo % ROWS]->row.first > after + 1 || g->rows[(hi - 1) % ROWS]->row.last <= after)
		return false;
	while (hi - lo > 1) {
		uint64_t mid = lo + (hi - lo) / 2;

		if (g->rows[mid % ROWS]->row.first <= after + 1)
			lo = mid;
		else
			hi = mid;
	}
	*out = lo;
	return true;
}

bool feed_ring_read(struct feed_ring *g, uint64_t after, journal_fn fn, void *ctx)
{
	struct held *rows[AT_ONCE];
	bool go = true, any = false;
	uint64_t at;
	size_t n;

	while (go) {
		n = 0;
		pthread_mutex_lock(&g->lock);
		if (find(g, after, &at))
			for (; n < AT_ONCE && at < g->ends; at++) {
				rows[n] = g->rows[at % ROWS];
				atomic_fetch_add(&rows[n++]->holders, 1);
			}
		pthread_mutex_unlock(&g->lock);
		any |= n > 0;
		for (size_t i = 0; i < n; i++) {
			go = go && fn(ctx, &rows[i]->row);
			after = rows[i]->row.last;
			let_go(rows[i]);
		}
		go = go && n == AT_ONCE;
	}
	return any;
}
