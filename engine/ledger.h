/* engine/ledger.h
 *
 * The ledger: hosts, pools, VMs, and who owns every page. It enforces the law (L1-L4, L6, L8) and decides; the caller
 * makes its decisions durable and drives hardware. Not thread-safe: one writer; readers only while nobody writes.
 *
 * Every command checks everything first and changes after. It answers PROBLEM_NONE, or a refusal that changed nothing
 * (*why says what and why; it may be NULL). PROBLEM_NO_MEMORY is such a refusal too.
 *
 * Changes can be taken back: everything since a mark (ledger_rollback) until the caller commits (ledger_commit).
 * Rolling back never allocates and never fails.
 */
#ifndef PW_ENGINE_LEDGER_H
#define PW_ENGINE_LEDGER_H
#include "engine/alias.h"
#include "engine/arch/law.h"
#include "engine/problem.h"
#include "engine/sum.h"
#include "engine/tree.h"
#include "engine/undo.h"

/* An entry of a VM's tree, as in the POWER seed of this idea: one state flag, or none for a normal GFN. */
#define GFN_ENTRY_RESIDENT TREE_LINEAR         /* secure and resident; the number is the PFN */
#define GFN_ENTRY_OUT      ((uint64_t)1 << 62) /* secure and paged out */
#define GFN_ENTRY_SHARED   ((uint64_t)1 << 61)
#define GFN_ENTRY_POOL     40 /* bits 47..40: the pool, by its place in the host's list; 0 is local */
#define GFN_ENTRY_ARCH     48 /* bits 51..48: 1 + the architecture's state (engine/arch/law.h); 0: the one at rest */
#define GFN_ENTRY_ARCH_ANY ((uint64_t)0xf << GFN_ENTRY_ARCH)
#define GFN_KINDS_RESIDENT TREE_CLASS(3)
#define GFN_KINDS_NORMAL   TREE_CLASS(0)
enum gfn_state gfn_entry_state(uint64_t entry);

/* An entry of a pool's tree. */
#define FRAME_ENTRY_BOUND       TREE_LINEAR         /* the number is the GFN, bits 59..40 the VM's number */
#define FRAME_ENTRY_QUARANTINED ((uint64_t)1 << 62) /* bits 39..0: the number of the note that says why */
#define FRAME_ENTRY_VM          40
#define FRAME_KINDS_BOUND       TREE_CLASS(3)
#define FRAME_KINDS_QUARANTINED TREE_CLASS(2)

#define HOST_NAME_MAX_          128
#define BOOT_ID_MAX             65
#define HOST_POOLS_MAX          256 /* local, and up to 255 shared ones */
#define LEDGER_VMS_MAX          (((size_t)1 << 20) - 1)
#define VM_SLOTS_MAX            32764 /* as many as KVM has */
#define LEDGER_HOSTS_MAX        65536
#define LEDGER_POOLS_MAX        65536 /* shared ones */

#define ARCHES(X)          \
	X(ARCH_PEF, "pef") \
	X(ARCH_TDX, "tdx") X(ARCH_PKVM, "pkvm") X(ARCH_SNP, "snp") X(ARCH_CCA, "cca") X(ARCH_KVM, "kvm")
#define PW_ENUM_(name, text) name,
enum arch { ARCHES(PW_ENUM_) ARCH_COUNT };
#undef PW_ENUM_
const char *arch_name(enum arch a);
bool arch_from_name(const char *name, enum arch *out) PW_MUST_CHECK;

struct pool {
	char name[POOL_NAME_MAX]; /* "local" for a host's own */
	uint64_t base, frames;    /* PFNs [base, base + frames) */
	unsigned page_shift;
	uint64_t bound, quarantined; /* frames */
	uint64_t notes;              /* ranges that were put into quarantine, and of which frames are there still */
	struct tree owners;
	struct host *host; /* of a local pool; NULL for a shared one. borrowed */
	uint64_t revision; /* the caller's: of its last change */
};

struct host {
	struct pw_uuid id;
	char name[HOST_NAME_MAX_];
	char boot_id[BOOT_ID_MAX];
	uint64_t epoch; /* from 1; grows at each reboot and fence */
	bool fenced;
	uint32_t arches;                    /* bit a: has a backend for arch a */
	unsigned page_shift;                /* of its local pool; 12 without one */
	struct pool *pools[HOST_POOLS_MAX]; /* [0] local (owned, or NULL); others borrowed, NULL: free place */
	uint64_t vms;                       /* placed here */
	uint64_t revision;
	void *note; /* the caller's own; the ledger never looks */
};

struct slot {
	uint32_t number;
	uint64_t base, pages; /* GFNs [base, base + pages) */
};

struct vm_counts {
	uint64_t pages[GFN_STATE_COUNT]; /* indexed by gfn_state; of all slots */
};

/* What of a VM is going: its pages keep their frames, and get no others. */
struct vm_leaving {
	const char *op;   /* static text: the operation that ends the whole VM; NULL: none does */
	size_t n;         /* slots that an operation unplug takes away */
	uint32_t slots[]; /* sorted */
};

struct vm {
	struct pw_uuid id;
	char name[HOST_NAME_MAX_];
	struct host *host; /* borrowed */
	enum arch arch;
	enum vm_state state;
	uint8_t arch_state; /* its architecture's (engine/arch/law.h: vm_states); nothing while it is normal */
	bool on_hardware;   /* hardware may have it: since its start, or the handing out of its launch; always if not
			       normal */
	struct vm_leaving *leaving; /* the caller's; NULL: nothing is */
	uint64_t epoch;             /* from 1; grows whenever the VM falls back to normal */
	struct gfn_alias alias;
	unsigned shared_bit;          /* GPA bit, 0 without aliases */
	struct slot *slots;           /* sorted by base */
	size_t slot_count, slot_room; /* room: of the array */
	struct tree pages;
	struct vm_counts counts;
	uint32_t number; /* its name in pool entries */
	uint64_t revision;
	uint64_t ended; /* the caller's: revision at which it last fell to normal, or was created */
};

struct ledger; /* opaque; iterate with the functions below */

/* mem is borrowed and must outlive the ledger. NULL if it refuses. */
struct ledger *ledger_new(struct pw_mem *mem);
void ledger_free(struct ledger *l);

/* Undo. A mark is valid until the next commit or a rollback past it. */
undo_mark ledger_mark(const struct ledger *l);
void ledger_rollback(struct ledger *l, undo_mark to);
void ledger_commit(struct ledger *l);       /* forget how to undo; give spare memory back */
struct undo *ledger_undo(struct ledger *l); /* for the caller's own registries, so that all is taken back in order */

/*
 * Work is counted in steps of some 10 to 100 ns: a run or a table that is looked at is one, a run that is changed or
 * taken back LEDGER_WORK_CHANGE. The count only grows.
 */
#define LEDGER_WORK_CHANGE 8
#define LEDGER_WORK_RUN    64
uint64_t ledger_work(const struct ledger *l);
/*
 * From now on an item (ledger_apply), and a call of ledger_quarantine or ledger_unquarantine, is refused
 * (too-much-work) if it takes more than that many steps beyond LEDGER_WORK_RUN for each of its own runs. `flag` is the
 * limit's name for the refusal: static text. 0 steps: no limit, as in a new ledger. Items that were decided have none.
 */
void ledger_set_work_limit(struct ledger *l, const char *flag, uint64_t steps);
/*
 * `pause` is called in the midst of long commands, some LEDGER_PAUSE steps apart: nothing may change, and what is read
 * of pages and frames is half done or half taken back. NULL, as in a new ledger: never.
 */
#define LEDGER_PAUSE 8192
void ledger_on_pause(struct ledger *l, void (*pause)(void *ctx), void *ctx);

/* Hosts. */
struct host_spec {
	struct pw_uuid id;
	const char *name, *boot_id; /* borrowed */
	uint32_t arches;
	bool has_local;
	uint64_t base, frames;
	unsigned page_shift;
};
struct host_put {
	struct host *host;
	bool created, rebooted, changed; /* rebooted: boot_id differed, its VMs were reset; changed: anything at all */
};
/*
 * Registers a host, or the same host again. A changed boot_id resets its VMs to normal, lifts its local quarantine and
 * adds 1 to epoch (L8); so does nothing else. A fenced host comes back with this call.
 * pool-in-use   the local pool would lose a bound or quarantined frame
 * pool-mismatch page_shift changed while it has VMs or shared pools
 */
enum pw_problem ledger_host_put(struct ledger *l, const struct host_spec *spec, struct host_put *out,
				struct refusal *why) PW_MUST_CHECK;
/* "This host is powered off": releases all that its VMs have in all pools, VMs to normal and off hardware, epoch + 1.
 */
enum pw_problem ledger_host_fence(struct ledger *l, struct host *h, struct refusal *why) PW_MUST_CHECK;
/* host-fenced unless (boot_id, epoch) is current and the host is not fenced (L8). */
enum pw_problem ledger_host_current(const struct host *h, const char *boot_id, uint64_t epoch,
				    struct refusal *why) PW_MUST_CHECK;
struct host *ledger_host(const struct ledger *l, const struct pw_uuid *id); /* or NULL */
size_t ledger_host_count(const struct ledger *l);
struct host *ledger_host_at(const struct ledger *l, size_t i);                   /* in order of their ids; i < count */
size_t ledger_host_after(const struct ledger *l, const struct pw_uuid *id);      /* first i whose id is greater */
struct pool *host_pool(const struct host *h, const char *name, unsigned *place); /* attached here, or NULL */

/* Shared pools, by name. Attaches to exactly `hosts`. */
struct pool_spec {
	const char *name;
	uint64_t base, frames;
	unsigned page_shift;
	struct host *const *hosts;
	size_t host_count;
};
/*
 * pool-in-use   it would lose bound or quarantined frames, or a host that has frames of it bound
 * pool-mismatch page_shift is not that of every host, or changes while anything is bound
 */
enum pw_problem ledger_pool_put(struct ledger *l, const struct pool_spec *spec, struct pool **out, bool *created,
				struct refusal *why) PW_MUST_CHECK;
struct pool *ledger_pool(const struct ledger *l, const char *name); /* a shared one, or NULL */
size_t ledger_pool_count(const struct ledger *l);
struct pool *ledger_pool_at(const struct ledger *l, size_t i); /* shared ones, in order of their names */
size_t ledger_pool_after(const struct ledger *l, const char *name);

/* Quarantine. A bound frame among them is unbound: its GFN is then secure and paged out. Why and when is noted for each
 * range, and read back with its frames (pool_next_quarantined); a frame that was there already gets the new note. */
struct frame_range {
	struct pool *pool;
	uint64_t pfn, count;
	const char *reason; /* borrowed; NULL: "" */
	int64_t time_ms;    /* the caller's */
};
enum pw_problem ledger_quarantine(struct ledger *l, struct host *h, const struct frame_range *r, size_t n,
				  struct refusal *why) PW_MUST_CHECK;
/* Whether it would be refused, for anything but memory. */
enum pw_problem ledger_quarantine_check(struct ledger *l, const struct host *h, const struct frame_range *r, size_t n,
					struct refusal *why) PW_MUST_CHECK;
/* Frames that are not in quarantine are left alone. */
enum pw_problem ledger_unquarantine(struct ledger *l, const struct frame_range *r, size_t n,
				    struct refusal *why) PW_MUST_CHECK;

/* VMs and their slots. */
struct vm_spec {
	struct pw_uuid id;
	const char *name; /* borrowed; may be NULL */
	struct host *host;
	enum arch arch;
	const struct slot *slots; /* any order */
	size_t slot_count;
	unsigned shared_bit; /* GPA bit; 0: no aliases */
};
/* vm-exists, slot-overlap, arch-unsupported, invalid-request (a slot past 2^40 or the shared bit), limit-exceeded */
enum pw_problem ledger_vm_create(struct ledger *l, const struct vm_spec *spec, struct vm **out,
				 struct refusal *why) PW_MUST_CHECK;
enum pw_problem ledger_vm_delete(struct ledger *l, struct vm *vm, struct refusal *why) PW_MUST_CHECK; /* vm-busy */
/* New slots: GFNs start normal; in a secure VM secure and paged out. The same slot again changes nothing; a known
 * number with another place or size: slot-overlap. */
enum pw_problem ledger_slot_put(struct ledger *l, struct vm *vm, const struct slot *s, bool *created,
				struct refusal *why) PW_MUST_CHECK;
enum pw_problem ledger_slot_delete(struct ledger *l, struct vm *vm, uint32_t number, struct refusal *why) PW_MUST_CHECK;
/* start and init_start say that hardware may have the VM, init_abort and terminate that it has not. */
enum pw_problem ledger_vm_event(struct ledger *l, struct vm *vm, enum vm_event e, struct refusal *why) PW_MUST_CHECK;
/* An agent was told to make the VM: hardware may have it from now on. *changed: it was not so before. */
enum pw_problem ledger_vm_handed_out(struct ledger *l, struct vm *vm, bool *changed, struct refusal *why) PW_MUST_CHECK;
bool vm_slot_is_leaving(const struct vm *vm, uint32_t number);
/* Could the slot be put (ledger_slot_put)? *there: it is there already, just so. */
enum pw_problem vm_slot_fits(const struct vm *vm, const struct slot *s, bool *there, struct refusal *why) PW_MUST_CHECK;
bool vm_has_slot(const struct vm *vm, uint32_t number);
/* Would the event release what hardware may have? */
bool vm_event_releases(const struct vm *vm, enum vm_event e);
struct vm *ledger_vm(const struct ledger *l, const struct pw_uuid *id); /* or NULL */
struct vm *ledger_vm_by_number(const struct ledger *l, uint32_t number);
size_t ledger_vm_count(const struct ledger *l);
struct vm *ledger_vm_at(const struct ledger *l, size_t i); /* in order of their ids */
size_t ledger_vm_after(const struct ledger *l, const struct pw_uuid *id);

/* The name of the VM's state as its architecture has it; NULL: it is normal, or the architecture has none. */
const char *vm_arch_state(const struct vm *vm);

/* Transitions. */
struct gfn_run {
	uint64_t gfn, count; /* pages */
	uint64_t pfn;        /* first of count consecutive frames, where the item is framed */
};
struct item {
	struct pw_uuid vm;
	enum gfn_op op;             /* GFN_SHARE, GFN_UNSHARE, GFN_PAGE_IN or GFN_PAGE_OUT */
	bool framed;                /* the runs carry frames: always for page_in, may be for unshare, else never */
	const char *pool;           /* of the frames; borrowed */
	const struct gfn_run *runs; /* borrowed; each with count >= 1 and inside 2^40, as the codec guarantees */
	size_t run_count;
	const struct arch_op *arch_op;   /* an arch-level item: decides instead of op; NULL: op does */
	const struct arch_vm_op *vm_op;  /* a step of the VM itself: there are no runs; NULL: it is none */
	const struct arch_law *arch_law; /* whose arch_op or vm_op is */
	bool decided;                    /* redone: what the VM's state allows was looked at when it was accepted */
};
const char *item_op_name(const struct item *it); /* as on the wire */
/*
 * Applies one item for the agent of h: all of its runs in order, or none. Refuses with the first of these that holds
 * for the first run that has one: vm-not-found, vm-not-on-host, arch-unsupported (the operation is of another
 * architecture than the VM), vm-transition (the VM is normal, or the architecture's operation is not legal in its
 * state), gfn-out-of-slot, gfn-transition, frame-out-of-pool, frame-quarantined, frame-conflict; too-much-work wherever
 * the limit is passed. *changed: false if all was so already.
 *
 * An architecture's operation moves pages as engine/arch/law.h has it. One of the law that changes a page leaves it in
 * its architecture's state at rest.
 */
enum pw_problem ledger_apply(struct ledger *l, struct host *h, const struct item *it, bool *changed,
			     struct refusal *why) PW_MUST_CHECK;
/*
 * Applies items in order, each seeing those before it. results[i] is set for each item tried. Not atomic: all are
 * tried. Atomic: the first refusal takes everything back and ends it. Returns the number of refusals (atomic: 0 or 1).
 */
struct item_result {
	enum pw_problem problem;
	bool changed;
	struct refusal *why; /* heap, from the ledger's mem, only if refused; free with ledger_results_release */
};
size_t ledger_apply_batch(struct ledger *l, struct host *h, const struct item *items, size_t n, bool atomic,
			  struct item_result *results);
void ledger_results_release(struct ledger *l, struct item_result *results, size_t n);

/* Reading. Runs are maximal, cut to the window; a slot's edge, a change of state (the architecture's too) or residency,
 * or a break in consecutive frames ends one. False when there is none at or after `from` below `end`. */
struct gfn_view {
	uint64_t gfn, count;
	enum gfn_state state;
	const struct pool *pool; /* of a resident run; NULL otherwise */
	uint64_t pfn;
	unsigned arch;          /* the architecture's state + 1; 0: the one at rest */
	const char *arch_state; /* by name; NULL: the VM's architecture has none */
};
bool vm_next_run(const struct vm *vm, uint64_t from, uint64_t end, struct gfn_view *out);
/* Counts the pages of slots in [from, end). False: the walk is over its limit, try again with TREE_WALK_MIN more. */
bool vm_count_pages(const struct vm *vm, uint64_t from, uint64_t end, struct tree_walk *w, struct vm_counts *out);

struct frame_view {
	uint64_t pfn, count;
	const struct vm *vm; /* who has them; NULL: in quarantine */
	uint64_t gfn;
	const char *arch_state; /* of these GFNs, as in gfn_view */
	const char *reason;     /* of the quarantine */
	int64_t time_ms;
};
bool pool_next_bound(const struct ledger *l, const struct pool *p, uint64_t from, uint64_t end, struct frame_view *out);
bool pool_next_quarantined(const struct ledger *l, const struct pool *p, uint64_t from, uint64_t end,
			   struct frame_view *out);

/* Digest of the runs that vm_next_run gives for [gfn, gfn + count): see engine/digest.h. */
uint64_t vm_digest(const struct vm *vm, uint64_t gfn, uint64_t count);

/* For loading a picture: what these give was valid when it was saved, and is checked again. Not undoable one by one. */
enum pw_problem ledger_load_host(struct ledger *l, const struct host_spec *spec, uint64_t epoch, bool fenced,
				 struct host **out, struct refusal *why) PW_MUST_CHECK;
enum pw_problem ledger_load_attachment(struct ledger *l, struct pool *p, struct host *h, unsigned place,
				       struct refusal *why) PW_MUST_CHECK;
/* `arch_state` names the architecture's; "": the one at rest. */
enum pw_problem ledger_load_vm(struct ledger *l, const struct vm_spec *spec, enum vm_state state,
			       const char *arch_state, uint64_t epoch, struct vm **out,
			       struct refusal *why) PW_MUST_CHECK;
/* A slot whose GFNs are normal until their extents are loaded, in whatever state the VM is. Slots come in the order of
 * their bases, each with another number. */
enum pw_problem ledger_load_slot(struct ledger *l, struct vm *vm, const struct slot *s,
				 struct refusal *why) PW_MUST_CHECK;
/* One run of a VM's tree; a frame in it is claimed like any other. The entry of a normal GFN is nothing but its
 * architecture's state. */
enum pw_problem ledger_load_extent(struct ledger *l, struct vm *vm, uint64_t gfn, uint64_t count, uint64_t entry,
				   struct refusal *why) PW_MUST_CHECK;

/* Do all invariants hold (L1, L2, L4, counts, both trees agree)? Walks everything; for tests and start-up. */
bool ledger_check(const struct ledger *l, struct pw_err *err);

/* Bytes of the engine's memory in use, and what its limit refused to pass (0: none). */
const struct pw_mem *ledger_mem(const struct ledger *l);

#endif
