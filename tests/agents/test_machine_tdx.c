/* The TDX host behind machine_tdx, driven without the machine around it: this file is the machine. */
#include "agents/tdx_host.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#define LARGE     512u
#define BASE      ((uint64_t)3 * LARGE) /* first frame of the pool */
#define FRAMES    ((uint64_t)8 * LARGE)
#define GUEST     ((uint64_t)5 * LARGE) /* pages of the first slot, from FIRST */
#define FIRST     ((uint64_t)2 * LARGE)
#define HIGH      ((uint64_t)1 << 20) /* a second slot of HIGH_PAGES */
#define HIGH_SIZE ((uint64_t)100)
#define PAGES     (GUEST + HIGH_SIZE)
#define VMS       2

struct machine {
	uint64_t asked, refuse; /* the refuse-th frame asked for back is refused; 0: none is */
	uint64_t kept[4 * LARGE];
	size_t kept_count;
	char why[256];
};

uint64_t machine_gives_back(struct machine *x, uint64_t count)
{
	for (uint64_t i = 0; i < count; i++)
		if (++x->asked == x->refuse)
			return i;
	return count;
}

void machine_keep(struct machine *x, uint64_t pfn, const char *why)
{
	cr_assert_lt(x->kept_count, PW_ARRAY_LEN(x->kept));
	x->kept[x->kept_count++] = pfn;
	memset(x->why, 0, sizeof x->why);
	strncpy(x->why, why, sizeof x->why - 1);
}

/* What the law says of one page, kept beside the model. */
struct page {
	enum gfn_state state;
	uint64_t pfn;
};

struct world {
	struct machine machine;
	struct pw_mem mem;
	uint64_t allocations, fail_at; /* the fail_at-th allocation fails; 0: none does */
	struct machine_pool pool;
	void *model;
	struct tdx_host *host; /* the same */
	struct machine_vm vm[VMS];
	struct slot slots[VMS][2];
	struct page page[VMS][PAGES];
	bool used[FRAMES];
	struct pw_err err;
};

static void *count_alloc(void *ctx, size_t size)
{
	struct world *w = ctx;

	return ++w->allocations == w->fail_at ? NULL : malloc(size);
}

static void count_free(void *ctx, void *p)
{
	free(p);
}

static uint64_t gfn_of(uint64_t i)
{
	return i < GUEST ? FIRST + i : HIGH + i - GUEST;
}

static struct world *world_new(uint64_t base, unsigned shared_bit)
{
	struct world *w = calloc(1, sizeof *w);

	cr_assert(w);
	w->mem = (struct pw_mem){ .alloc = count_alloc, .free = count_free, .ctx = w };
	w->pool = (struct machine_pool){ base, FRAMES };
	cr_assert_eq(machine_tdx.open(&w->machine, &w->pool, &w->mem, &w->model, &w->err), PW_OK, "%s", w->err.msg);
	w->host = w->model;
	for (int v = 0; v < VMS; v++) {
		w->slots[v][0] = (struct slot){ 0, FIRST, GUEST };
		w->slots[v][1] = (struct slot){ 1, HIGH, HIGH_SIZE };
		w->vm[v] = (struct machine_vm){ .slots = w->slots[v], .slot_count = 2, .shared_bit = shared_bit };
		cr_assert_eq(machine_tdx.vm_new(w->model, &w->vm[v], &w->err), PW_OK, "%s", w->err.msg);
	}
	return w;
}

static struct tdx_td *td_of(const struct world *w, int v)
{
	return tdx_host_td(w->host, w->vm[v].guest);
}

/* Everything that anybody can see, against what the law says it is. */

static void verify_page(const struct world *w, int v, uint64_t i, const struct backend_run *run)
{
	const struct page *want = &w->page[v][i];
	const struct tdx_td *td = td_of(w, v);
	uint64_t gpa = gfn_of(i) << 12, owner;
	unsigned size;

	cr_assert_eq(run->state, want->state, "VM %d GFN %#lx is %s, not %s", v, gfn_of(i), gfn_state_name(run->state),
		     gfn_state_name(want->state));
	cr_assert_eq(run->arch, 0, "GFN %#lx is not at rest", gfn_of(i));
	if (want->state == GFN_SECURE_RESIDENT) {
		cr_assert_eq(run->pfn + (gfn_of(i) - run->gfn), want->pfn, "VM %d GFN %#lx is on another frame", v,
			     gfn_of(i));
		cr_assert_eq(tdx_page(&w->host->module, want->pfn - w->host->shift, &size, &owner), TDX_PT_REG);
		cr_assert_eq(owner, td->tdr);
	}
	if (!td)
		return;
	/* One alias at a time (A3, A8), each by its own tables, whatever page size is below (A6). */
	cr_assert_eq(tdx_touch(td, gpa) == TDX_TOUCH_WORKS, want->state == GFN_SECURE_RESIDENT);
	cr_assert_eq(tdx_touch(td, gpa | td->alias.mask << 12) == TDX_TOUCH_WORKS, want->state == GFN_SHARED);
}

/* A TD that runs has a large page exactly where it can: the state file knows no sizes. */
static void verify_size(const struct world *w, int v, uint64_t base)
{
	const struct page *first = &w->page[v][base];
	bool large = w->vm[v].state == VM_SECURE && first->pfn % LARGE == 0;
	unsigned level;
	uint64_t frame;

	for (uint64_t i = 0; i < LARGE; i++)
		large &= first[i].state == GFN_SECURE_RESIDENT && first[i].pfn == first->pfn + i;
	if (first->state == GFN_SECURE_RESIDENT) {
		tdx_leaf(td_of(w, v), gfn_of(base), &level, &frame);
		cr_assert_eq(level, large ? 1 : 0, "GFN %#lx", gfn_of(base));
	}
}

static void verify(struct world *w)
{
	struct backend_run run = { 0 };

	cr_assert(machine_tdx.check(w->model, &w->err), "%s", w->err.msg);
	for (int v = 0; v < VMS; v++) {
		for (uint64_t i = 0; i < PAGES; i++) {
			uint64_t end = i < GUEST ? FIRST + GUEST : HIGH + HIGH_SIZE;

			if (i == 0 || i == GUEST || gfn_of(i) >= run.gfn + run.count)
				run = machine_tdx.run_at(w->model, &w->vm[v], gfn_of(i), end);
			cr_assert(run.count > 0 && run.gfn + run.count <= end);
			verify_page(w, v, i, &run);
			if (i < GUEST && i % LARGE == 0 && td_of(w, v))
				verify_size(w, v, i);
		}
	}
}

static void world_free(struct world *w)
{
	verify(w);
	for (int v = 0; v < VMS; v++)
		machine_tdx.vm_free(w->model, &w->vm[v]);
	machine_tdx.close(w->model);
	cr_expect_eq(w->mem.used, 0);
	free(w);
}

/* Ops, with what the law says of them. */

static enum pw_status event(struct world *w, int v, enum vm_event e)
{
	enum pw_status st = machine_tdx.event(w->model, &w->vm[v], e, &w->err);
	enum gfn_op op = e == VM_INIT_DONE ? GFN_INIT_DONE : GFN_RESET;
	enum vm_state next;

	if (st != PW_OK)
		return st;
	cr_assert(e == VM_START || vm_step(w->vm[v].state, e, &next));
	w->vm[v].state = e == VM_START ? w->vm[v].state : next;
	for (uint64_t i = 0; i < PAGES && e != VM_INIT_START && e != VM_START; i++) {
		struct page *p = &w->page[v][i];

		if (op == GFN_RESET && p->state == GFN_SECURE_RESIDENT)
			w->used[p->pfn - w->pool.base] = false;
		cr_assert(gfn_step(p->state, op, &p->state));
	}
	for (size_t i = 0; i < w->machine.kept_count; i++)
		w->used[w->machine.kept[i] - w->pool.base] = true;
	return PW_OK;
}

static void must(struct world *w, enum pw_status st)
{
	cr_assert_eq(st, PW_OK, "%s", w->err.msg);
	verify(w);
}

static enum pw_status page_in(struct world *w, int v, uint64_t i, uint64_t n, const uint64_t *pfns)
{
	enum pw_status st = machine_tdx.page_in(w->model, &w->vm[v], gfn_of(i), n, pfns, &w->err);

	for (uint64_t k = 0; k < n && st == PW_OK; k++) {
		w->page[v][i + k] = (struct page){ GFN_SECURE_RESIDENT, pfns[k] };
		w->used[pfns[k] - w->pool.base] = true;
	}
	return st;
}

/* The n frames from the pool's frame `at`. */
static enum pw_status page_in_from(struct world *w, int v, uint64_t i, uint64_t n, uint64_t at)
{
	uint64_t pfns[PAGES];

	for (uint64_t k = 0; k < n; k++)
		pfns[k] = w->pool.base + at + k;
	return page_in(w, v, i, n, pfns);
}

static enum pw_status change(struct world *w, int v, enum gfn_op op, uint64_t i, uint64_t n)
{
	enum pw_status (*fn)(void *, struct machine_vm *, uint64_t, uint64_t, struct pw_err *) =
		op == GFN_SHARE     ? machine_tdx.share
		: op == GFN_UNSHARE ? machine_tdx.unshare
				    : machine_tdx.page_out;
	enum pw_status st = fn(w->model, &w->vm[v], gfn_of(i), n, &w->err);

	for (uint64_t k = i; k < i + n && st == PW_OK; k++) {
		struct page *p = &w->page[v][k];
		bool was = p->state == GFN_SECURE_RESIDENT;

		if (op == GFN_PAGE_OUT && !was)
			continue;
		cr_assert(gfn_step(p->state, op, &p->state));
		if (was && p->state != GFN_SECURE_RESIDENT)
			w->used[p->pfn - w->pool.base] = false;
	}
	return st;
}

static unsigned level_of(const struct world *w, int v, uint64_t i)
{
	uint64_t frame;
	unsigned level;

	tdx_leaf(td_of(w, v), gfn_of(i), &level, &frame);
	return level;
}

/* What an undone op has to leave as it was: every entry of both EPTs, and the TD's number of frames. */
static uint64_t picture(const struct world *w)
{
	uint64_t h = 1;

	for (int v = 0; v < VMS; v++) {
		const struct tdx_td *td = td_of(w, v);

		h = h * 31 + (td ? td->chldcnt + (uint64_t)td->lifecycle * 7 + (uint64_t)td->op_state : 99);
		for (uint64_t i = 0; td && i < PAGES; i++) {
			unsigned level;
			uint64_t frame;
			enum tdx_sept s = tdx_leaf(td, gfn_of(i), &level, &frame);

			h = (h * 1000003 + frame) * 31 + s * 8u + level * 2u + !!tree_get(&td->shared, gfn_of(i));
		}
	}
	return h;
}

static struct world *running(void)
{
	struct world *w = world_new(BASE, 47);

	must(w, event(w, 0, VM_INIT_START));
	must(w, event(w, 0, VM_INIT_DONE));
	return w;
}

/* Life. */

Test(machine_tdx, a_vm_goes_through_its_life_with_pages_of_every_state)
{
	struct world *w = world_new(BASE, 0);

	verify(w);
	must(w, event(w, 0, VM_INIT_START));
	cr_expect_eq(td_of(w, 0)->op_state, TDX_INITIALIZED);
	must(w, page_in_from(w, 0, 0, 700, 0));
	must(w, change(w, 0, GFN_SHARE, 10, 600));
	must(w, change(w, 0, GFN_UNSHARE, 300, 400));
	must(w, page_in_from(w, 0, 200, 20, 1000));
	must(w, change(w, 0, GFN_PAGE_OUT, 0, 10));
	must(w, event(w, 0, VM_INIT_DONE));
	cr_expect_eq(td_of(w, 0)->op_state, TDX_RUNNABLE);
	must(w, page_in_from(w, 0, 0, 10, 2000));
	must(w, page_in_from(w, 0, 100, 50, 3000)); /* shared ones become private */
	must(w, change(w, 0, GFN_SHARE, 0, PAGES - HIGH_SIZE));
	must(w, change(w, 0, GFN_UNSHARE, 0, 1));
	must(w, event(w, 0, VM_TERMINATE));
	cr_expect_null(td_of(w, 0));
	must(w, event(w, 0, VM_INIT_START));
	must(w, page_in_from(w, 0, 5, 5, 5));
	must(w, event(w, 0, VM_INIT_ABORT));
	world_free(w);
}

Test(machine_tdx, measures_as_many_pages_as_a_firmware_image_has)
{
	struct world *w = world_new(BASE, 47);
	const struct tdx_guest *g = w->vm[0].guest;

	must(w, event(w, 0, VM_INIT_START));
	must(w, page_in_from(w, 0, 0, 1000, 0));
	cr_expect_eq(g->measured, 1000);
	must(w, page_in_from(w, 0, 1000, 1000, 1000));
	cr_expect_eq(g->measured, TDX_HOST_MEASURED);
	must(w, event(w, 0, VM_INIT_ABORT));
	cr_expect_eq(g->measured, 0);
	world_free(w);
}

Test(machine_tdx, a_guest_of_wide_addresses_has_five_levels)
{
	struct world *w = world_new(BASE, 51);
	struct slot far = { 2, (uint64_t)1 << 38, 4 }, past = { 3, ((uint64_t)1 << 39) - 1, 4 };

	must(w, event(w, 0, VM_INIT_START));
	cr_expect_eq(td_of(w, 0)->levels, 5);
	cr_expect_eq(td_of(w, 0)->alias.mask, (uint64_t)1 << 39);
	cr_expect_eq(machine_tdx.slot_add(w->model, &w->vm[0], &far, &w->err), PW_OK);
	cr_expect_eq(machine_tdx.slot_add(w->model, &w->vm[0], &past, &w->err), PW_INVALID);
	must(w, page_in_from(w, 0, 0, 3, 0));
	must(w, event(w, 0, VM_TERMINATE));
	world_free(w);
}

Test(machine_tdx, refuses_slots_and_bits_that_no_td_can_have)
{
	struct world *w = world_new(BASE, 47);
	struct slot far = { 2, ((uint64_t)1 << 35) - 1, 2 }, last = { 2, ((uint64_t)1 << 35) - 1, 1 };
	struct machine_vm odd = { .shared_bit = 40 }, wide = { .slots = &far, .slot_count = 1 };

	cr_expect_eq(machine_tdx.slot_add(w->model, &w->vm[0], &far, &w->err), PW_INVALID);
	cr_expect_eq(machine_tdx.slot_add(w->model, &w->vm[0], &last, &w->err), PW_OK);
	cr_expect_eq(machine_tdx.vm_new(w->model, &odd, &w->err), PW_INVALID);
	cr_assert_eq(machine_tdx.vm_new(w->model, &wide, &w->err), PW_OK);
	cr_assert_eq(machine_tdx.event(w->model, &wide, VM_INIT_START, &w->err), PW_OK, "%s", w->err.msg);
	cr_expect_eq(tdx_host_td(w->host, wide.guest)->levels, 5);
	cr_assert_eq(machine_tdx.event(w->model, &wide, VM_TERMINATE, &w->err), PW_OK, "%s", w->err.msg);
	machine_tdx.vm_free(w->model, &wide);
	world_free(w);
}

Test(machine_tdx, serves_as_many_vms_as_there_are_hkids)
{
	struct world *w = world_new(BASE, 47);
	static struct machine_vm many[TDX_HOST_HKIDS + 1];

	for (int i = 0; i < TDX_HOST_HKIDS + 1; i++) {
		cr_assert_eq(machine_tdx.vm_new(w->model, &many[i], &w->err), PW_OK);
		cr_assert_eq(machine_tdx.event(w->model, &many[i], VM_INIT_START, &w->err),
			     i < TDX_HOST_HKIDS ? PW_OK : PW_BUSY, "%s", w->err.msg);
	}
	for (int i = 0; i < TDX_HOST_HKIDS + 1; i++) {
		cr_assert_eq(machine_tdx.event(w->model, &many[i], VM_INIT_ABORT, &w->err), PW_OK, "%s", w->err.msg);
		machine_tdx.vm_free(w->model, &many[i]);
	}
	cr_expect_eq(w->host->control_hint, w->host->control.first + 1);
	world_free(w);
}

Test(machine_tdx, works_wherever_the_pool_is)
{
	static const uint64_t bases[] = {
		0, 1, 12345, ((uint64_t)1 << 30) - 7, ((uint64_t)1 << 39) + 513, TREE_PAGES - FRAMES
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(bases); i++) {
		struct world *w = world_new(bases[i], 47);
		uint64_t outside = bases[i] + FRAMES;

		must(w, event(w, 0, VM_INIT_START));
		must(w, page_in_from(w, 0, 0, 10, 0));
		must(w, page_in_from(w, 0, 10, 10, FRAMES - 10));
		cr_expect_eq(machine_tdx.page_in(w->model, &w->vm[0], gfn_of(30), 1, &outside, &w->err), PW_BACKEND);
		must(w, event(w, 0, VM_INIT_DONE));
		must(w, page_in_from(w, 0, LARGE, LARGE, (LARGE - bases[i] % LARGE) % LARGE + LARGE));
		cr_expect_eq(level_of(w, 0, LARGE), 1);
		must(w, event(w, 0, VM_TERMINATE));
		world_free(w);
	}
}

/* Page sizes. */

Test(machine_tdx, uses_2_mib_pages_for_aligned_stretches_of_a_guest_that_runs)
{
	struct world *w = running();
	uint64_t mixed[LARGE];

	must(w, page_in_from(w, 0, 0, 2 * LARGE, LARGE));
	cr_expect(level_of(w, 0, 0) == 1 && level_of(w, 0, 2 * LARGE - 1) == 1);
	must(w, page_in_from(w, 0, 2 * LARGE, LARGE, 3 * LARGE + 7)); /* frames that are not aligned */
	cr_expect_eq(level_of(w, 0, 2 * LARGE), 0);
	for (uint64_t k = 0; k < LARGE; k++)
		mixed[k] = BASE + 5 * LARGE + (k ^ 1); /* frames that do not count up */
	must(w, page_in(w, 0, 3 * LARGE, LARGE, mixed));
	cr_expect_eq(level_of(w, 0, 3 * LARGE), 0);
	must(w, event(w, 0, VM_TERMINATE));

	must(w, event(w, 0, VM_INIT_START));
	must(w, page_in_from(w, 0, 0, LARGE, LARGE));
	cr_expect_eq(level_of(w, 0, 0), 0, "TDH.MEM.PAGE.ADD knows 4 KiB alone");
	must(w, event(w, 0, VM_TERMINATE));
	world_free(w);
}

Test(machine_tdx, splits_a_2_mib_page_of_which_a_part_goes)
{
	struct world *w = running();

	must(w, page_in_from(w, 0, 0, 3 * LARGE, 0));
	must(w, change(w, 0, GFN_SHARE, 7, 1));
	cr_expect(level_of(w, 0, 6) == 0 && level_of(w, 0, LARGE) == 1);
	must(w, change(w, 0, GFN_PAGE_OUT, LARGE + 500, LARGE)); /* over two of them */
	cr_expect(level_of(w, 0, LARGE) == 0 && level_of(w, 0, 2 * LARGE + 501) == 0);
	must(w, change(w, 0, GFN_SHARE, 0, GUEST));
	must(w, event(w, 0, VM_TERMINATE));
	world_free(w);
}

Test(machine_tdx, an_empty_table_makes_way_for_a_2_mib_page)
{
	struct world *w = running();
	uint64_t chldcnt;

	must(w, page_in_from(w, 0, 0, 2 * LARGE, 0));
	chldcnt = td_of(w, 0)->chldcnt;
	must(w, change(w, 0, GFN_PAGE_OUT, 3, 1));
	must(w, change(w, 0, GFN_PAGE_OUT, 0, LARGE));
	must(w, page_in_from(w, 0, 0, LARGE, 3 * LARGE));
	cr_expect_eq(level_of(w, 0, 0), 1);
	cr_expect_eq(td_of(w, 0)->chldcnt, chldcnt);
	must(w, event(w, 0, VM_TERMINATE));
	world_free(w);
}

Test(machine_tdx, small_pages_merge_when_the_last_of_512_comes)
{
	struct world *w = world_new(BASE, 47);
	uint64_t chldcnt;

	must(w, event(w, 0, VM_INIT_START));
	must(w, page_in_from(w, 0, 0, LARGE, 0));
	must(w, page_in_from(w, 0, 3 * LARGE - 9, LARGE + 8, 3 * LARGE - 9));
	cr_expect_eq(level_of(w, 0, 0), 0);
	chldcnt = td_of(w, 0)->chldcnt;
	must(w, event(w, 0, VM_INIT_DONE));
	cr_expect_eq(level_of(w, 0, 0), 1);
	cr_expect_eq(level_of(w, 0, 3 * LARGE), 0);
	cr_expect_eq(td_of(w, 0)->chldcnt, chldcnt - 1, "the table's frame is back");
	must(w, page_in_from(w, 0, 4 * LARGE - 1, 1, 4 * LARGE - 1));
	cr_expect_eq(level_of(w, 0, 3 * LARGE), 1);
	must(w, change(w, 0, GFN_SHARE, 40, 2));
	must(w, page_in_from(w, 0, 40, 1, 40));
	must(w, page_in_from(w, 0, 41, 1, 5 * LARGE)); /* another frame than before */
	cr_expect_eq(level_of(w, 0, 0), 0);
	must(w, event(w, 0, VM_TERMINATE));
	world_free(w);
}

Test(machine_tdx, no_2_mib_page_reaches_over_the_edge_of_a_slot)
{
	struct world *w = world_new(BASE, 47);
	struct slot slots[2] = { { 0, FIRST, 300 }, { 1, FIRST + 300, LARGE } };
	struct machine_vm vm = { .slots = slots, .slot_count = 2 };
	uint64_t pfns[LARGE], frame;
	unsigned level;

	for (uint64_t i = 0; i < LARGE; i++)
		pfns[i] = BASE + i;
	cr_assert_eq(machine_tdx.vm_new(w->model, &vm, &w->err), PW_OK);
	cr_assert_eq(machine_tdx.event(w->model, &vm, VM_INIT_START, &w->err), PW_OK);
	cr_assert_eq(machine_tdx.event(w->model, &vm, VM_INIT_DONE, &w->err), PW_OK);
	vm.state = VM_SECURE;
	cr_assert_eq(machine_tdx.page_in(w->model, &vm, FIRST, LARGE, pfns, &w->err), PW_OK);
	tdx_leaf(tdx_host_td(w->host, vm.guest), FIRST, &level, &frame);
	cr_expect_eq(level, 0);
	cr_assert_eq(machine_tdx.slot_remove(w->model, &vm, &slots[0], &w->err), PW_OK);
	cr_expect_eq(machine_tdx.run_at(w->model, &vm, FIRST, FIRST + 300).state, GFN_SECURE_OUT);
	cr_expect_eq(machine_tdx.run_at(w->model, &vm, FIRST + 300, FIRST + LARGE).state, GFN_SECURE_RESIDENT);
	cr_assert_eq(machine_tdx.event(w->model, &vm, VM_TERMINATE, &w->err), PW_OK);
	machine_tdx.vm_free(w->model, &vm);
	world_free(w);
}

Test(machine_tdx, control_pages_are_used_again)
{
	struct world *w = running();
	uint64_t most;

	must(w, page_in_from(w, 0, 0, 2 * LARGE, 0));
	most = w->host->control_hint + 3;
	for (int i = 0; i < 20; i++) {
		must(w, change(w, 0, GFN_SHARE, LARGE - 1, 2));
		must(w, page_in_from(w, 0, LARGE - 1, 2, LARGE - 1));
		must(w, change(w, 0, GFN_PAGE_OUT, LARGE - 1, 2));
		must(w, change(w, 0, GFN_PAGE_OUT, 0, 2 * LARGE));
		must(w, page_in_from(w, 0, 0, 2 * LARGE, 0));
		cr_expect_leq(w->host->control_hint, most);
	}
	must(w, event(w, 0, VM_TERMINATE));
	world_free(w);
}

/* Undoing. */

static void did(struct world *w, enum pw_status st)
{
	cr_assert_eq(st, PW_OK, "%s", w->err.msg);
}

static void prepare(struct world *w, enum vm_state state)
{
	did(w, event(w, 0, VM_INIT_START));
	did(w, page_in_from(w, 0, 3 * LARGE + 9, 30, 9));
	if (state == VM_SECURE)
		did(w, event(w, 0, VM_INIT_DONE));
	did(w, page_in_from(w, 0, LARGE, LARGE, LARGE));
	did(w, page_in_from(w, 0, 5, 3, 5));
	did(w, page_in_from(w, 0, 2 * LARGE, LARGE - 4, 4 * LARGE));
	did(w, change(w, 0, GFN_SHARE, 20, 30));
	did(w, page_in_from(w, 0, 4 * LARGE, LARGE, 6 * LARGE));
	did(w, change(w, 0, GFN_PAGE_OUT, 4 * LARGE + 3, 1));
	did(w, change(w, 0, GFN_PAGE_OUT, 4 * LARGE, LARGE)); /* leaves an empty table */
}

static enum pw_status do_case(struct world *w, int n)
{
	struct slot s = { 0, FIRST, GUEST };

	switch (n) {
	case 0: return change(w, 0, GFN_PAGE_OUT, 5, 3);
	case 1: return change(w, 0, GFN_PAGE_OUT, LARGE + 40, 20);
	case 2: return change(w, 0, GFN_SHARE, 0, 2 * LARGE - 30);
	case 3: return change(w, 0, GFN_SHARE, LARGE, LARGE);
	case 4: return page_in_from(w, 0, 8, 60, 2 * LARGE + 8);
	case 5: return page_in_from(w, 0, PAGES - 20, 20, 2 * LARGE);
	case 6: return change(w, 0, GFN_UNSHARE, 15, 20);
	case 7: return machine_tdx.slot_remove(w->model, &w->vm[0], &s, &w->err);
	case 8: return page_in_from(w, 0, 3 * LARGE - 4, 9, 5 * LARGE - 4); /* merges a stretch, and goes on */
	case 9: return event(w, 0, w->vm[0].state == VM_TRANSIENT ? VM_INIT_DONE : VM_START);
	case 10: return page_in_from(w, 0, 4 * LARGE, LARGE, 6 * LARGE);
	default: return PW_NOT_FOUND;
	}
}

static void after_slot_removal(struct world *w)
{
	for (uint64_t i = 0; i < GUEST; i++) {
		if (w->page[0][i].state == GFN_SECURE_RESIDENT)
			w->used[w->page[0][i].pfn - BASE] = false;
		w->page[0][i].state = w->vm[0].state == VM_SECURE ? GFN_SECURE_OUT : GFN_NORMAL;
	}
}

/* Each frame in turn is refused: nothing is changed, and the op works when it is asked again. */
static void sweep_refusals(enum vm_state state, int n)
{
	for (uint64_t at = 1;; at += at < 6 ? 1 : 97) {
		struct world *w = world_new(BASE, 47);
		enum pw_status st;
		uint64_t before;

		prepare(w, state);
		before = picture(w);
		w->machine.asked = 0;
		w->machine.refuse = at;
		st = do_case(w, n);
		if (st != PW_OK) {
			cr_assert_eq(st, PW_BACKEND);
			cr_assert(strstr(w->err.msg, "TDH.MEM.PAGE.REMOVE of GPA 0x") &&
					  strstr(w->err.msg, "TDX_OPERAND_BUSY"),
				  "%s", w->err.msg);
			cr_assert_eq(picture(w), before, "case %d, frame %lu", n, at);
			verify(w);
			cr_assert_eq(do_case(w, n), PW_OK, "%s", w->err.msg);
		}
		if (n == 7)
			after_slot_removal(w);
		verify(w);
		must(w, event(w, 0, VM_TERMINATE));
		world_free(w);
		if (st == PW_OK)
			return;
	}
}

Test(machine_tdx, a_frame_that_does_not_come_back_undoes_the_op)
{
	static const int cases[] = { 0, 1, 2, 3, 7 };

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		sweep_refusals(VM_TRANSIENT, cases[i]);
		sweep_refusals(VM_SECURE, cases[i]);
	}
}

/* The n-th allocation fails, or memory has an end. A call has 72 nodes in store, and then more at once. */
static void sweep_memory(enum vm_state state, int n, bool limited)
{
	enum pw_status st = PW_NO_MEMORY;

	for (uint64_t at = 1; st != PW_OK; at = at == 1 ? 60 : at + (limited ? 2 : 1)) {
		struct world *w = world_new(BASE, 47);
		uint64_t before;

		prepare(w, state);
		before = picture(w);
		arena_trim_to(&w->host->module.arena, 0);
		arena_trim_to(&w->host->nodes, 0);
		w->fail_at = limited ? 0 : w->allocations + at;
		w->mem.limit = limited ? w->mem.used + at * 4300 : 0;
		st = do_case(w, n);
		w->fail_at = w->mem.limit = 0;
		if (st != PW_OK) {
			cr_assert_eq(st, PW_NO_MEMORY, "%s", w->err.msg);
			cr_assert_null(strstr(w->err.msg, "could not be undone"), "%s", w->err.msg);
			cr_assert_eq(picture(w), before, "case %d, allocation %lu", n, at);
			verify(w);
			cr_assert_eq(do_case(w, n), PW_OK, "%s", w->err.msg);
		}
		if (n == 7)
			after_slot_removal(w);
		verify(w);
		must(w, event(w, 0, VM_TERMINATE));
		world_free(w);
	}
}

Test(machine_tdx, an_op_that_runs_out_of_memory_is_undone)
{
	static const int cases[] = { 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10 };

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		sweep_memory(VM_TRANSIENT, cases[i], false);
		sweep_memory(VM_SECURE, cases[i], false);
		sweep_memory(VM_TRANSIENT, cases[i], true);
		sweep_memory(VM_SECURE, cases[i], true);
	}
}

/* Blocking one of 512 tables that the PAMT has as one run takes memory, so that the call after it may find none. */
static bool replace_table(uint64_t fail_at)
{
	struct world *w = running();
	struct slot wide = { 3, (uint64_t)1 << 21, (uint64_t)1200 * LARGE };
	struct machine_vm vm = { .slots = &wide, .slot_count = 1, .guest = w->vm[0].guest };
	uint64_t pfns[LARGE], base = wide.base + 700 * LARGE;
	enum pw_status st;

	for (uint64_t i = 0; i < 1200; i++) {
		pfns[0] = BASE + 4 * LARGE + i;
		did(w, machine_tdx.page_in(w->model, &vm, wide.base + i * LARGE, 1, pfns, &w->err));
	}
	did(w, machine_tdx.page_out(w->model, &vm, base, 1, &w->err));
	for (uint64_t i = 0; i < LARGE; i++)
		pfns[i] = BASE + i;
	arena_trim_to(&w->host->module.arena, 0);
	w->fail_at = w->allocations + fail_at;
	st = machine_tdx.page_in(w->model, &vm, base, LARGE, pfns, &w->err);
	w->fail_at = 0;
	if (st != PW_OK) {
		cr_assert_null(strstr(w->err.msg, "could not be undone"), "%s", w->err.msg);
		cr_assert_eq(machine_tdx.run_at(w->model, &vm, base, base + LARGE).state, GFN_SECURE_OUT);
		cr_assert(machine_tdx.check(w->model, &w->err), "%s", w->err.msg);
		did(w, machine_tdx.page_in(w->model, &vm, base, LARGE, pfns, &w->err));
	}
	did(w, event(w, 0, VM_TERMINATE));
	world_free(w);
	return st == PW_OK;
}

Test(machine_tdx, a_table_that_cannot_make_way_is_as_before)
{
	uint64_t at = 60;

	while (!replace_table(at))
		at++;
	cr_expect_gt(at, 60);
}

Test(machine_tdx, a_td_that_cannot_be_built_leaves_nothing)
{
	enum pw_status st = PW_NO_MEMORY;
	struct tree_run left;

	for (uint64_t at = 1; st != PW_OK; at++) {
		struct world *w = world_new(BASE, 47);

		w->fail_at = w->allocations + at;
		st = event(w, 0, VM_INIT_START);
		w->fail_at = 0;
		if (st != PW_OK) {
			cr_assert_null(strstr(w->err.msg, "could not be undone"), "%s", w->err.msg);
			cr_assert_null(td_of(w, 0));
			left = tree_run_at(&w->host->module.pamt[0], w->host->control.first, w->host->control.end);
			cr_assert(left.entry == 0 && left.count == TDX_HOST_CONTROL);
			must(w, event(w, 0, VM_INIT_START));
		}
		must(w, event(w, 0, VM_INIT_ABORT));
		world_free(w);
	}
}

Test(machine_tdx, a_page_that_is_resident_on_another_tds_frame_is_refused_by_name)
{
	struct world *w = running();
	uint64_t before, taken = BASE + 5;

	must(w, event(w, 1, VM_INIT_START));
	must(w, page_in_from(w, 1, 0, 10, 0));
	before = picture(w);
	cr_expect_eq(machine_tdx.page_in(w->model, &w->vm[0], gfn_of(0), 1, &taken, &w->err), PW_BACKEND);
	cr_expect(strstr(w->err.msg, "TDH.MEM.PAGE.AUG: frame 0x605 is REG of the TD in"), "%s", w->err.msg);
	cr_expect_eq(picture(w), before);
	must(w, event(w, 0, VM_TERMINATE));
	must(w, event(w, 1, VM_TERMINATE));
	world_free(w);
}

/* Stuck frames. */

Test(machine_tdx, a_stuck_frame_holds_the_tdr_and_nothing_else)
{
	struct world *w = running();
	uint64_t owner, tdr = td_of(w, 0)->tdr, stuck = BASE + 12;
	struct tdx_td *dead;
	unsigned size;

	must(w, page_in_from(w, 0, 0, 30, 0));
	w->machine.asked = 0;
	w->machine.refuse = 13;
	must(w, event(w, 0, VM_TERMINATE));
	w->machine.refuse = 0;
	cr_expect_eq(w->machine.kept_count, 1);
	cr_expect_eq(w->machine.kept[0], stuck);
	cr_expect(strstr(w->machine.why, "frame 0x60c: TDH.PHYMEM.PAGE.RECLAIM") &&
			  strstr(w->machine.why, "TDX_OPERAND_BUSY|RCX"),
		  "%s", w->machine.why);

	dead = tdx_td(&w->host->module, tdr);
	cr_assert_not_null(dead);
	cr_expect(dead->lifecycle == TDX_TEARDOWN && dead->chldcnt == 1);
	cr_expect_eq(w->host->module.hkids[0].state, TDX_HKID_FREE);
	cr_expect_eq(tdx_page(&w->host->module, stuck, &size, &owner), TDX_PT_REG);
	cr_expect_eq(owner, tdr);

	must(w, event(w, 0, VM_INIT_START));
	cr_expect_neq(td_of(w, 0)->tdr, tdr);
	must(w, page_in_from(w, 0, 0, 12, 0));
	cr_expect_eq(machine_tdx.page_in(w->model, &w->vm[0], gfn_of(20), 1, &stuck, &w->err), PW_BACKEND);
	must(w, event(w, 0, VM_INIT_ABORT));
	world_free(w);
}

Test(machine_tdx, a_stuck_2_mib_page_is_kept_whole)
{
	struct world *w = running();

	must(w, page_in_from(w, 0, 0, 2 * LARGE, 0));
	must(w, page_in_from(w, 0, 3 * LARGE, 5, 3 * LARGE));
	w->machine.asked = 0;
	w->machine.refuse = LARGE + 3;
	must(w, event(w, 0, VM_TERMINATE));
	cr_expect_eq(w->machine.kept_count, LARGE);
	cr_expect_eq(w->machine.kept[0], BASE + LARGE);
	cr_expect_eq(w->machine.kept[LARGE - 1], BASE + 2 * LARGE - 1);
	w->machine.refuse = 0;
	must(w, event(w, 0, VM_INIT_START));
	must(w, page_in_from(w, 0, 0, LARGE, 0));
	must(w, event(w, 0, VM_INIT_ABORT));
	world_free(w);
}

Test(machine_tdx, a_teardown_cut_short_by_memory_goes_on_when_asked_again)
{
	enum pw_status st = PW_NO_MEMORY;

	for (uint64_t at = 0; st != PW_OK; at += 11) {
		struct world *w = running();

		must(w, page_in_from(w, 0, 0, 700, 3));
		tdx_host_ballast_drop(w->host);
		arena_trim_to(&w->host->module.arena, 0);
		w->mem.limit = w->mem.used + at * 1000 + 1;
		st = event(w, 0, VM_TERMINATE);
		w->mem.limit = 0;
		if (st != PW_OK)
			cr_assert_eq(event(w, 0, VM_TERMINATE), PW_OK, "%s", w->err.msg);
		cr_assert_null(td_of(w, 0));
		world_free(w);
	}
}

/* At random. */

static uint64_t next(uint64_t *x)
{
	*x ^= *x << 13;
	*x ^= *x >> 7;
	*x ^= *x << 17;
	return *x;
}

/* Free frames as a machine would choose them. */
static bool choose(const struct world *w, uint64_t i, uint64_t n, uint64_t *pfns)
{
	uint64_t at = 0;

	for (uint64_t k = 0; k < n; k++, at++) {
		bool stretch = (gfn_of(i + k) & (LARGE - 1)) == 0 && n - k >= LARGE;

		for (uint64_t s = 0; stretch && s + LARGE <= FRAMES; s += LARGE) {
			uint64_t f = 0;

			while (f < LARGE && !w->used[s + f])
				f++;
			if (f == LARGE && s >= at) {
				at = s;
				break;
			}
		}
		while (at < FRAMES && w->used[at])
			at++;
		if (at == FRAMES)
			return false;
		pfns[k] = BASE + at;
	}
	return true;
}

static bool is_lawful(const struct world *w, int v, enum gfn_op op, uint64_t i, uint64_t n)
{
	enum gfn_state to;

	for (uint64_t k = i; k < i + n; k++)
		if (!gfn_step(w->page[v][k].state, op, &to) &&
		    !(op == GFN_PAGE_OUT && w->page[v][k].state == GFN_SECURE_OUT))
			return false;
	return true;
}

static void step(struct world *w, uint64_t *x)
{
	static const enum gfn_op ops[] = { GFN_UNSHARE_IN, GFN_SHARE, GFN_UNSHARE, GFN_PAGE_OUT };
	static const enum vm_event events[VM_STATE_COUNT][2] = { [VM_NORMAL] = { VM_INIT_START, VM_INIT_START },
								 [VM_TRANSIENT] = { VM_INIT_DONE, VM_INIT_ABORT },
								 [VM_SECURE] = { VM_TERMINATE, VM_TERMINATE } };
	int v = (int)(next(x) % VMS);
	enum gfn_op op = ops[next(x) % 4];
	uint64_t pfns[PAGES], before = picture(w);
	uint64_t i = next(x) % PAGES, n = next(x) % 3 ? next(x) % 40 + 1 : next(x) % (3 * LARGE) + 1;
	uint64_t end = i < GUEST ? GUEST : PAGES;
	enum pw_status st = PW_OK;

	if (next(x) % 4 == 0 && i < GUEST)
		i -= i % LARGE;
	n = n < end - i ? n : end - i;
	w->machine.asked = 0;
	w->machine.refuse = next(x) % 8 ? 0 : next(x) % 50 + 1;
	if (w->vm[v].state == VM_NORMAL || next(x) % 40 == 0) {
		w->machine.refuse = next(x) % 4 ? 0 : w->machine.refuse;
		if (w->machine.kept_count > LARGE)
			w->machine.refuse = 0;
		must(w, event(w, v, events[w->vm[v].state][next(x) % 2]));
		return;
	}
	if (!is_lawful(w, v, op, i, n))
		return;
	if (op == GFN_UNSHARE_IN)
		st = choose(w, i, n, pfns) ? page_in(w, v, i, n, pfns) : PW_OK;
	else
		st = change(w, v, op, i, n);
	if (st != PW_OK)
		cr_assert(st == PW_BACKEND && w->machine.refuse && picture(w) == before, "%s", w->err.msg);
	verify(w);
}

Test(machine_tdx, stays_lawful_whatever_comes)
{
	for (uint64_t seed = 1; seed <= 6; seed++) {
		struct world *w = world_new(BASE, 47);
		uint64_t x = seed * 88172645463325252u;

		for (int i = 0; i < 400; i++)
			step(w, &x);
		world_free(w);
	}
}
