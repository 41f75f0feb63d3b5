/* agents/kvm_machine.h
 *
 * What the files of the kvm backend share: the backend, its machines, and who may touch what.
 *
 * Two kinds of threads: the caller of the backend, and one vCPU thread a machine. host->lock guards the list of
 * machines, the wishes, and all of a vCPU's fields. A machine's memory (pages, memory, layout, vault, guest) is
 * changed by the caller alone, and only while the vCPU is parked; the vCPU's callbacks read it under the lock.
 */
#ifndef PW_AGENTS_KVM_MACHINE_H
#define PW_AGENTS_KVM_MACHINE_H
#include "agents/backend.h"
#include "agents/kvm_guest.h"
#include "agents/kvm_layout.h"
#include "agents/kvm_vault.h"
#include "agents/kvm_vcpu.h"

enum wish_state { WISH_NONE, WISH_QUEUED, WISH_DELIVERED };

struct kvm_machine {
	struct kvm_host *host; /* borrowed */
	struct kvm_machine *next;
	struct pw_uuid id;
	enum vm_state state;
	unsigned shared_bit;

	struct kvm_vm kvm;
	struct guest guest;
	struct guest_plan plan;
	uint64_t step_ns; /* from one step of the guest to the next */
	struct vcpu vcpu;

	struct kvm_memory **memory; /* one for each slot, sorted by GFN */
	size_t memory_count;
	struct tree pages; /* GFN_ENTRY_*, as in the ledger */
	struct layout layout;
	struct vault vault;

	enum wish_state wish_state;
	struct backend_request wish;
	struct kvm_machine *next_wish;
	int64_t *answer; /* where a conversion's result goes; NULL: to nobody */
	bool touching;   /* an MMIO exit (a touch of a page without a KVM slot) is not finished */
	unsigned retry_ms;
	bool ended; /* shut down or crashed: it runs again only after another launch */
};

struct kvm_host {
	struct backend base;
	int dev_fd, pagemap_fd;
	bool guest_memfd; /* slots are on it */
	struct kvm_caps caps;
	uint64_t frames;
	struct pw_mem mem;
	struct arena arena;

	pthread_mutex_t lock;
	pthread_cond_t wished;
	bool kicked;
	uint64_t cookies;
	struct kvm_machine *machines;
	struct kvm_machine *first_wish, **last_wish;
};

/* kvm_pages.c. "Touch" of memory by the caller, who has parked the vCPU. */
struct kvm_memory *machine_memory(const struct kvm_machine *m, uint64_t gfn,
				  uint64_t count); /* wholly in one slot; or NULL */
enum gfn_state machine_gfn_state(const struct kvm_machine *m, uint64_t gfn);
enum pw_status pages_reserve(struct kvm_machine *m, uint64_t gfn, uint64_t count, uint64_t *pfns,
			     struct pw_err *err) PW_MUST_CHECK;
void pages_unreserve(struct kvm_machine *m, uint64_t gfn, uint64_t count);
/* Moves every GFN of the run as the law says for `op`; pfns only for GFN_UNSHARE_IN (which page_in is, here). */
enum pw_status pages_change(struct kvm_machine *m, enum gfn_op op, uint64_t gfn, uint64_t count, const uint64_t *pfns,
			    struct pw_err *err) PW_MUST_CHECK;
/* Every GFN normal, every page and all content gone. */
enum pw_status pages_reset(struct kvm_machine *m, struct pw_err *err) PW_MUST_CHECK;
enum pw_status pages_drop_slot(struct kvm_machine *m, struct kvm_memory *mem, struct pw_err *err) PW_MUST_CHECK;
enum pw_status pages_read(struct kvm_machine *m, uint64_t gfn, uint64_t count, backend_run_fn fn, void *ctx,
			  struct pw_err *err) PW_MUST_CHECK;

/* kvm_wishes.c */
enum vcpu_next wishes_before(void *machine);
enum vcpu_next wishes_exited(void *machine, int error);
enum pw_status wishes_wait(struct backend *b, unsigned timeout_ms, struct backend_request *out, struct pw_err *err);
void wishes_kick(struct backend *b);
void wishes_complete(struct backend *b, const struct backend_request *rq, enum pw_status st);
void wishes_forget(struct kvm_machine *m); /* with the lock held */

static inline struct kvm_host *kvm_host_of(struct backend *b)
{
	return PW_CONTAINER_OF(b, struct kvm_host, base);
}

/* With the lock held, or from the caller's thread (which alone changes the list). NULL: unknown. */
struct kvm_machine *kvm_machine_find(const struct kvm_host *h, const struct pw_uuid *id);

#endif
