#include "agents/machine_cca.h"

#define PARACHUTE ((size_t)1 << 20) /* more than one command and its records need */
#define BLOCK     ((uint64_t)512)
#define WIDEST    48

static const uint8_t zeroes[CCA_GRANULE];

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* Answers. */

enum pw_status machine_cca_answer(const struct cca_machine *k, enum pw_status st, enum cca_host_code code,
				  const char *what, struct pw_err *err)
{
	if (st != PW_OK)
		return pw_fail(err, st, "%s: %s", what, st == PW_NO_MEMORY ? "out of memory" : pw_status_name(st));
	if (code == CCA_HOST_OK)
		return PW_OK;
	if (code == CCA_HOST_ENOMEM)
		return pw_fail(err, PW_BUSY, "%s: the host has no granule left for a table (ENOMEM)", what);
	if (code == CCA_HOST_EIO || code == CCA_HOST_EEXIST) {
		cca_host_explain(&k->h, err);
		if (err->msg[0]) {
			err->status = PW_BACKEND;
			return PW_BACKEND;
		}
	}
	return pw_fail(err, PW_BACKEND, "%s: %s", what, cca_host_code_name(code));
}

/* What undoing needs is put by before anything is done. */
enum pw_status machine_cca_pack(struct cca_machine *k, struct pw_err *err)
{
	if (!k->parachute)
		k->parachute = pw_mem_alloc(k->mem, PARACHUTE);
	return k->parachute ? PW_OK : pw_fail(err, PW_NO_MEMORY, "no memory to undo a failed change with");
}

void machine_cca_unpack(struct cca_machine *k)
{
	pw_mem_free(k->mem, k->parachute, PARACHUTE);
	k->parachute = NULL;
}

unsigned machine_cca_width(const struct machine_vm *vm)
{
	return vm->shared_bit ? vm->shared_bit + 1 : WIDEST;
}

uint64_t machine_cca_half(const struct machine_vm *vm)
{
	return (uint64_t)1 << (machine_cca_width(vm) - 1 - CCA_SHIFT);
}

/* What hardware has. */

static const struct cca_realm *realm_of(const struct cca_machine *k, const struct cca_guest *g)
{
	return cca_realm_at(&k->m, g->r->rd);
}

static bool is_assigned(enum cca_entry e)
{
	return e == CCA_ASSIGNED_EMPTY || e == CCA_ASSIGNED_RAM || e == CCA_ASSIGNED_DESTROYED;
}

struct cca_now machine_cca_now_at(const struct cca_machine *k, const struct cca_guest *g, uint64_t gfn, uint64_t end)
{
	const struct cca_realm *realm = realm_of(k, g);
	uint64_t half = machine_cca_half(g->vm);
	struct cca_pages own = cca_pages_at(realm, gfn, end), ns = cca_pages_at(realm, half + gfn, half + end);

	return (struct cca_now){ .gfn = gfn,
				 .count = own.count < ns.count ? own.count : ns.count,
				 .entry = own.entry,
				 .resident = is_assigned(own.entry),
				 .shared = ns.entry == CCA_ASSIGNED_NS,
				 .pfn = own.addr >> CCA_SHIFT };
}

struct backend_run machine_cca_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end)
{
	const struct cca_machine *k = model;
	const struct cca_guest *g = vm->guest;
	struct backend_run run = { .gfn = gfn, .count = end - gfn };
	struct tree_run booked;
	struct cca_now now;
	unsigned arch;

	if (!g->r)
		return run;
	now = machine_cca_now_at(k, g, gfn, end);
	booked = tree_run_at(&g->booked, gfn, gfn + now.count);
	run.count = now.count;
	run.state = cca_project(realm_of(k, g)->state, now.entry, now.shared ? CCA_ASSIGNED_NS : CCA_UNASSIGNED_NS);
	run.pfn = now.resident ? now.pfn : 0;
	if (run.state == GFN_NORMAL) {
		run.count = booked.count;
		run.state = booked.entry ? GFN_SECURE_OUT : GFN_NORMAL;
	}
	arch = cca_law_state(run.state, now.entry);
	run.arch = arch == cca_law_state(run.state, CCA_UNASSIGNED_RAM) ? 0 : arch + 1;
	return run;
}

/* Pages become what they shall be. */

struct piece {
	uint64_t gfn, count;
	enum { OTHER, SHARED, RESIDENT } is;
	uint64_t pfn; /* RESIDENT; of a piece that was: also where it is not any more */
};

/* One piece whose pages are alike now. What fails leaves it between the two. */

static enum pw_status leave(struct cca_machine *k, struct cca_guest *g, const struct cca_now *now,
			    const struct piece *to, struct pw_err *err)
{
	uint64_t base = now->gfn << CCA_SHIFT;
	enum cca_host_code code;
	enum pw_status st;

	if (now->shared && to->is != SHARED) {
		st = cca_host_unmap_ns(g->r, base, base + (now->count << CCA_SHIFT), &code);
		return machine_cca_answer(k, st, code, "RTT_UNMAP_UNPROTECTED", err);
	}
	if (now->resident && to->is != RESIDENT) {
		st = cca_host_unmap_lent(g->r, base, now->count, &code);
		return machine_cca_answer(k, st, code, "DATA_DESTROY", err);
	}
	return PW_OK;
}

/* While NEW, contents are measured: one page of zeroes after the other. Whole aligned blocks are memory that no image
 * fills, so that a large guest does not wait for a hash of each page; that needs RIPAS RAM to lead to the same entry.
 */
static enum pw_status assign(struct cca_machine *k, struct cca_guest *g, const struct cca_now *now, uint64_t pfn,
			     enum cca_host_code *code)
{
	bool measured = g->r->state == CCA_NEW,
	     blocks = now->entry == CCA_UNASSIGNED_RAM && !((now->gfn ^ pfn) % BLOCK);
	uint64_t end = now->gfn + now->count, next;
	enum pw_status st = PW_OK;

	*code = CCA_HOST_OK;
	for (uint64_t at = now->gfn; at < end && st == PW_OK && *code == CCA_HOST_OK; at = next) {
		uint64_t data = (pfn + at - now->gfn) << CCA_SHIFT, whole = (end - at) / BLOCK * BLOCK;
		const void *source = measured ? zeroes : NULL;

		next = end;
		if (measured && blocks && at % BLOCK == 0 && whole) {
			source = NULL;
			next = at + whole;
		} else if (measured && blocks && at % BLOCK) {
			next = min_u64(end, at + BLOCK - at % BLOCK);
		}
		st = (k->undoing ? cca_host_restore_lent : cca_host_map_lent)(g->r, at << CCA_SHIFT, next - at, data,
									      source, code);
	}
	return st;
}

static enum pw_status enter(struct cca_machine *k, struct cca_guest *g, const struct cca_now *now,
			    const struct piece *to, struct pw_err *err)
{
	uint64_t base = now->gfn << CCA_SHIFT, end = base + (now->count << CCA_SHIFT);
	enum cca_host_code code;
	enum pw_status st;

	if (!now->resident && to->is == RESIDENT) {
		st = assign(k, g, now, to->pfn + now->gfn - to->gfn, &code);
		return machine_cca_answer(k, st, code, "DATA_CREATE", err);
	}
	if (!now->shared && to->is == SHARED) {
		st = cca_host_map_ns(g->r, base, end, (k->shared + now->gfn) << CCA_SHIFT, &code);
		return machine_cca_answer(k, st, code, "RTT_MAP_UNPROTECTED", err);
	}
	return PW_OK;
}

/* Is the page DESTROYED now, of a guest that never gave it up? */
static bool is_lost(const struct cca_now *now)
{
	return now->entry != CCA_UNASSIGNED_RAM && now->entry != CCA_UNASSIGNED_EMPTY &&
	       now->entry != CCA_ASSIGNED_EMPTY;
}

static enum pw_status turn(struct cca_machine *k, struct cca_guest *g, const struct cca_now *now,
			   const struct piece *to, struct pw_err *err)
{
	bool stays = now->resident == (to->is == RESIDENT) && now->shared == (to->is == SHARED);
	enum pw_status st;

	if (stays)
		return PW_OK;
	st = leave(k, g, now, to, err);
	if (st == PW_OK && g->r->state != CCA_NEW && is_lost(now))
		st = machine_cca_ask_ram(k, g, now->gfn, now->count, err);
	return st == PW_OK ? enter(k, g, now, to, err) : st;
}

static enum pw_status become(struct cca_machine *k, struct cca_guest *g, const struct piece *to, struct pw_err *err)
{
	uint64_t end = to->gfn + to->count;
	enum pw_status st = PW_OK;
	struct cca_now now;

	for (uint64_t at = to->gfn; at < end && st == PW_OK; at += now.count) {
		now = machine_cca_now_at(k, g, at, end);
		st = turn(k, g, &now, to, err);
	}
	return st;
}

struct pieces {
	struct piece *at; /* owned */
	size_t count, room;
};

static void pieces_release(struct cca_machine *k, struct pieces *p)
{
	pw_mem_free(k->mem, p->at, p->room * sizeof *p->at);
}

static enum pw_status pieces_room(struct cca_machine *k, struct pieces *p, size_t room, struct pw_err *err)
{
	*p = (struct pieces){ .at = pw_mem_alloc(k->mem, room * sizeof *p->at), .room = room };
	return p->at ? PW_OK : pw_fail(err, PW_NO_MEMORY, "no memory for a change of %zu runs", room);
}

/* What the pages are. */
static enum pw_status pieces_now(struct cca_machine *k, struct cca_guest *g, uint64_t gfn, uint64_t end,
				 struct pieces *out, struct pw_err *err)
{
	struct cca_now now;
	size_t n = 0;

	for (uint64_t at = gfn; at < end; at += now.count, n++)
		now = machine_cca_now_at(k, g, at, end);
	if (pieces_room(k, out, n, err) != PW_OK)
		return PW_NO_MEMORY;
	for (uint64_t at = gfn; at < end; at += now.count) {
		now = machine_cca_now_at(k, g, at, end);
		out->at[out->count++] = (struct piece){
			.gfn = at,
			.count = now.count,
			.is = now.resident ? RESIDENT
			      : now.shared ? SHARED
					   : OTHER,
			.pfn = now.pfn,
		};
	}
	return PW_OK;
}

/* What they shall be: consecutive frames together. */
static enum pw_status pieces_wanted(struct cca_machine *k, uint64_t gfn, uint64_t count, const uint64_t *pfns,
				    struct pieces *out, struct pw_err *err)
{
	size_t n = 1;

	for (uint64_t i = 1; i < count; i++)
		n += pfns[i] != pfns[i - 1] + 1;
	if (pieces_room(k, out, n, err) != PW_OK)
		return PW_NO_MEMORY;
	for (uint64_t i = 0; i < count; i++) {
		struct piece *last = out->at + out->count - 1;

		if (i && pfns[i] == pfns[i - 1] + 1)
			last->count++;
		else
			out->at[out->count++] =
				(struct piece){ .gfn = gfn + i, .count = 1, .is = RESIDENT, .pfn = pfns[i] };
	}
	return PW_OK;
}

/* Frames of pieces that hold no page any more leave the realm. */
static enum pw_status frames_back(struct cca_machine *k, const struct pieces *p, struct pw_err *err)
{
	enum cca_host_code code = CCA_HOST_OK;
	enum pw_status st = PW_OK;

	for (size_t i = 0; i < p->count && st == PW_OK && code == CCA_HOST_OK; i++)
		if (p->at[i].is == RESIDENT)
			st = cca_host_give_lent(&k->h, p->at[i].pfn << CCA_SHIFT, p->at[i].count, &code);
	return machine_cca_answer(k, st, code, "GRANULE_UNDELEGATE", err);
}

/* L6: as they were, on the frames where they were; those that are not needed for it go. */
static void undo(struct cca_machine *k, struct cca_guest *g, const struct pieces *was, const struct pieces *wanted)
{
	struct pw_err err;

	machine_cca_unpack(k);
	k->undoing = true;
	for (size_t i = was->count; i > 0; i--)
		(void)!become(k, g, &was->at[i - 1], &err);
	for (size_t i = 0; i < wanted->count; i++)
		if (wanted->at[i].is == RESIDENT)
			(void)!cca_host_put_lent(&k->h, wanted->at[i].pfn << CCA_SHIFT, wanted->at[i].count);
	k->undoing = false;
}

/* All of [gfn, end) becomes as wanted: pieces of frames, or one of another kind. */
static enum pw_status change(struct cca_machine *k, struct cca_guest *g, uint64_t gfn, uint64_t end,
			     const struct pieces *wanted, struct pw_err *err)
{
	enum pw_status st = machine_cca_pack(k, err);
	struct pieces was;

	if (st == PW_OK)
		st = pieces_now(k, g, gfn, end, &was, err);
	if (st != PW_OK)
		return st;
	for (size_t i = 0; i < wanted->count && st == PW_OK; i++)
		st = become(k, g, &wanted->at[i], err);
	if (st == PW_OK)
		st = frames_back(k, &was, err);
	if (st != PW_OK)
		undo(k, g, &was, wanted);
	machine_cca_fold(k, g, gfn, end);
	pieces_release(k, &was);
	return st;
}

static enum pw_status change_to(struct cca_machine *k, struct cca_guest *g, struct piece to, struct pw_err *err)
{
	struct pieces wanted = { .at = &to, .count = 1 };

	return change(k, g, to.gfn, to.gfn + to.count, &wanted, err);
}

/* In the host's books: these are not normal any more, whatever the RMM could tell. Room for both books. */
static enum pw_status machine_cca_book_room(struct cca_machine *k, struct pw_err *err)
{
	return arena_reserve_sets(&k->arena, 2) == PW_OK ? PW_OK
							 : pw_fail(err, PW_NO_MEMORY, "no memory for the host's books");
}

static void book(struct cca_guest *g, uint64_t gfn, uint64_t count, uint64_t word)
{
	if (g->r && g->r->state == CCA_NEW)
		(void)!tree_set(&g->booked, gfn, count, word); /* room was made */
}

void machine_cca_book_close(struct cca_machine *k, struct cca_guest *g)
{
	tree_release(&g->booked);
	tree_init(&g->booked, &k->arena);
	arena_trim(&k->arena);
}

enum pw_status machine_cca_page_in(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				   const uint64_t *pfns, struct pw_err *err)
{
	struct cca_machine *k = model;
	struct pieces wanted;
	enum pw_status st = pieces_wanted(k, gfn, count, pfns, &wanted, err);

	if (st != PW_OK)
		return st;
	st = change(k, vm->guest, gfn, gfn + count, &wanted, err);
	pieces_release(k, &wanted);
	return st;
}

enum pw_status machine_cca_page_out(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				    struct pw_err *err)
{
	struct cca_machine *k = model;
	enum pw_status st = machine_cca_book_room(k, err);

	if (st == PW_OK)
		st = change_to(k, vm->guest, (struct piece){ .gfn = gfn, .count = count, .is = OTHER }, err);
	if (st == PW_OK)
		book(vm->guest, gfn, count, 1);
	return st;
}

enum pw_status machine_cca_share(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	return change_to(model, vm->guest, (struct piece){ .gfn = gfn, .count = count, .is = SHARED }, err);
}

/* Resident pages stay where they are. */
enum pw_status machine_cca_unshare(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	struct cca_machine *k = model;
	struct pieces wanted;
	enum pw_status st = machine_cca_book_room(k, err);

	if (st == PW_OK)
		st = pieces_now(k, vm->guest, gfn, gfn + count, &wanted, err);
	if (st != PW_OK)
		return st;
	for (size_t i = 0; i < wanted.count; i++)
		if (wanted.at[i].is == SHARED)
			wanted.at[i].is = OTHER;
	st = change(k, vm->guest, gfn, gfn + count, &wanted, err);
	if (st == PW_OK)
		book(vm->guest, gfn, count, 1);
	pieces_release(k, &wanted);
	return st;
}

enum pw_status machine_cca_slot_remove(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err)
{
	struct cca_machine *k = model;
	struct cca_guest *g = vm->guest;
	enum pw_status st = machine_cca_book_room(k, err);

	if (st == PW_OK && g->r)
		st = change_to(k, g, (struct piece){ .gfn = s->base, .count = s->pages, .is = OTHER }, err);
	if (st != PW_OK)
		return st;
	book(g, s->base, s->pages, 0);
	(void)!tree_set(&g->empty, s->base, s->pages, 0); /* room was made */
	return PW_OK;
}
