/* store/store.h
 *
 * Durable state, in two SQLite files of one directory:
 *
 *   journal.db  the truth: one row a committed group, each with the hash of its predecessor; saved answers; violations
 *   ledger.db   its picture: the readable tables (host, pool, vm, slot, gfn_span, operation, ...) as of one revision
 *
 * Two files, because SQLite has one writer a file, and a picture being painted must not hold up a commit. Both are in
 * WAL mode; the journal commits with synchronous=FULL. Whoever opens the files with sqlite3 sees committed state.
 *
 * Threads: a group (store_begin .. store_commit) belongs to the thread that began it; pictures to one painter thread;
 * everything under "Reading" may be called from any thread at any time and never waits for the other two.
 */
#ifndef PW_STORE_STORE_H
#define PW_STORE_STORE_H
#include "engine/ledger.h"

struct store;

/*
 * Opens or creates dir's files (the directory must exist), brings the schema up to date, prepares every statement.
 * PW_BUSY     another process has the directory (an advisory lock on dir/lock is held until store_close)
 * PW_CONFLICT the schema is newer than this program
 * PW_STORAGE  the database or the disk refuses
 */
enum pw_status store_open(const char *dir, struct store **out, struct pw_err *err) PW_MUST_CHECK;
/* The same. *moves grows while opening and loading get on; it must outlive the store. */
enum pw_status store_open_telling(const char *dir, _Atomic uint64_t *moves, struct store **out,
				  struct pw_err *err) PW_MUST_CHECK;
void store_close(struct store *s);

/* --- Groups: what is committed together, with one flush. Whoever has begun one, until its end; others wait for it. ---
 */

#define STORE_HASH 32
struct journal_row {
	uint64_t first, last; /* revisions of its records; consecutive rows follow each other without a gap */
	int64_t time_ms;      /* since 1970, UTC */
	const void *records;  /* borrowed; opaque here (server/record.h) */
	size_t size;
	uint8_t hash[STORE_HASH]; /* of (predecessor's hash, first, last, time_ms, records); filled when read */
};
/* On failure there is no group. A trim in progress is waited for, one small step of it. */
enum pw_status store_begin(struct store *s, struct pw_err *err) PW_MUST_CHECK;
/* Appends the group's row; at most one a group. PW_CONFLICT unless first is the last revision + 1. */
enum pw_status store_append(struct store *s, const struct journal_row *row, struct pw_err *err) PW_MUST_CHECK;
/*
 * After a failure of anything in a group, only store_rollback remains (PW_NOT_FOUND is no failure). A failed commit did
 * not happen: no later start finds anything of it, since what it left in the log was made void, durably.
 * PW_UNKNOWN  not even that was possible. The group is rolled back as far as anyone in this process sees, but the next
 *             start may find it: the store is in doubt.
 */
enum pw_status store_commit(struct store *s, struct pw_err *err) PW_MUST_CHECK;
void store_rollback(struct store *s);
/*
 * In doubt nothing is begun (PW_UNKNOWN), until store_probe could make the failed commit void; or until a new start has
 * found out what became of it. Any thread.
 */
bool store_in_doubt(const struct store *s);
/* A tiny durable write outside of any group: does the disk accept again? It also is what ends a doubt. */
enum pw_status store_probe(struct store *s, struct pw_err *err) PW_MUST_CHECK;

/*
 * Saved answers: idempotency keys and the last batch of each agent. scope: whose (a token or host id), key: which.
 * Saving replaces. Inside a group; an answer saved in this group is found in it.
 */
struct answer {
	uint8_t request_hash[STORE_HASH];
	unsigned status;
	const char *headers; /* "Location: ...\n" lines or ""; of the last batch: which it was */
	const void *body;
	size_t size;
	int64_t expires_ms;
	void *memory; /* what headers and body live in, when found: free() it */
};
/* PW_NOT_FOUND when there is none, or only one that had expired at now_ms. */
enum pw_status store_answer_find(struct store *s, const char *scope, const char *key, int64_t now_ms,
				 struct answer *out, struct pw_err *err) PW_MUST_CHECK;
enum pw_status store_answer_save(struct store *s, const char *scope, const char *key, const struct answer *a,
				 struct pw_err *err) PW_MUST_CHECK;
/* Forgets the oldest that have expired; *gone: how many. */
enum pw_status store_answers_expire(struct store *s, int64_t now_ms, unsigned at_most, unsigned *gone,
				    struct pw_err *err) PW_MUST_CHECK;

struct violation {
	uint64_t revision;
	int64_t time_ms;
	struct pw_uuid host, vm; /* nil: none */
	const char *actor;
	const char *json; /* the violation as it is answered, UTF-8, apart from its repeats: an object with members */
	uint64_t count;   /* when read: how often it was refused, */
	int64_t last_ms;  /* and when last */
};
enum pw_status store_violation_add(struct store *s, const struct violation *v, struct pw_err *err) PW_MUST_CHECK;
/* That of a revision was refused so often, and last at this time. One that is gone, or was counted further already, is
 * no failure. */
enum pw_status store_violation_repeats(struct store *s, uint64_t revision, uint64_t count, int64_t last_ms,
				       struct pw_err *err) PW_MUST_CHECK;

/* --- Reading. Any thread. Only committed state is seen. --- */

struct journal_span {
	uint64_t oldest, newest; /* revisions; newest 0: empty journal. oldest > 1: trimmed; newest + 1: all of it */
	uint64_t rows, bytes;    /* bytes of records, approximately */
};
void store_span(struct store *s, struct journal_span *out); /* from memory, never waits */

/*
 * fn returns false to stop. The row and what it points to live until fn returns. fn must not call the store, and should
 * be quick. A long read is made in pieces, each of which sees what is committed when it begins (the WAL cannot start
 * over during one): rows that were trimmed between two of them are not there, which the revisions show.
 */
typedef bool (*journal_fn)(void *ctx, const struct journal_row *row);
/* Rows with last > after, oldest first. */
enum pw_status store_read(struct store *s, uint64_t after, journal_fn fn, void *ctx, struct pw_err *err) PW_MUST_CHECK;
/* Rows with first < before, newest first. */
enum pw_status store_read_back(struct store *s, uint64_t before, journal_fn fn, void *ctx,
			       struct pw_err *err) PW_MUST_CHECK;

struct violation_filter {
	struct pw_uuid host, vm; /* nil: any */
	uint64_t after;          /* revision > after */
	uint64_t before;         /* revision < before; 0: no bound */
	unsigned limit;
};
typedef void (*violation_fn)(void *ctx, const struct violation *v);
/* Newest first. The limit is rounded up to whole revisions, so that `before` the last one's pages on without a loss. */
enum pw_status store_violations(struct store *s, const struct violation_filter *f, violation_fn fn, void *ctx,
				struct pw_err *err) PW_MUST_CHECK;
/* Violations with time_ms >= since, and the refusals that they stand for, for each minute that has any (time_ms is some
 * time in it). */
typedef void (*violation_count_fn)(void *ctx, int64_t time_ms, uint64_t violations, uint64_t refusals);
enum pw_status store_violation_count(struct store *s, int64_t since_ms, violation_count_fn fn, void *ctx,
				     struct pw_err *err) PW_MUST_CHECK;

/* --- The picture. Painter thread; loading before any other thread starts. --- */

struct host_row {
	struct pw_uuid id;
	const char *name, *boot_id, *backends, *agent_version; /* backends: JSON as registered; agent_version or "" */
	uint64_t epoch;
	bool fenced, has_local;
	uint32_t arches;
	uint64_t base, frames;
	unsigned page_shift;
	int64_t last_seen_ms;
	uint64_t revision;
	bool unreachable; /* the feed says so */
};
struct pool_row { /* shared pools */
	const char *name;
	uint64_t base, frames;
	unsigned page_shift;
	uint64_t revision;
};
struct attachment_row {
	const char *pool;
	struct pw_uuid host;
	unsigned place; /* in the host's list: part of the meaning of extents */
};
struct vm_row {
	struct pw_uuid id, host;
	const char *name, *arch, *state;
	const char *arch_state; /* the architecture's own, by name; "": it has none, or is at rest */
	uint64_t epoch;
	unsigned shared_bit;
	uint64_t revision;
	uint64_t ended; /* revision at which it last fell to normal, or was created */
	bool on_hardware;
};
struct slot_row {
	struct pw_uuid vm;
	struct slot slot;
};
struct vcpu_row { /* what the host saw of a protected vCPU */
	struct pw_uuid vm;
	unsigned vcpu;
	const char *exit, *items; /* items: JSON */
	int64_t time_ms;
	uint64_t revision;
};
struct extent_row {
	struct pw_uuid vm;
	uint64_t gfn, count;
	/* As in the VM's tree; 0: a span whose rows are void, written before the rows inside it. Loading leaves out
	 * GFN_ENTRY_ARCH, for which arch_state is there. */
	uint64_t entry;
	const char *arch_state; /* the name of the architecture's state; NULL: it is at rest, or has none */
};
struct quarantine_row {
	struct pw_uuid host; /* of a local pool; nil for a shared one */
	const char *pool;
	uint64_t pfn, count;
	const char *reason;
	int64_t time_ms;
};
struct operation_row {
	struct pw_uuid id, vm, host;
	const char *kind, *state, *params, *problem; /* JSON text, or "" */
	uint64_t host_epoch;                         /* for which it runs */
	int64_t created_ms, started_ms, finished_ms; /* 0: not yet */
	uint64_t revision;
};
struct token_row {
	struct pw_uuid id;
	const char *role, *name;
	struct pw_uuid host; /* nil: none */
	uint8_t hash[STORE_HASH];
	int64_t created_ms;
	uint64_t revision;
};

struct end_row { /* the deletion of a VM, or of one of its slots */
	struct pw_uuid vm;
	int64_t slot; /* -1: the VM's */
	struct pw_uuid host;
	uint64_t revision;
	int64_t time_ms;
};
struct unknown_row { /* a VM that a host has and the ledger does not own */
	struct pw_uuid host, vm;
	const char *report; /* JSON */
	int64_t since_ms;
	uint64_t revision;
};

/*
 * What changed since the last picture. Lists are upserts by id; the deleted are named. Some tables are small and come
 * whole. `full`: everything is here, forget the old picture.
 * It may come in parts, of later and later revisions: what a part says replaces what those before it said. Only the
 * last one has the tables that come whole, and its revision is the picture's.
 */
struct picture {
	uint64_t revision; /* the state is exactly that after this revision */
	bool full;         /* of all parts of it alike */
	bool more;         /* a part: others follow */
	struct host_row *hosts;
	size_t host_count;
	struct pool_row *pools; /* whole */
	size_t pool_count;
	struct attachment_row *attachments; /* whole */
	size_t attachment_count;
	struct vm_row *vms;
	size_t vm_count;
	struct slot_row *slots; /* all slots of the VMs in vms */
	size_t slot_count;
	struct vcpu_row *vcpus; /* all of the VMs in vms */
	size_t vcpu_count;
	struct pw_uuid *deleted_vms; /* with their slots and extents; applied before vms */
	size_t deleted_vm_count;
	struct extent_row *extents; /* span, its runs in order, span, its runs ...: a row of gfn_span for each */
	size_t extent_count;
	struct quarantine_row *quarantine; /* whole */
	size_t quarantine_count;
	struct operation_row *operations;
	size_t operation_count;
	struct pw_uuid *deleted_operations;
	size_t deleted_operation_count;
	struct token_row *tokens; /* whole */
	size_t token_count;
	uint64_t ends_from; /* ends of revisions below are gone; applied before `ends` */
	struct end_row *ends;
	size_t end_count;
	struct unknown_row *unknown; /* whole */
	size_t unknown_count;
};
/*
 * All or nothing, durable when it returns for the last part. After a failure nothing is left of the parts before.
 * PW_CONFLICT  older than the picture that is there, and not full
 * PW_INVALID   an extent of an unknown VM, or an entry that no VM's tree has
 */
enum pw_status store_save_picture(struct store *s, const struct picture *p, struct pw_err *err) PW_MUST_CHECK;
void store_drop_picture(struct store *s); /* gives up one whose last part is missing; else nothing */

/* Rows come in the order of these members; a callback's status other than PW_OK ends the loading with it. */
struct picture_reader {
	void *ctx;
	enum pw_status (*host)(void *ctx, const struct host_row *r, struct pw_err *err);
	enum pw_status (*pool)(void *ctx, const struct pool_row *r, struct pw_err *err);
	enum pw_status (*attachment)(void *ctx, const struct attachment_row *r, struct pw_err *err);
	enum pw_status (*vm)(void *ctx, const struct vm_row *r, struct pw_err *err);
	enum pw_status (*slot)(void *ctx, const struct slot_row *r, struct pw_err *err);
	enum pw_status (*vcpu)(void *ctx, const struct vcpu_row *r, struct pw_err *err);
	enum pw_status (*quarantine)(void *ctx, const struct quarantine_row *r, struct pw_err *err);
	enum pw_status (*extent)(void *ctx, const struct extent_row *r, struct pw_err *err);
	enum pw_status (*operation)(void *ctx, const struct operation_row *r, struct pw_err *err);
	enum pw_status (*token)(void *ctx, const struct token_row *r, struct pw_err *err);
	enum pw_status (*end)(void *ctx, const struct end_row *r, struct pw_err *err);
	enum pw_status (*unknown)(void *ctx, const struct unknown_row *r, struct pw_err *err);
};
/*
 * *revision 0: there is no picture yet.
 * PW_STORAGE  also where picture and journal do not meet: files that do not belong together
 */
enum pw_status store_load_picture(struct store *s, const struct picture_reader *r, uint64_t *revision,
				  struct pw_err *err) PW_MUST_CHECK;

/*
 * ledger.db has a checksum over each row and column of it, its revision and the journal's hash there. A picture that is
 * not what was saved stops store_open (PW_STORAGE), unless the journal still has all that it was made of: then the file
 * is put aside as ledger.db.damaged and there is no picture. Why, in words; NULL: that did not happen.
 */
const char *store_picture_lost(const struct store *s);
/* False: an older program saved it, and it has no checksum before a full one was saved. */
bool store_picture_is_sealed(const struct store *s);

/* --- Upkeep. One thread. --- */

/*
 * Moves what is committed out of the journal's WAL into its file, off the commit path; gives back what the WAL's file
 * has grown beyond its bound, once nobody reads in it any more. Never holds the turn for longer than a tiny commit.
 */
enum pw_status store_wal_checkpoint(struct store *s, struct pw_err *err) PW_MUST_CHECK;
/* The same for the picture's file. Painter thread. */
enum pw_status store_wal_checkpoint_picture(struct store *s, struct pw_err *err) PW_MUST_CHECK;
/* The sizes of the WAL files, and the bound that they go back to when nothing hinders them. Bytes. Any thread. */
struct wal_sizes {
	uint64_t journal, ledger, bound;
};
void store_wal_sizes(const struct store *s, struct wal_sizes *out);

/* Deletes rows (and violations) up to revision `through` (never past the picture's revision) in small steps; the hash
 * chain then starts from the kept hash of the last one deleted. Does nothing while a backup is being made. */
enum pw_status store_trim(struct store *s, uint64_t through, struct pw_err *err) PW_MUST_CHECK;
/* The newest revision whose row is older than time_ms (times are taken to grow), and the one such that rows after it
 * hold at most max_bytes. 0: none. */
uint64_t store_revision_before(struct store *s, int64_t time_ms);
uint64_t store_revision_keeping(struct store *s, uint64_t max_bytes);

/* Told every few milliseconds by what takes long, in bytes; total is an estimate. False ends it, with PW_BUSY. */
struct progress {
	bool (*fn)(void *ctx, uint64_t done, uint64_t total);
	void *ctx;
};

/* A consistent copy of both files into the new directory dest, while all goes on. PW_CONFLICT: dest exists. On failure
 * there is no dest. p may be NULL. Any one thread. */
enum pw_status store_backup(struct store *s, const char *dest, const struct progress *p, uint64_t *revision,
			    struct pw_err *err) PW_MUST_CHECK;

/* Checks the hash chain from the oldest row on to what was the newest when it began, that revisions have no gap, and
 * the picture's checksum. Opens dir by itself, read-only, and reads the journal in pieces: rows may be added and
 * trimmed meanwhile. p may be NULL. */
struct verify_report {
	uint64_t rows, oldest, newest; /* what held */
	uint64_t broken;               /* the first revision that no good row holds; 0: none. newest is before it */
	uint8_t head[STORE_HASH];
	enum picture_verdict {
		PICTURE_OK,
		PICTURE_UNSEALED, /* saved by an older program, or there is none: it has no checksum */
		PICTURE_DAMAGED
	} picture;
	uint64_t picture_revision;
	char picture_fault[192]; /* of a damaged one */
};
const char *picture_verdict_name(enum picture_verdict v);
enum pw_status store_verify(const char *dir, const struct progress *p, struct verify_report *out,
			    struct pw_err *err) PW_MUST_CHECK;

#endif
