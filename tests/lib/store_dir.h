/* tests/lib/store_dir.h
 *
 * A store in a scratch directory, and the few moves that every test of it makes. They fail the test, never return it.
 */
#ifndef PW_TESTS_STORE_DIR_H
#define PW_TESTS_STORE_DIR_H
#include "store/store.h"

#define STORE_PATH 96
struct store_dir {
	char path[STORE_PATH];
	struct store *s;
};

void store_dir_make(struct store_dir *d); /* a new directory, with an open store */
void store_dir_reopen(struct store_dir *d);
void store_dir_remove(struct store_dir *d);
void store_dir_delete(const char *path); /* with the files of a store in it */

/* One group with one row of one revision, whose records follow from the revision. */
enum pw_status store_put(struct store *s, uint64_t revision, struct pw_err *err);
void store_fill(struct store *s, uint64_t first, uint64_t last); /* a group for each */
uint64_t store_newest(struct store *s);
/* Reads everything after `after`, checks that it is what store_put wrote, without a gap. Returns the last revision. */
uint64_t store_replay(struct store *s, uint64_t after);
int64_t store_put_time(uint64_t revision);

/* Runs SQL on a file of a store, as somebody with sqlite3 would. */
void store_tamper(const char *dir, const char *file, const char *sql);
int64_t store_ask(const char *dir, const char *file, const char *sql); /* the first number of the answer */

struct pw_uuid test_uuid(unsigned n);

#endif
