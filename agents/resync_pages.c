/* Resync of a VM's pages: digests of its regions first, runs where they differ, and the repairs in the ledger. A page
 * never leaves hardware here: frames that the ledger gives to somebody else are disputed, which is reported (law L11).
 */
#include "agents/resync_impl.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/batch.h"
#include "engine/arch/law.h"
#include "engine/digest.h"

#define OTHER_POOL (TREE_PAGES << 1) /* no frame of this host's own pool */

/* Runs of one window. */

struct window {
	const struct arch_law *law; /* NULL: none */
	struct run_list runs;
	bool failed;
};

static bool see_run(void *ctx, const struct backend_run *run)
{
	struct window *win = ctx;
	struct backend_run seen = *run;

	if (!win->law)
		seen.arch = 0;
	win->failed |= !run_list_add(&win->runs, &seen);
	return !win->failed;
}

static bool read_frame(json_t *item, struct backend_run *run)
{
	json_t *frame = json_object_get(item, "frame");
	const char *pool = json_string_value(json_object_get(frame, "pool"));

	if (!json_u64_member(frame, "pfn", &run->pfn) || !pool)
		return false;
	if (strcmp(pool, "local") != 0)
		run->pfn = OTHER_POOL;
	return true;
}

/* The state of that name of an architecture, which projects onto the run's. */
static unsigned read_arch(json_t *item, const struct arch_law *law, enum gfn_state is)
{
	const char *name = json_string_value(json_object_get(item, "arch_state"));

	for (unsigned i = 0; law && name && i < law->state_count; i++)
		if (law->states[i].is == is && strcmp(law->states[i].name, name) == 0)
			return i == law->rest[is] ? 0 : i + 1;
	return 0;
}

static bool read_state(json_t *item, struct backend_run *run)
{
	const char *state = json_string_value(json_object_get(item, "state"));

	*run = (struct backend_run){ 0 };
	if (!state || !json_u64_member(item, "gfn", &run->gfn) || !json_u64_member(item, "count", &run->count))
		return false;
	if (run->gfn >= TREE_PAGES || run->count == 0 || run->count > TREE_PAGES - run->gfn)
		return false;
	if (strcmp(state, "secure") != 0) {
		run->state = strcmp(state, "shared") == 0 ? GFN_SHARED : GFN_NORMAL;
		return true;
	}
	run->state = json_is_true(json_object_get(item, "resident")) ? GFN_SECURE_RESIDENT : GFN_SECURE_OUT;
	return run->state == GFN_SECURE_OUT || read_frame(item, run);
}

static bool see_item(void *ctx, json_t *item)
{
	struct window *win = ctx;
	struct backend_run run;

	if (read_state(item, &run)) {
		run.arch = read_arch(item, win->law, run.state);
		win->failed |= !run_list_add(&win->runs, &run);
	} else {
		win->failed = true;
	}
	return !win->failed;
}

static enum pw_status read_hardware(struct worker *w, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				    struct window *win, struct pw_err *err)
{
	struct backend *b = w->agent->backend;
	enum pw_status st = b->ops->read_state(b, vm, gfn, count, see_run, win, err);

	return st == PW_OK && win->failed ? pw_fail(err, PW_NO_MEMORY, "no memory for hardware's runs") : st;
}

static enum pw_status read_ledger(struct worker *w, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  struct window *win, struct pw_err *err)
{
	char id[PW_UUID_TEXT], path[160];
	enum pw_status st;

	pw_uuid_format(vm, id);
	snprintf(path, sizeof path, "/v1/vms/%s/gfns?gfn=%" PRIu64 "&count=%" PRIu64 "&limit=1000", id, gfn, count);
	st = client_list(w->client, path, see_item, win, err);
	return st == PW_OK && win->failed ? pw_fail(err, PW_INVALID, "the ledger's runs cannot be read") : st;
}

/* Repairs: all releases of a window first, so that claims find their frames free. */

struct repairs {
	struct resync *rs;
	struct seen_vm *s;
	const struct pw_uuid *vm;
	struct difference *v; /* owned; those that need the ledger */
	size_t n, cap;
	bool failed;
};

static unsigned arch_index(const struct arch_law *law, enum gfn_state s, unsigned arch)
{
	return arch ? arch - 1 : law->rest[s];
}

static const char *arch_text(const struct arch_law *law, enum gfn_state s, unsigned arch)
{
	if (law)
		return law->states[arch_index(law, s, arch)].name;
	return s == GFN_SECURE_OUT ? "out" : s == GFN_SECURE_RESIDENT ? "resident" : "-";
}

static void log_difference(struct repairs *r, const struct difference *d, struct remedy m)
{
	const struct arch_law *law = r->rs->w->agent->law;
	char what[200];

	r->rs->differences++;
	snprintf(what, sizeof what, "GFN %" PRIu64 "+%" PRIu64 ": %s (%s) in the ledger, %s (%s) on hardware", d->gfn,
		 d->count, gfn_state_name(d->ledger), arch_text(law, d->ledger, d->ledger_arch),
		 gfn_state_name(d->hardware), arch_text(law, d->hardware, d->hardware_arch));
	if (m.violation)
		resync_violation(r->rs, r->vm, what);
	else
		alog(ALOG_INFO, "repairing", "%s", what);
}

static bool repairs_add(struct repairs *r, const struct difference *d)
{
	if (r->n == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 64;
		struct difference *more = reallocarray(r->v, cap, sizeof *more);

		r->failed |= !more;
		if (!more)
			return false;
		r->v = more;
		r->cap = cap;
	}
	r->v[r->n++] = *d;
	return true;
}

static bool see_difference(void *ctx, const struct difference *d)
{
	struct repairs *r = ctx;
	struct remedy m = resync_remedy(d);

	if (m.repair == REPAIR_NOTHING)
		return true;
	log_difference(r, d, m);
	return repairs_add(r, d);
}

/* First frames are given up or none changes, then claimed; last comes what the architecture has to say of the pages. */
enum part { PART_RELEASE, PART_CLAIM, PART_ARCH, PART_COUNT };

/* The item of the last part: law states agree by now. False: there is nothing to tell. */
static bool arch_item(struct repairs *r, struct difference *d, struct item *it)
{
	const struct arch_law *law = r->rs->w->agent->law;
	bool was_claimed = resync_remedy(d).repair != REPAIR_ARCH;
	unsigned from, to;

	if (!law || d->refused || (was_claimed && d->hardware == GFN_NORMAL))
		return false;
	if (was_claimed && !d->moved)
		from = arch_page_after(law, arch_index(law, d->ledger, d->ledger_arch), d->hardware);
	else
		from = arch_index(law, d->hardware, d->ledger_arch);
	to = arch_index(law, d->hardware, d->hardware_arch);
	if (from == to)
		return false;
	it->arch_law = law;
	it->arch_op = arch_op_between(law, arch_vm_rest(law, r->rs->state), from, to);
	if (it->arch_op) {
		to = it->arch_op->next[from];
		d->ledger_arch = to == law->rest[d->hardware] ? 0 : to + 1;
		d->moved = true;
		return true;
	}
	d->refused = true;
	resync_violation(r->rs, r->vm, "no operation of the architecture leads to hardware's state");
	r->rs->unrepaired++;
	return false;
}

/* False: this part does nothing. */
static bool law_item(const struct difference *d, enum part part, struct item *it)
{
	enum gfn_op *op = &it->op;

	it->framed = part == PART_CLAIM;
	switch (resync_remedy(d).repair) {
	case REPAIR_RELEASE: *op = GFN_PAGE_OUT; return part == PART_RELEASE;
	case REPAIR_SHARE: *op = GFN_SHARE; return part == PART_RELEASE;
	case REPAIR_UNSHARE: *op = GFN_UNSHARE; return part == PART_RELEASE;
	case REPAIR_CLAIM: *op = GFN_PAGE_IN; return part == PART_CLAIM;
	case REPAIR_CLAIM_SHARED: *op = GFN_UNSHARE; return part == PART_CLAIM;
	case REPAIR_RECLAIM: *op = part == PART_RELEASE ? GFN_PAGE_OUT : GFN_PAGE_IN; return part != PART_ARCH;
	case REPAIR_ARCH:
	case REPAIR_NOTHING:
	case REPAIR_COUNT: break;
	}
	return false;
}

/* Claims of frames that are somebody else's in the ledger are not made: what is free is claimed, the rest disputed. */

struct taken {
	struct frame_run *v; /* owned; vm nil: in quarantine */
	size_t n, cap;
	bool failed;
};

static bool see_taken(void *ctx, json_t *item)
{
	struct taken *t = ctx;
	struct frame_run run = { .pool = "local" };
	const char *pool = json_string_value(json_object_get(item, "pool"));

	if (pool && strcmp(pool, "local") != 0)
		return true;
	t->failed |= !json_u64_member(item, "pfn", &run.pfn) || !json_u64_member(item, "count", &run.count);
	if (json_uuid_member(item, "vm", &run.vm) && !json_u64_member(item, "gfn", &run.gfn))
		t->failed = true;
	if (t->n == t->cap) {
		size_t cap = t->cap ? t->cap * 2 : 64;
		struct frame_run *more = reallocarray(t->v, cap, sizeof *more);

		t->failed |= !more;
		if (!more)
			return false;
		t->v = more;
		t->cap = cap;
	}
	t->v[t->n++] = run;
	return !t->failed;
}

/* The frames of [pfn, pfn + count) that nobody may claim now, in two lists: bound ones and those in quarantine. */
static enum pw_status read_taken(struct resync *rs, uint64_t pfn, uint64_t count, struct taken *out, struct pw_err *err)
{
	struct worker *w = rs->w;
	char path[160];
	enum pw_status st;

	snprintf(path, sizeof path, "/v1/hosts/%s/frames?pool=local&pfn=%" PRIu64 "&count=%" PRIu64 "&limit=1000",
		 w->agent->host, pfn, count);
	st = client_list(w->client, path, see_taken, out, err);
	if (st != PW_OK)
		return st;
	snprintf(path, sizeof path, "/v1/hosts/%s/quarantine?limit=1000", w->agent->host);
	st = client_list(w->client, path, see_taken, out, err);
	return st == PW_OK && out->failed ? pw_fail(err, PW_INVALID, "the ledger's frames cannot be read") : st;
}

/* The first taken run that ends past pfn, or NULL. */
static const struct frame_run *taken_after(const struct taken *t, uint64_t pfn)
{
	const struct frame_run *first = NULL;

	for (size_t i = 0; i < t->n; i++) {
		const struct frame_run *run = &t->v[i];

		if (run->pfn + run->count > pfn && (!first || run->pfn < first->pfn))
			first = run;
	}
	return first;
}

static bool is_nobody(const struct pw_uuid *id)
{
	return pw_uuid_equal(id, &(struct pw_uuid){ { 0 } });
}

static void dispute(struct repairs *r, const struct difference *d, const struct frame_run *owner)
{
	struct unknown_run run = { .gfn = d->gfn, .count = d->count, .pfn = d->hardware_pfn };

	if (owner && !is_nobody(&owner->vm)) {
		run.has_owner = true;
		run.owner = owner->vm;
		run.owner_gfn = owner->gfn + (d->hardware_pfn - owner->pfn);
	}
	r->rs->disputed += d->count;
	disputes_add(&r->s->disputes, &run);
}

/* `count` pages of d from its page `at` on. */
static struct difference part_of(const struct difference *d, uint64_t at, uint64_t count)
{
	struct difference part = *d;

	part.gfn += at;
	part.hardware_pfn += at;
	part.ledger_pfn += at;
	part.count = count;
	return part;
}

/* Replaces difference i by pieces whose frames are free, and others that are disputed. */
static enum pw_status split_claim(struct repairs *r, size_t i, struct pw_err *err)
{
	const struct difference d = r->v[i];
	struct taken taken = { 0 };
	enum pw_status st = read_taken(r->rs, d.hardware_pfn, d.count, &taken, err);
	bool first = true;

	for (uint64_t at = 0, n; at < d.count && st == PW_OK; at += n) {
		uint64_t pfn = d.hardware_pfn + at;
		const struct frame_run *run = taken_after(&taken, pfn);
		struct difference part;

		n = d.count - at;
		if (run && run->pfn > pfn && run->pfn - pfn < n)
			n = run->pfn - pfn;
		else if (run && run->pfn <= pfn && run->pfn + run->count - pfn < n)
			n = run->pfn + run->count - pfn;
		part = part_of(&d, at, n);
		part.refused = run && run->pfn <= pfn;
		if (part.refused)
			dispute(r, &part, run);
		if (first)
			r->v[i] = part;
		else if (!repairs_add(r, &part))
			st = pw_fail(err, PW_NO_MEMORY, "no memory for repairs");
		first = false;
	}
	free(taken.v);
	return st;
}

static bool is_claim(const struct difference *d)
{
	enum repair repair = resync_remedy(d).repair;

	return !d->refused && (repair == REPAIR_CLAIM || repair == REPAIR_CLAIM_SHARED || repair == REPAIR_RECLAIM);
}

static enum pw_status split_claims(struct repairs *r, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (size_t i = 0, n = r->n; i < n && st == PW_OK; i++)
		if (is_claim(&r->v[i]))
			st = split_claim(r, i, err);
	return st;
}

/* Whoever the problem names first has at least one of the frames. */
static void dispute_refused(struct repairs *r, const struct difference *d, json_t *problem)
{
	json_t *conflict = json_array_get(json_object_get(problem, "conflicts"), 0);
	struct frame_run owner = { .pfn = d->hardware_pfn };

	if (!json_uuid_member(conflict, "vm", &owner.vm) || !json_u64_member(conflict, "gfn", &owner.gfn))
		owner.vm = (struct pw_uuid){ { 0 } };
	dispute(r, d, &owner);
}

static void refused(struct repairs *r, struct difference *d, enum part part, json_t *problem)
{
	struct trouble t = { 0 };
	char what[200];

	d->refused = true;
	(void)!trouble_adopt(&t, problem);
	snprintf(what, sizeof what, "repair of GFN %" PRIu64 "+%" PRIu64 " refused: %.100s", d->gfn, d->count,
		 t.err.msg);
	resync_violation(r->rs, r->vm, what);
	if (part == PART_CLAIM)
		dispute_refused(r, d, problem);
	else
		r->rs->unrepaired++;
	trouble_clear(&t);
}

#define REPAIR_BATCH 256

/* *more: the way of some page to hardware's state has more steps than one. */
static enum pw_status repair_batch(struct repairs *r, struct difference *d, size_t n, enum part part, bool *more,
				   struct trouble *t)
{
	struct item items[REPAIR_BATCH];
	struct gfn_run runs[REPAIR_BATCH];
	struct difference *whose[REPAIR_BATCH];
	struct verdict v[REPAIR_BATCH];
	size_t used = 0;
	enum pw_status st;

	for (size_t i = 0; i < n; i++) {
		struct item it = { .vm = *r->vm, .pool = "local", .runs = &runs[used], .run_count = 1 };

		if (d[i].refused || !(part == PART_ARCH ? arch_item(r, &d[i], &it) : law_item(&d[i], part, &it)))
			continue;
		runs[used] = (struct gfn_run){ d[i].gfn, d[i].count, d[i].hardware_pfn };
		items[used] = it;
		whose[used++] = &d[i];
	}
	*more = used && part == PART_ARCH;
	if (used == 0)
		return PW_OK;
	st = batch_send(r->rs->w, items, used, v, t);
	for (size_t i = 0; i < used && st == PW_OK; i++)
		if (!v[i].ok)
			refused(r, whose[i], part, v[i].problem);
	if (st == PW_OK)
		verdicts_clear(v, used);
	return st;
}

static enum pw_status repair_all(struct repairs *r, struct trouble *t)
{
	enum pw_status st = PW_OK;

	for (int part = 0; part < PART_COUNT && st == PW_OK; part++) {
		if (part == PART_CLAIM)
			st = split_claims(r, &t->err);
		for (size_t at = 0; at < r->n && st == PW_OK; at += REPAIR_BATCH) {
			size_t n = r->n - at < REPAIR_BATCH ? r->n - at : REPAIR_BATCH;
			bool more = true;

			while (st == PW_OK && more)
				st = repair_batch(r, r->v + at, n, (enum part)part, &more, t);
		}
	}
	return st;
}

static enum pw_status compare_window(struct resync *rs, struct seen_vm *s, const struct window *hardware, uint64_t gfn,
				     uint64_t count, struct trouble *t)
{
	struct window ledger = { .law = rs->w->agent->law };
	struct repairs r = { .rs = rs, .s = s, .vm = &s->id };
	enum pw_status st = read_ledger(rs->w, &s->id, gfn, count, &ledger, &t->err);

	if (st == PW_OK) {
		resync_compare(&ledger.runs, &hardware->runs, see_difference, &r);
		st = r.failed ? pw_fail(&t->err, PW_NO_MEMORY, "no memory for repairs") : repair_all(&r, t);
	}
	free(r.v);
	run_list_release(&ledger.runs);
	return st;
}

/* One VM: digests of its regions, runs where they differ. */

struct regions {
	struct resync *rs;
	struct seen_vm *s;
	struct trouble *t;
	enum pw_status st;
};

static bool parse_digest(json_t *item, uint64_t *out)
{
	const char *text = json_string_value(json_object_get(item, "digest"));
	char *end;

	if (!text || strlen(text) != 16)
		return false;
	*out = strtoull(text, &end, 16);
	return *end == '\0';
}

static bool see_region(void *ctx, json_t *item)
{
	struct regions *g = ctx;
	struct window hardware = { .law = g->rs->w->agent->law };
	uint64_t gfn, count, digest;

	if (!json_u64_member(item, "gfn", &gfn) || !json_u64_member(item, "count", &count) ||
	    !parse_digest(item, &digest) || gfn >= TREE_PAGES || count == 0 || count > TREE_PAGES - gfn) {
		g->st = pw_fail(&g->t->err, PW_INVALID, "the ledger's digests cannot be read");
		return false;
	}
	g->rs->regions++;
	g->st = read_hardware(g->rs->w, &g->s->id, gfn, count, &hardware, &g->t->err);
	if (g->st == PW_OK && resync_digest(&hardware.runs) != digest) {
		g->rs->opened++;
		g->st = compare_window(g->rs, g->s, &hardware, gfn, count, g->t);
	}
	run_list_release(&hardware.runs);
	return g->st == PW_OK;
}

static enum pw_status compare_slot(struct resync *rs, struct seen_vm *s, const struct slot *slot, struct trouble *t)
{
	struct regions g = { .rs = rs, .s = s, .t = t };
	char id[PW_UUID_TEXT], path[160];
	enum pw_status st;

	pw_uuid_format(&s->id, id);
	snprintf(path, sizeof path, "/v1/vms/%s/digests?gfn=%" PRIu64 "&count=%" PRIu64, id, slot->base, slot->pages);
	st = client_list(rs->w->client, path, see_region, &g, &t->err);
	return st == PW_OK ? g.st : st;
}

/* Between its slots the ledger has no GFNs. A slot that it would not take back is there on hardware all the same: its
 * pages are nobody's in the ledger, stay, and are reported. */
static enum pw_status look_between(struct resync *rs, struct seen_vm *s, uint64_t gfn, uint64_t end, struct trouble *t)
{
	struct window win = { 0 };
	enum pw_status st = end > gfn ? read_hardware(rs->w, &s->id, gfn, end - gfn, &win, &t->err) : PW_OK;
	char what[120];

	for (size_t i = 0; i < win.runs.n && st == PW_OK; i++) {
		const struct backend_run *run = &win.runs.v[i];

		if (run->state != GFN_SECURE_RESIDENT)
			continue;
		rs->differences++;
		s->stray += run->count;
		snprintf(what, sizeof what,
			 "GFN %" PRIu64 "+%" PRIu64 ": resident on hardware, in no slot of the ledger", run->gfn,
			 run->count);
		resync_violation(rs, &s->id, what);
	}
	run_list_release(&win.runs);
	return st;
}

enum pw_status resync_pages(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	enum pw_status st = PW_OK;
	uint64_t end = 0;

	rs->state = s->ledger == PRESENCE_SECURE || s->hardware == PRESENCE_SECURE ? VM_SECURE : VM_TRANSIENT;
	s->disputes = (struct disputes){ 0 };
	s->stray = 0;
	for (size_t i = 0; i < s->vm.slot_count && st == PW_OK; i++) {
		const struct slot *slot = &s->vm.slots[i];

		st = look_between(rs, s, end, slot->base, t);
		if (st == PW_OK)
			st = compare_slot(rs, s, slot, t);
		end = slot->base + slot->pages;
	}
	return st == PW_OK ? look_between(rs, s, end, TREE_PAGES, t) : st;
}
