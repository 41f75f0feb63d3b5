#include "agents/loadgen.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#define LOAD_VMS_MAX 256

static const struct load_key {
	const char *name;
	size_t at;
	uint64_t min, max;
} keys[] = {
	{ "vms", offsetof(struct load_spec, vms), 1, LOAD_VMS_MAX },
	{ "pages", offsetof(struct load_spec, pages), (uint64_t)LOAD_UNIT * 8, (uint64_t)1 << 30 },
	{ "rate", offsetof(struct load_spec, rate), 1, 100000 },
	{ "seed", offsetof(struct load_spec, seed), 0, INT64_MAX },
};

static enum pw_status parse_pair(const char *pair, size_t len, struct load_spec *out, struct pw_err *err)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(keys); i++) {
		size_t n = strlen(keys[i].name);
		unsigned long long v;
		char *end;

		if (len <= n + 1 || strncmp(pair, keys[i].name, n) != 0 || pair[n] != '=')
			continue;
		errno = 0;
		v = strtoull(pair + n + 1, &end, 10);
		if (errno || end != pair + len || pair[n + 1] == '-' || v < keys[i].min || v > keys[i].max)
			return pw_fail(err, PW_INVALID, "--load: %s is not a number from %" PRIu64 " to %" PRIu64,
				       keys[i].name, keys[i].min, keys[i].max);
		memcpy((char *)out + keys[i].at, &(uint64_t){ v }, sizeof(uint64_t));
		return PW_OK;
	}
	return pw_fail(err, PW_INVALID, "--load: '%.*s' is none of vms=, pages=, rate=, seed=", (int)len, pair);
}

enum pw_status load_spec_parse(const char *text, struct load_spec *out, struct pw_err *err)
{
	struct load_spec spec = { .vms = 2, .pages = 4096, .rate = 20, .seed = 1 };

	while (*text) {
		size_t len = strcspn(text, ",");
		enum pw_status st = parse_pair(text, len, &spec, err);

		if (st != PW_OK)
			return st;
		text += len;
		text += *text == ',';
	}
	*out = spec;
	return PW_OK;
}

enum pw_status load_vm_init(struct load_vm *vm, uint64_t pages, enum load_guest guest, struct pw_err *err)
{
	*vm = (struct load_vm){ .pages = pages, .units = pages / LOAD_UNIT, .guest = guest };
	vm->unit = calloc(vm->units, 1);
	if (!vm->unit)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a VM's model");
	vm->bounce = guest == GUEST_PLAYED ? vm->units / 16 + 1 : 0;
	return PW_OK;
}

void load_vm_release(struct load_vm *vm)
{
	free(vm->unit);
	*vm = (struct load_vm){ 0 };
}

static uint64_t below(uint64_t *random, uint64_t n)
{
	return next_random(random) % n;
}

/* What a unit's state lets a guest (or its host) do, and how often, in percent. */
static const struct habit {
	unsigned percent, pressed; /* pressed: while frames are short */
	struct load_action action;
} habits[][2] = {
	[UNIT_IN] = { { 60, 5, { .kind = OPERATION_SHARE } }, { 40, 95, { .kind = OPERATION_PAGE_OUT } } },
	[UNIT_OUT] = { { 75, 10, { .kind = OPERATION_PAGE_IN } }, { 25, 90, { .kind = OPERATION_SHARE } } },
	[UNIT_SHARED] = { { 70, 10, { .kind = OPERATION_UNSHARE, .resident = true } },
			  { 30, 90, { .kind = OPERATION_UNSHARE } } },
	[UNIT_MIXED] = { { 100, 100, { .kind = OPERATION_SHARE } }, { 0, 0, { .kind = OPERATION_SHARE } } },
};

static uint64_t alike_from(const struct load_vm *vm, uint64_t at, uint64_t max)
{
	uint64_t n = 1;

	while (n < max && at + n < vm->units && vm->unit[at + n] == vm->unit[at])
		n++;
	return n;
}

/* What a host does to a guest that is not its own: pages it out and in again. */
static struct load_action page_one(const struct load_vm *vm, uint64_t at, uint64_t *random)
{
	uint64_t tries = 0;

	while (tries++ < vm->units && vm->unit[at] != UNIT_IN && vm->unit[at] != UNIT_OUT)
		at = (at + 1) % vm->units;
	if (tries > vm->units)
		return (struct load_action){ .kind = OPERATION_TERMINATE };
	return (struct load_action){ .kind = vm->unit[at] == UNIT_IN ? OPERATION_PAGE_OUT : OPERATION_PAGE_IN,
				     .gfn = at * LOAD_UNIT,
				     .count = alike_from(vm, at, 1 + below(random, 4)) * LOAD_UNIT };
}

struct load_action load_vm_next(struct load_vm *vm, uint64_t *random)
{
	const struct habit *h;
	struct load_action a;
	uint64_t at, percent;

	if (!vm->running)
		return (struct load_action){ .kind = OPERATION_LAUNCH };
	if (vm->age >= vm->life)
		return (struct load_action){ .kind = OPERATION_TERMINATE };
	at = below(random, vm->units);
	if (vm->guest == GUEST_REAL)
		return page_one(vm, at, random);
	h = habits[vm->unit[at]];
	percent = below(random, 100);
	a = percent < (vm->pressed ? h[0].pressed : h[0].percent) ? h[0].action : h[1].action;
	a.gfn = at * LOAD_UNIT;
	a.count = alike_from(vm, at, 1 + below(random, below(random, 8) ? 8 : 64)) * LOAD_UNIT;
	return a;
}

static void set_units(struct load_vm *vm, const struct load_action *a, enum load_unit to)
{
	memset(vm->unit + a->gfn / LOAD_UNIT, (int)to, a->count / LOAD_UNIT);
}

void load_vm_forget(struct load_vm *vm)
{
	memset(vm->unit, (int)UNIT_MIXED, vm->units);
}

void load_vm_learn(struct load_vm *vm, uint64_t gfn, uint64_t count, enum load_unit state)
{
	uint64_t first = gfn / LOAD_UNIT + (gfn % LOAD_UNIT != 0), end = (gfn + count) / LOAD_UNIT;

	if (end > vm->units)
		end = vm->units;
	if (first < end)
		memset(vm->unit + first, (int)state, end - first);
}

static void boot(struct load_vm *vm)
{
	memset(vm->unit, UNIT_IN, vm->units);
	memset(vm->unit, UNIT_SHARED, vm->bounce);
	vm->running = true;
	vm->pressed = false;
	vm->age = 0;
	vm->life = 200 + vm->units % 100;
}

void load_vm_ended(struct load_vm *vm, const struct load_action *a, enum load_end end)
{
	vm->age++;
	vm->pressed = end == LOAD_PRESSED || (vm->pressed && a->kind != OPERATION_PAGE_OUT);
	if (end != LOAD_DONE)
		return;
	switch (a->kind) {
	case OPERATION_LAUNCH: boot(vm); return;
	case OPERATION_TERMINATE:
	case OPERATION_ABORT: vm->running = false; return;
	case OPERATION_SHARE: set_units(vm, a, UNIT_SHARED); return;
	case OPERATION_UNSHARE: set_units(vm, a, a->resident ? UNIT_IN : UNIT_OUT); return;
	case OPERATION_PAGE_IN: set_units(vm, a, UNIT_IN); return;
	case OPERATION_PAGE_OUT: set_units(vm, a, UNIT_OUT); return;
	case OPERATION_PLUG:
	case OPERATION_UNPLUG:
	case OPERATION_ADOPT:
	case OPERATION_END: /* of VMs that are none of the load's */
	case OPERATION_KIND_COUNT: return;
	}
}
