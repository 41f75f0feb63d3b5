#include "engine/arch/cca_impl.h"

#define RIPAS_SHIFT 57
#define RIPAS_MASK  ((uint64_t)3 << RIPAS_SHIFT)
#define ATTR_SHIFT  50
#define ATTR_MASK   ((uint64_t)0x3f << ATTR_SHIFT)

enum cca_entry cca_word_entry(uint64_t word, bool unprotected)
{
	if (unprotected)
		return word & TREE_LINEAR ? CCA_ASSIGNED_NS : CCA_UNASSIGNED_NS;
	return (enum cca_entry)((word & TREE_LINEAR ? CCA_ASSIGNED_EMPTY : CCA_UNASSIGNED_EMPTY) +
				((word & RIPAS_MASK) >> RIPAS_SHIFT));
}

uint64_t cca_entry_word(enum cca_entry e, uint64_t page, uint64_t attr)
{
	switch (e) {
	case CCA_UNASSIGNED_EMPTY:
	case CCA_UNASSIGNED_RAM:
	case CCA_UNASSIGNED_DESTROYED: return (uint64_t)(e - CCA_UNASSIGNED_EMPTY) << RIPAS_SHIFT;
	case CCA_ASSIGNED_EMPTY:
	case CCA_ASSIGNED_RAM:
	case CCA_ASSIGNED_DESTROYED: return TREE_LINEAR | (uint64_t)(e - CCA_ASSIGNED_EMPTY) << RIPAS_SHIFT | page;
	case CCA_ASSIGNED_NS: return TREE_LINEAR | attr >> 2 << ATTR_SHIFT | page;
	case CCA_UNASSIGNED_NS:
	case CCA_TABLE:
	case CCA_TABLE_NS:
	case CCA_ENTRY_COUNT: break;
	}
	return 0;
}

uint64_t cca_word_attr(uint64_t word)
{
	return (word & ATTR_MASK) >> ATTR_SHIFT << 2;
}

uint64_t cca_level_size(unsigned level)
{
	return cca_entry_pages(level) << CCA_SHIFT;
}

/* Walks. */

bool cca_table_at(const struct cca_realm *r, unsigned level, uint64_t page, uint64_t *granule)
{
	uint64_t word = tree_get(&r->tables[level - 1], cca_table_index(level, page));

	*granule = word & TREE_NUMBER;
	return word != 0;
}

struct cca_spot cca_spot_at(const struct cca_realm *r, uint64_t page, unsigned target)
{
	struct cca_spot s = { .level = target };
	bool unprotected = cca_is_unprotected(r, page);
	uint64_t granule;

	while (s.level > r->start && !cca_table_at(r, s.level, page, &granule))
		s.level--;
	s.first = page & ~(cca_entry_pages(s.level) - 1);
	if (s.level == target && s.level < CCA_LEVELS - 1 && cca_table_at(r, s.level + 1, page, &granule)) {
		s.entry = unprotected ? CCA_TABLE_NS : CCA_TABLE;
		s.word = granule;
		return s;
	}
	s.word = tree_get(&r->entries, s.first);
	s.entry = cca_word_entry(s.word, unprotected);
	return s;
}

struct cca_walk cca_walk(const struct cca_realm *realm, uint64_t ipa, unsigned level)
{
	struct cca_spot s = cca_spot_at(realm, ipa >> CCA_SHIFT, level);
	struct cca_walk w = { .level = s.level, .first = s.first << CCA_SHIFT, .entry = s.entry };

	if (cca_entry_kind(s.entry)->live)
		w.addr = (s.word & TREE_NUMBER) << CCA_SHIFT;
	if (s.entry == CCA_ASSIGNED_NS)
		w.attr = cca_word_attr(s.word);
	return w;
}

/* Stretches. */

struct cca_pages cca_pages_at(const struct cca_realm *realm, uint64_t gfn, uint64_t end)
{
	struct tree_run run = tree_run_at(&realm->entries, gfn, end);
	enum cca_entry e = cca_word_entry(run.entry, cca_is_unprotected(realm, gfn));
	uint64_t addr = cca_entry_kind(e)->live ? (run.entry & TREE_NUMBER) << CCA_SHIFT : 0;

	return (struct cca_pages){ gfn, run.count, e, addr };
}

bool cca_any_table(const struct cca_realm *r, unsigned level, uint64_t first, uint64_t end, uint64_t *where)
{
	uint64_t from = cca_table_index(level, first), to = cca_table_index(level, end);
	struct tree_run run;

	if (from == to)
		return false;
	run = tree_run_at(&r->tables[level - 1], from, to);
	if (run.entry == 0 && run.count == to - from)
		return false;
	*where = (run.entry ? from : from + run.count) * cca_table_pages(level);
	return true;
}

/* The first page of [first, end) whose entry is live or, if asked for, keeps its table; or end. */
static uint64_t next_entry(const struct cca_realm *r, uint64_t first, uint64_t end, bool keeps)
{
	struct tree_run run;

	for (uint64_t at = first; at < end; at += run.count) {
		const struct cca_entry_kind *kind;

		run = tree_run_at(&r->entries, at, end);
		kind = cca_entry_kind(cca_word_entry(run.entry, cca_is_unprotected(r, at)));
		if (keeps ? kind->keeps_table : kind->live)
			return at;
	}
	return end;
}

uint64_t cca_skip_dead(const struct cca_realm *r, const struct cca_spot *at, uint64_t ipa)
{
	uint64_t table = cca_table_pages(at->level), end = (at->first & ~(table - 1)) + table;

	if (cca_entry_kind(at->entry)->live)
		return ipa;
	if (at->level < CCA_LEVELS - 1)
		(void)cca_any_table(r, at->level + 1, at->first, end, &end);
	return next_entry(r, at->first, end, false) << CCA_SHIFT;
}

static bool keeps(const struct cca_realm *r, unsigned level, uint64_t first, uint64_t end)
{
	enum cca_entry table = cca_is_unprotected(r, first) ? CCA_TABLE_NS : CCA_TABLE;
	uint64_t where;

	if (level < CCA_LEVELS - 1 && cca_entry_kind(table)->keeps_table &&
	    cca_any_table(r, level + 1, first, end, &where))
		return true;
	return next_entry(r, first, end, true) < end;
}

bool cca_table_is_dead(const struct cca_realm *r, unsigned level, uint64_t first)
{
	return !keeps(r, level, first, first + cca_table_pages(level));
}

bool cca_root_is_dead(const struct cca_realm *r)
{
	uint64_t end = cca_space_pages(r);

	return !keeps(r, r->start, 0, end / 2) && !keeps(r, r->start, end / 2, end);
}

bool cca_table_is_alike(const struct cca_realm *r, unsigned level, uint64_t first)
{
	uint64_t pages = cca_table_pages(level), where;
	struct tree_run run = tree_run_at(&r->entries, first, first + pages);
	bool unprotected = cca_is_unprotected(r, first);
	enum cca_entry e = cca_word_entry(run.entry, unprotected), table = unprotected ? CCA_TABLE_NS : CCA_TABLE;

	if (level < CCA_LEVELS - 1 && cca_cell(table, CCA_OP_FOLD)->kind != CCA_SAME &&
	    cca_any_table(r, level + 1, first, first + pages, &where))
		return false;
	if (run.count < pages || !(cca_entry_kind(e)->folds_at >> level & 1) ||
	    cca_cell(e, CCA_OP_FOLD)->kind != CCA_SAME)
		return false;
	return !(run.entry & TREE_LINEAR) || ((run.entry & TREE_NUMBER) & (pages - 1)) == 0;
}
