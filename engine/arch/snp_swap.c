#include "engine/arch/snp_impl.h"

#include <string.h>

/* Metadata entries, found by a hash of their place: m->md_at has twice as many cells as m->md has room. */

static size_t md_cells(const struct snp *m)
{
	return 2 * m->md_room;
}

static size_t md_home(const struct snp *m, enum snp_md_kind kind, uint64_t place, unsigned slot)
{
	uint64_t h = ((place * SNP_MD_SLOTS + slot) * 4 + (uint64_t)kind) * 0x9e3779b97f4a7c15u;

	return (size_t)(h >> 32) & (md_cells(m) - 1);
}

static size_t md_home_of(const struct snp *m, const struct snp_md *e)
{
	return md_home(m, e->kind, e->place, e->slot);
}

/* The cell of the entry with that place, or the empty one where it would be. m has room for entries. */
static size_t md_cell(const struct snp *m, enum snp_md_kind kind, uint64_t place, unsigned slot)
{
	size_t at = md_home(m, kind, place, slot);

	for (; m->md_at[at]; at = (at + 1) & (md_cells(m) - 1)) {
		const struct snp_md *e = &m->md[m->md_at[at] - 1];

		if (e->kind == kind && e->place == place && e->slot == slot)
			break;
	}
	return at;
}

const struct snp_md *md_find(const struct snp *m, enum snp_md_kind kind, uint64_t place, unsigned slot)
{
	uint32_t i = m->md_room ? m->md_at[md_cell(m, kind, place, slot)] : 0;

	return i ? &m->md[i - 1] : NULL;
}

static void md_enter(struct snp *m, size_t i)
{
	const struct snp_md *e = &m->md[i];

	m->md_at[md_cell(m, e->kind, e->place, e->slot)] = (uint32_t)(i + 1);
}

/* Empties the entry's cell, and moves back what had to go past it. */
static void md_leave(struct snp *m, size_t i)
{
	size_t mask = md_cells(m) - 1, hole = md_cell(m, m->md[i].kind, m->md[i].place, m->md[i].slot), at = hole;

	for (;;) {
		at = (at + 1) & mask;
		if (!m->md_at[at])
			break;
		if (((at - md_home_of(m, &m->md[m->md_at[at] - 1])) & mask) < ((at - hole) & mask))
			continue;
		m->md_at[hole] = m->md_at[at];
		hole = at;
	}
	m->md_at[hole] = 0;
}

void md_clear(struct snp *m)
{
	if (m->md_room)
		memset(m->md_at, 0, md_cells(m) * sizeof *m->md_at);
	m->md_count = 0;
}

void md_release(struct snp *m)
{
	pw_mem_free(m->mem, m->md, m->md_room * sizeof *m->md);
	pw_mem_free(m->mem, m->md_at, md_cells(m) * sizeof *m->md_at);
}

enum pw_status md_reserve(struct snp *m)
{
	size_t room = m->md_room ? 2 * m->md_room : 16;
	struct snp_md *grown;
	uint32_t *cells;

	if (m->md_count < m->md_room)
		return PW_OK;
	grown = pw_mem_alloc(m->mem, room * sizeof *grown);
	cells = pw_mem_zalloc(m->mem, 2 * room * sizeof *cells);
	if (!grown || !cells) {
		pw_mem_free(m->mem, grown, room * sizeof *grown);
		pw_mem_free(m->mem, cells, 2 * room * sizeof *cells);
		return PW_NO_MEMORY;
	}
	if (m->md_count)
		memcpy(grown, m->md, m->md_count * sizeof *grown);
	md_release(m);
	m->md = grown;
	m->md_at = cells;
	m->md_room = room;
	for (size_t i = 0; i < m->md_count; i++)
		md_enter(m, i);
	return PW_OK;
}

/* Removes entry i, and what lay in the page if it stands for a page of metadata that is swapped out. */
static void md_remove(struct snp *m, size_t i)
{
	struct snp_md gone = m->md[i];

	md_leave(m, i);
	if (i != --m->md_count) {
		md_leave(m, m->md_count);
		m->md[i] = m->md[m->md_count];
		md_enter(m, i);
	}
	if (gone.type == SNP_SWAP_METADATA)
		md_drop_place(m, SNP_MD_SWAPPED, gone.id, 1);
}

void md_drop_place(struct snp *m, enum snp_md_kind kind, uint64_t place, uint64_t count)
{
	for (uint64_t at = place; m->md_count && at < place + count; at++)
		for (unsigned slot = 0; slot < SNP_MD_SLOTS; slot++) {
			const struct snp_md *e = md_find(m, kind, at, slot);

			if (e)
				md_remove(m, (size_t)(e - m->md));
		}
}

void md_move_place(struct snp *m, enum snp_md_kind kind, uint64_t place, uint64_t count, enum snp_md_kind to_kind,
		   uint64_t to)
{
	for (uint64_t at = 0; m->md_count && at < count; at++)
		for (unsigned slot = 0; slot < SNP_MD_SLOTS; slot++) {
			const struct snp_md *e = md_find(m, kind, place + at, slot);
			size_t i = e ? (size_t)(e - m->md) : 0;

			if (!e)
				continue;
			md_leave(m, i);
			m->md[i].place = to + at;
			m->md[i].kind = to_kind;
			md_enter(m, i);
		}
}

void md_put(struct snp *m, const struct snp_md *md)
{
	const struct snp_md *old = md_find(m, md->kind, md->place, md->slot);

	if (old)
		md_remove(m, (size_t)(old - m->md));
	m->md[m->md_count] = *md;
	m->md[m->md_count].id = m->md_next++;
	md_enter(m, m->md_count++);
}

/* Checks of both commands. */

static enum snp_swap_type type_of(const struct fw *f)
{
	return f->c->type < SNP_SWAP_TYPES ? (enum snp_swap_type)f->c->type : SNP_SWAP_TYPES;
}

static bool in_page(const struct fw *f)
{
	return !f->c->root;
}

static bool is_metadata(const struct fw *f)
{
	return type_of(f) == SNP_SWAP_METADATA;
}

static bool is_vmsa(const struct fw *f)
{
	return type_of(f) == SNP_SWAP_VMSA;
}

static bool is_data(const struct fw *f)
{
	return type_of(f) == SNP_SWAP_DATA;
}

static bool is_guests(const struct fw *f)
{
	return is_data(f) || is_vmsa(f);
}

static bool is_unknown(const struct fw *f)
{
	return type_of(f) == SNP_SWAP_TYPES;
}

static bool md_in_rmp(const struct fw *f)
{
	return in_range(&f->m->rmp, f->c->md);
}

static uint64_t page_frames(const struct fw *f)
{
	return f->c->size == SNP_2M ? SNP_LARGE : 1;
}

static bool md_misplaced(const struct fw *f)
{
	struct snp_range src = { f->c->pfn, page_frames(f) }, dst = { f->c->dst, page_frames(f) };

	return f->c->offset % (SNP_PAGE / SNP_MD_SLOTS) || f->c->offset >= SNP_PAGE || in_range(&src, f->c->md) ||
	       in_range(&dst, f->c->md);
}

static bool md_not_metadata(const struct fw *f)
{
	return state_at(f->m, f->c->md) != SNP_METADATA;
}

static bool owns_metadata(const struct fw *f, uint64_t w)
{
	return (w & WORD_GFN & ~SNP_GFN_TAG) == f->c->context;
}

static bool md_of_other(const struct fw *f)
{
	return !owns_metadata(f, word_at(f->m, f->c->md));
}

bool fw_not_owner_md(const struct fw *f)
{
	return !owns_metadata(f, f->word);
}

/* The entry that the command names, or NULL if it is not valid. */
static const struct snp_md *named(const struct fw *f)
{
	if (f->c->root)
		return md_find(f->m, SNP_MD_IN_CONTEXT, f->c->context, 0);
	return md_find(f->m, SNP_MD_IN_PAGE, f->c->md, f->c->offset / (SNP_PAGE / SNP_MD_SLOTS));
}

/* A page has the operand's size and is named by its first frame; a frame past the RMP has any size. */
static bool size_differs(const struct fw *f, uint64_t pfn, uint64_t w, enum snp_state s)
{
	return s != SNP_DEFAULT && (word_size(w) != f->c->size || pfn % word_frames(w));
}

static bool src_size(const struct fw *f)
{
	return size_differs(f, f->c->pfn, f->word, f->state);
}

static bool dst_size(const struct fw *f)
{
	return size_differs(f, f->c->dst, f->dst_word, f->dst_state);
}

static bool entry_differs(const struct fw *f)
{
	const struct snp_md *e = named(f);

	return !e || e->type != type_of(f);
}

static bool entry_size(const struct fw *f)
{
	return named(f)->size != f->c->size;
}

static bool in_place(const struct fw *f)
{
	return f->c->in_place;
}

static bool in_two_places(const struct fw *f)
{
	return f->c->in_place && f->c->pfn != f->c->dst;
}

static bool is_large(const struct fw *f)
{
	return f->c->size == SNP_2M;
}

#define SWAP_PREFIX                                                                   \
	FW_PREFIX, FW_CHECK(fw_page_in_rmp, INVALID_PARAM, IN_RMP),                   \
		FW_CHECK_DST(fw_dst_in_rmp, INVALID_PARAM, IN_RMP), FW_GUEST,         \
		FW_CHECK_AT(MD, in_page, md_in_rmp, INVALID_PARAM, IN_RMP),           \
		FW_CHECK_AT(MD, in_page, md_misplaced, INVALID_PARAM, MD_PLACE),      \
		FW_CHECK_AT(MD, in_page, md_not_metadata, INVALID_PAGE_STATE, STATE), \
		FW_CHECK_AT(MD, in_page, md_of_other, INVALID_PAGE_OWNER, OWNER)

/* clang-format off */
const struct fw_check fw_swap_out_checks[] = {
	SWAP_PREFIX,
	FW_CHECK(src_size, INVALID_PAGE_SIZE, SIZE),
	FW_CHECK_DST(dst_size, INVALID_PAGE_SIZE, SIZE),
	FW_CHECK(fw_not_launched, INVALID_GUEST_STATE, GUEST_STATE),
	FW_CHECK(fw_no_asid, INACTIVE, NO_ASID),
	FW_CHECK(is_unknown, INVALID_PAGE_STATE, TYPE),
	FW_CELL_IF(is_guests, DO_OUT, PAGE, STATE),
	FW_CELL_IF(is_metadata, DO_OUT_MD, PAGE, STATE),
	FW_CELL(DO_OUT_TO, DST, STATE),
	FW_CHECK_IF(is_guests, fw_not_owner, INVALID_PAGE_OWNER, OWNER),
	FW_CHECK_IF(is_metadata, fw_not_owner_md, INVALID_PAGE_OWNER, OWNER),
	FW_END,
};

const struct fw_check fw_swap_in_checks[] = {
	SWAP_PREFIX,
	FW_CHECK(fw_not_launched, INVALID_GUEST_STATE, GUEST_STATE),
	FW_CHECK(fw_no_asid, INACTIVE, NO_ASID),
	FW_CHECK(entry_differs, INVALID_MDATA_ENTRY, MD_ENTRY),
	FW_CHECK(src_size, INVALID_PAGE_SIZE, SIZE),
	FW_CHECK_DST(dst_size, INVALID_PAGE_SIZE, SIZE),
	FW_CHECK(entry_size, INVALID_PAGE_SIZE, SIZE),
	FW_CHECK_IF(is_metadata, in_place, INVALID_PARAM, IN_PLACE),
	FW_CHECK_IF(is_vmsa, in_place, INVALID_PARAM, IN_PLACE),
	FW_CHECK_IF(is_vmsa, is_large, INVALID_PAGE_SIZE, TYPE_SIZE),
	FW_CHECK_IF(is_data, in_two_places, INVALID_ADDRESS, PLACES),
	FW_CELL_IF(is_guests, DO_IN, DST, STATE),
	FW_CELL_IF(is_metadata, DO_IN_MD, DST, STATE),
	FW_CHECK_AT(DST, is_guests, fw_dst_not_owner, INVALID_PAGE_OWNER, OWNER),
	FW_END,
};
/* clang-format on */

/* What they do. */

enum pw_status fw_swap_out(struct fw *f)
{
	const struct snp_cmd *c = f->c;
	struct snp_md e = {
		.kind = c->root ? SNP_MD_IN_CONTEXT : SNP_MD_IN_PAGE,
		.place = c->root ? c->context : c->md,
		.slot = c->root ? 0 : c->offset / (SNP_PAGE / SNP_MD_SLOTS),
		.type = type_of(f),
		.size = c->size,
		.gfn = is_guests(f) ? f->word & WORD_GFN : 0,
		.validated = f->word & WORD_VALIDATED,
		.perms = is_guests(f) ? perms_at(f->m, c->pfn) : 0,
	};
	const struct snp_cell *cell = snp_cell(f->state, is_guests(f) ? SNP_DO_OUT : SNP_DO_OUT_MD);

	if (md_reserve(f->m) != PW_OK || rmp_reserve(f->m, 1) != PW_OK)
		return PW_NO_MEMORY;
	md_put(f->m, &e);
	if (is_metadata(f))
		md_move_place(f->m, SNP_MD_IN_PAGE, c->pfn, 1, SNP_MD_SWAPPED, f->m->md_next - 1);
	page_put(f->m, f->name, c->pfn, page_frames(f), word_in(f->word, cell->next));
	return PW_OK;
}

static void swap_in_guests(struct fw *f, const struct snp_md *e)
{
	const struct snp_cell *cell = snp_cell(f->dst_state, SNP_DO_IN);
	uint64_t word = word_numbered(f->dst_word & ~WORD_VMSA, e->gfn);

	if (e->type == SNP_SWAP_VMSA)
		word |= WORD_VMSA;
	page_put(f->m, f->name, f->c->dst, page_frames(f), e->validated ? word_in(word, cell->next) : word);
	perms_put(f->m, f->c->dst, page_frames(f), e->perms);
}

static void swap_in_metadata(struct fw *f, const struct snp_md *e)
{
	const struct snp_cell *cell = snp_cell(f->dst_state, SNP_DO_IN_MD);
	uint64_t word = word_numbered(word_in(f->dst_word, cell->next), SNP_TAG_METADATA | f->c->context);

	md_move_place(f->m, SNP_MD_SWAPPED, e->id, 1, SNP_MD_IN_PAGE, f->c->dst);
	page_put(f->m, f->name, f->c->dst, page_frames(f), word);
}

enum pw_status fw_swap_in(struct fw *f)
{
	const struct snp_md *e = named(f);
	struct snp_md was = *e;

	if (rmp_reserve(f->m, 1) != PW_OK)
		return PW_NO_MEMORY;
	if (was.type == SNP_SWAP_METADATA)
		swap_in_metadata(f, &was);
	else
		swap_in_guests(f, &was);
	e = named(f);
	if (e)
		md_remove(f->m, (size_t)(e - f->m->md));
	return PW_OK;
}
