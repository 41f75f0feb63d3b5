#include "agents/kvm_vm.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

#define CAP_GUEST_MEMFD_FLAGS 244
#define CAP_GUEST_MEMFD       234
#define CAP_ATTRIBUTES        233
#define CAP_USER_MEMORY2      231
#define CAP_EXIT_HYPERCALL    201
#define CAP_DISABLE_QUIRKS2   213

#define GMEM_MMAP             1u
#define GMEM_INIT_SHARED      2u
#define REGION_GUEST_MEMFD    4u
#define ATTRIBUTE_PRIVATE     (UINT64_C(1) << 3)
#define QUIRK_FIX_HYPERCALL   (UINT64_C(1) << 5)
#define MAP_GPA_RANGE_EXIT    (UINT64_C(1) << KVM_CALL_MAP_GPA_RANGE)

#define GPA_BITS_MAX          46 /* an identity map fits the lower half of 4-level paging */
#define CPUID_ADDRESS_SIZES   0x80000008u
#define CPUID_ENTRIES         256

struct region2 {
	uint32_t slot, flags;
	uint64_t gpa, size, host, guest_memfd_offset;
	uint32_t guest_memfd, pad1;
	uint64_t pad2[14];
};
struct guest_memfd {
	uint64_t size, flags, reserved[6];
};
struct attributes {
	uint64_t address, size, attributes, flags;
};
#define SET_REGION2        _IOW(0xAE, 0x49, struct region2)
#define CREATE_GUEST_MEMFD _IOWR(0xAE, 0xd4, struct guest_memfd)
#define SET_ATTRIBUTES     _IOW(0xAE, 0xd2, struct attributes)

enum pw_status kvm_dev_open(int *fd, struct pw_err *err)
{
	int dev = open("/dev/kvm", O_RDWR | O_CLOEXEC);
	int version;

	if (dev < 0)
		return pw_fail(err, PW_NOT_FOUND, "no KVM on this machine: cannot open /dev/kvm: %s", strerror(errno));
	version = ioctl(dev, KVM_GET_API_VERSION, 0);
	if (version != KVM_API_VERSION) {
		close(dev);
		return pw_fail(err, PW_BACKEND, "/dev/kvm speaks API version %d, not %d", version, KVM_API_VERSION);
	}
	*fd = dev;
	return PW_OK;
}

static uint64_t cap(const struct kvm_vm *vm, unsigned long number)
{
	int answer = ioctl(vm->fd, KVM_CHECK_EXTENSION, number);

	return answer > 0 ? (uint64_t)answer : 0;
}

static bool enable(const struct kvm_vm *vm, uint32_t number, uint64_t mask)
{
	struct kvm_enable_cap c = { .cap = number, .args = { mask } };

	return (cap(vm, number) & mask) == mask && !ioctl(vm->fd, KVM_ENABLE_CAP, &c);
}

static void probe(struct kvm_vm *vm)
{
	uint64_t flags = cap(vm, CAP_GUEST_MEMFD_FLAGS);

	vm->caps.guest_memfd = cap(vm, CAP_USER_MEMORY2) && cap(vm, CAP_GUEST_MEMFD) &&
			       (flags & (GMEM_MMAP | GMEM_INIT_SHARED)) == (GMEM_MMAP | GMEM_INIT_SHARED);
	vm->caps.private_pages = cap(vm, CAP_ATTRIBUTES) & ATTRIBUTE_PRIVATE;
	vm->caps.slots = (uint32_t)cap(vm, KVM_CAP_NR_MEMSLOTS);
	if (!vm->caps.slots)
		vm->caps.slots = 32; /* the API's minimum */
	vm->caps.hypercall_exits = enable(vm, CAP_EXIT_HYPERCALL, MAP_GPA_RANGE_EXIT);
	/* Or else KVM's emulator rewrites a stray vmcall again and again and KVM_RUN never returns. */
	(void)enable(vm, CAP_DISABLE_QUIRKS2, QUIRK_FIX_HYPERCALL);
}

static enum pw_status set_cpuid(struct kvm_vm *vm, int dev_fd, struct pw_err *err)
{
	struct kvm_cpuid2 *id = calloc(1, sizeof(*id) + CPUID_ENTRIES * sizeof(id->entries[0]));
	enum pw_status st = PW_OK;
	unsigned bits = 36;

	if (!id)
		return pw_fail(err, PW_NO_MEMORY, "no memory for CPUID entries");
	id->nent = CPUID_ENTRIES;
	if (ioctl(dev_fd, KVM_GET_SUPPORTED_CPUID, id) || ioctl(vm->vcpu_fd, KVM_SET_CPUID2, id)) {
		st = pw_fail(err, PW_BACKEND, "setting the vCPU's CPUID: %s", strerror(errno));
		goto out;
	}
	for (uint32_t i = 0; i < id->nent; i++)
		if (id->entries[i].function == CPUID_ADDRESS_SIZES)
			bits = id->entries[i].eax & 0xff;
	vm->caps.gpa_bits = bits < GPA_BITS_MAX ? bits : GPA_BITS_MAX;
out:
	free(id);
	return st;
}

enum pw_status kvm_vm_open(int dev_fd, struct kvm_vm *out, struct pw_err *err)
{
	struct kvm_vm vm = { .fd = -1, .vcpu_fd = -1 };
	enum pw_status st;
	int size;
	void *run;

	vm.fd = ioctl(dev_fd, KVM_CREATE_VM, 0ul);
	if (vm.fd < 0)
		return pw_fail(err, PW_BACKEND, "KVM_CREATE_VM: %s", strerror(errno));
	probe(&vm);
	vm.vcpu_fd = ioctl(vm.fd, KVM_CREATE_VCPU, 0ul);
	if (vm.vcpu_fd < 0) {
		st = pw_fail(err, PW_BACKEND, "KVM_CREATE_VCPU: %s", strerror(errno));
		goto fail;
	}
	size = ioctl(dev_fd, KVM_GET_VCPU_MMAP_SIZE, 0ul);
	run = size > 0 ? mmap(NULL, (size_t)size, PROT_READ | PROT_WRITE, MAP_SHARED, vm.vcpu_fd, 0) : MAP_FAILED;
	if (run == MAP_FAILED) {
		st = pw_fail(err, PW_BACKEND, "mapping the vCPU: %s", strerror(errno));
		goto fail;
	}
	vm.run = run;
	vm.run_size = (size_t)size;
	st = set_cpuid(&vm, dev_fd, err);
	if (st)
		goto fail;
	*out = vm;
	return PW_OK;
fail:
	kvm_vm_close(&vm);
	return st;
}

void kvm_vm_close(struct kvm_vm *vm)
{
	if (vm->run)
		munmap(vm->run, vm->run_size);
	if (vm->vcpu_fd >= 0)
		close(vm->vcpu_fd);
	if (vm->fd >= 0)
		close(vm->fd);
	*vm = (struct kvm_vm){ .fd = -1, .vcpu_fd = -1 };
}

enum pw_status kvm_vm_guest_memfd(const struct kvm_vm *vm, uint64_t size, int *fd, struct pw_err *err)
{
	struct guest_memfd g = { .size = size, .flags = GMEM_MMAP | GMEM_INIT_SHARED };
	int got = ioctl(vm->fd, CREATE_GUEST_MEMFD, &g);

	if (got < 0)
		return pw_fail(err, PW_BACKEND, "KVM_CREATE_GUEST_MEMFD of %" PRIu64 " bytes: %s", size,
			       strerror(errno));
	*fd = got;
	return PW_OK;
}

static int set_region(const struct kvm_vm *vm, const struct kvm_region *r)
{
	struct kvm_userspace_memory_region one = {
		.slot = r->id,
		.guest_phys_addr = r->gpa,
		.memory_size = r->size,
		.userspace_addr = (uintptr_t)r->host,
	};
	struct region2 two = {
		.slot = r->id,
		.flags = REGION_GUEST_MEMFD,
		.gpa = r->gpa,
		.size = r->size,
		.host = (uintptr_t)r->host,
		.guest_memfd = (uint32_t)r->guest_memfd,
		.guest_memfd_offset = r->offset,
	};

	if (r->size && r->guest_memfd >= 0)
		return ioctl(vm->fd, SET_REGION2, &two);
	return ioctl(vm->fd, KVM_SET_USER_MEMORY_REGION, &one);
}

enum pw_status kvm_vm_set_region(const struct kvm_vm *vm, const struct kvm_region *r, struct pw_err *err)
{
	if (!set_region(vm, r))
		return PW_OK;
	return pw_fail(err, PW_BACKEND, "KVM memory slot %" PRIu32 " at %#" PRIx64 " of %#" PRIx64 " bytes: %s", r->id,
		       r->gpa, r->size, strerror(errno));
}

enum pw_status kvm_vm_set_private(const struct kvm_vm *vm, uint64_t gpa, uint64_t size, bool on, struct pw_err *err)
{
	struct attributes a = { .address = gpa, .size = size, .attributes = on ? ATTRIBUTE_PRIVATE : 0 };

	if (!vm->caps.private_pages || !ioctl(vm->fd, SET_ATTRIBUTES, &a))
		return PW_OK;
	return pw_fail(err, PW_BACKEND, "KVM_SET_MEMORY_ATTRIBUTES at %#" PRIx64 " of %#" PRIx64 " bytes: %s", gpa,
		       size, strerror(errno));
}

static void set_long_mode(struct kvm_sregs *s, const struct kvm_start *start)
{
	const struct kvm_segment data = {
		.limit = 0xffffffff,
		.selector = 0x2b,
		.type = 3,
		.present = 1,
		.dpl = 3,
		.db = 1,
		.s = 1,
		.g = 1,
	};

	s->ds = s->es = s->fs = s->gs = s->ss = data;
	s->cs = data;
	s->cs.selector = 0x33;
	s->cs.type = 11;
	s->cs.db = 0;
	s->cs.l = 1;
	s->tr = (struct kvm_segment){ .base = start->tss, .limit = 0xfff, .selector = 0x40, .type = 11, .present = 1 };
	s->ldt = (struct kvm_segment){ .unusable = 1 };
	s->idt = s->gdt = (struct kvm_dtable){ 0 };
	s->cr0 = 0x80000013; /* PG, ET, MP, PE */
	s->cr3 = start->cr3;
	s->cr4 = 0x20;   /* PAE */
	s->efer = 0xd01; /* NX, LMA, LME, SCE */
}

enum pw_status kvm_vm_set_start(const struct kvm_vm *vm, const struct kvm_start *start, struct pw_err *err)
{
	const struct kvm_regs regs = {
		.rip = start->rip,
		.rsp = start->rsp,
		.rbx = start->rbx,
		.r12 = start->r12,
		.rflags = 0x3002, /* IOPL 3 */
	};
	struct kvm_sregs sregs;

	if (ioctl(vm->vcpu_fd, KVM_GET_SREGS, &sregs))
		return pw_fail(err, PW_BACKEND, "KVM_GET_SREGS: %s", strerror(errno));
	set_long_mode(&sregs, start);
	if (ioctl(vm->vcpu_fd, KVM_SET_SREGS, &sregs) || ioctl(vm->vcpu_fd, KVM_SET_REGS, &regs))
		return pw_fail(err, PW_BACKEND, "setting the vCPU's registers: %s", strerror(errno));
	return PW_OK;
}

int kvm_vm_run(const struct kvm_vm *vm)
{
	return ioctl(vm->vcpu_fd, KVM_RUN, 0ul) ? errno : 0;
}

void kvm_vm_finish_exit(const struct kvm_vm *vm)
{
	vm->run->immediate_exit = 1;
	(void)kvm_vm_run(vm);
	vm->run->immediate_exit = 0;
}
