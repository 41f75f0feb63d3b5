/* agents/machine.h
 *
 * An emulated machine as a backend. What hardware of every architecture has in common behind an agent is here, once:
 * VMs and their slots, the frames of the local pool (free, reserved, in use, stuck), the wishes of an exhausted pool,
 * injected faults, and the state file that lets the machine outlive its agent. How the firmware of one architecture
 * does each step is a struct machine_model (machine_pef.c, machine_snp.c ...) on top of engine/arch/.
 *
 * Which frame backs which page is the agent's choice (L5), so the machine takes none by itself: `reserve` promises the
 * lowest free frames (aligned stretches of 512 for aligned stretches of 512 GFNs, while there are any), and page_in
 * takes exactly reserved ones. Reservations are the agent's, not the machine's: they end with the process. What
 * firmware needs for itself (tables, contexts) comes from memory beside the pool.
 *
 * The state file is a log of the ops that succeeded (agents/machine_file.h): models are deterministic, so that doing
 * them again leads to the same machine. When it is long it is rewritten as the fewest ops that lead to what run_at
 * says, if there are such ops (pages whose architecture's state is neither at rest nor RIPAS EMPTY have none). An op
 * whose record could not be written ends the machine's use: every op says PW_STORAGE from then on.
 */
#ifndef PW_AGENTS_MACHINE_H
#define PW_AGENTS_MACHINE_H
#include <stdio.h>

#include "agents/backend.h"
#include "engine/mem.h"

struct machine; /* machine.c */

struct machine_vm {
	struct machine_vm *next;
	struct pw_uuid id;
	enum vm_state state;
	struct slot *slots; /* sorted by base */
	size_t slot_count;
	unsigned shared_bit;
	void *guest; /* the model's own; made by vm_new, ended by vm_free */
};

struct machine_pool {
	uint64_t base, frames; /* PFNs [base, base + frames): what the agent gives to guests */
};

/*
 * One architecture. The machine has checked before each call that the VM is in the right state and that GFNs lie
 * in its slots; that the pages are in a state from which the op is lawful (change_touches); that frames are reserved.
 * Pages that are so already are left alone by the model. A failed op has undone what it changed (L6); *err names the
 * state, the operation, the page and the rule's source, as the model explains it. Statuses: PW_BACKEND (firmware
 * refused), PW_NO_MEMORY, PW_BUSY (the model's own memory beside the pool is exhausted).
 */
struct machine_model {
	const char *arch; /* "snp" */
	const char *help;
	unsigned page_shift;
	uint64_t default_frames;
	bool swaps; /* page_out keeps the content: an exhausted pool may ask for victims */

	/* Powers the machine on. mem is borrowed and outlives it. */
	enum pw_status (*open)(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem, void **model,
			       struct pw_err *err);
	void (*close)(void *model);

	/* A VM in state normal with its slots; and away with one that is normal, or (when the machine is switched off)
	 * whose end failed. Before `close` all VMs are away. */
	enum pw_status (*vm_new)(void *model, struct machine_vm *vm, struct pw_err *err);
	void (*vm_free)(void *model, struct machine_vm *vm);
	/* VM_INIT_START, VM_INIT_DONE (what is still normal becomes secure and paged out), VM_INIT_ABORT, VM_TERMINATE.
	 * The last two go on past single failures: a frame that firmware does not give back is told to machine_keep. */
	enum pw_status (*event)(void *model, struct machine_vm *vm, enum vm_event e, struct pw_err *err);
	/* A slot more (already in vm->slots), or one less (still in vm->slots; its pages have to go). */
	enum pw_status (*slot_add)(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err);
	enum pw_status (*slot_remove)(void *model, struct machine_vm *vm, const struct slot *s, struct pw_err *err);

	/* The pages of [gfn, gfn + count) become secure and resident on pfns[i]; none of them is now. */
	enum pw_status (*page_in)(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				  const uint64_t *pfns, struct pw_err *err);
	/* Resident ones become paged out; shared; normal, paged-out and shared ones secure and paged out. */
	enum pw_status (*page_out)(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				   struct pw_err *err);
	enum pw_status (*share)(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err);
	enum pw_status (*unshare)(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err);

	/* As the backend's, of a VM that is normal or secure. NULL: the architecture has no RIPAS. */
	enum pw_status (*set_ripas)(void *model, struct machine_vm *vm, const struct backend_ripas *what,
				    uint64_t *done, struct pw_err *err);
	/* Are pages from gfn on EMPTY, and how many are alike, up to `end` at most? Of a normal VM: at its next
	 * init_start. NULL as set_ripas. */
	bool (*is_empty)(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end, uint64_t *count);

	/* Hardware's truth: the run of one state at gfn, cut at `end` (from < end, inside one slot); resident:
	 * consecutive frames. Needs not be maximal. */
	struct backend_run (*run_at)(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end);
	/* What the host saw at the last exit of vCPU n: from its own view, never from the hypervisor's copy (L10).
	 * False: there was none. NULL: the architecture has nothing to tell. */
	bool (*last_exit)(const void *model, const struct machine_vm *vm, unsigned vcpu, struct backend_exit *out);
	/* What a traced machine's hardware has done so far (backend.h). Any thread. NULL: it does not count. */
	void (*figures)(const void *model, backend_figure_fn fn, void *ctx);
	/* Do the model's invariants hold? For tests, and when the state file has been read. */
	bool (*check)(const void *model, struct pw_err *err);
};
extern const struct machine_model machine_pef, machine_snp, machine_tdx, machine_cca, machine_pkvm;

enum pw_status machine_open(const struct machine_model *model, const struct backend_options *o, struct backend **out,
			    struct pw_err *err) PW_MUST_CHECK;

/*
 * Prints what the machine in a state file has: hardware's truth, whatever its agent or the ledger say. The agent may be
 * using the file. One line each, parts separated by tabs:
 *   machine ARCH BASE_PFN FRAMES
 *   vm      VM STATE
 *   run     VM GFN COUNT normal|resident|out|shared PFN ARCH_STATE      (PFN: of resident runs, else empty)
 *   stuck   PFN COUNT WHY
 * PW_NOT_FOUND: no machine was switched on in it yet. PW_STORAGE: it cannot be read, or is another machine's.
 */
enum pw_status machine_dump(const struct machine_model *model, const char *path, FILE *to,
			    struct pw_err *err) PW_MUST_CHECK;

/*
 * For models. How many of the next `count` frames firmware gives back before it refuses one: count, but
 * for an injected fault ("frame:N": the N-th of all frames that were asked for back). The model then refuses that frame
 * as its firmware would. During the reading of the state file it repeats what had happened.
 */
uint64_t machine_gives_back(struct machine *x, uint64_t count);
/* For models that tell of each step of their hardware. Does anybody listen? Known when the model is opened. */
bool machine_is_traced(const struct machine *x);
/* Is what happens now new? The state file's ops are done again, and VMs end with the process, in silence. */
bool machine_is_live(const struct machine *x);
/* That frame stays stuck, and why (copied): reported by read_stuck, and never reserved again. */
void machine_keep(struct machine *x, uint64_t pfn, const char *why);

/* For tests. */
struct machine *machine_of_backend(struct backend *b);           /* one that machine_open made */
bool machine_check(const struct machine *x, struct pw_err *err); /* the machine's invariants, and the model's */

#endif
