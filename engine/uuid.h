/* engine/uuid.h
 *
 * Identifiers of hosts, VMs and operations: UUIDs, written in lower case (RFC 9562 section 4).
 */
#ifndef PW_ENGINE_UUID_H
#define PW_ENGINE_UUID_H
#include "engine/status.h"

struct pw_uuid {
	uint8_t b[16];
};
#define PW_UUID_TEXT 37 /* bytes of the text form, its NUL included */

/* Reads 36 characters at text (no more are looked at); false for anything but lower-case 8-4-4-4-12. */
bool pw_uuid_parse(const char *text, size_t len, struct pw_uuid *out) PW_MUST_CHECK;
void pw_uuid_format(const struct pw_uuid *id, char out[PW_UUID_TEXT]);
bool pw_uuid_equal(const struct pw_uuid *a, const struct pw_uuid *b);
bool pw_uuid_is_nil(const struct pw_uuid *id);

/* Stamps version 4 and the variant on 16 random bytes that the caller provides. */
struct pw_uuid pw_uuid_from_random(const uint8_t random[16]);

#endif
