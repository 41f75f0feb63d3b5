/* Traces as tests replay them: from a text, and all files of a pattern. */
#ifndef PW_TESTS_LIB_REPLAYED_H
#define PW_TESTS_LIB_REPLAYED_H
#include "api/replay.h"

enum pw_status replay_text(const char *text, struct replay_tally *t, struct pw_err *err) PW_MUST_CHECK;
/* All of them are right, and they have at least that many steps. */
void replay_traces(const char *pattern, uint64_t steps);

#endif
