/*
 * A fault is "OP:N[:fail|:delay=MS|:crash|:crash-after]": the N-th call (from 1) of the op fails with PW_BACKEND
 * without reaching hardware (so it does by default), waits before it goes on, or ends the process before or after
 * hardware was asked, with the status of a kill -9. Several, separated by commas, act in their order. An op that
 * answers nothing cannot fail. "frame:N" is no op: an emulated machine itself refuses to give back the N-th frame that
 * it is asked for (backend_fault_frame); here it does nothing.
 */
#include "agents/backend.h"

#include <errno.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#define EXIT_KILLED 137
#define DELAY_MAX   600000ul

/* Ops that answer with a status, and ops that do not: name, parameters and arguments after the backend. */
#define OPS(X)                                                                                                         \
	X(create_vm, (struct backend * b, const struct backend_vm_spec *spec, struct pw_err *err), spec, err)          \
	X(vm_event, (struct backend * b, const struct pw_uuid *vm, enum vm_event e, struct pw_err *err), vm, e, err)   \
	X(run_vm, (struct backend * b, const struct pw_uuid *vm, struct pw_err *err), vm, err)                         \
	X(destroy_vm, (struct backend * b, const struct pw_uuid *vm, struct pw_err *err), vm, err)                     \
	X(map_slot, (struct backend * b, const struct pw_uuid *vm, const struct slot *s, struct pw_err *err), vm, s,   \
	  err)                                                                                                         \
	X(unmap_slot, (struct backend * b, const struct pw_uuid *vm, uint32_t number, struct pw_err *err), vm, number, \
	  err)                                                                                                         \
	X(reserve,                                                                                                     \
	  (struct backend * b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count, uint64_t *pfns,                 \
	   struct pw_err *err),                                                                                        \
	  vm, gfn, count, pfns, err)                                                                                   \
	X(page_in,                                                                                                     \
	  (struct backend * b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count, const uint64_t *pfns,           \
	   struct pw_err *err),                                                                                        \
	  vm, gfn, count, pfns, err)                                                                                   \
	X(page_out, (struct backend * b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count, struct pw_err *err),  \
	  vm, gfn, count, err)                                                                                         \
	X(share, (struct backend * b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count, struct pw_err *err), vm, \
	  gfn, count, err)                                                                                             \
	X(unshare, (struct backend * b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count, struct pw_err *err),   \
	  vm, gfn, count, err)                                                                                         \
	X(set_ripas,                                                                                                   \
	  (struct backend * b, const struct pw_uuid *vm, const struct backend_ripas *what, uint64_t *done,             \
	   struct pw_err *err),                                                                                        \
	  vm, what, done, err)                                                                                         \
	X(each_vm, (struct backend * b, backend_vm_fn fn, void *ctx, struct pw_err *err), fn, ctx, err)                \
	X(read_slots,                                                                                                  \
	  (struct backend * b, const struct pw_uuid *vm, backend_slot_fn fn, void *ctx, unsigned *shared_bit,          \
	   struct pw_err *err),                                                                                        \
	  vm, fn, ctx, shared_bit, err)                                                                                \
	X(read_state,                                                                                                  \
	  (struct backend * b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count, backend_run_fn fn, void *ctx,   \
	   struct pw_err *err),                                                                                        \
	  vm, gfn, count, fn, ctx, err)                                                                                \
	X(read_stuck, (struct backend * b, backend_run_fn fn, void *ctx, struct pw_err *err), fn, ctx, err)            \
	X(last_exit,                                                                                                   \
	  (struct backend * b, const struct pw_uuid *vm, unsigned vcpu, struct backend_exit *out, struct pw_err *err), \
	  vm, vcpu, out, err)                                                                                          \
	X(wait, (struct backend * b, unsigned timeout_ms, struct backend_request *out, struct pw_err *err),            \
	  timeout_ms, out, err)
#define SILENT_OPS(X)                                                                                                  \
	X(unreserve,                                                                                                   \
	  (struct backend * b, const struct pw_uuid *vm, uint64_t gfn, uint64_t count, const uint64_t *pfns), vm, gfn, \
	  count, pfns)                                                                                                 \
	X(complete, (struct backend * b, const struct backend_request *rq, enum pw_status st), rq, st)

#define ENUM_(op, params, ...) OP_##op,
#define NAME_(op, params, ...) #op,
enum op { OPS(ENUM_) OP_SILENT, OP_BEFORE_SILENT_ = OP_SILENT - 1, SILENT_OPS(ENUM_) OP_FRAME, OP_COUNT };
static const char *const op_names[OP_COUNT] = { OPS(NAME_) SILENT_OPS(NAME_)[OP_FRAME] = "frame" };

enum effect { EFFECT_FAIL, EFFECT_DELAY, EFFECT_CRASH, EFFECT_CRASH_AFTER };
struct fault {
	enum op op;
	unsigned long nth;
	enum effect effect;
	unsigned long delay_ms;
};

struct faulty {
	struct backend base;
	struct backend_ops ops; /* as inner's, by name */
	struct backend *inner;  /* owned */
	atomic_ulong calls[OP_COUNT];
	size_t fault_count;
	struct fault faults[];
};

static struct faulty *faulty_of(struct backend *b)
{
	return PW_CONTAINER_OF(b, struct faulty, base);
}

/* Acts on the faults of the nth call of an op before hardware is asked; PW_BACKEND: it must not be. */
static enum pw_status before(struct faulty *f, enum op op, unsigned long nth, struct pw_err *err)
{
	for (size_t i = 0; i < f->fault_count; i++) {
		const struct fault *t = &f->faults[i];
		struct timespec rest = { (time_t)(t->delay_ms / 1000), (long)(t->delay_ms % 1000) * 1000000 };

		if (t->op != op || t->nth != nth)
			continue;
		switch (t->effect) {
		case EFFECT_FAIL: return pw_fail(err, PW_BACKEND, "injected fault: %s, call %lu", op_names[op], nth);
		case EFFECT_DELAY:
			while (nanosleep(&rest, &rest) && errno == EINTR)
				;
			break;
		case EFFECT_CRASH: _exit(EXIT_KILLED);
		case EFFECT_CRASH_AFTER: break;
		}
	}
	return PW_OK;
}

static void after(const struct faulty *f, enum op op, unsigned long nth)
{
	for (size_t i = 0; i < f->fault_count; i++)
		if (f->faults[i].op == op && f->faults[i].nth == nth && f->faults[i].effect == EFFECT_CRASH_AFTER)
			_exit(EXIT_KILLED);
}

/* clang-format off */
#define WRAP(op, params, ...)                                               \
	static enum pw_status faulty_##op params                            \
	{                                                                   \
		struct faulty *f = faulty_of(b);                            \
		unsigned long nth = atomic_fetch_add(&f->calls[OP_##op], 1) + 1; \
		enum pw_status st = before(f, OP_##op, nth, err);           \
                                                                            \
		if (st != PW_OK)                                            \
			return st;                                          \
		st = f->inner->ops->op(f->inner, __VA_ARGS__);              \
		after(f, OP_##op, nth);                                     \
		return st;                                                  \
	}
#define WRAP_SILENT(op, params, ...)                                        \
	static void faulty_##op params                                      \
	{                                                                   \
		struct faulty *f = faulty_of(b);                            \
		unsigned long nth = atomic_fetch_add(&f->calls[OP_##op], 1) + 1; \
                                                                            \
		if (before(f, OP_##op, nth, NULL) != PW_OK)                 \
			return;                                             \
		f->inner->ops->op(f->inner, __VA_ARGS__);                   \
		after(f, OP_##op, nth);                                     \
	}
/* clang-format on */
OPS(WRAP)
SILENT_OPS(WRAP_SILENT)

static void faulty_info(struct backend *b, struct backend_info *out)
{
	struct faulty *f = faulty_of(b);

	f->inner->ops->info(f->inner, out);
}

static void faulty_kick(struct backend *b)
{
	struct faulty *f = faulty_of(b);

	f->inner->ops->kick(f->inner);
}

static void faulty_figures(struct backend *b, backend_figure_fn fn, void *ctx)
{
	struct faulty *f = faulty_of(b);

	f->inner->ops->figures(f->inner, fn, ctx);
}

static void faulty_close(struct backend *b)
{
	struct faulty *f = faulty_of(b);

	f->inner->ops->close(f->inner);
	free(f);
}

#define MEMBER_(op, params, ...) .op = faulty_##op,
static const struct backend_ops faulty_ops = { .info = faulty_info,
					       .kick = faulty_kick,
					       .figures = faulty_figures,
					       .close = faulty_close,
					       OPS(MEMBER_) SILENT_OPS(MEMBER_) };

/* Reading the specification. */

/* The number at *at, of at most `max`; moves *at past it. */
static bool read_number(const char **at, unsigned long max, unsigned long *out)
{
	unsigned long n = 0;
	const char *c = *at;

	for (; *c >= '0' && *c <= '9' && n <= max; c++)
		n = n * 10 + (unsigned long)(*c - '0');
	if (c == *at || n > max)
		return false;
	*at = c;
	*out = n;
	return true;
}

static bool skip(const char **at, const char *text)
{
	size_t len = strlen(text);

	if (strncmp(*at, text, len) != 0)
		return false;
	*at += len;
	return true;
}

static bool ends(const char *at)
{
	return *at == '\0' || *at == ',';
}

static bool read_op(const char **at, enum op *out)
{
	for (int op = 0; op < OP_COUNT; op++) {
		const char *end = *at;

		if (!skip(&end, op_names[op]) || *end != ':')
			continue;
		*at = end + 1;
		*out = (enum op)op;
		return true;
	}
	return false;
}

static bool read_effect(const char **at, struct fault *out)
{
	out->effect = EFFECT_FAIL;
	if (ends(*at) || skip(at, ":fail"))
		return true;
	if (skip(at, ":delay=")) {
		out->effect = EFFECT_DELAY;
		return read_number(at, DELAY_MAX, &out->delay_ms);
	}
	out->effect = EFFECT_CRASH_AFTER;
	if (skip(at, ":crash-after"))
		return true;
	out->effect = EFFECT_CRASH;
	return skip(at, ":crash");
}

static bool read_fault(const char **at, struct fault *out)
{
	if (!read_op(at, &out->op) || !read_number(at, 1000000000, &out->nth) || out->nth == 0)
		return false;
	if (!read_effect(at, out) || !ends(*at))
		return false;
	if (out->op == OP_FRAME)
		return out->effect == EFFECT_FAIL;
	return out->effect != EFFECT_FAIL || out->op < OP_SILENT;
}

static size_t count_faults(const char *text)
{
	size_t n = 1;

	for (; *text; text++)
		n += *text == ',';
	return n;
}

static enum pw_status read_faults(struct faulty *f, const char *text, struct pw_err *err)
{
	for (const char *at = text;; at++) {
		const char *begin = at;

		if (!read_fault(&at, &f->faults[f->fault_count]))
			return pw_fail(
				err, PW_INVALID,
				"bad fault \"%s\": OP:N[:fail|:delay=MS|:crash|:crash-after], OP an op of backends "
				"(page_in, share, vm_event ...), or frame:N",
				begin);
		f->fault_count++;
		if (*at == '\0')
			return PW_OK;
	}
}

uint64_t backend_fault_frame(const char *fault, size_t nth)
{
	for (const char *at = fault ? fault : ""; *at; at += *at == ',') {
		struct fault t;

		if (!read_fault(&at, &t))
			return 0;
		if (t.op == OP_FRAME && nth-- == 0)
			return t.nth;
	}
	return 0;
}

enum pw_status backend_faulty_wrap(struct backend *inner, const char *fault, struct backend **out, struct pw_err *err)
{
	struct faulty *f;
	enum pw_status st;

	if (!fault || !*fault) {
		*out = inner;
		return PW_OK;
	}
	f = calloc(1, sizeof *f + count_faults(fault) * sizeof f->faults[0]);
	if (!f)
		return pw_fail(err, PW_NO_MEMORY, "no memory for faults");
	st = read_faults(f, fault, err);
	if (st != PW_OK) {
		free(f);
		return st;
	}
	f->inner = inner;
	f->ops = faulty_ops;
	f->ops.name = inner->ops->name;
	if (!inner->ops->last_exit)
		f->ops.last_exit = NULL;
	if (!inner->ops->set_ripas)
		f->ops.set_ripas = NULL;
	f->base.ops = &f->ops;
	*out = &f->base;
	return PW_OK;
}
