#include "agents/ops.h"

#include <stdio.h>
#include <string.h>

#define POLL_SECONDS 20

static bool is_fenced(const struct trouble *t)
{
	const char *type = json_string_value(json_object_get(t->problem, "type"));

	return type && strcmp(type, "/problems/host-fenced") == 0;
}

static void answer(struct worker *w, const struct operation *op, enum pw_status st, struct trouble *t)
{
	json_t *problem = NULL;
	struct trouble own = { 0 };

	if (st == PW_BUSY && agent_is_stopping(w->agent))
		return; /* a next agent may find frames: it will be delivered again */
	if (st == PW_NETWORK || is_fenced(t)) {
		agent_stand_apart(w->agent, t->err.msg); /* it will be delivered again */
		return;
	}
	if (st != PW_OK)
		problem = trouble_problem(t);
	if (st != PW_OK && !problem)
		problem = json_object();
	if (remote_result(w, op->id, problem, &own) != PW_OK)
		alog(ALOG_WARNING, "a result was not taken", "operation %s: %s", op->id, own.err.msg);
	json_decref(problem);
	trouble_clear(&own);
}

#define PRESSURE_TRIES    10
#define PRESSURE_PAUSE_MS 50

/* Without free frames it begins again a little later: the guests' thread may have paged something out by then. */
static enum pw_status run_patiently(struct worker *w, const struct operation *op, struct trouble *t)
{
	int tries = op->kind == OPERATION_LAUNCH ? 3 : PRESSURE_TRIES;

	for (;;) {
		enum pw_status st;

		pthread_mutex_lock(&w->agent->work);
		st = operation_run(w, op, t);
		pthread_mutex_unlock(&w->agent->work);
		if (st != PW_BUSY || --tries <= 0 || agent_pause(w->agent, PRESSURE_PAUSE_MS))
			return st;
		trouble_clear(t);
	}
}

static void run_one(struct worker *w, json_t *item)
{
	struct operation op;
	struct trouble t = { 0 };
	enum pw_status st;

	if (!operation_read(item, &op)) {
		alog(ALOG_WARNING, "an operation that is none",
		     "the server sent an operation that this agent cannot read");
		return;
	}
	w->in_hand = true;
	st = run_patiently(w, &op, &t);
	alog(st == PW_OK ? ALOG_DEBUG : ALOG_WARNING, st == PW_OK ? "operation succeeded" : "operation failed",
	     "%s %s%s%s", operation_kind_name(op.kind), op.id, st == PW_OK ? "" : ": ", st == PW_OK ? "" : t.err.msg);
	answer(w, &op, st, &t);
	w->in_hand = false;
	trouble_clear(&t);
}

static void poll_once(struct worker *w, struct client *poller)
{
	struct agent *a = w->agent;
	struct client_reply r = { 0 };
	struct pw_err err = { 0 };
	char path[96];
	enum pw_status st;
	json_t *item;
	size_t i;

	snprintf(path, sizeof path, "/v1/hosts/%s/operations?wait=%d", a->host, POLL_SECONDS);
	st = client_call(poller, "GET", path, NULL, NULL, POLL_SECONDS, &r, &err);
	if (st == PW_OK) {
		json_array_foreach (json_object_get(r.json, "items"), i, item) {
			if (agent_is_stopping(a) || !agent_is_registered(a))
				break; /* the rest is delivered again */
			run_one(w, item);
		}
	} else if (!agent_is_stopping(a)) {
		/* A lost answer may have held operations: registering again has them delivered again. */
		agent_stand_apart(a, err.msg);
		if (r.status)
			agent_pause(a, 1000);
	}
	client_reply_release(&r);
}

void *operations_loop(void *agent)
{
	struct agent *a = agent;
	struct worker w = { 0 };
	struct client *poller = NULL;
	struct pw_err err = { 0 };
	struct client_options o = { .url = a->options->server,
				    .token = a->token,
				    .ca = a->options->ca,
				    .cert = a->options->cert,
				    .key = a->options->key,
				    .attempts = 1,
				    .stop = &a->poll_stop };

	if (worker_open(&w, a, &err) != PW_OK || client_open(&o, &poller, &err) != PW_OK) {
		alog(ALOG_ERROR, "no operations", "%s", err.msg);
		goto out;
	}
	while (!agent_is_stopping(a)) {
		if (!agent_is_registered(a) && !agent_come_back(&w))
			break;
		poll_once(&w, poller);
	}
out:
	client_close(poller);
	worker_close(&w);
	return NULL;
}
