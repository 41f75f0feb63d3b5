#include "api/client.h"

#include <arpa/inet.h>
#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

/* A server of one thread that answers each request with the next line of a script, and keeps what it was asked. */
#define ASKED_MAX 16
struct responder {
	int listener;
	unsigned port;
	const char *const *script; /* "" hangs up instead */
	size_t script_len;
	pthread_t thread;
	char asked[ASKED_MAX][2048];
	size_t asked_count;
	unsigned connections;
};

/* Reads one request, headers and body. False: the connection has ended. */
static bool read_request(int fd, char *out, size_t size)
{
	size_t n = 0, want = 0;
	char *body = NULL;

	while (!body || n < want) {
		ssize_t got = n + 1 < size ? read(fd, out + n, size - 1 - n) : -1;

		if (got <= 0)
			return false;
		n += (size_t)got;
		out[n] = '\0';
		body = strstr(out, "\r\n\r\n");
		if (body) {
			const char *length = strcasestr(out, "content-length:");

			want = (size_t)(body + 4 - out) + (length ? strtoul(length + 15, NULL, 10) : 0);
		}
	}
	return true;
}

static void serve(struct responder *r, int fd)
{
	while (r->asked_count < r->script_len && read_request(fd, r->asked[r->asked_count], sizeof r->asked[0])) {
		const char *answer = r->script[r->asked_count++];

		if (!*answer || write(fd, answer, strlen(answer)) < 0)
			return;
	}
}

static void *respond(void *arg)
{
	struct responder *r = arg;

	while (r->asked_count < r->script_len) {
		int fd = accept(r->listener, NULL, NULL);

		if (fd < 0)
			break;
		r->connections++;
		serve(r, fd);
		close(fd);
	}
	return NULL;
}

static void responder_start(struct responder *r, const char *const *script, size_t n)
{
	struct sockaddr_in a = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t len = sizeof a;

	*r = (struct responder){ .script = script, .script_len = n };
	r->listener = socket(AF_INET, SOCK_STREAM, 0);
	cr_assert_geq(r->listener, 0);
	cr_assert_eq(bind(r->listener, (struct sockaddr *)&a, sizeof a), 0);
	cr_assert_eq(listen(r->listener, 8), 0);
	cr_assert_eq(getsockname(r->listener, (struct sockaddr *)&a, &len), 0);
	r->port = ntohs(a.sin_port);
	cr_assert_eq(pthread_create(&r->thread, NULL, respond, r), 0);
}

static void responder_stop(struct responder *r)
{
	shutdown(r->listener, SHUT_RDWR);
	pthread_join(r->thread, NULL);
	close(r->listener);
}

static struct client *client_of(const struct responder *r, unsigned attempts)
{
	struct client_options o = { .token = "secret", .attempts = attempts, .timeout_ms = 5000, .jitter_seed = 1 };
	struct client *c = NULL;
	struct pw_err err;
	char url[64];

	snprintf(url, sizeof url, "http://127.0.0.1:%u/", r->port);
	o.url = url;
	cr_assert_eq(client_open(&o, &c, &err), PW_OK, "%s", err.msg);
	return c;
}

#define ANSWER(status, more, len, body) "HTTP/1.1 " status "\r\n" more "Content-Length: " len "\r\n\r\n" body
#define BUSY                                                                \
	ANSWER("503 x", "Content-Type: application/problem+json\r\n", "60", \
	       "{\"type\":\"/problems/not-ready\",\"retryable\":true,\"detail\":\"d\"}")
#define TAKEN ANSWER("409 x", "", "62", "{\"type\":\"/problems/vm-exists\",\"retryable\":false,\"detail\":\"no\"}")

/* The value of a header in what was asked; "" if it is not there. */
static const char *header(const char *asked, const char *name, char *out, size_t size)
{
	const char *at = strcasestr(asked, name);
	size_t n = at ? strcspn(at + strlen(name), "\r\n") : 0;

	snprintf(out, size, "%.*s", (int)n, at ? at + strlen(name) : "");
	return out;
}

Test(client, sends_token_body_and_a_key_and_takes_the_answer)
{
	static const char *const script[] = {
		ANSWER("201 Created", "Location: /v1/vms/7\r\n", "10", "{\"id\":\"7\"}"),
		ANSWER("204 No Content", "", "0", ""),
	};
	json_t *body = json_pack("{s:i}", "a", 1);
	struct responder r;
	struct client_reply reply;
	struct client *c;
	struct pw_err err;
	char key[128];

	responder_start(&r, script, 2);
	c = client_of(&r, 1);
	cr_assert_eq(client_call(c, "POST", "/v1/vms", body, NULL, 0, &reply, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(reply.status, 201);
	cr_assert_eq(reply.problem, PROBLEM_NONE);
	cr_assert_str_eq(reply.location, "/v1/vms/7");
	cr_assert_str_eq(json_string_value(json_object_get(reply.json, "id")), "7");
	client_reply_release(&reply);
	cr_assert_eq(client_call(c, "DELETE", "/v1/vms/7", NULL, NULL, 0, &reply, &err), PW_OK);
	cr_assert(reply.status == 204 && !reply.json);
	client_reply_release(&reply);
	client_close(c);
	responder_stop(&r);
	json_decref(body);

	cr_assert_eq(strncmp(r.asked[0], "POST /v1/vms HTTP/1.1\r\n", 23), 0, "%s", r.asked[0]);
	cr_assert_str_eq(header(r.asked[0], "authorization: ", key, sizeof key), "Bearer secret");
	cr_assert_str_eq(header(r.asked[0], "content-type: ", key, sizeof key), "application/json");
	cr_assert_eq(strlen(header(r.asked[0], "idempotency-key: ", key, sizeof key)), 36);
	cr_assert_not_null(strstr(r.asked[0], "\r\n\r\n{\"a\":1}"));
	cr_assert_eq(strncmp(r.asked[1], "DELETE /v1/vms/7 ", 17), 0);
	cr_assert_str_eq(header(r.asked[1], "idempotency-key: ", key, sizeof key), "");
	cr_assert_eq(r.connections, 1, "%u connections: it is not kept alive", r.connections);
}

static const char *body_of(const char *asked)
{
	const char *end = strstr(asked, "\r\n\r\n");

	return end ? end : "";
}

/* A kept answer belongs to a key and to a body's bytes: both stay the same, also from call to call with one body. */
Test(client, retries_with_the_same_key_and_bytes)
{
	static const char *const script[] = { BUSY, "", ANSWER("429 x", "", "0", ""), ANSWER("200 OK", "", "2", "{}"),
					      ANSWER("200 OK", "", "2", "{}") };
	json_t *body = json_pack("{s:s, s:i, s:[{s:i, s:f}]}", "z", "\u00e9", "a", 1, "items", "y", 2, "b", 0.1);
	struct client_reply reply;
	struct responder r;
	struct client *c;
	struct pw_err err;
	char first[128], key[128];

	responder_start(&r, script, 5);
	c = client_of(&r, 5);
	for (int call = 0; call < 2; call++) {
		cr_assert_eq(client_call(c, "POST", "/v1/x", body, NULL, 0, &reply, &err), PW_OK, "%s", err.msg);
		client_reply_release(&reply);
	}
	client_close(c);
	responder_stop(&r);
	json_decref(body);
	cr_assert_eq(r.asked_count, 5);
	header(r.asked[0], "idempotency-key: ", first, sizeof first);
	cr_assert_eq(strlen(first), 36);
	for (size_t i = 1; i < 4; i++)
		cr_expect_str_eq(header(r.asked[i], "idempotency-key: ", key, sizeof key), first);
	cr_assert_not_null(strstr(r.asked[0], "\"items\":[{"));
	for (size_t i = 1; i < 5; i++)
		cr_expect_str_eq(body_of(r.asked[i]), body_of(r.asked[0]));
}

Test(client, gives_a_refusal_back_at_once)
{
	static const char *const script[] = { TAKEN };
	struct client_reply reply;
	struct responder r;
	struct client *c;
	struct pw_err err;

	responder_start(&r, script, 1);
	c = client_of(&r, 5);
	cr_assert_eq(client_call(c, "POST", "/v1/vms", NULL, "mine", 0, &reply, &err), PW_CONFLICT);
	cr_assert_eq(reply.problem, PROBLEM_VM_EXISTS);
	cr_assert_eq(reply.status, 409);
	cr_assert_str_eq(err.msg, "vm-exists: no");
	client_reply_release(&reply);
	client_close(c);
	responder_stop(&r);
	cr_assert_not_null(strcasestr(r.asked[0], "Idempotency-Key: mine\r\n"));
}

Test(client, gives_the_last_answer_back_when_retries_run_out)
{
	static const char *const script[] = { BUSY, BUSY };
	struct client_reply reply;
	struct responder r;
	struct client *c;
	struct pw_err err;

	responder_start(&r, script, 2);
	c = client_of(&r, 2);
	cr_assert_eq(client_call(c, "GET", "/v1/x", NULL, NULL, 0, &reply, &err), PW_BUSY);
	cr_assert(reply.status == 503 && reply.problem == PROBLEM_NOT_READY);
	client_reply_release(&reply);
	client_close(c);
	responder_stop(&r);
}

Test(client, waits_as_long_as_it_is_asked_to_within_bounds)
{
	static const char *const script[] = {
		ANSWER("429 x", "Retry-After: 1\r\n", "0", ""),
		ANSWER("200 OK", "", "2", "{}"),
		ANSWER("503 x", "retry-after: 99999999999\r\n", "0", ""),
		ANSWER("503 x", "Retry-After: Wed, 21 Oct 2026 07:28:00 GMT\r\n", "0", ""),
	};
	struct timespec from, to;
	struct client_reply reply;
	struct responder r;
	struct client *c;
	struct pw_err err;

	responder_start(&r, script, 4);
	c = client_of(&r, 2);
	clock_gettime(CLOCK_MONOTONIC, &from);
	cr_assert_eq(client_call(c, "GET", "/v1/x", NULL, NULL, 0, &reply, &err), PW_OK);
	clock_gettime(CLOCK_MONOTONIC, &to);
	cr_assert_geq((to.tv_sec - from.tv_sec) * 1000 + (to.tv_nsec - from.tv_nsec) / 1000000, 999);
	cr_assert_eq(reply.retry_after_s, 0, "of the last answer alone");
	client_reply_release(&reply);
	client_close(c);
	c = client_of(&r, 1);
	cr_assert_eq(client_call(c, "GET", "/v1/x", NULL, NULL, 0, &reply, &err), PW_BUSY);
	cr_assert_eq(reply.retry_after_s, CLIENT_RETRY_MAX_S);
	client_reply_release(&reply);
	cr_assert_eq(client_call(c, "GET", "/v1/x", NULL, NULL, 0, &reply, &err), PW_BUSY);
	cr_assert_eq(reply.retry_after_s, 0);
	client_reply_release(&reply);
	client_close(c);
	responder_stop(&r);
}

Test(client, says_that_nobody_answers)
{
	volatile sig_atomic_t stop = 1;
	struct client_options o = { .url = "http://127.0.0.1:1", .attempts = 2 };
	struct client_reply reply;
	struct client *c;
	struct pw_err err;

	cr_assert_eq(client_open(&o, &c, &err), PW_OK);
	cr_assert_eq(client_call(c, "GET", "/v1/x", NULL, NULL, 0, &reply, &err), PW_NETWORK);
	cr_assert(reply.status == 0 && !reply.json);
	client_reply_release(&reply);
	client_close(c);
	o.stop = &stop;
	cr_assert_eq(client_open(&o, &c, &err), PW_OK);
	cr_assert_eq(client_call(c, "GET", "/v1/x", NULL, NULL, 0, &reply, &err), PW_BUSY);
	client_reply_release(&reply);
	client_close(c);
}

Test(client, does_not_take_an_unknown_problem_for_a_known_one)
{
	static const char *const script[] = { ANSWER("418 x", "", "21", "{\"type\":\"about:blank\"}"),
					      ANSWER("500 x", "", "4", "oops") };
	struct client_reply reply;
	struct responder r;
	struct client *c;
	struct pw_err err;

	responder_start(&r, script, 2);
	c = client_of(&r, 1);
	cr_assert_eq(client_call(c, "GET", "/", NULL, NULL, 0, &reply, &err), PW_INVALID);
	cr_assert_eq(reply.problem, PROBLEM_INTERNAL);
	client_reply_release(&reply);
	cr_assert_eq(client_call(c, "GET", "/", NULL, NULL, 0, &reply, &err), PW_BUSY);
	cr_assert(!reply.json && strcmp(reply.text, "oops") == 0);
	client_reply_release(&reply);
	client_close(c);
	responder_stop(&r);
}

static bool add_up(void *ctx, json_t *item)
{
	int *sum = ctx;

	*sum += (int)json_integer_value(item);
	return *sum < 100;
}

Test(client, follows_a_list_to_its_end)
{
	static const char *const script[] = {
		ANSWER("200 OK", "", "37", "{\"items\":[1,2],\"next_cursor\":\"a b&c\"}\n"),
		ANSWER("200 OK", "", "13", "{\"items\":[3]}"),
		ANSWER("200 OK", "", "40", "{\"items\":[100,1],\"next_cursor\":\"never\"} "),
	};
	struct responder r;
	struct client *c;
	struct pw_err err;
	int sum = 0;

	responder_start(&r, script, 3);
	c = client_of(&r, 1);
	cr_assert_eq(client_list(c, "/v1/x?limit=2", add_up, &sum, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(sum, 6);
	sum = 0;
	cr_assert_eq(client_list(c, "/v1/x", add_up, &sum, &err), PW_OK);
	cr_assert_eq(sum, 100, "%d: it went on after it was told to stop", sum);
	client_close(c);
	responder_stop(&r);
	cr_assert_eq(strncmp(r.asked[1], "GET /v1/x?limit=2&cursor=a%20b%26c HTTP", 39), 0, "%s", r.asked[1]);
}

Test(client, ends_a_list_that_runs_in_circles)
{
	static const char *const script[] = { ANSWER("200 OK", "", "30", "{\"items\":[],\"next_cursor\":\"a\"}"),
					      ANSWER("200 OK", "", "30", "{\"items\":[],\"next_cursor\":\"a\"}") };
	struct responder r;
	struct client *c;
	struct pw_err err;
	int sum = 0;

	responder_start(&r, script, 2);
	c = client_of(&r, 1);
	cr_assert_eq(client_list(c, "/v1/x", add_up, &sum, &err), PW_INVALID);
	client_close(c);
	responder_stop(&r);
}

Test(client, refuses_options_that_cannot_work)
{
	struct client_options o = { .url = "ftp://x" };
	struct client *c;
	struct pw_err err;

	cr_assert_eq(client_open(&o, &c, &err), PW_INVALID);
	o = (struct client_options){ .url = "http://x", .token = "a\r\nX-Evil: 1" };
	cr_assert_eq(client_open(&o, &c, &err), PW_INVALID);
	client_close(NULL);
}
