#include "engine/arch/law.h"

extern const struct arch_law snp_law;
const struct arch_law snp_law = {
	.name = "snp",
	.state_count = 4,
	.states = {
		{ "Hypervisor", GFN_NORMAL }, { "Guest-Valid", GFN_SECURE_RESIDENT }, { "swapped out", GFN_SECURE_OUT }, { "Hypervisor", GFN_SHARED },
	},
	.rest = { [GFN_NORMAL] = 0, [GFN_SECURE_RESIDENT] = 1, [GFN_SECURE_OUT] = 2, [GFN_SHARED] = 3 },
};
