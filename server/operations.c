#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(operation)
DECODE_JOB(result)

enum { DELIVER_MAX = 64, LOOK_MAX = 4096 };

/* Rendering. */

void write_operation(struct jsonw *w, const struct operation *o)
{
	jsonw_open(w, '{');
	jsonw_m_uuid(w, "id", &o->id);
	jsonw_m_uuid(w, "vm", &o->vm);
	jsonw_m_uuid(w, "host", &o->host);
	jsonw_m_str(w, "kind", operation_kind_name(o->kind));
	jsonw_m_str(w, "state", operation_state_name(o->state));
	jsonw_m_raw(w, "params", o->params, strlen(o->params));
	if (o->again)
		jsonw_m_bool(w, "again", true);
	if (o->problem)
		jsonw_m_raw(w, "problem", o->problem, strlen(o->problem));
	jsonw_m_time(w, "created", o->created_ms);
	jsonw_m_time(w, "started", o->started_ms);
	jsonw_m_time(w, "finished", o->finished_ms);
	jsonw_m_u64(w, "revision", o->revision);
	jsonw_close(w, '}');
}

static void answer_operation(struct request *r, unsigned status, const struct operation *o)
{
	char id[PW_UUID_TEXT];
	struct jsonw w;

	jsonw_init(&w);
	write_operation(&w, o);
	answer_json(r, status, &w);
	answer_etag(r, o->revision);
	pw_uuid_format(&o->id, id);
	if (status == 202)
		answer_header(r, "Location", "/v1/operations/%s", id);
}

static struct operation *arg_operation(struct service *sv, struct request *r)
{
	struct operation *o;
	struct pw_uuid id;

	if (!arg_uuid(r, 0, PROBLEM_OPERATION_NOT_FOUND, &id))
		return NULL;
	o = operation_find(sv, &id);
	if (!o)
		answer_problem(r, PROBLEM_OPERATION_NOT_FOUND, "there is no operation %s", r->args[0]);
	return o;
}

/* Creating. */

/* Is the text within the limit of that flag? */
static bool text_fits(struct service *sv, struct request *r, const char *text, const char *flag)
{
	size_t n = text ? strlen(text) : 0;

	if (n <= config_limit(sv->config, flag).value)
		return true;
	answer_limit(r, PROBLEM_TOO_MUCH_WORK, sv->config, flag, n);
	return false;
}

bool operation_prepare(struct service *sv, struct request *r)
{
	return query_known(r, no_query) && prepare_operation(sv, r) &&
	       text_fits(sv, r, ((struct operation_job *)r->job)->b.params, "operation-bytes");
}

static void say_operation(struct service *sv, const struct request *r, const char *type, const struct operation *o)
{
	struct jsonw w;

	event_begin(&w, type, r);
	jsonw_m_uuid(&w, "host", &o->host);
	jsonw_m_uuid(&w, "vm", &o->vm);
	jsonw_m_uuid(&w, "operation", &o->id);
	jsonw_m_str(&w, "kind", operation_kind_name(o->kind));
	jsonw_m_str(&w, "state", operation_state_name(o->state));
	if (o->state == OPERATION_PENDING)
		jsonw_m_raw(&w, "params", o->params, strlen(o->params));
	if (o->state == OPERATION_RUNNING)
		jsonw_m_u64(&w, "epoch", o->host_epoch);
	if (o->problem)
		jsonw_m_raw(&w, "problem", o->problem, strlen(o->problem));
	event_end(sv, &w);
	stir(sv, WAIT_OPERATION, &o->id);
	if (o->state == OPERATION_PENDING)
		stir(sv, WAIT_DELIVERY, &o->host);
}

static bool params_fit(struct request *r, const struct operation_body *b, enum arch arch)
{
	struct codec_fault why = { .problem = PROBLEM_INVALID_PARAMS };

	if (b->arches >> arch & 1)
		return true;
	snprintf(why.pointer, sizeof why.pointer, "/params/%s", b->narrow);
	snprintf(why.detail, sizeof why.detail, "%s of a VM of arch %s takes no \"%s\"", operation_kind_name(b->kind),
		 arch_name(arch), b->narrow);
	answer_fault(r, &why);
	return false;
}

/* What the ledger's state refuses already is not left to the agent. An end may be asked of any VM. */
static bool state_allows(struct request *r, const struct operation_body *b, const struct vm *vm)
{
	struct refusal why;
	enum vm_state next;
	bool there;

	if (b->kind == OPERATION_PLUG && vm_slot_fits(vm, &b->slot, &there, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
	} else if (b->kind == OPERATION_UNPLUG && !vm_has_slot(vm, b->slot.number)) {
		answer_problem(r, PROBLEM_SLOT_NOT_FOUND, "the VM has no slot %" PRIu32, b->slot.number);
	} else if (b->kind == OPERATION_ABORT && !vm_step(vm->state, VM_INIT_ABORT, &next)) {
		(void)refuse(&why, PROBLEM_VM_TRANSITION,
			     "abort of a VM that is %s: the lifecycle has no init_abort there",
			     vm_state_name(vm->state));
		why.vm_state = vm->state;
		why.vm_event = VM_INIT_ABORT;
		answer_refusal(r, &why);
	}
	return !r->response.status;
}

/* Operations on VMs that hosts report as unknown: the ledger may have no such VM, or elsewhere. False: answered. */
static bool find_unknown(struct service *sv, struct request *r, const struct operation_body *b, struct operation *o)
{
	struct codec_fault why = { .pointer = "/params/host", .problem = PROBLEM_INVALID_PARAMS };
	const struct unknown *u;
	size_t n;

	if (!arg_uuid(r, 0, PROBLEM_VM_NOT_FOUND, &o->vm))
		return false;
	u = unknown_find(sv, &o->vm, b->has_host ? &b->host : NULL, &n);
	if (n == 1) {
		o->host = u->host;
		return may_act_for(r, &o->host);
	}
	if (n == 0 && arg_vm(sv, r, 0))
		answer_problem(r, PROBLEM_OPERATION_STATE, "%s is for a VM that a host reports as unknown: none does",
			       operation_kind_name(b->kind));
	if (n > 1) {
		snprintf(why.detail, sizeof why.detail, "%zu hosts report this VM as unknown: \"host\" says which", n);
		answer_fault(r, &why);
	}
	return false;
}

static bool find_known(struct service *sv, struct request *r, const struct operation_body *b, struct operation *o)
{
	const struct vm *vm = arg_vm(sv, r, 0);

	if (!vm || !may_act_for(r, &vm->host->id) || !if_match(r, vm->revision) || !params_fit(r, b, vm->arch) ||
	    !state_allows(r, b, vm))
		return false;
	o->vm = vm->id;
	o->host = vm->host->id;
	return true;
}

/* Each host has its share of what is unfinished; what is finished makes room by and by. */
static bool there_is_room(struct service *sv, struct request *r, const struct pw_uuid *host)
{
	size_t mine = host_note(ledger_host(sv->ledger, host))->active.count;

	if (mine >= sv->config->host_operations)
		answer_limit(r, PROBLEM_RATE_LIMITED, sv->config, "host-operations", mine + 1);
	else if (sv->operations.count >= sv->config->operations)
		answer_limit(r, PROBLEM_BUSY, sv->config, "operations", sv->operations.count + 1);
	return !r->response.status;
}

void operation_create_act(struct service *sv, struct request *r)
{
	const struct operation_body *b = &((struct operation_job *)r->job)->b;
	struct operation o = { .kind = b->kind, .state = OPERATION_PENDING, .created_ms = sv->group_time_ms };
	bool of_unknown = b->kind == OPERATION_ADOPT || b->kind == OPERATION_END;
	struct operation *made;

	if (!(of_unknown ? find_unknown(sv, r, b, &o) : find_known(sv, r, b, &o)))
		return;
	if (!there_is_room(sv, r, &o.host))
		return;
	o.id = uuid_fresh();
	o.revision = next_revision(sv);
	o.params = strdup(b->params);
	if (!o.params || operation_add(sv, &o, &made) != PW_OK) {
		free(o.params);
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while creating the operation");
		return;
	}
	say_operation(sv, r, "operation.created", made);
	answer_operation(r, 202, made);
}

/* Reading: one, with a long poll until it has finished; those of a VM. */

void operation_get_act(struct service *sv, struct request *r)
{
	const struct operation *o = arg_operation(sv, r);

	if (o)
		answer_operation(r, 200, o);
}

/* Waits while the operation is under way, if there is time. */
static bool wait_for_end(struct service *sv, struct request *r)
{
	const struct operation *o = NULL;
	struct pw_uuid id;
	bool parked;

	if (clock_monotonic_ms() >= r->deadline_ms || !state_read_lock(sv))
		return false;
	if (pw_uuid_parse(r->args[0], strlen(r->args[0]), &id))
		o = operation_find(sv, &id);
	parked = o && operation_is_active(o) && park_wait(sv, r, WAIT_OPERATION, &id, 0);
	pthread_rwlock_unlock(&sv->lock);
	return parked;
}

enum handled operation_get(struct service *sv, struct request *r)
{
	static const char *const known[] = { "wait", NULL };

	if (!query_known(r, known) || !wait_deadline(r))
		return DONE;
	return wait_for_end(sv, r) ? PARKED : handle_read(sv, r);
}

/* ?state=; *any: it was not given. False: answered. */
static bool query_state(struct request *r, enum operation_state *out, bool *any)
{
	const char *text = request_query(r, "state");

	*any = !text;
	if (!text || operation_state_from_name(text, out))
		return true;
	answer_problem(r, PROBLEM_INVALID_REQUEST, "state=%.64s is not a state of operations", text);
	return false;
}

void vm_operations(struct service *sv, struct request *r)
{
	static const char *const known[] = { "state", "limit", "cursor", NULL };
	const struct vm *vm = arg_vm(sv, r, 0);
	struct pw_uuid after = { { 0 } };
	char next[PW_UUID_TEXT] = "";
	const struct operation *last = NULL;
	struct operation key = { .kind = OPERATION_LAUNCH }; /* its VM and id count */
	size_t i, looked = 0;
	const char *cursor;
	uint64_t limit;
	enum operation_state state = OPERATION_PENDING;
	bool any;
	struct jsonw w;

	if (!vm || !query_known(r, known) || !query_u64(r, "limit", 1, 1000, 100, &limit) ||
	    !query_cursor(r, &after, &cursor) || !query_state(r, &state, &any))
		return;
	list_begin(&w);
	key.vm = vm->id;
	key.id = after;
	i = cursor ? index_after(&sv->vm_operations, &key) : index_place(&sv->vm_operations, &key);
	for (; i < sv->vm_operations.count; i++) {
		const struct operation *o = sv->vm_operations.items[i];

		if (!pw_uuid_equal(&o->vm, &vm->id))
			break;
		if (limit == 0 || list_is_long(sv, &w) || looked++ == LOOK_MAX) {
			pw_uuid_format(&last->id, next);
			break;
		}
		last = o;
		if (!any && o->state != state)
			continue;
		write_operation(&w, o);
		limit--;
	}
	list_end(&w, next[0] ? next : NULL, NULL);
	answer_json(r, 200, &w);
}

static bool cancel(struct service *sv, const struct request *r, struct operation *o)
{
	struct operation to = *o;

	to.state = OPERATION_CANCELLED;
	to.deliver = to.again = false;
	to.finished_ms = sv->group_time_ms;
	to.revision = next_revision(sv);
	if (operation_set(sv, o, &to) != PW_OK)
		return false;
	say_operation(sv, r, "operation.cancelled", o);
	return true;
}

bool operations_cancel(struct service *sv, const struct request *r, const struct pw_uuid *vm)
{
	for (struct operation *o; (o = operation_of_vm(sv, vm, NULL));) /* cancelling takes it off the list */
		if (!cancel(sv, r, o))
			return false;
	return true;
}

void operation_cancel_act(struct service *sv, struct request *r)
{
	struct operation *o = arg_operation(sv, r);

	if (!o || !query_known(r, no_query) || !if_match(r, o->revision))
		return;
	if (o->state != OPERATION_PENDING) {
		answer_problem(r, PROBLEM_OPERATION_STATE, "the operation is %s: only a pending one can be cancelled",
			       operation_state_name(o->state));
		return;
	}
	if (!cancel(sv, r, o)) {
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while cancelling the operation");
		return;
	}
	answer_operation(r, 200, o);
}

/* What an agent does with them. */

static bool has_deliverable(const struct host *h)
{
	return !h->fenced && host_note(h)->waiting > 0;
}

/* A poll that began before the host registered again may be of an agent that is gone: nothing is delivered to it. */
static bool is_outlived(struct request *r, const struct host *h)
{
	uint64_t now = host_note(h)->registrations;

	if (r->registration == 0)
		r->registration = now + 1;
	return r->registration != now + 1;
}

enum handled host_operations(struct service *sv, struct request *r)
{
	static const char *const known[] = { "wait", "limit", NULL };
	bool parked = false;
	const struct host *h;
	uint64_t limit;

	if (!query_known(r, known) || !query_u64(r, "limit", 1, DELIVER_MAX, DELIVER_MAX, &limit) || !wait_deadline(r))
		return DONE;
	if (!state_read_lock(sv))
		return answer_stopping(r);
	h = arg_host(sv, r, 0);
	if (h && may_act_for(r, &h->id) && !is_outlived(r, h) && !has_deliverable(h) &&
	    clock_monotonic_ms() < r->deadline_ms)
		parked = park_wait(sv, r, WAIT_DELIVERY, &h->id, 0);
	pthread_rwlock_unlock(&sv->lock);
	if (parked)
		return PARKED;
	return r->response.status ? DONE : park_change(sv, r);
}

/* The agent learns of a launch: from now on hardware may have the VM. */
static bool hand_out(struct service *sv, const struct operation *o)
{
	struct vm *vm = ledger_vm(sv->ledger, &o->vm);
	struct refusal why;
	bool changed;

	if (!vm || o->kind != OPERATION_LAUNCH)
		return true;
	return ledger_vm_handed_out(sv->ledger, vm, &changed, &why) == PROBLEM_NONE &&
	       (!changed || touch(sv, &vm->revision, o->revision));
}

/* Marks one running for the host's epoch. What is running for it already is only delivered again. */
static bool start(struct service *sv, const struct request *r, const struct host *h, struct operation *o)
{
	bool again = o->state == OPERATION_RUNNING && o->host_epoch == h->epoch;
	undo_mark before = ledger_mark(sv->ledger);
	struct operation to = *o;

	to.deliver = false;
	to.again = again;
	if (again)
		return operation_set(sv, o, &to) == PW_OK;
	to.state = OPERATION_RUNNING;
	to.host_epoch = h->epoch;
	to.started_ms = sv->group_time_ms;
	to.revision = next_revision(sv);
	if (operation_set(sv, o, &to) != PW_OK || !hand_out(sv, o)) {
		ledger_rollback(sv->ledger, before);
		return false;
	}
	say_operation(sv, r, "operation.started", o);
	return true;
}

void host_operations_act(struct service *sv, struct request *r)
{
	const struct host *h = arg_host(sv, r, 0);
	uint64_t limit;
	struct jsonw w;
	bool outlived;

	if (!h || !query_u64(r, "limit", 1, DELIVER_MAX, DELIVER_MAX, &limit))
		return;
	outlived = is_outlived(r, h);
	list_begin(&w);
	for (struct operation *o = host_note(h)->active.oldest, *next;
	     o && limit > 0 && !list_is_long(sv, &w) && has_deliverable(h) && !outlived; o = next) {
		next = o->at[OPERATION_OF_HOST].newer; /* starting it puts it where it was */
		if (o->state != OPERATION_PENDING && !o->deliver)
			continue;
		if (!start(sv, r, h, o))
			break;
		write_operation(&w, o);
		limit--;
	}
	list_end(&w, NULL, NULL);
	answer_json(r, 200, &w);
}

static bool result_holds_for(struct service *sv, struct request *r, const struct pw_uuid *host)
{
	const struct result_body *b = &((struct result_job *)r->job)->b;
	const struct host *h = ledger_host(sv->ledger, host);

	if (!may_act_for(r, host))
		return false;
	if (h)
		return host_is_held(r, h, b->boot_id, b->epoch);
	answer_problem(r, PROBLEM_HOST_NOT_FOUND, "the operation's host is gone");
	return false;
}

/* An operation may be forgotten before the answer about it is: then its agent is asked for. */
static bool result_holds(struct service *sv, struct request *r)
{
	const struct operation *o;
	struct pw_uuid id;

	o = pw_uuid_parse(r->args[0], strlen(r->args[0]), &id) ? operation_find(sv, &id) : NULL;
	if (o)
		return result_holds_for(sv, r, &o->host);
	return r->who.role != ROLE_AGENT || result_holds_for(sv, r, &r->who.host);
}

bool result_prepare(struct service *sv, struct request *r)
{
	r->still_holds = result_holds;
	return query_known(r, no_query) && prepare_result(sv, r) &&
	       text_fits(sv, r, ((struct result_job *)r->job)->b.problem, "result-bytes");
}

static bool may_finish(struct service *sv, struct request *r, const struct operation *o, const struct result_body *b)
{
	if (!result_holds_for(sv, r, &o->host))
		return false;
	if (o->state == OPERATION_RUNNING)
		return true;
	if (o->state == b->state)
		answer_operation(r, 200, o);
	else
		answer_problem(r, PROBLEM_OPERATION_STATE, "the operation is %s", operation_state_name(o->state));
	return false;
}

void operation_result_act(struct service *sv, struct request *r)
{
	const struct result_body *b = &((struct result_job *)r->job)->b;
	struct operation *o = arg_operation(sv, r), to;

	if (!o || !if_match(r, o->revision) || !may_finish(sv, r, o, b))
		return;
	to = *o;
	to.state = b->state;
	to.deliver = to.again = false;
	to.finished_ms = sv->group_time_ms;
	to.revision = next_revision(sv);
	to.problem = b->problem ? strdup(b->problem) : NULL;
	if ((b->problem && !to.problem) || operation_set(sv, o, &to) != PW_OK) {
		free(to.problem);
		answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while finishing the operation");
		return;
	}
	say_operation(sv, r, "operation.finished", o);
	answer_operation(r, 200, o);
}
