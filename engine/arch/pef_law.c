#include "engine/arch/law.h"

extern const struct arch_law pef_law;
const struct arch_law pef_law = {
	.name = "pef",
	.state_count = 4,
	.states = {
		{ "PFN normal", GFN_NORMAL }, { "secure, resident", GFN_SECURE_RESIDENT }, { "secure, paged out", GFN_SECURE_OUT }, { "shared", GFN_SHARED },
	},
	.rest = { [GFN_NORMAL] = 0, [GFN_SECURE_RESIDENT] = 1, [GFN_SECURE_OUT] = 2, [GFN_SHARED] = 3 },
};
