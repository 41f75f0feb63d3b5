#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/log.h"
#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(host)
DECODE_JOB(current)
DECODE_JOB(fence)

const char *const no_query[] = { NULL };

bool may_act_for(struct request *r, const struct pw_uuid *host)
{
	char id[PW_UUID_TEXT];

	if (r->who.role != ROLE_AGENT || pw_uuid_equal(&r->who.host, host))
		return true;
	pw_uuid_format(host, id);
	answer_problem(r, PROBLEM_FORBIDDEN, "this agent's token is bound to another host than %s", id);
	return false;
}

bool host_is_held(struct request *r, const struct host *h, const char *boot_id, uint64_t epoch)
{
	struct refusal why;

	if (ledger_host_current(h, boot_id, epoch, &why) == PROBLEM_NONE)
		return true;
	answer_refusal(r, &why);
	return false;
}

struct host *arg_host(struct service *sv, struct request *r, unsigned i)
{
	struct pw_uuid id;
	struct host *h;

	if (!arg_uuid(r, i, PROBLEM_HOST_NOT_FOUND, &id))
		return NULL;
	h = ledger_host(sv->ledger, &id);
	if (!h)
		answer_problem(r, PROBLEM_HOST_NOT_FOUND, "there is no host %s", r->args[i]);
	return h;
}

struct host_note *host_note(const struct host *h)
{
	return h->note;
}

const char *host_state(const struct service *sv, const struct host *h, int64_t monotonic_ms)
{
	if (h->fenced)
		return "fenced";
	return lease_is_over(&host_note(h)->lease, &sv->leases, monotonic_ms) ? "unreachable" : "up";
}

bool host_is_alive(const struct service *sv, const struct host *h)
{
	return strcmp(host_state(sv, h, clock_monotonic_ms()), "up") == 0;
}

/* Rendering. */

static void write_local_pool(struct jsonw *w, const struct pool *p)
{
	jsonw_key(w, "pools");
	jsonw_open(w, '[');
	if (p && p->frames) {
		jsonw_open(w, '{');
		jsonw_m_str(w, "pool", "local");
		jsonw_m_u64(w, "base_pfn", p->base);
		jsonw_m_u64(w, "frames", p->frames);
		jsonw_m_u64(w, "page_shift", p->page_shift);
		jsonw_close(w, '}');
	}
	jsonw_close(w, ']');
}

static void write_host_members(struct jsonw *w, const struct service *sv, const struct host *h)
{
	const struct host_note *note = host_note(h);
	const struct pool *p = h->pools[0];

	jsonw_m_uuid(w, "id", &h->id);
	jsonw_m_str(w, "name", h->name);
	jsonw_m_str(w, "state", host_state(sv, h, clock_monotonic_ms()));
	jsonw_m_str(w, "boot_id", h->boot_id);
	jsonw_m_u64(w, "epoch", h->epoch);
	jsonw_m_u64(w, "lease_seconds", sv->config->lease_seconds);
	jsonw_m_raw(w, "backends", note->backends, strlen(note->backends));
	write_local_pool(w, p);
	jsonw_key(w, "shared_pools");
	jsonw_open(w, '[');
	for (unsigned i = 1; i < HOST_POOLS_MAX; i++)
		if (h->pools[i])
			jsonw_str(w, h->pools[i]->name);
	jsonw_close(w, ']');
	if (note->agent_version[0])
		jsonw_m_str(w, "agent_version", note->agent_version);
	jsonw_m_u64(w, "page_shift", h->page_shift);
	jsonw_m_u64(w, "frames_total", p ? p->frames : 0);
	jsonw_m_u64(w, "frames_bound", p ? p->bound : 0);
	jsonw_m_u64(w, "frames_quarantined", p ? p->quarantined : 0);
	jsonw_m_u64(w, "vms", h->vms);
	jsonw_m_time(w, "last_seen", note->last_seen_ms);
	jsonw_m_u64(w, "revision", h->revision);
}

void write_host(struct jsonw *w, const struct service *sv, const struct host *h)
{
	jsonw_open(w, '{');
	write_host_members(w, sv, h);
	jsonw_close(w, '}');
}

void write_host_spec(struct jsonw *w, const struct host_body *b)
{
	const struct pool p = { .base = b->base, .frames = b->frames, .page_shift = b->page_shift };

	jsonw_open(w, '{');
	jsonw_m_str(w, "name", b->name);
	jsonw_m_str(w, "boot_id", b->boot_id);
	jsonw_m_raw(w, "backends", b->backends, strlen(b->backends));
	if (b->agent_version)
		jsonw_m_str(w, "agent_version", b->agent_version);
	if (b->has_local && b->frames)
		write_local_pool(w, &p);
	else
		write_local_pool(w, NULL);
	jsonw_close(w, '}');
}

static void answer_host(struct service *sv, struct request *r, unsigned status, const struct host *h)
{
	struct jsonw w;

	jsonw_init(&w);
	write_host(&w, sv, h);
	answer_json(r, status, &w);
	answer_etag(r, h->revision);
}

/* The agent is told how far the ledger is, and whether it went back behind what the agent had seen. */
static void answer_registration(struct service *sv, struct request *r, unsigned status, const struct host *h,
				bool restored)
{
	struct jsonw w;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	write_host_members(&w, sv, h);
	jsonw_m_str(&w, "role", role_name(r->who.role));
	jsonw_m_u64(&w, "ledger_revision", sv->revision);
	jsonw_m_bool(&w, "restored", restored);
	jsonw_close(&w, '}');
	answer_json(r, status, &w);
	answer_etag(r, h->revision);
}

void host_get(struct service *sv, struct request *r)
{
	const struct host *h = arg_host(sv, r, 0);

	if (h && query_known(r, no_query))
		answer_host(sv, r, 200, h);
}

void hosts_list(struct service *sv, struct request *r)
{
	static const char *const known[] = { "limit", "cursor", NULL };
	struct pw_uuid after = { { 0 } };
	const char *cursor;
	char next[PW_UUID_TEXT] = "";
	uint64_t limit;
	struct jsonw w;
	size_t i;

	if (!query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit) || !query_cursor(r, &after, &cursor))
		return;
	list_begin(&w);
	i = cursor ? ledger_host_after(sv->ledger, &after) : 0;
	for (; i < ledger_host_count(sv->ledger) && list_goes_on(sv, &w, &limit); i++)
		write_host(&w, sv, ledger_host_at(sv->ledger, i));
	if (i < ledger_host_count(sv->ledger))
		pw_uuid_format(&ledger_host_at(sv->ledger, i - 1)->id, next);
	list_end(&w, next[0] ? next : NULL, NULL);
	answer_json(r, 200, &w);
}

/* Registering. */

static void unmake_note(void *ctx, const void *args)
{
	struct host *h = ctx;

	free(host_note(h)->backends);
	free(h->note);
	h->note = NULL;
}

static void put_backends_back(void *ctx, const void *args)
{
	struct host_note *note = ctx;

	free(note->backends);
	note->backends = *(char *const *)args;
}

static void forget_backends(void *ctx, const void *args)
{
	free(*(char *const *)args);
}

/* The host's note as the body says. *changed is set if that differs from what was. */
static enum pw_status note_put(struct service *sv, struct host *h, const struct host_body *b, bool *changed)
{
	static const struct undo_ops made = { .rollback = unmake_note };
	static const struct undo_ops replaced = { .rollback = put_backends_back, .commit = forget_backends };
	struct undo *u = ledger_undo(sv->ledger);
	const char *version = b->agent_version ? b->agent_version : "";
	struct host_note *note = h->note;
	char *backends;

	if (note && strcmp(note->backends, b->backends) == 0 && strcmp(note->agent_version, version) == 0)
		return PW_OK;
	if (undo_reserve(u, UNDO_RECORD(sizeof backends) + UNDO_RECORD(sizeof note->agent_version)) != PW_OK)
		return PW_NO_MEMORY;
	backends = strdup(b->backends);
	if (!backends)
		return PW_NO_MEMORY;
	if (!note) {
		note = calloc(1, sizeof *note);
		if (!note) {
			free(backends);
			return PW_NO_MEMORY;
		}
		h->note = note;
		undo_push(u, &made, h, NULL, 0);
	} else {
		undo_push(u, &replaced, note, &note->backends, sizeof note->backends);
	}
	note->backends = backends;
	undo_save(u, note->agent_version, sizeof note->agent_version);
	snprintf(note->agent_version, sizeof note->agent_version, "%s", version);
	*changed = true;
	return PW_OK;
}

enum pw_problem do_host(struct service *sv, const struct pw_uuid *id, const struct host_body *b, struct host_put *put,
			struct refusal *why)
{
	struct host_spec spec = { .id = *id,
				  .name = b->name,
				  .boot_id = b->boot_id,
				  .arches = b->arches,
				  .has_local = b->has_local,
				  .base = b->base,
				  .frames = b->frames,
				  .page_shift = b->page_shift };
	undo_mark mark = ledger_mark(sv->ledger);
	enum pw_problem p = ledger_host_put(sv->ledger, &spec, put, why);

	if (p != PROBLEM_NONE)
		return p;
	if (note_put(sv, put->host, b, &put->changed) == PW_OK && (!put->rebooted || unknown_forget(sv, id) == PW_OK))
		return PROBLEM_NONE;
	ledger_rollback(sv->ledger, mark);
	return refuse(why, PROBLEM_NO_MEMORY, "out of memory while registering the host");
}

/* The VMs of a host that hardware may have: those that a reboot or fence resets. The caller frees the list. */
static struct vm **vms_to_reset(const struct service *sv, const struct host *h, size_t *n)
{
	size_t all = ledger_vm_count(sv->ledger);
	struct vm **list = malloc((all + 1) * sizeof *list);

	*n = 0;
	for (size_t i = 0; list && i < all; i++) {
		struct vm *vm = ledger_vm_at(sv->ledger, i);

		if (vm->host == h && vm->on_hardware)
			list[(*n)++] = vm;
	}
	return list;
}

static bool say_reset(struct service *sv, const struct request *r, struct vm *const *vms, size_t n, const char *cause)
{
	for (size_t i = 0; i < n; i++) {
		struct jsonw w;

		if (!touch(sv, &vms[i]->revision, next_revision(sv)) || !touch(sv, &vms[i]->ended, next_revision(sv)))
			return false;
		event_begin(&w, "vm.reset", r);
		jsonw_m_uuid(&w, "host", &vms[i]->host->id);
		jsonw_m_uuid(&w, "vm", &vms[i]->id);
		jsonw_m_str(&w, "cause", cause);
		jsonw_m_u64(&w, "epoch", vms[i]->epoch);
		event_end(sv, &w);
	}
	return true;
}

static void seen(struct service *sv, const struct host *h)
{
	host_note(h)->last_seen_ms = clock_utc_ms();
	lease_renew(&host_note(h)->lease, &sv->leases, clock_monotonic_ms());
}

static bool say_host(struct service *sv, struct request *r, const struct host_put *put, const struct host_body *b)
{
	const char *type = put->created ? "host.registered" : put->rebooted ? "host.rebooted" : "host.updated";
	struct jsonw w;

	if (!touch(sv, &put->host->revision, next_revision(sv)))
		return false;
	event_begin(&w, type, r);
	jsonw_m_uuid(&w, "host", &put->host->id);
	jsonw_m_u64(&w, "epoch", put->host->epoch);
	jsonw_key(&w, "spec");
	write_host_spec(&w, b);
	event_end(sv, &w);
	return true;
}

/* An agent saw revisions that this ledger does not have: it is an older one, from a backup. Said once a start. */
static bool say_restored(struct service *sv, const struct request *r, const struct host *h, uint64_t seen_revision)
{
	struct undo *u = ledger_undo(sv->ledger);
	uint64_t revision = sv->revision;
	struct jsonw w;

	if (sv->restored_said)
		return true;
	if (undo_reserve(u, UNDO_RECORD(sizeof sv->restored_said)) != PW_OK)
		return false;
	undo_save(u, &sv->restored_said, sizeof sv->restored_said);
	sv->restored_said = true;
	event_begin(&w, "ledger.restored", r);
	jsonw_m_uuid(&w, "host", &h->id);
	jsonw_m_u64(&w, "ledger_revision", revision);
	jsonw_m_u64(&w, "revision_seen", seen_revision);
	event_end(sv, &w);
	return true;
}

void host_put_act(struct service *sv, struct request *r)
{
	const struct host_body *b = &((struct host_job *)r->job)->b;
	struct vm **vms = NULL;
	struct host_put put;
	struct refusal why;
	struct pw_uuid id;
	size_t n = 0;
	const struct host *known;
	bool restored = b->revision_seen > sv->revision;

	if (!arg_uuid(r, 0, PROBLEM_HOST_NOT_FOUND, &id) || !may_act_for(r, &id))
		return;
	known = ledger_host(sv->ledger, &id);
	if (!if_match(r, known ? known->revision : 0))
		return;
	vms = known ? vms_to_reset(sv, known, &n) : NULL;
	if (known && !vms) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while registering the host");
		return;
	}
	if (do_host(sv, &id, b, &put, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		goto out;
	}
	if (restored && !say_restored(sv, r, put.host, b->revision_seen)) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while registering the host");
		goto out;
	}
	if (put.changed &&
	    (!say_host(sv, r, &put, b) || (put.rebooted && !say_reset(sv, r, vms, n, "host.rebooted")))) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while registering the host");
		goto out;
	}
	seen(sv, put.host);
	host_note(put.host)->registrations++;
	operations_again(sv, put.host);
	stir(sv, WAIT_DELIVERY, &id); /* polls of before are over */
	answer_registration(sv, r, put.created ? 201 : 200, put.host, restored);
	if (put.created)
		answer_header(r, "Location", "/v1/hosts/%s", r->args[0]);
out:
	free(vms);
}

enum handled host_put(struct service *sv, struct request *r)
{
	struct pw_uuid id;

	if (!pw_uuid_parse(r->args[0], strlen(r->args[0]), &id))
		return answer_problem(r, PROBLEM_INVALID_REQUEST, "host %s is not a UUID in lower case", r->args[0]);
	if (!may_act_for(r, &id) || !query_known(r, no_query) || !prepare_host(sv, r))
		return DONE;
	return park_change(sv, r);
}

/* Leases. */

/* A beat that is sent again is one, too: by itself this is what heartbeat_act does before it answers. */
static bool heartbeat_takes(struct service *sv, struct request *r)
{
	const struct current_body *b = &((struct current_job *)r->job)->b;
	const struct host *h = arg_host(sv, r, 0);

	if (!h || !may_act_for(r, &h->id) || !host_is_held(r, h, b->boot_id, b->epoch) || !if_match(r, h->revision))
		return false;
	seen(sv, h);
	return true;
}

void heartbeat_act(struct service *sv, struct request *r)
{
	const struct host *h;
	struct jsonw w;

	if (!heartbeat_takes(sv, r))
		return;
	h = arg_host(sv, r, 0);
	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_u64(&w, "lease_seconds", sv->config->lease_seconds);
	jsonw_m_u64(&w, "operations_pending", host_note(h)->pending);
	jsonw_close(&w, '}');
	answer_json(r, 200, &w);
}

/* Has the group in flight left the host alone? Then it does not matter to a heartbeat what becomes of the group. */
static bool is_quiet(const struct service *sv, const struct request *r)
{
	const struct host *h;
	struct pw_uuid id;

	h = pw_uuid_parse(r->args[0], strlen(r->args[0]), &id) ? ledger_host(sv->ledger, &id) : NULL;
	return h && h->note && host_note(h)->last_event <= sv->durable;
}

enum handled host_heartbeat(struct service *sv, struct request *r)
{
	bool quiet;

	if (!query_known(r, no_query) || !prepare_current(sv, r))
		return DONE;
	r->still_holds = heartbeat_takes;
	if (r->idempotency_key)
		return park_change(sv, r);
	if (!state_read_lock(sv))
		return answer_stopping(r);
	quiet = is_quiet(sv, r);
	if (quiet)
		heartbeat_act(sv, r);
	pthread_rwlock_unlock(&sv->lock);
	return quiet ? DONE : handle_read(sv, r);
}

void hosts_hear(struct service *sv)
{
	int64_t now = clock_monotonic_ms(), boot = clock_boot_ms();
	int64_t pause = lease_clock_pause_ms(&sv->leases, now, boot);

	for (size_t i = 0; pause && i < ledger_host_count(sv->ledger); i++)
		lease_pause(&host_note(ledger_host_at(sv->ledger, i))->lease, &sv->leases, now);
	lease_clock_tick(&sv->leases, now, boot);
	if (pause)
		log_detail(LOG_WARNING_, "the server itself stood still: leases begin anew",
			   "%" PRId64 " ms between two ticks", pause);
}

/* Is the feed to be told that a host went out of reach, or came back? A fenced one does neither. */
static bool is_news(const struct service *sv, const struct host *h, int64_t now, bool *away)
{
	*away = strcmp(host_state(sv, h, now), "unreachable") == 0;
	return !h->fenced && *away != host_note(h)->unreachable;
}

bool hosts_tick_due(const struct service *sv)
{
	int64_t now = clock_monotonic_ms();
	bool away;

	for (size_t i = 0; i < ledger_host_count(sv->ledger); i++)
		if (is_news(sv, ledger_host_at(sv->ledger, i), now, &away))
			return true;
	return false;
}

void hosts_tick(struct service *sv)
{
	struct undo *u = ledger_undo(sv->ledger);
	int64_t now = clock_monotonic_ms();

	for (size_t i = 0; i < ledger_host_count(sv->ledger); i++) {
		const struct host *h = ledger_host_at(sv->ledger, i);
		struct host_note *note = host_note(h);
		struct jsonw w;
		bool away;

		if (!is_news(sv, h, now, &away) || undo_reserve(u, UNDO_RECORD(sizeof note->unreachable)) != PW_OK)
			continue;
		undo_save(u, &note->unreachable, sizeof note->unreachable);
		note->unreachable = away;
		event_begin(&w, away ? "host.unreachable" : "host.back", NULL);
		jsonw_m_uuid(&w, "host", &h->id);
		event_end(sv, &w);
	}
}

/* Fencing. */

void host_fence_act(struct service *sv, struct request *r)
{
	const struct fence_body *b = &((struct fence_job *)r->job)->b;
	struct host *h = arg_host(sv, r, 0);
	struct refusal why;
	struct vm **vms;
	struct jsonw w;
	size_t n;

	if (!h || !if_match(r, h->revision))
		return;
	if (h->fenced) {
		answer_host(sv, r, 200, h);
		return;
	}
	if (!fence_allowed(sv, r, h, b->force))
		return;
	vms = vms_to_reset(sv, h, &n);
	if (!vms || ledger_host_fence(sv->ledger, h, &why) != PROBLEM_NONE || unknown_forget(sv, &h->id) != PW_OK ||
	    !touch(sv, &h->revision, next_revision(sv)))
		goto no_memory;
	event_begin(&w, "host.fenced", r);
	jsonw_m_uuid(&w, "host", &h->id);
	jsonw_m_u64(&w, "epoch", h->epoch);
	event_end(sv, &w);
	if (!say_reset(sv, r, vms, n, "host.fenced"))
		goto no_memory;
	answer_host(sv, r, 200, h);
	free(vms);
	return;
no_memory:
	answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while fencing the host");
	free(vms);
}

bool host_fence_prepare(struct service *sv, struct request *r)
{
	return query_known(r, no_query) && prepare_fence(sv, r);
}
