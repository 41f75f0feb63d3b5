/* Every cell of the PEF tables, as Linux book3s_hv_uvmem.c and the design have it. */
#include "engine/arch/pef.h"

#include <criterion/criterion.h>

/*
 * In the order of the states, SI, SO, SH, NO, four letters for each: what follows (S, O, H, N; a dot: it stays; !: it
 * is refused), the contents (kept, zeroed, lost), the ultracalls, and the code if one is refused or fails: success,
 * parameter, state, bus error.
 */
/* clang-format off */
static const struct row {
	enum pef_gfn_op op;
	const char *expected[PEF_GFN_STATE_COUNT];
} rows[] = {
	{ PEF_PAGE_IN,   { "!k0p", "Sk1p", "Sz1p", "Sk1p" } }, /* of SH: the guest's unshare */
	{ PEF_SHARE,     { "Hz1p", "Hz1p", ".k1p", "Hz1p" } },
	{ PEF_PAGE_OUT,  { "Ok1p", ".k0s", ".k0s", ".k0s" } },
	{ PEF_TOUCH,     { "Ok1b", ".k0s", ".k0s", ".k0s" } },
	{ PEF_SEAL,      { ".k0s", ".k0s", "Oz2p", "Ok2p" } }, /* page-in and page-out */
	{ PEF_MIGRATE,   { ".k0s", ".k0s", ".k0s", "Sz0t" } }, /* without UV_PAGE_IN */
	{ PEF_SEAL_LEFT, { ".k0s", ".k0s", ".k0s", "Oz0t" } },
	{ PEF_DROP,      { "Nl0s", "Nl0s", "Nl0s", "Nl0s" } }, /* without UV_PAGE_OUT */
	{ PEF_ABORT,     { "Nk1s", "Nl0s", "Nk0s", ".k0s" } }, /* with it; what is paged out is ciphertext for ever */
};
/* clang-format on */

static char outcome(const struct pef_gfn_cell *c)
{
	switch (c->kind) {
	case PEF_GFN_UNDECIDED: return '?';
	case PEF_GFN_MOVE: return "SOHN"[c->next];
	case PEF_GFN_STAY: return '.';
	case PEF_GFN_REFUSE: break;
	}
	return '!';
}

static enum pef_code code_of(char letter)
{
	switch (letter) {
	case 's': return PEF_H_SUCCESS;
	case 'p': return PEF_H_PARAMETER;
	case 't': return PEF_H_STATE;
	default: return PEF_SIGBUS;
	}
}

Test(pef_cells, every_page_cell_is_as_the_kernel_does)
{
	cr_assert_eq(PW_ARRAY_LEN(rows), PEF_GFN_OP_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(rows); i++)
		for (int s = 0; s < PEF_GFN_STATE_COUNT; s++) {
			const struct pef_gfn_cell *c = pef_gfn_cell((enum pef_gfn_state)s, rows[i].op);
			const char *want = rows[i].expected[s], *op = pef_gfn_op_name(rows[i].op);
			const char *state = pef_gfn_state_name((enum pef_gfn_state)s);

			cr_expect_eq(outcome(c), want[0], "%s of %s", op, state);
			if (c->kind == PEF_GFN_MOVE)
				cr_expect_eq("kzl"[c->contents], want[1], "contents, %s of %s", op, state);
			cr_expect(c->kind == PEF_GFN_REFUSE || c->asks_uv == (unsigned)(want[2] - '0'),
				  "ultracalls, %s of %s", op, state);
			cr_expect_eq(c->code, code_of(want[3]), "code, %s of %s", op, state);
		}
}

/* INIT_START, INIT_DONE, INIT_ABORT, SVM_OFF: M moves, a dot succeeds and changes nothing, ! is refused. */
Test(pef_cells, vm_events_move_succeed_or_are_refused)
{
	static const char *const expected[PEF_VM_STATE_COUNT] = {
		[PEF_VM_NORMAL] = "M!!.",
		[PEF_VM_TRANSIENT] = "!MMM",
		[PEF_VM_SECURE] = "!!!M",
	};

	for (int s = 0; s < PEF_VM_STATE_COUNT; s++)
		for (int e = 0; e < PEF_VM_EVENT_COUNT; e++)
			cr_expect_eq("?M.!"[pef_vm_cell((enum pef_vm_state)s, (enum pef_vm_event)e)->kind],
				     expected[s][e], "%s x %s", pef_vm_state_name((enum pef_vm_state)s),
				     pef_vm_event_name((enum pef_vm_event)e));
}

/* PAPR's numbers, Linux's errnos and its signal. */
Test(pef_cells, codes_have_the_numbers_of_the_interface)
{
	static const int values[PEF_CODE_COUNT] = {
		[PEF_H_SUCCESS] = 0, [PEF_H_PARAMETER] = -4,    [PEF_H_AUTHORITY] = -10, [PEF_H_P2] = -55,
		[PEF_H_P3] = -56,    [PEF_H_UNSUPPORTED] = -67, [PEF_H_STATE] = -75,     [PEF_EBUSY] = -16,
		[PEF_EINVAL] = -22,  [PEF_SIGBUS] = 7,
	};

	for (int c = 0; c < PEF_CODE_COUNT; c++)
		cr_expect_eq(pef_code_value((enum pef_code)c), values[c], "%s", pef_code_name((enum pef_code)c));
}

static struct pef_call refusing = { .uv_refuse = 1 };

struct host {
	struct pw_mem mem;
	struct pef m;
	struct pef_vm *vm;
};

/* A transient VM with GFN 0 in the state. */
static void open_host(struct host *h, enum pef_gfn_state s)
{
	struct pef_slot slot = { 0, 0, 1 };
	struct pef_run run = { 0, 1, s, 0 };
	const struct pef_call usual = { 0 };
	enum pef_code code;

	*h = (struct host){ 0 };
	cr_assert_eq(pef_init(&h->m, &h->mem, 2, PEF_LEFT_RESIDENT), PW_OK);
	cr_assert_eq(pef_vm_new(&h->m, true, true, &h->vm), PW_OK);
	cr_assert_eq(pef_slot_add(&h->m, h->vm, &slot, &usual, &code), PW_OK);
	cr_assert_eq(pef_vm_call(&h->m, h->vm, PEF_INIT_START, &usual, &code), PW_OK);
	cr_assert_eq(pef_put_run(&h->m, h->vm, &run), PW_OK);
}

static enum pef_code call(struct host *h, enum pef_gfn_op op)
{
	struct pef_pages p = { .count = 1, .order = PEF_PAGE_SHIFT, .flags = op == PEF_SHARE ? PEF_PAGE_IN_SHARED : 0 };
	enum pef_code code = PEF_CODE_COUNT;
	enum pw_status st;

	if (op == PEF_PAGE_OUT)
		st = pef_page_out(&h->m, h->vm, &p, &refusing, &code);
	else if (op == PEF_TOUCH)
		st = pef_touch(&h->m, h->vm, 0, 1, &refusing, &code);
	else if (op == PEF_SEAL)
		st = pef_seal(&h->m, h->vm, 0, 1, &refusing, &code);
	else
		st = pef_page_in(&h->m, h->vm, &p, &refusing, &code);
	cr_assert_eq(st, PW_OK);
	return code;
}

Test(pef_cells, a_refusing_ultravisor_refuses_what_asks_it_and_nothing_else)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(rows) && rows[i].op <= PEF_SEAL; i++)
		for (int s = 0; s < PEF_GFN_STATE_COUNT; s++) {
			struct host h;

			open_host(&h, (enum pef_gfn_state)s);
			cr_expect_eq(call(&h, rows[i].op), code_of(rows[i].expected[s][3]), "%s of %s",
				     pef_gfn_op_name(rows[i].op), pef_gfn_state_name((enum pef_gfn_state)s));
			cr_expect_eq(pef_state(h.vm, 0), (enum pef_gfn_state)s);
			pef_release(&h.m);
		}
}
