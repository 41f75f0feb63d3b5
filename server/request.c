#include "server/request.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/target.h"

void answer_drop(struct request *r)
{
	free(r->response.body);
	memset(&r->response, 0, sizeof r->response);
}

/* Headers added before the first answer belong to it; those of an answer that is replaced go with it. */
static void make_way(struct request *r)
{
	if (r->response.status)
		answer_drop(r);
}

enum handled answer_json(struct request *r, unsigned status, struct jsonw *w)
{
	size_t size;
	char *body = jsonw_finish(w, &size);

	if (!body)
		return answer_problem(r, PROBLEM_NO_MEMORY, "no memory for the answer");
	make_way(r);
	r->response.status = status;
	r->response.body = body;
	r->response.size = size;
	return DONE;
}

enum handled answer_empty(struct request *r, unsigned status)
{
	make_way(r);
	r->response.status = status;
	return DONE;
}

/* Without memory for a problem's text its status still goes out. */
static enum handled finish_problem(struct request *r, enum pw_problem p, struct jsonw *w)
{
	size_t size;
	char *body = jsonw_finish(w, &size);

	make_way(r);
	r->response.status = problem_status(p);
	r->response.body = body;
	r->response.size = body ? size : 0;
	return DONE;
}

/* Details quote what came from outside, and are cut to fit: neither may make the answer bad UTF-8. */
static enum handled answer_mended(struct request *r, struct refusal *why)
{
	struct jsonw w;

	jsonw_init(&w);
	target_mend_utf8(why->detail);
	problem_write(&w, why, r->id, PROBLEM_CLOSED);
	return finish_problem(r, why->problem, &w);
}

enum handled answer_refusal(struct request *r, const struct refusal *why)
{
	struct refusal mended = *why;

	return answer_mended(r, &mended);
}

enum handled answer_problem(struct request *r, enum pw_problem p, const char *fmt, ...)
{
	struct refusal why;
	va_list ap;

	(void)refuse(&why, p, "%s", "");
	va_start(ap, fmt);
	vsnprintf(why.detail, sizeof why.detail, fmt, ap);
	va_end(ap);
	return answer_mended(r, &why);
}

enum pw_problem refuse_limit(struct refusal *why, enum pw_problem p, const struct config *c, const char *flag,
			     uint64_t asked)
{
	struct config_limit limit = config_limit(c, flag);

	(void)refuse(why, p, "%" PRIu64 " %s: the limit is %" PRIu64 " (--%s)", asked, limit.unit, limit.value, flag);
	why->flag = limit.name;
	why->limit = limit.value;
	why->asked = asked;
	return p;
}

enum handled answer_limit(struct request *r, enum pw_problem p, const struct config *c, const char *flag,
			  uint64_t asked)
{
	struct refusal why;

	(void)refuse_limit(&why, p, c, flag, asked);
	(void)answer_mended(r, &why);
	if (p == PROBLEM_RATE_LIMITED || p == PROBLEM_BUSY)
		answer_header(r, "Retry-After", "%d", 1);
	return DONE;
}

enum handled answer_starting(struct request *r, const char *step, uint64_t replayed, uint64_t total)
{
	struct refusal why;
	struct jsonw w;

	(void)refuse(&why, PROBLEM_NOT_READY, "the server starts: %s", step);
	jsonw_init(&w);
	problem_write(&w, &why, r->id, PROBLEM_OPEN);
	jsonw_m_u64(&w, "replayed", replayed);
	jsonw_m_u64(&w, "total", total);
	jsonw_close(&w, '}');
	return finish_problem(r, PROBLEM_NOT_READY, &w);
}

enum handled answer_unknown(struct request *r, const char *why)
{
	(void)answer_problem(r, PROBLEM_UNAUTHORIZED, "%s", why);
	answer_header(r, "WWW-Authenticate", "Bearer realm=\"pagewarden\"");
	return DONE;
}

enum handled answer_fault(struct request *r, const struct codec_fault *why)
{
	enum pw_problem problem = why->problem == PROBLEM_NONE ? PROBLEM_INVALID_REQUEST : why->problem;
	struct refusal refusal;
	char pointer[sizeof why->pointer];
	struct jsonw w;

	if (why->no_memory)
		return answer_problem(r, PROBLEM_NO_MEMORY, "%s", why->detail);
	(void)refuse(&refusal, problem, "%s", why->detail);
	refusal.flag = why->flag;
	refusal.limit = why->limit;
	refusal.asked = why->limit + 1;
	target_mend_utf8(refusal.detail);
	memcpy(pointer, why->pointer, sizeof pointer);
	target_mend_utf8(pointer);
	jsonw_init(&w);
	problem_write(&w, &refusal, r->id, PROBLEM_OPEN);
	jsonw_m_str(&w, "pointer", pointer);
	jsonw_close(&w, '}');
	return finish_problem(r, problem, &w);
}

static bool is_header_text(const char *s)
{
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || (unsigned char)*s >= 0x7f)
			return false;
	return true;
}

void answer_header(struct request *r, const char *name, const char *fmt, ...)
{
	size_t used = strlen(r->response.headers);
	char value[sizeof r->response.headers];
	va_list ap;
	int n;

	va_start(ap, fmt);
	n = vsnprintf(value, sizeof value, fmt, ap);
	va_end(ap);
	if (n < 0 || !is_header_text(value) || strlen(name) + (size_t)n + 4 > sizeof value - used)
		return;
	snprintf(r->response.headers + used, sizeof value - used, "%s: %s\n", name, value);
}

void answer_etag(struct request *r, uint64_t revision)
{
	answer_header(r, "ETag", "\"%" PRIu64 "\"", revision);
}

/* The end of the entity tag at s, or NULL if there is none. */
static const char *tag_end(const char *s)
{
	if (*s++ != '"')
		return NULL;
	while (*s && *s != '"')
		s++;
	return *s ? s + 1 : NULL;
}

static const char *skip_blanks(const char *s)
{
	return s + strspn(s, " \t");
}

enum tag_match tag_match(const char *list, uint64_t revision)
{
	enum tag_match found = TAG_DIFFERS;
	char etag[32];
	size_t size;
	unsigned tags = 0;

	if (strcmp(list, "*") == 0)
		return revision ? TAG_MATCHES : TAG_DIFFERS;
	size = (size_t)snprintf(etag, sizeof etag, "\"%" PRIu64 "\"", revision);
	for (const char *s = skip_blanks(list); *s;) {
		bool weak = strncmp(s, "W/", 2) == 0;
		const char *tag = weak ? s + 2 : s, *end;

		if (*s == ',') { /* an empty element */
			s = skip_blanks(s + 1);
			continue;
		}
		end = tag_end(tag);
		if (!end)
			return TAG_MALFORMED;
		if (revision && !weak && (size_t)(end - tag) == size && memcmp(tag, etag, size) == 0)
			found = TAG_MATCHES;
		tags++;
		s = skip_blanks(end);
		if (*s && *s != ',')
			return TAG_MALFORMED;
	}
	return tags ? found : TAG_MALFORMED;
}

bool if_match(struct request *r, uint64_t revision)
{
	switch (r->if_match ? tag_match(r->if_match, revision) : TAG_MATCHES) {
	case TAG_MATCHES: return true;
	case TAG_MALFORMED:
		(void)answer_problem(r, PROBLEM_INVALID_REQUEST,
				     "If-Match %.64s: give \"*\" or entity tags, like \"17\", \"18\"", r->if_match);
		return false;
	case TAG_DIFFERS: break;
	}
	if (revision)
		(void)answer_problem(r, PROBLEM_STALE, "If-Match %.64s: the resource is at revision %" PRIu64,
				     r->if_match, revision);
	else
		(void)answer_problem(r, PROBLEM_STALE, "If-Match %.64s: there is no such resource yet", r->if_match);
	return false;
}

static bool parse_u64(const char *text, uint64_t *out)
{
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*out = strtoull(text, &end, 10);
	return !*end && !errno;
}

bool query_u64(struct request *r, const char *name, uint64_t min, uint64_t max, uint64_t absent, uint64_t *out)
{
	const char *text = request_query(r, name);
	uint64_t v;

	if (!text) {
		*out = absent;
		return true;
	}
	if (!parse_u64(text, &v) || v < min || v > max) {
		(void)answer_problem(r, PROBLEM_INVALID_REQUEST,
				     "query parameter %s: \"%.64s\" is not an integer from %" PRIu64 " to %" PRIu64,
				     name, text, min, max);
		return false;
	}
	*out = v;
	return true;
}

struct unknown {
	const char *const *names;
	const char *first;
};

static bool is_known(void *ctx, const char *name, const char *value)
{
	struct unknown *u = ctx;

	for (const char *const *n = u->names; *n; n++)
		if (strcmp(*n, name) == 0)
			return true;
	u->first = name;
	return false;
}

bool query_known(struct request *r, const char *const *names)
{
	struct unknown u = { .names = names };

	request_each_query(r, is_known, &u);
	if (!u.first)
		return true;
	(void)answer_problem(r, PROBLEM_INVALID_REQUEST, "unknown query parameter \"%.64s\"", u.first);
	return false;
}

bool arg_uuid(struct request *r, unsigned i, enum pw_problem p, struct pw_uuid *out)
{
	const char *text = r->args[i];
	size_t len = strlen(text);

	if (len == PW_UUID_TEXT - 1 && pw_uuid_parse(text, len, out))
		return true;
	(void)answer_problem(r, p, "\"%.64s\" names nothing: it is not a lower-case UUID", text);
	return false;
}
