/* RIPAS: what init_start makes of a realm's memory, and what its guest asks for once it runs. The host serves what the
 * guest asked for, or a part of it, and nothing else. No frame comes or goes here. */
#include "agents/machine_cca.h"

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

void machine_cca_fold(struct cca_machine *k, struct cca_guest *g, uint64_t gfn, uint64_t end)
{
	uint64_t half = machine_cca_half(g->vm);

	if (cca_host_fold(g->r, gfn << CCA_SHIFT, end << CCA_SHIFT) == PW_OK)
		(void)!cca_host_fold(g->r, (half + gfn) << CCA_SHIFT, (half + end) << CCA_SHIFT);
}

/* While NEW the host says so, but for pages that are beyond it: DESTROYED ones stay. */
enum pw_status machine_cca_init_slot(struct cca_machine *k, struct cca_guest *g, const struct slot *s,
				     struct pw_err *err)
{
	enum cca_host_code code = CCA_HOST_OK;
	enum pw_status st = PW_OK;
	uint64_t end = s->base + s->pages;
	struct tree_run empty;
	struct cca_now now;

	if (g->r->state != CCA_NEW)
		return machine_cca_ask_ram(k, g, s->base, s->pages, err);
	for (uint64_t at = s->base; at < end && st == PW_OK && code == CCA_HOST_OK; at += now.count) {
		empty = tree_run_at(&g->empty, at, end);
		now = machine_cca_now_at(k, g, at, at + empty.count);
		if (now.entry == CCA_UNASSIGNED_EMPTY && !empty.entry)
			st = cca_host_init_ripas(g->r, at << CCA_SHIFT, (at + now.count) << CCA_SHIFT, &code);
	}
	return machine_cca_answer(k, st, code, "RTT_INIT_RIPAS", err);
}

/* The REC runs; what it had asked for before is over, and the rest of that is rejected if it was RAM. */
static enum pw_status enter(struct cca_machine *k, struct cca_guest *g, struct pw_err *err)
{
	struct cca_run_params run = { .flags = CCA_ENTER_REJECT_RIPAS };
	struct cca_call call = { .cmd = CCA_REC_ENTER, .run = &run };
	struct cca_result r;
	enum pw_status st;

	call.arg[CCA_ARG_REC] = g->r->recs[0];
	call.arg[CCA_ARG_RUN_PTR] = k->h.page;
	st = cca_rmi(&k->m, &call, &r);
	if (st == PW_OK && r.status != CCA_SUCCESS) {
		cca_explain(&k->m, &call, &r, err);
		err->status = PW_BACKEND;
		return PW_BACKEND;
	}
	return machine_cca_answer(k, st, CCA_HOST_OK, "REC_ENTER", err);
}

struct request {
	uint64_t gfn, count;
	enum cca_ripas value;
	bool change_destroyed;
};

/* The guest asks and exits; the host serves the first `accept` pages. *done of them are so then, whatever the status.
 */
static enum pw_status ask(struct cca_machine *k, struct cca_guest *g, const struct request *q, uint64_t accept,
			  uint64_t *done, struct pw_err *err)
{
	uint64_t base = q->gfn << CCA_SHIFT, end = base + (q->count << CCA_SHIFT), rec = g->r->recs[0], at = base;
	enum cca_host_code code = CCA_HOST_OK;
	struct cca_rsi rsi = { 0 };
	enum pw_status st = enter(k, g, err);

	*done = 0;
	if (st != PW_OK)
		return st;
	st = cca_rsi_ipa_state_set(cca_rec_at(&k->m, rec), base, end, q->value, q->change_destroyed, &rsi);
	if (st == PW_OK)
		st = cca_host_set_ripas(g->r, rec, rsi.ripas_base,
					rsi.ripas_base + (min_u64(accept, q->count) << CCA_SHIFT), &at, &code);
	*done = (at - base) >> CCA_SHIFT;
	return machine_cca_answer(k, st, code, "RTT_SET_RIPAS", err);
}

enum pw_status machine_cca_ask_ram(struct cca_machine *k, struct cca_guest *g, uint64_t gfn, uint64_t count,
				   struct pw_err *err)
{
	struct request q = { gfn, count, CCA_RAM, true };
	uint64_t done;

	return ask(k, g, &q, count, &done, err);
}

/* How the next init_start begins. */
static enum pw_status plan(struct cca_machine *k, struct cca_guest *g, const struct backend_ripas *what,
			   struct pw_err *err)
{
	if (arena_reserve(&k->arena) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a VM's RIPAS");
	(void)!tree_set(&g->empty, what->gfn, what->count, !what->ram); /* room was made */
	return PW_OK;
}

void machine_cca_plan_close(struct cca_machine *k, struct cca_guest *g)
{
	tree_release(&g->empty);
	tree_init(&g->empty, &k->arena);
	arena_trim(&k->arena);
}

/* What was done stays: it is for the guest to ask again. That nothing more was done is a failure if nothing was, and
 * the host had not meant it so. */
enum pw_status machine_cca_set_ripas(void *model, struct machine_vm *vm, const struct backend_ripas *what,
				     uint64_t *done, struct pw_err *err)
{
	struct cca_machine *k = model;
	struct cca_guest *g = vm->guest;
	struct request q = { what->gfn, what->count, what->ram ? CCA_RAM : CCA_EMPTY, !what->keep };
	enum pw_status st;
	struct pw_err why;

	*done = what->count;
	if (!g->r)
		return plan(k, g, what, err);
	*done = 0;
	st = machine_cca_pack(k, err);
	if (st != PW_OK)
		return st;
	st = ask(k, g, &q, what->accept, done, err);
	if (*done == 0 && st != PW_OK)
		return st;
	machine_cca_fold(k, g, what->gfn, what->gfn + *done);
	if (enter(k, g, &why) == PW_OK) /* the guest hears how far it went */
		(void)!cca_rec_exit(cca_rec_at(&k->m, g->r->recs[0]));
	return PW_OK;
}

bool machine_cca_is_empty(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end, uint64_t *count)
{
	const struct cca_machine *k = model;
	const struct cca_guest *g = vm->guest;
	struct tree_run run;
	struct cca_now now;

	if (!g->r) {
		run = tree_run_at(&g->empty, gfn, end);
		*count = run.count;
		return run.entry;
	}
	now = machine_cca_now_at(k, g, gfn, end);
	*count = now.count;
	return now.entry == CCA_UNASSIGNED_EMPTY || now.entry == CCA_ASSIGNED_EMPTY;
}
