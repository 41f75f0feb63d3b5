/*
 * The HTTP runtime: libmicrohttpd's threads, and on them one request after another: its head (http_head.c), its body
 * (http_body.c), its handler, which may park it, its answer (http_answer.c). This file says whose turn it is.
 */
#include "server/http.h"

#include <assert.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>
#include <unistd.h>

#include "server/http_impl.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/tls.h"

#define STATUS_CLIENT_GONE 499 /* in metrics and logs: nobody was there to answer */
/* Ciphers that are authenticated, and keys that are forgotten. Nobody renegotiates: libmicrohttpd never starts a second
 * handshake, and ends a connection whose client asks for one. */
#define PRIORITIES                                                                                            \
	"NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-CIPHER-ALL:+AES-256-GCM:+CHACHA20-POLY1305:+AES-128-GCM" \
	":-MAC-ALL:+AEAD:-RSA"

#define SMALL_BYTES  (64u << 10) /* of a body that an HTTP thread may decode */
#define LEAVING_MANY 256         /* connections that are shut down and not closed yet */

static uint64_t now_ns(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

/* --- Running and parking --- */

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
	exchange_enter_phase(x, PHASE_PARKED);
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

static enum MHD_Result run_aside(struct exchange *x)
{
	x->stage = STAGE_RUNNING;
	x->aside = true;
	atomic_store_explicit(&x->turn, TURN_RUNNING, memory_order_relaxed);
	(void)wait_for_resume(x);
	decoders_take(x->http->decoders, &x->request);
	return MHD_YES;
}

/* Calls the handler until it has answered or waits. */
static enum MHD_Result run(struct exchange *x)
{
	struct request *r = &x->request;

	x->stage = STAGE_RUNNING;
	exchange_enter_phase(x, PHASE_RUNNING);
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
	return answer_send(x);
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
	return answer_send(&stand_in);
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
	if (!x->request.response.status && atomic_load(&x->gone))
		return MHD_NO;
	if (!x->request.response.status)
		(void)head_check_who(x); /* who has waited may have lost his token; if so this is the answer */
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

/* --- The life of a request --- */

static enum MHD_Result take_head(struct exchange *x, const char *method, const char *version)
{
	x->counted = true;
	atomic_fetch_add(&x->http->active, 1);
	x->stage = head_take(x, method, version) ? STAGE_BODY : STAGE_REFUSED;
	if (x->stage == STAGE_REFUSED && !body_is_worth_draining(x))
		return answer_send(x);
	exchange_enter_phase(x, PHASE_BODY);
	return MHD_YES;
}

static enum MHD_Result on_request(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
				  const char *version, const char *data, size_t *size, void **context)
{
	struct exchange *x = *context;

	if (!x)
		return MHD_NO;
	switch (x->stage) {
	case STAGE_HEAD: return take_head(x, method, version);
	case STAGE_BODY:
		if (*size)
			return body_take(x, data, size) ? MHD_YES : MHD_NO;
		x->request.body = x->request.body_size ? x->body : "";
		return x->request.body_size > SMALL_BYTES ? run_aside(x) : run(x);
	case STAGE_REFUSED:
		if (*size)
			return body_drain(x, size) ? MHD_YES : MHD_NO;
		return answer_send(x);
	case STAGE_RUNNING: return go_on(x);
	case STAGE_IDLE:
	case STAGE_SENT: break;
	}
	return MHD_NO;
}

/* The first that we hear of a request: its target as it came. What is returned becomes on_request's *context. */
static void *on_target(void *cls, const char *target, struct MHD_Connection *connection)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	struct exchange *x = info ? info->socket_context : NULL;

	return x && head_begin(x, target) ? x : NULL;
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
	body_free(x);
	atomic_store_explicit(&x->served, true, memory_order_relaxed);
	exchange_enter_phase(x, PHASE_IDLE);
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
			connections_enter(x->http->connections, x);
		}
		return;
	}
	if (!x)
		return;
	*socket_context = NULL;
	connections_leave(x->http->connections, x);
	if (is_given_up(x))
		return;
	body_free(x);
	free(x->target);
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

/* As many for each thread as for all: libmicrohttpd divides the number, and who comes is not divided evenly. */
static unsigned most_connections(const struct http *h)
{
	return (h->config->connections + h->config->reserve_connections + LEAVING_MANY) * h->config->threads;
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
		more[n++] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_PRIORITIES, 0, (void *)(uintptr_t)PRIORITIES };
		if (tls_client_ca(h->tls))
			more[n++] = (struct MHD_OptionItem){ MHD_OPTION_HTTPS_MEM_TRUST, 0,
							     (void *)(uintptr_t)tls_client_ca(h->tls) };
	}
	more[n] = (struct MHD_OptionItem){ MHD_OPTION_END, 0, NULL };
	h->daemon = MHD_start_daemon(flags, 0, NULL, NULL, on_request, h, MHD_OPTION_EXTERNAL_LOGGER, on_complaint, h,
				     MHD_OPTION_LISTEN_SOCKET, h->listener, MHD_OPTION_URI_LOG_CALLBACK, on_target, h,
				     MHD_OPTION_NOTIFY_COMPLETED, on_completed, h, MHD_OPTION_NOTIFY_CONNECTION,
				     on_connection, h, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
				     (size_t)h->config->head_bytes, MHD_OPTION_CONNECTION_LIMIT, most_connections(h),
				     MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1, MHD_OPTION_ARRAY, more, MHD_OPTION_END);
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
	connections_stop(h->connections);
	refusals_stop(h->refusals);
	decoders_stop(h->decoders);
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
	codec_limit_decoded(c->decoded_bytes);
	st = endpoint_choose(c, &at, err);
	if (st == PW_OK)
		st = make_id_prefix(h, err);
	if (st == PW_OK && c->tls_cert)
		st = tls_open(c, &h->tls, err);
	if (st == PW_OK)
		st = endpoint_listen(&at, c, &h->listener, h->address, err);
	if (st == PW_OK)
		st = refusals_start(&h->refusals, err);
	if (st == PW_OK)
		st = connections_start(h, &h->connections, err);
	if (st == PW_OK)
		st = decoders_start(sv, &h->decoders, err);
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
