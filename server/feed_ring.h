/* server/feed_ring.h
 *
 * The newest part of the journal in memory, as the feed shows it: whoever keeps up with the feed is answered from here,
 * and reads nothing from the disk. Large records are here as their briefs (record.h).
 */
#ifndef PW_SERVER_FEED_RING_H
#define PW_SERVER_FEED_RING_H
#include "server/record.h"

struct feed_ring;
struct feed_ring *feed_ring_new(size_t bytes); /* NULL: out of memory */
void feed_ring_free(struct feed_ring *g);      /* NULL is fine */

/* Adds a committed group's row, made of these records; rows follow each other. Out of memory it forgets all it has.
 * The writer's thread, before anybody is told that the row is durable. */
void feed_ring_add(struct feed_ring *g, const struct journal_row *row, const struct records *records);
/* As store_read, of rows to be read for the feed. False, and nothing was read: they are not all here. Any thread. */
bool feed_ring_read(struct feed_ring *g, uint64_t after, journal_fn fn, void *ctx) PW_MUST_CHECK;

#endif
