/* agents/agent.h
 *
 * The agent's state, its registration and its lease. It stands `registered` with an epoch, or `apart`: then nothing
 * is taken to the ledger until it has registered and resynced again.
 *
 * Locks, in this order: `work` (the backend and everything that changes hardware or ledger, batches in their order),
 * then `mu` (standing, lease, stopping). No call to the server is made under `mu`.
 */
#ifndef PW_AGENTS_AGENT_H
#define PW_AGENTS_AGENT_H
#include <pthread.h>

#include "agents/alog.h"
#include "agents/backend.h"
#include "agents/heard.h"
#include "agents/options.h"
#include "agents/own.h"
#include "agents/seq.h"
#include "api/client.h"

#define AGENT_VERSION "0.1.0"

enum agent_standing { STANDING_APART, STANDING_REGISTERED };

/* The last exit of a VM's vCPU 0 that the ledger was told of. */
#define EXITS_TOLD_MAX 256
struct exit_told {
	struct pw_uuid vm;
	uint64_t hash; /* 0: none */
};

struct arch_law;
struct agent {
	const struct agent_options *options; /* borrowed */
	char *token;                         /* or NULL */
	struct backend *backend;
	struct backend_info info;
	const struct arch_law *
		law; /* by whose items the ledger is told of changes; NULL: by the law's own operations. Under `work` */
	char host[PW_UUID_TEXT];
	char name[128];
	char boot_id[BOOT_ID_MAX];

	pthread_mutex_t work;
	struct seq seq;                         /* of batches */
	struct heard heard;                     /* what the ledger said last */
	struct own own;                         /* which of its revisions are this agent's */
	json_t *unknown;                        /* what there is to report of unknown VMs, by their ids; owned */
	bool unknown_told;                      /* and the ledger was told */
	uint64_t stuck_reported;                /* a hash of the stuck frames that are in quarantine already */
	struct exit_told exits[EXITS_TOLD_MAX]; /* exits.c */
	bool exit_refused;                      /* the last report was, and the log says so */

	pthread_mutex_t mu;
	pthread_cond_t changed; /* CLOCK_MONOTONIC */
	enum agent_standing standing;
	uint64_t epoch;
	uint64_t registrations; /* since the start */
	uint64_t watch_after;   /* events up to this revision are in what the last resync compared */
	unsigned lease_seconds;
	bool stopping, resync_wanted;
	volatile sig_atomic_t poll_stop; /* ends the long poll early */
	volatile sig_atomic_t stop_now;  /* the agent stops: ends every call but those for what is in hand */
	volatile sig_atomic_t stop_late; /* and its grace is over: ends those, too */
	bool ended;                      /* nobody is to be given a grace any more */
};

/* A thread's own way to the server. */
struct worker {
	struct agent *agent;
	struct client *client;
	bool in_hand; /* an operation, or a guest's wish: a stop gives its calls a grace */
};
enum pw_status worker_open(struct worker *w, struct agent *a, struct pw_err *err) PW_MUST_CHECK;
void worker_close(struct worker *w);

/* Takes the backend over (on success). PW_STORAGE: the state folder. */
enum pw_status agent_init(struct agent *a, const struct agent_options *o, struct backend *b,
			  struct pw_err *err) PW_MUST_CHECK;
void agent_release(struct agent *a);

/* The file of an emulated machine, or NULL without a state folder; the caller's. */
char *agent_machine_path(const struct agent_options *o);

/* One try. PW_OK: epoch and lease are new; the caller resyncs and then calls agent_stand_registered. */
enum pw_status agent_register(struct worker *w, struct pw_err *err) PW_MUST_CHECK;
json_t *agent_registration(const struct agent *a); /* the body of that call; NULL: no memory */

void agent_stand_registered(struct agent *a);
void agent_stand_apart(struct agent *a, const char *why); /* and wakes who can register again */
void agent_want_resync(struct agent *a);                  /* register and resync at the next chance */
void agent_stop(struct agent *a);
void agent_grace(
	struct agent *a); /* after agent_stop: returns when nothing is in hand any more or the grace (8 s) is over */
void agent_end(struct agent *a); /* the threads have ended: no grace is needed */
void agent_wait_stop(struct agent *a);
bool agent_is_stopping(struct agent *a);
bool agent_is_registered(struct agent *a);
uint64_t agent_epoch(struct agent *a);
/* Waits until ms have passed or something changed. True: the agent stops. */
bool agent_pause(struct agent *a, unsigned ms);

/* Back-off: full jitter below base * 2^n, base 100 ms, at most 10 s. */
unsigned backoff_ms(unsigned tries, uint64_t *random_state);
uint64_t next_random(uint64_t *state); /* splitmix64 */
uint64_t now_ms(void);                 /* monotonic */
void random_bytes(void *out, size_t size);

/* Threads, each with a struct agent *. */
void *agent_heartbeats(void *agent);
/* Registers (with back-off, for ever), resyncs, stands registered. False: the agent stops. Takes `work`. */
bool agent_come_back(struct worker *w);

#endif
