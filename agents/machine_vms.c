#include "agents/machine_impl.h"

#include <stdlib.h>
#include <string.h>

static enum pw_status unknown(const struct pw_uuid *id, struct pw_err *err)
{
	char text[PW_UUID_TEXT];

	pw_uuid_format(id, text);
	return pw_fail(err, PW_NOT_FOUND, "no VM %s on this machine", text);
}

struct machine_vm *machine_find(const struct machine *x, const struct pw_uuid *id)
{
	struct machine_vm *vm = x->vms;

	while (vm && !pw_uuid_equal(&vm->id, id))
		vm = vm->next;
	return vm;
}

enum pw_status machine_begin_vm(struct machine *x, const struct pw_uuid *id, struct machine_vm **vm, struct pw_err *err)
{
	enum pw_status st = machine_log_begin(x, err);

	if (st != PW_OK)
		return st;
	*vm = machine_find(x, id);
	return *vm ? PW_OK : unknown(id, err);
}

/* Slots of a VM. */

static enum pw_status slot_fits(const struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	size_t at;

	if (s->pages == 0 || s->base >= TREE_PAGES || s->pages > TREE_PAGES - s->base)
		return pw_fail(err, PW_INVALID, "slot %" PRIu32 " (GFN %" PRIu64 "+%" PRIu64 ") makes no sense",
			       s->number, s->base, s->pages);
	at = machine_slot_after(vm, s->base);
	for (size_t i = 0; i < vm->slot_count; i++) {
		bool overlaps = i == at && vm->slots[i].base < s->base + s->pages;

		if (vm->slots[i].number == s->number || overlaps)
			return pw_fail(err, PW_CONFLICT,
				       "slot %" PRIu32 " (GFN %" PRIu64 "+%" PRIu64 ") and slot %" PRIu32
				       " (GFN %" PRIu64 "+%" PRIu64 ") exclude each other",
				       s->number, s->base, s->pages, vm->slots[i].number, vm->slots[i].base,
				       vm->slots[i].pages);
	}
	return PW_OK;
}

static enum pw_status slot_insert(struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	enum pw_status st = slot_fits(vm, s, err);
	struct slot *grown;
	size_t at;

	if (st != PW_OK)
		return st;
	grown = reallocarray(vm->slots, vm->slot_count + 1, sizeof *grown);
	if (!grown)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a slot");
	vm->slots = grown;
	at = machine_slot_after(vm, s->base);
	memmove(&grown[at + 1], &grown[at], (vm->slot_count - at) * sizeof *grown);
	grown[at] = *s;
	vm->slot_count++;
	return PW_OK;
}

static const struct slot *slot_numbered(const struct machine_vm *vm, uint32_t number)
{
	for (size_t i = 0; i < vm->slot_count; i++)
		if (vm->slots[i].number == number)
			return &vm->slots[i];
	return NULL;
}

static void slot_forget(struct machine_vm *vm, uint32_t number)
{
	struct slot *s = vm->slots + (slot_numbered(vm, number) - vm->slots);

	vm->slot_count--;
	memmove(s, s + 1, (vm->slot_count - (size_t)(s - vm->slots)) * sizeof *s);
}

/* VMs. */

void machine_vm_drop(struct machine_vm *vm)
{
	if (vm)
		free(vm->slots);
	free(vm);
}

static enum pw_status vm_make(const struct backend_vm_spec *spec, struct machine_vm **out, struct pw_err *err)
{
	struct machine_vm *vm = calloc(1, sizeof *vm);
	enum pw_status st = PW_OK;

	if (!vm)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a VM");
	vm->id = spec->id;
	vm->state = VM_NORMAL;
	vm->shared_bit = spec->shared_bit;
	for (size_t i = 0; i < spec->slot_count && st == PW_OK; i++)
		st = slot_insert(vm, &spec->slots[i], err);
	if (st == PW_OK)
		*out = vm;
	else
		machine_vm_drop(vm);
	return st;
}

static void vm_link(struct machine *x, struct machine_vm *vm)
{
	struct machine_vm **end = &x->vms;

	while (*end)
		end = &(*end)->next;
	*end = vm;
}

static void vm_unlink(struct machine *x, struct machine_vm *vm)
{
	struct machine_vm **at = &x->vms;

	while (*at != vm)
		at = &(*at)->next;
	*at = vm->next;
}

enum pw_status machine_create_vm(struct machine *x, const struct backend_vm_spec *spec, struct pw_err *err)
{
	enum pw_status st = machine_log_begin(x, err);
	struct machine_vm *vm = NULL;

	if (st != PW_OK || machine_find(x, &spec->id))
		return st;
	st = vm_make(spec, &vm, err);
	if (st != PW_OK)
		return st;
	machine_log_create(x, vm);
	st = x->group.failed ? pw_fail(err, PW_NO_MEMORY, "no memory") : x->model->vm_new(x->firmware, vm, err);
	if (st == PW_OK)
		vm_link(x, vm);
	else
		machine_vm_drop(vm);
	return machine_log_end(x, st, err);
}

static enum pw_status do_event(struct machine *x, struct machine_vm *vm, enum vm_event e, enum vm_state next,
			       struct pw_err *err)
{
	enum pw_status st = machine_remember(x, vm, 0, TREE_PAGES, err);

	if (st != PW_OK)
		return st;
	st = x->model->event(x->firmware, vm, e, err);
	if (st == PW_OK)
		vm->state = next;
	machine_settle(x, vm, 0, TREE_PAGES); /* an end that failed may have freed some */
	return st;
}

enum pw_status machine_destroy_vm(struct machine *x, const struct pw_uuid *id, struct pw_err *err)
{
	enum pw_status st = machine_log_begin(x, err);
	struct machine_vm *vm = machine_find(x, id);

	if (st != PW_OK || !vm)
		return st;
	machine_log_destroy(x, id);
	if (x->group.failed)
		st = pw_fail(err, PW_NO_MEMORY, "no memory");
	else if (vm->state != VM_NORMAL)
		st = do_event(x, vm, VM_TERMINATE, VM_NORMAL, err);
	if (st == PW_OK) {
		vm_unlink(x, vm);
		x->model->vm_free(x->firmware, vm);
		machine_vm_drop(vm);
	}
	return machine_log_end(x, st, err);
}

/* Where each event leads: a VM that is there already needs nothing. */
static const enum vm_state event_ends[VM_EVENT_COUNT] = { [VM_START] = VM_NORMAL,
							  [VM_INIT_START] = VM_TRANSIENT,
							  [VM_INIT_DONE] = VM_SECURE,
							  [VM_INIT_ABORT] = VM_NORMAL,
							  [VM_TERMINATE] = VM_NORMAL };

enum pw_status machine_vm_event(struct machine *x, const struct pw_uuid *id, enum vm_event e, struct pw_err *err)
{
	struct machine_vm *vm;
	enum vm_state next;
	enum pw_status st = machine_begin_vm(x, id, &vm, err);

	if (st != PW_OK || vm->state == event_ends[e])
		return st;
	if (!vm_step(vm->state, e, &next))
		return pw_fail(err, PW_CONFLICT, "%s of a VM that is %s", vm_event_name(e), vm_state_name(vm->state));
	machine_log_event(x, id, e);
	st = x->group.failed ? pw_fail(err, PW_NO_MEMORY, "no memory") : do_event(x, vm, e, next, err);
	return machine_log_end(x, st, err);
}

enum pw_status machine_map_slot(struct machine *x, const struct pw_uuid *id, const struct slot *s, struct pw_err *err)
{
	const struct slot *old;
	struct machine_vm *vm;
	enum pw_status st = machine_begin_vm(x, id, &vm, err);

	if (st != PW_OK)
		return st;
	old = slot_numbered(vm, s->number);
	if (old && old->base == s->base && old->pages == s->pages)
		return PW_OK;
	st = slot_insert(vm, s, err);
	if (st != PW_OK)
		return st;
	machine_log_map(x, id, s);
	st = x->group.failed ? pw_fail(err, PW_NO_MEMORY, "no memory") : x->model->slot_add(x->firmware, vm, s, err);
	if (st != PW_OK)
		slot_forget(vm, s->number);
	return machine_log_end(x, st, err);
}

enum pw_status machine_unmap_slot(struct machine *x, const struct pw_uuid *id, uint32_t number, struct pw_err *err)
{
	const struct slot *old;
	struct slot gone;
	struct machine_vm *vm;
	enum pw_status st = machine_begin_vm(x, id, &vm, err);

	if (st != PW_OK)
		return st;
	old = slot_numbered(vm, number);
	if (!old)
		return PW_OK;
	gone = *old;
	machine_log_unmap(x, id, number);
	st = x->group.failed ? pw_fail(err, PW_NO_MEMORY, "no memory")
			     : machine_remember(x, vm, gone.base, gone.base + gone.pages, err);
	if (st == PW_OK)
		st = x->model->slot_remove(x->firmware, vm, &gone, err);
	if (st == PW_OK) {
		slot_forget(vm, number);
		machine_settle(x, vm, gone.base, gone.base + gone.pages);
	}
	return machine_log_end(x, st, err);
}
