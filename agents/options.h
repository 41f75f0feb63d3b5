/* agents/options.h
 *
 * What pagewarden-agent can be told, in one table of flags with their help. Parsing has no effects: files that flags
 * name are read later.
 */
#ifndef PW_AGENTS_OPTIONS_H
#define PW_AGENTS_OPTIONS_H
#include <stdio.h>

#include "agents/alog.h"
#include "engine/uuid.h"

struct agent_options { /* text is borrowed from argv and the environment */
	const char *server, *token_file, *token, *load_token_file, *ca, *cert, *key;
	const char *host; /* NULL: made, and kept in the state folder */
	const char *name, *backend, *arch;
	uint64_t frames, base_pfn, seed, resync_seconds;
	const char *boot_id, *state, *fault, *guest_script, *load, *metrics;
	enum alog_level log_level;
	bool once, dump, help, version;
	struct pw_uuid host_id; /* of host, if given */
};

/* PW_INVALID: an unknown flag, or a value that the flag cannot take; err names both. getenv is handed in for tests. */
enum pw_status options_parse(int argc, char *const *argv, char *(*env)(const char *name), struct agent_options *out,
			     struct pw_err *err) PW_MUST_CHECK;
void options_usage(FILE *to);

#define AGENT_EXITS(X)                                                                           \
	X(EXIT_DONE, 0, "stopped by SIGTERM or SIGINT, or --once did its work")                  \
	X(EXIT_BROKEN, 1, "the agent cannot go on (memory, state folder, threads)")              \
	X(EXIT_USAGE, 2, "a flag is wrong")                                                      \
	X(EXIT_NO_BACKEND, 3, "the backend does not work on this machine; the message says why") \
	X(EXIT_REFUSED, 4, "the server refused the registration (token, host, pool)")            \
	X(EXIT_UNREACHABLE, 5, "--once, and the server did not answer")
#define PW_ENUM_(name, code, text) name = code,
enum agent_exit { AGENT_EXITS(PW_ENUM_) };
#undef PW_ENUM_

#endif
