#include "agents/pef_machine.h"

#include <stdlib.h>
#include <string.h>

struct pef_guest *pef_machine_find(struct pef_machine *x, const struct pw_uuid *id)
{
	for (struct pef_vm *vm = x->model.vms; vm; vm = vm->next) {
		struct pef_guest *g = vm->note;

		if (pw_uuid_equal(&g->id, id))
			return g;
	}
	return NULL;
}

enum pw_status pef_machine_guest_new(struct pef_machine *x, const struct pw_uuid *id, struct pef_guest **out)
{
	struct pef_guest *g = calloc(1, sizeof *g);

	if (!g || pef_vm_new(&x->model, true, true, &g->vm) != PW_OK) {
		free(g);
		return PW_NO_MEMORY;
	}
	g->id = *id;
	g->vm->note = g;
	tree_init(&g->tags, &x->tag_nodes);
	*out = g;
	return PW_OK;
}

void pef_machine_guest_free(struct pef_machine *x, struct pef_guest *g)
{
	pef_vm_free(&x->model, g->vm);
	tree_release(&g->tags);
	arena_trim(&x->tag_nodes);
	free(g);
}

/*
 * Pictures of the machine's state, as records of words. They are what the state file holds, and what takes a half-done
 * op back. A page picture sets all pages of its run; a VM picture makes the VM anew.
 */
enum record { REC_MACHINE = 1, REC_VM, REC_FORGET, REC_RUN, REC_TAG };
#define MACHINE_MAGIC 0x31666570776770u /* "pgwpef1" */

static void add_id(struct words *w, const struct pw_uuid *id)
{
	uint64_t half[2];

	memcpy(half, id->b, sizeof half);
	words_add(w, half[0]);
	words_add(w, half[1]);
}

static void add_run(struct words *w, const struct pef_guest *g, const struct pef_run *run)
{
	words_add(w, REC_RUN);
	add_id(w, &g->id);
	words_add(w, run->first);
	words_add(w, run->count);
	words_add(w, run->state);
	words_add(w, run->frame);
}

static void add_tag(struct words *w, const struct pef_guest *g, uint64_t first, uint64_t count, uint64_t tag)
{
	words_add(w, REC_TAG);
	add_id(w, &g->id);
	words_add(w, first);
	words_add(w, count);
	words_add(w, tag);
}

static void add_pages(struct words *w, const struct pef_guest *g, uint64_t first, uint64_t end)
{
	struct tree_run tag;
	struct pef_run run;

	for (uint64_t at = first; at < end && pef_run_at(g->vm, at, end, &run); at = run.first + run.count)
		if (run.state != PEF_NO)
			add_run(w, g, &run);
	for (uint64_t at = first; g->tagged && at < end; at += tag.count) {
		tag = tree_run_at(&g->tags, at, end);
		if (tag.entry)
			add_tag(w, g, at, tag.count, tag.entry);
	}
}

static void add_page_picture(struct words *w, const struct pef_guest *g, uint64_t first, uint64_t count)
{
	struct pef_run none = { first, count, PEF_NO, 0 };

	add_run(w, g, &none);
	if (g->tagged)
		add_tag(w, g, first, count, 0);
	add_pages(w, g, first, first + count);
}

static void add_vm_picture(struct words *w, const struct pef_guest *g)
{
	words_add(w, REC_VM);
	add_id(w, &g->id);
	words_add(w, g->vm->state);
	words_add(w, g->vm->abort_owed);
	words_add(w, g->tagged);
	words_add(w, g->vm->slot_count);
	for (size_t i = 0; i < g->vm->slot_count; i++) {
		words_add(w, g->vm->slots[i].number);
		words_add(w, g->vm->slots[i].base);
		words_add(w, g->vm->slots[i].pages);
	}
	add_pages(w, g, 0, TREE_PAGES);
}

void pef_machine_picture_forget(struct words *w, const struct pw_uuid *id)
{
	words_add(w, REC_FORGET);
	add_id(w, id);
}

static void pef_machine_picture(struct words *w, const struct pef_machine *x)
{
	words_add(w, REC_MACHINE);
	words_add(w, MACHINE_MAGIC);
	words_add(w, x->model.frames);
	words_add(w, x->base_pfn);
	for (const struct pef_vm *vm = x->model.vms; vm; vm = vm->next)
		add_vm_picture(w, vm->note);
}

/* Reading pictures. A record that makes no sense is PW_INVALID. */

struct reader {
	struct pef_machine *x;
	const uint64_t *at;
	size_t left;
	bool overrun;
};

static uint64_t take(struct reader *r)
{
	if (!r->left) {
		r->overrun = true;
		return 0;
	}
	r->left--;
	return *r->at++;
}

static struct pw_uuid take_id(struct reader *r)
{
	uint64_t half[2];
	struct pw_uuid id;

	half[0] = take(r);
	half[1] = take(r);
	memcpy(id.b, half, sizeof half);
	return id;
}

static enum pw_status take_slots(struct reader *r, struct pef_guest *g, uint64_t count)
{
	const struct pef_call usual = { 0 };

	for (uint64_t i = 0; i < count && !r->overrun; i++) {
		uint64_t number = take(r), base = take(r), pages = take(r);
		struct pef_slot s = { (uint32_t)number, base, pages };
		enum pef_code code;

		if (number > UINT32_MAX)
			return PW_INVALID;
		if (pef_slot_add(&r->x->model, g->vm, &s, &usual, &code) != PW_OK)
			return PW_NO_MEMORY;
		if (code != PEF_H_SUCCESS)
			return PW_INVALID;
	}
	return PW_OK;
}

static enum pw_status take_vm(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	uint64_t state = take(r), owed = take(r), tagged = take(r), slots = take(r);
	struct pef_guest *g = pef_machine_find(r->x, &id);
	enum pw_status st;

	if (r->overrun || state >= PEF_VM_STATE_COUNT)
		return PW_INVALID;
	if (g)
		pef_machine_guest_free(r->x, g);
	st = pef_machine_guest_new(r->x, &id, &g);
	if (st == PW_OK)
		st = take_slots(r, g, slots);
	if (st != PW_OK)
		return st;
	g->vm->state = (enum pef_vm_state)state;
	g->vm->abort_owed = owed;
	g->tagged = tagged;
	return PW_OK;
}

static enum pw_status take_forget(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	struct pef_guest *g = pef_machine_find(r->x, &id);

	if (g)
		pef_machine_guest_free(r->x, g);
	return PW_OK;
}

static enum pw_status take_run(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	uint64_t first = take(r), count = take(r), state = take(r), frame = take(r);
	struct pef_run run = { first, count, (enum pef_gfn_state)state, frame };
	struct pef_guest *g = pef_machine_find(r->x, &id);

	if (!g || state >= PEF_GFN_STATE_COUNT)
		return PW_INVALID;
	return pef_put_run(&r->x->model, g->vm, &run);
}

static enum pw_status take_tag(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	uint64_t first = take(r), count = take(r), tag = take(r);
	struct pef_guest *g = pef_machine_find(r->x, &id);

	if (!g || first >= TREE_PAGES || count > TREE_PAGES - first || tag > BACKEND_PEF_TAG_LOST)
		return PW_INVALID;
	return tree_set(&g->tags, first, count, tag);
}

static enum pw_status pef_machine_set_up(struct pef_machine *x, uint64_t frames, uint64_t base_pfn)
{
	enum pw_status st;

	if (x->set_up || frames == 0 || base_pfn > TREE_PAGES || frames > TREE_PAGES - base_pfn)
		return PW_INVALID;
	st = pef_init(&x->model, &x->mem, frames, PEF_LEFT_OUT);
	x->set_up = st == PW_OK;
	x->base_pfn = base_pfn;
	return st;
}

static enum pw_status take_machine(struct reader *r)
{
	uint64_t magic = take(r), frames = take(r), base_pfn = take(r);

	return magic == MACHINE_MAGIC ? pef_machine_set_up(r->x, frames, base_pfn) : PW_INVALID;
}

static enum pw_status take_record(struct reader *r)
{
	uint64_t kind = take(r);

	if (!r->x->set_up && kind != REC_MACHINE)
		return PW_INVALID;
	switch (kind) {
	case REC_MACHINE: return take_machine(r);
	case REC_VM: return take_vm(r);
	case REC_FORGET: return take_forget(r);
	case REC_RUN: return take_run(r);
	case REC_TAG: return take_tag(r);
	default: return PW_INVALID; /* a word from a file, not one of our enum */
	}
}

static enum pw_status pef_machine_take_picture(struct pef_machine *x, const uint64_t *at, size_t count)
{
	struct reader r = { .x = x, .at = at, .left = count };
	enum pw_status st = PW_OK;

	while (st == PW_OK && r.left)
		st = take_record(&r);
	return st == PW_OK && r.overrun ? PW_INVALID : st;
}

/*
 * Every op that changes the machine: `begin_*` takes a picture of what it may touch; `end_*`, after success, makes the
 * change durable, or else puts the picture back. (An op that the model refused changed nothing.)
 */
enum pw_status pef_machine_begin(struct pef_machine *x, struct pw_err *err)
{
	if (x->lost)
		return pw_fail(err, PW_BACKEND, "the emulated machine lost its state file");
	words_clear(&x->undo);
	words_clear(&x->redo);
	return PW_OK;
}

static bool remember_run(struct old_runs *old, const struct pef_run *run)
{
	if (old->count == old->room) {
		size_t room = old->room ? 2 * old->room : 16;
		struct pef_run *grown = reallocarray(old->at, room, sizeof *grown);

		if (!grown)
			return false;
		old->at = grown;
		old->room = room;
	}
	old->at[old->count++] = *run;
	return true;
}

/* What the pages were, for their tags; and room for what becomes of these. */
static bool remember(struct pef_machine *x, const struct pef_guest *g, uint64_t first, uint64_t end)
{
	struct pef_run run;

	x->before.count = 0;
	if (!g->tagged)
		return true;
	for (uint64_t at = first; at < end && pef_run_at(g->vm, at, end, &run); at = run.first + run.count)
		if (!remember_run(&x->before, &run))
			return false;
	return arena_reserve_sets(&x->tag_nodes, x->before.count) == PW_OK;
}

enum pw_status pef_machine_begin_vm(struct pef_machine *x, const struct pef_guest *g, struct pw_err *err)
{
	enum pw_status st = pef_machine_begin(x, err);

	if (st != PW_OK)
		return st;
	add_vm_picture(&x->undo, g);
	if (!remember(x, g, 0, TREE_PAGES) || x->undo.failed)
		return pw_fail(err, PW_NO_MEMORY, "no memory");
	return PW_OK;
}

enum pw_status pef_machine_begin_pages(struct pef_machine *x, const struct pef_guest *g, uint64_t gfn, uint64_t count,
				       struct pw_err *err)
{
	enum pw_status st = pef_machine_begin(x, err);

	if (st != PW_OK)
		return st;
	if (x->file)
		add_page_picture(&x->undo, g, gfn, count);
	if (!remember(x, g, gfn, gfn + count) || x->undo.failed)
		return pw_fail(err, PW_NO_MEMORY, "no memory");
	return PW_OK;
}

/* Does to tags what `op` did to the pages that were remembered. */
void pef_machine_retag(struct pef_machine *x, struct pef_guest *g, enum pef_gfn_op op)
{
	for (size_t i = 0; i < x->before.count; i++) {
		const struct pef_run *run = &x->before.at[i];
		enum pef_contents c = pef_gfn_cell(run->state, op)->contents;

		if (c == PEF_KEPT)
			continue;
		if (tree_set(&g->tags, run->first, run->count, c == PEF_LOST ? BACKEND_PEF_TAG_LOST : 0) != PW_OK)
			x->lost = true; /* cannot be: `remember` reserved for it */
	}
}

void pef_machine_put_back(struct pef_machine *x)
{
	if (pef_machine_take_picture(x, x->undo.at, x->undo.count) != PW_OK)
		x->lost = true;
}

/* If it fails, the long file is as good, and there will be a next time. */
static void shorten(struct pef_machine *x)
{
	struct words all = { 0 };
	struct pw_err why;

	pef_machine_picture(&all, x);
	if (machine_file_rewrite(x->file, &all, &why) != PW_OK)
		machine_file_put_off(x->file);
	words_release(&all);
}

enum pw_status pef_machine_commit(struct pef_machine *x, struct pw_err *err)
{
	enum pw_status st;

	st = machine_file_append(x->file, &x->redo, err);
	if (st == PW_OK && machine_file_is_long(x->file))
		shorten(x);
	return st;
}

enum pw_status pef_machine_end_vm(struct pef_machine *x, const struct pef_guest *g, enum pw_status st,
				  struct pw_err *err)
{
	if (st == PW_OK && x->file) {
		add_vm_picture(&x->redo, g);
		st = pef_machine_commit(x, err);
		if (st != PW_OK)
			pef_machine_put_back(x);
	}
	return st;
}

enum pw_status pef_machine_end_pages(struct pef_machine *x, const struct pef_guest *g, uint64_t gfn, uint64_t count,
				     enum pw_status st, struct pw_err *err)
{
	if (st == PW_OK && x->file) {
		add_page_picture(&x->redo, g, gfn, count);
		st = pef_machine_commit(x, err);
		if (st != PW_OK)
			pef_machine_put_back(x);
	}
	return st;
}

static enum pw_status read_group(void *ctx, const uint64_t *at, size_t count, struct pw_err *err)
{
	enum pw_status st = pef_machine_take_picture(ctx, at, count);

	if (st == PW_NO_MEMORY)
		return pw_fail(err, st, "no memory for the machine's state");
	return st == PW_OK ? PW_OK : pw_fail(err, PW_STORAGE, "the file is not the state of an emulated PEF machine");
}

/* Does the machine in the file fit the options? */
static enum pw_status fits(const struct pef_machine *x, const struct backend_options *o, struct pw_err *err)
{
	if (!pef_check(&x->model))
		return pw_fail(err, PW_STORAGE, "%s holds a state that the hardware cannot be in", o->state);
	if ((o->frames && o->frames != x->model.frames) || o->base_pfn != x->base_pfn)
		return pw_fail(err, PW_CONFLICT, "%s is of a machine with frames %" PRIu64 "+%" PRIu64, o->state,
			       x->base_pfn, x->model.frames);
	return PW_OK;
}

enum pw_status pef_machine_switch_on(struct pef_machine *x, const struct backend_options *o, struct pw_err *err)
{
	uint64_t frames = o->frames ? o->frames : BACKEND_PEF_FRAMES;
	enum pw_status st = PW_OK;

	if (o->state)
		st = machine_file_open(o->state, read_group, x, &x->file, err);
	if (st != PW_OK)
		return st;
	if (x->set_up) {
		st = fits(x, o, err);
	} else {
		st = pef_machine_set_up(x, frames, o->base_pfn);
		if (st != PW_OK)
			pw_fail(err, st, "no pool of frames %" PRIu64 "+%" PRIu64, o->base_pfn, frames);
	}
	if (st != PW_OK || !x->file)
		return st;
	pef_machine_picture(&x->redo, x);
	return machine_file_rewrite(x->file, &x->redo, err);
}
