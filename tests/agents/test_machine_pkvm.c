#include "agents/machine_pkvm.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/arch/law.h"

#define BASE   1000
#define FRAMES 4096

static const struct pw_uuid A = { { 1 } }, B = { { 2 } };
static struct pw_err err;

/* A backend, for what is asked of frames; and a model of its own, which tests drive directly. */
struct world {
	struct backend *backend;
	struct pw_mem mem;
	struct machine_pool pool;
	void *model;
	struct slot slots[2];
	struct machine_vm vm;
};

static struct pkvm *hyp(const struct world *x)
{
	return &((struct pkvm_host *)x->model)->hyp;
}

static void begin_at(struct world *x, const char *fault, uint64_t base)
{
	struct backend_options o = { .frames = FRAMES, .base_pfn = base, .fault = fault };

	*x = (struct world){ .pool = { base, FRAMES }, .slots = { { 0, 16, 1024 }, { 1, 4096, 64 } } };
	x->vm = (struct machine_vm){ .id = A, .slots = x->slots, .slot_count = 2 };
	cr_assert_eq(machine_open(&machine_pkvm, &o, &x->backend, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(machine_pkvm.open(machine_of_backend(x->backend), &x->pool, &x->mem, &x->model, &err), PW_OK);
	cr_assert_eq(machine_pkvm.vm_new(x->model, &x->vm, &err), PW_OK);
}

static void begin(struct world *x, const char *fault)
{
	begin_at(x, fault, BASE);
}

static void expect_sound(struct world *x)
{
	struct pw_err why = { 0 };

	cr_expect(machine_pkvm.check(x->model, &why), "%s", why.msg);
}

static void end(struct world *x)
{
	expect_sound(x);
	machine_pkvm.close(x->model);
	cr_expect_eq(x->mem.used, 0);
	x->backend->ops->close(x->backend);
}

static enum pw_status event(struct world *x, enum vm_event e)
{
	enum pw_status st = machine_pkvm.event(x->model, &x->vm, e, &err);

	if (st == PW_OK && !vm_step(x->vm.state, e, &x->vm.state))
		cr_assert_fail("no such event");
	expect_sound(x);
	return st;
}

/* Frame i of the pool for page i of the range, from `frame` on. */
static enum pw_status page_in(struct world *x, uint64_t gfn, uint64_t count, uint64_t frame)
{
	uint64_t pfns[FRAMES];

	for (uint64_t i = 0; i < count; i++)
		pfns[i] = x->pool.base + frame + i;
	return machine_pkvm.page_in(x->model, &x->vm, gfn, count, pfns, &err);
}

/* All runs of the VM: "16+4@3 " on frame 3, "+2out ", "shared", "normal", "POISON". */
struct text {
	char at[1 << 14];
};

static struct text state(const struct world *x)
{
	static const char *const names[GFN_STATE_COUNT] = { "normal", "@", "out", "shared" };
	struct text t = { 0 };
	size_t n = 0;

	for (size_t s = 0; s < x->vm.slot_count; s++) {
		uint64_t end = x->vm.slots[s].base + x->vm.slots[s].pages;
		struct backend_run run, more;

		for (uint64_t at = x->vm.slots[s].base; at < end; at += run.count) {
			run = machine_pkvm.run_at(x->model, &x->vm, at, end);
			while (at + run.count < end) {
				more = machine_pkvm.run_at(x->model, &x->vm, at + run.count, end);
				if (more.state != run.state || more.arch != run.arch ||
				    (run.pfn && more.pfn != run.pfn + run.count))
					break;
				run.count += more.count;
			}
			n += (size_t)snprintf(t.at + n, sizeof t.at - n, "%" PRIu64 "+%" PRIu64 "%s", run.gfn,
					      run.count, run.arch ? "POISON" : names[run.state]);
			if (run.state == GFN_SECURE_RESIDENT)
				n += (size_t)snprintf(t.at + n, sizeof t.at - n, "%" PRIu64, run.pfn - x->pool.base);
			n += (size_t)snprintf(t.at + n, sizeof t.at - n, " ");
		}
	}
	return t;
}

static void expect_state(struct world *x, const char *want)
{
	struct text t = state(x);

	cr_expect_str_eq(t.at, want);
	expect_sound(x);
}

/* No page of the pool is anybody's. */
static void expect_pool_free(struct world *x)
{
	uint64_t end = x->pool.base + x->pool.frames;
	struct pkvm_page p = pkvm_page_at(hyp(x), x->pool.base, end);

	cr_expect(p.joint == PKVM_A && p.count == x->pool.frames);
}

Test(machine_pkvm, a_life)
{
	struct world x;

	begin(&x, NULL);
	expect_state(&x, "16+1024normal 4096+64normal ");
	cr_assert_eq(event(&x, VM_INIT_START), PW_OK, "%s", err.msg);
	cr_assert_eq(page_in(&x, 20, 10, 0), PW_OK, "%s", err.msg);
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 24, 10, &err), PW_OK, "%s", err.msg);
	expect_state(&x, "16+4normal 20+4@0 24+10shared 34+1006normal 4096+64normal ");
	cr_assert_eq(machine_pkvm.page_out(x.model, &x.vm, 20, 2, &err), PW_OK);
	cr_assert_eq(machine_pkvm.unshare(x.model, &x.vm, 32, 4, &err), PW_OK);
	expect_state(&x, "16+4normal 20+2out 22+2@2 24+8shared 32+4out 36+1004normal 4096+64normal ");
	cr_assert_eq(event(&x, VM_INIT_DONE), PW_OK, "%s", err.msg);
	expect_state(&x, "16+6out 22+2@2 24+8shared 32+1008out 4096+64out ");
	cr_assert_eq(page_in(&x, 24, 4, 100), PW_OK, "unshare with frames: %s", err.msg);
	cr_assert_eq(page_in(&x, 20, 2, 0), PW_OK, "%s", err.msg);
	expect_state(&x, "16+4out 20+4@0 24+4@100 28+4shared 32+1008out 4096+64out ");
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 16, 12, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(machine_pkvm.unshare(x.model, &x.vm, 16, 1024, &err), PW_OK, "%s", err.msg);
	expect_state(&x, "16+1024out 4096+64out ");
	expect_pool_free(&x);
	cr_assert_eq(page_in(&x, 16, 1024, 7), PW_OK);
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 4096, 64, &err), PW_OK);
	cr_assert_eq(event(&x, VM_TERMINATE), PW_OK, "%s", err.msg);
	expect_state(&x, "16+1024normal 4096+64normal ");
	expect_pool_free(&x);
	cr_assert_eq(event(&x, VM_INIT_START), PW_OK, "and once more");
	cr_assert_eq(event(&x, VM_INIT_ABORT), PW_OK);
	machine_pkvm.vm_free(x.model, &x.vm);
	cr_assert_eq(machine_pkvm.vm_new(x.model, &x.vm, &err), PW_OK);
	end(&x);
}

/* The projections of the hypervisor's own states, whatever the ops did. */
Test(machine_pkvm, what_runs_say_is_what_the_hypervisor_has)
{
	const struct arch_law *law = arch_laws[ARCH_PKVM];
	struct world x;

	begin(&x, NULL);
	cr_assert(event(&x, VM_INIT_START) == PW_OK && event(&x, VM_INIT_DONE) == PW_OK);
	srand(4);
	for (unsigned step = 0; step < 300; step++) {
		uint64_t gfn = 16 + (uint64_t)rand() % 60, count = 1 + (uint64_t)rand() % 8;
		struct backend_run run = machine_pkvm.run_at(x.model, &x.vm, gfn, gfn + count);

		switch (rand() % 4) {
		case 0: cr_assert_eq(machine_pkvm.share(x.model, &x.vm, gfn, count, &err), PW_OK, "%s", err.msg); break;
		case 1: cr_assert_eq(machine_pkvm.unshare(x.model, &x.vm, gfn, count, &err), PW_OK); break;
		case 2:
			if (run.state != GFN_SECURE_RESIDENT)
				cr_assert_eq(page_in(&x, gfn, run.count, gfn), PW_OK, "%s", err.msg);
			break;
		default:
			if (run.state == GFN_SECURE_RESIDENT)
				cr_assert_eq(machine_pkvm.page_out(x.model, &x.vm, gfn, run.count, &err), PW_OK);
		}
		expect_sound(&x);
		for (uint64_t at = 16; at < 1040; at += run.count) {
			struct pkvm_leaf leaf = pkvm_leaf_at(machine_pkvm_vm(x.model, x.vm.guest), at, 1040);

			run = machine_pkvm.run_at(x.model, &x.vm, at, 1040);
			cr_assert(run.count <= leaf.count && run.gfn == at);
			cr_assert_eq(run.state, pkvm_project(PKVM_PROTECTED, leaf.state));
			cr_assert_str_eq(law->states[run.arch ? run.arch - 1 : law->rest[run.state]].name,
					 pkvm_page_state_name(leaf.state));
		}
	}
	end(&x);
}

/* L6: a frame that the host has lent to the secure world is not its to donate. */
Test(machine_pkvm, a_refused_frame_changes_nothing)
{
	static const uint64_t lent[] = { 0, 2, 5 };

	for (size_t i = 0; i < PW_ARRAY_LEN(lent); i++) {
		struct pkvm_call c = { .pfn = BASE + lent[i] };
		struct text before;
		struct pkvm_answer a;
		struct world x;

		begin(&x, NULL);
		cr_assert_eq(event(&x, VM_INIT_START), PW_OK);
		cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 18, 2, &err), PW_OK);
		cr_assert(pkvm_page_call(hyp(&x), PKVM_HSF, &c, &a) == PW_OK && a.code == PKVM_OK);
		before = state(&x);
		cr_assert_eq(page_in(&x, 16, 6, 0), PW_BACKEND);
		cr_expect(strstr(err.msg, "HDG of page 100") && strstr(err.msg, "state D") && strstr(err.msg, "-EPERM"),
			  "%s", err.msg);
		cr_expect_str_eq(state(&x).at, before.at);
		cr_assert(pkvm_page_call(hyp(&x), PKVM_HUF, &c, &a) == PW_OK && a.code == PKVM_OK);
		expect_pool_free(&x);
		cr_assert_eq(page_in(&x, 16, 6, 0), PW_OK, "it may succeed later: %s", err.msg);
		expect_state(&x, "16+6@0 22+1018normal 4096+64normal ");
		end(&x);
	}
}

static const struct give_up {
	const char *fault, *gfn;
} give_ups[] = { { "frame:1", "GFN 16" }, { "frame:4", "GFN 21" } };

Test(machine_pkvm, a_frame_that_is_not_given_up_changes_nothing)
{
	for (size_t i = 0; i < 2 * PW_ARRAY_LEN(give_ups); i++) {
		const struct give_up *g = &give_ups[i / 2];
		struct text before;
		struct world x;
		enum pw_status st;

		begin(&x, g->fault);
		cr_assert(event(&x, VM_INIT_START) == PW_OK && event(&x, VM_INIT_DONE) == PW_OK);
		cr_assert(page_in(&x, 16, 2, 0) == PW_OK && page_in(&x, 20, 6, 10) == PW_OK);
		before = state(&x);
		st = (i % 2 ? machine_pkvm.share : machine_pkvm.page_out)(x.model, &x.vm, 16, 10, &err);
		cr_expect_eq(st, PW_BACKEND);
		cr_expect(strstr(err.msg, "RLQ of") && strstr(err.msg, g->gfn) && strstr(err.msg, "SHARED_OWNED"), "%s",
			  err.msg);
		expect_state(&x, before.at);
		cr_assert_eq((i % 2 ? machine_pkvm.share : machine_pkvm.page_out)(x.model, &x.vm, 16, 10, &err), PW_OK);
		expect_state(&x, i % 2 ? "16+10shared 26+1014out 4096+64out " : "16+1024out 4096+64out ");
		expect_pool_free(&x);
		end(&x);
	}
}

static bool print_stuck(void *ctx, const struct backend_run *run)
{
	char *out = ctx;
	size_t n = strlen(out);

	snprintf(out + n, 1024 - n, "%" PRIu64 "+%" PRIu64 ": %s\n", run->pfn, run->count, run->why);
	return true;
}

Test(machine_pkvm, frames_that_do_not_come_back_are_kept_and_the_rest_goes_on)
{
	char stuck[1024] = "";
	struct world x;

	begin(&x, "frame:1,frame:2,frame:20");
	cr_assert(event(&x, VM_INIT_START) == PW_OK && page_in(&x, 16, 5, 0) == PW_OK);
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 30, 4, &err), PW_OK);
	cr_assert_eq(event(&x, VM_TERMINATE), PW_OK, "%s", err.msg);
	expect_state(&x, "16+1024normal 4096+64normal ");
	cr_assert_eq(x.backend->ops->read_stuck(x.backend, print_stuck, stuck, &err), PW_OK);
	cr_expect_str_eq(stuck,
			 "1000+1: FRC of page 1000 in state F (host NOPAGE, hyp NOPAGE): -EAGAIN (the VM is gone); "
			 "mem_protect.c, read\n"
			 "1001+1: FRC of page 1001 in state F (host NOPAGE, hyp NOPAGE): -EAGAIN (the VM is gone); "
			 "mem_protect.c, read\n");
	cr_assert_eq(event(&x, VM_INIT_START), PW_OK);
	cr_expect_eq(page_in(&x, 16, 3, 0), PW_BACKEND, "nobody's for ever");
	cr_expect(strstr(err.msg, "HDG of page 1000 in state F"), "%s", err.msg);
	cr_assert_eq(page_in(&x, 16, 3, 2), PW_OK, "the others came back: %s", err.msg);
	end(&x);
}

Test(machine_pkvm, poison_stays_until_the_vms_end)
{
	struct pkvm_call c = { .pfn = BASE + 2 };
	struct pkvm_answer a;
	struct world x;

	begin(&x, NULL);
	cr_assert(event(&x, VM_INIT_START) == PW_OK && event(&x, VM_INIT_DONE) == PW_OK);
	cr_assert_eq(page_in(&x, 16, 4, 0), PW_OK);
	cr_assert(pkvm_page_call(hyp(&x), PKVM_FRC, &c, &a) == PW_OK && a.code == PKVM_OK);
	expect_state(&x, "16+2@0 18+1POISON 19+1@3 20+1020out 4096+64out ");
	cr_expect_eq(page_in(&x, 18, 1, 2), PW_BACKEND);
	cr_expect(strstr(err.msg, "HDG"), "%s", err.msg);
	cr_expect_eq(machine_pkvm.share(x.model, &x.vm, 16, 4, &err), PW_BACKEND);
	cr_expect(strstr(err.msg, "GSH of GFN 18 in state POISON: -EHWPOISON"), "%s", err.msg);
	cr_expect_eq(machine_pkvm.unshare(x.model, &x.vm, 16, 4, &err), PW_OK, "it is secure and out");
	cr_expect_eq(machine_pkvm.page_out(x.model, &x.vm, 16, 4, &err), PW_OK);
	expect_state(&x, "16+2out 18+1POISON 19+1021out 4096+64out ");
	cr_assert(event(&x, VM_TERMINATE) == PW_OK && event(&x, VM_INIT_START) == PW_OK);
	cr_assert_eq(page_in(&x, 16, 4, 0), PW_OK, "%s", err.msg);
	end(&x);
}

Test(machine_pkvm, frames_that_are_no_hosts_are_refused_before_anything_changes)
{
	uint64_t pfns[] = { BASE + 5, BASE + 6, BASE + 1 };
	struct world x;

	begin(&x, NULL);
	cr_assert(event(&x, VM_INIT_START) == PW_OK && page_in(&x, 16, 2, 0) == PW_OK);
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 20, 1, &err), PW_OK);
	cr_expect_eq(machine_pkvm.page_in(x.model, &x.vm, 20, 3, pfns, &err), PW_BACKEND, "the third is a guest's");
	cr_expect(strstr(err.msg, "HDG of page 1001 in state F"), "%s", err.msg);
	expect_state(&x, "16+2@0 18+2normal 20+1shared 21+1019normal 4096+64normal ");
	cr_expect_eq(page_in(&x, 15 + 2, 1, 9), PW_BACKEND, "taken");
	end(&x);
}

Test(machine_pkvm, slots_come_and_go)
{
	struct slot more = { 2, 8192, 32 };
	struct slot slots[3];
	struct world x;

	begin(&x, "frame:52");
	cr_assert(event(&x, VM_INIT_START) == PW_OK && event(&x, VM_INIT_DONE) == PW_OK);
	for (unsigned round = 0; round < 3; round++) {
		slots[0] = x.slots[0];
		slots[1] = x.slots[1];
		slots[2] = more;
		x.vm.slots = slots;
		x.vm.slot_count = 3;
		cr_assert_eq(machine_pkvm.slot_add(x.model, &x.vm, &more, &err), PW_OK);
		cr_assert_eq(page_in(&x, 8192, 16, 0), PW_OK, "%s", err.msg);
		cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 8200, 24, &err), PW_OK);
		expect_state(&x, "16+1024out 4096+64out 8192+8@0 8200+24shared ");
		cr_assert_eq(machine_pkvm.slot_remove(x.model, &x.vm, &more, &err), PW_OK, "%s", err.msg);
		x.vm.slot_count = 2;
		expect_state(&x, "16+1024out 4096+64out ");
		expect_pool_free(&x);
	}
	cr_assert_eq(machine_pkvm.slot_add(x.model, &x.vm, &more, &err), PW_OK);
	x.vm.slot_count = 3;
	cr_assert(page_in(&x, 8192, 4, 0) == PW_OK);
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 8200, 4, &err), PW_OK);
	cr_expect_eq(machine_pkvm.slot_remove(x.model, &x.vm, &more, &err), PW_BACKEND, "a frame is refused");
	expect_state(&x, "16+1024out 4096+64out 8192+4@0 8196+4out 8200+4shared 8204+20out ");
	more.pages = TREE_PAGES;
	cr_expect_eq(machine_pkvm.slot_add(x.model, &x.vm, &more, &err), PW_BUSY, "no such memory");
	x.vm.slots = x.slots;
	end(&x);
}

Test(machine_pkvm, a_slot_that_comes_again_is_as_new)
{
	struct world x;

	begin(&x, NULL);
	cr_assert(event(&x, VM_INIT_START) == PW_OK && page_in(&x, 4096, 4, 0) == PW_OK);
	cr_assert_eq(machine_pkvm.page_out(x.model, &x.vm, 4096, 2, &err), PW_OK);
	cr_assert_eq(machine_pkvm.unshare(x.model, &x.vm, 4110, 3, &err), PW_OK);
	expect_state(&x, "16+1024normal 4096+2out 4098+2@2 4100+10normal 4110+3out 4113+47normal ");
	cr_assert_eq(machine_pkvm.slot_remove(x.model, &x.vm, &x.slots[1], &err), PW_OK, "%s", err.msg);
	cr_assert_eq(machine_pkvm.slot_add(x.model, &x.vm, &x.slots[1], &err), PW_OK, "%s", err.msg);
	expect_state(&x, "16+1024normal 4096+64normal ");
	end(&x);
}

Test(machine_pkvm, a_pool_is_anywhere)
{
	static const uint64_t bases[] = { 0, 1, 511, TREE_PAGES / 2, TREE_PAGES - FRAMES - 1, TREE_PAGES - FRAMES };

	for (size_t i = 0; i < PW_ARRAY_LEN(bases); i++) {
		struct world x;

		begin_at(&x, NULL, bases[i]);
		cr_assert_eq(event(&x, VM_INIT_START), PW_OK, "%s", err.msg);
		cr_assert_eq(page_in(&x, 16, 1024, 0), PW_OK, "%s", err.msg);
		cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 4096, 64, &err), PW_OK, "%s", err.msg);
		cr_assert_eq(event(&x, VM_TERMINATE), PW_OK);
		expect_pool_free(&x);
		end(&x);
	}
}

Test(machine_pkvm, pools_that_make_no_sense_are_refused)
{
	static const struct machine_pool bad[] = { { 0, 0 }, { 0, TREE_PAGES }, { TREE_PAGES, 1 }, { UINT64_MAX, 2 } };
	struct pw_mem mem = { 0 };
	void *model;

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++)
		cr_expect_eq(machine_pkvm.open(NULL, &bad[i], &mem, &model, &err), PW_INVALID);
	cr_expect_eq(mem.used, 0);
}

Test(machine_pkvm, the_table_of_vms_is_full_at_255)
{
	static struct machine_vm vms[PKVM_VMS_MAX];
	struct world x;

	begin(&x, NULL);
	for (unsigned i = 0; i < PKVM_VMS_MAX; i++) {
		vms[i] = (struct machine_vm){ .id = B };
		cr_assert_eq(machine_pkvm.vm_new(x.model, &vms[i], &err), PW_OK);
		cr_assert_eq(machine_pkvm.event(x.model, &vms[i], VM_INIT_START, &err), PW_OK, "%s", err.msg);
		vms[i].state = VM_TRANSIENT;
	}
	cr_expect_eq(event(&x, VM_INIT_START), PW_BUSY);
	cr_expect(strstr(err.msg, "-ENOMEM"), "%s", err.msg);
	cr_assert_eq(machine_pkvm.event(x.model, &vms[99], VM_INIT_ABORT, &err), PW_OK);
	vms[99].state = VM_NORMAL;
	cr_expect_eq(event(&x, VM_INIT_START), PW_OK);
	end(&x);
}

/* One allocation fails, or all from it on: the op then has changed nothing, and succeeds when it is said again. */
struct stingy {
	bool nodes; /* of trees, or all else */
	bool for_good;
	unsigned calls, fail_at;
};

static void *stingy_alloc(void *ctx, size_t size)
{
	struct stingy *s = ctx;

	bool fails = s->for_good ? s->calls >= s->fail_at : s->calls == s->fail_at;

	if ((size == TREE_NODE_BYTES) != s->nodes)
		return malloc(size);
	s->calls++;
	return fails ? NULL : malloc(size);
}

static void stingy_free(void *ctx, void *p)
{
	free(p);
}

#define SCENES 15
static enum pw_status scene(struct world *x, unsigned n)
{
	uint64_t scattered[256];

	for (uint64_t i = 0; i < 256; i++)
		scattered[i] = BASE + 1024 + (i * 37) % 2048;
	switch (n) {
	case 0: return event(x, VM_INIT_START);
	case 1: return page_in(x, 16, 1000, 0);
	case 2: return machine_pkvm.share(x->model, &x->vm, 500, 400, &err);
	case 3: return machine_pkvm.page_in(x->model, &x->vm, 600, 256, scattered, &err);
	case 4: return machine_pkvm.page_out(x->model, &x->vm, 100, 3, &err);
	case 5: return page_in(x, 4100, 20, 3500);
	case 6: return machine_pkvm.share(x->model, &x->vm, 4110, 40, &err);
	case 7: return machine_pkvm.unshare(x->model, &x->vm, 4140, 15, &err);
	case 8: return machine_pkvm.slot_remove(x->model, &x->vm, &x->slots[1], &err);
	case 9: return machine_pkvm.slot_add(x->model, &x->vm, &x->slots[1], &err);
	case 10: return machine_pkvm.unshare(x->model, &x->vm, 16, 1024, &err);
	case 11: return event(x, VM_INIT_DONE);
	case 12: return machine_pkvm.share(x->model, &x->vm, 16, 1024, &err);
	case 13: return page_in(x, 700, 3, 5);
	default: return event(x, VM_TERMINATE);
	}
}

/* The same world on that allocator. */
static void begin_on(struct world *x, struct stingy *s, const char *fault)
{
	begin(x, fault);
	machine_pkvm.close(x->model);
	x->mem = (struct pw_mem){ stingy_alloc, stingy_free, s, 0, 0 };
	cr_assert_eq(machine_pkvm.open(machine_of_backend(x->backend), &x->pool, &x->mem, &x->model, &err), PW_OK);
	cr_assert_eq(machine_pkvm.vm_new(x->model, &x->vm, &err), PW_OK);
}

/* No scene has nodes at hand. The k-th allocation of one of them fails. Returns how many that scene has. */
static unsigned play(struct world *x, struct stingy *s, unsigned scene_that_fails, unsigned k)
{
	unsigned calls = 0;

	for (unsigned n = 0; n < SCENES; n++) {
		uint64_t digest = pkvm_digest(hyp(x));
		struct text before = state(x);
		enum pw_status st;

		arena_trim_to(&hyp(x)->arena, 0);
		arena_trim_to(&((struct pkvm_host *)x->model)->notes, 0);
		s->calls = 0;
		s->fail_at = n == scene_that_fails ? k : UINT32_MAX;
		st = scene(x, n);
		s->fail_at = UINT32_MAX;
		calls = n == scene_that_fails ? s->calls : calls;
		cr_assert_eq(st != PW_OK, n == scene_that_fails && k != UINT32_MAX, "scene %u: %s", n, err.msg);
		if (st == PW_OK)
			continue;
		cr_assert_eq(st, PW_NO_MEMORY, "%s", err.msg);
		expect_state(x, before.at);
		cr_expect_eq(pkvm_digest(hyp(x)), digest, "scene %u, allocation %u", n, k);
		cr_assert_eq(scene(x, n), PW_OK, "scene %u: %s", n, err.msg);
		expect_sound(x);
	}
	expect_pool_free(x);
	return calls;
}

static unsigned play_on(bool nodes, bool for_good, unsigned n, unsigned k)
{
	struct stingy s = { .fail_at = UINT32_MAX, .nodes = nodes, .for_good = for_good };
	struct world x;
	unsigned calls;

	begin_on(&x, &s, NULL);
	calls = play(&x, &s, n, k);
	end(&x);
	return calls;
}

/* From the last one back, where most has been done that is to be undone. */
static unsigned sweep(bool nodes, bool for_good)
{
	unsigned failures = 0;

	for (unsigned n = 0; n < SCENES; n++) {
		unsigned calls = play_on(nodes, for_good, n, UINT32_MAX);

		for (unsigned back = 0; back < calls; back += 1 + back / 8, failures++)
			play_on(nodes, for_good, n, calls - 1 - back);
	}
	return failures;
}

Test(machine_pkvm, any_allocation_may_fail_once)
{
	cr_expect_gt(sweep(true, false), 100);
	cr_expect_gt(sweep(false, false), 4);
}

Test(machine_pkvm, memory_may_run_out_for_good)
{
	cr_expect_gt(sweep(true, true), 100);
	cr_expect_gt(sweep(false, true), 4);
}

/* What a teardown needs for the frames that it leaves is there before it begins. */
Test(machine_pkvm, memory_may_run_out_in_a_teardown_with_stuck_frames)
{
	bool done = false;

	for (unsigned k = 0; !done; k++) {
		struct stingy s = { .fail_at = UINT32_MAX, .nodes = true, .for_good = true };
		char stuck[1024] = "";
		struct text before;
		struct world x;
		enum pw_status st;

		begin_on(&x, &s, "frame:100,frame:300,frame:600,frame:601,frame:900,frame:1000");
		cr_assert(event(&x, VM_INIT_START) == PW_OK && page_in(&x, 16, 1024, 24) == PW_OK);
		arena_trim_to(&hyp(&x)->arena, 0);
		before = state(&x);
		s.fail_at = s.calls + k;
		st = event(&x, VM_TERMINATE);
		done = st == PW_OK;
		cr_assert_eq(x.backend->ops->read_stuck(x.backend, print_stuck, stuck, &err), PW_OK);
		cr_expect_eq(done, stuck[0] != '\0');
		if (!done) {
			cr_assert_eq(st, PW_NO_MEMORY, "%s", err.msg);
			expect_state(&x, before.at);
			s.fail_at = UINT32_MAX;
			cr_assert_eq(event(&x, VM_TERMINATE), PW_OK, "%s", err.msg);
		}
		expect_state(&x, "16+1024normal 4096+64normal ");
		end(&x);
	}
}

static double seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

/* Runs, not pages: a GiB in blocks. The bound is wide, for slow machines. */
Test(machine_pkvm, a_gib_pages_in_at_once)
{
	enum { PAGES = 1 << 18, CHUNK = 1 << 16 };
	struct slot s = { 0, 0, PAGES };
	struct backend_vm_spec spec = { .id = A, .slots = &s, .slot_count = 1 };
	struct backend_options o = { .frames = PAGES + 1024, .base_pfn = 77 };
	uint64_t *pfns = calloc(CHUNK, sizeof *pfns);
	struct backend *b;
	double start;

	cr_assert(pfns && machine_open(&machine_pkvm, &o, &b, &err) == PW_OK);
	cr_assert_eq(b->ops->create_vm(b, &spec, &err), PW_OK);
	cr_assert_eq(b->ops->vm_event(b, &A, VM_INIT_START, &err), PW_OK);
	start = seconds();
	for (uint64_t at = 0; at < PAGES; at += CHUNK) {
		cr_assert_eq(b->ops->reserve(b, &A, at, CHUNK, pfns, &err), PW_OK, "%s", err.msg);
		cr_assert_eq(b->ops->page_in(b, &A, at, CHUNK, pfns, &err), PW_OK, "%s", err.msg);
	}
	cr_log_info("%.1f ms", (seconds() - start) * 1e3);
	cr_expect_lt(seconds() - start, 0.5);
	cr_expect(machine_check(machine_of_backend(b), &err), "%s", err.msg);
	b->ops->close(b);
	free(pfns);
}

static bool count_run(void *ctx, const struct backend_run *run)
{
	uint64_t *h = ctx;

	*h = *h * 31 + run->gfn * 7 + run->count * 5 + run->pfn * 3 + run->state + run->arch;
	return true;
}

/* The machine outlives its agent: state file, stuck frames and all. */
Test(machine_pkvm, the_state_file_leads_to_the_same_machine)
{
	char path[] = "/tmp/machine_pkvm.XXXXXX";
	int fd = mkstemp(path);
	struct slot s = { 0, 0, 256 };
	struct backend_vm_spec spec[2] = { { .id = A, .slots = &s, .slot_count = 1 },
					   { .id = B, .slots = &s, .slot_count = 1 } };
	struct backend_options o = { .frames = 512, .base_pfn = 5, .state = path, .fault = "frame:6" };
	uint64_t pfns[64], before = 0, after = 0;
	char was[1024] = "", is[1024] = "";
	struct backend *b;

	cr_assert(fd >= 0 && close(fd) == 0 && unlink(path) == 0);
	cr_assert_eq(machine_open(&machine_pkvm, &o, &b, &err), PW_OK, "%s", err.msg);
	for (int i = 0; i < 2; i++) {
		cr_assert_eq(b->ops->create_vm(b, &spec[i], &err), PW_OK);
		cr_assert_eq(b->ops->vm_event(b, &spec[i].id, VM_INIT_START, &err), PW_OK);
		cr_assert_eq(b->ops->reserve(b, &spec[i].id, 0, 32, pfns, &err), PW_OK);
		cr_assert_eq(b->ops->page_in(b, &spec[i].id, 0, 32, pfns, &err), PW_OK, "%s", err.msg);
	}
	cr_assert_eq(b->ops->vm_event(b, &A, VM_TERMINATE, &err), PW_OK);
	cr_assert_eq(b->ops->share(b, &B, 100, 5, &err), PW_OK);
	cr_assert_eq(b->ops->vm_event(b, &B, VM_INIT_DONE, &err), PW_OK);
	cr_assert_eq(b->ops->share(b, &B, 3, 2, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(b->ops->read_state(b, &B, 0, 256, count_run, &before, &err), PW_OK);
	cr_assert_eq(b->ops->read_stuck(b, print_stuck, was, &err), PW_OK);
	cr_expect(was[0]);
	b->ops->close(b);
	o.fault = NULL;
	cr_assert_eq(machine_open(&machine_pkvm, &o, &b, &err), PW_OK, "%s", err.msg);
	cr_expect(machine_check(machine_of_backend(b), &err), "%s", err.msg);
	cr_assert_eq(b->ops->read_state(b, &B, 0, 256, count_run, &after, &err), PW_OK);
	cr_assert_eq(b->ops->read_stuck(b, print_stuck, is, &err), PW_OK);
	cr_expect_eq(before, after);
	cr_expect_str_eq(was, is);
	b->ops->close(b);
	unlink(path);
}

/* What vCPUs show. The rows of the exit table (docs/arch-pkvm.md), written out for the exits that occur here. */

static struct text seen(const struct world *x)
{
	struct backend_exit e;
	struct text t = { 0 };
	size_t n;

	if (!machine_pkvm.last_exit(x->model, &x->vm, 0, &e))
		return t;
	n = (size_t)snprintf(t.at, sizeof t.at, "%s", e.exit);
	for (size_t i = 0; i < e.count; i++)
		n += (size_t)snprintf(t.at + n, sizeof t.at - n, "; %s=%" PRIx64, e.items[i].name, e.items[i].value);
	return t;
}

static void expect_seen(const struct world *x, const char *want)
{
	struct text t = seen(x);

	cr_expect_str_eq(t.at, want);
}

/* All that a guest can set, whatever the hypervisor has of it. */
static void fill_registers(struct world *x, uint64_t secret)
{
	struct pkvm_vm *vm = machine_pkvm_vm(x->model, x->vm.guest);
	struct pkvm_ctxt *c = &vm->vcpus[0]->state.ctxt;

	for (size_t i = 0; i < PW_ARRAY_LEN(c->x); i++)
		c->x[i] = secret + i;
	for (size_t i = 0; i < PKVM_SYSREG_COUNT; i++)
		c->sysregs[i] = secret + 64 + i;
	for (size_t i = 0; i < PW_ARRAY_LEN(c->v); i++)
		c->v[i][0] = c->v[i][1] = secret + 128 + i;
	c->sp = secret + 200;
	c->pc = secret + 204;
}

Test(machine_pkvm, the_host_sees_of_a_launch_the_first_wfi)
{
	struct world x;

	begin(&x, NULL);
	expect_seen(&x, "");
	cr_assert(event(&x, VM_INIT_START) == PW_OK && page_in(&x, 16, 8, 0) == PW_OK);
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 20, 2, &err), PW_OK);
	expect_seen(&x, "");
	fill_registers(&x, 0x5ec2e75ec2e70000);
	cr_assert_eq(event(&x, VM_INIT_DONE), PW_OK);
	expect_seen(&x, "WFI, WFE; pstate=105; ESR_EL2=6000000");
	cr_assert_eq(event(&x, VM_TERMINATE), PW_OK);
	expect_seen(&x, "");
	cr_assert(event(&x, VM_INIT_START) == PW_OK);
	expect_seen(&x, "");
	cr_assert(event(&x, VM_INIT_ABORT) == PW_OK);
	end(&x);
}

Test(machine_pkvm, the_host_sees_of_each_op_what_its_exit_shows)
{
	const char *faulted = "data abort, MEM_SHARE; ESR_EL2=90000047; fault IPA=17000";
	struct backend_exit e;
	struct world x;

	begin(&x, NULL);
	cr_assert(event(&x, VM_INIT_START) == PW_OK && page_in(&x, 16, 8, 0) == PW_OK);
	cr_assert_eq(event(&x, VM_INIT_DONE), PW_OK);
	fill_registers(&x, 0x5ec2e75ec2000000);
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 20, 4, &err), PW_OK);
	expect_seen(&x, faulted);
	cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 20, 4, &err), PW_OK, "nothing to do, and no exit");
	expect_seen(&x, faulted);
	fill_registers(&x, 0x5ec2e75ec1111100);
	expect_seen(&x, faulted); /* what the guest has now is not what the host saw */
	fill_registers(&x, 0x5ec2e75ec2000000);
	cr_assert_eq(machine_pkvm.page_out(x.model, &x.vm, 16, 2, &err), PW_OK);
	expect_seen(&x, "HVC MEM_RELINQUISH; x0=c6000009; x1=11000; x2=0; x3=0; ESR_EL2=5a000000");
	fill_registers(&x, 0x5ec2e75ec2000000);
	cr_assert_eq(page_in(&x, 16, 2, 0), PW_OK);
	expect_seen(
		&x,
		"data abort, not decodable; pstate=5; SCTLR=2000000; ESR_EL2=92000007; fault IPA=11000; fault VA=0");
	fill_registers(&x, 0x5ec2e75ec2000000);
	cr_assert_eq(machine_pkvm.unshare(x.model, &x.vm, 20, 4, &err), PW_OK);
	expect_seen(&x, "HVC MEM_RELINQUISH; x0=c6000009; x1=17000; x2=0; x3=0; ESR_EL2=5a000000");
	cr_expect(!machine_pkvm.last_exit(x.model, &x.vm, 1, &e), "there is but one");
	end(&x);
}

/* Whatever it does with whatever registers: the names are those of the exit table, and no other bit is there. */
Test(machine_pkvm, no_report_has_more_than_its_exit_shows)
{
	struct backend_exit e;
	struct world x;

	begin(&x, NULL);
	cr_assert(event(&x, VM_INIT_START) == PW_OK && event(&x, VM_INIT_DONE) == PW_OK);
	for (unsigned round = 0; round < 64; round++) {
		struct pkvm_exit_item item;
		uint64_t esr = 0;
		size_t shown = 0;
		int kind;

		fill_registers(&x, UINT64_C(0xfedcba9876540000) + ((uint64_t)round << 8));
		switch (round % 4) {
		case 0: cr_assert_eq(page_in(&x, 16, 4, 0), PW_OK, "%s", err.msg); break;
		case 1: cr_assert_eq(machine_pkvm.share(x.model, &x.vm, 16, 4, &err), PW_OK); break;
		case 2: cr_assert_eq(machine_pkvm.unshare(x.model, &x.vm, 16, 4, &err), PW_OK); break;
		case 3: cr_assert_eq(machine_pkvm.page_out(x.model, &x.vm, 16, 4, &err), PW_OK); break;
		}
		cr_assert(machine_pkvm.last_exit(x.model, &x.vm, 0, &e));
		for (kind = 0; strcmp(pkvm_exit_name((enum pkvm_exit)kind), e.exit) != 0; kind++)
			;
		for (size_t i = 0; i < e.count; i++)
			esr = strcmp(e.items[i].name, "ESR_EL2") == 0 ? e.items[i].value : esr;
		for (unsigned n = 0; pkvm_exit_item((enum pkvm_exit)kind, esr, n, &item); n++) {
			if (!item.bits)
				continue;
			cr_assert_lt(shown, e.count);
			cr_expect_str_eq(e.items[shown].name, item.name);
			cr_expect_eq(e.items[shown++].value & ~item.bits, 0);
		}
		cr_expect_eq(shown, e.count, "round %u: %s", round, e.exit);
	}
	end(&x);
}

/* The op of the backend, and of the wrapper that makes it fail; where an architecture has none, there is none. */
Test(machine_pkvm, the_backend_tells_of_exits)
{
	struct slot s = { 0, 0, 8 };
	struct backend_vm_spec spec = { .id = A, .slots = &s, .slot_count = 1 };
	struct backend *b, *other;
	struct backend_exit e;
	struct world x;

	begin(&x, NULL);
	cr_assert_eq(backend_faulty_wrap(x.backend, "last_exit:4", &b, &err), PW_OK, "%s", err.msg);
	x.backend = b;
	cr_expect_eq(b->ops->last_exit(b, &A, 0, &e, &err), PW_NOT_FOUND, "no such VM");
	cr_assert_eq(b->ops->create_vm(b, &spec, &err), PW_OK);
	cr_assert_eq(b->ops->vm_event(b, &A, VM_INIT_START, &err), PW_OK);
	cr_expect_eq(b->ops->last_exit(b, &A, 0, &e, &err), PW_NOT_FOUND, "it has not run");
	cr_assert_eq(b->ops->vm_event(b, &A, VM_INIT_DONE, &err), PW_OK);
	cr_assert_eq(b->ops->last_exit(b, &A, 0, &e, &err), PW_OK, "%s", err.msg);
	cr_expect_str_eq(e.exit, "WFI, WFE");
	cr_expect_eq(e.count, 2);
	cr_expect_eq(b->ops->last_exit(b, &A, 0, &e, &err), PW_BACKEND);
	cr_expect_eq(b->ops->last_exit(b, &A, 1, &e, &err), PW_NOT_FOUND, "no such vCPU");
	cr_assert_eq(machine_open(&machine_pef, &(struct backend_options){ .frames = 8 }, &other, &err), PW_OK);
	cr_expect_null(other->ops->last_exit);
	cr_assert_eq(backend_faulty_wrap(other, "share:1", &other, &err), PW_OK);
	cr_expect_null(other->ops->last_exit);
	other->ops->close(other);
	end(&x);
}
