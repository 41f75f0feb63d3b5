/*
 * What keeps the journal's files small, on a thread of its own, so that neither a commit nor a picture waits for it:
 * the WAL is moved into its file, and what is older or more than is to be kept goes, in small steps.
 */
#include <string.h>

#include "server/log.h"
#include "server/service_impl.h"

enum {
	MOVE_MS = 100,  /* between two looks at the WAL */
	TRIM_MS = 1000, /* and at what is to be kept */
	EXPIRE_MS = 50, /* of each look go into forgetting answers, at most */
	ANSWERS_A_STEP = 64,
	WAL_LONG_MS = 60000,  /* so long a WAL may be over its bound without a word */
	WAL_AGAIN_MS = 600000 /* and so long after one */
};

static enum pw_status trim(struct service *sv, struct pw_err *err)
{
	const struct config *c = sv->config;
	uint64_t through = 0, by_size;

	if (store_in_doubt(sv->store))
		return PW_OK; /* nothing is written before that is settled */
	if (c->retain_hours)
		through = store_revision_before(sv->store, clock_utc_ms() - (int64_t)c->retain_hours * 3600 * 1000);
	if (c->retain_bytes) {
		by_size = store_revision_keeping(sv->store, c->retain_bytes);
		if (by_size > through)
			through = by_size;
	}
	return through ? store_trim(sv->store, through, err) : PW_OK;
}

struct upkeep {
	bool failed;     /* the last time: said once */
	int64_t trim_at; /* monotonic */
	struct wal_watch {
		const char *file;
		int64_t warn_at; /* 0: it is within its bound */
	} journal, ledger;
};

/* Somebody reads in it all the time, or the disk does not take it. */
static void watch_wal(struct wal_watch *w, uint64_t size, uint64_t bound, int64_t now)
{
	if (size <= 2 * bound) {
		w->warn_at = 0;
		return;
	}
	if (!w->warn_at)
		w->warn_at = now + WAL_LONG_MS;
	if (now < w->warn_at)
		return;
	log_detail(LOG_WARNING_, "a WAL file does not shrink: is somebody reading in it all the time?",
		   "%s: %" PRIu64 " bytes", w->file, size);
	w->warn_at = now + WAL_AGAIN_MS;
}

/* What is due, in steps for each of which the writer waits; what is left after a while goes with the next look. */
static void expire_answers(struct service *sv)
{
	int64_t until = clock_monotonic_ms() + EXPIRE_MS;
	unsigned gone = ANSWERS_A_STEP;
	struct pw_err err;

	while (gone == ANSWERS_A_STEP && !atomic_load(&sv->disk_refuses) && clock_monotonic_ms() < until) {
		gone = 0;
		if (store_in_doubt(sv->store) || store_begin(sv->store, &err) != PW_OK)
			return;
		if (store_answers_expire(sv->store, clock_utc_ms(), ANSWERS_A_STEP, &gone, &err) != PW_OK ||
		    store_commit(sv->store, &err) != PW_OK) {
			store_rollback(sv->store);
			gone = 0;
		}
	}
}

static void look(struct service *sv, struct upkeep *u, int64_t now)
{
	struct wal_sizes wal;
	struct pw_err err;
	enum pw_status st = store_wal_checkpoint(sv->store, &err);

	if (now >= u->trim_at) {
		u->trim_at = now + TRIM_MS;
		if (st == PW_OK)
			st = trim(sv, &err);
		while (violations_save_some(sv) && clock_monotonic_ms() < now + TRIM_MS)
			;
		refusals_forget(sv->refusals, clock_utc_ms());
		store_wal_sizes(sv->store, &wal);
		watch_wal(&u->journal, wal.journal, wal.bound, now);
		watch_wal(&u->ledger, wal.ledger, wal.bound, now);
	}
	expire_answers(sv);
	if (st != PW_OK && !u->failed)
		log_line(LOG_WARNING_, "upkeep of the journal failed", "error", err.msg, NULL);
	u->failed = st != PW_OK;
}

static void *upkeep_main(void *arg)
{
	struct service *sv = arg;
	struct upkeep u = { .journal = { "journal.db-wal", 0 }, .ledger = { "ledger.db-wal", 0 } };

	pthread_mutex_lock(&sv->mutex);
	while (!sv->upkeep_stop) {
		int64_t until = clock_monotonic_ms() + MOVE_MS;
		struct timespec at = { until / 1000, until % 1000 * 1000000 };

		pthread_cond_timedwait(&sv->upkeep_wake, &sv->mutex, &at);
		if (sv->upkeep_stop)
			break;
		pthread_mutex_unlock(&sv->mutex);
		look(sv, &u, clock_monotonic_ms());
		pthread_mutex_lock(&sv->mutex);
	}
	pthread_mutex_unlock(&sv->mutex);
	return NULL;
}

enum pw_status upkeep_start(struct service *sv, struct pw_err *err)
{
	int e = pthread_create(&sv->upkeep, NULL, upkeep_main, sv);

	if (e)
		return pw_fail(err, PW_NO_MEMORY, "starting the upkeep thread: %s", strerror(e));
	sv->upkeep_runs = true;
	return PW_OK;
}

void upkeep_stop(struct service *sv)
{
	if (!sv->upkeep_runs)
		return;
	pthread_mutex_lock(&sv->mutex);
	sv->upkeep_stop = true;
	pthread_cond_signal(&sv->upkeep_wake);
	pthread_mutex_unlock(&sv->mutex);
	pthread_join(sv->upkeep, NULL);
	sv->upkeep_runs = false;
}
