/* agents/unknown.h
 *
 * VMs on this hardware that the ledger does not own, and pages on frames that the ledger gives to others: what there is
 * to report of them (law L11). Nothing is thrown away here. `work` is held.
 */
#ifndef PW_AGENTS_UNKNOWN_H
#define PW_AGENTS_UNKNOWN_H
#include "agents/remote.h"
#include "api/codec_unknown.h"

/* Pages of one VM on frames that are somebody else's in the ledger. */
struct disputes {
	struct unknown_run runs[UNKNOWN_RUNS_MAX]; /* the first */
	size_t run_count;
	uint64_t pages; /* of all */
};
void disputes_add(struct disputes *d, const struct unknown_run *run);

/* One VM is to be reported; PW_NO_MEMORY. */
struct unknown_report {
	struct pw_uuid vm;
	enum unknown_reason reason;
	enum vm_state state; /* on hardware */
	uint64_t pages;      /* resident there */
	const char *detail;
	const struct disputes *disputes;
};
enum pw_status unknown_note(struct agent *a, const struct unknown_report *u, struct pw_err *err) PW_MUST_CHECK;
/* It is not unknown any more. */
void unknown_clear(struct agent *a, const struct pw_uuid *vm);
/* Is it still? *detail (may be NULL) says why, as long as the list does not change. */
bool unknown_has(const struct agent *a, const struct pw_uuid *vm, const char **detail);
/* unknown-vm as the list has it, for an operation that fails for it; `what` if it is not in the list. */
void unknown_refuse(const struct agent *a, const struct pw_uuid *vm, const char *what, struct refusal *why);
/* Tells the ledger, if it has not been told. */
enum pw_status unknown_report(struct worker *w, struct trouble *t) PW_MUST_CHECK;

#endif
