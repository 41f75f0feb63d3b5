/* Tracing of the emulated SEV-SNP machine: whoever reads nothing but the log knows the RMP, and the counts are those of
 * the log. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#include "agents/alog.h"
#include "agents/machine_impl.h"
#include "agents/snp_host.h"
#include "tests/lib/backend_steps.h"

#define PAGES 4096 /* of a VM */
#define LARGE ((uint64_t)SNP_LARGE)

static const struct pw_uuid A = { { 1 } }, B = { { 2 } };

static struct snp_host *host(struct backend *b)
{
	return machine_of_backend(b)->firmware;
}

static struct snp *rmp(struct backend *b)
{
	return &host(b)->m;
}

static void done(struct backend *b)
{
	struct pw_err why = { 0 };

	cr_assert(machine_check(machine_of_backend(b), &why), "%s", why.msg);
	b->ops->close(b);
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

/* What the log says. */

struct reader {
	int log;
	off_t read;
	uint64_t frames;
	struct known {
		uint64_t gfn;
		uint16_t asid;
		unsigned char state; /* enum snp_state */
	} * known;
	uint64_t moved[SNP_STATE_COUNT][SNP_STATE_COUNT], lines;
	char ops[64][32];
	unsigned op_count;
};

static enum snp_state state_named(const char *name)
{
	int s = 0;

	while (s < SNP_STATE_COUNT && strcmp(snp_state_name((enum snp_state)s), name) != 0)
		s++;
	cr_assert_lt(s, SNP_STATE_COUNT, "%s", name);
	return (enum snp_state)s;
}

static void note_op(struct reader *r, const char *op)
{
	for (unsigned i = 0; i < r->op_count; i++)
		if (strcmp(r->ops[i], op) == 0)
			return;
	cr_assert_lt(r->op_count, PW_ARRAY_LEN(r->ops));
	snprintf(r->ops[r->op_count++], sizeof r->ops[0], "%s", op);
}

/* One line: each frame comes from where it went last. */
static void take_line(struct reader *r, const char *detail)
{
	char op[32], from[32], to[32];
	uint64_t frame, count, from_gfn, to_gfn;
	unsigned from_asid, to_asid;

	cr_assert_eq(sscanf(detail,
			    "op=%31s frame=%" SCNu64 " count=%" SCNu64 " from=%31s to=%31s from_asid=%u to_asid=%u "
			    "from_gfn=%" SCNu64 " to_gfn=%" SCNu64,
			    op, &frame, &count, from, to, &from_asid, &to_asid, &from_gfn, &to_gfn),
		     9, "%s", detail);
	note_op(r, op);
	r->lines++;
	r->moved[state_named(from)][state_named(to)] += count;
	for (uint64_t i = 0; i < count; i++) {
		struct known *k = &r->known[frame + i];

		cr_assert_lt(frame + i, r->frames);
		cr_assert(k->state == state_named(from) && k->asid == from_asid, "%s", detail);
		cr_assert(!from_asid || k->gfn == from_gfn + i, "%s", detail);
		*k = (struct known){ to_gfn + i, (uint16_t)to_asid, (unsigned char)state_named(to) };
	}
}

static void read_log(struct reader *r)
{
	off_t end = lseek(r->log, 0, SEEK_CUR);
	size_t len = (size_t)(end - r->read);
	char *text = calloc(1, len + 1), *line = text, *next;

	cr_assert_eq(pread(r->log, text, len, r->read), (ssize_t)len);
	r->read = end;
	for (; *line; line = next) {
		char *detail = strstr(line, "msg=\"RMP transition\" detail=\"");

		next = line + strcspn(line, "\n");
		next += *next != '\0';
		if (detail && detail < next)
			take_line(r, strchr(detail, '=') + strlen("\"RMP transition\" detail=\"") + 1);
	}
	free(text);
}

static void add_figure(void *ctx, const struct backend_figure *f)
{
	struct reader *r = ctx;
	char from[32], to[32];

	cr_assert_str_eq(f->name, "pagewarden_rmp_transitions_total");
	cr_assert_eq(sscanf(f->labels, "from=\"%31[^\"]\",to=\"%31[^\"]\"", from, to), 2, "%s", f->labels);
	cr_assert_gt(f->value, 0);
	cr_assert_eq(r->moved[state_named(from)][state_named(to)], f->value, "%s", f->labels);
	r->moved[state_named(from)][state_named(to)] = 0;
}

static void expect_known(struct reader *r, struct backend *b)
{
	uint64_t moved[SNP_STATE_COUNT][SNP_STATE_COUNT];

	read_log(r);
	for (uint64_t pfn = 0; pfn < r->frames; pfn++) {
		struct snp_entry e;
		enum snp_state s = snp_read(rmp(b), pfn, &e);

		cr_assert(r->known[pfn].state == s && r->known[pfn].asid == e.asid, "frame %" PRIu64 " is %s", pfn,
			  snp_state_name(s));
		cr_assert(!e.asid || r->known[pfn].gfn == e.gfn);
	}
	memcpy(moved, r->moved, sizeof moved);
	b->ops->figures(b, add_figure, r);
	for (size_t i = 0; i < sizeof moved / sizeof moved[0][0]; i++)
		cr_assert_eq((&r->moved[0][0])[i], 0, "in the log alone");
	memcpy(r->moved, moved, sizeof moved);
}

static struct backend *open_traced(struct reader *r, const char *path, const char *fault)
{
	struct backend_options o = { .frames = 2048, .base_pfn = 512, .fault = fault, .state = path, .traced = true };
	struct backend *b = NULL;

	memset(r, 0, sizeof *r);
	r->log = memfd_create("log", 0);
	cr_assert(r->log >= 0 && dup2(r->log, STDERR_FILENO) == STDERR_FILENO);
	alog_set_level(ALOG_DEBUG);
	cr_assert_eq(machine_open(&machine_snp, &o, &b, &step_err), PW_OK, "%s", step_err.msg);
	r->frames = rmp(b)->frames;
	r->known = calloc(r->frames, sizeof *r->known);
	return b;
}

static void close_traced(struct reader *r, struct backend *b)
{
	uint64_t lines;

	read_log(r);
	lines = r->lines;
	done(b);
	read_log(r);
	cr_expect_eq(r->lines, lines, "the end of the process is nothing that happens to hardware");
	free(r->known);
}

Test(snp_trace, a_trace_has_every_step_of_guests_and_of_control_pages)
{
	static const char *const ops[] = { "SNP_INIT",     "RMPUPDATE",        "PSMASH",
					   "PVALIDATE",    "SNP_GCTX_CREATE",  "SNP_LAUNCH_UPDATE",
					   "SNP_SWAP_OUT", "SNP_SWAP_IN",      "SNP_PAGE_UNSMASH",
					   "SNP_MD_INIT",  "SNP_PAGE_RECLAIM", "SNP_DECOMMISSION" };
	struct reader r;
	struct backend *b = open_traced(&r, NULL, NULL);
	uint64_t context;

	expect_known(&r, b);
	cr_expect_gt(r.moved[SNP_HYPERVISOR][SNP_FIRMWARE], 1, "the RMP's own frames");
	step_make_vm(b, &A, PAGES);
	step_event(b, &A, VM_INIT_START);
	expect_known(&r, b);
	context = guest(b, &A)->context;
	cr_expect_eq(r.known[context].state, SNP_CONTEXT);
	step_in(b, &A, 0, LARGE + 16);
	expect_known(&r, b);
	step_event(b, &A, VM_INIT_DONE);
	expect_known(&r, b);
	cr_expect(r.known[guest(b, &A)->vmsa].state == SNP_GUEST_VALID && entry_of(b, guest(b, &A)->vmsa).vmsa);
	step_in(b, &A, 2 * LARGE, 8);
	step_out(b, &A, 0, LARGE + 4);
	expect_known(&r, b);
	cr_expect_eq(r.known[guest(b, &A)->md[0].frame].state, SNP_METADATA);
	step_in(b, &A, 0, LARGE);
	step_share(b, &A, 2, 3);
	expect_known(&r, b);
	step_event(b, &A, VM_TERMINATE);
	expect_known(&r, b);
	cr_expect(r.known[context].state == SNP_HYPERVISOR && r.moved[SNP_CONTEXT][SNP_FIRMWARE] == 1);
	for (size_t i = 0; i < PW_ARRAY_LEN(ops); i++) {
		note_op(&r, ops[i]);
		cr_expect_eq(r.op_count, PW_ARRAY_LEN(ops), "%s", ops[i]);
	}
	close_traced(&r, b);
}

/* Ops at random, some of which are refused half-way and undone: all of it is heard. */
Test(snp_trace, a_trace_of_random_ops_leads_to_the_rmp_that_is_there)
{
	const char *given = getenv("SEED");
	uint64_t seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL), x = seed | 1;
	unsigned refusals = 0;
	struct reader r;
	struct backend *b = open_traced(&r, NULL, "frame:100,frame:800,frame:801,frame:1700");

	step_make_secure(b, &A, 1024);
	step_make_secure(b, &B, 1024);
	for (unsigned step = 0; step < 300; step++) {
		const struct pw_uuid *vm = (x ^= x << 13, x ^= x >> 7, x ^= x << 17) & 1 ? &A : &B;
		uint64_t gfn = x >> 8 & 1023, count = (x >> 20 & 3) == 0 ? LARGE : 1 + (x >> 20 & 31);
		enum pw_status st = PW_OK;

		if (count == LARGE)
			gfn &= LARGE;
		if (count > 1024 - gfn)
			count = 1024 - gfn;
		switch (x >> 32 & 3) {
		case 0: st = step_try_in(b, vm, gfn, count); break;
		case 1: st = b->ops->page_out(b, vm, gfn, count, &step_err); break;
		case 2: st = b->ops->share(b, vm, gfn, count, &step_err); break;
		case 3: st = b->ops->unshare(b, vm, gfn, count, &step_err); break;
		}
		refusals += st != PW_OK;
		expect_known(&r, b);
	}
	cr_expect(refusals > 2 && refusals < 200, "SEED=%" PRIu64 ": %u refusals", seed, refusals);
	step_event(b, &A, VM_TERMINATE);
	expect_known(&r, b);
	cr_expect_gt(r.lines, 1000);
	close_traced(&r, b);
}

/* What the state file says is done again in silence, and so is trying a shorter one; who is not traced is not heard. */
Test(snp_trace, only_what_is_new_is_heard)
{
	char dir[] = "/tmp/pw-snp-trace-XXXXXX", path[2][64];
	struct reader r;
	struct backend *b;

	cr_assert(mkdtemp(dir));
	snprintf(path[0], sizeof path[0], "%s/machine", dir);
	snprintf(path[1], sizeof path[1], "%s/machine.lock", dir);
	b = open_traced(&r, path[0], NULL);
	step_make_secure(b, &A, 1024);
	step_in(b, &A, 0, 16);
	expect_known(&r, b);
	cr_assert(machine_log_shorten(machine_of_backend(b)));
	expect_known(&r, b);
	cr_expect_gt(r.lines, 4);
	close_traced(&r, b);
	b = open_traced(&r, path[0], NULL);
	read_log(&r);
	b->ops->figures(b, add_figure, &r);
	cr_expect_eq(r.lines, 0);
	free(r.known);
	done(b);
	cr_assert_eq(machine_open(&machine_snp, &(struct backend_options){ .frames = 64 }, &b, &step_err), PW_OK);
	cr_expect_null(rmp(b)->trace);
	b->ops->figures(b, add_figure, &r);
	done(b);
	cr_expect(unlink(path[0]) == 0 && unlink(path[1]) == 0 && rmdir(dir) == 0);
}
