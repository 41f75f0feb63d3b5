/* engine/arch/cca_impl.h
 *
 * What the parts of the CCA model share: words of its trees, and places in tables. Pages are addresses >> 12.
 */
#ifndef PW_ENGINE_ARCH_CCA_IMPL_H
#define PW_ENGINE_ARCH_CCA_IMPL_H
#include "engine/arch/cca.h"

#define CCA_TABLE_BITS 9
#define CCA_PA_PAGES   ((uint64_t)1 << (48 - CCA_SHIFT))

/*
 * A granule's word: 0 undelegated; bits 58..56 state, 55..40 slot of its realm, 62..61 level of a table. The number:
 * DATA the page of the IPA before it, RTT which table of its level (both linear); REC and REC_AUX the REC's place.
 */
struct cca_use {
	enum cca_granule state;
	unsigned slot, level;
	uint64_t number;
};
uint64_t cca_use_word(const struct cca_use *u);
struct cca_use cca_word_use(uint64_t word);
#define CCA_WORD_DELEGATED ((uint64_t)CCA_DELEGATED << 56)

uint64_t cca_granule_word(const struct cca *m, uint64_t page);
bool cca_granule_is(const struct cca *m, uint64_t addr, enum cca_granule s); /* aligned, delegable, and in state s */
/* The arena must have been reserved. */
void cca_granules_set(struct cca *m, uint64_t page, uint64_t count, uint64_t word);
void cca_tree_set(struct tree *t, uint64_t first, uint64_t count, uint64_t word);

/* An entry's word: linear with the output's page if ASSIGNED; bits 58..57 RIPAS, 55..50 attributes of ASSIGNED_NS. */
enum cca_entry cca_word_entry(uint64_t word, bool unprotected);
uint64_t cca_entry_word(enum cca_entry e, uint64_t page, uint64_t attr);
uint64_t cca_word_attr(uint64_t word);

/* Pages that one entry of the level covers, and that one table of it does. */
static inline uint64_t cca_entry_pages(unsigned level)
{
	return (uint64_t)1 << (CCA_TABLE_BITS * (CCA_LEVELS - 1 - level));
}
static inline uint64_t cca_table_pages(unsigned level)
{
	return cca_entry_pages(level) << CCA_TABLE_BITS;
}
/* Which table of its level translates the page. */
static inline uint64_t cca_table_index(unsigned level, uint64_t page)
{
	return page >> (CCA_TABLE_BITS * (CCA_LEVELS - level));
}
static inline uint64_t cca_space_pages(const struct cca_realm *r)
{
	return (uint64_t)1 << (r->ipa_bits - CCA_SHIFT);
}
static inline bool cca_is_unprotected(const struct cca_realm *r, uint64_t page)
{
	return page >= cca_space_pages(r) / 2;
}

/* The table of level start+1.. that translates the page: its granule, or false. */
bool cca_table_at(const struct cca_realm *r, unsigned level, uint64_t page, uint64_t *granule);
/* The walk without its details. */
struct cca_spot {
	unsigned level;
	uint64_t first; /* page where the entry begins */
	uint64_t word;  /* of that page; TABLE: the granule */
	enum cca_entry entry;
};
struct cca_spot cca_spot_at(const struct cca_realm *r, uint64_t page, unsigned target);

/* Is there a table of `level` for any page of [first, end)? Edges are those of such tables. */
bool cca_any_table(const struct cca_realm *r, unsigned level, uint64_t first, uint64_t end, uint64_t *where);
/* The IPA behind what is not live at and after the entry of the page, in its table; the IPA itself if it is live. */
uint64_t cca_skip_dead(const struct cca_realm *r, const struct cca_spot *at, uint64_t ipa);
/* Does nothing in the table of this level at `first` keep it from being destroyed? */
bool cca_table_is_dead(const struct cca_realm *r, unsigned level, uint64_t first);
bool cca_root_is_dead(const struct cca_realm *r);
/* Do the 512 entries fold? */
bool cca_table_is_alike(const struct cca_realm *r, unsigned level, uint64_t first);

/* Realms and RECs, with their granules as they are. Arena reserved by the caller for the trees. */
enum pw_status cca_realm_slot(struct cca *m, unsigned *slot) PW_MUST_CHECK; /* a free one; room is made */
enum pw_status cca_rec_slot(struct cca *m, size_t *slot) PW_MUST_CHECK;
bool cca_vmid_is_used(const struct cca *m, uint16_t vmid);
void cca_vmid_set(struct cca *m, uint16_t vmid);
void cca_vmid_clear(struct cca *m, uint16_t vmid);
void cca_realm_free(struct cca *m, struct cca_realm *r); /* memory alone */
void cca_rec_free(struct cca *m, size_t slot);

#endif
