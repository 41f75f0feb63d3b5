/* server/record.h
 *
 * What a journal row holds: records, one a revision, in the order in which they were decided. Two kinds:
 *
 *   item   an accepted transition item, in a compact binary form (it may name 65536 runs); an architecture's
 *          operation by its name
 *   event  anything else, as the JSON object that the event feed shows; what redoing it needs is in it
 *
 * A large one of either kind is led by its brief, the JSON object that the feed shows in its place: then the feed costs
 * the same whatever was recorded. (Journals of older programs have large ones without.)
 *
 * Also how a record looks in the feed: {"revision","time", then the event's own members}.
 */
#ifndef PW_SERVER_RECORD_H
#define PW_SERVER_RECORD_H
#include "api/jsonw.h"
#include "engine/ledger.h"
#include "store/store.h"

/* The records of the group that is being put together. Errors stick, as in jsonw. */
struct record_whole { /* a large one: where it begins, and where what its brief stands for begins and ends */
	size_t head, at, ends;
};
struct records {
	char *data; /* heap */
	size_t used, size;
	bool failed;
	size_t brief_from;          /* bytes in the feed from which on a record is large; 0: none is */
	struct record_whole *whole; /* heap; in order */
	size_t whole_count, whole_capacity;
};
void records_release(struct records *r);
void records_clear(struct records *r);            /* for the next group; gives much memory back */
void records_cut(struct records *r, size_t used); /* takes back what was put since */
/* The records without what briefs stand for, to be read for the feed alone: *size bytes, at most r->used. `out` has
 * room for those. */
void records_brief(const struct records *r, char *out, size_t *size);

struct record_item {
	struct pw_uuid host;
	const char *actor;
	struct item item;
};
void record_item(struct records *r, const struct record_item *it);
/* Takes the text of w, one JSON object that begins with its "type". w is released. */
void record_event(struct records *r, struct jsonw *w);

/* One record of a row, as read. What it points to lives in the row, and in `runs` until the next one is read. */
struct record {
	uint64_t revision;
	int64_t time_ms;
	bool is_item;
	struct record_item item;
	const char *json; /* of an event; not NUL-terminated */
	size_t json_len;
	const char *brief; /* of a large one; not NUL-terminated. Read for the feed there is nothing else of it */
	size_t brief_len;
};
struct record_reader {
	const struct journal_row *row;
	size_t at;
	uint64_t revision;
	struct gfn_run *runs; /* heap */
	size_t run_capacity;
	bool for_feed; /* to be set after init: large ones are read as their briefs */
	char pool[POOL_NAME_MAX];
	char actor[256];
};
void record_read_init(struct record_reader *rd, const struct journal_row *row);
void record_read_release(struct record_reader *rd);
/* PW_OK, PW_NOT_FOUND at the end, PW_STORAGE for a damaged row, PW_NO_MEMORY. */
enum pw_status record_next(struct record_reader *rd, struct record *out, struct pw_err *err) PW_MUST_CHECK;

/* Writes the record's members and leaves the object open, for more of them. */
void record_begin(struct jsonw *w, const struct record *rec);
/* Whose host's it is; false: of none. */
bool record_host(const struct record *rec, struct pw_uuid *out) PW_MUST_CHECK;
bool event_host(const char *json, size_t len, struct pw_uuid *out) PW_MUST_CHECK; /* the same of an event's text */

/* As the feed shows it: without the private part (a hash) of a new token. */
void record_write(struct jsonw *w, const struct record *rec);
/* The same; if that is more than some `most` bytes (0: no bound), its brief and where to find all of it. */
void record_write_brief(struct jsonw *w, const struct record *rec, size_t most);

#endif
