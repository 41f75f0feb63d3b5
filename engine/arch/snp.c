#include "engine/arch/snp_impl.h"

#include <stdlib.h>
#include <string.h>

#define ABI_DEFAULT (1 << 8 | 55)

/* Life. */

static bool range_fits(const struct snp_range *r, uint64_t frames)
{
	return r->first <= frames && r->count <= frames - r->first;
}

static bool config_is_sane(const struct snp_config *c)
{
	if (c->frames > TREE_PAGES || c->max_asid >= SNP_ASIDS || !range_fits(&c->rmp, c->frames))
		return false;
	for (size_t i = 0; i < c->fixed_count; i++)
		if (!range_fits(&c->fixed[i], c->frames))
			return false;
	for (size_t i = 0; i < c->iommu_count; i++)
		if (!range_fits(&c->iommu[i], c->frames))
			return false;
	return true;
}

static bool ranges_copy(struct pw_mem *mem, const struct snp_range *from, size_t count, struct snp_range **to)
{
	if (!count)
		return true;
	*to = pw_mem_alloc(mem, count * sizeof **to);
	if (*to)
		memcpy(*to, from, count * sizeof **to);
	return *to != NULL;
}

enum pw_status snp_init(struct snp *m, struct pw_mem *mem, const struct snp_config *c)
{
	if (!config_is_sane(c))
		return PW_INVALID;
	*m = (struct snp){
		.mem = mem,
		.frames = c->frames,
		.rmp = c->rmp,
		.max_asid = c->max_asid,
		.sockets = c->sockets ? c->sockets : 1,
		.smt = c->smt,
		.abi = (uint16_t)(c->abi_major << 8 | c->abi_minor),
		.fixed_count = c->fixed_count,
		.iommu_count = c->iommu_count,
		.md_next = 1,
	};
	if (!m->abi)
		m->abi = ABI_DEFAULT;
	arena_init(&m->arena, mem);
	tree_init(&m->entries, &m->arena);
	tree_init(&m->perms, &m->arena);
	if (ranges_copy(mem, c->fixed, c->fixed_count, &m->fixed) &&
	    ranges_copy(mem, c->iommu, c->iommu_count, &m->iommu))
		return PW_OK;
	snp_release(m);
	return PW_NO_MEMORY;
}

void snp_release(struct snp *m)
{
	tree_release(&m->entries);
	tree_release(&m->perms);
	arena_release(&m->arena);
	pw_mem_free(m->mem, m->guests, m->guest_room * sizeof *m->guests);
	md_release(m);
	pw_mem_free(m->mem, m->fixed, m->fixed_count * sizeof *m->fixed);
	pw_mem_free(m->mem, m->iommu, m->iommu_count * sizeof *m->iommu);
	*m = (struct snp){ .mem = m->mem };
}

/* The first guest whose context is not below `context`. */
static size_t guest_from(const struct snp *m, uint64_t context)
{
	size_t low = 0, high = m->guest_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (m->guests[mid].context < context)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

const struct snp_guest *snp_guest(const struct snp *m, uint64_t context)
{
	size_t at = guest_from(m, context);

	return at < m->guest_count && m->guests[at].context == context ? &m->guests[at] : NULL;
}

/* Who is at two places at once. */

struct place {
	uint64_t asid, gfn, count, pfn;
};

static int place_order(const void *a, const void *b)
{
	const struct place *x = a, *y = b;

	if (x->asid != y->asid)
		return x->asid < y->asid ? -1 : 1;
	return x->gfn < y->gfn ? -1 : x->gfn > y->gfn;
}

/* Writes the runs of valid guest pages to `out` unless it is NULL; returns how many there are. */
static size_t valid_runs(const struct snp *m, struct place *out)
{
	struct tree_run run;
	size_t n = 0;

	for (uint64_t at = 0; at < m->frames; at += run.count) {
		run = tree_run_at(&m->entries, at, m->frames);
		if (!(run.entry & WORD_VALIDATED))
			continue;
		if (out)
			out[n] = (struct place){ word_asid(run.entry), run.entry & WORD_GFN, run.count, run.first };
		n++;
	}
	return n;
}

enum pw_status snp_find_double(const struct snp *m, bool *found, uint64_t *one, uint64_t *other)
{
	size_t n = valid_runs(m, NULL), size = n * sizeof(struct place);
	struct place *places;

	*found = false;
	if (n < 2)
		return PW_OK;
	places = pw_mem_alloc(m->mem, size);
	if (!places)
		return PW_NO_MEMORY;
	valid_runs(m, places);
	qsort(places, n, sizeof *places, place_order);
	for (size_t i = 1; i < n && !*found; i++) {
		const struct place *a = &places[i - 1], *b = &places[i];

		if (a->asid != b->asid || b->gfn >= a->gfn + a->count)
			continue;
		*found = true;
		*one = a->pfn + (b->gfn - a->gfn);
		*other = b->pfn;
	}
	pw_mem_free(m->mem, places, size);
	return PW_OK;
}

/* Digest and check. */

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

static uint64_t mix_bytes(uint64_t h, const uint8_t *bytes, size_t n)
{
	for (size_t i = 0; i < n; i += 8) {
		uint64_t x;

		memcpy(&x, bytes + i, sizeof x);
		h = mix(h, x);
	}
	return h;
}

static uint64_t tree_digest(const struct tree *t)
{
	struct tree_run run;
	uint64_t h = 0;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(t, at, TREE_PAGES);
		h = mix(mix(h, run.count), run.entry);
	}
	return h;
}

static uint64_t guest_digest(const struct snp_guest *g)
{
	uint64_t h = mix(mix(mix(g->context, g->state), g->policy), g->asid);

	h = mix(mix(h, g->imi), g->agent);
	return mix_bytes(mix_bytes(h, g->digest, SNP_DIGEST), g->imi_digest, SNP_DIGEST);
}

static uint64_t md_digest(const struct snp_md *e)
{
	uint64_t h = mix(mix(mix(e->kind, e->place), e->slot), e->type);

	return mix(mix(mix(mix(h, e->size), e->gfn), e->validated), e->perms);
}

uint64_t snp_digest(const struct snp *m)
{
	uint64_t h = mix(mix(tree_digest(&m->entries), tree_digest(&m->perms)), m->up), sum = 0;

	h = mix(h, m->owes_wbinvd);
	for (size_t i = 0; i < m->guest_count; i++)
		h = mix(h, guest_digest(&m->guests[i]));
	for (size_t i = 0; i < m->md_count; i++)
		sum += md_digest(&m->md[i]);
	for (unsigned asid = 1; asid <= m->max_asid; asid++)
		h = mix(h, m->asids[asid]);
	return mix(h, sum);
}

/* The run lies inside a 2 MiB page if it has one: aligned, 512 frames, and nothing else in it. */
static bool large_is_sound(const struct snp *m, const struct tree_run *run)
{
	uint64_t base = run->first - run->first % SNP_LARGE;
	struct tree_run page;

	if (!(run->entry & WORD_LARGE))
		return true;
	for (; base < run->first + run->count; base += SNP_LARGE) {
		page = tree_run_at(&m->entries, base, base + SNP_LARGE);
		if (page.count != SNP_LARGE || base + SNP_LARGE > m->frames)
			return false;
	}
	return true;
}

static bool entry_is_sound(const struct snp *m, const struct tree_run *run)
{
	enum snp_state s = word_state(run->entry);
	bool guests = word_asid(run->entry) != 0;

	if (run->entry && run->first + run->count > m->frames)
		return false;
	if (!large_is_sound(m, run) || (s == SNP_INVALID && guests))
		return false;
	if (guests && !(run->entry & TREE_LINEAR))
		return false;
	for (uint64_t i = 0; s == SNP_CONTEXT && i < run->count; i++)
		if (!snp_guest(m, run->first + i))
			return false;
	return true;
}

static bool rmp_is_sound(const struct snp *m)
{
	struct tree_run run;

	for (uint64_t at = m->rmp.first; m->up && at < m->rmp.first + m->rmp.count; at += run.count) {
		run = tree_run_at(&m->entries, at, m->rmp.first + m->rmp.count);
		if (word_state(run.entry) != SNP_FIRMWARE)
			return false;
	}
	return true;
}

static bool guests_are_sound(const struct snp *m)
{
	bool held[SNP_ASIDS] = { false };

	for (size_t i = 0; i < m->guest_count; i++) {
		const struct snp_guest *g = &m->guests[i];

		if (state_at(m, g->context) != SNP_CONTEXT || g->asid > m->max_asid || (g->asid && held[g->asid]))
			return false;
		held[g->asid] = true;
		if (i && m->guests[i - 1].context >= g->context)
			return false;
		if (g->asid &&
		    m->asids[g->asid] != (g->state == SNP_GUEST_RUNNING ? SNP_ASID_IN_USE : SNP_ASID_ALLOCATED))
			return false;
	}
	for (unsigned asid = 1; asid <= m->max_asid; asid++)
		if (!held[asid] && (m->asids[asid] == SNP_ASID_ALLOCATED || m->asids[asid] == SNP_ASID_IN_USE))
			return false;
	return true;
}

static bool md_is_sound(const struct snp *m, const struct snp_md *e)
{
	if (md_find(m, e->kind, e->place, e->slot) != e)
		return false;
	switch (e->kind) {
	case SNP_MD_IN_PAGE: return state_at(m, e->place) == SNP_METADATA;
	case SNP_MD_IN_CONTEXT: return snp_guest(m, e->place) != NULL;
	case SNP_MD_SWAPPED:
		for (size_t i = 0; i < m->md_count; i++)
			if (m->md[i].id == e->place)
				return m->md[i].type == SNP_SWAP_METADATA;
		return false;
	}
	return false;
}

bool snp_check(const struct snp *m)
{
	uint64_t pages[SNP_COUNTERS] = { 0 };
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&m->entries, at, TREE_PAGES);
		if (!entry_is_sound(m, &run))
			return false;
		if (word_asid(run.entry))
			pages[word_asid(run.entry)] += run.count;
	}
	for (size_t i = 0; i < m->md_count; i++)
		if (!md_is_sound(m, &m->md[i]))
			return false;
	return memcmp(pages, m->pages, sizeof pages) == 0 && rmp_is_sound(m) && guests_are_sound(m) &&
	       tree_check(&m->entries) && tree_check(&m->perms);
}
