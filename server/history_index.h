/* server/history_index.h
 *
 * Follows the journal with a thread of its own and tells which records touched which pages. The newest are in memory;
 * when they are many they become a segment of history.db (store/history.h). It lags behind the journal a little, and
 * much while it is made anew: what it has not reached yet, the reader looks for in the journal.
 */
#ifndef PW_SERVER_HISTORY_INDEX_H
#define PW_SERVER_HISTORY_INDEX_H
#include "server/record.h"
#include "store/history.h"

struct history_index;

/* s is borrowed. What is damaged is made anew, in the background. */
#define HISTORY_TAIL (1 << 19) /* entries that are kept in memory before they become a segment */
enum pw_status history_index_start(struct store *s, size_t tail_entries, struct history_index **out,
				   struct pw_err *err) PW_MUST_CHECK;
void history_index_stop(struct history_index *x); /* NULL is fine */
/* The revision up to which it has followed. Waits up to wait_ms for it to come to `wanted`. */
uint64_t history_index_reached(struct history_index *x, uint64_t wanted, unsigned wait_ms);

/* The subjects of entries. */
void history_of_vm(const struct pw_uuid *vm, uint8_t subject[HISTORY_SUBJECT]);
/* host: of a local pool; shared pools have none (nil). */
void history_of_frames(const struct pw_uuid *host, const char *pool, uint8_t subject[HISTORY_SUBJECT]);

/*
 * The newest entries of a window, at most n of them, one a revision, newest first; only up to what was reached.
 * *left: revisions below it have not been looked at; 0: all was. It gives up when *work (bytes looked at) passes
 * `most`.
 */
enum pw_status history_index_find(struct history_index *x, const struct history_window *w, uint64_t most,
				  struct history_entry *out, size_t n, size_t *found, uint64_t *left, uint64_t *work,
				  struct pw_err *err) PW_MUST_CHECK;
/* What it said of a record is not so: it is thrown away and made anew. */
void history_index_is_wrong(struct history_index *x, const char *why);

/* Is it an event of a type that tells of a VM's pages as a whole? */
bool history_is_told(const char *json, size_t len);

#endif
