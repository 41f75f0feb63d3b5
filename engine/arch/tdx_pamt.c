#include "engine/arch/tdx_impl.h"

#include <assert.h>

void tdx_put(struct tree *t, uint64_t first, uint64_t count, uint64_t word)
{
	enum pw_status st = tree_set(t, first, count, word);

	assert(st == PW_OK);
	(void)st;
}

uint64_t tdx_pamt_leaf(const struct tdx *m, uint64_t pfn, unsigned *size)
{
	for (*size = TDX_SIZES - 1; *size > 0; --*size) {
		uint64_t word = m->pamt[*size].root ? tree_get(&m->pamt[*size], pfn >> (TREE_BITS * *size)) : 0;

		if (word)
			return word;
	}
	return tree_get(&m->pamt[0], pfn);
}

static bool is_in_tdmr(const struct tdx *m, uint64_t pfn, uint64_t count)
{
	for (unsigned i = 0; i < m->tdmrs; i++)
		if (pfn >= m->tdmr[i].first && pfn < m->tdmr[i].end)
			return count <= m->tdmr[i].end - pfn;
	return false;
}

bool tdx_frame_is_sane(const struct tdx *m, uint64_t pfn, unsigned size, uint32_t operand, struct tdx_result *r)
{
	if (pfn & (tdx_pages(size) - 1) || pfn >= m->pfn_end)
		return tdx_refuse(r, TDX_OPERAND_INVALID, operand);
	if (!is_in_tdmr(m, pfn, tdx_pages(size)))
		return tdx_refuse(r, TDX_OPERAND_ADDR_RANGE_ERROR, operand);
	return true;
}

/* NDA at exactly that size: nothing above, nothing below. */
static bool is_nda(const struct tdx *m, uint64_t pfn, unsigned size)
{
	for (unsigned n = TDX_SIZES - 1; n > size; n--)
		if (m->pamt[n].root && tree_get(&m->pamt[n], pfn >> (TREE_BITS * n)))
			return false;
	for (unsigned n = 0; n <= size; n++) {
		uint64_t first = pfn >> (TREE_BITS * n), count = tdx_pages(size - n);
		struct tree_run run;

		if (count == 1) {
			if (tree_get(&m->pamt[n], first))
				return false;
			continue;
		}
		run = tree_run_at(&m->pamt[n], first, first + count);
		if (run.entry || run.count < count)
			return false;
	}
	return true;
}

bool tdx_frame_is_free(const struct tdx *m, const struct tdx_call *c, unsigned size, uint32_t operand,
		       struct tdx_result *r)
{
	if (!tdx_frame_is_sane(m, c->frame, size, operand, r))
		return false;
	if (c->busy & TDX_BUSY_FRAME)
		return tdx_refuse(r, TDX_OPERAND_BUSY, operand);
	if (!is_nda(m, c->frame, size))
		return tdx_refuse(r, TDX_PAGE_METADATA_INCORRECT, operand);
	return true;
}

void tdx_frame_take(struct tdx *m, struct tdx_td *td, uint64_t pfn, unsigned size, enum tdx_page_type t, uint64_t note)
{
	tdx_put(&m->pamt[size], pfn >> (TREE_BITS * size), 1, pamt_word(t, td, note));
	td->chldcnt += tdx_pages(size);
}

void tdx_frame_give(struct tdx *m, struct tdx_td *td, uint64_t pfn, unsigned size)
{
	tdx_put(&m->pamt[size], pfn >> (TREE_BITS * size), 1, 0);
	td->chldcnt -= tdx_pages(size);
}

struct tdx_td *tdx_td(const struct tdx *m, uint64_t tdr)
{
	unsigned size;
	uint64_t word = tdr < m->pfn_end ? tdx_pamt_leaf(m, tdr, &size) : 0;

	return pamt_type(word) == TDX_PT_TDR ? m->tds[pamt_owner(word)] : NULL;
}

struct tdx_td *tdx_td_named(const struct tdx *m, const struct tdx_call *c, struct tdx_result *r)
{
	uint32_t operand = tdx_op_rule(c->op)->tdr;
	struct tdx_td *td = tdx_td(m, c->tdr);

	if (!tdx_frame_is_sane(m, c->tdr, 0, operand, r))
		return NULL;
	if (c->busy & TDX_BUSY_TDR)
		tdx_refuse(r, TDX_OPERAND_BUSY, operand);
	else if (!td)
		tdx_refuse(r, TDX_PAGE_METADATA_INCORRECT, operand);
	else
		return td;
	return NULL;
}

bool tdx_td_is_ready(const struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r)
{
	if (td->fatal)
		return tdx_refuse(r, TDX_TD_FATAL, 0);
	if (td->lifecycle != TDX_KEYS_CONFIGURED)
		return tdx_refuse(r, TDX_TD_KEYS_NOT_CONFIGURED, 0);
	if (td->tdcx < TDX_TDCX_MIN)
		return tdx_refuse(r, TDX_TDCS_NOT_ALLOCATED, 0);
	if (c->busy & TDX_BUSY_OP_STATE)
		return tdx_refuse(r, TDX_OPERAND_BUSY, TDX_OP_STATE);
	if (!(tdx_op_rule(c->op)->op_states >> td->op_state & 1))
		return tdx_refuse(r, TDX_OP_STATE_INCORRECT, 0);
	return true;
}

struct tdx_td *tdx_td_ready(const struct tdx *m, const struct tdx_call *c, struct tdx_result *r)
{
	struct tdx_td *td = tdx_td_named(m, c, r);

	return td && tdx_td_is_ready(td, c, r) ? td : NULL;
}

enum tdx_page_type tdx_page(const struct tdx *m, uint64_t pfn, unsigned *size, uint64_t *owner)
{
	uint64_t word = pfn < m->pfn_end ? tdx_pamt_leaf(m, pfn, size) : 0;
	enum tdx_page_type t = pamt_type(word);

	*owner = t == TDX_PT_NDA || t == TDX_PT_RSVD || t == TDX_PT_TDR ? 0 : m->tds[pamt_owner(word)]->tdr;
	return t;
}

/* TDH.PHYMEM.PAGE.* */

static void report_page(const struct tdx *m, uint64_t pfn, struct tdx_result *r)
{
	unsigned size;
	uint64_t word = tdx_pamt_leaf(m, pfn, &size);

	r->type = tdx_page(m, pfn, &r->size, &r->owner);
	if (r->type == TDX_PT_REG || r->type == TDX_PT_EPT)
		r->bepoch = pamt_note(word);
}

static void reclaim(struct tdx *m, const struct tdx_call *c, struct tdx_result *r)
{
	unsigned size;
	uint64_t word = tdx_pamt_leaf(m, c->frame, &size);
	enum tdx_page_type t = pamt_type(word);
	struct tdx_td *td;

	if (t == TDX_PT_NDA || t == TDX_PT_RSVD) {
		tdx_refuse(r, TDX_PAGE_METADATA_INCORRECT, TDX_RCX);
		return;
	}
	report_page(m, c->frame, r);
	if (c->frame & (tdx_pages(size) - 1)) {
		tdx_refuse(r, TDX_OPERAND_INVALID, TDX_RCX);
		return;
	}
	td = m->tds[pamt_owner(word)];
	if (c->busy & TDX_BUSY_TDR && t != TDX_PT_TDR) {
		tdx_refuse(r, TDX_OPERAND_BUSY, TDX_TDR);
	} else if (td->lifecycle != TDX_TEARDOWN) {
		tdx_refuse(r, TDX_LIFECYCLE_STATE_INCORRECT, 0);
	} else if (t != TDX_PT_TDR) {
		tdx_frame_give(m, td, c->frame, size);
	} else if (td->chldcnt) {
		tdx_refuse(r, TDX_TD_ASSOCIATED_PAGES_EXIST, 0);
	} else {
		tdx_put(&m->pamt[0], td->tdr, 1, 0);
		tdx_td_free(m, td);
	}
}

enum pw_status tdx_phymem_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err)
{
	unsigned size;

	(void)err;
	if (!tdx_frame_is_sane(m, c->frame, 0, TDX_RCX, r))
		return PW_OK;
	if (c->busy & TDX_BUSY_FRAME)
		tdx_refuse(r, TDX_OPERAND_BUSY, TDX_RCX);
	else if (c->op == TDX_PAGE_RECLAIM)
		reclaim(m, c, r);
	else if (c->op == TDX_PAGE_RDMD)
		report_page(m, c->frame, r);
	else if (tdx_pamt_leaf(m, c->frame, &size) != 0)
		tdx_refuse(r, TDX_PAGE_METADATA_INCORRECT, TDX_RCX);
	return PW_OK;
}
