/*
 * The operations that there are: by id, by VM and id, and in lists that nobody has to search. An unfinished one is in
 * the list of its host and in that of its VM's hash, oldest first; a finished one is in its host's and in the fleet's,
 * in the order in which they end. So what a host's poll, a heartbeat or a step of a VM asks costs the same however many
 * there are. All is the writer's, under `lock`; adding and changing is undone with its group, and what is forgotten is
 * finished, so that nothing can ask for it again.
 */
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "server/service_impl.h"

enum { FORGET_A_TICK = 256 };

int operation_compare(const void *key, const void *item)
{
	return memcmp(key, ((const struct operation *)item)->id.b, sizeof(struct pw_uuid));
}

int operation_vm_compare(const void *key, const void *item)
{
	const struct operation *k = key, *o = item;
	int by_vm = memcmp(k->vm.b, o->vm.b, sizeof k->vm);

	return by_vm ? by_vm : memcmp(k->id.b, o->id.b, sizeof k->id);
}

struct operation *operation_find(const struct service *sv, const struct pw_uuid *id)
{
	return index_find(&sv->operations, id);
}

bool operation_is_active(const struct operation *o)
{
	return o->state == OPERATION_PENDING || o->state == OPERATION_RUNNING;
}

/* --- Lists --- */

/* Those of one group have one time; while they are pending their revisions tell them apart. */
static bool is_older(const struct operation *a, const struct operation *b)
{
	return a->created_ms != b->created_ms ? a->created_ms < b->created_ms : a->revision < b->revision;
}

static void chain(struct operation_list *l, enum operation_place p, struct operation *o, struct operation *after)
{
	struct operation *before = after ? after->at[p].newer : l->oldest;

	o->at[p] = (struct operation_link){ .older = after, .newer = before };
	*(after ? &after->at[p].newer : &l->oldest) = o;
	*(before ? &before->at[p].older : &l->newest) = o;
	l->count++;
}

static void unchain(struct operation_list *l, enum operation_place p, struct operation *o)
{
	struct operation_link at = o->at[p];

	*(at.older ? &at.older->at[p].newer : &l->oldest) = at.newer;
	*(at.newer ? &at.newer->at[p].older : &l->newest) = at.older;
	l->count--;
}

static struct operation_list *vm_list(struct service *sv, const struct pw_uuid *vm)
{
	unsigned char hash[crypto_shorthash_BYTES]; /* keyed: who names VMs cannot choose the list */
	uint32_t n;

	crypto_shorthash(hash, vm->b, sizeof vm->b, sv->hash_key);
	memcpy(&n, hash, sizeof n);
	return &sv->operations_of_vms[n % OPERATION_BUCKETS];
}

static struct host_note *note_of(const struct service *sv, const struct pw_uuid *host)
{
	const struct host *h = ledger_host(sv->ledger, host);

	return h ? host_note(h) : NULL;
}

static bool is_waiting(const struct operation *o)
{
	return o->state == OPERATION_PENDING || o->deliver;
}

static void add_in_order(struct operation_list *l, enum operation_place p, struct operation *o)
{
	struct operation *after = l->newest;

	while (after && is_older(o, after))
		after = after->at[p].older;
	chain(l, p, o, after);
}

static void link_in(struct service *sv, struct operation *o)
{
	struct host_note *note = note_of(sv, &o->host);

	if (operation_is_active(o)) {
		add_in_order(&note->active, OPERATION_OF_HOST, o);
		add_in_order(vm_list(sv, &o->vm), OPERATION_OF_VM, o);
	} else {
		chain(&note->finished, OPERATION_OF_HOST, o, note->finished.newest);
		chain(&sv->finished, OPERATION_OF_FLEET, o, sv->finished.newest);
	}
}

static void link_out(struct service *sv, struct operation *o)
{
	struct host_note *note = note_of(sv, &o->host);

	if (operation_is_active(o)) {
		unchain(&note->active, OPERATION_OF_HOST, o);
		unchain(vm_list(sv, &o->vm), OPERATION_OF_VM, o);
	} else {
		unchain(&note->finished, OPERATION_OF_HOST, o);
		unchain(&sv->finished, OPERATION_OF_FLEET, o);
	}
}

static void count_in(struct service *sv, const struct operation *o)
{
	struct host_note *note = note_of(sv, &o->host);

	sv->operation_counts[o->state]++;
	note->pending += o->state == OPERATION_PENDING;
	note->waiting += is_waiting(o);
}

static void count_out(struct service *sv, const struct operation *o)
{
	struct host_note *note = note_of(sv, &o->host);

	sv->operation_counts[o->state]--;
	note->pending -= o->state == OPERATION_PENDING;
	note->waiting -= is_waiting(o);
}

/* Gives it the fields of *to. While it is unfinished it keeps its place. */
static void change(struct service *sv, struct operation *o, const struct operation *to)
{
	bool stays = operation_is_active(o) && operation_is_active(to);
	struct operation was = *o;

	count_out(sv, o);
	if (!stays)
		link_out(sv, o);
	*o = *to;
	o->slot = was.slot;
	memcpy(o->at, was.at, sizeof o->at);
	if (!stays)
		link_in(sv, o);
	count_in(sv, o);
}

struct operation *operation_of_vm(struct service *sv, const struct pw_uuid *vm, const struct operation *after)
{
	struct operation *o = after ? after->at[OPERATION_OF_VM].newer : vm_list(sv, vm)->oldest;

	while (o && !pw_uuid_equal(&o->vm, vm))
		o = o->at[OPERATION_OF_VM].newer;
	return o;
}

bool vm_has_active_operation(struct service *sv, const struct pw_uuid *vm)
{
	return operation_of_vm(sv, vm, NULL);
}

/* --- Adding, changing --- */

static void operation_free(struct operation *o)
{
	free(o->params);
	free(o->problem);
	free(o);
}

static void take_out(struct service *sv, struct operation *o)
{
	count_out(sv, o);
	link_out(sv, o);
	index_remove(&sv->operations, &o->id);
	index_remove(&sv->vm_operations, o);
	operation_free(o);
}

static void unmake_operation(void *ctx, const void *args)
{
	take_out(ctx, *(struct operation *const *)args);
}

enum pw_status operation_add(struct service *sv, const struct operation *o, struct operation **out)
{
	static const struct undo_ops made = { .rollback = unmake_operation };
	struct undo *u = ledger_undo(sv->ledger);
	undo_mark before = ledger_mark(sv->ledger);
	struct operation *copy;

	if (!note_of(sv, &o->host))
		return PW_NOT_FOUND;
	if (index_reserve(&sv->operations) != PW_OK || index_reserve(&sv->vm_operations) != PW_OK ||
	    undo_reserve(u, UNDO_RECORD(sizeof copy)) != PW_OK)
		return PW_NO_MEMORY;
	copy = malloc(sizeof *copy);
	if (!copy)
		return PW_NO_MEMORY;
	*copy = *o;
	if (o->kind == OPERATION_UNPLUG && !leaving_slot(o, &copy->slot)) {
		free(copy);
		return PW_NO_MEMORY;
	}
	index_insert(&sv->operations, &copy->id, copy);
	index_insert(&sv->vm_operations, copy, copy);
	link_in(sv, copy);
	count_in(sv, copy);
	undo_push(u, &made, sv, &copy, sizeof copy);
	*out = copy;
	if (copy->state != OPERATION_RUNNING || !operation_is_end(copy->kind) || leaving_update(sv, &copy->vm) == PW_OK)
		return PW_OK;
	copy->params = copy->problem = NULL; /* the caller's still */
	ledger_rollback(sv->ledger, before);
	return PW_NO_MEMORY;
}

static void forget_operation(struct service *sv, struct operation *o)
{
	(void)note_deleted(&sv->deleted_operations, &sv->deleted_operation_count, &o->id, &sv->repaint);
	take_out(sv, o);
}

struct operation_undo {
	struct operation *o, old;
};

static void put_operation_back(void *ctx, const void *args)
{
	const struct operation_undo *u = args;

	if (u->o->problem != u->old.problem)
		free(u->o->problem);
	change(ctx, u->o, &u->old);
}

/* One that ends pushes out the oldest of its host's, and of the fleet's. u->o itself may be gone by now. */
static void make_room(void *ctx, const void *args)
{
	const struct operation_undo *u = args;
	struct service *sv = ctx;
	struct host_note *note = note_of(sv, &u->old.host);

	while (note->finished.count > sv->config->host_finished)
		forget_operation(sv, note->finished.oldest);
	while (sv->finished.count > sv->config->operations / 2)
		forget_operation(sv, sv->finished.oldest);
}

enum pw_status operation_set(struct service *sv, struct operation *o, const struct operation *to)
{
	static const struct undo_ops changed = { .rollback = put_operation_back, .commit = make_room };
	struct operation_undo old = { o, *o };
	struct undo *u = ledger_undo(sv->ledger);
	undo_mark before = ledger_mark(sv->ledger);

	if (undo_reserve(u, UNDO_RECORD(sizeof old)) != PW_OK)
		return PW_NO_MEMORY;
	undo_push(u, &changed, sv, &old, sizeof old);
	change(sv, o, to);
	if (old.old.state == o->state || !operation_is_end(o->kind) || leaving_update(sv, &o->vm) == PW_OK)
		return PW_OK;
	o->problem = old.old.problem; /* the caller's still */
	ledger_rollback(sv->ledger, before);
	return PW_NO_MEMORY;
}

/* --- In time --- */

void operations_tick(struct service *sv, int64_t now_ms)
{
	int64_t life_ms = (int64_t)sv->config->operation_hours * 3600000;

	for (unsigned left = FORGET_A_TICK; left && sv->finished.oldest; left--) {
		struct operation *o = sv->finished.oldest;

		if (o->finished_ms + life_ms >= now_ms)
			return;
		forget_operation(sv, o);
	}
}

void operations_again(struct service *sv, const struct host *h)
{
	struct host_note *note = host_note(h);

	for (struct operation *o = note->active.oldest; o; o = o->at[OPERATION_OF_HOST].newer) {
		if (o->state != OPERATION_RUNNING || o->deliver)
			continue;
		o->deliver = true;
		note->waiting++;
	}
}

void operations_release(struct service *sv)
{
	for (size_t i = 0; i < sv->operations.count; i++)
		operation_free(sv->operations.items[i]);
	index_release(&sv->operations);
	index_release(&sv->vm_operations);
}
