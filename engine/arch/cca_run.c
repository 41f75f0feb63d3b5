/* One command many times over, where homogeneous stretches allow it at the cost of one. */
#include "engine/arch/cca_checks.h"

static uint64_t arg(const struct cca_ctx *c, enum cca_arg a)
{
	return c->call->arg[a];
}

static uint64_t arg_page(const struct cca_ctx *c, enum cca_arg a)
{
	return c->call->arg[a] >> CCA_SHIFT;
}

struct stride {
	bool allowed, tables;
	enum cca_arg moves; /* besides ipa: this granule */
};
static const struct stride strides[CCA_COMMAND_COUNT] = {
	[CCA_GRANULE_DELEGATE] = { true, false, CCA_ARG_ADDR },
	[CCA_GRANULE_UNDELEGATE] = { true, false, CCA_ARG_ADDR },
	[CCA_DATA_CREATE] = { true, false, CCA_ARG_DATA },
	[CCA_DATA_CREATE_UNKNOWN] = { true, false, CCA_ARG_DATA },
	[CCA_DATA_DESTROY] = { true, false, CCA_ARG_COUNT },
	[CCA_RTT_CREATE] = { true, true, CCA_ARG_RTT },
	[CCA_RTT_DESTROY] = { true, true, CCA_ARG_COUNT },
	[CCA_RTT_FOLD] = { true, true, CCA_ARG_COUNT },
};

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Equal words from `at`, counting up if linear. */
static uint64_t alike(const struct tree *t, uint64_t at, uint64_t count)
{
	return tree_run_at(t, at, min_u64(TREE_PAGES, at + count)).count;
}

/* For how many entries of the level, from the page, is there a table of level+1 (or none) wherever the first has one
 * (or none)? A table of consecutive granules only. */
static uint64_t alike_tables(const struct cca_ctx *c, unsigned level, uint64_t page, uint64_t count)
{
	return alike(&c->realm->tables[level - 1], cca_table_index(level, page), count);
}

/* Entries of a level that have tables of that level, whichever granules they are in: all in one parent, or a
 * homogeneous stretch of parents. In units of pages. */
static uint64_t reached(const struct cca_ctx *c, unsigned level, uint64_t page, uint64_t pages)
{
	uint64_t table = cca_table_pages(level), end = (page & ~(table - 1)) + table, granule;

	while (level > c->realm->start && end < page + pages && cca_table_at(c->realm, level, end, &granule))
		end += alike(&c->realm->tables[level - 1], cca_table_index(level, end),
			     cca_table_index(level, pages) + 1) *
		       table;
	if (level == c->realm->start)
		end = cca_space_pages(c->realm);
	return min_u64(pages, end - page);
}

/* Pages of the entry's kind, up to the end of its half. */
static uint64_t alike_pages(const struct cca_ctx *c, uint64_t page, uint64_t pages)
{
	uint64_t half = cca_space_pages(c->realm) / 2, end = page < half ? half : 2 * half;

	return alike(&c->realm->entries, page, min_u64(pages, end - page));
}

static uint64_t data_run(const struct cca_ctx *c, uint64_t count)
{
	uint64_t page = arg_page(c, CCA_ARG_IPA), n = alike_pages(c, page, count);

	n = min_u64(n, reached(c, CCA_LEVELS - 1, page, n));
	if (c->call->cmd == CCA_DATA_DESTROY)
		return n;
	n = min_u64(n, alike(&c->m->granules, arg_page(c, CCA_ARG_DATA), n));
	return min_u64(n, CCA_PA_PAGES - arg_page(c, CCA_ARG_DATA));
}

static uint64_t table_run(const struct cca_ctx *c, uint64_t count)
{
	unsigned level = (unsigned)arg(c, CCA_ARG_LEVEL);
	uint64_t page = arg_page(c, CCA_ARG_IPA), pages = cca_entry_pages(level - 1), n, where;

	n = min_u64(count, (cca_space_pages(c->realm) - page) / pages);
	n = alike_pages(c, page, n * pages) / pages;
	n = n ? min_u64(n, alike_tables(c, level, page, n)) : 1;
	if (c->call->cmd == CCA_RTT_CREATE) {
		n = min_u64(n, reached(c, level - 1, page, n * pages) / pages);
		n = min_u64(n, alike(&c->m->granules, arg_page(c, CCA_ARG_RTT), n));
		return min_u64(n, CCA_PA_PAGES - arg_page(c, CCA_ARG_RTT));
	}
	if (level < CCA_LEVELS - 1 && cca_any_table(c->realm, level + 1, page, page + n * pages, &where))
		n = (where - page) / pages;
	return n;
}

/* How many of the next `count` commands would pass as the one whose checks have just passed. */
static uint64_t run_length(const struct cca_ctx *c, uint64_t count)
{
	uint64_t n = 1;

	if (strides[c->call->cmd].tables)
		n = table_run(c, count);
	else if (strides[c->call->cmd].moves != CCA_ARG_ADDR)
		n = data_run(c, count);
	else
		n = min_u64(alike(&c->m->granules, arg_page(c, CCA_ARG_ADDR), count),
			    c->m->config.granules - (arg_page(c, CCA_ARG_ADDR) - (c->m->config.base >> CCA_SHIFT)));
	return n ? n : 1;
}

static void advance(struct cca_call *call, uint64_t count)
{
	const struct stride *s = &strides[call->cmd];
	uint64_t step = s->tables ? cca_level_size((unsigned)call->arg[CCA_ARG_LEVEL] - 1) : CCA_GRANULE;

	if (s->moves != CCA_ARG_ADDR)
		call->arg[CCA_ARG_IPA] += count * step;
	if (s->moves != CCA_ARG_COUNT)
		call->arg[s->moves] += count * CCA_GRANULE;
}

enum pw_status cca_rmi_run(struct cca *m, const struct cca_call *call, uint64_t count, uint64_t *done,
			   struct cca_result *r)
{
	struct cca_call next = *call;
	struct cca_ctx c;
	uint64_t n;

	*done = 0;
	if (!strides[call->cmd].allowed || count > TREE_PAGES)
		return PW_INVALID;
	for (; *done < count; *done += n, advance(&next, n)) {
		cca_begin(&c, m, &next, r);
		if (arena_reserve_sets(&m->arena, CCA_SETS_MAX) != PW_OK)
			return PW_NO_MEMORY;
		if (!cca_checks_pass(&c, r)) {
			cca_refused(&c, r);
			return PW_OK;
		}
		n = run_length(&c, count - *done);
		if (cca_carry_out(&c, n, r) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}
