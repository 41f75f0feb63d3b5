/* agents/kvm_vm.h
 *
 * One VM on /dev/kvm with one vCPU: the ioctls that the kvm backend needs, and what this kernel can do.
 * Names that older <linux/kvm.h> lack are defined in the .c; capabilities are asked on the VM, never assumed.
 */
#ifndef PW_AGENTS_KVM_VM_H
#define PW_AGENTS_KVM_VM_H
#include "engine/status.h"

#include <linux/kvm.h>

#ifndef KVM_EXIT_MEMORY_FAULT
#define KVM_EXIT_MEMORY_FAULT 39
#endif
#define KVM_FAULT_PRIVATE      (UINT64_C(1) << 3) /* of a memory fault's flags */
#define KVM_MAP_GPA_ENCRYPTED  (UINT64_C(1) << 4) /* of KVM_HC_MAP_GPA_RANGE's attributes */
#define KVM_MAP_GPA_SIZE_MASK  UINT64_C(15)
#define KVM_CALL_MAP_GPA_RANGE 12

struct kvm_caps {
	bool guest_memfd;     /* files that the host may map: MMAP | INIT_SHARED */
	bool private_pages;   /* KVM_MEMORY_ATTRIBUTE_PRIVATE */
	bool hypercall_exits; /* KVM_HC_MAP_GPA_RANGE can reach us */
	uint32_t slots;
	unsigned gpa_bits; /* guest physical addresses, and our identity map, end below 1 << gpa_bits */
};

struct kvm_vm {
	int fd, vcpu_fd;
	struct kvm_run *run;
	size_t run_size;
	struct kvm_caps caps;
};

/* PW_NOT_FOUND  no /dev/kvm, or not for us. PW_BACKEND  it is there and speaks another API version. */
enum pw_status kvm_dev_open(int *fd, struct pw_err *err) PW_MUST_CHECK;

/* A VM that has its vCPU but no memory. PW_BACKEND says which ioctl refused. */
enum pw_status kvm_vm_open(int dev_fd, struct kvm_vm *out, struct pw_err *err) PW_MUST_CHECK;
void kvm_vm_close(struct kvm_vm *vm);

/* A guest_memfd of `size` bytes that host and guest may map. Its frames never move. */
enum pw_status kvm_vm_guest_memfd(const struct kvm_vm *vm, uint64_t size, int *fd, struct pw_err *err) PW_MUST_CHECK;

struct kvm_region {
	uint32_t id;        /* KVM's slot */
	uint64_t gpa, size; /* size 0: delete it */
	void *host;         /* where the memory is mapped; ignored by the MMU if guest_memfd >= 0 */
	int guest_memfd;    /* or -1 */
	uint64_t offset;    /* in it */
};
enum pw_status kvm_vm_set_region(const struct kvm_vm *vm, const struct kvm_region *r, struct pw_err *err) PW_MUST_CHECK;

/* Tells a kernel that knows private pages which these are; PW_OK without effect on one that does not. */
enum pw_status kvm_vm_set_private(const struct kvm_vm *vm, uint64_t gpa, uint64_t size, bool on,
				  struct pw_err *err) PW_MUST_CHECK;

/* Where a guest starts: in long mode at CPL 3 (the only mode that all KVMs run natively), ports open to it. */
struct kvm_start {
	uint64_t rip, rsp, cr3;
	uint64_t tss; /* a page; its I/O bitmap says which ports are open (not every KVM keeps IOPL 3 of the flags) */
	uint64_t rbx, r12; /* its arguments */
};
enum pw_status kvm_vm_set_start(const struct kvm_vm *vm, const struct kvm_start *s, struct pw_err *err) PW_MUST_CHECK;

/* Enters the guest until it exits: 0, or the errno of KVM_RUN (EINTR after a signal or run->immediate_exit). */
int kvm_vm_run(const struct kvm_vm *vm);

/* Ends an I/O or MMIO exit without running on, so that registers may be set. */
void kvm_vm_finish_exit(const struct kvm_vm *vm);

#endif
