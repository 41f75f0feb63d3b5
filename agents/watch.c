/* Watching the ledger for changes that this agent did not make: a long poll of the events of its host. Its own changes
 * are known by their revisions (agents/own.h). Also the periodic comparison of each VM, spread over the period. Both
 * compare under `work`, so never inside a change; the cost of one is a digest for each GiB of the VM. */
#include "agents/watch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/resync.h"
#include "agents/unknown.h"

enum { WAIT_S = 20, PAUSE_MS = 100, EVENTS_A_POLL = 1000 };

/* Due times. */

static uint64_t place_of(const struct pw_uuid *vm, uint64_t period_ms)
{
	uint64_t half[2], mix;

	memcpy(half, vm->b, sizeof half);
	mix = half[0] ^ half[1];
	return next_random(&mix) % period_ms;
}

uint64_t watch_due_in(const struct pw_uuid *vm, uint64_t from, uint64_t period_ms)
{
	uint64_t place = place_of(vm, period_ms), at = from % period_ms;

	return place > at ? place - at : place + period_ms - at;
}

bool watch_is_due(const struct pw_uuid *vm, uint64_t from, uint64_t to, uint64_t period_ms)
{
	return period_ms && to > from && watch_due_in(vm, from, period_ms) <= to - from;
}

/* Events. */

/* Types that change nothing of what hardware and ledger have of a VM's pages. */
static bool is_idle_talk(const char *type)
{
	static const char *const types[] = { "violation", "vm.unknown", "vm.known", "vcpu.exit" };

	for (size_t i = 0; i < PW_ARRAY_LEN(types); i++)
		if (strcmp(types[i], type) == 0)
			return true;
	return strncmp(type, "operation.", strlen("operation.")) == 0;
}

void watch_event_vms(json_t *event, watch_vm_fn fn, void *ctx)
{
	const char *type = json_string_value(json_object_get(event, "type"));
	json_t *vms = json_object_get(event, "vms"), *one;
	struct pw_uuid vm;
	size_t i;

	if (!type || is_idle_talk(type))
		return;
	if (json_uuid_member(event, "vm", &vm) && !fn(ctx, &vm))
		return;
	json_array_foreach (vms, i, one) {
		const char *text = json_string_value(one);

		if (text && pw_uuid_parse(text, strlen(text), &vm) && !fn(ctx, &vm))
			return;
	}
}

/* VMs that are to be compared. */
struct vm_set {
	struct pw_uuid *v; /* owned */
	size_t n, cap;
	bool failed; /* no memory, or not all is known: all are to be compared */
};

static bool set_add(void *ctx, const struct pw_uuid *vm)
{
	struct vm_set *s = ctx;

	for (size_t i = 0; i < s->n; i++)
		if (pw_uuid_equal(&s->v[i], vm))
			return true;
	if (s->n == s->cap) {
		size_t cap = s->cap ? 2 * s->cap : 16;
		struct pw_uuid *more = reallocarray(s->v, cap, sizeof *more);

		s->failed |= !more;
		if (!more)
			return false;
		s->v = more;
		s->cap = cap;
	}
	s->v[s->n++] = *vm;
	return true;
}

struct watch {
	struct agent *agent;
	struct worker w;
	struct client *poller;
	uint64_t registration; /* that it watches since */
	uint64_t after;        /* events up to this revision are dealt with */
	uint64_t looked_ms;    /* due times up to then are dealt with */
	uint64_t kept_ms;      /* when the highest revision was put down last */
};

static uint64_t period_ms(const struct watch *x)
{
	return x->agent->options->resync_seconds * 1000;
}

/* Comparing. `work` is held. */

static enum pw_status compare_one(struct watch *x, const struct pw_uuid *vm)
{
	struct trouble t = { 0 };
	char id[PW_UUID_TEXT];
	enum pw_status st = resync_one_vm(&x->w, vm, &t);

	pw_uuid_format(vm, id);
	alog(st == PW_OK ? ALOG_DEBUG : ALOG_WARNING, st == PW_OK ? "looked at a VM" : "not compared", "vm %s%s%s", id,
	     st == PW_OK ? "" : ": ", st == PW_OK ? "" : t.err.msg);
	if (st == PW_NETWORK)
		agent_stand_apart(x->agent, t.err.msg);
	trouble_clear(&t);
	return st;
}

/* What one of them has wrongly, another may be missing: what is disputed after the first round is looked at again. */
static void compare_all(struct watch *x, const struct vm_set *vms)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < vms->n && st != PW_NETWORK && agent_is_registered(x->agent); i++)
		st = compare_one(x, &vms->v[i]);
	for (size_t i = 0; i < vms->n && st != PW_NETWORK && agent_is_registered(x->agent); i++)
		if (unknown_has(x->agent, &vms->v[i], NULL))
			st = compare_one(x, &vms->v[i]);
}

static bool is_others(struct watch *x, json_t *event)
{
	const char *type = json_string_value(json_object_get(event, "type"));
	uint64_t revision;

	return type && json_u64_member(event, "revision", &revision) && !own_has(&x->agent->own, revision, type);
}

static void collect(struct watch *x, json_t *events, struct vm_set *out)
{
	json_t *event;
	size_t i;

	json_array_foreach (events, i, event) {
		if (!is_others(x, event))
			continue;
		if (json_object_get(event, "omitted")) /* told in brief: it may be of any VM */
			out->failed = true;
		watch_event_vms(event, set_add, out);
	}
}

/* An event may come before the answer that makes it known as this agent's own: under `work` there is none under way. */
static void deal_with(struct watch *x, json_t *events)
{
	struct agent *a = x->agent;
	struct vm_set vms = { 0 };

	collect(x, events, &vms);
	if (!vms.n && !vms.failed)
		return;
	pthread_mutex_lock(&a->work);
	vms.n = 0;
	collect(x, events, &vms);
	if (vms.failed)
		agent_want_resync(a);
	else
		compare_all(x, &vms);
	pthread_mutex_unlock(&a->work);
	free(vms.v);
}

/* Periodic comparisons. */

struct due {
	const struct watch *x;
	uint64_t now, next_ms;
	struct vm_set vms;
};

static bool see_due(void *ctx, const struct pw_uuid *vm, enum vm_state state)
{
	struct due *d = ctx;
	uint64_t next = watch_due_in(vm, d->now, period_ms(d->x));

	if (next < d->next_ms)
		d->next_ms = next;
	return !watch_is_due(vm, d->x->looked_ms, d->now, period_ms(d->x)) || set_add(&d->vms, vm);
}

/* Compares those that are due; how many seconds until the next one is. */
static unsigned compare_due(struct watch *x)
{
	struct agent *a = x->agent;
	struct due d = { .x = x, .now = now_ms(), .next_ms = (uint64_t)WAIT_S * 1000 };
	struct pw_err err;

	if (period_ms(x) == 0)
		return WAIT_S;
	pthread_mutex_lock(&a->work);
	if (agent_is_registered(a) && a->backend->ops->each_vm(a->backend, see_due, &d, &err) == PW_OK)
		compare_all(x, &d.vms);
	pthread_mutex_unlock(&a->work);
	free(d.vms.v);
	x->looked_ms = d.now;
	return (unsigned)(d.next_ms / 1000) + 1;
}

/* The thread. */

/* After each registration: what came before it, the resync has compared. */
static void begin_anew(struct watch *x)
{
	struct agent *a = x->agent;
	bool anew;

	pthread_mutex_lock(&a->mu);
	anew = x->registration != a->registrations;
	x->registration = a->registrations;
	if (anew)
		x->after = a->watch_after;
	pthread_mutex_unlock(&a->mu);
	if (anew)
		x->looked_ms = now_ms();
}

static void keep(struct watch *x)
{
	if (now_ms() < x->kept_ms + 1000)
		return;
	heard_keep(&x->agent->heard);
	x->kept_ms = now_ms();
}

static void watch_once(struct watch *x)
{
	struct agent *a = x->agent;
	unsigned wait_s = compare_due(x);
	struct client_reply r = { 0 };
	struct pw_err err = { 0 };
	json_t *events = NULL;
	char path[160];
	enum pw_status st;

	snprintf(path, sizeof path, "/v1/events?host=%s&after=%" PRIu64 "&limit=%d&wait=%u", a->host, x->after,
		 EVENTS_A_POLL, wait_s);
	st = client_call(x->poller, "GET", path, NULL, NULL, wait_s, &r, &err);
	if (st == PW_OK && json_u64_member(r.json, "next", &x->after)) {
		heard_see(&a->heard, x->after);
		events = json_object_get(r.json, "items");
		deal_with(x, events);
		own_forget(&a->own, x->after);
	} else if (r.problem == PROBLEM_COMPACTED) {
		agent_want_resync(a); /* what there was to see is gone */
	} else if (!agent_is_stopping(a)) {
		agent_pause(a, 1000);
	}
	keep(x);
	if (json_array_size(events)) /* a little later there are more, in one answer */
		agent_pause(a, PAUSE_MS);
	client_reply_release(&r);
}

void *watch_loop(void *agent)
{
	struct agent *a = agent;
	struct watch x = { .agent = a };
	struct pw_err err = { 0 };
	struct client_options o = { .url = a->options->server,
				    .token = a->token,
				    .ca = a->options->ca,
				    .cert = a->options->cert,
				    .key = a->options->key,
				    .attempts = 1,
				    .stop = &a->poll_stop };

	if (worker_open(&x.w, a, &err) != PW_OK || client_open(&o, &x.poller, &err) != PW_OK) {
		alog(ALOG_ERROR, "changes that others make are not noticed", "%s", err.msg);
		goto out;
	}
	while (!agent_is_stopping(a)) {
		if (!agent_is_registered(a)) {
			agent_pause(a, 200);
			continue;
		}
		begin_anew(&x);
		watch_once(&x);
	}
out:
	client_close(x.poller);
	worker_close(&x.w);
	return NULL;
}
