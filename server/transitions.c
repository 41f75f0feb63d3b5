#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/metrics.h"
#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(transitions)

/* What an architecture did is for the host's agent to say, which sees its hardware. */
static bool may_say_so(struct request *r)
{
	const struct transitions_body *b = &((struct transitions_job *)r->job)->b;

	for (size_t i = 0; r->who.role != ROLE_AGENT && i < b->count; i++)
		if (b->items[i].arch_op || b->items[i].vm_op) {
			answer_problem(r, PROBLEM_FORBIDDEN, "items/%zu: %s is for the agent of the host alone", i,
				       item_op_name(&b->items[i]));
			return false;
		}
	return true;
}

static bool transitions_hold(struct service *sv, struct request *r)
{
	const struct transitions_body *b = &((struct transitions_job *)r->job)->b;
	const struct host *h = arg_host(sv, r, 0);

	return h && may_act_for(r, &h->id) && host_is_held(r, h, b->boot_id, b->epoch);
}

bool transitions_prepare(struct service *sv, struct request *r)
{
	struct pw_uuid id;

	if (!arg_uuid(r, 0, PROBLEM_HOST_NOT_FOUND, &id) || !may_act_for(r, &id))
		return false;
	if (!query_known(r, no_query) || !prepare_transitions(sv, r) || !may_say_so(r))
		return false;
	if (((struct transitions_job *)r->job)->b.has_seq)
		request_digest(r);
	r->still_holds = transitions_hold;
	return true;
}

/*
 * Numbered batches: the answer to the last one of each host is kept under the host's scope. It belongs to that body,
 * byte for byte (which names boot_id, epoch and number). Its headers are "NUMBER BOOT_ID"; before batches were told by
 * their bodies they were "NUMBER", and request_hash that of boot_id.
 */
static const char last_batch[] = "last-batch";

static bool is_of_boot(const struct answer *a, const char *boot, const struct host *h)
{
	uint8_t old[STORE_HASH];

	if (*boot == ' ')
		return strcmp(boot + 1, h->boot_id) == 0;
	crypto_generichash(old, sizeof old, (const unsigned char *)h->boot_id, strlen(h->boot_id), NULL, 0);
	return sodium_memcmp(a->request_hash, old, sizeof old) == 0;
}

/* False: the request is answered (the last batch again, one that is stale, or the store failed). */
static bool batch_is_new(struct service *sv, struct request *r, const struct host *h, const struct transitions_body *b)
{
	char scope[PW_UUID_TEXT], *boot;
	struct answer a;
	uint64_t last;
	bool is_new;

	pw_uuid_format(&h->id, scope);
	if (!answer_find(sv, scope, last_batch, &a))
		return !sv->group_broken;
	last = strtoull(a.headers, &boot, 10);
	is_new = b->seq > last || !is_of_boot(&a, boot, h);
	if (!is_new && b->seq < last) {
		answer_problem(r, PROBLEM_STALE_BATCH, "batch %" PRIu64 " is older than the last one, %" PRIu64, b->seq,
			       last);
	} else if (!is_new && sodium_memcmp(a.request_hash, r->digest, sizeof r->digest) != 0) {
		answer_problem(r, PROBLEM_STALE_BATCH, "batch %" PRIu64 " was sent before with another body", last);
	} else if (!is_new) {
		a.headers = "";
		answer_again(r, &a);
	}
	free(a.memory);
	return is_new;
}

static void batch_keep(struct service *sv, struct request *r, const struct host *h, const struct transitions_body *b)
{
	char scope[PW_UUID_TEXT], last[24 + BOOT_ID_MAX];
	struct answer a = { .status = r->response.status,
			    .headers = last,
			    .body = r->response.body,
			    .size = r->response.size,
			    .expires_ms = INT64_MAX };

	memcpy(a.request_hash, r->digest, sizeof a.request_hash);
	pw_uuid_format(&h->id, scope);
	snprintf(last, sizeof last, "%" PRIu64 " %s", b->seq, h->boot_id);
	answer_save(sv, scope, last_batch, &a);
}

/* The answer. */

static void write_result(struct jsonw *w, const struct item_result *res, const struct request *r)
{
	struct refusal bare;

	if (res->problem == PROBLEM_NONE) {
		jsonw_raw(w, "{\"ok\":true}", 11);
		return;
	}
	refuse(&bare, res->problem, "%s", problem_title(res->problem));
	jsonw_open(w, '{');
	jsonw_m_bool(w, "ok", false);
	jsonw_key(w, "problem");
	problem_write(w, res->why ? res->why : &bare, r->id, PROBLEM_CLOSED);
	jsonw_close(w, '}');
}

/* first: by which the agent knows these events as its own. */
static void answer_results(struct service *sv, struct request *r, const struct item_result *results, size_t n,
			   size_t refused, uint64_t first)
{
	struct jsonw w;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_u64(&w, "revision", sv->revision);
	jsonw_m_u64(&w, "first", first);
	jsonw_m_u64(&w, "accepted", n - refused);
	jsonw_m_u64(&w, "rejected", refused);
	jsonw_key(&w, "results");
	jsonw_open(&w, '[');
	for (size_t i = 0; i < n; i++)
		write_result(&w, &results[i], r);
	jsonw_close(&w, ']');
	jsonw_close(&w, '}');
	answer_json(r, 200, &w);
}

/* An atomic batch whose item `bad` was refused: what came before is undone, what comes after was not tried. */
static void answer_rejected(struct request *r, const struct item_result *results, size_t bad)
{
	struct refusal why;
	struct jsonw w;

	refuse(&why, PROBLEM_BATCH_REJECTED, "items/%zu was refused (%s): nothing was changed", bad,
	       problem_slug(results[bad].problem));
	jsonw_init(&w);
	problem_write(&w, &why, r->id, PROBLEM_OPEN);
	jsonw_key(&w, "results");
	jsonw_open(&w, '[');
	for (size_t i = 0; i < bad; i++)
		jsonw_raw(&w, "{\"ok\":true,\"undone\":true}", 25);
	write_result(&w, &results[bad], r);
	jsonw_close(&w, ']');
	jsonw_close(&w, '}');
	answer_json(r, problem_status(PROBLEM_BATCH_REJECTED), &w);
}

/* Recording. */

static void note_refusals(struct service *sv, const struct request *r, const struct host *h,
			  const struct transitions_body *b, const struct item_result *results, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		enum pw_problem p = results[i].problem;

		if (p == PROBLEM_NONE || p == PROBLEM_NO_MEMORY || !results[i].why)
			continue;
		metrics_count(COUNT_REFUSALS, 1);
		if (r->who.role == ROLE_AGENT || p == PROBLEM_FRAME_CONFLICT)
			note_violation(sv, r, h, &b->items[i].vm, results[i].why);
	}
}

static void note_changes(struct service *sv, const struct request *r, const struct host *h,
			 const struct transitions_body *b, const struct item_result *results)
{
	struct vm *touched = NULL;
	uint64_t pages = 0;

	for (size_t i = 0; i < b->count; i++) {
		const struct item *it = &b->items[i];
		struct vm *vm;

		if (results[i].problem != PROBLEM_NONE)
			continue;
		for (size_t run = 0; run < it->run_count; run++)
			pages += it->runs[run].count;
		if (!results[i].changed)
			continue;
		vm = touched && pw_uuid_equal(&touched->id, &it->vm) ? touched : ledger_vm(sv->ledger, &it->vm);
		if (vm != touched && !touch(sv, &vm->revision, vm->revision)) {
			sv->records.failed = true;
			return;
		}
		touched = vm;
		vm->revision = it->vm_op ? say_vm_step(sv, r, vm, it) : event_item(sv, r, h, it);
	}
	metrics_count(COUNT_PAGES, pages);
}

static void apply(struct service *sv, struct request *r, struct host *h, const struct transitions_body *b,
		  struct item_result *results)
{
	size_t refused = ledger_apply_batch(sv->ledger, h, b->items, b->count, b->atomic, results);
	uint64_t first = next_revision(sv);
	size_t bad = 0;

	if (b->atomic && refused) {
		while (results[bad].problem == PROBLEM_NONE)
			bad++;
		note_refusals(sv, r, h, b, results, bad + 1);
		if (results[bad].problem == PROBLEM_NO_MEMORY)
			answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while applying the batch");
		else
			answer_rejected(r, results, bad);
		ledger_results_release(sv->ledger, results, bad + 1);
		return;
	}
	note_changes(sv, r, h, b, results);
	if (refused)
		note_refusals(sv, r, h, b, results, b->count);
	metrics_count(COUNT_TRANSITIONS, b->count - refused);
	answer_results(sv, r, results, b->count, refused, first);
	ledger_results_release(sv->ledger, results, b->count);
}

enum { RESULTS_ON_STACK = 64 };

void transitions_act(struct service *sv, struct request *r)
{
	const struct transitions_body *b = &((struct transitions_job *)r->job)->b;
	struct item_result few[RESULTS_ON_STACK], *results = few;
	struct host *h;

	if (!transitions_hold(sv, r))
		return;
	h = arg_host(sv, r, 0);
	if ((b->has_seq && !batch_is_new(sv, r, h, b)) || !if_match(r, h->revision))
		return;
	if (b->count > RESULTS_ON_STACK)
		results = malloc(b->count * sizeof *results);
	if (!results) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while applying the batch");
		return;
	}
	apply(sv, r, h, b, results);
	if (b->has_seq && !sv->records.failed && r->response.status < 500)
		batch_keep(sv, r, h, b);
	if (results != few)
		free(results);
}
