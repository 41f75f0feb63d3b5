#include "engine/lifecycle.h"

#include <criterion/criterion.h>

/* The tables of the law (L3), cell by cell as the specification has them. ERR: an error (or n/a) cell. */
#define ERR (-1)

static const int vm_table[VM_STATE_COUNT][VM_EVENT_COUNT] = {
	/* start, init_start, init_done, init_abort, terminate */
	[VM_NORMAL] = { VM_NORMAL, VM_TRANSIENT, ERR, ERR, VM_NORMAL },
	[VM_SECURE] = { ERR, ERR, ERR, ERR, VM_NORMAL },
	[VM_TRANSIENT] = { ERR, ERR, VM_SECURE, VM_NORMAL, VM_NORMAL },
};

static const struct {
	enum gfn_state from;
	enum gfn_op op;
	int to;
} gfn_table[] = {
	{ GFN_SECURE_RESIDENT, GFN_SHARE, GFN_SHARED },
	{ GFN_SECURE_RESIDENT, GFN_UNSHARE, GFN_SECURE_RESIDENT }, /* a resident page stays resident */
	{ GFN_SECURE_RESIDENT, GFN_UNSHARE_IN, ERR },              /* acts as page_in, and it is resident already */
	{ GFN_SECURE_RESIDENT, GFN_PAGE_IN, ERR },
	{ GFN_SECURE_RESIDENT, GFN_PAGE_OUT, GFN_SECURE_OUT },
	{ GFN_SECURE_RESIDENT, GFN_RESET, GFN_NORMAL },
	{ GFN_SECURE_RESIDENT, GFN_INIT_DONE, GFN_SECURE_RESIDENT },
	{ GFN_SECURE_OUT, GFN_SHARE, GFN_SHARED },
	{ GFN_SECURE_OUT, GFN_UNSHARE, GFN_SECURE_OUT },
	{ GFN_SECURE_OUT, GFN_UNSHARE_IN, GFN_SECURE_RESIDENT },
	{ GFN_SECURE_OUT, GFN_PAGE_IN, GFN_SECURE_RESIDENT },
	{ GFN_SECURE_OUT, GFN_PAGE_OUT, ERR },
	{ GFN_SECURE_OUT, GFN_RESET, GFN_NORMAL },
	{ GFN_SECURE_OUT, GFN_INIT_DONE, GFN_SECURE_OUT },
	{ GFN_SHARED, GFN_SHARE, GFN_SHARED },
	{ GFN_SHARED, GFN_UNSHARE, GFN_SECURE_OUT },
	{ GFN_SHARED, GFN_UNSHARE_IN, GFN_SECURE_RESIDENT },
	{ GFN_SHARED, GFN_PAGE_IN, ERR },
	{ GFN_SHARED, GFN_PAGE_OUT, ERR },
	{ GFN_SHARED, GFN_RESET, GFN_NORMAL },
	{ GFN_SHARED, GFN_INIT_DONE, GFN_SHARED },
	{ GFN_NORMAL, GFN_SHARE, GFN_SHARED },
	{ GFN_NORMAL, GFN_UNSHARE, GFN_SECURE_OUT },
	{ GFN_NORMAL, GFN_UNSHARE_IN, GFN_SECURE_RESIDENT },
	{ GFN_NORMAL, GFN_PAGE_IN,
	  GFN_SECURE_RESIDENT }, /* while the VM is transient: a secure VM has no normal GFNs */
	{ GFN_NORMAL, GFN_PAGE_OUT, ERR },
	{ GFN_NORMAL, GFN_RESET, GFN_NORMAL },
	{ GFN_NORMAL, GFN_INIT_DONE, GFN_SECURE_OUT },
};

Test(lifecycle, every_vm_cell_is_as_specified)
{
	for (int s = 0; s < VM_STATE_COUNT; s++)
		for (int e = 0; e < VM_EVENT_COUNT; e++) {
			enum vm_state next = VM_STATE_COUNT;
			bool moves = vm_step((enum vm_state)s, (enum vm_event)e, &next);

			cr_assert_eq(moves ? (int)next : ERR, vm_table[s][e], "%s x %s",
				     vm_state_name((enum vm_state)s), vm_event_name((enum vm_event)e));
			cr_assert(moves || next == VM_STATE_COUNT, "an error cell wrote a state");
		}
}

Test(lifecycle, every_gfn_cell_is_as_specified)
{
	cr_assert_eq(PW_ARRAY_LEN(gfn_table), (size_t)GFN_STATE_COUNT * GFN_OP_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(gfn_table); i++) {
		enum gfn_state next = GFN_STATE_COUNT;
		bool moves = gfn_step(gfn_table[i].from, gfn_table[i].op, &next);

		cr_assert_eq(moves ? (int)next : ERR, gfn_table[i].to, "row %zu", i);
		cr_assert(moves || next == GFN_STATE_COUNT, "an error cell wrote a state");
	}
}

Test(lifecycle, no_cell_is_undecided)
{
	cr_assert(lifecycle_is_total());
}

Test(lifecycle, names_are_those_of_the_wire)
{
	cr_assert_str_eq(vm_state_name(VM_TRANSIENT), "transient");
	cr_assert_str_eq(vm_event_name(VM_INIT_ABORT), "init_abort");
	cr_assert_str_eq(gfn_state_name(GFN_SECURE_OUT), "secure");
	cr_assert_str_eq(gfn_state_name(GFN_SECURE_RESIDENT), "secure");
	cr_assert_str_eq(gfn_op_name(GFN_PAGE_OUT), "page_out");
	cr_assert_str_eq(gfn_op_name(GFN_UNSHARE_IN), "unshare");
}
