#include "agents/backend_pef.h"

#include <stdlib.h>

#include "agents/pef_machine.h"

static struct pef_machine *machine_of(struct backend *b)
{
	return PW_CONTAINER_OF(b, struct pef_machine, base);
}

static enum pw_status unknown(const struct pw_uuid *id, struct pw_err *err)
{
	char text[PW_UUID_TEXT];

	pw_uuid_format(id, text);
	return pw_fail(err, PW_NOT_FOUND, "no VM %s on this machine", text);
}

/* Answers of the model as answers of a backend. */

static struct pef_call take_how(struct pef_machine *x)
{
	struct pef_call how = x->how;

	x->how = (struct pef_call){ 0 };
	return how;
}

/* What the model answered to a call whose preconditions were checked: only the ultravisor can have refused. */
static enum pw_status answer(enum pw_status st, const enum pef_code *code, const char *call, uint64_t gfn,
			     uint64_t count, struct pw_err *err)
{
	if (st != PW_OK)
		return pw_fail(err, st, "%s: out of memory", call);
	if (*code != PEF_H_SUCCESS)
		return pw_fail(err, PW_BACKEND, "%s of GFN %" PRIu64 "+%" PRIu64 ": %s", call, gfn, count,
			       pef_code_name(*code));
	return PW_OK;
}

/* The VM, if its pages may be operated on. */
static enum pw_status find_pages(struct pef_machine *x, const struct pw_uuid *id, uint64_t gfn, uint64_t count,
				 struct pef_guest **out, struct pw_err *err)
{
	struct pef_guest *g = pef_machine_find(x, id);

	if (!g)
		return unknown(id, err);
	if (count == 0 || gfn >= TREE_PAGES || count > TREE_PAGES - gfn || !pef_covers(g->vm, gfn, count))
		return pw_fail(err, PW_INVALID, "GFN %" PRIu64 "+%" PRIu64 " is not inside the VM's slots", gfn, count);
	*out = g;
	return PW_OK;
}

static enum pw_status find_secure_pages(struct pef_machine *x, const struct pw_uuid *id, uint64_t gfn, uint64_t count,
					struct pef_guest **out, struct pw_err *err)
{
	enum pw_status st = find_pages(x, id, gfn, count, out, err);

	if (st == PW_OK && (*out)->vm->state == PEF_VM_NORMAL)
		return pw_fail(err, PW_CONFLICT, "GFN %" PRIu64 ": the VM is normal (H_UNSUPPORTED)", gfn);
	return st;
}

/* VMs. */

static void pef_info(struct backend *b, struct backend_info *out)
{
	const struct pef_machine *x = machine_of(b);

	*out = (struct backend_info){ .arch = "pef",
				      .kind = "emulated",
				      .base_pfn = x->base_pfn,
				      .frames = x->model.frames,
				      .page_shift = PEF_PAGE_SHIFT };
}

static enum pw_status add_slot(struct pef_machine *x, struct pef_guest *g, const struct slot *s, struct pw_err *err)
{
	struct pef_slot slot = { s->number, s->base, s->pages };
	struct pef_call how = take_how(x);
	enum pef_code code;
	enum pw_status st = pef_slot_add(&x->model, g->vm, &slot, &how, &code);

	if (st != PW_OK)
		return pw_fail(err, st, "slot %" PRIu32 ": out of memory", s->number);
	if (code != PEF_H_SUCCESS)
		return pw_fail(err, how.uv_refuse ? PW_BACKEND : PW_CONFLICT,
			       "slot %" PRIu32 " (GFN %" PRIu64 "+%" PRIu64 ") cannot be added: %s", s->number, s->base,
			       s->pages, pef_code_name(code));
	return PW_OK;
}

static enum pw_status pef_create_vm(struct backend *b, const struct backend_vm_spec *spec, struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_guest *g = pef_machine_find(x, &spec->id);
	enum pw_status st;

	if (g)
		return PW_OK;
	st = pef_machine_begin(x, err);
	if (st != PW_OK)
		return st;
	st = pef_machine_guest_new(x, &spec->id, &g);
	if (st != PW_OK)
		return pw_fail(err, st, "no memory for a VM");
	pef_machine_picture_forget(&x->undo, &spec->id);
	for (size_t i = 0; st == PW_OK && i < spec->slot_count; i++)
		st = add_slot(x, g, &spec->slots[i], err);
	if (st == PW_OK)
		return pef_machine_end_vm(x, g, st, err);
	pef_machine_guest_free(x, g);
	return st;
}

static enum pw_status pef_destroy_vm(struct backend *b, const struct pw_uuid *vm, struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_guest *g = pef_machine_find(x, vm);
	enum pw_status st;

	if (!g)
		return PW_OK;
	st = pef_machine_begin(x, err);
	if (st == PW_OK && x->file) {
		pef_machine_picture_forget(&x->redo, vm);
		st = pef_machine_commit(x, err);
	}
	if (st == PW_OK)
		pef_machine_guest_free(x, g);
	return st;
}

/* What each event of the fleet's law is here, and what may be so already. */
static const struct {
	enum pef_vm_event event;
	enum pef_vm_state from[2], to; /* from: where it is done */
	enum pef_gfn_op op;
	bool touches_pages;
} events[VM_EVENT_COUNT] = {
	[VM_INIT_START] = { PEF_INIT_START, { PEF_VM_NORMAL, PEF_VM_NORMAL }, PEF_VM_TRANSIENT, PEF_DROP, false },
	[VM_INIT_DONE] = { PEF_INIT_DONE, { PEF_VM_TRANSIENT, PEF_VM_TRANSIENT }, PEF_VM_SECURE, PEF_SEAL_LEFT, true },
	[VM_INIT_ABORT] = { PEF_INIT_ABORT, { PEF_VM_TRANSIENT, PEF_VM_TRANSIENT }, PEF_VM_NORMAL, PEF_ABORT, true },
	[VM_TERMINATE] = { PEF_SVM_OFF, { PEF_VM_TRANSIENT, PEF_VM_SECURE }, PEF_VM_NORMAL, PEF_DROP, true },
};

static enum pw_status do_event(struct pef_machine *x, struct pef_guest *g, enum vm_event e, struct pw_err *err)
{
	struct pef_call how = take_how(x);
	enum pef_code code;
	enum pw_status st = pef_machine_begin_vm(x, g, err);

	if (st != PW_OK)
		return st;
	st = pef_vm_call(&x->model, g->vm, events[e].event, &how, &code);
	if (st != PW_OK)
		return pw_fail(err, st, "%s: out of memory", pef_vm_event_name(events[e].event));
	if (g->vm->state == events[e].to) {
		if (events[e].touches_pages)
			pef_machine_retag(x, g, events[e].op);
		return pef_machine_end_vm(x, g, PW_OK, err);
	}
	pw_fail(err, PW_BACKEND, "%s: %s", pef_vm_event_name(events[e].event), pef_code_name(code));
	if (e == VM_INIT_DONE)
		pef_machine_put_back(x); /* the only event that fails half-way */
	return PW_BACKEND;
}

static enum pw_status pef_vm_event(struct backend *b, const struct pw_uuid *vm, enum vm_event e, struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_guest *g = pef_machine_find(x, vm);
	enum pef_vm_state now;

	if (!g)
		return unknown(vm, err);
	now = g->vm->state;
	if (e == VM_START ? now == PEF_VM_NORMAL : now == events[e].to)
		return PW_OK;
	if (e == VM_START || (now != events[e].from[0] && now != events[e].from[1]))
		return pw_fail(err, PW_CONFLICT, "%s of a VM that is %s", vm_event_name(e), pef_vm_state_name(now));
	return do_event(x, g, e, err);
}

static enum pw_status pef_run_vm(struct backend *b, const struct pw_uuid *vm, struct pw_err *err)
{
	return pef_machine_find(machine_of(b), vm) ? PW_OK : unknown(vm, err);
}

static const struct pef_slot *slot_numbered(const struct pef_vm *vm, uint32_t number)
{
	for (size_t i = 0; i < vm->slot_count; i++)
		if (vm->slots[i].number == number)
			return &vm->slots[i];
	return NULL;
}

static enum pw_status pef_map_slot(struct backend *b, const struct pw_uuid *vm, const struct slot *s,
				   struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_guest *g = pef_machine_find(x, vm);
	const struct pef_slot *old;
	enum pw_status st;

	if (!g)
		return unknown(vm, err);
	old = slot_numbered(g->vm, s->number);
	if (old && old->base == s->base && old->pages == s->pages)
		return PW_OK;
	st = pef_machine_begin_vm(x, g, err);
	if (st == PW_OK)
		st = add_slot(x, g, s, err);
	return pef_machine_end_vm(x, g, st, err);
}

static enum pw_status pef_unmap_slot(struct backend *b, const struct pw_uuid *vm, uint32_t number, struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_guest *g = pef_machine_find(x, vm);
	const struct pef_slot *old;
	struct pef_slot gone;
	enum pef_code code;
	enum pw_status st;

	if (!g)
		return unknown(vm, err);
	old = slot_numbered(g->vm, number);
	if (!old)
		return PW_OK;
	gone = *old;
	st = pef_machine_begin_vm(x, g, err);
	if (st == PW_OK && (arena_reserve(&x->tag_nodes) != PW_OK))
		st = pw_fail(err, PW_NO_MEMORY, "no memory");
	if (st == PW_OK)
		st = answer(pef_slot_remove(&x->model, g->vm, number, &code), &code, "slot removal", gone.base,
			    gone.pages, err);
	if (st == PW_OK && tree_set(&g->tags, gone.base, gone.pages, 0) != PW_OK)
		x->lost = true; /* cannot be: reserved */
	return pef_machine_end_vm(x, g, st, err);
}

/* Pages. */

static enum pw_status pef_reserve(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  uint64_t *pfns, struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	uint64_t left = x->model.frames - x->model.used - x->model.held;
	struct pef_guest *g;
	enum pw_status st = find_pages(x, vm, gfn, count, &g, err);

	if (st != PW_OK)
		return st;
	if (count > x->model.frames)
		return pw_fail(err, PW_INVALID, "%" PRIu64 " frames of a pool of %" PRIu64, count, x->model.frames);
	if (!pef_hold(&x->model, count, pfns)) {
		pef_machine_wish_room(x, count - left);
		return pw_fail(err, PW_BUSY, "%" PRIu64 " free frames, %" PRIu64 " are needed", left, count);
	}
	for (uint64_t i = 0; i < count; i++)
		pfns[i] += x->base_pfn;
	return PW_OK;
}

static void pef_unreserve(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
			  const uint64_t *pfns)
{
	struct pef_machine *x = machine_of(b);

	for (uint64_t i = 0; i < count; i++) {
		uint64_t frame = pfns[i] - x->base_pfn;

		pef_unhold(&x->model, 1, &frame);
	}
}

/* Are all pages there already, on these frames? PW_CONFLICT if some page is resident otherwise. */
static enum pw_status look_resident(const struct pef_machine *x, const struct pef_guest *g, uint64_t gfn,
				    uint64_t count, const uint64_t *pfns, bool *all, struct pw_err *err)
{
	uint64_t same = 0;
	struct pef_run run;

	for (uint64_t i = 0; i < count; i++) {
		if (!pef_run_at(g->vm, gfn + i, gfn + i + 1, &run) || run.state != PEF_SI)
			continue;
		if (run.frame + x->base_pfn != pfns[i])
			return pw_fail(err, PW_CONFLICT, "H_SVM_PAGE_IN: GFN %" PRIu64 " is resident on frame %" PRIu64,
				       gfn + i, run.frame + x->base_pfn);
		same++;
	}
	*all = same == count;
	if (same && !*all)
		return pw_fail(err, PW_CONFLICT,
			       "H_SVM_PAGE_IN: %" PRIu64 " pages of GFN %" PRIu64 "+%" PRIu64 " are resident already",
			       same, gfn, count);
	return PW_OK;
}

/* The pool's own numbers of reserved frames; the caller frees *out. */
static enum pw_status own_frames(const struct pef_machine *x, const uint64_t *pfns, uint64_t count, uint64_t **out,
				 struct pw_err *err)
{
	uint64_t *frames = count <= x->model.frames ? calloc(count, sizeof *frames) : NULL;

	if (!frames)
		return pw_fail(err, PW_NO_MEMORY, "no memory");
	for (uint64_t i = 0; i < count; i++) {
		frames[i] = pfns[i] - x->base_pfn;
		if (pef_is_held(&x->model, frames[i]))
			continue;
		free(frames);
		return pw_fail(err, PW_CONFLICT, "frame %" PRIu64 " is not reserved", pfns[i]);
	}
	*out = frames;
	return PW_OK;
}

static enum pw_status pef_page_in_(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				   const uint64_t *pfns, struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_pages p = { .gfn = gfn, .count = count, .order = PEF_PAGE_SHIFT };
	struct pef_call how = take_how(x);
	uint64_t *frames = NULL;
	enum pef_code code;
	struct pef_guest *g;
	bool all = false;
	enum pw_status st = find_secure_pages(x, vm, gfn, count, &g, err);

	if (st == PW_OK)
		st = look_resident(x, g, gfn, count, pfns, &all, err);
	if (st != PW_OK || all)
		return st;
	st = own_frames(x, pfns, count, &frames, err);
	if (st == PW_OK)
		st = pef_machine_begin_pages(x, g, gfn, count, err);
	if (st != PW_OK)
		goto out;
	p.frames = frames;
	st = answer(pef_page_in(&x->model, g->vm, &p, &how, &code), &code, "H_SVM_PAGE_IN", gfn, count, err);
	if (st != PW_OK)
		goto out;
	pef_machine_retag(x, g, PEF_PAGE_IN);
	st = pef_machine_end_pages(x, g, gfn, count, st, err);
out:
	free(frames);
	return st;
}

static enum pw_status pef_page_out_(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				    struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_pages p = { .gfn = gfn, .count = count, .order = PEF_PAGE_SHIFT };
	struct pef_call how = take_how(x);
	enum pef_code code;
	struct pef_guest *g;
	enum pw_status st = find_secure_pages(x, vm, gfn, count, &g, err);

	if (st == PW_OK)
		st = pef_machine_begin_pages(x, g, gfn, count, err);
	if (st == PW_OK)
		st = answer(pef_page_out(&x->model, g->vm, &p, &how, &code), &code, "H_SVM_PAGE_OUT", gfn, count, err);
	if (st != PW_OK)
		return st;
	pef_machine_retag(x, g, PEF_PAGE_OUT);
	return pef_machine_end_pages(x, g, gfn, count, st, err);
}

static enum pw_status pef_share(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_pages p = { .gfn = gfn, .count = count, .flags = PEF_PAGE_IN_SHARED, .order = PEF_PAGE_SHIFT };
	struct pef_call how = take_how(x);
	enum pef_code code;
	struct pef_guest *g;
	enum pw_status st = find_secure_pages(x, vm, gfn, count, &g, err);

	if (st == PW_OK)
		st = pef_machine_begin_pages(x, g, gfn, count, err);
	if (st == PW_OK)
		st = answer(pef_page_in(&x->model, g->vm, &p, &how, &code), &code, "H_SVM_PAGE_IN (shared)", gfn, count,
			    err);
	if (st != PW_OK)
		return st;
	pef_machine_retag(x, g, PEF_SHARE);
	return pef_machine_end_pages(x, g, gfn, count, st, err);
}

static enum pw_status pef_unshare(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_call how = take_how(x);
	enum pef_code code;
	struct pef_guest *g;
	enum pw_status st = find_secure_pages(x, vm, gfn, count, &g, err);

	if (st == PW_OK)
		st = pef_machine_begin_pages(x, g, gfn, count, err);
	if (st == PW_OK)
		st = answer(pef_seal(&x->model, g->vm, gfn, count, &how, &code), &code,
			    "H_SVM_PAGE_IN and H_SVM_PAGE_OUT", gfn, count, err);
	if (st != PW_OK)
		return st;
	pef_machine_retag(x, g, PEF_SEAL);
	return pef_machine_end_pages(x, g, gfn, count, st, err);
}

/* Wishes. */

static enum pw_status pef_wait(struct backend *b, unsigned timeout_ms, struct backend_request *out, struct pw_err *err)
{
	return pef_machine_wait(machine_of(b), timeout_ms, out, err);
}

static void pef_kick(struct backend *b)
{
	pef_machine_kick(machine_of(b));
}

static void pef_complete(struct backend *b, const struct backend_request *rq, enum pw_status st)
{
	pef_machine_complete(machine_of(b), rq);
}

/* Hardware's truth. */

static const enum vm_state vm_states[PEF_VM_STATE_COUNT] = {
	[PEF_VM_NORMAL] = VM_NORMAL, [PEF_VM_TRANSIENT] = VM_TRANSIENT, [PEF_VM_SECURE] = VM_SECURE
};
static const enum gfn_state gfn_states[PEF_GFN_STATE_COUNT] = {
	[PEF_SI] = GFN_SECURE_RESIDENT, [PEF_SO] = GFN_SECURE_OUT, [PEF_SH] = GFN_SHARED, [PEF_NO] = GFN_NORMAL
};

static enum pw_status pef_each_vm(struct backend *b, backend_vm_fn fn, void *ctx, struct pw_err *err)
{
	for (const struct pef_vm *vm = machine_of(b)->model.vms; vm; vm = vm->next) {
		const struct pef_guest *g = vm->note;

		if (!fn(ctx, &g->id, vm_states[vm->state]))
			break;
	}
	return PW_OK;
}

static enum pw_status pef_read_state(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				     backend_run_fn fn, void *ctx, struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	const struct pef_guest *g = pef_machine_find(x, vm);
	uint64_t end = gfn < TREE_PAGES && count < TREE_PAGES - gfn ? gfn + count : TREE_PAGES;
	struct pef_run run;

	if (!g)
		return unknown(vm, err);
	while (gfn < end && pef_run_at(g->vm, gfn, end, &run)) {
		struct backend_run seen = { .gfn = run.first, .count = run.count, .state = gfn_states[run.state] };

		if (run.state == PEF_SI)
			seen.pfn = x->base_pfn + run.frame;
		if (!fn(ctx, &seen))
			break;
		gfn = run.first + run.count;
	}
	return PW_OK;
}

static enum pw_status pef_read_stuck(struct backend *b, backend_run_fn fn, void *ctx, struct pw_err *err)
{
	return PW_OK; /* an ultravisor that refuses to let go fails the event: nothing is half free */
}

/* Life. */

static void pef_close(struct backend *b)
{
	struct pef_machine *x = machine_of(b);

	while (x->set_up && x->model.vms)
		pef_machine_guest_free(x, x->model.vms->note);
	if (x->set_up) {
		arena_release(&x->tag_nodes);
		pef_release(&x->model);
	}
	machine_file_close(x->file);
	words_release(&x->undo);
	words_release(&x->redo);
	free(x->before.at);
	pef_machine_wishes_release(x);
	free(x);
}

static const struct backend_ops pef_ops = {
	.name = "pef",
	.info = pef_info,
	.create_vm = pef_create_vm,
	.vm_event = pef_vm_event,
	.run_vm = pef_run_vm,
	.destroy_vm = pef_destroy_vm,
	.map_slot = pef_map_slot,
	.unmap_slot = pef_unmap_slot,
	.reserve = pef_reserve,
	.unreserve = pef_unreserve,
	.page_in = pef_page_in_,
	.page_out = pef_page_out_,
	.share = pef_share,
	.unshare = pef_unshare,
	.each_vm = pef_each_vm,
	.read_state = pef_read_state,
	.read_stuck = pef_read_stuck,
	.wait = pef_wait,
	.kick = pef_kick,
	.complete = pef_complete,
	.close = pef_close,
};

static struct pef_machine *machine_new(void)
{
	struct pef_machine *x = calloc(1, sizeof *x);

	if (!x)
		return NULL;
	x->base.ops = &pef_ops;
	arena_init(&x->tag_nodes, &x->mem);
	pef_machine_wishes_init(x);
	return x;
}

enum pw_status backend_pef_open(const struct backend_options *o, struct backend **out, struct pw_err *err)
{
	struct pef_machine *x = machine_new();
	enum pw_status st;

	if (!x)
		return pw_fail(err, PW_NO_MEMORY, "no memory");
	st = pef_machine_switch_on(x, o, err);
	if (st != PW_OK) {
		pef_close(&x->base);
		return st;
	}
	*out = &x->base;
	return PW_OK;
}

/* For tests. */

enum pw_status backend_pef_write(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t tag,
				 struct pw_err *err)
{
	struct pef_machine *x = machine_of(b);
	struct pef_guest *g = pef_machine_find(x, vm);
	enum pw_status st;

	if (!g || !pef_covers(g->vm, gfn, 1))
		return pw_fail(err, PW_NOT_FOUND, "no such page");
	if (tag > BACKEND_PEF_TAG_LOST)
		return pw_fail(err, PW_INVALID, "too large a tag");
	st = pef_machine_begin_vm(x, g, err);
	if (st == PW_OK)
		st = tree_set(&g->tags, gfn, 1, tag);
	if (st != PW_OK)
		return st;
	g->tagged = true;
	return pef_machine_end_vm(x, g, st, err);
}

enum pw_status backend_pef_read(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t *tag,
				struct pw_err *err)
{
	const struct pef_guest *g = pef_machine_find(machine_of(b), vm);

	if (!g || !pef_covers(g->vm, gfn, 1))
		return pw_fail(err, PW_NOT_FOUND, "no such page");
	*tag = tree_get(&g->tags, gfn);
	return PW_OK;
}

void backend_pef_refuse(struct backend *b, uint64_t calls)
{
	machine_of(b)->how.uv_refuse = calls;
}

const struct pef *backend_pef_model(const struct backend *b)
{
	return &PW_CONTAINER_OF(b, const struct pef_machine, base)->model;
}
