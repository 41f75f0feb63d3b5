/* Random ops on every emulated machine, against a model that keeps one small struct a page. The machine's state file is
 * rewritten and opened again in between, and firmware keeps some frames. SEED= repeats a run, STEPS= makes it longer.
 */
#include "agents/machine_impl.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "engine/arch/law.h"

/* The machines: one line each. */
static const struct subject {
	const struct machine_model *model;
	unsigned shared_bit;
} subjects[] = {
	{ &machine_pef, 0 }, { &machine_tdx, 47 }, { &machine_pkvm, 0 }, { &machine_snp, 0 }, { &machine_cca, 38 },
};

/* What the VMs look like: small, and large enough for blocks of 512 pages. */
#define SLOTS     3
#define PAGES_MAX 2560
#define POOL_MAX  2000
static const struct shape {
	uint64_t pages; /* GFNs that ops are about; not all are in slots */
	struct slot slots[SLOTS];
	uint64_t pool, most; /* frames; pages of an op */
	int steps;
} shapes[] = {
	{ 64, { { 0, 0, 24 }, { 1, 24, 8 }, { 2, 40, 16 } }, 56, 12, 4000 },
	{ 2560, { { 0, 0, 1024 }, { 1, 1024, 512 }, { 2, 2048, 512 } }, 1900, 1100, 1000 },
};
static int cases[PW_ARRAY_LEN(subjects) * PW_ARRAY_LEN(shapes)];

#define VMS  3
#define BASE 1000

struct page {
	bool there;
	enum gfn_state state;
	uint64_t pfn;
	bool empty; /* RIPAS */
};
struct guest {
	bool there;
	enum vm_state state;
	bool has_slot[SLOTS];
	bool plan[PAGES_MAX]; /* EMPTY from the next init_start on */
	struct page at[PAGES_MAX];
};

struct world {
	const struct subject *subject;
	const struct shape *shape;
	uint64_t seed;
	int step;
	struct backend *b;
	struct guest vms[VMS];
	bool stuck[POOL_MAX];
	char dir[64], path[96], fault[64], log[512];
	struct pw_err err;
};

static uint64_t draw(struct world *w, uint64_t n)
{
	uint64_t z = (w->seed += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return (z ^ z >> 31) % n;
}

static struct pw_uuid id_of(int vm)
{
	return (struct pw_uuid){ { (uint8_t)(vm + 1) } };
}

/* The machine, opened with new faults. */
static void switch_on(struct world *w)
{
	struct backend_options o = { .frames = w->shape->pool, .base_pfn = BASE, .state = w->path, .fault = w->fault };

	snprintf(w->fault, sizeof w->fault, "frame:%d,frame:%d,frame:%d", 1 + (int)draw(w, 40), 1 + (int)draw(w, 200),
		 1 + (int)draw(w, 400));
	cr_assert_eq(machine_open(w->subject->model, &o, &w->b, &w->err), PW_OK, "%s", w->err.msg);
}

/* What the machine says, against the model. */

struct seen {
	struct world *w;
	struct guest *g;
	int vm;
	uint64_t next;
};

static const struct arch_law *law_of(const struct world *w)
{
	enum arch arch;

	return arch_from_name(w->subject->model->arch, &arch) ? arch_laws[arch] : NULL;
}

static bool says(const struct world *w, const struct backend_run *run, const char *ripas)
{
	const struct arch_law *law = law_of(w);
	unsigned at = run->arch ? run->arch - 1 : law->rest[run->state];

	return strstr(law->states[at].name, ripas);
}

static bool see_run(void *ctx, const struct backend_run *run)
{
	struct seen *s = ctx;
	bool empty = says(s->w, run, "EMPTY");

	cr_assert(run->count && run->gfn >= s->next && run->gfn + run->count <= s->w->shape->pages,
		  "%s: run at %" PRIu64, s->w->log, run->gfn);
	for (; s->next < run->gfn; s->next++)
		cr_assert(!s->g->at[s->next].there, "%s: VM %d GFN %" PRIu64 " is missing", s->w->log, s->vm, s->next);
	for (; s->next < run->gfn + run->count; s->next++) {
		const struct page *p = &s->g->at[s->next];
		uint64_t pfn = run->pfn + (s->next - run->gfn);

		cr_assert(p->there && p->state == run->state, "%s: VM %d GFN %" PRIu64 " is %d, not %d", s->w->log,
			  s->vm, s->next, run->state, p->state);
		cr_assert(empty == p->empty, "%s: VM %d GFN %" PRIu64 " is%s EMPTY", s->w->log, s->vm, s->next,
			  empty ? "" : " not");
		cr_assert(run->state != GFN_SECURE_RESIDENT || pfn == p->pfn,
			  "%s: VM %d GFN %" PRIu64 " is on %" PRIu64 ", not %" PRIu64, s->w->log, s->vm, s->next, pfn,
			  p->pfn);
	}
	return true;
}

static bool see_vm(void *ctx, const struct pw_uuid *id, enum vm_state state)
{
	struct seen *s = ctx;
	const struct guest *g = &s->w->vms[id->b[0] - 1];

	cr_assert(g->there && g->state == state, "%s: VM %d is %s", s->w->log, id->b[0] - 1, vm_state_name(state));
	s->next++;
	return true;
}

static void check_vm(struct world *w, int vm)
{
	struct seen s = { w, &w->vms[vm], vm, 0 };
	struct pw_uuid id = id_of(vm);
	enum pw_status st = w->b->ops->read_state(w->b, &id, 0, TREE_PAGES, see_run, &s, &w->err);

	cr_assert_eq(st, s.g->there ? PW_OK : PW_NOT_FOUND, "%s: VM %d", w->log, vm);
	for (; s.g->there && s.next < w->shape->pages; s.next++)
		cr_assert(!s.g->at[s.next].there, "%s: VM %d GFN %" PRIu64 " is missing", w->log, vm, s.next);
}

static void check(struct world *w)
{
	struct seen s = { .w = w };
	uint64_t there = 0;

	cr_assert_eq(w->b->ops->each_vm(w->b, see_vm, &s, &w->err), PW_OK);
	for (int vm = 0; vm < VMS; vm++) {
		there += w->vms[vm].there;
		check_vm(w, vm);
	}
	cr_assert_eq(s.next, there, "%s: %" PRIu64 " VMs", w->log, s.next);
	cr_assert(machine_check(machine_of_backend(w->b), &w->err), "%s: %s", w->log, w->err.msg);
}

/* Stuck frames. */

static bool take_stuck(void *ctx, const struct backend_run *run)
{
	bool *now = ctx;

	cr_assert(run->why && *run->why);
	cr_assert(run->pfn >= BASE && run->pfn + run->count <= BASE + POOL_MAX);
	for (uint64_t i = 0; i < run->count; i++)
		now[run->pfn - BASE + i] = true;
	return true;
}

static bool is_resident(const struct guest *g, uint64_t gfn)
{
	return g->there && g->at[gfn].there && g->at[gfn].state == GFN_SECURE_RESIDENT;
}

/* Only frames that `before` was resident on may have got stuck; none may have become free. */
static void check_stuck(struct world *w, const struct guest *before)
{
	bool now[POOL_MAX] = { 0 }, may[POOL_MAX];

	memcpy(may, w->stuck, sizeof may);
	for (uint64_t gfn = 0; before && gfn < w->shape->pages; gfn++)
		if (is_resident(before, gfn))
			may[before->at[gfn].pfn - BASE] = true;
	cr_assert_eq(w->b->ops->read_stuck(w->b, take_stuck, now, &w->err), PW_OK);
	for (int i = 0; i < POOL_MAX; i++)
		cr_assert(now[i] ? may[i] : !w->stuck[i], "%s: frame %d", w->log, BASE + i);
	memcpy(w->stuck, now, sizeof now);
}

static uint64_t free_frames(const struct world *w)
{
	uint64_t n = w->shape->pool;

	for (int i = 0; i < POOL_MAX; i++)
		n -= w->stuck[i];
	for (int vm = 0; vm < VMS; vm++)
		for (uint64_t gfn = 0; gfn < w->shape->pages; gfn++)
			n -= is_resident(&w->vms[vm], gfn);
	return n;
}

/* Pages for an op; of large VMs often whole blocks. */
static void draw_range(struct world *w, uint64_t *gfn, uint64_t *count)
{
	*gfn = draw(w, w->shape->pages);
	*count = 1 + draw(w, w->shape->most);
	if (w->shape->most > 512 && draw(w, 2)) {
		*gfn -= *gfn % 512;
		*count = (1 + draw(w, 2)) * 512;
	}
}

/* Ops. Each says what has to come out by the law; firmware may refuse a frame besides, and then nothing changes. */

static bool came_out(struct world *w, enum pw_status st, enum pw_status due, const char *what)
{
	bool refused = st == PW_BACKEND && due == PW_OK;

	snprintf(w->log, sizeof w->log, "step %d: %s: %s", w->step, what, st ? w->err.msg : "ok");
	cr_assert(st == due || refused, "%s is %s, not %s", w->log, pw_status_name(st), pw_status_name(due));
	cr_assert(st == PW_OK || w->err.msg[0], "%s says why", w->log);
	return st == PW_OK;
}

static void put_slot(const struct world *w, struct guest *g, size_t i, bool there)
{
	const struct slot *s = &w->shape->slots[i];

	g->has_slot[i] = there;
	memset(g->plan + s->base, 0, s->pages * sizeof *g->plan);
	for (uint64_t gfn = s->base; gfn < s->base + s->pages; gfn++)
		g->at[gfn] = (struct page){ there, g->state == VM_SECURE ? GFN_SECURE_OUT : GFN_NORMAL, 0, false };
}

static void do_create(struct world *w, int vm)
{
	struct guest *g = &w->vms[vm];
	size_t count = 1 + draw(w, 2);
	struct backend_vm_spec spec = {
		.id = id_of(vm), .slots = w->shape->slots, .slot_count = count, .shared_bit = w->subject->shared_bit
	};

	if (!came_out(w, w->b->ops->create_vm(w->b, &spec, &w->err), PW_OK, "create") || g->there)
		return;
	*g = (struct guest){ .there = true };
	for (size_t i = 0; i < count; i++)
		put_slot(w, g, i, true);
}

static void do_destroy(struct world *w, int vm)
{
	struct pw_uuid id = id_of(vm);
	struct guest before = w->vms[vm];

	if (came_out(w, w->b->ops->destroy_vm(w->b, &id, &w->err), PW_OK, "destroy"))
		w->vms[vm].there = false;
	check_stuck(w, &before);
}

static void do_event(struct world *w, int vm)
{
	static const enum gfn_op does[VM_EVENT_COUNT] = { [VM_START] = GFN_OP_COUNT,
							  [VM_INIT_START] = GFN_OP_COUNT,
							  [VM_INIT_DONE] = GFN_INIT_DONE,
							  [VM_INIT_ABORT] = GFN_RESET,
							  [VM_TERMINATE] = GFN_RESET };
	static const enum vm_state leads[VM_EVENT_COUNT] = {
		[VM_INIT_START] = VM_TRANSIENT, [VM_INIT_DONE] = VM_SECURE
	};
	enum vm_event e = (enum vm_event)draw(w, VM_EVENT_COUNT);
	struct guest *g = &w->vms[vm], before = *g;
	struct pw_uuid id = id_of(vm);
	enum vm_state next = g->state;
	bool lawful = g->state == leads[e] || vm_step(g->state, e, &next);
	enum pw_status due = !g->there ? PW_NOT_FOUND : lawful ? PW_OK : PW_CONFLICT;

	if ((e == VM_INIT_ABORT || e == VM_TERMINATE) && draw(w, 3))
		return; /* let VMs grow old */
	if (!came_out(w, w->b->ops->vm_event(w->b, &id, e, &w->err), due, vm_event_name(e)))
		return;
	for (uint64_t gfn = 0; gfn < w->shape->pages; gfn++) {
		struct page *p = &g->at[gfn];

		if (next != g->state && does[e] != GFN_OP_COUNT && !gfn_step(p->state, does[e], &p->state))
			cr_assert_fail("%s", w->log);
		if (next != g->state && next != VM_SECURE)
			p->empty = next == VM_TRANSIENT && g->plan[gfn];
	}
	if (next == VM_TRANSIENT)
		memset(g->plan, 0, sizeof g->plan);
	g->state = next;
	check_stuck(w, &before);
}

static void do_slot(struct world *w, int vm)
{
	size_t i = draw(w, SLOTS);
	const struct slot *s = &w->shape->slots[i];
	struct guest *g = &w->vms[vm];
	struct pw_uuid id = id_of(vm);
	enum pw_status due = g->there ? PW_OK : PW_NOT_FOUND;

	if (draw(w, 3)) {
		if (came_out(w, w->b->ops->map_slot(w->b, &id, s, &w->err), due, "map") && !g->has_slot[i])
			put_slot(w, g, i, true);
	} else {
		if (came_out(w, w->b->ops->unmap_slot(w->b, &id, s->number, &w->err), due, "unmap") && g->has_slot[i])
			put_slot(w, g, i, false);
	}
}

/* What a change of these pages has to come to; PW_OK also where all is so already. */
static enum pw_status due_of(const struct world *w, const struct guest *g, enum gfn_op op, uint64_t gfn, uint64_t count)
{
	enum pw_status due = PW_OK;
	enum gfn_state next;

	if (!g->there)
		return PW_NOT_FOUND;
	for (uint64_t i = gfn; i < gfn + count; i++) {
		enum gfn_state s = i < w->shape->pages ? g->at[i].state : GFN_NORMAL;

		if (i >= w->shape->pages || !g->at[i].there)
			return PW_INVALID;
		if (op == GFN_PAGE_OUT && s == GFN_SECURE_OUT)
			continue;
		if (op != GFN_OP_COUNT && (g->state == VM_NORMAL || !gfn_step(s, op, &next)))
			due = PW_CONFLICT;
	}
	return due;
}

static void do_change(struct world *w, int vm, enum gfn_op op)
{
	struct guest *g = &w->vms[vm];
	struct backend *b = w->b;
	struct pw_uuid id = id_of(vm);
	uint64_t gfn, count;
	enum pw_status due, st;

	draw_range(w, &gfn, &count);
	due = due_of(w, g, op, gfn, count);
	if (op == GFN_SHARE)
		st = b->ops->share(b, &id, gfn, count, &w->err);
	else if (op == GFN_UNSHARE)
		st = b->ops->unshare(b, &id, gfn, count, &w->err);
	else
		st = b->ops->page_out(b, &id, gfn, count, &w->err);
	if (!came_out(w, st, due, gfn_op_name(op)))
		return;
	for (uint64_t i = gfn; i < gfn + count; i++)
		if (!(op == GFN_PAGE_OUT && g->at[i].state == GFN_SECURE_OUT) &&
		    !gfn_step(g->at[i].state, op, &g->at[i].state))
			cr_assert_fail("%s", w->log);
}

static void check_frames(struct world *w, const uint64_t *pfns, uint64_t count)
{
	bool taken[POOL_MAX];

	memcpy(taken, w->stuck, sizeof taken);
	for (int vm = 0; vm < VMS; vm++)
		for (uint64_t gfn = 0; gfn < w->shape->pages; gfn++)
			if (is_resident(&w->vms[vm], gfn))
				taken[w->vms[vm].at[gfn].pfn - BASE] = true;
	for (uint64_t i = 0; i < count; i++) {
		cr_assert(pfns[i] >= BASE && pfns[i] < BASE + w->shape->pool && !taken[pfns[i] - BASE],
			  "%s: frame %" PRIu64, w->log, pfns[i]);
		taken[pfns[i] - BASE] = true;
	}
}

static void assign(struct world *w, int vm, uint64_t gfn, uint64_t count, const uint64_t *pfns)
{
	struct guest *g = &w->vms[vm];
	struct pw_uuid id = id_of(vm);
	enum pw_status due = due_of(w, g, GFN_UNSHARE_IN, gfn, count);
	bool in = came_out(w, w->b->ops->page_in(w->b, &id, gfn, count, pfns, &w->err), due, "page_in");

	if (!in) {
		w->b->ops->unreserve(w->b, &id, gfn, count, pfns);
		return;
	}
	for (uint64_t i = 0; i < count; i++)
		g->at[gfn + i] = (struct page){ true, GFN_SECURE_RESIDENT, pfns[i],
						g->at[gfn + i].empty && g->state == VM_SECURE };
	came_out(w, w->b->ops->page_in(w->b, &id, gfn, count, pfns, &w->err), PW_OK, "page_in again");
}

static void do_page_in(struct world *w, int vm)
{
	uint64_t gfn, count, pfns[PAGES_MAX];
	struct pw_uuid id = id_of(vm);
	enum pw_status due;

	draw_range(w, &gfn, &count);
	due = due_of(w, &w->vms[vm], GFN_OP_COUNT, gfn, count);
	if (due == PW_OK && count > free_frames(w))
		due = PW_BUSY;
	if (!came_out(w, w->b->ops->reserve(w->b, &id, gfn, count, pfns, &w->err), due, "reserve"))
		return;
	check_frames(w, pfns, count);
	if (draw(w, 8))
		assign(w, vm, gfn, count, pfns);
	else
		w->b->ops->unreserve(w->b, &id, gfn, count, pfns);
}

/* What a guest gives up or asks for, and what is said of it before its launch. */
static void do_ripas(struct world *w, int vm)
{
	struct guest *g = &w->vms[vm];
	struct pw_uuid id = id_of(vm);
	struct backend_ripas what = { .ram = draw(w, 2), .keep = draw(w, 4) == 0 };
	uint64_t done, most;
	enum pw_status due;

	draw_range(w, &what.gfn, &what.count);
	what.accept = draw(w, 2) ? what.count : draw(w, what.count + 1);
	most = g->state == VM_NORMAL || what.accept > what.count ? what.count : what.accept;
	due = due_of(w, g, GFN_OP_COUNT, what.gfn, what.count);
	if (due == PW_OK && g->state == VM_TRANSIENT)
		due = PW_CONFLICT;
	if (!came_out(w, w->b->ops->set_ripas(w->b, &id, &what, &done, &w->err), due, what.ram ? "RAM" : "EMPTY"))
		return;
	cr_assert(done == most || (what.keep && done < most), "%s: %" PRIu64 " pages", w->log, done);
	for (uint64_t i = what.gfn; i < what.gfn + done; i++)
		*(g->state == VM_NORMAL ? &g->plan[i] : &g->at[i].empty) = !what.ram;
}

static bool see_unrest(void *ctx, const struct backend_run *run)
{
	struct seen *s = ctx;

	if (run->arch != 0 && !says(s->w, run, "EMPTY"))
		s->next++;
	return true;
}

/* Only a machine all of whose pages are in their architecture's state at rest, or EMPTY, can be told in fewer ops. */
static bool is_at_rest(struct world *w)
{
	struct seen unrest = { .w = w };

	for (int vm = 0; vm < VMS; vm++) {
		struct pw_uuid id = id_of(vm);

		(void)!w->b->ops->read_state(w->b, &id, 0, TREE_PAGES, see_unrest, &unrest, &w->err);
	}
	return unrest.next == 0;
}

static void do_reopen(struct world *w)
{
	bool shorten = draw(w, 2);

	snprintf(w->log, sizeof w->log, "step %d: opened again%s", w->step, shorten ? ", rewritten" : "");
	if (shorten)
		cr_assert(machine_log_shorten(machine_of_backend(w->b)) || !is_at_rest(w), "%s", w->log);
	w->b->ops->close(w->b);
	switch_on(w);
	check_stuck(w, NULL);
}

static void step(struct world *w)
{
	int vm = (int)draw(w, VMS);

	switch (draw(w, 26)) {
	case 0:
	case 1: do_create(w, vm); break;
	case 2:
		if (draw(w, 4) == 0)
			do_destroy(w, vm);
		break;
	case 3:
	case 4:
	case 5: do_event(w, vm); break;
	case 6: do_slot(w, vm); break;
	case 7:
	case 8:
	case 9: do_change(w, vm, GFN_SHARE); break;
	case 10:
	case 11:
	case 12: do_change(w, vm, GFN_UNSHARE); break;
	case 13:
	case 14:
	case 15:
	case 16: do_change(w, vm, GFN_PAGE_OUT); break;
	case 17:
		if (draw(w, 3) == 0)
			do_reopen(w);
		break;
	case 18:
	case 19:
		if (w->b->ops->set_ripas)
			do_ripas(w, vm);
		break;
	default: do_page_in(w, vm); break;
	}
	check(w);
}

static void remove_files(const struct world *w)
{
	static const char *const ends[] = { "", ".lock", ".next" };
	char path[128];

	for (size_t i = 0; i < PW_ARRAY_LEN(ends); i++) {
		snprintf(path, sizeof path, "%s%s", w->path, ends[i]);
		unlink(path);
	}
	rmdir(w->dir);
}

ParameterizedTestParameters(machine_property, random_ops_agree_with_a_map_of_pages)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		cases[i] = (int)i;
	return cr_make_param_array(int, cases, PW_ARRAY_LEN(cases));
}

ParameterizedTest(int *number, machine_property, random_ops_agree_with_a_map_of_pages)
{
	const char *given = getenv("SEED"), *steps = getenv("STEPS");
	static struct world w = { .dir = "/tmp/pw-machines-XXXXXX" };
	int n;

	w.subject = &subjects[*number / (int)PW_ARRAY_LEN(shapes)];
	w.shape = &shapes[*number % (int)PW_ARRAY_LEN(shapes)];
	n = steps ? (int)strtol(steps, NULL, 10) : w.shape->steps;
	w.seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;
	fprintf(stderr, "%s, %" PRIu64 " pages: SEED=%" PRIu64 "\n", w.subject->model->arch, w.shape->pages, w.seed);
	cr_assert(mkdtemp(w.dir));
	snprintf(w.path, sizeof w.path, "%s/machine", w.dir);
	switch_on(&w);
	for (; w.step < n; w.step++)
		step(&w);
	w.b->ops->close(w.b);
	remove_files(&w);
}
