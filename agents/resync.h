/* agents/resync.h
 *
 * After any crash the agent compares the two truths, hardware and ledger, and makes them agree: digests of each region
 * first, runs only where they differ. A difference that L5's order explains (a crash between the two halves of a
 * change) is repaired; any other is repaired towards hardware and logged as a violation. What the ledger does not show
 * stays on hardware (L11).
 */
#ifndef PW_AGENTS_RESYNC_H
#define PW_AGENTS_RESYNC_H
#include "agents/remote.h"

/* Compares everything of this host and repairs it; `work` is held. PW_OK also when single VMs could not be repaired
 * (logged); other statuses: the server was lost. */
enum pw_status resync_host(struct worker *w, struct pw_err *err) PW_MUST_CHECK;

/* The same for one VM alone, whatever either side has of it. */
enum pw_status resync_one_vm(struct worker *w, const struct pw_uuid *vm, struct trouble *t) PW_MUST_CHECK;

/* The pure part. */

struct run_list {
	struct backend_run *v; /* owned; sorted, not overlapping */
	size_t n, cap;
};
bool run_list_add(struct run_list *l, const struct backend_run *run) PW_MUST_CHECK;
void run_list_release(struct run_list *l);

/* Pages that ledger and hardware see differently, in the same way; frames are those of the first page. */
struct difference {
	uint64_t gfn, count;
	enum gfn_state ledger, hardware;
	uint64_t ledger_pfn, hardware_pfn;
	unsigned ledger_arch, hardware_arch; /* as in struct backend_run */
	bool refused;                        /* the ledger would not have the repair, or there is none */
	bool moved;                          /* ledger_arch is what repairs have made of it */
};
typedef bool (*difference_fn)(void *ctx, const struct difference *d); /* false stops */
/* Calls fn for each difference, in order, cut at the edges of either side's runs. Pages only one side has are normal
 * on the other. */
void resync_compare(const struct run_list *ledger, const struct run_list *hardware, difference_fn fn, void *ctx);

#define REPAIRS(X)                                                                                \
	X(REPAIR_NOTHING)      /* as good as equal */                                             \
	X(REPAIR_RELEASE)      /* page_out in the ledger */                                       \
	X(REPAIR_SHARE)        /* share in the ledger */                                          \
	X(REPAIR_UNSHARE)      /* unshare in the ledger */                                        \
	X(REPAIR_CLAIM)        /* page_in in the ledger; another's frame: disputed */             \
	X(REPAIR_CLAIM_SHARED) /* unshare with frames in the ledger; another's frame: disputed */ \
	X(REPAIR_RECLAIM)      /* page_out, then page_in with hardware's frame */                 \
	X(REPAIR_ARCH)         /* only the architecture's own state differs */
#define PW_ENUM_(name) name,
enum repair { REPAIRS(PW_ENUM_) REPAIR_COUNT };
#undef PW_ENUM_
struct remedy {
	enum repair repair;
	bool violation; /* no crash explains it */
};
struct remedy resync_remedy(const struct difference *d);

/* The same for the two states of a whole VM. */
#define VM_REPAIRS(X)                                                     \
	X(VM_REPAIR_NOTHING)                                              \
	X(VM_REPAIR_PAGES)      /* go on with its pages */                \
	X(VM_REPAIR_DESTROY)    /* end it on hardware */                  \
	X(VM_REPAIR_KEEP)       /* keep it there, and report it */        \
	X(VM_REPAIR_ADOPT)      /* make the ledger have it, then pages */ \
	X(VM_REPAIR_TERMINATE)  /* end both, hardware first */            \
	X(VM_REPAIR_ABORT)      /* the same, by init_abort */             \
	X(VM_REPAIR_DONE)       /* init_done in the ledger, then pages */ \
	X(VM_REPAIR_DONE_THERE) /* init_done on hardware, then pages */
#define PW_ENUM_(name) name,
enum vm_repair { VM_REPAIRS(PW_ENUM_) VM_REPAIR_COUNT };
#undef PW_ENUM_
struct vm_remedy {
	enum vm_repair repair;
	bool violation;
};
enum presence {
	PRESENCE_NONE,
	PRESENCE_NORMAL,
	PRESENCE_TRANSIENT,
	PRESENCE_SECURE,
	PRESENCE_ELSEWHERE, /* of the ledger: on another host */
	PRESENCE_COUNT
};
/* ended: the ledger recorded the VM's end after this agent's last word on it. Then alone a guest is given up (L11). */
struct vm_remedy resync_vm_remedy(enum presence ledger, enum presence hardware, bool ended);

/* The digest of hardware's runs over a window, as engine/digest.h has it for the ledger's. */
uint64_t resync_digest(const struct run_list *runs);

#endif
