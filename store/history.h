/* store/history.h
 *
 * history.db: which records of the journal touched which pages, so that what happened to one is found without reading
 * the journal. It is made from the journal, behind it, and holds nothing else: a damaged one is thrown away and made
 * anew.
 *
 * A subject (a VM, a pool of frames) has entries: a run of pages, and the record that touched it. Entries come in
 * segments, each of a range of revisions, written once and dropped whole when the journal is trimmed. Within a segment
 * a subject's entries lie by level (the run's length, rounded up to a power of two) and first page, packed: at level L
 * the runs that hold a page begin at most 2^L - 1 pages before it, so a page is found by one short scan a level.
 */
#ifndef PW_STORE_HISTORY_H
#define PW_STORE_HISTORY_H
#include "store/store.h"

#define HISTORY_SUBJECT 16 /* bytes of a subject's key */

struct history_entry {
	uint64_t first, count; /* pages; below 2^40, count <= 2^40 */
	uint64_t revision;     /* of the record, and where in its row that begins: */
	uint32_t at;
};
struct history_list { /* of one subject */
	uint8_t subject[HISTORY_SUBJECT];
	struct history_entry *v; /* borrowed; gets sorted */
	size_t n;
};

struct history;
/*
 * Opens it beside the store's files, or makes it anew if it is damaged, of another journal or not there. *reached: the
 * journal up to that revision is in it; 0: nothing. s is borrowed.
 */
enum pw_status history_open(struct store *s, struct history **out, uint64_t *reached, struct pw_err *err) PW_MUST_CHECK;
void history_close(struct history *h);
/* Something of it is damaged: forgets all. */
enum pw_status history_reset(struct history *h, struct pw_err *err) PW_MUST_CHECK;

/* Adds a segment: revisions first..last, which must end a row. All or nothing. One thread adds, trims and resets. */
enum pw_status history_add(struct history *h, uint64_t first, uint64_t last, struct history_list *lists, size_t n,
			   struct pw_err *err) PW_MUST_CHECK;
/* Drops one segment that has nothing from revision `oldest` on. PW_NOT_FOUND: there is none. */
enum pw_status history_trim(struct history *h, uint64_t oldest, struct pw_err *err) PW_MUST_CHECK;

struct history_window {
	uint8_t subject[HISTORY_SUBJECT];
	uint64_t first, count; /* pages */
	uint64_t before;       /* revisions below */
};
typedef void (*history_fn)(void *ctx, const struct history_entry *e);
/*
 * Calls fn for the entries that overlap the window, in no order, of the newest segment that has revisions before it.
 * *from: the segment's first revision. *work grows by the bytes that were looked at, and some for each question.
 * PW_NOT_FOUND: there is no such segment. Any thread.
 */
enum pw_status history_find(struct history *h, const struct history_window *w, history_fn fn, void *ctx, uint64_t *from,
			    uint64_t *work, struct pw_err *err) PW_MUST_CHECK;

/* Is the run one of the window's? */
bool history_overlaps(const struct history_entry *e, const struct history_window *w);

#endif
