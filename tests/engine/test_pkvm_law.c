/* What the ledger holds of protected VMs' pages is what the model does with them, cell by cell. */
#include <criterion/criterion.h>
#include <string.h>

#include "engine/arch/law.h"
#include "engine/arch/pkvm.h"
#include "engine/ledger.h"

#define GFN   5
#define PAGE  7
#define OTHER 8  /* another page of the host */
#define OWN   64 /* the VM's own, and the host's structures */

enum step { DONATE, SHARE, UNSHARE, RELINQUISH, RECLAIM, FORCE, STEPS };
static const char *const names[STEPS] = {
	"pkvm.host_donate_guest", "pkvm.guest_share_host",  "pkvm.guest_unshare_host",
	"pkvm.guest_relinquish",  "pkvm.host_reclaim_page", "pkvm.host_force_reclaim"
};

struct world {
	struct pw_mem mem;
	struct pkvm m;
	struct pkvm_vm *vm;
};

static enum pkvm_code page_op(struct world *x, enum pkvm_page_op op, uint64_t pfn)
{
	struct pkvm_call c = { .vm = x->vm, .gfn = GFN, .pfn = pfn };
	struct pkvm_answer a;

	cr_assert_eq(pkvm_page_call(&x->m, op, &c, &a), PW_OK);
	return a.code;
}

static enum pkvm_code leaf_op(struct world *x, enum pkvm_leaf_op op)
{
	struct pkvm_call c = { .vm = x->vm, .gfn = GFN };
	struct pkvm_answer a;

	cr_assert_eq(pkvm_leaf_call(&x->m, op, &c, &a), PW_OK);
	return a.code;
}

static struct pkvm_leaf leaf(const struct world *x)
{
	return pkvm_leaf_at(x->vm, GFN, GFN + 1);
}

static void begin(struct world *x)
{
	struct pkvm_vm_params p = { .kind = PKVM_PROTECTED,
				    .vcpus = 1,
				    .host_page = OWN,
				    .donated = (OWN + 1) << PKVM_PAGE_SHIFT,
				    .donated_pages = 1,
				    .table = (OWN + 2) << PKVM_PAGE_SHIFT,
				    .table_pages = 1 };
	enum pkvm_code code;
	unsigned handle;

	*x = (struct world){ 0 };
	cr_assert_eq(pkvm_init(&x->m, &x->mem, PKVM_ANDROID, &(struct pkvm_region){ 0, 128, false }, 1, 1), PW_OK);
	cr_assert_eq(page_op(x, PKVM_HSH, OWN), PKVM_OK);
	cr_assert(pkvm_reserve(&x->m, &handle, &code) == PW_OK && code == PKVM_OK);
	cr_assert(pkvm_init_vm(&x->m, handle, &p, &code) == PW_OK && code == PKVM_OK);
	x->vm = pkvm_vm_of(&x->m, handle);
}

static void end(struct world *x)
{
	cr_expect(pkvm_check(&x->m));
	pkvm_release(&x->m);
	cr_expect_eq(x->mem.used, 0);
}

/* A state of the law, by the model's calls. */
static void reach(struct world *x, const char *name, enum gfn_state is)
{
	if (is == GFN_NORMAL)
		return;
	cr_assert_eq(page_op(x, PKVM_HDG, PAGE), PKVM_OK);
	if (is == GFN_SHARED)
		cr_assert_eq(leaf_op(x, PKVM_GSH), PKVM_OK);
	else if (strcmp(name, "POISON") == 0)
		cr_assert_eq(page_op(x, PKVM_FRC, PAGE), PKVM_OK);
	else if (is == GFN_SECURE_OUT)
		cr_assert_eq(leaf_op(x, PKVM_RLQ), PKVM_OK);
}

/* The call faults on what has no page, and is made again once the host has donated one. */
static enum pkvm_code share(struct world *x)
{
	enum pkvm_code code = leaf_op(x, PKVM_GSH);

	if (code != PKVM_ENOENT)
		return code;
	cr_assert_eq(page_op(x, PKVM_HDG, OTHER), PKVM_OK);
	return leaf_op(x, PKVM_GSH);
}

static enum pkvm_code perform(struct world *x, enum step step)
{
	switch (step) {
	case DONATE: return page_op(x, PKVM_HDG, OTHER);
	case SHARE: return share(x);
	case UNSHARE: return leaf_op(x, PKVM_GUH);
	case RELINQUISH: return leaf_op(x, PKVM_RLQ);
	case RECLAIM:
		cr_assert_eq(pkvm_start_teardown(&x->m, pkvm_handle(x->vm)), PKVM_OK);
		return leaf_op(x, PKVM_RCL);
	case FORCE: return page_op(x, PKVM_FRC, PAGE);
	case STEPS: break;
	}
	return PKVM_EINVAL;
}

static const struct arch_law *law(void)
{
	return arch_laws[ARCH_PKVM];
}

static enum step step_of(const char *name)
{
	for (int i = 0; i < STEPS; i++)
		if (strcmp(names[i], name) == 0)
			return (enum step)i;
	cr_assert_fail("%s is no call of the model", name);
	return STEPS;
}

/* Did the page become the VM's alone? */
static bool compare(const struct arch_op *op, unsigned from)
{
	const char *name = law()->states[from].name;
	enum gfn_state is = law()->states[from].is, next;
	struct pkvm_leaf before;
	enum pkvm_code code;
	struct world x;
	bool owned;

	begin(&x);
	reach(&x, name, is);
	before = leaf(&x);
	cr_expect_str_eq(pkvm_page_state_name(before.state), name);
	code = perform(&x, step_of(op->name));
	if (op->next[from] == ARCH_REFUSED && step_of(op->name) == SHARE && before.state == PKVM_OWNED) {
		cr_expect(
			code == PKVM_OK && leaf(&x).pfn == PAGE,
			"the one cell that the hypervisor grants: it would leave the guest a frame that the law frees");
		cr_expect_eq(pkvm_page_at(&x.m, PAGE, PAGE + 1).joint, PKVM_G);
	} else if (op->next[from] == ARCH_REFUSED) {
		cr_expect_neq(code, PKVM_OK, "%s of %s", op->name, name);
		cr_expect_eq(leaf(&x).state, before.state);
	} else {
		next = law()->states[op->next[from]].is;
		cr_expect_eq(code, PKVM_OK, "%s of %s", op->name, name);
		cr_expect_str_eq(pkvm_page_state_name(leaf(&x).state), law()->states[op->next[from]].name, "%s of %s",
				 op->name, name);
		if (is == GFN_SECURE_RESIDENT && next != GFN_SECURE_RESIDENT)
			cr_expect_eq(pkvm_page_at(&x.m, PAGE, PAGE + 1).joint, PKVM_A,
				     "%s frees a frame that the guest keeps", op->name);
		cr_expect(next == GFN_NORMAL ? is == GFN_NORMAL : next == pkvm_project(PKVM_PROTECTED, leaf(&x).state),
			  "%s of %s", op->name, name);
	}
	owned = before.state != PKVM_OWNED && leaf(&x).state == PKVM_OWNED;
	end(&x);
	return owned;
}

Test(pkvm_law, each_cell_is_the_models)
{
	unsigned seen = 0;

	for (size_t i = 0; i < law()->op_count; i++, seen++) {
		bool takes = false;

		for (unsigned s = 0; s < law()->state_count; s++)
			takes |= compare(&law()->ops[i], s);
		cr_expect_eq(law()->ops[i].framed, takes, "%s names frames if it gives the guest any",
			     law()->ops[i].name);
	}
	cr_expect_eq(seen, STEPS);
}

/* Every state of a protected VM's leaf is one of the law's, with the projection of the model. */
Test(pkvm_law, states_are_projected_as_by_the_model)
{
	for (int s = 0; s < PKVM_PAGE_STATE_COUNT; s++) {
		const char *name = pkvm_page_state_name((enum pkvm_page_state)s);
		enum gfn_state is = pkvm_project(PKVM_PROTECTED, (enum pkvm_page_state)s);

		cr_expect_eq(arch_state_find(law(), name, is) != ARCH_REFUSED, s != PKVM_BORROWED, "%s", name);
	}
	cr_expect_eq(law()->states[law()->rest[GFN_NORMAL]].is, GFN_NORMAL);
	cr_expect_str_eq(law()->states[law()->rest[GFN_NORMAL]].name, "NOPAGE", "what the hypervisor has not seen");
}

/* A claim names frames; what gives frames up does not, and leaves no frame. */
Test(pkvm_law, trails_do_what_they_are_for)
{
	static const enum vm_state states[] = { VM_TRANSIENT, VM_SECURE };

	for (size_t i = 0; i < PW_ARRAY_LEN(states); i++)
		for (int op = 0; op < GFN_OP_COUNT; op++) {
			bool claims = op == GFN_PAGE_IN || op == GFN_UNSHARE_IN;
			const char *item = law()->trails[states[i]][op].item;
			const struct arch_op *row = item ? arch_op_find(item, strlen(item), claims, NULL) : NULL;

			cr_expect(!law()->trails[states[i]][op].done);
			cr_expect_eq(item != NULL, op == GFN_PAGE_IN || op == GFN_PAGE_OUT);
			cr_assert_eq(row != NULL, item != NULL);
			/* from wherever the law's operation goes, so does the item, to the same; but from poison */
			for (unsigned s = 0; row && s < law()->state_count; s++) {
				enum gfn_state next;

				if (strcmp(law()->states[s].name, "POISON") == 0 ||
				    !gfn_step(law()->states[s].is, (enum gfn_op)op, &next))
					continue;
				cr_assert_neq(row->next[s], ARCH_REFUSED, "%s of %s", item, law()->states[s].name);
				cr_expect_eq(law()->states[row->next[s]].is, next);
			}
		}
}

Test(pkvm_law, nothing_leads_out_of_poison_but_the_vms_end)
{
	unsigned poison = arch_state_find(law(), "POISON", GFN_SECURE_OUT);

	cr_assert_neq(poison, ARCH_REFUSED);
	for (size_t i = 0; i < law()->op_count; i++)
		cr_expect(law()->ops[i].next[poison] == ARCH_REFUSED || law()->ops[i].next[poison] == poison);
}
