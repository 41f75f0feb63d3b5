#include "engine/status.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define TEXT_(name, text) [name] = text,
static const char *const names[PW_STATUS_COUNT] = { PW_STATUSES(TEXT_) };

const char *pw_status_name(enum pw_status st)
{
	return (unsigned)st < PW_STATUS_COUNT ? names[st] : "unknown";
}

enum pw_status pw_fail(struct pw_err *err, enum pw_status st, const char *fmt, ...)
{
	va_list ap;

	if (!err)
		return st;
	err->status = st;
	va_start(ap, fmt);
	vsnprintf(err->msg, sizeof err->msg, fmt, ap);
	va_end(ap);
	return st;
}

enum pw_status pw_wrap(struct pw_err *err, const char *fmt, ...)
{
	char context[sizeof err->msg];
	size_t have, n;
	va_list ap;

	if (!err)
		return PW_INVALID;
	va_start(ap, fmt);
	vsnprintf(context, sizeof context - 2, fmt, ap);
	va_end(ap);
	n = strlen(context);
	memcpy(context + n, ": ", 2);
	n += 2;
	have = strlen(err->msg);
	if (have > sizeof err->msg - 1 - n)
		have = sizeof err->msg - 1 - n;
	memmove(err->msg + n, err->msg, have);
	memcpy(err->msg, context, n);
	err->msg[n + have] = '\0';
	return err->status;
}
