/* api/jsonr.h
 *
 * Reads JSON that we wrote ourselves (journal records, saved rows) member by member. What is missing or of another type
 * reads as false or NULL: the caller decides what that means. Requests are decoded by api/codec.h.
 */
#ifndef PW_API_JSONR_H
#define PW_API_JSONR_H
#include "engine/uuid.h"

struct jsonr;
/* NULL if it is no JSON object, or out of memory. */
struct jsonr *jsonr_parse(const char *text, size_t len);
void jsonr_free(struct jsonr *j);

const char *jsonr_str(const struct jsonr *j, const char *member); /* lives as long as j */
bool jsonr_u64(const struct jsonr *j, const char *member, uint64_t *out) PW_MUST_CHECK;
bool jsonr_uuid(const struct jsonr *j, const char *member, struct pw_uuid *out) PW_MUST_CHECK;
char *jsonr_text(const struct jsonr *j, const char *member, size_t *len); /* compact JSON, the caller's; or NULL */

#endif
