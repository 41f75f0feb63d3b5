#include "agents/kvm_guest.h"

#include <errno.h>
#include <stdatomic.h>
#include <string.h>
#include <sys/mman.h>

/* Boot memory, in pages. The guest's page tables map its first 2 MiB, so the tables themselves are out of its reach. */
#define PAGE            4096u
#define AT_CODE         0u
#define AT_MAILBOX      1u
#define AT_STACK        2u
#define AT_TSS          3u
#define AT_EXPECTED     4u /* per page of the window: its pattern, and bit 63 if it is shared */
#define AT_TABLES       512u
#define BOOT_PAGES      16384u
#define LARGE_PAGE      (UINT64_C(1) << 21)
#define TSS_IO_MAP_BASE 0x66u
#define TSS_IO_MAP      0x68u
#define PTE_USER_RW     UINT64_C(7)
#define PTE_LARGE       (UINT64_C(1) << 7)
#define PTE_ADDRESS     UINT64_C(0x000ffffffffff000)

_Static_assert(offsetof(struct guest_mailbox, steps) == 32, "the guest knows it");
_Static_assert(offsetof(struct guest_mailbox, fault_gpa) == 64, "the guest knows it");
_Static_assert(offsetof(struct guest_mailbox, request) == 128, "the guest knows it");
_Static_assert(GUEST_WINDOW_MAX * 8 <= (AT_TABLES - AT_EXPECTED) * PAGE, "room for what is expected");

/*
 * rbx mailbox, r12 expected[], r13 pages and r14 address of the window, r15 random state (xorshift64).
 * A page's pattern is 512 words that count up from its tag; tag 0 means all zero.
 * `pick` leaves a page's index in rsi and its address in rdi, which the others take.
 */
__asm__(".pushsection .rodata\n"
	"	.balign 16\n"
	"pw_guest_code:\n"
	"	mov 0(%rbx), %r15\n"
	"	mov 16(%rbx), %r14\n"
	"	mov 24(%rbx), %r13\n"
	"	mov 8(%rbx), %rax\n"
	"	cmp $1, %rax\n"
	"	je .Lpw_idle\n"
	"	cmp $2, %rax\n"
	"	je .Lpw_vmcall\n"
	"	cmp $3, %rax\n"
	"	je .Lpw_spin\n"
	"	cmp $4, %rax\n"
	"	je .Lpw_crash\n"

	".Lpw_step:\n"
	"	mov $4, %ebp\n"
	"1:	call .Lpw_pick\n"
	"	call .Lpw_check\n"
	"	call .Lpw_fill\n"
	"	dec %ebp\n"
	"	jnz 1b\n"
	"	call .Lpw_pick\n"
	"	call .Lpw_check\n"
	"	call .Lpw_convert\n"
	"	incq 32(%rbx)\n"
	"	mov $0x5d1, %edx\n"
	"	out %eax, %dx\n"
	"	jmp .Lpw_step\n"

	".Lpw_pick:\n"
	"	mov %r15, %rax\n"
	"	shl $13, %rax\n"
	"	xor %rax, %r15\n"
	"	mov %r15, %rax\n"
	"	shr $7, %rax\n"
	"	xor %rax, %r15\n"
	"	mov %r15, %rax\n"
	"	shl $17, %rax\n"
	"	xor %rax, %r15\n"
	"	mov %r15, %rax\n"
	"	xor %edx, %edx\n"
	"	div %r13\n"
	"	mov %rdx, %rsi\n"
	"	mov %rdx, %rdi\n"
	"	shl $12, %rdi\n"
	"	add %r14, %rdi\n"
	"	ret\n"

	".Lpw_check:\n"
	"	mov (%r12,%rsi,8), %r8\n"
	"	shl $1, %r8\n"
	"	shr $1, %r8\n"
	"	xor %r9d, %r9d\n"
	"	test %r8, %r8\n"
	"	setne %r9b\n"
	"	xor %ecx, %ecx\n"
	"1:	mov (%rdi,%rcx,8), %rax\n"
	"	cmp %r8, %rax\n"
	"	jne .Lpw_fault\n"
	"	add %r9, %r8\n"
	"	inc %rcx\n"
	"	cmp $512, %rcx\n"
	"	jb 1b\n"
	"	incq 40(%rbx)\n"
	"	ret\n"

	".Lpw_fill:\n"
	"	mov %r15, %r8\n"
	"	shl $2, %r8\n"
	"	shr $2, %r8\n"
	"	or $1, %r8\n"
	"	mov (%r12,%rsi,8), %rax\n"
	"	shr $63, %rax\n"
	"	shl $63, %rax\n"
	"	or %r8, %rax\n"
	"	mov %rax, (%r12,%rsi,8)\n"
	"	xor %ecx, %ecx\n"
	"1:	mov %r8, (%rdi,%rcx,8)\n"
	"	inc %r8\n"
	"	inc %rcx\n"
	"	cmp $512, %rcx\n"
	"	jb 1b\n"
	"	ret\n"

	".Lpw_convert:\n"
	"	mov (%r12,%rsi,8), %rax\n"
	"	shr $63, %rax\n"
	"	shl $4, %rax\n" /* ENCRYPTED if it is shared now */
	"	mov %rdi, 128(%rbx)\n"
	"	movq $1, 136(%rbx)\n"
	"	mov %rax, 144(%rbx)\n"
	"	movq $-1, 152(%rbx)\n"
	"	xor %eax, %eax\n"
	"	mov $0x5d0, %edx\n"
	"	out %eax, %dx\n"
	"	cmpq $0, 152(%rbx)\n"
	"	jne 2f\n"
	"	mov (%r12,%rsi,8), %rax\n"
	"	shr $63, %rax\n"
	"	xor $1, %eax\n"
	"	shl $63, %rax\n"
	"	mov %rax, (%r12,%rsi,8)\n"
	"	incq 48(%rbx)\n"
	"	call .Lpw_check\n"
	"	jmp .Lpw_fill\n"
	"2:	incq 56(%rbx)\n"
	"	ret\n"

	".Lpw_fault:\n"
	"	mov %rdi, 64(%rbx)\n"
	"	mov $0x5d2, %edx\n"
	"	out %eax, %dx\n"
	"	jmp .Lpw_fault\n"

	".Lpw_vmcall:\n"
	"	vmcall\n"
	".Lpw_idle:\n"
	"	mov $0x5d1, %edx\n"
	"	out %eax, %dx\n"
	"	jmp .Lpw_idle\n"

	".Lpw_spin:\n"
	"	jmp .Lpw_spin\n"

	".Lpw_crash:\n"
	"	ud2\n"
	"pw_guest_code_end:\n"
	".popsection\n");

extern const char pw_guest_code[], pw_guest_code_end[];

static uint64_t gpa_of(const struct guest *g, size_t page)
{
	return g->boot_gpa + page * PAGE;
}

static void *boot_page(const struct guest *g, size_t page)
{
	return g->boot + page * PAGE;
}

struct guest_mailbox *guest_mailbox(const struct guest *g)
{
	return boot_page(g, AT_MAILBOX);
}

/* The entry of the table at `index`; makes the next lower table where there is none. */
static uint64_t *descend(struct guest *g, uint64_t *table, unsigned index)
{
	if (!table[index]) {
		if (g->tables >= BOOT_PAGES - AT_TABLES)
			return NULL;
		table[index] = gpa_of(g, AT_TABLES + g->tables++) | PTE_USER_RW;
	}
	return boot_page(g, ((table[index] & PTE_ADDRESS) - g->boot_gpa) / PAGE);
}

static enum pw_status map_large(struct guest *g, uint64_t gpa, struct pw_err *err)
{
	uint64_t *table = boot_page(g, AT_TABLES);

	for (unsigned shift = 39; shift > 21 && table; shift -= 9)
		table = descend(g, table, (unsigned)(gpa >> shift) & 511);
	if (!table)
		return pw_fail(err, PW_NO_MEMORY, "the guest has no page tables left for %#" PRIx64, gpa);
	table[(gpa >> 21) & 511] = gpa | PTE_USER_RW | PTE_LARGE;
	return PW_OK;
}

enum pw_status guest_map(struct guest *g, uint64_t gpa, uint64_t size, struct pw_err *err)
{
	uint64_t at = gpa & ~(LARGE_PAGE - 1);
	enum pw_status st = PW_OK;

	if (gpa >= g->boot_gpa || size > g->boot_gpa - gpa)
		return pw_fail(err, PW_INVALID,
			       "memory up to %#" PRIx64 " does not end below this KVM's limit of %#" PRIx64, gpa + size,
			       g->boot_gpa);
	for (; !st && at < gpa + size; at += LARGE_PAGE)
		st = map_large(g, at, err);
	return st;
}

enum pw_status guest_open(struct guest *g, const struct kvm_vm *kvm, struct pw_err *err)
{
	const size_t size = (size_t)BOOT_PAGES * PAGE;
	void *boot = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	struct kvm_region region;
	enum pw_status st;

	if (boot == MAP_FAILED)
		return pw_fail(err, PW_NO_MEMORY, "mapping boot memory: %s", strerror(errno));
	*g = (struct guest){ .boot = boot, .boot_gpa = UINT64_C(1) << (kvm->caps.gpa_bits - 1), .tables = 1 };
	region = (struct kvm_region){ .gpa = g->boot_gpa, .size = size, .host = boot, .guest_memfd = -1 };
	st = kvm_vm_set_region(kvm, &region, err);
	if (!st)
		st = map_large(g, g->boot_gpa, err);
	if (st)
		guest_close(g);
	return st;
}

void guest_close(struct guest *g)
{
	if (g->boot)
		munmap(g->boot, (size_t)BOOT_PAGES * PAGE);
	*g = (struct guest){ 0 };
}

static enum guest_mode mode_of(const struct guest_plan *plan)
{
	switch (plan->seed) {
	case GUEST_SEED_VMCALL: return GUEST_VMCALLS;
	case GUEST_SEED_SPIN: return GUEST_SPINS;
	case GUEST_SEED_CRASH: return GUEST_CRASHES;
	default: return plan->idle || !plan->window_pages ? GUEST_IDLES : GUEST_WORKS;
	}
}

enum pw_status guest_reset(struct guest *g, const struct kvm_vm *kvm, const struct guest_plan *plan, struct pw_err *err)
{
	const struct kvm_start start = {
		.rip = gpa_of(g, AT_CODE),
		.rsp = gpa_of(g, AT_STACK + 1),
		.cr3 = gpa_of(g, AT_TABLES),
		.tss = gpa_of(g, AT_TSS),
		.rbx = gpa_of(g, AT_MAILBOX),
		.r12 = gpa_of(g, AT_EXPECTED),
	};

	memset(g->boot, 0, (size_t)AT_EXPECTED * PAGE + GUEST_WINDOW_MAX * sizeof(uint64_t));
	memcpy(boot_page(g, AT_CODE), pw_guest_code, (uintptr_t)pw_guest_code_end - (uintptr_t)pw_guest_code);
	*guest_mailbox(g) = (struct guest_mailbox){
		.seed = plan->seed ? plan->seed : 1, /* 0 is where xorshift stands still */
		.mode = mode_of(plan),
		.window_gpa = plan->window_gpa,
		.window_pages = plan->window_pages < GUEST_WINDOW_MAX ? plan->window_pages : GUEST_WINDOW_MAX,
	};
	atomic_thread_fence(memory_order_release);
	*(uint16_t *)(void *)((char *)boot_page(g, AT_TSS) + TSS_IO_MAP_BASE) =
		TSS_IO_MAP; /* of zeros: every port is open */
	kvm_vm_finish_exit(kvm);
	return kvm_vm_set_start(kvm, &start, err);
}
