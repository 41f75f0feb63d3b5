#include "engine/arch/snp_impl.h"

#include <string.h>

#define POLICY_SMT           ((uint64_t)1 << 16)
#define POLICY_ONE           ((uint64_t)1 << 17)
#define POLICY_MIGRATE       ((uint64_t)1 << 18)
#define POLICY_SINGLE_SOCKET ((uint64_t)1 << 20)
#define POLICY_KNOWN         (((uint64_t)1 << 21) - 1)

#define CPUID_COUNT_MAX      64

/* Checks. */

bool fw_reserved(const struct fw *f)
{
	return f->c->reserved;
}

static bool bad_length(const struct fw *f)
{
	return f->c->length;
}

bool fw_down(const struct fw *f)
{
	return !f->m->up;
}

bool fw_context_in_rmp(const struct fw *f)
{
	return in_range(&f->m->rmp, f->c->context);
}

bool fw_page_in_rmp(const struct fw *f)
{
	return in_range(&f->m->rmp, f->c->pfn);
}

bool fw_dst_in_rmp(const struct fw *f)
{
	return in_range(&f->m->rmp, f->c->dst);
}

bool fw_not_launched(const struct fw *f)
{
	return f->guest->state == SNP_GUEST_INIT;
}

bool fw_no_asid(const struct fw *f)
{
	return f->guest->asid == 0;
}

bool fw_not_owner(const struct fw *f)
{
	return word_asid(f->word) != f->guest->asid;
}

bool fw_dst_not_owner(const struct fw *f)
{
	return word_asid(f->dst_word) != f->guest->asid;
}

static bool context_large(const struct fw *f)
{
	return word_size(word_at(f->m, f->c->context)) == SNP_2M;
}

static bool not_init(const struct fw *f)
{
	return f->guest->state != SNP_GUEST_INIT;
}

static bool not_launch(const struct fw *f)
{
	return f->guest->state != SNP_GUEST_LAUNCH;
}

static bool not_running(const struct fw *f)
{
	return f->guest->state != SNP_GUEST_RUNNING;
}

static bool is_imi(const struct fw *f)
{
	return f->guest->imi;
}

static bool has_agent(const struct fw *f)
{
	return f->c->has_agent;
}

static bool agent_in_rmp(const struct fw *f)
{
	return in_range(&f->m->rmp, f->c->agent);
}

static bool agent_unknown(const struct fw *f)
{
	return !snp_guest(f->m, f->c->agent);
}

static bool agent_refuses(const struct fw *f)
{
	const struct snp_guest *agent = snp_guest(f->m, f->c->agent);
	uint64_t policy = f->c->policy;

	return !(policy & POLICY_MIGRATE) || agent->agent ||
	       (policy & POLICY_SINGLE_SOCKET && !(agent->policy & POLICY_SINGLE_SOCKET));
}

static bool policy_refused(const struct fw *f)
{
	uint64_t policy = f->c->policy;

	return !(policy & POLICY_ONE) || (f->m->smt && !(policy & POLICY_SMT)) || (policy & 0xffff) > f->m->abi ||
	       policy & ~POLICY_KNOWN;
}

static bool asid_unknown(const struct fw *f)
{
	return f->c->asid >= SNP_COUNTERS;
}

static bool asid_has_pages(const struct fw *f)
{
	return f->m->pages[f->c->asid] != 0;
}

static bool too_many_sockets(const struct fw *f)
{
	return f->guest->policy & POLICY_SINGLE_SOCKET && f->m->sockets > 1;
}

static bool asid_out_of_range(const struct fw *f)
{
	return f->c->asid == 0 || f->c->asid > f->m->max_asid;
}

static bool asid_taken(const struct fw *f)
{
	return f->m->asids[f->c->asid] == SNP_ASID_ALLOCATED || f->m->asids[f->c->asid] == SNP_ASID_IN_USE;
}

static bool has_asid(const struct fw *f)
{
	return f->guest->asid != 0;
}

static bool asid_dirty(const struct fw *f)
{
	return f->m->asids[f->c->asid] == SNP_ASID_DIRTY;
}

static bool page_size_differs(const struct fw *f)
{
	return word_size(f->word) != f->c->size;
}

static bool page_unaligned(const struct fw *f)
{
	return f->c->pfn % word_frames(f->word) != 0;
}

static bool moved_size_differs(const struct fw *f)
{
	return page_size_differs(f) || page_unaligned(f) || word_size(f->dst_word) != f->c->size ||
	       f->c->dst % word_frames(f->dst_word);
}

static bool type_is_small(const struct fw *f)
{
	return f->c->type == SNP_TYPE_VMSA || f->c->type == SNP_TYPE_SECRETS || f->c->type == SNP_TYPE_CPUID;
}

static bool page_large(const struct fw *f)
{
	return word_size(f->word) == SNP_2M;
}

static bool dst_large(const struct fw *f)
{
	return word_size(f->dst_word) == SNP_2M;
}

static bool type_unknown(const struct fw *f)
{
	return f->c->type == SNP_TYPE_NONE || f->c->type >= SNP_TYPE_COUNT;
}

static bool imi_missing(const struct fw *f)
{
	return f->guest->imi && !f->c->imi;
}

uint8_t fw_content_at(const struct snp_cmd *c, size_t at)
{
	return at < c->content_len ? c->content[at] : c->fill;
}

static bool is_cpuid(const struct fw *f)
{
	return f->c->type == SNP_TYPE_CPUID;
}

/* The page begins with the number of leaves and twelve reserved bytes. */
static bool cpuid_malformed(const struct fw *f)
{
	uint32_t count = 0;

	for (unsigned i = 0; i < 4; i++)
		count |= (uint32_t)fw_content_at(f->c, i) << (8 * i);
	for (unsigned i = 4; i < 16; i++)
		if (fw_content_at(f->c, i))
			return true;
	return count > CPUID_COUNT_MAX;
}

static bool has_id_block(const struct fw *f)
{
	return f->c->id_block;
}

static bool id_digest_differs(const struct fw *f)
{
	return memcmp(f->c->id_block->digest, f->guest->digest, SNP_DIGEST) != 0;
}

static bool id_policy_differs(const struct fw *f)
{
	return f->c->id_block->policy != f->guest->policy;
}

static bool id_algorithm_unknown(const struct fw *f)
{
	return !f->c->id_block->algorithm_known;
}

static bool id_signature_wrong(const struct fw *f)
{
	return !f->c->id_block->signature_good;
}

static bool no_memory_there(const struct fw *f)
{
	return f->c->pfn >= TREE_PAGES;
}

static bool has_entry(const struct fw *f)
{
	return f->state != SNP_DEFAULT;
}

static bool move_refused(const struct fw *f)
{
	return !snp_move(f->state, f->dst_state);
}

static bool moves_metadata(const struct fw *f)
{
	return f->state == SNP_METADATA;
}

static bool moves_guest(const struct fw *f)
{
	return f->state != SNP_METADATA;
}

static bool moved_not_owner(const struct fw *f)
{
	return fw_not_owner(f) || fw_dst_not_owner(f);
}

static bool first_unaligned(const struct fw *f)
{
	return f->c->pfn % SNP_LARGE != 0;
}

static bool block_in_rmp(const struct fw *f)
{
	const struct snp_range *rmp = &f->m->rmp;

	return f->c->pfn < rmp->first + rmp->count && rmp->first < f->c->pfn + SNP_LARGE && rmp->count;
}

static bool not_cut_up(const struct fw *f)
{
	uint64_t end = f->c->pfn + SNP_LARGE;

	if (end > f->m->frames || f->word & (WORD_LARGE | WORD_VMSA) || (f->word & WORD_GFN) % SNP_LARGE)
		return true;
	return tree_run_at(&f->m->entries, f->c->pfn, end).count != SNP_LARGE ||
	       tree_run_at(&f->m->perms, f->c->pfn, end).count != SNP_LARGE;
}

static bool asid_not_clean(const struct fw *f)
{
	for (unsigned asid = 1; asid <= f->m->max_asid; asid++)
		if (f->m->asids[asid] != SNP_ASID_CLEAN)
			return f->m->up;
	return false;
}

static bool is_up(const struct fw *f)
{
	return f->m->up;
}

static bool owes_wbinvd(const struct fw *f)
{
	return f->m->owes_wbinvd;
}

static bool range_unaligned(const struct fw *f)
{
	for (size_t i = 0; i < f->c->range_count; i++)
		if (f->c->ranges[i].first % SNP_LARGE || f->c->ranges[i].first >= TREE_PAGES ||
		    f->c->ranges[i].count > TREE_PAGES)
			return true;
	return false;
}

/* All of a range can become HV-Fixed, and no 2 MiB page is cut by its end. */
static bool range_fixable(const struct snp *m, const struct snp_range *r)
{
	uint64_t end = r->first + r->count;
	struct snp_run run;

	for (uint64_t at = r->first; at < end; at += run.count) {
		run = snp_run_at(m, at, end);
		if (snp_cell(run.state, SNP_DO_FIX)->kind == SNP_REFUSE)
			return false;
		if (run.size == SNP_2M && (run.first + run.count) % SNP_LARGE)
			return false;
	}
	return r->first >= m->rmp.first + m->rmp.count || end <= m->rmp.first;
}

static bool ranges_refused(const struct fw *f)
{
	for (size_t i = 0; i < f->c->range_count; i++)
		if (f->c->ranges[i].count && !range_fixable(f->m, &f->c->ranges[i]))
			return true;
	return false;
}

/* clang-format off */
#define NOT_IN_RMP FW_CHECK(fw_page_in_rmp, INVALID_PARAM, IN_RMP)

static const struct fw_check init_checks[] = {
	FW_CHECK(fw_reserved, INVALID_PARAM, RESERVED),
	FW_CHECK(is_up, INVALID_PLATFORM_STATE, PLATFORM),
	FW_END,
};
static const struct fw_check shutdown_checks[] = {
	FW_CHECK(asid_not_clean, DFFLUSH_REQUIRED, ASID_DIRTY),
	FW_CHECK(fw_reserved, INVALID_PARAM, RESERVED),
	FW_END,
};
static const struct fw_check df_flush_checks[] = {
	FW_CHECK(fw_down, INVALID_PLATFORM_STATE, PLATFORM),
	FW_CHECK(owes_wbinvd, WBINVD_REQUIRED, WBINVD),
	FW_END,
};
static const struct fw_check gctx_create_checks[] = {
	FW_PREFIX,
	FW_CELL(DO_CREATE, CONTEXT, STATE),
	FW_CHECK_CONTEXT(context_large, INVALID_PAGE_SIZE, CONTEXT_SIZE),
	FW_END,
};
static const struct fw_check decommission_checks[] = {
	FW_PREFIX, FW_GUEST,
	FW_END,
};
static const struct fw_check guest_status_checks[] = {
	FW_PREFIX, FW_GUEST, NOT_IN_RMP,
	FW_CELL(DO_OUT_TO, PAGE, STATE), /* a page that firmware may write: Firmware or Default */
	FW_END,
};
static const struct fw_check launch_start_checks[] = {
	FW_PREFIX, FW_GUEST,
	FW_CHECK_CONTEXT(not_init, INVALID_GUEST_STATE, GUEST_STATE),
	FW_CHECK_AT(AGENT, has_agent, agent_in_rmp, INVALID_PARAM, IN_RMP),
	FW_CHECK_AT(AGENT, has_agent, agent_unknown, INVALID_GUEST, NOT_CONTEXT),
	FW_CHECK_AT(AGENT, has_agent, agent_refuses, POLICY_FAILURE, POLICY),
	FW_CHECK_CONTEXT(policy_refused, POLICY_FAILURE, POLICY),
	FW_END,
};
static const struct fw_check activate_checks[] = {
	FW_PREFIX, FW_GUEST,
	FW_CHECK_CONTEXT(fw_not_launched, INVALID_GUEST_STATE, GUEST_STATE),
	FW_CHECK_CONTEXT(asid_unknown, INVALID_ASID, ASID_RANGE),
	FW_CHECK_CONTEXT(asid_has_pages, INVALID_CONFIG, ASID_PAGES),
	FW_CHECK_CONTEXT(too_many_sockets, POLICY_FAILURE, POLICY),
	FW_CHECK_CONTEXT(asid_out_of_range, INVALID_ASID, ASID_RANGE),
	FW_CHECK_CONTEXT(asid_taken, ASID_OWNED, ASID_TAKEN),
	FW_CHECK_CONTEXT(has_asid, ACTIVE, HAS_ASID),
	FW_CHECK_CONTEXT(asid_dirty, DFFLUSH_REQUIRED, ASID_DIRTY),
	FW_END,
};
static const struct fw_check launch_update_checks[] = {
	FW_PREFIX, FW_GUEST, NOT_IN_RMP,
	FW_CELL(DO_LAUNCH, PAGE, STATE),
	FW_CHECK(page_size_differs, INVALID_PAGE_SIZE, SIZE),
	FW_CHECK(page_unaligned, INVALID_ADDRESS, ALIGN),
	FW_CHECK_IF(type_is_small, page_large, INVALID_PAGE_SIZE, TYPE_SIZE),
	FW_CHECK(type_unknown, INVALID_PARAM, TYPE),
	FW_CHECK(not_launch, INVALID_GUEST_STATE, GUEST_STATE),
	FW_CHECK(fw_no_asid, INACTIVE, NO_ASID),
	FW_CHECK(fw_not_owner, INVALID_PAGE_OWNER, OWNER),
	FW_CHECK(imi_missing, INVALID_PARAM, IMI),
	FW_CHECK_IF(is_cpuid, cpuid_malformed, INVALID_PARAM, CPUID),
	FW_END,
};
static const struct fw_check launch_finish_checks[] = {
	FW_PREFIX, FW_GUEST,
	FW_CHECK_CONTEXT(not_launch, INVALID_GUEST_STATE, GUEST_STATE),
	FW_CHECK_CONTEXT(is_imi, INVALID_GUEST_STATE, GUEST_STATE),
	FW_CHECK_CONTEXT(fw_no_asid, INACTIVE, NO_ASID),
	FW_CHECK_AT(CONTEXT, has_id_block, id_digest_differs, BAD_MEASUREMENT, ID_DIGEST),
	FW_CHECK_AT(CONTEXT, has_id_block, id_policy_differs, POLICY_FAILURE, POLICY),
	FW_CHECK_AT(CONTEXT, has_id_block, id_algorithm_unknown, INVALID_PARAM, ID_ALGORITHM),
	FW_CHECK_AT(CONTEXT, has_id_block, id_signature_wrong, BAD_SIGNATURE, ID_SIGNATURE),
	FW_END,
};
static const struct fw_check guest_request_checks[] = {
	FW_PREFIX, FW_GUEST, NOT_IN_RMP,
	FW_CHECK_DST(fw_dst_in_rmp, INVALID_PARAM, IN_RMP),
	FW_CELL(DO_CREATE, DST, STATE), /* as for a new context: Firmware */
	FW_CHECK(page_large, INVALID_PAGE_SIZE, NOT_4K),
	FW_CHECK_DST(dst_large, INVALID_PAGE_SIZE, NOT_4K),
	FW_CHECK(not_running, INVALID_GUEST_STATE, GUEST_STATE),
	FW_END,
};
static const struct fw_check page_move_checks[] = {
	FW_PREFIX, NOT_IN_RMP,
	FW_CHECK_DST(fw_dst_in_rmp, INVALID_PARAM, IN_RMP),
	FW_GUEST,
	FW_CHECK(moved_size_differs, INVALID_PAGE_SIZE, SIZE),
	FW_CHECK(fw_not_launched, INVALID_GUEST_STATE, GUEST_STATE),
	FW_CHECK(fw_no_asid, INACTIVE, NO_ASID),
	FW_CHECK(move_refused, INVALID_PAGE_STATE, STATE),
	FW_CHECK_IF(moves_guest, moved_not_owner, INVALID_PAGE_OWNER, OWNER),
	FW_CHECK_IF(moves_metadata, fw_not_owner_md, INVALID_PAGE_OWNER, OWNER),
	FW_END,
};
static const struct fw_check md_init_checks[] = {
	FW_PREFIX, NOT_IN_RMP, FW_GUEST,
	FW_CELL(DO_MD_INIT, PAGE, STATE),
	FW_CHECK(page_unaligned, INVALID_PAGE_STATE, ALIGN),
	FW_CHECK(fw_not_launched, INVALID_GUEST_STATE, GUEST_STATE),
	FW_END,
};
static const struct fw_check page_set_state_checks[] = {
	FW_CHECK(bad_length, INVALID_LEN, LENGTH),
	FW_CHECK(fw_reserved, INVALID_PARAM, RESERVED),
	FW_CHECK(fw_down, INVALID_PLATFORM_STATE, PLATFORM),
	FW_CHECK(range_unaligned, INVALID_PARAM, ALIGN),
	FW_CHECK(ranges_refused, INVALID_PAGE_STATE, STATE),
	FW_END,
};
static const struct fw_check page_reclaim_checks[] = {
	FW_CHECK(fw_reserved, INVALID_PARAM, RESERVED),
	FW_CHECK(fw_down, INVALID_PLATFORM_STATE, PLATFORM),
	FW_CHECK(no_memory_there, INVALID_ADDRESS, ADDRESS),
	NOT_IN_RMP,
	FW_CHECK_IF(has_entry, page_size_differs, INVALID_PAGE_SIZE, SIZE),
	FW_CHECK(page_unaligned, INVALID_ADDRESS, ALIGN),
	FW_CELL(DO_RECLAIM, PAGE, STATE),
	FW_END,
};
static const struct fw_check page_unsmash_checks[] = {
	FW_CHECK(fw_reserved, INVALID_PARAM, RESERVED),
	FW_CHECK(first_unaligned, INVALID_PARAM, ALIGN),
	FW_CHECK(fw_down, INVALID_PLATFORM_STATE, PLATFORM),
	FW_CHECK(block_in_rmp, INVALID_ADDRESS, IN_RMP),
	FW_CELL(DO_UNSMASH, PAGE, UNSMASH),
	FW_CHECK(not_cut_up, INVALID_PAGE_STATE, UNSMASH),
	FW_END,
};
/* clang-format on */

const struct fw_check *const fw_checks[SNP_COMMAND_COUNT] = {
	[SNP_CMD_INIT] = init_checks,
	[SNP_CMD_INIT_EX] = init_checks,
	[SNP_CMD_SHUTDOWN] = shutdown_checks,
	[SNP_CMD_SHUTDOWN_EX] = shutdown_checks,
	[SNP_CMD_DF_FLUSH] = df_flush_checks,
	[SNP_CMD_GCTX_CREATE] = gctx_create_checks,
	[SNP_CMD_DECOMMISSION] = decommission_checks,
	[SNP_CMD_GUEST_STATUS] = guest_status_checks,
	[SNP_CMD_LAUNCH_START] = launch_start_checks,
	[SNP_CMD_ACTIVATE] = activate_checks,
	[SNP_CMD_LAUNCH_UPDATE] = launch_update_checks,
	[SNP_CMD_LAUNCH_FINISH] = launch_finish_checks,
	[SNP_CMD_GUEST_REQUEST] = guest_request_checks,
	[SNP_CMD_PAGE_MOVE] = page_move_checks,
	[SNP_CMD_MD_INIT] = md_init_checks,
	[SNP_CMD_PAGE_SET_STATE] = page_set_state_checks,
	[SNP_CMD_PAGE_RECLAIM] = page_reclaim_checks,
	[SNP_CMD_PAGE_UNSMASH] = page_unsmash_checks,
	[SNP_CMD_SWAP_OUT] = fw_swap_out_checks,
	[SNP_CMD_SWAP_IN] = fw_swap_in_checks,
};
