#include "tests/lib/ledger_world.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>

static void *heap_alloc(void *ctx, size_t size)
{
	struct heap *h = ctx;

	return h->calls++ == h->fail_at || h->refuse ? NULL : malloc(size);
}

static void heap_free(void *ctx, void *p)
{
	free(p);
}

void world_init(struct world *w)
{
	w->mem = (struct pw_mem){ .alloc = heap_alloc, .free = heap_free, .ctx = &w->heap };
	w->ledger = ledger_new(&w->mem);
}

void world_release(struct world *w)
{
	ledger_free(w->ledger);
	cr_assert_eq(w->mem.used, 0, "%zu bytes leaked", w->mem.used);
}

struct pw_uuid uuid_of(unsigned n)
{
	return (struct pw_uuid){ { (uint8_t)n, 0, 0, 0, 0, 0, 0x40, 0, 0x80, 0, 0, 0, 0, 0, (uint8_t)(n >> 8), 1 } };
}

struct host_spec host_spec_of(unsigned n, const char *boot_id, uint64_t base, uint64_t frames)
{
	return (struct host_spec){ .id = uuid_of(n),
				   .name = "host",
				   .boot_id = boot_id,
				   .arches = 1u << ARCH_SNP | 1u << ARCH_TDX,
				   .has_local = true,
				   .base = base,
				   .frames = frames,
				   .page_shift = 12 };
}

struct host *world_host(struct world *w, unsigned n, const char *boot_id, uint64_t base, uint64_t frames)
{
	struct host_spec spec = host_spec_of(n, boot_id, base, frames);
	struct host_put put;

	cr_assert_eq(ledger_host_put(w->ledger, &spec, &put, &w->why), PROBLEM_NONE, "%s", w->why.detail);
	return put.host;
}

struct pool *world_pool(struct world *w, const char *name, uint64_t base, uint64_t frames, struct host *const *hosts,
			size_t n)
{
	struct pool_spec spec = { name, base, frames, 12, hosts, n };
	struct pool *p;
	bool created;

	cr_assert_eq(ledger_pool_put(w->ledger, &spec, &p, &created, &w->why), PROBLEM_NONE, "%s", w->why.detail);
	return p;
}

struct vm *world_vm(struct world *w, unsigned n, struct host *h, const struct slot *slots, size_t count)
{
	struct vm_spec spec = {
		.id = uuid_of(n), .name = "vm", .host = h, .arch = ARCH_SNP, .slots = slots, .slot_count = count
	};
	struct vm *vm;

	cr_assert_eq(ledger_vm_create(w->ledger, &spec, &vm, &w->why), PROBLEM_NONE, "%s", w->why.detail);
	return vm;
}

void world_vm_to(struct world *w, struct vm *vm, enum vm_state to)
{
	if (to != VM_NORMAL)
		cr_assert_eq(ledger_vm_event(w->ledger, vm, VM_INIT_START, &w->why), PROBLEM_NONE);
	if (to == VM_SECURE)
		cr_assert_eq(ledger_vm_event(w->ledger, vm, VM_INIT_DONE, &w->why), PROBLEM_NONE);
}

enum pw_problem world_apply(struct world *w, struct host *h, const struct vm *vm, enum gfn_op op, uint64_t gfn,
			    uint64_t count, const char *pool, uint64_t pfn)
{
	struct gfn_run run = { gfn, count, pfn };
	struct item it = { .vm = vm->id, .op = op, .framed = pool, .pool = pool, .runs = &run, .run_count = 1 };
	bool changed;

	return ledger_apply(w->ledger, h, &it, &changed, &w->why);
}

static void dump_tree(FILE *f, const struct tree *t)
{
	for (uint64_t at = 0; at < TREE_PAGES;) {
		struct tree_run r = tree_run_at(t, at, TREE_PAGES);

		if (r.entry)
			fprintf(f, "  %" PRIu64 " +%" PRIu64 ": %#" PRIx64 "\n", r.first, r.count, r.entry);
		at += r.count;
	}
}

static void dump_id(FILE *f, const struct pw_uuid *id)
{
	char text[PW_UUID_TEXT];

	pw_uuid_format(id, text);
	fputs(text, f);
}

static void dump_pool(FILE *f, const struct pool *p)
{
	fprintf(f, " pool %s base %" PRIu64 " frames %" PRIu64 " shift %u bound %" PRIu64 " quarantined %" PRIu64 "\n",
		p->name, p->base, p->frames, p->page_shift, p->bound, p->quarantined);
	dump_tree(f, &p->owners);
}

static void dump_host(FILE *f, const struct host *h)
{
	fprintf(f, "host ");
	dump_id(f, &h->id);
	fprintf(f, " %s boot %s epoch %" PRIu64 " fenced %d arches %#x shift %u vms %" PRIu64, h->name, h->boot_id,
		h->epoch, h->fenced, h->arches, h->page_shift, h->vms);
	for (unsigned i = 0; i < HOST_POOLS_MAX; i++)
		if (h->pools[i])
			fprintf(f, " %u:%s", i, h->pools[i]->name);
	fputs("\n", f);
	if (h->pools[0])
		dump_pool(f, h->pools[0]);
}

static void dump_vm(FILE *f, const struct vm *vm)
{
	fprintf(f, "vm ");
	dump_id(f, &vm->id);
	fprintf(f, " %s on ", vm->name);
	dump_id(f, &vm->host->id);
	fprintf(f, " %s %s (%s)%s epoch %" PRIu64 " mask %#" PRIx64 " bit %u number %" PRIu32 "\n", arch_name(vm->arch),
		vm_state_name(vm->state), vm_arch_state(vm) ? vm_arch_state(vm) : "",
		vm->on_hardware ? " on hardware" : "", vm->epoch, vm->alias.mask, vm->shared_bit, vm->number);
	for (size_t i = 0; i < vm->slot_count; i++)
		fprintf(f, " slot %" PRIu32 " at %" PRIu64 " +%" PRIu64 "\n", vm->slots[i].number, vm->slots[i].base,
			vm->slots[i].pages);
	for (int s = 0; s < GFN_STATE_COUNT; s++)
		fprintf(f, " %" PRIu64, vm->counts.pages[s]);
	fputs("\n", f);
	dump_tree(f, &vm->pages);
}

char *ledger_dump(const struct ledger *l)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	cr_assert(f);
	for (size_t i = 0; i < ledger_host_count(l); i++)
		dump_host(f, ledger_host_at(l, i));
	for (size_t i = 0; i < ledger_pool_count(l); i++)
		dump_pool(f, ledger_pool_at(l, i));
	for (size_t i = 0; i < ledger_vm_count(l); i++)
		dump_vm(f, ledger_vm_at(l, i));
	cr_assert_eq(fclose(f), 0);
	return text;
}

void world_holds(const struct world *w)
{
	struct pw_err err = { 0 };

	cr_assert(ledger_check(w->ledger, &err), "%s", err.msg);
}

void world_is_as(const struct world *w, char *before)
{
	char *now = ledger_dump(w->ledger);

	world_holds(w);
	cr_assert_str_eq(now, before);
	free(now);
	free(before);
}
