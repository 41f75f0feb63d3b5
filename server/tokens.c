#include <errno.h>
#include <fcntl.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/log.h"
#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(token)

/* A secret: "pw", the token's id as 32 hex digits, 64 more of chance. The id finds the token, the whole is its proof.
 */
enum { SECRET_ID = 2, SECRET_CHANCE = SECRET_ID + 32, SECRET_LEN = SECRET_CHANCE + 64, TOKENS_MAX = 10000 };

int token_compare(const void *key, const void *item)
{
	return memcmp(key, ((const struct token *)item)->id.b, sizeof(struct pw_uuid));
}

static void secret_hash(const char *secret, uint8_t out[STORE_HASH])
{
	crypto_generichash(out, STORE_HASH, (const unsigned char *)secret, SECRET_LEN, NULL, 0);
}

static void secret_make(const struct pw_uuid *id, char secret[SECRET_LEN + 1])
{
	uint8_t chance[32];

	randombytes_buf(chance, sizeof chance);
	memcpy(secret, "pw", SECRET_ID);
	sodium_bin2hex(secret + SECRET_ID, 33, id->b, sizeof id->b);
	sodium_bin2hex(secret + SECRET_CHANCE, 65, chance, sizeof chance);
	explicit_bzero(chance, sizeof chance);
}

static bool secret_id(const char *secret, size_t len, struct pw_uuid *id)
{
	size_t n;

	return len == SECRET_LEN && memcmp(secret, "pw", SECRET_ID) == 0 &&
	       sodium_hex2bin(id->b, sizeof id->b, secret + SECRET_ID, 32, NULL, &n, NULL) == 0 && n == sizeof id->b;
}

bool service_authenticate(struct service *sv, const char *secret, size_t len, struct principal *out)
{
	uint8_t hash[STORE_HASH];
	const struct token *t;
	struct pw_uuid id;
	bool ok = false;

	if (!secret_id(secret, len, &id))
		return false;
	secret_hash(secret, hash);
	pthread_rwlock_rdlock(&sv->tokens_lock);
	t = index_find(&sv->tokens, &id);
	for (const struct token *old = sv->leaving; !t && old; old = old->leaving)
		t = pw_uuid_equal(&old->id, &id) ? old : NULL;
	if (t && sodium_memcmp(t->hash, hash, sizeof hash) == 0) {
		ok = true;
		out->token = t->id;
		out->role = t->role;
		out->host = t->host;
		memcpy(out->name, t->name, sizeof out->name);
		crypto_generichash(out->seal, sizeof out->seal, (const unsigned char *)secret, SECRET_LEN,
				   (const unsigned char *)"seal", 4);
	}
	pthread_rwlock_unlock(&sv->tokens_lock);
	return ok;
}

/* The registry. Who is who is asked by every request, so it does not wait for what the writer does to the rest. */

static void unmake_token(void *ctx, const void *args)
{
	struct token *t = *(struct token *const *)args;
	struct service *sv = ctx;

	pthread_rwlock_wrlock(&sv->tokens_lock);
	index_remove(&sv->tokens, &t->id);
	pthread_rwlock_unlock(&sv->tokens_lock);
	free(t);
}

enum pw_status token_reserve(struct service *sv)
{
	enum pw_status st;

	pthread_rwlock_wrlock(&sv->tokens_lock);
	st = index_reserve(&sv->tokens);
	pthread_rwlock_unlock(&sv->tokens_lock);
	return st == PW_OK ? undo_reserve(ledger_undo(sv->ledger), UNDO_RECORD(sizeof(struct token *))) : st;
}

enum pw_status token_add(struct service *sv, const struct token *t)
{
	static const struct undo_ops made = { .rollback = unmake_token };
	struct token *copy;

	if (token_reserve(sv) != PW_OK)
		return PW_NO_MEMORY;
	copy = malloc(sizeof *copy);
	if (!copy)
		return PW_NO_MEMORY;
	*copy = *t;
	pthread_rwlock_wrlock(&sv->tokens_lock);
	index_insert(&sv->tokens, &copy->id, copy);
	pthread_rwlock_unlock(&sv->tokens_lock);
	undo_push(ledger_undo(sv->ledger), &made, sv, &copy, sizeof copy);
	return PW_OK;
}

static void leave_no_more(struct service *sv, struct token *t)
{
	struct token **at = &sv->leaving;

	while (*at != t)
		at = &(*at)->leaving;
	*at = t->leaving;
}

static void put_token_back(void *ctx, const void *args)
{
	struct token *t = *(struct token *const *)args;
	struct service *sv = ctx;

	pthread_rwlock_wrlock(&sv->tokens_lock);
	leave_no_more(sv, t);
	index_insert(&sv->tokens, &t->id, t);
	pthread_rwlock_unlock(&sv->tokens_lock);
}

static void forget_token(void *ctx, const void *args)
{
	struct token *t = *(struct token *const *)args;
	struct service *sv = ctx;

	pthread_rwlock_wrlock(&sv->tokens_lock);
	leave_no_more(sv, t);
	pthread_rwlock_unlock(&sv->tokens_lock);
	free(t);
}

void token_remove(struct service *sv, struct token *t)
{
	static const struct undo_ops removed = { .rollback = put_token_back, .commit = forget_token };

	pthread_rwlock_wrlock(&sv->tokens_lock);
	index_remove(&sv->tokens, &t->id);
	t->leaving = sv->leaving;
	sv->leaving = t;
	pthread_rwlock_unlock(&sv->tokens_lock);
	undo_push(ledger_undo(sv->ledger), &removed, sv, &t, sizeof t);
}

void tokens_release(struct service *sv)
{
	for (size_t i = 0; i < sv->tokens.count; i++)
		free(sv->tokens.items[i]);
	index_release(&sv->tokens);
}

/* Routes. */

static void write_token(struct jsonw *w, const struct token *t, const char *secret)
{
	jsonw_open(w, '{');
	jsonw_m_uuid(w, "id", &t->id);
	jsonw_m_str(w, "role", role_name(t->role));
	jsonw_m_str(w, "name", t->name);
	if (t->role == ROLE_AGENT)
		jsonw_m_uuid(w, "host", &t->host);
	jsonw_m_time(w, "created", t->created_ms);
	jsonw_m_u64(w, "revision", t->revision);
	if (secret)
		jsonw_m_str(w, "secret", secret);
	jsonw_close(w, '}');
}

void tokens_list(struct service *sv, struct request *r)
{
	static const char *const known[] = { "limit", "cursor", NULL };
	struct pw_uuid after = { { 0 } };
	char next[PW_UUID_TEXT] = "";
	const char *cursor;
	uint64_t limit;
	struct jsonw w;
	size_t i;

	if (!query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit) || !query_cursor(r, &after, &cursor))
		return;
	list_begin(&w);
	i = cursor ? index_after(&sv->tokens, &after) : 0;
	for (; i < sv->tokens.count && list_goes_on(sv, &w, &limit); i++)
		write_token(&w, sv->tokens.items[i], NULL);
	if (i < sv->tokens.count)
		pw_uuid_format(&((const struct token *)sv->tokens.items[i - 1])->id, next);
	list_end(&w, next[0] ? next : NULL, NULL);
	answer_json(r, 200, &w);
}

bool token_prepare(struct service *sv, struct request *r)
{
	return query_known(r, no_query) && prepare_token(sv, r);
}

static void say_token(struct service *sv, const struct request *r, const struct token *t)
{
	char hash[2 * STORE_HASH + 1];
	struct jsonw w;

	sodium_bin2hex(hash, sizeof hash, t->hash, sizeof t->hash);
	event_begin(&w, "token.created", r);
	jsonw_m_uuid(&w, "token", &t->id);
	jsonw_m_str(&w, "role", role_name(t->role));
	jsonw_m_str(&w, "name", t->name);
	if (t->role == ROLE_AGENT)
		jsonw_m_uuid(&w, "host", &t->host);
	jsonw_m_str(&w, "private", hash); /* last: record_write keeps it out of the feed */
	event_end(sv, &w);
}

void token_create_act(struct service *sv, struct request *r)
{
	const struct token_body *b = &((struct token_job *)r->job)->b;
	struct token t = { .role = b->role, .created_ms = sv->group_time_ms, .revision = next_revision(sv) };
	char secret[SECRET_LEN + 1];
	char id[PW_UUID_TEXT];
	struct jsonw w;

	if (sv->tokens.count >= TOKENS_MAX) {
		answer_problem(r, PROBLEM_LIMIT, "there are %d tokens already", TOKENS_MAX);
		return;
	}
	t.id = uuid_fresh();
	if (b->has_host)
		t.host = b->host;
	snprintf(t.name, sizeof t.name, "%s", b->name);
	secret_make(&t.id, secret);
	secret_hash(secret, t.hash);
	if (token_add(sv, &t) != PW_OK) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while creating the token");
	} else {
		say_token(sv, r, &t);
		jsonw_init(&w);
		write_token(&w, &t, secret);
		answer_json(r, 201, &w);
		pw_uuid_format(&t.id, id);
		answer_etag(r, t.revision);
		answer_header(r, "Location", "/v1/tokens/%s", id);
	}
	explicit_bzero(secret, sizeof secret);
}

void token_delete_act(struct service *sv, struct request *r)
{
	struct pw_uuid id;
	struct token *t;
	struct jsonw w;

	if (!arg_uuid(r, 0, PROBLEM_TOKEN_NOT_FOUND, &id) || !query_known(r, no_query))
		return;
	t = index_find(&sv->tokens, &id);
	if (!t) {
		answer_problem(r, PROBLEM_TOKEN_NOT_FOUND, "there is no token %s", r->args[0]);
		return;
	}
	if (!if_match(r, t->revision))
		return;
	if (token_reserve(sv) != PW_OK) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while deleting the token");
		return;
	}
	token_remove(sv, t);
	event_begin(&w, "token.deleted", r);
	jsonw_m_uuid(&w, "token", &id);
	event_end(sv, &w);
	stir(sv, WAIT_TOKEN, &id);
	answer_empty(r, 204);
}

/* The first admin: DATA/admin.token. The file comes first, so that no crash leaves a token that nobody knows. */

static bool has_admin(const struct service *sv)
{
	for (size_t i = 0; i < sv->tokens.count; i++)
		if (((const struct token *)sv->tokens.items[i])->role == ROLE_ADMIN)
			return true;
	return false;
}

static enum pw_status file_write(const char *path, const char *secret, struct pw_err *err)
{
	char temp[4096], line[SECRET_LEN + 2];
	int fd, len;

	if (snprintf(temp, sizeof temp, "%s.new", path) >= (int)sizeof temp)
		return pw_fail(err, PW_INVALID, "%s: the path is too long", path);
	fd = open(temp, O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0600);
	if (fd < 0)
		return pw_fail(err, PW_STORAGE, "%s: %s", temp, strerror(errno));
	len = snprintf(line, sizeof line, "%s\n", secret);
	if (write(fd, line, (size_t)len) != len || fsync(fd) != 0 || rename(temp, path) != 0) {
		pw_fail(err, PW_STORAGE, "%s: %s", path, strerror(errno));
		close(fd);
		unlink(temp);
		return PW_STORAGE;
	}
	close(fd);
	explicit_bzero(line, sizeof line);
	return PW_OK;
}

/* The secret that a first start may have left in the file; false if there is none that has the form of one. Later it
 * may be one that was taken out of service. */
static bool file_read(const char *path, char secret[SECRET_LEN + 1])
{
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	struct pw_uuid id;
	ssize_t n;

	if (fd < 0)
		return false;
	n = read(fd, secret, SECRET_LEN);
	close(fd);
	secret[SECRET_LEN] = '\0';
	return n == SECRET_LEN && secret_id(secret, SECRET_LEN, &id);
}

enum pw_status tokens_first_admin(struct service *sv, struct pw_err *err)
{
	struct token t = {
		.role = ROLE_ADMIN, .name = "admin", .created_ms = clock_utc_ms(), .revision = next_revision(sv)
	};
	char path[4096], secret[SECRET_LEN + 1];
	enum pw_status st = PW_OK;

	if (has_admin(sv))
		return PW_OK;
	if (snprintf(path, sizeof path, "%s/admin.token", sv->config->data) >= (int)sizeof path)
		return pw_fail(err, PW_INVALID, "%s: the path is too long", sv->config->data);
	if (sv->revision || !file_read(path, secret)) {
		t.id = uuid_fresh();
		secret_make(&t.id, secret);
		st = file_write(path, secret, err);
	}
	if (st == PW_OK) {
		(void)secret_id(secret, SECRET_LEN, &t.id);
		secret_hash(secret, t.hash);
		if (token_add(sv, &t) != PW_OK)
			st = pw_fail(err, PW_NO_MEMORY, "out of memory while making an admin token");
		say_token(sv, NULL, &t);
		log_line(LOG_INFO_, "made an admin token", "file", path, NULL);
	}
	explicit_bzero(secret, sizeof secret);
	return st;
}
