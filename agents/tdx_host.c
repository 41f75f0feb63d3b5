#include "agents/tdx_host.h"

#define BALLAST ((size_t)6 * TREE_RESERVE * (TREE_NODE_BYTES + 64)) /* what one call reserves, at most */

enum pw_status tdx_host_call(struct tdx_host *h, const struct tdx_guest *g, struct tdx_call c, struct pw_err *err)
{
	struct tdx_result *r = &h->last;
	enum pw_status st;

	if (c.op != TDX_MNG_CREATE)
		c.tdr = g->tdr;
	st = tdx_call(&h->module, &c, r, err);
	if (st != PW_OK || (r->code == TDX_SUCCESS && !r->exits))
		return st;
	tdx_explain(&h->module, &c, r, err);
	if (err)
		err->status = PW_BACKEND;
	return PW_BACKEND;
}

/* The PAMT says which control pages are free. */
static bool control_find(struct tdx_host *h, uint64_t *pfn)
{
	struct tree_run run;

	for (uint64_t at = h->control_hint; at < h->control.end; at += run.count) {
		run = tree_run_at(&h->module.pamt[0], at, h->control.end);
		h->control_hint = at;
		*pfn = at;
		if (run.entry == 0)
			return true;
	}
	return false;
}

enum pw_status tdx_host_call_control(struct tdx_host *h, const struct tdx_guest *g, struct tdx_call c, uint64_t *pfn,
				     struct pw_err *err)
{
	enum pw_status st;

	if (!control_find(h, &c.frame))
		return pw_fail(err, PW_BUSY, "%s: no memory for control pages is left beside the pool",
			       tdx_op_name(c.op));
	st = tdx_host_call(h, g, c, err);
	if (st == PW_OK && pfn)
		*pfn = c.frame;
	return st;
}

void tdx_host_control_is_free(struct tdx_host *h, uint64_t pfn)
{
	if (pfn < h->control_hint)
		h->control_hint = pfn;
}

static bool is_inside(const struct tdx_host *h, const struct tdx_guest *g)
{
	const struct tdx_td *td = tdx_host_td(h, g);

	return td && td->vcpu_count && td->vcpus[0].inside;
}

enum pw_status tdx_host_enter(struct tdx_host *h, const struct tdx_guest *g, struct pw_err *err)
{
	if (is_inside(h, g))
		return PW_OK;
	return tdx_host_call(h, g, (struct tdx_call){ .op = TDX_VP_ENTER, .vcpu = g->vcpu }, err);
}

enum pw_status tdx_host_track(struct tdx_host *h, const struct tdx_guest *g, struct pw_err *err)
{
	enum pw_status st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_TRACK }, err);

	if (st != PW_OK || !is_inside(h, g))
		return st;
	st = tdx_host_call(h, g, (struct tdx_call){ .op = TDX_VP_EXIT, .vcpu = g->vcpu }, err);
	return st == PW_OK ? tdx_host_enter(h, g, err) : st;
}

void tdx_host_ballast_drop(struct tdx_host *h)
{
	pw_mem_free(h->mem, h->ballast, BALLAST);
	h->ballast = NULL;
}

void tdx_host_ballast_take(struct tdx_host *h)
{
	if (!h->ballast)
		h->ballast = pw_mem_alloc(h->mem, BALLAST);
}
