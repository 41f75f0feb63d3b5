#include "engine/arch/pkvm_impl.h"

#include <assert.h>

/* Donations and pins: done by the same calls as any other, once they were found to succeed. */

static struct pkvm_call range_call(const struct pkvm_range *r)
{
	return (struct pkvm_call){ .pfn = r->first, .nr = r->count };
}

static bool may(const struct pkvm *m, enum pkvm_page_op op, const struct pkvm_range *r, enum pkvm_code *code)
{
	struct pkvm_call c = range_call(r);
	struct pkvm_answer a;
	bool ok = r->count && pkvm_would(m, op, &c, &a);

	*code = ok ? PKVM_OK : r->count ? a.code : PKVM_EINVAL;
	return ok;
}

static void must(struct pkvm *m, enum pkvm_page_op op, const struct pkvm_range *r)
{
	struct pkvm_call c = range_call(r);
	struct pkvm_answer a;
	enum pw_status st = pkvm_page_call(m, op, &c, &a);

	assert(st == PW_OK && a.code == PKVM_OK); /* may, and a reserve of nodes, came before */
	(void)st;
}

static struct pkvm_range page_range(uint64_t page)
{
	return (struct pkvm_range){ page, 1 };
}

/* False: not aligned, or not the host's to give. */
static bool donatable(const struct pkvm *m, uint64_t address, uint64_t pages, struct pkvm_range *out)
{
	enum pkvm_code code;

	*out = (struct pkvm_range){ address >> PKVM_PAGE_SHIFT, pages };
	return address % (1u << PKVM_PAGE_SHIFT) == 0 && may(m, PKVM_HDH, out, &code);
}

static bool overlap(const struct pkvm_range *a, const struct pkvm_range *b)
{
	return a->first < b->first + b->count && b->first < a->first + a->count;
}

/* The table. */

struct pkvm_vm *pkvm_vm_of(const struct pkvm *m, unsigned handle)
{
	if (handle < PKVM_HANDLE_FIRST || handle - PKVM_HANDLE_FIRST >= PKVM_VMS_MAX)
		return NULL;
	return m->vms[handle - PKVM_HANDLE_FIRST];
}

unsigned pkvm_handle(const struct pkvm_vm *vm)
{
	return PKVM_HANDLE_FIRST + vm->vmid - 1;
}

static enum pkvm_vm_state state_of(const struct pkvm_vm *vm)
{
	return vm ? vm->state : PKVM_VM_FREE;
}

uint64_t pkvm_references(const struct pkvm *m, const struct pkvm_vm *vm)
{
	return vm->donated.count ? tree_get(&m->pages, vm->donated.first) & COUNT_MASK : 0;
}

static enum pw_status set_references(struct pkvm *m, const struct pkvm_vm *vm, uint64_t n)
{
	return tree_set(&m->pages, vm->donated.first, 1, joint_word(PKVM_B, n));
}

static void vm_drop(struct pkvm *m, struct pkvm_vm *vm)
{
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i]) {
			pkvm_vcpu_release(&vm->vcpus[i]->state);
			pw_mem_free(m->mem, vm->vcpus[i], sizeof *vm->vcpus[i]);
		}
	pw_mem_free(m->mem, vm->vcpus, vm->vcpu_count * sizeof(struct pkvm_vcpu_slot *));
	vm->vcpus = NULL;
	vm->vcpu_count = 0;
}

static void vm_free(struct pkvm *m, struct pkvm_vm *vm)
{
	vm_drop(m, vm);
	tree_release(&vm->leaves);
	tree_release(&vm->guarded);
	pw_mem_free(m->mem, vm, sizeof *vm);
}

void pkvm_release(struct pkvm *m)
{
	for (size_t i = 0; i < PKVM_VMS_MAX; i++)
		if (m->vms[i])
			vm_free(m, m->vms[i]);
	while (m->gone) {
		struct pkvm_vm *vm = m->gone;

		m->gone = vm->next;
		vm_free(m, vm);
	}
	tree_release(&m->pages);
	arena_release(&m->arena);
	pw_mem_free(m->mem, m->loaded, m->cpus * sizeof(struct pkvm_vcpu_slot *));
}

enum pw_status pkvm_reserve(struct pkvm *m, unsigned *handle, enum pkvm_code *code)
{
	unsigned i = 0;
	struct pkvm_vm *vm;

	while (i < PKVM_VMS_MAX && pkvm_vm_cell(state_of(m->vms[i]), PKVM_RESERVE)->kind != PKVM_MOVE)
		i++;
	*code = pkvm_vm_cell(PKVM_VM_FREE, PKVM_RESERVE)->code;
	if (i == PKVM_VMS_MAX)
		return PW_OK;
	vm = pw_mem_zalloc(m->mem, sizeof *vm);
	if (!vm)
		return PW_NO_MEMORY;
	vm->state = pkvm_vm_cell(PKVM_VM_FREE, PKVM_RESERVE)->next;
	vm->vmid = i + 1;
	tree_init(&vm->leaves, &m->arena);
	tree_init(&vm->guarded, &m->arena);
	m->vms[i] = vm;
	*handle = pkvm_handle(vm);
	*code = PKVM_OK;
	return PW_OK;
}

void pkvm_unreserve(struct pkvm *m, unsigned handle)
{
	struct pkvm_vm *vm = pkvm_vm_of(m, handle);

	if (pkvm_vm_cell(state_of(vm), PKVM_UNRESERVE)->kind != PKVM_MOVE)
		return;
	m->vms[vm->vmid - 1] = NULL;
	vm_free(m, vm);
}

/* The kernel's order. */
static enum pkvm_code init_vm_refusal(const struct pkvm *m, unsigned handle, const struct pkvm_vm_params *p,
				      struct pkvm_range *donated, struct pkvm_range *table)
{
	const struct pkvm_vm_cell *cell = pkvm_vm_cell(state_of(pkvm_vm_of(m, handle)), PKVM_INIT_VM);
	struct pkvm_range host = page_range(p->host_page);
	enum pkvm_code code;

	if (!may(m, PKVM_PIN, &host, &code))
		return code;
	if (!p->vcpus || p->vcpus > PKVM_VCPUS_MAX || handle < PKVM_HANDLE_FIRST)
		return PKVM_EINVAL;
	if (!donatable(m, p->donated, p->donated_pages, donated) || !donatable(m, p->table, p->table_pages, table) ||
	    overlap(donated, table))
		return PKVM_ENOMEM;
	return cell->kind == PKVM_MOVE ? PKVM_OK : cell->code;
}

enum pw_status pkvm_init_vm(struct pkvm *m, unsigned handle, const struct pkvm_vm_params *p, enum pkvm_code *code)
{
	struct pkvm_range donated, table, host = page_range(p->host_page);
	struct pkvm_vcpu_slot **vcpus;
	struct pkvm_vm *vm;

	*code = init_vm_refusal(m, handle, p, &donated, &table);
	if (*code != PKVM_OK)
		return PW_OK;
	vm = pkvm_vm_of(m, handle);
	vcpus = pw_mem_zalloc(m->mem, p->vcpus * sizeof(struct pkvm_vcpu_slot *));
	if (!vcpus || arena_reserve_sets(&m->arena, 3) != PW_OK) {
		pw_mem_free(m->mem, vcpus, p->vcpus * sizeof(struct pkvm_vcpu_slot *));
		return PW_NO_MEMORY;
	}
	must(m, PKVM_PIN, &host);
	must(m, PKVM_HDH, &donated);
	must(m, PKVM_HDH, &table);
	vm->kind = p->kind;
	vm->state = pkvm_vm_cell(vm->state, PKVM_INIT_VM)->next;
	vm->vcpus = vcpus;
	vm->vcpu_count = p->vcpus;
	vm->donated = donated;
	vm->table = table;
	vm->host_page = p->host_page;
	return PW_OK;
}

static enum pkvm_code init_vcpu_refusal(const struct pkvm *m, unsigned handle, const struct pkvm_vcpu_params *p,
					struct pkvm_range *donated)
{
	const struct pkvm_vm *vm = pkvm_vm_of(m, handle);
	const struct pkvm_vm_cell *cell = pkvm_vm_cell(state_of(vm), PKVM_INIT_VCPU);
	struct pkvm_range host = page_range(p->host_page), sve = page_range(p->sve_page);
	enum pkvm_code code;

	if (!donatable(m, p->donated, p->donated_pages, donated))
		return PKVM_ENOMEM;
	if (cell->kind == PKVM_REFUSE)
		return cell->code;
	if (!may(m, PKVM_PIN, &host, &code))
		return PKVM_EBUSY;
	if (pkvm_vcpu_allowed(vm->kind == PKVM_PROTECTED, &p->setup) != PKVM_OK ||
	    (p->sve_page && vm->kind == PKVM_PROTECTED))
		return PKVM_EINVAL;
	if (p->sve_page && !may(m, PKVM_PIN, &sve, &code))
		return PKVM_EBUSY;
	if (p->index >= vm->vcpu_count || vm->vcpus[p->index])
		return PKVM_EINVAL;
	return PKVM_OK;
}

enum pw_status pkvm_init_vcpu(struct pkvm *m, unsigned handle, const struct pkvm_vcpu_params *p, enum pkvm_code *code)
{
	struct pkvm_range donated, host = page_range(p->host_page), sve = page_range(p->sve_page);
	struct pkvm_vm *vm = pkvm_vm_of(m, handle);
	struct pkvm_vcpu_slot *v;

	*code = init_vcpu_refusal(m, handle, p, &donated);
	if (*code != PKVM_OK)
		return PW_OK;
	v = pw_mem_zalloc(m->mem, sizeof *v);
	if (!v || arena_reserve_sets(&m->arena, 3) != PW_OK) {
		pw_mem_free(m->mem, v, sizeof *v);
		return PW_NO_MEMORY;
	}
	must(m, PKVM_HDH, &donated);
	must(m, PKVM_PIN, &host);
	if (p->sve_page)
		must(m, PKVM_PIN, &sve);
	v->donated = donated;
	v->host_page = p->host_page;
	v->sve_page = p->sve_page;
	pkvm_vcpu_init(&v->state, m->generation, vm->kind == PKVM_PROTECTED, &p->setup);
	vm->vcpus[p->index] = v;
	return PW_OK;
}

/* Loading. */

static struct pkvm_vcpu_slot *vcpu_of(const struct pkvm_vm *vm, unsigned index)
{
	return vm && index < vm->vcpu_count ? vm->vcpus[index] : NULL;
}

enum pw_status pkvm_load(struct pkvm *m, unsigned cpu, unsigned handle, unsigned index, bool *loaded)
{
	struct pkvm_vm *vm = pkvm_vm_of(m, handle);
	struct pkvm_vcpu_slot *v = vcpu_of(vm, index);

	*loaded = false;
	if (cpu >= m->cpus || m->loaded[cpu] || !v || v->loaded ||
	    pkvm_vm_cell(vm->state, PKVM_LOAD)->kind == PKVM_REFUSE)
		return PW_OK;
	if (arena_reserve(&m->arena) != PW_OK || set_references(m, vm, pkvm_references(m, vm) + 1) != PW_OK)
		return PW_NO_MEMORY;
	v->loaded = *loaded = true;
	v->cpu = cpu;
	v->vm = vm;
	m->loaded[cpu] = v;
	return PW_OK;
}

enum pw_status pkvm_put(struct pkvm *m, unsigned cpu)
{
	struct pkvm_vcpu_slot *v = cpu < m->cpus ? m->loaded[cpu] : NULL;

	if (!v)
		return PW_OK;
	if (arena_reserve(&m->arena) != PW_OK || set_references(m, v->vm, pkvm_references(m, v->vm) - 1) != PW_OK)
		return PW_NO_MEMORY;
	v->loaded = false;
	m->loaded[cpu] = NULL;
	return PW_OK;
}

struct pkvm_vm *pkvm_hypercall_vm(struct pkvm *m, unsigned cpu)
{
	return cpu < m->cpus && m->loaded[cpu] ? m->loaded[cpu]->vm : NULL;
}

enum pkvm_code pkvm_runnable(struct pkvm *m, unsigned cpu, unsigned handle, unsigned index, struct pkvm_vcpu **out)
{
	struct pkvm_vcpu_slot *v = vcpu_of(pkvm_vm_of(m, handle), index);

	if (cpu >= m->cpus || !v || m->loaded[cpu] != v)
		return PKVM_EINVAL;
	v->vm->ran = true;
	*out = &v->state;
	return PKVM_OK;
}

/* Teardown. */

static enum pkvm_code vm_op_refusal(const struct pkvm *m, const struct pkvm_vm *vm, enum pkvm_vm_op op)
{
	const struct pkvm_vm_cell *cell = pkvm_vm_cell(state_of(vm), op);

	if (cell->kind == PKVM_REFUSE || (cell->unreferenced && pkvm_references(m, vm)))
		return cell->code;
	return PKVM_OK;
}

enum pkvm_code pkvm_start_teardown(struct pkvm *m, unsigned handle)
{
	struct pkvm_vm *vm = pkvm_vm_of(m, handle);
	enum pkvm_code code = vm_op_refusal(m, vm, PKVM_START_TEARDOWN);

	if (code == PKVM_OK)
		vm->state = pkvm_vm_cell(vm->state, PKVM_START_TEARDOWN)->next;
	return code;
}

/* The host did not reclaim all: these pages name nobody any more. Counts what to reserve, or writes. */
static uint64_t orphan_pages(struct pkvm *m, struct pkvm_vm *vm, bool write)
{
	struct tree_run run;
	uint64_t sets = 0;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		enum pkvm_page_state s;
		enum pw_status st = PW_OK;

		run = tree_run_at(&vm->leaves, at, TREE_PAGES);
		s = word_leaf(run.entry);
		if (s != PKVM_OWNED && s != PKVM_SHARED_OWNED)
			continue;
		sets += sets_for(&m->pages, run.entry & TREE_NUMBER, run.count);
		if (write)
			st = tree_set(&m->pages, run.entry & TREE_NUMBER, run.count,
				      guest_word(s == PKVM_OWNED ? PKVM_F : PKVM_G, 0, at));
		assert(st == PW_OK);
	}
	return sets;
}

static bool has_leaves(const struct pkvm_vm *vm)
{
	struct tree_run run;

	for (uint64_t at = 0; at < TREE_PAGES; at += run.count) {
		run = tree_run_at(&vm->leaves, at, TREE_PAGES);
		if (run.entry & TREE_LINEAR)
			return true;
	}
	return false;
}

static void give_back_vcpu(struct pkvm *m, const struct pkvm_vcpu_slot *v)
{
	struct pkvm_range host = page_range(v->host_page), sve = page_range(v->sve_page);

	must(m, PKVM_YDH, &v->donated);
	must(m, PKVM_UNPIN, &host);
	if (v->sve_page)
		must(m, PKVM_UNPIN, &sve);
}

/* What to reserve for give_back. */
static uint64_t give_back_sets(struct pkvm *m, const struct pkvm_vm *vm)
{
	uint64_t sets = sets_for(&m->pages, vm->host_page, 1) +
			sets_for(&m->pages, vm->donated.first, vm->donated.count) +
			sets_for(&m->pages, vm->table.first, vm->table.count);

	for (unsigned i = 0; i < vm->vcpu_count; i++) {
		const struct pkvm_vcpu_slot *v = vm->vcpus[i];

		if (v)
			sets += sets_for(&m->pages, v->host_page, 1) + sets_for(&m->pages, v->sve_page, 1) +
				sets_for(&m->pages, v->donated.first, v->donated.count);
	}
	return sets;
}

static void give_back(struct pkvm *m, const struct pkvm_vm *vm)
{
	struct pkvm_range host = page_range(vm->host_page);

	must(m, PKVM_YDH, &vm->donated);
	must(m, PKVM_YDH, &vm->table);
	must(m, PKVM_UNPIN, &host);
	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i])
			give_back_vcpu(m, vm->vcpus[i]);
}

enum pw_status pkvm_finalize(struct pkvm *m, unsigned handle, enum pkvm_code *code)
{
	struct pkvm_vm *vm = pkvm_vm_of(m, handle);

	*code = vm_op_refusal(m, vm, PKVM_FINALIZE);
	if (*code != PKVM_OK)
		return PW_OK;
	if (arena_reserve_sets(&m->arena, give_back_sets(m, vm) + orphan_pages(m, vm, false)) != PW_OK)
		return PW_NO_MEMORY;
	give_back(m, vm);
	orphan_pages(m, vm, true);
	m->vms[vm->vmid - 1] = NULL;
	if (!has_leaves(vm)) {
		vm_free(m, vm);
		arena_trim(&m->arena);
		return PW_OK;
	}
	vm_drop(m, vm);
	vm->vmid = 0;
	vm->next = m->gone;
	m->gone = vm;
	arena_trim(&m->arena);
	return PW_OK;
}

/* Guests' hypercalls. */

static enum pw_status guest_share(struct pkvm *m, struct pkvm_vm *vm, const uint64_t x[4], struct pkvm_hvc *out)
{
	bool shares = x[0] == PKVM_FN_MEM_SHARE;
	struct pkvm_call c = { .vm = vm, .gfn = x[1] >> PKVM_PAGE_SHIFT };
	struct pkvm_answer a;
	enum pw_status st;

	*out = (struct pkvm_hvc){ .result = PKVM_HVC_INVALID };
	if (x[1] % (1u << PKVM_PAGE_SHIFT) || x[2] || x[3])
		return PW_OK;
	st = pkvm_leaf_call(m, shares ? PKVM_GSH : PKVM_GUH, &c, &a);
	if (st != PW_OK)
		return st;
	if (a.code == PKVM_OK)
		out->result = 0;
	else if (shares && a.code == PKVM_ENOENT)
		*out = (struct pkvm_hvc){ .end = PKVM_HVC_FAULT, .exit = PKVM_EXIT_SHARE };
	return PW_OK;
}

/* A page that was given back is the host's business as well. */
static enum pw_status guest_relinquish(struct pkvm *m, struct pkvm_vm *vm, const uint64_t x[4], struct pkvm_hvc *out)
{
	struct pkvm_call c = { .vm = vm, .gfn = x[1] >> PKVM_PAGE_SHIFT };
	struct pkvm_answer a;
	enum pw_status st;

	*out = (struct pkvm_hvc){ .result = PKVM_HVC_INVALID };
	if (x[1] % (1u << PKVM_PAGE_SHIFT) || x[2] || x[3])
		return PW_OK;
	st = pkvm_leaf_call(m, PKVM_RLQ, &c, &a);
	if (st != PW_OK)
		return st;
	if (a.code == PKVM_OK && a.contents == PKVM_ZEROED)
		*out = (struct pkvm_hvc){ .end = PKVM_HVC_TO_HOST, .exit = PKVM_EXIT_MEM_RELINQUISH };
	else if (a.code == PKVM_OK)
		out->result = 0;
	return PW_OK;
}

static enum pw_status guest_guard(struct pkvm *m, struct pkvm_vm *vm, const uint64_t x[4], struct pkvm_hvc *out)
{
	uint64_t gfn = x[1] >> PKVM_PAGE_SHIFT;

	*out = (struct pkvm_hvc){ .result = PKVM_PSCI_NOT_SUPPORTED };
	if (m->generation != PKVM_ANDROID)
		return PW_OK;
	out->result = PKVM_HVC_INVALID;
	if (x[1] % (1u << PKVM_PAGE_SHIFT) || x[2] || x[3] || gfn >= TREE_PAGES || tree_get(&vm->leaves, gfn))
		return PW_OK;
	if (arena_reserve(&m->arena) != PW_OK || tree_set(&vm->guarded, gfn, 1, 1) != PW_OK)
		return PW_NO_MEMORY;
	out->result = 0;
	return PW_OK;
}

bool pkvm_is_guarded(const struct pkvm_vm *vm, uint64_t gfn)
{
	return gfn < TREE_PAGES && tree_get(&vm->guarded, gfn);
}

/* android: answered at EL2. */
static struct pkvm_hvc affinity_info(const struct pkvm_vm *vm, uint64_t mpidr)
{
	static const int results[PKVM_POWER_COUNT] = {
		[PKVM_POWER_ON] = 0, [PKVM_POWER_OFF] = 1, [PKVM_POWER_PENDING] = 2
	};

	for (unsigned i = 0; i < vm->vcpu_count; i++)
		if (vm->vcpus[i] && vm->vcpus[i]->state.ctxt.sysregs[PKVM_MPIDR] == mpidr)
			return (struct pkvm_hvc){ .result = results[vm->vcpus[i]->state.hyp.power] };
	return (struct pkvm_hvc){ .result = PKVM_PSCI_INVALID_PARAMS };
}

enum pw_status pkvm_guest_call(struct pkvm *m, struct pkvm_vm *vm, const uint64_t x[4], struct pkvm_hvc *out)
{
	*out = (struct pkvm_hvc){ .end = PKVM_HVC_TO_HOST, .exit = PKVM_EXIT_HVC_OTHER };
	if (vm->kind == PKVM_NON_PROTECTED)
		return PW_OK;
	if (m->generation == PKVM_ANDROID && (x[0] == PKVM_FN_AFFINITY || x[0] == PKVM_FN_AFFINITY_32)) {
		*out = affinity_info(vm, x[1]);
		return PW_OK;
	}
	if (pkvm_psci_call(m->generation, x, out))
		return PW_OK;
	switch (x[0]) {
	case PKVM_FN_MEM_SHARE:
	case PKVM_FN_MEM_UNSHARE: return guest_share(m, vm, x, out);
	case PKVM_FN_MEM_RELINQUISH: return guest_relinquish(m, vm, x, out);
	case PKVM_FN_MMIO_GUARD: return guest_guard(m, vm, x, out);
	case PKVM_FN_MEMINFO:
		*out = (struct pkvm_hvc){ .result = x[1] | x[2] | x[3] ? PKVM_HVC_INVALID : 1 << PKVM_PAGE_SHIFT };
		break;
	default: *out = (struct pkvm_hvc){ .result = PKVM_FEATURES }; break;
	}
	return PW_OK;
}

/* Host accesses. */

enum pw_status pkvm_host_access(struct pkvm *m, uint64_t pfn, enum pkvm_access how, enum pkvm_access_end *end,
				struct pkvm_answer *a)
{
	struct pkvm_call c = { .pfn = pfn };
	enum pw_status st;

	*a = (struct pkvm_answer){ .leaf = PKVM_NOPAGE };
	*end = PKVM_ACCESS_DONE;
	if (pfn >= TREE_PAGES || pkvm_joint_host(word_joint(tree_get(&m->pages, pfn))) != PKVM_NOPAGE)
		return PW_OK;
	*end = how == PKVM_ACCESS_USER ? PKVM_ACCESS_SIGSEGV : PKVM_ACCESS_EFAULT;
	if (how != PKVM_ACCESS_KERNEL)
		return PW_OK;
	st = pkvm_page_call(m, PKVM_FRC, &c, a);
	*end = a->code == PKVM_OK || a->code == PKVM_EAGAIN ? PKVM_ACCESS_RETRIED : PKVM_ACCESS_FATAL;
	return st;
}

enum pkvm_code pkvm_fault_on_mapped(const struct pkvm_vm *vm, uint64_t gfn)
{
	return gfn < TREE_PAGES && word_leaf(tree_get(&vm->leaves, gfn)) == PKVM_POISON ? PKVM_EFAULT : PKVM_EAGAIN;
}
