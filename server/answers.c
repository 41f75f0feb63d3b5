#include <assert.h>
#include <sodium.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/service_impl.h"

void request_digest(struct request *r)
{
	crypto_generichash_state st;

	static_assert(sizeof r->digest == STORE_HASH, "the store keeps digests");
	if (r->digested)
		return;
	crypto_generichash_init(&st, NULL, 0, sizeof r->digest);
	crypto_generichash_update(&st, (const unsigned char *)r->path, strlen(r->path) + 1);
	crypto_generichash_update(&st, (const unsigned char *)r->body, r->body_size);
	crypto_generichash_final(&st, r->digest, sizeof r->digest);
	r->digested = true;
}

static void scope_of(const struct request *r, char scope[PW_UUID_TEXT])
{
	pw_uuid_format(&r->who.token, scope);
}

void answer_again(struct request *r, const struct answer *a)
{
	char *body = malloc(a->size + 1);

	answer_drop(r);
	if (!body) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while answering again");
		return;
	}
	memcpy(body, a->body, a->size);
	body[a->size] = '\0';
	r->response.status = a->status;
	r->response.body = body;
	r->response.size = a->size;
	snprintf(r->response.headers, sizeof r->response.headers, "%s", a->headers);
}

bool answer_find(struct service *sv, const char *scope, const char *key, struct answer *out)
{
	enum pw_status st;
	struct pw_err err;

	if (!group_store(sv))
		return false;
	st = store_answer_find(sv->store, scope, key, sv->group_time_ms, out, &err);
	if (st != PW_OK && st != PW_NOT_FOUND)
		group_break(sv, &err);
	return st == PW_OK;
}

void answer_save(struct service *sv, const char *scope, const char *key, const struct answer *a)
{
	struct pw_err err;

	sv->stored = true;
	if (group_store(sv) && store_answer_save(sv->store, scope, key, a, &err) != PW_OK)
		group_break(sv, &err);
}

/*
 * An answer may hold a secret (a new token's), and the store holds none: what is kept is sealed with a key that only
 * the client's own token yields.
 */
static unsigned char *seal(const struct request *r, size_t *size)
{
	size_t plain = r->response.size;
	unsigned char *box = malloc(crypto_secretbox_NONCEBYTES + crypto_secretbox_MACBYTES + plain);

	static_assert(PRINCIPAL_SEAL == crypto_secretbox_KEYBYTES, "the seal is a key");
	if (!box)
		return NULL;
	randombytes_buf(box, crypto_secretbox_NONCEBYTES);
	crypto_secretbox_easy(box + crypto_secretbox_NONCEBYTES,
			      plain ? (const unsigned char *)r->response.body : (const unsigned char *)"", plain, box,
			      r->who.seal);
	*size = crypto_secretbox_NONCEBYTES + crypto_secretbox_MACBYTES + plain;
	return box;
}

/* Replaces a's sealed body by the plain one, in place. */
static bool unseal(const struct request *r, struct answer *a)
{
	unsigned char *box = (unsigned char *)a->memory + ((const char *)a->body - (const char *)a->memory);

	if (a->size < crypto_secretbox_NONCEBYTES + crypto_secretbox_MACBYTES ||
	    crypto_secretbox_open_easy(box + crypto_secretbox_NONCEBYTES, box + crypto_secretbox_NONCEBYTES,
				       a->size - crypto_secretbox_NONCEBYTES, box, r->who.seal) != 0)
		return false;
	a->body = box + crypto_secretbox_NONCEBYTES;
	a->size -= crypto_secretbox_NONCEBYTES + crypto_secretbox_MACBYTES;
	return true;
}

static void answer_unsealed(struct request *r, struct answer *a)
{
	if (unseal(r, a))
		answer_again(r, a);
	else
		answer_problem(r, PROBLEM_STORAGE, "the saved answer is damaged");
}

bool answered_before(struct service *sv, struct request *r)
{
	char scope[PW_UUID_TEXT];
	struct answer a;

	scope_of(r, scope);
	if (!answer_find(sv, scope, r->idempotency_key, &a))
		return sv->group_broken;
	if (sodium_memcmp(a.request_hash, r->digest, sizeof r->digest) != 0)
		answer_problem(r, PROBLEM_IDEMPOTENCY, "Idempotency-Key %s was used for another request",
			       r->idempotency_key);
	else if (!r->still_holds || r->still_holds(sv, r))
		answer_unsealed(r, &a);
	free(a.memory);
	return true;
}

void keep_answer(struct service *sv, struct request *r)
{
	struct answer a = { .status = r->response.status,
			    .headers = r->response.headers,
			    .expires_ms = sv->group_time_ms + ANSWER_LIFE_MS };
	unsigned char *box = seal(r, &a.size);
	char scope[PW_UUID_TEXT];

	if (!box) {
		group_out_of_memory(sv);
		return;
	}
	a.body = box;
	memcpy(a.request_hash, r->digest, sizeof a.request_hash);
	scope_of(r, scope);
	answer_save(sv, scope, r->idempotency_key, &a);
	free(box);
}
