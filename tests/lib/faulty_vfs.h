/* tests/lib/faulty_vfs.h
 *
 * The disk as SQLite sees it, with faults on demand: wraps the default VFS and takes its place in this process.
 */
#ifndef PW_TESTS_FAULTY_VFS_H
#define PW_TESTS_FAULTY_VFS_H
#include <stdbool.h>

enum fault_op { FAULT_WRITE = 1, FAULT_SYNC = 2, FAULT_TRUNCATE = 4, FAULT_OPEN = 8, FAULT_READ = 16 };
#define FAULT_CHANGES (FAULT_WRITE | FAULT_SYNC | FAULT_TRUNCATE)

/* FAULT_ONCE: one call fails. FAULT_FROM: all do from then on, like a full disk. A failing write leaves half behind. */
enum fault_mode { FAULT_ONCE, FAULT_FROM };

void faulty_vfs_install(void);
/* The nth call (from 1) of these ops fails with SQLite's rc. */
void faulty_vfs_arm(unsigned ops, unsigned nth, int rc, enum fault_mode mode);
bool faulty_vfs_disarm(void);                /* did any call fail? */
unsigned faulty_vfs_count(enum fault_op op); /* calls of one kind since it was installed */

#endif
