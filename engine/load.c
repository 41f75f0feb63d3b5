#include <string.h>

#include "engine/ledger_impl.h"

enum pw_problem ledger_load_host(struct ledger *l, const struct host_spec *spec, uint64_t epoch, bool fenced,
				 struct host **out, struct refusal *why)
{
	struct host_put put;
	enum pw_problem p;

	if (ledger_host(l, &spec->id))
		return refuse(why, PROBLEM_INVALID_REQUEST, "the host is there twice");
	p = ledger_host_put(l, spec, &put, why);
	if (p != PROBLEM_NONE)
		return p;
	put.host->epoch = epoch;
	put.host->fenced = fenced;
	*out = put.host;
	return PROBLEM_NONE;
}

enum pw_problem ledger_load_attachment(struct ledger *l, struct pool *p, struct host *h, unsigned place,
				       struct refusal *why)
{
	unsigned elsewhere;

	if (place == 0 || place >= HOST_POOLS_MAX || h->pools[place])
		return refuse(why, PROBLEM_INVALID_REQUEST, "pool %s: place %u of its host is taken or none", p->name,
			      place);
	if (host_pool(h, p->name, &elsewhere))
		return refuse(why, PROBLEM_INVALID_REQUEST, "pool %s: attached to its host twice", p->name);
	if (h->page_shift != p->page_shift)
		return refuse(why, PROBLEM_POOL_MISMATCH, "pool %s: its host has page_shift %u", p->name,
			      h->page_shift);
	h->pools[place] = p;
	return PROBLEM_NONE;
}

/* A picture of before these states were kept has none: they are at rest. */
static unsigned load_arch_state(const struct vm_spec *spec, enum vm_state state, const char *name)
{
	const struct arch_law *law = arch_laws[spec->arch];

	if (name[0] == '\0')
		return law ? arch_vm_rest(law, state) : 0;
	return law ? arch_vm_state_find(law, name, state) : ARCH_REFUSED;
}

enum pw_problem ledger_load_vm(struct ledger *l, const struct vm_spec *spec, enum vm_state state,
			       const char *arch_state, uint64_t epoch, struct vm **out, struct refusal *why)
{
	unsigned arch = load_arch_state(spec, state, arch_state);
	uint32_t arches = spec->host->arches;
	enum pw_problem p;

	if (arch == ARCH_REFUSED)
		return refuse(why, PROBLEM_INVALID_REQUEST, "a %s VM of arch %s is never %s", vm_state_name(state),
			      arch_name(spec->arch), arch_state);
	spec->host->arches |= (uint32_t)1 << spec->arch; /* it may have lost the backend since */
	p = ledger_vm_create(l, spec, out, why);
	spec->host->arches = arches;
	if (p == PROBLEM_NONE) {
		(*out)->state = state;
		(*out)->arch_state = (uint8_t)arch;
		(*out)->on_hardware = state != VM_NORMAL;
		(*out)->epoch = epoch;
	}
	return p;
}

/* Room for one more slot, made so that all of them together are copied a few times only. */
static bool slots_grow(struct ledger *l, struct vm *vm)
{
	size_t room = vm->slot_room ? 2 * vm->slot_room : 4;
	struct slot *slots;

	if (vm->slot_count < vm->slot_room)
		return true;
	slots = pw_mem_alloc(l->mem, room * sizeof *slots);
	if (!slots)
		return false;
	if (vm->slots)
		memcpy(slots, vm->slots, vm->slot_count * sizeof *slots);
	pw_mem_free(l->mem, vm->slots, vm->slot_room * sizeof *slots);
	vm->slots = slots;
	vm->slot_room = room;
	return true;
}

enum pw_problem ledger_load_slot(struct ledger *l, struct vm *vm, const struct slot *s, struct refusal *why)
{
	const struct slot *last = vm->slot_count ? &vm->slots[vm->slot_count - 1] : NULL;
	enum pw_problem p = vm_slot_check(s, vm->alias, why);

	if (p != PROBLEM_NONE)
		return p;
	if (last && s->base < last->base + last->pages)
		return refuse(why, PROBLEM_SLOT_OVERLAP, "slots %" PRIu32 " and %" PRIu32 " overlap at GFN %" PRIu64,
			      last->number, s->number, s->base);
	if (vm->slot_count >= VM_SLOTS_MAX)
		return refuse(why, PROBLEM_LIMIT, "the VM has %d slots already", VM_SLOTS_MAX);
	if (!slots_grow(l, vm))
		return refuse_memory(why, "loading a slot");
	vm->slots[vm->slot_count++] = *s;
	vm->counts.pages[GFN_NORMAL] += s->pages;
	return PROBLEM_NONE;
}

static enum pw_problem extent_frames(struct ledger *l, const struct vm *vm, uint64_t count, uint64_t entry,
				     struct refusal *why)
{
	const struct pool *p = vm->host->pools[gfn_entry_place(entry)];

	if (!(entry & GFN_ENTRY_RESIDENT))
		return PROBLEM_NONE;
	if (!p)
		return refuse(why, PROBLEM_FRAME_OUT_OF_POOL, "an extent names a pool that is not attached");
	return pool_claimable(l, p, entry & TREE_NUMBER, count, NULL, 0, why);
}

enum pw_problem ledger_load_extent(struct ledger *l, struct vm *vm, uint64_t gfn, uint64_t count, uint64_t entry,
				   struct refusal *why)
{
	struct tree_run now;
	enum pw_problem p;

	if (!range_fits(gfn, count) || vm->state == VM_NORMAL)
		return refuse(why, PROBLEM_INVALID_REQUEST, "extent at GFN %" PRIu64 " of a VM that is %s", gfn,
			      vm_state_name(vm->state));
	if (!entry || !vm_entry_is_sound(vm, entry))
		return refuse(why, PROBLEM_INVALID_REQUEST, "extent at GFN %" PRIu64 " reads %#" PRIx64, gfn, entry);
	now = tree_run_at(&vm->pages, gfn, gfn + count);
	if (now.entry || now.count != count)
		return refuse(why, PROBLEM_INVALID_REQUEST, "extents overlap at GFN %" PRIu64, gfn);
	for (uint64_t at = gfn; at < gfn + count;) {
		const struct slot *s = vm_slot_at(vm, at);

		if (!s)
			return refuse(why, PROBLEM_GFN_OUT_OF_SLOT,
				      "an extent covers GFN %" PRIu64 ", which is in no slot", at);
		at = s->base + s->pages;
	}
	p = extent_frames(l, vm, count, entry, why);
	if (p != PROBLEM_NONE)
		return p;
	return vm_change_run(l, vm, &now, entry) == PW_OK ? PROBLEM_NONE : refuse_memory(why, "loading an extent");
}
