/* The ledger's table of TDX guest pages against the module's model: every state, every operation, driven. */
#include "engine/arch/law.h"
#include "engine/arch/tdx.h"
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <string.h>

#define TDR   0x100u
#define FRAME 0x1000u /* of the page */
#define NEW   0x1001u /* that an item names */
#define GPA   ((uint64_t)0x80000000)

struct world {
	struct pw_mem mem;
	struct tdx m;
	struct tdx_td *td;
	uint64_t next;
	bool private; /* by the VMM's mark */
};

/* Did the module say yes? */
static bool call(struct world *w, struct tdx_call c)
{
	struct tdx_result r;
	enum pw_status st;

	c.tdr = TDR;
	st = tdx_call(&w->m, &c, &r, NULL);
	cr_assert(st == PW_OK || st == PW_CONFLICT);
	return st == PW_OK && r.code == TDX_SUCCESS && !r.exits;
}
#define CALL(w, ...) call((w), (struct tdx_call){ .op = __VA_ARGS__ })

static void begin(struct world *w, bool runs)
{
	static const struct tdx_config platform = {
		.tdmr = { { 0, 0x100000 } }, .tdmrs = 1, .first_hkid = 33, .last_hkid = 63, .packages = 1, .max_pa = 52
	};

	*w = (struct world){ .next = 0x200 };
	cr_assert_eq(tdx_init(&w->m, &w->mem, &platform, NULL), PW_OK);
	cr_assert(CALL(w, TDX_MNG_CREATE, .frame = TDR, .hkid = 33) && CALL(w, TDX_KEY_CONFIG));
	for (int i = 0; i < TDX_TDCX_MIN; i++)
		cr_assert(CALL(w, TDX_MNG_ADDCX, .frame = w->next++));
	cr_assert(CALL(w, TDX_MNG_INIT, .levels = 4));
	w->td = tdx_td(&w->m, TDR);
	tdx_assume_vcpus(w->td, 1);
	for (unsigned l = 3; l > 0; l--)
		cr_assert(CALL(w, TDX_SEPT_ADD, .gpa = GPA >> (12 + 9 * l) << (12 + 9 * l), .level = l,
			       .frame = w->next++));
	if (runs)
		cr_assert(CALL(w, TDX_MR_FINALIZE));
}

static const struct arch_law *law(void)
{
	return arch_laws[ARCH_TDX];
}

static unsigned state_named(const char *name, enum gfn_state is)
{
	unsigned s = arch_state_find(law(), name, is);

	cr_assert_neq(s, ARCH_REFUSED);
	return s;
}

/* Brings the page into a state of the law. */
static void bring(struct world *w, unsigned s)
{
	enum gfn_state is = law()->states[s].is;
	const char *name = law()->states[s].name;
	bool mapped = strcmp(name, "MAPPED") == 0 || strcmp(name, "BLOCKED") == 0;

	if (is == GFN_SHARED)
		cr_assert_eq(tdx_map_shared(&w->m, w->td, GPA >> 12, 1, NULL), PW_OK);
	w->private = is == GFN_SECURE_OUT;
	if (is != GFN_SECURE_RESIDENT)
		return;
	cr_assert(CALL(w, TDX_PAGE_AUG, .gpa = GPA, .frame = FRAME));
	if (mapped)
		cr_assert(CALL(w, TDX_ACCEPT, .gpa = GPA));
	if (strstr(name, "BLOCKED"))
		cr_assert(CALL(w, TDX_RANGE_BLOCK, .gpa = GPA) && CALL(w, TDX_TRACK));
}

/* What the law calls the state that the page is in. */
static unsigned found(const struct world *w)
{
	bool shared = tree_get(&w->td->shared, GPA >> 12) != 0;
	enum gfn_state is;
	enum tdx_sept s;

	cr_assert(tdx_entry(w->td, GPA, 0, &s));
	is = tdx_project(w->td, s, shared);
	if (is == GFN_NORMAL && w->private)
		is = GFN_SECURE_OUT; /* the VMM's mark, which the module does not see */
	return state_named(tdx_sept_name(s), is);
}

/* The VMM's half of MapGPA. */
static bool map_gpa(struct world *w, bool shared, bool framed)
{
	enum tdx_sept s;

	cr_assert(tdx_entry(w->td, GPA, 0, &s));
	w->private = !shared;
	if (!shared) {
		cr_assert_eq(tdx_unmap_shared(&w->m, w->td, GPA >> 12, 1, NULL), PW_OK);
		return !framed || CALL(w, TDX_PAGE_AUG, .gpa = GPA, .frame = NEW);
	}
	if (tdx_sept_has_frame(s)) {
		if (!tdx_sept_is_blocked(s))
			cr_assert(CALL(w, TDX_RANGE_BLOCK, .gpa = GPA));
		cr_assert(CALL(w, TDX_TRACK) && CALL(w, TDX_PAGE_REMOVE, .gpa = GPA));
	}
	return tdx_map_shared(&w->m, w->td, GPA >> 12, 1, NULL) == PW_OK;
}

static bool perform(struct world *w, const struct arch_op *op)
{
	static const struct {
		const char *name;
		enum tdx_op op;
	} calls[] = {
		{ "tdx.mem.page.add", TDX_PAGE_ADD },           { "tdx.mem.page.aug", TDX_PAGE_AUG },
		{ "tdx.mem.page.accept", TDX_ACCEPT },          { "tdx.mem.range.block", TDX_RANGE_BLOCK },
		{ "tdx.mem.range.unblock", TDX_RANGE_UNBLOCK }, { "tdx.mem.page.remove", TDX_PAGE_REMOVE },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(calls); i++)
		if (strcmp(op->name, calls[i].name) == 0)
			return CALL(w, calls[i].op, .gpa = GPA, .frame = NEW);
	cr_assert(strncmp(op->name, "tdx.mapgpa.", 11) == 0, "%s", op->name);
	return map_gpa(w, strcmp(op->name + 11, "shared") == 0, op->framed);
}

/* Did the page become resident? */
static bool compare(const struct arch_op *op, unsigned from, bool runs)
{
	struct world w;
	bool done, resident;

	begin(&w, runs);
	bring(&w, from);
	cr_assert_eq(found(&w), from);
	done = perform(&w, op);
	cr_expect_eq(done, op->next[from] != ARCH_REFUSED, "%s of %s (%s)%s: the module says %s", op->name,
		     law()->states[from].name, gfn_state_name(law()->states[from].is),
		     op->framed ? " with a frame" : "", done ? "yes" : "no");
	if (done && op->next[from] != ARCH_REFUSED)
		cr_expect_eq(found(&w), op->next[from], "%s of %s: %s in the model", op->name, law()->states[from].name,
			     law()->states[found(&w)].name);
	resident = law()->states[found(&w)].is == GFN_SECURE_RESIDENT;
	cr_expect(tdx_check(&w.m, NULL));
	tdx_release(&w.m);
	return resident && law()->states[from].is != GFN_SECURE_RESIDENT;
}

Test(tdx_law, says_what_the_module_says)
{
	for (size_t i = 0; i < law()->op_count; i++) {
		const struct arch_op *op = &law()->ops[i];
		bool adds = strcmp(op->name, "tdx.mem.page.add") == 0, takes = false;

		for (unsigned s = 0; s < law()->state_count; s++)
			takes |= compare(op, s, !adds && law()->states[s].is != GFN_NORMAL);
		cr_expect_eq(op->framed, takes, "%s names frames if the call takes any", op->name);
	}
}

/* Before FINALIZE the module asks for no block and no track. The law does: nobody needs it to be laxer. */
Test(tdx_law, is_as_strict_before_a_td_runs)
{
	unsigned mapped = state_named("MAPPED", GFN_SECURE_RESIDENT);
	const struct arch_op *remove = arch_op_find("tdx.mem.page.remove", 19, false, NULL);
	struct world w;

	begin(&w, false);
	bring(&w, mapped);
	cr_expect(perform(&w, remove));
	cr_expect_eq(remove->next[mapped], ARCH_REFUSED);
	tdx_release(&w.m);
}

Test(tdx_law, has_every_leaf_state_of_the_module)
{
	for (int s = 0; s < TDX_SEPT_COUNT; s++)
		if (tdx_sept_has_frame((enum tdx_sept)s))
			state_named(tdx_sept_name((enum tdx_sept)s), GFN_SECURE_RESIDENT);
	cr_expect_eq(law()->state_count, 4 + 3);
}

static unsigned apply(const char *name, bool framed, unsigned s)
{
	const struct arch_op *op = arch_op_find(name, strlen(name), framed, NULL);

	cr_assert_not_null(op, "%s", name);
	return op->next[s];
}

/* From each page at rest that the law's operation moves, the trail leads to where that operation would, at rest. */
Test(tdx_law, trails_lead_to_rest)
{
	static const enum gfn_op ops[] = { GFN_SHARE, GFN_UNSHARE, GFN_PAGE_IN, GFN_PAGE_OUT, GFN_UNSHARE_IN };

	for (int v = VM_TRANSIENT; v <= VM_SECURE; v++) {
		for (size_t i = 0; i < PW_ARRAY_LEN(ops) * GFN_STATE_COUNT; i++) {
			enum gfn_op op = ops[i / GFN_STATE_COUNT];
			enum gfn_state now = (enum gfn_state)(i % GFN_STATE_COUNT), to;
			const struct arch_trail *t = &law()->trails[v][op];
			unsigned s = law()->rest[now];

			if (!t->item || !gfn_step(now, op, &to) || (v == VM_SECURE && now == GFN_NORMAL))
				continue;
			s = apply(t->item, op == GFN_PAGE_IN || op == GFN_UNSHARE_IN, s);
			cr_assert_neq(s, ARCH_REFUSED, "%s of a page that is %s", t->item, gfn_state_name(now));
			if (t->done)
				s = apply(t->done, false, s);
			cr_expect_eq(s, law()->rest[to], "%s, %s", t->item, t->done);
		}
	}
	cr_expect_str_eq(law()->trails[VM_SECURE][GFN_PAGE_IN].item, "tdx.mem.page.aug");
	cr_expect_str_eq(law()->trails[VM_TRANSIENT][GFN_PAGE_IN].item, "tdx.mem.page.add");
	cr_expect_null(law()->trails[VM_TRANSIENT][GFN_PAGE_IN].done);
}
