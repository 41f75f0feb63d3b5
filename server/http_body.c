/*
 * A request's body. It is kept only where a route reads it, within what its sender may send and within what all bodies
 * together may hold; anything else is read and forgotten, so that the answer can be heard, or costs the connection.
 * Runs on the HTTP threads.
 */
#include <stdlib.h>
#include <string.h>

#include "server/http_impl.h"

#define FIRST_BYTES (4u << 10)  /* of a body whose length is not known */
#define TRUST_BYTES (64u << 10) /* of an announced length, allocated at once */
#define DRAIN_SMALL (64u << 10) /* read of a refused request from anybody */
#define DRAIN_MAX   (64u << 20) /* and from a known caller */

static bool refuse_size(struct exchange *x, uint64_t size)
{
	(void)answer_limit(&x->request, PROBLEM_TOO_LARGE, x->http->config, x->body_flag, size);
	return false;
}

static bool is_known(const struct exchange *x)
{
	return !pw_uuid_is_nil(&x->request.who.token);
}

bool body_check(struct exchange *x, const char *method)
{
	const struct config *c = x->http->config;
	bool is_agent = is_known(x) && x->request.who.role == ROLE_AGENT;

	x->body_flag = is_agent ? "agent-body-bytes" : "body-bytes";
	x->body_max = is_agent ? c->agent_body_bytes : c->body_bytes;
	x->keeps_body = is_known(x) && (strcmp(method, "POST") == 0 || strcmp(method, "PUT") == 0);
	if (!x->has_body)
		return true;
	if (!x->has_type && x->keeps_body) {
		(void)answer_problem(&x->request, PROBLEM_MEDIA_TYPE,
				     "the body's Content-Type must be application/json, in UTF-8");
		return false;
	}
	return x->announced <= x->body_max || refuse_size(x, x->announced);
}

/*
 * An answer before the message has ended costs the connection, and clients that send their whole body before they read
 * lose the answer too. So what is small is read first, and for a known caller also what is large, unless he waits to be
 * told to go on.
 */
bool body_is_worth_draining(const struct exchange *x)
{
	if (x->closes)
		return false;
	if (!x->has_body)
		return true;
	if (x->expects || (!x->announced && !is_known(x)))
		return false;
	return x->announced <= (is_known(x) ? DRAIN_MAX : DRAIN_SMALL);
}

bool body_drain(struct exchange *x, size_t *size)
{
	x->drained += *size;
	*size = 0;
	return x->drained <= (is_known(x) ? DRAIN_MAX : DRAIN_SMALL);
}

static bool charge(struct http *h, size_t bytes)
{
	if (atomic_fetch_add(&h->body_bytes, bytes) + bytes <= h->config->bodies_bytes)
		return true;
	atomic_fetch_sub(&h->body_bytes, bytes);
	return false;
}

static size_t room_for(const struct exchange *x, size_t need)
{
	size_t room = x->body_room * 2;

	if (!room)
		room = x->announced && x->announced < TRUST_BYTES ? (size_t)x->announced + 1 : FIRST_BYTES;
	if (room > x->body_max + 1)
		room = (size_t)x->body_max + 1;
	return room < need ? need : room;
}

/* Room for `more` bytes and a NUL. False: answered. */
static bool make_room(struct exchange *x, size_t more)
{
	size_t need = x->request.body_size + more + 1, room;
	char *body;

	if (need <= x->body_room)
		return true;
	room = room_for(x, need);
	if (!charge(x->http, room - x->body_room)) {
		(void)answer_limit(&x->request, PROBLEM_BUSY, x->http->config, "bodies-bytes",
				   atomic_load(&x->http->body_bytes) + room - x->body_room);
		return false;
	}
	body = realloc(x->body, room);
	if (!body) {
		atomic_fetch_sub(&x->http->body_bytes, room - x->body_room);
		(void)answer_problem(&x->request, PROBLEM_NO_MEMORY, "no memory for the body");
		return false;
	}
	x->body = body;
	x->body_room = room;
	return true;
}

bool body_take(struct exchange *x, const char *data, size_t *size)
{
	struct request *r = &x->request;

	if (!x->keeps_body && x->drained + *size <= x->body_max) {
		x->drained += *size;
		*size = 0;
		return true;
	}
	if (!x->keeps_body) {
		(void)refuse_size(x, x->drained + *size);
	} else if (*size > x->body_max - r->body_size) {
		(void)refuse_size(x, r->body_size + *size);
	} else if (make_room(x, *size)) {
		memcpy(x->body + r->body_size, data, *size);
		r->body_size += *size;
		x->body[r->body_size] = '\0';
		*size = 0;
		return true;
	}
	x->stage = STAGE_REFUSED;
	body_free(x); /* the rest is only read */
	return body_drain(x, size);
}

void body_free(struct exchange *x)
{
	atomic_fetch_sub(&x->http->body_bytes, x->body_room);
	free(x->body);
	x->body = NULL;
	x->body_room = 0;
	x->request.body = "";
	x->request.body_size = 0;
}
