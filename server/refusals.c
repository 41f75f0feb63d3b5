/*
 * Recent refusals, in two hash tables (by what was refused, and by revision), and for each owner in a list, the one
 * that was seen last in front: the last ones make room. What the group in flight noted is in a list of its own, with
 * what it was before.
 */
#include "server/refusals.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

enum { BUCKETS = 16384, OWNER_BUCKETS = 1024, FORGET_PARTS = 10, MINUTES = 60, MINUTE_MS = 60000, CREDIT = 1000 };

struct recent {
	uint8_t key[REFUSAL_KEY];
	struct owner *owner;
	uint64_t revision;
	int64_t first_ms;
	uint64_t count, settled_count, saved_count;
	int64_t last_ms, settled_ms;
	struct recent *next_key, *next_revision; /* in the tables */
	struct recent *newer, *older;            /* of its owner */
	struct recent *next_noted;
	struct recent *before, *behind; /* among the unsaved */
	bool noted, unsaved, gone;      /* gone: forgotten within the group that noted it */
};

struct owner {
	struct pw_uuid id;
	struct recent *newest, *oldest;
	unsigned count;
	int64_t credit, filled_ms; /* thousandths of a violation, at that time */
	int64_t taken;             /* by the group in flight */
	bool noted;
	struct owner *next, *next_noted;
};

struct minute {
	int64_t at; /* since 1970 */
	struct refusal_counts c;
};

struct refusals {
	pthread_mutex_t lock; /* of all of it */
	struct refusal_limits limits;
	struct recent *by_key[BUCKETS], *by_revision[BUCKETS];
	struct owner *owners[OWNER_BUCKETS];
	struct recent *unsaved_first, *unsaved_last;
	unsigned forget_at; /* the next bucket of owners */

	struct recent *noted;
	struct owner *noted_owners;
	struct refusal_counts in_group;
	int64_t group_ms;
	struct minute minutes[MINUTES + 1];
};

struct refusals *refusals_new(const struct refusal_limits *limits)
{
	struct refusals *t = calloc(1, sizeof *t);

	if (!t)
		return NULL;
	t->limits = *limits;
	pthread_mutex_init(&t->lock, NULL);
	return t;
}

static struct recent **key_bucket(struct refusals *t, const uint8_t key[REFUSAL_KEY])
{
	uint32_t h;

	memcpy(&h, key, sizeof h);
	return &t->by_key[h % BUCKETS];
}

static struct recent **revision_bucket(struct refusals *t, uint64_t revision)
{
	return &t->by_revision[revision % BUCKETS];
}

static struct owner **owner_bucket(struct refusals *t, const struct pw_uuid *id)
{
	uint32_t h;

	memcpy(&h, id->b + sizeof id->b - sizeof h, sizeof h);
	return &t->owners[h % OWNER_BUCKETS];
}

static void unsaved_leave(struct refusals *t, struct recent *e)
{
	if (!e->unsaved)
		return;
	*(e->before ? &e->before->behind : &t->unsaved_first) = e->behind;
	*(e->behind ? &e->behind->before : &t->unsaved_last) = e->before;
	e->unsaved = false;
}

static void unsaved_join(struct refusals *t, struct recent *e)
{
	if (e->unsaved)
		return;
	e->before = t->unsaved_last;
	e->behind = NULL;
	*(t->unsaved_last ? &t->unsaved_last->behind : &t->unsaved_first) = e;
	t->unsaved_last = e;
	e->unsaved = true;
}

static void owner_leave(struct recent *e)
{
	struct owner *o = e->owner;

	*(e->newer ? &e->newer->older : &o->newest) = e->older;
	*(e->older ? &e->older->newer : &o->oldest) = e->newer;
	o->count--;
}

static void owner_join(struct recent *e)
{
	struct owner *o = e->owner;

	e->newer = NULL;
	e->older = o->newest;
	*(o->newest ? &o->newest->newer : &o->oldest) = e;
	o->newest = e;
	o->count++;
}

/* Takes it out of everything but the list of the group in flight, whose end frees it then. */
static void forget(struct refusals *t, struct recent *e)
{
	struct recent **at;

	for (at = key_bucket(t, e->key); *at != e; at = &(*at)->next_key)
		;
	*at = e->next_key;
	for (at = revision_bucket(t, e->revision); *at != e; at = &(*at)->next_revision)
		;
	*at = e->next_revision;
	unsaved_leave(t, e);
	owner_leave(e);
	if (e->noted)
		e->gone = true;
	else
		free(e);
}

static void settle(struct refusals *t, enum settled how);

void refusals_free(struct refusals *t)
{
	if (!t)
		return;
	settle(t, TAKEN_BACK);
	for (unsigned i = 0; i < OWNER_BUCKETS; i++)
		for (struct owner *o = t->owners[i], *next; o; o = next) {
			next = o->next;
			while (o->oldest)
				forget(t, o->oldest);
			free(o);
		}
	pthread_mutex_destroy(&t->lock);
	free(t);
}

static struct recent *find(struct refusals *t, const struct owner *o, const uint8_t key[REFUSAL_KEY])
{
	for (struct recent *e = *key_bucket(t, key); e; e = e->next_key)
		if (e->owner == o && memcmp(e->key, key, REFUSAL_KEY) == 0)
			return e;
	return NULL;
}

static struct owner *owner_of(struct refusals *t, const struct pw_uuid *id, int64_t now_ms)
{
	struct owner **bucket = owner_bucket(t, id), *o;

	for (o = *bucket; o; o = o->next)
		if (pw_uuid_equal(&o->id, id))
			return o;
	o = calloc(1, sizeof *o);
	if (!o)
		return NULL;
	*o = (struct owner){
		.id = *id, .credit = (int64_t)t->limits.burst * CREDIT, .filled_ms = now_ms, .next = *bucket
	};
	*bucket = o;
	return o;
}

static void fill(const struct refusals *t, struct owner *o, int64_t now_ms)
{
	int64_t most = (int64_t)t->limits.burst * CREDIT, passed = now_ms - o->filled_ms;

	o->filled_ms = now_ms;
	if (passed <= 0)
		return; /* the clock was set back */
	if (passed > most)
		passed = most; /* the product below cannot wrap, and the rate is at least one a second */
	o->credit += passed * t->limits.rate;
	if (o->credit > most)
		o->credit = most;
}

static void note_owner(struct refusals *t, struct owner *o)
{
	if (o->noted)
		return;
	o->noted = true;
	o->next_noted = t->noted_owners;
	t->noted_owners = o;
}

static void note_entry(struct refusals *t, struct recent *e)
{
	if (e->noted)
		return;
	e->noted = true;
	e->next_noted = t->noted;
	t->noted = e;
}

static bool is_over(const struct refusals *t, const struct recent *e, int64_t now_ms)
{
	return now_ms < e->first_ms || now_ms - e->first_ms >= (int64_t)t->limits.repeat_seconds * 1000;
}

static void make_room(struct refusals *t, struct recent *e, struct repeats *lost)
{
	if (e->count != e->saved_count)
		*lost = (struct repeats){ e->revision, e->count, e->last_ms };
	forget(t, e);
}

static enum noted add(struct refusals *t, struct owner *o, const uint8_t key[REFUSAL_KEY], int64_t now_ms,
		      uint64_t revision)
{
	struct recent *e = calloc(1, sizeof *e), **bucket;

	if (!e)
		return NOTED_NO_MEMORY;
	*e = (struct recent){
		.owner = o, .revision = revision, .first_ms = now_ms, .last_ms = now_ms, .count = 1, .saved_count = 1
	};
	memcpy(e->key, key, REFUSAL_KEY);
	bucket = key_bucket(t, key);
	e->next_key = *bucket;
	*bucket = e;
	bucket = revision_bucket(t, revision);
	e->next_revision = *bucket;
	*bucket = e;
	owner_join(e);
	note_entry(t, e);
	o->credit -= CREDIT;
	o->taken += CREDIT;
	t->in_group.kept++;
	return NOTED_NEW;
}

static enum noted note(struct refusals *t, const struct pw_uuid *owner, const uint8_t key[REFUSAL_KEY], int64_t now_ms,
		       uint64_t revision, struct repeats *lost)
{
	struct owner *o = owner_of(t, owner, now_ms);
	struct recent *e;

	*lost = (struct repeats){ 0 };
	if (!o)
		return NOTED_NO_MEMORY;
	note_owner(t, o);
	t->group_ms = now_ms;
	e = find(t, o, key);
	if (e && !is_over(t, e, now_ms)) {
		note_entry(t, e);
		e->count++;
		e->last_ms = now_ms;
		owner_leave(e);
		owner_join(e);
		t->in_group.repeats++;
		return NOTED_REPEAT;
	}
	fill(t, o, now_ms);
	if (o->credit < CREDIT) {
		t->in_group.not_kept++;
		return NOTED_TOO_MANY;
	}
	if (e || o->count >= t->limits.recent)
		make_room(t, e ? e : o->oldest, lost);
	return add(t, o, key, now_ms, revision);
}

enum noted refusals_note(struct refusals *t, const struct pw_uuid *owner, const uint8_t key[REFUSAL_KEY],
			 int64_t now_ms, uint64_t revision, struct repeats *lost)
{
	enum noted how;

	pthread_mutex_lock(&t->lock);
	how = note(t, owner, key, now_ms, revision, lost);
	pthread_mutex_unlock(&t->lock);
	return how;
}

static void settle_entry(struct refusals *t, struct recent *e, enum settled how)
{
	e->noted = false;
	if (e->gone) {
		free(e);
	} else if (how == SETTLED) {
		e->settled_count = e->count;
		e->settled_ms = e->last_ms;
		if (e->count != e->saved_count)
			unsaved_join(t, e);
	} else if (!e->settled_count) {
		forget(t, e);
	} else {
		e->count = e->settled_count;
		e->last_ms = e->settled_ms;
	}
}

static struct minute *minute_of(struct refusals *t, int64_t minute)
{
	struct minute *m = &t->minutes[(uint64_t)minute % PW_ARRAY_LEN(t->minutes)];

	if (m->at != minute)
		*m = (struct minute){ .at = minute };
	return m;
}

static void counts_add(struct refusal_counts *to, const struct refusal_counts *c)
{
	to->kept += c->kept;
	to->repeats += c->repeats;
	to->not_kept += c->not_kept;
}

static void settle(struct refusals *t, enum settled how)
{
	struct recent *e = t->noted;
	struct owner *o = t->noted_owners;

	if (!o)
		return;
	t->noted = NULL;
	t->noted_owners = NULL;
	for (struct recent *next; e; e = next) {
		next = e->next_noted;
		settle_entry(t, e, how);
	}
	for (; o; o = o->next_noted) {
		if (how == TAKEN_BACK)
			o->credit += o->taken;
		o->taken = 0;
		o->noted = false;
	}
	if (how == SETTLED)
		counts_add(&minute_of(t, t->group_ms / MINUTE_MS)->c, &t->in_group);
	t->in_group = (struct refusal_counts){ 0 };
}

void refusals_settle(struct refusals *t, enum settled how)
{
	pthread_mutex_lock(&t->lock);
	settle(t, how);
	pthread_mutex_unlock(&t->lock);
}

size_t refusals_unsaved(struct refusals *t, struct repeats *out, size_t n)
{
	size_t found = 0;

	pthread_mutex_lock(&t->lock);
	for (struct recent *e = t->unsaved_first; e && found < n; e = e->behind)
		out[found++] = (struct repeats){ e->revision, e->settled_count, e->settled_ms };
	pthread_mutex_unlock(&t->lock);
	return found;
}

static struct recent *find_revision(struct refusals *t, uint64_t revision)
{
	for (struct recent *e = *revision_bucket(t, revision); e; e = e->next_revision)
		if (e->revision == revision)
			return e;
	return NULL;
}

void refusals_saved(struct refusals *t, const struct repeats *saved, size_t n)
{
	pthread_mutex_lock(&t->lock);
	for (size_t i = 0; i < n; i++) {
		struct recent *e = find_revision(t, saved[i].revision);

		if (!e)
			continue;
		e->saved_count = saved[i].count;
		unsaved_leave(t, e);
		if (e->saved_count != e->settled_count)
			unsaved_join(t, e); /* behind those that still wait */
	}
	pthread_mutex_unlock(&t->lock);
}

static void forget_of(struct refusals *t, struct owner **at, int64_t now_ms)
{
	struct owner *o = *at;

	for (struct recent *e = o->oldest, *newer; e; e = newer) {
		newer = e->newer;
		if (!e->unsaved && !e->noted && is_over(t, e, now_ms))
			forget(t, e);
	}
	fill(t, o, now_ms);
	if (o->count || o->noted || o->credit < (int64_t)t->limits.burst * CREDIT)
		return;
	*at = o->next;
	free(o);
}

void refusals_forget(struct refusals *t, int64_t now_ms)
{
	pthread_mutex_lock(&t->lock);
	for (unsigned i = 0; i <= OWNER_BUCKETS / FORGET_PARTS; i++) {
		struct owner **at = &t->owners[t->forget_at];

		while (*at) {
			struct owner *o = *at;

			forget_of(t, at, now_ms);
			if (*at == o)
				at = &o->next;
		}
		t->forget_at = (t->forget_at + 1) % OWNER_BUCKETS;
	}
	pthread_mutex_unlock(&t->lock);
}

bool refusals_find(struct refusals *t, uint64_t revision, struct repeats *out)
{
	const struct recent *e;
	bool found;

	pthread_mutex_lock(&t->lock);
	e = find_revision(t, revision);
	found = e && e->settled_count;
	if (found)
		*out = (struct repeats){ revision, e->settled_count, e->settled_ms };
	pthread_mutex_unlock(&t->lock);
	return found;
}

void refusals_last_hour(struct refusals *t, int64_t now_ms, struct refusal_counts *out)
{
	int64_t now = now_ms / MINUTE_MS;

	*out = (struct refusal_counts){ 0 };
	pthread_mutex_lock(&t->lock);
	for (size_t i = 0; i < PW_ARRAY_LEN(t->minutes); i++)
		if (t->minutes[i].at > now - MINUTES && t->minutes[i].at <= now)
			counts_add(out, &t->minutes[i].c);
	pthread_mutex_unlock(&t->lock);
}

void refusals_load(struct refusals *t, int64_t minute, const struct refusal_counts *c)
{
	pthread_mutex_lock(&t->lock);
	counts_add(&minute_of(t, minute)->c, c);
	pthread_mutex_unlock(&t->lock);
}
