#include "tests/lib/snp_world.h"

#include <criterion/criterion.h>

void snp_world_open(struct snp_world *w)
{
	static const struct snp_range fixed[] = { { SNP_W_FIXED, 16 } },
				      iommu[] = { { SNP_W_IOMMU, 1 }, { SNP_W_LARGE_IOMMU, 1 } };
	const struct snp_config c = {
		.frames = SNP_W_FRAMES,
		.rmp = { SNP_W_RMP, 512 },
		.max_asid = 15,
		.fixed = fixed,
		.fixed_count = 1,
		.iommu = iommu,
		.iommu_count = 2,
		.smt = true,
	};

	*w = (struct snp_world){ 0 };
	cr_assert_eq(snp_init(&w->m, &w->mem, &c), PW_OK);
	cr_assert_eq(snp_w_do(w, &(struct snp_cmd){ .op = SNP_CMD_INIT }), SNP_SUCCESS);
	snp_w_flush(w);
}

void snp_world_close(struct snp_world *w)
{
	cr_assert(snp_check(&w->m));
	snp_release(&w->m);
	cr_assert_eq(w->mem.used, 0);
}

enum snp_code snp_w_update(struct snp_world *w, uint64_t pfn, unsigned asid, uint64_t gfn, enum snp_size size,
			   bool immutable)
{
	struct snp_rmpupdate u = {
		.pfn = pfn, .assigned = true, .asid = asid, .gfn = gfn, .size = size, .immutable = immutable
	};
	enum snp_code code;

	cr_assert_eq(snp_rmpupdate(&w->m, &u, &code), PW_OK);
	return code;
}

enum snp_code snp_w_share(struct snp_world *w, uint64_t pfn, enum snp_size size)
{
	struct snp_rmpupdate u = { .pfn = pfn, .size = size };
	enum snp_code code;

	cr_assert_eq(snp_rmpupdate(&w->m, &u, &code), PW_OK);
	return code;
}

enum snp_status snp_w_do(struct snp_world *w, const struct snp_cmd *c)
{
	enum snp_status status;

	cr_assert_eq(snp_command(&w->m, c, &status), PW_OK);
	return status;
}

enum snp_status snp_w_reclaim(struct snp_world *w, uint64_t pfn, enum snp_size size)
{
	return snp_w_do(w, &(struct snp_cmd){ .op = SNP_CMD_PAGE_RECLAIM, .pfn = pfn, .size = size });
}

enum snp_code snp_w_validate(struct snp_world *w, uint64_t pfn, unsigned asid, uint64_t gfn, enum snp_size size,
			     bool validate, bool *unchanged)
{
	struct snp_target t = { .asid = asid, .gfn = gfn, .pfn = pfn, .size = size };
	enum snp_code code;

	*unchanged = false;
	cr_assert_eq(snp_pvalidate(&w->m, &t, validate, &code, unchanged), PW_OK);
	return code;
}

void snp_w_flush(struct snp_world *w)
{
	snp_wbinvd(&w->m);
	cr_assert_eq(snp_w_do(w, &(struct snp_cmd){ .op = SNP_CMD_DF_FLUSH }), SNP_SUCCESS);
}

void snp_w_launch(struct snp_world *w, uint64_t context, unsigned asid)
{
	struct snp_cmd c = { .context = context, .policy = SNP_W_POLICY, .asid = asid };
	static const enum snp_command life[] = { SNP_CMD_GCTX_CREATE, SNP_CMD_LAUNCH_START, SNP_CMD_ACTIVATE };

	cr_assert_eq(snp_w_update(w, context, 0, 0, SNP_4K, true), SNP_OK);
	for (size_t i = 0; i < PW_ARRAY_LEN(life); i++) {
		c.op = life[i];
		cr_assert_eq(snp_w_do(w, &c), SNP_SUCCESS, "%s", snp_command_name(c.op));
	}
}

enum snp_status snp_w_load(struct snp_world *w, uint64_t context, uint64_t pfn, unsigned type)
{
	return snp_w_do(w,
			&(struct snp_cmd){ .op = SNP_CMD_LAUNCH_UPDATE, .context = context, .pfn = pfn, .type = type });
}

static void make_context(struct snp_world *w, uint64_t pfn)
{
	cr_assert_eq(snp_w_update(w, pfn, 0, 0, SNP_4K, true), SNP_OK);
	cr_assert_eq(snp_w_do(w, &(struct snp_cmd){ .op = SNP_CMD_GCTX_CREATE, .context = pfn }), SNP_SUCCESS);
}

static void make_metadata(struct snp_world *w, uint64_t pfn)
{
	cr_assert_eq(snp_w_update(w, pfn, 0, 0, SNP_4K, true), SNP_OK);
	cr_assert_eq(snp_w_do(w, &(struct snp_cmd){ .op = SNP_CMD_MD_INIT, .context = SNP_W_CONTEXT, .pfn = pfn }),
		     SNP_SUCCESS);
}

static void make_valid(struct snp_world *w, uint64_t pfn)
{
	bool unchanged;

	cr_assert_eq(snp_w_update(w, pfn, SNP_W_ASID, pfn, SNP_4K, false), SNP_OK);
	cr_assert_eq(snp_w_validate(w, pfn, SNP_W_ASID, pfn, SNP_4K, true, &unchanged), SNP_OK);
}

void snp_w_make(struct snp_world *w, uint64_t pfn, enum snp_state s)
{
	switch (s) {
	case SNP_FIRMWARE: cr_assert_eq(snp_w_update(w, pfn, 0, 0, SNP_4K, true), SNP_OK); break;
	case SNP_RECLAIM: cr_assert_eq(snp_w_update(w, pfn, 0, 0, SNP_4K, false), SNP_OK); break;
	case SNP_CONTEXT: make_context(w, pfn); break;
	case SNP_METADATA: make_metadata(w, pfn); break;
	case SNP_PRE_GUEST: cr_assert_eq(snp_w_update(w, pfn, SNP_W_ASID, pfn, SNP_4K, true), SNP_OK); break;
	case SNP_GUEST_INVALID: cr_assert_eq(snp_w_update(w, pfn, SNP_W_ASID, pfn, SNP_4K, false), SNP_OK); break;
	case SNP_GUEST_VALID: make_valid(w, pfn); break;
	case SNP_PRE_SWAP:
		make_valid(w, pfn);
		cr_assert_eq(snp_w_update(w, pfn, SNP_W_ASID, pfn, SNP_4K, true), SNP_OK);
		break;
	case SNP_INVALID: cr_assert_eq(snp_w_update(w, pfn, 0, 77, SNP_4K, true), SNP_OK); break;
	case SNP_HYPERVISOR:
	case SNP_HV_FIXED:
	case SNP_FIRMWARE_IOMMU:
	case SNP_DEFAULT:
	case SNP_STATE_COUNT: break;
	}
	cr_assert_eq(snp_state(&w->m, pfn), s, "%s", snp_state_name(snp_state(&w->m, pfn)));
}
