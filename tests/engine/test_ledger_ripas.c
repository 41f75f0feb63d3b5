/* What a CCA realm gave up, in the ledger: EMPTY through every operation of the law, until the realm asks again. */
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <string.h>

#include "engine/arch/law.h"
#include "tests/lib/ledger_world.h"

static const struct slot slots[] = { { 0, 0, 2048 } };

struct scene {
	struct world w;
	struct host *host;
	struct vm *vm;
	bool changed;
};

static void begin(struct scene *s, enum vm_state state)
{
	struct host_spec host = host_spec_of(1, "boot-a", 0, 4096);
	struct host_put put;
	struct vm_spec spec = { .id = uuid_of(9), .name = "vm", .arch = ARCH_CCA, .slots = slots, .slot_count = 1 };

	*s = (struct scene){ .w.heap.fail_at = SIZE_MAX };
	world_init(&s->w);
	host.arches = 1u << ARCH_CCA;
	cr_assert_eq(ledger_host_put(s->w.ledger, &host, &put, &s->w.why), PROBLEM_NONE, "%s", s->w.why.detail);
	s->host = spec.host = put.host;
	cr_assert_eq(ledger_vm_create(s->w.ledger, &spec, &s->vm, &s->w.why), PROBLEM_NONE, "%s", s->w.why.detail);
	world_vm_to(&s->w, s->vm, state);
	ledger_commit(s->w.ledger);
}

static void end(struct scene *s)
{
	world_holds(&s->w);
	world_release(&s->w);
}

static void say(struct scene *s, const char *name, uint64_t gfn, uint64_t count)
{
	struct gfn_run run = { gfn, count, 0 };
	struct item it = { .vm = s->vm->id, .pool = "local", .runs = &run, .run_count = 1 };

	it.arch_op = arch_op_find(name, strlen(name), false, &it.arch_law);
	cr_assert(it.arch_op, "%s", name);
	cr_assert_eq(ledger_apply(s->w.ledger, s->host, &it, &s->changed, &s->w.why), PROBLEM_NONE, "%s: %s", name,
		     s->w.why.detail);
}

static void law(struct scene *s, enum gfn_op op, uint64_t gfn, uint64_t count, const char *pool, uint64_t pfn)
{
	cr_assert_eq(world_apply(&s->w, s->host, s->vm, op, gfn, count, pool, pfn), PROBLEM_NONE, "%s",
		     s->w.why.detail);
}

static void expect(struct scene *s, uint64_t gfn, uint64_t count, enum gfn_state state, const char *arch)
{
	for (uint64_t i = gfn; i < gfn + count; i++) {
		struct gfn_view v;

		cr_assert(vm_next_run(s->vm, i, i + 1, &v) && v.gfn == i);
		cr_expect(v.state == state && strcmp(v.arch_state, arch) == 0, "GFN %" PRIu64 " is %s", i,
			  v.arch_state);
	}
}

Test(ledger_ripas, what_was_given_up_stays_so_through_the_laws_operations)
{
	struct scene s;

	begin(&s, VM_SECURE);
	law(&s, GFN_PAGE_IN, 0, 600, "local", 0);
	say(&s, "cca.rtt_set_ripas_empty_cd", 0, 16);
	expect(&s, 0, 16, GFN_SECURE_RESIDENT, "ASSIGNED/EMPTY");
	law(&s, GFN_PAGE_OUT, 0, 32, NULL, 0);
	expect(&s, 0, 16, GFN_SECURE_OUT, "UNASSIGNED/EMPTY");
	expect(&s, 16, 16, GFN_SECURE_OUT, "UNASSIGNED/RAM");
	law(&s, GFN_PAGE_IN, 8, 16, "local", 1000);
	expect(&s, 8, 8, GFN_SECURE_RESIDENT, "ASSIGNED/EMPTY");
	expect(&s, 16, 8, GFN_SECURE_RESIDENT, "ASSIGNED/RAM");
	law(&s, GFN_SHARE, 4, 8, NULL, 0);
	expect(&s, 4, 8, GFN_SHARED, "ASSIGNED_NS, UNASSIGNED/EMPTY");
	law(&s, GFN_UNSHARE, 4, 1, NULL, 0);
	law(&s, GFN_UNSHARE, 5, 7, "local", 2000);
	expect(&s, 4, 1, GFN_SECURE_OUT, "UNASSIGNED/EMPTY");
	expect(&s, 5, 7, GFN_SECURE_RESIDENT, "ASSIGNED/EMPTY");
	law(&s, GFN_SHARE, 4, 1, NULL, 0); /* a page that has a word of its own */
	expect(&s, 4, 1, GFN_SHARED, "ASSIGNED_NS, UNASSIGNED/EMPTY");
	say(&s, "cca.rtt_set_ripas_ram_cd", 0, 16);
	expect(&s, 0, 4, GFN_SECURE_OUT, "UNASSIGNED/RAM");
	expect(&s, 4, 1, GFN_SHARED, "ASSIGNED_NS");
	expect(&s, 5, 11, GFN_SECURE_RESIDENT, "ASSIGNED/RAM");
	cr_expect_eq(s.vm->counts.pages[GFN_SECURE_RESIDENT], 600 - 5 - 8);
	end(&s);
}

Test(ledger_ripas, what_was_given_up_stays_so_when_its_frame_goes_into_quarantine)
{
	struct scene s;
	struct frame_range r;

	begin(&s, VM_SECURE);
	law(&s, GFN_PAGE_IN, 0, 16, "local", 100);
	say(&s, "cca.rtt_set_ripas_empty_cd", 0, 8);
	r = (struct frame_range){ .pool = s.host->pools[0], .pfn = 104, .count = 8 };
	cr_assert_eq(ledger_quarantine(s.w.ledger, s.host, &r, 1, &s.w.why), PROBLEM_NONE, "%s", s.w.why.detail);
	expect(&s, 0, 4, GFN_SECURE_RESIDENT, "ASSIGNED/EMPTY");
	expect(&s, 4, 4, GFN_SECURE_OUT, "UNASSIGNED/EMPTY");
	expect(&s, 8, 4, GFN_SECURE_OUT, "UNASSIGNED/RAM");
	expect(&s, 12, 4, GFN_SECURE_RESIDENT, "ASSIGNED/RAM");
	end(&s);
}

/* What the host destroyed is another matter: the realm asks for that again by itself. */
Test(ledger_ripas, what_was_destroyed_is_at_rest_after_the_laws_operations)
{
	struct scene s;

	begin(&s, VM_SECURE);
	say(&s, "cca.rtt_destroy", 0, 16);
	expect(&s, 0, 16, GFN_SECURE_OUT, "UNASSIGNED/DESTROYED");
	law(&s, GFN_PAGE_IN, 0, 8, "local", 0);
	expect(&s, 0, 8, GFN_SECURE_RESIDENT, "ASSIGNED/RAM");
	say(&s, "cca.rtt_set_ripas_ram_destroyed", 8, 8);
	expect(&s, 8, 8, GFN_SECURE_OUT, "UNASSIGNED/RAM");
	end(&s);
}

Test(ledger_ripas, pages_that_a_launch_left_empty_are_so_when_it_has_ended)
{
	struct scene s;

	begin(&s, VM_TRANSIENT);
	say(&s, "cca.ripas_left_empty", 0, 8);
	expect(&s, 0, 8, GFN_NORMAL, "UNASSIGNED/EMPTY");
	say(&s, "cca.ripas_left_empty", 0, 8);
	cr_expect_not(s.changed);
	law(&s, GFN_SHARE, 0, 2, NULL, 0);
	cr_assert_eq(ledger_vm_event(s.w.ledger, s.vm, VM_INIT_DONE, &s.w.why), PROBLEM_NONE);
	expect(&s, 0, 2, GFN_SHARED, "ASSIGNED_NS, UNASSIGNED/EMPTY");
	expect(&s, 2, 6, GFN_SECURE_OUT, "UNASSIGNED/EMPTY");
	expect(&s, 8, 8, GFN_SECURE_OUT, "UNASSIGNED/RAM");
	cr_assert_eq(ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why), PROBLEM_NONE);
	expect(&s, 0, 16, GFN_NORMAL, "UNASSIGNED/RAM");
	end(&s);
}
