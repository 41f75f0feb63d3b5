/* server/log.h
 *
 * Structured log lines (logfmt) on standard error: `time=... level=info msg="..." key=value ...`. Thread-safe.
 * Never log a secret or guest content (L10).
 */
#ifndef PW_SERVER_LOG_H
#define PW_SERVER_LOG_H
#include "engine/status.h"

#define LOG_LEVELS(X)        X(LOG_ERROR_, "error") X(LOG_WARNING_, "warning") X(LOG_INFO_, "info") X(LOG_DEBUG_, "debug")
#define PW_ENUM_(name, text) name,
enum log_level { LOG_LEVELS(PW_ENUM_) LOG_LEVEL_COUNT };
#undef PW_ENUM_

bool log_level_from_name(const char *name, unsigned *out) PW_MUST_CHECK;
void log_set_level(unsigned level); /* any thread, any time */
bool log_enabled(enum log_level level);

/* msg is a constant sentence; then pairs (const char *key, const char *value), ended by NULL. NULL values print "". */
void log_line(enum log_level level, const char *msg, ...) __attribute__((sentinel));
/* The same with one printf-formatted member, `detail`. */
void log_detail(enum log_level level, const char *msg, const char *fmt, ...) PW_PRINTF(3, 4);

#endif
