#include "agents/kvm_vault.h"

#include <sodium.h>
#include <stdlib.h>
#include <string.h>

#define FIRST_BUCKETS 64
#define KEY_BYTES     crypto_aead_xchacha20poly1305_ietf_KEYBYTES
#define NONCE_BYTES   crypto_aead_xchacha20poly1305_ietf_NPUBBYTES
#define TAG_BYTES     crypto_aead_xchacha20poly1305_ietf_ABYTES

struct vault_page {
	struct vault_page *next;
	uint64_t gfn, nonce;
	unsigned char sealed[VAULT_PAGE + TAG_BYTES];
};

enum pw_status vault_init(struct vault *v, struct pw_err *err)
{
	*v = (struct vault){ 0 };
	if (sodium_init() < 0)
		return pw_fail(err, PW_BACKEND, "libsodium does not start");
	v->buckets = calloc(FIRST_BUCKETS, sizeof(v->buckets[0]));
	v->key = sodium_malloc(KEY_BYTES);
	if (!v->buckets || !v->key) {
		vault_release(v);
		return pw_fail(err, PW_NO_MEMORY, "no memory for the store of paged-out pages");
	}
	v->bucket_count = FIRST_BUCKETS;
	crypto_aead_xchacha20poly1305_ietf_keygen(v->key);
	return PW_OK;
}

void vault_release(struct vault *v)
{
	for (size_t i = 0; i < v->bucket_count; i++)
		while (v->buckets[i]) {
			struct vault_page *p = v->buckets[i];

			v->buckets[i] = p->next;
			free(p);
		}
	free(v->buckets);
	sodium_free(v->key); /* wipes it */
	*v = (struct vault){ 0 };
}

static struct vault_page **place(struct vault_page **buckets, size_t count, uint64_t gfn)
{
	struct vault_page **at = &buckets[(gfn * UINT64_C(0x9e3779b97f4a7c15) >> 32) & (count - 1)];

	while (*at && (*at)->gfn != gfn)
		at = &(*at)->next;
	return at;
}

/* Longer chains are slower and no less right, so a refused allocation is no failure. */
static void grow(struct vault *v)
{
	size_t count = v->bucket_count * 2;
	struct vault_page **buckets = calloc(count, sizeof(buckets[0]));

	if (!buckets)
		return;
	for (size_t i = 0; i < v->bucket_count; i++)
		while (v->buckets[i]) {
			struct vault_page *p = v->buckets[i];

			v->buckets[i] = p->next;
			p->next = NULL;
			*place(buckets, count, p->gfn) = p;
		}
	free(v->buckets);
	v->buckets = buckets;
	v->bucket_count = count;
}

static void nonce_bytes(uint64_t n, unsigned char out[NONCE_BYTES])
{
	memset(out, 0, NONCE_BYTES);
	memcpy(out, &n, sizeof(n));
}

enum pw_status vault_put(struct vault *v, uint64_t gfn, const void *page, struct pw_err *err)
{
	struct vault_page **at;
	unsigned char nonce[NONCE_BYTES];

	if (v->pages >= v->bucket_count)
		grow(v);
	at = place(v->buckets, v->bucket_count, gfn);
	if (!*at) {
		*at = calloc(1, sizeof(**at));
		if (!*at)
			return pw_fail(err, PW_NO_MEMORY, "no memory to keep the page of gfn %" PRIu64, gfn);
		(*at)->gfn = gfn;
		v->pages++;
	}
	(*at)->nonce = v->nonce++;
	nonce_bytes((*at)->nonce, nonce);
	crypto_aead_xchacha20poly1305_ietf_encrypt((*at)->sealed, NULL, page, VAULT_PAGE, (const unsigned char *)&gfn,
						   sizeof(gfn), NULL, nonce, v->key);
	return PW_OK;
}

enum pw_status vault_get(const struct vault *v, uint64_t gfn, void *page, bool *found, struct pw_err *err)
{
	const struct vault_page *p = *place(v->buckets, v->bucket_count, gfn);
	unsigned char nonce[NONCE_BYTES];

	*found = p;
	if (!p)
		return PW_OK;
	nonce_bytes(p->nonce, nonce);
	if (crypto_aead_xchacha20poly1305_ietf_decrypt(page, NULL, NULL, p->sealed, sizeof(p->sealed),
						       (const unsigned char *)&gfn, sizeof(gfn), nonce, v->key))
		return pw_fail(err, PW_BACKEND, "the paged-out content of gfn %" PRIu64 " was changed", gfn);
	return PW_OK;
}

static void drop_one(struct vault *v, struct vault_page **at)
{
	struct vault_page *p = *at;

	*at = p->next;
	free(p);
	v->pages--;
}

static void drop_by_walk(struct vault *v, uint64_t gfn, uint64_t count)
{
	for (size_t i = 0; i < v->bucket_count; i++)
		for (struct vault_page **at = &v->buckets[i]; *at;)
			if ((*at)->gfn >= gfn && (*at)->gfn - gfn < count)
				drop_one(v, at);
			else
				at = &(*at)->next;
}

void vault_drop(struct vault *v, uint64_t gfn, uint64_t count)
{
	if (count > v->bucket_count) {
		drop_by_walk(v, gfn, count);
		return;
	}
	for (uint64_t i = 0; i < count && v->pages; i++) {
		struct vault_page **at = place(v->buckets, v->bucket_count, gfn + i);

		if (*at)
			drop_one(v, at);
	}
}
