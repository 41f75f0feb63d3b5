/* tests/lib/snp_world.h
 *
 * A small SEV-SNP platform for tests: 4096 frames, the RMP in frames 2048..2559, HV-Fixed frames 3584..3599, a
 * Firmware-IOMMU frame 3600 and another that is 2 MiB aligned, 3072, ASIDs 1..15. Calls in short form; memory failures
 * fail the test.
 */
#ifndef PW_TESTS_LIB_SNP_WORLD_H
#define PW_TESTS_LIB_SNP_WORLD_H
#include "engine/arch/snp.h"

#define SNP_W_FRAMES      4096
#define SNP_W_RMP         2048
#define SNP_W_FIXED       3584
#define SNP_W_IOMMU       3600
#define SNP_W_LARGE_IOMMU 3072
#define SNP_W_CONTEXT     256
#define SNP_W_ASID        5
#define SNP_W_POLICY      0x30000

struct snp_world {
	struct pw_mem mem;
	struct snp m;
};

void snp_world_open(struct snp_world *w); /* INIT, ASIDs clean */
void snp_world_close(struct snp_world *w);
enum snp_code snp_w_update(struct snp_world *w, uint64_t pfn, unsigned asid, uint64_t gfn, enum snp_size size,
			   bool immutable);
enum snp_code snp_w_share(struct snp_world *w, uint64_t pfn, enum snp_size size);
enum snp_status snp_w_do(struct snp_world *w, const struct snp_cmd *c);
enum snp_status snp_w_reclaim(struct snp_world *w, uint64_t pfn, enum snp_size size);
enum snp_code snp_w_validate(struct snp_world *w, uint64_t pfn, unsigned asid, uint64_t gfn, enum snp_size size,
			     bool validate, bool *unchanged);
void snp_w_flush(struct snp_world *w);                                   /* WBINVD and DF_FLUSH */
void snp_w_launch(struct snp_world *w, uint64_t context, unsigned asid); /* a guest in LAUNCH, activated */
enum snp_status snp_w_load(struct snp_world *w, uint64_t context, uint64_t pfn, unsigned type); /* LAUNCH_UPDATE */
void snp_w_make(struct snp_world *w, uint64_t pfn, enum snp_state s); /* the frame, of the guest at SNP_W_CONTEXT */

#endif
