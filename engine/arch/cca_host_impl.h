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

/* Lent granules, recorded as the realm's data and delegated. EINVAL: some are not lent, or used. EIO: some are
 * delegated now, see h->last. */
enum pw_status cca_pool_take_lent(struct cca_host *h, uint64_t realm, uint64_t addr, uint64_t count,
				  enum cca_host_code *code) PW_MUST_CHECK;

/* A command; h->last is its answer. */
enum pw_status cca_host_call(struct cca_host *h, const struct cca_call *call) PW_MUST_CHECK;
/* Many, as cca_rmi_run: h->last_call is the last one. */
enum pw_status cca_host_run(struct cca_host *h, const struct cca_call *call, uint64_t count,
			    uint64_t *done) PW_MUST_CHECK;
enum pw_status cca_host_rmi(struct cca_host *h, enum cca_command cmd, const uint64_t x[CCA_ARGS_MAX]) PW_MUST_CHECK;
#define CCA_HOST_RMI(h, cmd, ...) cca_host_rmi(h, cmd, (const uint64_t[CCA_ARGS_MAX]){ __VA_ARGS__ })

/* The last command and its answer, kept while others tidy up. */
struct cca_host_said {
	struct cca_call call;
	struct cca_result answer;
};
struct cca_host_said cca_host_said(const struct cca_host *h);
void cca_host_say_again(struct cca_host *h, const struct cca_host_said *s);

/* Tables of levels from..to for the IPA, where there are none. */
enum pw_status cca_host_tables(struct cca_host_realm *r, uint64_t ipa, unsigned from, unsigned to,
			       enum cca_host_code *code) PW_MUST_CHECK;
/* RECs, from the last on. */
enum pw_status cca_host_recs_end(struct cca_host_realm *r, enum cca_host_code *code) PW_MUST_CHECK;
/* Gives the opportunistic spare up, or keeps `addr` as it. */
enum pw_status cca_host_drain(struct cca_host_realm *r) PW_MUST_CHECK;
enum pw_status cca_host_keep(struct cca_host_realm *r, uint64_t addr) PW_MUST_CHECK;

#endif
