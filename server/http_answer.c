/*
 * How an answer goes out: status, headers and body of a request's response, given to libmicrohttpd. Runs on the HTTP
 * threads, once for each request.
 */
#include <string.h>

#include "server/http_impl.h"

static bool add_own_headers(struct MHD_Response *m, const struct request *r)
{
	const char *line = r->response.headers;
	char copy[sizeof r->response.headers];

	while (*line) {
		size_t len = strcspn(line, "\n");
		char *colon;

		memcpy(copy, line, len);
		copy[len] = '\0';
		colon = strstr(copy, ": ");
		if (colon) {
			*colon = '\0';
			if (MHD_add_response_header(m, copy, colon + 2) != MHD_YES)
				return false;
		}
		line += len + (line[len] != '\0');
	}
	return true;
}

static bool is_last(const struct exchange *x)
{
	return x->closes || atomic_load_explicit(&x->http->quiescing, memory_order_relaxed);
}

static bool add_headers(struct MHD_Response *m, const struct exchange *x)
{
	const struct request *r = &x->request;
	const char *type = r->response.content_type;

	if (!type)
		type = r->response.status >= 400 ? "application/problem+json" : "application/json";
	return (!r->response.body || MHD_add_response_header(m, MHD_HTTP_HEADER_CONTENT_TYPE, type) == MHD_YES) &&
	       MHD_add_response_header(m, "X-Request-Id", r->id) == MHD_YES &&
	       MHD_add_response_header(m, "X-Content-Type-Options", "nosniff") == MHD_YES &&
	       (strstr(r->response.headers, "Cache-Control: ") ||
		MHD_add_response_header(m, MHD_HTTP_HEADER_CACHE_CONTROL, "no-store") == MHD_YES) &&
	       (!is_last(x) || MHD_add_response_header(m, MHD_HTTP_HEADER_CONNECTION, "close") == MHD_YES) &&
	       (!r->response.headers[0] || add_own_headers(m, r));
}

enum MHD_Result answer_send(struct exchange *x)
{
	struct response *a = &x->request.response;
	struct MHD_Response *m;
	enum MHD_Result sent = MHD_NO;

	x->stage = STAGE_SENT;
	exchange_enter_phase(x, PHASE_ANSWER);
	m = MHD_create_response_from_buffer(a->body ? a->size : 0, a->body ? (void *)a->body : (void *)"",
					    a->body ? MHD_RESPMEM_MUST_FREE : MHD_RESPMEM_PERSISTENT);
	if (!m)
		return MHD_NO;
	if (add_headers(m, x))
		sent = refusals_queue(x->connection, a->status, m);
	a->body = NULL;
	MHD_destroy_response(m);
	return sent;
}
