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
 * A new architecture adds its files, a line of ARCHES (engine/ledger.h) and one of arch_laws (engine/arch/laws.c).
 */
#ifndef PW_ENGINE_ARCH_LAW_H
#define PW_ENGINE_ARCH_LAW_H
#include "engine/lifecycle.h"

#define ARCH_STATES_MAX  15
#define ARCH_REFUSED     0xff
#define ARCH_OP_NAME_MAX 64 /* bytes, the NUL included */

struct arch_op {
	const char *name; /* on the wire: "snp.rmpupdate"; one name may have two rows, with and without frames */
	bool framed;      /* its items name frames: it can make pages resident */
	const char
		*rule; /* where the row is from: document and section or table; ", inferred" where it is not verified */
	uint8_t next[ARCH_STATES_MAX]; /* of each state: a state, or ARCH_REFUSED */
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
	const struct arch_op *ops;
	size_t op_count;
	struct arch_trail trails[VM_STATE_COUNT][GFN_OP_COUNT]; /* of a transient VM and of a secure one */
};
/* By enum arch; NULL: the architecture has no page states of its own. */
extern const struct arch_law *const arch_laws[];

/* The row of a wire name; NULL: no architecture has it. *law (may be NULL) is whose it is. */
const struct arch_op *arch_op_find(const char *name, size_t len, bool framed, const struct arch_law **law);
/* The place of a state in the law by its name and what it is in the law; ARCH_REFUSED: it has none. */
unsigned arch_state_find(const struct arch_law *law, const char *name, enum gfn_state is);
/* An operation without frames that leads from one state to the other within one law state; NULL: none does. */
const struct arch_op *arch_op_between(const struct arch_law *law, unsigned from, unsigned to);
/* May the law's state of a page become that, by any of its transitions? */
bool arch_move_is_lawful(enum gfn_state now, enum gfn_state next);
/* Are all tables complete, and states at rest what they have to be? Called by one test. */
bool arch_laws_are_sound(void);

#endif
