#include "agents/backend_pef.h"

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

#include "agents/pef_machine.h"

static const struct pw_uuid A = { { 1 } }, B = { { 2 } };
static struct pw_err err;

static struct backend *open_with(const struct backend_options *o)
{
	struct backend *b = NULL;

	cr_assert_eq(backend_pef_open(o, &b, &err), PW_OK, "%s", err.msg);
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

static void expect_state(struct backend *b, const struct pw_uuid *id, const char *want)
{
	struct text t = state_of(b, id);

	cr_expect_str_eq(t.at, want);
	cr_expect(pef_check(backend_pef_model(b)));
}

Test(backend_pef, says_what_it_is)
{
	struct backend *b = open_with(&(struct backend_options){ 0 });
	struct backend_info i;

	b->ops->info(b, &i);
	cr_expect_str_eq(i.arch, "pef");
	cr_expect_str_eq(i.kind, "emulated");
	cr_expect(i.page_shift == 16 && i.frames == BACKEND_PEF_FRAMES && i.base_pfn == 0);
	b->ops->close(b);
}

Test(backend_pef, no_frame_is_taken_that_nobody_chose)
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
	cr_expect_eq(backend_pef_model(b)->used, 0);
	b->ops->close(b);
}

Test(backend_pef, repeated_ops_are_ok)
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

Test(backend_pef, what_the_law_forbids_is_refused_and_changes_nothing)
{
	struct backend *b = open_small(8);
	uint64_t pfns[4] = { 1000, 1001, 1002, 1003 };
	struct slot overlap = { 1, 3, 2 };
	uint64_t digest;

	make_vm(b, &A, 8);
	cr_expect_eq(b->ops->share(b, &A, 0, 1, &err), PW_CONFLICT, "a normal VM");
	cr_expect_eq(b->ops->vm_event(b, &A, VM_INIT_DONE, &err), PW_CONFLICT);
	cr_expect_eq(b->ops->vm_event(b, &B, VM_INIT_DONE, &err), PW_NOT_FOUND);
	event(b, &A, VM_INIT_START);
	event(b, &A, VM_INIT_DONE);
	cr_assert_eq(bring_in(b, &A, 0, 2), PW_OK);
	digest = pef_digest(backend_pef_model(b));
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
	cr_expect_eq(pef_digest(backend_pef_model(b)), digest);
	b->ops->close(b);
}

Test(backend_pef, an_ultravisor_that_refuses_leaves_all_as_it_was)
{
	struct backend *b = open_small(8);
	uint64_t digest;

	make_vm(b, &A, 8);
	backend_pef_refuse(b, 1);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_INIT_START, &err), PW_BACKEND);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 3), PW_OK);
	digest = pef_digest(backend_pef_model(b));
	backend_pef_refuse(b, 1);
	cr_expect_eq(bring_in(b, &A, 4, 3), PW_BACKEND);
	cr_expect(strstr(err.msg, "H_SVM_PAGE_IN of GFN 4"), "%s", err.msg);
	backend_pef_refuse(b, 1);
	cr_expect_eq(b->ops->page_out(b, &A, 0, 3, &err), PW_BACKEND);
	backend_pef_refuse(b, 1);
	cr_expect_eq(b->ops->share(b, &A, 0, 8, &err), PW_BACKEND);
	backend_pef_refuse(b, 1);
	cr_expect_eq(b->ops->unshare(b, &A, 4, 2, &err), PW_BACKEND);
	backend_pef_refuse(b, 1);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_TERMINATE, &err), PW_BACKEND);
	cr_expect_eq(pef_digest(backend_pef_model(b)), digest);
	cr_expect_eq(backend_pef_model(b)->held, 0);
	b->ops->close(b);
}

Test(backend_pef, an_exhausted_pool_asks_for_the_oldest_pages)
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

Test(backend_pef, the_clock_passes_over_pages_that_are_wished_out_already)
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

Test(backend_pef, a_kick_ends_waiting)
{
	struct backend *b = open_small(6);
	struct backend_request rq;

	b->ops->kick(b);
	cr_expect_eq(b->ops->wait(b, 60000, &rq, &err), PW_BUSY);
	b->ops->close(b);
}

static void expect_tag(struct backend *b, uint64_t gfn, uint64_t want)
{
	uint64_t tag = 0;

	cr_assert_eq(backend_pef_read(b, &A, gfn, &tag, &err), PW_OK);
	cr_expect_eq(tag, want, "GFN %" PRIu64 ": %" PRIu64, gfn, tag);
}

Test(backend_pef, contents_follow_the_pages)
{
	struct backend *b = open_small(8);

	make_vm(b, &A, 8);
	for (uint64_t gfn = 0; gfn < 8; gfn++)
		cr_assert_eq(backend_pef_write(b, &A, gfn, 100 + gfn, &err), PW_OK);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 3), PW_OK);
	cr_assert_eq(b->ops->page_out(b, &A, 0, 2, &err), PW_OK);
	cr_assert_eq(bring_in(b, &A, 0, 1), PW_OK);
	cr_assert_eq(b->ops->share(b, &A, 2, 2, &err), PW_OK);
	expect_tag(b, 0, 100), expect_tag(b, 1, 101), expect_tag(b, 2, 0), expect_tag(b, 3, 0), expect_tag(b, 4, 104);
	cr_assert_eq(backend_pef_write(b, &A, 2, 7, &err), PW_OK);
	cr_assert_eq(b->ops->share(b, &A, 2, 1, &err), PW_OK);
	expect_tag(b, 2, 7);
	cr_assert_eq(b->ops->unshare(b, &A, 2, 1, &err), PW_OK);
	expect_tag(b, 2, 0);
	cr_assert_eq(b->ops->unshare(b, &A, 4, 1, &err), PW_OK);
	expect_tag(b, 4, 104);
	event(b, &A, VM_INIT_DONE);
	expect_tag(b, 0, 100), expect_tag(b, 1, 101), expect_tag(b, 5, 0);
	event(b, &A, VM_TERMINATE);
	expect_tag(b, 0, BACKEND_PEF_TAG_LOST), expect_tag(b, 7, BACKEND_PEF_TAG_LOST);
	cr_assert_eq(backend_pef_write(b, &A, 0, 5, &err), PW_OK);
	cr_assert_eq(backend_pef_write(b, &A, 1, 6, &err), PW_OK);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 0, 1), PW_OK);
	event(b, &A, VM_INIT_ABORT);
	expect_tag(b, 0, 5), expect_tag(b, 1, 6);
	b->ops->close(b);
}

/* The machine outlives its agent. */

struct home {
	char dir[64], path[96];
};

static struct home home_new(void)
{
	struct home h = { .dir = "/tmp/pw-pef-XXXXXX" };

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

Test(backend_pef, a_machine_outlives_its_agent)
{
	struct home h = home_new();
	struct backend *b = open_home(&h), *second;
	struct text a, c;
	uint64_t pfns[2];

	make_vm(b, &A, 32);
	make_vm(b, &B, 4);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 4, 5), PW_OK);
	cr_assert_eq(backend_pef_write(b, &A, 5, 77, &err), PW_OK);
	cr_assert_eq(b->ops->share(b, &A, 6, 1, &err), PW_OK);
	event(b, &A, VM_INIT_DONE);
	event(b, &B, VM_INIT_START);
	cr_assert_eq(b->ops->reserve(b, &B, 0, 2, pfns, &err), PW_OK);
	a = state_of(b, &A), c = state_of(b, &B);
	cr_expect_eq(backend_pef_open(&(struct backend_options){ .state = h.path, .base_pfn = 1000 }, &second, &err),
		     PW_BUSY);
	b->ops->close(b);

	b = open_home(&h);
	expect_state(b, &A, a.at);
	expect_state(b, &B, c.at);
	expect_tag(b, 5, 77);
	cr_expect_eq(backend_pef_model(b)->held, 0, "reservations end with the agent");
	cr_expect_eq(b->ops->destroy_vm(b, &A, &err), PW_OK);
	b->ops->close(b);
	cr_expect_eq(backend_pef_open(&(struct backend_options){ .frames = 17, .base_pfn = 1000, .state = h.path }, &b,
				      &err),
		     PW_CONFLICT);
	b = open_with(&(struct backend_options){ .base_pfn = 1000, .state = h.path });
	cr_expect_eq(b->ops->read_state(b, &A, 0, 1, print_run, &a, &err), PW_NOT_FOUND);
	event(b, &B, VM_INIT_DONE);
	b->ops->close(b);
	home_remove(&h);
}

Test(backend_pef, a_torn_group_never_was)
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

Test(backend_pef, a_damaged_file_is_refused)
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
	cr_expect_eq(backend_pef_open(&(struct backend_options){ .base_pfn = 1000, .state = h.path }, &b, &err),
		     PW_STORAGE);
	home_remove(&h);
	cr_expect_eq(backend_pef_open(&(struct backend_options){ .state = "/nowhere/machine" }, &b, &err), PW_STORAGE);
}

Test(backend_pef, a_full_disk_refuses_and_changes_nothing)
{
	struct home h = home_new();
	struct backend *b = open_home(&h);
	struct rlimit limit;
	struct text before;

	signal(SIGXFSZ, SIG_IGN);
	make_vm(b, &A, 32);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(bring_in(b, &A, 4, 5), PW_OK);
	before = state_of(b, &A);
	cr_assert_eq(getrlimit(RLIMIT_FSIZE, &limit), 0);
	limit.rlim_cur = (rlim_t)size_of(&h) + 30;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	cr_expect_eq(b->ops->share(b, &A, 4, 2, &err), PW_STORAGE);
	cr_expect_eq(b->ops->page_out(b, &A, 4, 5, &err), PW_STORAGE);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_TERMINATE, &err), PW_STORAGE);
	cr_expect_eq(b->ops->destroy_vm(b, &A, &err), PW_STORAGE);
	cr_expect_eq(bring_in(b, &A, 20, 2), PW_STORAGE);
	expect_state(b, &A, before.at);
	limit.rlim_cur = limit.rlim_max;
	cr_assert_eq(setrlimit(RLIMIT_FSIZE, &limit), 0);
	cr_expect_eq(b->ops->share(b, &A, 4, 2, &err), PW_OK, "%s", err.msg);
	b->ops->close(b);
	b = open_home(&h);
	expect_state(b, &A, "0+4normal 4+2shared 6+3@1002 9+23normal ");
	b->ops->close(b);
	home_remove(&h);
}

/* Fails the 1st, 2nd ... allocation of the model until the op gets through. */
Test(backend_pef, an_op_without_memory_changes_nothing)
{
	struct home h = home_new();
	struct backend *b = open_home(&h);
	struct pef_machine *x = PW_CONTAINER_OF(b, struct pef_machine, base);
	uint64_t pfns[5];

	make_vm(b, &A, 2000);
	event(b, &A, VM_INIT_START);
	cr_assert_eq(backend_pef_write(b, &A, 700, 9, &err), PW_OK);
	cr_assert_eq(b->ops->reserve(b, &A, 1021, 5, pfns, &err), PW_OK);
	for (int op = 0; op < 7; op++) {
		struct text before = state_of(b, &A);
		enum pw_status st = PW_NO_MEMORY;
		unsigned tries = 0;

		for (size_t room = 0; st == PW_NO_MEMORY; room += sizeof(struct tree_node)) {
			arena_trim(&x->model.arena);
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
			if (st == PW_BACKEND && op == 4)
				st = PW_NO_MEMORY; /* the machine's answer to a migration that fails */
			if (st == PW_NO_MEMORY)
				expect_state(b, &A, before.at);
		}
		cr_expect_eq(st, PW_OK, "op %d: %s", op, err.msg);
		cr_expect(op != 0 || tries > 3);
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

Test(backend_pef, each_op_is_whole_or_not_at_all_after_kill)
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
		cr_expect(pef_check(backend_pef_model(b)));
		b->ops->close(b);
	}
	home_remove(&h);
}

Test(backend_pef, random_ops_read_back_the_same_after_a_restart)
{
	unsigned seed = (unsigned)time(NULL);
	struct home h = home_new();
	struct backend *b = open_home(&h);

	fprintf(stderr, "SEED=%u\n", seed);
	make_vm(b, &A, 24);
	make_vm(b, &B, 24);
	for (int i = 0; i < 3000; i++) {
		const struct pw_uuid *vm = rand_r(&seed) % 2 ? &A : &B;
		uint64_t gfn = (uint64_t)rand_r(&seed) % 24, count = 1 + (uint64_t)rand_r(&seed) % 6;
		struct slot s = { 1, 30, count };
		enum pw_status st;

		backend_pef_refuse(b, rand_r(&seed) % 20 == 0);
		switch (rand_r(&seed) % 12) {
		case 0: st = b->ops->vm_event(b, vm, (enum vm_event)(rand_r(&seed) % VM_EVENT_COUNT), &err); break;
		case 1: st = b->ops->map_slot(b, vm, &s, &err); break;
		case 2: st = b->ops->unmap_slot(b, vm, 1, &err); break;
		case 3:
		case 4: st = b->ops->page_out(b, vm, gfn, count, &err); break;
		case 5: st = b->ops->share(b, vm, gfn, count, &err); break;
		case 6: st = b->ops->unshare(b, vm, gfn, count, &err); break;
		case 7: st = backend_pef_write(b, vm, gfn, (uint64_t)i, &err); break;
		default: st = bring_in(b, vm, gfn, count); break;
		}
		cr_assert(st == PW_OK || err.msg[0]);
		cr_assert(pef_check(backend_pef_model(b)), "seed %u step %d", seed, i);
		if (i % 50 == 0) {
			struct text a = state_of(b, &A), c = state_of(b, &B);
			uint64_t tag, again;

			cr_assert_eq(backend_pef_read(b, &A, gfn, &tag, &err), PW_OK);
			b->ops->close(b);
			b = open_home(&h);
			expect_state(b, &A, a.at);
			expect_state(b, &B, c.at);
			cr_assert_eq(backend_pef_read(b, &A, gfn, &again, &err), PW_OK);
			cr_expect_eq(tag, again);
		}
	}
	b->ops->close(b);
	home_remove(&h);
}

Test(backend_pef, a_long_log_is_shortened)
{
	struct home h = home_new();
	struct backend *b = open_home(&h);
	off_t most = 0;

	make_vm(b, &A, 8);
	event(b, &A, VM_INIT_START);
	for (int i = 0; i < 10000; i++) {
		cr_assert_eq(b->ops->share(b, &A, 0, 8, &err), PW_OK);
		cr_assert_eq(b->ops->unshare(b, &A, 0, 8, &err), PW_OK);
		most = size_of(&h) > most ? size_of(&h) : most;
	}
	cr_expect_lt(most, 1100000);
	b->ops->close(b);
	b = open_home(&h);
	expect_state(b, &A, "0+8out ");
	b->ops->close(b);
	home_remove(&h);
}
