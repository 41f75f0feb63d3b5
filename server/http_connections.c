/*
 * Who may be connected, and for how long. Connections are counted, all together and for each address; beyond the limits
 * a newcomer takes the place of the one that has said nothing for the longest time, or one of those that are kept for
 * /healthz, admins and agents. One thread looks at them all a few times a second: it ends those whose time for what
 * they are to do is over, however few bytes they drip, and finds the parked ones whose client has gone.
 *
 * A connection is ended by shutting its socket down: its own thread sees that and closes it, so no connection is
 * touched by two threads.
 */
#include <errno.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>

#include "server/http_impl.h"

#define PEER_BUCKETS     1024
#define LOOK_MS          250
#define LOOK_MANY        1024  /* looked at without a pause, under the lock */
#define PARKED_LONG_MS   200   /* from then on its client may have gone */
#define PARKED_LOOKS     8     /* a parked one is asked for its client in one of so many looks: that is a system call */
#define GRACE_MS         500   /* who has just come may be about to ask */
#define PRIVILEGE_MS     60000 /* an idle admin or agent is left alone for so long */
#define RESERVED_A_TOKEN 4     /* a token may have one in so many of the reserved places */

struct peer {
	struct peer *next;
	unsigned char address[16]; /* IPv4: mapped; IPv6: the first 64 bits, which one customer has */
	unsigned connections, ordinary;
};

struct connections {
	struct http *http;           /* borrowed */
	const struct config *config; /* borrowed */
	pthread_mutex_t lock;        /* what follows */
	pthread_cond_t wake;
	struct exchange *newest;
	struct exchange *next_looked_at; /* the watcher's place in the list */
	unsigned looks;
	struct peer *peers[PEER_BUCKETS];
	unsigned ordinary, reserved;
	bool stop;
	pthread_t watcher;
};

static uint64_t now_ms(void)
{
	struct timespec now;

	clock_gettime(CLOCK_MONOTONIC_COARSE, &now);
	return (uint64_t)now.tv_sec * 1000 + (uint64_t)now.tv_nsec / 1000000;
}

void exchange_enter_phase(struct exchange *x, enum phase phase)
{
	atomic_store_explicit(&x->phase, now_ms() << 3 | phase, memory_order_relaxed);
}

static enum phase phase_of(const struct exchange *x, uint64_t *since_ms)
{
	uint64_t p = atomic_load_explicit(&x->phase, memory_order_relaxed);

	*since_ms = p >> 3;
	return (enum phase)(p & 7);
}

static enum place place_of(const struct exchange *x)
{
	return (enum place)atomic_load_explicit(&x->place, memory_order_relaxed);
}

static bool is_privileged(const struct exchange *x)
{
	return atomic_load_explicit(&x->is_privileged, memory_order_relaxed);
}

/* --- Addresses --- */

static void address_of(int fd, unsigned char out[16])
{
	union {
		struct sockaddr any;
		struct sockaddr_in v4;
		struct sockaddr_in6 v6;
		struct sockaddr_storage room;
	} a = { .any = { .sa_family = AF_UNSPEC } };
	socklen_t size = sizeof a;

	memset(out, 0, 16);
	if (getpeername(fd, &a.any, &size) != 0)
		return;
	if (a.any.sa_family == AF_INET) {
		memset(out + 10, 0xff, 2);
		memcpy(out + 12, &a.v4.sin_addr, 4);
	} else if (a.any.sa_family == AF_INET6) {
		memcpy(out, &a.v6.sin6_addr, 8);
	}
}

static struct peer **bucket_of(struct connections *cs, const unsigned char address[16])
{
	uint32_t hash = 2166136261u;

	for (int i = 0; i < 16; i++)
		hash = (hash ^ address[i]) * 16777619u;
	return &cs->peers[hash % PEER_BUCKETS];
}

/* NULL: no memory. */
static struct peer *peer_join(struct connections *cs, const unsigned char address[16])
{
	struct peer **bucket = bucket_of(cs, address), *p = *bucket;

	while (p && memcmp(p->address, address, 16) != 0)
		p = p->next;
	if (!p) {
		p = calloc(1, sizeof *p);
		if (!p)
			return NULL;
		memcpy(p->address, address, 16);
		p->next = *bucket;
		*bucket = p;
	}
	p->connections++;
	return p;
}

static void peer_part(struct connections *cs, struct peer *p)
{
	struct peer **at = bucket_of(cs, p->address);

	if (--p->connections)
		return;
	while (*at != p)
		at = &(*at)->next;
	*at = p->next;
	free(p);
}

/* --- Places; all under the lock --- */

static void set_place(struct connections *cs, struct exchange *x, enum place to)
{
	switch (place_of(x)) {
	case PLACE_ORDINARY:
		cs->ordinary--;
		x->peer->ordinary--;
		break;
	case PLACE_RESERVED: cs->reserved--; break;
	case PLACE_LEAVING: break;
	}
	switch (to) {
	case PLACE_ORDINARY:
		cs->ordinary++;
		x->peer->ordinary++;
		break;
	case PLACE_RESERVED: cs->reserved++; break;
	case PLACE_LEAVING: break;
	}
	atomic_store_explicit(&x->place, to, memory_order_relaxed);
}

static void shut(struct connections *cs, struct exchange *x)
{
	set_place(cs, x, PLACE_LEAVING);
	(void)shutdown(x->fd, SHUT_RDWR);
}

static unsigned share_of_address(const struct config *c)
{
	unsigned most = c->connections - c->connections / 4;

	return c->address_connections && c->address_connections < most ? c->address_connections : most;
}

static bool has_room(const struct connections *cs, const struct peer *p)
{
	return cs->ordinary < cs->config->connections && p->ordinary < share_of_address(cs->config);
}

/* May it be ended for a newcomer? Who owes the server a request: after a moment, in which that may be on its way (but
 * at a reserved place none must wait); an agent or admin, who comes again, after a while. */
static bool is_idle(const struct exchange *x, uint64_t now, uint64_t *since)
{
	enum phase phase = phase_of(x, since);
	uint64_t left_alone = is_privileged(x) ? PRIVILEGE_MS : place_of(x) == PLACE_RESERVED ? 0 : GRACE_MS;

	return (phase == PHASE_IDLE || phase == PHASE_HEAD) && now >= *since + left_alone;
}

/* Nobody's before an agent's, then of the address that has the most, then the one that is idle the longest. */
static bool goes_before(const struct exchange *x, uint64_t since, const struct exchange *y, uint64_t y_since)
{
	if (is_privileged(x) != is_privileged(y))
		return !is_privileged(x);
	if (x->peer->connections != y->peer->connections)
		return x->peer->connections > y->peer->connections;
	return since <= y_since;
}

/* Ends an idle one at such a place; of that address, unless that is NULL. */
static void make_room(struct connections *cs, enum place place, const struct peer *of)
{
	struct exchange *victim = NULL;
	uint64_t now = now_ms(), victim_since = 0, since;

	for (struct exchange *x = cs->newest; x; x = x->older) {
		if (place_of(x) != place || (of && x->peer != of) || !is_idle(x, now, &since))
			continue;
		if (!victim || goes_before(x, since, victim, victim_since)) {
			victim = x;
			victim_since = since;
		}
	}
	if (victim)
		shut(cs, victim);
}

/* Is there room for one more of that address, now or because somebody goes? */
static bool find_room(struct connections *cs, const struct peer *p)
{
	if (!has_room(cs, p))
		make_room(cs, PLACE_ORDINARY, p->ordinary < share_of_address(cs->config) ? NULL : p);
	return has_room(cs, p);
}

static enum place find_place(struct connections *cs, const struct peer *p)
{
	if (find_room(cs, p))
		return PLACE_ORDINARY;
	if (cs->reserved >= cs->config->reserve_connections)
		make_room(cs, PLACE_RESERVED, NULL);
	return cs->reserved < cs->config->reserve_connections ? PLACE_RESERVED : PLACE_LEAVING;
}

static void link_in(struct connections *cs, struct exchange *x)
{
	x->newer = NULL;
	x->older = cs->newest;
	if (x->older)
		x->older->newer = x;
	cs->newest = x;
}

static void unlink_from(struct connections *cs, struct exchange *x)
{
	if (cs->next_looked_at == x)
		cs->next_looked_at = x->older;
	*(x->newer ? &x->newer->older : &cs->newest) = x->older;
	if (x->older)
		x->older->newer = x->newer;
}

void connections_enter(struct connections *cs, struct exchange *x)
{
	const union MHD_ConnectionInfo *info =
		MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
	unsigned char address[16];

	x->fd = info ? info->connect_fd : -1;
	atomic_store_explicit(&x->place, PLACE_LEAVING, memory_order_relaxed);
	exchange_enter_phase(x, PHASE_IDLE);
	address_of(x->fd, address);
	pthread_mutex_lock(&cs->lock);
	x->peer = peer_join(cs, address);
	if (x->peer) {
		enum place place = find_place(cs, x->peer);

		link_in(cs, x);
		set_place(cs, x, place);
	}
	if (place_of(x) == PLACE_LEAVING)
		(void)shutdown(x->fd, SHUT_RDWR);
	pthread_mutex_unlock(&cs->lock);
}

void connections_leave(struct connections *cs, struct exchange *x)
{
	if (!x->peer)
		return;
	pthread_mutex_lock(&cs->lock);
	set_place(cs, x, PLACE_LEAVING);
	unlink_from(cs, x);
	peer_part(cs, x->peer);
	x->peer = NULL;
	pthread_mutex_unlock(&cs->lock);
}

/* One token does not take all that is reserved. */
static bool may_use_reserve(const struct connections *cs, const struct exchange *x)
{
	unsigned others = 0, most = (cs->config->reserve_connections + RESERVED_A_TOKEN - 1) / RESERVED_A_TOKEN;

	for (const struct exchange *y = cs->newest; y; y = y->older)
		others += y != x && place_of(y) == PLACE_RESERVED && pw_uuid_equal(&y->user, &x->user);
	return others < most;
}

/* Was it let in before, for this very token? Then nobody is counted again: the house is full, and it has many requests.
 */
static bool has_reserve(const struct exchange *x)
{
	return is_privileged(x) && !pw_uuid_is_nil(&x->user) && pw_uuid_equal(&x->user, &x->request.who.token);
}

bool connections_may_serve(struct connections *cs, struct exchange *x)
{
	bool may = true;

	if (place_of(x) == PLACE_ORDINARY)
		return true;
	pthread_mutex_lock(&cs->lock);
	if (place_of(x) == PLACE_RESERVED && has_room(cs, x->peer)) {
		set_place(cs, x, PLACE_ORDINARY);
	} else if (place_of(x) == PLACE_RESERVED && !has_reserve(x)) {
		x->user = x->request.who.token;
		may = is_privileged(x) && may_use_reserve(cs, x);
		if (!may)
			x->user = (struct pw_uuid){ { 0 } };
	}
	pthread_mutex_unlock(&cs->lock);
	return may;
}

/* --- The watcher --- */

/* How long it may be in the phase it is in; 0: as long as it takes. */
static uint64_t allowed_ms(const struct config *c, const struct exchange *x, enum phase phase)
{
	switch (phase) {
	case PHASE_IDLE:
		return 1000u * (uint64_t)(atomic_load_explicit(&x->served, memory_order_relaxed) ? c->idle_seconds
												 : c->head_seconds);
	case PHASE_HEAD: return 1000u * (uint64_t)c->head_seconds;
	case PHASE_BODY: return 1000u * (uint64_t)c->body_seconds;
	case PHASE_ANSWER: return 1000u * (uint64_t)c->answer_seconds;
	case PHASE_RUNNING:
	case PHASE_PARKED: return 0;
	}
	return 0;
}

/* Does nobody listen any more? An end of what the client sends is taken for that: it has nothing more to ask. */
static bool has_gone(const struct exchange *x)
{
	struct pollfd p = { .fd = x->fd, .events = POLLRDHUP };

	return poll(&p, 1, 0) == 1 && (p.revents & (POLLRDHUP | POLLHUP | POLLERR));
}

static void look_at(struct connections *cs, struct exchange *x, uint64_t now)
{
	uint64_t since, allowed;
	enum phase phase = phase_of(x, &since);

	if (place_of(x) == PLACE_LEAVING && phase != PHASE_PARKED)
		return;
	allowed = allowed_ms(cs->config, x, phase);
	if (allowed && now > since && now - since > allowed) {
		shut(cs, x);
	} else if (phase == PHASE_PARKED && (cs->looks + (unsigned)x->fd) % PARKED_LOOKS == 0 && now > since &&
		   now - since > PARKED_LONG_MS && has_gone(x)) {
		atomic_store(&x->gone, true);
		set_place(cs, x, PLACE_LEAVING);
		if (service_forget(cs->http->service, &x->request))
			request_resume(&x->request);
	}
}

/* Under the lock, which others get in between. */
static void look_at_all(struct connections *cs)
{
	cs->looks++;
	cs->next_looked_at = cs->newest;
	while (cs->next_looked_at) {
		uint64_t now = now_ms();

		for (unsigned n = 0; cs->next_looked_at && n < LOOK_MANY; n++) {
			struct exchange *x = cs->next_looked_at;

			cs->next_looked_at = x->older;
			look_at(cs, x, now);
		}
		pthread_mutex_unlock(&cs->lock);
		pthread_mutex_lock(&cs->lock);
	}
}

static void *watch(void *arg)
{
	struct connections *cs = arg;

	pthread_mutex_lock(&cs->lock);
	while (!cs->stop) {
		struct timespec until;

		clock_gettime(CLOCK_MONOTONIC, &until);
		until.tv_nsec += LOOK_MS * 1000000L;
		until.tv_sec += until.tv_nsec / 1000000000;
		until.tv_nsec %= 1000000000;
		pthread_cond_timedwait(&cs->wake, &cs->lock, &until);
		look_at_all(cs);
		pthread_mutex_unlock(&cs->lock);
		refusals_drain(cs->http->refusals);
		pthread_mutex_lock(&cs->lock);
	}
	pthread_mutex_unlock(&cs->lock);
	return NULL;
}

static void connections_free(struct connections *cs)
{
	pthread_cond_destroy(&cs->wake);
	pthread_mutex_destroy(&cs->lock);
	free(cs);
}

enum pw_status connections_start(struct http *h, struct connections **out, struct pw_err *err)
{
	struct connections *cs = calloc(1, sizeof *cs);
	pthread_condattr_t monotonic;
	int e;

	if (!cs)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the connections");
	cs->http = h;
	cs->config = h->config;
	pthread_mutex_init(&cs->lock, NULL);
	pthread_condattr_init(&monotonic);
	pthread_condattr_setclock(&monotonic, CLOCK_MONOTONIC);
	pthread_cond_init(&cs->wake, &monotonic);
	pthread_condattr_destroy(&monotonic);
	e = pthread_create(&cs->watcher, NULL, watch, cs);
	if (e) {
		connections_free(cs);
		return pw_fail(err, PW_NO_MEMORY, "starting the thread that watches connections: %s", strerror(e));
	}
	*out = cs;
	return PW_OK;
}

void connections_stop(struct connections *cs)
{
	if (!cs)
		return;
	pthread_mutex_lock(&cs->lock);
	cs->stop = true;
	pthread_cond_signal(&cs->wake);
	pthread_mutex_unlock(&cs->lock);
	pthread_join(cs->watcher, NULL);
	connections_free(cs);
}
