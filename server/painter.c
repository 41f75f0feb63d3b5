/*
 * Saving pictures. The painter thread asks the writer for one piece after the other and saves each, all in one
 * transaction of ledger.db: neither holds the other up for longer than a piece. At a stop the last picture goes on
 * where the painter was, and is given up when the time for it is over: the journal has it all.
 */
#include <stdio.h>
#include <string.h>
#include <time.h>

#include "server/log.h"
#include "server/metrics.h"
#include "server/picture.h"

enum { LOOK_MS = 1000, DUTY = 8 }; /* at most an eighth of the time goes into pictures */

void picture_take(struct service *sv)
{
	struct picture_work *w;

	pthread_rwlock_wrlock(&sv->lock);
	w = picture_piece(sv, sv->picture_fresh);
	pthread_rwlock_unlock(&sv->lock);
	pthread_mutex_lock(&sv->mutex);
	sv->picture_wanted = false;
	sv->picture_ready = w;
	pthread_cond_signal(&sv->painter_wake);
	pthread_mutex_unlock(&sv->mutex);
}

/* Asks the writer for a piece; *out NULL: out of memory. False: the server stops, and picture_last goes on. */
static bool piece_from_writer(struct service *sv, bool fresh, struct picture_work **out)
{
	bool go;

	pthread_mutex_lock(&sv->mutex);
	sv->picture_fresh = fresh;
	sv->picture_wanted = true;
	pthread_cond_signal(&sv->wake);
	while (sv->picture_wanted && !sv->painter_stop)
		pthread_cond_wait(&sv->painter_wake, &sv->mutex);
	go = !sv->painter_stop;
	if (go) {
		*out = sv->picture_ready;
		sv->picture_ready = NULL;
	}
	pthread_mutex_unlock(&sv->mutex);
	return go;
}

/* The same once all other threads have ended. False: there is no time left. */
static bool piece_of_one_thread(struct service *sv, bool fresh, int64_t deadline_ms, struct picture_work **out)
{
	if (clock_monotonic_ms() >= deadline_ms)
		return false;
	*out = sv->picture_ready ? sv->picture_ready : picture_piece(sv, fresh);
	sv->picture_ready = NULL;
	return true;
}

static void saved(struct service *sv, uint64_t revision, uint64_t began_ns)
{
	metrics_time(TIME_CHECKPOINT, clock_monotonic_ns() - began_ns);
	metrics_count(COUNT_CHECKPOINTS, 1);
	pthread_rwlock_wrlock(&sv->lock);
	sv->pictured = revision;
	pthread_rwlock_unlock(&sv->lock);
	atomic_store(&sv->picture_saved_ms, clock_utc_ms());
	atomic_store(&sv->picture_took_ms, (int64_t)((clock_monotonic_ns() - began_ns) / 1000000));
	atomic_store(&sv->picture_since_ms, 0);
	pthread_mutex_lock(&sv->mutex);
	sv->picture_fault[0] = '\0';
	pthread_mutex_unlock(&sv->mutex);
}

static void not_saved(struct service *sv, const struct pw_err *err)
{
	sv->picture_open = false;
	store_drop_picture(sv->store);
	atomic_store(&sv->repaint, true);
	pthread_mutex_lock(&sv->mutex);
	snprintf(sv->picture_fault, sizeof sv->picture_fault, "%s", err->msg);
	pthread_mutex_unlock(&sv->mutex);
}

static enum pw_status save(struct service *sv, struct picture_work *w, struct pw_err *err)
{
	enum pw_status st = w ? store_save_picture(sv->store, picture_of(w), err)
			      : pw_fail(err, PW_NO_MEMORY, "out of memory while taking a picture");

	if (st != PW_OK)
		not_saved(sv, err);
	return st;
}

/*
 * Saves a picture, or what is left of the one that is open. deadline_ms: 0 on the painter's thread, with the writer at
 * work; else until when. False: it stays open. Else *st says what became of it.
 */
static bool paint(struct service *sv, int64_t deadline_ms, enum pw_status *st, struct pw_err *err)
{
	uint64_t began = clock_monotonic_ns();
	struct picture p = { .more = true };

	if (!atomic_load(&sv->picture_since_ms))
		atomic_store(&sv->picture_since_ms, clock_monotonic_ms());
	for (*st = PW_OK; *st == PW_OK && p.more;) {
		struct picture_work *w = NULL;

		if (deadline_ms ? !piece_of_one_thread(sv, !sv->picture_open, deadline_ms, &w)
				: !piece_from_writer(sv, !sv->picture_open, &w))
			return false;
		sv->picture_open = true;
		if (w)
			p = *picture_of(w);
		*st = save(sv, w, err);
		picture_free(w);
	}
	if (*st == PW_OK) {
		sv->picture_open = false;
		saved(sv, p.revision, began);
	}
	return true;
}

static void upkeep(struct service *sv)
{
	struct pw_err err;

	if (store_wal_checkpoint_picture(sv->store, &err) != PW_OK)
		log_line(LOG_WARNING_, "upkeep of the picture failed", "error", err.msg, NULL);
}

static bool has_news(struct service *sv)
{
	bool news;

	pthread_rwlock_rdlock(&sv->lock);
	news = sv->durable != sv->pictured || sv->repaint;
	pthread_rwlock_unlock(&sv->lock);
	return news;
}

/* False: the end. */
static bool painter_sleeps(struct service *sv)
{
	int64_t until = clock_monotonic_ms() + LOOK_MS;
	struct timespec at = { until / 1000, until % 1000 * 1000000 };
	bool go;

	pthread_mutex_lock(&sv->mutex);
	if (!sv->painter_stop)
		pthread_cond_timedwait(&sv->painter_wake, &sv->mutex, &at);
	go = !sv->painter_stop;
	pthread_mutex_unlock(&sv->mutex);
	return go;
}

static void *painter_main(void *arg)
{
	struct service *sv = arg;
	int64_t pause = (int64_t)sv->config->checkpoint_seconds * 1000, due = clock_monotonic_ms() + pause;

	while (painter_sleeps(sv)) {
		int64_t began = clock_monotonic_ms();
		enum pw_status st;
		struct pw_err err;

		if (began >= due && has_news(sv)) {
			if (!paint(sv, 0, &st, &err))
				break;
			if (st != PW_OK)
				log_line(LOG_WARNING_, "the picture could not be saved: it will be whole next time",
					 "error", err.msg, NULL);
			due = clock_monotonic_ms() + (clock_monotonic_ms() - began) * DUTY + pause;
		}
		upkeep(sv);
	}
	return NULL;
}

enum pw_status painter_start(struct service *sv, struct pw_err *err)
{
	int e = pthread_create(&sv->painter, NULL, painter_main, sv);

	if (e)
		return pw_fail(err, PW_NO_MEMORY, "starting the painter thread: %s", strerror(e));
	sv->painter_runs = true;
	return PW_OK;
}

void painter_stop(struct service *sv)
{
	if (!sv->painter_runs)
		return;
	pthread_mutex_lock(&sv->mutex);
	sv->painter_stop = true;
	pthread_cond_signal(&sv->painter_wake);
	pthread_mutex_unlock(&sv->mutex);
	pthread_join(sv->painter, NULL);
	sv->painter_runs = false;
}

enum pw_status picture_last(struct service *sv, struct pw_err *err)
{
	int64_t deadline = clock_monotonic_ms() + (int64_t)sv->config->last_picture_seconds * 1000;
	enum pw_status st = PW_OK;
	bool over = true;

	if (sv->durable != sv->pictured || sv->repaint || sv->picture_open)
		over = paint(sv, deadline, &st, err);
	picture_free(sv->picture_ready);
	sv->picture_ready = NULL;
	if (over)
		return st;
	store_drop_picture(sv->store);
	log_detail(LOG_INFO_, "no time for a last picture: the next start reads more journal",
		   "picture at revision %" PRIu64 ", journal to %" PRIu64, sv->pictured, sv->durable);
	return PW_OK;
}

bool picture_is_stale(struct service *sv, char *why, size_t size)
{
	int64_t since = atomic_load(&sv->picture_since_ms), now = clock_monotonic_ms();

	if (!since || now - since < (int64_t)sv->config->picture_stale_seconds * 1000)
		return false;
	pthread_mutex_lock(&sv->mutex);
	snprintf(why, size, "the tables in ledger.db could not be brought up to date for %" PRId64 " s: %s",
		 (now - since) / 1000, sv->picture_fault[0] ? sv->picture_fault : "the disk does not answer");
	pthread_mutex_unlock(&sv->mutex);
	return true;
}
