/* agents/machine_impl.h
 *
 * The insides of an emulated machine: the vtable and its life (machine.c), ops on VMs and on pages (machine_vms.c,
 * machine_pages.c), the frames of its pool (machine_frames.c), what hardware says (machine_view.c), the state file
 * (machine_log.c), and the wishes of an exhausted pool (machine_wishes.c).
 */
#ifndef PW_AGENTS_MACHINE_IMPL_H
#define PW_AGENTS_MACHINE_IMPL_H
#include "agents/machine.h"

#include <pthread.h>

#include "agents/machine_file.h"
#include "agents/machine_script.h"

/* The pool. A frame that is none of these is free; no frame is two of them. */
enum frame_use { FRAME_USED, FRAME_RESERVED, FRAME_STUCK, FRAME_USE_COUNT };

struct stuck_frame {
	uint64_t pfn;
	char *why; /* owned; NULL: there was no memory for it */
};

struct machine_frames {
	uint64_t base;                  /* PFN of bit 0: the pool's, rounded down to an aligned stretch */
	uint64_t first, end;            /* the pool's bits */
	uint64_t *map[FRAME_USE_COUNT]; /* owned */
	uint64_t count[FRAME_USE_COUNT];
	uint64_t low;              /* no bit of the pool below is free */
	uint64_t low_stretch;      /* no aligned stretch that begins below is all free */
	struct stuck_frame *stuck; /* owned; sorted */
	size_t stuck_count, stuck_room;
};
enum pw_status machine_frames_init(struct machine_frames *f, const struct machine_pool *pool) PW_MUST_CHECK;
void machine_frames_release(struct machine_frames *f);
bool machine_frames_have(const struct machine_frames *f, enum frame_use use, uint64_t pfn); /* false outside the pool */
uint64_t machine_frames_free(const struct machine_frames *f);
/* Frames of the pool, which are free or of that use. */
void machine_frames_mark(struct machine_frames *f, enum frame_use use, uint64_t pfn, uint64_t count);
void machine_frames_clear(struct machine_frames *f, enum frame_use use, uint64_t pfn, uint64_t count);
/* Marks the frames that are best for these GFNs as reserved; false: there are too few, and none is. */
bool machine_frames_reserve(struct machine_frames *f, uint64_t gfn, uint64_t count, uint64_t *pfns) PW_MUST_CHECK;
/* The index of the first frame that is not reserved, or is named twice; count: all are fine. */
uint64_t machine_frames_reserved(struct machine_frames *f, const uint64_t *pfns, uint64_t count);
/* Whatever the frame was; nothing outside the pool. */
void machine_frames_keep(struct machine_frames *f, uint64_t pfn, const char *why);
/* The run of stuck frames with one reason at or after pfn; false: none. */
bool machine_frames_stuck_at(const struct machine_frames *f, uint64_t pfn, struct backend_run *out) PW_MUST_CHECK;
bool machine_frames_check(const struct machine_frames *f);

struct resident_run {
	uint64_t pfn, count;
};

struct wish {
	struct wish *next;
	struct backend_request rq;
	bool told; /* wait has handed it out */
};

struct machine {
	struct backend base;
	struct backend_ops ops; /* the machine's, named as its model */
	const struct machine_model *model;
	void *firmware; /* the model's own; NULL: not switched on yet */
	struct pw_mem mem;
	struct machine_pool pool;
	struct machine_frames frames;
	struct machine_vm *vms; /* in order of their making */

	struct resident_run *before; /* owned; what the pages of this op were resident on */
	size_t before_count, before_room;

	/* Refusals: the frames that are to be refused, counted since the machine was opened, and those that this op ran
	 * into, counted from its begin. */
	uint64_t *faults; /* owned */
	size_t fault_count;
	uint64_t asked_ever, asked;
	struct words refused;
	bool closing; /* nothing is refused, and nothing is kept */
	bool traced;

	struct machine_file *file; /* NULL: none */
	struct words group;        /* of this op */
	bool replaying;            /* ops come from the file: `refused` says what happened */
	bool broken;               /* the file lacks an op that was done */
	uint64_t stuck_before;     /* at the op's begin */

	uint64_t hand;        /* of the clock: a PFN */
	pthread_mutex_t lock; /* of all below */
	pthread_cond_t some;
	struct wish *wishes;
	struct machine_script *script; /* of guests; NULL: none */
	uint64_t last_cookie;
	bool kicked;
};

struct machine *machine_new(const struct machine_model *model); /* NULL: no memory */
void machine_free(struct machine *x);
enum pw_status machine_switch_on(struct machine *x, uint64_t base, uint64_t frames, struct pw_err *err) PW_MUST_CHECK;
struct machine_vm *machine_find(const struct machine *x, const struct pw_uuid *id);

void machine_vm_drop(struct machine_vm *vm); /* of no list */

/* The VM that an op is about to work on. PW_NOT_FOUND; PW_STORAGE as machine_log_begin. */
enum pw_status machine_begin_vm(struct machine *x, const struct pw_uuid *id, struct machine_vm **vm,
				struct pw_err *err) PW_MUST_CHECK;
/* The same, if [gfn, gfn + count) is inside its slots; else PW_INVALID. */
enum pw_status machine_find_pages(struct machine *x, const struct pw_uuid *id, uint64_t gfn, uint64_t count,
				  struct machine_vm **vm, struct pw_err *err) PW_MUST_CHECK;
/* Around what the model does: which frames it took and freed is seen from what [gfn, end) was resident on before and
 * is after. Only remembering can fail. */
enum pw_status machine_remember(struct machine *x, const struct machine_vm *vm, uint64_t gfn, uint64_t end,
				struct pw_err *err) PW_MUST_CHECK;
void machine_settle(struct machine *x, const struct machine_vm *vm, uint64_t gfn, uint64_t end);

/* The ops, as the backend's. They check, do, and log; during a replay they do not log. */
enum pw_status machine_create_vm(struct machine *x, const struct backend_vm_spec *spec, struct pw_err *err);
enum pw_status machine_destroy_vm(struct machine *x, const struct pw_uuid *id, struct pw_err *err);
enum pw_status machine_vm_event(struct machine *x, const struct pw_uuid *id, enum vm_event e, struct pw_err *err);
enum pw_status machine_map_slot(struct machine *x, const struct pw_uuid *id, const struct slot *s, struct pw_err *err);
enum pw_status machine_unmap_slot(struct machine *x, const struct pw_uuid *id, uint32_t number, struct pw_err *err);
/* pfns: of GFN_PAGE_IN alone. */
enum pw_status machine_change(struct machine *x, const struct pw_uuid *id, enum gfn_op op, uint64_t gfn, uint64_t count,
			      const uint64_t *pfns, struct pw_err *err);

enum pw_status machine_set_ripas(struct machine *x, const struct pw_uuid *id, const struct backend_ripas *what,
				 uint64_t *done, struct pw_err *err);

/* What hardware says. The first run that ends past `from`, cut at `end` and at its slot's edge; the whole one is
 * maximal. False: no GFN of [from, end) is in a slot. */
bool machine_run_at(const struct machine *x, const struct machine_vm *vm, uint64_t from, uint64_t end,
		    struct backend_run *out) PW_MUST_CHECK;
bool machine_whole_run_at(const struct machine *x, const struct machine_vm *vm, uint64_t from, uint64_t end,
			  struct backend_run *out) PW_MUST_CHECK;
bool machine_covers(const struct machine_vm *vm, uint64_t gfn, uint64_t count);
/* The slot that covers gfn, or where one that does would be; slot_count: past all. */
size_t machine_slot_after(const struct machine_vm *vm, uint64_t gfn);

/*
 * The state file. A group is one or more records: the op's kind, its arguments, and the refusals that it ran into. The
 * first group of a file begins with REC_MACHINE. Texts are their length, and their bytes in words; the frames of a
 * page-in are runs, PFN and count, until all pages have one.
 */
enum machine_record {
	REC_MACHINE = 1,
	REC_STUCK,
	REC_CREATE,
	REC_DESTROY,
	REC_EVENT,
	REC_MAP,
	REC_UNMAP,
	REC_CHANGE,
	REC_PAGE_IN,
	REC_RIPAS, /* the pages that became so */
};
#define MACHINE_MAGIC    0x6d656e6968636170u /* no format of another kind begins so */
#define MACHINE_VERSION  1
#define MACHINE_TEXT_MAX 1023

/* Each op: begin; one log_* call before it is done; end with how it ended, which writes the record.
 * PW_STORAGE: the machine's use has ended. */
enum pw_status machine_log_open(struct machine *x, const struct backend_options *o, struct pw_err *err) PW_MUST_CHECK;
/* Does again what the file of a machine says, whoever has it open; the machine is not kept in it. */
enum pw_status machine_log_read(struct machine *x, const char *path, struct pw_err *err) PW_MUST_CHECK;
enum pw_status machine_log_begin(struct machine *x, struct pw_err *err) PW_MUST_CHECK;
void machine_log_create(struct machine *x, const struct machine_vm *vm);
void machine_log_destroy(struct machine *x, const struct pw_uuid *id);
void machine_log_event(struct machine *x, const struct pw_uuid *id, enum vm_event e);
void machine_log_map(struct machine *x, const struct pw_uuid *id, const struct slot *s);
void machine_log_unmap(struct machine *x, const struct pw_uuid *id, uint32_t number);
void machine_log_change(struct machine *x, const struct pw_uuid *id, enum gfn_op op, uint64_t gfn, uint64_t count,
			const uint64_t *pfns);
/* machine_log_ripas_done says of the last one how many pages became so. */
void machine_log_ripas(struct machine *x, const struct pw_uuid *id, const struct backend_ripas *what);
void machine_log_ripas_done(struct machine *x, uint64_t done);
enum pw_status machine_log_end(struct machine *x, enum pw_status st, struct pw_err *err) PW_MUST_CHECK;
/* Does again what the records say. PW_INVALID: they make no sense; other statuses: they cannot be done again. */
enum pw_status machine_replay(struct machine *x, const uint64_t *at, size_t count, struct pw_err *err) PW_MUST_CHECK;
/* Rewrites the file as the fewest ops that lead to what hardware says. False: it failed, and the file is as before. */
bool machine_log_shorten(struct machine *x);

/* Wishes `missing` pages out, less what is wished already: the clock's hand goes round the pool once at most. */
void machine_wish_room(struct machine *x, uint64_t missing);
enum pw_status machine_wait(struct machine *x, unsigned timeout_ms, struct backend_request *out, struct pw_err *err);
void machine_kick(struct machine *x);
void machine_complete(struct machine *x, const struct backend_request *rq);
void machine_wishes_init(struct machine *x);
void machine_wishes_release(struct machine *x);

#endif
