#include "agents/machine_impl.h"

#include <stdlib.h>

static struct machine *machine_of(struct backend *b)
{
	return PW_CONTAINER_OF(b, struct machine, base);
}

/* The vtable. */

static void op_info(struct backend *b, struct backend_info *out)
{
	const struct machine *x = machine_of(b);

	*out = (struct backend_info){ .arch = x->model->arch,
				      .kind = "emulated",
				      .base_pfn = x->pool.base,
				      .frames = x->pool.frames,
				      .page_shift = x->model->page_shift };
}

static enum pw_status op_create_vm(struct backend *b, const struct backend_vm_spec *spec, struct pw_err *err)
{
	return machine_create_vm(machine_of(b), spec, err);
}

static enum pw_status op_vm_event(struct backend *b, const struct pw_uuid *vm, enum vm_event e, struct pw_err *err)
{
	return machine_vm_event(machine_of(b), vm, e, err);
}

static enum pw_status op_run_vm(struct backend *b, const struct pw_uuid *id, struct pw_err *err)
{
	struct machine_vm *vm;

	return machine_begin_vm(machine_of(b), id, &vm, err);
}

static enum pw_status op_destroy_vm(struct backend *b, const struct pw_uuid *vm, struct pw_err *err)
{
	return machine_destroy_vm(machine_of(b), vm, err);
}

static enum pw_status op_map_slot(struct backend *b, const struct pw_uuid *vm, const struct slot *s, struct pw_err *err)
{
	return machine_map_slot(machine_of(b), vm, s, err);
}

static enum pw_status op_unmap_slot(struct backend *b, const struct pw_uuid *vm, uint32_t number, struct pw_err *err)
{
	return machine_unmap_slot(machine_of(b), vm, number, err);
}

static enum pw_status op_reserve(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count,
				 uint64_t *pfns, struct pw_err *err)
{
	struct machine *x = machine_of(b);
	uint64_t left = machine_frames_free(&x->frames);
	struct machine_vm *vm;
	enum pw_status st = machine_find_pages(x, id, gfn, count, &vm, err);

	if (st != PW_OK)
		return st;
	if (count > x->pool.frames)
		return pw_fail(err, PW_INVALID, "%" PRIu64 " frames of a pool of %" PRIu64, count, x->pool.frames);
	if (machine_frames_reserve(&x->frames, gfn, count, pfns))
		return PW_OK;
	if (x->model->swaps)
		machine_wish_room(x, count - left);
	return pw_fail(err, PW_BUSY, "%" PRIu64 " free frames, %" PRIu64 " are needed", left, count);
}

static void op_unreserve(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
			 const uint64_t *pfns)
{
	struct machine_frames *f = &machine_of(b)->frames;

	for (uint64_t i = 0; i < count; i++)
		if (machine_frames_have(f, FRAME_RESERVED, pfns[i]))
			machine_frames_clear(f, FRAME_RESERVED, pfns[i], 1);
}

static enum pw_status op_page_in(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				 const uint64_t *pfns, struct pw_err *err)
{
	return machine_change(machine_of(b), vm, GFN_PAGE_IN, gfn, count, pfns, err);
}

static enum pw_status op_page_out(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  struct pw_err *err)
{
	return machine_change(machine_of(b), vm, GFN_PAGE_OUT, gfn, count, NULL, err);
}

static enum pw_status op_share(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
			       struct pw_err *err)
{
	return machine_change(machine_of(b), vm, GFN_SHARE, gfn, count, NULL, err);
}

static enum pw_status op_unshare(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				 struct pw_err *err)
{
	return machine_change(machine_of(b), vm, GFN_UNSHARE, gfn, count, NULL, err);
}

static enum pw_status op_set_ripas(struct backend *b, const struct pw_uuid *vm, const struct backend_ripas *what,
				   uint64_t *done, struct pw_err *err)
{
	return machine_set_ripas(machine_of(b), vm, what, done, err);
}

static enum pw_status op_each_vm(struct backend *b, backend_vm_fn fn, void *ctx, struct pw_err *err)
{
	struct machine *x = machine_of(b);
	enum pw_status st = machine_log_begin(x, err);

	for (const struct machine_vm *vm = x->vms; vm && st == PW_OK; vm = vm->next)
		if (!fn(ctx, &vm->id, vm->state))
			break;
	return st;
}

static enum pw_status op_read_slots(struct backend *b, const struct pw_uuid *id, backend_slot_fn fn, void *ctx,
				    unsigned *shared_bit, struct pw_err *err)
{
	struct machine_vm *vm;
	enum pw_status st = machine_begin_vm(machine_of(b), id, &vm, err);

	if (st != PW_OK)
		return st;
	*shared_bit = vm->shared_bit;
	for (size_t i = 0; i < vm->slot_count && fn(ctx, &vm->slots[i]); i++)
		;
	return PW_OK;
}

static enum pw_status op_read_state(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count,
				    backend_run_fn fn, void *ctx, struct pw_err *err)
{
	struct machine *x = machine_of(b);
	uint64_t end = gfn < TREE_PAGES && count < TREE_PAGES - gfn ? gfn + count : TREE_PAGES;
	struct machine_vm *vm;
	struct backend_run run;
	enum pw_status st = machine_begin_vm(x, id, &vm, err);

	if (st != PW_OK)
		return st;
	while (gfn < end && machine_whole_run_at(x, vm, gfn, end, &run) && fn(ctx, &run))
		gfn = run.gfn + run.count;
	return PW_OK;
}

static enum pw_status op_read_stuck(struct backend *b, backend_run_fn fn, void *ctx, struct pw_err *err)
{
	struct machine *x = machine_of(b);
	struct backend_run run;
	uint64_t at = x->pool.base;
	enum pw_status st = machine_log_begin(x, err);

	while (st == PW_OK && machine_frames_stuck_at(&x->frames, at, &run) && fn(ctx, &run))
		at = run.pfn + run.count;
	return st;
}

static enum pw_status op_last_exit(struct backend *b, const struct pw_uuid *id, unsigned vcpu, struct backend_exit *out,
				   struct pw_err *err)
{
	struct machine *x = machine_of(b);
	struct machine_vm *vm;
	enum pw_status st = machine_begin_vm(x, id, &vm, err);

	if (st == PW_OK && !x->model->last_exit(x->firmware, vm, vcpu, out))
		st = pw_fail(err, PW_NOT_FOUND, "vCPU %u had no exit", vcpu);
	return st;
}

static void op_figures(struct backend *b, backend_figure_fn fn, void *ctx)
{
	const struct machine *x = machine_of(b);

	if (x->model->figures)
		x->model->figures(x->firmware, fn, ctx);
}

static enum pw_status op_wait(struct backend *b, unsigned timeout_ms, struct backend_request *out, struct pw_err *err)
{
	return machine_wait(machine_of(b), timeout_ms, out, err);
}

static void op_kick(struct backend *b)
{
	machine_kick(machine_of(b));
}

static void op_complete(struct backend *b, const struct backend_request *rq, enum pw_status st)
{
	machine_complete(machine_of(b), rq);
}

static void op_close(struct backend *b)
{
	machine_free(machine_of(b));
}

static const struct backend_ops machine_ops = {
	.info = op_info,
	.create_vm = op_create_vm,
	.vm_event = op_vm_event,
	.run_vm = op_run_vm,
	.destroy_vm = op_destroy_vm,
	.map_slot = op_map_slot,
	.unmap_slot = op_unmap_slot,
	.reserve = op_reserve,
	.unreserve = op_unreserve,
	.page_in = op_page_in,
	.page_out = op_page_out,
	.share = op_share,
	.unshare = op_unshare,
	.each_vm = op_each_vm,
	.read_slots = op_read_slots,
	.read_state = op_read_state,
	.read_stuck = op_read_stuck,
	.figures = op_figures,
	.wait = op_wait,
	.kick = op_kick,
	.complete = op_complete,
	.close = op_close,
};

/* Life. */

struct machine *machine_new(const struct machine_model *model)
{
	struct machine *x = calloc(1, sizeof *x);

	if (!x)
		return NULL;
	x->ops = machine_ops;
	x->ops.name = model->arch;
	x->ops.last_exit = model->last_exit ? op_last_exit : NULL;
	x->ops.set_ripas = model->set_ripas ? op_set_ripas : NULL;
	x->base.ops = &x->ops;
	x->model = model;
	machine_wishes_init(x);
	return x;
}

enum pw_status machine_switch_on(struct machine *x, uint64_t base, uint64_t frames, struct pw_err *err)
{
	enum pw_status st;

	if (frames == 0 || base > TREE_PAGES || frames > TREE_PAGES - base)
		return pw_fail(err, PW_INVALID, "no pool of frames %" PRIu64 "+%" PRIu64, base, frames);
	x->pool = (struct machine_pool){ base, frames };
	x->hand = base;
	if (machine_frames_init(&x->frames, &x->pool) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a pool of %" PRIu64 " frames", frames);
	st = x->model->open(x, &x->pool, &x->mem, &x->firmware, err);
	if (st != PW_OK)
		x->firmware = NULL;
	return st;
}

/* The VMs end with this process's use of the machine; those of a state file stay in it. */
static void end_all(struct machine *x)
{
	struct machine_vm *vm;

	x->closing = true;
	while ((vm = x->vms)) {
		struct pw_err err;

		if (vm->state != VM_NORMAL && x->model->event(x->firmware, vm, VM_TERMINATE, &err) == PW_OK)
			vm->state = VM_NORMAL;
		x->vms = vm->next;
		x->model->vm_free(x->firmware, vm);
		machine_vm_drop(vm);
	}
	x->model->close(x->firmware);
}

void machine_free(struct machine *x)
{
	if (!x)
		return;
	if (x->firmware)
		end_all(x);
	machine_script_close(x->script);
	machine_file_close(x->file);
	machine_frames_release(&x->frames);
	machine_wishes_release(x);
	words_release(&x->group);
	words_release(&x->refused);
	free(x->before);
	free(x->faults);
	free(x);
}

static enum pw_status take_faults(struct machine *x, const char *fault, struct pw_err *err)
{
	size_t n = 0;

	while (backend_fault_frame(fault, n))
		n++;
	x->faults = calloc(n + 1, sizeof *x->faults);
	if (!x->faults)
		return pw_fail(err, PW_NO_MEMORY, "no memory for faults");
	for (; x->fault_count < n; x->fault_count++)
		x->faults[x->fault_count] = backend_fault_frame(fault, x->fault_count);
	return PW_OK;
}

static enum pw_status take_script(struct machine *x, const char *path, struct pw_err *err)
{
	if (!x->model->set_ripas)
		return pw_fail(err, PW_INVALID,
			       "guests of an emulated %s machine ask for nothing that a script could say",
			       x->model->arch);
	x->script = machine_script_open(path);
	return x->script ? PW_OK : pw_fail(err, PW_NO_MEMORY, "no memory for a script");
}

enum pw_status machine_open(const struct machine_model *model, const struct backend_options *o, struct backend **out,
			    struct pw_err *err)
{
	struct machine *x = machine_new(model);
	enum pw_status st;

	if (!x)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a machine");
	x->traced = o->traced;
	st = take_faults(x, o->fault, err);
	if (st == PW_OK && o->script)
		st = take_script(x, o->script, err);
	if (st == PW_OK)
		st = machine_log_open(x, o, err);
	if (st != PW_OK) {
		machine_free(x);
		return st;
	}
	*out = &x->base;
	return PW_OK;
}

bool machine_is_traced(const struct machine *x)
{
	return x->traced;
}

bool machine_is_live(const struct machine *x)
{
	return !x->replaying && !x->closing;
}

struct machine *machine_of_backend(struct backend *b)
{
	return machine_of(b);
}
