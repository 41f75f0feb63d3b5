/* The emulated SEV-SNP machine: what its RMP holds after each op, and that a failed op leaves no trace. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/machine_impl.h"
#include "agents/snp_host.h"
#include "engine/arch/law.h"
#include "tests/lib/backend_steps.h"

#define PAGES 4096 /* of a VM */
#define LARGE ((uint64_t)SNP_LARGE)

static const struct pw_uuid A = { { 1 } }, B = { { 2 } };

static struct backend *open_at(uint64_t base, uint64_t frames, const char *fault)
{
	struct backend_options o = { .frames = frames, .base_pfn = base, .fault = fault };
	struct backend *b = NULL;

	cr_assert_eq(machine_open(&machine_snp, &o, &b, &step_err), PW_OK, "%s", step_err.msg);
	return b;
}

static struct snp_host *host(struct backend *b)
{
	return machine_of_backend(b)->firmware;
}

static struct snp *rmp(struct backend *b)
{
	return &host(b)->m;
}

static struct pw_mem *memory(struct backend *b)
{
	return &machine_of_backend(b)->mem;
}

static void sound(struct backend *b)
{
	struct pw_err why = { 0 };

	cr_assert(machine_check(machine_of_backend(b), &why), "%s", why.msg);
}

static void done(struct backend *b)
{
	sound(b);
	b->ops->close(b);
}

static struct backend_run run_at(struct backend *b, const struct pw_uuid *id, uint64_t gfn)
{
	struct backend_run run;

	cr_assert(machine_run_at(machine_of_backend(b), machine_find(machine_of_backend(b), id), gfn, gfn + 1, &run));
	return run;
}

static uint64_t pfn_of(struct backend *b, const struct pw_uuid *id, uint64_t gfn)
{
	struct backend_run run = run_at(b, id, gfn);

	cr_assert_eq(run.state, GFN_SECURE_RESIDENT);
	return run.pfn;
}

static struct snp_entry entry_of(struct backend *b, uint64_t pfn)
{
	struct snp_entry e;

	snp_read(rmp(b), pfn, &e);
	return e;
}

static const struct snp_host_guest *guest(struct backend *b, const struct pw_uuid *id)
{
	return machine_find(machine_of_backend(b), id)->guest;
}

static void expect(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count, enum gfn_state s)
{
	for (uint64_t i = gfn; i < gfn + count; i++) {
		struct backend_run run = run_at(b, id, i);

		cr_assert_eq(run.state, s, "GFN %" PRIu64 " is %s", i, gfn_state_name(run.state));
		cr_assert_eq(run.arch, 0, "pages are at rest between ops");
		if (s == GFN_SECURE_RESIDENT) {
			const char *rest = arch_laws[ARCH_SNP]->states[arch_laws[ARCH_SNP]->rest[s]].name;

			cr_assert_str_eq(snp_state_name(snp_state(rmp(b), run.pfn)), rest);
			cr_assert_eq(entry_of(b, run.pfn).gfn, i);
			cr_assert_eq(entry_of(b, run.pfn).asid, guest(b, id)->asid);
		}
	}
	sound(b);
}

/* How many frames of the pool are not the hypervisor's. */
static uint64_t taken(struct backend *b)
{
	const struct machine_pool *pool = &host(b)->pool;
	struct snp_run run;
	uint64_t n = 0;

	for (uint64_t at = pool->base; at < pool->base + pool->frames; at += run.count) {
		run = snp_run_at(rmp(b), at, pool->base + pool->frames);
		if (run.state != SNP_HYPERVISOR)
			n += run.count;
	}
	return n;
}

/* Frames beside the pool that firmware has. */
static uint64_t own_taken(struct backend *b)
{
	const struct snp_range *own = &host(b)->own;
	struct snp_run run;
	uint64_t n = 0;

	for (uint64_t at = own->first; at < own->first + own->count; at += run.count) {
		run = snp_run_at(rmp(b), at, own->first + own->count);
		if (run.state != SNP_HYPERVISOR)
			n += run.count;
	}
	return n;
}

Test(machine_snp, a_vm_lives_as_kvm_drives_it)
{
	struct backend *b = open_at(1 << 20, 8192, NULL);
	uint64_t own = own_taken(b), context;
	const struct snp_guest *g;

	step_make_vm(b, &A, PAGES);
	expect(b, &A, 0, PAGES, GFN_NORMAL);
	cr_assert_eq(rmp(b)->guest_count, 0, "a normal VM has no context");
	step_event(b, &A, VM_INIT_START);
	g = snp_guest(rmp(b), guest(b, &A)->context);
	cr_assert(g && g->state == SNP_GUEST_LAUNCH && g->asid == guest(b, &A)->asid);
	step_in(b, &A, 16, 8);
	expect(b, &A, 16, 8, GFN_SECURE_RESIDENT);
	step_event(b, &A, VM_INIT_DONE);
	context = guest(b, &A)->context;
	g = snp_guest(rmp(b), context);
	cr_assert(g && g->state == SNP_GUEST_RUNNING);
	cr_assert(entry_of(b, guest(b, &A)->vmsa).vmsa);
	expect(b, &A, 0, 16, GFN_SECURE_OUT);
	step_in(b, &A, 0, 16);
	expect(b, &A, 0, 24, GFN_SECURE_RESIDENT);
	cr_assert_eq(taken(b), 24);
	step_event(b, &A, VM_TERMINATE);
	expect(b, &A, 0, PAGES, GFN_NORMAL);
	cr_assert_eq(taken(b), 0);
	cr_assert_eq(own_taken(b), own, "contexts, VMSA and metadata pages came back");
	cr_assert_eq(rmp(b)->guest_count, 0);
	step_event(b, &A, VM_INIT_START);
	cr_assert_eq(guest(b, &A)->context, context, "the lowest frame comes first");
	done(b);
}

Test(machine_snp, aligned_stretches_become_large_pages)
{
	struct backend *b = open_at(1000, 8192, NULL);

	step_make_vm(b, &A, PAGES);
	step_event(b, &A, VM_INIT_START);
	step_in(b, &A, LARGE, LARGE);
	step_event(b, &A, VM_INIT_DONE);
	step_in(b, &A, 2 * LARGE, 2 * LARGE);
	step_in(b, &A, 5 * LARGE + 1, LARGE);
	for (uint64_t i = 1; i < 4; i++)
		cr_assert_eq(entry_of(b, pfn_of(b, &A, i * LARGE)).size, SNP_2M);
	cr_assert_eq(entry_of(b, pfn_of(b, &A, 5 * LARGE + 1)).size, SNP_4K);
	expect(b, &A, LARGE, 3 * LARGE, GFN_SECURE_RESIDENT);
	expect(b, &A, 5 * LARGE + 1, LARGE, GFN_SECURE_RESIDENT);
	done(b);
}

Test(machine_snp, a_large_page_is_smashed_when_a_part_of_it_goes)
{
	struct backend *b = open_at(0, 8192, NULL);
	uint64_t pfn;

	step_make_secure(b, &A, PAGES);
	step_in(b, &A, 0, 2 * LARGE);
	pfn = pfn_of(b, &A, 0);
	step_share(b, &A, 7, 2);
	expect(b, &A, 7, 2, GFN_SHARED);
	expect(b, &A, 0, 7, GFN_SECURE_RESIDENT);
	expect(b, &A, 9, 2 * LARGE - 9, GFN_SECURE_RESIDENT);
	cr_assert_eq(entry_of(b, pfn).size, SNP_4K);
	cr_assert_eq(snp_state(rmp(b), pfn + 7), SNP_HYPERVISOR);
	cr_assert_eq(entry_of(b, pfn + LARGE).size, SNP_2M, "its neighbour is not");
	step_share(b, &A, LARGE, LARGE);
	cr_assert_eq(taken(b), LARGE - 2);
	cr_assert_eq(b->ops->unshare(b, &A, 0, 2 * LARGE, &step_err), PW_OK);
	expect(b, &A, 7, 2, GFN_SECURE_OUT);
	expect(b, &A, 9, 1, GFN_SECURE_RESIDENT);
	done(b);
}

Test(machine_snp, pages_are_swapped_out_and_in)
{
	struct backend *b = open_at(0, 8192, NULL);
	uint64_t own;

	step_make_secure(b, &A, PAGES);
	own = own_taken(b);
	step_in(b, &A, 3, 100);
	step_out(b, &A, 3, 100);
	expect(b, &A, 3, 100, GFN_SECURE_OUT);
	cr_assert_eq(taken(b), 0);
	cr_assert_eq(rmp(b)->md_count, 100);
	cr_assert_eq(own_taken(b), own + 2, "64 entries a page");
	step_in(b, &A, 50, 10);
	expect(b, &A, 50, 10, GFN_SECURE_RESIDENT);
	cr_assert_eq(rmp(b)->md_count, 90);
	step_share(b, &A, 3, 20);
	expect(b, &A, 3, 20, GFN_SHARED);
	step_in(b, &A, 23, 27);
	step_in(b, &A, 60, 43);
	cr_assert_eq(own_taken(b), own, "empty metadata pages go");
	cr_assert_eq(rmp(b)->md_count, 0);
	done(b);
}

Test(machine_snp, large_pages_come_back_large_from_swap)
{
	struct backend *b = open_at(0, 8192, NULL);

	step_make_vm(b, &A, PAGES);
	step_event(b, &A, VM_INIT_START);
	step_in(b, &A, 0, 2 * LARGE);
	step_out(b, &A, 0, 2 * LARGE);
	expect(b, &A, 0, 2 * LARGE, GFN_SECURE_OUT);
	cr_assert_eq(rmp(b)->md_count, 2 * LARGE);
	step_in(b, &A, 0, LARGE);
	cr_assert_eq(entry_of(b, pfn_of(b, &A, 0)).size, SNP_2M);
	step_in(b, &A, LARGE + 1, 3);
	expect(b, &A, LARGE + 1, 3, GFN_SECURE_RESIDENT);
	cr_assert_eq(rmp(b)->md_count, LARGE - 3);
	step_event(b, &A, VM_INIT_ABORT);
	cr_assert_eq(rmp(b)->md_count, 0);
	cr_assert_eq(taken(b), 0);
	done(b);
}

/* Stuck frames. */

struct stuck {
	uint64_t pfns[8];
	size_t count;
	char why[256];
};

static bool see_stuck(void *ctx, const struct backend_run *run)
{
	struct stuck *s = ctx;

	for (uint64_t i = 0; i < run->count; i++)
		s->pfns[s->count++] = run->pfn + i;
	snprintf(s->why, sizeof s->why, "%s", run->why);
	return true;
}

static struct stuck stuck_of(struct backend *b)
{
	struct stuck s = { 0 };

	cr_assert_eq(b->ops->read_stuck(b, see_stuck, &s, &step_err), PW_OK);
	return s;
}

Test(machine_snp, a_frame_that_does_not_come_back_is_kept_and_the_others_go)
{
	struct backend *b = open_at(4096, 8192, "frame:5,frame:600");
	unsigned asid;
	struct stuck s;
	uint64_t pfn;

	step_make_secure(b, &A, PAGES);
	step_in(b, &A, 0, 2 * LARGE);
	pfn = pfn_of(b, &A, 0);
	asid = guest(b, &A)->asid;
	step_event(b, &A, VM_TERMINATE);
	s = stuck_of(b);
	cr_assert_eq(s.count, 2);
	cr_assert(s.pfns[0] == pfn + 4 && s.pfns[1] == pfn + 599);
	cr_assert(strstr(s.why, "FAIL_INUSE") && strstr(s.why, "Guest-Valid") && strstr(s.why, "(MS)"), "%s", s.why);
	cr_assert_eq(taken(b), 2);
	cr_assert_eq(rmp(b)->pages[asid], 2);
	sound(b);
	for (int i = 0; i < 1100; i++) { /* all ASIDs, and past a flush */
		step_make_vm(b, &B, 8);
		step_event(b, &B, VM_INIT_START);
		cr_assert_neq(guest(b, &B)->asid, asid, "its counter is not 0");
		step_event(b, &B, VM_INIT_DONE);
		step_event(b, &B, VM_TERMINATE);
		cr_assert_eq(b->ops->destroy_vm(b, &B, &step_err), PW_OK);
	}
	done(b);
}

Test(machine_snp, asids_run_out)
{
	struct backend *b = open_at(0, 64, NULL);
	struct pw_uuid id = { { 7 } };
	enum pw_status st = PW_OK;
	unsigned n = 0;

	for (; st == PW_OK && n < 2000; n++) {
		id.b[1] = (uint8_t)n;
		id.b[2] = (uint8_t)(n >> 8);
		step_make_vm(b, &id, 1);
		st = b->ops->vm_event(b, &id, VM_INIT_START, &step_err);
	}
	cr_assert_eq(st, PW_BUSY);
	cr_assert_eq(n - 1, rmp(b)->max_asid);
	cr_assert(strstr(step_err.msg, "ASIDs"));
	done(b);
}

/* L6. */

struct picture {
	uint64_t rmp, pages, frames;
};

static uint64_t pages_digest(struct backend *b, const struct pw_uuid *id)
{
	uint64_t h = 0;
	struct backend_run run;
	struct machine *x = machine_of_backend(b);

	for (uint64_t at = 0; machine_whole_run_at(x, machine_find(x, id), at, TREE_PAGES, &run);
	     at = run.gfn + run.count)
		h = (((h * 31 + run.gfn) * 31 + run.count) * 31 + run.state) * 31 + run.pfn;
	return h;
}

static struct picture picture_of(struct backend *b)
{
	return (struct picture){ snp_digest(rmp(b)), pages_digest(b, &A), taken(b) };
}

static void expect_same(struct backend *b, const struct picture *before, const char *what)
{
	struct picture now = picture_of(b);

	cr_assert_eq(now.pages, before->pages, "%s: pages", what);
	cr_assert_eq(now.frames, before->frames, "%s: frames", what);
	cr_assert_eq(now.rmp, before->rmp, "%s: RMP", what);
	cr_assert_eq(stuck_of(b).count, 0, "%s: stuck", what);
}

static void expect_unchanged(struct backend *b, const struct picture *before, const char *what)
{
	expect_same(b, before, what);
	sound(b);
}

Test(machine_snp, a_refused_frame_leaves_every_page_as_it_was)
{
	struct backend *b = open_at(0, 8192, "frame:300,frame:700,frame:1004");
	struct picture before;

	step_make_secure(b, &A, PAGES);
	step_in(b, &A, 0, LARGE);
	before = picture_of(b);
	cr_assert_eq(b->ops->share(b, &A, 0, LARGE, &step_err), PW_BACKEND);
	cr_assert(strstr(step_err.msg, "GFN 299") && strstr(step_err.msg, "FAIL_INUSE"), "%s", step_err.msg);
	expect_unchanged(b, &before, "share");
	cr_assert_eq(b->ops->page_out(b, &A, 0, LARGE, &step_err), PW_BACKEND);
	cr_assert(strstr(step_err.msg, "GFN 399"), "%s", step_err.msg);
	expect_unchanged(b, &before, "page_out");
	cr_assert_eq(b->ops->unmap_slot(b, &A, 0, &step_err), PW_BACKEND);
	expect_unchanged(b, &before, "unmap_slot");
	step_share(b, &A, 0, LARGE);
	cr_assert_eq(taken(b), 0);
	done(b);
}

Test(machine_snp, a_frame_that_is_anothers_is_refused_and_both_owners_are_named)
{
	struct backend *b = open_at(0, 8192, NULL);
	uint64_t pfns[6];
	struct picture before;

	step_make_vm(b, &A, PAGES);
	step_event(b, &A, VM_INIT_START);
	for (int secure = 0; secure < 2; secure++) {
		struct snp_rmpupdate u = { .assigned = true, .asid = 77, .gfn = 5 };
		enum snp_code code;

		cr_assert_eq(b->ops->reserve(b, &A, 10, 6, pfns, &step_err), PW_OK);
		u.pfn = pfns[4];
		cr_assert(snp_rmpupdate(rmp(b), &u, &code) == PW_OK && code == SNP_OK);
		before = picture_of(b);
		cr_assert_eq(b->ops->page_in(b, &A, 10, 6, pfns, &step_err), PW_BACKEND);
		cr_assert(strstr(step_err.msg, "ASID 77, GFN 5") && strstr(step_err.msg, "GFN 14") &&
				  strstr(step_err.msg, "L1"),
			  "%s", step_err.msg);
		expect_unchanged(b, &before, "page_in");
		u.assigned = false;
		u.asid = 0;
		u.gfn = 0;
		cr_assert(snp_rmpupdate(rmp(b), &u, &code) == PW_OK && code == SNP_OK);
		cr_assert_eq(b->ops->page_in(b, &A, 10, 6, pfns, &step_err), PW_OK, "%s", step_err.msg);
		step_share(b, &A, 10, 6);
		if (!secure)
			step_event(b, &A, VM_INIT_DONE);
	}
	done(b);
}

/* Makes a guest's page immutable behind the machine's back: firmware has it, and RMPUPDATE is refused. */
static void hold(struct backend *b, uint64_t gfn, bool on)
{
	uint64_t pfn = pfn_of(b, &A, gfn);
	struct snp_entry e = entry_of(b, pfn);
	struct snp_rmpupdate u = {
		.pfn = pfn, .assigned = true, .immutable = true, .size = e.size, .asid = e.asid, .gfn = gfn
	};
	struct snp_cmd c = { .op = SNP_CMD_PAGE_RECLAIM, .pfn = pfn, .size = e.size };
	enum snp_status status = SNP_SUCCESS;
	enum snp_code code = SNP_OK;

	if (on)
		cr_assert_eq(snp_rmpupdate(rmp(b), &u, &code), PW_OK);
	else
		cr_assert_eq(snp_command(rmp(b), &c, &status), PW_OK);
	cr_assert(code == SNP_OK && status == SNP_SUCCESS);
}

Test(machine_snp, what_fails_half_way_is_undone_exactly)
{
	const uint64_t last = 4 * LARGE - 1, first = 100;
	struct backend *b = open_at(0, 8192, NULL);
	struct picture before;

	step_make_secure(b, &A, PAGES);
	step_in(b, &A, 0, 3 * LARGE);
	step_in(b, &A, 3 * LARGE + 1, LARGE - 1);
	hold(b, last, true);
	before = picture_of(b);
	cr_assert_eq(b->ops->share(b, &A, first, last + 1 - first, &step_err), PW_BACKEND);
	cr_assert(strstr(step_err.msg, "GFN 2047") && strstr(step_err.msg, "Pre-Swap"), "%s", step_err.msg);
	expect_same(b, &before, "share");
	cr_assert_eq(b->ops->page_out(b, &A, first, last + 1 - first, &step_err), PW_BACKEND);
	cr_assert(strstr(step_err.msg, "GFN 2047"), "%s", step_err.msg);
	expect_same(b, &before, "page_out");
	cr_assert_eq(entry_of(b, pfn_of(b, &A, 0)).size, SNP_2M, "what was smashed is whole again");
	hold(b, last, false);
	hold(b, 2 * LARGE, true);
	before = picture_of(b);
	cr_assert_eq(b->ops->page_out(b, &A, first, last + 1 - first, &step_err), PW_BACKEND);
	expect_same(b, &before, "page_out up to a large page");
	hold(b, 2 * LARGE, false);
	step_out(b, &A, first, last + 1 - first);
	expect(b, &A, first, last + 1 - first, GFN_SECURE_OUT);
	done(b);
}

/* Firmware's page of metadata entries that goes missing. */
static void lose_metadata(struct backend *b, size_t at)
{
	struct snp_cmd c = { .op = SNP_CMD_PAGE_RECLAIM, .pfn = guest(b, &A)->md[at].frame };
	enum snp_status status;

	cr_assert(snp_command(rmp(b), &c, &status) == PW_OK && status == SNP_SUCCESS);
}

Test(machine_snp, swapping_that_fails_inside_a_large_page_is_undone_exactly)
{
	struct backend *b = open_at(0, 8192, NULL);
	struct picture before;

	step_make_secure(b, &A, PAGES);
	step_in(b, &A, 0, LARGE);
	step_in(b, &A, LARGE, 80);
	step_out(b, &A, LARGE, 80);
	step_in(b, &A, LARGE + 20, 10); /* ten entries of the first page are free */
	lose_metadata(b, 1);
	before = picture_of(b);
	cr_assert_eq(b->ops->page_out(b, &A, 0, LARGE, &step_err), PW_BACKEND);
	cr_assert(strstr(step_err.msg, "INVALID_PAGE_STATE"), "%s", step_err.msg);
	expect_same(b, &before, "SWAP_OUT");
	cr_assert_eq(entry_of(b, pfn_of(b, &A, 0)).size, SNP_2M);
	step_event(b, &A, VM_TERMINATE);
	cr_assert_eq(taken(b), 0);
	step_event(b, &A, VM_INIT_START);
	step_in(b, &A, 0, LARGE);
	step_out(b, &A, 0, LARGE);
	lose_metadata(b, 3);
	before = picture_of(b);
	cr_assert_eq(step_try_in(b, &A, 0, LARGE), PW_BACKEND);
	expect_same(b, &before, "SWAP_IN");
	cr_assert_eq(step_try_in(b, &A, 0, (uint64_t)3 * SNP_MD_SLOTS), PW_OK, "%s", step_err.msg);
	step_event(b, &A, VM_INIT_ABORT);
	cr_assert_eq(taken(b), 0);
	done(b);
}

static void reserve_these(struct backend *b, const uint64_t *pfns, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		machine_frames_mark(&machine_of_backend(b)->frames, FRAME_RESERVED, pfns[i], 1);
}

/* Frames far from each other: each needs a table of its own, so memory ends anywhere. */
Test(machine_snp, memory_that_ends_half_way_leaves_no_trace)
{
	enum { FAR = 420 };
	struct backend *b = open_at(0, FAR * LARGE, NULL);
	uint64_t pfns[FAR];

	step_make_secure(b, &A, PAGES);
	for (uint64_t i = 0; i < FAR; i++)
		pfns[i] = i * LARGE + 1;
	reserve_these(b, pfns, FAR);
	for (int way = 0; way < 2; way++) {
		struct picture before = picture_of(b);

		for (size_t spare = 200; spare < FAR; spare += 37) {
			arena_trim_to(&rmp(b)->arena, 0);
			cr_assert_eq(arena_reserve_sets(&rmp(b)->arena, spare / TREE_RESERVE), PW_OK);
			cr_assert_eq(arena_reserve_sets(&host(b)->nodes, 60), PW_OK);
			memory(b)->limit = memory(b)->used + 65536;
			cr_assert_eq(b->ops->page_in(b, &A, 0, FAR, pfns, &step_err), PW_NO_MEMORY);
			memory(b)->limit = 0;
			expect_unchanged(b, &before, "page_in");
		}
		cr_assert_eq(b->ops->page_in(b, &A, 0, FAR, pfns, &step_err), PW_OK, "%s", step_err.msg);
		step_out(b, &A, 0, FAR);
		reserve_these(b, pfns, FAR);
	}
	done(b);
}

/* An allocator that refuses the n-th allocation. */
static unsigned long calls, fail_at;

static void *some_alloc(void *ctx, size_t size)
{
	return ++calls == fail_at ? NULL : malloc(size);
}

static void some_free(void *ctx, void *p)
{
	free(p);
}

static enum pw_status op_share(struct backend *b)
{
	return b->ops->share(b, &A, 100, 3 * LARGE, &step_err);
}

static enum pw_status op_out(struct backend *b)
{
	return b->ops->page_out(b, &A, 100, 3 * LARGE, &step_err);
}

static enum pw_status op_out_loaded(struct backend *b)
{
	return b->ops->page_out(b, &A, 100, 2 * LARGE - 100, &step_err);
}

static enum pw_status op_in(struct backend *b)
{
	return step_try_in(b, &A, 0, 4 * LARGE + 5);
}

static enum pw_status op_unshare(struct backend *b)
{
	return b->ops->unshare(b, &A, 0, PAGES, &step_err);
}

static enum pw_status op_start(struct backend *b)
{
	return b->ops->vm_event(b, &A, VM_INIT_START, &step_err);
}

static enum pw_status op_done(struct backend *b)
{
	return b->ops->vm_event(b, &A, VM_INIT_DONE, &step_err);
}

static enum pw_status op_unmap(struct backend *b)
{
	return b->ops->unmap_slot(b, &A, 0, &step_err);
}

static enum pw_status op_map(struct backend *b)
{
	return b->ops->map_slot(b, &A, &(struct slot){ 1, PAGES, 77 }, &step_err);
}

static void set_normal(struct backend *b)
{
	step_make_vm(b, &A, PAGES);
}

static void set_transient(struct backend *b)
{
	set_normal(b);
	step_event(b, &A, VM_INIT_START);
}

static void set_loaded(struct backend *b)
{
	set_transient(b);
	step_in(b, &A, 0, 2 * LARGE);
	step_share(b, &A, 3 * LARGE + 4, 9);
	step_in(b, &A, 2 * LARGE + 3, 700);
}

static void set_secure(struct backend *b)
{
	set_loaded(b);
	step_event(b, &A, VM_INIT_DONE);
}

static void set_swapped(struct backend *b)
{
	set_secure(b);
	step_out(b, &A, 0, 2 * LARGE + 703);
	step_in(b, &A, 4 * LARGE + 6, 3);
}

static void set_swapped_early(struct backend *b)
{
	set_loaded(b);
	step_out(b, &A, 0, 2 * LARGE);
	step_out(b, &A, 2 * LARGE + 3, 700);
}

static const struct sweep {
	const char *name;
	void (*set)(struct backend *b);
	enum pw_status (*op)(struct backend *b);
} sweeps[] = {
	{ "init_start", set_normal, op_start },
	{ "page_in by launch", set_transient, op_in },
	{ "page_in by launch and swap", set_swapped_early, op_in },
	{ "init_done", set_loaded, op_done },
	{ "share, transient", set_loaded, op_share },
	{ "page_out, transient", set_loaded, op_out_loaded },
	{ "share", set_secure, op_share },
	{ "page_out", set_secure, op_out },
	{ "unshare", set_secure, op_unshare },
	{ "slot removal", set_secure, op_unmap },
	{ "slot", set_secure, op_map },
	{ "page_in by swap", set_swapped, op_in },
	{ "share of swapped pages", set_swapped, op_share },
};

/* Memory that was not needed: as much as at the machine's first breath. */
static void spend_spares(struct backend *b)
{
	arena_trim_to(&rmp(b)->arena, 0);
	arena_trim_to(&host(b)->nodes, 0);
}

Test(machine_snp, a_refused_allocation_leaves_no_trace)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(sweeps); i++) {
		struct backend *b = open_at(1 << 20, 16384, NULL);
		enum pw_status st = PW_NO_MEMORY;
		struct picture before;

		memory(b)->alloc = some_alloc;
		memory(b)->free = some_free;
		fail_at = 0;
		step_make_secure(b, &B, 8); /* the first flush of ASIDs is over */
		step_event(b, &B, VM_TERMINATE);
		sweeps[i].set(b);
		before = picture_of(b);
		for (unsigned long n = 1; st != PW_OK; n += n < 40 ? 1 : 7) {
			spend_spares(b);
			calls = 0;
			fail_at = n;
			st = sweeps[i].op(b);
			fail_at = 0;
			if (st == PW_OK)
				break;
			cr_assert_eq(st, PW_NO_MEMORY, "%s: %s", sweeps[i].name, step_err.msg);
			expect_unchanged(b, &before, sweeps[i].name);
		}
		cr_assert_eq(st, PW_OK);
		done(b);
	}
}

/* Where firmware's frames lie. */
Test(machine_snp, firmware_has_frames_beside_any_pool)
{
	static const struct machine_pool pools[] = { { 0, 1 },
						     { 0, 100000 },
						     { 1000, 512 },
						     { 1 << 20, 1 << 20 },
						     { ((uint64_t)1 << 36) - 4096, 4096 },
						     { ((uint64_t)1 << 39) + 3, 4096 },
						     { ((uint64_t)1 << 40) - 600, 600 } };

	for (size_t i = 0; i < PW_ARRAY_LEN(pools); i++) {
		struct backend *b = open_at(pools[i].base, pools[i].frames, NULL);
		const struct snp_range *own = &host(b)->own;

		cr_assert(own->first + own->count <= pools[i].base || own->first >= pools[i].base + pools[i].frames);
		step_make_secure(b, &A, 8);
		step_in(b, &A, 0, 1);
		step_out(b, &A, 0, 1);
		step_in(b, &A, 2, 1);
		cr_assert_eq(taken(b), 1);
		step_event(b, &A, VM_TERMINATE);
		cr_assert_eq(taken(b), 0);
		done(b);
	}
}

Test(machine_snp, a_pool_that_leaves_no_room_is_refused)
{
	struct backend_options o = { .frames = ((uint64_t)1 << 36) - 5, .base_pfn = 3 };
	struct machine_pool pool = { o.base_pfn, o.frames };
	struct pw_mem mem = { 0 };
	void *model = NULL;

	cr_assert_eq(machine_snp.open(NULL, &pool, &mem, &model, &step_err), PW_INVALID);
	cr_assert_null(model);
	cr_assert_eq(mem.used, 0);
}

Test(machine_snp, gfns_past_what_an_entry_names_are_refused)
{
	struct backend *b = open_at(0, 64, NULL);
	struct slot s = { 0, SNP_GFNS - 1, 2 };
	struct backend_vm_spec spec = { .id = A, .slots = &s, .slot_count = 1 };

	cr_assert_eq(b->ops->create_vm(b, &spec, &step_err), PW_BACKEND);
	cr_assert(strstr(step_err.msg, "2^39"), "%s", step_err.msg);
	done(b);
}

Test(machine_snp, a_large_vm_costs_a_handful_of_nodes)
{
	const uint64_t gib = (uint64_t)1 << 18;
	struct backend *b = open_at(1 << 20, 2 * gib, NULL);

	step_make_vm(b, &A, gib);
	step_event(b, &A, VM_INIT_START);
	step_in(b, &A, 0, gib / 2);
	step_event(b, &A, VM_INIT_DONE);
	step_in(b, &A, gib / 2, gib / 2);
	cr_assert_eq(taken(b), gib);
	cr_assert_lt(rmp(b)->arena.nodes + host(b)->nodes.nodes, 32);
	step_event(b, &A, VM_TERMINATE);
	cr_assert_eq(taken(b), 0);
	done(b);
}

/* Random ops on two VMs against a map, with refused frames and memory; nothing may differ, ever. */

#define RANDOM_PAGES (3 * LARGE)

struct naive {
	enum vm_state vm;
	enum gfn_state pages[RANDOM_PAGES];
};

static uint64_t seed;

static uint64_t draw(uint64_t below)
{
	seed ^= seed << 13;
	seed ^= seed >> 7;
	seed ^= seed << 17;
	return seed % below;
}

static void naive_set(struct naive *n, enum gfn_state s)
{
	for (size_t i = 0; i < RANDOM_PAGES; i++)
		n->pages[i] = s;
}

static void random_event(struct backend *b, const struct pw_uuid *id, struct naive *n)
{
	enum vm_event e = (enum vm_event)(VM_INIT_START + draw(4));
	enum vm_state next;
	bool ok = vm_step(n->vm, e, &next) && next != n->vm;
	enum pw_status st = b->ops->vm_event(b, id, e, &step_err);

	if (!ok || st != PW_OK) {
		cr_assert(!ok || st == PW_NO_MEMORY, "%s: %s", vm_event_name(e), step_err.msg);
		return;
	}
	n->vm = next;
	if (next == VM_NORMAL)
		naive_set(n, GFN_NORMAL);
	for (size_t i = 0; next == VM_SECURE && i < RANDOM_PAGES; i++)
		if (n->pages[i] == GFN_NORMAL)
			n->pages[i] = GFN_SECURE_OUT;
}

static void random_change(struct backend *b, const struct pw_uuid *id, struct naive *n)
{
	static const enum gfn_op ops[] = { GFN_SHARE, GFN_UNSHARE, GFN_PAGE_OUT, GFN_UNSHARE_IN, GFN_UNSHARE_IN };
	enum gfn_op op = ops[draw(PW_ARRAY_LEN(ops))];
	uint64_t gfn = draw(4) ? draw(RANDOM_PAGES) : draw(3) * LARGE;
	uint64_t count = draw(4) ? 1 + draw(20) : 1 + draw(RANDOM_PAGES), i;
	struct naive next = *n;
	enum pw_status st;

	if (draw(3) == 0)
		count = LARGE * (1 + draw(2));
	if (count > RANDOM_PAGES - gfn)
		count = RANDOM_PAGES - gfn;
	for (i = gfn; i < gfn + count; i++)
		if (!(op == GFN_PAGE_OUT && n->pages[i] == GFN_SECURE_OUT) &&
		    !gfn_step(n->pages[i], op, &next.pages[i]))
			break;
	if (op == GFN_UNSHARE_IN)
		st = step_try_in(b, id, gfn, count);
	else
		st = (op == GFN_SHARE     ? b->ops->share
		      : op == GFN_UNSHARE ? b->ops->unshare
					  : b->ops->page_out)(b, id, gfn, count, &step_err);
	if (st == PW_OK) {
		cr_assert_eq(i, gfn + count, "%s of GFN %" PRIu64 " is unlawful", gfn_op_name(op), i);
		*n = next;
	}
	if (st != PW_OK && i == gfn + count && n->vm != VM_NORMAL)
		cr_assert(st == PW_NO_MEMORY || st == PW_BACKEND || st == PW_BUSY, "%s: %s", gfn_op_name(op),
			  step_err.msg);
}

static void expect_naive(struct backend *b, const struct pw_uuid *id, const struct naive *n, uint64_t first_seed)
{
	for (uint64_t i = 0; i < RANDOM_PAGES; i++) {
		struct backend_run run = run_at(b, id, i);

		cr_assert_eq(run.state, n->pages[i], "seed %" PRIu64 ": GFN %" PRIu64 " is %s, not %s", first_seed, i,
			     gfn_state_name(run.state), gfn_state_name(n->pages[i]));
	}
}

Test(machine_snp, random_ops_keep_to_a_naive_map)
{
	static const char faults[] = "frame:900,frame:5000,frame:5001,frame:9000";

	for (uint64_t first = 1; first <= 12; first++) {
		struct backend *b = open_at(512 * first, 5 * LARGE + 9, first % 2 ? faults : NULL);
		struct naive naive[2] = { 0 };
		const struct pw_uuid *ids[] = { &A, &B };

		seed = first * 7919;
		fail_at = 0;
		memory(b)->alloc = some_alloc;
		memory(b)->free = some_free;
		for (int v = 0; v < 2; v++)
			step_make_vm(b, ids[v], RANDOM_PAGES);
		for (int i = 0; i < 250; i++) {
			int v = (int)draw(2);

			calls = 0;
			fail_at = draw(3) ? 0 : 1 + draw(60);
			if (draw(12) == 0 || naive[v].vm == VM_NORMAL)
				random_event(b, ids[v], &naive[v]);
			else
				random_change(b, ids[v], &naive[v]);
			fail_at = 0;
			if (i % 10 == 0)
				expect_naive(b, ids[v], &naive[v], first);
			sound(b);
		}
		done(b);
	}
}
