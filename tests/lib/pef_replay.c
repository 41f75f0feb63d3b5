#include "tests/lib/pef_replay.h"

#include <jansson.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>

#include "engine/arch/pef.h"

#define VMS_MAX   16
#define NAME_MAX_ 64

struct replay {
	struct pw_mem mem;
	struct pef model;
	struct pef_vm *vms[VMS_MAX];
	char names[VMS_MAX][NAME_MAX_];
	size_t vm_count;
	const char *file;
	FILE *out;
	struct replay_tally *tally;
	struct pw_err *err;
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

/* Reading. */

static bool read_u64(const json_t *v, uint64_t *out)
{
	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*out = (uint64_t)json_integer_value(v);
	return true;
}

static struct pef_vm *vm_named(const struct replay *r, const char *name, size_t len)
{
	for (size_t i = 0; name && i < r->vm_count; i++)
		if (strlen(r->names[i]) == len && !memcmp(r->names[i], name, len))
			return r->vms[i];
	return NULL;
}

static struct pef_vm *vm_of(const struct replay *r, const json_t *v)
{
	const char *name = json_string_value(v);

	return name ? vm_named(r, name, strlen(name)) : NULL;
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

static enum pw_status read_args(struct replay *r, const struct op *op, json_t *json, struct args *a)
{
	unsigned seen = 0;
	const char *key;
	json_t *v;

	*a = (struct args){ .order = PEF_PAGE_SHIFT };
	json_object_foreach (json, key, v) {
		unsigned i = 0;

		while (i < ARGS_COUNT && strcmp(arg_names[i], key))
			i++;
		if (i == ARGS_COUNT || !((op->needs | op->takes | ARGS_ANY) >> i & 1))
			return pw_fail(r->err, PW_INVALID, "%s has no argument \"%s\"", op->name, key);
		if (!read_arg(r, (enum arg)(1u << i), v, a))
			return pw_fail(r->err, PW_INVALID, "bad value of \"%s\"", key);
		seen |= 1u << i;
	}
	if (!json_is_object(json) || (seen & op->needs) != op->needs)
		return pw_fail(r->err, PW_INVALID, "%s lacks an argument", op->name);
	return PW_OK;
}

static bool keys_known(const json_t *object, const char *const *known, const char **culprit)
{
	const char *key;
	json_t *v;

	json_object_foreach ((json_t *)object, key, v) {
		const char *const *k = known;

		while (*k && strcmp(*k, key))
			k++;
		*culprit = key;
		if (!*k)
			return false;
	}
	return true;
}

/* The header. */

static enum pw_status read_vm(struct replay *r, const json_t *json)
{
	static const char *const keys[] = { "name", "gfns", "radix", "opted_in", NULL };
	const char *name = json_string_value(json_object_get(json, "name"));
	struct pef_slot s = { 0 };
	enum pef_code code;
	const char *culprit;
	struct pef_vm *vm;

	if (!keys_known(json, keys, &culprit))
		return pw_fail(r->err, PW_INVALID, "unknown VM member \"%s\"", culprit);
	if (!name || strlen(name) >= NAME_MAX_ || r->vm_count == VMS_MAX || vm_named(r, name, strlen(name)))
		return pw_fail(r->err, PW_INVALID, "bad or too many VMs");
	if (!read_u64(json_object_get(json, "gfns"), &s.pages) || !json_is_boolean(json_object_get(json, "radix")) ||
	    !json_is_boolean(json_object_get(json, "opted_in")))
		return pw_fail(r->err, PW_INVALID, "VM %s: gfns, radix and opted_in are needed", name);
	if (pef_vm_new(&r->model, json_is_true(json_object_get(json, "radix")),
		       json_is_true(json_object_get(json, "opted_in")), &vm) != PW_OK)
		return pw_fail(r->err, PW_NO_MEMORY, "out of memory");
	if (s.pages &&
	    (pef_slot_add(&r->model, vm, &s, &(struct pef_call){ 0 }, &code) != PW_OK || code != PEF_H_SUCCESS))
		return pw_fail(r->err, PW_INVALID, "VM %s: bad slot", name);
	memcpy(r->names[r->vm_count], name, strlen(name) + 1);
	r->vms[r->vm_count++] = vm;
	return PW_OK;
}

/* Sets the model up; it is there exactly if this succeeded or vm_count is not 0. */
static enum pw_status read_header(struct replay *r, const json_t *json)
{
	static const char *const keys[] = { "type", "format", "scenario", "pool", "vms", NULL };
	const char *format = json_string_value(json_object_get(json, "format"));
	const char *type = json_string_value(json_object_get(json, "type"));
	const char *culprit;
	uint64_t frames;
	json_t *vm;
	size_t i;

	if (!type || strcmp(type, "header") || !format || strcmp(format, "pef-trace/1"))
		return pw_fail(r->err, PW_INVALID, "no header of format pef-trace/1");
	if (!keys_known(json, keys, &culprit))
		return pw_fail(r->err, PW_INVALID, "unknown header member \"%s\"", culprit);
	if (!read_u64(json_object_get(json, "pool"), &frames) || !json_is_array(json_object_get(json, "vms")))
		return pw_fail(r->err, PW_INVALID, "header without pool or vms");
	if (pef_init(&r->model, &r->mem, frames, PEF_LEFT_RESIDENT) != PW_OK)
		return pw_fail(r->err, PW_NO_MEMORY, "no memory for a pool of %" PRIu64 " frames", frames);
	json_array_foreach (json_object_get(json, "vms"), i, vm) {
		enum pw_status st = read_vm(r, vm);

		if (st != PW_OK) {
			pef_release(&r->model);
			return st;
		}
	}
	return PW_OK;
}

/* Steps. */

struct step {
	const struct op *op;
	struct args args;
	const char *ret;
	json_t *post;
	const char *line; /* for messages */
};

static void PW_PRINTF(3, 4) wrong(struct replay *r, const struct step *s, const char *fmt, ...)
{
	char text[256];
	va_list ap;

	va_start(ap, fmt);
	vsnprintf(text, sizeof text, fmt, ap);
	va_end(ap);
	if (r->out)
		fprintf(r->out, "%s: %s: %s\n", r->file, text, s->line);
}

static bool ret_is_known(const char *ret)
{
	for (int c = 0; c < PEF_CODE_COUNT; c++)
		if (!strcmp(ret, pef_code_name((enum pef_code)c)))
			return true;
	return !strcmp(ret, "error");
}

static bool ret_matches(const char *ret, enum pef_code code)
{
	if (!strcmp(ret, "error"))
		return code != PEF_H_SUCCESS;
	return !strcmp(ret, pef_code_name(code));
}

/* A SLOT op says just that it failed, and why is the model's own. */
static const char *ret_shown(const struct step *s, enum pef_code code)
{
	return code != PEF_H_SUCCESS && !strcmp(s->ret, "error") ? "error" : pef_code_name(code);
}

/* Splits "vm:gfn". */
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

static void state_text(const struct pef_vm *vm, uint64_t gfn, char out[32])
{
	struct pef_run run;

	if (!pef_run_at(vm, gfn, gfn + 1, &run))
		run.state = PEF_NO;
	if (run.state == PEF_SI)
		snprintf(out, 32, "SI%" PRIu64, run.frame);
	else
		snprintf(out, 32, "%s", pef_gfn_state_name(run.state));
}

static enum pw_status check_vms(struct replay *r, const struct step *s, const json_t *json, bool *ok)
{
	const char *key;
	json_t *v;

	json_object_foreach ((json_t *)json, key, v) {
		const struct pef_vm *vm = vm_named(r, key, strlen(key));
		const char *want = json_string_value(v);

		if (!vm || !want)
			return pw_fail(r->err, PW_INVALID, "post names VM \"%s\"", key);
		if (!strcmp(want, pef_vm_state_name(vm->state)))
			continue;
		*ok = false;
		wrong(r, s, "%s: expected %s, got %s", key, want, pef_vm_state_name(vm->state));
	}
	return PW_OK;
}

static enum pw_status check_gfns(struct replay *r, const struct step *s, const json_t *json, bool *ok)
{
	const char *key;
	json_t *v;

	json_object_foreach ((json_t *)json, key, v) {
		const char *want = json_string_value(v);
		struct pef_vm *vm;
		uint64_t gfn;
		char got[32];

		if (!read_gfn_key(r, key, &vm, &gfn) || !want)
			return pw_fail(r->err, PW_INVALID, "post names GFN \"%s\"", key);
		state_text(vm, gfn, got);
		if (!strcmp(want, got))
			continue;
		*ok = false;
		wrong(r, s, "%s: expected %s, got %s", key, want, got);
	}
	return PW_OK;
}

static enum pw_status check_post(struct replay *r, const struct step *s, bool *ok)
{
	static const char *const keys[] = { "vms", "gfns", "pool_used", NULL };
	const json_t *vms = json_object_get(s->post, "vms"), *gfns = json_object_get(s->post, "gfns");
	const json_t *used = json_object_get(s->post, "pool_used");
	const char *culprit;
	enum pw_status st;
	uint64_t n;

	if (!keys_known(s->post, keys, &culprit))
		return pw_fail(r->err, PW_INVALID, "unknown post key \"%s\"", culprit);
	if ((vms && !json_is_object(vms)) || (gfns && !json_is_object(gfns)) || (used && !read_u64(used, &n)))
		return pw_fail(r->err, PW_INVALID, "bad value in post");
	if (used && n != r->model.used) {
		*ok = false;
		wrong(r, s, "pool_used: expected %" PRIu64 ", got %" PRIu64, n, r->model.used);
	}
	st = check_vms(r, s, vms, ok);
	return st == PW_OK ? check_gfns(r, s, gfns, ok) : st;
}

/* May this answer, though no success, come with a change? */
static bool refusal_may_change(const struct step *s, enum pef_vm_state before, enum pef_code code)
{
	if (before != PEF_VM_TRANSIENT)
		return false;
	return (s->op->call == do_abort && code == PEF_H_PARAMETER) || (s->op->call == do_done && code == PEF_H_STATE);
}

static enum pw_status run_step(struct replay *r, const struct step *s)
{
	enum pef_vm_state before = s->args.vm->state;
	uint64_t digest = pef_digest(&r->model);
	enum pef_code code;
	enum pw_status st;
	bool ok = true;

	st = s->op->call(&r->model, &s->args, &code);
	if (st != PW_OK)
		return pw_fail(r->err, st, "the model cannot do this step");
	if (!ret_matches(s->ret, code)) {
		ok = false;
		wrong(r, s, "expected %s, got %s", s->ret, ret_shown(s, code));
	}
	if (code != PEF_H_SUCCESS && !refusal_may_change(s, before, code) && pef_digest(&r->model) != digest) {
		ok = false;
		wrong(r, s, "refused, but something changed");
	}
	if (!pef_check(&r->model)) {
		ok = false;
		wrong(r, s, "an invariant is broken");
	}
	st = check_post(r, s, &ok);
	r->tally->steps++;
	r->tally->wrong += !ok;
	return st;
}

static enum pw_status read_step(struct replay *r, const json_t *json, struct step *s)
{
	static const char *const keys[] = { "n", "op", "args", "ret", "post", NULL };
	const char *name = json_string_value(json_object_get(json, "op"));
	const char *culprit;

	if (!keys_known(json, keys, &culprit))
		return pw_fail(r->err, PW_INVALID, "unknown step member \"%s\"", culprit);
	for (size_t i = 0; name && i < PW_ARRAY_LEN(ops); i++)
		if (!strcmp(ops[i].name, name))
			s->op = &ops[i];
	if (!s->op)
		return pw_fail(r->err, PW_INVALID, "unknown op \"%s\"", name ? name : "");
	s->ret = json_string_value(json_object_get(json, "ret"));
	if (!s->ret || !ret_is_known(s->ret))
		return pw_fail(r->err, PW_INVALID, "unknown ret \"%s\"", s->ret ? s->ret : "");
	s->post = json_object_get(json, "post");
	if (!json_is_object(s->post))
		return pw_fail(r->err, PW_INVALID, "a step without post");
	return read_args(r, s->op, json_object_get(json, "args"), &s->args);
}

static enum pw_status replay_line(struct replay *r, const char *line, bool *started)
{
	struct step s = { .line = line };
	json_error_t at;
	enum pw_status st;
	json_t *json = json_loads(line, JSON_REJECT_DUPLICATES, &at);

	if (!json_is_object(json)) {
		json_decref(json);
		return pw_fail(r->err, PW_INVALID, "not a JSON object: %s", at.text);
	}
	if (!*started) {
		st = read_header(r, json);
		*started = st == PW_OK;
	} else {
		st = read_step(r, json, &s);
		if (st == PW_OK)
			st = run_step(r, &s);
	}
	json_decref(json);
	return st;
}

enum pw_status pef_replay(FILE *in, const char *name, FILE *out, struct replay_tally *t, struct pw_err *err)
{
	struct replay r = { .file = name, .out = out, .tally = t, .err = err };
	enum pw_status st = PW_OK;
	bool started = false;
	unsigned number = 0;
	char *line = NULL;
	size_t room = 0;
	ssize_t len;

	while (st == PW_OK && (len = getline(&line, &room, in)) >= 0) {
		number++;
		if (len > 0 && line[len - 1] == '\n')
			line[len - 1] = '\0';
		st = replay_line(&r, line, &started);
		if (st != PW_OK)
			pw_wrap(err, "%s:%u", name, number);
	}
	free(line);
	if (st == PW_OK && !started)
		st = pw_fail(err, PW_INVALID, "%s: empty", name);
	if (started)
		pef_release(&r.model);
	t->files++;
	return st;
}
