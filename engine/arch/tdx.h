/* engine/arch/tdx.h
 *
 * Intel TDX as the host sees it: the answers of the TDX module to the calls that concern memory, and the state behind
 * them: who owns a frame (PAMT), what a guest page is (secure EPT), TLB tracking, and the life of TDs and HKIDs. Law
 * and codes follow the production module 1.5.01; the checks come in its order.
 *
 * The secure EPT of a TD is one page tree for each level, so that blocks of guest memory and rows of tables are cheap:
 * an entry of level n (0: 4 KiB, 1: 2 MiB, 2: 1 GiB ...) is found under GFN >> 9n. The PAMT is one tree for each page
 * size. Frames are named by their PFN, control structures by the PFN of their root page (TDR, TDVPR).
 *
 * Answers come as two things: the code, and the state that can be read after it. Any code but TDX_SUCCESS has changed
 * nothing, but for TDX_INTERRUPTED_RESUMABLE of an ACCEPT, which keeps its place.
 *
 * Invariants (tdx_check): 1. A frame has one PAMT leaf; a guest page's frame backs one entry of its owner's secure EPT.
 *                         2. CHLDCNT is the number of the TD's frames in 4 KiB units, without the TDR.
 *                         3. An entry that is not FREE lies below a table; a table is a frame of type EPT.
 *                         4. An HKID serves one TD from CREATE to FREEID.
 *                         5. No GFN is mapped under both aliases.
 */
#ifndef PW_ENGINE_ARCH_TDX_H
#define PW_ENGINE_ARCH_TDX_H
#include "engine/alias.h"
#include "engine/lifecycle.h"

#define TDX_PAGE_SHIFT 12
#define TDX_LEVELS     5 /* of a secure EPT, at most */
#define TDX_SIZES      3 /* of guest pages: 4 KiB, 2 MiB, 1 GiB */
#define TDX_TDCX_MIN   6 /* control pages of a TD */
#define TDX_TDCX_MAX   9
#define TDX_VPCX       5     /* control pages of a vCPU beside its TDVPR (not verified) */
#define TDX_TDS        65536 /* TDs at a time, those in teardown included */
#define TDX_TDMRS      64

/* Completion codes: bits 63:32 of RAX; and where the rule comes from. */
#define TDX_CODES(X)                                                                                                   \
	X(TDX_SUCCESS, "TDX_SUCCESS", 0x00000000u, "")                                                                 \
	X(TDX_INTERRUPTED_RESUMABLE, "TDX_INTERRUPTED_RESUMABLE", 0x80000003u, "interrupts")                           \
	X(TDX_INTERRUPTED_RESTARTABLE, "TDX_INTERRUPTED_RESTARTABLE", 0x80000004u, "interrupts")                       \
	X(TDX_OPERAND_INVALID, "TDX_OPERAND_INVALID", 0xC0000100u, "operand checks")                                   \
	X(TDX_OPERAND_ADDR_RANGE_ERROR, "TDX_OPERAND_ADDR_RANGE_ERROR", 0xC0000101u, "only TDMRs have metadata")       \
	X(TDX_OPERAND_BUSY, "TDX_OPERAND_BUSY", 0x80000200u, "locks")                                                  \
	X(TDX_PREVIOUS_TLB_EPOCH_BUSY, "TDX_PREVIOUS_TLB_EPOCH_BUSY", 0x80000201u, "TLB tracking")                     \
	X(TDX_OPERAND_BUSY_HOST_PRIORITY, "TDX_OPERAND_BUSY_HOST_PRIORITY", 0x80000204u, "locks")                      \
	X(TDX_PAGE_METADATA_INCORRECT, "TDX_PAGE_METADATA_INCORRECT", 0xC0000300u, "a frame has one owner (PAMT)")     \
	X(TDX_TD_ASSOCIATED_PAGES_EXIST, "TDX_TD_ASSOCIATED_PAGES_EXIST", 0xC0000400u, "the TDR is reclaimed last")    \
	X(TDX_TD_FATAL, "TDX_TD_FATAL", 0xE0000604u, "TD life cycle")                                                  \
	X(TDX_TDCS_NOT_ALLOCATED, "TDX_TDCS_NOT_ALLOCATED", 0xC0000606u, "TD life cycle")                              \
	X(TDX_LIFECYCLE_STATE_INCORRECT, "TDX_LIFECYCLE_STATE_INCORRECT", 0xC0000607u, "TD life cycle")                \
	X(TDX_OP_STATE_INCORRECT, "TDX_OP_STATE_INCORRECT", 0xC0000608u, "OP_STATE table")                             \
	X(TDX_NO_VCPUS, "TDX_NO_VCPUS", 0xC0000609u, "TD life cycle")                                                  \
	X(TDX_TDCX_NUM_INCORRECT, "TDX_TDCX_NUM_INCORRECT", 0xC0000610u, "TD life cycle")                              \
	X(TDX_VCPU_STATE_INCORRECT, "TDX_VCPU_STATE_INCORRECT", 0xC0000700u, "vCPU life cycle (not verified)")         \
	X(TDX_VCPU_NOT_ASSOCIATED, "TDX_VCPU_NOT_ASSOCIATED", 0x80000702u, "vCPU life cycle")                          \
	X(TDX_TDVPX_NUM_INCORRECT, "TDX_TDVPX_NUM_INCORRECT", 0xC0000703u, "vCPU life cycle (not verified)")           \
	X(TDX_KEY_GENERATION_FAILED, "TDX_KEY_GENERATION_FAILED", 0x80000800u, "keys")                                 \
	X(TDX_TD_KEYS_NOT_CONFIGURED, "TDX_TD_KEYS_NOT_CONFIGURED", 0x80000810u, "TD life cycle")                      \
	X(TDX_KEY_STATE_INCORRECT, "TDX_KEY_STATE_INCORRECT", 0xC0000811u, "keys")                                     \
	X(TDX_KEY_CONFIGURED, "TDX_KEY_CONFIGURED", 0x00000815u, "keys")                                               \
	X(TDX_WBCACHE_NOT_COMPLETE, "TDX_WBCACHE_NOT_COMPLETE", 0x80000817u, "HKID life cycle")                        \
	X(TDX_HKID_NOT_FREE, "TDX_HKID_NOT_FREE", 0xC0000820u, "HKID life cycle")                                      \
	X(TDX_NO_HKID_READY_TO_WBCACHE, "TDX_NO_HKID_READY_TO_WBCACHE", 0x00000821u, "HKID life cycle")                \
	X(TDX_FLUSHVP_NOT_DONE, "TDX_FLUSHVP_NOT_DONE", 0x80000824u, "HKID life cycle")                                \
	X(TDX_EPT_WALK_FAILED, "TDX_EPT_WALK_FAILED", 0xC0000B00u, "secure EPT walk")                                  \
	X(TDX_EPT_ENTRY_NOT_PRESENT, "TDX_EPT_ENTRY_NOT_PRESENT", 0xC0000B03u, "secure EPT walk")                      \
	X(TDX_GPA_RANGE_NOT_BLOCKED, "TDX_GPA_RANGE_NOT_BLOCKED", 0xC0000B06u, "TLB tracking")                         \
	X(TDX_GPA_RANGE_ALREADY_BLOCKED, "TDX_GPA_RANGE_ALREADY_BLOCKED", 0x00000B07u, "secure EPT state table")       \
	X(TDX_TLB_TRACKING_NOT_DONE, "TDX_TLB_TRACKING_NOT_DONE", 0xC0000B08u, "TLB tracking")                         \
	X(TDX_EPT_INVALID_PROMOTE_CONDITIONS, "TDX_EPT_INVALID_PROMOTE_CONDITIONS", 0xC0000B09u, "512 equal children") \
	X(TDX_PAGE_ALREADY_ACCEPTED, "TDX_PAGE_ALREADY_ACCEPTED", 0x00000B0Au, "accept")                               \
	X(TDX_PAGE_SIZE_MISMATCH, "TDX_PAGE_SIZE_MISMATCH", 0xC0000B0Bu, "accept")                                     \
	X(TDX_EPT_ENTRY_STATE_INCORRECT, "TDX_EPT_ENTRY_STATE_INCORRECT", 0xC0000B0Du, "secure EPT state table")       \
	X(TDX_EPT_PAGE_NOT_FREE, "TDX_EPT_PAGE_NOT_FREE", 0xC0000B0Eu, "a table in use is not removed")

/* What bits 31:0 of RAX name. */
#define TDX_OPERANDS(X)                      \
	X(TDX_RAX, "", 0)                    \
	X(TDX_RCX, "RCX", 1)                 \
	X(TDX_RDX, "RDX", 2)                 \
	X(TDX_R8, "R8", 8)                   \
	X(TDX_R9, "R9", 9)                   \
	X(TDX_TDR, "TDR", 128)               \
	X(TDX_TDCS, "TDCS", 144)             \
	X(TDX_SEPT_TREE, "SEPT_TREE", 146)   \
	X(TDX_SEPT_ENTRY, "SEPT_ENTRY", 147) \
	X(TDX_TD_EPOCH, "TD_EPOCH", 169)     \
	X(TDX_OP_STATE, "OP_STATE", 172)     \
	X(TDX_KOT, "KOT", 186)

/* PAMT page types, as the module numbers them. */
#define TDX_PAGE_TYPES(X)           \
	X(TDX_PT_NDA, "NDA", 0)     \
	X(TDX_PT_RSVD, "RSVD", 1)   \
	X(TDX_PT_REG, "REG", 3)     \
	X(TDX_PT_TDR, "TDR", 4)     \
	X(TDX_PT_TDCX, "TDCX", 5)   \
	X(TDX_PT_TDVPR, "TDVPR", 6) \
	X(TDX_PT_EPT, "EPT", 8)

/* Secure EPT entries: name, architectural number, internal code. REMOVED exists only during an import. */
#define TDX_SEPT_STATES(X)                                 \
	X(TDX_FREE, "FREE", 0, 0x0e)                       \
	X(TDX_MAPPED, "MAPPED", 4, 0x60)                   \
	X(TDX_PENDING, "PENDING", 2, 0x70)                 \
	X(TDX_BLOCKED, "BLOCKED", 1, 0x68)                 \
	X(TDX_PENDING_BLOCKED, "PENDING_BLOCKED", 3, 0x78) \
	X(TDX_NL_MAPPED, "NL_MAPPED", 132, 0x00)           \
	X(TDX_NL_BLOCKED, "NL_BLOCKED", 129, 0x08)         \
	X(TDX_REMOVED, "REMOVED", 5, 0x0c)

/* Calls, with their leaf numbers. TDX_VP_EXIT is what a vCPU does; ACCEPT is the guest's call. */
#define TDX_OPS(X)                                         \
	X(TDX_MNG_CREATE, "TDH.MNG.CREATE", 9)             \
	X(TDX_KEY_CONFIG, "TDH.MNG.KEY.CONFIG", 8)         \
	X(TDX_MNG_ADDCX, "TDH.MNG.ADDCX", 1)               \
	X(TDX_MNG_INIT, "TDH.MNG.INIT", 21)                \
	X(TDX_VP_CREATE, "TDH.VP.CREATE", 10)              \
	X(TDX_VP_ADDCX, "TDH.VP.ADDCX", 4)                 \
	X(TDX_VP_INIT, "TDH.VP.INIT", 22)                  \
	X(TDX_VP_ENTER, "TDH.VP.ENTER", 0)                 \
	X(TDX_VP_EXIT, "exit of a vCPU", -1)               \
	X(TDX_VP_FLUSH, "TDH.VP.FLUSH", 18)                \
	X(TDX_MR_FINALIZE, "TDH.MR.FINALIZE", 17)          \
	X(TDX_VPFLUSHDONE, "TDH.MNG.VPFLUSHDONE", 19)      \
	X(TDX_CACHE_WB, "TDH.PHYMEM.CACHE.WB", 40)         \
	X(TDX_KEY_FREEID, "TDH.MNG.KEY.FREEID", 20)        \
	X(TDX_KEY_RECLAIMID, "TDH.MNG.KEY.RECLAIMID", 27)  \
	X(TDX_PAGE_RECLAIM, "TDH.PHYMEM.PAGE.RECLAIM", 28) \
	X(TDX_PAGE_WBINVD, "TDH.PHYMEM.PAGE.WBINVD", 41)   \
	X(TDX_PAGE_RDMD, "TDH.PHYMEM.PAGE.RDMD", 24)       \
	X(TDX_TRACK, "TDH.MEM.TRACK", 38)                  \
	X(TDX_SEPT_ADD, "TDH.MEM.SEPT.ADD", 3)             \
	X(TDX_PAGE_ADD, "TDH.MEM.PAGE.ADD", 2)             \
	X(TDX_PAGE_AUG, "TDH.MEM.PAGE.AUG", 6)             \
	X(TDX_RANGE_BLOCK, "TDH.MEM.RANGE.BLOCK", 7)       \
	X(TDX_RANGE_UNBLOCK, "TDH.MEM.RANGE.UNBLOCK", 39)  \
	X(TDX_PAGE_REMOVE, "TDH.MEM.PAGE.REMOVE", 29)      \
	X(TDX_PAGE_RELOCATE, "TDH.MEM.PAGE.RELOCATE", 5)   \
	X(TDX_PAGE_PROMOTE, "TDH.MEM.PAGE.PROMOTE", 23)    \
	X(TDX_PAGE_DEMOTE, "TDH.MEM.PAGE.DEMOTE", 15)      \
	X(TDX_SEPT_REMOVE, "TDH.MEM.SEPT.REMOVE", 30)      \
	X(TDX_MR_EXTEND, "TDH.MR.EXTEND", 16)              \
	X(TDX_SEPT_RD, "TDH.MEM.SEPT.RD", 25)              \
	X(TDX_ACCEPT, "TDG.MEM.PAGE.ACCEPT", 6)

#define TDX_LIFECYCLES(X)                         \
	X(TDX_HKID_ASSIGNED, "HKID_ASSIGNED")     \
	X(TDX_KEYS_CONFIGURED, "KEYS_CONFIGURED") \
	X(TDX_TD_BLOCKED, "BLOCKED")              \
	X(TDX_TEARDOWN, "TEARDOWN")

#define TDX_OP_STATES(X)                      \
	X(TDX_UNINITIALIZED, "UNINITIALIZED") \
	X(TDX_INITIALIZED, "INITIALIZED")     \
	X(TDX_RUNNABLE, "RUNNABLE")

#define TDX_HKID_STATES(X)             \
	X(TDX_HKID_FREE, "FREE")       \
	X(TDX_HKID_IN_USE, "ASSIGNED") \
	X(TDX_HKID_FLUSHED, "FLUSHED") \
	X(TDX_HKID_RESERVED, "RESERVED")

#define PW_ENUM_(name, text)         name,
#define PW_ENUM4_(name, text, a, b)  name,
#define PW_VALUE_(name, text, value) name = value,
#define PW_ENUM3_(name, text, value) name,
enum tdx_code { TDX_CODES(PW_ENUM4_) TDX_CODE_COUNT };
enum tdx_operand { TDX_OPERANDS(PW_VALUE_) };
enum tdx_page_type { TDX_PAGE_TYPES(PW_VALUE_) };
enum tdx_sept { TDX_SEPT_STATES(PW_ENUM4_) TDX_SEPT_COUNT };
enum tdx_op { TDX_OPS(PW_ENUM3_) TDX_OP_COUNT };
enum tdx_lifecycle { TDX_LIFECYCLES(PW_ENUM_) TDX_LIFECYCLE_COUNT };
enum tdx_op_state { TDX_OP_STATES(PW_ENUM_) TDX_OP_STATE_COUNT };
enum tdx_hkid_state { TDX_HKID_STATES(PW_ENUM_) TDX_HKID_STATE_COUNT };
#undef PW_ENUM_
#undef PW_ENUM3_
#undef PW_ENUM4_
#undef PW_VALUE_

const char *tdx_code_name(enum tdx_code c);
const char *tdx_code_rule(enum tdx_code c);
const char *tdx_operand_name(uint32_t operand); /* "" if it has none: then it is 0 or a level */
const char *tdx_page_type_name(enum tdx_page_type t);
const char *tdx_sept_name(enum tdx_sept s);
unsigned tdx_sept_arch(enum tdx_sept s);    /* as in RDX bits 15:8 of a SEAMCALL */
unsigned tdx_sept_encoded(enum tdx_sept s); /* the 7-bit code inside the module */
bool tdx_sept_has_frame(enum tdx_sept s);   /* a guest page's */
bool tdx_sept_is_blocked(enum tdx_sept s);
const char *tdx_op_name(enum tdx_op op);
int tdx_op_leaf(enum tdx_op op);
const char *tdx_lifecycle_name(enum tdx_lifecycle s);
const char *tdx_op_state_name(enum tdx_op_state s);
const char *tdx_hkid_state_name(enum tdx_hkid_state s);

/* The tables. */

/* What a call does to an entry. A refused cell changes nothing. */
struct tdx_sept_cell {
	enum {
		TDX_UNDECIDED,
		TDX_MOVE,
		TDX_MOVE_AS_CHILDREN, /* MAPPED or PENDING, as the 512 entries below are */
		TDX_STAY,
		TDX_REFUSE,
		TDX_EXIT, /* ACCEPT does not return: TD exit with an EPT violation */
	} kind;
	enum tdx_sept next;
	enum tdx_code code; /* REFUSE */
	bool tracked;       /* once the TD is RUNNABLE: only if blocked, and no TLB can hold it any more */
};
const struct tdx_sept_cell *tdx_sept_cell(enum tdx_sept s, enum tdx_op op); /* op: SEPT_ADD .. ACCEPT */

/* What the module checks before it looks at an entry. */
#define TDX_TO_ROOT 255
struct tdx_op_rule {
	enum tdx_operand tdr; /* the register that names the TD; TDX_RAX: none does */
	uint8_t min_level, max_level;
	bool versioned;    /* version 1 exists */
	uint8_t op_states; /* bit n: allowed in enum tdx_op_state n; 0: OP_STATE is not looked at */
};
const struct tdx_op_rule *tdx_op_rule(enum tdx_op op);
bool tdx_tables_are_total(void); /* called by one test */

/* The model. */

struct tdx_range {
	uint64_t first, end; /* PFNs */
};

struct tdx_config {
	struct tdx_range tdmr[TDX_TDMRS];
	unsigned tdmrs;
	const struct tdx_range *reserved; /* holes of the TDMRs, by the page; borrowed during tdx_init */
	unsigned reserveds;
	uint32_t first_hkid, last_hkid; /* the private ones */
	unsigned packages;              /* 1..32 */
	unsigned max_pa;                /* bits of a physical address, those of the HKID included: 40..52 */
};

struct tdx_vcpu {
	uint64_t tdvpr; /* PFN */
	unsigned cx;
	bool initialised, associated, inside;
	uint64_t epoch; /* of its entry, if it is inside */
};

struct tdx_td {
	uint32_t index;
	uint64_t tdr; /* PFN */
	uint32_t hkid;
	enum tdx_lifecycle lifecycle;
	enum tdx_op_state op_state;
	bool fatal;
	bool pending_ve_disable; /* TD_CTLS: no #VE for PENDING pages */
	unsigned tdcx;
	uint32_t packages; /* that have its key */
	uint64_t chldcnt;
	unsigned levels;        /* of the secure EPT */
	unsigned gpa_bits;      /* 48 or 52 */
	struct gfn_alias alias; /* mask 0 before INIT */
	uint64_t epoch, ref[2]; /* TLB tracking: vCPUs inside, by the parity of the epoch in which they entered */
	uint64_t vcpus_made;    /* VP.CREATE, or tdx_assume_vcpus */
	uint64_t associated;
	struct tdx_vcpu *vcpus;
	size_t vcpu_count, vcpu_room;
	struct tree sept[TDX_LEVELS];
	struct tree shared; /* GFNs that are mapped under their shared alias: the host's own EPT */
	void *note;         /* the caller's own; the model never looks */
};

struct tdx_hkid {
	enum tdx_hkid_state state;
	uint32_t dirty; /* packages whose caches were not written back since the flush */
};

struct tdx {
	struct pw_mem *mem; /* borrowed */
	struct arena arena;
	struct tdx_range tdmr[TDX_TDMRS];
	unsigned tdmrs;
	unsigned packages;
	uint32_t first_hkid, last_hkid;
	unsigned max_pa;
	uint64_t pfn_end; /* PFNs at or past it have HKID bits, or none at all */
	struct tree pamt[TDX_SIZES];
	struct tdx_hkid *hkids; /* from first_hkid */
	struct tdx_td **tds;    /* by index; NULL: none */
	size_t td_room;
};

/* PW_INVALID: a config that makes no sense. PW_NO_MEMORY. mem is borrowed and must outlive the model. */
enum pw_status tdx_init(struct tdx *m, struct pw_mem *mem, const struct tdx_config *c,
			struct pw_err *err) PW_MUST_CHECK;
void tdx_release(struct tdx *m);

/* Locks that somebody else holds while a call is made: a bit each. */
#define TDX_BUSY_TDR        1u
#define TDX_BUSY_OP_STATE   2u
#define TDX_BUSY_SEPT_TREE  4u
#define TDX_BUSY_SEPT_ENTRY 8u
#define TDX_BUSY_FRAME      16u
#define TDX_BUSY_KOT        32u
#define TDX_BUSY_EPOCH      64u

/* A call with its operands. Which of them it reads: engine/arch/tdx.h, beside each. */
struct tdx_call {
	enum tdx_op op;
	uint64_t tdr;     /* all calls on a TD: PFN of its TDR */
	uint64_t gpa;     /* calls on an entry: without the level */
	unsigned level;   /* of the entry that holds, or will hold, the page or the table */
	unsigned version; /* SEPT_ADD, SEPT_REMOVE, PAGE_PROMOTE */
	uint64_t frame;   /* PFN of the page that is given, or asked about; MNG_CREATE: the TDR to be */
	uint64_t source;  /* PAGE_ADD: PFN of the host's page with the content */
	uint64_t vcpu;    /* VP calls but VP_CREATE: PFN of the TDVPR */
	uint32_t hkid;    /* MNG_CREATE */
	unsigned package; /* KEY_CONFIG, CACHE_WB: where it runs */
	unsigned levels;  /* MNG_INIT: of the secure EPT, 4 or 5 */
	bool wide;        /* MNG_INIT: GPAs of 52 bits, not 48 */
	/* What goes wrong around it. All zero: nothing. */
	unsigned busy;
	bool fails;         /* KEY_CONFIG: no entropy */
	unsigned interrupt; /* PAGE_PROMOTE, PAGE_DEMOTE, CACHE_WB: not 0: interrupted; ACCEPT: after so many pages */
};

struct tdx_result {
	enum tdx_code code;
	uint32_t operand;        /* enum tdx_operand, or a level */
	bool exits;              /* ACCEPT: it does not return; code is TDX_SUCCESS, nothing changed */
	bool has_frame;          /* a frame came back: the page or table removed, the old frame of a relocation */
	uint64_t frame;          /* its PFN */
	enum tdx_sept state;     /* calls on an entry: what was found where the walk ended, before the call */
	unsigned level;          /* of that entry */
	uint64_t epoch;          /* TRACK: after the call; VP_ENTER, VP_EXIT: the vCPU's */
	enum tdx_page_type type; /* PAGE_RDMD, PAGE_RECLAIM */
	uint64_t owner;          /* the same: PFN of the TDR; 0 for TDR pages and free ones */
	unsigned size;           /* the same: 0, 1, 2 */
	uint64_t bepoch;         /* PAGE_RDMD of a guest page or table */
};
uint64_t tdx_rax(const struct tdx_result *r);

/*
 * Makes one call. PW_OK: *r is the module's answer.
 * PW_CONFLICT   ADD or AUG of a page that is mapped under its shared alias, which the module cannot see (law L9):
 *               nothing changed.
 * PW_INVALID    no such operation; a package that is not there; ACCEPT by a TD that is not initialized. (Whether a TD
 *               can run at all, ACCEPT does not ask: RUNNABLE is the caller's to see to.)
 * PW_NO_MEMORY  the model's own memory; nothing changed.
 */
enum pw_status tdx_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r,
			struct pw_err *err) PW_MUST_CHECK;

/* Says in *err what was refused and why: the call, the page, the state found, the rule, the owner of a frame. */
enum pw_status tdx_explain(const struct tdx *m, const struct tdx_call *c, const struct tdx_result *r,
			   struct pw_err *err);

/* vCPUs without pages, for those who model no control pages: enough for MR.FINALIZE. */
void tdx_assume_vcpus(struct tdx_td *td, uint64_t n);
/* A vCPU enters, or one that entered in `epoch` leaves, as far as TLB tracking is concerned. False: none is inside. */
void tdx_epoch_enter(struct tdx_td *td);
bool tdx_epoch_leave(struct tdx_td *td, uint64_t epoch) PW_MUST_CHECK;

/* Reading. */

struct tdx_td *tdx_td(const struct tdx *m, uint64_t tdr); /* NULL: that frame is no TDR */
/* The PAMT leaf above a frame. */
enum tdx_page_type tdx_page(const struct tdx *m, uint64_t pfn, unsigned *size, uint64_t *owner);
/* False: the walk does not get to an entry of that level. */
bool tdx_entry(const struct tdx_td *td, uint64_t gpa, unsigned level, enum tdx_sept *state);
/* Where the walk for a page ends, blocked tables passed: its leaf, or an entry without one. */
enum tdx_sept tdx_leaf(const struct tdx_td *td, uint64_t gfn, unsigned *level, uint64_t *frame);

struct tdx_run {
	uint64_t first, count; /* GFNs */
	enum tdx_sept state;
	unsigned level;
	uint64_t frame; /* with one: consecutive from here */
};
/* A run of one state at `from`, cut at `end` and where the level changes; needs from < end <= the alias bit. */
struct tdx_run tdx_run_at(const struct tdx_td *td, uint64_t from, uint64_t end);

/* The law's view. `shared`: the GFN is marked shared by its VMM. */
enum gfn_state tdx_project(const struct tdx_td *td, enum tdx_sept s, bool shared);
enum vm_state tdx_project_vm(const struct tdx_td *td); /* td may be NULL */

/* The guest's side, and the host's own EPT. */

enum tdx_touch { TDX_TOUCH_WORKS, TDX_TOUCH_VE, TDX_TOUCH_EXIT, TDX_TOUCH_EXIT_PENDING };
enum tdx_touch tdx_touch(const struct tdx_td *td, uint64_t gpa); /* by either alias */

/* Maps or unmaps a run of GFNs under their shared alias, in the EPT that the host keeps.
 * PW_CONFLICT: some page of the run is present in the secure EPT. PW_INVALID: not GFNs of the TD. */
enum pw_status tdx_map_shared(struct tdx *m, struct tdx_td *td, uint64_t gfn, uint64_t count,
			      struct pw_err *err) PW_MUST_CHECK;
enum pw_status tdx_unmap_shared(struct tdx *m, struct tdx_td *td, uint64_t gfn, uint64_t count,
				struct pw_err *err) PW_MUST_CHECK;

/* TDG.VP.VMCALL<MapGPA>, the VMM's half: the request in chunks of at most 2 MiB. */
#define TDX_VMCALL_SUCCESS     0x0ull
#define TDX_VMCALL_RETRY       0x1ull
#define TDX_VMCALL_INVALID     0x8000000000000000ull
#define TDX_VMCALL_ALIGN_ERROR 0x8000000000000002ull
#define TDX_VMCALL_UNSUPPORTED 0x8000000000000003ull
struct tdx_mapgpa {
	uint64_t gpa, bytes; /* R12, R13: what is left, with the alias bit */
	bool enabled;        /* the VMM takes such exits */
};
struct tdx_mapgpa_chunk {
	uint64_t gfn, count; /* unaliased */
	bool to_private;
};
/* TDX_VMCALL_SUCCESS: the request can begin. Else R10; R11 is the GPA that was asked for. */
uint64_t tdx_mapgpa_check(const struct tdx_td *td, const struct tdx_mapgpa *q);
/* The next chunk of a checked request; false when nothing is left. */
bool tdx_mapgpa_next(const struct tdx_td *td, struct tdx_mapgpa *q, struct tdx_mapgpa_chunk *out);

/* A hash of all that calls can change. */
uint64_t tdx_digest(const struct tdx *m);
bool tdx_check(const struct tdx *m, struct pw_err *err); /* do the invariants hold? err says which does not */

#endif
