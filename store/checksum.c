/*
 * Sums of row hashes. The hash of a row is that of its table's name and of type and bytes of each of its columns, in
 * the table's order; a row that comes is added, one that goes is subtracted, so that a picture costs what it changes.
 * It must never know a column by name.
 */
#define SQLITE_ENABLE_PREUPDATE_HOOK
#include "store/checksum.h"

#include <sodium.h>
#include <stdio.h>
#include <string.h>

#define TABLE_(name, since, until) { #name, since, until },
static const struct {
	const char *name;
	uint64_t since, until; /* schemas */
} tables[PICTURE_TABLE_COUNT] = { PICTURE_TABLES(TABLE_) };
#define ALL_(name, since, until) "SELECT * FROM " #name,
static const char *const all[PICTURE_TABLE_COUNT] = { PICTURE_TABLES(ALL_) };

enum { META, SUMS };
static const char *const read_text[] = {
	[META] = "SELECT revision, schema, journal_hash, seal FROM meta",
	[SUMS] = "SELECT rows, sum FROM checksum WHERE name = ?",
};
static const struct sql_table read_sql = { read_text, PW_ARRAY_LEN(read_text) };
enum { SET_META, SET_SUM };
static const char *const write_text[] = {
	[SET_META] = "UPDATE meta SET revision = ?, schema = ?, journal_hash = ?, seal = ?",
	[SET_SUM] = "INSERT INTO checksum (name, rows, sum) VALUES (?, ?, ?)"
		    " ON CONFLICT DO UPDATE SET rows = excluded.rows, sum = excluded.sum",
};
static const struct sql_table write_sql = { write_text, PW_ARRAY_LEN(write_text) };

static bool is_in_schema(int t, uint64_t schema)
{
	return tables[t].since <= schema && schema <= tables[t].until;
}

static void put64(uint8_t out[8], uint64_t v)
{
	for (unsigned i = 0; i < 8; i++)
		out[i] = (uint8_t)(v >> (8 * i));
}

static uint64_t get64(const uint8_t in[8])
{
	uint64_t v = 0;

	for (unsigned i = 8; i-- > 0;)
		v = v << 8 | in[i];
	return v;
}

static void hash_value(crypto_generichash_state *h, sqlite3_value *v)
{
	int type = v ? sqlite3_value_type(v) : SQLITE_NULL;
	const void *bytes = NULL;
	uint8_t head[9] = { (uint8_t)type }, number[8];
	size_t n = 0;

	if (type == SQLITE_INTEGER) {
		put64(number, (uint64_t)sqlite3_value_int64(v));
		bytes = number;
		n = sizeof number;
	} else if (type != SQLITE_NULL) {
		bytes = sqlite3_value_blob(v);
		n = (size_t)sqlite3_value_bytes(v);
	}
	put64(head + 1, n);
	crypto_generichash_update(h, head, sizeof head);
	if (n && bytes)
		crypto_generichash_update(h, bytes, n);
}

static void hash_begin(crypto_generichash_state *h, enum picture_table t)
{
	crypto_generichash_init(h, NULL, 0, CHECKSUM_BYTES);
	crypto_generichash_update(h, (const uint8_t *)tables[t].name, strlen(tables[t].name) + 1);
}

enum sum_way { SUM_COMES, SUM_GOES };
static void sum_row(struct table_sum *s, crypto_generichash_state *h, enum sum_way way)
{
	uint8_t hash[CHECKSUM_BYTES];
	uint64_t carry = way == SUM_GOES;

	crypto_generichash_final(h, hash, sizeof hash);
	for (size_t i = 0; i < 4; i++) {
		uint64_t v = get64(hash + 8 * i), before = s->sum[i], with;

		v = way == SUM_GOES ? ~v : v; /* a - b is a + ~b + 1 */
		with = before + v;
		s->sum[i] = with + carry;
		carry = with < before || s->sum[i] < with;
	}
	s->rows += way == SUM_GOES ? UINT64_MAX : 1;
}

typedef int (*value_fn)(sqlite3 *, int, sqlite3_value **);

static void count_row(struct sums *s, enum picture_table t, sqlite3 *h, value_fn value, enum sum_way way)
{
	crypto_generichash_state st;

	hash_begin(&st, t);
	for (int i = 0; i < sqlite3_preupdate_count(h); i++) {
		sqlite3_value *v = NULL;

		if (value(h, i, &v) != SQLITE_OK)
			s->broken = true;
		hash_value(&st, v);
	}
	sum_row(&s->of[t], &st, way);
}

static void on_change(void *ctx, sqlite3 *h, int op, const char *db, const char *table, sqlite3_int64 from,
		      sqlite3_int64 to)
{
	struct sums *s = ctx;

	(void)db;
	(void)from;
	(void)to;
	if (s->paused || strcmp(table, "meta") == 0 || strcmp(table, "checksum") == 0)
		return;
	for (int t = 0; t < PICTURE_TABLE_COUNT; t++) {
		if (strcmp(tables[t].name, table) != 0)
			continue;
		if (op != SQLITE_INSERT)
			count_row(s, (enum picture_table)t, h, sqlite3_preupdate_old, SUM_GOES);
		if (op != SQLITE_DELETE)
			count_row(s, (enum picture_table)t, h, sqlite3_preupdate_new, SUM_COMES);
		return;
	}
	s->broken = true;
	snprintf(s->trouble, sizeof s->trouble, "table %.60s has no checksum", table);
}

void sums_follow(struct db *db, struct sums *s)
{
	sqlite3_preupdate_hook(db->h, on_change, s);
}

static void sum_bytes(const struct table_sum *s, uint8_t out[CHECKSUM_BYTES])
{
	for (size_t i = 0; i < 4; i++)
		put64(out + 8 * i, s->sum[i]);
}

void seal_make(const struct sums *s, struct seal *out)
{
	uint8_t numbers[16], sum[CHECKSUM_BYTES];
	crypto_generichash_state h;

	put64(numbers, out->revision);
	put64(numbers + 8, out->schema);
	crypto_generichash_init(&h, NULL, 0, CHECKSUM_BYTES);
	crypto_generichash_update(&h, numbers, sizeof numbers);
	crypto_generichash_update(&h, out->journal_hash, sizeof out->journal_hash);
	for (int t = 0; t < PICTURE_TABLE_COUNT; t++) {
		if (!is_in_schema(t, out->schema))
			continue;
		put64(numbers, s->of[t].rows);
		sum_bytes(&s->of[t], sum);
		crypto_generichash_update(&h, (const uint8_t *)tables[t].name, strlen(tables[t].name) + 1);
		crypto_generichash_update(&h, numbers, 8);
		crypto_generichash_update(&h, sum, sizeof sum);
	}
	crypto_generichash_final(&h, out->seal, sizeof out->seal);
}

static enum pw_status save_sum(struct stmts *q, enum picture_table t, const struct table_sum *s, struct pw_err *err)
{
	struct query set = query_begin(q, SET_SUM);
	uint8_t sum[CHECKSUM_BYTES];

	sum_bytes(s, sum);
	bind_text(&set, tables[t].name);
	bind_u64(&set, s->rows);
	bind_blob(&set, sum, sizeof sum);
	return query_run(&set, "saving a checksum", err);
}

static void stmts_release(struct stmts *s, size_t count)
{
	for (size_t i = 0; i < count; i++)
		sqlite3_finalize(s->q[i]);
}

enum pw_status checksum_save(struct db *db, const struct sums *s, const struct seal *seal, struct pw_err *err)
{
	struct stmts q = { 0 };
	struct query set;
	enum pw_status st = PW_OK;

	if (seal->schema && s->broken)
		return pw_fail(err, PW_INVALID, "%s: %s", db->file,
			       s->trouble[0] ? s->trouble : "a row's checksum failed");
	st = stmts_prepare(&q, db, &write_sql, err);
	for (int t = 0; st == PW_OK && t < PICTURE_TABLE_COUNT; t++)
		if (is_in_schema(t, seal->schema))
			st = save_sum(&q, (enum picture_table)t, &s->of[t], err);
	if (st == PW_OK) {
		set = query_begin(&q, SET_META);
		bind_u64(&set, seal->revision);
		bind_u64(&set, seal->schema);
		bind_blob(&set, seal->journal_hash, sizeof seal->journal_hash);
		bind_blob(&set, seal->seal, sizeof seal->seal);
		st = query_run(&set, "saving the picture's revision", err);
	}
	stmts_release(&q, write_sql.count);
	return st;
}

static enum pw_status walk_table(struct db *db, enum picture_table t, struct table_sum *out, struct pw_err *err)
{
	struct sql_table one = { &all[t], 1 };
	struct stmts q = { 0 };
	struct query rows;
	enum pw_status st;

	st = stmts_prepare(&q, db, &one, err);
	rows = query_begin(&q, 0);
	while (st == PW_OK && (st = query_step(&rows, "reading the picture", err)) == PW_OK) {
		crypto_generichash_state h;

		hash_begin(&h, t);
		for (int i = 0; i < sqlite3_column_count(rows.stmt); i++)
			hash_value(&h, sqlite3_column_value(rows.stmt, i));
		sum_row(out, &h, SUM_COMES);
	}
	stmts_release(&q, 1);
	return st == PW_NOT_FOUND ? PW_OK : st;
}

static enum pw_status read_seal(struct stmts *q, struct seal *out, struct pw_err *err)
{
	struct query meta = query_begin(q, META);
	enum pw_status st = query_step(&meta, "reading the picture's seal", err);
	struct seal s = { 0 };

	if (st == PW_OK) {
		s.revision = row_u64(&meta, 0, INT64_MAX);
		s.schema = row_u64(&meta, 1, INT64_MAX);
		if (s.schema) {
			row_bytes(&meta, 2, s.journal_hash, sizeof s.journal_hash);
			row_bytes(&meta, 3, s.seal, sizeof s.seal);
		}
		st = row_check(&meta, "meta", err);
	} else if (st == PW_NOT_FOUND) {
		st = pw_fail(err, PW_STORAGE, "%s: table meta: its row is missing", q->db->file);
	}
	query_end(&meta);
	if (st == PW_OK)
		*out = s;
	return st;
}

/* Does table checksum have this sum? */
static bool sum_is_kept(struct stmts *q, enum picture_table t, const struct table_sum *s)
{
	struct query kept = query_begin(q, SUMS);
	uint8_t want[CHECKSUM_BYTES], have[CHECKSUM_BYTES] = { 0 };
	uint64_t rows = 0;
	bool same;

	sum_bytes(s, want);
	bind_text(&kept, tables[t].name);
	same = query_step(&kept, "reading a checksum", NULL) == PW_OK;
	if (same) {
		rows = row_u64(&kept, 0, INT64_MAX);
		row_bytes(&kept, 1, have, sizeof have);
	}
	same = same ? rows == s->rows && memcmp(have, want, sizeof have) == 0 : s->rows == 0;
	query_end(&kept);
	return same;
}

static enum pw_status compare(struct db *db, struct stmts *q, struct sums *s, const struct seal *seal,
			      struct pw_err *err)
{
	struct seal fits = *seal;
	enum pw_status st = PW_OK;

	for (int t = 0; st == PW_OK && t < PICTURE_TABLE_COUNT; t++) {
		if (!is_in_schema(t, seal->schema))
			continue;
		st = walk_table(db, (enum picture_table)t, &s->of[t], err);
		if (st == PW_OK && !sum_is_kept(q, (enum picture_table)t, &s->of[t]))
			st = pw_fail(err, PW_CONFLICT,
				     "%s: table %s is not what was written: it was changed by hand or"
				     " damaged",
				     db->file, tables[t].name);
	}
	if (st != PW_OK)
		return st;
	seal_make(s, &fits);
	if (memcmp(fits.seal, seal->seal, sizeof fits.seal) == 0)
		return PW_OK;
	return pw_fail(err, PW_CONFLICT, "%s: table meta is not what was written: it was changed by hand or damaged",
		       db->file);
}

enum pw_status checksum_check(struct db *db, uint64_t schema, struct sums *out, struct seal *seal, struct pw_err *err)
{
	struct stmts q = { 0 };
	enum pw_status st = stmts_prepare(&q, db, &read_sql, err);

	*out = (struct sums){ 0 };
	if (st == PW_OK)
		st = read_seal(&q, seal, err);
	if (st == PW_OK && seal->schema == schema && schema)
		st = compare(db, &q, out, seal, err);
	stmts_release(&q, read_sql.count);
	return st;
}
