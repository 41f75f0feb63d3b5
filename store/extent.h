/* store/extent.h
 *
 * An entry of a VM's tree as columns of gfn_extent, and back: what is spelled out for people loads back exactly.
 */
#ifndef PW_STORE_EXTENT_H
#define PW_STORE_EXTENT_H
#include "engine/ledger.h"

struct extent_columns {
	const char *state; /* normal, secure or shared */
	bool resident;
	bool numbered;       /* place and pfn hold something; always so if resident */
	unsigned pool_place; /* bits 47..40 */
	uint64_t pfn;        /* bits 39..0 */
	unsigned arch_bits;  /* bits 59..48 */
};

/* PW_INVALID  no VM's tree has such an entry (0, the tree's own mark, two states at once) */
enum pw_status extent_split(uint64_t entry, struct extent_columns *out, struct pw_err *err) PW_MUST_CHECK;
/* False if the columns do not belong together. */
bool extent_join(const struct extent_columns *c, uint64_t *entry) PW_MUST_CHECK;

#endif
