#include "agents/machine_impl.h"

#include <stdlib.h>
#include <string.h>

static void add_id(struct words *w, const struct pw_uuid *id)
{
	uint64_t half[2];

	memcpy(half, id->b, sizeof half);
	words_add(w, half[0]);
	words_add(w, half[1]);
}

static void add_text(struct words *w, const char *text)
{
	size_t len = strnlen(text, MACHINE_TEXT_MAX);

	words_add(w, len);
	for (size_t at = 0; at < len; at += sizeof(uint64_t)) {
		uint64_t word = 0;

		memcpy(&word, text + at, len - at < sizeof word ? len - at : sizeof word);
		words_add(w, word);
	}
}

static void add_slot(struct words *w, const struct slot *s)
{
	words_add(w, s->number);
	words_add(w, s->base);
	words_add(w, s->pages);
}

static void add_machine(struct words *w, const struct machine *x)
{
	words_add(w, REC_MACHINE);
	words_add(w, MACHINE_MAGIC);
	words_add(w, MACHINE_VERSION);
	add_text(w, x->model->arch);
	words_add(w, x->pool.base);
	words_add(w, x->pool.frames);
}

static void add_stuck(struct words *w, const struct machine *x)
{
	struct backend_run run;

	for (uint64_t at = x->pool.base; machine_frames_stuck_at(&x->frames, at, &run); at = run.pfn + run.count) {
		words_add(w, REC_STUCK);
		words_add(w, run.pfn);
		words_add(w, run.count);
		add_text(w, run.why);
	}
}

static void add_create(struct words *w, const struct machine_vm *vm)
{
	words_add(w, REC_CREATE);
	add_id(w, &vm->id);
	words_add(w, vm->shared_bit);
	words_add(w, vm->slot_count);
	for (size_t i = 0; i < vm->slot_count; i++)
		add_slot(w, &vm->slots[i]);
}

static void add_event(struct words *w, const struct pw_uuid *id, enum vm_event e)
{
	words_add(w, REC_EVENT);
	add_id(w, id);
	words_add(w, e);
}

static void add_change(struct words *w, const struct pw_uuid *id, enum gfn_op op, uint64_t gfn, uint64_t count)
{
	words_add(w, REC_CHANGE);
	add_id(w, id);
	words_add(w, op);
	words_add(w, gfn);
	words_add(w, count);
}

static void add_page_in(struct words *w, const struct pw_uuid *id, uint64_t gfn, uint64_t count)
{
	words_add(w, REC_PAGE_IN);
	add_id(w, id);
	words_add(w, gfn);
	words_add(w, count);
}

static void add_ripas(struct words *w, const struct pw_uuid *id, const struct backend_ripas *what)
{
	words_add(w, REC_RIPAS);
	add_id(w, id);
	words_add(w, what->gfn);
	words_add(w, what->count);
	words_add(w, what->ram);
	words_add(w, what->keep);
	words_add(w, what->accept);
}

static void add_refusals(struct words *w, const struct words *refused)
{
	words_add(w, refused->count);
	for (size_t i = 0; i < refused->count; i++)
		words_add(w, refused->at[i]);
}

void machine_log_create(struct machine *x, const struct machine_vm *vm)
{
	if (x->file && !x->replaying)
		add_create(&x->group, vm);
}

void machine_log_destroy(struct machine *x, const struct pw_uuid *id)
{
	if (!x->file || x->replaying)
		return;
	words_add(&x->group, REC_DESTROY);
	add_id(&x->group, id);
}

void machine_log_event(struct machine *x, const struct pw_uuid *id, enum vm_event e)
{
	if (x->file && !x->replaying)
		add_event(&x->group, id, e);
}

void machine_log_map(struct machine *x, const struct pw_uuid *id, const struct slot *s)
{
	if (!x->file || x->replaying)
		return;
	words_add(&x->group, REC_MAP);
	add_id(&x->group, id);
	add_slot(&x->group, s);
}

void machine_log_unmap(struct machine *x, const struct pw_uuid *id, uint32_t number)
{
	if (!x->file || x->replaying)
		return;
	words_add(&x->group, REC_UNMAP);
	add_id(&x->group, id);
	words_add(&x->group, number);
}

/* Frames are written as runs: PFN and count, until all pages have one. */
void machine_log_change(struct machine *x, const struct pw_uuid *id, enum gfn_op op, uint64_t gfn, uint64_t count,
			const uint64_t *pfns)
{
	uint64_t n;

	if (!x->file || x->replaying)
		return;
	if (op != GFN_PAGE_IN) {
		add_change(&x->group, id, op, gfn, count);
		return;
	}
	add_page_in(&x->group, id, gfn, count);
	for (uint64_t at = 0; at < count; at += n) {
		for (n = 1; at + n < count && pfns[at + n] == pfns[at] + n; n++)
			;
		words_add(&x->group, pfns[at]);
		words_add(&x->group, n);
	}
}

void machine_log_ripas(struct machine *x, const struct pw_uuid *id, const struct backend_ripas *what)
{
	if (x->file && !x->replaying)
		add_ripas(&x->group, id, what);
}

/* `accept` is the record's last word: how far the change went, whatever ended it, is how far it goes again. */
void machine_log_ripas_done(struct machine *x, uint64_t done)
{
	if (x->group.count && !x->group.failed)
		x->group.at[x->group.count - 1] = done;
}

/* Reading. */

static enum pw_status read_group(void *ctx, const uint64_t *at, size_t count, struct pw_err *err)
{
	struct machine *x = ctx;
	struct pw_err why = { 0 };
	enum pw_status st = machine_replay(x, at, count, &why);

	if (st == PW_OK)
		return PW_OK;
	if (st != PW_NO_MEMORY && !(st == PW_CONFLICT && !x->firmware))
		st = PW_STORAGE;
	return pw_fail(err, st, "the file is not the state of this machine: %s", why.msg);
}

/* Rewriting: the fewest ops that lead to what run_at says. Resident and shared pages are made so during launch, so that
 * VM_INIT_DONE leaves the others paged out. */

static void add_page_run(struct words *w, const struct pw_uuid *id, const struct backend_run *run, bool launched)
{
	switch (run->state) {
	case GFN_SECURE_RESIDENT:
		add_page_in(w, id, run->gfn, run->count);
		words_add(w, run->pfn);
		words_add(w, run->count);
		break;
	case GFN_SHARED: add_change(w, id, GFN_SHARE, run->gfn, run->count); break;
	case GFN_SECURE_OUT:
		if (launched)
			return;
		add_change(w, id, GFN_UNSHARE, run->gfn, run->count);
		break;
	case GFN_NORMAL:
	case GFN_STATE_COUNT: return;
	}
	words_add(w, 0);
}

/* Maximal, inside a slot. */
static bool whole_run_at(const struct machine *x, const struct machine_vm *vm, uint64_t from, struct backend_run *out)
{
	struct backend_run more;
	const struct slot *s;

	if (!machine_run_at(x, vm, from, TREE_PAGES, out))
		return false;
	s = &vm->slots[machine_slot_after(vm, out->gfn)];
	while (machine_run_at(x, vm, out->gfn + out->count, s->base + s->pages, &more)) {
		if (more.state != out->state || more.arch != out->arch)
			break;
		if (out->state == GFN_SECURE_RESIDENT && more.pfn != out->pfn + out->count)
			break;
		out->count += more.count;
	}
	return true;
}

/* Pages that are no memory. Before a launch: how it begins; of a secure VM: what its guest gave up. */
static void add_empty(struct words *w, const struct machine *x, const struct machine_vm *vm)
{
	for (size_t i = 0; x->model->is_empty && i < vm->slot_count; i++) {
		uint64_t end = vm->slots[i].base + vm->slots[i].pages, n;

		for (uint64_t at = vm->slots[i].base; at < end; at += n) {
			struct backend_ripas what = { .gfn = at };

			if (!x->model->is_empty(x->firmware, vm, at, end, &n))
				continue;
			what.count = what.accept = n;
			add_ripas(w, &vm->id, &what);
			words_add(w, 0);
		}
	}
}

static void add_vm(struct words *w, const struct machine *x, const struct machine_vm *vm)
{
	struct backend_run run;

	add_create(w, vm);
	words_add(w, 0);
	if (vm->state != VM_SECURE)
		add_empty(w, x, vm);
	if (vm->state == VM_NORMAL)
		return;
	add_event(w, &vm->id, VM_INIT_START);
	words_add(w, 0);
	for (uint64_t at = 0; whole_run_at(x, vm, at, &run); at = run.gfn + run.count)
		add_page_run(w, &vm->id, &run, vm->state == VM_SECURE);
	if (vm->state != VM_SECURE)
		return;
	add_event(w, &vm->id, VM_INIT_DONE);
	words_add(w, 0);
	add_empty(w, x, vm);
}

static void add_all(struct words *w, const struct machine *x)
{
	add_machine(w, x);
	for (const struct machine_vm *vm = x->vms; vm; vm = vm->next)
		add_vm(w, x, vm);
	add_stuck(w, x);
}

static bool same_vm(const struct machine *x, const struct machine_vm *a, const struct machine *y,
		    const struct machine_vm *b)
{
	struct backend_run r, s;
	uint64_t at = 0;

	for (; whole_run_at(x, a, at, &r); at = r.gfn + r.count) {
		if (!whole_run_at(y, b, at, &s) || r.gfn != s.gfn || r.count != s.count || r.state != s.state ||
		    r.arch != s.arch)
			return false;
		if (r.state == GFN_SECURE_RESIDENT && r.pfn != s.pfn)
			return false;
	}
	return a->state == b->state && !whole_run_at(y, b, at, &s);
}

/* Do these records make the same machine? They are tried on another one before the log is given up for them. */
static bool leads_here(const struct machine *x, const struct words *all)
{
	const struct machine_vm *a = x->vms, *b;
	struct machine *y = all->failed ? NULL : machine_new(x->model);
	struct pw_err why;
	bool same;

	if (!y)
		return false;
	same = machine_replay(y, all->at, all->count, &why) == PW_OK;
	for (b = y->vms; same && a && b; a = a->next, b = b->next)
		same = same_vm(x, a, y, b);
	same = same && !a && !b && x->frames.count[FRAME_STUCK] == y->frames.count[FRAME_STUCK];
	machine_free(y);
	return same;
}

bool machine_log_shorten(struct machine *x)
{
	struct words all = { 0 };
	struct pw_err why;
	bool done;

	add_all(&all, x);
	done = leads_here(x, &all) && machine_file_rewrite(x->file, &all, &why) == PW_OK;
	if (!done)
		machine_file_put_off(x->file);
	words_release(&all);
	return done;
}

/* Around each op. */

enum pw_status machine_log_begin(struct machine *x, struct pw_err *err)
{
	if (x->broken)
		return pw_fail(err, PW_STORAGE, "the emulated machine could not write its state, and is off");
	words_clear(&x->group);
	if (!x->replaying)
		words_clear(&x->refused);
	x->asked = 0;
	x->stuck_before = x->frames.count[FRAME_STUCK];
	return PW_OK;
}

enum pw_status machine_log_end(struct machine *x, enum pw_status st, struct pw_err *err)
{
	enum pw_status put;

	if (x->replaying || !x->file)
		return st;
	if (st == PW_OK) {
		add_refusals(&x->group, &x->refused);
		x->group.failed |= x->refused.failed;
	} else {
		if (x->frames.count[FRAME_STUCK] == x->stuck_before)
			return st;
		words_clear(&x->group);
		add_stuck(&x->group, x); /* of a failed op, frames that got stuck are all that stays */
	}
	put = machine_file_append(x->file, &x->group, st == PW_OK ? err : NULL);
	x->broken = put != PW_OK;
	if (put != PW_OK)
		return st == PW_OK ? put : st;
	if (machine_file_is_long(x->file))
		machine_log_shorten(x); /* or else the long file is as good, and there will be a next time */
	return st;
}

/* Does the machine in the file fit the options? */
static enum pw_status fits(const struct machine *x, const struct backend_options *o, struct pw_err *err)
{
	struct pw_err why = { 0 };

	if ((o->frames && o->frames != x->pool.frames) || o->base_pfn != x->pool.base)
		return pw_fail(err, PW_CONFLICT, "%s is of a machine with frames %" PRIu64 "+%" PRIu64, o->state,
			       x->pool.base, x->pool.frames);
	if (!machine_check(x, &why))
		return pw_fail(err, PW_STORAGE, "%s holds a state that the hardware cannot be in: %s", o->state,
			       why.msg);
	return PW_OK;
}

enum pw_status machine_log_read(struct machine *x, const char *path, struct pw_err *err)
{
	return machine_file_read(path, read_group, x, err);
}

enum pw_status machine_log_open(struct machine *x, const struct backend_options *o, struct pw_err *err)
{
	enum pw_status st = PW_OK;

	if (o->state)
		st = machine_file_open(o->state, read_group, x, &x->file, err);
	if (st != PW_OK)
		return st;
	if (x->firmware)
		return fits(x, o, err);
	st = machine_switch_on(x, o->base_pfn, o->frames ? o->frames : x->model->default_frames, err);
	if (st != PW_OK || !x->file)
		return st;
	add_machine(&x->group, x);
	return machine_file_append(x->file, &x->group, err);
}
