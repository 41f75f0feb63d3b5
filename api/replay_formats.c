#include "api/replay.h"

extern const struct replay_format replay_pef, replay_snp, replay_tdx, replay_cca, replay_pkvm;

const struct replay_format *const replay_formats[] = {
	&replay_pef, &replay_pkvm, &replay_cca, &replay_tdx, &replay_snp, NULL,
};
