/*
 * Which characters are plain is one sorted table of ranges, from DerivedGeneralCategory.txt of Unicode 15.1 (16.0 has
 * the same): all code points of the categories Cc, Cf, Zl and Zp. tests/blackbox/test_names.py holds it against
 * Python's unicodedata, over all code points. A character that a later version of Unicode puts into one of them belongs
 * here.
 */
#include "api/text.h"

#include <stdlib.h>
#include <string.h>

static const struct {
	uint32_t first, last;
} not_plain[] = {
	{ 0x0000, 0x001f },   { 0x007f, 0x009f },   { 0x00ad, 0x00ad },   { 0x0600, 0x0605 },   { 0x061c, 0x061c },
	{ 0x06dd, 0x06dd },   { 0x070f, 0x070f },   { 0x0890, 0x0891 },   { 0x08e2, 0x08e2 },   { 0x180e, 0x180e },
	{ 0x200b, 0x200f },   { 0x2028, 0x202e },   { 0x2060, 0x2064 },   { 0x2066, 0x206f },   { 0xfeff, 0xfeff },
	{ 0xfff9, 0xfffb },   { 0x110bd, 0x110bd }, { 0x110cd, 0x110cd }, { 0x13430, 0x1343f }, { 0x1bca0, 0x1bca3 },
	{ 0x1d173, 0x1d17a }, { 0xe0001, 0xe0001 }, { 0xe0020, 0xe007f },
};

bool text_is_plain_char(uint32_t c)
{
	size_t lo = 0, hi = PW_ARRAY_LEN(not_plain);

	if (c >= 0x20 && c < 0x7f)
		return true;
	while (lo < hi) { /* the first range that does not end before c */
		size_t mid = lo + (hi - lo) / 2;

		if (not_plain[mid].last < c)
			lo = mid + 1;
		else
			hi = mid;
	}
	return c != TEXT_INVALID && (lo == PW_ARRAY_LEN(not_plain) || c < not_plain[lo].first);
}

size_t text_next(const char *s, uint32_t *c)
{
	static const uint32_t least[] = { 0, 0, 0x80, 0x800,
					  0x10000 }; /* of so many bytes: nothing is longer than it must be */
	const unsigned char *p = (const unsigned char *)s;
	size_t n = p[0] < 0x80 ? 1 : p[0] < 0xc0 ? 0 : p[0] < 0xe0 ? 2 : p[0] < 0xf0 ? 3 : p[0] < 0xf8 ? 4 : 0;
	uint32_t v = n > 1 ? p[0] & (0x7fU >> n) : p[0];

	for (size_t i = 1; i < n; i++) {
		if ((p[i] & 0xc0) != 0x80) { /* the NUL is none either */
			n = 0;
			break;
		}
		v = v << 6 | (p[i] & 0x3f);
	}
	if (n == 0 || v < least[n] || v > 0x10ffff || (v >= 0xd800 && v < 0xe000)) {
		*c = TEXT_INVALID;
		return 1;
	}
	*c = v;
	return n;
}

bool text_is_plain(const char *s)
{
	uint32_t c;

	for (size_t n; *s; s += n) {
		n = text_next(s, &c);
		if (!text_is_plain_char(c))
			return false;
	}
	return true;
}

size_t text_escape(const char *s, size_t n, uint32_t c, char out[TEXT_ESCAPE_MAX])
{
	int len;

	if (n == 1)
		len = snprintf(out, TEXT_ESCAPE_MAX, "\\x%02x", (unsigned)(unsigned char)*s);
	else
		len = snprintf(out, TEXT_ESCAPE_MAX, c > 0xffff ? "\\U%08x" : "\\u%04x", c);
	return (size_t)len;
}

/* One character as it is shown: itself or its escape, in shown[TEXT_ESCAPE_MAX]; *at moves behind it. */
static size_t show_next(const char **at, char *shown)
{
	uint32_t c;
	size_t n = text_next(*at, &c), len = n;

	if (text_is_plain_char(c))
		memcpy(shown, *at, n);
	else
		len = text_escape(*at, n, c, shown);
	*at += n;
	return len;
}

void text_print(FILE *to, const char *s)
{
	char shown[TEXT_ESCAPE_MAX] = "";

	while (s && *s) {
		size_t n = show_next(&s, shown);

		fwrite(shown, 1, n, to);
	}
}

void text_copy(char *out, size_t size, const char *s)
{
	char shown[TEXT_ESCAPE_MAX];
	size_t used = 0;

	while (*s) {
		size_t n = show_next(&s, shown);

		if (n > size - 1 - used)
			break;
		memcpy(out + used, shown, n);
		used += n;
	}
	out[used] = '\0';
}

char *text_shown(const char *s)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);
	bool ok;

	if (!f)
		return NULL;
	text_print(f, s);
	ok = !ferror(f);
	if (fclose(f) == 0 && ok)
		return text;
	free(text);
	return NULL;
}

/* Outside of strings JSON has no characters but ASCII, and of those newline alone is not plain. */
void text_print_json(FILE *to, const char *json)
{
	uint32_t c;

	for (size_t n; *json; json += n) {
		n = text_next(json, &c);
		if (c == '\n' || text_is_plain_char(c))
			fwrite(json, 1, n, to);
		else if (c == TEXT_INVALID)
			fputs("\\ufffd", to);
		else if (c > 0xffff)
			fprintf(to, "\\u%04x\\u%04x", 0xd7c0 + (c >> 10), 0xdc00 + (c & 0x3ff));
		else
			fprintf(to, "\\u%04x", c);
	}
}
