#include <criterion/criterion.h>
#include <string.h>

#include "agents/change.h"
#include "agents/loadgen.h"

Test(load_spec, members_may_be_left_out)
{
	struct load_spec s;
	struct pw_err err = { 0 };

	cr_assert_eq(load_spec_parse("vms=3,seed=9", &s, &err), PW_OK, "%s", err.msg);
	cr_assert(s.vms == 3 && s.seed == 9 && s.pages == 4096 && s.rate == 20);
	cr_assert_eq(load_spec_parse("", &s, &err), PW_OK);
}

static const char *const wrong[] = { "vms",     "vms=",    "vms=0",        "vms=-1", "pages=1",
				     "rate=1x", "speed=3", "vms=1;rate=2", ",",      "vms=999999" };

Test(load_spec, mistakes_are_refused)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		struct load_spec s = { .vms = 7 };
		struct pw_err err = { 0 };

		cr_assert_eq(load_spec_parse(wrong[i], &s, &err), PW_INVALID, "%s", wrong[i]);
		cr_assert_eq(s.vms, 7);
	}
}

static enum gfn_op op_of(const struct load_action *a)
{
	switch (a->kind) {
	case OPERATION_SHARE: return GFN_SHARE;
	case OPERATION_UNSHARE: return a->resident ? GFN_UNSHARE_IN : GFN_UNSHARE;
	case OPERATION_PAGE_IN: return GFN_PAGE_IN;
	case OPERATION_PAGE_OUT: return GFN_PAGE_OUT;
	case OPERATION_LAUNCH:
	case OPERATION_TERMINATE:
	case OPERATION_ABORT:
	case OPERATION_PLUG:
	case OPERATION_UNPLUG:
	case OPERATION_ADOPT:
	case OPERATION_END:
	case OPERATION_KIND_COUNT: break;
	}
	return GFN_OP_COUNT;
}

/* Held against the lifecycle table page by page: a guest never asks for what the table refuses. */
Test(load_vm, every_action_is_legal_and_inside_the_vm)
{
	static const enum gfn_state states[] = { GFN_SECURE_RESIDENT, GFN_SECURE_OUT, GFN_SHARED };
	struct load_vm vm;
	struct pw_err err;
	uint64_t random = 11, launches = 0, seen[OPERATION_KIND_COUNT] = { 0 };

	cr_assert_eq(load_vm_init(&vm, 1024, GUEST_PLAYED, &err), PW_OK);
	for (int i = 0; i < 5000; i++) {
		struct load_action a = load_vm_next(&vm, &random);

		seen[a.kind]++;
		launches += a.kind == OPERATION_LAUNCH;
		if (a.kind != OPERATION_LAUNCH && a.kind != OPERATION_TERMINATE) {
			cr_assert(a.count > 0 && a.gfn + a.count <= 1024);
			for (uint64_t u = a.gfn / LOAD_UNIT; u < (a.gfn + a.count) / LOAD_UNIT; u++)
				cr_assert_eq(change_touches(op_of(&a), states[vm.unit[u]]), TOUCH_RUN);
		}
		load_vm_ended(&vm, &a, next_random(&random) % 10 ? LOAD_DONE : LOAD_FAILED);
	}
	cr_assert_gt(launches, 5);
	for (int k = 0; k < OPERATION_KIND_COUNT; k++)
		cr_assert(seen[k] > 0 || k >= OPERATION_ABORT, "%s never happened",
			  operation_kind_name((enum operation_kind)k));
	load_vm_release(&vm);
}

Test(load_vm, the_same_seed_makes_the_same_choices)
{
	struct load_vm x, y;
	struct pw_err err;
	uint64_t rx = 3, ry = 3;

	cr_assert_eq(load_vm_init(&x, 512, GUEST_PLAYED, &err), PW_OK);
	cr_assert_eq(load_vm_init(&y, 512, GUEST_PLAYED, &err), PW_OK);
	for (int i = 0; i < 1000; i++) {
		struct load_action a = load_vm_next(&x, &rx), b = load_vm_next(&y, &ry);

		cr_assert(a.kind == b.kind && a.gfn == b.gfn && a.count == b.count && a.resident == b.resident);
		load_vm_ended(&x, &a, LOAD_DONE);
		load_vm_ended(&y, &b, LOAD_DONE);
	}
	load_vm_release(&x);
	load_vm_release(&y);
}

Test(load_vm, under_pressure_frames_are_given_up)
{
	struct load_vm vm;
	struct pw_err err;
	uint64_t random = 1, out = 0, in = 0;
	struct load_action a;

	cr_assert_eq(load_vm_init(&vm, 1024, GUEST_PLAYED, &err), PW_OK);
	a = load_vm_next(&vm, &random);
	load_vm_ended(&vm, &a, LOAD_DONE);
	for (int i = 0; i < 200; i++) {
		vm.pressed = true;
		a = load_vm_next(&vm, &random);
		out += a.kind == OPERATION_PAGE_OUT;
		in += a.kind == OPERATION_PAGE_IN || a.resident;
	}
	cr_assert_gt(out, 4 * in);
	load_vm_release(&vm);
}

Test(load_vm, learns_whole_units_and_holds_the_others_for_mixed)
{
	struct load_vm vm;
	struct pw_err err;

	cr_assert_eq(load_vm_init(&vm, 8 * LOAD_UNIT, GUEST_PLAYED, &err), PW_OK);
	load_vm_forget(&vm);
	load_vm_learn(&vm, 0, 2 * LOAD_UNIT + 3, UNIT_IN);
	load_vm_learn(&vm, 2 * LOAD_UNIT + 3, 2 * LOAD_UNIT, UNIT_SHARED);
	load_vm_learn(&vm, 7 * LOAD_UNIT, 100 * LOAD_UNIT, UNIT_OUT);
	cr_assert(vm.unit[0] == UNIT_IN && vm.unit[1] == UNIT_IN && vm.unit[2] == UNIT_MIXED);
	cr_assert(vm.unit[3] == UNIT_SHARED && vm.unit[4] == UNIT_MIXED && vm.unit[7] == UNIT_OUT);
	load_vm_release(&vm);
}

Test(load_vm, a_real_guest_is_only_paged)
{
	struct load_vm vm;
	struct pw_err err;
	uint64_t random = 2;
	struct load_action a;

	cr_assert_eq(load_vm_init(&vm, 512, GUEST_REAL, &err), PW_OK);
	for (int i = 0; i < 1000; i++) {
		a = load_vm_next(&vm, &random);
		cr_assert(a.kind != OPERATION_SHARE && a.kind != OPERATION_UNSHARE);
		load_vm_ended(&vm, &a, LOAD_DONE);
	}
	load_vm_forget(&vm);
	vm.running = true;
	cr_assert_eq(load_vm_next(&vm, &random).kind, OPERATION_TERMINATE, "there is nothing left to page");
	load_vm_release(&vm);
}
