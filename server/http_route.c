#include "server/http.h"

#include <string.h>
#include <strings.h>

#include "server/target.h"

#define SEGMENTS_MAX 8
#define ALLOW_SIZE   64

struct path {
	unsigned count;
	const char *segments[SEGMENTS_MAX];
};

/* Proxies may send the absolute form (RFC 9112 section 3.2.2). */
static const char *skip_authority(const char *target)
{
	size_t scheme = strncasecmp(target, "http://", 7) == 0 ? 7 : strncasecmp(target, "https://", 8) == 0 ? 8 : 0;

	return scheme ? target + scheme + strcspn(target + scheme, "/?") : target;
}

static bool split(const char *target, char *storage, struct path *out)
{
	const char *at = skip_authority(target);

	out->count = 0;
	while (*at == '/') {
		size_t len = strcspn(++at, "/?#");

		if (out->count == SEGMENTS_MAX || !target_decode(at, len, TARGET_PATH, storage))
			return false;
		out->segments[out->count++] = storage;
		storage += strlen(storage) + 1;
		at += len;
	}
	return out->count > 0 && *at != '#';
}

static bool matches(const char *pattern, const struct path *p, const char *args[3])
{
	unsigned arg = 0;

	args[0] = args[1] = args[2] = NULL; /* a pattern that failed half-way may have left some */
	for (unsigned i = 0; i < p->count; i++) {
		const char *have = p->segments[i];
		size_t len;

		if (*pattern++ != '/')
			return false;
		len = strcspn(pattern, "/");
		if (*pattern == '{') {
			if (!*have || arg == 3)
				return false;
			args[arg++] = have;
		} else if (strncmp(pattern, have, len) != 0 || have[len]) {
			return false;
		}
		pattern += len;
	}
	return !*pattern;
}

static bool serves(const struct route *r, const char *method)
{
	return strcmp(r->method, method) == 0 || (strcmp(method, "HEAD") == 0 && strcmp(r->method, "GET") == 0);
}

static void add_allowed(char *allow, const char *method)
{
	size_t used = strlen(allow), n = strlen(method);

	if (used + n + 3 > ALLOW_SIZE)
		return;
	if (used) {
		memcpy(allow + used, ", ", 2);
		used += 2;
	}
	memcpy(allow + used, method, n + 1);
}

const struct route *http_route(const struct route *table, const char *method, const char *target, char *storage,
			       const char *args[3], char allow[64])
{
	struct path path;

	allow[0] = '\0';
	args[0] = args[1] = args[2] = NULL;
	if (!split(target, storage, &path))
		return NULL;
	for (const struct route *r = table; r->method; r++) {
		if (!matches(r->pattern, &path, args))
			continue;
		if (serves(r, method))
			return r;
		add_allowed(allow, r->method);
	}
	args[0] = args[1] = args[2] = NULL;
	return NULL;
}
