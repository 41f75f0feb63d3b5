#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(pool)

/* Rendering. */

void write_pool(struct jsonw *w, const struct service *sv, const struct pool *p)
{
	unsigned place;

	jsonw_open(w, '{');
	jsonw_m_str(w, "pool", p->name);
	jsonw_m_u64(w, "base_pfn", p->base);
	jsonw_m_u64(w, "frames", p->frames);
	jsonw_m_u64(w, "page_shift", p->page_shift);
	jsonw_m_u64(w, "frames_bound", p->bound);
	jsonw_m_u64(w, "frames_quarantined", p->quarantined);
	jsonw_key(w, "hosts");
	jsonw_open(w, '[');
	for (size_t i = 0; i < ledger_host_count(sv->ledger); i++) {
		const struct host *h = ledger_host_at(sv->ledger, i);

		if (host_pool(h, p->name, &place))
			jsonw_uuid(w, &h->id);
	}
	jsonw_close(w, ']');
	jsonw_m_u64(w, "revision", p->revision);
	jsonw_close(w, '}');
}

void pools_list(struct service *sv, struct request *r)
{
	static const char *const known[] = { "limit", "cursor", NULL };
	const char *cursor = request_query(r, "cursor"), *next = NULL;
	uint64_t limit;
	struct jsonw w;
	size_t i;

	if (!query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit))
		return;
	if (cursor && !codec_is_pool_name(cursor)) {
		answer_problem(r, PROBLEM_INVALID_REQUEST, "cursor %s is none that a list gave", cursor);
		return;
	}
	list_begin(&w);
	i = cursor ? ledger_pool_after(sv->ledger, cursor) : 0;
	for (; i < ledger_pool_count(sv->ledger) && list_goes_on(sv, &w, &limit); i++)
		write_pool(&w, sv, ledger_pool_at(sv->ledger, i));
	if (i < ledger_pool_count(sv->ledger))
		next = ledger_pool_at(sv->ledger, i - 1)->name;
	list_end(&w, next, NULL);
	answer_json(r, 200, &w);
}

static struct pool *arg_pool(struct service *sv, struct request *r)
{
	struct pool *p = ledger_pool(sv->ledger, r->args[0]);

	if (!p)
		answer_problem(r, PROBLEM_POOL_NOT_FOUND, "there is no shared pool %s", r->args[0]);
	return p;
}

static void answer_pool(struct service *sv, struct request *r, unsigned status, const struct pool *p)
{
	struct jsonw w;

	jsonw_init(&w);
	write_pool(&w, sv, p);
	answer_json(r, status, &w);
	answer_etag(r, p->revision);
}

void pool_get(struct service *sv, struct request *r)
{
	const struct pool *p = arg_pool(sv, r);

	if (p && query_known(r, no_query))
		answer_pool(sv, r, 200, p);
}

/* Changing. */

bool pool_prepare(struct service *sv, struct request *r)
{
	if (!codec_is_pool_name(r->args[0]) || strcmp(r->args[0], "local") == 0) {
		answer_problem(r, PROBLEM_INVALID_REQUEST,
			       "%s is no name for a shared pool: [a-z0-9-]{1,63}, not local", r->args[0]);
		return false;
	}
	return query_known(r, no_query) && prepare_pool(sv, r);
}

enum pw_problem do_pool(struct service *sv, const char *name, const struct pool_body *b, struct pool **out,
			bool *created, struct refusal *why)
{
	struct host **hosts = malloc((b->host_count + 1) * sizeof *hosts);
	struct pool_spec spec = { name, b->base, b->frames, b->page_shift, hosts, b->host_count };
	enum pw_problem p = PROBLEM_NONE;
	char id[PW_UUID_TEXT];

	if (!hosts)
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while changing the pool");
	for (size_t i = 0; p == PROBLEM_NONE && i < b->host_count; i++) {
		hosts[i] = ledger_host(sv->ledger, &b->hosts[i]);
		pw_uuid_format(&b->hosts[i], id);
		if (!hosts[i])
			p = refuse(why, PROBLEM_HOST_NOT_FOUND, "there is no host %s", id);
	}
	if (p == PROBLEM_NONE)
		p = ledger_pool_put(sv->ledger, &spec, out, created, why);
	free(hosts);
	return p;
}

static bool pool_is_as(const struct service *sv, const struct pool *p, const struct pool_body *b)
{
	size_t attached = 0;
	unsigned place;

	if (!p || p->base != b->base || p->frames != b->frames || p->page_shift != b->page_shift)
		return false;
	for (size_t i = 0; i < ledger_host_count(sv->ledger); i++)
		attached += host_pool(ledger_host_at(sv->ledger, i), p->name, &place) != NULL;
	for (size_t i = 0; i < b->host_count; i++) {
		const struct host *h = ledger_host(sv->ledger, &b->hosts[i]);

		if (!h || !host_pool(h, p->name, &place))
			return false;
	}
	return attached == b->host_count;
}

static uint64_t say_pool(struct service *sv, struct request *r, const char *name, const struct pool_body *b)
{
	struct jsonw w;

	event_begin(&w, "pool.changed", r);
	jsonw_m_str(&w, "pool", name);
	jsonw_key(&w, "spec");
	jsonw_open(&w, '{');
	jsonw_m_u64(&w, "base_pfn", b->base);
	jsonw_m_u64(&w, "frames", b->frames);
	jsonw_m_u64(&w, "page_shift", b->page_shift);
	jsonw_key(&w, "hosts");
	jsonw_open(&w, '[');
	for (size_t i = 0; i < b->host_count; i++)
		jsonw_uuid(&w, &b->hosts[i]);
	jsonw_close(&w, ']');
	jsonw_close(&w, '}');
	return event_end(sv, &w);
}

void pool_put_act(struct service *sv, struct request *r)
{
	const struct pool_body *b = &((struct pool_job *)r->job)->b;
	struct pool *p = ledger_pool(sv->ledger, r->args[0]);
	struct refusal why;
	bool created;

	if (!if_match(r, p ? p->revision : 0))
		return;
	if (pool_is_as(sv, p, b)) {
		answer_pool(sv, r, 200, p);
		return;
	}
	if (do_pool(sv, r->args[0], b, &p, &created, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		return;
	}
	if (!touch(sv, &p->revision, next_revision(sv))) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while changing the pool");
		return;
	}
	say_pool(sv, r, r->args[0], b);
	answer_pool(sv, r, created ? 201 : 200, p);
	if (created)
		answer_header(r, "Location", "/v1/pools/%s", r->args[0]);
}

/* Who owns which frames. */

static void answer_frames(struct service *sv, struct request *r, const struct pool *p)
{
	uint64_t from, count, limit, cursor;
	struct frame_view f;
	char next[24] = "";
	struct jsonw w;

	if (!query_u64(r, "pfn", 0, TREE_PAGES - 1, p->base, &from) ||
	    !query_u64(r, "count", 1, TREE_PAGES - from, request_query(r, "pfn") ? 1 : TREE_PAGES - from, &count) ||
	    !query_u64(r, "limit", 1, 1000, 100, &limit) ||
	    !query_u64(r, "cursor", from, from + count - 1, from, &cursor))
		return;
	list_begin(&w);
	for (uint64_t at = cursor; pool_next_bound(sv->ledger, p, at, from + count, &f); at = f.pfn + f.count) {
		if (!list_goes_on(sv, &w, &limit)) {
			snprintf(next, sizeof next, "%" PRIu64, f.pfn);
			break;
		}
		jsonw_open(&w, '{');
		jsonw_m_u64(&w, "pfn", f.pfn);
		jsonw_m_u64(&w, "count", f.count);
		jsonw_m_uuid(&w, "vm", &f.vm->id);
		jsonw_m_u64(&w, "gfn", f.gfn);
		if (f.arch_state)
			jsonw_m_str(&w, "arch_state", f.arch_state);
		jsonw_close(&w, '}');
	}
	list_end(&w, next[0] ? next : NULL, &sv->revision);
	answer_json(r, 200, &w);
}

void host_frames(struct service *sv, struct request *r)
{
	static const char *const known[] = { "pool", "pfn", "count", "limit", "cursor", NULL };
	const struct host *h = arg_host(sv, r, 0);
	const char *name = request_query(r, "pool");
	const struct pool *p;
	unsigned place;

	if (!h || !query_known(r, known))
		return;
	p = host_pool(h, name ? name : "local", &place);
	if (p)
		answer_frames(sv, r, p);
	else
		answer_problem(r, PROBLEM_POOL_NOT_FOUND, "the host has no pool %s", name ? name : "local");
}

void pool_frames(struct service *sv, struct request *r)
{
	static const char *const known[] = { "pfn", "count", "limit", "cursor", NULL };
	const struct pool *p = arg_pool(sv, r);

	if (p && query_known(r, known))
		answer_frames(sv, r, p);
}
