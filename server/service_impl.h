/* server/service_impl.h
 *
 * What the parts of the service share. Who may touch what:
 *
 *   state  (ledger, operations, tokens, revision): written by the writer thread alone, under `lock` for writing; read
 * by anyone under `lock` for reading. What is read may not be durable yet: see handle_read. queue  (queue, readers,
 * waiters, commits): under `mutex`.
 *
 * Order of locks: lock, then mutex. Neither is held during a commit, a read of the store, or a resume.
 */
#ifndef PW_SERVER_SERVICE_IMPL_H
#define PW_SERVER_SERVICE_IMPL_H
#include <pthread.h>
#include <stdatomic.h>

#include "engine/index.h"
#include "server/jobs.h"
#include "server/lease.h"
#include "server/queue.h"
#include "server/reads.h"
#include "server/record.h"
#include "server/refusals.h"
#include "server/service.h"

struct operation {
	struct pw_uuid id, vm, host;
	enum operation_kind kind;
	enum operation_state state;
	uint64_t host_epoch; /* for which it runs */
	int64_t created_ms, started_ms, finished_ms;
	uint64_t revision;
	bool deliver;  /* running, but to be given out again: its host has registered anew */
	bool again;    /* running, and given out more than once for this epoch; not in the picture */
	uint32_t slot; /* of unplug: the one that goes */
	char *params;  /* heap, JSON; never NULL */
	char *problem; /* heap, JSON, or NULL */
	/* Where it is in the lists of operation_lists.c: unfinished, in its host's and its VM's; finished, in its
	 * host's and the fleet's. */
	struct operation_link {
		struct operation *older, *newer;
	} at[2];
};
enum operation_place { OPERATION_OF_HOST, OPERATION_OF_VM, OPERATION_OF_FLEET = OPERATION_OF_VM };
struct operation_list {
	struct operation *oldest, *newest;
	size_t count;
};
#define OPERATION_BUCKETS 4096

/* The end of a VM (its deletion), or of one of its slots, that the ledger recorded: ends.c. */
#define END_OF_VM         ((int64_t)-1)
struct end {
	struct pw_uuid vm;
	int64_t slot; /* its number, or END_OF_VM */
	struct pw_uuid host;
	uint64_t revision;
	int64_t time_ms;
};

struct token {
	struct pw_uuid id;
	enum role role;
	struct pw_uuid host;
	char name[CODEC_NAME_MAX];
	uint8_t hash[STORE_HASH]; /* of the secret */
	int64_t created_ms;
	uint64_t revision;
	struct token *leaving; /* the next one of service.leaving */
};

/* What the ledger does not know of a host: host->note. */
struct host_note {
	char *backends; /* heap, JSON */
	char agent_version[CODEC_NAME_MAX];
	_Atomic int64_t last_seen_ms; /* UTC, for people */
	struct lease lease;
	bool unreachable;       /* said so in the feed */
	bool pictured;          /* ... when it was last copied for a picture */
	uint64_t registrations; /* since this server started */
	uint64_t last_event;    /* none of its events is of a later revision */
	uint64_t stirred;       /* the last group that has events of it */
	struct operation_list active, finished;
	size_t pending, waiting; /* of the active ones: not handed out yet, to be handed out (again) */
};

/* How far the writer has copied the state for a picture: picture.c. */
struct taking {
	bool full;             /* the picture is whole */
	bool all;              /* this pass takes all, not only what has changed */
	uint64_t since, began; /* a pass takes what is of a later revision than `since`; when this one began */
	unsigned pass;         /* 1: the first */
	size_t list;           /* of hosts, VMs, operations; past them: the pass is over */
	bool begun, inside;    /* it got to `at`; and that is a VM whose tree is not through yet */
	struct pw_uuid at;
};

struct service {
	const struct config *config;
	struct store *store;

	pthread_rwlock_t lock;
	struct pw_mem mem;
	struct ledger *ledger;
	struct index operations;
	struct index vm_operations; /* the same operations, in the order of VM and id */
	unsigned char hash_key[16];
	struct operation_list operations_of_vms[OPERATION_BUCKETS]; /* the unfinished ones, by a hash of their VM */
	struct operation_list finished;
	size_t operation_counts[OPERATION_STATE_COUNT];
	pthread_rwlock_t
		tokens_lock; /* what follows; taken under `lock` by who changes it, alone by who authenticates */
	struct index tokens;
	struct token *leaving; /* deleted by the group in flight: valid until that is durable (L7) */
	struct index vcpus;    /* of protected VMs: vcpus.c */
	struct index ends;     /* of VMs and slots: ends.c */
	bool restored_said;    /* ledger.restored, since this start */
	uint64_t ends_from;    /* those of revisions below are forgotten */
	struct index unknown;  /* VMs that hosts report: unknown.c */
	struct pw_uuid *lost;  /* VMs that lose frames by the quarantine under way */
	size_t lost_count, lost_room;
	uint64_t revision; /* of the last change, durable or not */
	uint64_t durable;  /* of the last durable change */
	uint64_t group;    /* number of the group that is being applied or committed, or was last */
	bool uncommitted;  /* that group is not through yet */
	bool torn;         /* its change is half made, and lets readers in: nothing may be answered from it but what is
			      a host's or token's own */

	pthread_mutex_t mutex;
	pthread_cond_t wake;         /* the writer has something to do; CLOCK_MONOTONIC */
	struct queue queue;          /* changes */
	struct request_list readers; /* read state of the group in flight, have their answers */
	struct waiters waiters;      /* long polls */
	uint64_t groups_done;        /* number of the last group that is through */
	uint64_t group_failed;       /* number of the last group that the disk refused */
	bool draining, stop;
	_Atomic bool cut; /* service_cut; set with `mutex` */
	bool committing;  /* the disk has the group in flight, or not everybody in it has his answer */
	pthread_t writer;
	bool writer_runs;

	/* The writer's own. */
	struct records records;
	bool group_broken;        /* the store failed within the group, or the server stops */
	bool group_cut;           /* for the latter */
	bool group_writes;        /* answers were saved: there is something to commit even without records */
	uint64_t locked_ns;       /* since when it has the lock */
	uint64_t turn_ns;         /* since when it is the request's turn */
	struct wait_key *stirred; /* what this group has news of */
	size_t stirred_count, stirred_capacity;
	bool stirred_all; /* there was no memory to say of what */
	bool stored;      /* the request that is being applied has put something into the store */
	struct pw_err group_err;
	int64_t group_time_ms;
	uint64_t next_tick_ms;
	struct taking taking;

	/* The painter's, with `mutex`. */
	pthread_t painter;
	bool painter_runs, painter_stop;
	pthread_cond_t painter_wake;
	bool picture_wanted, picture_fresh; /* a piece, the first of a new picture */
	struct picture_work *picture_ready;
	bool picture_open;                /* pieces of one are saved, and more are to come */
	_Atomic int64_t picture_since_ms; /* monotonic: tried since then without success; 0: saved */
	_Atomic int64_t picture_saved_ms; /* UTC; 0: not since the start */
	_Atomic int64_t picture_took_ms;
	char picture_fault[256];                          /* why the last one could not be saved; "": it could */
	uint64_t pictured;                                /* revision of the saved picture */
	_Atomic bool repaint;                             /* the last picture was lost: the next one must be whole */
	struct pw_uuid *deleted_vms, *deleted_operations; /* since the last picture; state */
	size_t deleted_vm_count, deleted_operation_count;

	pthread_t upkeep; /* upkeep.c; with `mutex` */
	bool upkeep_runs, upkeep_stop;
	pthread_cond_t upkeep_wake;

	struct refusals *refusals; /* which repeat, which are too many: violations.c */

	struct lease_clock leases; /* ticked by the writer */

	/* What service_start is doing: service_progress. */
	_Atomic enum start_step { START_FILES, START_PICTURE, START_JOURNAL } start_step;
	_Atomic uint64_t start_moves, start_replayed, start_total;
	struct reads *reads; /* NULL before the start, as is: */
	struct jobs *jobs;
	struct history_index *history;
	struct feed_ring *feed;

	_Atomic bool ready, disk_refuses;
	int64_t started_ms;
};

/* clock.c */
int64_t clock_utc_ms(void);
int64_t clock_monotonic_ms(void);
int64_t clock_boot_ms(void); /* goes on while the machine is suspended */
uint64_t clock_monotonic_ns(void);
struct pw_uuid uuid_fresh(void);

/* --- writer.c: how requests reach the state --- */

/* handle of a route that reads state: calls route->act under the read lock. Its answer is sent when all that it may
 * show is durable. */
enum handled handle_read(struct service *sv, struct request *r);
/* handle of a route that changes state: route->prepare (if any) decodes on the HTTP thread (false: it has answered),
 * then route->act decides on the writer thread, inside a group. */
enum handled handle_change(struct service *sv, struct request *r);
/* Parks a request as a change; its route's act will run. */
enum handled park_change(struct service *sv, struct request *r);
/*
 * Parks a long poll until there is news of that kind about `id` (WAIT_REVISION: NULL; until a change past `after` is
 * durable), its deadline, its token's deletion, or the end. With the state's lock held for reading since the caller
 * looked whether there is news already. False: it is over (r->deadline_ms); answer with what there is.
 */
bool park_wait(struct service *sv, struct request *r, enum wait_kind kind, const struct pw_uuid *id, uint64_t after);
size_t service_waiting(struct service *sv); /* long polls */
/* r->deadline_ms from ?wait=SECONDS (0..300), once; false: answered. */
bool wait_deadline(struct request *r) PW_MUST_CHECK;

/* The state's lock for reading. False: the server stops and the writer does not let go of it; answer with that. */
bool state_read_lock(struct service *sv) PW_MUST_CHECK;
enum handled answer_stopping(struct request *r);

enum pw_status writer_start(struct service *sv, struct pw_err *err) PW_MUST_CHECK;
void writer_stop(struct service *sv);

/*
 * A prepare that decodes the request's body into a heap struct of its own, which becomes r->job:
 *	DECODE_JOB(vm)   gives   struct vm_job { struct vm_body b; struct body *owner; }   and   prepare_vm()
 */
#define DECODE_JOB(name)                                                                              \
	struct name##_job {                                                                           \
		struct name##_body b;                                                                 \
		struct body *owner;                                                                   \
	};                                                                                            \
	static void name##_job_free(void *job)                                                        \
	{                                                                                             \
		codec_release(((struct name##_job *)job)->owner);                                     \
		free(job);                                                                            \
	}                                                                                             \
	static bool prepare_##name(struct service *sv, struct request *r)                             \
	{                                                                                             \
		struct name##_job *job = r->job ? r->job : calloc(1, sizeof *job);                    \
		struct codec_fault fault;                                                             \
                                                                                                      \
		if (!job) {                                                                           \
			answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while reading the body"); \
			return false;                                                                 \
		}                                                                                     \
		if (r->job)                                                                           \
			return true;                                                                  \
		if (!codec_##name(r->body, r->body_size, &job->b, &job->owner, &fault)) {             \
			free(job);                                                                    \
			answer_fault(r, &fault);                                                      \
			return false;                                                                 \
		}                                                                                     \
		r->job = job;                                                                         \
		r->job_free = name##_job_free;                                                        \
		return true;                                                                          \
	}

/* Within act, on the writer thread. What an act has changed is taken back when it answers 500 or more, when its records
 * failed, and with its group. */

/* The revision that the next record gets. */
uint64_t next_revision(const struct service *sv);
/* Starts the event `type`; members follow; event_end gives it its revision. */
void event_begin(struct jsonw *w, const char *type, const struct request *r);
uint64_t event_end(struct service *sv, struct jsonw *w);
const char *actor_of(const struct request *r); /* r NULL: the server itself */
uint64_t event_item(struct service *sv, const struct request *r, const struct host *h, const struct item *it);
/* In the middle of a change that must be whole: lets go of the lock for a moment, if it was held for some time. Readers
 * that come in find `torn`. Nothing may be half moved in any tree or list. */
void let_readers_in(void *service);
/* Should a request that can go on later (r->unfinished) end its turn? */
bool turn_is_over(struct service *sv) PW_MUST_CHECK;
/* The group has news: who waits for it is woken at its end. Events do this for their hosts by themselves. */
void stir(struct service *sv, enum wait_kind kind, const struct pw_uuid *id);
/* Sets a `revision` field, undoably. False: out of memory, nothing changed. */
bool touch(struct service *sv, uint64_t *revision, uint64_t to) PW_MUST_CHECK;
/* The store failed while a request was applied: the whole group will be taken back. */
void group_break(struct service *sv, const struct pw_err *err);
void group_out_of_memory(struct service *sv);
/* Opens the store's transaction when the group first needs it. False: the group is broken. */
bool group_store(struct service *sv) PW_MUST_CHECK;

/* --- violations.c, within a group --- */

/* Records a refusal in feed and list of violations, or counts it. */
void note_violation(struct service *sv, const struct request *r, const struct host *h, const struct pw_uuid *vm,
		    const struct refusal *why);
void note_refused_item(struct service *sv, const struct request *r, const struct host *h, const struct item *it,
		       const struct refusal *why);
/* Outside of a group, any thread: puts down repeats that are only in memory, some of them. True: there may be more.
 * What the disk refuses stays in memory. */
bool violations_save_some(struct service *sv);
/* At the start: what the last hour had. */
enum pw_status violations_load(struct service *sv, struct pw_err *err) PW_MUST_CHECK;
/* As the list shows it. Any thread. */
void violation_write(struct service *sv, struct jsonw *w, const struct violation *v);

/* --- answers.c: saved answers, within a group --- */

#define ANSWER_LIFE_MS ((int64_t)24 * 3600 * 1000)

/* False if there is none, or the group broke; out->memory is to be freed. */
bool answer_find(struct service *sv, const char *scope, const char *key, struct answer *out) PW_MUST_CHECK;
void answer_save(struct service *sv, const char *scope, const char *key, const struct answer *a);
void answer_again(struct request *r, const struct answer *a);
/* Fills r->digest: what a kept answer is told by. On an HTTP thread: a body may be long. */
void request_digest(struct request *r);
/* Idempotency: the same key of the same token gets the first answer again, unless a fence has taken from the caller
 * what it speaks of. True: it is answered, or the group broke. */
bool answered_before(struct service *sv, struct request *r) PW_MUST_CHECK;
void keep_answer(struct service *sv, struct request *r);

/* --- upkeep.c --- */
enum pw_status upkeep_start(struct service *sv, struct pw_err *err) PW_MUST_CHECK;
void upkeep_stop(struct service *sv);

/* --- redo.c, picture.c, painter.c, picture_load.c --- */
enum pw_status service_load(struct service *sv, struct pw_err *err) PW_MUST_CHECK;
enum pw_status picture_load(struct service *sv, struct pw_err *err) PW_MUST_CHECK;
enum pw_status redo_event(struct service *sv, const struct record *rec, struct pw_err *err) PW_MUST_CHECK;
enum pw_status painter_start(struct service *sv, struct pw_err *err) PW_MUST_CHECK;
void painter_stop(struct service *sv);
/* On the writer thread, between groups: hands the painter a piece of the picture that it asked for. */
void picture_take(struct service *sv);
/* All threads have ended. What cannot be saved in the time that a stop has is left to the next start's replay. */
enum pw_status picture_last(struct service *sv, struct pw_err *err) PW_MUST_CHECK;
/* Why pictures could not be saved for picture-stale-seconds, in words; false: they could, or not for so long. */
bool picture_is_stale(struct service *sv, char *why, size_t size) PW_MUST_CHECK;
/* False: out of memory, and the next picture will be whole. */
bool note_deleted(struct pw_uuid **list, size_t *count, const struct pw_uuid *id, _Atomic bool *repaint);

/* events.c: the store failed a read */
enum handled answer_store(struct request *r, const struct pw_err *err);

/* --- The subjects: hosts.c, pools.c, vms.c, transitions.c, operations.c, tokens.c, events.c, status.c ---
 * Route actions, and what others need of them. `do_` functions change state and are shared with redo. */
extern const char *const no_query[]; /* for query_known: takes no parameters */
bool may_act_for(struct request *r,
		 const struct pw_uuid *host) PW_MUST_CHECK; /* an agent: its own host only; answers 403 */
/* Is the host's holder (boot_id, epoch)? Else answers host-fenced. */
bool host_is_held(struct request *r, const struct host *h, const char *boot_id, uint64_t epoch) PW_MUST_CHECK;
struct host *arg_host(struct service *sv, struct request *r, unsigned i); /* or NULL, answered */
struct vm *arg_vm(struct service *sv, struct request *r, unsigned i);

/* holder.c: in whose name a request would end what hardware has. Each answers when it returns false. */
struct holder {
	const char *boot_id; /* NULL: nobody's; of the holder otherwise, with the epoch */
	uint64_t epoch;
	bool force; /* an admin's word that the host is powered off */
};
bool query_flag(struct request *r, const char *name, bool *out) PW_MUST_CHECK; /* true or false; absent: false */
bool holder_from_query(struct request *r, struct holder *out) PW_MUST_CHECK;
bool force_allowed(struct request *r, bool force) PW_MUST_CHECK;
/* May it speak of what this host has at all? 403, 400, or 409 host-fenced. */
bool holder_is_sound(struct request *r, const struct host *h, const struct holder *by) PW_MUST_CHECK;
/* May it release what hardware may have? 409 host-alive; `instead` is the kind of operation to ask for. */
bool holder_may_release(const struct service *sv, struct request *r, const struct vm *vm, const struct holder *by,
			const char *instead) PW_MUST_CHECK;
/* May one who does not name the holder take frames from the host's VMs? 409 host-alive while its lease lives. */
bool unbinding_allowed(const struct service *sv, struct request *r, const struct host *h) PW_MUST_CHECK;
/* May an admin say that the host is powered off? 409 host-alive while its lease lives, unless forced. */
bool fence_allowed(const struct service *sv, struct request *r, const struct host *h, bool force) PW_MUST_CHECK;

struct host_note *host_note(const struct host *h);
const char *host_state(const struct service *sv, const struct host *h, int64_t monotonic_ms);
void hosts_hear(struct service *sv); /* on each tick: was it the server itself that could not hear? */
bool host_is_alive(const struct service *sv, const struct host *h); /* its lease lives, and it is not fenced */
void hosts_tick(struct service *sv); /* says which hosts went out of reach; inside a group */
bool hosts_tick_due(const struct service *sv);
enum pw_problem do_host(struct service *sv, const struct pw_uuid *id, const struct host_body *b, struct host_put *put,
			struct refusal *why) PW_MUST_CHECK;
/* quarantine.c: `revision` is that of the change, and becomes that of the VMs which lose frames. */
enum pw_problem do_quarantine(struct service *sv, struct host *h, const struct frames_body *b, int64_t time_ms,
			      uint64_t revision, struct refusal *why) PW_MUST_CHECK;
enum pw_problem do_unquarantine(struct service *sv, struct host *h, const struct frames_body *b,
				struct refusal *why) PW_MUST_CHECK;
enum pw_problem do_pool(struct service *sv, const char *name, const struct pool_body *b, struct pool **out,
			bool *created, struct refusal *why) PW_MUST_CHECK;
enum pw_problem do_vm(struct service *sv, const struct pw_uuid *id, const struct vm_body *b, struct vm **out,
		      struct refusal *why) PW_MUST_CHECK;
/* Tells of a step of the VM itself, which was applied; its revision. */
uint64_t say_vm_step(struct service *sv, const struct request *r, const struct vm *vm, const struct item *it);
/* Revision and time of the change: of the VM's or slot's end. */
enum pw_problem do_vm_delete(struct service *sv, struct vm *vm, uint64_t revision, int64_t time_ms,
			     struct refusal *why) PW_MUST_CHECK;
enum pw_problem do_slot_delete(struct service *sv, struct vm *vm, uint32_t number, uint64_t revision, int64_t time_ms,
			       struct refusal *why) PW_MUST_CHECK;

/* ends.c: adds or replaces one; undoable. */
enum pw_status end_put(struct service *sv, const struct end *e) PW_MUST_CHECK;
uint64_t vm_end_revision(const struct service *sv, const struct pw_uuid *vm); /* of its deletion; 0: not known */
void write_slot_ends(struct jsonw *w, const struct service *sv, const struct vm *vm); /* member `slots_ended` */
void ends_tick(struct service *sv, int64_t now_ms);                                   /* forgets old ones */
int ends_compare(const void *key, const void *item);
void ends_release(struct service *sv);

/* unknown.c: a VM that a host's hardware has and the ledger does not own, as its agent reported it. */
struct unknown {
	struct pw_uuid host, vm;
	char *report; /* heap, a JSON object: what the list shows of it */
	int64_t since_ms;
	uint64_t revision;
};
/* Adds or replaces one (taking u->report on success); undoable. */
enum pw_status unknown_put(struct service *sv, const struct unknown *u) PW_MUST_CHECK;
enum pw_status unknown_drop(struct service *sv, const struct pw_uuid *host, const struct pw_uuid *vm) PW_MUST_CHECK;
/* What a reboot or fence does: the host has no guests. */
enum pw_status unknown_forget(struct service *sv, const struct pw_uuid *host) PW_MUST_CHECK;
/* The report of that VM by that host; host NULL: by any, *count says how many. NULL: none. */
const struct unknown *unknown_find(const struct service *sv, const struct pw_uuid *vm, const struct pw_uuid *host,
				   size_t *count);
int unknown_compare(const void *key, const void *item);
void unknown_release(struct service *sv);

/* vms.c: the pages that a read of a VM asks for, by ?gfn= or ?gpa= (bytes), and ?count=. False: answered. */
struct query_window {
	uint64_t gfn, count;
	const char *alias; /* which one gpa named: "private" or "shared"; NULL: gfn did, or the VM has no aliases */
};
bool query_window(struct request *r, struct gfn_alias alias, unsigned page_shift,
		  struct query_window *out) PW_MUST_CHECK;
/* As list_end; "": no cursor. Says which alias the request named. */
void window_end(struct jsonw *w, const struct query_window *win, const char *next_cursor, const uint64_t *revision);

/* vcpus.c: one vCPU's report as journal and picture keep it; `items` is JSON. Undoable. */
struct vcpu_kept {
	uint64_t vcpu;
	const char *exit, *items;
	int64_t time_ms;
	uint64_t revision;
};
enum pw_problem vcpu_load(struct service *sv, struct vm *vm, const struct vcpu_kept *kept,
			  struct refusal *why) PW_MUST_CHECK;
/* The i-th of a VM. False: past the end. out->items is *items, heap, the caller's; NULL if there was no memory. */
bool vcpu_next(const struct service *sv, const struct vm *vm, size_t i, struct vcpu_kept *out,
	       char **items) PW_MUST_CHECK;
/* The VM goes; so many bytes of undo must have been reserved. */
void vcpus_forget(struct service *sv, const struct pw_uuid *vm);
size_t vcpus_undo_bytes(void);
int vcpus_compare(const void *key, const void *item);
void vcpus_release(struct service *sv);

struct operation *operation_find(const struct service *sv, const struct pw_uuid *id);
int operation_compare(const void *key, const void *item);
int operation_vm_compare(const void *key, const void *item); /* the key is an operation */
bool operation_is_active(const struct operation *o);         /* pending or running */
/* The VM's next unfinished one after that (NULL: its oldest); NULL: there is none. */
struct operation *operation_of_vm(struct service *sv, const struct pw_uuid *vm, const struct operation *after);
/* Adds one (taking params and problem of *o on success); undoable. PW_NOT_FOUND: there is no such host. */
enum pw_status operation_add(struct service *sv, const struct operation *o, struct operation **out) PW_MUST_CHECK;
/* Gives it the fields of *to (taking to->problem); undoable. */
enum pw_status operation_set(struct service *sv, struct operation *o, const struct operation *to) PW_MUST_CHECK;
void operations_tick(struct service *sv, int64_t now_ms); /* forgets old finished ones */
void operations_again(struct service *sv, const struct host *h);
void operations_release(struct service *sv);
/* leaving.c */
bool operation_is_end(enum operation_kind kind); /* while it runs, what it is for is leaving */
bool leaving_slot(const struct operation *o, uint32_t *out) PW_MUST_CHECK; /* of an unplug. False: no memory */
enum pw_status leaving_update(struct service *sv, const struct pw_uuid *vm) PW_MUST_CHECK; /* undoable */
void leaving_release(struct service *sv);
bool vm_has_active_operation(struct service *sv, const struct pw_uuid *vm);
/* Cancels what is pending or running for a VM that goes by force. False: out of memory. */
bool operations_cancel(struct service *sv, const struct request *r, const struct pw_uuid *vm) PW_MUST_CHECK;

int token_compare(const void *key, const void *item);
enum pw_status token_add(struct service *sv, const struct token *t) PW_MUST_CHECK;
void token_remove(struct service *sv, struct token *t); /* undoable; space must have been reserved: token_reserve */
enum pw_status token_reserve(struct service *sv) PW_MUST_CHECK;
void tokens_release(struct service *sv);
enum pw_status tokens_first_admin(struct service *sv, struct pw_err *err) PW_MUST_CHECK;

/* Rendering. */
void write_host(struct jsonw *w, const struct service *sv, const struct host *h);
void write_pool(struct jsonw *w, const struct service *sv, const struct pool *p);
void write_vm(struct jsonw *w, const struct service *sv, const struct vm *vm);
void write_operation(struct jsonw *w, const struct operation *o);
void write_host_spec(struct jsonw *w, const struct host_body *b);
/* Starts {"items":[ and ends it with next_cursor (NULL: none) and, if not 0, the revision. */
void list_begin(struct jsonw *w);
/* Has it passed the limit of an answer? Then no further item goes in; the one that passed it did, whatever its size. */
bool list_is_long(const struct service *sv, const struct jsonw *w);
/* May one more item go in, by the limit of items, which it counts down, and by that of bytes? */
bool list_goes_on(const struct service *sv, const struct jsonw *w, uint64_t *limit) PW_MUST_CHECK;
void list_end(struct jsonw *w, const char *next_cursor, const uint64_t *revision);

#endif
