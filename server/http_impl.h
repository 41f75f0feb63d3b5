/* server/http_impl.h
 *
 * What the parts of the HTTP runtime share: http.c (start, stop, whose turn it is), http_connections.c (who may be
 * connected, and for how long), http_head.c (what a head says and whether it may), http_body.c, http_answer.c,
 * http_refusals.c (what libmicrohttpd answers by itself).
 *
 * Order of locks: a connection list's lock, then http's parking or the service's.
 */
#ifndef PW_SERVER_HTTP_IMPL_H
#define PW_SERVER_HTTP_IMPL_H
#include <microhttpd.h>
#include <pthread.h>
#include <stdatomic.h>

#include "server/endpoint.h"
#include "server/http.h"
#include "server/service.h"
#include "server/target.h"

struct connections;
struct decoders;
struct peer;
struct refusals;

struct http {
	struct service *service;     /* borrowed */
	const struct config *config; /* borrowed */
	struct MHD_Daemon *daemon;
	struct tls *tls; /* NULL: plain */
	int listener;    /* until the daemon has it, which closes it; then -1 */
	_Atomic bool quiescing;
	_Atomic unsigned active;
	pthread_mutex_t parking;  /* what follows */
	struct exchange *parked;  /* all that are suspended */
	enum pw_problem given_up; /* PROBLEM_NONE: they are waited for */
	const char *why;          /* static */
	struct connections *connections;
	struct decoders *decoders;
	struct refusals *refusals;
	_Atomic uint64_t body_bytes; /* memory of all bodies */
	_Atomic uint64_t requests;
	_Atomic int64_t last_complaint_s;
	char id_prefix[17];
	char address[ENDPOINT_TEXT];
};

/*
 * Whose turn it is to touch a request, once its handler runs:
 *   RUNNING -> PARKED   http.c, when the handler has said PARKED and the connection is suspended
 *   RUNNING -> RESUMED  request_resume came before that: http.c goes on by itself, the connection need not sleep
 *   PARKED  -> RESUMED  request_resume wakes the connection: until then MHD neither completes nor closes it, so the
 *                       request lives
 *   PARKED  -> GIVEN_UP http_give_up wakes the connection. The request is still that of who has parked it, who may
 *                       even resume it: http.c neither reads nor frees it, and answers for itself
 */
enum turn { TURN_RUNNING, TURN_PARKED, TURN_RESUMED, TURN_GIVEN_UP };

enum stage {
	STAGE_IDLE,    /* between requests */
	STAGE_HEAD,    /* the target is known, headers are still coming */
	STAGE_BODY,    /* fit to be run when the body is here */
	STAGE_REFUSED, /* the answer is there, and sent when the message has ended: MHD takes none in the middle */
	STAGE_RUNNING, /* with its handler */
	STAGE_SENT,
};

/* The same for the thread that watches the clock: what the client, or the server, is to do next. */
enum phase { PHASE_IDLE, PHASE_HEAD, PHASE_BODY, PHASE_RUNNING, PHASE_PARKED, PHASE_ANSWER };

/* A connection's place: which of the numbers it counts to. */
enum place {
	PLACE_ORDINARY, /* within --connections, and within its address's share of them */
	PLACE_RESERVED, /* beyond: for /healthz, admins and agents */
	PLACE_LEAVING,  /* shut down: it goes as soon as its thread sees that */
};

/* A connection's request; one lives as long as the connection and serves all its requests, one after another. */
struct exchange {
	struct request request;
	struct http *http;
	struct MHD_Connection *connection;
	_Atomic unsigned turn;
	enum stage stage;
	bool counted; /* in http->active */
	bool parked;  /* in http->parked */
	struct exchange *before, *after;

	/* http_connections.c: under its lock, but for the atomic ones */
	struct exchange *newer, *older;
	struct peer *peer; /* NULL: it is in no list */
	int fd;
	struct pw_uuid user; /* of a reserved place; nil: nobody yet */
	_Atomic unsigned place;
	_Atomic uint64_t phase;     /* since when, in monotonic ms, times 8, plus the phase */
	_Atomic bool served;        /* has had an answer */
	_Atomic bool is_privileged; /* its last request came with an admin's or an agent's token */
	_Atomic bool gone;          /* the client went while its request was parked */

	bool client_verified; /* TLS: asked once a connection */
	bool has_body;
	bool keeps_body; /* or it is read and forgotten */
	bool expects;    /* to be told to go on before it sends its body */
	bool has_type;
	bool bad_query;
	bool aside;         /* its handler is begun by the decoders */
	bool closes;        /* after the answer: where this message ends is in doubt, or the place is another's */
	uint64_t announced; /* Content-Length, 0 when there is none */
	uint64_t body_max;  /* what the caller may send */
	const char *body_flag;
	uint64_t drained;
	uint64_t started_ns;
	const char *bearer; /* borrowed from the headers, as are the request's */
	size_t bearer_len;
	struct head_walk {
		const char *line; /* of the request: where its target begins, which has `line_len` bytes */
		size_t line_len;
		bool is_printable;
		const char *at;        /* where the next header begins */
		unsigned seen;         /* bits of the headers in http_head.c's table */
		enum pw_problem fault; /* the first; PROBLEM_NONE */
		const char *why;       /* static */
	} head;
	struct target_query query;
	char *target; /* the path as it came, NUL, the decoded query; from target_room on: the path's decoded segments
		       */
	size_t target_room;
	char *body;
	size_t body_room; /* counted in http->body_bytes */
};

/* --- http_connections.c --- */

enum pw_status connections_start(struct http *h, struct connections **out, struct pw_err *err) PW_MUST_CHECK;
void connections_stop(struct connections *cs); /* the daemon has stopped */
/* A new connection finds its place, or is shut down. */
void connections_enter(struct connections *cs, struct exchange *x);
void connections_leave(struct connections *cs, struct exchange *x);
/*
 * May this request be served where its connection is? Always at an ordinary place; a reserved one is exchanged for an
 * ordinary one when there is room. Otherwise: only with is_privileged, and so many for each token.
 */
bool connections_may_serve(struct connections *cs, struct exchange *x) PW_MUST_CHECK;
void exchange_enter_phase(struct exchange *x, enum phase phase);

/* --- http_head.c --- */

/* What MHD calls with a request's target: keeps it and begins the request. False: no memory. */
bool head_begin(struct exchange *x, const char *target) PW_MUST_CHECK;
/* Reads the head, which is whole, and holds it against the contract: true if its body may come, false if it is
 * answered. */
bool head_take(struct exchange *x, const char *method, const char *version) PW_MUST_CHECK;
/* Does the caller's token still hold? False: answered. */
bool head_check_who(struct exchange *x);

void head_make_id(struct exchange *x); /* gives the request an id of ours */

/* --- http_body.c --- */

/* May the announced body come? False: answered. */
bool body_check(struct exchange *x, const char *method) PW_MUST_CHECK;
/* Keeps or drops what has come (*size becomes 0); false: the connection is to be closed. A body that may not be kept
 * makes a refused request. */
bool body_take(struct exchange *x, const char *data, size_t *size) PW_MUST_CHECK;
/* A refused request: shall the rest of its message be read before the answer? */
bool body_is_worth_draining(const struct exchange *x);
/* False: that was too much. */
bool body_drain(struct exchange *x, size_t *size) PW_MUST_CHECK;
void body_free(struct exchange *x); /* the request has ended */

/* --- http_decode.c --- */

enum pw_status decoders_start(struct service *sv, struct decoders **out, struct pw_err *err) PW_MUST_CHECK;
void decoders_stop(struct decoders *d); /* does what it has been given first */
/* A parked request: its handler is called on a thread of these. */
void decoders_take(struct decoders *d, struct request *r);

/* --- http_answer.c --- */

/* The body goes over to MHD without a copy. MHD_NO closes the connection. */
enum MHD_Result answer_send(struct exchange *x);

/* --- http_refusals.c --- */

/* Before the daemon starts; there is one. */
enum pw_status refusals_start(struct refusals **out, struct pw_err *err) PW_MUST_CHECK;
void refusals_stop(struct refusals *s); /* the daemon and the watcher have stopped */
/* Reads, and throws away, what refused clients still send. To be called a few times a second; does not block. */
void refusals_drain(struct refusals *s);
/* The library's MHD_queue_response, for our own answers. */
enum MHD_Result refusals_queue(struct MHD_Connection *connection, unsigned status, struct MHD_Response *answer);

#endif
