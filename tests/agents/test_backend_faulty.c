#include "agents/machine.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

static const struct pw_uuid A = { { 1 } };
static struct pw_err err;

static struct backend *open_pef(void)
{
	struct backend *b = NULL;

	cr_assert_eq(machine_open(&machine_pef, &(struct backend_options){ .frames = 8 }, &b, &err), PW_OK);
	return b;
}

static struct backend *open_faulty(const char *fault)
{
	struct backend *b;

	cr_assert_eq(backend_faulty_wrap(open_pef(), fault, &b, &err), PW_OK, "%s", err.msg);
	return b;
}

static void launch(struct backend *b)
{
	struct slot s = { 0, 0, 8 };
	struct backend_vm_spec spec = { .id = A, .slots = &s, .slot_count = 1 };

	cr_assert_eq(b->ops->create_vm(b, &spec, &err), PW_OK);
	cr_assert_eq(b->ops->vm_event(b, &A, VM_INIT_START, &err), PW_OK);
}

static bool keep_state(void *ctx, const struct backend_run *run)
{
	*(enum gfn_state *)ctx = run->state;
	return true;
}

static enum gfn_state state_of(struct backend *b, uint64_t gfn)
{
	enum gfn_state s = GFN_STATE_COUNT;

	cr_assert_eq(b->ops->read_state(b, &A, gfn, 1, keep_state, &s, &err), PW_OK);
	return s;
}

Test(backend_faulty, is_transparent_but_for_its_fault)
{
	struct backend *b = open_faulty("share:2,share:4:fail,vm_event:2");
	struct backend_info i;

	cr_expect_str_eq(b->ops->name, "pef");
	b->ops->info(b, &i);
	cr_expect_eq(i.frames, 8);
	launch(b);
	cr_expect_eq(b->ops->share(b, &A, 0, 1, &err), PW_OK);
	cr_expect_eq(b->ops->share(b, &A, 1, 1, &err), PW_BACKEND);
	cr_expect(strstr(err.msg, "share"), "%s", err.msg);
	cr_expect_eq(state_of(b, 0), GFN_SHARED);
	cr_expect_eq(state_of(b, 1), GFN_NORMAL, "hardware was not asked");
	cr_expect_eq(b->ops->share(b, &A, 1, 1, &err), PW_OK);
	cr_expect_eq(b->ops->share(b, &A, 1, 1, &err), PW_BACKEND);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_INIT_DONE, &err), PW_BACKEND);
	cr_expect_eq(b->ops->vm_event(b, &A, VM_INIT_DONE, &err), PW_OK);
	b->ops->close(b);
}

Test(backend_faulty, delays)
{
	struct backend *b = open_faulty("share:1:delay=80");
	struct timespec from, to;

	launch(b);
	clock_gettime(CLOCK_MONOTONIC, &from);
	cr_expect_eq(b->ops->share(b, &A, 0, 1, &err), PW_OK);
	clock_gettime(CLOCK_MONOTONIC, &to);
	cr_expect_geq((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000, 79);
	b->ops->close(b);
}

/* Shares page 0 in a child; what the machine's file says of it after the crash. */
static enum gfn_state crash(const char *fault, const char *state)
{
	struct backend_options o = { .frames = 8, .state = state };
	struct backend *b, *inner;
	enum gfn_state s;
	int how;
	pid_t child = fork();

	cr_assert_geq(child, 0);
	if (child == 0) {
		if (machine_open(&machine_pef, &o, &inner, &err) != PW_OK ||
		    backend_faulty_wrap(inner, fault, &b, &err) != PW_OK)
			_exit(1);
		launch(b);
		_exit(b->ops->share(b, &A, 0, 1, &err) == PW_OK ? 2 : 3);
	}
	waitpid(child, &how, 0);
	cr_expect(WIFEXITED(how) && WEXITSTATUS(how) == 137, "%s: %d", fault, how);
	cr_assert_eq(machine_open(&machine_pef, &o, &b, &err), PW_OK, "%s", err.msg);
	s = state_of(b, 0);
	b->ops->close(b);
	return s;
}

Test(backend_faulty, crashes_before_or_after_hardware_was_asked)
{
	char dir[] = "/tmp/pw-faulty-XXXXXX", path[2][64], lock[sizeof path + 8];

	cr_assert(mkdtemp(dir));
	for (int i = 0; i < 2; i++)
		snprintf(path[i], sizeof path[i], "%s/%d", dir, i);
	cr_expect_eq(crash("share:1:crash", path[0]), GFN_NORMAL);
	cr_expect_eq(crash("share:1:crash-after", path[1]), GFN_SHARED);
	for (int i = 0; i < 2; i++) {
		snprintf(lock, sizeof lock, "%s.lock", path[i]);
		unlink(path[i]);
		unlink(lock);
	}
	rmdir(dir);
}

Test(backend_faulty, leaves_refused_frames_to_the_machine)
{
	static const char fault[] = "page_in:3,frame:7,share:1:delay=5,frame:2:fail";
	struct backend_options o = { .fault = "share:1,frame:1" };
	struct backend *b;

	cr_expect_eq(backend_fault_frame(fault, 0), 7);
	cr_expect_eq(backend_fault_frame(fault, 1), 2);
	cr_expect_eq(backend_fault_frame(fault, 2), 0);
	cr_expect_eq(backend_fault_frame("page_in:3", 0), 0);
	cr_expect_eq(backend_fault_frame("frame:1,boom", 1), 0);
	cr_expect_eq(backend_fault_frame("", 0), 0);
	cr_expect_eq(backend_fault_frame(NULL, 0), 0);
	cr_expect_eq(backend_kvm_open(&o, &b, &err), PW_INVALID, "KVM has no such fault");
	cr_expect(strstr(err.msg, "frame:N"), "%s", err.msg);
}

Test(backend_faulty, reads_its_specification)
{
	static const char *const good[] = { "page_in:3",         "page_in:3:delay=200",
					    "page_in:3:crash",   "page_in:3:crash-after",
					    "unreserve:1:crash", "reserve:1,unshare:2,wait:3:fail,complete:4:delay=1",
					    "frame:7",           "page_in:3:delay=200,frame:1,frame:2:fail" };
	static const char *const bad[] = { "page_in",          "page_in:",
					   "page_in:0",        "page_in:x",
					   "page:1",           "page_in:1:",
					   "page_in:1:boom",   "page_in:1:delay",
					   "page_in:1:delay=", "page_in:1:delay=x",
					   "page_in:1,",       ",page_in:1",
					   "page_in:1 ",       "unreserve:1",
					   "complete:1:fail",  "frame",
					   "frame:0",          "frame:1:crash",
					   "frame:1:delay=1",  "frame:1,",
					   "page_in:-1",       "page_in:99999999999999999999999" };
	struct backend *b, *inner;

	for (size_t i = 0; i < PW_ARRAY_LEN(good); i++) {
		b = open_faulty(good[i]);
		b->ops->close(b);
	}
	inner = open_pef();
	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++)
		cr_expect_eq(backend_faulty_wrap(inner, bad[i], &b, &err), PW_INVALID, "%s", bad[i]);
	cr_expect_eq(backend_faulty_wrap(inner, NULL, &b, &err), PW_OK);
	cr_expect_eq(b, inner, "no fault, no wrapper");
	b->ops->close(b);
}
