/* server/service.h
 *
 * pagewardend apart from HTTP: the ledger with its writer, readers, waiters and painter, over one store.
 */
#ifndef PW_SERVER_SERVICE_H
#define PW_SERVER_SERVICE_H
#include "server/config.h"
#include "server/request.h"

/* A service that has nothing yet: only healthz and readyz may be asked of it. c is borrowed and must outlive it. */
enum pw_status service_open(const struct config *c, struct service **out, struct pw_err *err) PW_MUST_CHECK;
/* Opens the store, loads the picture, replays the journal, makes DATA/admin.token on the first start, starts the
 * writer and the painter. After a failure only service_close remains. */
enum pw_status service_start(struct service *sv, struct pw_err *err) PW_MUST_CHECK;
/* How far service_start is. Any thread. */
struct service_progress {
	const char *step;         /* in words; static */
	uint64_t moves;           /* grows while it gets on */
	uint64_t replayed, total; /* revisions; 0 until they are known */
};
void service_progress(const struct service *sv, struct service_progress *out);
/* Has service_start succeeded? Any thread. */
bool service_is_started(const struct service *sv);
/* From here on new writes get not-ready, and every parked request is resumed with an answer. */
void service_drain(struct service *sv);
/*
 * After service_drain, when what is under way has had its time. Nothing is begun or committed any more: every parked
 * request gets not-ready, but for those of the group that is being decided or committed; they do so when it is through.
 */
void service_cut(struct service *sv);
/* The client of a parked request has gone. True: it was a long poll, and is the caller's again; false: it is resumed
 * soon by itself. */
bool service_forget(struct service *sv, struct request *r) PW_MUST_CHECK;
/* What to say to those, where they cannot wait for that either: their group is being committed (outcome-unknown), or
 * will never be (not-ready). *why: a static sentence. */
enum pw_problem service_left(struct service *sv, const char **why);
/* After service_drain and http_stop: commits what is queued, saves a last picture, closes the store. */
enum pw_status service_close(struct service *sv, struct pw_err *err) PW_MUST_CHECK;

/* False (and *out untouched) for anything but a live token's secret. Waits for no change. Constant time in the
 * secret's bytes. */
bool service_authenticate(struct service *sv, const char *secret, size_t len, struct principal *out) PW_MUST_CHECK;

#endif
