/*
 * What is leaving: a VM whose operation terminate or abort is running, a slot whose operation unplug is. Its pages keep
 * their frames, and get no others (engine/apply.c). Derived from the states of operations and from nothing else, so
 * that a start from the picture and the journal comes to the same; each change is undone with the operation's.
 */
#include <stdlib.h>
#include <string.h>

#include "api/jsonr.h"
#include "server/service_impl.h"

bool operation_is_end(enum operation_kind kind)
{
	return kind == OPERATION_TERMINATE || kind == OPERATION_ABORT || kind == OPERATION_UNPLUG;
}

bool leaving_slot(const struct operation *o, uint32_t *out)
{
	struct jsonr *json = jsonr_parse(o->params, strlen(o->params));
	uint64_t number;
	bool ok = json && jsonr_u64(json, "slot", &number) && number <= UINT32_MAX;

	jsonr_free(json);
	if (ok)
		*out = (uint32_t)number;
	return ok;
}

static int compare_slot(const void *a, const void *b)
{
	uint32_t x = *(const uint32_t *)a, y = *(const uint32_t *)b;

	return x < y ? -1 : x > y;
}

/* NULL in *out: nothing is leaving. */
static bool collect(struct service *sv, const struct pw_uuid *vm, struct vm_leaving **out)
{
	struct vm_leaving all = { .op = NULL };
	uint32_t *slots = NULL;
	size_t room = 0;

	for (const struct operation *o = operation_of_vm(sv, vm, NULL); o; o = operation_of_vm(sv, vm, o)) {
		if (o->state != OPERATION_RUNNING || !operation_is_end(o->kind))
			continue;
		if (o->kind != OPERATION_UNPLUG) {
			all.op = operation_kind_name(o->kind);
			continue;
		}
		if (all.n == room) {
			uint32_t *grown = reallocarray(slots, room ? 2 * room : 4, sizeof *slots);

			if (!grown) {
				free(slots);
				return false;
			}
			slots = grown;
			room = room ? 2 * room : 4;
		}
		slots[all.n++] = o->slot;
	}
	*out = all.op || all.n ? malloc(sizeof all + all.n * sizeof *slots) : NULL;
	if (*out) {
		**out = all;
		if (all.n) {
			memcpy((*out)->slots, slots, all.n * sizeof *slots);
			qsort((*out)->slots, all.n, sizeof *slots, compare_slot);
		}
	}
	free(slots);
	return *out || (!all.op && !all.n);
}

static void put_back(void *ctx, const void *args)
{
	struct vm *vm = ctx;

	free(vm->leaving);
	vm->leaving = *(struct vm_leaving *const *)args;
}

static void forget(void *ctx, const void *args)
{
	free(*(struct vm_leaving *const *)args);
}

enum pw_status leaving_update(struct service *sv, const struct pw_uuid *id)
{
	static const struct undo_ops changed = { .rollback = put_back, .commit = forget };
	struct vm *vm = ledger_vm(sv->ledger, id);
	struct vm_leaving *now;

	if (!vm)
		return PW_OK;
	if (undo_reserve(ledger_undo(sv->ledger), UNDO_RECORD(sizeof now)) != PW_OK || !collect(sv, id, &now))
		return PW_NO_MEMORY;
	undo_push(ledger_undo(sv->ledger), &changed, vm, &vm->leaving, sizeof vm->leaving);
	vm->leaving = now;
	return PW_OK;
}

void leaving_release(struct service *sv)
{
	for (size_t i = 0; i < ledger_vm_count(sv->ledger); i++)
		free(ledger_vm_at(sv->ledger, i)->leaving);
}
