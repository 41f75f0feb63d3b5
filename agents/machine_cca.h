/* agents/machine_cca.h
 *
 * The insides of an emulated CCA host: VMs, slots and events (machine_cca.c), and what happens to pages
 * (machine_cca_pages.c), and to their RIPAS (machine_cca_ripas.c).
 *
 * Its pool is lent to realms frame by frame, as the agent says; everything else that a realm needs (descriptor, tables,
 * RECs, the spare) is taken from memory beside the pool. Shared pages are mapped to the half of physical memory that
 * the pool is not in. A realm's REC runs for one thing: to ask for a RIPAS (machine_cca_ripas.c). RAM it asks for by
 * itself where the host took a page away that had been RAM; what it gave up (EMPTY) stays so until it asks for it.
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
	struct tree empty;  /* 1 where the next init_start leaves a page EMPTY */
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

/* The realm asks for RIPAS RAM, the host does all of it (A5.4). Needs a realm that is ACTIVE. */
enum pw_status machine_cca_ask_ram(struct cca_machine *k, struct cca_guest *g, uint64_t gfn, uint64_t count,
				   struct pw_err *err);
/* A slot's pages are RAM but for those that init_start leaves EMPTY. */
enum pw_status machine_cca_init_slot(struct cca_machine *k, struct cca_guest *g, const struct slot *s,
				     struct pw_err *err);
/* Tables that say no more than one entry could. That one stays is no failure. */
void machine_cca_fold(struct cca_machine *k, struct cca_guest *g, uint64_t gfn, uint64_t end);

/* How the next init_start begins is not said yet. */
void machine_cca_plan_close(struct cca_machine *k, struct cca_guest *g);
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
enum pw_status machine_cca_set_ripas(void *model, struct machine_vm *vm, const struct backend_ripas *what,
				     uint64_t *done, struct pw_err *err);
bool machine_cca_is_empty(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end, uint64_t *count);
struct backend_run machine_cca_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end);

#endif
