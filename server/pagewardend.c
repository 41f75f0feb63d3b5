#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <systemd/sd-daemon.h>
#include <time.h>
#include <unistd.h>

#include "server/http.h"
#include "server/log.h"
#include "server/service.h"
#include "server/starting.h"
#include "store/store.h"

#ifndef PW_VERSION
#define PW_VERSION "0.1.0"
#endif
#define LEFT_MS     1000 /* to send what is said to requests that cannot be waited for */
#define STOP_MORE_S 35   /* after stop-seconds, half of them and last-picture-seconds the process ends in any case */

enum exit_code { EXIT_DONE = 0, EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_DAMAGE = 5 };

struct server {
	struct config config;
	int argc;
	char *const *argv;
	struct service *service;
	struct http *http;
	char *address_path;
};

static int complain(const struct pw_err *err, int code)
{
	fprintf(stderr, "pagewardend: %s\n", err->msg);
	return code;
}

static int verify(const struct config *c)
{
	struct verify_report report;
	struct pw_err err = { 0 };
	bool damaged;

	if (store_verify(c->data, NULL, &report, &err) != PW_OK)
		return complain(&err, EXIT_FAILED);
	damaged = report.broken || report.picture == PICTURE_DAMAGED;
	printf("%s rows=%" PRIu64 " oldest=%" PRIu64 " newest=%" PRIu64 " head=", damaged ? "broken" : "ok",
	       report.rows, report.oldest, report.newest);
	for (size_t i = 0; i < sizeof report.head; i++)
		printf("%02x", report.head[i]);
	if (report.broken)
		printf(" broken_at=%" PRIu64, report.broken);
	printf(" picture=%s picture_revision=%" PRIu64, picture_verdict_name(report.picture), report.picture_revision);
	if (report.picture == PICTURE_DAMAGED)
		printf(" (%s)", report.picture_fault);
	printf("\n");
	if (fflush(stdout) != 0)
		return EXIT_FAILED;
	return damaged ? EXIT_DAMAGE : EXIT_DONE;
}

static enum pw_status make_data_dir(const char *path, struct pw_err *err)
{
	struct stat info;

	if (mkdir(path, 0700) != 0 && errno != EEXIST)
		return pw_fail(err, PW_STORAGE, "cannot make the data directory %s: %s; name another with --data", path,
			       strerror(errno));
	if (stat(path, &info) != 0 || !S_ISDIR(info.st_mode) || access(path, R_OK | W_OK | X_OK) != 0)
		return pw_fail(err, PW_STORAGE, "--data %s is not a directory that this user may write", path);
	return PW_OK;
}

static void raise_file_limit(const struct config *c)
{
	struct rlimit limit;
	rlim_t want = (rlim_t)c->connections + c->reserve_connections + 512;

	if (getrlimit(RLIMIT_NOFILE, &limit) != 0)
		return;
	limit.rlim_cur = limit.rlim_max;
	(void)setrlimit(RLIMIT_NOFILE, &limit);
	if (limit.rlim_cur < want)
		log_detail(LOG_WARNING_, "fewer files may be open than connections need",
			   "RLIMIT_NOFILE is %ju, wanted %ju", (uintmax_t)limit.rlim_cur, (uintmax_t)want);
}

/* Whoever reads the file sees the old address, this one, or none: never half of one. */
/* A file of an earlier server that cannot be replaced is removed: it would name the wrong place. */
static enum pw_status write_address(struct server *s, struct pw_err *err)
{
	char *fresh = NULL;
	enum pw_status st = PW_OK;
	FILE *f;

	if (asprintf(&s->address_path, "%s/address", s->config.data) < 0) {
		s->address_path = NULL;
		return pw_fail(err, PW_NO_MEMORY, "no memory at start-up");
	}
	if (asprintf(&fresh, "%s.new", s->address_path) < 0)
		return pw_fail(err, PW_NO_MEMORY, "no memory at start-up");
	f = fopen(fresh, "we");
	if (!f || fprintf(f, "%s\n", http_address(s->http)) < 0)
		st = pw_fail(err, PW_STORAGE, "cannot write %s: %s", fresh, strerror(errno));
	if (f && fclose(f) != 0 && st == PW_OK)
		st = pw_fail(err, PW_STORAGE, "cannot write %s: %s", fresh, strerror(errno));
	if (st == PW_OK && rename(fresh, s->address_path) != 0)
		st = pw_fail(err, PW_STORAGE, "cannot rename %s: %s", fresh, strerror(errno));
	if (st != PW_OK) { /* the address is on stdout too: a full disk must not keep anyone from reading */
		log_line(LOG_WARNING_, "no file names this server's address", "error", err->msg, NULL);
		(void)unlink(s->address_path);
		(void)unlink(fresh);
	}
	free(fresh);
	return PW_OK;
}

static void block_signals(sigset_t *ours)
{
	signal(SIGPIPE, SIG_IGN);
	signal(SIGXFSZ, SIG_IGN);
	sigemptyset(ours);
	sigaddset(ours, SIGTERM);
	sigaddset(ours, SIGINT);
	sigaddset(ours, SIGHUP);
	sigaddset(ours, SIGUSR1); /* of server/starting.c alone */
	pthread_sigmask(SIG_BLOCK, ours, NULL);
	sigdelset(ours, SIGUSR1);
}

/* From here on the next SIGINT kills: nothing that was acknowledged can be lost. */
static void let_interrupt_kill(void)
{
	sigset_t interrupt;

	sigemptyset(&interrupt);
	sigaddset(&interrupt, SIGINT);
	signal(SIGINT, SIG_DFL);
	pthread_sigmask(SIG_UNBLOCK, &interrupt, NULL);
}

static void reload_log_level(struct server *s)
{
	struct config fresh;
	struct pw_err err = { 0 };

	if (config_parse(s->argc, s->argv, environ, &fresh, &err) != PW_OK) {
		log_line(LOG_ERROR_, "configuration not read again: the old one stays", "detail", err.msg, NULL);
		return;
	}
	log_set_level(fresh.log_level);
	config_release(&fresh);
}

static void reload(struct server *s)
{
	struct pw_err err = { 0 };
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	sd_notifyf(0, "RELOADING=1\nMONOTONIC_USEC=%lld", (long long)now.tv_sec * 1000000 + now.tv_nsec / 1000);
	reload_log_level(s);
	if (http_reload_tls(s->http, &err) != PW_OK)
		log_line(LOG_ERROR_, "TLS certificate not read again: the old one stays", "detail", err.msg, NULL);
	else
		log_line(LOG_INFO_, "reloaded log level and TLS certificate", NULL);
	sd_notify(0, "READY=1");
}

/* Returns the signal that ends the server. */
static int serve(struct server *s, const sigset_t *ours)
{
	for (;;) {
		int signal_number = sigwaitinfo(ours, NULL);

		if (signal_number == SIGTERM || signal_number == SIGINT)
			return signal_number;
		if (signal_number == SIGHUP)
			reload(s);
	}
}

static int64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC, &now);
	return (int64_t)now.tv_sec * 1000 + now.tv_nsec / 1000000;
}

static bool wait_for_answers(const struct http *h, unsigned ms)
{
	const struct timespec tick = { .tv_nsec = 2000000 };
	int64_t end = now_ms() + ms; /* on a busy machine a tick lasts long: they are not counted */

	while (http_active(h) && now_ms() < end)
		nanosleep(&tick, NULL);
	return http_active(h) == 0;
}

static void address_forget(struct server *s)
{
	if (s->address_path && s->http)
		(void)unlink(s->address_path);
	free(s->address_path);
	s->address_path = NULL;
}

/* Nothing that was acknowledged can be lost, so this is as good an end as any. */
static void end_now(int signal_number)
{
	static const char why[] = "pagewardend: stopped without a last picture: the next start reads more journal\n";

	(void)!write(STDERR_FILENO, why, sizeof why - 1);
	_exit(EXIT_DONE);
}

static void limit_stop(const struct server *s)
{
	const struct config *c = &s->config;
	unsigned bound = c->stop_seconds + c->stop_seconds / 2 + c->last_picture_seconds + STOP_MORE_S;
	struct sigaction act = { .sa_handler = end_now };

	sigaction(SIGALRM, &act, NULL);
	alarm(bound);
	sd_notifyf(0, "EXTEND_TIMEOUT_USEC=%llu", (bound + 1) * 1000000ULL);
}

/*
 * Answers under way have stop-seconds; then what was not begun is refused, and what is being decided or committed has
 * half as long again. A change that takes longer is never waited for: it is answered, and the process ends around it.
 */
static void stop_http(struct server *s)
{
	unsigned ms = s->config.stop_seconds * 1000, left = 0;
	enum pw_problem p;
	const char *why;

	if (!wait_for_answers(s->http, ms)) {
		log_detail(LOG_WARNING_, "requests cut off at the stop", "%u", http_active(s->http));
		service_cut(s->service);
		(void)wait_for_answers(s->http, ms / 2);
		p = service_left(s->service, &why);
		left = http_give_up(s->http, p, why);
		if (left)
			(void)wait_for_answers(s->http, LEFT_MS);
	}
	http_stop(s->http);
	if (left) {
		address_forget(s);
		end_now(SIGALRM);
	}
}

static enum pw_status start(struct server *s, struct pw_err *err)
{
	struct starting watch = { 0 };
	enum pw_status st = make_data_dir(s->config.data, err);

	if (st == PW_OK)
		st = service_open(&s->config, &s->service, err);
	if (st == PW_OK)
		st = http_start(&s->config, s->service, &s->http, err);
	if (st == PW_OK)
		st = starting_begin(&watch, s->service, err);
	if (st == PW_OK)
		st = service_start(s->service, err);
	starting_end(&watch);
	if (st == PW_OK)
		st = write_address(s, err);
	return st;
}

/* Takes down what start has set up, however far it came. */
static enum pw_status stop(struct server *s, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	if (s->http)
		http_quiesce(s->http);
	if (s->service)
		service_drain(s->service);
	if (s->http)
		stop_http(s);
	if (s->service)
		st = service_close(s->service, err);
	address_forget(s);
	return st;
}

static void announce(const struct server *s)
{
	printf("listening on %s\n", http_address(s->http));
	fflush(stdout);
	log_line(LOG_INFO_, "listening", "address", http_address(s->http), "data", s->config.data, "version",
		 PW_VERSION, NULL);
	sd_notifyf(0, "READY=1\nSTATUS=listening on %s", http_address(s->http));
}

static int run(struct server *s)
{
	struct pw_err err = { 0 };
	sigset_t ours;
	int cause;

	umask(077);
	block_signals(&ours);
	log_set_level(s->config.log_level);
	raise_file_limit(&s->config);
	if (start(s, &err) != PW_OK) {
		struct pw_err at_stop = { 0 };

		if (stop(s, &at_stop) != PW_OK)
			log_line(LOG_ERROR_, "stopping after the failed start failed", "detail", at_stop.msg, NULL);
		return complain(&err, EXIT_FAILED);
	}
	announce(s);
	cause = serve(s, &ours);
	log_line(LOG_INFO_, "stopping", "signal", cause == SIGINT ? "SIGINT" : "SIGTERM", NULL);
	sd_notify(0, "STOPPING=1");
	let_interrupt_kill();
	limit_stop(s);
	if (stop(s, &err) != PW_OK)
		return complain(&err, EXIT_FAILED);
	log_line(LOG_INFO_, "stopped", NULL);
	return EXIT_DONE;
}

static int act(struct server *s)
{
	if (s->config.help)
		config_usage(stdout);
	else if (s->config.version)
		printf("pagewardend %s\n", PW_VERSION);
	else if (s->config.dump)
		config_print(&s->config, stdout);
	else if (s->config.limits)
		config_limits(stdout);
	else if (s->config.verify)
		return verify(&s->config);
	else
		return run(s);
	return fflush(stdout) == 0 ? EXIT_DONE : EXIT_FAILED;
}

int main(int argc, char **argv)
{
	struct server s = { .argc = argc, .argv = argv };
	struct pw_err err = { 0 };
	int code;

	if (config_parse(argc, argv, environ, &s.config, &err) != PW_OK)
		return complain(&err, err.status == PW_INVALID ? EXIT_USAGE : EXIT_FAILED);
	code = act(&s);
	config_release(&s.config);
	return code;
}
