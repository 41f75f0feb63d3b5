/* agents/exits.h
 *
 * What the host sees of its guests' vCPUs, told to the ledger where hardware has it (backend_ops.last_exit). Nothing
 * depends on it: a report that is refused is logged, once for as long as that goes on, and that is all. One that says
 * what the last one said is not sent. `work` is held.
 */
#ifndef PW_AGENTS_EXITS_H
#define PW_AGENTS_EXITS_H
#include "agents/remote.h"

/* The last exit of its vCPU 0. */
void exits_report(struct worker *w, const struct pw_uuid *vm);
/* The VM has begun anew, and the ledger knows nothing of its vCPU. */
void exits_forget(struct agent *a, const struct pw_uuid *vm);

#endif
