/* engine/arch/cca.h
 *
 * Arm CCA: what a Realm Management Monitor answers its host, command by command. Law: the RMM specification DEN0137
 * 1.0; where it leaves an order of checks open, the order of TF-RMM. 4 KiB granules only.
 *
 * Every command is a row of data: its function number, its arguments and its checks in order; what it does to a
 * translation table entry is a column of the table of entries. Answers are two things: the code, and the state that can
 * be read after it. A command that answers anything but success has changed nothing.
 *
 * What an IPA holds (HIPAS, RIPAS, address) is in one page tree per realm, which tables exist in one tree per level,
 * and what each granule is in one tree for the machine. Creating or folding a table changes no IPA, so it is one word
 * here; blocks and unshattered tables cost what a homogeneous range costs.
 *
 * Invariants (cca_check): 1. Every granule that is not undelegated or delegated is used in exactly the place that its
 *                            word names, and every place that uses one is named by its word.
 *                         2. A table has its parent; an entry without a table below is alike in all its pages.
 *                         3. Blocks are at levels 1 and 2, IPA and address aligned to their size.
 *                         4. Protected entries are never NS, unprotected ones never have a RIPAS.
 *                         5. num_recs counts living RECs; rec_index is no smaller; VMIDs are unique.
 *                         6. cursor <= end of a RIPAS request.
 */
#ifndef PW_ENGINE_ARCH_CCA_H
#define PW_ENGINE_ARCH_CCA_H
#include "engine/lifecycle.h"
#include "engine/tree.h"

#define CCA_SHIFT       12
#define CCA_GRANULE     ((uint64_t)1 << CCA_SHIFT)
#define CCA_LEVELS      4  /* 0..3 */
#define CCA_ROOTS_MAX   16 /* concatenated */
#define CCA_AUX_MAX     16
#define CCA_RIM_BYTES   64
#define CCA_REALM_SLOTS 65536 /* as many as VMIDs */
#define CCA_VERSION     0x10000
#define CCA_UNKNOWN_FID UINT64_MAX /* X0 of a call that there is not */

/* The codes of TF-RMM's granule states; they are not part of the interface. */
#define CCA_GRANULES(X)                   \
	X(CCA_UNDELEGATED, "UNDELEGATED") \
	X(CCA_DELEGATED, "DELEGATED")     \
	X(CCA_RD, "RD")                   \
	X(CCA_REC, "REC")                 \
	X(CCA_REC_AUX, "REC_AUX")         \
	X(CCA_DATA, "DATA")               \
	X(CCA_RTT, "RTT")                 \
	X(CCA_NOT_DELEGABLE, "NOT_DELEGABLE") /* device memory, carve-outs */

#define CCA_REALM_STATES(X)     \
	X(CCA_NEW, "NEW")       \
	X(CCA_ACTIVE, "ACTIVE") \
	X(CCA_SYSTEM_OFF, "SYSTEM_OFF")

#define CCA_STATUSES(X)                       \
	X(CCA_SUCCESS, "RMI_SUCCESS")         \
	X(CCA_ERROR_INPUT, "RMI_ERROR_INPUT") \
	X(CCA_ERROR_REALM, "RMI_ERROR_REALM") \
	X(CCA_ERROR_REC, "RMI_ERROR_REC")     \
	X(CCA_ERROR_RTT, "RMI_ERROR_RTT")

#define CCA_RIPAS(X)          \
	X(CCA_EMPTY, "EMPTY") \
	X(CCA_RAM, "RAM")     \
	X(CCA_DESTROYED, "DESTROYED")

/* HIPAS and RIPAS of an entry: name, HIPAS, RIPAS. */
#define CCA_ENTRIES(X)                                                                 \
	X(CCA_UNASSIGNED_EMPTY, "UNASSIGNED/EMPTY", "UNASSIGNED", "EMPTY")             \
	X(CCA_UNASSIGNED_RAM, "UNASSIGNED/RAM", "UNASSIGNED", "RAM")                   \
	X(CCA_UNASSIGNED_DESTROYED, "UNASSIGNED/DESTROYED", "UNASSIGNED", "DESTROYED") \
	X(CCA_ASSIGNED_EMPTY, "ASSIGNED/EMPTY", "ASSIGNED", "EMPTY")                   \
	X(CCA_ASSIGNED_RAM, "ASSIGNED/RAM", "ASSIGNED", "RAM")                         \
	X(CCA_ASSIGNED_DESTROYED, "ASSIGNED/DESTROYED", "ASSIGNED", "DESTROYED")       \
	X(CCA_TABLE, "TABLE", "TABLE", NULL)                                           \
	X(CCA_UNASSIGNED_NS, "UNASSIGNED_NS", "UNASSIGNED_NS", NULL)                   \
	X(CCA_ASSIGNED_NS, "ASSIGNED_NS", "ASSIGNED_NS", NULL)                         \
	X(CCA_TABLE_NS, "TABLE_NS", "TABLE", NULL)

/* What happens to one entry. UNFOLD: what the children of a new table are; RTT_DESTROY: what the parent becomes; FOLD:
 * what the parent of 512 such children becomes. The last two SET_RIPAS: with the realm's change_destroyed. */
#define CCA_ENTRY_OPS(X)                                            \
	X(CCA_OP_DATA_CREATE, "DATA_CREATE")                        \
	X(CCA_OP_DATA_UNKNOWN, "DATA_CREATE_UNKNOWN")               \
	X(CCA_OP_DATA_DESTROY, "DATA_DESTROY")                      \
	X(CCA_OP_INIT_RIPAS, "INIT_RIPAS")                          \
	X(CCA_OP_SET_EMPTY, "SET_RIPAS EMPTY")                      \
	X(CCA_OP_SET_RAM, "SET_RIPAS RAM")                          \
	X(CCA_OP_SET_EMPTY_CD, "SET_RIPAS EMPTY, change_destroyed") \
	X(CCA_OP_SET_RAM_CD, "SET_RIPAS RAM, change_destroyed")     \
	X(CCA_OP_MAP, "MAP_UNPROTECTED")                            \
	X(CCA_OP_UNMAP, "UNMAP_UNPROTECTED")                        \
	X(CCA_OP_UNFOLD, "RTT_CREATE")                              \
	X(CCA_OP_RTT_DESTROY, "RTT_DESTROY")                        \
	X(CCA_OP_FOLD, "RTT_FOLD")

#define CCA_COMMANDS(X)                                                   \
	X(CCA_VERSION_CMD, "VERSION", 0xC4000150)                         \
	X(CCA_GRANULE_DELEGATE, "GRANULE_DELEGATE", 0xC4000151)           \
	X(CCA_GRANULE_UNDELEGATE, "GRANULE_UNDELEGATE", 0xC4000152)       \
	X(CCA_DATA_CREATE, "DATA_CREATE", 0xC4000153)                     \
	X(CCA_DATA_CREATE_UNKNOWN, "DATA_CREATE_UNKNOWN", 0xC4000154)     \
	X(CCA_DATA_DESTROY, "DATA_DESTROY", 0xC4000155)                   \
	X(CCA_REALM_ACTIVATE, "REALM_ACTIVATE", 0xC4000157)               \
	X(CCA_REALM_CREATE, "REALM_CREATE", 0xC4000158)                   \
	X(CCA_REALM_DESTROY, "REALM_DESTROY", 0xC4000159)                 \
	X(CCA_REC_CREATE, "REC_CREATE", 0xC400015A)                       \
	X(CCA_REC_DESTROY, "REC_DESTROY", 0xC400015B)                     \
	X(CCA_REC_ENTER, "REC_ENTER", 0xC400015C)                         \
	X(CCA_RTT_CREATE, "RTT_CREATE", 0xC400015D)                       \
	X(CCA_RTT_DESTROY, "RTT_DESTROY", 0xC400015E)                     \
	X(CCA_RTT_MAP_UNPROTECTED, "RTT_MAP_UNPROTECTED", 0xC400015F)     \
	X(CCA_RTT_READ_ENTRY, "RTT_READ_ENTRY", 0xC4000161)               \
	X(CCA_RTT_UNMAP_UNPROTECTED, "RTT_UNMAP_UNPROTECTED", 0xC4000162) \
	X(CCA_FEATURES, "FEATURES", 0xC4000165)                           \
	X(CCA_RTT_FOLD, "RTT_FOLD", 0xC4000166)                           \
	X(CCA_REC_AUX_COUNT, "REC_AUX_COUNT", 0xC4000167)                 \
	X(CCA_RTT_INIT_RIPAS, "RTT_INIT_RIPAS", 0xC4000168)               \
	X(CCA_RTT_SET_RIPAS, "RTT_SET_RIPAS", 0xC4000169)
#define CCA_FID_PSCI_COMPLETE 0xC4000164 /* exists, and is outside this model */

#define CCA_ARGS(X)                         \
	X(CCA_ARG_REQ, "req")               \
	X(CCA_ARG_ADDR, "addr")             \
	X(CCA_ARG_RD, "rd")                 \
	X(CCA_ARG_DATA, "data")             \
	X(CCA_ARG_IPA, "ipa")               \
	X(CCA_ARG_SRC, "src")               \
	X(CCA_ARG_FLAGS, "flags")           \
	X(CCA_ARG_PARAMS_PTR, "params_ptr") \
	X(CCA_ARG_REC, "rec")               \
	X(CCA_ARG_RUN_PTR, "run_ptr")       \
	X(CCA_ARG_RTT, "rtt")               \
	X(CCA_ARG_LEVEL, "level")           \
	X(CCA_ARG_DESC, "desc")             \
	X(CCA_ARG_INDEX, "index")           \
	X(CCA_ARG_BASE, "base")             \
	X(CCA_ARG_TOP, "top")

#define CCA_OUTS(X)                         \
	X(CCA_OUT_LOWER, "lower")           \
	X(CCA_OUT_HIGHER, "higher")         \
	X(CCA_OUT_DATA, "data")             \
	X(CCA_OUT_RTT, "rtt")               \
	X(CCA_OUT_TOP, "top")               \
	X(CCA_OUT_WALK_LEVEL, "walk_level") \
	X(CCA_OUT_STATE, "state")           \
	X(CCA_OUT_DESC, "desc")             \
	X(CCA_OUT_RIPAS, "ripas")           \
	X(CCA_OUT_VALUE, "value")           \
	X(CCA_OUT_AUX_COUNT, "aux_count")   \
	X(CCA_OUT_OUT_TOP, "out_top")

#define CCA_EXITS(X)             \
	X(CCA_EXIT_SYNC, "SYNC") \
	X(CCA_EXIT_IRQ, "IRQ")   \
	X(CCA_EXIT_FIQ, "FIQ")   \
	X(CCA_EXIT_PSCI, "PSCI") \
	X(CCA_EXIT_RIPAS_CHANGE, "RIPAS_CHANGE")

#define PW_ENUM_(name, text)            name,
#define PW_ENUM3_(name, text, value)    name,
#define PW_ENUM4_(name, text, hip, rip) name,
enum cca_granule { CCA_GRANULES(PW_ENUM_) CCA_GRANULE_COUNT };
enum cca_realm_state { CCA_REALM_STATES(PW_ENUM_) CCA_REALM_STATE_COUNT };
enum cca_status { CCA_STATUSES(PW_ENUM_) CCA_STATUS_COUNT };
enum cca_ripas { CCA_RIPAS(PW_ENUM_) CCA_RIPAS_COUNT };
enum cca_entry { CCA_ENTRIES(PW_ENUM4_) CCA_ENTRY_COUNT };
enum cca_entry_op { CCA_ENTRY_OPS(PW_ENUM_) CCA_ENTRY_OP_COUNT };
enum cca_command { CCA_COMMANDS(PW_ENUM3_) CCA_COMMAND_COUNT };
enum cca_arg { CCA_ARGS(PW_ENUM_) CCA_ARG_COUNT };
enum cca_out { CCA_OUTS(PW_ENUM_) CCA_OUT_COUNT };
enum cca_exit { CCA_EXITS(PW_ENUM_) CCA_EXIT_COUNT };
#undef PW_ENUM_
#undef PW_ENUM3_
#undef PW_ENUM4_
enum cca_hash { CCA_SHA256, CCA_SHA512 };

const char *cca_granule_name(enum cca_granule g);
const char *cca_realm_state_name(enum cca_realm_state s);
const char *cca_status_name(enum cca_status s);
const char *cca_ripas_name(enum cca_ripas r);
const char *cca_entry_name(enum cca_entry e);
const char *cca_entry_hipas(enum cca_entry e);
const char *cca_entry_ripas(enum cca_entry e); /* NULL: has none */
const char *cca_entry_op_name(enum cca_entry_op op);
const char *cca_command_name(enum cca_command c);
uint32_t cca_command_fid(enum cca_command c);
const char *cca_arg_name(enum cca_arg a);
const char *cca_out_name(enum cca_out o);
const char *cca_exit_name(enum cca_exit e);

/* What each kind of entry is. */
struct cca_entry_kind {
	bool live;         /* holds an address */
	bool keeps_table;  /* its table cannot be destroyed */
	unsigned folds_at; /* bit L: 512 of them in a table of level L fold */
};
const struct cca_entry_kind *cca_entry_kind(enum cca_entry e);

/*
 * Entry x operation. SAME counts as processed; STOP ends a range, and is RMI_ERROR_RTT where it comes first; DOWN: the
 * walk goes on, so it is met only above the level that is worked on; OTHER_HALF: refused before by the address.
 */
struct cca_cell {
	enum { CCA_UNDECIDED, CCA_MOVE, CCA_SAME, CCA_STOP, CCA_DOWN, CCA_OTHER_HALF } kind;
	enum cca_entry next;
};
const struct cca_cell *cca_cell(enum cca_entry e, enum cca_entry_op op);
bool cca_tables_are_total(void); /* called by one test */

/* The checks of a command, in their order. */
#define CCA_CHECKS(X)                                                                                              \
	X(CCA_CHECK_NONE, "")                                                                                      \
	X(CCA_CHECK_GRANULE, "aligned, delegable, and in the state")                                               \
	X(CCA_CHECK_REQ, "the interface version is 1.0")                                                           \
	X(CCA_CHECK_EL3, "EL3 changes the protection of the granule")                                              \
	X(CCA_CHECK_FLAGS, "flags are 0 or 1")                                                                     \
	X(CCA_CHECK_NEW, "the realm is NEW")                                                                       \
	X(CCA_CHECK_IPA_DATA, "ipa is protected and 4 KiB aligned")                                                \
	X(CCA_CHECK_PA_BITS, "the granule is below 2^48")                                                          \
	X(CCA_CHECK_WALK_PAGE, "the walk reaches level 3")                                                         \
	X(CCA_CHECK_WALK_PARENT, "the walk reaches the parent entry")                                              \
	X(CCA_CHECK_WALK_LEVEL, "the walk reaches the level")                                                      \
	X(CCA_CHECK_ENTRY, "the entry lets the operation")                                                         \
	X(CCA_CHECK_PARENT_TABLE, "the parent entry is a TABLE")                                                   \
	X(CCA_CHECK_CHILD_DEAD, "the table holds no TABLE and no protected ASSIGNED entry")                        \
	X(CCA_CHECK_CHILD_ALIKE, "all 512 entries of the table are alike")                                         \
	X(CCA_CHECK_SOURCE, "the source page can be read")                                                         \
	X(CCA_CHECK_PARAMS, "the parameter page can be read")                                                      \
	X(CCA_CHECK_TABLE_PLACE, "start level < level <= 3, ipa inside the space and aligned to the parent entry") \
	X(CCA_CHECK_MAP_LEVEL, "level is 1, 2 or 3")                                                               \
	X(CCA_CHECK_DESC, "the descriptor is valid")                                                               \
	X(CCA_CHECK_MAP_PLACE, "start level <= level, ipa inside the space and aligned to the entry")              \
	X(CCA_CHECK_UNPROTECTED, "ipa is unprotected")                                                             \
	X(CCA_CHECK_READ_PLACE, "start level <= level <= 3, ipa inside the space and aligned to the entry")        \
	X(CCA_CHECK_FEATURES, "the features, widths, hash and number of root tables are supported")                \
	X(CCA_CHECK_VMID, "the VMID is free")                                                                      \
	X(CCA_CHECK_ROOTS, "the root tables are aligned to their size, DELEGATED, and not the RD")                 \
	X(CCA_CHECK_NO_RECS, "the realm has no REC")                                                               \
	X(CCA_CHECK_ROOTS_DEAD, "the root tables hold no TABLE and no protected ASSIGNED entry")                   \
	X(CCA_CHECK_AUX_MAX, "num_aux is at most 16")                                                              \
	X(CCA_CHECK_AUX, "auxiliary granules are DELEGATED and all different")                                     \
	X(CCA_CHECK_REC_NOT_AUX, "rec is none of its auxiliary granules")                                          \
	X(CCA_CHECK_REC_LIMIT, "the realm may have another REC")                                                   \
	X(CCA_CHECK_MPIDR, "the MPIDR is valid and the next one")                                                  \
	X(CCA_CHECK_AUX_COUNT, "num_aux is the realm's number of auxiliary granules")                              \
	X(CCA_CHECK_NOT_RUNNING, "the REC is not running")                                                         \
	X(CCA_CHECK_ACTIVE, "the realm is ACTIVE")                                                                 \
	X(CCA_CHECK_RUNNABLE, "the REC is runnable")                                                               \
	X(CCA_CHECK_NO_PSCI, "no PSCI request is open")                                                            \
	X(CCA_CHECK_GIC, "the GIC state is valid")                                                                 \
	X(CCA_CHECK_SEA, "an abort to inject fits the last exit")                                                  \
	X(CCA_CHECK_MMIO, "an access to emulate fits the last exit")                                               \
	X(CCA_CHECK_RANGE_SIZE, "top is above base")                                                               \
	X(CCA_CHECK_RANGE_ALIGNED, "base and top are 4 KiB aligned")                                               \
	X(CCA_CHECK_TOP_ALIGNED, "top is 4 KiB aligned")                                                           \
	X(CCA_CHECK_RANGE_PROTECTED, "base and the page below top are protected")                                  \
	X(CCA_CHECK_REC_OF_REALM, "the REC belongs to the realm")                                                  \
	X(CCA_CHECK_CURSOR, "base is the cursor of the realm's request, and top not past its end")                 \
	X(CCA_CHECK_BASE_ENTRY, "base is aligned to the entry that the walk reaches")                              \
	X(CCA_CHECK_PROGRESS, "the first entry lies in the range and may change")

#define PW_ENUM_(name, text) name,
enum cca_check_kind { CCA_CHECKS(PW_ENUM_) CCA_CHECK_COUNT };
#undef PW_ENUM_
const char *cca_check_text(enum cca_check_kind k);

struct cca_check {
	enum cca_check_kind kind;
	enum cca_arg arg;       /* CHECK_GRANULE, CHECK_PA_BITS: which argument */
	enum cca_granule state; /* CHECK_GRANULE */
	enum cca_status status; /* the code where it fails */
};
#define CCA_ARGS_MAX   5
#define CCA_CHECKS_MAX 12
struct cca_command_row {
	enum cca_arg args[CCA_ARGS_MAX]; /* X1.. */
	unsigned arg_count;
	bool tells_top;       /* the output `top` is valid on RMI_ERROR_RTT too */
	enum cca_entry_op op; /* of CHECK_ENTRY */
	const char *source;   /* of its rules */
	struct cca_check checks[CCA_CHECKS_MAX + 1];
};
const struct cca_command_row *cca_command_row(enum cca_command c);

/* The contents of the host's pages that commands read. */
struct cca_realm_params {
	uint64_t flags; /* bit 0 LPA2, 1 SVE, 2 PMU */
	uint64_t s2sz, sve_vl, num_bps, num_wps, pmu_num_ctrs, hash_algo;
	uint16_t vmid;
	uint64_t rtt_base;
	int64_t rtt_level_start;
	uint64_t rtt_num_start;
};
#define CCA_REALM_LPA2 0x1u
#define CCA_REALM_SVE  0x2u
#define CCA_REALM_PMU  0x4u
struct cca_rec_params {
	uint64_t flags; /* bit 0 runnable */
	uint64_t mpidr, pc, gprs[8];
	uint64_t num_aux, aux[CCA_AUX_MAX];
};
#define CCA_REC_RUNNABLE 0x1u
struct cca_run_params {
	uint64_t flags;
	bool gic_invalid; /* the GIC state that the host wrote */
};
#define CCA_ENTER_MMIO         0x01u
#define CCA_ENTER_SEA          0x02u
#define CCA_ENTER_REJECT_RIPAS 0x10u

struct cca_call {
	enum cca_command cmd;
	uint64_t arg[CCA_ARG_COUNT];
	union { /* NULL: the page cannot be read; REC_ENTER: all zero */
		const struct cca_realm_params *realm;
		const struct cca_rec_params *rec;
		const struct cca_run_params *run;
		const void *source; /* 4 KiB */
	};
};
struct cca_result {
	enum cca_status status;
	unsigned index;
	unsigned valid; /* bit per output */
	uint64_t out[CCA_OUT_COUNT];
	const struct cca_check *failed; /* NULL on success */
	unsigned rsi_count; /* REC_ENTER: values that the realm's open IPA_STATE_SET gets; 0: none is open */
	uint64_t rsi[3];
	const char *unverified; /* not NULL: this answer is inferred, no recording shows it; why */
};

struct cca_realm {
	uint64_t rd;     /* granule number: address >> 12, as everywhere in these structs */
	uint64_t serial; /* the n-th realm of the machine, from 0 */
	unsigned slot;
	enum cca_realm_state state;
	unsigned ipa_bits, start, root_count;
	uint64_t root;
	uint16_t vmid;
	enum cca_hash hash;
	uint8_t rim[CCA_RIM_BYTES];
	uint64_t num_recs, rec_index;
	struct tree entries;                /* words: see cca_word_entry */
	struct tree tables[CCA_LEVELS - 1]; /* of level 1, 2, 3, by ipa >> bits of a table of that level */
	void *note;                         /* the caller's own; the model never looks */
};

struct cca_rec {
	struct cca_realm *realm;
	uint64_t granule;
	uint64_t index, mpidr;
	bool runnable, running, psci_open;
	bool abort_fits; /* the last exit was a data abort in the unprotected half, with all that emulation needs */
	struct cca_ripas_request {
		bool open;
		uint64_t base, cursor, end; /* addresses */
		enum cca_ripas value;
		bool change_destroyed;
	} ripas;
	unsigned num_aux;
	uint64_t aux[CCA_AUX_MAX];
};

struct cca_config {
	uint64_t base, granules; /* delegable memory: addresses [base, base + granules * 4 KiB) */
	uint64_t features0;
	unsigned rec_aux_count;
	unsigned pa_bits; /* 0: 48 */
	bool hpmn0;       /* the CPUs have FEAT_HPMN0: a realm may have a PMU without counters */
};
#define CCA_FEATURES0 0x283fc104130 /* of the recorded machine */

struct cca {
	struct pw_mem *mem; /* borrowed */
	struct arena arena;
	struct cca_config config;
	struct tree granules;
	struct cca_realm **realms; /* by slot */
	struct cca_rec **recs;
	size_t realm_room, rec_room;
	uint64_t realms_made;
	uint64_t vmids[CCA_REALM_SLOTS / 64];
	uint64_t el3_refuses; /* so many of the next changes of granule protection are refused */
};

/* PW_NO_MEMORY; PW_INVALID: memory that is misaligned, wraps, or is beyond 2^52. mem is borrowed. */
enum pw_status cca_init(struct cca *m, struct pw_mem *mem, const struct cca_config *config) PW_MUST_CHECK;
void cca_release(struct cca *m);

/* Takes [addr, addr + count granules) out of what can be delegated. PW_INVALID: not all undelegated. */
enum pw_status cca_carve_out(struct cca *m, uint64_t addr, uint64_t count) PW_MUST_CHECK;

/*
 * One command.
 * PW_OK         *r is the answer.
 * PW_NO_MEMORY  the model's own memory; nothing changed.
 */
enum pw_status cca_rmi(struct cca *m, const struct cca_call *call, struct cca_result *r) PW_MUST_CHECK;

/*
 * The same command up to `count` times, each one page, table or entry further, until one is refused: *done are behind
 * it, *r is the last answer. For DELEGATE, UNDELEGATE, DATA_CREATE (of one source page), DATA_CREATE_UNKNOWN,
 * DATA_DESTROY, RTT_CREATE, RTT_DESTROY and RTT_FOLD; homogeneous stretches cost one command each, and DATA_CREATE its
 * measurements. PW_INVALID: another command. PW_NO_MEMORY: *done are done.
 */
enum pw_status cca_rmi_run(struct cca *m, const struct cca_call *call, uint64_t count, uint64_t *done,
			   struct cca_result *r) PW_MUST_CHECK;

/* The machine's own form: X0 function, X1.. arguments, in; X0 status | index << 8, X1.. outputs, out.
 * PW_INVALID: PSCI_COMPLETE. */
enum pw_status cca_smc(struct cca *m, uint64_t x[CCA_ARGS_MAX + 1], const struct cca_call *pages) PW_MUST_CHECK;

/* Says in words what a refused command met, with the pages and their owners, and where the rule is from. */
void cca_explain(const struct cca *m, const struct cca_call *call, const struct cca_result *r, struct pw_err *err);

struct cca_rec *cca_rec_at(const struct cca *m, uint64_t addr);     /* NULL: not a REC */
struct cca_realm *cca_realm_at(const struct cca *m, uint64_t addr); /* NULL: not an RD */

/* What a granule is, and for whom. */
struct cca_granule_view {
	enum cca_granule state;
	const struct cca_realm *realm; /* NULL: nobody's */
	const struct cca_rec *rec;     /* REC, REC_AUX */
	unsigned level;                /* RTT */
	uint64_t ipa;                  /* DATA: behind it; RTT: from where it translates */
};
enum cca_granule cca_granule_state(const struct cca *m, uint64_t addr); /* NOT_DELEGABLE outside of memory */
struct cca_granule_view cca_granule_at(const struct cca *m, uint64_t addr);

struct cca_walk {
	unsigned level; /* reached */
	uint64_t first; /* IPA where the entry begins */
	enum cca_entry entry;
	uint64_t addr; /* TABLE: of the table; ASSIGNED: of the output at `first`; else 0 */
	uint64_t attr; /* ASSIGNED_NS */
};
/* Towards `level` for an IPA below 2^48. */
struct cca_walk cca_walk(const struct cca_realm *realm, uint64_t ipa, unsigned level);
uint64_t cca_level_size(unsigned level); /* bytes that one entry covers */

/* The pages from `gfn` on, below `end`, whose entries are alike, with consecutive outputs if they have any: whatever
 * the tables. Needs gfn < end, and both in one half. */
struct cca_pages {
	uint64_t gfn, count;
	enum cca_entry entry;
	uint64_t addr; /* output of the first */
};
struct cca_pages cca_pages_at(const struct cca_realm *realm, uint64_t gfn, uint64_t end);

/*
 * What a running REC does; other commands may come between. X0.. of its calls into the RMM; exits: the REC is not
 * running any more, and the host sees the rest.
 */
#define CCA_RSI_SUCCESS     0
#define CCA_RSI_ERROR_INPUT 1
#define CCA_RSI_REJECTED    1 /* X2 of IPA_STATE_SET */
struct cca_rsi {
	unsigned count; /* values given back in x; 0: the call is still open */
	uint64_t x[3];
	bool exits;
	enum cca_exit exit;
	uint64_t ripas_base, ripas_top; /* RIPAS_CHANGE */
	enum cca_ripas ripas_value;
	uint64_t gpr0; /* PSCI */
};
#define CCA_PSCI_CPU_OFF      0x84000002u
#define CCA_PSCI_CPU_ON       0xC4000003u
#define CCA_PSCI_SYSTEM_OFF   0x84000008u
#define CCA_PSCI_SYSTEM_RESET 0x84000009u

/* All four: PW_CONFLICT if the REC is not running. `ripas` as the realm wrote it. */
enum pw_status cca_rsi_ipa_state_set(struct cca_rec *rec, uint64_t base, uint64_t top, uint64_t ripas,
				     bool change_destroyed, struct cca_rsi *out) PW_MUST_CHECK;
enum pw_status cca_rsi_ipa_state_get(const struct cca_rec *rec, uint64_t base, uint64_t top,
				     struct cca_rsi *out) PW_MUST_CHECK;
/* PW_INVALID: another function. CPU_ON stays open for ever: PSCI_COMPLETE is outside this model. */
enum pw_status cca_rsi_psci(struct cca_rec *rec, uint32_t function, struct cca_rsi *out) PW_MUST_CHECK;
/* An exit that the realm did not ask for: IRQ or FIQ. */
enum pw_status cca_rec_exit(struct cca_rec *rec) PW_MUST_CHECK;

/* The realm reads, writes or fetches from an IPA. EXITS: the REC is not running any more. */
enum cca_access { CCA_ACCESS_WORKS, CCA_ACCESS_ABORTS, CCA_ACCESS_EXITS };
enum pw_status cca_realm_access(struct cca_rec *rec, uint64_t ipa, bool fetches, enum cca_access *out) PW_MUST_CHECK;

/* The law's state of the GFN with these two entries: that of its protected IPA, and of the same with the top bit set.
 */
enum gfn_state cca_project(enum cca_realm_state realm, enum cca_entry protected_, enum cca_entry unprotected);
enum gfn_state cca_gfn_state(const struct cca_realm *realm, uint64_t gfn);
bool cca_aliases_clash(enum cca_entry protected_, enum cca_entry unprotected); /* both mapped: against L9 */
enum vm_state cca_project_realm(enum cca_realm_state s);
/* Which state of cca_law that is: the law's, and the protected entry's RIPAS. */
unsigned cca_law_state(enum gfn_state is, enum cca_entry protected_);

/* A hash of all that commands and realms can change. */
uint64_t cca_digest(const struct cca *m);
/* Do the invariants hold? *err names what does not. */
bool cca_check(const struct cca *m, struct pw_err *err);

#endif
