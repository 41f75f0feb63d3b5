/* agents/kvm_memory.h
 *
 * The memory behind one slot of a VM: a file of host pages (guest_memfd, or memfd), and the host's view of it, where
 * secure pages are hidden. Pages are counted from the slot's first.
 *
 * With guest_memfd the guest reaches the file itself, and the view is the only mapping the host has: frames stay put
 * until they are punched. With memfd the guest goes through a second mapping (`guest`), which exists for KVM alone;
 * its pages are locked while they are secure, so that they are not swapped out (the kernel may still migrate one:
 * memory_frames then tells the new frame).
 */
#ifndef PW_AGENTS_KVM_MEMORY_H
#define PW_AGENTS_KVM_MEMORY_H
#include "agents/kvm_vm.h"
#include "engine/ledger.h"

#define KVM_PAGE_SHIFT 12
#define KVM_PAGE       ((size_t)1 << KVM_PAGE_SHIFT)

struct kvm_backing { /* one file; several VMs may use it, if they ask for a double assignment */
	int fd;
	bool guest_memfd;
	uint64_t pages;
	unsigned users;
	char *group; /* NULL: one VM's own */
};
enum pw_status backing_new(const struct kvm_vm *kvm, uint64_t pages, bool guest_memfd, const char *group,
			   struct kvm_backing **out, struct pw_err *err) PW_MUST_CHECK;
enum pw_status backing_grow(struct kvm_backing *k, uint64_t pages, struct pw_err *err) PW_MUST_CHECK; /* memfd only */
void backing_put(struct kvm_backing *k); /* the last user frees it */

struct kvm_memory {
	struct slot slot;
	struct kvm_backing *backing;
	uint8_t *view;  /* the host's: PROT_NONE where the guest is secure */
	uint8_t *guest; /* what KVM is given as userspace_addr */
};
/* Takes one use of `k` from the caller, on failure too. */
enum pw_status memory_open(struct kvm_memory *m, const struct slot *slot, struct kvm_backing *k,
			   struct pw_err *err) PW_MUST_CHECK;
void memory_close(struct kvm_memory *m);

/* PW_NO_MEMORY: the kernel has no more mappings for so scattered a protection; nothing changed. */
enum pw_status memory_show(struct kvm_memory *m, uint64_t page, uint64_t count, struct pw_err *err) PW_MUST_CHECK;
enum pw_status memory_hide(struct kvm_memory *m, uint64_t page, uint64_t count, struct pw_err *err) PW_MUST_CHECK;

/* Keeps secure pages from being swapped; nothing to do for guest_memfd. */
void memory_lock(struct kvm_memory *m, uint64_t page, uint64_t count);
void memory_unlock(struct kvm_memory *m, uint64_t page, uint64_t count);

/* Makes the pages present. PW_BUSY: the host is out of memory. */
enum pw_status memory_fill(struct kvm_memory *m, uint64_t page, uint64_t count, struct pw_err *err) PW_MUST_CHECK;
/* Frees the pages: content lost, gone from guest and host, zero at the next touch. */
enum pw_status memory_punch(struct kvm_memory *m, uint64_t page, uint64_t count, struct pw_err *err) PW_MUST_CHECK;

/* A short-lived mapping of pages whatever the view shows, for moving content and for reading frame numbers. Its pages
 * are present while it is open: those that were not are made. */
struct memory_window {
	uint8_t *at;
	uint64_t count;
};
enum pw_status memory_window_open(const struct kvm_memory *m, uint64_t page, uint64_t count, struct memory_window *w,
				  struct pw_err *err) PW_MUST_CHECK;
void memory_window_close(struct memory_window *w);

/* The frames behind a window, from /proc/self/pagemap (pagemap_fd). PW_BUSY: a page is not there. */
enum pw_status memory_frames(const struct memory_window *w, int pagemap_fd, uint64_t *pfns,
			     struct pw_err *err) PW_MUST_CHECK;

/* The run of pages from `page`, at most `count`, that are all present or all absent (nothing is made). */
struct presence {
	uint64_t count;
	bool present;
};
struct presence memory_presence(const struct kvm_memory *m, uint64_t page, uint64_t count);

#endif
