/*
 * Notes of quarantine: found by number, so that none ever moves. Their frames are counted where entries of pools
 * change, forwards and backwards alike.
 */
#include <string.h>

#include "engine/ledger_impl.h"

static bool places_grow(struct ledger *l)
{
	struct notes *n = &l->notes;
	uint32_t capacity = n->capacity ? 2 * n->capacity : 16;
	struct note_place *places;

	if (n->capacity > UINT32_MAX / 4)
		return false;
	places = pw_mem_alloc(l->mem, capacity * sizeof *places);
	if (!places)
		return false;
	if (n->capacity)
		memcpy(places, n->places, n->capacity * sizeof *places);
	pw_mem_free(l->mem, n->places, n->capacity * sizeof *places);
	for (uint32_t i = n->capacity; i < capacity; i++)
		places[i] = (struct note_place){ NULL, i + 1 };
	n->free = n->capacity;
	n->places = places;
	n->capacity = capacity;
	return true;
}

static void list_idle(struct ledger *l, struct note *note)
{
	if (note->listed)
		return;
	note->listed = true;
	note->next = l->notes.idle;
	l->notes.idle = note;
}

struct note *note_new(struct ledger *l, const struct frame_range *r)
{
	const char *reason = r->reason ? r->reason : "";
	size_t length = strlen(reason) + 1, size = sizeof(struct note) + length;
	struct notes *n = &l->notes;
	struct note *note;

	if (n->free == n->capacity && !places_grow(l))
		return NULL;
	note = pw_mem_alloc(l->mem, size);
	if (!note)
		return NULL;
	*note = (struct note){ .pool = r->pool, .time_ms = r->time_ms, .number = n->free, .size = size };
	memcpy(note->reason, reason, length);
	n->free = n->places[note->number].next;
	n->places[note->number].note = note;
	list_idle(l, note);
	return note;
}

static struct note *find(const struct ledger *l, uint64_t entry)
{
	uint64_t number = entry & TREE_NUMBER;

	return entry & FRAME_ENTRY_QUARANTINED && !(entry & FRAME_ENTRY_BOUND) && number < l->notes.capacity
		       ? l->notes.places[number].note
		       : NULL;
}

const struct note *note_of(const struct ledger *l, uint64_t entry)
{
	return find(l, entry);
}

void note_frames_add(struct ledger *l, uint64_t entry, uint64_t count)
{
	struct note *note = find(l, entry);

	if (!note)
		return;
	if (note->frames == 0)
		note->pool->notes++;
	note->frames += count;
}

void note_frames_take(struct ledger *l, uint64_t entry, uint64_t count)
{
	struct note *note = find(l, entry);

	if (!note)
		return;
	note->frames -= count;
	if (note->frames > 0)
		return;
	note->pool->notes--;
	list_idle(l, note);
}

static void note_free(struct ledger *l, struct note *note)
{
	l->notes.places[note->number] = (struct note_place){ NULL, l->notes.free };
	l->notes.free = note->number;
	pw_mem_free(l->mem, note, note->size);
}

void notes_commit(struct ledger *l)
{
	while (l->notes.idle) {
		struct note *note = l->notes.idle;

		l->notes.idle = note->next;
		note->listed = false;
		if (note->frames == 0)
			note_free(l, note);
	}
}

void notes_release(struct ledger *l)
{
	for (uint32_t i = 0; i < l->notes.capacity; i++)
		if (l->notes.places[i].note)
			note_free(l, l->notes.places[i].note);
	pw_mem_free(l->mem, l->notes.places, l->notes.capacity * sizeof *l->notes.places);
}
