#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/schema.h"
#include "tests/lib/store_dir.h"

static struct store_dir d;
static struct pw_err err;

static void setup(void)
{
	store_dir_make(&d);
	store_close(d.s);
	d.s = NULL;
}

static void teardown(void)
{
	store_dir_remove(&d);
}

TestSuite(schema, .init = setup, .fini = teardown, .timeout = 20);

static const char *const names[SCHEMA_COUNT] = { "j.db", "l.db" };

static void describe(struct db *db, char *out, size_t size)
{
	sqlite3_stmt *q = NULL;
	size_t n = 0;

	cr_assert_eq(sqlite3_prepare_v2(db->h, "SELECT sql FROM sqlite_schema WHERE sql IS NOT NULL ORDER BY name", -1,
					&q, NULL),
		     SQLITE_OK);
	while (sqlite3_step(q) == SQLITE_ROW)
		n += (size_t)snprintf(out + n, size - n, "%s\n", (const char *)sqlite3_column_text(q, 0));
	cr_assert_lt(n, size);
	sqlite3_finalize(q);
}

static void upgraded(enum schema which, unsigned from, char *out, size_t size)
{
	struct db db = { 0 };
	char path[512];
	int64_t version;

	cr_assert_eq(db_open(&db, d.path, names[which], SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &err), PW_OK);
	cr_assert_eq(schema_upgrade(&db, which, from, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(schema_upgrade(&db, which, schema_newest(which), &err), PW_OK, "%s", err.msg);
	cr_assert_eq(schema_upgrade(&db, which, schema_newest(which), &err), PW_OK, "again: %s", err.msg);
	cr_assert_eq(db_number(&db, "PRAGMA user_version", &version, &err), PW_OK);
	cr_assert_eq(version, schema_newest(which));
	describe(&db, out, size);
	db_close(&db);
	snprintf(path, sizeof path, "%s/%s", d.path, names[which]);
	remove(path);
}

Test(schema, every_version_upgrades_to_the_same_newest)
{
	static char fresh[16384], old[16384];

	for (int which = 0; which < SCHEMA_COUNT; which++) {
		upgraded((enum schema)which, schema_newest((enum schema)which), fresh, sizeof fresh);
		cr_assert_geq(schema_newest((enum schema)which), 1);
		for (unsigned from = 0; from < schema_newest((enum schema)which); from++) {
			upgraded((enum schema)which, from, old, sizeof old);
			cr_assert_str_eq(old, fresh);
		}
	}
}

Test(schema, pages_that_were_saved_before_architectures_had_states_are_at_rest)
{
	static const char rows[] =
		"INSERT INTO host VALUES ('00000000-0000-4000-8000-000000000001', 'h', 'b', '[]', '', 1, 0, 1, 8, 0, 64,"
		" 12, 0, 1, 0);"
		"INSERT INTO vm VALUES (1, '00000000-0000-4000-8000-000000000002',"
		" '00000000-0000-4000-8000-000000000001', 'v', 'snp', 'secure', 1, 0, 1);"
		"INSERT INTO gfn_extent VALUES (1, 0, 4, 'secure', 1, 0, 7, 0), (1, 4, 1, 'shared', 0, NULL, NULL, 0);";
	struct db db = { 0 };
	int64_t n;

	cr_assert_eq(db_open(&db, d.path, "old.db", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &err), PW_OK);
	cr_assert_eq(schema_upgrade(&db, SCHEMA_LEDGER, 2, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(db_exec(&db, rows, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(schema_upgrade(&db, SCHEMA_LEDGER, schema_newest(SCHEMA_LEDGER), &err), PW_OK, "%s", err.msg);
	cr_assert_eq(db_number(&db, "SELECT count(*) FROM gfn_extent WHERE arch_state IS NULL", &n, &err), PW_OK);
	cr_assert_eq(n, 2);
	cr_assert_eq(db_number(&db, "SELECT pfn FROM gfn_map WHERE arch = 'snp' AND arch_state IS NULL AND resident",
			       &n, &err),
		     PW_OK, "%s", err.msg);
	cr_assert_eq(n, 7);
	db_close(&db);
}

Test(schema, a_vm_that_was_not_normal_before_the_column_is_on_hardware)
{
	static const char rows[] =
		"INSERT INTO host (id, name, boot_id, backends, agent_version, epoch, fenced, has_local, arches, base_pfn,"
		" frames, page_shift, last_seen_ms, revision) VALUES"
		" ('00000000-0000-4000-8000-000000000001', 'h', 'b', '[]', '', 1, 0, 1, 8, 0, 64, 12, 0, 1);"
		"INSERT INTO vm VALUES (1, '00000000-0000-4000-8000-000000000002',"
		" '00000000-0000-4000-8000-000000000001', 'v', 'snp', 'transient', 1, 0, 1),"
		" (2, '00000000-0000-4000-8000-000000000003', '00000000-0000-4000-8000-000000000001', 'w', 'snp',"
		" 'normal', 1, 0, 1),"
		" (4, '00000000-0000-4000-8000-000000000004', '00000000-0000-4000-8000-000000000001', 'x', 'snp',"
		" 'normal', 1, 0, 1);"
		"INSERT INTO operation VALUES (1, '00000000-0000-4000-8000-000000000005',"
		" '00000000-0000-4000-8000-000000000004', '00000000-0000-4000-8000-000000000001', 'launch', 'running', '{}',"
		" '', 1, 1, 1, 0, 2), (2, '00000000-0000-4000-8000-000000000006',"
		" '00000000-0000-4000-8000-000000000003', '00000000-0000-4000-8000-000000000001', 'launch', 'pending', '{}',"
		" '', 1, 1, 0, 0, 3);";
	struct db db = { 0 };
	int64_t n;

	cr_assert_eq(db_open(&db, d.path, "older.db", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &err), PW_OK);
	cr_assert_eq(schema_upgrade(&db, SCHEMA_LEDGER, 4, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(db_exec(&db, rows, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(schema_upgrade(&db, SCHEMA_LEDGER, schema_newest(SCHEMA_LEDGER), &err), PW_OK, "%s", err.msg);
	cr_assert_eq(db_number(&db, "SELECT sum(number) FROM vm WHERE on_hardware", &n, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(n, 1 + 4, "that, and the one whose launch was handed out");
	db_close(&db);
}

Test(schema, newer_file_is_refused_and_left_alone)
{
	static const char *const files[] = { "journal.db", "ledger.db" };

	for (size_t i = 0; i < PW_ARRAY_LEN(files); i++) {
		char back[64];

		snprintf(back, sizeof back, "PRAGMA user_version = %u", schema_newest((enum schema)i));
		store_tamper(d.path, files[i], "PRAGMA user_version = 99");
		cr_assert_eq(store_open(d.path, &d.s, &err), PW_CONFLICT);
		cr_assert(strstr(err.msg, files[i]) && strstr(err.msg, "99"), "%s", err.msg);
		cr_assert_eq(store_ask(d.path, files[i], "PRAGMA user_version"), 99);
		store_tamper(d.path, files[i], back);
	}
	cr_assert_eq(store_open(d.path, &d.s, &err), PW_OK, "%s", err.msg);
}

Test(schema, somebody_elses_database_is_refused)
{
	store_tamper(d.path, "journal.db", "PRAGMA application_id = 7");
	cr_assert_eq(store_open(d.path, &d.s, &err), PW_CONFLICT);
	store_tamper(d.path, "journal.db", "PRAGMA user_version = 0");
	cr_assert_eq(store_open(d.path, &d.s, &err), PW_CONFLICT);
}

Test(schema, file_that_is_no_database_is_refused)
{
	char path[512];
	FILE *f;

	snprintf(path, sizeof path, "%s/ledger.db", d.path);
	f = fopen(path, "w");
	cr_assert_not_null(f);
	for (int i = 0; i < 200; i++)
		fputs("this is not a database, but long enough to be looked at\n", f);
	fclose(f);
	cr_assert_eq(store_open(d.path, &d.s, &err), PW_STORAGE);
	cr_assert(strstr(err.msg, "ledger.db"), "%s", err.msg);
}

Test(schema, failed_step_leaves_the_version_that_it_came_from)
{
	struct db db = { 0 };
	int64_t version = -1, tables = -1;

	cr_assert_eq(db_open(&db, d.path, "x.db", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &err), PW_OK);
	cr_assert_eq(db_exec(&db, "CREATE TABLE probe (a)", &err), PW_OK);
	cr_assert_eq(schema_upgrade(&db, SCHEMA_JOURNAL, 1, &err), PW_STORAGE);
	cr_assert(strstr(err.msg, "schema step 1") && strstr(err.msg, "probe"), "%s", err.msg);
	cr_assert_eq(db_number(&db, "PRAGMA user_version", &version, &err), PW_OK);
	cr_assert_eq(db_number(&db, "SELECT count(*) FROM sqlite_schema", &tables, &err), PW_OK);
	cr_assert_eq(version, 0);
	cr_assert_eq(tables, 1);
	db_close(&db);
}

Test(schema, statement_that_does_not_parse_is_reported)
{
	static const char *const bad[] = { "SELECT nonsense FROM nowhere" };
	const struct sql_table t = { bad, 1 };
	struct stmts s = { 0 };
	struct db db = { 0 };
	int64_t n = 5;

	cr_assert_eq(db_open(&db, d.path, "x.db", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &err), PW_OK);
	cr_assert_eq(stmts_prepare(&s, &db, &t, &err), PW_STORAGE);
	cr_assert(strstr(err.msg, "nowhere"), "%s", err.msg);
	cr_assert_eq(db_number(&db, bad[0], &n, &err), PW_STORAGE);
	cr_assert_eq(db_number(&db, "SELECT 1 WHERE 0", &n, &err), PW_STORAGE);
	cr_assert_eq(n, 5);
	db_close(&db);
	cr_assert_eq(db_open(&db, "/nowhere", "x.db", SQLITE_OPEN_READWRITE, &err), PW_STORAGE);
	db_close(&db);
}
