/* engine/alias.h
 *
 * GPA aliases of VMs whose guests choose private or shared by an address bit ("stolen bits"; Intel TDX).
 * One guest page then has two GPAs; the GFN of a page is the one without the bit, and it alone keys all else.
 */
#ifndef PW_ENGINE_ALIAS_H
#define PW_ENGINE_ALIAS_H
#include "engine/tree.h"

/* Guest paging modes. Aliases are legal only for the 64-bit formats (long mode, PAE), never for nested EPT. */
#define PAGING_MODES(X) X(PAGING_NONE) X(PAGING_32BIT) X(PAGING_PAE) X(PAGING_LONG) X(PAGING_NESTED_EPT)
#define PW_ENUM_(name)  name,
enum paging_mode { PAGING_MODES(PW_ENUM_) PAGING_MODE_COUNT };
#undef PW_ENUM_

/* A VM's stolen bits, in GFN units. mask 0: the VM has no aliases, and no private pages by address. */
struct gfn_alias {
	uint64_t mask;
};

/*
 * The alias of a VM whose GPA bit `shared_bit` (e.g. 47) means shared.
 * PW_INVALID  the bit lies inside the page offset, or is not below bit 40 + page_shift.
 */
enum pw_status alias_from_gpa_bit(unsigned shared_bit, unsigned page_shift, struct gfn_alias *out,
				  struct pw_err *err) PW_MUST_CHECK;
/* PW_INVALID  a mask on a VM whose guest paging has no aliases. */
enum pw_status alias_allow(struct gfn_alias a, enum paging_mode mode, struct pw_err *err) PW_MUST_CHECK;

uint64_t alias_unalias(struct gfn_alias a, uint64_t raw); /* strips the stolen bits; idempotent */
uint64_t alias_private(struct gfn_alias a, uint64_t gfn);
uint64_t alias_shared(struct gfn_alias a, uint64_t gfn);
bool alias_is_private(struct gfn_alias a, uint64_t raw); /* false for every GFN of a VM without a mask */
/* Has no GFN of the run a bit at or above the lowest stolen bit? */
bool alias_is_valid_gfn(struct gfn_alias a, uint64_t gfn, uint64_t count);

/* The ranges that a TLB flush of [gfn, gfn + count) must cover: one for each alias. gfn may be any alias. */
struct alias_flush {
	unsigned n; /* 1 or 2; 0: flush everything (more than one stolen bit, or the run leaves its alias) */
	struct {
		uint64_t gfn, count;
	} range[2];
};
struct alias_flush alias_flush_ranges(struct gfn_alias a, uint64_t gfn, uint64_t count);

/*
 * Which alias of each GFN is mapped: one tree for each role, never both (law L9).
 */
struct alias_map {
	struct gfn_alias alias;
	struct tree mapped_private, mapped_shared;
};
void alias_map_init(struct alias_map *m, struct gfn_alias a, struct arena *arena);
void alias_map_release(struct alias_map *m);

/*
 * Maps a run by the raw (aliased) GFN that the guest used. Mapping what is mapped under the same alias is ok.
 * PW_CONFLICT  some GFN of the run is mapped under the other alias: nothing changed.
 * PW_INVALID   the run is empty or wraps, crosses from one alias into the other, or lies under neither of the two.
 * PW_NO_MEMORY nothing changed.
 */
enum pw_status alias_map_add(struct alias_map *m, uint64_t raw, uint64_t count, struct pw_err *err) PW_MUST_CHECK;
/* Unmaps every alias of the run (by any alias of it). PW_INVALID as above; PW_NO_MEMORY: nothing changed. */
enum pw_status alias_map_remove(struct alias_map *m, uint64_t raw, uint64_t count, struct pw_err *err) PW_MUST_CHECK;
bool alias_map_has(const struct alias_map *m, uint64_t raw);

#endif
