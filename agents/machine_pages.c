#include "agents/machine_impl.h"

#include <stdlib.h>

#include "agents/change.h"

/* Refusals, for models. */

static bool is_refused(const struct machine *x, uint64_t nth_ever, uint64_t nth)
{
	const uint64_t *hits = x->replaying ? x->refused.at : x->faults;
	size_t count = x->replaying ? x->refused.count : x->fault_count;
	uint64_t n = x->replaying ? nth : nth_ever;

	for (size_t i = 0; i < count; i++)
		if (hits[i] == n)
			return true;
	return false;
}

uint64_t machine_gives_back(struct machine *x, uint64_t count)
{
	for (uint64_t i = 0; i < count && !x->closing; i++) {
		x->asked++;
		if (!x->replaying)
			x->asked_ever++;
		if (!is_refused(x, x->asked_ever, x->asked))
			continue;
		if (!x->replaying)
			words_add(&x->refused, x->asked);
		return i;
	}
	return count;
}

void machine_keep(struct machine *x, uint64_t pfn, const char *why)
{
	if (!x->closing)
		machine_frames_keep(&x->frames, pfn, why);
}

/* Which frames an op took and freed: what its pages were resident on before, and what after. */

static bool remember_run(struct machine *x, const struct backend_run *run)
{
	if (x->before_count == x->before_room) {
		size_t room = x->before_room ? 2 * x->before_room : 16;
		struct resident_run *grown = reallocarray(x->before, room, sizeof *grown);

		if (!grown)
			return false;
		x->before = grown;
		x->before_room = room;
	}
	x->before[x->before_count++] = (struct resident_run){ run->pfn, run->count };
	return true;
}

enum pw_status machine_remember(struct machine *x, const struct machine_vm *vm, uint64_t gfn, uint64_t end,
				struct pw_err *err)
{
	struct backend_run run;

	x->before_count = 0;
	for (uint64_t at = gfn; at < end && machine_run_at(x, vm, at, end, &run); at = run.gfn + run.count)
		if (run.state == GFN_SECURE_RESIDENT && !remember_run(x, &run))
			return pw_fail(err, PW_NO_MEMORY, "no memory");
	return PW_OK;
}

void machine_settle(struct machine *x, const struct machine_vm *vm, uint64_t gfn, uint64_t end)
{
	struct backend_run run;

	for (size_t i = 0; i < x->before_count; i++)
		machine_frames_clear(&x->frames, FRAME_USED, x->before[i].pfn, x->before[i].count);
	for (uint64_t at = gfn; at < end && machine_run_at(x, vm, at, end, &run); at = run.gfn + run.count) {
		if (run.state != GFN_SECURE_RESIDENT)
			continue;
		machine_frames_clear(&x->frames, FRAME_RESERVED, run.pfn, run.count);
		machine_frames_clear(&x->frames, FRAME_STUCK, run.pfn, run.count); /* an end that failed kept them */
		machine_frames_mark(&x->frames, FRAME_USED, run.pfn, run.count);
	}
}

/* Pages. */

/* The VM, if its pages may be operated on. */
enum pw_status machine_find_pages(struct machine *x, const struct pw_uuid *id, uint64_t gfn, uint64_t count,
				  struct machine_vm **vm, struct pw_err *err)
{
	enum pw_status st = machine_begin_vm(x, id, vm, err);

	if (st != PW_OK)
		return st;
	if (count == 0 || gfn >= TREE_PAGES || count > TREE_PAGES - gfn || !machine_covers(*vm, gfn, count))
		return pw_fail(err, PW_INVALID, "GFN %" PRIu64 "+%" PRIu64 " is not inside the VM's slots", gfn, count);
	return PW_OK;
}

/* Is there anything to do? PW_CONFLICT: the lifecycle has no such step from some page's state. */
static enum pw_status look(const struct machine *x, const struct machine_vm *vm, enum gfn_op op, uint64_t gfn,
			   uint64_t count, bool *any, struct pw_err *err)
{
	enum gfn_op law = op == GFN_PAGE_IN ? GFN_UNSHARE_IN : op; /* page_in is both here */
	uint64_t end = gfn + count;
	struct backend_run run;

	*any = false;
	for (uint64_t at = gfn; at < end && machine_run_at(x, vm, at, end, &run); at = run.gfn + run.count) {
		switch (change_touches(law, run.state)) {
		case TOUCH_NOTHING: break;
		case TOUCH_RUN: *any = true; break;
		case TOUCH_REFUSED:
			return pw_fail(err, PW_CONFLICT, "%s of GFN %" PRIu64 ", which is %s", gfn_op_name(op), run.gfn,
				       gfn_state_name(run.state));
		}
	}
	return PW_OK;
}

/* Pages that are resident already have to be so on exactly these frames, and all of them: then *all. */
static enum pw_status look_resident(const struct machine *x, const struct machine_vm *vm, uint64_t gfn, uint64_t count,
				    const uint64_t *pfns, bool *all, struct pw_err *err)
{
	uint64_t same = 0, end = gfn + count;
	struct backend_run run;

	for (uint64_t at = gfn; at < end && machine_run_at(x, vm, at, end, &run); at = run.gfn + run.count) {
		if (run.state != GFN_SECURE_RESIDENT)
			continue;
		for (uint64_t i = 0; i < run.count; i++)
			if (run.pfn + i != pfns[run.gfn + i - gfn])
				return pw_fail(err, PW_CONFLICT,
					       "page_in: GFN %" PRIu64 " is resident on frame %" PRIu64, run.gfn + i,
					       run.pfn + i);
		same += run.count;
	}
	*all = same == count;
	if (same && !*all)
		return pw_fail(err, PW_CONFLICT,
			       "page_in: %" PRIu64 " pages of GFN %" PRIu64 "+%" PRIu64 " are resident already", same,
			       gfn, count);
	return PW_OK;
}

static enum pw_status look_frames(struct machine *x, const struct machine_vm *vm, uint64_t gfn, uint64_t count,
				  const uint64_t *pfns, bool *all, struct pw_err *err)
{
	enum pw_status st = look_resident(x, vm, gfn, count, pfns, all, err);
	uint64_t fine;

	if (st != PW_OK || *all)
		return st;
	fine = machine_frames_reserved(&x->frames, pfns, count);
	if (fine < count)
		return pw_fail(err, PW_CONFLICT, "frame %" PRIu64 " is not reserved", pfns[fine]);
	return PW_OK;
}

static enum pw_status call_model(struct machine *x, struct machine_vm *vm, enum gfn_op op, uint64_t gfn, uint64_t count,
				 const uint64_t *pfns, struct pw_err *err)
{
	const struct machine_model *m = x->model;

	if (op == GFN_PAGE_IN)
		return m->page_in(x->firmware, vm, gfn, count, pfns, err);
	if (op == GFN_PAGE_OUT)
		return m->page_out(x->firmware, vm, gfn, count, err);
	return (op == GFN_SHARE ? m->share : m->unshare)(x->firmware, vm, gfn, count, err);
}

enum pw_status machine_change(struct machine *x, const struct pw_uuid *id, enum gfn_op op, uint64_t gfn, uint64_t count,
			      const uint64_t *pfns, struct pw_err *err)
{
	struct machine_vm *vm;
	bool any = false, all = false;
	enum pw_status st = machine_find_pages(x, id, gfn, count, &vm, err);

	if (st != PW_OK)
		return st;
	if (vm->state == VM_NORMAL)
		return pw_fail(err, PW_CONFLICT, "%s of GFN %" PRIu64 ": the VM is normal", gfn_op_name(op), gfn);
	if (op == GFN_PAGE_IN)
		st = look_frames(x, vm, gfn, count, pfns, &all, err);
	if (st == PW_OK && !all)
		st = look(x, vm, op, gfn, count, &any, err);
	if (st != PW_OK || !any)
		return st;
	machine_log_change(x, id, op, gfn, count, pfns);
	st = x->group.failed ? pw_fail(err, PW_NO_MEMORY, "no memory") : machine_remember(x, vm, gfn, gfn + count, err);
	if (st == PW_OK)
		st = call_model(x, vm, op, gfn, count, pfns, err);
	if (st == PW_OK)
		machine_settle(x, vm, gfn, gfn + count);
	return machine_log_end(x, st, err);
}

/* RIPAS. */

enum pw_status machine_set_ripas(struct machine *x, const struct pw_uuid *id, const struct backend_ripas *what,
				 uint64_t *done, struct pw_err *err)
{
	struct machine_vm *vm;
	enum pw_status st = machine_find_pages(x, id, what->gfn, what->count, &vm, err);

	*done = 0;
	if (st != PW_OK)
		return st;
	if (vm->state == VM_TRANSIENT)
		return pw_fail(err, PW_CONFLICT, "RIPAS of GFN %" PRIu64 ": the guest does not run yet", what->gfn);
	machine_log_ripas(x, id, what);
	st = x->group.failed ? pw_fail(err, PW_NO_MEMORY, "no memory")
			     : x->model->set_ripas(x->firmware, vm, what, done, err);
	machine_log_ripas_done(x, *done);
	return machine_log_end(x, st, err);
}
