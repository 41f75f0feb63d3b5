#include "agents/alog.h"

#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/text.h"

#define TEXT_(name, text) [name] = text,
static const char *const level_names[] = { ALOG_LEVELS(TEXT_) };
static atomic_int threshold = ALOG_INFO;

bool alog_level_from_name(const char *name, enum alog_level *out)
{
	for (int i = 0; i < ALOG_LEVEL_COUNT; i++) {
		if (strcmp(name, level_names[i]) != 0)
			continue;
		*out = (enum alog_level)i;
		return true;
	}
	return false;
}

void alog_set_level(enum alog_level level)
{
	atomic_store(&threshold, (int)level);
}

struct line {
	char *text;
	size_t used, size; /* text always ends in a NUL at used < size */
};

static void put(struct line *l, char c)
{
	if (l->used + 1 >= l->size)
		return;
	l->text[l->used++] = c;
	l->text[l->used] = '\0';
}

static void put_text(struct line *l, const char *s)
{
	while (*s)
		put(l, *s++);
}

static void put_quoted(struct line *l, const char *s)
{
	put(l, '"');
	for (size_t n; *s && l->used + TEXT_ESCAPE_MAX + 2 < l->size; s += n) {
		char escape[TEXT_ESCAPE_MAX] = "";
		uint32_t c;

		n = text_next(s, &c);
		if (c == '"' || c == '\\')
			put(l, '\\');
		if (!text_is_plain_char(c))
			text_escape(s, n, c, escape);
		for (size_t i = 0; !*escape && i < n; i++)
			put(l, s[i]);
		put_text(l, escape);
	}
	put(l, '"');
}

void alog_format(char *out, size_t size, enum alog_level level, const char *msg, const char *detail)
{
	struct line l = { out, 0, size };

	out[0] = '\0';
	put_text(&l, "level=");
	put_text(&l, level_names[level]);
	put_text(&l, " msg=");
	put_quoted(&l, msg);
	if (detail[0] == '\0')
		return;
	put_text(&l, " detail=");
	put_quoted(&l, detail);
}

void alog(enum alog_level level, const char *msg, const char *fmt, ...)
{
	char detail[768], body[1024], stamp[32], whole[1100];
	struct timespec now;
	struct tm utc;
	va_list ap;
	int n;

	if ((int)level > atomic_load(&threshold))
		return;
	va_start(ap, fmt);
	vsnprintf(detail, sizeof detail, fmt, ap);
	va_end(ap);
	alog_format(body, sizeof body, level, msg, detail);
	clock_gettime(CLOCK_REALTIME, &now);
	gmtime_r(&now.tv_sec, &utc);
	strftime(stamp, sizeof stamp, "%Y-%m-%dT%H:%M:%S", &utc);
	n = snprintf(whole, sizeof whole, "time=%s.%03ldZ %s\n", stamp, now.tv_nsec / 1000000, body);
	if (n > 0 && write(STDERR_FILENO, whole, (size_t)n) < 0)
		return; /* there is nowhere left to say so */
}
