#include "agents/resync.h"

#include <stdlib.h>

#include "engine/digest.h"

bool run_list_add(struct run_list *l, const struct backend_run *run)
{
	if (l->n == l->cap) {
		size_t cap = l->cap ? l->cap * 2 : 64;
		struct backend_run *more = reallocarray(l->v, cap, sizeof *more);

		if (!more)
			return false;
		l->v = more;
		l->cap = cap;
	}
	l->v[l->n++] = *run;
	return true;
}

void run_list_release(struct run_list *l)
{
	free(l->v);
	*l = (struct run_list){ 0 };
}

uint64_t resync_digest(const struct run_list *runs)
{
	uint64_t digest = DIGEST_SEED;

	for (size_t i = 0; i < runs->n; i++)
		digest = digest_run(
			digest,
			&(struct gfn_view){ .gfn = runs->v[i].gfn,
					    .count = runs->v[i].count,
					    .state = runs->v[i].state,
					    .arch = runs->v[i].arch,
					    .pfn = runs->v[i].state == GFN_SECURE_RESIDENT ? runs->v[i].pfn : 0 });
	return digest;
}

/* What a list says about the pages from `at` on: its run there, or a gap up to the next run. */
static struct backend_run run_from(const struct run_list *l, size_t *i, uint64_t at)
{
	struct backend_run run;

	while (*i < l->n && l->v[*i].gfn + l->v[*i].count <= at)
		++*i;
	if (*i == l->n)
		return (struct backend_run){ .gfn = at, .count = TREE_PAGES - at, .state = GFN_NORMAL };
	if (l->v[*i].gfn > at)
		return (struct backend_run){ .gfn = at, .count = l->v[*i].gfn - at, .state = GFN_NORMAL };
	run = l->v[*i];
	run.pfn += at - run.gfn;
	run.count -= at - run.gfn;
	run.gfn = at;
	return run;
}

static bool is_equal(const struct backend_run *a, const struct backend_run *b)
{
	return a->state == b->state && a->arch == b->arch && (a->state != GFN_SECURE_RESIDENT || a->pfn == b->pfn);
}

void resync_compare(const struct run_list *ledger, const struct run_list *hardware, difference_fn fn, void *ctx)
{
	size_t i = 0, k = 0;

	for (uint64_t at = 0; at < TREE_PAGES && (i < ledger->n || k < hardware->n);) {
		struct backend_run l = run_from(ledger, &i, at), h = run_from(hardware, &k, at);
		uint64_t count = l.count < h.count ? l.count : h.count;
		struct difference d = { .gfn = at,
					.count = count,
					.ledger = l.state,
					.hardware = h.state,
					.ledger_pfn = l.pfn,
					.hardware_pfn = h.pfn,
					.ledger_arch = l.arch,
					.hardware_arch = h.arch };

		if (!is_equal(&l, &h) && !fn(ctx, &d))
			return;
		at += count;
	}
}

#define CRASH(r)                  \
	{                         \
		REPAIR_##r, false \
	}
#define DRIFT(r)                 \
	{                        \
		REPAIR_##r, true \
	}
/* clang-format off */
static const struct remedy remedies[GFN_STATE_COUNT][GFN_STATE_COUNT] = {
	/* the ledger says       hardware says: normal         resident                     out                      shared */
	[GFN_NORMAL]          = { CRASH(NOTHING), DRIFT(CLAIM),        DRIFT(UNSHARE), CRASH(SHARE)   },
	[GFN_SECURE_RESIDENT] = { CRASH(RELEASE), DRIFT(RECLAIM),      CRASH(RELEASE), CRASH(SHARE)   },
	[GFN_SECURE_OUT]      = { CRASH(NOTHING), DRIFT(CLAIM),        CRASH(NOTHING), CRASH(SHARE)   },
	[GFN_SHARED]          = { DRIFT(UNSHARE), DRIFT(CLAIM_SHARED), DRIFT(UNSHARE), CRASH(NOTHING) },
};
/* clang-format on */

struct remedy resync_remedy(const struct difference *d)
{
	if (d->ledger == d->hardware && (d->ledger != GFN_SECURE_RESIDENT || d->ledger_pfn == d->hardware_pfn))
		return (struct remedy){ d->ledger_arch == d->hardware_arch ? REPAIR_NOTHING : REPAIR_ARCH, false };
	return remedies[d->ledger][d->hardware];
}

#undef CRASH
#undef DRIFT
#define CRASH(r)                     \
	{                            \
		VM_REPAIR_##r, false \
	}
#define DRIFT(r)                    \
	{                           \
		VM_REPAIR_##r, true \
	}
/* clang-format off */
static const struct vm_remedy vm_remedies[PRESENCE_COUNT][PRESENCE_ELSEWHERE] = {
	/* the ledger says    hardware says: none        normal           transient          secure         */
	[PRESENCE_NONE]      = { CRASH(NOTHING),   DRIFT(ADOPT),     DRIFT(ADOPT),      DRIFT(ADOPT)    },
	[PRESENCE_NORMAL]    = { CRASH(NOTHING),   CRASH(NOTHING),   DRIFT(ADOPT),      DRIFT(ADOPT)    },
	[PRESENCE_TRANSIENT] = { CRASH(ABORT),     CRASH(ABORT),     CRASH(PAGES),      CRASH(DONE)     },
	[PRESENCE_SECURE]    = { CRASH(TERMINATE), CRASH(TERMINATE), DRIFT(DONE_THERE), CRASH(PAGES)    },
	[PRESENCE_ELSEWHERE] = { CRASH(NOTHING),   DRIFT(KEEP),      DRIFT(KEEP),       DRIFT(KEEP)     },
};
/* The same where the ledger recorded the VM's end since, and has nothing of it now. */
static const struct vm_remedy ended_remedies[PRESENCE_ELSEWHERE] = {
	CRASH(NOTHING), CRASH(DESTROY), DRIFT(DESTROY), DRIFT(DESTROY)
};
/* clang-format on */

struct vm_remedy resync_vm_remedy(enum presence ledger, enum presence hardware, bool ended)
{
	if (ended && (ledger == PRESENCE_NONE || ledger == PRESENCE_NORMAL))
		return ended_remedies[hardware];
	return vm_remedies[ledger][hardware];
}
