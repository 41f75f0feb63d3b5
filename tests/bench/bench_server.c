/*
 * The server under load, over real sockets: starts a pagewardend on a fresh folder and drives it with one thread.
 *
 *	bench_server [PAGEWARDEND [SECONDS]]      prints name<TAB>value<TAB>unit
 *
 * Without arguments: the pagewardend of its own build folder, 5 seconds each.
 */
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "engine/status.h"

#define HOST "11111111-1111-4111-8111-111111111111"
#define VM   "22222222-2222-4222-8222-222222222222"
enum { CONNECTIONS_MAX = 64, REQUEST_MAX = 64 * 1024, ANSWER_MAX = 64 * 1024, RUN = 512, BATCH = 1024 };
static const uint64_t vm_pages = (uint64_t)1 << 24, pool_frames = (uint64_t)1 << 36, claim_pages = (uint64_t)1 << 36;

static char token[128];
static int port;

struct connection {
	int fd;
	char request[REQUEST_MAX], answer[ANSWER_MAX];
	size_t size, sent, got;
};

static __attribute__((noreturn)) void die(const char *what)
{
	fprintf(stderr, "bench_server: %s: %s\n", what, strerror(errno));
	exit(1);
}

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec + (double)t.tv_nsec * 1e-9;
}

static void connect_to(struct connection *c)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_port = htons((uint16_t)port) };
	int on = 1;

	at.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
	c->fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
	if (c->fd < 0 || connect(c->fd, (struct sockaddr *)&at, sizeof at) != 0)
		die("connect");
	setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

static void compose(struct connection *c, const char *method, const char *path, const char *body, size_t len)
{
	int n = snprintf(
		c->request, sizeof c->request,
		"%s %s HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\n"
		"Content-Length: %zu\r\n\r\n",
		method, path, token, len);

	if (n < 0 || (size_t)n + len > sizeof c->request)
		die("a request that is too long");
	memcpy(c->request + n, body, len);
	c->size = (size_t)n + len;
	c->sent = c->got = 0;
}

static void send_all(struct connection *c)
{
	while (c->sent < c->size) {
		ssize_t n = send(c->fd, c->request + c->sent, c->size - c->sent, MSG_NOSIGNAL);

		if (n < 0)
			die("send");
		c->sent += (size_t)n;
	}
}

/* Is the whole answer here? */
static bool complete(const struct connection *c)
{
	const char *end = memmem(c->answer, c->got, "\r\n\r\n", 4);
	const char *length = memmem(c->answer, c->got, "Content-Length: ", 16);

	return end && length && c->got >= (size_t)(end + 4 - c->answer) + strtoul(length + 16, NULL, 10);
}

static bool receive(struct connection *c)
{
	ssize_t n = recv(c->fd, c->answer + c->got, sizeof c->answer - 1 - c->got, 0);

	if (n <= 0)
		die("recv");
	c->got += (size_t)n;
	c->answer[c->got] = '\0';
	return complete(c);
}

static void expect(const struct connection *c, const char *status, const char *text)
{
	if (memcmp(c->answer + 9, status, 3) == 0 && (!text || strstr(c->answer, text)))
		return;
	fprintf(stderr, "bench_server: expected %s %s, got: %.2000s\n", status, text ? text : "", c->answer);
	exit(1);
}

static void call(struct connection *c, const char *method, const char *path, const char *body, const char *status)
{
	compose(c, method, path, body, strlen(body));
	send_all(c);
	while (!receive(c))
		;
	expect(c, status, NULL);
}

/* A closed loop: each connection sends its next request when it has its answer. Returns answers a second. */
struct load {
	const char *name, *text;
	unsigned connections;
	void (*next)(struct connection *c);
};

static double run(const struct load *l, struct connection *cs, double seconds)
{
	struct epoll_event events[CONNECTIONS_MAX];
	int ep = epoll_create1(EPOLL_CLOEXEC);
	double began = now(), end = began + seconds;
	unsigned long answers = 0;
	unsigned open = l->connections;

	for (unsigned i = 0; i < l->connections; i++) {
		struct epoll_event e = { .events = EPOLLIN, .data.ptr = &cs[i] };

		if (epoll_ctl(ep, EPOLL_CTL_ADD, cs[i].fd, &e) != 0)
			die("epoll_ctl");
		l->next(&cs[i]);
		send_all(&cs[i]);
	}
	while (open > 0) {
		int n = epoll_wait(ep, events, CONNECTIONS_MAX, -1);

		for (int i = 0; i < n; i++) {
			struct connection *c = events[i].data.ptr;

			if (!receive(c))
				continue;
			expect(c, "200", l->text);
			answers++;
			if (now() >= end) {
				open--;
				continue;
			}
			l->next(c);
			send_all(c);
		}
	}
	close(ep);
	return (double)answers / (now() - began);
}

static uint64_t claimed;

/* Not the frame that would continue the claim before. */
static uint64_t claim_pfn(uint64_t n)
{
	return (n ^ 16) * RUN;
}

static void next_claim(struct connection *c)
{
	uint64_t at = claimed++ * RUN;
	char body[512];
	int n = snprintf(body, sizeof body,
			 "{\"boot_id\":\"b\",\"epoch\":1,\"items\":[{\"vm\":\"" VM
			 "\",\"op\":\"page_in\",\"gfn\":%" PRIu64
			 ",\"count\":%d,\"frame\":{\"pool\":\"local\",\"pfn\":%" PRIu64 "}}]}",
			 at, RUN, claim_pfn(at / RUN));

	compose(c, "POST", "/v1/hosts/" HOST "/transitions", body, (size_t)n);
}

static void next_lookup(struct connection *c)
{
	char path[256];

	snprintf(path, sizeof path, "/v1/hosts/" HOST "/frames?pool=local&pfn=%" PRIu64 "&count=1",
		 claim_pfn((uint64_t)random() % claimed));
	compose(c, "GET", path, "", 0);
}

static void next_batch(struct connection *c)
{
	static bool share;
	static char body[REQUEST_MAX - 1024];
	size_t n;

	share = !share;
	n = (size_t)snprintf(body, sizeof body,
			     "{\"boot_id\":\"b\",\"epoch\":1,\"items\":[{\"vm\":\"%s\",\"op\":\"%s\",\"runs\":[",
			     "33333333-3333-4333-8333-333333333333", share ? "share" : "unshare");
	for (int i = 0; i < BATCH; i++)
		n += (size_t)snprintf(body + n, sizeof body - n, "%s[%" PRIu64 ",1]", i ? "," : "",
				      (uint64_t)random() % vm_pages);
	n += (size_t)snprintf(body + n, sizeof body - n, "]}]}");
	compose(c, "POST", "/v1/hosts/" HOST "/transitions", body, n);
}

/* The server: a real one, on a fresh folder, stopped by its pid. */

static pid_t server_start(const char *program, const char *data)
{
	char line[128] = "";
	int out[2];
	pid_t pid;
	FILE *f;

	if (pipe(out) != 0)
		die("pipe");
	pid = fork();
	if (pid == 0) {
		prctl(PR_SET_PDEATHSIG, SIGTERM);
		dup2(out[1], 1);
		close(out[0]);
		close(out[1]);
		execl(program, program, "--listen", "127.0.0.1:0", "--data", data, "--log-level", "error",
		      (char *)NULL);
		_exit(127);
	}
	close(out[1]);
	f = fdopen(out[0], "r");
	if (pid < 0 || !f || !fgets(line, sizeof line, f) ||
	    sscanf(line, "listening on http://127.0.0.1:%d", &port) != 1)
		die(program);
	fclose(f);
	return pid;
}

static void token_read(const char *data)
{
	char path[512];
	FILE *f;

	snprintf(path, sizeof path, "%s/admin.token", data);
	f = fopen(path, "r");
	if (!f || !fgets(token, sizeof token, f))
		die(path);
	token[strcspn(token, "\n")] = '\0';
	fclose(f);
}

static void prepare(struct connection *c)
{
	char body[512];

	snprintf(body, sizeof body,
		 "{\"name\":\"bench\",\"boot_id\":\"b\",\"backends\":[{\"arch\":\"snp\",\"kind\":\"emulated\"}],"
		 "\"pools\":[{\"pool\":\"local\",\"base_pfn\":0,\"frames\":%" PRIu64 "}]}",
		 pool_frames);
	call(c, "PUT", "/v1/hosts/" HOST, body, "201");
	snprintf(body, sizeof body,
		 "{\"id\":\"" VM "\",\"host\":\"" HOST
		 "\",\"arch\":\"snp\",\"slots\":[{\"slot\":0,\"base_gfn\":0,\"pages\":%" PRIu64 "}]}",
		 claim_pages);
	call(c, "POST", "/v1/vms", body, "201");
	snprintf(body, sizeof body,
		 "{\"id\":\"33333333-3333-4333-8333-333333333333\",\"host\":\"" HOST
		 "\",\"arch\":\"snp\",\"slots\":[{\"slot\":0,\"base_gfn\":0,\"pages\":%" PRIu64 "}]}",
		 vm_pages);
	call(c, "POST", "/v1/vms", body, "201");
	call(c, "POST", "/v1/vms/" VM "/lifecycle", "{\"event\":\"init_start\"}", "200");
	call(c, "POST", "/v1/vms/33333333-3333-4333-8333-333333333333/lifecycle", "{\"event\":\"init_start\"}", "200");
	call(c, "POST", "/v1/vms/33333333-3333-4333-8333-333333333333/lifecycle", "{\"event\":\"init_done\"}", "200");
}

/* BUILD/pagewardend, from BUILD/tests/bench/bench_server. */
static const char *own_server(const char *self)
{
	static char path[4096];
	const char *end = strstr(self, "/tests/bench/");

	snprintf(path, sizeof path, "%.*s/pagewardend", end ? (int)(end - self) : 1, end ? self : ".");
	return path;
}

int main(int argc, char **argv)
{
	static const struct load claims = { "claims_512_pages_64_clients", "\"rejected\":0", 64, next_claim };
	static const struct load lookups = { "who_owns_8_clients", "\"vm\":", 8, next_lookup };
	static const struct load batches = { "batch_1024_random_pages_1_client", "\"rejected\":0", 1, next_batch };
	double seconds = argc > 2 ? strtod(argv[2], NULL) : 5;
	struct connection *cs = calloc(CONNECTIONS_MAX, sizeof *cs);
	char data[] = "/tmp/pagewarden-bench-XXXXXX", remove[128];
	pid_t pid;

	if (!cs || !mkdtemp(data))
		die("a folder for the server");
	pid = server_start(argc > 1 ? argv[1] : own_server(argv[0]), data);
	token_read(data);
	for (int i = 0; i < CONNECTIONS_MAX; i++)
		connect_to(&cs[i]);
	prepare(&cs[0]);
	printf("%s\t%.0f\tclaims/s\n", claims.name, run(&claims, cs, seconds));
	printf("%s\t%.0f\tlookups/s\n", lookups.name, run(&lookups, cs, seconds));
	printf("%s\t%.0f\tpages/s\n", batches.name, BATCH * run(&batches, cs, seconds));
	fflush(stdout);
	kill(pid, SIGTERM);
	waitpid(pid, NULL, 0);
	snprintf(remove, sizeof remove, "rm -rf '%s'", data);
	free(cs);
	return system(remove) == 0 ? 0 : 1;
}
