/* A short sorted list of stretches of revisions; neighbours join, so that an agent that is alone has one. */
#include "agents/own.h"

#include <string.h>

void own_init(struct own *o)
{
	pthread_mutex_init(&o->mu, NULL);
	o->n = 0;
}

void own_release(struct own *o)
{
	pthread_mutex_destroy(&o->mu);
}

static bool joins(const struct own_stretch *s, uint64_t first, const char *type)
{
	return s->last + 1 == first && !s->type && !type;
}

static void drop_first(struct own *o, size_t n)
{
	o->n -= n;
	memmove(o->v, o->v + n, o->n * sizeof *o->v);
}

void own_add(struct own *o, uint64_t first, uint64_t last, const char *type)
{
	struct own_stretch *s;

	if (last < first)
		return;
	pthread_mutex_lock(&o->mu);
	s = o->n ? &o->v[o->n - 1] : NULL;
	if (s && joins(s, first, type)) {
		s->last = last;
	} else {
		if (o->n == OWN_MAX)
			drop_first(o, OWN_MAX / 4);
		o->v[o->n++] = (struct own_stretch){ first, last, type };
	}
	pthread_mutex_unlock(&o->mu);
}

bool own_has(struct own *o, uint64_t revision, const char *type)
{
	bool has = false;

	pthread_mutex_lock(&o->mu);
	for (size_t i = o->n; i > 0 && !has; i--) {
		const struct own_stretch *s = &o->v[i - 1];

		has = s->first <= revision && revision <= s->last && (!s->type || strcmp(s->type, type) == 0);
	}
	pthread_mutex_unlock(&o->mu);
	return has;
}

void own_forget(struct own *o, uint64_t through)
{
	size_t n = 0;

	pthread_mutex_lock(&o->mu);
	while (n < o->n && o->v[n].last <= through)
		n++;
	drop_first(o, n);
	pthread_mutex_unlock(&o->mu);
}
