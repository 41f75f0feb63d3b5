#include "agents/backend_kvm.h"
#include "agents/kvm_vm.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#define PAGES   4096u /* 16 MiB */
#define TIMEOUT 20

static const struct slot small = { .number = 0, .base = 0, .pages = PAGES };
static const struct pw_uuid A = { { 0xa } }, B = { { 0xb } };
static struct pw_err err;

static uint64_t now_us(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000;
}

/* Skips the test where there is no KVM for us. backing: "memfd", or NULL for what the kernel has. */
static struct backend *open_kvm(const char *backing)
{
	const struct backend_options o = { 0 };
	struct backend *b = NULL;
	enum pw_status st;

	if (backing)
		setenv(KVM_BACKING_VARIABLE, backing, 1);
	else
		unsetenv(KVM_BACKING_VARIABLE);
	st = backend_kvm_open(&o, &b, &err);
	if (st == PW_NOT_FOUND || st == PW_DENIED)
		cr_skip_test("%s", err.msg);
	cr_assert_eq(st, PW_OK, "%s", err.msg);
	return b;
}

#define OK(call) cr_assert_eq((call), PW_OK, "%s: %s", #call, err.msg)

static void create(struct backend *b, struct pw_uuid id, const struct backend_vm_spec *like)
{
	struct backend_vm_spec spec = { .slots = &small, .slot_count = 1, .guest_seed = 1 };

	if (like)
		spec = *like;
	spec.id = id;
	OK(b->ops->create_vm(b, &spec, &err));
	OK(b->ops->vm_event(b, &id, VM_INIT_START, &err));
}

static void bring_in(struct backend *b, struct pw_uuid id, uint64_t gfn, uint64_t count, uint64_t *pfns)
{
	OK(b->ops->reserve(b, &id, gfn, count, pfns, &err));
	OK(b->ops->page_in(b, &id, gfn, count, pfns, &err));
}

static enum pw_status serve(struct backend *b, const struct backend_request *rq)
{
	uint64_t pfn;

	switch (rq->want) {
	case WANT_SHARE: return b->ops->share(b, &rq->vm, rq->gfn, rq->count, &err);
	case WANT_UNSHARE:
		if (rq->cookie & 1) /* without a frame, or with */
			return b->ops->unshare(b, &rq->vm, rq->gfn, rq->count, &err);
		bring_in(b, rq->vm, rq->gfn, 1, &pfn);
		return PW_OK;
	case WANT_PAGE_IN: bring_in(b, rq->vm, rq->gfn, 1, &pfn); return PW_OK;
	case WANT_PAGE_OUT:
	case WANT_RIPAS:
	case WANT_TERMINATED: break;
	}
	return PW_CONFLICT;
}

/* Serves the guests until `converted` conversions are done; false if one ended or it took too long. */
static bool serve_until(struct backend *b, struct pw_uuid id, uint64_t converted, struct backend_request *last)
{
	const uint64_t end = now_us() + 10 * 1000000;
	struct kvm_guest_counts c = { 0 };

	while (c.converted < converted && now_us() < end) {
		enum pw_status st = b->ops->wait(b, 200, last, &err);

		if (st == PW_OK && last->want == WANT_TERMINATED)
			return false;
		if (st == PW_OK)
			b->ops->complete(b, last, serve(b, last));
		OK(backend_kvm_counts(b, &id, &c, &err));
	}
	return c.converted >= converted;
}

/* Can this process read a byte there? */
static bool is_visible(void *at)
{
	char byte;
	struct iovec to = { &byte, 1 }, from = { at, 1 };

	return process_vm_readv(getpid(), &to, 1, &from, 1, 0) == 1;
}

struct runs {
	struct backend_run run[64];
	size_t n;
};
static bool note_run(void *ctx, const struct backend_run *run)
{
	struct runs *r = ctx;

	r->run[r->n++] = *run;
	return r->n < 64;
}
static struct runs read_all(struct backend *b, struct pw_uuid id)
{
	struct runs r = { 0 };

	OK(b->ops->read_state(b, &id, 0, TREE_PAGES, note_run, &r, &err));
	return r;
}

static const char *backings[] = { "guest_memfd", "memfd" };
static const char *const backing_names[] = { NULL, "memfd" };
struct backing_case {
	unsigned index;
};
static struct backing_case cases[] = { { 0 }, { 1 } };
#define EACH_BACKING(name)                                                                         \
	ParameterizedTestParameters(backend_kvm, name)                                             \
	{                                                                                          \
		return cr_make_param_array(struct backing_case, cases, PW_ARRAY_LEN(cases), NULL); \
	}                                                                                          \
	ParameterizedTest(struct backing_case *c, backend_kvm, name, .timeout = TIMEOUT)

EACH_BACKING(a_guest_runs_converts_and_finds_what_the_law_promises)
{
	struct backend *b = open_kvm(backing_names[c->index]);
	const struct backend_vm_spec spec = { .slots = &small, .slot_count = 1, .guest_seed = 7, .guest_rate = 1000 };
	struct kvm_guest_counts counts;
	struct backend_request rq = { 0 };
	uint64_t pfns[256], start = now_us();

	create(b, A, &spec);
	fprintf(stderr, "%s: create and init_start %" PRIu64 " us\n", backings[c->index], now_us() - start);
	bring_in(b, A, 0, 256, pfns);
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	OK(b->ops->run_vm(b, &A, &err));
	cr_assert(serve_until(b, A, 200, &rq), "%s", rq.detail);
	OK(backend_kvm_counts(b, &A, &counts, &err));
	cr_expect_gt(counts.checked, counts.steps * 5);
	cr_expect_eq(counts.refused, 0);
	OK(b->ops->vm_event(b, &A, VM_TERMINATE, &err));
	b->ops->close(b);
}

EACH_BACKING(a_conversion_round_trip_is_measured)
{
	struct backend *b = open_kvm(backing_names[c->index]);
	const struct backend_vm_spec spec = { .slots = &(struct slot){ 0, 0, 8 }, .slot_count = 1 };
	struct backend_request rq = { 0 };
	uint64_t pfns[8], start;

	create(b, A, &spec);
	bring_in(b, A, 0, 8, pfns);
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	OK(backend_kvm_set_step(b, &A, 0, &err));
	OK(b->ops->run_vm(b, &A, &err));
	cr_assert(serve_until(b, A, 20, &rq), "%s", rq.detail);
	start = now_us();
	cr_assert(serve_until(b, A, 520, &rq), "%s", rq.detail);
	fprintf(stderr, "%s: %" PRIu64 " us a step (one conversion, page_in after each unshare, five pages checked)\n",
		backings[c->index], (now_us() - start) / 500);
	b->ops->close(b);
}

EACH_BACKING(the_host_sees_no_secure_page)
{
	struct backend *b = open_kvm(backing_names[c->index]);
	uint64_t pfn;
	char *view;

	create(b, A, NULL);
	view = backend_kvm_view(b, &A, 5);
	cr_assert(is_visible(view));
	memcpy(view, "content", 8);
	bring_in(b, A, 5, 1, &pfn);
	cr_expect_not(is_visible(view), "secure and resident");
	cr_expect(is_visible(view + 4096), "its neighbour is normal");
	OK(b->ops->page_out(b, &A, 5, 1, &err));
	cr_expect_not(is_visible(view), "secure and out");
	OK(b->ops->share(b, &A, 5, 1, &err));
	cr_expect(is_visible(view));
	cr_expect_str_eq(view, "", "a conversion loses the content");
	OK(b->ops->unshare(b, &A, 5, 1, &err));
	cr_expect_not(is_visible(view));
	b->ops->close(b);
}

EACH_BACKING(reserved_frames_are_those_that_state_shows)
{
	struct backend *b = open_kvm(backing_names[c->index]);
	struct backend_info info;
	uint64_t pfns[16], others[16];
	struct runs r;

	b->ops->info(b, &info);
	create(b, A, NULL);
	create(b, B, NULL);
	bring_in(b, A, 0, 16, pfns);
	bring_in(b, B, 0, 16, others);
	for (size_t i = 0; i < 16; i++) {
		cr_expect(pfns[i] >= info.base_pfn && pfns[i] < info.base_pfn + info.frames);
		for (size_t j = 0; j < 16; j++)
			cr_expect(pfns[i] != others[j] && (i == j || pfns[i] != pfns[j]));
	}
	r = read_all(b, A);
	for (size_t i = 0, at = 0; i < r.n; i++) {
		cr_expect_eq(r.run[i].gfn, at);
		cr_expect(r.run[i].state == (at < 16 ? GFN_SECURE_RESIDENT : GFN_NORMAL));
		cr_expect(at >= 16 || r.run[i].pfn == pfns[at]);
		at += r.run[i].count;
	}
	b->ops->close(b);
}

/* A guest of one page whose pattern must outlive its way out and back in. */
EACH_BACKING(content_survives_page_out_and_page_in)
{
	struct backend *b = open_kvm(backing_names[c->index]);
	const struct backend_vm_spec spec = {
		.slots = &(struct slot){ 0, 0, 4 }, .slot_count = 1, .guest_seed = 3, .guest_rate = 500
	};
	struct backend_request rq = { 0 };
	struct kvm_guest_counts before, after;
	uint64_t pfns[4];

	create(b, A, &spec);
	bring_in(b, A, 0, 4, pfns);
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	OK(b->ops->run_vm(b, &A, &err));
	for (uint64_t round = 1; round <= 20; round++) {
		struct runs r = read_all(b, A);

		for (size_t i = 0; i < r.n; i++)
			if (r.run[i].state == GFN_SECURE_RESIDENT)
				OK(b->ops->page_out(b, &A, r.run[i].gfn, r.run[i].count, &err));
		OK(backend_kvm_counts(b, &A, &before, &err));
		cr_assert(serve_until(b, A, before.converted + 2, &rq), "%s", rq.detail);
		OK(backend_kvm_counts(b, &A, &after, &err));
		cr_expect_gt(after.checked, before.checked);
	}
	b->ops->close(b);
}

EACH_BACKING(normal_content_is_kept_at_launch_and_lost_at_terminate)
{
	struct backend *b = open_kvm(backing_names[c->index]);
	uint64_t pfn;
	char *view;
	struct runs r;

	create(b, A, NULL);
	view = backend_kvm_view(b, &A, 9);
	memcpy(view, "kernel", 7);
	bring_in(b, A, 9, 1, &pfn);
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	r = read_all(b, A);
	cr_expect_eq(r.n, 3, "out, resident, out");
	cr_expect(r.run[0].state == GFN_SECURE_OUT && r.run[1].pfn == pfn && r.run[2].count == PAGES - 10);
	OK(b->ops->vm_event(b, &A, VM_TERMINATE, &err));
	OK(b->ops->vm_event(b, &A, VM_TERMINATE, &err));
	r = read_all(b, A);
	cr_expect(r.n == 1 && r.run[0].state == GFN_NORMAL && r.run[0].count == PAGES);
	cr_expect_str_eq(view, "");
	b->ops->close(b);
}

/* What of the mappings that meet [view, view + PAGES pages) is present. */
static uint64_t memory_in_use_kb(const char *view)
{
	unsigned long long from, to, rss, used = 0;
	uintptr_t first = (uintptr_t)view, end = first + (uintptr_t)PAGES * 4096;
	FILE *f = fopen("/proc/self/smaps", "r");
	bool inside = false;
	char line[512];

	while (f && fgets(line, sizeof(line), f)) {
		if (sscanf(line, "%llx-%llx ", &from, &to) == 2)
			inside = from < end && first < to;
		else if (inside && sscanf(line, "Rss: %llu", &rss) == 1)
			used += rss;
	}
	if (f)
		fclose(f);
	return used;
}

EACH_BACKING(a_punched_frame_goes_back_to_the_host)
{
	struct backend *b = open_kvm(backing_names[c->index]);
	static uint64_t pfns[PAGES], again[PAGES];
	struct runs r;
	char *view;

	create(b, A, NULL);
	view = backend_kvm_view(b, &A, 0);
	memset(view, 1, (size_t)PAGES * 4096);
	bring_in(b, A, 0, PAGES, pfns);
	cr_expect_eq(memory_in_use_kb(view), PAGES * 4);
	OK(b->ops->share(b, &A, 0, PAGES, &err));
	cr_expect_eq(memory_in_use_kb(view), 0);
	OK(b->ops->unshare(b, &A, 0, PAGES, &err));
	OK(b->ops->reserve(b, &A, 0, PAGES, again, &err));
	b->ops->unreserve(b, &A, 0, PAGES, again);
	r = read_all(b, A);
	cr_expect(r.n == 1 && r.run[0].state == GFN_SECURE_OUT);
	b->ops->close(b);
}

EACH_BACKING(an_operation_may_be_repeated_and_a_wrong_one_changes_nothing)
{
	struct backend *b = open_kvm(backing_names[c->index]);
	uint64_t pfns[4], wrong[4];
	struct runs r;

	create(b, A, NULL);
	cr_expect_eq(b->ops->page_out(b, &A, 0, 4, &err), PW_CONFLICT, "normal pages do not page out");
	bring_in(b, A, 0, 4, pfns);
	OK(b->ops->page_in(b, &A, 0, 4, pfns, &err));
	memcpy(wrong, pfns, sizeof(wrong));
	wrong[3] ^= 1;
	cr_expect_eq(b->ops->page_in(b, &A, 0, 4, wrong, &err), PW_CONFLICT);
	OK(b->ops->page_out(b, &A, 0, 2, &err));
	OK(b->ops->page_out(b, &A, 0, 2, &err));
	OK(b->ops->reserve(b, &A, 0, 2, pfns, &err));
	memcpy(wrong, pfns, 2 * sizeof(wrong[0]));
	wrong[1] ^= 1;
	cr_expect_eq(b->ops->page_in(b, &A, 0, 2, wrong, &err), PW_CONFLICT, "not the frames that were reserved");
	OK(b->ops->page_in(b, &A, 0, 2, pfns, &err));
	OK(b->ops->share(b, &A, 1, 1, &err));
	OK(b->ops->share(b, &A, 1, 1, &err));
	cr_expect_eq(b->ops->page_out(b, &A, 0, 2, &err), PW_CONFLICT, "gfn 1 is shared");
	cr_expect_eq(b->ops->share(b, &A, PAGES - 1, 2, &err), PW_INVALID, "past the slot");
	r = read_all(b, A);
	cr_expect(r.run[0].gfn == 0 && r.run[0].count == 1 && r.run[0].pfn == pfns[0]);
	cr_expect(r.run[1].state == GFN_SHARED && r.run[1].count == 1);
	b->ops->close(b);
}

Test(backend_kvm, one_backing_group_gives_two_vms_the_same_frames, .timeout = TIMEOUT)
{
	struct backend *b = open_kvm(NULL);
	const struct backend_vm_spec spec = {
		.slots = &small, .slot_count = 1, .share_backing = "demo", .guest_rate = 500
	};
	uint64_t pfns[4], same[4];
	struct backend_request rq = { 0 };

	create(b, A, &spec);
	bring_in(b, A, 0, 4, pfns);
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	create(b, B, &spec);
	OK(b->ops->reserve(b, &B, 0, 4, same, &err));
	for (size_t i = 0; i < 4; i++)
		cr_expect_eq(pfns[i], same[i]);
	OK(b->ops->run_vm(b, &A, &err));
	cr_assert(serve_until(b, A, 10, &rq), "%s", rq.detail);
	/* The ledger refuses the claim: B's way back must not cost A a page. */
	b->ops->unreserve(b, &B, 0, 4, same);
	OK(b->ops->vm_event(b, &B, VM_INIT_ABORT, &err));
	OK(b->ops->destroy_vm(b, &B, &err));
	cr_assert(serve_until(b, A, 20, &rq), "the guest of A found its pages changed: %s", rq.detail);
	b->ops->close(b);
}

static struct backend_request last_words(struct backend *b, const struct backend_vm_spec *spec)
{
	struct backend_request rq = { 0 };
	uint64_t pfn;

	create(b, A, spec);
	bring_in(b, A, 0, 1, &pfn);
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	OK(b->ops->run_vm(b, &A, &err));
	if (b->ops->wait(b, 1000, &rq, &err))
		rq.want = WANT_PAGE_OUT; /* which nobody asks for: "nothing came" */
	return rq;
}

Test(backend_kvm, a_stray_vmcall_does_not_hang, .timeout = TIMEOUT)
{
	struct backend *b = open_kvm(NULL);
	const struct backend_vm_spec spec = { .slots = &small, .slot_count = 1, .guest_seed = GUEST_SEED_VMCALL };
	struct backend_request rq = last_words(b, &spec);

	/* Either KVM refuses the call and the guest idles on, or the guest gets an exception that ends it. */
	cr_expect(rq.want == WANT_TERMINATED || rq.want == WANT_PAGE_OUT, "%s", rq.detail);
	OK(b->ops->vm_event(b, &A, VM_TERMINATE, &err));
	b->ops->close(b);
}

Test(backend_kvm, a_crash_is_reported_and_a_relaunch_works, .timeout = TIMEOUT)
{
	struct backend *b = open_kvm(NULL);
	const struct backend_vm_spec spec = { .slots = &small, .slot_count = 1, .guest_seed = GUEST_SEED_CRASH };
	struct backend_request rq = last_words(b, &spec);

	cr_expect_eq(rq.want, WANT_TERMINATED);
	cr_expect(pw_uuid_equal(&rq.vm, &A) && rq.detail[0]);
	b->ops->complete(b, &rq, PW_OK);
	OK(b->ops->vm_event(b, &A, VM_TERMINATE, &err));
	OK(b->ops->vm_event(b, &A, VM_INIT_START, &err));
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	OK(b->ops->run_vm(b, &A, &err));
	cr_expect_eq(b->ops->wait(b, 2000, &rq, &err), PW_OK);
	cr_expect_eq(rq.want, WANT_TERMINATED, "it crashes again");
	b->ops->close(b);
}

static double cpu_seconds(void)
{
	struct timespec t;

	clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &t);
	return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

Test(backend_kvm, a_spinning_guest_neither_hangs_nor_eats_a_core, .timeout = TIMEOUT)
{
	struct backend *b = open_kvm(NULL);
	const struct backend_vm_spec spec = { .slots = &small, .slot_count = 1, .guest_seed = GUEST_SEED_SPIN };
	double before = cpu_seconds();
	struct backend_request rq = last_words(b, &spec); /* a second */

	cr_expect_eq(rq.want, WANT_PAGE_OUT, "it never asks");
	cr_expect_lt(cpu_seconds() - before, 0.4);
	OK(b->ops->share(b, &A, 0, 1, &err));
	OK(b->ops->destroy_vm(b, &A, &err));
	b->ops->close(b);
}

Test(backend_kvm, idle_guests_cost_next_to_nothing, .timeout = TIMEOUT)
{
	struct backend *b = open_kvm(NULL);
	const struct backend_vm_spec spec = { .slots = &small, .slot_count = 1, .idle = true };
	struct backend_request rq;
	double before;

	for (uint8_t i = 1; i <= 10; i++) {
		const struct pw_uuid id = { { i } };

		create(b, id, &spec);
		OK(b->ops->vm_event(b, &id, VM_INIT_DONE, &err));
		OK(b->ops->run_vm(b, &id, &err));
	}
	before = cpu_seconds();
	cr_expect_eq(b->ops->wait(b, 1000, &rq, &err), PW_BUSY);
	cr_expect_lt(cpu_seconds() - before, 0.1);
	b->ops->close(b);
}

Test(backend_kvm, a_touch_of_an_absent_page_is_a_wish_that_waits, .timeout = TIMEOUT)
{
	struct backend *b = open_kvm(NULL);
	const struct backend_vm_spec spec = { .slots = &(struct slot){ 3, 512, 2 }, .slot_count = 1 };
	struct backend_request rq = { 0 };
	uint64_t first;

	create(b, A, &spec);
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	OK(b->ops->run_vm(b, &A, &err));
	OK(b->ops->run_vm(b, &A, &err));
	OK(b->ops->wait(b, 2000, &rq, &err));
	cr_expect_eq(rq.want, WANT_PAGE_IN);
	cr_expect(rq.count == 1 && rq.gfn >= 512 && rq.gfn < 514);
	first = rq.gfn;
	b->ops->complete(b, &rq, PW_CONFLICT);
	OK(b->ops->wait(b, 2000, &rq, &err));
	cr_expect_eq(rq.gfn, first, "refused: it asks again");
	b->ops->kick(b);
	cr_expect_eq(b->ops->wait(b, 5000, &rq, &err), PW_BUSY, "it waits for its answer");
	OK(backend_kvm_set_step(b, &A, 1000, &err));
	b->ops->complete(b, &rq, serve(b, &rq));
	cr_assert(serve_until(b, A, 3, &rq), "%s", rq.detail);
	b->ops->close(b);
}

Test(backend_kvm, an_ordinary_vm_runs_and_converts_nothing, .timeout = TIMEOUT)
{
	struct backend *b = open_kvm(NULL);
	const struct backend_vm_spec spec = { .id = A, .slots = &small, .slot_count = 1, .guest_rate = 1000 };
	const uint64_t end = now_us() + 10 * 1000000;
	struct kvm_guest_counts counts = { 0 };
	struct backend_request rq;
	struct runs r;

	OK(b->ops->create_vm(b, &spec, &err));
	OK(b->ops->run_vm(b, &A, &err));
	OK(b->ops->run_vm(b, &A, &err));
	while (counts.refused < 20 && now_us() < end) {
		cr_assert_eq(b->ops->wait(b, 20, &rq, &err), PW_BUSY, "it wants something: %s", rq.detail);
		OK(backend_kvm_counts(b, &A, &counts, &err));
	}
	cr_expect(counts.refused >= 20 && counts.converted == 0 && counts.checked > 0);
	cr_expect_eq(b->ops->share(b, &A, 3, 1, &err), PW_CONFLICT);
	cr_expect_eq(b->ops->page_out(b, &A, 3, 1, &err), PW_CONFLICT);
	r = read_all(b, A);
	cr_expect(r.n == 1 && r.run[0].count == PAGES && r.run[0].state == GFN_NORMAL);
	OK(b->ops->destroy_vm(b, &A, &err));
	b->ops->close(b);
}

Test(backend_kvm, slots_come_and_go_while_the_guest_runs, .timeout = TIMEOUT)
{
	struct backend *b = open_kvm(NULL);
	const struct backend_vm_spec spec = { .slots = &small, .slot_count = 1, .guest_rate = 500 };
	const struct slot more = { .number = 1, .base = 1 << 20, .pages = 64 },
			  over = { .number = 2, .base = 10, .pages = 1 };
	const struct slot far = { .number = 3, .base = UINT64_C(1) << 39, .pages = 1 };
	struct backend_request rq = { 0 };
	struct runs r;

	create(b, A, &spec);
	OK(b->ops->vm_event(b, &A, VM_INIT_DONE, &err));
	OK(b->ops->run_vm(b, &A, &err));
	OK(b->ops->map_slot(b, &A, &more, &err));
	OK(b->ops->map_slot(b, &A, &more, &err));
	cr_expect_eq(b->ops->map_slot(b, &A, &over, &err), PW_CONFLICT);
	cr_expect_eq(b->ops->map_slot(b, &A, &far, &err), PW_INVALID);
	r = read_all(b, A);
	cr_expect(r.n == 2 && r.run[1].gfn == 1 << 20 && r.run[1].state == GFN_SECURE_OUT);
	cr_assert(serve_until(b, A, 3, &rq), "%s", rq.detail);
	OK(b->ops->unmap_slot(b, &A, 1, &err));
	OK(b->ops->unmap_slot(b, &A, 1, &err));
	cr_assert(serve_until(b, A, 6, &rq), "%s", rq.detail);
	b->ops->close(b);
}
