/* The ledger's record of what ended: deleted VMs, and deleted slots of VMs. Agents give hardware up on this evidence
 * alone (law L11), so it is kept for a while, bounded in number and age; what is forgotten only means that a guest is
 * kept and reported. Written by the writer thread, undoable, and part of journal and picture. */
#include <stdlib.h>
#include <string.h>

#include "server/service_impl.h"

enum { ENDS_MAX = 16384, END_SHOWN_MAX = 256 };
static const int64_t end_life_ms = (int64_t)30 * 24 * 3600 * 1000;

int ends_compare(const void *key, const void *item)
{
	const struct end *a = key, *b = item;
	int order = memcmp(&a->vm, &b->vm, sizeof a->vm);

	return order ? order : a->slot < b->slot ? -1 : a->slot > b->slot;
}

void ends_release(struct service *sv)
{
	for (size_t i = 0; i < sv->ends.count; i++)
		pw_mem_free(&sv->mem, sv->ends.items[i], sizeof(struct end));
	index_release(&sv->ends);
}

static void unmake_end(void *ctx, const void *args)
{
	struct end *e = *(struct end *const *)args;
	struct service *sv = ctx;

	index_remove(&sv->ends, e);
	pw_mem_free(&sv->mem, e, sizeof *e);
}

enum pw_status end_put(struct service *sv, const struct end *e)
{
	static const struct undo_ops made = { .rollback = unmake_end };
	struct end *known = index_find(&sv->ends, e);
	struct undo *u = ledger_undo(sv->ledger);

	if (undo_reserve(u, UNDO_RECORD(sizeof *known)) != PW_OK)
		return PW_NO_MEMORY;
	if (known) {
		undo_save(u, known, sizeof *known);
		*known = *e;
		return PW_OK;
	}
	if (index_reserve(&sv->ends) != PW_OK)
		return PW_NO_MEMORY;
	known = pw_mem_alloc(&sv->mem, sizeof *known);
	if (!known)
		return PW_NO_MEMORY;
	*known = *e;
	index_insert(&sv->ends, known, known);
	undo_push(u, &made, sv, &known, sizeof known);
	return PW_OK;
}

uint64_t vm_end_revision(const struct service *sv, const struct pw_uuid *vm)
{
	const struct end *e = index_find(&sv->ends, &(struct end){ .vm = *vm, .slot = END_OF_VM });

	return e ? e->revision : 0;
}

void write_slot_ends(struct jsonw *w, const struct service *sv, const struct vm *vm)
{
	const struct end from = { .vm = vm->id, .slot = END_OF_VM };
	unsigned left = END_SHOWN_MAX;

	jsonw_key(w, "slots_ended");
	jsonw_open(w, '[');
	for (size_t i = index_after(&sv->ends, &from); i < sv->ends.count && left > 0; i++, left--) {
		const struct end *e = sv->ends.items[i];

		if (!pw_uuid_equal(&e->vm, &vm->id))
			break;
		jsonw_open(w, '{');
		jsonw_m_u64(w, "slot", (uint64_t)e->slot);
		jsonw_m_u64(w, "ended", e->revision);
		jsonw_close(w, '}');
	}
	jsonw_close(w, ']');
}

static int compare_revisions(const void *a, const void *b)
{
	uint64_t x = *(const uint64_t *)a, y = *(const uint64_t *)b;

	return x < y ? -1 : x > y;
}

/* Below which revision there are more than may be kept. 0: nowhere, or there is no memory to find out. */
static uint64_t too_many_below(const struct service *sv)
{
	uint64_t *revisions, at = 0;

	if (sv->ends.count <= ENDS_MAX)
		return 0;
	revisions = malloc(sv->ends.count * sizeof *revisions);
	if (!revisions)
		return 0;
	for (size_t i = 0; i < sv->ends.count; i++)
		revisions[i] = ((const struct end *)sv->ends.items[i])->revision;
	qsort(revisions, sv->ends.count, sizeof *revisions, compare_revisions);
	at = revisions[sv->ends.count - ENDS_MAX];
	free(revisions);
	return at;
}

static uint64_t too_old_below(const struct service *sv, int64_t now_ms)
{
	uint64_t below = 0;

	for (size_t i = 0; i < sv->ends.count; i++) {
		const struct end *e = sv->ends.items[i];

		if (e->time_ms + end_life_ms < now_ms && e->revision >= below)
			below = e->revision + 1;
	}
	return below;
}

/* Oldest first, however many came since the last tick: one revision says for the picture which are gone. */
void ends_tick(struct service *sv, int64_t now_ms)
{
	uint64_t many = too_many_below(sv), old = too_old_below(sv, now_ms), below = many > old ? many : old;
	size_t kept = 0;

	if (!below)
		return;
	for (size_t i = 0; i < sv->ends.count; i++) {
		struct end *e = sv->ends.items[i];

		if (e->revision < below)
			pw_mem_free(&sv->mem, e, sizeof *e);
		else
			sv->ends.items[kept++] = e;
	}
	sv->ends.count = kept;
	sv->ends_from = below;
}
