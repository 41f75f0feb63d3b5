#include "agents/exits.h"

#include <criterion/criterion.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agents/machine.h"
#include "engine/arch/law.h"

/* An agent with an emulated pKVM host, and a server that counts what it is told and answers as a test wants. */
#define FRAMES 64

static const struct pw_uuid A = { { 1 } }, B = { { 2 } };
static struct pw_err err;

static struct {
	int listener, log;
	pthread_t thread;
	pthread_mutex_t lock;
	int answer;   /* HTTP status */
	unsigned put; /* requests */
	char head[1024], body[4096];

	char url[64];
	struct agent_options options;
	struct agent agent;
	struct worker worker;
} t;

static bool read_request(int fd, char *buf, size_t size)
{
	size_t used = 0, len;
	char *end = NULL, *length;

	do {
		ssize_t n = read(fd, buf + used, size - 1 - used);

		if (n <= 0)
			return false;
		used += (size_t)n;
		buf[used] = '\0';
		end = strstr(buf, "\r\n\r\n");
		length = strcasestr(buf, "Content-Length: ");
		len = length ? strtoul(length + 16, NULL, 10) : 0;
	} while (!end || (size_t)(buf + used - end - 4) < len);
	snprintf(t.head, sizeof t.head, "%.*s", (int)strcspn(buf, "\r"), buf);
	snprintf(t.body, sizeof t.body, "%s", end + 4);
	return true;
}

static void *server(void *arg)
{
	static char buf[8192];
	char text[256];
	int fd;

	while ((fd = accept(t.listener, NULL, NULL)) >= 0) {
		while (read_request(fd, buf, sizeof buf)) {
			pthread_mutex_lock(&t.lock);
			t.put++;
			snprintf(text, sizeof text, "HTTP/1.1 %d X\r\nContent-Length: 2\r\n\r\n{}", t.answer);
			pthread_mutex_unlock(&t.lock);
			if (write(fd, text, strlen(text)) < 0)
				break;
		}
		close(fd);
	}
	return NULL;
}

static void start_server(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof at;

	t.answer = 200;
	t.listener = socket(AF_INET, SOCK_STREAM, 0);
	cr_assert(bind(t.listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(t.listener, 8) == 0);
	cr_assert_eq(getsockname(t.listener, (struct sockaddr *)&at, &size), 0);
	snprintf(t.url, sizeof t.url, "http://127.0.0.1:%d", ntohs(at.sin_port));
	pthread_mutex_init(&t.lock, NULL);
	cr_assert_eq(pthread_create(&t.thread, NULL, server, NULL), 0);
}

static void make_agent(const struct machine_model *model)
{
	struct backend_options bo = { .frames = FRAMES };
	struct backend *b;

	cr_assert_eq(machine_open(model, &bo, &b, &err), PW_OK, "%s", err.msg);
	t.options = (struct agent_options){ .server = t.url, .host = "x", .host_id = A, .boot_id = "boot-1" };
	cr_assert_eq(agent_init(&t.agent, &t.options, b, &err), PW_OK, "%s", err.msg);
	t.agent.law = arch_laws[ARCH_PKVM];
	t.agent.epoch = 7;
	agent_stand_registered(&t.agent);
	cr_assert_eq(worker_open(&t.worker, &t.agent, &err), PW_OK, "%s", err.msg);
}

/* Both VMs run. */
static void begin(const struct machine_model *model)
{
	struct slot s = { 0, 0, 16 };

	start_server();
	make_agent(model);
	for (int i = 0; i < 2; i++) {
		struct backend_vm_spec spec = { .id = i ? B : A, .slots = &s, .slot_count = 1 };
		struct backend *b = t.agent.backend;

		cr_assert_eq(b->ops->create_vm(b, &spec, &err), PW_OK, "%s", err.msg);
		cr_assert_eq(b->ops->vm_event(b, &spec.id, VM_INIT_START, &err), PW_OK, "%s", err.msg);
		cr_assert_eq(b->ops->vm_event(b, &spec.id, VM_INIT_DONE, &err), PW_OK, "%s", err.msg);
	}
	t.log = memfd_create("log", 0);
	cr_assert(t.log >= 0 && dup2(t.log, STDERR_FILENO) == STDERR_FILENO);
}

static void end(void)
{
	worker_close(&t.worker);
	agent_release(&t.agent);
	shutdown(t.listener, SHUT_RDWR);
	pthread_join(t.thread, NULL);
	close(t.listener);
}

static void share(const struct pw_uuid *vm, uint64_t gfn)
{
	struct backend *b = t.agent.backend;

	cr_assert_eq(b->ops->share(b, vm, gfn, 1, &err), PW_OK, "%s", err.msg);
}

static unsigned requests(void)
{
	unsigned n;

	pthread_mutex_lock(&t.lock);
	n = t.put;
	pthread_mutex_unlock(&t.lock);
	return n;
}

/* Reports; how many requests that made. */
static unsigned report(const struct pw_uuid *vm)
{
	unsigned before = requests();

	exits_report(&t.worker, vm);
	return requests() - before;
}

static unsigned logged(void)
{
	static char text[1 << 16];
	unsigned n = 0;
	ssize_t len = pread(t.log, text, sizeof text - 1, 0);

	text[len > 0 ? len : 0] = '\0';
	for (const char *at = text; (at = strstr(at, "what vCPUs show is not told")); at++)
		n++;
	return n;
}

TestSuite(exits, .timeout = 30);

Test(exits, are_told_when_they_differ_from_the_last_that_was_told)
{
	begin(&machine_pkvm);
	cr_expect_eq(report(&A), 1);
	cr_expect_str_eq(t.head, "PUT /v1/vms/01000000-0000-0000-0000-000000000000/vcpus/0 HTTP/1.1");
	cr_expect_str_eq(t.body, "{\"boot_id\":\"boot-1\",\"epoch\":7,\"exit\":\"WFI, WFE\","
				 "\"items\":{\"pstate\":\"0x105\",\"ESR_EL2\":\"0x6000000\"}}");
	cr_expect_eq(report(&A), 0);
	cr_expect_eq(report(&B), 1, "another VM, the same exit");
	cr_expect_eq(report(&A) + report(&B), 0);
	share(&A, 3);
	cr_expect_eq(report(&A), 1);
	share(&A, 4);
	cr_expect_eq(report(&A), 1, "the same exit, another value");
	cr_expect_eq(report(&A) + report(&B), 0);
	exits_forget(&t.agent, &A);
	cr_expect_eq(report(&A), 1);
	cr_expect_eq(report(&B), 0);
	cr_expect_eq(logged(), 0);
	end();
}

Test(exits, that_are_refused_are_logged_once_and_told_with_the_next_report)
{
	static const int answers[] = { 404, 409, 400, 405 };

	begin(&machine_pkvm);
	for (size_t i = 0; i < PW_ARRAY_LEN(answers); i++) {
		t.answer = answers[i];
		cr_expect_eq(report(&A), 1, "%d: not told yet, and asked for once", answers[i]);
	}
	cr_expect_eq(logged(), 1);
	t.answer = 200;
	cr_expect_eq(report(&A), 1);
	cr_expect_eq(report(&A), 0);
	t.answer = 404;
	share(&A, 3);
	cr_expect_eq(report(&A), 1);
	cr_expect_eq(logged(), 2, "it had worked meanwhile");
	end();
}

Test(exits, are_no_business_of_an_admins_token_nor_of_a_vm_without_any)
{
	begin(&machine_pkvm);
	cr_expect_eq(report(&(struct pw_uuid){ { 9 } }), 0, "no such VM");
	t.agent.law = NULL;
	cr_expect_eq(report(&A), 0);
	cr_expect_eq(logged(), 0);
	end();
}

Test(exits, of_other_architectures_are_not_asked_for)
{
	begin(&machine_pef);
	cr_expect_eq(report(&A), 0);
	end();
}
