#include "server/endpoint.h"

#include <arpa/inet.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static bool parse_port(const char *text, in_port_t *out)
{
	unsigned long port;
	char *end;

	if (*text < '0' || *text > '9' || strlen(text) > 5)
		return false;
	port = strtoul(text, &end, 10);
	if (*end || port > 65535)
		return false;
	*out = htons((uint16_t)port);
	return true;
}

/* "127.0.0.1:8470" or "[::1]:8470" */
static bool parse_endpoint(const char *text, struct endpoint *out)
{
	const char *colon = strrchr(text, ':');
	char host[INET6_ADDRSTRLEN + 2];
	in_port_t port;
	size_t len;

	*out = (struct endpoint){ 0 };
	if (!colon || (size_t)(colon - text) >= sizeof host || !parse_port(colon + 1, &port))
		return false;
	len = (size_t)(colon - text);
	memcpy(host, text, len);
	host[len] = '\0';
	if (host[0] == '[' && host[len - 1] == ']') {
		host[len - 1] = '\0';
		out->address.v6.sin6_family = AF_INET6;
		out->address.v6.sin6_port = port;
		out->size = sizeof out->address.v6;
		if (inet_pton(AF_INET6, host + 1, &out->address.v6.sin6_addr) != 1)
			return false;
		out->loopback = IN6_IS_ADDR_LOOPBACK(&out->address.v6.sin6_addr);
		return true;
	}
	out->address.v4.sin_family = AF_INET;
	out->address.v4.sin_port = port;
	out->size = sizeof out->address.v4;
	if (inet_pton(AF_INET, strcmp(host, "localhost") == 0 ? "127.0.0.1" : host, &out->address.v4.sin_addr) != 1)
		return false;
	out->loopback = ntohl(out->address.v4.sin_addr.s_addr) >> 24 == 127;
	return true;
}

enum pw_status endpoint_choose(const struct config *c, struct endpoint *out, struct pw_err *err)
{
	if (!parse_endpoint(c->listen, out))
		return pw_fail(
			err, PW_INVALID,
			"cannot listen on \"%s\": give a numeric address and a port, like 127.0.0.1:8470 or [::1]:8470",
			c->listen);
	if (!out->loopback && !c->tls_cert)
		return pw_fail(
			err, PW_DENIED,
			"will not listen on %s without TLS: tokens would travel in the clear; give --tls-cert and "
			"--tls-key, or an address of this machine only, like 127.0.0.1:8470",
			c->listen);
	if (!c->tls_cert != !c->tls_key || (c->tls_client_ca && !c->tls_cert))
		return pw_fail(err, PW_INVALID,
			       "--tls-cert and --tls-key belong together, and --tls-client-ca needs both");
	return PW_OK;
}

static enum pw_status fail_listen(const struct config *c, int fd, struct pw_err *err)
{
	int cause = errno;

	if (fd >= 0)
		close(fd);
	return pw_fail(err, PW_NETWORK, "cannot listen on %s: %s%s", c->listen, strerror(cause),
		       cause == EADDRINUSE ? "; is another pagewardend running? Choose another port with --listen"
					   : "");
}

static void write_address(const struct endpoint *bound, const char *scheme, char out[ENDPOINT_TEXT])
{
	char host[INET6_ADDRSTRLEN] = "";

	if (bound->address.any.sa_family == AF_INET6) {
		inet_ntop(AF_INET6, &bound->address.v6.sin6_addr, host, sizeof host);
		snprintf(out, ENDPOINT_TEXT, "%s://[%s]:%u", scheme, host, ntohs(bound->address.v6.sin6_port));
	} else {
		inet_ntop(AF_INET, &bound->address.v4.sin_addr, host, sizeof host);
		snprintf(out, ENDPOINT_TEXT, "%s://%s:%u", scheme, host, ntohs(bound->address.v4.sin_port));
	}
}

enum pw_status endpoint_listen(const struct endpoint *at, const struct config *c, int *out, char address[ENDPOINT_TEXT],
			       struct pw_err *err)
{
	int fd = socket(at->address.any.sa_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0), on = 1;
	struct endpoint bound = { .size = sizeof bound.address };

	if (fd < 0)
		return fail_listen(c, fd, err);
	(void)setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
	if (at->address.any.sa_family == AF_INET6)
		(void)setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof on);
	if (bind(fd, &at->address.any, at->size) != 0 || listen(fd, SOMAXCONN) != 0 ||
	    getsockname(fd, &bound.address.any, &bound.size) != 0)
		return fail_listen(c, fd, err);
	write_address(&bound, c->tls_cert ? "https" : "http", address);
	*out = fd;
	return PW_OK;
}
