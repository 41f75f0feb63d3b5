#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/feed_ring.h"
#include "server/log.h"
#include "server/metrics.h"
#include "server/service_impl.h"

enum { TICK_MS = LEASE_TICK_MS, LOCK_WAIT_NS = 100000000, GROUP_BYTES = 32 << 20, WAIT_MAX_S = 300 };

/* Parking. */

static size_t resume_all(struct request *head)
{
	size_t n = 0;

	for (; head; n++) {
		struct request *next = head->next;

		request_resume(head);
		head = next;
	}
	return n;
}

enum handled answer_stopping(struct request *r)
{
	return answer_problem(r, PROBLEM_NOT_READY, "the server is stopping");
}

bool state_read_lock(struct service *sv)
{
	struct timespec until;

	while (pthread_rwlock_tryrdlock(&sv->lock) != 0) {
		clock_gettime(CLOCK_REALTIME, &until);
		until.tv_nsec += LOCK_WAIT_NS;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		if (pthread_rwlock_timedrdlock(&sv->lock, &until) == 0)
			return true;
		if (atomic_load(&sv->cut))
			return false;
	}
	return true;
}

enum handled handle_read(struct service *sv, struct request *r)
{
	for (;;) {
		bool uncommitted, waits, parked, failed, torn;
		uint64_t group;

		if (!state_read_lock(sv))
			return answer_stopping(r);
		torn = sv->torn;
		if (!torn)
			r->route->act(sv, r);
		uncommitted = sv->uncommitted;
		group = sv->group;
		pthread_rwlock_unlock(&sv->lock);
		if (!uncommitted)
			return DONE;
		pthread_mutex_lock(&sv->mutex);
		failed = sv->group_failed >= group;
		waits = sv->groups_done < group;
		parked = waits && !sv->cut;
		if (parked)
			list_push(&sv->readers, r);
		pthread_mutex_unlock(&sv->mutex);
		if (parked)
			return PARKED;
		if (waits)
			return answer_stopping(r);
		if (!failed && !torn)
			return DONE;
		answer_drop(r);
	}
}

enum handled park_change(struct service *sv, struct request *r)
{
	bool first;

	if (r->idempotency_key)
		request_digest(r);
	pthread_mutex_lock(&sv->mutex);
	if (sv->draining) {
		pthread_mutex_unlock(&sv->mutex);
		return r->settled ? DONE : answer_stopping(r);
	}
	first = !sv->queue.count;
	queue_push(&sv->queue, r);
	pthread_mutex_unlock(&sv->mutex);
	if (first) /* once the mutex is free: the writer wants it first of all */
		pthread_cond_signal(&sv->wake);
	return PARKED;
}

enum handled handle_change(struct service *sv, struct request *r)
{
	if (r->route->prepare && !r->route->prepare(sv, r))
		return DONE;
	return park_change(sv, r);
}

bool wait_deadline(struct request *r)
{
	uint64_t wait;

	if (r->deadline_ms)
		return true;
	if (!query_u64(r, "wait", 0, WAIT_MAX_S, 0, &wait))
		return false;
	r->deadline_ms = clock_monotonic_ms() + (int64_t)wait * 1000;
	return true;
}

/* No memory to wait is as good as a deadline. */
bool park_wait(struct service *sv, struct request *r, enum wait_kind kind, const struct pw_uuid *id, uint64_t after)
{
	bool parked;

	r->wait_for = (struct wait_key){ .kind = kind, .id = id ? *id : (struct pw_uuid){ { 0 } } };
	r->wait_after = after;
	pthread_mutex_lock(&sv->mutex);
	parked = !sv->draining && waiters_add(&sv->waiters, r) == PW_OK;
	if (!parked)
		r->deadline_ms = 1;
	else if (sv->waiters.deadlines.items[0] == r)
		pthread_cond_signal(&sv->wake);
	pthread_mutex_unlock(&sv->mutex);
	return parked;
}

bool service_forget(struct service *sv, struct request *r)
{
	bool waited;

	pthread_mutex_lock(&sv->mutex);
	waited = waiters_remove(&sv->waiters, r);
	pthread_mutex_unlock(&sv->mutex);
	return waited;
}

size_t service_waiting(struct service *sv)
{
	size_t n;

	pthread_mutex_lock(&sv->mutex);
	n = sv->waiters.deadlines.count;
	pthread_mutex_unlock(&sv->mutex);
	return n;
}

/* Within a group. */

void group_break(struct service *sv, const struct pw_err *err)
{
	if (!sv->group_broken)
		sv->group_err = *err;
	sv->group_broken = true;
}

void group_out_of_memory(struct service *sv)
{
	struct pw_err err;

	pw_fail(&err, PW_NO_MEMORY, "out of memory");
	group_break(sv, &err);
}

bool group_store(struct service *sv)
{
	struct pw_err err;

	if (sv->group_broken)
		return false;
	if (!sv->group_writes && store_begin(sv->store, &err) != PW_OK) {
		group_break(sv, &err);
		return false;
	}
	sv->group_writes = true;
	return true;
}

uint64_t next_revision(const struct service *sv)
{
	return sv->revision + 1;
}

const char *actor_of(const struct request *r)
{
	return r ? r->who.name : "pagewardend";
}

void event_begin(struct jsonw *w, const char *type, const struct request *r)
{
	jsonw_init(w);
	jsonw_open(w, '{');
	jsonw_m_str(w, "type", type);
	jsonw_m_str(w, "actor", actor_of(r));
}

void stir(struct service *sv, enum wait_kind kind, const struct pw_uuid *id)
{
	if (sv->stirred_count == sv->stirred_capacity) {
		size_t capacity = sv->stirred_capacity ? 2 * sv->stirred_capacity : 64;
		struct wait_key *more = realloc(sv->stirred, capacity * sizeof *more);

		sv->stirred_all |= !more;
		if (!more)
			return;
		sv->stirred = more;
		sv->stirred_capacity = capacity;
	}
	sv->stirred[sv->stirred_count++] = (struct wait_key){ .kind = kind, .id = *id };
}

/* The next revision is an event of that host. */
static void stir_host(struct service *sv, const struct pw_uuid *id)
{
	struct host *h = ledger_host(sv->ledger, id);

	if (!h || !h->note)
		return;
	host_note(h)->last_event = next_revision(sv);
	if (host_note(h)->stirred != sv->group)
		stir(sv, WAIT_EVENTS, id);
	host_note(h)->stirred = sv->group;
}

/* What the group had of a host is taken back. */
static void settle(const struct host *h, uint64_t revision)
{
	if (h && h->note && host_note(h)->last_event > revision)
		host_note(h)->last_event = revision;
}

static void settle_stirred(struct service *sv, uint64_t revision)
{
	for (size_t i = 0; i < sv->stirred_count; i++)
		if (sv->stirred[i].kind == WAIT_EVENTS)
			settle(ledger_host(sv->ledger, &sv->stirred[i].id), revision);
	for (size_t i = 0; sv->stirred_all && i < ledger_host_count(sv->ledger); i++)
		settle(ledger_host_at(sv->ledger, i), revision);
}

uint64_t event_end(struct service *sv, struct jsonw *w)
{
	struct pw_uuid host;

	jsonw_close(w, '}');
	if (!w->failed && event_host(w->data, w->used, &host))
		stir_host(sv, &host);
	record_event(&sv->records, w);
	return ++sv->revision;
}

uint64_t event_item(struct service *sv, const struct request *r, const struct host *h, const struct item *it)
{
	stir_host(sv, &h->id);
	record_item(&sv->records, &(struct record_item){ h->id, actor_of(r), *it });
	return ++sv->revision;
}

bool touch(struct service *sv, uint64_t *revision, uint64_t to)
{
	struct undo *u = ledger_undo(sv->ledger);

	if (undo_reserve(u, UNDO_RECORD(sizeof *revision)) != PW_OK)
		return false;
	undo_save(u, revision, sizeof *revision);
	*revision = to;
	return true;
}

/* Time. */

static uint64_t writer_budget_ns(const struct service *sv)
{
	return (uint64_t)(sv->config->writer_ms ? sv->config->writer_ms : 1) * 1000000;
}

void let_readers_in(void *ctx)
{
	struct service *sv = ctx;
	uint64_t now = clock_monotonic_ns();

	if (now - sv->locked_ns < writer_budget_ns(sv) / 2)
		return;
	sv->torn = true;
	pthread_rwlock_unlock(&sv->lock);
	pthread_rwlock_wrlock(&sv->lock);
	sv->locked_ns = clock_monotonic_ns();
}

bool turn_is_over(struct service *sv)
{
	uint64_t now = clock_monotonic_ns(), budget = writer_budget_ns(sv);

	return now - sv->locked_ns >= budget || (now - sv->turn_ns >= budget / 5 && queue_has_others(&sv->queue));
}

/* A request may be long on its way (a slow body, a long queue), and its token be deleted meanwhile: then it came too
 * late. */
static bool is_known_still(const struct service *sv, struct request *r)
{
	if (r->settled || pw_uuid_is_nil(&r->who.token) || index_find(&sv->tokens, &r->who.token))
		return true;
	answer_unknown(r, "the bearer token was deleted");
	return false;
}

static void change_one(struct service *sv, struct request *r)
{
	undo_mark mark = ledger_mark(sv->ledger);
	uint64_t revision = sv->revision;
	size_t used = sv->records.used;

	r->unfinished = false;
	if (!is_known_still(sv, r))
		return;
	if (r->idempotency_key && answered_before(sv, r))
		return;
	sv->stored = false;
	sv->turn_ns = clock_monotonic_ns();
	r->route->act(sv, r);
	if (sv->records.failed)
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while recording the change");
	if (r->response.status >= 500) {
		ledger_rollback(sv->ledger, mark);
		sv->records.failed = false;
		records_cut(&sv->records, used);
		sv->revision = revision;
		r->unfinished = false;
		if (sv->stored)
			group_out_of_memory(sv);
	} else if (r->idempotency_key && r->response.status && r->response.status != 429) { /* later it may go */
		keep_answer(sv, r);
	}
	sv->torn = false;
}

/* Groups. */

static void group_stop(struct service *sv)
{
	struct pw_err err;

	pw_fail(&err, PW_BUSY, "the server is stopping");
	sv->group_cut = !sv->group_broken || sv->group_cut;
	group_break(sv, &err);
}

/* From here on the outcome is the disk's. False: the server stops and commits nothing any more. */
static bool commit_begin(struct service *sv)
{
	pthread_mutex_lock(&sv->mutex);
	sv->committing = !sv->cut;
	pthread_mutex_unlock(&sv->mutex);
	return sv->committing;
}

static enum pw_status group_commit(struct service *sv, uint64_t first, struct pw_err *err)
{
	struct journal_row row = { .first = first,
				   .last = sv->revision,
				   .time_ms = sv->group_time_ms,
				   .records = sv->records.data,
				   .size = sv->records.used };
	uint64_t began = clock_monotonic_ns();
	enum pw_status st = PW_OK;

	if (sv->records.failed)
		group_out_of_memory(sv);
	if (!commit_begin(sv))
		group_stop(sv);
	if ((sv->records.used && !group_store(sv)) || sv->group_broken) {
		*err = sv->group_err;
		st = err->status;
	}
	if (st == PW_OK && sv->records.used)
		st = store_append(sv->store, &row, err);
	if (st == PW_OK && sv->group_writes) {
		st = store_commit(sv->store, err);
		metrics_time(TIME_COMMIT, clock_monotonic_ns() - began);
	}
	if (st == PW_OK && sv->records.used)
		feed_ring_add(sv->feed, &row, &sv->records);
	return st;
}

static void refuse_one(struct request *r, const struct pw_err *err)
{
	if (r->begun)
		answer_problem(r, PROBLEM_OUTCOME_UNKNOWN, "a part of the batch is done, and not the rest: %s",
			       err->msg);
	else if (err->status == PW_UNKNOWN)
		answer_problem(r, PROBLEM_OUTCOME_UNKNOWN, "%s", err->msg);
	else
		answer_problem(r, err->status == PW_NO_MEMORY ? PROBLEM_NO_MEMORY : PROBLEM_STORAGE,
			       "nothing was changed: %s", err->msg);
}

static void group_refuse(struct service *sv, struct request *head, const struct pw_err *err)
{
	for (struct request *r = head; sv->group_cut && r; r = r->next)
		if (r->begun)
			refuse_one(r, err);
		else if (!r->settled)
			answer_problem(r, PROBLEM_NOT_READY, "nothing was changed: %s", err->msg);
	if (sv->group_cut)
		return;
	if (err->status != PW_NO_MEMORY && !atomic_exchange(&sv->disk_refuses, true))
		log_line(LOG_ERROR_, "the disk refuses changes", "error", err->msg, NULL);
	metrics_count(COUNT_COMMIT_FAILURES, 1);
	for (; head; head = head->next)
		if (!head->settled)
			refuse_one(head, err);
}

/* Those for whom the group has news, or took back what they had seen. With `mutex` held. */
static void wake_stirred(struct service *sv)
{
	if (sv->stirred_all)
		(void)waiters_wake_due(&sv->waiters, INT64_MAX);
	for (size_t i = 0; i < sv->stirred_count; i++)
		(void)waiters_wake(&sv->waiters, &sv->stirred[i]);
	(void)waiters_wake_revision(&sv->waiters, sv->durable);
}

/* The group is through: durable, or taken back. */
static void group_end(struct service *sv, struct request *head, bool failed)
{
	struct request *readers;

	pthread_mutex_lock(&sv->mutex);
	sv->groups_done = sv->group;
	if (failed)
		sv->group_failed = sv->group;
	readers = list_take(&sv->readers);
	wake_stirred(sv);
	pthread_mutex_unlock(&sv->mutex);
	for (struct request *r = readers; failed && r; r = r->next)
		answer_drop(r);
	resume_all(head);
	pthread_mutex_lock(&sv->mutex);
	sv->committing = false; /* not before everybody has his answer: service_left */
	pthread_mutex_unlock(&sv->mutex);
	resume_all(readers);
}

/* In doubt about a commit nothing is decided: the ledger may lack what the journal has. Each request may be one that
 * was in that commit, sent again. */
static bool group_may_decide(struct service *sv)
{
	struct pw_err err;

	if (!store_in_doubt(sv->store))
		return true;
	pw_fail(&err, PW_UNKNOWN,
		"the disk failed in an earlier commit, and what became of it is not known yet; until it is, nothing"
		" else is decided");
	group_break(sv, &err);
	return false;
}

static struct request *next_turn(struct service *sv)
{
	struct request *r;

	pthread_mutex_lock(&sv->mutex);
	r = queue_take(&sv->queue);
	pthread_mutex_unlock(&sv->mutex);
	return r;
}

/* One turn each for at most `waiting` requests, until the group is long, large or broken. */
static void group_apply(struct service *sv, size_t waiting, struct request_list *in)
{
	struct request *r;

	while (waiting-- > 0 && (r = next_turn(sv))) {
		list_push(in, r);
		if (atomic_load(&sv->cut))
			group_stop(sv);
		if (sv->group_broken)
			break;
		change_one(sv, r);
		if (sv->group_broken || sv->records.used >= GROUP_BYTES ||
		    clock_monotonic_ns() - sv->locked_ns >= writer_budget_ns(sv))
			break;
	}
}

/* Those that are not finished line up again; the others are through. */
static struct request *group_part(struct service *sv, struct request *head, bool failed)
{
	struct request_list through;

	list_init(&through);
	pthread_mutex_lock(&sv->mutex);
	for (struct request *r = head, *following; r; r = following) {
		following = r->next;
		r->begun |= r->unfinished && !failed;
		if (r->unfinished && !failed)
			queue_push(&sv->queue, r);
		else
			list_push(&through, r);
	}
	pthread_mutex_unlock(&sv->mutex);
	return through.head;
}

/* One group of so many that wait. None: what the clock brings. */
static void group_run(struct service *sv, size_t waiting)
{
	struct request_list in;
	uint64_t before = sv->revision;
	enum pw_status st;
	struct pw_err err;

	list_init(&in);
	sv->group_time_ms = clock_utc_ms();
	sv->group_broken = sv->group_cut = sv->group_writes = false;
	pthread_rwlock_wrlock(&sv->lock);
	sv->locked_ns = clock_monotonic_ns();
	sv->group++;
	sv->uncommitted = true;
	sv->stirred_count = 0;
	sv->stirred_all = false;
	(void)group_may_decide(sv);
	group_apply(sv, waiting, &in);
	if (!waiting && !sv->group_broken)
		hosts_tick(sv);
	pthread_rwlock_unlock(&sv->lock);

	st = group_commit(sv, before + 1, &err);
	if (st != PW_OK && sv->group_writes)
		store_rollback(sv->store);

	pthread_rwlock_wrlock(&sv->lock);
	sv->locked_ns = clock_monotonic_ns();
	refusals_settle(sv->refusals, st == PW_OK ? SETTLED : TAKEN_BACK);
	if (st != PW_OK) {
		ledger_rollback(sv->ledger, 0);
		sv->revision = before;
		settle_stirred(sv, before);
	}
	ledger_commit(sv->ledger);
	sv->durable = sv->revision;
	sv->uncommitted = sv->torn = false;
	pthread_rwlock_unlock(&sv->lock);

	if (st != PW_OK)
		group_refuse(sv, in.head, &err);
	else if (sv->group_writes) {
		metrics_count(COUNT_GROUPS, 1);
		if (atomic_exchange(&sv->disk_refuses, false))
			log_line(LOG_INFO_, "the disk accepts changes again", NULL);
	}
	records_clear(&sv->records);
	group_end(sv, group_part(sv, in.head, st != PW_OK), st != PW_OK);
}

/* Once a second: leases, the disk, what has expired. */
static void tick(struct service *sv)
{
	struct pw_err err;

	if (atomic_load(&sv->disk_refuses) && store_probe(sv->store, &err) == PW_OK) {
		atomic_store(&sv->disk_refuses, false);
		log_line(LOG_INFO_, "the disk accepts changes again", NULL);
	}
	hosts_hear(sv);
	if (hosts_tick_due(sv))
		group_run(sv, 0);
	pthread_rwlock_wrlock(&sv->lock);
	operations_tick(sv, clock_utc_ms());
	ends_tick(sv, clock_utc_ms());
	pthread_rwlock_unlock(&sv->lock);
}

/* Sleeps until there is work; takes the queue, and some of who is woken. False: the end. With `mutex` held. */
static bool writer_wait(struct service *sv, int64_t tick_at, size_t *changes, struct request **woken)
{
	for (;;) {
		int64_t now = clock_monotonic_ms(), next = tick_at;
		struct timespec until;

		(void)waiters_wake_due(&sv->waiters, sv->draining ? INT64_MAX : now);
		*woken = waiters_take(&sv->waiters, sv->draining ? 0 : sv->config->wake_rate, now, &next);
		*changes = sv->queue.count;
		if (*woken || *changes || now >= tick_at || sv->picture_wanted)
			return true;
		if (sv->stop)
			return false;
		until = (struct timespec){ next / 1000, next % 1000 * 1000000 };
		pthread_cond_timedwait(&sv->wake, &sv->mutex, &until);
	}
}

static void *writer_main(void *arg)
{
	struct service *sv = arg;
	int64_t tick_at = clock_monotonic_ms() + TICK_MS;
	struct request *woken;
	size_t changes;
	bool go = true, picture;

	while (go) {
		pthread_mutex_lock(&sv->mutex);
		go = writer_wait(sv, tick_at, &changes, &woken);
		picture = sv->picture_wanted;
		pthread_mutex_unlock(&sv->mutex);
		metrics_count(COUNT_WOKEN, resume_all(woken));
		if (changes)
			group_run(sv, changes);
		if (picture)
			picture_take(sv);
		if (clock_monotonic_ms() >= tick_at) {
			tick(sv);
			tick_at = clock_monotonic_ms() + TICK_MS;
		}
	}
	return NULL;
}

enum pw_status writer_start(struct service *sv, struct pw_err *err)
{
	int e;

	if (sv->ledger)
		ledger_on_pause(sv->ledger, let_readers_in, sv);
	list_init(&sv->readers);
	e = pthread_create(&sv->writer, NULL, writer_main, sv);
	if (e)
		return pw_fail(err, PW_NO_MEMORY, "starting the writer thread: %s", strerror(e));
	sv->writer_runs = true;
	return PW_OK;
}

void writer_stop(struct service *sv)
{
	if (!sv->writer_runs)
		return;
	pthread_mutex_lock(&sv->mutex);
	sv->stop = true;
	pthread_cond_signal(&sv->wake);
	pthread_mutex_unlock(&sv->mutex);
	pthread_join(sv->writer, NULL);
	sv->writer_runs = false;
}

void service_drain(struct service *sv)
{
	pthread_mutex_lock(&sv->mutex);
	sv->draining = true;
	pthread_cond_signal(&sv->wake);
	pthread_mutex_unlock(&sv->mutex);
	if (sv->jobs)
		jobs_drain(sv->jobs);
	if (sv->reads)
		reads_drain(sv->reads);
}

static void refuse_all(struct request *head)
{
	for (struct request *r = head; r; r = r->next)
		if (r->begun)
			(void)answer_problem(r, PROBLEM_OUTCOME_UNKNOWN, "the server stops in the middle of the batch");
		else if (!r->settled)
			(void)answer_stopping(r);
	resume_all(head);
}

void service_cut(struct service *sv)
{
	struct request *changes, *readers, *waiters;
	int64_t never = 0;

	pthread_mutex_lock(&sv->mutex);
	sv->cut = true;
	changes = queue_empty(&sv->queue);
	readers = list_take(&sv->readers);
	(void)waiters_wake_due(&sv->waiters, INT64_MAX);
	waiters = waiters_take(&sv->waiters, 0, 0, &never);
	pthread_cond_signal(&sv->wake);
	pthread_mutex_unlock(&sv->mutex);
	refuse_all(changes);
	refuse_all(readers);
	refuse_all(waiters);
	if (sv->jobs)
		jobs_cut(sv->jobs);
	if (sv->reads)
		reads_cut(sv->reads);
}

enum pw_problem service_left(struct service *sv, const char **why)
{
	bool committing;

	pthread_mutex_lock(&sv->mutex);
	committing = sv->committing;
	pthread_mutex_unlock(&sv->mutex);
	*why = committing ? "the server stopped while the change was being committed"
			  : "the server is stopping: nothing was changed";
	return committing ? PROBLEM_OUTCOME_UNKNOWN : PROBLEM_NOT_READY;
}
