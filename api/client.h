/* api/client.h
 *
 * The client of pagewardend that agent and CLI share: libcurl, kept-alive connection, retries that cannot do a thing
 * twice (every POST carries an Idempotency-Key). One client belongs to one thread at a time.
 */
#ifndef PW_API_CLIENT_H
#define PW_API_CLIENT_H
#include <jansson.h>
#include <signal.h>

#include "engine/problem.h"

struct client;
struct client_options {
	const char *url;                   /* http://127.0.0.1:8470 */
	const char *token;                 /* bearer secret, or NULL */
	const char *ca, *cert, *key;       /* PEM files, or NULL */
	unsigned timeout_ms;               /* of one try, beyond a long poll's wait; default 10000 */
	unsigned attempts;                 /* in all; default 5; 1: no retries */
	uint64_t jitter_seed;              /* for the back-off between tries (100 ms doubling to 5 s, full jitter) */
	const volatile sig_atomic_t *stop; /* or NULL: give up early (PW_BUSY) when it becomes non-zero */
};
enum pw_status client_open(const struct client_options *o, struct client **out, struct pw_err *err) PW_MUST_CHECK;
void client_close(struct client *c); /* NULL is fine */
/* Another flag (borrowed) from the next call on. A call under way sees its own within a second. */
void client_set_stop(struct client *c, const volatile sig_atomic_t *stop);

struct client_reply {
	unsigned status;         /* HTTP status; 0: no answer at all */
	json_t *json;            /* the body, or NULL; the caller's (client_reply_release) */
	char *text;              /* the body as text, NUL-terminated */
	enum pw_problem problem; /* PROBLEM_NONE for 2xx; of an answer without a known type: PROBLEM_INTERNAL */
	char location[256];
	unsigned retry_after_s; /* what the server asks to wait, at most CLIENT_RETRY_MAX_S; 0: it says nothing */
};
#define CLIENT_RETRY_MAX_S 10
void client_reply_release(struct client_reply *r);

/*
 * One call, retried on lost connections, 429, 502..504 and problems marked retryable, no sooner than Retry-After says.
 * body is borrowed, NULL for none. key: the Idempotency-Key of a POST; NULL makes a fresh one. wait_s is added to the
 * timeout (long polls). PW_OK      a 2xx answer PW_NETWORK no answer after all attempts, or none that knows what became
 * of the request (outcome-unknown: the same key learns it later); else a status fitting the problem (err has its
 * detail); *out is set when any answer came, and must be released in every case.
 */
enum pw_status client_call(struct client *c, const char *method, const char *path, json_t *body, const char *key,
			   unsigned wait_s, struct client_reply *out, struct pw_err *err) PW_MUST_CHECK;

/* GET of a list, following next_cursor; fn is called for each item (borrowed) and returns false to stop. */
typedef bool (*client_item_fn)(void *ctx, json_t *item);
enum pw_status client_list(struct client *c, const char *path, client_item_fn fn, void *ctx,
			   struct pw_err *err) PW_MUST_CHECK;

#endif
