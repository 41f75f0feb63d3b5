#include "agents/resync.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/batch.h"
#include "agents/ops.h"
#include "engine/arch/law.h"
#include "engine/digest.h"

#define OTHER_POOL (TREE_PAGES << 1) /* no frame of this host's own pool */

struct seen_vm {
	struct pw_uuid id;
	enum presence ledger, hardware;
	struct remote_vm vm; /* if the ledger has it */
};

struct resync {
	struct worker *w;
	struct seen_vm *vms; /* owned */
	size_t n, cap;
	bool failed;         /* no memory */
	enum vm_state state; /* of the VM that is being compared, on both sides */
	uint64_t regions, opened, differences, violations, unrepaired;
};

static struct seen_vm *seen(struct resync *rs, const struct pw_uuid *id)
{
	for (size_t i = 0; i < rs->n; i++)
		if (pw_uuid_equal(&rs->vms[i].id, id))
			return &rs->vms[i];
	if (rs->n == rs->cap) {
		size_t cap = rs->cap ? rs->cap * 2 : 16;
		struct seen_vm *more = reallocarray(rs->vms, cap, sizeof *more);

		rs->failed |= !more;
		if (!more)
			return NULL;
		rs->vms = more;
		rs->cap = cap;
	}
	rs->vms[rs->n] = (struct seen_vm){ .id = *id };
	return &rs->vms[rs->n++];
}

static enum presence presence_of(enum vm_state s)
{
	switch (s) {
	case VM_NORMAL: return PRESENCE_NORMAL;
	case VM_TRANSIENT: return PRESENCE_TRANSIENT;
	case VM_SECURE: return PRESENCE_SECURE;
	case VM_STATE_COUNT: break;
	}
	return PRESENCE_NONE;
}

static bool see_hardware(void *ctx, const struct pw_uuid *id, enum vm_state state)
{
	struct seen_vm *vm = seen(ctx, id);

	if (vm)
		vm->hardware = presence_of(state);
	return vm != NULL;
}

static bool see_ledger(void *ctx, json_t *item)
{
	struct resync *rs = ctx;
	struct remote_vm vm;
	struct seen_vm *s;

	if (!remote_vm_read(item, &vm)) {
		rs->failed = true;
		return false;
	}
	s = seen(rs, &vm.id);
	if (!s) {
		remote_vm_release(&vm);
		return false;
	}
	s->ledger = presence_of(vm.state);
	remote_vm_release(&s->vm);
	s->vm = vm;
	return true;
}

static void count_violation(struct resync *rs, const struct pw_uuid *vm, const char *what)
{
	char id[PW_UUID_TEXT];

	rs->violations++;
	pw_uuid_format(vm, id);
	alog(ALOG_ERROR, "violation: hardware and ledger differ", "vm %s: %s", id, what);
}

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
		count_violation(r->rs, r->vm, what);
	else
		alog(ALOG_INFO, "repairing", "%s", what);
}

static bool see_difference(void *ctx, const struct difference *d)
{
	struct repairs *r = ctx;
	struct remedy m = resync_remedy(d);

	if (m.repair == REPAIR_NOTHING)
		return true;
	log_difference(r, d, m);
	if (r->n == r->cap) {
		size_t cap = r->cap ? r->cap * 2 : 64;
		struct difference *more = reallocarray(r->v, cap, sizeof *more);

		r->failed = !more;
		if (!more)
			return false;
		r->v = more;
		r->cap = cap;
	}
	r->v[r->n++] = *d;
	return true;
}

/* First frames are given up or none changes, then claimed; last comes what the architecture has to say of the pages. */
enum part { PART_RELEASE, PART_CLAIM, PART_ARCH, PART_COUNT };

/* The item of the last part: law states agree by now. False: there is nothing to tell. */
static bool arch_item(struct repairs *r, struct difference *d, struct item *it)
{
	const struct arch_law *law = r->rs->w->agent->law;
	bool was_claimed = resync_remedy(d).repair != REPAIR_ARCH;
	unsigned from, to;

	if (!law || d->refused || (was_claimed && (d->hardware_arch == 0 || d->hardware == GFN_NORMAL)))
		return false;
	from = arch_index(law, d->hardware, was_claimed && !d->moved ? 0 : d->ledger_arch);
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
	count_violation(r->rs, r->vm, "no operation of the architecture leads to hardware's state");
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

/* The ledger will not have it: the page leaves hardware. */
static enum pw_status take_away(struct repairs *r, const struct difference *d, struct pw_err *err)
{
	struct backend *b = r->rs->w->agent->backend;

	if (d->ledger == GFN_SHARED)
		return b->ops->share(b, r->vm, d->gfn, d->count, err);
	return b->ops->page_out(b, r->vm, d->gfn, d->count, err);
}

static void refused(struct repairs *r, struct difference *d, enum part part, json_t *problem)
{
	struct trouble t = { 0 };
	char what[200];
	bool gone = false;

	d->refused = true;
	(void)!trouble_adopt(&t, problem);
	snprintf(what, sizeof what, "repair of GFN %" PRIu64 "+%" PRIu64 " refused: %.100s", d->gfn, d->count,
		 t.err.msg);
	count_violation(r->rs, r->vm, what);
	if (part == PART_CLAIM)
		gone = take_away(r, d, &t.err) == PW_OK;
	if (!gone) {
		r->rs->unrepaired++;
		alog(ALOG_ERROR, "not repaired", "%s", t.err.msg);
	}
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

		if (!(part == PART_ARCH ? arch_item(r, &d[i], &it) : law_item(&d[i], part, &it)))
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

	for (int part = 0; part < PART_COUNT && st == PW_OK; part++)
		for (size_t at = 0; at < r->n && st == PW_OK; at += REPAIR_BATCH) {
			size_t n = r->n - at < REPAIR_BATCH ? r->n - at : REPAIR_BATCH;
			bool more = true;

			while (st == PW_OK && more)
				st = repair_batch(r, r->v + at, n, (enum part)part, &more, t);
		}
	return st;
}

static enum pw_status compare_window(struct resync *rs, const struct pw_uuid *vm, const struct window *hardware,
				     uint64_t gfn, uint64_t count, struct trouble *t)
{
	struct window ledger = { .law = rs->w->agent->law };
	struct repairs r = { .rs = rs, .vm = vm };
	enum pw_status st = read_ledger(rs->w, vm, gfn, count, &ledger, &t->err);

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
	const struct pw_uuid *vm;
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
	g->st = read_hardware(g->rs->w, g->vm, gfn, count, &hardware, &g->t->err);
	if (g->st == PW_OK && resync_digest(&hardware.runs) != digest) {
		g->rs->opened++;
		g->st = compare_window(g->rs, g->vm, &hardware, gfn, count, g->t);
	}
	run_list_release(&hardware.runs);
	return g->st == PW_OK;
}

static enum pw_status compare_slot(struct resync *rs, const struct pw_uuid *vm, const struct slot *s, struct trouble *t)
{
	struct regions g = { .rs = rs, .vm = vm, .t = t };
	struct backend *b = rs->w->agent->backend;
	char id[PW_UUID_TEXT], path[160];
	enum pw_status st = slot_there(b, vm, s, &t->err);

	if (st != PW_OK)
		return st;
	pw_uuid_format(vm, id);
	snprintf(path, sizeof path, "/v1/vms/%s/digests?gfn=%" PRIu64 "&count=%" PRIu64, id, s->base, s->pages);
	st = client_list(rs->w->client, path, see_region, &g, &t->err);
	return st == PW_OK ? g.st : st;
}

/* Between its slots the ledger has no GFNs, so hardware may hold no frames there (a slot that was deleted). */
static enum pw_status empty_gap(struct resync *rs, const struct pw_uuid *vm, uint64_t gfn, uint64_t end,
				struct trouble *t)
{
	struct backend *b = rs->w->agent->backend;
	struct window win = { 0 };
	enum pw_status st = end > gfn ? read_hardware(rs->w, vm, gfn, end - gfn, &win, &t->err) : PW_OK;
	char what[120];

	for (size_t i = 0; i < win.runs.n && st == PW_OK; i++) {
		const struct backend_run *run = &win.runs.v[i];

		if (run->state != GFN_SECURE_RESIDENT)
			continue;
		rs->differences++;
		snprintf(what, sizeof what,
			 "GFN %" PRIu64 "+%" PRIu64 ": resident on hardware, in no slot of the ledger", run->gfn,
			 run->count);
		count_violation(rs, vm, what);
		st = b->ops->page_out(b, vm, run->gfn, run->count, &t->err);
	}
	run_list_release(&win.runs);
	return st;
}

static enum pw_status compare_pages(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	bool sealed = s->ledger == PRESENCE_SECURE || s->hardware == PRESENCE_SECURE;
	enum pw_status st = PW_OK;
	uint64_t end = 0;

	rs->state = sealed ? VM_SECURE : VM_TRANSIENT;

	for (size_t i = 0; i < s->vm.slot_count && st == PW_OK; i++) {
		const struct slot *slot = &s->vm.slots[i];

		st = empty_gap(rs, &s->id, end, slot->base, t);
		if (st == PW_OK)
			st = compare_slot(rs, &s->id, slot, t);
		end = slot->base + slot->pages;
	}
	return st == PW_OK ? empty_gap(rs, &s->id, end, TREE_PAGES, t) : st;
}

static enum pw_status end_hardware(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	struct backend *b = rs->w->agent->backend;
	enum pw_status st = PW_OK;

	if (s->hardware == PRESENCE_NONE)
		return PW_OK;
	if (s->hardware != PRESENCE_NORMAL)
		st = b->ops->vm_event(b, &s->id, s->hardware == PRESENCE_TRANSIENT ? VM_INIT_ABORT : VM_TERMINATE,
				      &t->err);
	if (st == PW_OK)
		st = report_stuck(rs->w, t);
	return st == PW_OK ? b->ops->destroy_vm(b, &s->id, &t->err) : st;
}

static enum pw_status end_both(struct resync *rs, struct seen_vm *s, enum vm_event e, struct trouble *t)
{
	enum pw_status st = end_hardware(rs, s, t);

	return st == PW_OK ? remote_event(rs->w, &s->id, e, t) : st;
}

static enum pw_status apply(struct resync *rs, struct seen_vm *s, enum vm_repair repair, struct trouble *t)
{
	struct backend *b = rs->w->agent->backend;
	enum pw_status st;

	switch (repair) {
	case VM_REPAIR_NOTHING: return PW_OK;
	case VM_REPAIR_PAGES: return compare_pages(rs, s, t);
	case VM_REPAIR_DESTROY: return end_hardware(rs, s, t);
	case VM_REPAIR_TERMINATE: return end_both(rs, s, VM_TERMINATE, t);
	case VM_REPAIR_ABORT: return end_both(rs, s, VM_INIT_ABORT, t);
	case VM_REPAIR_DONE:
		st = remote_event(rs->w, &s->id, VM_INIT_DONE, t);
		return st == PW_OK ? compare_pages(rs, s, t) : st;
	case VM_REPAIR_DONE_THERE:
		st = b->ops->vm_event(b, &s->id, VM_INIT_DONE, &t->err);
		return st == PW_OK ? compare_pages(rs, s, t) : st;
	case VM_REPAIR_COUNT: break;
	}
	return PW_OK;
}

static enum pw_status resync_vm(struct resync *rs, struct seen_vm *s, struct trouble *t)
{
	static const char *const names[PRESENCE_COUNT] = { "absent", "normal", "transient", "secure" };
	struct vm_remedy m = resync_vm_remedy(s->ledger, s->hardware);
	char what[100], id[PW_UUID_TEXT];

	if (m.repair != VM_REPAIR_NOTHING && m.repair != VM_REPAIR_PAGES) {
		rs->differences++;
		snprintf(what, sizeof what, "the VM is %s in the ledger, %s on hardware", names[s->ledger],
			 names[s->hardware]);
		pw_uuid_format(&s->id, id);
		if (m.violation)
			count_violation(rs, &s->id, what);
		else
			alog(ALOG_INFO, "repairing", "vm %s: %s", id, what);
	}
	return apply(rs, s, m.repair, t);
}

static enum pw_status see_all(struct resync *rs, struct pw_err *err)
{
	struct backend *b = rs->w->agent->backend;
	char path[96];
	enum pw_status st = b->ops->each_vm(b, see_hardware, rs, err);

	if (st != PW_OK)
		return st;
	snprintf(path, sizeof path, "/v1/vms?host=%s&limit=1000", rs->w->agent->host);
	st = client_list(rs->w->client, path, see_ledger, rs, err);
	if (st == PW_OK && rs->failed)
		st = pw_fail(err, PW_NO_MEMORY, "the list of VMs cannot be read");
	return st;
}

/* A VM that cannot be repaired does not keep the others from their work; a lost server does. */
static enum pw_status resync_each(struct resync *rs, struct pw_err *err)
{
	for (size_t i = 0; i < rs->n; i++) {
		struct trouble t = { 0 };
		enum pw_status st = resync_vm(rs, &rs->vms[i], &t);
		char id[PW_UUID_TEXT];

		*err = t.err;
		trouble_clear(&t);
		if (st == PW_NETWORK || st == PW_NO_MEMORY || agent_is_stopping(rs->w->agent))
			return st == PW_OK ? PW_NETWORK : st;
		if (st == PW_OK)
			continue;
		rs->unrepaired++;
		pw_uuid_format(&rs->vms[i].id, id);
		alog(ALOG_ERROR, "not repaired", "vm %s: %s", id, err->msg);
	}
	return PW_OK;
}

enum pw_status resync_host(struct worker *w, struct pw_err *err)
{
	struct resync rs = { .w = w };
	struct trouble t = { 0 };
	enum pw_status st = see_all(&rs, err);

	w->agent->stuck_reported = 0;
	if (st == PW_OK) {
		st = report_stuck(w, &t);
		*err = t.err;
	}
	if (st == PW_OK)
		st = resync_each(&rs, err);
	alog(st == PW_OK ? ALOG_INFO : ALOG_WARNING, st == PW_OK ? "resynced" : "resync ended early",
	     "vms=%zu regions=%" PRIu64 " opened=%" PRIu64 " differences=%" PRIu64 " violations=%" PRIu64
	     " unrepaired=%" PRIu64,
	     rs.n, rs.regions, rs.opened, rs.differences, rs.violations, rs.unrepaired);
	trouble_clear(&t);
	for (size_t i = 0; i < rs.n; i++)
		remote_vm_release(&rs.vms[i].vm);
	free(rs.vms);
	return st;
}
