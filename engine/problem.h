/* engine/problem.h
 *
 * Every kind of refusal that pagewarden knows, by the slug that it has on the wire (`/problems/SLUG`), and the facts
 * that go with one. The engine's commands answer with a problem; api/problem.h gives each its HTTP status.
 */
#ifndef PW_ENGINE_PROBLEM_H
#define PW_ENGINE_PROBLEM_H
#include "engine/lifecycle.h"
#include "engine/uuid.h"

#define PW_PROBLEMS(X)                                                                             \
	X(PROBLEM_NONE, "none", "No problem")                                                      \
	/* transitions, in the order of their checks */                                            \
	X(PROBLEM_VM_NOT_FOUND, "vm-not-found", "No such VM")                                      \
	X(PROBLEM_VM_NOT_ON_HOST, "vm-not-on-host", "The VM is placed on another host")            \
	X(PROBLEM_VM_TRANSITION, "vm-transition", "The VM's lifecycle has no such step")           \
	X(PROBLEM_GFN_OUT_OF_SLOT, "gfn-out-of-slot", "GFNs outside one memory slot")              \
	X(PROBLEM_GFN_TRANSITION, "gfn-transition", "The GFN's lifecycle has no such step")        \
	X(PROBLEM_FRAME_OUT_OF_POOL, "frame-out-of-pool", "A frame outside the host's pools")      \
	X(PROBLEM_FRAME_QUARANTINED, "frame-quarantined", "A frame in quarantine")                 \
	X(PROBLEM_FRAME_CONFLICT, "frame-conflict", "A frame that is bound already")               \
	/* hosts, pools, VMs, slots */                                                             \
	X(PROBLEM_HOST_NOT_FOUND, "host-not-found", "No such host")                                \
	X(PROBLEM_HOST_FENCED, "host-fenced", "Not the current holder of this host")               \
	X(PROBLEM_HOST_ALIVE, "host-alive", "The host is alive: only its holder ends what it has") \
	X(PROBLEM_POOL_NOT_FOUND, "pool-not-found", "No such pool")                                \
	X(PROBLEM_POOL_IN_USE, "pool-in-use", "Frames of the pool are bound")                      \
	X(PROBLEM_POOL_MISMATCH, "pool-mismatch", "Pool and host do not fit each other")           \
	X(PROBLEM_VM_EXISTS, "vm-exists", "The VM exists already")                                 \
	X(PROBLEM_VM_BUSY, "vm-busy", "The VM is in use")                                          \
	X(PROBLEM_SLOT_OVERLAP, "slot-overlap", "Memory slots overlap")                            \
	X(PROBLEM_SLOT_NOT_FOUND, "slot-not-found", "No such memory slot")                         \
	X(PROBLEM_ARCH_UNSUPPORTED, "arch-unsupported", "Not the architecture of host or of VM")   \
	X(PROBLEM_STALE_BATCH, "stale-batch", "An older batch than the last one")                  \
	X(PROBLEM_BATCH_REJECTED, "batch-rejected", "The atomic batch was undone")                 \
	/* operations and tokens */                                                                \
	X(PROBLEM_INVALID_PARAMS, "invalid-params", "Parameters that the operation does not take") \
	X(PROBLEM_OPERATION_NOT_FOUND, "operation-not-found", "No such operation")                 \
	X(PROBLEM_OPERATION_STATE, "operation-state", "The operation is not in that state")        \
	X(PROBLEM_TOKEN_NOT_FOUND, "token-not-found", "No such token")                             \
	X(PROBLEM_BACKUP_EXISTS, "backup-exists", "There is a backup of that name")                \
	/* the request itself */                                                                   \
	X(PROBLEM_INVALID_REQUEST, "invalid-request", "The request is malformed")                  \
	X(PROBLEM_UNAUTHORIZED, "unauthorized", "No valid token")                                  \
	X(PROBLEM_FORBIDDEN, "forbidden", "Outside the token's role")                              \
	X(PROBLEM_NOT_FOUND, "not-found", "No such resource")                                      \
	X(PROBLEM_METHOD_NOT_ALLOWED, "method-not-allowed", "Method not allowed")                  \
	X(PROBLEM_URI_TOO_LONG, "uri-too-long", "The request's target is too long")                \
	X(PROBLEM_HEAD_TOO_LARGE, "head-too-large", "The request's head is too large")             \
	X(PROBLEM_HTTP_VERSION, "http-version-unsupported", "Neither HTTP/1.1 nor HTTP/1.0")       \
	X(PROBLEM_TOO_LARGE, "body-too-large", "The request's body is too large")                  \
	X(PROBLEM_TOO_MUCH_WORK, "too-much-work", "More work than one request may ask for")        \
	X(PROBLEM_RATE_LIMITED, "rate-limited", "More than the caller's share")                    \
	X(PROBLEM_MEDIA_TYPE, "unsupported-media-type", "Not application/json")                    \
	X(PROBLEM_IDEMPOTENCY, "idempotency-mismatch", "Another request had this key")             \
	X(PROBLEM_STALE, "stale", "The resource has changed")                                      \
	X(PROBLEM_COMPACTED, "compacted", "History from there on has been trimmed")                \
	/* the server */                                                                           \
	X(PROBLEM_STORAGE, "storage", "The disk refuses")                                          \
	X(PROBLEM_OUTCOME_UNKNOWN, "outcome-unknown", "Done or not: not known yet")                \
	X(PROBLEM_NO_MEMORY, "no-memory", "Out of memory")                                         \
	X(PROBLEM_LIMIT, "limit-exceeded", "A limit of this server is reached")                    \
	X(PROBLEM_BUSY, "busy", "The server has no room for this now")                             \
	X(PROBLEM_NOT_READY, "not-ready", "The server is starting or stopping")                    \
	X(PROBLEM_INTERNAL, "internal", "A fault of the server")                                   \
	/* what agents report */                                                                   \
	X(PROBLEM_BACKEND, "backend", "The hardware or its driver failed")                         \
	X(PROBLEM_DRIFT, "drift", "Hardware and ledger differ")                                    \
	X(PROBLEM_UNKNOWN_VM, "unknown-vm", "Hardware has a VM that the ledger does not own")

#define PW_ENUM_(name, slug, title) name,
enum pw_problem { PW_PROBLEMS(PW_ENUM_) PROBLEM_COUNT };
#undef PW_ENUM_

const char *problem_slug(enum pw_problem p);
const char *problem_title(enum pw_problem p);
bool problem_from_slug(const char *slug, enum pw_problem *out) PW_MUST_CHECK;

#define POOL_NAME_MAX    64 /* bytes, the NUL included: [a-z0-9-]{1,63} */
#define REFUSAL_RUNS_MAX 16

/* A run of frames, and (for conflicts) who has them: consecutive frames bound to consecutive GFNs. */
struct frame_run {
	char pool[POOL_NAME_MAX];
	uint64_t pfn, count; /* pages */
	struct pw_uuid vm;
	uint64_t gfn;
};

/*
 * One refusal with its facts. Which members are set follows from `problem` (see api/problem.c, which writes them).
 * On the caller's stack; owns nothing.
 */
struct refusal {
	enum pw_problem problem;
	char detail[256];    /* a sentence that names the offending value */
	struct pw_uuid vm;   /* vm-not-found, unknown-vm */
	uint64_t ended;      /* vm-not-found: revision of the VM's deletion, 0: not known */
	struct pw_uuid host; /* vm-not-on-host, host-alive: where the VM is placed */
	enum vm_state vm_state;
	enum vm_event vm_event;
	const char *op;         /* static text: the name of the GFN operation that was refused; NULL: it was none */
	const char *arch_state; /* static text: of the GFN (vm-transition: of the VM), where the operation was an
				   architecture's; else NULL */
	uint64_t gfn;           /* the first offending one */
	enum gfn_state gfn_state;
	char pool[POOL_NAME_MAX];
	uint64_t pages;                          /* unknown-vm: that it has on hardware */
	const char *reason;                      /* unknown-vm: static text */
	const char *flag;                        /* what is past a limit: the limit's name, static; NULL: it is not */
	uint64_t limit, asked;                   /* with flag */
	uint64_t frames;                         /* frame-conflict, frame-quarantined, unknown-vm: how many in all */
	unsigned run_count;                      /* and the first runs of them */
	struct frame_run runs[REFUSAL_RUNS_MAX]; /* last, so that a copy may leave out what is not used */
};

/* Fills problem and detail and clears the rest; returns the problem. why may be NULL. */
enum pw_problem refuse(struct refusal *why, enum pw_problem p, const char *fmt, ...) PW_PRINTF(3, 4);

#endif
