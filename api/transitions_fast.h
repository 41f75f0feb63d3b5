/* api/transitions_fast.h
 *
 * The body of POST transitions, which is the busiest of all, has two decoders. The fast one knows only how
 * well-behaved agents write it; what it does not recognise, wrong or not, is left to the strict one, which so makes
 * every error. Whatever the fast one accepts, the strict one accepts with the same result.
 */
#ifndef PW_API_TRANSITIONS_FAST_H
#define PW_API_TRANSITIONS_FAST_H
#include "api/codec.h"

/* False: not mine; nothing was written. */
bool transitions_fast(const char *text, size_t len, struct transitions_body *out, struct body **owner) PW_MUST_CHECK;
bool transitions_strict(const char *text, size_t len, struct transitions_body *out, struct body **owner,
			struct codec_fault *why) PW_MUST_CHECK;

#endif
