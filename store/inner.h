/* store/inner.h
 *
 * What the files of store/ share about an open store. Nobody outside of store/ includes this.
 *
 * Connections, and who uses them:
 *   writer   journal.db: groups, trimming, probes; whoever has the turn
 *   readers  journal.db: any thread, one reader at a time each (reader_take .. reader_give)
 *   mover    journal.db: checkpoints of the WAL; the upkeep thread
 *   painter  ledger.db: the painter thread
 *
 * Locks, in this order: trim_lock, then the turn. readers_lock is held for a moment, with nothing taken under it.
 */
#ifndef PW_STORE_INNER_H
#define PW_STORE_INNER_H
#include "store/checksum.h"
#include "store/db.h"
#include "store/store.h"

#include <pthread.h>
#include <stdatomic.h>

#define JOURNAL_FILE "journal.db"
#define LEDGER_FILE  "ledger.db"
#define LOCK_FILE    "lock"
#define READERS      4
#define JOURNAL_PAGE 4096 /* bytes; 8192 and 16384 commit no faster, and write up to twice as much WAL */

#define WAL_LIMIT    67108864 /* bytes to which a WAL's file goes back when it starts over */
/* A long read is made in pieces: so many rows, or bytes of records, in one transaction. */
#define READ_ROWS    128
#define READ_BYTES   ((size_t)1 << 20)

/* Pages of the journal's WAL. */
#define WAL_HIGH     (WAL_LIMIT / 2 / JOURNAL_PAGE) /* from here on it is to start over */
#define WAL_TAIL     ((2u << 20) / JOURNAL_PAGE)    /* as much is moved while the writer waits without being noticed */
#define WAL_TOO_HIGH (2 * WAL_LIMIT / JOURNAL_PAGE) /* from here on the writer waits, however much is left */

/* A fair lock: who asks first is served first, so that a busy writer does not starve the trimmer. */
struct turn {
	pthread_mutex_t lock;
	pthread_cond_t moved;
	uint64_t next, serving;
};
void turn_take(struct turn *t);
void turn_give(struct turn *t);

/* A place in the journal: just behind the row that ends with `revision`. */
struct place {
	uint64_t revision;
	uint64_t number, ends; /* rows and bytes of records up to here, ever */
	uint8_t hash[STORE_HASH];
};

struct reader {
	struct db db;
	struct stmts journal, violation, upkeep;
	bool taken;
};

struct store {
	char *dir;
	int lock_fd;             /* flock on dir/lock */
	_Atomic uint64_t *moves; /* borrowed; see store_open_telling */

	struct db writer;
	struct stmts group, answer, violation, trim;
	struct turn turn;
	_Atomic uint64_t group_of; /* whose group it is, who has the turn: mine(); 0: there is none */
	bool failed;               /* under the turn */
	_Atomic bool in_doubt;     /* a commit failed, and may have happened all the same; changed under the turn */
	struct place head, newest; /* committed; with what the open group appended. under the turn */

	struct db mover;
	_Atomic uint64_t wal_pages; /* in the WAL after the last commit */
	int64_t wal_not_before;     /* (monotonic, ms) it is not made to start over again. the mover's */

	_Atomic int64_t wal_still; /* until when (monotonic, ms) readers begin no piece; 0: they may */

	pthread_mutex_t readers_lock;
	pthread_cond_t reader_free; /* CLOCK_MONOTONIC; also: nobody reads, or readers may go on */
	bool readers_stopped;
	struct reader readers[READERS];

	struct db painter;
	struct stmts save, load;
	_Atomic uint64_t painted; /* the picture's revision */
	struct sums sums;         /* of the painter's tables, if sealed */
	struct sums sums_before;  /* ... before the picture that is being saved */
	bool painting;            /* parts of one are saved, and not committed */
	bool sealed;              /* the sums are right: all rows were written under this schema */
	char lost[256];           /* why the picture that was there was put aside; "": it was not */

	pthread_mutex_t trim_lock; /* while held, no row leaves the journal */

	/* what store_span tells */
	_Atomic uint64_t oldest, newest_revision, rows, bytes;
	struct place trimmed; /* under the turn */
};

/* For one short read: a long one takes a reader anew for each piece, so that the WAL can start over in between. */
struct reader *reader_take(struct store *s);
void reader_give(struct store *s, struct reader *r);
/* From now on nobody gets a reader; who has one is waited for, not longer than this. */
void readers_stop(struct store *s, int64_t wait_ms);
void readers_go(struct store *s);

/* Makes memory tell what was committed: the head, or the place up to which rows were trimmed. Under the turn. */
void span_publish(struct store *s);

/* One connection to the journal, for the writer (synchronous=FULL) and for the others. */
enum pw_status journal_connect(const char *dir, int flags, struct db *out, struct pw_err *err) PW_MUST_CHECK;

/* Makes the names in a directory durable. */
enum pw_status dir_sync(const char *dir, struct pw_err *err) PW_MUST_CHECK;

/* A transaction on the writer's connection. Under the turn. PW_UNKNOWN: the store is in doubt. */
enum pw_status writer_begin(struct store *s, struct pw_err *err) PW_MUST_CHECK;
/* On failure it was rolled back, and surely did not happen; but for PW_UNKNOWN: from then on the store is in doubt. */
enum pw_status writer_commit(struct store *s, struct pw_err *err) PW_MUST_CHECK;
/* Is there a group that still can be committed? PW_CONFLICT if not. */
enum pw_status group_check(const struct store *s, struct pw_err *err) PW_MUST_CHECK;
/* Passes on the status of a part of a group, and remembers a failure. */
enum pw_status group_result(struct store *s, enum pw_status st);
/* wal.c: watches the journal's WAL from here on, and writes the blocks of its file before they are needed. */
void wal_attend(struct store *s);
extern int64_t wal_ready_bytes; /* so many of them; less in a test that opens thousands of stores */
/* The tiny write of store_probe. Under the turn. */
enum pw_status writer_probe(struct store *s, struct pw_err *err) PW_MUST_CHECK;

/* *out: what the hash chain says of this row behind `before`. */
void journal_hash(const uint8_t before[STORE_HASH], const struct journal_row *row, uint8_t out[STORE_HASH]);

/*
 * verify.c: the chain from the oldest row to the head: that no row is missing; and the hashes of all rows that are not
 * in the picture, and of the newest ones that hold so many bytes of records.
 */
enum pw_status journal_check(struct store *s, uint64_t hashed, struct pw_err *err) PW_MUST_CHECK;
/* Loads head and trimmed from the tables. */
enum pw_status journal_load_span(struct store *s, struct pw_err *err) PW_MUST_CHECK;
#define JOURNAL_HASH_AT                                                                                   \
	"SELECT hash FROM (SELECT last, hash FROM journal WHERE first <= ?1 ORDER BY first DESC LIMIT 1)" \
	" WHERE last = ?1 UNION ALL SELECT hash FROM chain WHERE revision = ?1"
/* The hash of the row that ends with a revision; zeros if there is no such row. Any thread but the writer's. */
enum pw_status journal_hash_at(struct store *s, uint64_t revision, uint8_t out[STORE_HASH],
			       struct pw_err *err) PW_MUST_CHECK;
/* Loads the picture's revision. */
enum pw_status picture_load_revision(struct store *s, struct pw_err *err) PW_MUST_CHECK;

extern const struct sql_table group_sql, journal_read_sql, answer_sql, violation_write_sql, violation_read_sql,
	trim_sql, upkeep_read_sql, picture_save_sql, picture_load_sql;

#endif
