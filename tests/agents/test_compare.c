#include <criterion/criterion.h>
#include <string.h>

#include "agents/agent.h"
#include "agents/resync.h"
#include "engine/arch/law.h"
#include "engine/digest.h"
#include "engine/ledger.h"

#define PAGES    64
#define FRAME(n) (1000 + (uint64_t)(n))

/* A window as one entry a page: the model that run lists are held against. */
struct page {
	enum gfn_state state;
	uint64_t pfn;
};

static struct run_list list_of(const struct page *p)
{
	struct run_list l = { 0 };

	for (uint64_t i = 0; i < PAGES; i++) {
		struct backend_run *last = l.n ? &l.v[l.n - 1] : NULL;

		if (last && last->state == p[i].state &&
		    (p[i].state != GFN_SECURE_RESIDENT || last->pfn + last->count == p[i].pfn)) {
			last->count++;
			continue;
		}
		cr_assert(run_list_add(
			&l, &(struct backend_run){ .gfn = i, .count = 1, .state = p[i].state, .pfn = p[i].pfn }));
	}
	return l;
}

struct seen {
	bool differs[PAGES];
	struct difference of[PAGES];
	uint64_t next;
};

static bool see(void *ctx, const struct difference *d)
{
	struct seen *s = ctx;

	cr_assert_geq(d->gfn, s->next, "in order");
	s->next = d->gfn + d->count;
	for (uint64_t i = 0; i < d->count; i++) {
		s->differs[d->gfn + i] = true;
		s->of[d->gfn + i] = *d;
		s->of[d->gfn + i].ledger_pfn += i;
		s->of[d->gfn + i].hardware_pfn += i;
	}
	return true;
}

static void random_pages(struct page *p, uint64_t *random)
{
	for (uint64_t i = 0; i < PAGES; i++) {
		if (i && next_random(random) % 3) {
			p[i] = p[i - 1];
			p[i].pfn++;
			continue;
		}
		p[i] = (struct page){ (enum gfn_state)(next_random(random) % GFN_STATE_COUNT),
				      FRAME(next_random(random) % 200) };
	}
}

Test(compare, finds_exactly_the_pages_that_differ)
{
	uint64_t random = 5;

	for (int round = 0; round < 500; round++) {
		struct page a[PAGES], b[PAGES];
		struct seen s = { 0 };
		struct run_list l, h;

		random_pages(a, &random);
		memcpy(b, a, sizeof b);
		if (round % 4)
			random_pages(b, &random);
		l = list_of(a);
		h = list_of(b);
		resync_compare(&l, &h, see, &s);
		for (uint64_t i = 0; i < PAGES; i++) {
			bool equal =
				a[i].state == b[i].state && (a[i].state != GFN_SECURE_RESIDENT || a[i].pfn == b[i].pfn);

			cr_assert_eq(s.differs[i], !equal, "round %d page %lu", round, i);
			cr_assert(equal || (s.of[i].ledger == a[i].state && s.of[i].hardware == b[i].state));
			cr_assert(equal || a[i].state != GFN_SECURE_RESIDENT || s.of[i].ledger_pfn == a[i].pfn);
			cr_assert(equal || b[i].state != GFN_SECURE_RESIDENT || s.of[i].hardware_pfn == b[i].pfn);
		}
		cr_assert_eq(resync_digest(&l) == resync_digest(&h), memcmp(s.differs, (bool[PAGES]){ 0 }, PAGES) == 0);
		run_list_release(&l);
		run_list_release(&h);
	}
}

Test(compare, a_page_that_only_hardware_has_is_normal_to_the_ledger)
{
	struct run_list l = { 0 }, h = { 0 };
	struct seen s = { 0 };

	cr_assert(run_list_add(
		&h, &(struct backend_run){ .gfn = 3, .count = 2, .state = GFN_SECURE_RESIDENT, .pfn = FRAME(1) }));
	resync_compare(&l, &h, see, &s);
	cr_assert(!s.differs[2] && s.differs[3] && s.differs[4] && !s.differs[5]);
	cr_assert_eq(s.of[3].ledger, GFN_NORMAL);
	run_list_release(&h);
}

/* Of pages whose frames, if any, differ. */
static struct remedy remedy_of(enum gfn_state ledger, enum gfn_state hardware)
{
	return resync_remedy(&(struct difference){
		.count = 1, .ledger = ledger, .hardware = hardware, .ledger_pfn = 1, .hardware_pfn = 2 });
}

/* What a crash leaves, by the order of L5: the ledger covers more than hardware, never less. */
static const struct explained {
	enum gfn_state ledger, hardware;
	enum repair repair;
} explained[] = {
	{ GFN_SECURE_RESIDENT, GFN_SECURE_OUT, REPAIR_RELEASE }, /* claimed, not assigned; or paged out, not released */
	{ GFN_SECURE_RESIDENT, GFN_NORMAL, REPAIR_RELEASE },     /* claimed, not assigned, while launching */
	{ GFN_SECURE_RESIDENT, GFN_SHARED, REPAIR_SHARE },       /* shared on hardware; or unshare with a frame */
	{ GFN_SECURE_OUT, GFN_SHARED, REPAIR_SHARE },            /* unshare: the ledger goes first */
	{ GFN_NORMAL, GFN_SHARED, REPAIR_SHARE },                /* share: hardware goes first */
};

Test(remedy, what_a_crash_leaves_is_no_violation)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(explained); i++) {
		struct remedy m = remedy_of(explained[i].ledger, explained[i].hardware);

		cr_assert(!m.violation, "row %zu", i);
		cr_assert_eq(m.repair, explained[i].repair, "row %zu", i);
	}
}

Test(remedy, a_page_that_hardware_has_and_the_ledger_does_not_cover_is_a_violation_and_gets_claimed)
{
	cr_assert(remedy_of(GFN_SECURE_OUT, GFN_SECURE_RESIDENT).violation);
	cr_assert_eq(remedy_of(GFN_SECURE_OUT, GFN_SECURE_RESIDENT).repair, REPAIR_CLAIM);
	cr_assert(remedy_of(GFN_SHARED, GFN_SECURE_RESIDENT).violation);
	cr_assert_eq(remedy_of(GFN_SHARED, GFN_SECURE_RESIDENT).repair, REPAIR_CLAIM_SHARED);
	cr_assert_eq(remedy_of(GFN_SECURE_RESIDENT, GFN_SECURE_RESIDENT).repair, REPAIR_RECLAIM);
	cr_assert(remedy_of(GFN_SECURE_RESIDENT, GFN_SECURE_RESIDENT).violation);
}

Test(remedy, only_the_architectures_own_state_differs)
{
	struct difference d = { .count = 1,
				.ledger = GFN_SECURE_RESIDENT,
				.hardware = GFN_SECURE_RESIDENT,
				.ledger_pfn = 7,
				.hardware_pfn = 7,
				.ledger_arch = 3 };

	cr_assert_eq(resync_remedy(&d).repair, REPAIR_ARCH);
	cr_assert(!resync_remedy(&d).violation);
	d.ledger_arch = 0;
	cr_assert_eq(resync_remedy(&d).repair, REPAIR_NOTHING);
}

Test(remedy, what_a_claim_left_unsaid_can_be_said_later)
{
	for (int a = 0; a < ARCH_COUNT; a++) {
		const struct arch_law *law = arch_laws[a];

		for (int s = 0; law && s < VM_STATE_COUNT; s++) {
			for (int op = 0; op < GFN_OP_COUNT; op++) {
				const struct arch_trail *trail = &law->trails[s][op];
				unsigned rest = law->rest[GFN_SECURE_RESIDENT];
				const struct arch_op *claim;

				if (!trail->done || !trail->item || (op != GFN_PAGE_IN && op != GFN_UNSHARE_IN))
					continue;
				claim = arch_op_find(trail->item, strlen(trail->item), true, NULL);
				for (unsigned from = 0; from < law->state_count; from++)
					if (claim->next[from] != ARCH_REFUSED && claim->next[from] != rest)
						cr_assert(arch_op_between(law, arch_vm_rest(law, (enum vm_state)s),
									  claim->next[from], rest),
							  "%s", trail->item);
			}
		}
	}
}

/* Every repair must be a step that the lifecycle has, and must end in hardware's state. */
Test(remedy, every_repair_leads_the_ledger_to_what_hardware_has)
{
	static const enum gfn_op steps[REPAIR_COUNT][2] = {
		[REPAIR_RELEASE] = { GFN_PAGE_OUT, GFN_OP_COUNT },
		[REPAIR_SHARE] = { GFN_SHARE, GFN_OP_COUNT },
		[REPAIR_UNSHARE] = { GFN_UNSHARE, GFN_OP_COUNT },
		[REPAIR_CLAIM] = { GFN_PAGE_IN, GFN_OP_COUNT },
		[REPAIR_CLAIM_SHARED] = { GFN_UNSHARE_IN, GFN_OP_COUNT },
		[REPAIR_RECLAIM] = { GFN_PAGE_OUT, GFN_PAGE_IN },
	};

	for (int l = 0; l < GFN_STATE_COUNT; l++) {
		for (int h = 0; h < GFN_STATE_COUNT; h++) {
			enum gfn_state at = (enum gfn_state)l;
			struct remedy m = remedy_of(at, (enum gfn_state)h);

			if (m.repair == REPAIR_NOTHING)
				continue;
			for (int k = 0; k < 2 && steps[m.repair][k] != GFN_OP_COUNT; k++)
				cr_assert(gfn_step(at, steps[m.repair][k], &at), "%d %d", l, h);
			/* an out page of a launching VM stands for a normal one: the ledger cannot go back to normal */
			cr_assert(at == (enum gfn_state)h || (h == GFN_NORMAL && at == GFN_SECURE_OUT), "%d %d", l, h);
		}
	}
}

/* L11: whatever the ledger fails to show, a guest is given up on its record of the VM's end alone. */
Test(remedy, a_guest_ends_on_evidence_alone)
{
	for (int ledger = 0; ledger < PRESENCE_COUNT; ledger++) {
		for (int hardware = PRESENCE_NONE; hardware < PRESENCE_ELSEWHERE; hardware++) {
			bool gone = ledger == PRESENCE_NONE || ledger == PRESENCE_NORMAL;
			struct vm_remedy kept = resync_vm_remedy((enum presence)ledger, (enum presence)hardware, false);
			struct vm_remedy ended = resync_vm_remedy((enum presence)ledger, (enum presence)hardware, true);

			cr_assert_neq(kept.repair, VM_REPAIR_DESTROY, "%d %d", ledger, hardware);
			cr_assert_eq(ended.repair == VM_REPAIR_DESTROY, gone && hardware != PRESENCE_NONE, "%d %d",
				     ledger, hardware);
		}
	}
}

Test(remedy, what_the_ledger_does_not_show_is_adopted_or_kept)
{
	for (int hardware = PRESENCE_NORMAL; hardware < PRESENCE_ELSEWHERE; hardware++) {
		enum presence h = (enum presence)hardware;

		cr_assert_eq(resync_vm_remedy(PRESENCE_NONE, h, false).repair, VM_REPAIR_ADOPT);
		cr_assert_eq(resync_vm_remedy(PRESENCE_ELSEWHERE, h, false).repair, VM_REPAIR_KEEP);
		cr_assert_eq(resync_vm_remedy(PRESENCE_ELSEWHERE, h, true).repair, VM_REPAIR_KEEP);
		cr_assert(resync_vm_remedy(PRESENCE_ELSEWHERE, h, false).violation);
	}
	cr_assert_eq(resync_vm_remedy(PRESENCE_NORMAL, PRESENCE_SECURE, false).repair, VM_REPAIR_ADOPT);
	cr_assert_eq(resync_vm_remedy(PRESENCE_NORMAL, PRESENCE_NORMAL, false).repair, VM_REPAIR_NOTHING);
}

Test(remedy, what_is_secure_in_the_ledger_alone_ends_there)
{
	cr_assert_eq(resync_vm_remedy(PRESENCE_SECURE, PRESENCE_NONE, false).repair, VM_REPAIR_TERMINATE);
	cr_assert_eq(resync_vm_remedy(PRESENCE_TRANSIENT, PRESENCE_NONE, false).repair, VM_REPAIR_ABORT);
	cr_assert_eq(resync_vm_remedy(PRESENCE_TRANSIENT, PRESENCE_SECURE, false).repair, VM_REPAIR_DONE);
	cr_assert(!resync_vm_remedy(PRESENCE_SECURE, PRESENCE_NONE, false).violation);
}
