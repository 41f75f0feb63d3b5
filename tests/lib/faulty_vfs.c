#include "tests/lib/faulty_vfs.h"

#include <pthread.h>
#include <sqlite3.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PAGE     4096
#define DISK_MAX 32

/* A file, as programs read it and as the disk has it. */
struct disk {
	char *path;
	unsigned char *now, *kept;
	bool *dirty; /* pages that were written since they last counted as written */
	size_t size, kept_size, room;
};

struct faulty_file {
	sqlite3_file base;
	sqlite3_file *real; /* lies behind this struct */
	struct disk *disk;  /* NULL: not kept apart */
};

static pthread_mutex_t disks_lock = PTHREAD_MUTEX_INITIALIZER;
static struct disk disks[DISK_MAX];
static char keeps[256]; /* beginning of the paths that are kept apart; "": none */
static uint64_t disk_seed;

static sqlite3_vfs *real_vfs;
static sqlite3_vfs faulty;
static _Atomic unsigned armed_ops, calls, fired;
static _Atomic unsigned nth_call, counts[32];
static _Atomic int answer;
static _Atomic bool lasting;

void faulty_vfs_arm(unsigned ops, unsigned nth, int rc, enum fault_mode mode)
{
	atomic_store(&calls, 0);
	atomic_store(&fired, 0);
	atomic_store(&nth_call, nth);
	atomic_store(&answer, rc);
	atomic_store(&lasting, mode == FAULT_FROM);
	atomic_store(&armed_ops, ops);
}

bool faulty_vfs_disarm(void)
{
	atomic_store(&armed_ops, 0);
	return atomic_load(&fired) > 0;
}

unsigned faulty_vfs_count(enum fault_op op)
{
	return atomic_load(&counts[op]);
}

static int fault(enum fault_op op)
{
	unsigned n, at;

	atomic_fetch_add(&counts[op], 1);
	if (!(atomic_load(&armed_ops) & op))
		return SQLITE_OK;
	n = atomic_fetch_add(&calls, 1) + 1;
	at = atomic_load(&nth_call);
	if (n < at || (n > at && !atomic_load(&lasting)))
		return SQLITE_OK;
	atomic_fetch_add(&fired, 1);
	return atomic_load(&answer);
}

static bool coin(uint64_t *seed)
{
	uint64_t z = *seed += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (z ^ z >> 31) & 1;
}

static void *grown(void *p, size_t from, size_t to)
{
	unsigned char *q = realloc(p, to);

	if (!q)
		abort();
	memset(q + from, 0, to - from);
	return q;
}

static void disk_reserve(struct disk *d, size_t size)
{
	size_t room = d->room ? d->room : (size_t)16 * PAGE;

	while (room < size)
		room *= 2;
	if (room == d->room)
		return;
	d->now = grown(d->now, d->room, room);
	d->kept = grown(d->kept, d->room, room);
	d->dirty = grown(d->dirty, d->room / PAGE, room / PAGE);
	d->room = room;
}

static void disk_forget(struct disk *d)
{
	free(d->path);
	free(d->now);
	free(d->kept);
	free(d->dirty);
	*d = (struct disk){ 0 };
}

static void disk_wrote(struct disk *d, const void *p, size_t n, size_t at)
{
	if (!d)
		return;
	pthread_mutex_lock(&disks_lock);
	disk_reserve(d, at + n);
	memcpy(d->now + at, p, n);
	for (size_t page = at / PAGE; page * PAGE < at + n; page++)
		d->dirty[page] = true;
	if (at + n > d->size)
		d->size = at + n;
	pthread_mutex_unlock(&disks_lock);
}

static void disk_truncated(struct disk *d, size_t size)
{
	if (!d)
		return;
	pthread_mutex_lock(&disks_lock);
	disk_reserve(d, size);
	if (size < d->size)
		memset(d->now + size, 0, d->size - size);
	d->size = size;
	pthread_mutex_unlock(&disks_lock);
}

static void disk_flushed(struct disk *d, bool well)
{
	bool all = well, some = false;

	if (!d)
		return;
	pthread_mutex_lock(&disks_lock);
	if (!well) { /* all of it, none, or each page by a coin of its own */
		all = coin(&disk_seed);
		some = coin(&disk_seed);
	}
	for (size_t page = 0; page < d->room / PAGE; page++) {
		if (d->dirty[page] && (some ? coin(&disk_seed) : all))
			memcpy(d->kept + page * PAGE, d->now + page * PAGE, PAGE);
		d->dirty[page] = false;
	}
	if (all)
		d->kept_size = d->size;
	pthread_mutex_unlock(&disks_lock);
}

static void disk_cut(const struct disk *d, const char *path, uint64_t *seed)
{
	size_t size = coin(seed) ? d->size : d->kept_size;
	FILE *f = fopen(path, "wb");

	if (!f)
		abort();
	for (size_t at = 0; at < size; at += PAGE) {
		const unsigned char *from = d->dirty[at / PAGE] && coin(seed) ? d->now : d->kept;
		size_t n = size - at < PAGE ? size - at : PAGE;

		if (fwrite(from + at, 1, n, f) != n)
			abort();
	}
	fclose(f);
}

void faulty_vfs_keep_disk(const char *paths, uint64_t seed)
{
	snprintf(keeps, sizeof keeps, "%s", paths);
	disk_seed = seed;
}

static bool is_kept_apart(const char *path)
{
	return keeps[0] && path && strncmp(path, keeps, strlen(keeps)) == 0;
}

void faulty_vfs_forget_disk(void)
{
	keeps[0] = '\0';
	for (size_t i = 0; i < DISK_MAX; i++)
		disk_forget(&disks[i]);
}

static struct disk *disk_of(const char *path)
{
	struct disk *empty = NULL;

	for (size_t i = 0; i < DISK_MAX; i++) {
		if (disks[i].path && strcmp(disks[i].path, path) == 0)
			return &disks[i];
		if (!disks[i].path && !empty)
			empty = &disks[i];
	}
	if (!empty)
		abort();
	return empty;
}

/* The i-th file, if it is one of folder `from`: *path is where it goes in folder `to`. */
static struct disk *disk_at(size_t i, const char *from, const char *to, char path[512])
{
	size_t n = strlen(from);

	if (!disks[i].path || strncmp(disks[i].path, from, n) != 0 || disks[i].path[n] != '/')
		return NULL;
	snprintf(path, 512, "%s%s", to, disks[i].path + n);
	return &disks[i];
}

void faulty_vfs_cut_power(const char *from, const char *to, uint64_t seed)
{
	char path[512];

	pthread_mutex_lock(&disks_lock);
	for (size_t i = 0; i < DISK_MAX; i++) {
		struct disk *d = disk_at(i, from, to, path);

		if (d)
			disk_cut(d, path, &seed);
	}
	pthread_mutex_unlock(&disks_lock);
}

static void disk_copy(const struct disk *d, const char *path)
{
	struct disk *copy = disk_of(path);
	FILE *f = fopen(path, "wb");

	if (!f || fwrite(d->now, 1, d->size, f) != d->size)
		abort();
	fclose(f);
	disk_reserve(copy, d->room);
	copy->path = strdup(path);
	copy->size = d->size;
	copy->kept_size = d->kept_size;
	memcpy(copy->now, d->now, d->room);
	memcpy(copy->kept, d->kept, d->room);
	memcpy(copy->dirty, d->dirty, d->room / PAGE);
}

void faulty_vfs_kill(const char *from, const char *to)
{
	char path[512];

	pthread_mutex_lock(&disks_lock);
	for (size_t i = 0; i < DISK_MAX; i++) {
		struct disk *d = disk_at(i, from, to, path);

		if (d)
			disk_copy(d, path);
	}
	pthread_mutex_unlock(&disks_lock);
}

/* The disk of a file that was just opened. */
static struct disk *disk_open(const char *path, sqlite3_file *real)
{
	sqlite3_int64 size = 0;
	struct disk *d;

	pthread_mutex_lock(&disks_lock);
	d = disk_of(path);
	if (!d->path) {
		real->pMethods->xFileSize(real, &size);
		disk_reserve(d, (size_t)size);
		d->path = strdup(path);
		d->size = d->kept_size = (size_t)size;
		if (size && real->pMethods->xRead(real, d->now, (int)size, 0) != SQLITE_OK)
			abort();
		memcpy(d->kept, d->now, (size_t)size);
	}
	pthread_mutex_unlock(&disks_lock);
	return d;
}

static sqlite3_file *real_of(sqlite3_file *f)
{
	return ((struct faulty_file *)f)->real;
}

static int file_close(sqlite3_file *f)
{
	return real_of(f)->pMethods->xClose(real_of(f));
}

static int file_read(sqlite3_file *f, void *p, int n, sqlite3_int64 at)
{
	int rc = fault(FAULT_READ);

	return rc ? rc : real_of(f)->pMethods->xRead(real_of(f), p, n, at);
}

static int file_write(sqlite3_file *f, const void *p, int n, sqlite3_int64 at)
{
	int rc = fault(FAULT_WRITE), done = rc ? n / 2 : n, real;

	if (!done)
		return rc;
	real = real_of(f)->pMethods->xWrite(real_of(f), p, done, at);
	if (real == SQLITE_OK)
		disk_wrote(((struct faulty_file *)f)->disk, p, (size_t)done, (size_t)at);
	return rc ? rc : real;
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 size)
{
	int rc = fault(FAULT_TRUNCATE);

	if (!rc)
		rc = real_of(f)->pMethods->xTruncate(real_of(f), size);
	if (!rc)
		disk_truncated(((struct faulty_file *)f)->disk, (size_t)size);
	return rc;
}

static int file_sync(sqlite3_file *f, int flags)
{
	int rc = fault(FAULT_SYNC);

	if (!rc)
		rc = real_of(f)->pMethods->xSync(real_of(f), flags);
	disk_flushed(((struct faulty_file *)f)->disk, rc == SQLITE_OK);
	return rc;
}

static int file_size(sqlite3_file *f, sqlite3_int64 *size)
{
	return real_of(f)->pMethods->xFileSize(real_of(f), size);
}

static int file_lock(sqlite3_file *f, int level)
{
	return real_of(f)->pMethods->xLock(real_of(f), level);
}

static int file_unlock(sqlite3_file *f, int level)
{
	return real_of(f)->pMethods->xUnlock(real_of(f), level);
}

static int file_reserved(sqlite3_file *f, int *out)
{
	return real_of(f)->pMethods->xCheckReservedLock(real_of(f), out);
}

static int file_control(sqlite3_file *f, int op, void *arg)
{
	return real_of(f)->pMethods->xFileControl(real_of(f), op, arg);
}

static int file_sector(sqlite3_file *f)
{
	return real_of(f)->pMethods->xSectorSize(real_of(f));
}

static int file_traits(sqlite3_file *f)
{
	return real_of(f)->pMethods->xDeviceCharacteristics(real_of(f));
}

static int file_shm_map(sqlite3_file *f, int page, int size, int extend, void volatile **out)
{
	return real_of(f)->pMethods->xShmMap(real_of(f), page, size, extend, out);
}

static int file_shm_lock(sqlite3_file *f, int offset, int n, int flags)
{
	return real_of(f)->pMethods->xShmLock(real_of(f), offset, n, flags);
}

static void file_shm_barrier(sqlite3_file *f)
{
	real_of(f)->pMethods->xShmBarrier(real_of(f));
}

static int file_shm_unmap(sqlite3_file *f, int remove)
{
	return real_of(f)->pMethods->xShmUnmap(real_of(f), remove);
}

static const sqlite3_io_methods methods = {
	.iVersion = 2,
	.xClose = file_close,
	.xRead = file_read,
	.xWrite = file_write,
	.xTruncate = file_truncate,
	.xSync = file_sync,
	.xFileSize = file_size,
	.xLock = file_lock,
	.xUnlock = file_unlock,
	.xCheckReservedLock = file_reserved,
	.xFileControl = file_control,
	.xSectorSize = file_sector,
	.xDeviceCharacteristics = file_traits,
	.xShmMap = file_shm_map,
	.xShmLock = file_shm_lock,
	.xShmBarrier = file_shm_barrier,
	.xShmUnmap = file_shm_unmap,
};

static int vfs_open(sqlite3_vfs *vfs, const char *name, sqlite3_file *f, int flags, int *out_flags)
{
	struct faulty_file *file = (struct faulty_file *)f;
	int rc = fault(FAULT_OPEN);

	(void)vfs;
	file->base.pMethods = NULL;
	file->real = (sqlite3_file *)(file + 1);
	file->disk = NULL;
	if (!rc)
		rc = real_vfs->xOpen(real_vfs, name, file->real, flags, out_flags);
	if (!rc)
		file->base.pMethods = &methods;
	if (!rc && is_kept_apart(name) && !(flags & SQLITE_OPEN_DELETEONCLOSE))
		file->disk = disk_open(name, file->real);
	return rc;
}

static int vfs_delete(sqlite3_vfs *vfs, const char *name, int sync_dir)
{
	int rc = real_vfs->xDelete(real_vfs, name, sync_dir);

	(void)vfs;
	pthread_mutex_lock(&disks_lock);
	if (rc == SQLITE_OK && is_kept_apart(name))
		disk_forget(disk_of(name));
	pthread_mutex_unlock(&disks_lock);
	return rc;
}

void faulty_vfs_install(void)
{
	if (real_vfs)
		return;
	real_vfs = sqlite3_vfs_find(NULL);
	if (!real_vfs)
		abort();
	faulty = *real_vfs; /* what is not a file's business goes straight to the real one */
	faulty.zName = "faulty";
	faulty.szOsFile = (int)sizeof(struct faulty_file) + real_vfs->szOsFile;
	faulty.xOpen = vfs_open;
	faulty.xDelete = vfs_delete;
	sqlite3_vfs_register(&faulty, 1);
}
