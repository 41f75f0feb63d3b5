#include "store/store.h"

#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <time.h>
#include <unistd.h>

#include "store/inner.h"
#include "store/schema.h"
#include "store/tail.h"

#define HASHED_AT_START ((uint64_t)256 << 20) /* bytes of the newest records; half a second */

#define TEXT_(x)        #x
#define TEXT_OF(x)      TEXT_(x)
static const char journal_setup[] = "PRAGMA page_size = " TEXT_OF(
	JOURNAL_PAGE) ";"
		      "PRAGMA journal_mode = WAL;"
		      "PRAGMA wal_autocheckpoint = 0;"
		      "PRAGMA secure_delete = OFF;"
		      "PRAGMA cache_size = -16384;"
		      "PRAGMA journal_size_limit = " TEXT_OF(WAL_LIMIT) ";"
									"PRAGMA synchronous = FULL;";
static const char ledger_setup[] = "PRAGMA journal_mode = WAL;"
				   "PRAGMA secure_delete = OFF;"
				   "PRAGMA cache_size = -65536;"
				   "PRAGMA journal_size_limit = " TEXT_OF(WAL_LIMIT) ";"
										     "PRAGMA foreign_keys = ON;"
										     "PRAGMA synchronous = FULL;";

void turn_take(struct turn *t)
{
	uint64_t mine;

	pthread_mutex_lock(&t->lock);
	mine = t->next++;
	while (t->serving != mine)
		pthread_cond_wait(&t->moved, &t->lock);
	pthread_mutex_unlock(&t->lock);
}

void turn_give(struct turn *t)
{
	pthread_mutex_lock(&t->lock);
	t->serving++;
	pthread_cond_broadcast(&t->moved);
	pthread_mutex_unlock(&t->lock);
}

static struct reader *free_reader(struct store *s)
{
	for (size_t i = 0; i < READERS && !s->readers_stopped; i++)
		if (!s->readers[i].taken)
			return &s->readers[i];
	return NULL;
}

static bool is_read(const struct store *s)
{
	for (size_t i = 0; i < READERS; i++)
		if (s->readers[i].taken)
			return true;
	return false;
}

struct reader *reader_take(struct store *s)
{
	struct reader *r;

	pthread_mutex_lock(&s->readers_lock);
	while (!(r = free_reader(s)))
		pthread_cond_wait(&s->reader_free, &s->readers_lock);
	r->taken = true;
	pthread_mutex_unlock(&s->readers_lock);
	return r;
}

void reader_give(struct store *s, struct reader *r)
{
	pthread_mutex_lock(&s->readers_lock);
	r->taken = false;
	pthread_cond_broadcast(&s->reader_free);
	pthread_mutex_unlock(&s->readers_lock);
}

void readers_stop(struct store *s, int64_t wait_ms)
{
	struct timespec until;
	int rc = 0;

	clock_gettime(CLOCK_MONOTONIC, &until);
	until.tv_nsec += wait_ms * 1000000;
	until.tv_sec += until.tv_nsec / 1000000000;
	until.tv_nsec %= 1000000000;
	pthread_mutex_lock(&s->readers_lock);
	s->readers_stopped = true;
	while (is_read(s) && rc == 0)
		rc = pthread_cond_timedwait(&s->reader_free, &s->readers_lock, &until);
	pthread_mutex_unlock(&s->readers_lock);
}

void readers_go(struct store *s)
{
	pthread_mutex_lock(&s->readers_lock);
	s->readers_stopped = false;
	pthread_cond_broadcast(&s->reader_free);
	pthread_mutex_unlock(&s->readers_lock);
}

void span_publish(struct store *s)
{
	atomic_store(&s->rows, s->head.number - s->trimmed.number);
	atomic_store(&s->bytes, s->head.ends - s->trimmed.ends);
	atomic_store(&s->newest_revision, s->head.revision);
	atomic_store(&s->oldest, s->trimmed.revision + 1);
}

void store_span(struct store *s, struct journal_span *out)
{
	out->oldest = atomic_load(&s->oldest);
	out->newest = atomic_load(&s->newest_revision);
	out->rows = atomic_load(&s->rows);
	out->bytes = atomic_load(&s->bytes);
}

static enum pw_status lock_dir(struct store *s, struct pw_err *err)
{
	int dir_fd = open(s->dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);

	if (dir_fd < 0)
		return pw_fail(err, PW_STORAGE, "%s: %s", s->dir, strerror(errno));
	s->lock_fd = openat(dir_fd, LOCK_FILE, O_CREAT | O_RDWR | O_CLOEXEC, 0600);
	close(dir_fd);
	if (s->lock_fd < 0)
		return pw_fail(err, PW_STORAGE, "%s/" LOCK_FILE ": %s", s->dir, strerror(errno));
	if (flock(s->lock_fd, LOCK_EX | LOCK_NB) == 0)
		return PW_OK;
	if (errno == EWOULDBLOCK)
		return pw_fail(err, PW_BUSY, "%s: another process has this directory", s->dir);
	return pw_fail(err, PW_STORAGE, "%s/" LOCK_FILE ": %s", s->dir, strerror(errno));
}

enum pw_status dir_sync(const char *dir, struct pw_err *err)
{
	int fd = open(dir, O_DIRECTORY | O_RDONLY | O_CLOEXEC);
	enum pw_status st = PW_OK;

	if (fd < 0 || fsync(fd) != 0)
		st = pw_fail(err, PW_STORAGE, "%s: %s", dir, strerror(errno));
	if (fd >= 0)
		close(fd);
	return st;
}

enum pw_status journal_connect(const char *dir, int flags, struct db *out, struct pw_err *err)
{
	enum pw_status st = db_open(out, dir, JOURNAL_FILE, flags, err);

	return st == PW_OK ? db_exec(out, journal_setup, err) : st;
}

static enum pw_status open_journal(struct store *s, struct pw_err *err)
{
	const int flags = SQLITE_OPEN_READWRITE;
	enum pw_status st = journal_connect(s->dir, flags | SQLITE_OPEN_CREATE, &s->writer, err);

	if (st == PW_OK) {
		db_tell(&s->writer, s->moves);
		st = tail_adopt(&s->writer, err);
	}
	if (st == PW_OK)
		st = schema_upgrade(&s->writer, SCHEMA_JOURNAL, schema_newest(SCHEMA_JOURNAL), err);
	if (st == PW_OK)
		st = stmts_prepare(&s->group, &s->writer, &group_sql, err);
	if (st == PW_OK)
		st = stmts_prepare(&s->answer, &s->writer, &answer_sql, err);
	if (st == PW_OK)
		st = stmts_prepare(&s->violation, &s->writer, &violation_write_sql, err);
	if (st == PW_OK)
		st = stmts_prepare(&s->trim, &s->writer, &trim_sql, err);
	if (st == PW_OK)
		st = journal_load_span(s, err);
	if (st == PW_OK)
		st = journal_connect(s->dir, flags, &s->mover, err);
	if (st != PW_OK)
		return st;
	wal_attend(s);
	return PW_OK;
}

static enum pw_status open_reader(struct store *s, struct reader *r, struct pw_err *err)
{
	enum pw_status st = journal_connect(s->dir, SQLITE_OPEN_READWRITE, &r->db, err);

	if (st == PW_OK)
		st = db_exec(&r->db, "PRAGMA query_only = ON", err);
	if (st == PW_OK)
		st = stmts_prepare(&r->journal, &r->db, &journal_read_sql, err);
	if (st == PW_OK)
		st = stmts_prepare(&r->violation, &r->db, &violation_read_sql, err);
	if (st == PW_OK)
		st = stmts_prepare(&r->upkeep, &r->db, &upkeep_read_sql, err);
	return st;
}

/* Is the picture what was saved, and of this journal? PW_CONFLICT: it is not. */
static enum pw_status check_picture(struct store *s, bool *sealed, struct pw_err *err)
{
	static const uint8_t none[STORE_HASH];
	uint8_t hash[STORE_HASH];
	int64_t version;
	struct seal seal = { 0 };
	struct sums sums;
	enum pw_status st = db_number(&s->painter, "PRAGMA user_version", &version, err);

	*sealed = false;
	if (st != PW_OK || version < CHECKSUM_SINCE || version > schema_newest(SCHEMA_LEDGER))
		return st;
	st = checksum_check(&s->painter, (uint64_t)version, &sums, &seal, err);
	if (st == PW_OK)
		st = journal_hash_at(s, seal.revision, hash, err);
	if (st != PW_OK)
		return st;
	if (seal.schema == (uint64_t)version && memcmp(hash, seal.journal_hash, sizeof hash) != 0 &&
	    memcmp(hash, none, sizeof hash) != 0 && memcmp(seal.journal_hash, none, sizeof hash) != 0)
		return pw_fail(err, PW_CONFLICT, LEDGER_FILE ": it was made of another " JOURNAL_FILE " than this");
	*sealed = seal.schema == schema_newest(SCHEMA_LEDGER) || seal.revision == 0;
	s->sums = sums;
	return PW_OK;
}

static enum pw_status connect_ledger(struct store *s, struct pw_err *err)
{
	enum pw_status st;

	st = db_open(&s->painter, s->dir, LEDGER_FILE, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, err);
	if (st == PW_OK) {
		db_tell(&s->painter, s->moves);
		st = db_exec(&s->painter, ledger_setup, err);
	}
	return st == PW_OK ? tail_adopt(&s->painter, err) : st;
}

/* A picture that is not what was saved: the journal is the truth, and makes a new one if it has all of it. */
static enum pw_status put_picture_aside(struct store *s, struct pw_err *err)
{
	char from[PATH_MAX], to[PATH_MAX];

	if (s->trimmed.revision)
		return pw_fail(err, PW_STORAGE,
			       "%.160s; the journal begins after revision %" PRIu64
			       " and cannot make it anew; restore a"
			       " backup",
			       s->lost, s->trimmed.revision);
	db_close(&s->painter);
	if ((size_t)snprintf(from, sizeof from, "%s/" LEDGER_FILE, s->dir) >= sizeof from ||
	    (size_t)snprintf(to, sizeof to, "%s/" LEDGER_FILE ".damaged", s->dir) >= sizeof to)
		return pw_fail(err, PW_INVALID, LEDGER_FILE ": the path is too long");
	if (rename(from, to) != 0)
		return pw_fail(err, PW_STORAGE, "%.160s; it cannot be renamed: %s", s->lost, strerror(errno));
	return connect_ledger(s, err);
}

static enum pw_status check_or_put_aside(struct store *s, struct pw_err *err)
{
	struct pw_err why = { 0 };
	enum pw_status st = check_picture(s, &s->sealed, &why);

	if (st == PW_CONFLICT) {
		snprintf(s->lost, sizeof s->lost, "%s", why.msg);
		return put_picture_aside(s, err);
	}
	if (st != PW_OK && err)
		*err = why;
	return st;
}

static enum pw_status open_ledger(struct store *s, struct pw_err *err)
{
	int64_t version = 0;
	enum pw_status st = connect_ledger(s, err);

	if (st == PW_OK)
		st = check_or_put_aside(s, err);
	if (st == PW_OK)
		st = db_number(&s->painter, "PRAGMA user_version", &version, err);
	if (st == PW_OK)
		st = schema_upgrade(&s->painter, SCHEMA_LEDGER, schema_newest(SCHEMA_LEDGER), err);
	if (st == PW_OK && version < schema_newest(SCHEMA_LEDGER))
		st = check_picture(s, &s->sealed, err); /* as it is now: rows of an older schema have no checksum */
	if (st != PW_OK)
		return st;
	sums_follow(&s->painter, &s->sums);
	st = stmts_prepare(&s->save, &s->painter, &picture_save_sql, err);
	if (st == PW_OK)
		st = stmts_prepare(&s->load, &s->painter, &picture_load_sql, err);
	return st == PW_OK ? picture_load_revision(s, err) : st;
}

const char *store_picture_lost(const struct store *s)
{
	return s->lost[0] ? s->lost : NULL;
}

bool store_picture_is_sealed(const struct store *s)
{
	return s->sealed;
}

static struct store *store_new(const char *dir)
{
	struct store *s = calloc(1, sizeof *s);
	pthread_condattr_t monotonic;

	if (!s)
		return NULL;
	s->lock_fd = -1;
	s->dir = strdup(dir);
	pthread_mutex_init(&s->turn.lock, NULL);
	pthread_cond_init(&s->turn.moved, NULL);
	pthread_mutex_init(&s->readers_lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&s->reader_free, &monotonic);
	pthread_condattr_destroy(&monotonic);
	pthread_mutex_init(&s->trim_lock, NULL);
	return s;
}

enum pw_status store_open(const char *dir, struct store **out, struct pw_err *err)
{
	return store_open_telling(dir, NULL, out, err);
}

enum pw_status store_open_telling(const char *dir, _Atomic uint64_t *moves, struct store **out, struct pw_err *err)
{
	struct store *s;
	enum pw_status st;

	if (sodium_init() < 0)
		return pw_fail(err, PW_STORAGE, "libsodium does not start");
	s = store_new(dir);
	if (!s || !s->dir) {
		st = pw_fail(err, PW_NO_MEMORY, "opening %s", dir);
		goto fail;
	}
	s->moves = moves;
	st = lock_dir(s, err);
	if (st == PW_OK)
		st = open_journal(s, err);
	for (size_t i = 0; st == PW_OK && i < READERS; i++)
		st = open_reader(s, &s->readers[i], err);
	if (st == PW_OK)
		st = open_ledger(s, err);
	if (st == PW_OK)
		st = journal_check(s, HASHED_AT_START, err);
	if (st == PW_OK)
		st = dir_sync(dir, err);
	if (st != PW_OK)
		goto fail;
	*out = s;
	return PW_OK;
fail:
	store_close(s);
	return st;
}

void store_close(struct store *s)
{
	if (!s)
		return;
	for (size_t i = 0; i < READERS; i++)
		db_close(&s->readers[i].db);
	db_close(&s->mover);
	db_close(&s->painter);
	db_close(&s->writer);
	if (s->lock_fd >= 0)
		close(s->lock_fd);
	pthread_mutex_destroy(&s->turn.lock);
	pthread_cond_destroy(&s->turn.moved);
	pthread_mutex_destroy(&s->readers_lock);
	pthread_cond_destroy(&s->reader_free);
	pthread_mutex_destroy(&s->trim_lock);
	free(s->dir);
	free(s);
}
