/* What happened to pages of a VM, newest first. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/jsonr.h"
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
