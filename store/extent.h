/* store/extent.h
 *
 * An entry of a VM's tree as columns of gfn_extent, and back: what is spelled out for people loads back exactly.
 * The architecture's state (GFN_ENTRY_ARCH) has a column of its own, by name, since its number means nothing outside of
 * this program's tables: here it is left out, and joined entries come without it (0: of a normal GFN).
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
};

/* PW_INVALID  no VM's tree has such an entry (0, the tree's own mark, two states at once) */
enum pw_status extent_split(uint64_t entry, struct extent_columns *out, struct pw_err *err) PW_MUST_CHECK;
/* False if the columns do not belong together. */
bool extent_join(const struct extent_columns *c, uint64_t *entry) PW_MUST_CHECK;

#endif
