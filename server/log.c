#include "server/log.h"

#include <errno.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/text.h"

#define LINE_MAX_BYTES    2048 /* PIPE_BUF and below: a write of a whole line is not torn */

#define TEXT_(name, text) [name] = text,
static const char *const names[LOG_LEVEL_COUNT] = { LOG_LEVELS(TEXT_) };

static _Atomic unsigned threshold = LOG_INFO_;

struct line {
	size_t used;
	bool full;
	char text[LINE_MAX_BYTES];
};

bool log_level_from_name(const char *name, unsigned *out)
{
	for (unsigned l = 0; l < LOG_LEVEL_COUNT; l++)
		if (strcmp(names[l], name) == 0) {
			*out = l;
			return true;
		}
	return false;
}

void log_set_level(unsigned level)
{
	atomic_store_explicit(&threshold, level, memory_order_relaxed);
}

bool log_enabled(enum log_level level)
{
	return (unsigned)level <= atomic_load_explicit(&threshold, memory_order_relaxed);
}

/* Keeps room for the end of a line that did not fit: an ellipsis, a quote, a newline. */
static void put(struct line *l, const char *s, size_t n)
{
	if (l->full || n > sizeof l->text - 8 - l->used) {
		l->full = true;
		return;
	}
	memcpy(l->text + l->used, s, n);
	l->used += n;
}

/* One character, s[0, n), of a quoted value. */
static void put_quoted(struct line *l, const char *s, size_t n, uint32_t c)
{
	char escape[TEXT_ESCAPE_MAX] = "";

	if (c == '\n')
		put(l, "\\n", 2);
	else if (c == '"' || c == '\\')
		put(l, c == '"' ? "\\\"" : "\\\\", 2);
	else if (text_is_plain_char(c))
		put(l, s, n);
	else
		put(l, escape, text_escape(s, n, c, escape));
}

static void put_value(struct line *l, const char *s)
{
	uint32_t c;

	if (*s && !strpbrk(s, " \"\\=") && text_is_plain(s)) {
		put(l, s, strlen(s));
		return;
	}
	put(l, "\"", 1);
	for (size_t n; *s; s += n) {
		n = text_next(s, &c);
		put_quoted(l, s, n, c);
	}
	if (l->full) {
		memcpy(l->text + l->used, "...", 3);
		l->used += 3;
		l->text[l->used++] = '"';
		return;
	}
	put(l, "\"", 1);
}

static void put_pair(struct line *l, const char *key, const char *value)
{
	if (l->full)
		return;
	if (l->used)
		put(l, " ", 1);
	put(l, key, strlen(key));
	put(l, "=", 1);
	if (!l->full)
		put_value(l, value ? value : "");
}

static void begin(struct line *l, enum log_level level, const char *msg)
{
	struct timespec now;
	char time_text[48];
	struct tm tm;
	size_t n = 0;

	l->used = 0;
	l->full = false;
	clock_gettime(CLOCK_REALTIME, &now);
	if (gmtime_r(&now.tv_sec, &tm))
		n = strftime(time_text, sizeof time_text, "%Y-%m-%dT%H:%M:%S", &tm);
	snprintf(time_text + n, sizeof time_text - n, ".%03ldZ", now.tv_nsec / 1000000);
	put_pair(l, "time", time_text);
	put_pair(l, "level", names[level]);
	put_pair(l, "msg", msg);
}

static void end(struct line *l)
{
	ssize_t written;

	l->text[l->used++] = '\n';
	do
		written = write(STDERR_FILENO, l->text, l->used);
	while (written < 0 && errno == EINTR);
}

void log_line(enum log_level level, const char *msg, ...)
{
	struct line l;
	const char *key;
	va_list ap;

	if (!log_enabled(level))
		return;
	begin(&l, level, msg);
	va_start(ap, msg);
	while ((key = va_arg(ap, const char *)))
		put_pair(&l, key, va_arg(ap, const char *));
	va_end(ap);
	end(&l);
}

void log_detail(enum log_level level, const char *msg, const char *fmt, ...)
{
	char detail[1024];
	struct line l;
	va_list ap;

	if (!log_enabled(level))
		return;
	va_start(ap, fmt);
	vsnprintf(detail, sizeof detail, fmt, ap);
	va_end(ap);
	begin(&l, level, msg);
	put_pair(&l, "detail", detail);
	end(&l);
}
