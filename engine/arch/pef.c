#include "engine/arch/pef.h"

#include <assert.h>
#include <string.h>

/* Words. */

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static enum pef_gfn_state word_state(uint64_t word)
{
	if (word & PEF_WORD_RESIDENT)
		return PEF_SI;
	if (word & PEF_WORD_OUT)
		return PEF_SO;
	return word & PEF_WORD_SHARED ? PEF_SH : PEF_NO;
}

static uint64_t state_word(enum pef_gfn_state s, uint64_t frame)
{
	switch (s) {
	case PEF_SI: return PEF_WORD_RESIDENT | frame;
	case PEF_SO: return PEF_WORD_OUT;
	case PEF_SH: return PEF_WORD_SHARED;
	case PEF_NO:
	case PEF_GFN_STATE_COUNT: break;
	}
	return 0;
}

enum pef_gfn_state pef_state(const struct pef_vm *vm, uint64_t gfn)
{
	return gfn < TREE_PAGES ? word_state(tree_get(&vm->words, gfn)) : PEF_NO;
}

/* The pool. */

static uint64_t bitmap_words(uint64_t frames)
{
	return frames / 64 + 1;
}

static bool bit(const uint64_t *map, uint64_t n)
{
	return map[n / 64] >> (n % 64) & 1;
}

static void bits_set(uint64_t *map, uint64_t first, uint64_t count)
{
	for (uint64_t n = first; n < first + count; n++)
		map[n / 64] |= (uint64_t)1 << (n % 64);
}

static void bits_clear(uint64_t *map, uint64_t first, uint64_t count)
{
	for (uint64_t n = first; n < first + count; n++)
		map[n / 64] &= ~((uint64_t)1 << (n % 64));
}

static bool frame_is_free(const struct pef *m, uint64_t frame)
{
	return !bit(m->in_use, frame);
}

static uint64_t free_frames(const struct pef *m)
{
	return m->frames - m->used;
}

/* The lowest run of free frames, of at most `most`; there must be one. */
static uint64_t lowest_free(struct pef *m, uint64_t most, uint64_t *count)
{
	uint64_t first, n = 0;

	while (!(~m->in_use[m->low / 64] >> (m->low % 64)))
		m->low = (m->low / 64 + 1) * 64;
	while (!frame_is_free(m, m->low))
		m->low++;
	for (first = m->low; n < most && first + n < m->frames && frame_is_free(m, first + n); n++)
		;
	*count = n;
	return first;
}

static void frames_use(struct pef *m, uint64_t first, uint64_t count)
{
	bits_set(m->in_use, first, count);
	m->used += count;
	if (m->used == m->frames)
		m->low = m->frames; /* so that the next one given back is found at once */
}

static void frames_give_back(struct pef *m, uint64_t first, uint64_t count)
{
	bits_clear(m->in_use, first, count);
	m->used -= count;
	m->low = min_u64(m->low, first);
}

/* Life. */

enum pw_status pef_init(struct pef *m, struct pw_mem *mem, uint64_t frames, enum pef_left left)
{
	size_t size;

	if (frames > TREE_PAGES)
		return PW_INVALID;
	*m = (struct pef){ .mem = mem, .left = left, .frames = frames };
	arena_init(&m->arena, mem);
	size = bitmap_words(frames) * sizeof(uint64_t);
	m->in_use = pw_mem_zalloc(mem, size);
	return m->in_use ? PW_OK : PW_NO_MEMORY;
}

void pef_release(struct pef *m)
{
	size_t size = bitmap_words(m->frames) * sizeof(uint64_t);

	while (m->vms)
		pef_vm_free(m, m->vms);
	arena_release(&m->arena);
	pw_mem_free(m->mem, m->in_use, size);
}

enum pw_status pef_vm_new(struct pef *m, bool radix, bool opted_in, struct pef_vm **out)
{
	struct pef_vm *vm = pw_mem_zalloc(m->mem, sizeof *vm);
	struct pef_vm **end = &m->vms;

	if (!vm)
		return PW_NO_MEMORY;
	vm->radix = radix;
	vm->opted_in = opted_in;
	tree_init(&vm->words, &m->arena);
	while (*end)
		end = &(*end)->next;
	*end = vm;
	*out = vm;
	return PW_OK;
}

/* Gives back the frames behind [first, end). The words stay. */
static void give_back_behind(struct pef *m, struct pef_vm *vm, uint64_t first, uint64_t end)
{
	struct tree_run run;

	for (uint64_t at = first; at < end; at += run.count) {
		run = tree_run_at(&vm->words, at, end);
		if (word_state(run.entry) == PEF_SI)
			frames_give_back(m, run.entry & TREE_NUMBER, run.count);
	}
}

/* Every GFN becomes normal, without memory. */
static void drop_all(struct pef *m, struct pef_vm *vm)
{
	for (size_t i = 0; i < vm->slot_count; i++)
		give_back_behind(m, vm, vm->slots[i].base, vm->slots[i].base + vm->slots[i].pages);
	tree_release(&vm->words);
}

void pef_vm_free(struct pef *m, struct pef_vm *vm)
{
	struct pef_vm **at = &m->vms;

	while (*at != vm)
		at = &(*at)->next;
	*at = vm->next;
	drop_all(m, vm);
	arena_trim(&m->arena);
	pw_mem_free(m->mem, vm->slots, vm->slot_room * sizeof *vm->slots);
	pw_mem_free(m->mem, vm, sizeof *vm);
}

/* Slots. */

/* The index of the first slot that ends past gfn. */
static size_t slot_after(const struct pef_vm *vm, uint64_t gfn)
{
	size_t low = 0, high = vm->slot_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (vm->slots[mid].base + vm->slots[mid].pages <= gfn)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

bool pef_covers(const struct pef_vm *vm, uint64_t gfn, uint64_t count)
{
	uint64_t end = gfn + count;

	for (size_t i = slot_after(vm, gfn); gfn < end; i++) {
		if (i == vm->slot_count || vm->slots[i].base > gfn)
			return false;
		gfn = vm->slots[i].base + vm->slots[i].pages;
	}
	return true;
}

bool pef_run_at(const struct pef_vm *vm, uint64_t from, uint64_t end, struct pef_run *out)
{
	size_t i = slot_after(vm, from);
	const struct pef_slot *s;
	struct tree_run run;

	if (i == vm->slot_count || vm->slots[i].base >= end)
		return false;
	s = &vm->slots[i];
	if (from < s->base)
		from = s->base;
	run = tree_run_at(&vm->words, from, min_u64(end, s->base + s->pages));
	*out = (struct pef_run){ run.first, run.count, word_state(run.entry), run.entry & TREE_NUMBER };
	return true;
}

/* Page calls: first what would happen to all pages of the run, then doing it. */

struct plan {
	uint64_t frames;       /* to take */
	uint64_t asks;         /* ultracalls */
	uint64_t sets;         /* runs to write, at most */
	enum pef_code refused; /* what it is if one ultracall is refused */
};

/* False: a cell refuses; *code says why. */
static bool plan_run(const struct pef_vm *vm, enum pef_gfn_op op, uint64_t first, uint64_t end, struct plan *plan,
		     enum pef_code *code)
{
	struct tree_run run;

	*plan = (struct plan){ 0 };
	for (uint64_t at = first; at < end; at += run.count) {
		enum pef_gfn_state s;
		const struct pef_gfn_cell *cell;

		run = tree_run_at(&vm->words, at, end);
		s = word_state(run.entry);
		cell = pef_gfn_cell(s, op);
		if (cell->kind == PEF_GFN_REFUSE) {
			*code = cell->code;
			return false;
		}
		plan->asks += cell->asks_uv * run.count;
		if (cell->asks_uv)
			plan->refused = cell->code;
		if (cell->kind != PEF_GFN_MOVE)
			continue;
		plan->frames += cell->next == PEF_SI ? run.count : 0;
		plan->sets += cell->next == PEF_SI ? run.count : 1;
	}
	return true;
}

/* Makes sure that `sets` tree_sets inside a run of `count` pages find their nodes: no more than the run can use. */
static enum pw_status nodes_reserve(struct pef *m, uint64_t sets, uint64_t count)
{
	uint64_t nodes = 0;

	for (unsigned level = 1; level <= TREE_LEVELS; level++)
		nodes += (count >> (TREE_BITS * level)) + 2;
	return arena_reserve_sets(&m->arena, min_u64(sets, nodes / TREE_RESERVE + 2));
}

static void must_set(struct pef_vm *vm, uint64_t first, uint64_t count, uint64_t word)
{
	enum pw_status st = tree_set(&vm->words, first, count, word);

	assert(st == PW_OK); /* nodes_reserve came before */
	(void)st;
}

/* Takes frames for [first, first + count): those named, or the lowest free ones. */
static void settle(struct pef *m, struct pef_vm *vm, uint64_t first, uint64_t count, const uint64_t *frames)
{
	uint64_t n, frame;

	for (uint64_t at = 0; at < count; at += n) {
		if (frames) {
			frame = frames[at];
			for (n = 1; at + n < count && frames[at + n] == frame + n; n++)
				;
		} else {
			frame = lowest_free(m, count - at, &n);
		}
		frames_use(m, frame, n);
		must_set(vm, first + at, n, state_word(PEF_SI, frame));
	}
}

/* Does what was planned; nodes and frames are there. */
static void carry_out(struct pef *m, struct pef_vm *vm, enum pef_gfn_op op, uint64_t first, uint64_t end,
		      const uint64_t *frames)
{
	struct tree_run run;

	for (uint64_t at = first; at < end; at += run.count) {
		const struct pef_gfn_cell *cell;

		run = tree_run_at(&vm->words, at, end);
		cell = pef_gfn_cell(word_state(run.entry), op);
		if (cell->kind != PEF_GFN_MOVE)
			continue;
		if (word_state(run.entry) == PEF_SI)
			frames_give_back(m, run.entry & TREE_NUMBER, run.count);
		if (cell->next == PEF_SI)
			settle(m, vm, at, run.count, frames ? frames + (at - first) : NULL);
		else
			must_set(vm, at, run.count, state_word(cell->next, 0));
	}
}

static bool run_is_sane(uint64_t gfn, uint64_t count)
{
	return count > 0 && gfn < TREE_PAGES && count <= TREE_PAGES - gfn;
}

/* All named frames are free, and none is named twice: they are taken and given up again to see that. */
static bool all_free(struct pef *m, const uint64_t *frames, uint64_t count)
{
	uint64_t n = 0;

	while (n < count && frames[n] < m->frames && frame_is_free(m, frames[n]))
		bits_set(m->in_use, frames[n++], 1);
	for (uint64_t i = 0; i < n; i++)
		bits_clear(m->in_use, frames[i], 1);
	return n == count;
}

/* One operation on a run that is inside slots. */
static enum pw_status operate(struct pef *m, struct pef_vm *vm, enum pef_gfn_op op, const struct pef_pages *p,
			      const struct pef_call *how, enum pef_code *code)
{
	uint64_t end = p->gfn + p->count;
	struct plan plan;

	if (!plan_run(vm, op, p->gfn, end, &plan, code))
		return PW_OK;
	*code = PEF_H_PARAMETER;
	if (plan.frames && p->frames ? !all_free(m, p->frames, p->count) : plan.frames > free_frames(m))
		return PW_OK;
	*code = plan.refused;
	if (plan.asks && how->uv_refuse)
		return PW_OK;
	if (nodes_reserve(m, plan.sets, p->count) != PW_OK)
		return PW_NO_MEMORY;
	carry_out(m, vm, op, p->gfn, end, p->frames);
	*code = PEF_H_SUCCESS;
	return PW_OK;
}

static bool gate_is_shut(const struct pef_vm *vm, const struct pef_call *how)
{
	return how->no_msr_s || vm->state == PEF_VM_NORMAL;
}

/* The order of checks is the kernel's: the third parameter before the second. */
static enum pw_status page_call(struct pef *m, struct pef_vm *vm, enum pef_gfn_op op, uint64_t allowed_flags,
				const struct pef_pages *p, const struct pef_call *how, enum pef_code *code)
{
	if (!run_is_sane(p->gfn, p->count))
		return PW_INVALID;
	if (gate_is_shut(vm, how))
		*code = PEF_H_UNSUPPORTED;
	else if (p->order != PEF_PAGE_SHIFT)
		*code = PEF_H_P3;
	else if (p->flags & ~allowed_flags)
		*code = PEF_H_P2;
	else if (!pef_covers(vm, p->gfn, p->count))
		*code = PEF_H_PARAMETER;
	else
		return operate(m, vm, op, p, how, code);
	return PW_OK;
}

enum pw_status pef_page_in(struct pef *m, struct pef_vm *vm, const struct pef_pages *p, const struct pef_call *how,
			   enum pef_code *code)
{
	enum pef_gfn_op op = p->flags & PEF_PAGE_IN_SHARED ? PEF_SHARE : PEF_PAGE_IN;

	return page_call(m, vm, op, PEF_PAGE_IN_SHARED, p, how, code);
}

enum pw_status pef_page_out(struct pef *m, struct pef_vm *vm, const struct pef_pages *p, const struct pef_call *how,
			    enum pef_code *code)
{
	return page_call(m, vm, PEF_PAGE_OUT, 0, p, how, code);
}

enum pw_status pef_seal(struct pef *m, struct pef_vm *vm, uint64_t gfn, uint64_t count, const struct pef_call *how,
			enum pef_code *code)
{
	struct pef_pages p = { .gfn = gfn, .count = count, .order = PEF_PAGE_SHIFT };

	return page_call(m, vm, PEF_SEAL, 0, &p, how, code);
}

enum pw_status pef_touch(struct pef *m, struct pef_vm *vm, uint64_t gfn, uint64_t count, const struct pef_call *how,
			 enum pef_code *code)
{
	struct pef_pages p = { .gfn = gfn, .count = count };

	if (!run_is_sane(gfn, count))
		return PW_INVALID;
	return operate(m, vm, PEF_TOUCH, &p, how, code);
}

/* VM events. */

/* Why INIT_START fails, in the kernel's order; H_SUCCESS if it does not. */
static enum pef_code start_refusal(const struct pef *m, const struct pef_vm *vm, const struct pef_call *how)
{
	if (m->frames == 0 || !vm->radix)
		return PEF_H_UNSUPPORTED;
	if (!vm->opted_in)
		return PEF_H_AUTHORITY;
	if (vm->slot_count && how->uv_refuse)
		return PEF_H_PARAMETER;
	for (size_t i = 0; i < vm->slot_count; i++)
		if (vm->slots[i].number >= PEF_SLOTS_MAX)
			return PEF_H_PARAMETER;
	return PEF_H_SUCCESS;
}

/* Migrates one run of normal pages as far as frames and memory go; false if that was not all of it. */
static bool migrate_run(struct pef *m, struct pef_vm *vm, const struct tree_run *left)
{
	uint64_t n;

	for (uint64_t at = 0; at < left->count; at += n) {
		uint64_t frame;

		if (arena_reserve(&m->arena) != PW_OK)
			return false;
		if (m->left == PEF_LEFT_OUT) {
			must_set(vm, left->first, left->count, PEF_WORD_OUT);
			return true;
		}
		if (!free_frames(m))
			return false;
		frame = lowest_free(m, left->count - at, &n);
		frames_use(m, frame, n);
		must_set(vm, left->first + at, n, state_word(PEF_SI, frame));
	}
	return true;
}

/* The scan for GFNs that no one has moved yet, slot by slot, upwards. It stops at the first failure. */
static bool migrate_left(struct pef *m, struct pef_vm *vm)
{
	for (size_t i = 0; i < vm->slot_count; i++) {
		uint64_t end = vm->slots[i].base + vm->slots[i].pages;
		struct tree_run run;

		for (uint64_t at = vm->slots[i].base; at < end; at += run.count) {
			run = tree_run_at(&vm->words, at, end);
			if (word_state(run.entry) == PEF_NO && !migrate_run(m, vm, &run))
				return false;
		}
	}
	return true;
}

/* The event's work in a state that allows it. False: *code says why it failed. */
static bool event_works(struct pef *m, struct pef_vm *vm, enum pef_vm_event ev, const struct pef_call *how,
			enum pef_code *code)
{
	switch (ev) {
	case PEF_INIT_START:
		*code = start_refusal(m, vm, how);
		vm->abort_owed = *code != PEF_H_SUCCESS;
		return *code == PEF_H_SUCCESS;
	case PEF_INIT_DONE: *code = PEF_H_STATE; return migrate_left(m, vm);
	case PEF_SVM_OFF:
		*code = how->vcpu_running ? PEF_EBUSY : PEF_EINVAL;
		if (how->vcpu_running || how->uv_refuse)
			return false;
		drop_all(m, vm);
		return true;
	case PEF_INIT_ABORT: drop_all(m, vm); return true;
	case PEF_VM_EVENT_COUNT: break;
	}
	return false;
}

enum pw_status pef_vm_call(struct pef *m, struct pef_vm *vm, enum pef_vm_event ev, const struct pef_call *how,
			   enum pef_code *code)
{
	const struct pef_vm_cell *cell = pef_vm_cell(vm->state, ev);

	*code = PEF_H_UNSUPPORTED;
	if (how->no_msr_s && (ev == PEF_INIT_START || ev == PEF_INIT_DONE))
		return PW_OK;
	if (vm->abort_owed && (ev == PEF_INIT_ABORT || ev == PEF_SVM_OFF)) {
		vm->abort_owed = false;
		*code = ev == PEF_INIT_ABORT ? PEF_H_PARAMETER : PEF_H_SUCCESS;
		return PW_OK;
	}
	if (cell->kind != PEF_VM_MOVE) {
		*code = cell->code;
		return PW_OK;
	}
	if (!event_works(m, vm, ev, how, code))
		return PW_OK;
	*code = cell->code;
	vm->state = cell->next;
	arena_trim(&m->arena);
	return PW_OK;
}

/* Hot-plug. */

static bool slot_fits(const struct pef_vm *vm, const struct pef_slot *s)
{
	size_t at;

	if (!run_is_sane(s->base, s->pages))
		return false;
	for (size_t i = 0; i < vm->slot_count; i++)
		if (vm->slots[i].number == s->number)
			return false;
	at = slot_after(vm, s->base);
	return at == vm->slot_count || s->base + s->pages <= vm->slots[at].base;
}

static enum pw_status slots_grow(struct pef *m, struct pef_vm *vm)
{
	size_t room = vm->slot_room ? 2 * vm->slot_room : 4;
	struct pef_slot *grown;

	if (vm->slot_count < vm->slot_room)
		return PW_OK;
	grown = pw_mem_alloc(m->mem, room * sizeof *grown);
	if (!grown)
		return PW_NO_MEMORY;
	if (vm->slot_count)
		memcpy(grown, vm->slots, vm->slot_count * sizeof *grown);
	pw_mem_free(m->mem, vm->slots, vm->slot_room * sizeof *grown);
	vm->slots = grown;
	vm->slot_room = room;
	return PW_OK;
}

static void slot_insert(struct pef_vm *vm, const struct pef_slot *s)
{
	size_t at = slot_after(vm, s->base);

	memmove(&vm->slots[at + 1], &vm->slots[at], (vm->slot_count - at) * sizeof *s);
	vm->slots[at] = *s;
	vm->slot_count++;
}

/* How a slot's pages start: normal, or migrated at once. */
static bool slot_start(const struct pef *m, const struct pef_vm *vm, enum pef_gfn_op *op)
{
	*op = m->left == PEF_LEFT_OUT ? PEF_SEAL_LEFT : PEF_MIGRATE;
	return vm->state == PEF_VM_SECURE || (vm->state == PEF_VM_TRANSIENT && m->left == PEF_LEFT_RESIDENT);
}

enum pw_status pef_slot_add(struct pef *m, struct pef_vm *vm, const struct pef_slot *s, const struct pef_call *how,
			    enum pef_code *code)
{
	bool registers = vm->state != PEF_VM_NORMAL;
	enum pef_gfn_op op;
	bool migrates = slot_start(m, vm, &op);

	*code = PEF_H_PARAMETER;
	if (!slot_fits(vm, s) || (registers && (how->uv_refuse || s->number >= PEF_SLOTS_MAX)))
		return PW_OK;
	*code = PEF_H_STATE;
	if (migrates && op == PEF_MIGRATE && s->pages > free_frames(m))
		return PW_OK;
	if (slots_grow(m, vm) != PW_OK || nodes_reserve(m, migrates ? s->pages : 0, s->pages) != PW_OK)
		return PW_NO_MEMORY;
	slot_insert(vm, s);
	if (migrates)
		carry_out(m, vm, op, s->base, s->base + s->pages, NULL);
	*code = PEF_H_SUCCESS;
	return PW_OK;
}

enum pw_status pef_slot_remove(struct pef *m, struct pef_vm *vm, uint32_t number, enum pef_code *code)
{
	struct pef_slot *s = vm->slots;
	struct pef_slot *end = vm->slots ? vm->slots + vm->slot_count : NULL;

	while (s < end && s->number != number)
		s++;
	*code = PEF_H_PARAMETER;
	if (s == end)
		return PW_OK;
	if (arena_reserve(&m->arena) != PW_OK)
		return PW_NO_MEMORY;
	give_back_behind(m, vm, s->base, s->base + s->pages);
	must_set(vm, s->base, s->pages, 0);
	memmove(s, s + 1, (size_t)(end - (s + 1)) * sizeof *s);
	vm->slot_count--;
	*code = PEF_H_SUCCESS;
	return PW_OK;
}

/* States put back. */

static bool frames_are_free(const struct pef *m, uint64_t first, uint64_t count)
{
	if (first >= m->frames || count > m->frames - first)
		return false;
	for (uint64_t n = first; n < first + count; n++)
		if (!frame_is_free(m, n))
			return false;
	return true;
}

enum pw_status pef_put_run(struct pef *m, struct pef_vm *vm, const struct pef_run *run)
{
	uint64_t end = run->first + run->count;
	struct tree_run old;

	if (!run_is_sane(run->first, run->count) || !pef_covers(vm, run->first, run->count))
		return PW_INVALID;
	if (arena_reserve(&m->arena) != PW_OK)
		return PW_NO_MEMORY;
	give_back_behind(m, vm, run->first, end);
	if (run->state == PEF_SI && !frames_are_free(m, run->frame, run->count)) {
		for (uint64_t at = run->first; at < end; at += old.count) {
			old = tree_run_at(&vm->words, at, end);
			if (word_state(old.entry) == PEF_SI)
				frames_use(m, old.entry & TREE_NUMBER, old.count);
		}
		return PW_INVALID;
	}
	if (run->state == PEF_SI)
		frames_use(m, run->frame, run->count);
	must_set(vm, run->first, run->count, state_word(run->state, run->frame));
	return PW_OK;
}

/* Digest and check. */

static uint64_t stir(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint64_t mix(uint64_t h, uint64_t x)
{
	return stir(h * 0x9e3779b97f4a7c15u + x + 1);
}

static uint64_t vm_digest(const struct pef_vm *vm)
{
	uint64_t h = mix(vm->state, vm->slot_count);
	struct tree_run run;

	for (size_t i = 0; i < vm->slot_count; i++)
		h = mix(mix(mix(h, vm->slots[i].number), vm->slots[i].base), vm->slots[i].pages);
	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&vm->words, at, TREE_PAGES);
		h = mix(mix(h, run.count), run.entry);
	}
	return h;
}

uint64_t pef_digest(const struct pef *m)
{
	uint64_t h = mix(m->frames, m->used);

	for (const struct pef_vm *vm = m->vms; vm; vm = vm->next)
		h = mix(h, vm_digest(vm));
	for (uint64_t i = 0; i < bitmap_words(m->frames); i++)
		h = mix(h, m->in_use[i]);
	return h;
}

/* What frames words name and bitmaps mark: two sets are the same if these are. */
struct tally {
	uint64_t count, sum;
};

static void tally_add(struct tally *t, uint64_t frame)
{
	t->count++;
	t->sum += stir(frame + 1);
}

static bool word_is_sound(const struct pef *m, const struct pef_vm *vm, const struct tree_run *run)
{
	uint64_t number = run->entry & TREE_NUMBER;

	if (run->entry == 0)
		return true;
	if (vm->state == PEF_VM_NORMAL || !pef_covers(vm, run->first, run->count))
		return false;
	if (run->entry == PEF_WORD_OUT || run->entry == PEF_WORD_SHARED)
		return true;
	return run->entry == (PEF_WORD_RESIDENT | number) && number < m->frames && run->count <= m->frames - number;
}

static bool check_vm(const struct pef *m, const struct pef_vm *vm, struct tally *named)
{
	struct tree_run run;
	struct pef_run seen;
	uint64_t at = 0;

	for (size_t i = 0; i < vm->slot_count; i++) {
		if (!run_is_sane(vm->slots[i].base, vm->slots[i].pages) || vm->slots[i].base < at)
			return false;
		at = vm->slots[i].base + vm->slots[i].pages;
	}
	for (at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&vm->words, at, TREE_PAGES);
		if (!word_is_sound(m, vm, &run))
			return false;
		for (uint64_t i = 0; word_state(run.entry) == PEF_SI && i < run.count; i++)
			tally_add(named, (run.entry & TREE_NUMBER) + i);
	}
	for (at = 0; at < TREE_PAGES && pef_run_at(vm, at, TREE_PAGES, &seen); at = seen.first + seen.count)
		if (vm->state == PEF_VM_SECURE && seen.state == PEF_NO)
			return false;
	return tree_check(&vm->words);
}

bool pef_check(const struct pef *m)
{
	struct tally named = { 0 }, marked = { 0 };

	for (const struct pef_vm *vm = m->vms; vm; vm = vm->next)
		if (!check_vm(m, vm, &named))
			return false;
	for (uint64_t n = 0; n < m->frames; n++) {
		if (bit(m->in_use, n))
			tally_add(&marked, n);
		if (frame_is_free(m, n) && n < m->low)
			return false;
	}
	return marked.count == m->used && named.count == marked.count && named.sum == marked.sum;
}
