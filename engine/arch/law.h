/* engine/arch/law.h
 *
 * What the ledger knows of an architecture: the states that a guest page of it can be in, each projected onto the
 * law's, and its page operations as a table, state x operation -> next state. The ledger keeps a GFN's architecture
 * state beside its law state, shows it, and takes arch-level items ("snp.rmpupdate") by these tables alone: what an
 * operation does to frames follows from the projections of the states before and after. Nothing else asks which
 * architecture a VM has.
 *
 * Frames: a page that becomes resident takes the frame that its item names, one that no longer is gives its frame back,
 * one that stays resident keeps its own. An item that names frames is about these frames: it is refused
 * (gfn-transition) where a resident page has another frame than the one named.
 *
 * VMs: an architecture's VM states are the law's, told apart further (a realm that is NEW, or ACTIVE and not sealed
 * yet). Each page operation says in which of them it is legal. Steps of the VM alone are operations too, without GFNs;
 * the events of the lifecycle move the state as well: init_start to the first one, init_done to `done` of the one it is
 * in.
 *
 * A new architecture adds its files, a line of ARCHES (engine/ledger.h) and one of arch_laws (engine/arch/laws.c).
 */
#ifndef PW_ENGINE_ARCH_LAW_H
#define PW_ENGINE_ARCH_LAW_H
#include "engine/lifecycle.h"

#define ARCH_STATES_MAX    15
#define ARCH_REFUSED       0xff
#define ARCH_OP_NAME_MAX   64 /* bytes, the NUL included */
#define ARCH_VM_STATES_MAX 8

/* A rule is where something is from: document and section or table; ", inferred" where it is not verified. */
struct arch_op {
	const char *name; /* on the wire: "snp.rmpupdate"; one name may have two rows, with and without frames */
	bool framed;      /* its items name frames: it can make pages resident */
	const char *rule; /* of the row */
	uint8_t vms;      /* bit s: it is legal while the VM is in vm_states[s] */
	const char *vms_rule;
	uint8_t next[ARCH_STATES_MAX]; /* of each state: a state, or ARCH_REFUSED */
};

struct arch_vm_state {
	const char *name; /* as the architecture's own documents call it */
	enum vm_state is; /* transient or secure; a VM that is normal has no such state */
	uint8_t done;     /* of a transient one: the secure one that init_done leads to, or ARCH_REFUSED */
};

/* A step of the VM itself: an item without GFNs. It stays within the law's state. */
struct arch_vm_op {
	const char *name; /* on the wire: "cca.realm_activate"; no page operation has it */
	const char *rule;
	uint8_t next[ARCH_VM_STATES_MAX];
};

/* The items by which an agent tells the ledger of a law operation on such pages: `item` claims frames or gives them up
 * (NULL: the law's own operation does), `done` follows a claim once hardware has carried it out (NULL: nothing to say).
 */
struct arch_trail {
	const char *item, *done;
};

struct arch_law {
	const char *name; /* "snp" */
	unsigned state_count;
	struct {
		const char *name; /* as the architecture's own documents call it */
		enum gfn_state is;
	} states[ARCH_STATES_MAX];
	/* At rest: the state of a GFN of each law state of which no arch-level item said anything else. It projects
	 * onto that law state. */
	uint8_t rest[GFN_STATE_COUNT];
	/* Of each state: what a page is in it, once an operation of the law has moved it to each of the law's states.
	 * NULL: at rest, whatever it was before. */
	const uint8_t (*after)[GFN_STATE_COUNT];
	const struct arch_op *ops;
	size_t op_count;
	struct arch_trail trails[VM_STATE_COUNT][GFN_OP_COUNT]; /* of a transient VM and of a secure one */
	/* The items by which a guest's RIPAS change is told: to EMPTY or RAM, with change_destroyed or without. NULL:
	 * the architecture has none. */
	const char *ripas[2][2];

	uint64_t shared_bits; /* bit b: GPA bit b may tell a VM's shared aliases; 0: an address says no such thing */

	struct arch_vm_state vm_states[ARCH_VM_STATES_MAX]; /* the first is where init_start leads */
	unsigned vm_state_count;
	const struct arch_vm_op *vm_ops;
	size_t vm_op_count;
	/* By which item an agent tells that hardware has sealed the VM, before init_done; and that its teardown has
	 * begun, before the event that ends it. NULL: there is none. */
	const char *sealed, *ending;
};
/* By enum arch; NULL: the architecture has no page states of its own. */
extern const struct arch_law *const arch_laws[];

/* The row of a wire name; NULL: no architecture has it. *law (may be NULL) is whose it is. */
const struct arch_op *arch_op_find(const char *name, size_t len, bool framed, const struct arch_law **law);
/* The place of a state in the law by its name and what it is in the law; ARCH_REFUSED: it has none. */
unsigned arch_state_find(const struct arch_law *law, const char *name, enum gfn_state is);
/*
 * How a page gets from one state to another of the same law state, by operations without frames that are legal while
 * the VM is in state `vm`: the first one of a shortest way. NULL: there is no way, or nothing to do.
 */
const struct arch_op *arch_op_between(const struct arch_law *law, unsigned vm, unsigned from, unsigned to);

static inline bool arch_op_fits_vm(const struct arch_op *op, unsigned vm)
{
	return op->vms >> vm & 1;
}
const struct arch_vm_op *arch_vm_op_find(const char *name, size_t len, const struct arch_law **law);
/* The place of a VM's state by its name and what it is in the law; ARCH_REFUSED: there is none. */
unsigned arch_vm_state_find(const struct arch_law *law, const char *name, enum vm_state is);
/* The state of a VM that is transient or secure, and of which no item said anything else. */
unsigned arch_vm_rest(const struct arch_law *law, enum vm_state is);
/* What a page in that state is once an operation of the law has moved it to another of the law's states. */
unsigned arch_page_after(const struct arch_law *law, unsigned from, enum gfn_state next);
/* May the law's state of a page become that, by any of its transitions? */
bool arch_move_is_lawful(enum gfn_state now, enum gfn_state next);
/* Are all tables complete, and states at rest what they have to be? Called by one test. */
bool arch_laws_are_sound(void);

#endif
