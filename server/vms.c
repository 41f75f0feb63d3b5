#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "engine/digest.h"
#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(vm)
DECODE_JOB(slot)
DECODE_JOB(lifecycle)

struct vm *arg_vm(struct service *sv, struct request *r, unsigned i)
{
	struct pw_uuid id;
	struct refusal why;
	struct vm *vm;

	if (!pw_uuid_parse(r->args[i], strlen(r->args[i]), &id)) {
		answer_problem(r, PROBLEM_VM_NOT_FOUND, "there is no VM %s", r->args[i]);
		return NULL;
	}
	vm = ledger_vm(sv->ledger, &id);
	if (!vm) {
		refuse(&why, PROBLEM_VM_NOT_FOUND, "there is no VM %s", r->args[i]);
		why.vm = id;
		why.ended = vm_end_revision(sv, &id);
		answer_refusal(r, &why);
	}
	return vm;
}

/* Rendering. */

static void write_counts(struct jsonw *w, const struct vm_counts *c)
{
	jsonw_m_u64(w, "normal", c->pages[GFN_NORMAL]);
	jsonw_m_u64(w, "secure_resident", c->pages[GFN_SECURE_RESIDENT]);
	jsonw_m_u64(w, "secure_out", c->pages[GFN_SECURE_OUT]);
	jsonw_m_u64(w, "shared", c->pages[GFN_SHARED]);
}

static void write_slots(struct jsonw *w, const struct vm *vm)
{
	jsonw_key(w, "slots");
	jsonw_open(w, '[');
	for (size_t i = 0; i < vm->slot_count; i++) {
		jsonw_open(w, '{');
		jsonw_m_u64(w, "slot", vm->slots[i].number);
		jsonw_m_u64(w, "base_gfn", vm->slots[i].base);
		jsonw_m_u64(w, "pages", vm->slots[i].pages);
		jsonw_m_str(w, "state", vm_state_name(vm->state)); /* L4: a slot's state mirrors its VM's */
		if (vm_slot_is_leaving(vm, vm->slots[i].number))
			jsonw_m_bool(w, "leaving", true);
		jsonw_close(w, '}');
	}
	jsonw_close(w, ']');
}

static void write_gpa(struct jsonw *w, unsigned shared_bit)
{
	if (!shared_bit)
		return;
	jsonw_key(w, "gpa");
	jsonw_open(w, '{');
	jsonw_m_u64(w, "shared_bit", shared_bit);
	jsonw_close(w, '}');
}

static void write_arch_state(struct jsonw *w, const struct vm *vm)
{
	if (vm_arch_state(vm))
		jsonw_m_str(w, "arch_state", vm_arch_state(vm));
}

void write_vm(struct jsonw *w, const struct service *sv, const struct vm *vm)
{
	jsonw_open(w, '{');
	jsonw_m_uuid(w, "id", &vm->id);
	jsonw_m_str(w, "name", vm->name);
	jsonw_m_uuid(w, "host", &vm->host->id);
	jsonw_m_str(w, "arch", arch_name(vm->arch));
	jsonw_m_str(w, "state", vm_state_name(vm->state));
	write_arch_state(w, vm);
	if (vm->leaving && vm->leaving->op)
		jsonw_m_bool(w, "leaving", true);
	jsonw_m_bool(w, "on_hardware", vm->on_hardware);
	jsonw_m_u64(w, "epoch", vm->epoch);
	jsonw_m_u64(w, "page_shift", vm->host->page_shift);
	write_gpa(w, vm->shared_bit);
	write_slots(w, vm);
	jsonw_key(w, "pages");
	jsonw_open(w, '{');
	write_counts(w, &vm->counts);
	jsonw_close(w, '}');
	jsonw_m_u64(w, "ended", vm->ended);
	write_slot_ends(w, sv, vm);
	jsonw_m_u64(w, "revision", vm->revision);
	jsonw_close(w, '}');
}

static void answer_vm(struct service *sv, struct request *r, unsigned status, const struct vm *vm)
{
	struct jsonw w;

	jsonw_init(&w);
	write_vm(&w, sv, vm);
	answer_json(r, status, &w);
	answer_etag(r, vm->revision);
}

void vm_get(struct service *sv, struct request *r)
{
	const struct vm *vm = arg_vm(sv, r, 0);

	if (vm && query_known(r, no_query))
		answer_vm(sv, r, 200, vm);
}

struct vm_filter {
	bool has_host, has_state, has_arch;
	struct pw_uuid host;
	enum vm_state state;
	enum arch arch;
};

static bool filter_read(struct request *r, struct vm_filter *f)
{
	const char *host = request_query(r, "host"), *state = request_query(r, "state"),
		   *arch = request_query(r, "arch");

	*f = (struct vm_filter){ .has_host = host, .has_state = state, .has_arch = arch };
	if (host && !pw_uuid_parse(host, strlen(host), &f->host)) {
		answer_problem(r, PROBLEM_INVALID_REQUEST, "host=%s is not a UUID", host);
		return false;
	}
	for (int s = 0; state && s <= VM_STATE_COUNT; s++) {
		if (s == VM_STATE_COUNT) {
			answer_problem(r, PROBLEM_INVALID_REQUEST, "state=%s is not normal, transient or secure",
				       state);
			return false;
		}
		f->state = (enum vm_state)s;
		if (strcmp(vm_state_name(f->state), state) == 0)
			break;
	}
	if (arch && !arch_from_name(arch, &f->arch)) {
		answer_problem(r, PROBLEM_INVALID_REQUEST, "arch=%s is none that is known", arch);
		return false;
	}
	return true;
}

static bool filter_takes(const struct vm_filter *f, const struct vm *vm)
{
	return (!f->has_host || pw_uuid_equal(&f->host, &vm->host->id)) && (!f->has_state || f->state == vm->state) &&
	       (!f->has_arch || f->arch == vm->arch);
}

void vms_list(struct service *sv, struct request *r)
{
	static const char *const known[] = { "host", "state", "arch", "limit", "cursor", NULL };
	struct pw_uuid after = { { 0 } };
	char next[PW_UUID_TEXT] = "";
	const struct vm *last = NULL;
	struct vm_filter filter;
	const char *cursor;
	uint64_t limit;
	struct jsonw w;

	if (!query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit) ||
	    !query_cursor(r, &after, &cursor) || !filter_read(r, &filter))
		return;
	list_begin(&w);
	for (size_t i = cursor ? ledger_vm_after(sv->ledger, &after) : 0; i < ledger_vm_count(sv->ledger); i++) {
		const struct vm *vm = ledger_vm_at(sv->ledger, i);

		if (!filter_takes(&filter, vm))
			continue;
		if (!list_goes_on(sv, &w, &limit)) {
			pw_uuid_format(&last->id, next);
			break;
		}
		write_vm(&w, sv, vm);
		last = vm;
	}
	list_end(&w, next[0] ? next : NULL, NULL);
	answer_json(r, 200, &w);
}

/* Creating and deleting. */

static bool create_holds(struct service *sv, struct request *r);

bool vm_prepare(struct service *sv, struct request *r)
{
	struct vm_body *b;

	r->still_holds = create_holds;
	if (!query_known(r, no_query) || !prepare_vm(sv, r))
		return false;
	b = &((struct vm_job *)r->job)->b;
	if (!b->has_id)
		b->id = uuid_fresh();
	b->has_id = true;
	return true;
}

enum pw_problem do_vm(struct service *sv, const struct pw_uuid *id, const struct vm_body *b, struct vm **out,
		      struct refusal *why)
{
	struct vm_spec spec = { .id = *id,
				.name = b->name,
				.host = ledger_host(sv->ledger, &b->host),
				.arch = b->arch,
				.slots = b->slots,
				.slot_count = b->slot_count,
				.shared_bit = b->shared_bit };
	char host[PW_UUID_TEXT];

	if (spec.host)
		return ledger_vm_create(sv->ledger, &spec, out, why);
	pw_uuid_format(&b->host, host);
	return refuse(why, PROBLEM_HOST_NOT_FOUND, "there is no host %s", host);
}

static void say_created(struct service *sv, const struct request *r, const struct vm *vm, bool adopted)
{
	struct jsonw w;

	event_begin(&w, "vm.created", r);
	jsonw_m_uuid(&w, "host", &vm->host->id);
	jsonw_m_uuid(&w, "vm", &vm->id);
	if (adopted)
		jsonw_m_bool(&w, "adopted", true);
	jsonw_key(&w, "spec");
	jsonw_open(&w, '{');
	jsonw_m_uuid(&w, "id", &vm->id);
	if (vm->name[0])
		jsonw_m_str(&w, "name", vm->name);
	jsonw_m_uuid(&w, "host", &vm->host->id);
	jsonw_m_str(&w, "arch", arch_name(vm->arch));
	jsonw_key(&w, "slots");
	jsonw_open(&w, '[');
	for (size_t i = 0; i < vm->slot_count; i++) {
		jsonw_open(&w, '{');
		jsonw_m_u64(&w, "slot", vm->slots[i].number);
		jsonw_m_u64(&w, "base_gfn", vm->slots[i].base);
		jsonw_m_u64(&w, "pages", vm->slots[i].pages);
		jsonw_close(&w, '}');
	}
	jsonw_close(&w, ']');
	write_gpa(&w, vm->shared_bit);
	jsonw_close(&w, '}');
	event_end(sv, &w);
}

/* What hardware had before the ledger knew of it (law L11): the owner is told. */
static void note_adopted(struct service *sv, const struct request *r, const struct vm *vm, const char *reason,
			 const char *detail)
{
	struct refusal why;

	refuse(&why, PROBLEM_UNKNOWN_VM, "%s", detail);
	why.vm = vm->id;
	why.reason = reason;
	for (size_t i = 0; i < vm->slot_count; i++)
		why.pages += vm->slots[i].pages;
	note_violation(sv, r, vm->host, &vm->id, &why);
}

/* Who adopts a VM holds the host that has it. */
static bool create_holds(struct service *sv, struct request *r)
{
	const struct vm_body *b = &((struct vm_job *)r->job)->b;
	const struct host *h = ledger_host(sv->ledger, &b->host);

	if (!may_act_for(r, &b->host))
		return false;
	return !h || !b->boot_id || host_is_held(r, h, b->boot_id, b->epoch);
}

/* An agent makes no VMs, but its hardware may have one. */
static bool may_create(struct request *r, const struct vm_body *b)
{
	if (r->who.role == ROLE_AGENT && !b->adopted) {
		answer_problem(r, PROBLEM_FORBIDDEN,
			       "an agent creates no VM but one that its hardware has: \"adopted\"");
		return false;
	}
	if (b->adopted && r->who.role == ROLE_OPERATOR) {
		answer_problem(r, PROBLEM_FORBIDDEN, "a VM is adopted by the agent of its host");
		return false;
	}
	return true;
}

/* May the VM's guest tell shared aliases by this GPA bit? What is wrong with its host is another refusal; and what
 * hardware has already is not refused. */
static bool shared_bit_fits(struct service *sv, struct request *r, const struct vm_body *b)
{
	const struct host *h = ledger_host(sv->ledger, &b->host);
	const struct arch_law *law = arch_laws[b->arch];
	struct codec_fault why = { .problem = PROBLEM_INVALID_PARAMS, .pointer = "/gpa/shared_bit" };

	if (!b->shared_bit || b->adopted || !h || !(h->arches >> b->arch & 1))
		return true;
	if (law ? law->shared_bits >> b->shared_bit & 1
		: codec_backend_has_shared_bit(host_note(h)->backends, b->arch, b->shared_bit))
		return true;
	snprintf(
		why.detail, sizeof why.detail,
		"a VM of arch %s has no shared bit %u: TDX has 47 and 51, CCA 31 to 47, kvm what its backend registered",
		arch_name(b->arch), b->shared_bit);
	answer_fault(r, &why);
	return false;
}

void vm_create_act(struct service *sv, struct request *r)
{
	const struct vm_body *b = &((struct vm_job *)r->job)->b;
	char id[PW_UUID_TEXT];
	struct vm *vm = NULL;
	struct refusal why;

	if (!may_create(r, b) || !create_holds(sv, r) || !shared_bit_fits(sv, r, b))
		return;
	if (do_vm(sv, &b->id, b, &vm, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		return;
	}
	if (!touch(sv, &vm->ended, next_revision(sv)) || !touch(sv, &vm->revision, next_revision(sv))) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while creating the VM");
		return;
	}
	say_created(sv, r, vm, b->adopted);
	if (b->adopted)
		note_adopted(sv, r, vm, "absent", "hardware had this VM and the ledger did not: it is adopted");
	answer_vm(sv, r, 201, vm);
	pw_uuid_format(&vm->id, id);
	answer_header(r, "Location", "/v1/vms/%s", id);
}

static void undelete(void *ctx, const void *args)
{
	((struct service *)ctx)->deleted_vm_count--;
}

/* The next picture has to know of it, but not if the deletion is taken back. */
enum pw_problem do_vm_delete(struct service *sv, struct vm *vm, uint64_t revision, int64_t time_ms, struct refusal *why)
{
	static const struct undo_ops noted = { .rollback = undelete };
	struct end end = {
		.vm = vm->id, .slot = END_OF_VM, .host = vm->host->id, .revision = revision, .time_ms = time_ms
	};
	undo_mark mark = ledger_mark(sv->ledger);
	struct pw_uuid id = vm->id;
	enum pw_problem p;

	if (undo_reserve(ledger_undo(sv->ledger), 2 * UNDO_RECORD(sizeof id) + vcpus_undo_bytes()) != PW_OK)
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while deleting the VM");
	p = ledger_vm_delete(sv->ledger, vm, why);
	if (p == PROBLEM_NONE && end_put(sv, &end) != PW_OK) {
		ledger_rollback(sv->ledger, mark);
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while deleting the VM");
	}
	if (p == PROBLEM_NONE)
		vcpus_forget(sv, &id);
	if (p == PROBLEM_NONE && note_deleted(&sv->deleted_vms, &sv->deleted_vm_count, &id, &sv->repaint))
		undo_push(ledger_undo(sv->ledger), &noted, sv, NULL, 0);
	return p;
}

/* What is under way ends with a VM that goes by force; else it has to end first. */
static bool is_idle(struct service *sv, struct request *r, const struct vm *vm, bool force)
{
	if (!force && vm->on_hardware && vm->state == VM_NORMAL)
		answer_problem(r, PROBLEM_VM_BUSY,
			       "hardware may have the VM (it was started, or its launch was handed out): end it by "
			       "operation terminate, or force it if the host is powered off");
	else if (!force && vm_has_active_operation(sv, &vm->id))
		answer_problem(r, PROBLEM_VM_BUSY, "the VM has an operation under way");
	return !r->response.status;
}

static void delete_vm(struct service *sv, struct request *r, struct vm *vm, bool force)
{
	struct pw_uuid host = vm->host->id, id = vm->id;
	struct refusal why;
	struct jsonw w;

	if (force && vm->state == VM_NORMAL && !operations_cancel(sv, r, &id)) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while deleting the VM");
		return;
	}
	if (do_vm_delete(sv, vm, next_revision(sv), sv->group_time_ms, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		return;
	}
	event_begin(&w, "vm.deleted", r);
	jsonw_m_uuid(&w, "host", &host);
	jsonw_m_uuid(&w, "vm", &id);
	event_end(sv, &w);
	answer_empty(r, 204);
}

void vm_delete_act(struct service *sv, struct request *r)
{
	static const char *const known[] = { "force", NULL };
	struct vm *vm = arg_vm(sv, r, 0);
	bool force;

	if (!vm || !query_known(r, known) || !query_flag(r, "force", &force) || !force_allowed(r, force) ||
	    !if_match(r, vm->revision) || !is_idle(sv, r, vm, force))
		return;
	delete_vm(sv, r, vm, force);
}

/* Slots. */

static bool arg_slot(struct request *r, uint32_t *out)
{
	const char *s = r->args[1];
	uint64_t n = 0;

	for (const char *p = s; *p; p++) {
		if (*p < '0' || *p > '9' || p - s > 9)
			goto bad;
		n = n * 10 + (uint64_t)(*p - '0');
	}
	if (s[0] && n <= UINT32_MAX) {
		*out = (uint32_t)n;
		return true;
	}
bad:
	answer_problem(r, PROBLEM_INVALID_REQUEST, "slot %s is not a number below 2^32", s);
	return false;
}

bool slot_prepare(struct service *sv, struct request *r)
{
	uint32_t number;

	return query_known(r, no_query) && arg_slot(r, &number) && prepare_slot(sv, r);
}

static bool may_act_for_vm(struct request *r, const struct vm *vm)
{
	return may_act_for(r, &vm->host->id);
}

void slot_put_act(struct service *sv, struct request *r)
{
	const struct slot_body *b = &((struct slot_job *)r->job)->b;
	struct vm *vm = arg_vm(sv, r, 0);
	struct slot slot = { 0, b->base, b->pages };
	struct refusal why;
	struct jsonw w;
	bool created;

	if (!vm || !arg_slot(r, &slot.number) || !may_act_for_vm(r, vm) || !if_match(r, vm->revision))
		return;
	if (ledger_slot_put(sv->ledger, vm, &slot, &created, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		return;
	}
	if (created) {
		if (!touch(sv, &vm->revision, next_revision(sv))) {
			answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while adding the slot");
			return;
		}
		event_begin(&w, "slot.added", r);
		jsonw_m_uuid(&w, "host", &vm->host->id);
		jsonw_m_uuid(&w, "vm", &vm->id);
		jsonw_m_u64(&w, "slot", slot.number);
		jsonw_m_u64(&w, "base_gfn", slot.base);
		jsonw_m_u64(&w, "pages", slot.pages);
		event_end(sv, &w);
	}
	answer_vm(sv, r, created ? 201 : 200, vm);
}

enum pw_problem do_slot_delete(struct service *sv, struct vm *vm, uint32_t number, uint64_t revision, int64_t time_ms,
			       struct refusal *why)
{
	struct end end = {
		.vm = vm->id, .slot = number, .host = vm->host->id, .revision = revision, .time_ms = time_ms
	};
	undo_mark mark = ledger_mark(sv->ledger);
	enum pw_problem p = ledger_slot_delete(sv->ledger, vm, number, why);

	if (p != PROBLEM_NONE || end_put(sv, &end) == PW_OK)
		return p;
	ledger_rollback(sv->ledger, mark);
	return refuse(why, PROBLEM_NO_MEMORY, "out of memory while deleting the slot");
}

static bool has_slot(struct request *r, const struct vm *vm, uint32_t number)
{
	if (vm_has_slot(vm, number))
		return true;
	answer_problem(r, PROBLEM_SLOT_NOT_FOUND, "the VM has no slot %" PRIu32, number);
	return false;
}

static void delete_slot(struct service *sv, struct request *r, struct vm *vm, uint32_t number)
{
	struct refusal why;
	struct jsonw w;

	if (do_slot_delete(sv, vm, number, next_revision(sv), sv->group_time_ms, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		return;
	}
	if (!touch(sv, &vm->revision, next_revision(sv))) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while deleting the slot");
		return;
	}
	event_begin(&w, "slot.deleted", r);
	jsonw_m_uuid(&w, "host", &vm->host->id);
	jsonw_m_uuid(&w, "vm", &vm->id);
	jsonw_m_u64(&w, "slot", number);
	event_end(sv, &w);
	answer_empty(r, 204);
}

void slot_delete_act(struct service *sv, struct request *r)
{
	static const char *const known[] = { "boot_id", "epoch", "force", NULL };
	struct vm *vm = arg_vm(sv, r, 0);
	struct holder by;
	uint32_t number;

	if (!vm || !arg_slot(r, &number) || !query_known(r, known) || !holder_from_query(r, &by) ||
	    !holder_is_sound(r, vm->host, &by) || !if_match(r, vm->revision) || !has_slot(r, vm, number))
		return;
	if (!vm->on_hardware || holder_may_release(sv, r, vm, &by, "unplug"))
		delete_slot(sv, r, vm, number);
}

/* Lifecycle. */

/* The holder is that of the VM's host of now; of a VM that is gone, the agent's own. */
static bool lifecycle_holds(struct service *sv, struct request *r)
{
	const struct lifecycle_body *b = &((struct lifecycle_job *)r->job)->b;
	const struct host *h = r->who.role == ROLE_AGENT ? ledger_host(sv->ledger, &r->who.host) : NULL;
	const struct vm *vm = NULL;
	struct pw_uuid id;

	if (!b->boot_id)
		return true;
	if (pw_uuid_parse(r->args[0], strlen(r->args[0]), &id))
		vm = ledger_vm(sv->ledger, &id);
	if (vm)
		h = vm->host;
	if (h)
		return may_act_for(r, &h->id) && host_is_held(r, h, b->boot_id, b->epoch);
	return arg_vm(sv, r, 0) != NULL; /* says that there is none */
}

bool lifecycle_prepare(struct service *sv, struct request *r)
{
	r->still_holds = lifecycle_holds;
	return query_known(r, no_query) && prepare_lifecycle(sv, r);
}

/* The pages that init_done moves: those which nothing has moved before. An event names some of their runs. */
#define LEFT_OVER_RUNS 256
struct left_over {
	bool any; /* it is an init_done */
	uint64_t pages, listed;
	size_t n;
	struct gfn_run runs[LEFT_OVER_RUNS];
};

static void find_left_over(const struct vm *vm, enum vm_event e, struct left_over *out)
{
	struct gfn_view g;

	out->any = e == VM_INIT_DONE;
	out->pages = out->any ? vm->counts.pages[GFN_NORMAL] : 0;
	out->listed = out->n = 0;
	for (uint64_t at = 0; out->listed < out->pages && vm_next_run(vm, at, TREE_PAGES, &g); at = g.gfn + g.count) {
		struct gfn_run *last = out->n ? &out->runs[out->n - 1] : NULL;

		if (g.state != GFN_NORMAL)
			continue;
		if (last && last->gfn + last->count == g.gfn)
			last->count += g.count;
		else if (out->n == LEFT_OVER_RUNS)
			break;
		else
			out->runs[out->n++] = (struct gfn_run){ g.gfn, g.count, 0 };
		out->listed += g.count;
	}
}

static void write_left_over(struct jsonw *w, const struct left_over *l)
{
	if (!l->any)
		return;
	jsonw_m_u64(w, "left_over", l->pages);
	jsonw_key(w, "left_over_runs");
	jsonw_open(w, '[');
	for (size_t i = 0; i < l->n; i++) {
		jsonw_open(w, '[');
		jsonw_u64(w, l->runs[i].gfn);
		jsonw_u64(w, l->runs[i].count);
		jsonw_close(w, ']');
	}
	jsonw_close(w, ']');
	if (l->listed < l->pages)
		jsonw_m_u64(w, "left_over_unlisted", l->pages - l->listed);
}

static void say_lifecycle(struct service *sv, const struct request *r, const struct vm *vm,
			  const struct lifecycle_body *b, const struct left_over *left)
{
	struct jsonw w;

	event_begin(&w, "vm.lifecycle", r);
	jsonw_m_uuid(&w, "host", &vm->host->id);
	jsonw_m_uuid(&w, "vm", &vm->id);
	jsonw_m_str(&w, "event", vm_event_name(b->event));
	jsonw_m_str(&w, "state", vm_state_name(vm->state));
	write_arch_state(&w, vm);
	jsonw_m_u64(&w, "epoch", vm->epoch);
	if (b->adopted)
		jsonw_m_bool(&w, "adopted", true);
	write_left_over(&w, left);
	event_end(sv, &w);
}

uint64_t say_vm_step(struct service *sv, const struct request *r, const struct vm *vm, const struct item *it)
{
	struct jsonw w;

	event_begin(&w, "vm.arch_state", r);
	jsonw_m_uuid(&w, "host", &vm->host->id);
	jsonw_m_uuid(&w, "vm", &vm->id);
	jsonw_m_str(&w, "op", item_op_name(it));
	jsonw_m_str(&w, "state", vm_state_name(vm->state));
	write_arch_state(&w, vm);
	return event_end(sv, &w);
}

void lifecycle_act(struct service *sv, struct request *r)
{
	const struct lifecycle_body *b = &((struct lifecycle_job *)r->job)->b;
	const struct holder by = { b->boot_id, b->epoch, b->force };
	struct vm *vm = arg_vm(sv, r, 0);
	struct left_over left;
	enum vm_state before, next;
	bool was_there;
	struct refusal why;

	if (!vm || !holder_is_sound(r, vm->host, &by) || !if_match(r, vm->revision))
		return;
	before = vm->state;
	was_there = vm->on_hardware;
	if (vm_step(vm->state, b->event, &next) && vm_event_releases(vm, b->event) &&
	    !holder_may_release(sv, r, vm, &by, b->event == VM_INIT_ABORT ? "abort" : "terminate"))
		return;
	find_left_over(vm, b->event, &left);
	if (ledger_vm_event(sv->ledger, vm, b->event, &why) != PROBLEM_NONE) {
		if (r->who.role == ROLE_AGENT && why.problem != PROBLEM_NO_MEMORY)
			note_violation(sv, r, vm->host, &vm->id, &why);
		answer_refusal(r, &why);
		return;
	}
	if (vm->state != before || vm->on_hardware != was_there) {
		if ((!vm->on_hardware && !touch(sv, &vm->ended, next_revision(sv))) ||
		    !touch(sv, &vm->revision, next_revision(sv))) {
			answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while changing the VM");
			return;
		}
		say_lifecycle(sv, r, vm, b, &left);
		if (b->adopted && b->event == VM_INIT_START)
			note_adopted(sv, r, vm, "normal",
				     "hardware has this VM, which the ledger had as normal: it is adopted");
	}
	answer_vm(sv, r, 200, vm);
}

/* Reading pages. */

bool query_window(struct request *r, struct gfn_alias alias, unsigned page_shift, struct query_window *out)
{
	const char *gpa = request_query(r, "gpa");
	bool named = gpa || request_query(r, "gfn");
	uint64_t raw;

	*out = (struct query_window){ 0 };
	if (gpa && request_query(r, "gfn")) {
		answer_problem(r, PROBLEM_INVALID_REQUEST, "gfn and gpa both name the first page");
		return false;
	}
	if (!query_u64(r, "gfn", 0, TREE_PAGES - 1, 0, &out->gfn) || !query_u64(r, "gpa", 0, INT64_MAX, 0, &raw))
		return false;
	raw >>= page_shift;
	if (gpa && !alias_read(alias, raw, &out->gfn)) {
		answer_problem(r, PROBLEM_INVALID_REQUEST, "gpa=%s is past the VM's address space", gpa);
		return false;
	}
	if (gpa && alias.mask)
		out->alias = alias_is_private(alias, raw) ? "private" : "shared";
	return query_u64(r, "count", 1, TREE_PAGES - out->gfn, named ? 1 : TREE_PAGES - out->gfn, &out->count);
}

static bool window(struct request *r, const struct vm *vm, struct query_window *out)
{
	return query_window(r, vm->alias, vm->host->page_shift, out);
}

void window_end(struct jsonw *w, const struct query_window *win, const char *next_cursor, const uint64_t *revision)
{
	jsonw_close(w, ']');
	if (win->alias)
		jsonw_m_str(w, "alias", win->alias);
	if (revision)
		jsonw_m_u64(w, "revision", *revision);
	if (next_cursor[0])
		jsonw_m_str(w, "next_cursor", next_cursor);
	jsonw_close(w, '}');
}

static void write_gfns(struct jsonw *w, const struct gfn_view *g)
{
	jsonw_open(w, '{');
	jsonw_m_u64(w, "gfn", g->gfn);
	jsonw_m_u64(w, "count", g->count);
	jsonw_m_str(w, "state", gfn_state_name(g->state));
	jsonw_m_bool(w, "resident", g->state == GFN_SECURE_RESIDENT);
	if (g->arch_state)
		jsonw_m_str(w, "arch_state", g->arch_state);
	if (g->pool) {
		jsonw_key(w, "frame");
		jsonw_open(w, '{');
		jsonw_m_str(w, "pool", g->pool->name);
		jsonw_m_u64(w, "pfn", g->pfn);
		jsonw_close(w, '}');
	}
	jsonw_close(w, '}');
}

void vm_gfns(struct service *sv, struct request *r)
{
	static const char *const known[] = { "gfn", "gpa", "count", "limit", "cursor", NULL };
	const struct vm *vm = arg_vm(sv, r, 0);
	struct query_window win;
	uint64_t limit, cursor;
	char next[24] = "";
	struct gfn_view g;
	struct jsonw w;

	if (!vm || !query_known(r, known) || !window(r, vm, &win) || !query_u64(r, "limit", 1, 1000, 100, &limit) ||
	    !query_u64(r, "cursor", win.gfn, win.gfn + win.count - 1, win.gfn, &cursor))
		return;
	list_begin(&w);
	for (uint64_t at = cursor; vm_next_run(vm, at, win.gfn + win.count, &g); at = g.gfn + g.count) {
		if (!list_goes_on(sv, &w, &limit)) {
			snprintf(next, sizeof next, "%" PRIu64, g.gfn);
			break;
		}
		write_gfns(&w, &g);
	}
	window_end(&w, &win, next, &sv->revision);
	answer_json(r, 200, &w);
}

static void write_bin(struct jsonw *w, uint64_t from, uint64_t end, const struct vm_counts *counts)
{
	jsonw_open(w, '{');
	jsonw_m_u64(w, "gfn", from);
	jsonw_m_u64(w, "pages", end - from);
	write_counts(w, counts);
	jsonw_close(w, '}');
}

enum { BINS_MAX = 4096, BINS_ABSENT = 256 };

/* The slots' span in equal parts, as far as it divides; never more parts than GFNs. */
void vm_map(struct service *sv, struct request *r)
{
	static const char *const known[] = { "bins", NULL };
	const struct vm *vm = arg_vm(sv, r, 0);
	struct tree_walk walk = { .limit = UINT64_MAX };
	uint64_t bins, first = 0, span = 0;
	struct vm_counts counts;
	struct jsonw w;

	if (!vm || !query_known(r, known) || !query_u64(r, "bins", 1, BINS_MAX, BINS_ABSENT, &bins))
		return;
	if (vm->slot_count) {
		const struct slot *last = &vm->slots[vm->slot_count - 1];

		first = vm->slots[0].base;
		span = last->base + last->pages - first;
	}
	if (bins > span)
		bins = span;
	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_key(&w, "bins");
	jsonw_open(&w, '[');
	for (uint64_t i = 0; i < bins; i++) {
		uint64_t from = first + span * i / bins, end = first + span * (i + 1) / bins;

		vm_count_pages(vm, from, end, &walk, &counts);
		write_bin(&w, from, end, &counts);
	}
	jsonw_close(&w, ']');
	jsonw_m_u64(&w, "revision", sv->revision);
	jsonw_close(&w, '}');
	answer_json(r, 200, &w);
}

/* One region of the window that has slots in it; the next such one begins at or after `at`. */
void vm_digests(struct service *sv, struct request *r)
{
	static const char *const known[] = { "gfn", "gpa", "count", "limit", "cursor", NULL };
	const struct vm *vm = arg_vm(sv, r, 0);
	struct query_window win;
	uint64_t limit, cursor;
	char next[24] = "", text[24];
	struct gfn_view g;
	struct jsonw w;

	if (!vm || !query_known(r, known) || !window(r, vm, &win) || !query_u64(r, "limit", 1, 1000, 1000, &limit) ||
	    !query_u64(r, "cursor", win.gfn, win.gfn + win.count - 1, win.gfn, &cursor))
		return;
	list_begin(&w);
	for (uint64_t at = cursor; vm_next_run(vm, at, win.gfn + win.count, &g);) {
		uint64_t first = g.gfn - g.gfn % DIGEST_REGION;
		uint64_t end = first + DIGEST_REGION;

		if (!list_goes_on(sv, &w, &limit)) {
			snprintf(next, sizeof next, "%" PRIu64, g.gfn);
			break;
		}
		if (first < win.gfn)
			first = win.gfn;
		if (end > win.gfn + win.count)
			end = win.gfn + win.count;
		snprintf(text, sizeof text, "%016" PRIx64, vm_digest(vm, first, end - first));
		jsonw_open(&w, '{');
		jsonw_m_u64(&w, "gfn", first);
		jsonw_m_u64(&w, "count", end - first);
		jsonw_m_str(&w, "digest", text);
		jsonw_close(&w, '}');
		at = end;
	}
	window_end(&w, &win, next, &sv->revision);
	answer_json(r, 200, &w);
}
