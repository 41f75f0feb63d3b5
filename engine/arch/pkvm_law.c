#include "engine/arch/law.h"

extern const struct arch_law pkvm_law;
const struct arch_law pkvm_law = {
	.name = "pkvm",
	.state_count = 4,
	.states = {
		{ "NOPAGE", GFN_NORMAL }, { "OWNED", GFN_SECURE_RESIDENT }, { "NOPAGE", GFN_SECURE_OUT }, { "SHARED_OWNED", GFN_SHARED },
	},
	.rest = { [GFN_NORMAL] = 0, [GFN_SECURE_RESIDENT] = 1, [GFN_SECURE_OUT] = 2, [GFN_SHARED] = 3 },
};
