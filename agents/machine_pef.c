/* POWER with an ultravisor as an emulated machine. Which calls Linux makes for each step, and what they answer, is in
 * engine/arch/pef.h. A frame that the ultravisor does not let go of fails a page-out, a share and a slot's removal as
 * its refusal of UV_PAGE_OUT or UV_PAGE_INVAL does; abort and termination go on without it. */
#include "agents/machine.h"

#include <stdio.h>
#include <stdlib.h>

#include "engine/arch/pef.h"

struct pef_host {
	struct machine *machine; /* borrowed */
	struct pef pef;
	uint64_t base; /* PFN of the secure pool's frame 0 */
};

static const struct pef_call usual = { 0 };

static enum pw_status host_open(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem, void **model,
				struct pw_err *err)
{
	struct pef_host *h = calloc(1, sizeof *h);
	enum pw_status st = h ? pef_init(&h->pef, mem, pool->frames, PEF_LEFT_OUT) : PW_NO_MEMORY;

	if (st != PW_OK) {
		free(h);
		return pw_fail(err, st, "no secure memory of %" PRIu64 " pages", pool->frames);
	}
	h->machine = x;
	h->base = pool->base;
	*model = h;
	return PW_OK;
}

static void host_close(void *model)
{
	struct pef_host *h = model;

	pef_release(&h->pef);
	free(h);
}

/* How a call came out that the machine found lawful; `why` says the reason in the model's words. */
static enum pw_status answer(enum pw_status st, enum pef_code code, const char *call, const struct pw_err *why,
			     struct pw_err *err)
{
	if (st != PW_OK)
		return pw_fail(err, st, "%s: out of memory", call);
	if (code != PEF_H_SUCCESS)
		return pw_fail(err, PW_BACKEND, "%s", why->msg[0] ? why->msg : pef_code_name(code));
	return PW_OK;
}

/* Frames that are asked for back. */

static bool next_resident(const struct pef_vm *vm, uint64_t at, uint64_t end, struct pef_run *out)
{
	for (; at < end && pef_run_at(vm, at, end, out); at = out->first + out->count)
		if (out->state == PEF_SI)
			return true;
	return false;
}

/* The first page whose frame the ultravisor does not give back; false: it gives all. */
static bool is_kept(struct pef_host *h, const struct pef_vm *vm, uint64_t gfn, uint64_t end, struct pef_run *page)
{
	struct pef_run run = { 0 };

	for (uint64_t at = gfn; next_resident(vm, at, end, &run); at = run.first + run.count) {
		uint64_t n = machine_gives_back(h->machine, run.count);

		if (n == run.count)
			continue;
		*page = (struct pef_run){ run.first + n, 1, run.state, run.frame + n };
		return true;
	}
	return false;
}

/* The same at a VM's end, which nothing stops. */
static void keep_refused(struct pef_host *h, const struct pef_vm *vm, const char *call)
{
	char why[96];
	struct pef_run run = { 0 };
	uint64_t n;

	snprintf(why, sizeof why, "%s: the ultravisor kept the frame", call);
	for (uint64_t at = 0; next_resident(vm, at, TREE_PAGES, &run); at = run.first + run.count) {
		for (uint64_t from = 0; from < run.count; from += n + 1) {
			n = machine_gives_back(h->machine, run.count - from);
			if (from + n < run.count)
				machine_keep(h->machine, h->base + run.frame + from + n, why);
		}
	}
}

/* VMs. */

static enum pw_status host_slot_add(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	struct pef_host *h = model;
	struct pef_slot slot = { s->number, s->base, s->pages };
	struct pw_err why = { 0 };
	enum pef_code code;
	enum pw_status st = pef_slot_add(&h->pef, vm->guest, &slot, &usual, &code);

	if (st == PW_OK && code != PEF_H_SUCCESS)
		pef_explain_slot(&h->pef, vm->guest, &slot, &usual, code, &why);
	return answer(st, code, "UV_REGISTER_MEM_SLOT", &why, err);
}

static void host_vm_free(void *model, struct machine_vm *vm)
{
	struct pef_host *h = model;

	pef_vm_free(&h->pef, vm->guest);
	vm->guest = NULL;
}

static enum pw_status host_vm_new(void *model, struct machine_vm *vm, struct pw_err *err)
{
	struct pef_host *h = model;
	struct pef_vm *guest;
	enum pw_status st = pef_vm_new(&h->pef, true, true, &guest);

	if (st != PW_OK)
		return pw_fail(err, st, "no memory for a VM");
	vm->guest = guest;
	for (size_t i = 0; i < vm->slot_count && st == PW_OK; i++)
		st = host_slot_add(model, vm, &vm->slots[i], err);
	if (st != PW_OK)
		host_vm_free(model, vm);
	return st;
}

static enum pw_status host_slot_remove(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	struct pef_host *h = model;
	struct pw_err why = { 0 };
	struct pef_run page;
	enum pef_code code;
	enum pw_status st;

	if (is_kept(h, vm->guest, s->base, s->base + s->pages, &page))
		return pw_fail(err, PW_BACKEND,
			       "removal of slot %" PRIu32 ": GFN %" PRIu64
			       " (%s): the ultravisor refuses UV_PAGE_INVAL "
			       "and keeps frame %" PRIu64 " (Linux book3s_hv_uvmem.c, kvmppc_uvmem_drop_pages)",
			       s->number, page.first, pef_gfn_state_name(page.state), h->base + page.frame);
	st = pef_slot_remove(&h->pef, vm->guest, s->number, &code);
	return answer(st, code, "UV_UNREGISTER_MEM_SLOT", &why, err);
}

/* INIT_DONE moves run by run, and would be left half-way if it ran out of memory. */
static enum pw_status room_to_seal(struct pef_host *h, const struct pef_vm *vm, struct pw_err *err)
{
	struct pef_run run = { 0 };
	size_t runs = 0;

	for (uint64_t at = 0; at < TREE_PAGES && pef_run_at(vm, at, TREE_PAGES, &run); at = run.first + run.count)
		runs += run.state == PEF_NO;
	if (arena_reserve_sets(&h->pef.arena, runs + 1) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "H_SVM_INIT_DONE: out of memory");
	return PW_OK;
}

static const struct {
	enum pef_vm_event event;
	enum pef_vm_state to;
} host_events[VM_EVENT_COUNT] = {
	[VM_INIT_START] = { PEF_INIT_START, PEF_VM_TRANSIENT },
	[VM_INIT_DONE] = { PEF_INIT_DONE, PEF_VM_SECURE },
	[VM_INIT_ABORT] = { PEF_INIT_ABORT, PEF_VM_NORMAL },
	[VM_TERMINATE] = { PEF_SVM_OFF, PEF_VM_NORMAL },
};

static enum pw_status host_event(void *model, struct machine_vm *vm, enum vm_event e, struct pw_err *err)
{
	struct pef_host *h = model;
	struct pef_vm *guest = vm->guest;
	const char *name = pef_vm_event_name(host_events[e].event);
	struct pw_err why;
	enum pef_code code;
	enum pw_status st = e == VM_INIT_DONE ? room_to_seal(h, guest, err) : PW_OK;

	if (st != PW_OK)
		return st;
	if (e == VM_INIT_ABORT || e == VM_TERMINATE)
		keep_refused(h, guest, name);
	st = pef_vm_call(&h->pef, guest, host_events[e].event, &usual, &code);
	if (st != PW_OK)
		return pw_fail(err, st, "%s: out of memory", name);
	/* The state tells: an abort that works answers H_PARAMETER. */
	if (guest->state == host_events[e].to)
		return PW_OK;
	pw_fail(&why, PW_BACKEND, "%s of a VM that is %s: %s", name, pef_vm_state_name(guest->state),
		pef_code_name(code));
	pef_explain_event(&h->pef, guest, host_events[e].event, &usual, code, &why);
	return pw_fail(err, PW_BACKEND, "%s", why.msg);
}

/* Pages. */

typedef enum pw_status (*page_fn)(struct pef *m, struct pef_vm *vm, const struct pef_pages *p,
				  const struct pef_call *how, enum pef_code *code);

static enum pw_status page_call(struct pef_host *h, struct pef_vm *vm, enum pef_gfn_op op, page_fn fn,
				struct pef_pages *p, struct pw_err *err)
{
	struct pef_call how = usual;
	struct pw_err why = { 0 };
	struct pef_run page;
	enum pef_code code;
	enum pw_status st;

	p->order = PEF_PAGE_SHIFT;
	if (is_kept(h, vm, p->gfn, p->gfn + p->count, &page)) {
		p->gfn = page.first;
		p->count = 1;
		how.uv_refuse = 1;
	}
	st = fn(&h->pef, vm, p, &how, &code);
	if (st == PW_OK && code != PEF_H_SUCCESS)
		pef_explain(&h->pef, vm, op, p, &how, code, &why);
	return answer(st, code, pef_gfn_op_name(op), &why, err);
}

static enum pw_status host_page_in(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				   const uint64_t *pfns, struct pw_err *err)
{
	struct pef_host *h = model;
	uint64_t *frames = calloc(count, sizeof *frames);
	struct pef_pages p = { .gfn = gfn, .count = count, .frames = frames };
	enum pw_status st;

	if (!frames)
		return pw_fail(err, PW_NO_MEMORY, "page-in: out of memory");
	for (uint64_t i = 0; i < count; i++)
		frames[i] = pfns[i] - h->base;
	st = page_call(h, vm->guest, PEF_PAGE_IN, pef_page_in, &p, err);
	free(frames);
	return st;
}

static enum pw_status host_page_out(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				    struct pw_err *err)
{
	struct pef_pages p = { .gfn = gfn, .count = count };

	return page_call(model, vm->guest, PEF_PAGE_OUT, pef_page_out, &p, err);
}

static enum pw_status host_share(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	struct pef_pages p = { .gfn = gfn, .count = count, .flags = PEF_PAGE_IN_SHARED };

	return page_call(model, vm->guest, PEF_SHARE, pef_page_in, &p, err);
}

static enum pw_status host_unshare(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	struct pef_host *h = model;
	struct pef_pages p = { .gfn = gfn, .count = count, .order = PEF_PAGE_SHIFT };
	struct pw_err why = { 0 };
	enum pef_code code;
	enum pw_status st = pef_seal(&h->pef, vm->guest, gfn, count, &usual, &code);

	if (st == PW_OK && code != PEF_H_SUCCESS)
		pef_explain(&h->pef, vm->guest, PEF_SEAL, &p, &usual, code, &why);
	return answer(st, code, "page-in and page-out", &why, err);
}

/* Hardware's truth. */

static const enum gfn_state host_states[PEF_GFN_STATE_COUNT] = {
	[PEF_SI] = GFN_SECURE_RESIDENT, [PEF_SO] = GFN_SECURE_OUT, [PEF_SH] = GFN_SHARED, [PEF_NO] = GFN_NORMAL
};

static struct backend_run host_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end)
{
	const struct pef_host *h = model;
	struct backend_run out = { .gfn = gfn, .count = end - gfn, .state = GFN_NORMAL };
	struct pef_run run = { 0 };

	if (!pef_run_at(vm->guest, gfn, end, &run))
		return out;
	out.count = run.count;
	out.state = host_states[run.state];
	if (run.state == PEF_SI)
		out.pfn = h->base + run.frame;
	return out;
}

static bool host_check(const void *model, struct pw_err *err)
{
	const struct pef_host *h = model;

	if (!pef_check(&h->pef))
		pw_fail(err, PW_INVALID, "the PEF model's invariants do not hold");
	return pef_check(&h->pef);
}

const struct machine_model machine_pef = {
	.arch = "pef",
	.help = "a POWER host with an ultravisor (64 KiB pages)",
	.page_shift = PEF_PAGE_SHIFT,
	.default_frames = 4096,
	.swaps = true,
	.open = host_open,
	.close = host_close,
	.vm_new = host_vm_new,
	.vm_free = host_vm_free,
	.event = host_event,
	.slot_add = host_slot_add,
	.slot_remove = host_slot_remove,
	.page_in = host_page_in,
	.page_out = host_page_out,
	.share = host_share,
	.unshare = host_unshare,
	.run_at = host_run_at,
	.check = host_check,
};
