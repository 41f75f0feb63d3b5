#include "agents/snp_pages.h"

enum gfn_state snp_pages_state(uint64_t entry)
{
	if ((entry & GPT_FRAME) == GPT_FRAME)
		return GFN_SECURE_RESIDENT;
	if (entry & GPT_SHARED)
		return GFN_SHARED;
	return entry ? GFN_SECURE_OUT : GFN_NORMAL;
}

static enum pw_status no_memory(struct pw_err *err)
{
	return pw_fail(err, PW_NO_MEMORY, "no memory for the VM's pages");
}

static enum pw_status at_gfn(enum pw_status st, uint64_t gfn, struct pw_err *err)
{
	return st == PW_OK ? st : pw_wrap(err, "GFN %" PRIu64, gfn);
}

enum pw_status snp_pages_reserve(struct snp_host *h, uint64_t pages, uint64_t runs, struct pw_err *err)
{
	uint64_t tables = pages / TREE_FANOUT + pages / TREE_FANOUT / TREE_FANOUT + (uint64_t)4 * TREE_LEVELS;
	uint64_t most = tables / TREE_RESERVE + 2;

	if (arena_reserve_sets(&h->nodes, (size_t)(runs < most ? runs : most)) != PW_OK)
		return no_memory(err);
	return PW_OK;
}

void snp_pages_set(struct snp_act *a, uint64_t gfn, uint64_t count, uint64_t entry)
{
	enum pw_status st = tree_set(&a->g->pages, gfn, count, entry);

	(void)st; /* pages_reserve came before */
}

/* The log of steps. */

static enum pw_status steps_reserve(struct snp_host *h, struct pw_err *err)
{
	size_t room = h->step_room ? 2 * h->step_room : 64;
	struct snp_step *grown;

	if (h->step_count < h->step_room)
		return PW_OK;
	grown = pw_mem_alloc(h->mem, room * sizeof *grown);
	if (!grown)
		return no_memory(err);
	for (size_t i = 0; i < h->step_count; i++)
		grown[i] = h->steps[i];
	pw_mem_free(h->mem, h->steps, h->step_room * sizeof *h->steps);
	h->steps = grown;
	h->step_room = room;
	return PW_OK;
}

static void steps_add(struct snp_host *h, const struct snp_step *s)
{
	struct snp_step *last = h->step_count ? &h->steps[h->step_count - 1] : NULL;

	if (last && last->kind == s->kind && last->size == s->size && last->gfn + last->count == s->gfn &&
	    last->pfn + last->count == s->pfn && s->kind != SNP_STEP_SMASH)
		last->count += s->count;
	else
		h->steps[h->step_count++] = *s;
}

static const uint64_t *slots_of(const struct snp_act *a, uint64_t gfn, uint64_t count, uint64_t slots[SNP_LARGE])
{
	if (a->slots)
		return a->slots + (gfn - a->gfn);
	for (uint64_t i = 0; i < count; i++)
		slots[i] = tree_get(&a->g->pages, gfn + i) & TREE_NUMBER;
	return slots;
}

static enum pw_status do_step(struct snp_act *a, const struct snp_step *s, struct pw_err *err)
{
	uint64_t slots[SNP_LARGE];

	switch (s->kind) {
	case SNP_STEP_IN:
		return a->launching ? snp_host_launch(a->h, a->g, s, err) : snp_host_accept(a->h, a->g, s, err);
	case SNP_STEP_SWAP_IN: return snp_host_swap_in(a->h, a->g, s, slots_of(a, s->gfn, s->count, slots), err);
	case SNP_STEP_SWAP_OUT: return snp_host_swap_out(a->h, a->g, s, slots_of(a, s->gfn, s->count, slots), err);
	case SNP_STEP_BACK: return snp_host_back(a->h, s, err);
	case SNP_STEP_SMASH: return snp_host_smash(a->h, s, err);
	}
	return PW_BACKEND;
}

static enum pw_status undo_step(struct snp_act *a, const struct snp_step *s, struct pw_err *err)
{
	uint64_t slots[SNP_LARGE];

	switch (s->kind) {
	case SNP_STEP_IN: return snp_host_back(a->h, s, err);
	case SNP_STEP_SWAP_IN: return snp_host_swap_out(a->h, a->g, s, slots_of(a, s->gfn, s->count, slots), err);
	case SNP_STEP_SWAP_OUT: return snp_host_swap_in(a->h, a->g, s, slots_of(a, s->gfn, s->count, slots), err);
	case SNP_STEP_BACK: return snp_host_accept(a->h, a->g, s, err);
	case SNP_STEP_SMASH: return snp_host_mend(a->h, a->g, s, err);
	}
	return PW_BACKEND;
}

static void keep(struct snp_act *a, uint64_t pfn, uint64_t count, const char *why)
{
	for (uint64_t i = 0; i < count; i++)
		machine_keep(a->h->machine, pfn + i, why);
	a->g->lost += count;
}

static uint64_t frames_in(enum snp_size size)
{
	return size == SNP_2M ? SNP_LARGE : 1;
}

/* Takes everything in the log back, the last first. A page that will not is nobody's from now on. */
static void undo(struct snp_act *a)
{
	struct pw_err err;

	while (a->h->step_count > 0) {
		struct snp_step run = a->h->steps[--a->h->step_count], page = run;

		page.count = frames_in(run.size);
		for (uint64_t left = run.count; left > 0; left -= page.count) {
			page.gfn = run.gfn + left - page.count;
			page.pfn = run.pfn + left - page.count;
			if (undo_step(a, &page, &err) != PW_OK)
				keep(a, page.pfn, page.count, err.msg);
		}
	}
}

static enum pw_status step(struct snp_act *a, const struct snp_step *s, struct pw_err *err)
{
	enum pw_status st = a->final ? PW_OK : steps_reserve(a->h, err);

	if (st == PW_OK)
		st = snp_host_room(a->h, err);
	if (st == PW_OK)
		st = at_gfn(do_step(a, s, err), s->gfn, err);
	if (st == PW_OK && !a->final)
		steps_add(a->h, s);
	return st;
}

void snp_pages_trim(struct snp_host *h)
{
	arena_trim_to(&h->m.arena, (size_t)32 * TREE_RESERVE);
	arena_trim_to(&h->nodes, (size_t)8 * TREE_RESERVE);
	h->step_count = 0;
}

static enum pw_status finish(struct snp_act *a, enum pw_status st)
{
	if (st != PW_OK)
		undo(a);
	snp_pages_trim(a->h);
	return st;
}

/* Giving frames back. */

/*
 * The first page of a resident run, as large as its entry is; a 2 MiB entry of which only a part goes is smashed
 * first.
 */
static enum pw_status page_at(struct snp_act *a, uint64_t gfn, uint64_t pfn, uint64_t count, struct snp_step *page,
			      struct pw_err *err)
{
	uint64_t base = pfn - pfn % SNP_LARGE;
	struct snp_entry e;

	*page = (struct snp_step){ .size = SNP_4K, .gfn = gfn, .pfn = pfn, .count = 1 };
	snp_read(&a->h->m, pfn, &e);
	if (e.size == SNP_4K)
		return PW_OK;
	if (pfn == base && count >= SNP_LARGE) {
		page->size = SNP_2M;
		page->count = SNP_LARGE;
		return PW_OK;
	}
	return step(a,
		    &(struct snp_step){ .kind = SNP_STEP_SMASH,
					.size = SNP_2M,
					.gfn = gfn - (pfn - base),
					.pfn = base,
					.count = SNP_LARGE },
		    err);
}

/* *done: how many of the run's frames hardware gave back. */
static enum pw_status give_back(struct snp_act *a, const struct tree_run *run, enum snp_step_kind kind, uint64_t *done,
				struct pw_err *err)
{
	uint64_t pfn = run->entry & TREE_NUMBER;
	enum pw_status st = PW_OK;
	struct snp_step page;

	for (*done = 0; *done < run->count; *done += page.count) {
		st = page_at(a, run->first + *done, pfn + *done, run->count - *done, &page, err);
		page.kind = kind;
		if (st == PW_OK)
			st = step(a, &page, err);
		if (st != PW_OK)
			return st;
	}
	return PW_OK;
}

bool snp_pages_next_resident(const struct snp_act *a, uint64_t from, struct tree_run *run)
{
	struct tree_run next;

	for (uint64_t at = from; at < a->end; at += next.count) {
		next = tree_run_at(&a->g->pages, at, a->end);
		if (snp_pages_state(next.entry) != GFN_SECURE_RESIDENT)
			continue;
		*run = next;
		return true;
	}
	return false;
}

/* Would hardware give all frames of the range back? Asked before anything changes. */
static enum pw_status ask_back(struct snp_act *a, struct pw_err *err)
{
	struct tree_run run = { .first = a->gfn };
	uint64_t given;

	for (uint64_t at = a->gfn; snp_pages_next_resident(a, at, &run); at = run.first + run.count) {
		given = machine_gives_back(a->h->machine, run.count);
		if (given < run.count)
			return at_gfn(snp_host_refuse(a->h, (run.entry & TREE_NUMBER) + given, err), run.first + given,
				      err);
	}
	return PW_OK;
}

static enum pw_status give_all_back(struct snp_act *a, enum snp_step_kind kind, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	struct tree_run run;
	uint64_t done;

	for (uint64_t at = a->gfn; st == PW_OK && snp_pages_next_resident(a, at, &run); at = run.first + run.count)
		st = give_back(a, &run, kind, &done, err);
	return st;
}

/* Entries of pages that were swapped out and are not any more. */
static void drop_slots(struct snp_act *a)
{
	struct tree_run run;

	for (uint64_t at = a->gfn; at < a->end; at += run.count) {
		run = tree_run_at(&a->g->pages, at, a->end);
		if (snp_pages_is_swapped(run.entry))
			snp_host_slots_drop(a->h, a->g, run.entry & TREE_NUMBER, run.count);
	}
}

enum pw_status snp_pages_empty(struct snp_act *a, uint64_t entry, struct pw_err *err)
{
	enum pw_status st = snp_pages_reserve(a->h, a->end - a->gfn, 1, err);

	if (st == PW_OK)
		st = snp_host_room(a->h, err);
	if (st == PW_OK)
		st = ask_back(a, err);
	if (st == PW_OK)
		st = give_all_back(a, SNP_STEP_BACK, err);
	if (st == PW_OK) {
		drop_slots(a);
		snp_pages_set(a, a->gfn, a->end - a->gfn, entry);
	}
	return finish(a, st);
}

void snp_pages_end(struct snp_act *a, const struct tree_run *run)
{
	uint64_t pfn = run->entry & TREE_NUMBER, given, back;
	struct tree_run part = *run;
	struct pw_err err;

	for (uint64_t done = 0; done < run->count; done += given + 1) {
		given = machine_gives_back(a->h->machine, run->count - done);
		part = (struct tree_run){ run->first + done, given, run->entry + done };
		if (give_back(a, &part, SNP_STEP_BACK, &back, &err) != PW_OK)
			keep(a, pfn + done + back, given - back, err.msg);
		if (done + given < run->count && snp_host_refuse(a->h, pfn + done + given, &err) != PW_OK)
			keep(a, pfn + done + given, 1, err.msg);
	}
}

/* Taking frames. */

/* How the next page comes in: large, if GFNs and frames allow it and all its 512 pages come the same way. */
static struct snp_step page_to_come(const struct snp_act *a, uint64_t gfn)
{
	const uint64_t *pfns = a->pfns + (gfn - a->gfn);
	struct tree_run run = tree_run_at(&a->g->pages, gfn, a->end);
	bool swapped = snp_pages_is_swapped(run.entry);
	struct snp_step page = {
		.kind = swapped ? SNP_STEP_SWAP_IN : SNP_STEP_IN, .size = SNP_4K, .gfn = gfn, .pfn = pfns[0], .count = 1
	};

	if (gfn % SNP_LARGE || pfns[0] % SNP_LARGE || a->end - gfn < SNP_LARGE)
		return page;
	for (uint64_t i = 1; i < SNP_LARGE; i++)
		if (pfns[i] != pfns[0] + i)
			return page;
	for (uint64_t at = gfn; at < gfn + SNP_LARGE; at += run.count) {
		run = tree_run_at(&a->g->pages, at, gfn + SNP_LARGE);
		if (snp_pages_is_swapped(run.entry) != swapped)
			return page;
	}
	page.size = SNP_2M;
	page.count = SNP_LARGE;
	return page;
}

static uint64_t numbers_run(const uint64_t *n, uint64_t count)
{
	uint64_t same = 1;

	while (same < count && n[same] == n[0] + same)
		same++;
	return same;
}

static uint64_t numbers_runs(const uint64_t *n, uint64_t count)
{
	uint64_t runs = 0;

	for (uint64_t i = 0; i < count; i += numbers_run(n + i, count - i))
		runs++;
	return runs;
}

static void set_numbers(struct snp_act *a, uint64_t gfn, uint64_t count, uint64_t flags, const uint64_t *n)
{
	uint64_t same;

	for (uint64_t i = 0; i < count; i += same) {
		same = numbers_run(n + i, count - i);
		snp_pages_set(a, gfn + i, same, flags | n[i]);
	}
}

enum pw_status snp_pages_in(struct snp_act *a, struct pw_err *err)
{
	uint64_t count = a->end - a->gfn;
	enum pw_status st = snp_pages_reserve(a->h, count, numbers_runs(a->pfns, count), err);
	struct snp_step page;

	for (uint64_t gfn = a->gfn; st == PW_OK && gfn < a->end; gfn += page.count) {
		page = page_to_come(a, gfn);
		st = step(a, &page, err);
	}
	if (st == PW_OK) {
		drop_slots(a);
		set_numbers(a, a->gfn, count, GPT_FRAME, a->pfns);
	}
	return finish(a, st);
}

/* Going out. */

static enum pw_status slots_take(struct snp_act *a, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	struct tree_run run;

	for (uint64_t at = a->gfn; snp_pages_next_resident(a, at, &run); at = run.first + run.count) {
		uint64_t *slots = a->slots + (run.first - a->gfn);

		st = snp_host_slots_take(a->h, a->g, run.count, slots, err);
		if (st != PW_OK) {
			a->end = run.first;
			break;
		}
	}
	return st;
}

/* Of the resident pages up to the op's end. */
static void slots_give(struct snp_act *a)
{
	struct tree_run run;

	for (uint64_t at = a->gfn; snp_pages_next_resident(a, at, &run); at = run.first + run.count)
		for (uint64_t i = 0; i < run.count; i++)
			snp_host_slots_drop(a->h, a->g, a->slots[run.first - a->gfn + i], 1);
}

enum pw_status snp_pages_out(struct snp_act *a, struct pw_err *err)
{
	enum pw_status st = snp_pages_reserve(a->h, a->end - a->gfn, UINT64_MAX, err);
	struct tree_run run;

	if (st == PW_OK)
		st = snp_host_room(a->h, err);
	if (st == PW_OK)
		st = ask_back(a, err);
	if (st != PW_OK)
		return finish(a, st);
	st = slots_take(a, err);
	if (st == PW_OK)
		st = give_all_back(a, SNP_STEP_SWAP_OUT, err);
	if (st != PW_OK) {
		undo(a);
		slots_give(a);
		return finish(a, st);
	}
	for (uint64_t at = a->gfn; snp_pages_next_resident(a, at, &run); at = run.first + run.count)
		set_numbers(a, run.first, run.count, GPT_SWAPPED, a->slots + (run.first - a->gfn));
	return finish(a, PW_OK);
}
