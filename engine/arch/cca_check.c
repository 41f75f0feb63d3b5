/* The digest of the whole model, and its invariants. */
#include <string.h>

#include "engine/arch/cca_impl.h"

/* Digest. */

static uint64_t stir(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint64_t mix(uint64_t h, uint64_t x)
{
	return stir(h * 0x9e3779b97f4a7c15u + x + 1);
}

static uint64_t mix_tree(uint64_t h, const struct tree *t)
{
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(t, at, TREE_PAGES);
		h = mix(mix(h, run.count), run.entry);
	}
	return h;
}

static uint64_t mix_realm(uint64_t h, const struct cca_realm *r)
{
	uint64_t word;

	h = mix(mix(mix(mix(h, r->rd), r->serial), r->slot), r->state);
	h = mix(mix(mix(mix(h, r->ipa_bits), r->start), r->root_count), r->root);
	h = mix(mix(mix(mix(h, r->vmid), r->hash), r->num_recs), r->rec_index);
	for (size_t i = 0; i < CCA_RIM_BYTES; i += sizeof word) {
		memcpy(&word, r->rim + i, sizeof word);
		h = mix(h, word);
	}
	h = mix_tree(h, &r->entries);
	for (size_t i = 0; i < PW_ARRAY_LEN(r->tables); i++)
		h = mix_tree(h, &r->tables[i]);
	return h;
}

static uint64_t mix_rec(uint64_t h, const struct cca_rec *rec)
{
	const struct cca_ripas_request *q = &rec->ripas;

	h = mix(mix(mix(mix(h, rec->granule), rec->index), rec->mpidr), rec->realm->slot);
	h = mix(mix(mix(mix(h, rec->runnable), rec->running), rec->psci_open), rec->abort_fits);
	h = mix(mix(mix(mix(h, q->open), q->base), q->cursor), q->end);
	h = mix(mix(mix(h, q->value), q->change_destroyed), rec->num_aux);
	for (unsigned i = 0; i < rec->num_aux; i++)
		h = mix(h, rec->aux[i]);
	return h;
}

uint64_t cca_digest(const struct cca *m)
{
	uint64_t h = mix_tree(mix(m->config.base, m->config.granules), &m->granules);

	for (size_t i = 0; i < PW_ARRAY_LEN(m->vmids); i++)
		if (m->vmids[i])
			h = mix(mix(h, i), m->vmids[i]);
	for (size_t i = 0; i < m->realm_room; i++)
		if (m->realms[i])
			h = mix_realm(h, m->realms[i]);
	for (size_t i = 0; i < m->rec_room; i++)
		if (m->recs[i])
			h = mix_rec(h, m->recs[i]);
	return mix(h, m->realms_made);
}

/* Invariants. */

static bool broken(struct pw_err *err, const char *what, uint64_t page)
{
	(void)pw_fail(err, PW_CONFLICT, "%s (0x%" PRIx64 ")", what, page << CCA_SHIFT);
	return false;
}

/* Is granules [page, page + count) what `word` says, counting up? */
static bool granules_are(const struct cca *m, uint64_t page, uint64_t count, uint64_t word)
{
	struct tree_run run = tree_run_at(&m->granules, page, page + count);

	return run.entry == word && run.count == count;
}

static bool check_tables(const struct cca *m, const struct cca_realm *r, unsigned level, uint64_t *tables,
			 struct pw_err *err)
{
	uint64_t end = cca_space_pages(r) >> (CCA_TABLE_BITS * (CCA_LEVELS - level));
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		struct cca_use u = { CCA_RTT, r->slot, level, at };

		run = tree_run_at(&r->tables[level - 1], at, TREE_PAGES);
		if (!run.entry)
			continue;
		if (level <= r->start || at + run.count > end)
			return broken(err, "a table where none can be", at * cca_table_pages(level));
		if (!granules_are(m, run.entry & TREE_NUMBER, run.count, cca_use_word(&u)))
			return broken(err, "a table's granule is not marked", run.entry & TREE_NUMBER);
		for (uint64_t p = at / TREE_FANOUT; level > r->start + 1 && p <= (at + run.count - 1) / TREE_FANOUT;
		     p++)
			if (!tree_get(&r->tables[level - 2], p))
				return broken(err, "a table without parent", at * cca_table_pages(level));
		*tables += run.count;
	}
	return true;
}

/* The end of the stretch from `page` in which walks end at the same level; at most `end`. */
static uint64_t same_level_end(const struct cca_realm *r, unsigned level, uint64_t page, uint64_t end)
{
	uint64_t table = cca_table_pages(level), to = (page & ~(table - 1)) + table, where;

	if (level < CCA_LEVELS - 1 && cca_any_table(r, level + 1, page & ~(cca_entry_pages(level) - 1), to, &where))
		to = where;
	return to < end ? to : end;
}

static bool check_run(const struct cca *m, const struct cca_realm *r, const struct tree_run *run, uint64_t *data,
		      struct pw_err *err)
{
	bool unprotected = cca_is_unprotected(r, run->first), assigned = run->entry & TREE_LINEAR;
	struct cca_use u = { CCA_DATA, r->slot, 0, run->first };
	uint64_t end = run->first + run->count;

	for (uint64_t at = run->first, next; at < end; at = next) {
		struct cca_spot s = cca_spot_at(r, at, CCA_LEVELS - 1);
		uint64_t to = same_level_end(r, s.level, at, end), pages = cca_entry_pages(s.level);

		if ((at | to) & (pages - 1))
			return broken(err, "an entry that is not alike", at);
		if (assigned && (s.level == 0 || ((run->entry & TREE_NUMBER) + (at - run->first)) & (pages - 1)))
			return broken(err, "a block that is not aligned", at);
		next = to;
	}
	if (unprotected || !assigned)
		return !unprotected || assigned || !run->entry || broken(err, "an NS entry with a RIPAS", run->first);
	*data += run->count;
	return granules_are(m, run->entry & TREE_NUMBER, run->count, cca_use_word(&u)) ||
	       broken(err, "a page's granule is not marked", run->first);
}

static bool check_entries(const struct cca *m, const struct cca_realm *r, uint64_t *data, struct pw_err *err)
{
	uint64_t space = cca_space_pages(r), half = space / 2;
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&r->entries, at, at < half ? half : TREE_PAGES);
		if (at >= space && run.entry)
			return broken(err, "an entry past the space", at);
		if (run.entry && !check_run(m, r, &run, data, err))
			return false;
	}
	return true;
}

static bool check_recs(const struct cca *m, const struct cca_realm *r, uint64_t *aux, struct pw_err *err)
{
	uint64_t recs = 0;

	for (size_t i = 0; i < m->rec_room; i++) {
		const struct cca_rec *rec = m->recs[i];
		struct cca_use u = { CCA_REC, r->slot, 0, i }, a = { CCA_REC_AUX, r->slot, 0, i };

		if (!rec || rec->realm != r)
			continue;
		if (!granules_are(m, rec->granule, 1, cca_use_word(&u)))
			return broken(err, "a REC's granule is not marked", rec->granule);
		for (unsigned n = 0; n < rec->num_aux; n++)
			if (!granules_are(m, rec->aux[n], 1, cca_use_word(&a)))
				return broken(err, "an auxiliary granule is not marked", rec->aux[n]);
		if (rec->ripas.cursor > rec->ripas.end || rec->index >= r->rec_index)
			return broken(err, "a REC's cursor or index is too high", rec->granule);
		recs++;
		*aux += rec->num_aux;
	}
	return recs == r->num_recs || broken(err, "num_recs is wrong", r->rd);
}

static bool check_realm(const struct cca *m, const struct cca_realm *r, uint64_t used[CCA_GRANULE_COUNT],
			struct pw_err *err)
{
	struct cca_use rd = { CCA_RD, r->slot, 0, 0 }, root = { CCA_RTT, r->slot, r->start, 0 };

	if (!granules_are(m, r->rd, 1, cca_use_word(&rd)) ||
	    !granules_are(m, r->root, r->root_count, cca_use_word(&root)))
		return broken(err, "the RD or a root table is not marked", r->rd);
	if (!cca_vmid_is_used(m, r->vmid) || m->realms[r->slot] != r)
		return broken(err, "a realm's VMID or slot is not its own", r->rd);
	used[CCA_RD]++;
	used[CCA_RTT] += r->root_count;
	used[CCA_REC] += r->num_recs;
	for (unsigned level = 1; level < CCA_LEVELS; level++)
		if (!check_tables(m, r, level, &used[CCA_RTT], err))
			return false;
	return check_entries(m, r, &used[CCA_DATA], err) && check_recs(m, r, &used[CCA_REC_AUX], err) &&
	       (tree_check(&r->entries) || broken(err, "a tree of entries is broken", r->rd));
}

bool cca_check(const struct cca *m, struct pw_err *err)
{
	uint64_t used[CCA_GRANULE_COUNT] = { 0 }, marked[CCA_GRANULE_COUNT] = { 0 }, vmids = 0, realms = 0;
	struct tree_run run;

	for (size_t i = 0; i < m->realm_room; i++) {
		if (m->realms[i] && !check_realm(m, m->realms[i], used, err))
			return false;
		realms += m->realms[i] != NULL;
	}
	for (size_t i = 0; i < PW_ARRAY_LEN(m->vmids); i++)
		vmids += (uint64_t)__builtin_popcountll(m->vmids[i]);
	if (vmids != realms)
		return broken(err, "a VMID without realm, or two realms with one", 0);
	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&m->granules, at, TREE_PAGES);
		marked[cca_word_use(run.entry).state] += run.count;
	}
	for (int s = CCA_RD; s <= CCA_RTT; s++)
		if (marked[s] != used[s])
			return broken(err, cca_granule_name((enum cca_granule)s), marked[s] - used[s]);
	return tree_check(&m->granules) || broken(err, "the tree of granules is broken", 0);
}
