#include "engine/digest.h"
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/ledger_world.h"

#define FRAMES 4096

/* Two hosts that share a pool; a secure VM of two slots on the first, one of one slot on the second. */
struct scene {
	struct world w;
	struct host *a, *b;
	struct pool *cxl;
	struct vm *vm, *other;
};

static const struct slot two_slots[] = { { 1, 2048, 1024 }, { 0, 0, 1024 } };
static const struct slot one_slot[] = { { 0, 0, 1024 } };

static void scene_init(struct scene *s)
{
	*s = (struct scene){ .w.heap.fail_at = SIZE_MAX };
	world_init(&s->w);
	s->a = world_host(&s->w, 1, "boot-a", 0, FRAMES);
	s->b = world_host(&s->w, 2, "boot-b", 0, FRAMES);
	s->cxl = world_pool(&s->w, "cxl", 1 << 20, FRAMES, (struct host *[]){ s->a, s->b }, 2);
	s->vm = world_vm(&s->w, 10, s->a, two_slots, 2);
	s->other = world_vm(&s->w, 11, s->b, one_slot, 1);
	world_vm_to(&s->w, s->vm, VM_SECURE);
	world_vm_to(&s->w, s->other, VM_SECURE);
	ledger_commit(s->w.ledger);
}

static void scene_release(struct scene *s)
{
	world_holds(&s->w);
	world_release(&s->w);
}

static void claim(struct scene *s, struct vm *vm, uint64_t gfn, uint64_t count, const char *pool, uint64_t pfn)
{
	cr_assert_eq(world_apply(&s->w, vm->host, vm, GFN_PAGE_IN, gfn, count, pool, pfn), PROBLEM_NONE, "%s",
		     s->w.why.detail);
}

static enum gfn_state state_of(const struct vm *vm, uint64_t gfn)
{
	return gfn_entry_state(tree_get(&vm->pages, gfn));
}

/* A refusal is as documented and changed nothing. */
#define REFUSED(s, call, problem_)                                                                      \
	do {                                                                                            \
		char *before_ = ledger_dump((s)->w.ledger);                                             \
		enum pw_problem got_ = (call);                                                          \
		cr_assert_eq(got_, problem_, "%s, not %s", problem_slug(got_), problem_slug(problem_)); \
		cr_assert_eq((s)->w.why.problem, problem_);                                             \
		cr_assert_gt(strlen((s)->w.why.detail), 0);                                             \
		world_is_as(&(s)->w, before_);                                                          \
	} while (0)
#define ACCEPTED(s, call) cr_assert_eq(call, PROBLEM_NONE, "%s", (s)->w.why.detail)

/* Hosts. */

Test(ledger_host, new_then_known_then_the_same_again)
{
	struct scene s;
	struct host_put put;
	struct host_spec spec = host_spec_of(3, "boot-1", 16, 100);
	char *before;

	scene_init(&s);
	ACCEPTED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why));
	cr_assert(put.created && put.changed && !put.rebooted);
	cr_assert_eq(put.host->epoch, 1);
	cr_assert_eq(put.host->pools[0]->base, 16);
	cr_assert_eq(put.host->pools[0]->frames, 100);
	before = ledger_dump(s.w.ledger);
	ACCEPTED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why));
	cr_assert(!put.created && !put.changed && !put.rebooted);
	world_is_as(&s.w, before);
	spec.name = "renamed";
	ACCEPTED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why));
	cr_assert(!put.created && put.changed && !put.rebooted);
	cr_assert_str_eq(put.host->name, "renamed");
	cr_assert_eq(put.host->epoch, 1);
	scene_release(&s);
}

Test(ledger_host, hosts_are_listed_in_the_order_of_their_ids)
{
	struct scene s;
	struct pw_uuid id = uuid_of(1);

	scene_init(&s);
	cr_assert_eq(ledger_host_count(s.w.ledger), 2);
	cr_assert_eq(ledger_host_at(s.w.ledger, ledger_host_after(s.w.ledger, &id)), s.b);
	cr_assert_eq(ledger_host(s.w.ledger, &id), s.a);
	id = uuid_of(77);
	cr_assert_null(ledger_host(s.w.ledger, &id));
	cr_assert_eq(ledger_host_after(s.w.ledger, &id), 2);
	scene_release(&s);
}

Test(ledger_host, a_reboot_releases_what_its_vms_had_in_all_pools)
{
	struct scene s;
	struct host_put put;
	struct host_spec spec = host_spec_of(1, "boot-a2", 0, FRAMES);

	scene_init(&s);
	claim(&s, s.vm, 0, 512, "local", 100);
	claim(&s, s.vm, 512, 10, "cxl", 1 << 20);
	claim(&s, s.other, 0, 10, "cxl", (1 << 20) + 10);
	ACCEPTED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why));
	cr_assert(put.rebooted && put.changed && !put.created);
	cr_assert_eq(s.a->epoch, 2);
	cr_assert_eq(s.b->epoch, 1);
	cr_assert_eq(s.a->pools[0]->bound, 0);
	cr_assert_eq(s.cxl->bound, 10, "the other host's VM keeps its frames");
	cr_assert_eq(s.vm->state, VM_NORMAL);
	cr_assert_eq(s.vm->epoch, 2);
	cr_assert_eq(s.vm->counts.pages[GFN_NORMAL], 2048);
	cr_assert_eq(s.other->state, VM_SECURE);
	scene_release(&s);
}

Test(ledger_host, a_reboot_lifts_the_quarantine_of_the_local_pool_only)
{
	struct scene s;
	struct frame_range r[2];

	scene_init(&s);
	r[0] = (struct frame_range){ .pool = s.a->pools[0], .pfn = 5, .count = 3 };
	r[1] = (struct frame_range){ .pool = s.cxl, .pfn = (1 << 20) + 5, .count = 3 };
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.a, r, 2, &s.w.why));
	world_host(&s.w, 1, "boot-a2", 0, FRAMES);
	cr_assert_eq(s.a->pools[0]->quarantined, 0);
	cr_assert_eq(s.cxl->quarantined, 3);
	scene_release(&s);
}

Test(ledger_host, a_pool_grows_but_does_not_shrink_below_a_taken_frame)
{
	struct scene s;
	struct host_put put;
	struct frame_range r;
	struct host_spec spec;

	scene_init(&s);
	claim(&s, s.vm, 1, 10, "local", 0);
	spec = host_spec_of(1, "boot-a", 10, 100);
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_POOL_IN_USE);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_OUT, 1, 10, NULL, 0));
	claim(&s, s.vm, 0, 1, "local", 1000);
	world_host(&s.w, 1, "boot-a", 0, 2 * FRAMES);
	cr_assert_eq(s.a->pools[0]->frames, 2 * FRAMES);
	world_host(&s.w, 1, "boot-a", 1000, 1);
	spec = host_spec_of(1, "boot-a", 1001, 100);
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_POOL_IN_USE);
	spec = host_spec_of(1, "boot-a", 0, 1000);
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_POOL_IN_USE);
	spec = host_spec_of(1, "boot-a", 0, 0);
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_POOL_IN_USE);
	spec.has_local = false;
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_POOL_IN_USE);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_OUT, 0, 1, NULL, 0));
	r = (struct frame_range){ .pool = s.a->pools[0], .pfn = 1000, .count = 1 };
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.a, &r, 1, &s.w.why));
	spec = host_spec_of(1, "boot-a", 0, 1000);
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_POOL_IN_USE);
	world_host(&s.w, 1, "boot-a2", 0, 10);
	cr_assert_eq(s.a->pools[0]->frames, 10, "a new boot has nothing bound");
	scene_release(&s);
}

Test(ledger_host, a_pool_past_the_last_frame_is_refused)
{
	struct scene s;
	struct host_put put;
	struct host_spec spec = host_spec_of(3, "boot", TREE_PAGES - 10, 11);

	scene_init(&s);
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_INVALID_REQUEST);
	spec.base = UINT64_MAX;
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_INVALID_REQUEST);
	spec.base = TREE_PAGES - 11;
	ACCEPTED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why));
	scene_release(&s);
}

Test(ledger_host, the_page_size_stays_while_vms_or_pools_hang_on_it)
{
	struct scene s;
	struct host_put put;
	struct host_spec spec = host_spec_of(2, "boot-b", 0, FRAMES);
	struct host *c;

	scene_init(&s);
	spec.page_shift = 16;
	REFUSED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why), PROBLEM_POOL_MISMATCH);
	c = world_host(&s.w, 3, "boot-c", 0, FRAMES);
	spec = host_spec_of(3, "boot-c", 0, FRAMES);
	spec.page_shift = 16;
	ACCEPTED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why));
	cr_assert_eq(c->page_shift, 16);
	cr_assert_eq(c->pools[0]->page_shift, 16);
	scene_release(&s);
}

Test(ledger_host, a_fence_releases_all_and_a_put_brings_it_back)
{
	struct scene s;

	scene_init(&s);
	claim(&s, s.vm, 0, 100, "local", 0);
	claim(&s, s.vm, 100, 100, "cxl", 1 << 20);
	ACCEPTED(&s, ledger_host_current(s.a, "boot-a", 1, &s.w.why));
	ACCEPTED(&s, ledger_host_fence(s.w.ledger, s.a, &s.w.why));
	cr_assert(s.a->fenced);
	cr_assert_eq(s.a->epoch, 2);
	cr_assert_eq(s.a->pools[0]->bound + s.cxl->bound, 0);
	cr_assert_eq(s.vm->state, VM_NORMAL);
	REFUSED(&s, ledger_host_current(s.a, "boot-a", 2, &s.w.why), PROBLEM_HOST_FENCED);
	world_host(&s.w, 1, "boot-a", 0, FRAMES);
	cr_assert_not(s.a->fenced);
	ACCEPTED(&s, ledger_host_current(s.a, "boot-a", 2, &s.w.why));
	REFUSED(&s, ledger_host_current(s.a, "boot-a", 1, &s.w.why), PROBLEM_HOST_FENCED);
	REFUSED(&s, ledger_host_current(s.a, "boot-old", 2, &s.w.why), PROBLEM_HOST_FENCED);
	scene_release(&s);
}

/* Shared pools. */

static enum pw_problem pool_put(struct scene *s, uint64_t base, uint64_t frames, unsigned shift,
				struct host *const *hosts, size_t n)
{
	struct pool_spec spec = { "cxl", base, frames, shift, hosts, n };
	struct pool *p;
	bool created;

	return ledger_pool_put(s->w.ledger, &spec, &p, &created, &s->w.why);
}

Test(ledger_pool, is_attached_to_exactly_its_hosts)
{
	struct scene s;
	unsigned place;

	scene_init(&s);
	cr_assert_eq(host_pool(s.a, "cxl", &place), s.cxl);
	cr_assert_eq(host_pool(s.b, "cxl", &place), s.cxl);
	ACCEPTED(&s, pool_put(&s, 1 << 20, FRAMES, 12, (struct host *[]){ s.b, s.b }, 2));
	cr_assert_null(host_pool(s.a, "cxl", &place));
	cr_assert_eq(host_pool(s.b, "cxl", &place), s.cxl);
	cr_assert_eq(ledger_pool_count(s.w.ledger), 1);
	cr_assert_eq(ledger_pool(s.w.ledger, "cxl"), s.cxl);
	cr_assert_eq(ledger_pool_at(s.w.ledger, 0), s.cxl);
	cr_assert_eq(ledger_pool_after(s.w.ledger, "cxk"), 0);
	cr_assert_eq(ledger_pool_after(s.w.ledger, "cxl"), 1);
	cr_assert_null(ledger_pool(s.w.ledger, "local"));
	scene_release(&s);
}

Test(ledger_pool, no_frame_is_bound_twice_across_hosts)
{
	struct scene s;

	scene_init(&s);
	claim(&s, s.vm, 0, 10, "cxl", 1 << 20);
	REFUSED(&s, world_apply(&s.w, s.b, s.other, GFN_PAGE_IN, 0, 1, "cxl", (1 << 20) + 9), PROBLEM_FRAME_CONFLICT);
	claim(&s, s.other, 0, 1, "cxl", (1 << 20) + 10);
	claim(&s, s.other, 1, 1, "local", 0);
	claim(&s, s.vm, 10, 1, "local", 0);
	scene_release(&s);
}

Test(ledger_pool, keeps_its_frames_and_the_hosts_that_use_them)
{
	struct scene s;

	scene_init(&s);
	claim(&s, s.vm, 0, 10, "cxl", (1 << 20) + 50);
	REFUSED(&s, pool_put(&s, 1 << 20, 59, 12, (struct host *[]){ s.a }, 1), PROBLEM_POOL_IN_USE);
	REFUSED(&s, pool_put(&s, (1 << 20) + 51, 59, 12, (struct host *[]){ s.a }, 1), PROBLEM_POOL_IN_USE);
	REFUSED(&s, pool_put(&s, 1 << 20, FRAMES, 12, (struct host *[]){ s.b }, 1), PROBLEM_POOL_IN_USE);
	ACCEPTED(&s, pool_put(&s, (1 << 20) + 50, 10, 12, (struct host *[]){ s.a }, 1));
	REFUSED(&s, pool_put(&s, (1 << 20) + 50, 10, 16, NULL, 0), PROBLEM_POOL_MISMATCH);
	scene_release(&s);
}

Test(ledger_pool, refuses_what_does_not_fit)
{
	struct scene s;
	struct pool_spec local = { "local", 0, 10, 12, NULL, 0 };
	struct pool *p;
	bool created;

	scene_init(&s);
	REFUSED(&s, pool_put(&s, 1 << 20, FRAMES, 16, (struct host *[]){ s.a }, 1), PROBLEM_POOL_MISMATCH);
	REFUSED(&s, pool_put(&s, TREE_PAGES, 1, 12, NULL, 0), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, pool_put(&s, 0, TREE_PAGES + 1, 12, NULL, 0), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_pool_put(s.w.ledger, &local, &p, &created, &s.w.why), PROBLEM_INVALID_REQUEST);
	scene_release(&s);
}

Test(ledger_pool, a_host_has_places_for_255)
{
	struct scene s;
	struct pool_spec spec = { NULL, 0, 10, 12, &s.a, 1 };
	struct pool *p;
	char name[16];
	bool created;

	scene_init(&s);
	for (int i = 1; i < HOST_POOLS_MAX - 1; i++) {
		snprintf(name, sizeof name, "p%d", i);
		world_pool(&s.w, name, 0, 10, &s.a, 1);
	}
	spec.name = "one-more";
	REFUSED(&s, ledger_pool_put(s.w.ledger, &spec, &p, &created, &s.w.why), PROBLEM_LIMIT);
	claim(&s, s.vm, 0, 10, name, 0);
	cr_assert_eq(ledger_pool(s.w.ledger, name)->bound, 10);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	cr_assert_eq(ledger_pool(s.w.ledger, name)->bound, 0);
	scene_release(&s);
}

/* Quarantine. */

Test(ledger_quarantine, a_bound_frame_is_unbound_and_its_gfn_paged_out)
{
	struct scene s;
	struct frame_range r;

	scene_init(&s);
	claim(&s, s.vm, 0, 100, "local", 200);
	r = (struct frame_range){ .pool = s.a->pools[0], .pfn = 150, .count = 100 };
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.a, &r, 1, &s.w.why));
	cr_assert_eq(s.a->pools[0]->quarantined, 100);
	cr_assert_eq(s.a->pools[0]->bound, 50);
	cr_assert_eq(state_of(s.vm, 49), GFN_SECURE_OUT);
	cr_assert_eq(state_of(s.vm, 50), GFN_SECURE_RESIDENT);
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.a, &r, 1, &s.w.why));
	cr_assert_eq(s.a->pools[0]->quarantined, 100);
	scene_release(&s);
}

Test(ledger_quarantine, its_frames_are_claimed_only_after_release)
{
	struct scene s;
	struct frame_range r;

	scene_init(&s);
	r = (struct frame_range){ .pool = s.a->pools[0], .pfn = 10, .count = 2 };
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.a, &r, 1, &s.w.why));
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 0, 100, "local", 0), PROBLEM_FRAME_QUARANTINED);
	cr_assert_eq(s.w.why.frames, 2);
	cr_assert_eq(s.w.why.run_count, 1);
	cr_assert_eq(s.w.why.runs[0].pfn, 10);
	cr_assert_eq(s.w.why.runs[0].count, 2);
	cr_assert_str_eq(s.w.why.runs[0].pool, "local");
	r = (struct frame_range){ .pool = s.a->pools[0], .pfn = 0, .count = FRAMES };
	ACCEPTED(&s, ledger_unquarantine(s.w.ledger, &r, 1, &s.w.why));
	claim(&s, s.vm, 0, 100, "local", 0);
	ACCEPTED(&s, ledger_unquarantine(s.w.ledger, &r, 1, &s.w.why));
	cr_assert_eq(s.a->pools[0]->bound, 100, "release leaves bound frames alone");
	scene_release(&s);
}

Test(ledger_quarantine, is_refused_outside_the_pool_and_for_the_frames_of_other_hosts)
{
	struct scene s;
	struct frame_range r[2];

	scene_init(&s);
	claim(&s, s.other, 0, 1, "cxl", 1 << 20);
	r[0] = (struct frame_range){ .pool = s.a->pools[0], .pfn = 10, .count = 2 };
	r[1] = (struct frame_range){ .pool = s.a->pools[0], .pfn = FRAMES - 1, .count = 2 };
	REFUSED(&s, ledger_quarantine(s.w.ledger, s.a, r, 2, &s.w.why), PROBLEM_FRAME_OUT_OF_POOL);
	cr_assert_str_eq(s.w.why.pool, "local");
	REFUSED(&s, ledger_unquarantine(s.w.ledger, r, 2, &s.w.why), PROBLEM_FRAME_OUT_OF_POOL);
	r[1].count = 0;
	REFUSED(&s, ledger_quarantine(s.w.ledger, s.a, r, 2, &s.w.why), PROBLEM_FRAME_OUT_OF_POOL);
	r[1] = (struct frame_range){ .pool = s.cxl, .pfn = 1 << 20, .count = 5 };
	REFUSED(&s, ledger_quarantine(s.w.ledger, s.a, r, 2, &s.w.why), PROBLEM_VM_NOT_ON_HOST);
	cr_assert(pw_uuid_equal(&s.w.why.host, &s.b->id) && pw_uuid_equal(&s.w.why.vm, &s.other->id));
	scene_release(&s);
}

/* VMs. */

static enum pw_problem vm_create(struct scene *s, struct vm_spec spec)
{
	struct vm *vm;

	if (!spec.host)
		spec.host = s->a;
	spec.id = uuid_of(spec.id.b[0] ? spec.id.b[0] : 12);
	return ledger_vm_create(s->w.ledger, &spec, &vm, &s->w.why);
}

Test(ledger_vm, creation_is_refused_for_each_fault)
{
	static const struct slot overlap[] = { { 0, 0, 10 }, { 1, 20, 10 }, { 2, 9, 1 } };
	static const struct slot covers[] = { { 0, 5, 1 }, { 1, 0, 10 } };
	static const struct slot twice[] = { { 7, 0, 10 }, { 3, 20, 1 }, { 7, 10, 10 } };
	static const struct slot past[] = { { 0, 0, 1 }, { 1, TREE_PAGES - 1, 2 } };
	static const struct slot empty[] = { { 0, 0, 0 } };
	static const struct slot under_bit[] = { { 0, ((uint64_t)1 << 35) - 1, 2 } };
	struct scene s;

	scene_init(&s);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .id = uuid_of(10), .arch = ARCH_SNP }), PROBLEM_VM_EXISTS);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .arch = ARCH_PEF }), PROBLEM_ARCH_UNSUPPORTED);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .arch = ARCH_SNP, .slots = overlap, .slot_count = 3 }),
		PROBLEM_SLOT_OVERLAP);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .arch = ARCH_SNP, .slots = covers, .slot_count = 2 }),
		PROBLEM_SLOT_OVERLAP);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .arch = ARCH_SNP, .slots = twice, .slot_count = 3 }),
		PROBLEM_SLOT_OVERLAP);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .arch = ARCH_SNP, .slots = past, .slot_count = 2 }),
		PROBLEM_INVALID_REQUEST);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .arch = ARCH_SNP, .slots = empty, .slot_count = 1 }),
		PROBLEM_INVALID_REQUEST);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .arch = ARCH_TDX, .shared_bit = 11 }), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, vm_create(&s, (struct vm_spec){ .arch = ARCH_TDX, .shared_bit = 52 }), PROBLEM_INVALID_REQUEST);
	REFUSED(&s,
		vm_create(&s,
			  (struct vm_spec){ .arch = ARCH_TDX, .shared_bit = 47, .slots = under_bit, .slot_count = 1 }),
		PROBLEM_INVALID_REQUEST);
	REFUSED(&s,
		vm_create(&s, (struct vm_spec){ .arch = ARCH_TDX, .slots = overlap, .slot_count = VM_SLOTS_MAX + 1 }),
		PROBLEM_LIMIT);
	scene_release(&s);
}

Test(ledger_vm, has_its_alias_by_its_shared_bit)
{
	struct vm_spec spec = {
		.id = uuid_of(12), .arch = ARCH_TDX, .shared_bit = 47, .slots = one_slot, .slot_count = 1
	};
	struct scene s;
	struct vm *vm;

	scene_init(&s);
	spec.host = s.a;
	ACCEPTED(&s, ledger_vm_create(s.w.ledger, &spec, &vm, &s.w.why));
	cr_assert_eq(vm->alias.mask, (uint64_t)1 << 35);
	cr_assert_eq(vm->shared_bit, 47);
	cr_assert_str_eq(vm->name, "");
	world_vm_to(&s.w, vm, VM_SECURE);
	REFUSED(&s, world_apply(&s.w, s.a, vm, GFN_SHARE, vm->alias.mask, 1, NULL, 0), PROBLEM_GFN_OUT_OF_SLOT);
	scene_release(&s);
}

Test(ledger_vm, many_slots_in_falling_order_are_sorted)
{
	static struct slot slots[VM_SLOTS_MAX];
	struct scene s;
	struct vm *vm;

	scene_init(&s);
	for (uint32_t i = 0; i < VM_SLOTS_MAX; i++)
		slots[i] = (struct slot){ i, (VM_SLOTS_MAX - i) * (uint64_t)16, 16 };
	vm = world_vm(&s.w, 12, s.a, slots, VM_SLOTS_MAX);
	cr_assert_eq(vm->slots[0].number, VM_SLOTS_MAX - 1);
	cr_assert_eq(vm->counts.pages[GFN_NORMAL], VM_SLOTS_MAX * (uint64_t)16);
	REFUSED(&s, ledger_slot_put(s.w.ledger, vm, &(struct slot){ VM_SLOTS_MAX, 0, 1 }, &(bool){ 0 }, &s.w.why),
		PROBLEM_LIMIT);
	scene_release(&s);
}

Test(ledger_vm, may_have_no_slots)
{
	struct scene s;
	struct vm *vm;
	bool created;

	scene_init(&s);
	vm = world_vm(&s.w, 12, s.a, NULL, 0);
	world_vm_to(&s.w, vm, VM_SECURE);
	REFUSED(&s, world_apply(&s.w, s.a, vm, GFN_SHARE, 0, 1, NULL, 0), PROBLEM_GFN_OUT_OF_SLOT);
	ACCEPTED(&s, ledger_slot_put(s.w.ledger, vm, &one_slot[0], &created, &s.w.why));
	ACCEPTED(&s, world_apply(&s.w, s.a, vm, GFN_SHARE, 0, 1, NULL, 0));
	scene_release(&s);
}

Test(ledger_vm, is_deleted_only_when_normal)
{
	struct scene s;
	struct pw_uuid id;

	scene_init(&s);
	claim(&s, s.vm, 0, 7, "local", 0);
	REFUSED(&s, ledger_vm_delete(s.w.ledger, s.vm, &s.w.why), PROBLEM_VM_BUSY);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	id = s.vm->id;
	ACCEPTED(&s, ledger_vm_delete(s.w.ledger, s.vm, &s.w.why));
	cr_assert_null(ledger_vm(s.w.ledger, &id));
	cr_assert_eq(ledger_vm_count(s.w.ledger), 1);
	cr_assert_eq(s.a->vms, 0);
	scene_release(&s);
}

/* What hardware may have: from the start (or the handing out of a launch) to the end, in normal VMs as well. */
Test(ledger_vm, is_on_hardware_from_its_start_to_its_end)
{
	static const struct {
		enum vm_event event;
		bool after;
	} steps[] = {
		{ VM_TERMINATE, false }, { VM_START, true },      { VM_TERMINATE, false },
		{ VM_START, true },      { VM_INIT_START, true }, { VM_INIT_ABORT, false },
		{ VM_INIT_START, true }, { VM_INIT_DONE, true },  { VM_TERMINATE, false },
	};
	struct scene s;
	struct vm *vm;
	bool changed;

	scene_init(&s);
	vm = world_vm(&s.w, 12, s.a, two_slots, 2);
	cr_assert(!vm->on_hardware);
	for (size_t i = 0; i < PW_ARRAY_LEN(steps); i++) {
		bool before = vm->on_hardware;
		undo_mark mark = ledger_mark(s.w.ledger);

		cr_assert_eq(vm_event_releases(vm, steps[i].event), before && !steps[i].after, "step %zu", i);
		ACCEPTED(&s, ledger_vm_event(s.w.ledger, vm, steps[i].event, &s.w.why));
		cr_assert_eq(vm->on_hardware, steps[i].after, "step %zu", i);
		ledger_rollback(s.w.ledger, mark);
		cr_assert_eq(vm->on_hardware, before, "step %zu taken back", i);
		ACCEPTED(&s, ledger_vm_event(s.w.ledger, vm, steps[i].event, &s.w.why));
		world_holds(&s.w);
	}
	ACCEPTED(&s, ledger_vm_handed_out(s.w.ledger, vm, &changed, &s.w.why));
	cr_assert(changed && vm->on_hardware && vm->state == VM_NORMAL);
	ACCEPTED(&s, ledger_vm_handed_out(s.w.ledger, vm, &changed, &s.w.why));
	cr_assert(!changed);
	ledger_rollback(s.w.ledger, 0);
	scene_release(&s);
}

Test(ledger_vm, that_is_normal_leaves_hardware_by_a_reboot_or_a_fence)
{
	struct host_spec spec = host_spec_of(1, "boot-a2", 0, FRAMES);
	struct host_put put;
	struct scene s;
	struct vm *vm;

	scene_init(&s);
	vm = world_vm(&s.w, 12, s.a, two_slots, 2);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, vm, VM_START, &s.w.why));
	ledger_commit(s.w.ledger);
	ACCEPTED(&s, ledger_host_put(s.w.ledger, &spec, &put, &s.w.why));
	cr_assert(put.rebooted && !vm->on_hardware && vm->epoch == 1);
	ledger_rollback(s.w.ledger, 0);
	cr_assert(vm->on_hardware);
	ACCEPTED(&s, ledger_host_fence(s.w.ledger, s.a, &s.w.why));
	cr_assert(!vm->on_hardware && vm->epoch == 1);
	scene_release(&s);
}

/* What is leaving keeps its frames, and gets no others; what is redone was decided before. */
Test(ledger_vm, that_is_leaving_claims_nothing)
{
	static const struct gfn_run run = { 20, 1, 50 };
	struct vm_leaving all = { .op = "terminate" };
	struct scene s;
	struct item redone;
	bool changed;

	scene_init(&s);
	claim(&s, s.vm, 0, 8, "local", 0);
	s.vm->leaving = &all;
	for (int i = 0; i < 2; i++) {
		enum gfn_op op = i ? GFN_UNSHARE : GFN_PAGE_IN;

		REFUSED(&s, world_apply(&s.w, s.a, s.vm, op, 20, 1, "local", 50), PROBLEM_VM_TRANSITION);
		cr_assert(strstr(s.w.why.detail, "operation terminate"), "%s", s.w.why.detail);
	}
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_UNSHARE, 20, 1, NULL, 0));
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 0, 1, NULL, 0));
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_OUT, 1, 1, NULL, 0));
	redone = (struct item){ .vm = s.vm->id,
				.op = GFN_PAGE_IN,
				.framed = true,
				.pool = "local",
				.runs = &run,
				.run_count = 1,
				.decided = true };
	ACCEPTED(&s, ledger_apply(s.w.ledger, s.a, &redone, &changed, &s.w.why));
	s.vm->leaving = NULL;
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 1, 1, "local", 60));
	scene_release(&s);
}

Test(ledger_vm, a_slot_that_is_leaving_claims_nothing_and_the_others_do)
{
	struct vm_leaving *some = malloc(sizeof *some + sizeof some->slots[0]);
	struct gfn_run runs[] = { { 0, 1, 50 }, { 2048, 1, 51 } };
	struct scene s;
	struct item both;
	bool changed;

	cr_assert_not_null(some);
	scene_init(&s);
	*some = (struct vm_leaving){ .n = 1 };
	some->slots[0] = s.vm->slots[1].number;
	s.vm->leaving = some;
	cr_assert(vm_slot_is_leaving(s.vm, s.vm->slots[1].number) && !vm_slot_is_leaving(s.vm, s.vm->slots[0].number));
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 2048, 2, "local", 50), PROBLEM_GFN_TRANSITION);
	cr_assert(s.w.why.gfn == 2048 && strstr(s.w.why.detail, "operation unplug"), "%s", s.w.why.detail);
	both = (struct item){
		.vm = s.vm->id, .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = runs, .run_count = 2
	};
	REFUSED(&s, ledger_apply(s.w.ledger, s.a, &both, &changed, &s.w.why), PROBLEM_GFN_TRANSITION);
	both.decided = true;
	ACCEPTED(&s, ledger_apply(s.w.ledger, s.a, &both, &changed, &s.w.why));
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 1, 1, "local", 60));
	s.vm->leaving = NULL;
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 2049, 1, "local", 61));
	free(some);
	scene_release(&s);
}

Test(ledger_vm, tells_whether_a_slot_fits)
{
	struct slot same, over = { 9, 0, 1 }, fits = { 9, 100000, 1 };
	struct scene s;
	bool there;

	scene_init(&s);
	same = s.vm->slots[0];
	ACCEPTED(&s, vm_slot_fits(s.vm, &same, &there, &s.w.why));
	cr_assert(there && vm_has_slot(s.vm, same.number) && !vm_has_slot(s.vm, 9));
	ACCEPTED(&s, vm_slot_fits(s.vm, &fits, &there, &s.w.why));
	cr_assert(!there);
	REFUSED(&s, vm_slot_fits(s.vm, &over, &there, &s.w.why), PROBLEM_SLOT_OVERLAP);
	same.pages++;
	REFUSED(&s, vm_slot_fits(s.vm, &same, &there, &s.w.why), PROBLEM_SLOT_OVERLAP);
	scene_release(&s);
}

Test(ledger_vm, a_deletion_and_what_took_its_number_are_taken_back)
{
	struct scene s;
	char *before;
	uint32_t number;

	scene_init(&s);
	claim(&s, s.vm, 0, 7, "local", 0);
	claim(&s, s.vm, 7, 7, "cxl", 1 << 20);
	number = s.vm->number;
	before = ledger_dump(s.w.ledger);
	ledger_commit(s.w.ledger);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	ACCEPTED(&s, ledger_vm_delete(s.w.ledger, s.vm, &s.w.why));
	cr_assert_eq(world_vm(&s.w, 10, s.b, one_slot, 1)->number, number);
	ledger_rollback(s.w.ledger, 0);
	cr_assert_eq(ledger_vm_by_number(s.w.ledger, number), s.vm);
	world_is_as(&s.w, before);
	scene_release(&s);
}

Test(ledger_vm, many_have_numbers_of_their_own)
{
	struct scene s;
	struct pw_uuid id = uuid_of(11);

	scene_init(&s);
	for (unsigned i = 0; i < 100; i++) {
		struct vm *vm = world_vm(&s.w, 1000 + i, s.a, one_slot, 1);

		cr_assert_eq(ledger_vm_by_number(s.w.ledger, vm->number), vm);
	}
	cr_assert_eq(ledger_vm_count(s.w.ledger), 102);
	cr_assert_null(ledger_vm_by_number(s.w.ledger, 5000000));
	cr_assert_geq(ledger_vm_after(s.w.ledger, &id), 1);
	scene_release(&s);
}

Test(ledger_vm, an_error_cell_names_state_and_event)
{
	struct scene s;

	scene_init(&s);
	REFUSED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_INIT_DONE, &s.w.why), PROBLEM_VM_TRANSITION);
	cr_assert_eq(s.w.why.vm_state, VM_SECURE);
	cr_assert_eq(s.w.why.vm_event, VM_INIT_DONE);
	cr_assert_null(s.w.why.op);
	cr_assert_eq(ledger_vm_event(s.w.ledger, s.vm, VM_START, NULL), PROBLEM_VM_TRANSITION);
	scene_release(&s);
}

Test(ledger_vm, init_done_pages_out_what_was_left_normal)
{
	struct scene s;

	scene_init(&s);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	world_vm_to(&s.w, s.vm, VM_TRANSIENT);
	cr_assert_eq(s.vm->counts.pages[GFN_NORMAL], 2048);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 10, 20, NULL, 0));
	claim(&s, s.vm, 2048, 100, "local", 7);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_INIT_DONE, &s.w.why));
	cr_assert_eq(s.vm->counts.pages[GFN_NORMAL], 0);
	cr_assert_eq(s.vm->counts.pages[GFN_SHARED], 20);
	cr_assert_eq(s.vm->counts.pages[GFN_SECURE_RESIDENT], 100);
	cr_assert_eq(s.vm->counts.pages[GFN_SECURE_OUT], 2048 - 120);
	scene_release(&s);
}

Test(ledger_vm, abort_gives_back_every_frame)
{
	struct scene s;

	scene_init(&s);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_START, &s.w.why));
	cr_assert_eq(s.vm->epoch, 2, "start of a normal VM changes nothing");
	world_vm_to(&s.w, s.vm, VM_TRANSIENT);
	claim(&s, s.vm, 0, 1000, "local", 3);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_INIT_ABORT, &s.w.why));
	cr_assert_eq(s.a->pools[0]->bound, 0);
	cr_assert_eq(s.vm->epoch, 3);
	cr_assert_eq(s.vm->counts.pages[GFN_NORMAL], 2048);
	scene_release(&s);
}

/* Slots. */

Test(ledger_slot, a_new_one_is_secure_and_out_in_a_secure_vm_and_normal_in_others)
{
	struct scene s;
	struct slot slot = { 5, 1024, 1024 };
	bool created;

	scene_init(&s);
	ACCEPTED(&s, ledger_slot_put(s.w.ledger, s.vm, &slot, &created, &s.w.why));
	cr_assert(created);
	cr_assert_eq(state_of(s.vm, 1024), GFN_SECURE_OUT);
	cr_assert_eq(s.vm->counts.pages[GFN_SECURE_OUT], 3072);
	ACCEPTED(&s, ledger_slot_put(s.w.ledger, s.vm, &slot, &created, &s.w.why));
	cr_assert_not(created);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	world_vm_to(&s.w, s.vm, VM_TRANSIENT);
	slot = (struct slot){ 6, 4096, 10 };
	ACCEPTED(&s, ledger_slot_put(s.w.ledger, s.vm, &slot, &created, &s.w.why));
	cr_assert_eq(s.vm->counts.pages[GFN_NORMAL], 3072 + 10);
	scene_release(&s);
}

Test(ledger_slot, is_refused_where_it_meets_another)
{
	static const struct slot bad[] = { { 5, 1023, 2 }, { 5, 2047, 2 }, { 5, 0, 4096 },
					   { 5, 10, 1 },   { 0, 0, 1025 }, { 0, 5000, 1024 } };
	struct scene s;
	bool created = true;

	scene_init(&s);
	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++)
		REFUSED(&s, ledger_slot_put(s.w.ledger, s.vm, &bad[i], &created, &s.w.why), PROBLEM_SLOT_OVERLAP);
	REFUSED(&s, ledger_slot_put(s.w.ledger, s.vm, &(struct slot){ 5, TREE_PAGES, 1 }, &created, &s.w.why),
		PROBLEM_INVALID_REQUEST);
	cr_assert_not(created);
	scene_release(&s);
}

Test(ledger_slot, deletion_releases_its_frames_and_nothing_else)
{
	struct scene s;

	scene_init(&s);
	claim(&s, s.vm, 1000, 24, "local", 1000);
	claim(&s, s.vm, 2048, 24, "local", 1024);
	ACCEPTED(&s, ledger_slot_delete(s.w.ledger, s.vm, 0, &s.w.why));
	cr_assert_eq(s.a->pools[0]->bound, 24);
	cr_assert_eq(s.vm->slot_count, 1);
	cr_assert_eq(s.vm->counts.pages[GFN_SECURE_OUT], 1000);
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 1000, 1, NULL, 0), PROBLEM_GFN_OUT_OF_SLOT);
	REFUSED(&s, ledger_slot_delete(s.w.ledger, s.vm, 0, &s.w.why), PROBLEM_SLOT_NOT_FOUND);
	ACCEPTED(&s, ledger_slot_delete(s.w.ledger, s.vm, 1, &s.w.why));
	cr_assert_eq(s.a->pools[0]->bound, 0);
	cr_assert_eq(s.vm->slot_count, 0);
	scene_release(&s);
}

/* Transitions. */

Test(ledger_apply, share_releases_the_frame_and_unshare_with_one_binds_it)
{
	struct scene s;

	scene_init(&s);
	claim(&s, s.vm, 0, 10, "local", 0);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 5, 10, NULL, 0));
	cr_assert_eq(s.a->pools[0]->bound, 5);
	cr_assert_eq(state_of(s.vm, 14), GFN_SHARED);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_UNSHARE, 5, 20, "cxl", 1 << 20));
	cr_assert_eq(s.cxl->bound, 20);
	cr_assert_eq(state_of(s.vm, 24), GFN_SECURE_RESIDENT);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_UNSHARE, 0, 30, NULL, 0));
	cr_assert_eq(state_of(s.vm, 24), GFN_SECURE_RESIDENT, "a resident page stays resident");
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_OUT, 0, 25, NULL, 0));
	cr_assert_eq(s.vm->counts.pages[GFN_SECURE_OUT], 2048);
	scene_release(&s);
}

Test(ledger_apply, what_was_so_already_is_no_change)
{
	struct scene s;
	struct gfn_run runs[] = { { 0, 10, 0 }, { 4, 1, 0 } };
	struct item it = { .op = GFN_SHARE, .runs = runs, .run_count = 2 };
	bool changed;

	scene_init(&s);
	it.vm = s.vm->id;
	ACCEPTED(&s, ledger_apply(s.w.ledger, s.a, &it, &changed, &s.w.why));
	cr_assert(changed);
	ACCEPTED(&s, ledger_apply(s.w.ledger, s.a, &it, &changed, &s.w.why));
	cr_assert_not(changed);
	scene_release(&s);
}

Test(ledger_apply, each_refusal_names_its_facts)
{
	struct scene s;
	struct vm gone = { .id = uuid_of(99) };

	scene_init(&s);
	REFUSED(&s, world_apply(&s.w, s.a, &gone, GFN_SHARE, 0, 1, NULL, 0), PROBLEM_VM_NOT_FOUND);
	cr_assert(pw_uuid_equal(&s.w.why.vm, &gone.id));
	REFUSED(&s, world_apply(&s.w, s.b, s.vm, GFN_SHARE, 0, 1, NULL, 0), PROBLEM_VM_NOT_ON_HOST);
	cr_assert(pw_uuid_equal(&s.w.why.host, &s.a->id));
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 1000, 100, NULL, 0), PROBLEM_GFN_OUT_OF_SLOT);
	cr_assert_eq(s.w.why.gfn, 1024);
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 1500, 1, NULL, 0), PROBLEM_GFN_OUT_OF_SLOT);
	cr_assert_eq(s.w.why.gfn, 1500);
	claim(&s, s.vm, 0, 5, "local", 0);
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_OUT, 0, 10, NULL, 0), PROBLEM_GFN_TRANSITION);
	cr_assert_eq(s.w.why.gfn, 5);
	cr_assert_eq(s.w.why.gfn_state, GFN_SECURE_OUT);
	cr_assert_str_eq(s.w.why.op, "page_out");
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_UNSHARE, 0, 1, "local", 50), PROBLEM_GFN_TRANSITION);
	cr_assert_eq(s.w.why.gfn_state, GFN_SECURE_RESIDENT);
	cr_assert_str_eq(s.w.why.op, "unshare");
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 0, 1, NULL, 0), PROBLEM_VM_TRANSITION);
	cr_assert_eq(s.w.why.vm_state, VM_NORMAL);
	cr_assert_str_eq(s.w.why.op, "share");
	scene_release(&s);
}

Test(ledger_apply, a_run_over_two_adjacent_slots_is_in_neither)
{
	struct scene s;
	bool created;

	scene_init(&s);
	ACCEPTED(&s, ledger_slot_put(s.w.ledger, s.vm, &(struct slot){ 5, 1024, 10 }, &created, &s.w.why));
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 1023, 2, NULL, 0), PROBLEM_GFN_OUT_OF_SLOT);
	cr_assert_eq(s.w.why.gfn, 1024);
	scene_release(&s);
}

Test(ledger_apply, frames_outside_the_hosts_pools_are_refused)
{
	struct scene s;

	scene_init(&s);
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 0, 1, "local", FRAMES), PROBLEM_FRAME_OUT_OF_POOL);
	cr_assert_str_eq(s.w.why.pool, "local");
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 0, 2, "local", FRAMES - 1), PROBLEM_FRAME_OUT_OF_POOL);
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 0, 2, "cxl", (1 << 20) - 1), PROBLEM_FRAME_OUT_OF_POOL);
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 0, 1, "far", 0), PROBLEM_FRAME_OUT_OF_POOL);
	cr_assert_str_eq(s.w.why.pool, "far");
	scene_release(&s);
}

Test(ledger_apply, a_conflict_names_at_most_16_maximal_runs_and_counts_all)
{
	struct scene s;
	const struct frame_run *run = s.w.why.runs;

	scene_init(&s);
	for (uint64_t i = 0; i < 20; i++)
		claim(&s, s.other, i * 8, 5, "cxl", (1 << 20) + i * 10);
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 0, 1000, "cxl", (1 << 20) + 2), PROBLEM_FRAME_CONFLICT);
	cr_assert_eq(s.w.why.run_count, REFUSAL_RUNS_MAX);
	cr_assert_eq(s.w.why.frames, 98);
	cr_assert(run[0].pfn == (1 << 20) + 2 && run[0].count == 3 && run[0].gfn == 2,
		  "the first is cut to the window");
	cr_assert(run[15].pfn == (1 << 20) + 150 && run[15].count == 5 && run[15].gfn == 120);
	cr_assert(pw_uuid_equal(&run[15].vm, &s.other->id));
	cr_assert_str_eq(run[15].pool, "cxl");
	scene_release(&s);
}

Test(ledger_apply, a_frame_of_ones_own_is_a_conflict_too)
{
	struct scene s;
	struct gfn_run runs[] = { { 0, 10, 0 }, { 20, 10, 9 } };
	struct item it = { .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = runs, .run_count = 2 };
	bool changed = true;

	scene_init(&s);
	it.vm = s.vm->id;
	REFUSED(&s, ledger_apply(s.w.ledger, s.a, &it, &changed, &s.w.why), PROBLEM_FRAME_CONFLICT);
	cr_assert_eq(s.w.why.frames, 1);
	cr_assert_eq(s.w.why.runs[0].gfn, 9);
	cr_assert_not(changed);
	scene_release(&s);
}

/* Which check comes first: each case holds two faults or more. */
static struct order_case {
	bool other_host, normal, out_of_slot, wrong_gfn, out_of_pool, quarantined, bound;
	enum pw_problem first;
} order_cases[] = {
	{ true, true, true, true, true, false, false, PROBLEM_VM_NOT_ON_HOST },
	{ false, true, true, false, true, false, false, PROBLEM_VM_TRANSITION },
	{ false, false, true, true, true, true, true, PROBLEM_GFN_OUT_OF_SLOT },
	{ false, false, false, true, true, false, false, PROBLEM_GFN_TRANSITION },
	{ false, false, false, true, false, true, true, PROBLEM_GFN_TRANSITION },
	{ false, false, false, false, true, true, true, PROBLEM_FRAME_OUT_OF_POOL },
	{ false, false, false, false, false, true, true, PROBLEM_FRAME_QUARANTINED },
	{ false, false, false, false, false, false, true, PROBLEM_FRAME_CONFLICT },
};

ParameterizedTestParameters(ledger_apply, checks_are_made_in_order)
{
	return cr_make_param_array(struct order_case, order_cases, PW_ARRAY_LEN(order_cases));
}

/* Frame 100 is bound, 104 in quarantine, FRAMES outside. */
ParameterizedTest(struct order_case *c, ledger_apply, checks_are_made_in_order)
{
	uint64_t pfn = c->out_of_pool ? FRAMES - 2 : 100;
	struct frame_range r;
	struct scene s;

	scene_init(&s);
	r = (struct frame_range){ .pool = s.a->pools[0], .pfn = c->out_of_pool ? FRAMES - 1 : 104, .count = 1 };
	if (c->quarantined)
		ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.a, &r, 1, &s.w.why));
	if (c->bound)
		claim(&s, s.vm, 2048, 1, "local", pfn);
	if (c->wrong_gfn && !c->normal)
		ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 1020, 4, NULL, 0));
	if (c->normal)
		ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why));
	REFUSED(&s,
		world_apply(&s.w, c->other_host ? s.b : s.a, s.vm, GFN_PAGE_IN, c->out_of_slot ? 1016 : 1010, 14,
			    "local", pfn),
		c->first);
	scene_release(&s);
}

Test(ledger_apply, the_first_refused_run_decides)
{
	struct gfn_run runs[] = { { 0, 1, 0 }, { 1, 1, FRAMES }, { 1500, 1, 1 } };
	struct item it = { .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = runs, .run_count = 3 };
	struct scene s;
	bool changed;

	scene_init(&s);
	it.vm = s.vm->id;
	REFUSED(&s, ledger_apply(s.w.ledger, s.a, &it, &changed, &s.w.why), PROBLEM_FRAME_OUT_OF_POOL);
	cr_assert_eq(ledger_apply(s.w.ledger, s.a, &it, &changed, NULL), PROBLEM_FRAME_OUT_OF_POOL);
	it.pool = "far";
	cr_assert_eq(ledger_apply(s.w.ledger, s.a, &it, &changed, NULL), PROBLEM_FRAME_OUT_OF_POOL);
	scene_release(&s);
}

Test(ledger_apply, refusals_without_a_listener_are_the_same)
{
	struct frame_range r;
	struct gfn_run run = { 0, 1, 5 };
	struct item it = { .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = &run, .run_count = 1 };
	struct scene s;
	bool changed;

	scene_init(&s);
	it.vm = s.vm->id;
	r = (struct frame_range){ .pool = s.a->pools[0], .pfn = 5, .count = 1 };
	claim(&s, s.vm, 9, 1, "local", 5);
	cr_assert_eq(ledger_apply(s.w.ledger, s.a, &it, &changed, NULL), PROBLEM_FRAME_CONFLICT);
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.a, &r, 1, NULL));
	cr_assert_eq(ledger_apply(s.w.ledger, s.a, &it, &changed, NULL), PROBLEM_FRAME_QUARANTINED);
	cr_assert_eq(ledger_apply(s.w.ledger, s.b, &it, &changed, NULL), PROBLEM_VM_NOT_ON_HOST);
	run.gfn = 1024;
	cr_assert_eq(ledger_apply(s.w.ledger, s.a, &it, &changed, NULL), PROBLEM_GFN_OUT_OF_SLOT);
	it.vm = uuid_of(99);
	cr_assert_eq(ledger_apply(s.w.ledger, s.a, &it, &changed, NULL), PROBLEM_VM_NOT_FOUND);
	ACCEPTED(&s, ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, NULL));
	it.vm = s.vm->id;
	cr_assert_eq(ledger_apply(s.w.ledger, s.a, &it, &changed, NULL), PROBLEM_VM_TRANSITION);
	scene_release(&s);
}

/* Batches. */

static void batch_of_three(struct scene *s, struct gfn_run runs[3], struct item items[3])
{
	runs[0] = (struct gfn_run){ 0, 10, 0 };
	runs[1] = (struct gfn_run){ 1020, 10, 0 }; /* refused */
	runs[2] = (struct gfn_run){ 0, 20, 0 };
	for (int i = 0; i < 3; i++)
		items[i] = (struct item){
			.vm = s->vm->id, .op = i == 2 ? GFN_UNSHARE : GFN_SHARE, .runs = &runs[i], .run_count = 1
		};
}

Test(ledger_batch, without_atomic_each_item_stands_alone_and_sees_those_before)
{
	struct item_result results[3];
	struct gfn_run runs[3];
	struct item items[3];
	struct scene s;

	scene_init(&s);
	batch_of_three(&s, runs, items);
	cr_assert_eq(ledger_apply_batch(s.w.ledger, s.a, items, 3, false, results), 1);
	cr_assert(results[0].problem == PROBLEM_NONE && results[0].changed && !results[0].why);
	cr_assert(results[1].problem == PROBLEM_GFN_OUT_OF_SLOT && !results[1].changed && results[1].why);
	cr_assert_eq(results[1].why->gfn, 1024);
	cr_assert(results[2].problem == PROBLEM_NONE && results[2].changed);
	cr_assert_eq(s.vm->counts.pages[GFN_SHARED], 0);
	ledger_results_release(s.w.ledger, results, 3);
	ledger_results_release(s.w.ledger, results, 3);
	scene_release(&s);
}

Test(ledger_batch, atomic_leaves_nothing_after_a_refusal)
{
	struct item_result results[3] = { { .problem = PROBLEM_COUNT },
					  { .problem = PROBLEM_COUNT },
					  { .problem = PROBLEM_COUNT } };
	struct gfn_run runs[3];
	struct item items[3];
	struct scene s;
	char *before;

	scene_init(&s);
	batch_of_three(&s, runs, items);
	claim(&s, s.vm, 0, 5, "local", 0);
	before = ledger_dump(s.w.ledger);
	cr_assert_eq(ledger_apply_batch(s.w.ledger, s.a, items, 3, true, results), 1);
	cr_assert_eq(results[0].problem, PROBLEM_NONE);
	cr_assert_eq(results[1].problem, PROBLEM_GFN_OUT_OF_SLOT);
	cr_assert_eq(results[2].problem, PROBLEM_COUNT, "not tried");
	world_is_as(&s.w, before);
	ledger_results_release(s.w.ledger, results, 2);
	runs[1].count = 4;
	cr_assert_eq(ledger_apply_batch(s.w.ledger, s.a, items, 3, true, results), 0);
	cr_assert_eq(s.vm->counts.pages[GFN_SHARED], 4);
	scene_release(&s);
}

/* Undo. */

Test(ledger_undo, a_refused_claim_leaves_the_frames_of_others_alone)
{
	struct scene s;

	scene_init(&s);
	claim(&s, s.other, 0, 1, "cxl", (1 << 20) + 100);
	REFUSED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_IN, 0, 200, "cxl", 1 << 20), PROBLEM_FRAME_CONFLICT);
	cr_assert_eq(s.cxl->bound, 1);
	scene_release(&s);
}

Test(ledger_undo, takes_back_to_the_mark_and_no_further)
{
	struct scene s;
	undo_mark mark;
	char *first, *second;

	scene_init(&s);
	first = ledger_dump(s.w.ledger);
	claim(&s, s.vm, 0, 700, "local", 3);
	mark = ledger_mark(s.w.ledger);
	second = ledger_dump(s.w.ledger);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 100, 500, NULL, 0));
	ACCEPTED(&s, ledger_host_fence(s.w.ledger, s.a, &s.w.why));
	world_host(&s.w, 1, "boot-a3", 0, 10);
	world_host(&s.w, 5, "boot", 0, 10);
	world_pool(&s.w, "more", 0, 10, &s.b, 1);
	ACCEPTED(&s, ledger_slot_delete(s.w.ledger, s.other, 0, &s.w.why));
	s.w.heap.refuse = true;
	ledger_rollback(s.w.ledger, mark);
	world_is_as(&s.w, second);
	ledger_rollback(s.w.ledger, 0);
	world_is_as(&s.w, first);
	scene_release(&s);
}

Test(ledger_undo, callers_registries_take_part)
{
	struct scene s;
	int mine = 1;

	scene_init(&s);
	cr_assert_eq(undo_reserve(ledger_undo(s.w.ledger), UNDO_RECORD(sizeof mine)), PW_OK);
	undo_save(ledger_undo(s.w.ledger), &mine, sizeof mine);
	mine = 2;
	ledger_rollback(s.w.ledger, 0);
	cr_assert_eq(mine, 1);
	cr_assert_eq(ledger_mem(s.w.ledger), &s.w.mem);
	scene_release(&s);
}

/* Reading. */

Test(ledger_view, runs_are_maximal_and_cut_by_slots_states_and_frames)
{
	static const struct {
		uint64_t gfn, count;
		enum gfn_state state;
		uint64_t pfn;
	} expected[] = {
		{ 0, 10, GFN_SECURE_RESIDENT, 50 }, { 10, 10, GFN_SECURE_RESIDENT, 70 }, { 20, 5, GFN_SHARED, 0 },
		{ 25, 999, GFN_SECURE_OUT, 0 },     { 2048, 1024, GFN_SECURE_OUT, 0 },
	};
	struct scene s;
	struct gfn_view v;
	uint64_t at = 0;

	scene_init(&s);
	claim(&s, s.vm, 0, 10, "local", 50);
	claim(&s, s.vm, 10, 10, "local", 70);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 20, 5, NULL, 0));
	for (size_t i = 0; i < PW_ARRAY_LEN(expected); i++) {
		cr_assert(vm_next_run(s.vm, at, TREE_PAGES, &v));
		cr_assert(v.gfn == expected[i].gfn && v.count == expected[i].count && v.state == expected[i].state &&
			  v.pfn == expected[i].pfn);
		cr_assert_eq(v.pool, v.state == GFN_SECURE_RESIDENT ? s.a->pools[0] : NULL);
		at = v.gfn + v.count;
	}
	cr_assert_not(vm_next_run(s.vm, at, TREE_PAGES, &v));
	cr_assert_not(vm_next_run(s.vm, 1024, 2048, &v));
	cr_assert_not(vm_next_run(s.vm, 5, 5, &v));
	cr_assert(vm_next_run(s.vm, 3, 7, &v) && v.gfn == 3 && v.count == 4 && v.pfn == 53);
	scene_release(&s);
}

Test(ledger_view, bound_and_quarantined_runs_of_a_pool)
{
	struct scene s;
	struct frame_range r;
	struct frame_view f;

	scene_init(&s);
	claim(&s, s.vm, 0, 10, "local", 50);
	claim(&s, s.vm, 100, 10, "local", 60);
	r = (struct frame_range){ .pool = s.a->pools[0], .pfn = 80, .count = 2 };
	ACCEPTED(&s, ledger_quarantine(s.w.ledger, s.a, &r, 1, &s.w.why));
	cr_assert(pool_next_bound(s.w.ledger, s.a->pools[0], 55, TREE_PAGES + 5, &f));
	cr_assert(f.pfn == 55 && f.count == 5 && f.vm == s.vm && f.gfn == 5);
	cr_assert(pool_next_bound(s.w.ledger, s.a->pools[0], 60, 64, &f));
	cr_assert(f.pfn == 60 && f.count == 4 && f.gfn == 100);
	cr_assert_not(pool_next_bound(s.w.ledger, s.a->pools[0], 70, TREE_PAGES, &f));
	cr_assert(pool_next_quarantined(s.w.ledger, s.a->pools[0], 0, TREE_PAGES, &f));
	cr_assert(f.pfn == 80 && f.count == 2 && f.vm == NULL);
	scene_release(&s);
}

Test(ledger_view, digests_are_equal_exactly_when_runs_are)
{
	struct scene s;
	uint64_t digest, local;

	scene_init(&s);
	digest = vm_digest(s.vm, 0, DIGEST_REGION);
	cr_assert_eq(vm_digest(s.vm, 1024, 1024), DIGEST_SEED);
	claim(&s, s.vm, 7, 1, "local", 50);
	local = vm_digest(s.vm, 0, DIGEST_REGION);
	cr_assert_neq(local, digest);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_PAGE_OUT, 7, 1, NULL, 0));
	cr_assert_eq(vm_digest(s.vm, 0, DIGEST_REGION), digest);
	claim(&s, s.vm, 7, 1, "local", 51);
	cr_assert_neq(vm_digest(s.vm, 0, DIGEST_REGION), local);
	cr_assert_eq(vm_digest(s.vm, 8, 1000), vm_digest(s.vm, 8, 1000));
	scene_release(&s);
}

Test(ledger_view, a_digest_is_that_of_its_runs)
{
	struct gfn_view runs[2] = { { .gfn = 0, .count = 1024, .state = GFN_SECURE_OUT },
				    { .gfn = 2048, .count = 1024, .state = GFN_SECURE_OUT } };
	struct scene s;

	scene_init(&s);
	cr_assert_eq(vm_digest(s.vm, 0, DIGEST_REGION), digest_run(digest_run(DIGEST_SEED, &runs[0]), &runs[1]));
	scene_release(&s);
}

/* The check itself must see what it is there for. */
static void unsound(struct scene *s, const char *law)
{
	struct pw_err err = { 0 };

	cr_assert_not(ledger_check(s->w.ledger, &err));
	cr_assert_not_null(strstr(err.msg, law), "%s", err.msg);
}

Test(ledger_view, the_check_sees_broken_books)
{
	struct scene s;
	uint64_t entry;

	scene_init(&s);
	claim(&s, s.vm, 0, 10, "local", 50);
	s.vm->counts.pages[GFN_SHARED]++;
	unsound(&s, "counts");
	s.vm->counts.pages[GFN_SHARED]--;
	s.a->pools[0]->bound++;
	unsound(&s, "counts");
	s.a->pools[0]->bound--;
	s.a->vms++;
	unsound(&s, "counts");
	s.a->vms--;
	s.a->pools[0]->frames = 55;
	unsound(&s, "outside");
	s.a->pools[0]->frames = FRAMES;
	s.vm->slots[1].base = 1000;
	unsound(&s, "L4");
	s.vm->slots[1].base = 2048;
	s.vm->state = VM_NORMAL;
	unsound(&s, "L3");
	s.vm->state = VM_SECURE;
	s.vm->on_hardware = false;
	unsound(&s, "L5");
	s.vm->on_hardware = true;
	entry = tree_get(&s.vm->pages, 3);
	cr_assert_eq(tree_set(&s.vm->pages, 3, 1, 0), PW_OK);
	unsound(&s, "L3");
	cr_assert_eq(tree_set(&s.vm->pages, 3, 1, GFN_ENTRY_OUT), PW_OK);
	s.vm->counts.pages[GFN_SECURE_OUT]++;
	s.vm->counts.pages[GFN_SECURE_RESIDENT]--;
	unsound(&s, "L1");
	cr_assert_eq(tree_set(&s.vm->pages, 3, 1, entry + 100), PW_OK);
	unsound(&s, "L2");
	cr_assert_eq(tree_set(&s.vm->pages, 3, 1, entry | (uint64_t)9 << GFN_ENTRY_POOL), PW_OK);
	unsound(&s, "L2");
	cr_assert_eq(tree_set(&s.vm->pages, 3, 1, entry), PW_OK);
	s.vm->counts.pages[GFN_SECURE_OUT]--;
	s.vm->counts.pages[GFN_SECURE_RESIDENT]++;
	world_holds(&s.w);
	cr_assert_eq(tree_set(&s.vm->pages, 1500, 1, GFN_ENTRY_OUT), PW_OK);
	unsound(&s, "L4");
	cr_assert_eq(tree_set(&s.vm->pages, 1024, 1024, GFN_ENTRY_OUT), PW_OK);
	unsound(&s, "L4");
	cr_assert_eq(tree_set(&s.vm->pages, 1024, 1024, 0), PW_OK);
	s.vm->number = 7;
	cr_assert_not(ledger_check(s.w.ledger, NULL));
	s.vm->number = 0;
	scene_release(&s);
}

/* Loading a picture. */

Test(ledger_load, gives_the_state_that_was_saved)
{
	struct scene s, t = { .w.heap.fail_at = SIZE_MAX };
	struct host_spec host = host_spec_of(1, "boot-a", 0, FRAMES);
	struct vm_spec vm = { .id = uuid_of(10), .name = "vm", .arch = ARCH_SNP, .slots = two_slots, .slot_count = 2 };
	struct host *b;
	uint64_t run;

	scene_init(&s);
	claim(&s, s.vm, 0, 10, "cxl", 1 << 20);
	ACCEPTED(&s, world_apply(&s.w, s.a, s.vm, GFN_SHARE, 500, 10, NULL, 0));
	s.a->epoch = 5;
	s.vm->epoch = 3;

	world_init(&t.w);
	ACCEPTED(&t, ledger_load_host(t.w.ledger, &host, 5, false, &t.a, &t.w.why));
	b = world_host(&t.w, 2, "boot-b", 0, FRAMES);
	t.cxl = world_pool(&t.w, "cxl", 1 << 20, FRAMES, NULL, 0);
	ACCEPTED(&t, ledger_load_attachment(t.w.ledger, t.cxl, t.a, 1, &t.w.why));
	ACCEPTED(&t, ledger_load_attachment(t.w.ledger, t.cxl, b, 1, &t.w.why));
	vm.host = t.a;
	ACCEPTED(&t, ledger_load_vm(t.w.ledger, &vm, VM_SECURE, "", 3, &t.vm, &t.w.why));
	for (uint64_t at = 0; at < TREE_PAGES; at += run) {
		struct tree_run r = tree_run_at(&s.vm->pages, at, TREE_PAGES);

		run = r.count;
		if (r.entry)
			ACCEPTED(&t, ledger_load_extent(t.w.ledger, t.vm, r.first, r.count, r.entry, &t.w.why));
	}
	world_vm_to(&t.w, world_vm(&t.w, 11, b, one_slot, 1), VM_SECURE);
	ledger_commit(t.w.ledger);
	world_is_as(&t.w, ledger_dump(s.w.ledger));
	scene_release(&t);
	scene_release(&s);
}

Test(ledger_load, a_picture_that_breaks_the_law_is_refused)
{
	struct host_spec host = host_spec_of(1, "another-boot", 0, 5);
	struct pool far = { .name = "far", .page_shift = 16 };
	struct vm_spec again = { .id = uuid_of(10), .arch = ARCH_SNP };
	const uint64_t in = GFN_ENTRY_RESIDENT, out = GFN_ENTRY_OUT;
	struct scene s;
	struct host *h;
	struct vm *vm;

	scene_init(&s);
	claim(&s, s.vm, 0, 10, "local", 0);
	again.host = s.a;
	REFUSED(&s, ledger_load_host(s.w.ledger, &host, 1, false, &h, &s.w.why), PROBLEM_INVALID_REQUEST);
	host = host_spec_of(7, "boot", TREE_PAGES, 1);
	REFUSED(&s, ledger_load_host(s.w.ledger, &host, 1, false, &h, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_attachment(s.w.ledger, s.cxl, s.a, 0, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_attachment(s.w.ledger, s.cxl, s.a, 1, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_attachment(s.w.ledger, s.cxl, s.a, 2, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_attachment(s.w.ledger, &far, s.a, HOST_POOLS_MAX, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_attachment(s.w.ledger, &far, s.a, 2, &s.w.why), PROBLEM_POOL_MISMATCH);
	REFUSED(&s, ledger_load_vm(s.w.ledger, &again, VM_SECURE, "", 1, &vm, &s.w.why), PROBLEM_VM_EXISTS);
	vm = world_vm(&s.w, 12, s.a, two_slots, 2);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 1, out, &s.w.why), PROBLEM_INVALID_REQUEST);
	vm->state = VM_TRANSIENT;
	vm->on_hardware = true;
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 0, out, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, TREE_PAGES, 1, out, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 1, 0, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 1, out | GFN_ENTRY_SHARED, &s.w.why),
		PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 1, in | TREE_TABLE, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 1000, 100, out, &s.w.why), PROBLEM_GFN_OUT_OF_SLOT);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 1, in | (uint64_t)4 << GFN_ENTRY_POOL, &s.w.why),
		PROBLEM_FRAME_OUT_OF_POOL);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 2, in | TREE_NUMBER, &s.w.why), PROBLEM_FRAME_OUT_OF_POOL);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 2, in | 9, &s.w.why), PROBLEM_FRAME_CONFLICT);
	ACCEPTED(&s, ledger_load_extent(s.w.ledger, vm, 0, 2, in | 10, &s.w.why));
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 0, 4, out, &s.w.why), PROBLEM_INVALID_REQUEST);
	REFUSED(&s, ledger_load_extent(s.w.ledger, vm, 1, 1, out, &s.w.why), PROBLEM_INVALID_REQUEST);
	scene_release(&s);
}

Test(ledger_load, a_slot_of_a_secure_vm_waits_for_its_extents)
{
	struct vm_spec spec = { .id = uuid_of(12), .arch = ARCH_SNP };
	struct scene s;
	struct vm *vm;

	scene_init(&s);
	spec.host = s.a;
	ACCEPTED(&s, ledger_load_vm(s.w.ledger, &spec, VM_SECURE, "", 4, &vm, &s.w.why));
	ACCEPTED(&s, ledger_load_slot(s.w.ledger, vm, &one_slot[0], &s.w.why));
	cr_assert_eq(vm->state, VM_SECURE);
	cr_assert_eq(vm->counts.pages[GFN_NORMAL], 1024);
	cr_assert_eq(ledger_load_slot(s.w.ledger, vm, &(struct slot){ 1, 5, 1 }, &s.w.why), PROBLEM_SLOT_OVERLAP);
	cr_assert_eq(vm->state, VM_SECURE);
	ACCEPTED(&s, ledger_load_extent(s.w.ledger, vm, 0, 1024, GFN_ENTRY_OUT, &s.w.why));
	scene_release(&s);
}

Test(ledger_names, arches_read_back)
{
	enum arch out = ARCH_KVM;

	for (int a = 0; a < ARCH_COUNT; a++) {
		cr_assert(arch_from_name(arch_name((enum arch)a), &out));
		cr_assert_eq(out, (enum arch)a);
	}
	cr_assert_not(arch_from_name("sgx", &out));
}
