/* The picture's checksum: whatever is edited in whichever table and column is noticed, and a saved picture never is. */
#include <criterion/criterion.h>
#include <sqlite3.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/checksum.h"
#include "tests/lib/store_dir.h"

static struct store_dir d;
static struct pw_err err;
static unsigned char *kept; /* the sound ledger.db */
static size_t kept_size;

static void setup(void)
{
	store_dir_make(&d);
	store_fill(d.s, 1, 20);
}

static void teardown(void)
{
	store_dir_remove(&d);
	free(kept);
	kept = NULL;
}

TestSuite(checksum, .init = setup, .fini = teardown, .timeout = 120);

static enum pw_status save(uint64_t revision, bool full)
{
	struct pw_uuid h = test_uuid(1), v = test_uuid(5);
	struct host_row hosts[] = { { h, "a", "b", "[]", "", 3, false, true, 8, 16, 1024, 12, 500, 7, false } };
	struct pool_row pools[] = { { "cxl", 4096, 512, 12, 9 } };
	struct attachment_row attachments[] = { { "cxl", h, 1 } };
	struct vm_row vms[] = { { .id = v,
				  .host = h,
				  .name = "web",
				  .arch = "snp",
				  .state = "secure",
				  .arch_state = "RUNNING",
				  .epoch = 2,
				  .revision = revision } };
	struct slot_row slots[] = { { v, { 0, 0, 100 } }, { v, { 7, 512, 600 } } };
	struct vcpu_row vcpus[] = { { v, 0, "interrupt", "{}", 900, revision } };
	struct extent_row extents[] = { { v, 0, 512, 0, NULL },
					{ v, 0, 10, GFN_ENTRY_RESIDENT | revision, NULL },
					{ v, 20, 1, GFN_ENTRY_OUT, NULL } };
	struct quarantine_row quarantine[] = { { h, "local", 50, 2, "rmp", 123 } };
	struct operation_row operations[] = { { test_uuid(30), v, h, "launch", "running", "{}", "", 3, 1, 2, 3, 12 } };
	struct token_row tokens[] = { { test_uuid(40), "viewer", "root", { { 0 } }, { 0xab }, 1, 1 },
				      { test_uuid(41), "agent", "a", h, { 0x01 }, 2, 2 } };
	struct end_row ends[] = { { .vm = test_uuid(9), .slot = 0, .host = h, .revision = 12, .time_ms = 900 } };
	struct unknown_row unknown[] = { { h, test_uuid(10), "{}", 903, 15 } };
	struct picture p = { .revision = revision,
			     .full = full,
			     .hosts = hosts,
			     .host_count = 1,
			     .pools = pools,
			     .pool_count = 1,
			     .attachments = attachments,
			     .attachment_count = 1,
			     .vms = vms,
			     .vm_count = 1,
			     .slots = slots,
			     .slot_count = 2,
			     .vcpus = vcpus,
			     .vcpu_count = 1,
			     .extents = extents,
			     .extent_count = 3,
			     .quarantine = quarantine,
			     .quarantine_count = 1,
			     .operations = operations,
			     .operation_count = 1,
			     .tokens = tokens,
			     .token_count = revision % 2 ? 1 : 2,
			     .ends = ends,
			     .end_count = 1,
			     .unknown = unknown,
			     .unknown_count = 1 };

	return store_save_picture(d.s, &p, &err);
}

static struct verify_report verify(void)
{
	struct verify_report v;

	cr_assert_eq(store_verify(d.path, NULL, &v, &err), PW_OK, "%s", err.msg);
	return v;
}

static FILE *ledger(const char *mode)
{
	char path[STORE_PATH + 16];
	FILE *f;

	snprintf(path, sizeof path, "%s/ledger.db", d.path);
	f = fopen(path, mode);
	cr_assert_not_null(f);
	return f;
}

/* Closes the store and keeps its ledger.db, or brings that back. */
static void keep(void)
{
	FILE *f;

	store_close(d.s);
	d.s = NULL;
	f = ledger("rb");
	fseek(f, 0, SEEK_END);
	kept_size = (size_t)ftell(f);
	rewind(f);
	kept = malloc(kept_size);
	cr_assert(kept && fread(kept, 1, kept_size, f) == kept_size);
	fclose(f);
}

static void bring_back(void)
{
	FILE *f;

	store_close(d.s);
	d.s = NULL;
	f = ledger("wb");
	cr_assert_eq(fwrite(kept, 1, kept_size, f), kept_size);
	fclose(f);
}

/* Somebody changes `table` with sqlite3: verification says so, and a start does not use it. */
static void expect_noticed(const char *table, const char *edit)
{
	uint64_t revision = 99;
	struct verify_report v;

	store_tamper(d.path, "ledger.db", edit);
	v = verify();
	cr_assert_eq(v.picture, PICTURE_DAMAGED, "%s", edit);
	cr_assert(strstr(v.picture_fault, table), "%s: %s", edit, v.picture_fault);
	store_dir_reopen(&d);
	cr_assert(store_picture_lost(d.s) && strstr(store_picture_lost(d.s), table), "%s", edit);
	cr_assert_eq(store_load_picture(d.s, &(struct picture_reader){ 0 }, &revision, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(revision, 0, "the journal makes it anew");
	cr_assert_eq(save(20, true), PW_OK, "%s", err.msg);
	cr_assert_eq(verify().picture, PICTURE_OK);
	bring_back();
}

static void each_column(const char *table, void (*fn)(const char *table, const char *column, const char *type))
{
	char path[STORE_PATH + 16], columns[64][2][64];
	sqlite3_stmt *q = NULL;
	sqlite3 *h = NULL;
	size_t n = 0;

	snprintf(path, sizeof path, "%s/ledger.db", d.path);
	cr_assert_eq(sqlite3_open(path, &h), SQLITE_OK);
	cr_assert_eq(sqlite3_prepare_v2(h, "SELECT name, type FROM pragma_table_info(?)", -1, &q, NULL), SQLITE_OK);
	sqlite3_bind_text(q, 1, table, -1, SQLITE_STATIC);
	for (; sqlite3_step(q) == SQLITE_ROW; n++)
		for (int i = 0; i < 2; i++)
			snprintf(columns[n][i], sizeof columns[n][i], "%s", (const char *)sqlite3_column_text(q, i));
	sqlite3_finalize(q);
	sqlite3_close(h);
	cr_assert_gt(n, 1, "%s", table);
	for (size_t i = 0; i < n; i++)
		fn(table, columns[i][0], columns[i][1]);
}

static void edit_column(const char *table, const char *column, const char *type)
{
	char edit[512];

	snprintf(
		edit, sizeof edit,
		"PRAGMA ignore_check_constraints = 1; UPDATE %s SET %s = CASE typeof(%s) WHEN 'integer' THEN %s + 1000 WHEN"
		" 'text' THEN %s || 'x' WHEN 'blob' THEN CAST(%s || x'00' AS BLOB) ELSE %s END",
		table, column, column, column, column, column, strcmp(type, "TEXT") == 0 ? "'x'" : "7");
	expect_noticed(table, edit);
}

#define TEXT_(name, since, until) until == UINT64_MAX ? #name : NULL,
static const char *const tables[] = { PICTURE_TABLES(TEXT_) }; /* NULL: of an older schema */

Test(checksum, every_column_of_every_table_is_covered)
{
	cr_assert_eq(save(18, true), PW_OK, "%s", err.msg);
	keep();
	for (size_t i = 0; i < PW_ARRAY_LEN(tables); i++)
		if (tables[i])
			each_column(tables[i], edit_column);
	expect_noticed("meta", "UPDATE meta SET revision = 17");
	expect_noticed("meta", "UPDATE meta SET journal_hash = zeroblob(32)");
	expect_noticed("meta", "UPDATE meta SET seal = zeroblob(32)");
}

Test(checksum, row_that_came_or_went_is_noticed)
{
	char edit[128];

	cr_assert_eq(save(18, true), PW_OK, "%s", err.msg);
	keep();
	for (size_t i = 0; i < PW_ARRAY_LEN(tables); i++) {
		if (!tables[i])
			continue;
		snprintf(edit, sizeof edit, "DELETE FROM %s", tables[i]);
		expect_noticed(tables[i], edit);
	}
	expect_noticed("token",
		       "INSERT INTO token SELECT '42000000-0000-0000-0000-0000000000ff', 'admin', name, host, hash,"
		       " created_ms, revision FROM token LIMIT 1");
	expect_noticed("token", "UPDATE token SET role = 'admin'");
	expect_noticed("slot", "DELETE FROM slot WHERE slot = 7");
	expect_noticed("gfn_span", "UPDATE gfn_span SET runs = replace(runs, '[20,', '[21,')");
}

/* A table that the picture has and the checksum does not would be trusted blindly. */
Test(checksum, no_table_is_left_out)
{
	char list[512] = "", ask[700];

	for (size_t i = 0; i < PW_ARRAY_LEN(tables); i++)
		if (tables[i])
			snprintf(list + strlen(list), sizeof list - strlen(list), "'%s', ", tables[i]);
	snprintf(ask, sizeof ask,
		 "SELECT count(*) FROM sqlite_schema WHERE type = 'table' AND name NOT IN (%s'meta', 'checksum')",
		 list);
	cr_assert_eq(store_ask(d.path, "ledger.db", ask), 0);
}

Test(checksum, follows_what_each_picture_changes)
{
	cr_assert_eq(verify().picture, PICTURE_UNSEALED, "there is none yet");
	cr_assert_eq(save(1, true), PW_OK, "%s", err.msg);
	for (uint64_t r = 2; r <= 20; r++) {
		cr_assert_eq(save(r, r % 7 == 0), PW_OK, "%s", err.msg);
		cr_assert_eq(verify().picture, PICTURE_OK, "%s", verify().picture_fault);
		cr_assert_eq(verify().picture_revision, r);
		if (r % 5)
			continue;
		store_dir_reopen(&d);
		cr_assert_null(store_picture_lost(d.s));
		cr_assert(store_picture_is_sealed(d.s));
	}
}

Test(checksum, refused_picture_leaves_it_right)
{
	struct extent_row bad = { test_uuid(77), 0, 1, GFN_ENTRY_OUT, NULL };
	struct picture p = { .revision = 19, .extents = &bad, .extent_count = 1 };

	cr_assert_eq(save(18, true), PW_OK, "%s", err.msg);
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_INVALID);
	cr_assert_eq(save(19, false), PW_OK, "%s", err.msg);
	cr_assert_eq(verify().picture, PICTURE_OK, "%s", verify().picture_fault);
}

Test(checksum, damaged_picture_of_a_trimmed_journal_stops_the_start)
{
	cr_assert_eq(save(18, true), PW_OK, "%s", err.msg);
	cr_assert_eq(store_trim(d.s, 10, &err), PW_OK);
	store_close(d.s);
	d.s = NULL;
	store_tamper(d.path, "ledger.db", "UPDATE token SET role = 'admin'");
	cr_assert_eq(store_open(d.path, &d.s, &err), PW_STORAGE);
	d.s = NULL;
	cr_assert(strstr(err.msg, "table token") && strstr(err.msg, "restore a backup"), "%s", err.msg);
}

Test(checksum, picture_of_another_journal_is_noticed)
{
	cr_assert_eq(save(18, true), PW_OK, "%s", err.msg);
	keep();
	store_dir_remove(&d);
	store_dir_make(&d);
	store_fill(d.s, 1, 1);
	for (uint64_t r = 2; r <= 20; r++) { /* the same revisions, of another history */
		struct journal_row row = { .first = r, .last = r, .time_ms = 1, .records = "", .size = 0 };

		cr_assert_eq(store_begin(d.s, &err), PW_OK);
		cr_assert_eq(store_append(d.s, &row, &err), PW_OK);
		cr_assert_eq(store_commit(d.s, &err), PW_OK);
	}
	bring_back();
	cr_assert_eq(verify().picture, PICTURE_DAMAGED);
	store_dir_reopen(&d);
	cr_assert(store_picture_lost(d.s) && strstr(store_picture_lost(d.s), "another journal.db"));
}

/* As a file of an older program: it gets its checksum with the next full picture. */
Test(checksum, old_picture_has_none_until_a_full_one)
{
	cr_assert_eq(save(18, true), PW_OK, "%s", err.msg);
	store_close(d.s);
	d.s = NULL;
	store_tamper(d.path, "ledger.db", "UPDATE meta SET schema = 7");
	cr_assert_eq(verify().picture, PICTURE_UNSEALED);
	store_dir_reopen(&d);
	cr_assert_not(store_picture_is_sealed(d.s));
	cr_assert_null(store_picture_lost(d.s));
	cr_assert_eq(save(19, false), PW_OK, "%s", err.msg);
	cr_assert_eq(verify().picture, PICTURE_UNSEALED);
	cr_assert_eq(save(20, true), PW_OK, "%s", err.msg);
	cr_assert_eq(verify().picture, PICTURE_OK);
	cr_assert(store_picture_is_sealed(d.s));
}
