/* agents/machine_cca.h
 *
 * The insides of an emulated CCA host: VMs, slots and events (machine_cca.c), and what happens to pages
 * (machine_cca_pages.c).
 *
 * Its pool is lent to realms frame by frame, as the agent says; everything else that a realm needs (descriptor, tables,
 * RECs, the spare) is taken from memory beside the pool. Shared pages are mapped to the half of physical memory that
 * the pool is not in. A realm's REC runs for one thing: to ask for RIPAS RAM where the host took a page away.
 */
#ifndef PW_AGENTS_MACHINE_CCA_H
#define PW_AGENTS_MACHINE_CCA_H
#include "agents/machine.h"
#include "engine/arch/cca_host.h"

struct cca_guest {
	struct cca_guest *next;
	struct machine_vm *vm;    /* borrowed */
	struct cca_host_realm *r; /* NULL: the VM is normal */
	struct tree booked; /* of a realm that is NEW: 1 where a page that nothing maps is paged out, not normal */
};

struct cca_machine {
	struct machine *x;  /* borrowed */
	struct pw_mem *mem; /* borrowed */
	struct cca m;
	struct cca_host h;
	struct arena arena; /* of books */
	struct cca_guest *guests;
	uint64_t shared; /* PFN that shared pages begin at: the half of memory that the pool is not in */
	void *parachute; /* memory for undoing; NULL: not there right now */
	bool undoing;    /* EL3 is not asked to refuse: nothing new goes wrong */
};

/* Pages alike in both halves. */
struct cca_now {
	uint64_t gfn, count;
	enum cca_entry entry; /* of the protected half */
	bool resident, shared;
	uint64_t pfn; /* resident */
};

struct cca_now machine_cca_now_at(const struct cca_machine *k, const struct cca_guest *g, uint64_t gfn, uint64_t end);
unsigned machine_cca_width(const struct machine_vm *vm); /* of IPAs, in bits */
uint64_t machine_cca_half(const struct machine_vm *vm);  /* GFNs that are in the protected half */

/* Says how an operation of the host ended; `what` names it where the RMM was not asked. */
enum pw_status machine_cca_answer(const struct cca_machine *k, enum pw_status st, enum cca_host_code code,
				  const char *what, struct pw_err *err);

/* What undoing needs is put by before anything is done; unpacked, it is there for the allocator. */
enum pw_status machine_cca_pack(struct cca_machine *k, struct pw_err *err);
void machine_cca_unpack(struct cca_machine *k);

/* The realm asks for a RIPAS, the host does it (A5.4). Needs a realm that is ACTIVE. */
enum pw_status machine_cca_ask(struct cca_machine *k, struct cca_guest *g, uint64_t gfn, uint64_t count,
			       enum cca_ripas value, struct pw_err *err);

/* No page is booked any more. */
void machine_cca_book_close(struct cca_machine *k, struct cca_guest *g);

/* Those of the model. */
enum pw_status machine_cca_page_in(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				   const uint64_t *pfns, struct pw_err *err);
enum pw_status machine_cca_page_out(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				    struct pw_err *err);
enum pw_status machine_cca_share(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err);
enum pw_status machine_cca_unshare(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				   struct pw_err *err);
enum pw_status machine_cca_slot_remove(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err);
struct backend_run machine_cca_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end);

#endif
