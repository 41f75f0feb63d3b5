#include "api/client.h"

#include <curl/curl.h>
#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <time.h>

#include "api/json.h"

#define BACKOFF_FIRST_MS 100
#define BACKOFF_MAX_MS   5000
#define CONNECT_MS       5000
#define ANSWER_MAX       ((size_t)256 << 20)

struct client {
	CURL *curl;
	char *url, *ca, *cert, *key;
	char *authorization; /* the header, or NULL; secret */
	unsigned timeout_ms, attempts;
	uint64_t jitter;
	const volatile sig_atomic_t *stop; /* borrowed */
	char curl_error[CURL_ERROR_SIZE];
};

static void global_init(void)
{
	curl_global_init(CURL_GLOBAL_DEFAULT);
}

static void wipe_free(char *secret)
{
	if (secret)
		explicit_bzero(secret, strlen(secret));
	free(secret);
}

void client_close(struct client *c)
{
	if (!c)
		return;
	curl_easy_cleanup(c->curl);
	free(c->url);
	free(c->ca);
	free(c->cert);
	free(c->key);
	wipe_free(c->authorization);
	free(c);
}

void client_set_stop(struct client *c, const volatile sig_atomic_t *stop)
{
	c->stop = stop;
}

static bool copy_text(char **to, const char *from)
{
	*to = from ? strdup(from) : NULL;
	return *to || !from;
}

static bool copy_token(char **to, const char *token)
{
	if (token && asprintf(to, "Authorization: Bearer %s", token) >= 0)
		return true;
	*to = NULL;
	return !token;
}

static bool is_header_text(const char *s)
{
	for (; *s; s++)
		if (*s <= 0x20 || *s > 0x7e)
			return false;
	return true;
}

enum pw_status client_open(const struct client_options *o, struct client **out, struct pw_err *err)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	struct client *c;
	size_t n;

	if (!o->url || (strncmp(o->url, "http://", 7) != 0 && strncmp(o->url, "https://", 8) != 0))
		return pw_fail(err, PW_INVALID, "the server's URL \"%s\" does not begin with http:// or https://",
			       o->url ? o->url : "");
	if (o->token && (!o->token[0] || !is_header_text(o->token)))
		return pw_fail(err, PW_INVALID, "the token is empty or has characters that a token cannot have");
	if (pthread_once(&once, global_init) != 0)
		return pw_fail(err, PW_NO_MEMORY, "initialising libcurl failed");
	c = calloc(1, sizeof *c);
	if (!c)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a client");
	c->timeout_ms = o->timeout_ms ? o->timeout_ms : 10000;
	c->attempts = o->attempts ? o->attempts : 5;
	c->jitter = o->jitter_seed;
	c->stop = o->stop;
	c->curl = curl_easy_init();
	if (!c->curl || !copy_text(&c->url, o->url) || !copy_text(&c->ca, o->ca) || !copy_text(&c->cert, o->cert) ||
	    !copy_text(&c->key, o->key) || !copy_token(&c->authorization, o->token)) {
		client_close(c);
		return pw_fail(err, PW_NO_MEMORY, "no memory for a client");
	}
	for (n = strlen(c->url); n && c->url[n - 1] == '/'; n--)
		c->url[n - 1] = '\0';
	*out = c;
	return PW_OK;
}

void client_reply_release(struct client_reply *r)
{
	json_decref(r->json);
	free(r->text);
	*r = (struct client_reply){ 0 };
}

/* One try: what is sent, and what has come back so far. */
struct exchange {
	struct client *c;
	const char *method, *url, *body; /* body may be NULL */
	struct curl_slist *headers;
	unsigned wait_s;
	char *text;
	size_t used, size;
	bool no_memory;
	char location[256];
	unsigned retry_after_s;
};

static size_t on_body(char *data, size_t size, size_t n, void *ctx)
{
	struct exchange *x = ctx;
	size_t bytes = size * n;

	if (bytes > ANSWER_MAX - x->used)
		return CURL_WRITEFUNC_ERROR;
	if (x->size - x->used < bytes + 1) {
		size_t room = 2 * x->size + bytes + 1;
		char *text = realloc(x->text, room);

		if (!text) {
			x->no_memory = true;
			return CURL_WRITEFUNC_ERROR;
		}
		x->text = text;
		x->size = room;
	}
	memcpy(x->text + x->used, data, bytes);
	x->used += bytes;
	x->text[x->used] = '\0';
	return bytes;
}

/* The value of the header `name`, if it is this line and fits: copied to out. */
static bool take_header(const char *line, size_t bytes, const char *name, char *out, size_t size)
{
	size_t from = strlen(name), to = bytes;

	if (bytes < from || strncasecmp(line, name, from) != 0)
		return false;
	while (from < to && line[from] == ' ')
		from++;
	while (to > from && (line[to - 1] == '\r' || line[to - 1] == '\n' || line[to - 1] == ' '))
		to--;
	if (to - from >= size)
		return false;
	memcpy(out, line + from, to - from);
	out[to - from] = '\0';
	return true;
}

static size_t on_header(char *data, size_t size, size_t n, void *ctx)
{
	struct exchange *x = ctx;
	char seconds[16];

	(void)take_header(data, size * n, "location:", x->location, sizeof x->location);
	if (take_header(data, size * n, "retry-after:", seconds, sizeof seconds) &&
	    seconds[strspn(seconds, "0123456789")] == '\0') { /* a date is not ours */
		unsigned long s = strtoul(seconds, NULL, 10);

		x->retry_after_s = s < CLIENT_RETRY_MAX_S ? (unsigned)s : CLIENT_RETRY_MAX_S;
	}
	return size * n;
}

static bool is_stopped(const struct client *c)
{
	return c->stop && __atomic_load_n(c->stop, __ATOMIC_RELAXED);
}

static int on_progress(void *ctx, curl_off_t down_all, curl_off_t down, curl_off_t up_all, curl_off_t up)
{
	return is_stopped(ctx);
}

static void set_up(struct exchange *x)
{
	struct client *c = x->c;
	CURL *h = c->curl;

	curl_easy_reset(h); /* connections stay */
	c->curl_error[0] = '\0';
	curl_easy_setopt(h, CURLOPT_ERRORBUFFER, c->curl_error);
	curl_easy_setopt(h, CURLOPT_NOSIGNAL, 1L);
	curl_easy_setopt(h, CURLOPT_PROTOCOLS_STR, "http,https");
	curl_easy_setopt(h, CURLOPT_URL, x->url);
	curl_easy_setopt(h, CURLOPT_CONNECTTIMEOUT_MS, (long)(c->timeout_ms < CONNECT_MS ? c->timeout_ms : CONNECT_MS));
	curl_easy_setopt(h, CURLOPT_TIMEOUT_MS, (long)c->timeout_ms + (long)x->wait_s * 1000);
	curl_easy_setopt(h, CURLOPT_HTTPHEADER, x->headers);
	curl_easy_setopt(h, CURLOPT_WRITEFUNCTION, on_body);
	curl_easy_setopt(h, CURLOPT_WRITEDATA, x);
	curl_easy_setopt(h, CURLOPT_HEADERFUNCTION, on_header);
	curl_easy_setopt(h, CURLOPT_HEADERDATA, x);
	curl_easy_setopt(h, CURLOPT_NOPROGRESS, 0L);
	curl_easy_setopt(h, CURLOPT_XFERINFOFUNCTION, on_progress);
	curl_easy_setopt(h, CURLOPT_XFERINFODATA, c);
	if (x->body) {
		curl_easy_setopt(h, CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t)strlen(x->body));
		curl_easy_setopt(h, CURLOPT_POSTFIELDS, x->body);
	} else {
		curl_easy_setopt(h, CURLOPT_HTTPGET, 1L);
	}
	curl_easy_setopt(h, CURLOPT_CUSTOMREQUEST, x->method);
	if (c->ca)
		curl_easy_setopt(h, CURLOPT_CAINFO, c->ca);
	if (c->cert)
		curl_easy_setopt(h, CURLOPT_SSLCERT, c->cert);
	if (c->key)
		curl_easy_setopt(h, CURLOPT_SSLKEY, c->key);
}

static bool is_success(unsigned status)
{
	return status >= 200 && status < 300;
}

static enum pw_problem problem_of(const struct client_reply *r)
{
	static const char prefix[] = "/problems/";
	const char *type = json_string_value(json_object_get(r->json, "type"));
	enum pw_problem p;

	if (is_success(r->status))
		return PROBLEM_NONE;
	if (type && strncmp(type, prefix, sizeof prefix - 1) == 0 && problem_from_slug(type + sizeof prefix - 1, &p))
		return p;
	return PROBLEM_INTERNAL;
}

/* Moves what came back into *out. False: no memory. */
static bool take_answer(struct exchange *x, struct client_reply *out)
{
	bool no_memory = false;
	json_error_t e;
	long status = 0;

	curl_easy_getinfo(x->c->curl, CURLINFO_RESPONSE_CODE, &status);
	out->status = (unsigned)status;
	out->json = x->used ? json_load_text(x->text, x->used, &e, &no_memory) : NULL;
	out->text = x->text;
	x->text = NULL;
	memcpy(out->location, x->location, sizeof out->location);
	out->retry_after_s = x->retry_after_s;
	out->problem = problem_of(out);
	return !no_memory;
}

/* PW_OK: there is an answer, good or bad. */
static enum pw_status try_once(struct exchange *x, struct client_reply *out, struct pw_err *err)
{
	CURLcode code;

	x->used = x->size = 0;
	x->location[0] = '\0';
	x->retry_after_s = 0;
	set_up(x);
	code = curl_easy_perform(x->c->curl);
	if (code == CURLE_OK && take_answer(x, out))
		return PW_OK;
	free(x->text);
	x->text = NULL;
	if (code == CURLE_ABORTED_BY_CALLBACK)
		return pw_fail(err, PW_BUSY, "%s %s: stopped", x->method, x->url);
	if (code == CURLE_OK || code == CURLE_OUT_OF_MEMORY || x->no_memory)
		return pw_fail(err, PW_NO_MEMORY, "%s %s: no memory", x->method, x->url);
	return pw_fail(err, PW_NETWORK, "%s %s: %s", x->method, x->url,
		       x->c->curl_error[0] ? x->c->curl_error : curl_easy_strerror(code));
}

static bool may_help_to_retry(const struct client_reply *r)
{
	return r->status == 429 || (r->status >= 502 && r->status <= 504) ||
	       (!is_success(r->status) && json_is_true(json_object_get(r->json, "retryable")));
}

static uint64_t next_random(struct client *c)
{
	uint64_t z = c->jitter += 0x9e3779b97f4a7c15u;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
	z = (z ^ z >> 27) * 0x94d049bb133111ebu;
	return z ^ z >> 31;
}

/* Full jitter: anything up to 100 ms, 200 ms, 400 ms ... 5 s, beyond what the server asks for. In slices, so that a
 * stop is seen soon. */
static void back_off(struct client *c, unsigned tried, unsigned retry_after_s)
{
	uint64_t cap = tried < 6 ? (uint64_t)BACKOFF_FIRST_MS << tried : BACKOFF_MAX_MS;
	uint64_t left = next_random(c) % (cap + 1) + (uint64_t)retry_after_s * 1000;

	while (left && !is_stopped(c)) {
		uint64_t slice = left < 50 ? left : 50;
		struct timespec t = { 0, (long)slice * 1000000 };

		nanosleep(&t, NULL);
		left -= slice;
	}
}

static enum pw_status status_of(const struct client_reply *r)
{
	if (r->problem == PROBLEM_STORAGE)
		return PW_STORAGE;
	if (r->problem == PROBLEM_OUTCOME_UNKNOWN)
		return PW_NETWORK; /* as after a lost answer: the same key learns it */
	if (r->problem == PROBLEM_NO_MEMORY)
		return PW_NO_MEMORY;
	if (r->problem == PROBLEM_BACKEND || r->problem == PROBLEM_DRIFT)
		return PW_BACKEND;
	switch (r->status) {
	case 401:
	case 403: return PW_DENIED;
	case 404:
	case 410: return PW_NOT_FOUND;
	case 409:
	case 412: return PW_CONFLICT;
	case 429: return PW_BUSY;
	default: return r->status >= 500 ? PW_BUSY : PW_INVALID;
	}
}

static enum pw_status judge(const struct exchange *x, const struct client_reply *r, struct pw_err *err)
{
	const char *detail = json_string_value(json_object_get(r->json, "detail"));

	if (is_success(r->status))
		return PW_OK;
	if (detail)
		return pw_fail(err, status_of(r), "%s: %s", problem_slug(r->problem), detail);
	return pw_fail(err, status_of(r), "%s %s: HTTP status %u", x->method, x->url, r->status);
}

static enum pw_status try_all(struct exchange *x, struct client_reply *out, struct pw_err *err)
{
	for (unsigned tried = 0;; tried++) {
		enum pw_status st;
		bool last = tried + 1 >= x->c->attempts;

		if (is_stopped(x->c))
			return pw_fail(err, PW_BUSY, "%s %s: stopped", x->method, x->url);
		client_reply_release(out);
		st = try_once(x, out, err);
		if (st == PW_OK && (last || !may_help_to_retry(out)))
			return judge(x, out, err);
		if (st != PW_OK && (last || st != PW_NETWORK))
			return st;
		back_off(x->c, tried, st == PW_OK ? out->retry_after_s : 0);
	}
}

static bool add_header(struct curl_slist **list, const char *name, const char *value)
{
	struct curl_slist *longer;
	char *text;

	if (asprintf(&text, "%s: %s", name, value) < 0)
		return false;
	longer = curl_slist_append(*list, text);
	free(text);
	if (!longer)
		return false;
	*list = longer;
	return true;
}

static void free_headers(struct curl_slist *list)
{
	for (struct curl_slist *h = list; h; h = h->next)
		explicit_bzero(h->data, strlen(h->data)); /* the token is among them */
	curl_slist_free_all(list);
}

static enum pw_status make_key(char key[PW_UUID_TEXT], struct pw_err *err)
{
	uint8_t random[16];
	struct pw_uuid id;

	if (getrandom(random, sizeof random, 0) != (ssize_t)sizeof random)
		return pw_fail(err, PW_BACKEND, "no random bytes: %s", strerror(errno));
	id = pw_uuid_from_random(random);
	pw_uuid_format(&id, key);
	return PW_OK;
}

static bool make_headers(struct exchange *x, const char *key)
{
	struct curl_slist *first = curl_slist_append(NULL, "Accept: application/json, application/problem+json");

	if (!first)
		return false;
	x->headers = first;
	if (x->c->authorization) {
		first = curl_slist_append(x->headers, x->c->authorization);
		if (!first)
			return false;
		x->headers = first;
	}
	first = curl_slist_append(x->headers, "Expect:"); /* bodies go out at once */
	return first && (!x->body || add_header(&x->headers, "Content-Type", "application/json")) &&
	       (!key || add_header(&x->headers, "Idempotency-Key", key));
}

enum pw_status client_call(struct client *c, const char *method, const char *path, json_t *body, const char *key,
			   unsigned wait_s, struct client_reply *out, struct pw_err *err)
{
	struct exchange x = { .c = c, .method = method, .wait_s = wait_s };
	bool is_post = strcmp(method, "POST") == 0;
	char *url = NULL, *text = NULL, fresh[PW_UUID_TEXT];
	enum pw_status st = PW_OK;

	*out = (struct client_reply){ .problem = PROBLEM_INTERNAL };
	if (is_post && !key) {
		st = make_key(fresh, err);
		key = fresh;
	}
	if (st != PW_OK)
		return st;
	st = pw_fail(err, PW_NO_MEMORY, "%s %s: no memory", method, path);
	if (asprintf(&url, "%s%s", c->url, path) < 0) {
		url = NULL;
		goto out;
	}
	text = body ? json_dumps(body, JSON_COMPACT | JSON_ENCODE_ANY) : strdup("");
	if (!text)
		goto out;
	x.url = url;
	x.body = body || is_post ? text : NULL;
	if (!make_headers(&x, is_post ? key : NULL))
		goto out;
	st = try_all(&x, out, err);
	if (st == PW_OK && err)
		err->msg[0] = '\0';
out:
	free_headers(x.headers);
	free(text);
	free(url);
	return st;
}

/* The path of the next page. NULL: no memory. */
static char *page_path(struct client *c, const char *path, const char *cursor)
{
	char *escaped = curl_easy_escape(c->curl, cursor, 0), *page = NULL;

	if (escaped && asprintf(&page, "%s%ccursor=%s", path, strchr(path, '?') ? '&' : '?', escaped) < 0)
		page = NULL;
	curl_free(escaped);
	return page;
}

static enum pw_status visit_page(struct client *c, const char *path, client_item_fn fn, void *ctx, char **cursor,
				 struct pw_err *err)
{
	struct client_reply r;
	enum pw_status st = client_call(c, "GET", path, NULL, NULL, 0, &r, err);
	json_t *items = json_object_get(r.json, "items"), *item;
	const char *next = json_string_value(json_object_get(r.json, "next_cursor"));
	bool more = true;
	size_t i;

	if (st == PW_OK && !json_is_array(items))
		st = pw_fail(err, PW_INVALID, "GET %s: the answer has no items", path);
	if (st == PW_OK) {
		for (i = 0; more && i < json_array_size(items); i++) {
			item = json_array_get(items, i);
			more = fn(ctx, item);
		}
		if (more && next && *cursor && strcmp(next, *cursor) == 0)
			st = pw_fail(err, PW_INVALID, "GET %s: the answer's next_cursor leads nowhere", path);
	}
	free(*cursor);
	*cursor = NULL;
	if (st == PW_OK && more && next && !copy_text(cursor, next))
		st = pw_fail(err, PW_NO_MEMORY, "GET %s: no memory", path);
	client_reply_release(&r);
	return st;
}

enum pw_status client_list(struct client *c, const char *path, client_item_fn fn, void *ctx, struct pw_err *err)
{
	char *cursor = NULL;
	enum pw_status st = visit_page(c, path, fn, ctx, &cursor, err);

	while (st == PW_OK && cursor) {
		char *page = page_path(c, path, cursor);

		if (!page)
			st = pw_fail(err, PW_NO_MEMORY, "GET %s: no memory", path);
		else
			st = visit_page(c, page, fn, ctx, &cursor, err);
		free(page);
	}
	free(cursor);
	return st;
}
