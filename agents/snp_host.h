/* agents/snp_host.h
 *
 * What a host does to SEV-SNP hardware, as KVM does it: contexts, ASIDs and metadata pages of guests, and the few
 * sequences of instructions and commands by which a page becomes a guest's and comes back. It works on the model of
 * engine/arch/snp.h, in strict mode; snp_pages.c decides what is to be done, and undoes it.
 *
 * Frames are PFNs of the host. Beside the pool lies what firmware gets: contexts, VMSA and metadata pages, and the RMP.
 * The lowest of these frames that is Hypervisor is taken first. One that firmware would not give back stays what it is,
 * and so is never taken again.
 *
 * Steps fail with PW_BACKEND (refused: *err has the code, the page, its state and the rule), PW_NO_MEMORY or PW_BUSY
 * (no frames for firmware, no ASID), and have then changed nothing. After snp_host_room, a step and all steps that undo
 * it find their memory: it needs none but what SWAP_OUT notes.
 */
#ifndef PW_AGENTS_SNP_HOST_H
#define PW_AGENTS_SNP_HOST_H
#include "agents/machine.h"
#include "agents/snp_trace.h"

struct snp_md_page {
	uint64_t frame; /* 0: none, the place is free */
	uint64_t used;  /* a bit for each of its SNP_MD_SLOTS entries */
};

struct snp_host_guest {
	struct snp_host_guest *next;
	uint64_t context, vmsa; /* frames; 0: none */
	unsigned asid;
	struct tree pages; /* agents/snp_pages.h: GFN -> attribute, frame, slot */
	struct snp_md_page *md;
	size_t md_count, md_room, md_from; /* none before md_from has a free entry */
	uint64_t lost;                     /* frames that could not be taken back; they keep its ASID */
};

/* What was done, for undo. */
enum snp_step_kind { SNP_STEP_IN, SNP_STEP_SWAP_IN, SNP_STEP_BACK, SNP_STEP_SWAP_OUT, SNP_STEP_SMASH };
struct snp_step {
	enum snp_step_kind kind;
	enum snp_size size;
	uint64_t gfn, pfn, count;
};

struct snp_host {
	struct pw_mem *mem; /* borrowed, as all of what follows up to the model */
	struct machine *machine;
	struct machine_pool pool;
	struct snp m;
	struct snp_trace trace; /* of m, if the machine is traced */
	struct arena nodes;     /* of the guests' trees */
	struct snp_range own;   /* for firmware */
	uint64_t own_from;      /* none before it is free */
	uint64_t bounce;        /* where SWAP_OUT writes and SWAP_IN reads */
	struct snp_host_guest *guests;
	struct snp_step *steps;
	size_t step_count, step_room;
};

/* PW_INVALID: no room for firmware's frames beside the pool, whose numbers have 36 bits. */
enum pw_status snp_host_open(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem,
			     struct snp_host **out, struct pw_err *err) PW_MUST_CHECK;
void snp_host_close(struct snp_host *h); /* all guests have ended */

/* GCTX_CREATE, LAUNCH_START, ACTIVATE: all dirty ASIDs are flushed if no clean one is left. */
enum pw_status snp_host_start(struct snp_host *h, struct snp_host_guest *g, struct pw_err *err) PW_MUST_CHECK;
/* One VMSA page, LAUNCH_FINISH. */
enum pw_status snp_host_finish(struct snp_host *h, struct snp_host_guest *g, struct pw_err *err) PW_MUST_CHECK;
/* Takes back what firmware had for the guest, and DECOMMISSION. Its memory's frames have come back before. */
void snp_host_end(struct snp_host *h, struct snp_host_guest *g);

enum pw_status snp_host_room(struct snp_host *h, struct pw_err *err) PW_MUST_CHECK;

/* Hypervisor -> Guest-Valid: by LAUNCH_UPDATE; by RMPUPDATE and the guest's PVALIDATE. */
enum pw_status snp_host_launch(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			       struct pw_err *err) PW_MUST_CHECK;
enum pw_status snp_host_accept(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			       struct pw_err *err) PW_MUST_CHECK;
/* Guest-Valid -> Hypervisor. */
enum pw_status snp_host_back(struct snp_host *h, const struct snp_step *page, struct pw_err *err) PW_MUST_CHECK;
/* Hardware refuses to give the frame back, as if another CPU held its entry: PW_BACKEND. */
enum pw_status snp_host_refuse(struct snp_host *h, uint64_t pfn, struct pw_err *err) PW_MUST_CHECK;
/* A 2 MiB page into 512 small ones, and 512 Guest-Valid ones back into one. */
enum pw_status snp_host_smash(struct snp_host *h, const struct snp_step *page, struct pw_err *err) PW_MUST_CHECK;
enum pw_status snp_host_mend(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			     struct pw_err *err) PW_MUST_CHECK;
/* Guest-Valid -> Hypervisor and the other way, each 4 KiB of the page by its metadata entry in slots[]. */
enum pw_status snp_host_swap_out(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
				 const uint64_t *slots, struct pw_err *err) PW_MUST_CHECK;
enum pw_status snp_host_swap_in(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
				const uint64_t *slots, struct pw_err *err) PW_MUST_CHECK;

/* Metadata entries: the lowest free ones, on pages that are made when needed and go when empty. */
enum pw_status snp_host_slots_take(struct snp_host *h, struct snp_host_guest *g, uint64_t count, uint64_t *slots,
				   struct pw_err *err) PW_MUST_CHECK;
void snp_host_slots_drop(struct snp_host *h, struct snp_host_guest *g, uint64_t first, uint64_t count);

#endif
