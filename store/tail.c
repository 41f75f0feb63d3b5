/*
 * The tail of a log, in SQLite's documented format (https://sqlite.org/walformat.html): the index in shared memory says
 * where the last commit ends, and by which salt a frame belongs to this generation of the log. All is done in place and
 * within the file's size, so that a full disk does not matter. Nothing before the tail is ever changed, and nothing at
 * all without the write lock.
 */
#include "store/tail.h"

#include <string.h>

#define INDEX_VERSION 3007000
#define INDEX_REGION  32768 /* bytes of the index that are mapped at once */
#define LOG_HEADER    32
#define LOG_SALT      16 /* where in the header */
#define FRAME_HEADER  24
#define PIECE         65536 /* the unix VFS writes less than 128 KiB at once */

struct index_header { /* in the machine's byte order */
	uint32_t version, unused, change;
	uint8_t is_init, big_endian;
	uint16_t page_size; /* 0: there was no commit since this index was made */
	uint32_t frames;    /* up to the last commit */
	uint32_t pages, checksum[2];
	uint8_t salt[8];
	uint32_t header_checksum[2];
};
_Static_assert(sizeof(struct index_header) == 48, "SQLite's layout");

struct tail {
	sqlite3_file *log;
	sqlite3_int64 begins, size; /* bytes: behind the last commit, and of the file */
	sqlite3_int64 frame;        /* bytes of one */
	uint8_t salt[8];
};

static bool read_index(struct db *db, struct index_header *out)
{
	sqlite3_file *f = NULL;
	volatile void *index = NULL;

	if (sqlite3_file_control(db->h, "main", SQLITE_FCNTL_FILE_POINTER, &f) != SQLITE_OK || !f->pMethods ||
	    f->pMethods->iVersion < 2 || f->pMethods->xShmMap(f, 0, INDEX_REGION, 0, &index) != SQLITE_OK || !index)
		return false;
	memcpy(out, (const void *)(uintptr_t)index, sizeof *out); /* it stands still under the write lock */
	return out->version == INDEX_VERSION && out->is_init;
}

/* By which salt a start would know the frames of the tail. The first commit of an index makes up one, and puts it into
 * the index only at its end. */
static bool tail_salt(struct tail *t, const struct index_header *h)
{
	memcpy(t->salt, h->salt, sizeof t->salt);
	return h->page_size || t->size < LOG_HEADER ||
	       t->log->pMethods->xRead(t->log, t->salt, sizeof t->salt, LOG_SALT) == SQLITE_OK;
}

static bool tail_find(struct db *db, struct tail *t)
{
	struct index_header h;
	int64_t page_size;

	t->log = NULL;
	if (!read_index(db, &h) || db_number(db, "PRAGMA page_size", &page_size, NULL) != PW_OK ||
	    sqlite3_file_control(db->h, "main", SQLITE_FCNTL_JOURNAL_POINTER, &t->log) != SQLITE_OK || !t->log ||
	    !t->log->pMethods || t->log->pMethods->xFileSize(t->log, &t->size) != SQLITE_OK)
		return false;
	t->frame = FRAME_HEADER + page_size;
	t->begins = h.frames ? LOG_HEADER + t->frame * h.frames : 0;
	return tail_salt(t, &h);
}

/* Where frame n of the tail begins, from 1; -1: the file does not have all of it. */
static sqlite3_int64 frame_at(const struct tail *t, uint64_t n)
{
	sqlite3_int64 at = (t->begins ? t->begins : LOG_HEADER) + t->frame * (sqlite3_int64)(n - 1);

	return at + t->frame <= t->size ? at : -1;
}

/* *last: the last frame that could end a transaction, if the frames before it were right; 0: none. */
static bool tail_scan(const struct tail *t, uint64_t *last)
{
	static const uint8_t no_commit[4];
	uint8_t header[FRAME_HEADER];
	sqlite3_int64 at;

	*last = 0;
	for (uint64_t n = 1; (at = frame_at(t, n)) >= 0; n++) {
		if (t->log->pMethods->xRead(t->log, header, sizeof header, at) != SQLITE_OK)
			return false;
		if (memcmp(header + 4, no_commit, sizeof no_commit) != 0 &&
		    memcmp(header + 8, t->salt, sizeof t->salt) == 0)
			*last = n;
	}
	return true;
}

static bool tail_sync(const struct tail *t)
{
	return t->log->pMethods->xSync(t->log, SQLITE_SYNC_NORMAL | SQLITE_SYNC_DATAONLY) == SQLITE_OK;
}

/* Every frame, not the last one alone: a later transaction that begins alike must not bring the rest to life. */
static bool tail_wipe(const struct tail *t, uint64_t last)
{
	static const uint8_t zeros[FRAME_HEADER];
	sqlite3_int64 at;

	for (uint64_t n = 1; n <= last && (at = frame_at(t, n)) >= 0; n++)
		if (t->log->pMethods->xWrite(t->log, zeros, sizeof zeros, at) != SQLITE_OK)
			return false;
	return tail_sync(t);
}

bool tail_void(struct db *db)
{
	struct tail t;
	uint64_t last;

	if (!tail_find(db, &t) || !tail_scan(&t, &last))
		return false;
	return !last ||
	       tail_wipe(&t, last); /* without a frame that ends the transaction there is nothing to take back */
}

/* Writes what is there once more, up to `ends`, and zeros behind it. */
static bool write_again(const struct tail *t)
{
	static const uint8_t zeros[PIECE];
	uint8_t piece[PIECE];
	sqlite3_int64 n;

	for (sqlite3_int64 at = 0; at < t->size; at += n) {
		sqlite3_int64 ends = at < t->begins ? t->begins : t->size;

		n = ends - at < PIECE ? ends - at : PIECE;
		if (at < t->begins && t->log->pMethods->xRead(t->log, piece, (int)n, at) != SQLITE_OK)
			return false;
		if (t->log->pMethods->xWrite(t->log, at < t->begins ? piece : zeros, (int)n, at) != SQLITE_OK)
			return false;
	}
	return t->size == 0 || tail_sync(t);
}

enum pw_status tail_adopt(struct db *db, struct pw_err *err)
{
	struct tail t;
	enum pw_status st = db_exec(db, "BEGIN IMMEDIATE", err);

	if (st == PW_OK && (!tail_find(db, &t) || !write_again(&t)))
		st = pw_fail(err, PW_STORAGE,
			     "%s-wal: what the last run left in it cannot be made durable: the disk refuses", db->file);
	db_rollback(db);
	return st;
}
