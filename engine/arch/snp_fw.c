#include "engine/arch/snp_impl.h"

#include <string.h>

/* What the commands do: memory first, then changes that cannot fail. */

static void put(struct fw *f, uint64_t pfn, uint64_t old, uint64_t word)
{
	page_put(f->m, f->name, pfn, word_frames(old), word);
}

static void set_ranges(struct fw *f, const struct snp_range *ranges, size_t count, uint64_t word)
{
	for (size_t i = 0; i < count; i++)
		if (ranges[i].count)
			page_put(f->m, f->name, ranges[i].first, ranges[i].count, word);
}

static enum pw_status do_init(struct fw *f)
{
	struct snp *m = f->m;

	if (rmp_reserve(m, 1 + m->fixed_count + m->iommu_count) != PW_OK)
		return PW_NO_MEMORY;
	rmp_clear(m, f->name);
	m->guest_count = 0;
	md_clear(m);
	memset(m->pages, 0, sizeof m->pages);
	set_ranges(f, m->fixed, m->fixed_count, word_in(0, SNP_HV_FIXED));
	set_ranges(f, m->iommu, m->iommu_count, word_numbered(word_in(0, SNP_FIRMWARE_IOMMU), SNP_TAG_IOMMU | 1));
	set_ranges(f, &m->rmp, 1, word_in(0, SNP_FIRMWARE));
	memset(m->asids, SNP_ASID_DIRTY, sizeof m->asids);
	m->owes_wbinvd = true;
	m->up = true;
	return PW_OK;
}

static enum pw_status do_shutdown(struct fw *f)
{
	struct snp *m = f->m;
	bool iommu = m->up && f->c->op == SNP_CMD_SHUTDOWN_EX && f->c->iommu;

	if (iommu && rmp_reserve(m, m->iommu_count) != PW_OK)
		return PW_NO_MEMORY;
	if (iommu)
		set_ranges(f, m->iommu, m->iommu_count, word_in(0, SNP_RECLAIM));
	m->up = false;
	return PW_OK;
}

static enum pw_status do_df_flush(struct fw *f)
{
	for (unsigned asid = 0; asid < SNP_ASIDS; asid++)
		if (f->m->asids[asid] == SNP_ASID_DIRTY)
			f->m->asids[asid] = SNP_ASID_CLEAN;
	return PW_OK;
}

static enum pw_status guests_reserve(struct snp *m)
{
	size_t room = m->guest_room ? 2 * m->guest_room : 8;
	struct snp_guest *grown;

	if (m->guest_count < m->guest_room)
		return PW_OK;
	grown = pw_mem_alloc(m->mem, room * sizeof *grown);
	if (!grown)
		return PW_NO_MEMORY;
	if (m->guest_count)
		memcpy(grown, m->guests, m->guest_count * sizeof *grown);
	pw_mem_free(m->mem, m->guests, m->guest_room * sizeof *m->guests);
	m->guests = grown;
	m->guest_room = room;
	return PW_OK;
}

static enum pw_status do_gctx_create(struct fw *f)
{
	struct snp *m = f->m;
	uint64_t context = f->c->context, w = word_at(m, context);
	size_t at = 0;

	if (guests_reserve(m) != PW_OK || rmp_reserve(m, 1) != PW_OK)
		return PW_NO_MEMORY;
	while (at < m->guest_count && m->guests[at].context < context)
		at++;
	memmove(&m->guests[at + 1], &m->guests[at], (m->guest_count - at) * sizeof *m->guests);
	m->guests[at] = (struct snp_guest){ .context = context, .state = SNP_GUEST_INIT };
	m->guest_count++;
	put(f, context, w, word_in(w, snp_cell(f->context_state, SNP_DO_CREATE)->next));
	return PW_OK;
}

/* The guest's pages keep their ASID. */
static enum pw_status do_decommission(struct fw *f)
{
	struct snp *m = f->m;
	uint64_t context = f->c->context, w = word_at(m, context);
	size_t at = (size_t)(f->guest - m->guests);
	uint8_t *asid = &m->asids[f->guest->asid];

	if (rmp_reserve(m, 1) != PW_OK)
		return PW_NO_MEMORY;
	if (f->guest->asid && *asid == SNP_ASID_IN_USE) {
		*asid = SNP_ASID_DIRTY;
		m->owes_wbinvd = true;
	} else if (f->guest->asid) {
		*asid = SNP_ASID_CLEAN;
	}
	memmove(f->guest, f->guest + 1, (m->guest_count - at - 1) * sizeof *m->guests);
	m->guest_count--;
	md_drop_place(m, SNP_MD_IN_CONTEXT, context, 1);
	put(f, context, w, word_in(w, snp_cell(f->context_state, SNP_DO_DECOMMISSION)->next));
	return PW_OK;
}

static enum pw_status do_nothing(struct fw *f)
{
	(void)f;
	return PW_OK;
}

static enum pw_status do_launch_start(struct fw *f)
{
	f->guest->policy = f->c->policy;
	f->guest->imi = f->c->imi_guest;
	f->guest->agent = f->c->has_agent ? f->c->agent : 0;
	f->guest->state = SNP_GUEST_LAUNCH;
	return PW_OK;
}

static enum pw_status do_activate(struct fw *f)
{
	f->guest->asid = f->c->asid;
	f->m->asids[f->c->asid] = f->guest->state == SNP_GUEST_RUNNING ? SNP_ASID_IN_USE : SNP_ASID_ALLOCATED;
	return PW_OK;
}

static void measure(struct fw *f)
{
	const struct snp_cmd *c = f->c;
	uint8_t content[SNP_PAGE];
	struct snp_measured page = { .type = (enum snp_page_type)c->type, .imi = c->imi, .content = content };

	memcpy(page.perms, c->perms, sizeof page.perms);
	for (uint64_t i = 0; i < word_frames(f->word); i++) {
		for (size_t at = 0; at < SNP_PAGE; at++)
			content[at] = fw_content_at(c, i * SNP_PAGE + at);
		page.gfn = ((f->word & WORD_GFN) + i) & WORD_GFN;
		snp_digest_extend(f->guest->digest, &page);
		if (c->imi)
			snp_digest_extend(f->guest->imi_digest, &page);
	}
}

static enum pw_status do_launch_update(struct fw *f)
{
	const struct snp_cmd *c = f->c;
	uint32_t perms = PERMS_NEW;
	uint64_t word = word_in(f->word, snp_cell(f->state, SNP_DO_LAUNCH)->next);

	if (rmp_reserve(f->m, 1) != PW_OK)
		return PW_NO_MEMORY;
	if (!f->m->unmeasured)
		measure(f);
	for (unsigned i = 1; i < SNP_VMPLS; i++)
		perms |= (uint32_t)c->perms[i] << (8 * i);
	put(f, c->pfn, f->word, c->type == SNP_TYPE_VMSA ? word | WORD_VMSA : word);
	perms_put(f->m, c->pfn, word_frames(f->word), perms);
	return PW_OK;
}

static enum pw_status do_launch_finish(struct fw *f)
{
	f->guest->state = SNP_GUEST_RUNNING;
	f->m->asids[f->guest->asid] = SNP_ASID_IN_USE;
	return PW_OK;
}

static void move_guest_page(struct fw *f, const struct snp_move *move)
{
	uint64_t vmsa = f->word & WORD_VMSA, src = f->c->pfn, dst = f->c->dst;
	uint64_t word = word_numbered((f->dst_word & ~WORD_VMSA) | vmsa, f->word & WORD_GFN);
	uint32_t perms = perms_at(f->m, src);

	put(f, src, f->word, word_in(f->word, move->src_next));
	put(f, dst, f->dst_word, word_in(word, move->dst_next));
	perms_put(f->m, dst, word_frames(f->dst_word), perms);
}

static void move_metadata(struct fw *f, const struct snp_move *move)
{
	uint64_t count = word_frames(f->word), src = f->c->pfn, dst = f->c->dst;
	uint64_t word = word_in(f->dst_word, move->dst_next);

	md_move_place(f->m, SNP_MD_IN_PAGE, src, count, SNP_MD_IN_PAGE, dst);
	put(f, src, f->word, word_in(f->word, move->src_next));
	put(f, dst, f->dst_word, word_numbered(word, SNP_TAG_METADATA | f->c->context));
}

static enum pw_status do_page_move(struct fw *f)
{
	const struct snp_move *move = snp_move(f->state, f->dst_state);

	if (rmp_reserve(f->m, 2) != PW_OK)
		return PW_NO_MEMORY;
	if (f->state == SNP_METADATA)
		move_metadata(f, move);
	else
		move_guest_page(f, move);
	return PW_OK;
}

static enum pw_status do_md_init(struct fw *f)
{
	uint64_t word = word_in(f->word, snp_cell(f->state, SNP_DO_MD_INIT)->next);

	if (rmp_reserve(f->m, 1) != PW_OK)
		return PW_NO_MEMORY;
	put(f, f->c->pfn, f->word, word_numbered(word, SNP_TAG_METADATA | f->c->context));
	return PW_OK;
}

static enum pw_status do_page_set_state(struct fw *f)
{
	if (rmp_reserve(f->m, f->c->range_count) != PW_OK)
		return PW_NO_MEMORY;
	set_ranges(f, f->c->ranges, f->c->range_count, word_in(0, snp_cell(SNP_FIRMWARE, SNP_DO_FIX)->next));
	return PW_OK;
}

/* What had been metadata keeps its guest's frame, without the tag. */
static enum pw_status do_page_reclaim(struct fw *f)
{
	const struct snp_cell *cell = snp_cell(f->state, SNP_DO_RECLAIM);
	uint64_t number = f->word & TREE_NUMBER;

	if (cell->kind == SNP_STAY)
		return PW_OK;
	if (rmp_reserve(f->m, 1) != PW_OK)
		return PW_NO_MEMORY;
	if (f->state == SNP_METADATA) {
		md_drop_place(f->m, SNP_MD_IN_PAGE, f->c->pfn, word_frames(f->word));
		number &= ~SNP_GFN_TAG;
	}
	put(f, f->c->pfn, f->word, word_numbered(word_in(f->word, cell->next), number));
	return PW_OK;
}

static enum pw_status do_page_unsmash(struct fw *f)
{
	if (rmp_reserve(f->m, 1) != PW_OK)
		return PW_NO_MEMORY;
	page_put(f->m, f->name, f->c->pfn, SNP_LARGE, f->word | WORD_LARGE);
	return PW_OK;
}

static enum pw_status (*const apply[SNP_COMMAND_COUNT])(struct fw *f) = {
	[SNP_CMD_INIT] = do_init,
	[SNP_CMD_SHUTDOWN] = do_shutdown,
	[SNP_CMD_DF_FLUSH] = do_df_flush,
	[SNP_CMD_INIT_EX] = do_init,
	[SNP_CMD_SHUTDOWN_EX] = do_shutdown,
	[SNP_CMD_DECOMMISSION] = do_decommission,
	[SNP_CMD_ACTIVATE] = do_activate,
	[SNP_CMD_GUEST_STATUS] = do_nothing,
	[SNP_CMD_GCTX_CREATE] = do_gctx_create,
	[SNP_CMD_GUEST_REQUEST] = do_nothing,
	[SNP_CMD_LAUNCH_START] = do_launch_start,
	[SNP_CMD_LAUNCH_UPDATE] = do_launch_update,
	[SNP_CMD_LAUNCH_FINISH] = do_launch_finish,
	[SNP_CMD_SWAP_OUT] = fw_swap_out,
	[SNP_CMD_SWAP_IN] = fw_swap_in,
	[SNP_CMD_PAGE_MOVE] = do_page_move,
	[SNP_CMD_MD_INIT] = do_md_init,
	[SNP_CMD_PAGE_SET_STATE] = do_page_set_state,
	[SNP_CMD_PAGE_RECLAIM] = do_page_reclaim,
	[SNP_CMD_PAGE_UNSMASH] = do_page_unsmash,
};

static uint64_t checked_frame(const struct fw *f, enum fw_page on)
{
	switch (on) {
	case FW_CONTEXT: return f->c->context;
	case FW_DST: return f->c->dst;
	case FW_MD: return f->c->md;
	case FW_AGENT: return f->c->agent;
	case FW_PAGE: break;
	}
	return f->c->pfn;
}

static const struct snp_cell *checked_cell(const struct fw *f, const struct fw_check *check)
{
	switch (check->on) {
	case FW_CONTEXT: return snp_cell(f->context_state, check->cell);
	case FW_DST: return snp_cell(f->dst_state, check->cell);
	case FW_PAGE:
	case FW_MD: /* no cell asks these two */
	case FW_AGENT: break;
	}
	return snp_cell(f->state, check->cell);
}

/* The first check that fails decides. */
static enum snp_status run_checks(struct fw *f, const struct fw_check *checks)
{
	for (; checks->rule != SNP_RULE_NONE; checks++) {
		const struct snp_cell *cell = checked_cell(f, checks);

		if (checks->when && !checks->when(f))
			continue;
		if (checks->fails ? !checks->fails(f) : cell->kind != SNP_REFUSE)
			continue;
		why_set(f->m, checks->rule, f->name, checked_frame(f, checks->on));
		return checks->fails ? checks->status : cell->status;
	}
	return SNP_SUCCESS;
}

static struct fw fw_open(struct snp *m, const struct snp_cmd *c)
{
	return (struct fw){
		.m = m,
		.c = c,
		.name = snp_command_name(c->op),
		.guest = (struct snp_guest *)(uintptr_t)snp_guest(m, c->context),
		.word = word_at(m, c->pfn),
		.dst_word = word_at(m, c->dst),
		.context_state = state_at(m, c->context),
		.state = state_at(m, c->pfn),
		.dst_state = state_at(m, c->dst),
	};
}

enum pw_status snp_command(struct snp *m, const struct snp_cmd *c, enum snp_status *status)
{
	struct fw f = fw_open(m, c);

	*status = run_checks(&f, fw_checks[c->op]);
	return *status == SNP_SUCCESS ? apply[c->op](&f) : PW_OK;
}

void snp_wbinvd(struct snp *m)
{
	m->owes_wbinvd = false;
}

enum pw_status snp_legacy_buffer(struct snp *m, uint64_t pfn, enum snp_status *status)
{
	static const char name[] = "SEV command buffer";
	const struct snp_cell *cell = snp_cell(state_at(m, pfn), SNP_DO_BUFFER);
	uint64_t w = word_at(m, pfn), base = word_base(w, pfn);

	*status = m->up && in_range(&m->rmp, pfn) ? SNP_BUFFER_PAGE_STATE : SNP_SUCCESS;
	if (m->up && cell->kind == SNP_REFUSE)
		*status = cell->status;
	if (*status != SNP_SUCCESS)
		why_set(m, SNP_RULE_BUFFER, name, pfn);
	if (*status != SNP_SUCCESS || !m->up || cell->kind == SNP_STAY)
		return PW_OK;
	if (rmp_reserve(m, 1) != PW_OK)
		return PW_NO_MEMORY;
	page_put(m, name, base, word_frames(w), word_in(w, cell->next));
	return PW_OK;
}
