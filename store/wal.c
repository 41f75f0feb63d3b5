/*
 * How the WAL files stay small. SQLite starts a WAL over with the first write that finds all of it moved into the
 * database and nobody reading in it, and cuts the file to its size limit then. A busy writer always adds more. So: a
 * thread of its own moves what is committed (passively: nobody waits for it), until little is left; moves that with the
 * turn, while our own readers, who read in short pieces, hold still; and makes a tiny commit, which starts it over.
 */
#include <limits.h>
#include <stdio.h>
#include <sys/stat.h>
#include <time.h>

#include "store/inner.h"

#define STILL_MS  20   /* so long readers hold still at most */
#define NOT_AGAIN 1000 /* and not again before so many milliseconds: it may be somebody else who reads */
#define LOOK_US   500
#define TRIES     8

int64_t wal_ready_bytes = 8 << 20;

/*
 * A flush into blocks that the file already has costs less than half of one that makes it grow. What lies behind the
 * last frame is never read; that it cannot be written now is no reason not to start.
 */
static void ready_wal(struct db *db)
{
	static const char zeros[65536]; /* the unix VFS writes less than 128 KiB at once */
	sqlite3_file *wal = NULL;
	sqlite3_int64 at = 0;
	bool ok = sqlite3_file_control(db->h, "main", SQLITE_FCNTL_JOURNAL_POINTER, &wal) == SQLITE_OK && wal &&
		  wal->pMethods && wal->pMethods->xFileSize(wal, &at) == SQLITE_OK;

	for (; ok && at < wal_ready_bytes; at += (sqlite3_int64)sizeof zeros)
		ok = wal->pMethods->xWrite(wal, zeros, (int)sizeof zeros, at) == SQLITE_OK;
	if (ok)
		wal->pMethods->xSync(wal, SQLITE_SYNC_NORMAL | SQLITE_SYNC_DATAONLY);
}

static int64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (int64_t)t.tv_sec * 1000 + t.tv_nsec / 1000000;
}

static int note_wal(void *ctx, sqlite3 *h, const char *name, int pages)
{
	struct store *s = ctx;

	(void)h;
	(void)name;
	atomic_store(&s->wal_pages, (uint64_t)pages);
	return SQLITE_OK;
}

void wal_attend(struct store *s)
{
	sqlite3_wal_hook(s->writer.h, note_wal, s);
	ready_wal(&s->writer);
}

static uint64_t wal_size(const struct store *s, const char *file)
{
	char path[PATH_MAX];
	struct stat st;

	if ((size_t)snprintf(path, sizeof path, "%s/%s-wal", s->dir, file) >= sizeof path || stat(path, &st) != 0)
		return 0;
	return (uint64_t)st.st_size;
}

void store_wal_sizes(const struct store *s, struct wal_sizes *out)
{
	*out = (struct wal_sizes){ wal_size(s, JOURNAL_FILE), wal_size(s, LEDGER_FILE), WAL_LIMIT };
}

/* What a passive checkpoint has left. Somebody who is at it already, with sqlite3, leaves all. */
static enum pw_status move(struct store *s, uint64_t *left, struct pw_err *err)
{
	int in_wal = 0, in_file = 0, rc;

	rc = sqlite3_wal_checkpoint_v2(s->mover.h, NULL, SQLITE_CHECKPOINT_PASSIVE, &in_wal, &in_file);
	if (rc != SQLITE_OK && rc != SQLITE_BUSY)
		return db_fail(&s->mover, "moving the WAL", err);
	*left = rc == SQLITE_OK ? (uint64_t)(in_wal - in_file) : UINT64_MAX;
	return PW_OK;
}

/* What is left is moved with the turn, and then nothing is: the commit that follows starts the WAL over, unless
 * somebody else reads in it. */
static enum pw_status finish(struct store *s, uint64_t *left, struct pw_err *err)
{
	enum pw_status st;

	turn_take(&s->turn);
	st = move(s, left, err);
	if (st == PW_OK && *left == 0)
		st = writer_probe(s, err);
	turn_give(&s->turn);
	return st;
}

static enum pw_status start_over(struct store *s, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	uint64_t left;

	if (now_ms() < s->wal_not_before)
		return PW_OK;
	readers_stop(s, STILL_MS);
	st = finish(s, &left, err);
	readers_go(s);
	if (atomic_load(&s->wal_pages) >= WAL_HIGH)
		s->wal_not_before = now_ms() + NOT_AGAIN;
	return st;
}

enum pw_status store_wal_checkpoint(struct store *s, struct pw_err *err)
{
	uint64_t left = UINT64_MAX, before, pages;
	enum pw_status st = PW_OK;

	do {
		before = left;
		st = move(s, &left, err);
	} while (st == PW_OK && left > WAL_TAIL && left < before);
	pages = atomic_load(&s->wal_pages);
	if (st != PW_OK || store_in_doubt(s) || (pages < WAL_HIGH && wal_size(s, JOURNAL_FILE) <= WAL_LIMIT))
		return st;
	return left <= WAL_TAIL || pages > WAL_TOO_HIGH ? start_over(s, err) : PW_OK;
}

/* Nobody else writes this file, so that it may be cut at once; a reader of it is not waited for. */
enum pw_status store_wal_checkpoint_picture(struct store *s, struct pw_err *err)
{
	bool high = wal_size(s, LEDGER_FILE) > WAL_LIMIT;
	int rc;

	rc = sqlite3_wal_checkpoint_v2(s->painter.h, NULL, SQLITE_CHECKPOINT_PASSIVE, NULL, NULL);
	if (rc == SQLITE_OK && high) {
		sqlite3_busy_timeout(s->painter.h, 0);
		rc = sqlite3_wal_checkpoint_v2(s->painter.h, NULL, SQLITE_CHECKPOINT_TRUNCATE, NULL, NULL);
		sqlite3_busy_timeout(s->painter.h, BUSY_MS);
	}
	if (rc != SQLITE_OK && rc != SQLITE_BUSY)
		return db_fail(&s->painter, "moving the WAL", err);
	return PW_OK;
}
