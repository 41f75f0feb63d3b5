/* tests/lib/pef_replay.h
 *
 * Replays a recorded scenario of a PEF hypervisor (format pef-trace/1, tests/traces/README.md) against a fresh model.
 */
#ifndef PW_TESTS_LIB_PEF_REPLAY_H
#define PW_TESTS_LIB_PEF_REPLAY_H
#include "engine/status.h"

#include <stdio.h>

struct replay_tally {
	unsigned files, steps, wrong;
};

/*
 * One scenario from `in`; `name` is for messages. Each step that differs is printed to `out` (which may be NULL) and
 * counted; so is a refused step that changed anything, and a step after which pef_check fails.
 * PW_INVALID    not such a file: unknown format, op, argument, code or post key, or malformed. Nothing after is read.
 * PW_NO_MEMORY
 */
enum pw_status pef_replay(FILE *in, const char *name, FILE *out, struct replay_tally *t,
			  struct pw_err *err) PW_MUST_CHECK;

#endif
