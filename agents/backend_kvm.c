#include "agents/backend_kvm.h"
#include "agents/kvm_machine.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define FIRST_LAYOUT_ID 1u /* KVM slot 0 is boot memory */
#define NS_PER_S        UINT64_C(1000000000)
#define RATE_MAX        100000u

struct kvm_machine *kvm_machine_find(const struct kvm_host *h, const struct pw_uuid *id)
{
	struct kvm_machine *m = h->machines;

	while (m && !pw_uuid_equal(&m->id, id))
		m = m->next;
	return m;
}

static enum pw_status find(struct backend *b, const struct pw_uuid *id, struct kvm_machine **out, struct pw_err *err)
{
	char text[PW_UUID_TEXT];

	*out = kvm_machine_find(kvm_host_of(b), id);
	if (*out)
		return PW_OK;
	pw_uuid_format(id, text);
	return pw_fail(err, PW_NOT_FOUND, "no VM %s on this host's KVM", text);
}

static void lock(struct kvm_machine *m)
{
	pthread_mutex_lock(&m->host->lock);
}

static void unlock(struct kvm_machine *m)
{
	pthread_mutex_unlock(&m->host->lock);
}

static void park(struct kvm_machine *m)
{
	lock(m);
	vcpu_park(&m->vcpu);
	unlock(m);
}

static void unpark(struct kvm_machine *m)
{
	lock(m);
	vcpu_unpark(&m->vcpu);
	unlock(m);
}

/* ---- slots ---- */

static struct kvm_backing *group_find(const struct kvm_host *h, const char *group)
{
	for (const struct kvm_machine *m = h->machines; m; m = m->next)
		for (size_t i = 0; i < m->memory_count; i++) {
			struct kvm_backing *k = m->memory[i]->backing;

			if (k->group && !strcmp(k->group, group))
				return k;
		}
	return NULL;
}

/* One use of the file that is to hold `pages` for a slot; of the group's, if the slot is to be in one. */
static enum pw_status backing_for(struct kvm_machine *m, uint64_t pages, const char *group, struct kvm_backing **out,
				  struct pw_err *err)
{
	struct kvm_backing *k = group ? group_find(m->host, group) : NULL;
	enum pw_status st;

	if (!k)
		return backing_new(&m->kvm, pages, m->host->guest_memfd && !group, group, out, err);
	st = backing_grow(k, pages, err);
	if (st)
		return st;
	k->users++;
	*out = k;
	return PW_OK;
}

static enum pw_status check_slot(const struct kvm_machine *m, const struct slot *s, struct pw_err *err)
{
	if (!s->pages || s->base >= TREE_PAGES || s->pages > TREE_PAGES - s->base)
		return pw_fail(err, PW_INVALID, "slot %" PRIu32 " is empty or lies past 2^40", s->number);
	for (size_t i = 0; i < m->memory_count; i++) {
		const struct slot *o = &m->memory[i]->slot;

		if (o->number == s->number || (s->base < o->base + o->pages && o->base < s->base + s->pages))
			return pw_fail(err, PW_CONFLICT, "slot %" PRIu32 " overlaps slot %" PRIu32, s->number,
				       o->number);
	}
	return PW_OK;
}

static enum pw_status memory_new(struct kvm_machine *m, const struct slot *s, const char *group,
				 struct kvm_memory **out, struct pw_err *err)
{
	struct kvm_memory *mem = calloc(1, sizeof(*mem));
	struct kvm_backing *k = NULL;
	enum pw_status st;

	if (!mem)
		return pw_fail(err, PW_NO_MEMORY, "no memory for slot %" PRIu32, s->number);
	st = backing_for(m, s->pages, group, &k, err);
	if (!st)
		st = memory_open(mem, s, k, err);
	if (st) {
		free(mem);
		return st;
	}
	*out = mem;
	return PW_OK;
}

static void insert(struct kvm_machine *m, struct kvm_memory *mem)
{
	size_t at = m->memory_count++;

	for (; at && m->memory[at - 1]->slot.base > mem->slot.base; at--)
		m->memory[at] = m->memory[at - 1];
	m->memory[at] = mem;
}

static enum pw_status hide_new(struct kvm_machine *m, struct kvm_memory *mem, struct pw_err *err)
{
	const struct slot *s = &mem->slot;
	enum pw_status st = memory_hide(mem, 0, s->pages, err);

	if (!st)
		st = kvm_vm_set_private(&m->kvm, s->base << KVM_PAGE_SHIFT, s->pages << KVM_PAGE_SHIFT, true, err);
	if (!st)
		st = arena_reserve(&m->host->arena);
	if (!st)
		st = tree_set(&m->pages, s->base, s->pages, GFN_ENTRY_OUT);
	return st == PW_NO_MEMORY ? pw_fail(err, st, "no memory for slot %" PRIu32, s->number) : st;
}

/* The GFNs of a new slot are normal; in a secure VM secure and out. The vCPU must be parked. */
static enum pw_status add_slot(struct kvm_machine *m, const struct slot *s, const char *group, struct pw_err *err)
{
	enum pw_status st = check_slot(m, s, err);
	struct kvm_memory *mem = NULL, **grown;

	if (!st)
		st = guest_map(&m->guest, s->base << KVM_PAGE_SHIFT, s->pages << KVM_PAGE_SHIFT, err);
	if (st)
		return st;
	grown = realloc(m->memory, (m->memory_count + 1) * sizeof(grown[0]));
	if (!grown)
		return pw_fail(err, PW_NO_MEMORY, "no memory for slot %" PRIu32, s->number);
	m->memory = grown;
	st = memory_new(m, s, group, &mem, err);
	if (st)
		return st;
	if (m->state == VM_SECURE)
		st = hide_new(m, mem, err);
	else
		layout_show(&m->layout, mem, s->base, s->pages);
	if (st) {
		memory_close(mem);
		free(mem);
		return st;
	}
	insert(m, mem);
	return PW_OK;
}

static enum pw_status kvm_map_slot(struct backend *b, const struct pw_uuid *vm, const struct slot *s,
				   struct pw_err *err)
{
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	if (st)
		return st;
	for (size_t i = 0; i < m->memory_count; i++) {
		const struct slot *o = &m->memory[i]->slot;

		if (o->number == s->number && o->base == s->base && o->pages == s->pages)
			return PW_OK;
	}
	park(m);
	st = add_slot(m, s, NULL, err);
	unpark(m);
	return st;
}

static enum pw_status remove_slot(struct kvm_machine *m, size_t at, struct pw_err *err)
{
	struct kvm_memory *mem = m->memory[at];
	enum pw_status st = pages_drop_slot(m, mem, err);

	if (st)
		return st;
	m->memory_count--;
	memmove(&m->memory[at], &m->memory[at + 1], (m->memory_count - at) * sizeof(m->memory[0]));
	memory_close(mem);
	free(mem);
	return PW_OK;
}

static enum pw_status kvm_unmap_slot(struct backend *b, const struct pw_uuid *vm, uint32_t number, struct pw_err *err)
{
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	for (size_t i = 0; !st && i < m->memory_count; i++)
		if (m->memory[i]->slot.number == number) {
			park(m);
			st = remove_slot(m, i, err);
			unpark(m);
			break;
		}
	return st;
}

/* ---- VMs ---- */

static void machine_free(struct kvm_machine *m)
{
	vcpu_stop(&m->vcpu);
	lock(m);
	wishes_forget(m);
	unlock(m);
	layout_release(&m->layout);
	kvm_vm_close(&m->kvm);
	guest_close(&m->guest);
	for (size_t i = 0; i < m->memory_count; i++) {
		memory_close(m->memory[i]);
		free(m->memory[i]);
	}
	free(m->memory);
	tree_release(&m->pages);
	vault_release(&m->vault);
	free(m);
}

static struct kvm_machine *machine_alloc(struct kvm_host *h, const struct backend_vm_spec *spec)
{
	struct kvm_machine *m = calloc(1, sizeof(*m));
	unsigned rate = spec->guest_rate ? spec->guest_rate : KVM_DEFAULT_RATE;

	if (!m)
		return NULL;
	m->host = h;
	m->id = spec->id;
	m->shared_bit = spec->shared_bit;
	m->kvm = (struct kvm_vm){ .fd = -1, .vcpu_fd = -1 };
	m->plan = (struct guest_plan){ .seed = spec->guest_seed, .idle = spec->idle };
	m->step_ns = spec->idle ? NS_PER_S : NS_PER_S / (rate < RATE_MAX ? rate : RATE_MAX);
	if (spec->slot_count) {
		m->plan.window_gpa = spec->slots[0].base << KVM_PAGE_SHIFT;
		m->plan.window_pages = spec->slots[0].pages;
	}
	tree_init(&m->pages, &h->arena);
	m->vcpu = (struct vcpu){
		.kvm = &m->kvm, .lock = &h->lock, .before = wishes_before, .exited = wishes_exited, .ctx = m
	};
	return m;
}

static enum pw_status machine_build(struct kvm_machine *m, const struct backend_vm_spec *spec, struct pw_err *err)
{
	const char *group = spec->share_backing && *spec->share_backing ? spec->share_backing : NULL;
	enum pw_status st = kvm_vm_open(m->host->dev_fd, &m->kvm, err);

	if (st)
		return st;
	layout_init(&m->layout, &m->kvm, FIRST_LAYOUT_ID);
	st = guest_open(&m->guest, &m->kvm, err);
	for (size_t i = 0; i < spec->slot_count && !st; i++)
		st = add_slot(m, &spec->slots[i], i ? NULL : group, err);
	return st ? st : vcpu_start(&m->vcpu, err);
}

static enum pw_status kvm_create_vm(struct backend *b, const struct backend_vm_spec *spec, struct pw_err *err)
{
	struct kvm_host *h = kvm_host_of(b);
	struct kvm_machine *m;
	enum pw_status st;

	if (kvm_machine_find(h, &spec->id))
		return PW_OK;
	m = machine_alloc(h, spec);
	if (!m)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a VM");
	st = machine_build(m, spec, err);
	if (st) {
		machine_free(m);
		return pw_wrap(err, "creating a VM");
	}
	lock(m);
	m->next = h->machines;
	h->machines = m;
	unlock(m);
	return PW_OK;
}

static enum pw_status each_slot_done(struct kvm_machine *m, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < m->memory_count && !st; i++) {
		const struct slot *s = &m->memory[i]->slot;

		st = pages_change(m, GFN_INIT_DONE, s->base, s->pages, NULL, err);
	}
	return st;
}

/* The guest starts anew each time its VM is launched. */
static enum pw_status start_over(struct kvm_machine *m, struct pw_err *err)
{
	enum pw_status st = guest_reset(&m->guest, &m->kvm, &m->plan, err);

	if (st)
		return st;
	m->ended = false;
	vault_release(&m->vault);
	return vault_init(&m->vault, err);
}

static enum pw_status back_to_normal(struct kvm_machine *m, struct pw_err *err)
{
	lock(m);
	vcpu_set_runnable(&m->vcpu, false);
	wishes_forget(m);
	unlock(m);
	return pages_reset(m, err);
}

static enum pw_status apply_event(struct kvm_machine *m, enum vm_event e, struct pw_err *err)
{
	switch (e) {
	case VM_START: return PW_OK;
	case VM_INIT_START: return start_over(m, err);
	case VM_INIT_DONE: return each_slot_done(m, err);
	case VM_INIT_ABORT:
	case VM_TERMINATE: return back_to_normal(m, err);
	case VM_EVENT_COUNT: break;
	}
	return pw_fail(err, PW_INVALID, "no such VM event");
}

/* What an event leads to; the same event again finds it so. */
static bool is_so_already(enum vm_state s, enum vm_event e)
{
	return (e == VM_INIT_START && s == VM_TRANSIENT) || (e == VM_INIT_DONE && s == VM_SECURE) ||
	       (e == VM_INIT_ABORT && s == VM_NORMAL);
}

static enum pw_status kvm_vm_event(struct backend *b, const struct pw_uuid *vm, enum vm_event e, struct pw_err *err)
{
	enum vm_state next;
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	if (st || is_so_already(m->state, e))
		return st;
	if (!vm_step(m->state, e, &next))
		return pw_fail(err, PW_CONFLICT, "the VM is %s: no %s from there", vm_state_name(m->state),
			       vm_event_name(e));
	park(m);
	st = apply_event(m, e, err);
	if (!st)
		m->state = next;
	unpark(m);
	return st;
}

/* An ordinary VM has no init_start that would have made its guest ready. */
static enum pw_status start_plain(struct kvm_machine *m, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	park(m);
	if (!m->vcpu.runnable)
		st = start_over(m, err);
	unpark(m);
	return st;
}

static enum pw_status kvm_run_vm(struct backend *b, const struct pw_uuid *vm, struct pw_err *err)
{
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	if (st)
		return st;
	if (m->state == VM_TRANSIENT)
		return pw_fail(err, PW_CONFLICT, "the VM is transient: its guest runs when it is secure");
	if (m->state == VM_NORMAL)
		st = start_plain(m, err);
	if (st)
		return st;
	lock(m);
	if (!m->vcpu.runnable && !m->ended)
		vcpu_set_runnable(&m->vcpu, true);
	unlock(m);
	return PW_OK;
}

static enum pw_status kvm_destroy_vm(struct backend *b, const struct pw_uuid *vm, struct pw_err *err)
{
	struct kvm_host *h = kvm_host_of(b);
	struct kvm_machine *m = kvm_machine_find(h, vm);
	struct kvm_machine **at = &h->machines;

	if (!m)
		return PW_OK;
	park(m);
	(void)back_to_normal(m, NULL); /* frees each page now; closing the files would free them too */
	unpark(m);
	lock(m);
	while (*at != m)
		at = &(*at)->next;
	*at = m->next;
	unlock(m);
	machine_free(m);
	return PW_OK;
}

/* ---- pages ---- */

static enum pw_status kvm_reserve(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  uint64_t *pfns, struct pw_err *err)
{
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	return st ? st : pages_reserve(m, gfn, count, pfns, err);
}

static void kvm_unreserve(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
			  const uint64_t *pfns)
{
	struct kvm_machine *m = kvm_machine_find(kvm_host_of(b), vm);

	if (m)
		pages_unreserve(m, gfn, count);
}

static enum pw_status change(struct backend *b, const struct pw_uuid *vm, enum gfn_op op, uint64_t gfn, uint64_t count,
			     const uint64_t *pfns, struct pw_err *err)
{
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	if (st)
		return st;
	if (m->state == VM_NORMAL)
		return pw_fail(err, PW_CONFLICT, "%s of GFN %" PRIu64 ": the VM is normal", gfn_op_name(op), gfn);
	park(m);
	st = pages_change(m, op, gfn, count, pfns, err);
	unpark(m);
	return st;
}

static enum pw_status kvm_page_in(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  const uint64_t *pfns, struct pw_err *err)
{
	return change(b, vm, GFN_UNSHARE_IN, gfn, count, pfns, err);
}

static enum pw_status kvm_page_out(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				   struct pw_err *err)
{
	return change(b, vm, GFN_PAGE_OUT, gfn, count, NULL, err);
}

static enum pw_status kvm_share(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				struct pw_err *err)
{
	return change(b, vm, GFN_SHARE, gfn, count, NULL, err);
}

static enum pw_status kvm_unshare(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  struct pw_err *err)
{
	return change(b, vm, GFN_UNSHARE, gfn, count, NULL, err);
}

/* ---- reading ---- */

static enum pw_status kvm_each_vm(struct backend *b, backend_vm_fn fn, void *ctx, struct pw_err *err)
{
	for (const struct kvm_machine *m = kvm_host_of(b)->machines; m; m = m->next)
		if (!fn(ctx, &m->id, m->state))
			break;
	return PW_OK;
}

/* Memory is kept in no order that anybody relies on: slots are told lowest first. */
static const struct slot *next_slot(const struct kvm_machine *m, uint64_t from)
{
	const struct slot *next = NULL;

	for (size_t i = 0; i < m->memory_count; i++) {
		const struct slot *s = &m->memory[i]->slot;

		if (s->base >= from && (!next || s->base < next->base))
			next = s;
	}
	return next;
}

static enum pw_status kvm_read_slots(struct backend *b, const struct pw_uuid *vm, backend_slot_fn fn, void *ctx,
				     unsigned *shared_bit, struct pw_err *err)
{
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);
	const struct slot *s;

	if (st)
		return st;
	*shared_bit = m->shared_bit;
	for (uint64_t from = 0; (s = next_slot(m, from)) && fn(ctx, s); from = s->base + s->pages)
		;
	return PW_OK;
}

static enum pw_status kvm_read_state(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				     backend_run_fn fn, void *ctx, struct pw_err *err)
{
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	return st ? st : pages_read(m, gfn, count, fn, ctx, err);
}

/* PUNCH_HOLE always gives the frame back. */
static enum pw_status kvm_read_stuck(struct backend *b, backend_run_fn fn, void *ctx, struct pw_err *err)
{
	return PW_OK;
}

void *backend_kvm_view(struct backend *b, const struct pw_uuid *vm, uint64_t gfn)
{
	const struct kvm_machine *m = kvm_machine_find(kvm_host_of(b), vm);
	const struct kvm_memory *mem = m ? machine_memory(m, gfn, 1) : NULL;

	return mem ? mem->view + (gfn - mem->slot.base) * KVM_PAGE : NULL;
}

enum pw_status backend_kvm_counts(struct backend *b, const struct pw_uuid *vm, struct kvm_guest_counts *out,
				  struct pw_err *err)
{
	const volatile struct guest_mailbox *box; /* the guest writes it */
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	if (st)
		return st;
	box = guest_mailbox(&m->guest);
	*out = (struct kvm_guest_counts){ box->steps, box->checked, box->converted, box->refused };
	return PW_OK;
}

enum pw_status backend_kvm_set_step(struct backend *b, const struct pw_uuid *vm, uint64_t us, struct pw_err *err)
{
	struct kvm_machine *m;
	enum pw_status st = find(b, vm, &m, err);

	if (st)
		return st;
	lock(m);
	m->step_ns = us * (NS_PER_S / 1000000);
	unlock(m);
	return PW_OK;
}

/* ---- opening ---- */

static void kvm_info(struct backend *b, struct backend_info *out)
{
	const struct kvm_host *h = kvm_host_of(b);

	*out = (struct backend_info){ .arch = "kvm", .kind = "kvm", .frames = h->frames, .page_shift = KVM_PAGE_SHIFT };
	snprintf(out->extra, sizeof(out->extra), "\"guest_memfd\":%s,\"memory_attributes\":%s",
		 h->guest_memfd ? "true" : "false", h->caps.private_pages ? "true" : "false");
}

static void kvm_close(struct backend *b)
{
	struct kvm_host *h = kvm_host_of(b);

	while (h->machines) {
		const struct pw_uuid id = h->machines->id;

		(void)kvm_destroy_vm(b, &id, NULL);
	}
	arena_release(&h->arena);
	pthread_cond_destroy(&h->wished);
	pthread_mutex_destroy(&h->lock);
	if (h->pagemap_fd >= 0)
		close(h->pagemap_fd);
	if (h->dev_fd >= 0)
		close(h->dev_fd);
	free(h);
}

static void kvm_figures(struct backend *b, backend_figure_fn fn, void *ctx)
{
	(void)b; /* the kernel counts for itself */
}

static const struct backend_ops ops = {
	.name = "kvm",
	.info = kvm_info,
	.create_vm = kvm_create_vm,
	.vm_event = kvm_vm_event,
	.run_vm = kvm_run_vm,
	.destroy_vm = kvm_destroy_vm,
	.map_slot = kvm_map_slot,
	.unmap_slot = kvm_unmap_slot,
	.reserve = kvm_reserve,
	.unreserve = kvm_unreserve,
	.page_in = kvm_page_in,
	.page_out = kvm_page_out,
	.share = kvm_share,
	.unshare = kvm_unshare,
	.each_vm = kvm_each_vm,
	.read_slots = kvm_read_slots,
	.read_state = kvm_read_state,
	.read_stuck = kvm_read_stuck,
	.figures = kvm_figures,
	.wait = wishes_wait,
	.kick = wishes_kick,
	.complete = wishes_complete,
	.close = kvm_close,
};

/* One more than the highest frame of RAM. Without privilege the kernel shows every address as 0. */
static enum pw_status read_frame_limit(uint64_t *out, struct pw_err *err)
{
	FILE *f = fopen("/proc/iomem", "re");
	uint64_t limit = 0;
	char line[256];

	if (!f)
		return pw_fail(err, PW_NOT_FOUND, "cannot read /proc/iomem: %s", strerror(errno));
	while (fgets(line, sizeof(line), f)) {
		char *dash = strchr(line, '-');
		char *end = dash;
		uint64_t last = dash ? strtoull(dash + 1, &end, 16) : 0;

		if (dash && !strncmp(end, " : System RAM", 13) && (last >> KVM_PAGE_SHIFT) + 1 > limit)
			limit = (last >> KVM_PAGE_SHIFT) + 1;
	}
	fclose(f);
	if (limit <= 1)
		return pw_fail(err, PW_DENIED, "/proc/iomem does not show where RAM ends: CAP_SYS_ADMIN is missing");
	*out = limit;
	return PW_OK;
}

static enum pw_status open_pagemap(int *fd, struct pw_err *err)
{
	uint64_t probe = 1; /* a page that is present: our own stack's */
	off_t at = (off_t)((uintptr_t)&probe >> KVM_PAGE_SHIFT) * (off_t)sizeof(probe);
	int got = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);

	if (got < 0)
		return pw_fail(err, PW_NOT_FOUND, "cannot open /proc/self/pagemap: %s", strerror(errno));
	if (pread(got, &probe, sizeof(probe), at) != sizeof(probe) || !(probe & ((UINT64_C(1) << 55) - 1))) {
		close(got);
		return pw_fail(err, PW_DENIED, "/proc/self/pagemap shows no frame numbers: CAP_SYS_ADMIN is missing");
	}
	*fd = got;
	return PW_OK;
}

/* What VMs can do here is known of a VM only. */
static enum pw_status probe_caps(struct kvm_host *h, struct pw_err *err)
{
	const char *backing = getenv(KVM_BACKING_VARIABLE);
	struct kvm_vm vm;
	enum pw_status st = kvm_vm_open(h->dev_fd, &vm, err);

	if (st)
		return pw_wrap(err, "trying KVM");
	h->caps = vm.caps;
	h->guest_memfd = vm.caps.guest_memfd && !(backing && !strcmp(backing, "memfd"));
	kvm_vm_close(&vm);
	return PW_OK;
}

static void init_locks(struct kvm_host *h)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&h->lock, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&h->wished, &attr);
	pthread_condattr_destroy(&attr);
}

enum pw_status backend_kvm_open(const struct backend_options *o, struct backend **out, struct pw_err *err)
{
	struct kvm_host *h;
	enum pw_status st;

	if (backend_fault_frame(o->fault, 0))
		return pw_fail(err, PW_INVALID,
			       "the fault frame:N is for emulated machines: KVM gives all frames back");
	h = calloc(1, sizeof(*h));
	if (!h)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the kvm backend");
	h->base.ops = &ops;
	h->pagemap_fd = -1;
	h->dev_fd = -1;
	h->last_wish = &h->first_wish;
	arena_init(&h->arena, &h->mem);
	init_locks(h);
	st = kvm_dev_open(&h->dev_fd, err);
	if (!st)
		st = open_pagemap(&h->pagemap_fd, err);
	if (!st)
		st = read_frame_limit(&h->frames, err);
	if (!st)
		st = probe_caps(h, err);
	if (st) {
		kvm_close(&h->base);
		return st;
	}
	*out = &h->base;
	return PW_OK;
}
