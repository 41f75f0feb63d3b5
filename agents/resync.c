/* Resync: the two truths, hardware and ledger, are compared VM by VM. What to do about each pair of states is a table
 * (agents/compare.c); here it is carried out. A guest is ended on hardware only where the ledger recorded its end after
 * this agent's last word on it (law L11); any other is kept, adopted where that is possible, and reported. */
#include "agents/resync_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/ops.h"

static struct seen_vm *seen(struct resync *rs, const struct pw_uuid *id)
{
	for (size_t i = 0; i < rs->n; i++)
		if (pw_uuid_equal(&rs->vms[i].id, id))
			return &rs->vms[i];
	if (rs->n == rs->cap) {
		size_t cap = rs->cap ? rs->cap * 2 : 16;
		struct seen_vm *more = reallocarray(rs->vms, cap, sizeof *more);

		rs->failed |= !more;
		if (!more)
			return NULL;
		rs->vms = more;
		rs->cap = cap;
	}
	rs->vms[rs->n] = (struct seen_vm){ .id = *id };
	return &rs->vms[rs->n++];
}

static enum presence presence_of(enum vm_state s)
{
	switch (s) {
	case VM_NORMAL: return PRESENCE_NORMAL;
	case VM_TRANSIENT: return PRESENCE_TRANSIENT;
	case VM_SECURE: return PRESENCE_SECURE;
	case VM_STATE_COUNT: break;
	}
	return PRESENCE_NONE;
}

static bool see_hardware(void *ctx, const struct pw_uuid *id, enum vm_state state)
{
	struct seen_vm *vm = seen(ctx, id);

	if (vm)
		vm->hardware = presence_of(state);
	return vm != NULL;
}

static bool see_ledger(void *ctx, json_t *item)
{
	struct resync *rs = ctx;
	struct remote_vm vm;
	struct seen_vm *s;

	if (!remote_vm_read(item, &vm)) {
		rs->failed = true;
		return false;
	}
	s = seen(rs, &vm.id);
	if (!s) {
		remote_vm_release(&vm);
		return false;
	}
	s->ledger = presence_of(vm.state);
	remote_vm_release(&s->vm);
	s->vm = vm;
	return true;
}

void resync_violation(struct resync *rs, const struct pw_uuid *vm, const char *what)
{
	char id[PW_UUID_TEXT];

	rs->violations++;
	pw_uuid_format(vm, id);
	alog(ALOG_ERROR, "violation: hardware and ledger differ", "vm %s: %s", id, what);
}

static enum pw_status end_hardware(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	struct backend *b = rs->w->agent->backend;
	enum pw_status st = PW_OK;

	if (s->hardware == PRESENCE_NONE)
		return PW_OK;
	if (s->hardware != PRESENCE_NORMAL)
		st = b->ops->vm_event(b, &s->id, s->hardware == PRESENCE_TRANSIENT ? VM_INIT_ABORT : VM_TERMINATE,
				      &t->err);
	if (st == PW_OK)
		st = report_stuck(rs->w, t);
	if (st == PW_OK)
		st = b->ops->destroy_vm(b, &s->id, &t->err);
	if (st == PW_OK)
		heard_drop(&rs->w->agent->heard, &s->id);
	return st;
}

/* The ledger has more than hardware. An ordinary VM that runs is no leftover of the launch that the ledger shows. */
static enum pw_status end_both(struct resync *rs, struct seen_vm *s, enum vm_event e, struct trouble *t)
{
	const struct heard_vm *heard = heard_of(&rs->w->agent->heard, &s->id);
	enum pw_status st = heard && heard->plain ? PW_OK : end_hardware(rs, s, t);

	return st == PW_OK ? remote_event(rs->w, &s->id, e, t) : st;
}

/* Slots, then pages. What the last word on the VM was if it had none, or one of another ledger, is this. */
static enum pw_status agree(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	struct heard *heard = &rs->w->agent->heard;
	const struct heard_vm *known;
	enum pw_status st = slots_agree(rs->w, &s->id, &s->vm, t);

	if (st == PW_OK && s->hardware != PRESENCE_NORMAL)
		st = resync_pages(rs, s, t);
	known = heard_of(heard, &s->id);
	if (st == PW_OK && (!known || known->revision == HEARD_NO_END))
		st = heard_put(heard, &s->id, s->vm.revision, known && known->plain, &t->err);
	return st;
}

/* Unknown VMs. */

static bool count_resident(void *ctx, const struct backend_run *run)
{
	*(uint64_t *)ctx += run->state == GFN_SECURE_RESIDENT ? run->count : 0;
	return true;
}

static enum vm_state state_of(enum presence p)
{
	return p == PRESENCE_SECURE ? VM_SECURE : p == PRESENCE_TRANSIENT ? VM_TRANSIENT : VM_NORMAL;
}

static enum pw_status report(struct resync *rs, const struct seen_vm *s, enum unknown_reason reason, const char *detail,
			     struct pw_err *err)
{
	struct backend *b = rs->w->agent->backend;
	struct unknown_report u = { .vm = s->id,
				    .reason = reason,
				    .state = state_of(s->hardware),
				    .detail = detail,
				    .disputes = &s->disputes };
	enum pw_status st = b->ops->read_state(b, &s->id, 0, TREE_PAGES, count_resident, &u.pages, err);

	return st == PW_OK ? unknown_note(rs->w->agent, &u, err) : st;
}

static enum pw_status keep_elsewhere(struct resync *rs, const struct seen_vm *s, struct pw_err *err)
{
	char detail[160], host[PW_UUID_TEXT];

	pw_uuid_format(&s->vm.host, host);
	snprintf(detail, sizeof detail, "the ledger places this VM on host %s: it is kept here too", host);
	return report(rs, s, UNKNOWN_ELSEWHERE, detail, err);
}

/* Adopted in whole, or but for what is disputed; or the ledger refuses, and it is kept. */
static enum pw_status adopt(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	enum pw_status st = vm_adopt(rs, s, t);
	char detail[256];

	if (st == PW_OK)
		return agree(rs, s, t);
	if (st == PW_NETWORK || st == PW_NO_MEMORY || !t->problem)
		return st;
	rs->unrepaired++;
	snprintf(detail, sizeof detail, "the ledger does not adopt this VM: %.180s", t->err.msg);
	trouble_clear(t);
	return report(rs, s, UNKNOWN_REFUSED, detail, &t->err);
}

/* Both have it: what is left to report of it? */
static enum pw_status settle(struct resync *rs, struct seen_vm *s, struct pw_err *err)
{
	char detail[200];

	if (!s->disputes.pages && !s->stray) {
		unknown_clear(rs->w->agent, &s->id);
		return PW_OK;
	}
	snprintf(detail, sizeof detail,
		 "%" PRIu64 " pages are on frames that the ledger does not give to this VM, %" PRIu64
		 " in slots that it does not have: they stay on hardware",
		 s->disputes.pages, s->stray);
	return report(rs, s, UNKNOWN_DISPUTED, detail, err);
}

/* The ledger says that hardware has the ordinary VM, and it has not: it is gone, or its launch is still to come. */
static enum pw_status tell_gone(struct resync *rs, const struct seen_vm *s, struct trouble *t)
{
	bool runs = false;
	enum pw_status st = remote_operation_runs(rs->w, &s->id, &runs, t);

	return st == PW_OK && !runs ? remote_event(rs->w, &s->id, VM_TERMINATE, t) : st;
}

/* Of an ordinary VM the ledger keeps whether hardware has it: it is told what hardware says. */
static enum pw_status agree_plain(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	bool there = s->hardware == PRESENCE_NORMAL;
	enum pw_status st = PW_OK;

	if (s->ledger == PRESENCE_NORMAL && s->vm.on_hardware != there)
		st = there ? remote_event(rs->w, &s->id, VM_START, t) : tell_gone(rs, s, t);
	return st == PW_OK && there ? agree(rs, s, t) : st;
}

static enum pw_status apply(struct resync *rs, struct seen_vm *s, enum vm_repair repair, struct trouble *t)
{
	struct backend *b = rs->w->agent->backend;
	enum pw_status st = PW_OK;

	switch (repair) {
	case VM_REPAIR_NOTHING: return agree_plain(rs, s, t);
	case VM_REPAIR_PAGES: return agree(rs, s, t);
	case VM_REPAIR_DESTROY: return end_hardware(rs, s, t);
	case VM_REPAIR_KEEP: return keep_elsewhere(rs, s, &t->err);
	case VM_REPAIR_ADOPT: return adopt(rs, s, t);
	case VM_REPAIR_TERMINATE: return end_both(rs, s, VM_TERMINATE, t);
	case VM_REPAIR_ABORT: return end_both(rs, s, VM_INIT_ABORT, t);
	case VM_REPAIR_DONE:
		st = remote_event(rs->w, &s->id, VM_INIT_DONE, t);
		return st == PW_OK ? agree(rs, s, t) : st;
	case VM_REPAIR_DONE_THERE:
		st = b->ops->vm_event(b, &s->id, VM_INIT_DONE, &t->err);
		return st == PW_OK ? agree(rs, s, t) : st;
	case VM_REPAIR_COUNT: break;
	}
	return PW_OK;
}

/* A VM that is not among those of this host: has the ledger recorded its end, or does another host have it? */
static enum pw_status look_up(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	struct pw_uuid here;
	enum pw_status st;

	if (s->ledger != PRESENCE_NONE)
		return PW_OK;
	remote_vm_release(&s->vm);
	st = remote_vm_get(rs->w, &s->id, &s->vm, t);
	if (st == PW_NOT_FOUND) {
		trouble_clear(t);
		return PW_OK;
	}
	if (st != PW_OK)
		return st;
	s->ledger = PRESENCE_ELSEWHERE;
	if (pw_uuid_parse(rs->w->agent->host, PW_UUID_TEXT - 1, &here) && pw_uuid_equal(&here, &s->vm.host))
		s->ledger = presence_of(s->vm.state); /* made this moment */
	return PW_OK;
}

static void log_remedy(struct resync *rs, const struct seen_vm *s, struct vm_remedy m)
{
	static const char *const names[PRESENCE_COUNT] = { "absent", "normal", "transient", "secure",
							   "on another host" };
	char what[100], id[PW_UUID_TEXT];

	if (m.repair == VM_REPAIR_NOTHING || m.repair == VM_REPAIR_PAGES)
		return;
	rs->differences++;
	snprintf(what, sizeof what, "the VM is %s in the ledger, %s on hardware", names[s->ledger], names[s->hardware]);
	pw_uuid_format(&s->id, id);
	if (m.violation)
		resync_violation(rs, &s->id, what);
	else
		alog(ALOG_INFO, "repairing", "vm %s: %s", id, what);
}

/* An ordinary VM is normal while it runs: only its deletion ends it. */
static bool has_ended(const struct heard *heard, const struct seen_vm *s)
{
	const struct heard_vm *known = heard_of(heard, &s->id);

	return heard_is_later(heard, &s->id, s->vm.ended) && !(known->plain && s->ledger == PRESENCE_NORMAL);
}

static enum pw_status resync_vm(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	struct agent *a = rs->w->agent;
	struct vm_remedy m;
	enum pw_status st = look_up(rs, s, t);

	if (st != PW_OK)
		return st;
	m = resync_vm_remedy(s->ledger, s->hardware, has_ended(&a->heard, s));
	log_remedy(rs, s, m);
	st = apply(rs, s, m.repair, t);
	if (st != PW_OK)
		return st;
	if (m.repair == VM_REPAIR_KEEP || (m.repair == VM_REPAIR_ADOPT && s->ledger != s->hardware))
		return PW_OK; /* reported */
	return settle(rs, s, &t->err);
}

static enum pw_status see_all(struct resync *rs, struct pw_err *err)
{
	struct backend *b = rs->w->agent->backend;
	char path[96];
	enum pw_status st = b->ops->each_vm(b, see_hardware, rs, err);

	if (st != PW_OK)
		return st;
	snprintf(path, sizeof path, "/v1/vms?host=%s&limit=1000", rs->w->agent->host);
	st = client_list(rs->w->client, path, see_ledger, rs, err);
	if (st == PW_OK && rs->failed)
		st = pw_fail(err, PW_NO_MEMORY, "the list of VMs cannot be read");
	return st;
}

static enum pw_status resync_again(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	enum pw_status st = agree(rs, s, t);

	return st == PW_OK ? settle(rs, s, &t->err) : st;
}

/* A VM that cannot be repaired does not keep the others from their work; a lost server does. */
static enum pw_status resync_one(struct resync *rs, struct seen_vm *s,
				 enum pw_status (*how)(struct resync *rs, struct seen_vm *s, struct trouble *t),
				 struct pw_err *err)
{
	struct trouble t = { 0 };
	enum pw_status st = how(rs, s, &t);
	char id[PW_UUID_TEXT];

	*err = t.err;
	trouble_clear(&t);
	if (st == PW_NETWORK || st == PW_NO_MEMORY || agent_is_stopping(rs->w->agent))
		return st == PW_OK ? PW_NETWORK : st;
	if (st == PW_OK)
		return PW_OK;
	rs->unrepaired++;
	pw_uuid_format(&s->id, id);
	alog(ALOG_ERROR, "not repaired", "vm %s: %s", id, err->msg);
	return PW_OK;
}

/* Frames that one VM claims may be free only when another has been compared: what is disputed is tried once more. */
static enum pw_status resync_each(struct resync *rs, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < rs->n && st == PW_OK; i++)
		st = resync_one(rs, &rs->vms[i], resync_vm, err);
	rs->disputed = 0;
	for (size_t i = 0; i < rs->n && st == PW_OK; i++)
		if (rs->vms[i].disputes.pages)
			st = resync_one(rs, &rs->vms[i], resync_again, err);
	return st;
}

/* What was heard of VMs that hardware has not is of no use, and may be long ago. */
static void forget_gone(struct resync *rs)
{
	struct heard *heard = &rs->w->agent->heard;

	for (size_t i = heard->n; i > 0; i--) {
		struct pw_uuid id = heard->v[i - 1].vm;
		const struct seen_vm *s = NULL;

		for (size_t k = 0; k < rs->n && !s; k++)
			s = pw_uuid_equal(&rs->vms[k].id, &id) ? &rs->vms[k] : NULL;
		if (!s || s->hardware == PRESENCE_NONE)
			heard_drop(heard, &id);
	}
}

static void release(struct resync *rs)
{
	for (size_t i = 0; i < rs->n; i++)
		remote_vm_release(&rs->vms[i].vm);
	free(rs->vms);
}

enum pw_status resync_host(struct worker *w, struct pw_err *err)
{
	struct resync rs = { .w = w };
	struct trouble t = { 0 };
	enum pw_status st = see_all(&rs, err);

	w->agent->stuck_reported = 0;
	json_object_clear(w->agent->unknown);
	w->agent->unknown_told = false;
	if (st == PW_OK) {
		forget_gone(&rs);
		st = report_stuck(w, &t);
		*err = t.err;
	}
	if (st == PW_OK)
		st = resync_each(&rs, err);
	if (st == PW_OK) {
		st = unknown_report(w, &t);
		*err = t.err;
	}
	alog(st == PW_OK ? ALOG_INFO : ALOG_WARNING, st == PW_OK ? "resynced" : "resync ended early",
	     "vms=%zu regions=%" PRIu64 " opened=%" PRIu64 " differences=%" PRIu64 " violations=%" PRIu64
	     " unrepaired=%" PRIu64 " unknown=%zu disputed=%" PRIu64,
	     rs.n, rs.regions, rs.opened, rs.differences, rs.violations, rs.unrepaired,
	     json_object_size(w->agent->unknown), rs.disputed);
	trouble_clear(&t);
	release(&rs);
	return st;
}

enum pw_status resync_one_vm(struct worker *w, const struct pw_uuid *vm, struct trouble *t)
{
	struct resync rs = { .w = w };
	struct seen_vm s = { .id = *vm };
	enum vm_state state;
	bool found;
	enum pw_status st = hardware_vm(w->agent->backend, vm, &found, &state, &t->err);

	if (st != PW_OK)
		return st;
	s.hardware = found ? presence_of(state) : PRESENCE_NONE;
	st = resync_vm(&rs, &s, t);
	if (st == PW_OK)
		st = unknown_report(w, t);
	if (rs.differences)
		alog(ALOG_INFO, "compared", "differences=%" PRIu64 " violations=%" PRIu64 " disputed=%" PRIu64,
		     rs.differences, rs.violations, rs.disputed);
	remote_vm_release(&s.vm);
	return st;
}
