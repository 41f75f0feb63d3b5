#include <criterion/criterion.h>
#include <string.h>

#include "agents/ops.h"

Test(operation, is_read_as_the_server_sends_it)
{
	json_t *j = json_loads("{\"id\":\"11111111-2222-4333-8444-555555555555\",\"vm\":"
			       "\"21111111-2222-4333-8444-555555555555\",\"kind\":\"page_in\",\"params\":{\"gfn\":1}}",
			       0, NULL);
	struct operation op;

	cr_assert(operation_read(j, &op));
	cr_assert_eq(op.kind, OPERATION_PAGE_IN);
	cr_assert_str_eq(op.id, "11111111-2222-4333-8444-555555555555");
	json_object_set_new(j, "kind", json_string("explode"));
	cr_assert(!operation_read(j, &op));
	json_object_set_new(j, "kind", json_string("launch"));
	json_object_set_new(j, "vm", json_integer(4));
	cr_assert(!operation_read(j, &op));
	json_decref(j);
}

static const struct budget_case {
	const char *params;
	bool ok;
	uint64_t pages;
	bool must;
} budgets[] = {
	{ "{}", true, 1000, false },
	{ "{\"resident\":10}", true, 10, true },
	{ "{\"resident\":0}", true, 0, true },
	{ "{\"resident\":0.5}", true, 500, true },
	{ "{\"resident\":1.0}", true, 1000, true },
	{ "{\"resident\":1001}", false, 0, false },
	{ "{\"resident\":1.5}", false, 0, false },
	{ "{\"resident\":-1}", false, 0, false },
	{ "{\"resident\":\"all\"}", false, 0, false },
};

Test(launch, takes_pages_or_a_fraction)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(budgets); i++) {
		json_t *params = json_loads(budgets[i].params, 0, NULL);
		struct launch_budget b;

		cr_assert_eq(launch_budget(params, 1000, &b), budgets[i].ok, "%s", budgets[i].params);
		if (budgets[i].ok)
			cr_assert(b.pages == budgets[i].pages && b.must == budgets[i].must, "%s", budgets[i].params);
		json_decref(params);
	}
}

Test(change, what_is_so_already_is_not_touched_again)
{
	cr_assert_eq(change_touches(GFN_PAGE_IN, GFN_SECURE_RESIDENT), TOUCH_NOTHING);
	cr_assert_eq(change_touches(GFN_UNSHARE_IN, GFN_SECURE_RESIDENT), TOUCH_NOTHING);
	cr_assert_eq(change_touches(GFN_PAGE_OUT, GFN_SECURE_OUT), TOUCH_NOTHING);
	cr_assert_eq(change_touches(GFN_SHARE, GFN_SHARED), TOUCH_NOTHING);
	cr_assert_eq(change_touches(GFN_UNSHARE, GFN_SECURE_OUT), TOUCH_NOTHING);
	cr_assert_eq(change_touches(GFN_UNSHARE, GFN_SECURE_RESIDENT), TOUCH_NOTHING);
}

Test(change, error_cells_of_the_lifecycle_are_refused)
{
	cr_assert_eq(change_touches(GFN_PAGE_IN, GFN_SHARED), TOUCH_REFUSED);
	cr_assert_eq(change_touches(GFN_PAGE_OUT, GFN_SHARED), TOUCH_REFUSED);
	cr_assert_eq(change_touches(GFN_PAGE_OUT, GFN_NORMAL), TOUCH_REFUSED);
	cr_assert_eq(change_touches(GFN_PAGE_IN, GFN_SECURE_OUT), TOUCH_RUN);
	cr_assert_eq(change_touches(GFN_SHARE, GFN_SECURE_RESIDENT), TOUCH_RUN);
}

static const char vm_text[] =
	"{\"id\":\"11111111-2222-4333-8444-555555555555\",\"host\":"
	"\"21111111-2222-4333-8444-555555555555\",\"state\":\"transient\",\"gpa\":{\"shared_bit\":47},"
	"\"slots\":[{\"slot\":1,\"base_gfn\":4096,\"pages\":10,\"state\":\"transient\"},"
	"{\"slot\":0,\"base_gfn\":0,\"pages\":16,\"state\":\"transient\"}]}";

Test(remote_vm, is_read_with_its_slots_in_order)
{
	json_t *j = json_loads(vm_text, 0, NULL);
	struct remote_vm vm;

	cr_assert(remote_vm_read(j, &vm));
	cr_assert(vm.state == VM_TRANSIENT && vm.shared_bit == 47 && vm.slot_count == 2);
	cr_assert(vm.slots[0].base == 0 && vm.slots[1].base == 4096 && vm.slots[1].number == 1);
	remote_vm_release(&vm);
	json_object_set_new(j, "state", json_string("liquid"));
	cr_assert(!remote_vm_read(j, &vm));
	json_decref(j);
}

Test(trouble, a_backends_failure_becomes_a_problem_of_its_own)
{
	struct trouble t = { 0 };
	json_t *p;

	pw_fail(&t.err, PW_BACKEND, "UV_PAGE_IN of GFN 4: H_PARAMETER");
	p = trouble_problem(&t);
	cr_assert_str_eq(json_string_value(json_object_get(p, "type")), "/problems/backend");
	cr_assert(strstr(json_string_value(json_object_get(p, "detail")), "GFN 4"));
	cr_assert(!json_is_true(json_object_get(p, "retryable")));
	json_decref(p);
	pw_fail(&t.err, PW_BUSY, "0 free frames, 16 are needed");
	p = trouble_problem(&t);
	cr_assert(json_is_true(json_object_get(p, "retryable")));
	json_decref(p);
	trouble_clear(&t);
}

Test(trouble, the_ledgers_problem_is_passed_on_whole)
{
	struct trouble t = { 0 };
	json_t *said = json_loads(
		"{\"type\":\"/problems/frame-conflict\",\"detail\":\"frame 3\",\"conflicts\":[{\"pfn\":3}]}", 0, NULL);
	json_t *p;

	cr_assert_eq(trouble_adopt(&t, said), PW_CONFLICT);
	p = trouble_problem(&t);
	cr_assert(json_equal(p, said));
	cr_assert_str_eq(t.err.msg, "frame 3");
	json_decref(p);
	json_decref(said);
	trouble_clear(&t);
}

Test(backoff, grows_and_is_bounded)
{
	uint64_t random = 1;

	for (unsigned tries = 0; tries < 100; tries++) {
		unsigned ms = backoff_ms(tries, &random);

		cr_assert(ms >= 1 && ms <= 10000 && (tries > 6 || ms <= 100u << tries));
	}
}
