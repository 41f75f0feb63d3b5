#include "engine/arch/tdx.h"

#include "engine/arch/tdx_impl.h"

#define SPARES_KEPT 256
#define HKID_END    65536

/* Life. */

static unsigned bits_for(uint64_t n)
{
	unsigned bits = 0;

	for (; n; n >>= 1)
		bits++;
	return bits;
}

static bool config_is_sane(const struct tdx_config *c, uint64_t pfn_end)
{
	if (c->tdmrs > TDX_TDMRS || c->packages < 1 || c->packages > 32)
		return false;
	for (unsigned i = 0; i < c->tdmrs; i++) {
		if (c->tdmr[i].first >= c->tdmr[i].end || c->tdmr[i].end > pfn_end)
			return false;
		for (unsigned k = 0; k < i; k++)
			if (c->tdmr[i].first < c->tdmr[k].end && c->tdmr[k].first < c->tdmr[i].end)
				return false;
	}
	for (unsigned i = 0; i < c->reserveds; i++)
		if (c->reserved[i].first >= c->reserved[i].end || c->reserved[i].end > pfn_end)
			return false;
	return true;
}

enum pw_status tdx_init(struct tdx *m, struct pw_mem *mem, const struct tdx_config *c, struct pw_err *err)
{
	uint64_t pfn_end;

	*m = (struct tdx){ .mem = mem };
	if (c->max_pa < 40 || c->max_pa > 52 || c->first_hkid > c->last_hkid || c->last_hkid >= HKID_END)
		return pw_fail(err, PW_INVALID, "no such platform: %u address bits, HKIDs %" PRIu32 " to %" PRIu32,
			       c->max_pa, c->first_hkid, c->last_hkid);
	pfn_end = (uint64_t)1 << (c->max_pa - TDX_PAGE_SHIFT - bits_for(c->last_hkid));
	if (!config_is_sane(c, pfn_end))
		return pw_fail(err, PW_INVALID, "TDMRs that overlap or reach past the address space");
	arena_init(&m->arena, mem);
	m->hkids = pw_mem_zalloc(mem, (c->last_hkid - c->first_hkid + 1) * sizeof *m->hkids);
	if (!m->hkids)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the HKIDs");
	for (unsigned i = 0; i < c->tdmrs; i++)
		m->tdmr[i] = c->tdmr[i];
	m->tdmrs = c->tdmrs;
	m->packages = c->packages;
	m->first_hkid = c->first_hkid;
	m->last_hkid = c->last_hkid;
	m->max_pa = c->max_pa;
	m->pfn_end = pfn_end;
	for (unsigned i = 0; i < TDX_SIZES; i++)
		tree_init(&m->pamt[i], &m->arena);
	for (unsigned i = 0; i < c->reserveds; i++)
		if (tree_set(&m->pamt[0], c->reserved[i].first, c->reserved[i].end - c->reserved[i].first,
			     (uint64_t)TDX_PT_RSVD << TDX_TYPE_SHIFT) != PW_OK) {
			tdx_release(m);
			return pw_fail(err, PW_NO_MEMORY, "no memory for the reserved ranges");
		}
	return PW_OK;
}

void tdx_release(struct tdx *m)
{
	for (size_t i = 0; i < m->td_room; i++)
		if (m->tds[i])
			tdx_td_free(m, m->tds[i]);
	for (unsigned i = 0; i < TDX_SIZES; i++)
		tree_release(&m->pamt[i]);
	arena_release(&m->arena);
	pw_mem_free(m->mem, m->tds, m->td_room * sizeof(struct tdx_td *));
	pw_mem_free(m->mem, m->hkids, (m->last_hkid - m->first_hkid + 1) * sizeof *m->hkids);
}

/* Calls. */

static enum pw_status dispatch(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err)
{
	switch (c->op) {
	case TDX_SEPT_ADD:
	case TDX_PAGE_ADD:
	case TDX_PAGE_AUG:
	case TDX_RANGE_BLOCK:
	case TDX_RANGE_UNBLOCK:
	case TDX_PAGE_REMOVE:
	case TDX_PAGE_RELOCATE:
	case TDX_PAGE_PROMOTE:
	case TDX_PAGE_DEMOTE:
	case TDX_SEPT_REMOVE:
	case TDX_MR_EXTEND:
	case TDX_SEPT_RD: return tdx_sept_call(m, c, r, err);
	case TDX_ACCEPT: return tdx_accept_call(m, c, r, err);
	case TDX_PAGE_RECLAIM:
	case TDX_PAGE_WBINVD:
	case TDX_PAGE_RDMD: return tdx_phymem_call(m, c, r, err);
	case TDX_VP_CREATE:
	case TDX_VP_ADDCX:
	case TDX_VP_INIT:
	case TDX_VP_ENTER:
	case TDX_VP_EXIT:
	case TDX_VP_FLUSH: return tdx_vp_call(m, c, r, err);
	case TDX_MNG_CREATE:
	case TDX_KEY_CONFIG:
	case TDX_MNG_ADDCX:
	case TDX_MNG_INIT:
	case TDX_MR_FINALIZE:
	case TDX_VPFLUSHDONE:
	case TDX_CACHE_WB:
	case TDX_KEY_FREEID:
	case TDX_KEY_RECLAIMID:
	case TDX_TRACK: return tdx_life_call(m, c, r, err);
	case TDX_OP_COUNT: break;
	}
	return pw_fail(err, PW_INVALID, "there is no TDX call %d", (int)c->op);
}

enum pw_status tdx_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err)
{
	*r = (struct tdx_result){ .code = TDX_SUCCESS };
	if (m->arena.spares > SPARES_KEPT)
		arena_trim_to(&m->arena, (size_t)TDX_CALL_SETS * TREE_RESERVE);
	if (arena_reserve_sets(&m->arena, TDX_CALL_SETS) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "no memory for %s",
			       (unsigned)c->op < TDX_OP_COUNT ? tdx_op_name(c->op) : "a call");
	return dispatch(m, c, r, err);
}

/* Explaining. */

/* Is the refused page the one that the call gives or asks about? */
static bool names_frame(const struct tdx_call *c, const struct tdx_result *r)
{
	bool in_rcx = c->op == TDX_MNG_CREATE || c->op == TDX_MNG_ADDCX || c->op == TDX_VP_CREATE ||
		      c->op == TDX_VP_ADDCX || c->op == TDX_PAGE_RECLAIM || c->op == TDX_PAGE_WBINVD;

	return r->code == TDX_PAGE_METADATA_INCORRECT && r->operand == (in_rcx ? TDX_RCX : TDX_R8);
}

enum pw_status tdx_explain(const struct tdx *m, const struct tdx_call *c, const struct tdx_result *r,
			   struct pw_err *err)
{
	const char *operand = tdx_operand_name(r->operand);
	const char *bar = *operand ? "|" : "";
	unsigned size;
	uint64_t owner;
	enum tdx_page_type t;

	if (r->exits)
		return pw_fail(err, PW_CONFLICT, "%s of GPA 0x%" PRIx64 " level %u: entry of level %u is %s: TD exit",
			       tdx_op_name(c->op), c->gpa, c->level, r->level, tdx_sept_name(r->state));
	if (names_frame(c, r)) {
		t = tdx_page(m, c->frame, &size, &owner);
		return pw_fail(err, PW_CONFLICT,
			       "%s: frame 0x%" PRIx64 " is %s of the TD in 0x%" PRIx64
			       ", asked for by the TD in 0x%" PRIx64 ": %s%s%s (%s)",
			       tdx_op_name(c->op), c->frame, tdx_page_type_name(t), owner, c->tdr,
			       tdx_code_name(r->code), bar, operand, tdx_code_rule(r->code));
	}
	if (c->op >= TDX_SEPT_ADD)
		return pw_fail(err, PW_CONFLICT,
			       "%s of GPA 0x%" PRIx64 " level %u: entry of level %u is %s: %s%s%s (%s)",
			       tdx_op_name(c->op), c->gpa, c->level, r->level, tdx_sept_name(r->state),
			       tdx_code_name(r->code), bar, operand, tdx_code_rule(r->code));
	return pw_fail(err, PW_CONFLICT, "%s: TD in 0x%" PRIx64 ", frame 0x%" PRIx64 ": %s%s%s (%s)",
		       tdx_op_name(c->op), c->tdr, c->frame, tdx_code_name(r->code), bar, operand,
		       tdx_code_rule(r->code));
}

/* Digest. */

static uint64_t mix(uint64_t h, uint64_t x)
{
	x += h * 0x9e3779b97f4a7c15u + 1;
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint64_t tree_digest(uint64_t h, const struct tree *t)
{
	struct tree_run run;

	if (t->root == 0)
		return mix(h, 0);
	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(t, at, TREE_PAGES);
		h = mix(mix(h, run.count), run.entry);
	}
	return h;
}

static uint64_t td_digest(const struct tdx_td *td)
{
	const uint64_t words[] = { td->index,  td->tdr,      td->hkid,       td->lifecycle,  td->op_state,   td->fatal,
				   td->tdcx,   td->packages, td->chldcnt,    td->levels,     td->alias.mask, td->epoch,
				   td->ref[0], td->ref[1],   td->vcpus_made, td->associated, td->vcpu_count };
	uint64_t h = 0;

	for (size_t i = 0; i < PW_ARRAY_LEN(words); i++)
		h = mix(h, words[i]);
	for (size_t i = 0; i < td->vcpu_count; i++) {
		const struct tdx_vcpu *v = &td->vcpus[i];

		h = mix(mix(h, v->tdvpr), v->cx * 8u + v->initialised * 4u + v->associated * 2u + v->inside);
		h = mix(h, v->inside ? v->epoch : 0);
	}
	for (unsigned l = 0; l < TDX_LEVELS; l++)
		h = tree_digest(h, &td->sept[l]);
	return tree_digest(h, &td->shared);
}

uint64_t tdx_digest(const struct tdx *m)
{
	uint64_t h = 0;

	for (unsigned i = 0; i < TDX_SIZES; i++)
		h = tree_digest(h, &m->pamt[i]);
	for (size_t i = 0; i < m->td_room; i++)
		h = m->tds[i] ? mix(h, td_digest(m->tds[i])) : h;
	for (uint32_t n = 0; n <= m->last_hkid - m->first_hkid; n++)
		h = mix(h, (uint64_t)m->hkids[n].state << 32 | m->hkids[n].dirty);
	return h;
}
