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

static enum pw_status copy_pages(struct db *from, struct db *to, struct pw_err *err)
{
	sqlite3_backup *b = sqlite3_backup_init(to->h, "main", from->h, "main");

	if (!b)
		return db_fail(to, "starting a copy", err);
	sqlite3_backup_step(b, -1); /* in one go: a copy in steps starts over after each commit */
	if (sqlite3_backup_finish(b) != SQLITE_OK)
		return db_fail(to, "copying", err);
	return PW_OK;
}

static enum pw_status copy_file(const struct store *s, const struct source *source, const char *dest, int64_t *revision,
				struct pw_err *err)
{
	struct db from = { 0 }, to = { 0 };
	enum pw_status st = db_open(&from, s->dir, source->file, SQLITE_OPEN_READWRITE, err);

	if (st == PW_OK)
		st = db_exec(&from, "BEGIN", err);
	if (st == PW_OK)
		st = db_number(&from, source->revision, revision, err);
	if (st == PW_OK)
		st = db_open(&to, dest, source->file, SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, err);
	if (st == PW_OK)
		st = copy_pages(&from, &to, err);
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

static enum pw_status copy_all(struct store *s, const char *dest, int64_t *revision, struct pw_err *err)
{
	char parent[PATH_MAX];
	enum pw_status st = PW_OK;

	if ((size_t)snprintf(parent, sizeof parent, "%s/..", dest) >= sizeof parent)
		return pw_fail(err, PW_INVALID, "backup: the path is too long");
	for (size_t i = 0; st == PW_OK && i < PW_ARRAY_LEN(sources); i++)
		st = copy_file(s, &sources[i], dest, revision, err);
	if (st == PW_OK)
		st = dir_sync(dest, err);
	if (st == PW_OK)
		st = dir_sync(parent, err);
	return st;
}

enum pw_status store_backup(struct store *s, const char *dest, uint64_t *revision, struct pw_err *err)
{
	int64_t reached = 0;
	enum pw_status st;

	if (mkdir(dest, 0700) != 0)
		return pw_fail(err, errno == EEXIST ? PW_CONFLICT : PW_STORAGE, "backup to %s: %s", dest,
			       strerror(errno));
	pthread_mutex_lock(&s->trim_lock);
	st = copy_all(s, dest, &reached, err);
	pthread_mutex_unlock(&s->trim_lock);
	if (st != PW_OK) {
		remove_copy(dest);
		return st == PW_INVALID ? st : pw_wrap(err, "backup to %s", dest);
	}
	*revision = (uint64_t)reached;
	return PW_OK;
}
