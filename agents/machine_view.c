#include "agents/machine_impl.h"

#include <stdlib.h>

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

size_t machine_slot_after(const struct machine_vm *vm, uint64_t gfn)
{
	size_t low = 0, high = vm->slot_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (vm->slots[mid].base + vm->slots[mid].pages <= gfn)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

bool machine_covers(const struct machine_vm *vm, uint64_t gfn, uint64_t count)
{
	uint64_t end = gfn + count;

	for (size_t i = machine_slot_after(vm, gfn); gfn < end; i++) {
		if (i == vm->slot_count || vm->slots[i].base > gfn)
			return false;
		gfn = vm->slots[i].base + vm->slots[i].pages;
	}
	return true;
}

bool machine_run_at(const struct machine *x, const struct machine_vm *vm, uint64_t from, uint64_t end,
		    struct backend_run *out)
{
	size_t i = machine_slot_after(vm, from);
	const struct slot *s;

	if (i == vm->slot_count || vm->slots[i].base >= end)
		return false;
	s = &vm->slots[i];
	if (from < s->base)
		from = s->base;
	*out = x->model->run_at(x->firmware, vm, from, min_u64(end, s->base + s->pages));
	return true;
}

static bool follows(const struct backend_run *a, const struct backend_run *b)
{
	if (a->state != b->state || a->arch != b->arch)
		return false;
	return a->state != GFN_SECURE_RESIDENT || a->pfn + a->count == b->pfn;
}

bool machine_whole_run_at(const struct machine *x, const struct machine_vm *vm, uint64_t from, uint64_t end,
			  struct backend_run *out)
{
	struct backend_run more;
	const struct slot *s;

	if (!machine_run_at(x, vm, from, end, out))
		return false;
	s = &vm->slots[machine_slot_after(vm, out->gfn)];
	end = min_u64(end, s->base + s->pages);
	while (out->gfn + out->count < end) {
		more = x->model->run_at(x->firmware, vm, out->gfn + out->count, end);
		if (!follows(out, &more))
			break;
		out->count += more.count;
	}
	return true;
}

/* The machine's invariants. */

static bool slots_are_sound(const struct machine_vm *vm)
{
	uint64_t at = 0;

	for (size_t i = 0; i < vm->slot_count; i++) {
		const struct slot *s = &vm->slots[i];

		if (s->pages == 0 || s->base < at || s->base >= TREE_PAGES || s->pages > TREE_PAGES - s->base)
			return false;
		at = s->base + s->pages;
	}
	return true;
}

/* Marks what the run is resident on; false: a frame is not in the pool, or backs two pages. */
static bool tally(const struct machine *x, const struct backend_run *run, uint64_t *seen)
{
	for (uint64_t pfn = run->pfn; pfn < run->pfn + run->count; pfn++) {
		uint64_t bit = pfn - x->frames.base;

		if (!machine_frames_have(&x->frames, FRAME_USED, pfn) || seen[bit / 64] >> bit % 64 & 1)
			return false;
		seen[bit / 64] |= (uint64_t)1 << bit % 64;
	}
	return true;
}

static enum pw_status check_vm(const struct machine *x, const struct machine_vm *vm, uint64_t *seen, uint64_t *used,
			       struct pw_err *err)
{
	struct backend_run run;

	if (!slots_are_sound(vm))
		return pw_fail(err, PW_INVALID, "slots overlap");
	for (uint64_t at = 0; machine_run_at(x, vm, at, TREE_PAGES, &run); at = run.gfn + run.count) {
		bool normal = run.state == GFN_NORMAL;

		if (run.gfn < at || run.count == 0 || run.count > TREE_PAGES - run.gfn)
			return pw_fail(err, PW_INVALID, "a run at GFN %" PRIu64 " makes no sense", at);
		if ((vm->state == VM_NORMAL && !normal) || (vm->state == VM_SECURE && normal))
			return pw_fail(err, PW_INVALID, "GFN %" PRIu64 " is %s in a VM that is %s", run.gfn,
				       gfn_state_name(run.state), vm_state_name(vm->state));
		if (run.state != GFN_SECURE_RESIDENT)
			continue;
		if (!tally(x, &run, seen))
			return pw_fail(err, PW_INVALID, "GFN %" PRIu64 "+%" PRIu64 " on frame %" PRIu64 ": not its own",
				       run.gfn, run.count, run.pfn);
		*used += run.count;
	}
	return PW_OK;
}

bool machine_check(const struct machine *x, struct pw_err *err)
{
	uint64_t *seen, used = 0;
	enum pw_status st = PW_OK;

	if (!machine_frames_check(&x->frames)) {
		pw_fail(err, PW_INVALID, "the pool's frames do not add up");
		return false;
	}
	seen = calloc(x->frames.end / 64 + 1, sizeof *seen);
	if (!seen)
		st = pw_fail(err, PW_NO_MEMORY, "no memory");
	for (const struct machine_vm *vm = x->vms; vm && st == PW_OK; vm = vm->next)
		st = check_vm(x, vm, seen, &used, err);
	free(seen);
	if (st == PW_OK && used != x->frames.count[FRAME_USED])
		st = pw_fail(err, PW_INVALID, "%" PRIu64 " frames back pages, %" PRIu64 " are marked", used,
			     x->frames.count[FRAME_USED]);
	return st == PW_OK && x->model->check(x->firmware, err);
}
