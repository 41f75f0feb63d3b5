/* tests/lib/ledger_world.h
 *
 * What the tests of the ledger share: an allocator that can be told to refuse, short ways to make hosts, pools and VMs,
 * and a dump of all that a ledger knows, so that two states can be compared as texts.
 */
#ifndef PW_TESTS_LIB_LEDGER_WORLD_H
#define PW_TESTS_LIB_LEDGER_WORLD_H
#include "engine/ledger.h"

struct heap {
	size_t calls;   /* allocations asked for */
	size_t fail_at; /* the n-th is refused, counted from 0; SIZE_MAX: none */
	bool refuse;    /* all are refused */
};

struct world {
	struct heap heap;
	struct pw_mem mem;
	struct ledger *ledger;
	struct refusal why; /* of the last command */
};
void world_init(struct world *w);    /* an empty ledger; NULL if the heap refused it */
void world_release(struct world *w); /* asserts that all memory came back */

struct pw_uuid uuid_of(unsigned n);
struct host_spec host_spec_of(unsigned n, const char *boot_id, uint64_t base, uint64_t frames);
struct host *world_host(struct world *w, unsigned n, const char *boot_id, uint64_t base, uint64_t frames);
struct pool *world_pool(struct world *w, const char *name, uint64_t base, uint64_t frames, struct host *const *hosts,
			size_t n);
struct vm *world_vm(struct world *w, unsigned n, struct host *h, const struct slot *slots, size_t count);
/* Takes the VM there from normal by its events. */
void world_vm_to(struct world *w, struct vm *vm, enum vm_state to);

/* One item of one run; pool NULL: no frames. */
enum pw_problem world_apply(struct world *w, struct host *h, const struct vm *vm, enum gfn_op op, uint64_t gfn,
			    uint64_t count, const char *pool, uint64_t pfn);

/* All hosts, pools and VMs with every run of every tree. The caller frees the text. */
char *ledger_dump(const struct ledger *l);
/* Asserts that the ledger holds its invariants and dumps as `before`, which it frees. */
void world_is_as(const struct world *w, char *before);
void world_holds(const struct world *w);

#endif
