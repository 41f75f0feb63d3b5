/* A fixed script of commands, of which the n-th allocation is refused, for every n. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/ledger_impl.h"
#include "tests/lib/ledger_world.h"

enum { FRAMES = 4096 };

static struct pw_uuid id_of_vm(unsigned n)
{
	return uuid_of(10 + n);
}

static struct host *host_at(struct world *w, unsigned n)
{
	struct pw_uuid id = uuid_of(n);

	return ledger_host(w->ledger, &id);
}

static struct vm *vm_at(struct world *w, unsigned n)
{
	struct pw_uuid id = id_of_vm(n);

	return ledger_vm(w->ledger, &id);
}

static enum pw_problem host_put(struct world *w, unsigned n, const char *boot, uint64_t frames)
{
	struct host_spec spec = host_spec_of(n, boot, 0, frames);
	struct host_put put;

	return ledger_host_put(w->ledger, &spec, &put, &w->why);
}

static enum pw_problem pool_put(struct world *w, const char *name, size_t hosts)
{
	struct host *both[] = { host_at(w, 1), host_at(w, 2) };
	struct pool_spec spec = { name, 0, FRAMES, 12, both, hosts };
	struct pool *p;
	bool created;

	return ledger_pool_put(w->ledger, &spec, &p, &created, &w->why);
}

static enum pw_problem vm_create(struct world *w, unsigned n, unsigned host)
{
	static const struct slot slots[] = { { 1, 4096, 2000 }, { 0, 0, 2000 } };
	struct vm_spec spec = {
		.id = id_of_vm(n), .host = host_at(w, host), .arch = ARCH_SNP, .slots = slots, .slot_count = 2
	};
	struct vm *vm;

	return ledger_vm_create(w->ledger, &spec, &vm, &w->why);
}

static enum pw_problem event(struct world *w, unsigned n, enum vm_event e)
{
	return ledger_vm_event(w->ledger, vm_at(w, n), e, &w->why);
}

/* Many runs that land scattered in both trees. */
static enum pw_problem scatter(struct world *w, unsigned n)
{
	struct gfn_run runs[64];
	struct item it = { .vm = id_of_vm(n),
			   .op = GFN_UNSHARE,
			   .framed = true,
			   .pool = "local",
			   .runs = runs,
			   .run_count = PW_ARRAY_LEN(runs) };
	bool changed;

	for (uint64_t i = 0; i < PW_ARRAY_LEN(runs); i++)
		runs[i] = (struct gfn_run){ i * 31, 1 + i % 3, (i * 1237) % FRAMES / 4 * 4 };
	return ledger_apply(w->ledger, host_at(w, 1), &it, &changed, &w->why);
}

static enum pw_problem arch_apply(struct world *w, unsigned n, const char *op, uint64_t gfn, uint64_t count,
				  const char *pool, uint64_t pfn)
{
	struct gfn_run run = { gfn, count, pfn };
	struct item it = { .vm = id_of_vm(n), .framed = pool, .pool = pool, .runs = &run, .run_count = 1 };
	bool changed;

	it.arch_op = arch_op_find(op, strlen(op), it.framed, &it.arch_law);
	return ledger_apply(w->ledger, vm_at(w, n)->host, &it, &changed, &w->why);
}

static enum pw_problem vm_step_apply(struct world *w, unsigned n, const char *op)
{
	struct item it = { .vm = id_of_vm(n) };
	bool changed;

	it.vm_op = arch_vm_op_find(op, strlen(op), &it.arch_law);
	return ledger_apply(w->ledger, vm_at(w, n)->host, &it, &changed, &w->why);
}

static enum pw_problem quarantine(struct world *w, uint64_t pfn, uint64_t count)
{
	struct frame_range r[] = { { .pool = host_at(w, 1)->pools[0], .pfn = pfn, .count = count },
				   { .pool = ledger_pool(w->ledger, "cxl"), .pfn = 7, .count = 3 } };

	return ledger_quarantine(w->ledger, host_at(w, 1), r, 2, &w->why);
}

static enum pw_problem unquarantine(struct world *w, uint64_t pfn, uint64_t count)
{
	struct frame_range r = { .pool = host_at(w, 1)->pools[0], .pfn = pfn, .count = count };

	return ledger_unquarantine(w->ledger, &r, 1, &w->why);
}

static enum pw_problem slot_put(struct world *w, unsigned n, uint32_t number, uint64_t base, uint64_t pages)
{
	struct slot s = { number, base, pages };
	bool created;

	return ledger_slot_put(w->ledger, vm_at(w, n), &s, &created, &w->why);
}

enum { STEPS = 41 };
static enum pw_problem step(struct world *w, int n)
{
	switch (n) {
	case 0: return host_put(w, 1, "boot-1", FRAMES);
	case 1: return host_put(w, 2, "boot-1", FRAMES);
	case 2: return pool_put(w, "cxl", 2);
	case 3: return pool_put(w, "cxm", 1);
	case 4: return vm_create(w, 0, 1);
	case 5: return vm_create(w, 1, 2);
	case 6: return event(w, 0, VM_INIT_START);
	case 7: return world_apply(w, host_at(w, 1), vm_at(w, 0), GFN_PAGE_IN, 5, 1000, "cxl", 513);
	case 8: return world_apply(w, host_at(w, 1), vm_at(w, 0), GFN_SHARE, 1500, 1, NULL, 0);
	case 9: return event(w, 0, VM_INIT_DONE);
	case 10: return world_apply(w, host_at(w, 1), vm_at(w, 0), GFN_SHARE, 4096, 1, NULL, 0);
	case 11: return world_apply(w, host_at(w, 1), vm_at(w, 0), GFN_SHARE, 4098, 1, NULL, 0);
	case 12: return world_apply(w, host_at(w, 1), vm_at(w, 0), GFN_UNSHARE, 4096, 1, NULL, 0);
	case 13: return world_apply(w, host_at(w, 1), vm_at(w, 0), GFN_PAGE_OUT, 5, 1000, NULL, 0);
	case 14: return scatter(w, 0);
	case 15: return quarantine(w, 100, 2000);
	case 16: return unquarantine(w, 200, 1);
	case 17: return slot_put(w, 0, 7, (uint64_t)1 << 39, 1000);
	case 18: return world_apply(w, host_at(w, 1), vm_at(w, 0), GFN_UNSHARE, ((uint64_t)1 << 39) + 3, 9, "cxm", 9);
	case 19: return ledger_slot_delete(w->ledger, vm_at(w, 0), 0, &w->why);
	case 20: return ledger_slot_delete(w->ledger, vm_at(w, 0), 1, &w->why);
	case 21: return slot_put(w, 0, 1, 5, 1);
	case 22: return event(w, 1, VM_INIT_START);
	case 23: return world_apply(w, host_at(w, 2), vm_at(w, 1), GFN_PAGE_IN, 0, 2000, "cxl", 1000);
	case 24: return vm_step_apply(w, 1, "snp.launch_finish");
	case 25: return event(w, 1, VM_INIT_DONE);
	case 26: return arch_apply(w, 1, "snp.pvalidate_rescind", 3, 1500, NULL, 0);
	case 27: return arch_apply(w, 1, "snp.pvalidate", 777, 1, NULL, 0);
	case 28: return arch_apply(w, 1, "snp.rmpupdate", 4099, 700, "cxl", 3001);
	case 29: return pool_put(w, "cxm", 2);
	case 30: return host_put(w, 1, "boot-2", FRAMES);
	case 31: return host_put(w, 1, "boot-2", 2 * FRAMES);
	case 32: return ledger_slot_delete(w->ledger, vm_at(w, 0), 7, &w->why);
	case 33: return ledger_slot_delete(w->ledger, vm_at(w, 0), 1, &w->why);
	case 34: return ledger_vm_delete(w->ledger, vm_at(w, 0), &w->why);
	case 35: return vm_create(w, 0, 2);
	case 36: return ledger_host_fence(w->ledger, host_at(w, 2), &w->why);
	case 37: return host_put(w, 2, "boot-1", FRAMES);
	case 38: return pool_put(w, "cxm", 0);
	case 39: return event(w, 0, VM_INIT_START);
	case STEPS - 1: return event(w, 0, VM_INIT_ABORT);
	}
	return PROBLEM_INTERNAL;
}

/* How the script is grouped. TIGHT: a commit after each step, and no room and no spare nodes before each. */
enum grouping { EACH, ALL, TIGHT };

static void tighten(struct ledger *l)
{
	static const unsigned char nothing[2 * UNDO_KEEP];
	static const struct undo_ops neither = { 0 };
	struct undo *u = &l->undo;

	arena_trim_to(&l->arena, 0);
	if (u->capacity - u->used >= UNDO_RECORD(0))
		undo_push(u, &neither, NULL, nothing, u->capacity - u->used - UNDO_RECORD(0));
}

/* The step meets the refusal or does not; if it does, it changes nothing, and succeeds when it is tried again. */
static void try_step(struct world *w, int n)
{
	char *before = ledger_dump(w->ledger);
	size_t calls = w->heap.calls;
	enum pw_problem p = step(w, n);

	if (p == PROBLEM_NO_MEMORY) {
		cr_assert(calls <= w->heap.fail_at && w->heap.fail_at < w->heap.calls, "step %d", n);
		cr_assert_eq(w->why.problem, PROBLEM_NO_MEMORY);
		world_is_as(w, before);
		p = step(w, n);
	} else {
		free(before);
	}
	cr_assert_eq(p, PROBLEM_NONE, "step %d: %s", n, w->why.detail);
	world_holds(w);
}

/* False: the script does not make so many allocations. */
static bool run_with_refusal(size_t fail_at, enum grouping grouping)
{
	struct world w = { .heap.fail_at = fail_at };
	bool met;

	world_init(&w);
	for (int n = 0; w.ledger && n < STEPS; n++) {
		if (grouping == TIGHT)
			tighten(w.ledger);
		try_step(&w, n);
		if (grouping != ALL)
			ledger_commit(w.ledger);
	}
	if (w.ledger && grouping == ALL) {
		w.heap.refuse = true;
		ledger_rollback(w.ledger, 0);
		cr_assert_eq(ledger_host_count(w.ledger) + ledger_vm_count(w.ledger) + ledger_pool_count(w.ledger), 0);
	}
	met = fail_at < w.heap.calls;
	world_release(&w);
	return met;
}

static void sweep(enum grouping grouping)
{
	size_t n = 0;

	while (run_with_refusal(n, grouping))
		n++;
	cr_assert_gt(n, 50);
	fprintf(stderr, "%zu allocations refused, one at a time\n", n);
}

Test(ledger_oom, any_refused_allocation_refuses_one_command_and_changes_nothing)
{
	sweep(EACH);
}

Test(ledger_oom, and_so_it_is_when_all_is_one_group_that_is_taken_back)
{
	sweep(ALL);
}

Test(ledger_oom, and_so_it_is_when_each_step_starts_without_spare_memory)
{
	sweep(TIGHT);
}

/* From every prefix of the script, back to every step before, with an allocator that refuses everything. */
Test(ledger_oom, rollback_to_any_mark_needs_no_memory)
{
	for (int last = 0; last < STEPS; last++) {
		struct world w = { .heap.fail_at = SIZE_MAX };
		undo_mark marks[STEPS];
		char *dumps[STEPS];

		world_init(&w);
		for (int n = 0; n <= last; n++) {
			marks[n] = ledger_mark(w.ledger);
			dumps[n] = ledger_dump(w.ledger);
			cr_assert_eq(step(&w, n), PROBLEM_NONE, "step %d: %s", n, w.why.detail);
		}
		w.heap.refuse = true;
		for (int n = last; n >= 0; n--) {
			ledger_rollback(w.ledger, marks[n]);
			world_is_as(&w, dumps[n]);
		}
		world_release(&w);
	}
}

Test(ledger_oom, a_batch_without_memory_for_its_refusal_still_says_which)
{
	struct world w = { .heap.fail_at = SIZE_MAX };
	struct gfn_run run = { 9000, 1, 0 };
	struct item it = { .op = GFN_SHARE, .runs = &run, .run_count = 1 };
	struct item_result result;

	world_init(&w);
	for (int n = 0; n <= 6; n++)
		cr_assert_eq(step(&w, n), PROBLEM_NONE);
	it.vm = id_of_vm(0);
	w.heap.refuse = true;
	cr_assert_eq(ledger_apply_batch(w.ledger, host_at(&w, 1), &it, 1, false, &result), 1);
	cr_assert(result.problem == PROBLEM_GFN_OUT_OF_SLOT && !result.why && !result.changed);
	ledger_results_release(w.ledger, &result, 1);
	world_release(&w);
}
