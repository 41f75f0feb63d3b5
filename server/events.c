#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/jsonr.h"
#include "server/routes.h"
#include "server/service_impl.h"

enum {
	FEED_BYTES = 1 << 20,  /* an answer of the feed ends after the record that passes this */
	FEED_LOOKED = 1 << 17, /* or after so many records of other hosts */
};

/* One answer that is being filled from journal rows. */
struct feed {
	struct jsonw w;
	uint64_t after, end; /* revisions after `after`, up to `end` */
	uint64_t limit, count;
	uint64_t last;              /* revision of the last one written, or looked at */
	uint64_t gap;               /* what is not there any more ends before this revision */
	const struct pw_uuid *host; /* NULL: of all */
	uint64_t looked;            /* records that were not for this host */
	bool full;
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
		record_write(&f->w, &rec);
		f->full = ++f->count == f->limit || f->w.used > FEED_BYTES;
	}
	record_read_release(&rd);
	return !f->full && !f->gap && f->st == PW_NOT_FOUND && row->last < f->end;
}

static enum handled answer_store(struct request *r, const struct pw_err *err)
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

/* False: answered, the server stops. */
static bool durable_revision(struct service *sv, struct request *r, uint64_t *out)
{
	if (!state_read_lock(sv)) {
		(void)answer_stopping(r);
		return false;
	}
	*out = sv->durable;
	pthread_rwlock_unlock(&sv->lock);
	return true;
}

static enum handled answer_feed(struct service *sv, struct request *r, const struct pw_uuid *host, uint64_t after,
				uint64_t durable, uint64_t limit)
{
	struct feed f = {
		.after = after, .end = durable, .limit = limit, .last = after, .host = host, .st = PW_NOT_FOUND
	};
	struct journal_span span;
	struct pw_err err;

	store_span(sv->store, &span);
	if (span.oldest > 1 && after + 1 < span.oldest)
		return answer_compacted(r, span.oldest, after);
	list_begin(&f.w);
	if (after < durable && store_read(sv->store, after, feed_row, &f, &err) != PW_OK) {
		jsonw_release(&f.w);
		return answer_store(r, &err);
	}
	if (f.st == PW_STORAGE || f.st == PW_NO_MEMORY) {
		jsonw_release(&f.w);
		return answer_store(r, &f.err);
	}
	if (f.gap) { /* trimmed while it was read */
		jsonw_release(&f.w);
		return answer_compacted(r, f.gap, after);
	}
	jsonw_close(&f.w, ']');
	jsonw_m_u64(&f.w, "next", f.last);
	jsonw_close(&f.w, '}');
	return answer_json(r, 200, &f.w);
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
	if (*handled == DONE && !news && host)
		(void)answer_nothing(r, ahead ? after : *durable);
	return *handled == DONE && !r->response.status;
}

enum handled events_get(struct service *sv, struct request *r)
{
	static const char *const known[] = { "after", "limit", "wait", "host", NULL };
	uint64_t after, limit, durable;
	struct pw_uuid id, *host;
	enum handled handled;

	if (!query_known(r, known) || !query_u64(r, "after", 0, INT64_MAX, 0, &after) ||
	    !query_u64(r, "limit", 1, 1000, 100, &limit) || !query_id(r, "host", &id) || !wait_deadline(r))
		return DONE;
	host = request_query(r, "host") ? &id : NULL;
	return look(sv, r, host, after, &durable, &handled) ? answer_feed(sv, r, host, after, durable, limit) : handled;
}

/* Violations. */

static void violation_item(void *ctx, const struct violation *v)
{
	struct feed *f = ctx;

	if (f->count++ < f->limit) {
		jsonw_raw(&f->w, v->json, strlen(v->json));
		f->last = v->revision;
	}
}

enum handled violations_get(struct service *sv, struct request *r)
{
	static const char *const known[] = { "after", "host", "vm", "limit", "cursor", NULL };
	struct violation_filter filter = { 0 };
	struct feed f = { 0 };
	struct pw_err err;
	char next[24] = "";

	if (!query_known(r, known) || !query_u64(r, "after", 0, INT64_MAX, 0, &filter.after) ||
	    !query_u64(r, "cursor", 1, INT64_MAX, 0, &filter.before) ||
	    !query_u64(r, "limit", 1, 1000, 100, &f.limit) || !query_id(r, "host", &filter.host) ||
	    !query_id(r, "vm", &filter.vm))
		return DONE;
	filter.limit = (unsigned)f.limit + 1;
	list_begin(&f.w);
	if (store_violations(sv->store, &filter, violation_item, &f, &err) != PW_OK) {
		jsonw_release(&f.w);
		return answer_store(r, &err);
	}
	if (f.count > f.limit)
		snprintf(next, sizeof next, "%" PRIu64, f.last);
	list_end(&f.w, next[0] ? next : NULL, NULL);
	return answer_json(r, 200, &f.w);
}

/* History of GFNs: the journal from its end. */

enum { HISTORY_ROWS = 200000 }; /* so far one answer looks back; the cursor goes on from there */

struct history {
	struct jsonw w;
	struct pw_uuid vm;
	char vm_text[PW_UUID_TEXT];
	uint64_t gfn, count;
	uint64_t before, limit, found, rows;
	uint64_t next; /* revisions below this are left to look at; 0: none */
	enum pw_status st;
	struct pw_err err;
};

static bool touches(const struct history *h, const struct record *rec)
{
	static const char *const types[] = { "vm.lifecycle", "vm.reset",     "vm.created",      "vm.deleted",
					     "slot.added",   "slot.deleted", "quarantine.added" };
	char want[64];

	if (rec->is_item) {
		const struct item *it = &rec->item.item;

		if (!pw_uuid_equal(&it->vm, &h->vm))
			return false;
		for (size_t i = 0; i < it->run_count; i++)
			if (it->runs[i].gfn < h->gfn + h->count && h->gfn < it->runs[i].gfn + it->runs[i].count)
				return true;
		return false;
	}
	if (!memmem(rec->json, rec->json_len, h->vm_text, PW_UUID_TEXT - 1))
		return false;
	for (size_t i = 0; i < PW_ARRAY_LEN(types); i++) {
		int n = snprintf(want, sizeof want, "{\"type\":\"%s\"", types[i]);

		if (rec->json_len > (size_t)n && memcmp(rec->json, want, (size_t)n) == 0)
			return true;
	}
	return false;
}

/* The first run of left-over pages that an init_done moved, and that holds a GFN asked for. "[[gfn,count],...]" */
static bool find_moved(const struct history *h, const char *runs, struct gfn_run *out)
{
	while ((runs = strpbrk(runs, "0123456789"))) {
		char *end;

		out->gfn = strtoull(runs, &end, 10);
		if (*end != ',')
			return false;
		out->count = strtoull(end + 1, &end, 10);
		if (*end != ']')
			return false;
		if (out->gfn < h->gfn + h->count && h->gfn < out->gfn + out->count)
			return true;
		runs = end;
	}
	return false;
}

/* An event, with what it did to the pages asked for where that is more than to all of the VM's alike. */
static void write_event(struct history *h, const struct record *rec)
{
	struct jsonr *json = jsonr_parse(rec->json, rec->json_len);
	struct gfn_run run;
	size_t len;
	char *runs = json ? jsonr_text(json, "left_over_runs", &len) : NULL;

	record_begin(&h->w, rec);
	if (runs && find_moved(h, runs, &run)) {
		jsonw_key(&h->w, "moved");
		jsonw_open(&h->w, '{');
		jsonw_m_u64(&h->w, "gfn", run.gfn);
		jsonw_m_u64(&h->w, "count", run.count);
		jsonw_m_str(&h->w, "from", gfn_state_name(GFN_NORMAL));
		jsonw_m_str(&h->w, "to", gfn_state_name(GFN_SECURE_OUT));
		jsonw_close(&h->w, '}');
	}
	jsonw_close(&h->w, '}');
	free(runs);
	jsonr_free(json);
}

/* The one run of a record that holds the first GFN asked for, instead of all of an item's. */
static void write_touch(struct history *h, const struct record *rec)
{
	struct record one = *rec;
	struct gfn_run run;

	if (!rec->is_item) {
		write_event(h, rec);
		return;
	}
	for (size_t i = 0; i < rec->item.item.run_count; i++) {
		run = rec->item.item.runs[i];
		if (run.gfn < h->gfn + h->count && h->gfn < run.gfn + run.count)
			break;
	}
	one.item.item.runs = &run;
	one.item.item.run_count = 1;
	record_write(&h->w, &one);
}

/* Where in its row a touching record begins. */
struct hit {
	size_t at;
	uint64_t revision;
};

static bool add_hit(struct history *h, struct hit **hits, size_t n, struct hit hit)
{
	struct hit *more = realloc(*hits, (n + 1) * sizeof *more);

	if (!more) {
		h->st = pw_fail(&h->err, PW_NO_MEMORY, "out of memory while reading history");
		return false;
	}
	*hits = more;
	more[n] = hit;
	return true;
}

/* The touching records of a row, newest first: rows are read forwards, so their places are collected first. */
static void history_records(struct history *h, const struct journal_row *row)
{
	struct hit *hits = NULL, next = { 0, row->first };
	struct record_reader rd;
	struct record rec;
	size_t n = 0;

	record_read_init(&rd, row);
	for (; (h->st = record_next(&rd, &rec, &h->err)) == PW_OK; next = (struct hit){ rd.at, rd.revision })
		if (rec.revision < h->before && touches(h, &rec) && !add_hit(h, &hits, n++, next))
			break;
	while (h->st == PW_NOT_FOUND && n > 0 && h->found < h->limit) {
		rd.at = hits[--n].at;
		rd.revision = hits[n].revision;
		if (record_next(&rd, &rec, &h->err) != PW_OK) {
			h->st = h->err.status;
			break;
		}
		write_touch(h, &rec);
		h->found++;
		h->next = rec.revision;
	}
	record_read_release(&rd);
	free(hits);
}

static bool history_row(void *ctx, const struct journal_row *row)
{
	struct history *h = ctx;

	h->next = row->first;
	history_records(h, row);
	if (h->st != PW_NOT_FOUND)
		return false;
	return h->found < h->limit && ++h->rows < HISTORY_ROWS;
}

/* There is no such VM; or there is again, if the disk refused its deletion meanwhile. */
void history_missing_act(struct service *sv, struct request *r)
{
	if (arg_vm(sv, r, 0))
		answer_problem(r, PROBLEM_NOT_READY, "the VM's deletion was taken back just now");
}

static bool addresses_of(struct service *sv, const struct pw_uuid *id, struct gfn_alias *alias, unsigned *page_shift)
{
	const struct vm *vm;

	if (!state_read_lock(sv))
		return false; /* handle_read says so */
	vm = ledger_vm(sv->ledger, id);
	if (vm) {
		*alias = vm->alias;
		*page_shift = vm->host->page_shift;
	}
	pthread_rwlock_unlock(&sv->lock);
	return vm;
}

enum handled vm_history(struct service *sv, struct request *r)
{
	static const char *const known[] = { "gfn", "gpa", "count", "limit", "cursor", NULL };
	struct history h = { .st = PW_NOT_FOUND };
	struct query_window win;
	struct gfn_alias alias;
	unsigned page_shift;
	struct journal_span span;
	struct pw_err err;
	char next[24] = "";
	uint64_t end;

	if (!query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &h.limit) ||
	    !arg_uuid(r, 0, PROBLEM_VM_NOT_FOUND, &h.vm))
		return DONE;
	if (!addresses_of(sv, &h.vm, &alias, &page_shift))
		return handle_read(sv, r);
	if (!query_window(r, alias, page_shift, &win))
		return DONE;
	h.gfn = win.gfn;
	h.count = win.count;
	pw_uuid_format(&h.vm, h.vm_text);
	if (!durable_revision(sv, r, &end))
		return DONE;
	end++;
	if (!query_u64(r, "cursor", 1, INT64_MAX, end, &h.before))
		return DONE;
	if (h.before > end)
		h.before = end;
	list_begin(&h.w);
	if (store_read_back(sv->store, h.before, history_row, &h, &err) != PW_OK) {
		jsonw_release(&h.w);
		return answer_store(r, &err);
	}
	if (h.st != PW_NOT_FOUND) {
		jsonw_release(&h.w);
		return answer_store(r, &h.err);
	}
	store_span(sv->store, &span);
	if ((h.found == h.limit || h.rows == HISTORY_ROWS) && h.next > span.oldest)
		snprintf(next, sizeof next, "%" PRIu64, h.next);
	window_end(&h.w, &win, next, NULL);
	return answer_json(r, 200, &h.w);
}
