/* agents/resync_impl.h
 *
 * What the parts of a resync share: VMs (resync.c), their slots and their adoption (adopt.c), their pages
 * (resync_pages.c). `work` is held throughout.
 */
#ifndef PW_AGENTS_RESYNC_IMPL_H
#define PW_AGENTS_RESYNC_IMPL_H
#include "agents/resync.h"
#include "agents/unknown.h"

struct seen_vm {
	struct pw_uuid id;
	enum presence ledger, hardware;
	struct remote_vm vm; /* if the ledger has it */
	struct disputes disputes;
	uint64_t stray; /* resident pages in slots that the ledger has not, and would not take */
};

struct resync {
	struct worker *w;
	struct seen_vm *vms; /* owned */
	size_t n, cap;
	bool failed;         /* no memory */
	enum vm_state state; /* of the VM whose pages are being compared, on both sides */
	uint64_t regions, opened, differences, violations, unrepaired, disputed;
};

void resync_violation(struct resync *rs, const struct pw_uuid *vm, const char *what); /* counts and logs it */

/* Pages of a VM that both sides have in a state other than normal, and whose slots agree. */
enum pw_status resync_pages(struct resync *rs, struct seen_vm *s, struct trouble *t) PW_MUST_CHECK;

/*
 * Makes hardware and ledger have the same slots. A slot of hardware that the ledger recorded as deleted after the last
 * word on the VM goes, with its pages; one that the ledger just does not have is added there, and stays on hardware
 * even if it is refused.
 */
enum pw_status slots_agree(struct worker *w, const struct pw_uuid *vm, struct remote_vm *ledger,
			   struct trouble *t) PW_MUST_CHECK;
/* Makes the ledger have hardware's VM, in hardware's state; s->vm and s->ledger say then what it has. PW_CONFLICT: the
 * ledger refuses (t->err says why). */
enum pw_status vm_adopt(struct resync *rs, struct seen_vm *s, struct trouble *t) PW_MUST_CHECK;

#endif
