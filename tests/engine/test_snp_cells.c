/* Every cell of the SEV-SNP table, by doing the operation to a frame in that state. */
#include "engine/arch/snp.h"

#include <criterion/criterion.h>
#include <string.h>

#include "tests/lib/snp_world.h"

#define SMALL  700  /* a frame of its own */
#define LARGE  1024 /* the first of 512 */
#define STORE  610  /* Firmware: where swapped pages go */
#define MD     600  /* Metadata, with a valid entry in slot 3 of a page that had been validated */
#define SOURCE 720  /* Pre-Swap */

/*
 * In the order of the states: Hypervisor, HV-Fixed, Firmware, Reclaim, Context, Metadata, Pre-Guest, Pre-Swap,
 * Guest-Invalid, Guest-Valid, Firmware-IOMMU, Default, Invalid. A letter is the state that follows (as in `letters`),
 * a dot that nothing changes, a digit an instruction's code, n a nested page fault; a, g and b the statuses
 * INVALID_PAGE_STATE, INVALID_GUEST and the one of a command buffer. From the sources' tables.
 */
/* clang-format off */
static const char letters[] = "HXFRCMGSIVODZ";
static const struct row {
	enum snp_page_op op;
	const char *expected;
} rows[] = {
	/*                        HXFRCMGSIVODZ */
	{ SNP_UPDATE_SHARED,      ".22H2222HH212" },
	{ SNP_UPDATE_PRIVATE,     "I22I2222II212" },
	{ SNP_UPDATE_PRE_GUEST,   "G22G2222GG212" },
	{ SNP_UPDATE_FIRMWARE,    "F22F2222FF212" },
	{ SNP_UPDATE_RECLAIM,     "R22.2222RR212" },
	{ SNP_SAME_PRIVATE,       "I22I2222..212" },
	{ SNP_SAME_PRE_GUEST,     "G22G2222GS212" },
	{ SNP_SMASH,              "44FR4MGSIV41Z" },
	{ SNP_VALIDATE,           "nnnnnnnnV.nnn" },
	{ SNP_RESCIND,            "nnnnnnnn.Innn" },
	{ SNP_DO_RECLAIM,         ".aR.aRIV..aaa" },
	{ SNP_DO_CREATE,          "aaCaaaaaaaaaa" },
	{ SNP_DO_DECOMMISSION,    "ggggFgggggggg" },
	{ SNP_DO_LAUNCH,          "aaaaaaVaaaaaa" },
	{ SNP_DO_MD_INIT,         "aaMaaaaaaaaaa" },
	{ SNP_DO_UNSMASH,         "aaaaaaGSaaaaa" },
	{ SNP_DO_FIX,             "aaXaaaaaaaaaa" },
	{ SNP_DO_OUT,             "aaaaaaGGaaaaa" },
	{ SNP_DO_OUT_MD,          "aaaaaFaaaaaaa" },
	{ SNP_DO_OUT_TO,          "aaFaaaaaaaaDa" },
	{ SNP_DO_IN,              "aaaaaaSaaaaaa" },
	{ SNP_DO_IN_MD,           "aaMaaaaaaaaaa" },
	{ SNP_DO_BUFFER,          "bbRbbbbbbbb.b" },
};
/* clang-format on */

static struct snp_cmd swap(enum snp_command op, enum snp_swap_type type, uint64_t src, uint64_t dst)
{
	return (struct snp_cmd){
		.op = op, .context = SNP_W_CONTEXT, .pfn = src, .dst = dst, .type = type, .md = MD, .offset = 3 * 64
	};
}

/* A platform with a guest in LAUNCH, and what swapping needs. */
static void open_world(struct snp_world *w)
{
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_DATA, SOURCE, STORE);

	snp_world_open(w);
	snp_w_launch(w, SNP_W_CONTEXT, SNP_W_ASID);
	snp_w_make(w, MD, SNP_METADATA);
	snp_w_make(w, STORE, SNP_FIRMWARE);
	snp_w_make(w, SOURCE, SNP_PRE_SWAP);
	cr_assert_eq(snp_w_do(w, &out), SNP_SUCCESS);
	cr_assert_eq(snp_w_reclaim(w, SOURCE, SNP_4K), SNP_SUCCESS);
	cr_assert_eq(snp_w_share(w, SOURCE, SNP_4K), SNP_OK);
	snp_w_make(w, SOURCE, SNP_PRE_SWAP);
}

static bool is_guests(enum snp_state s)
{
	return s >= SNP_PRE_GUEST && s <= SNP_GUEST_VALID;
}

static void make_large(struct snp_world *w, enum snp_state s)
{
	const struct snp_cmd md_init = { .op = SNP_CMD_MD_INIT, .context = SNP_W_CONTEXT, .pfn = LARGE };
	unsigned asid = is_guests(s) ? SNP_W_ASID : 0;
	uint64_t gfn = is_guests(s) ? LARGE : s == SNP_INVALID ? 77 : 0;
	bool unchanged, immutable = s == SNP_PRE_GUEST || (!is_guests(s) && s != SNP_RECLAIM);

	cr_assert_eq(snp_w_update(w, LARGE, asid, gfn, SNP_2M, immutable), SNP_OK);
	if (s == SNP_GUEST_VALID || s == SNP_PRE_SWAP)
		cr_assert_eq(snp_w_validate(w, LARGE, asid, gfn, SNP_2M, true, &unchanged), SNP_OK);
	if (s == SNP_PRE_SWAP)
		cr_assert_eq(snp_w_update(w, LARGE, asid, gfn, SNP_2M, true), SNP_OK);
	if (s == SNP_METADATA)
		cr_assert_eq(snp_w_do(w, &md_init), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w->m, LARGE), s);
}

static bool smash(struct snp_world *w, uint64_t pfn, enum snp_code *code)
{
	struct snp_psmash p = { .pfn = pfn };

	return snp_psmash(&w->m, &p, code) == PW_OK;
}

/* Where it lies: a frame of its own, or the first of a large page (cut up again for UNSMASH). */
static uint64_t frame_for(struct snp_world *w, enum snp_page_op op, enum snp_state s)
{
	bool blocks = op == SNP_SMASH || op == SNP_DO_UNSMASH;
	uint64_t pfn = blocks || op == SNP_DO_FIX ? LARGE : SMALL;
	enum snp_code code;

	if (s == SNP_HV_FIXED)
		return SNP_W_FIXED;
	if (s == SNP_FIRMWARE_IOMMU)
		return op == SNP_DO_FIX || blocks ? SNP_W_LARGE_IOMMU : SNP_W_IOMMU;
	if (s == SNP_DEFAULT)
		return SNP_W_FRAMES;
	if (s == SNP_HYPERVISOR)
		return pfn;
	if (!blocks || s == SNP_CONTEXT) {
		snp_w_make(w, pfn, s);
		return pfn;
	}
	make_large(w, s);
	if (op == SNP_DO_UNSMASH)
		cr_assert(smash(w, LARGE, &code) && code == SNP_OK);
	return LARGE;
}

static char code_letter(enum snp_code code)
{
	return snp_code_value(code) == -1 ? 'n' : (char)('0' + snp_code_value(code));
}

static char status_letter(enum snp_status status)
{
	switch (snp_status_value(status)) {
	case 0x00: return '0';
	case 0x1a: return 'a';
	case 0x10: return 'g';
	case 0x5a: return 'b';
	default: return '?';
	}
}

static char command(struct snp_world *w, struct snp_cmd c)
{
	return status_letter(snp_w_do(w, &c));
}

static char update(struct snp_world *w, uint64_t pfn, unsigned asid, uint64_t gfn, bool immutable)
{
	return code_letter(snp_w_update(w, pfn, asid, gfn, SNP_4K, immutable));
}

static char validate(struct snp_world *w, uint64_t pfn, bool on)
{
	bool unchanged;

	return code_letter(snp_w_validate(w, pfn, SNP_W_ASID, pfn, SNP_4K, on, &unchanged));
}

static char smash_letter(struct snp_world *w, uint64_t pfn)
{
	enum snp_code code;

	cr_assert(smash(w, pfn, &code));
	return code_letter(code);
}

static char buffer(struct snp_world *w, uint64_t pfn)
{
	enum snp_status status;

	cr_assert_eq(snp_legacy_buffer(&w->m, pfn, &status), PW_OK);
	return status_letter(status);
}

/* A page of metadata is swapped out, so that one can be swapped in. */
static char swap_in_metadata(struct snp_world *w, uint64_t pfn)
{
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_METADATA, MD, STORE);
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN, SNP_SWAP_METADATA, STORE, pfn);

	out.root = in.root = true;
	cr_assert_eq(snp_w_do(w, &out), SNP_SUCCESS);
	return command(w, in);
}

/* Does it, and says what was answered: '0' if it was done. */
static char operate(struct snp_world *w, enum snp_page_op op, uint64_t pfn)
{
	const struct snp_range range = { pfn, 1 };
	const uint64_t ctx = SNP_W_CONTEXT;
	struct snp_cmd c = { .context = ctx, .pfn = pfn, .type = SNP_TYPE_ZERO, .ranges = &range, .range_count = 1 };

	switch (op) {
	case SNP_UPDATE_SHARED: return code_letter(snp_w_share(w, pfn, SNP_4K));
	case SNP_UPDATE_PRIVATE: return update(w, pfn, 7, 99, false);
	case SNP_UPDATE_PRE_GUEST: return update(w, pfn, 7, 99, true);
	case SNP_UPDATE_FIRMWARE: return update(w, pfn, 0, 0, true);
	case SNP_UPDATE_RECLAIM: return update(w, pfn, 0, 0, false);
	case SNP_SAME_PRIVATE: return update(w, pfn, SNP_W_ASID, pfn, false);
	case SNP_SAME_PRE_GUEST: return update(w, pfn, SNP_W_ASID, pfn, true);
	case SNP_SMASH: return smash_letter(w, pfn);
	case SNP_VALIDATE: return validate(w, pfn, true);
	case SNP_RESCIND: return validate(w, pfn, false);
	case SNP_DO_RECLAIM: c.op = SNP_CMD_PAGE_RECLAIM; break;
	case SNP_DO_CREATE: c.op = SNP_CMD_GCTX_CREATE, c.context = pfn; break;
	case SNP_DO_DECOMMISSION: c.op = SNP_CMD_DECOMMISSION, c.context = pfn; break;
	case SNP_DO_LAUNCH: c.op = SNP_CMD_LAUNCH_UPDATE; break;
	case SNP_DO_MD_INIT: c.op = SNP_CMD_MD_INIT; break;
	case SNP_DO_UNSMASH: c.op = SNP_CMD_PAGE_UNSMASH; break;
	case SNP_DO_FIX: c.op = SNP_CMD_PAGE_SET_STATE; break;
	case SNP_DO_OUT: c = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_DATA, pfn, STORE); break;
	case SNP_DO_OUT_MD:
		c = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_METADATA, pfn, STORE);
		c.root = true;
		break;
	case SNP_DO_OUT_TO: c = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_DATA, SOURCE, pfn); break;
	case SNP_DO_IN: c = swap(SNP_CMD_SWAP_IN, SNP_SWAP_DATA, STORE, pfn); break;
	case SNP_DO_IN_MD: return swap_in_metadata(w, pfn);
	case SNP_DO_BUFFER: return buffer(w, pfn);
	case SNP_PAGE_OP_COUNT: break;
	}
	return command(w, c);
}

static void check_cell(enum snp_page_op op, enum snp_state s, char expected)
{
	char answer, next = (char)(strchr(letters, expected) && expected != '.' ? expected : letters[s]);
	bool moves = strchr(letters, expected) || expected == '.';
	struct snp_world w;
	uint64_t pfn;

	open_world(&w);
	pfn = frame_for(&w, op, s);
	answer = operate(&w, op, pfn);
	cr_expect_eq(answer, moves ? '0' : expected, "%s of %s: answer %c", snp_page_op_name(op), snp_state_name(s),
		     answer);
	cr_expect_eq(letters[snp_state(&w.m, pfn)], next, "%s of %s: %s", snp_page_op_name(op), snp_state_name(s),
		     snp_state_name(snp_state(&w.m, pfn)));
	snp_world_close(&w);
}

/* What the cell itself holds: where another check comes first, or a refusal would carry OK, no operation shows it. */
Test(snp_cells, every_cell_holds_what_the_sources_say)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(rows); i++)
		for (int s = 0; s < SNP_STATE_COUNT; s++) {
			const struct snp_cell *c = snp_cell((enum snp_state)s, rows[i].op);
			char expected = rows[i].expected[s], is = letters[c->next];

			if (rows[i].op == SNP_SMASH && (s == SNP_CONTEXT || s == SNP_FIRMWARE_IOMMU))
				continue; /* never large: their size refuses */
			if (c->kind == SNP_REFUSE)
				is = c->status == SNP_SUCCESS ? code_letter(c->code) : status_letter(c->status);
			else if (expected == '.')
				expected = letters[s];
			cr_expect_eq(is, expected, "%s of %s: %c", snp_page_op_name(rows[i].op),
				     snp_state_name((enum snp_state)s), is);
		}
}

Test(snp_cells, every_cell_answers_as_the_sources_say)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(rows); i++) {
		cr_assert_eq(strlen(rows[i].expected), SNP_STATE_COUNT);
		for (int s = 0; s < SNP_STATE_COUNT; s++)
			check_cell(rows[i].op, (enum snp_state)s, rows[i].expected[s]);
	}
	cr_assert_eq(PW_ARRAY_LEN(rows), SNP_PAGE_OP_COUNT);
}
