/* VMs that a host's hardware has and the ledger does not own (law L11), as the host's agent reports them: one list a
 * host, replaced whole by each report. Nothing here changes a page or a VM: the list is for operators, who adopt a VM
 * or end it by an operation. Kept in journal and picture; written by the writer thread. */
#include <stdlib.h>
#include <string.h>

#include "api/codec_unknown.h"
#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(unknown)

enum { REPORTS_MAX = 16384 }; /* of all hosts */

int unknown_compare(const void *key, const void *item)
{
	const struct unknown *a = key, *b = item;
	int order = memcmp(&a->vm, &b->vm, sizeof a->vm);

	return order ? order : memcmp(&a->host, &b->host, sizeof a->host);
}

static void unknown_free(struct unknown *u)
{
	free(u->report);
	free(u);
}

void unknown_release(struct service *sv)
{
	for (size_t i = 0; i < sv->unknown.count; i++)
		unknown_free(sv->unknown.items[i]);
	index_release(&sv->unknown);
}

/* Changing: an entry is replaced by another, the old one kept until that is final. */

struct swap {
	struct unknown *old, *by; /* either may be NULL */
};

static void put_back(void *ctx, const void *args)
{
	const struct swap *x = args;
	struct service *sv = ctx;

	if (x->by) {
		index_remove(&sv->unknown, x->by);
		unknown_free(x->by);
	}
	if (x->old)
		index_insert(&sv->unknown, x->old, x->old);
}

static void forget_old(void *ctx, const void *args)
{
	const struct swap *x = args;

	if (x->old)
		unknown_free(x->old);
}

static enum pw_status replace(struct service *sv, struct unknown *old, struct unknown *by)
{
	static const struct undo_ops replaced = { .rollback = put_back, .commit = forget_old };
	struct swap x = { old, by };
	struct undo *u = ledger_undo(sv->ledger);

	if (undo_reserve(u, UNDO_RECORD(sizeof x)) != PW_OK || index_reserve(&sv->unknown) != PW_OK)
		return PW_NO_MEMORY;
	if (old)
		index_remove(&sv->unknown, old);
	if (by)
		index_insert(&sv->unknown, by, by);
	undo_push(u, &replaced, sv, &x, sizeof x);
	return PW_OK;
}

enum pw_status unknown_put(struct service *sv, const struct unknown *u)
{
	struct unknown *by = malloc(sizeof *by), *old = index_find(&sv->unknown, u);

	if (!by)
		return PW_NO_MEMORY;
	*by = *u;
	if (replace(sv, old, by) == PW_OK)
		return PW_OK;
	free(by);
	return PW_NO_MEMORY;
}

enum pw_status unknown_drop(struct service *sv, const struct pw_uuid *host, const struct pw_uuid *vm)
{
	struct unknown *old = index_find(&sv->unknown, &(struct unknown){ .host = *host, .vm = *vm });

	return old ? replace(sv, old, NULL) : PW_OK;
}

enum pw_status unknown_forget(struct service *sv, const struct pw_uuid *host)
{
	for (size_t i = sv->unknown.count; i > 0; i--) {
		struct unknown *u = sv->unknown.items[i - 1];

		if (pw_uuid_equal(&u->host, host) && replace(sv, u, NULL) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

const struct unknown *unknown_find(const struct service *sv, const struct pw_uuid *vm, const struct pw_uuid *host,
				   size_t *count)
{
	const struct unknown from = { .vm = *vm }, *found = NULL;

	*count = 0;
	for (size_t i = index_place(&sv->unknown, &from); i < sv->unknown.count; i++) {
		const struct unknown *u = sv->unknown.items[i];

		if (!pw_uuid_equal(&u->vm, vm))
			break;
		if (host && !pw_uuid_equal(&u->host, host))
			continue;
		found = u;
		++*count;
	}
	return found;
}

/* The list. */

static void write_unknown(struct jsonw *w, const struct unknown *u)
{
	jsonw_open(w, '{');
	jsonw_m_uuid(w, "host", &u->host);
	jsonw_m_time(w, "since", u->since_ms);
	jsonw_m_u64(w, "revision", u->revision);
	jsonw_raw(w, u->report + 1, strlen(u->report) - 2); /* its members */
	jsonw_close(w, '}');
}

void unknown_list(struct service *sv, struct request *r)
{
	static const char *const known[] = { "host", "limit", "cursor", NULL };
	const char *host = request_query(r, "host"), *cursor;
	struct unknown from = { .vm = { { 0 } } };
	const struct unknown *last = NULL;
	char next[PW_UUID_TEXT] = "";
	struct pw_uuid id;
	uint64_t limit;
	bool more = true;
	struct jsonw w;

	if (!query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit) ||
	    !query_cursor(r, &from.vm, &cursor))
		return;
	if (host && !pw_uuid_parse(host, strlen(host), &id)) {
		answer_problem(r, PROBLEM_INVALID_REQUEST, "host=%s is not a UUID", host);
		return;
	}
	if (cursor)
		memset(&from.host, 0xff, sizeof from.host);
	list_begin(&w);
	for (size_t i = index_after(&sv->unknown, &from); i < sv->unknown.count; i++) {
		const struct unknown *u = sv->unknown.items[i];

		if (host && !pw_uuid_equal(&u->host, &id))
			continue;
		if (last && !pw_uuid_equal(&u->vm, &last->vm) && !more) {
			pw_uuid_format(&last->vm, next);
			break;
		}
		write_unknown(&w, u);
		more = more && list_goes_on(sv, &w, &limit);
		last = u;
	}
	list_end(&w, next[0] ? next : NULL, NULL);
	answer_json(r, 200, &w);
}

/* Reports. */

static void report_problem(const struct unknown_item *it, struct refusal *why)
{
	refuse(why, PROBLEM_UNKNOWN_VM, "%.255s", it->detail);
	why->vm = it->vm;
	why->pages = it->pages;
	why->reason = unknown_reason_name(it->reason);
	why->frames = it->disputed_pages;
	for (size_t i = 0; i < it->run_count && i < REFUSAL_RUNS_MAX; i++) {
		struct frame_run *run = &why->runs[why->run_count++];

		*run = (struct frame_run){ .pool = "local",
					   .pfn = it->runs[i].pfn,
					   .count = it->runs[i].count,
					   .vm = it->runs[i].owner,
					   .gfn = it->runs[i].owner_gfn };
	}
}

/* One that is new, or has changed, is told to the feed and is a violation. */
static bool take_report(struct service *sv, struct request *r, const struct host *h, const struct unknown_item *it)
{
	const struct unknown *known = index_find(&sv->unknown, &(struct unknown){ .host = h->id, .vm = it->vm });
	struct unknown u = { .host = h->id,
			     .vm = it->vm,
			     .since_ms = known ? known->since_ms : sv->group_time_ms,
			     .revision = next_revision(sv) };
	struct refusal why;
	struct jsonw w;

	if (known && strcmp(known->report, it->text) == 0)
		return true;
	u.report = strdup(it->text);
	if (!u.report || unknown_put(sv, &u) != PW_OK) {
		free(u.report);
		return false;
	}
	event_begin(&w, "vm.unknown", r);
	jsonw_m_uuid(&w, "host", &h->id);
	jsonw_m_uuid(&w, "vm", &it->vm);
	jsonw_m_raw(&w, "report", it->text, strlen(it->text));
	event_end(sv, &w);
	report_problem(it, &why);
	note_violation(sv, r, h, &it->vm, &why);
	return true;
}

static bool is_reported(const struct unknown_body *b, const struct pw_uuid *vm)
{
	for (size_t i = 0; i < b->count; i++)
		if (pw_uuid_equal(&b->items[i].vm, vm))
			return true;
	return false;
}

/* What the host does not report any more is adopted or gone. */
static bool drop_others(struct service *sv, struct request *r, const struct host *h, const struct unknown_body *b)
{
	for (size_t i = sv->unknown.count; i > 0; i--) {
		const struct unknown *u = sv->unknown.items[i - 1];
		struct pw_uuid vm = u->vm;
		struct jsonw w;

		if (!pw_uuid_equal(&u->host, &h->id) || is_reported(b, &vm))
			continue;
		if (unknown_drop(sv, &h->id, &vm) != PW_OK)
			return false;
		event_begin(&w, "vm.known", r);
		jsonw_m_uuid(&w, "host", &h->id);
		jsonw_m_uuid(&w, "vm", &vm);
		event_end(sv, &w);
	}
	return true;
}

/* A host that reports no more than before is always heard. */
static bool has_room(const struct service *sv, struct request *r, const struct host *h, const struct unknown_body *b)
{
	size_t own = 0;

	for (size_t i = 0; i < sv->unknown.count; i++)
		own += pw_uuid_equal(&((const struct unknown *)sv->unknown.items[i])->host, &h->id);
	if (b->count <= own || sv->unknown.count - own + b->count <= REPORTS_MAX)
		return true;
	answer_problem(r, PROBLEM_LIMIT, "at most %d VMs can be reported as unknown, by all hosts together",
		       REPORTS_MAX);
	return false;
}

bool unknown_prepare(struct service *sv, struct request *r)
{
	return query_known(r, no_query) && prepare_unknown(sv, r);
}

void unknown_put_act(struct service *sv, struct request *r)
{
	const struct unknown_body *b = &((struct unknown_job *)r->job)->b;
	const struct host *h = arg_host(sv, r, 0);
	bool ok;

	if (!h || !may_act_for(r, &h->id) || !host_is_held(r, h, b->boot_id, b->epoch) || !if_match(r, h->revision) ||
	    !has_room(sv, r, h, b))
		return;
	ok = drop_others(sv, r, h, b);
	for (size_t i = 0; ok && i < b->count; i++)
		ok = take_report(sv, r, h, &b->items[i]);
	if (ok)
		answer_empty(r, 204);
	else
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while noting unknown VMs");
}
