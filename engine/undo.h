/* engine/undo.h
 *
 * A log of how to take changes back, in reverse (law L6). Plain data is undone by its old bytes; everything else by a
 * function. Space is reserved before a change, so that recording never fails and rolling back never allocates.
 */
#ifndef PW_ENGINE_UNDO_H
#define PW_ENGINE_UNDO_H
#include "engine/mem.h"

typedef size_t undo_mark; /* a position in the log */

/* What to do when the change is taken back, or when it has become final. Either may be NULL. Neither may fail. */
struct undo_ops {
	void (*rollback)(void *ctx, const void *args);
	void (*commit)(void *ctx, const void *args);
};

#define UNDO_KEEP ((size_t)1 << 20) /* bytes of log that stay allocated between commits */
struct undo {
	struct pw_mem *mem; /* borrowed */
	unsigned char *log;
	size_t used, capacity; /* bytes */
};

void undo_init(struct undo *u, struct pw_mem *mem);
void undo_release(struct undo *u); /* without rolling back or committing */

/* Makes sure that `bytes` more of records fit: UNDO_RECORD(n) for each record with n bytes of arguments. */
#define UNDO_RECORD(n) (32 + (((n) + 15) & ~(size_t)15))
enum pw_status undo_reserve(struct undo *u, size_t bytes) PW_MUST_CHECK;

/* Records; space must have been reserved. args are copied (any size). */
void undo_push(struct undo *u, const struct undo_ops *ops, void *ctx, const void *args, size_t size);
/* Records the bytes at p as they are now: rolling back writes them there again. p must stay valid until commit. */
void undo_save(struct undo *u, void *p, size_t size);

undo_mark undo_here(const struct undo *u);
void undo_rollback(struct undo *u, undo_mark to); /* newest first */
void undo_rollback_last(struct undo *u);          /* the newest record; there must be one */
void undo_commit(struct undo *u);                 /* oldest first; the log is empty after */

#endif
