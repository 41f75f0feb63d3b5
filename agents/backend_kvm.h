/* agents/backend_kvm.h
 *
 * More of the kvm backend than its vtable shows: for its tests, and for measurements.
 *
 * Real VMs on /dev/kvm, each with one vCPU and a small guest (kvm_guest.h). Slots are on guest_memfd where this kernel
 * lets the host map it, else on memfd; the environment variable PAGEWARDEN_KVM_BACKING=memfd asks for the latter. VMs
 * of one share_backing group always use memfd: KVM itself refuses to give one guest_memfd page to two VMs.
 * docs/kvm.md tells how it works and what it cannot do.
 */
#ifndef PW_AGENTS_BACKEND_KVM_H
#define PW_AGENTS_BACKEND_KVM_H
#include "agents/backend.h"
#include "agents/kvm_guest.h"

#define KVM_BACKING_VARIABLE "PAGEWARDEN_KVM_BACKING"
#define KVM_DEFAULT_RATE     10u /* steps, hence conversions, a second */

/* The host's view of a GFN, in this process; NULL if the VM or the GFN is unknown. A secure page faults there. */
void *backend_kvm_view(struct backend *b, const struct pw_uuid *vm, uint64_t gfn);

/* What the guest has counted so far. PW_NOT_FOUND: no such VM. */
struct kvm_guest_counts {
	uint64_t steps, checked, converted, refused;
};
enum pw_status backend_kvm_counts(struct backend *b, const struct pw_uuid *vm, struct kvm_guest_counts *out,
				  struct pw_err *err) PW_MUST_CHECK;

/* Lets the VM's guest sleep `us` from step to step, whatever its rate was; 0: not at all. */
enum pw_status backend_kvm_set_step(struct backend *b, const struct pw_uuid *vm, uint64_t us,
				    struct pw_err *err) PW_MUST_CHECK;

#endif
