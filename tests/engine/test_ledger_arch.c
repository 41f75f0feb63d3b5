/* The architecture's own states and operations in the ledger. The VMs are SNP's; its table is engine/arch/snp_law.c. */
#include "engine/digest.h"
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/ledger_world.h"

struct scene {
	struct world w;
	struct host *host;
	struct vm *vm, *other;
	bool changed;
};

static const struct slot slots[] = { { 0, 0, 2048 }, { 1, 4096, 1024 } };

static void scene_init(struct scene *s)
{
	*s = (struct scene){ .w.heap.fail_at = SIZE_MAX };
	world_init(&s->w);
	s->host = world_host(&s->w, 1, "boot-a", 0, 4096);
	s->vm = world_vm(&s->w, 10, s->host, slots, 2);
	s->other = world_vm(&s->w, 11, s->host, slots, 1);
	world_vm_to(&s->w, s->vm, VM_SECURE);
	world_vm_to(&s->w, s->other, VM_SECURE);
	ledger_commit(s->w.ledger);
}

static void scene_release(struct scene *s)
{
	world_holds(&s->w);
	world_release(&s->w);
}

static enum pw_problem apply_op(struct scene *s, const struct vm *vm, const struct arch_op *op, uint64_t gfn,
				uint64_t count, const char *pool, uint64_t pfn)
{
	struct gfn_run run = { gfn, count, pfn };
	struct item it = { .vm = vm->id,
			   .framed = pool,
			   .pool = pool,
			   .runs = &run,
			   .run_count = 1,
			   .arch_op = op,
			   .arch_law = arch_laws[ARCH_SNP] };

	return ledger_apply(s->w.ledger, s->host, &it, &s->changed, &s->w.why);
}

static enum pw_problem apply(struct scene *s, const struct vm *vm, const char *name, uint64_t gfn, uint64_t count,
			     const char *pool, uint64_t pfn)
{
	const struct arch_op *op = arch_op_find(name, strlen(name), pool, NULL);

	cr_assert_not_null(op, "%s", name);
	return apply_op(s, vm, op, gfn, count, pool, pfn);
}

static const char *state_of(const struct vm *vm, uint64_t gfn)
{
	struct gfn_view v;

	cr_assert(vm_next_run(vm, gfn, gfn + 1, &v) && v.gfn == gfn);
	return v.arch_state;
}

#define ACCEPTED(s, call) cr_assert_eq(call, PROBLEM_NONE, "%s", (s)->w.why.detail)
#define REFUSED(s, call, problem_)                                                                  \
	do {                                                                                        \
		char *before_ = ledger_dump((s)->w.ledger);                                         \
		enum pw_problem got_ = (call);                                                      \
                                                                                                    \
		cr_assert_eq(got_, problem_, "%s: %s", problem_slug(got_), (s)->w.why.detail);      \
		cr_assert(!(s)->changed);                                                           \
		cr_assert((s)->w.why.problem == problem_ && (s)->w.why.op && (s)->w.why.detail[0]); \
		world_is_as(&(s)->w, before_);                                                      \
	} while (0)

Test(ledger_arch, pages_begin_at_rest)
{
	struct scene s;

	scene_init(&s);
	cr_assert_str_eq(state_of(s.vm, 0), "Paged-Out");
	ACCEPTED(&s, world_apply(&s.w, s.host, s.vm, GFN_PAGE_IN, 0, 4, "local", 8));
	cr_assert_str_eq(state_of(s.vm, 3), "Guest-Valid");
	ACCEPTED(&s, world_apply(&s.w, s.host, s.vm, GFN_SHARE, 1, 1, NULL, 0));
	cr_assert_str_eq(state_of(s.vm, 1), "Hypervisor");
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	cr_assert_str_eq(state_of(s.vm, 0), "Hypervisor");
	scene_release(&s);
}

Test(ledger_arch, a_page_is_taken_then_accepted_then_given_back)
{
	const struct pool *local;
	struct scene s;

	scene_init(&s);
	local = s.host->pools[0];
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 100, 10, "local", 500));
	cr_assert(s.changed && local->bound == 10 && s.vm->counts.pages[GFN_SECURE_RESIDENT] == 10);
	cr_assert_str_eq(state_of(s.vm, 109), "Guest-Invalid");
	cr_assert(tree_get(&s.vm->pages, 105) & GFN_ENTRY_ARCH_ANY);
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate", 100, 10, NULL, 0));
	cr_assert(s.changed && local->bound == 10);
	cr_assert_str_eq(state_of(s.vm, 100), "Guest-Valid");
	cr_assert_eq(tree_get(&s.vm->pages, 105), GFN_ENTRY_RESIDENT | 505, "at rest no bit is set");
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate", 100, 10, NULL, 0));
	cr_assert(!s.changed);
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 100, 10, NULL, 0));
	cr_assert(s.changed && local->bound == 0 && s.vm->counts.pages[GFN_SHARED] == 10);
	cr_assert_eq(tree_get(&s.vm->pages, 105), GFN_ENTRY_SHARED);
	scene_release(&s);
}

Test(ledger_arch, single_pages_of_a_shattered_table_move_too)
{
	struct scene s;

	scene_init(&s);
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 0, 4, "local", 0));
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate", 1, 1, NULL, 0));
	cr_assert_str_eq(state_of(s.vm, 0), "Guest-Invalid");
	cr_assert_str_eq(state_of(s.vm, 1), "Guest-Valid");
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate_rescind", 1, 1, NULL, 0));
	cr_assert_str_eq(state_of(s.vm, 1), "Guest-Invalid");
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 1, 1, NULL, 0));
	cr_assert_eq(s.host->pools[0]->bound, 3);
	scene_release(&s);
}

Test(ledger_arch, an_operation_of_the_law_leaves_a_changed_page_at_rest)
{
	struct scene s;

	scene_init(&s);
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 0, 4, "local", 0));
	ACCEPTED(&s, world_apply(&s.w, s.host, s.vm, GFN_UNSHARE, 0, 4, NULL, 0));
	cr_assert_str_eq(state_of(s.vm, 0), "Guest-Invalid", "nothing was changed");
	ACCEPTED(&s, world_apply(&s.w, s.host, s.vm, GFN_PAGE_OUT, 0, 2, NULL, 0));
	cr_assert_str_eq(state_of(s.vm, 0), "Paged-Out");
	ACCEPTED(&s, world_apply(&s.w, s.host, s.vm, GFN_PAGE_IN, 0, 2, "local", 0));
	cr_assert_str_eq(state_of(s.vm, 0), "Guest-Valid");
	cr_assert_str_eq(state_of(s.vm, 2), "Guest-Invalid");
	scene_release(&s);
}

Test(ledger_arch, an_error_cell_names_page_states_and_rule)
{
	struct scene s;

	scene_init(&s);
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate_immutable", 7, 1, "local", 0));
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 5, 2, "local", 5));
	REFUSED(&s, apply(&s, s.vm, "snp.pvalidate", 5, 3, NULL, 0), PROBLEM_GFN_TRANSITION);
	cr_assert(s.w.why.gfn == 7 && s.w.why.gfn_state == GFN_SECURE_RESIDENT);
	cr_assert_str_eq(s.w.why.op, "snp.pvalidate");
	cr_assert_str_eq(s.w.why.arch_state, "Pre-Guest");
	cr_assert(strstr(s.w.why.detail, "Pre-Guest"), "%s", s.w.why.detail);
	cr_assert(strstr(s.w.why.detail, arch_op_find("snp.pvalidate", 13, false, NULL)->rule), "%s", s.w.why.detail);
	REFUSED(&s, world_apply(&s.w, s.host, s.vm, GFN_PAGE_IN, 7, 1, "local", 9), PROBLEM_GFN_TRANSITION);
	cr_assert_null(s.w.why.arch_state, "that was the law's");
	scene_release(&s);
}

Test(ledger_arch, checks_come_in_their_order)
{
	struct frame_range r;
	struct scene s;
	struct vm *normal, *tdx, *away;
	struct vm_spec spec = { .id = uuid_of(13), .arch = ARCH_TDX, .slots = slots, .slot_count = 1 };
	struct host *h;

	scene_init(&s);
	h = world_host(&s.w, 2, "boot-b", 0, 16);
	normal = world_vm(&s.w, 12, s.host, slots, 1);
	away = world_vm(&s.w, 14, h, slots, 1);
	spec.host = s.host;
	ACCEPTED(&s, ledger_vm_create(s.w.ledger, &spec, &tdx, &s.w.why));
	REFUSED(&s, apply(&s, &(struct vm){ .id = uuid_of(99) }, "snp.pvalidate", 0, 1, NULL, 0), PROBLEM_VM_NOT_FOUND);
	REFUSED(&s, apply(&s, away, "snp.pvalidate", 0, 1, NULL, 0), PROBLEM_VM_NOT_ON_HOST);
	REFUSED(&s, apply(&s, tdx, "snp.pvalidate", 0, 1, NULL, 0), PROBLEM_ARCH_UNSUPPORTED);
	cr_assert(strstr(s.w.why.detail, "snp.pvalidate") && strstr(s.w.why.detail, "tdx"), "%s", s.w.why.detail);
	REFUSED(&s, apply(&s, normal, "snp.pvalidate", 0, 1, NULL, 0), PROBLEM_VM_TRANSITION);
	REFUSED(&s, apply(&s, s.vm, "snp.pvalidate", 2047, 2, NULL, 0), PROBLEM_GFN_OUT_OF_SLOT);
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 0, 1, "local", 3));
	r = (struct frame_range){ .pool = s.host->pools[0], .pfn = 2, .count = 1 };
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.host, &r, 1, &s.w.why));
	REFUSED(&s, apply(&s, s.vm, "snp.rmpupdate", 0, 2, "nowhere", 0), PROBLEM_GFN_TRANSITION);
	REFUSED(&s, apply(&s, s.vm, "snp.rmpupdate", 1, 2, "nowhere", 0), PROBLEM_FRAME_OUT_OF_POOL);
	REFUSED(&s, apply(&s, s.vm, "snp.rmpupdate", 1, 2, "local", 4095), PROBLEM_FRAME_OUT_OF_POOL);
	REFUSED(&s, apply(&s, s.vm, "snp.rmpupdate", 1, 3, "local", 1), PROBLEM_FRAME_QUARANTINED);
	REFUSED(&s, apply(&s, s.vm, "snp.rmpupdate", 1, 3, "local", 3), PROBLEM_FRAME_CONFLICT);
	scene_release(&s);
}

Test(ledger_arch, hardware_that_says_yes_to_a_double_assignment_is_refused)
{
	struct scene s;

	scene_init(&s);
	ACCEPTED(&s, apply(&s, s.other, "snp.rmpupdate", 20, 4, "local", 100));
	ACCEPTED(&s, apply(&s, s.other, "snp.pvalidate", 22, 1, NULL, 0));
	REFUSED(&s, apply(&s, s.vm, "snp.rmpupdate", 0, 10, "local", 98), PROBLEM_FRAME_CONFLICT);
	cr_assert_str_eq(s.w.why.op, "snp.rmpupdate");
	cr_assert(s.w.why.frames == 4 && s.w.why.run_count == 1, "one run of frames, whatever its pages' states");
	cr_assert(s.w.why.runs[0].pfn == 100 && s.w.why.runs[0].count == 4 && s.w.why.runs[0].gfn == 20);
	cr_assert(pw_uuid_equal(&s.w.why.runs[0].vm, &s.other->id));
	scene_release(&s);
}

/* No architecture's table has such a row now; law.h says what it would do. */
static const struct arch_op again = {
	.name = "snp.again",
	.framed = true,
	.rule = "test",
	.vms = 0xff,
	.vms_rule = "test",
	.next = { 2, 2, 2, 2, 2, 2, 2 },
};

Test(ledger_arch, a_resident_page_is_named_with_its_own_frame_or_refused)
{
	struct scene s;

	scene_init(&s);
	cr_assert_str_eq(arch_laws[ARCH_SNP]->states[2].name, "Guest-Invalid");
	ACCEPTED(&s, world_apply(&s.w, s.host, s.vm, GFN_PAGE_IN, 10, 4, "local", 50));
	ACCEPTED(&s, apply_op(&s, s.vm, &again, 8, 8, "local", 48));
	cr_assert(s.changed && s.host->pools[0]->bound == 8);
	cr_assert_str_eq(state_of(s.vm, 12), "Guest-Invalid");
	REFUSED(&s, apply_op(&s, s.vm, &again, 12, 1, "local", 60), PROBLEM_GFN_TRANSITION);
	cr_assert(strstr(s.w.why.detail, "not on the frame"), "%s", s.w.why.detail);
	REFUSED(&s, apply_op(&s, s.vm, &again, 12, 1, "nowhere", 52), PROBLEM_GFN_TRANSITION);
	REFUSED(&s, apply_op(&s, s.other, &again, 12, 1, "local", 52), PROBLEM_FRAME_CONFLICT);
	scene_release(&s);
}

Test(ledger_arch, a_rollback_restores_every_state)
{
	struct scene s;
	undo_mark mark;
	char *before;

	scene_init(&s);
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 0, 1024, "local", 0));
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate", 0, 700, NULL, 0));
	ledger_commit(s.w.ledger);
	before = ledger_dump(s.w.ledger);
	mark = ledger_mark(s.w.ledger);
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate", 600, 300, NULL, 0));
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate_rescind", 5, 1, NULL, 0));
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 100, 800, NULL, 0));
	ACCEPTED(&s, world_apply(&s.w, s.host, s.vm, GFN_PAGE_OUT, 0, 100, NULL, 0));
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	ledger_rollback(s.w.ledger, mark);
	world_is_as(&s.w, before);
	scene_release(&s);
}

Test(ledger_arch, quarantine_and_a_conflict_do_not_care_about_states)
{
	struct frame_range r;
	struct scene s;

	scene_init(&s);
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 0, 64, "local", 0));
	for (uint64_t gfn = 0; gfn < 64; gfn += 2)
		ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate", gfn, 1, NULL, 0));
	r = (struct frame_range){ .pool = s.host->pools[0], .pfn = 0, .count = 64 };
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.host, &r, 1, &s.w.why));
	cr_assert(s.host->pools[0]->bound == 0 && s.host->pools[0]->quarantined == 64);
	cr_assert_str_eq(state_of(s.vm, 1), "Paged-Out");
	scene_release(&s);
}

Test(ledger_arch, runs_and_frames_break_where_the_state_changes)
{
	static const struct {
		uint64_t at, count;
		const char *state;
	} runs[] = { { 0, 3, "Guest-Invalid" }, { 3, 1, "Guest-Valid" }, { 4, 6, "Guest-Invalid" } };
	uint64_t gfn = 0, pfn = 0;
	struct frame_view f;
	struct gfn_view v;
	struct scene s;

	scene_init(&s);
	ACCEPTED(&s, apply(&s, s.vm, "snp.rmpupdate", 0, 10, "local", 40));
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate", 3, 1, NULL, 0));
	for (size_t i = 0; i < PW_ARRAY_LEN(runs); i++, gfn = v.gfn + v.count, pfn = f.pfn + f.count) {
		cr_assert(vm_next_run(s.vm, gfn, 4096, &v) && v.gfn == runs[i].at && v.count == runs[i].count);
		cr_assert_str_eq(v.arch_state, runs[i].state);
		cr_assert_eq(v.arch, i == 1 ? 0 : 1 + arch_state_find(arch_laws[ARCH_SNP], v.arch_state, v.state));
		cr_assert(pool_next_bound(s.w.ledger, s.host->pools[0], pfn, 4096, &f) && f.gfn == runs[i].at);
		cr_assert(f.count == runs[i].count && f.pfn == 40 + f.gfn);
		cr_assert_str_eq(f.arch_state, runs[i].state);
	}
	scene_release(&s);
}

Test(ledger_arch, a_digest_tells_states_apart)
{
	struct gfn_view run = { .count = 2048, .state = GFN_SECURE_OUT };
	uint64_t rest, moved;
	struct scene s;

	scene_init(&s);
	cr_assert_eq(vm_digest(s.vm, 0, 2048), digest_run(DIGEST_SEED, &run), "at rest the state adds nothing");
	ACCEPTED(&s, world_apply(&s.w, s.host, s.vm, GFN_PAGE_IN, 0, 2048, "local", 0));
	rest = vm_digest(s.vm, 0, 2048);
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate_rescind", 0, 2048, NULL, 0));
	moved = vm_digest(s.vm, 0, 2048);
	cr_assert_neq(moved, rest);
	run.state = GFN_SECURE_RESIDENT;
	run.arch = 1 + arch_state_find(arch_laws[ARCH_SNP], "Guest-Invalid", GFN_SECURE_RESIDENT);
	cr_assert_eq(moved, digest_run(DIGEST_SEED, &run), "as an agent computes it");
	ACCEPTED(&s, apply(&s, s.vm, "snp.pvalidate", 0, 2048, NULL, 0));
	cr_assert_eq(vm_digest(s.vm, 0, 2048), rest);
	scene_release(&s);
}

Test(ledger_arch, a_picture_keeps_states_and_none_that_the_architecture_lacks)
{
	const uint64_t out = GFN_ENTRY_OUT, in = GFN_ENTRY_RESIDENT, one = (uint64_t)1 << GFN_ENTRY_ARCH;
	const struct arch_law *snp = arch_laws[ARCH_SNP];
	uint64_t invalid, rest;
	struct scene s;
	struct vm *vm;

	scene_init(&s);
	vm = world_vm(&s.w, 12, s.host, slots, 2);
	vm->state = VM_TRANSIENT;
	vm->on_hardware = true;
	invalid = one * (1 + arch_state_find(snp, "Guest-Invalid", GFN_SECURE_RESIDENT));
	rest = one * (1 + (uint64_t)snp->rest[GFN_SECURE_RESIDENT]);
#define LOAD(entry) ledger_load_extent(s.w.ledger, vm, 0, 2, entry, &s.w.why)
	cr_assert_eq(LOAD(out | invalid), PROBLEM_INVALID_REQUEST, "a state of a resident page");
	cr_assert_eq(LOAD(in | rest), PROBLEM_INVALID_REQUEST, "at rest no bit is set");
	cr_assert_eq(LOAD(in | GFN_ENTRY_ARCH_ANY), PROBLEM_INVALID_REQUEST, "snp has no such state");
	cr_assert_eq(LOAD(in | (uint64_t)1 << 52), PROBLEM_INVALID_REQUEST);
	ACCEPTED(&s, LOAD(in | invalid));
	cr_assert_str_eq(state_of(vm, 1), "Guest-Invalid");
	ledger_commit(s.w.ledger);
	scene_release(&s);
}

Test(ledger_arch, the_check_sees_a_state_that_the_law_does_not_project)
{
	struct pw_err err;
	struct scene s;

	scene_init(&s);
	cr_assert_eq(tree_set(&s.vm->pages, 5, 1, GFN_ENTRY_OUT | GFN_ENTRY_ARCH_ANY), PW_OK);
	cr_assert_not(ledger_check(s.w.ledger, &err));
	cr_assert(strstr(err.msg, "architecture"), "%s", err.msg);
	cr_assert_eq(tree_set(&s.vm->pages, 5, 1, GFN_ENTRY_OUT), PW_OK);
	scene_release(&s);
}

Test(ledger_arch, a_vm_without_states_of_its_own_shows_none)
{
	struct host_spec host = host_spec_of(3, "boot-c", 0, 64);
	struct vm_spec spec = { .id = uuid_of(15), .arch = ARCH_KVM, .slots = slots, .slot_count = 1 };
	struct host_put put;
	struct frame_view f;
	struct scene s;
	struct vm *vm;

	scene_init(&s);
	host.arches = 1u << ARCH_KVM;
	ACCEPTED(&s, ledger_host_put(s.w.ledger, &host, &put, &s.w.why));
	spec.host = put.host;
	ACCEPTED(&s, ledger_vm_create(s.w.ledger, &spec, &vm, &s.w.why));
	world_vm_to(&s.w, vm, VM_SECURE);
	ACCEPTED(&s, world_apply(&s.w, put.host, vm, GFN_PAGE_IN, 0, 4, "local", 0));
	cr_assert_null(state_of(vm, 0));
	cr_assert(pool_next_bound(s.w.ledger, put.host->pools[0], 0, 64, &f) && !f.arch_state && f.count == 4);
	s.host = put.host;
	REFUSED(&s, apply(&s, vm, "snp.pvalidate", 0, 1, NULL, 0), PROBLEM_ARCH_UNSUPPORTED);
	scene_release(&s);
}
