/* engine/arch/pkvm_vcpu.h
 *
 * arm64 protected KVM: the state of a vCPU, split in two. The hypervisor at EL2 has its own copy, which for a protected
 * VM the host cannot reach; the host has a view, into which each exit puts what the exit table names, and nothing else.
 * On re-entry the hypervisor takes what the table names for that exit, and nothing else: the host never chooses the
 * destination register, the PC (other than past one instruction), PSTATE, or an exception that is not listed. The
 * virtual interrupts (struct pkvm_vgic), and what of HCR_EL2 injects and traps, are the host's at every entry and exit.
 *
 * A non-protected vCPU works as ever: the host gets PC, PSTATE and the whole fault record at each exit, the register
 * file on demand, and what it marks dirty is loaded again.
 *
 * Rules follow Linux arch/arm64/kvm/hyp/nvhe/hyp-main.c and sys_regs.c, Documentation/virt/kvm/arm/pkvm.rst, and the
 * Android common kernel 6.12 where PKVM_ANDROID says so.
 */
#ifndef PW_ENGINE_ARCH_PKVM_VCPU_H
#define PW_ENGINE_ARCH_PKVM_VCPU_H
#include <assert.h>

#include "engine/status.h"

/* PKVM_PANIC: the hypervisor stops the machine; the model changes nothing. */
#define PKVM_CODES(X)                         \
	X(PKVM_OK, "0", 0)                    \
	X(PKVM_EPERM, "-EPERM", -1)           \
	X(PKVM_ENOENT, "-ENOENT", -2)         \
	X(PKVM_ENXIO, "-ENXIO", -6)           \
	X(PKVM_E2BIG, "-E2BIG", -7)           \
	X(PKVM_EAGAIN, "-EAGAIN", -11)        \
	X(PKVM_ENOMEM, "-ENOMEM", -12)        \
	X(PKVM_EFAULT, "-EFAULT", -14)        \
	X(PKVM_EBUSY, "-EBUSY", -16)          \
	X(PKVM_EEXIST, "-EEXIST", -17)        \
	X(PKVM_EINVAL, "-EINVAL", -22)        \
	X(PKVM_ERANGE, "-ERANGE", -34)        \
	X(PKVM_EHWPOISON, "-EHWPOISON", -133) \
	X(PKVM_PANIC, "panic", -1000)

#define PKVM_GENERATIONS(X)                                                     \
	X(PKVM_MAINLINE, "mainline") /* its documentation, code under review */ \
	X(PKVM_ANDROID, "android")

#define PKVM_EXITS(X)                                       \
	X(PKVM_EXIT_IRQ, "interrupt")                       \
	X(PKVM_EXIT_SERROR, "SError")                       \
	X(PKVM_EXIT_ILLEGAL, "illegal state")               \
	X(PKVM_EXIT_WFX, "WFI, WFE")                        \
	X(PKVM_EXIT_CPU_ON, "HVC CPU_ON")                   \
	X(PKVM_EXIT_CPU_OFF, "HVC CPU_OFF")                 \
	X(PKVM_EXIT_CPU_SUSPEND, "HVC CPU_SUSPEND")         \
	X(PKVM_EXIT_SYSTEM_OFF, "HVC SYSTEM_OFF")           \
	X(PKVM_EXIT_SYSTEM_RESET, "HVC SYSTEM_RESET")       \
	X(PKVM_EXIT_SYSTEM_RESET2, "HVC SYSTEM_RESET2")     \
	X(PKVM_EXIT_AFFINITY_INFO, "HVC AFFINITY_INFO")     \
	X(PKVM_EXIT_MEM_RELINQUISH, "HVC MEM_RELINQUISH")   \
	X(PKVM_EXIT_DEVICE_POWER, "HVC device power")       \
	X(PKVM_EXIT_HVC_OTHER, "any other HVC")             \
	X(PKVM_EXIT_SYSREG_READ, "system register, read")   \
	X(PKVM_EXIT_SYSREG_WRITE, "system register, write") \
	X(PKVM_EXIT_IABT, "instruction abort")              \
	X(PKVM_EXIT_LOAD, "data abort, load")               \
	X(PKVM_EXIT_STORE, "data abort, store")             \
	X(PKVM_EXIT_OPAQUE, "data abort, not decodable")    \
	X(PKVM_EXIT_SHARE, "data abort, MEM_SHARE")

/* EL1 state that the hypervisor switches. */
/* clang-format off */
#define PKVM_SYSREGS(X)                                                                                     \
	X(MPIDR) X(CSSELR) X(SCTLR) X(ACTLR) X(CPACR) X(TTBR0) X(TTBR1) X(TCR) X(TCR2) X(ESR) X(AFSR0)      \
	X(AFSR1) X(FAR) X(MAIR) X(VBAR) X(CONTEXTIDR) X(TPIDR_EL0) X(TPIDRRO) X(TPIDR_EL1) X(AMAIR)         \
	X(CNTKCTL) X(PAR) X(MDSCR) X(MDCCINT) X(DISR) X(SP_EL1) X(ELR) X(SPSR) X(CNTVOFF) X(CNTV_CVAL)      \
	X(CNTV_CTL) X(CNTP_CVAL) X(CNTP_CTL) X(APIAKEYLO) X(APIAKEYHI) X(APIBKEYLO) X(APIBKEYHI)            \
	X(APDAKEYLO) X(APDAKEYHI) X(APDBKEYLO) X(APDBKEYHI) X(APGAKEYLO) X(APGAKEYHI) X(PIR) X(PIRE0)       \
	X(PMCR) X(PMSELR) X(PMCNTENSET) X(PMINTENSET) X(PMOVSSET) X(PMUSERENR)
/* clang-format on */

#define PKVM_POWERS(X)                      \
	X(PKVM_POWER_OFF, "OFF")            \
	X(PKVM_POWER_PENDING, "ON_PENDING") \
	X(PKVM_POWER_ON, "ON")

/* What userspace may ask of a vCPU or VM. */
#define PKVM_USER_CALLS(X)                                                \
	X(PKVM_USER_GET_REG, "GET_ONE_REG")                               \
	X(PKVM_USER_SET_REG, "SET_ONE_REG")                               \
	X(PKVM_USER_INIT_AGAIN, "VCPU_INIT after the first run")          \
	X(PKVM_USER_DEBUG, "SET_GUEST_DEBUG")                             \
	X(PKVM_USER_INJECT_ABORT, "SET_VCPU_EVENTS, external abort")      \
	X(PKVM_USER_BAD_FEATURE, "a feature that is not supported")       \
	X(PKVM_USER_OLD_PSCI, "a PSCI version below 1.1")                 \
	X(PKVM_USER_COUNTER_OFFSET, "a counter offset")                   \
	X(PKVM_USER_ABSENT, "a feature that it lacks")                    \
	X(PKVM_USER_SLOT_CHANGE, "moving or deleting a slot, VM running") \
	X(PKVM_USER_SLOT_READONLY, "a read-only slot")                    \
	X(PKVM_USER_DIRTY_LOG, "dirty logging")

/* ID registers; those that are not listed read 0. */
/* clang-format off */
#define PKVM_ID_REGISTERS(X) \
	X(PFR0) X(PFR1) X(ISAR0) X(ISAR1) X(ISAR2) X(MMFR0) X(MMFR1) X(MMFR2) X(MMFR4) X(DFR0) X(OTHER)
/* clang-format on */

#define PW_ENUM_(name, text)         name,
#define PW_ENUM3_(name, text, value) name,
#define PW_ENUM1_(name)              PKVM_##name,
#define PW_ENUMID_(name)             PKVM_ID_##name,
enum pkvm_code { PKVM_CODES(PW_ENUM3_) PKVM_CODE_COUNT };
enum pkvm_generation { PKVM_GENERATIONS(PW_ENUM_) PKVM_GENERATION_COUNT };
enum pkvm_exit { PKVM_EXITS(PW_ENUM_) PKVM_EXIT_COUNT };
enum pkvm_sysreg { PKVM_SYSREGS(PW_ENUM1_) PKVM_SYSREG_COUNT };
enum pkvm_power { PKVM_POWERS(PW_ENUM_) PKVM_POWER_COUNT };
enum pkvm_user_call { PKVM_USER_CALLS(PW_ENUM_) PKVM_USER_CALL_COUNT };
enum pkvm_id_register { PKVM_ID_REGISTERS(PW_ENUMID_) PKVM_ID_COUNT };
#undef PW_ENUM_
#undef PW_ENUM3_
#undef PW_ENUM1_
#undef PW_ENUMID_

const char *pkvm_code_name(enum pkvm_code c);
int pkvm_code_value(enum pkvm_code c);
const char *pkvm_exit_name(enum pkvm_exit e);
const char *pkvm_power_name(enum pkvm_power p);
const char *pkvm_user_call_name(enum pkvm_user_call c);
const char *pkvm_id_register_name(enum pkvm_id_register r);

/* The hypervisor's copy. */
struct pkvm_ctxt {
	uint64_t x[31], sp, pc, pstate;
	uint64_t v[32][2];
	uint32_t fpsr, fpcr;
	uint64_t sysregs[PKVM_SYSREG_COUNT];
};
/* Virtual interrupts: the host sees and sets all of it, of a protected vCPU too. */
#define PKVM_HOST_LRS 16
struct pkvm_vgic {
	uint64_t lr[PKVM_HOST_LRS];
	uint64_t vmcr;
};
struct pkvm_hyp_state {
	uint64_t hcr, mdcr, cptr, vsesr;
	uint64_t esr, far, ipa;   /* of the last exit */
	uint64_t entry, entry_x0; /* where a vCPU that is being turned on starts */
	struct pkvm_vgic vgic;    /* what hardware runs with */
	enum pkvm_exit exit;
	enum pkvm_power power;
	bool exited; /* exit, esr, far and ipa are an exit that awaits re-entry */
};
#define PKVM_HYP_BYTES_MAX 2048
static_assert(sizeof(struct pkvm_ctxt) + sizeof(struct pkvm_hyp_state) < PKVM_HYP_BYTES_MAX,
	      "what the hypervisor needs of a vCPU stays below 2 kB");

/* What the host has. Of a protected vCPU only what the last exit put here is ever not 0. */
struct pkvm_host_view {
	uint64_t esr, ipa, va;
	uint64_t x[4]; /* shown: the first reg_count, or the value in x[0] */
	unsigned reg_count;
	uint64_t pc;            /* non-protected only */
	uint64_t pstate, sctlr; /* masked */
	enum pkvm_exit exit;
};
static_assert(sizeof(struct pkvm_host_view) <= 128, "the host's view of a protected vCPU is small");

struct pkvm_vcpu {
	struct pkvm_ctxt ctxt;
	struct pkvm_hyp_state hyp;
	struct pkvm_host_view view;
	struct pkvm_vgic vgic; /* the host's, as the last exit left it */
	enum pkvm_generation generation;
	bool is_protected;
};

/* The exit table. */
enum pkvm_syndrome {
	PKVM_ESR_WHOLE,
	PKVM_ESR_NO_REGISTER, /* the number of the register is masked */
	PKVM_ESR_NO_VALID,    /* the valid bit is */
	PKVM_ESR_SHARE,       /* PKVM_SHARE_SYNDROME, whatever the guest did */
};
#define PKVM_SHARE_SYNDROME ((uint64_t)0x90000047) /* a data abort, level-3 translation fault, on a write */
enum pkvm_mode { PKVM_MODE_HIDDEN, PKVM_MODE_SHOWN, PKVM_MODE_SHOWN_A_SET };
#define PKVM_MAY_RESULT 0x01u /* x0 is the call's result */
#define PKVM_MAY_SKIP   0x02u /* one instruction */
#define PKVM_MAY_FILL   0x04u /* x0 into the register that the hypervisor decoded */
#define PKVM_MAY_UNDEF  0x08u /* inject an undefined instruction */
#define PKVM_MAY_ABORT  0x10u /* inject an external abort */
struct pkvm_exit_row {
	bool decided;
	bool reaches_host[PKVM_GENERATION_COUNT];
	unsigned regs; /* x0.. that are shown */
	bool value;    /* the register that is stored or written is shown in x0 */
	enum pkvm_mode mode;
	bool endianness; /* SCTLR_EL1.EE and .E0E */
	enum pkvm_syndrome syndrome;
	bool page;    /* of the fault address */
	bool va_low;  /* 12 bits */
	unsigned may; /* PKVM_MAY_ */
};
const struct pkvm_exit_row *pkvm_exit_row(enum pkvm_exit e);

/* Setting up. */
#define PKVM_FEATURE_POWER_OFF       (1u << 0)
#define PKVM_FEATURE_EL1_32BIT       (1u << 1)
#define PKVM_FEATURE_PSCI_0_2        (1u << 2)
#define PKVM_FEATURE_PMU_V3          (1u << 3)
#define PKVM_FEATURE_SVE             (1u << 4)
#define PKVM_FEATURE_PTRAUTH_ADDRESS (1u << 5)
#define PKVM_FEATURE_PTRAUTH_GENERIC (1u << 6)
#define PKVM_FEATURE_EL2             (1u << 7)
#define PKVM_FEATURE_EL2_E2H0        (1u << 8)
struct pkvm_vcpu_setup {
	unsigned features; /* PKVM_FEATURE_ */
	bool pmu_permitted, has_sme, lacks_fp;
	bool primary;
	uint64_t mpidr;
	uint64_t pc, x0;              /* of the primary of a protected VM; else the whole of *ctxt */
	const struct pkvm_ctxt *ctxt; /* non-protected; NULL: zeroes */
};
/* PKVM_EINVAL: a protected VM does not have these features. */
enum pkvm_code pkvm_vcpu_allowed(bool is_protected, const struct pkvm_vcpu_setup *s);
void pkvm_vcpu_init(struct pkvm_vcpu *v, enum pkvm_generation g, bool is_protected, const struct pkvm_vcpu_setup *s);
/* Wipes it. */
void pkvm_vcpu_release(struct pkvm_vcpu *v);

/* What hardware says about an exit. */
struct pkvm_trap {
	enum pkvm_exit exit;
	uint64_t esr, far, ipa;
	bool not_guarded; /* android: a data abort outside of what the guest registered as MMIO */
};
/*
 * Fills v->view. A load or store whose syndrome is not valid (ISV 0), or is not the host's business (android, not
 * guarded), is PKVM_EXIT_OPAQUE for a protected vCPU. PKVM_EXIT_SHARE stands for a MEM_SHARE of a page that is not
 * there: the PC, which is past the call, goes back to it. PKVM_PANIC: an exit that must not reach the host.
 */
enum pkvm_code pkvm_vcpu_exit(struct pkvm_vcpu *v, const struct pkvm_trap *t);

/* What the host wishes on re-entry: all it can write, of which the hypervisor takes what the exit allows. */
struct pkvm_wish {
	const struct pkvm_ctxt *ctxt; /* its idea of the registers; protected: x[0] alone is ever read. NULL: zeroes */
	bool skip, undef, abort;
	bool dirty;  /* non-protected: load *ctxt */
	bool failed; /* CPU_ON: the target was not started */
	uint64_t hcr, vsesr;
	const struct pkvm_vgic *vgic; /* NULL: no virtual interrupt */
};
#define PKVM_HCR_VSE  ((uint64_t)1 << 8)
#define PKVM_HCR_TWI  ((uint64_t)1 << 13)
#define PKVM_HCR_TWE  ((uint64_t)1 << 14)
#define PKVM_HCR_HOST (PKVM_HCR_VSE | PKVM_HCR_TWI | PKVM_HCR_TWE)
/* PKVM_EINVAL: it is off, which the host is told as an illegal state; nothing changed. */
enum pkvm_code pkvm_vcpu_enter(struct pkvm_vcpu *v, const struct pkvm_wish *w);

/* The whole register file for the host: NULL of a protected vCPU. */
const struct pkvm_ctxt *pkvm_vcpu_sync(const struct pkvm_vcpu *v);

/* Everything there is, item by item: shown to the host, or hidden and why. Never a hidden value. */
struct pkvm_item {
	const char *name;
	bool shown;
	uint64_t value;  /* shown only */
	const char *why; /* hidden only */
};
bool pkvm_vcpu_item(const struct pkvm_vcpu *v, unsigned n,
		    struct pkvm_item *out) PW_MUST_CHECK; /* false: past the end */

/*
 * The same for an exit of a protected vCPU that somebody else had: which bits of each item it shows. A store shows a
 * value only if its syndrome (`esr`, as the host saw it; 0: not known) is a valid one of a write, and then as much as
 * the access that it names is wide. PKVM_EXIT_COUNT: no exit awaits.
 */
struct pkvm_exit_item {
	const char *name;
	uint64_t bits;   /* those that the host may see; 0: hidden */
	bool constant;   /* its value is always `bits` */
	const char *why; /* of what is shown, and of what is hidden */
};
bool pkvm_exit_item(enum pkvm_exit e, uint64_t esr, unsigned n,
		    struct pkvm_exit_item *out) PW_MUST_CHECK; /* false: past the end */

uint64_t pkvm_vcpu_digest(const struct pkvm_vcpu *v);

/* What userspace is answered; PKVM_OK for a non-protected VM. */
enum pkvm_code pkvm_user_call(bool is_protected, enum pkvm_user_call c);

/* Power. */
#define PKVM_PSCI_NOT_SUPPORTED    (-1)
#define PKVM_PSCI_INVALID_PARAMS   (-2)
#define PKVM_PSCI_ALREADY_ON       (-4)
#define PKVM_PSCI_ON_PENDING       (-5)
#define PKVM_PSCI_INTERNAL_FAILURE (-6)
struct pkvm_power_row {
	int cpu_on;  /* the result of CPU_ON for this target; 0: it becomes pending, and the host is told */
	bool runs;   /* when the host runs it */
	bool resets; /* first: to the entry that the guest chose */
};
const struct pkvm_power_row *pkvm_power_row(enum pkvm_power p);
/* target NULL: no such affinity. A result of 0 leaves the target pending until pkvm_power_failed or a run. */
int pkvm_cpu_on(struct pkvm_vcpu *target, uint64_t entry, uint64_t x0);
void pkvm_power_failed(struct pkvm_vcpu *target); /* the host could not: OFF again */

/* Hypercalls. x0 is the function. */
#define PKVM_FN_FEATURES       0x86000000u
#define PKVM_FEATURES          0x1du /* what FEATURES answers: bits 0, 2, 3, 4 */
#define PKVM_FN_MEMINFO        0xC6000002u
#define PKVM_FN_MEM_SHARE      0xC6000003u
#define PKVM_FN_MEM_UNSHARE    0xC6000004u
#define PKVM_FN_MMIO_GUARD     0xC6000007u
#define PKVM_FN_MEM_RELINQUISH 0xC6000009u /* android */
#define PKVM_FN_AFFINITY       0xC4000004u
#define PKVM_FN_AFFINITY_32    0x84000004u
#define PKVM_HVC_INVALID       (-3)
struct pkvm_hvc {
	enum {
		PKVM_HVC_ANSWERED, /* at EL2: result is in x0 */
		PKVM_HVC_TO_HOST,  /* exit says as what */
		PKVM_HVC_FAULT, /* the host gets a level-3 translation fault on a write; the call will be made again */
	} end;
	int64_t result;
	enum pkvm_exit exit;
};
/* Those that touch no memory: PSCI, and what is not supported. False: FEATURES, MEMINFO, sharing, MMIO_GUARD, and
 * MEM_RELINQUISH where there is one. */
bool pkvm_psci_call(enum pkvm_generation g, const uint64_t x[4], struct pkvm_hvc *out) PW_MUST_CHECK;

/* Feature registers of a protected VM: each field is the lesser of the host's value and a maximum. */
enum pkvm_grant { PKVM_GRANTED, PKVM_IF_SVE, PKVM_IF_PTRAUTH };
struct pkvm_id_field {
	enum pkvm_id_register reg;
	const char *name;
	unsigned shift; /* 4 bits */
	unsigned max;
	bool is_signed; /* 0xf: absent */
	enum pkvm_grant grant;
	bool inferred; /* the maximum is */
};
const struct pkvm_id_field *pkvm_id_fields(size_t *count);
uint64_t pkvm_id_value(enum pkvm_id_register r, uint64_t host, bool sve, bool ptrauth);

/* Trapped system registers. */
enum pkvm_trapped { PKVM_TRAP_UNDEF, PKVM_TRAP_HOST, PKVM_TRAP_RAZ_WI, PKVM_TRAP_ID };
enum pkvm_trapped pkvm_trapped(const char *name, bool is_write);

#endif
