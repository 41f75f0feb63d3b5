#include "engine/arch/pef.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define POOL 8
#define GFNS 4

struct machine {
	struct pw_mem mem;
	struct pef m;
	struct pef_vm *vm;
};
static const struct pef_call usual;

static enum pef_code event(struct machine *x, enum pef_vm_event ev)
{
	enum pef_code code;

	cr_assert_eq(pef_vm_call(&x->m, x->vm, ev, &usual, &code), PW_OK);
	return code;
}

static enum pef_code page_in(struct machine *x, uint64_t gfn, uint64_t count, uint64_t flags)
{
	struct pef_pages p = { .gfn = gfn, .count = count, .flags = flags, .order = 16 };
	enum pef_code code;

	cr_assert_eq(pef_page_in(&x->m, x->vm, &p, &usual, &code), PW_OK);
	return code;
}

static enum pef_code page_out(struct machine *x, uint64_t gfn, uint64_t count)
{
	struct pef_pages p = { .gfn = gfn, .count = count, .order = 16 };
	enum pef_code code;

	cr_assert_eq(pef_page_out(&x->m, x->vm, &p, &usual, &code), PW_OK);
	return code;
}

static enum pef_code add_slot(struct machine *x, uint32_t number, uint64_t base, uint64_t pages)
{
	struct pef_slot s = { number, base, pages };
	enum pef_code code;

	cr_assert_eq(pef_slot_add(&x->m, x->vm, &s, &usual, &code), PW_OK);
	return code;
}

static void begin(struct machine *x, uint64_t frames, uint64_t gfns, enum pef_left left)
{
	*x = (struct machine){ 0 };
	cr_assert_eq(pef_init(&x->m, &x->mem, frames, left), PW_OK);
	cr_assert_eq(pef_vm_new(&x->m, true, true, &x->vm), PW_OK);
	cr_assert_eq(add_slot(x, 0, 0, gfns), PEF_H_SUCCESS);
}

static void end(struct machine *x)
{
	cr_expect(pef_check(&x->m));
	pef_release(&x->m);
	cr_expect_eq(x->mem.used, 0);
}

static void reach_vm(struct machine *x, enum pef_vm_state s)
{
	if (s != PEF_VM_NORMAL)
		cr_assert_eq(event(x, PEF_INIT_START), PEF_H_SUCCESS);
	if (s == PEF_VM_SECURE)
		cr_assert_eq(event(x, PEF_INIT_DONE), PEF_H_SUCCESS);
}

/* In a transient VM. */
static void reach_gfn(struct machine *x, uint64_t gfn, enum pef_gfn_state s)
{
	if (s == PEF_SI || s == PEF_SO)
		cr_assert_eq(page_in(x, gfn, 1, 0), PEF_H_SUCCESS);
	if (s == PEF_SO)
		cr_assert_eq(page_out(x, gfn, 1), PEF_H_SUCCESS);
	if (s == PEF_SH)
		cr_assert_eq(page_in(x, gfn, 1, 1), PEF_H_SUCCESS);
}

Test(pef, tables_decide_every_cell)
{
	cr_assert(pef_tables_are_total());
}

/* The design's VM table, with the codes of its events. */
static const struct {
	enum pef_vm_state from;
	enum pef_vm_event ev;
	enum pef_vm_state to;
	enum pef_code code;
} vm_law[] = {
	{ PEF_VM_NORMAL, PEF_INIT_START, PEF_VM_TRANSIENT, PEF_H_SUCCESS },
	{ PEF_VM_NORMAL, PEF_INIT_DONE, PEF_VM_NORMAL, PEF_H_UNSUPPORTED },
	{ PEF_VM_NORMAL, PEF_INIT_ABORT, PEF_VM_NORMAL, PEF_H_UNSUPPORTED },
	{ PEF_VM_NORMAL, PEF_SVM_OFF, PEF_VM_NORMAL, PEF_H_SUCCESS },
	{ PEF_VM_TRANSIENT, PEF_INIT_START, PEF_VM_TRANSIENT, PEF_H_STATE },
	{ PEF_VM_TRANSIENT, PEF_INIT_DONE, PEF_VM_SECURE, PEF_H_SUCCESS },
	{ PEF_VM_TRANSIENT, PEF_INIT_ABORT, PEF_VM_NORMAL, PEF_H_PARAMETER },
	{ PEF_VM_TRANSIENT, PEF_SVM_OFF, PEF_VM_NORMAL, PEF_H_SUCCESS },
	{ PEF_VM_SECURE, PEF_INIT_START, PEF_VM_SECURE, PEF_H_STATE },
	{ PEF_VM_SECURE, PEF_INIT_DONE, PEF_VM_SECURE, PEF_H_STATE },
	{ PEF_VM_SECURE, PEF_INIT_ABORT, PEF_VM_SECURE, PEF_H_STATE },
	{ PEF_VM_SECURE, PEF_SVM_OFF, PEF_VM_NORMAL, PEF_H_SUCCESS },
};

Test(pef, vm_events_follow_the_design)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(vm_law); i++) {
		struct machine x;

		begin(&x, POOL, GFNS, PEF_LEFT_RESIDENT);
		reach_vm(&x, vm_law[i].from);
		cr_expect_eq(event(&x, vm_law[i].ev), vm_law[i].code, "case %zu", i);
		cr_expect_eq(x.vm->state, vm_law[i].to, "case %zu", i);
		end(&x);
	}
}

/* Hypervisor operations by sub-state; a refused cell stays. */
static const struct {
	enum pef_gfn_state from, page_in, share, page_out, touch;
	enum pef_code page_in_code;
} gfn_law[] = {
	{ PEF_SI, PEF_SI, PEF_SH, PEF_SO, PEF_SO, PEF_H_PARAMETER },
	{ PEF_SO, PEF_SI, PEF_SH, PEF_SO, PEF_SO, PEF_H_SUCCESS },
	{ PEF_SH, PEF_SI, PEF_SH, PEF_SH, PEF_SH, PEF_H_SUCCESS },
	{ PEF_NO, PEF_SI, PEF_SH, PEF_NO, PEF_NO, PEF_H_SUCCESS },
};

Test(pef, page_calls_follow_the_design)
{
	enum { IN, SHARE, OUT, TOUCH, CALLS };

	for (size_t i = 0; i < PW_ARRAY_LEN(gfn_law); i++) {
		const enum pef_gfn_state want[CALLS] = { gfn_law[i].page_in, gfn_law[i].share, gfn_law[i].page_out,
							 gfn_law[i].touch };

		for (int call = 0; call < CALLS; call++) {
			enum pef_code code = PEF_H_SUCCESS;
			struct machine x;

			begin(&x, POOL, GFNS, PEF_LEFT_RESIDENT);
			reach_vm(&x, PEF_VM_TRANSIENT);
			reach_gfn(&x, 1, gfn_law[i].from);
			if (call == IN)
				cr_expect_eq(page_in(&x, 1, 1, 0), gfn_law[i].page_in_code);
			else if (call == SHARE)
				cr_expect_eq(page_in(&x, 1, 1, 1), PEF_H_SUCCESS);
			else if (call == OUT)
				cr_expect_eq(page_out(&x, 1, 1), PEF_H_SUCCESS);
			else
				cr_assert_eq(pef_touch(&x.m, x.vm, 1, 1, &usual, &code), PW_OK);
			cr_expect_eq(code, PEF_H_SUCCESS);
			cr_expect_eq(pef_state(x.vm, 1), want[call], "case %zu call %d", i, call);
			cr_expect_eq(x.m.used, want[call] == PEF_SI);
			end(&x);
		}
	}
}

Test(pef, left_over_pages_become_resident_from_the_lowest_frame)
{
	struct machine x;
	struct pef_run run;

	begin(&x, POOL, GFNS, PEF_LEFT_RESIDENT);
	reach_vm(&x, PEF_VM_TRANSIENT);
	reach_gfn(&x, 1, PEF_SH);
	reach_gfn(&x, 2, PEF_SO);
	cr_expect_eq(event(&x, PEF_INIT_DONE), PEF_H_SUCCESS);
	cr_assert(pef_run_at(x.vm, 0, GFNS, &run));
	cr_expect(run.state == PEF_SI && run.frame == 0 && run.count == 1);
	cr_expect_eq(pef_state(x.vm, 1), PEF_SH);
	cr_expect_eq(pef_state(x.vm, 2), PEF_SO);
	cr_assert(pef_run_at(x.vm, 3, GFNS, &run));
	cr_expect(run.state == PEF_SI && run.frame == 1);
	end(&x);
}

Test(pef, left_over_pages_stay_out_on_a_host_that_chooses_frames)
{
	struct machine x;

	begin(&x, 1, GFNS, PEF_LEFT_OUT);
	reach_vm(&x, PEF_VM_TRANSIENT);
	reach_gfn(&x, 1, PEF_SI);
	cr_expect_eq(add_slot(&x, 1, 100, 2), PEF_H_SUCCESS);
	cr_expect_eq(pef_state(x.vm, 100), PEF_NO);
	cr_expect_eq(event(&x, PEF_INIT_DONE), PEF_H_SUCCESS);
	cr_expect_eq(pef_state(x.vm, 0), PEF_SO);
	cr_expect_eq(pef_state(x.vm, 1), PEF_SI);
	cr_expect_eq(pef_state(x.vm, 101), PEF_SO);
	cr_expect_eq(add_slot(&x, 2, 200, 2), PEF_H_SUCCESS);
	cr_expect_eq(pef_state(x.vm, 201), PEF_SO);
	end(&x);
}

Test(pef, a_terabyte_vm_costs_a_handful_of_nodes)
{
	struct machine x;
	uint64_t gfns = (uint64_t)1 << 24;

	begin(&x, gfns + 64, gfns, PEF_LEFT_RESIDENT);
	reach_vm(&x, PEF_VM_SECURE);
	cr_expect_eq(x.m.used, gfns);
	cr_expect_leq(tree_bytes(&x.vm->words), 4 * sizeof(struct tree_node));
	cr_expect_eq(event(&x, PEF_SVM_OFF), PEF_H_SUCCESS);
	cr_expect_eq(x.m.used, 0);
	pef_release(&x.m);
}

Test(pef, a_run_is_all_or_nothing)
{
	struct machine x;
	uint64_t digest;

	begin(&x, POOL, 16, PEF_LEFT_RESIDENT);
	reach_vm(&x, PEF_VM_TRANSIENT);
	reach_gfn(&x, 3, PEF_SI);
	digest = pef_digest(&x.m);
	cr_expect_eq(page_in(&x, 0, 5, 0), PEF_H_PARAMETER, "one is resident");
	cr_expect_eq(page_in(&x, 4, 8, 0), PEF_H_PARAMETER, "one frame too few");
	cr_expect_eq(page_in(&x, 14, 3, 0), PEF_H_PARAMETER, "one outside");
	cr_expect_eq(page_out(&x, 14, 3), PEF_H_PARAMETER, "one outside");
	cr_expect_eq(pef_digest(&x.m), digest);
	cr_expect_eq(page_in(&x, 4, 7, 0), PEF_H_SUCCESS);
	cr_expect_eq(page_in(&x, 0, 16, 1), PEF_H_SUCCESS);
	cr_expect_eq(x.m.used, 0);
	end(&x);
}

Test(pef, page_in_takes_exactly_the_named_frames)
{
	struct machine x;
	uint64_t frames[3] = { 1, 0, 3 };
	struct pef_pages p = { .gfn = 0, .count = 3, .order = 16, .frames = frames };
	struct pef_run run;
	enum pef_code code;

	begin(&x, POOL, GFNS, PEF_LEFT_OUT);
	reach_vm(&x, PEF_VM_TRANSIENT);
	reach_gfn(&x, 3, PEF_SI);
	cr_assert_eq(pef_page_in(&x.m, x.vm, &p, &usual, &code), PW_OK);
	cr_expect_eq(code, PEF_H_PARAMETER, "a frame in use");
	frames[1] = POOL;
	cr_assert_eq(pef_page_in(&x.m, x.vm, &p, &usual, &code), PW_OK);
	cr_expect_eq(code, PEF_H_PARAMETER, "a frame outside the pool");
	frames[1] = 1;
	cr_assert_eq(pef_page_in(&x.m, x.vm, &p, &usual, &code), PW_OK);
	cr_expect_eq(code, PEF_H_PARAMETER, "a frame named twice");
	cr_expect_eq(x.m.used, 1);
	frames[0] = 3, frames[1] = 1, frames[2] = 2;
	cr_assert_eq(pef_page_in(&x.m, x.vm, &p, &usual, &code), PW_OK);
	cr_expect_eq(code, PEF_H_SUCCESS);
	cr_assert(pef_run_at(x.vm, 0, 1, &run));
	cr_expect(run.frame == 3 && x.m.used == 4);
	end(&x);
}

Test(pef, check_sees_what_is_broken)
{
	struct machine x;

	begin(&x, POOL, GFNS, PEF_LEFT_RESIDENT);
	reach_vm(&x, PEF_VM_TRANSIENT);
	reach_gfn(&x, 0, PEF_SI);
	cr_expect(pef_check(&x.m));
	x.vm->state = PEF_VM_NORMAL;
	cr_expect_not(pef_check(&x.m), "a resident page of a normal VM");
	x.vm->state = PEF_VM_TRANSIENT;
	cr_assert_eq(tree_set(&x.vm->words, 2, 1, PEF_WORD_RESIDENT | 0), PW_OK);
	cr_expect_not(pef_check(&x.m), "one frame, two pages");
	cr_assert_eq(tree_set(&x.vm->words, 2, 1, PEF_WORD_SHARED | PEF_WORD_OUT), PW_OK);
	cr_expect_not(pef_check(&x.m), "two flags");
	cr_assert_eq(tree_set(&x.vm->words, 2, 1, 0), PW_OK);
	x.vm->state = PEF_VM_SECURE;
	cr_expect_not(pef_check(&x.m), "a normal page of a secure VM");
	cr_expect_eq(event(&x, PEF_SVM_OFF), PEF_H_SUCCESS);
	end(&x);
}

/* Random calls. */

struct dice {
	uint64_t x;
};

static uint64_t roll(struct dice *d, uint64_t sides)
{
	d->x ^= d->x << 13;
	d->x ^= d->x >> 7;
	d->x ^= d->x << 17;
	return d->x % sides;
}

static struct pef_call random_call(struct dice *d)
{
	return (struct pef_call){ .no_msr_s = roll(d, 20) == 0,
				  .vcpu_running = roll(d, 4) == 0,
				  .uv_refuse = roll(d, 6) == 0 ? 1 + roll(d, 3) : 0 };
}

/* Runs one random call; false if its answer may come with a change though it is no success. */
static bool random_step(struct pef *m, struct pef_vm *vm, struct dice *d, enum pw_status *st, enum pef_code *code)
{
	struct pef_call how = random_call(d);
	struct pef_pages p = { .gfn = roll(d, 24),
			       .count = 1 + roll(d, 5),
			       .flags = roll(d, 12) == 0 ? 2 : 0,
			       .order = roll(d, 20) ? 16 : 12 };
	struct pef_slot s = { (uint32_t)roll(d, 4), roll(d, 24), roll(d, 7) };
	enum pef_vm_event ev = (enum pef_vm_event)roll(d, PEF_VM_EVENT_COUNT);
	bool strict = true;

	switch (roll(d, 12)) {
	case 0:
	case 1:
		*st = pef_vm_call(m, vm, ev, &how, code);
		strict = ev != PEF_INIT_DONE && ev != PEF_INIT_ABORT;
		break;
	case 2: *st = pef_slot_add(m, vm, &s, &how, code); break;
	case 3: *st = pef_slot_remove(m, vm, s.number, code); break;
	case 4: *st = pef_touch(m, vm, p.gfn, p.count, &how, code); break;
	case 5: *st = pef_seal(m, vm, p.gfn, p.count, &how, code); break;
	case 6:
	case 7: *st = pef_page_out(m, vm, &p, &how, code); break;
	case 8: p.flags |= PEF_PAGE_IN_SHARED; /* fall through */
	default: *st = pef_page_in(m, vm, &p, &how, code); break;
	}
	return strict;
}

static void random_calls(uint64_t seed, enum pef_left left, unsigned steps, unsigned fail_every)
{
	struct dice d = { seed | 1 };
	struct machine x;
	struct pef_vm *vms[3];

	begin(&x, 13, 6, left);
	vms[0] = x.vm;
	for (size_t i = 1; i < PW_ARRAY_LEN(vms); i++)
		cr_assert_eq(pef_vm_new(&x.m, true, true, &vms[i]), PW_OK);
	for (unsigned i = 0; i < steps; i++) {
		uint64_t digest = pef_digest(&x.m);
		enum pef_code code = PEF_H_SUCCESS;
		enum pw_status st;
		bool strict;

		if (fail_every) {
			arena_trim(&x.m.arena);
			x.mem.limit = i % fail_every ? 0 : x.mem.used + roll(&d, 2) * 40000;
		}
		strict = random_step(&x.m, vms[roll(&d, 3)], &d, &st, &code);
		cr_assert(pef_check(&x.m), "seed %" PRIu64 " step %u", seed, i);
		if (st != PW_OK || (strict && code != PEF_H_SUCCESS))
			cr_assert_eq(pef_digest(&x.m), digest, "seed %" PRIu64 " step %u", seed, i);
		cr_assert(st == PW_OK || st == PW_NO_MEMORY);
	}
	end(&x);
}

Test(pef, random_calls_keep_the_invariants_and_refusals_change_nothing)
{
	uint64_t seed = (uint64_t)time(NULL);
	const char *given = getenv("SEED");

	if (given)
		seed = strtoull(given, NULL, 10);
	fprintf(stderr, "SEED=%" PRIu64 "\n", seed);
	random_calls(seed, PEF_LEFT_RESIDENT, 20000, 0);
	random_calls(seed + 1, PEF_LEFT_OUT, 20000, 0);
	random_calls(seed + 2, PEF_LEFT_RESIDENT, 10000, 3);
}
