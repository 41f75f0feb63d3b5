#include "store/store.h"

#include <errno.h>
#include <limits.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "store/inner.h"

static const struct source {
	const char *file;
	const char *revision; /* which reads it, and so fixes what is copied */
} sources[] = {
	/* The picture first: then the journal reaches at least as far. */
	{ LEDGER_FILE, "SELECT revision FROM meta" },
	{ JOURNAL_FILE, "SELECT coalesce((SELECT last FROM journal ORDER BY first DESC LIMIT 1),"
			" (SELECT revision FROM chain))" },
};

#define STEP_PAGES 256

struct copying {
	const char *dest;
	const struct progress *p; /* NULL: nobody is told */
	uint64_t done, total;     /* bytes */
};

/* In steps: the source's transaction stays open between them, or the copy would start over after each commit. */
static enum pw_status copy_pages(struct copying *c, struct db *from, struct db *to, int64_t page, struct pw_err *err)
{
	sqlite3_backup *b = sqlite3_backup_init(to->h, "main", from->h, "main");
	uint64_t before = c->done;
	int rc = SQLITE_OK;
	bool go = true;

	if (!b)
		return db_fail(to, "starting a copy", err);
	while (go && (rc = sqlite3_backup_step(b, STEP_PAGES)) == SQLITE_OK) {
		c->done =
			before + (uint64_t)page * (uint64_t)(sqlite3_backup_pagecount(b) - sqlite3_backup_remaining(b));
		if (c->total < c->done)
			c->total = c->done;
		go = !c->p || c->p->fn(c->p->ctx, c->done, c->total);
	}
	c->done = before + (uint64_t)page * (uint64_t)sqlite3_backup_pagecount(b);
	if (sqlite3_backup_finish(b) != SQLITE_OK)
		return db_fail(to, "copying", err);
	if (go && rc != SQLITE_DONE) /* of a file that somebody else has locked, SQLite tells with the step alone */
		return pw_fail(err, PW_STORAGE, "%s: copying: somebody else has locked it", to->file);
	return go ? PW_OK : pw_fail(err, PW_BUSY, "given up half-way");
}

static enum pw_status copy_file(const struct store *s, const struct source *source, struct copying *c,
				int64_t *revision, struct pw_err *err)
{
	struct db from = { 0 }, to = { 0 };
	int64_t page = 0;
	enum pw_status st = db_open(&from, s->dir, source->file, SQLITE_OPEN_READWRITE, err);

	if (st == PW_OK)
		st = db_exec(&from, "BEGIN", err);
	if (st == PW_OK)
		st = db_number(&from, source->revision, revision, err);
	if (st == PW_OK)
		st = db_number(&from, "PRAGMA page_size", &page, err);
	if (st == PW_OK)
		st = db_open(&to, c->dest, source->file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, err);
	if (st == PW_OK)
		st = copy_pages(c, &from, &to, page, err);
	db_close(&to);
	db_close(&from);
	return st;
}

static void remove_copy(const char *dest)
{
	static const char *const files[] = { LEDGER_FILE, LEDGER_FILE "-journal", JOURNAL_FILE,
					     JOURNAL_FILE "-journal" };
	char path[PATH_MAX];

	for (size_t i = 0; i < PW_ARRAY_LEN(files); i++)
		if ((size_t)snprintf(path, sizeof path, "%s/%s", dest, files[i]) < sizeof path)
			unlink(path);
	rmdir(dest);
}

static uint64_t size_of(const struct store *s, const char *file)
{
	char path[PATH_MAX];
	struct stat info;

	if ((size_t)snprintf(path, sizeof path, "%s/%s", s->dir, file) >= sizeof path || stat(path, &info) != 0)
		return 0;
	return (uint64_t)info.st_size;
}

static enum pw_status copy_all(struct store *s, struct copying *c, int64_t *revision, struct pw_err *err)
{
	const char *dest = c->dest;
	char parent[PATH_MAX];
	enum pw_status st = PW_OK;

	if ((size_t)snprintf(parent, sizeof parent, "%s/..", dest) >= sizeof parent)
		return pw_fail(err, PW_INVALID, "backup: the path is too long");
	for (size_t i = 0; st == PW_OK && i < PW_ARRAY_LEN(sources); i++)
		st = copy_file(s, &sources[i], c, revision, err);
	if (st == PW_OK)
		st = dir_sync(dest, err);
	if (st == PW_OK)
		st = dir_sync(parent, err);
	return st;
}

enum pw_status store_backup(struct store *s, const char *dest, const struct progress *p, uint64_t *revision,
			    struct pw_err *err)
{
	struct copying c = { .dest = dest, .p = p };
	int64_t reached = 0;
	enum pw_status st;

	if (mkdir(dest, 0700) != 0)
		return pw_fail(err, errno == EEXIST ? PW_CONFLICT : PW_STORAGE, "backup to %s: %s", dest,
			       strerror(errno));
	pthread_mutex_lock(&s->trim_lock);
	for (size_t i = 0; i < PW_ARRAY_LEN(sources); i++)
		c.total += size_of(s, sources[i].file);
	st = copy_all(s, &c, &reached, err);
	pthread_mutex_unlock(&s->trim_lock);
	if (st != PW_OK) {
		remove_copy(dest);
		return st == PW_INVALID ? st : pw_wrap(err, "backup to %s", dest);
	}
	*revision = (uint64_t)reached;
	return PW_OK;
}
