/* agents/backend.h
 *
 * A hardware backend: what the agent needs of a host's confidential-VM hardware, as a vtable. The agent keeps law L5
 * around it: it reserves frames here, claims them in the ledger, and only then assigns; it takes frames away here
 * first and releases them in the ledger after. So every op is about hardware alone and knows no server.
 *
 * Every op but set_ripas and last_exit exists in every backend and may be repeated after a lost reply: what is so
 * already is PW_OK. A failed op has undone what it changed (L6), and says in *err which page and which hardware call
 * refused. One thread at a time calls a backend, except for `wait`, `kick` and `figures`.
 */
#ifndef PW_AGENTS_BACKEND_H
#define PW_AGENTS_BACKEND_H
#include "engine/ledger.h"

struct backend_info {              /* what the host registers; text is static or the backend's */
	const char *arch;          /* "pef", "kvm" ... */
	const char *kind;          /* "emulated" or "kvm" */
	uint64_t base_pfn, frames; /* of the local pool */
	unsigned page_shift;
	char extra[256]; /* further members of the backend's JSON object, e.g. "\"guest_memfd\":true", or "" */
};

struct backend_vm_spec {
	struct pw_uuid id;
	const struct slot *slots; /* borrowed for the call */
	size_t slot_count;
	unsigned shared_bit; /* GPA bit; 0: none */

	/* What the operation's params say of the guest, for a backend that runs guests; others ignore it. */
	uint64_t guest_seed;
	unsigned guest_rate;       /* conversions a second; 0: the backend's default */
	bool idle;                 /* the guest only sleeps */
	const char *share_backing; /* VMs that name the same group get the same host pages for their first slot: a
				      double assignment made on purpose, for the ledger to refuse. NULL or "": none */
};

/* What hardware says of one run; the same notions as the ledger's. */
struct backend_run {
	uint64_t gfn, count;
	enum gfn_state state;
	uint64_t pfn;    /* of a resident run: consecutive from here */
	unsigned arch;   /* its architecture's state (engine/arch/law.h) + 1; 0: the one at rest */
	const char *why; /* read_stuck: why hardware keeps it; else NULL */
};
/* fn returns false to stop. */
typedef bool (*backend_run_fn)(void *ctx, const struct backend_run *run);
typedef bool (*backend_vm_fn)(void *ctx, const struct pw_uuid *vm, enum vm_state state);
typedef bool (*backend_slot_fn)(void *ctx, const struct slot *s);

/* Which pages of a VM are memory at all: where the architecture has a RIPAS, the guest says so, and the host may reject
 * a part of it. */
struct backend_ripas {
	uint64_t gfn, count;
	bool ram;        /* else EMPTY */
	bool keep;       /* what the host has destroyed stays so: the change ends before it */
	uint64_t accept; /* the host goes along for so many pages at most */
};

/* What a guest (or the machine) wants. The agent takes it to the ledger, acts, and answers with `complete`. */
enum backend_want { WANT_SHARE, WANT_UNSHARE, WANT_PAGE_IN, WANT_PAGE_OUT, WANT_RIPAS, WANT_TERMINATED };
struct backend_request {
	struct pw_uuid vm;
	enum backend_want want; /* WANT_TERMINATED: the guest ended (shut down, crashed: detail says) */
	uint64_t gfn, count;
	struct backend_ripas ripas; /* WANT_RIPAS */
	uint64_t cookie;            /* names the request in `complete` */
	char detail[128];
};

/* A count of what hardware did, as Prometheus has it. Text is static, or borrowed for the call. */
struct backend_figure {
	const char *name, *help; /* "pagewarden_rmp_transitions_total"; figures of one name follow each other */
	const char *labels;      /* "from=\"Firmware\",to=\"Context\"", or "" */
	uint64_t value;          /* never falls while the backend is open */
};
typedef void (*backend_figure_fn)(void *ctx, const struct backend_figure *figure);

/* What a vCPU's last exit showed its host: the exit's name and values of items; text is static. */
#define BACKEND_EXIT_ITEMS_MAX 16
struct backend_exit {
	const char *exit;
	size_t count;
	struct {
		const char *name;
		uint64_t value;
	} items[BACKEND_EXIT_ITEMS_MAX];
};

struct backend;
struct backend_ops {
	const char *name; /* as given to --backend/--arch: "pef", "kvm" */
	void (*info)(struct backend *b, struct backend_info *out);

	/* Makes the VM with its slots, in state normal; nothing runs yet. A VM known under this id: PW_OK. */
	enum pw_status (*create_vm)(struct backend *b, const struct backend_vm_spec *spec, struct pw_err *err);
	/* The hardware half of a VM event (VM_INIT_START, VM_INIT_DONE, VM_INIT_ABORT, VM_TERMINATE). Abort and
	 * terminate leave every GFN normal and every frame free, except frames that hardware would not give back: these
	 * stay reported by read_stuck, and the event still succeeds. */
	enum pw_status (*vm_event)(struct backend *b, const struct pw_uuid *vm, enum vm_event e, struct pw_err *err);
	/* Lets the guest run (a no-op where there is none). */
	enum pw_status (*run_vm)(struct backend *b, const struct pw_uuid *vm, struct pw_err *err);
	/* Ends and forgets the VM; PW_OK if unknown. */
	enum pw_status (*destroy_vm)(struct backend *b, const struct pw_uuid *vm, struct pw_err *err);
	enum pw_status (*map_slot)(struct backend *b, const struct pw_uuid *vm, const struct slot *s,
				   struct pw_err *err);
	enum pw_status (*unmap_slot)(struct backend *b, const struct pw_uuid *vm, uint32_t number, struct pw_err *err);

	/* Chooses (and pins, where memory is real) one free frame for each GFN, into pfns[count]. Not assigned yet.
	 * PW_BUSY: the pool is exhausted; nothing reserved. */
	enum pw_status (*reserve)(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  uint64_t *pfns, struct pw_err *err);
	/* Gives reserved frames back that were never assigned. */
	void (*unreserve)(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
			  const uint64_t *pfns);
	/* Assigns reserved frames: the GFNs become secure and resident. From paged out the content comes back; from
	 * normal it is kept while the VM is transient; from shared it is zero. */
	enum pw_status (*page_in)(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  const uint64_t *pfns, struct pw_err *err);
	enum pw_status (*page_out)(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				   struct pw_err *err);
	enum pw_status (*share)(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				struct pw_err *err);
	/* Without frames: secure and paged out (what is resident stays so). */
	enum pw_status (*unshare)(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				  struct pw_err *err);

	/* Says which pages are memory. Of a normal VM: at its next init_start, where pages of which nothing was said
	 * are RAM. Of a secure one: its guest asks, and the host does it; the first *done pages are so then, fewer than
	 * count if the host or its memory went no further. No frame comes or goes: pages that became EMPTY stay
	 * resident until they are paged out. PW_CONFLICT: of a transient VM. NULL: this hardware has no RIPAS. */
	enum pw_status (*set_ripas)(struct backend *b, const struct pw_uuid *vm, const struct backend_ripas *what,
				    uint64_t *done, struct pw_err *err);

	/* Hardware's own truth, for resync. */
	enum pw_status (*each_vm)(struct backend *b, backend_vm_fn fn, void *ctx, struct pw_err *err);
	/* PW_NOT_FOUND: no such VM here. Its slots in order, and its GPA bit (0: none). */
	enum pw_status (*read_slots)(struct backend *b, const struct pw_uuid *vm, backend_slot_fn fn, void *ctx,
				     unsigned *shared_bit, struct pw_err *err);
	/* PW_NOT_FOUND: no such VM here. Maximal runs inside slots, in order. */
	enum pw_status (*read_state)(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count,
				     backend_run_fn fn, void *ctx, struct pw_err *err);
	/* Frames that hardware would not give back (gfn is meaningless in the run). */
	enum pw_status (*read_stuck)(struct backend *b, backend_run_fn fn, void *ctx, struct pw_err *err);

	/* The exit of vCPU n that the host saw last, and no more of it than the host saw (L10). NULL: this hardware
	 * has no exits to tell of. PW_NOT_FOUND: no such VM or vCPU, or it had no exit. */
	enum pw_status (*last_exit)(struct backend *b, const struct pw_uuid *vm, unsigned vcpu,
				    struct backend_exit *out, struct pw_err *err);

	/* What hardware has done since it was opened; nothing, if it does not count. Any thread. */
	void (*figures)(struct backend *b, backend_figure_fn fn, void *ctx);

	/* Waits up to timeout_ms for a guest's wish. PW_OK: *out is one. PW_BUSY: none came (or kick). Any thread. */
	enum pw_status (*wait)(struct backend *b, unsigned timeout_ms, struct backend_request *out, struct pw_err *err);
	void (*kick)(struct backend *b); /* makes a waiting `wait` return early; async-signal-safe not needed */
	/* Tells the guest: done, or why not (st is what the agent's attempt ended with). */
	void (*complete)(struct backend *b, const struct backend_request *rq, enum pw_status st);

	void (*close)(struct backend *b); /* ends every VM of it */
};
struct backend { /* embedded first in each implementation */
	const struct backend_ops *ops;
};

/* What a backend is opened with; text is borrowed for the call. */
struct backend_options {
	uint64_t frames; /* size of an emulated pool; 0: the backend's default */
	uint64_t base_pfn;
	const char *fault; /* fault injection, for the backend to take its own part of (backend_fault_frame); or NULL */
	const char *state; /* a file where an emulated machine keeps its state, so that it outlives its agent (the
			      agent crashes, the hardware does not); NULL: it dies with the process */
	uint64_t seed;
	bool traced; /* an emulated machine logs (at level debug) and counts each step of its hardware, if it can */
	const char
		*script; /* a file by which guests of an emulated machine act (agents/machine_script.h); NULL: none */
};
struct machine_model;
struct backend_kind {
	const char *backend, *arch;          /* "--backend emulated --arch pef"; arch NULL: the backend has but one */
	const struct machine_model *machine; /* the emulated machine that it is (agents/machine.h); else NULL, and: */
	enum pw_status (*open)(const struct backend_options *o, struct backend **out, struct pw_err *err);
};
extern const struct backend_kind backend_kinds[]; /* backend.c; ends with backend NULL */

/* PW_NOT_FOUND: not on this machine (no /dev/kvm ...), err says what is missing. PW_INVALID: not with these options. */
enum pw_status backend_open(const struct backend_kind *k, const struct backend_options *o, struct backend **out,
			    struct pw_err *err) PW_MUST_CHECK;
enum pw_status backend_kvm_open(const struct backend_options *o, struct backend **out,
				struct pw_err *err) PW_MUST_CHECK;

/* Wraps a backend and makes its n-th call of one op fail, wait or end the process (backend_faulty.c). Takes `inner`. */
enum pw_status backend_faulty_wrap(struct backend *inner, const char *fault, struct backend **out,
				   struct pw_err *err) PW_MUST_CHECK;
/* The N of the fault's nth (from 0) "frame:N": the N-th frame that an emulated machine is asked to give back stays
 * where it is. 0: there are no more (or the fault is malformed; wrapping refuses it). */
uint64_t backend_fault_frame(const char *fault, size_t nth);

#endif
