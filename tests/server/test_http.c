#include "server/http.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "server/service.h"

/*
 * The runtime over real sockets, with a service of a few lines behind it: "admin", "viewer" and "agent" are its tokens,
 * and what is parked goes to one thread that resumes it as soon as it can.
 */
struct service {
	pthread_t thread;
	pthread_mutex_t lock;
	pthread_cond_t wake;
	struct request *parked, *held;
	bool stop, answers;
};

static struct service service = { .lock = PTHREAD_MUTEX_INITIALIZER, .wake = PTHREAD_COND_INITIALIZER };
static struct config config;
static struct http *http;
static _Atomic unsigned jobs_freed;

bool service_is_started(const struct service *sv)
{
	return true;
}

bool service_authenticate(struct service *sv, const char *secret, size_t len, struct principal *out)
{
	static const struct {
		const char *secret;
		enum role role;
	} tokens[] = { { "admin", ROLE_ADMIN }, { "viewer", ROLE_VIEWER }, { "agent", ROLE_AGENT } };

	for (size_t i = 0; i < PW_ARRAY_LEN(tokens); i++)
		if (strlen(tokens[i].secret) == len && memcmp(secret, tokens[i].secret, len) == 0) {
			out->token.b[0] = (uint8_t)(i + 1);
			out->role = tokens[i].role;
			return true;
		}
	return false;
}

/* Only what is held waits for news. */
bool service_forget(struct service *sv, struct request *r)
{
	bool found = false;

	pthread_mutex_lock(&sv->lock);
	for (struct request **at = &sv->held; *at && !found; at = found ? at : &(*at)->next)
		if (*at == r) {
			*at = r->next;
			found = true;
		}
	pthread_mutex_unlock(&sv->lock);
	return found;
}

static enum handled echo(struct service *sv, struct request *r)
{
	struct jsonw w;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_u64(&w, "size", r->body_size);
	jsonw_m_str(&w, "arg", r->args[0]);
	jsonw_m_str(&w, "q", request_query(r, "q"));
	jsonw_m_str(&w, "key", r->idempotency_key);
	jsonw_m_bool(&w, "resumed", r->resumed);
	jsonw_close(&w, '}');
	answer_etag(r, 7);
	return answer_json(r, 200, &w);
}

static enum handled park(struct service *sv, struct request *r)
{
	pthread_mutex_lock(&sv->lock);
	r->next = sv->parked;
	sv->parked = r;
	pthread_cond_signal(&sv->wake);
	pthread_mutex_unlock(&sv->lock);
	return PARKED;
}

/* Nobody resumes it but the test. */
static enum handled hold(struct service *sv, struct request *r)
{
	pthread_mutex_lock(&sv->lock);
	r->next = sv->held;
	sv->held = r;
	pthread_mutex_unlock(&sv->lock);
	return PARKED;
}

/* Waits as many times as the query says, then answers. */
static enum handled poll_times(struct service *sv, struct request *r)
{
	uint64_t times;

	if (!query_u64(r, "times", 0, 1000000, 1, &times))
		return DONE;
	if ((uint64_t)r->deadline_ms == times)
		return echo(sv, r);
	r->deadline_ms++;
	return park(sv, r);
}

static enum handled resumed_at_once(struct service *sv, struct request *r)
{
	if (r->resumed)
		return echo(sv, r);
	request_resume(r);
	return PARKED;
}

static void count_job(void *job)
{
	atomic_fetch_add(&jobs_freed, 1);
}

static enum handled leave_job(struct service *sv, struct request *r)
{
	r->job = r;
	r->job_free = count_job;
	return answer_empty(r, 204);
}

static enum handled give_nothing(struct service *sv, struct request *r)
{
	return DONE;
}

#define ROUTE(m, p, who, fn)                                          \
	{                                                             \
		.method = m, .pattern = p, .roles = who, .handle = fn \
	}
const struct route routes[] = {
	ROUTE("GET", "/open", NO_TOKEN, echo),
	ROUTE("GET", "/echo", EVERYBODY, echo),
	ROUTE("POST", "/echo", EVERYBODY, echo),
	ROUTE("PUT", "/echo/{x}", ROLE_BIT(ROLE_ADMIN), echo),
	ROUTE("GET", "/park", EVERYBODY, park),
	ROUTE("POST", "/park", EVERYBODY, park),
	ROUTE("GET", "/hold", EVERYBODY, hold),
	ROUTE("GET", "/poll", EVERYBODY, poll_times),
	ROUTE("GET", "/once", EVERYBODY, resumed_at_once),
	ROUTE("GET", "/job", EVERYBODY, leave_job),
	ROUTE("GET", "/nothing", EVERYBODY, give_nothing),
	{ .method = NULL },
};

static void resume_all(struct service *sv, struct request *r)
{
	while (r) {
		struct request *next = r->next;

		if (request_query(r, "late"))
			usleep(500); /* long enough for http.c to have suspended the connection */
		if (strcmp(r->path, "/park") == 0 || strcmp(r->path, "/hold") == 0)
			(void)echo(sv, r);
		request_resume(r);
		r = next;
	}
}

static void *serve(void *arg)
{
	struct service *sv = arg;

	pthread_mutex_lock(&sv->lock);
	while (!sv->stop || sv->parked) {
		struct request *r = sv->parked;

		sv->parked = NULL;
		if (!r) {
			pthread_cond_wait(&sv->wake, &sv->lock);
			continue;
		}
		pthread_mutex_unlock(&sv->lock);
		resume_all(sv, r);
		pthread_mutex_lock(&sv->lock);
	}
	pthread_mutex_unlock(&sv->lock);
	return NULL;
}

static enum pw_status start_on(const char *listen, struct pw_err *err)
{
	char *const argv[] = { (char *)"test",          (char *)"--listen", (char *)listen,
			       (char *)"--connections", (char *)"64",       NULL };
	enum pw_status st = config_parse(5, argv, NULL, &config, err);

	if (st != PW_OK)
		return st;
	return http_start(&config, &service, &http, err);
}

static void start(void)
{
	struct pw_err err = { 0 };

	pthread_create(&service.thread, NULL, serve, &service);
	cr_assert_eq(start_on("127.0.0.1:0", &err), PW_OK, "%s", err.msg);
}

static void stop(void)
{
	http_quiesce(http);
	for (int ms = 0; http_active(http) && ms < 5000; ms++)
		usleep(1000);
	http_stop(http);
	pthread_mutex_lock(&service.lock);
	service.stop = true;
	pthread_cond_signal(&service.wake);
	pthread_mutex_unlock(&service.lock);
	pthread_join(service.thread, NULL);
}
TestSuite(http, .init = start, .fini = stop, .timeout = 60);

/* --- A client --- */

struct reply {
	unsigned status;
	char text[8192]; /* headers and body */
};

static int dial(void)
{
	const char *port = strrchr(http_address(http), ':') + 1;
	struct sockaddr_in to = { .sin_family = AF_INET, .sin_port = htons((uint16_t)strtoul(port, NULL, 10)) };
	struct timeval patience = { .tv_sec = 5 };
	int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);

	to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
	cr_assert_eq(connect(fd, (struct sockaddr *)&to, sizeof to), 0);
	return fd;
}

static void say(int fd, const char *text, size_t len)
{
	while (len) {
		ssize_t n = send(fd, text, len, MSG_NOSIGNAL);

		if (n <= 0)
			return;
		text += n;
		len -= (size_t)n;
	}
}

#define SAY(fd, literal) say(fd, literal, sizeof literal - 1)

/* Reads one answer: its head, and the body that Content-Length announces. */
static struct reply *hear(int fd, struct reply *r)
{
	size_t used = 0, want = SIZE_MAX;

	r->text[0] = '\0';
	while (used < want && used < sizeof r->text - 1) {
		ssize_t n = recv(fd, r->text + used, sizeof r->text - 1 - used, 0);
		const char *end, *length;

		if (n <= 0)
			break;
		used += (size_t)n;
		r->text[used] = '\0';
		end = strstr(r->text, "\r\n\r\n");
		length = strstr(r->text, "Content-Length: ");
		if (end)
			want = (size_t)(end + 4 - r->text) +
			       (length && length < end ? strtoul(length + 16, NULL, 10) : 0);
	}
	r->status = strncmp(r->text, "HTTP/1.1 ", 9) == 0 ? (unsigned)strtoul(r->text + 9, NULL, 10) : 0;
	return r;
}

/* head: lines without their CRLF's last one. */
static struct reply *ask_on(int fd, struct reply *r, const char *head, const char *body)
{
	char text[4096];
	int n = snprintf(text, sizeof text, "%s\r\nHost: x\r\n\r\n%s", head, body);

	say(fd, text, (size_t)n);
	return hear(fd, r);
}

static struct reply *ask(struct reply *r, const char *head, const char *body)
{
	int fd = dial();

	ask_on(fd, r, head, body);
	close(fd);
	return r;
}

static bool has(const struct reply *r, const char *text)
{
	return strstr(r->text, text) != NULL;
}

#define ADMIN  "\r\nAuthorization: Bearer admin"
#define VIEWER "\r\nAuthorization: Bearer viewer"
#define AGENT  "\r\nAuthorization: Bearer agent"
#define JSON   "\r\nContent-Type: application/json"

/* --- Tests --- */

static const struct exchange_case {
	const char *head, *body;
	unsigned status;
	const char *says;
} cases[] = {
	{ "GET /open HTTP/1.1", "", 200, "\"size\":0" },
	{ "GET /echo?q=a+%62 HTTP/1.1" ADMIN, "", 200, "\"q\":\"a b\"" },
	{ "GET /echo HTTP/1.1\r\nauthorization: bearer  admin", "", 200, "ETag: \"7\"" },
	{ "PUT /echo/a%2Fb HTTP/1.1" ADMIN JSON "\r\nContent-Length: 2", "{}", 200, "\"arg\":\"a/b\"" },
	{ "POST /echo HTTP/1.1" ADMIN "\r\nContent-Type: APPLICATION/json; charset=utf-8\r\nContent-Length: 2", "{}",
	  200, "\"size\":2" },
	{ "POST /echo HTTP/1.1" ADMIN, "", 200, "\"size\":0" },
	{ "POST /echo HTTP/1.1" ADMIN JSON "\r\nTransfer-Encoding: chunked", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n", 200,
	  "\"size\":5" },
	{ "POST /echo HTTP/1.1" ADMIN "\r\nIdempotency-Key: a key~", "", 200, "\"key\":\"a key~\"" },
	{ "GET /echo HTTP/1.1" ADMIN "\r\nIdempotency-Key: k", "", 200, "\"key\":null" },
	{ "GET /park HTTP/1.1" ADMIN, "", 200, "\"resumed\":false" },
	{ "GET /once HTTP/1.1" ADMIN, "", 200, "\"resumed\":true" },
	{ "GET /poll?times=5 HTTP/1.1" ADMIN, "", 200, "\"resumed\":true" },
	{ "GET /open HTTP/1.1\r\nX-Request-Id: My.id_1-2", "", 200, "X-Request-Id: My.id_1-2\r\n" },
	/* 404 and 405 come before 401 */
	{ "GET /none HTTP/1.1", "", 404, "/problems/not-found" },
	{ "GET /echo%00 HTTP/1.1", "", 404, "/problems/not-found" },
	{ "DELETE /echo HTTP/1.1", "", 405, "Allow: GET, POST\r\n" },
	{ "OPTIONS /echo/x HTTP/1.1" ADMIN, "", 405, "Allow: PUT\r\n" },
	{ "BREW /echo HTTP/1.1", "", 405, "/problems/method-not-allowed" },
	{ "GET /echo HTTP/1.1", "", 401, "WWW-Authenticate: Bearer" },
	{ "GET /echo HTTP/1.1\r\nAuthorization: Basic YTpi", "", 401, "no bearer token" },
	{ "GET /echo HTTP/1.1\r\nAuthorization: Bearer ", "", 401, "/problems/unauthorized" },
	{ "GET /echo HTTP/1.1\r\nAuthorization: Bearer admix", "", 401, "not valid" },
	/* 403 comes before 415 and 413, and 401 before both */
	{ "PUT /echo/x HTTP/1.1" VIEWER "\r\nContent-Length: 2", "{}", 403, "/problems/forbidden" },
	{ "PUT /echo/x HTTP/1.1" VIEWER "\r\nContent-Length: 99999999", "", 403, "/problems/forbidden" },
	{ "PUT /echo/x HTTP/1.1\r\nContent-Length: 99999999", "", 401, "/problems/unauthorized" },
	{ "POST /echo HTTP/1.1" ADMIN "\r\nContent-Length: 2", "{}", 415, "/problems/unsupported-media-type" },
	{ "POST /echo HTTP/1.1" ADMIN "\r\nContent-Type: application/jsonp\r\nContent-Length: 2", "{}", 415,
	  "application/json" },
	{ "POST /echo HTTP/1.1" ADMIN JSON "\r\nContent-Length: 99999999", "", 413, "/problems/body-too-large" },
	{ "POST /echo HTTP/1.1" AGENT JSON "\r\nContent-Length: 16777217\r\nExpect: 100-continue", "", 413,
	  "\"limit\":16777216" },
	{ "POST /echo HTTP/1.1" ADMIN JSON "\r\nContent-Length: 1048577\r\nExpect: 100-continue", "", 413,
	  "(--body-bytes)" },
	{ "GET /open HTTP/1.1\r\nContent-Length: 1048577", "", 413, "(--body-bytes)" },
	{ "POST /echo HTTP/1.1" ADMIN "\r\nIdempotency-Key: caf\xc3\xa9", "", 400, "Idempotency-Key" },
	{ "POST /echo HTTP/1.1" ADMIN "\r\nIdempotency-Key: ", "", 400, "Idempotency-Key" },
	{ "GET /echo HTTP/1.1" ADMIN "\r\nIf-Match: \"\xff\"", "", 400, "If-Match" },
	{ "GET /echo?q=%ff HTTP/1.1" ADMIN, "", 400, "/problems/invalid-request" },
	{ "GET /poll?times=01x HTTP/1.1" ADMIN, "", 400, "times" },
	{ "GET /nothing HTTP/1.1" ADMIN, "", 500, "/problems/internal" },
};

Test(http, each_request_gets_the_documented_answer)
{
	for (const struct exchange_case *c = cases; c < cases + PW_ARRAY_LEN(cases); c++) {
		struct reply r;

		cr_assert_eq(ask(&r, c->head, c->body)->status, c->status, "%s\n-> %s", c->head, r.text);
		cr_assert(has(&r, c->says), "%s\n-> %s", c->head, r.text);
		cr_assert(has(&r, "\r\nX-Request-Id: ") && has(&r, "\r\nX-Content-Type-Options: nosniff"), "%s",
			  r.text);
		cr_assert(has(&r, c->status >= 400 ? "Content-Type: application/problem+json\r\n"
						   : "Content-Type: application/json\r\n"),
			  "%s", r.text);
		if (c->status >= 400)
			cr_assert(has(&r, "\"request_id\":\""), "%s", r.text);
	}
}

Test(http, a_refused_small_request_keeps_its_connection_and_bodies_do_not_leak_into_the_next)
{
	int fd = dial();
	struct reply r;

	cr_assert_eq(
		ask_on(fd, &r, "POST /echo HTTP/1.1" ADMIN JSON "\r\nContent-Length: 3\r\nIdempotency-Key: k", "abc")
			->status,
		200);
	cr_assert_eq(ask_on(fd, &r, "PUT /echo/x HTTP/1.1" VIEWER "\r\nContent-Length: 3", "abc")->status, 403);
	cr_assert_eq(ask_on(fd, &r, "GET /none HTTP/1.1", "")->status, 404);
	cr_assert_eq(ask_on(fd, &r, "GET /echo HTTP/1.1", "")->status, 401, "a token must not outlive its request");
	cr_assert_eq(ask_on(fd, &r, "GET /park HTTP/1.1" ADMIN, "")->status, 200);
	cr_assert_eq(ask_on(fd, &r, "POST /park HTTP/1.1" ADMIN, "")->status, 200);
	cr_assert(has(&r, "{\"size\":0,\"arg\":null,\"q\":null,\"key\":null,\"resumed\":false}"), "%s", r.text);
	close(fd);
}

Test(http, insane_request_ids_are_replaced_and_made_ones_differ)
{
	struct reply a, b;

	ask(&a, "GET /open HTTP/1.1\r\nX-Request-Id: a b", "");
	ask(&b, "GET /open HTTP/1.1\r\nX-Request-Id: 12345678901234567890123456789012345678901234567890123456789012345",
	    "");
	cr_assert_not(has(&a, "X-Request-Id: a b"));
	cr_assert_not(has(&b, "X-Request-Id: 1234567890123456789012345678901234567890123456789012345678901234"));
	cr_assert_neq(strncmp(strstr(a.text, "X-Request-Id: "), strstr(b.text, "X-Request-Id: "), 40), 0);
}

Test(http, head_is_get_without_the_body)
{
	int fd = dial();
	char rest[16];
	struct reply r;

	SAY(fd, "HEAD /open HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
	shutdown(fd, SHUT_WR);
	hear(fd, &r);
	cr_assert_eq(r.status, 200, "%s", r.text);
	cr_assert(has(&r, "Content-Length: ") && !has(&r, "\"size\""), "%s", r.text);
	cr_assert_eq(recv(fd, rest, sizeof rest, 0), 0);
	close(fd);
}

/* Sends `chunks` chunks of 64 KiB. */
static void say_chunks(int fd, unsigned chunks)
{
	static char chunk[65536 + 9];

	memset(chunk, 'x', sizeof chunk);
	memcpy(chunk, "10000\r\n", 7);
	memcpy(chunk + 7 + 65536, "\r\n", 2);
	while (chunks--)
		say(fd, chunk, sizeof chunk);
}

Test(http, an_agents_body_in_chunks_may_have_16_mib_and_no_byte_more)
{
	static const char head[] = "POST /echo HTTP/1.1" AGENT JSON "\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n";
	int fd = dial();
	struct reply r;

	SAY(fd, head);
	say_chunks(fd, 256);
	SAY(fd, "0\r\n\r\n");
	cr_assert_eq(hear(fd, &r)->status, 200, "%s", r.text);
	cr_assert(has(&r, "\"size\":16777216"), "%s", r.text);
	SAY(fd, head);
	say_chunks(fd, 256);
	SAY(fd, "1\r\nx\r\n0\r\n\r\n");
	cr_assert_eq(hear(fd, &r)->status, 413, "%s", r.text);
	cr_assert_eq(ask_on(fd, &r, "GET /echo HTTP/1.1" ADMIN, "")->status, 200, "%s", r.text);
	close(fd);
}

Test(http, a_known_caller_hears_413_even_if_he_sends_everything_first)
{
	static char body[1 << 20];
	int fd = dial();
	struct reply r;

	SAY(fd, "POST /echo HTTP/1.1" ADMIN JSON "\r\nHost: x\r\nContent-Length: 17825792\r\n\r\n");
	for (int i = 0; i < 17; i++)
		say(fd, body, sizeof body);
	cr_assert_eq(hear(fd, &r)->status, 413, "%s", r.text);
	cr_assert_eq(ask_on(fd, &r, "GET /echo HTTP/1.1" ADMIN, "")->status, 200, "%s", r.text);
	close(fd);
}

Test(http, a_job_left_on_the_request_is_freed_once)
{
	struct reply r;

	cr_assert_eq(ask(&r, "GET /job HTTP/1.1" ADMIN, "")->status, 204, "%s", r.text);
	cr_assert_eq(ask(&r, "GET /open HTTP/1.1", "")->status, 200);
	for (int ms = 0; http_active(http) && ms < 5000; ms++)
		usleep(1000);
	cr_assert_eq(atomic_load(&jobs_freed), 1);
}

#define CLIENTS 8
#define EACH    100
static void *park_often(void *failures)
{
	static const char *const heads[] = {
		"GET /park HTTP/1.1" ADMIN,
		"GET /park?late HTTP/1.1" ADMIN,
		"GET /poll?times=3 HTTP/1.1" ADMIN,
		"GET /poll?times=2&late HTTP/1.1" ADMIN,
	};
	int fd = dial();
	struct reply r;

	for (unsigned i = 0; i < EACH; i++)
		if (ask_on(fd, &r, heads[i % PW_ARRAY_LEN(heads)], "")->status != 200) {
			atomic_fetch_add((_Atomic unsigned *)failures, 1);
			break;
		}
	close(fd);
	return NULL;
}

Test(http, however_early_or_late_a_resume_comes_the_answer_is_sent)
{
	_Atomic unsigned failures = 0;
	pthread_t clients[CLIENTS];

	for (int i = 0; i < CLIENTS; i++)
		pthread_create(&clients[i], NULL, park_often, (void *)&failures);
	for (int i = 0; i < CLIENTS; i++)
		pthread_join(clients[i], NULL);
	cr_assert_eq(atomic_load(&failures), 0);
}

Test(http, a_client_that_leaves_while_parked_harms_nobody)
{
	struct reply r;

	for (int i = 0; i < 40; i++) {
		int fd = dial();

		SAY(fd, "GET /poll?times=100 HTTP/1.1" ADMIN "\r\nHost: x\r\n\r\n");
		close(fd);
	}
	cr_assert_eq(ask(&r, "GET /park HTTP/1.1" ADMIN, "")->status, 200);
}

Test(http, once_quiesced_kept_connections_are_told_to_come_back_later)
{
	int fd = dial();
	struct reply r;

	cr_assert_eq(ask_on(fd, &r, "GET /open HTTP/1.1", "")->status, 200);
	http_quiesce(http);
	ask_on(fd, &r, "GET /open HTTP/1.1", "");
	cr_assert_eq(r.status, 503, "%s", r.text);
	cr_assert(has(&r, "/problems/not-ready") && has(&r, "Connection: close") && has(&r, "\"retryable\":true"), "%s",
		  r.text);
	close(fd);
}

static struct request *held(void)
{
	struct request *r = NULL;

	for (int ms = 0; ms < 5000 && !r; ms++) {
		pthread_mutex_lock(&service.lock);
		r = service.held;
		pthread_mutex_unlock(&service.lock);
		usleep(r ? 10000 : 1000); /* so that its connection sleeps, mostly */
	}
	cr_assert_not_null(r);
	return r;
}

Test(http, who_cannot_be_waited_for_is_answered_and_stays_whole)
{
	int fd = dial(), gone = dial();
	struct request *r;
	struct reply a;

	SAY(gone, "GET /hold HTTP/1.1" ADMIN "\r\nHost: x\r\n\r\n");
	(void)held();
	SAY(fd, "GET /hold HTTP/1.1" ADMIN "\r\nHost: x\r\nX-Request-Id: mine\r\n\r\n");
	while (!held()->next)
		usleep(1000);
	close(gone);
	cr_assert_eq(http_give_up(http, PROBLEM_NOT_READY, "enough"), 2);
	cr_assert_eq(hear(fd, &a)->status, 503, "%s", a.text);
	cr_assert(has(&a, "/problems/not-ready") && has(&a, "enough") && has(&a, "Connection: close") &&
			  has(&a, "X-Request-Id: mine"),
		  "%s", a.text);
	close(fd);
	for (int ms = 0; http_active(http) && ms < 5000; ms++)
		usleep(1000);
	cr_assert_eq(http_active(http), 0);
	for (r = service.held; r;) { /* whoever holds them works on, and lets go when it likes */
		struct request *next = r->next;

		(void)echo(&service, r);
		r->job = r;
		request_resume(r);
		r = next;
	}
}

#define HOLDERS 16
Test(http, giving_up_and_resuming_at_once_gives_one_answer_each)
{
	static struct request *all[HOLDERS]; /* so that what is never freed is not lost either */
	int fds[HOLDERS];
	struct reply a;

	for (int i = 0; i < HOLDERS; i++) {
		fds[i] = dial();
		SAY(fds[i], "GET /hold HTTP/1.1" ADMIN "\r\nHost: x\r\n\r\n");
	}
	for (unsigned n = 0; n < HOLDERS;) {
		n = 0;
		for (struct request *r = held(); r; r = r->next)
			all[n++] = r;
	}
	http_quiesce(http);
	pthread_mutex_lock(&service.lock);
	service.parked = all[0]; /* the service's thread resumes them while they are given up */
	pthread_cond_signal(&service.wake);
	pthread_mutex_unlock(&service.lock);
	(void)http_give_up(http, PROBLEM_NOT_READY, "enough");
	for (int i = 0; i < HOLDERS; i++) {
		hear(fds[i], &a);
		cr_expect(a.status == 503 || a.status == 200, "%s", a.text);
		cr_expect_eq(recv(fds[i], a.text, sizeof a.text, 0), 0, "the connection stays open");
		close(fds[i]);
	}
}

Test(http_start, addresses_are_checked_before_anything_listens)
{
	static const char *const beyond[] = { "0.0.0.0:0", "[::]:0", "192.0.2.1:80", "128.0.0.1:0" };
	static const char *const no_address[] = { "",
						  "127.0.0.1",
						  ":80",
						  "127.0.0.1:",
						  "127.0.0.1:65536",
						  "127.0.0.1:x",
						  "127.0.0.1:-1",
						  "[::1:80",
						  "::1:80",
						  "example.org:80",
						  "127.1:80",
						  "[127.0.0.1]:80",
						  "[]:1",
						  "127.0.0.1:000080" };
	struct pw_err err;

	for (size_t i = 0; i < PW_ARRAY_LEN(beyond); i++)
		cr_assert_eq(start_on(beyond[i], &err), PW_DENIED, "%s", beyond[i]);
	for (size_t i = 0; i < PW_ARRAY_LEN(no_address); i++)
		cr_assert_eq(start_on(no_address[i], &err), PW_INVALID, "%s", no_address[i]);
}

Test(http_start, ipv6_loopback_works_and_a_taken_port_is_named)
{
	struct pw_err err = { 0 };
	struct http *first;
	char taken[96];

	cr_assert_eq(start_on("[::1]:0", &err), PW_OK, "%s", err.msg);
	cr_assert_eq(strncmp(http_address(http), "http://[::1]:", 13), 0);
	snprintf(taken, sizeof taken, "%s", http_address(http) + 7);
	first = http;
	cr_assert_eq(start_on(taken, &err), PW_NETWORK);
	cr_assert_not_null(strstr(err.msg, taken), "%s", err.msg);
	http_stop(first);
}
