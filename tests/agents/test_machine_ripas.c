/* RIPAS on the emulated CCA machine as a backend: launches that leave pages EMPTY, guests that give pages up and ask
 * for them again, and that the state file keeps both. */
#include "agents/machine_impl.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "engine/arch/law.h"

extern const struct arch_law cca_law;

#define BASE  ((uint64_t)4096)
#define PAGES ((uint64_t)32)

static const struct pw_uuid ID = { { 7 } };

struct site {
	struct backend *b;
	struct pw_err err;
	char dir[40], path[64], script[64], text[2048];
	size_t used;
};

static void open_at(struct site *s)
{
	struct backend_options o = { .frames = 64, .base_pfn = BASE, .state = s->path, .script = s->script };

	cr_assert_eq(machine_open(&machine_cca, &o, &s->b, &s->err), PW_OK, "%s", s->err.msg);
}

static void begin(struct site *s)
{
	struct slot slot = { 0, 0, PAGES };
	struct backend_vm_spec spec = { .id = ID, .slots = &slot, .slot_count = 1 };

	*s = (struct site){ .dir = "/tmp/pw-ripas-XXXXXX" };
	cr_assert(mkdtemp(s->dir));
	snprintf(s->path, sizeof s->path, "%s/machine", s->dir);
	snprintf(s->script, sizeof s->script, "%s/script", s->dir);
	open_at(s);
	cr_assert_eq(s->b->ops->create_vm(s->b, &spec, &s->err), PW_OK, "%s", s->err.msg);
}

static void end(struct site *s)
{
	static const char *const names[] = { "machine", "machine.lock", "machine.next", "script" };
	char path[80];

	s->b->ops->close(s->b);
	for (size_t i = 0; i < PW_ARRAY_LEN(names); i++) {
		snprintf(path, sizeof path, "%s/%s", s->dir, names[i]);
		unlink(path);
	}
	cr_expect_eq(rmdir(s->dir), 0);
}

static void event(struct site *s, enum vm_event e)
{
	cr_assert_eq(s->b->ops->vm_event(s->b, &ID, e, &s->err), PW_OK, "%s", s->err.msg);
}

static void page_in(struct site *s, uint64_t gfn, uint64_t count)
{
	uint64_t pfns[PAGES];

	cr_assert_eq(s->b->ops->reserve(s->b, &ID, gfn, count, pfns, &s->err), PW_OK, "%s", s->err.msg);
	cr_assert_eq(s->b->ops->page_in(s->b, &ID, gfn, count, pfns, &s->err), PW_OK, "%s", s->err.msg);
}

static uint64_t part(struct site *s, uint64_t gfn, uint64_t count, bool ram, uint64_t accept)
{
	struct backend_ripas what = { .gfn = gfn, .count = count, .ram = ram, .accept = accept };
	uint64_t done;

	cr_assert_eq(s->b->ops->set_ripas(s->b, &ID, &what, &done, &s->err), PW_OK, "%s", s->err.msg);
	return done;
}

static void empty(struct site *s, uint64_t gfn, uint64_t count)
{
	cr_assert_eq(part(s, gfn, count, false, count), count);
}

static bool print_run(void *ctx, const struct backend_run *run)
{
	struct site *s = ctx;
	unsigned at = run->arch ? run->arch - 1 : cca_law.rest[run->state];

	s->used += (size_t)snprintf(s->text + s->used, sizeof s->text - s->used, "%" PRIu64 "+%" PRIu64 " %s%s\n",
				    run->gfn, run->count, cca_law.states[at].name,
				    cca_law.states[at].is == GFN_SECURE_OUT ? " out" : "");
	return true;
}

static void expect(struct site *s, const char *want)
{
	s->used = 0;
	cr_assert_eq(s->b->ops->read_state(s->b, &ID, 0, PAGES, print_run, s, &s->err), PW_OK, "%s", s->err.msg);
	cr_expect_str_eq(s->text, want);
	cr_expect(machine_check(machine_of_backend(s->b), &s->err), "%s", s->err.msg);
}

/* The machine from its log, and from the log rewritten: both are what it was. */
static void expect_outlived(struct site *s, const char *want)
{
	expect(s, want);
	for (int rewritten = 0; rewritten < 2; rewritten++) {
		if (rewritten)
			cr_assert(machine_log_shorten(machine_of_backend(s->b)), "%s", want);
		s->b->ops->close(s->b);
		open_at(s);
		expect(s, want);
	}
}

Test(machine_ripas, a_launch_leaves_empty_what_it_was_told)
{
	struct site s;

	begin(&s);
	empty(&s, 4, 8);
	cr_expect_eq(part(&s, 6, 2, true, 2), 2, "the last word counts");
	empty(&s, 4, 8);
	part(&s, 6, 2, true, 2);
	expect_outlived(&s, "0+32 UNASSIGNED/RAM\n"); /* it is not launched yet */
	event(&s, VM_INIT_START);
	expect_outlived(&s, "0+4 UNASSIGNED/RAM\n4+2 UNASSIGNED/EMPTY\n6+2 UNASSIGNED/RAM\n8+4 UNASSIGNED/EMPTY\n"
			    "12+20 UNASSIGNED/RAM\n");
	cr_assert_eq(s.b->ops->share(s.b, &ID, 8, 2, &s.err), PW_OK);
	cr_assert_eq(s.b->ops->unshare(s.b, &ID, 10, 1, &s.err), PW_OK);
	page_in(&s, 4, 1); /* with contents: it is RAM */
	expect_outlived(&s, "0+4 UNASSIGNED/RAM\n4+1 ASSIGNED/RAM\n5+1 UNASSIGNED/EMPTY\n6+2 UNASSIGNED/RAM\n"
			    "8+2 ASSIGNED_NS, UNASSIGNED/EMPTY\n10+1 UNASSIGNED/EMPTY out\n11+1 UNASSIGNED/EMPTY\n"
			    "12+20 UNASSIGNED/RAM\n");
	event(&s, VM_INIT_DONE);
	expect_outlived(&s, "0+4 UNASSIGNED/RAM out\n4+1 ASSIGNED/RAM\n5+1 UNASSIGNED/EMPTY out\n"
			    "6+2 UNASSIGNED/RAM out\n8+2 ASSIGNED_NS, UNASSIGNED/EMPTY\n10+2 UNASSIGNED/EMPTY out\n"
			    "12+20 UNASSIGNED/RAM out\n");
	event(&s, VM_TERMINATE);
	event(&s, VM_INIT_START);
	expect_outlived(&s, "0+32 UNASSIGNED/RAM\n"); /* it was said for one launch */
	end(&s);
}

Test(machine_ripas, what_a_guest_gives_up_stays_empty)
{
	struct site s;

	begin(&s);
	event(&s, VM_INIT_START);
	event(&s, VM_INIT_DONE);
	page_in(&s, 0, 16);
	cr_assert_eq(s.b->ops->share(s.b, &ID, 20, 4, &s.err), PW_OK);
	empty(&s, 8, 14);
	expect_outlived(&s, "0+8 ASSIGNED/RAM\n8+8 ASSIGNED/EMPTY\n16+4 UNASSIGNED/EMPTY out\n"
			    "20+2 ASSIGNED_NS, UNASSIGNED/EMPTY\n22+2 ASSIGNED_NS\n24+8 UNASSIGNED/RAM out\n");
	cr_assert_eq(s.b->ops->page_out(s.b, &ID, 6, 6, &s.err), PW_OK);
	expect_outlived(&s, "0+6 ASSIGNED/RAM\n6+2 UNASSIGNED/RAM out\n8+4 UNASSIGNED/EMPTY out\n12+4 ASSIGNED/EMPTY\n"
			    "16+4 UNASSIGNED/EMPTY out\n20+2 ASSIGNED_NS, UNASSIGNED/EMPTY\n22+2 ASSIGNED_NS\n"
			    "24+8 UNASSIGNED/RAM out\n");
	page_in(&s, 6, 4);
	cr_assert_eq(s.b->ops->share(s.b, &ID, 12, 1, &s.err), PW_OK);
	cr_assert_eq(s.b->ops->unshare(s.b, &ID, 21, 2, &s.err), PW_OK);
	expect_outlived(&s, "0+8 ASSIGNED/RAM\n8+2 ASSIGNED/EMPTY\n10+2 UNASSIGNED/EMPTY out\n"
			    "12+1 ASSIGNED_NS, UNASSIGNED/EMPTY\n13+3 ASSIGNED/EMPTY\n16+4 UNASSIGNED/EMPTY out\n"
			    "20+1 ASSIGNED_NS, UNASSIGNED/EMPTY\n21+1 UNASSIGNED/EMPTY out\n22+1 UNASSIGNED/RAM out\n"
			    "23+1 ASSIGNED_NS\n24+8 UNASSIGNED/RAM out\n");
	cr_expect_eq(part(&s, 0, PAGES, true, PAGES), PAGES);
	expect_outlived(&s, "0+10 ASSIGNED/RAM\n10+2 UNASSIGNED/RAM out\n12+1 ASSIGNED_NS\n13+3 ASSIGNED/RAM\n"
			    "16+4 UNASSIGNED/RAM out\n20+1 ASSIGNED_NS\n21+2 UNASSIGNED/RAM out\n23+1 ASSIGNED_NS\n"
			    "24+8 UNASSIGNED/RAM out\n");
	end(&s);
}

/* The host accepts a part; the file keeps how far it went. */
Test(machine_ripas, a_part_is_done_and_told)
{
	struct site s;

	begin(&s);
	event(&s, VM_INIT_START);
	event(&s, VM_INIT_DONE);
	page_in(&s, 0, 8);
	cr_expect_eq(part(&s, 2, 8, false, 3), 3);
	cr_expect_eq(part(&s, 12, 4, false, 0), 0);
	cr_expect_eq(part(&s, 3, 2, true, 1), 1);
	cr_expect_eq(part(&s, 20, 4, false, 99), 4, "no more than it asked for");
	expect_outlived(&s, "0+2 ASSIGNED/RAM\n2+1 ASSIGNED/EMPTY\n3+1 ASSIGNED/RAM\n4+1 ASSIGNED/EMPTY\n"
			    "5+3 ASSIGNED/RAM\n8+12 UNASSIGNED/RAM out\n20+4 UNASSIGNED/EMPTY out\n"
			    "24+8 UNASSIGNED/RAM out\n");
	end(&s);
}

/* Without change_destroyed a change ends before the first page that the host destroyed. */
Test(machine_ripas, what_the_host_destroyed_may_be_kept)
{
	struct backend_ripas what = { .gfn = 0, .count = 8, .keep = true, .accept = 8 };
	struct site s;
	uint64_t done;

	begin(&s);
	event(&s, VM_INIT_START);
	page_in(&s, 4, 2);
	cr_assert_eq(s.b->ops->page_out(s.b, &ID, 4, 2, &s.err), PW_OK);
	event(&s, VM_INIT_DONE);
	expect(&s, "0+4 UNASSIGNED/RAM out\n4+2 UNASSIGNED/DESTROYED out\n6+26 UNASSIGNED/RAM out\n");
	cr_expect_eq(s.b->ops->set_ripas(s.b, &ID, &what, &done, &s.err), PW_OK);
	cr_expect_eq(done, 4);
	what.gfn = 4;
	cr_expect_eq(s.b->ops->set_ripas(s.b, &ID, &what, &done, &s.err), PW_BACKEND);
	cr_expect(strstr(s.err.msg, "RTT_SET_RIPAS") && strstr(s.err.msg, "DESTROYED"), "%s", s.err.msg);
	cr_expect_eq(done, 0);
	what.keep = false;
	cr_expect_eq(s.b->ops->set_ripas(s.b, &ID, &what, &done, &s.err), PW_OK);
	expect_outlived(&s, "0+12 UNASSIGNED/EMPTY out\n12+20 UNASSIGNED/RAM out\n");
	end(&s);
}

Test(machine_ripas, what_makes_no_sense_is_refused)
{
	struct backend_ripas what = { .gfn = 30, .count = 3, .accept = 3 };
	const struct pw_uuid nobody = { { 9 } };
	struct site s;
	uint64_t done;

	begin(&s);
	cr_expect_eq(s.b->ops->set_ripas(s.b, &ID, &what, &done, &s.err), PW_INVALID, "past the slot");
	what.gfn = 0;
	cr_expect_eq(s.b->ops->set_ripas(s.b, &nobody, &what, &done, &s.err), PW_NOT_FOUND);
	event(&s, VM_INIT_START);
	cr_expect_eq(s.b->ops->set_ripas(s.b, &ID, &what, &done, &s.err), PW_CONFLICT, "it does not run yet");
	expect(&s, "0+32 UNASSIGNED/RAM\n");
	end(&s);
}

/* Scripts. */

static void write_script(const struct site *s, const char *mode, const char *text)
{
	FILE *f = fopen(s->script, mode);

	cr_assert(f);
	fputs(text, f);
	fclose(f);
}

static bool wants(struct site *s, struct backend_request *rq)
{
	return s->b->ops->wait(s->b, 500, rq, &s->err) == PW_OK;
}

#define ME "07000000-0000-0000-0000-000000000000"

Test(machine_ripas, guests_act_by_a_script_that_grows)
{
	struct backend_request rq;
	struct site s;

	begin(&s);
	write_script(&s, "w", ME " ripas 1 2 RAM\n");
	cr_assert(wants(&s, &rq));
	cr_expect(rq.want == WANT_RIPAS && pw_uuid_equal(&rq.vm, &ID) && rq.gfn == 1 && rq.count == 2);
	cr_expect(rq.ripas.ram && !rq.ripas.keep && rq.ripas.accept == 2);
	s.b->ops->complete(s.b, &rq, PW_OK);
	cr_expect_not(wants(&s, &rq), "once");
	write_script(&s, "a", "# a remark\n\nnonsense\n" ME " ripas 3 4 EM");
	cr_expect_not(wants(&s, &rq), "that line is not whole");
	write_script(&s, "a", "PTY keep accept=0\n" ME " ripas 5 1 EMPTY\n");
	cr_assert(wants(&s, &rq));
	cr_expect(rq.gfn == 3 && !rq.ripas.ram && rq.ripas.keep && rq.ripas.accept == 0);
	cr_assert(wants(&s, &rq));
	cr_expect_eq(rq.gfn, 5);
	s.b->ops->close(s.b);
	open_at(&s);
	cr_expect_not(wants(&s, &rq), "what was there before is the past");
	write_script(&s, "w", ME " ripas 6 1 RAM\n");
	cr_assert(wants(&s, &rq), "written anew");
	cr_expect_eq(rq.gfn, 6);
	end(&s);
}

Test(machine_ripas, lines_that_are_none_are_refused)
{
	static const char *const wrong[] = {
		"",
		ME,
		ME " ripas",
		ME " ripas 1 RAM",
		ME " ripas 1 0 RAM",
		ME " ripas 1 2 ram",
		ME " ripas 1 2",
		ME " ripas -1 2 RAM",
		ME " ripas 0x1 2 RAM",
		ME " ripas 1 2 RAM kept",
		ME " ripas 1 2 RAM accept=",
		ME " ripas 1 2 RAM accept=x",
		ME " ripas 1099511627776 1 RAM",
		ME " ripas 1099511627775 2 RAM",
		ME " share 1 2 RAM",
		"07000000 ripas 1 2 RAM",
	};
	char longest[SCRIPT_LINE_MAX + 2];
	struct backend_request rq;

	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++)
		cr_expect_not(machine_script_parse(wrong[i], &rq), "%s", wrong[i]);
	cr_expect(machine_script_parse(ME " \t ripas  1 2 RAM ", &rq));
	cr_expect(machine_script_parse(ME " ripas 1099511627775 1 RAM", &rq));
	memset(longest, ' ', sizeof longest);
	memcpy(longest, ME " ripas 1 2 RAM", strlen(ME " ripas 1 2 RAM"));
	longest[SCRIPT_LINE_MAX + 1] = '\0';
	cr_expect_not(machine_script_parse(longest, &rq));
	longest[SCRIPT_LINE_MAX] = '\0';
	cr_expect(machine_script_parse(longest, &rq));
}

Test(machine_ripas, machines_without_ripas_take_no_script)
{
	static const struct machine_model *const others[] = { &machine_pef, &machine_snp, &machine_tdx, &machine_pkvm };
	struct backend_options o = { .frames = 64, .script = "script" };
	struct pw_err err = { 0 };
	struct backend *b;

	for (size_t i = 0; i < PW_ARRAY_LEN(others); i++) {
		cr_expect_eq(machine_open(others[i], &o, &b, &err), PW_INVALID, "%s", others[i]->arch);
		cr_expect(strstr(err.msg, others[i]->arch), "%s", err.msg);
		cr_assert_eq(machine_open(others[i], &(struct backend_options){ .frames = 64 }, &b, &err), PW_OK);
		cr_expect_null(b->ops->set_ripas);
		b->ops->close(b);
	}
}
