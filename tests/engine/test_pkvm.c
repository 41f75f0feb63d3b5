#include "engine/arch/pkvm.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define RAM      2048u
#define HOLE     RAM          /* pages between the two regions of RAM */
#define RAM_2    (RAM + 1024) /* 1024 pages, of which the last region is the firmware's */
#define NO_MAP   (RAM_2 + 1024)
#define META     ((uint64_t)1 << 20)
#define CPUS     2
#define GFN      5
#define PAGE     7
#define BYTES(p) ((uint64_t)(p) << PKVM_PAGE_SHIFT)

struct machine {
	struct pw_mem mem;
	struct pkvm m;
	uint64_t meta; /* the next free page for VMs' own */
};

static enum pkvm_code page_op(struct machine *x, enum pkvm_page_op op, struct pkvm_call c)
{
	struct pkvm_answer a;

	cr_assert_eq(pkvm_page_call(&x->m, op, &c, &a), PW_OK);
	return a.code;
}

static enum pkvm_code leaf_op(struct machine *x, enum pkvm_leaf_op op, struct pkvm_call c)
{
	struct pkvm_answer a;

	cr_assert_eq(pkvm_leaf_call(&x->m, op, &c, &a), PW_OK);
	return a.code;
}

static void begin(struct machine *x)
{
	static const struct pkvm_region regions[] = {
		{ 0, RAM, false }, { RAM_2, 1024, false }, { NO_MAP, 16, true }, { META, 4096, false }
	};

	*x = (struct machine){ .meta = META };
	cr_assert_eq(pkvm_init(&x->m, &x->mem, PKVM_MAINLINE, regions, PW_ARRAY_LEN(regions), CPUS), PW_OK);
}

static void end(struct machine *x)
{
	cr_expect(pkvm_check(&x->m));
	pkvm_release(&x->m);
	cr_expect_eq(x->mem.used, 0);
}

static unsigned reserve(struct machine *x)
{
	enum pkvm_code code;
	unsigned handle = 0;

	cr_assert_eq(pkvm_reserve(&x->m, &handle, &code), PW_OK);
	cr_assert_eq(code, PKVM_OK);
	return handle;
}

/* Pages of the machine's own store, the first of which is shared with hyp. */
static struct pkvm_vm_params vm_params(struct machine *x, enum pkvm_kind kind)
{
	struct pkvm_vm_params p = { .kind = kind,
				    .vcpus = 4,
				    .host_page = x->meta,
				    .donated = BYTES(x->meta + 1),
				    .donated_pages = 2,
				    .table = BYTES(x->meta + 3),
				    .table_pages = 1 };

	cr_assert_eq(page_op(x, PKVM_HSH, (struct pkvm_call){ .pfn = x->meta }), PKVM_OK);
	x->meta += 4;
	return p;
}

static struct pkvm_vm *make_vm(struct machine *x, enum pkvm_kind kind)
{
	struct pkvm_vm_params p = vm_params(x, kind);
	unsigned handle = reserve(x);
	enum pkvm_code code;

	cr_assert_eq(pkvm_init_vm(&x->m, handle, &p, &code), PW_OK);
	cr_assert_eq(code, PKVM_OK);
	return pkvm_vm_of(&x->m, handle);
}

static struct pkvm_vcpu_params vcpu_params(struct machine *x, unsigned index)
{
	struct pkvm_vcpu_params p = { .index = index,
				      .host_page = x->meta,
				      .donated = BYTES(x->meta + 1),
				      .donated_pages = 1,
				      .setup = { .features = PKVM_FEATURE_PSCI_0_2, .primary = index == 0 } };

	cr_assert_eq(page_op(x, PKVM_HSH, (struct pkvm_call){ .pfn = x->meta }), PKVM_OK);
	x->meta += 2;
	return p;
}

static void make_vcpu(struct machine *x, const struct pkvm_vm *vm, unsigned index)
{
	struct pkvm_vcpu_params p = vcpu_params(x, index);
	enum pkvm_code code;

	cr_assert_eq(pkvm_init_vcpu(&x->m, pkvm_handle(vm), &p, &code), PW_OK);
	cr_assert_eq(code, PKVM_OK);
}

static struct pkvm_page page_at(const struct machine *x, uint64_t pfn)
{
	return pkvm_page_at(&x->m, pfn, pfn + 1);
}

static enum pkvm_page_state leaf_at(const struct pkvm_vm *vm, uint64_t gfn)
{
	return pkvm_leaf_at(vm, gfn, gfn + 1).state;
}

/* H: A again, with poison at the GFN that had it. */
enum joint_or_h { STATE_A, STATE_B, STATE_C, STATE_D, STATE_E, STATE_F, STATE_G, STATE_H, STATES };

static void reach(struct machine *x, struct pkvm_vm *vm, enum joint_or_h s)
{
	struct pkvm_call c = { .vm = vm, .gfn = GFN, .pfn = PAGE };

	if (s == STATE_B)
		cr_assert_eq(page_op(x, PKVM_HDH, c), PKVM_OK);
	if (s == STATE_C)
		cr_assert_eq(page_op(x, PKVM_HSH, c), PKVM_OK);
	if (s == STATE_D)
		cr_assert_eq(page_op(x, PKVM_HSF, c), PKVM_OK);
	if (s == STATE_E)
		cr_assert_eq(page_op(x, PKVM_HSG, c), PKVM_OK);
	if (s == STATE_F || s == STATE_G || s == STATE_H)
		cr_assert_eq(page_op(x, PKVM_HDG, c), PKVM_OK);
	if (s == STATE_G)
		cr_assert_eq(leaf_op(x, PKVM_GSH, c), PKVM_OK);
	if (s == STATE_H)
		cr_assert_eq(page_op(x, PKVM_FRC, c), PKVM_OK);
}

Test(pkvm, tables_decide_every_cell)
{
	cr_assert(pkvm_tables_are_total());
}

/*
 * Section 3 of the law, as it stands there: a state's letter, or the errno without its E. "*": cannot arise. The GFN of
 * "same" is the one that the page had; of "other" a free one.
 */
enum call {
	HSH,
	HUH,
	HUH_P,
	HDH,
	YDH,
	PIN,
	UNPIN_P,
	HSF,
	HUF,
	HSG_O,
	HSG_S,
	HUG,
	HDG_O,
	HDG_S,
	GSH,
	GUH,
	RCL,
	RLQ,
	FRC,
	CALLS
};
static const struct {
	const char *name, *cells[STATES];
} law[CALLS] = {
	[HSH] = { "HSH", { "C", "PERM", "PERM", "PERM", "PERM", "PERM", "PERM", "C" } },
	[HUH] = { "HUH", { "PERM", "PERM", "A", "PERM", "PERM", "PERM", "PERM", "PERM" } },
	[HUH_P] = { "HUH, pinned", { "*", "*", "BUSY", "*", "*", "*", "*", "*" } },
	[HDH] = { "HDH", { "B", "PERM", "PERM", "PERM", "PERM", "PERM", "PERM", "B" } },
	[YDH] = { "YDH", { "PERM", "A", "PERM", "PERM", "PERM", "PERM", "PERM", "PERM" } },
	[PIN] = { "PIN", { "PERM", "PERM", "C", "PERM", "PERM", "PERM", "PERM", "PERM" } },
	[UNPIN_P] = { "UNPIN, pinned", { "*", "*", "C", "*", "*", "*", "*", "*" } },
	[HSF] = { "HSF", { "D", "PERM", "PERM", "PERM", "PERM", "PERM", "PERM", "D" } },
	[HUF] = { "HUF", { "PERM", "PERM", "PERM", "A", "PERM", "PERM", "PERM", "PERM" } },
	[HSG_O] = { "HSG other", { "E", "PERM", "PERM", "PERM", "E", "PERM", "PERM", "E" } },
	[HSG_S] = { "HSG same", { "*", "*", "*", "*", "PERM", "PERM", "PERM", "*" } },
	[HUG] = { "HUG same", { "NOENT", "NOENT", "NOENT", "NOENT", "A", "PERM", "PERM", "NOENT" } },
	[HDG_O] = { "HDG other", { "F", "PERM", "PERM", "PERM", "PERM", "PERM", "PERM", "F" } },
	[HDG_S] = { "HDG same", { "F", "PERM", "PERM", "PERM", "PERM", "PERM", "PERM", "PERM" } },
	[GSH] = { "GSH", { "NOENT", "*", "*", "*", "PERM", "G", "PERM", "HWPOISON" } },
	[GUH] = { "GUH", { "NOENT", "*", "*", "*", "PERM", "PERM", "F", "HWPOISON" } },
	[RCL] = { "RCL", { "NOENT", "*", "*", "*", "PERM", "A", "A", "A" } },
	[RLQ] = { "RLQ", { "A", "*", "*", "*", "E", "A", "PERM", "A" } },
	[FRC] = { "FRC", { "AGAIN", "PERM", "AGAIN", "AGAIN", "AGAIN", "A", "AGAIN", "AGAIN" } },
};

static enum pkvm_code call(struct machine *x, enum call what, struct pkvm_call c, struct pkvm_answer *a)
{
	static const struct {
		int op;
		bool by_leaf, pinned, other;
	} calls[CALLS] = {
		[HSH] = { PKVM_HSH, false, false, false },      [HUH] = { PKVM_HUH, false, false, false },
		[HUH_P] = { PKVM_HUH, false, true, false },     [HDH] = { PKVM_HDH, false, false, false },
		[YDH] = { PKVM_YDH, false, false, false },      [PIN] = { PKVM_PIN, false, false, false },
		[UNPIN_P] = { PKVM_UNPIN, false, true, false }, [HSF] = { PKVM_HSF, false, false, false },
		[HUF] = { PKVM_HUF, false, false, false },      [HSG_O] = { PKVM_HSG, false, false, true },
		[HSG_S] = { PKVM_HSG, false, false, false },    [HUG] = { PKVM_HUG, true, false, false },
		[HDG_O] = { PKVM_HDG, false, false, true },     [HDG_S] = { PKVM_HDG, false, false, false },
		[GSH] = { PKVM_GSH, true, false, false },       [GUH] = { PKVM_GUH, true, false, false },
		[RCL] = { PKVM_RCL, true, false, false },       [RLQ] = { PKVM_RLQ, true, false, false },
		[FRC] = { PKVM_FRC, false, false, false },
	};

	if (calls[what].pinned)
		cr_assert_eq(page_op(x, PKVM_PIN, c), PKVM_OK);
	c.gfn += calls[what].other;
	if (calls[what].by_leaf)
		cr_assert_eq(pkvm_leaf_call(&x->m, (enum pkvm_leaf_op)calls[what].op, &c, a), PW_OK);
	else
		cr_assert_eq(pkvm_page_call(&x->m, (enum pkvm_page_op)calls[what].op, &c, a), PW_OK);
	return a->code;
}

Test(pkvm, every_cell_of_the_law)
{
	for (int what = 0; what < CALLS; what++)
		for (int s = 0; s < STATES; s++) {
			const char *want = law[what].cells[s];
			struct pkvm_answer a;
			struct machine x;
			uint64_t digest;

			if (*want == '*')
				continue;
			begin(&x);
			struct pkvm_vm *vm = make_vm(&x, PKVM_ANY);

			reach(&x, vm, (enum joint_or_h)s);
			digest = pkvm_digest(&x.m);
			call(&x, (enum call)what, (struct pkvm_call){ .vm = vm, .gfn = GFN, .pfn = PAGE }, &a);
			if (want[1]) {
				cr_expect_str_eq(pkvm_code_name(a.code) + 2, want, "%s in %c", law[what].name, 'A' + s);
				if (what != HUH_P)
					cr_expect_eq(pkvm_digest(&x.m), digest, "%s in %c", law[what].name, 'A' + s);
			} else {
				cr_expect_eq(a.code, PKVM_OK, "%s in %c", law[what].name, 'A' + s);
				cr_expect_str_eq(pkvm_joint_name(page_at(&x, PAGE).joint), want, "%s in %c",
						 law[what].name, 'A' + s);
			}
			cr_expect_eq(a.contents == PKVM_ZEROED,
				     s == STATE_F && (what == RCL || what == RLQ || what == FRC), "%s in %c",
				     law[what].name, 'A' + s);
			end(&x);
		}
}

Test(pkvm, what_host_and_hyp_see_of_each_state)
{
	static const char *const want[PKVM_JOINT_COUNT][2] = {
		{ "OWNED", "NOPAGE" },           { "NOPAGE", "OWNED" },        { "SHARED_OWNED", "SHARED_BORROWED" },
		{ "SHARED_OWNED", "NOPAGE" },    { "SHARED_OWNED", "NOPAGE" }, { "NOPAGE", "NOPAGE" },
		{ "SHARED_BORROWED", "NOPAGE" },
	};

	for (int j = 0; j < PKVM_JOINT_COUNT; j++) {
		cr_expect_str_eq(pkvm_page_state_name(pkvm_joint_host((enum pkvm_joint)j)), want[j][0]);
		cr_expect_str_eq(pkvm_page_state_name(pkvm_joint_hyp((enum pkvm_joint)j)), want[j][1]);
	}
}

Test(pkvm, a_taken_gfn_is_refused_whatever_the_page_is)
{
	for (int s = 0; s < STATES; s++)
		for (int donates = 0; donates < 2; donates++) {
			struct machine x;

			begin(&x);
			struct pkvm_vm *vm = make_vm(&x, PKVM_ANY);
			struct pkvm_call c = { .vm = vm, .gfn = GFN + 1, .pfn = PAGE + 1 };

			reach(&x, vm, (enum joint_or_h)s);
			cr_assert_eq(page_op(&x, PKVM_HDG, c), PKVM_OK);
			c.pfn = PAGE;
			cr_expect_eq(page_op(&x, donates ? PKVM_HDG : PKVM_HSG, c), PKVM_EPERM, "state %c", 'A' + s);
			end(&x);
		}
}

Test(pkvm, unpinning_what_is_not_pinned_is_refused)
{
	for (int s = 0; s < STATES; s++) {
		struct machine x;

		begin(&x);
		struct pkvm_vm *vm = make_vm(&x, PKVM_ANY);

		reach(&x, vm, (enum joint_or_h)s);
		cr_expect_eq(page_op(&x, PKVM_UNPIN, (struct pkvm_call){ .pfn = PAGE }), PKVM_EPERM, "%c", 'A' + s);
		end(&x);
	}
}

/* Relaxing permissions, write protection, young bits: they change nothing that is kept here. */
Test(pkvm, permissions_are_tuned_on_borrowed_leaves_alone)
{
	static const enum pkvm_code want[STATES] = { PKVM_ENOENT, PKVM_ENOENT, PKVM_ENOENT, PKVM_ENOENT,
						     PKVM_OK,     PKVM_EPERM,  PKVM_EPERM,  PKVM_ENOENT };

	for (int s = 0; s < STATES; s++) {
		struct machine x;
		uint64_t digest;

		begin(&x);
		struct pkvm_vm *vm = make_vm(&x, PKVM_ANY);

		reach(&x, vm, (enum joint_or_h)s);
		digest = pkvm_digest(&x.m);
		cr_expect_eq(leaf_op(&x, PKVM_TUNE, (struct pkvm_call){ .vm = vm, .gfn = GFN }), want[s], "%c",
			     'A' + s);
		cr_expect_eq(pkvm_digest(&x.m), digest);
		end(&x);
	}
}

Test(pkvm, sharing_counts_the_leaves)
{
	struct machine x;

	begin(&x);
	struct pkvm_vm *one = make_vm(&x, PKVM_NON_PROTECTED), *two = make_vm(&x, PKVM_NON_PROTECTED);

	for (uint64_t gfn = 0; gfn < 3; gfn++)
		cr_assert_eq(page_op(&x, PKVM_HSG, (struct pkvm_call){ .vm = one, .gfn = gfn, .pfn = PAGE }), PKVM_OK);
	cr_assert_eq(page_op(&x, PKVM_HSG, (struct pkvm_call){ .vm = two, .gfn = 9, .pfn = PAGE }), PKVM_OK);
	cr_expect_eq(page_at(&x, PAGE).guests, 4);
	for (uint64_t gfn = 0; gfn < 3; gfn++)
		cr_assert_eq(leaf_op(&x, PKVM_HUG, (struct pkvm_call){ .vm = one, .gfn = gfn }), PKVM_OK);
	cr_expect(page_at(&x, PAGE).joint == PKVM_E && page_at(&x, PAGE).guests == 1);
	cr_assert_eq(leaf_op(&x, PKVM_HUG, (struct pkvm_call){ .vm = two, .gfn = 9 }), PKVM_OK);
	cr_expect_eq(page_at(&x, PAGE).joint, PKVM_A);
	end(&x);
}

/* The last record before a count or a pin overflows is put there by hand: nobody waits for 2^32 calls. */
Test(pkvm, counts_end_where_their_fields_do)
{
	struct machine x;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_ANY);
	struct pkvm_call c = { .vm = vm, .gfn = GFN, .pfn = PAGE };

	cr_assert_eq(tree_set(&x.m.pages, PAGE, 1, (uint64_t)PKVM_E << 56 | UINT32_MAX), PW_OK);
	cr_expect_eq(page_op(&x, PKVM_HSG, c), PKVM_EBUSY);
	cr_assert_eq(tree_set(&x.m.pages, PAGE, 1, (uint64_t)PKVM_E << 56 | (UINT32_MAX - 1)), PW_OK);
	cr_expect_eq(page_op(&x, PKVM_HSG, c), PKVM_OK);
	cr_expect_eq(leaf_op(&x, PKVM_HUG, c), PKVM_OK);
	cr_assert_eq(tree_set(&x.m.pages, PAGE, 1, (uint64_t)PKVM_C << 56 | UINT16_MAX), PW_OK);
	cr_expect_eq(page_op(&x, PKVM_PIN, c), PKVM_PANIC);
	cr_expect_eq(page_op(&x, PKVM_UNPIN, c), PKVM_OK);
	cr_assert_eq(tree_set(&x.m.pages, PAGE, 1, 0), PW_OK);
	end(&x);
}

/* Section 4: which refusal comes first. Each line has the fault of its name and all that follow. */
Test(pkvm, order_of_checks_when_sharing_with_a_guest)
{
	struct machine x;
	struct pkvm_answer a;

	begin(&x);
	struct pkvm_vm *plain = make_vm(&x, PKVM_NON_PROTECTED), *secret = make_vm(&x, PKVM_PROTECTED);
	struct pkvm_call c = { .vm = secret,
			       .gfn = TREE_PAGES,
			       .pfn = TREE_PAGES,
			       .nr = 3,
			       .prot = 8,
			       .cache_fails = PKVM_E2BIG,
			       .cache_short = true };

	cr_assert_eq(page_op(&x, PKVM_HSG, (struct pkvm_call){ .vm = plain, .gfn = GFN, .pfn = 0 }), PKVM_OK);
	cr_expect_eq(page_op(&x, PKVM_HSG, c), PKVM_EINVAL, "the kind");
	c.vm = plain;
	cr_expect_eq(page_op(&x, PKVM_HSG, c), PKVM_E2BIG, "the refill");
	c.cache_fails = PKVM_OK;
	cr_assert_eq(pkvm_page_call(&x.m, PKVM_HSG, &c, &a), PW_OK);
	cr_expect(a.code == PKVM_EINVAL && strstr(a.rule, "RWX"));
	c.prot = 7;
	cr_assert_eq(pkvm_page_call(&x.m, PKVM_HSG, &c, &a), PW_OK);
	cr_expect(a.code == PKVM_EINVAL && strstr(a.rule, "numbers"));
	c.pfn = HOLE;
	cr_assert_eq(pkvm_page_call(&x.m, PKVM_HSG, &c, &a), PW_OK);
	cr_expect(a.code == PKVM_EINVAL && strstr(a.rule, "numbers"), "the GFN's");
	c.gfn = GFN;
	cr_assert_eq(pkvm_page_call(&x.m, PKVM_HSG, &c, &a), PW_OK);
	cr_expect(a.code == PKVM_EINVAL && strstr(a.rule, "size"));
	c.nr = 1;
	cr_assert_eq(pkvm_page_call(&x.m, PKVM_HSG, &c, &a), PW_OK);
	cr_expect(a.code == PKVM_EPERM && strstr(a.rule, "range"));
	c.pfn = PAGE;
	cr_assert_eq(pkvm_page_call(&x.m, PKVM_HSG, &c, &a), PW_OK);
	cr_expect(a.code == PKVM_EPERM && a.leaf == PKVM_BORROWED, "the GFN is taken");
	c.gfn++;
	cr_expect_eq(page_op(&x, PKVM_HSG, c), PKVM_ENOMEM, "the cache");
	c.cache_short = false;
	cr_expect_eq(page_op(&x, PKVM_HSG, c), PKVM_OK);
	end(&x);
}

Test(pkvm, order_of_checks_when_donating)
{
	struct machine x;

	begin(&x);
	struct pkvm_vm *plain = make_vm(&x, PKVM_NON_PROTECTED), *secret = make_vm(&x, PKVM_PROTECTED);
	struct pkvm_call c = {
		.vm = plain, .gfn = GFN, .pfn = NO_MAP, .nr = 1, .cache_fails = PKVM_ENOMEM, .cache_short = true
	};

	cr_expect_eq(page_op(&x, PKVM_HDG, c), PKVM_EINVAL, "the kind");
	cr_expect_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .gfn = GFN }), PKVM_EINVAL, "no vCPU, so no VM");
	c.vm = secret;
	cr_expect_eq(page_op(&x, PKVM_HDG, c), PKVM_ENOMEM, "the refill");
	c.cache_fails = PKVM_OK;
	cr_expect_eq(page_op(&x, PKVM_HDG, c), PKVM_EPERM, "the range");
	c.pfn = PAGE;
	cr_expect_eq(page_op(&x, PKVM_HDG, c), PKVM_ENOMEM, "the cache");
	c.nr = PKVM_BLOCK_PAGES;
	cr_expect_eq(page_op(&x, PKVM_HDG, c), PKVM_EINVAL, "one page only");
	end(&x);
}

Test(pkvm, memory_ranges)
{
	static const struct {
		uint64_t pfn, nr;
		enum pkvm_code code;
	} cases[] = {
		{ RAM - 1, 1, PKVM_OK },        { RAM - 1, 2, PKVM_EINVAL },       { HOLE, 1, PKVM_EPERM },
		{ RAM_2 - 1, 2, PKVM_EINVAL },  { HOLE, 1024, PKVM_EPERM },        { RAM_2, 1024, PKVM_OK },
		{ RAM_2, 1025, PKVM_EINVAL },   { NO_MAP, 1, PKVM_EPERM },         { TREE_PAGES, 1, PKVM_EINVAL },
		{ 1, UINT64_MAX, PKVM_EINVAL }, { TREE_PAGES - 1, 1, PKVM_EPERM },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct machine x;

		begin(&x);
		cr_expect_eq(page_op(&x, PKVM_HDH, (struct pkvm_call){ .pfn = cases[i].pfn, .nr = cases[i].nr }),
			     cases[i].code, "case %zu", i);
		end(&x);
	}
}

Test(pkvm, forced_reclaim_looks_at_memory_first)
{
	struct machine x;

	begin(&x);
	cr_expect_eq(page_op(&x, PKVM_FRC, (struct pkvm_call){ .pfn = HOLE }), PKVM_EFAULT);
	cr_expect_eq(page_op(&x, PKVM_FRC, (struct pkvm_call){ .pfn = TREE_PAGES }), PKVM_EFAULT);
	cr_expect_eq(page_op(&x, PKVM_FRC, (struct pkvm_call){ .pfn = NO_MAP }), PKVM_EAGAIN, "RAM that hosts own");
	end(&x);
}

Test(pkvm, blocks)
{
	enum { N = PKVM_BLOCK_PAGES };
	struct machine x;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_ANY);
	struct pkvm_call block = { .vm = vm, .gfn = N, .pfn = N, .nr = N }, one = { .vm = vm, .gfn = N + 3 };

	cr_expect_eq(page_op(&x, PKVM_HSG, (struct pkvm_call){ .vm = vm, .gfn = N, .pfn = N + 1, .nr = N }),
		     PKVM_EINVAL);
	cr_expect_eq(page_op(&x, PKVM_HSG, (struct pkvm_call){ .vm = vm, .gfn = 1, .pfn = N, .nr = N }), PKVM_EINVAL);
	cr_assert_eq(page_op(&x, PKVM_HSG, block), PKVM_OK);
	cr_expect(pkvm_leaf_at(vm, N, 2 * N).block);
	cr_expect_eq(page_at(&x, N + 511).guests, 1);
	cr_expect_eq(leaf_op(&x, PKVM_HUG, one), PKVM_E2BIG);
	cr_expect_eq(leaf_op(&x, PKVM_GSH, one), PKVM_E2BIG);
	cr_expect_eq(leaf_op(&x, PKVM_GUH, one), PKVM_E2BIG);
	cr_expect_eq(leaf_op(&x, PKVM_RCL, one), PKVM_E2BIG);
	cr_expect_eq(leaf_op(&x, PKVM_RLQ, one), PKVM_E2BIG);
	cr_expect_eq(leaf_op(&x, PKVM_TUNE, one), PKVM_OK);
	one.nr = N;
	cr_expect_eq(leaf_op(&x, PKVM_HUG, one), PKVM_EINVAL, "not aligned");
	cr_expect_eq(page_op(&x, PKVM_HSG, (struct pkvm_call){ .vm = vm, .gfn = 4 * N, .pfn = N + 9 }), PKVM_OK);
	cr_expect_eq(leaf_op(&x, PKVM_HUG, block), PKVM_OK);
	cr_expect_eq(page_at(&x, N + 9).guests, 1, "still shared by itself");
	cr_expect_eq(page_at(&x, N + 10).joint, PKVM_A);
	cr_expect_eq(leaf_op(&x, PKVM_HUG, block), PKVM_ENOENT);
	cr_expect_eq(leaf_op(&x, PKVM_HUG, (struct pkvm_call){ .vm = vm, .gfn = 4 * N, .nr = N }), PKVM_E2BIG);
	end(&x);
}

/* In a block the guest's leaves are looked at before any page, and pages one by one. */
Test(pkvm, order_within_a_block)
{
	enum { N = PKVM_BLOCK_PAGES };
	struct machine x;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_ANY);
	struct pkvm_call block = { .vm = vm, .gfn = N, .pfn = N, .nr = N };

	cr_assert_eq(tree_set(&x.m.pages, N + 3, 1, (uint64_t)PKVM_E << 56 | UINT32_MAX), PW_OK);
	cr_assert_eq(page_op(&x, PKVM_HDH, (struct pkvm_call){ .pfn = N + 5 }), PKVM_OK);
	cr_expect_eq(page_op(&x, PKVM_HSG, block), PKVM_EBUSY, "page 3 before page 5");
	cr_assert_eq(page_op(&x, PKVM_HDH, (struct pkvm_call){ .pfn = N + 1 }), PKVM_OK);
	cr_expect_eq(page_op(&x, PKVM_HSG, block), PKVM_EPERM, "page 1 before page 3");
	cr_assert_eq(page_op(&x, PKVM_YDH, (struct pkvm_call){ .pfn = N + 1 }), PKVM_OK);
	cr_assert_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = vm, .gfn = N + 9, .pfn = 9 }), PKVM_OK);
	cr_expect_eq(page_op(&x, PKVM_HSG, block), PKVM_EPERM, "leaf 9 before all of them");
	cr_assert_eq(tree_set(&x.m.pages, N + 3, 1, 0), PW_OK);
	end(&x);
}

Test(pkvm, in_a_range_states_come_before_references)
{
	struct machine x;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);
	uint64_t own = vm->donated.first;
	bool loaded;

	make_vcpu(&x, vm, 0);
	cr_assert_eq(pkvm_load(&x.m, 0, pkvm_handle(vm), 0, &loaded), PW_OK);
	cr_assert(loaded);
	cr_expect_eq(page_op(&x, PKVM_YDH, (struct pkvm_call){ .pfn = own }), PKVM_EBUSY);
	cr_expect_eq(page_op(&x, PKVM_YDH, (struct pkvm_call){ .pfn = own, .nr = 2 }), PKVM_EBUSY);
	cr_expect_eq(page_op(&x, PKVM_YDH, (struct pkvm_call){ .pfn = own, .nr = 9 }), PKVM_EPERM);
	cr_expect_eq(page_op(&x, PKVM_YDH, (struct pkvm_call){ .pfn = own, .calls = 9 }), PKVM_EBUSY, "call by call");
	end(&x);
}

Test(pkvm, calls_are_all_or_nothing)
{
	struct machine x;
	uint64_t digest;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);

	cr_assert_eq(page_op(&x, PKVM_HSH, (struct pkvm_call){ .pfn = 60 }), PKVM_OK);
	digest = pkvm_digest(&x.m);
	cr_expect_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = vm, .gfn = 100, .calls = 61 }), PKVM_EPERM);
	cr_expect_eq(pkvm_digest(&x.m), digest);
	cr_expect_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = vm, .gfn = 100, .calls = 60 }), PKVM_OK);
	cr_expect_eq(leaf_op(&x, PKVM_GSH, (struct pkvm_call){ .vm = vm, .gfn = 110, .calls = 10 }), PKVM_OK);
	digest = pkvm_digest(&x.m);
	cr_expect_eq(leaf_op(&x, PKVM_GUH, (struct pkvm_call){ .vm = vm, .gfn = 110, .calls = 11 }), PKVM_EPERM);
	cr_expect_eq(pkvm_digest(&x.m), digest);
	cr_expect_eq(page_op(&x, PKVM_FRC, (struct pkvm_call){ .pfn = 20, .calls = 40 }), PKVM_OK);
	cr_expect_eq(leaf_at(vm, 120), PKVM_POISON);
	cr_expect_eq(leaf_at(vm, 119), PKVM_SHARED_OWNED);
	end(&x);
}

/* Section 7. */
static const struct {
	enum pkvm_vm_op op;
	const char *cells[PKVM_VM_STATE_COUNT]; /* the state that follows, or the errno */
} life[] = {
	{ PKVM_UNRESERVE, { "FREE", "FREE", "CREATED", "DYING" } },
	{ PKVM_INIT_VM, { "-EINVAL", "CREATED", "-EINVAL", "-EINVAL" } },
	{ PKVM_INIT_VCPU, { "-ENOENT", "-ENOENT", "CREATED", "DYING" } },
	{ PKVM_LOAD, { "refused", "refused", "CREATED", "refused" } },
	{ PKVM_START_TEARDOWN, { "-EINVAL", "-EINVAL", "DYING", "-EINVAL" } },
	{ PKVM_RECLAIM, { "-EINVAL", "-EINVAL", "-EINVAL", "DYING" } },
	{ PKVM_FINALIZE, { "-EINVAL", "-EINVAL", "-EINVAL", "FREE" } },
};

static const char *vm_op(struct machine *x, enum pkvm_vm_op op, unsigned handle)
{
	struct pkvm_vm_params vm = vm_params(x, PKVM_PROTECTED);
	struct pkvm_vcpu_params vcpu = vcpu_params(x, 1);
	struct pkvm_call reclaim = { .vm = pkvm_vm_of(&x->m, handle), .gfn = GFN };
	enum pkvm_code code = PKVM_OK;
	bool loaded = true;

	switch (op) {
	case PKVM_RESERVE: reserve(x); break;
	case PKVM_UNRESERVE: pkvm_unreserve(&x->m, handle); break;
	case PKVM_INIT_VM: cr_assert_eq(pkvm_init_vm(&x->m, handle, &vm, &code), PW_OK); break;
	case PKVM_INIT_VCPU: cr_assert_eq(pkvm_init_vcpu(&x->m, handle, &vcpu, &code), PW_OK); break;
	case PKVM_LOAD: cr_assert_eq(pkvm_load(&x->m, 0, handle, 0, &loaded), PW_OK); break;
	case PKVM_START_TEARDOWN: code = pkvm_start_teardown(&x->m, handle); break;
	case PKVM_RECLAIM: code = leaf_op(x, PKVM_RCL, reclaim); break;
	case PKVM_FINALIZE: cr_assert_eq(pkvm_finalize(&x->m, handle, &code), PW_OK); break;
	case PKVM_VM_OP_COUNT: break;
	}
	if (!loaded)
		return "refused";
	if (code != PKVM_OK)
		return pkvm_code_name(code);
	return pkvm_vm_state_name(pkvm_vm_of(&x->m, handle) ? pkvm_vm_of(&x->m, handle)->state : PKVM_VM_FREE);
}

Test(pkvm, life_of_a_vm_follows_the_law)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(life); i++)
		for (int s = 0; s < PKVM_VM_STATE_COUNT; s++) {
			unsigned handle = PKVM_HANDLE_FIRST;
			struct machine x;

			begin(&x);
			if (s == PKVM_VM_RESERVED)
				reserve(&x);
			if (s > PKVM_VM_RESERVED) {
				struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);

				make_vcpu(&x, vm, 0);
				cr_assert_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = vm, .gfn = GFN }),
					     PKVM_OK);
			}
			if (s == PKVM_VM_DYING)
				cr_assert_eq(pkvm_start_teardown(&x.m, handle), PKVM_OK);
			cr_expect_str_eq(vm_op(&x, life[i].op, handle), life[i].cells[s], "%s in %s",
					 pkvm_vm_op_name(life[i].op), pkvm_vm_state_name((enum pkvm_vm_state)s));
			end(&x);
		}
}

Test(pkvm, the_table_has_255_places_and_hands_out_the_lowest)
{
	enum pkvm_code code;
	struct machine x;
	unsigned handle;

	begin(&x);
	for (unsigned i = 0; i < PKVM_VMS_MAX; i++)
		cr_assert_eq(reserve(&x), PKVM_HANDLE_FIRST + i);
	cr_assert_eq(pkvm_reserve(&x.m, &handle, &code), PW_OK);
	cr_expect_eq(code, PKVM_ENOMEM);
	pkvm_unreserve(&x.m, PKVM_HANDLE_FIRST + 7);
	cr_expect_eq(reserve(&x), PKVM_HANDLE_FIRST + 7);
	cr_expect_eq(pkvm_vm_of(&x.m, PKVM_HANDLE_FIRST + 7)->vmid, 8);
	end(&x);
}

Test(pkvm, order_of_checks_of_init_vm)
{
	struct pkvm_vm_params good, p;
	enum pkvm_code code;
	struct machine x;
	uint64_t digest;

	begin(&x);
	good = vm_params(&x, PKVM_PROTECTED);
	reserve(&x);
	digest = pkvm_digest(&x.m);
#define REFUSED(handle, want)                                                 \
	do {                                                                  \
		cr_assert_eq(pkvm_init_vm(&x.m, (handle), &p, &code), PW_OK); \
		cr_expect_eq(code, (want));                                   \
		cr_expect_eq(pkvm_digest(&x.m), digest);                      \
	} while (0)
	p = good;
	p.host_page = PAGE;
	p.vcpus = 0;
	REFUSED(0, PKVM_EPERM); /* the pin comes first */
	p.host_page = good.host_page;
	p.donated++;
	REFUSED(PKVM_HANDLE_FIRST, PKVM_EINVAL); /* no vCPUs */
	p.vcpus = 1;
	REFUSED(PKVM_HANDLE_FIRST - 1, PKVM_EINVAL); /* no handle */
	REFUSED(PKVM_HANDLE_FIRST + 1, PKVM_ENOMEM); /* alignment before the place's state */
	p.donated--;
	p.table = p.donated;
	REFUSED(PKVM_HANDLE_FIRST, PKVM_ENOMEM); /* the same page twice */
	p.table = BYTES(good.host_page);
	REFUSED(PKVM_HANDLE_FIRST, PKVM_ENOMEM); /* not the host's alone */
	p.table = good.table;
	REFUSED(PKVM_HANDLE_FIRST + 1, PKVM_EINVAL); /* not reserved */
	REFUSED(PKVM_HANDLE_FIRST + 1000, PKVM_EINVAL);
#undef REFUSED
	cr_assert_eq(pkvm_init_vm(&x.m, PKVM_HANDLE_FIRST, &p, &code), PW_OK);
	cr_expect_eq(code, PKVM_OK);
	cr_expect_eq(page_at(&x, good.host_page).pins, 1);
	cr_expect_eq(page_at(&x, good.donated >> PKVM_PAGE_SHIFT).joint, PKVM_B);
	end(&x);
}

Test(pkvm, order_of_checks_of_init_vcpu)
{
	struct pkvm_vcpu_params good, p;
	enum pkvm_code code;
	struct machine x;
	uint64_t digest;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);
	unsigned handle = pkvm_handle(vm);

	make_vcpu(&x, vm, 0);
	good = vcpu_params(&x, 1);
	digest = pkvm_digest(&x.m);
#define REFUSED(handle, want)                                                   \
	do {                                                                    \
		cr_assert_eq(pkvm_init_vcpu(&x.m, (handle), &p, &code), PW_OK); \
		cr_expect_eq(code, (want));                                     \
		cr_expect_eq(pkvm_digest(&x.m), digest);                        \
	} while (0)
	p = good;
	p.donated = BYTES(vm->donated.first);
	p.host_page = PAGE;
	p.index = 99;
	p.setup.has_sme = true;
	REFUSED(1, PKVM_ENOMEM); /* the donation */
	p.donated = good.donated;
	REFUSED(handle + 1, PKVM_ENOENT);
	REFUSED(handle, PKVM_EBUSY); /* the pin */
	p.host_page = good.host_page;
	REFUSED(handle, PKVM_EINVAL); /* features */
	p.setup.has_sme = false;
	p.setup.features |= PKVM_FEATURE_EL1_32BIT;
	REFUSED(handle, PKVM_EINVAL);
	p.setup.features = PKVM_FEATURE_SVE;
	REFUSED(handle, PKVM_EINVAL);
	p.setup.features = PKVM_FEATURE_PMU_V3;
	REFUSED(handle, PKVM_EINVAL);
	p.setup.pmu_permitted = true;
	REFUSED(handle, PKVM_EINVAL); /* the index */
	p.index = 0;
	REFUSED(handle, PKVM_EINVAL); /* taken */
#undef REFUSED
	p.index = 1;
	cr_assert_eq(pkvm_init_vcpu(&x.m, handle, &p, &code), PW_OK);
	cr_expect_eq(code, PKVM_OK);
	end(&x);
}

Test(pkvm, a_vcpu_is_loaded_once_and_holds_its_vm)
{
	struct pkvm_vcpu *v;
	struct machine x;
	bool loaded;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);
	unsigned handle = pkvm_handle(vm);

	make_vcpu(&x, vm, 0);
	make_vcpu(&x, vm, 1);
	cr_expect_eq(pkvm_runnable(&x.m, 0, handle, 0, &v), PKVM_EINVAL);
	cr_expect_null(pkvm_hypercall_vm(&x.m, 0));
	cr_assert_eq(pkvm_load(&x.m, 0, handle, 0, &loaded), PW_OK);
	cr_assert(loaded);
	cr_expect_eq(pkvm_hypercall_vm(&x.m, 0), vm);
	cr_assert_eq(pkvm_load(&x.m, 0, handle, 1, &loaded), PW_OK);
	cr_expect_not(loaded, "this CPU has one");
	cr_assert_eq(pkvm_load(&x.m, 1, handle, 0, &loaded), PW_OK);
	cr_expect_not(loaded, "it is loaded elsewhere");
	cr_assert_eq(pkvm_load(&x.m, 1, handle, 2, &loaded), PW_OK);
	cr_expect_not(loaded, "it is absent");
	cr_assert_eq(pkvm_load(&x.m, CPUS, handle, 1, &loaded), PW_OK);
	cr_expect_not(loaded, "there is no such CPU");
	cr_expect_eq(pkvm_runnable(&x.m, 0, handle, 1, &v), PKVM_EINVAL);
	cr_expect_eq(pkvm_runnable(&x.m, 0, handle, 0, &v), PKVM_OK);
	cr_expect(vm->ran && v == &vm->vcpus[0]->state);
	cr_expect_eq(pkvm_references(&x.m, vm), 1);
	cr_expect_eq(pkvm_start_teardown(&x.m, handle), PKVM_EINVAL, "referenced");
	cr_assert_eq(pkvm_put(&x.m, 0), PW_OK);
	cr_assert_eq(pkvm_put(&x.m, 0), PW_OK);
	cr_expect_eq(pkvm_start_teardown(&x.m, handle), PKVM_OK);
	end(&x);
}

Test(pkvm, teardown_gives_all_back)
{
	enum pkvm_code code;
	struct machine x;
	uint64_t before;

	begin(&x);
	before = pkvm_digest(&x.m);
	struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);

	make_vcpu(&x, vm, 2);
	cr_assert_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = vm, .calls = 40 }), PKVM_OK);
	cr_assert_eq(leaf_op(&x, PKVM_GSH, (struct pkvm_call){ .vm = vm, .gfn = 3, .calls = 4 }), PKVM_OK);
	cr_assert_eq(page_op(&x, PKVM_FRC, (struct pkvm_call){ .pfn = 10 }), PKVM_OK);
	cr_assert_eq(pkvm_start_teardown(&x.m, pkvm_handle(vm)), PKVM_OK);
	cr_assert_eq(leaf_op(&x, PKVM_RCL, (struct pkvm_call){ .vm = vm, .calls = 40 }), PKVM_OK);
	cr_expect_eq(leaf_at(vm, 10), PKVM_POISON);
	cr_assert_eq(pkvm_finalize(&x.m, pkvm_handle(vm), &code), PW_OK);
	cr_assert_eq(code, PKVM_OK);
	for (uint64_t p = META; p < x.meta; p++)
		if (page_at(&x, p).joint == PKVM_C)
			cr_assert_eq(page_op(&x, PKVM_HUH, (struct pkvm_call){ .pfn = p }), PKVM_OK);
	cr_expect_eq(pkvm_digest(&x.m), before);
	cr_expect_null(x.m.gone);
	end(&x);
}

Test(pkvm, what_was_not_reclaimed_is_nobodys)
{
	enum pkvm_code code;
	struct machine x;

	begin(&x);
	struct pkvm_vm *secret = make_vm(&x, PKVM_PROTECTED), *plain = make_vm(&x, PKVM_NON_PROTECTED), *next;
	unsigned handle = pkvm_handle(secret);

	cr_assert_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = secret, .pfn = 1, .calls = 3 }), PKVM_OK);
	cr_assert_eq(leaf_op(&x, PKVM_GSH, (struct pkvm_call){ .vm = secret, .gfn = 2 }), PKVM_OK);
	cr_assert_eq(page_op(&x, PKVM_HSG, (struct pkvm_call){ .vm = plain, .pfn = 9 }), PKVM_OK);
	cr_assert_eq(pkvm_start_teardown(&x.m, handle), PKVM_OK);
	cr_assert_eq(pkvm_start_teardown(&x.m, pkvm_handle(plain)), PKVM_OK);
	cr_assert_eq(pkvm_finalize(&x.m, pkvm_handle(plain), &code), PW_OK);
	cr_assert_eq(pkvm_finalize(&x.m, handle, &code), PW_OK);
	cr_assert_eq(code, PKVM_OK);
	cr_expect(pkvm_check(&x.m));
	cr_expect(page_at(&x, 1).joint == PKVM_F && page_at(&x, 1).vmid == 0);
	next = make_vm(&x, PKVM_PROTECTED);
	cr_expect_eq(pkvm_handle(next), handle, "a handle is used again");
	cr_expect_eq(page_op(&x, PKVM_FRC, (struct pkvm_call){ .pfn = 1 }), PKVM_EAGAIN,
		     "but the page is not its page");
	cr_expect_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = next, .pfn = 1 }), PKVM_EPERM);
	cr_expect_eq(page_at(&x, 9).guests, 1);
	end(&x);
}

Test(pkvm, kinds_keep_apart)
{
	struct machine x;

	begin(&x);
	struct pkvm_vm *plain = make_vm(&x, PKVM_NON_PROTECTED), *secret = make_vm(&x, PKVM_PROTECTED);

	cr_expect_eq(leaf_op(&x, PKVM_HUG, (struct pkvm_call){ .vm = secret, .gfn = GFN }), PKVM_EINVAL);
	cr_expect_eq(leaf_op(&x, PKVM_TUNE, (struct pkvm_call){ .vm = secret, .gfn = GFN }), PKVM_EPERM);
	cr_expect_eq(leaf_op(&x, PKVM_TUNE, (struct pkvm_call){ .vm = plain, .gfn = GFN }), PKVM_ENOENT);
	cr_expect_eq(leaf_op(&x, PKVM_GSH, (struct pkvm_call){ .vm = plain, .gfn = GFN }), PKVM_ENOENT);
	cr_expect_eq(leaf_op(&x, PKVM_RCL, (struct pkvm_call){ .vm = plain, .gfn = GFN }), PKVM_EINVAL);
	cr_expect_eq(leaf_op(&x, PKVM_HUG, (struct pkvm_call){ .gfn = GFN }), PKVM_EINVAL);
	struct pkvm_vm *unmade = pkvm_vm_of(&x.m, reserve(&x));

	cr_expect_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = unmade, .gfn = GFN }), PKVM_EINVAL);
	cr_expect_eq(leaf_op(&x, PKVM_GSH, (struct pkvm_call){ .vm = unmade, .gfn = GFN }), PKVM_EINVAL);
	cr_expect_eq(leaf_op(&x, PKVM_GSH, (struct pkvm_call){ .vm = secret, .gfn = TREE_PAGES }), PKVM_ERANGE);
	cr_expect_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = secret, .gfn = TREE_PAGES }), PKVM_ERANGE);
	end(&x);
}

Test(pkvm, a_guests_hypercalls)
{
	const uint64_t page = BYTES(GFN);
	const struct {
		uint64_t x[4];
		int end;
		int64_t result;
	} cases[] = {
		{ { PKVM_FN_FEATURES }, PKVM_HVC_ANSWERED, 0x1d },
		{ { PKVM_FN_MEMINFO }, PKVM_HVC_ANSWERED, 4096 },
		{ { PKVM_FN_MEMINFO, 0, 1 }, PKVM_HVC_ANSWERED, -3 },
		{ { PKVM_FN_MEM_UNSHARE, page }, PKVM_HVC_ANSWERED, -3 },
		{ { PKVM_FN_MEM_SHARE, page + 1 }, PKVM_HVC_ANSWERED, -3 },
		{ { PKVM_FN_MEM_SHARE, page, 1 }, PKVM_HVC_ANSWERED, -3 },
		{ { PKVM_FN_MEM_SHARE, page, 0, 1 }, PKVM_HVC_ANSWERED, -3 },
		{ { PKVM_FN_MEM_SHARE, page }, PKVM_HVC_ANSWERED, 0 },
		{ { PKVM_FN_MEM_SHARE, page }, PKVM_HVC_ANSWERED, -3 },
		{ { PKVM_FN_MEM_UNSHARE, page }, PKVM_HVC_ANSWERED, 0 },
		{ { PKVM_FN_MEM_SHARE, page + 4096 }, PKVM_HVC_FAULT, 0 },
		{ { PKVM_FN_MEM_UNSHARE, page + 4096 }, PKVM_HVC_ANSWERED, -3 },
		{ { PKVM_FN_MEM_SHARE, BYTES(TREE_PAGES) }, PKVM_HVC_ANSWERED, -3 },
		{ { PKVM_FN_MMIO_GUARD, page }, PKVM_HVC_ANSWERED, -1 },
		{ { PKVM_FN_MEM_RELINQUISH, page }, PKVM_HVC_ANSWERED, -1 },
		{ { 0x86000001u }, PKVM_HVC_ANSWERED, -1 },
		{ { 0x84000000u }, PKVM_HVC_ANSWERED, 0x10001 },
		{ { 0x8400000Au, 0x84000003u }, PKVM_HVC_ANSWERED, 0 },
		{ { 0x8400000Au, 0x84000005u }, PKVM_HVC_ANSWERED, -1 },
		{ { 0x84000002u }, PKVM_HVC_TO_HOST, 0 },
		{ { 0xC4000004u }, PKVM_HVC_TO_HOST, 0 },
	};
	struct machine x;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);

	cr_assert_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = vm, .gfn = GFN, .pfn = PAGE }), PKVM_OK);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct pkvm_hvc hvc;

		cr_assert_eq(pkvm_guest_call(&x.m, vm, cases[i].x, &hvc), PW_OK);
		cr_expect_eq((int)hvc.end, cases[i].end, "case %zu", i);
		if (cases[i].end == PKVM_HVC_ANSWERED)
			cr_expect_eq(hvc.result, cases[i].result, "case %zu: %" PRId64, i, hvc.result);
	}
	x.m.generation = PKVM_ANDROID;
	struct pkvm_hvc hvc;

	cr_assert_eq(pkvm_guest_call(&x.m, vm, (uint64_t[4]){ PKVM_FN_MMIO_GUARD, BYTES(99) }, &hvc), PW_OK);
	cr_expect(hvc.result == 0 && pkvm_is_guarded(vm, 99) && !pkvm_is_guarded(vm, 98));
	cr_assert_eq(pkvm_guest_call(&x.m, vm, (uint64_t[4]){ PKVM_FN_MEM_SHARE, page + 4096 }, &hvc), PW_OK);
	cr_expect(hvc.end == PKVM_HVC_FAULT && hvc.exit == PKVM_EXIT_SHARE);
	cr_assert_eq(pkvm_guest_call(&x.m, vm, (uint64_t[4]){ PKVM_FN_MMIO_GUARD, page }, &hvc), PW_OK);
	cr_expect_eq(hvc.result, -3, "a page of memory is not MMIO");
	cr_assert_eq(pkvm_guest_call(&x.m, vm, (uint64_t[4]){ PKVM_FN_MEM_RELINQUISH, page + 1 }, &hvc), PW_OK);
	cr_expect_eq(hvc.result, -3);
	cr_assert_eq(pkvm_guest_call(&x.m, vm, (uint64_t[4]){ PKVM_FN_MEM_RELINQUISH, page }, &hvc), PW_OK);
	cr_expect(hvc.end == PKVM_HVC_TO_HOST && hvc.exit == PKVM_EXIT_MEM_RELINQUISH, "the host is told");
	cr_expect(page_at(&x, PAGE).joint == PKVM_A && leaf_at(vm, GFN) == PKVM_NOPAGE);
	cr_assert_eq(pkvm_guest_call(&x.m, vm, (uint64_t[4]){ PKVM_FN_MEM_RELINQUISH, page }, &hvc), PW_OK);
	cr_expect(hvc.end == PKVM_HVC_ANSWERED && hvc.result == 0, "nothing was there");
	make_vcpu(&x, vm, 0);
	cr_assert_eq(pkvm_guest_call(&x.m, vm, (uint64_t[4]){ PKVM_FN_AFFINITY, 0 }, &hvc), PW_OK);
	cr_expect(hvc.end == PKVM_HVC_ANSWERED && hvc.result == 0, "at EL2: it is on");
	cr_assert_eq(pkvm_guest_call(&x.m, vm, (uint64_t[4]){ PKVM_FN_AFFINITY, 7 }, &hvc), PW_OK);
	cr_expect_eq(hvc.result, -2);
	end(&x);
}

Test(pkvm, the_host_touches_a_guests_page)
{
	enum pkvm_access_end end_;
	struct pkvm_answer a;
	struct machine x;

	begin(&x);
	struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);

	cr_assert_eq(page_op(&x, PKVM_HDG, (struct pkvm_call){ .vm = vm, .gfn = GFN, .pfn = PAGE }), PKVM_OK);
	cr_expect_eq(pkvm_fault_on_mapped(vm, GFN), PKVM_EAGAIN);
	cr_assert_eq(pkvm_host_access(&x.m, PAGE + 1, PKVM_ACCESS_USER, &end_, &a), PW_OK);
	cr_expect_eq(end_, PKVM_ACCESS_DONE);
	cr_assert_eq(pkvm_host_access(&x.m, PAGE, PKVM_ACCESS_USER, &end_, &a), PW_OK);
	cr_expect_eq(end_, PKVM_ACCESS_SIGSEGV);
	cr_assert_eq(pkvm_host_access(&x.m, PAGE, PKVM_ACCESS_FIXUP, &end_, &a), PW_OK);
	cr_expect_eq(end_, PKVM_ACCESS_EFAULT);
	cr_expect_eq(page_at(&x, PAGE).joint, PKVM_F);
	cr_assert_eq(pkvm_host_access(&x.m, vm->donated.first, PKVM_ACCESS_KERNEL, &end_, &a), PW_OK);
	cr_expect(end_ == PKVM_ACCESS_FATAL && a.code == PKVM_EPERM, "the hypervisor's own page");
	cr_assert_eq(pkvm_host_access(&x.m, PAGE, PKVM_ACCESS_KERNEL, &end_, &a), PW_OK);
	cr_expect(end_ == PKVM_ACCESS_RETRIED && a.contents == PKVM_ZEROED);
	cr_expect_eq(pkvm_fault_on_mapped(vm, GFN), PKVM_EFAULT, "poison");
	end(&x);
}

Test(pkvm, law_of_all_hosts_in_its_own_words)
{
	static const struct {
		enum pkvm_kind kind;
		enum pkvm_page_state s;
		enum gfn_state want;
	} cases[] = {
		{ PKVM_PROTECTED, PKVM_OWNED, GFN_SECURE_RESIDENT }, { PKVM_PROTECTED, PKVM_SHARED_OWNED, GFN_SHARED },
		{ PKVM_PROTECTED, PKVM_NOPAGE, GFN_SECURE_OUT },     { PKVM_PROTECTED, PKVM_POISON, GFN_SECURE_OUT },
		{ PKVM_NON_PROTECTED, PKVM_BORROWED, GFN_NORMAL },   { PKVM_NON_PROTECTED, PKVM_NOPAGE, GFN_NORMAL },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		cr_expect_eq(pkvm_project(cases[i].kind, cases[i].s), cases[i].want, "case %zu", i);
	cr_expect_eq(pkvm_project_vm(PKVM_PROTECTED, PKVM_VM_RESERVED, false), VM_NORMAL);
	cr_expect_eq(pkvm_project_vm(PKVM_PROTECTED, PKVM_VM_CREATED, false), VM_TRANSIENT);
	cr_expect_eq(pkvm_project_vm(PKVM_PROTECTED, PKVM_VM_CREATED, true), VM_SECURE);
	cr_expect_eq(pkvm_project_vm(PKVM_NON_PROTECTED, PKVM_VM_CREATED, true), VM_NORMAL);
}

Test(pkvm, refusals_say_state_operation_page_and_source)
{
	struct pkvm_call c = { .pfn = PAGE };
	struct pkvm_answer a;
	struct machine x;
	char text[256];

	begin(&x);
	cr_assert_eq(page_op(&x, PKVM_HSF, c), PKVM_OK);
	cr_assert_eq(pkvm_page_call(&x.m, PKVM_HDH, &c, &a), PW_OK);
	pkvm_explain_page(PKVM_HDH, &c, &a, text, sizeof text);
	cr_expect_str_eq(text, "HDH of page 7 in state D (host SHARED_OWNED, hyp NOPAGE): -EPERM (ownership); "
			       "mem_protect.c, asserted by pkvm_ownership_selftest");
	cr_assert_eq(pkvm_page_call(&x.m, PKVM_UNPIN, &c, &a), PW_OK);
	pkvm_explain_page(PKVM_UNPIN, &c, &a, text, sizeof text);
	cr_expect(strstr(text, "inferred, unverified"), "%s", text);
	c.vm = make_vm(&x, PKVM_PROTECTED);
	cr_assert_eq(pkvm_leaf_call(&x.m, PKVM_GSH, &c, &a), PW_OK);
	pkvm_explain_leaf(PKVM_GSH, &c, &a, text, sizeof text);
	cr_expect_str_eq(text, "GSH of GFN 0 in state NOPAGE: -ENOENT (ownership); mem_protect.c, read");
	end(&x);
}

Test(pkvm, a_terabyte_guest_costs_a_handful_of_nodes)
{
	static const struct pkvm_region regions[] = { { 0, (uint64_t)1 << 28, false }, { META << 12, 64, false } };
	uint64_t pages = (uint64_t)1 << 28, blocks = pages / PKVM_BLOCK_PAGES;
	struct machine x = { .meta = META << 12 };

	cr_assert_eq(pkvm_init(&x.m, &x.mem, PKVM_MAINLINE, regions, 2, 1), PW_OK);
	struct pkvm_vm *plain = make_vm(&x, PKVM_NON_PROTECTED), *secret = make_vm(&x, PKVM_PROTECTED);
	struct pkvm_call c = { .vm = plain, .gfn = PKVM_BLOCK_PAGES, .nr = PKVM_BLOCK_PAGES, .calls = blocks };

	cr_assert_eq(page_op(&x, PKVM_HSG, c), PKVM_OK);
	cr_expect_leq(tree_bytes(&plain->leaves) + tree_bytes(&x.m.pages), 16 * sizeof(struct tree_node));
	cr_expect(pkvm_check(&x.m));
	cr_assert_eq(leaf_op(&x, PKVM_HUG, c), PKVM_OK);
	c = (struct pkvm_call){ .vm = secret, .gfn = 77, .calls = pages };
	cr_assert_eq(page_op(&x, PKVM_HDG, c), PKVM_OK);
	cr_expect_leq(tree_bytes(&secret->leaves) + tree_bytes(&x.m.pages), 16 * sizeof(struct tree_node));
	cr_assert_eq(pkvm_start_teardown(&x.m, pkvm_handle(secret)), PKVM_OK);
	cr_assert_eq(leaf_op(&x, PKVM_RCL, c), PKVM_OK);
	end(&x);
}

Test(pkvm, check_sees_what_is_broken)
{
	static const struct {
		uint64_t page, leaf; /* put at PAGE, at GFN */
	} cases[] = {
		{ (uint64_t)PKVM_E << 56 | 1, 0 },                                     /* a count, no leaf */
		{ 0, TREE_LINEAR | (uint64_t)(PKVM_OWNED + 1) << 56 | PAGE },          /* a leaf, no owner */
		{ TREE_LINEAR | (uint64_t)PKVM_F << 56 | (uint64_t)1 << 40 | GFN, 0 }, /* an owner, no leaf */
		{ (uint64_t)PKVM_D << 56 | 1, 0 },                                     /* a count of FF-A's */
		{ (uint64_t)PKVM_C << 56 | 0x10000, 0 },                               /* too many pins */
		{ (uint64_t)PKVM_E << 56 | 1, TREE_LINEAR | (uint64_t)(PKVM_BORROWED + 1) << 56 | PAGE }, /* of a pVM */
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct machine x;

		begin(&x);
		struct pkvm_vm *vm = make_vm(&x, PKVM_PROTECTED);

		cr_assert_eq(tree_set(&x.m.pages, PAGE, 1, cases[i].page), PW_OK);
		cr_assert_eq(tree_set(&vm->leaves, GFN, 1, cases[i].leaf), PW_OK);
		cr_expect_not(pkvm_check(&x.m), "case %zu", i);
		cr_assert_eq(tree_set(&x.m.pages, PAGE, 1, 0), PW_OK);
		cr_assert_eq(tree_set(&vm->leaves, GFN, 1, 0), PW_OK);
		cr_assert_eq(tree_set(&x.m.pages, HOLE, 1, (uint64_t)PKVM_D << 56), PW_OK);
		cr_expect_not(pkvm_check(&x.m), "what is not RAM has an owner");
		cr_assert_eq(tree_set(&x.m.pages, HOLE, 1, 0), PW_OK);
		end(&x);
	}
}

/* Random calls. */

struct dice {
	uint64_t x;
};

static uint64_t roll(struct dice *d, uint64_t sides)
{
	d->x ^= d->x << 13;
	d->x ^= d->x >> 7;
	d->x ^= d->x << 17;
	return d->x % sides;
}

static void random_vm_step(struct machine *x, struct dice *d, unsigned handle, enum pw_status *st, enum pkvm_code *code)
{
	struct pkvm_vm_params vm = { .kind = roll(d, 2) ? PKVM_PROTECTED : PKVM_NON_PROTECTED,
				     .vcpus = 2,
				     .host_page = META,
				     .donated = BYTES(META + 1 + roll(d, 8)),
				     .donated_pages = 1 + roll(d, 2),
				     .table = BYTES(META + 10 + roll(d, 4)),
				     .table_pages = 1 };
	struct pkvm_vcpu_params vcpu = { .index = (unsigned)roll(d, 3),
					 .host_page = META,
					 .donated = BYTES(META + 20 + roll(d, 8)),
					 .donated_pages = 1 };
	unsigned index = (unsigned)roll(d, 2), cpu = (unsigned)roll(d, CPUS);
	bool loaded;

	switch (roll(d, 8)) {
	case 0: *st = pkvm_reserve(&x->m, &handle, code); break;
	case 1: pkvm_unreserve(&x->m, handle); break;
	case 2: *st = pkvm_init_vm(&x->m, handle, &vm, code); break;
	case 3: *st = pkvm_init_vcpu(&x->m, handle, &vcpu, code); break;
	case 4: *st = pkvm_load(&x->m, cpu, handle, index, &loaded); break;
	case 5: *st = pkvm_put(&x->m, cpu); break;
	case 6: *code = roll(d, 4) ? PKVM_OK : pkvm_start_teardown(&x->m, handle); break;
	default: *st = pkvm_finalize(&x->m, handle, code); break;
	}
}

static void random_page_step(struct machine *x, struct dice *d, struct pkvm_vm *vm, enum pw_status *st,
			     struct pkvm_answer *a)
{
	static const enum pkvm_page_op ops[] = { PKVM_HSH, PKVM_HUH, PKVM_HDH, PKVM_YDH, PKVM_PIN, PKVM_UNPIN, PKVM_HSF,
						 PKVM_HUF, PKVM_HSG, PKVM_HSG, PKVM_HDG, PKVM_HDG, PKVM_FRC };
	struct pkvm_call c = { .vm = vm, .gfn = roll(d, 12), .pfn = roll(d, 24), .nr = 1, .calls = 1 + roll(d, 4) };

	if (roll(d, 16) == 0) {
		c.nr = PKVM_BLOCK_PAGES;
		c.calls = 1;
		c.gfn = c.gfn / 4 * PKVM_BLOCK_PAGES;
		c.pfn = c.pfn / 12 * PKVM_BLOCK_PAGES;
	}
	if (roll(d, 2))
		*st = pkvm_page_call(&x->m, ops[roll(d, PW_ARRAY_LEN(ops))], &c, a);
	else
		*st = pkvm_leaf_call(&x->m, (enum pkvm_leaf_op)roll(d, PKVM_LEAF_OP_COUNT), &c, a);
}

static void random_calls(uint64_t seed, unsigned steps, unsigned fail_every)
{
	struct dice d = { seed | 1 };
	unsigned refused = 0, done = 0;
	struct machine x;

	begin(&x);
	cr_assert_eq(page_op(&x, PKVM_HSH, (struct pkvm_call){ .pfn = META }), PKVM_OK);
	for (unsigned i = 0; i < steps; i++) {
		uint64_t digest = pkvm_digest(&x.m);
		unsigned handle = PKVM_HANDLE_FIRST + (unsigned)roll(&d, 3);
		struct pkvm_answer a = { .code = PKVM_OK };
		enum pw_status st = PW_OK;

		if (fail_every) {
			arena_trim_to(&x.m.arena, 0);
			x.mem.limit = i % fail_every ? 0 : x.mem.used + roll(&d, 2) * 20000;
		}
		if (roll(&d, 5) == 0)
			random_vm_step(&x, &d, handle, &st, &a.code);
		else
			random_page_step(&x, &d, pkvm_vm_of(&x.m, handle), &st, &a);
		cr_assert(pkvm_check(&x.m), "seed %" PRIu64 " step %u", seed, i);
		if (st != PW_OK || a.code != PKVM_OK)
			cr_assert_eq(pkvm_digest(&x.m), digest, "seed %" PRIu64 " step %u", seed, i);
		cr_assert(st == PW_OK || (fail_every && st == PW_NO_MEMORY));
		refused += a.code != PKVM_OK;
		done += a.code == PKVM_OK;
	}
	cr_expect(refused > steps / 10 && done > steps / 10, "a mix: %u refused, %u done", refused, done);
	end(&x);
}

Test(pkvm, random_calls_keep_the_invariants_and_refusals_change_nothing)
{
	uint64_t seed = (uint64_t)time(NULL);
	const char *given = getenv("SEED");

	if (given)
		seed = strtoull(given, NULL, 10);
	fprintf(stderr, "SEED=%" PRIu64 "\n", seed);
	random_calls(seed, 15000, 0);
	random_calls(seed + 1, 8000, 3);
}

/* Each allocation of a life fails once; after each a retry succeeds. */
static enum pw_status whole_life(struct machine *x)
{
	struct pkvm_vm_params p = { .kind = PKVM_PROTECTED,
				    .vcpus = 1,
				    .host_page = META,
				    .donated = BYTES(META + 1),
				    .donated_pages = 1,
				    .table = BYTES(META + 2),
				    .table_pages = 1 };
	struct pkvm_vcpu_params v = { .host_page = META, .donated = BYTES(META + 3), .donated_pages = 1 };
	unsigned handle = PKVM_HANDLE_FIRST;
	struct pkvm_answer a;
	enum pkvm_code code;
	bool loaded;

	if (!pkvm_vm_of(&x->m, handle)) {
		if (pkvm_page_call(&x->m, PKVM_HSH, &(struct pkvm_call){ .pfn = META }, &a) != PW_OK ||
		    pkvm_reserve(&x->m, &handle, &code) != PW_OK)
			return PW_NO_MEMORY;
	}
	struct pkvm_vm *vm = pkvm_vm_of(&x->m, handle);
	struct pkvm_call c = { .vm = vm, .gfn = 3, .pfn = 5, .calls = 7 };

	if (vm->state == PKVM_VM_RESERVED && pkvm_init_vm(&x->m, handle, &p, &code) != PW_OK)
		return PW_NO_MEMORY;
	if (!vm->vcpus[0] && pkvm_init_vcpu(&x->m, handle, &v, &code) != PW_OK)
		return PW_NO_MEMORY;
	if (pkvm_load(&x->m, 0, handle, 0, &loaded) != PW_OK || pkvm_put(&x->m, 0) != PW_OK ||
	    pkvm_page_call(&x->m, PKVM_HDG, &c, &a) != PW_OK)
		return PW_NO_MEMORY;
	c = (struct pkvm_call){ .vm = vm, .gfn = 4, .pfn = 6 };
	if (pkvm_leaf_call(&x->m, PKVM_GSH, &c, &a) != PW_OK || pkvm_leaf_call(&x->m, PKVM_GUH, &c, &a) != PW_OK ||
	    pkvm_page_call(&x->m, PKVM_FRC, &c, &a) != PW_OK)
		return PW_NO_MEMORY;
	code = pkvm_start_teardown(&x->m, handle);
	return pkvm_finalize(&x->m, handle, &code);
}

struct failing {
	unsigned left; /* allocations until one fails */
};

static void *failing_alloc(void *ctx, size_t size)
{
	struct failing *f = ctx;

	return f->left-- ? malloc(size) : NULL;
}

static void failing_free(void *ctx, void *p)
{
	free(p);
}

Test(pkvm, any_allocation_may_fail_once)
{
	unsigned n = 0;

	for (bool failed = true; failed; n++) {
		struct failing f = { n };
		struct machine x = { .mem = { .alloc = failing_alloc, .free = failing_free, .ctx = &f } };
		static const struct pkvm_region regions[] = { { 0, RAM, false }, { META, 4096, false } };

		cr_assert_lt(n, 1000);
		failed = pkvm_init(&x.m, &x.mem, PKVM_MAINLINE, regions, 2, 1) != PW_OK;
		if (failed) {
			cr_expect_eq(x.mem.used, 0);
			continue;
		}
		failed = whole_life(&x) != PW_OK;
		cr_expect(pkvm_check(&x.m), "allocation %u", n);
		f.left = UINT32_MAX;
		if (failed)
			cr_expect_eq(whole_life(&x), PW_OK, "allocation %u", n);
		cr_expect_null(x.m.vms[0]);
		end(&x);
	}
	cr_expect_gt(n, 20);
}
