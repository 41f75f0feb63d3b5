/* agents/kvm_vcpu.h
 *
 * The thread that runs a VM's vCPU. It is in the guest, or asleep, or inside one of its owner's callbacks; all of
 * its fields and both callbacks are under the owner's lock, which it gives up only while in the guest or asleep.
 *
 * A guest that does not exit for VCPU_SLICE_MS is taken out of KVM_RUN by a timer signal (so nothing a guest does can
 * hold the thread) and made to wait nine times as long (so it cannot eat a core either).
 */
#ifndef PW_AGENTS_KVM_VCPU_H
#define PW_AGENTS_KVM_VCPU_H
#include "agents/kvm_vm.h"

#include <pthread.h>

#define VCPU_SLICE_MS 20

enum vcpu_next { VCPU_GO, VCPU_HOLD, VCPU_END }; /* enter again; wait for vcpu_release; never run again */

struct vcpu {
	struct kvm_vm *kvm;    /* borrowed */
	pthread_mutex_t *lock; /* the owner's. borrowed */
	/* Before each entry. */
	enum vcpu_next (*before)(void *ctx);
	/* After each exit; error is KVM_RUN's errno, or 0. */
	enum vcpu_next (*exited)(void *ctx, int error);
	void *ctx;

	pthread_t thread;
	pthread_cond_t changed; /* any of the fields below */
	bool has_thread, timed, in_guest, stop;
	bool runnable, held;
	unsigned parked;
	uint64_t nap_until_ns; /* CLOCK_MONOTONIC */
};

/* Fill kvm, lock, the callbacks and ctx first. Called without the lock. */
enum pw_status vcpu_start(struct vcpu *v, struct pw_err *err) PW_MUST_CHECK;
void vcpu_stop(struct vcpu *v); /* ends the thread; called without the lock */

/* All of these with the lock held. Between park and unpark the guest does not run, nor does any callback. */
void vcpu_park(struct vcpu *v);
void vcpu_unpark(struct vcpu *v);
void vcpu_set_runnable(struct vcpu *v, bool on);  /* off: for good once parked */
void vcpu_release(struct vcpu *v);                /* ends VCPU_HOLD */
void vcpu_nap(struct vcpu *v, uint64_t until_ns); /* no entry before then */

uint64_t vcpu_now_ns(void);

#endif
