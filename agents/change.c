#include "agents/change.h"

#include <stdlib.h>
#include <string.h>

#include "agents/ops.h"

static bool is_claim(enum gfn_op op)
{
	return op == GFN_PAGE_IN || op == GFN_UNSHARE_IN;
}

enum touch change_touches(enum gfn_op op, enum gfn_state was)
{
	enum gfn_state next;

	if (is_claim(op) && was == GFN_SECURE_RESIDENT)
		return TOUCH_NOTHING; /* said again: done already */
	if (op == GFN_PAGE_OUT && was == GFN_SECURE_OUT)
		return TOUCH_NOTHING;
	if (!gfn_step(was, op, &next))
		return TOUCH_REFUSED;
	return next == was ? TOUCH_NOTHING : TOUCH_RUN;
}

static void fail(struct change *c, enum pw_status st)
{
	c->st = st;
	c->stretch_count = 0;
	c->moved = 0;
}

static bool add_stretch(struct change *c, const struct backend_run *run)
{
	if (c->stretch_count == c->stretch_cap) {
		size_t cap = c->stretch_cap ? c->stretch_cap * 2 : 8;
		struct stretch *more = reallocarray(c->stretches, cap, sizeof *more);

		if (!more)
			return false;
		c->stretches = more;
		c->stretch_cap = cap;
	}
	c->stretches[c->stretch_count++] = (struct stretch){ run->gfn, run->count, run->state, run->arch };
	c->moved += run->count;
	return true;
}

static void refuse_gfn(struct change *c, const struct backend_run *run)
{
	struct refusal why;

	refuse(&why, PROBLEM_GFN_TRANSITION, "%s of GFN %" PRIu64 ", which is %s", gfn_op_name(c->op), run->gfn,
	       gfn_state_name(run->state));
	why.gfn = run->gfn;
	why.gfn_state = run->state;
	why.op = gfn_op_name(c->op);
	fail(c, trouble_refuse(&c->trouble, &why));
}

static void refuse_gap(struct change *c)
{
	struct refusal why;

	refuse(&why, PROBLEM_GFN_OUT_OF_SLOT, "GFN %" PRIu64 " is in no slot", c->seen);
	why.gfn = c->seen;
	fail(c, trouble_refuse(&c->trouble, &why));
}

static bool see_run(void *ctx, const struct backend_run *run)
{
	struct change *c = ctx;

	if (run->gfn != c->seen) {
		refuse_gap(c);
		return false;
	}
	c->seen += run->count;

	switch (change_touches(c->op, run->state)) {
	case TOUCH_NOTHING: return true;
	case TOUCH_REFUSED: refuse_gfn(c, run); return false;
	case TOUCH_RUN: break;
	}
	if (c->stretch_count == ITEM_RUNS_MAX) {
		c->done = run->gfn - c->gfn;
		return false;
	}
	if (add_stretch(c, run))
		return true;
	fail(c, pw_fail(&c->trouble.err, PW_NO_MEMORY, "no memory for a change"));
	return false;
}

/* No more than a change may have, or than there are frames at all. */
static uint64_t claim_max(struct worker *w)
{
	uint64_t frames = w->agent->info.frames;

	return frames && frames < CHANGE_PAGES ? frames : CHANGE_PAGES;
}

static const struct arch_trail *trail_of(struct worker *w, const struct change *c)
{
	static const struct arch_trail plain = { NULL, NULL };
	enum vm_state state;
	struct pw_err err;
	bool found;

	if (!w->agent->law || hardware_vm(w->agent->backend, &c->vm, &found, &state, &err) != PW_OK || !found)
		return &plain;
	return &w->agent->law->trails[state][c->op];
}

/* What hardware has now decides what there is to do. */
static bool look(struct worker *w, struct change *c)
{
	struct backend *b = w->agent->backend;
	enum pw_status st;

	c->st = PW_OK;
	c->done = c->count;
	c->seen = c->gfn;
	if (is_claim(c->op) && c->done > claim_max(w))
		c->done = claim_max(w);
	c->trail = trail_of(w, c);
	st = b->ops->read_state(b, &c->vm, c->gfn, c->done, see_run, c, &c->trouble.err);
	if (st != PW_OK)
		fail(c, st);
	else if (c->st == PW_OK && c->seen < c->gfn + c->done)
		refuse_gap(c);
	return c->st == PW_OK && c->stretch_count > 0;
}

static bool room_for_runs(struct change *c, size_t n)
{
	c->runs = calloc(n, sizeof *c->runs);
	c->run_cap = n;
	if (c->runs)
		return true;
	fail(c, pw_fail(&c->trouble.err, PW_NO_MEMORY, "no memory for a change"));
	return false;
}

static bool runs_of_stretches(struct change *c)
{
	if (!room_for_runs(c, c->stretch_count))
		return false;
	for (size_t i = 0; i < c->stretch_count; i++)
		c->runs[c->run_count++] = (struct gfn_run){ c->stretches[i].gfn, c->stretches[i].count, 0 };
	return true;
}

static uint64_t *frames_of(struct change *c, uint64_t gfn)
{
	return c->pfns + (gfn - c->gfn);
}

static void unreserve_from(struct worker *w, struct change *c, size_t first)
{
	struct backend *b = w->agent->backend;

	for (size_t i = first; i < c->stretch_count; i++)
		b->ops->unreserve(b, &c->vm, c->stretches[i].gfn, c->stretches[i].count,
				  frames_of(c, c->stretches[i].gfn));
}

/* The item is full: what did not fit is given back and left to the next change. */
static void cut(struct worker *w, struct change *c, size_t at, uint64_t taken)
{
	struct backend *b = w->agent->backend;
	struct stretch *s = &c->stretches[at];

	if (taken < s->count)
		b->ops->unreserve(b, &c->vm, s->gfn + taken, s->count - taken, frames_of(c, s->gfn + taken));
	unreserve_from(w, c, at + 1);
	for (size_t i = at; i < c->stretch_count; i++)
		c->moved -= c->stretches[i].count;
	c->moved += taken;
	c->done = s->gfn + taken - c->gfn;
	s->count = taken;
	c->stretch_count = taken ? at + 1 : at;
}

static bool reserve(struct worker *w, struct change *c)
{
	struct backend *b = w->agent->backend;
	enum pw_status st;

	c->pfns = calloc(c->done, sizeof *c->pfns);
	if (!c->pfns) {
		fail(c, pw_fail(&c->trouble.err, PW_NO_MEMORY, "no memory for a change"));
		return false;
	}
	for (size_t i = 0; i < c->stretch_count; i++) {
		struct stretch *s = &c->stretches[i];

		st = b->ops->reserve(b, &c->vm, s->gfn, s->count, frames_of(c, s->gfn), &c->trouble.err);
		if (st == PW_OK)
			continue;
		c->stretch_count = i;
		unreserve_from(w, c, 0);
		fail(c, st);
		return false;
	}
	return true;
}

static bool prepare_claim(struct worker *w, struct change *c)
{
	if (!reserve(w, c))
		return false;
	if (!room_for_runs(c, ITEM_RUNS_MAX))
		return false;
	for (size_t i = 0; i < c->stretch_count; i++) {
		struct stretch *s = &c->stretches[i];
		uint64_t taken;

		c->run_count += runs_of_frames(s->gfn, s->count, frames_of(c, s->gfn), c->runs + c->run_count,
					       c->run_cap - c->run_count, &taken);
		if (taken < s->count)
			cut(w, c, i, taken);
	}
	return true;
}

/* One stretch back to what it was, on hardware alone. */
static enum pw_status hardware_back(struct backend *b, const struct pw_uuid *vm, const struct stretch *s,
				    struct pw_err *err)
{
	switch (s->was) {
	case GFN_SHARED: return b->ops->share(b, vm, s->gfn, s->count, err);
	case GFN_SECURE_OUT:
	case GFN_NORMAL: return b->ops->page_out(b, vm, s->gfn, s->count, err);
	case GFN_SECURE_RESIDENT: return PW_OK;
	case GFN_STATE_COUNT: break;
	}
	return PW_OK;
}

/* Hardware gives frames up first; one call, so that it happens whole or not at all. */
static bool prepare_release(struct worker *w, struct change *c)
{
	struct backend *b = w->agent->backend;
	enum pw_status st;

	if (!runs_of_stretches(c))
		return false;
	if (c->op == GFN_SHARE)
		st = b->ops->share(b, &c->vm, c->gfn, c->done, &c->trouble.err);
	else
		st = b->ops->page_out(b, &c->vm, c->gfn, c->done, &c->trouble.err);
	if (st != PW_OK)
		fail(c, st);
	return st == PW_OK;
}

static bool prepare(struct worker *w, struct change *c)
{
	if (!look(w, c))
		return false;
	if (is_claim(c->op))
		return prepare_claim(w, c);
	return c->op == GFN_UNSHARE ? runs_of_stretches(c) : prepare_release(w, c);
}

/* The ledger half of taking stretches back: what claims gave, one item for each kind. */
static enum pw_status ledger_back(struct worker *w, const struct pw_uuid *vm, enum gfn_op op, const struct stretch *s,
				  size_t n, struct trouble *t)
{
	struct gfn_run *runs = calloc(n, sizeof *runs);
	struct verdict v[1];
	enum pw_status st = PW_OK;
	size_t used = 0;

	if (!runs)
		return pw_fail(&t->err, PW_NO_MEMORY, "no memory to take a change back");
	for (size_t i = 0; i < n; i++) {
		if ((s[i].was == GFN_SHARED) == (op == GFN_SHARE))
			runs[used++] = (struct gfn_run){ s[i].gfn, s[i].count, 0 };
	}
	for (size_t at = 0; at < used && st == PW_OK; at += ITEM_RUNS_MAX) {
		size_t now = used - at < ITEM_RUNS_MAX ? used - at : ITEM_RUNS_MAX;
		struct item it = { .vm = *vm, .op = op, .runs = runs + at, .run_count = now };

		st = batch_send(w, &it, 1, v, t);
		if (st == PW_OK && !v[0].ok)
			st = trouble_adopt(t, v[0].problem);
		verdicts_clear(v, 1);
	}
	free(runs);
	return st;
}

/* Hardware refused a claim that the ledger had granted: the ledger takes it back. */
static void claim_back(struct worker *w, struct change *c)
{
	struct trouble t = { 0 };
	enum pw_status st = PW_OK;

	if (c->op != GFN_UNSHARE)
		st = ledger_back(w, &c->vm, GFN_PAGE_OUT, c->stretches, c->stretch_count, &t);
	if (st == PW_OK)
		st = ledger_back(w, &c->vm, GFN_SHARE, c->stretches, c->stretch_count, &t);
	if (st != PW_OK) {
		alog(ALOG_ERROR, "a claim could not be taken back", "%s", t.err.msg);
		agent_want_resync(w->agent);
	}
	for (size_t i = 0; i < c->stretch_count; i++)
		if (w->agent->law && c->stretches[i].arch)
			agent_want_resync(w->agent); /* the law's own operations leave pages at rest */
	trouble_clear(&t);
}

static void assign(struct worker *w, struct change *c)
{
	struct backend *b = w->agent->backend;
	struct pw_err err = { 0 };
	enum pw_status st = PW_OK;
	size_t i;

	for (i = 0; i < c->stretch_count && st == PW_OK; i++) {
		struct stretch *s = &c->stretches[i];

		st = b->ops->page_in(b, &c->vm, s->gfn, s->count, frames_of(c, s->gfn), &c->trouble.err);
	}
	if (st == PW_OK)
		return;
	for (size_t k = i - 1; k-- > 0;) {
		if (hardware_back(b, &c->vm, &c->stretches[k], &err) == PW_OK)
			continue;
		alog(ALOG_ERROR, "hardware could not be taken back", "%s", err.msg);
		agent_want_resync(w->agent);
	}
	unreserve_from(w, c, i - 1);
	claim_back(w, c);
	fail(c, st);
}

static void finish_granted(struct worker *w, struct change *c)
{
	struct backend *b = w->agent->backend;
	enum pw_status st;

	if (is_claim(c->op)) {
		assign(w, c);
		return;
	}
	if (c->op != GFN_UNSHARE)
		return;
	st = b->ops->unshare(b, &c->vm, c->gfn, c->done, &c->trouble.err);
	if (st == PW_OK)
		return;
	claim_back(w, c);
	fail(c, st);
}

static void finish_refused(struct worker *w, struct change *c, enum pw_status st)
{
	if (is_claim(c->op))
		unreserve_from(w, c, 0);
	if (c->op == GFN_SHARE || c->op == GFN_PAGE_OUT) {
		alog(ALOG_WARNING, "hardware gave up what the ledger keeps", "%s of GFN %" PRIu64 "+%" PRIu64 ": %s",
		     gfn_op_name(c->op), c->gfn, c->done, c->trouble.err.msg);
		agent_want_resync(w->agent);
	}
	fail(c, st);
}

static void finish(struct worker *w, struct change *c, const struct verdict *v)
{
	if (v->ok)
		finish_granted(w, c);
	else
		finish_refused(w, c, trouble_adopt(&c->trouble, v->problem));
}

static struct item item_of(const struct change *c, const char *name, bool framed)
{
	struct item it = { .vm = c->vm,
			   .op = c->op == GFN_UNSHARE_IN ? GFN_UNSHARE : c->op,
			   .framed = framed,
			   .pool = "local",
			   .runs = c->runs,
			   .run_count = c->run_count };

	if (name)
		it.arch_op = arch_op_find(name, strlen(name), framed, &it.arch_law);
	return it;
}

/* Tells what hardware has done since the claims. That they stand is true already, so nothing is taken back. */
static void tell_done(struct worker *w, struct change **asked, size_t n)
{
	struct item items[CHANGES_MAX];
	struct verdict v[CHANGES_MAX];
	struct trouble t = { 0 };
	size_t used = 0;
	bool refused = false;

	for (size_t i = 0; i < n; i++)
		if (asked[i]->st == PW_OK && asked[i]->trail->done)
			items[used++] = item_of(asked[i], asked[i]->trail->done, false);
	if (used == 0)
		return;
	if (batch_send(w, items, used, v, &t) == PW_OK) {
		for (size_t i = 0; i < used && !refused; i++)
			if (!v[i].ok) {
				refused = true;
				(void)!trouble_adopt(&t, v[i].problem);
			}
		verdicts_clear(v, used);
	}
	if (refused) {
		alog(ALOG_WARNING, "the ledger keeps another state of pages than hardware", "%s", t.err.msg);
		agent_want_resync(w->agent);
	}
	trouble_clear(&t);
}

static void ask(struct worker *w, struct change **asked, size_t n)
{
	struct item items[CHANGES_MAX] = { 0 };
	struct verdict v[CHANGES_MAX];
	struct trouble t = { 0 };
	enum pw_status st;

	for (size_t i = 0; i < n; i++)
		items[i] = item_of(asked[i], asked[i]->trail->item, is_claim(asked[i]->op));
	st = batch_send(w, items, n, v, &t);
	for (size_t i = 0; i < n; i++) {
		if (st == PW_OK) {
			finish(w, asked[i], &v[i]);
			continue;
		}
		asked[i]->trouble.err = t.err;
		finish_refused(w, asked[i], st);
	}
	if (st == PW_OK) {
		verdicts_clear(v, n);
		tell_done(w, asked, n);
	}
	trouble_clear(&t);
}

void changes_run(struct worker *w, struct change *c, size_t n)
{
	for (size_t at = 0, now; at < n; at += now) {
		struct change *asked[CHANGES_MAX];
		size_t k = 0;

		now = n - at < CHANGES_MAX ? n - at : CHANGES_MAX;
		for (size_t i = at; i < at + now; i++) {
			if (prepare(w, &c[i]))
				asked[k++] = &c[i];
		}
		if (k)
			ask(w, asked, k);
	}
}

void changes_release(struct change *c, size_t n)
{
	for (size_t i = 0; i < n; i++) {
		trouble_clear(&c[i].trouble);
		free(c[i].stretches);
		free(c[i].runs);
		free(c[i].pfns);
		c[i] = (struct change){ 0 };
	}
}

bool record_add(struct record *r, const struct stretch *s, size_t n)
{
	if (n > RECORD_MAX - r->n)
		return false;
	if (r->n + n > r->cap) {
		size_t cap = (r->n + n) * 2;
		struct stretch *more = reallocarray(r->v, cap, sizeof *more);

		if (!more)
			return false;
		r->v = more;
		r->cap = cap;
	}
	if (n)
		memcpy(r->v + r->n, s, n * sizeof *s);
	r->n += n;
	return true;
}

void record_release(struct record *r)
{
	free(r->v);
	*r = (struct record){ 0 };
}

/* Keeps what c did; if there is no room, c is taken back at once. */
static enum pw_status keep(struct worker *w, struct change *c, struct record *rec, struct trouble *t)
{
	if (c->st == PW_OK && (!rec || record_add(rec, c->stretches, c->stretch_count)))
		return PW_OK;
	if (c->st == PW_OK) {
		changes_undo(w, &c->vm, c->op, c->stretches, c->stretch_count);
		return pw_fail(&t->err, PW_NO_MEMORY, "too scattered a range to be changed as one");
	}
	trouble_clear(t);
	*t = c->trouble;
	c->trouble = (struct trouble){ 0 };
	return c->st;
}

#define RANGE_GROUP 16

static size_t split(struct worker *w, struct change *c, const struct change *whole, uint64_t at)
{
	size_t n = 0;

	for (; n < RANGE_GROUP && at < whole->count; n++) {
		uint64_t now = whole->count - at;

		if (is_claim(whole->op) && now > claim_max(w))
			now = claim_max(w);
		c[n] = (struct change){ .vm = whole->vm, .op = whole->op, .gfn = whole->gfn + at, .count = now };
		at += now;
	}
	return n;
}

enum pw_status change_range(struct worker *w, const struct change *whole, struct record *rec, uint64_t *moved,
			    struct trouble *t)
{
	enum pw_status st = PW_OK;

	for (uint64_t at = 0; at < whole->count && st == PW_OK;) {
		struct change c[RANGE_GROUP];
		size_t n = split(w, c, whole, at);
		struct change rest;

		changes_run(w, c, n);
		for (size_t i = 0; i < n; i++) {
			enum pw_status one = keep(w, &c[i], rec, t);

			st = st == PW_OK ? one : st;
			*moved += one == PW_OK ? c[i].moved : 0;
			at += c[i].count;
			if (one != PW_OK || st != PW_OK || c[i].done == c[i].count)
				continue;
			rest = (struct change){ .vm = whole->vm,
						.op = whole->op,
						.gfn = c[i].gfn + c[i].done,
						.count = c[i].count - c[i].done };
			st = change_range(w, &rest, rec, moved, t);
		}
		changes_release(c, n);
	}
	return st;
}

static enum gfn_op reverse(enum gfn_op op, enum gfn_state was)
{
	if (was == GFN_SHARED)
		return GFN_SHARE;
	return op == GFN_PAGE_OUT ? GFN_PAGE_IN : GFN_PAGE_OUT;
}

void changes_undo(struct worker *w, const struct pw_uuid *vm, enum gfn_op op, const struct stretch *s, size_t n)
{
	while (n-- > 0) {
		for (uint64_t at = 0, now; at < s[n].count; at += now) {
			struct change c = {
				.vm = *vm, .op = reverse(op, s[n].was), .gfn = s[n].gfn + at, .count = s[n].count - at
			};

			changes_run(w, &c, 1);
			now = c.done;
			if (c.st != PW_OK) {
				alog(ALOG_ERROR, "a change could not be undone", "GFN %" PRIu64 "+%" PRIu64 ": %s",
				     c.gfn, c.count, c.trouble.err.msg);
				agent_want_resync(w->agent);
				now = s[n].count - at;
			}
			changes_release(&c, 1);
		}
	}
}
