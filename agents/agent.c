#include "agents/agent.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <sys/stat.h>
#include <time.h>
#include <unistd.h>

#include "agents/remote.h"
#include "agents/resync.h"
#include "engine/arch/law.h"

#define STOP_GRACE_MS 8000

uint64_t next_random(uint64_t *state)
{
	uint64_t z = (*state += 0x9e3779b97f4a7c15u);

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

unsigned backoff_ms(unsigned tries, uint64_t *random_state)
{
	unsigned cap = tries > 6 ? 10000 : 100u << tries;

	return (unsigned)(next_random(random_state) % cap) + 1;
}

uint64_t now_ms(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (uint64_t)t.tv_sec * 1000 + (uint64_t)t.tv_nsec / 1000000;
}

void random_bytes(void *out, size_t size)
{
	unsigned char *p = out;

	while (size) {
		ssize_t n = getrandom(p, size, 0);

		if (n < 0 && errno != EINTR)
			abort(); /* no randomness: no identity can be trusted */
		if (n <= 0)
			continue;
		p += n;
		size -= (size_t)n;
	}
}

enum pw_status worker_open(struct worker *w, struct agent *a, struct pw_err *err)
{
	struct client_options o = { .url = a->options->server,
				    .token = a->token,
				    .ca = a->options->ca,
				    .cert = a->options->cert,
				    .key = a->options->key,
				    .stop = &a->stop_now };

	w->agent = a;
	random_bytes(&o.jitter_seed, sizeof o.jitter_seed);
	return client_open(&o, &w->client, err);
}

void worker_close(struct worker *w)
{
	client_close(w->client);
	w->client = NULL;
}

/* What `name` in the state folder holds; made by `make` and kept there the first time. */
static enum pw_status kept_line(const char *dir, const char *name, void (*make)(char *out, size_t size), char *out,
				size_t size, struct pw_err *err)
{
	char *path = path_join(dir, name);
	enum pw_status st;

	if (!path)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a path");
	st = file_read_line(path, out, size, err);
	if (st == PW_NOT_FOUND) {
		make(out, size);
		st = file_write_line(path, out, err);
	}
	free(path);
	return st;
}

static void make_uuid(char *out, size_t size)
{
	uint8_t bytes[16];
	char text[PW_UUID_TEXT];
	struct pw_uuid id;

	random_bytes(bytes, sizeof bytes);
	id = pw_uuid_from_random(bytes);
	pw_uuid_format(&id, text);
	snprintf(out, size, "%s", text);
}

/* Without a state folder the host is told from machine-id and name, so that it is the same one next time. */
static void derive_host(const char *name, char out[PW_UUID_TEXT])
{
	char machine[64] = "";
	struct pw_err err;
	uint64_t mix = 0x70616765; /* any constant */
	struct pw_uuid id;
	uint8_t bytes[16];

	if (file_read_line("/etc/machine-id", machine, sizeof machine, &err) != PW_OK)
		machine[0] = '\0';
	for (const char *p = machine; *p; p++)
		mix = next_random(&mix) ^ (unsigned char)*p;
	for (const char *p = name; *p; p++)
		mix = next_random(&mix) ^ (unsigned char)*p;
	for (size_t i = 0; i < sizeof bytes; i++)
		bytes[i] = (uint8_t)next_random(&mix);
	id = pw_uuid_from_random(bytes);
	pw_uuid_format(&id, out);
}

char *agent_machine_path(const struct agent_options *o)
{
	return o->state ? path_join(o->state, "machine") : NULL;
}

/* The machine's state says whose it is: it never serves another host, whose ledger knows nothing of its guests. */
static enum pw_status keep_host(const char *dir, const char *given, struct pw_err *err)
{
	char kept[PW_UUID_TEXT + 2], *path = path_join(dir, "host-id");
	struct pw_uuid id;
	enum pw_status st;

	if (!path)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a path");
	st = file_read_line(path, kept, sizeof kept, err);
	if (st == PW_NOT_FOUND)
		st = file_write_line(path, given, err);
	else if (st == PW_OK && !pw_uuid_parse(kept, strlen(kept), &id))
		st = pw_fail(err, PW_STORAGE, "%s holds no UUID: write into it the id of the host whose state this is",
			     path);
	else if (st == PW_OK && strcmp(kept, given) != 0)
		st = pw_fail(
			err, PW_CONFLICT,
			"--host says %s, but the state is of host %s: give --host as it was, or another --state (%s)",
			given, kept, dir);
	free(path);
	return st;
}

static enum pw_status find_host(struct agent *a, struct pw_err *err)
{
	const struct agent_options *o = a->options;
	struct pw_uuid id;
	enum pw_status st;

	if (o->host) {
		pw_uuid_format(&o->host_id, a->host);
		return o->state ? keep_host(o->state, a->host, err) : PW_OK;
	}
	if (!o->state) {
		derive_host(a->name, a->host);
		return PW_OK;
	}
	st = kept_line(o->state, "host-id", make_uuid, a->host, sizeof a->host, err);
	if (st != PW_OK)
		return st;
	if (!pw_uuid_parse(a->host, strlen(a->host), &id))
		return pw_fail(err, PW_STORAGE,
			       "%s/host-id holds no UUID: write into it the id of the host whose state this is",
			       o->state);
	return PW_OK;
}

/* An emulated machine boots when its state begins; it outlives its agents. */
static enum pw_status find_boot(struct agent *a, struct pw_err *err)
{
	const struct agent_options *o = a->options;

	if (o->boot_id) {
		if (strlen(o->boot_id) >= sizeof a->boot_id)
			return pw_fail(err, PW_INVALID, "--boot-id is longer than %zu bytes", sizeof a->boot_id - 1);
		snprintf(a->boot_id, sizeof a->boot_id, "%s", o->boot_id);
		return PW_OK;
	}
	if (strcmp(a->info.kind, "emulated") != 0)
		return file_read_line("/proc/sys/kernel/random/boot_id", a->boot_id, sizeof a->boot_id, err);
	if (o->state)
		return kept_line(o->state, "boot-id", make_uuid, a->boot_id, sizeof a->boot_id, err);
	make_uuid(a->boot_id, sizeof a->boot_id);
	return PW_OK;
}

static enum pw_status open_seq(struct agent *a, struct pw_err *err)
{
	char *path = a->options->state ? path_join(a->options->state, "batch-seq") : NULL;
	struct timespec t;
	enum pw_status st;

	if (a->options->state && !path)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a path");
	clock_gettime(CLOCK_REALTIME, &t);
	st = seq_open(&a->seq, path, (uint64_t)t.tv_sec * 1000000 + (uint64_t)t.tv_nsec / 1000, err);
	free(path);
	return st;
}

static void init_locks(struct agent *a)
{
	pthread_condattr_t attr;

	pthread_mutex_init(&a->work, NULL);
	pthread_mutex_init(&a->mu, NULL);
	pthread_condattr_init(&attr);
	pthread_condattr_setclock(&attr, CLOCK_MONOTONIC);
	pthread_cond_init(&a->changed, &attr);
	pthread_condattr_destroy(&attr);
}

enum pw_status agent_init(struct agent *a, const struct agent_options *o, struct backend *b, struct pw_err *err)
{
	enum pw_status st;

	*a = (struct agent){ .options = o, .lease_seconds = 15 };
	b->ops->info(b, &a->info);
	if (o->name)
		snprintf(a->name, sizeof a->name, "%s", o->name);
	else if (gethostname(a->name, sizeof a->name - 1) != 0 || !a->name[0])
		snprintf(a->name, sizeof a->name, "host");
	st = find_host(a, err);
	if (st == PW_OK)
		st = find_boot(a, err);
	if (st == PW_OK)
		st = open_seq(a, err);
	if (st == PW_OK)
		st = heard_open(&a->heard, o->state, strcmp(a->info.kind, "emulated") == 0, err);
	if (st != PW_OK)
		return st;
	init_locks(a);
	own_init(&a->own);
	a->backend = b;
	return PW_OK;
}

void agent_release(struct agent *a)
{
	if (!a->backend)
		return;
	a->backend->ops->close(a->backend);
	seq_release(&a->seq);
	own_release(&a->own);
	heard_keep(&a->heard);
	heard_release(&a->heard);
	json_decref(a->unknown);
	pthread_cond_destroy(&a->changed);
	pthread_mutex_destroy(&a->mu);
	pthread_mutex_destroy(&a->work);
	if (a->token)
		explicit_bzero(a->token, strlen(a->token));
	free(a->token);
}

static json_t *backend_json(const struct agent *a)
{
	char *text;
	json_t *json;

	if (asprintf(&text, "{%s}", a->info.extra) < 0)
		return NULL;
	json = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
	free(text);
	if (!json)
		json = json_object();
	if (json_object_set_new(json, "arch", json_string(a->info.arch)) != 0 ||
	    json_object_set_new(json, "kind", json_string(a->info.kind)) != 0) {
		json_decref(json);
		return NULL;
	}
	return json;
}

json_t *agent_registration(const struct agent *a)
{
	json_t *backend = backend_json(a);

	if (!backend)
		return NULL;
	return json_pack("{s:s, s:s, s:[o], s:[{s:s, s:I, s:I, s:i}], s:s, s:I}", "name", a->name, "boot_id",
			 a->boot_id, "backends", backend, "pools", "pool", "local", "base_pfn",
			 (json_int_t)a->info.base_pfn, "frames", (json_int_t)a->info.frames, "page_shift",
			 (int)a->info.page_shift, "agent_version", AGENT_VERSION, "revision_seen",
			 (json_int_t)atomic_load(&a->heard.seen));
}

/* How far the ledger is. If it is behind what this agent saw, it comes from a backup. */
static enum pw_status take_revision(struct agent *a, json_t *host, struct pw_err *err)
{
	uint64_t revision, seen = atomic_load(&a->heard.seen);
	enum pw_status st = PW_OK;

	if (!json_u64_member(host, "ledger_revision", &revision))
		return PW_OK; /* an older server */
	if (json_is_true(json_object_get(host, "restored"))) {
		alog(ALOG_WARNING, "the ledger went back",
		     "it is at revision %" PRIu64 ", this agent saw %" PRIu64 ": no end that it shows is evidence",
		     revision, seen);
		pthread_mutex_lock(&a->work);
		st = heard_restart(&a->heard, revision, err);
		own_forget(&a->own, UINT64_MAX); /* its revisions will be others' */
		pthread_mutex_unlock(&a->work);
	}
	heard_see(&a->heard, revision);
	pthread_mutex_lock(&a->mu);
	a->watch_after = revision;
	pthread_mutex_unlock(&a->mu);
	return st;
}

static enum pw_status take_registration(struct agent *a, json_t *host, struct pw_err *err)
{
	uint64_t epoch, lease = 15;
	enum pw_status st = take_revision(a, host, err);

	if (st != PW_OK)
		return st;
	if (!json_u64_member(host, "epoch", &epoch))
		return pw_fail(err, PW_INVALID, "the server's answer to the registration has no epoch");
	if (!json_u64_member(host, "lease_seconds", &lease) || lease == 0 || lease > 86400)
		lease = 15;
	pthread_mutex_lock(&a->mu);
	a->epoch = epoch;
	a->lease_seconds = (unsigned)lease;
	pthread_mutex_unlock(&a->mu);
	return PW_OK;
}

/*
 * What an architecture has to say of its pages is taken from the agent of a host alone. A token that may list tokens is
 * an admin's: then the law's own operations are all that the ledger is told.
 */
static enum pw_status find_words(struct worker *w, struct pw_err *err)
{
	struct agent *a = w->agent;
	const struct arch_law *law = NULL;
	struct client_reply r = { 0 };
	enum pw_status st = client_call(w->client, "GET", "/v1/tokens?limit=1", NULL, NULL, 0, &r, err);
	enum arch arch;

	if (st == PW_OK) {
		alog(ALOG_INFO, "an admin's token",
		     "architectures' own states are not told: that takes a token of role agent");
	} else if (r.problem == PROBLEM_FORBIDDEN) {
		law = arch_from_name(a->info.arch, &arch) ? arch_laws[arch] : NULL;
		st = PW_OK;
	}
	client_reply_release(&r);
	if (st != PW_OK)
		return st;
	pthread_mutex_lock(&a->work);
	a->law = law;
	pthread_mutex_unlock(&a->work);
	return PW_OK;
}

enum pw_status agent_register(struct worker *w, struct pw_err *err)
{
	json_t *body = agent_registration(w->agent);
	struct client_reply r = { 0 };
	char path[96];
	enum pw_status st;

	if (!body)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the registration");
	snprintf(path, sizeof path, "/v1/hosts/%s", w->agent->host);
	st = client_call(w->client, "PUT", path, body, NULL, 0, &r, err);
	if (st == PW_OK)
		st = take_registration(w->agent, r.json, err);
	else if (r.status == 0 || r.status >= 500 || r.status == 429)
		st = PW_NETWORK;
	client_reply_release(&r);
	json_decref(body);
	return st == PW_OK ? find_words(w, err) : st;
}

static void wake_all(struct agent *a) /* mu is held */
{
	pthread_cond_broadcast(&a->changed);
}

void agent_stand_registered(struct agent *a)
{
	pthread_mutex_lock(&a->mu);
	a->standing = STANDING_REGISTERED;
	a->registrations++;
	__atomic_store_n(&a->poll_stop, (sig_atomic_t)a->stopping, __ATOMIC_RELAXED);
	wake_all(a);
	pthread_mutex_unlock(&a->mu);
}

void agent_stand_apart(struct agent *a, const char *why)
{
	pthread_mutex_lock(&a->mu);
	if (a->standing == STANDING_REGISTERED)
		alog(ALOG_WARNING, "standing apart", "%s", why);
	a->standing = STANDING_APART;
	__atomic_store_n(&a->poll_stop, 1, __ATOMIC_RELAXED);
	wake_all(a);
	pthread_mutex_unlock(&a->mu);
}

void agent_want_resync(struct agent *a)
{
	agent_stand_apart(a, "hardware and ledger have to be compared again");
}

void agent_stop(struct agent *a)
{
	pthread_mutex_lock(&a->mu);
	a->stopping = true;
	__atomic_store_n(&a->poll_stop, 1, __ATOMIC_RELAXED);
	__atomic_store_n(&a->stop_now, 1, __ATOMIC_RELAXED);
	wake_all(a);
	pthread_mutex_unlock(&a->mu);
	a->backend->ops->kick(a->backend);
}

static struct timespec after_ms(unsigned ms)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	t.tv_sec += ms / 1000;
	t.tv_nsec += (long)(ms % 1000) * 1000000;
	if (t.tv_nsec >= 1000000000) {
		t.tv_nsec -= 1000000000;
		t.tv_sec++;
	}
	return t;
}

void agent_grace(struct agent *a)
{
	struct timespec until = after_ms(STOP_GRACE_MS);

	pthread_mutex_lock(&a->mu);
	while (!a->ended && pthread_cond_timedwait(&a->changed, &a->mu, &until) == 0)
		continue;
	pthread_mutex_unlock(&a->mu);
	__atomic_store_n(&a->stop_late, 1, __ATOMIC_RELAXED);
}

void agent_end(struct agent *a)
{
	pthread_mutex_lock(&a->mu);
	a->ended = true;
	wake_all(a);
	pthread_mutex_unlock(&a->mu);
}

void agent_wait_stop(struct agent *a)
{
	pthread_mutex_lock(&a->mu);
	while (!a->stopping)
		pthread_cond_wait(&a->changed, &a->mu);
	pthread_mutex_unlock(&a->mu);
}

bool agent_is_stopping(struct agent *a)
{
	bool stopping;

	pthread_mutex_lock(&a->mu);
	stopping = a->stopping;
	pthread_mutex_unlock(&a->mu);
	return stopping;
}

bool agent_is_registered(struct agent *a)
{
	bool registered;

	pthread_mutex_lock(&a->mu);
	registered = a->standing == STANDING_REGISTERED;
	pthread_mutex_unlock(&a->mu);
	return registered;
}

uint64_t agent_epoch(struct agent *a)
{
	uint64_t epoch;

	pthread_mutex_lock(&a->mu);
	epoch = a->epoch;
	pthread_mutex_unlock(&a->mu);
	return epoch;
}

bool agent_pause(struct agent *a, unsigned ms)
{
	struct timespec until;
	bool stopping;

	if (ms > 100 && agent_is_stopping(a))
		ms = 100;
	until = after_ms(ms);
	pthread_mutex_lock(&a->mu);
	pthread_cond_timedwait(&a->changed, &a->mu, &until);
	stopping = a->stopping;
	pthread_mutex_unlock(&a->mu);
	return stopping;
}

static unsigned agent_lease_ms(struct agent *a)
{
	unsigned seconds;

	pthread_mutex_lock(&a->mu);
	seconds = a->lease_seconds;
	pthread_mutex_unlock(&a->mu);
	return seconds * 1000;
}

bool agent_come_back(struct worker *w)
{
	uint64_t random;
	struct pw_err err = { 0 };

	random_bytes(&random, sizeof random);
	for (unsigned tries = 0; !agent_is_stopping(w->agent); tries++) {
		enum pw_status st = agent_register(w, &err);

		if (st == PW_OK) {
			pthread_mutex_lock(&w->agent->work);
			st = resync_host(w, &err);
			pthread_mutex_unlock(&w->agent->work);
		}
		if (st == PW_OK) {
			agent_stand_registered(w->agent);
			alog(ALOG_INFO, "registered", "host %s epoch %" PRIu64, w->agent->host, agent_epoch(w->agent));
			return true;
		}
		alog(tries % 20 ? ALOG_DEBUG : ALOG_WARNING, "not registered", "try %u: %s", tries + 1, err.msg);
		agent_pause(w->agent, backoff_ms(tries, &random));
	}
	return false;
}

/* One heartbeat; how long to wait for the next, in ms. */
static unsigned beat(struct worker *w, unsigned *missed)
{
	struct agent *a = w->agent;
	json_t *body = json_pack("{s:s, s:I}", "boot_id", a->boot_id, "epoch", (json_int_t)agent_epoch(a));
	struct client_reply r = { 0 };
	struct pw_err err = { 0 };
	char path[96];
	enum pw_status st;

	snprintf(path, sizeof path, "/v1/hosts/%s/heartbeat", a->host);
	st = body ? client_call(w->client, "POST", path, body, NULL, 0, &r, &err) : PW_NO_MEMORY;
	json_decref(body);
	if (st == PW_OK) {
		*missed = 0;
	} else if (r.problem == PROBLEM_HOST_FENCED || r.problem == PROBLEM_HOST_NOT_FOUND) {
		agent_stand_apart(a, err.msg);
	} else {
		alog((*missed)++ ? ALOG_DEBUG : ALOG_WARNING, "heartbeat missed", "%s", err.msg);
	}
	client_reply_release(&r);
	return st == PW_OK ? agent_lease_ms(a) / 3 : 500;
}

void *agent_heartbeats(void *agent)
{
	struct agent *a = agent;
	struct worker w = { 0 };
	struct pw_err err = { 0 };
	unsigned missed = 0;
	uint64_t next = 0;

	if (worker_open(&w, a, &err) != PW_OK) {
		alog(ALOG_ERROR, "no heartbeats", "%s", err.msg);
		return NULL;
	}
	while (!agent_is_stopping(a)) {
		uint64_t now = now_ms();

		if (agent_is_registered(a) && now >= next)
			next = now_ms() + beat(&w, &missed);
		now = now_ms();
		agent_pause(a, next > now ? (unsigned)(next - now) : 200);
	}
	worker_close(&w);
	return NULL;
}
