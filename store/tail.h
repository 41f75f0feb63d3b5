/* store/tail.h
 *
 * What a database's log (SQLite's WAL) holds behind its last commit. SQLite never looks there, but the next start
 * would: frames that a failed commit has left behind may be taken for committed then.
 */
#ifndef PW_STORE_TAIL_H
#define PW_STORE_TAIL_H
#include "store/db.h"

/*
 * Voids the tail of a database whose write lock this connection holds, durably: no start will find there what was not
 * committed. For the first attempt after a commit that failed, on a log that was sound before it.
 * False: the tail could not be read, wiped or flushed, and a start may find anything in it. To try again is no use:
 * what reads as wiped may be whole on the disk. The next commit that succeeds overwrites the tail's first frame, and so
 * ends it.
 */
bool tail_void(struct db *db) PW_MUST_CHECK;

/*
 * At a start: makes durable what this start has found in the log, and wipes the rest. A flush that failed for the
 * process before may have left pages that every read shows, that count as written, and that are not on the disk.
 */
enum pw_status tail_adopt(struct db *db, struct pw_err *err) PW_MUST_CHECK;

#endif
