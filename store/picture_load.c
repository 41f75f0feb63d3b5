#include "store/store.h"

#include "store/extent.h"
#include "store/inner.h"

enum { REVISION, HOST, POOL, ATTACHMENT, VM, SLOT, VCPU, QUARANTINE, SPAN, OPERATION, TOKEN, END, UNKNOWN };
static const char *const text[] = {
	[REVISION] = "SELECT revision FROM meta",
	[HOST] =
		"SELECT id, name, boot_id, backends, agent_version, epoch, fenced, has_local, arches, base_pfn, frames,"
		" page_shift, last_seen_ms, revision, unreachable FROM host ORDER BY id",
	[POOL] = "SELECT name, base_pfn, frames, page_shift, revision FROM pool ORDER BY name",
	[ATTACHMENT] = "SELECT pool, host, place FROM pool_host ORDER BY host, place",
	[VM] = "SELECT id, host, name, arch, state, arch_state, epoch, shared_bit, revision, ended, on_hardware FROM vm"
	       " ORDER BY number",
	[SLOT] = "SELECT v.id, s.slot, s.base_gfn, s.pages FROM vm v CROSS JOIN slot s ON s.vm = v.number"
		 " ORDER BY v.number, s.base_gfn",
	[VCPU] = "SELECT v.id, c.vcpu, c.exit, c.items, c.time_ms, c.revision FROM vm v CROSS JOIN vcpu_exit c"
		 " ON c.vm = v.number ORDER BY v.number, c.vcpu",
	[QUARANTINE] = "SELECT host, pool, pfn, count, reason, time_ms FROM quarantine ORDER BY id",
	[SPAN] = "SELECT v.id, s.gfn, s.runs FROM vm v CROSS JOIN gfn_span s ON s.vm = v.number"
		 " ORDER BY v.number, s.gfn",
	[OPERATION] = "SELECT id, vm, host, kind, state, params, problem, host_epoch, created_ms, started_ms,"
		      " finished_ms, revision FROM operation ORDER BY finished_ms, number",
	[TOKEN] = "SELECT id, role, name, host, hash, created_ms, revision FROM token ORDER BY id",
	[END] = "SELECT vm, slot, host, revision, time_ms FROM ended ORDER BY vm, slot",
	[UNKNOWN] = "SELECT host, vm, report, since_ms, revision FROM unknown_vm ORDER BY host, vm",
};
const struct sql_table picture_load_sql = { text, PW_ARRAY_LEN(text) };

/* Each of these turns one row into a struct, and if it makes sense, hands it out. */
typedef enum pw_status (*row_fn)(struct query *q, const struct picture_reader *r, struct pw_err *err);

static enum pw_status load_host(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct host_row h = {
		.id = row_uuid(q, 0),
		.name = row_text(q, 1),
		.boot_id = row_text(q, 2),
		.backends = row_text(q, 3),
		.agent_version = row_text(q, 4),
		.epoch = row_u64(q, 5, INT64_MAX),
		.fenced = row_u64(q, 6, 1),
		.has_local = row_u64(q, 7, 1),
		.arches = (uint32_t)row_u64(q, 8, UINT32_MAX),
		.base = row_u64(q, 9, TREE_PAGES),
		.frames = row_u64(q, 10, TREE_PAGES),
		.page_shift = (unsigned)row_u64(q, 11, 63),
		.last_seen_ms = row_i64(q, 12),
		.revision = row_u64(q, 13, INT64_MAX),
		.unreachable = row_u64(q, 14, 1),
	};
	enum pw_status st = row_check(q, "host", err);

	return st == PW_OK ? r->host(r->ctx, &h, err) : st;
}

static enum pw_status load_pool(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct pool_row p = {
		.name = row_text(q, 0),
		.base = row_u64(q, 1, TREE_PAGES),
		.frames = row_u64(q, 2, TREE_PAGES),
		.page_shift = (unsigned)row_u64(q, 3, 63),
		.revision = row_u64(q, 4, INT64_MAX),
	};
	enum pw_status st = row_check(q, "pool", err);

	return st == PW_OK ? r->pool(r->ctx, &p, err) : st;
}

static enum pw_status load_attachment(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct attachment_row a = {
		.pool = row_text(q, 0),
		.host = row_uuid(q, 1),
		.place = (unsigned)row_u64(q, 2, HOST_POOLS_MAX - 1),
	};
	enum pw_status st = row_check(q, "pool_host", err);

	return st == PW_OK ? r->attachment(r->ctx, &a, err) : st;
}

static enum pw_status load_vm(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct vm_row v = {
		.id = row_uuid(q, 0),
		.host = row_uuid(q, 1),
		.name = row_text(q, 2),
		.arch = row_text(q, 3),
		.state = row_text(q, 4),
		.arch_state = row_text(q, 5),
		.epoch = row_u64(q, 6, INT64_MAX),
		.shared_bit = (unsigned)row_u64(q, 7, 63),
		.revision = row_u64(q, 8, INT64_MAX),
		.ended = row_u64(q, 9, INT64_MAX),
		.on_hardware = row_u64(q, 10, 1) != 0,
	};
	enum pw_status st = row_check(q, "vm", err);

	return st == PW_OK ? r->vm(r->ctx, &v, err) : st;
}

static enum pw_status load_slot(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct slot_row s = {
		.vm = row_uuid(q, 0),
		.slot.number = (uint32_t)row_u64(q, 1, UINT32_MAX),
		.slot.base = row_u64(q, 2, TREE_PAGES - 1),
	};
	enum pw_status st;

	s.slot.pages = row_u64(q, 3, TREE_PAGES - s.slot.base);
	st = row_check(q, "slot", err);
	return st == PW_OK ? r->slot(r->ctx, &s, err) : st;
}

static enum pw_status load_vcpu(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct vcpu_row c = {
		.vm = row_uuid(q, 0),
		.vcpu = (unsigned)row_u64(q, 1, UINT32_MAX),
		.exit = row_text(q, 2),
		.items = row_text(q, 3),
		.time_ms = row_i64(q, 4),
		.revision = row_u64(q, 5, INT64_MAX),
	};
	enum pw_status st = row_check(q, "vcpu_exit", err);

	return st == PW_OK ? r->vcpu(r->ctx, &c, err) : st;
}

static enum pw_status load_quarantine(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct quarantine_row z = {
		.host = row_uuid_or_nil(q, 0),
		.pool = row_text(q, 1),
		.pfn = row_u64(q, 2, TREE_PAGES - 1),
		.reason = row_text(q, 4),
		.time_ms = row_i64(q, 5),
	};
	enum pw_status st;

	z.count = row_u64(q, 3, TREE_PAGES - z.pfn);
	st = row_check(q, "quarantine", err);
	return st == PW_OK ? r->quarantine(r->ctx, &z, err) : st;
}

static enum pw_status load_span(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct extent_row e = { .vm = row_uuid(q, 0) };
	uint64_t gfn = row_u64(q, 1, TREE_PAGES - 1);
	const char *runs = row_text(q, 2);
	enum pw_status st = row_check(q, "gfn_span", err);
	struct extent_reader rd;

	if (st != PW_OK)
		return st;
	extent_read_init(&rd, gfn, runs);
	while (st == PW_OK && (st = extent_read(&rd, &e, err)) == PW_OK)
		st = r->extent(r->ctx, &e, err);
	return st == PW_NOT_FOUND && !*rd.at ? PW_OK : st;
}

static enum pw_status load_operation(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct operation_row o = {
		.id = row_uuid(q, 0),
		.vm = row_uuid(q, 1),
		.host = row_uuid(q, 2),
		.kind = row_text(q, 3),
		.state = row_text(q, 4),
		.params = row_text(q, 5),
		.problem = row_text(q, 6),
		.host_epoch = row_u64(q, 7, INT64_MAX),
		.created_ms = row_i64(q, 8),
		.started_ms = row_i64(q, 9),
		.finished_ms = row_i64(q, 10),
		.revision = row_u64(q, 11, INT64_MAX),
	};
	enum pw_status st = row_check(q, "operation", err);

	return st == PW_OK ? r->operation(r->ctx, &o, err) : st;
}

static enum pw_status load_token(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct token_row t = {
		.id = row_uuid(q, 0),
		.role = row_text(q, 1),
		.name = row_text(q, 2),
		.host = row_uuid_or_nil(q, 3),
		.created_ms = row_i64(q, 5),
		.revision = row_u64(q, 6, INT64_MAX),
	};
	enum pw_status st;

	row_bytes(q, 4, t.hash, sizeof t.hash);
	st = row_check(q, "token", err);
	return st == PW_OK ? r->token(r->ctx, &t, err) : st;
}

static enum pw_status load_end(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct end_row e = {
		.vm = row_uuid(q, 0),
		.slot = row_i64(q, 1),
		.host = row_uuid(q, 2),
		.revision = row_u64(q, 3, INT64_MAX),
		.time_ms = row_i64(q, 4),
	};
	enum pw_status st = row_check(q, "ended", err);

	if (st == PW_OK && (e.slot < -1 || e.slot > UINT32_MAX))
		st = pw_fail(err, PW_STORAGE, LEDGER_FILE ": table ended: slot %" PRId64, e.slot);
	return st == PW_OK ? r->end(r->ctx, &e, err) : st;
}

static enum pw_status load_unknown(struct query *q, const struct picture_reader *r, struct pw_err *err)
{
	struct unknown_row u = {
		.host = row_uuid(q, 0),
		.vm = row_uuid(q, 1),
		.report = row_text(q, 2),
		.since_ms = row_i64(q, 3),
		.revision = row_u64(q, 4, INT64_MAX),
	};
	enum pw_status st = row_check(q, "unknown_vm", err);

	return st == PW_OK ? r->unknown(r->ctx, &u, err) : st;
}

static enum pw_status load_table(struct store *s, int which, row_fn fn, const struct picture_reader *r,
				 struct pw_err *err)
{
	struct query q = query_begin(&s->load, which);
	enum pw_status st = PW_OK;
	bool more = true;

	while (st == PW_OK && more) {
		st = query_step(&q, "loading the picture", err);
		more = st != PW_NOT_FOUND;
		if (st == PW_OK)
			st = fn(&q, r, err);
	}
	query_end(&q);
	return more ? st : PW_OK;
}

enum pw_status picture_load_revision(struct store *s, struct pw_err *err)
{
	struct query q = query_begin(&s->load, REVISION);
	enum pw_status st = query_step(&q, "reading the picture's revision", err);
	uint64_t revision = 0;

	if (st == PW_OK) {
		revision = row_u64(&q, 0, INT64_MAX);
		st = row_check(&q, "meta", err);
	} else if (st == PW_NOT_FOUND) {
		st = pw_fail(err, PW_STORAGE, LEDGER_FILE ": table meta: its row is missing");
	}
	query_end(&q);
	if (st == PW_OK)
		atomic_store(&s->painted, revision);
	return st;
}

/* The picture and the journal must meet: replay starts behind the picture, and new revisions behind both. */
static enum pw_status check_meeting(const struct store *s, uint64_t revision, struct pw_err *err)
{
	uint64_t oldest = atomic_load(&s->oldest), newest = atomic_load(&s->newest_revision);

	if (revision + 1 < oldest || revision > newest)
		return pw_fail(err, PW_STORAGE,
			       "the picture of revision %" PRIu64 " does not meet the journal, which has %" PRIu64
			       "..%" PRIu64 ": " LEDGER_FILE " and " JOURNAL_FILE " do not belong together",
			       revision, oldest, newest);
	return PW_OK;
}

enum pw_status store_load_picture(struct store *s, const struct picture_reader *r, uint64_t *revision,
				  struct pw_err *err)
{
	static const struct {
		int which;
		row_fn fn;
	} tables[] = {
		{ HOST, load_host },
		{ POOL, load_pool },
		{ ATTACHMENT, load_attachment },
		{ VM, load_vm },
		{ SLOT, load_slot },
		{ VCPU, load_vcpu },
		{ QUARANTINE, load_quarantine },
		{ SPAN, load_span },
		{ OPERATION, load_operation },
		{ TOKEN, load_token },
		{ END, load_end },
		{ UNKNOWN, load_unknown },
	};
	uint64_t at = atomic_load(&s->painted);
	enum pw_status st = check_meeting(s, at, err);

	for (size_t i = 0; st == PW_OK && at && i < PW_ARRAY_LEN(tables); i++)
		st = load_table(s, tables[i].which, tables[i].fn, r, err);
	if (st == PW_OK)
		*revision = at;
	return st;
}
