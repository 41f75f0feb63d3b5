/* agents/watch.h
 *
 * A thread that notices what others change of this host's VMs in the ledger, and compares such a VM at once; and that
 * compares each VM from time to time anyway.
 */
#ifndef PW_AGENTS_WATCH_H
#define PW_AGENTS_WATCH_H
#include "agents/remote.h"

void *watch_loop(void *agent);

/* The pure part. */

/* Is a VM with that id due for its periodic comparison in (from, to], milliseconds of any clock? Each VM has its own
 * place in the period, so that not all are due at once. period_ms 0: never. */
bool watch_is_due(const struct pw_uuid *vm, uint64_t from, uint64_t to, uint64_t period_ms);
/* How long after `from` it is due next. period_ms > 0. */
uint64_t watch_due_in(const struct pw_uuid *vm, uint64_t from, uint64_t period_ms);

/* The VMs that an event speaks of, if it is one that changes what the ledger has of them. fn returns false to stop. */
typedef bool (*watch_vm_fn)(void *ctx, const struct pw_uuid *vm);
void watch_event_vms(json_t *event, watch_vm_fn fn, void *ctx);

#endif
