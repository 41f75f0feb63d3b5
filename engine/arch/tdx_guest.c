#include "engine/arch/tdx_impl.h"

#define CHUNK_PAGES 512

/* What a guest's access does, by the state that the walk ends at. */
static enum tdx_touch touch_private(const struct tdx_td *td, uint64_t gpa)
{
	uint64_t word;
	unsigned l;

	tdx_walk(td, gpa >> TDX_PAGE_SHIFT, 0, &word, &l);
	switch (sept_state(word)) {
	case TDX_MAPPED: return TDX_TOUCH_WORKS;
	case TDX_PENDING: return td->pending_ve_disable ? TDX_TOUCH_EXIT_PENDING : TDX_TOUCH_VE;
	case TDX_FREE:
	case TDX_BLOCKED:
	case TDX_PENDING_BLOCKED:
	case TDX_NL_MAPPED:
	case TDX_NL_BLOCKED:
	case TDX_REMOVED:
	case TDX_SEPT_COUNT: break;
	}
	return TDX_TOUCH_EXIT;
}

enum tdx_touch tdx_touch(const struct tdx_td *td, uint64_t gpa)
{
	uint64_t raw = gpa >> TDX_PAGE_SHIFT;

	if (gpa >> td->gpa_bits || alias_unalias(td->alias, raw) >> (TREE_BITS * td->levels))
		return TDX_TOUCH_EXIT;
	if (alias_is_private(td->alias, raw))
		return touch_private(td, gpa);
	return tree_get(&td->shared, alias_unalias(td->alias, raw)) ? TDX_TOUCH_WORKS : TDX_TOUCH_EXIT;
}

/* The host's own EPT. */

static enum pw_status check_run(const struct tdx_td *td, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	if (td->alias.mask && count && alias_is_valid_gfn(td->alias, gfn, count))
		return PW_OK;
	return pw_fail(err, PW_INVALID, "%" PRIu64 " pages from GFN 0x%" PRIx64 " are not pages of the TD", count, gfn);
}

enum pw_status tdx_map_shared(struct tdx *m, struct tdx_td *td, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	enum pw_status st = check_run(td, gfn, count, err);
	struct tdx_run run;

	(void)m;
	if (st != PW_OK)
		return st;
	for (uint64_t at = gfn; at < gfn + count; at += run.count) {
		run = tdx_run_at(td, at, gfn + count);
		if (tdx_sept_has_frame(run.state))
			return pw_fail(err, PW_CONFLICT,
				       "GFN 0x%" PRIx64 " is %s in the secure EPT (L9: one alias at a time)", at,
				       tdx_sept_name(run.state));
	}
	st = tree_set(&td->shared, gfn, count, 1);
	return st == PW_OK ? PW_OK : pw_fail(err, st, "no memory to map %" PRIu64 " pages", count);
}

enum pw_status tdx_unmap_shared(struct tdx *m, struct tdx_td *td, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	enum pw_status st = check_run(td, gfn, count, err);

	(void)m;
	if (st != PW_OK)
		return st;
	st = tree_set(&td->shared, gfn, count, 0);
	return st == PW_OK ? PW_OK : pw_fail(err, st, "no memory to unmap %" PRIu64 " pages", count);
}

/* TDG.VP.VMCALL<MapGPA> */

static bool is_legal(const struct tdx_td *td, uint64_t gpa)
{
	return td->alias.mask && gpa >> td->gpa_bits == 0;
}

static bool is_private(const struct tdx_td *td, uint64_t gpa)
{
	return alias_is_private(td->alias, gpa >> TDX_PAGE_SHIFT);
}

uint64_t tdx_mapgpa_check(const struct tdx_td *td, const struct tdx_mapgpa *q)
{
	const uint64_t offset = ((uint64_t)1 << TDX_PAGE_SHIFT) - 1;
	uint64_t last = q->gpa + q->bytes - 1;

	if (!q->enabled)
		return TDX_VMCALL_UNSUPPORTED;
	if (q->gpa + q->bytes <= q->gpa || !is_legal(td, q->gpa) || !is_legal(td, last) ||
	    is_private(td, q->gpa) != is_private(td, last))
		return TDX_VMCALL_INVALID;
	if ((q->gpa | q->bytes) & offset)
		return TDX_VMCALL_ALIGN_ERROR;
	return TDX_VMCALL_SUCCESS;
}

bool tdx_mapgpa_next(const struct tdx_td *td, struct tdx_mapgpa *q, struct tdx_mapgpa_chunk *out)
{
	uint64_t pages = q->bytes >> TDX_PAGE_SHIFT;

	if (pages == 0)
		return false;
	out->to_private = is_private(td, q->gpa);
	out->gfn = alias_unalias(td->alias, q->gpa >> TDX_PAGE_SHIFT);
	out->count = pages < CHUNK_PAGES ? pages : CHUNK_PAGES;
	q->gpa += out->count << TDX_PAGE_SHIFT;
	q->bytes -= out->count << TDX_PAGE_SHIFT;
	return true;
}

/* The law's view. */

enum gfn_state tdx_project(const struct tdx_td *td, enum tdx_sept s, bool shared)
{
	if (tdx_project_vm(td) == VM_NORMAL)
		return GFN_NORMAL;
	if (tdx_sept_has_frame(s))
		return GFN_SECURE_RESIDENT;
	if (shared)
		return GFN_SHARED;
	return td->op_state == TDX_RUNNABLE ? GFN_SECURE_OUT : GFN_NORMAL;
}

enum vm_state tdx_project_vm(const struct tdx_td *td)
{
	if (!td || (td->lifecycle == TDX_TEARDOWN && td->chldcnt == 0))
		return VM_NORMAL;
	return td->op_state == TDX_RUNNABLE ? VM_SECURE : VM_TRANSIENT;
}
