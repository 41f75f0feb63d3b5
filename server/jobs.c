/* Verification and backup as jobs. Whoever waits for one is parked here and resumed by the job's own thread, which
 * looks at deadlines whenever it tells how far it is. The lock is held for moments, with nothing taken under it. */
#include "server/jobs.h"

#include <errno.h>
#include <pthread.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "server/log.h"
#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(backup)
DECODE_JOB(empty)

enum { KEPT = 16, LOOK_MS = 50 };

enum job_kind { JOB_VERIFY, JOB_BACKUP };
enum job_state { JOB_RUNNING, JOB_SUCCEEDED, JOB_FAILED };

struct job {
	struct pw_uuid id;
	enum job_kind kind;
	enum job_state state;
	int64_t created_ms, finished_ms;
	uint64_t done, total; /* bytes */
	char path[4096];      /* of a backup */
	char *result;         /* heap, JSON; of one that succeeded */
	char *problem;        /* heap, JSON; of one that failed */
};

struct jobs {
	struct service *service; /* borrowed */
	pthread_mutex_t lock;
	struct job *kept[KEPT]; /* the newest first */
	bool running;           /* kept[0] is */
	bool draining;
	pthread_t thread; /* the last one's, to be joined */
	bool has_thread;
	struct request *waiters; /* for the one that runs */
	int64_t looked_ms;       /* the running one's own: when it last looked at their deadlines */
};

static void job_free(struct job *b)
{
	if (!b)
		return;
	free(b->result);
	free(b->problem);
	free(b);
}

static const char *kind_name(enum job_kind kind)
{
	switch (kind) {
	case JOB_VERIFY: return "verify";
	case JOB_BACKUP: break;
	}
	return "backup";
}

static const char *state_name(enum job_state state)
{
	switch (state) {
	case JOB_RUNNING: return "running";
	case JOB_SUCCEEDED: return "succeeded";
	case JOB_FAILED: break;
	}
	return "failed";
}

static void write_job(struct jsonw *w, const struct job *b)
{
	jsonw_open(w, '{');
	jsonw_m_uuid(w, "id", &b->id);
	jsonw_m_str(w, "kind", kind_name(b->kind));
	jsonw_m_str(w, "state", state_name(b->state));
	jsonw_m_u64(w, "done", b->done);
	jsonw_m_u64(w, "total", b->total);
	jsonw_m_time(w, "created", b->created_ms);
	if (b->finished_ms)
		jsonw_m_time(w, "finished", b->finished_ms);
	if (b->result)
		jsonw_m_raw(w, "result", b->result, strlen(b->result));
	if (b->problem)
		jsonw_m_raw(w, "problem", b->problem, strlen(b->problem));
	jsonw_close(w, '}');
}

/* --- Waiting --- */

static void resume_list(struct request *r)
{
	while (r) {
		struct request *following = r->next;

		request_resume(r);
		r = following;
	}
}

/* Takes the waiters whose time is over. With the lock. */
static struct request *waiters_due(struct jobs *j, int64_t now)
{
	struct request *due = NULL, **at = &j->waiters;

	while (*at) {
		struct request *r = *at;

		if (r->deadline_ms > now && !j->draining) {
			at = &r->next;
			continue;
		}
		*at = r->next;
		r->deadline_ms = 1; /* it is answered with what there is */
		r->next = due;
		due = r;
	}
	return due;
}

/* --- The job's thread --- */

static bool on_progress(void *ctx, uint64_t done, uint64_t total)
{
	struct jobs *j = ctx;
	int64_t now = clock_monotonic_ms();
	struct request *due = NULL;
	bool go;

	pthread_mutex_lock(&j->lock);
	j->kept[0]->done = done;
	j->kept[0]->total = total;
	go = !j->draining;
	if (now >= j->looked_ms + LOOK_MS || !go) {
		j->looked_ms = now;
		due = waiters_due(j, now);
	}
	pthread_mutex_unlock(&j->lock);
	resume_list(due);
	return go;
}

static void write_report(struct jsonw *w, const struct verify_report *report)
{
	char head[2 * STORE_HASH + 1];

	sodium_bin2hex(head, sizeof head, report->head, sizeof report->head);
	jsonw_open(w, '{');
	jsonw_m_bool(w, "ok", report->broken == 0 && report->picture != PICTURE_DAMAGED);
	jsonw_m_u64(w, "rows", report->rows);
	jsonw_m_u64(w, "oldest", report->oldest);
	jsonw_m_u64(w, "newest", report->newest);
	if (report->broken)
		jsonw_m_u64(w, "broken", report->broken);
	jsonw_m_str(w, "head", head);
	jsonw_m_str(w, "picture", picture_verdict_name(report->picture));
	jsonw_m_u64(w, "picture_revision", report->picture_revision);
	if (report->picture == PICTURE_DAMAGED)
		jsonw_m_str(w, "picture_fault", report->picture_fault);
	jsonw_close(w, '}');
}

static enum pw_status do_verify(struct jobs *j, struct job *b, struct jsonw *w, struct pw_err *err)
{
	struct progress p = { on_progress, j };
	struct verify_report report;
	enum pw_status st = store_verify(j->service->config->data, &p, &report, err);

	if (st == PW_OK)
		write_report(w, &report);
	return st;
}

static enum pw_status do_backup(struct jobs *j, struct job *b, struct jsonw *w, struct pw_err *err)
{
	struct progress p = { on_progress, j };
	uint64_t revision;
	enum pw_status st = store_backup(j->service->store, b->path, &p, &revision, err);

	if (st != PW_OK)
		return st;
	jsonw_open(w, '{');
	jsonw_m_str(w, "path", b->path);
	jsonw_m_u64(w, "revision", revision);
	jsonw_close(w, '}');
	return PW_OK;
}

static enum pw_problem problem_of(enum pw_status st)
{
	return st == PW_CONFLICT ? PROBLEM_BACKUP_EXISTS : st == PW_BUSY ? PROBLEM_NOT_READY : PROBLEM_STORAGE;
}

static char *problem_text(enum pw_status st, const struct pw_err *err)
{
	struct refusal why;
	struct jsonw w;
	size_t len;

	refuse(&why, problem_of(st), "%s", st == PW_BUSY ? "the server is stopping" : err->msg);
	jsonw_init(&w);
	problem_write(&w, &why, NULL, PROBLEM_CLOSED);
	return jsonw_finish(&w, &len);
}

static void finish(struct jobs *j, struct job *b, enum pw_status st, struct jsonw *w, const struct pw_err *err)
{
	struct request *waiters;
	size_t len;
	char *text = st == PW_OK ? jsonw_finish(w, &len) : problem_text(st, err);

	if (st != PW_OK)
		log_line(LOG_WARNING_, "a job failed", "kind", kind_name(b->kind), "error", err->msg, NULL);
	pthread_mutex_lock(&j->lock);
	*(st == PW_OK ? &b->result : &b->problem) = text;
	b->state = st == PW_OK && text ? JOB_SUCCEEDED : JOB_FAILED;
	if (b->state == JOB_SUCCEEDED)
		b->done = b->total;
	b->finished_ms = clock_utc_ms();
	j->running = false;
	waiters = j->waiters;
	j->waiters = NULL;
	pthread_mutex_unlock(&j->lock);
	resume_list(waiters);
}

static void *job_main(void *arg)
{
	struct jobs *j = arg;
	struct job *b = j->kept[0]; /* nobody moves it while it runs */
	struct pw_err err = { 0 };
	struct jsonw w;
	enum pw_status st;

	jsonw_init(&w);
	st = b->kind == JOB_VERIFY ? do_verify(j, b, &w, &err) : do_backup(j, b, &w, &err);
	finish(j, b, st, &w, &err);
	jsonw_release(&w);
	return NULL;
}

/* --- Beginning one --- */

static void keep(struct jobs *j, struct job *b)
{
	job_free(j->kept[KEPT - 1]);
	memmove(j->kept + 1, j->kept, (KEPT - 1) * sizeof(struct job *));
	j->kept[0] = b;
}

static void unkeep(struct jobs *j)
{
	memmove(j->kept, j->kept + 1, (KEPT - 1) * sizeof(struct job *));
	j->kept[KEPT - 1] = NULL;
}

static enum handled answer_running(struct request *r, const struct pw_uuid *id)
{
	char text[PW_UUID_TEXT];

	pw_uuid_format(id, text);
	answer_problem(r, PROBLEM_BUSY, "job %s runs: one at a time", text);
	answer_header(r, "Retry-After", "%d", 1);
	return DONE;
}

static enum handled answer_begun(struct request *r, const struct job *b)
{
	char text[PW_UUID_TEXT];
	struct jsonw w;

	jsonw_init(&w);
	write_job(&w, b);
	answer_json(r, 202, &w);
	pw_uuid_format(&b->id, text);
	if (r->response.status == 202)
		answer_header(r, "Location", "/v1/jobs/%s", text);
	return DONE;
}

/* Takes b. */
static enum handled begin(struct jobs *j, struct request *r, struct job *b)
{
	struct pw_uuid other;
	bool begun;
	int e;

	b->id = uuid_fresh();
	b->created_ms = clock_utc_ms();
	pthread_mutex_lock(&j->lock);
	if (j->running || j->draining) {
		bool stops = j->draining;

		other = j->kept[0] ? j->kept[0]->id : b->id;
		pthread_mutex_unlock(&j->lock);
		job_free(b);
		return stops ? answer_stopping(r) : answer_running(r, &other);
	}
	if (j->has_thread)
		pthread_join(j->thread, NULL); /* it is at its end */
	j->has_thread = false;
	answer_begun(r, b);
	keep(j, b);
	e = r->response.status == 202 ? pthread_create(&j->thread, NULL, job_main, j) : 0;
	begun = r->response.status == 202 && e == 0;
	j->has_thread = j->running = begun;
	if (!begun)
		unkeep(j);
	pthread_mutex_unlock(&j->lock);
	if (begun)
		return DONE;
	job_free(b);
	return e ? answer_problem(r, PROBLEM_NO_MEMORY, "starting a thread: %s", strerror(e)) : DONE;
}

static struct job *job_new(struct request *r, enum job_kind kind)
{
	struct job *b = calloc(1, sizeof *b);

	if (b)
		b->kind = kind;
	else
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory");
	return b;
}

static enum handled begin_verify(struct service *sv, struct request *r)
{
	struct job *b = job_new(r, JOB_VERIFY);

	return b ? begin(sv->jobs, r, b) : DONE;
}

/* What can be known at once is refused at once. */
static bool backup_path(struct service *sv, struct request *r, char *out, size_t size)
{
	const struct backup_body *body = &((struct backup_job *)r->job)->b;
	char folder[4096];

	if (snprintf(folder, sizeof folder, "%s/backups", sv->config->data) >= (int)sizeof folder ||
	    snprintf(out, size, "%s/%s", folder, body->name) >= (int)size) {
		answer_problem(r, PROBLEM_STORAGE, "%s: the path is too long", sv->config->data);
		return false;
	}
	if (mkdir(folder, 0700) != 0 && errno != EEXIST) {
		answer_problem(r, PROBLEM_STORAGE, "%s: %s", folder, strerror(errno));
		return false;
	}
	if (access(out, F_OK) != 0)
		return true;
	answer_problem(r, PROBLEM_BACKUP_EXISTS, "backup to %s: it is there already", out);
	return false;
}

static enum handled begin_backup(struct service *sv, struct request *r)
{
	struct job *b = job_new(r, JOB_BACKUP);

	if (!b)
		return DONE;
	if (backup_path(sv, r, b->path, sizeof b->path))
		return begin(sv->jobs, r, b);
	job_free(b);
	return DONE;
}

void job_act(struct service *sv, struct request *r)
{
}

/* With a key: asked first whether it was answered before, then the job begins, then the answer is kept. The writer does
 * the first and the last; there is nothing for it to act on. */
static enum handled post(struct service *sv, struct request *r, handler_fn do_begin)
{
	if (r->idempotency_key && !r->resumed)
		return park_change(sv, r);
	(void)do_begin(sv, r);
	r->settled = r->response.status < 400;
	return r->idempotency_key && r->response.status < 500 ? park_change(sv, r) : DONE;
}

enum handled backup_post(struct service *sv, struct request *r)
{
	return query_known(r, no_query) && prepare_backup(sv, r) ? post(sv, r, begin_backup) : DONE;
}

enum handled verify_post(struct service *sv, struct request *r)
{
	return query_known(r, no_query) && prepare_empty(sv, r) ? post(sv, r, begin_verify) : DONE;
}

/* --- Looking --- */

/* With the lock. */
static const struct job *find(const struct jobs *j, const struct pw_uuid *id)
{
	for (size_t i = 0; i < KEPT; i++)
		if (j->kept[i] && pw_uuid_equal(&j->kept[i]->id, id))
			return j->kept[i];
	return NULL;
}

enum handled job_get(struct service *sv, struct request *r)
{
	static const char *const known[] = { "wait", NULL };
	struct jobs *j = sv->jobs;
	const struct job *b;
	struct pw_uuid id;
	struct jsonw w;

	if (!query_known(r, known) || !wait_deadline(r) || !arg_uuid(r, 0, PROBLEM_NOT_FOUND, &id))
		return DONE;
	jsonw_init(&w);
	pthread_mutex_lock(&j->lock);
	b = find(j, &id);
	if (b && b->state == JOB_RUNNING && !j->draining && clock_monotonic_ms() < r->deadline_ms) {
		r->next = j->waiters;
		j->waiters = r;
		pthread_mutex_unlock(&j->lock);
		return PARKED;
	}
	if (b)
		write_job(&w, b);
	pthread_mutex_unlock(&j->lock);
	if (b)
		return answer_json(r, 200, &w);
	return answer_problem(r, PROBLEM_NOT_FOUND,
			      "there is no job %s: the last %d are kept, until the server is started anew", r->args[0],
			      KEPT);
}

/* --- Life --- */

enum pw_status jobs_new(struct service *sv, struct jobs **out, struct pw_err *err)
{
	struct jobs *j = calloc(1, sizeof *j);

	if (!j)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while starting");
	j->service = sv;
	pthread_mutex_init(&j->lock, NULL);
	*out = j;
	return PW_OK;
}

void jobs_drain(struct jobs *j)
{
	pthread_mutex_lock(&j->lock);
	j->draining = true;
	pthread_mutex_unlock(&j->lock);
}

void jobs_cut(struct jobs *j)
{
	struct request *waiters;

	pthread_mutex_lock(&j->lock);
	j->draining = true;
	waiters = j->waiters;
	j->waiters = NULL;
	pthread_mutex_unlock(&j->lock);
	for (struct request *r = waiters; r; r = r->next)
		(void)answer_stopping(r);
	resume_list(waiters);
}

void jobs_free(struct jobs *j)
{
	if (!j)
		return;
	jobs_drain(j);
	if (j->has_thread)
		pthread_join(j->thread, NULL);
	for (size_t i = 0; i < KEPT; i++)
		job_free(j->kept[i]);
	pthread_mutex_destroy(&j->lock);
	free(j);
}
