#include "server/http.h"

#include <assert.h>
#include <errno.h>
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "server/endpoint.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/service.h"
#include "server/target.h"
#include "server/tls.h"

#define BODY_MAX_BYTES     (16u << 20)
#define BODY_FIRST_BYTES   (64u << 10) /* kept from request to request of a connection */
#define BODY_TRUST_BYTES   (1u << 20)  /* of an announced length, allocated at once */
#define DRAIN_SMALL_BYTES  (64u << 10) /* read of a refused request from anybody */
#define DRAIN_MAX_BYTES    (64u << 20) /* and from a known caller */
#define HEADER_MAX_BYTES   (32u << 10)
#define IDLE_TIMEOUT_S     120u
#define STATUS_CLIENT_GONE 499 /* in metrics and logs: nobody was there to answer */
#define KEY_MAX            128

struct http {
	struct service *service;     /* borrowed */
	const struct config *config; /* borrowed */
	struct MHD_Daemon *daemon;
	struct tls *tls; /* NULL: plain */
	int listener;    /* until the daemon has it, which closes it; then -1 */
	_Atomic bool quiescing;
	_Atomic unsigned active;
	pthread_mutex_t parking;  /* what follows */
	struct exchange *parked;  /* all that are suspended */
	enum pw_problem given_up; /* PROBLEM_NONE: they are waited for */
	const char *why;          /* static */
	_Atomic uint64_t requests;
	_Atomic int64_t last_complaint_s;
	char id_prefix[17];
	char address[ENDPOINT_TEXT];
};

/*
 * Whose turn it is to touch a request, once its handler runs:
 *   RUNNING -> PARKED   http.c, when the handler has said PARKED and the connection is suspended
 *   RUNNING -> RESUMED  request_resume came before that: http.c goes on by itself, the connection need not sleep
 *   PARKED  -> RESUMED  request_resume wakes the connection: until then MHD neither completes nor closes it, so the
 *                       request lives
 *   PARKED  -> GIVEN_UP http_give_up wakes the connection. The request is still that of who has parked it, who may
 *                       even resume it: http.c neither reads nor frees it, and answers for itself
 */
enum turn { TURN_RUNNING, TURN_PARKED, TURN_RESUMED, TURN_GIVEN_UP };

enum stage {
	STAGE_IDLE,    /* between requests */
	STAGE_HEAD,    /* the target is known, headers are still coming */
	STAGE_BODY,    /* fit to be run when the body is here */
	STAGE_REFUSED, /* the answer is there, and sent when the message has ended: MHD takes none in the middle */
	STAGE_RUNNING, /* with its handler */
	STAGE_SENT,
};

/* A connection's request; one lives as long as the connection and serves all its requests, one after another. */
struct exchange {
	struct request request;
	struct http *http;
	struct MHD_Connection *connection;
	_Atomic unsigned turn;
	enum stage stage;
	bool counted; /* in http->active */
	bool parked;  /* in http->parked */
	struct exchange *before, *after;
	bool client_verified; /* TLS: asked once a connection */
	bool has_body;
	bool expects; /* to be told to go on before it sends its body */
	bool has_type;
	bool bad_query;
	uint64_t announced; /* Content-Length, 0 when there is none */
	uint64_t drained;
	uint64_t started_ns;
	const char *bearer; /* borrowed from the headers, as are the request's */
	size_t bearer_len;
	struct target_query query;
	char *target; /* the path as it came, NUL, the decoded query; from target_room on: the path's decoded segments
		       */
	size_t target_room;
	char *body;
	size_t body_room;
};

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* --- Sending --- */

static bool add_own_headers(struct MHD_Response *m, const struct request *r)
{
	const char *line = r->response.headers;
	char copy[sizeof r->response.headers];

	while (*line) {
		size_t len = strcspn(line, "\n");
		char *colon;

		memcpy(copy, line, len);
		copy[len] = '\0';
		colon = strstr(copy, ": ");
		if (colon) {
			*colon = '\0';
			if (MHD_add_response_header(m, copy, colon + 2) != MHD_YES)
				return false;
		}
		line += len + (line[len] != '\0');
	}
	return true;
}

static bool add_headers(struct MHD_Response *m, const struct exchange *x)
{
	const struct request *r = &x->request;
	const char *type = r->response.content_type;

	if (!type)
		type = r->response.status >= 400 ? "application/problem+json" : "application/json";
	return (!r->response.body || MHD_add_response_header(m, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_YES) &&
	       MHD_add_response_header(m, "X-Request-Id", r->id) == MHD_YES &&
	       MHD_add_response_header(m, "X-Content-Type-Options", "nosniff") == MHD_YES &&
	       (strstr(r->response.headers, "Cache-Control: ") ||
		MHD_add_response_header(m, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store") == MHD_YES) &&
	       (!atomic_load_explicit(&x->http->quiescing, memory_order_relaxed) ||
		MHD_add_response_header(m, MHD_HTTP_HEADER_CONNECTION, "close") == MHD_YES) &&
	       (!r->response.headers[0] || add_own_headers(m, r));
}

/* The body goes over to MHD without a copy. MHD_NO closes the connection. */
static enum MHD_Result send_answer(struct exchange *x)
{
	struct response *a = &x->request.response;
	struct MHD_Response *m;
	enum MHD_Result sent = MHD_NO;

	x->stage = STAGE_SENT;
	m = MHD_create_response_from_buffer(a->body ? a->size : 0, a->body ? (void *)a->body : (void *)"",
					    a->body ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
	if (!m)
		return MHD_NO;
	if (add_headers(m, x))
		sent = MHD_queue_response(x->connection, a->status, m);
	a->body = NULL;
	MHD_destroy_response(m);
	return sent;
}

/* --- Running and parking --- */

static bool check_who(struct exchange *x);

static bool take_turn(struct exchange *x, enum turn from, enum turn to)
{
	unsigned turn = from;

	return atomic_compare_exchange_strong(&x->turn, &turn, to);
}

static enum MHD_Result wait_for_resume(struct exchange *x)
{
	struct http *h = x->http;
	bool waits;

	MHD_suspend_connection(x->connection);
	pthread_mutex_lock(&h->parking);
	x->parked = true;
	x->before = NULL;
	x->after = h->parked;
	if (h->parked)
		h->parked->before = x;
	h->parked = x;
	waits = take_turn(x, TURN_RUNNING, TURN_PARKED) &&
		(h->given_up == PROBLEM_NONE || !take_turn(x, TURN_PARKED, TURN_GIVEN_UP));
	pthread_mutex_unlock(&h->parking);
	if (!waits)
		MHD_resume_connection(x->connection);
	return MHD_YES;
}

/* Calls the handler until it has answered or waits. */
static enum MHD_Result run(struct exchange *x)
{
	struct request *r = &x->request;

	x->stage = STAGE_RUNNING;
	while (!r->response.status) {
		atomic_store_explicit(&x->turn, TURN_RUNNING, memory_order_relaxed);
		if (r->route->handle(x->http->service, r) == DONE) {
			if (!r->response.status)
				(void)answer_problem(r, PROBLEM_INTERNAL, "the handler gave no answer");
			break;
		}
		if (atomic_load_explicit(&x->turn, memory_order_acquire) != TURN_RESUMED)
			return wait_for_resume(x);
		r->resumed = true;
	}
	return send_answer(x);
}

static void leave_parking(struct exchange *x)
{
	if (!x->parked)
		return;
	pthread_mutex_lock(&x->http->parking);
	*(x->before ? &x->before->after : &x->http->parked) = x->after;
	if (x->after)
		x->after->before = x->before;
	x->parked = false;
	pthread_mutex_unlock(&x->http->parking);
}

/* Its request is somebody else's: what is said is made from nothing but its id, which nobody changes. */
static enum MHD_Result answer_for_itself(struct exchange *x)
{
	struct exchange stand_in = { .http = x->http, .connection = x->connection };

	memcpy(stand_in.request.id, x->request.id, sizeof stand_in.request.id);
	(void)answer_problem(&stand_in.request, x->http->given_up, "%s", x->http->why);
	x->stage = STAGE_SENT;
	return send_answer(&stand_in);
}

/* MHD calls again, on its own thread, after the connection was resumed (unless the client has gone meanwhile: then
 * on_completed is all that comes). */
static enum MHD_Result go_on(struct exchange *x)
{
	unsigned turn = atomic_load_explicit(&x->turn, memory_order_acquire);

	if (turn != TURN_RESUMED && turn != TURN_GIVEN_UP)
		return MHD_YES;
	leave_parking(x);
	if (turn == TURN_GIVEN_UP)
		return answer_for_itself(x);
	x->request.resumed = true;
	if (!x->request.response.status)
		(void)check_who(x); /* who has waited may have lost his token; if so this is the answer */
	return run(x);
}

void request_resume(struct request *r)
{
	struct exchange *x = PW_CONTAINER_OF(r, struct exchange, request);
	struct MHD_Connection *connection = x->connection;

	if (atomic_exchange(&x->turn, TURN_RESUMED) == TURN_PARKED)
		MHD_resume_connection(connection);
}

const char *request_query(const struct request *r, const char *name)
{
	const struct exchange *x = PW_CONTAINER_OF(r, const struct exchange, request);

	for (unsigned i = 0; i < x->query.count; i++)
		if (strcmp(x->query.names[i], name) == 0)
			return x->query.values[i];
	return NULL;
}

void request_each_query(const struct request *r, query_fn fn, void *ctx)
{
	const struct exchange *x = PW_CONTAINER_OF(r, const struct exchange, request);

	for (unsigned i = 0; i < x->query.count; i++)
		if (!fn(ctx, x->query.names[i], x->query.values[i]))
			return;
}

/* --- Headers --- */

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
	if (x->bearer || len < 7 || strncasecmp(value, "Bearer ", 7) != 0)
		return;
	x->bearer = value + 7;
	x->bearer_len = len - 7;
	while (x->bearer_len && *x->bearer == ' ') {
		x->bearer++;
		x->bearer_len--;
	}
}

static bool is_json_type(const char *value)
{
	static const char json[] = "application/json";

	if (strncasecmp(value, json, sizeof json - 1) != 0)
		return false;
	value += sizeof json - 1;
	return !*value || *value == ';' || *value == ' ' || *value == '\t';
}

static void take_content_length(struct exchange *x, const char *value, size_t len)
{
	errno = 0;
	x->announced = strtoull(value, NULL, 10);
	if (errno)
		x->announced = UINT64_MAX;
	x->has_body |= x->announced > 0;
}

static void take_content_type(struct exchange *x, const char *value, size_t len)
{
	x->has_type = is_json_type(value);
}

static void take_encoding(struct exchange *x, const char *value, size_t len)
{
	x->has_body = true;
}

static void take_expect(struct exchange *x, const char *value, size_t len)
{
	x->expects = true;
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

#define HEADER(name, take)                  \
	{                                   \
		name, sizeof name - 1, take \
	}
static const struct header {
	const char *name;
	size_t len;
	void (*take)(struct exchange *x, const char *value, size_t len);
} headers[] = {
	HEADER("Authorization", take_bearer),
	HEADER("Content-Length", take_content_length),
	HEADER("Content-Type", take_content_type),
	HEADER("Transfer-Encoding", take_encoding),
	HEADER("Expect", take_expect),
	HEADER("X-Request-Id", take_id),
	HEADER("Idempotency-Key", take_key),
	HEADER("If-Match", take_if_match),
	HEADER("Accept", take_accept),
};

static enum MHD_Result take_header(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_len,
				   const char *value, size_t len)
{
	for (size_t i = 0; value && i < PW_ARRAY_LEN(headers); i++)
		if (headers[i].len == name_len && strncasecmp(headers[i].name, name, name_len) == 0) {
			headers[i].take(cls, value, len);
			break;
		}
	return MHD_YES;
}

static void make_id(struct exchange *x)
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

static bool check_who(struct exchange *x)
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

static bool refuse_size(struct exchange *x)
{
	(void)answer_problem(&x->request, PROBLEM_TOO_LARGE, "the body is larger than %u bytes", BODY_MAX_BYTES);
	return false;
}

static bool check_body(struct exchange *x, const char *method)
{
	if (!x->has_body)
		return true;
	if (!x->has_type && (strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0)) {
		(void)answer_problem(&x->request, PROBLEM_MEDIA_TYPE,
				     "the body's Content-Type must be application/json");
		return false;
	}
	return x->announced <= BODY_MAX_BYTES || refuse_size(x);
}

static bool check(struct exchange *x, const char *method, const char *target)
{
	struct request *r = &x->request;
	char allow[64];

	if (atomic_load(&x->http->quiescing))
		return refuse_stopping(x);
	r->route = http_route(routes, method, target, x->target + x->target_room, r->args, allow);
	if (!r->route)
		return refuse_unmatched(x, method, allow);
	return check_who(x) && check_headers(x, method) && check_body(x, method);
}

/* --- The life of a request --- */

/*
 * An answer before the message has ended costs the connection, and clients that send their whole body before they read
 * lose the answer too. So what is small is read first, and for a known caller also what is large, unless he waits to be
 * told to go on.
 */
static bool is_worth_draining(const struct exchange *x)
{
	bool is_known = !pw_uuid_is_nil(&x->request.who.token);

	if (!x->has_body)
		return true;
	if (x->expects || (!x->announced && !is_known))
		return false;
	return x->announced <= (is_known ? DRAIN_MAX_BYTES : DRAIN_SMALL_BYTES);
}

static enum MHD_Result take_head(struct exchange *x, const char *method)
{
	struct request *r = &x->request;

	x->started_ns = now_ns();
	x->counted = true;
	atomic_fetch_add(&x->http->active, 1);
	MHD_get_connection_values_n(x->connection, MHD_HEADER_KIND, take_header, x);
	if (!r->id[0])
		make_id(x);
	x->stage = check(x, method, x->target) ? STAGE_BODY : STAGE_REFUSED;
	return x->stage == STAGE_BODY || is_worth_draining(x) ? MHD_YES : send_answer(x);
}

/* Room for `more` bytes and a NUL. */
static bool make_room(struct exchange *x, size_t more)
{
	size_t need = x->request.body_size + more + 1, room = x->body_room * 2;
	char *body;

	if (need <= x->body_room)
		return true;
	if (room < BODY_FIRST_BYTES / 16)
		room = BODY_FIRST_BYTES / 16;
	if (room < x->announced + 1 && x->announced <= BODY_TRUST_BYTES)
		room = (size_t)x->announced + 1;
	if (room < need)
		room = need;
	body = realloc(x->body, room);
	if (!body)
		return false;
	x->body = body;
	x->body_room = room;
	return true;
}

static enum MHD_Result drain(struct exchange *x, size_t *size)
{
	x->drained += *size;
	*size = 0;
	return x->drained <= DRAIN_MAX_BYTES ? MHD_YES : MHD_NO;
}

static enum MHD_Result take_body(struct exchange *x, const char *data, size_t *size)
{
	struct request *r = &x->request;

	if (*size > BODY_MAX_BYTES - r->body_size) {
		(void)refuse_size(x);
	} else if (!make_room(x, *size)) {
		(void)answer_problem(r, PROBLEM_NO_MEMORY, "no memory for the body");
	} else {
		memcpy(x->body + r->body_size, data, *size);
		r->body_size += *size;
		x->body[r->body_size] = '\0';
		*size = 0;
		return MHD_YES;
	}
	x->stage = STAGE_REFUSED;
	return drain(x, size);
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
				  const char *version, const char *data, size_t *size, void **context)
{
	struct exchange *x = *context;

	if (!x)
		return MHD_NO;
	switch (x->stage) {
	case STAGE_HEAD: return take_head(x, method);
	case STAGE_BODY:
		if (*size)
			return take_body(x, data, size);
		x->request.body = x->request.body_size ? x->body : "";
		return run(x);
	case STAGE_REFUSED: return *size ? drain(x, size) : send_answer(x);
	case STAGE_RUNNING: return go_on(x);
	case STAGE_IDLE:
	case STAGE_SENT: break;
	}
	return MHD_NO;
}

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

static void reset(struct exchange *x)
{
	memset(&x->request, 0, sizeof x->request);
	x->request.body = "";
	x->request.path = x->target;
	x->counted = x->has_body = x->has_type = x->expects = false;
	x->announced = x->drained = 0;
	x->bearer = NULL;
	x->bearer_len = 0;
	x->stage = STAGE_HEAD;
}

/* The first that we hear of a request: its target as it came. What is returned becomes on_request's *context. */
static void *on_target(void *cls, const char *target, struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct exchange *x = info ? info->socket_context : NULL;

	if (!x || !keep_target(x, target))
		return NULL;
	reset(x);
	return x;
}

static void note(const struct exchange *x)
{
	const struct request *r = &x->request;
	uint64_t took = now_ns() - x->started_ns;
	char status[16], us[24];

	metrics_request(r->route ? r->route->method : "other", r->route ? r->route->pattern : "unmatched",
			r->response.status);
	metrics_time(TIME_REQUEST, took);
	if (!log_enabled(LOG_DEBUG_))
		return;
	snprintf(status, sizeof status, "%u", r->response.status);
	snprintf(us, sizeof us, "%" PRIu64, took / 1000);
	log_line(LOG_DEBUG_, "request", "id", r->id, "method", r->route ? r->route->method : "other", "path", r->path,
		 "actor", r->who.name, "status", status, "us", us, NULL);
}

/* Then its request may be written to at any moment. If not any more, it has been resumed. */
static bool is_given_up(struct exchange *x)
{
	return atomic_load_explicit(&x->turn, memory_order_acquire) == TURN_GIVEN_UP;
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **context,
			 enum MHD_RequestTerminationCode why)
{
	struct exchange *x = *context;
	struct request *r;

	if (!x || x->stage == STAGE_IDLE)
		return;
	r = &x->request;
	leave_parking(x);
	*context = NULL;
	if (is_given_up(x)) {
		x->stage = STAGE_IDLE;
		atomic_fetch_sub(&x->http->active, 1);
		return;
	}
	if (x->stage != STAGE_SENT)
		r->response.status = STATUS_CLIENT_GONE;
	x->stage = STAGE_IDLE;
	if (r->job && r->job_free)
		r->job_free(r->job);
	r->job = NULL;
	free(r->response.body);
	r->response.body = NULL;
	if (x->body_room > BODY_FIRST_BYTES) {
		free(x->body);
		x->body = NULL;
		x->body_room = 0;
	}
	if (!x->counted)
		return;
	note(x);
	atomic_fetch_sub(&x->http->active, 1);
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_context,
			  enum MHD_ConnectionNotificationCode what)
{
	struct exchange *x = *socket_context;

	if (what == MHD_CONNECTION_NOTIFY_STARTED) {
		x = calloc(1, sizeof *x);
		*socket_context = x;
		if (x) {
			x->http = cls;
			x->connection = connection;
		}
		return;
	}
	if (!x)
		return;
	*socket_context = NULL;
	if (is_given_up(x))
		return;
	free(x->target);
	free(x->body);
	free(x);
}

/* --- Start and stop --- */

/* Clients can provoke most of these: one a second is a warning, the others are for debugging. */
static void on_complaint(void *cls, const char *fmt, va_list ap) PW_PRINTF(2, 0);
static void on_complaint(void *cls, const char *fmt, va_list ap)
{
	struct http *h = cls;
	int64_t now = (int64_t)(now_ns() / 1000000000u);
	enum log_level level = atomic_exchange(&h->last_complaint_s, now) == now ? LOG_DEBUG_ : LOG_WARNING_;
	char text[256];

	if (!log_enabled(level))
		return;
	vsnprintf(text, sizeof text, fmt, ap);
	text[strcspn(text, "\r\n")] = '\0';
	log_line(level, "libmicrohttpd complains", "detail", text, NULL);
}

static void on_panic(void *cls, const char *file, unsigned line, const char *reason)
{
	log_detail(LOG_ERROR_, "libmicrohttpd gave up", "%s:%u: %s", file, line, reason ? reason : "");
	abort();
}

static enum pw_status start_daemon(struct http *h, bool v6, struct pw_err *err)
{
	unsigned flags = MHD_USE_EPOLL_INTERNAL_THREAD | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_TURBO | MHD_USE_ERROR_LOG;
	unsigned threads = h->config->threads > 1 ? h->config->threads : 0;
	struct MHD_OptionItem more[6];
	size_t n = 0;

	if (v6)
		flags |= MHD_USE_IPv6;
	if (threads)
		more[n++] = (struct MHD_OptionItem){ MHD_OPTION_THREAD_POOL_SIZE, threads, NULL };
	if (h->tls) {
		flags |= MHD_USE_TLS;
		more[n++] =
			(struct MHD_OptionItem){ MHD_OPTION_HTTPS_CERT_CALLBACK, 0, (void *)(uintptr_t)tls_retrieve };
		more[n++] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_PRIORITIES, 0,
						     (void *)(uintptr_t) "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2" };
		if (tls_client_ca(h->tls))
			more[n++] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_MEM_TRUST, 0,
							     (void *)(uintptr_t)tls_client_ca(h->tls) };
	}
	more[n] = (struct MHD_OptionItem){ MHD_OPTION_END, 0, NULL };
	h->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_complaint, h,
				     MHD_OPTION_LISTEN_SOCKET, h->listener, MHD_OPTION_URI_LOG_CALLBACK, on_target, h,
				     MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_NOTIFY_CONNECTION,
				     on_connection, h, MHD_OPTION_CONNECTION_MEMORY_LIMIT, (size_t)HEADER_MAX_BYTES,
				     MHD_OPTION_CONNECTION_LIMIT, h->config->connections, MHD_OPTION_CONNECTION_TIMEOUT,
				     IDLE_TIMEOUT_S, MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_ARRAY, more,
				     MHD_OPTION_END);
	if (!h->daemon)
		return pw_fail(err, PW_NETWORK, "cannot start the HTTP threads on %s: %s; the log has more",
			       h->config->listen, strerror(errno));
	h->listener = -1;
	return PW_OK;
}

static enum pw_status make_id_prefix(struct http *h, struct pw_err *err)
{
	uint64_t random;

	if (getrandom(&random, sizeof random, 0) != (ssize_t)sizeof random)
		return pw_fail(err, PW_BACKEND, "no random numbers: %s", strerror(errno));
	snprintf(h->id_prefix, sizeof h->id_prefix, "%012" PRIx64, random & 0xffffffffffffu);
	return PW_OK;
}

static void http_free(struct http *h)
{
	if (h->listener >= 0)
		close(h->listener);
	tls_close(h->tls);
	pthread_mutex_destroy(&h->parking);
	free(h);
}

enum pw_status http_start(const struct config *c, struct service *sv, struct http **out, struct pw_err *err)
{
	struct http *h = calloc(1, sizeof *h);
	struct endpoint at;
	enum pw_status st;

	if (!h)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the HTTP server");
	h->service = sv;
	h->config = c;
	h->listener = -1;
	pthread_mutex_init(&h->parking, NULL);
	MHD_set_panic_func(on_panic, NULL);
	st = endpoint_choose(c, &at, err);
	if (st == PW_OK)
		st = make_id_prefix(h, err);
	if (st == PW_OK && c->tls_cert)
		st = tls_open(c, &h->tls, err);
	if (st == PW_OK)
		st = endpoint_listen(&at, c, &h->listener, h->address, err);
	if (st == PW_OK)
		st = start_daemon(h, at.address.any.sa_family == AF_INET6, err);
	if (st != PW_OK) {
		http_free(h);
		return st;
	}
	*out = h;
	return PW_OK;
}

const char *http_address(const struct http *h)
{
	return h->address;
}

enum pw_status http_reload_tls(struct http *h, struct pw_err *err)
{
	return h->tls ? tls_reload(h->tls, err) : PW_OK;
}

/* Not MHD_quiesce_daemon: it races with the worker threads for the listening socket, and panics when it loses. */
void http_quiesce(struct http *h)
{
	atomic_store(&h->quiescing, true);
}

unsigned http_active(const struct http *h)
{
	return atomic_load(&h->active);
}

unsigned http_give_up(struct http *h, enum pw_problem p, const char *why)
{
	unsigned n = 0;

	http_quiesce(h);
	pthread_mutex_lock(&h->parking);
	h->given_up = p;
	h->why = why;
	for (struct exchange *x = h->parked; x; x = x->after) {
		if (!take_turn(x, TURN_PARKED, TURN_GIVEN_UP))
			continue;
		MHD_resume_connection(x->connection);
		n++;
	}
	pthread_mutex_unlock(&h->parking);
	return n;
}

void http_stop(struct http *h)
{
	http_quiesce(h);
	assert(!h->parked || h->given_up != PROBLEM_NONE);
	MHD_stop_daemon(h->daemon);
	http_free(h);
}
