/* The newest rows in memory: what is there is complete and in order, what is not is said so, with readers beside. */
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#include "server/feed_ring.h"

static struct feed_ring *ring;
static uint64_t newest;
static _Atomic uint64_t published;

static void add(unsigned revisions, size_t size)
{
	struct records r = { .data = calloc(1, size + sizeof newest), .used = size + sizeof newest };
	struct journal_row row = { .first = newest + 1, .last = newest + revisions };

	cr_assert_not_null(r.data);
	newest += revisions;
	memcpy(r.data, &row.first, sizeof row.first);
	feed_ring_add(ring, &row, &r);
	atomic_store(&published, newest);
	free(r.data);
}

struct seen {
	uint64_t last;
	unsigned rows, stop_after;
	bool whole; /* no gap so far, and each row is what was put */
};

static bool see(void *ctx, const struct journal_row *row)
{
	struct seen *s = ctx;
	uint64_t first;

	memcpy(&first, row->records, sizeof first);
	s->whole &= first == row->first && (s->rows == 0 || row->first == s->last + 1);
	s->last = row->last;
	return ++s->rows != s->stop_after;
}

static struct seen read_from(uint64_t after, bool there)
{
	struct seen s = { .whole = true };

	cr_expect_eq(feed_ring_read(ring, after, see, &s), there, "after %" PRIu64, after);
	return s;
}

static void start(void)
{
	ring = feed_ring_new(1 << 20);
	cr_assert_not_null(ring);
}

static void finish(void)
{
	feed_ring_free(ring);
}
TestSuite(feed_ring, .init = start, .fini = finish, .timeout = 60);

Test(feed_ring, gives_what_follows_a_revision)
{
	struct seen s = { .whole = true, .stop_after = 3 };

	read_from(0, false);
	for (unsigned i = 0; i < 300; i++)
		add(1 + i % 3, 100);
	for (uint64_t after = 0; after < newest; after++) {
		struct seen all = read_from(after, true);

		cr_expect(all.whole && all.last == newest);
	}
	read_from(newest, false);
	cr_expect(feed_ring_read(ring, 0, see, &s));
	cr_expect_eq(s.rows, 3);
}

Test(feed_ring, forgets_the_oldest_past_its_bytes)
{
	uint64_t after = 0;
	struct seen s;

	for (unsigned i = 0; i < 300; i++)
		add(1, 10000);
	read_from(0, false);
	while (after < newest && !feed_ring_read(ring, after, see, &(struct seen){ .whole = true, .stop_after = 1 }))
		after++;
	s = read_from(after, true);
	cr_expect(s.whole && s.last == newest && s.rows >= 90 && s.rows <= 110, "%u rows", s.rows);
	add(1, 2 << 20);
	read_from(newest - 1, false);
	read_from(after, false);
	add(1, 10);
	cr_expect_eq(read_from(newest - 1, true).rows, 1);
}

static void *follow(void *arg)
{
	uint64_t after = 0;

	while (after < 20000) {
		struct seen s = { .whole = true, .last = after };

		if (feed_ring_read(ring, after, see, &s))
			cr_expect(s.whole);
		else
			s.last = atomic_load(&published);
		after = s.last;
	}
	return NULL;
}

Test(feed_ring, readers_and_the_writer_do_not_meet)
{
	pthread_t readers[3];

	for (size_t i = 0; i < PW_ARRAY_LEN(readers); i++)
		cr_assert_eq(pthread_create(&readers[i], NULL, follow, NULL), 0);
	while (newest < 20000)
		add(1 + newest % 2, newest % 5000);
	for (size_t i = 0; i < PW_ARRAY_LEN(readers); i++)
		pthread_join(readers[i], NULL);
}
