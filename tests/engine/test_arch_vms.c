/*
 * Every operation of every architecture, in every state of VM and page, by the ledger. What is legal is transcribed
 * from the documents that the rows name (RMM DEN0137, tdx-module 1.5, AMD-ASPFW and MS, Linux), not from the tables.
 */
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/ledger_world.h"

enum { PAGES_MAX = ARCH_STATES_MAX, VMS_MAX = ARCH_VM_STATES_MAX, OPS_MAX = 20, STEPS_MAX = 3, GFN = 8, PFN = 77 };

/* '1': legal of a page in that state, in the order of `pages`. vms: the letters of the VM's states in which it is. */
struct op_case {
	const char *name;
	bool framed;
	const char *vms, *pages;
};
struct arch_case {
	enum arch arch;
	struct {
		const char *name;
		enum gfn_state is;
	} pages[PAGES_MAX];
	struct {
		char letter;
		const char *name;
		enum vm_state is;
		char done; /* the letter of the state that init_done leads to; 0: it is refused */
	} vms[VMS_MAX];
	struct op_case ops[OPS_MAX];
	struct {
		const char *name;
		char from, to;
	} steps[STEPS_MAX];
};

static const struct arch_case cases[] = {
	{ ARCH_SNP,
	  { { "Hypervisor", GFN_NORMAL },
	    { "Pre-Guest", GFN_SECURE_RESIDENT },
	    { "Guest-Invalid", GFN_SECURE_RESIDENT },
	    { "Guest-Valid", GFN_SECURE_RESIDENT },
	    { "Pre-Swap", GFN_SECURE_RESIDENT },
	    { "Paged-Out", GFN_SECURE_OUT },
	    { "Hypervisor", GFN_SHARED } },
	  { { 'L', "LAUNCH", VM_TRANSIENT, 'R' },
	    { 'f', "RUNNING", VM_TRANSIENT, 'R' },
	    { 'R', "RUNNING", VM_SECURE, 0 } },
	  { { "snp.rmpupdate", true, "LfR", "1....11" },
	    { "snp.rmpupdate_immutable", true, "LfR", "1....11" },
	    { "snp.launch_update", true, "L", "1....11" },
	    { "snp.swap_in", true, "LfR", ".....1." },
	    { "snp.rmpupdate", false, "LfR", "1.11.11" },
	    { "snp.rmpupdate_immutable", false, "LfR", "..11..." },
	    { "snp.launch_update", false, "L", ".1....." },
	    { "snp.pvalidate", false, "R", "..11..." },
	    { "snp.pvalidate_rescind", false, "R", "..11..." },
	    { "snp.page_reclaim", false, "LfR", "1111111" },
	    { "snp.swap_out", false, "LfR", ".1111.." } },
	  { { "snp.launch_finish", 'L', 'f' } } },
	{ ARCH_TDX,
	  { { "FREE", GFN_NORMAL },
	    { "PENDING", GFN_SECURE_RESIDENT },
	    { "MAPPED", GFN_SECURE_RESIDENT },
	    { "BLOCKED", GFN_SECURE_RESIDENT },
	    { "PENDING_BLOCKED", GFN_SECURE_RESIDENT },
	    { "FREE", GFN_SECURE_OUT },
	    { "FREE", GFN_SHARED } },
	  { { 'I', "INITIALIZED", VM_TRANSIENT, 'R' },
	    { 'f', "RUNNABLE", VM_TRANSIENT, 'R' },
	    { 'R', "RUNNABLE", VM_SECURE, 0 } },
	  { { "tdx.mem.page.add", true, "I", "1....1." },
	    { "tdx.mem.page.aug", true, "R", "1....1." },
	    { "tdx.mapgpa.private", true, "R", "1....11" },
	    { "tdx.mem.page.accept", false, "R", ".1....." },
	    { "tdx.mem.range.block", false, "IfR", ".11...." },
	    { "tdx.mem.range.unblock", false, "IfR", "...11.." },
	    { "tdx.mem.page.remove", false, "IfR", "...11.." },
	    { "tdx.mapgpa.shared", false, "R", "1111111" },
	    { "tdx.mapgpa.private", false, "R", "1111111" } },
	  { { "tdx.mr.finalize", 'I', 'f' } } },
	{ ARCH_CCA,
	  { { "UNASSIGNED/EMPTY", GFN_NORMAL },
	    { "UNASSIGNED/RAM", GFN_NORMAL },
	    { "UNASSIGNED/DESTROYED", GFN_NORMAL },
	    { "ASSIGNED/EMPTY", GFN_SECURE_RESIDENT },
	    { "ASSIGNED/RAM", GFN_SECURE_RESIDENT },
	    { "ASSIGNED/DESTROYED", GFN_SECURE_RESIDENT },
	    { "UNASSIGNED/EMPTY", GFN_SECURE_OUT },
	    { "UNASSIGNED/RAM", GFN_SECURE_OUT },
	    { "UNASSIGNED/DESTROYED", GFN_SECURE_OUT },
	    { "ASSIGNED_NS, UNASSIGNED/EMPTY", GFN_SHARED },
	    { "ASSIGNED_NS", GFN_SHARED },
	    { "ASSIGNED_NS, UNASSIGNED/DESTROYED", GFN_SHARED } },
	  { { 'N', "NEW", VM_TRANSIENT, 'A' },
	    { 'a', "ACTIVE", VM_TRANSIENT, 'A' },
	    { 'A', "ACTIVE", VM_SECURE, 0 },
	    { 'O', "SYSTEM_OFF", VM_SECURE, 0 } },
	  { { "cca.data_create", true, "N", "111...111..." },
	    { "cca.data_create_unknown", true, "NaAO", "111...111..." },
	    { "cca.data_destroy", false, "NaAO", "...111......" },
	    { "cca.rtt_init_ripas", false, "N", "11....11.11." },
	    { "cca.rtt_set_ripas_ram_cd", false, "AO", "...111111111" },
	    { "cca.rtt_set_ripas_empty_cd", false, "AO", "...111111111" },
	    { "cca.rtt_set_ripas_ram", false, "AO", "...11.11.11." },
	    { "cca.rtt_set_ripas_empty", false, "AO", "...11.11.11." },
	    { "cca.rtt_map_unprotected", false, "NaAO", "111...111..." },
	    { "cca.rtt_unmap_unprotected", false, "NaAO", ".........111" },
	    { "cca.rtt_destroy", false, "NaAO", "111...111111" },
	    { "cca.rtt_create", false, "NaAO", "111111111111" },
	    { "cca.rtt_fold", false, "NaAO", "111111111111" },
	    { "cca.rtt_set_ripas_ram_destroyed", false, "AO", "...111111111" },
	    { "cca.ripas_left_empty", false, "N", "11....11.11." },
	    { "cca.populate", true, "N", "111...111..." },
	    { "cca.share", false, "NaAO", "111111111111" },
	    { "cca.unshare", false, "NaAO", "111111111111" },
	    { "cca.unshare_populate", true, "N", "111...111111" },
	    { "cca.unshare_create_unknown", true, "NaAO", "111...111111" } },
	  { { "cca.realm_activate", 'N', 'a' }, { "cca.psci_system_off", 'A', 'O' } } },
	{ ARCH_PEF,
	  { { "no flag", GFN_NORMAL },
	    { "KVMPPC_GFN_UVMEM_PFN", GFN_SECURE_RESIDENT },
	    { "KVMPPC_GFN_MEM_PFN", GFN_SECURE_OUT },
	    { "KVMPPC_GFN_SHARED", GFN_SHARED } },
	  { { 'S', "KVMPPC_SECURE_INIT_START", VM_TRANSIENT, 'D' }, { 'D', "KVMPPC_SECURE_INIT_DONE", VM_SECURE, 0 } },
	  { { "pef.h_svm_page_in", true, "SD", "1.11" },
	    { "pef.h_svm_page_in_shared", false, "SD", "1111" },
	    { "pef.h_svm_page_out", false, "SD", "1111" },
	    { "pef.uv_page_out", false, "SD", ".1.." },
	    { "pef.uv_page_in", false, "D", ".1.1" },
	    { "pef.uv_page_inval", false, "D", "...1" },
	    { "pef.uv_share_page", false, "D", ".111" },
	    { "pef.uv_unshare_page", false, "D", ".111" } },
	  { { 0 } } },
	{ ARCH_PKVM,
	  { { "NOPAGE", GFN_NORMAL },
	    { "OWNED", GFN_SECURE_RESIDENT },
	    { "NOPAGE", GFN_SECURE_OUT },
	    { "SHARED_OWNED", GFN_SHARED },
	    { "POISON", GFN_SECURE_OUT } },
	  { { 'c', "CREATED", VM_TRANSIENT, 'C' },
	    { 'd', "DYING", VM_TRANSIENT, 0 },
	    { 'C', "CREATED", VM_SECURE, 0 },
	    { 'D', "DYING", VM_SECURE, 0 } },
	  { { "pkvm.host_donate_guest", true, "cC", "1.1.." },
	    { "pkvm.guest_unshare_host", true, "cC", "...1." },
	    { "pkvm.guest_share_host", false, "cC", "1.1.." },
	    { "pkvm.guest_relinquish", false, "cC", "111.1" },
	    { "pkvm.host_reclaim_page", false, "dD", ".1.11" },
	    { "pkvm.host_force_reclaim", false, "cdCD", ".1..." } },
	  { { "pkvm.start_teardown_vm", 'c', 'd' }, { "pkvm.start_teardown_vm", 'C', 'D' } } },
};

struct scene {
	struct world w;
	struct host *host;
	struct vm *vm;
};

/* A VM of one slot, as a picture has it: in that state, `page` of it in that one, all else normal or paged out. */
static void scene_init(struct scene *s, const struct arch_case *c, unsigned vm, unsigned page)
{
	const struct arch_law *law = arch_laws[c->arch];
	struct host_spec host = host_spec_of(1, "boot", 0, 256);
	struct vm_spec spec = { .id = uuid_of(10), .arch = c->arch };
	const struct slot slot = { 0, 0, 16 };
	enum gfn_state is = c->pages[page].is;
	unsigned state = arch_state_find(law, c->pages[page].name, is);
	uint64_t entry = is == GFN_SECURE_RESIDENT ? GFN_ENTRY_RESIDENT | PFN
			 : is == GFN_SECURE_OUT    ? GFN_ENTRY_OUT
			 : is == GFN_SHARED        ? GFN_ENTRY_SHARED
						   : 0;
	struct host_put put;

	*s = (struct scene){ .w.heap.fail_at = SIZE_MAX };
	world_init(&s->w);
	host.arches = 1u << c->arch;
	cr_assert_eq(ledger_host_put(s->w.ledger, &host, &put, &s->w.why), PROBLEM_NONE);
	spec.host = s->host = put.host;
	cr_assert_eq(ledger_load_vm(s->w.ledger, &spec, c->vms[vm].is, c->vms[vm].name, 1, &s->vm, &s->w.why),
		     PROBLEM_NONE, "%s", s->w.why.detail);
	cr_assert_str_eq(vm_arch_state(s->vm), c->vms[vm].name);
	cr_assert_eq(ledger_load_slot(s->w.ledger, s->vm, &slot, &s->w.why), PROBLEM_NONE);
	if (law->rest[is] != state)
		entry |= (uint64_t)(state + 1) << GFN_ENTRY_ARCH;
	for (uint64_t gfn = 0; gfn < slot.pages; gfn++) {
		uint64_t reads = gfn == GFN ? entry : c->vms[vm].is == VM_SECURE ? GFN_ENTRY_OUT : 0;

		if (reads)
			cr_assert_eq(ledger_load_extent(s->w.ledger, s->vm, gfn, 1, reads, &s->w.why), PROBLEM_NONE,
				     "%s", s->w.why.detail);
	}
	ledger_commit(s->w.ledger);
	world_holds(&s->w);
}

static void scene_release(struct scene *s)
{
	world_holds(&s->w);
	world_release(&s->w);
}

static enum pw_problem apply(struct scene *s, const struct op_case *op, const struct arch_op **row)
{
	struct gfn_run run = { GFN, 1, PFN + 1 };
	struct item it = {
		.vm = s->vm->id, .framed = op->framed, .pool = op->framed ? "local" : NULL, .runs = &run, .run_count = 1
	};
	bool changed;

	*row = it.arch_op = arch_op_find(op->name, strlen(op->name), op->framed, &it.arch_law);
	cr_assert_not_null(it.arch_op, "%s", op->name);
	return ledger_apply(s->w.ledger, s->host, &it, &changed, &s->w.why);
}

static void check_cell(const struct arch_case *c, const struct op_case *op, unsigned vm, unsigned page)
{
	bool vm_fits = strchr(op->vms, c->vms[vm].letter), page_fits = op->pages[page] == '1';
	enum pw_problem expected = !vm_fits ? PROBLEM_VM_TRANSITION : page_fits ? PROBLEM_NONE : PROBLEM_GFN_TRANSITION;
	const struct arch_op *row;
	enum pw_problem got;
	struct scene s;
	char *before;

	scene_init(&s, c, vm, page);
	before = ledger_dump(s.w.ledger);
	got = apply(&s, op, &row);
	cr_assert_eq(got, expected, "%s%s of a VM %s (%s), page %s (%s): %s", op->name,
		     op->framed ? " with frames" : "", c->vms[vm].name, vm_state_name(c->vms[vm].is),
		     c->pages[page].name, gfn_state_name(c->pages[page].is),
		     got == PROBLEM_NONE ? "accepted" : s.w.why.detail);
	if (got == PROBLEM_VM_TRANSITION) {
		cr_assert(strstr(s.w.why.detail, row->vms_rule), "%s", s.w.why.detail);
		cr_assert(s.w.why.vm_state == c->vms[vm].is && strcmp(s.w.why.op, op->name) == 0);
		cr_assert_str_eq(s.w.why.arch_state, c->vms[vm].name);
	}
	if (got != PROBLEM_NONE)
		world_is_as(&s.w, before);
	else
		free(before);
	scene_release(&s);
}

static unsigned count_pages(const struct arch_case *c)
{
	unsigned n = 0;

	while (n < PAGES_MAX && c->pages[n].name)
		n++;
	return n;
}

static unsigned count_vms(const struct arch_case *c)
{
	unsigned n = 0;

	while (n < VMS_MAX && c->vms[n].name)
		n++;
	return n;
}

Test(arch_vms, every_operation_in_every_state_of_vm_and_page)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		const struct arch_case *c = &cases[i];
		size_t ops = 0;

		cr_assert_eq(count_pages(c), arch_laws[c->arch]->state_count);
		cr_assert_eq(count_vms(c), arch_laws[c->arch]->vm_state_count);
		for (const struct op_case *op = c->ops; op < c->ops + OPS_MAX && op->name; op++, ops++)
			for (unsigned vm = 0; vm < count_vms(c); vm++)
				for (unsigned page = 0; page < count_pages(c); page++)
					if (c->vms[vm].is != VM_SECURE || c->pages[page].is != GFN_NORMAL)
						check_cell(c, op, vm, page);
		cr_assert_eq(ops, arch_laws[c->arch]->op_count, "%s: every row is here", arch_laws[c->arch]->name);
	}
}

Test(arch_vms, no_operation_at_all_of_a_normal_vm)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		for (const struct op_case *op = cases[i].ops; op < cases[i].ops + OPS_MAX && op->name; op++) {
			const struct arch_op *row;
			struct scene s;

			scene_init(&s, &cases[i], 0, 0);
			cr_assert_eq(ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why), PROBLEM_NONE);
			cr_assert_null(vm_arch_state(s.vm));
			cr_assert_eq(apply(&s, op, &row), PROBLEM_VM_TRANSITION, "%s", op->name);
			cr_assert_eq(s.w.why.vm_state, VM_NORMAL);
			ledger_commit(s.w.ledger);
			scene_release(&s);
		}
}

/* Steps of the VM itself. */

static char step_from(const struct arch_case *c, const char *name, char from)
{
	for (size_t i = 0; i < STEPS_MAX; i++)
		if (c->steps[i].name && strcmp(c->steps[i].name, name) == 0 && c->steps[i].from == from)
			return c->steps[i].to;
	return 0;
}

static unsigned vm_lettered(const struct arch_case *c, char letter)
{
	unsigned n = 0;

	while (c->vms[n].letter != letter)
		n++;
	return n;
}

static void check_step(const struct arch_case *c, const char *name, unsigned vm)
{
	char to = step_from(c, name, c->vms[vm].letter);
	undo_mark mark;
	struct scene s;
	struct item it;
	char *before;
	bool changed;

	scene_init(&s, c, vm, count_pages(c) - 1);
	it = (struct item){ .vm = s.vm->id };
	it.vm_op = arch_vm_op_find(name, strlen(name), &it.arch_law);
	cr_assert(it.vm_op && it.arch_law == arch_laws[c->arch], "%s", name);
	before = ledger_dump(s.w.ledger);
	mark = ledger_mark(s.w.ledger);
	cr_assert_eq(ledger_apply(s.w.ledger, s.host, &it, &changed, &s.w.why),
		     to ? PROBLEM_NONE : PROBLEM_VM_TRANSITION, "%s of a VM %s: %s", name, c->vms[vm].name,
		     s.w.why.detail);
	cr_assert_eq(changed, to != 0);
	if (to) {
		cr_assert_eq(s.vm->state, c->vms[vm].is, "the law's state is the lifecycle's alone");
		cr_assert_str_eq(vm_arch_state(s.vm), c->vms[vm_lettered(c, to)].name);
		ledger_rollback(s.w.ledger, mark);
	} else {
		cr_assert(strstr(s.w.why.detail, it.vm_op->rule), "%s", s.w.why.detail);
	}
	world_is_as(&s.w, before);
	scene_release(&s);
}

Test(arch_vms, every_step_from_every_state)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		for (size_t k = 0; k < STEPS_MAX; k++)
			for (unsigned vm = 0; cases[i].steps[k].name && vm < count_vms(&cases[i]); vm++)
				check_step(&cases[i], cases[i].steps[k].name, vm);
}

Test(arch_vms, a_step_of_another_architecture_or_of_a_normal_vm_is_refused)
{
	struct item it = { .vm = uuid_of(10) };
	struct scene s;
	bool changed;

	scene_init(&s, &cases[0], 0, 0);
	it.vm_op = arch_vm_op_find("cca.realm_activate", strlen("cca.realm_activate"), &it.arch_law);
	cr_assert_eq(ledger_apply(s.w.ledger, s.host, &it, &changed, &s.w.why), PROBLEM_ARCH_UNSUPPORTED);
	it.vm_op = arch_vm_op_find("snp.launch_finish", strlen("snp.launch_finish"), &it.arch_law);
	cr_assert_eq(ledger_vm_event(s.w.ledger, s.vm, VM_INIT_ABORT, &s.w.why), PROBLEM_NONE);
	cr_assert_eq(ledger_apply(s.w.ledger, s.host, &it, &changed, &s.w.why), PROBLEM_VM_TRANSITION);
	ledger_commit(s.w.ledger);
	scene_release(&s);
}

/* What was accepted once is redone whatever the tables say by now. */
Test(arch_vms, a_decided_item_is_not_asked_for_the_vms_state)
{
	struct gfn_run run = { GFN, 1, PFN };
	struct item it = { .framed = true, .pool = "local", .runs = &run, .run_count = 1, .decided = true };
	struct scene s;
	bool changed;

	scene_init(&s, &cases[0], 2, 5);
	it.vm = s.vm->id;
	it.arch_op = arch_op_find("snp.launch_update", strlen("snp.launch_update"), true, &it.arch_law);
	cr_assert_eq(ledger_apply(s.w.ledger, s.host, &it, &changed, &s.w.why), PROBLEM_NONE, "%s", s.w.why.detail);
	ledger_commit(s.w.ledger);
	scene_release(&s);
}

/* Events. */

Test(arch_vms, events_move_the_state)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		const struct arch_case *c = &cases[i];

		for (unsigned vm = 0; vm < count_vms(c); vm++) {
			undo_mark mark;
			struct scene s;
			char *before;

			scene_init(&s, c, vm, count_pages(c) - 1);
			before = ledger_dump(s.w.ledger);
			mark = ledger_mark(s.w.ledger);
			cr_assert_eq(ledger_vm_event(s.w.ledger, s.vm, VM_INIT_DONE, &s.w.why),
				     c->vms[vm].done ? PROBLEM_NONE : PROBLEM_VM_TRANSITION, "%s: %s", c->vms[vm].name,
				     s.w.why.detail);
			if (c->vms[vm].done)
				cr_assert_str_eq(vm_arch_state(s.vm), c->vms[vm_lettered(c, c->vms[vm].done)].name);
			ledger_rollback(s.w.ledger, mark);
			cr_assert_eq(ledger_vm_event(s.w.ledger, s.vm, VM_TERMINATE, &s.w.why), PROBLEM_NONE);
			cr_assert_null(vm_arch_state(s.vm));
			cr_assert_eq(ledger_vm_event(s.w.ledger, s.vm, VM_INIT_START, &s.w.why), PROBLEM_NONE);
			cr_assert_str_eq(vm_arch_state(s.vm), c->vms[0].name);
			ledger_rollback(s.w.ledger, mark);
			world_is_as(&s.w, before);
			scene_release(&s);
		}
	}
}

Test(arch_vms, a_picture_without_such_states_has_vms_at_rest)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		for (enum vm_state is = VM_TRANSIENT; is <= VM_SECURE; is++) {
			struct vm_spec spec = { .id = uuid_of(11), .arch = cases[i].arch };
			struct scene s;
			struct vm *vm;

			scene_init(&s, &cases[i], 0, 0);
			spec.host = s.host;
			cr_assert_eq(ledger_load_vm(s.w.ledger, &spec, is, "nonsense", 1, &vm, &s.w.why),
				     PROBLEM_INVALID_REQUEST);
			cr_assert_eq(ledger_load_vm(s.w.ledger, &spec, is, "", 1, &vm, &s.w.why), PROBLEM_NONE);
			cr_assert_str_eq(
				vm_arch_state(vm),
				cases[i].vms[is == VM_TRANSIENT ? 0 : vm_lettered(&cases[i], cases[i].vms[0].done)]
					.name);
			ledger_commit(s.w.ledger);
			scene_release(&s);
		}
}
