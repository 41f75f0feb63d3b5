#include "api/jsonw.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

void jsonw_init(struct jsonw *w)
{
	*w = (struct jsonw){ 0 };
}

void jsonw_release(struct jsonw *w)
{
	free(w->data);
	*w = (struct jsonw){ 0 };
}

static char *room(struct jsonw *w, size_t n)
{
	if (w->failed)
		return NULL;
	if (w->size - w->used < n) {
		size_t size = w->size ? w->size : 256;
		char *data;

		while (size - w->used < n)
			size *= 2;
		data = realloc(w->data, size);
		if (!data) {
			w->failed = true;
			return NULL;
		}
		w->data = data;
		w->size = size;
	}
	return w->data + w->used;
}

static void put(struct jsonw *w, const char *s, size_t n)
{
	char *p = room(w, n);

	if (!p)
		return;
	memcpy(p, s, n);
	w->used += n;
}

static void put_char(struct jsonw *w, char c)
{
	put(w, &c, 1);
}

char *jsonw_finish(struct jsonw *w, size_t *len)
{
	char *data;

	put_char(w, '\0');
	if (w->failed) {
		jsonw_release(w);
		return NULL;
	}
	data = w->data;
	*len = w->used - 1;
	*w = (struct jsonw){ 0 };
	return data;
}

static void before_value(struct jsonw *w)
{
	if (w->comma)
		put_char(w, ',');
	w->comma = true;
}

void jsonw_open(struct jsonw *w, char bracket)
{
	before_value(w);
	put_char(w, bracket);
	w->comma = false;
}

void jsonw_close(struct jsonw *w, char bracket)
{
	put_char(w, bracket);
	w->comma = true;
}

void jsonw_key(struct jsonw *w, const char *key)
{
	size_t n = strlen(key);
	char *p;

	before_value(w);
	w->comma = false;
	p = room(w, n + 3);
	if (!p)
		return;
	p[0] = '"';
	memcpy(p + 1, key, n);
	p[n + 1] = '"';
	p[n + 2] = ':';
	w->used += n + 3;
}

void jsonw_u64(struct jsonw *w, uint64_t v)
{
	char digits[20];
	size_t n = sizeof digits;

	before_value(w);
	do {
		digits[--n] = (char)('0' + v % 10);
		v /= 10;
	} while (v);
	put(w, digits + n, sizeof digits - n);
}

void jsonw_bool(struct jsonw *w, bool v)
{
	before_value(w);
	put(w, v ? "true" : "false", v ? 4 : 5);
}

static void put_escaped(struct jsonw *w, unsigned char c)
{
	char text[7];
	int n;

	if (c == '"' || c == '\\')
		n = snprintf(text, sizeof text, "\\%c", c);
	else if (c == '\n')
		n = snprintf(text, sizeof text, "\\n");
	else
		n = snprintf(text, sizeof text, "\\u%04x", c);
	put(w, text, (size_t)n);
}

void jsonw_str(struct jsonw *w, const char *s)
{
	before_value(w);
	if (!s) {
		put(w, "null", 4);
		return;
	}
	put_char(w, '"');
	while (*s) {
		size_t plain = 0;

		while ((unsigned char)s[plain] >= 0x20 && s[plain] != '"' && s[plain] != '\\' && s[plain] != 0x7f)
			plain++;
		put(w, s, plain);
		s += plain;
		if (*s)
			put_escaped(w, (unsigned char)*s++);
	}
	put_char(w, '"');
}

void jsonw_uuid(struct jsonw *w, const struct pw_uuid *id)
{
	char text[PW_UUID_TEXT];

	pw_uuid_format(id, text);
	jsonw_str(w, text);
}

void jsonw_time(struct jsonw *w, int64_t ms)
{
	time_t s = (time_t)(ms / 1000);
	char text[48];
	struct tm tm;
	size_t n;

	if (ms <= 0 || !gmtime_r(&s, &tm)) {
		jsonw_str(w, NULL);
		return;
	}
	n = strftime(text, sizeof text - 8, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(text + n, sizeof text - n, ".%03uZ", (unsigned)(ms % 1000));
	jsonw_str(w, text);
}

void jsonw_raw(struct jsonw *w, const char *json, size_t len)
{
	before_value(w);
	put(w, json, len);
}

void jsonw_m_u64(struct jsonw *w, const char *key, uint64_t v)
{
	jsonw_key(w, key);
	jsonw_u64(w, v);
}

void jsonw_m_bool(struct jsonw *w, const char *key, bool v)
{
	jsonw_key(w, key);
	jsonw_bool(w, v);
}

void jsonw_m_str(struct jsonw *w, const char *key, const char *s)
{
	jsonw_key(w, key);
	jsonw_str(w, s);
}

void jsonw_m_uuid(struct jsonw *w, const char *key, const struct pw_uuid *id)
{
	jsonw_key(w, key);
	jsonw_uuid(w, id);
}

void jsonw_m_time(struct jsonw *w, const char *key, int64_t ms)
{
	jsonw_key(w, key);
	jsonw_time(w, ms);
}

void jsonw_m_raw(struct jsonw *w, const char *key, const char *json, size_t len)
{
	jsonw_key(w, key);
	jsonw_raw(w, json, len);
}
