/* What happened to pages of a VM, newest first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/jsonr.h"
#include "server/history_index.h"
#include "server/routes.h"
#include "server/service_impl.h"

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

enum {
	INDEX_BYTES = 8 << 20,   /* of the index that one answer looks at; the cursor goes on from there */
	RECORD_BYTES = 32 << 20, /* and of the journal */
	INDEX_WAIT_MS = 10,      /* for the index to come to where the journal is */
};

struct history {
	struct service *sv;
	struct jsonw w;
	struct pw_uuid vm;
	char vm_text[PW_UUID_TEXT];
	uint64_t gfn, count;
	uint64_t before, limit, found;
	uint64_t bytes; /* of the journal, read so far */
	uint64_t next;  /* revisions below this are left to look at; 0: none */
	uint64_t until; /* where a scan of the journal ends: the index has the rest */
	const struct history_entry *hits;
	size_t hit_count, hit; /* how many, and which is next */
	bool wrong;            /* the index said what is not so */
	enum pw_status st;
	struct pw_err err;
};

static bool touches(const struct history *h, const struct record *rec)
{
	if (rec->is_item) {
		const struct item *it = &rec->item.item;

		if (!pw_uuid_equal(&it->vm, &h->vm))
			return false;
		for (size_t i = 0; i < it->run_count; i++)
			if (it->runs[i].gfn < h->gfn + h->count && h->gfn < it->runs[i].gfn + it->runs[i].count)
				return true;
		return false;
	}
	return history_is_told(rec->json, rec->json_len) &&
	       memmem(rec->json, rec->json_len, h->vm_text, PW_UUID_TEXT - 1);
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
static void write_event_whole(struct history *h, const struct record *rec)
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

static void write_event(struct history *h, const struct record *rec)
{
	size_t most = h->sv->config->event_bytes;

	if (most && rec->json_len > most)
		record_write_brief(&h->w, rec, most);
	else
		write_event_whole(h, rec);
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
	one.brief = NULL;
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

static bool is_enough(const struct history *h)
{
	return h->found >= h->limit || h->bytes >= RECORD_BYTES || h->w.used > h->sv->config->answer_bytes ||
	       atomic_load(&h->sv->cut);
}

/* What the index has not reached yet, from the journal's end. */
static bool scan_row(void *ctx, const struct journal_row *row)
{
	struct history *h = ctx;

	if (row->last <= h->until)
		return false;
	h->next = row->first;
	h->bytes += row->size;
	history_records(h, row);
	return h->st == PW_NOT_FOUND && !is_enough(h);
}

/* False: the index is wrong. */
static bool write_hit(struct history *h, const struct journal_row *row, const struct history_entry *hit)
{
	struct record_reader rd;
	struct record rec;
	bool ok;

	record_read_init(&rd, row);
	rd.at = hit->at;
	rd.revision = hit->revision;
	h->st = hit->at < row->size ? record_next(&rd, &rec, &h->err) : PW_STORAGE;
	ok = h->st == PW_OK && touches(h, &rec);
	if (ok)
		write_touch(h, &rec);
	record_read_release(&rd);
	h->wrong = !ok && h->st != PW_NO_MEMORY;
	return ok;
}

/* The row of the next hit: all hits that are in it. A row that is not there any more was trimmed. */
static bool hit_row(void *ctx, const struct journal_row *row)
{
	struct history *h = ctx;

	h->bytes += row->size;
	for (; h->hit < h->hit_count && h->hits[h->hit].revision >= row->first; h->hit++) {
		if (h->hits[h->hit].revision > row->last || !write_hit(h, row, &h->hits[h->hit]))
			return false;
		h->next = h->hits[h->hit].revision;
		h->found++;
	}
	return false;
}

static enum pw_status write_hits(struct history *h, uint64_t oldest, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	while (st == PW_OK && h->hit < h->hit_count && !is_enough(h) && h->hits[h->hit].revision >= oldest) {
		size_t before = h->hit;

		st = store_read(h->sv->store, h->hits[h->hit].revision - 1, hit_row, h, err);
		if (st == PW_OK && h->hit == before && !h->wrong && h->st != PW_NO_MEMORY)
			break; /* trimmed just now */
		if (st == PW_OK && (h->wrong || h->st == PW_NO_MEMORY))
			st = h->wrong ? pw_fail(err, PW_STORAGE, "a record is not where the index has it")
				      : pw_fail(err, PW_NO_MEMORY, "out of memory while reading history");
	}
	return st;
}

static enum pw_status scan(struct history *h, struct pw_err *err)
{
	enum pw_status st = store_read_back(h->sv->store, h->before, scan_row, h, err);

	if (st == PW_OK && h->st != PW_NOT_FOUND) {
		*err = h->err;
		st = h->st;
	}
	return st;
}

static enum pw_status find(struct history *h, uint64_t oldest, struct pw_err *err)
{
	struct history_window w = { .first = h->gfn, .count = h->count, .before = h->before };
	struct history_entry *hits = malloc(h->limit * sizeof *hits);
	uint64_t left, work = 0;
	size_t wanted = (size_t)(h->limit - h->found);
	enum pw_status st;

	if (!hits)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while reading history");
	history_of_vm(&h->vm, w.subject);
	h->hits = hits;
	st = history_index_find(h->sv->history, &w, INDEX_BYTES, hits, wanted, &h->hit_count, &left, &work, err);
	if (st == PW_OK)
		st = write_hits(h, oldest, err);
	if (st == PW_OK && h->hit == h->hit_count)
		h->next = left;
	if (st == PW_STORAGE)
		history_index_is_wrong(h->sv->history, err->msg);
	free(hits);
	return st;
}

/* The end of the journal that the index has not reached, then the index. A wrong index is left out. */
static enum pw_status read_history(struct history *h, uint64_t durable, struct pw_err *err)
{
	struct journal_span span;
	enum pw_status st = PW_OK;

	store_span(h->sv->store, &span);
	h->until = history_index_reached(h->sv->history, durable < h->before ? durable : h->before - 1, INDEX_WAIT_MS);
	if (h->before > h->until + 1)
		st = scan(h, err);
	if (st != PW_OK || is_enough(h))
		return st;
	if (h->before > h->until + 1)
		h->before = h->until + 1;
	h->next = 0;
	st = find(h, span.oldest, err);
	if (st == PW_STORAGE && h->found)
		return PW_OK; /* the cursor goes on behind the last one */
	if (st != PW_STORAGE)
		return st;
	h->until = 0;
	return scan(h, err);
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

/* False: answered. */
static bool history_query(struct service *sv, struct request *r, struct history *h, struct query_window *win)
{
	static const char *const known[] = { "gfn", "gpa", "count", "limit", "cursor", NULL };
	struct gfn_alias alias;
	unsigned page_shift;

	*h = (struct history){ .sv = sv, .st = PW_NOT_FOUND };
	if (!query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &h->limit) ||
	    !query_u64(r, "cursor", 1, INT64_MAX, INT64_MAX, &h->before) ||
	    !arg_uuid(r, 0, PROBLEM_VM_NOT_FOUND, &h->vm))
		return false;
	if (!addresses_of(sv, &h->vm, &alias, &page_shift))
		return false;
	pw_uuid_format(&h->vm, h->vm_text);
	if (!query_window(r, alias, page_shift, win))
		return false;
	h->gfn = win->gfn;
	h->count = win->count;
	return true;
}

static enum handled history_read(struct service *sv, struct request *r)
{
	struct history h;
	struct query_window win;
	struct journal_span span;
	struct pw_err err;
	char next[24] = "";
	uint64_t durable;

	if (!history_query(sv, r, &h, &win))
		return r->response.status ? DONE : handle_read(sv, r);
	if (!durable_revision(sv, r, &durable))
		return DONE;
	if (h.before > durable + 1)
		h.before = durable + 1;
	list_begin(&h.w);
	if (read_history(&h, durable, &err) != PW_OK) {
		jsonw_release(&h.w);
		return answer_store(r, &err);
	}
	if (atomic_load(&sv->cut)) {
		jsonw_release(&h.w);
		return answer_stopping(r);
	}
	store_span(sv->store, &span);
	if (h.next > span.oldest)
		snprintf(next, sizeof next, "%" PRIu64, h.next);
	window_end(&h.w, &win, next, NULL);
	return answer_json(r, 200, &h.w);
}

enum handled vm_history(struct service *sv, struct request *r)
{
	struct history h;
	struct query_window win;

	if (history_query(sv, r, &h, &win))
		return reads_park(sv->reads, r, history_read);
	return r->response.status ? DONE : handle_read(sv, r);
}
