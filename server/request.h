/* server/request.h
 *
 * One HTTP request on its way through the server, apart from any HTTP library. A handler reads it, fills the answer,
 * and says DONE; or it parks the request (writer.h, waiters.h) and says PARKED: whoever it parked it with calls
 * request_resume later, from any thread. A resumed request that has its answer is sent; one without is given to its
 * handler again, on an HTTP thread. Only one thread touches a request at any moment.
 */
#ifndef PW_SERVER_REQUEST_H
#define PW_SERVER_REQUEST_H
#include "api/codec.h"
#include "api/jsonw.h"
#include "api/problem.h"
#include "server/config.h"

struct service;
struct request;

/* Who asks: a token. */
#define PRINCIPAL_SEAL 32
struct principal {
	struct pw_uuid token; /* nil: nobody */
	enum role role;
	struct pw_uuid host; /* of an agent's token */
	char name[CODEC_NAME_MAX];
	uint8_t seal[PRINCIPAL_SEAL]; /* a key that only who has the token's secret can make: never stored */
};

struct response {
	unsigned status; /* 0: none yet */
	char *body;      /* heap; NULL for none */
	size_t size;
	const char *content_type; /* static; NULL: application/json, or application/problem+json from 400 on */
	char headers[512];        /* further headers, "Name: value\n" each */
};

/* What a long poll waits for, and what a change is news of. */
enum wait_kind {
	WAIT_REVISION,  /* any change */
	WAIT_EVENTS,    /* events of that host */
	WAIT_DELIVERY,  /* operations for that host's agent */
	WAIT_OPERATION, /* that operation's end */
	WAIT_TOKEN      /* the token's deletion: everybody does, whatever else he waits for */
};
struct wait_key {
	enum wait_kind kind;
	struct pw_uuid id; /* of WAIT_REVISION: none */
};

#define REQUEST_DIGEST 32
enum handled { DONE, PARKED };
typedef enum handled (*handler_fn)(struct service *sv, struct request *r);

#define ROLE_BIT(r) (1u << (r))
#define EVERYBODY   (ROLE_BIT(ROLE_ADMIN) | ROLE_BIT(ROLE_OPERATOR) | ROLE_BIT(ROLE_VIEWER) | ROLE_BIT(ROLE_AGENT))
#define NO_TOKEN    0u /* needs none */
struct route {
	const char *method;  /* "GET" also serves HEAD */
	const char *pattern; /* "/v1/hosts/{host}/frames": {..} matches one segment, which becomes args[0], args[1] */
	unsigned roles;      /* who may at all; the handler narrows further (an agent's own host) */
	handler_fn handle;
	/* What handle_read, handle_change and handle_wait (service_impl.h) call. */
	bool (*prepare)(struct service *sv, struct request *r);
	void (*act)(struct service *sv, struct request *r);
};
extern const struct route routes[]; /* server/routes.c; ends with method NULL */

struct request {
	/* As it came. Strings are NUL-terminated and live as long as the request. */
	const struct route *route;
	const char *path;
	const char *args[3];
	const char *body; /* never NULL; NUL-terminated behind `body_size` bytes */
	size_t body_size;
	char id[65]; /* X-Request-Id: the caller's, if sane, else made */
	struct principal who;
	const char *idempotency_key; /* NULL: none. 1..128 printable ASCII */
	const char *if_match;        /* the header's text, or NULL */
	const char *accept;          /* or NULL */

	struct response response;

	/* For whoever has parked it. */
	handler_fn read;       /* what a thread of long reads does (reads.h) */
	struct request *next;  /* a link in one queue at a time */
	int64_t deadline_ms;   /* monotonic; long polls. 0: not decided yet */
	uint64_t registration; /* host_operations: the host's that it began under. 0: not decided yet */
	bool settled;          /* what it asked for is done: only its answer is still to be kept, if it can be */
	bool unfinished;       /* act wants another turn: what it did is in this group, the rest comes in later ones */
	bool begun;            /* a part of it is durable */
	bool resumed;          /* the handler is called again after a wait */
	/* The waiters' (waiters.h): what it waits for, and where it is among them. */
	struct wait_key wait_for;
	uint64_t wait_after; /* WAIT_REVISION: for a later one */
	struct request **link;
	size_t wait_at[2];
	bool waits;
	/* Set by prepare where the body names a holder (boot_id, epoch): is he still the one? False: answered. A kept
	 * answer is given again to him alone. NULL: what the answer speaks of is not taken away by a fence. */
	bool (*still_holds)(struct service *sv, struct request *r);
	uint8_t digest[REQUEST_DIGEST]; /* of path and body, once request_digest was called */
	bool digested;
	void *job;                   /* the writer's: what to do (freed by whoever takes it off the request) */
	void (*job_free)(void *job); /* called when the request ends with job still set */
};

/* http.c: hands a parked request back to its HTTP thread. The caller must not touch it afterwards. */
void request_resume(struct request *r);

/* A parameter of the query, percent-decoded; NULL if absent. None is there twice. */
const char *request_query(const struct request *r, const char *name);
/* Calls fn for every query parameter (to refuse unknown ones). */
typedef bool (*query_fn)(void *ctx, const char *name, const char *value);
void request_each_query(const struct request *r, query_fn fn, void *ctx);

/* --- Answers (request.c) --- */

/* Takes the writer's text; a failed writer becomes a no-memory problem. Returns DONE. */
enum handled answer_json(struct request *r, unsigned status, struct jsonw *w);
enum handled answer_empty(struct request *r, unsigned status);
/* Takes the answer back: the request has none, and no headers for one. */
void answer_drop(struct request *r);
/* Answers with the refusal as a problem; returns DONE. Replaces any answer there was. */
enum handled answer_refusal(struct request *r, const struct refusal *why);
enum handled answer_problem(struct request *r, enum pw_problem p, const char *fmt, ...) PW_PRINTF(3, 4);
/*
 * Answers that `asked` is past the limit of that flag (one of config_limit's): with members flag, limit and asked.
 * rate-limited and busy also get a Retry-After of one second.
 */
enum handled answer_limit(struct request *r, enum pw_problem p, const struct config *c, const char *flag,
			  uint64_t asked);
/* The same as a refusal, for what is answered per item; returns p. */
enum pw_problem refuse_limit(struct refusal *why, enum pw_problem p, const struct config *c, const char *flag,
			     uint64_t asked);
/* 401 for whoever has no valid token. */
/* 503 not-ready while the journal is replayed: members replayed and total (revisions) say how far that is. */
enum handled answer_starting(struct request *r, const char *step, uint64_t replayed, uint64_t total);
enum handled answer_unknown(struct request *r, const char *why);
/* The fault's problem (mostly invalid-request) with its pointer (too-large JSON faults, no_memory respected). */
enum handled answer_fault(struct request *r, const struct codec_fault *why);
/* Adds a header line; silently dropped when it does not fit. */
void answer_header(struct request *r, const char *name, const char *fmt, ...) PW_PRINTF(3, 4);
void answer_etag(struct request *r, uint64_t revision);

/* What an If-Match says of a resource at a revision (0: there is none): "*", or a list of entity tags, of which a weak
 * one matches nothing (RFC 9110 sections 8.8.3 and 13.1.1). */
enum tag_match { TAG_MATCHES, TAG_DIFFERS, TAG_MALFORMED };
enum tag_match tag_match(const char *if_match, uint64_t revision);
/* 412 stale unless the request's If-Match (if any) names the revision, 400 if it is none; false: answered. */
bool if_match(struct request *r, uint64_t revision) PW_MUST_CHECK;

/*
 * An unsigned integer parameter in [min, max]. Absent: *out = absent. On a bad one the request is answered
 * (invalid-request naming it) and false returned.
 */
bool query_u64(struct request *r, const char *name, uint64_t min, uint64_t max, uint64_t absent,
	       uint64_t *out) PW_MUST_CHECK;
/* Refuses parameters outside the NULL-terminated list: answers and returns false. */
bool query_known(struct request *r, const char *const *names) PW_MUST_CHECK;
/* args[i] as a UUID; else answers `p` (e.g. vm-not-found: what is no UUID names nothing) and returns false. */
bool arg_uuid(struct request *r, unsigned i, enum pw_problem p, struct pw_uuid *out) PW_MUST_CHECK;

#endif
