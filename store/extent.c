#include "store/extent.h"

#include <string.h>

#define PLACE_MOST 0xffu
#define FLAGS      (GFN_ENTRY_RESIDENT | GFN_ENTRY_OUT | GFN_ENTRY_SHARED)
#define NUMBERS    (((uint64_t)1 << GFN_ENTRY_ARCH) - 1) /* place and PFN */

static const struct {
	uint64_t flag;
	const char *state;
	bool resident;
} states[] = {
	{ 0, "normal", false },
	{ GFN_ENTRY_RESIDENT, "secure", true },
	{ GFN_ENTRY_OUT, "secure", false },
	{ GFN_ENTRY_SHARED, "shared", false },
};

enum pw_status extent_split(uint64_t entry, struct extent_columns *out, struct pw_err *err)
{
	bool known = entry && !(entry & ~(FLAGS | GFN_ENTRY_ARCH_ANY | NUMBERS));

	for (size_t i = 0; known && i < PW_ARRAY_LEN(states); i++) {
		if ((entry & FLAGS) != states[i].flag)
			continue;
		*out = (struct extent_columns){
			.state = states[i].state,
			.resident = states[i].resident,
			.numbered = states[i].resident || entry & NUMBERS,
			.pool_place = (unsigned)(entry >> GFN_ENTRY_POOL) & PLACE_MOST,
			.pfn = entry & TREE_NUMBER,
		};
		return PW_OK;
	}
	return pw_fail(err, PW_INVALID, "entry %#" PRIx64 " of a VM's tree stands for no state", entry);
}

bool extent_join(const struct extent_columns *c, uint64_t *entry)
{
	if (c->pool_place > PLACE_MOST || c->pfn > TREE_NUMBER || (c->resident && !c->numbered))
		return false;
	for (size_t i = 0; i < PW_ARRAY_LEN(states); i++) {
		if (c->resident != states[i].resident || strcmp(c->state, states[i].state) != 0)
			continue;
		*entry = states[i].flag;
		if (c->numbered)
			*entry |= (uint64_t)c->pool_place << GFN_ENTRY_POOL | c->pfn;
		return true;
	}
	return false;
}
