/* agents/batch.h
 *
 * Transitions on their way to the ledger, in numbered batches: a batch whose answer is lost is sent again, number and
 * all, until an answer comes. The making and reading of their JSON is pure.
 */
#ifndef PW_AGENTS_BATCH_H
#define PW_AGENTS_BATCH_H
#include "agents/remote.h"

#define BATCH_ITEMS_MAX 1024
#define BATCH_RUNS_MAX  65536 /* of all items of one batch */
#define ITEM_RUNS_MAX   4096

struct verdict {
	bool ok;
	json_t *problem; /* of a refusal; owned */
};
void verdicts_clear(struct verdict *v, size_t n);

/* New references; NULL: no memory. */
json_t *batch_item(const struct item *it);
json_t *batch_body(const char *boot_id, uint64_t epoch, uint64_t seq, const struct item *items, size_t n);

/* Reads the answer to a batch of n items into v[n]; false (nothing written): it is not one. */
bool batch_read(json_t *answer, struct verdict *v, size_t n) PW_MUST_CHECK;

/*
 * Takes all items to the ledger, as many to a batch as fit; `work` is held. Each item is all or nothing.
 * PW_OK: v[n] has each verdict (verdicts_clear them). Otherwise no verdict is known: what was sent may or may not
 * have happened, and the agent stands apart, so that a resync finds out.
 */
enum pw_status batch_send(struct worker *w, const struct item *items, size_t n, struct verdict *v,
			  struct trouble *t) PW_MUST_CHECK;

/*
 * The runs of consecutive frames of pages [gfn, gfn + count), into out[cap]; *taken says how many pages they cover
 * (fewer than count only if cap was reached).
 */
size_t runs_of_frames(uint64_t gfn, uint64_t count, const uint64_t *pfns, struct gfn_run *out, size_t cap,
		      uint64_t *taken);

#endif
