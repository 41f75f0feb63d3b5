/* store/schema.h
 *
 * The schemas of the two database files, as numbered steps that are only ever appended to. PRAGMA user_version of a
 * file is the number of steps that it has seen.
 */
#ifndef PW_STORE_SCHEMA_H
#define PW_STORE_SCHEMA_H
#include "store/db.h"

enum schema { SCHEMA_JOURNAL, SCHEMA_LEDGER, SCHEMA_COUNT };

unsigned schema_newest(enum schema which); /* how many steps there are */

/*
 * Brings a file to step `version`, each step in a transaction of its own.
 * PW_CONFLICT  the file is newer than this program, or belongs to another one
 */
enum pw_status schema_upgrade(struct db *db, enum schema which, unsigned version, struct pw_err *err) PW_MUST_CHECK;

#endif
