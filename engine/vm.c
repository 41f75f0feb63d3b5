#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/ledger_impl.h"

/* Registry. */

struct vm *ledger_vm(const struct ledger *l, const struct pw_uuid *id)
{
	return index_find(&l->vms, id);
}

struct vm *ledger_vm_by_number(const struct ledger *l, uint32_t number)
{
	return number < l->number_capacity ? l->numbers[number] : NULL;
}

size_t ledger_vm_count(const struct ledger *l)
{
	return l->vms.count;
}

struct vm *ledger_vm_at(const struct ledger *l, size_t i)
{
	return l->vms.items[i];
}

size_t ledger_vm_after(const struct ledger *l, const struct pw_uuid *id)
{
	return index_after(&l->vms, id);
}

void vm_free(struct ledger *l, struct vm *vm)
{
	tree_release(&vm->pages);
	pw_mem_free(l->mem, vm->slots, vm->slot_room * sizeof *vm->slots);
	pw_mem_free(l->mem, vm, sizeof *vm);
}

/* The lowest free number, with room for it in the table of numbers. False: out of memory. */
static bool number_find(struct ledger *l, uint32_t *out)
{
	size_t n = l->number_hint, capacity = l->number_capacity ? 2 * l->number_capacity : 16;
	struct vm **numbers;

	while (n < l->number_capacity && l->numbers[n])
		n++;
	if (n >= l->number_capacity) {
		numbers = pw_mem_zalloc(l->mem, capacity * sizeof(struct vm *));
		if (!numbers)
			return false;
		if (l->number_capacity)
			memcpy(numbers, l->numbers, l->number_capacity * sizeof(struct vm *));
		pw_mem_free(l->mem, l->numbers, l->number_capacity * sizeof(struct vm *));
		l->numbers = numbers;
		l->number_capacity = capacity;
	}
	*out = (uint32_t)n;
	return true;
}

static void number_free(struct ledger *l, uint32_t n)
{
	l->numbers[n] = NULL;
	if (n < l->number_hint)
		l->number_hint = n;
}

/* Slots. */

const struct slot *vm_slot_at(const struct vm *vm, uint64_t gfn)
{
	size_t lo = 0, hi = vm->slot_count;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (vm->slots[mid].base <= gfn)
			lo = mid + 1;
		else
			hi = mid;
	}
	if (lo == 0 || gfn - vm->slots[lo - 1].base >= vm->slots[lo - 1].pages)
		return NULL;
	return &vm->slots[lo - 1];
}

static const struct slot *slot_by_number(const struct vm *vm, uint32_t number)
{
	for (size_t i = 0; i < vm->slot_count; i++)
		if (vm->slots[i].number == number)
			return &vm->slots[i];
	return NULL;
}

enum pw_problem vm_slot_check(const struct slot *s, struct gfn_alias alias, struct refusal *why)
{
	if (!range_fits(s->base, s->pages))
		return refuse(why, PROBLEM_INVALID_REQUEST,
			      "slot %" PRIu32 ": base_gfn %" PRIu64 " + pages %" PRIu64 " must be 1 to 2^40", s->number,
			      s->base, s->pages);
	if (!alias_is_valid_gfn(alias, s->base, s->pages))
		return refuse(why, PROBLEM_INVALID_REQUEST,
			      "slot %" PRIu32 " reaches the VM's shared bit (GFN bit mask %#" PRIx64 ")", s->number,
			      alias.mask);
	return PROBLEM_NONE;
}

static bool slots_overlap(const struct slot *a, const struct slot *b)
{
	return a->base < b->base + b->pages && b->base < a->base + a->pages;
}

/* low->base <= high->base */
static enum pw_problem refuse_overlap(const struct slot *low, const struct slot *high, struct refusal *why)
{
	return refuse(why, PROBLEM_SLOT_OVERLAP, "slots %" PRIu32 " and %" PRIu32 " overlap at GFN %" PRIu64,
		      low->number, high->number, high->base);
}

/* Puts s into the sorted array of n slots, which has room; slot-overlap if it meets another. */
static enum pw_problem slot_insert(struct slot *slots, size_t n, const struct slot *s, struct refusal *why)
{
	size_t at = n;

	while (at > 0 && slots[at - 1].base > s->base)
		at--;
	if (at > 0 && slots_overlap(&slots[at - 1], s))
		return refuse_overlap(&slots[at - 1], s, why);
	if (at < n && slots_overlap(&slots[at], s))
		return refuse_overlap(s, &slots[at], why);
	memmove(slots + at + 1, slots + at, (n - at) * sizeof *slots);
	slots[at] = *s;
	return PROBLEM_NONE;
}

static int compare_number(const void *a, const void *b)
{
	uint32_t x = ((const struct slot *)a)->number, y = ((const struct slot *)b)->number;

	return x < y ? -1 : x > y;
}

static int compare_base(const void *a, const void *b)
{
	uint64_t x = ((const struct slot *)a)->base, y = ((const struct slot *)b)->base;

	return x < y ? -1 : x > y;
}

/* Sorts n slots by their base; slot-overlap if two meet or a number is there twice. */
static enum pw_problem slots_sort(struct slot *slots, size_t n, struct refusal *why)
{
	qsort(slots, n, sizeof *slots, compare_number);
	for (size_t i = 1; i < n; i++)
		if (slots[i].number == slots[i - 1].number)
			return refuse(why, PROBLEM_SLOT_OVERLAP, "slot number %" PRIu32 " is given twice",
				      slots[i].number);
	qsort(slots, n, sizeof *slots, compare_base);
	for (size_t i = 1; i < n; i++)
		if (slots_overlap(&slots[i - 1], &slots[i]))
			return refuse_overlap(&slots[i - 1], &slots[i], why);
	return PROBLEM_NONE;
}

/* The spec's slots, checked and sorted, as a new array. */
static enum pw_problem slots_make(struct ledger *l, const struct vm_spec *spec, struct gfn_alias alias,
				  struct slot **out, struct refusal *why)
{
	size_t bytes = spec->slot_count * sizeof(struct slot);
	enum pw_problem p = PROBLEM_NONE;
	struct slot *slots;

	*out = NULL;
	if (spec->slot_count == 0)
		return PROBLEM_NONE;
	if (spec->slot_count > VM_SLOTS_MAX)
		return refuse(why, PROBLEM_LIMIT, "%zu slots: a VM has at most %d", spec->slot_count, VM_SLOTS_MAX);
	slots = pw_mem_alloc(l->mem, bytes);
	if (!slots)
		return refuse_memory(why, "creating the VM");
	memcpy(slots, spec->slots, bytes);
	for (size_t i = 0; p == PROBLEM_NONE && i < spec->slot_count; i++)
		p = vm_slot_check(&spec->slots[i], alias, why);
	if (p == PROBLEM_NONE)
		p = slots_sort(slots, spec->slot_count, why);
	if (p != PROBLEM_NONE)
		pw_mem_free(l->mem, slots, bytes);
	else
		*out = slots;
	return p;
}

/* Creating and deleting. */

static void unmake_vm(void *ctx, const void *args)
{
	struct ledger *l = ctx;
	struct vm *vm = *(struct vm *const *)args;

	index_remove(&l->vms, &vm->id);
	number_free(l, vm->number);
	vm->host->vms--;
	vm_free(l, vm);
}

static enum pw_problem vm_check(const struct ledger *l, const struct vm_spec *spec, struct refusal *why)
{
	char id[PW_UUID_TEXT];

	pw_uuid_format(&spec->id, id);
	if (ledger_vm(l, &spec->id))
		return refuse(why, PROBLEM_VM_EXISTS, "VM %s exists already", id);
	if (!(spec->host->arches >> spec->arch & 1))
		return refuse(why, PROBLEM_ARCH_UNSUPPORTED, "the host has no backend for arch %s",
			      arch_name(spec->arch));
	if (l->vms.count >= LEDGER_VMS_MAX)
		return refuse(why, PROBLEM_LIMIT, "there are %zu VMs already", l->vms.count);
	return PROBLEM_NONE;
}

static struct vm *vm_make(struct ledger *l, const struct vm_spec *spec, struct gfn_alias alias, struct slot *slots)
{
	static const struct undo_ops made = { .rollback = unmake_vm };
	struct vm *vm = pw_mem_zalloc(l->mem, sizeof *vm);

	if (!vm)
		return NULL;
	if (!number_find(l, &vm->number) || index_reserve(&l->vms) != PW_OK ||
	    undo_reserve(&l->undo, UNDO_RECORD(sizeof vm)) != PW_OK) {
		pw_mem_free(l->mem, vm, sizeof *vm);
		return NULL;
	}
	vm->id = spec->id;
	snprintf(vm->name, sizeof vm->name, "%s", spec->name ? spec->name : "");
	vm->host = spec->host;
	vm->arch = spec->arch;
	vm->epoch = 1;
	vm->alias = alias;
	vm->shared_bit = spec->shared_bit;
	vm->slots = slots;
	vm->slot_count = vm->slot_room = spec->slot_count;
	tree_init(&vm->pages, &l->arena);
	for (size_t i = 0; i < vm->slot_count; i++)
		vm->counts.pages[GFN_NORMAL] += slots[i].pages;
	l->numbers[vm->number] = vm;
	l->number_hint = vm->number + 1;
	vm->host->vms++;
	index_insert(&l->vms, &vm->id, vm);
	undo_push(&l->undo, &made, l, &vm, sizeof vm);
	return vm;
}

enum pw_problem ledger_vm_create(struct ledger *l, const struct vm_spec *spec, struct vm **out, struct refusal *why)
{
	enum pw_problem p = vm_check(l, spec, why);
	struct gfn_alias alias = { 0 };
	struct slot *slots;
	struct pw_err err;

	if (p != PROBLEM_NONE)
		return p;
	if (spec->shared_bit && alias_from_gpa_bit(spec->shared_bit, spec->host->page_shift, &alias, &err) != PW_OK)
		return refuse(why, PROBLEM_INVALID_REQUEST, "gpa.shared_bit: %s", err.msg);
	p = slots_make(l, spec, alias, &slots, why);
	if (p != PROBLEM_NONE)
		return p;
	*out = vm_make(l, spec, alias, slots);
	if (*out)
		return PROBLEM_NONE;
	pw_mem_free(l->mem, slots, spec->slot_count * sizeof *slots);
	return refuse_memory(why, "creating the VM");
}

static void put_vm_back(void *ctx, const void *args)
{
	struct ledger *l = ctx;
	struct vm *vm = *(struct vm *const *)args;

	l->numbers[vm->number] = vm;
	vm->host->vms++;
	index_insert(&l->vms, &vm->id, vm);
}

static void forget_vm(void *ctx, const void *args)
{
	vm_free(ctx, *(struct vm *const *)args);
}

enum pw_problem ledger_vm_delete(struct ledger *l, struct vm *vm, struct refusal *why)
{
	static const struct undo_ops deleted = { .rollback = put_vm_back, .commit = forget_vm };

	if (vm->state != VM_NORMAL || vm->counts.pages[GFN_SECURE_RESIDENT])
		return refuse(why, PROBLEM_VM_BUSY, "the VM is %s and has %" PRIu64 " frames bound: terminate it first",
			      vm_state_name(vm->state), vm->counts.pages[GFN_SECURE_RESIDENT]);
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof vm)) != PW_OK)
		return refuse_memory(why, "deleting the VM");
	undo_push(&l->undo, &deleted, l, &vm, sizeof vm);
	index_remove(&l->vms, &vm->id);
	number_free(l, vm->number);
	vm->host->vms--;
	return PROBLEM_NONE;
}

/* Changing slots: the array is replaced, the old one kept until the change is final. */

struct slots_undo {
	struct ledger *l;
	struct slot *slots;
	size_t count, room;
};

static void put_slots_back(void *ctx, const void *args)
{
	const struct slots_undo *old = args;
	struct vm *vm = ctx;

	pw_mem_free(old->l->mem, vm->slots, vm->slot_room * sizeof *vm->slots);
	vm->slots = old->slots;
	vm->slot_count = old->count;
	vm->slot_room = old->room;
}

static void forget_slots(void *ctx, const void *args)
{
	const struct slots_undo *old = args;

	pw_mem_free(old->l->mem, old->slots, old->room * sizeof *old->slots);
}

/* Space for the record must have been reserved. */
static void slots_replace(struct ledger *l, struct vm *vm, struct slot *slots, size_t count)
{
	static const struct undo_ops replaced = { .rollback = put_slots_back, .commit = forget_slots };
	struct slots_undo old = { l, vm->slots, vm->slot_count, vm->slot_room };

	undo_push(&l->undo, &replaced, vm, &old, sizeof old);
	vm->slots = slots;
	vm->slot_count = vm->slot_room = count;
}

enum pw_problem vm_slot_fits(const struct vm *vm, const struct slot *s, bool *there, struct refusal *why)
{
	const struct slot *known = slot_by_number(vm, s->number);
	enum pw_problem p = vm_slot_check(s, vm->alias, why);

	*there = p == PROBLEM_NONE && known && known->base == s->base && known->pages == s->pages;
	if (p != PROBLEM_NONE || *there)
		return p;
	if (known)
		return refuse(why, PROBLEM_SLOT_OVERLAP,
			      "slot %" PRIu32 " exists with base_gfn %" PRIu64 " and pages %" PRIu64
			      ": delete it first",
			      s->number, known->base, known->pages);
	if (vm->slot_count >= VM_SLOTS_MAX)
		return refuse(why, PROBLEM_LIMIT, "the VM has %d slots already", VM_SLOTS_MAX);
	for (size_t i = 0; i < vm->slot_count; i++)
		if (slots_overlap(&vm->slots[i], s))
			return vm->slots[i].base <= s->base ? refuse_overlap(&vm->slots[i], s, why)
							    : refuse_overlap(s, &vm->slots[i], why);
	return PROBLEM_NONE;
}

bool vm_has_slot(const struct vm *vm, uint32_t number)
{
	return slot_by_number(vm, number) != NULL;
}

bool vm_slot_is_leaving(const struct vm *vm, uint32_t number)
{
	size_t lo = 0, hi = vm->leaving ? vm->leaving->n : 0;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (vm->leaving->slots[mid] == number)
			return true;
		if (vm->leaving->slots[mid] < number)
			lo = mid + 1;
		else
			hi = mid;
	}
	return false;
}

enum pw_problem ledger_slot_put(struct ledger *l, struct vm *vm, const struct slot *s, bool *created,
				struct refusal *why)
{
	size_t bytes = (vm->slot_count + 1) * sizeof *s;
	undo_mark mark = ledger_mark(l);
	struct tree_run fresh = { s->base, s->pages, 0 };
	struct slot *slots;
	bool there;
	enum pw_problem p = vm_slot_fits(vm, s, &there, why);

	*created = false;
	if (p != PROBLEM_NONE || there)
		return p;
	slots = pw_mem_alloc(l->mem, bytes);
	if (!slots)
		return refuse_memory(why, "adding the slot");
	if (vm->slot_count)
		memcpy(slots, vm->slots, vm->slot_count * sizeof *s);
	p = slot_insert(slots, vm->slot_count, s, why);
	if (p == PROBLEM_NONE &&
	    undo_reserve(&l->undo, UNDO_RECORD(sizeof(struct slots_undo)) + UNDO_RECORD(sizeof vm->counts)) != PW_OK)
		p = refuse_memory(why, "adding the slot");
	if (p != PROBLEM_NONE) {
		pw_mem_free(l->mem, slots, bytes);
		return p;
	}
	undo_save(&l->undo, &vm->counts, sizeof vm->counts);
	slots_replace(l, vm, slots, vm->slot_count + 1);
	vm->counts.pages[GFN_NORMAL] += s->pages;
	if (vm->state == VM_SECURE && vm_change_run(l, vm, &fresh, GFN_ENTRY_OUT) != PW_OK) {
		ledger_rollback(l, mark);
		return refuse_memory(why, "adding the slot");
	}
	*created = true;
	return PROBLEM_NONE;
}

/* Every GFN of the range to normal, run by run. */
static enum pw_status range_reset(struct ledger *l, struct vm *vm, uint64_t first, uint64_t count)
{
	struct tree_run run = { .first = first };

	while (work_find(l, &vm->pages, run.first + run.count, first + count, ~(uint64_t)1, &run))
		if (vm_change_run(l, vm, &run, 0) != PW_OK)
			return PW_NO_MEMORY;
	return PW_OK;
}

enum pw_problem ledger_slot_delete(struct ledger *l, struct vm *vm, uint32_t number, struct refusal *why)
{
	const struct slot *s = slot_by_number(vm, number);
	undo_mark mark = ledger_mark(l);
	struct slot gone, *slots = NULL;
	size_t bytes, at;

	if (!s)
		return refuse(why, PROBLEM_SLOT_NOT_FOUND, "the VM has no slot %" PRIu32, number);
	gone = *s;
	at = (size_t)(s - vm->slots);
	bytes = (vm->slot_count - 1) * sizeof *s;
	if (bytes) {
		slots = pw_mem_alloc(l->mem, bytes);
		if (!slots)
			return refuse_memory(why, "deleting the slot");
		memcpy(slots, vm->slots, at * sizeof *s);
		memcpy(slots + at, vm->slots + at + 1, bytes - at * sizeof *s);
	}
	if (range_reset(l, vm, gone.base, gone.pages) != PW_OK ||
	    undo_reserve(&l->undo, UNDO_RECORD(sizeof(struct slots_undo)) + UNDO_RECORD(sizeof vm->counts)) != PW_OK) {
		ledger_rollback(l, mark);
		pw_mem_free(l->mem, slots, bytes);
		return refuse_memory(why, "deleting the slot");
	}
	undo_save(&l->undo, &vm->counts, sizeof vm->counts);
	slots_replace(l, vm, slots, vm->slot_count - 1);
	vm->counts.pages[GFN_NORMAL] -= gone.pages;
	return PROBLEM_NONE;
}

/* VM events. */

struct reset_undo {
	struct ledger *l;
	struct tree pages;
	struct vm_counts counts;
	enum vm_state state;
	uint8_t arch_state;
	uint64_t epoch;
};

static void bind_all(struct ledger *l, const struct vm *vm)
{
	struct tree_run run = { 0 };

	while (work_find(l, &vm->pages, run.first + run.count, TREE_PAGES, GFN_KINDS_RESIDENT, &run)) {
		struct pool *p = vm->host->pools[gfn_entry_place(run.entry)];

		if (tree_set(&p->owners, run.entry & TREE_NUMBER, run.count, frame_entry(vm->number, run.first)) !=
		    PW_OK)
			__builtin_trap(); /* the arena keeps what the forward change gave back */
		work_done(l, LEDGER_WORK_CHANGE);
	}
}

static void put_pages_back(void *ctx, const void *args)
{
	const struct reset_undo *old = args;
	struct vm *vm = ctx;

	vm->pages = old->pages;
	vm->counts = old->counts;
	vm->state = old->state;
	vm->arch_state = old->arch_state;
	vm->epoch = old->epoch;
	bind_all(old->l, vm);
}

static void forget_pages(void *ctx, const void *args)
{
	struct tree pages = ((const struct reset_undo *)args)->pages;

	tree_release(&pages);
}

static enum pw_status set_on_hardware(struct ledger *l, struct vm *vm, bool on)
{
	if (vm->on_hardware == on)
		return PW_OK;
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof vm->on_hardware)) != PW_OK)
		return PW_NO_MEMORY;
	undo_save(&l->undo, &vm->on_hardware, sizeof vm->on_hardware);
	vm->on_hardware = on;
	return PW_OK;
}

/*
 * The old tree is kept whole until the change is final, so that a reset of any size needs one record. Unbinding takes
 * away whole runs, whose edges are edges in the pool's tree already: it only ever folds.
 */
enum pw_status vm_reset(struct ledger *l, struct vm *vm)
{
	static const struct undo_ops reset = { .rollback = put_pages_back, .commit = forget_pages };
	struct reset_undo old = { l, vm->pages, vm->counts, vm->state, vm->arch_state, vm->epoch };
	struct tree_run run = { 0 };
	uint64_t all = 0;

	if (set_on_hardware(l, vm, false) != PW_OK)
		return PW_NO_MEMORY;
	if (vm->state == VM_NORMAL)
		return PW_OK;
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof old) + HOST_POOLS_MAX * UNDO_RECORD(sizeof(uint64_t))) != PW_OK ||
	    arena_reserve(&l->arena) != PW_OK)
		return PW_NO_MEMORY;
	for (unsigned i = 0; i < HOST_POOLS_MAX; i++)
		if (vm->host->pools[i])
			undo_save(&l->undo, &vm->host->pools[i]->bound, sizeof(uint64_t));
	undo_push(&l->undo, &reset, vm, &old, sizeof old);
	while (work_find(l, &old.pages, run.first + run.count, TREE_PAGES, GFN_KINDS_RESIDENT, &run)) {
		struct pool *p = vm->host->pools[gfn_entry_place(run.entry)];

		if (tree_set(&p->owners, run.entry & TREE_NUMBER, run.count, 0) != PW_OK)
			return PW_NO_MEMORY;
		p->bound -= run.count;
		work_done(l, LEDGER_WORK_CHANGE);
	}
	tree_init(&vm->pages, &l->arena);
	tree_dirty_all(&vm->pages);
	for (int s = 0; s < GFN_STATE_COUNT; s++) {
		all += vm->counts.pages[s];
		vm->counts.pages[s] = 0;
	}
	vm->counts.pages[GFN_NORMAL] = all;
	vm->state = VM_NORMAL;
	vm->arch_state = 0;
	vm->epoch++;
	return PW_OK;
}

/* init_done: what was not moved yet becomes secure and paged out. */
static enum pw_status slots_secure(struct ledger *l, struct vm *vm)
{
	for (size_t i = 0; i < vm->slot_count; i++) {
		uint64_t end = vm->slots[i].base + vm->slots[i].pages;
		struct tree_run run = { .first = vm->slots[i].base };

		while (work_find(l, &vm->pages, run.first + run.count, end, GFN_KINDS_NORMAL, &run)) {
			enum gfn_state next;

			if (gfn_step(GFN_NORMAL, GFN_INIT_DONE, &next) &&
			    vm_change_run(l, vm, &run, gfn_entry_after(vm, run.entry, next, 0, 0)) != PW_OK)
				return PW_NO_MEMORY;
		}
	}
	return PW_OK;
}

const char *vm_arch_state(const struct vm *vm)
{
	const struct arch_law *law = arch_laws[vm->arch];

	return law && vm->state != VM_NORMAL ? law->vm_states[vm->arch_state].name : NULL;
}

/* ARCH_REFUSED: the architecture's state does not let the event happen. */
static unsigned arch_state_after(const struct vm *vm, enum vm_event e)
{
	const struct arch_law *law = arch_laws[vm->arch];

	return law && e == VM_INIT_DONE ? law->vm_states[vm->arch_state].done : 0;
}

static enum pw_status vm_move(struct ledger *l, struct vm *vm, enum vm_event e, enum vm_state next)
{
	if (next == VM_NORMAL)
		return vm_reset(l, vm);
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof vm->state) + UNDO_RECORD(sizeof vm->arch_state)) != PW_OK)
		return PW_NO_MEMORY;
	undo_save(&l->undo, &vm->state, sizeof vm->state);
	undo_save(&l->undo, &vm->arch_state, sizeof vm->arch_state);
	vm->arch_state = (uint8_t)arch_state_after(vm, e);
	vm->state = next;
	return e == VM_INIT_DONE ? slots_secure(l, vm) : PW_OK;
}

static const bool on_hardware_after[VM_EVENT_COUNT] = { [VM_START] = true,
							[VM_INIT_START] = true,
							[VM_INIT_DONE] = true,
							[VM_INIT_ABORT] = false,
							[VM_TERMINATE] = false };

bool vm_event_releases(const struct vm *vm, enum vm_event e)
{
	return vm->on_hardware && !on_hardware_after[e];
}

enum pw_problem ledger_vm_handed_out(struct ledger *l, struct vm *vm, bool *changed, struct refusal *why)
{
	*changed = !vm->on_hardware;
	return set_on_hardware(l, vm, true) == PW_OK ? PROBLEM_NONE : refuse_memory(why, "handing out the VM");
}

static enum pw_problem refuse_event(const struct vm *vm, enum vm_event e, const char *state, struct refusal *why)
{
	refuse(why, PROBLEM_VM_TRANSITION, "a VM that is %s has no event %s", state, vm_event_name(e));
	if (why) {
		why->vm_state = vm->state;
		why->vm_event = e;
		why->vm = vm->id;
	}
	return PROBLEM_VM_TRANSITION;
}

enum pw_problem ledger_vm_event(struct ledger *l, struct vm *vm, enum vm_event e, struct refusal *why)
{
	undo_mark mark = ledger_mark(l);
	enum vm_state next;

	if (!vm_step(vm->state, e, &next))
		return refuse_event(vm, e, vm_state_name(vm->state), why);
	if (arch_state_after(vm, e) == ARCH_REFUSED)
		return refuse_event(vm, e, vm_arch_state(vm), why);
	if ((next != vm->state && vm_move(l, vm, e, next) != PW_OK) ||
	    set_on_hardware(l, vm, on_hardware_after[e]) != PW_OK) {
		ledger_rollback(l, mark);
		return refuse_memory(why, "changing the VM");
	}
	return PROBLEM_NONE;
}
