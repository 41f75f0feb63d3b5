/* agents/snp_pages.h
 *
 * What the VMM of an emulated SEV-SNP host has of each GFN, as KVM has it in memory attributes and nested page tables,
 * and the ops on ranges of GFNs: which pages go by 2 MiB, which have to be cut, and how to take back what was done
 * before something refused.
 */
#ifndef PW_AGENTS_SNP_PAGES_H
#define PW_AGENTS_SNP_PAGES_H
#include "agents/snp_host.h"

/* Entries of a guest's tree. 0: normal. All but GPT_SHARED are private. */
#define GPT_OUT     ((uint64_t)1 << 62) /* no page yet: the first is empty */
#define GPT_SHARED  ((uint64_t)1 << 61)
#define GPT_SWAPPED (TREE_LINEAR | (uint64_t)1 << 59) /* the number is its metadata entry */
#define GPT_FRAME   (TREE_LINEAR | (uint64_t)1 << 58) /* the number is its PFN: Guest-Valid */

static inline bool snp_pages_is_swapped(uint64_t entry)
{
	return (entry & GPT_SWAPPED) == GPT_SWAPPED;
}
enum gfn_state snp_pages_state(uint64_t entry);

/* One op on the GFNs [gfn, end). */
struct snp_act {
	struct snp_host *h;
	struct snp_host_guest *g;
	uint64_t gfn, end;
	const uint64_t *pfns; /* snp_pages_in */
	uint64_t *slots;      /* snp_pages_out: one for each GFN */
	bool launching;       /* snp_pages_in: by LAUNCH_UPDATE */
	bool final;           /* never undone */
};

/* After this, so many runs of a range with so many pages can be set. A range has only so many tables. */
enum pw_status snp_pages_reserve(struct snp_host *h, uint64_t pages, uint64_t runs, struct pw_err *err) PW_MUST_CHECK;
void snp_pages_set(struct snp_act *a, uint64_t gfn, uint64_t count, uint64_t entry);
/* Spares of the last op go back, but for what the next small one wants. */
void snp_pages_trim(struct snp_host *h);
/* The next resident run at or after `from`, cut at the op's end; false: none. */
bool snp_pages_next_resident(const struct snp_act *a, uint64_t from, struct tree_run *run);

/*
 * The ops. On failure everything is as it was.
 *	snp_pages_in     none is resident; all are, on their pfns
 *	snp_pages_out    what is resident is swapped out
 *	snp_pages_empty  all become `entry`, which has no content
 */
enum pw_status snp_pages_in(struct snp_act *a, struct pw_err *err) PW_MUST_CHECK;
enum pw_status snp_pages_out(struct snp_act *a, struct pw_err *err) PW_MUST_CHECK;
enum pw_status snp_pages_empty(struct snp_act *a, uint64_t entry, struct pw_err *err) PW_MUST_CHECK;
/* Of a VM that ends: whatever one frame of the resident run says, the others go. The tree is left as it is. */
void snp_pages_end(struct snp_act *a, const struct tree_run *run);

#endif
