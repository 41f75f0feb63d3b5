#include "tests/lib/faulty_vfs.h"

#include <sqlite3.h>
#include <stdatomic.h>
#include <stdlib.h>

struct faulty_file {
	sqlite3_file base;
	sqlite3_file *real; /* lies behind this struct */
};

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
	int rc = fault(FAULT_WRITE);

	if (!rc)
		return real_of(f)->pMethods->xWrite(real_of(f), p, n, at);
	if (n > 1)
		(void)real_of(f)->pMethods->xWrite(real_of(f), p, n / 2, at);
	return rc;
}

static int file_truncate(sqlite3_file *f, sqlite3_int64 size)
{
	int rc = fault(FAULT_TRUNCATE);

	return rc ? rc : real_of(f)->pMethods->xTruncate(real_of(f), size);
}

static int file_sync(sqlite3_file *f, int flags)
{
	int rc = fault(FAULT_SYNC);

	return rc ? rc : real_of(f)->pMethods->xSync(real_of(f), flags);
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
	if (!rc)
		rc = real_vfs->xOpen(real_vfs, name, file->real, flags, out_flags);
	if (!rc)
		file->base.pMethods = &methods;
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
	sqlite3_vfs_register(&faulty, 1);
}
