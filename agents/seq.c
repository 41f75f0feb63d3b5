#include "agents/seq.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

char *path_join(const char *dir, const char *name)
{
	char *path;

	return asprintf(&path, "%s/%s", dir, name) < 0 ? NULL : path;
}

enum pw_status file_read_line(const char *path, char *out, size_t size, struct pw_err *err)
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n;

	if (fd < 0)
		return pw_fail(err, errno == ENOENT ? PW_NOT_FOUND : PW_STORAGE, "%s: %s", path, strerror(errno));
	n = read(fd, out, size - 1);
	close(fd);
	if (n < 0)
		return pw_fail(err, PW_STORAGE, "%s: %s", path, strerror(errno));
	out[n] = '\0';
	out[strcspn(out, "\r\n")] = '\0';
	return PW_OK;
}

static bool write_all(int fd, const char *line)
{
	size_t n = strlen(line);

	return write(fd, line, n) == (ssize_t)n && write(fd, "\n", 1) == 1 && fsync(fd) == 0;
}

static void sync_folder_of(const char *path)
{
	char *dir = strdup(path), *slash = dir ? strrchr(dir, '/') : NULL;
	int fd = -1;

	if (slash && slash != dir) {
		*slash = '\0';
		fd = open(dir, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	if (fd >= 0) {
		fsync(fd);
		close(fd);
	}
	free(dir);
}

enum pw_status file_write_line(const char *path, const char *line, struct pw_err *err)
{
	char *fresh;
	enum pw_status st = PW_OK;
	int fd;

	if (asprintf(&fresh, "%s.new", path) < 0)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a path");
	fd = open(fresh, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0600);
	if (fd < 0 || !write_all(fd, line) || rename(fresh, path) != 0)
		st = pw_fail(err, PW_STORAGE, "%s: %s", path, strerror(errno));
	if (fd >= 0)
		close(fd);
	if (st == PW_OK)
		sync_folder_of(path);
	free(fresh);
	return st;
}

static enum pw_status read_number(const char *path, uint64_t *out, struct pw_err *err)
{
	char text[32], *end;
	enum pw_status st = file_read_line(path, text, sizeof text, err);

	if (st == PW_NOT_FOUND) {
		*out = 0;
		return PW_OK;
	}
	if (st != PW_OK)
		return st;
	errno = 0;
	*out = strtoull(text, &end, 10);
	if (errno || end == text || *end || *out >= (uint64_t)1 << 62)
		return pw_fail(err, PW_STORAGE, "%s: '%s' is not a batch number", path, text);
	return PW_OK;
}

enum pw_status seq_open(struct seq *s, const char *path, uint64_t clock_us, struct pw_err *err)
{
	uint64_t kept = 0;
	enum pw_status st = path ? read_number(path, &kept, err) : PW_OK;

	if (st != PW_OK)
		return st;
	*s = (struct seq){ .next = kept > clock_us ? kept : clock_us };
	s->put_down = path ? s->next : UINT64_MAX;
	s->path = path ? strdup(path) : NULL;
	if (path && !s->path)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a path");
	return PW_OK;
}

void seq_release(struct seq *s)
{
	free(s->path);
	*s = (struct seq){ 0 };
}

enum pw_status seq_take(struct seq *s, uint64_t *out, struct pw_err *err)
{
	char text[32];
	enum pw_status st;

	if (s->next >= s->put_down) {
		snprintf(text, sizeof text, "%" PRIu64, s->next + SEQ_BLOCK);
		st = file_write_line(s->path, text, err);
		if (st != PW_OK)
			return st;
		s->put_down = s->next + SEQ_BLOCK;
	}
	*out = s->next++;
	return PW_OK;
}

void seq_jump(struct seq *s, uint64_t past)
{
	if (past >= s->next && past < (uint64_t)1 << 61)
		s->next = past + 1;
}
