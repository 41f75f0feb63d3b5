/* agents/machine_pkvm.h
 *
 * A host with protected KVM behind an emulated machine: VMs at the hypervisor (machine_pkvm_vms.c), their pages
 * (machine_pkvm_pages.c), their vCPUs' exits (machine_pkvm_exits.c), and memory beside the pool (machine_pkvm.c).
 *
 * A VM has one vCPU, which stays loaded on a CPU of its own for as long as the hypervisor has the VM: the host's
 * donations and the guest's calls go by it.
 *
 * A page that a guest shares stays the guest's, so a frame of the pool is never shared: the guest relinquishes it
 * (MEM_RELINQUISH, hence the Android generation), and shares a page of its slot's memory beside the pool, which the
 * host donates when the call faults. Paging out is relinquishing as well: there is no copy.
 *
 * Checks come first, nodes for the trees next; after that no call is refused.
 */
#ifndef PW_AGENTS_MACHINE_PKVM_H
#define PW_AGENTS_MACHINE_PKVM_H
#include "agents/machine.h"
#include "engine/arch/pkvm.h"

#define PKVM_NO_HANDLE  0u
#define PKVM_NODES_KEPT 128 /* between ops */

/* Memory beside the pool: a slot's own memory, which its guest may share, or what a VM takes at the hypervisor. */
struct pkvm_window {
	struct pkvm_window *next; /* by first */
	uint64_t first, count;
	const struct pkvm_guest *of;
	uint64_t gfn; /* of a slot; else PKVM_NO_GFN */
};
#define PKVM_NO_GFN UINT64_MAX

struct pkvm_guest {
	struct pkvm_guest *next;
	const struct machine_vm *vm; /* borrowed */
	unsigned handle;
	uint64_t own;          /* the first page of what the VM takes at the hypervisor */
	struct tree paged_out; /* what is no longer normal, though it has no page: the hypervisor knows no difference */
	struct pkvm_host_view seen; /* by the host at the vCPU's last exit */
	bool exited;                /* there was one */
};

struct pkvm_host {
	struct machine *machine;
	struct pw_mem *mem;
	struct pkvm hyp;
	struct arena notes;
	struct machine_pool pool;
	uint64_t first, end; /* beside the pool */
	struct pkvm_window *windows;
	struct pkvm_guest *guests;
};

/* The VM at the hypervisor; NULL: in state normal. */
struct pkvm_vm *machine_pkvm_vm(const struct pkvm_host *h, const struct pkvm_guest *g);
static inline unsigned machine_pkvm_cpu(const struct pkvm_guest *g)
{
	return g->handle - PKVM_HANDLE_FIRST;
}

/* Calls. A refusal is PW_BACKEND, in the model's words. */
enum pw_status machine_pkvm_no_memory(struct pw_err *err);
enum pw_status machine_pkvm_page_call(struct pkvm_host *h, enum pkvm_page_op op, const struct pkvm_call *c,
				      struct pw_err *err) PW_MUST_CHECK;
enum pw_status machine_pkvm_leaf_call(struct pkvm_host *h, enum pkvm_leaf_op op, const struct pkvm_call *c,
				      struct pw_err *err) PW_MUST_CHECK;
enum pw_status machine_pkvm_answer(const char *call, enum pkvm_code code, struct pw_err *err) PW_MUST_CHECK;
void machine_pkvm_trim(struct pkvm_host *h);

/* Memory beside the pool. PW_BUSY: there is none. */
enum pw_status machine_pkvm_window_take(struct pkvm_host *h, const struct pkvm_guest *g, uint64_t gfn, uint64_t count,
					uint64_t *first, struct pw_err *err) PW_MUST_CHECK;
void machine_pkvm_window_give(struct pkvm_host *h, const struct pkvm_guest *g, uint64_t gfn);
/* The page of its slot's memory that a GFN has, and how many follow it there. */
uint64_t machine_pkvm_slot_page(const struct pkvm_host *h, const struct pkvm_guest *g, uint64_t gfn, uint64_t *count);

/* Exits of a guest that runs; before its first run it has none. Each is answered when the guest goes on. */
enum pw_status machine_pkvm_first_exit(struct pkvm_host *h, struct pkvm_guest *g, struct pw_err *err) PW_MUST_CHECK;
/* It touches a page that it lacks; it shares such a one; it has given one up. */
enum pw_status machine_pkvm_touches(struct pkvm_host *h, struct pkvm_guest *g, uint64_t gfn,
				    struct pw_err *err) PW_MUST_CHECK;
enum pw_status machine_pkvm_shares(struct pkvm_host *h, struct pkvm_guest *g, uint64_t gfn,
				   struct pw_err *err) PW_MUST_CHECK;
enum pw_status machine_pkvm_relinquishes(struct pkvm_host *h, struct pkvm_guest *g, uint64_t gfn,
					 struct pw_err *err) PW_MUST_CHECK;
bool machine_pkvm_last_exit(const void *model, const struct machine_vm *vm, unsigned vcpu, struct backend_exit *out);

/* Of struct machine_model, with its struct pkvm_host. */
enum pw_status machine_pkvm_event(void *model, struct machine_vm *vm, enum vm_event e, struct pw_err *err);
enum pw_status machine_pkvm_page_in(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				    const uint64_t *pfns, struct pw_err *err);
enum pw_status machine_pkvm_page_out(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				     struct pw_err *err);
enum pw_status machine_pkvm_share(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err);
enum pw_status machine_pkvm_unshare(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				    struct pw_err *err);
/* Its pages have no page behind them, and are as if never touched. */
enum pw_status machine_pkvm_empty(struct pkvm_host *h, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				  struct pw_err *err) PW_MUST_CHECK;
struct backend_run machine_pkvm_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end);

#endif
