#include "engine/arch/cca_checks.h"

#define ADDR_BITS 48

/* Feature register 0 (RMM specification B4.4.6). */
struct field {
	unsigned shift, bits;
};
static const struct field s2sz = { 0, 8 }, sve_en = { 9, 1 }, sve_vl = { 10, 4 }, num_bps = { 14, 6 },
			  num_wps = { 20, 6 }, pmu_en = { 26, 1 }, pmu_ctrs = { 27, 5 }, sha256 = { 32, 1 },
			  sha512 = { 33, 1 }, recs_order = { 38, 4 };

static uint64_t feature(const struct cca *m, struct field f)
{
	return m->config.features0 >> f.shift & (((uint64_t)1 << f.bits) - 1);
}

static uint64_t arg(const struct cca_ctx *c, enum cca_arg a)
{
	return c->call->arg[a];
}

static uint64_t ipa_page(const struct cca_ctx *c)
{
	return arg(c, CCA_ARG_IPA) >> CCA_SHIFT;
}

static int64_t level(const struct cca_ctx *c)
{
	return (int64_t)arg(c, CCA_ARG_LEVEL);
}

static bool is_in_half(const struct cca_realm *r, uint64_t ipa)
{
	return ipa >> (r->ipa_bits - 1) == 0;
}

/* Inside the space, and aligned to an entry of level l. */
static bool is_entry(const struct cca_realm *r, uint64_t ipa, unsigned l)
{
	return ipa >> r->ipa_bits == 0 && ipa % cca_level_size(l) == 0;
}

/* Granules. */

static bool granule(struct cca_ctx *c, const struct cca_check *k)
{
	uint64_t addr = arg(c, k->arg);

	if (k->state == CCA_RD)
		return (c->realm = cca_realm_at(c->m, addr)) != NULL;
	if (k->state == CCA_REC)
		return (c->rec = cca_rec_at(c->m, addr)) != NULL;
	return cca_granule_is(c->m, addr, k->state);
}

static bool el3(struct cca_ctx *c, const struct cca_check *k)
{
	return c->m->el3_refuses == 0;
}

static bool pa_bits(struct cca_ctx *c, const struct cca_check *k)
{
	return arg(c, k->arg) >> ADDR_BITS == 0;
}

/* Arguments. */

static bool req(struct cca_ctx *c, const struct cca_check *k)
{
	return arg(c, CCA_ARG_REQ) == CCA_VERSION;
}

static bool flags(struct cca_ctx *c, const struct cca_check *k)
{
	return arg(c, CCA_ARG_FLAGS) <= 1;
}

static bool ipa_data(struct cca_ctx *c, const struct cca_check *k)
{
	return is_in_half(c->realm, arg(c, CCA_ARG_IPA)) && arg(c, CCA_ARG_IPA) % CCA_GRANULE == 0;
}

static bool source(struct cca_ctx *c, const struct cca_check *k)
{
	return c->call->source != NULL;
}

static bool params(struct cca_ctx *c, const struct cca_check *k)
{
	return c->call->cmd == CCA_REALM_CREATE ? c->call->realm != NULL : c->call->rec != NULL;
}

static bool table_place(struct cca_ctx *c, const struct cca_check *k)
{
	int64_t l = level(c);

	return l > (int64_t)c->realm->start && l < CCA_LEVELS &&
	       is_entry(c->realm, arg(c, CCA_ARG_IPA), (unsigned)l - 1);
}

static bool map_level(struct cca_ctx *c, const struct cca_check *k)
{
	return level(c) >= 1 && level(c) < CCA_LEVELS;
}

static bool desc(struct cca_ctx *c, const struct cca_check *k)
{
	uint64_t d = arg(c, CCA_ARG_DESC), attr = d & 0xdc, pa = d & ~(CCA_GRANULE - 1);

	return (pa | attr) == d && (attr >> 2 & 7) != 4 && pa % cca_level_size((unsigned)level(c)) == 0 &&
	       pa >> ADDR_BITS == 0;
}

static bool read_place(struct cca_ctx *c, const struct cca_check *k)
{
	int64_t l = level(c);

	return l >= (int64_t)c->realm->start && l < CCA_LEVELS && is_entry(c->realm, arg(c, CCA_ARG_IPA), (unsigned)l);
}

static bool unprotected(struct cca_ctx *c, const struct cca_check *k)
{
	return !is_in_half(c->realm, arg(c, CCA_ARG_IPA));
}

/* Walks and entries. */

static bool walk_to(struct cca_ctx *c, uint64_t page, unsigned target)
{
	c->spot = cca_spot_at(c->realm, page, target);
	return c->spot.level == target;
}

static bool walk_page(struct cca_ctx *c, const struct cca_check *k)
{
	return walk_to(c, ipa_page(c), CCA_LEVELS - 1);
}

static bool walk_parent(struct cca_ctx *c, const struct cca_check *k)
{
	return walk_to(c, ipa_page(c), (unsigned)level(c) - 1);
}

static bool walk_level(struct cca_ctx *c, const struct cca_check *k)
{
	return walk_to(c, ipa_page(c), (unsigned)level(c));
}

static bool may_change(enum cca_entry e, enum cca_entry_op op)
{
	const struct cca_cell *cell = cca_cell(e, op);

	return cell->kind == CCA_MOVE || cell->kind == CCA_SAME;
}

static bool entry(struct cca_ctx *c, const struct cca_check *k)
{
	return may_change(c->spot.entry, c->op);
}

static bool parent_table(struct cca_ctx *c, const struct cca_check *k)
{
	return c->spot.entry == CCA_TABLE || c->spot.entry == CCA_TABLE_NS;
}

static bool child_dead(struct cca_ctx *c, const struct cca_check *k)
{
	return cca_table_is_dead(c->realm, (unsigned)level(c), ipa_page(c));
}

static bool child_alike(struct cca_ctx *c, const struct cca_check *k)
{
	return cca_table_is_alike(c->realm, (unsigned)level(c), ipa_page(c));
}

/* Realms. */

static bool is_new(struct cca_ctx *c, const struct cca_check *k)
{
	return c->realm->state == CCA_NEW;
}

/* IPA widths that a start level can translate, and how many root tables that takes (A5.2; T realm.c). */
static bool widths(struct cca_ctx *c, const struct cca_realm_params *p)
{
	int64_t s = p->rtt_level_start;
	uint64_t w = p->s2sz, lo, hi, full;

	if (s < 0 || s > 3 || w < 32 || w > feature(c->m, s2sz) || w > ADDR_BITS)
		return false;
	lo = 9 * (3 - (uint64_t)s) + 13;
	hi = lo + (s == 0 ? 8 : 12);
	full = 9 * (3 - (uint64_t)s) + 21;
	if (w < lo || w > hi || (s == 0 && c->m->config.pa_bits < 44))
		return false;
	c->roots = w <= full ? 1 : (uint64_t)1 << (w - full);
	return p->rtt_num_start == c->roots;
}

static bool pmu(const struct cca *m, const struct cca_realm_params *p)
{
	return feature(m, pmu_en) && p->pmu_num_ctrs <= feature(m, pmu_ctrs) && (p->pmu_num_ctrs || m->config.hpmn0);
}

static bool features(struct cca_ctx *c, const struct cca_check *k)
{
	const struct cca_realm_params *p = c->call->realm;
	const struct cca *m = c->m;

	if (!widths(c, p) || p->flags & CCA_REALM_LPA2)
		return false;
	if (p->flags & CCA_REALM_SVE && (!feature(m, sve_en) || p->sve_vl > feature(m, sve_vl)))
		return false;
	if (p->flags & CCA_REALM_PMU && !pmu(m, p))
		return false;
	if (!p->num_bps || p->num_bps > feature(m, num_bps) || !p->num_wps || p->num_wps > feature(m, num_wps))
		return false;
	return (p->hash_algo == CCA_SHA256 && feature(m, sha256)) || (p->hash_algo == CCA_SHA512 && feature(m, sha512));
}

static bool vmid(struct cca_ctx *c, const struct cca_check *k)
{
	return !cca_vmid_is_used(c->m, c->call->realm->vmid);
}

static bool roots(struct cca_ctx *c, const struct cca_check *k)
{
	uint64_t base = c->call->realm->rtt_base, rd = arg(c, CCA_ARG_RD);

	if (base % (c->roots * CCA_GRANULE) || (rd >= base && rd - base < c->roots * CCA_GRANULE))
		return false;
	for (uint64_t i = 0; i < c->roots; i++)
		if (!cca_granule_is(c->m, base + i * CCA_GRANULE, CCA_DELEGATED))
			return false;
	return true;
}

static bool no_recs(struct cca_ctx *c, const struct cca_check *k)
{
	return c->realm->num_recs == 0;
}

static bool roots_dead(struct cca_ctx *c, const struct cca_check *k)
{
	return cca_root_is_dead(c->realm);
}

/* RECs. */

static bool aux_max(struct cca_ctx *c, const struct cca_check *k)
{
	return c->call->rec->num_aux <= CCA_AUX_MAX;
}

static bool aux(struct cca_ctx *c, const struct cca_check *k)
{
	const struct cca_rec_params *p = c->call->rec;

	for (uint64_t i = 0; i < p->num_aux; i++) {
		if (!cca_granule_is(c->m, p->aux[i], CCA_DELEGATED))
			return false;
		for (uint64_t j = 0; j < i; j++)
			if (p->aux[j] == p->aux[i])
				return false;
	}
	return true;
}

static bool rec_not_aux(struct cca_ctx *c, const struct cca_check *k)
{
	const struct cca_rec_params *p = c->call->rec;

	for (uint64_t i = 0; i < p->num_aux; i++)
		if (p->aux[i] == arg(c, CCA_ARG_REC))
			return false;
	return true;
}

static bool rec_limit(struct cca_ctx *c, const struct cca_check *k)
{
	return c->realm->num_recs < ((uint64_t)1 << feature(c->m, recs_order)) - 1;
}

static bool mpidr(struct cca_ctx *c, const struct cca_check *k)
{
	uint64_t x = c->call->rec->mpidr;

	if (x & ~(uint64_t)0xff00ffff0f)
		return false;
	return ((x & 0xf) | (x >> 8 & 0xff) << 4 | (x >> 16 & 0xff) << 12 | (x >> 32 & 0xff) << 20) ==
	       c->realm->rec_index;
}

static bool aux_count(struct cca_ctx *c, const struct cca_check *k)
{
	return c->call->rec->num_aux == c->m->config.rec_aux_count;
}

static bool not_running(struct cca_ctx *c, const struct cca_check *k)
{
	return !c->rec->running;
}

static bool active(struct cca_ctx *c, const struct cca_check *k)
{
	return c->rec->realm->state == CCA_ACTIVE;
}

static bool runnable(struct cca_ctx *c, const struct cca_check *k)
{
	return c->rec->runnable;
}

static bool no_psci(struct cca_ctx *c, const struct cca_check *k)
{
	return !c->rec->psci_open;
}

static bool gic(struct cca_ctx *c, const struct cca_check *k)
{
	return !c->call->run || !c->call->run->gic_invalid;
}

static bool asks_for(const struct cca_ctx *c, uint64_t flag)
{
	return c->call->run && c->call->run->flags & flag;
}

static bool sea(struct cca_ctx *c, const struct cca_check *k)
{
	return !asks_for(c, CCA_ENTER_SEA) || c->rec->abort_fits;
}

static bool mmio(struct cca_ctx *c, const struct cca_check *k)
{
	return !asks_for(c, CCA_ENTER_MMIO) || c->rec->abort_fits;
}

/* Ranges. */

static bool range_size(struct cca_ctx *c, const struct cca_check *k)
{
	return arg(c, CCA_ARG_TOP) > arg(c, CCA_ARG_BASE);
}

static bool range_aligned(struct cca_ctx *c, const struct cca_check *k)
{
	return (arg(c, CCA_ARG_TOP) | arg(c, CCA_ARG_BASE)) % CCA_GRANULE == 0;
}

/* A base that is not aligned is no cursor: that is found later. */
static bool top_aligned(struct cca_ctx *c, const struct cca_check *k)
{
	return arg(c, CCA_ARG_TOP) % CCA_GRANULE == 0;
}

static bool range_protected(struct cca_ctx *c, const struct cca_check *k)
{
	return is_in_half(c->realm, arg(c, CCA_ARG_BASE)) && is_in_half(c->realm, arg(c, CCA_ARG_TOP) - CCA_GRANULE);
}

static bool rec_of_realm(struct cca_ctx *c, const struct cca_check *k)
{
	return c->rec->realm == c->realm;
}

static bool cursor(struct cca_ctx *c, const struct cca_check *k)
{
	const struct cca_ripas_request *q = &c->rec->ripas;

	if (q->value == CCA_RAM)
		c->op = q->change_destroyed ? CCA_OP_SET_RAM_CD : CCA_OP_SET_RAM;
	else
		c->op = q->change_destroyed ? CCA_OP_SET_EMPTY_CD : CCA_OP_SET_EMPTY;
	return q->open && arg(c, CCA_ARG_BASE) == q->cursor && arg(c, CCA_ARG_TOP) <= q->end;
}

static bool base_entry(struct cca_ctx *c, const struct cca_check *k)
{
	uint64_t base = arg(c, CCA_ARG_BASE) >> CCA_SHIFT;

	(void)walk_to(c, base, CCA_LEVELS - 1);
	return c->spot.first == base;
}

uint64_t cca_range_stop(const struct cca_ctx *c, uint64_t top)
{
	unsigned l = c->spot.level;
	uint64_t table = cca_table_pages(l), first = c->spot.first, end = (first & ~(table - 1)) + table;
	struct tree_run run;

	if (end > top)
		end = top & ~(cca_entry_pages(l) - 1);
	if (end <= first)
		return first;
	if (l < CCA_LEVELS - 1 && !may_change(CCA_TABLE, c->op))
		(void)cca_any_table(c->realm, l + 1, first, end, &end);
	for (uint64_t at = first; at < end; at += run.count) {
		run = tree_run_at(&c->realm->entries, at, end);
		if (!may_change(cca_word_entry(run.entry, false), c->op))
			return at;
	}
	return end;
}

static bool progress(struct cca_ctx *c, const struct cca_check *k)
{
	c->stop = cca_range_stop(c, arg(c, CCA_ARG_TOP) >> CCA_SHIFT);
	return c->stop > c->spot.first;
}

static bool none(struct cca_ctx *c, const struct cca_check *k)
{
	return true;
}

static bool (*const checks[CCA_CHECK_COUNT])(struct cca_ctx *c, const struct cca_check *k) = {
	[CCA_CHECK_NONE] = none,
	[CCA_CHECK_GRANULE] = granule,
	[CCA_CHECK_REQ] = req,
	[CCA_CHECK_EL3] = el3,
	[CCA_CHECK_FLAGS] = flags,
	[CCA_CHECK_NEW] = is_new,
	[CCA_CHECK_IPA_DATA] = ipa_data,
	[CCA_CHECK_PA_BITS] = pa_bits,
	[CCA_CHECK_WALK_PAGE] = walk_page,
	[CCA_CHECK_WALK_PARENT] = walk_parent,
	[CCA_CHECK_WALK_LEVEL] = walk_level,
	[CCA_CHECK_ENTRY] = entry,
	[CCA_CHECK_PARENT_TABLE] = parent_table,
	[CCA_CHECK_CHILD_DEAD] = child_dead,
	[CCA_CHECK_CHILD_ALIKE] = child_alike,
	[CCA_CHECK_SOURCE] = source,
	[CCA_CHECK_PARAMS] = params,
	[CCA_CHECK_TABLE_PLACE] = table_place,
	[CCA_CHECK_MAP_LEVEL] = map_level,
	[CCA_CHECK_DESC] = desc,
	[CCA_CHECK_MAP_PLACE] = read_place,
	[CCA_CHECK_UNPROTECTED] = unprotected,
	[CCA_CHECK_READ_PLACE] = read_place,
	[CCA_CHECK_FEATURES] = features,
	[CCA_CHECK_VMID] = vmid,
	[CCA_CHECK_ROOTS] = roots,
	[CCA_CHECK_NO_RECS] = no_recs,
	[CCA_CHECK_ROOTS_DEAD] = roots_dead,
	[CCA_CHECK_AUX_MAX] = aux_max,
	[CCA_CHECK_AUX] = aux,
	[CCA_CHECK_REC_NOT_AUX] = rec_not_aux,
	[CCA_CHECK_REC_LIMIT] = rec_limit,
	[CCA_CHECK_MPIDR] = mpidr,
	[CCA_CHECK_AUX_COUNT] = aux_count,
	[CCA_CHECK_NOT_RUNNING] = not_running,
	[CCA_CHECK_ACTIVE] = active,
	[CCA_CHECK_RUNNABLE] = runnable,
	[CCA_CHECK_NO_PSCI] = no_psci,
	[CCA_CHECK_GIC] = gic,
	[CCA_CHECK_SEA] = sea,
	[CCA_CHECK_MMIO] = mmio,
	[CCA_CHECK_RANGE_SIZE] = range_size,
	[CCA_CHECK_RANGE_ALIGNED] = range_aligned,
	[CCA_CHECK_TOP_ALIGNED] = top_aligned,
	[CCA_CHECK_RANGE_PROTECTED] = range_protected,
	[CCA_CHECK_REC_OF_REALM] = rec_of_realm,
	[CCA_CHECK_CURSOR] = cursor,
	[CCA_CHECK_BASE_ENTRY] = base_entry,
	[CCA_CHECK_PROGRESS] = progress,
};

/* The index that goes with a code: a level for RTT; for REALM 1 if the system is off. */
static unsigned index_of(const struct cca_ctx *c, const struct cca_check *k)
{
	if (k->kind == CCA_CHECK_CHILD_DEAD || k->kind == CCA_CHECK_CHILD_ALIKE)
		return (unsigned)level(c);
	if (k->status == CCA_ERROR_RTT)
		return c->spot.level;
	return k->kind == CCA_CHECK_ACTIVE && c->rec->realm->state == CCA_SYSTEM_OFF;
}

bool cca_checks_pass(struct cca_ctx *c, struct cca_result *r)
{
	for (const struct cca_check *k = c->row->checks; k->kind != CCA_CHECK_NONE; k++) {
		if (checks[k->kind](c, k))
			continue;
		r->status = k->status;
		r->index = index_of(c, k);
		r->failed = k;
		return false;
	}
	return true;
}
