/* engine/arch/snp.h
 *
 * AMD SEV-SNP: the reverse map table (RMP), the instructions that change it, and the firmware commands that give pages
 * to guests and take them back. Codes and the order of checks follow AMD's firmware 1.55 and Linux 6.12; what the
 * manuals leave open is marked as inferred in the rules (snp_rule), and never fatal.
 *
 * One word per frame of system memory, kept in a page tree, so that a guest of 2 MiB pages costs a handful of words. A
 * 2 MiB entry is authoritative for its 512 frames: each of them reads as that entry says, its GFN counted up.
 *
 * Answers come as two things, the code and the state that can be read after it. A refused call has changed nothing, and
 * m->why says which rule refused it.
 *
 * Invariants (snp_check): 1. A 2 MiB entry covers an aligned block whose 512 words agree.
 *                         2. The counter of an ASID is the number of frames assigned to it.
 *                         3. Frames past the RMP have no entry; the RMP's own frames are Firmware.
 *                         4. Context frames are exactly the contexts of the guests.
 *                         5. An ASID is allocated or in use exactly while one guest has it.
 *                         6. Metadata entries lie in Metadata frames, in contexts, or in pages that are swapped out.
 */
#ifndef PW_ENGINE_ARCH_SNP_H
#define PW_ENGINE_ARCH_SNP_H
#include "engine/lifecycle.h"
#include "engine/tree.h"

#define SNP_LARGE    512 /* frames of a 2 MiB page */
#define SNP_GFNS     ((uint64_t)1 << 39)
#define SNP_ASIDS    1024 /* what the entry's field can name */
#define SNP_COUNTERS 2048 /* ASIDs that the RMP counts pages of */
#define SNP_VMPLS    4
#define SNP_PAGE     4096
#define SNP_DIGEST   48 /* SHA-384 */
#define SNP_MD_SLOTS 64 /* metadata entries of a page */

/* Names as the firmware's own table has them. Default: no entry, the frame is past the RMP. */
#define SNP_STATES(X)                           \
	X(SNP_HYPERVISOR, "Hypervisor")         \
	X(SNP_HV_FIXED, "HV-Fixed")             \
	X(SNP_FIRMWARE, "Firmware")             \
	X(SNP_RECLAIM, "Reclaim")               \
	X(SNP_CONTEXT, "Context")               \
	X(SNP_METADATA, "Metadata")             \
	X(SNP_PRE_GUEST, "Pre-Guest")           \
	X(SNP_PRE_SWAP, "Pre-Swap")             \
	X(SNP_GUEST_INVALID, "Guest-Invalid")   \
	X(SNP_GUEST_VALID, "Guest-Valid")       \
	X(SNP_FIRMWARE_IOMMU, "Firmware-IOMMU") \
	X(SNP_DEFAULT, "Default")               \
	X(SNP_INVALID, "Invalid")

/*
 * What is done to a frame. An RMPUPDATE is told apart by the state that it asks for; the two SAME ones ask for the
 * entry that is there, but for its immutable bit.
 */
#define SNP_PAGE_OPS(X)                                   \
	X(SNP_UPDATE_SHARED, "RMPUPDATE to Hypervisor")   \
	X(SNP_UPDATE_PRIVATE, "RMPUPDATE to Guest")       \
	X(SNP_UPDATE_PRE_GUEST, "RMPUPDATE to Pre-Guest") \
	X(SNP_UPDATE_FIRMWARE, "RMPUPDATE to Firmware")   \
	X(SNP_UPDATE_RECLAIM, "RMPUPDATE to Reclaim")     \
	X(SNP_SAME_PRIVATE, "RMPUPDATE immutable off")    \
	X(SNP_SAME_PRE_GUEST, "RMPUPDATE immutable on")   \
	X(SNP_SMASH, "PSMASH")                            \
	X(SNP_VALIDATE, "PVALIDATE 1")                    \
	X(SNP_RESCIND, "PVALIDATE 0")                     \
	X(SNP_DO_RECLAIM, "PAGE_RECLAIM")                 \
	X(SNP_DO_CREATE, "GCTX_CREATE")                   \
	X(SNP_DO_DECOMMISSION, "DECOMMISSION")            \
	X(SNP_DO_LAUNCH, "LAUNCH_UPDATE")                 \
	X(SNP_DO_MD_INIT, "MD_INIT")                      \
	X(SNP_DO_UNSMASH, "PAGE_UNSMASH")                 \
	X(SNP_DO_FIX, "PAGE_SET_STATE")                   \
	X(SNP_DO_OUT, "SWAP_OUT source")                  \
	X(SNP_DO_OUT_MD, "SWAP_OUT metadata source")      \
	X(SNP_DO_OUT_TO, "SWAP_OUT destination")          \
	X(SNP_DO_IN, "SWAP_IN destination")               \
	X(SNP_DO_IN_MD, "SWAP_IN metadata destination")   \
	X(SNP_DO_BUFFER, "command buffer")

/* EAX of the instructions. NPF is a nested page fault, GP a general protection fault, VC the guest's own exception. */
#define SNP_CODES(X)                                     \
	X(SNP_OK, "SUCCESS", 0)                          \
	X(SNP_FAIL_INPUT, "FAIL_INPUT", 1)               \
	X(SNP_FAIL_PERMISSION, "FAIL_PERMISSION", 2)     \
	X(SNP_FAIL_INUSE, "FAIL_INUSE", 3)               \
	X(SNP_FAIL_OVERLAP, "FAIL_OVERLAP", 4)           \
	X(SNP_FAIL_SIZEMISMATCH, "FAIL_SIZEMISMATCH", 6) \
	X(SNP_FAIL_PAGE, "FAIL_BADADDR", 4)              \
	X(SNP_NPF, "NPF", -1)                            \
	X(SNP_VC, "VC", -2)                              \
	X(SNP_GP, "GP", -3)
/* SNP_FAIL_PAGE: PSMASH of a page that is not an assigned 2 MiB one. AMD's kernel patches say 4, Microsoft says 7. */
#define SNP_PSMASH_MICROSOFT 7

#define SNP_STATUSES(X)                                                     \
	X(SNP_SUCCESS, "SUCCESS", 0x00)                                     \
	X(SNP_INVALID_PLATFORM_STATE, "INVALID_PLATFORM_STATE", 0x01)       \
	X(SNP_INVALID_GUEST_STATE, "INVALID_GUEST_STATE", 0x02)             \
	X(SNP_INVALID_CONFIG, "INVALID_CONFIG", 0x03)                       \
	X(SNP_INVALID_LEN, "INVALID_LEN", 0x04)                             \
	X(SNP_ALREADY_OWNED, "ALREADY_OWNED", 0x05)                         \
	X(SNP_INVALID_CERTIFICATE, "INVALID_CERTIFICATE", 0x06)             \
	X(SNP_POLICY_FAILURE, "POLICY_FAILURE", 0x07)                       \
	X(SNP_INACTIVE, "INACTIVE", 0x08)                                   \
	X(SNP_INVALID_ADDRESS, "INVALID_ADDRESS", 0x09)                     \
	X(SNP_BAD_SIGNATURE, "BAD_SIGNATURE", 0x0a)                         \
	X(SNP_BAD_MEASUREMENT, "BAD_MEASUREMENT", 0x0b)                     \
	X(SNP_ASID_OWNED, "ASID_OWNED", 0x0c)                               \
	X(SNP_INVALID_ASID, "INVALID_ASID", 0x0d)                           \
	X(SNP_WBINVD_REQUIRED, "WBINVD_REQUIRED", 0x0e)                     \
	X(SNP_DFFLUSH_REQUIRED, "DFFLUSH_REQUIRED", 0x0f)                   \
	X(SNP_INVALID_GUEST, "INVALID_GUEST", 0x10)                         \
	X(SNP_INVALID_COMMAND, "INVALID_COMMAND", 0x11)                     \
	X(SNP_ACTIVE, "ACTIVE", 0x12)                                       \
	X(SNP_HWERROR_PLATFORM, "HWERROR_PLATFORM", 0x13)                   \
	X(SNP_HWERROR_UNSAFE, "HWERROR_UNSAFE", 0x14)                       \
	X(SNP_UNSUPPORTED, "UNSUPPORTED", 0x15)                             \
	X(SNP_INVALID_PARAM, "INVALID_PARAM", 0x16)                         \
	X(SNP_RESOURCE_LIMIT, "RESOURCE_LIMIT", 0x17)                       \
	X(SNP_SECURE_DATA_INVALID, "SECURE_DATA_INVALID", 0x18)             \
	X(SNP_INVALID_PAGE_SIZE, "INVALID_PAGE_SIZE", 0x19)                 \
	X(SNP_INVALID_PAGE_STATE, "INVALID_PAGE_STATE", 0x1a)               \
	X(SNP_INVALID_MDATA_ENTRY, "INVALID_MDATA_ENTRY", 0x1b)             \
	X(SNP_INVALID_PAGE_OWNER, "INVALID_PAGE_OWNER", 0x1c)               \
	X(SNP_AEAD_OFLOW, "AEAD_OFLOW", 0x1d)                               \
	X(SNP_EXIT_RING_BUFFER, "EXIT_RING_BUFFER", 0x1f)                   \
	X(SNP_RMP_INIT_REQUIRED, "RMP_INIT_REQUIRED", 0x20)                 \
	X(SNP_BAD_SVN, "BAD_SVN", 0x21)                                     \
	X(SNP_BAD_VERSION, "BAD_VERSION", 0x22)                             \
	X(SNP_SHUTDOWN_REQUIRED, "SHUTDOWN_REQUIRED", 0x23)                 \
	X(SNP_UPDATE_FAILED, "UPDATE_FAILED", 0x24)                         \
	X(SNP_RESTORE_REQUIRED, "RESTORE_REQUIRED", 0x25)                   \
	X(SNP_RMP_INITIALIZATION_FAILED, "RMP_INITIALIZATION_FAILED", 0x26) \
	X(SNP_INVALID_KEY, "INVALID_KEY", 0x27)                             \
	X(SNP_BUFFER_PAGE_STATE, "INVALID_PAGE_STATE of the command buffer", 0x5a)

/* Firmware commands and their mailbox numbers. WBINVD is the host's, and no command. */
#define SNP_COMMANDS(X)                                       \
	X(SNP_CMD_INIT, "SNP_INIT", 0x81)                     \
	X(SNP_CMD_SHUTDOWN, "SNP_SHUTDOWN", 0x82)             \
	X(SNP_CMD_DF_FLUSH, "SNP_DF_FLUSH", 0x84)             \
	X(SNP_CMD_INIT_EX, "SNP_INIT_EX", 0x85)               \
	X(SNP_CMD_SHUTDOWN_EX, "SNP_SHUTDOWN_EX", 0x86)       \
	X(SNP_CMD_DECOMMISSION, "SNP_DECOMMISSION", 0x90)     \
	X(SNP_CMD_ACTIVATE, "SNP_ACTIVATE", 0x91)             \
	X(SNP_CMD_GUEST_STATUS, "SNP_GUEST_STATUS", 0x92)     \
	X(SNP_CMD_GCTX_CREATE, "SNP_GCTX_CREATE", 0x93)       \
	X(SNP_CMD_GUEST_REQUEST, "SNP_GUEST_REQUEST", 0x94)   \
	X(SNP_CMD_LAUNCH_START, "SNP_LAUNCH_START", 0xa0)     \
	X(SNP_CMD_LAUNCH_UPDATE, "SNP_LAUNCH_UPDATE", 0xa1)   \
	X(SNP_CMD_LAUNCH_FINISH, "SNP_LAUNCH_FINISH", 0xa2)   \
	X(SNP_CMD_SWAP_OUT, "SNP_SWAP_OUT", 0xc0)             \
	X(SNP_CMD_SWAP_IN, "SNP_SWAP_IN", 0xc1)               \
	X(SNP_CMD_PAGE_MOVE, "SNP_PAGE_MOVE", 0xc2)           \
	X(SNP_CMD_MD_INIT, "SNP_MD_INIT", 0xc3)               \
	X(SNP_CMD_PAGE_SET_STATE, "SNP_PAGE_SET_STATE", 0xc6) \
	X(SNP_CMD_PAGE_RECLAIM, "SNP_PAGE_RECLAIM", 0xc7)     \
	X(SNP_CMD_PAGE_UNSMASH, "SNP_PAGE_UNSMASH", 0xc8)

/* Types of launched pages. */
#define SNP_PAGE_TYPES(X)                    \
	X(SNP_TYPE_NORMAL, "normal")         \
	X(SNP_TYPE_VMSA, "VMSA")             \
	X(SNP_TYPE_ZERO, "zero")             \
	X(SNP_TYPE_UNMEASURED, "unmeasured") \
	X(SNP_TYPE_SECRETS, "secrets")       \
	X(SNP_TYPE_CPUID, "CPUID")

#define SNP_GUEST_STATES(X)           \
	X(SNP_GUEST_INIT, "INIT")     \
	X(SNP_GUEST_LAUNCH, "LAUNCH") \
	X(SNP_GUEST_RUNNING, "RUNNING")

#define SNP_ASID_STATES(X)                 \
	X(SNP_ASID_CLEAN, "clean")         \
	X(SNP_ASID_ALLOCATED, "allocated") \
	X(SNP_ASID_IN_USE, "in use")       \
	X(SNP_ASID_DIRTY, "dirty")

/*
 * Why a call was refused: what is wrong, who says so, and whether that is verified or inferred. FW is AMD's firmware
 * source, LX Linux, MS Microsoft's pages on the intrinsics, PW pagewarden's own law.
 */
#define SNP_V "verified"
#define SNP_I "inferred"
#define SNP_RULES(X)                                                                                               \
	X(SNP_RULE_NONE, "not refused", "", SNP_V)                                                                 \
	X(SNP_RULE_PAST_RMP, "the RMP does not cover the frame", "MS rmpupdate", SNP_I)                            \
	X(SNP_RULE_UNALIGNED, "a 2 MiB page begins at a multiple of 512 frames", "MS rmpupdate", SNP_I)            \
	X(SNP_RULE_OPERAND, "a field of the operand is out of range", "LX struct rmp_state", SNP_I)                \
	X(SNP_RULE_NOT_HOST, "only the host, ASID 0, may do this", "MS", SNP_V)                                    \
	X(SNP_RULE_IMMUTABLE, "the entry is immutable: only firmware changes it", "MS rmpupdate", SNP_V)           \
	X(SNP_RULE_STRICT, "the page is assigned already, and strict mode asks for its release first",             \
	  "PW L1 exclusive frames", SNP_V)                                                                         \
	X(SNP_RULE_RACE, "another CPU works on the entry", "MS", SNP_V)                                            \
	X(SNP_RULE_LOCKED, "firmware holds the 2 MiB entry; try again", "LX rmpupdate", SNP_V)                     \
	X(SNP_RULE_IN_2M, "a 2 MiB entry must be smashed before one of its frames changes", "MS rmpupdate", SNP_V) \
	X(SNP_RULE_HAS_4K, "some of the 512 frames are assigned on their own", "MS rmpupdate", SNP_V)              \
	X(SNP_RULE_HAS_FIXED, "some of the 512 frames are HV-Fixed", "MS rmpupdate", SNP_I)                        \
	X(SNP_RULE_NOT_2M, "PSMASH needs an assigned 2 MiB page", "LX psmash", SNP_I)                              \
	X(SNP_RULE_NOT_GUESTS, "the page is not that guest's, or not at that GFN", "LX, SVSM", SNP_I)              \
	X(SNP_RULE_GUEST_2M_ON_4K, "the guest asked for 2 MiB, the entry is 4 KiB", "LX, SVSM", SNP_V)             \
	X(SNP_RULE_GUEST_4K_ON_2M, "the guest asked for 4 KiB, the entry is 2 MiB", "LX, SVSM", SNP_V)             \
	X(SNP_RULE_VMPL0_ONLY, "only VMPL0 may do this", "LX, SVSM", SNP_V)                                        \
	X(SNP_RULE_VMPL, "the target VMPL is not below the caller's", "APM", SNP_V)                                \
	X(SNP_RULE_GRANT, "a VMPL cannot grant what it lacks", "MS rmpadjust", SNP_V)                              \
	X(SNP_RULE_NOT_VALIDATED, "the page is not validated", "LX", SNP_I)                                        \
	X(SNP_RULE_RESERVED, "reserved bits are not zero", "FW", SNP_V)                                            \
	X(SNP_RULE_LENGTH, "the command's length is wrong", "FW page_set_state", SNP_V)                            \
	X(SNP_RULE_PLATFORM, "the platform is not in state INIT", "FW", SNP_V)                                     \
	X(SNP_RULE_IN_RMP, "the frame is one of the RMP's own", "FW get_rmp_paddr", SNP_V)                         \
	X(SNP_RULE_NOT_CONTEXT, "the frame is not a guest's context", "FW", SNP_V)                                 \
	X(SNP_RULE_ADDRESS, "the address is no memory", "FW page_reclaim", SNP_V)                                  \
	X(SNP_RULE_STATE, "the operation is not defined in the page's state", "FW", SNP_V)                         \
	X(SNP_RULE_SIZE, "the sizes of pages and operand differ", "FW", SNP_V)                                     \
	X(SNP_RULE_CONTEXT_SIZE, "a context is a 4 KiB page", "FW gctx_create", SNP_V)                             \
	X(SNP_RULE_ALIGN, "a 2 MiB page must be named by its first frame", "FW", SNP_V)                            \
	X(SNP_RULE_TYPE_SIZE, "VMSA, secrets and CPUID pages are 4 KiB", "FW", SNP_V)                              \
	X(SNP_RULE_TYPE, "there is no such page type", "FW", SNP_V)                                                \
	X(SNP_RULE_GUEST_STATE, "the guest is not in the right state", "FW", SNP_V)                                \
	X(SNP_RULE_NO_ASID, "the guest has no ASID", "FW", SNP_V)                                                  \
	X(SNP_RULE_OWNER, "the page belongs to another guest", "FW", SNP_V)                                        \
	X(SNP_RULE_IMI, "an IMI guest takes IMI pages only", "FW launch_update", SNP_V)                            \
	X(SNP_RULE_CPUID, "reserved fields of the CPUID page are set, or it has more than 64 leaves",              \
	  "FW launch_update", SNP_V)                                                                               \
	X(SNP_RULE_POLICY, "the policy does not allow it, or is not allowed here", "FW launch_start", SNP_V)       \
	X(SNP_RULE_ASID_RANGE, "there is no such ASID", "FW activate", SNP_V)                                      \
	X(SNP_RULE_ASID_PAGES, "pages are still assigned to the ASID", "FW check_rmp_for_asid", SNP_V)             \
	X(SNP_RULE_ASID_TAKEN, "another guest has the ASID", "FW activate", SNP_V)                                 \
	X(SNP_RULE_HAS_ASID, "the guest has an ASID already", "FW activate", SNP_V)                                \
	X(SNP_RULE_ASID_DIRTY, "the ASID waits for WBINVD and DF_FLUSH", "FW activate", SNP_V)                     \
	X(SNP_RULE_WBINVD, "WBINVD has not run on all cores", "FW df_flush", SNP_V)                                \
	X(SNP_RULE_ID_DIGEST, "the ID block names another digest", "FW launch_finish", SNP_V)                      \
	X(SNP_RULE_ID_ALGORITHM, "the ID block's key algorithm is unknown", "FW launch_finish", SNP_V)             \
	X(SNP_RULE_ID_SIGNATURE, "the ID block's signature is wrong", "FW launch_finish", SNP_V)                   \
	X(SNP_RULE_NOT_4K, "requests and responses are 4 KiB pages", "FW guest_request", SNP_V)                    \
	X(SNP_RULE_MD_PLACE, "the metadata entry is not aligned, or overlaps the pages", "FW swap", SNP_V)         \
	X(SNP_RULE_MD_ENTRY, "the metadata entry is of another type, or not valid", "FW swap_in", SNP_V)           \
	X(SNP_RULE_IN_PLACE, "swapping in place is for data pages", "FW swap_in", SNP_V)                           \
	X(SNP_RULE_PLACES, "source and destination of a swap in place are one page", "FW swap_in", SNP_V)          \
	X(SNP_RULE_UNSMASH, "the 512 entries are not one page cut up", "FW page_unsmash", SNP_V)                   \
	X(SNP_RULE_BUFFER, "the command buffer is neither Firmware nor Default", "FW sev_dispatch", SNP_V)

#define PW_ENUM_(name, text)                 name,
#define PW_ENUM3_(name, text, value)         name,
#define PW_ENUM4_(name, text, source, known) name,
enum snp_state { SNP_STATES(PW_ENUM_) SNP_STATE_COUNT };
enum snp_page_op { SNP_PAGE_OPS(PW_ENUM_) SNP_PAGE_OP_COUNT };
enum snp_code { SNP_CODES(PW_ENUM3_) SNP_CODE_COUNT };
enum snp_status { SNP_STATUSES(PW_ENUM3_) SNP_STATUS_COUNT };
enum snp_command { SNP_COMMANDS(PW_ENUM3_) SNP_COMMAND_COUNT };
enum snp_guest_state { SNP_GUEST_STATES(PW_ENUM_) SNP_GUEST_STATE_COUNT };
enum snp_asid_state { SNP_ASID_STATES(PW_ENUM_) SNP_ASID_STATE_COUNT };
enum snp_rule { SNP_RULES(PW_ENUM4_) SNP_RULE_COUNT };
enum snp_page_type { SNP_TYPE_NONE, SNP_PAGE_TYPES(PW_ENUM_) SNP_TYPE_COUNT };
enum snp_size { SNP_4K, SNP_2M };
#undef PW_ENUM_
#undef PW_ENUM3_
#undef PW_ENUM4_

const char *snp_state_name(enum snp_state s);
const char *snp_page_op_name(enum snp_page_op op);
const char *snp_code_name(enum snp_code c);
int snp_code_value(enum snp_code c);
const char *snp_status_name(enum snp_status s);
unsigned snp_status_value(enum snp_status s);
const char *snp_command_name(enum snp_command c);
unsigned snp_command_id(enum snp_command c);
const char *snp_guest_state_name(enum snp_guest_state s);
const char *snp_asid_state_name(enum snp_asid_state s);
const char *snp_rule_text(enum snp_rule r);
const char *snp_rule_source(enum snp_rule r);
bool snp_rule_is_inferred(enum snp_rule r);

/* The table: state x operation. A refused cell changes nothing; it then holds the code or the status. */
struct snp_cell {
	enum { SNP_UNDECIDED, SNP_MOVE, SNP_STAY, SNP_REFUSE } kind;
	enum snp_state next;
	enum snp_code code;     /* of instructions */
	enum snp_status status; /* of commands */
};
const struct snp_cell *snp_cell(enum snp_state s, enum snp_page_op op);

/* PAGE_MOVE goes by pairs of states. */
struct snp_move {
	enum snp_state src, dst, src_next, dst_next;
};
#define SNP_MOVES 3
const struct snp_move *snp_move(enum snp_state src, enum snp_state dst); /* NULL: refused */
bool snp_tables_are_total(void);                                         /* called by one test */

/* What the state is in the law's terms; what no guest owns is normal. */
enum gfn_state snp_project(enum snp_state s);

/* An entry. */

struct snp_entry {
	uint64_t gfn; /* the raw field: for ASID 0 firmware keeps a tag in bits 38..36 */
	uint16_t asid, subpages;
	enum snp_size size;
	bool assigned, immutable, vmsa, validated, lock;
	uint8_t perms[SNP_VMPLS];
	bool implicit_key;
	uint8_t migration;
};
struct snp_raw {
	uint64_t lo, hi;
};
struct snp_raw snp_encode(const struct snp_entry *e);
void snp_decode(struct snp_raw raw, struct snp_entry *out);
enum snp_state snp_entry_state(const struct snp_entry *e);
enum snp_state snp_raw_state(struct snp_raw raw);

#define SNP_GFN_TAG_SHIFT 36
#define SNP_GFN_TAG       ((uint64_t)7 << SNP_GFN_TAG_SHIFT)
#define SNP_TAG_METADATA  ((uint64_t)1 << SNP_GFN_TAG_SHIFT)
#define SNP_TAG_IOMMU     ((uint64_t)2 << SNP_GFN_TAG_SHIFT)

/* The launch digest. */

struct snp_measured {
	enum snp_page_type type;
	bool imi;
	uint8_t perms[SNP_VMPLS]; /* of VMPL1..3; [0] is not measured */
	uint64_t gfn;
	const uint8_t *content; /* SNP_PAGE bytes; NORMAL and VMSA only */
};
void snp_sha384(const void *data, size_t len, uint8_t out[SNP_DIGEST]);
void snp_digest_extend(uint8_t digest[SNP_DIGEST], const struct snp_measured *page);

/* The model. */

struct snp_range {
	uint64_t first, count;
};

struct snp_config {
	uint64_t frames;               /* that the RMP covers, from frame 0 */
	struct snp_range rmp;          /* the RMP's own frames; within `frames` */
	unsigned max_asid;             /* below SNP_ASIDS */
	const struct snp_range *fixed; /* frames that INIT makes HV-Fixed */
	size_t fixed_count;
	const struct snp_range *iommu; /* frames that INIT makes Firmware-IOMMU */
	size_t iommu_count;
	unsigned sockets; /* 0 counts as 1 */
	bool smt;
	uint8_t abi_major, abi_minor; /* both 0: 1.55 */
};

struct snp_guest {
	uint64_t context; /* its frame */
	enum snp_guest_state state;
	uint64_t policy;
	unsigned asid; /* 0: none */
	bool imi;
	uint64_t agent; /* context of its migration agent, 0: none */
	uint8_t digest[SNP_DIGEST], imi_digest[SNP_DIGEST];
};

enum snp_md_kind { SNP_MD_IN_PAGE, SNP_MD_IN_CONTEXT, SNP_MD_SWAPPED };
enum snp_swap_type { SNP_SWAP_DATA, SNP_SWAP_METADATA, SNP_SWAP_VMSA, SNP_SWAP_TYPES };

/* A valid metadata entry: what swap-in restores. `place` is a frame, or the id of the entry of a swapped-out page. */
struct snp_md {
	enum snp_md_kind kind;
	uint64_t place;
	unsigned slot;
	uint64_t id;
	enum snp_swap_type type;
	enum snp_size size;
	uint64_t gfn;
	bool validated;
	uint32_t perms;
};

/*
 * What an instruction or a firmware command (`op`, by its name) did to the entries of `count` frames. Every change of
 * an entry is one: a page that only gets another size, number or VMSA bit as well, and then `from` is `to`. The GFNs
 * are the fields of the first frame.
 */
struct snp_transition {
	const char *op;
	uint64_t pfn, count;
	enum snp_state from, to;
	uint16_t from_asid, to_asid;
	uint64_t from_gfn, to_gfn;
};

/* Of the last refused call. */
struct snp_why {
	enum snp_rule rule;
	const char *op;
	uint64_t pfn;
	enum snp_state state;
	uint16_t asid, asks_asid;
	uint64_t gfn, asks_gfn;
	bool asks; /* asks_ are meant */
};

struct snp {
	struct pw_mem *mem; /* borrowed */
	struct arena arena;
	uint64_t frames;
	struct snp_range rmp;
	unsigned max_asid, sockets;
	bool smt;
	uint16_t abi;
	bool strict;              /* refuse what hardware lets pass: an RMPUPDATE that takes a page from its owner */
	bool unmeasured;          /* launch digests are not computed: for a machine whose pages hold nothing */
	bool up;                  /* the platform is in state INIT */
	bool owes_wbinvd;         /* DF_FLUSH would ask for it */
	struct tree entries;      /* words: see snp_impl.h */
	struct tree perms;        /* VMPL masks that differ from VMPL0 all, others none */
	struct snp_guest *guests; /* sorted by context */
	size_t guest_count, guest_room;
	struct snp_md *md; /* in no order */
	uint32_t *md_at;   /* hash of their places: 1 + index, or 0 */
	size_t md_count, md_room;
	uint64_t md_next; /* id */
	uint64_t pages[SNP_COUNTERS];
	uint8_t asids[SNP_ASIDS]; /* enum snp_asid_state */
	struct snp_range *fixed, *iommu;
	size_t fixed_count, iommu_count;
	struct snp_why why;
	void (*trace)(void *ctx, const struct snp_transition *t); /* NULL: nobody listens. Called before the change */
	void *trace_ctx;
};

/*
 * A platform in state UNINIT whose frames are all Hypervisor. mem is borrowed and must outlive the model; the ranges
 * are copied.
 * PW_INVALID: ranges outside the frames, frames past 2^40, or an ASID that an entry cannot name. PW_NO_MEMORY.
 */
enum pw_status snp_init(struct snp *m, struct pw_mem *mem, const struct snp_config *c) PW_MUST_CHECK;
void snp_release(struct snp *m);

/* Instructions. PW_OK: *code is hardware's answer. PW_NO_MEMORY: the model's own memory; nothing changed. */

enum snp_race { SNP_NO_RACE, SNP_RACE_CPU, SNP_RACE_FIRMWARE }; /* who works on the entry meanwhile */
struct snp_rmpupdate {
	uint64_t pfn;
	bool assigned, immutable;
	enum snp_size size;
	unsigned asid;
	uint64_t gfn;
	unsigned caller_asid; /* 0: the host */
	enum snp_race race;
};
enum pw_status snp_rmpupdate(struct snp *m, const struct snp_rmpupdate *u, enum snp_code *code) PW_MUST_CHECK;

struct snp_psmash {
	uint64_t pfn;
	unsigned caller_asid;
	enum snp_race race;
};
enum pw_status snp_psmash(struct snp *m, const struct snp_psmash *p, enum snp_code *code) PW_MUST_CHECK;

/* The guest's page as its nested page tables have it: GFN -> PFN. */
struct snp_target {
	unsigned asid;
	uint64_t gfn, pfn;
	enum snp_size size;
	unsigned vmpl; /* of the caller */
};
/* *unchanged is CF: the page was in that state already, which guests must take for an attack. */
enum pw_status snp_pvalidate(struct snp *m, const struct snp_target *t, bool validate, enum snp_code *code,
			     bool *unchanged) PW_MUST_CHECK;
enum pw_status snp_rmpadjust(struct snp *m, const struct snp_target *t, unsigned vmpl, uint8_t perms, bool vmsa,
			     enum snp_code *code) PW_MUST_CHECK;
enum snp_code snp_rmpquery(struct snp *m, const struct snp_target *t, unsigned vmpl, uint8_t *perms);
enum snp_code snp_rmpread(struct snp *m, uint64_t pfn, unsigned caller_asid, struct snp_entry *out);

#define SNP_ACCESSES(X)                                   \
	X(SNP_HOST_READ, "host read")                     \
	X(SNP_HOST_WRITE, "host write, 4K mapping")       \
	X(SNP_HOST_WRITE_2M, "host write, 2M mapping")    \
	X(SNP_GUEST_PRIVATE, "guest access, C-bit 1")     \
	X(SNP_GUEST_WRITE_SHARED, "guest write, C-bit 0") \
	X(SNP_DEVICE, "device DMA")
#define PW_ENUM_(name, text) name,
enum snp_access { SNP_ACCESSES(PW_ENUM_) SNP_ACCESS_COUNT };
#undef PW_ENUM_
enum snp_fault { SNP_NO_FAULT, SNP_HOST_PF, SNP_GUEST_NPF, SNP_GUEST_VC, SNP_IOMMU_FAULT };
#define SNP_PF_RMP   ((uint64_t)1 << 31)
#define SNP_PF_FINAL ((uint64_t)1 << 32)
#define SNP_PF_ENC   ((uint64_t)1 << 34)
#define SNP_PF_SIZEM ((uint64_t)1 << 35)
#define SNP_PF_VMPL  ((uint64_t)1 << 36)
/* Would hardware let the access pass? *error has the page fault's RMP bits. `t` is read for guest accesses. */
enum snp_fault snp_access(const struct snp *m, enum snp_access a, uint64_t pfn, const struct snp_target *t,
			  uint64_t *error);

/* Firmware commands. */

struct snp_cmd {
	enum snp_command op;
	bool reserved;     /* reserved bits are set */
	bool length;       /* the length is wrong */
	uint64_t context;  /* the guest's context frame */
	uint64_t pfn, dst; /* the page, or the source; the destination or the response page */
	enum snp_size size;
	uint64_t policy; /* LAUNCH_START */
	bool imi_guest;  /* LAUNCH_START: for initial migration images */
	bool has_agent;  /* LAUNCH_START: bound to the migration agent `agent` */
	uint64_t agent;
	unsigned asid;            /* ACTIVATE */
	unsigned type;            /* LAUNCH_UPDATE: enum snp_page_type; SWAP_*: enum snp_swap_type */
	bool imi;                 /* LAUNCH_UPDATE */
	uint8_t perms[SNP_VMPLS]; /* LAUNCH_UPDATE: of VMPL1..3 */
	const uint8_t *content;   /* LAUNCH_UPDATE: content_len bytes, then `fill` up to the page's end */
	size_t content_len;
	uint8_t fill;
	const struct snp_id_block {
		uint8_t digest[SNP_DIGEST];
		uint64_t policy;
		bool algorithm_known, signature_good;
	} * id_block;                   /* LAUNCH_FINISH, or NULL */
	const struct snp_range *ranges; /* PAGE_SET_STATE */
	size_t range_count;
	bool iommu;      /* SHUTDOWN_EX */
	bool root;       /* SWAP_*: the metadata entry is the one in the context */
	uint64_t md;     /* SWAP_*: else its frame */
	uint32_t offset; /* and place in it */
	bool in_place;   /* SWAP_IN */
};
/* PW_OK: *status is the firmware's answer. PW_NO_MEMORY: nothing changed. */
enum pw_status snp_command(struct snp *m, const struct snp_cmd *c, enum snp_status *status) PW_MUST_CHECK;
void snp_wbinvd(struct snp *m); /* on all cores */

/* A legacy SEV command that writes its buffer, which then becomes Reclaim; while the platform is in INIT. */
enum pw_status snp_legacy_buffer(struct snp *m, uint64_t pfn, enum snp_status *status) PW_MUST_CHECK;

/*
 * What a host does to launch pages: for each RMPUPDATE to Pre-Guest and LAUNCH_UPDATE, in order. On a refusal all pages
 * that this call had changed are given back as hardware asks for it, the refused one by PAGE_RECLAIM first, and no
 * other page is touched. (The launch digest stays extended: the guest cannot be finished.)
 * *done: how many pages were launched; count if all were. *status: why not the next one; SNP_SUCCESS with done < count
 * if it was RMPUPDATE that refused, or the page was assigned.
 */
struct snp_launch_page {
	uint64_t pfn, gfn;
	unsigned type;
	enum snp_size size;
	uint8_t perms[SNP_VMPLS];
	const uint8_t *content;
	size_t content_len;
};
enum pw_status snp_launch_pages(struct snp *m, uint64_t context, const struct snp_launch_page *pages, size_t count,
				size_t *done, enum snp_status *status) PW_MUST_CHECK;

/* Reading. */

const struct snp_guest *snp_guest(const struct snp *m, uint64_t context); /* or NULL */
enum snp_state snp_state(const struct snp *m, uint64_t pfn);
/* What the frame reads as: inside a 2 MiB page, as that entry says, its GFN counted up. */
enum snp_state snp_read(const struct snp *m, uint64_t pfn, struct snp_entry *out);
struct snp_raw snp_read_raw(const struct snp *m, uint64_t pfn); /* the 16 bytes in memory, sub-entries as they are */

struct snp_run {
	uint64_t first, count;
	enum snp_state state;
	enum snp_size size;
	uint16_t asid;
	uint64_t gfn; /* of the first; consecutive if asid > 0 */
};
/* A run of one state at `from`, cut at `end`; needs from < end <= 2^40. Maximal, but where nobody owns numbers. */
struct snp_run snp_run_at(const struct snp *m, uint64_t from, uint64_t end);

/*
 * Is an (asid, gfn) valid on two frames? Legal for hardware, an attack on the guest. Walks all entries.
 * PW_NO_MEMORY  nothing is known.
 */
enum pw_status snp_find_double(const struct snp *m, bool *found, uint64_t *one, uint64_t *other) PW_MUST_CHECK;

/* "RMPUPDATE of frame 0x300: ..." with the state, both owners if there are, the rule and its source. */
void snp_why_text(const struct snp_why *w, char *text, size_t size);

/* A hash of all that calls can change. */
uint64_t snp_digest(const struct snp *m);
bool snp_check(const struct snp *m);

#endif
