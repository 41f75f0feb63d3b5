#include "agents/batch.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

void verdicts_clear(struct verdict *v, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		json_decref(v[i].problem);
		v[i] = (struct verdict){ 0 };
	}
}

size_t runs_of_frames(uint64_t gfn, uint64_t count, const uint64_t *pfns, struct gfn_run *out, size_t cap,
		      uint64_t *taken)
{
	size_t n = 0;
	uint64_t i;

	for (i = 0; i < count; i++) {
		if (n && out[n - 1].pfn + out[n - 1].count == pfns[i]) {
			out[n - 1].count++;
			continue;
		}
		if (n == cap)
			break;
		out[n++] = (struct gfn_run){ .gfn = gfn + i, .count = 1, .pfn = pfns[i] };
	}
	*taken = i;
	return n;
}

static json_t *run_json(const struct gfn_run *r, bool framed)
{
	json_t *run = json_array();
	int failed = 0;

	failed |= json_array_append_new(run, json_integer((json_int_t)r->gfn));
	failed |= json_array_append_new(run, json_integer((json_int_t)r->count));
	failed |= framed ? json_array_append_new(run, json_integer((json_int_t)r->pfn)) : 0;
	if (!failed)
		return run;
	json_decref(run);
	return NULL;
}

static int put_runs(json_t *item, const struct item *it)
{
	json_t *runs = json_array();
	int failed = json_object_set_new(item, "runs", runs);

	for (size_t i = 0; i < it->run_count && !failed; i++)
		failed |= json_array_append_new(runs, run_json(&it->runs[i], it->framed));
	if (it->framed && !failed)
		failed |= json_object_set_new(item, "pool", json_string(it->pool));
	return failed;
}

static int put_run(json_t *item, const struct item *it)
{
	int failed = 0;

	failed |= json_object_set_new(item, "gfn", json_integer((json_int_t)it->runs[0].gfn));
	failed |= json_object_set_new(item, "count", json_integer((json_int_t)it->runs[0].count));
	if (it->framed)
		failed |= json_object_set_new(
			item, "frame", json_pack("{s:s, s:I}", "pool", it->pool, "pfn", (json_int_t)it->runs[0].pfn));
	return failed;
}

json_t *batch_item(const struct item *it)
{
	char vm[PW_UUID_TEXT];
	json_t *item;

	pw_uuid_format(&it->vm, vm);
	item = json_pack("{s:s, s:s}", "vm", vm, "op", item_op_name(it));
	if (!item)
		return NULL;
	if (it->vm_op)
		return item;
	if ((it->run_count == 1 ? put_run(item, it) : put_runs(item, it)) == 0)
		return item;
	json_decref(item);
	return NULL;
}

json_t *batch_body(const char *boot_id, uint64_t epoch, uint64_t seq, const struct item *items, size_t n)
{
	json_t *list = json_array();
	int failed = 0;

	for (size_t i = 0; i < n && !failed; i++)
		failed |= json_array_append_new(list, batch_item(&items[i]));
	if (failed || !list) {
		json_decref(list);
		return NULL;
	}
	return json_pack("{s:s, s:I, s:I, s:o}", "boot_id", boot_id, "epoch", (json_int_t)epoch, "batch_seq",
			 (json_int_t)seq, "items", list);
}

bool batch_read(json_t *answer, struct verdict *v, size_t n)
{
	json_t *results = json_object_get(answer, "results"), *one;
	size_t i;

	if (!json_is_array(results) || json_array_size(results) != n)
		return false;
	json_array_foreach (results, i, one) {
		if (!json_is_boolean(json_object_get(one, "ok")))
			return false;
	}
	json_array_foreach (results, i, one) {
		v[i].ok = json_is_true(json_object_get(one, "ok"));
		v[i].problem = v[i].ok ? NULL : json_incref(json_object_get(one, "problem"));
	}
	return true;
}

static enum pw_status send_body(struct worker *w, json_t *body, uint64_t seq, struct verdict *v, size_t n,
				struct trouble *t)
{
	char path[96], key[96];
	struct client_reply r = { 0 };
	uint64_t revision, first;
	enum pw_status st;

	snprintf(path, sizeof path, "/v1/hosts/%s/transitions", w->agent->host);
	snprintf(key, sizeof key, "%s-%" PRIu64, w->agent->host, seq);
	st = remote_call(w, "POST", path, body, key, &r, t);
	if (st == PW_OK && json_u64_member(r.json, "revision", &revision)) {
		heard_see(&w->agent->heard, revision);
		if (json_u64_member(r.json, "first", &first))
			own_add(&w->agent->own, first, revision, NULL);
	}
	if (st == PW_OK && !batch_read(r.json, v, n))
		st = pw_fail(&t->err, PW_INVALID, "the answer to batch %" PRIu64 " is not one", seq);
	if (st != PW_OK && r.problem == PROBLEM_STALE_BATCH)
		seq_jump(&w->agent->seq, seq + 16 * SEQ_BLOCK);
	client_reply_release(&r);
	return st;
}

/* 413: the server takes no batch of this size, and did nothing. */
static bool is_too_much(const struct trouble *t)
{
	return json_integer_value(json_object_get(t->problem, "status")) == 413;
}

static enum pw_status send_one(struct worker *w, const struct item *items, size_t n, struct verdict *v,
			       struct trouble *t)
{
	struct agent *a = w->agent;
	enum pw_status st = PW_NO_MEMORY;
	uint64_t seq;
	json_t *body;

	for (int tries = 0; tries < 4; tries++) {
		st = seq_take(&a->seq, &seq, &t->err);
		if (st != PW_OK)
			break;
		body = batch_body(a->boot_id, agent_epoch(a), seq, items, n);
		if (!body)
			return pw_fail(&t->err, PW_NO_MEMORY, "no memory for a batch");
		st = send_body(w, body, seq, v, n, t);
		json_decref(body);
		if (st == PW_OK || seq + 1 >= a->seq.next) /* again only if the number was stale */
			break;
		trouble_clear(t);
	}
	if (st == PW_OK || is_too_much(t))
		return st;
	agent_stand_apart(a, t->err.msg);
	return st == PW_BUSY ? PW_NETWORK : st; /* PW_BUSY is said of frames alone */
}

/* How many of the items fit into one batch; at least one. */
static size_t fit(const struct item *items, size_t n)
{
	size_t runs = 0, i;

	for (i = 0; i < n && i < BATCH_ITEMS_MAX; i++) {
		runs += items[i].run_count;
		if (i && runs > BATCH_RUNS_MAX)
			break;
	}
	return i;
}

/* What is too much for the server at once is sent in halves; an item that is too much by itself is refused. */
static enum pw_status send_fitting(struct worker *w, const struct item *items, size_t n, struct verdict *v,
				   struct trouble *t)
{
	enum pw_status st = send_one(w, items, n, v, t);

	if (st == PW_OK || !is_too_much(t))
		return st;
	if (n == 1) {
		v[0] = (struct verdict){ .ok = false, .problem = json_incref(t->problem) };
		trouble_clear(t);
		return PW_OK;
	}
	trouble_clear(t);
	st = send_fitting(w, items, n / 2, v, t);
	return st == PW_OK ? send_fitting(w, items + n / 2, n - n / 2, v + n / 2, t) : st;
}

enum pw_status batch_send(struct worker *w, const struct item *items, size_t n, struct verdict *v, struct trouble *t)
{
	memset(v, 0, n * sizeof *v);
	for (size_t at = 0, now; at < n; at += now) {
		enum pw_status st;

		now = fit(items + at, n - at);
		st = send_fitting(w, items + at, now, v + at, t);
		if (st == PW_OK)
			continue;
		verdicts_clear(v, n);
		return st;
	}
	return PW_OK;
}
