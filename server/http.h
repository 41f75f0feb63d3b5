/* server/http.h
 *
 * The HTTP runtime on libmicrohttpd: sockets, TLS, threads, bodies, tokens, routing. The only file that knows it.
 */
#ifndef PW_SERVER_HTTP_H
#define PW_SERVER_HTTP_H
#include "server/config.h"
#include "server/request.h"

struct http;
/* Listens and serves until http_stop. *address: "http://127.0.0.1:8470" (or https), owned by the result.
 * PW_DENIED: an address beyond loopback without TLS. */
enum pw_status http_start(const struct config *c, struct service *sv, struct http **out,
			  struct pw_err *err) PW_MUST_CHECK;
const char *http_address(const struct http *h);
/* Reads the certificate and key again (SIGHUP); on failure the old ones stay. */
enum pw_status http_reload_tls(struct http *h, struct pw_err *err) PW_MUST_CHECK;
void http_quiesce(struct http *h);          /* new requests are refused (not-ready); running ones go on */
unsigned http_active(const struct http *h); /* requests under way */
/*
 * Answers p to every request that is parked, now or later, and returns how many are. Whoever holds them may go on with
 * them, so their memory is never freed: if there are any, this process can only exit.
 */
unsigned http_give_up(struct http *h, enum pw_problem p, const char *why);
void http_stop(struct http *h); /* no request may be parked any more, but for those given up */

/* Splits "/v1/a/b?x=y" and matches it against the table; the pure part, which the fuzzer drives. `storage` (at least
 * strlen(target) + 1 bytes) receives the decoded segments. On a match of the path but not the method: NULL and `allow`
 * lists the methods ("GET, PUT"). */
const struct route *http_route(const struct route *table, const char *method, const char *target, char *storage,
			       const char *args[3], char allow[64]);
#endif
