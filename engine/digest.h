/* engine/digest.h
 *
 * A 64-bit digest of runs of GFNs, by which an agent and the server find out cheaply where hardware and ledger differ.
 * Equal runs give equal digests; it is not made against adversaries.
 */
#ifndef PW_ENGINE_DIGEST_H
#define PW_ENGINE_DIGEST_H
#include "engine/ledger.h"

#define DIGEST_REGION ((uint64_t)1 << 18) /* pages of one region: 1 GiB of 4 KiB pages */
#define DIGEST_SEED   0x70616765u

/* Takes one more run into a digest: its GFN, count and state, the architecture's state if it is not the one at rest
 * (`arch`: an agent has the same number in struct backend_run; the name is not looked at), and if resident its first
 * PFN and its shared pool. */
uint64_t digest_run(uint64_t digest, const struct gfn_view *run);

#endif
