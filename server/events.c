#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/jsonr.h"
#include "server/feed_ring.h"
#include "server/routes.h"
#include "server/service_impl.h"

enum { FEED_LOOKED = 1 << 14 }; /* an answer of the feed ends after so many records of other hosts */

/* One answer that is being filled from journal rows. */
struct feed {
	struct service *sv;
	struct jsonw w;
	uint64_t after, end; /* revisions after `after`, up to `end` */
	uint64_t limit, count;
	uint64_t last;              /* revision of the last one written, or looked at */
	uint64_t gap;               /* what is not there any more ends before this revision */
	const struct pw_uuid *host; /* NULL: of all */
	uint64_t looked;            /* records that were not for this host */
	bool full;                  /* the answer is: nothing more goes in */
	bool whole;                 /* large records are told in full */
	size_t bytes, brief_from;   /* limits of the answer, and of a record told in full */
	const _Atomic bool *cut;    /* the server stops */
	enum pw_status st;
	struct pw_err err;
};

static bool is_for(const struct feed *f, const struct record *rec)
{
	struct pw_uuid host;

	return !f->host || (record_host(rec, &host) && pw_uuid_equal(&host, f->host));
}

static bool feed_row(void *ctx, const struct journal_row *row)
{
	struct feed *f = ctx;
	struct record_reader rd;
	struct record rec;

	record_read_init(&rd, row);
	rd.for_feed = !f->whole;
	while (!f->full && (f->st = record_next(&rd, &rec, &f->err)) == PW_OK && rec.revision <= f->end) {
		if (rec.revision <= f->after)
			continue;
		if (rec.revision != f->last + 1) {
			f->gap = rec.revision;
			break;
		}
		f->last = rec.revision;
		if (!is_for(f, &rec)) {
			f->full = ++f->looked == FEED_LOOKED;
			continue;
		}
		if (f->whole)
			record_write(&f->w, &rec);
		else
			record_write_brief(&f->w, &rec, f->brief_from);
		f->full = ++f->count == f->limit || f->w.used > f->bytes;
	}
	record_read_release(&rd);
	return !f->full && !atomic_load(f->cut) && !f->gap && f->st == PW_NOT_FOUND && row->last < f->end;
}

enum handled answer_store(struct request *r, const struct pw_err *err)
{
	return answer_problem(r, err->status == PW_NO_MEMORY ? PROBLEM_NO_MEMORY : PROBLEM_STORAGE, "%s", err->msg);
}

static enum handled answer_compacted(struct request *r, uint64_t oldest, uint64_t after)
{
	struct refusal why;
	struct jsonw w;

	refuse(&why, PROBLEM_COMPACTED, "events after revision %" PRIu64 " are trimmed: the oldest kept is %" PRIu64,
	       after, oldest);
	jsonw_init(&w);
	problem_write(&w, &why, r->id, PROBLEM_OPEN);
	jsonw_m_u64(&w, "oldest", oldest);
	jsonw_close(&w, '}');
	return answer_json(r, problem_status(PROBLEM_COMPACTED), &w);
}

struct feed_query {
	uint64_t after, limit;
	struct pw_uuid id;
	const struct pw_uuid *host; /* NULL: of all */
	bool whole;
};

static void feed_begin(struct feed *f, const struct service *sv, const struct feed_query *q, uint64_t durable)
{
	*f = (struct feed){ .after = q->after,
			    .end = durable,
			    .limit = q->limit,
			    .last = q->after,
			    .host = q->host,
			    .whole = q->whole,
			    .bytes = sv->config->answer_bytes,
			    .brief_from = sv->config->event_bytes,
			    .cut = &sv->cut,
			    .st = PW_NOT_FOUND };
	list_begin(&f->w);
}

static enum handled feed_end(struct request *r, struct feed *f)
{
	if (f->st == PW_STORAGE || f->st == PW_NO_MEMORY) {
		jsonw_release(&f->w);
		return answer_store(r, &f->err);
	}
	if (f->gap) { /* trimmed while it was read */
		jsonw_release(&f->w);
		return answer_compacted(r, f->gap, f->after);
	}
	jsonw_close(&f->w, ']');
	jsonw_m_u64(&f->w, "next", f->last);
	jsonw_close(&f->w, '}');
	return answer_json(r, 200, &f->w);
}

static bool query_id(struct request *r, const char *name, struct pw_uuid *out)
{
	const char *text = request_query(r, name);

	if (!text || pw_uuid_parse(text, strlen(text), out))
		return true;
	answer_problem(r, PROBLEM_INVALID_REQUEST, "%s=%s is not a UUID", name, text);
	return false;
}

/* Of a host alone: nothing is read while it has no news, and nothing of others wakes who waits. */
static enum handled answer_nothing(struct request *r, uint64_t next)
{
	struct jsonw w;

	list_begin(&w);
	jsonw_close(&w, ']');
	jsonw_m_u64(&w, "next", next);
	jsonw_close(&w, '}');
	return answer_json(r, 200, &w);
}

/*
 * One look at the state: the last durable revision, and whether anything up to it may be for the request. Who finds
 * nothing waits, if he has the time. False: answered, or parked.
 */
static bool look(struct service *sv, struct request *r, const struct pw_uuid *host, uint64_t after, uint64_t *durable,
		 enum handled *handled)
{
	const struct host *h;
	bool news, ahead;

	*handled = DONE;
	if (!state_read_lock(sv)) {
		(void)answer_stopping(r);
		return false;
	}
	*durable = sv->durable;
	h = host ? ledger_host(sv->ledger, host) : NULL;
	ahead = after > *durable;
	news = !host ? *durable > after : *durable > after && h && host_note(h)->last_event > after;
	if (!news && clock_monotonic_ms() < r->deadline_ms &&
	    park_wait(sv, r, host && !ahead ? WAIT_EVENTS : WAIT_REVISION, host, after))
		*handled = PARKED;
	pthread_rwlock_unlock(&sv->lock);
	if (*handled == DONE && !news && (host || after >= *durable))
		(void)answer_nothing(r, ahead || !host ? after : *durable);
	return *handled == DONE && !r->response.status;
}

/* False: answered. */
static bool feed_query(struct request *r, struct feed_query *q)
{
	static const char *const known[] = { "after", "limit", "wait", "host", "full", NULL };

	if (!query_known(r, known) || !query_u64(r, "after", 0, INT64_MAX, 0, &q->after) ||
	    !query_u64(r, "limit", 1, 1000, 100, &q->limit) || !query_id(r, "host", &q->id) ||
	    !query_flag(r, "full", &q->whole) || !wait_deadline(r))
		return false;
	q->host = request_query(r, "host") ? &q->id : NULL;
	return true;
}

/* From the journal, on a thread of long reads. */
static enum handled events_read(struct service *sv, struct request *r)
{
	struct journal_span span;
	struct feed_query q;
	struct feed f;
	struct pw_err err;
	enum handled handled = DONE;
	uint64_t durable;

	if (!feed_query(r, &q) || !look(sv, r, q.host, q.after, &durable, &handled))
		return handled;
	store_span(sv->store, &span);
	if (span.oldest > 1 && q.after + 1 < span.oldest)
		return answer_compacted(r, span.oldest, q.after);
	feed_begin(&f, sv, &q, durable);
	if (store_read(sv->store, q.after, feed_row, &f, &err) != PW_OK) {
		jsonw_release(&f.w);
		return answer_store(r, &err);
	}
	return feed_end(r, &f);
}

/* Whoever keeps up is answered from memory. */
enum handled events_get(struct service *sv, struct request *r)
{
	struct feed_query q;
	struct feed f;
	enum handled handled = DONE;
	uint64_t durable;

	if (!feed_query(r, &q) || !look(sv, r, q.host, q.after, &durable, &handled))
		return handled;
	if (q.whole)
		return reads_park(sv->reads, r, events_read);
	feed_begin(&f, sv, &q, durable);
	if (feed_ring_read(sv->feed, q.after, feed_row, &f))
		return feed_end(r, &f);
	jsonw_release(&f.w);
	return reads_park(sv->reads, r, events_read);
}

/* Violations. */

static void violation_item(void *ctx, const struct violation *v)
{
	struct feed *f = ctx;

	if (f->count < f->limit && (!f->bytes || f->w.used <= f->bytes)) {
		violation_write(f->sv, &f->w, v);
		f->last = v->revision;
		f->count++;
	} else {
		f->count = f->limit + 1; /* there are more */
	}
}

struct violation_query {
	struct violation_filter filter;
	uint64_t limit;
};

/* False: answered. */
static bool violation_query(struct request *r, struct violation_query *q)
{
	static const char *const known[] = { "after", "host", "vm", "limit", "cursor", NULL };

	*q = (struct violation_query){ 0 };
	if (!query_known(r, known) || !query_u64(r, "after", 0, INT64_MAX, 0, &q->filter.after) ||
	    !query_u64(r, "cursor", 1, INT64_MAX, 0, &q->filter.before) ||
	    !query_u64(r, "limit", 1, 1000, 100, &q->limit) || !query_id(r, "host", &q->filter.host) ||
	    !query_id(r, "vm", &q->filter.vm))
		return false;
	q->filter.limit = (unsigned)q->limit + 1;
	return true;
}

static enum handled violations_read(struct service *sv, struct request *r)
{
	struct violation_query q;
	struct feed f = { .sv = sv };
	struct pw_err err;
	char next[24] = "";

	if (!violation_query(r, &q))
		return DONE;
	f.limit = q.limit;
	f.bytes = sv->config->answer_bytes;
	list_begin(&f.w);
	if (store_violations(sv->store, &q.filter, violation_item, &f, &err) != PW_OK) {
		jsonw_release(&f.w);
		return answer_store(r, &err);
	}
	if (f.count > f.limit)
		snprintf(next, sizeof next, "%" PRIu64, f.last);
	list_end(&f.w, next[0] ? next : NULL, NULL);
	return answer_json(r, 200, &f.w);
}

enum handled violations_get(struct service *sv, struct request *r)
{
	struct violation_query q;

	return violation_query(r, &q) ? reads_park(sv->reads, r, violations_read) : DONE;
}
