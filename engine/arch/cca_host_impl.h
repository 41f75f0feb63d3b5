/* engine/arch/cca_host_impl.h
 *
 * What the parts of the CCA host share: the pool with its records, and commands with their retries.
 */
#ifndef PW_ENGINE_ARCH_CCA_HOST_IMPL_H
#define PW_ENGINE_ARCH_CCA_HOST_IMPL_H
#include "engine/arch/cca_host.h"

#define CCA_HOST_BLOCK_LEVEL 2 /* of protected blocks: see SPARE-1 */
#define CCA_HOST_BLOCK       ((uint64_t)512)
#define CCA_HOST_IS_TABLE    2 /* as RTT_READ_ENTRY tells states */

/* `count` granules in one piece, aligned to `align` of them, recorded as `use`, and delegated unless they are HOST's.
 */
enum pw_status cca_pool_take(struct cca_host *h, enum cca_host_use use, uint64_t realm, uint64_t count, uint64_t align,
			     uint64_t *addr, enum cca_host_code *code) PW_MUST_CHECK;
/* Undelegates; what the RMM keeps becomes a leak, the rest is free again. */
enum pw_status cca_pool_put(struct cca_host *h, uint64_t addr, uint64_t count) PW_MUST_CHECK;
/* Is a piece to be had? */
bool cca_pool_has(const struct cca_host *h, uint64_t count, uint64_t align);
/* Another use of delegated granules. The arena must have been reserved. */
void cca_pool_set(struct cca_host *h, uint64_t addr, uint64_t count, enum cca_host_use use, uint64_t realm);
/* Every granule that the records give to the realm, but leaks, goes back. */
enum pw_status cca_pool_sweep(struct cca_host *h, uint64_t realm) PW_MUST_CHECK;

/* A command; h->last is its answer. */
enum pw_status cca_host_rmi(struct cca_host *h, enum cca_command cmd, const uint64_t x[CCA_ARGS_MAX]) PW_MUST_CHECK;
#define CCA_HOST_RMI(h, cmd, ...) cca_host_rmi(h, cmd, (const uint64_t[CCA_ARGS_MAX]){ __VA_ARGS__ })

/* Tables of levels from..to for the IPA, where there are none. */
enum pw_status cca_host_tables(struct cca_host_realm *r, uint64_t ipa, unsigned from, unsigned to,
			       enum cca_host_code *code) PW_MUST_CHECK;
/* Gives the opportunistic spare up, or keeps `addr` as it. */
enum pw_status cca_host_drain(struct cca_host_realm *r) PW_MUST_CHECK;
enum pw_status cca_host_keep(struct cca_host_realm *r, uint64_t addr) PW_MUST_CHECK;

#endif
