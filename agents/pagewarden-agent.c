/* pagewarden-agent: runs a host's confidential-VM memory through a hardware backend, under the fleet's ledger. */
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agents/agent.h"
#include "agents/figures.h"
#include "agents/loadgen.h"
#include "agents/machine.h"
#include "agents/ops.h"
#include "agents/resync.h"
#include "agents/watch.h"

/* A machine whose state is gone has been switched off: whoever begins anew has another boot. */
static void forget_boot(const struct agent_options *o, const char *machine)
{
	char *path;

	if (!machine || access(machine, F_OK) == 0)
		return;
	path = path_join(o->state, "boot-id");
	if (path)
		unlink(path);
	free(path);
}

/* The last one, which is none, if there is no such backend. */
static const struct backend_kind *find_kind(const struct agent_options *o)
{
	const struct backend_kind *k = backend_kinds;

	for (; k->backend; k++) {
		if (strcmp(k->backend, o->backend) == 0 && (!k->arch || !o->arch || strcmp(k->arch, o->arch) == 0))
			break;
	}
	return k;
}

static enum pw_status open_backend(const struct agent_options *o, struct backend **out, struct pw_err *err)
{
	char *machine = agent_machine_path(o);
	struct backend_options bo = {
		.frames = o->frames,
		.base_pfn = o->base_pfn,
		.fault = o->fault,
		.state = machine,
		.seed = o->seed,
		.script = o->guest_script,
		.traced = o->metrics || o->log_level == ALOG_DEBUG,
	};
	enum pw_status st = PW_INVALID;
	const struct backend_kind *k = find_kind(o);

	forget_boot(o, machine);
	if (k->backend)
		st = backend_open(k, &bo, out, err);
	else
		pw_fail(err, PW_INVALID, "there is no backend %s %s", o->backend, o->arch ? o->arch : "");
	free(machine);
	if (st == PW_OK && o->fault) {
		struct backend *inner = *out;

		st = backend_faulty_wrap(inner, o->fault, out, err);
		if (st != PW_OK)
			inner->ops->close(inner);
	}
	return st;
}

/* One agent to a state folder: the lock is held until the process ends. */
static enum pw_status lock_state(const char *dir, struct pw_err *err)
{
	char *path;
	int fd;

	if (!dir)
		return PW_OK;
	if (mkdir(dir, 0700) != 0 && errno != EEXIST)
		return pw_fail(err, PW_STORAGE, "%s: %s", dir, strerror(errno));
	path = path_join(dir, "lock");
	if (!path)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a path");
	fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
	free(path);
	if (fd < 0)
		return pw_fail(err, PW_STORAGE, "%s/lock: %s", dir, strerror(errno));
	if (flock(fd, LOCK_EX | LOCK_NB) == 0)
		return PW_OK; /* fd stays open */
	close(fd);
	return pw_fail(err, PW_STORAGE, "%s is another agent's", dir);
}

static enum pw_status read_token(const char *file, const char *text, char **out, struct pw_err *err)
{
	char line[1024];
	enum pw_status st = PW_OK;

	*out = NULL;
	if (file)
		st = file_read_line(file, line, sizeof line, err);
	else if (text)
		snprintf(line, sizeof line, "%s", text);
	else
		return PW_OK;
	if (st == PW_OK)
		*out = strdup(line);
	explicit_bzero(line, sizeof line);
	if (st == PW_OK && !*out)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a token");
	return st;
}

static void block_signals(sigset_t *set)
{
	signal(SIGPIPE, SIG_IGN);
	sigemptyset(set);
	sigaddset(set, SIGTERM);
	sigaddset(set, SIGINT);
	pthread_sigmask(SIG_BLOCK, set, NULL); /* threads inherit it */
}

/* --once: register, resync, exit. */
static int run_once(struct agent *a)
{
	struct worker w = { 0 };
	struct pw_err err = { 0 };
	int code = EXIT_DONE;
	enum pw_status st = worker_open(&w, a, &err);

	if (st == PW_OK)
		st = agent_register(&w, &err);
	if (st != PW_OK)
		code = st == PW_NETWORK ? EXIT_UNREACHABLE : EXIT_REFUSED;
	if (st == PW_OK) {
		pthread_mutex_lock(&a->work);
		st = resync_host(&w, &err);
		pthread_mutex_unlock(&a->work);
		code = st == PW_OK ? EXIT_DONE : EXIT_UNREACHABLE;
	}
	if (st != PW_OK)
		fprintf(stderr, "pagewarden-agent: %s\n", err.msg);
	worker_close(&w);
	return code;
}

/* A registration that the server refuses at the start is a mistake of whoever started the agent. */
static int check_registration(struct agent *a)
{
	struct worker w = { 0 };
	struct pw_err err = { 0 };
	enum pw_status st = worker_open(&w, a, &err);

	if (st == PW_OK)
		st = agent_register(&w, &err);
	worker_close(&w);
	if (st == PW_OK || st == PW_NETWORK)
		return EXIT_DONE;
	fprintf(stderr, "pagewarden-agent: %s\n", err.msg);
	return EXIT_REFUSED;
}

/* Takes the signals that stop the agent, from before its first call to the server to its end. */
struct stopper {
	struct agent *agent;
	const sigset_t *signals;
	pthread_t id;
};

static void *stopper_main(void *arg)
{
	const struct stopper *s = arg;
	int number;

	sigwait(s->signals, &number);
	agent_stop(s->agent);
	agent_grace(s->agent);
	return NULL;
}

static int run(struct agent *a, const struct load_spec *load, const char *load_token)
{
	struct load_job job = { .agent = a, .spec = load, .token = load_token };
	struct {
		void *(*main)(void *);
		void *arg;
		bool wanted, started;
		pthread_t id;
	} threads[] = {
		{ operations_loop, a, true, false, 0 },      { agent_heartbeats, a, true, false, 0 },
		{ guests_loop, a, true, false, 0 },          { watch_loop, a, true, false, 0 },
		{ load_loop, &job, load != NULL, false, 0 }, { figures_loop, a, a->options->metrics != NULL, false, 0 },
	};
	int e = 0, code = check_registration(a);

	if (code != EXIT_DONE)
		return code;
	for (size_t i = 0; i < PW_ARRAY_LEN(threads) && e == 0; i++) {
		if (!threads[i].wanted)
			continue;
		e = pthread_create(&threads[i].id, NULL, threads[i].main, threads[i].arg);
		threads[i].started = e == 0;
	}
	if (e) {
		fprintf(stderr, "pagewarden-agent: starting a thread: %s\n", strerror(e));
		code = EXIT_BROKEN;
	} else {
		agent_wait_stop(a);
		alog(ALOG_INFO, "stopping", "%s", "by a signal");
	}
	agent_stop(a);
	for (size_t i = 0; i < PW_ARRAY_LEN(threads); i++)
		if (threads[i].started)
			pthread_join(threads[i].id, NULL);
	return code;
}

static int run_until_stopped(struct agent *a, const struct load_spec *load, const char *load_token,
			     const sigset_t *signals)
{
	struct stopper s = { .agent = a, .signals = signals };
	int code, e = pthread_create(&s.id, NULL, stopper_main, &s);

	if (e) {
		fprintf(stderr, "pagewarden-agent: starting a thread: %s\n", strerror(e));
		return EXIT_BROKEN;
	}
	code = a->options->once ? run_once(a) : run(a, load, load_token);
	agent_end(a);
	pthread_kill(s.id, SIGINT); /* if it still waits for one */
	pthread_join(s.id, NULL);
	return code;
}

/* All that was done, now that nobody does any more. */
static void last_figures(const struct agent *a)
{
	struct pw_err err;

	if (a->options->metrics && figures_write(a->options->metrics, a->host, a->backend, &err) != PW_OK)
		alog(ALOG_WARNING, "metrics are not written", "%s", err.msg);
}

static int fail_with(int code, const struct pw_err *err)
{
	fprintf(stderr, "pagewarden-agent: %s\n", err->msg);
	return code;
}

static int dump(const struct agent_options *o)
{
	const struct backend_kind *k = find_kind(o);
	char *path = agent_machine_path(o);
	struct pw_err err = { 0 };
	enum pw_status st;

	if (k->backend && k->machine && path)
		st = machine_dump(k->machine, path, stdout, &err);
	else
		st = pw_fail(&err, PW_INVALID, "--dump needs --state and an emulated machine (--arch)");
	free(path);
	if (st == PW_OK && fflush(stdout) != 0)
		st = pw_fail(&err, PW_STORAGE, "writing: %s", strerror(errno));
	return st == PW_OK ? EXIT_DONE : fail_with(st == PW_INVALID ? EXIT_USAGE : EXIT_BROKEN, &err);
}

int main(int argc, char **argv)
{
	struct agent_options o;
	struct agent a = { 0 };
	struct backend *b = NULL;
	struct load_spec load;
	struct pw_err err = { 0 };
	char *token = NULL, *load_token = NULL;
	sigset_t signals;
	enum pw_status st;
	int code = EXIT_BROKEN;

	if (options_parse(argc, argv, getenv, &o, &err) != PW_OK)
		return fail_with(EXIT_USAGE, &err);
	if (o.help || o.version) {
		if (o.help)
			options_usage(stdout);
		else
			puts("pagewarden-agent " AGENT_VERSION);
		return EXIT_DONE;
	}
	if (o.dump)
		return dump(&o);
	if (o.load && load_spec_parse(o.load, &load, &err) != PW_OK)
		return fail_with(EXIT_USAGE, &err);
	alog_set_level(o.log_level);
	block_signals(&signals);
	if (lock_state(o.state, &err) != PW_OK || read_token(o.token_file, o.token, &token, &err) != PW_OK ||
	    read_token(o.load_token_file, NULL, &load_token, &err) != PW_OK) {
		code = fail_with(EXIT_BROKEN, &err);
		goto out;
	}
	st = open_backend(&o, &b, &err);
	if (st != PW_OK) {
		code = fail_with(st == PW_INVALID ? EXIT_USAGE : EXIT_NO_BACKEND, &err);
		goto out;
	}
	if (agent_init(&a, &o, b, &err) != PW_OK) {
		code = fail_with(EXIT_BROKEN, &err);
		b->ops->close(b);
		goto out;
	}
	a.token = token;
	token = NULL;
	code = run_until_stopped(&a, o.load ? &load : NULL, load_token, &signals);
	last_figures(&a);
	agent_release(&a);
out:
	if (load_token)
		explicit_bzero(load_token, strlen(load_token));
	if (token)
		explicit_bzero(token, strlen(token));
	free(load_token);
	free(token);
	return code;
}
