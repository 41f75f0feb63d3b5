/* api/replay.h
 *
 * Replays recorded scenarios (JSON Lines: a header, then steps in order) against fresh models of their architectures.
 * What a format knows is one table of functions; how steps are read, compared and counted is the same for all.
 *
 * Every result that a step carries must be equal. A refused step must have changed nothing: the digest
 * of the whole model is compared. After every step the model's own invariants are checked. Unknown formats, operations,
 * arguments and post keys are refused loudly: a step that is not checked never counts as passed.
 */
#ifndef PW_API_REPLAY_H
#define PW_API_REPLAY_H
#include <jansson.h>
#include <stdio.h>

#include "engine/status.h"

struct replay_format {
	const char *name; /* "snp-trace/1" */
	/* A fresh model as the header says. PW_INVALID: a member that is unknown, missing or wrong. */
	enum pw_status (*open)(const json_t *header, void **model, struct pw_err *err);
	void (*close)(void *model);
	/*
	 * Runs one step. *got: a new object with every result that the line carries (`ret` and `post`, or whatever the
	 * format has), as the model answers it: the same keys at every level. *refused: this answer is a refusal, which
	 * changes nothing. PW_INVALID: an operation, operand, result or post key that is unknown, missing or wrong;
	 * PW_NO_MEMORY.
	 */
	enum pw_status (*step)(void *model, const json_t *line, json_t **got, bool *refused, struct pw_err *err);
	uint64_t (*digest)(const void *model);                /* of all that the model holds */
	bool (*check)(const void *model, struct pw_err *err); /* do its invariants hold? */
};
extern const struct replay_format *const replay_formats[]; /* ends with NULL */

struct replay_tally {
	uint64_t files, steps, wrong;
};

/*
 * One scenario. Each step that differs is printed to `out` (which may be NULL): expected, got, the step. `name` is for
 * messages.
 * PW_INVALID   not a scenario that is understood: nothing after that place was run. Counts the file, not as passed.
 * PW_NO_MEMORY
 */
enum pw_status replay_file(FILE *in, const char *name, FILE *out, struct replay_tally *t, struct pw_err *err);

/* For formats: args and headers are small objects of known members. */
/* PW_INVALID if the object has a member outside the NULL-terminated list; err names it. */
enum pw_status replay_known(const json_t *object, const char *const *members, struct pw_err *err);
/* A member as an unsigned integer (a JSON integer, or a "0x..." string); `absent` if it is not there.
 * PW_INVALID: of another type. */
enum pw_status replay_u64(const json_t *object, const char *member, uint64_t absent, uint64_t *out, struct pw_err *err);
/* A member that must be a string. */
enum pw_status replay_str(const json_t *object, const char *member, const char **out, struct pw_err *err);

#endif
