#include "engine/arch/law.h"

extern const struct arch_law cca_law;
const struct arch_law cca_law = {
	.name = "cca",
	.state_count = 4,
	.states = {
		{ "UNASSIGNED", GFN_NORMAL }, { "ASSIGNED", GFN_SECURE_RESIDENT }, { "UNASSIGNED", GFN_SECURE_OUT }, { "ASSIGNED_NS", GFN_SHARED },
	},
	.rest = { [GFN_NORMAL] = 0, [GFN_SECURE_RESIDENT] = 1, [GFN_SECURE_OUT] = 2, [GFN_SHARED] = 3 },
};
