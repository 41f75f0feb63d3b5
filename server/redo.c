#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/jsonr.h"
#include "server/log.h"
#include "server/service_impl.h"

/*
 * Redoing: each kind of event that changes state is applied again by the code that decided it. A refusal here means
 * that the journal is not what this program wrote.
 */

/* An event that is being redone. */
struct redo {
	struct service *sv;
	struct jsonr *json;
	const struct record *rec;
	struct pw_uuid host_id, vm_id;
	struct host *host; /* by its members "host" and "vm"; NULL if it has none or they are gone */
	struct vm *vm;
	struct refusal why;
};

static enum pw_problem bad(struct redo *d, const char *what)
{
	return refuse(&d->why, PROBLEM_INVALID_REQUEST, "%s", what);
}

/* Decodes member `spec` with one of the request codecs. */
#define DECODE_SPEC(name)                                                                   \
	static bool spec_##name(struct redo *d, struct name##_body *b, struct body **owner) \
	{                                                                                   \
		struct codec_fault fault = { .detail = "no spec" };                         \
		size_t len;                                                                 \
		char *text = jsonr_text(d->json, "spec", &len);                             \
		bool ok = text && codec_##name(text, len, b, owner, &fault);                \
                                                                                            \
		free(text);                                                                 \
		if (!ok)                                                                    \
			bad(d, fault.detail);                                               \
		return ok;                                                                  \
	}
DECODE_SPEC(host)
DECODE_SPEC(pool)
DECODE_SPEC(vm)

static enum pw_problem redo_host(struct redo *d)
{
	struct host_put put;
	struct host_body b;
	struct body *owner;
	enum pw_problem p;

	if (!spec_host(d, &b, &owner))
		return d->why.problem;
	p = do_host(d->sv, &d->host_id, &b, &put, &d->why);
	if (p == PROBLEM_NONE) {
		put.host->revision = d->rec->revision;
		host_note(put.host)->last_seen_ms = d->rec->time_ms;
		operations_again(d->sv, put.host);
	}
	codec_release(owner);
	return p;
}

static enum pw_problem redo_fence(struct redo *d)
{
	enum pw_problem p;

	if (!d->host)
		return bad(d, "no such host");
	p = ledger_host_fence(d->sv->ledger, d->host, &d->why);
	if (p == PROBLEM_NONE && unknown_forget(d->sv, &d->host_id) != PW_OK)
		return bad(d, "out of memory");
	d->host->revision = d->rec->revision;
	return p;
}

static enum pw_problem redo_away(struct redo *d)
{
	if (d->host)
		host_note(d->host)->unreachable = strcmp(jsonr_str(d->json, "type"), "host.unreachable") == 0;
	return PROBLEM_NONE;
}

static enum pw_problem redo_pool(struct redo *d)
{
	const char *name = jsonr_str(d->json, "pool");
	struct pool_body b;
	struct body *owner;
	enum pw_problem p;
	struct pool *pool;
	bool created;

	if (!name || !codec_is_pool_name(name))
		return bad(d, "no pool");
	if (!spec_pool(d, &b, &owner))
		return d->why.problem;
	p = do_pool(d->sv, name, &b, &pool, &created, &d->why);
	if (p == PROBLEM_NONE)
		pool->revision = d->rec->revision;
	codec_release(owner);
	return p;
}

static enum pw_problem redo_frames(struct redo *d)
{
	bool added = strcmp(jsonr_str(d->json, "type"), "quarantine.added") == 0;
	struct codec_fault fault;
	struct frames_body b;
	struct body *owner;
	enum pw_problem p;
	char *items, *text = NULL;
	size_t len;
	int n;

	if (!d->host)
		return bad(d, "no such host");
	items = jsonr_text(d->json, "items", &len);
	n = items ? asprintf(&text, "{\"items\":%s}", items) : -1;
	free(items);
	if (n < 0)
		return bad(d, "no items");
	if (!codec_frames(text, (size_t)n, &b, &owner, &fault)) {
		free(text);
		return bad(d, fault.detail);
	}
	free(text);
	p = added ? do_quarantine(d->sv, d->host, &b, d->rec->time_ms, d->rec->revision, &d->why)
		  : do_unquarantine(d->sv, d->host, &b, &d->why);
	codec_release(owner);
	return p;
}

static enum pw_problem redo_vm(struct redo *d)
{
	struct body *owner;
	enum pw_problem p;
	struct vm_body b;
	struct vm *vm;

	if (!spec_vm(d, &b, &owner))
		return d->why.problem;
	p = do_vm(d->sv, &b.id, &b, &vm, &d->why);
	if (p == PROBLEM_NONE)
		vm->revision = vm->ended = d->rec->revision;
	codec_release(owner);
	return p;
}

static enum pw_problem redo_vm_delete(struct redo *d)
{
	if (!d->vm)
		return bad(d, "no such VM");
	return do_vm_delete(d->sv, d->vm, d->rec->revision, d->rec->time_ms, &d->why);
}

static enum pw_problem redo_slot(struct redo *d)
{
	bool added = strcmp(jsonr_str(d->json, "type"), "slot.added") == 0, created;
	struct slot slot = { 0 };
	uint64_t number;

	if (!d->vm || !jsonr_u64(d->json, "slot", &number) || number > UINT32_MAX)
		return bad(d, "no such VM or slot");
	slot.number = (uint32_t)number;
	if (added && (!jsonr_u64(d->json, "base_gfn", &slot.base) || !jsonr_u64(d->json, "pages", &slot.pages)))
		return bad(d, "no base_gfn or pages");
	d->vm->revision = d->rec->revision;
	return added ? ledger_slot_put(d->sv->ledger, d->vm, &slot, &created, &d->why)
		     : do_slot_delete(d->sv, d->vm, slot.number, d->rec->revision, d->rec->time_ms, &d->why);
}

/* An event of a VM is in the journal only if the VM's state changed. */
static enum pw_problem redo_lifecycle(struct redo *d)
{
	const char *name = jsonr_str(d->json, "event");
	enum pw_problem p;

	for (int e = 0; d->vm && name && e < VM_EVENT_COUNT; e++)
		if (strcmp(vm_event_name((enum vm_event)e), name) == 0) {
			d->vm->revision = d->rec->revision;
			p = ledger_vm_event(d->sv->ledger, d->vm, (enum vm_event)e, &d->why);
			if (!d->vm->on_hardware)
				d->vm->ended = d->rec->revision;
			return p;
		}
	return bad(d, "no such VM or event");
}

static enum pw_problem redo_vm_step(struct redo *d)
{
	const char *op = jsonr_str(d->json, "op");
	struct item it = { .vm = d->vm_id, .decided = true };
	bool changed;

	if (op)
		it.vm_op = arch_vm_op_find(op, strlen(op), &it.arch_law);
	if (!d->vm || !d->host || !it.vm_op)
		return bad(d, "no such VM, host or operation");
	d->vm->revision = d->rec->revision;
	return ledger_apply(d->sv->ledger, d->host, &it, &changed, &d->why);
}

/* The reset itself was redone with its host's reboot or fence. */
static enum pw_problem redo_reset(struct redo *d)
{
	if (d->vm)
		d->vm->revision = d->vm->ended = d->rec->revision;
	return PROBLEM_NONE;
}

static bool operation_members(struct redo *d, struct operation *o)
{
	const char *kind = jsonr_str(d->json, "kind"), *state = jsonr_str(d->json, "state");

	return jsonr_uuid(d->json, "operation", &o->id) && kind && state && operation_kind_from_name(kind, &o->kind) &&
	       operation_state_from_name(state, &o->state);
}

static enum pw_problem redo_operation_created(struct redo *d)
{
	struct operation o = {
		.vm = d->vm_id, .host = d->host_id, .created_ms = d->rec->time_ms, .revision = d->rec->revision
	};
	struct operation *made;
	size_t len;

	if (!operation_members(d, &o))
		return bad(d, "no operation");
	o.params = jsonr_text(d->json, "params", &len);
	if (o.params && operation_add(d->sv, &o, &made) == PW_OK)
		return PROBLEM_NONE;
	free(o.params);
	return bad(d, "no params, or out of memory");
}

static enum pw_problem redo_handing_out(struct redo *d, const struct operation *o)
{
	enum pw_problem p;
	bool changed;

	if (!d->vm || o->kind != OPERATION_LAUNCH || o->state != OPERATION_RUNNING)
		return PROBLEM_NONE;
	p = ledger_vm_handed_out(d->sv->ledger, d->vm, &changed, &d->why);
	if (p == PROBLEM_NONE && changed)
		d->vm->revision = d->rec->revision;
	return p;
}

static enum pw_problem redo_operation(struct redo *d)
{
	struct operation to, *o;
	size_t len;

	if (!operation_members(d, &to))
		return bad(d, "no operation");
	o = operation_find(d->sv, &to.id);
	if (!o)
		return PROBLEM_NONE; /* finished long ago, and forgotten */
	to = (struct operation){ .state = to.state, .id = o->id };
	to.vm = o->vm;
	to.host = o->host;
	to.kind = o->kind;
	to.params = o->params;
	to.created_ms = o->created_ms;
	to.started_ms = to.state == OPERATION_RUNNING ? d->rec->time_ms : o->started_ms;
	to.finished_ms = to.state == OPERATION_RUNNING ? 0 : d->rec->time_ms;
	to.host_epoch = o->host_epoch;
	if (to.state == OPERATION_RUNNING && !jsonr_u64(d->json, "epoch", &to.host_epoch))
		return bad(d, "no epoch");
	to.problem = jsonr_text(d->json, "problem", &len);
	to.revision = d->rec->revision;
	if (operation_set(d->sv, o, &to) != PW_OK)
		return bad(d, "out of memory");
	return redo_handing_out(d, o);
}

static enum pw_problem redo_token_created(struct redo *d)
{
	struct token t = { .host = d->host_id, .created_ms = d->rec->time_ms, .revision = d->rec->revision };
	const char *role = jsonr_str(d->json, "role"), *name = jsonr_str(d->json, "name");
	const char *hash = jsonr_str(d->json, "private");
	size_t n;

	if (!jsonr_uuid(d->json, "token", &t.id) || !role || !name || !hash || !role_from_name(role, &t.role) ||
	    sodium_hex2bin(t.hash, sizeof t.hash, hash, strlen(hash), NULL, &n, NULL) != 0 || n != sizeof t.hash)
		return bad(d, "no token");
	snprintf(t.name, sizeof t.name, "%s", name);
	return token_add(d->sv, &t) == PW_OK ? PROBLEM_NONE : bad(d, "out of memory");
}

static enum pw_problem redo_token_deleted(struct redo *d)
{
	struct pw_uuid id;
	struct token *t;

	if (!jsonr_uuid(d->json, "token", &id))
		return bad(d, "no token");
	t = index_find(&d->sv->tokens, &id);
	if (!t || token_reserve(d->sv) != PW_OK)
		return bad(d, "no such token, or out of memory");
	token_remove(d->sv, t);
	return PROBLEM_NONE;
}

static enum pw_problem redo_vcpu(struct redo *d)
{
	struct vcpu_kept kept = { .exit = jsonr_str(d->json, "exit"),
				  .time_ms = d->rec->time_ms,
				  .revision = d->rec->revision };
	size_t len;
	char *items = jsonr_text(d->json, "items", &len);
	enum pw_problem p;

	kept.items = items;
	if (!d->vm || !kept.exit || !items || !jsonr_u64(d->json, "vcpu", &kept.vcpu)) {
		free(items);
		return bad(d, "no such VM, or no vCPU, exit or items");
	}
	d->vm->revision = d->rec->revision;
	p = vcpu_load(d->sv, d->vm, &kept, &d->why);
	free(items);
	return p;
}

static enum pw_problem redo_unknown(struct redo *d)
{
	const struct unknown *known;
	struct unknown u = {
		.host = d->host_id, .vm = d->vm_id, .since_ms = d->rec->time_ms, .revision = d->rec->revision
	};
	size_t len, n;

	if (!d->host)
		return bad(d, "no such host");
	known = unknown_find(d->sv, &u.vm, &u.host, &n);
	if (known)
		u.since_ms = known->since_ms;
	u.report = jsonr_text(d->json, "report", &len);
	if (u.report && unknown_put(d->sv, &u) == PW_OK)
		return PROBLEM_NONE;
	free(u.report);
	return bad(d, "no report, or out of memory");
}

static enum pw_problem redo_known(struct redo *d)
{
	return unknown_drop(d->sv, &d->host_id, &d->vm_id) == PW_OK ? PROBLEM_NONE : bad(d, "out of memory");
}

static enum pw_problem redo_nothing(struct redo *d)
{
	return PROBLEM_NONE;
}

static const struct {
	const char *type;
	enum pw_problem (*redo)(struct redo *d);
} redos[] = {
	{ "host.registered", redo_host },
	{ "host.updated", redo_host },
	{ "host.rebooted", redo_host },
	{ "host.fenced", redo_fence },
	{ "host.unreachable", redo_away },
	{ "host.back", redo_away },
	{ "pool.changed", redo_pool },
	{ "quarantine.added", redo_frames },
	{ "quarantine.released", redo_frames },
	{ "vm.created", redo_vm },
	{ "vm.deleted", redo_vm_delete },
	{ "vm.lifecycle", redo_lifecycle },
	{ "vm.arch_state", redo_vm_step },
	{ "vm.reset", redo_reset },
	{ "slot.added", redo_slot },
	{ "slot.deleted", redo_slot },
	{ "operation.created", redo_operation_created },
	{ "operation.started", redo_operation },
	{ "operation.finished", redo_operation },
	{ "operation.cancelled", redo_operation },
	{ "token.created", redo_token_created },
	{ "token.deleted", redo_token_deleted },
	{ "vcpu.exit", redo_vcpu },
	{ "vm.unknown", redo_unknown },
	{ "vm.known", redo_known },
	{ "ledger.restored", redo_nothing },
	{ "violation", redo_nothing },
};

static enum pw_problem redo_typed(struct redo *d)
{
	const char *type = jsonr_str(d->json, "type");

	if (jsonr_uuid(d->json, "host", &d->host_id))
		d->host = ledger_host(d->sv->ledger, &d->host_id);
	if (jsonr_uuid(d->json, "vm", &d->vm_id))
		d->vm = ledger_vm(d->sv->ledger, &d->vm_id);
	for (size_t i = 0; type && i < PW_ARRAY_LEN(redos); i++)
		if (strcmp(redos[i].type, type) == 0)
			return redos[i].redo(d);
	return bad(d, "an event of a type that this program does not know");
}

enum pw_status redo_event(struct service *sv, const struct record *rec, struct pw_err *err)
{
	struct redo d = { .sv = sv, .rec = rec, .json = jsonr_parse(rec->json, rec->json_len) };
	enum pw_problem p = d.json ? redo_typed(&d) : bad(&d, "no JSON object");

	jsonr_free(d.json);
	if (p == PROBLEM_NONE)
		return PW_OK;
	return pw_fail(err, PW_STORAGE, "journal.db: revision %" PRIu64 " cannot be redone: %s", rec->revision,
		       d.why.detail);
}

static enum pw_status redo_item(struct service *sv, const struct record *rec, struct pw_err *err)
{
	struct host *h = ledger_host(sv->ledger, &rec->item.host);
	struct refusal why = { .detail = "no such host" };
	struct item it = rec->item.item;
	struct vm *vm;
	bool changed;

	it.decided = true;
	if (!h || ledger_apply(sv->ledger, h, &it, &changed, &why) != PROBLEM_NONE)
		return pw_fail(err, PW_STORAGE, "journal.db: revision %" PRIu64 " cannot be redone: %s", rec->revision,
			       why.detail);
	vm = ledger_vm(sv->ledger, &rec->item.item.vm);
	vm->revision = rec->revision;
	return PW_OK;
}

/* Start-up: the picture, then the journal's tail. */

struct replay {
	struct service *sv;
	enum pw_status st;
	struct pw_err err;
	uint64_t from;
};

static bool replay_row(void *ctx, const struct journal_row *row)
{
	struct replay *p = ctx;
	struct service *sv = p->sv;
	struct record_reader rd;
	struct record rec;

	record_read_init(&rd, row);
	while ((p->st = record_next(&rd, &rec, &p->err)) == PW_OK) {
		if (rec.revision <= p->from)
			continue;
		p->st = rec.is_item ? redo_item(sv, &rec, &p->err) : redo_event(sv, &rec, &p->err);
		if (p->st != PW_OK)
			break;
		sv->revision = rec.revision;
		atomic_store_explicit(&sv->start_replayed, rec.revision, memory_order_relaxed);
	}
	record_read_release(&rd);
	ledger_commit(sv->ledger);
	if (p->st == PW_NOT_FOUND)
		p->st = PW_OK;
	return p->st == PW_OK;
}

static enum pw_status replay(struct service *sv, struct pw_err *err)
{
	struct replay p = { .sv = sv, .from = sv->revision };
	struct journal_span span;
	enum pw_status st;

	store_span(sv->store, &span);
	if (span.newest < sv->revision)
		return pw_fail(err, PW_STORAGE,
			       "journal.db ends at revision %" PRIu64 ", before the picture in ledger.db (%" PRIu64 ")",
			       span.newest, sv->revision);
	if (span.newest > sv->revision && span.oldest > sv->revision + 1)
		return pw_fail(err, PW_STORAGE,
			       "journal.db begins at revision %" PRIu64 ", after the picture in ledger.db (%" PRIu64
			       ")",
			       span.oldest, sv->revision);
	atomic_store(&sv->start_replayed, sv->revision);
	atomic_store(&sv->start_total, span.newest);
	atomic_store(&sv->start_step, START_JOURNAL);
	st = store_read(sv->store, sv->revision, replay_row, &p, err);
	if (st == PW_OK && p.st != PW_OK) {
		*err = p.err;
		st = p.st;
	}
	return st;
}

/* The first admin's token is journalled like any change. */
static enum pw_status first_admin(struct service *sv, struct pw_err *err)
{
	uint64_t before = sv->revision;
	struct journal_row row = { .first = before + 1, .time_ms = clock_utc_ms() };
	enum pw_status st = tokens_first_admin(sv, err);

	if (st != PW_OK || sv->revision == before)
		return st;
	if (sv->records.failed)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while making an admin token");
	row.last = sv->revision;
	row.records = sv->records.data;
	row.size = sv->records.used;
	st = store_begin(sv->store, err);
	if (st == PW_OK)
		st = store_append(sv->store, &row, err);
	if (st == PW_OK)
		st = store_commit(sv->store, err);
	if (st != PW_OK)
		store_rollback(sv->store);
	ledger_commit(sv->ledger);
	records_clear(&sv->records);
	return st;
}

/* Who was in reach gets a whole lease to be heard of again; who was not has to be heard of first. */
static void begin_leases(struct service *sv)
{
	int64_t now = clock_monotonic_ms();

	lease_clock_start(&sv->leases, sv->config->lease_seconds, now, clock_boot_ms());
	for (size_t i = 0; i < ledger_host_count(sv->ledger); i++) {
		struct host_note *note = host_note(ledger_host_at(sv->ledger, i));

		note->last_event = sv->revision;
		if (note->unreachable)
			lease_expire(&note->lease, &sv->leases);
		else
			lease_renew(&note->lease, &sv->leases, now);
	}
}

enum pw_status service_load(struct service *sv, struct pw_err *err)
{
	enum pw_status st;
	int64_t began = clock_monotonic_ms();
	uint64_t pictured;

	atomic_store(&sv->start_step, START_PICTURE);
	st = picture_load(sv, err);
	pictured = sv->revision;
	if (st == PW_OK && store_picture_lost(sv->store))
		log_line(LOG_ERROR_, "the picture was put aside as ledger.db.damaged and is made anew from the journal",
			 "error", store_picture_lost(sv->store), NULL);
	if (st == PW_OK && !store_picture_is_sealed(sv->store)) {
		log_line(LOG_INFO_, "the picture has no checksum yet: the next one will be whole and have it", NULL);
		atomic_store(&sv->repaint, true);
	}
	if (st == PW_OK)
		st = replay(sv, err);
	if (st == PW_OK)
		st = first_admin(sv, err);
	if (st != PW_OK)
		return st;
	sv->durable = sv->revision;
	sv->pictured = pictured;
	begin_leases(sv);
	log_detail(LOG_INFO_, "the ledger is loaded",
		   "picture at revision %" PRIu64 ", journal to %" PRIu64 ", %" PRId64 " ms", pictured, sv->revision,
		   clock_monotonic_ms() - began);
	return PW_OK;
}
