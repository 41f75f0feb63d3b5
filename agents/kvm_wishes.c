#include "agents/kvm_machine.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <time.h>

#define KVM_ERROR_PERM  1 /* negated: what a guest's call answers */
#define KVM_ERROR_AGAIN 11
#define KVM_ERROR_INVAL 22
#define KVM_ERROR_NOSYS 1000
#define RETRY_FIRST_MS  10u
#define RETRY_LAST_MS   1000u
#define NS_PER_MS       UINT64_C(1000000)

static enum vcpu_next wish(struct kvm_machine *m, enum backend_want want, uint64_t gfn, uint64_t count)
{
	struct kvm_host *h = m->host;

	m->wish.vm = m->id;
	m->wish.want = want;
	m->wish.gfn = gfn;
	m->wish.count = count;
	m->wish.cookie = ++h->cookies;
	m->wish_state = WISH_QUEUED;
	m->next_wish = NULL;
	*h->last_wish = m;
	h->last_wish = &m->next_wish;
	pthread_cond_signal(&h->wished);
	return VCPU_HOLD;
}

/* The guest will not run again. `why` names no content and no register (law L10). */
static enum vcpu_next end(struct kvm_machine *m, const char *why, ...) PW_PRINTF(2, 3);
static enum vcpu_next end(struct kvm_machine *m, const char *why, ...)
{
	va_list args;

	va_start(args, why);
	vsnprintf(m->wish.detail, sizeof(m->wish.detail), why, args);
	va_end(args);
	m->answer = NULL;
	m->touching = false;
	m->ended = true;
	wish(m, WANT_TERMINATED, 0, 0);
	return VCPU_END;
}

static uint64_t gfn_of(const struct kvm_machine *m, uint64_t gpa)
{
	uint64_t stolen = m->shared_bit ? UINT64_C(1) << m->shared_bit : 0;

	return (gpa & ~stolen) >> KVM_PAGE_SHIFT;
}

/* The one way in for every conversion: doorbell, hypercall, and a fault on the other kind of page. */
static enum vcpu_next convert(struct kvm_machine *m, uint64_t gpa, uint64_t pages, uint64_t attributes, int64_t *answer)
{
	const uint64_t gfn = gfn_of(m, gpa);

	if (gpa % KVM_PAGE || !pages || attributes & KVM_MAP_GPA_SIZE_MASK || !machine_memory(m, gfn, pages)) {
		if (!answer)
			return end(m, "a fault outside the VM's slots, at gfn %" PRIu64, gfn);
		*answer = -KVM_ERROR_INVAL;
		return VCPU_GO;
	}
	if (m->state == VM_NORMAL) { /* an ordinary VM has nothing to convert */
		if (!answer)
			return end(m, "a fault of an ordinary VM, at gfn %" PRIu64, gfn);
		*answer = -KVM_ERROR_PERM;
		return VCPU_GO;
	}
	m->answer = answer;
	return wish(m, attributes & KVM_MAP_GPA_ENCRYPTED ? WANT_UNSHARE : WANT_SHARE, gfn, pages);
}

static enum vcpu_next doorbell(struct kvm_machine *m, uint32_t index)
{
	struct guest_request *rq;

	if (index >= GUEST_REQUESTS)
		return end(m, "a request number that does not exist");
	rq = &guest_mailbox(&m->guest)->request[index];
	return convert(m, rq->gpa, rq->pages, rq->attributes, &rq->ret);
}

static enum vcpu_next port(struct kvm_machine *m)
{
	const struct kvm_run *run = m->kvm.run;
	uint32_t value = 0;

	if (run->io.direction != KVM_EXIT_IO_OUT || run->io.size != sizeof(value) || run->io.count != 1)
		return end(m, "port I/O of a kind that the machine does not have");
	memcpy(&value, (const char *)run + run->io.data_offset, sizeof(value));
	switch (run->io.port) {
	case GUEST_PORT_CONVERT: return doorbell(m, value);
	case GUEST_PORT_NAP: vcpu_nap(&m->vcpu, vcpu_now_ns() + m->step_ns); return VCPU_GO;
	case GUEST_PORT_FAULT:
		return end(m, "the guest found wrong content at gfn %" PRIu64,
			   gfn_of(m, guest_mailbox(&m->guest)->fault_gpa));
	default: return end(m, "a port that the machine does not have: %#x", (unsigned)run->io.port);
	}
}

static enum vcpu_next hypercall(struct kvm_machine *m)
{
	struct kvm_run *run = m->kvm.run;
	int64_t *answer = (int64_t *)(void *)((char *)run + offsetof(struct kvm_run, hypercall.ret));

	if (run->hypercall.nr == KVM_CALL_MAP_GPA_RANGE)
		return convert(m, run->hypercall.args[0], run->hypercall.args[1], run->hypercall.args[2], answer);
	*answer = -KVM_ERROR_NOSYS;
	return VCPU_GO;
}

/* A kernel with private pages reports an access of the other kind; the guest retries it when it is let in again. */
static enum vcpu_next memory_fault(struct kvm_machine *m)
{
	struct {
		uint64_t flags, gpa, size;
	} fault;
	uint64_t gfn;

	memcpy(&fault, (const char *)m->kvm.run + offsetof(struct kvm_run, mmio), sizeof(fault));
	gfn = gfn_of(m, fault.gpa);
	if (machine_memory(m, gfn, 1) && machine_gfn_state(m, gfn) == GFN_SECURE_OUT) {
		m->answer = NULL;
		return wish(m, WANT_PAGE_IN, gfn, 1);
	}
	return convert(m, fault.gpa & ~(uint64_t)(KVM_PAGE - 1), fault.size >> KVM_PAGE_SHIFT,
		       fault.flags & KVM_FAULT_PRIVATE ? KVM_MAP_GPA_ENCRYPTED : 0, NULL);
}

/* Does in the guest's place what its instruction does: it has decoded, and waits for the data. */
static enum vcpu_next emulate_touch(struct kvm_machine *m, uint64_t gfn)
{
	const struct kvm_memory *mem = machine_memory(m, gfn, 1);
	struct kvm_run *run = m->kvm.run;
	const size_t offset = run->mmio.phys_addr % KVM_PAGE;
	const size_t len = run->mmio.len;
	struct memory_window w;

	if (len > sizeof(run->mmio.data) || len > KVM_PAGE - offset)
		return end(m, "an access across pages at gfn %" PRIu64, gfn);
	if (memory_window_open(mem, gfn - mem->slot.base, 1, &w, NULL)) {
		vcpu_nap(&m->vcpu, vcpu_now_ns() + RETRY_FIRST_MS * NS_PER_MS);
		return VCPU_GO;
	}
	if (run->mmio.is_write)
		memcpy(w.at + offset, run->mmio.data, len);
	else
		memcpy(run->mmio.data, w.at + offset, len);
	memory_window_close(&w);
	m->touching = false;
	m->retry_ms = 0;
	return VCPU_GO;
}

static enum vcpu_next touch(struct kvm_machine *m)
{
	const uint64_t gfn = gfn_of(m, m->kvm.run->mmio.phys_addr);

	if (!machine_memory(m, gfn, 1))
		return end(m, "an access outside the VM's slots, at gfn %" PRIu64, gfn);
	if (machine_gfn_state(m, gfn) != GFN_SECURE_OUT)
		return emulate_touch(m, gfn);
	m->answer = NULL;
	return wish(m, WANT_PAGE_IN, gfn, 1);
}

enum vcpu_next wishes_before(void *machine)
{
	struct kvm_machine *m = machine;

	return m->touching ? touch(m) : VCPU_GO;
}

enum vcpu_next wishes_exited(void *machine, int error)
{
	struct kvm_machine *m = machine;
	const uint32_t reason = m->kvm.run->exit_reason;

	if (error == EINTR || error == EAGAIN)
		return VCPU_GO;
	if (error == EFAULT && reason == KVM_EXIT_MEMORY_FAULT)
		return memory_fault(m);
	if (error)
		return end(m, "KVM_RUN: %s", strerror(error));
	switch (reason) {
	case KVM_EXIT_IO: return port(m);
	case KVM_EXIT_HYPERCALL: return hypercall(m);
	case KVM_EXIT_MMIO: m->touching = true; return touch(m);
	case KVM_EXIT_INTR: return VCPU_GO;
	case KVM_EXIT_SHUTDOWN: return end(m, "the guest shut down (an exception it does not handle)");
	default: return end(m, "the guest ended with KVM exit %" PRIu32, reason);
	}
}

static struct kvm_machine *take_wish(struct kvm_host *h)
{
	struct kvm_machine *m = h->first_wish;

	if (!m)
		return NULL;
	h->first_wish = m->next_wish;
	if (!h->first_wish)
		h->last_wish = &h->first_wish;
	m->wish_state = WISH_DELIVERED;
	return m;
}

void wishes_forget(struct kvm_machine *m)
{
	struct kvm_host *h = m->host;

	if (m->wish_state == WISH_QUEUED) {
		struct kvm_machine **at = &h->first_wish;

		while (*at != m)
			at = &(*at)->next_wish;
		*at = m->next_wish;
		if (!*at)
			h->last_wish = at;
	}
	m->wish_state = WISH_NONE;
	m->answer = NULL;
	m->touching = false;
	m->retry_ms = 0;
	m->wish.detail[0] = '\0';
}

enum pw_status wishes_wait(struct backend *b, unsigned timeout_ms, struct backend_request *out, struct pw_err *err)
{
	struct kvm_host *h = kvm_host_of(b);
	const uint64_t until = vcpu_now_ns() + timeout_ms * NS_PER_MS;
	const struct timespec t = { .tv_sec = (time_t)(until / (1000 * NS_PER_MS)),
				    .tv_nsec = (long)(until % (1000 * NS_PER_MS)) };
	struct kvm_machine *m;
	int r = 0;

	pthread_mutex_lock(&h->lock);
	while (!(m = take_wish(h)) && !h->kicked && r != ETIMEDOUT)
		r = pthread_cond_timedwait(&h->wished, &h->lock, &t);
	if (m)
		*out = m->wish;
	else
		h->kicked = false;
	pthread_mutex_unlock(&h->lock);
	return m ? PW_OK : pw_fail(err, PW_BUSY, "no guest wants anything");
}

void wishes_kick(struct backend *b)
{
	struct kvm_host *h = kvm_host_of(b);

	pthread_mutex_lock(&h->lock);
	h->kicked = true;
	pthread_cond_broadcast(&h->wished);
	pthread_mutex_unlock(&h->lock);
}

static int64_t answer_for(enum pw_status st)
{
	if (st == PW_OK)
		return 0;
	return st == PW_BUSY ? -KVM_ERROR_AGAIN : -KVM_ERROR_PERM;
}

/* A guest cannot go on without its page: it tries again, ever more slowly. */
static void slow_down(struct kvm_machine *m)
{
	m->retry_ms = m->retry_ms ? m->retry_ms * 2 : RETRY_FIRST_MS;
	if (m->retry_ms > RETRY_LAST_MS)
		m->retry_ms = RETRY_LAST_MS;
	vcpu_nap(&m->vcpu, vcpu_now_ns() + m->retry_ms * NS_PER_MS);
}

void wishes_complete(struct backend *b, const struct backend_request *rq, enum pw_status st)
{
	struct kvm_host *h = kvm_host_of(b);
	struct kvm_machine *m;

	pthread_mutex_lock(&h->lock);
	m = kvm_machine_find(h, &rq->vm);
	if (m && m->wish_state == WISH_DELIVERED && m->wish.cookie == rq->cookie) {
		m->wish_state = WISH_NONE;
		if (m->answer)
			*m->answer = answer_for(st);
		else if (st)
			slow_down(m);
		m->answer = NULL;
		vcpu_release(&m->vcpu);
	}
	pthread_mutex_unlock(&h->lock);
}
