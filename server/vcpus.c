#include <stdlib.h>
#include <string.h>

#include "api/codec_vcpu.h"
#include "engine/arch/pkvm.h"
#include "server/routes.h"
#include "server/service_impl.h"

DECODE_JOB(vcpu)

/*
 * What hosts saw of protected vCPUs, by VM. A VM that falls back to normal gets another epoch, and with it nothing of
 * before counts any more; what is left goes when one of its vCPUs is reported again, or with the VM.
 */
struct vcpu_report {
	unsigned vcpu;
	struct vcpu_exit seen;
	int64_t time_ms;
	uint64_t revision;
};
struct vcpu_set {
	struct pw_uuid vm;
	uint64_t epoch; /* of the VM */
	size_t count;
	struct vcpu_report reports[]; /* in order of their vCPUs */
};

int vcpus_compare(const void *key, const void *item)
{
	return memcmp(key, &((const struct vcpu_set *)item)->vm, sizeof(struct pw_uuid));
}

static size_t set_size(size_t count)
{
	return sizeof(struct vcpu_set) + count * sizeof(struct vcpu_report);
}

static void set_free(struct service *sv, struct vcpu_set *s)
{
	if (s)
		pw_mem_free(&sv->mem, s, set_size(s->count));
}

void vcpus_release(struct service *sv)
{
	for (size_t i = 0; i < sv->vcpus.count; i++)
		set_free(sv, sv->vcpus.items[i]);
	index_release(&sv->vcpus);
}

static struct vcpu_set *set_of(const struct service *sv, const struct vm *vm)
{
	struct vcpu_set *s = index_find(&sv->vcpus, &vm->id);

	return s && s->epoch == vm->epoch ? s : NULL;
}

/* The place of a vCPU's report, or where it would go. */
static size_t place_of(const struct vcpu_set *s, unsigned vcpu)
{
	size_t lo = 0, hi = s ? s->count : 0;

	while (lo < hi) {
		size_t mid = lo + (hi - lo) / 2;

		if (s->reports[mid].vcpu < vcpu)
			lo = mid + 1;
		else
			hi = mid;
	}
	return lo;
}

static struct vcpu_report *report_of(const struct service *sv, const struct vm *vm, unsigned vcpu)
{
	struct vcpu_set *s = set_of(sv, vm);
	size_t at = place_of(s, vcpu);

	return s && at < s->count && s->reports[at].vcpu == vcpu ? &s->reports[at] : NULL;
}

/* Changing. A set is replaced by a longer one, the old one kept until that is final. */

struct replacement {
	struct vcpu_set *old, *by; /* either may be NULL */
};

static void put_set_back(void *ctx, const void *args)
{
	const struct replacement *x = args;
	struct service *sv = ctx;

	if (x->by)
		index_remove(&sv->vcpus, &x->by->vm);
	set_free(sv, x->by);
	if (x->old)
		index_insert(&sv->vcpus, &x->old->vm, x->old);
}

static void forget_set(void *ctx, const void *args)
{
	set_free(ctx, ((const struct replacement *)args)->old);
}

static void set_replace(struct service *sv, struct vcpu_set *old, struct vcpu_set *by)
{
	static const struct undo_ops replaced = { .rollback = put_set_back, .commit = forget_set };
	struct replacement x = { old, by };

	if (old)
		index_remove(&sv->vcpus, &old->vm);
	if (by)
		index_insert(&sv->vcpus, &by->vm, by);
	undo_push(ledger_undo(sv->ledger), &replaced, sv, &x, sizeof x);
}

static enum pw_status set_insert(struct service *sv, const struct vm *vm, const struct vcpu_report *report)
{
	struct vcpu_set *old = index_find(&sv->vcpus, &vm->id), *kept = set_of(sv, vm), *by;
	size_t n = kept ? kept->count : 0, at = place_of(kept, report->vcpu);

	if (index_reserve(&sv->vcpus) != PW_OK ||
	    undo_reserve(ledger_undo(sv->ledger), UNDO_RECORD(sizeof(struct replacement))) != PW_OK)
		return PW_NO_MEMORY;
	by = pw_mem_alloc(&sv->mem, set_size(n + 1));
	if (!by)
		return PW_NO_MEMORY;
	*by = (struct vcpu_set){ vm->id, vm->epoch, n + 1 };
	for (size_t i = 0; kept && i < n; i++)
		by->reports[i < at ? i : i + 1] = kept->reports[i];
	by->reports[at] = *report;
	set_replace(sv, old, by);
	return PW_OK;
}

static enum pw_status report_put(struct service *sv, const struct vm *vm, const struct vcpu_report *report)
{
	struct vcpu_report *known = report_of(sv, vm, report->vcpu);
	struct undo *u = ledger_undo(sv->ledger);

	if (!known)
		return set_insert(sv, vm, report);
	if (undo_reserve(u, UNDO_RECORD(sizeof *known)) != PW_OK)
		return PW_NO_MEMORY;
	undo_save(u, known, sizeof *known);
	*known = *report;
	return PW_OK;
}

void vcpus_forget(struct service *sv, const struct pw_uuid *vm)
{
	struct vcpu_set *s = index_find(&sv->vcpus, vm);

	if (s)
		set_replace(sv, s, NULL);
}

size_t vcpus_undo_bytes(void)
{
	return UNDO_RECORD(sizeof(struct replacement));
}

/* Journal and picture. */

enum pw_problem vcpu_load(struct service *sv, struct vm *vm, const struct vcpu_kept *kept, struct refusal *why)
{
	struct vcpu_report report = { .vcpu = (unsigned)kept->vcpu,
				      .time_ms = kept->time_ms,
				      .revision = kept->revision };
	struct codec_fault fault;

	if (vm->arch != ARCH_PKVM || kept->vcpu >= PKVM_VCPUS_MAX)
		return refuse(why, PROBLEM_INVALID_REQUEST, "vCPU %" PRIu64 " of a VM of arch %s", kept->vcpu,
			      arch_name(vm->arch));
	if (!vcpu_exit_read(kept->exit, kept->items, &report.seen, &fault))
		return refuse(why, fault.no_memory ? PROBLEM_NO_MEMORY : PROBLEM_INVALID_REQUEST, "%s", fault.detail);
	if (report_put(sv, vm, &report) != PW_OK)
		return refuse(why, PROBLEM_NO_MEMORY, "out of memory while loading vCPUs");
	return PROBLEM_NONE;
}

bool vcpu_next(const struct service *sv, const struct vm *vm, size_t i, struct vcpu_kept *out, char **items)
{
	const struct vcpu_set *s = set_of(sv, vm);
	const struct vcpu_report *report;
	struct jsonw w;
	size_t len;

	if (!s || i >= s->count)
		return false;
	report = &s->reports[i];
	jsonw_init(&w);
	vcpu_items_write(&w, &report->seen);
	*items = jsonw_finish(&w, &len);
	*out = (struct vcpu_kept){ .vcpu = report->vcpu,
				   .exit = pkvm_exit_name(report->seen.exit),
				   .items = *items,
				   .time_ms = report->time_ms,
				   .revision = report->revision };
	return true;
}

/* Routes. */

static bool number_of_vcpu(const char *text, unsigned *out)
{
	uint64_t n = 0;

	for (const char *p = text; *p; p++) {
		if (*p < '0' || *p > '9' || p - text > 9)
			return false;
		n = n * 10 + (uint64_t)(*p - '0');
	}
	*out = (unsigned)n;
	return *text && n < PKVM_VCPUS_MAX;
}

/* The VM and the vCPU that the path names; NULL: answered. */
static struct vm *arg_vcpu(struct service *sv, struct request *r, unsigned *out)
{
	struct vm *vm = arg_vm(sv, r, 0);

	if (!vm)
		return NULL;
	if (vm->arch != ARCH_PKVM) {
		answer_problem(r, PROBLEM_NOT_FOUND, "VM %s is of arch %s: only vCPUs of pkvm are told of", r->args[0],
			       arch_name(vm->arch));
		return NULL;
	}
	if (!number_of_vcpu(r->args[1], out)) {
		answer_problem(r, PROBLEM_NOT_FOUND, "there is no vCPU %.64s: a pkvm VM has at most %d, from 0 on",
			       r->args[1], PKVM_VCPUS_MAX);
		return NULL;
	}
	return vm;
}

#define NOT_PROTECTED "the VM is not protected: nothing of its vCPUs is kept"

static void write_item(struct jsonw *w, const struct pkvm_exit_item *item, const uint64_t *value)
{
	jsonw_open(w, '{');
	jsonw_m_str(w, "name", item->name);
	jsonw_m_bool(w, "visible", item->bits != 0);
	if (item->bits && item->bits != UINT64_MAX)
		vcpu_value_write(w, "bits", item->bits);
	if (item->bits && value)
		vcpu_value_write(w, "value", *value);
	jsonw_m_str(w, "why", item->why);
	jsonw_close(w, '}');
}

/* The syndrome as the host saw it; how wide a store is depends on it. */
static uint64_t syndrome_of(const struct vcpu_exit *x)
{
	struct pkvm_exit_item item;

	for (unsigned i = 0; i < x->count; i++)
		if (pkvm_exit_item(x->exit, 0, x->values[i].item, &item) && strcmp(item.name, "ESR_EL2") == 0)
			return x->values[i].value;
	return 0;
}

static uint64_t revision_of(const struct vm *vm, const struct vcpu_report *report)
{
	return report ? report->revision : vm->revision;
}

static void answer_vcpu(struct service *sv, struct request *r, const struct vm *vm, unsigned vcpu)
{
	const struct vcpu_report *report = report_of(sv, vm, vcpu);
	enum pkvm_exit e = report ? report->seen.exit : PKVM_EXIT_COUNT;
	uint64_t esr = report ? syndrome_of(&report->seen) : 0;
	bool is_protected = vm->state != VM_NORMAL;
	struct pkvm_exit_item item;
	struct jsonw w;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_uuid(&w, "vm", &vm->id);
	jsonw_m_u64(&w, "vcpu", vcpu);
	jsonw_m_bool(&w, "protected", is_protected);
	if (report) {
		jsonw_m_str(&w, "exit", pkvm_exit_name(e));
		jsonw_m_time(&w, "time", report->time_ms);
	}
	jsonw_key(&w, "items");
	jsonw_open(&w, '[');
	for (unsigned n = 0; pkvm_exit_item(e, esr, n, &item); n++) {
		if (!is_protected)
			item.why = NOT_PROTECTED;
		write_item(&w, &item, report ? vcpu_exit_value(&report->seen, n) : NULL);
	}
	jsonw_close(&w, ']');
	jsonw_m_u64(&w, "revision", revision_of(vm, report));
	jsonw_close(&w, '}');
	answer_json(r, 200, &w);
	answer_etag(r, revision_of(vm, report));
}

void vcpu_get(struct service *sv, struct request *r)
{
	unsigned vcpu;
	const struct vm *vm = arg_vcpu(sv, r, &vcpu);

	if (vm && query_known(r, no_query))
		answer_vcpu(sv, r, vm, vcpu);
}

bool vcpu_prepare(struct service *sv, struct request *r)
{
	return query_known(r, no_query) && prepare_vcpu(sv, r);
}

static bool vcpu_allowed(struct request *r, const struct vm *vm, const struct vcpu_body *b)
{
	struct refusal why;

	if (!may_act_for(r, &vm->host->id))
		return false;
	if (ledger_host_current(vm->host, b->boot_id, b->epoch, &why) != PROBLEM_NONE) {
		answer_refusal(r, &why);
		return false;
	}
	if (vm->state == VM_NORMAL) {
		refuse(&why, PROBLEM_VM_TRANSITION, "a VM in state normal has no vCPU that runs");
		why.vm_state = vm->state;
		why.op = "vcpu.exit";
		answer_refusal(r, &why);
		return false;
	}
	return true;
}

static bool is_same(const struct vcpu_exit *a, const struct vcpu_exit *b)
{
	if (a->exit != b->exit || a->count != b->count)
		return false;
	for (unsigned i = 0; i < a->count; i++) {
		const uint64_t *other = vcpu_exit_value(b, a->values[i].item);

		if (!other || *other != a->values[i].value)
			return false;
	}
	return true;
}

static void say_exit(struct service *sv, const struct request *r, const struct vm *vm, const struct vcpu_report *report)
{
	struct jsonw w;

	event_begin(&w, "vcpu.exit", r);
	jsonw_m_uuid(&w, "host", &vm->host->id);
	jsonw_m_uuid(&w, "vm", &vm->id);
	jsonw_m_u64(&w, "vcpu", report->vcpu);
	jsonw_m_str(&w, "exit", pkvm_exit_name(report->seen.exit));
	jsonw_key(&w, "items");
	vcpu_items_write(&w, &report->seen);
	event_end(sv, &w);
}

void vcpu_put_act(struct service *sv, struct request *r)
{
	const struct vcpu_body *b = &((struct vcpu_job *)r->job)->b;
	struct vcpu_report report = { .seen = b->seen, .time_ms = sv->group_time_ms, .revision = next_revision(sv) };
	struct vm *vm = arg_vcpu(sv, r, &report.vcpu);
	const struct vcpu_report *known;

	if (!vm || !vcpu_allowed(r, vm, b))
		return;
	known = report_of(sv, vm, report.vcpu);
	if (!if_match(r, revision_of(vm, known)))
		return;
	if (!known || !is_same(&known->seen, &report.seen)) {
		if (report_put(sv, vm, &report) != PW_OK || !touch(sv, &vm->revision, report.revision)) {
			answer_problem(r, PROBLEM_NO_MEMORY, "out of memory while noting the exit");
			return;
		}
		say_exit(sv, r, vm, &report);
	}
	answer_vcpu(sv, r, vm, report.vcpu);
}
