/* agents/ripas.h
 *
 * Which pages of a VM are memory at all, where the architecture has a RIPAS (CCA): what a launch says of it, and what
 * the guest asks for when it runs. Pages that a guest gives up leave hardware, then the ledger; they are the host's.
 */
#ifndef PW_AGENTS_RIPAS_H
#define PW_AGENTS_RIPAS_H
#include "agents/remote.h"

/* What a launch's parameters say: "ripas": [[gfn, count, "EMPTY"|"RAM"], ...]. The last run that names a page counts.
 */
struct ripas_plan {
	struct backend_ripas *v; /* owned */
	size_t n;
};
/* PW_INVALID: malformed. */
enum pw_status ripas_plan_read(const json_t *params, struct ripas_plan *out, struct pw_err *err) PW_MUST_CHECK;
void ripas_plan_release(struct ripas_plan *p);
/* Is the page EMPTY by the plan? *count: pages from there on that are alike, up to `end` at most. */
bool ripas_plan_is_empty(const struct ripas_plan *p, uint64_t gfn, uint64_t end, uint64_t *count);

/* A VM that is normal on hardware will be as planned from its init_start on; `work` is held. */
enum pw_status ripas_plan_set(struct worker *w, const struct remote_vm *vm, const struct ripas_plan *p,
			      struct pw_err *err) PW_MUST_CHECK;
/* After init_start: tells the ledger of the pages that do not begin at rest. */
enum pw_status ripas_tell_begin(struct worker *w, const struct remote_vm *vm, struct trouble *t) PW_MUST_CHECK;

/* Carries out what a guest asked for (WANT_RIPAS), and answers it; `work` is held. */
void ripas_serve(struct worker *w, const struct backend_request *rq);

#endif
