#include "store/store.h"

#include <stdlib.h>

#include "store/extent.h"
#include "store/inner.h"
#include "store/schema.h"

enum {
	BEGIN,
	CHECK_LATER,
	COMMIT,
	FORGET_TOKENS,
	FORGET_OPERATIONS,
	FORGET_QUARANTINE,
	FORGET_SPANS,
	FORGET_SLOTS,
	FORGET_VCPUS,
	FORGET_VMS,
	FORGET_ATTACHMENTS,
	FORGET_POOLS,
	FORGET_HOSTS,
	DROP_SPANS,
	DROP_SLOTS,
	DROP_VCPUS,
	DROP_VM,
	DROP_SPAN,
	DROP_OPERATION,
	VM_NUMBER,
	PUT_HOST,
	PUT_POOL,
	PUT_ATTACHMENT,
	PUT_VM,
	PUT_SLOT,
	PUT_VCPU,
	PUT_SPAN,
	PUT_QUARANTINE,
	PUT_OPERATION,
	PUT_TOKEN,
	FORGET_ENDS,
	FORGET_UNKNOWN,
	DROP_ENDS,
	PUT_END,
	PUT_UNKNOWN,
};
#define THE_VM "(SELECT number FROM vm WHERE id = ?)"
static const char *const text[] = {
	[BEGIN] = "BEGIN IMMEDIATE",
	/* A VM may come with an earlier part than its host. */
	[CHECK_LATER] = "PRAGMA defer_foreign_keys = ON",
	[COMMIT] = "COMMIT",
	[FORGET_TOKENS] = "DELETE FROM token",
	[FORGET_OPERATIONS] = "DELETE FROM operation",
	[FORGET_QUARANTINE] = "DELETE FROM quarantine",
	[FORGET_SPANS] = "DELETE FROM gfn_span",
	[FORGET_SLOTS] = "DELETE FROM slot",
	[FORGET_VCPUS] = "DELETE FROM vcpu_exit",
	[FORGET_VMS] = "DELETE FROM vm",
	[FORGET_ATTACHMENTS] = "DELETE FROM pool_host",
	[FORGET_POOLS] = "DELETE FROM pool",
	[FORGET_HOSTS] = "DELETE FROM host",
	[DROP_SPANS] = "DELETE FROM gfn_span WHERE vm = " THE_VM,
	[DROP_SLOTS] = "DELETE FROM slot WHERE vm = " THE_VM,
	[DROP_VCPUS] = "DELETE FROM vcpu_exit WHERE vm = " THE_VM,
	[DROP_VM] = "DELETE FROM vm WHERE id = ?",
	[DROP_SPAN] = "DELETE FROM gfn_span WHERE vm = ? AND gfn >= ? AND gfn < ?",
	[DROP_OPERATION] = "DELETE FROM operation WHERE id = ?",
	[VM_NUMBER] = "SELECT number FROM vm WHERE id = ?",
	[PUT_HOST] = "INSERT INTO host (id, name, boot_id, backends, agent_version, epoch, fenced, has_local, arches,"
		     " base_pfn, frames, page_shift, last_seen_ms, revision, unreachable)"
		     " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
		     " ON CONFLICT DO UPDATE SET name = excluded.name, boot_id = excluded.boot_id,"
		     " backends = excluded.backends, agent_version = excluded.agent_version, epoch = excluded.epoch,"
		     " fenced = excluded.fenced, has_local = excluded.has_local, arches = excluded.arches,"
		     " base_pfn = excluded.base_pfn, frames = excluded.frames, page_shift = excluded.page_shift,"
		     " last_seen_ms = excluded.last_seen_ms, revision = excluded.revision,"
		     " unreachable = excluded.unreachable",
	[PUT_POOL] = "INSERT INTO pool (name, base_pfn, frames, page_shift, revision) VALUES (?, ?, ?, ?, ?)",
	[PUT_ATTACHMENT] = "INSERT INTO pool_host (pool, host, place) VALUES (?, ?, ?)",
	[PUT_VM] = "INSERT INTO vm (id, host, name, arch, state, arch_state, epoch, shared_bit, revision, ended,"
		   " on_hardware)"
		   " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
		   " ON CONFLICT (id) DO UPDATE SET host = excluded.host, name = excluded.name, arch = excluded.arch,"
		   " state = excluded.state, arch_state = excluded.arch_state, epoch = excluded.epoch,"
		   " shared_bit = excluded.shared_bit, revision = excluded.revision,"
		   " ended = excluded.ended, on_hardware = excluded.on_hardware",
	[PUT_SLOT] = "INSERT INTO slot (vm, slot, base_gfn, pages) VALUES (" THE_VM ", ?, ?, ?)",
	[PUT_VCPU] = "INSERT INTO vcpu_exit (vm, vcpu, exit, items, time_ms, revision)"
		     " VALUES (" THE_VM ", ?, ?, ?, ?, ?)",
	[PUT_SPAN] = "INSERT INTO gfn_span (vm, gfn, runs) VALUES (?, ?, ?)",
	[PUT_QUARANTINE] = "INSERT INTO quarantine (host, pool, pfn, count, reason, time_ms) VALUES (?, ?, ?, ?, ?, ?)",
	[PUT_OPERATION] = "INSERT INTO operation (id, vm, host, kind, state, params, problem, host_epoch, created_ms,"
			  " started_ms, finished_ms, revision) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
			  " ON CONFLICT (id) DO UPDATE SET vm = excluded.vm, host = excluded.host,"
			  " kind = excluded.kind, state = excluded.state, params = excluded.params,"
			  " problem = excluded.problem, host_epoch = excluded.host_epoch,"
			  " created_ms = excluded.created_ms, started_ms = excluded.started_ms,"
			  " finished_ms = excluded.finished_ms, revision = excluded.revision",
	[PUT_TOKEN] =
		"INSERT INTO token (id, role, name, host, hash, created_ms, revision) VALUES (?, ?, ?, ?, ?, ?, ?)",
	[FORGET_ENDS] = "DELETE FROM ended",
	[FORGET_UNKNOWN] = "DELETE FROM unknown_vm",
	[DROP_ENDS] = "DELETE FROM ended WHERE revision < ?",
	[PUT_END] = "INSERT INTO ended (vm, slot, host, revision, time_ms) VALUES (?, ?, ?, ?, ?)"
		    " ON CONFLICT (vm, slot) DO UPDATE SET host = excluded.host, revision = excluded.revision,"
		    " time_ms = excluded.time_ms",
	[PUT_UNKNOWN] = "INSERT INTO unknown_vm (host, vm, report, since_ms, revision) VALUES (?, ?, ?, ?, ?)",
};
_Static_assert(PW_ARRAY_LEN(text) <= STMTS_MAX, "more statements than one subject can have");
const struct sql_table picture_save_sql = { text, PW_ARRAY_LEN(text) };

static enum pw_status run(struct store *s, int which, const char *what, struct pw_err *err)
{
	struct query q = query_begin(&s->save, which);

	return query_run(&q, what, err);
}

static enum pw_status run_for(struct store *s, int which, const struct pw_uuid *id, const char *what,
			      struct pw_err *err)
{
	struct query q = query_begin(&s->save, which);

	bind_uuid(&q, id);
	return query_run(&q, what, err);
}

struct table {
	int forget;
	bool whole; /* comes whole, with the last part */
};

/* Children before parents. */
static const struct table tables[] = {
	{ FORGET_TOKENS, true }, { FORGET_QUARANTINE, true },  { FORGET_ATTACHMENTS, true },
	{ FORGET_POOLS, true },  { FORGET_OPERATIONS, false }, { FORGET_SPANS, false },
	{ FORGET_SLOTS, false }, { FORGET_VCPUS, false },      { FORGET_VMS, false },
	{ FORGET_ENDS, false },  { FORGET_UNKNOWN, true },     { FORGET_HOSTS, false },
};

static enum pw_status forget(struct store *s, bool whole, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; st == PW_OK && i < PW_ARRAY_LEN(tables); i++)
		if (tables[i].whole == whole)
			st = run(s, tables[i].forget, "emptying a table", err);
	return st;
}

static enum pw_status drop_vms(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; st == PW_OK && i < p->deleted_vm_count; i++) {
		const struct pw_uuid *id = &p->deleted_vms[i];

		st = run_for(s, DROP_SPANS, id, "dropping a VM's extents", err);
		if (st == PW_OK)
			st = run_for(s, DROP_SLOTS, id, "dropping a VM's slots", err);
		if (st == PW_OK)
			st = run_for(s, DROP_VCPUS, id, "dropping a VM's vCPUs", err);
		if (st == PW_OK)
			st = run_for(s, DROP_VM, id, "dropping a VM", err);
	}
	return st;
}

static enum pw_status put_hosts(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (const struct host_row *r = p->hosts; st == PW_OK && r < p->hosts + p->host_count; r++) {
		struct query q = query_begin(&s->save, PUT_HOST);

		bind_uuid(&q, &r->id);
		bind_text(&q, r->name);
		bind_text(&q, r->boot_id);
		bind_text(&q, r->backends);
		bind_text(&q, r->agent_version);
		bind_u64(&q, r->epoch);
		bind_u64(&q, r->fenced);
		bind_u64(&q, r->has_local);
		bind_u64(&q, r->arches);
		bind_u64(&q, r->base);
		bind_u64(&q, r->frames);
		bind_u64(&q, r->page_shift);
		bind_i64(&q, r->last_seen_ms);
		bind_u64(&q, r->revision);
		bind_u64(&q, r->unreachable);
		st = query_run(&q, "saving a host", err);
	}
	return st;
}

static enum pw_status put_pools(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (const struct pool_row *r = p->pools; st == PW_OK && r < p->pools + p->pool_count; r++) {
		struct query q = query_begin(&s->save, PUT_POOL);

		bind_text(&q, r->name);
		bind_u64(&q, r->base);
		bind_u64(&q, r->frames);
		bind_u64(&q, r->page_shift);
		bind_u64(&q, r->revision);
		st = query_run(&q, "saving a pool", err);
	}
	return st;
}

static enum pw_status put_attachments(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; st == PW_OK && i < p->attachment_count; i++) {
		const struct attachment_row *r = &p->attachments[i];
		struct query q = query_begin(&s->save, PUT_ATTACHMENT);

		bind_text(&q, r->pool);
		bind_uuid(&q, &r->host);
		bind_u64(&q, r->place);
		st = query_run(&q, "saving a pool's attachment", err);
	}
	return st;
}

static enum pw_status put_vms(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (const struct vm_row *r = p->vms; st == PW_OK && r < p->vms + p->vm_count; r++) {
		struct query q = query_begin(&s->save, PUT_VM);

		bind_uuid(&q, &r->id);
		bind_uuid(&q, &r->host);
		bind_text(&q, r->name);
		bind_text(&q, r->arch);
		bind_text(&q, r->state);
		bind_text(&q, r->arch_state ? r->arch_state : "");
		bind_u64(&q, r->epoch);
		bind_u64(&q, r->shared_bit);
		bind_u64(&q, r->revision);
		bind_u64(&q, r->ended);
		bind_u64(&q, r->on_hardware);
		st = query_run(&q, "saving a VM", err);
		if (st == PW_OK)
			st = run_for(s, DROP_SLOTS, &r->id, "dropping a VM's slots", err);
		if (st == PW_OK)
			st = run_for(s, DROP_VCPUS, &r->id, "dropping a VM's vCPUs", err);
	}
	return st;
}

static enum pw_status put_slots(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (const struct slot_row *r = p->slots; st == PW_OK && r < p->slots + p->slot_count; r++) {
		struct query q = query_begin(&s->save, PUT_SLOT);

		bind_uuid(&q, &r->vm);
		bind_u64(&q, r->slot.number);
		bind_u64(&q, r->slot.base);
		bind_u64(&q, r->slot.pages);
		st = query_run(&q, "saving a slot", err);
	}
	return st;
}

static enum pw_status put_vcpus(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (const struct vcpu_row *r = p->vcpus; st == PW_OK && r < p->vcpus + p->vcpu_count; r++) {
		struct query q = query_begin(&s->save, PUT_VCPU);

		bind_uuid(&q, &r->vm);
		bind_u64(&q, r->vcpu);
		bind_text(&q, r->exit);
		bind_text(&q, r->items);
		bind_i64(&q, r->time_ms);
		bind_u64(&q, r->revision);
		st = query_run(&q, "saving a vCPU", err);
	}
	return st;
}

static enum pw_status find_vm(struct store *s, const struct pw_uuid *id, uint64_t *number, struct pw_err *err)
{
	struct query q = query_begin(&s->save, VM_NUMBER);
	char name[PW_UUID_TEXT];
	enum pw_status st;

	bind_uuid(&q, id);
	st = query_step(&q, "looking for a VM", err);
	if (st == PW_OK)
		*number = row_u64(&q, 0, INT64_MAX);
	query_end(&q);
	if (st != PW_NOT_FOUND)
		return st;
	pw_uuid_format(id, name);
	return pw_fail(err, PW_INVALID, "picture: an extent of VM %s, which it does not have", name);
}

static enum pw_status drop_span(struct store *s, uint64_t vm, const struct extent_row *r, struct pw_err *err)
{
	struct query q = query_begin(&s->save, DROP_SPAN);

	bind_u64(&q, vm);
	bind_u64(&q, r->gfn);
	bind_u64(&q, r->gfn + r->count);
	return query_run(&q, "dropping the extents of a span", err);
}

static enum pw_status put_span(struct store *s, uint64_t vm, uint64_t gfn, const struct extent_text *t,
			       struct pw_err *err)
{
	struct query q = query_begin(&s->save, PUT_SPAN);

	bind_u64(&q, vm);
	bind_u64(&q, gfn);
	bind_text_sized(&q, t->s, t->used);
	return query_run(&q, "saving extents", err);
}

/* A span and the runs behind it; *next: what follows these. */
static enum pw_status save_span(struct store *s, uint64_t vm, const struct picture *p, const struct extent_row **next,
				struct extent_text *t, struct pw_err *err)
{
	const struct extent_row *span = *next, *r = span + 1, *end = p->extents + p->extent_count;
	enum pw_status st = drop_span(s, vm, span, err);

	extent_begin(t);
	for (; st == PW_OK && r < end && r->entry && pw_uuid_equal(&r->vm, &span->vm); r++)
		st = r->gfn < span->gfn || r->count > span->count || r->gfn - span->gfn > span->count - r->count
			     ? pw_fail(err, PW_INVALID, "picture: an extent at GFN %" PRIu64 ", outside of its span",
				       r->gfn)
			     : extent_add(t, span->gfn, r, err);
	*next = r;
	return st == PW_OK && extent_end(t) ? put_span(s, vm, span->gfn, t, err) : st;
}

static enum pw_status put_extents(struct store *s, const struct picture *p, struct pw_err *err)
{
	const struct extent_row *r = p->extents;
	const struct pw_uuid *of = NULL;
	struct extent_text t = { 0 };
	uint64_t vm = 0;
	enum pw_status st = PW_OK;

	while (st == PW_OK && r < p->extents + p->extent_count) {
		if (!of || !pw_uuid_equal(of, &r->vm))
			st = find_vm(s, &r->vm, &vm, err);
		of = &r->vm;
		if (st == PW_OK && r->entry)
			st = pw_fail(err, PW_INVALID, "picture: an extent at GFN %" PRIu64 " before any span", r->gfn);
		if (st == PW_OK)
			st = save_span(s, vm, p, &r, &t, err);
	}
	free(t.s);
	return st;
}

static enum pw_status put_quarantine(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; st == PW_OK && i < p->quarantine_count; i++) {
		const struct quarantine_row *r = &p->quarantine[i];
		struct query q = query_begin(&s->save, PUT_QUARANTINE);

		bind_uuid(&q, &r->host);
		bind_text(&q, r->pool);
		bind_u64(&q, r->pfn);
		bind_u64(&q, r->count);
		bind_text(&q, r->reason);
		bind_i64(&q, r->time_ms);
		st = query_run(&q, "saving quarantined frames", err);
	}
	return st;
}

static enum pw_status put_operation(struct store *s, const struct operation_row *r, struct pw_err *err)
{
	struct query q = query_begin(&s->save, PUT_OPERATION);

	bind_uuid(&q, &r->id);
	bind_uuid(&q, &r->vm);
	bind_uuid(&q, &r->host);
	bind_text(&q, r->kind);
	bind_text(&q, r->state);
	bind_text(&q, r->params);
	bind_text(&q, r->problem);
	bind_u64(&q, r->host_epoch);
	bind_i64(&q, r->created_ms);
	bind_i64(&q, r->started_ms);
	bind_i64(&q, r->finished_ms);
	bind_u64(&q, r->revision);
	return query_run(&q, "saving an operation", err);
}

static enum pw_status put_operations(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; st == PW_OK && i < p->deleted_operation_count; i++)
		st = run_for(s, DROP_OPERATION, &p->deleted_operations[i], "dropping an operation", err);
	for (size_t i = 0; st == PW_OK && i < p->operation_count; i++)
		st = put_operation(s, &p->operations[i], err);
	return st;
}

static enum pw_status put_tokens(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (const struct token_row *r = p->tokens; st == PW_OK && r < p->tokens + p->token_count; r++) {
		struct query q = query_begin(&s->save, PUT_TOKEN);

		bind_uuid(&q, &r->id);
		bind_text(&q, r->role);
		bind_text(&q, r->name);
		bind_uuid(&q, &r->host);
		bind_blob(&q, r->hash, sizeof r->hash);
		bind_i64(&q, r->created_ms);
		bind_u64(&q, r->revision);
		st = query_run(&q, "saving a token", err);
	}
	return st;
}

static enum pw_status put_ends(struct store *s, const struct picture *p, struct pw_err *err)
{
	struct query drop = query_begin(&s->save, DROP_ENDS);
	enum pw_status st;

	bind_u64(&drop, p->ends_from);
	st = query_run(&drop, "dropping ends", err);
	for (const struct end_row *r = p->ends; st == PW_OK && r < p->ends + p->end_count; r++) {
		struct query q = query_begin(&s->save, PUT_END);

		bind_uuid(&q, &r->vm);
		bind_i64(&q, r->slot);
		bind_uuid(&q, &r->host);
		bind_u64(&q, r->revision);
		bind_i64(&q, r->time_ms);
		st = query_run(&q, "saving an end", err);
	}
	return st;
}

static enum pw_status put_unknown(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (const struct unknown_row *r = p->unknown; st == PW_OK && r < p->unknown + p->unknown_count; r++) {
		struct query q = query_begin(&s->save, PUT_UNKNOWN);

		bind_uuid(&q, &r->host);
		bind_uuid(&q, &r->vm);
		bind_text(&q, r->report);
		bind_i64(&q, r->since_ms);
		bind_u64(&q, r->revision);
		st = query_run(&q, "saving a report of an unknown VM", err);
	}
	return st;
}

/* A picture whose rows all were written under this schema has a checksum; one that was migrated gets it once it is
 * whole. */
static enum pw_status put_seal(struct store *s, const struct picture *p, struct pw_err *err)
{
	struct seal seal = { .revision = p->revision };
	enum pw_status st;

	if (p->full || s->sealed) {
		seal.schema = schema_newest(SCHEMA_LEDGER);
		st = journal_hash_at(s, p->revision, seal.journal_hash, err);
		if (st != PW_OK)
			return st;
		seal_make(&s->sums, &seal);
	}
	return checksum_save(&s->painter, &s->sums, &seal, err);
}

typedef enum pw_status (*put_fn)(struct store *, const struct picture *, struct pw_err *);

static enum pw_status put(struct store *s, const put_fn *parts, size_t count, const struct picture *p,
			  struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; st == PW_OK && i < count; i++)
		st = parts[i](s, p, err);
	return st;
}

/* The rest, with which all is as of one revision. */
static enum pw_status put_last(struct store *s, const struct picture *p, struct pw_err *err)
{
	static const put_fn parts[] = { put_pools, put_attachments, put_quarantine, put_tokens, put_unknown, put_seal };
	enum pw_status st = p->full ? PW_OK : forget(s, true, err);

	if (st == PW_OK)
		st = put(s, parts, PW_ARRAY_LEN(parts), p, err);
	return st == PW_OK ? run(s, COMMIT, "committing a picture", err) : st;
}

static enum pw_status begin(struct store *s, const struct picture *p, struct pw_err *err)
{
	enum pw_status st = run(s, BEGIN, "beginning a picture", err);

	if (st == PW_OK)
		st = run(s, CHECK_LATER, "beginning a picture", err);
	if (st != PW_OK || !p->full)
		return st;
	s->sums.paused = true; /* the sums of empty tables are known */
	st = forget(s, false, err);
	if (st == PW_OK)
		st = forget(s, true, err);
	s->sums = (struct sums){ 0 };
	return st;
}

enum pw_status store_save_picture(struct store *s, const struct picture *p, struct pw_err *err)
{
	static const put_fn parts[] = { drop_vms,  put_hosts,   put_vms,        put_slots,
					put_vcpus, put_extents, put_operations, put_ends };
	enum pw_status st = PW_OK;

	if (!p->full && p->revision < atomic_load(&s->painted))
		return pw_fail(err, PW_CONFLICT, "picture: revision %" PRIu64 " is older than the one that is there",
			       p->revision);
	if (!s->painting) {
		s->sums_before = s->sums;
		s->painting = true;
		st = begin(s, p, err);
	}
	if (st == PW_OK)
		st = put(s, parts, PW_ARRAY_LEN(parts), p, err);
	if (st == PW_OK && p->more)
		return PW_OK;
	if (st == PW_OK)
		st = put_last(s, p, err);
	if (st != PW_OK) {
		store_drop_picture(s);
		return st;
	}
	s->painting = false;
	s->sealed = s->sealed || p->full;
	atomic_store(&s->painted, p->revision);
	return PW_OK;
}

void store_drop_picture(struct store *s)
{
	if (!s->painting)
		return;
	db_rollback(&s->painter);
	s->sums = s->sums_before;
	s->painting = false;
}
