#include "engine/arch/law.h"

/* A GFN's state is the flag of its word in pfns[]; no bit but the flag counts. */
enum { NO, SI, SO, SH, STATES };
/* Of the VM: `secure_guest` in Linux, whose flags say just what the law says. */
enum { STARTED, DONE, VM_STATES };
#define X ARCH_REFUSED
#define ROW(normal, uvmem, mem, shared)                                \
	{                                                              \
		[NO] = normal, [SI] = uvmem, [SO] = mem, [SH] = shared \
	}

/* clang-format off */
#define HCALL   1u << STARTED | 1u << DONE, "Linux book3s_hv_uvmem.c: H_UNSUPPORTED without KVMPPC_SECURE_INIT_START"
#define TOUCHED 1u << STARTED | 1u << DONE, "Linux book3s_hv_uvmem.c, kvmppc_uvmem_migrate_to_ram: whatever the VM's state"
#define FAULTS  1u << DONE, "Linux book3s_64_mmu_radix.c: KVMPPC_SECURE_INIT_DONE, else the page is the host's"
#define SHARES  1u << DONE, "ultravisor uvcall.c: U_PERMISSION but to a secure guest's kernel, which a transient VM does not run"

/* Ultracalls that are part of an H_SVM_ call are told by that call. */
static const struct arch_op ops[] = {
	/*                                                                                                       NO  SI  SO  SH */
	{ "pef.h_svm_page_in", true, "Linux book3s_hv_uvmem.c, kvmppc_svm_page_in",                          HCALL, ROW(SI, X,  SI, SI) },
	{ "pef.h_svm_page_in_shared", false, "Linux book3s_hv_uvmem.c, kvmppc_share_page: H_PAGE_IN_SHARED", HCALL, ROW(SH, SH, SH, SH) },
	{ "pef.h_svm_page_out", false, "Linux book3s_hv_uvmem.c, kvmppc_h_svm_page_out",                     HCALL, ROW(NO, SO, SO, SH) },
	{ "pef.uv_page_out", false, "Linux book3s_hv_uvmem.c, kvmppc_uvmem_migrate_to_ram: the host touches the page",
	                                                                                                     TOUCHED, ROW(X,  SO, X,  X ) },
	{ "pef.uv_page_in", false, "Linux book3s_64_mmu_radix.c, kvmppc_send_page_to_uv: the guest faults, inferred",
	                                                                                                     FAULTS, ROW(X,  SI, X,  SH) },
	{ "pef.uv_page_inval", false, "ultravisor svm_host.c: state x UV_PAGE_INVAL",                        FAULTS, ROW(X,  X,  X,  SH) },
	{ "pef.uv_share_page", false, "ultravisor svm_host.c: the word follows with H_SVM_PAGE_IN",          SHARES, ROW(X,  SI, SO, SH) },
	{ "pef.uv_unshare_page", false, "ultravisor svm_host.c: the word follows with H_SVM_PAGE_IN",        SHARES, ROW(X,  SI, SO, SH) },
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
	.vm_states = { [STARTED] = { "KVMPPC_SECURE_INIT_START", VM_TRANSIENT, DONE },
		       [DONE] = { "KVMPPC_SECURE_INIT_DONE", VM_SECURE, ARCH_REFUSED } },
	.vm_state_count = VM_STATES,
};
