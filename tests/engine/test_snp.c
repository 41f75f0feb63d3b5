#include "engine/arch/snp.h"

#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/snp_world.h"

#define PFN 768

/* Entries. */

static struct raw_case {
	uint64_t lo, hi;
	enum snp_state state;
} raw_cases[] = {
	/* as seen in host logs, and from the layout */
	{ 0x0, 0, SNP_HYPERVISOR },
	{ 0x4, 0, SNP_HV_FIXED },
	{ 0x8000000000000005, 0, SNP_FIRMWARE },
	{ 0x8028000000001005, 0, SNP_PRE_GUEST },
	{ 0x4028000000001001, 0, SNP_GUEST_VALID },
	/* from the table of states */
	{ 0x1, 0, SNP_RECLAIM },
	{ 0x0000000000007001, 0, SNP_RECLAIM }, /* the GFN is not looked at */
	{ 0x8000000000000001, 0, SNP_INVALID }, /* but the lock is */
	{ 0xa000000000000005, 0, SNP_CONTEXT },
	{ 0x8001000000100005, 0, SNP_METADATA },
	{ 0x8001000000000005, 0, SNP_INVALID }, /* metadata of no frame */
	{ 0x8002000000001005, 0, SNP_FIRMWARE_IOMMU },
	{ 0x8002000000002005, 0, SNP_INVALID },
	{ 0x8000000000001005, 0, SNP_INVALID }, /* Firmware with a GFN */
	{ 0xa002000000001005, 0, SNP_INVALID },
	{ 0xc028000000001005, 0, SNP_PRE_SWAP },
	{ 0x0028000000001001, 0, SNP_GUEST_INVALID },
	{ 0x2028000000001001, 0, SNP_GUEST_INVALID }, /* a VMSA */
	{ 0x4000000000000001, 0, SNP_INVALID },       /* ASID 0, validated */
	{ 0x0028000000000000, 0, SNP_INVALID },       /* not assigned, with an ASID */
	{ 0x4000000000000000, 0, SNP_INVALID },
};

ParameterizedTestParameters(snp, raw_entries_decode_to_their_states)
{
	return cr_make_param_array(struct raw_case, raw_cases, PW_ARRAY_LEN(raw_cases));
}
ParameterizedTest(struct raw_case *c, snp, raw_entries_decode_to_their_states)
{
	struct snp_raw raw = { c->lo, c->hi }, back;
	struct snp_entry e;

	cr_assert_eq(snp_raw_state(raw), c->state, "%s", snp_state_name(snp_raw_state(raw)));
	snp_decode(raw, &e);
	back = snp_encode(&e);
	cr_assert(back.lo == c->lo && back.hi == c->hi);
	cr_assert_eq(snp_entry_state(&e), c->state);
}

Test(snp, every_field_of_an_entry_survives_encoding)
{
	struct snp_entry e = { .gfn = SNP_GFNS - 1,
			       .asid = 1023,
			       .subpages = 511,
			       .size = SNP_2M,
			       .assigned = true,
			       .immutable = true,
			       .vmsa = true,
			       .validated = true,
			       .lock = true,
			       .perms = { 1, 2, 4, 31 },
			       .implicit_key = true,
			       .migration = 2 };
	struct snp_raw raw = snp_encode(&e);
	struct snp_entry back;

	cr_assert_eq(raw.lo, UINT64_MAX);
	cr_assert_eq(raw.hi, (uint64_t)2 << 62 | (uint64_t)1 << 32 | 0x1f040201);
	snp_decode(raw, &back);
	cr_assert_eq(back.gfn, e.gfn);
	cr_assert(back.asid == 1023 && back.subpages == 511 && back.size == SNP_2M && back.migration == 2);
	cr_assert(back.perms[0] == 1 && back.perms[3] == 31 && back.implicit_key);
}

Test(snp, memory_reads_as_the_layout_says)
{
	struct snp_world w;

	snp_world_open(&w);
	cr_assert_eq(snp_read_raw(&w.m, 10).lo, 0);
	cr_assert_eq(snp_read_raw(&w.m, SNP_W_FIXED + 1).lo, 4);
	cr_assert_eq(snp_read_raw(&w.m, SNP_W_RMP + 1).lo, 0x8000000000000005);
	cr_assert_eq(snp_w_update(&w, PFN, SNP_W_ASID, 1, SNP_4K, true), SNP_OK);
	cr_assert_eq(snp_read_raw(&w.m, PFN).lo, 0x8028000000001005);
	cr_assert_eq(snp_read_raw(&w.m, PFN).hi, 0x1f);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 512, SNP_2M, false), SNP_OK);
	cr_assert_eq(snp_read_raw(&w.m, 1024).lo, 0x0028000000200003);
	cr_assert_eq(snp_read_raw(&w.m, 1025).lo, 1, "a sub-entry reads as Reclaim");
	cr_assert_eq(snp_state(&w.m, 1025), SNP_GUEST_INVALID, "and is what its 2 MiB entry says");
	snp_world_close(&w);
}

/* The table of states and operations. */

/* What each operation answers in each state: next state, or the code or status. From the reference's summary. */
#define N_OPS 8
static struct summary {
	enum snp_state state;
	struct {
		int code;
		enum snp_state next;
	} ops[N_OPS]; /* shared, private, pre-guest, RECLAIM, LAUNCH_UPDATE, GCTX_CREATE, PVALIDATE 1, PVALIDATE 0 */
} summary[] = {
#define NPF -1
#define SAME(c)                    \
	{                          \
		c, SNP_STATE_COUNT \
	}
#define TO(s)              \
	{                  \
		0, SNP_##s \
	}
	{ SNP_HYPERVISOR,
	  { TO(HYPERVISOR), TO(GUEST_INVALID), TO(PRE_GUEST), SAME(0), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_HV_FIXED, { SAME(2), SAME(2), SAME(2), SAME(0x1a), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_FIRMWARE, { SAME(2), SAME(2), SAME(2), TO(RECLAIM), SAME(0x1a), TO(CONTEXT), SAME(NPF), SAME(NPF) } },
	{ SNP_FIRMWARE_IOMMU, { SAME(2), SAME(2), SAME(2), SAME(0x1a), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_RECLAIM,
	  { TO(HYPERVISOR), TO(GUEST_INVALID), TO(PRE_GUEST), SAME(0), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_CONTEXT, { SAME(2), SAME(2), SAME(2), SAME(0x1a), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_METADATA, { SAME(2), SAME(2), SAME(2), TO(RECLAIM), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_PRE_GUEST,
	  { SAME(2), SAME(2), SAME(2), TO(GUEST_INVALID), TO(GUEST_VALID), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_PRE_SWAP, { SAME(2), SAME(2), SAME(2), TO(GUEST_VALID), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_GUEST_INVALID,
	  { TO(HYPERVISOR), TO(GUEST_INVALID), TO(PRE_GUEST), SAME(0), SAME(0x1a), SAME(0x1a), TO(GUEST_VALID),
	    SAME(100) } },
	{ SNP_GUEST_VALID,
	  { TO(HYPERVISOR), TO(GUEST_INVALID), TO(PRE_GUEST), SAME(0), SAME(0x1a), SAME(0x1a), SAME(100),
	    TO(GUEST_INVALID) } },
	{ SNP_DEFAULT, { SAME(1), SAME(1), SAME(1), SAME(0x1a), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
	{ SNP_INVALID, { SAME(2), SAME(2), SAME(2), SAME(0x1a), SAME(0x1a), SAME(0x1a), SAME(NPF), SAME(NPF) } },
#undef NPF
#undef SAME
#undef TO
};

static uint64_t frame_in(struct snp_world *w, enum snp_state s)
{
	uint64_t pfn = s == SNP_HV_FIXED         ? SNP_W_FIXED + 3
		       : s == SNP_FIRMWARE_IOMMU ? SNP_W_IOMMU
		       : s == SNP_DEFAULT        ? SNP_W_FRAMES + 7
						 : PFN;

	snp_w_make(w, pfn, s);
	return pfn;
}

static int validate(struct snp_world *w, uint64_t pfn, bool on)
{
	bool unchanged;
	enum snp_code code = snp_w_validate(w, pfn, SNP_W_ASID, pfn, SNP_4K, on, &unchanged);

	return unchanged ? 100 : snp_code_value(code);
}

static int operate(struct snp_world *w, int op, uint64_t pfn)
{
	const struct snp_cmd create = { .op = SNP_CMD_GCTX_CREATE, .context = pfn };

	switch (op) {
	case 0: return snp_code_value(snp_w_share(w, pfn, SNP_4K));
	case 1: return snp_code_value(snp_w_update(w, pfn, 7, 99, SNP_4K, false));
	case 2: return snp_code_value(snp_w_update(w, pfn, 7, 99, SNP_4K, true));
	case 3: return (int)snp_status_value(snp_w_reclaim(w, pfn, SNP_4K));
	case 4: return (int)snp_status_value(snp_w_load(w, SNP_W_CONTEXT, pfn, SNP_TYPE_ZERO));
	case 5: return (int)snp_status_value(snp_w_do(w, &create));
	case 6: return validate(w, pfn, true);
	default: return validate(w, pfn, false);
	}
}

ParameterizedTestParameters(snp, each_state_answers_each_operation)
{
	return cr_make_param_array(struct summary, summary, PW_ARRAY_LEN(summary));
}
ParameterizedTest(struct summary *c, snp, each_state_answers_each_operation)
{
	for (int op = 0; op < N_OPS; op++) {
		struct snp_world w;
		uint64_t pfn, before;
		int code;

		snp_world_open(&w);
		snp_w_launch(&w, SNP_W_CONTEXT, SNP_W_ASID);
		pfn = frame_in(&w, c->state);
		before = snp_digest(&w.m);
		code = operate(&w, op, pfn);
		cr_expect_eq(code, c->ops[op].code, "%s, operation %d: %d", snp_state_name(c->state), op, code);
		if (c->ops[op].next == SNP_STATE_COUNT)
			cr_expect_eq(snp_digest(&w.m), before, "%s, operation %d", snp_state_name(c->state), op);
		else
			cr_expect_eq(snp_state(&w.m, pfn), c->ops[op].next, "%s, operation %d: %s",
				     snp_state_name(c->state), op, snp_state_name(snp_state(&w.m, pfn)));
		snp_world_close(&w);
	}
}

Test(snp, every_cell_is_decided)
{
	cr_assert(snp_tables_are_total());
	for (int s = 0; s < SNP_STATE_COUNT; s++)
		cr_assert_not_null(snp_state_name((enum snp_state)s));
	for (int r = 0; r < SNP_RULE_COUNT; r++)
		cr_assert_not_null(snp_rule_text((enum snp_rule)r));
	cr_assert_eq(snp_command_id(SNP_CMD_PAGE_UNSMASH), 0xc8);
	cr_assert_eq(snp_status_value(SNP_INVALID_PAGE_OWNER), 0x1c);
}

Test(snp, guests_pages_are_secure_and_all_others_normal)
{
	for (int s = 0; s < SNP_STATE_COUNT; s++)
		cr_assert_eq(snp_project((enum snp_state)s),
			     s >= SNP_PRE_GUEST && s <= SNP_GUEST_VALID ? GFN_SECURE_RESIDENT : GFN_NORMAL);
}

/* RMPUPDATE. */

Test(snp, an_update_of_the_immutable_bit_alone_keeps_validated)
{
	struct snp_world w;

	snp_world_open(&w);
	snp_w_make(&w, PFN, SNP_GUEST_VALID);
	cr_assert_eq(snp_w_update(&w, PFN, SNP_W_ASID, PFN, SNP_4K, false), SNP_OK);
	cr_assert_eq(snp_state(&w.m, PFN), SNP_GUEST_VALID);
	cr_assert_eq(snp_w_update(&w, PFN, SNP_W_ASID, PFN, SNP_4K, true), SNP_OK);
	cr_assert_eq(snp_state(&w.m, PFN), SNP_PRE_SWAP);
	snp_world_close(&w);
}

Test(snp, an_update_of_another_guests_page_succeeds_and_drops_its_validation)
{
	struct snp_world w;
	struct snp_entry e;

	snp_world_open(&w);
	snp_w_make(&w, PFN, SNP_GUEST_VALID);
	cr_assert_eq(snp_w_update(&w, PFN, 6, 1, SNP_4K, false), SNP_OK);
	cr_assert_eq(snp_read(&w.m, PFN, &e), SNP_GUEST_INVALID);
	cr_assert(e.asid == 6 && e.gfn == 1);
	cr_assert(w.m.pages[6] == 1 && w.m.pages[SNP_W_ASID] == 0);
	snp_world_close(&w);
}

Test(snp, strict_mode_refuses_it_and_names_both_owners)
{
	struct snp_world w;
	char text[512];
	uint64_t before;

	snp_world_open(&w);
	w.m.strict = true;
	snp_w_make(&w, PFN, SNP_GUEST_VALID);
	before = snp_digest(&w.m);
	cr_assert_eq(snp_w_update(&w, PFN, 6, 1, SNP_4K, false), SNP_FAIL_PERMISSION);
	cr_assert_eq(snp_digest(&w.m), before);
	cr_assert_eq(w.m.why.rule, SNP_RULE_STRICT);
	snp_why_text(&w.m.why, text, sizeof text);
	cr_assert(strstr(text, "frame 768 is Guest-Valid (ASID 5, GFN 768)"), "%s", text);
	cr_assert(strstr(text, "asked for by ASID 6, GFN 1"), "%s", text);
	cr_assert_eq(snp_w_update(&w, PFN, SNP_W_ASID, PFN, SNP_4K, true), SNP_OK, "the owner itself may");
	cr_assert_eq(snp_w_reclaim(&w, PFN, SNP_4K), SNP_SUCCESS);
	cr_assert_eq(snp_w_share(&w, PFN, SNP_4K), SNP_OK, "and a release is none");
	cr_assert_eq(snp_w_update(&w, PFN, 6, 1, SNP_4K, false), SNP_OK);
	snp_world_close(&w);
}

static struct bad_update {
	struct snp_rmpupdate u;
	enum snp_code code;
	enum snp_rule rule;
} bad_updates[] = {
	{ { .pfn = SNP_W_FRAMES, .assigned = true, .asid = 5 }, SNP_FAIL_INPUT, SNP_RULE_PAST_RMP },
	{ { .pfn = 1025, .assigned = true, .asid = 5, .size = SNP_2M }, SNP_FAIL_INPUT, SNP_RULE_UNALIGNED },
	{ { .pfn = PFN, .assigned = true, .asid = 1024 }, SNP_FAIL_INPUT, SNP_RULE_OPERAND },
	{ { .pfn = PFN, .assigned = true, .asid = 5, .gfn = SNP_GFNS }, SNP_FAIL_INPUT, SNP_RULE_OPERAND },
	{ { .pfn = PFN, .assigned = true, .asid = 5, .caller_asid = 3 }, SNP_FAIL_PERMISSION, SNP_RULE_NOT_HOST },
	{ { .pfn = PFN, .assigned = true, .asid = 5, .race = SNP_RACE_CPU }, SNP_FAIL_INUSE, SNP_RULE_RACE },
	{ { .pfn = PFN, .assigned = true, .asid = 5, .race = SNP_RACE_FIRMWARE }, SNP_FAIL_OVERLAP, SNP_RULE_LOCKED },
	{ { .pfn = SNP_W_RMP + 9 }, SNP_FAIL_PERMISSION, SNP_RULE_IMMUTABLE },
	{ { .pfn = 3584, .assigned = true, .asid = 5, .size = SNP_2M }, SNP_FAIL_PERMISSION, SNP_RULE_IMMUTABLE },
	{ { .pfn = 1026, .assigned = true, .asid = 5 }, SNP_FAIL_OVERLAP, SNP_RULE_IN_2M },
	{ { .pfn = 1024 }, SNP_FAIL_OVERLAP, SNP_RULE_IN_2M },
	{ { .pfn = 1536, .assigned = true, .asid = 5, .size = SNP_2M }, SNP_FAIL_OVERLAP, SNP_RULE_HAS_4K },
	{ { .pfn = 1536, .size = SNP_2M }, SNP_FAIL_OVERLAP, SNP_RULE_HAS_4K },
};

ParameterizedTestParameters(snp, a_wrong_update_changes_nothing)
{
	return cr_make_param_array(struct bad_update, bad_updates, PW_ARRAY_LEN(bad_updates));
}
ParameterizedTest(struct bad_update *c, snp, a_wrong_update_changes_nothing)
{
	struct snp_world w;
	enum snp_code code;
	uint64_t before;

	snp_world_open(&w);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 512, SNP_2M, false), SNP_OK);
	cr_assert_eq(snp_w_update(&w, 1537, SNP_W_ASID, 3, SNP_4K, false), SNP_OK);
	before = snp_digest(&w.m);
	cr_assert_eq(snp_rmpupdate(&w.m, &c->u, &code), PW_OK);
	cr_assert_eq(code, c->code, "%s", snp_code_name(code));
	cr_assert_eq(w.m.why.rule, c->rule, "%s", snp_rule_text(w.m.why.rule));
	cr_assert_eq(snp_digest(&w.m), before);
	snp_world_close(&w);
}

/* 2 MiB pages. */

Test(snp, a_2m_page_is_one_entry_for_its_512_frames)
{
	struct snp_world w;
	struct snp_entry e;

	snp_world_open(&w);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 1024, SNP_2M, false), SNP_OK);
	cr_assert_eq(w.m.pages[SNP_W_ASID], 512);
	cr_assert_eq(snp_read(&w.m, 1024 + 511, &e), SNP_GUEST_INVALID);
	cr_assert(e.asid == SNP_W_ASID && e.gfn == 1024 + 511 && e.size == SNP_2M);
	cr_assert_eq(snp_w_share(&w, 1024, SNP_2M), SNP_OK);
	cr_assert_eq(w.m.pages[SNP_W_ASID], 0);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 9, SNP_4K, false), SNP_OK, "its frames are free again");
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 1024, SNP_2M, false), SNP_OK,
		     "the first frame's own assignment is not in the way");
	snp_world_close(&w);
}

Test(snp, subpages_counts_the_other_frames_that_are_assigned)
{
	struct snp_world w;
	struct snp_entry e;

	snp_world_open(&w);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 1, SNP_4K, false), SNP_OK);
	snp_read(&w.m, 1024, &e);
	cr_assert_eq(e.subpages, 0);
	for (uint64_t i = 1; i < 5; i++)
		cr_assert_eq(snp_w_update(&w, 1024 + i, SNP_W_ASID, 1 + i, SNP_4K, i % 2), SNP_OK);
	snp_read(&w.m, 1024, &e);
	cr_assert_eq(e.subpages, 4);
	cr_assert_eq(snp_w_share(&w, 1026, SNP_4K), SNP_OK);
	snp_read(&w.m, 1024, &e);
	cr_assert_eq(e.subpages, 3);
	snp_read(&w.m, SNP_W_RMP, &e);
	cr_assert_eq(e.subpages, 511);
	snp_world_close(&w);
}

static enum snp_code psmash(struct snp_world *w, uint64_t pfn)
{
	struct snp_psmash p = { .pfn = pfn };
	enum snp_code code;

	cr_assert_eq(snp_psmash(&w->m, &p, &code), PW_OK);
	return code;
}

Test(snp, psmash_cuts_a_page_up_and_unsmash_joins_it)
{
	struct snp_world w;
	struct snp_entry e;
	uint64_t whole;
	const struct snp_cmd join = { .op = SNP_CMD_PAGE_UNSMASH, .pfn = 1024 };

	snp_world_open(&w);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 1024, SNP_2M, true), SNP_OK);
	whole = snp_digest(&w.m);
	cr_assert_eq(psmash(&w, 1024), SNP_OK);
	cr_assert_eq(snp_read(&w.m, 1024 + 77, &e), SNP_PRE_GUEST);
	cr_assert(e.size == SNP_4K && e.gfn == 1024 + 77 && e.asid == SNP_W_ASID);
	snp_read(&w.m, 1024, &e);
	cr_assert_eq(e.subpages, 511);
	cr_assert_eq(snp_w_do(&w, &join), SNP_SUCCESS);
	cr_assert_eq(snp_digest(&w.m), whole);
	cr_assert_eq(psmash(&w, 1024), SNP_OK);
	cr_assert_eq(snp_w_reclaim(&w, 1024 + 5, SNP_4K), SNP_SUCCESS);
	cr_assert_eq(snp_w_do(&w, &join), SNP_INVALID_PAGE_STATE, "one frame differs");
	snp_world_close(&w);
}

Test(snp, psmash_needs_a_whole_assigned_2m_page)
{
	struct snp_world w;
	struct snp_psmash guest = { .pfn = 1024, .caller_asid = 2 }, raced = { .pfn = 1024, .race = SNP_RACE_CPU };
	enum snp_code code;

	snp_world_open(&w);
	cr_assert_eq(psmash(&w, 1024), SNP_FAIL_PAGE);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 1024, SNP_4K, false), SNP_OK);
	cr_assert_eq(psmash(&w, 1024), SNP_FAIL_PAGE);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 1024, SNP_2M, false), SNP_OK);
	cr_assert_eq(psmash(&w, 1025), SNP_FAIL_INPUT);
	cr_assert_eq(psmash(&w, SNP_W_FRAMES), SNP_FAIL_INPUT);
	cr_assert_eq(snp_psmash(&w.m, &guest, &code), PW_OK);
	cr_assert_eq(code, SNP_FAIL_PERMISSION);
	cr_assert_eq(snp_psmash(&w.m, &raced, &code), PW_OK);
	cr_assert_eq(code, SNP_FAIL_INUSE);
	snp_world_close(&w);
}

Test(snp, psmash_keeps_validation_and_masks)
{
	struct snp_world w;
	struct snp_target t = { .asid = SNP_W_ASID, .gfn = 1024, .pfn = 1024, .size = SNP_2M };
	struct snp_entry e;
	enum snp_code code;
	bool unchanged;

	snp_world_open(&w);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 1024, SNP_2M, false), SNP_OK);
	cr_assert_eq(snp_w_validate(&w, 1024, SNP_W_ASID, 1024, SNP_2M, true, &unchanged), SNP_OK);
	cr_assert_eq(snp_rmpadjust(&w.m, &t, 2, 3, false, &code), PW_OK);
	cr_assert_eq(code, SNP_OK);
	cr_assert_eq(psmash(&w, 1024), SNP_OK);
	cr_assert_eq(snp_read(&w.m, 1024 + 300, &e), SNP_GUEST_VALID);
	cr_assert(e.perms[0] == 0x1f && e.perms[1] == 0 && e.perms[2] == 3);
	snp_world_close(&w);
}

/* The guest's side. */

static struct walk_case {
	enum snp_size entry, asked;
	unsigned asid;
	uint64_t gfn_off;
	enum snp_code code;
} walks[] = {
	{ SNP_4K, SNP_4K, SNP_W_ASID, 0, SNP_OK },
	{ SNP_2M, SNP_2M, SNP_W_ASID, 0, SNP_OK },
	{ SNP_4K, SNP_2M, SNP_W_ASID, 0, SNP_FAIL_SIZEMISMATCH },
	{ SNP_2M, SNP_4K, SNP_W_ASID, 0, SNP_NPF },
	{ SNP_4K, SNP_4K, SNP_W_ASID + 1, 0, SNP_NPF },
	{ SNP_4K, SNP_4K, SNP_W_ASID, 1, SNP_NPF },
	{ SNP_4K, SNP_2M, SNP_W_ASID, 1, SNP_NPF }, /* the walk comes before the sizes */
};

ParameterizedTestParameters(snp, pvalidate_needs_the_page_that_the_guest_means)
{
	return cr_make_param_array(struct walk_case, walks, PW_ARRAY_LEN(walks));
}
ParameterizedTest(struct walk_case *c, snp, pvalidate_needs_the_page_that_the_guest_means)
{
	struct snp_world w;
	bool unchanged;
	enum snp_code code;

	snp_world_open(&w);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 512, c->entry, false), SNP_OK);
	code = snp_w_validate(&w, 1024, c->asid, 512 + c->gfn_off, c->asked, true, &unchanged);
	cr_assert_eq(code, c->code, "%s", snp_code_name(code));
	cr_assert_eq(snp_state(&w.m, 1024), code == SNP_OK ? SNP_GUEST_VALID : SNP_GUEST_INVALID);
	snp_world_close(&w);
}

Test(snp, only_vmpl0_validates_and_lower_ones_grant_what_they_have)
{
	struct snp_world w;
	struct snp_target t = { .asid = SNP_W_ASID, .gfn = PFN, .pfn = PFN, .vmpl = 1 };
	enum snp_code code;
	bool unchanged = false;
	uint8_t perms = 0;

	snp_world_open(&w);
	snp_w_make(&w, PFN, SNP_GUEST_INVALID);
	cr_assert_eq(snp_pvalidate(&w.m, &t, true, &code, &unchanged), PW_OK);
	cr_assert_eq(code, SNP_GP);
	t.vmpl = 0;
	cr_assert_eq(snp_rmpadjust(&w.m, &t, 1, 1, false, &code), PW_OK);
	cr_assert_eq(code, SNP_VC, "not validated");
	cr_assert_eq(snp_pvalidate(&w.m, &t, true, &code, &unchanged), PW_OK);
	cr_assert_eq(code, SNP_OK);
	cr_assert_eq(snp_rmpadjust(&w.m, &t, 0, 1, false, &code), PW_OK);
	cr_assert_eq(code, SNP_FAIL_PERMISSION, "its own level");
	cr_assert_eq(snp_rmpadjust(&w.m, &t, 4, 1, false, &code), PW_OK);
	cr_assert_eq(code, SNP_FAIL_INPUT);
	cr_assert_eq(snp_rmpadjust(&w.m, &t, 1, 3, true, &code), PW_OK);
	cr_assert_eq(code, SNP_OK);
	cr_assert_eq(snp_rmpquery(&w.m, &t, 1, &perms), SNP_OK);
	cr_assert_eq(perms, 3);
	t.vmpl = 1;
	cr_assert_eq(snp_rmpadjust(&w.m, &t, 2, 7, false, &code), PW_OK);
	cr_assert_eq(code, SNP_FAIL_PERMISSION, "VMPL1 cannot execute");
	cr_assert_eq(snp_rmpadjust(&w.m, &t, 2, 1, false, &code), PW_OK);
	cr_assert_eq(code, SNP_OK);
	cr_assert_eq(snp_read_raw(&w.m, PFN).hi, 0x0001031f);
	cr_assert_eq(snp_read_raw(&w.m, PFN).lo >> 61 & 1, 1, "the VMSA bit is VMPL0's alone");
	snp_world_close(&w);
}

Test(snp, accesses_fault_where_the_entry_says_so)
{
	struct snp_world w;
	struct snp_target t = { .asid = SNP_W_ASID, .gfn = PFN, .pfn = PFN };
	const uint64_t rmp = SNP_PF_RMP | SNP_PF_FINAL;
	uint64_t error;

	snp_world_open(&w);
	cr_assert_eq(snp_access(&w.m, SNP_HOST_WRITE, PFN, &t, &error), SNP_NO_FAULT);
	cr_assert_eq(snp_access(&w.m, SNP_GUEST_WRITE_SHARED, PFN, &t, &error), SNP_NO_FAULT);
	cr_assert_eq(snp_access(&w.m, SNP_GUEST_PRIVATE, PFN, &t, &error), SNP_GUEST_NPF);
	snp_w_make(&w, PFN, SNP_GUEST_INVALID);
	cr_assert_eq(snp_access(&w.m, SNP_HOST_READ, PFN, &t, &error), SNP_NO_FAULT);
	cr_assert_eq(snp_access(&w.m, SNP_HOST_WRITE, PFN, &t, &error), SNP_HOST_PF);
	cr_assert_eq(error, SNP_PF_RMP);
	cr_assert_eq(snp_access(&w.m, SNP_HOST_WRITE, PFN + 1, &t, &error), SNP_NO_FAULT);
	cr_assert_eq(snp_access(&w.m, SNP_HOST_WRITE_2M, PFN + 1, &t, &error), SNP_HOST_PF);
	cr_assert_eq(snp_access(&w.m, SNP_DEVICE, PFN, &t, &error), SNP_IOMMU_FAULT);
	cr_assert_eq(snp_access(&w.m, SNP_GUEST_WRITE_SHARED, PFN, &t, &error), SNP_GUEST_NPF);
	cr_assert_eq(error, rmp);
	cr_assert_eq(snp_access(&w.m, SNP_GUEST_PRIVATE, PFN, &t, &error), SNP_GUEST_VC);
	t.size = SNP_2M;
	cr_assert_eq(snp_access(&w.m, SNP_GUEST_PRIVATE, PFN, &t, &error), SNP_GUEST_NPF);
	cr_assert_eq(error, rmp | SNP_PF_ENC);
	t = (struct snp_target){ .asid = SNP_W_ASID, .gfn = 1024, .pfn = 1024 };
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 1024, SNP_2M, false), SNP_OK);
	cr_assert_eq(snp_access(&w.m, SNP_GUEST_PRIVATE, 1024, &t, &error), SNP_GUEST_NPF);
	cr_assert_eq(error, rmp | SNP_PF_ENC | SNP_PF_SIZEM);
	snp_world_close(&w);
}

Test(snp, one_gfn_valid_on_two_frames_is_found)
{
	struct snp_world w;
	uint64_t one, other;
	bool found, unchanged;

	snp_world_open(&w);
	cr_assert_eq(snp_w_update(&w, 1024, SNP_W_ASID, 512, SNP_2M, false), SNP_OK);
	cr_assert_eq(snp_w_validate(&w, 1024, SNP_W_ASID, 512, SNP_2M, true, &unchanged), SNP_OK);
	cr_assert_eq(snp_w_update(&w, PFN, SNP_W_ASID, 600, SNP_4K, false), SNP_OK);
	cr_assert_eq(snp_find_double(&w.m, &found, &one, &other), PW_OK);
	cr_assert_not(found);
	cr_assert_eq(snp_w_validate(&w, PFN, SNP_W_ASID, 600, SNP_4K, true, &unchanged), SNP_OK);
	cr_assert_eq(snp_find_double(&w.m, &found, &one, &other), PW_OK);
	cr_assert(found);
	cr_assert_eq(one, 1024 + 88);
	cr_assert_eq(other, PFN);
	snp_world_close(&w);
}

Test(snp, rmpread_shows_the_entry_to_the_host_alone)
{
	struct snp_world w;
	struct snp_entry e;

	snp_world_open(&w);
	snp_w_make(&w, PFN, SNP_PRE_GUEST);
	cr_assert_eq(snp_rmpread(&w.m, PFN, 0, &e), SNP_OK);
	cr_assert(e.asid == SNP_W_ASID && e.immutable && e.lock);
	cr_assert_eq(snp_rmpread(&w.m, PFN, 1, &e), SNP_FAIL_PERMISSION);
	cr_assert_eq(snp_rmpread(&w.m, SNP_W_FRAMES, 0, &e), SNP_FAIL_INPUT);
	snp_world_close(&w);
}
