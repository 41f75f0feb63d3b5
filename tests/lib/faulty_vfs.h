/* tests/lib/faulty_vfs.h
 *
 * The disk as SQLite sees it, with faults on demand: wraps the default VFS and takes its place in this process. It can
 * also keep apart what programs read (the page cache) and what the disk has, and so lose power.
 */
#ifndef PW_TESTS_FAULTY_VFS_H
#define PW_TESTS_FAULTY_VFS_H
#include <stdbool.h>
#include <stdint.h>

enum fault_op { FAULT_WRITE = 1, FAULT_SYNC = 2, FAULT_TRUNCATE = 4, FAULT_OPEN = 8, FAULT_READ = 16 };
#define FAULT_CHANGES (FAULT_WRITE | FAULT_SYNC | FAULT_TRUNCATE)

/* FAULT_ONCE: one call fails. FAULT_FROM: all do from then on, like a full disk. A failing write leaves half behind. */
enum fault_mode { FAULT_ONCE, FAULT_FROM };

void faulty_vfs_install(void);
/* The nth call (from 1) of these ops fails with SQLite's rc. */
void faulty_vfs_arm(unsigned ops, unsigned nth, int rc, enum fault_mode mode);
bool faulty_vfs_disarm(void);                /* did any call fail? */
unsigned faulty_vfs_count(enum fault_op op); /* calls of one kind since it was installed */

/*
 * From here on the disk of each file whose path begins so is kept apart; what a file has at its first opening is on the
 * disk. A flush that works brings its written pages there. One that fails brings some of them, by `seed`, and all of
 * them count as written from then on, as on Linux: the next flush says that all is well. A deleted file is gone at
 * once.
 */
void faulty_vfs_keep_disk(const char *paths, uint64_t seed);
void faulty_vfs_forget_disk(void);
/* The files of folder `from` as a power cut leaves them, into `to`: what was written and never flushed is there or not,
 * by the page and by `seed`. */
void faulty_vfs_cut_power(const char *from, const char *to, uint64_t seed);
/* The same as kill -9 leaves them: whoever opens them reads all that was written, and the disk may lack it. */
void faulty_vfs_kill(const char *from, const char *to);

#endif
