/* engine/alias.h
 *
 * GPA aliases of VMs whose guests choose private or shared by an address bit (the shared bit of Intel TDX, the top bit
 * of a realm's IPA). One guest page then has two GPAs; the GFN of a page is the one without the bit, and it alone keys
 * all else. That the two aliases are never mapped at the same time (law L9) is for the models that map them.
 */
#ifndef PW_ENGINE_ALIAS_H
#define PW_ENGINE_ALIAS_H
#include "engine/tree.h"

/* A VM's shared bit, in GFN units. mask 0: the VM has no aliases, and no private pages by address. */
struct gfn_alias {
	uint64_t mask;
};

/*
 * The alias of a VM whose GPA bit `shared_bit` (e.g. 47) means shared.
 * PW_INVALID  the bit lies inside the page offset, or is not below bit 40 + page_shift.
 */
enum pw_status alias_from_gpa_bit(unsigned shared_bit, unsigned page_shift, struct gfn_alias *out,
				  struct pw_err *err) PW_MUST_CHECK;

uint64_t alias_unalias(struct gfn_alias a, uint64_t raw); /* strips the bit; idempotent */
bool alias_is_private(struct gfn_alias a, uint64_t raw);  /* false for every GFN of a VM without a mask */
/* Has no GFN of the run a bit at or above the shared one? */
bool alias_is_valid_gfn(struct gfn_alias a, uint64_t gfn, uint64_t count);

/* The page that a raw GFN, as a guest uses it, means. False: it is past both aliases, and *gfn is not written. */
bool alias_read(struct gfn_alias a, uint64_t raw, uint64_t *gfn) PW_MUST_CHECK;

#endif
