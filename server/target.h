/* server/target.h
 *
 * Text that comes in a request's target: percent-decoding, and the parameters of a query.
 */
#ifndef PW_SERVER_TARGET_H
#define PW_SERVER_TARGET_H
#include "engine/status.h"

#define TARGET_QUERY_MAX 32

/* Parameters in the order given; a name without '=' has the value "". Borrowed from the text that was parsed. */
struct target_query {
	unsigned count;
	const char *names[TARGET_QUERY_MAX], *values[TARGET_QUERY_MAX];
};

/* What '+' stands for: itself in a path, a blank in a query. */
enum target_part { TARGET_PATH, TARGET_QUERY };

/* Decodes len bytes of text into out (len + 1 bytes; may be text itself) and terminates it. False for a broken escape,
 * a NUL, a raw byte outside printable ASCII, or what is no UTF-8 when decoded. */
bool target_decode(const char *text, size_t len, enum target_part part, char *out) PW_MUST_CHECK;

/* Decodes in place what follows the '?'. False for what target_decode refuses, more than
 * TARGET_QUERY_MAX, or a name given twice: who is behind a proxy must read the same one as it does. */
bool target_query_parse(char *text, struct target_query *out) PW_MUST_CHECK;

/* Makes text valid UTF-8: each byte that does not belong to a whole character becomes '?'. */
void target_mend_utf8(char *text);

#endif
