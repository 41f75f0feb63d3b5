#include "agents/loadgen.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/remote.h"

#define PROGRESS_MS 5000
#define LOAD_NAME   "load-"

enum ride_state { RIDE_ABSENT, RIDE_IDLE, RIDE_WAITING };
struct ride { /* one VM of the generator */
	struct load_vm model;
	enum ride_state state;
	char vm[PW_UUID_TEXT], op[PW_UUID_TEXT];
	struct load_action action;
	uint64_t not_before; /* ms: after a failure it rests */
};

struct load {
	struct agent *agent;
	struct client *client;
	const struct load_spec *spec;
	struct ride *rides; /* owned, spec->vms */
	uint64_t random;
	uint64_t posted, done, failed, pressed, booted, progress_at, since;
};

static bool copy_id(json_t *json, char out[PW_UUID_TEXT])
{
	struct pw_uuid id;

	if (!json_uuid_member(json, "id", &id))
		return false;
	pw_uuid_format(&id, out);
	return true;
}

/* One call; true: it was answered with success. *status is the HTTP status, 0 without an answer. */
static bool call(struct load *l, const char *method, const char *path, json_t *body, unsigned wait_s, json_t **answer,
		 unsigned *status)
{
	struct client_reply r = { 0 };
	struct pw_err err = { 0 };
	enum pw_status st = client_call(l->client, method, path, body, NULL, wait_s, &r, &err);

	json_decref(body);
	if (st != PW_OK)
		alog(ALOG_DEBUG, "load: a call failed", "%s %s: %s", method, path, err.msg);
	if (answer)
		*answer = st == PW_OK ? json_incref(r.json) : NULL;
	if (status)
		*status = r.status;
	client_reply_release(&r);
	return st == PW_OK;
}

static void rest(struct ride *r, unsigned ms)
{
	r->not_before = now_ms() + ms;
}

static void create(struct load *l, struct ride *r)
{
	json_t *answer = NULL;
	char name[32];
	json_t *body;

	snprintf(name, sizeof name, LOAD_NAME "%zu", (size_t)(r - l->rides));
	body = json_pack("{s:s, s:s, s:s, s:[{s:i, s:i, s:I}]}", "name", name, "host", l->agent->host, "arch",
			 l->agent->info.arch, "slots", "slot", 0, "base_gfn", 0, "pages", (json_int_t)r->model.pages);
	if (!body || !call(l, "POST", "/v1/vms", body, 0, &answer, NULL) || !copy_id(answer, r->vm))
		rest(r, 1000);
	else
		r->state = RIDE_IDLE;
	json_decref(answer);
}

static json_t *params_of(struct load *l, const struct ride *r)
{
	const struct load_action *a = &r->action;

	if (a->kind == OPERATION_TERMINATE)
		return json_object();
	if (a->kind == OPERATION_LAUNCH && r->model.guest == GUEST_REAL)
		return json_pack("{s:I}", "resident", (json_int_t)r->model.pages);
	if (a->kind == OPERATION_LAUNCH)
		return json_pack("{s:I, s:[[i, I]]}", "resident",
				 (json_int_t)(r->model.pages - r->model.bounce * LOAD_UNIT), "shared", 0,
				 (json_int_t)(r->model.bounce * LOAD_UNIT));
	if (a->kind == OPERATION_UNSHARE)
		return json_pack("{s:I, s:I, s:b}", "gfn", (json_int_t)a->gfn, "count", (json_int_t)a->count,
				 "resident", (int)a->resident);
	return json_pack("{s:I, s:I}", "gfn", (json_int_t)a->gfn, "count", (json_int_t)a->count);
}

static void order(struct load *l, struct ride *r)
{
	json_t *answer = NULL, *body;
	char path[96];
	unsigned status = 0;

	r->action = load_vm_next(&r->model, &l->random);
	snprintf(path, sizeof path, "/v1/vms/%s/operations", r->vm);
	body = json_pack("{s:s, s:o}", "kind", operation_kind_name(r->action.kind), "params", params_of(l, r));
	if (body && call(l, "POST", path, body, 0, &answer, &status) && copy_id(answer, r->op)) {
		r->state = RIDE_WAITING;
		l->posted++;
	} else if (status == 404) {
		r->model.running = false;
		r->state = RIDE_ABSENT; /* someone deleted it */
	} else {
		rest(r, 500);
	}
	json_decref(answer);
}

/* Away with a VM that has ended (or never began); a new one takes its place. */
static void bury(struct load *l, struct ride *r)
{
	char path[96];

	snprintf(path, sizeof path, "/v1/vms/%s", r->vm);
	if (!call(l, "DELETE", path, NULL, 0, NULL, NULL))
		rest(r, 1000);
	r->model.running = false;
	r->state = RIDE_ABSENT;
}

static bool is_pressure(json_t *op)
{
	return json_is_true(json_object_get(json_object_get(op, "problem"), "retryable"));
}

static bool learn_run(void *ctx, json_t *item)
{
	struct load_vm *model = ctx;
	const char *state = json_string_value(json_object_get(item, "state"));
	uint64_t gfn, count;

	if (!state || !json_u64_member(item, "gfn", &gfn) || !json_u64_member(item, "count", &count) ||
	    gfn >= model->pages || count > model->pages - gfn)
		return false;
	if (strcmp(state, "shared") == 0)
		load_vm_learn(model, gfn, count, UNIT_SHARED);
	if (strcmp(state, "secure") == 0)
		load_vm_learn(model, gfn, count, json_is_true(json_object_get(item, "resident")) ? UNIT_IN : UNIT_OUT);
	return true;
}

/* The guest itself, or its host, changed what we believed: asks the ledger. A VM that is no longer secure ends. */
static void learn(struct load *l, struct ride *r)
{
	struct pw_err err;
	char path[160];

	load_vm_forget(&r->model);
	snprintf(path, sizeof path, "/v1/vms/%s/gfns?gfn=0&count=%" PRIu64 "&limit=1000", r->vm, r->model.pages);
	if (client_list(l->client, path, learn_run, &r->model, &err) != PW_OK)
		r->model.age = r->model.life;
}

static void ended(struct load *l, struct ride *r, json_t *op, bool succeeded)
{
	enum load_end end = succeeded ? LOAD_DONE : is_pressure(op) ? LOAD_PRESSED : LOAD_FAILED;

	l->done += succeeded;
	l->failed += end == LOAD_FAILED;
	l->pressed += end == LOAD_PRESSED;
	r->state = RIDE_IDLE;
	load_vm_ended(&r->model, &r->action, end);
	if (!succeeded)
		rest(r, r->action.kind == OPERATION_LAUNCH ? 2000 : 50);
	if (succeeded && r->action.kind == OPERATION_LAUNCH)
		l->booted++;
	if (end == LOAD_FAILED && r->model.running)
		learn(l, r);
	if (r->action.kind == OPERATION_TERMINATE && succeeded)
		bury(l, r);
}

static bool look(struct load *l, struct ride *r, unsigned wait_s)
{
	json_t *op = NULL;
	char path[112];
	const char *state;
	unsigned status = 0;
	bool over = false;

	snprintf(path, sizeof path, "/v1/operations/%s?wait=%u", r->op, wait_s);
	if (call(l, "GET", path, NULL, wait_s, &op, &status)) {
		state = json_string_value(json_object_get(op, "state"));
		over = state && strcmp(state, "pending") != 0 && strcmp(state, "running") != 0;
		if (over)
			ended(l, r, op, strcmp(state, "succeeded") == 0);
	} else if (status == 404) {
		r->state = RIDE_IDLE;
		r->model.age = r->model.life;
		over = true;
	}
	json_decref(op);
	return over;
}

/* A step of one VM; true if it began something new (which the rate counts). */
static bool step(struct load *l, struct ride *r)
{
	switch (r->state) {
	case RIDE_ABSENT: create(l, r); return false;
	case RIDE_WAITING:
		if (!look(l, r, 0) || r->state != RIDE_IDLE || now_ms() < r->not_before)
			return false;
		order(l, r);
		return true;
	case RIDE_IDLE: order(l, r); return true;
	}
	return false;
}

static void progress(struct load *l)
{
	uint64_t now = now_ms(), running = 0;

	if (now < l->progress_at)
		return;
	for (uint64_t i = 0; i < l->spec->vms; i++)
		running += l->rides[i].model.running;
	alog(ALOG_INFO, "load",
	     "vms=%" PRIu64 " running=%" PRIu64 " booted=%" PRIu64 " ops=%" PRIu64 " ok=%" PRIu64 " pressed=%" PRIu64
	     " failed=%" PRIu64 " per_second=%" PRIu64,
	     l->spec->vms, running, l->booted, l->posted, l->done, l->pressed, l->failed,
	     (l->posted - l->since) * 1000 / (PROGRESS_MS + now - l->progress_at));
	l->since = l->posted;
	l->progress_at = now + PROGRESS_MS;
}

/* VMs that an earlier run left behind on this host. */
struct leftovers {
	char (*ids)[PW_UUID_TEXT];
	size_t n, cap;
};

static bool see_leftover(void *ctx, json_t *item)
{
	struct leftovers *left = ctx;
	const char *name = json_string_value(json_object_get(item, "name"));

	if (!name || strncmp(name, LOAD_NAME, sizeof LOAD_NAME - 1) != 0 || left->n == left->cap)
		return true;
	left->n += copy_id(item, left->ids[left->n]);
	return true;
}

static void clear_one(struct load *l, const char *vm)
{
	json_t *answer = NULL, *op = NULL;
	char path[112], id[PW_UUID_TEXT];
	bool ok;

	snprintf(path, sizeof path, "/v1/vms/%s/operations", vm);
	ok = call(l, "POST", path, json_pack("{s:s}", "kind", "terminate"), 0, &answer, NULL) && copy_id(answer, id);
	json_decref(answer);
	if (!ok)
		return;
	snprintf(path, sizeof path, "/v1/operations/%s?wait=10", id);
	ok = call(l, "GET", path, NULL, 10, &op, NULL);
	json_decref(op);
	if (!ok)
		return;
	snprintf(path, sizeof path, "/v1/vms/%s", vm);
	call(l, "DELETE", path, NULL, 0, NULL, NULL);
}

static void clear_leftovers(struct load *l)
{
	char ids[256][PW_UUID_TEXT], path[96];
	struct leftovers left = { ids, 0, PW_ARRAY_LEN(ids) };
	struct pw_err err;

	snprintf(path, sizeof path, "/v1/vms?host=%s&limit=1000", l->agent->host);
	if (client_list(l->client, path, see_leftover, &left, &err) != PW_OK)
		return;
	for (size_t i = 0; i < left.n && !agent_is_stopping(l->agent); i++)
		clear_one(l, ids[i]);
}

static void drive(struct load *l)
{
	uint64_t begun = 0, start = now_ms();

	l->progress_at = start + PROGRESS_MS;
	for (uint64_t turn = 0; !agent_is_stopping(l->agent); turn++) {
		struct ride *r = &l->rides[turn % l->spec->vms];
		uint64_t due = start + begun * 1000 / l->spec->rate, now = now_ms();

		progress(l);
		if (due + 2000 < now) { /* too slow for the rate: no catching up later */
			start = now;
			begun = 0;
			due = now;
		}
		if (!agent_is_registered(l->agent) || due > now) {
			agent_pause(l->agent, due > now ? (unsigned)(due - now) : 200);
			continue;
		}
		if (now >= r->not_before && step(l, r))
			begun++;
		else if (turn % l->spec->vms == 0)
			agent_pause(l->agent, 2);
	}
}

static enum pw_status prepare(struct load *l, const struct load_job *job, struct pw_err *err)
{
	const struct agent_options *o = job->agent->options;
	struct client_options co = { .url = o->server,
				     .token = job->token ? job->token : job->agent->token,
				     .ca = o->ca,
				     .cert = o->cert,
				     .key = o->key,
				     .attempts = 2,
				     .stop = &job->agent->poll_stop };
	enum load_guest guest = strcmp(job->agent->info.kind, "kvm") == 0 ? GUEST_REAL : GUEST_PLAYED;
	enum pw_status st = PW_OK;

	*l = (struct load){ .agent = job->agent, .spec = job->spec, .random = job->spec->seed };
	l->rides = calloc(l->spec->vms, sizeof *l->rides);
	if (!l->rides)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the load generator");
	for (uint64_t i = 0; i < l->spec->vms && st == PW_OK; i++)
		st = load_vm_init(&l->rides[i].model, l->spec->pages, guest, err);
	return st == PW_OK ? client_open(&co, &l->client, err) : st;
}

void *load_loop(void *arg)
{
	const struct load_job *job = arg;
	struct load l;
	struct pw_err err = { 0 };

	if (prepare(&l, job, &err) != PW_OK) {
		alog(ALOG_ERROR, "no load", "%s", err.msg);
		goto out;
	}
	while (!agent_is_registered(l.agent) && !agent_pause(l.agent, 200))
		continue;
	clear_leftovers(&l);
	drive(&l);
out:
	client_close(l.client);
	for (uint64_t i = 0; l.rides && i < l.spec->vms; i++)
		load_vm_release(&l.rides[i].model);
	free(l.rides);
	return NULL;
}
