#include "store/extent.h"

#include <string.h>

#define PLACE_MOST 0xffu
#define ARCH_SHIFT 48
#define ARCH_MOST  0xfffu
#define FLAGS      (GFN_ENTRY_RESIDENT | GFN_ENTRY_OUT | GFN_ENTRY_SHARED)

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
	for (size_t i = 0; entry && !(entry & TREE_TABLE) && i < PW_ARRAY_LEN(states); i++) {
		if ((entry & FLAGS) != states[i].flag)
			continue;
		*out = (struct extent_columns){
			.state = states[i].state,
			.resident = states[i].resident,
			.numbered = states[i].resident || entry << (64 - ARCH_SHIFT) != 0,
			.pool_place = (unsigned)(entry >> GFN_ENTRY_POOL) & PLACE_MOST,
			.pfn = entry & TREE_NUMBER,
			.arch_bits = (unsigned)(entry >> ARCH_SHIFT) & ARCH_MOST,
		};
		return PW_OK;
	}
	return pw_fail(err, PW_INVALID, "entry %#" PRIx64 " of a VM's tree stands for no state", entry);
}

bool extent_join(const struct extent_columns *c, uint64_t *entry)
{
	uint64_t e;

	if (c->pool_place > PLACE_MOST || c->pfn > TREE_NUMBER || c->arch_bits > ARCH_MOST ||
	    (c->resident && !c->numbered))
		return false;
	for (size_t i = 0; i < PW_ARRAY_LEN(states); i++) {
		if (c->resident != states[i].resident || strcmp(c->state, states[i].state) != 0)
			continue;
		e = states[i].flag | (uint64_t)c->arch_bits << ARCH_SHIFT;
		if (c->numbered)
			e |= (uint64_t)c->pool_place << GFN_ENTRY_POOL | c->pfn;
		*entry = e;
		return e != 0;
	}
	return false;
}
