#include "engine/arch/law.h"

/* A GFN's state is the flag of its word in pfns[]; no bit but the flag counts. */
enum { NO, SI, SO, SH, STATES };
#define X ARCH_REFUSED
#define ROW(normal, uvmem, mem, shared)                                \
	{                                                              \
		[NO] = normal, [SI] = uvmem, [SO] = mem, [SH] = shared \
	}

/* Ultracalls that are part of an H_SVM_ call are told by that call. */
/* clang-format off */
static const struct arch_op ops[] = {
	/*                                                                                                       NO  SI  SO  SH */
	{ "pef.h_svm_page_in", true, "Linux book3s_hv_uvmem.c, kvmppc_svm_page_in",                          ROW(SI, X,  SI, SI) },
	{ "pef.h_svm_page_in_shared", false, "Linux book3s_hv_uvmem.c, kvmppc_share_page: H_PAGE_IN_SHARED", ROW(SH, SH, SH, SH) },
	{ "pef.h_svm_page_out", false, "Linux book3s_hv_uvmem.c, kvmppc_h_svm_page_out",                     ROW(NO, SO, SO, SH) },
	{ "pef.uv_page_out", false, "Linux book3s_hv_uvmem.c, kvmppc_uvmem_migrate_to_ram: the host touches the page",
	                                                                                                     ROW(X,  SO, X,  X ) },
	{ "pef.uv_page_in", false, "Linux book3s_64_mmu_radix.c, kvmppc_send_page_to_uv: the guest faults, inferred",
	                                                                                                     ROW(X,  SI, X,  SH) },
	{ "pef.uv_page_inval", false, "ultravisor svm_host.c: state x UV_PAGE_INVAL",                        ROW(X,  X,  X,  SH) },
	{ "pef.uv_share_page", false, "ultravisor svm_host.c: the word follows with H_SVM_PAGE_IN",          ROW(X,  SI, SO, SH) },
	{ "pef.uv_unshare_page", false, "ultravisor svm_host.c: the word follows with H_SVM_PAGE_IN",        ROW(X,  SI, SO, SH) },
};
/* clang-format on */

extern const struct arch_law pef_law;
const struct arch_law pef_law = {
	.name = "pef",
	.state_count = STATES,
	.states = { [NO] = { "no flag", GFN_NORMAL },
		    [SI] = { "KVMPPC_GFN_UVMEM_PFN", GFN_SECURE_RESIDENT },
		    [SO] = { "KVMPPC_GFN_MEM_PFN", GFN_SECURE_OUT },
		    [SH] = { "KVMPPC_GFN_SHARED", GFN_SHARED } },
	.rest = { [GFN_NORMAL] = NO, [GFN_SECURE_RESIDENT] = SI, [GFN_SECURE_OUT] = SO, [GFN_SHARED] = SH },
	.ops = ops,
	.op_count = PW_ARRAY_LEN(ops),
};
