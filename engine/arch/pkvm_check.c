#include "engine/arch/pkvm_impl.h"

/* Digest. */

static uint64_t stir(uint64_t x)
{
	x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
	x = (x ^ x >> 27) * 0x94d049bb133111ebu;
	return x ^ x >> 31;
}

static uint64_t mix(uint64_t h, uint64_t x)
{
	return stir(h * 0x9e3779b97f4a7c15u + x + 1);
}

static uint64_t tree_digest(uint64_t h, const struct tree *t)
{
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(t, at, TREE_PAGES);
		h = mix(mix(h, run.count), run.entry);
	}
	return h;
}

static uint64_t vm_digest(uint64_t h, const struct pkvm_vm *vm)
{
	h = mix(mix(mix(mix(h, vm->kind), vm->state), vm->vmid), vm->vcpu_count);
	h = mix(mix(mix(h, vm->host_page), vm->donated.first), vm->table.first);
	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		const struct pkvm_vcpu_slot *v = vm->vcpus[i];

		h = mix(h, v ? mix(pkvm_vcpu_digest(&v->state), v->loaded ? v->cpu + 1 : 0) : 0);
	}
	return tree_digest(tree_digest(h, &vm->leaves), &vm->guarded);
}

uint64_t pkvm_digest(const struct pkvm *m)
{
	uint64_t h = tree_digest(m->region_count, &m->pages);

	for (size_t i = 0; i < PKVM_VMS_MAX; i++)
		h = m->vms[i] ? vm_digest(mix(h, i), m->vms[i]) : h;
	for (const struct pkvm_vm *vm = m->gone; vm; vm = vm->next)
		h = vm_digest(h, vm);
	return h;
}

/* Invariants. */

/* A multiset of pages: two are taken for the same if these sums are. Runs cost no more than pages. */
struct tally {
	uint64_t count, sum, squares;
};

static void tally_add(struct tally *t, uint64_t first, uint64_t n, uint64_t times)
{
	uint64_t a = n - 1, b = n, c = 2 * n - 1; /* 0 + 1 + 4 + ... = a b c / 6 */
	uint64_t linear = n % 2 ? n * ((n - 1) / 2) : n / 2 * (n - 1);

	*(a % 2 ? &b : &a) /= 2;
	*(a % 3 == 0 ? &a : b % 3 == 0 ? &b : &c) /= 3;
	t->count += times * n;
	t->sum += times * (n * first + linear);
	t->squares += times * (n * first * first + 2 * first * linear + a * b * c);
}

struct tallies {
	struct tally shared;  /* pages as often as leaves borrow them, or as counts say */
	uint64_t owned, lent; /* pages in F and in G */
};

static bool pages_match(const struct pkvm *m, const struct pkvm_vm *vm, const struct tree_run *leaf)
{
	uint64_t pfn = leaf->entry & TREE_NUMBER;
	struct tree_run run;

	for (uint64_t at = 0; at < leaf->count; at += run.count) {
		enum pkvm_joint want = word_leaf(leaf->entry) == PKVM_OWNED ? PKVM_F : PKVM_G;

		run = tree_run_at(&m->pages, pfn + at, pfn + leaf->count);
		if (word_leaf(leaf->entry) == PKVM_BORROWED ? word_joint(run.entry) != PKVM_E
							    : run.entry != guest_word(want, vm->vmid, leaf->first + at))
			return false;
	}
	return true;
}

static bool leaf_is_sound(const struct pkvm *m, const struct pkvm_vm *vm, const struct tree_run *leaf)
{
	enum pkvm_page_state s = word_leaf(leaf->entry);
	uint64_t pfn = leaf->entry & TREE_NUMBER;

	if (!(leaf->entry & TREE_LINEAR))
		return leaf->entry == 0 || (s == PKVM_POISON && vm->kind != PKVM_NON_PROTECTED);
	if (s == PKVM_NOPAGE || s == PKVM_POISON || leaf->count > TREE_PAGES - pfn)
		return false;
	if ((s == PKVM_BORROWED && vm->kind == PKVM_PROTECTED) ||
	    (s != PKVM_BORROWED && vm->kind == PKVM_NON_PROTECTED))
		return false;
	if (leaf->entry & LEAF_BLOCK && (s != PKVM_BORROWED || (leaf->first | pfn | leaf->count) % PKVM_BLOCK_PAGES))
		return false;
	return pages_match(m, vm, leaf);
}

static bool check_leaves(const struct pkvm *m, const struct pkvm_vm *vm, struct tallies *t)
{
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&vm->leaves, at, TREE_PAGES);
		if (!leaf_is_sound(m, vm, &run))
			return false;
		t->owned += word_leaf(run.entry) == PKVM_OWNED ? run.count : 0;
		t->lent += word_leaf(run.entry) == PKVM_SHARED_OWNED ? run.count : 0;
		if (word_leaf(run.entry) == PKVM_BORROWED)
			tally_add(&t->shared, run.entry & TREE_NUMBER, run.count, 1);
	}
	return tree_check(&vm->leaves);
}

static bool in_region(const struct pkvm *m, uint64_t first, uint64_t count)
{
	for (size_t i = 0; i < m->region_count; i++) {
		const struct pkvm_region *r = &m->regions[i];

		if (first < r->first || first - r->first >= r->count)
			continue;
		if (r->no_map)
			return false;
		if (count <= r->count - (first - r->first))
			return true;
		count -= r->count - (first - r->first);
		first = r->first + r->count;
	}
	return false;
}

static bool word_is_sound(uint64_t word)
{
	uint64_t count = word & COUNT_MASK;

	switch (word_joint(word)) {
	case PKVM_A: return word == 0;
	case PKVM_D: return word == joint_word(PKVM_D, 0);
	case PKVM_B:
	case PKVM_C: return count <= PKVM_PINS_MAX && word == joint_word(word_joint(word), count);
	case PKVM_E: return count && word == joint_word(PKVM_E, count);
	case PKVM_F:
	case PKVM_G: return word & TREE_LINEAR;
	case PKVM_JOINT_COUNT: break;
	}
	return false;
}

static bool check_pages(const struct pkvm *m, struct tallies *t)
{
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		enum pkvm_joint j;

		run = tree_run_at(&m->pages, at, TREE_PAGES);
		j = word_joint(run.entry);
		if (!word_is_sound(run.entry) || (run.entry && !in_region(m, at, run.count)))
			return false;
		t->owned += j == PKVM_F ? run.count : 0;
		t->lent += j == PKVM_G ? run.count : 0;
		if (j == PKVM_E)
			tally_add(&t->shared, at, run.count, run.entry & COUNT_MASK);
	}
	return tree_check(&m->pages);
}

static bool check_vcpus(const struct pkvm *m, const struct pkvm_vm *vm)
{
	uint64_t loaded = 0;

	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		const struct pkvm_vcpu_slot *v = vm->vcpus[i];

		if (!v || !v->loaded)
			continue;
		if (v->cpu >= m->cpus || m->loaded[v->cpu] != v || v->vm != vm)
			return false;
		loaded++;
	}
	return loaded == pkvm_references(m, vm) && (!loaded || vm->state == PKVM_VM_CREATED);
}

bool pkvm_check(const struct pkvm *m)
{
	struct tallies named = { 0 }, recorded = { 0 };

	for (size_t i = 0; i < PKVM_VMS_MAX; i++)
		if (m->vms[i] &&
		    (m->vms[i]->vmid != i + 1 || !check_vcpus(m, m->vms[i]) || !check_leaves(m, m->vms[i], &named)))
			return false;
	for (const struct pkvm_vm *vm = m->gone; vm; vm = vm->next)
		if (vm->vmid || !check_leaves(m, vm, &named))
			return false;
	return check_pages(m, &recorded) && named.owned == recorded.owned && named.lent == recorded.lent &&
	       named.shared.count == recorded.shared.count && named.shared.sum == recorded.shared.sum &&
	       named.shared.squares == recorded.shared.squares;
}
