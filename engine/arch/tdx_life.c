#include <string.h>

#include "engine/arch/tdx_impl.h"

static struct tdx_hkid *hkid_of(const struct tdx *m, const struct tdx_td *td)
{
	return &m->hkids[td->hkid - m->first_hkid];
}

/* The index of the first slot without a TD, with room for it. */
static enum pw_status slot_find(struct tdx *m, uint32_t *index)
{
	size_t room = m->td_room ? 2 * m->td_room : 8;
	struct tdx_td **grown;

	for (*index = 0; *index < m->td_room; ++*index)
		if (!m->tds[*index])
			return PW_OK;
	if (m->td_room >= TDX_TDS)
		return PW_NO_MEMORY;
	grown = pw_mem_zalloc(m->mem, room * sizeof(struct tdx_td *));
	if (!grown)
		return PW_NO_MEMORY;
	if (m->td_room)
		memcpy(grown, m->tds, m->td_room * sizeof(struct tdx_td *));
	pw_mem_free(m->mem, m->tds, m->td_room * sizeof(struct tdx_td *));
	m->tds = grown;
	m->td_room = room;
	return PW_OK;
}

static enum pw_status create(struct tdx *m, const struct tdx_call *c, struct tdx_result *r)
{
	struct tdx_td *td;
	uint32_t index;

	if (c->hkid < m->first_hkid || c->hkid > m->last_hkid) {
		tdx_refuse(r, TDX_OPERAND_INVALID, TDX_RDX);
		return PW_OK;
	}
	if (!tdx_frame_is_free(m, c, 0, TDX_RCX, r))
		return PW_OK;
	if (c->busy & TDX_BUSY_KOT) {
		tdx_refuse(r, TDX_OPERAND_BUSY, TDX_KOT);
		return PW_OK;
	}
	if (m->hkids[c->hkid - m->first_hkid].state != TDX_HKID_FREE) {
		tdx_refuse(r, TDX_HKID_NOT_FREE, 0);
		return PW_OK;
	}
	td = slot_find(m, &index) == PW_OK ? pw_mem_zalloc(m->mem, sizeof *td) : NULL;
	if (!td)
		return PW_NO_MEMORY;
	*td = (struct tdx_td){ .index = index, .tdr = c->frame, .hkid = c->hkid };
	for (unsigned l = 0; l < TDX_LEVELS; l++)
		tree_init(&td->sept[l], &m->arena);
	tree_init(&td->shared, &m->arena);
	m->tds[index] = td;
	m->hkids[c->hkid - m->first_hkid].state = TDX_HKID_IN_USE;
	tdx_put(&m->pamt[0], c->frame, 1, pamt_word(TDX_PT_TDR, td, 0));
	return PW_OK;
}

static void drop_maps(struct tdx_td *td)
{
	for (unsigned l = 0; l < TDX_LEVELS; l++)
		tree_release(&td->sept[l]);
	tree_release(&td->shared);
}

void tdx_td_free(struct tdx *m, struct tdx_td *td)
{
	drop_maps(td);
	m->tds[td->index] = NULL;
	pw_mem_free(m->mem, td->vcpus, td->vcpu_room * sizeof *td->vcpus);
	pw_mem_free(m->mem, td, sizeof *td);
}

static uint32_t all_packages(const struct tdx *m)
{
	return (uint32_t)(((uint64_t)1 << m->packages) - 1);
}

static bool key_config(const struct tdx *m, struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r)
{
	uint32_t bit = (uint32_t)1 << c->package;

	if (td->fatal)
		return tdx_refuse(r, TDX_TD_FATAL, 0);
	if (td->lifecycle != TDX_HKID_ASSIGNED)
		return tdx_refuse(r, TDX_LIFECYCLE_STATE_INCORRECT, 0);
	if (td->packages & bit)
		return tdx_refuse(r, TDX_KEY_CONFIGURED, 0);
	if (c->fails)
		return tdx_refuse(r, TDX_KEY_GENERATION_FAILED, 0);
	td->packages |= bit;
	if (td->packages == all_packages(m))
		td->lifecycle = TDX_KEYS_CONFIGURED;
	return true;
}

static bool add_cx(struct tdx *m, struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r)
{
	if (td->fatal)
		return tdx_refuse(r, TDX_TD_FATAL, 0);
	if (td->lifecycle != TDX_KEYS_CONFIGURED)
		return tdx_refuse(r, TDX_TD_KEYS_NOT_CONFIGURED, 0);
	if (td->tdcx >= TDX_TDCX_MAX)
		return tdx_refuse(r, TDX_TDCX_NUM_INCORRECT, 0);
	if (!tdx_frame_is_free(m, c, 0, TDX_RCX, r))
		return false;
	if (td->tdcx >= TDX_TDCX_MIN && !(tdx_op_rule(c->op)->op_states >> td->op_state & 1))
		return tdx_refuse(r, TDX_OP_STATE_INCORRECT, 0);
	tdx_frame_take(m, td, c->frame, 0, TDX_PT_TDCX, 0);
	td->tdcx++;
	return true;
}

static bool init(struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r)
{
	unsigned bits = c->wide ? 52 : 48;
	struct gfn_alias alias;

	if (!tdx_td_is_ready(td, c, r))
		return false;
	if (c->levels < TDX_LEVELS - 1 || c->levels > TDX_LEVELS ||
	    alias_from_gpa_bit(bits - 1, TDX_PAGE_SHIFT, &alias, NULL) != PW_OK)
		return tdx_refuse(r, TDX_OPERAND_INVALID, TDX_RDX);
	td->gpa_bits = bits;
	td->alias = alias;
	td->levels = c->levels;
	td->epoch = 1;
	td->op_state = TDX_INITIALIZED;
	return true;
}

static bool finalize(struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r)
{
	if (!tdx_td_is_ready(td, c, r))
		return false;
	if (td->vcpus_made == 0)
		return tdx_refuse(r, TDX_NO_VCPUS, 0);
	td->op_state = TDX_RUNNABLE;
	return true;
}

/* An epoch that a BEPOCH cannot hold is never reached in practice; nothing is tracked past it. */
static bool track(struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r)
{
	r->epoch = td->epoch;
	if (!tdx_td_is_ready(td, c, r))
		return false;
	if (c->busy & TDX_BUSY_EPOCH)
		return tdx_refuse(r, TDX_OPERAND_BUSY, TDX_TD_EPOCH);
	if (td->ref[(td->epoch - 1) & 1] != 0 || td->epoch == TREE_NUMBER)
		return tdx_refuse(r, TDX_PREVIOUS_TLB_EPOCH_BUSY, 0);
	r->epoch = ++td->epoch;
	return true;
}

static bool vp_flush_done(const struct tdx *m, struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r)
{
	if (c->busy & TDX_BUSY_KOT)
		return tdx_refuse(r, TDX_OPERAND_BUSY, TDX_KOT);
	if (td->lifecycle != TDX_HKID_ASSIGNED && td->lifecycle != TDX_KEYS_CONFIGURED)
		return tdx_refuse(r, TDX_LIFECYCLE_STATE_INCORRECT, 0);
	if (td->associated)
		return tdx_refuse(r, TDX_FLUSHVP_NOT_DONE, 0);
	td->lifecycle = TDX_TD_BLOCKED;
	hkid_of(m, td)->state = TDX_HKID_FLUSHED;
	hkid_of(m, td)->dirty = all_packages(m);
	return true;
}

/* From here on nothing walks the TD's tables again. */
static bool key_freeid(const struct tdx *m, struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r)
{
	if (td->lifecycle != TDX_TD_BLOCKED)
		return tdx_refuse(r, TDX_LIFECYCLE_STATE_INCORRECT, 0);
	if (c->busy & TDX_BUSY_KOT)
		return tdx_refuse(r, TDX_OPERAND_BUSY, TDX_KOT);
	if (hkid_of(m, td)->dirty)
		return tdx_refuse(r, TDX_WBCACHE_NOT_COMPLETE, 0);
	hkid_of(m, td)->state = TDX_HKID_FREE;
	td->lifecycle = TDX_TEARDOWN;
	drop_maps(td);
	return true;
}

static void cache_wb(struct tdx *m, const struct tdx_call *c, struct tdx_result *r)
{
	uint32_t bit = (uint32_t)1 << c->package;
	bool any = false;

	for (uint32_t n = 0; n <= m->last_hkid - m->first_hkid; n++)
		any |= m->hkids[n].state == TDX_HKID_FLUSHED && m->hkids[n].dirty & bit;
	if (c->busy & TDX_BUSY_KOT)
		tdx_refuse(r, TDX_OPERAND_BUSY, TDX_KOT);
	else if (!any)
		tdx_refuse(r, TDX_NO_HKID_READY_TO_WBCACHE, 0);
	else if (c->interrupt)
		tdx_refuse(r, TDX_INTERRUPTED_RESUMABLE, 0);
	else
		for (uint32_t n = 0; n <= m->last_hkid - m->first_hkid; n++)
			m->hkids[n].dirty &= ~bit;
}

enum pw_status tdx_life_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err)
{
	struct tdx_td *td;

	if (c->package >= m->packages)
		return pw_fail(err, PW_INVALID, "there is no package %u", c->package);
	if (c->op == TDX_MNG_CREATE)
		return create(m, c, r) == PW_OK ? PW_OK : pw_fail(err, PW_NO_MEMORY, "no memory for a TD");
	if (c->op == TDX_CACHE_WB) {
		cache_wb(m, c, r);
		return PW_OK;
	}
	td = tdx_td_named(m, c, r);
	if (!td)
		return PW_OK;
	switch ((int)c->op) {
	case TDX_KEY_CONFIG: key_config(m, td, c, r); break;
	case TDX_MNG_ADDCX: add_cx(m, td, c, r); break;
	case TDX_MNG_INIT: init(td, c, r); break;
	case TDX_MR_FINALIZE: finalize(td, c, r); break;
	case TDX_TRACK: track(td, c, r); break;
	case TDX_VPFLUSHDONE: vp_flush_done(m, td, c, r); break;
	case TDX_KEY_FREEID: key_freeid(m, td, c, r); break;
	case TDX_KEY_RECLAIMID: break;
	}
	return PW_OK;
}

/* vCPUs. */

void tdx_assume_vcpus(struct tdx_td *td, uint64_t n)
{
	td->vcpus_made += n;
}

void tdx_epoch_enter(struct tdx_td *td)
{
	td->ref[td->epoch & 1]++;
}

bool tdx_epoch_leave(struct tdx_td *td, uint64_t epoch)
{
	if ((epoch != td->epoch && epoch + 1 != td->epoch) || td->ref[epoch & 1] == 0)
		return false;
	td->ref[epoch & 1]--;
	return true;
}

static enum pw_status vp_create(struct tdx *m, const struct tdx_call *c, struct tdx_result *r)
{
	struct tdx_td *td = tdx_td_ready(m, c, r);
	size_t room;

	if (!td || !tdx_frame_is_free(m, c, 0, TDX_RCX, r))
		return PW_OK;
	room = td->vcpu_room ? 2 * td->vcpu_room : 4;
	if (td->vcpu_count == td->vcpu_room) {
		struct tdx_vcpu *grown = pw_mem_alloc(m->mem, room * sizeof *grown);

		if (!grown)
			return PW_NO_MEMORY;
		if (td->vcpu_count)
			memcpy(grown, td->vcpus, td->vcpu_count * sizeof *grown);
		pw_mem_free(m->mem, td->vcpus, td->vcpu_room * sizeof *grown);
		td->vcpus = grown;
		td->vcpu_room = room;
	}
	tdx_frame_take(m, td, c->frame, 0, TDX_PT_TDVPR, td->vcpu_count);
	td->vcpus[td->vcpu_count++] = (struct tdx_vcpu){ .tdvpr = c->frame };
	return PW_OK;
}

static bool vp_addcx(struct tdx *m, struct tdx_td *td, struct tdx_vcpu *v, const struct tdx_call *c,
		     struct tdx_result *r)
{
	if (v->cx >= TDX_VPCX)
		return tdx_refuse(r, TDX_TDVPX_NUM_INCORRECT, 0);
	if (v->initialised)
		return tdx_refuse(r, TDX_VCPU_STATE_INCORRECT, 0);
	if (!tdx_frame_is_free(m, c, 0, TDX_RCX, r))
		return false;
	tdx_frame_take(m, td, c->frame, 0, TDX_PT_TDCX, 0);
	v->cx++;
	return true;
}

/* INIT associates the vCPU with the CPU that it runs on. */
static bool vp_init(struct tdx_td *td, struct tdx_vcpu *v, struct tdx_result *r)
{
	if (v->initialised)
		return tdx_refuse(r, TDX_VCPU_STATE_INCORRECT, 0);
	if (v->cx < TDX_VPCX)
		return tdx_refuse(r, TDX_TDVPX_NUM_INCORRECT, 0);
	v->initialised = v->associated = true;
	td->associated++;
	td->vcpus_made++;
	return true;
}

static bool vp_enter(struct tdx_td *td, struct tdx_vcpu *v, struct tdx_result *r)
{
	if (v->inside)
		return tdx_refuse(r, TDX_OPERAND_BUSY, TDX_RCX);
	if (!v->initialised)
		return tdx_refuse(r, TDX_VCPU_STATE_INCORRECT, 0);
	td->associated += !v->associated;
	v->associated = v->inside = true;
	v->epoch = r->epoch = td->epoch;
	tdx_epoch_enter(td);
	return true;
}

static bool vp_exit(struct tdx_td *td, struct tdx_vcpu *v, struct tdx_result *r)
{
	if (!v->inside || !tdx_epoch_leave(td, v->epoch))
		return tdx_refuse(r, TDX_VCPU_STATE_INCORRECT, 0);
	v->inside = false;
	r->epoch = v->epoch;
	return true;
}

static bool vp_flush(struct tdx_td *td, struct tdx_vcpu *v, struct tdx_result *r)
{
	if (v->inside)
		return tdx_refuse(r, TDX_OPERAND_BUSY, TDX_RCX);
	if (!v->associated)
		return tdx_refuse(r, TDX_VCPU_NOT_ASSOCIATED, 0);
	v->associated = false;
	td->associated--;
	return true;
}

/* The vCPU that a TDVPR names. */
static struct tdx_vcpu *vcpu_named(const struct tdx *m, const struct tdx_call *c, struct tdx_result *r,
				   struct tdx_td **td)
{
	uint32_t operand = c->op == TDX_VP_ADDCX ? TDX_RDX : TDX_RCX;
	uint64_t word;
	unsigned size;

	if (!tdx_frame_is_sane(m, c->vcpu, 0, operand, r))
		return NULL;
	word = tdx_pamt_leaf(m, c->vcpu, &size);
	if (pamt_type(word) != TDX_PT_TDVPR) {
		tdx_refuse(r, TDX_PAGE_METADATA_INCORRECT, operand);
		return NULL;
	}
	*td = m->tds[pamt_owner(word)];
	return &(*td)->vcpus[pamt_note(word)];
}

enum pw_status tdx_vp_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err)
{
	struct tdx_vcpu *v;
	struct tdx_td *td;

	if (c->op == TDX_VP_CREATE)
		return vp_create(m, c, r) == PW_OK ? PW_OK : pw_fail(err, PW_NO_MEMORY, "no memory for a vCPU");
	v = vcpu_named(m, c, r, &td);
	if (!v || (tdx_op_rule(c->op)->op_states && !tdx_td_is_ready(td, c, r)))
		return PW_OK;
	switch ((int)c->op) {
	case TDX_VP_ADDCX: vp_addcx(m, td, v, c, r); break;
	case TDX_VP_INIT: vp_init(td, v, r); break;
	case TDX_VP_ENTER: vp_enter(td, v, r); break;
	case TDX_VP_EXIT: vp_exit(td, v, r); break;
	case TDX_VP_FLUSH: vp_flush(td, v, r); break;
	}
	return PW_OK;
}
