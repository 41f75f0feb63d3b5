#include "agents/machine_pkvm.h"

#include "engine/arch/law.h"

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* The VM that its loaded vCPU calls for. */
static enum pw_status calling_vm(struct pkvm_host *h, const struct pkvm_guest *g, struct pkvm_vm **out,
				 struct pw_err *err)
{
	*out = pkvm_hypercall_vm(&h->hyp, machine_pkvm_cpu(g));
	return *out ? PW_OK : machine_pkvm_answer("a hypercall without a loaded vCPU", PKVM_EINVAL, err);
}

/* Nodes: what an op needs at most, so that none of its calls can fail. */

static uint64_t sets_within(uint64_t pieces, uint64_t pages)
{
	uint64_t nodes = 0;

	for (unsigned level = 1; level <= TREE_LEVELS; level++)
		nodes += (pages >> (TREE_BITS * level)) + 2;
	return min_u64(pieces, nodes / TREE_RESERVE + 2);
}

/* `pieces` stretches of `count` pages change, on frames anywhere in the pool. */
static enum pw_status nodes_reserve(struct pkvm_host *h, uint64_t pieces, uint64_t count, struct pw_err *err)
{
	uint64_t sets = 2 * sets_within(pieces, count) + sets_within(pieces, h->pool.frames) + 5;

	if (arena_reserve_sets(&h->hyp.arena, sets) != PW_OK ||
	    arena_reserve_sets(&h->notes, sets_within(pieces, count) + 2) != PW_OK)
		return machine_pkvm_no_memory(err);
	return PW_OK;
}

/* What pages are. */

static enum gfn_state state_at(const struct pkvm_guest *g, const struct pkvm_leaf *leaf, uint64_t *count)
{
	enum gfn_state s = pkvm_project(PKVM_PROTECTED, leaf->state);
	struct tree_run note;

	if (leaf->state != PKVM_NOPAGE || g->vm->state != VM_TRANSIENT)
		return s;
	note = tree_run_at(&g->paged_out, leaf->first, leaf->first + leaf->count);
	*count = note.count;
	return note.entry ? s : GFN_NORMAL;
}

static unsigned arch_state(const struct pkvm_leaf *leaf, enum gfn_state s)
{
	const struct arch_law *law = arch_laws[ARCH_PKVM];
	unsigned at = arch_state_find(law, pkvm_page_state_name(leaf->state), s);

	return at == law->rest[s] ? 0 : at + 1;
}

struct backend_run machine_pkvm_run_at(const void *model, const struct machine_vm *vm, uint64_t gfn, uint64_t end)
{
	const struct pkvm_vm *p = machine_pkvm_vm(model, vm->guest);
	struct backend_run run = { .gfn = gfn, .count = end - gfn, .state = GFN_NORMAL };
	struct pkvm_leaf leaf;

	if (!p)
		return run;
	leaf = pkvm_leaf_at(p, gfn, end);
	run.count = leaf.count;
	run.state = state_at(vm->guest, &leaf, &run.count);
	run.arch = arch_state(&leaf, run.state);
	if (run.state == GFN_SECURE_RESIDENT)
		run.pfn = leaf.pfn;
	return run;
}

/* Pages of [gfn, end) in that state. *runs (may be NULL): of leaves, of any state. */
static uint64_t pages_in(const struct pkvm_vm *vm, enum pkvm_page_state s, uint64_t gfn, uint64_t end, uint64_t *runs)
{
	struct pkvm_leaf leaf;
	uint64_t n = 0, count = 0;

	for (; gfn < end; gfn += leaf.count, count++) {
		leaf = pkvm_leaf_at(vm, gfn, end);
		n += leaf.state == s ? leaf.count : 0;
	}
	if (runs)
		*runs = count;
	return n;
}

/* Steps of ops, for which nodes are there and which nothing refuses any more. */

/* The host is told of each page; the last one stays what it saw. */
static enum pw_status relinquish(struct pkvm_host *h, struct pkvm_guest *g, struct pkvm_vm *vm, uint64_t gfn,
				 uint64_t count, struct pw_err *err)
{
	enum pw_status st =
		machine_pkvm_leaf_call(h, PKVM_RLQ, &(struct pkvm_call){ .vm = vm, .gfn = gfn, .calls = count }, err);

	return st == PW_OK ? machine_pkvm_relinquishes(h, g, gfn + count - 1, err) : st;
}

/* The guest takes a shared page back and gives it up. */
static enum pw_status unshare_leaves(struct pkvm_host *h, struct pkvm_guest *g, struct pkvm_vm *vm, uint64_t gfn,
				     uint64_t count, struct pw_err *err)
{
	enum pw_status st =
		machine_pkvm_leaf_call(h, PKVM_GUH, &(struct pkvm_call){ .vm = vm, .gfn = gfn, .calls = count }, err);

	return st == PW_OK ? relinquish(h, g, vm, gfn, count, err) : st;
}

static enum pw_status donate(struct pkvm_host *h, struct pkvm_vm *vm, uint64_t gfn, uint64_t pfn, uint64_t count,
			     struct pw_err *err)
{
	return machine_pkvm_page_call(h, PKVM_HDG,
				      &(struct pkvm_call){ .vm = vm, .gfn = gfn, .pfn = pfn, .calls = count }, err);
}

/* The guest's call faults on what has no page; the host donates the slot's own; the call is made again. */
static enum pw_status share_leaves(struct pkvm_host *h, struct pkvm_guest *g, struct pkvm_vm *vm, uint64_t gfn,
				   uint64_t count, struct pw_err *err)
{
	enum pw_status st = machine_pkvm_shares(h, g, gfn + count - 1, err);

	for (uint64_t at = gfn, end = gfn + count, n; at < end && st == PW_OK; at += n) {
		uint64_t pfn = machine_pkvm_slot_page(h, g, at, &n);

		n = min_u64(n, end - at);
		st = donate(h, vm, at, pfn, n, err);
	}
	if (st != PW_OK)
		return st;
	return machine_pkvm_leaf_call(h, PKVM_GSH, &(struct pkvm_call){ .vm = vm, .gfn = gfn, .calls = count }, err);
}

static enum pw_status note_paged_out(struct pkvm_guest *g, uint64_t gfn, uint64_t count)
{
	return g->vm->state == VM_TRANSIENT ? tree_set(&g->paged_out, gfn, count, 1) : PW_OK;
}

/* Refusals. */

/* The guest has shared that page meanwhile: it cannot relinquish it. */
static enum pw_status refuse_relinquishing(struct pkvm_host *h, struct pkvm_vm *vm, uint64_t gfn, struct pw_err *err)
{
	struct pkvm_call c = { .vm = vm, .gfn = gfn };
	struct pw_err later;
	enum pw_status st = machine_pkvm_leaf_call(h, PKVM_GSH, &c, err);

	if (st != PW_OK)
		return st;
	st = machine_pkvm_leaf_call(h, PKVM_RLQ, &c, err);
	return machine_pkvm_leaf_call(h, PKVM_GUH, &c, &later) == PW_OK ? st : later.status;
}

/* The n-th owned page of [gfn, end). */
static uint64_t nth_owned(const struct pkvm_vm *vm, uint64_t gfn, uint64_t end, uint64_t n)
{
	struct pkvm_leaf leaf;

	for (; gfn < end; gfn += leaf.count) {
		leaf = pkvm_leaf_at(vm, gfn, end);
		if (leaf.state != PKVM_OWNED)
			continue;
		if (n < leaf.count)
			return gfn + n;
		n -= leaf.count;
	}
	return end;
}

/* Pages that an op will give up: nodes for it, and may it? */
static enum pw_status may_give_up(struct pkvm_host *h, struct pkvm_vm *vm, uint64_t gfn, uint64_t count,
				  struct pw_err *err)
{
	uint64_t runs, owned = pages_in(vm, PKVM_OWNED, gfn, gfn + count, &runs), n;
	enum pw_status st = nodes_reserve(h, runs, count, err);

	if (st != PW_OK)
		return st;
	n = machine_gives_back(h->machine, owned);
	return n == owned ? PW_OK : refuse_relinquishing(h, vm, nth_owned(vm, gfn, gfn + count, n), err);
}

/* Ops. */

/* From gfn on: pages that are alike before, and get consecutive frames. */
static struct pkvm_leaf piece_at(const struct pkvm_vm *vm, uint64_t gfn, uint64_t end, const uint64_t *pfns)
{
	struct pkvm_leaf leaf = pkvm_leaf_at(vm, gfn, end);
	uint64_t n = 1;

	while (n < leaf.count && pfns[n] == pfns[0] + n)
		n++;
	leaf.count = n;
	return leaf;
}

/* Is every frame the host's, and every GFN free or shared? */
static enum pw_status may_donate(struct pkvm_host *h, struct pkvm_vm *vm, uint64_t gfn, uint64_t count,
				 const uint64_t *pfns, uint64_t *pieces, struct pw_err *err)
{
	struct pkvm_leaf piece;

	*pieces = 0;
	for (uint64_t at = 0; at < count; at += piece.count, ++*pieces) {
		struct pkvm_page page;

		piece = piece_at(vm, gfn + at, gfn + count, pfns + at);
		page = pkvm_page_at(&h->hyp, pfns[at], pfns[at] + piece.count);
		if (page.joint == PKVM_A && page.count == piece.count &&
		    (piece.state == PKVM_NOPAGE || piece.state == PKVM_SHARED_OWNED))
			continue;
		return donate(h, vm, gfn + at, pfns[at], piece.count, err);
	}
	return PW_OK;
}

static enum pw_status donate_pieces(struct pkvm_host *h, struct pkvm_guest *g, struct pkvm_vm *vm, uint64_t gfn,
				    uint64_t count, const uint64_t *pfns, struct pw_err *err)
{
	struct pkvm_leaf piece;
	uint64_t pieces;
	enum pw_status st = may_donate(h, vm, gfn, count, pfns, &pieces, err);

	if (st == PW_OK)
		st = nodes_reserve(h, pieces, count, err);
	if (st != PW_OK)
		return st;
	for (uint64_t at = 0; at < count && st == PW_OK; at += piece.count) {
		piece = piece_at(vm, gfn + at, gfn + count, pfns + at);
		if (piece.state == PKVM_SHARED_OWNED)
			st = unshare_leaves(h, g, vm, gfn + at, piece.count, err);
		if (st == PW_OK)
			st = machine_pkvm_touches(h, g, gfn + at + piece.count - 1, err);
		if (st == PW_OK)
			st = donate(h, vm, gfn + at, pfns[at], piece.count, err);
	}
	return st;
}

enum pw_status machine_pkvm_page_in(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				    const uint64_t *pfns, struct pw_err *err)
{
	struct pkvm_host *h = model;
	struct pkvm_vm *p;
	enum pw_status st = calling_vm(h, vm->guest, &p, err);

	if (st == PW_OK)
		st = donate_pieces(h, vm->guest, p, gfn, count, pfns, err);
	machine_pkvm_trim(h);
	return st;
}

/* What is owned is given up. */
static enum pw_status relinquish_all(struct pkvm_host *h, struct pkvm_guest *g, struct pkvm_vm *vm, uint64_t gfn,
				     uint64_t end, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	struct pkvm_leaf leaf;

	for (; gfn < end && st == PW_OK; gfn += leaf.count) {
		leaf = pkvm_leaf_at(vm, gfn, end);
		if (leaf.state != PKVM_OWNED)
			continue;
		st = relinquish(h, g, vm, gfn, leaf.count, err);
		if (st == PW_OK)
			st = note_paged_out(g, gfn, leaf.count);
	}
	return st;
}

/* What is shared is taken back and given up; what is not owned is paged out. */
static enum pw_status unshare_all(struct pkvm_host *h, struct pkvm_guest *g, struct pkvm_vm *vm, uint64_t gfn,
				  uint64_t end, struct pw_err *err)
{
	enum pw_status st = PW_OK;
	struct pkvm_leaf leaf;

	for (; gfn < end && st == PW_OK; gfn += leaf.count) {
		leaf = pkvm_leaf_at(vm, gfn, end);
		if (leaf.state == PKVM_SHARED_OWNED)
			st = unshare_leaves(h, g, vm, gfn, leaf.count, err);
		if (st == PW_OK && leaf.state != PKVM_OWNED)
			st = note_paged_out(g, gfn, leaf.count);
	}
	return st;
}

enum pw_status machine_pkvm_page_out(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				     struct pw_err *err)
{
	struct pkvm_host *h = model;
	struct pkvm_vm *p;
	enum pw_status st = calling_vm(h, vm->guest, &p, err);

	if (st == PW_OK)
		st = may_give_up(h, p, gfn, count, err);
	if (st == PW_OK)
		st = relinquish_all(h, vm->guest, p, gfn, gfn + count, err);
	machine_pkvm_trim(h);
	return st;
}

enum pw_status machine_pkvm_empty(struct pkvm_host *h, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				  struct pw_err *err)
{
	struct pkvm_guest *g = vm->guest;
	struct pkvm_vm *p;
	enum pw_status st = calling_vm(h, g, &p, err);

	if (st == PW_OK)
		st = may_give_up(h, p, gfn, count, err);
	if (st == PW_OK)
		st = relinquish_all(h, g, p, gfn, gfn + count, err);
	if (st == PW_OK)
		st = unshare_all(h, g, p, gfn, gfn + count, err);
	if (st == PW_OK && tree_set(&g->paged_out, gfn, count, 0) != PW_OK)
		st = machine_pkvm_no_memory(err);
	machine_pkvm_trim(h);
	return st;
}

/* Poison is never shared. */
static enum pw_status may_share(struct pkvm_host *h, struct pkvm_vm *vm, uint64_t gfn, uint64_t count,
				struct pw_err *err)
{
	struct pkvm_leaf leaf;

	for (uint64_t at = gfn, end = gfn + count; at < end; at += leaf.count) {
		leaf = pkvm_leaf_at(vm, at, end);
		if (leaf.state == PKVM_POISON)
			return machine_pkvm_leaf_call(h, PKVM_GSH, &(struct pkvm_call){ .vm = vm, .gfn = at }, err);
	}
	return may_give_up(h, vm, gfn, count, err);
}

enum pw_status machine_pkvm_share(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	struct pkvm_host *h = model;
	struct pkvm_leaf leaf;
	struct pkvm_vm *p;
	enum pw_status st = calling_vm(h, vm->guest, &p, err);

	if (st == PW_OK)
		st = may_share(h, p, gfn, count, err);
	for (uint64_t at = gfn, end = gfn + count; at < end && st == PW_OK; at += leaf.count) {
		leaf = pkvm_leaf_at(p, at, end);
		if (leaf.state == PKVM_SHARED_OWNED)
			continue;
		if (leaf.state == PKVM_OWNED)
			st = relinquish(h, vm->guest, p, at, leaf.count, err);
		if (st == PW_OK)
			st = share_leaves(h, vm->guest, p, at, leaf.count, err);
	}
	machine_pkvm_trim(h);
	return st;
}

enum pw_status machine_pkvm_unshare(void *model, struct machine_vm *vm, uint64_t gfn, uint64_t count,
				    struct pw_err *err)
{
	struct pkvm_host *h = model;
	struct pkvm_vm *p;
	uint64_t runs;
	enum pw_status st = calling_vm(h, vm->guest, &p, err);

	if (st == PW_OK) {
		pages_in(p, PKVM_SHARED_OWNED, gfn, gfn + count, &runs);
		st = nodes_reserve(h, runs, count, err);
	}
	if (st == PW_OK)
		st = unshare_all(h, vm->guest, p, gfn, gfn + count, err);
	machine_pkvm_trim(h);
	return st;
}
