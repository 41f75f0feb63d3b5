#include "engine/arch/snp.h"

#include <nettle/sha2.h>
#include <string.h>

/* The block that is hashed for each 4 KiB page. */
#define BLOCK_PREVIOUS 0x00
#define BLOCK_CONTENT  0x30
#define BLOCK_LENGTH   0x60
#define BLOCK_TYPE     0x62
#define BLOCK_IMI      0x63
#define BLOCK_PERMS    0x64 /* of VMPL0, which is 0 here, to VMPL3 */
#define BLOCK_GPA      0x68
#define BLOCK_BYTES    0x70

/* TSC scale and offset are the host's: they count as zero. */
#define VMSA_TSC       0x2f0
#define VMSA_TSC_BYTES 16

void snp_sha384(const void *data, size_t len, uint8_t out[SNP_DIGEST])
{
	struct sha384_ctx sha;

	sha384_init(&sha);
	sha384_update(&sha, len, data);
	sha384_digest(&sha, SNP_DIGEST, out);
}

static void hash_vmsa(const uint8_t *vmsa, uint8_t out[SNP_DIGEST])
{
	static const uint8_t zero[VMSA_TSC_BYTES];
	struct sha384_ctx sha;

	sha384_init(&sha);
	sha384_update(&sha, VMSA_TSC, vmsa);
	sha384_update(&sha, VMSA_TSC_BYTES, zero);
	sha384_update(&sha, SNP_PAGE - VMSA_TSC - VMSA_TSC_BYTES, vmsa + VMSA_TSC + VMSA_TSC_BYTES);
	sha384_digest(&sha, SNP_DIGEST, out);
}

void snp_digest_extend(uint8_t digest[SNP_DIGEST], const struct snp_measured *page)
{
	uint8_t block[BLOCK_BYTES] = { [BLOCK_LENGTH] = BLOCK_BYTES, [BLOCK_TYPE] = (uint8_t)page->type };
	uint64_t gpa = page->gfn << 12;

	memcpy(block + BLOCK_PREVIOUS, digest, SNP_DIGEST);
	if (page->type == SNP_TYPE_NORMAL)
		snp_sha384(page->content, SNP_PAGE, block + BLOCK_CONTENT);
	else if (page->type == SNP_TYPE_VMSA)
		hash_vmsa(page->content, block + BLOCK_CONTENT);
	block[BLOCK_IMI] = page->imi;
	for (unsigned i = 1; i < SNP_VMPLS; i++)
		block[BLOCK_PERMS + i] = page->perms[i];
	for (unsigned i = 0; i < 8; i++)
		block[BLOCK_GPA + i] = (uint8_t)(gpa >> (8 * i));
	snp_sha384(block, sizeof block, digest);
}
