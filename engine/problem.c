#include "engine/problem.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>

#define SLUG_(name, slug, title)  [name] = slug,
#define TITLE_(name, slug, title) [name] = title,
static const char *const slugs[PROBLEM_COUNT] = { PW_PROBLEMS(SLUG_) };
static const char *const titles[PROBLEM_COUNT] = { PW_PROBLEMS(TITLE_) };

const char *problem_slug(enum pw_problem p)
{
	return slugs[p];
}

const char *problem_title(enum pw_problem p)
{
	return titles[p];
}

bool problem_from_slug(const char *slug, enum pw_problem *out)
{
	for (int p = PROBLEM_NONE + 1; p < PROBLEM_COUNT; p++)
		if (strcmp(slugs[p], slug) == 0) {
			*out = (enum pw_problem)p;
			return true;
		}
	return false;
}

enum pw_problem refuse(struct refusal *why, enum pw_problem p, const char *fmt, ...)
{
	va_list ap;

	if (!why)
		return p;
	memset(why, 0, offsetof(struct refusal, runs));
	why->problem = p;
	va_start(ap, fmt);
	vsnprintf(why->detail, sizeof why->detail, fmt, ap);
	va_end(ap);
	return p;
}
