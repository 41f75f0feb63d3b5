/*
 * What libmicrohttpd refuses by itself: a head past its memory, a length or chunk size that it cannot read, a version
 * of HTTP that it does not speak. Its own answers are HTML pages, some of them sent twice, and it closes the socket at
 * once, by which a client that still sends loses the answer. There is no option against that, but the library queues
 * these answers through MHD_queue_response as if it were an application. So the function of that name that the program
 * has is the one here: our answers go to the library's past it (refusals_queue), and whatever else is queued is such a
 * refusal.
 *
 * It is answered with a problem, written to the socket here, which then takes no more: what the library sends for
 * itself fails, and it closes the connection. The client's end stays readable to us for a while (a copy of the
 * descriptor), so that what he still sends does not reset the connection before he has read the answer. Runs on the
 * HTTP threads; refusals_drain on the one that watches connections.
 */
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <gnutls/gnutls.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

#include "server/http_impl.h"
#include "server/metrics.h"

#define LINGER_MANY  64 /* sockets; more are closed as the library does it */
#define LINGER_MS    3000
#define LINGER_BYTES (8u << 20)

typedef enum MHD_Result (*queue_fn)(struct MHD_Connection *, unsigned, struct MHD_Response *);

static queue_fn library_queue; /* set before the HTTP threads start */

struct refusals {
	pthread_mutex_t lock;
	unsigned count;
	struct lingering {
		int fd;
		uint64_t until_ms;
		size_t left; /* bytes that are read yet */
	} lingering[LINGER_MANY];
};

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

/* --- The answer --- */

static enum pw_problem problem_of(unsigned status)
{
	switch (status) {
	case MHD_HTTP_URI_TOO_LONG: return PROBLEM_URI_TOO_LONG;
	case MHD_HTTP_REQUEST_HEADER_FIELDS_TOO_LARGE: return PROBLEM_HEAD_TOO_LARGE;
	case MHD_HTTP_CONTENT_TOO_LARGE: return PROBLEM_TOO_LARGE;
	case MHD_HTTP_HTTP_VERSION_NOT_SUPPORTED: return PROBLEM_HTTP_VERSION;
	case MHD_HTTP_BAD_REQUEST: return PROBLEM_INVALID_REQUEST;
	default: return PROBLEM_INTERNAL;
	}
}

static void fill(struct exchange *x, enum pw_problem p)
{
	struct request *r = &x->request;
	const struct config *c = x->http->config;

	if (p == PROBLEM_URI_TOO_LONG || p == PROBLEM_HEAD_TOO_LARGE)
		(void)answer_limit(r, p, c, "head-bytes", (uint64_t)c->head_bytes + 1);
	else if (p == PROBLEM_TOO_LARGE)
		(void)answer_limit(r, p, c, "body-bytes", UINT64_MAX);
	else if (p == PROBLEM_HTTP_VERSION)
		(void)answer_problem(r, p, "only HTTP/1.1 and HTTP/1.0 are spoken here");
	else if (p == PROBLEM_INVALID_REQUEST)
		(void)answer_problem(r, p, "the message is not HTTP: a line, a length or a chunk cannot be read");
	else
		(void)answer_problem(r, p, "the message cannot be read");
}

/* All of it fits into the socket's buffer, which is empty: no answer is under way. */
static void send_whole(const struct exchange *x, const char *text, size_t size)
{
	const union MHD_ConnectionInfo *tls =
		x->http->tls ? MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_GNUTLS_SESSION) : NULL;

	if (!x->http->tls) {
		(void)!send(x->fd, text, size, MSG_NOSIGNAL | MSG_DONTWAIT);
	} else if (tls && tls->tls_session) {
		(void)gnutls_record_send(tls->tls_session, text, size);
		(void)gnutls_bye(tls->tls_session, GNUTLS_SHUT_WR);
	}
}

static void send_answer(const struct exchange *x)
{
	const struct request *r = &x->request;
	char text[2048];
	int n = snprintf(text, sizeof text,
			 "HTTP/1.1 %u %s\r\nConnection: close\r\nContent-Type: application/problem+json\r\n"
			 "Content-Length: %zu\r\nX-Request-Id: %s\r\nX-Content-Type-Options: nosniff\r\n"
			 "Cache-Control: no-store\r\n\r\n%.*s",
			 r->response.status, MHD_get_reason_phrase_for(r->response.status), r->response.size, r->id,
			 (int)r->response.size, r->response.body ? r->response.body : "");

	if (n > 0 && (size_t)n < sizeof text)
		send_whole(x, text, (size_t)n);
	(void)shutdown(x->fd, SHUT_WR);
}

static void linger(struct refusals *s, int fd)
{
	pthread_mutex_lock(&s->lock);
	if (s->count < LINGER_MANY) {
		int copy = fcntl(fd, F_DUPFD_CLOEXEC, 0);

		if (copy >= 0)
			s->lingering[s->count++] = (struct lingering){ .fd = copy,
								       .until_ms = now_ms() + LINGER_MS,
								       .left = LINGER_BYTES };
	}
	pthread_mutex_unlock(&s->lock);
}

/* The request of x may not have begun, so the answer is made with another one. */
static void refuse_for_library(struct exchange *x, unsigned status)
{
	struct exchange stand_in = { .http = x->http, .connection = x->connection, .fd = x->fd };

	if (x->counted && x->stage != STAGE_IDLE)
		memcpy(stand_in.request.id, x->request.id, sizeof stand_in.request.id);
	else
		head_make_id(&stand_in);
	fill(&stand_in, problem_of(status));
	send_answer(&stand_in);
	free(stand_in.request.response.body);
	linger(x->http->refusals, x->fd);
	exchange_enter_phase(x, PHASE_ANSWER);
	if (x->counted && x->stage != STAGE_IDLE)
		x->request.response.status = stand_in.request.response.status; /* on_completed counts it */
	else
		metrics_request("other", "unmatched", stand_in.request.response.status);
	if (x->stage != STAGE_IDLE)
		x->stage = STAGE_SENT;
}

/* Instead of the library's function of this name: see above. */
enum MHD_Result MHD_queue_response(struct MHD_Connection *connection, unsigned status, struct MHD_Response *page)
{
	const union MHD_ConnectionInfo *info = MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);

	if (info && info->socket_context)
		refuse_for_library(info->socket_context, status);
	return library_queue(connection, status, page);
}

enum MHD_Result refusals_queue(struct MHD_Connection *connection, unsigned status, struct MHD_Response *answer)
{
	return library_queue(connection, status, answer);
}

/* --- Those who are still sending --- */

/* False: there is nothing more to wait for. */
static bool drain(struct lingering *l, uint64_t now)
{
	char waste[16384];
	ssize_t n;

	while ((n = recv(l->fd, waste, sizeof waste, MSG_DONTWAIT)) > 0) {
		if ((size_t)n >= l->left)
			return false;
		l->left -= (size_t)n;
	}
	return n < 0 && (errno == EAGAIN || errno == EINTR) && now < l->until_ms;
}

void refusals_drain(struct refusals *s)
{
	uint64_t now = now_ms();

	pthread_mutex_lock(&s->lock);
	for (unsigned i = 0; i < s->count;) {
		if (drain(&s->lingering[i], now)) {
			i++;
			continue;
		}
		close(s->lingering[i].fd);
		s->lingering[i] = s->lingering[--s->count];
	}
	pthread_mutex_unlock(&s->lock);
}

enum pw_status refusals_start(struct refusals **out, struct pw_err *err)
{
	struct refusals *s;

	library_queue = (queue_fn)(uintptr_t)dlsym(RTLD_NEXT, "MHD_queue_response");
	if (!library_queue)
		return pw_fail(err, PW_BACKEND, "libmicrohttpd has no MHD_queue_response");
	s = calloc(1, sizeof *s);
	if (!s)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the refusals");
	pthread_mutex_init(&s->lock, NULL);
	*out = s;
	return PW_OK;
}

void refusals_stop(struct refusals *s)
{
	if (!s)
		return;
	for (unsigned i = 0; i < s->count; i++)
		close(s->lingering[i].fd);
	pthread_mutex_destroy(&s->lock);
	free(s);
}
