/* pef-trace/1: the hypervisor half of POWER's Protected Execution Facility (tests/traces/README.md). */
#include <stdlib.h>
#include <string.h>

#include "api/replay.h"
#include "engine/arch/pef.h"

#define VMS_MAX    16
#define NAME_BYTES 64

struct replay {
	struct pw_mem mem;
	struct pef model;
	bool has_model;
	struct pef_vm *vms[VMS_MAX];
	char names[VMS_MAX][NAME_BYTES];
	size_t vm_count;
};

enum arg {
	ARG_VM = 1 << 0,
	ARG_GFN = 1 << 1,
	ARG_FLAGS = 1 << 2,
	ARG_ORDER = 1 << 3,
	ARG_SLOT = 1 << 4,
	ARG_BASE = 1 << 5,
	ARG_GFNS = 1 << 6,
	ARG_MSR_S = 1 << 7,
	ARG_UV_REFUSE = 1 << 8,
	ARG_VCPU_RUNNING = 1 << 9,
};
#define ARGS_ANY   (ARG_MSR_S | ARG_UV_REFUSE | ARG_VCPU_RUNNING)
#define ARGS_COUNT 10
static const char *const arg_names[ARGS_COUNT] = { "vm",   "gfn",  "flags", "order",     "slot",
						   "base", "gfns", "msr_s", "uv_refuse", "vcpu_running" };

struct args {
	struct pef_vm *vm;
	uint64_t gfn, flags, order, slot, base, gfns;
	struct pef_call how;
};

static enum pw_status do_start(struct pef *m, const struct args *a, enum pef_code *code)
{
	return pef_vm_call(m, a->vm, PEF_INIT_START, &a->how, code);
}

static enum pw_status do_done(struct pef *m, const struct args *a, enum pef_code *code)
{
	return pef_vm_call(m, a->vm, PEF_INIT_DONE, &a->how, code);
}

static enum pw_status do_abort(struct pef *m, const struct args *a, enum pef_code *code)
{
	return pef_vm_call(m, a->vm, PEF_INIT_ABORT, &a->how, code);
}

static enum pw_status do_off(struct pef *m, const struct args *a, enum pef_code *code)
{
	return pef_vm_call(m, a->vm, PEF_SVM_OFF, &a->how, code);
}

static struct pef_pages pages(const struct args *a)
{
	return (struct pef_pages){ .gfn = a->gfn, .count = 1, .flags = a->flags, .order = (unsigned)a->order };
}

static enum pw_status do_page_in(struct pef *m, const struct args *a, enum pef_code *code)
{
	struct pef_pages p = pages(a);

	return pef_page_in(m, a->vm, &p, &a->how, code);
}

static enum pw_status do_page_out(struct pef *m, const struct args *a, enum pef_code *code)
{
	struct pef_pages p = pages(a);

	return pef_page_out(m, a->vm, &p, &a->how, code);
}

static enum pw_status do_slot_add(struct pef *m, const struct args *a, enum pef_code *code)
{
	struct pef_slot s = { (uint32_t)a->slot, a->base, a->gfns };

	return pef_slot_add(m, a->vm, &s, &a->how, code);
}

static enum pw_status do_slot_remove(struct pef *m, const struct args *a, enum pef_code *code)
{
	return pef_slot_remove(m, a->vm, (uint32_t)a->slot, code);
}

static enum pw_status do_touch(struct pef *m, const struct args *a, enum pef_code *code)
{
	return pef_touch(m, a->vm, a->gfn, 1, &a->how, code);
}

static const struct op {
	const char *name;
	unsigned needs, takes; /* arguments beyond ARGS_ANY */
	enum pw_status (*call)(struct pef *m, const struct args *a, enum pef_code *code);
} ops[] = {
	{ "H_SVM_INIT_START", ARG_VM, 0, do_start },
	{ "H_SVM_INIT_DONE", ARG_VM, 0, do_done },
	{ "H_SVM_INIT_ABORT", ARG_VM, 0, do_abort },
	{ "KVM_PPC_SVM_OFF", ARG_VM, 0, do_off },
	{ "H_SVM_PAGE_IN", ARG_VM | ARG_GFN, ARG_FLAGS | ARG_ORDER, do_page_in },
	{ "H_SVM_PAGE_OUT", ARG_VM | ARG_GFN, ARG_FLAGS | ARG_ORDER, do_page_out },
	{ "SLOT_ADD", ARG_VM | ARG_SLOT | ARG_BASE | ARG_GFNS, 0, do_slot_add },
	{ "SLOT_REMOVE", ARG_VM | ARG_SLOT, 0, do_slot_remove },
	{ "HOST_TOUCH", ARG_VM | ARG_GFN, 0, do_touch },
};

/* Names. */

static struct pef_vm *vm_named(const struct replay *r, const char *name, size_t len)
{
	for (size_t i = 0; name && i < r->vm_count; i++)
		if (strlen(r->names[i]) == len && memcmp(r->names[i], name, len) == 0)
			return r->vms[i];
	return NULL;
}

static struct pef_vm *vm_of(const struct replay *r, const json_t *v)
{
	const char *name = json_string_value(v);

	return name ? vm_named(r, name, strlen(name)) : NULL;
}

/* Arguments. */

static bool read_u64(const json_t *v, uint64_t *out)
{
	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*out = (uint64_t)json_integer_value(v);
	return true;
}

static bool read_arg(const struct replay *r, enum arg arg, const json_t *v, struct args *a)
{
	switch (arg) {
	case ARG_VM: a->vm = vm_of(r, v); return a->vm;
	case ARG_GFN: return read_u64(v, &a->gfn);
	case ARG_FLAGS: return read_u64(v, &a->flags);
	case ARG_ORDER: return read_u64(v, &a->order) && a->order < 64;
	case ARG_SLOT: return read_u64(v, &a->slot) && a->slot <= UINT32_MAX;
	case ARG_BASE: return read_u64(v, &a->base);
	case ARG_GFNS: return read_u64(v, &a->gfns);
	case ARG_MSR_S: a->how.no_msr_s = json_is_false(v); return json_is_boolean(v);
	case ARG_UV_REFUSE: return read_u64(v, &a->how.uv_refuse);
	case ARG_VCPU_RUNNING: a->how.vcpu_running = json_is_true(v); return json_is_boolean(v);
	}
	return false;
}

static enum pw_status read_args(const struct replay *r, const struct op *op, const json_t *json, struct args *a,
				struct pw_err *err)
{
	unsigned seen = 0;
	const char *key;
	json_t *v;

	*a = (struct args){ .order = PEF_PAGE_SHIFT };
	json_object_foreach ((json_t *)(uintptr_t)json, key, v) {
		unsigned i = 0;

		while (i < ARGS_COUNT && strcmp(arg_names[i], key) != 0)
			i++;
		if (i == ARGS_COUNT || !((op->needs | op->takes | ARGS_ANY) >> i & 1))
			return pw_fail(err, PW_INVALID, "%s has no argument \"%.64s\"", op->name, key);
		if (!read_arg(r, (enum arg)(1u << i), v, a))
			return pw_fail(err, PW_INVALID, "%s: bad value of \"%s\"", op->name, key);
		seen |= 1u << i;
	}
	if (!json_is_object(json) || (seen & op->needs) != op->needs)
		return pw_fail(err, PW_INVALID, "%s lacks an argument", op->name);
	return PW_OK;
}

/* The header. */

static enum pw_status read_vm(struct replay *r, const json_t *json, struct pw_err *err)
{
	static const char *const members[] = { "name", "gfns", "radix", "opted_in", NULL };
	const json_t *radix = json_object_get(json, "radix"), *opted_in = json_object_get(json, "opted_in");
	struct pef_slot s = { 0 };
	const char *name;
	enum pef_code code;
	struct pef_vm *vm;

	if (!json_is_object(json))
		return pw_fail(err, PW_INVALID, "a VM is not an object");
	if (replay_known(json, members, err) != PW_OK || replay_str(json, "name", &name, err) != PW_OK)
		return pw_wrap(err, "VM");
	if (!*name || strlen(name) >= NAME_BYTES || vm_named(r, name, strlen(name)) || r->vm_count == VMS_MAX)
		return pw_fail(err, PW_INVALID, "VM \"%.64s\": a bad name, twice the same, or too many", name);
	if (!read_u64(json_object_get(json, "gfns"), &s.pages) || !json_is_boolean(radix) || !json_is_boolean(opted_in))
		return pw_fail(err, PW_INVALID, "VM %s: gfns, radix and opted_in are needed", name);
	if (pef_vm_new(&r->model, json_is_true(radix), json_is_true(opted_in), &vm) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	if (s.pages &&
	    (pef_slot_add(&r->model, vm, &s, &(struct pef_call){ 0 }, &code) != PW_OK || code != PEF_H_SUCCESS))
		return pw_fail(err, PW_INVALID, "VM %s: bad slot", name);
	memcpy(r->names[r->vm_count], name, strlen(name) + 1);
	r->vms[r->vm_count++] = vm;
	return PW_OK;
}

static enum pw_status read_header(struct replay *r, const json_t *header, struct pw_err *err)
{
	static const char *const members[] = { "type", "format", "scenario", "pool", "vms", NULL };
	const json_t *vms = json_object_get(header, "vms");
	uint64_t frames;
	json_t *vm;
	size_t i;

	if (replay_known(header, members, err) != PW_OK)
		return err->status;
	if (!read_u64(json_object_get(header, "pool"), &frames) || !json_is_array(vms))
		return pw_fail(err, PW_INVALID, "a header without pool or vms");
	if (pef_init(&r->model, &r->mem, frames, PEF_LEFT_RESIDENT) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a pool of %" PRIu64 " frames", frames);
	r->has_model = true;
	json_array_foreach (vms, i, vm) {
		enum pw_status st = read_vm(r, vm, err);

		if (st != PW_OK)
			return st;
	}
	return PW_OK;
}

static void close_replay(void *model)
{
	struct replay *r = model;

	if (r->has_model)
		pef_release(&r->model);
	free(r);
}

static enum pw_status open_replay(const json_t *header, void **model, struct pw_err *err)
{
	struct replay *r = calloc(1, sizeof *r);
	enum pw_status st;

	if (!r)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	st = read_header(r, header, err);
	if (st == PW_OK)
		*model = r;
	else
		close_replay(r);
	return st;
}

/* Results. */

/* Where the law says Error and the kernel has no code for it, ret says just that. */
#define ANY_ERROR "error"

static bool ret_is_known(const char *ret)
{
	for (int c = 0; c < PEF_CODE_COUNT; c++)
		if (strcmp(ret, pef_code_name((enum pef_code)c)) == 0)
			return true;
	return strcmp(ret, ANY_ERROR) == 0;
}

static const char *ret_shown(const char *asked, enum pef_code code)
{
	return code != PEF_H_SUCCESS && strcmp(asked, ANY_ERROR) == 0 ? ANY_ERROR : pef_code_name(code);
}

/* "vm:gfn" */
static bool read_gfn_key(const struct replay *r, const char *key, struct pef_vm **vm, uint64_t *gfn)
{
	const char *colon = strrchr(key, ':');
	char *end;

	if (!colon || colon[1] < '0' || colon[1] > '9')
		return false;
	*vm = vm_named(r, key, (size_t)(colon - key));
	*gfn = strtoull(colon + 1, &end, 10);
	return *vm && *end == '\0' && *gfn < TREE_PAGES;
}

static json_t *state_json(const struct pef_vm *vm, uint64_t gfn)
{
	struct pef_run run;

	if (!pef_run_at(vm, gfn, gfn + 1, &run))
		run.state = PEF_NO;
	if (run.state == PEF_SI)
		return json_sprintf("SI%" PRIu64, run.frame);
	return json_string(pef_gfn_state_name(run.state));
}

static json_t *vms_json(const struct replay *r, const json_t *asked, struct pw_err *err)
{
	json_t *got = json_object(), *v;
	const char *key;

	json_object_foreach ((json_t *)(uintptr_t)asked, key, v) {
		const struct pef_vm *vm = vm_named(r, key, strlen(key));

		if (!vm)
			pw_fail(err, PW_INVALID, "post names VM \"%.64s\"", key);
		if (!vm || json_object_set_new(got, key, json_string(pef_vm_state_name(vm->state))) != 0) {
			json_decref(got);
			return NULL;
		}
	}
	return got;
}

static json_t *gfns_json(const struct replay *r, const json_t *asked, struct pw_err *err)
{
	json_t *got = json_object(), *v;
	const char *key;

	json_object_foreach ((json_t *)(uintptr_t)asked, key, v) {
		struct pef_vm *vm;
		uint64_t gfn;
		bool known = read_gfn_key(r, key, &vm, &gfn);

		if (!known)
			pw_fail(err, PW_INVALID, "post names GFN \"%.64s\"", key);
		if (!known || json_object_set_new(got, key, state_json(vm, gfn)) != 0) {
			json_decref(got);
			return NULL;
		}
	}
	return got;
}

static json_t *post_json(const struct replay *r, const json_t *post, struct pw_err *err)
{
	static const char *const members[] = { "vms", "gfns", "pool_used", NULL };
	const json_t *vms = json_object_get(post, "vms"), *gfns = json_object_get(post, "gfns");
	const json_t *used = json_object_get(post, "pool_used");
	json_t *got;

	if (!json_is_object(post) || (vms && !json_is_object(vms)) || (gfns && !json_is_object(gfns)) ||
	    (used && !json_is_integer(used))) {
		pw_fail(err, PW_INVALID, "member \"post\" is missing, or holds what it cannot");
		return NULL;
	}
	if (replay_known(post, members, err) != PW_OK)
		return NULL;
	got = json_object();
	if ((vms && json_object_set_new(got, "vms", vms_json(r, vms, err)) != 0) ||
	    (gfns && json_object_set_new(got, "gfns", gfns_json(r, gfns, err)) != 0) ||
	    (used && json_object_set_new(got, "pool_used", json_integer((json_int_t)r->model.used)) != 0)) {
		json_decref(got);
		return NULL;
	}
	return got;
}

/* Steps. */

static const struct op *find_op(const json_t *line, struct pw_err *err)
{
	const char *name;

	if (replay_str(line, "op", &name, err) != PW_OK)
		return NULL;
	for (size_t i = 0; i < PW_ARRAY_LEN(ops); i++)
		if (strcmp(ops[i].name, name) == 0)
			return &ops[i];
	pw_fail(err, PW_INVALID, "unknown op \"%.64s\"", name);
	return NULL;
}

/* May this answer, though no success, come with a change? */
static bool refusal_may_change(const struct op *op, enum pef_vm_state before, enum pef_code code)
{
	if (before != PEF_VM_TRANSIENT)
		return false;
	return (op->call == do_abort && code == PEF_H_PARAMETER) || (op->call == do_done && code == PEF_H_STATE);
}

static enum pw_status step(void *model, const json_t *line, json_t **got, bool *refused, struct pw_err *err)
{
	static const char *const members[] = { "n", "op", "args", "ret", "post", NULL };
	struct replay *r = model;
	enum pef_vm_state before;
	const struct op *op = find_op(line, err);
	struct args a;
	enum pef_code code;
	const char *ret;
	json_t *post;

	if (!op || replay_known(line, members, err) != PW_OK || replay_str(line, "ret", &ret, err) != PW_OK)
		return err->status;
	if (!ret_is_known(ret))
		return pw_fail(err, PW_INVALID, "unknown ret \"%.64s\"", ret);
	if (read_args(r, op, json_object_get(line, "args"), &a, err) != PW_OK)
		return err->status;
	before = a.vm->state;
	if (op->call(&r->model, &a, &code) != PW_OK)
		return pw_fail(err, PW_INVALID, "the model cannot do this step");
	*refused = code != PEF_H_SUCCESS && !refusal_may_change(op, before, code);
	err->status = PW_OK;
	post = post_json(r, json_object_get(line, "post"), err);
	if (!post)
		return err->status == PW_INVALID ? PW_INVALID : pw_fail(err, PW_NO_MEMORY, "out of memory");
	*got = json_pack("{s:s, s:o}", "ret", ret_shown(ret, code), "post", post);
	return *got ? PW_OK : pw_fail(err, PW_NO_MEMORY, "out of memory");
}

static uint64_t digest(const void *model)
{
	return pef_digest(&((const struct replay *)model)->model);
}

static bool check(const void *model, struct pw_err *err)
{
	if (pef_check(&((const struct replay *)model)->model))
		return true;
	pw_fail(err, PW_CONFLICT, "an invariant is broken");
	return false;
}

const struct replay_format replay_pef = {
	.name = "pef-trace/1",
	.open = open_replay,
	.close = close_replay,
	.step = step,
	.digest = digest,
	.check = check,
};
