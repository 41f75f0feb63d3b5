/*
 * Who waits for what. Those that wait for any change are in a heap by the revision that they have seen, those that wait
 * for one thing in the list of that thing, and all of them in a heap by their deadlines: so waking costs those who are
 * woken. Under the service's `mutex`.
 */
#include "server/waiters.h"

#include <stdlib.h>
#include <string.h>

enum { SLICE_MS = 10, SLICES = 1000 / SLICE_MS };

void list_init(struct request_list *l)
{
	l->head = NULL;
	l->tail = &l->head;
}

void list_push(struct request_list *l, struct request *r)
{
	r->next = NULL;
	*l->tail = r;
	l->tail = &r->next;
}

struct request *list_pop(struct request_list *l)
{
	struct request *r = l->head;

	if (!r)
		return NULL;
	l->head = r->next;
	if (!l->head)
		l->tail = &l->head;
	return r;
}

struct request *list_take(struct request_list *l)
{
	struct request *head = l->head;

	list_init(l);
	return head;
}

/* Heaps. */

enum { BY_DEADLINE, BY_REVISION };

static uint64_t rank(const struct request *r, int by)
{
	return by == BY_DEADLINE ? (uint64_t)r->deadline_ms : r->wait_after;
}

static void heap_put(struct request_heap *h, int by, size_t at, struct request *r)
{
	h->items[at] = r;
	r->wait_at[by] = at;
}

static void heap_rise(struct request_heap *h, int by, size_t at, struct request *r)
{
	for (; at > 0 && rank(r, by) < rank(h->items[(at - 1) / 2], by); at = (at - 1) / 2)
		heap_put(h, by, at, h->items[(at - 1) / 2]);
	heap_put(h, by, at, r);
}

static void heap_sink(struct request_heap *h, int by, size_t at, struct request *r)
{
	for (size_t child; (child = 2 * at + 1) < h->count; at = child) {
		if (child + 1 < h->count && rank(h->items[child + 1], by) < rank(h->items[child], by))
			child++;
		if (rank(r, by) <= rank(h->items[child], by))
			break;
		heap_put(h, by, at, h->items[child]);
	}
	heap_put(h, by, at, r);
}

static enum pw_status heap_reserve(struct request_heap *h)
{
	size_t capacity = h->capacity ? 2 * h->capacity : 64;
	struct request **more;

	if (h->count < h->capacity)
		return PW_OK;
	more = realloc(h->items, capacity * sizeof(struct request *));
	if (!more)
		return PW_NO_MEMORY;
	h->items = more;
	h->capacity = capacity;
	return PW_OK;
}

static void heap_add(struct request_heap *h, int by, struct request *r)
{
	heap_rise(h, by, h->count++, r);
}

static void heap_remove(struct request_heap *h, int by, const struct request *r)
{
	struct request *last = h->items[--h->count];
	size_t at = r->wait_at[by];

	if (last == r)
		return;
	if (at > 0 && rank(last, by) < rank(h->items[(at - 1) / 2], by))
		heap_rise(h, by, at, last);
	else
		heap_sink(h, by, at, last);
}

/* Waiting. */

void waiters_init(struct waiters *w, uint64_t seed)
{
	memset(w, 0, sizeof *w);
	list_init(&w->woken[0]);
	list_init(&w->woken[1]);
	w->seed = seed;
}

void waiters_release(struct waiters *w)
{
	free(w->deadlines.items);
	free(w->revisions.items);
}

uint64_t uuid_hash(const struct pw_uuid *id, uint64_t seed)
{
	const uint64_t odd = 0x9e3779b97f4a7c15;
	uint64_t half[2], mixed;

	memcpy(half, id->b, sizeof half);
	mixed = (half[0] ^ seed) * odd;
	return ((mixed ^ mixed >> 32 ^ half[1]) * odd) >> 32;
}

static struct request **list_of(struct waiters *w, const struct wait_key *k)
{
	return &w->lists[uuid_hash(&k->id, w->seed + k->kind) % WAITERS_LISTS];
}

enum pw_status waiters_add(struct waiters *w, struct request *r)
{
	struct request **list;

	if (heap_reserve(&w->deadlines) != PW_OK || heap_reserve(&w->revisions) != PW_OK)
		return PW_NO_MEMORY;
	heap_add(&w->deadlines, BY_DEADLINE, r);
	r->waits = true;
	if (r->wait_for.kind == WAIT_REVISION) {
		heap_add(&w->revisions, BY_REVISION, r);
		return PW_OK;
	}
	list = list_of(w, &r->wait_for);
	r->next = *list;
	r->link = list;
	if (*list)
		(*list)->link = &r->next;
	*list = r;
	return PW_OK;
}

static void take_out(struct waiters *w, struct request *r)
{
	heap_remove(&w->deadlines, BY_DEADLINE, r);
	r->waits = false;
	if (r->wait_for.kind == WAIT_REVISION) {
		heap_remove(&w->revisions, BY_REVISION, r);
		return;
	}
	*r->link = r->next;
	if (r->next)
		r->next->link = r->link;
}

bool waiters_remove(struct waiters *w, struct request *r)
{
	if (!r->waits)
		return false;
	take_out(w, r);
	return true;
}

static void wake(struct waiters *w, struct request *r)
{
	bool is_feed = r->wait_for.kind == WAIT_REVISION || r->wait_for.kind == WAIT_EVENTS;

	take_out(w, r);
	list_push(&w->woken[is_feed], r);
}

static size_t wake_token(struct waiters *w, const struct pw_uuid *token)
{
	size_t n = 0;

	for (size_t i = w->deadlines.count; i > 0; i--) { /* who is taken out is replaced by the last one */
		struct request *r = w->deadlines.items[i - 1];

		if (pw_uuid_equal(&r->who.token, token)) {
			wake(w, r);
			n++;
			if (i <= w->deadlines.count)
				i++; /* another one is in that place */
		}
	}
	return n;
}

size_t waiters_wake(struct waiters *w, const struct wait_key *key)
{
	struct request *following;
	size_t n = 0;

	if (key->kind == WAIT_TOKEN)
		return wake_token(w, &key->id);
	for (struct request *r = *list_of(w, key); r; r = following) {
		following = r->next;
		if (r->wait_for.kind != key->kind || !pw_uuid_equal(&r->wait_for.id, &key->id))
			continue;
		wake(w, r);
		n++;
	}
	return n;
}

size_t waiters_wake_revision(struct waiters *w, uint64_t revision)
{
	size_t n = 0;

	for (; w->revisions.count && w->revisions.items[0]->wait_after < revision; n++)
		wake(w, w->revisions.items[0]);
	return n;
}

size_t waiters_wake_due(struct waiters *w, int64_t now_ms)
{
	size_t n = 0;

	for (; w->deadlines.count && w->deadlines.items[0]->deadline_ms <= now_ms; n++) {
		struct request *r = w->deadlines.items[0];

		wake(w, r);
		r->deadline_ms = 1;
	}
	return n;
}

struct request *waiters_take(struct waiters *w, unsigned rate, int64_t now_ms, int64_t *next_ms)
{
	struct request_list taken;

	list_init(&taken);
	if (now_ms >= w->next_ms || rate == 0) {
		w->left = rate ? rate / SLICES : UINT32_MAX;
		w->next_ms = now_ms + SLICE_MS;
	}
	for (int i = 0; i < 2; i++)
		while (w->woken[i].head && w->left > 0) {
			list_push(&taken, list_pop(&w->woken[i]));
			w->left--;
		}
	if ((w->woken[0].head || w->woken[1].head) && w->next_ms < *next_ms)
		*next_ms = w->next_ms;
	if (w->deadlines.count && w->deadlines.items[0]->deadline_ms < *next_ms)
		*next_ms = w->deadlines.items[0]->deadline_ms;
	return taken.head;
}
