/* agents/pef_machine.h
 *
 * The emulated PEF machine behind backend_pef.c: the model and its VMs, what their pages hold, the state file that all
 * of it lives in (pef_machine.c), and the requests of an exhausted pool (pef_wishes.c).
 */
#ifndef PW_AGENTS_PEF_MACHINE_H
#define PW_AGENTS_PEF_MACHINE_H
#include "agents/backend_pef.h"

#include <pthread.h>

#include "agents/machine_file.h"

struct pef_guest { /* what pef_vm.note points to */
	struct pw_uuid id;
	struct pef_vm *vm; /* borrowed */
	bool tagged;       /* tags are kept */
	struct tree tags;
};

struct old_runs {
	struct pef_run *at; /* owned */
	size_t count, room;
};

struct wish {
	struct wish *next;
	struct backend_request rq;
	bool told; /* wait has handed it out */
};

struct pef_machine {
	struct backend base;
	struct pw_mem mem;
	struct pef model;
	struct arena tag_nodes;
	uint64_t base_pfn;
	bool set_up;               /* the model is */
	struct pef_call how;       /* of the next op */
	struct machine_file *file; /* NULL: none */
	struct words undo, redo;
	struct old_runs before; /* of a VM whose tags are kept */
	bool lost;              /* memory and file differ: nothing works any more */

	uint64_t hand;        /* of the clock, in the pool */
	pthread_mutex_t lock; /* of all below */
	pthread_cond_t some;
	struct wish *wishes;
	uint64_t last_cookie;
	bool kicked;
};

/* Makes the pool, or reads the whole machine from its file. PW_INVALID, PW_CONFLICT: the options do not fit. */
enum pw_status pef_machine_switch_on(struct pef_machine *x, const struct backend_options *o,
				     struct pw_err *err) PW_MUST_CHECK;

struct pef_guest *pef_machine_find(struct pef_machine *x, const struct pw_uuid *id);
enum pw_status pef_machine_guest_new(struct pef_machine *x, const struct pw_uuid *id,
				     struct pef_guest **out) PW_MUST_CHECK;
void pef_machine_guest_free(struct pef_machine *x, struct pef_guest *g);

/*
 * Around every op that changes the machine: `begin_*` takes a picture of what it may touch; `end_*`, after success,
 * makes the change durable, or else puts the picture back (then the guest is another object). An op that the model
 * refused changed nothing, and just ends.
 */
enum pw_status pef_machine_begin(struct pef_machine *x, struct pw_err *err) PW_MUST_CHECK;
enum pw_status pef_machine_begin_vm(struct pef_machine *x, const struct pef_guest *g, struct pw_err *err) PW_MUST_CHECK;
enum pw_status pef_machine_begin_pages(struct pef_machine *x, const struct pef_guest *g, uint64_t gfn, uint64_t count,
				       struct pw_err *err) PW_MUST_CHECK;
enum pw_status pef_machine_end_vm(struct pef_machine *x, const struct pef_guest *g, enum pw_status st,
				  struct pw_err *err) PW_MUST_CHECK;
enum pw_status pef_machine_end_pages(struct pef_machine *x, const struct pef_guest *g, uint64_t gfn, uint64_t count,
				     enum pw_status st, struct pw_err *err) PW_MUST_CHECK;

/* The steps of the above, for an op that makes or ends a VM. */
void pef_machine_picture_forget(struct words *w, const struct pw_uuid *id);
enum pw_status pef_machine_commit(struct pef_machine *x, struct pw_err *err) PW_MUST_CHECK;
void pef_machine_put_back(struct pef_machine *x);

/* Does to tags what `op` did to the pages as they were at `begin_*`. */
void pef_machine_retag(struct pef_machine *x, struct pef_guest *g, enum pef_gfn_op op);

/* Wishes `missing` pages out, less what is wished already: the clock's hand goes round the pool once at most. */
void pef_machine_wish_room(struct pef_machine *x, uint64_t missing);
enum pw_status pef_machine_wait(struct pef_machine *x, unsigned timeout_ms, struct backend_request *out,
				struct pw_err *err);
void pef_machine_kick(struct pef_machine *x);
void pef_machine_complete(struct pef_machine *x, const struct backend_request *rq);
void pef_machine_wishes_init(struct pef_machine *x);
void pef_machine_wishes_release(struct pef_machine *x);

#endif
