/* Random commands against the ledger and against a model that keeps one small struct a page. SEED= repeats a run. */
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "tests/lib/ledger_world.h"

enum {
	HOSTS = 3,
	SHARED = 2,
	POOLS = HOSTS + SHARED,
	VMS = 5,
	SLOTS = 6,
	PAGES = 2048,
	FRAMES = 1600,
	MARKS = 4,
	RUNS = 4
};
#define FREE_FRAME    (-1)
#define IN_QUARANTINE (-2)

/* The model. Pools 0..HOSTS-1 are the hosts' local ones. */
struct m_page {
	int state, pool, frame; /* pool and frame of a resident one */
	int arch;               /* of a resident one: I, P, W, or 0 for Guest-Valid */
};
struct m_slot {
	bool used;
	int base, pages;
};
struct m_vm {
	bool exists, finished; /* finished: the launch, by an item of its own */
	int host, state, epoch;
	struct m_slot slot[SLOTS];
	struct m_page page[PAGES];
};
struct m_frame {
	int vm, page; /* vm may be FREE_FRAME or IN_QUARANTINE */
};
struct m_pool {
	int first, end; /* frames that it has, of 0..FRAMES-1 */
	struct m_frame frame[FRAMES];
};
struct m_host {
	int boot, epoch;
	bool fenced, attached[SHARED];
};
struct model {
	struct m_host host[HOSTS];
	struct m_pool pool[POOLS];
	struct m_vm vm[VMS];
};

struct run {
	struct world w;
	struct model m, marked[MARKS];
	undo_mark mark[MARKS];
	int marks;
	uint64_t seed;
	unsigned accepted, refused, rollbacks;
};

static const char *const pool_names[SHARED] = { "cxl0", "cxl1" };
/* Where page 0 of a VM and frame 0 of a pool really are: at the edges of high levels, and off any alignment. */
static const uint64_t gfn_base[VMS] = { 0, 512 * 512 - 700, 77, ((uint64_t)1 << 36) - 512, TREE_PAGES - PAGES };
static const uint64_t pfn_base[POOLS] = { 0, 1000003, ((uint64_t)1 << 27) - 512, 512, TREE_PAGES - FRAMES };

/* The law's tables (DESIGN.md), in the model's own words. ERR: refused. */
enum { N, R, O, S, ERR = -1 };
static const int gfn_law[4][5] = {
	/*       share unshare page_in page_out unshare+frame */
	[N] = { S, O, R, ERR, R },
	[R] = { S, R, ERR, O, ERR },
	[O] = { S, O, R, ERR, R },
	[S] = { S, O, ERR, ERR, R },
};
static const int vm_law[3][5] = {
	/* start init_start init_done init_abort terminate */
	[VM_NORMAL] = { VM_NORMAL, VM_TRANSIENT, ERR, ERR, VM_NORMAL },
	[VM_TRANSIENT] = { ERR, ERR, VM_SECURE, VM_NORMAL, VM_NORMAL },
	[VM_SECURE] = { ERR, ERR, ERR, ERR, VM_NORMAL },
};
static const enum gfn_state states[] = {
	[N] = GFN_NORMAL, [R] = GFN_SECURE_RESIDENT, [O] = GFN_SECURE_OUT, [S] = GFN_SHARED
};

/* And of SNP's own operations: from the RMP's states in the manuals. R is Guest-Valid, at rest. */
enum { I = S + 1, P, W, FULL, LAW_OPS = 5 };
static const char *const full_names[FULL] = {
	[N] = "Hypervisor",    [R] = "Guest-Valid", [O] = "Paged-Out", [S] = "Hypervisor",
	[I] = "Guest-Invalid", [P] = "Pre-Guest",   [W] = "Pre-Swap"
};
enum { ANY, LAUNCHING, RUNNING };
static const struct {
	const char *name;
	bool framed;
	int next[FULL];
	int vm; /* in which state of the VM it is there at all */
} arch_ops[] = {
	/*                                         N    R    O    S    I    P    W */
	{ "snp.rmpupdate", true, { I, ERR, I, I, ERR, ERR, ERR }, ANY },
	{ "snp.rmpupdate_immutable", true, { P, ERR, P, P, ERR, ERR, ERR }, ANY },
	{ "snp.rmpupdate", false, { S, S, S, S, S, ERR, ERR }, ANY },
	{ "snp.rmpupdate_immutable", false, { ERR, W, ERR, ERR, P, ERR, ERR }, ANY },
	{ "snp.launch_update", false, { ERR, ERR, ERR, ERR, ERR, R, ERR }, LAUNCHING },
	{ "snp.pvalidate", false, { ERR, R, ERR, ERR, R, ERR, ERR }, RUNNING },
	{ "snp.pvalidate_rescind", false, { ERR, I, ERR, ERR, I, ERR, ERR }, RUNNING },
	{ "snp.swap_out", false, { ERR, O, ERR, ERR, O, O, O }, ANY },
};
enum { OPS = LAW_OPS + (int)PW_ARRAY_LEN(arch_ops) };

static int full(const struct m_page *p)
{
	return p->arch ? p->arch : p->state;
}

static int m_step(const struct m_page *p, int op)
{
	int to;

	if (op >= LAW_OPS)
		return arch_ops[op - LAW_OPS].next[full(p)];
	to = gfn_law[p->state][op];
	return to == p->state ? full(p) : to;
}

static bool m_framed(int op)
{
	return op >= LAW_OPS ? arch_ops[op - LAW_OPS].framed : op == 2 || op == 4;
}

static uint64_t next(uint64_t *seed)
{
	uint64_t z = (*seed += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

static int below(struct run *t, int n)
{
	return (int)(next(&t->seed) % (uint64_t)n);
}

static bool chance(struct run *t, int percent)
{
	return below(t, 100) < percent;
}

/* From one page to whole slots, small ones more often; at most `max`. */
static int some_count(struct run *t, int max)
{
	int n = 1 + below(t, chance(t, 40) ? 1 : chance(t, 60) ? 20 : chance(t, 70) ? 600 : PAGES);

	return n < max ? n : max;
}

/* What the model does. */

static void m_unbind(struct model *m, struct m_page *p, int state)
{
	if (p->state == R)
		m->pool[p->pool].frame[p->frame].vm = FREE_FRAME;
	*p = (struct m_page){ .state = state };
}

static void m_bind(struct model *m, int vm, int page, int pool, int frame)
{
	m->vm[vm].page[page] = (struct m_page){ R, pool, frame, 0 };
	m->pool[pool].frame[frame] = (struct m_frame){ vm, page };
}

static void m_reset(struct model *m, int vm)
{
	for (int i = 0; i < PAGES; i++)
		m_unbind(m, &m->vm[vm].page[i], N);
	m->vm[vm].epoch += m->vm[vm].state != VM_NORMAL;
	m->vm[vm].state = VM_NORMAL;
	m->vm[vm].finished = false;
}

static void m_reset_host(struct model *m, int h)
{
	for (int v = 0; v < VMS; v++)
		if (m->vm[v].exists && m->vm[v].host == h)
			m_reset(m, v);
	m->host[h].epoch++;
}

static const struct m_slot *m_slot_at(const struct m_vm *vm, int page)
{
	for (int i = 0; i < SLOTS; i++)
		if (vm->slot[i].used && page >= vm->slot[i].base && page < vm->slot[i].base + vm->slot[i].pages)
			return &vm->slot[i];
	return NULL;
}

static bool m_pool_has(const struct m_pool *p, int frame, int count, int what)
{
	for (int i = frame; i < frame + count; i++)
		if (what == IN_QUARANTINE ? p->frame[i].vm == IN_QUARANTINE : p->frame[i].vm >= 0)
			return true;
	return false;
}

struct m_run {
	int page, count, frame;
};
struct m_item {
	int host, vm, op, pool; /* op 4: unshare with a frame; LAW_OPS and up: arch_ops. pool POOLS: not attached */
	struct m_run run[RUNS];
	int runs;
};

static bool m_attached(const struct model *m, int host, int pool)
{
	return pool == host || (pool >= HOSTS && pool < POOLS && m->host[host].attached[pool - HOSTS]);
}

static enum pw_problem m_run_apply(struct model *m, const struct m_item *it, const struct m_run *r)
{
	struct m_vm *vm = &m->vm[it->vm];
	const struct m_slot *slot = m_slot_at(vm, r->page);

	if (!slot || r->page + r->count > slot->base + slot->pages)
		return PROBLEM_GFN_OUT_OF_SLOT;
	for (int i = r->page; i < r->page + r->count; i++)
		if (m_step(&vm->page[i], it->op) == ERR)
			return PROBLEM_GFN_TRANSITION;
	if (m_framed(it->op)) {
		const struct m_pool *p = &m->pool[it->pool];

		if (!m_attached(m, it->host, it->pool) || r->frame < p->first || r->frame + r->count > p->end)
			return PROBLEM_FRAME_OUT_OF_POOL;
		if (m_pool_has(p, r->frame, r->count, IN_QUARANTINE))
			return PROBLEM_FRAME_QUARANTINED;
		if (m_pool_has(p, r->frame, r->count, 0))
			return PROBLEM_FRAME_CONFLICT;
	}
	for (int i = 0; i < r->count; i++) {
		struct m_page *p = &vm->page[r->page + i];
		int to = m_step(p, it->op), law = to > S ? R : to;

		if (to == full(p))
			continue;
		if (law != R || p->state != R)
			m_unbind(m, p, law);
		if (law == R && m_framed(it->op))
			m_bind(m, it->vm, r->page + i, it->pool, r->frame + i);
		p->arch = to > S ? to : 0;
	}
	return PROBLEM_NONE;
}

static bool m_vm_fits(const struct m_vm *vm, int op)
{
	int in = op >= LAW_OPS ? arch_ops[op - LAW_OPS].vm : ANY;

	if (in == LAUNCHING)
		return vm->state == VM_TRANSIENT && !vm->finished;
	return in == RUNNING ? vm->state == VM_SECURE : vm->state != VM_NORMAL;
}

static enum pw_problem m_item_apply(struct model *m, const struct m_item *it)
{
	static struct model before;
	enum pw_problem p = PROBLEM_NONE;

	if (!m->vm[it->vm].exists)
		return PROBLEM_VM_NOT_FOUND;
	if (m->vm[it->vm].host != it->host)
		return PROBLEM_VM_NOT_ON_HOST;
	if (!m_vm_fits(&m->vm[it->vm], it->op))
		return PROBLEM_VM_TRANSITION;
	before = *m;
	for (int i = 0; p == PROBLEM_NONE && i < it->runs; i++)
		p = m_run_apply(m, it, &it->run[i]);
	if (p != PROBLEM_NONE)
		*m = before;
	return p;
}

/* What both do. */

static struct host *host_of(struct run *t, int h)
{
	struct pw_uuid id = uuid_of(1 + (unsigned)h);

	return ledger_host(t->w.ledger, &id);
}

static struct vm *vm_of(const struct run *t, int v)
{
	struct pw_uuid id = uuid_of(100 + (unsigned)v);

	return ledger_vm(t->w.ledger, &id);
}

static struct pool *pool_of(struct run *t, int p)
{
	return p < HOSTS ? host_of(t, p)->pools[0] : ledger_pool(t->w.ledger, pool_names[p - HOSTS]);
}

static void expect(struct run *t, const char *what, enum pw_problem got, enum pw_problem expected)
{
	cr_assert_eq(got, expected, "%s: %s, expected %s (%s)", what, problem_slug(got), problem_slug(expected),
		     t->w.why.detail);
	if (got == PROBLEM_NONE)
		t->accepted++;
	else
		t->refused++;
}

static enum pw_problem item_apply(struct run *t, const struct m_item *m)
{
	static const enum gfn_op ops[] = { GFN_SHARE, GFN_UNSHARE, GFN_PAGE_IN, GFN_PAGE_OUT, GFN_UNSHARE };
	bool framed = m_framed(m->op), changed;
	struct gfn_run runs[RUNS];
	struct item it = { .vm = uuid_of(100 + (unsigned)m->vm),
			   .op = ops[m->op < LAW_OPS ? m->op : 0],
			   .framed = framed,
			   .runs = runs,
			   .run_count = (size_t)m->runs };

	if (m->op >= LAW_OPS) {
		const char *name = arch_ops[m->op - LAW_OPS].name;

		it.arch_op = arch_op_find(name, strlen(name), framed, &it.arch_law);
	}
	it.pool = m->pool == POOLS ? "nowhere" : m->pool < HOSTS ? "local" : pool_names[m->pool - HOSTS];
	for (int i = 0; i < m->runs; i++)
		runs[i] = (struct gfn_run){ gfn_base[m->vm] + (uint64_t)m->run[i].page, (uint64_t)m->run[i].count,
					    framed && m->pool < POOLS ? pfn_base[m->pool] + (uint64_t)m->run[i].frame
								      : 0 };
	return ledger_apply(t->w.ledger, host_of(t, m->host), &it, &changed, &t->w.why);
}

static struct m_run some_run(struct run *t, const struct m_vm *vm, const struct m_pool *p)
{
	const struct m_slot *slot = &vm->slot[below(t, SLOTS)];
	struct m_run r = { .count = some_count(t, FRAMES - 1) };

	r.page = below(t, PAGES);
	if (slot->used && chance(t, 90)) {
		r.page = slot->base + below(t, slot->pages);
		if (r.count > slot->base + slot->pages - r.page && chance(t, 90))
			r.count = slot->base + slot->pages - r.page;
	}
	if (r.count > PAGES - r.page)
		r.count = PAGES - r.page;
	if (!p)
		return r;
	r.frame = below(t, FRAMES - r.count);
	for (int tries = 0; tries < 40 && chance(t, 95); tries++) /* mostly look for frames that will do */
		if (r.frame < p->first || r.frame + r.count > p->end ||
		    m_pool_has(p, r.frame, r.count, IN_QUARANTINE) || m_pool_has(p, r.frame, r.count, 0))
			r.frame = below(t, FRAMES - r.count);
	return r;
}

static bool m_is_likely(const struct m_vm *vm, const struct m_page *p, int op)
{
	return m_vm_fits(vm, op) && m_step(p, op) != ERR;
}

static void do_item(struct run *t)
{
	struct m_item it = { .vm = below(t, VMS), .op = below(t, OPS), .runs = chance(t, 60) ? 1 : 1 + below(t, RUNS) };
	const struct m_vm *vm;

	for (int tries = 0; tries < 4 && (!t->m.vm[it.vm].exists || t->m.vm[it.vm].state == VM_NORMAL); tries++)
		it.vm = below(t, VMS);
	vm = &t->m.vm[it.vm];
	it.host = chance(t, 97) ? vm->host : below(t, HOSTS);
	it.pool = it.host;
	if (chance(t, 40))
		it.pool = HOSTS + below(t, SHARED);
	if (chance(t, 2))
		it.pool = POOLS;
	for (int i = 0; i < it.runs; i++)
		it.run[i] = some_run(t, vm, it.pool < POOLS ? &t->m.pool[it.pool] : NULL);
	for (int tries = 0; tries < 4 && !m_is_likely(vm, &vm->page[it.run[0].page], it.op); tries++)
		it.op = below(t, OPS);
	expect(t, "item", item_apply(t, &it), m_item_apply(&t->m, &it));
}

/* The VM's own step: a launch is finished once. */
static void do_finish(struct run *t)
{
	int v = below(t, VMS);
	struct m_vm *vm = &t->m.vm[v];
	bool fits = vm->exists && vm->state == VM_TRANSIENT && !vm->finished, changed;
	struct item it = { .vm = uuid_of(100 + (unsigned)v) };

	if (!vm->exists)
		return;
	it.vm_op = arch_vm_op_find("snp.launch_finish", strlen("snp.launch_finish"), &it.arch_law);
	expect(t, "finish", ledger_apply(t->w.ledger, host_of(t, vm->host), &it, &changed, &t->w.why),
	       fits ? PROBLEM_NONE : PROBLEM_VM_TRANSITION);
	cr_assert_eq(changed, fits);
	vm->finished |= fits;
}

static void do_quarantine(struct run *t)
{
	int h = below(t, HOSTS), pool = chance(t, 50) ? h : HOSTS + below(t, SHARED), count = some_count(t, 200);
	struct m_pool *p = &t->m.pool[pool];
	int first = below(t, FRAMES - count);
	struct frame_range r = { .pool = pool_of(t, pool),
				 .pfn = pfn_base[pool] + (uint64_t)first,
				 .count = (uint64_t)count };
	enum pw_problem expected =
		first < p->first || first + count > p->end ? PROBLEM_FRAME_OUT_OF_POOL : PROBLEM_NONE;
	bool release = chance(t, 60);

	for (int i = first; !release && expected == PROBLEM_NONE && i < first + count; i++)
		if (p->frame[i].vm >= 0 && t->m.vm[p->frame[i].vm].host != h)
			expected = PROBLEM_VM_NOT_ON_HOST;
	for (int i = first; expected == PROBLEM_NONE && i < first + count; i++) {
		struct m_frame *f = &p->frame[i];

		if (release && f->vm == IN_QUARANTINE)
			f->vm = FREE_FRAME;
		if (release)
			continue;
		if (f->vm >= 0)
			m_unbind(&t->m, &t->m.vm[f->vm].page[f->page], O);
		f->vm = IN_QUARANTINE;
	}
	expect(t, "quarantine",
	       release ? ledger_unquarantine(t->w.ledger, &r, 1, &t->w.why)
		       : ledger_quarantine(t->w.ledger, host_of(t, h), &r, 1, &t->w.why),
	       expected);
}

static bool m_taken_outside(const struct m_pool *p, int first, int end)
{
	for (int i = 0; i < FRAMES; i++)
		if ((i < first || i >= end) && p->frame[i].vm != FREE_FRAME)
			return true;
	return false;
}

static void some_window(struct run *t, const struct m_pool *p, int *first, int *end)
{
	*first = chance(t, 60) ? p->first : below(t, 300);
	*end = chance(t, 60) ? p->end : FRAMES - below(t, 300);
}

static void do_host(struct run *t)
{
	int h = below(t, HOSTS), first, end;
	struct m_host *mh = &t->m.host[h];
	struct m_pool *p = &t->m.pool[h];
	bool reboot = chance(t, 30);
	struct host_spec spec;
	struct host_put put;
	char boot[16];

	some_window(t, p, &first, &end);
	snprintf(boot, sizeof boot, "boot-%d", mh->boot + reboot);
	spec = host_spec_of(1 + (unsigned)h, boot, pfn_base[h] + (uint64_t)first, (uint64_t)(end - first));
	expect(t, "host", ledger_host_put(t->w.ledger, &spec, &put, &t->w.why),
	       !reboot && m_taken_outside(p, first, end) ? PROBLEM_POOL_IN_USE : PROBLEM_NONE);
	if (!reboot && m_taken_outside(p, first, end))
		return;
	cr_assert(put.rebooted == reboot && !put.created);
	if (reboot)
		m_reset_host(&t->m, h);
	for (int i = 0; reboot && i < FRAMES; i++)
		p->frame[i].vm = FREE_FRAME;
	mh->boot += reboot;
	mh->fenced = false;
	p->first = first;
	p->end = end;
}

static void do_fence(struct run *t)
{
	int h = below(t, HOSTS);

	expect(t, "fence", ledger_host_fence(t->w.ledger, host_of(t, h), &t->w.why), PROBLEM_NONE);
	m_reset_host(&t->m, h);
	t->m.host[h].fenced = true;
}

static bool m_host_uses(const struct model *m, int h, const struct m_pool *p)
{
	for (int i = 0; i < FRAMES; i++)
		if (p->frame[i].vm >= 0 && m->vm[p->frame[i].vm].host == h)
			return true;
	return false;
}

static void do_pool(struct run *t)
{
	int s = below(t, SHARED), first, end;
	struct m_pool *p = &t->m.pool[HOSTS + s];
	struct host *hosts[HOSTS];
	bool attached[HOSTS], created, in_use;
	struct pool_spec spec = { .name = pool_names[s], .page_shift = 12, .hosts = hosts };
	struct pool *pool;

	some_window(t, p, &first, &end);
	spec.base = pfn_base[HOSTS + s] + (uint64_t)first;
	spec.frames = (uint64_t)(end - first);
	in_use = m_taken_outside(p, first, end);
	for (int h = 0; h < HOSTS; h++) {
		attached[h] = chance(t, 75);
		if (attached[h])
			hosts[spec.host_count++] = host_of(t, h);
		else
			in_use |= m_host_uses(&t->m, h, p);
	}
	expect(t, "pool", ledger_pool_put(t->w.ledger, &spec, &pool, &created, &t->w.why),
	       in_use ? PROBLEM_POOL_IN_USE : PROBLEM_NONE);
	if (in_use)
		return;
	for (int h = 0; h < HOSTS; h++)
		t->m.host[h].attached[s] = attached[h];
	p->first = first;
	p->end = end;
}

static void do_slot_put(struct run *t)
{
	int v = below(t, VMS), n = below(t, SLOTS);
	struct m_vm *vm = &t->m.vm[v];
	struct m_slot want = { true, below(t, PAGES), 0 };
	enum pw_problem expected = PROBLEM_NONE;
	struct slot slot;
	bool created;

	want.pages = some_count(t, PAGES - want.base);
	if (!vm->exists)
		return;
	slot = (struct slot){ (uint32_t)n, gfn_base[v] + (uint64_t)want.base, (uint64_t)want.pages };
	for (int i = 0; i < SLOTS; i++)
		if (vm->slot[i].used && (i == n || (vm->slot[i].base < want.base + want.pages &&
						    want.base < vm->slot[i].base + vm->slot[i].pages)))
			expected = PROBLEM_SLOT_OVERLAP;
	if (vm->slot[n].used && vm->slot[n].base == want.base && vm->slot[n].pages == want.pages)
		expected = PROBLEM_NONE;
	expect(t, "slot put", ledger_slot_put(t->w.ledger, vm_of(t, v), &slot, &created, &t->w.why), expected);
	if (expected != PROBLEM_NONE || vm->slot[n].used)
		return;
	vm->slot[n] = want;
	for (int i = want.base; i < want.base + want.pages; i++)
		vm->page[i].state = vm->state == VM_SECURE ? O : N;
}

static void do_slot_delete(struct run *t)
{
	int v = below(t, VMS), n = below(t, SLOTS);
	struct m_vm *vm = &t->m.vm[v];
	struct m_slot *slot = &vm->slot[n];

	if (!vm->exists)
		return;
	expect(t, "slot delete", ledger_slot_delete(t->w.ledger, vm_of(t, v), (uint32_t)n, &t->w.why),
	       slot->used ? PROBLEM_NONE : PROBLEM_SLOT_NOT_FOUND);
	for (int i = slot->base; slot->used && i < slot->base + slot->pages; i++)
		m_unbind(&t->m, &vm->page[i], N);
	slot->used = false;
}

static void do_vm_create(struct run *t)
{
	int v = below(t, VMS), h = below(t, HOSTS);
	struct m_vm *vm = &t->m.vm[v];
	struct slot slot = { 0, gfn_base[v], PAGES / 2 };
	struct vm_spec spec = { .id = uuid_of(100 + (unsigned)v),
				.name = "vm",
				.host = host_of(t, h),
				.arch = ARCH_SNP,
				.slots = &slot,
				.slot_count = 1 };
	struct vm *out;

	expect(t, "vm create", ledger_vm_create(t->w.ledger, &spec, &out, &t->w.why),
	       vm->exists ? PROBLEM_VM_EXISTS : PROBLEM_NONE);
	if (vm->exists)
		return;
	*vm = (struct m_vm){ .exists = true, .host = h, .epoch = 1, .state = VM_NORMAL };
	vm->slot[0] = (struct m_slot){ true, 0, PAGES / 2 };
}

static void do_vm_delete(struct run *t)
{
	int v = below(t, VMS);
	struct m_vm *vm = &t->m.vm[v];

	if (!vm->exists)
		return;
	expect(t, "vm delete", ledger_vm_delete(t->w.ledger, vm_of(t, v), &t->w.why),
	       vm->state == VM_NORMAL ? PROBLEM_NONE : PROBLEM_VM_BUSY);
	vm->exists = vm->state != VM_NORMAL;
}

static void do_event(struct run *t)
{
	int v = below(t, VMS), e = below(t, VM_EVENT_COUNT), to;
	struct m_vm *vm = &t->m.vm[v];

	if (vm->state == VM_NORMAL)
		e = chance(t, 80) ? VM_INIT_START : e;
	else if (vm->state == VM_TRANSIENT)
		e = chance(t, 60) ? VM_INIT_DONE : e;
	else if (chance(t, 70)) /* let secure VMs live for a while */
		return;
	if (!vm->exists)
		return;
	to = vm_law[vm->state][e];
	expect(t, "event", ledger_vm_event(t->w.ledger, vm_of(t, v), (enum vm_event)e, &t->w.why),
	       to == ERR ? PROBLEM_VM_TRANSITION : PROBLEM_NONE);
	if (to == ERR)
		return;
	if (to == VM_NORMAL)
		m_reset(&t->m, v);
	vm->state = to;
	vm->finished = false;
	for (int i = 0; to == VM_SECURE && i < PAGES; i++)
		if (m_slot_at(vm, i) && vm->page[i].state == N)
			vm->page[i].state = O;
}

/* Are they the same? */

static void same_vm(struct run *t, int v)
{
	const struct m_vm *m = &t->m.vm[v];
	const struct vm *vm = vm_of(t, v);
	uint64_t counts[GFN_STATE_COUNT] = { 0 };

	cr_assert_eq(vm != NULL, m->exists);
	if (!vm)
		return;
	cr_assert(vm->host == host_of(t, m->host) && (int)vm->state == m->state && vm->epoch == (uint64_t)m->epoch);
	if (m->state == VM_NORMAL)
		cr_assert_null(vm_arch_state(vm));
	else
		cr_assert_str_eq(vm_arch_state(vm), m->state == VM_SECURE || m->finished ? "RUNNING" : "LAUNCH");
	for (int i = 0; i < PAGES; i++) {
		const struct m_page *p = &m->page[i];
		uint64_t gfn = gfn_base[v] + (uint64_t)i;
		struct gfn_view view;
		bool there = vm_next_run(vm, gfn, gfn + 1, &view);

		cr_assert_eq(there, m_slot_at(m, i) != NULL, "vm %d page %d", v, i);
		if (!there)
			continue;
		counts[view.state]++;
		cr_assert_eq(view.state, states[p->state], "vm %d page %d", v, i);
		cr_assert_str_eq(view.arch_state, full_names[full(p)], "vm %d page %d", v, i);
		if (p->state == R)
			cr_assert(view.pool == pool_of(t, p->pool) &&
				  view.pfn == pfn_base[p->pool] + (uint64_t)p->frame);
	}
	cr_assert_arr_eq(counts, vm->counts.pages, sizeof counts);
}

static void same_pool(struct run *t, int p)
{
	const struct m_pool *m = &t->m.pool[p];
	const struct pool *pool = pool_of(t, p);

	cr_assert_eq(pool->base, pfn_base[p] + (uint64_t)m->first);
	cr_assert_eq(pool->frames, (uint64_t)(m->end - m->first));
	for (int i = 0; i < FRAMES; i++) {
		const struct m_frame *f = &m->frame[i];
		uint64_t pfn = pfn_base[p] + (uint64_t)i;
		struct frame_view view;

		cr_assert_eq(pool_next_bound(t->w.ledger, pool, pfn, pfn + 1, &view), f->vm >= 0, "pool %d frame %d", p,
			     i);
		if (f->vm >= 0)
			cr_assert(view.vm == vm_of(t, f->vm) && view.gfn == gfn_base[f->vm] + (uint64_t)f->page &&
				  strcmp(view.arch_state, full_names[full(&t->m.vm[f->vm].page[f->page])]) == 0);
		cr_assert_eq(pool_next_quarantined(t->w.ledger, pool, pfn, pfn + 1, &view), f->vm == IN_QUARANTINE,
			     "pool %d frame %d", p, i);
	}
}

static void same(struct run *t)
{
	unsigned place;

	for (int h = 0; h < HOSTS; h++) {
		const struct host *host = host_of(t, h);

		cr_assert(host->fenced == t->m.host[h].fenced && host->epoch == (uint64_t)t->m.host[h].epoch);
		for (int s = 0; s < SHARED; s++)
			cr_assert_eq(host_pool(host, pool_names[s], &place) != NULL, t->m.host[h].attached[s]);
	}
	for (int p = 0; p < POOLS; p++)
		same_pool(t, p);
	for (int v = 0; v < VMS; v++)
		same_vm(t, v);
}

/* Rolling back must not need the allocator. */
static void do_rollback(struct run *t)
{
	int to;

	if (t->marks == 0)
		return;
	to = below(t, t->marks);
	t->w.heap.refuse = true;
	ledger_rollback(t->w.ledger, t->mark[to]);
	t->w.heap.refuse = false;
	t->m = t->marked[to];
	t->marks = to;
	t->rollbacks++;
	same(t);
	world_holds(&t->w);
}

static void do_mark(struct run *t)
{
	if (t->marks == MARKS)
		return;
	t->mark[t->marks] = ledger_mark(t->w.ledger);
	t->marked[t->marks++] = t->m;
}

static void do_commit(struct run *t)
{
	ledger_commit(t->w.ledger);
	t->marks = 0;
}

static const struct {
	void (*act)(struct run *t);
	int weight;
} acts[] = {
	{ do_item, 700 },    { do_quarantine, 30 },  { do_host, 15 },      { do_fence, 3 },      { do_pool, 20 },
	{ do_slot_put, 60 }, { do_slot_delete, 20 }, { do_vm_create, 20 }, { do_vm_delete, 10 }, { do_event, 60 },
	{ do_finish, 20 },   { do_mark, 40 },        { do_rollback, 20 },  { do_commit, 10 },
};

static void setup(struct run *t)
{
	struct host *hosts[HOSTS];

	t->w.heap.fail_at = SIZE_MAX;
	world_init(&t->w);
	for (int p = 0; p < POOLS; p++) {
		t->m.pool[p].end = FRAMES;
		for (int i = 0; i < FRAMES; i++)
			t->m.pool[p].frame[i].vm = FREE_FRAME;
	}
	for (int h = 0; h < HOSTS; h++) {
		hosts[h] = world_host(&t->w, 1 + (unsigned)h, "boot-0", pfn_base[h], FRAMES);
		t->m.host[h] = (struct m_host){ .epoch = 1, .attached = { true, true } };
	}
	for (int s = 0; s < SHARED; s++)
		world_pool(&t->w, pool_names[s], pfn_base[HOSTS + s], FRAMES, hosts, HOSTS);
	ledger_commit(t->w.ledger);
}

static void act(struct run *t)
{
	int total = 0, pick;

	for (size_t i = 0; i < PW_ARRAY_LEN(acts); i++)
		total += acts[i].weight;
	pick = below(t, total);
	for (size_t i = 0; i < PW_ARRAY_LEN(acts); i++) {
		pick -= acts[i].weight;
		if (pick < 0) {
			acts[i].act(t);
			return;
		}
	}
}

Test(ledger_property, random_commands_do_what_a_page_by_page_model_does, .timeout = 60)
{
	static struct run t;
	const char *given = getenv("SEED"), *steps = getenv("STEPS");
	long n = steps ? strtol(steps, NULL, 0) : 8000;

	t.seed = given ? strtoull(given, NULL, 0) : (uint64_t)time(NULL) * 2654435761u;
	fprintf(stderr, "SEED=%" PRIu64 "\n", t.seed);
	setup(&t);
	for (long i = 0; i < n; i++) {
		unsigned refused = t.refused;

		act(&t);
		if (i % 16 == 0 || (t.refused != refused && i % 4 == 0))
			same(&t);
		if (i % 64 == 0)
			world_holds(&t.w);
	}
	same(&t);
	world_holds(&t.w);
	fprintf(stderr, "%u accepted, %u refused, %u rollbacks\n", t.accepted, t.refused, t.rollbacks);
	cr_assert(t.accepted > n / 4 && t.refused > n / 20 && t.rollbacks > n / 200);
	world_release(&t.w);
}
