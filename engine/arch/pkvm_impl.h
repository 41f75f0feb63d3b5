/* engine/arch/pkvm_impl.h
 *
 * What pkvm.c and pkvm_vm.c share: the words of page records and leaves, and checking without doing.
 */
#ifndef PW_ENGINE_ARCH_PKVM_IMPL_H
#define PW_ENGINE_ARCH_PKVM_IMPL_H
#include "engine/arch/pkvm.h"

#define JOINT_SHIFT 56
#define JOINT_MASK  ((uint64_t)7 << JOINT_SHIFT)
#define VMID_SHIFT  40
#define VMID_MASK   ((uint64_t)0xff << VMID_SHIFT)
#define COUNT_MASK  ((uint64_t)UINT32_MAX)
#define LEAF_BLOCK  ((uint64_t)1 << 55)

/* Page records: 0 is A; B and C carry references and pins, E its count, F and G whose GFN they are. */
static inline enum pkvm_joint word_joint(uint64_t word)
{
	return (enum pkvm_joint)((word & JOINT_MASK) >> JOINT_SHIFT);
}

static inline uint64_t joint_word(enum pkvm_joint j, uint64_t count)
{
	return (uint64_t)j << JOINT_SHIFT | count;
}

static inline uint64_t guest_word(enum pkvm_joint j, unsigned vmid, uint64_t gfn)
{
	return TREE_LINEAR | joint_word(j, (uint64_t)vmid << VMID_SHIFT | gfn);
}

/* Leaves: 0 is none; a state plus one otherwise. */
static inline enum pkvm_page_state word_leaf(uint64_t word)
{
	uint64_t s = (word & JOINT_MASK) >> JOINT_SHIFT;

	return s ? (enum pkvm_page_state)(s - 1) : PKVM_NOPAGE;
}

/* How many tree_sets have to be reserved for setting this run: none, if both of its edges are pages in tables. */
static inline uint64_t sets_for(struct tree *t, uint64_t first, uint64_t count)
{
	struct tree_spot at;

	return !tree_find(t, first, &at) || !tree_find(t, first + count - 1, &at);
}

/* Would the operation succeed? *a says why not. */
bool pkvm_would(const struct pkvm *m, enum pkvm_page_op op, const struct pkvm_call *c,
		struct pkvm_answer *a) PW_MUST_CHECK;

#endif
