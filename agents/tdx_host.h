/* agents/tdx_host.h
 *
 * An emulated TDX host: engine/arch/tdx.h as KVM and QEMU drive it, behind agents/machine_tdx.c. Its life (the module,
 * TDs, vCPUs, keys, teardown) is machine_tdx.c; its pages are tdx_pages.c; frames and single calls are tdx_host.c.
 *
 * The pool is one TDMR; control pages and tables come from another beside it. The module's PFNs are those of the pool
 * minus `shift`, which is 0 unless the pool lies beyond what physical addresses with HKID bits can name.
 *
 * A TD that runs has 2 MiB pages exactly where 512 pages of one slot are resident on frames that a 2 MiB page can have
 * (KVM would leave them as they came): so the machine is a function of what run_at says, and a state file that says no
 * more leads to the same one. Before FINALIZE every page is small, as PAGE.ADD makes them.
 *
 * A TD's vCPU is inside the guest from the first ACCEPT on, so that what leaves a running TD needs BLOCK, TRACK and a
 * kick. What a half-done op did is undone by looking: tdx_pages.c compares the secure EPT with what it was before.
 */
#ifndef PW_AGENTS_TDX_HOST_H
#define PW_AGENTS_TDX_HOST_H
#include "agents/machine.h"
#include "engine/arch/tdx.h"

#define TDX_HOST_PACKAGES 2
#define TDX_HOST_HKIDS    1023 /* TDs that have keys at a time */
#define TDX_HOST_CONTROL  ((uint64_t)1 << 24)
#define TDX_HOST_MEASURED 1024 /* pages of a TD that are extended into MRTD: a firmware image of 4 MiB */

struct tdx_guest {
	struct tdx_guest *next;
	uint64_t tdr;        /* the module's PFN; 0: no TD */
	uint64_t vcpu;       /* PFN of its TDVPR; 0: none yet */
	uint64_t measured;   /* pages */
	struct tree private; /* GFNs that were made private before the TD ran, without a page */
};

struct tdx_host {
	struct machine *machine; /* borrowed */
	struct pw_mem *mem;      /* borrowed */
	struct tdx module;
	struct arena nodes; /* of the guests' trees */
	struct machine_pool pool;
	uint64_t shift;
	struct tdx_range control; /* the first page of it is the source of every PAGE.ADD */
	uint64_t control_hint;    /* nothing below is free */
	void *ballast;            /* memory for undoing; NULL while it is in use */
	struct tdx_result last;   /* the module's answer to the last call */
	struct tdx_guest *guests;
};

static inline struct tdx_td *tdx_host_td(const struct tdx_host *h, const struct tdx_guest *g)
{
	return g->tdr ? tdx_td(&h->module, g->tdr) : NULL;
}

static inline bool tdx_host_runs(const struct tdx_td *td)
{
	return td->op_state == TDX_RUNNABLE;
}

/* Calls for a guest. PW_BACKEND: the module refused; *err is tdx_explain's. */
enum pw_status tdx_host_call(struct tdx_host *h, const struct tdx_guest *g, struct tdx_call c,
			     struct pw_err *err) PW_MUST_CHECK;
/* A call that takes a control page: it is c.frame, found here. PW_BUSY: there is none left. */
enum pw_status tdx_host_call_control(struct tdx_host *h, const struct tdx_guest *g, struct tdx_call c, uint64_t *pfn,
				     struct pw_err *err) PW_MUST_CHECK;
void tdx_host_control_is_free(struct tdx_host *h, uint64_t pfn);
/* Lets the guest run; and TRACK with a kick of its vCPU, after which what was blocked is in no TLB. */
enum pw_status tdx_host_enter(struct tdx_host *h, const struct tdx_guest *g, struct pw_err *err) PW_MUST_CHECK;
enum pw_status tdx_host_track(struct tdx_host *h, const struct tdx_guest *g, struct pw_err *err) PW_MUST_CHECK;

/* Memory put by for undoing: given to the allocator, and taken back when it can be. */
void tdx_host_ballast_drop(struct tdx_host *h);
void tdx_host_ballast_take(struct tdx_host *h);

/* The ops on pages of machine_tdx (agents/machine.h). */
enum pw_status tdx_host_page_in(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, const uint64_t *pfns,
				struct pw_err *err);
enum pw_status tdx_host_page_out(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err);
enum pw_status tdx_host_share(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err);
enum pw_status tdx_host_unshare(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err);
enum pw_status tdx_host_slot_remove(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err);
/* VM_INIT_DONE. */
enum pw_status tdx_host_finalize(void *model, struct machine_vm *vm, struct pw_err *err);
struct backend_run tdx_host_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end);

#endif
