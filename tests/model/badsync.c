/* A disk that refuses to sync, for the server under test (LD_PRELOAD): while the file that PW_BAD_SYNC names exists and
 * has N bytes, each N-th fsync or fdatasync fails with EIO, as those of a disk that lost its writes. What was written
 * stays in the page cache.
 */
#include <errno.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

static bool is_refused(void)
{
	static atomic_ulong calls;
	const char *path = getenv("PW_BAD_SYNC");
	struct stat st;

	if (!path || stat(path, &st) != 0 || st.st_size == 0)
		return false;
	if (atomic_fetch_add(&calls, 1) % (unsigned long)st.st_size != 0)
		return false;
	errno = EIO;
	return true;
}

int fdatasync(int fd)
{
	return is_refused() ? -1 : (int)syscall(SYS_fdatasync, fd);
}

int fsync(int fd)
{
	return is_refused() ? -1 : (int)syscall(SYS_fsync, fd);
}
