/* engine/arch/tdx_impl.h
 *
 * What the files of the TDX model share: the words of its trees, checks that write the refusal where they see it, and
 * the calls by subject.
 *
 * A PAMT word: page type, index of the owning TD, and 40 bits that are the BEPOCH of a guest page or table, or the
 * number of a vCPU. A secure EPT word: state, how far an ACCEPT of a 2 MiB page got, and a frame: of a table its PFN,
 * of a guest page PFN >> 9 * level, so that neighbours count up.
 */
#ifndef PW_ENGINE_ARCH_TDX_IMPL_H
#define PW_ENGINE_ARCH_TDX_IMPL_H
#include "engine/arch/tdx.h"

#define TDX_TYPE_SHIFT  56
#define TDX_OWNER_SHIFT 40
#define TDX_STATE_SHIFT 56
#define TDX_PLACE_SHIFT 40
#define TDX_PLACE_MASK  ((uint64_t)0x1ff << TDX_PLACE_SHIFT)
#define TDX_CALL_SETS   6 /* runs that one call writes, at most */

static inline uint64_t tdx_pages(unsigned level)
{
	return (uint64_t)1 << (TREE_BITS * level);
}

static inline uint64_t pamt_word(enum tdx_page_type t, const struct tdx_td *td, uint64_t note)
{
	return (uint64_t)t << TDX_TYPE_SHIFT | (uint64_t)td->index << TDX_OWNER_SHIFT | note;
}

static inline enum tdx_page_type pamt_type(uint64_t word)
{
	return (enum tdx_page_type)(word >> TDX_TYPE_SHIFT & 0xf);
}

static inline uint32_t pamt_owner(uint64_t word)
{
	return (uint32_t)(word >> TDX_OWNER_SHIFT) & 0xffff;
}

static inline uint64_t pamt_note(uint64_t word)
{
	return word & TREE_NUMBER;
}

static inline uint64_t sept_word(enum tdx_sept s, uint64_t number)
{
	return s == TDX_FREE ? 0 : TREE_LINEAR | (uint64_t)s << TDX_STATE_SHIFT | number;
}

static inline enum tdx_sept sept_state(uint64_t word)
{
	return (enum tdx_sept)(word >> TDX_STATE_SHIFT & 0xf);
}

static inline uint64_t sept_number(uint64_t word)
{
	return word & TREE_NUMBER;
}

static inline unsigned sept_place(uint64_t word)
{
	return (unsigned)((word & TDX_PLACE_MASK) >> TDX_PLACE_SHIFT);
}

/* Writes a refusal; false, for the caller to return. */
static inline bool tdx_refuse(struct tdx_result *r, enum tdx_code c, uint32_t operand)
{
	r->code = c;
	r->operand = operand;
	return false;
}

/* Sets entries; nodes were reserved when the call began. */
void tdx_put(struct tree *t, uint64_t first, uint64_t count, uint64_t word);

/* PAMT (tdx_pamt.c) */

/* The leaf above a frame, which may be any number. */
uint64_t tdx_pamt_leaf(const struct tdx *m, uint64_t pfn, unsigned *size);
/* Is it a frame address, inside a TDMR? */
bool tdx_frame_is_sane(const struct tdx *m, uint64_t pfn, unsigned size, uint32_t operand, struct tdx_result *r);
/* May a frame of that size be given to a TD? */
bool tdx_frame_is_free(const struct tdx *m, const struct tdx_call *c, unsigned size, uint32_t operand,
		       struct tdx_result *r);
/* A frame becomes a page of the TD, or nobody's. CHLDCNT follows. */
void tdx_frame_take(struct tdx *m, struct tdx_td *td, uint64_t pfn, unsigned size, enum tdx_page_type t, uint64_t note);
void tdx_frame_give(struct tdx *m, struct tdx_td *td, uint64_t pfn, unsigned size);
/* The TD that a TDR names; NULL: refused. */
struct tdx_td *tdx_td_named(const struct tdx *m, const struct tdx_call *c, struct tdx_result *r);
/* And that it can run calls in its OP_STATE. */
struct tdx_td *tdx_td_ready(const struct tdx *m, const struct tdx_call *c, struct tdx_result *r);
bool tdx_td_is_ready(const struct tdx_td *td, const struct tdx_call *c, struct tdx_result *r);

/* The calls. They refuse in *r. */
enum pw_status tdx_sept_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err);
enum pw_status tdx_accept_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err);
enum pw_status tdx_life_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err);
enum pw_status tdx_vp_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err);
enum pw_status tdx_phymem_call(struct tdx *m, const struct tdx_call *c, struct tdx_result *r, struct pw_err *err);

/* Is a GPA (without level) a private one of the TD? */
bool tdx_gpa_is_private(const struct tdx *m, const struct tdx_td *td, uint64_t gpa);
/* Walks to the entry of `level`. False: *word and *stopped say where it ended. */
bool tdx_walk(const struct tdx_td *td, uint64_t gfn, unsigned level, uint64_t *word, unsigned *stopped);
void tdx_td_free(struct tdx *m, struct tdx_td *td);

#endif
