/* The ledger's record of what ended: deleted VMs, and deleted slots of VMs. Agents give hardware up on this evidence
 * alone (law L11), so it is kept for a while, bounded in number and age; what is forgotten only means that a guest is
 * kept and reported. Written by the writer thread, undoable, and part of journal and picture. */
#include <string.h>

#include "server/service_impl.h"

enum { ENDS_MAX = 16384, ENDS_A_TICK = 64, END_SHOWN_MAX = 256 };
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

static struct end *oldest_end(const struct service *sv)
{
	struct end *oldest = NULL;

	for (size_t i = 0; i < sv->ends.count; i++) {
		struct end *e = sv->ends.items[i];

		if (!oldest || e->revision < oldest->revision)
			oldest = e;
	}
	return oldest;
}

/* Oldest first: then one revision says for the picture which are gone. */
void ends_tick(struct service *sv, int64_t now_ms)
{
	for (unsigned left = ENDS_A_TICK; left > 0; left--) {
		struct end *e = oldest_end(sv);

		if (!e || (sv->ends.count <= ENDS_MAX && e->time_ms + end_life_ms >= now_ms))
			return;
		sv->ends_from = e->revision + 1;
		index_remove(&sv->ends, e);
		pw_mem_free(&sv->mem, e, sizeof *e);
	}
}
