#include "server/service.h"

#include <errno.h>
#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#include "server/feed_ring.h"
#include "server/history_index.h"
#include "server/log.h"
#include "server/service_impl.h"

static enum pw_status locks_init(struct service *sv, struct pw_err *err)
{
	pthread_rwlockattr_t fair;
	pthread_condattr_t monotonic;
	int e;

	pthread_rwlockattr_init(&fair);
	pthread_rwlockattr_setkind_np(&fair, PTHREAD_RWLOCK_PREFER_WRITER_NONRECURSIVE_NP);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	e = pthread_rwlock_init(&sv->lock, &fair);
	if (e == 0)
		e = pthread_rwlock_init(&sv->tokens_lock, NULL);
	if (e == 0)
		e = pthread_mutex_init(&sv->mutex, NULL);
	if (e == 0)
		e = pthread_cond_init(&sv->wake, &monotonic);
	if (e == 0)
		e = pthread_cond_init(&sv->painter_wake, &monotonic);
	if (e == 0)
		e = pthread_cond_init(&sv->upkeep_wake, &monotonic);
	pthread_rwlockattr_destroy(&fair);
	pthread_condattr_destroy(&monotonic);
	return e == 0 ? PW_OK : pw_fail(err, PW_NO_MEMORY, "making locks: %s", strerror(e));
}

static void notes_release(struct service *sv)
{
	for (size_t i = 0; sv->ledger && i < ledger_host_count(sv->ledger); i++) {
		struct host *h = ledger_host_at(sv->ledger, i);

		if (h->note)
			free(host_note(h)->backends);
		free(h->note);
	}
}

static void service_free(struct service *sv)
{
	if (sv->ledger)
		ledger_commit(sv->ledger);
	notes_release(sv);
	operations_release(sv);
	tokens_release(sv);
	vcpus_release(sv);
	ends_release(sv);
	unknown_release(sv);
	if (sv->ledger)
		leaving_release(sv);
	ledger_free(sv->ledger);
	free(sv->lost);
	free(sv->deleted_vms);
	free(sv->deleted_operations);
	refusals_free(sv->refusals);
	records_release(&sv->records);
	waiters_release(&sv->waiters);
	free(sv->stirred);
	feed_ring_free(sv->feed);
	store_close(sv->store);
	pthread_cond_destroy(&sv->upkeep_wake);
	pthread_cond_destroy(&sv->painter_wake);
	pthread_cond_destroy(&sv->wake);
	pthread_mutex_destroy(&sv->mutex);
	pthread_rwlock_destroy(&sv->tokens_lock);
	pthread_rwlock_destroy(&sv->lock);
	free(sv);
}

enum pw_status service_open(const struct config *c, struct service **out, struct pw_err *err)
{
	struct service *sv = calloc(1, sizeof *sv);
	struct pw_uuid seed;
	enum pw_status st;
	uint64_t mixed;

	if (!sv || sodium_init() < 0) {
		free(sv);
		return pw_fail(err, PW_NO_MEMORY, "out of memory while starting");
	}
	sv->config = c;
	sv->mem.limit = c->memory_bytes;
	sv->started_ms = clock_utc_ms();
	randombytes_buf(sv->hash_key, sizeof sv->hash_key);
	st = locks_init(sv, err);
	if (st != PW_OK) {
		free(sv);
		return st;
	}
	index_init(&sv->operations, &sv->mem, operation_compare);
	index_init(&sv->vm_operations, &sv->mem, operation_vm_compare);
	index_init(&sv->tokens, &sv->mem, token_compare);
	index_init(&sv->vcpus, &sv->mem, vcpus_compare);
	index_init(&sv->ends, &sv->mem, ends_compare);
	index_init(&sv->unknown, &sv->mem, unknown_compare);
	seed = uuid_fresh();
	memcpy(&mixed, seed.b, sizeof mixed);
	waiters_init(&sv->waiters, mixed);
	sv->records.brief_from = c->event_bytes;
	sv->feed = feed_ring_new(c->feed_bytes);
	queue_init(&sv->queue, mixed);
	sv->ledger = ledger_new(&sv->mem);
	sv->refusals = refusals_new(&(struct refusal_limits){ c->violation_repeat_seconds, c->violation_rate,
							      c->violation_burst, c->violation_recent });
	if (!sv->ledger || !sv->feed || !sv->refusals) {
		service_free(sv);
		return pw_fail(err, PW_NO_MEMORY, "out of memory while starting");
	}
	*out = sv;
	return PW_OK;
}

enum pw_status service_start(struct service *sv, struct pw_err *err)
{
	enum pw_status st = store_open_telling(sv->config->data, &sv->start_moves, &sv->store, err);

	if (st == PW_OK)
		st = service_load(sv, err);
	ledger_set_work_limit(sv->ledger, "item-work", sv->config->item_work);
	if (st == PW_OK)
		st = violations_load(sv, err);
	if (st == PW_OK)
		st = writer_start(sv, err);
	if (st == PW_OK)
		st = history_index_start(sv->store, HISTORY_TAIL, &sv->history, err);
	if (st == PW_OK)
		st = jobs_new(sv, &sv->jobs, err);
	if (st == PW_OK)
		st = reads_start(sv, sv->config, &sv->reads, err);
	if (st == PW_OK)
		st = painter_start(sv, err);
	if (st == PW_OK)
		st = upkeep_start(sv, err);
	atomic_store(&sv->ready, st == PW_OK);
	return st;
}

void service_progress(const struct service *sv, struct service_progress *out)
{
	static const char *const words[] = { [START_FILES] = "checking the files of the data directory",
					     [START_PICTURE] = "loading the tables from ledger.db",
					     [START_JOURNAL] = "replaying the journal" };

	*out = (struct service_progress){ .step = words[atomic_load(&sv->start_step)],
					  .replayed = atomic_load(&sv->start_replayed),
					  .total = atomic_load(&sv->start_total) };
	out->moves = atomic_load(&sv->start_moves) + out->replayed;
}

bool service_is_started(const struct service *sv)
{
	return atomic_load(&sv->ready);
}

enum pw_status service_close(struct service *sv, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	reads_free(sv->reads);
	jobs_free(sv->jobs);
	history_index_stop(sv->history);
	upkeep_stop(sv);
	painter_stop(sv);
	writer_stop(sv);
	if (service_is_started(sv)) {
		while (violations_save_some(sv))
			;
		st = picture_last(sv, err);
	}
	service_free(sv);
	return st;
}
