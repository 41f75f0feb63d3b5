/* server/endpoint.h
 *
 * Where the server listens: the address of the configuration, whether it may be used, and its socket.
 */
#ifndef PW_SERVER_ENDPOINT_H
#define PW_SERVER_ENDPOINT_H
#include <netinet/in.h>
#include <sys/socket.h>

#include "server/config.h"

#define ENDPOINT_TEXT 96 /* bytes of "https://[...]:65535", the NUL included */

struct endpoint {
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
	} address;
	socklen_t size;
	bool loopback;
};

/* Reads c->listen and holds it against the TLS options.
 * PW_INVALID  no numeric address with a port, or TLS options that do not belong together
 * PW_DENIED   an address beyond loopback without TLS */
enum pw_status endpoint_choose(const struct config *c, struct endpoint *out, struct pw_err *err) PW_MUST_CHECK;

/* Binds and listens; *fd is the caller's, and address says where (port 0 has been replaced).
 * PW_NETWORK  the system refuses */
enum pw_status endpoint_listen(const struct endpoint *at, const struct config *c, int *fd, char address[ENDPOINT_TEXT],
			       struct pw_err *err) PW_MUST_CHECK;

#endif
