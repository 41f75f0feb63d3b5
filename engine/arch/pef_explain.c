/* Why a call was refused: the checks of pef.c once more, with the page that fails them. */
#include "engine/arch/pef.h"

#include <stdio.h>

#define TEXT_(name, text, source, verified)     [name] = text,
#define SOURCE_(name, text, source, verified)   [name] = source,
#define VERIFIED_(name, text, source, verified) [name] = verified,
static const char *const rule_texts[PEF_RULE_COUNT] = { PEF_RULES(TEXT_) };
static const char *const rule_sources[PEF_RULE_COUNT] = { PEF_RULES(SOURCE_) };
static const bool rule_verified[PEF_RULE_COUNT] = { PEF_RULES(VERIFIED_) };

const char *pef_rule_text(enum pef_rule r)
{
	return rule_texts[r];
}

const char *pef_rule_source(enum pef_rule r)
{
	return rule_sources[r];
}

bool pef_rule_is_verified(enum pef_rule r)
{
	return rule_verified[r];
}

/* "...: CODE: must hold: rule; what (source, not verified)" behind what the caller has written. */
static void say(struct pw_err *err, const char *subject, enum pef_code code, enum pef_rule r, const char *what)
{
	(void)pw_fail(err, PW_CONFLICT, "%s: %s: must hold: %s%s%s (%s%s)", subject, pef_code_name(code), rule_texts[r],
		      *what ? "; " : "", what, rule_sources[r], rule_verified[r] ? "" : ", not verified");
}

/* Pages. */

static uint64_t free_pages(const struct pef *m)
{
	return m->frames - m->used;
}

/* Frame `frame` is not one of the pool, or backs a GFN: whose, in words. */
static bool frame_is_taken(const struct pef *m, const struct pef_vm *vm, uint64_t frame, char *what, size_t size)
{
	struct pef_run run;

	if (frame >= m->frames) {
		(void)snprintf(what, size, "frame %" PRIu64 " is not one of %" PRIu64, frame, m->frames);
		return true;
	}
	if (!(m->in_use[frame / 64] >> (frame % 64) & 1))
		return false;
	for (const struct pef_vm *v = m->vms; v; v = v->next)
		for (uint64_t at = 0; at < TREE_PAGES && pef_run_at(v, at, TREE_PAGES, &run);
		     at = run.first + run.count) {
			if (run.state != PEF_SI || frame < run.frame || frame - run.frame >= run.count)
				continue;
			(void)snprintf(what, size, "frame %" PRIu64 " backs GFN %" PRIu64 " of %s VM", frame,
				       run.first + (frame - run.frame), v == vm ? "this" : "another");
			return true;
		}
	return false;
}

static enum pef_rule named_frames(const struct pef *m, const struct pef_vm *vm, const struct pef_pages *p,
				  uint64_t *gfn, char *what, size_t size)
{
	for (uint64_t i = 0; i < p->count; i++) {
		*gfn = p->gfn + i;
		if (frame_is_taken(m, vm, p->frames[i], what, size))
			return PEF_RULE_FRAME;
	}
	return PEF_RULE_COUNT;
}

static enum pef_rule scan_pages(const struct pef *m, const struct pef_vm *vm, enum pef_gfn_op op,
				const struct pef_pages *p, const struct pef_call *how, enum pef_code code,
				uint64_t *gfn, char *what, size_t size)
{
	uint64_t end = p->gfn + p->count, wanted = 0, asks = end;
	enum pef_rule r;
	struct pef_run run;

	for (uint64_t at = p->gfn; at < end; at = run.first + run.count) {
		const struct pef_gfn_cell *cell;

		*gfn = at;
		if (!pef_run_at(vm, at, end, &run) || run.first != at)
			return PEF_RULE_SLOT;
		cell = pef_gfn_cell(run.state, op);
		if (cell->kind == PEF_GFN_REFUSE)
			return PEF_RULE_OUT;
		wanted += cell->kind == PEF_GFN_MOVE && cell->next == PEF_SI ? run.count : 0;
		asks = cell->asks_uv && asks == end ? at : asks;
	}
	if (wanted && p->frames) {
		r = named_frames(m, vm, p, gfn, what, size);
		if (r != PEF_RULE_COUNT)
			return r;
	} else if (wanted > free_pages(m)) {
		*gfn = p->gfn;
		(void)snprintf(what, size, "%" PRIu64 " wanted, %" PRIu64 " of %" PRIu64 " free", wanted, free_pages(m),
			       m->frames);
		return PEF_RULE_POOL;
	}
	*gfn = asks;
	if (asks < end && how->uv_refuse)
		return PEF_RULE_UV_PAGE;
	*gfn = p->gfn;
	if (!wanted || !p->frames || code == PEF_H_SUCCESS)
		return PEF_RULE_COUNT;
	(void)snprintf(what, size, "one is named twice");
	return PEF_RULE_FRAME;
}

static enum pef_rule page_rule(const struct pef *m, const struct pef_vm *vm, enum pef_gfn_op op,
			       const struct pef_pages *p, const struct pef_call *how, enum pef_code code, uint64_t *gfn,
			       char *what, size_t size)
{
	*gfn = p->gfn;
	if (op != PEF_TOUCH) { /* the others are hypercalls */
		if (how->no_msr_s)
			return PEF_RULE_MSR_S;
		if (vm->state == PEF_VM_NORMAL)
			return PEF_RULE_STARTED;
		if (op != PEF_SEAL && p->order != PEF_PAGE_SHIFT)
			return PEF_RULE_ORDER;
		if (p->flags & ~(op == PEF_PAGE_IN || op == PEF_SHARE ? (uint64_t)PEF_PAGE_IN_SHARED : 0))
			return PEF_RULE_FLAGS;
	}
	return scan_pages(m, vm, op, p, how, code, gfn, what, size);
}

enum pef_rule pef_explain(const struct pef *m, const struct pef_vm *vm, enum pef_gfn_op op, const struct pef_pages *p,
			  const struct pef_call *how, enum pef_code code, struct pw_err *err)
{
	char subject[96], what[96] = "";
	enum pef_rule r;
	uint64_t gfn;

	r = page_rule(m, vm, op, p, how, code, &gfn, what, sizeof what);
	if (r == PEF_RULE_COUNT)
		return r;
	(void)snprintf(subject, sizeof subject, "%s of GFN %" PRIu64 " in state %s, VM %s", pef_gfn_op_name(op), gfn,
		       r == PEF_RULE_SLOT ? "none" : pef_gfn_state_name(pef_state(vm, gfn)),
		       pef_vm_state_name(vm->state));
	say(err, subject, code, r, what);
	return r;
}

/* Events. */

static bool slots_are_numbered_low(const struct pef_vm *vm)
{
	for (size_t i = 0; i < vm->slot_count; i++)
		if (vm->slots[i].number >= PEF_SLOTS_MAX)
			return false;
	return true;
}

static enum pef_rule start_rule(const struct pef *m, const struct pef_vm *vm, const struct pef_call *how)
{
	if (!m->frames)
		return PEF_RULE_HAS_POOL;
	if (!vm->radix)
		return PEF_RULE_RADIX;
	if (!vm->opted_in)
		return PEF_RULE_OPT_IN;
	if ((vm->slot_count && how->uv_refuse) || !slots_are_numbered_low(vm))
		return PEF_RULE_REGISTER;
	return PEF_RULE_COUNT;
}

static enum pef_rule event_rule(const struct pef *m, const struct pef_vm *vm, enum pef_vm_event ev,
				const struct pef_call *how, enum pef_code code)
{
	const struct pef_vm_cell *cell = pef_vm_cell(vm->state, ev);

	if (how->no_msr_s && (ev == PEF_INIT_START || ev == PEF_INIT_DONE))
		return PEF_RULE_MSR_S;
	if (cell->kind == PEF_VM_REFUSE)
		return cell->inferred ? PEF_RULE_DESIGN : PEF_RULE_STEP;
	if (ev == PEF_INIT_START)
		return start_rule(m, vm, how);
	if (ev == PEF_INIT_DONE)
		return code == PEF_H_STATE ? PEF_RULE_LEFT : PEF_RULE_COUNT;
	if (ev == PEF_SVM_OFF && cell->kind == PEF_VM_MOVE && how->vcpu_running)
		return PEF_RULE_NO_VCPU;
	if (ev == PEF_SVM_OFF && cell->kind == PEF_VM_MOVE && how->uv_refuse)
		return PEF_RULE_TERMINATE;
	return PEF_RULE_COUNT;
}

/* The page at which INIT_DONE stopped. */
static bool first_left(const struct pef_vm *vm, uint64_t *gfn)
{
	struct pef_run run;

	for (uint64_t at = 0; at < TREE_PAGES && pef_run_at(vm, at, TREE_PAGES, &run); at = run.first + run.count)
		if (run.state == PEF_NO) {
			*gfn = run.first;
			return true;
		}
	return false;
}

enum pef_rule pef_explain_event(const struct pef *m, const struct pef_vm *vm, enum pef_vm_event ev,
				const struct pef_call *how, enum pef_code code, struct pw_err *err)
{
	enum pef_rule r = event_rule(m, vm, ev, how, code);
	char subject[96], what[96] = "";
	uint64_t gfn;

	if (r == PEF_RULE_COUNT)
		return r;
	if (r == PEF_RULE_LEFT && first_left(vm, &gfn))
		(void)snprintf(what, sizeof what, "GFN %" PRIu64 " is still NO, %" PRIu64 " of %" PRIu64 " pages free",
			       gfn, free_pages(m), m->frames);
	(void)snprintf(subject, sizeof subject, "%s of a VM in state %s", pef_vm_event_name(ev),
		       pef_vm_state_name(vm->state));
	say(err, subject, code, r, what);
	return r;
}

/* Slots. */

static bool is_plugged(const struct pef_vm *vm, uint32_t number)
{
	for (size_t i = 0; i < vm->slot_count; i++)
		if (vm->slots[i].number == number)
			return true;
	return false;
}

static bool place_is_free(const struct pef_vm *vm, const struct pef_slot *s)
{
	struct pef_run run;

	return s->base < TREE_PAGES && s->pages <= TREE_PAGES - s->base &&
	       !pef_run_at(vm, s->base, s->base + s->pages, &run);
}

static enum pef_rule slot_rule(const struct pef *m, const struct pef_vm *vm, const struct pef_slot *s,
			       const struct pef_call *how)
{
	bool registers = vm->state != PEF_VM_NORMAL;

	if (!s->pages)
		return is_plugged(vm, s->number) ? PEF_RULE_COUNT : PEF_RULE_OLD_SLOT;
	if (is_plugged(vm, s->number) || !place_is_free(vm, s))
		return PEF_RULE_NEW_SLOT;
	if (registers && (how->uv_refuse || s->number >= PEF_SLOTS_MAX))
		return PEF_RULE_PLUG;
	return registers && m->left == PEF_LEFT_RESIDENT && s->pages > free_pages(m) ? PEF_RULE_PLUG_POOL
										     : PEF_RULE_COUNT;
}

enum pef_rule pef_explain_slot(const struct pef *m, const struct pef_vm *vm, const struct pef_slot *s,
			       const struct pef_call *how, enum pef_code code, struct pw_err *err)
{
	enum pef_rule r = slot_rule(m, vm, s, how);
	char subject[128];

	if (r == PEF_RULE_COUNT)
		return r;
	(void)snprintf(subject, sizeof subject, "slot %" PRIu32 ", GFN %" PRIu64 " and %" PRIu64 " pages, VM %s",
		       s->number, s->base, s->pages, pef_vm_state_name(vm->state));
	say(err, subject, code, r, "");
	return r;
}
