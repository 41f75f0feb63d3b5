/* agents/machine_file.h
 *
 * Where an emulated machine keeps its state, so that it outlives its agent: a log of groups of 64-bit words, each of
 * which is there whole or not at all after the process was killed at any instant. (Power loss ends an emulated machine
 * like any other, so nothing is flushed to the disk.) A lock file beside it keeps a second agent away.
 */
#ifndef PW_AGENTS_MACHINE_FILE_H
#define PW_AGENTS_MACHINE_FILE_H
#include "engine/status.h"

/* Words on their way into a group. */
struct words {
	uint64_t *at; /* owned */
	size_t count, room;
	bool failed; /* an allocation did; then `at` is incomplete */
};
void words_add(struct words *w, uint64_t x);
void words_clear(struct words *w); /* empty again; keeps its memory */
void words_release(struct words *w);

struct machine_file;
/* One group as it was appended. What it returns, if not PW_OK, ends the reading. */
typedef enum pw_status (*machine_group_fn)(void *ctx, const uint64_t *at, size_t count, struct pw_err *err);

/*
 * Opens or makes the file and reads all groups in it; a torn last one is cut off.
 * PW_BUSY     another process has it open.
 * PW_STORAGE  it cannot be opened, or is damaged.
 */
enum pw_status machine_file_open(const char *path, machine_group_fn fn, void *ctx, struct machine_file **out,
				 struct pw_err *err) PW_MUST_CHECK;
void machine_file_close(struct machine_file *f);

/*
 * Reads the groups of a file that another process may have open: no lock, and a torn last group is left where it is.
 * PW_STORAGE  it cannot be read, or is damaged.
 */
enum pw_status machine_file_read(const char *path, machine_group_fn fn, void *ctx, struct pw_err *err) PW_MUST_CHECK;

/* PW_STORAGE: the group is not in the file. */
enum pw_status machine_file_append(struct machine_file *f, const struct words *group, struct pw_err *err) PW_MUST_CHECK;

/* Has the log outgrown what it was last rewritten to by so much that a rewrite pays? */
bool machine_file_is_long(const struct machine_file *f);
/* Replaces all groups by one. On failure the file is as before. */
enum pw_status machine_file_rewrite(struct machine_file *f, const struct words *all, struct pw_err *err) PW_MUST_CHECK;

/* A rewrite failed: is_long says no until the log has grown by as much again. */
void machine_file_put_off(struct machine_file *f);

#endif
