#include "engine/arch/snp_impl.h"

#include <assert.h>
#include <stdio.h>

/* Reading. */

uint64_t word_at(const struct snp *m, uint64_t pfn)
{
	return pfn < m->frames ? tree_get(&m->entries, pfn) : 0;
}

enum snp_state state_at(const struct snp *m, uint64_t pfn)
{
	return pfn < m->frames ? word_state(tree_get(&m->entries, pfn)) : SNP_DEFAULT;
}

enum snp_state snp_state(const struct snp *m, uint64_t pfn)
{
	return state_at(m, pfn);
}

/* Only a guest's pages have masks. */
uint32_t perms_at(const struct snp *m, uint64_t pfn)
{
	return PERMS_NEW ^ (uint32_t)tree_get(&m->perms, pfn);
}

/* How many of [first, first + count) are assigned; *fixed: one of them is immutable though nobody has it. */
static uint64_t count_assigned(const struct snp *m, uint64_t first, uint64_t count, bool *fixed)
{
	uint64_t end = first + count < m->frames ? first + count : m->frames, assigned = 0;
	struct tree_run run;

	*fixed = false;
	for (uint64_t at = first; at < end; at += run.count) {
		run = tree_run_at(&m->entries, at, end);
		if (run.entry & WORD_ASSIGNED)
			assigned += run.count;
		else if (run.entry & WORD_IMMUTABLE)
			*fixed = true;
	}
	return assigned;
}

enum snp_state snp_read(const struct snp *m, uint64_t pfn, struct snp_entry *out)
{
	uint64_t w = word_at(m, pfn);
	struct snp_raw raw = { .lo = word_raw(w), .hi = word_asid(w) ? perms_at(m, pfn) : 0 };
	bool fixed;

	snp_decode(raw, out);
	if (pfn < m->frames && pfn % SNP_LARGE == 0 && !(w & WORD_LARGE))
		out->subpages = (uint16_t)count_assigned(m, pfn + 1, SNP_LARGE - 1, &fixed);
	return state_at(m, pfn);
}

struct snp_raw snp_read_raw(const struct snp *m, uint64_t pfn)
{
	struct snp_entry e;

	snp_read(m, pfn, &e);
	if (e.size == SNP_2M && pfn % SNP_LARGE)
		e = (struct snp_entry){ .assigned = true };
	return snp_encode(&e);
}

/* How many of `count` frames, the first of which has word w, are in its state: a number that nobody owns is part of it.
 */
static uint64_t alike(uint64_t w, uint64_t count)
{
	uint64_t n = 1;

	if (!(w & TREE_LINEAR) || word_asid(w))
		return count;
	while (n < count && word_state(tree_entry_after(w, n)) == word_state(w))
		n++;
	return n;
}

struct snp_run snp_run_at(const struct snp *m, uint64_t from, uint64_t end)
{
	struct tree_run run;

	if (from >= m->frames)
		return (struct snp_run){ from, end - from, SNP_DEFAULT, SNP_4K, 0, 0 };
	run = tree_run_at(&m->entries, from, end < m->frames ? end : m->frames);
	return (struct snp_run){ run.first,
				 alike(run.entry, run.count),
				 word_state(run.entry),
				 word_size(run.entry),
				 (uint16_t)word_asid(run.entry),
				 run.entry & WORD_GFN };
}

/* Writing. */

#define SPARES_MANY 65536

enum pw_status rmp_reserve(struct snp *m, size_t pages)
{
	return arena_reserve_sets(&m->arena, 2 * pages);
}

static void must_set(struct tree *t, uint64_t first, uint64_t count, uint64_t word)
{
	struct tree_spot spot;
	enum pw_status st = PW_OK;

	if (count == 1 && tree_find(t, first, &spot))
		tree_put(t, first, &spot, word);
	else
		st = tree_set(t, first, count, word);
	assert(st == PW_OK); /* rmp_reserve came before */
	(void)st;
}

/* The run's words become `to` and what counts up from it. */
static void tell(struct snp *m, const char *op, const struct tree_run *run, uint64_t to)
{
	struct snp_transition t = { .op = op };

	for (uint64_t done = 0; done < run->count; done += t.count) {
		uint64_t from_word = tree_entry_after(run->entry, done), to_word = tree_entry_after(to, done);

		t.pfn = run->first + done;
		t.count = alike(to_word, alike(from_word, run->count - done));
		t.from = word_state(from_word);
		t.to = word_state(to_word);
		t.from_asid = (uint16_t)word_asid(from_word);
		t.to_asid = (uint16_t)word_asid(to_word);
		t.from_gfn = from_word & WORD_GFN;
		t.to_gfn = to_word & WORD_GFN;
		m->trace(m->trace_ctx, &t);
	}
}

void page_put(struct snp *m, const char *op, uint64_t pfn, uint64_t count, uint64_t word)
{
	struct tree_run run;

	for (uint64_t at = pfn; at < pfn + count; at += run.count) {
		run = tree_run_at(&m->entries, at, pfn + count);
		if (word_asid(run.entry))
			m->pages[word_asid(run.entry)] -= run.count;
		if (m->trace)
			tell(m, op, &run, tree_entry_after(word, at - pfn));
	}
	if (word_asid(word))
		m->pages[word_asid(word)] += count;
	must_set(&m->entries, pfn, count, word);
}

void perms_put(struct snp *m, uint64_t pfn, uint64_t count, uint32_t perms)
{
	uint64_t entry = perms ^ PERMS_NEW;
	struct tree_run run = tree_run_at(&m->perms, pfn, pfn + count);

	if (run.entry != entry || run.count != count)
		must_set(&m->perms, pfn, count, entry);
}

void rmp_clear(struct snp *m, const char *op)
{
	struct tree_run run;

	for (uint64_t at = 0; m->trace && at < m->frames; at += run.count) {
		run = tree_run_at(&m->entries, at, m->frames);
		if (run.entry)
			tell(m, op, &run, 0);
	}
	tree_release(&m->entries);
	tree_release(&m->perms);
}

/* Refusals. */

void why_set(struct snp *m, enum snp_rule rule, const char *op, uint64_t pfn)
{
	uint64_t w = word_at(m, pfn);

	m->why = (struct snp_why){
		.rule = rule,
		.op = op,
		.pfn = pfn,
		.state = state_at(m, pfn),
		.asid = (uint16_t)word_asid(w),
		.gfn = w & WORD_GFN,
	};
}

void snp_why_text(const struct snp_why *w, char *text, size_t size)
{
	char has[80] = "", asks[80] = "";

	if (w->asid)
		snprintf(has, sizeof has, " (ASID %u, GFN %" PRIu64 ")", w->asid, w->gfn);
	if (w->asks)
		snprintf(asks, sizeof asks, ", asked for by ASID %u, GFN %" PRIu64, w->asks_asid, w->asks_gfn);
	snprintf(text, size, "%s: frame %" PRIu64 " is %s%s%s: %s (%s%s)", w->op ? w->op : "", w->pfn,
		 snp_state_name(w->state), has, asks, snp_rule_text(w->rule), snp_rule_source(w->rule),
		 snp_rule_is_inferred(w->rule) ? "; inferred, unverified" : "");
}

static enum snp_code refuse(struct snp *m, enum snp_rule rule, const char *op, uint64_t pfn, enum snp_code code)
{
	why_set(m, rule, op, pfn);
	return code;
}

/* RMPUPDATE. */

static const char update_name[] = "RMPUPDATE";

static uint64_t update_word(const struct snp_rmpupdate *u)
{
	uint64_t size = u->size == SNP_2M ? WORD_LARGE : 0;

	return (uint64_t)u->asid << WORD_ASID_SHIFT | size | u->gfn;
}

/* Would the update change nothing but the immutable bit? */
static bool update_is_same(const struct snp_rmpupdate *u, uint64_t w)
{
	const uint64_t mask = WORD_ASID | WORD_LARGE | WORD_GFN;

	return w & WORD_ASSIGNED && u->asid && (w & mask) == update_word(u);
}

static enum snp_page_op update_op(const struct snp_rmpupdate *u, uint64_t w)
{
	if (!u->assigned)
		return SNP_UPDATE_SHARED;
	if (!u->asid)
		return u->immutable ? SNP_UPDATE_FIRMWARE : SNP_UPDATE_RECLAIM;
	if (update_is_same(u, w))
		return u->immutable ? SNP_SAME_PRE_GUEST : SNP_SAME_PRIVATE;
	return u->immutable ? SNP_UPDATE_PRE_GUEST : SNP_UPDATE_PRIVATE;
}

static enum snp_rule update_input(const struct snp *m, const struct snp_rmpupdate *u)
{
	uint64_t count = u->size == SNP_2M ? SNP_LARGE : 1;

	if (u->pfn >= m->frames || m->frames - u->pfn < count)
		return SNP_RULE_PAST_RMP;
	if (u->pfn % count)
		return SNP_RULE_UNALIGNED;
	if (u->asid >= SNP_ASIDS || u->gfn >= SNP_GFNS)
		return SNP_RULE_OPERAND;
	return SNP_RULE_NONE;
}

/* Does the page belong to a guest that the update would take it from? */
static bool update_takes(const struct snp_rmpupdate *u, uint64_t w)
{
	return u->assigned && word_asid(w) && (word_asid(w) != u->asid || (w & WORD_GFN) != u->gfn);
}

static enum snp_code refuse_take(struct snp *m, const struct snp_rmpupdate *u)
{
	why_set(m, SNP_RULE_STRICT, update_name, u->pfn);
	m->why.asks = true;
	m->why.asks_asid = (uint16_t)u->asid;
	m->why.asks_gfn = u->gfn;
	return SNP_FAIL_PERMISSION;
}

/* 4 KiB and 2 MiB pages do not overlap. */
static enum snp_code update_overlap(struct snp *m, const struct snp_rmpupdate *u, uint64_t w)
{
	bool fixed;

	if (u->size == SNP_4K)
		return w & WORD_LARGE ? refuse(m, SNP_RULE_IN_2M, update_name, u->pfn, SNP_FAIL_OVERLAP) : SNP_OK;
	if (w & WORD_LARGE)
		return SNP_OK;
	if (count_assigned(m, u->pfn + 1, SNP_LARGE - 1, &fixed))
		return refuse(m, SNP_RULE_HAS_4K, update_name, u->pfn, SNP_FAIL_OVERLAP);
	if (fixed)
		return refuse(m, SNP_RULE_HAS_FIXED, update_name, u->pfn, SNP_FAIL_PERMISSION);
	return SNP_OK;
}

static enum snp_code update_check(struct snp *m, const struct snp_rmpupdate *u, const struct snp_cell *cell, uint64_t w)
{
	if (cell->kind == SNP_REFUSE)
		return refuse(m, SNP_RULE_IMMUTABLE, update_name, u->pfn, cell->code);
	if (m->strict && update_takes(u, w))
		return refuse_take(m, u);
	return update_overlap(m, u, w);
}

static enum snp_code update_admit(struct snp *m, const struct snp_rmpupdate *u)
{
	enum snp_rule input = update_input(m, u);

	if (u->caller_asid)
		return refuse(m, SNP_RULE_NOT_HOST, update_name, u->pfn, SNP_FAIL_PERMISSION);
	if (input != SNP_RULE_NONE)
		return refuse(m, input, update_name, u->pfn, SNP_FAIL_INPUT);
	if (u->race == SNP_RACE_CPU)
		return refuse(m, SNP_RULE_RACE, update_name, u->pfn, SNP_FAIL_INUSE);
	if (u->race == SNP_RACE_FIRMWARE)
		return refuse(m, SNP_RULE_LOCKED, update_name, u->pfn, SNP_FAIL_OVERLAP);
	return SNP_OK;
}

static void update_apply(struct snp *m, const struct snp_rmpupdate *u, const struct snp_cell *cell, uint64_t w,
			 bool same)
{
	uint64_t count = u->size == SNP_2M ? SNP_LARGE : 1;
	uint64_t word = word_in(same ? w : update_word(u), cell->next);

	if (u->assigned && !u->asid)
		word = word_numbered(word, u->gfn);
	page_put(m, update_name, u->pfn, count, word);
	if (!same)
		perms_put(m, u->pfn, count, PERMS_NEW);
}

enum pw_status update_page(struct snp *m, const struct snp_rmpupdate *u, enum snp_code *code)
{
	const struct snp_cell *cell;
	uint64_t w = word_at(m, u->pfn);
	enum snp_page_op op = update_op(u, w);

	*code = update_admit(m, u);
	if (*code != SNP_OK)
		return PW_OK;
	cell = snp_cell(word_state(w), op);
	*code = update_check(m, u, cell, w);
	if (*code != SNP_OK)
		return PW_OK;
	if (rmp_reserve(m, 1) != PW_OK)
		return PW_NO_MEMORY;
	update_apply(m, u, cell, w, op == SNP_SAME_PRIVATE || op == SNP_SAME_PRE_GUEST);
	return PW_OK;
}

enum pw_status snp_rmpupdate(struct snp *m, const struct snp_rmpupdate *u, enum snp_code *code)
{
	if (m->arena.spares > SPARES_MANY)
		arena_trim(&m->arena);
	return update_page(m, u, code);
}

void update_undo(struct snp *m, uint64_t pfn, uint64_t count)
{
	page_put(m, update_name, pfn, count, 0);
	perms_put(m, pfn, count, PERMS_NEW);
}

/* PSMASH. */

static enum snp_code smash_check(struct snp *m, const struct snp_psmash *p, uint64_t w)
{
	static const char name[] = "PSMASH";
	const struct snp_cell *cell = snp_cell(state_at(m, p->pfn), SNP_SMASH);

	if (p->caller_asid)
		return refuse(m, SNP_RULE_NOT_HOST, name, p->pfn, SNP_FAIL_PERMISSION);
	if (p->pfn >= m->frames)
		return refuse(m, SNP_RULE_PAST_RMP, name, p->pfn, cell->code);
	if (p->pfn % SNP_LARGE)
		return refuse(m, SNP_RULE_UNALIGNED, name, p->pfn, SNP_FAIL_INPUT);
	if (p->race != SNP_NO_RACE)
		return refuse(m, SNP_RULE_RACE, name, p->pfn, SNP_FAIL_INUSE);
	if (cell->kind == SNP_REFUSE)
		return refuse(m, SNP_RULE_NOT_2M, name, p->pfn, cell->code);
	if (!(w & WORD_LARGE))
		return refuse(m, SNP_RULE_NOT_2M, name, p->pfn, SNP_FAIL_PAGE);
	return SNP_OK;
}

enum pw_status snp_psmash(struct snp *m, const struct snp_psmash *p, enum snp_code *code)
{
	uint64_t w = word_at(m, p->pfn);

	*code = smash_check(m, p, w);
	if (*code != SNP_OK)
		return PW_OK;
	if (rmp_reserve(m, 1) != PW_OK)
		return PW_NO_MEMORY;
	/* The 512 GFNs count up whoever owns the page. */
	page_put(m, "PSMASH", p->pfn, SNP_LARGE, (w & ~WORD_LARGE) | TREE_LINEAR);
	return PW_OK;
}

/* The guest's instructions. */

/* Does the walk to the page end at the entry that the guest expects? */
static enum snp_code walk(struct snp *m, const char *name, const struct snp_target *t, uint64_t w)
{
	if (!t->asid || word_asid(w) != t->asid || (w & WORD_GFN) != t->gfn)
		return refuse(m, SNP_RULE_NOT_GUESTS, name, t->pfn, SNP_NPF);
	if (t->size == SNP_2M && word_size(w) == SNP_4K)
		return refuse(m, SNP_RULE_GUEST_2M_ON_4K, name, t->pfn, SNP_FAIL_SIZEMISMATCH);
	if (t->size == SNP_4K && word_size(w) == SNP_2M)
		return refuse(m, SNP_RULE_GUEST_4K_ON_2M, name, t->pfn, SNP_NPF);
	return SNP_OK;
}

static enum snp_code validate_check(struct snp *m, const struct snp_target *t, const struct snp_cell *cell, uint64_t w)
{
	static const char name[] = "PVALIDATE";

	if (t->vmpl)
		return refuse(m, SNP_RULE_VMPL0_ONLY, name, t->pfn, SNP_GP);
	if (cell->kind == SNP_REFUSE)
		return refuse(m, SNP_RULE_STATE, name, t->pfn, cell->code);
	return walk(m, name, t, w);
}

enum pw_status snp_pvalidate(struct snp *m, const struct snp_target *t, bool validate, enum snp_code *code,
			     bool *unchanged)
{
	const struct snp_cell *cell = snp_cell(state_at(m, t->pfn), validate ? SNP_VALIDATE : SNP_RESCIND);
	uint64_t w = word_at(m, t->pfn), base = word_base(w, t->pfn);

	*code = validate_check(m, t, cell, w);
	if (*code != SNP_OK)
		return PW_OK;
	*unchanged = cell->kind == SNP_STAY;
	if (*unchanged)
		return PW_OK;
	if (rmp_reserve(m, 1) != PW_OK)
		return PW_NO_MEMORY;
	page_put(m, "PVALIDATE", base, word_frames(w), word_in(word_at(m, base), cell->next));
	return PW_OK;
}

static enum snp_code adjust_check(struct snp *m, const char *name, const struct snp_target *t, unsigned vmpl)
{
	uint64_t w = word_at(m, t->pfn);
	enum snp_code code;

	if (vmpl >= SNP_VMPLS)
		return refuse(m, SNP_RULE_OPERAND, name, t->pfn, SNP_FAIL_INPUT);
	if (vmpl <= t->vmpl)
		return refuse(m, SNP_RULE_VMPL, name, t->pfn, SNP_FAIL_PERMISSION);
	if (w & WORD_IMMUTABLE)
		return refuse(m, SNP_RULE_STATE, name, t->pfn, SNP_NPF);
	code = walk(m, name, t, w);
	if (code == SNP_OK && !(w & WORD_VALIDATED))
		return refuse(m, SNP_RULE_NOT_VALIDATED, name, t->pfn, SNP_VC);
	return code;
}

static uint8_t perms_of(uint32_t perms, unsigned vmpl)
{
	return (uint8_t)(perms >> (8 * vmpl));
}

enum pw_status snp_rmpadjust(struct snp *m, const struct snp_target *t, unsigned vmpl, uint8_t perms, bool vmsa,
			     enum snp_code *code)
{
	static const char name[] = "RMPADJUST";
	uint64_t w = word_at(m, t->pfn), base = word_base(w, t->pfn);
	uint32_t have = perms_at(m, t->pfn);

	*code = adjust_check(m, name, t, vmpl);
	if (*code != SNP_OK)
		return PW_OK;
	if (perms & ~perms_of(have, t->vmpl)) {
		*code = refuse(m, SNP_RULE_GRANT, name, t->pfn, SNP_FAIL_PERMISSION);
		return PW_OK;
	}
	if (rmp_reserve(m, 1) != PW_OK)
		return PW_NO_MEMORY;
	have = (have & ~(0xffu << (8 * vmpl))) | (uint32_t)perms << (8 * vmpl);
	perms_put(m, base, word_frames(w), have);
	if (t->vmpl == 0) {
		w = word_at(m, base) & ~WORD_VMSA;
		page_put(m, name, base, word_frames(w), vmsa ? w | WORD_VMSA : w);
	}
	return PW_OK;
}

enum snp_code snp_rmpquery(struct snp *m, const struct snp_target *t, unsigned vmpl, uint8_t *perms)
{
	enum snp_code code = adjust_check(m, "RMPQUERY", t, vmpl);

	if (code == SNP_OK)
		*perms = perms_of(perms_at(m, t->pfn), vmpl);
	return code;
}

enum snp_code snp_rmpread(struct snp *m, uint64_t pfn, unsigned caller_asid, struct snp_entry *out)
{
	static const char name[] = "RMPREAD";

	if (caller_asid)
		return refuse(m, SNP_RULE_NOT_HOST, name, pfn, SNP_FAIL_PERMISSION);
	if (pfn >= m->frames)
		return refuse(m, SNP_RULE_PAST_RMP, name, pfn, SNP_FAIL_INPUT);
	snp_read(m, pfn, out);
	return SNP_OK;
}

/* Accesses. */

static enum snp_fault guest_fault(const struct snp_target *t, uint64_t w, uint64_t *error)
{
	const uint64_t rmp = SNP_PF_RMP | SNP_PF_FINAL | SNP_PF_ENC;

	*error = rmp;
	if (!(w & WORD_ASSIGNED) || word_asid(w) != t->asid || (w & WORD_GFN) != t->gfn)
		return SNP_GUEST_NPF;
	if (t->size == SNP_2M && word_size(w) == SNP_4K)
		return SNP_GUEST_NPF;
	if (t->size == SNP_4K && word_size(w) == SNP_2M) {
		*error = rmp | SNP_PF_SIZEM;
		return SNP_GUEST_NPF;
	}
	*error = 0;
	return w & WORD_VALIDATED ? SNP_NO_FAULT : SNP_GUEST_VC;
}

enum snp_fault snp_access(const struct snp *m, enum snp_access a, uint64_t pfn, const struct snp_target *t,
			  uint64_t *error)
{
	uint64_t w = word_at(m, pfn);
	bool fixed, assigned = w & WORD_ASSIGNED;

	*error = 0;
	switch (a) {
	case SNP_HOST_READ: return SNP_NO_FAULT;
	case SNP_HOST_WRITE_2M:
		assigned = count_assigned(m, pfn - pfn % SNP_LARGE, SNP_LARGE, &fixed) != 0;
		*error = assigned ? SNP_PF_RMP : 0;
		return assigned ? SNP_HOST_PF : SNP_NO_FAULT;
	case SNP_HOST_WRITE: *error = assigned ? SNP_PF_RMP : 0; return assigned ? SNP_HOST_PF : SNP_NO_FAULT;
	case SNP_GUEST_PRIVATE: return guest_fault(t, w, error);
	case SNP_GUEST_WRITE_SHARED:
		*error = assigned ? SNP_PF_RMP | SNP_PF_FINAL : 0;
		return assigned ? SNP_GUEST_NPF : SNP_NO_FAULT;
	case SNP_DEVICE: return assigned ? SNP_IOMMU_FAULT : SNP_NO_FAULT;
	case SNP_ACCESS_COUNT: break;
	}
	return SNP_NO_FAULT;
}
