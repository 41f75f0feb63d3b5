/* agents/kvm_layout.h
 *
 * Which GFNs of a VM have a KVM memory slot, in runs. A paged-out page has none: a guest's touch of it then exits as
 * MMIO, where a guest_memfd file would otherwise just give the guest a fresh page behind the ledger's back.
 *
 * A run can only be changed by deleting and adding, and the guest must fault its pages in again; so runs are merged as
 * a binary counter is: with a neighbour that is no longer. n pages shown one by one cost O(n log n), and leave
 * O(log n) runs. A page that should have a KVM slot and has none (KVM is out of them) is still reached, by
 * emulation: slow, never wrong. So only hiding can fail.
 */
#ifndef PW_AGENTS_KVM_LAYOUT_H
#define PW_AGENTS_KVM_LAYOUT_H
#include "agents/kvm_memory.h"

struct layout_run {
	const struct kvm_memory *memory; /* borrowed */
	uint64_t gfn, count;
	uint32_t id; /* KVM's slot */
};
struct layout {
	const struct kvm_vm *kvm; /* borrowed */
	struct layout_run *runs;  /* sorted by gfn */
	size_t count, room;
	uint32_t *free_ids;
	uint32_t free_count, free_room, next_id;
};

/* KVM slots from first_id on are the layout's. */
void layout_init(struct layout *l, const struct kvm_vm *kvm, uint32_t first_id);
void layout_release(struct layout *l); /* deletes no KVM slot: the VM is to be closed */

void layout_show(struct layout *l, const struct kvm_memory *m, uint64_t gfn, uint64_t count);
/* PW_BACKEND: KVM refused to delete a slot; what was hidden before stays hidden. */
enum pw_status layout_hide(struct layout *l, uint64_t gfn, uint64_t count, struct pw_err *err) PW_MUST_CHECK;

#endif
