#include <criterion/criterion.h>
#include <string.h>

#include "engine/arch/pef.h"

/* A transient VM with a slot of 8 pages at GFN 16, of which 16 is SI, 17 SO, 18 SH, 19 NO; a pool of 4. */
enum { SLOT = 16, PAGES = 8, POOL = 4 };
struct pef_scene {
	struct pw_mem mem;
	struct pef m;
	struct pef_vm *vm;
};
static const struct pef_call usual;
static struct pw_err err;

static enum pef_code call_pages(struct pef_scene *x, enum pef_gfn_op op, const struct pef_pages *p,
				const struct pef_call *how)
{
	enum pw_status st = PW_INVALID;
	enum pef_code code = PEF_H_SUCCESS;

	if (op == PEF_PAGE_IN || op == PEF_SHARE)
		st = pef_page_in(&x->m, x->vm, p, how, &code);
	else if (op == PEF_PAGE_OUT)
		st = pef_page_out(&x->m, x->vm, p, how, &code);
	else if (op == PEF_SEAL)
		st = pef_seal(&x->m, x->vm, p->gfn, p->count, how, &code);
	else if (op == PEF_TOUCH)
		st = pef_touch(&x->m, x->vm, p->gfn, p->count, how, &code);
	cr_assert_eq(st, PW_OK);
	return code;
}

static enum pef_code event(struct pef_scene *x, enum pef_vm_event e)
{
	enum pef_code code;

	cr_assert_eq(pef_vm_call(&x->m, x->vm, e, &usual, &code), PW_OK);
	return code;
}

static void begin(struct pef_scene *x)
{
	const struct pef_slot slot = { 0, SLOT, PAGES };
	enum pef_code code;

	*x = (struct pef_scene){ 0 };
	cr_assert_eq(pef_init(&x->m, &x->mem, POOL, PEF_LEFT_RESIDENT), PW_OK);
	cr_assert_eq(pef_vm_new(&x->m, true, true, &x->vm), PW_OK);
	cr_assert_eq(pef_slot_add(&x->m, x->vm, &slot, &usual, &code), PW_OK);
	cr_assert_eq(event(x, PEF_INIT_START), PEF_H_SUCCESS);
	for (uint64_t i = 0; i < 3; i++) {
		struct pef_pages p = { SLOT + i, 1, i == 2, 16, NULL };

		cr_assert_eq(call_pages(x, PEF_PAGE_IN, &p, &usual), PEF_H_SUCCESS);
		p.flags = 0;
		if (i == 1)
			cr_assert_eq(call_pages(x, PEF_PAGE_OUT, &p, &usual), PEF_H_SUCCESS);
	}
}

static void end(struct pef_scene *x)
{
	pef_release(&x->m);
	cr_expect_eq(x->mem.used, 0);
}

static void expect_words(const char *const *words)
{
	for (; *words; words++)
		cr_expect(strstr(err.msg, *words), "\"%s\" is not in: %s", *words, err.msg);
}

static const uint64_t taken[] = { 1, 0 }, outside[] = { 1, 9 }, twice[] = { 2, 2 };
static const struct {
	enum pef_gfn_op op;
	struct pef_pages p;
	struct pef_call how;
	enum pef_code code;
	enum pef_rule rule;
	const char *words[5];
} refusals[] = {
	{ PEF_PAGE_IN,
	  { 19, 1, 0, 16, NULL },
	  { .no_msr_s = true },
	  PEF_H_UNSUPPORTED,
	  PEF_RULE_MSR_S,
	  { "page-in of GFN 19 in state NO, VM transient", "H_UNSUPPORTED", "MSR_S" } },
	{ PEF_PAGE_IN, { 19, 1, 7, 12, NULL }, { 0 }, PEF_H_P3, PEF_RULE_ORDER, { "H_P3", "order is 16" } },
	{ PEF_PAGE_OUT, { 19, 1, 1, 16, NULL }, { 0 }, PEF_H_P2, PEF_RULE_FLAGS, { "H_P2", "no flag" } },
	{ PEF_PAGE_IN,
	  { 22, 4, 0, 16, NULL },
	  { 0 },
	  PEF_H_PARAMETER,
	  PEF_RULE_SLOT,
	  { "GFN 24 in state none", "memory slot" } },
	{ PEF_SHARE, { 3, 1, 1, 16, NULL }, { 0 }, PEF_H_PARAMETER, PEF_RULE_SLOT, { "share of GFN 3" } },
	{ PEF_PAGE_IN,
	  { 16, 1, 0, 16, NULL },
	  { 0 },
	  PEF_H_PARAMETER,
	  PEF_RULE_OUT,
	  { "GFN 16 in state SI", "not paged in already", "kvmppc_svm_page_in" } },
	{ PEF_PAGE_IN, { 17, 5, 0, 16, NULL }, { 0 }, PEF_H_PARAMETER, PEF_RULE_POOL, { "5 wanted, 3 of 4 free" } },
	{ PEF_PAGE_IN,
	  { 17, 2, 0, 16, taken },
	  { 0 },
	  PEF_H_PARAMETER,
	  PEF_RULE_FRAME,
	  { "GFN 18 in state SH", "frame 0 backs GFN 16 of this VM" } },
	{ PEF_PAGE_IN,
	  { 17, 2, 0, 16, outside },
	  { 0 },
	  PEF_H_PARAMETER,
	  PEF_RULE_FRAME,
	  { "frame 9 is not one of 4" } },
	{ PEF_PAGE_IN, { 17, 2, 0, 16, twice }, { 0 }, PEF_H_PARAMETER, PEF_RULE_FRAME, { "named twice" } },
	{ PEF_PAGE_IN,
	  { 19, 1, 0, 16, NULL },
	  { .uv_refuse = 1 },
	  PEF_H_PARAMETER,
	  PEF_RULE_UV_PAGE,
	  { "GFN 19", "ultravisor accepts", "svm_host.c" } },
	{ PEF_PAGE_OUT,
	  { 16, 4, 0, 16, NULL },
	  { .uv_refuse = 1 },
	  PEF_H_PARAMETER,
	  PEF_RULE_UV_PAGE,
	  { "page-out of GFN 16" } },
	{ PEF_TOUCH,
	  { 16, 1, 0, 0, NULL },
	  { .uv_refuse = 1 },
	  PEF_SIGBUS,
	  PEF_RULE_UV_PAGE,
	  { "touch of GFN 16", "SIGBUS" } },
	{ PEF_SEAL,
	  { 18, 1, 0, 0, NULL },
	  { .uv_refuse = 1 },
	  PEF_H_PARAMETER,
	  PEF_RULE_UV_PAGE,
	  { "seal of GFN 18" } },
};

Test(pef_explain, a_refused_page_call_names_page_state_code_rule_and_source)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(refusals); i++) {
		enum pef_rule rule = refusals[i].rule;
		struct pef_scene x;

		begin(&x);
		cr_expect_eq(call_pages(&x, refusals[i].op, &refusals[i].p, &refusals[i].how), refusals[i].code,
			     "case %zu", i);
		cr_expect_eq(pef_explain(&x.m, x.vm, refusals[i].op, &refusals[i].p, &refusals[i].how, refusals[i].code,
					 &err),
			     rule, "case %zu", i);
		cr_expect_eq(err.status, PW_CONFLICT);
		expect_words(refusals[i].words);
		expect_words((const char *const[]){ pef_rule_text(rule), pef_rule_source(rule),
						    pef_code_name(refusals[i].code), NULL });
		end(&x);
	}
}

/* Every state, operation and mishap: there is a reason exactly when the call is refused. */
Test(pef_explain, there_is_a_reason_for_each_refusal_and_for_nothing_else)
{
	static const enum pef_gfn_op ops[] = { PEF_PAGE_IN, PEF_SHARE, PEF_PAGE_OUT, PEF_TOUCH, PEF_SEAL };
	unsigned refused = 0;

	for (unsigned n = 0; n < PW_ARRAY_LEN(ops) * 10 * 3 * 8; n++) {
		enum pef_gfn_op op = ops[n % PW_ARRAY_LEN(ops)];
		unsigned rest = n / PW_ARRAY_LEN(ops), how = rest / 30;
		struct pef_pages p = { SLOT - 1 + rest % 10, 1 + rest / 10 % 3 * 2, op == PEF_SHARE, 16, NULL };
		struct pef_call mishap = { .no_msr_s = how & 1, .uv_refuse = how & 2 };
		struct pef_scene x;
		enum pef_code code;
		enum pef_rule rule;

		begin(&x);
		if (how & 4)
			cr_assert_eq(event(&x, PEF_SVM_OFF), PEF_H_SUCCESS);
		if (op == PEF_TOUCH && (p.gfn < SLOT || p.gfn + p.count > SLOT + PAGES || how & 4)) {
			end(&x); /* the hypervisor touches what it has mapped */
			continue;
		}
		code = call_pages(&x, op, &p, &mishap);
		if (code != PEF_H_SUCCESS) {
			rule = pef_explain(&x.m, x.vm, op, &p, &mishap, code, &err);
			cr_expect_neq(rule, PEF_RULE_COUNT, "%s of %" PRIu64 "+%" PRIu64 ", %u: %s",
				      pef_gfn_op_name(op), p.gfn, p.count, how, pef_code_name(code));
			refused++;
		}
		end(&x);
		begin(&x);
		if (how & 4)
			cr_assert_eq(event(&x, PEF_SVM_OFF), PEF_H_SUCCESS);
		rule = pef_explain(&x.m, x.vm, op, &p, &mishap, PEF_H_SUCCESS, &err);
		cr_expect_eq(rule == PEF_RULE_COUNT, code == PEF_H_SUCCESS, "%s of %" PRIu64 "+%" PRIu64 ", %u: %s",
			     pef_gfn_op_name(op), p.gfn, p.count, how, pef_code_name(code));
		end(&x);
	}
	cr_expect_gt(refused, 300);
}

Test(pef_explain, a_refused_event_names_state_and_rule_and_what_is_inferred)
{
	static const struct {
		enum pef_vm_state from;
		enum pef_vm_event ev;
		struct pef_call how;
		enum pef_rule rule;
	} cases[] = {
		{ PEF_VM_NORMAL, PEF_INIT_START, { .no_msr_s = true }, PEF_RULE_MSR_S },
		{ PEF_VM_NORMAL, PEF_INIT_START, { .uv_refuse = 1 }, PEF_RULE_REGISTER },
		{ PEF_VM_NORMAL, PEF_INIT_DONE, { 0 }, PEF_RULE_STEP },
		{ PEF_VM_NORMAL, PEF_INIT_ABORT, { 0 }, PEF_RULE_STEP },
		{ PEF_VM_TRANSIENT, PEF_INIT_START, { 0 }, PEF_RULE_DESIGN },
		{ PEF_VM_TRANSIENT, PEF_INIT_DONE, { 0 }, PEF_RULE_LEFT },
		{ PEF_VM_TRANSIENT, PEF_SVM_OFF, { .vcpu_running = true }, PEF_RULE_NO_VCPU },
		{ PEF_VM_TRANSIENT, PEF_SVM_OFF, { .uv_refuse = 1 }, PEF_RULE_TERMINATE },
		{ PEF_VM_TRANSIENT, PEF_SVM_OFF, { 0 }, PEF_RULE_COUNT },
		{ PEF_VM_NORMAL, PEF_SVM_OFF, { .vcpu_running = true }, PEF_RULE_COUNT },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		enum pef_code code;
		struct pef_scene x;

		begin(&x);
		if (cases[i].from == PEF_VM_NORMAL)
			cr_assert_eq(event(&x, PEF_SVM_OFF), PEF_H_SUCCESS);
		cr_assert_eq(pef_vm_call(&x.m, x.vm, cases[i].ev, &cases[i].how, &code), PW_OK);
		cr_expect_eq(code == PEF_H_SUCCESS, cases[i].rule == PEF_RULE_COUNT, "case %zu", i);
		cr_expect_eq(pef_explain_event(&x.m, x.vm, cases[i].ev, &cases[i].how, code, &err), cases[i].rule,
			     "case %zu", i);
		if (cases[i].rule != PEF_RULE_COUNT) {
			expect_words((const char *const[]){ pef_vm_event_name(cases[i].ev),
							    pef_vm_state_name(cases[i].from), pef_code_name(code),
							    pef_rule_source(cases[i].rule), NULL });
			cr_expect_eq(strstr(err.msg, "not verified") != NULL, cases[i].rule == PEF_RULE_DESIGN, "%s",
				     err.msg);
		}
		end(&x);
	}
}

Test(pef_explain, a_start_that_fails_says_what_the_host_or_guest_lacks)
{
	for (int lack = 0; lack < 4; lack++) {
		static const enum pef_rule rules[] = { PEF_RULE_HAS_POOL, PEF_RULE_RADIX, PEF_RULE_OPT_IN,
						       PEF_RULE_REGISTER };
		const struct pef_slot slot = { lack == 3 ? PEF_SLOTS_MAX : 0, 0, 4 };
		struct pef_scene x = { 0 };
		enum pef_code code;

		cr_assert_eq(pef_init(&x.m, &x.mem, lack == 0 ? 0 : POOL, PEF_LEFT_OUT), PW_OK);
		cr_assert_eq(pef_vm_new(&x.m, lack != 1, lack != 2, &x.vm), PW_OK);
		cr_assert_eq(pef_slot_add(&x.m, x.vm, &slot, &usual, &code), PW_OK);
		code = event(&x, PEF_INIT_START);
		cr_expect_neq(code, PEF_H_SUCCESS);
		cr_expect_eq(pef_explain_event(&x.m, x.vm, PEF_INIT_START, &usual, code, &err), rules[lack]);
		end(&x);
	}
}

Test(pef_explain, the_page_at_which_the_end_of_the_launch_stopped_is_named)
{
	struct pef_scene x;

	begin(&x);
	cr_assert_eq(event(&x, PEF_INIT_DONE), PEF_H_STATE);
	cr_expect_eq(pef_explain_event(&x.m, x.vm, PEF_INIT_DONE, &usual, PEF_H_STATE, &err), PEF_RULE_LEFT);
	expect_words((const char *const[]){ "GFN 22 is still NO", "0 of 4", NULL });
	end(&x);
}

Test(pef_explain, refused_slots_are_explained)
{
	static const struct {
		struct pef_slot s;
		struct pef_call how;
		enum pef_rule rule;
	} cases[] = {
		{ { 0, 100, 1 }, { 0 }, PEF_RULE_NEW_SLOT },
		{ { 1, 23, 1 }, { 0 }, PEF_RULE_NEW_SLOT },
		{ { 1, TREE_PAGES - 1, 2 }, { 0 }, PEF_RULE_NEW_SLOT },
		{ { 1, 100, 1 }, { .uv_refuse = 1 }, PEF_RULE_PLUG },
		{ { PEF_SLOTS_MAX, 100, 1 }, { 0 }, PEF_RULE_PLUG },
		{ { 1, 100, 4 }, { 0 }, PEF_RULE_PLUG_POOL },
		{ { 1, 100, 3 }, { 0 }, PEF_RULE_COUNT },
	};
	const struct pef_slot none = { 7, 0, 0 };
	enum pef_code code;
	struct pef_scene x;

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		begin(&x);
		cr_expect_eq(pef_explain_slot(&x.m, x.vm, &cases[i].s, &cases[i].how, PEF_H_PARAMETER, &err),
			     cases[i].rule, "case %zu", i);
		cr_assert_eq(pef_slot_add(&x.m, x.vm, &cases[i].s, &cases[i].how, &code), PW_OK);
		cr_expect_eq(code == PEF_H_SUCCESS, cases[i].rule == PEF_RULE_COUNT, "case %zu", i);
		end(&x);
	}
	begin(&x);
	cr_assert_eq(pef_slot_remove(&x.m, x.vm, 7, &code), PW_OK);
	cr_expect_eq(pef_explain_slot(&x.m, x.vm, &none, &usual, code, &err), PEF_RULE_OLD_SLOT);
	expect_words((const char *const[]){ "slot 7", "H_PARAMETER", "not verified", NULL });
	end(&x);
}

static bool vm_is_inferred(enum pef_vm_state s, enum pef_vm_event e)
{
	return (e == PEF_INIT_START && s != PEF_VM_NORMAL) || (e == PEF_INIT_DONE && s == PEF_VM_SECURE);
}

static bool gfn_is_inferred(enum pef_gfn_state s, enum pef_gfn_op op)
{
	switch (op) {
	case PEF_SEAL: return s == PEF_SH || s == PEF_NO;
	case PEF_MIGRATE:
	case PEF_SEAL_LEFT: return s == PEF_NO;
	case PEF_ABORT: return s == PEF_SI;
	case PEF_PAGE_IN:
	case PEF_SHARE:
	case PEF_PAGE_OUT:
	case PEF_TOUCH:
	case PEF_DROP:
	case PEF_GFN_OP_COUNT: break;
	}
	return false;
}

Test(pef_explain, what_no_source_says_is_marked_as_inferred)
{
	for (int s = 0; s < PEF_VM_STATE_COUNT; s++)
		for (int e = 0; e < PEF_VM_EVENT_COUNT; e++)
			cr_expect_eq(pef_vm_cell((enum pef_vm_state)s, (enum pef_vm_event)e)->inferred,
				     vm_is_inferred((enum pef_vm_state)s, (enum pef_vm_event)e), "%d %d", s, e);
	for (int s = 0; s < PEF_GFN_STATE_COUNT; s++)
		for (int op = 0; op < PEF_GFN_OP_COUNT; op++)
			cr_expect_eq(pef_gfn_cell((enum pef_gfn_state)s, (enum pef_gfn_op)op)->inferred,
				     gfn_is_inferred((enum pef_gfn_state)s, (enum pef_gfn_op)op), "%d %d", s, op);
}
