/* agents/seq.h
 *
 * Numbers for batches that only ever grow, also across crashes of the agent: a block of numbers is put down in a file
 * before the first of it is used, so a restart begins past all that may have been sent. The clock (microseconds)
 * stands in where there is no file.
 */
#ifndef PW_AGENTS_SEQ_H
#define PW_AGENTS_SEQ_H
#include "engine/status.h"

#define SEQ_BLOCK ((uint64_t)1 << 20)
struct seq {
	char *path;              /* or NULL */
	uint64_t next, put_down; /* numbers below put_down may be used */
};

/* path may be NULL. PW_STORAGE: the file cannot be read, or holds no number. */
enum pw_status seq_open(struct seq *s, const char *path, uint64_t clock_us, struct pw_err *err) PW_MUST_CHECK;
void seq_release(struct seq *s);
/* PW_STORAGE: the next block cannot be put down; no number taken. */
enum pw_status seq_take(struct seq *s, uint64_t *out, struct pw_err *err) PW_MUST_CHECK;
/* The server has seen a higher number: jump past it. */
void seq_jump(struct seq *s, uint64_t past);

/* Small files of one line, replaced whole. */
enum pw_status file_read_line(const char *path, char *out, size_t size,
			      struct pw_err *err) PW_MUST_CHECK; /* PW_NOT_FOUND */
enum pw_status file_write_line(const char *path, const char *line, struct pw_err *err) PW_MUST_CHECK;
char *path_join(const char *dir, const char *name); /* the caller's; NULL: no memory */

#endif
