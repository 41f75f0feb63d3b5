/* What hardware has and the ledger does not show is neither free nor garbage (law L11): here a VM, or a slot of one, is
 * made known to the ledger; and slots that the ledger recorded as deleted leave hardware. Only the last takes anything
 * away, and only on that evidence. */
#include <stdlib.h>
#include <string.h>

#include "agents/ops.h"
#include "agents/resync_impl.h"

struct slot_list {
	struct slot *v; /* owned */
	size_t n, cap;
	bool failed;
};

static bool see_slot(void *ctx, const struct slot *s)
{
	struct slot_list *l = ctx;

	if (l->n == l->cap) {
		size_t cap = l->cap ? 2 * l->cap : 8;
		struct slot *more = reallocarray(l->v, cap, sizeof *more);

		l->failed |= !more;
		if (!more)
			return false;
		l->v = more;
		l->cap = cap;
	}
	l->v[l->n++] = *s;
	return true;
}

static enum pw_status read_slots(struct backend *b, const struct pw_uuid *vm, struct slot_list *l, unsigned *shared_bit,
				 struct pw_err *err)
{
	enum pw_status st = b->ops->read_slots(b, vm, see_slot, l, shared_bit, err);

	return st == PW_OK && l->failed ? pw_fail(err, PW_NO_MEMORY, "no memory for slots") : st;
}

static const struct slot *numbered(const struct slot *v, size_t n, uint32_t number)
{
	for (size_t i = 0; i < n; i++)
		if (v[i].number == number)
			return &v[i];
	return NULL;
}

static bool is_same(const struct slot *a, const struct slot *b)
{
	return a->base == b->base && a->pages == b->pages;
}

/* The ledger's slots again, after it took one. */
static enum pw_status read_again(struct worker *w, struct remote_vm *vm, struct trouble *t)
{
	struct remote_vm fresh;
	enum pw_status st = remote_vm_get(w, &vm->id, &fresh, t);

	if (st != PW_OK)
		return st;
	remote_vm_release(vm);
	*vm = fresh;
	return PW_OK;
}

/* Slots of hardware whose end the ledger recorded go first: what was mapped since is told apart by the new word. */
static enum pw_status end_slots(struct worker *w, const struct pw_uuid *vm, const struct remote_vm *ledger,
				const struct slot_list *on, bool *any, struct trouble *t)
{
	struct backend *b = w->agent->backend;
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < on->n && st == PW_OK; i++) {
		uint64_t ended = remote_slot_end(ledger, on->v[i].number);

		if (!heard_is_later(&w->agent->heard, vm, ended))
			continue;
		alog(ALOG_INFO, "a slot ended", "slot %" PRIu32 ": deleted in the ledger at revision %" PRIu64,
		     on->v[i].number, ended);
		st = b->ops->unmap_slot(b, vm, on->v[i].number, &t->err);
		*any = true;
	}
	return st == PW_OK && *any ? report_stuck(w, t) : st;
}

/* What the ledger does not have, and did not end, is added there; refused, it stays on hardware alone. */
static enum pw_status tell_slots(struct worker *w, struct remote_vm *ledger, const struct slot_list *on,
				 struct trouble *t)
{
	bool any = false;
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < on->n && st == PW_OK; i++) {
		if (numbered(ledger->slots, ledger->slot_count, on->v[i].number) ||
		    heard_is_later(&w->agent->heard, &ledger->id, remote_slot_end(ledger, on->v[i].number)))
			continue;
		st = remote_slot_put(w, &ledger->id, &on->v[i], t);
		any |= st == PW_OK;
		if (st == PW_OK || !t->problem)
			continue;
		alog(ALOG_ERROR, "a slot that the ledger does not take", "slot %" PRIu32 ": %s", on->v[i].number,
		     t->err.msg);
		trouble_clear(t);
		st = PW_OK;
	}
	return st == PW_OK && any ? read_again(w, ledger, t) : st;
}

static enum pw_status map_slots(struct worker *w, const struct pw_uuid *vm, const struct remote_vm *ledger,
				struct trouble *t)
{
	struct backend *b = w->agent->backend;
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < ledger->slot_count && st == PW_OK; i++)
		st = b->ops->map_slot(b, vm, &ledger->slots[i], &t->err);
	return st;
}

static bool all_there(const struct remote_vm *ledger, const struct slot_list *on)
{
	for (size_t i = 0; i < ledger->slot_count; i++) {
		const struct slot *s = numbered(on->v, on->n, ledger->slots[i].number);

		if (!s || !is_same(s, &ledger->slots[i]))
			return false;
	}
	return true;
}

/*
 * The order makes each crash harmless: old slots go; the word on the VM is put down, so that no end of before counts
 * against what comes next; new ones come.
 */
enum pw_status slots_agree(struct worker *w, const struct pw_uuid *vm, struct remote_vm *ledger, struct trouble *t)
{
	struct agent *a = w->agent;
	struct slot_list on = { 0 };
	bool ended = false;
	unsigned shared_bit;
	enum pw_status st = read_slots(a->backend, vm, &on, &shared_bit, &t->err);

	if (st == PW_OK)
		st = end_slots(w, vm, ledger, &on, &ended, t);
	if (st == PW_OK)
		st = tell_slots(w, ledger, &on, t);
	if (st == PW_OK && (ended || !all_there(ledger, &on))) {
		const struct heard_vm *heard = heard_of(&a->heard, vm);

		st = heard_put(&a->heard, vm, ledger->revision, heard && heard->plain, &t->err);
		if (st == PW_OK)
			st = map_slots(w, vm, ledger, t);
	}
	free(on.v);
	return st;
}

/* Adoption of a whole VM. */

static enum pw_status create_there(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	struct backend_vm_spec spec = { .id = s->id };
	struct slot_list on = { 0 };
	enum pw_status st = read_slots(rs->w->agent->backend, &s->id, &on, &spec.shared_bit, &t->err);

	spec.slots = on.v;
	spec.slot_count = on.n;
	if (st == PW_OK)
		st = remote_adopt(rs->w, &spec, t);
	free(on.v);
	return st;
}

static enum pw_status follow_states(struct resync *rs, const struct seen_vm *s, uint64_t *revision, struct trouble *t)
{
	enum told told = s->ledger == PRESENCE_NONE ? TOLD_AS_NEWS : TOLD_AS_ADOPTED; /* its creation said so */
	enum pw_status st = PW_OK;

	if (s->hardware == PRESENCE_NORMAL)
		st = remote_event_at(rs->w, &s->id, VM_START, TOLD_AS_NEWS, revision, t);
	if (s->hardware == PRESENCE_TRANSIENT || s->hardware == PRESENCE_SECURE)
		st = remote_event_at(rs->w, &s->id, VM_INIT_START, told, revision, t);
	if (st == PW_OK && s->hardware == PRESENCE_SECURE)
		st = remote_event_at(rs->w, &s->id, VM_INIT_DONE, told, revision, t);
	return st;
}

/* Until it is over, no end that the ledger shows is evidence: the VM's own creation there would look like one. */
enum pw_status vm_adopt(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	struct heard *heard = &rs->w->agent->heard;
	const struct heard_vm *known = heard_of(heard, &s->id);
	bool plain = known ? known->plain : s->hardware == PRESENCE_NORMAL;
	uint64_t revision = 0;
	struct remote_vm fresh;
	enum pw_status st = heard_put(heard, &s->id, HEARD_NO_END, plain, &t->err);

	if (st == PW_OK && s->ledger == PRESENCE_NONE)
		st = create_there(rs, s, t);
	if (st == PW_OK)
		st = follow_states(rs, s, &revision, t);
	if (st == PW_OK)
		st = remote_vm_get(rs->w, &s->id, &fresh, t);
	if (st != PW_OK)
		return st;
	remote_vm_release(&s->vm);
	s->vm = fresh;
	s->ledger = s->hardware;
	alog(ALOG_WARNING, "adopted", "a VM that the ledger did not own: revision %" PRIu64, fresh.revision);
	return heard_put(heard, &s->id, fresh.revision, plain, &t->err);
}
