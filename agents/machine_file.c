#include "agents/machine_file.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <unistd.h>

#define LONG_BYTES ((off_t)1 << 20)

struct frame {          /* in front of each group */
	uint64_t count; /* of words */
	uint64_t sum;
};

struct machine_file {
	char *path, *next_path; /* the file, and the one that shall replace it */
	int fd, lock;
	off_t size, compact; /* now, and after the last rewrite */
	bool broken;         /* has a torn group that could not be cut off */
};

void words_add(struct words *w, uint64_t x)
{
	if (w->count == w->room) {
		size_t room = w->room ? 2 * w->room : 64;
		uint64_t *grown = reallocarray(w->at, room, sizeof *grown);

		if (!grown) {
			w->failed = true;
			return;
		}
		w->at = grown;
		w->room = room;
	}
	w->at[w->count++] = x;
}

void words_clear(struct words *w)
{
	w->count = 0;
	w->failed = false;
}

void words_release(struct words *w)
{
	free(w->at);
	*w = (struct words){ 0 };
}

static uint64_t checksum(const uint64_t *at, size_t count)
{
	uint64_t h = 0x9e3779b97f4a7c15u ^ count;

	for (size_t i = 0; i < count; i++) {
		h = (h ^ at[i]) * 0xff51afd7ed558ccdu;
		h ^= h >> 32;
	}
	return h;
}

static enum pw_status fail_os(struct pw_err *err, const char *what, const char *path)
{
	return pw_fail(err, PW_STORAGE, "%s %s: %s", what, path, strerror(errno));
}

/* Writes one group at the end of fd; false with errno if not all of it is there. */
static bool write_group(int fd, const struct words *group)
{
	struct frame head = { group->count, checksum(group->at, group->count) };
	struct iovec parts[] = { { &head, sizeof head }, { group->at, group->count * sizeof *group->at } };
	ssize_t n = writev(fd, parts, group->count ? 2 : 1);

	if (n >= 0 && (size_t)n != parts[0].iov_len + parts[1].iov_len)
		errno = ENOSPC;
	return n >= 0 && (size_t)n == parts[0].iov_len + parts[1].iov_len;
}

/* The whole file in memory. */
static enum pw_status slurp(const struct machine_file *f, unsigned char **out, size_t *size, struct pw_err *err)
{
	struct stat st;
	size_t have = 0;

	if (fstat(f->fd, &st))
		return fail_os(err, "reading", f->path);
	*size = (size_t)st.st_size;
	*out = malloc(*size + 1);
	if (!*out)
		return pw_fail(err, PW_NO_MEMORY, "no memory to read %s", f->path);
	while (have < *size) {
		ssize_t n = pread(f->fd, *out + have, *size - have, (off_t)have);

		if (n <= 0) {
			free(*out);
			return fail_os(err, "reading", f->path);
		}
		have += (size_t)n;
	}
	return PW_OK;
}

/* Reads the group at data[*at]; false if it is torn, or damaged (then *at is not near the end), or there is no memory
 * (*words is NULL then). */
static bool next_group(const unsigned char *data, size_t size, size_t *at, uint64_t **words, size_t *count)
{
	static uint64_t none;
	struct frame head;

	*words = &none;
	if (size - *at < sizeof head)
		return false;
	memcpy(&head, data + *at, sizeof head);
	if (head.count > (size - *at - sizeof head) / sizeof(uint64_t))
		return false;
	*words = malloc((size_t)head.count * sizeof(uint64_t) + 1);
	if (!*words)
		return false;
	memcpy(*words, data + *at + sizeof head, (size_t)head.count * sizeof(uint64_t));
	*count = (size_t)head.count;
	*at += sizeof head + (size_t)head.count * sizeof(uint64_t);
	if (checksum(*words, *count) == head.sum)
		return true;
	free(*words);
	return false;
}

static enum pw_status read_groups(struct machine_file *f, machine_group_fn fn, void *ctx, struct pw_err *err)
{
	enum pw_status st;
	unsigned char *data = NULL;
	uint64_t *words;
	size_t size = 0, count, at = 0, good = 0;

	st = slurp(f, &data, &size, err);
	if (st != PW_OK)
		return st;
	while (st == PW_OK && next_group(data, size, &at, &words, &count)) {
		st = fn(ctx, words, count, err);
		free(words);
		good = at;
	}
	if (st == PW_OK && !words)
		st = pw_fail(err, PW_NO_MEMORY, "no memory to read %s", f->path);
	if (st == PW_OK && at != good && at < size)
		st = pw_fail(err, PW_STORAGE, "%s is damaged at byte %zu", f->path, good);
	f->size = (off_t)good;
	free(data);
	return st;
}

/* Cuts a torn last group off. */
static enum pw_status mend(struct machine_file *f, struct pw_err *err)
{
	struct stat st;

	if (fstat(f->fd, &st) == 0 && (st.st_size == f->size || ftruncate(f->fd, f->size) == 0))
		return PW_OK;
	return fail_os(err, "mending", f->path);
}

static enum pw_status take_lock(struct machine_file *f, struct pw_err *err)
{
	char *path;

	if (asprintf(&path, "%s.lock", f->path) < 0)
		return pw_fail(err, PW_NO_MEMORY, "no memory");
	f->lock = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	free(path);
	if (f->lock < 0)
		return fail_os(err, "locking", f->path);
	if (flock(f->lock, LOCK_EX | LOCK_NB))
		return pw_fail(err, PW_BUSY, "%s: another agent runs this machine", f->path);
	return PW_OK;
}

enum pw_status machine_file_open(const char *path, machine_group_fn fn, void *ctx, struct machine_file **out,
				 struct pw_err *err)
{
	struct machine_file *f = calloc(1, sizeof *f);
	enum pw_status st;

	if (!f)
		return pw_fail(err, PW_NO_MEMORY, "no memory");
	f->fd = f->lock = -1;
	f->path = strdup(path);
	if (!f->path || asprintf(&f->next_path, "%s.next", path) < 0) {
		f->next_path = NULL;
		st = pw_fail(err, PW_NO_MEMORY, "no memory");
		goto fail;
	}
	st = take_lock(f, err);
	if (st != PW_OK)
		goto fail;
	f->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0600);
	st = f->fd < 0 ? fail_os(err, "opening", path) : read_groups(f, fn, ctx, err);
	if (st == PW_OK)
		st = mend(f, err);
	if (st != PW_OK)
		goto fail;
	*out = f;
	return PW_OK;
fail:
	machine_file_close(f);
	return st;
}

enum pw_status machine_file_read(const char *path, machine_group_fn fn, void *ctx, struct pw_err *err)
{
	struct machine_file f = { .path = strdup(path), .fd = open(path, O_RDONLY | O_CLOEXEC), .lock = -1 };
	enum pw_status st;

	if (!f.path)
		st = pw_fail(err, PW_NO_MEMORY, "no memory");
	else
		st = f.fd < 0 ? fail_os(err, "opening", path) : read_groups(&f, fn, ctx, err);
	if (f.fd >= 0)
		close(f.fd);
	free(f.path);
	return st;
}

void machine_file_close(struct machine_file *f)
{
	if (!f)
		return;
	if (f->fd >= 0)
		close(f->fd);
	if (f->lock >= 0)
		close(f->lock);
	free(f->path);
	free(f->next_path);
	free(f);
}

enum pw_status machine_file_append(struct machine_file *f, const struct words *group, struct pw_err *err)
{
	if (group->failed)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the machine's state");
	if (f->broken)
		return pw_fail(err, PW_STORAGE, "%s has a torn end", f->path);
	if (write_group(f->fd, group)) {
		f->size += (off_t)(sizeof(struct frame) + group->count * sizeof *group->at);
		return PW_OK;
	}
	fail_os(err, "writing", f->path);
	f->broken = ftruncate(f->fd, f->size) != 0;
	return PW_STORAGE;
}

bool machine_file_is_long(const struct machine_file *f)
{
	return f->size > LONG_BYTES && f->size / 4 > f->compact;
}

enum pw_status machine_file_rewrite(struct machine_file *f, const struct words *all, struct pw_err *err)
{
	enum pw_status st;
	int fd;

	if (all->failed)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the machine's state");
	fd = open(f->next_path, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0600);
	if (fd < 0)
		return fail_os(err, "making", f->next_path);
	if (!write_group(fd, all) || rename(f->next_path, f->path)) {
		st = fail_os(err, "writing", f->next_path);
		close(fd);
		return st;
	}
	close(f->fd);
	f->fd = fd;
	f->size = f->compact = (off_t)(sizeof(struct frame) + all->count * sizeof *all->at);
	f->broken = false;
	return PW_OK;
}

void machine_file_put_off(struct machine_file *f)
{
	f->compact = f->size;
}
