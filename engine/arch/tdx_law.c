#include "engine/arch/law.h"

extern const struct arch_law tdx_law;
const struct arch_law tdx_law = {
	.name = "tdx",
	.state_count = 4,
	.states = {
		{ "FREE", GFN_NORMAL }, { "MAPPED", GFN_SECURE_RESIDENT }, { "FREE", GFN_SECURE_OUT }, { "FREE", GFN_SHARED },
	},
	.rest = { [GFN_NORMAL] = 0, [GFN_SECURE_RESIDENT] = 1, [GFN_SECURE_OUT] = 2, [GFN_SHARED] = 3 },
};
