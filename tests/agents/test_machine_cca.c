/* The CCA host behind an agent, without the rest of the machine: refusals and stuck frames are the test's own. */
#include "agents/machine_cca.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "engine/arch/law.h"

extern const struct arch_law cca_law;

#define BASE   ((uint64_t)0x40200) /* aligned to a block */
#define FRAMES ((uint64_t)4096)
#define BLOCK  ((uint64_t)512)
#define GFN    ((uint64_t)1024)
#define PAGES  ((uint64_t)4096)

struct machine {            /* the test's */
	uint64_t refuse_at; /* the N-th frame asked for back, from 1; 0: none */
	uint64_t asked;
	uint64_t stuck[8];
	size_t stuck_count;
	char why[sizeof(((struct pw_err *)0)->msg)];
};

uint64_t machine_gives_back(struct machine *x, uint64_t count)
{
	if (x->refuse_at > x->asked && x->refuse_at <= x->asked + count) {
		count = x->refuse_at - x->asked - 1;
		x->asked = x->refuse_at;
		return count;
	}
	x->asked += count;
	return count;
}

void machine_keep(struct machine *x, uint64_t pfn, const char *why)
{
	cr_assert_lt(x->stuck_count, PW_ARRAY_LEN(x->stuck));
	x->stuck[x->stuck_count++] = pfn;
	(void)snprintf(x->why, sizeof x->why, "%s", why);
}

struct bench {
	struct machine x;
	struct pw_mem mem;
	struct cca_machine *k;
	struct machine_vm vm;
	struct slot slots[2];
	struct pw_err err;
};

static void begin_at(struct bench *b, uint64_t base, uint64_t frames, uint64_t pages)
{
	struct machine_pool pool = { base, frames };
	void *model;

	*b = (struct bench){ .slots = { { 0, GFN, pages } } };
	b->vm = (struct machine_vm){ .slots = b->slots, .slot_count = 1 };
	cr_assert_eq(machine_cca.open(&b->x, &pool, &b->mem, &model, &b->err), PW_OK, "%s", b->err.msg);
	b->k = model;
	cr_assert_eq(machine_cca.vm_new(b->k, &b->vm, &b->err), PW_OK, "%s", b->err.msg);
}

static void sound(struct bench *b)
{
	cr_assert(machine_cca.check(b->k, &b->err), "%s", b->err.msg);
}

static void event(struct bench *b, enum vm_event e)
{
	cr_assert_eq(machine_cca.event(b->k, &b->vm, e, &b->err), PW_OK, "%s", b->err.msg);
	sound(b);
}

static void begin_new(struct bench *b)
{
	begin_at(b, BASE, FRAMES, PAGES);
	event(b, VM_INIT_START);
}

static void begin_active(struct bench *b)
{
	begin_new(b);
	event(b, VM_INIT_DONE);
}

static uint64_t in_use(const struct bench *b, enum cca_granule s)
{
	uint64_t n = 0;

	for (uint64_t i = 0; i < b->k->m.config.granules; i++)
		n += cca_granule_state(&b->k->m, b->k->m.config.base + i * CCA_GRANULE) == s;
	return n;
}

/* Everything is given back, but for what is stuck. */
static void end(struct bench *b)
{
	if (((struct cca_guest *)b->vm.guest)->r)
		event(b, VM_TERMINATE);
	cr_expect_eq(in_use(b, CCA_DELEGATED), b->x.stuck_count);
	cr_expect_eq(in_use(b, CCA_UNDELEGATED), b->k->m.config.granules - b->x.stuck_count);
	machine_cca.vm_free(b->k, &b->vm);
	machine_cca.close(b->k);
	cr_expect_eq(b->mem.used, 0);
}

static enum pw_status page_in(struct bench *b, uint64_t gfn, uint64_t count, uint64_t pfn)
{
	uint64_t *pfns = calloc(count, sizeof *pfns);
	enum pw_status st;

	cr_assert(pfns);
	for (uint64_t i = 0; i < count; i++)
		pfns[i] = pfn + i;
	st = machine_cca.page_in(b->k, &b->vm, gfn, count, pfns, &b->err);
	free(pfns);
	sound(b);
	return st;
}

#define OK(b, call) cr_assert_eq(call, PW_OK, "%s", (b)->err.msg)
static enum pw_status op(struct bench *b, enum gfn_op o, uint64_t gfn, uint64_t count)
{
	enum pw_status st = (o == GFN_SHARE     ? machine_cca.share
			     : o == GFN_UNSHARE ? machine_cca.unshare
						: machine_cca.page_out)(b->k, &b->vm, gfn, count, &b->err);

	sound(b);
	return st;
}

static void expect(struct bench *b, uint64_t gfn, uint64_t count, enum gfn_state state, uint64_t pfn, const char *arch)
{
	for (uint64_t i = 0; i < count;) {
		struct backend_run run = machine_cca.run_at(b->k, &b->vm, gfn + i, gfn + count);
		unsigned at = run.arch ? run.arch - 1 : cca_law.rest[run.state];

		cr_assert_eq(run.state, state, "GFN %" PRIu64 " is %d", gfn + i, run.state);
		cr_assert(cca_law.states[at].is == state && strcmp(cca_law.states[at].name, arch) == 0,
			  "GFN %" PRIu64 " is %s", gfn + i, cca_law.states[at].name);
		if (state == GFN_SECURE_RESIDENT)
			cr_assert_eq(run.pfn, pfn + i);
		cr_assert(run.count > 0 && run.gfn == gfn + i);
		i += run.count;
	}
}

static struct cca_walk at_level(const struct bench *b, uint64_t gfn)
{
	const struct cca_guest *g = b->vm.guest;

	return cca_walk(cca_realm_at(&b->k->m, g->r->rd), gfn << CCA_SHIFT, 3);
}

/* Each op of a realm that is NEW, and its entries. */
Test(machine_cca, pages_of_a_new_realm_go_by_its_table)
{
	struct bench b;

	begin_new(&b);
	expect(&b, GFN, PAGES, GFN_NORMAL, 0, "UNASSIGNED/RAM");
	OK(&b, page_in(&b, GFN, 3, BASE + 7));
	expect(&b, GFN, 3, GFN_SECURE_RESIDENT, BASE + 7, "ASSIGNED/RAM");
	OK(&b, op(&b, GFN_PAGE_OUT, GFN, 1));
	expect(&b, GFN, 1, GFN_SECURE_OUT, 0, "UNASSIGNED/DESTROYED");
	OK(&b, op(&b, GFN_SHARE, GFN, 4)); /* out, resident, resident, normal */
	expect(&b, GFN, 3, GFN_SHARED, 0, "ASSIGNED_NS, UNASSIGNED/DESTROYED");
	expect(&b, GFN + 3, 1, GFN_SHARED, 0, "ASSIGNED_NS");
	OK(&b, op(&b, GFN_UNSHARE, GFN + 1, 4)); /* the last is normal */
	expect(&b, GFN, 1, GFN_SHARED, 0, "ASSIGNED_NS, UNASSIGNED/DESTROYED");
	expect(&b, GFN + 1, 2, GFN_SECURE_OUT, 0, "UNASSIGNED/DESTROYED");
	expect(&b, GFN + 3, 2, GFN_SECURE_OUT, 0, "UNASSIGNED/RAM");
	expect(&b, GFN + 5, 9, GFN_NORMAL, 0, "UNASSIGNED/RAM");
	OK(&b, page_in(&b, GFN, 6, BASE + 100));
	expect(&b, GFN, 6, GFN_SECURE_RESIDENT, BASE + 100, "ASSIGNED/RAM");
	event(&b, VM_INIT_DONE);
	expect(&b, GFN, 6, GFN_SECURE_RESIDENT, BASE + 100, "ASSIGNED/RAM");
	expect(&b, GFN + 6, PAGES - 6, GFN_SECURE_OUT, 0, "UNASSIGNED/RAM");
	end(&b);
}

/* The realm asks for RAM again whenever a page was destroyed: all is at rest. */
Test(machine_cca, pages_of_an_active_realm_are_at_rest)
{
	struct bench b;

	begin_active(&b);
	OK(&b, page_in(&b, GFN, 8, BASE));
	expect(&b, GFN, 8, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
	OK(&b, op(&b, GFN_PAGE_OUT, GFN, 2));
	expect(&b, GFN, 2, GFN_SECURE_OUT, 0, "UNASSIGNED/RAM");
	OK(&b, op(&b, GFN_SHARE, GFN + 1, 3));
	expect(&b, GFN + 1, 3, GFN_SHARED, 0, "ASSIGNED_NS");
	OK(&b, op(&b, GFN_UNSHARE, GFN, 8));
	expect(&b, GFN, 4, GFN_SECURE_OUT, 0, "UNASSIGNED/RAM");
	expect(&b, GFN + 4, 4, GFN_SECURE_RESIDENT, BASE + 4, "ASSIGNED/RAM");
	OK(&b, op(&b, GFN_SHARE, GFN, 1));
	OK(&b, page_in(&b, GFN, 4, BASE)); /* unshare that carries frames */
	expect(&b, GFN, 8, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
	end(&b);
}

/* What was destroyed before the activation stays so until it is used: the ledger keeps it too. */
Test(machine_cca, destroyed_pages_survive_the_activation)
{
	struct bench b;

	begin_new(&b);
	OK(&b, page_in(&b, GFN, 4, BASE));
	OK(&b, op(&b, GFN_PAGE_OUT, GFN, 2));
	OK(&b, op(&b, GFN_SHARE, GFN + 2, 2));
	event(&b, VM_INIT_DONE);
	expect(&b, GFN, 2, GFN_SECURE_OUT, 0, "UNASSIGNED/DESTROYED");
	expect(&b, GFN + 2, 2, GFN_SHARED, 0, "ASSIGNED_NS, UNASSIGNED/DESTROYED");
	OK(&b, page_in(&b, GFN, 1, BASE + 9));
	OK(&b, op(&b, GFN_SHARE, GFN + 1, 1));
	OK(&b, op(&b, GFN_UNSHARE, GFN + 2, 1));
	expect(&b, GFN, 1, GFN_SECURE_RESIDENT, BASE + 9, "ASSIGNED/RAM");
	expect(&b, GFN + 1, 1, GFN_SHARED, 0, "ASSIGNED_NS");
	expect(&b, GFN + 2, 1, GFN_SECURE_OUT, 0, "UNASSIGNED/RAM");
	end(&b);
}

Test(machine_cca, aligned_stretches_are_blocks_and_unfold)
{
	struct bench b;
	uint64_t tables;

	for (int active = 0; active < 2; active++) {
		begin_new(&b);
		if (active)
			event(&b, VM_INIT_DONE);
		tables = in_use(&b, CCA_RTT);
		OK(&b, page_in(&b, GFN, 3 * BLOCK, BASE));
		for (uint64_t i = 0; i < 3; i++)
			cr_expect_eq(at_level(&b, GFN + i * BLOCK).level, 2);
		cr_expect_leq(in_use(&b, CCA_RTT), tables + 2, "folded tables are given back");
		OK(&b, op(&b, GFN_PAGE_OUT, GFN + 7, 1));
		cr_expect_eq(at_level(&b, GFN).level, 3);
		cr_expect_eq(at_level(&b, GFN + BLOCK).level, 2);
		OK(&b, page_in(&b, GFN + 7, 1, BASE + 7));
		cr_expect_eq(at_level(&b, GFN).level, 2, "folded again");
		OK(&b, op(&b, GFN_SHARE, GFN + BLOCK, 2 * BLOCK));
		expect(&b, GFN, BLOCK, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
		OK(&b, page_in(&b, GFN + BLOCK, BLOCK, BASE + BLOCK + 1)); /* not aligned */
		cr_expect_eq(at_level(&b, GFN + BLOCK).level, 3);
		end(&b);
	}
}

/* EL3 refuses a frame on its way in: nothing has changed. */
Test(machine_cca, a_refused_delegation_undoes_the_page_in)
{
	struct bench b;

	for (int active = 0; active < 2; active++) {
		uint64_t pfns[6] = { BASE, BASE + 1, BASE + 9, BASE + 10, BASE + 30, BASE + 31 };

		begin_new(&b);
		OK(&b, page_in(&b, GFN + 20, 1, BASE + 200));
		if (active)
			event(&b, VM_INIT_DONE);
		OK(&b, op(&b, GFN_SHARE, GFN + 2, 2));
		b.k->m.el3_refuses = 1;
		cr_expect_eq(machine_cca.page_in(b.k, &b.vm, GFN, 6, pfns, &b.err), PW_BACKEND);
		cr_expect(strstr(b.err.msg, "GRANULE_DELEGATE") && strstr(b.err.msg, "EL3") &&
				  strstr(b.err.msg, "RMM B4.3.5"),
			  "%s", b.err.msg);
		sound(&b);
		expect(&b, GFN, 2, active ? GFN_SECURE_OUT : GFN_NORMAL, 0, "UNASSIGNED/RAM");
		expect(&b, GFN + 2, 2, GFN_SHARED, 0, "ASSIGNED_NS");
		expect(&b, GFN + 4, 2, active ? GFN_SECURE_OUT : GFN_NORMAL, 0, "UNASSIGNED/RAM");
		expect(&b, GFN + 20, 1, GFN_SECURE_RESIDENT, BASE + 200, "ASSIGNED/RAM");
		cr_expect_eq(cca_granule_state(&b.k->m, BASE << CCA_SHIFT), CCA_UNDELEGATED);
		OK(&b, machine_cca.page_in(b.k, &b.vm, GFN, 6, pfns, &b.err));
		expect(&b, GFN + 2, 2, GFN_SECURE_RESIDENT, BASE + 9, "ASSIGNED/RAM");
		end(&b);
	}
}

/* The host's own granules run out in the middle. */
static void exhaust(struct bench *b, uint64_t *taken)
{
	struct cca_host *h = &b->k->h;

	*taken = 0;
	for (uint64_t i = 0; i < h->granules; i++)
		if (cca_host_use(h, h->base + i * CCA_GRANULE) == CCA_USE_FREE) {
			cr_assert_eq(tree_set(&h->uses, i, 1, (uint64_t)CCA_USE_HOST << 56), PW_OK);
			h->free--;
			++*taken;
		}
}

static void relieve(struct bench *b)
{
	struct cca_host *h = &b->k->h;

	for (uint64_t i = 0; i < h->granules; i++)
		if (cca_host_use(h, h->base + i * CCA_GRANULE) == CCA_USE_HOST &&
		    h->base + i * CCA_GRANULE != h->page) {
			cr_assert_eq(tree_set(&h->uses, i, 1, 0), PW_OK);
			h->free++;
		}
	h->low = 0;
}

Test(machine_cca, an_exhausted_host_undoes_what_needs_tables)
{
	struct bench b;
	uint64_t taken, pfns[4] = { BASE + BLOCK, BASE + BLOCK + 5, BASE + BLOCK + 6, BASE + BLOCK + 7 };

	begin_active(&b);
	OK(&b, page_in(&b, GFN, BLOCK, BASE));
	exhaust(&b, &taken);
	cr_expect_eq(machine_cca.page_in(b.k, &b.vm, GFN + BLOCK, 4, pfns, &b.err), PW_BUSY, "%s", b.err.msg);
	sound(&b);
	expect(&b, GFN + BLOCK, 4, GFN_SECURE_OUT, 0, "UNASSIGNED/RAM");
	cr_expect_eq(op(&b, GFN_PAGE_OUT, GFN, 1), PW_BUSY);
	expect(&b, GFN, BLOCK, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
	cr_expect_eq(op(&b, GFN_SHARE, GFN + 3, 1), PW_BUSY);
	expect(&b, GFN, BLOCK, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
	cr_expect_eq(op(&b, GFN_SHARE, GFN, BLOCK), PW_BUSY, "destroyed first, mapped then");
	expect(&b, GFN, BLOCK, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
	cr_expect_eq(at_level(&b, GFN).level, 2, "and a block again");
	relieve(&b);
	OK(&b, op(&b, GFN_SHARE, GFN, BLOCK));
	end(&b);
}

/* SPARE-1, SPARE-3: blocks go though not one granule is left. */
Test(machine_cca, teardown_needs_nothing_but_the_spare)
{
	struct bench b;
	uint64_t taken, free_then;

	begin_active(&b);
	OK(&b, page_in(&b, GFN, 4 * BLOCK, BASE));
	OK(&b, page_in(&b, GFN + 5 * BLOCK + 3, 2, BASE + 5 * BLOCK));
	exhaust(&b, &taken);
	OK(&b, op(&b, GFN_PAGE_OUT, GFN + BLOCK, 2 * BLOCK));
	expect(&b, GFN + BLOCK, 2 * BLOCK, GFN_SECURE_OUT, 0, "UNASSIGNED/RAM");
	free_then = b.k->h.free;
	event(&b, VM_TERMINATE);
	cr_expect_gt(b.k->h.free, free_then);
	relieve(&b);
	end(&b);
}

Test(machine_cca, stuck_frames_are_kept_and_the_rest_goes_on)
{
	static const enum vm_event ends[] = { VM_INIT_ABORT, VM_TERMINATE };
	struct bench b;

	for (size_t i = 0; i < PW_ARRAY_LEN(ends); i++) {
		begin_new(&b);
		OK(&b, page_in(&b, GFN, 2 * BLOCK, BASE));
		OK(&b, page_in(&b, GFN + 3 * BLOCK, 5, BASE + 3 * BLOCK));
		if (ends[i] == VM_TERMINATE)
			event(&b, VM_INIT_DONE);
		b.x.refuse_at = b.x.asked + 700;
		event(&b, ends[i]);
		cr_assert_eq(b.x.stuck_count, 1);
		cr_expect_eq(b.x.stuck[0], BASE + 699);
		cr_expect(strstr(b.x.why, "GRANULE_UNDELEGATE") && strstr(b.x.why, "0x404bb000 is DELEGATED"), "%s",
			  b.x.why);
		cr_expect_eq(b.k->h.leaked, 1);
		expect(&b, GFN, PAGES, GFN_NORMAL, 0, "UNASSIGNED/RAM");
		event(&b, VM_INIT_START); /* the same VM again, without that frame */
		OK(&b, page_in(&b, GFN, 699, BASE));
		cr_expect_eq(page_in(&b, GFN + 699, 2, BASE + 699), PW_BACKEND, "it is not to be had");
		expect(&b, GFN + 699, 2, GFN_NORMAL, 0, "UNASSIGNED/RAM");
		end(&b);
	}
}

/* The data is gone, but the page is where it was; it is the guest that gave the content up. */
Test(machine_cca, a_frame_that_sticks_undoes_page_out_and_share)
{
	static const enum gfn_op ops[] = { GFN_PAGE_OUT, GFN_SHARE };
	struct bench b;

	for (int active = 0; active < 2; active++) {
		begin_new(&b);
		if (active)
			event(&b, VM_INIT_DONE);
		OK(&b, page_in(&b, GFN, BLOCK + 10, BASE));
		for (size_t i = 0; i < PW_ARRAY_LEN(ops); i++) {
			b.x.refuse_at = b.x.asked + 514;
			cr_expect_eq(op(&b, ops[i], GFN, BLOCK + 6), PW_BACKEND);
			cr_expect(strstr(b.err.msg, "EL3") && strstr(b.err.msg, "0x40401000"), "%s", b.err.msg);
			expect(&b, GFN, BLOCK + 10, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
			cr_expect_eq(at_level(&b, GFN).level, 2);
			b.k->m.el3_refuses = 3; /* for good */
			cr_expect_eq(op(&b, ops[i], GFN + BLOCK, 6), PW_BACKEND);
			expect(&b, GFN, BLOCK + 10, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
			b.k->m.el3_refuses = 0;
		}
		b.x.refuse_at = b.x.asked + 2;
		cr_expect_eq(machine_cca.slot_remove(b.k, &b.vm, &b.slots[0], &b.err), PW_BACKEND);
		expect(&b, GFN, BLOCK + 10, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
		cr_expect(b.x.stuck_count == 0 && b.k->h.leaked == 0);
		end(&b);
	}
}

Test(machine_cca, slots_come_and_go)
{
	struct bench b;

	for (int active = 0; active < 2; active++) {
		begin_new(&b);
		if (active)
			event(&b, VM_INIT_DONE);
		b.slots[1] = (struct slot){ 7, GFN + PAGES + 3, 1000 };
		b.vm.slot_count = 2;
		for (int again = 0; again < 2; again++) {
			OK(&b, machine_cca.slot_add(b.k, &b.vm, &b.slots[1], &b.err));
			sound(&b);
			expect(&b, b.slots[1].base, 600, active ? GFN_SECURE_OUT : GFN_NORMAL, 0, "UNASSIGNED/RAM");
			OK(&b, page_in(&b, b.slots[1].base + 700, 9, BASE));
			OK(&b, op(&b, GFN_SHARE, b.slots[1].base + 600, 50));
			OK(&b, machine_cca.slot_remove(b.k, &b.vm, &b.slots[1], &b.err));
			sound(&b);
			cr_expect_eq(cca_granule_state(&b.k->m, BASE << CCA_SHIFT), CCA_UNDELEGATED);
		}
		b.vm.slot_count = 1;
		b.slots[1] = (struct slot){ 8, ((uint64_t)1 << 35) - 1, 2 };
		cr_expect_eq(machine_cca.slot_add(b.k, &b.vm, &b.slots[1], &b.err), PW_INVALID);
		end(&b);
	}
}

/* The shared bit is the realm's; the host's own memory lies where the pool leaves room. */
Test(machine_cca, pools_lie_anywhere_in_48_bits)
{
	static const struct {
		uint64_t base, frames;
		enum pw_status st;
	} cases[] = {
		{ 0, 512, PW_OK },
		{ 777, 1000, PW_OK },
		{ ((uint64_t)1 << 35) - 600, 600, PW_OK }, /* the host's own are before it */
		{ ((uint64_t)1 << 35) + 1, 600, PW_OK },
		{ ((uint64_t)1 << 36) - 600, 600, PW_OK },
		{ ((uint64_t)1 << 35) - 1, 2, PW_INVALID },
		{ ((uint64_t)1 << 36) - 1, 2, PW_INVALID },
		{ (uint64_t)1 << 39, 512, PW_INVALID },
	};
	struct machine_pool pool;
	struct bench b;
	void *model;

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		pool = (struct machine_pool){ cases[i].base, cases[i].frames };
		b = (struct bench){ 0 };
		if (cases[i].st != PW_OK) {
			cr_expect_eq(machine_cca.open(&b.x, &pool, &b.mem, &model, &b.err), PW_INVALID, "case %zu", i);
			cr_expect_eq(b.mem.used, 0);
			continue;
		}
		begin_at(&b, pool.base, pool.frames, PAGES);
		event(&b, VM_INIT_START);
		OK(&b, page_in(&b, GFN, 512, pool.base));
		OK(&b, op(&b, GFN_SHARE, GFN + 600, 100));
		end(&b);
	}
}

Test(machine_cca, the_shared_bit_is_the_realms_highest)
{
	static const unsigned bits[] = { 31, 32, 38, 47 }, wrong[] = { 12, 30, 48, 51 };
	struct bench b;

	for (size_t i = 0; i < PW_ARRAY_LEN(bits); i++) {
		begin_at(&b, BASE, FRAMES, PAGES);
		b.vm.shared_bit = bits[i];
		event(&b, VM_INIT_START);
		OK(&b, page_in(&b, GFN, 512, BASE));
		OK(&b, op(&b, GFN_SHARE, GFN + 600, 100));
		event(&b, VM_INIT_DONE);
		end(&b);
	}
	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		begin_at(&b, BASE, FRAMES, PAGES);
		machine_cca.vm_free(b.k, &b.vm);
		b.vm.shared_bit = wrong[i];
		cr_expect_eq(machine_cca.vm_new(b.k, &b.vm, &b.err), PW_INVALID, "bit %u", wrong[i]);
		machine_cca.close(b.k);
	}
}

/* Allocations fail one after the other: the op says so, all is as before, and then it succeeds. */

struct short_memory {
	uint64_t left;
	bool armed;
};

static void *scarce(void *ctx, size_t size)
{
	struct short_memory *s = ctx;

	if (s->armed && s->left-- == 0) {
		s->armed = false;
		return NULL;
	}
	return malloc(size);
}

static void give(void *ctx, void *p)
{
	free(p);
}

static enum pw_status step(struct bench *b, int i)
{
	uint64_t pfns[5] = { BASE + 3000, BASE + 3002, BASE + 3003, BASE + 3010, BASE + 3011 };

	switch (i) {
	case 0: return machine_cca.event(b->k, &b->vm, VM_INIT_START, &b->err);
	case 1: return machine_cca.page_in(b->k, &b->vm, GFN + 2000, 5, pfns, &b->err);
	case 2: return page_in(b, GFN, BLOCK, BASE);
	case 3: return op(b, GFN_PAGE_OUT, GFN + 2001, 1);
	case 4: return op(b, GFN_SHARE, GFN + 2000, 700);
	case 5: return op(b, GFN_UNSHARE, GFN + 2000, 80);
	case 6: return machine_cca.event(b->k, &b->vm, VM_INIT_DONE, &b->err);
	case 7: return op(b, GFN_PAGE_OUT, GFN + 1, 6);
	case 8: return op(b, GFN_SHARE, GFN + 5, 300);
	case 9: return op(b, GFN_UNSHARE, GFN + 100, 10);
	case 10: return page_in(b, GFN + 90, 30, BASE + 1000);
	case 11: return op(b, GFN_PAGE_OUT, GFN + 320, 100);
	case 12: return page_in(b, GFN + 3000, 600, BASE + 1040);
	default: return machine_cca.event(b->k, &b->vm, VM_TERMINATE, &b->err);
	}
}

struct picture {
	enum gfn_state state[PAGES];
	uint64_t pfn[PAGES];
};

static struct picture *picture(struct bench *b)
{
	struct picture *p = calloc(1, sizeof *p);

	cr_assert(p);
	for (uint64_t i = 0; i < PAGES; i++) {
		struct backend_run run = machine_cca.run_at(b->k, &b->vm, GFN + i, GFN + i + 1);

		p->state[i] = run.state;
		p->pfn[i] = run.state == GFN_SECURE_RESIDENT ? run.pfn : 0;
	}
	return p;
}

Test(machine_cca, each_allocation_fails_once_and_nothing_has_changed, .timeout = 120)
{
	struct short_memory s = { 0 };
	unsigned failed = 0;

	for (int nth = 0; nth < 14; nth++) {
		for (uint64_t n = 0, more = 1; more; n++) {
			struct picture *was, *is;
			struct bench b;
			void *model;
			struct machine_pool pool = { BASE, FRAMES };
			enum pw_status st;

			b = (struct bench){ .slots = { { 0, GFN, PAGES } }, .mem = { scarce, give, &s, 0, 0 } };
			b.vm = (struct machine_vm){ .slots = b.slots, .slot_count = 1 };
			s.armed = false;
			OK(&b, machine_cca.open(&b.x, &pool, &b.mem, &model, &b.err));
			b.k = model;
			OK(&b, machine_cca.vm_new(b.k, &b.vm, &b.err));
			for (int i = 0; i < nth; i++)
				OK(&b, step(&b, i));
			was = picture(&b);
			s = (struct short_memory){ n, true };
			st = step(&b, nth);
			more = !s.armed;
			s.armed = false;
			is = picture(&b);
			sound(&b);
			cr_assert(st == PW_OK || (st == PW_NO_MEMORY && more), "step %d: %s", nth, b.err.msg);
			if (st != PW_OK) {
				failed++;
				cr_assert(nth == 13 || memcmp(was, is, sizeof *was) == 0, "step %d, n %" PRIu64, nth,
					  n);
				OK(&b, step(&b, nth));
			}
			free(was);
			free(is);
			end(&b);
		}
	}
	cr_expect_gt(failed, 20, "only %u failures", failed);
}

/* The ledger, told by the law's trails alone, has each page in the state that hardware says. */

static const struct arch_op *row(const char *name)
{
	for (size_t i = 0; i < cca_law.op_count; i++)
		if (strcmp(cca_law.ops[i].name, name) == 0)
			return &cca_law.ops[i];
	cr_assert_fail("no operation %s", name);
	return NULL;
}

#define SOME 24

struct told {
	uint8_t state[SOME];
};

/* False: the law refuses the operation for some page. */
static bool tell(struct told *t, enum vm_state vm, enum gfn_op o, uint64_t first, uint64_t count)
{
	const struct arch_trail *trail = &cca_law.trails[vm][o];
	struct told next = *t;

	for (uint64_t i = first; i < first + count; i++) {
		enum gfn_state now = cca_law.states[t->state[i]].is, is;
		uint8_t *s = &next.state[i];

		if (!gfn_step(now, o, &is))
			return false;
		if (is == now)
			continue;
		*s = row(trail->item)->next[*s];
		cr_assert_neq(*s, ARCH_REFUSED);
		if (trail->done)
			*s = row(trail->done)->next[*s];
	}
	*t = next;
	return true;
}

/* The guest asks for a RIPAS, and the ledger is told how far that went. */
static void ask(struct bench *b, struct told *t, uint64_t first, const struct backend_ripas *what)
{
	uint64_t done;

	OK(b, machine_cca.set_ripas(b->k, &b->vm, what, &done, &b->err));
	cr_assert_leq(done, what->count);
	for (uint64_t i = first; i < first + done; i++) {
		t->state[i] = row(cca_law.ripas[what->ram][what->keep])->next[t->state[i]];
		cr_assert_neq(t->state[i], ARCH_REFUSED);
	}
	sound(b);
}

/* A launch that leaves some pages EMPTY. */
static void leave_empty(struct bench *b, struct told *t)
{
	for (uint64_t i = 0; i < SOME; i += 3) {
		struct backend_ripas what = { GFN + i, 1, false, false, 1 };
		uint64_t done;

		OK(b, machine_cca.set_ripas(b->k, &b->vm, &what, &done, &b->err));
		t->state[i] = row("cca.ripas_left_empty")->next[t->state[i]];
	}
}

static void expect_told(struct bench *b, const struct told *t)
{
	for (uint64_t i = 0; i < SOME; i++)
		expect(b, GFN + i, 1, cca_law.states[t->state[i]].is,
		       machine_cca.run_at(b->k, &b->vm, GFN + i, GFN + i + 1).pfn, cca_law.states[t->state[i]].name);
}

static enum pw_status on_hardware(struct bench *b, enum gfn_op o, uint64_t first, uint64_t count)
{
	uint64_t pfns[SOME], n = 0;

	for (uint64_t pfn = BASE; n < count; pfn++)
		if (cca_granule_state(&b->k->m, pfn << CCA_SHIFT) == CCA_UNDELEGATED)
			pfns[n++] = pfn;
	if (o != GFN_UNSHARE_IN && o != GFN_PAGE_IN)
		return op(b, o, GFN + first, count);
	return machine_cca.page_in(b->k, &b->vm, GFN + first, count, pfns, &b->err);
}

static uint64_t draw(uint64_t *seed, uint64_t n)
{
	*seed = *seed * 6364136223846793005u + 1442695040888963407u;
	return (*seed >> 33) % n;
}

Test(machine_cca, trails_tell_what_hardware_says, .timeout = 60)
{
	static const enum gfn_op ops[] = { GFN_SHARE, GFN_UNSHARE, GFN_PAGE_IN, GFN_PAGE_OUT, GFN_UNSHARE_IN };
	uint64_t seed = 1;
	unsigned done = 0;
	struct bench b;

	for (int life = 0; life < 20; life++) {
		struct told t;

		begin_at(&b, BASE, FRAMES, PAGES);
		memset(t.state, cca_law.rest[GFN_NORMAL], sizeof t.state);
		leave_empty(&b, &t);
		event(&b, VM_INIT_START);
		expect_told(&b, &t);
		for (int i = 0; i < 200; i++) {
			enum vm_state vm = i < 100 ? VM_TRANSIENT : VM_SECURE;
			enum gfn_op o = ops[draw(&seed, PW_ARRAY_LEN(ops))];
			uint64_t first = draw(&seed, SOME), count = 1 + draw(&seed, 4);

			if (i == 100) {
				event(&b, VM_INIT_DONE);
				for (uint64_t p = 0; p < SOME; p++)
					if (cca_law.states[t.state[p]].is == GFN_NORMAL)
						t.state[p] =
							(uint8_t)arch_page_after(&cca_law, t.state[p], GFN_SECURE_OUT);
			}
			if (first + count > SOME)
				continue;
			if (vm == VM_SECURE && draw(&seed, 4) == 0)
				ask(&b, &t, first,
				    &(struct backend_ripas){ GFN + first, count, draw(&seed, 2), false,
							     draw(&seed, 6) });
			else if (tell(&t, vm, o, first, count))
				OK(&b, on_hardware(&b, o, first, count));
			else
				continue;
			expect_told(&b, &t);
			done++;
		}
		end(&b);
	}
	cr_expect_gt(done, 1000, "only %u operations", done);
}

/* The guest hears how far its request went, and has none open after it. */
Test(machine_cca, a_request_is_closed_when_it_is_served)
{
	struct backend_ripas what = { GFN, 8, true, false, 3 };
	const struct cca_rec *rec;
	uint64_t done;
	struct bench b;

	begin_active(&b);
	rec = cca_rec_at(&b.k->m, ((struct cca_guest *)b.vm.guest)->r->recs[0]);
	for (int ram = 0; ram < 2; ram++) {
		what.ram = ram;
		OK(&b, machine_cca.set_ripas(b.k, &b.vm, &what, &done, &b.err));
		cr_expect_eq(done, 3);
		cr_expect(!rec->ripas.open && !rec->running);
	}
	end(&b);
}

/* A large range costs its stretches: blocks stay blocks, or become them again. */
Test(machine_cca, blocks_that_a_guest_gives_up_stay_blocks)
{
	struct backend_ripas what = { GFN, 4 * BLOCK, false, false, 4 * BLOCK };
	uint64_t done;
	struct bench b;

	begin_active(&b);
	OK(&b, page_in(&b, GFN, 4 * BLOCK, BASE));
	OK(&b, machine_cca.set_ripas(b.k, &b.vm, &what, &done, &b.err));
	cr_expect_eq(done, 4 * BLOCK);
	expect(&b, GFN, 4 * BLOCK, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/EMPTY");
	cr_expect_eq(at_level(&b, GFN + BLOCK).level, 2);
	what = (struct backend_ripas){ GFN + 3, 2, true, false, 2 };
	OK(&b, machine_cca.set_ripas(b.k, &b.vm, &what, &done, &b.err));
	cr_expect_eq(at_level(&b, GFN).level, 3);
	what.ram = false;
	OK(&b, machine_cca.set_ripas(b.k, &b.vm, &what, &done, &b.err));
	cr_expect_eq(at_level(&b, GFN).level, 2, "folded again");
	OK(&b, op(&b, GFN_PAGE_OUT, GFN, 4 * BLOCK));
	expect(&b, GFN, 4 * BLOCK, GFN_SECURE_OUT, 0, "UNASSIGNED/EMPTY");
	OK(&b, page_in(&b, GFN, 4 * BLOCK, BASE));
	expect(&b, GFN, 4 * BLOCK, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/EMPTY");
	cr_expect_eq(at_level(&b, GFN).level, 2);
	end(&b);
}

/* A gigabyte, in frames that follow each other. */
Test(machine_cca, a_gigabyte_comes_in_milliseconds, .timeout = 60)
{
	const uint64_t gib = (uint64_t)1 << 18;
	uint64_t *pfns = calloc(gib, sizeof *pfns);
	struct timespec t0, t1;
	struct bench b;

	cr_assert(pfns);
	for (uint64_t i = 0; i < gib; i++)
		pfns[i] = BASE + i;
	for (int active = 0; active < 2; active++) {
		double ms;

		begin_at(&b, BASE, gib, gib);
		event(&b, VM_INIT_START);
		if (active)
			event(&b, VM_INIT_DONE);
		clock_gettime(CLOCK_MONOTONIC, &t0);
		OK(&b, machine_cca.page_in(b.k, &b.vm, GFN, gib, pfns, &b.err));
		clock_gettime(CLOCK_MONOTONIC, &t1);
		ms = (double)(t1.tv_sec - t0.tv_sec) * 1e3 + (double)(t1.tv_nsec - t0.tv_nsec) / 1e6;
		cr_expect_lt(ms, 500, "%s: %.1f ms", active ? "ACTIVE" : "NEW", ms);
		expect(&b, GFN, gib, GFN_SECURE_RESIDENT, BASE, "ASSIGNED/RAM");
		cr_expect_lt(b.k->m.arena.nodes, 200, "blocks are folded: %zu nodes", b.k->m.arena.nodes);
		end(&b);
	}
	free(pfns);
}
