/* agents/heard.h
 *
 * What this agent last heard the ledger say: of each VM on hardware the revision of that word, and the highest revision
 * of all. Law L11 needs the first: only an end that the ledger recorded after that word is evidence that a guest may be
 * given up. The second shows a ledger that went back in time.
 *
 * Kept in the state folder where hardware outlives the agent, so that both outlive it together. Files are replaced
 * whole; nothing is flushed, because a machine without power has lost its guests too. A file that cannot be read means
 * that nothing was heard: then no end is evidence, and every guest is kept.
 *
 * VMs: under the agent's `work`. heard_see: any thread.
 */
#ifndef PW_AGENTS_HEARD_H
#define PW_AGENTS_HEARD_H
#include <stdatomic.h>

#include "engine/uuid.h"

struct heard_vm {
	struct pw_uuid vm;
	uint64_t revision; /* HEARD_NO_END: of another ledger, or of this one before it went back */
	bool plain;        /* an ordinary VM: what runs is in state normal */
};
#define HEARD_NO_END UINT64_MAX

struct heard {
	char *vms_path, *seen_path; /* NULL: memory only */
	struct heard_vm *v;         /* owned */
	size_t n, cap;
	_Atomic uint64_t seen; /* the highest revision in any answer */
	uint64_t seen_kept;    /* and what the file says */
};

/* dir NULL: in memory alone. vms_last: hardware keeps its VMs when the agent ends. */
enum pw_status heard_open(struct heard *h, const char *dir, bool vms_last, struct pw_err *err) PW_MUST_CHECK;
void heard_release(struct heard *h);

/* PW_STORAGE, PW_NO_MEMORY: it is not kept, and what was heard before still holds. */
enum pw_status heard_put(struct heard *h, const struct pw_uuid *vm, uint64_t revision, bool plain,
			 struct pw_err *err) PW_MUST_CHECK;
void heard_drop(struct heard *h, const struct pw_uuid *vm); /* hardware has it no more */
const struct heard_vm *heard_of(const struct heard *h, const struct pw_uuid *vm);
/* Is an end at that revision later than the last word on the VM? */
bool heard_is_later(const struct heard *h, const struct pw_uuid *vm, uint64_t ended);

void heard_see(struct heard *h, uint64_t revision);
/* Puts the highest revision down if it has grown. It may be behind by what was seen since the last call: a ledger that
 * went back by less than that is not noticed as such. */
void heard_keep(struct heard *h);
/* The ledger went back to `revision`: no end is evidence of anything until its VM is heard of again. */
enum pw_status heard_restart(struct heard *h, uint64_t revision, struct pw_err *err) PW_MUST_CHECK;

#endif
