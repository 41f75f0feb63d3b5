/* engine/arch/pef.h
 *
 * POWER Protected Execution Facility, the hypervisor's half: what a KVM host with an ultravisor answers, call by call.
 * Law and codes follow Linux arch/powerpc/kvm/book3s_hv_uvmem.c and book3s_hv.c; where the kernel is laxer than the
 * tables of its own design, or leaves half-done work behind, the model follows the tables and undoes.
 *
 * A page is 64 KiB. A GFN's word is the kernel's pfns[] word, kept in a page tree so that large VMs stay cheap. Page
 * calls take a run: `count` consecutive hypercalls, all or nothing, answered by the first page that refuses.
 *
 * Answers come as two things, because real firmware has events that change state and return an error, or the reverse:
 * the code, and the state that can be read after it.
 *
 * Invariants (pef_check): 1. A normal VM has no word but 0; a secure VM has no normal GFN.
 *                         2. At most one flag per word; the number is 0 unless the GFN is resident.
 *                         3. Every used frame backs exactly one GFN of all VMs; resident GFNs have used frames only.
 *                         4. Words lie inside slots; slots are sorted and do not overlap.
 */
#ifndef PW_ENGINE_ARCH_PEF_H
#define PW_ENGINE_ARCH_PEF_H
#include "engine/tree.h"

#define PEF_PAGE_SHIFT    16  /* the only accepted order */
#define PEF_SLOTS_MAX     512 /* the ultravisor registers no slot numbered beyond */

/* The words of pfns[]; 0: normal. */
#define PEF_WORD_RESIDENT TREE_LINEAR         /* secure, paged in; the number is the secure frame */
#define PEF_WORD_OUT      ((uint64_t)1 << 62) /* secure, paged out */
#define PEF_WORD_SHARED   ((uint64_t)1 << 61)

#define PEF_CODES(X)                               \
	X(PEF_H_SUCCESS, "H_SUCCESS", 0)           \
	X(PEF_H_PARAMETER, "H_PARAMETER", -4)      \
	X(PEF_H_AUTHORITY, "H_AUTHORITY", -10)     \
	X(PEF_H_P2, "H_P2", -55)                   \
	X(PEF_H_P3, "H_P3", -56)                   \
	X(PEF_H_UNSUPPORTED, "H_UNSUPPORTED", -67) \
	X(PEF_H_STATE, "H_STATE", -75)             \
	X(PEF_EBUSY, "-EBUSY", -16)                \
	X(PEF_EINVAL, "-EINVAL", -22)              \
	X(PEF_SIGBUS, "SIGBUS", 7)

#define PEF_VM_STATES(X)                 \
	X(PEF_VM_NORMAL, "normal")       \
	X(PEF_VM_TRANSIENT, "transient") \
	X(PEF_VM_SECURE, "secure")

#define PEF_VM_EVENTS(X)                      \
	X(PEF_INIT_START, "H_SVM_INIT_START") \
	X(PEF_INIT_DONE, "H_SVM_INIT_DONE")   \
	X(PEF_INIT_ABORT, "H_SVM_INIT_ABORT") \
	X(PEF_SVM_OFF, "KVM_PPC_SVM_OFF")

#define PEF_GFN_STATES(X) \
	X(PEF_SI, "SI")   \
	X(PEF_SO, "SO")   \
	X(PEF_SH, "SH")   \
	X(PEF_NO, "NO")

/*
 * PEF_SEAL is not a hypercall: the page becomes secure and paged out, as by a page-in and a page-out through a frame
 * that is kept aside for this. PEF_MIGRATE is what INIT_DONE and hot-plug do to a left-over page, PEF_SEAL_LEFT the
 * same on a host that keeps PEF_LEFT_OUT. PEF_DROP is termination and slot removal.
 */
#define PEF_GFN_OPS(X)                     \
	X(PEF_PAGE_IN, "page-in")          \
	X(PEF_SHARE, "share")              \
	X(PEF_PAGE_OUT, "page-out")        \
	X(PEF_TOUCH, "touch")              \
	X(PEF_SEAL, "seal")                \
	X(PEF_MIGRATE, "migrate")          \
	X(PEF_SEAL_LEFT, "seal left-over") \
	X(PEF_DROP, "drop")                \
	X(PEF_ABORT, "abort")

#define PW_ENUM_(name, text)         name,
#define PW_ENUM3_(name, text, value) name,
enum pef_code { PEF_CODES(PW_ENUM3_) PEF_CODE_COUNT };
enum pef_vm_state { PEF_VM_STATES(PW_ENUM_) PEF_VM_STATE_COUNT };
enum pef_vm_event { PEF_VM_EVENTS(PW_ENUM_) PEF_VM_EVENT_COUNT };
enum pef_gfn_state { PEF_GFN_STATES(PW_ENUM_) PEF_GFN_STATE_COUNT };
enum pef_gfn_op { PEF_GFN_OPS(PW_ENUM_) PEF_GFN_OP_COUNT };
#undef PW_ENUM_
#undef PW_ENUM3_

enum pef_contents { PEF_KEPT, PEF_ZEROED, PEF_LOST };

const char *pef_code_name(enum pef_code c);
int pef_code_value(enum pef_code c);
const char *pef_vm_state_name(enum pef_vm_state s);
const char *pef_vm_event_name(enum pef_vm_event e);
const char *pef_gfn_state_name(enum pef_gfn_state s);
const char *pef_gfn_op_name(enum pef_gfn_op op);

/* The tables. A refused cell changes nothing; `code` then says why, and is H_SUCCESS or an odd success otherwise. */
struct pef_vm_cell {
	enum { PEF_VM_UNDECIDED, PEF_VM_MOVE, PEF_VM_STAY, PEF_VM_REFUSE } kind;
	enum pef_vm_state next;
	enum pef_code code;
	bool inferred; /* the design's table says so, the kernel checks nothing */
};
struct pef_gfn_cell {
	enum { PEF_GFN_UNDECIDED, PEF_GFN_MOVE, PEF_GFN_STAY, PEF_GFN_REFUSE } kind;
	enum pef_gfn_state next;
	enum pef_contents contents;
	unsigned asks_uv; /* ultracalls; if one is refused, `code` */
	enum pef_code code;
	bool inferred; /* no source says all of it: no such hypercall, or contents that nobody states */
};
const struct pef_vm_cell *pef_vm_cell(enum pef_vm_state s, enum pef_vm_event e);
const struct pef_gfn_cell *pef_gfn_cell(enum pef_gfn_state s, enum pef_gfn_op op);
bool pef_tables_are_total(void); /* called by one test */

/* What becomes of GFNs that are still normal at INIT_DONE, and of hot-plugged ones. */
enum pef_left {
	PEF_LEFT_RESIDENT, /* as on real hosts: each takes a frame */
	PEF_LEFT_OUT,      /* secure and paged out, so that no frame is taken which nobody chose; a slot that is
			      plugged into a transient VM stays normal until INIT_DONE */
};

struct pef_slot {
	uint32_t number;
	uint64_t base, pages; /* GFNs [base, base + pages) */
};

struct pef_vm {
	struct pef_vm *next;
	enum pef_vm_state state;
	bool radix, opted_in;   /* a radix guest; KVM_CAP_PPC_SECURE_GUEST was enabled */
	bool abort_owed;        /* an INIT_START failed: one INIT_ABORT is accepted though the VM is normal */
	struct pef_slot *slots; /* sorted by base */
	size_t slot_count, slot_room;
	struct tree words;
	void *note; /* the caller's own; the model never looks */
};

struct pef {
	struct pw_mem *mem; /* borrowed */
	struct arena arena;
	enum pef_left left;
	uint64_t frames;    /* size of the secure pool; frames are 0..frames-1 */
	uint64_t used;      /* how many of them */
	uint64_t *in_use;   /* bitmap: they back a GFN */
	uint64_t low;       /* no frame below is free */
	struct pef_vm *vms; /* in order of their making */
};

/* PW_NO_MEMORY; PW_INVALID: more frames than a word can name. mem is borrowed and must outlive the model. */
enum pw_status pef_init(struct pef *m, struct pw_mem *mem, uint64_t frames, enum pef_left left) PW_MUST_CHECK;
void pef_release(struct pef *m);

/* A VM in state normal, without slots. */
enum pw_status pef_vm_new(struct pef *m, bool radix, bool opted_in, struct pef_vm **out) PW_MUST_CHECK;
void pef_vm_free(struct pef *m, struct pef_vm *vm); /* its frames become free */

/* How a call is made, and what goes wrong around it. All zero: the usual way. */
struct pef_call {
	bool no_msr_s; /* the caller's saved SRR1 lacks MSR_S */
	bool vcpu_running;
	uint64_t uv_refuse; /* so many of the call's next ultracalls are refused; only those whose answer the hypervisor
			       looks at count */
};

/*
 * The calls. PW_OK: *code is the host's answer. Anything but success has changed nothing, with three exceptions:
 * INIT_ABORT of a transient VM succeeds with H_PARAMETER (the guest's result of its failed UV_ESM), a failed INIT_START
 * leaves one INIT_ABORT acceptable, and INIT_DONE that ends with H_STATE keeps what it had migrated (then only abort or
 * termination help).
 * PW_INVALID    the run is empty or reaches past 2^40; nothing changed.
 * PW_NO_MEMORY  the model's own memory; nothing changed.
 */
enum pw_status pef_vm_call(struct pef *m, struct pef_vm *vm, enum pef_vm_event ev, const struct pef_call *how,
			   enum pef_code *code) PW_MUST_CHECK;

#define PEF_PAGE_IN_SHARED 0x1u
struct pef_pages {
	uint64_t gfn, count;
	uint64_t flags;
	unsigned order;
	const uint64_t *frames; /* page-in: free frames to take, one for each GFN; NULL: the lowest free ones */
};
enum pw_status pef_page_in(struct pef *m, struct pef_vm *vm, const struct pef_pages *p, const struct pef_call *how,
			   enum pef_code *code) PW_MUST_CHECK;
enum pw_status pef_page_out(struct pef *m, struct pef_vm *vm, const struct pef_pages *p, const struct pef_call *how,
			    enum pef_code *code) PW_MUST_CHECK;
/* The hypervisor or its userspace reads or writes the pages. */
enum pw_status pef_touch(struct pef *m, struct pef_vm *vm, uint64_t gfn, uint64_t count, const struct pef_call *how,
			 enum pef_code *code) PW_MUST_CHECK;
enum pw_status pef_seal(struct pef *m, struct pef_vm *vm, uint64_t gfn, uint64_t count, const struct pef_call *how,
			enum pef_code *code) PW_MUST_CHECK;

/* H_PARAMETER: empty, out of range, overlapping or known; the ultravisor refused. H_STATE: pool exhausted. */
enum pw_status pef_slot_add(struct pef *m, struct pef_vm *vm, const struct pef_slot *s, const struct pef_call *how,
			    enum pef_code *code) PW_MUST_CHECK;
enum pw_status pef_slot_remove(struct pef *m, struct pef_vm *vm, uint32_t number, enum pef_code *code) PW_MUST_CHECK;

struct pef_run {
	uint64_t first, count;
	enum pef_gfn_state state;
	uint64_t frame; /* SI: consecutive from here */
};
/* The maximal run of one state at `from`, cut at `end` and at its slot's edge; needs from < end <= 2^40.
 * False if no GFN of [from, end) is in a slot; else the run may begin after `from`. */
bool pef_run_at(const struct pef_vm *vm, uint64_t from, uint64_t end, struct pef_run *out) PW_MUST_CHECK;
enum pef_gfn_state pef_state(const struct pef_vm *vm, uint64_t gfn);
bool pef_covers(const struct pef_vm *vm, uint64_t gfn, uint64_t count); /* is all of it inside slots? */

/*
 * What a call must find, in the order in which it is looked at: text, where the rule is from, and whether it was read
 * there or is inferred.
 */
/* clang-format off */
#define PEF_RULES(X) \
	X(PEF_RULE_MSR_S, "the caller's SRR1 has MSR_S", "Linux book3s_hv.c, kvmppc_pseries_do_hcall", true) \
	X(PEF_RULE_STARTED, "the VM is transient or secure", "Linux book3s_hv_uvmem.c, kvmppc_h_svm_page_in, _out", true) \
	X(PEF_RULE_ORDER, "the order is 16", "Linux book3s_hv_uvmem.c, kvmppc_h_svm_page_in, _out", true) \
	X(PEF_RULE_FLAGS, "no flag but H_PAGE_IN_SHARED, and for page-out none", "Linux book3s_hv_uvmem.c, kvmppc_h_svm_page_in, _out", true) \
	X(PEF_RULE_SLOT, "the page lies in a memory slot", "Linux book3s_hv_uvmem.c, kvmppc_svm_page_in, _out", true) \
	X(PEF_RULE_OUT, "the page is not paged in already", "Linux book3s_hv_uvmem.c, kvmppc_svm_page_in", true) \
	X(PEF_RULE_POOL, "the secure pool has a page for it", "Linux book3s_hv_uvmem.c, kvmppc_uvmem_get_page", true) \
	X(PEF_RULE_FRAME, "the secure page that is named for it is free", "the law, L1", true) \
	X(PEF_RULE_UV_PAGE, "the ultravisor accepts the page", "ultravisor svm_host.c", true) \
	X(PEF_RULE_STEP, "the VM's life cycle has that step", "Linux book3s_hv_uvmem.c, kvmppc_h_svm_init_done, _abort", true) \
	X(PEF_RULE_DESIGN, "the design's life cycle has that step; the kernel does not look", "Linux, 'track the state GFNs', VM table", false) \
	X(PEF_RULE_HAS_POOL, "there is a secure pool", "Linux book3s_hv_uvmem.c, kvmppc_h_svm_init_start", true) \
	X(PEF_RULE_RADIX, "the guest uses radix translation", "Linux book3s_hv_uvmem.c, kvmppc_h_svm_init_start", true) \
	X(PEF_RULE_OPT_IN, "userspace enabled KVM_CAP_PPC_SECURE_GUEST", "Linux book3s_hv_uvmem.c, kvmppc_h_svm_init_start", true) \
	X(PEF_RULE_REGISTER, "the ultravisor registers every slot, numbered below 512", "ultravisor svm_host.c", true) \
	X(PEF_RULE_LEFT, "each page that is left over can be migrated", "Linux book3s_hv_uvmem.c, kvmppc_uv_migrate_mem_slot", true) \
	X(PEF_RULE_NO_VCPU, "no vCPU is running", "Linux book3s_hv.c, kvmhv_svm_off", true) \
	X(PEF_RULE_TERMINATE, "the ultravisor ends the VM", "Linux book3s_hv.c, kvmhv_svm_off", true) \
	X(PEF_RULE_NEW_SLOT, "the slot is new, not empty, below 2^40, and overlaps none", "Linux kvm_main.c, kvm_set_memory_region", false) \
	X(PEF_RULE_PLUG, "the ultravisor registers the slot, numbered below 512", "Linux book3s_hv_uvmem.c, kvmppc_uvmem_memslot_create", false) \
	X(PEF_RULE_PLUG_POOL, "the secure pool has a page for each of the slot's", "Linux book3s_hv_uvmem.c, kvmppc_uvmem_memslot_create", false) \
	X(PEF_RULE_OLD_SLOT, "there is such a slot", "Linux kvm_main.c, kvm_set_memory_region", false)
/* clang-format on */
#define PW_ENUM4_(name, text, source, verified) name,
enum pef_rule { PEF_RULES(PW_ENUM4_) PEF_RULE_COUNT };
#undef PW_ENUM4_
const char *pef_rule_text(enum pef_rule r);
const char *pef_rule_source(enum pef_rule r);
bool pef_rule_is_verified(enum pef_rule r);

/*
 * Why a call was refused, in words: the operation, the page, its state, the code, the rule and its source, and "not
 * verified" where the rule is inferred. To be asked right after the refusal, with what the call was given: it has
 * changed nothing, so its reason is still there. PEF_RULE_COUNT: there is none, *err is untouched; else PW_CONFLICT.
 */
enum pef_rule pef_explain(const struct pef *m, const struct pef_vm *vm, enum pef_gfn_op op, const struct pef_pages *p,
			  const struct pef_call *how, enum pef_code code, struct pw_err *err);
enum pef_rule pef_explain_event(const struct pef *m, const struct pef_vm *vm, enum pef_vm_event ev,
				const struct pef_call *how, enum pef_code code, struct pw_err *err);
/* s->pages 0: the slot was to be removed. */
enum pef_rule pef_explain_slot(const struct pef *m, const struct pef_vm *vm, const struct pef_slot *s,
			       const struct pef_call *how, enum pef_code code, struct pw_err *err);

/*
 * Puts a state back that was read before: unlike the calls above it asks nobody. pef_check judges the result.
 * PW_INVALID: outside slots, or a frame that is used or out of the pool; nothing changed. A run replaces what was
 * there.
 */
enum pw_status pef_put_run(struct pef *m, struct pef_vm *vm, const struct pef_run *run) PW_MUST_CHECK;

/* A hash of all that calls can change, but for abort_owed. */
uint64_t pef_digest(const struct pef *m);
bool pef_check(const struct pef *m);

#endif
