#include "agents/machine_pkvm.h"

#include <stddef.h>
#include <string.h>

/* ESR_EL2. */
#define ESR_CLASS(ec) ((uint64_t)(ec) << 26)
#define ESR_IL        ((uint64_t)1 << 25)
#define ESR_LEVEL_3   ((uint64_t)0x07) /* a translation fault */
#define ESR_WFI       (ESR_CLASS(0x01) | ESR_IL)
#define ESR_HVC64     (ESR_CLASS(0x16) | ESR_IL)
#define ESR_DABT      (ESR_CLASS(0x24) | ESR_IL | ESR_LEVEL_3)

/* What the guest has in its registers when it makes a hypercall on a page; function 0: it makes none. It will go on
 * behind the call. */
static void call_with(struct pkvm_vcpu *v, uint64_t function, uint64_t gfn)
{
	if (!function)
		return;
	v->ctxt.x[0] = function;
	v->ctxt.x[1] = gfn << PKVM_PAGE_SHIFT;
	v->ctxt.x[2] = v->ctxt.x[3] = 0;
	v->ctxt.pc += 4;
}

/* The host answers the last exit and lets the guest run to the next one, of which it keeps what it sees. */
static enum pw_status run_to(struct pkvm_host *h, struct pkvm_guest *g, uint64_t function, uint64_t gfn,
			     const struct pkvm_trap *t, struct pw_err *err)
{
	struct pkvm_wish wish = { .skip = g->exited && g->seen.exit == PKVM_EXIT_WFX };
	struct pkvm_vcpu *v;
	enum pw_status st =
		machine_pkvm_answer("run", pkvm_runnable(&h->hyp, machine_pkvm_cpu(g), g->handle, 0, &v), err);

	if (st == PW_OK)
		st = machine_pkvm_answer("entry of the vCPU", pkvm_vcpu_enter(v, &wish), err);
	if (st != PW_OK)
		return st;
	call_with(v, function, gfn);
	st = machine_pkvm_answer("exit of the vCPU", pkvm_vcpu_exit(v, t), err);
	if (st != PW_OK)
		return st;
	g->seen = v->view;
	g->exited = true;
	return PW_OK;
}

enum pw_status machine_pkvm_first_exit(struct pkvm_host *h, struct pkvm_guest *g, struct pw_err *err)
{
	return run_to(h, g, 0, 0, &(struct pkvm_trap){ .exit = PKVM_EXIT_WFX, .esr = ESR_WFI }, err);
}

enum pw_status machine_pkvm_touches(struct pkvm_host *h, struct pkvm_guest *g, uint64_t gfn, struct pw_err *err)
{
	struct pkvm_trap t = {
		.exit = PKVM_EXIT_LOAD, .esr = ESR_DABT, .ipa = gfn << PKVM_PAGE_SHIFT, .not_guarded = true
	};

	return g->exited ? run_to(h, g, 0, 0, &t, err) : PW_OK;
}

/* The hypervisor makes a fault of the call; it is made again when the page is there. */
enum pw_status machine_pkvm_shares(struct pkvm_host *h, struct pkvm_guest *g, uint64_t gfn, struct pw_err *err)
{
	struct pkvm_trap t = { .exit = PKVM_EXIT_SHARE, .esr = ESR_HVC64, .ipa = gfn << PKVM_PAGE_SHIFT };

	return g->exited ? run_to(h, g, PKVM_FN_MEM_SHARE, gfn, &t, err) : PW_OK;
}

enum pw_status machine_pkvm_relinquishes(struct pkvm_host *h, struct pkvm_guest *g, uint64_t gfn, struct pw_err *err)
{
	struct pkvm_trap t = { .exit = PKVM_EXIT_MEM_RELINQUISH, .esr = ESR_HVC64 };

	return g->exited ? run_to(h, g, PKVM_FN_MEM_RELINQUISH, gfn, &t, err) : PW_OK;
}

/* Where the host's view has an item of the exit table. */
static const struct {
	const char *item;
	size_t at;
} places[] = {
	{ "x0", offsetof(struct pkvm_host_view, x[0]) },       { "x1", offsetof(struct pkvm_host_view, x[1]) },
	{ "x2", offsetof(struct pkvm_host_view, x[2]) },       { "x3", offsetof(struct pkvm_host_view, x[3]) },
	{ "pstate", offsetof(struct pkvm_host_view, pstate) }, { "SCTLR", offsetof(struct pkvm_host_view, sctlr) },
	{ "ESR_EL2", offsetof(struct pkvm_host_view, esr) },   { "fault IPA", offsetof(struct pkvm_host_view, ipa) },
	{ "fault VA", offsetof(struct pkvm_host_view, va) },
};

static bool value_of(const struct pkvm_host_view *view, const char *item, uint64_t *out)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(places); i++)
		if (strcmp(places[i].item, item) == 0) {
			memcpy(out, (const char *)view + places[i].at, sizeof *out);
			return true;
		}
	return false;
}

bool machine_pkvm_last_exit(const void *model, const struct machine_vm *vm, unsigned vcpu, struct backend_exit *out)
{
	const struct pkvm_guest *g = vm->guest;
	const struct pkvm_host_view *view = &g->seen;
	struct pkvm_exit_item item;
	uint64_t value;

	if (vcpu != 0 || !g->exited)
		return false;
	*out = (struct backend_exit){ .exit = pkvm_exit_name(view->exit) };
	for (unsigned n = 0; pkvm_exit_item(view->exit, view->esr, n, &item); n++) {
		if (!item.bits || out->count == PW_ARRAY_LEN(out->items) || !value_of(view, item.name, &value))
			continue;
		out->items[out->count].name = item.name;
		out->items[out->count++].value = value & item.bits;
	}
	return true;
}
