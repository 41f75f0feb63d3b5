#include "engine/uuid.h"

#include <string.h>

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

static bool is_dash(size_t at)
{
	return at == 8 || at == 13 || at == 18 || at == 23;
}

bool pw_uuid_parse(const char *text, size_t len, struct pw_uuid *out)
{
	struct pw_uuid id = { { 0 } };
	size_t n = 0;

	if (len != PW_UUID_TEXT - 1)
		return false;
	for (size_t i = 0; i < len; i++) {
		int d;

		if (is_dash(i)) {
			if (text[i] != '-')
				return false;
			continue;
		}
		d = hex_digit(text[i]);
		if (d < 0)
			return false;
		id.b[n / 2] = (uint8_t)(id.b[n / 2] << 4 | d);
		n++;
	}
	*out = id;
	return true;
}

void pw_uuid_format(const struct pw_uuid *id, char out[PW_UUID_TEXT])
{
	static const char digits[] = "0123456789abcdef";
	size_t n = 0;

	for (size_t i = 0; i < PW_UUID_TEXT - 1; i++) {
		if (is_dash(i)) {
			out[i] = '-';
			continue;
		}
		out[i] = digits[n % 2 ? id->b[n / 2] & 15 : id->b[n / 2] >> 4];
		n++;
	}
	out[PW_UUID_TEXT - 1] = '\0';
}

bool pw_uuid_equal(const struct pw_uuid *a, const struct pw_uuid *b)
{
	return memcmp(a->b, b->b, sizeof a->b) == 0;
}

bool pw_uuid_is_nil(const struct pw_uuid *id)
{
	static const struct pw_uuid nil;

	return pw_uuid_equal(id, &nil);
}

struct pw_uuid pw_uuid_from_random(const uint8_t random[16])
{
	struct pw_uuid id;

	memcpy(id.b, random, sizeof id.b);
	id.b[6] = (uint8_t)((id.b[6] & 0x0f) | 0x40);
	id.b[8] = (uint8_t)((id.b[8] & 0x3f) | 0x80);
	return id;
}
