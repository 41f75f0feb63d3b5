/* agents/kvm_guest.h
 *
 * The small guest that every VM of the kvm backend runs, and the memory it boots from.
 *
 * Boot memory (code, mailbox, stack, page tables) is the VMM's own, like the ROM of a machine: it lies at
 * boot_gpa = 1 << (gpa_bits - 1), outside every slot, so that each GFN of a slot is the guest's to use and the ledger
 * accounts for exactly the guest's memory. A slot that reaches boot_gpa is refused. Boot memory holds nothing secret.
 *
 * The guest keeps a pattern in each page of a window of its first slot. In each step it checks and rewrites some pages,
 * has one page converted, checks that it reads as zero after that, and naps. It asks by port:
 *   GUEST_PORT_CONVERT  request[value] of the mailbox, with the arguments and the answer of KVM_HC_MAP_GPA_RANGE
 *   GUEST_PORT_NAP      sleep until the next step is due
 *   GUEST_PORT_FAULT    a page (fault_gpa) does not read as it must
 */
#ifndef PW_AGENTS_KVM_GUEST_H
#define PW_AGENTS_KVM_GUEST_H
#include "agents/kvm_vm.h"

#define GUEST_PORT_CONVERT 0x5d0
#define GUEST_PORT_NAP     0x5d1
#define GUEST_PORT_FAULT   0x5d2
#define GUEST_REQUESTS     4
#define GUEST_WINDOW_MAX   1024 /* pages */

/* Seeds that make a guest misbehave, for tests and demonstrations. */
#define GUEST_SEED_VMCALL  (UINT64_MAX - 0) /* a stray vmcall */
#define GUEST_SEED_SPIN    (UINT64_MAX - 1) /* never exits */
#define GUEST_SEED_CRASH   (UINT64_MAX - 2) /* ud2 */

enum guest_mode { GUEST_WORKS, GUEST_IDLES, GUEST_VMCALLS, GUEST_SPINS, GUEST_CRASHES };

struct guest_request {
	uint64_t gpa, pages, attributes;
	int64_t ret;
};
struct guest_mailbox {                                 /* kvm_guest.c's assembly knows the offsets */
	uint64_t seed, mode, window_gpa, window_pages; /* from the VMM */
	uint64_t steps, checked, converted, refused;   /* counted by the guest */
	uint64_t fault_gpa;
	uint64_t pad[7];
	struct guest_request request[GUEST_REQUESTS];
};

struct guest {
	uint8_t *boot;
	uint64_t boot_gpa;
	size_t tables; /* page tables in use */
};

/* Adds boot memory to the VM as KVM slot 0. */
enum pw_status guest_open(struct guest *g, const struct kvm_vm *kvm, struct pw_err *err) PW_MUST_CHECK;
void guest_close(struct guest *g);

/* Lets the guest reach [gpa, gpa + size) at the same virtual address. PW_INVALID: not below boot memory. */
enum pw_status guest_map(struct guest *g, uint64_t gpa, uint64_t size, struct pw_err *err) PW_MUST_CHECK;

/* Puts the guest (which must not be running) before its first instruction. */
struct guest_plan {
	uint64_t seed, window_gpa, window_pages;
	bool idle;
};
enum pw_status guest_reset(struct guest *g, const struct kvm_vm *kvm, const struct guest_plan *plan,
			   struct pw_err *err) PW_MUST_CHECK;

struct guest_mailbox *guest_mailbox(const struct guest *g);

#endif
