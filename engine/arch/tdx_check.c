#include "engine/arch/tdx_impl.h"

/* Frames of one kind: two sets are taken for the same if these are. */
struct tally {
	uint64_t count, sum;
};

/* All that one TD has, as the PAMT says, or as its own tables do. */
struct holdings {
	struct tally reg[TDX_SIZES], ept;
	uint64_t pages; /* in 4 KiB units */
	uint64_t tdcx, tdvpr;
};

static void tally_run(struct tally *t, uint64_t first, uint64_t count)
{
	uint64_t even = count % 2 ? count : count / 2, odd = count % 2 ? (count - 1) / 2 : count - 1;

	t->count += count;
	t->sum += first * count + even * odd;
}

static bool tallies_equal(const struct tally *a, const struct tally *b)
{
	return a->count == b->count && a->sum == b->sum;
}

/* What the PAMT says that the TD owns. False: a word that cannot be. */
static bool hold_by_pamt(const struct tdx *m, const struct tdx_td *td, struct holdings *h)
{
	struct tree_run run;

	for (unsigned n = 0; n < TDX_SIZES; n++) {
		for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
			enum tdx_page_type t;

			run = tree_run_at(&m->pamt[n], at, TREE_PAGES);
			t = pamt_type(run.entry);
			if (run.entry == 0 || t == TDX_PT_RSVD)
				continue;
			if (n > 0 && t != TDX_PT_REG)
				return false;
			if (pamt_owner(run.entry) >= m->td_room || !m->tds[pamt_owner(run.entry)])
				return false;
			if (pamt_owner(run.entry) != td->index || t == TDX_PT_TDR)
				continue;
			h->pages += run.count * tdx_pages(n);
			if (t == TDX_PT_REG)
				tally_run(&h->reg[n], at, run.count);
			else if (t == TDX_PT_EPT)
				tally_run(&h->ept, at, run.count);
			h->tdcx += t == TDX_PT_TDCX ? run.count : 0;
			h->tdvpr += t == TDX_PT_TDVPR ? run.count : 0;
		}
	}
	return true;
}

static bool frames_are(const struct tdx *m, const struct tdx_td *td, unsigned size, uint64_t first, uint64_t count,
		       enum tdx_page_type t)
{
	struct tree_run run;

	for (uint64_t at = first; at < first + count; at += run.count) {
		run = tree_run_at(&m->pamt[size], at, first + count);
		if (pamt_type(run.entry) != t || pamt_owner(run.entry) != td->index)
			return false;
	}
	return true;
}

static bool parents_are_tables(const struct tdx_td *td, unsigned level, uint64_t first, uint64_t count)
{
	uint64_t last = (first + count - 1) >> TREE_BITS;
	struct tree_run run;

	if (level + 1 == td->levels)
		return true;
	for (uint64_t at = first >> TREE_BITS; at <= last; at += run.count) {
		run = tree_run_at(&td->sept[level + 1], at, last + 1);
		if (sept_state(run.entry) != TDX_NL_MAPPED && sept_state(run.entry) != TDX_NL_BLOCKED)
			return false;
	}
	return true;
}

/* What the TD's secure EPT holds. */
static bool hold_by_sept(const struct tdx *m, const struct tdx_td *td, struct holdings *h)
{
	struct tree_run run;

	for (unsigned l = 0; l < TDX_LEVELS; l++) {
		for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
			enum tdx_sept s;
			uint64_t n;

			run = tree_run_at(&td->sept[l], at, TREE_PAGES);
			s = sept_state(run.entry);
			n = sept_number(run.entry);
			if (run.entry == 0)
				continue;
			if (l >= td->levels || !parents_are_tables(td, l, at, run.count))
				return false;
			if (tdx_sept_has_frame(s)) {
				if (l >= TDX_SIZES || !frames_are(m, td, l, n, run.count, TDX_PT_REG))
					return false;
				tally_run(&h->reg[l], n, run.count);
				continue;
			}
			if (l == 0 || (s != TDX_NL_MAPPED && s != TDX_NL_BLOCKED) ||
			    !frames_are(m, td, 0, n, run.count, TDX_PT_EPT))
				return false;
			tally_run(&h->ept, n, run.count);
		}
	}
	return true;
}

static bool one_alias_each(const struct tdx_td *td)
{
	struct tree_run run;
	struct tdx_run leaf;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&td->shared, at, TREE_PAGES);
		for (uint64_t gfn = at; run.entry && gfn < at + run.count; gfn += leaf.count) {
			leaf = tdx_run_at(td, gfn, at + run.count);
			if (tdx_sept_has_frame(leaf.state))
				return false;
		}
	}
	return true;
}

static enum pw_status broken(struct pw_err *err, const struct tdx_td *td, const char *what)
{
	return pw_fail(err, PW_CONFLICT, "TD in frame 0x%" PRIx64 ": %s", td->tdr, what);
}

static enum pw_status check_td(const struct tdx *m, const struct tdx_td *td, struct pw_err *err)
{
	struct holdings pamt = { 0 }, sept = { 0 };
	const struct tdx_hkid *hkid = &m->hkids[td->hkid - m->first_hkid];

	if (tdx_td(m, td->tdr) != td)
		return broken(err, td, "its TDR is not its own");
	if (!hold_by_pamt(m, td, &pamt))
		return broken(err, td, "a frame without an owner");
	if (pamt.pages != td->chldcnt)
		return broken(err, td, "CHLDCNT is not the number of its frames");
	if (!one_alias_each(td))
		return broken(err, td, "a GFN is mapped under both aliases");
	if (td->lifecycle == TDX_TEARDOWN)
		return PW_OK;
	if (hkid->state != (td->lifecycle == TDX_TD_BLOCKED ? TDX_HKID_FLUSHED : TDX_HKID_IN_USE))
		return broken(err, td, "its HKID is not its own");
	if (!hold_by_sept(m, td, &sept))
		return broken(err, td, "an entry that no table or frame belongs to");
	for (unsigned n = 0; n < TDX_SIZES; n++)
		if (!tallies_equal(&pamt.reg[n], &sept.reg[n]))
			return broken(err, td, "PAMT and secure EPT differ on guest pages");
	if (!tallies_equal(&pamt.ept, &sept.ept))
		return broken(err, td, "PAMT and secure EPT differ on tables");
	if (pamt.tdvpr != td->vcpu_count || pamt.tdcx < td->tdcx)
		return broken(err, td, "control pages are missing");
	for (unsigned l = 0; l < TDX_LEVELS; l++)
		if (!tree_check(&td->sept[l]))
			return broken(err, td, "a page tree is damaged");
	return PW_OK;
}

/* A frame has one leaf: below a large one there is nothing. */
static bool sizes_are_apart(const struct tdx *m)
{
	struct tree_run run, below;

	for (unsigned n = 1; n < TDX_SIZES; n++) {
		for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
			run = tree_run_at(&m->pamt[n], at, TREE_PAGES);
			for (unsigned k = 0; run.entry && k < n; k++) {
				uint64_t scale = tdx_pages(n - k);

				below = tree_run_at(&m->pamt[k], at * scale, (at + run.count) * scale);
				if (below.entry || below.count < run.count * scale)
					return false;
			}
		}
	}
	return true;
}

static bool hkids_serve_one(const struct tdx *m)
{
	for (uint32_t n = 0; n <= m->last_hkid - m->first_hkid; n++) {
		unsigned users = 0;

		for (size_t i = 0; i < m->td_room; i++)
			users += m->tds[i] && m->tds[i]->lifecycle != TDX_TEARDOWN &&
				 m->tds[i]->hkid == m->first_hkid + n;
		if (users != (m->hkids[n].state == TDX_HKID_FREE ? 0u : 1u))
			return false;
	}
	return true;
}

bool tdx_check(const struct tdx *m, struct pw_err *err)
{
	for (size_t i = 0; i < m->td_room; i++)
		if (m->tds[i] && check_td(m, m->tds[i], err) != PW_OK)
			return false;
	if (!sizes_are_apart(m)) {
		pw_fail(err, PW_CONFLICT, "a frame has two PAMT leaves");
		return false;
	}
	if (!hkids_serve_one(m)) {
		pw_fail(err, PW_CONFLICT, "an HKID serves more than one TD, or none");
		return false;
	}
	for (unsigned n = 0; n < TDX_SIZES; n++)
		if (!tree_check(&m->pamt[n])) {
			pw_fail(err, PW_CONFLICT, "the PAMT's page tree is damaged");
			return false;
		}
	return true;
}
