/* agents/alog.h
 *
 * The agent's log lines (logfmt) on standard error: `time=... level=info msg="..." key=value ...`. Thread-safe.
 * Never log a secret or guest content (L10).
 */
#ifndef PW_AGENTS_ALOG_H
#define PW_AGENTS_ALOG_H
#include "engine/status.h"

#define ALOG_LEVELS(X)       X(ALOG_ERROR, "error") X(ALOG_WARNING, "warning") X(ALOG_INFO, "info") X(ALOG_DEBUG, "debug")
#define PW_ENUM_(name, text) name,
enum alog_level { ALOG_LEVELS(PW_ENUM_) ALOG_LEVEL_COUNT };
#undef PW_ENUM_

bool alog_level_from_name(const char *name, enum alog_level *out) PW_MUST_CHECK;
void alog_set_level(enum alog_level level); /* any thread, any time */

/* msg is a constant sentence; fmt makes the member `detail`, quoted as needed. */
void alog(enum alog_level level, const char *msg, const char *fmt, ...) PW_PRINTF(3, 4);

/* The line without its time and newline, at most size - 1 bytes; for tests. */
void alog_format(char *out, size_t size, enum alog_level level, const char *msg, const char *detail);

#endif
