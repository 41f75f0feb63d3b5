#include "engine/arch/cca_rim.h"

#include <nettle/sha2.h>
#include <string.h>

#define DESCRIPTOR_BYTES 256
enum descriptor { DESCRIPTOR_DATA, DESCRIPTOR_REC, DESCRIPTOR_RIPAS };

/* Offsets: RMM specification B4.4.12, B4.4.19, C1.11-C1.13. */
#define AT_TYPE    0x00
#define AT_LENGTH  0x08
#define AT_RIM     0x10
#define AT_REC     0x50
#define AT_IPA     0x50
#define AT_FLAGS   0x58
#define AT_CONTENT 0x60
#define AT_BASE    0x50
#define AT_TOP     0x58

size_t cca_hash_bytes(enum cca_hash h)
{
	return h == CCA_SHA512 ? SHA512_DIGEST_SIZE : SHA256_DIGEST_SIZE;
}

static void hash(enum cca_hash h, const void *data, size_t size, uint8_t out[CCA_RIM_BYTES])
{
	struct sha256_ctx small;
	struct sha512_ctx large;

	memset(out, 0, CCA_RIM_BYTES);
	if (h == CCA_SHA512) {
		sha512_init(&large);
		sha512_update(&large, size, data);
		sha512_digest(&large, SHA512_DIGEST_SIZE, out);
		return;
	}
	sha256_init(&small);
	sha256_update(&small, size, data);
	sha256_digest(&small, SHA256_DIGEST_SIZE, out);
}

static void put_u64(uint8_t *at, uint64_t x)
{
	for (unsigned i = 0; i < 8; i++)
		at[i] = (uint8_t)(x >> (8 * i));
}

void cca_rim_start(struct cca_rim *r, const struct cca_realm_params *p)
{
	uint8_t page[CCA_GRANULE] = { 0 };

	put_u64(page + 0x00, p->flags);
	put_u64(page + 0x08, p->s2sz);
	put_u64(page + 0x10, p->sve_vl);
	put_u64(page + 0x18, p->num_bps);
	put_u64(page + 0x20, p->num_wps);
	put_u64(page + 0x28, p->pmu_num_ctrs);
	put_u64(page + 0x30, p->hash_algo);
	hash(r->hash, page, sizeof page, r->value);
}

static void describe(const struct cca_rim *r, enum descriptor type, uint8_t d[DESCRIPTOR_BYTES])
{
	memset(d, 0, DESCRIPTOR_BYTES);
	d[AT_TYPE] = (uint8_t)type;
	put_u64(d + AT_LENGTH, DESCRIPTOR_BYTES);
	memcpy(d + AT_RIM, r->value, CCA_RIM_BYTES);
}

void cca_rim_data(struct cca_rim *r, uint64_t ipa, uint64_t count, uint64_t flags, const void *source)
{
	uint8_t content[CCA_RIM_BYTES] = { 0 }, d[DESCRIPTOR_BYTES];

	if (flags & 1)
		hash(r->hash, source, CCA_GRANULE, content);
	describe(r, DESCRIPTOR_DATA, d);
	put_u64(d + AT_FLAGS, flags);
	memcpy(d + AT_CONTENT, content, sizeof content);
	for (uint64_t i = 0; i < count; i++) {
		put_u64(d + AT_IPA, ipa + i * CCA_GRANULE);
		memcpy(d + AT_RIM, r->value, CCA_RIM_BYTES);
		hash(r->hash, d, sizeof d, r->value);
	}
}

void cca_rim_rec(struct cca_rim *r, const struct cca_rec_params *p)
{
	uint8_t page[CCA_GRANULE] = { 0 }, d[DESCRIPTOR_BYTES];

	put_u64(page + 0x000, p->flags);
	put_u64(page + 0x200, p->pc);
	for (size_t i = 0; i < PW_ARRAY_LEN(p->gprs); i++)
		put_u64(page + 0x300 + 8 * i, p->gprs[i]);
	describe(r, DESCRIPTOR_REC, d);
	hash(r->hash, page, sizeof page, d + AT_REC);
	hash(r->hash, d, sizeof d, r->value);
}

void cca_rim_ripas(struct cca_rim *r, uint64_t base, uint64_t top)
{
	uint8_t d[DESCRIPTOR_BYTES];

	describe(r, DESCRIPTOR_RIPAS, d);
	put_u64(d + AT_BASE, base);
	put_u64(d + AT_TOP, top);
	hash(r->hash, d, sizeof d, r->value);
}
