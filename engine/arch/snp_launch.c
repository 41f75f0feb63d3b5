#include "engine/arch/snp_impl.h"

#include <string.h>

static uint64_t frames_of(const struct snp_launch_page *p)
{
	return p->size == SNP_2M ? SNP_LARGE : 1;
}

/* One page to Pre-Guest. *assigned: it is now, by this call. */
static enum pw_status assign(struct snp *m, const struct snp_guest *guest, const struct snp_launch_page *p,
			     bool *assigned)
{
	struct snp_rmpupdate u = {
		.pfn = p->pfn,
		.gfn = p->gfn,
		.asid = guest->asid,
		.size = p->size,
		.assigned = true,
		.immutable = true,
	};
	enum snp_code code;
	enum pw_status st;

	*assigned = false;
	if (word_at(m, p->pfn) & WORD_ASSIGNED) {
		why_set(m, SNP_RULE_STRICT, "launch", p->pfn);
		m->why.asks = true;
		m->why.asks_asid = (uint16_t)guest->asid;
		m->why.asks_gfn = p->gfn;
		return PW_OK;
	}
	st = update_page(m, &u, &code);
	*assigned = st == PW_OK && code == SNP_OK;
	return st;
}

static enum pw_status launch(struct snp *m, uint64_t context, const struct snp_launch_page *p, enum snp_status *status)
{
	struct snp_cmd c = {
		.op = SNP_CMD_LAUNCH_UPDATE,
		.context = context,
		.pfn = p->pfn,
		.size = p->size,
		.type = p->type,
		.content = p->content,
		.content_len = p->content_len,
	};

	memcpy(c.perms, p->perms, sizeof c.perms);
	return snp_command(m, &c, status);
}

/* A page that was refused is Pre-Guest still: firmware gives it back first. The nodes are there: they were before. */
static void undo(struct snp *m, const struct snp_launch_page *p)
{
	uint64_t w = word_at(m, p->pfn);

	if (word_state(w) == SNP_PRE_GUEST)
		page_put(m, snp_command_name(SNP_CMD_PAGE_RECLAIM), p->pfn, frames_of(p),
			 word_in(w, snp_cell(SNP_PRE_GUEST, SNP_DO_RECLAIM)->next));
	update_undo(m, p->pfn, frames_of(p));
}

enum pw_status snp_launch_pages(struct snp *m, uint64_t context, const struct snp_launch_page *pages, size_t count,
				size_t *done, enum snp_status *status)
{
	const struct snp_guest *guest = snp_guest(m, context);
	enum pw_status st = PW_OK;
	bool assigned = false;
	size_t n = 0;

	*done = 0;
	*status = !guest ? SNP_INVALID_GUEST : !guest->asid ? SNP_INACTIVE : SNP_SUCCESS;
	if (*status != SNP_SUCCESS) {
		why_set(m, guest ? SNP_RULE_NO_ASID : SNP_RULE_NOT_CONTEXT, "launch", context);
		return PW_OK;
	}
	for (; n < count; n++) {
		st = assign(m, guest, &pages[n], &assigned);
		if (st != PW_OK || !assigned)
			break;
		st = launch(m, context, &pages[n], status);
		if (st != PW_OK || *status != SNP_SUCCESS)
			break;
	}
	*done = n;
	if (n == count)
		return PW_OK;
	if (assigned)
		undo(m, &pages[n]);
	while (n > 0)
		undo(m, &pages[--n]);
	return st;
}
