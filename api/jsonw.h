/* api/jsonw.h
 *
 * Writes JSON text into a growing buffer: answers are made once and sent as they are. (Reading JSON: api/json.h.)
 * Errors stick: after a failed allocation nothing is written any more and jsonw_finish says so.
 */
#ifndef PW_API_JSONW_H
#define PW_API_JSONW_H
#include "engine/uuid.h"

struct jsonw {
	char *data; /* heap */
	size_t used, size;
	bool failed, comma;
};

void jsonw_init(struct jsonw *w);
void jsonw_release(struct jsonw *w);
/* Hands the text (NUL-terminated, *len bytes before it) to the caller, who frees it; NULL after a failure. */
char *jsonw_finish(struct jsonw *w, size_t *len);

void jsonw_open(struct jsonw *w, char bracket);   /* '{' or '[' */
void jsonw_close(struct jsonw *w, char bracket);  /* '}' or ']' */
void jsonw_key(struct jsonw *w, const char *key); /* a literal that needs no escapes */
void jsonw_u64(struct jsonw *w, uint64_t v);
void jsonw_bool(struct jsonw *w, bool v);
void jsonw_str(struct jsonw *w, const char *s); /* valid UTF-8, any characters; NULL writes null */
void jsonw_uuid(struct jsonw *w, const struct pw_uuid *id);
void jsonw_time(struct jsonw *w, int64_t ms);                  /* RFC 3339, UTC, milliseconds; 0 writes null */
void jsonw_raw(struct jsonw *w, const char *json, size_t len); /* one whole JSON value */

/* Members: key and value. */
void jsonw_m_u64(struct jsonw *w, const char *key, uint64_t v);
void jsonw_m_bool(struct jsonw *w, const char *key, bool v);
void jsonw_m_str(struct jsonw *w, const char *key, const char *s);
void jsonw_m_uuid(struct jsonw *w, const char *key, const struct pw_uuid *id);
void jsonw_m_time(struct jsonw *w, const char *key, int64_t ms);
void jsonw_m_raw(struct jsonw *w, const char *key, const char *json, size_t len);

#endif
