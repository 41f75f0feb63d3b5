#include "agents/machine.h"

#include <criterion/criterion.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "agents/machine_impl.h"

static const struct pw_uuid A = { { 1 } }, B = { { 2 } };
static struct pw_err err;

static struct backend *open_with(const struct backend_options *o)
{
	struct backend *b = NULL;

	cr_assert_eq(machine_open(&machine_pef, o, &b, &err), PW_OK, "%s", err.msg);
	return b;
}

static struct backend *open_small(uint64_t frames)
{
	return open_with(&(struct backend_options){ .frames = frames, .base_pfn = 1000 });
}

static void make_vm(struct backend *b, const struct pw_uuid *id, uint64_t pages)
{
	struct slot s = { 0, 0, pages };
	struct backend_vm_spec spec = { .id = *id, .slots = &s, .slot_count = 1 };

	cr_assert_eq(b->ops->create_vm(b, &spec, &err), PW_OK, "%s", err.msg);
}

static void event(struct backend *b, const struct pw_uuid *id, enum vm_event e)
{
	cr_assert_eq(b->ops->vm_event(b, id, e, &err), PW_OK, "%s", err.msg);
}

static enum pw_status bring_in(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count)
{
	uint64_t pfns[64];
	enum pw_status st = b->ops->reserve(b, id, gfn, count, pfns, &err);

	if (st != PW_OK)
		return st;
	st = b->ops->page_in(b, id, gfn, count, pfns, &err);
	if (st != PW_OK)
		b->ops->unreserve(b, id, gfn, count, pfns);
	return st;
}

/* All that read_state says, as text. */
struct text {
	char at[4096];
	size_t used;
};

static bool print_run(void *ctx, const struct backend_run *run)
{
	struct text *t = ctx;

	if (run->state == GFN_SECURE_RESIDENT)
		t->used += (size_t)snprintf(t->at + t->used, sizeof t->at - t->used,
					    "%" PRIu64 "+%" PRIu64 "@%" PRIu64 " ", run->gfn, run->count, run->pfn);
	else
		t->used += (size_t)snprintf(t->at + t->used, sizeof t->at - t->used, "%" PRIu64 "+%" PRIu64 "%s ",
					    run->gfn, run->count,
					    run->state == GFN_SECURE_OUT ? "out"
					    : run->state == GFN_SHARED   ? "shared"
									 : "normal");
	return true;
}

static struct text state_of(struct backend *b, const struct pw_uuid *id)
{
	struct text t = { 0 };

	cr_assert_eq(b->ops->read_state(b, id, 0, TREE_PAGES, print_run, &t, &err), PW_OK, "%s", err.msg);
	return t;
}

static bool machine_is_sound(struct backend *b)
{
	struct pw_err why = { 0 };
	bool sound = machine_check(machine_of_backend(b), &why);

	cr_expect(sound, "%s", why.msg);
	return sound;
}

static uint64_t frames(struct backend *b, enum frame_use use)
{
	return machine_of_backend(b)->frames.count[use];
}

static void expect_state(struct backend *b, const struct pw_uuid *id, const char *want)
{
	struct text t = state_of(b, id);

	cr_expect_str_eq(t.at, want);
	cr_expect(machine_is_sound(b));
}

Test(machine, says_what_it_is)
{
	struct backend *b = open_with(&(struct backend_options){ 0 });
	struct backend_info i;

	b->ops->info(b, &i);
	cr_expect_str_eq(i.arch, "pef");
	cr_expect_str_eq(i.kind, "emulated");
	cr_expect(i.page_shift == 16 && i.frames == machine_pef.default_frames && i.base_pfn == 0);
	b->ops->close(b);
}

Test(machine, no_frame_is_taken_that_nobody_chose)
{
	struct backend *b = open_small(8);
	struct slot more = { 1, 100, 2 };

	make_vm(b, &A, 16);
	expect_state(b, &A, "0+16normal ");
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 2, 3), PW_OK);
	cr_assert_eq(b->ops->share(b, &A, 8, 1, &err), PW_OK);
	expect_state(b, &A, "0+2normal 2+3@1000 5+3normal 8+1shared 9+7normal ");
	event(b, &A, VM_INIT_DONE);
	expect_state(b, &A, "0+2out 2+3@1000 5+3out 8+1shared 9+7out ");
	cr_assert_eq(b->ops->map_slot(b, &A, &more, &err), PW_OK);
	expect_state(b, &A, "0+2out 2+3@1000 5+3out 8+1shared 9+7out 100+2out ");
	cr_assert_eq(b->ops->unshare(b, &A, 2, 7, &err), PW_OK);
	expect_state(b, &A, "0+2out 2+3@1000 5+11out 100+2out ");
	cr_assert_eq(b->ops->page_out(b, &A, 3, 1, &err), PW_OK);
	cr_assert_eq(bring_in(b, &A, 10, 2), PW_OK);
	expect_state(b, &A, "0+2out 2+1@1000 3+1out 4+1@1002 5+5out 10+1@1001 11+1@1003 12+4out 100+2out ");
	cr_assert_eq(b->ops->unmap_slot(b, &A, 1, &err), PW_OK);
	event(b, &A, VM_TERMINATE);
	expect_state(b, &A, "0+16normal ");
	cr_expect_eq(frames(b, FRAME_USED), 0);
	b->ops->close(b);
}

Test(machine, repeated_ops_are_ok)
{
	struct backend *b = open_small(8);
	struct slot s = { 3, 50, 2 };
	uint64_t pfns[2];

	for (int i = 0; i < 2; i++) {
		make_vm(b, &A, 4);
		event(b, &A, VM_START);
		event(b, &A, VM_INIT_ABORT);
	}
	for (int i = 0; i < 2; i++)
		event(b, &A, VM_INIT_START);
	cr_assert_eq(b->ops->reserve(b, &A, 0, 2, pfns, &err), PW_OK);
	for (int i = 0; i < 2; i++)
		cr_expect_eq(b->ops->page_in(b, &A, 0, 2, pfns, &err), PW_OK, "%s", err.msg);
	for (int i = 0; i < 2; i++)
		event(b, &A, VM_INIT_DONE);
	for (int i = 0; i < 2; i++)
		cr_expect_eq(b->ops->page_out(b, &A, 0, 1, &err), PW_OK);
	for (int i = 0; i < 2; i++)
		cr_expect_eq(b->ops->share(b, &A, 2, 1, &err), PW_OK);
	for (int i = 0; i < 2; i++)
		cr_expect_eq(b->ops->unshare(b, &A, 2, 1, &err), PW_OK);
	for (int i = 0; i < 2; i++)
		cr_expect_eq(b->ops->map_slot(b, &A, &s, &err), PW_OK);
	expect_state(b, &A, "0+1out 1+1@1001 2+2out 50+2out ");
	for (int i = 0; i < 2; i++)
		cr_expect_eq(b->ops->unmap_slot(b, &A, 3, &err), PW_OK);
	for (int i = 0; i < 2; i++)
		event(b, &A, VM_TERMINATE);
	for (int i = 0; i < 2; i++)
		cr_expect_eq(b->ops->destroy_vm(b, &A, &err), PW_OK);
	cr_expect_eq(b->ops->read_state(b, &A, 0, 1, print_run, NULL, &err), PW_NOT_FOUND);
	b->ops->close(b);
}

Test(machine, what_the_law_forbids_is_refused_and_changes_nothing)
{
	struct backend *b = open_small(8);
	uint64_t pfns[4] = { 1000, 1001, 1002, 1003 };
	struct slot overlap = { 1, 3, 2 };
	struct slot empty = { 1, 20, 0 };

	make_vm(b, &A, 8);
	cr_expect_eq(b->ops->share(b, &A, 0, 1, &err), PW_CONFLICT, "a normal VM");
	cr_expect_eq(b->ops->vm_event(b, &A, VM_INIT_DONE, &err), PW_CONFLICT);
	cr_expect_eq(b->ops->vm_event(b, &B, VM_INIT_DONE, &err), PW_NOT_FOUND);
	event(b, &A, VM_INIT_START);
	event(b, &A, VM_INIT_DONE);
	cr_assert_eq(bring_in(b, &A, 0, 2), PW_OK);
	cr_expect_eq(b->ops->page_in(b, &A, 4, 4, pfns, &err), PW_CONFLICT, "frames that were not reserved");
	cr_expect_eq(b->ops->page_in(b, &A, 0, 1, pfns + 1, &err), PW_CONFLICT, "resident elsewhere");
	cr_expect_eq(b->ops->page_out(b, &A, 7, 2, &err), PW_INVALID, "past the slot");
	cr_expect_eq(b->ops->page_out(b, &A, 0, 0, &err), PW_INVALID, "empty");
	cr_expect_eq(b->ops->share(b, &A, UINT64_MAX, 2, &err), PW_INVALID, "wraps");
	cr_expect_eq(b->ops->map_slot(b, &A, &overlap, &err), PW_CONFLICT);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_INIT_START, &err), PW_CONFLICT);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_INIT_ABORT, &err), PW_CONFLICT);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_START, &err), PW_CONFLICT);
	cr_expect_eq(b->ops->reserve(b, &A, 0, 9, pfns, &err), PW_INVALID, "more than there are GFNs");
	cr_expect_eq(b->ops->map_slot(b, &A, &empty, &err), PW_INVALID);
	cr_expect_eq(b->ops->share(b, &A, 3, 1, &err), PW_OK);
	cr_expect_eq(b->ops->page_out(b, &A, 2, 2, &err), PW_CONFLICT, "one of them is shared");
	cr_expect(strstr(err.msg, "GFN 3"), "%s", err.msg);
	expect_state(b, &A, "0+2@1000 2+1out 3+1shared 4+4out ");
	cr_assert_eq(b->ops->reserve(b, &A, 4, 2, pfns, &err), PW_OK);
	pfns[1] = pfns[0];
	cr_expect_eq(b->ops->page_in(b, &A, 4, 2, pfns, &err), PW_CONFLICT, "a frame named twice");
	pfns[1] = pfns[0] + 1;
	cr_expect_eq(b->ops->page_in(b, &A, 1, 1, pfns, &err), PW_CONFLICT, "resident elsewhere");
	pfns[2] = pfns[0];
	pfns[1] = 1001;
	cr_expect_eq(b->ops->page_in(b, &A, 1, 2, pfns + 1, &err), PW_CONFLICT, "partly resident");
	expect_state(b, &A, "0+2@1000 2+1out 3+1shared 4+4out ");
	cr_expect_eq(frames(b, FRAME_RESERVED), 2);
	b->ops->close(b);
}

Test(machine, frames_are_the_lowest_ones_or_aligned_stretches)
{
	struct backend *b = open_with(&(struct backend_options){ .frames = 2071, .base_pfn = 1000 });
	static uint64_t pfns[2071];

	make_vm(b, &A, 4096);
	cr_assert_eq(b->ops->reserve(b, &A, 510, 2 + 512 + 512 + 3, pfns, &err), PW_OK);
	cr_expect(pfns[0] == 1000 && pfns[1] == 1001, "what leads to an aligned page");
	cr_expect(pfns[2] == 1024 && pfns[513] == 1535, "an aligned stretch for an aligned stretch");
	cr_expect(pfns[514] == 1536 && pfns[1025] == 2047, "and the next");
	cr_expect(pfns[1026] == 1002 && pfns[1028] == 1004, "the rest");
	cr_assert_eq(b->ops->reserve(b, &A, 2048, 1024, pfns + 1029, &err), PW_OK);
	cr_expect(pfns[1029] == 2048 && pfns[1029 + 511] == 2559);
	cr_expect(pfns[1029 + 512] == 1005, "no aligned stretch is left");
	cr_expect(pfns[1029 + 530] == 1023 && pfns[1029 + 531] == 2560);
	b->ops->unreserve(b, &A, 512, 512, pfns + 2);
	cr_assert_eq(b->ops->reserve(b, &A, 1024, 512, pfns + 2, &err), PW_OK);
	cr_expect_eq(pfns[2], 1024);
	cr_expect_eq(b->ops->reserve(b, &A, 0, 48, pfns, &err), PW_BUSY);
	cr_expect_eq(frames(b, FRAME_RESERVED), 1029 + 1024);
	cr_expect(machine_is_sound(b));
	b->ops->close(b);
}

/* Refusals. */

static bool print_stuck(void *ctx, const struct backend_run *run)
{
	struct text *t = ctx;

	t->used += (size_t)snprintf(t->at + t->used, sizeof t->at - t->used, "%" PRIu64 "+%" PRIu64 " %s|", run->pfn,
				    run->count, run->why);
	return true;
}

static void expect_stuck(struct backend *b, const char *want)
{
	struct text t = { 0 };

	cr_assert_eq(b->ops->read_stuck(b, print_stuck, &t, &err), PW_OK);
	cr_expect_str_eq(t.at, want);
}

Test(machine, a_frame_that_is_refused_fails_an_op_and_changes_nothing)
{
	struct backend *b = open_with(&(struct backend_options){
		.frames = 8, .base_pfn = 1000, .fault = "frame:2,frame:4,page_in:3,frame:7" });

	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 3), PW_OK);
	cr_expect_eq(b->ops->page_out(b, &A, 0, 3, &err), PW_BACKEND);
	cr_expect(strstr(err.msg, "of GFN 1 in state SI"), "%s", err.msg);
	cr_expect_eq(b->ops->share(b, &A, 0, 8, &err), PW_BACKEND);
	cr_expect(strstr(err.msg, "of GFN 1 in state SI"), "%s", err.msg);
	expect_state(b, &A, "0+3@1000 3+5normal ");
	cr_expect_eq(b->ops->page_out(b, &A, 0, 1, &err), PW_OK);
	cr_expect_eq(b->ops->unmap_slot(b, &A, 0, &err), PW_BACKEND);
	cr_expect(strstr(err.msg, "keeps frame 1002"), "%s", err.msg);
	expect_state(b, &A, "0+1out 1+2@1001 3+5normal ");
	expect_stuck(b, "");
	cr_expect_eq(b->ops->unmap_slot(b, &A, 0, &err), PW_OK);
	cr_expect_eq(frames(b, FRAME_USED), 0);
	b->ops->close(b);
}

Test(machine, an_exhausted_pool_asks_for_the_oldest_pages)
{
	struct backend *b = open_small(6);
	struct backend_request rq, more;
	uint64_t pfns[8];

	make_vm(b, &A, 8);
	make_vm(b, &B, 8);
	event(b, &A, VM_INIT_START);
	event(b, &B, VM_INIT_START);
	cr_assert_eq(b->ops->wait(b, 0, &rq, &err), PW_BUSY);
	cr_assert_eq(bring_in(b, &A, 2, 3), PW_OK);
	cr_assert_eq(bring_in(b, &B, 0, 2), PW_OK);
	cr_assert_eq(b->ops->reserve(b, &B, 4, 3, pfns, &err), PW_BUSY);
	cr_assert_eq(b->ops->reserve(b, &B, 4, 3, pfns, &err), PW_BUSY, "asking twice wishes once");
	cr_assert_eq(b->ops->wait(b, 100, &rq, &err), PW_OK);
	cr_expect(rq.want == WANT_PAGE_OUT && pw_uuid_equal(&rq.vm, &A) && rq.gfn == 2 && rq.count == 2);
	cr_expect_eq(b->ops->wait(b, 0, &more, &err), PW_BUSY);
	cr_assert_eq(b->ops->page_out(b, &rq.vm, rq.gfn, rq.count, &err), PW_OK);
	b->ops->complete(b, &rq, PW_OK);
	cr_assert_eq(b->ops->reserve(b, &B, 4, 3, pfns, &err), PW_OK);
	cr_expect(pfns[0] == 1000 && pfns[1] == 1001 && pfns[2] == 1005);
	cr_assert_eq(b->ops->page_in(b, &B, 4, 3, pfns, &err), PW_OK);
	cr_assert_eq(b->ops->reserve(b, &A, 2, 2, pfns, &err), PW_BUSY);
	cr_assert_eq(b->ops->wait(b, 100, &rq, &err), PW_OK);
	cr_expect(pw_uuid_equal(&rq.vm, &A) && rq.gfn == 4 && rq.count == 1, "the hand has moved on");
	cr_assert_eq(b->ops->wait(b, 100, &rq, &err), PW_OK);
	cr_expect(pw_uuid_equal(&rq.vm, &B) && rq.gfn == 0 && rq.count == 1);
	b->ops->close(b);
}

Test(machine, the_clock_passes_over_pages_that_are_wished_out_already)
{
	struct backend *b = open_small(4);
	struct backend_request rq[4];
	uint64_t pfns[4];

	make_vm(b, &A, 16);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 4), PW_OK);
	cr_assert_eq(b->ops->reserve(b, &A, 8, 2, pfns, &err), PW_BUSY);
	cr_assert_eq(b->ops->reserve(b, &A, 8, 4, pfns, &err), PW_BUSY);
	cr_assert_eq(b->ops->page_out(b, &A, 1, 1, &err), PW_OK);
	cr_assert_eq(bring_in(b, &A, 12, 1), PW_OK);
	cr_assert_eq(b->ops->reserve(b, &A, 8, 4, pfns, &err), PW_BUSY);
	for (int i = 0; i < 3; i++)
		cr_assert_eq(b->ops->wait(b, 0, &rq[i], &err), PW_OK);
	cr_expect(rq[0].gfn == 0 && rq[0].count == 2);
	cr_expect(rq[1].gfn == 2 && rq[1].count == 2);
	cr_expect(rq[2].gfn == 12 && rq[2].count == 1);
	cr_expect_eq(b->ops->wait(b, 0, &rq[3], &err), PW_BUSY);
	b->ops->close(b);
}

Test(machine, a_pool_whose_pages_cannot_leave_asks_for_nothing)
{
	struct machine_model fixed = machine_pef;
	struct backend *b;
	struct backend_request rq;
	uint64_t pfns[4];

	fixed.swaps = false;
	cr_assert_eq(machine_open(&fixed, &(struct backend_options){ .frames = 4 }, &b, &err), PW_OK);
	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 3), PW_OK);
	cr_expect_eq(b->ops->reserve(b, &A, 4, 2, pfns, &err), PW_BUSY);
	cr_expect_eq(b->ops->wait(b, 0, &rq, &err), PW_BUSY);
	b->ops->close(b);
}

Test(machine, a_kick_ends_waiting)
{
	struct backend *b = open_small(6);
	struct backend_request rq;

	b->ops->kick(b);
	cr_expect_eq(b->ops->wait(b, 60000, &rq, &err), PW_BUSY);
	b->ops->close(b);
}

/* The machine outlives its agent. */

struct home {
	char dir[64], path[96];
};

static struct home home_new(void)
{
	struct home h = { .dir = "/tmp/pw-machine-XXXXXX" };

	cr_assert(mkdtemp(h.dir));
	snprintf(h.path, sizeof h.path, "%s/machine", h.dir);
	return h;
}

static void home_remove(const struct home *h)
{
	static const char *const ends[] = { "", ".lock", ".next" };
	char path[128];

	for (size_t i = 0; i < PW_ARRAY_LEN(ends); i++) {
		snprintf(path, sizeof path, "%s%s", h->path, ends[i]);
		unlink(path);
	}
	rmdir(h->dir);
}

static off_t size_of(const struct home *h)
{
	struct stat st;

	cr_assert_eq(stat(h->path, &st), 0);
	return st.st_size;
}

static struct backend *open_home(const struct home *h)
{
	return open_with(&(struct backend_options){ .frames = 16, .base_pfn = 1000, .state = h->path });
}

Test(machine, a_machine_outlives_its_agent)
{
	struct home h = home_new();
	struct backend *b = open_home(&h), *second;
	struct text a, c;
	uint64_t pfns[2];

	make_vm(b, &A, 32);
	make_vm(b, &B, 4);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 4, 5), PW_OK);
	cr_assert_eq(b->ops->share(b, &A, 6, 1, &err), PW_OK);
	event(b, &A, VM_INIT_DONE);
	event(b, &B, VM_INIT_START);
	cr_assert_eq(b->ops->reserve(b, &B, 0, 2, pfns, &err), PW_OK);
	a = state_of(b, &A), c = state_of(b, &B);
	cr_expect_eq(machine_open(&machine_pef, &(struct backend_options){ .state = h.path, .base_pfn = 1000 }, &second,
				  &err),
		     PW_BUSY);
	b->ops->close(b);

	b = open_home(&h);
	expect_state(b, &A, a.at);
	expect_state(b, &B, c.at);
	cr_expect_eq(frames(b, FRAME_RESERVED), 0, "reservations end with the agent");
	cr_expect_eq(b->ops->destroy_vm(b, &A, &err), PW_OK);
	b->ops->close(b);
	cr_expect_eq(machine_open(&machine_pef,
				  &(struct backend_options){ .frames = 17, .base_pfn = 1000, .state = h.path }, &b,
				  &err),
		     PW_CONFLICT);
	b = open_with(&(struct backend_options){ .base_pfn = 1000, .state = h.path });
	cr_expect_eq(b->ops->read_state(b, &A, 0, 1, print_run, &a, &err), PW_NOT_FOUND);
	event(b, &B, VM_INIT_DONE);
	b->ops->close(b);
	home_remove(&h);
}

/* What machine_dump prints of a home's machine; "" if it refuses. */
static enum pw_status dump_of(const struct home *h, char text[1024])
{
	FILE *to = fmemopen(text, 1024, "w");
	enum pw_status st;

	cr_assert(to);
	text[0] = '\0';
	st = machine_dump(&machine_pef, h->path, to, &err);
	fclose(to);
	return st;
}

Test(machine, what_it_has_is_shown_beside_the_agent_that_runs_it)
{
	static const char want[] =
		"machine\tpef\t1000\t16\n"
		"vm\t01000000-0000-0000-0000-000000000000\ttransient\n"
		"run\t01000000-0000-0000-0000-000000000000\t0\t4\tnormal\t\tno flag\n"
		"run\t01000000-0000-0000-0000-000000000000\t4\t2\tresident\t1000\tKVMPPC_GFN_UVMEM_PFN\n"
		"run\t01000000-0000-0000-0000-000000000000\t6\t1\tshared\t\tKVMPPC_GFN_SHARED\n"
		"run\t01000000-0000-0000-0000-000000000000\t7\t1\tnormal\t\tno flag\n";
	struct home h = home_new();
	struct backend *b = open_home(&h);
	off_t size;
	char text[1024];

	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 4, 3), PW_OK);
	cr_assert_eq(b->ops->share(b, &A, 6, 1, &err), PW_OK);
	size = size_of(&h);
	cr_assert_eq(dump_of(&h, text), PW_OK, "%s", err.msg);
	cr_expect_str_eq(text, want);
	cr_assert_eq(truncate(h.path, size - 1), 0);
	cr_assert_eq(dump_of(&h, text), PW_OK, "a torn end is of an op that is under way");
	cr_expect(strstr(text, "\t4\t3\tresident\t1000\t"), "%s", text);
	cr_expect_eq(size_of(&h), size - 1, "nothing is written");
	b->ops->close(b);
	cr_assert_eq(truncate(h.path, 0), 0);
	cr_expect_eq(dump_of(&h, text), PW_NOT_FOUND);
	home_remove(&h);
	cr_expect_eq(dump_of(&h, text), PW_STORAGE);
}

static struct backend *open_breaking(const struct home *h, const char *fault)
{
	return open_with(&(struct backend_options){ .frames = 16, .base_pfn = 1000, .state = h->path, .fault = fault });
}

#define PEF_KEPT_AT "KVM_PPC_SVM_OFF: the ultravisor kept the frame"

Test(machine, a_vm_ends_without_the_frames_that_stay_stuck)
{
	static const char stuck[] = "1001+2 " PEF_KEPT_AT "|1004+1 " PEF_KEPT_AT "|";
	struct home h = home_new();
	struct backend *b = open_breaking(&h, "frame:2,frame:3,frame:5");
	uint64_t pfns[16];

	make_vm(b, &A, 16);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 3), PW_OK);
	cr_assert_eq(bring_in(b, &A, 8, 4), PW_OK);
	event(b, &A, VM_TERMINATE);
	expect_state(b, &A, "0+16normal ");
	expect_stuck(b, stuck);
	cr_expect_eq(frames(b, FRAME_USED), 0);
	cr_expect_eq(frames(b, FRAME_STUCK), 3);
	b->ops->close(b);

	b = open_home(&h);
	expect_stuck(b, stuck);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(b->ops->reserve(b, &A, 0, 13, pfns, &err), PW_OK);
	cr_expect(pfns[0] == 1000 && pfns[1] == 1003 && pfns[2] == 1005 && pfns[12] == 1015,
		  "stuck frames are not used");
	cr_assert_eq(b->ops->page_in(b, &A, 0, 13, pfns, &err), PW_OK);
	cr_expect_eq(b->ops->reserve(b, &A, 13, 1, pfns, &err), PW_BUSY);
	b->ops->close(b);

	b = open_breaking(&h, "frame:13");
	expect_state(b, &A, "0+1@1000 1+1@1003 2+11@1005 13+3normal ");
	cr_assert_eq(b->ops->destroy_vm(b, &A, &err), PW_OK);
	b->ops->close(b);
	b = open_home(&h);
	expect_stuck(b, "1001+2 " PEF_KEPT_AT "|1004+1 " PEF_KEPT_AT "|1015+1 " PEF_KEPT_AT "|");
	cr_expect(machine_is_sound(b));
	b->ops->close(b);
	home_remove(&h);
}

/* Makes the log long enough to be rewritten, and gives the state back that was before. */
static void wear(struct backend *b, const struct home *h)
{
	off_t size, last = 0;

	do {
		cr_assert_eq(b->ops->share(b, &B, 0, 1, &err), PW_OK);
		cr_assert_eq(b->ops->unshare(b, &B, 0, 1, &err), PW_OK);
		size = size_of(h);
		if (size < last)
			return;
		last = size;
	} while (size < 1200000);
	cr_assert_fail("the log was not rewritten at %zd bytes", (ssize_t)size);
}

Test(machine, a_long_log_is_rewritten_to_the_same_machine)
{
	struct home h = home_new();
	struct backend *b = open_breaking(&h, "frame:1");
	const struct pw_uuid C = { { 3 } }, D = { { 4 } };
	struct slot more[] = { { 9, 1000, 5 }, { 4, 500, 3 } };
	struct text a, t, c;

	make_vm(b, &A, 32);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 1), PW_OK);
	event(b, &A, VM_INIT_ABORT);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 4, 5), PW_OK);
	cr_assert_eq(b->ops->share(b, &A, 6, 1, &err), PW_OK);
	event(b, &A, VM_INIT_DONE);
	for (size_t i = 0; i < PW_ARRAY_LEN(more); i++)
		cr_assert_eq(b->ops->map_slot(b, &A, &more[i], &err), PW_OK);
	cr_assert_eq(bring_in(b, &A, 1002, 2), PW_OK);
	make_vm(b, &B, 4);
	event(b, &B, VM_INIT_START);
	cr_assert_eq(bring_in(b, &B, 2, 1), PW_OK);
	cr_assert_eq(b->ops->share(b, &B, 1, 1, &err), PW_OK);
	make_vm(b, &C, 3);
	make_vm(b, &D, 3);
	cr_assert_eq(b->ops->destroy_vm(b, &D, &err), PW_OK);
	wear(b, &h);
	cr_expect_lt(size_of(&h), 2000);
	a = state_of(b, &A), t = state_of(b, &B), c = state_of(b, &C);
	cr_assert_eq(bring_in(b, &C, 0, 1), PW_CONFLICT);
	b->ops->close(b);

	b = open_home(&h);
	expect_state(b, &A, a.at);
	expect_state(b, &B, t.at);
	expect_state(b, &C, c.at);
	expect_stuck(b, "1000+1 H_SVM_INIT_ABORT: the ultravisor kept the frame|");
	cr_expect_eq(b->ops->read_state(b, &D, 0, 1, print_run, &a, &err), PW_NOT_FOUND);
	event(b, &A, VM_TERMINATE);
	event(b, &B, VM_INIT_DONE);
	cr_expect_eq(frames(b, FRAME_USED), 1);
	b->ops->close(b);
	home_remove(&h);
}

/* Firmware that keeps a frame while a VM ends, and then cannot go on. */
static struct machine *clumsy;
static bool clumsy_fails;

static enum pw_status clumsy_open(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem, void **model,
				  struct pw_err *why)
{
	clumsy = x;
	return machine_pef.open(x, pool, mem, model, why);
}

static enum pw_status clumsy_event(void *model, struct machine_vm *vm, enum vm_event e, struct pw_err *why)
{
	if (e != VM_TERMINATE || !clumsy_fails)
		return machine_pef.event(model, vm, e, why);
	machine_keep(clumsy, 1001, "it sticks");
	return pw_fail(why, PW_BACKEND, "half-way");
}

Test(machine, an_end_that_fails_half_way_can_be_repeated_and_outlived)
{
	struct machine_model model = machine_pef;
	struct home h = home_new();
	struct backend_options o = { .frames = 8, .base_pfn = 1000, .state = h.path };
	struct backend *b;

	model.open = clumsy_open;
	model.event = clumsy_event;
	clumsy_fails = true;
	cr_assert_eq(machine_open(&model, &o, &b, &err), PW_OK, "%s", err.msg);
	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 4), PW_OK);
	event(b, &A, VM_INIT_DONE);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_TERMINATE, &err), PW_BACKEND);
	expect_stuck(b, "");
	cr_expect(machine_check(clumsy, &err), "%s", err.msg);
	b->ops->close(b);
	cr_assert_eq(machine_open(&model, &o, &b, &err), PW_OK, "%s", err.msg);
	cr_expect_eq(frames(b, FRAME_USED), 4);
	clumsy_fails = false;
	event(b, &A, VM_TERMINATE);
	cr_expect_eq(frames(b, FRAME_USED), 0);
	b->ops->close(b);
	home_remove(&h);
}

Test(machine, a_file_of_another_machine_is_refused)
{
	struct machine_model other = machine_pef;
	struct home h = home_new();
	struct backend *b = open_home(&h);
	struct machine_file *f;
	struct words odd = { 0 };
	struct stat before, after;

	b->ops->close(b);
	cr_assert_eq(stat(h.path, &before), 0);
	other.arch = "pe";
	cr_expect_eq(machine_open(&other, &(struct backend_options){ .base_pfn = 1000, .state = h.path }, &b, &err),
		     PW_CONFLICT);
	cr_expect(strstr(err.msg, "arch pef"), "%s", err.msg);
	cr_expect_eq(
		machine_open(&machine_pef, &(struct backend_options){ .base_pfn = 999, .state = h.path }, &b, &err),
		PW_CONFLICT);
	cr_assert_eq(stat(h.path, &after), 0);
	cr_expect_eq(before.st_size, after.st_size);
	unlink(h.path);
	words_add(&odd, 1);
	words_add(&odd, 0x31666570776770u);
	cr_assert_eq(machine_file_open(h.path, NULL, NULL, &f, &err), PW_OK);
	cr_assert_eq(machine_file_append(f, &odd, &err), PW_OK);
	machine_file_close(f);
	words_release(&odd);
	cr_expect_eq(machine_open(&machine_pef, &(struct backend_options){ .state = h.path }, &b, &err), PW_STORAGE);
	cr_expect(strstr(err.msg, "not the state of this machine"), "%s", err.msg);
	home_remove(&h);
	cr_expect_eq(machine_open(&machine_pef, &(struct backend_options){ .base_pfn = TREE_PAGES }, &b, &err),
		     PW_INVALID);
}

/* Every word of every record is changed in turn: the machine refuses the file, or is a sound one. */
struct groups {
	struct words at[16];
	size_t n;
};

static enum pw_status keep_group(void *ctx, const uint64_t *at, size_t count, struct pw_err *why)
{
	struct groups *g = ctx;

	cr_assert_lt(g->n, PW_ARRAY_LEN(g->at));
	for (size_t i = 0; i < count; i++)
		words_add(&g->at[g->n], at[i]);
	g->n++;
	return PW_OK;
}

static void reopen_changed(const struct home *h, struct groups *g, size_t group, size_t word, uint64_t value)
{
	struct machine_file *f;
	struct backend *b;
	uint64_t old = g->at[group].at[word];
	enum pw_status st;

	unlink(h->path);
	g->at[group].at[word] = value;
	cr_assert_eq(machine_file_open(h->path, NULL, NULL, &f, &err), PW_OK);
	for (size_t i = 0; i < g->n; i++)
		cr_assert_eq(machine_file_append(f, &g->at[i], &err), PW_OK);
	machine_file_close(f);
	g->at[group].at[word] = old;
	st = machine_open(&machine_pef, &(struct backend_options){ .frames = 16, .base_pfn = 1000, .state = h->path },
			  &b, &err);
	if (st == PW_OK) {
		cr_expect(machine_is_sound(b));
		b->ops->close(b);
	}
	cr_expect(st == PW_OK || st == PW_STORAGE || st == PW_CONFLICT || st == PW_NO_MEMORY, "%s", err.msg);
}

Test(machine, a_file_that_lies_makes_no_unsound_machine)
{
	static const uint64_t odd[] = { 0, 1, 3, 1000, 1003, (uint64_t)1 << 40, UINT64_MAX };
	struct home h = home_new();
	struct backend *b = open_breaking(&h, "frame:1");
	struct slot s = { 3, 50, 2 };
	static struct groups g;
	struct machine_file *f;

	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 3), PW_OK);
	cr_assert_eq(b->ops->page_out(b, &A, 1, 1, &err), PW_BACKEND);
	cr_assert_eq(b->ops->page_out(b, &A, 1, 1, &err), PW_OK);
	cr_assert_eq(b->ops->map_slot(b, &A, &s, &err), PW_OK);
	cr_assert_eq(b->ops->unmap_slot(b, &A, 3, &err), PW_OK);
	event(b, &A, VM_TERMINATE);
	cr_assert_eq(b->ops->destroy_vm(b, &A, &err), PW_OK);
	b->ops->close(b);
	cr_assert_eq(machine_file_open(h.path, keep_group, &g, &f, &err), PW_OK);
	machine_file_close(f);
	for (size_t i = 0; i < g.n; i++)
		for (size_t w = 0; w < g.at[i].count; w++)
			for (size_t k = 0; k < PW_ARRAY_LEN(odd); k++)
				reopen_changed(&h, &g, i, w, odd[k]);
	for (size_t i = 0; i < g.n; i++)
		words_release(&g.at[i]);
	home_remove(&h);
}

Test(machine, a_torn_group_never_was)
{
	struct home h = home_new();
	struct backend *b = open_home(&h);
	struct text before, after;
	off_t small, large;

	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	before = state_of(b, &A);
	b->ops->close(b);
	b = open_home(&h);
	small = size_of(&h);
	cr_assert_eq(b->ops->share(b, &A, 1, 3, &err), PW_OK);
	after = state_of(b, &A);
	b->ops->close(b);
	large = size_of(&h);
	cr_assert_gt(large, small);
	for (off_t cut = large - 1; cut >= small; cut -= 7) {
		cr_assert_eq(truncate(h.path, cut), 0);
		b = open_home(&h);
		expect_state(b, &A, before.at);
		cr_assert_eq(size_of(&h), small);
		cr_assert_eq(b->ops->share(b, &A, 1, 3, &err), PW_OK);
		expect_state(b, &A, after.at);
		b->ops->close(b);
		cr_assert_eq(size_of(&h), large);
	}
	home_remove(&h);
}

Test(machine, a_damaged_file_is_refused)
{
	struct home h = home_new();
	struct backend *b = open_home(&h);
	FILE *f;

	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	b->ops->close(b);
	f = fopen(h.path, "r+");
	cr_assert(f);
	fseek(f, 40, SEEK_SET);
	fputc(0x5a, f);
	fclose(f);
	cr_expect_eq(
		machine_open(&machine_pef, &(struct backend_options){ .base_pfn = 1000, .state = h.path }, &b, &err),
		PW_STORAGE);
	home_remove(&h);
	cr_expect_eq(machine_open(&machine_pef, &(struct backend_options){ .state = "/nowhere/machine" }, &b, &err),
		     PW_STORAGE);
}

Test(machine, an_op_that_cannot_be_written_ends_the_machines_use)
{
	struct home h = home_new();
	struct backend *b = open_home(&h);
	struct backend_info info;
	struct rlimit limit;
	struct text before;
	uint64_t pfns[2];

	signal(SIGXFSZ, SIG_IGN);
	make_vm(b, &A, 32);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 4, 5), PW_OK);
	before = state_of(b, &A);
	cr_assert_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = (rlim_t)size_of(&h) + 30;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	cr_expect_eq(b->ops->share(b, &A, 4, 2, &err), PW_STORAGE);
	limit.rlim_cur = limit.rlim_max;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	cr_expect_eq(b->ops->share(b, &A, 4, 2, &err), PW_STORAGE);
	cr_expect_eq(b->ops->page_out(b, &A, 4, 5, &err), PW_STORAGE);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_TERMINATE, &err), PW_STORAGE);
	cr_expect_eq(b->ops->destroy_vm(b, &A, &err), PW_STORAGE);
	cr_expect_eq(b->ops->run_vm(b, &A, &err), PW_STORAGE);
	cr_expect_eq(b->ops->reserve(b, &A, 20, 2, pfns, &err), PW_STORAGE);
	cr_expect_eq(b->ops->read_state(b, &A, 0, 1, print_run, &before, &err), PW_STORAGE);
	cr_expect_eq(b->ops->read_stuck(b, print_stuck, &before, &err), PW_STORAGE);
	b->ops->info(b, &info);
	b->ops->close(b);
	b = open_home(&h);
	expect_state(b, &A, before.at);
	cr_expect_eq(b->ops->share(b, &A, 4, 2, &err), PW_OK, "%s", err.msg);
	b->ops->close(b);
	home_remove(&h);
}

/* Fails the 1st, 2nd ... allocation of the model until the op gets through. */
Test(machine, an_op_without_memory_changes_nothing)
{
	struct home h = home_new();
	struct backend *b = open_home(&h);
	struct machine *x = machine_of_backend(b);
	uint64_t pfns[5];

	make_vm(b, &A, 2000);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(b->ops->reserve(b, &A, 1021, 5, pfns, &err), PW_OK);
	for (int op = 0; op < 7; op++) {
		struct text before = state_of(b, &A);
		enum pw_status st = PW_NO_MEMORY;
		unsigned tries = 0;

		for (size_t room = 0; st == PW_NO_MEMORY; room += sizeof(struct tree_node)) {
			x->mem.limit = x->mem.used + room + 1;
			switch (op) {
			case 0: st = b->ops->page_in(b, &A, 1021, 5, pfns, &err); break;
			case 1: st = b->ops->share(b, &A, 100, 3, &err); break;
			case 2: st = b->ops->unshare(b, &A, 101, 1, &err); break;
			case 3: st = b->ops->page_out(b, &A, 1022, 3, &err); break;
			case 4: st = b->ops->vm_event(b, &A, VM_INIT_DONE, &err); break;
			case 5: st = b->ops->vm_event(b, &A, VM_TERMINATE, &err); break;
			default: st = b->ops->destroy_vm(b, &A, &err); break;
			}
			x->mem.limit = 0;
			tries++;
			if (st == PW_NO_MEMORY)
				expect_state(b, &A, before.at);
		}
		cr_expect_eq(st, PW_OK, "op %d: %s", op, err.msg);
		cr_expect(op != 0 || tries > 1);
	}
	b->ops->close(b);
	home_remove(&h);
}

/* A child keeps changing pages 0..7 as one run, and is killed; the run must be of one state whenever that was. */
static void churn(const struct home *h)
{
	struct backend *b = open_home(h);

	for (;;) {
		if (b->ops->share(b, &A, 0, 8, &err) != PW_OK || bring_in(b, &A, 0, 8) != PW_OK ||
		    b->ops->page_out(b, &A, 0, 8, &err) != PW_OK)
			_exit(1);
	}
}

Test(machine, each_op_is_whole_or_not_at_all_after_kill)
{
	static const char *const whole[] = { "0+8shared ", "0+8@1000 ", "0+8out " };
	struct home h = home_new();
	struct backend *b = open_home(&h);

	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	event(b, &A, VM_INIT_DONE);
	b->ops->close(b);
	for (int round = 0; round < 25; round++) {
		struct timespec pause = { 0, 1000000 + rand() % 30000000 };
		pid_t child = fork();
		struct text t;
		int how, i = 0;

		cr_assert_geq(child, 0);
		if (child == 0)
			churn(&h);
		nanosleep(&pause, NULL);
		kill(child, SIGKILL);
		waitpid(child, &how, 0);
		cr_assert(WIFSIGNALED(how), "the child ended by itself");
		b = open_home(&h);
		t = state_of(b, &A);
		while (i < 3 && strcmp(t.at, whole[i]))
			i++;
		cr_expect_lt(i, 3, "half of an op: %s", t.at);
		cr_expect(machine_is_sound(b));
		b->ops->close(b);
	}
	home_remove(&h);
}
