#include "engine/arch/pkvm_impl.h"

#include <assert.h>

#define PROT_ALL 7u

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t leaf_word(enum pkvm_page_state s, uint64_t block, uint64_t pfn)
{
	uint64_t word = ((uint64_t)s + 1) << JOINT_SHIFT;

	switch (s) {
	case PKVM_OWNED:
	case PKVM_SHARED_OWNED:
	case PKVM_BORROWED: return TREE_LINEAR | word | block | pfn;
	case PKVM_POISON: return word;
	case PKVM_NOPAGE:
	case PKVM_PAGE_STATE_COUNT: break;
	}
	return 0;
}

struct pkvm_page pkvm_page_at(const struct pkvm *m, uint64_t from, uint64_t end)
{
	struct tree_run run = tree_run_at(&m->pages, from, end);
	struct pkvm_page p = { .first = run.first, .count = run.count, .joint = word_joint(run.entry) };

	switch (p.joint) {
	case PKVM_B:
	case PKVM_C: p.pins = run.entry & COUNT_MASK; break;
	case PKVM_E: p.guests = run.entry & COUNT_MASK; break;
	case PKVM_F:
	case PKVM_G:
		p.vmid = (unsigned)((run.entry & VMID_MASK) >> VMID_SHIFT);
		p.gfn = run.entry & TREE_NUMBER;
		break;
	case PKVM_A:
	case PKVM_D:
	case PKVM_JOINT_COUNT: break;
	}
	return p;
}

struct pkvm_leaf pkvm_leaf_at(const struct pkvm_vm *vm, uint64_t from, uint64_t end)
{
	struct tree_run run = tree_run_at(&vm->leaves, from, end);

	return (struct pkvm_leaf){ .first = run.first,
				   .count = run.count,
				   .state = word_leaf(run.entry),
				   .block = run.entry & LEAF_BLOCK,
				   .pfn = run.entry & TREE_NUMBER };
}

/* Life. */

static bool regions_are_sane(const struct pkvm_region *r, size_t count)
{
	uint64_t at = 0;

	for (size_t i = 0; i < count; i++) {
		if (!r[i].count || r[i].first < at || r[i].first >= TREE_PAGES || r[i].count > TREE_PAGES - r[i].first)
			return false;
		at = r[i].first + r[i].count;
	}
	return count <= PKVM_REGIONS_MAX;
}

enum pw_status pkvm_init(struct pkvm *m, struct pw_mem *mem, enum pkvm_generation g, const struct pkvm_region *regions,
			 size_t count, unsigned cpus)
{
	if (!cpus || cpus > PKVM_CPUS_MAX || !regions_are_sane(regions, count))
		return PW_INVALID;
	*m = (struct pkvm){ .mem = mem, .generation = g, .region_count = count, .cpus = cpus };
	for (size_t i = 0; i < count; i++)
		m->regions[i] = regions[i];
	arena_init(&m->arena, mem);
	tree_init(&m->pages, &m->arena);
	m->loaded = pw_mem_zalloc(mem, cpus * sizeof(struct pkvm_vcpu_slot *));
	return m->loaded ? PW_OK : PW_NO_MEMORY;
}

/* Ranges. */

/* PKVM_EINVAL: it crosses an edge; PKVM_EPERM: it is no RAM, or the firmware's. */
static enum pkvm_code range_refusal(const struct pkvm *m, uint64_t first, uint64_t count)
{
	for (size_t i = 0; i < m->region_count; i++) {
		const struct pkvm_region *r = &m->regions[i];

		if (first < r->first)
			return count > r->first - first ? PKVM_EINVAL : PKVM_EPERM;
		if (first - r->first >= r->count)
			continue;
		if (count > r->count - (first - r->first))
			return PKVM_EINVAL;
		return r->no_map ? PKVM_EPERM : PKVM_OK;
	}
	return PKVM_EPERM;
}

static bool is_ram(const struct pkvm *m, uint64_t pfn)
{
	for (size_t i = 0; i < m->region_count; i++)
		if (pfn >= m->regions[i].first && pfn - m->regions[i].first < m->regions[i].count)
			return true;
	return false;
}

static bool numbers_are_sane(uint64_t first, uint64_t count)
{
	return first < TREE_PAGES && count <= TREE_PAGES - first;
}

/* One page, or one aligned block. */
static bool size_is_sane(uint64_t pfn, uint64_t gfn, uint64_t nr)
{
	return nr == 1 || (nr == PKVM_BLOCK_PAGES && (pfn | gfn) % PKVM_BLOCK_PAGES == 0);
}

static bool refuse(struct pkvm_answer *a, enum pkvm_code code, const char *rule, enum pkvm_source source)
{
	a->code = code;
	a->rule = rule;
	a->source = source;
	return false;
}

/* Checks that come before any page is looked at. */

static uint64_t nr_of(const struct pkvm_call *c)
{
	return c->nr ? c->nr : 1;
}

static uint64_t calls_of(const struct pkvm_call *c)
{
	return c->calls ? c->calls : 1;
}

/* 0: more than there can be. */
static uint64_t pages_of(const struct pkvm_call *c)
{
	uint64_t nr = nr_of(c), calls = calls_of(c);

	return nr > TREE_PAGES || calls > TREE_PAGES / nr ? 0 : nr * calls;
}

static bool is_made(const struct pkvm_vm *vm)
{
	return vm && (vm->state == PKVM_VM_CREATED || vm->state == PKVM_VM_DYING);
}

static bool kind_is(const struct pkvm_vm *vm, enum pkvm_kind wanted)
{
	return is_made(vm) && (vm->kind == wanted || vm->kind == PKVM_ANY);
}

static bool map_is_wellformed(enum pkvm_page_op op, const struct pkvm_call *c, uint64_t total, struct pkvm_answer *a)
{
	bool shares = op == PKVM_HSG;

	if (!kind_is(c->vm, shares ? PKVM_NON_PROTECTED : PKVM_PROTECTED))
		return refuse(a, PKVM_EINVAL, "the VM's kind", PKVM_READ);
	if (c->cache_fails != PKVM_OK)
		return refuse(a, c->cache_fails, "refill of the table page cache", PKVM_READ);
	if (shares && c->prot & ~PROT_ALL)
		return refuse(a, PKVM_EINVAL, "permissions beyond RWX", PKVM_READ);
	if (!total || !numbers_are_sane(c->pfn, total) || (shares && !numbers_are_sane(c->gfn, total)))
		return refuse(a, PKVM_EINVAL, "page numbers", PKVM_READ);
	if (shares ? !size_is_sane(c->pfn, c->gfn, nr_of(c)) : nr_of(c) != 1)
		return refuse(a, PKVM_EINVAL, "size", PKVM_READ);
	if (!numbers_are_sane(c->gfn, total))
		return refuse(a, PKVM_ERANGE, "page numbers", PKVM_INFERRED);
	return true;
}

/* Operations that name a page. */

static bool unless_holds(enum pkvm_unless unless, uint64_t word)
{
	switch (unless) {
	case PKVM_ALWAYS: break;
	case PKVM_UNLESS_PINNED:
	case PKVM_UNLESS_REFERENCED: return word & COUNT_MASK;
	case PKVM_UNLESS_COUNT_FULL: return (word & COUNT_MASK) == PKVM_SHARES_MAX;
	}
	return false;
}

struct chunk {
	uint64_t at, count;  /* offset and pages of a stretch that is all alike */
	uint64_t page, leaf; /* the words of its first page */
	enum pkvm_page_op op;
};

static bool names_gfn(enum pkvm_page_op op)
{
	return op == PKVM_HSG || op == PKVM_HDG;
}

/* One page needs no search for where its run ends. */
static struct tree_run run_at(const struct tree *t, uint64_t from, uint64_t end)
{
	if (end - from == 1)
		return (struct tree_run){ from, 1, tree_get(t, from) };
	return tree_run_at(t, from, end);
}

static struct chunk chunk_at(const struct pkvm *m, enum pkvm_page_op op, const struct pkvm_call *c, uint64_t at,
			     uint64_t end)
{
	struct tree_run pages = run_at(&m->pages, c->pfn + at, c->pfn + end), leaves;
	struct chunk k = { .at = at, .count = pages.count, .page = pages.entry, .op = op };

	if (!names_gfn(op))
		return k;
	leaves = run_at(&c->vm->leaves, c->gfn + at, c->gfn + end);
	k.count = min_u64(k.count, leaves.count);
	k.leaf = leaves.entry;
	if (k.leaf)
		k.op = op == PKVM_HSG ? PKVM_HSG_TAKEN : PKVM_HDG_TAKEN;
	return k;
}

static void answer_from(struct pkvm_answer *a, const struct chunk *k, enum pkvm_code code, enum pkvm_source source)
{
	a->code = code;
	a->joint = word_joint(k->page);
	a->leaf = word_leaf(k->leaf);
	a->page = k->at;
	a->rule = "ownership";
	a->source = source;
}

/* What no cell can say. */
static bool is_fatal(const struct chunk *k)
{
	return k->op == PKVM_PIN && word_joint(k->page) == PKVM_C && (k->page & COUNT_MASK) == PKVM_PINS_MAX;
}

static bool unpins_nothing(const struct chunk *k)
{
	return k->op == PKVM_UNPIN && word_joint(k->page) == PKVM_C && !(k->page & COUNT_MASK);
}

static bool owner_is_gone(const struct chunk *k)
{
	return k->op == PKVM_FRC && word_joint(k->page) == PKVM_F && !(k->page & VMID_MASK);
}

/* False: refused, and *a says why. *a is that of the last page otherwise. */
static bool judge_chunk(const struct chunk *k, struct pkvm_answer *a)
{
	const struct pkvm_page_cell *cell = pkvm_page_cell(word_joint(k->page), k->op);

	answer_from(a, k, PKVM_OK, cell->source);
	if (cell->kind == PKVM_REFUSE)
		a->code = cell->code;
	else if (is_fatal(k))
		return refuse(a, PKVM_PANIC, "the pin count overflows", PKVM_READ);
	else if (unpins_nothing(k))
		return refuse(a, PKVM_EPERM, "nothing is pinned", PKVM_INFERRED);
	else if (owner_is_gone(k))
		return refuse(a, PKVM_EAGAIN, "the VM is gone", PKVM_READ);
	else if (unless_holds(cell->unless, k->page))
		a->code = cell->code;
	else if (cell->contents == PKVM_ZEROED)
		a->contents = PKVM_ZEROED;
	return a->code == PKVM_OK;
}

/* Is a GFN of [at, end) taken? Then *a is the refusal. */
static bool guest_is_free(const struct pkvm *m, const struct pkvm_call *c, uint64_t at, uint64_t end,
			  struct pkvm_answer *a)
{
	for (struct chunk k; at < end; at += k.count) {
		k = chunk_at(m, PKVM_HSG, c, at, end);
		if (k.op == PKVM_HSG_TAKEN)
			return judge_chunk(&k, a);
	}
	return true;
}

/*
 * One call on [at, end), or several calls on one page each. In a call on a range, states come before counts: the passes
 * of the source; but sharing with a guest looks at both page by page.
 */
static bool judge_pages(const struct pkvm *m, enum pkvm_page_op op, const struct pkvm_call *c, uint64_t at,
			uint64_t end, struct pkvm_answer *a)
{
	bool passes = nr_of(c) > 1 && op != PKVM_HSG, is_busy = false;
	struct pkvm_answer busy = { 0 };

	if (op == PKVM_HSG && nr_of(c) > 1 && !guest_is_free(m, c, at, end, a))
		return false;
	for (struct chunk k; at < end; at += k.count) {
		k = chunk_at(m, op, c, at, end);
		if (judge_chunk(&k, a))
			continue;
		if (!passes || a->code != PKVM_EBUSY)
			return false;
		if (!is_busy)
			busy = *a;
		is_busy = true;
	}
	if (is_busy)
		*a = busy;
	return !is_busy;
}

/* The memory range of each call; those of one page are looked at region by region. */
static bool judge_range(const struct pkvm *m, const struct pkvm_call *c, uint64_t at, struct pkvm_answer *a)
{
	enum pkvm_code code = range_refusal(m, c->pfn + at, nr_of(c));

	if (code == PKVM_OK)
		return true;
	a->page = at;
	return refuse(a, code, "memory range", PKVM_READ);
}

/* Where the region that `at` is in ends, as an offset: calls before it have the same range. */
static uint64_t region_end(const struct pkvm *m, const struct pkvm_call *c, uint64_t at, uint64_t total)
{
	for (size_t i = 0; i < m->region_count; i++) {
		const struct pkvm_region *r = &m->regions[i];

		if (c->pfn + at >= r->first && c->pfn + at - r->first < r->count)
			return min_u64(total, r->first + r->count - c->pfn);
	}
	return total;
}

static bool judge_ownership(const struct pkvm *m, enum pkvm_page_op op, const struct pkvm_call *c, uint64_t total,
			    struct pkvm_answer *a)
{
	uint64_t nr = nr_of(c), end;

	for (uint64_t at = 0; at < total; at = end) {
		if (!judge_range(m, c, at, a))
			return false;
		end = nr == 1 ? region_end(m, c, at, total) : at + nr;
		if (!judge_pages(m, op, c, at, end, a))
			return false;
	}
	return true;
}

static bool judge_force(const struct pkvm *m, const struct pkvm_call *c, uint64_t total, struct pkvm_answer *a)
{
	for (uint64_t at = 0, end; at < total; at = end) {
		a->page = at;
		if (!is_ram(m, c->pfn + at))
			return refuse(a, PKVM_EFAULT, "no RAM", PKVM_READ);
		end = region_end(m, c, at, total);
		if (!judge_pages(m, PKVM_FRC, c, at, end, a))
			return false;
	}
	return true;
}

bool pkvm_would(const struct pkvm *m, enum pkvm_page_op op, const struct pkvm_call *c, struct pkvm_answer *a)
{
	uint64_t total = pages_of(c);

	*a = (struct pkvm_answer){ .leaf = PKVM_NOPAGE };
	if (names_gfn(op) && !map_is_wellformed(op, c, total, a))
		return false;
	if (!total || !numbers_are_sane(c->pfn, total))
		return refuse(a, op == PKVM_FRC ? PKVM_EFAULT : PKVM_EINVAL, "page numbers", PKVM_READ);
	if (op == PKVM_FRC)
		return judge_force(m, c, total, a);
	if (!judge_ownership(m, op, c, total, a))
		return false;
	if (names_gfn(op) && c->cache_short)
		return refuse(a, PKVM_ENOMEM, "the table page cache is too small", PKVM_READ);
	return true;
}

/* Updates, which cannot fail. */

/* Of any number of runs `sets` have to be reserved for: how many do, if they all lie in `count` pages of one tree? */
static uint64_t sets_within(uint64_t sets, uint64_t count)
{
	uint64_t nodes = 0;

	for (unsigned level = 1; level <= TREE_LEVELS; level++)
		nodes += (count >> (TREE_BITS * level)) + 2;
	return min_u64(sets, nodes / TREE_RESERVE + 2);
}

static void must_set(struct tree *t, uint64_t first, uint64_t count, uint64_t word)
{
	enum pw_status st = PW_OK;
	struct tree_spot at;

	if (count == 1 && tree_find(t, first, &at))
		tree_put(t, first, &at, word);
	else
		st = tree_set(t, first, count, word);
	assert(st == PW_OK); /* nodes_reserve came before */
	(void)st;
}

static struct pkvm_vm *owner_of(const struct pkvm *m, const struct chunk *k)
{
	return m->vms[((k->page & VMID_MASK) >> VMID_SHIFT) - 1];
}

static uint64_t page_after(const struct chunk *k, const struct pkvm_call *c)
{
	uint64_t count = k->page & COUNT_MASK;
	enum pkvm_joint next = pkvm_page_cell(word_joint(k->page), k->op)->next;

	switch (next) {
	case PKVM_A: return 0;
	case PKVM_B:
	case PKVM_D: return joint_word(next, 0);
	case PKVM_C:
		if (k->op == PKVM_HSH)
			return joint_word(next, 0);
		return joint_word(next, k->op == PKVM_PIN ? count + 1 : count - 1);
	case PKVM_E: return joint_word(next, word_joint(k->page) == PKVM_E ? count + 1 : 1);
	case PKVM_F: return guest_word(next, c->vm->vmid, c->gfn + k->at);
	case PKVM_G:
	case PKVM_JOINT_COUNT: break;
	}
	return k->page;
}

static void update_chunk(struct pkvm *m, const struct chunk *k, const struct pkvm_call *c)
{
	uint64_t pfn = c->pfn + k->at, block = nr_of(c) > 1 ? LEAF_BLOCK : 0;

	if (k->op == PKVM_HSG)
		must_set(&c->vm->leaves, c->gfn + k->at, k->count, leaf_word(PKVM_BORROWED, block, pfn));
	if (k->op == PKVM_HDG)
		must_set(&c->vm->leaves, c->gfn + k->at, k->count, leaf_word(PKVM_OWNED, 0, pfn));
	if (k->op == PKVM_FRC)
		must_set(&owner_of(m, k)->leaves, k->page & TREE_NUMBER, k->count, leaf_word(PKVM_POISON, 0, 0));
	must_set(&m->pages, pfn, k->count, page_after(k, c));
}

/* The leaves that the operation changes: forced reclaim finds them from the page. */
static uint64_t leaf_sets(struct pkvm *m, const struct chunk *k, const struct pkvm_call *c)
{
	if (k->op == PKVM_FRC)
		return sets_for(&owner_of(m, k)->leaves, k->page & TREE_NUMBER, k->count);
	return names_gfn(k->op) ? sets_for(&c->vm->leaves, c->gfn + k->at, k->count) : 0;
}

static enum pw_status pages_reserve(struct pkvm *m, enum pkvm_page_op op, const struct pkvm_call *c, uint64_t total)
{
	uint64_t pages = 0, leaves = 0;
	struct chunk k;

	for (uint64_t at = 0; at < total; at += k.count) {
		k = chunk_at(m, op, c, at, total);
		pages += sets_for(&m->pages, c->pfn + at, k.count);
		leaves += leaf_sets(m, &k, c);
	}
	if (op != PKVM_FRC)
		leaves = sets_within(leaves, total);
	return arena_reserve_sets(&m->arena, sets_within(pages, total) + leaves);
}

enum pw_status pkvm_page_call(struct pkvm *m, enum pkvm_page_op op, const struct pkvm_call *c, struct pkvm_answer *out)
{
	uint64_t total = pages_of(c);
	struct chunk k;

	if (!pkvm_would(m, op, c, out)) {
		out->contents = PKVM_KEPT;
		return PW_OK;
	}
	if (pages_reserve(m, op, c, total) != PW_OK)
		return PW_NO_MEMORY;
	for (uint64_t at = 0; at < total; at += k.count) {
		k = chunk_at(m, op, c, at, total);
		update_chunk(m, &k, c);
	}
	return PW_OK;
}

/* Operations that name a GFN. */

static bool leaf_is_wellformed(enum pkvm_leaf_op op, const struct pkvm_call *c, uint64_t total, struct pkvm_answer *a)
{
	bool by_size = op == PKVM_HUG || op == PKVM_TUNE;

	if (!is_made(c->vm))
		return refuse(a, PKVM_EINVAL, "the VM's handle", PKVM_READ);
	if (op == PKVM_HUG && !kind_is(c->vm, PKVM_NON_PROTECTED))
		return refuse(a, PKVM_EINVAL, "the VM's kind", PKVM_READ);
	if (op == PKVM_TUNE && c->vm->kind == PKVM_PROTECTED)
		return refuse(a, PKVM_EPERM, "the VM's kind", PKVM_READ);
	if (op == PKVM_RCL && c->vm->kind != PKVM_ANY && pkvm_vm_cell(c->vm->state, PKVM_RECLAIM)->kind == PKVM_REFUSE)
		return refuse(a, pkvm_vm_cell(c->vm->state, PKVM_RECLAIM)->code, "the VM is not dying", PKVM_READ);
	if (by_size ? !size_is_sane(0, c->gfn, nr_of(c)) : nr_of(c) != 1)
		return refuse(a, PKVM_EINVAL, "size", PKVM_READ);
	if (!total || !numbers_are_sane(c->gfn, total))
		return refuse(a, PKVM_ERANGE, "page numbers", PKVM_INFERRED);
	return true;
}

/* A stretch of leaves that are alike, and whose pages are. */
static struct chunk leaf_chunk_at(const struct pkvm *m, const struct pkvm_call *c, uint64_t at, uint64_t end)
{
	struct tree_run leaves = run_at(&c->vm->leaves, c->gfn + at, c->gfn + end), pages;
	struct chunk k = { .at = at, .count = leaves.count, .leaf = leaves.entry };
	uint64_t pfn = leaves.entry & TREE_NUMBER;

	if (!(leaves.entry & TREE_LINEAR))
		return k;
	pages = run_at(&m->pages, pfn, pfn + leaves.count);
	k.count = pages.count;
	k.page = pages.entry;
	return k;
}

static bool judge_leaf(enum pkvm_leaf_op op, const struct pkvm_call *c, const struct chunk *k, struct pkvm_answer *a)
{
	const struct pkvm_leaf_cell *cell = pkvm_leaf_cell(word_leaf(k->leaf), op);
	bool is_valid = k->leaf & TREE_LINEAR, is_block = k->leaf & LEAF_BLOCK;

	answer_from(a, k, cell->code, cell->source);
	if (is_valid && op != PKVM_TUNE && is_block != (nr_of(c) > 1))
		return refuse(a, PKVM_E2BIG, "the leaf's size", PKVM_READ);
	if (cell->contents == PKVM_ZEROED)
		a->contents = PKVM_ZEROED;
	return cell->kind != PKVM_REFUSE;
}

static uint64_t leaf_page_after(const struct chunk *k, const struct pkvm_leaf_cell *cell, unsigned vmid, uint64_t gfn)
{
	uint64_t count = k->page & COUNT_MASK;

	if (word_joint(k->page) == PKVM_E && count > 1)
		return joint_word(PKVM_E, count - 1);
	return cell->next == PKVM_A ? 0 : guest_word(cell->next, vmid, gfn);
}

static void update_leaf(struct pkvm *m, enum pkvm_leaf_op op, const struct pkvm_call *c, const struct chunk *k)
{
	const struct pkvm_leaf_cell *cell = pkvm_leaf_cell(word_leaf(k->leaf), op);
	uint64_t pfn = k->leaf & TREE_NUMBER, gfn = c->gfn + k->at;

	if (cell->kind != PKVM_MOVE)
		return;
	must_set(&m->pages, pfn, k->count, leaf_page_after(k, cell, c->vm->vmid, gfn));
	must_set(&c->vm->leaves, gfn, k->count, leaf_word(cell->leaf, 0, pfn));
}

enum pw_status pkvm_leaf_call(struct pkvm *m, enum pkvm_leaf_op op, const struct pkvm_call *c, struct pkvm_answer *out)
{
	uint64_t total = pages_of(c), pages = 0, leaves = 0;
	struct chunk k;

	*out = (struct pkvm_answer){ .leaf = PKVM_NOPAGE };
	if (!leaf_is_wellformed(op, c, total, out))
		return PW_OK;
	for (uint64_t at = 0; at < total; at += k.count) {
		k = leaf_chunk_at(m, c, at, total);
		if (!judge_leaf(op, c, &k, out)) {
			out->contents = PKVM_KEPT;
			return PW_OK;
		}
		if (pkvm_leaf_cell(word_leaf(k.leaf), op)->kind != PKVM_MOVE)
			continue;
		pages += sets_for(&m->pages, k.leaf & TREE_NUMBER, k.count);
		leaves += sets_for(&c->vm->leaves, c->gfn + at, k.count);
	}
	if (arena_reserve_sets(&m->arena, pages + sets_within(leaves, total)) != PW_OK)
		return PW_NO_MEMORY;
	for (uint64_t at = 0; at < total; at += k.count) {
		k = leaf_chunk_at(m, c, at, total);
		update_leaf(m, op, c, &k);
	}
	return PW_OK;
}
