/* tests/lib/backend_steps.h
 *
 * Steps that tests take on a backend: each must succeed and fails its test with the backend's words, but step_try_in,
 * which gives its status. VMs have one slot from GFN 0.
 */
#ifndef PW_TESTS_LIB_BACKEND_STEPS_H
#define PW_TESTS_LIB_BACKEND_STEPS_H
#include "agents/backend.h"

extern struct pw_err step_err; /* of the last step that failed */

void step_make_vm(struct backend *b, const struct pw_uuid *id, uint64_t pages);
void step_event(struct backend *b, const struct pw_uuid *id, enum vm_event e);
void step_make_secure(struct backend *b, const struct pw_uuid *id, uint64_t pages);
/* Reserves frames and brings the pages in; what is refused holds no reservation. */
enum pw_status step_try_in(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count);
void step_in(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count);
void step_out(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count);
void step_share(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count);

#endif
