/* Which events of its host an agent takes for its own doing, and which VMs it compares. */
#include <criterion/criterion.h>
#include <string.h>

#include "agents/own.h"
#include "agents/watch.h"

static struct own own;

static void setup(void)
{
	own_init(&own);
}

static void teardown(void)
{
	own_release(&own);
}

TestSuite(own, .init = setup, .fini = teardown, .timeout = 20);

Test(own, neighbours_are_one_stretch)
{
	own_add(&own, 5, 7, NULL);
	own_add(&own, 8, 8, NULL);
	own_add(&own, 9, 8, NULL); /* a batch that changed nothing */
	own_add(&own, 12, 13, NULL);
	cr_assert_eq(own.n, 2);
	for (uint64_t r = 4; r < 15; r++)
		cr_expect_eq(own_has(&own, r, "gfn.share"), (r >= 5 && r <= 8) || r == 12 || r == 13, "%d", (int)r);
}

Test(own, a_revision_that_was_told_for_one_type_is_of_that_type_alone)
{
	own_add(&own, 5, 5, "vm.lifecycle");
	cr_assert(own_has(&own, 5, "vm.lifecycle"));
	cr_assert(!own_has(&own, 5, "slot.deleted"));
}

Test(own, what_is_forgotten_counts_as_somebody_elses)
{
	for (uint64_t r = 1; r <= 3 * OWN_MAX; r++)
		own_add(&own, 2 * r, 2 * r, NULL);
	cr_assert_leq(own.n, OWN_MAX);
	cr_assert(own_has(&own, 6 * OWN_MAX, "gfn.share"));
	cr_assert(!own_has(&own, 2, "gfn.share"));
	own_forget(&own, 6 * OWN_MAX - 2);
	cr_assert_eq(own.n, 1);
	own_forget(&own, UINT64_MAX);
	cr_assert_eq(own.n, 0);
}

static bool count(void *ctx, const struct pw_uuid *vm)
{
	++*(unsigned *)ctx;
	return true;
}

static unsigned vms_of(const char *text)
{
	json_t *event = json_loads(text, 0, NULL);
	unsigned n = 0;

	cr_assert(event, "%s", text);
	watch_event_vms(event, count, &n);
	json_decref(event);
	return n;
}

#define VM "\"11111111-2222-4333-8444-555555555555\""
Test(watch, events_that_change_a_vm_name_it)
{
	static const char *const changes[] = { "gfn.page_out", "gfn.snp.rmpupdate", "vm.created", "vm.deleted",
					       "vm.lifecycle", "vm.reset",          "slot.added", "slot.deleted" };
	static const char *const others[] = { "violation",  "operation.created", "operation.finished",
					      "vm.unknown", "vcpu.exit",         "vm.known" };
	char text[200];

	for (size_t i = 0; i < PW_ARRAY_LEN(changes); i++) {
		snprintf(text, sizeof text, "{\"type\":\"%s\",\"vm\":" VM "}", changes[i]);
		cr_expect_eq(vms_of(text), 1, "%s", changes[i]);
	}
	for (size_t i = 0; i < PW_ARRAY_LEN(others); i++) {
		snprintf(text, sizeof text, "{\"type\":\"%s\",\"vm\":" VM "}", others[i]);
		cr_expect_eq(vms_of(text), 0, "%s", others[i]);
	}
	cr_expect_eq(vms_of("{\"type\":\"quarantine.added\",\"vms\":[" VM "," VM "]}"), 2);
	cr_expect_eq(vms_of("{\"type\":\"host.updated\"}"), 0);
	cr_expect_eq(vms_of("{\"vm\":" VM "}"), 0);
}

/* However the time is cut, each VM is due once in each period, and the VMs are spread over it. */
Test(watch, each_vm_is_due_once_a_period_at_a_place_of_its_own)
{
	enum { VMS = 200, PERIOD = 1000, PERIODS = 5 };
	uint64_t random = 3, at = 17, per_tenth[10] = { 0 };
	unsigned times[VMS] = { 0 };

	while (at < 17 + PERIOD * PERIODS) {
		uint64_t to = at + 1 + next_random(&random) % 300;

		if (to > 17 + PERIOD * PERIODS)
			to = 17 + PERIOD * PERIODS;
		for (unsigned v = 0; v < VMS; v++) {
			struct pw_uuid vm = { { (uint8_t)v, 9 } };

			times[v] += watch_is_due(&vm, at, to, PERIOD);
		}
		at = to;
	}
	for (unsigned v = 0; v < VMS; v++) {
		struct pw_uuid vm = { { (uint8_t)v, 9 } };

		cr_expect_eq(times[v], PERIODS, "VM %u", v);
		per_tenth[watch_due_in(&vm, 0, PERIOD) % PERIOD / (PERIOD / 10)]++;
		cr_expect(!watch_is_due(&vm, 0, UINT64_MAX, 0), "a period of 0 is never");
	}
	for (int i = 0; i < 10; i++)
		cr_expect(per_tenth[i] > VMS / 40 && per_tenth[i] < VMS / 5, "tenth %d: %d", i, (int)per_tenth[i]);
}
