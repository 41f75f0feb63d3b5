#include "engine/arch/snp_impl.h"

#define TEXT_(name, text)                [name] = text,
#define TEXT3_(name, text, value)        [name] = text,
#define VALUE_(name, text, value)        [name] = value,
#define RULE_(name, text, source, known) [name] = { text, source, known[0] == 'i' },
static const char *const state_names[SNP_STATE_COUNT] = { SNP_STATES(TEXT_) };
static const char *const page_op_names[SNP_PAGE_OP_COUNT] = { SNP_PAGE_OPS(TEXT_) };
static const char *const code_names[SNP_CODE_COUNT] = { SNP_CODES(TEXT3_) };
static const int code_values[SNP_CODE_COUNT] = { SNP_CODES(VALUE_) };
static const char *const status_names[SNP_STATUS_COUNT] = { SNP_STATUSES(TEXT3_) };
static const uint8_t status_values[SNP_STATUS_COUNT] = { SNP_STATUSES(VALUE_) };
static const char *const command_names[SNP_COMMAND_COUNT] = { SNP_COMMANDS(TEXT3_) };
static const uint8_t command_ids[SNP_COMMAND_COUNT] = { SNP_COMMANDS(VALUE_) };
static const char *const guest_state_names[SNP_GUEST_STATE_COUNT] = { SNP_GUEST_STATES(TEXT_) };
static const char *const asid_state_names[SNP_ASID_STATE_COUNT] = { SNP_ASID_STATES(TEXT_) };
static const struct rule {
	const char *text, *source;
	bool inferred;
} rules[SNP_RULE_COUNT] = { SNP_RULES(RULE_) };

const char *snp_state_name(enum snp_state s)
{
	return state_names[s];
}

const char *snp_page_op_name(enum snp_page_op op)
{
	return page_op_names[op];
}

const char *snp_code_name(enum snp_code c)
{
	return code_names[c];
}

int snp_code_value(enum snp_code c)
{
	return code_values[c];
}

const char *snp_status_name(enum snp_status s)
{
	return status_names[s];
}

unsigned snp_status_value(enum snp_status s)
{
	return status_values[s];
}

const char *snp_command_name(enum snp_command c)
{
	return command_names[c];
}

unsigned snp_command_id(enum snp_command c)
{
	return command_ids[c];
}

const char *snp_guest_state_name(enum snp_guest_state s)
{
	return guest_state_names[s];
}

const char *snp_asid_state_name(enum snp_asid_state s)
{
	return asid_state_names[s];
}

const char *snp_rule_text(enum snp_rule r)
{
	return rules[r].text;
}

const char *snp_rule_source(enum snp_rule r)
{
	return rules[r].source;
}

bool snp_rule_is_inferred(enum snp_rule r)
{
	return rules[r].inferred;
}

/* Raw entries. */

#define LO_ASSIGNED  ((uint64_t)1 << 0)
#define LO_LARGE     ((uint64_t)1 << 1)
#define LO_IMMUTABLE ((uint64_t)1 << 2)
#define LO_COUNT     ((uint64_t)511 << 3)
#define LO_GPA       (WORD_GFN << 12)
#define LO_ASID      ((uint64_t)1023 << 51)
#define LO_VMSA      ((uint64_t)1 << 61)
#define LO_VALIDATED ((uint64_t)1 << 62)
#define LO_LOCK      ((uint64_t)1 << 63)
#define LO_TAG       (SNP_GFN_TAG << 12)
#define LO_FRAME     (LO_GPA & ~LO_TAG)
#define LO_OWNER     (LO_ASSIGNED | LO_VALIDATED | LO_ASID | LO_IMMUTABLE)
#define LO_GUEST     (LO_ASSIGNED | LO_VALIDATED | LO_IMMUTABLE)
#define LO_FIRMWARE  (LO_ASSIGNED | LO_IMMUTABLE)

/* The firmware's table of states: tested in this order, the first match wins, anything else is Invalid. */
static const struct pattern {
	enum snp_state state;
	uint64_t mask, value;
	uint64_t some; /* not all of these are 0 */
} patterns[] = {
	{ SNP_HYPERVISOR, LO_OWNER, 0, 0 },
	{ SNP_HV_FIXED, LO_OWNER, LO_IMMUTABLE, 0 },
	{ SNP_FIRMWARE, LO_OWNER | LO_GPA | LO_VMSA, LO_FIRMWARE, 0 },
	{ SNP_RECLAIM, LO_OWNER | LO_LOCK, LO_ASSIGNED, 0 },
	{ SNP_CONTEXT, LO_OWNER | LO_GPA | LO_VMSA, LO_FIRMWARE | LO_VMSA, 0 },
	{ SNP_METADATA, LO_OWNER | LO_TAG, LO_FIRMWARE | SNP_TAG_METADATA << 12, LO_FRAME },
	{ SNP_PRE_GUEST, LO_GUEST, LO_FIRMWARE, LO_ASID },
	{ SNP_PRE_SWAP, LO_GUEST, LO_GUEST, LO_ASID },
	{ SNP_GUEST_INVALID, LO_GUEST, LO_ASSIGNED, LO_ASID },
	{ SNP_GUEST_VALID, LO_GUEST, LO_ASSIGNED | LO_VALIDATED, LO_ASID },
	{ SNP_FIRMWARE_IOMMU, LO_OWNER | LO_GPA | LO_VMSA, LO_FIRMWARE | (SNP_TAG_IOMMU | 1) << 12, 0 },
};

static enum snp_state lo_state(uint64_t lo)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(patterns); i++)
		if ((lo & patterns[i].mask) == patterns[i].value && (!patterns[i].some || lo & patterns[i].some))
			return patterns[i].state;
	return SNP_INVALID;
}

enum snp_state snp_raw_state(struct snp_raw raw)
{
	return lo_state(raw.lo);
}

enum snp_state snp_entry_state(const struct snp_entry *e)
{
	return lo_state(snp_encode(e).lo);
}

static uint64_t flag(bool set, uint64_t bit)
{
	return set ? bit : 0;
}

struct snp_raw snp_encode(const struct snp_entry *e)
{
	struct snp_raw raw = {
		.lo = flag(e->assigned, LO_ASSIGNED) | flag(e->size == SNP_2M, LO_LARGE) |
		      flag(e->immutable, LO_IMMUTABLE) | (((uint64_t)e->subpages << 3) & LO_COUNT) |
		      ((e->gfn << 12) & LO_GPA) | (((uint64_t)e->asid << 51) & LO_ASID) | flag(e->vmsa, LO_VMSA) |
		      flag(e->validated, LO_VALIDATED) | flag(e->lock, LO_LOCK),
		.hi = flag(e->implicit_key, (uint64_t)1 << 32) | (uint64_t)e->migration << 62,
	};

	for (unsigned i = 0; i < SNP_VMPLS; i++)
		raw.hi |= (uint64_t)e->perms[i] << (8 * i);
	return raw;
}

void snp_decode(struct snp_raw raw, struct snp_entry *out)
{
	*out = (struct snp_entry){
		.gfn = (raw.lo & LO_GPA) >> 12,
		.asid = (uint16_t)((raw.lo & LO_ASID) >> 51),
		.subpages = (uint16_t)((raw.lo & LO_COUNT) >> 3),
		.size = raw.lo & LO_LARGE ? SNP_2M : SNP_4K,
		.assigned = raw.lo & LO_ASSIGNED,
		.immutable = raw.lo & LO_IMMUTABLE,
		.vmsa = raw.lo & LO_VMSA,
		.validated = raw.lo & LO_VALIDATED,
		.lock = raw.lo & LO_LOCK,
		.implicit_key = raw.hi >> 32 & 1,
		.migration = (uint8_t)(raw.hi >> 62),
	};
	for (unsigned i = 0; i < SNP_VMPLS; i++)
		out->perms[i] = (uint8_t)(raw.hi >> (8 * i));
}

/* Words. */

uint64_t word_raw(uint64_t w)
{
	uint64_t immutable = w & WORD_IMMUTABLE, assigned = w & WORD_ASSIGNED;

	return flag(assigned, LO_ASSIGNED) | flag(w & WORD_LARGE, LO_LARGE) | flag(immutable, LO_IMMUTABLE) |
	       (w & WORD_GFN) << 12 | (uint64_t)word_asid(w) << 51 | flag(w & WORD_VMSA, LO_VMSA) |
	       flag(w & WORD_VALIDATED, LO_VALIDATED) | flag(immutable && assigned, LO_LOCK);
}

enum snp_state word_state(uint64_t w)
{
	return w ? lo_state(word_raw(w)) : SNP_HYPERVISOR;
}

/* What a state consists of, and what of the entry it was before stays. */
#define OWNER (WORD_ASID | TREE_NUMBER | WORD_LARGE | WORD_VMSA)
static const struct shape {
	uint64_t flags, keeps;
} shapes[SNP_STATE_COUNT] = {
	[SNP_HYPERVISOR] = { 0, 0 },
	[SNP_HV_FIXED] = { WORD_IMMUTABLE, 0 },
	[SNP_FIRMWARE] = { WORD_ASSIGNED | WORD_IMMUTABLE, WORD_LARGE },
	[SNP_RECLAIM] = { WORD_ASSIGNED, WORD_LARGE | TREE_NUMBER },
	[SNP_CONTEXT] = { WORD_ASSIGNED | WORD_IMMUTABLE | WORD_VMSA, WORD_LARGE },
	[SNP_METADATA] = { WORD_ASSIGNED | WORD_IMMUTABLE, WORD_LARGE },
	[SNP_PRE_GUEST] = { WORD_ASSIGNED | WORD_IMMUTABLE, OWNER },
	[SNP_PRE_SWAP] = { WORD_ASSIGNED | WORD_IMMUTABLE | WORD_VALIDATED, OWNER },
	[SNP_GUEST_INVALID] = { WORD_ASSIGNED, OWNER },
	[SNP_GUEST_VALID] = { WORD_ASSIGNED | WORD_VALIDATED, OWNER },
	[SNP_FIRMWARE_IOMMU] = { WORD_ASSIGNED | WORD_IMMUTABLE, WORD_LARGE },
};
#undef OWNER

uint64_t word_numbered(uint64_t w, uint64_t number)
{
	w = (w & ~(TREE_NUMBER | TREE_LINEAR)) | number;
	return w & WORD_ASSIGNED && w & (WORD_ASID | TREE_NUMBER) ? w | TREE_LINEAR : w;
}

uint64_t word_in(uint64_t w, enum snp_state next)
{
	w = shapes[next].flags | (w & shapes[next].keeps);
	return word_numbered(w, w & TREE_NUMBER);
}

/* The table. */

/* clang-format off */
#define TO(s)   { SNP_MOVE, SNP_##s, SNP_OK, SNP_SUCCESS }
#define STAY(s) { SNP_STAY, SNP_##s, SNP_OK, SNP_SUCCESS }
#define FAIL(c) { SNP_REFUSE, SNP_INVALID, SNP_##c, SNP_SUCCESS }
#define NO(st)  { SNP_REFUSE, SNP_INVALID, SNP_OK, SNP_##st }
#define PAGE    NO(INVALID_PAGE_STATE)
#define GUEST   NO(INVALID_GUEST)
#define BUFFER  NO(BUFFER_PAGE_STATE)
#define PERM    FAIL(FAIL_PERMISSION)
#define INPUT   FAIL(FAIL_INPUT)
#define NPF     FAIL(NPF)
#define ROW(shared, private_, pre_guest, firmware, reclaim_, same_private, same_pre_guest, smash, validate, rescind, \
	    reclaim, create, decommission, launch, md_init, unsmash, fix, out, out_md, out_to, in, in_md, buffer)    \
	{ [SNP_UPDATE_SHARED] = shared, [SNP_UPDATE_PRIVATE] = private_, [SNP_UPDATE_PRE_GUEST] = pre_guest,         \
	  [SNP_UPDATE_FIRMWARE] = firmware, [SNP_UPDATE_RECLAIM] = reclaim_, [SNP_SAME_PRIVATE] = same_private,      \
	  [SNP_SAME_PRE_GUEST] = same_pre_guest, [SNP_SMASH] = smash, [SNP_VALIDATE] = validate,                     \
	  [SNP_RESCIND] = rescind, [SNP_DO_RECLAIM] = reclaim, [SNP_DO_CREATE] = create,                             \
	  [SNP_DO_DECOMMISSION] = decommission, [SNP_DO_LAUNCH] = launch, [SNP_DO_MD_INIT] = md_init,                \
	  [SNP_DO_UNSMASH] = unsmash, [SNP_DO_FIX] = fix, [SNP_DO_OUT] = out, [SNP_DO_OUT_MD] = out_md,              \
	  [SNP_DO_OUT_TO] = out_to, [SNP_DO_IN] = in, [SNP_DO_IN_MD] = in_md, [SNP_DO_BUFFER] = buffer }

/*
 * Five lines a state:
 *	RMPUPDATE to       Hypervisor, Guest, Pre-Guest, Firmware, Reclaim
 *	the same but for   immutable off, on;  PSMASH;  PVALIDATE 1, 0
 *	firmware           PAGE_RECLAIM, GCTX_CREATE, DECOMMISSION, LAUNCH_UPDATE
 *	                   MD_INIT, PAGE_UNSMASH, PAGE_SET_STATE
 *	swap               OUT, OUT of metadata, OUT to, IN, IN of metadata, command buffer
 * A swap-in moves Pre-Guest on to Pre-Swap only if the page had been validated.
 */
static const struct snp_cell cells[SNP_STATE_COUNT][SNP_PAGE_OP_COUNT] = {
	[SNP_HYPERVISOR] = ROW(
		STAY(HYPERVISOR),    TO(GUEST_INVALID),   TO(PRE_GUEST),       TO(FIRMWARE),        TO(RECLAIM),
		TO(GUEST_INVALID),   TO(PRE_GUEST),       FAIL(FAIL_PAGE),     NPF,                 NPF,
		STAY(HYPERVISOR),    PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_HV_FIXED] = ROW(
		PERM,                PERM,                PERM,                PERM,                PERM,
		PERM,                PERM,                FAIL(FAIL_PAGE),     NPF,                 NPF,
		PAGE,                PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_FIRMWARE] = ROW(
		PERM,                PERM,                PERM,                PERM,                PERM,
		PERM,                PERM,                STAY(FIRMWARE),      NPF,                 NPF,
		TO(RECLAIM),         TO(CONTEXT),         GUEST,               PAGE,
		TO(METADATA),        PAGE,                TO(HV_FIXED),
		PAGE,                PAGE,                STAY(FIRMWARE),      PAGE,                TO(METADATA),        TO(RECLAIM)),
	[SNP_RECLAIM] = ROW(
		TO(HYPERVISOR),      TO(GUEST_INVALID),   TO(PRE_GUEST),       TO(FIRMWARE),        TO(RECLAIM),
		TO(GUEST_INVALID),   TO(PRE_GUEST),       STAY(RECLAIM),       NPF,                 NPF,
		STAY(RECLAIM),       PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_CONTEXT] = ROW(
		PERM,                PERM,                PERM,                PERM,                PERM,
		PERM,                PERM,                STAY(CONTEXT),       NPF,                 NPF,
		PAGE,                PAGE,                TO(FIRMWARE),        PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_METADATA] = ROW(
		PERM,                PERM,                PERM,                PERM,                PERM,
		PERM,                PERM,                STAY(METADATA),      NPF,                 NPF,
		TO(RECLAIM),         PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                TO(FIRMWARE),        PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_PRE_GUEST] = ROW(
		PERM,                PERM,                PERM,                PERM,                PERM,
		PERM,                PERM,                STAY(PRE_GUEST),     NPF,                 NPF,
		TO(GUEST_INVALID),   PAGE,                GUEST,               TO(GUEST_VALID),
		PAGE,                STAY(PRE_GUEST),     PAGE,
		STAY(PRE_GUEST),     PAGE,                PAGE,                TO(PRE_SWAP),        PAGE,                BUFFER),
	[SNP_PRE_SWAP] = ROW(
		PERM,                PERM,                PERM,                PERM,                PERM,
		PERM,                PERM,                STAY(PRE_SWAP),      NPF,                 NPF,
		TO(GUEST_VALID),     PAGE,                GUEST,               PAGE,
		PAGE,                STAY(PRE_SWAP),      PAGE,
		TO(PRE_GUEST),       PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_GUEST_INVALID] = ROW(
		TO(HYPERVISOR),      TO(GUEST_INVALID),   TO(PRE_GUEST),       TO(FIRMWARE),        TO(RECLAIM),
		STAY(GUEST_INVALID), TO(PRE_GUEST),       STAY(GUEST_INVALID), TO(GUEST_VALID),     STAY(GUEST_INVALID),
		STAY(GUEST_INVALID), PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_GUEST_VALID] = ROW(
		TO(HYPERVISOR),      TO(GUEST_INVALID),   TO(PRE_GUEST),       TO(FIRMWARE),        TO(RECLAIM),
		STAY(GUEST_VALID),   TO(PRE_SWAP),        STAY(GUEST_VALID),   STAY(GUEST_VALID),   TO(GUEST_INVALID),
		STAY(GUEST_VALID),   PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_FIRMWARE_IOMMU] = ROW(
		PERM,                PERM,                PERM,                PERM,                PERM,
		PERM,                PERM,                STAY(FIRMWARE_IOMMU), NPF,                 NPF,
		PAGE,                PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
	[SNP_DEFAULT] = ROW(
		INPUT,               INPUT,               INPUT,               INPUT,               INPUT,
		INPUT,               INPUT,               INPUT,               NPF,                 NPF,
		PAGE,                PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                STAY(DEFAULT),       PAGE,                PAGE,                STAY(DEFAULT)),
	[SNP_INVALID] = ROW(
		PERM,                PERM,                PERM,                PERM,                PERM,
		PERM,                PERM,                STAY(INVALID),       NPF,                 NPF,
		PAGE,                PAGE,                GUEST,               PAGE,
		PAGE,                PAGE,                PAGE,
		PAGE,                PAGE,                PAGE,                PAGE,                PAGE,                BUFFER),
};

static const struct snp_move moves[SNP_MOVES] = {
	/* source        destination     source then         destination then */
	{ SNP_PRE_GUEST, SNP_PRE_GUEST,  SNP_GUEST_INVALID,  SNP_GUEST_INVALID },
	{ SNP_PRE_SWAP,  SNP_PRE_GUEST,  SNP_GUEST_INVALID,  SNP_GUEST_VALID },
	{ SNP_METADATA,  SNP_FIRMWARE,   SNP_FIRMWARE,       SNP_METADATA },
};

/* A guest's page is resident from its assignment on, but the law knows it as secure only while its content is kept. */
static const enum gfn_state projections[SNP_STATE_COUNT] = {
	[SNP_HYPERVISOR] = GFN_NORMAL,
	[SNP_HV_FIXED] = GFN_NORMAL,
	[SNP_FIRMWARE] = GFN_NORMAL,
	[SNP_RECLAIM] = GFN_NORMAL,
	[SNP_CONTEXT] = GFN_NORMAL,
	[SNP_METADATA] = GFN_NORMAL,
	[SNP_PRE_GUEST] = GFN_SECURE_RESIDENT,
	[SNP_PRE_SWAP] = GFN_SECURE_RESIDENT,
	[SNP_GUEST_INVALID] = GFN_SECURE_RESIDENT,
	[SNP_GUEST_VALID] = GFN_SECURE_RESIDENT,
	[SNP_FIRMWARE_IOMMU] = GFN_NORMAL,
	[SNP_DEFAULT] = GFN_NORMAL,
	[SNP_INVALID] = GFN_NORMAL,
};
/* clang-format on */

const struct snp_cell *snp_cell(enum snp_state s, enum snp_page_op op)
{
	return &cells[s][op];
}

const struct snp_move *snp_move(enum snp_state src, enum snp_state dst)
{
	for (size_t i = 0; i < SNP_MOVES; i++)
		if (moves[i].src == src && moves[i].dst == dst)
			return &moves[i];
	return NULL;
}

enum gfn_state snp_project(enum snp_state s)
{
	return projections[s];
}

bool snp_tables_are_total(void)
{
	for (int s = 0; s < SNP_STATE_COUNT; s++)
		for (int op = 0; op < SNP_PAGE_OP_COUNT; op++)
			if (cells[s][op].kind == SNP_UNDECIDED)
				return false;
	return true;
}
