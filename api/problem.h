/* api/problem.h
 *
 * Problems on the wire (RFC 9457): each kind's HTTP status, whether a retry of the same request may help, and the JSON.
 */
#ifndef PW_API_PROBLEM_H
#define PW_API_PROBLEM_H
#include "api/jsonw.h"
#include "engine/problem.h"

unsigned problem_status(enum pw_problem p);
bool problem_is_retryable(enum pw_problem p);

/*
 * Writes the problem object with the members of its kind: type, title, status, detail, retryable, request_id (if not
 * NULL), and e.g. conflicts and conflict_frames of a frame-conflict. `close` false leaves the object open for more
 * members (jsonw_close then ends it).
 */
enum problem_end { PROBLEM_CLOSED, PROBLEM_OPEN };
void problem_write(struct jsonw *w, const struct refusal *why, const char *request_id, enum problem_end end);
/* Type and status alone. */
void problem_write_brief(struct jsonw *w, enum pw_problem p);

#endif
