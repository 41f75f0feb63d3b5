/* agents/ops.h
 *
 * Operations: intents that the server hands out, carried out on hardware and in the ledger. Delivery is at least once:
 * each looks first at what ledger and hardware have, and doing one again does no harm.
 */
#ifndef PW_AGENTS_OPS_H
#define PW_AGENTS_OPS_H
#include "agents/change.h"
#include "api/codec.h"

struct operation {
	char id[PW_UUID_TEXT];
	struct pw_uuid vm;
	enum operation_kind kind;
	bool again;     /* given to this host before: some or all of it may be done */
	json_t *params; /* borrowed from the item; never NULL */
};
bool operation_read(json_t *item, struct operation *out) PW_MUST_CHECK;

/* How much of a VM of `pages` a launch makes resident: "resident" of its params, pages or a fraction. */
struct launch_budget {
	uint64_t pages;
	bool must; /* asked for: fewer is a failure */
};
bool launch_budget(json_t *params, uint64_t pages, struct launch_budget *out) PW_MUST_CHECK;

/* Carries it out; `work` is held. */
enum pw_status operation_run(struct worker *w, const struct operation *op, struct trouble *t) PW_MUST_CHECK;

/* Ends the VM on hardware and in the ledger. `work` is held. */
enum pw_status vm_end(struct worker *w, const struct pw_uuid *vm, struct trouble *t) PW_MUST_CHECK;
/* Frames that hardware would not give back go into quarantine. `work` is held. */
enum pw_status report_stuck(struct worker *w, struct trouble *t) PW_MUST_CHECK;
/* Does hardware have it, and in which state? */
enum pw_status hardware_vm(struct backend *b, const struct pw_uuid *vm, bool *found, enum vm_state *state,
			   struct pw_err *err) PW_MUST_CHECK;

void *operations_loop(void *agent); /* a thread: registers, polls, runs, answers (poll.c) */
void *guests_loop(void *agent);     /* a thread: takes guests' wishes to the ledger (guests.c) */

#endif
