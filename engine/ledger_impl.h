/* engine/ledger_impl.h
 *
 * What the ledger's own files share: ledger.c (hosts, pools), quarantine.c, vm.c (VMs, slots, events), apply.c
 * (transitions), claim.c (which
 * frames may be claimed), work.c (its count), view.c (reading). Nobody else includes it.
 */
#ifndef PW_ENGINE_LEDGER_IMPL_H
#define PW_ENGINE_LEDGER_IMPL_H
#include "engine/arch/law.h"
#include "engine/index.h"
#include "engine/ledger.h"

/* Spare nodes that outlive a commit: a change of a run sets two trees, and should find its reserve there. A ledger that
 * has few nodes keeps fewer: it is to be small. */
#define LEDGER_SPARES     ((size_t)2 * TREE_RESERVE)
#define LEDGER_SPARES_MIN ((size_t)4)

/*
 * note.c: why frames are in quarantine. A frame's entry has the number of its note; a note without frames is given back
 * at the next commit, so that undoing finds it.
 */
struct note {
	struct pool *pool; /* borrowed */
	uint64_t frames;   /* that have it */
	int64_t time_ms;
	uint32_t number;
	bool listed;       /* in notes.idle */
	struct note *next; /* there */
	size_t size;       /* bytes of this */
	char reason[];
};
struct notes {
	struct note_place {
		struct note *note; /* NULL: a free number */
		uint32_t next;     /* then: the next free one */
	} * places;
	uint32_t capacity, free; /* free == capacity: there is none */
	struct note *idle;       /* that may be without frames */
};
/* A note without frames; NULL: out of memory. */
struct note *note_new(struct ledger *l, const struct frame_range *r);
/* `count` frames get this entry, or no longer have it; entries other than of quarantine are let pass. */
void note_frames_add(struct ledger *l, uint64_t entry, uint64_t count);
void note_frames_take(struct ledger *l, uint64_t entry, uint64_t count);
const struct note *note_of(const struct ledger *l, uint64_t entry);
void notes_commit(struct ledger *l); /* gives back those without frames */
void notes_release(struct ledger *l);

struct ledger {
	struct pw_mem *mem; /* borrowed */
	struct arena arena;
	struct undo undo;
	struct index hosts, pools, vms;
	struct vm **numbers;                 /* LEDGER_VMS_MAX at most; by vm->number */
	size_t number_capacity, number_hint; /* no free number below the hint */
	struct notes notes;
	struct work {
		struct tree_walk walk;
		uint64_t began, stop; /* of the command under way: steps before it, and the most there may be */
		uint64_t limit;       /* 0: none */
		const char *flag;
		void (*pause)(void *ctx);
		void *pause_ctx;
		uint64_t pause_at; /* steps; UINT64_MAX: never */
	} work;
};

/* work.c: the count of work. A command that counts begins, asks whether it is over its limit, and ends. */
void work_begin(struct ledger *l, size_t runs);
void work_end(struct ledger *l);
static inline bool work_is_over(const struct ledger *l)
{
	return l->work.walk.steps > l->work.stop;
}
void work_pause(struct ledger *l);
/* Some steps are done, and both trees can be walked: the server may pause now. */
static inline void work_done(struct ledger *l, uint64_t steps)
{
	l->work.walk.steps += steps;
	if (l->work.walk.steps >= l->work.pause_at)
		work_pause(l);
}
/* `more` steps would come; too-much-work if they are too many. */
enum pw_problem work_check(const struct ledger *l, uint64_t more, struct refusal *why);
/* Those of engine/sum.h, in pieces. What they answer is void once work_is_over. */
bool work_find(struct ledger *l, const struct tree *t, uint64_t from, uint64_t end, uint64_t kinds,
	       struct tree_run *out);
uint64_t work_runs(struct ledger *l, const struct tree *t, uint64_t from, uint64_t end, uint64_t kinds);
struct tree_sum work_sum(struct ledger *l, const struct tree *t, uint64_t from, uint64_t end);

enum pw_problem refuse_memory(struct refusal *why, const char *what);

uint64_t gfn_entry(enum gfn_state s, unsigned place, uint64_t pfn);
/* The same of a page that reads `entry` and is moved by an operation of the law (arch_law.after). */
uint64_t gfn_entry_after(const struct vm *vm, uint64_t entry, enum gfn_state next, unsigned place, uint64_t pfn);
static inline unsigned gfn_entry_place(uint64_t entry)
{
	return (unsigned)(entry >> GFN_ENTRY_POOL) & 0xff;
}
static inline unsigned gfn_entry_arch(uint64_t entry)
{
	return (unsigned)((entry & GFN_ENTRY_ARCH_ANY) >> GFN_ENTRY_ARCH);
}
/* The architecture's state of a GFN: its place in the law. */
static inline unsigned gfn_arch_state(const struct arch_law *law, uint64_t entry)
{
	return gfn_entry_arch(entry) ? gfn_entry_arch(entry) - 1 : law->rest[gfn_entry_state(entry)];
}
static inline uint64_t frame_entry(uint32_t vm, uint64_t gfn)
{
	return FRAME_ENTRY_BOUND | (uint64_t)vm << FRAME_ENTRY_VM | gfn;
}
static inline uint32_t frame_entry_vm(uint64_t entry)
{
	return (uint32_t)(entry >> FRAME_ENTRY_VM) & LEDGER_VMS_MAX;
}

/* apply.c: gives [gfn, gfn + count), which is one run reading `old`, the new entry, in both trees. Undoable; on
 * PW_NO_MEMORY nothing changed. */
enum pw_status vm_change_run(struct ledger *l, struct vm *vm, const struct tree_run *old, uint64_t entry) PW_MUST_CHECK;
/* claim.c: the frames of [pfn, pfn + count) that keep a claim off, as the refusal to give; NONE if it may be made.
 * A frame that vm has for the very page of [gfn, gfn + count) that names it does not. Void once work_is_over. */
enum pw_problem pool_claimable(struct ledger *l, const struct pool *p, uint64_t pfn, uint64_t count,
			       const struct vm *vm, uint64_t gfn, struct refusal *why) PW_MUST_CHECK;
/* apply.c: is it an entry that the ledger itself would write for a GFN of this VM? 0 is one. */
bool vm_entry_is_sound(const struct vm *vm, uint64_t entry);
/* view.c: pool_next_bound, but without looking at the GFNs' state: a run breaks with its frames and GFNs only. */
bool pool_next_owned(const struct ledger *l, const struct pool *p, uint64_t from, uint64_t end, struct frame_view *out);
/* vm.c: every GFN to normal, every frame back, the VM to normal with a new epoch. Undoable; all or nothing. */
enum pw_status vm_reset(struct ledger *l, struct vm *vm) PW_MUST_CHECK;
void vm_free(struct ledger *l, struct vm *vm);
const struct slot *vm_slot_at(const struct vm *vm, uint64_t gfn); /* or NULL */
/* vm.c: invalid-request unless a VM with these aliases may have such a slot. */
enum pw_problem vm_slot_check(const struct slot *s, struct gfn_alias alias, struct refusal *why) PW_MUST_CHECK;
/* quarantine.c: lifts every quarantine of a pool. */
enum pw_status pool_unquarantine_all(struct ledger *l, struct pool *p) PW_MUST_CHECK;
/* ledger.c */
bool pool_has_past(const struct pool *p, uint64_t base, uint64_t frames); /* anything bound or quarantined outside? */
bool range_fits(uint64_t first, uint64_t count); /* count >= 1 and first + count <= 2^40, without wrapping */

#endif
