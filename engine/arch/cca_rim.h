/* engine/arch/cca_rim.h
 *
 * The realm initial measurement: a hash chain over all that is done to a realm before it is activated.
 * RMM specification A7.1, C1.11-C1.13; a 32-byte hash is followed by zeroes.
 */
#ifndef PW_ENGINE_ARCH_CCA_RIM_H
#define PW_ENGINE_ARCH_CCA_RIM_H
#include "engine/arch/cca.h"

struct cca_rim {
	enum cca_hash hash;
	uint8_t value[CCA_RIM_BYTES];
};
size_t cca_hash_bytes(enum cca_hash h);

void cca_rim_start(struct cca_rim *r, const struct cca_realm_params *p); /* r->hash is read */
/* `count` pages from `ipa` on. source: the 4 KiB page that all are filled from, hashed if flags bit 0 is set. */
void cca_rim_data(struct cca_rim *r, uint64_t ipa, uint64_t count, uint64_t flags, const void *source);
void cca_rim_rec(struct cca_rim *r, const struct cca_rec_params *p);
void cca_rim_ripas(struct cca_rim *r, uint64_t base, uint64_t top); /* one entry */

#endif
