/* tests/fuzz/fuzz_http_target.c
 *
 * libFuzzer entry: a method and a request target against a table like the server's. What must hold for any input:
 * nothing is read or written out of bounds, arguments are UTF-8 and not empty, and a match of the
 * path with another method always names the methods.
 */
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include "server/http.h"
#include "server/target.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define ROUTE(m, p)                                           \
	{                                                     \
		.method = m, .pattern = p, .roles = EVERYBODY \
	}
static const struct route table[] = {
	ROUTE("GET", "/"),
	ROUTE("GET", "/healthz"),
	ROUTE("GET", "/readyz"),
	ROUTE("GET", "/metrics"),
	ROUTE("GET", "/openapi.json"),
	ROUTE("GET", "/v1/hosts"),
	ROUTE("GET", "/v1/hosts/{host}"),
	ROUTE("PUT", "/v1/hosts/{host}"),
	ROUTE("POST", "/v1/hosts/{host}/heartbeat"),
	ROUTE("POST", "/v1/hosts/{host}/fence"),
	ROUTE("GET", "/v1/hosts/{host}/frames"),
	ROUTE("GET", "/v1/hosts/{host}/quarantine"),
	ROUTE("POST", "/v1/hosts/{host}/quarantine"),
	ROUTE("POST", "/v1/hosts/{host}/quarantine/release"),
	ROUTE("POST", "/v1/hosts/{host}/transitions"),
	ROUTE("GET", "/v1/hosts/{host}/operations"),
	ROUTE("GET", "/v1/pools"),
	ROUTE("PUT", "/v1/pools/{pool}"),
	ROUTE("GET", "/v1/pools/{pool}/frames"),
	ROUTE("GET", "/v1/vms"),
	ROUTE("POST", "/v1/vms"),
	ROUTE("GET", "/v1/vms/{vm}"),
	ROUTE("DELETE", "/v1/vms/{vm}"),
	ROUTE("PUT", "/v1/vms/{vm}/slots/{n}"),
	ROUTE("DELETE", "/v1/vms/{vm}/slots/{n}"),
	ROUTE("POST", "/v1/vms/{vm}/lifecycle"),
	ROUTE("GET", "/v1/vms/{vm}/gfns"),
	ROUTE("GET", "/v1/vms/{vm}/map"),
	ROUTE("GET", "/v1/vms/{vm}/history"),
	ROUTE("POST", "/v1/vms/{vm}/operations"),
	ROUTE("GET", "/v1/operations/{op}"),
	ROUTE("DELETE", "/v1/operations/{op}"),
	ROUTE("POST", "/v1/operations/{op}/result"),
	ROUTE("GET", "/v1/events"),
	ROUTE("GET", "/v1/violations"),
	ROUTE("GET", "/v1/summary"),
	ROUTE("GET", "/v1/tokens"),
	ROUTE("POST", "/v1/tokens"),
	ROUTE("DELETE", "/v1/tokens/{id}"),
	{ .method = NULL },
};

static const char *const methods[] = { "GET", "HEAD", "POST", "PUT", "DELETE", "OPTIONS", "BREW", "" };

static void require(bool holds)
{
	if (!holds)
		abort();
}

static bool is_mended(const char *text)
{
	char *copy = strdup(text);
	bool same;

	if (!copy)
		return true;
	target_mend_utf8(copy);
	same = strcmp(copy, text) == 0;
	free(copy);
	return same;
}

static void try_route(const char *method, const char *target)
{
	char *storage = malloc(strlen(target) + 1);
	const struct route *route;
	const char *args[3];
	char allow[64];

	if (!storage)
		return;
	route = http_route(table, method, target, storage, args, allow);
	require(!route || !*allow || strcmp(method, route->method) == 0 || strcmp(method, "HEAD") == 0);
	for (int i = 0; route && i < 3 && args[i]; i++)
		require(args[i][0] && args[i] >= storage && args[i] <= storage + strlen(target) && is_mended(args[i]));
	require(route || (!args[0] && strlen(allow) < sizeof allow));
	free(storage);
}

static void try_query(const char *text)
{
	char *copy = strdup(text);
	struct target_query q;

	if (!copy)
		return;
	if (target_query_parse(copy, &q))
		for (unsigned i = 0; i < q.count; i++)
			require(is_mended(q.names[i]) && is_mended(q.values[i]));
	free(copy);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char *text;

	if (size < 1)
		return 0;
	text = malloc(size);
	if (!text)
		return 0;
	memcpy(text, data + 1, size - 1);
	text[size - 1] = '\0';
	try_route(methods[data[0] % PW_ARRAY_LEN(methods)], text);
	try_query(text);
	target_mend_utf8(text);
	require(is_mended(text));
	free(text);
	return 0;
}
