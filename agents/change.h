/* agents/change.h
 *
 * One change of one range of GFNs, on hardware and in the ledger together, under L5 and L6: what claims frames is
 * reserved, claimed, then assigned; what gives frames up is done on hardware first. Several changes share a batch.
 * Where the architecture has items of its own (arch_law.trails), the ledger is told by these.
 */
#ifndef PW_AGENTS_CHANGE_H
#define PW_AGENTS_CHANGE_H
#include "agents/batch.h"
#include "engine/arch/law.h"

/* A run of pages and what they were before. */
struct stretch {
	uint64_t gfn, count;
	enum gfn_state was;
	unsigned arch; /* as in struct backend_run */
};

struct change {
	struct pw_uuid vm;
	enum gfn_op op; /* GFN_SHARE, GFN_UNSHARE, GFN_UNSHARE_IN, GFN_PAGE_IN or GFN_PAGE_OUT */
	uint64_t gfn, count;

	/* Answers. */
	uint64_t done;  /* pages from gfn on that this change covers: count, or fewer if it was too scattered for one
			   item */
	uint64_t moved; /* of them, pages that the change found in another state */
	enum pw_status st;
	struct trouble trouble;
	struct stretch *stretches; /* what it changed (valid after success): for taking it back */
	size_t stretch_count, stretch_cap;

	/* Its own. */
	const struct arch_trail *trail; /* how it is told to the ledger */
	struct gfn_run *runs;
	size_t run_count, run_cap;
	uint64_t *pfns; /* [done], of the stretches */
	uint64_t seen;  /* how far hardware's runs have been looked at */
};

#define CHANGE_PAGES ((uint64_t)1 << 16) /* at most, of a change that has frames */
#define CHANGES_MAX  64                  /* in one go */

/*
 * Carries out changes that do not overlap; `work` is held. Each ends with its own status:
 * PW_OK       hardware and ledger have it (as far as `done`)
 * PW_BUSY     no free frames; nothing changed
 * PW_CONFLICT refused by the ledger, or by its rules seen from hardware's state (trouble.problem); nothing changed
 * PW_BACKEND  hardware refused; what this change had done is undone
 * others      the ledger could not be asked: the agent stands apart
 */
void changes_run(struct worker *w, struct change *c, size_t n);
void changes_release(struct change *c, size_t n);

/* What several changes did, in order. */
struct record {
	struct stretch *v; /* owned */
	size_t n, cap;
};
#define RECORD_MAX ((size_t)1 << 22)
bool record_add(struct record *r, const struct stretch *s, size_t n) PW_MUST_CHECK;
void record_release(struct record *r);

/*
 * A change of any size, in as many pieces as it takes. Ends at the first failure: then *rec (may be NULL) has what the
 * pieces before and beside it did, for changes_undo. *moved grows by the pages that changed.
 */
enum pw_status change_range(struct worker *w, const struct change *whole, struct record *rec, uint64_t *moved,
			    struct trouble *t) PW_MUST_CHECK;

/* Takes back stretches that changes with `op` had changed, newest first; what cannot be undone is logged. */
void changes_undo(struct worker *w, const struct pw_uuid *vm, enum gfn_op op, const struct stretch *s, size_t n);

/* What an op has to do about pages in state `was`; TOUCH_REFUSED: the lifecycle has no such step. */
enum touch { TOUCH_NOTHING, TOUCH_RUN, TOUCH_REFUSED };
enum touch change_touches(enum gfn_op op, enum gfn_state was);

#endif
