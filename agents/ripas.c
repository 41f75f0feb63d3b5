/* RIPAS between guest, hardware and ledger. Hardware goes first: it decides how far a change goes, and no frame moves
 * by it. What became EMPTY is then paged out like anything else, which keeps L5. Nothing is taken back for a guest: a
 * change that ended early is one that the guest may ask for again. */
#include "agents/ripas.h"

#include <stdlib.h>
#include <string.h>

#include "agents/change.h"
#include "api/operation_params.h"

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The plan of a launch. */

static bool read_run(const json_t *item, struct backend_ripas *out)
{
	const json_t *gfn = json_array_get(item, 0), *count = json_array_get(item, 1);
	const char *value = json_string_value(json_array_get(item, 2));
	json_int_t first = json_integer_value(gfn), n = json_integer_value(count);

	if (json_array_size(item) != 3 || !json_is_integer(gfn) || !json_is_integer(count) || !value || first < 0 ||
	    n < 1 || first >= (json_int_t)TREE_PAGES || n > (json_int_t)TREE_PAGES - first)
		return false;
	if (strcmp(value, "RAM") != 0 && strcmp(value, "EMPTY") != 0)
		return false;
	*out = (struct backend_ripas){
		.gfn = (uint64_t)first, .count = (uint64_t)n, .ram = strcmp(value, "RAM") == 0, .accept = (uint64_t)n
	};
	return true;
}

enum pw_status ripas_plan_read(const json_t *params, struct ripas_plan *out, struct pw_err *err)
{
	const json_t *list = json_object_get(params, "ripas");
	size_t n = json_array_size(list);

	*out = (struct ripas_plan){ 0 };
	if (!list)
		return PW_OK;
	if (!json_is_array(list) || n > OPERATION_RUNS_MAX)
		return pw_fail(err, PW_INVALID, "params.ripas is not a list of at most %d runs", OPERATION_RUNS_MAX);
	out->v = calloc(n + 1, sizeof *out->v);
	if (!out->v)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a launch");
	for (; out->n < n; out->n++)
		if (!read_run(json_array_get(list, out->n), &out->v[out->n])) {
			ripas_plan_release(out);
			return pw_fail(err, PW_INVALID, "params.ripas holds [gfn, count, \"EMPTY\" or \"RAM\"]");
		}
	return PW_OK;
}

void ripas_plan_release(struct ripas_plan *p)
{
	free(p->v);
	*p = (struct ripas_plan){ 0 };
}

bool ripas_plan_is_empty(const struct ripas_plan *p, uint64_t gfn, uint64_t end, uint64_t *count)
{
	bool empty = false;

	for (size_t i = p->n; i-- > 0;) {
		const struct backend_ripas *r = &p->v[i];

		if (gfn >= r->gfn && gfn - r->gfn < r->count) {
			end = min_u64(end, r->gfn + r->count);
			empty = !r->ram;
			break;
		}
		if (r->gfn > gfn)
			end = min_u64(end, r->gfn);
	}
	*count = end - gfn;
	return empty;
}

enum pw_status ripas_plan_set(struct worker *w, const struct remote_vm *vm, const struct ripas_plan *p,
			      struct pw_err *err)
{
	struct backend *b = w->agent->backend;
	enum pw_status st = PW_OK;
	uint64_t done;

	if (!b->ops->set_ripas)
		return p->n ? pw_fail(err, PW_INVALID, "params.ripas: this hardware has no RIPAS") : PW_OK;
	for (size_t i = 0; i < vm->slot_count && st == PW_OK; i++) {
		const struct slot *s = &vm->slots[i];
		struct backend_ripas all = { s->base, s->pages, .ram = true, .accept = s->pages };

		st = b->ops->set_ripas(b, &vm->id, &all, &done, err);
	}
	for (size_t i = 0; i < p->n && st == PW_OK; i++)
		st = b->ops->set_ripas(b, &vm->id, &p->v[i], &done, err);
	return st;
}

/* Telling the ledger. */

/* Hardware's runs of some pages. */
struct runs {
	struct backend_run *v; /* owned */
	size_t n, cap;
	bool failed;
};

static bool see_run(void *ctx, const struct backend_run *run)
{
	struct runs *r = ctx;

	if (r->n == r->cap) {
		size_t cap = r->cap ? 2 * r->cap : 64;
		struct backend_run *more = reallocarray(r->v, cap, sizeof *more);

		r->failed = !more;
		if (!more)
			return false;
		r->v = more;
		r->cap = cap;
	}
	r->v[r->n++] = *run;
	return true;
}

static bool see_not_at_rest(void *ctx, const struct backend_run *run)
{
	return run->state != GFN_NORMAL || run->arch == 0 || see_run(ctx, run);
}

static enum pw_status read_runs(struct worker *w, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				backend_run_fn fn, struct runs *out, struct pw_err *err)
{
	struct backend *b = w->agent->backend;
	enum pw_status st = b->ops->read_state(b, vm, gfn, count, fn, out, err);

	return st == PW_OK && out->failed ? pw_fail(err, PW_NO_MEMORY, "no memory for hardware's runs") : st;
}

/* One run of pages, one operation of the architecture. */
static enum pw_status tell(struct worker *w, const struct pw_uuid *vm, const struct arch_op *op, uint64_t gfn,
			   uint64_t count, struct trouble *t)
{
	struct gfn_run run = { gfn, count, 0 };
	struct item it = {
		.vm = *vm, .arch_op = op, .arch_law = w->agent->law, .pool = "local", .runs = &run, .run_count = 1
	};
	struct verdict v[1];
	enum pw_status st = batch_send(w, &it, 1, v, t);

	if (st != PW_OK)
		return st;
	if (!v[0].ok)
		st = trouble_adopt(t, v[0].problem);
	verdicts_clear(v, 1);
	return st;
}

enum pw_status ripas_tell_begin(struct worker *w, const struct remote_vm *vm, struct trouble *t)
{
	const struct arch_law *law = w->agent->law;
	struct runs runs = { 0 };
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < vm->slot_count && st == PW_OK && law; i++)
		st = read_runs(w, &vm->id, vm->slots[i].base, vm->slots[i].pages, see_not_at_rest, &runs, &t->err);
	for (size_t i = 0; i < runs.n && st == PW_OK; i++) {
		const struct arch_op *op = arch_op_between(law, arch_vm_rest(law, VM_TRANSIENT), law->rest[GFN_NORMAL],
							   runs.v[i].arch - 1);

		if (op)
			st = tell(w, &vm->id, op, runs.v[i].gfn, runs.v[i].count, t);
	}
	free(runs.v);
	return st;
}

static enum pw_status tell_change(struct worker *w, const struct backend_request *rq, uint64_t done, struct trouble *t)
{
	const struct arch_law *law = w->agent->law;
	const char *name = law ? law->ripas[rq->ripas.ram][rq->ripas.keep] : NULL;

	return name ? tell(w, &rq->vm, arch_op_find(name, strlen(name), false, NULL), rq->gfn, done, t) : PW_OK;
}

/* Giving back. */

static enum pw_status page_out(struct worker *w, const struct pw_uuid *vm, uint64_t gfn, uint64_t end, uint64_t *moved,
			       struct trouble *t)
{
	struct change c = { .vm = *vm, .op = GFN_PAGE_OUT, .gfn = gfn, .count = end - gfn };

	return end > gfn ? change_range(w, &c, NULL, moved, t) : PW_OK;
}

/* What is resident of these pages leaves. Shared ones are the host's anyway. */
static enum pw_status give_back(struct worker *w, const struct backend_request *rq, uint64_t done, uint64_t *moved,
				struct trouble *t)
{
	uint64_t from = rq->gfn;
	struct runs runs = { 0 };
	enum pw_status st = read_runs(w, &rq->vm, rq->gfn, done, see_run, &runs, &t->err);

	for (size_t i = 0; i < runs.n && st == PW_OK; i++) {
		if (runs.v[i].state != GFN_SHARED)
			continue;
		st = page_out(w, &rq->vm, from, runs.v[i].gfn, moved, t);
		from = runs.v[i].gfn + runs.v[i].count;
	}
	if (st == PW_OK)
		st = page_out(w, &rq->vm, from, rq->gfn + done, moved, t);
	free(runs.v);
	return st;
}

static void log_end(const struct backend_request *rq, uint64_t done, uint64_t moved, enum pw_status st,
		    const struct trouble *t)
{
	char id[PW_UUID_TEXT];

	pw_uuid_format(&rq->vm, id);
	alog(st == PW_OK ? ALOG_INFO : ALOG_WARNING, st == PW_OK ? "a guest's RIPAS" : "a guest's RIPAS failed",
	     "vm %s: GFN %" PRIu64 "+%" PRIu64 " %s: %" PRIu64 " pages are so, %" PRIu64 " given back%s%s", id, rq->gfn,
	     rq->count, rq->ripas.ram ? "RAM" : "EMPTY", done, moved, st == PW_OK ? "" : ": ",
	     st == PW_OK ? "" : t->err.msg);
}

void ripas_serve(struct worker *w, const struct backend_request *rq)
{
	struct backend *b = w->agent->backend;
	struct trouble t = { 0 };
	uint64_t done = 0, moved = 0;
	enum pw_status st = b->ops->set_ripas(b, &rq->vm, &rq->ripas, &done, &t.err);

	if (st == PW_OK && done) {
		st = tell_change(w, rq, done, &t);
		if (st != PW_OK)
			agent_want_resync(w->agent);
	}
	if (st == PW_OK && done && !rq->ripas.ram)
		st = give_back(w, rq, done, &moved, &t);
	log_end(rq, done, moved, st, &t);
	b->ops->complete(b, rq, st);
	trouble_clear(&t);
}
