/* engine/arch/pkvm.h
 *
 * arm64 protected KVM: who owns a page, as the hypervisor at EL2 keeps it, call by call; and the table of its VMs.
 * Law and codes follow Linux arch/arm64/kvm/hyp/nvhe/mem_protect.c and pkvm.c of 2026. What vCPUs show to the host is
 * in engine/arch/pkvm_vcpu.h.
 *
 * A page has one joint state of host, hypervisor, guest and FF-A (PKVM_JOINTS); a GFN has a leaf in its VM's stage-2
 * table (PKVM_LEAVES). Two tables decide: operations that name a page go by its joint state, operations that name a GFN
 * go by its leaf. Page records and leaves are page trees, so that large VMs stay cheap.
 *
 * Where the kernel would break its own states (HUF of a page that FF-A never had), the model refuses as its callers
 * ensure. Cells that no test of the kernel asserts are marked inferred, and answers that rest on them unverified.
 *
 * Invariants (pkvm_check): 1. Every page has one joint state, and so one owner.
 *                          2. A count is that of the leaves that share the page; pins are in C, references in B only.
 *                          3. No leaf of a protected VM is borrowed; no leaf of a non-protected one is owned.
 *                          4. An owned or shared-owned leaf and its page name each other.
 *                          5. Records lie in memory regions. Block leaves are whole, aligned blocks.
 *                          6. No vCPU of a dying VM is loaded; a VM's references are its loaded vCPUs.
 */
#ifndef PW_ENGINE_ARCH_PKVM_H
#define PW_ENGINE_ARCH_PKVM_H
#include "engine/arch/pkvm_vcpu.h"
#include "engine/lifecycle.h"
#include "engine/tree.h"

#define PKVM_PAGE_SHIFT   12
#define PKVM_BLOCK_PAGES  512 /* of the last level but one: the only size beside one page */
#define PKVM_HANDLE_FIRST 0x1000u
#define PKVM_VMS_MAX      255
#define PKVM_CPUS_MAX     1024
#define PKVM_VCPUS_MAX    512
#define PKVM_PINS_MAX     UINT16_MAX
#define PKVM_SHARES_MAX   UINT32_MAX

#define PKVM_PAGE_STATES(X)                  \
	X(PKVM_OWNED, "OWNED")               \
	X(PKVM_SHARED_OWNED, "SHARED_OWNED") \
	X(PKVM_BORROWED, "SHARED_BORROWED")  \
	X(PKVM_NOPAGE, "NOPAGE")             \
	X(PKVM_POISON, "POISON") /* guests only: forcibly taken back */

/* What a page is to host, hypervisor and guest together. A page that was forcibly taken back is A again. */
#define PKVM_JOINTS(X)                                       \
	X(PKVM_A, "A", "host private")                       \
	X(PKVM_B, "B", "hyp private")                        \
	X(PKVM_C, "C", "host shares with hyp")               \
	X(PKVM_D, "D", "host shares with FF-A")              \
	X(PKVM_E, "E", "host shares with non-protected VMs") \
	X(PKVM_F, "F", "donated to a protected VM")          \
	X(PKVM_G, "G", "a protected VM's, shared with the host")

/* Operations that name a page. TAKEN: the GFN has a leaf already. */
#define PKVM_PAGE_OPS(X)                                \
	X(PKVM_HSH, "HSH", "host shares with hyp")      \
	X(PKVM_HUH, "HUH", "host unshares from hyp")    \
	X(PKVM_HDH, "HDH", "host donates to hyp")       \
	X(PKVM_YDH, "YDH", "hyp donates to host")       \
	X(PKVM_PIN, "PIN", "hyp pins what is shared")   \
	X(PKVM_UNPIN, "UNPIN", "hyp unpins")            \
	X(PKVM_HSF, "HSF", "host shares with FF-A")     \
	X(PKVM_HUF, "HUF", "host unshares from FF-A")   \
	X(PKVM_HSG, "HSG", "host shares with guest")    \
	X(PKVM_HSG_TAKEN, "HSG, GFN taken", "the same") \
	X(PKVM_HDG, "HDG", "host donates to guest")     \
	X(PKVM_HDG_TAKEN, "HDG, GFN taken", "the same") \
	X(PKVM_FRC, "FRC", "forced reclaim by page")

/* Operations that name a GFN. */
#define PKVM_LEAF_OPS(X)                                           \
	X(PKVM_HUG, "HUG", "host unshares from guest")             \
	X(PKVM_TUNE, "TUNE", "host relaxes or tests a permission") \
	X(PKVM_GSH, "GSH", "guest shares with host")               \
	X(PKVM_GUH, "GUH", "guest unshares from host")             \
	X(PKVM_RCL, "RCL", "host reclaims from a dying VM")        \
	X(PKVM_RLQ, "RLQ", "guest relinquishes, android")

#define PKVM_KINDS(X)                          \
	X(PKVM_PROTECTED, "protected")         \
	X(PKVM_NON_PROTECTED, "non-protected") \
	X(PKVM_ANY, "any") /* calls are made below the checks of kind and of teardown */

#define PKVM_VM_STATES(X)               \
	X(PKVM_VM_FREE, "FREE")         \
	X(PKVM_VM_RESERVED, "RESERVED") \
	X(PKVM_VM_CREATED, "CREATED")   \
	X(PKVM_VM_DYING, "DYING")

#define PKVM_VM_OPS(X)                           \
	X(PKVM_RESERVE, "reserve")               \
	X(PKVM_UNRESERVE, "unreserve")           \
	X(PKVM_INIT_VM, "init_vm")               \
	X(PKVM_INIT_VCPU, "init_vcpu")           \
	X(PKVM_LOAD, "load")                     \
	X(PKVM_START_TEARDOWN, "start_teardown") \
	X(PKVM_RECLAIM, "reclaim")               \
	X(PKVM_FINALIZE, "finalize")

#define PW_ENUM_(name, text)         name,
#define PW_ENUM3_(name, text, about) name,
enum pkvm_page_state { PKVM_PAGE_STATES(PW_ENUM_) PKVM_PAGE_STATE_COUNT };
enum pkvm_joint { PKVM_JOINTS(PW_ENUM3_) PKVM_JOINT_COUNT };
enum pkvm_page_op { PKVM_PAGE_OPS(PW_ENUM3_) PKVM_PAGE_OP_COUNT };
enum pkvm_leaf_op { PKVM_LEAF_OPS(PW_ENUM3_) PKVM_LEAF_OP_COUNT };
enum pkvm_kind { PKVM_KINDS(PW_ENUM_) PKVM_KIND_COUNT };
enum pkvm_vm_state { PKVM_VM_STATES(PW_ENUM_) PKVM_VM_STATE_COUNT };
enum pkvm_vm_op { PKVM_VM_OPS(PW_ENUM_) PKVM_VM_OP_COUNT };
#undef PW_ENUM_
#undef PW_ENUM3_

const char *pkvm_page_state_name(enum pkvm_page_state s);
const char *pkvm_joint_name(enum pkvm_joint j);
const char *pkvm_joint_text(enum pkvm_joint j);
const char *pkvm_page_op_name(enum pkvm_page_op op);
const char *pkvm_leaf_op_name(enum pkvm_leaf_op op);
const char *pkvm_kind_name(enum pkvm_kind k);
const char *pkvm_vm_state_name(enum pkvm_vm_state s);
const char *pkvm_vm_op_name(enum pkvm_vm_op op);
enum pkvm_page_state pkvm_joint_host(enum pkvm_joint j);
enum pkvm_page_state pkvm_joint_hyp(enum pkvm_joint j);

/* The tables. A refused cell changes nothing. */
enum pkvm_cell_kind { PKVM_UNDECIDED, PKVM_MOVE, PKVM_STAY, PKVM_REFUSE };
enum pkvm_contents { PKVM_KEPT, PKVM_ZEROED };
/* When a cell that would move answers EBUSY instead. */
enum pkvm_unless { PKVM_ALWAYS, PKVM_UNLESS_PINNED, PKVM_UNLESS_REFERENCED, PKVM_UNLESS_COUNT_FULL };
/* TESTED: asserted by the kernel's own self-test, as the reference lists it. READ: the source's check sequence says so.
 * INFERRED: follows from what was read. */
enum pkvm_source { PKVM_TESTED, PKVM_READ, PKVM_INFERRED };

struct pkvm_page_cell {
	enum pkvm_cell_kind kind;
	enum pkvm_joint next;
	enum pkvm_unless unless;
	enum pkvm_contents contents;
	enum pkvm_code code;
	enum pkvm_source source;
};
struct pkvm_leaf_cell {
	enum pkvm_cell_kind kind;
	enum pkvm_joint next;      /* of the page; HUG: once no other leaf shares it */
	enum pkvm_page_state leaf; /* afterwards */
	enum pkvm_contents contents;
	enum pkvm_code code;
	enum pkvm_source source;
};
struct pkvm_vm_cell {
	enum pkvm_cell_kind kind;
	enum pkvm_vm_state next;
	bool unreferenced; /* else `code`, though the cell moves */
	enum pkvm_code code;
	enum pkvm_source source;
};
const struct pkvm_page_cell *pkvm_page_cell(enum pkvm_joint j, enum pkvm_page_op op);
const struct pkvm_leaf_cell *pkvm_leaf_cell(enum pkvm_page_state s, enum pkvm_leaf_op op);
const struct pkvm_vm_cell *pkvm_vm_cell(enum pkvm_vm_state s, enum pkvm_vm_op op);
bool pkvm_tables_are_total(void); /* called by one test */

/* The law's state of a GFN of such a VM whose leaf is in state s. */
enum gfn_state pkvm_project(enum pkvm_kind k, enum pkvm_page_state s);
/* The law's state of a VM; `ran`: one of its vCPUs has run. */
enum vm_state pkvm_project_vm(enum pkvm_kind k, enum pkvm_vm_state s, bool ran);

/* Memory, sorted by first page; what is in no region is no RAM. */
struct pkvm_region {
	uint64_t first, count;
	bool no_map; /* firmware's: RAM that nobody may map */
};
#define PKVM_REGIONS_MAX 32

struct pkvm_range {
	uint64_t first, count;
};

struct pkvm_vm;
struct pkvm_vcpu_slot {
	struct pkvm_vcpu state;
	struct pkvm_range donated; /* the hyp's copy; B */
	uint64_t host_page;        /* the host's structure; C, pinned */
	uint64_t sve_page;         /* the host's buffer; C, pinned; 0: none */
	bool loaded;
	unsigned cpu;       /* where, if loaded */
	struct pkvm_vm *vm; /* borrowed */
};

struct pkvm_vm {
	struct pkvm_vm *next; /* of those that are gone and left leaves behind */
	enum pkvm_kind kind;
	enum pkvm_vm_state state;
	unsigned vmid; /* index in the table + 1; 0: gone */
	bool ran;
	unsigned vcpu_count;              /* announced */
	struct pkvm_vcpu_slot **vcpus;    /* NULL: not initialised */
	struct pkvm_range donated, table; /* the VM structure and the root of stage 2; B */
	uint64_t host_page;               /* the host's VM structure; C, pinned */
	struct tree leaves;
	struct tree guarded; /* android: GFNs that the guest registered as MMIO */
};

struct pkvm {
	struct pw_mem *mem; /* borrowed */
	struct arena arena;
	enum pkvm_generation generation;
	struct pkvm_region regions[PKVM_REGIONS_MAX];
	size_t region_count;
	struct tree pages;
	struct pkvm_vm *vms[PKVM_VMS_MAX]; /* NULL: FREE */
	struct pkvm_vm *gone;
	unsigned cpus;
	struct pkvm_vcpu_slot **loaded; /* by CPU */
};

/* All pages are the host's. PW_INVALID: no CPU, too many, or regions that are empty, unsorted, overlap or end past
 * 2^40. PW_NO_MEMORY. mem is borrowed and must outlive the model. */
enum pw_status pkvm_init(struct pkvm *m, struct pw_mem *mem, enum pkvm_generation g, const struct pkvm_region *regions,
			 size_t count, unsigned cpus) PW_MUST_CHECK;
void pkvm_release(struct pkvm *m);

/* What a call names, and what goes wrong around it. */
struct pkvm_call {
	struct pkvm_vm *vm;
	uint64_t gfn, pfn;
	uint64_t nr;                /* pages of one call; 0: one. HSG and HUG: 1 or a block; others: a range */
	uint64_t calls;             /* so many consecutive calls, all or nothing; 0: one */
	unsigned prot;              /* beyond RWX (7): HSG refuses */
	bool cache_short;           /* the vCPU's cache of table pages does not suffice */
	enum pkvm_code cache_fails; /* refilling it failed so */
};

struct pkvm_answer {
	enum pkvm_code code;
	enum pkvm_contents contents; /* PKVM_ZEROED: at least one page was wiped */
	enum pkvm_joint joint;       /* of the page that decided */
	enum pkvm_page_state leaf;   /* of the GFN that decided */
	uint64_t page;               /* offset of that page in the call */
	const char *rule;            /* what decided; a constant text */
	enum pkvm_source source;     /* PKVM_INFERRED: the answer is unverified */
};

/*
 * One operation. PW_OK: out->code is the hypervisor's answer; anything but PKVM_OK has changed nothing. Checks come
 * first, over the whole range, in the kernel's order. Several calls are answered by the first that refuses. The VM's
 * kind is checked as hypercalls do; that a vCPU is loaded is not: pkvm_hypercall_vm does it. HUG, TUNE, GSH, GUH, RCL,
 * RLQ go by the GFN; their pfn is not looked at. PW_NO_MEMORY  the model's own memory; nothing changed.
 */
enum pw_status pkvm_page_call(struct pkvm *m, enum pkvm_page_op op, const struct pkvm_call *c,
			      struct pkvm_answer *out) PW_MUST_CHECK;
enum pw_status pkvm_leaf_call(struct pkvm *m, enum pkvm_leaf_op op, const struct pkvm_call *c,
			      struct pkvm_answer *out) PW_MUST_CHECK;

/* "HDH of page 7 in state E (host SHARED_OWNED, hyp NOPAGE): -EPERM; mem_protect.c, read". */
void pkvm_explain_page(enum pkvm_page_op op, const struct pkvm_call *c, const struct pkvm_answer *a, char *out,
		       size_t size);
void pkvm_explain_leaf(enum pkvm_leaf_op op, const struct pkvm_call *c, const struct pkvm_answer *a, char *out,
		       size_t size);

/* VMs (engine/arch/pkvm_vm.c). Refusals change nothing. Addresses are in bytes: they may be misaligned. */
enum pw_status pkvm_reserve(struct pkvm *m, unsigned *handle, enum pkvm_code *code) PW_MUST_CHECK;
void pkvm_unreserve(struct pkvm *m, unsigned handle); /* a no-op but on RESERVED */

struct pkvm_vm_params {
	enum pkvm_kind kind;
	unsigned vcpus;
	uint64_t host_page;              /* a page that is shared with hyp already */
	uint64_t donated, donated_pages; /* address and size of the VM structure's memory */
	uint64_t table, table_pages;     /* of the stage-2 root */
};
enum pw_status pkvm_init_vm(struct pkvm *m, unsigned handle, const struct pkvm_vm_params *p,
			    enum pkvm_code *code) PW_MUST_CHECK;

struct pkvm_vcpu_params {
	unsigned index;
	uint64_t host_page;
	uint64_t donated, donated_pages;
	uint64_t sve_page; /* 0: none; non-protected VMs only */
	struct pkvm_vcpu_setup setup;
};
enum pw_status pkvm_init_vcpu(struct pkvm *m, unsigned handle, const struct pkvm_vcpu_params *p,
			      enum pkvm_code *code) PW_MUST_CHECK;

/* Silently refused, as by the hypervisor: *loaded says whether. */
enum pw_status pkvm_load(struct pkvm *m, unsigned cpu, unsigned handle, unsigned index, bool *loaded) PW_MUST_CHECK;
enum pw_status pkvm_put(struct pkvm *m, unsigned cpu) PW_MUST_CHECK;
/* PKVM_EINVAL: that vCPU is not loaded on this CPU. Else *out is it. */
enum pkvm_code pkvm_runnable(struct pkvm *m, unsigned cpu, unsigned handle, unsigned index, struct pkvm_vcpu **out);
/* The VM that a hypercall made on this CPU with a loaded vCPU acts on; NULL: the call is refused with EINVAL. */
struct pkvm_vm *pkvm_hypercall_vm(struct pkvm *m, unsigned cpu);

enum pkvm_code pkvm_start_teardown(struct pkvm *m, unsigned handle);
enum pw_status pkvm_finalize(struct pkvm *m, unsigned handle, enum pkvm_code *code) PW_MUST_CHECK;
struct pkvm_vm *pkvm_vm_of(const struct pkvm *m, unsigned handle); /* NULL: FREE or no handle */
unsigned pkvm_handle(const struct pkvm_vm *vm);
uint64_t pkvm_references(const struct pkvm *m, const struct pkvm_vm *vm);

/*
 * A guest's hypercall (HVC64): MEMINFO, sharing and unsharing act on its VM; what goes to the host or is answered at
 * EL2 is said by pkvm_vcpu.h.
 */
enum pw_status pkvm_guest_call(struct pkvm *m, struct pkvm_vm *vm, const uint64_t x[4],
			       struct pkvm_hvc *out) PW_MUST_CHECK;

bool pkvm_is_guarded(const struct pkvm_vm *vm, uint64_t gfn);

/* The host touches a page. SIGSEGV, EFAULT, or the page is forcibly reclaimed and *a says how that went. */
enum pkvm_access { PKVM_ACCESS_USER, PKVM_ACCESS_FIXUP, PKVM_ACCESS_KERNEL };
enum pkvm_access_end {
	PKVM_ACCESS_DONE,
	PKVM_ACCESS_SIGSEGV,
	PKVM_ACCESS_EFAULT,
	PKVM_ACCESS_RETRIED,
	PKVM_ACCESS_FATAL
};
enum pw_status pkvm_host_access(struct pkvm *m, uint64_t pfn, enum pkvm_access how, enum pkvm_access_end *end,
				struct pkvm_answer *a) PW_MUST_CHECK;
/* What KVM_RUN answers when the page that a fault asks for is mapped already: EFAULT on poison, else EAGAIN. */
enum pkvm_code pkvm_fault_on_mapped(const struct pkvm_vm *vm, uint64_t gfn);

/* Reading. */
struct pkvm_page {
	uint64_t first, count; /* a run of pages that are alike; F, G: consecutive GFNs */
	enum pkvm_joint joint;
	uint64_t pins;   /* C; B: references */
	uint64_t guests; /* E: leaves that share it */
	unsigned vmid;   /* F, G: whose; 0: of a VM that is gone */
	uint64_t gfn;
};
struct pkvm_leaf {
	uint64_t first, count; /* consecutive pages */
	enum pkvm_page_state state;
	bool block;
	uint64_t pfn;
};
/* Need from < end <= 2^40. */
struct pkvm_page pkvm_page_at(const struct pkvm *m, uint64_t from, uint64_t end);
struct pkvm_leaf pkvm_leaf_at(const struct pkvm_vm *vm, uint64_t from, uint64_t end);

uint64_t pkvm_digest(const struct pkvm *m);
bool pkvm_check(const struct pkvm *m);

#endif
