#include <assert.h>

#include "engine/arch/tdx_impl.h"

#define ENTRIES TREE_FANOUT

/* A call on an entry, on its way through the checks. */
struct at {
	struct tdx *m;
	const struct tdx_call *c;
	struct tdx_result *r;
	struct tdx_td *td;
	unsigned level;
	uint64_t index; /* of the entry in its level's tree */
	uint64_t word;
	const struct tdx_sept_cell *cell;
};

bool tdx_gpa_is_private(const struct tdx *m, const struct tdx_td *td, uint64_t gpa)
{
	uint64_t gfn = gpa >> TDX_PAGE_SHIFT;

	return gpa >> m->max_pa == 0 && gpa >> td->gpa_bits == 0 && alias_is_private(td->alias, gfn) &&
	       gfn >> (TREE_BITS * td->levels) == 0;
}

bool tdx_walk(const struct tdx_td *td, uint64_t gfn, unsigned level, uint64_t *word, unsigned *stopped)
{
	unsigned l = td->levels - 1;

	for (;; l--) {
		*word = tree_get(&td->sept[l], gfn >> (TREE_BITS * l));
		*stopped = l;
		if (l == level)
			return true;
		if (sept_state(*word) != TDX_NL_MAPPED)
			return false;
	}
}

static void found(struct at *a, uint64_t word, unsigned level)
{
	a->word = word;
	a->level = level;
	a->index = a->c->gpa >> TDX_PAGE_SHIFT >> (TREE_BITS * level);
	a->cell = tdx_sept_cell(sept_state(word), a->c->op);
	a->r->state = sept_state(word);
	a->r->level = level;
}

/* Level and GPA, as far as they do not depend on the tree. */
static bool operands_are_sane(const struct at *a)
{
	const struct tdx_op_rule *rule = tdx_op_rule(a->c->op);
	unsigned max = rule->max_level == TDX_TO_ROOT ? a->td->levels - 1 : rule->max_level;
	unsigned align = a->c->op == TDX_MR_EXTEND ? 8 : TDX_PAGE_SHIFT + TREE_BITS * a->c->level;

	if (a->c->level < rule->min_level || a->c->level > max || a->c->gpa & (((uint64_t)1 << align) - 1))
		return false;
	return tdx_gpa_is_private(a->m, a->td, a->c->gpa);
}

/* MR.EXTEND takes the leaf it finds, of any size. */
static bool reach_leaf(struct at *a)
{
	uint64_t word;
	unsigned l;
	bool there = tdx_walk(a->td, a->c->gpa >> TDX_PAGE_SHIFT, 0, &word, &l);

	found(a, word, l);
	if (!there && !tdx_sept_has_frame(sept_state(word)))
		return tdx_refuse(a->r, TDX_EPT_ENTRY_NOT_PRESENT, TDX_RCX);
	return true;
}

static bool reach_entry(struct at *a)
{
	uint64_t word;
	unsigned l;
	bool there;

	if (a->c->busy & TDX_BUSY_SEPT_TREE)
		return tdx_refuse(a->r, TDX_OPERAND_BUSY, TDX_SEPT_TREE);
	there = tdx_walk(a->td, a->c->gpa >> TDX_PAGE_SHIFT, a->c->level, &word, &l);
	found(a, word, l);
	if (!there)
		return tdx_refuse(a->r, TDX_EPT_WALK_FAILED, TDX_RCX);
	if (a->c->busy & TDX_BUSY_SEPT_ENTRY)
		return tdx_refuse(a->r, TDX_OPERAND_BUSY, TDX_RCX);
	return true;
}

/* All checks up to the entry's state. */
static bool reach(struct at *a)
{
	if (a->c->version > (tdx_op_rule(a->c->op)->versioned ? 1u : 0u))
		return tdx_refuse(a->r, TDX_OPERAND_INVALID, TDX_RAX);
	a->td = tdx_td_ready(a->m, a->c, a->r);
	if (!a->td)
		return false;
	if (!operands_are_sane(a))
		return tdx_refuse(a->r, TDX_OPERAND_INVALID, TDX_RCX);
	if (!(a->c->op == TDX_MR_EXTEND ? reach_leaf(a) : reach_entry(a)))
		return false;
	if (a->cell->kind == TDX_REFUSE)
		return tdx_refuse(a->r, a->cell->code, TDX_RCX);
	return true;
}

/* The PAMT entry of the page or table that the entry names. */
static struct tree *pamt_of(const struct at *a, uint64_t *index)
{
	*index = sept_number(a->word);
	return &a->m->pamt[tdx_sept_has_frame(sept_state(a->word)) ? a->level : 0];
}

/* Can a TLB still hold what was blocked in this epoch? */
static bool is_tracked(const struct tdx_td *td, uint64_t bepoch)
{
	return bepoch + 1 < td->epoch || (bepoch + 1 == td->epoch && td->ref[bepoch & 1] == 0);
}

static bool tracking_is_done(const struct at *a)
{
	uint64_t index;
	const struct tree *pamt = pamt_of(a, &index);

	if (!a->cell->tracked || a->td->op_state != TDX_RUNNABLE)
		return true;
	if (!tdx_sept_is_blocked(sept_state(a->word)))
		return tdx_refuse(a->r, TDX_GPA_RANGE_NOT_BLOCKED, TDX_RCX);
	if (!is_tracked(a->td, pamt_note(tree_get(pamt, index))))
		return tdx_refuse(a->r, TDX_TLB_TRACKING_NOT_DONE,
				  a->c->op == TDX_RANGE_UNBLOCK ? TDX_SEPT_TREE : TDX_RCX);
	return true;
}

static void put(const struct at *a, uint64_t word)
{
	tdx_put(&a->td->sept[a->level], a->index, 1, word);
}

static void hand_back(const struct at *a, uint64_t pfn)
{
	a->r->has_frame = true;
	a->r->frame = pfn;
}

/* What each call does beyond the common checks. False: refused after all. */

static bool add_table(struct at *a)
{
	if (!tdx_frame_is_free(a->m, a->c, 0, TDX_R8, a->r))
		return false;
	tdx_frame_take(a->m, a->td, a->c->frame, 0, TDX_PT_EPT, 0);
	put(a, sept_word(a->cell->next, a->c->frame));
	return true;
}

static bool map_page(struct at *a)
{
	if (a->c->op == TDX_PAGE_ADD && a->c->source >= a->m->pfn_end)
		return tdx_refuse(a->r, TDX_OPERAND_INVALID, TDX_R9);
	if (!tdx_frame_is_free(a->m, a->c, a->level, TDX_R8, a->r))
		return false;
	tdx_frame_take(a->m, a->td, a->c->frame, a->level, TDX_PT_REG, 0);
	put(a, sept_word(a->cell->next, a->c->frame >> (TREE_BITS * a->level)));
	return true;
}

static bool block(struct at *a)
{
	uint64_t index;
	struct tree *pamt = pamt_of(a, &index);
	uint64_t word = tree_get(pamt, index);

	tdx_put(pamt, index, 1, (word & ~TREE_NUMBER) | a->td->epoch);
	put(a, sept_word(a->cell->next, sept_number(a->word)));
	return true;
}

static bool unblock(struct at *a)
{
	put(a, sept_word(a->cell->next, sept_number(a->word)));
	return true;
}

static bool remove_page(struct at *a)
{
	uint64_t pfn = sept_number(a->word) << (TREE_BITS * a->level);

	tdx_frame_give(a->m, a->td, pfn, a->level);
	put(a, 0);
	hand_back(a, pfn);
	return true;
}

static bool relocate(struct at *a)
{
	uint64_t old = sept_number(a->word);

	if (!tdx_frame_is_free(a->m, a->c, 0, TDX_R8, a->r))
		return false;
	tdx_frame_give(a->m, a->td, old, 0);
	tdx_frame_take(a->m, a->td, a->c->frame, 0, TDX_PT_REG, 0);
	put(a, sept_word(a->cell->next, a->c->frame));
	hand_back(a, old);
	return true;
}

/* Are the 512 entries below all MAPPED or all PENDING, with frames that one larger leaf can name? */
static bool children_merge(const struct at *a, uint64_t *first)
{
	const struct tree *below = &a->td->sept[a->level - 1];
	uint64_t base = a->index << TREE_BITS;
	struct tree_run run;

	*first = tree_get(below, base) & ~TDX_PLACE_MASK;
	if ((sept_state(*first) != TDX_MAPPED && sept_state(*first) != TDX_PENDING) || *first & (ENTRIES - 1))
		return false;
	for (uint64_t at = 0; at < ENTRIES; at += run.count) {
		run = tree_run_at(below, base + at, base + ENTRIES);
		if ((run.entry & ~TDX_PLACE_MASK) != *first + at)
			return false;
	}
	return true;
}

static bool promote(struct at *a)
{
	uint64_t table = sept_number(a->word), first;

	if (!children_merge(a, &first))
		return tdx_refuse(a->r, TDX_EPT_INVALID_PROMOTE_CONDITIONS, TDX_RCX);
	if (a->c->interrupt)
		return tdx_refuse(a->r, TDX_INTERRUPTED_RESTARTABLE, 0);
	tdx_put(&a->m->pamt[a->level - 1], sept_number(first), ENTRIES, 0);
	tdx_put(&a->m->pamt[a->level], sept_number(first) >> TREE_BITS, 1, pamt_word(TDX_PT_REG, a->td, 0));
	tdx_frame_give(a->m, a->td, table, 0);
	tdx_put(&a->td->sept[a->level - 1], a->index << TREE_BITS, ENTRIES, 0);
	put(a, sept_word(sept_state(first), sept_number(first) >> TREE_BITS));
	hand_back(a, table);
	return true;
}

static bool demote(struct at *a)
{
	uint64_t number = sept_number(a->word), first = number << TREE_BITS;
	enum tdx_sept s = sept_state(a->word);
	enum tdx_sept child = s == TDX_MAPPED || s == TDX_BLOCKED ? TDX_MAPPED : TDX_PENDING;

	if (!tdx_frame_is_free(a->m, a->c, 0, TDX_R8, a->r))
		return false;
	if (a->c->interrupt)
		return tdx_refuse(a->r, TDX_INTERRUPTED_RESTARTABLE, 0);
	tdx_put(&a->m->pamt[a->level], number, 1, 0);
	tdx_put(&a->m->pamt[a->level - 1], first, ENTRIES, pamt_word(TDX_PT_REG, a->td, 0));
	tdx_frame_take(a->m, a->td, a->c->frame, 0, TDX_PT_EPT, 0);
	tdx_put(&a->td->sept[a->level - 1], a->index << TREE_BITS, ENTRIES, sept_word(child, first));
	put(a, sept_word(a->cell->next, a->c->frame));
	return true;
}

static bool remove_table(struct at *a)
{
	uint64_t base = a->index << TREE_BITS, table = sept_number(a->word);
	struct tree_run run = tree_run_at(&a->td->sept[a->level - 1], base, base + ENTRIES);

	if (run.entry || run.count < ENTRIES)
		return tdx_refuse(a->r, TDX_EPT_PAGE_NOT_FREE, TDX_RCX);
	tdx_frame_give(a->m, a->td, table, 0);
	put(a, 0);
	hand_back(a, table);
	return true;
}

static bool look(struct at *a)
{
	(void)a;
	return true;
}

static bool (*const acts[TDX_OP_COUNT])(struct at *a) = {
	[TDX_SEPT_ADD] = add_table,       [TDX_PAGE_ADD] = map_page,     [TDX_PAGE_AUG] = map_page,
	[TDX_RANGE_BLOCK] = block,        [TDX_RANGE_UNBLOCK] = unblock, [TDX_PAGE_REMOVE] = remove_page,
	[TDX_PAGE_RELOCATE] = relocate,   [TDX_PAGE_PROMOTE] = promote,  [TDX_PAGE_DEMOTE] = demote,
	[TDX_SEPT_REMOVE] = remove_table, [TDX_MR_EXTEND] = look,        [TDX_SEPT_RD] = look,
};

/* L9: the module does not see the host's EPT, and would say yes. */
static enum pw_status law_allows(const struct at *a, struct pw_err *err)
{
	struct tree_run run;
	uint64_t first;

	if ((a->c->op != TDX_PAGE_ADD && a->c->op != TDX_PAGE_AUG) || a->td->shared.root == 0)
		return PW_OK;
	first = a->index << (TREE_BITS * a->level);
	run = tree_run_at(&a->td->shared, first, first + tdx_pages(a->level));
	if (run.entry == 0 && run.count == tdx_pages(a->level))
		return PW_OK;
	return pw_fail(err, PW_CONFLICT,
		       "%s of GPA 0x%" PRIx64 " level %u: GFN 0x%" PRIx64
		       " is mapped under its shared alias (L9: one alias at a time)",
		       tdx_op_name(a->c->op), a->c->gpa, a->c->level, run.entry ? first : first + run.count);
}

enum pw_status tdx_sept_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err)
{
	struct at a = { .m = m, .c = c, .r = r };
	enum pw_status st;

	if (!reach(&a))
		return PW_OK;
	st = law_allows(&a, err);
	if (st != PW_OK)
		return st;
	if (c->op == TDX_PAGE_RELOCATE && sept_number(a.word) == c->frame)
		tdx_refuse(r, TDX_OPERAND_INVALID, TDX_R8);
	else if (tracking_is_done(&a))
		acts[c->op](&a);
	return PW_OK;
}

/* TDG.MEM.PAGE.ACCEPT */

/* One step of a 2 MiB page, or all of a page. */
static void accept_entry(struct at *a)
{
	unsigned left = a->level ? ENTRIES - sept_place(a->word) : 1;

	if (a->c->interrupt && a->c->interrupt < left) {
		uint64_t place = (uint64_t)a->c->interrupt << TDX_PLACE_SHIFT;

		put(a, a->word + place);
		tdx_refuse(a->r, TDX_INTERRUPTED_RESUMABLE, 0);
		return;
	}
	put(a, sept_word(a->cell->next, sept_number(a->word)));
}

enum pw_status tdx_accept_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err)
{
	struct at a = { .m = m, .c = c, .r = r };
	uint64_t word;
	unsigned l;
	bool there;

	a.td = tdx_td(m, c->tdr);
	if (!a.td || a.td->op_state == TDX_UNINITIALIZED)
		return pw_fail(err, PW_INVALID, "no initialized TD has its TDR in frame 0x%" PRIx64, c->tdr);
	if (!operands_are_sane(&a)) {
		tdx_refuse(r, TDX_OPERAND_INVALID, TDX_RCX);
		return PW_OK;
	}
	there = tdx_walk(a.td, c->gpa >> TDX_PAGE_SHIFT, c->level, &word, &l);
	found(&a, word, l);
	if (!there && r->state != TDX_MAPPED)
		r->exits = true;
	else if (a.cell->kind == TDX_EXIT)
		r->exits = true;
	else if (a.cell->kind == TDX_REFUSE)
		tdx_refuse(r, a.cell->code, l);
	else
		accept_entry(&a);
	return PW_OK;
}

/* Reading. */

bool tdx_entry(const struct tdx_td *td, uint64_t gpa, unsigned level, enum tdx_sept *state)
{
	uint64_t word;
	unsigned l;

	if (td->alias.mask == 0 || level >= td->levels || !alias_is_private(td->alias, gpa >> TDX_PAGE_SHIFT) ||
	    gpa >> TDX_PAGE_SHIFT >> (TREE_BITS * td->levels) || !tdx_walk(td, gpa >> TDX_PAGE_SHIFT, level, &word, &l))
		return false;
	*state = sept_state(word);
	return true;
}

enum tdx_sept tdx_leaf(const struct tdx_td *td, uint64_t gfn, unsigned *level, uint64_t *frame)
{
	uint64_t word = 0;

	*level = 0;
	*frame = 0;
	if (td->alias.mask == 0 || !alias_is_valid_gfn(td->alias, gfn, 1) || gfn >> (TREE_BITS * td->levels))
		return TDX_FREE;
	for (*level = td->levels - 1;; --*level) {
		word = tree_get(&td->sept[*level], gfn >> (TREE_BITS * *level));
		if (sept_state(word) != TDX_NL_MAPPED && sept_state(word) != TDX_NL_BLOCKED)
			break;
	}
	if (tdx_sept_has_frame(sept_state(word)))
		*frame = (sept_number(word) << (TREE_BITS * *level)) + (gfn & (tdx_pages(*level) - 1));
	return sept_state(word);
}

struct tdx_run tdx_run_at(const struct tdx_td *td, uint64_t from, uint64_t end)
{
	struct tdx_run out = { .first = from, .count = end - from };
	uint64_t at, past, size;
	struct tree_run run;

	if (td->alias.mask == 0)
		return out;
	out.state = tdx_leaf(td, from, &out.level, &out.frame);
	size = tdx_pages(out.level);
	at = from / size;
	past = (end + size - 1) / size;
	if (!tdx_sept_has_frame(out.state) && past > (at | (ENTRIES - 1)) + 1)
		past = (at | (ENTRIES - 1)) + 1;
	run = tree_run_at(&td->sept[out.level], at, past);
	if ((at + run.count) * size - from < out.count)
		out.count = (at + run.count) * size - from;
	return out;
}
