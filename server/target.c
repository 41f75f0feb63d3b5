#include "server/target.h"

#include <string.h>

static int hex_digit(char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

static bool is_continuation(unsigned char c)
{
	return (c & 0xc0) == 0x80;
}

/* Bytes of the character at s (NUL-terminated), or 0 when it is none: RFC 3629 section 4. */
static size_t utf8_length(const unsigned char *s)
{
	unsigned char low = 0x80, high = 0xbf;
	size_t n;

	if (s[0] < 0x80)
		return 1;
	if (s[0] < 0xc2 || s[0] > 0xf4)
		return 0;
	n = s[0] < 0xe0 ? 2 : s[0] < 0xf0 ? 3 : 4;
	if (s[0] == 0xe0)
		low = 0xa0;
	else if (s[0] == 0xed)
		high = 0x9f;
	else if (s[0] == 0xf0)
		low = 0x90;
	else if (s[0] == 0xf4)
		high = 0x8f;
	if (s[1] < low || s[1] > high)
		return 0;
	for (size_t i = 2; i < n; i++)
		if (!is_continuation(s[i]))
			return 0;
	return n;
}

static bool is_utf8(const char *text)
{
	const unsigned char *s = (const unsigned char *)text;
	size_t n;

	for (; *s; s += n) {
		n = utf8_length(s);
		if (!n)
			return false;
	}
	return true;
}

void target_mend_utf8(char *text)
{
	unsigned char *s = (unsigned char *)text;

	while (*s) {
		size_t n = utf8_length(s);

		if (!n)
			*s = '?';
		s += n ? n : 1;
	}
}

bool target_decode(const char *text, size_t len, enum target_part part, char *out)
{
	const char *end = text + len;
	char *to = out;
	bool plain = true;

	while (text < end) {
		unsigned char c = (unsigned char)*text++;

		if (c == '%') {
			int high = end - text >= 2 ? hex_digit(text[0]) : -1;
			int low = high >= 0 ? hex_digit(text[1]) : -1;

			if (low < 0 || (high | low) == 0)
				return false;
			c = (unsigned char)(high << 4 | low);
			text += 2;
			plain &= high < 8;
		} else if (c <= ' ' || c >= 0x7f) {
			return false;
		} else if (c == '+' && part == TARGET_QUERY) {
			c = ' ';
		}
		*to++ = (char)c;
	}
	*to = '\0';
	return plain || is_utf8(out);
}

static bool parse_parameter(char *text, size_t len, struct target_query *out)
{
	char *equals = memchr(text, '=', len);
	size_t name_len = equals ? (size_t)(equals - text) : len;

	if (out->count == TARGET_QUERY_MAX)
		return false;
	if (equals && !target_decode(equals + 1, len - name_len - 1, TARGET_QUERY, equals + 1))
		return false;
	if (!target_decode(text, name_len, TARGET_QUERY, text))
		return false;
	for (unsigned i = 0; i < out->count; i++)
		if (strcmp(out->names[i], text) == 0)
			return false;
	out->names[out->count] = text;
	out->values[out->count++] = equals ? equals + 1 : "";
	return true;
}

bool target_query_parse(char *text, struct target_query *out)
{
	out->count = 0;
	while (*text) {
		size_t len = strcspn(text, "&");
		char *next = text + len + (text[len] != '\0');

		if (len && !parse_parameter(text, len, out))
			return false;
		text = next;
	}
	return true;
}
