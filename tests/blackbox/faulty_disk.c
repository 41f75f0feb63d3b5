/*
 * A disk that fails on demand, for a whole server: preloaded (LD_PRELOAD) it stands before the calls by which SQLite
 * writes and flushes a log, and fails the n-th of them as the file named by FAULTY_DISK says. The test that uses it
 * (test_crash_disk.py) compiles it, maps that file too, and so arms and disarms it while the server runs.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int fdatasync(int fd);
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at);

enum op { OP_SYNC = 1, OP_WRITE = 2 };

static struct control {
	_Atomic uint32_t ops, nth, lasting, error, calls, fired;
} * control;

__attribute__((constructor)) static void map_control(void)
{
	const char *path = getenv("FAULTY_DISK");
	int fd = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
	void *p = fd < 0 ? MAP_FAILED : mmap(NULL, sizeof *control, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);

	if (fd >= 0)
		close(fd);
	if (p != MAP_FAILED)
		control = p;
}

static bool is_log(int fd)
{
	static const char end[] = "/journal.db-wal";
	char link[32] = "/proc/self/fd/", path[512], digits[12];
	size_t n = 0, at = strlen(link);
	ssize_t len;

	do
		digits[n++] = (char)('0' + fd % 10);
	while ((fd /= 10) > 0);
	while (n)
		link[at++] = digits[--n];
	link[at] = '\0';
	len = readlink(link, path, sizeof path);
	return len >= (ssize_t)(sizeof end - 1) && (size_t)len < sizeof path &&
	       memcmp(path + len - (sizeof end - 1), end, sizeof end - 1) == 0;
}

static bool fails(enum op op, int fd)
{
	uint32_t n;

	if (!control || !(atomic_load(&control->ops) & op) || !is_log(fd))
		return false;
	n = atomic_fetch_add(&control->calls, 1) + 1;
	if (n < control->nth || (n > control->nth && !control->lasting))
		return false;
	atomic_fetch_add(&control->fired, 1);
	errno = (int)control->error;
	return true;
}

/* The function that this library stands before; as bytes, since ISO C knows no cast from what dlsym answers. */
static void find(const char *name, void *function)
{
	void *p = dlsym(RTLD_NEXT, name);

	if (!p)
		abort();
	memcpy(function, &p, sizeof p);
}

int fdatasync(int fd)
{
	static int (*real)(int);

	if (!real)
		find("fdatasync", &real);
	return fails(OP_SYNC, fd) ? -1 : real(fd);
}

/* Half of it is written all the same. */
ssize_t pwrite64(int fd, const void *p, size_t n, off64_t at)
{
	static ssize_t (*real)(int, const void *, size_t, off64_t);

	if (!real)
		find("pwrite64", &real);
	if (!fails(OP_WRITE, fd))
		return real(fd, p, n, at);
	if (n > 1)
		(void)real(fd, p, n / 2, at);
	errno = (int)control->error;
	return -1;
}
