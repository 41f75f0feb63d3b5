/* engine/arch/snp_impl.h
 *
 * What the files of the SEV-SNP model share.
 *
 * The word of a frame: the number is the entry's GFN field, which counts up (TREE_LINEAR) where there is an owner or a
 * number. A frame of a 2 MiB page has WORD_LARGE and its own GFN. 0: Hypervisor.
 */
#ifndef PW_ENGINE_ARCH_SNP_IMPL_H
#define PW_ENGINE_ARCH_SNP_IMPL_H
#include "engine/arch/snp.h"

#define WORD_ASID_SHIFT 40
#define WORD_ASID       ((uint64_t)(SNP_ASIDS - 1) << WORD_ASID_SHIFT)
#define WORD_ASSIGNED   ((uint64_t)1 << 50)
#define WORD_LARGE      ((uint64_t)1 << 51)
#define WORD_IMMUTABLE  ((uint64_t)1 << 52)
#define WORD_VMSA       ((uint64_t)1 << 53)
#define WORD_VALIDATED  ((uint64_t)1 << 54)
#define WORD_GFN        (SNP_GFNS - 1)

#define PERMS_ALL       0x1fu
#define PERMS_NEW       ((uint32_t)PERMS_ALL) /* VMPL0 all, the others none */

static inline unsigned word_asid(uint64_t w)
{
	return (unsigned)((w & WORD_ASID) >> WORD_ASID_SHIFT);
}

static inline uint64_t word_frames(uint64_t w)
{
	return w & WORD_LARGE ? SNP_LARGE : 1;
}

/* The first frame of the page that frame `pfn` with word `w` is part of. */
static inline uint64_t word_base(uint64_t w, uint64_t pfn)
{
	return pfn & ~(word_frames(w) - 1);
}

static inline enum snp_size word_size(uint64_t w)
{
	return w & WORD_LARGE ? SNP_2M : SNP_4K;
}

static inline bool in_range(const struct snp_range *r, uint64_t pfn)
{
	return pfn >= r->first && pfn - r->first < r->count;
}

/* snp_tables.c */
uint64_t word_raw(uint64_t w);         /* the low quadword, without subpage_count */
enum snp_state word_state(uint64_t w); /* of a frame that has an entry */
uint64_t word_in(uint64_t w,
		 enum snp_state next); /* w, moved to state `next`: what that state does not keep is cleared */
uint64_t word_numbered(uint64_t w, uint64_t number);

/* snp_rmp.c */
uint64_t word_at(const struct snp *m, uint64_t pfn);
enum snp_state state_at(const struct snp *m, uint64_t pfn);
uint32_t perms_at(const struct snp *m, uint64_t pfn);
/* After this has succeeded, the next `pages` pages can be put. */
enum pw_status rmp_reserve(struct snp *m, size_t pages);
/* Write words of [pfn, pfn + count), with counters and trace; rmp_reserve came before. */
void page_put(struct snp *m, const char *op, uint64_t pfn, uint64_t count, uint64_t word);
void perms_put(struct snp *m, uint64_t pfn, uint64_t count, uint32_t perms);
void rmp_clear(struct snp *m, const char *op); /* all entries and masks; with trace, without counters */
/* The refusal is kept in m->why. */
void why_set(struct snp *m, enum snp_rule rule, const char *op, uint64_t pfn);
enum pw_status update_page(struct snp *m, const struct snp_rmpupdate *u, enum snp_code *code);
/* Makes a page that a launch has changed Hypervisor again, without memory. */
void update_undo(struct snp *m, uint64_t pfn, uint64_t count);

/* snp_swap.c */
const struct snp_md *md_find(const struct snp *m, enum snp_md_kind kind, uint64_t place, unsigned slot);
enum pw_status md_reserve(struct snp *m);
void md_clear(struct snp *m); /* no entries */
void md_release(struct snp *m);
void md_put(struct snp *m, const struct snp_md *md); /* over what is there; md_reserve came before */
void md_drop_place(struct snp *m, enum snp_md_kind kind, uint64_t place, uint64_t count);
void md_move_place(struct snp *m, enum snp_md_kind kind, uint64_t place, uint64_t count, enum snp_md_kind to_kind,
		   uint64_t to);

/* Commands as lists of checks in the order of the firmware. */
struct fw {
	struct snp *m;
	const struct snp_cmd *c;
	const char *name;
	struct snp_guest *guest; /* NULL while the context is not known to be one */
	uint64_t word, dst_word;
	enum snp_state context_state, state, dst_state;
};
enum fw_page { FW_CONTEXT, FW_PAGE, FW_DST, FW_MD, FW_AGENT }; /* the frame that a command names so */
struct fw_check {
	bool (*when)(const struct fw *f);  /* NULL: always */
	bool (*fails)(const struct fw *f); /* NULL: the cell of `on` refuses `cell` */
	enum snp_status status;
	enum snp_rule rule;
	enum snp_page_op cell;
	enum fw_page on;
};
#define FW_END                                                                               \
	{                                                                                    \
		NULL, NULL, SNP_SUCCESS, SNP_RULE_NONE, (enum snp_page_op)0, (enum fw_page)0 \
	}
#define FW_CHECK_AT(page, if_, fn, st, why)                                       \
	{                                                                         \
		if_, fn, SNP_##st, SNP_RULE_##why, (enum snp_page_op)0, FW_##page \
	}
#define FW_CHECK(fn, st, why)         FW_CHECK_AT(PAGE, NULL, fn, st, why)
#define FW_CHECK_IF(if_, fn, st, why) FW_CHECK_AT(PAGE, if_, fn, st, why)
#define FW_CHECK_DST(fn, st, why)     FW_CHECK_AT(DST, NULL, fn, st, why)
#define FW_CHECK_CONTEXT(fn, st, why) FW_CHECK_AT(CONTEXT, NULL, fn, st, why)
#define FW_CELL(op, page, why)                                               \
	{                                                                    \
		NULL, NULL, SNP_SUCCESS, SNP_RULE_##why, SNP_##op, FW_##page \
	}
#define FW_CELL_IF(if_, op, page, why)                                      \
	{                                                                   \
		if_, NULL, SNP_SUCCESS, SNP_RULE_##why, SNP_##op, FW_##page \
	}

bool fw_reserved(const struct fw *f);
bool fw_down(const struct fw *f);
bool fw_context_in_rmp(const struct fw *f);
bool fw_page_in_rmp(const struct fw *f);
bool fw_dst_in_rmp(const struct fw *f);
bool fw_not_launched(const struct fw *f); /* the guest is neither LAUNCH nor RUNNING */
bool fw_no_asid(const struct fw *f);
bool fw_not_owner(const struct fw *f);
bool fw_dst_not_owner(const struct fw *f);
bool fw_not_owner_md(const struct fw *f); /* snp_swap.c */
#define FW_PREFIX                                                                                            \
	FW_CHECK(fw_reserved, INVALID_PARAM, RESERVED), FW_CHECK(fw_down, INVALID_PLATFORM_STATE, PLATFORM), \
		FW_CHECK_CONTEXT(fw_context_in_rmp, INVALID_PARAM, IN_RMP)
#define FW_GUEST FW_CELL(DO_DECOMMISSION, CONTEXT, NOT_CONTEXT)

extern const struct fw_check *const fw_checks[SNP_COMMAND_COUNT]; /* snp_fw_checks.c */
uint8_t fw_content_at(const struct snp_cmd *c, size_t at);

/* snp_swap.c */
extern const struct fw_check fw_swap_out_checks[], fw_swap_in_checks[];
enum pw_status fw_swap_out(struct fw *f);
enum pw_status fw_swap_in(struct fw *f);

#endif
