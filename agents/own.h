/* agents/own.h
 *
 * Which revisions of the ledger are this agent's own doing: so that it looks at what others changed, and not at each of
 * its own batches. Known from answers, never from a name: a revision that is in doubt counts as somebody else's, which
 * costs a comparison. Any thread.
 */
#ifndef PW_AGENTS_OWN_H
#define PW_AGENTS_OWN_H
#include <pthread.h>

#include "engine/status.h"

#define OWN_MAX 1024 /* stretches that are remembered; the oldest go first */

struct own_stretch {
	uint64_t first, last;
	const char *type; /* static text: only events of this type; NULL: any */
};
struct own {
	pthread_mutex_t mu;
	struct own_stretch v[OWN_MAX]; /* in order; a ring would save what a move of 24 KiB costs once in a while */
	size_t n;
};
void own_init(struct own *o);
void own_release(struct own *o);
/* Revisions first..last are of this agent (nothing if last < first). */
void own_add(struct own *o, uint64_t first, uint64_t last, const char *type);
bool own_has(struct own *o, uint64_t revision, const char *type);
void own_forget(struct own *o, uint64_t through); /* those up to a revision are not asked for any more */

#endif
