/*
 * A request's head: is it one message whose end nobody can doubt, and may it be served? libmicrohttpd has split it into
 * lines and takes much that RFC 9112 wants refused. So the head is walked once more where it lies: the library parses
 * in place, and a name or value that does not lie exactly where the last line ended had something in it that the
 * library does not show: a NUL, a bare LF, a folded line. Such a message is refused and its connection closed, as are
 * two lengths, a length beside a transfer coding, and whatever else a proxy might read otherwise. Runs on the HTTP
 * threads.
 */
#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#include "server/http_impl.h"
#include "server/tls.h"

#define KEY_MAX 128

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* --- What headers say --- */

/* The first fault is answered. */
static void fault(struct exchange *x, enum pw_problem p, const char *why)
{
	if (x->head.fault != PROBLEM_NONE)
		return;
	x->head.fault = p;
	x->head.why = why;
}

static void bad(struct exchange *x, const char *why)
{
	fault(x, PROBLEM_INVALID_REQUEST, why);
}

static bool is_sane_id(const char *s, size_t len)
{
	if (len < 1 || len > sizeof((struct request *)0)->id - 1)
		return false;
	for (size_t i = 0; i < len; i++)
		if (!(s[i] >= '0' && s[i] <= '9') && !(s[i] >= 'a' && s[i] <= 'z') && !(s[i] >= 'A' && s[i] <= 'Z') &&
		    s[i] != '.' && s[i] != '_' && s[i] != '-')
			return false;
	return true;
}

static bool is_printable(const char *s)
{
	for (; *s; s++)
		if (*s < ' ' || *s > '~')
			return false;
	return true;
}

static void take_bearer(struct exchange *x, const char *value, size_t len)
{
	if (len < 7 || strncasecmp(value, "Bearer ", 7) != 0)
		return;
	x->bearer = value + 7;
	x->bearer_len = len - 7;
	while (x->bearer_len && *x->bearer == ' ') {
		x->bearer++;
		x->bearer_len--;
	}
}

static void take_host(struct exchange *x, const char *value, size_t len)
{
	static const char of_hosts[] =
		"0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ-._~!$&'()*+;=%:[]";

	while (len && value[len - 1] == ' ')
		len--;
	if (!len || strspn(value, of_hosts) < len)
		bad(x, "Host does not name one host");
}

static void take_content_length(struct exchange *x, const char *value, size_t len)
{
	errno = 0;
	x->announced = strtoull(value, NULL, 10);
	if (errno)
		x->announced = UINT64_MAX;
	x->has_body |= x->announced > 0;
}

static void take_transfer_encoding(struct exchange *x, const char *value, size_t len)
{
	x->has_body = true;
	if (strcasecmp(value, "chunked") != 0)
		bad(x, "the only Transfer-Encoding that is served is chunked");
}

static void take_content_encoding(struct exchange *x, const char *value, size_t len)
{
	if (strcasecmp(value, "identity") != 0)
		fault(x, PROBLEM_MEDIA_TYPE, "bodies with a Content-Encoding are not taken");
}

static void take_expect(struct exchange *x, const char *value, size_t len)
{
	x->expects = true;
	if (strcasecmp(value, "100-continue") != 0)
		bad(x, "the only Expect that is met is 100-continue");
}

static const char *skip_blanks(const char *s)
{
	return s + strspn(s, " \t");
}

/* ";charset=utf-8" or nothing: RFC 8259 knows no other. */
static bool is_utf8_parameter(const char *s)
{
	static const char name[] = "charset=";
	size_t quoted;

	s = skip_blanks(s);
	if (!*s)
		return true;
	if (*s++ != ';')
		return false;
	s = skip_blanks(s);
	if (!*s)
		return true;
	if (strncasecmp(s, name, sizeof name - 1) != 0)
		return false;
	s += sizeof name - 1;
	quoted = *s == '"';
	s += quoted;
	if (strncasecmp(s, "utf-8", 5) != 0 || (quoted && s[5] != '"'))
		return false;
	return !*skip_blanks(s + 5 + quoted);
}

static void take_content_type(struct exchange *x, const char *value, size_t len)
{
	static const char json[] = "application/json";

	x->has_type = strncasecmp(value, json, sizeof json - 1) == 0 && is_utf8_parameter(value + sizeof json - 1);
}

static void take_id(struct exchange *x, const char *value, size_t len)
{
	if (!is_sane_id(value, len))
		return;
	memcpy(x->request.id, value, len);
	x->request.id[len] = '\0';
}

static void take_key(struct exchange *x, const char *value, size_t len)
{
	x->request.idempotency_key = value;
}

static void take_if_match(struct exchange *x, const char *value, size_t len)
{
	x->request.if_match = value;
}

static void take_accept(struct exchange *x, const char *value, size_t len)
{
	x->request.accept = is_printable(value) ? value : NULL;
}

enum { HAS_HOST = 1, HAS_LENGTH = 2, HAS_CODING = 4 };
#define HEADER(name, bit, take, twice)                  \
	{                                               \
		name, sizeof name - 1, bit, take, twice \
	}
/* Those with a text for the second one stand once: a proxy may mind the other one. */
static const struct header {
	const char *name;
	size_t len;
	unsigned bit;
	void (*take)(struct exchange *x, const char *value, size_t len);
	const char *twice;
} headers[] = {
	HEADER("Host", HAS_HOST, take_host, "Host is given twice"),
	HEADER("Content-Length", HAS_LENGTH, take_content_length, "Content-Length is given twice"),
	HEADER("Transfer-Encoding", HAS_CODING, take_transfer_encoding, "Transfer-Encoding is given twice"),
	HEADER("Authorization", 8, take_bearer, "Authorization is given twice"),
	HEADER("Content-Type", 16, take_content_type, "Content-Type is given twice"),
	HEADER("Content-Encoding", 32, take_content_encoding, "Content-Encoding is given twice"),
	HEADER("Expect", 64, take_expect, "Expect is given twice"),
	HEADER("Idempotency-Key", 128, take_key, "Idempotency-Key is given twice"),
	HEADER("If-Match", 256, take_if_match, "If-Match is given twice: give one list"),
	HEADER("X-Request-Id", 0, take_id, NULL),
	HEADER("Accept", 0, take_accept, NULL),
};

static bool is_token(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (s[i] <= ' ' || s[i] > '~' || strchr("\"(),/:;<=>?@[\\]{}", s[i]))
			return false;
	return len > 0;
}

static bool has_control(const char *s, size_t len)
{
	for (size_t i = 0; i < len; i++)
		if (((unsigned char)s[i] < ' ' && s[i] != '\t') || s[i] == 0x7f)
			return true;
	return false;
}

/* A line "name: value CR LF", as the library has left it: the colon and the line's end have become NULs. */
static void walk_line(struct exchange *x, const char *name, size_t name_len, const char *value, size_t len)
{
	struct head_walk *w = &x->head;

	if (name != w->at || value < name + name_len + 1 || value[len] || value[len + 1])
		bad(x, "the head has a NUL, a folded line, or a line that does not end in CR LF");
	else if (!is_token(name, name_len))
		bad(x, "the name of a header holds a character that none may have");
	else if (has_control(value, len))
		bad(x, "a header holds a control character");
	w->at = value + len + 2;
}

static enum MHD_Result take_header(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_len,
				   const char *value, size_t len)
{
	struct exchange *x = cls;

	if (!value) {
		bad(x, "a header without a value");
		return MHD_NO;
	}
	walk_line(x, name, name_len, value, len);
	if (x->head.fault != PROBLEM_NONE)
		return MHD_NO;
	for (const struct header *h = headers; h < headers + PW_ARRAY_LEN(headers); h++) {
		if (h->len != name_len || strncasecmp(h->name, name, name_len) != 0)
			continue;
		if (x->head.seen & h->bit)
			bad(x, h->twice);
		x->head.seen |= h->bit;
		h->take(x, value, len);
		break;
	}
	return x->head.fault == PROBLEM_NONE ? MHD_YES : MHD_NO;
}

/* The request line: single blanks, and no NUL in it. Headers begin behind it. */
static void walk_request_line(struct exchange *x, const char *method, const char *version)
{
	struct head_walk *w = &x->head;

	if (w->line != method + strlen(method) + 1 || version != w->line + w->line_len + 1 ||
	    !is_token(method, strlen(method)) || !w->is_printable)
		bad(x, "the request line is not METHOD TARGET VERSION, of printable ASCII, with single blanks");
	else if (version[strlen(version) + 1])
		bad(x, "the request line does not end in CR LF");
	w->at = version + strlen(version) + 2;
}

static void walk_head(struct exchange *x, const char *method, const char *version)
{
	const union MHD_ConnectionInfo *size =
		MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);
	bool is_1_0 = strcmp(version, MHD_HTTP_VERSION_1_0) == 0;
	unsigned seen;

	walk_request_line(x, method, version);
	if (x->head.fault == PROBLEM_NONE)
		MHD_get_connection_values_n(x->connection, MHD_HEADER_KIND, take_header, x);
	if (x->head.fault != PROBLEM_NONE)
		return;
	seen = x->head.seen;
	if (!size || x->head.at + 2 != method + size->header_size)
		bad(x, "the head has a NUL or a line that does not end in CR LF");
	else if ((seen & HAS_LENGTH) && (seen & HAS_CODING))
		bad(x, "Content-Length beside Transfer-Encoding");
	else if ((seen & HAS_CODING) && is_1_0)
		bad(x, "Transfer-Encoding in HTTP/1.0");
	else if (!(seen & HAS_HOST) && !is_1_0)
		bad(x, "there is no Host");
}

void head_make_id(struct exchange *x)
{
	uint64_t n = atomic_fetch_add_explicit(&x->http->requests, 1, memory_order_relaxed);
	char *id = x->request.id;
	size_t at = strlen(x->http->id_prefix);

	memcpy(id, x->http->id_prefix, at);
	id[at++] = '-';
	for (int shift = 44; shift >= 0; shift -= 4)
		id[at++] = "0123456789abcdef"[n >> shift & 15];
	id[at] = '\0';
}

/* --- Checks, in the order of the contract: each answers and returns false, or returns true --- */

static bool refuse_framing(struct exchange *x)
{
	x->closes = true;
	(void)answer_problem(&x->request, x->head.fault, "%s", x->head.why);
	return false;
}

static bool refuse_unmatched(struct exchange *x, const char *method, const char *allow)
{
	struct request *r = &x->request;

	if (!*allow) {
		(void)answer_problem(r, PROBLEM_NOT_FOUND, "nothing is served at \"%.160s\"", r->path);
		return false;
	}
	(void)answer_problem(r, PROBLEM_METHOD_NOT_ALLOWED, "\"%.160s\" does not take %.16s, only %s", r->path, method,
			     allow);
	answer_header(r, "Allow", "%s", allow);
	return false;
}

static bool refuse_unknown(struct exchange *x, const char *why)
{
	(void)answer_unknown(&x->request, why);
	return false;
}

static bool refuse_stopping(struct exchange *x)
{
	(void)answer_problem(&x->request, PROBLEM_NOT_READY, "the server is stopping");
	return false;
}

static bool check_client_certificate(struct exchange *x)
{
	const union MHD_ConnectionInfo *info;

	if (!x->http->tls || !tls_client_ca(x->http->tls) || x->client_verified)
		return true;
	info = MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION);
	x->client_verified = info && info->tls_session && tls_is_client_verified(info->tls_session);
	return x->client_verified || refuse_unknown(x, "no client certificate of the accepted authority");
}

bool head_check_who(struct exchange *x)
{
	struct request *r = &x->request;

	if (!check_client_certificate(x))
		return false;
	if (r->route->roles == NO_TOKEN)
		return true;
	if (!service_is_started(x->http->service)) {
		(void)answer_problem(r, PROBLEM_NOT_READY, "the journal is being replayed: ask /readyz");
		return false;
	}
	if (!x->bearer)
		return refuse_unknown(x, "no bearer token in the Authorization header");
	if (!service_authenticate(x->http->service, x->bearer, x->bearer_len, &r->who))
		return atomic_load(&x->http->quiescing) ? refuse_stopping(x)
							: refuse_unknown(x, "the bearer token is not valid");
	if (r->route->roles & ROLE_BIT(r->who.role))
		return true;
	(void)answer_problem(r, PROBLEM_FORBIDDEN, "a token of role %s may not %s \"%.120s\"", role_name(r->who.role),
			     r->route->method, r->path);
	return false;
}

/* Room is kept for those without whom the fleet stands still, and for whoever asks whether the server lives. */
static bool check_place(struct exchange *x)
{
	struct request *r = &x->request;
	bool is_privileged = r->who.role == ROLE_ADMIN || r->who.role == ROLE_AGENT;

	if (r->route->roles == NO_TOKEN)
		return true;
	atomic_store_explicit(&x->is_privileged, is_privileged, memory_order_relaxed);
	if (connections_may_serve(x->http->connections, x)) {
		x->closes = false;
		return true;
	}
	(void)answer_limit(r, PROBLEM_BUSY, x->http->config, "connections", (uint64_t)x->http->config->connections + 1);
	return false;
}

static bool check_headers(struct exchange *x, const char *method)
{
	struct request *r = &x->request;
	const char *key = r->idempotency_key;

	if (strcmp(method, "POST") != 0)
		r->idempotency_key = NULL;
	else if (key && (!*key || strlen(key) > KEY_MAX || !is_printable(key))) {
		(void)answer_problem(r, PROBLEM_INVALID_REQUEST,
				     "Idempotency-Key is not 1 to %d printable ASCII characters", KEY_MAX);
		return false;
	}
	if (r->if_match && !is_printable(r->if_match)) {
		(void)answer_problem(r, PROBLEM_INVALID_REQUEST,
				     "If-Match holds other than printable ASCII characters");
		return false;
	}
	/* A collection has no revision for an entity tag to name. */
	if (r->if_match && strcmp(method, "POST") == 0 && !strchr(r->route->pattern, '{') &&
	    strcmp(r->if_match, "*") != 0)
		return if_match(r, 0);
	if (x->bad_query) {
		(void)answer_problem(r, PROBLEM_INVALID_REQUEST,
				     "the query is not percent-encoded UTF-8 of at most %d parameters, each given once",
				     TARGET_QUERY_MAX);
		return false;
	}
	return true;
}

static bool check(struct exchange *x, const char *method)
{
	struct request *r = &x->request;
	char allow[64];

	if (x->head.fault != PROBLEM_NONE)
		return refuse_framing(x);
	if (atomic_load(&x->http->quiescing))
		return refuse_stopping(x);
	r->route = http_route(routes, method, x->target, x->target + x->target_room, r->args, allow);
	if (!r->route)
		return refuse_unmatched(x, method, allow);
	return head_check_who(x) && check_place(x) && check_headers(x, method) && body_check(x, method);
}

bool head_take(struct exchange *x, const char *method, const char *version)
{
	x->started_ns = now_ns();
	/* Whoever sits on a reserved place leaves it with this answer, unless it turns out to be his (check_place). */
	x->closes = atomic_load_explicit(&x->place, memory_order_relaxed) != PLACE_ORDINARY;
	walk_head(x, method, version);
	if (!x->request.id[0])
		head_make_id(x);
	return check(x, method);
}

/* --- The target --- */

static bool keep_target(struct exchange *x, const char *target)
{
	size_t len = strlen(target);
	char *query;

	if (len >= x->target_room) {
		size_t room = len + 1 < 256 ? 256 : len + 1;
		char *fresh = realloc(x->target, room * 2);

		if (!fresh)
			return false;
		x->target = fresh;
		x->target_room = room;
	}
	memcpy(x->target, target, len + 1);
	query = strchr(x->target, '?');
	x->query.count = 0;
	x->bad_query = false;
	if (query) {
		*query = '\0';
		x->bad_query = !target_query_parse(query + 1, &x->query);
	}
	return true;
}

bool head_begin(struct exchange *x, const char *target)
{
	if (!keep_target(x, target))
		return false;
	memset(&x->request, 0, sizeof x->request);
	x->request.body = "";
	x->request.path = x->target;
	x->counted = x->has_body = x->has_type = x->expects = x->closes = x->keeps_body = x->aside = false;
	x->announced = x->drained = 0;
	x->bearer = NULL;
	x->bearer_len = 0;
	x->head = (struct head_walk){ .line = target, .line_len = strlen(target), .fault = PROBLEM_NONE };
	x->head.is_printable = is_printable(target) && !strchr(target, ' ');
	x->stage = STAGE_HEAD;
	exchange_enter_phase(x, PHASE_HEAD);
	return true;
}
