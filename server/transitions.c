#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/metrics.h"
#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(transitions)

enum { TOLD_CONFLICTS = 16, TOLD_BYTES = 64 << 10 }; /* of the problems of one answer; the contract has them */

/* A batch on its way: what became of the items before `next`. Where it is not atomic it may take several turns, each
 * in a group of its own. */
struct batch {
	struct transitions_job *decoded;
	size_t next, refused;
	uint64_t first;       /* the next revision as this turn began */
	struct jsonw results; /* a list that is still open */
	size_t told;          /* bytes of problems in it */
	unsigned conflicts;   /* and runs of them */
	uint64_t omitted;     /* problems of which it has no more than the name */
	unsigned pieces;      /* that are kept: pieces_load */
	size_t kept;          /* bytes of results in them */
};

static void batch_free(void *job)
{
	struct batch *bt = job;

	transitions_job_free(bt->decoded);
	jsonw_release(&bt->results);
	free(bt);
}

/* Puts the batch in the place of its decoded body. */
static bool batch_begin(struct request *r)
{
	struct batch *bt = calloc(1, sizeof *bt);

	if (!bt) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while reading the body");
		return false;
	}
	bt->decoded = r->job;
	jsonw_init(&bt->results);
	jsonw_open(&bt->results, '[');
	bt->kept = bt->results.used;
	r->job = bt;
	r->job_free = batch_free;
	return true;
}

static const struct transitions_body *body_of(const struct request *r)
{
	return &((const struct batch *)r->job)->decoded->b;
}

/* What an architecture did is for the host's agent to say, which sees its hardware. */
static bool may_say_so(struct request *r)
{
	const struct transitions_body *b = body_of(r);

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
	const struct transitions_body *b = body_of(r);
	const struct host *h = arg_host(sv, r, 0);

	return h && may_act_for(r, &h->id) && host_is_held(r, h, b->boot_id, b->epoch);
}

bool transitions_prepare(struct service *sv, struct request *r)
{
	struct pw_uuid id;

	if (!arg_uuid(r, 0, PROBLEM_HOST_NOT_FOUND, &id) || !may_act_for(r, &id))
		return false;
	if (!query_known(r, no_query) || !prepare_transitions(sv, r) || !batch_begin(r) || !may_say_so(r))
		return false;
	if (body_of(r)->has_seq || r->idempotency_key)
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

/*
 * Pieces: a turn of a batch that can be sent again keeps what became of its items beside its changes, in a row of its
 * own, under the same scope as the answer will be. After a crash the same batch goes on behind the last of them. Their
 * keys begin with a byte that no client's key has; a row of another body is none of this batch.
 */
static void piece_place(const struct request *r, const struct batch *bt, char scope[PW_UUID_TEXT], char key[160])
{
	bool numbered = body_of(r)->has_seq;

	if (numbered)
		snprintf(scope, PW_UUID_TEXT, "%s", r->args[0]);
	else
		pw_uuid_format(&r->who.token, scope);
	snprintf(key, 160, "\x01%u %s", bt->pieces, numbered ? last_batch : r->idempotency_key);
}

/* A few items always have one turn: nothing need be looked for. */
static bool is_small(const struct request *r)
{
	return body_of(r)->count <= 8;
}

static bool can_be_repeated(const struct request *r)
{
	return (r->idempotency_key || body_of(r)->has_seq) && !is_small(r);
}

static void piece_keep(struct service *sv, struct request *r, struct batch *bt)
{
	char scope[PW_UUID_TEXT], key[160], counts[128];
	struct answer a = { .status = 200,
			    .headers = counts,
			    .body = bt->results.data + bt->kept,
			    .size = bt->results.used - bt->kept,
			    .expires_ms = sv->group_time_ms + ANSWER_LIFE_MS };

	snprintf(counts, sizeof counts, "%zu %zu %zu %u %" PRIu64, bt->next, bt->refused, bt->told, bt->conflicts,
		 bt->omitted);
	piece_place(r, bt, scope, key);
	memcpy(a.request_hash, r->digest, sizeof a.request_hash);
	answer_save(sv, scope, key, &a);
	bt->kept = bt->results.used;
	bt->pieces++;
}

static void piece_read(struct batch *bt, const struct answer *a)
{
	char *at;

	bt->next = strtoull(a->headers, &at, 10);
	bt->refused = strtoull(at, &at, 10);
	bt->told = strtoull(at, &at, 10);
	bt->conflicts = (unsigned)strtoul(at, &at, 10);
	bt->omitted = strtoull(at, &at, 10);
	bt->results.comma = false; /* a piece has its commas */
	jsonw_raw(&bt->results, a->body, a->size);
	bt->kept = bt->results.used;
	bt->pieces++;
}

/* Goes on where the same batch was when the server ended. False: answered, or the store failed. */
static bool pieces_load(struct service *sv, struct request *r, struct batch *bt)
{
	char scope[PW_UUID_TEXT], key[160];
	struct answer a;
	bool same = true;

	while (same) {
		piece_place(r, bt, scope, key);
		if (!answer_find(sv, scope, key, &a))
			return !sv->group_broken;
		same = sodium_memcmp(a.request_hash, r->digest, sizeof r->digest) == 0;
		if (same)
			piece_read(bt, &a);
		free(a.memory);
	}
	if (bt->pieces > 0 || body_of(r)->has_seq)
		return true;
	answer_problem(r, PROBLEM_IDEMPOTENCY, "Idempotency-Key %s was used for another request", r->idempotency_key);
	return false;
}

/* The answer. */

/* The whole problem, while there is room for it; then its name. */
static void write_problem(struct batch *bt, const struct refusal *why, const struct request *r)
{
	size_t before = bt->results.used;
	struct refusal told;

	memcpy(&told, why, offsetof(struct refusal, runs));
	if (told.run_count > TOLD_CONFLICTS - bt->conflicts)
		told.run_count = TOLD_CONFLICTS - bt->conflicts;
	memcpy(told.runs, why->runs, told.run_count * sizeof told.runs[0]);
	bt->conflicts += told.run_count;
	if (bt->told < TOLD_BYTES) {
		problem_write(&bt->results, &told, r->id, PROBLEM_CLOSED);
		bt->told += bt->results.used - before;
		return;
	}
	problem_write_brief(&bt->results, why->problem);
	bt->omitted++;
}

static void write_result(struct batch *bt, const struct refusal *why, const struct request *r)
{
	if (!why) {
		jsonw_raw(&bt->results, "{\"ok\":true}", 11);
		return;
	}
	jsonw_open(&bt->results, '{');
	jsonw_m_bool(&bt->results, "ok", false);
	jsonw_key(&bt->results, "problem");
	write_problem(bt, why, r);
	jsonw_close(&bt->results, '}');
}

static void write_results(struct jsonw *w, struct batch *bt)
{
	if (bt->omitted)
		jsonw_m_u64(w, "problems_omitted", bt->omitted);
	jsonw_close(&bt->results, ']');
	w->failed |= bt->results.failed;
	if (!w->failed)
		jsonw_m_raw(w, "results", bt->results.data, bt->results.used);
	jsonw_close(w, '}');
}

/* Revisions from `first` on are of this batch alone, by which the agent knows these events as its own. */
static void answer_results(struct service *sv, struct request *r, struct batch *bt)
{
	size_t n = body_of(r)->count;
	struct jsonw w;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_u64(&w, "revision", sv->revision);
	jsonw_m_u64(&w, "first", bt->first);
	jsonw_m_u64(&w, "accepted", n - bt->refused);
	jsonw_m_u64(&w, "rejected", bt->refused);
	write_results(&w, bt);
	answer_json(r, 200, &w);
}

/* An atomic batch whose item `bad` was refused: what came before is undone, what comes after was not tried. */
static void answer_rejected(struct request *r, struct batch *bt, size_t bad, const struct refusal *bads)
{
	struct refusal why;
	struct jsonw w;

	refuse(&why, PROBLEM_BATCH_REJECTED, "items/%zu was refused (%s): nothing was changed", bad,
	       problem_slug(bads->problem));
	jsonw_init(&w);
	problem_write(&w, &why, r->id, PROBLEM_OPEN);
	jsonw_release(&bt->results);
	jsonw_init(&bt->results);
	jsonw_open(&bt->results, '[');
	for (size_t i = 0; i < bad; i++)
		jsonw_raw(&bt->results, "{\"ok\":true,\"undone\":true}", 25);
	write_result(bt, bads, r);
	write_results(&w, bt);
	answer_json(r, problem_status(PROBLEM_BATCH_REJECTED), &w);
}

/* Recording. */

static void note_refusal(struct service *sv, const struct request *r, const struct host *h, const struct item *it,
			 const struct refusal *why)
{
	if (why->problem == PROBLEM_NO_MEMORY)
		return;
	metrics_count(COUNT_REFUSALS, 1);
	if (r->who.role == ROLE_AGENT || why->problem == PROBLEM_FRAME_CONFLICT)
		note_refused_item(sv, r, h, it, why);
}

/* *touched: the VM whose revision can be taken back already. */
static void note_change(struct service *sv, const struct request *r, const struct host *h, const struct item *it,
			struct vm **touched)
{
	struct vm *vm = *touched;

	if (!vm || !pw_uuid_equal(&vm->id, &it->vm)) {
		vm = ledger_vm(sv->ledger, &it->vm);
		if (!touch(sv, &vm->revision, vm->revision)) {
			sv->records.failed = true;
			return;
		}
		*touched = vm;
	}
	vm->revision = it->vm_op ? say_vm_step(sv, r, vm, it) : event_item(sv, r, h, it);
}

static uint64_t pages_of(const struct item *it)
{
	uint64_t pages = 0;

	for (size_t run = 0; run < it->run_count; run++)
		pages += it->runs[run].count;
	return pages;
}

/* Items that look at the clock: one is some 100 ns, and so is each run of it. */
enum { CLOCK_WORK = 64 };

/*
 * Decides items until the turn is over, or (atomic) to the end, with readers let in meanwhile. False: one of an atomic
 * batch was refused, *why.
 */
static bool decide(struct service *sv, struct request *r, struct host *h, struct batch *bt, struct refusal *why)
{
	const struct transitions_body *b = body_of(r);
	struct vm *touched = NULL;
	uint64_t pages = 0, begun = ledger_work(sv->ledger);
	size_t work = 0, refused = bt->refused, from = bt->next;

	for (bool over = false; bt->next < b->count && !over && !sv->records.failed; bt->next++) {
		const struct item *it = &b->items[bt->next];
		enum pw_problem p;
		bool changed;

		p = ledger_apply(sv->ledger, h, it, &changed, why);
		if (p == PROBLEM_NONE && b->atomic && ledger_work(sv->ledger) - begun > sv->config->batch_work)
			p = refuse_limit(why, PROBLEM_TOO_MUCH_WORK, sv->config, "batch-work",
					 ledger_work(sv->ledger) - begun);
		if (p != PROBLEM_NONE && b->atomic)
			return false;
		write_result(bt, p == PROBLEM_NONE ? NULL : why, r);
		if (p != PROBLEM_NONE) {
			bt->refused++;
			note_refusal(sv, r, h, it, why);
		} else if (changed) {
			note_change(sv, r, h, it, &touched);
		}
		pages += p == PROBLEM_NONE ? pages_of(it) : 0;
		work += p == PROBLEM_NONE ? 1 + it->run_count : CLOCK_WORK;
		if (work < CLOCK_WORK)
			continue;
		work = 0;
		if (b->atomic)
			let_readers_in(sv);
		else
			over = !is_small(r) && turn_is_over(sv);
	}
	metrics_count(COUNT_PAGES, pages);
	metrics_count(COUNT_TRANSITIONS, bt->next - from - (bt->refused - refused));
	return true;
}

/* All that the atomic batch did is taken back; what was refused is told. */
static void reject(struct service *sv, struct request *r, struct host *h, struct batch *bt, const struct refusal *why)
{
	size_t bad = bt->next;

	if (why->problem == PROBLEM_NO_MEMORY) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while applying the batch");
		return;
	}
	if (why->problem == PROBLEM_TOO_MUCH_WORK) {
		answer_refusal(r, why);
		return;
	}
	note_refusal(sv, r, h, &body_of(r)->items[bad], why);
	answer_rejected(r, bt, bad, why);
}

void transitions_act(struct service *sv, struct request *r)
{
	const struct transitions_body *b = body_of(r);
	undo_mark mark = ledger_mark(sv->ledger);
	size_t used = sv->records.used;
	uint64_t revision = sv->revision;
	struct batch *bt = r->job;
	struct refusal why;
	struct host *h;

	if (!transitions_hold(sv, r))
		return;
	h = arg_host(sv, r, 0);
	/* in every turn: the same batch may be on its way twice, or a later one have overtaken it */
	if (b->has_seq && !batch_is_new(sv, r, h, b))
		return;
	if (!b->atomic && can_be_repeated(r) && !pieces_load(sv, r, bt))
		return;
	if (bt->next == 0 && !if_match(r, h->revision))
		return;
	bt->first = next_revision(sv);
	if (!decide(sv, r, h, bt, &why)) {
		ledger_rollback(sv->ledger, mark);
		records_cut(&sv->records, used);
		sv->revision = revision;
		reject(sv, r, h, bt, &why);
	} else if (bt->next < b->count && !sv->records.failed) {
		r->unfinished = true;
		if (can_be_repeated(r))
			piece_keep(sv, r, bt);
		return;
	} else {
		answer_results(sv, r, bt);
	}
	if (b->has_seq && !sv->records.failed && r->response.status < 500)
		batch_keep(sv, r, h, b);
}
