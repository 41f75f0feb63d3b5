/* store/checksum.h
 *
 * The picture's checksum: for each table the sum (mod 2^256) of a hash of each row, over every column as it is stored.
 * It follows every change of a row that this connection makes, by SQLite's own hook: neither a column nor a statement
 * can be left out. A seal over all sums, the picture's revision and the journal's hash there binds them together. This
 * is for accidents and edits by hand: nothing here is secret, and who wants to can make a seal that fits.
 */
#ifndef PW_STORE_CHECKSUM_H
#define PW_STORE_CHECKSUM_H
#include "store/db.h"

#define CHECKSUM_BYTES 32
#define CHECKSUM_SINCE 8 /* the schema of ledger.db that brought it */
/* Name, the schema that brought it (at least CHECKSUM_SINCE), and the last one that has it. */
#define PICTURE_TABLES(X)                                        \
	X(host, CHECKSUM_SINCE, UINT64_MAX)                      \
	X(pool, CHECKSUM_SINCE, UINT64_MAX)                      \
	X(pool_host, CHECKSUM_SINCE, UINT64_MAX)                 \
	X(vm, CHECKSUM_SINCE, UINT64_MAX)                        \
	X(slot, CHECKSUM_SINCE, UINT64_MAX)                      \
	X(vcpu_exit, CHECKSUM_SINCE, UINT64_MAX)                 \
	X(gfn_extent, CHECKSUM_SINCE, 8) /* a view since then */ \
	X(quarantine, CHECKSUM_SINCE, UINT64_MAX)                \
	X(operation, CHECKSUM_SINCE, UINT64_MAX)                 \
	X(token, CHECKSUM_SINCE, UINT64_MAX)                     \
	X(ended, CHECKSUM_SINCE, UINT64_MAX)                     \
	X(unknown_vm, CHECKSUM_SINCE, UINT64_MAX)                \
	X(gfn_span, 9, UINT64_MAX)
#define PW_ENUM_(name, since, until) TABLE_##name,
enum picture_table { PICTURE_TABLES(PW_ENUM_) PICTURE_TABLE_COUNT };
#undef PW_ENUM_

struct table_sum {
	uint64_t rows, sum[4];
};
struct sums {
	struct table_sum of[PICTURE_TABLE_COUNT];
	bool paused; /* changes do not count: what comes next is the sums of empty tables */
	bool broken; /* a change could not be followed; why is in `trouble` */
	char trouble[96];
};

/* From here on *s follows what this connection changes. Before its statements are prepared. */
void sums_follow(struct db *db, struct sums *s);

/* What a picture was sealed with, as table meta has it. */
struct seal {
	uint64_t revision, schema; /* schema 0: there is none */
	uint8_t journal_hash[CHECKSUM_BYTES];
	uint8_t seal[CHECKSUM_BYTES];
};
void seal_make(const struct sums *s, struct seal *out); /* fills out->seal from the rest */

/* Writes the seal, and unless its schema is 0 the sums; within the transaction that saves the picture. */
enum pw_status checksum_save(struct db *db, const struct sums *s, const struct seal *seal,
			     struct pw_err *err) PW_MUST_CHECK;

/*
 * Reads the seal, and if it was made under this schema compares it and the sums with what the tables hold; *out: their
 * sums. PW_CONFLICT  something else than store_save_picture has changed the tables: err says which
 */
enum pw_status checksum_check(struct db *db, uint64_t schema, struct sums *out, struct seal *seal,
			      struct pw_err *err) PW_MUST_CHECK;

#endif
