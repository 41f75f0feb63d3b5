#include "engine/arch/snp.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <string.h>

#include "tests/lib/snp_world.h"

#define CTX  SNP_W_CONTEXT
#define ASID SNP_W_ASID

static void hex(const uint8_t digest[SNP_DIGEST], char out[2 * SNP_DIGEST + 1])
{
	for (size_t i = 0; i < SNP_DIGEST; i++)
		snprintf(out + 2 * i, 3, "%02x", digest[i]);
}

static void expect_digest(const uint8_t digest[SNP_DIGEST], const char *expected)
{
	char text[2 * SNP_DIGEST + 1];

	hex(digest, text);
	cr_assert_str_eq(text, expected);
}

/* The answer, and the rule that the refusal names. */
/* A command without pages is about its guest, or that guest's agent; MD_PLACE is about the entry's frame. */
static void names_the_culprit(const struct snp_world *w, const struct snp_cmd *c)
{
	const struct snp_why *why = &w->m.why;
	bool of_agent = c->has_agent && snp_guest(&w->m, c->context) &&
			(why->rule == SNP_RULE_IN_RMP || why->rule == SNP_RULE_NOT_CONTEXT);
	bool is_pageless = c->op == SNP_CMD_DECOMMISSION || c->op == SNP_CMD_ACTIVATE ||
			   c->op == SNP_CMD_LAUNCH_START || c->op == SNP_CMD_LAUNCH_FINISH;

	if (is_pageless && why->rule != SNP_RULE_RESERVED && why->rule != SNP_RULE_PLATFORM &&
	    !(c->has_agent && why->rule == SNP_RULE_POLICY))
		cr_expect_eq(why->pfn, of_agent ? c->agent : c->context, "%s: frame %lu", snp_command_name(c->op),
			     why->pfn);
	if (why->rule == SNP_RULE_MD_PLACE)
		cr_expect_eq(why->pfn, c->md, "%s: frame %lu", snp_command_name(c->op), why->pfn);
}

static void refused(struct snp_world *w, struct snp_cmd c, enum snp_status status, enum snp_rule rule)
{
	cr_expect_eq(snp_w_do(w, &c), status, "%s: %s", snp_command_name(c.op), snp_rule_text(rule));
	cr_expect_eq(w->m.why.rule, rule, "%s: %s", snp_command_name(c.op), snp_rule_text(w->m.why.rule));
	names_the_culprit(w, &c);
}

/* The launch digest: vectors of the reference. */

static void fill_pattern(uint8_t page[SNP_PAGE])
{
	for (size_t i = 0; i < SNP_PAGE; i++)
		page[i] = (uint8_t)i;
}

static void put_le(uint8_t *at, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

/* {offset, selector, attributes, limit}, base 0 but for CS */
static const struct segment {
	unsigned at, selector, attrib;
	uint64_t base;
} segments[] = {
	{ 0x00, 0, 0x93, 0 }, { 0x10, 0xf000, 0x9b, 0xffff0000 },
	{ 0x20, 0, 0x93, 0 }, { 0x30, 0, 0x93, 0 },
	{ 0x40, 0, 0x93, 0 }, { 0x50, 0, 0x93, 0 },
	{ 0x60, 0, 0, 0 },    { 0x70, 0, 0x82, 0 },
	{ 0x80, 0, 0, 0 },    { 0x90, 0, 0x8b, 0 },
};

static void fill_vmsa(uint8_t page[SNP_PAGE])
{
	memset(page, 0, SNP_PAGE);
	for (size_t i = 0; i < PW_ARRAY_LEN(segments); i++) {
		put_le(page + segments[i].at, segments[i].selector, 2);
		put_le(page + segments[i].at + 2, segments[i].attrib, 2);
		put_le(page + segments[i].at + 4, 0xffff, 4);
		put_le(page + segments[i].at + 8, segments[i].base, 8);
	}
	put_le(page + 0xd0, 0x1000, 8);
	put_le(page + 0x148, 0x40, 8);
	put_le(page + 0x158, 0x10, 8);
	put_le(page + 0x160, 0x400, 8);
	put_le(page + 0x168, 0xffff0ff0, 8);
	put_le(page + 0x170, 2, 8);
	put_le(page + 0x178, 0xfff0, 8);
	put_le(page + 0x268, 0x0007040600070406, 8);
	put_le(page + 0x310, 0x800f12, 8);
	put_le(page + 0x3b0, 1, 8);
	put_le(page + 0x3e8, 1, 8);
	put_le(page + 0x408, 0x1f80, 4);
	put_le(page + 0x410, 0x37f, 2);
}

Test(snp_fw, single_pages_measure_as_published)
{
	static const uint8_t zeros[SNP_PAGE];
	static const struct {
		enum snp_page_type type;
		const char *digest;
	} cases[] = {
		{ SNP_TYPE_ZERO, "4bd4147976a1e7554c1c778a781affc1c672f1965a727ba16084989b7e356044"
				 "a28bbe585a2f75dac9356fa5ab78f061" },
		{ SNP_TYPE_NORMAL, "e6e4d78904d9d6b33c0cbfd121998fd2d11744dae606b3aee35e2a45d6869b60"
				   "b35c63928a9232bef72d6be386f48ec6" },
		{ SNP_TYPE_UNMEASURED, "81475a112c0223cebe1ccb31a0aa2567772871200b33515a3cbbd5ed6a68a8e6"
				       "30902dd83469ea6553554bfb67111fad" },
	};
	uint8_t sha[SNP_DIGEST];

	snp_sha384(zeros, sizeof zeros, sha);
	expect_digest(sha, "c0e59a3e3ffbd3b5c75428fb36432facabc745944296ff515f737c4fef4efc64"
			   "586809f7a16f56354a1eaecf2aa8d774");
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct snp_measured page = { .type = cases[i].type, .gfn = 1, .content = zeros };
		uint8_t digest[SNP_DIGEST] = { 0 };

		snp_digest_extend(digest, &page);
		expect_digest(digest, cases[i].digest);
	}
}

/* NORMAL, SECRETS, CPUID, VMSA, launched into the model. The VMSA's TSC fields are the host's and do not count. */
static const char *const chain[] = {
	"79d7e453f7b541d04f7f51cccc6f4acca624b7a97430595dd7c98bd8c7a897656a91c611473f137680bd00e9e72e47c4",
	"6224a11dd5d0cadc2a60dbaa380df6f7c435401229738968752ed28637ff35cbc94763ab801f0304619436037ac9b304",
	"8c838d44027cf80826e12aa1b6f38a4247af70d815363fd7361babb1e271abc51821026b291f9d48551eeed6441ec4d1",
	"7b2b9454cec8e537008baf7ec5f6c9ca3c13261d0f3b9925f1322ff2cff139d1958b2ab0b9122abed8c85f893fed3c76",
};

Test(snp_fw, a_launch_measures_as_published)
{
	uint8_t pattern[SNP_PAGE], vmsa[SNP_PAGE];
	struct snp_launch_page pages[] = {
		{ .pfn = 700, .gfn = 0xfffff, .type = SNP_TYPE_NORMAL, .content = pattern, .content_len = SNP_PAGE },
		{ .pfn = 701, .gfn = 0x80d, .type = SNP_TYPE_SECRETS },
		{ .pfn = 702, .gfn = 0x80e, .type = SNP_TYPE_CPUID },
		{ .pfn = 703, .gfn = 0xfffffffff, .type = SNP_TYPE_VMSA, .content = vmsa, .content_len = SNP_PAGE },
	};
	struct snp_world w;
	uint8_t sha[SNP_DIGEST];
	enum snp_status status;
	size_t done;

	fill_pattern(pattern);
	fill_vmsa(vmsa);
	snp_sha384(vmsa, sizeof vmsa, sha);
	expect_digest(sha, "77920c4c629ff47e90c0e174fc1ad0eb6fa664f88cd4739488058a8c6cb1a77b"
			   "3856f55378e9518d0da99452d51c553a");
	memset(vmsa + 0x2f0, 0xee, 16);
	snp_world_open(&w);
	snp_w_launch(&w, CTX, ASID);
	for (size_t i = 0; i < PW_ARRAY_LEN(pages); i++) {
		cr_assert_eq(snp_launch_pages(&w.m, CTX, &pages[i], 1, &done, &status), PW_OK);
		cr_assert(done == 1 && status == SNP_SUCCESS);
		expect_digest(snp_guest(&w.m, CTX)->digest, chain[i]);
	}
	cr_assert_eq(snp_read_raw(&w.m, 703).lo >> 61 & 1, 1, "and the page is a VMSA");
	cr_assert_eq(snp_w_do(&w, &(struct snp_cmd){ .op = SNP_CMD_LAUNCH_FINISH, .context = CTX }), SNP_SUCCESS);
	snp_world_close(&w);
}

Test(snp_fw, a_2m_update_measures_as_512_small_ones)
{
	struct snp_world w;
	struct snp_cmd c = { .op = SNP_CMD_LAUNCH_UPDATE,
			     .context = CTX,
			     .pfn = 1024,
			     .size = SNP_2M,
			     .type = SNP_TYPE_NORMAL,
			     .fill = 7,
			     .perms = { 0, 1, 2, 3 } };
	uint8_t digest[SNP_DIGEST] = { 0 }, content[SNP_PAGE];
	struct snp_measured page = { .type = SNP_TYPE_NORMAL, .perms = { 0, 1, 2, 3 }, .content = content };

	memset(content, 7, sizeof content);
	for (page.gfn = 512; page.gfn < 1024; page.gfn++)
		snp_digest_extend(digest, &page);
	snp_world_open(&w);
	snp_w_launch(&w, CTX, ASID);
	cr_assert_eq(snp_w_update(&w, 1024, ASID, 512, SNP_2M, true), SNP_OK);
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_arr_eq(snp_guest(&w.m, CTX)->digest, digest, SNP_DIGEST);
	cr_assert_eq(snp_read_raw(&w.m, 1024).hi, 0x0302011f);
	snp_world_close(&w);
}

Test(snp_fw, an_imi_page_extends_both_chains_and_an_imi_guest_takes_no_others)
{
	struct snp_world w;
	struct snp_cmd start = {
		.op = SNP_CMD_LAUNCH_START, .context = CTX, .policy = SNP_W_POLICY, .imi_guest = true
	};
	struct snp_cmd c = { .op = SNP_CMD_LAUNCH_UPDATE, .context = CTX, .pfn = 700, .type = SNP_TYPE_ZERO };
	const struct snp_guest *g;

	snp_world_open(&w);
	cr_assert_eq(snp_w_update(&w, CTX, 0, 0, SNP_4K, true), SNP_OK);
	cr_assert_eq(snp_w_do(&w, &(struct snp_cmd){ .op = SNP_CMD_GCTX_CREATE, .context = CTX }), SNP_SUCCESS);
	cr_assert_eq(snp_w_do(&w, &start), SNP_SUCCESS);
	cr_assert_eq(snp_w_do(&w, &(struct snp_cmd){ .op = SNP_CMD_ACTIVATE, .context = CTX, .asid = ASID }), 0);
	cr_assert_eq(snp_w_update(&w, 700, ASID, 1, SNP_4K, true), SNP_OK);
	refused(&w, c, SNP_INVALID_PARAM, SNP_RULE_IMI);
	cr_expect_eq(w.m.why.pfn, 700);
	c.imi = true;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	g = snp_guest(&w.m, CTX);
	cr_assert_arr_eq(g->digest, g->imi_digest, SNP_DIGEST);
	refused(&w, (struct snp_cmd){ .op = SNP_CMD_LAUNCH_FINISH, .context = CTX }, SNP_INVALID_GUEST_STATE,
		SNP_RULE_GUEST_STATE);
	snp_world_close(&w);
}

/* The order of checks: each case has all the faults of those below it that it can have. */

static const struct order {
	const char *what;
	struct snp_cmd c;
	enum snp_status status;
	enum snp_rule rule; /* what the refusal says */
} orders[] = {
	/* contexts: 256 RUNNING with ASID 5, 257 LAUNCH without, 258 INIT, 259 LAUNCH with ASID 6, 260 Firmware */
	{ "reserved bits first",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .reserved = true, .context = SNP_W_RMP },
	  SNP_INVALID_PARAM,
	  SNP_RULE_RESERVED },
	{ "the RMP's own frame",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = SNP_W_RMP },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP },
	{ "no context",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 260, .pfn = SNP_W_RMP },
	  SNP_INVALID_GUEST,
	  SNP_RULE_NOT_CONTEXT },
	{ "no context: past the RMP",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = SNP_W_FRAMES },
	  SNP_INVALID_GUEST,
	  SNP_RULE_NOT_CONTEXT },
	{ "page in the RMP",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 258, .pfn = SNP_W_RMP },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP },
	{ "page state",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 258, .pfn = 800, .size = SNP_2M },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE },
	{ "page size",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 258, .pfn = 768, .size = SNP_2M },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_SIZE },
	{ "alignment",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 258, .pfn = 1030, .size = SNP_2M },
	  SNP_INVALID_ADDRESS,
	  SNP_RULE_ALIGN },
	{ "large VMSA",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 258, .pfn = 1024, .size = SNP_2M, .type = 2 },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_TYPE_SIZE },
	{ "type",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 258, .pfn = 768, .type = 7 },
	  SNP_INVALID_PARAM,
	  SNP_RULE_TYPE },
	{ "type 0", { .op = SNP_CMD_LAUNCH_UPDATE, .context = 258, .pfn = 768 }, SNP_INVALID_PARAM, SNP_RULE_TYPE },
	{ "guest state",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 258, .pfn = 768, .type = 1 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE },
	{ "running",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 256, .pfn = 768, .type = 1 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE },
	{ "no ASID",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 257, .pfn = 768, .type = 1 },
	  SNP_INACTIVE,
	  SNP_RULE_NO_ASID },
	{ "owner",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 259, .pfn = 768, .type = 6, .fill = 255 },
	  SNP_INVALID_PAGE_OWNER,
	  SNP_RULE_OWNER },
	{ "CPUID page",
	  { .op = SNP_CMD_LAUNCH_UPDATE, .context = 259, .pfn = 769, .type = 6, .fill = 255 },
	  SNP_INVALID_PARAM,
	  SNP_RULE_CPUID },

	{ "create: state", { .op = SNP_CMD_GCTX_CREATE, .context = 1024 }, SNP_INVALID_PAGE_STATE, SNP_RULE_STATE },
	{ "create: size",
	  { .op = SNP_CMD_GCTX_CREATE, .context = 1536 },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_CONTEXT_SIZE },
	{ "create: in the RMP",
	  { .op = SNP_CMD_GCTX_CREATE, .context = SNP_W_RMP + 3 },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP },

	{ "start: state",
	  { .op = SNP_CMD_LAUNCH_START, .context = 257, .policy = 0 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE },
	{ "start: policy bit 17",
	  { .op = SNP_CMD_LAUNCH_START, .context = 258, .policy = 0x10000 },
	  SNP_POLICY_FAILURE,
	  SNP_RULE_POLICY },
	{ "start: SMT",
	  { .op = SNP_CMD_LAUNCH_START, .context = 258, .policy = 0x20000 },
	  SNP_POLICY_FAILURE,
	  SNP_RULE_POLICY },
	{ "start: newer minor",
	  { .op = SNP_CMD_LAUNCH_START, .context = 258, .policy = 0x30138 },
	  SNP_POLICY_FAILURE,
	  SNP_RULE_POLICY },
	{ "start: newer major",
	  { .op = SNP_CMD_LAUNCH_START, .context = 258, .policy = 0x30200 },
	  SNP_POLICY_FAILURE,
	  SNP_RULE_POLICY },
	{ "start: reserved",
	  { .op = SNP_CMD_LAUNCH_START, .context = 258, .policy = 0x230000 },
	  SNP_POLICY_FAILURE,
	  SNP_RULE_POLICY },
	{ "start: agent in the RMP",
	  { .op = SNP_CMD_LAUNCH_START, .context = 258, .has_agent = true, .agent = SNP_W_RMP },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP },
	{ "start: agent unknown",
	  { .op = SNP_CMD_LAUNCH_START, .context = 258, .has_agent = true, .agent = 800 },
	  SNP_INVALID_GUEST,
	  SNP_RULE_NOT_CONTEXT },
	{ "start: agent not allowed",
	  { .op = SNP_CMD_LAUNCH_START, .context = 258, .policy = 0x30000, .has_agent = true, .agent = 256 },
	  SNP_POLICY_FAILURE,
	  SNP_RULE_POLICY },

	{ "activate: state",
	  { .op = SNP_CMD_ACTIVATE, .context = 258, .asid = 5000 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE },
	{ "activate: no counter",
	  { .op = SNP_CMD_ACTIVATE, .context = 257, .asid = 2048 },
	  SNP_INVALID_ASID,
	  SNP_RULE_ASID_RANGE },
	{ "activate: pages",
	  { .op = SNP_CMD_ACTIVATE, .context = 256, .asid = 6 },
	  SNP_INVALID_CONFIG,
	  SNP_RULE_ASID_PAGES },
	{ "activate: ASID 0",
	  { .op = SNP_CMD_ACTIVATE, .context = 257, .asid = 0 },
	  SNP_INVALID_ASID,
	  SNP_RULE_ASID_RANGE },
	{ "activate: too high",
	  { .op = SNP_CMD_ACTIVATE, .context = 257, .asid = 16 },
	  SNP_INVALID_ASID,
	  SNP_RULE_ASID_RANGE },
	{ "activate: taken",
	  { .op = SNP_CMD_ACTIVATE, .context = 256, .asid = 5 },
	  SNP_ASID_OWNED,
	  SNP_RULE_ASID_TAKEN },
	{ "activate: has one", { .op = SNP_CMD_ACTIVATE, .context = 256, .asid = 8 }, SNP_ACTIVE, SNP_RULE_HAS_ASID },
	{ "activate: dirty",
	  { .op = SNP_CMD_ACTIVATE, .context = 257, .asid = 8 },
	  SNP_DFFLUSH_REQUIRED,
	  SNP_RULE_ASID_DIRTY },

	{ "finish: state",
	  { .op = SNP_CMD_LAUNCH_FINISH, .context = 258 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE },
	{ "finish: no ASID", { .op = SNP_CMD_LAUNCH_FINISH, .context = 257 }, SNP_INACTIVE, SNP_RULE_NO_ASID },

	{ "reclaim: reserved",
	  { .op = SNP_CMD_PAGE_RECLAIM, .reserved = true, .pfn = TREE_PAGES },
	  SNP_INVALID_PARAM,
	  SNP_RULE_RESERVED },
	{ "reclaim: no memory",
	  { .op = SNP_CMD_PAGE_RECLAIM, .pfn = TREE_PAGES },
	  SNP_INVALID_ADDRESS,
	  SNP_RULE_ADDRESS },
	{ "reclaim: RMP",
	  { .op = SNP_CMD_PAGE_RECLAIM, .pfn = SNP_W_RMP, .size = SNP_2M },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP },
	{ "reclaim: size",
	  { .op = SNP_CMD_PAGE_RECLAIM, .pfn = 800, .size = SNP_2M },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_SIZE },
	{ "reclaim: alignment",
	  { .op = SNP_CMD_PAGE_RECLAIM, .pfn = 1025, .size = SNP_2M },
	  SNP_INVALID_ADDRESS,
	  SNP_RULE_ALIGN },
	{ "reclaim: HV-Fixed",
	  { .op = SNP_CMD_PAGE_RECLAIM, .pfn = SNP_W_FIXED },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE },
	{ "reclaim: Default",
	  { .op = SNP_CMD_PAGE_RECLAIM, .pfn = SNP_W_FRAMES },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE },

	{ "move: RMP before context",
	  { .op = SNP_CMD_PAGE_MOVE, .context = 260, .pfn = SNP_W_RMP },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP },
	{ "move: context",
	  { .op = SNP_CMD_PAGE_MOVE, .context = 260, .pfn = 768, .dst = 1024 },
	  SNP_INVALID_GUEST,
	  SNP_RULE_NOT_CONTEXT },
	{ "move: sizes",
	  { .op = SNP_CMD_PAGE_MOVE, .context = 258, .pfn = 768, .dst = 1024 },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_SIZE },
	{ "move: state",
	  { .op = SNP_CMD_PAGE_MOVE, .context = 258, .pfn = 800, .dst = 801 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE },
	{ "move: no ASID",
	  { .op = SNP_CMD_PAGE_MOVE, .context = 257, .pfn = 800, .dst = 801 },
	  SNP_INACTIVE,
	  SNP_RULE_NO_ASID },
	{ "move: pair",
	  { .op = SNP_CMD_PAGE_MOVE, .context = 259, .pfn = 768, .dst = 801 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE },
	{ "move: owner of one",
	  { .op = SNP_CMD_PAGE_MOVE, .context = 259, .pfn = 769, .dst = 768 },
	  SNP_INVALID_PAGE_OWNER,
	  SNP_RULE_OWNER },
	{ "move: owner of metadata",
	  { .op = SNP_CMD_PAGE_MOVE, .context = 259, .pfn = 261, .dst = 260 },
	  SNP_INVALID_PAGE_OWNER,
	  SNP_RULE_OWNER },

	{ "metadata: state",
	  { .op = SNP_CMD_MD_INIT, .context = 258, .pfn = 800 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE },
	{ "metadata: guest state",
	  { .op = SNP_CMD_MD_INIT, .context = 258, .pfn = 260 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE },
	{ "metadata: alignment",
	  { .op = SNP_CMD_MD_INIT, .context = 258, .pfn = 1537 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_ALIGN },
	{ "metadata: RMP",
	  { .op = SNP_CMD_MD_INIT, .context = 259, .pfn = SNP_W_RMP },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP },

	{ "unsmash: alignment", { .op = SNP_CMD_PAGE_UNSMASH, .pfn = 1025 }, SNP_INVALID_PARAM, SNP_RULE_ALIGN },
	{ "unsmash: RMP", { .op = SNP_CMD_PAGE_UNSMASH, .pfn = SNP_W_RMP }, SNP_INVALID_ADDRESS, SNP_RULE_IN_RMP },
	{ "unsmash: large already",
	  { .op = SNP_CMD_PAGE_UNSMASH, .pfn = 1024 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_UNSMASH },
	{ "unsmash: past the RMP",
	  { .op = SNP_CMD_PAGE_UNSMASH, .pfn = SNP_W_FRAMES },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_UNSMASH },

	{ "request: response",
	  { .op = SNP_CMD_GUEST_REQUEST, .context = 258, .pfn = 1024, .dst = 800 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE },
	{ "request: size",
	  { .op = SNP_CMD_GUEST_REQUEST, .context = 258, .pfn = 1024, .dst = 260 },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_NOT_4K },
	{ "request: size of the response",
	  { .op = SNP_CMD_GUEST_REQUEST, .context = 258, .pfn = 800, .dst = 1536 },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_NOT_4K },
	{ "request: state",
	  { .op = SNP_CMD_GUEST_REQUEST, .context = 259, .pfn = 800, .dst = 260 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE },
	{ "status: page",
	  { .op = SNP_CMD_GUEST_STATUS, .context = 259, .pfn = 800 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE },

	{ "set state: length",
	  { .op = SNP_CMD_PAGE_SET_STATE, .length = true, .reserved = true },
	  SNP_INVALID_LEN,
	  SNP_RULE_LENGTH },
	{ "set state: reserved",
	  { .op = SNP_CMD_PAGE_SET_STATE, .reserved = true },
	  SNP_INVALID_PARAM,
	  SNP_RULE_RESERVED },
	{ "init twice", { .op = SNP_CMD_INIT }, SNP_INVALID_PLATFORM_STATE, SNP_RULE_PLATFORM },
	{ "shutdown with ASIDs not clean", { .op = SNP_CMD_SHUTDOWN }, SNP_DFFLUSH_REQUIRED, SNP_RULE_ASID_DIRTY },
};

/* Commands that work on a page, which their refusals then name. */
static bool has_page(enum snp_command op)
{
	switch ((int)op) {
	case SNP_CMD_GUEST_STATUS:
	case SNP_CMD_LAUNCH_UPDATE:
	case SNP_CMD_GUEST_REQUEST:
	case SNP_CMD_PAGE_MOVE:
	case SNP_CMD_MD_INIT:
	case SNP_CMD_PAGE_RECLAIM:
	case SNP_CMD_PAGE_UNSMASH:
	case SNP_CMD_SWAP_OUT:
	case SNP_CMD_SWAP_IN: return true;
	default: return false;
	}
}

/* The frame that is at fault by that rule; the destination is where it alone can be. */
static uint64_t frame_at_fault(const struct snp_cmd *c, enum snp_rule rule, bool is_dst)
{
	if (rule == SNP_RULE_NOT_CONTEXT || rule == SNP_RULE_CONTEXT_SIZE || c->op == SNP_CMD_GCTX_CREATE)
		return c->context;
	if (rule == SNP_RULE_IN_RMP && c->context >= SNP_W_RMP && c->context < SNP_W_FRAMES)
		return c->context;
	if (rule == SNP_RULE_MD_PLACE)
		return c->md;
	return is_dst ? c->dst : c->pfn;
}

static void open_orders(struct snp_world *w)
{
	const struct snp_cmd finish = { .op = SNP_CMD_LAUNCH_FINISH };
	struct snp_cmd c = finish;

	snp_world_open(w);
	snp_w_launch(w, 300, 8); /* leaves ASID 8 dirty */
	c.context = 300;
	cr_assert_eq(snp_w_do(w, &c), SNP_SUCCESS);
	c.op = SNP_CMD_DECOMMISSION;
	cr_assert_eq(snp_w_do(w, &c), SNP_SUCCESS);
	snp_w_launch(w, 256, 5);
	c = finish;
	c.context = 256;
	cr_assert_eq(snp_w_do(w, &c), SNP_SUCCESS);
	snp_w_make(w, 257, SNP_CONTEXT);
	c = (struct snp_cmd){ .op = SNP_CMD_LAUNCH_START, .context = 257, .policy = SNP_W_POLICY };
	cr_assert_eq(snp_w_do(w, &c), SNP_SUCCESS);
	snp_w_make(w, 258, SNP_CONTEXT);
	snp_w_launch(w, 259, 6);
	snp_w_make(w, 260, SNP_FIRMWARE);
	snp_w_make(w, 261, SNP_METADATA);
	snp_w_make(w, 768, SNP_PRE_GUEST);
	cr_assert_eq(snp_w_update(w, 769, 6, 769, SNP_4K, true), SNP_OK);
	cr_assert_eq(snp_w_update(w, 1024, 5, 1024, SNP_2M, true), SNP_OK);
	cr_assert_eq(snp_w_update(w, 1536, 0, 0, SNP_2M, true), SNP_OK);
	cr_assert_eq(snp_w_share(w, 768 + 32, SNP_4K), SNP_OK);
	snp_w_reclaim(w, 768, SNP_4K); /* ASID 5 keeps pages; a page of ASID 5 stays Pre-Guest below */
	cr_assert_eq(snp_w_update(w, 768, 5, 768, SNP_4K, true), SNP_OK);
}

static void check_order(const struct order *c)
{
	struct snp_world w;
	enum snp_status status;
	uint64_t before;

	open_orders(&w);
	before = snp_digest(&w.m);
	if (c->c.op == SNP_CMD_ACTIVATE && c->status == SNP_ASID_OWNED) { /* its pages would be seen before */
		cr_assert_eq(snp_w_reclaim(&w, 768, SNP_4K), SNP_SUCCESS);
		cr_assert_eq(snp_w_share(&w, 768, SNP_4K), SNP_OK);
		cr_assert_eq(snp_w_reclaim(&w, 1024, SNP_2M), SNP_SUCCESS);
		cr_assert_eq(snp_w_share(&w, 1024, SNP_2M), SNP_OK);
		before = snp_digest(&w.m);
	}
	status = snp_w_do(&w, &c->c);
	cr_assert_eq(status, c->status, "%s: %s, not %s", c->what, snp_status_name(status), snp_status_name(c->status));
	cr_assert_eq(snp_digest(&w.m), before);
	cr_assert_eq(w.m.why.rule, c->rule, "%s: %s", c->what, snp_rule_text(w.m.why.rule));
	if (has_page(c->c.op) || c->c.op == SNP_CMD_GCTX_CREATE)
		cr_assert_eq(w.m.why.pfn, frame_at_fault(&c->c, c->rule, strstr(c->what, "response") != NULL),
			     "%s: frame %" PRIu64, c->what, w.m.why.pfn);
	names_the_culprit(&w, &c->c);
	snp_world_close(&w);
}

Test(snp_fw, the_first_fault_decides_and_nothing_changes)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(orders); i++)
		check_order(&orders[i]);
}

Test(snp_fw, no_command_works_before_init)
{
	struct snp_world w;
	struct snp_cmd c = { .op = SNP_CMD_SHUTDOWN, .context = CTX, .pfn = 512, .dst = 513 };

	snp_world_open(&w);
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS, "once more is no error");
	for (c.op = SNP_CMD_INIT; c.op < SNP_COMMAND_COUNT; c.op++) {
		if (c.op == SNP_CMD_INIT || c.op == SNP_CMD_INIT_EX || c.op == SNP_CMD_SHUTDOWN ||
		    c.op == SNP_CMD_SHUTDOWN_EX)
			continue;
		cr_assert_eq(snp_w_do(&w, &c), SNP_INVALID_PLATFORM_STATE, "%s", snp_command_name(c.op));
		cr_assert_eq(w.m.why.rule, SNP_RULE_PLATFORM, "%s", snp_command_name(c.op));
		cr_assert(!has_page(c.op) || w.m.why.pfn == 512, "%s", snp_command_name(c.op));
	}
	c.op = SNP_CMD_INIT_EX;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	snp_world_close(&w);
}

/* What many commands check alike, and which frame the refusal names. */

Test(snp_fw, reserved_bits_are_refused_by_all_commands_that_have_some)
{
	struct snp_world w;

	snp_world_open(&w);
	for (enum snp_command op = (enum snp_command)0; op < SNP_COMMAND_COUNT; op++)
		if (op != SNP_CMD_DF_FLUSH) {
			struct snp_cmd c = { .op = op, .reserved = true, .context = 1, .pfn = 2, .dst = 3 };

			refused(&w, c, SNP_INVALID_PARAM, SNP_RULE_RESERVED);
			cr_expect(!has_page(op) || w.m.why.pfn == 2, "%s", snp_command_name(op));
		}
	snp_world_close(&w);
}

Test(snp_fw, contexts_and_pages_are_not_frames_of_the_rmp)
{
	static const struct {
		enum snp_command op;
		bool guest, page, dst; /* whether it names them */
	} commands[] = {
		{ SNP_CMD_GCTX_CREATE, false, false, false },  { SNP_CMD_DECOMMISSION, true, false, false },
		{ SNP_CMD_GUEST_STATUS, true, true, false },   { SNP_CMD_LAUNCH_START, true, false, false },
		{ SNP_CMD_ACTIVATE, true, false, false },      { SNP_CMD_LAUNCH_UPDATE, true, true, false },
		{ SNP_CMD_LAUNCH_FINISH, true, false, false }, { SNP_CMD_GUEST_REQUEST, true, true, true },
		{ SNP_CMD_PAGE_MOVE, true, true, true },       { SNP_CMD_MD_INIT, true, true, false },
		{ SNP_CMD_SWAP_OUT, true, true, true },        { SNP_CMD_SWAP_IN, true, true, true },
	};
	struct snp_world w;

	snp_world_open(&w);
	snp_w_launch(&w, CTX, ASID);
	for (size_t i = 0; i < PW_ARRAY_LEN(commands); i++) {
		struct snp_cmd c = { .op = commands[i].op, .context = SNP_W_RMP, .pfn = 800, .dst = 801 };

		refused(&w, c, SNP_INVALID_PARAM, SNP_RULE_IN_RMP);
		cr_expect_eq(w.m.why.pfn, SNP_W_RMP, "%s", snp_command_name(c.op));
		c.context = 802;
		if (commands[i].guest) {
			refused(&w, c, SNP_INVALID_GUEST, SNP_RULE_NOT_CONTEXT);
			cr_expect_eq(w.m.why.pfn, 802, "%s", snp_command_name(c.op));
		}
		c.context = CTX, c.pfn = SNP_W_RMP;
		if (commands[i].page) {
			refused(&w, c, SNP_INVALID_PARAM, SNP_RULE_IN_RMP);
			cr_expect_eq(w.m.why.pfn, SNP_W_RMP, "%s", snp_command_name(c.op));
		}
		c.pfn = 800, c.dst = SNP_W_RMP;
		if (commands[i].dst) {
			refused(&w, c, SNP_INVALID_PARAM, SNP_RULE_IN_RMP);
			cr_expect_eq(w.m.why.pfn, SNP_W_RMP, "%s", snp_command_name(c.op));
		}
	}
	snp_world_close(&w);
}

/* A Firmware page, or a frame that the RMP does not cover. */
Test(snp_fw, a_status_is_written_where_firmware_may_write)
{
	static const uint64_t fixed[] = { 800, SNP_W_FIXED, SNP_W_IOMMU, CTX };
	struct snp_world w;
	struct snp_cmd c = { .op = SNP_CMD_GUEST_STATUS, .context = CTX };

	snp_world_open(&w);
	snp_w_launch(&w, CTX, ASID);
	for (enum snp_state s = SNP_RECLAIM; s < SNP_STATE_COUNT; s++) {
		c.pfn = 600 + (uint64_t)s;
		if (s == SNP_FIRMWARE_IOMMU || s == SNP_DEFAULT)
			continue;
		snp_w_make(&w, c.pfn, s);
		refused(&w, c, SNP_INVALID_PAGE_STATE, SNP_RULE_STATE);
		cr_expect_eq(w.m.why.pfn, c.pfn);
	}
	for (size_t i = 0; i < PW_ARRAY_LEN(fixed); i++) {
		c.pfn = fixed[i];
		refused(&w, c, SNP_INVALID_PAGE_STATE, SNP_RULE_STATE);
	}
	c.pfn = 700;
	snp_w_make(&w, c.pfn, SNP_FIRMWARE);
	cr_expect_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	c.pfn = SNP_W_FRAMES + 5;
	cr_expect_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	snp_world_close(&w);
}

Test(snp_fw, shutdown_gives_the_iommus_pages_back_and_init_takes_them_again)
{
	struct snp_world w;
	struct snp_cmd c = { .op = SNP_CMD_SHUTDOWN_EX, .iommu = true };

	snp_world_open(&w);
	snp_w_make(&w, 700, SNP_GUEST_VALID);
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, SNP_W_IOMMU), SNP_RECLAIM);
	c.op = SNP_CMD_INIT;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, SNP_W_IOMMU), SNP_FIRMWARE_IOMMU);
	cr_assert_eq(snp_state(&w.m, 700), SNP_HYPERVISOR);
	cr_assert_eq(snp_state(&w.m, SNP_W_FIXED), SNP_HV_FIXED);
	c.op = SNP_CMD_SHUTDOWN;
	cr_assert_eq(snp_w_do(&w, &c), SNP_DFFLUSH_REQUIRED, "INIT leaves every ASID dirty");
	snp_world_close(&w);
}

/* The life of an ASID. */

Test(snp_fw, an_asid_is_reusable_when_it_has_no_pages_and_is_clean)
{
	struct snp_world w;
	struct snp_cmd c = { .op = SNP_CMD_LAUNCH_FINISH, .context = CTX };
	struct snp_cmd again = { .op = SNP_CMD_ACTIVATE, .context = 300, .asid = ASID };

	snp_world_open(&w);
	snp_w_launch(&w, CTX, ASID);
	snp_w_make(&w, 700, SNP_GUEST_INVALID);
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	c.op = SNP_CMD_DECOMMISSION;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, CTX), SNP_FIRMWARE);
	snp_w_launch(&w, 300, 6);
	cr_assert_eq(snp_w_do(&w, &(struct snp_cmd){ .op = SNP_CMD_DECOMMISSION, .context = 300 }), SNP_SUCCESS);
	cr_assert_eq(w.m.asids[6], SNP_ASID_CLEAN, "it never ran");
	snp_w_make(&w, 301, SNP_CONTEXT);
	again.context = 301;
	cr_assert_eq(
		snp_w_do(&w, &(struct snp_cmd){ .op = SNP_CMD_LAUNCH_START, .context = 301, .policy = SNP_W_POLICY }),
		SNP_SUCCESS);
	cr_assert_eq(snp_w_do(&w, &again), SNP_INVALID_CONFIG, "DECOMMISSION frees no page");
	cr_assert_eq(snp_w_share(&w, 700, SNP_4K), SNP_OK);
	cr_assert_eq(snp_w_do(&w, &again), SNP_DFFLUSH_REQUIRED);
	cr_assert_eq(snp_w_do(&w, &(struct snp_cmd){ .op = SNP_CMD_DF_FLUSH }), SNP_WBINVD_REQUIRED);
	cr_assert_eq(w.m.why.rule, SNP_RULE_WBINVD);
	snp_w_flush(&w);
	cr_assert_eq(snp_w_do(&w, &again), SNP_SUCCESS);
	snp_world_close(&w);
}

Test(snp_fw, single_socket_guests_run_on_single_sockets)
{
	struct snp_world w;
	struct snp_cmd c = { .op = SNP_CMD_LAUNCH_START, .context = CTX, .policy = 0x130000, .asid = ASID };

	snp_world_open(&w);
	w.m.sockets = 2;
	snp_w_make(&w, CTX, SNP_CONTEXT);
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	c.op = SNP_CMD_ACTIVATE;
	cr_assert_eq(snp_w_do(&w, &c), SNP_POLICY_FAILURE);
	cr_assert_eq(w.m.why.rule, SNP_RULE_POLICY);
	cr_expect_eq(w.m.why.pfn, c.context);
	w.m.sockets = 1;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	snp_world_close(&w);
}

Test(snp_fw, an_id_block_must_match)
{
	struct snp_world w;
	struct snp_id_block id = { .digest = { 1 }, .policy = 1 };
	struct snp_cmd c = { .op = SNP_CMD_LAUNCH_FINISH, .context = CTX, .id_block = &id };

	snp_world_open(&w);
	snp_w_launch(&w, CTX, ASID);
	refused(&w, c, SNP_BAD_MEASUREMENT, SNP_RULE_ID_DIGEST);
	id.digest[0] = 0;
	refused(&w, c, SNP_POLICY_FAILURE, SNP_RULE_POLICY);
	id.policy = SNP_W_POLICY;
	refused(&w, c, SNP_INVALID_PARAM, SNP_RULE_ID_ALGORITHM);
	id.algorithm_known = true;
	refused(&w, c, SNP_BAD_SIGNATURE, SNP_RULE_ID_SIGNATURE);
	id.signature_good = true;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	snp_world_close(&w);
}

/* Moves. */

Test(snp_fw, a_move_takes_gfn_and_masks_along)
{
	struct snp_world w;
	struct snp_cmd c = { .op = SNP_CMD_PAGE_MOVE, .context = CTX, .pfn = 700, .dst = 710 };
	struct snp_target t = { .asid = ASID, .gfn = 700, .pfn = 700 };
	struct snp_entry e;
	enum snp_code code;

	snp_world_open(&w);
	snp_w_launch(&w, CTX, ASID);
	snp_w_make(&w, 700, SNP_GUEST_VALID);
	cr_assert_eq(snp_rmpadjust(&w.m, &t, 3, 5, true, &code), PW_OK);
	cr_assert_eq(snp_w_update(&w, 700, ASID, 700, SNP_4K, true), SNP_OK);
	snp_w_make(&w, 710, SNP_PRE_GUEST);
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 700), SNP_GUEST_INVALID);
	cr_assert_eq(snp_read(&w.m, 710, &e), SNP_GUEST_VALID);
	cr_assert(e.gfn == 700 && e.vmsa && e.perms[3] == 5);
	snp_w_make(&w, 720, SNP_PRE_GUEST);
	snp_w_make(&w, 721, SNP_PRE_GUEST);
	c.pfn = 720;
	c.dst = 721;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 720), SNP_GUEST_INVALID);
	cr_assert_eq(snp_state(&w.m, 721), SNP_GUEST_INVALID);
	snp_w_make(&w, 730, SNP_METADATA);
	snp_w_make(&w, 731, SNP_FIRMWARE);
	c.pfn = 730;
	c.dst = 731;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 730), SNP_FIRMWARE);
	cr_assert_eq(snp_read(&w.m, 731, &e), SNP_METADATA);
	cr_assert_eq(e.gfn, SNP_TAG_METADATA | CTX);
	snp_world_close(&w);
}

/* Swapping. */

static struct snp_cmd swap(enum snp_command op, enum snp_swap_type type, uint64_t src, uint64_t dst, uint32_t slot)
{
	return (struct snp_cmd){
		.op = op, .context = CTX, .pfn = src, .dst = dst, .type = type, .md = 600, .offset = slot * 64
	};
}

static void open_swap(struct snp_world *w)
{
	snp_world_open(w);
	snp_w_launch(w, CTX, ASID);
	snp_w_make(w, 600, SNP_METADATA);
	snp_w_make(w, 610, SNP_FIRMWARE);
	snp_w_make(w, 700, SNP_PRE_SWAP);
}

Test(snp_fw, what_is_swapped_out_comes_back_once)
{
	struct snp_world w;
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_DATA, 700, 610, 3);
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN, SNP_SWAP_DATA, 610, 720, 3);
	struct snp_entry e;

	open_swap(&w);
	cr_assert_eq(snp_w_do(&w, &in), SNP_INVALID_MDATA_ENTRY, "nothing is there yet");
	cr_assert_eq(snp_w_do(&w, &out), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 700), SNP_PRE_GUEST);
	cr_assert_eq(snp_state(&w.m, 610), SNP_FIRMWARE);
	cr_assert_eq(snp_w_do(&w, &in), SNP_INVALID_PAGE_STATE, "720 is Hypervisor");
	snp_w_make(&w, 720, SNP_PRE_GUEST);
	in.type = SNP_SWAP_VMSA;
	cr_assert_eq(snp_w_do(&w, &in), SNP_INVALID_MDATA_ENTRY);
	in.type = SNP_SWAP_DATA;
	in.in_place = true;
	cr_assert_eq(snp_w_do(&w, &in), SNP_INVALID_ADDRESS);
	in.in_place = false;
	cr_assert_eq(snp_w_do(&w, &in), SNP_SUCCESS);
	cr_assert_eq(snp_read(&w.m, 720, &e), SNP_PRE_SWAP);
	cr_assert_eq(e.gfn, 700);
	cr_assert_eq(snp_w_reclaim(&w, 720, SNP_4K), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 720), SNP_GUEST_VALID);
	snp_w_make(&w, 730, SNP_PRE_GUEST);
	in.dst = 730;
	cr_assert_eq(snp_w_do(&w, &in), SNP_INVALID_MDATA_ENTRY, "a second use is a replay");
	snp_world_close(&w);
}

Test(snp_fw, a_page_that_was_not_validated_comes_back_so)
{
	struct snp_world w;
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_DATA, 701, SNP_W_FRAMES + 5, 0);
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN, SNP_SWAP_DATA, 701, 701, 0);

	open_swap(&w);
	snp_w_make(&w, 701, SNP_PRE_GUEST);
	cr_assert_eq(snp_w_do(&w, &out), SNP_SUCCESS, "past the RMP there is room too");
	in.in_place = true;
	cr_assert_eq(snp_w_do(&w, &in), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 701), SNP_PRE_GUEST);
	snp_world_close(&w);
}

Test(snp_fw, a_page_of_metadata_is_swapped_with_what_is_in_it)
{
	struct snp_world w;
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_VMSA, 700, 610, 9);
	struct snp_cmd out_md = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_METADATA, 600, 611, 0);
	struct snp_cmd in_md = swap(SNP_CMD_SWAP_IN, SNP_SWAP_METADATA, 611, 612, 0);
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN, SNP_SWAP_VMSA, 610, 700, 9);
	struct snp_entry e;

	open_swap(&w);
	snp_w_make(&w, 611, SNP_FIRMWARE);
	snp_w_make(&w, 612, SNP_FIRMWARE);
	cr_assert_eq(snp_w_do(&w, &out), SNP_SUCCESS);
	cr_assert_eq(snp_w_do(&w, &out_md), SNP_INVALID_PARAM, "an entry inside the page itself");
	out_md.root = in_md.root = true;
	cr_assert_eq(snp_w_do(&w, &out_md), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 600), SNP_FIRMWARE);
	cr_assert_eq(snp_w_do(&w, &in), SNP_INVALID_PAGE_STATE);
	cr_assert_eq(snp_w_do(&w, &in_md), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 612), SNP_METADATA);
	in.md = 612;
	in.in_place = true;
	cr_assert_eq(snp_w_do(&w, &in), SNP_INVALID_PARAM);
	in.in_place = false;
	cr_assert_eq(snp_w_do(&w, &in), SNP_SUCCESS);
	cr_assert_eq(snp_read(&w.m, 700, &e), SNP_PRE_SWAP);
	cr_assert(e.vmsa);
	snp_world_close(&w);
}

Test(snp_fw, reclaimed_metadata_is_gone)
{
	struct snp_world w;
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_DATA, 700, 610, 3);
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN, SNP_SWAP_DATA, 610, 700, 3);

	open_swap(&w);
	cr_assert_eq(snp_w_do(&w, &out), SNP_SUCCESS);
	cr_assert_eq(snp_w_reclaim(&w, 600, SNP_4K), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 600), SNP_RECLAIM);
	cr_assert_eq(w.m.md_count, 0);
	cr_assert_eq(snp_w_do(&w, &in), SNP_INVALID_PAGE_STATE);
	cr_assert_eq(snp_w_share(&w, 600, SNP_4K), SNP_OK);
	snp_world_close(&w);
}

static const struct bad_swap {
	const char *what;
	struct snp_cmd c;
	enum snp_status status;
	enum snp_rule rule; /* what the refusal says */
	bool both;          /* a swap-in says the same, before it looks at its entry */
} bad_swaps[] = {
	{ "offset",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = 700, .dst = 610, .md = 600, .offset = 32 },
	  SNP_INVALID_PARAM,
	  SNP_RULE_MD_PLACE,
	  true },
	{ "entry in the RMP",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = 700, .dst = 610, .md = SNP_W_RMP },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP,
	  true },
	{ "entry's page",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = 700, .dst = 611, .md = 610 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE,
	  true },
	{ "entry of another",
	  { .op = SNP_CMD_SWAP_OUT, .context = 300, .pfn = 700, .dst = 610, .md = 600 },
	  SNP_INVALID_PAGE_OWNER,
	  SNP_RULE_OWNER,
	  true },
	{ "size",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = 700, .dst = 610, .md = 600, .size = SNP_2M },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_SIZE,
	  false },
	{ "guest state",
	  { .op = SNP_CMD_SWAP_OUT, .context = 301, .pfn = 700, .dst = 610, .root = true, .type = 9 },
	  SNP_INVALID_GUEST_STATE,
	  SNP_RULE_GUEST_STATE,
	  true },
	{ "no ASID",
	  { .op = SNP_CMD_SWAP_OUT, .context = 302, .pfn = 700, .dst = 610, .root = true, .type = 9 },
	  SNP_INACTIVE,
	  SNP_RULE_NO_ASID,
	  true },
	{ "size of the destination",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = SNP_W_FRAMES, .dst = 610, .md = 600, .size = SNP_2M },
	  SNP_INVALID_PAGE_SIZE,
	  SNP_RULE_SIZE,
	  false },
	{ "source of metadata",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = 700, .dst = 610, .md = 600, .type = SNP_SWAP_METADATA },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE,
	  false },
	{ "type",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = 700, .dst = 610, .md = 600, .type = 9 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_TYPE,
	  false },
	{ "source",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = 800, .dst = 610, .md = 600 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE,
	  false },
	{ "destination",
	  { .op = SNP_CMD_SWAP_OUT, .context = CTX, .pfn = 700, .dst = 800, .md = 600 },
	  SNP_INVALID_PAGE_STATE,
	  SNP_RULE_STATE,
	  false },
	{ "owner",
	  { .op = SNP_CMD_SWAP_OUT, .context = 300, .pfn = 700, .dst = 610, .root = true },
	  SNP_INVALID_PAGE_OWNER,
	  SNP_RULE_OWNER,
	  false },
	{ "metadata's owner",
	  { .op = SNP_CMD_SWAP_OUT, .context = 300, .pfn = 600, .dst = 610, .root = true, .type = SNP_SWAP_METADATA },
	  SNP_INVALID_PAGE_OWNER,
	  SNP_RULE_OWNER,
	  false },
	{ "page in the RMP",
	  { .op = SNP_CMD_SWAP_IN, .context = CTX, .pfn = SNP_W_RMP, .dst = 700, .md = 600 },
	  SNP_INVALID_PARAM,
	  SNP_RULE_IN_RMP,
	  false },
};

/* A guest in LAUNCH without an ASID. */
static void make_inactive(struct snp_world *w, uint64_t context)
{
	struct snp_cmd c = { .op = SNP_CMD_LAUNCH_START, .context = context, .policy = SNP_W_POLICY };

	snp_w_make(w, context, SNP_CONTEXT);
	cr_assert_eq(snp_w_do(w, &c), SNP_SUCCESS);
}

static void check_bad_swap(const struct bad_swap *c)
{
	struct snp_world w;
	uint64_t before;
	enum snp_status status;

	open_swap(&w);
	snp_w_launch(&w, 300, 6);
	snp_w_make(&w, 301, SNP_CONTEXT);
	make_inactive(&w, 302);
	before = snp_digest(&w.m);
	status = snp_w_do(&w, &c->c);
	cr_assert_eq(status, c->status, "%s: %s", c->what, snp_status_name(status));
	cr_assert_eq(snp_digest(&w.m), before);
	cr_assert_eq(w.m.why.rule, c->rule, "%s: %s", c->what, snp_rule_text(w.m.why.rule));
	cr_assert_eq(w.m.why.pfn,
		     strncmp(c->what, "entry", 5) == 0
			     ? c->c.md
			     : frame_at_fault(&c->c, c->rule, strstr(c->what, "destination") != NULL),
		     "%s: frame %" PRIu64, c->what, w.m.why.pfn);
	snp_world_close(&w);
}

Test(snp_fw, a_wrong_swap_changes_nothing)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(bad_swaps); i++) {
		struct bad_swap in = bad_swaps[i];

		check_bad_swap(&bad_swaps[i]);
		in.c.op = SNP_CMD_SWAP_IN;
		if (in.both)
			check_bad_swap(&in);
	}
}

/* What a swap-in finds wrong, with all the faults of what is looked at later. */
Test(snp_fw, a_wrong_swap_in_says_why)
{
	struct snp_world w;
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_DATA, 700, 610, 3);
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN, SNP_SWAP_DATA, 610, 800, 4);

	open_swap(&w);
	cr_assert_eq(snp_w_do(&w, &out), SNP_SUCCESS);
	in.size = SNP_2M, in.in_place = true;
	refused(&w, in, SNP_INVALID_MDATA_ENTRY, SNP_RULE_MD_ENTRY);
	cr_expect_eq(w.m.why.pfn, in.pfn);
	in.offset = out.offset, in.type = SNP_SWAP_VMSA;
	refused(&w, in, SNP_INVALID_MDATA_ENTRY, SNP_RULE_MD_ENTRY);
	cr_expect_eq(w.m.why.pfn, in.pfn);
	in.type = SNP_SWAP_DATA;
	refused(&w, in, SNP_INVALID_PAGE_SIZE, SNP_RULE_SIZE);
	cr_expect_eq(w.m.why.pfn, in.pfn);
	in.pfn = SNP_W_FRAMES;
	refused(&w, in, SNP_INVALID_PAGE_SIZE, SNP_RULE_SIZE);
	cr_expect_eq(w.m.why.pfn, in.dst);
	in.dst = SNP_W_FRAMES;
	in.pfn = SNP_W_FRAMES + SNP_LARGE;
	refused(&w, in, SNP_INVALID_PAGE_SIZE, SNP_RULE_SIZE); /* the entry's */
	cr_expect_eq(w.m.why.pfn, in.pfn);
	in.size = SNP_4K, in.pfn = 610, in.dst = 800;
	refused(&w, in, SNP_INVALID_ADDRESS, SNP_RULE_PLACES);
	cr_expect_eq(w.m.why.pfn, in.pfn);
	in.in_place = false;
	refused(&w, in, SNP_INVALID_PAGE_STATE, SNP_RULE_STATE);
	cr_expect_eq(w.m.why.pfn, 800);
	in.dst = 710;
	cr_assert_eq(snp_w_update(&w, 710, ASID + 1, 710, SNP_4K, true), SNP_OK);
	refused(&w, in, SNP_INVALID_PAGE_OWNER, SNP_RULE_OWNER);
	cr_expect_eq(w.m.why.pfn, in.dst);
	snp_world_close(&w);
}

Test(snp_fw, a_vmsa_comes_back_small_and_to_another_place)
{
	struct snp_world w;
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_VMSA, 1024, SNP_W_FRAMES, 3);
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN, SNP_SWAP_VMSA, SNP_W_FRAMES, 1024, 3);

	open_swap(&w);
	cr_assert_eq(snp_w_update(&w, 1024, ASID, 1024, SNP_2M, true), SNP_OK);
	out.size = in.size = SNP_2M;
	cr_assert_eq(snp_w_do(&w, &out), SNP_SUCCESS);
	in.in_place = true;
	refused(&w, in, SNP_INVALID_PARAM, SNP_RULE_IN_PLACE);
	cr_expect_eq(w.m.why.pfn, in.pfn);
	in.in_place = false;
	refused(&w, in, SNP_INVALID_PAGE_SIZE, SNP_RULE_TYPE_SIZE);
	cr_expect_eq(w.m.why.pfn, in.pfn);
	snp_world_close(&w);
}

Test(snp_fw, metadata_comes_back_to_another_firmware_page)
{
	struct snp_world w;
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_METADATA, 600, 610, 0);
	struct snp_cmd in = swap(SNP_CMD_SWAP_IN, SNP_SWAP_METADATA, 610, 700, 0);

	open_swap(&w);
	out.root = in.root = in.in_place = true;
	cr_assert_eq(snp_w_do(&w, &out), SNP_SUCCESS);
	refused(&w, in, SNP_INVALID_PARAM, SNP_RULE_IN_PLACE);
	cr_expect_eq(w.m.why.pfn, in.pfn);
	in.in_place = false;
	refused(&w, in, SNP_INVALID_PAGE_STATE, SNP_RULE_STATE);
	cr_expect_eq(w.m.why.pfn, 700);
	in.dst = 600;
	cr_expect_eq(snp_w_do(&w, &in), SNP_SUCCESS);
	snp_world_close(&w);
}

/* Others. */

Test(snp_fw, page_set_state_checks_all_ranges_first)
{
	struct snp_world w;
	const struct snp_range good[] = { { 1024, 2 }, { 1536, 1 } }, bad[] = { { 1024, 2 }, { 1536, 2 } },
			       crooked[] = { { 1025, 1 } }, wild[] = { { UINT64_MAX - 1023, 2048 } },
			       table[] = { { SNP_W_RMP, 512 } };
	struct snp_cmd c = { .op = SNP_CMD_PAGE_SET_STATE, .ranges = bad, .range_count = 2 };

	snp_world_open(&w);
	snp_w_make(&w, 1024, SNP_FIRMWARE);
	snp_w_make(&w, 1025, SNP_FIRMWARE);
	snp_w_make(&w, 1536, SNP_FIRMWARE);
	refused(&w, c, SNP_INVALID_PAGE_STATE, SNP_RULE_STATE);
	cr_assert_eq(snp_state(&w.m, 1024), SNP_FIRMWARE);
	c.ranges = crooked;
	c.range_count = 1;
	refused(&w, c, SNP_INVALID_PARAM, SNP_RULE_ALIGN);
	c.ranges = wild;
	refused(&w, c, SNP_INVALID_PARAM, SNP_RULE_ALIGN);
	c.ranges = table;
	refused(&w, c, SNP_INVALID_PAGE_STATE, SNP_RULE_STATE);
	c.ranges = good;
	c.range_count = 2;
	cr_assert_eq(snp_w_do(&w, &c), SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 1025), SNP_HV_FIXED);
	cr_assert_eq(snp_w_share(&w, 1536, SNP_4K), SNP_FAIL_PERMISSION);
	snp_world_close(&w);
}

Test(snp_fw, a_legacy_command_buffer_becomes_reclaim)
{
	struct snp_world w;
	enum snp_status status;

	snp_world_open(&w);
	cr_assert_eq(snp_legacy_buffer(&w.m, 700, &status), PW_OK);
	cr_assert_eq(snp_status_value(status), 0x5a);
	snp_w_make(&w, 700, SNP_FIRMWARE);
	cr_assert_eq(snp_legacy_buffer(&w.m, 700, &status), PW_OK);
	cr_assert_eq(status, SNP_SUCCESS);
	cr_assert_eq(snp_state(&w.m, 700), SNP_RECLAIM);
	cr_assert_eq(snp_legacy_buffer(&w.m, SNP_W_FRAMES, &status), PW_OK);
	cr_assert_eq(status, SNP_SUCCESS);
	cr_assert_eq(snp_legacy_buffer(&w.m, SNP_W_RMP, &status), PW_OK);
	cr_assert_eq(status, SNP_BUFFER_PAGE_STATE);
	snp_world_close(&w);
}

/* A launch that fails undoes what it did, and nothing else. */

struct heard {
	unsigned count;
	uint64_t pfns[16];
	enum snp_state to[16];
};

static void hear(void *ctx, const struct snp_transition *t)
{
	struct heard *h = ctx;

	if (h->count < PW_ARRAY_LEN(h->pfns)) {
		h->pfns[h->count] = t->pfn;
		h->to[h->count] = t->to;
	}
	h->count++;
}

Test(snp_fw, a_failed_launch_gives_back_its_own_pages_alone)
{
	struct snp_launch_page pages[] = {
		{ .pfn = 700, .gfn = 1, .type = SNP_TYPE_ZERO },
		{ .pfn = 1024, .gfn = 512, .type = SNP_TYPE_ZERO, .size = SNP_2M },
		{ .pfn = 702, .gfn = 3, .type = 9 },
		{ .pfn = 703, .gfn = 4, .type = SNP_TYPE_ZERO },
	};
	static const struct {
		uint64_t pfn;
		enum snp_state to;
	} expected[] = {
		{ 700, SNP_PRE_GUEST },    { 700, SNP_GUEST_VALID }, { 1024, SNP_PRE_GUEST },
		{ 1024, SNP_GUEST_VALID }, { 702, SNP_PRE_GUEST },   { 702, SNP_GUEST_INVALID },
		{ 702, SNP_HYPERVISOR },   { 1024, SNP_HYPERVISOR }, { 700, SNP_HYPERVISOR },
	};
	struct snp_world w;
	struct heard heard = { 0 };
	enum snp_status status;
	size_t done;

	snp_world_open(&w);
	snp_w_launch(&w, CTX, ASID);
	cr_assert_eq(snp_w_update(&w, 703, 7, 9, SNP_4K, false), SNP_OK, "another guest's");
	w.m.trace = hear;
	w.m.trace_ctx = &heard;
	cr_assert_eq(snp_launch_pages(&w.m, CTX, pages, PW_ARRAY_LEN(pages), &done, &status), PW_OK);
	cr_assert_eq(done, 2);
	cr_assert_eq(status, SNP_INVALID_PARAM);
	cr_assert_eq(heard.count, PW_ARRAY_LEN(expected));
	for (unsigned i = 0; i < heard.count; i++)
		cr_assert(heard.pfns[i] == expected[i].pfn && heard.to[i] == expected[i].to, "transition %u", i);
	cr_assert_eq(w.m.pages[ASID], 0);
	cr_assert_eq(snp_state(&w.m, 703), SNP_GUEST_INVALID);

	pages[2].type = SNP_TYPE_ZERO; /* now it gets to the other guest's page */
	cr_assert_eq(snp_launch_pages(&w.m, CTX, pages, PW_ARRAY_LEN(pages), &done, &status), PW_OK);
	cr_assert_eq(done, 3);
	cr_assert_eq(status, SNP_SUCCESS);
	cr_assert_eq(w.m.why.rule, SNP_RULE_STRICT);
	cr_assert(w.m.why.asid == 7 && w.m.why.asks_asid == ASID);
	cr_assert_eq(snp_state(&w.m, 703), SNP_GUEST_INVALID);
	cr_assert(w.m.pages[7] == 1 && w.m.pages[ASID] == 0);
	cr_assert_eq(snp_launch_pages(&w.m, 999, pages, 1, &done, &status), PW_OK);
	cr_assert_eq(status, SNP_INVALID_GUEST);
	snp_world_close(&w);
}

/* The check that all tests rely on sees each kind of damage. */

Test(snp_fw, the_check_sees_damage)
{
	const uint64_t linear = TREE_LINEAR, assigned = (uint64_t)1 << 50, large = (uint64_t)1 << 51,
		       immutable = (uint64_t)1 << 52, vmsa = (uint64_t)1 << 53, asid = (uint64_t)9 << 40;
	const struct {
		const char *what;
		uint64_t pfn, word;
	} entries[] = {
		{ "part of a 2 MiB page", 900, assigned | large | linear | asid },
		{ "pages that no counter has", 900, assigned | linear | asid },
		{ "an entry past the RMP", SNP_W_FRAMES, assigned },
		{ "a context without a guest", 900, assigned | immutable | vmsa },
		{ "an owner that is not assigned", 900, linear | asid },
		{ "an RMP frame that is free", SNP_W_RMP, 0 },
		{ "a guest without its context", CTX, 0 },
		{ "metadata outside its page", 600, assigned },
	};
	struct snp_cmd out = swap(SNP_CMD_SWAP_OUT, SNP_SWAP_DATA, 700, 610, 3);
	struct snp_world w;

	open_swap(&w);
	cr_assert_eq(snp_w_do(&w, &out), SNP_SUCCESS);
	for (size_t i = 0; i < PW_ARRAY_LEN(entries); i++) {
		uint64_t was = tree_get(&w.m.entries, entries[i].pfn);

		cr_assert(snp_check(&w.m));
		cr_assert_eq(tree_set(&w.m.entries, entries[i].pfn, 1, entries[i].word), PW_OK);
		cr_expect_not(snp_check(&w.m), "%s", entries[i].what);
		cr_assert_eq(tree_set(&w.m.entries, entries[i].pfn, 1, was), PW_OK);
	}
	w.m.asids[3] = SNP_ASID_IN_USE;
	cr_expect_not(snp_check(&w.m), "an ASID in use by nobody");
	w.m.asids[3] = SNP_ASID_CLEAN;
	w.m.asids[ASID] = SNP_ASID_DIRTY;
	cr_expect_not(snp_check(&w.m), "an ASID that its guest does not hold");
	w.m.asids[ASID] = SNP_ASID_ALLOCATED;
	w.m.pages[ASID]++;
	cr_expect_not(snp_check(&w.m), "a counter");
	w.m.pages[ASID]--;
	w.m.md[0].kind = SNP_MD_SWAPPED;
	cr_expect_not(snp_check(&w.m), "metadata in a page that nobody swapped out");
	w.m.md[0].kind = SNP_MD_IN_CONTEXT;
	cr_expect_not(snp_check(&w.m), "metadata in a context that is none");
	w.m.md[0].kind = SNP_MD_IN_PAGE;
	snp_world_close(&w);
}

Test(snp_fw, models_that_cannot_be_are_refused)
{
	static const struct snp_range far[] = { { 90, 20 } };
	const struct snp_config bad[] = {
		{ .frames = TREE_PAGES + 1 },
		{ .frames = 100, .max_asid = SNP_ASIDS },
		{ .frames = 100, .rmp = { 50, 51 } },
		{ .frames = 100, .fixed = far, .fixed_count = 1 },
		{ .frames = 100, .iommu = far, .iommu_count = 1 },
	};
	struct pw_mem mem = { 0 };
	struct snp m;

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++)
		cr_expect_eq(snp_init(&m, &mem, &bad[i]), PW_INVALID, "%zu", i);
}

/* The numbers of Linux' psp-sev.h and of the firmware's mailbox. */

Test(snp_fw, statuses_have_the_numbers_of_the_interface)
{
	static const struct {
		enum snp_status status;
		uint8_t value;
	} cases[] = {
		{ SNP_SUCCESS, 0x00 },
		{ SNP_INVALID_PLATFORM_STATE, 0x01 },
		{ SNP_INVALID_GUEST_STATE, 0x02 },
		{ SNP_INVALID_CONFIG, 0x03 },
		{ SNP_INVALID_LEN, 0x04 },
		{ SNP_ALREADY_OWNED, 0x05 },
		{ SNP_INVALID_CERTIFICATE, 0x06 },
		{ SNP_POLICY_FAILURE, 0x07 },
		{ SNP_INACTIVE, 0x08 },
		{ SNP_INVALID_ADDRESS, 0x09 },
		{ SNP_BAD_SIGNATURE, 0x0a },
		{ SNP_BAD_MEASUREMENT, 0x0b },
		{ SNP_ASID_OWNED, 0x0c },
		{ SNP_INVALID_ASID, 0x0d },
		{ SNP_WBINVD_REQUIRED, 0x0e },
		{ SNP_DFFLUSH_REQUIRED, 0x0f },
		{ SNP_INVALID_GUEST, 0x10 },
		{ SNP_INVALID_COMMAND, 0x11 },
		{ SNP_ACTIVE, 0x12 },
		{ SNP_HWERROR_PLATFORM, 0x13 },
		{ SNP_HWERROR_UNSAFE, 0x14 },
		{ SNP_UNSUPPORTED, 0x15 },
		{ SNP_INVALID_PARAM, 0x16 },
		{ SNP_RESOURCE_LIMIT, 0x17 },
		{ SNP_SECURE_DATA_INVALID, 0x18 },
		{ SNP_INVALID_PAGE_SIZE, 0x19 },
		{ SNP_INVALID_PAGE_STATE, 0x1a },
		{ SNP_INVALID_MDATA_ENTRY, 0x1b },
		{ SNP_INVALID_PAGE_OWNER, 0x1c },
		{ SNP_AEAD_OFLOW, 0x1d },
		{ SNP_EXIT_RING_BUFFER, 0x1f },
		{ SNP_RMP_INIT_REQUIRED, 0x20 },
		{ SNP_BAD_SVN, 0x21 },
		{ SNP_BAD_VERSION, 0x22 },
		{ SNP_SHUTDOWN_REQUIRED, 0x23 },
		{ SNP_UPDATE_FAILED, 0x24 },
		{ SNP_RESTORE_REQUIRED, 0x25 },
		{ SNP_RMP_INITIALIZATION_FAILED, 0x26 },
		{ SNP_INVALID_KEY, 0x27 },
		{ SNP_BUFFER_PAGE_STATE, 0x5a },
	};

	cr_assert_eq(PW_ARRAY_LEN(cases), SNP_STATUS_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		cr_expect_eq(snp_status_value(cases[i].status), cases[i].value, "%s", snp_status_name(cases[i].status));
}

Test(snp_fw, commands_have_the_numbers_of_the_mailbox)
{
	static const struct {
		enum snp_command op;
		uint8_t id;
	} cases[] = {
		{ SNP_CMD_INIT, 0x81 },          { SNP_CMD_SHUTDOWN, 0x82 },     { SNP_CMD_DF_FLUSH, 0x84 },
		{ SNP_CMD_INIT_EX, 0x85 },       { SNP_CMD_SHUTDOWN_EX, 0x86 },  { SNP_CMD_DECOMMISSION, 0x90 },
		{ SNP_CMD_ACTIVATE, 0x91 },      { SNP_CMD_GUEST_STATUS, 0x92 }, { SNP_CMD_GCTX_CREATE, 0x93 },
		{ SNP_CMD_GUEST_REQUEST, 0x94 }, { SNP_CMD_LAUNCH_START, 0xa0 }, { SNP_CMD_LAUNCH_UPDATE, 0xa1 },
		{ SNP_CMD_LAUNCH_FINISH, 0xa2 }, { SNP_CMD_SWAP_OUT, 0xc0 },     { SNP_CMD_SWAP_IN, 0xc1 },
		{ SNP_CMD_PAGE_MOVE, 0xc2 },     { SNP_CMD_MD_INIT, 0xc3 },      { SNP_CMD_PAGE_SET_STATE, 0xc6 },
		{ SNP_CMD_PAGE_RECLAIM, 0xc7 },  { SNP_CMD_PAGE_UNSMASH, 0xc8 },
	};

	cr_assert_eq(PW_ARRAY_LEN(cases), SNP_COMMAND_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		cr_expect_eq(snp_command_id(cases[i].op), cases[i].id, "%s", snp_command_name(cases[i].op));
}

/* RMPUPDATE's, PSMASH's and PVALIDATE's in EAX, and the faults that the model has instead: below zero, all different.
 */
Test(snp_fw, codes_have_the_numbers_of_the_instructions)
{
	cr_expect_eq(snp_code_value(SNP_OK), 0);
	cr_expect_eq(snp_code_value(SNP_FAIL_INPUT), 1);
	cr_expect_eq(snp_code_value(SNP_FAIL_PERMISSION), 2);
	cr_expect_eq(snp_code_value(SNP_FAIL_INUSE), 3);
	cr_expect_eq(snp_code_value(SNP_FAIL_OVERLAP), 4);
	cr_expect_eq(snp_code_value(SNP_FAIL_SIZEMISMATCH), 6);
	cr_expect_eq(snp_code_value(SNP_FAIL_PAGE), 4);
	cr_expect(snp_code_value(SNP_NPF) < 0 && snp_code_value(SNP_VC) < 0 && snp_code_value(SNP_GP) < 0);
	cr_expect_neq(snp_code_value(SNP_NPF), snp_code_value(SNP_VC));
	cr_expect_neq(snp_code_value(SNP_NPF), snp_code_value(SNP_GP));
	cr_expect_neq(snp_code_value(SNP_VC), snp_code_value(SNP_GP));
}

/* What Microsoft's pages and Linux leave open is ours to say; firmware's rules were read in its source. */
Test(snp_fw, a_refusal_says_whether_its_rule_is_inferred)
{
	static const bool inferred[SNP_RULE_COUNT] = {
		[SNP_RULE_PAST_RMP] = true,      [SNP_RULE_UNALIGNED] = true, [SNP_RULE_OPERAND] = true,
		[SNP_RULE_HAS_FIXED] = true,     [SNP_RULE_NOT_2M] = true,    [SNP_RULE_NOT_GUESTS] = true,
		[SNP_RULE_NOT_VALIDATED] = true,
	};

	for (int r = 0; r < SNP_RULE_COUNT; r++) {
		struct snp_why why = { .rule = (enum snp_rule)r, .op = "RMPUPDATE" };
		char text[400];

		snp_why_text(&why, text, sizeof text);
		cr_expect_eq(strstr(text, "inferred, unverified") != NULL, inferred[r], "%s", text);
	}
}

/* An entry with no bit but those that make its state, and which other bits the firmware does not look at for it. */
Test(snp_fw, bits_that_a_state_does_not_name_do_not_change_it)
{
	const uint64_t assigned = 1, large = 1 << 1, immutable = 1 << 2, count = (uint64_t)511 << 3;
	const uint64_t gpa = ((uint64_t)1 << 51) - ((uint64_t)1 << 12), asid = (uint64_t)1023 << 51;
	const uint64_t vmsa = (uint64_t)1 << 61, validated = (uint64_t)1 << 62, lock = (uint64_t)1 << 63;
	const uint64_t metadata = SNP_TAG_METADATA << 12, tag = SNP_GFN_TAG << 12, frame = 1 << 12;
	const uint64_t iommu = (SNP_TAG_IOMMU | 1) << 12, owned = (uint64_t)1 << 51;
	const struct {
		enum snp_state state;
		uint64_t lo, open;
	} cases[] = {
		{ SNP_HYPERVISOR, 0, large | count | gpa | vmsa | lock },
		{ SNP_HV_FIXED, immutable, large | count | gpa | vmsa | lock },
		{ SNP_FIRMWARE, assigned | immutable, large | count | lock },
		{ SNP_RECLAIM, assigned, large | count | gpa | vmsa },
		{ SNP_CONTEXT, assigned | immutable | vmsa, large | count | lock },
		{ SNP_METADATA, assigned | immutable | metadata | frame,
		  large | count | lock | vmsa | (gpa & ~tag & ~frame) },
		{ SNP_PRE_GUEST, assigned | immutable | owned, large | count | lock | vmsa | gpa | (asid & ~owned) },
		{ SNP_PRE_SWAP, assigned | immutable | validated | owned,
		  large | count | lock | vmsa | gpa | (asid & ~owned) },
		{ SNP_GUEST_INVALID, assigned | owned, large | count | lock | vmsa | gpa | (asid & ~owned) },
		{ SNP_GUEST_VALID, assigned | validated | owned, large | count | lock | vmsa | gpa | (asid & ~owned) },
		{ SNP_FIRMWARE_IOMMU, assigned | immutable | iommu, large | count | lock },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		for (unsigned bit = 0; bit < 64; bit++) {
			struct snp_raw raw = { .lo = cases[i].lo ^ ((uint64_t)1 << bit) };
			bool same = snp_raw_state(raw) == cases[i].state;

			cr_expect_eq(snp_raw_state((struct snp_raw){ .lo = cases[i].lo }), cases[i].state);
			cr_expect_eq(same, (cases[i].open >> bit & 1) != 0, "%s, bit %u: %s",
				     snp_state_name(cases[i].state), bit, snp_state_name(snp_raw_state(raw)));
		}
}
