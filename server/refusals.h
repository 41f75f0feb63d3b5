/* server/refusals.h
 *
 * What was refused lately, and to whom: which refusal repeats one of the last minute, and which is more than its
 * owner's share. Pure state: the time is handed in, and whoever keeps violations is told what to put down.
 *
 * Owners do not see each other: each has a budget of new violations, and a number of recent ones that are remembered.
 *
 * Threads: one thread notes and settles; the rest may be called from any.
 */
#ifndef PW_SERVER_REFUSALS_H
#define PW_SERVER_REFUSALS_H
#include "engine/uuid.h"

struct refusals;

struct refusal_limits {
	unsigned repeat_seconds; /* so long after the first one it is a repeat */
	unsigned rate, burst;    /* new violations of an owner: a second, and at once */
	unsigned recent;         /* of an owner, that are remembered */
};
/* NULL: out of memory. */
struct refusals *refusals_new(const struct refusal_limits *limits);
void refusals_free(struct refusals *t);

/* What is known of a violation beyond its first refusal. */
struct repeats {
	uint64_t revision; /* the violation's */
	uint64_t count;    /* refusals, the first one included */
	int64_t last_ms;
};

#define REFUSAL_KEY 16
enum noted {
	NOTED_NEW,      /* a violation: put it down */
	NOTED_REPEAT,   /* one more of a violation that is known */
	NOTED_TOO_MANY, /* past the budget: it is only counted */
	NOTED_NO_MEMORY
};
/*
 * key: a digest of all that makes two refusals the same. `revision` is the violation's if it is new. What had to make
 * room and is not saved yet is *lost (else lost->revision is 0): the caller saves it.
 * Takes effect with refusals_settle.
 */
enum noted refusals_note(struct refusals *t, const struct pw_uuid *owner, const uint8_t key[REFUSAL_KEY],
			 int64_t now_ms, uint64_t revision, struct repeats *lost) PW_MUST_CHECK;
/* All that was noted since the last call happened, or did not. */
enum settled { SETTLED, TAKEN_BACK };
void refusals_settle(struct refusals *t, enum settled how);

/* Up to n violations whose repeats are not saved, longest unsaved first; settled ones only. And: these were saved. */
size_t refusals_unsaved(struct refusals *t, struct repeats *out, size_t n);
void refusals_saved(struct refusals *t, const struct repeats *saved, size_t n);
/* Forgets what cannot be repeated any more, some of it: a tenth of all owners. */
void refusals_forget(struct refusals *t, int64_t now_ms);

/* The settled repeats of a violation that is remembered. */
bool refusals_find(struct refusals *t, uint64_t revision, struct repeats *out) PW_MUST_CHECK;

struct refusal_counts {
	uint64_t kept;     /* violations */
	uint64_t repeats;  /* refusals beyond the first one of each */
	uint64_t not_kept; /* beyond the budgets */
};
/* What was settled within the hour before now_ms, to the minute. */
void refusals_last_hour(struct refusals *t, int64_t now_ms, struct refusal_counts *out);
/* From before this start. */
void refusals_load(struct refusals *t, int64_t minute, const struct refusal_counts *c);

#endif
