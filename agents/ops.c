#include "agents/ops.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/exits.h"
#include "agents/resync_impl.h"
#include "agents/ripas.h"
#include "api/operation_params.h"

struct op_run {
	struct worker *w;
	const struct operation *op;
	struct backend *b;
	struct remote_vm vm; /* as the ledger has it */
	struct trouble *t;
	bool on_hardware;
	enum vm_state hardware;
	struct ripas_plan ripas; /* of a launch */
};

bool operation_read(json_t *item, struct operation *out)
{
	const char *id = json_string_value(json_object_get(item, "id"));
	const char *kind = json_string_value(json_object_get(item, "kind"));
	struct pw_uuid parsed;

	if (!id || !kind || !pw_uuid_parse(id, strlen(id), &parsed) || !operation_kind_from_name(kind, &out->kind))
		return false;
	if (!json_uuid_member(item, "vm", &out->vm))
		return false;
	pw_uuid_format(&parsed, out->id);
	out->again = json_is_true(json_object_get(item, "again"));
	out->params = json_object_get(item, "params");
	return out->params != NULL;
}

bool launch_budget(json_t *params, uint64_t pages, struct launch_budget *out)
{
	json_t *v = json_object_get(params, "resident");

	*out = (struct launch_budget){ .pages = pages, .must = v != NULL };
	if (!v)
		return true;
	if (json_is_integer(v) && json_integer_value(v) >= 0) {
		out->pages = (uint64_t)json_integer_value(v);
		return out->pages <= pages;
	}
	if (!json_is_real(v) || !(json_real_value(v) >= 0 && json_real_value(v) <= 1))
		return false;
	out->pages = (uint64_t)(json_real_value(v) * (double)pages);
	return true;
}

struct find_vm {
	const struct pw_uuid *vm;
	bool *found;
	enum vm_state *state;
};

static bool find_one(void *ctx, const struct pw_uuid *vm, enum vm_state state)
{
	struct find_vm *f = ctx;

	if (!pw_uuid_equal(vm, f->vm))
		return true;
	*f->found = true;
	*f->state = state;
	return false;
}

enum pw_status hardware_vm(struct backend *b, const struct pw_uuid *vm, bool *found, enum vm_state *state,
			   struct pw_err *err)
{
	*found = false;
	*state = VM_NORMAL;
	return b->ops->each_vm(b, find_one, &(struct find_vm){ vm, found, state }, err);
}

/* Stuck frames. */

struct stuck {
	json_t *items;
	uint64_t hash;
	bool failed;
};

static bool see_stuck(void *ctx, const struct backend_run *run)
{
	struct stuck *s = ctx;
	json_t *item = json_pack("{s:s, s:I, s:I, s:s}", "pool", "local", "pfn", (json_int_t)run->pfn, "count",
				 (json_int_t)run->count, "reason", run->why);

	s->hash = next_random(&s->hash) ^ run->pfn ^ run->count << 40;
	s->failed |= json_array_append_new(s->items, item) != 0;
	return !s->failed;
}

static enum pw_status quarantine(struct worker *w, json_t *items, struct trouble *t)
{
	enum pw_status st = PW_OK;

	for (size_t at = 0; at < json_array_size(items) && st == PW_OK; at += ITEM_RUNS_MAX) {
		json_t *some = json_array();

		for (size_t i = at; some && i < json_array_size(items) && i - at < ITEM_RUNS_MAX; i++)
			if (json_array_append(some, json_array_get(items, i)))
				return json_decref(some), pw_fail(&t->err, PW_NO_MEMORY, "no memory for stuck frames");
		if (!some)
			return pw_fail(&t->err, PW_NO_MEMORY, "no memory for stuck frames");
		st = remote_quarantine(w, some, t);
	}
	return st;
}

enum pw_status report_stuck(struct worker *w, struct trouble *t)
{
	struct backend *b = w->agent->backend;
	struct stuck s = { .items = json_array() };
	enum pw_status st;

	if (!s.items)
		return pw_fail(&t->err, PW_NO_MEMORY, "no memory for stuck frames");
	st = b->ops->read_stuck(b, see_stuck, &s, &t->err);
	if (st == PW_OK && s.failed)
		st = pw_fail(&t->err, PW_NO_MEMORY, "no memory for stuck frames");
	if (st != PW_OK || json_array_size(s.items) == 0 || s.hash == w->agent->stuck_reported) {
		json_decref(s.items);
		return st;
	}
	alog(ALOG_WARNING, "frames go into quarantine", "%zu runs that hardware would not give back",
	     json_array_size(s.items));
	st = quarantine(w, s.items, t);
	json_decref(s.items);
	if (st == PW_OK)
		w->agent->stuck_reported = s.hash;
	return st;
}

static enum pw_status tell_step(struct worker *w, const struct pw_uuid *vm, const char *name, struct trouble *t)
{
	struct item it = { .vm = *vm };
	struct verdict v[1];
	enum pw_status st;

	if (!name)
		return PW_OK;
	it.vm_op = arch_vm_op_find(name, strlen(name), &it.arch_law);
	st = batch_send(w, &it, 1, v, t);
	if (st != PW_OK)
		return st;
	if (!v[0].ok) {
		(void)!trouble_adopt(t, v[0].problem);
		alog(ALOG_WARNING, "the ledger keeps another state of a VM than hardware", "%s", t->err.msg);
		trouble_clear(t);
	}
	verdicts_clear(v, 1);
	return PW_OK;
}

/* The end of a VM: hardware gives everything up, stuck frames are named, then the ledger releases. */

static enum pw_status hardware_end(struct worker *w, const struct pw_uuid *vm, enum vm_event e, struct trouble *t)
{
	struct backend *b = w->agent->backend;
	enum vm_state state;
	bool found;
	enum pw_status st = hardware_vm(b, vm, &found, &state, &t->err);

	if (st != PW_OK || !found)
		return st;
	if (state != VM_NORMAL)
		st = b->ops->vm_event(b, vm, state == VM_TRANSIENT ? e : VM_TERMINATE, &t->err);
	if (st == PW_OK && state != VM_NORMAL && w->agent->law)
		st = tell_step(w, vm, w->agent->law->ending, t);
	if (st != PW_OK)
		return st;
	st = report_stuck(w, t);
	if (st == PW_OK)
		st = b->ops->destroy_vm(b, vm, &t->err);
	if (st == PW_OK) {
		heard_drop(&w->agent->heard, vm);
		unknown_clear(w->agent, vm); /* whatever was disputed of it */
	}
	if (st != PW_OK)
		agent_want_resync(w->agent); /* its frames are free, and the ledger does not know yet */
	return st;
}

enum pw_status vm_end(struct worker *w, const struct pw_uuid *vm, struct trouble *t)
{
	enum pw_status st = hardware_end(w, vm, VM_TERMINATE, t);

	if (st == PW_OK)
		st = remote_event(w, vm, VM_TERMINATE, t);
	return st == PW_OK ? unknown_report(w, t) : st;
}

static enum pw_status op_terminate(struct op_run *r)
{
	return vm_end(r->w, &r->op->vm, r->t);
}

static enum pw_status refuse_event(struct op_run *r, enum vm_event e)
{
	struct refusal why;

	refuse(&why, PROBLEM_VM_TRANSITION, "%s of a VM that is %s", vm_event_name(e), vm_state_name(r->vm.state));
	why.vm_state = r->vm.state;
	why.vm_event = e;
	return trouble_refuse(r->t, &why);
}

/* A VM that is normal has nothing to abort, except where this operation has done it already. */
static enum pw_status op_abort(struct op_run *r)
{
	enum pw_status st;

	if (r->vm.state == VM_NORMAL && r->op->again && !r->on_hardware)
		return PW_OK;
	if (r->vm.state != VM_TRANSIENT)
		return refuse_event(r, VM_INIT_ABORT);
	st = hardware_end(r->w, &r->op->vm, VM_INIT_ABORT, r->t);
	return st == PW_OK ? remote_event(r->w, &r->op->vm, VM_INIT_ABORT, r->t) : st;
}

/* Launch. */

static uint64_t vm_pages(const struct remote_vm *vm)
{
	uint64_t pages = 0;

	for (size_t i = 0; i < vm->slot_count; i++)
		pages += vm->slots[i].pages;
	return pages;
}

/* What a launch says of the guest: {"guest":{"seed":7,"rate":10,"idle":false},"share_backing":"group"}. */
static enum pw_status guest_params(struct op_run *r, struct backend_vm_spec *spec)
{
	json_t *guest = json_object_get(r->op->params, "guest"),
	       *group = json_object_get(r->op->params, "share_backing");
	json_t *seed = json_object_get(guest, "seed"), *rate = json_object_get(guest, "rate");

	if ((guest && !json_is_object(guest)) || (seed && (!json_is_integer(seed) || json_integer_value(seed) < 0)) ||
	    (rate &&
	     (!json_is_integer(rate) || json_integer_value(rate) < 0 || json_integer_value(rate) > OPERATION_RATE_MAX)))
		return pw_fail(&r->t->err, PW_INVALID,
			       "params.guest is not {\"seed\":N,\"rate\":N up to %d,\"idle\":BOOL}",
			       OPERATION_RATE_MAX);
	if (group && !json_is_string(group))
		return pw_fail(&r->t->err, PW_INVALID, "params.share_backing is not a string");
	spec->guest_seed = seed ? (uint64_t)json_integer_value(seed) : 1;
	spec->guest_rate = (unsigned)json_integer_value(rate);
	spec->idle = json_is_true(json_object_get(guest, "idle"));
	spec->share_backing = json_string_value(group);
	return PW_OK;
}

static enum pw_status create(struct op_run *r)
{
	struct backend_vm_spec spec = {
		.id = r->op->vm, .slots = r->vm.slots, .slot_count = r->vm.slot_count, .shared_bit = r->vm.shared_bit
	};
	bool plain = json_is_true(json_object_get(r->op->params, "plain"));
	enum pw_status st = guest_params(r, &spec);

	if (st == PW_OK) /* before hardware has it: an end that the ledger records from now on is its end (L11) */
		st = heard_put(&r->w->agent->heard, &r->op->vm, r->vm.revision, plain, &r->t->err);
	return st == PW_OK ? r->b->ops->create_vm(r->b, &spec, &r->t->err) : st;
}

/* The ledger's first word on a guest that begins. */
static enum pw_status begin(struct op_run *r, enum vm_event e)
{
	uint64_t revision;
	enum pw_status st = remote_event_at(r->w, &r->op->vm, e, TOLD_AS_NEWS, &revision, r->t);

	if (st != PW_OK)
		return st;
	if (e == VM_INIT_START)
		r->vm.state = VM_TRANSIENT;
	return heard_put(&r->w->agent->heard, &r->op->vm, revision, e == VM_START, &r->t->err);
}

static enum pw_status share_run(struct op_run *r, json_t *run)
{
	struct change c = { .vm = r->op->vm, .op = GFN_SHARE };
	json_t *gfn = json_array_get(run, 0), *count = json_array_get(run, 1);
	uint64_t moved = 0;

	if (json_array_size(run) != 2 || !json_is_integer(gfn) || !json_is_integer(count) ||
	    json_integer_value(gfn) < 0 || json_integer_value(count) < 1 ||
	    json_integer_value(gfn) >= (json_int_t)TREE_PAGES ||
	    json_integer_value(count) > (json_int_t)TREE_PAGES - json_integer_value(gfn))
		return pw_fail(&r->t->err, PW_INVALID, "params.shared holds pairs [gfn, count]");
	c.gfn = (uint64_t)json_integer_value(gfn);
	c.count = (uint64_t)json_integer_value(count);
	return change_range(r->w, &c, NULL, &moved, r->t);
}

static enum pw_status share_first(struct op_run *r)
{
	json_t *shared = json_object_get(r->op->params, "shared"), *run;
	enum pw_status st;
	size_t i;

	if (shared && (!json_is_array(shared) || json_array_size(shared) > OPERATION_RUNS_MAX))
		return pw_fail(&r->t->err, PW_INVALID, "params.shared is not a list of at most %d runs",
			       OPERATION_RUNS_MAX);
	json_array_foreach (shared, i, run) {
		st = share_run(r, run);
		if (st != PW_OK)
			return st;
	}
	return PW_OK;
}

/* Runs of the VM that are still normal or paged out, as many pages as the budget has. */
struct wanted {
	const struct ripas_plan *ripas; /* borrowed */
	struct change *v;
	size_t n, cap;
	uint64_t pages;
	bool failed;
};

static bool want_pages(struct wanted *wanted, uint64_t gfn, uint64_t count)
{
	if (wanted->n == wanted->cap) {
		size_t cap = wanted->cap ? wanted->cap * 2 : 16;
		struct change *more = reallocarray(wanted->v, cap, sizeof *more);

		wanted->failed = !more;
		if (!more)
			return false;
		wanted->v = more;
		wanted->cap = cap;
	}
	wanted->v[wanted->n++] = (struct change){ .op = GFN_PAGE_IN, .gfn = gfn, .count = count };
	wanted->pages -= count;
	return true;
}

static bool want_run(void *ctx, const struct backend_run *run)
{
	struct wanted *wanted = ctx;
	uint64_t count = run->count < wanted->pages ? run->count : wanted->pages, end = run->gfn + run->count, n;

	if (run->state == GFN_SECURE_RESIDENT)
		wanted->pages -= count; /* of a launch that is being done again */
	if (run->state == GFN_SHARED || run->state == GFN_SECURE_RESIDENT)
		return wanted->pages > 0;
	for (uint64_t at = run->gfn; at < end && wanted->pages; at += n) {
		if (ripas_plan_is_empty(wanted->ripas, at, end, &n))
			continue; /* no memory of the guest's */
		if (!want_pages(wanted, at, n < wanted->pages ? n : wanted->pages))
			return false;
	}
	return wanted->pages > 0;
}

/* The pool is nearly empty: takes what is there, in ever smaller pieces. */
static enum pw_status accept_scraps(struct op_run *r, struct change *c, uint64_t *moved)
{
	for (uint64_t piece = c->count; piece && c->count;) {
		struct change part = *c;
		enum pw_status st;

		part.count = piece < c->count ? piece : c->count;
		trouble_clear(r->t);
		st = change_range(r->w, &part, NULL, moved, r->t);
		if (st == PW_BUSY) {
			piece /= 2;
			continue;
		}
		if (st != PW_OK)
			return st;
		c->gfn += part.count;
		c->count -= part.count;
	}
	trouble_clear(r->t);
	return PW_OK;
}

/* How many frames are free here: the pool without what hardware has resident, and what is stuck. */

struct taken {
	struct pw_uuid *vms; /* owned */
	size_t n, cap;
	uint64_t frames;
	bool failed;
};

static bool see_vm(void *ctx, const struct pw_uuid *vm, enum vm_state state)
{
	struct taken *taken = ctx;

	if (state == VM_NORMAL)
		return true;
	if (taken->n == taken->cap) {
		size_t cap = taken->cap ? taken->cap * 2 : 16;
		struct pw_uuid *more = reallocarray(taken->vms, cap, sizeof *more);

		taken->failed = !more;
		if (!more)
			return false;
		taken->vms = more;
		taken->cap = cap;
	}
	taken->vms[taken->n++] = *vm;
	return true;
}

static bool see_resident(void *ctx, const struct backend_run *run)
{
	struct taken *taken = ctx;

	taken->frames += run->state == GFN_SECURE_RESIDENT ? run->count : 0;
	return true;
}

static bool see_lost(void *ctx, const struct backend_run *run)
{
	struct taken *taken = ctx;

	taken->frames += run->count;
	return true;
}

static enum pw_status free_frames(struct op_run *r, uint64_t *out)
{
	struct taken taken = { 0 };
	enum pw_status st = r->b->ops->each_vm(r->b, see_vm, &taken, &r->t->err);
	uint64_t all = r->w->agent->info.frames;

	if (taken.failed)
		st = pw_fail(&r->t->err, PW_NO_MEMORY, "no memory for a launch");
	for (size_t i = 0; i < taken.n && st == PW_OK; i++)
		st = r->b->ops->read_state(r->b, &taken.vms[i], 0, TREE_PAGES, see_resident, &taken, &r->t->err);
	if (st == PW_OK)
		st = r->b->ops->read_stuck(r->b, see_lost, &taken, &r->t->err);
	free(taken.vms);
	*out = all > taken.frames ? all - taken.frames : 0;
	return st;
}

/* What can never be resident at once is refused before anything is paged out for it. */
static enum pw_status check_room(struct op_run *r, const char *what, uint64_t pages)
{
	struct taken lost = { 0 };
	uint64_t all = r->w->agent->info.frames;
	struct refusal why;
	enum pw_status st = r->b->ops->read_stuck(r->b, see_lost, &lost, &r->t->err);

	if (st != PW_OK || all == 0 || pages <= all - lost.frames)
		return st;
	refuse(&why, PROBLEM_TOO_MUCH_WORK, "%s of %" PRIu64 " pages, and the pool has %" PRIu64 " frames in all", what,
	       pages, all - lost.frames);
	return trouble_refuse(r->t, &why);
}

static enum pw_status find_budget(struct op_run *r, struct launch_budget *out)
{
	uint64_t room;
	enum pw_status st;

	if (!launch_budget(r->op->params, vm_pages(&r->vm), out))
		return pw_fail(&r->t->err, PW_INVALID,
			       "params.resident is neither a fraction nor a number of the VM's %" PRIu64 " pages",
			       vm_pages(&r->vm));
	if (out->must)
		return PW_OK;
	st = free_frames(r, &room);
	if (st == PW_OK && out->pages > room)
		out->pages = room;
	return st;
}

static enum pw_status accept_memory(struct op_run *r, uint64_t *moved)
{
	struct launch_budget budget;
	struct wanted wanted = { .ripas = &r->ripas };
	enum pw_status st = find_budget(r, &budget);

	wanted.pages = st == PW_OK ? budget.pages : 0;
	for (size_t i = 0; i < r->vm.slot_count && wanted.pages && st == PW_OK; i++)
		st = r->b->ops->read_state(r->b, &r->op->vm, r->vm.slots[i].base, r->vm.slots[i].pages, want_run,
					   &wanted, &r->t->err);
	if (wanted.failed)
		st = pw_fail(&r->t->err, PW_NO_MEMORY, "no memory for a launch");
	for (size_t i = 0; i < wanted.n && st == PW_OK; i++) {
		wanted.v[i].vm = r->op->vm;
		st = change_range(r->w, &wanted.v[i], NULL, moved, r->t);
		if (st == PW_BUSY && !budget.must) {
			st = accept_scraps(r, &wanted.v[i], moved);
			break;
		}
	}
	free(wanted.v);
	return st;
}

static enum pw_status launch_secure(struct op_run *r)
{
	uint64_t moved = 0;
	enum pw_status st = r->b->ops->vm_event(r->b, &r->op->vm, VM_INIT_START, &r->t->err);

	if (st == PW_OK)
		st = ripas_tell_begin(r->w, &r->vm, r->t);
	if (st == PW_OK)
		st = share_first(r);
	if (st == PW_OK)
		st = accept_memory(r, &moved);
	if (st == PW_OK)
		st = r->b->ops->vm_event(r->b, &r->op->vm, VM_INIT_DONE, &r->t->err);
	if (st == PW_OK && r->hardware != VM_SECURE && r->w->agent->law)
		st = tell_step(r->w, &r->op->vm, r->w->agent->law->sealed, r->t);
	if (st == PW_OK)
		st = remote_event(r->w, &r->op->vm, VM_INIT_DONE, r->t);
	if (st != PW_OK)
		return st;
	r->vm.state = VM_SECURE;
	alog(ALOG_INFO, "launched", "operation %s: %" PRIu64 " pages resident", r->op->id, moved);
	return r->b->ops->run_vm(r->b, &r->op->vm, &r->t->err);
}

/* Back to normal, hardware before ledger; the reason for it stays in r->t. */
static void launch_undo(struct op_run *r)
{
	struct trouble t = { 0 };
	enum vm_event e = r->vm.state == VM_TRANSIENT ? VM_INIT_ABORT : VM_TERMINATE;
	enum pw_status st = hardware_end(r->w, &r->op->vm, VM_INIT_ABORT, &t);

	if (st == PW_OK) /* of a normal VM too: the ledger is to know that it is on no hardware */
		st = remote_event(r->w, &r->op->vm, e, &t);
	if (st != PW_OK) {
		alog(ALOG_ERROR, "a launch could not be undone", "operation %s: %s", r->op->id, t.err.msg);
		agent_want_resync(r->w->agent);
	}
	trouble_clear(&t);
}

/* An ordinary VM: nothing of it is secured, and it stays normal. */
static enum pw_status launch_plain(struct op_run *r)
{
	enum pw_status st;

	if (r->vm.state != VM_NORMAL)
		return refuse_event(r, VM_START);
	st = create(r);
	if (st == PW_OK)
		st = begin(r, VM_START);
	if (st == PW_OK)
		st = r->b->ops->run_vm(r->b, &r->op->vm, &r->t->err);
	if (st != PW_OK && !r->on_hardware)
		launch_undo(r);
	return st;
}

/* What runs as an ordinary VM has memory that nobody claimed, and a launch that failed would end it. */
static enum pw_status refuse_ordinary(struct op_run *r)
{
	struct refusal why;

	refuse(&why, PROBLEM_OPERATION_STATE,
	       "hardware runs this VM as an ordinary one (it was launched with \"plain\"): terminate it first");
	return trouble_refuse(r->t, &why);
}

static bool runs_ordinary(const struct op_run *r)
{
	const struct heard_vm *heard = heard_of(&r->w->agent->heard, &r->op->vm);

	return r->on_hardware && r->hardware == VM_NORMAL && heard && heard->plain;
}

/* What is shared or empty needs no frames: that is left to the launch. */
static enum pw_status check_launch(struct op_run *r)
{
	struct launch_budget b;

	if (json_object_get(r->op->params, "shared") || r->ripas.n ||
	    !launch_budget(r->op->params, vm_pages(&r->vm), &b) || !b.must)
		return PW_OK;
	return check_room(r, "launch", b.pages);
}

static enum pw_status op_launch(struct op_run *r)
{
	enum pw_status st;

	if (r->vm.state == VM_SECURE && r->hardware == VM_SECURE)
		return r->b->ops->run_vm(r->b, &r->op->vm, &r->t->err); /* said again */
	if (r->vm.state == VM_SECURE)
		return refuse_event(r, VM_INIT_START);
	if (json_is_true(json_object_get(r->op->params, "plain")))
		return launch_plain(r);
	if (runs_ordinary(r))
		return refuse_ordinary(r);
	st = ripas_plan_read(r->op->params, &r->ripas, &r->t->err);
	if (st == PW_OK)
		st = check_launch(r);
	if (st != PW_OK)
		return st;
	st = create(r);
	if (st == PW_OK && r->hardware == VM_NORMAL && (r->on_hardware || r->ripas.n))
		st = ripas_plan_set(r->w, &r->vm, &r->ripas, &r->t->err);
	if (st == PW_OK && r->vm.state == VM_NORMAL)
		st = begin(r, VM_INIT_START);
	if (st == PW_OK)
		st = launch_secure(r);
	if (st != PW_OK)
		launch_undo(r);
	return st;
}

/* Ranges. */

static enum pw_status read_range(struct op_run *r, struct change *c)
{
	if (!json_u64_member(r->op->params, "gfn", &c->gfn) || !json_u64_member(r->op->params, "count", &c->count) ||
	    c->gfn >= TREE_PAGES || c->count == 0 || c->count > TREE_PAGES - c->gfn)
		return pw_fail(&r->t->err, PW_INVALID, "params needs gfn and count, pages below 2^40");
	return PW_OK;
}

static enum pw_status check_range(struct op_run *r, const struct change *c)
{
	struct refusal why;
	uint64_t outside = c->gfn;

	if (r->vm.state == VM_NORMAL) {
		refuse(&why, PROBLEM_VM_TRANSITION, "%s while the VM is normal", gfn_op_name(c->op));
		why.vm_state = VM_NORMAL;
		why.op = gfn_op_name(c->op);
		return trouble_refuse(r->t, &why);
	}
	for (size_t i = 0; i < r->vm.slot_count; i++) {
		const struct slot *s = &r->vm.slots[i];

		if (c->gfn < s->base || c->gfn - s->base >= s->pages)
			continue;
		outside = s->base + s->pages;
		if (c->count <= outside - c->gfn)
			return slots_agree(r->w, &r->op->vm, &r->vm, r->t);
	}
	refuse(&why, PROBLEM_GFN_OUT_OF_SLOT, "GFN %" PRIu64 " is outside the slot", outside);
	why.gfn = outside;
	return trouble_refuse(r->t, &why);
}

static enum pw_status run_range(struct op_run *r, enum gfn_op op)
{
	struct change c = { .vm = r->op->vm, .op = op };
	struct record rec = { 0 };
	uint64_t moved = 0;
	enum pw_status st = read_range(r, &c);

	if (st == PW_OK)
		st = check_range(r, &c);
	if (st == PW_OK && (op == GFN_PAGE_IN || op == GFN_UNSHARE_IN))
		st = check_room(r, gfn_op_name(op), c.count);
	if (st != PW_OK)
		return st;
	st = change_range(r->w, &c, &rec, &moved, r->t);
	if (st != PW_OK)
		changes_undo(r->w, &c.vm, op, rec.v, rec.n);
	record_release(&rec);
	return st;
}

static enum pw_status op_share(struct op_run *r)
{
	return run_range(r, GFN_SHARE);
}

static enum pw_status op_unshare(struct op_run *r)
{
	bool resident = json_is_true(json_object_get(r->op->params, "resident"));

	return run_range(r, resident ? GFN_UNSHARE_IN : GFN_UNSHARE);
}

static enum pw_status op_page_in(struct op_run *r)
{
	return run_range(r, GFN_PAGE_IN);
}

static enum pw_status op_page_out(struct op_run *r)
{
	return run_range(r, GFN_PAGE_OUT);
}

/* Slots. */

static bool read_slot(const struct op_run *r, struct slot *out)
{
	uint64_t number;

	*out = (struct slot){ 0 };
	if (!json_u64_member(r->op->params, "slot", &number) || number > UINT32_MAX)
		return false;
	out->number = (uint32_t)number;
	if (r->op->kind == OPERATION_UNPLUG)
		return true;
	return json_u64_member(r->op->params, "base_gfn", &out->base) &&
	       json_u64_member(r->op->params, "pages", &out->pages) && out->base < TREE_PAGES && out->pages > 0 &&
	       out->pages <= TREE_PAGES - out->base;
}

static bool ledger_has_slot(const struct op_run *r, uint32_t number)
{
	for (size_t i = 0; i < r->vm.slot_count; i++)
		if (r->vm.slots[i].number == number)
			return true;
	return false;
}

/* The ledger as it is now. */
static enum pw_status read_again(struct op_run *r)
{
	struct remote_vm fresh;
	enum pw_status st = remote_vm_get(r->w, &r->op->vm, &fresh, r->t);

	if (st != PW_OK)
		return st;
	remote_vm_release(&r->vm);
	r->vm = fresh;
	return PW_OK;
}

/* The ledger has the slot and hardware would not: it goes again. The reason stays in r->t. */
static void plug_undo(struct op_run *r, uint32_t number)
{
	struct trouble t = { 0 };
	enum pw_status st = r->b->ops->unmap_slot(r->b, &r->op->vm, number, &t.err);

	if (st == PW_OK || st == PW_NOT_FOUND)
		st = remote_slot_delete(r->w, &r->op->vm, number, &t);
	if (st != PW_OK) {
		alog(ALOG_ERROR, "a plug could not be undone", "slot %" PRIu32 ": %s", number, t.err.msg);
		agent_want_resync(r->w->agent);
	}
	trouble_clear(&t);
}

/* The ledger first: it covers what hardware gets. A slot that was there before stays, whatever happens. */
static enum pw_status op_plug(struct op_run *r)
{
	struct slot s;
	bool was_there;
	enum pw_status st;

	if (!read_slot(r, &s))
		return pw_fail(&r->t->err, PW_INVALID, "params needs slot, base_gfn and pages");
	was_there = ledger_has_slot(r, s.number);
	st = remote_slot_put(r->w, &r->op->vm, &s, r->t);
	if (st != PW_OK || !r->on_hardware)
		return st;
	st = read_again(r);
	if (st == PW_OK)
		st = slots_agree(r->w, &r->op->vm, &r->vm, r->t);
	if (st != PW_OK && !was_there)
		plug_undo(r, s.number);
	return st;
}

/* Hardware first: it gives up the pages, all or none; frames that it keeps are named; then the ledger releases. */
static enum pw_status op_unplug(struct op_run *r)
{
	struct refusal why;
	struct slot s;
	enum pw_status st = PW_OK;

	if (!read_slot(r, &s))
		return pw_fail(&r->t->err, PW_INVALID, "params needs slot");
	if (!ledger_has_slot(r, s.number) && !r->op->again) {
		refuse(&why, PROBLEM_SLOT_NOT_FOUND, "the VM has no slot %" PRIu32, s.number);
		return trouble_refuse(r->t, &why);
	}
	if (r->on_hardware)
		st = r->b->ops->unmap_slot(r->b, &r->op->vm, s.number, &r->t->err);
	if (st != PW_OK)
		return st;
	st = report_stuck(r->w, r->t);
	if (st == PW_OK)
		st = remote_slot_delete(r->w, &r->op->vm, s.number, r->t);
	if (st != PW_OK && r->on_hardware)
		agent_want_resync(r->w->agent); /* hardware is without it, and the ledger does not know yet */
	return st;
}

static enum pw_status (*const table[OPERATION_KIND_COUNT])(struct op_run *r) = {
	[OPERATION_LAUNCH] = op_launch,   [OPERATION_TERMINATE] = op_terminate, [OPERATION_SHARE] = op_share,
	[OPERATION_UNSHARE] = op_unshare, [OPERATION_PAGE_IN] = op_page_in,     [OPERATION_PAGE_OUT] = op_page_out,
	[OPERATION_ABORT] = op_abort,     [OPERATION_PLUG] = op_plug,           [OPERATION_UNPLUG] = op_unplug,
};

/* VMs that this hardware has and the ledger does not own: an operator decides. */

/* A VM that is nobody's in the ledger has nothing to tell it; of one that is, both halves end. */
static enum pw_status end_anyway(struct worker *w, const struct pw_uuid *vm, bool ours, enum vm_state state,
				 struct trouble *t)
{
	struct backend *b = w->agent->backend;
	enum pw_status st = PW_OK;

	if (ours)
		return vm_end(w, vm, t);
	if (state != VM_NORMAL)
		st = b->ops->vm_event(b, vm, state == VM_TRANSIENT ? VM_INIT_ABORT : VM_TERMINATE, &t->err);
	if (st == PW_OK)
		st = report_stuck(w, t);
	if (st == PW_OK)
		st = b->ops->destroy_vm(b, vm, &t->err);
	if (st == PW_OK)
		heard_drop(&w->agent->heard, vm);
	return st;
}

static enum pw_status op_end(struct worker *w, const struct pw_uuid *id, enum vm_state state, struct trouble *t)
{
	struct remote_vm vm;
	char host[PW_UUID_TEXT];
	enum pw_status st = remote_vm_get(w, id, &vm, t);
	bool ours;

	if (st != PW_OK && st != PW_NOT_FOUND)
		return st;
	pw_uuid_format(&vm.host, host);
	ours = st == PW_OK && vm.state != VM_NORMAL && strcmp(host, w->agent->host) == 0;
	trouble_clear(t);
	alog(ALOG_WARNING, "a guest is ended", "an operator said so");
	st = end_anyway(w, id, ours, state, t);
	remote_vm_release(&vm);
	if (st != PW_OK)
		return st;
	unknown_clear(w->agent, id);
	return unknown_report(w, t);
}

/* Tries again; what is still not the ledger's in whole is a failure that says why. */
static enum pw_status op_adopt(struct worker *w, const struct pw_uuid *id, struct trouble *t)
{
	enum pw_status st = resync_one_vm(w, id, t);
	struct refusal why;

	if (st != PW_OK || !unknown_has(w->agent, id, NULL))
		return st;
	unknown_refuse(w->agent, id, "", &why);
	return trouble_refuse(t, &why);
}

static enum pw_status run_on_unknown(struct worker *w, const struct operation *op, struct trouble *t)
{
	enum vm_state state;
	bool found;
	enum pw_status st = hardware_vm(w->agent->backend, &op->vm, &found, &state, &t->err);

	if (st == PW_OK && found)
		return op->kind == OPERATION_END ? op_end(w, &op->vm, state, t) : op_adopt(w, &op->vm, t);
	unknown_clear(w->agent, &op->vm);
	if (st == PW_OK)
		st = unknown_report(w, t);
	if (st == PW_OK && op->kind == OPERATION_ADOPT)
		st = pw_fail(&t->err, PW_NOT_FOUND, "this host's hardware has no such VM");
	return st;
}

/* Both sides of the VM as they are now. */
static enum pw_status look(struct op_run *r)
{
	enum pw_status st = read_again(r);

	return st == PW_OK ? hardware_vm(r->b, &r->op->vm, &r->on_hardware, &r->hardware, &r->t->err) : st;
}

/* A guest that the ledger does not show: of another VM with that id, or one that was ended by force. */
static bool is_stranger(const struct op_run *r)
{
	return r->on_hardware && r->hardware != VM_NORMAL && r->vm.state == VM_NORMAL;
}

/* No operation takes such a guest for its own, or puts down a new word on it: a comparison says first what it is. It
 * ends or is adopted; one that stays unknown is left alone. */
static enum pw_status settle_stranger(struct op_run *r)
{
	enum pw_status st = resync_one_vm(r->w, &r->op->vm, r->t);
	struct refusal why;

	if (st == PW_OK)
		st = look(r);
	if (st != PW_OK || !is_stranger(r) || r->op->kind == OPERATION_TERMINATE)
		return st;
	unknown_refuse(r->w->agent, &r->op->vm, "hardware has a guest that the ledger does not show", &why);
	return trouble_refuse(r->t, &why);
}

enum pw_status operation_run(struct worker *w, const struct operation *op, struct trouble *t)
{
	struct op_run r = { .w = w, .op = op, .b = w->agent->backend, .t = t };
	enum pw_status st;

	if (op->kind == OPERATION_ADOPT || op->kind == OPERATION_END)
		return run_on_unknown(w, op, t);
	st = look(&r);
	if (st == PW_OK && is_stranger(&r))
		st = settle_stranger(&r);
	if (st == PW_OK)
		st = table[op->kind](&r);
	if (st == PW_OK && op->kind == OPERATION_LAUNCH)
		exits_forget(w->agent, &op->vm);
	if (st == PW_OK)
		exits_report(w, &op->vm);
	ripas_plan_release(&r.ripas);
	remote_vm_release(&r.vm);
	return st;
}
