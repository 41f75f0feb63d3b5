#include <stdlib.h>
#include <string.h>

#include "server/service_impl.h"

static enum pw_status loaded(enum pw_problem p, const struct refusal *why, struct pw_err *err)
{
	return p == PROBLEM_NONE ? PW_OK : pw_fail(err, PW_STORAGE, "ledger.db: %s", why->detail);
}

static enum pw_status load_host(void *ctx, const struct host_row *row, struct pw_err *err)
{
	const struct host_body b = { .backends = row->backends };
	struct host_spec spec = { .id = row->id,
				  .name = row->name,
				  .boot_id = row->boot_id,
				  .arches = row->arches,
				  .has_local = row->has_local,
				  .base = row->base,
				  .frames = row->frames,
				  .page_shift = row->page_shift };
	struct service *sv = ctx;
	struct host_note *note = calloc(1, sizeof *note);
	enum pw_problem p;
	struct refusal why;
	struct host *h;

	if (!note || !(note->backends = strdup(b.backends))) {
		free(note);
		return pw_fail(err, PW_NO_MEMORY, "out of memory while loading hosts");
	}
	p = ledger_load_host(sv->ledger, &spec, row->epoch, row->fenced, &h, &why);
	if (p != PROBLEM_NONE) {
		free(note->backends);
		free(note);
		return loaded(p, &why, err);
	}
	memccpy(note->agent_version, row->agent_version, 0, sizeof note->agent_version - 1);
	note->last_seen_ms = row->last_seen_ms;
	note->unreachable = row->unreachable;
	h->note = note;
	h->revision = row->revision;
	return PW_OK;
}

static enum pw_status load_pool(void *ctx, const struct pool_row *row, struct pw_err *err)
{
	struct pool_spec spec = {
		.name = row->name, .base = row->base, .frames = row->frames, .page_shift = row->page_shift
	};
	struct service *sv = ctx;
	struct refusal why;
	struct pool *p;
	bool created;

	if (ledger_pool_put(sv->ledger, &spec, &p, &created, &why) != PROBLEM_NONE)
		return loaded(why.problem, &why, err);
	p->revision = row->revision;
	return PW_OK;
}

static enum pw_status load_attachment(void *ctx, const struct attachment_row *row, struct pw_err *err)
{
	struct service *sv = ctx;
	struct host *h = ledger_host(sv->ledger, &row->host);
	struct pool *p = ledger_pool(sv->ledger, row->pool);
	struct refusal why;

	if (!h || !p)
		return pw_fail(err, PW_STORAGE, "ledger.db: pool %s is attached to a host that is not there",
			       row->pool);
	return loaded(ledger_load_attachment(sv->ledger, p, h, row->place, &why), &why, err);
}

static bool state_from_name(const char *name, enum vm_state *out)
{
	for (int s = 0; s < VM_STATE_COUNT; s++)
		if (strcmp(vm_state_name((enum vm_state)s), name) == 0) {
			*out = (enum vm_state)s;
			return true;
		}
	return false;
}

/* A VM's slots are rows of their own: it begins without any. */
static enum pw_status load_vm(void *ctx, const struct vm_row *row, struct pw_err *err)
{
	struct service *sv = ctx;
	struct vm_spec spec = { .id = row->id,
				.name = row->name,
				.host = ledger_host(sv->ledger, &row->host),
				.shared_bit = row->shared_bit };
	enum vm_state state;
	struct refusal why;
	struct vm *vm;

	if (!spec.host || !arch_from_name(row->arch, &spec.arch) || !state_from_name(row->state, &state))
		return pw_fail(err, PW_STORAGE, "ledger.db: VM %s has no host, arch %s, state %s", row->name, row->arch,
			       row->state);
	if (ledger_load_vm(sv->ledger, &spec, state, row->arch_state, row->epoch, &vm, &why) != PROBLEM_NONE)
		return loaded(why.problem, &why, err);
	vm->revision = row->revision;
	vm->ended = row->ended;
	vm->on_hardware = vm->on_hardware || row->on_hardware;
	return PW_OK;
}

static enum pw_status load_slot(void *ctx, const struct slot_row *row, struct pw_err *err)
{
	struct service *sv = ctx;
	struct vm *vm = ledger_vm(sv->ledger, &row->vm);
	struct refusal why;

	if (!vm)
		return pw_fail(err, PW_STORAGE, "ledger.db: slot %" PRIu32 " has no VM", row->slot.number);
	return loaded(ledger_load_slot(sv->ledger, vm, &row->slot, &why), &why, err);
}

static enum pw_status load_vcpu(void *ctx, const struct vcpu_row *row, struct pw_err *err)
{
	const struct vcpu_kept kept = { row->vcpu, row->exit, row->items, row->time_ms, row->revision };
	struct service *sv = ctx;
	struct vm *vm = ledger_vm(sv->ledger, &row->vm);
	enum pw_problem p;
	struct refusal why;

	if (!vm)
		return pw_fail(err, PW_STORAGE, "ledger.db: vCPU %u has no VM", row->vcpu);
	p = vcpu_load(sv, vm, &kept, &why);
	ledger_commit(sv->ledger);
	return loaded(p, &why, err);
}

static enum pw_status load_quarantine(void *ctx, const struct quarantine_row *row, struct pw_err *err)
{
	struct service *sv = ctx;
	struct host *h = ledger_host(sv->ledger, &row->host);
	struct frame_range range = { .pool = h ? h->pools[0] : ledger_pool(sv->ledger, row->pool),
				     .pfn = row->pfn,
				     .count = row->count,
				     .reason = row->reason,
				     .time_ms = row->time_ms };
	struct refusal why;

	if (!range.pool)
		return pw_fail(err, PW_STORAGE, "ledger.db: quarantined frames of pool %s, which is not there",
			       row->pool);
	return loaded(ledger_quarantine(sv->ledger, h, &range, 1, &why), &why, err);
}

/* The architecture's state as it is in an entry. */
static bool arch_bits(const struct vm *vm, const struct extent_row *row, uint64_t *bits)
{
	const struct arch_law *law = arch_laws[vm->arch];
	unsigned state = law ? arch_state_find(law, row->arch_state, gfn_entry_state(row->entry)) : ARCH_REFUSED;

	*bits = (uint64_t)(state + 1) << GFN_ENTRY_ARCH;
	return state != ARCH_REFUSED;
}

static enum pw_status load_extent(void *ctx, const struct extent_row *row, struct pw_err *err)
{
	struct service *sv = ctx;
	struct vm *vm = ledger_vm(sv->ledger, &row->vm);
	uint64_t arch = 0;
	enum pw_problem p;
	struct refusal why;

	if (!vm)
		return pw_fail(err, PW_STORAGE, "ledger.db: an extent at GFN %" PRIu64 " has no VM", row->gfn);
	if (row->arch_state && !arch_bits(vm, row, &arch))
		return pw_fail(err, PW_STORAGE, "ledger.db: GFN %" PRIu64 " is %s, which %s has not", row->gfn,
			       row->arch_state, arch_name(vm->arch));
	p = ledger_load_extent(sv->ledger, vm, row->gfn, row->count, row->entry | arch, &why);
	ledger_commit(sv->ledger);
	return loaded(p, &why, err);
}

static enum pw_status load_operation(void *ctx, const struct operation_row *row, struct pw_err *err)
{
	struct service *sv = ctx;
	struct operation *made, o = { .id = row->id,
				      .vm = row->vm,
				      .host = row->host,
				      .host_epoch = row->host_epoch,
				      .created_ms = row->created_ms,
				      .started_ms = row->started_ms,
				      .finished_ms = row->finished_ms,
				      .revision = row->revision };

	if (!operation_kind_from_name(row->kind, &o.kind) || !operation_state_from_name(row->state, &o.state))
		return pw_fail(err, PW_STORAGE, "ledger.db: an operation of kind %s, state %s", row->kind, row->state);
	o.params = strdup(row->params);
	o.problem = row->problem[0] ? strdup(row->problem) : NULL;
	if (o.params && (o.problem || !row->problem[0]) && operation_add(sv, &o, &made) == PW_OK)
		return PW_OK;
	free(o.params);
	free(o.problem);
	return pw_fail(err, PW_NO_MEMORY, "out of memory while loading operations");
}

static enum pw_status load_token(void *ctx, const struct token_row *row, struct pw_err *err)
{
	struct token t = { .id = row->id, .host = row->host, .created_ms = row->created_ms, .revision = row->revision };

	if (!role_from_name(row->role, &t.role))
		return pw_fail(err, PW_STORAGE, "ledger.db: a token with role %s", row->role);
	memccpy(t.name, row->name, 0, sizeof t.name - 1);
	memcpy(t.hash, row->hash, sizeof t.hash);
	return token_add(ctx, &t) == PW_OK ? PW_OK : pw_fail(err, PW_NO_MEMORY, "out of memory while loading tokens");
}

static enum pw_status load_end(void *ctx, const struct end_row *row, struct pw_err *err)
{
	struct end e = { row->vm, row->slot, row->host, row->revision, row->time_ms };

	return end_put(ctx, &e) == PW_OK ? PW_OK : pw_fail(err, PW_NO_MEMORY, "out of memory while loading ends");
}

static enum pw_status load_unknown(void *ctx, const struct unknown_row *row, struct pw_err *err)
{
	struct unknown u = { row->host, row->vm, strdup(row->report), row->since_ms, row->revision };

	if (u.report && unknown_put(ctx, &u) == PW_OK)
		return PW_OK;
	free(u.report);
	return pw_fail(err, PW_NO_MEMORY, "out of memory while loading reports of unknown VMs");
}

/* What was just loaded is what the picture has. */
static void forget_span(void *ctx, uint64_t first, uint64_t count)
{
}

static void forget_run(void *ctx, const struct tree_run *run)
{
}

enum pw_status picture_load(struct service *sv, struct pw_err *err)
{
	const struct picture_reader reader = { .ctx = sv,
					       .host = load_host,
					       .pool = load_pool,
					       .attachment = load_attachment,
					       .vm = load_vm,
					       .slot = load_slot,
					       .vcpu = load_vcpu,
					       .quarantine = load_quarantine,
					       .extent = load_extent,
					       .operation = load_operation,
					       .token = load_token,
					       .end = load_end,
					       .unknown = load_unknown };
	enum pw_status st = store_load_picture(sv->store, &reader, &sv->revision, err);

	ledger_commit(sv->ledger);
	for (size_t i = 0; st == PW_OK && i < ledger_vm_count(sv->ledger); i++) {
		const struct tree_visitor nobody = { forget_span, forget_run, NULL };

		tree_clean(&ledger_vm_at(sv->ledger, i)->pages, &nobody);
	}
	return st;
}
