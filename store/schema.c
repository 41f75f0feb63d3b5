#include "store/schema.h"

#define APPLICATION 0x50574a31 /* "PWJ1": so that file(1), and we, know our own */

static const char *const journal_steps[] = {
	"CREATE TABLE journal ("
	" first   INTEGER PRIMARY KEY CHECK (first > 0)," /* revisions of the group's records */
	" last    INTEGER NOT NULL CHECK (last >= first),"
	" time_ms INTEGER NOT NULL,"
	" number  INTEGER NOT NULL CHECK (number > 0)," /* rows up to this one, ever */
	" ends    INTEGER NOT NULL CHECK (ends >= 0),"  /* bytes of records up to the end of this one, ever */
	" hash    BLOB NOT NULL CHECK (length(hash) = 32),"
	" records BLOB NOT NULL"
	") STRICT;"
	/* The last row that was trimmed: what the oldest row follows. */
	"CREATE TABLE chain ("
	" one INTEGER PRIMARY KEY CHECK (one = 1),"
	" revision INTEGER NOT NULL CHECK (revision >= 0),"
	" number INTEGER NOT NULL CHECK (number >= 0),"
	" ends INTEGER NOT NULL CHECK (ends >= 0),"
	" hash BLOB NOT NULL CHECK (length(hash) = 32)"
	") STRICT;"
	"INSERT INTO chain VALUES (1, 0, 0, 0, zeroblob(32));"
	"CREATE TABLE answer ("
	" scope TEXT NOT NULL, key TEXT NOT NULL,"
	" request_hash BLOB NOT NULL CHECK (length(request_hash) = 32),"
	" status INTEGER NOT NULL CHECK (status BETWEEN 0 AND 999),"
	" expires_ms INTEGER NOT NULL,"
	" headers TEXT NOT NULL,"
	" body BLOB NOT NULL,"
	" PRIMARY KEY (scope, key)"
	") STRICT, WITHOUT ROWID;"
	"CREATE INDEX answer_by_expiry ON answer (expires_ms);"
	"CREATE TABLE violation ("
	" id INTEGER PRIMARY KEY,"
	" revision INTEGER NOT NULL CHECK (revision > 0),"
	" time_ms INTEGER NOT NULL,"
	" host TEXT CHECK (length(host) = 36),"
	" vm TEXT CHECK (length(vm) = 36),"
	" actor TEXT NOT NULL,"
	" json TEXT NOT NULL"
	") STRICT;"
	"CREATE INDEX violation_by_revision ON violation (revision);"
	"CREATE INDEX violation_by_time ON violation (time_ms);"
	"CREATE INDEX violation_by_host ON violation (host, revision) WHERE host IS NOT NULL;"
	"CREATE INDEX violation_by_vm ON violation (vm, revision) WHERE vm IS NOT NULL;"
	"CREATE TABLE probe (one INTEGER PRIMARY KEY CHECK (one = 1), writes INTEGER NOT NULL) STRICT;"
	"INSERT INTO probe VALUES (1, 0);"
	"PRAGMA application_id = 0x50574a31;"
	"PRAGMA user_version = 1;",
	/* A refusal that repeats is counted with the first one. */
	"ALTER TABLE violation ADD COLUMN count INTEGER NOT NULL DEFAULT 1 CHECK (count > 0);"
	"ALTER TABLE violation ADD COLUMN last_ms INTEGER;" /* of the last one; NULL: it was the only one */
	"PRAGMA user_version = 2;",
};

static const char *const ledger_steps[] = {
	"CREATE TABLE meta ("
	" one INTEGER PRIMARY KEY CHECK (one = 1),"
	" revision INTEGER NOT NULL CHECK (revision >= 0)"
	") STRICT;"
	"INSERT INTO meta VALUES (1, 0);"
	"CREATE TABLE host ("
	" id TEXT PRIMARY KEY CHECK (length(id) = 36),"
	" name TEXT NOT NULL, boot_id TEXT NOT NULL,"
	" backends TEXT NOT NULL," /* JSON, as registered */
	" agent_version TEXT NOT NULL,"
	" epoch INTEGER NOT NULL CHECK (epoch > 0),"
	" fenced INTEGER NOT NULL CHECK (fenced IN (0, 1)),"
	" has_local INTEGER NOT NULL CHECK (has_local IN (0, 1)),"
	" arches INTEGER NOT NULL CHECK (arches >= 0),"
	" base_pfn INTEGER NOT NULL CHECK (base_pfn >= 0),"
	" frames INTEGER NOT NULL CHECK (frames >= 0),"
	" page_shift INTEGER NOT NULL CHECK (page_shift BETWEEN 0 AND 63),"
	" last_seen_ms INTEGER NOT NULL,"
	" revision INTEGER NOT NULL CHECK (revision >= 0)"
	") STRICT, WITHOUT ROWID;"
	"CREATE TABLE pool (" /* the shared ones */
	" name TEXT PRIMARY KEY CHECK (length(name) BETWEEN 1 AND 63),"
	" base_pfn INTEGER NOT NULL CHECK (base_pfn >= 0),"
	" frames INTEGER NOT NULL CHECK (frames >= 0),"
	" page_shift INTEGER NOT NULL CHECK (page_shift BETWEEN 0 AND 63),"
	" revision INTEGER NOT NULL CHECK (revision >= 0)"
	") STRICT, WITHOUT ROWID;"
	"CREATE TABLE pool_host ("
	" pool TEXT NOT NULL REFERENCES pool (name),"
	" host TEXT NOT NULL REFERENCES host (id),"
	" place INTEGER NOT NULL CHECK (place BETWEEN 1 AND 255)," /* gfn_extent.pool_place of that host's VMs */
	" PRIMARY KEY (host, place), UNIQUE (pool, host)"
	") STRICT, WITHOUT ROWID;"
	"CREATE TABLE vm ("
	" number INTEGER PRIMARY KEY,"
	" id TEXT NOT NULL UNIQUE CHECK (length(id) = 36),"
	" host TEXT NOT NULL REFERENCES host (id),"
	" name TEXT NOT NULL, arch TEXT NOT NULL,"
	" state TEXT NOT NULL CHECK (state IN ('normal', 'transient', 'secure')),"
	" epoch INTEGER NOT NULL CHECK (epoch > 0),"
	" shared_bit INTEGER NOT NULL CHECK (shared_bit BETWEEN 0 AND 63),"
	" revision INTEGER NOT NULL CHECK (revision >= 0)"
	") STRICT;"
	"CREATE TABLE slot ("
	" vm INTEGER NOT NULL REFERENCES vm (number),"
	" slot INTEGER NOT NULL CHECK (slot >= 0),"
	" base_gfn INTEGER NOT NULL CHECK (base_gfn >= 0),"
	" pages INTEGER NOT NULL CHECK (pages > 0),"
	" PRIMARY KEY (vm, slot)"
	") STRICT, WITHOUT ROWID;"
	"CREATE TABLE gfn_extent (" /* GFNs inside slots without a row are normal */
	" vm INTEGER NOT NULL REFERENCES vm (number),"
	" gfn INTEGER NOT NULL CHECK (gfn >= 0),"
	" count INTEGER NOT NULL CHECK (count > 0),"
	" state TEXT NOT NULL CHECK (state IN ('normal', 'secure', 'shared')),"
	" resident INTEGER NOT NULL CHECK (resident = 0 OR (resident = 1 AND state = 'secure')),"
	" pool_place INTEGER CHECK (pool_place BETWEEN 0 AND 255)," /* 0: local; else pool_host.place */
	" pfn INTEGER CHECK (pfn >= 0),"
	" arch_bits INTEGER NOT NULL CHECK (arch_bits BETWEEN 0 AND 4095)," /* the architecture's sub-state */
	" CHECK (resident = 0 OR (pool_place IS NOT NULL AND pfn IS NOT NULL)),"
	" PRIMARY KEY (vm, gfn)"
	") STRICT, WITHOUT ROWID;"
	"CREATE TABLE quarantine ("
	" id INTEGER PRIMARY KEY,"
	" host TEXT REFERENCES host (id)," /* of a local pool */
	" pool TEXT NOT NULL,"
	" pfn INTEGER NOT NULL CHECK (pfn >= 0),"
	" count INTEGER NOT NULL CHECK (count > 0),"
	" reason TEXT NOT NULL,"
	" time_ms INTEGER NOT NULL"
	") STRICT;"
	"CREATE TABLE operation ("
	" number INTEGER PRIMARY KEY,"
	" id TEXT NOT NULL UNIQUE CHECK (length(id) = 36),"
	" vm TEXT NOT NULL CHECK (length(vm) = 36)," /* may be gone */
	" host TEXT NOT NULL CHECK (length(host) = 36),"
	" kind TEXT NOT NULL,"
	" state TEXT NOT NULL CHECK (state IN ('pending', 'running', 'succeeded', 'failed', 'cancelled')),"
	" params TEXT NOT NULL, problem TEXT NOT NULL,"
	" host_epoch INTEGER NOT NULL CHECK (host_epoch >= 0),"
	" created_ms INTEGER NOT NULL, started_ms INTEGER NOT NULL, finished_ms INTEGER NOT NULL,"
	" revision INTEGER NOT NULL CHECK (revision >= 0)"
	") STRICT;"
	"CREATE TABLE token ("
	" id TEXT PRIMARY KEY CHECK (length(id) = 36),"
	" role TEXT NOT NULL CHECK (role IN ('admin', 'operator', 'viewer', 'agent')),"
	" name TEXT NOT NULL,"
	" host TEXT CHECK (length(host) = 36),"
	" hash BLOB NOT NULL CHECK (length(hash) = 32)," /* of the secret, which nobody keeps */
	" created_ms INTEGER NOT NULL,"
	" revision INTEGER NOT NULL CHECK (revision >= 0)"
	") STRICT, WITHOUT ROWID;"
	/* For people: the memory map by VM id, with the pool's name. */
	"CREATE VIEW gfn_map AS"
	" SELECT v.id AS vm, v.name AS vm_name, v.host AS host, e.gfn, e.count, e.state, e.resident,"
	"  CASE WHEN NOT e.resident THEN NULL WHEN e.pool_place = 0 THEN 'local' ELSE p.pool END AS pool, e.pfn"
	" FROM gfn_extent e JOIN vm v ON v.number = e.vm"
	" LEFT JOIN pool_host p ON p.host = v.host AND p.place = e.pool_place;"
	"PRAGMA application_id = 0x50574a31;"
	"PRAGMA user_version = 1;",
	/* Said to be out of reach in the feed. */
	"ALTER TABLE host ADD COLUMN unreachable INTEGER NOT NULL DEFAULT 0 CHECK (unreachable IN (0, 1));"
	"PRAGMA user_version = 2;",
	/* The architecture's state by name in place of a number that nobody had set yet. */
	"ALTER TABLE gfn_extent DROP COLUMN arch_bits;"
	"ALTER TABLE gfn_extent ADD COLUMN arch_state TEXT CHECK (length(arch_state) > 0);" /* NULL: at rest, or none */
	"DROP VIEW gfn_map;"
	"CREATE VIEW gfn_map AS"
	" SELECT v.id AS vm, v.name AS vm_name, v.host AS host, e.gfn, e.count, e.state, e.resident,"
	"  CASE WHEN NOT e.resident THEN NULL WHEN e.pool_place = 0 THEN 'local' ELSE p.pool END AS pool, e.pfn,"
	"  v.arch, e.arch_state"
	" FROM gfn_extent e JOIN vm v ON v.number = e.vm"
	" LEFT JOIN pool_host p ON p.host = v.host AND p.place = e.pool_place;"
	"PRAGMA user_version = 3;",
	/* What the host saw of a protected vCPU at its last exit. */
	"CREATE TABLE vcpu_exit ("
	" vm INTEGER NOT NULL REFERENCES vm (number),"
	" vcpu INTEGER NOT NULL CHECK (vcpu >= 0),"
	" exit TEXT NOT NULL,"
	" items TEXT NOT NULL," /* JSON: name and value of each that the exit shows */
	" time_ms INTEGER NOT NULL,"
	" revision INTEGER NOT NULL CHECK (revision >= 0),"
	" PRIMARY KEY (vm, vcpu)"
	") STRICT, WITHOUT ROWID;"
	"PRAGMA user_version = 4;",
	/* The VM's state as its architecture has it, by name. */
	"ALTER TABLE vm ADD COLUMN arch_state TEXT NOT NULL DEFAULT '';" /* empty: none, or the one at rest */
	"PRAGMA user_version = 5;",
	/* The record of what ended, and what hosts have that the ledger does not own. */
	"ALTER TABLE vm ADD COLUMN ended INTEGER NOT NULL DEFAULT 0 CHECK (ended >= 0);"
	"UPDATE vm SET ended = revision WHERE state = 'normal';"
	"CREATE TABLE ended ("
	" vm TEXT NOT NULL CHECK (length(vm) = 36),"
	" slot INTEGER NOT NULL CHECK (slot >= -1)," /* -1: the VM was deleted */
	" host TEXT NOT NULL CHECK (length(host) = 36),"
	" revision INTEGER NOT NULL CHECK (revision >= 0),"
	" time_ms INTEGER NOT NULL,"
	" PRIMARY KEY (vm, slot)"
	") STRICT, WITHOUT ROWID;"
	"CREATE INDEX ended_by_revision ON ended (revision);"
	"CREATE TABLE unknown_vm ("
	" host TEXT NOT NULL REFERENCES host (id),"
	" vm TEXT NOT NULL CHECK (length(vm) = 36),"
	" report TEXT NOT NULL," /* JSON, as its agent told of it */
	" since_ms INTEGER NOT NULL,"
	" revision INTEGER NOT NULL CHECK (revision >= 0),"
	" PRIMARY KEY (host, vm)"
	") STRICT, WITHOUT ROWID;"
	"PRAGMA user_version = 6;",
	/* Hardware may have the VM. */
	"ALTER TABLE vm ADD COLUMN on_hardware INTEGER NOT NULL DEFAULT 0 CHECK (on_hardware IN (0, 1));"
	"UPDATE vm SET on_hardware = 1 WHERE state <> 'normal'"
	" OR id IN (SELECT vm FROM operation WHERE kind = 'launch' AND state = 'running');"
	"PRAGMA user_version = 7;",
	/* The picture's checksum. */
	"ALTER TABLE meta ADD COLUMN schema INTEGER NOT NULL DEFAULT 0 CHECK (schema >= 0);" /* of the sums; 0: none */
	"ALTER TABLE meta ADD COLUMN journal_hash BLOB NOT NULL DEFAULT x'';" /* of the row that ends with revision */
	"ALTER TABLE meta ADD COLUMN seal BLOB NOT NULL DEFAULT x'';"
	"CREATE TABLE checksum ("
	" name TEXT PRIMARY KEY,"
	" rows INTEGER NOT NULL CHECK (rows >= 0),"
	" sum BLOB NOT NULL CHECK (length(sum) = 32)"
	") STRICT, WITHOUT ROWID;"
	"PRAGMA user_version = 8;",
	/* A row for each stretch of a VM's tree in place of one for each extent; extents are a view of that. */
	"CREATE TABLE gfn_span ("
	" vm INTEGER NOT NULL REFERENCES vm (number),"
	" gfn INTEGER NOT NULL CHECK (gfn >= 0),"
	/* JSON: [[offset,count,kind,pool_place,pfn,arch_state],...] in ascending order, offset from this gfn; see
	 * store/extent.h. kind 0: normal, 1: secure and resident, 2: secure and paged out, 3: shared */
	" runs TEXT NOT NULL CHECK (length(runs) > 0),"
	" PRIMARY KEY (vm, gfn)"
	") STRICT;"
	"INSERT INTO gfn_span SELECT vm, gfn, '[[0,' || count || ',' ||"
	" CASE state WHEN 'normal' THEN 0 WHEN 'shared' THEN 3 ELSE 2 - resident END ||"
	" CASE WHEN pool_place IS NOT NULL THEN ',' || pool_place || ',' || pfn"
	"  WHEN arch_state IS NOT NULL THEN ',null,null' ELSE '' END ||"
	" CASE WHEN arch_state IS NOT NULL THEN ',\"' || arch_state || '\"' ELSE '' END || ']]'"
	" FROM gfn_extent ORDER BY vm, gfn;"
	"DROP TABLE gfn_extent;"
	"DELETE FROM checksum WHERE name = 'gfn_extent';"
	"CREATE VIEW gfn_extent AS" /* GFNs inside slots without a row are normal */
	" SELECT s.vm, s.gfn + json_extract(r.value, '$[0]') AS gfn, json_extract(r.value, '$[1]') AS count,"
	"  CASE json_extract(r.value, '$[2]') WHEN 0 THEN 'normal' WHEN 3 THEN 'shared' ELSE 'secure' END AS state,"
	"  json_extract(r.value, '$[2]') = 1 AS resident,"
	"  json_extract(r.value, '$[3]') AS pool_place," /* 0: local; else pool_host.place */
	"  json_extract(r.value, '$[4]') AS pfn,"
	"  json_extract(r.value, '$[5]') AS arch_state" /* NULL: at rest, or none */
	" FROM gfn_span s, json_each(s.runs) r;"
	"PRAGMA user_version = 9;",
};

static const struct {
	const char *const *step;
	unsigned count;
} schemas[SCHEMA_COUNT] = {
	[SCHEMA_JOURNAL] = { journal_steps, PW_ARRAY_LEN(journal_steps) },
	[SCHEMA_LEDGER] = { ledger_steps, PW_ARRAY_LEN(ledger_steps) },
};

unsigned schema_newest(enum schema which)
{
	return schemas[which].count;
}

static enum pw_status check_owner(struct db *db, int64_t version, struct pw_err *err)
{
	int64_t application, pages;
	enum pw_status st = db_number(db, "PRAGMA application_id", &application, err);

	if (st == PW_OK)
		st = db_number(db, "PRAGMA page_count", &pages, err);
	if (st != PW_OK)
		return st;
	if (version == 0 ? pages > 0 && application != 0 : application != APPLICATION)
		return pw_fail(err, PW_CONFLICT, "%s: not a file of pagewarden (application_id %" PRId64 ")", db->file,
			       application);
	return PW_OK;
}

static enum pw_status run_step(struct db *db, const char *sql, struct pw_err *err)
{
	enum pw_status st = db_exec(db, "BEGIN IMMEDIATE", err);

	if (st == PW_OK)
		st = db_exec(db, sql, err);
	if (st == PW_OK)
		st = db_exec(db, "COMMIT", err);
	if (st != PW_OK)
		db_rollback(db);
	return st;
}

enum pw_status schema_upgrade(struct db *db, enum schema which, unsigned version, struct pw_err *err)
{
	int64_t at;
	enum pw_status st = db_number(db, "PRAGMA user_version", &at, err);

	if (st == PW_OK)
		st = check_owner(db, at, err);
	if (st != PW_OK)
		return st;
	if (at < 0 || at > version)
		return pw_fail(err, PW_CONFLICT, "%s: schema %" PRId64 " is newer than this program's %u", db->file, at,
			       version);
	for (; at < version; at++) {
		st = run_step(db, schemas[which].step[at], err);
		if (st != PW_OK)
			return pw_wrap(err, "schema step %" PRId64, at + 1);
	}
	return PW_OK;
}
