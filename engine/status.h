/* engine/status.h
 *
 * What a call that can fail answers: one status, and one message written where the failure was seen.
 */
#ifndef PW_ENGINE_STATUS_H
#define PW_ENGINE_STATUS_H
#include <inttypes.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define PW_STATUSES(X)                                                           \
	X(PW_OK, "ok")                                                           \
	X(PW_INVALID, "invalid")     /* the request or the data is malformed  */ \
	X(PW_NOT_FOUND, "not-found") /* what it names is not there            */ \
	X(PW_CONFLICT, "conflict")   /* well formed, but not in this state    */ \
	X(PW_BUSY, "busy")           /* the same request may succeed later    */ \
	X(PW_DENIED, "denied")       /* the caller may not                    */ \
	X(PW_NO_MEMORY, "no-memory") /* an allocation failed or hit its limit */ \
	X(PW_STORAGE, "storage")     /* the disk or the database failed       */ \
	X(PW_UNKNOWN, "unknown")     /* done or not: nobody can tell yet      */ \
	X(PW_BACKEND, "backend")     /* the hardware or its driver failed     */ \
	X(PW_NETWORK, "network")     /* the other side could not be reached   */

#define PW_ENUM_(name, text) name,
enum pw_status { PW_STATUSES(PW_ENUM_) PW_STATUS_COUNT };
#undef PW_ENUM_

struct pw_err {
	enum pw_status status;
	char msg[256];
};

#define PW_MUST_CHECK            __attribute__((warn_unused_result))
#define PW_PRINTF(fmt, first)    __attribute__((format(printf, fmt, first)))
#define PW_ARRAY_LEN(a)          (sizeof(a) / sizeof((a)[0]))
#define PW_CONTAINER_OF(p, t, m) ((t *)((char *)(p)-offsetof(t, m)))

const char *pw_status_name(enum pw_status st);

/* Writes status and message into *err (which may be NULL) and returns the status. */
enum pw_status pw_fail(struct pw_err *err, enum pw_status st, const char *fmt, ...) PW_PRINTF(3, 4);

/* Puts "context: " in front of the message that *err holds, and returns its status. */
enum pw_status pw_wrap(struct pw_err *err, const char *fmt, ...) PW_PRINTF(2, 3);

#endif
