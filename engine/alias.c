#include "engine/alias.h"

#define ALIAS_MAPPED ((uint64_t)1) /* the entry of a mapped GFN, in either tree */

enum pw_status alias_from_gpa_bit(unsigned shared_bit, unsigned page_shift, struct gfn_alias *out, struct pw_err *err)
{
	if (shared_bit < page_shift)
		return pw_fail(err, PW_INVALID, "GPA bit %u lies inside a page of 2^%u bytes", shared_bit, page_shift);
	if (shared_bit - page_shift >= 40)
		return pw_fail(err, PW_INVALID, "GPA bit %u is past the %u bits of a GPA", shared_bit, page_shift + 40);
	out->mask = (uint64_t)1 << (shared_bit - page_shift);
	return PW_OK;
}

static bool has_64bit_entries(enum paging_mode mode)
{
	switch (mode) {
	case PAGING_PAE:
	case PAGING_LONG: return true;
	case PAGING_NONE:
	case PAGING_32BIT:
	case PAGING_NESTED_EPT:
	case PAGING_MODE_COUNT: return false;
	}
	return false;
}

enum pw_status alias_allow(struct gfn_alias a, enum paging_mode mode, struct pw_err *err)
{
	if (a.mask == 0 || has_64bit_entries(mode))
		return PW_OK;
	return pw_fail(err, PW_INVALID, "stolen bits 0x%" PRIx64 " on a VM whose guest paging has no aliases", a.mask);
}

uint64_t alias_unalias(struct gfn_alias a, uint64_t raw)
{
	return raw & ~a.mask;
}

uint64_t alias_private(struct gfn_alias a, uint64_t gfn)
{
	return gfn & ~a.mask;
}

uint64_t alias_shared(struct gfn_alias a, uint64_t gfn)
{
	return gfn | a.mask;
}

bool alias_is_private(struct gfn_alias a, uint64_t raw)
{
	return a.mask && !(raw & a.mask);
}

bool alias_is_valid_gfn(struct gfn_alias a, uint64_t gfn, uint64_t count)
{
	uint64_t lowest = a.mask & (~a.mask + 1);
	uint64_t end = lowest && lowest < TREE_PAGES ? lowest : TREE_PAGES;

	return gfn < end && count <= end - gfn;
}

struct alias_flush alias_flush_ranges(struct gfn_alias a, uint64_t gfn, uint64_t count)
{
	uint64_t plain = alias_unalias(a, gfn);
	struct alias_flush f = { .n = 1, .range = { { plain, count } } };

	if (a.mask & (a.mask - 1) || !alias_is_valid_gfn(a, plain, count))
		return (struct alias_flush){ 0 };
	if (a.mask == 0)
		return f;
	f.n = 2;
	f.range[1].gfn = alias_shared(a, plain);
	f.range[1].count = count;
	return f;
}

void alias_map_init(struct alias_map *m, struct gfn_alias a, struct arena *arena)
{
	m->alias = a;
	tree_init(&m->mapped_private, arena);
	tree_init(&m->mapped_shared, arena);
}

void alias_map_release(struct alias_map *m)
{
	tree_release(&m->mapped_private);
	tree_release(&m->mapped_shared);
}

static enum pw_status check_run(struct gfn_alias a, uint64_t raw, uint64_t count, struct pw_err *err)
{
	uint64_t gfn = alias_unalias(a, raw);

	if (count == 0)
		return pw_fail(err, PW_INVALID, "a run of no pages at raw GFN 0x%" PRIx64, raw);
	if (!alias_is_valid_gfn(a, gfn, count))
		return pw_fail(err, PW_INVALID, "%" PRIu64 " pages from raw GFN 0x%" PRIx64 " leave their alias", count,
			       raw);
	if (raw != alias_private(a, gfn) && raw != alias_shared(a, gfn))
		return pw_fail(err, PW_INVALID, "raw GFN 0x%" PRIx64 " has some stolen bits, but not all", raw);
	return PW_OK;
}

enum pw_status alias_map_add(struct alias_map *m, uint64_t raw, uint64_t count, struct pw_err *err)
{
	bool private = alias_is_private(m->alias, raw);
	struct tree *mine = private ? &m->mapped_private : &m->mapped_shared;
	const struct tree *other = private ? &m->mapped_shared : &m->mapped_private;
	uint64_t gfn = alias_unalias(m->alias, raw);
	enum pw_status st = check_run(m->alias, raw, count, err);
	struct tree_run run;

	if (st != PW_OK)
		return st;
	run = tree_run_at(other, gfn, gfn + count);
	if (run.entry || run.count < count)
		return pw_fail(err, PW_CONFLICT, "GFN 0x%" PRIx64 " is mapped under its %s alias",
			       run.entry ? gfn : gfn + run.count, private ? "shared" : "private");
	if (tree_set(mine, gfn, count, ALIAS_MAPPED) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "no memory to map %" PRIu64 " pages", count);
	return PW_OK;
}

enum pw_status alias_map_remove(struct alias_map *m, uint64_t raw, uint64_t count, struct pw_err *err)
{
	uint64_t gfn = alias_unalias(m->alias, raw);
	enum pw_status st = check_run(m->alias, raw, count, err);

	if (st != PW_OK)
		return st;
	if (arena_reserve_sets(m->mapped_private.arena, 2) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "no memory to unmap %" PRIu64 " pages", count);
	st = tree_set(&m->mapped_private, gfn, count, 0);
	return st == PW_OK ? tree_set(&m->mapped_shared, gfn, count, 0) : st;
}

bool alias_map_has(const struct alias_map *m, uint64_t raw)
{
	uint64_t gfn = alias_unalias(m->alias, raw);

	if (check_run(m->alias, raw, 1, NULL) != PW_OK)
		return false;
	return tree_get(alias_is_private(m->alias, raw) ? &m->mapped_private : &m->mapped_shared, gfn) != 0;
}
