/* The ledger's law of SEV-SNP pages, held against the model: each row is done to a page in each state. */
#include "engine/arch/law.h"

#include <criterion/criterion.h>
#include <string.h>

#include "tests/lib/docs.h"
#include "tests/lib/snp_world.h"

#define PAGE  700 /* the frame; its GFN is the same number */
#define STORE 610 /* Firmware: where swapped pages go */
#define MD    600 /* Metadata */
#define OTHER (SNP_W_ASID + 1)

extern const struct arch_law snp_law;

static const struct arch_op *row(const char *name, bool framed)
{
	for (size_t i = 0; i < snp_law.op_count; i++)
		if (strcmp(snp_law.ops[i].name, name) == 0 && snp_law.ops[i].framed == framed)
			return &snp_law.ops[i];
	cr_assert_fail("no row %s", name);
	return NULL;
}

static unsigned law_state(const char *name, enum gfn_state is)
{
	for (unsigned s = 0; s < snp_law.state_count; s++)
		if (strcmp(snp_law.states[s].name, name) == 0 && snp_law.states[s].is == is)
			return s;
	cr_assert_fail("no state %s (%s)", name, gfn_state_name(is));
	return 0;
}

/* A guest's page, and what its VMM thinks of the GFN. */
struct page {
	struct snp_world w;
	bool shared; /* the VMM's attribute */
};

static struct snp_cmd swap(enum snp_command op)
{
	bool out = op == SNP_CMD_SWAP_OUT;

	return (struct snp_cmd){ .op = op,
				 .context = SNP_W_CONTEXT,
				 .pfn = out ? PAGE : STORE,
				 .dst = out ? STORE : PAGE,
				 .type = SNP_SWAP_DATA,
				 .md = MD,
				 .offset = 3 * 64 };
}

static bool update(struct page *p, bool immutable)
{
	return snp_w_update(&p->w, PAGE, SNP_W_ASID, PAGE, SNP_4K, immutable) == SNP_OK;
}

static bool command(struct page *p, const struct snp_cmd *c)
{
	return snp_w_do(&p->w, c) == SNP_SUCCESS;
}

static bool reclaim(struct page *p)
{
	return snp_w_reclaim(&p->w, PAGE, SNP_4K) == SNP_SUCCESS;
}

static bool to_hypervisor(struct page *p)
{
	return snp_w_share(&p->w, PAGE, SNP_4K) == SNP_OK;
}

static struct snp_entry entry(struct page *p)
{
	struct snp_entry e;

	snp_read(&p->w.m, PAGE, &e);
	return e;
}

/* What the operations of the law are, as calls of the model. False: hardware refused, and nothing changed. */

static bool do_rmpupdate_framed(struct page *p)
{
	if (entry(p).asid) /* of one guest: another asks for it */
		return snp_w_update(&p->w, PAGE, OTHER, PAGE, SNP_4K, false) == SNP_OK;
	return update(p, false);
}

static bool do_immutable_framed(struct page *p)
{
	if (entry(p).asid)
		return snp_w_update(&p->w, PAGE, OTHER, PAGE, SNP_4K, true) == SNP_OK;
	return update(p, true);
}

static bool do_launch_framed(struct page *p)
{
	struct snp_launch_page page = { .pfn = PAGE, .gfn = PAGE, .type = SNP_TYPE_NORMAL, .size = SNP_4K };
	enum snp_status status;
	size_t done;

	cr_assert_eq(snp_launch_pages(&p->w.m, SNP_W_CONTEXT, &page, 1, &done, &status), PW_OK);
	return done == 1;
}

static bool do_swap_in(struct page *p)
{
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN);

	if (entry(p).asid || !update(p, true))
		return false;
	if (command(p, &in))
		return true;
	cr_assert(reclaim(p) && to_hypervisor(p));
	return false;
}

static bool do_share(struct page *p)
{
	bool done = to_hypervisor(p);

	p->shared |= done;
	return done;
}

/* Without a frame there is no entry whose bit could change. */
static bool do_immutable(struct page *p)
{
	struct snp_entry e = entry(p);

	return e.asid && !e.immutable && update(p, true);
}

static bool do_launch(struct page *p)
{
	return snp_w_load(&p->w, SNP_W_CONTEXT, PAGE, SNP_TYPE_NORMAL) == SNP_SUCCESS;
}

static bool do_validate(struct page *p)
{
	bool unchanged;

	return snp_w_validate(&p->w, PAGE, SNP_W_ASID, PAGE, SNP_4K, true, &unchanged) == SNP_OK;
}

static bool do_rescind(struct page *p)
{
	bool unchanged;

	return snp_w_validate(&p->w, PAGE, SNP_W_ASID, PAGE, SNP_4K, false, &unchanged) == SNP_OK;
}

static bool do_swap_out(struct page *p)
{
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT);
	struct snp_entry e = entry(p);

	if (e.asid && !e.immutable)
		cr_assert(update(p, true));
	if (!command(p, &out))
		return false;
	cr_assert(reclaim(p) && to_hypervisor(p));
	return true;
}

static const struct {
	const char *name;
	bool framed;
	bool (*call)(struct page *p);
} calls[] = {
	{ "snp.rmpupdate", true, do_rmpupdate_framed },
	{ "snp.rmpupdate_immutable", true, do_immutable_framed },
	{ "snp.launch_update", true, do_launch_framed },
	{ "snp.swap_in", true, do_swap_in },
	{ "snp.rmpupdate", false, do_share },
	{ "snp.rmpupdate_immutable", false, do_immutable },
	{ "snp.launch_update", false, do_launch },
	{ "snp.pvalidate", false, do_validate },
	{ "snp.pvalidate_rescind", false, do_rescind },
	{ "snp.page_reclaim", false, reclaim },
	{ "snp.swap_out", false, do_swap_out },
};

/* The page's state in the law, as the model and the VMM's attribute have it. */
static unsigned seen(struct page *p)
{
	enum snp_state s = snp_state(&p->w.m, PAGE);

	if (s != SNP_HYPERVISOR)
		return law_state(snp_state_name(s), snp_project(s));
	if (p->shared)
		return law_state("Hypervisor", GFN_SHARED);
	return p->w.m.md_count ? snp_law.rest[GFN_SECURE_OUT] : law_state("Hypervisor", GFN_NORMAL);
}

static enum snp_state model_state(unsigned s)
{
	for (int m = 0; m < SNP_STATE_COUNT; m++)
		if (strcmp(snp_state_name((enum snp_state)m), snp_law.states[s].name) == 0)
			return (enum snp_state)m;
	return SNP_STATE_COUNT;
}

static void page_open(struct page *p, unsigned s)
{
	*p = (struct page){ .shared = snp_law.states[s].is == GFN_SHARED };
	snp_world_open(&p->w);
	p->w.m.strict = true;
	snp_w_launch(&p->w, SNP_W_CONTEXT, SNP_W_ASID);
	snp_w_make(&p->w, MD, SNP_METADATA);
	snp_w_make(&p->w, STORE, SNP_FIRMWARE);
	switch (snp_law.states[s].is) {
	case GFN_SECURE_RESIDENT: snp_w_make(&p->w, PAGE, model_state(s)); break;
	case GFN_SECURE_OUT:
		snp_w_make(&p->w, PAGE, SNP_GUEST_VALID);
		cr_assert(do_swap_out(p));
		break;
	case GFN_NORMAL:
	case GFN_SHARED:
	case GFN_STATE_COUNT: break;
	}
	cr_assert_eq(seen(p), s, "%s", snp_law.states[seen(p)].name);
}

Test(snp_law, every_row_does_what_the_model_does)
{
	cr_assert_eq(snp_law.op_count, PW_ARRAY_LEN(calls));
	for (size_t i = 0; i < PW_ARRAY_LEN(calls); i++) {
		const struct arch_op *op = row(calls[i].name, calls[i].framed);

		for (unsigned s = 0; s < snp_law.state_count; s++) {
			const char *from = snp_law.states[s].name;
			struct page p;
			uint64_t before;
			bool done;

			page_open(&p, s);
			before = snp_digest(&p.w.m);
			done = calls[i].call(&p);
			cr_assert_eq(done, op->next[s] != ARCH_REFUSED, "%s of %s: the model says %d", op->name, from,
				     done);
			if (done)
				cr_assert_eq(seen(&p), op->next[s], "%s of %s: the model says %s", op->name, from,
					     snp_law.states[seen(&p)].name);
			else
				cr_assert_eq(snp_digest(&p.w.m), before, "%s of %s", op->name, from);
			snp_world_close(&p.w);
		}
	}
}

Test(snp_law, states_are_the_firmwares_and_project_as_the_model_does)
{
	unsigned resident = 0, expected = 0;

	for (unsigned s = 0; s < snp_law.state_count; s++) {
		enum snp_state m = model_state(s);

		if (snp_law.states[s].is == GFN_SECURE_OUT)
			cr_assert_eq(m, SNP_STATE_COUNT, "what is out has no frame, so no state of a frame");
		else if (snp_law.states[s].is == GFN_SECURE_RESIDENT)
			cr_assert_eq(snp_project(m), GFN_SECURE_RESIDENT);
		else
			cr_assert_eq(m, SNP_HYPERVISOR);
		resident += snp_law.states[s].is == GFN_SECURE_RESIDENT;
	}
	for (int m = 0; m < SNP_STATE_COUNT; m++)
		expected += snp_project((enum snp_state)m) == GFN_SECURE_RESIDENT;
	cr_assert_eq(resident, expected, "every state of a guest's page is there");
}

Test(snp_law, every_row_says_where_it_is_from)
{
	for (size_t i = 0; i < snp_law.op_count; i++)
		cr_assert(strstr(snp_law.ops[i].rule, "MS ") || strstr(snp_law.ops[i].rule, "Linux") ||
			  strstr(snp_law.ops[i].rule, "AMD-ASPFW"));
}

/* The trail of an operation, from every state from which the law allows it to a page at rest. */
static void walk(enum vm_state vm, enum gfn_op op, enum gfn_state from, enum gfn_state to)
{
	const struct arch_trail *t = &snp_law.trails[vm][op];
	bool framed = to == GFN_SECURE_RESIDENT;
	unsigned s = snp_law.rest[from];

	cr_assert(t->item, "%s: what changes entries is told by name", gfn_op_name(op));
	s = row(t->item, framed)->next[s];
	cr_assert_neq(s, ARCH_REFUSED, "%s", t->item);
	cr_assert_eq(snp_law.states[s].is, to);
	if (t->done)
		s = row(t->done, false)->next[s];
	cr_assert_eq(s, snp_law.rest[to], "%s, %s: ends in %s", t->item, t->done, snp_law.states[s].name);
}

Test(snp_law, trails_end_at_rest)
{
	static const enum gfn_op told[] = { GFN_SHARE, GFN_PAGE_IN, GFN_PAGE_OUT, GFN_UNSHARE_IN };

	for (enum vm_state vm = VM_TRANSIENT; vm <= VM_SECURE; vm++)
		for (size_t i = 0; i < PW_ARRAY_LEN(told); i++)
			for (enum gfn_state from = 0; from < GFN_STATE_COUNT; from++) {
				enum gfn_state to;

				if (gfn_step(from, told[i], &to))
					walk(vm, told[i], from, to);
			}
}

/* A crash between a claim and its end leaves a state from which one item leads to rest. */
Test(snp_law, from_every_state_of_a_resident_page_one_operation_leads_to_rest)
{
	for (unsigned s = 0; s < snp_law.state_count; s++)
		if (snp_law.states[s].is == GFN_SECURE_RESIDENT && s != snp_law.rest[GFN_SECURE_RESIDENT])
			cr_assert_not_null(arch_op_between(&snp_law, arch_vm_rest(&snp_law, VM_SECURE), s,
							   snp_law.rest[GFN_SECURE_RESIDENT]),
					   "%s", snp_law.states[s].name);
}

/* The model driven through a trail, with what a VM in that state can do. */
Test(snp_law, the_model_walks_both_ways_in)
{
	static const char *const ways[][2] = { { "snp.rmpupdate_immutable", "snp.launch_update" },
					       { "snp.rmpupdate", "snp.pvalidate" },
					       { "snp.swap_in", "snp.page_reclaim" } };

	for (size_t i = 0; i < PW_ARRAY_LEN(ways); i++) {
		unsigned s = snp_law.rest[GFN_SECURE_OUT];
		struct page p;

		page_open(&p, s);
		for (size_t j = 0; j < 2; j++)
			for (size_t k = 0; k < PW_ARRAY_LEN(calls); k++)
				if (calls[k].framed == (j == 0) && strcmp(calls[k].name, ways[i][j]) == 0) {
					cr_assert(calls[k].call(&p));
					s = row(ways[i][j], j == 0)->next[s];
					cr_assert_eq(seen(&p), s);
				}
		cr_assert_eq(s, snp_law.rest[GFN_SECURE_RESIDENT]);
		snp_world_close(&p.w);
	}
}

/* The page of documentation shows this law. */

static void print_rows(FILE *out)
{
	fputs("| item | frames |", out);
	for (unsigned s = 0; s < snp_law.state_count; s++)
		if (snp_law.states[s].is == GFN_NORMAL || snp_law.states[s].is == GFN_SHARED)
			fprintf(out, " %s, %s |", snp_law.states[s].name, gfn_state_name(snp_law.states[s].is));
		else
			fprintf(out, " %s |", snp_law.states[s].name);
	fputs(" source |\n", out);
	docs_rule(out, snp_law.state_count + 3);
	for (size_t i = 0; i < snp_law.op_count; i++) {
		const struct arch_op *op = &snp_law.ops[i];

		fprintf(out, "| `%s` | %s |", op->name, op->framed ? "yes" : "no");
		for (unsigned s = 0; s < snp_law.state_count; s++)
			fprintf(out, " %s |",
				op->next[s] == ARCH_REFUSED ? "-"
				: op->next[s] == s          ? "stays"
							    : snp_law.states[op->next[s]].name);
		fprintf(out, " %s |\n", op->rule);
	}
}

static void print_trails(FILE *out)
{
	static const enum gfn_op told[] = { GFN_PAGE_IN, GFN_SHARE, GFN_PAGE_OUT };

	fputs("| VM | operation | before hardware, or when it gave up | then |\n", out);
	docs_rule(out, 4);
	for (enum vm_state vm = VM_TRANSIENT; vm <= VM_SECURE; vm++)
		for (size_t i = 0; i < PW_ARRAY_LEN(told); i++) {
			const struct arch_trail *t = &snp_law.trails[vm][told[i]];

			fprintf(out, "| %s | %s%s | `%s` | %s%s%s |\n", vm_state_name(vm), gfn_op_name(told[i]),
				told[i] == GFN_PAGE_IN ? ", unshare with a frame" : "", t->item, t->done ? "`" : "",
				t->done ? t->done : "", t->done ? "`" : "");
		}
}

Test(snp_law, the_documentation_shows_it)
{
	static const docs_print_fn tables[] = { print_rows, print_trails };

	docs_expect("docs/arch-snp.md", tables, PW_ARRAY_LEN(tables));
}
