#include "engine/ledger.h"

#include <assert.h>
#include <stdio.h>
#include <string.h>

#include "engine/ledger_impl.h"

#define TEXT_(name, text) [name] = text,
static const char *const arch_names[ARCH_COUNT] = { ARCHES(TEXT_) };

const char *arch_name(enum arch a)
{
	return arch_names[a];
}

bool arch_from_name(const char *name, enum arch *out)
{
	for (int a = 0; a < ARCH_COUNT; a++)
		if (strcmp(arch_names[a], name) == 0) {
			*out = (enum arch)a;
			return true;
		}
	return false;
}

enum pw_problem refuse_memory(struct refusal *why, const char *what)
{
	return refuse(why, PROBLEM_NO_MEMORY, "out of memory while %s", what);
}

bool range_fits(uint64_t first, uint64_t count)
{
	return count >= 1 && count <= TREE_PAGES && first <= TREE_PAGES - count;
}

static void copy_text(char *to, size_t size, const char *from)
{
	snprintf(to, size, "%s", from ? from : "");
}

/* The ledger itself. */

static int compare_host(const void *key, const void *item)
{
	return memcmp(key, ((const struct host *)item)->id.b, sizeof(struct pw_uuid));
}

static int compare_vm(const void *key, const void *item)
{
	return memcmp(key, ((const struct vm *)item)->id.b, sizeof(struct pw_uuid));
}

static int compare_pool(const void *key, const void *item)
{
	return strcmp(key, ((const struct pool *)item)->name);
}

struct ledger *ledger_new(struct pw_mem *mem)
{
	struct ledger *l = pw_mem_zalloc(mem, sizeof *l);

	if (!l)
		return NULL;
	l->mem = mem;
	arena_init(&l->arena, mem);
	undo_init(&l->undo, mem);
	l->work.walk.limit = l->work.stop = l->work.pause_at = UINT64_MAX;
	index_init(&l->hosts, mem, compare_host);
	index_init(&l->pools, mem, compare_pool);
	index_init(&l->vms, mem, compare_vm);
	return l;
}

static void pool_free(struct ledger *l, struct pool *p)
{
	if (!p)
		return;
	tree_release(&p->owners);
	pw_mem_free(l->mem, p, sizeof *p);
}

static void host_free(struct ledger *l, struct host *h)
{
	pool_free(l, h->pools[0]);
	pw_mem_free(l->mem, h, sizeof *h);
}

void ledger_free(struct ledger *l)
{
	if (!l)
		return;
	ledger_commit(l);
	for (size_t i = 0; i < l->vms.count; i++)
		vm_free(l, l->vms.items[i]);
	for (size_t i = 0; i < l->pools.count; i++)
		pool_free(l, l->pools.items[i]);
	for (size_t i = 0; i < l->hosts.count; i++)
		host_free(l, l->hosts.items[i]);
	notes_release(l);
	index_release(&l->hosts);
	index_release(&l->pools);
	index_release(&l->vms);
	pw_mem_free(l->mem, l->numbers, l->number_capacity * sizeof(struct vm *));
	undo_release(&l->undo);
	arena_release(&l->arena);
	pw_mem_free(l->mem, l, sizeof *l);
}

undo_mark ledger_mark(const struct ledger *l)
{
	return undo_here(&l->undo);
}

void ledger_rollback(struct ledger *l, undo_mark to)
{
	while (undo_here(&l->undo) > to) {
		undo_rollback_last(&l->undo);
		work_done(l, LEDGER_WORK_CHANGE);
	}
}

void ledger_commit(struct ledger *l)
{
	size_t keep = LEDGER_SPARES_MIN + l->arena.nodes / 2;

	undo_commit(&l->undo);
	notes_commit(l);
	arena_trim_to(&l->arena, keep < LEDGER_SPARES ? keep : LEDGER_SPARES);
}

struct undo *ledger_undo(struct ledger *l)
{
	return &l->undo;
}

const struct pw_mem *ledger_mem(const struct ledger *l)
{
	return l->mem;
}

/* Hosts. */

struct host *ledger_host(const struct ledger *l, const struct pw_uuid *id)
{
	return index_find(&l->hosts, id);
}

size_t ledger_host_count(const struct ledger *l)
{
	return l->hosts.count;
}

struct host *ledger_host_at(const struct ledger *l, size_t i)
{
	return l->hosts.items[i];
}

size_t ledger_host_after(const struct ledger *l, const struct pw_uuid *id)
{
	return index_after(&l->hosts, id);
}

struct pool *host_pool(const struct host *h, const char *name, unsigned *place)
{
	bool local = strcmp(name, "local") == 0;

	for (unsigned i = 0; i < (local ? 1 : HOST_POOLS_MAX); i++)
		if (h->pools[i] && strcmp(h->pools[i]->name, name) == 0) {
			*place = i;
			return h->pools[i];
		}
	return NULL;
}

bool pool_has_past(const struct pool *p, uint64_t base, uint64_t frames)
{
	uint64_t end = base + frames;

	if (base > 0 && tree_run_at(&p->owners, 0, base).count < base)
		return true;
	if (base > 0 && tree_get(&p->owners, 0) != 0)
		return true;
	if (frames == 0)
		return p->bound || p->quarantined;
	return end < TREE_PAGES &&
	       (tree_get(&p->owners, end) != 0 || tree_run_at(&p->owners, end, TREE_PAGES).count < TREE_PAGES - end);
}

static enum pw_problem host_check(const struct host *h, const struct host_spec *spec, struct refusal *why)
{
	const struct pool *local = h ? h->pools[0] : NULL;
	bool shares = false;

	if (spec->has_local && (spec->frames > TREE_PAGES || spec->base > TREE_PAGES - spec->frames))
		return refuse(why, PROBLEM_INVALID_REQUEST,
			      "pool local: base_pfn %" PRIu64 " + frames %" PRIu64 " pass 2^40", spec->base,
			      spec->frames);
	if (!h)
		return PROBLEM_NONE;
	if (local && pool_has_past(local, spec->base, spec->has_local ? spec->frames : 0) &&
	    strcmp(h->boot_id, spec->boot_id) == 0)
		return refuse(why, PROBLEM_POOL_IN_USE,
			      "pool local: frames outside [%" PRIu64 ", +%" PRIu64 ") are bound or in quarantine",
			      spec->base, spec->has_local ? spec->frames : 0);
	for (unsigned i = 1; i < HOST_POOLS_MAX; i++)
		shares |= h->pools[i] != NULL;
	if (h->page_shift != (spec->has_local ? spec->page_shift : 12) && (h->vms || shares))
		return refuse(why, PROBLEM_POOL_MISMATCH,
			      "page_shift %u of a host that has VMs or shared pools cannot become %u", h->page_shift,
			      spec->page_shift);
	return PROBLEM_NONE;
}

static void unmake_host(void *ctx, const void *args)
{
	struct ledger *l = ctx;
	struct host *h = *(struct host *const *)args;

	index_remove(&l->hosts, &h->id);
	host_free(l, h);
}

static struct host *host_make(struct ledger *l, const struct pw_uuid *id)
{
	static const struct undo_ops made = { .rollback = unmake_host };
	struct host *h;

	if (index_reserve(&l->hosts) != PW_OK || undo_reserve(&l->undo, UNDO_RECORD(sizeof h)) != PW_OK)
		return NULL;
	h = pw_mem_zalloc(l->mem, sizeof *h);
	if (!h)
		return NULL;
	h->id = *id;
	h->epoch = 1;
	h->page_shift = 12;
	index_insert(&l->hosts, id, h);
	undo_push(&l->undo, &made, l, &h, sizeof h);
	return h;
}

static void unmake_local(void *ctx, const void *args)
{
	struct ledger *l = ctx;
	struct pool *p = *(struct pool *const *)args;

	p->host->pools[0] = NULL;
	pool_free(l, p);
}

/* The host's local pool, as the spec says; it was checked. A host without frames keeps an empty pool. */
static enum pw_status local_shape(struct ledger *l, struct host *h, const struct host_spec *spec)
{
	static const struct undo_ops made = { .rollback = unmake_local };
	struct pool *p = h->pools[0];

	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof p) + 3 * UNDO_RECORD(8)) != PW_OK)
		return PW_NO_MEMORY;
	if (!p) {
		p = pw_mem_zalloc(l->mem, sizeof *p);
		if (!p)
			return PW_NO_MEMORY;
		copy_text(p->name, sizeof p->name, "local");
		p->host = h;
		tree_init(&p->owners, &l->arena);
		h->pools[0] = p;
		undo_push(&l->undo, &made, l, &p, sizeof p);
	}
	undo_save(&l->undo, &p->base, sizeof p->base);
	undo_save(&l->undo, &p->frames, sizeof p->frames);
	undo_save(&l->undo, &p->page_shift, sizeof p->page_shift);
	p->base = spec->has_local ? spec->base : 0;
	p->frames = spec->has_local ? spec->frames : 0;
	p->page_shift = h->page_shift;
	return PW_OK;
}

/* Every VM of the host back to normal; what it had in any pool is free. */
static enum pw_status host_reset_vms(struct ledger *l, struct host *h)
{
	for (size_t i = 0; i < l->vms.count; i++) {
		struct vm *vm = l->vms.items[i];

		if (vm->host == h && vm_reset(l, vm) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

static bool host_is_as(const struct host *h, const struct host_spec *spec)
{
	const struct pool *p = h->pools[0];

	return !h->fenced && strcmp(h->boot_id, spec->boot_id) == 0 && strcmp(h->name, spec->name) == 0 &&
	       h->arches == spec->arches && p && p->base == (spec->has_local ? spec->base : 0) &&
	       p->frames == (spec->has_local ? spec->frames : 0) &&
	       h->page_shift == (spec->has_local ? spec->page_shift : 12);
}

static enum pw_status host_change(struct ledger *l, struct host *h, const struct host_spec *spec, struct host_put *out)
{
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof *h)) != PW_OK)
		return PW_NO_MEMORY;
	undo_save(&l->undo, h, sizeof *h);
	out->rebooted = !out->created && strcmp(h->boot_id, spec->boot_id) != 0;
	if (out->rebooted) {
		if (host_reset_vms(l, h) != PW_OK || (h->pools[0] && pool_unquarantine_all(l, h->pools[0]) != PW_OK))
			return PW_NO_MEMORY;
		h->epoch++;
	}
	copy_text(h->name, sizeof h->name, spec->name);
	copy_text(h->boot_id, sizeof h->boot_id, spec->boot_id);
	h->arches = spec->arches;
	h->fenced = false;
	h->page_shift = spec->has_local ? spec->page_shift : 12;
	return local_shape(l, h, spec);
}

enum pw_problem ledger_host_put(struct ledger *l, const struct host_spec *spec, struct host_put *out,
				struct refusal *why)
{
	struct host *h = ledger_host(l, &spec->id);
	struct host_put put = { .host = h, .created = !h };
	undo_mark mark = ledger_mark(l);
	enum pw_problem p = host_check(h, spec, why);

	if (p != PROBLEM_NONE)
		return p;
	if (!h && l->hosts.count >= LEDGER_HOSTS_MAX)
		return refuse(why, PROBLEM_LIMIT, "there are %d hosts already", LEDGER_HOSTS_MAX);
	if (h && host_is_as(h, spec)) {
		*out = put;
		return PROBLEM_NONE;
	}
	put.changed = true;
	if (!h)
		put.host = host_make(l, &spec->id);
	if (!put.host || host_change(l, put.host, spec, &put) != PW_OK) {
		ledger_rollback(l, mark);
		return refuse_memory(why, "registering the host");
	}
	*out = put;
	return PROBLEM_NONE;
}

enum pw_problem ledger_host_fence(struct ledger *l, struct host *h, struct refusal *why)
{
	undo_mark mark = ledger_mark(l);

	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof *h)) != PW_OK)
		return refuse_memory(why, "fencing the host");
	undo_save(&l->undo, h, sizeof *h);
	if (host_reset_vms(l, h) != PW_OK) {
		ledger_rollback(l, mark);
		return refuse_memory(why, "fencing the host");
	}
	h->fenced = true;
	h->epoch++;
	return PROBLEM_NONE;
}

enum pw_problem ledger_host_current(const struct host *h, const char *boot_id, uint64_t epoch, struct refusal *why)
{
	if (h->fenced)
		return refuse(why, PROBLEM_HOST_FENCED, "host is fenced at epoch %" PRIu64 ": register it again",
			      h->epoch);
	if (strcmp(h->boot_id, boot_id) != 0)
		return refuse(why, PROBLEM_HOST_FENCED, "boot_id %s is not the host's current one", boot_id);
	if (h->epoch != epoch)
		return refuse(why, PROBLEM_HOST_FENCED, "epoch %" PRIu64 " is not current: it is %" PRIu64, epoch,
			      h->epoch);
	return PROBLEM_NONE;
}

/* Shared pools. */

struct pool *ledger_pool(const struct ledger *l, const char *name)
{
	return index_find(&l->pools, name);
}

size_t ledger_pool_count(const struct ledger *l)
{
	return l->pools.count;
}

struct pool *ledger_pool_at(const struct ledger *l, size_t i)
{
	return l->pools.items[i];
}

size_t ledger_pool_after(const struct ledger *l, const char *name)
{
	return index_after(&l->pools, name);
}

static bool spec_has(const struct pool_spec *spec, const struct host *h)
{
	for (size_t i = 0; i < spec->host_count; i++)
		if (spec->hosts[i] == h)
			return true;
	return false;
}

/* Has a VM of this host any frame of the pool? */
static bool host_uses(const struct ledger *l, const struct host *h, const struct pool *p)
{
	struct frame_view f;

	for (uint64_t at = p->base; pool_next_owned(l, p, at, p->base + p->frames, &f); at = f.pfn + f.count)
		if (f.vm->host == h)
			return true;
	return false;
}

static bool has_free_place(const struct host *h)
{
	for (unsigned i = 1; i < HOST_POOLS_MAX; i++)
		if (!h->pools[i])
			return true;
	return false;
}

static enum pw_problem pool_check(const struct ledger *l, const struct pool *p, const struct pool_spec *spec,
				  struct refusal *why)
{
	char id[PW_UUID_TEXT];
	unsigned place;

	for (size_t i = 0; i < spec->host_count; i++) {
		const struct host *h = spec->hosts[i];

		pw_uuid_format(&h->id, id);
		if (h->page_shift != spec->page_shift)
			return refuse(why, PROBLEM_POOL_MISMATCH, "host %s has page_shift %u, not %u", id,
				      h->page_shift, spec->page_shift);
		if (!host_pool(h, spec->name, &place) && !has_free_place(h))
			return refuse(why, PROBLEM_LIMIT, "host %s has %d pools already", id, HOST_POOLS_MAX);
	}
	if (!p)
		return PROBLEM_NONE;
	if (pool_has_past(p, spec->base, spec->frames))
		return refuse(why, PROBLEM_POOL_IN_USE,
			      "pool %s: frames outside [%" PRIu64 ", +%" PRIu64 ") are bound or in quarantine",
			      spec->name, spec->base, spec->frames);
	if (p->bound && p->page_shift != spec->page_shift)
		return refuse(why, PROBLEM_POOL_MISMATCH, "pool %s: page_shift cannot change while frames are bound",
			      spec->name);
	for (size_t i = 0; p->bound && i < l->hosts.count; i++) {
		const struct host *h = l->hosts.items[i];

		if (host_pool(h, p->name, &place) && !spec_has(spec, h) && host_uses(l, h, p)) {
			pw_uuid_format(&h->id, id);
			return refuse(why, PROBLEM_POOL_IN_USE, "pool %s: host %s has frames of it bound", spec->name,
				      id);
		}
	}
	return PROBLEM_NONE;
}

static void unmake_pool(void *ctx, const void *args)
{
	struct ledger *l = ctx;
	struct pool *p = *(struct pool *const *)args;

	index_remove(&l->pools, p->name);
	pool_free(l, p);
}

static struct pool *pool_make(struct ledger *l, const char *name)
{
	static const struct undo_ops made = { .rollback = unmake_pool };
	struct pool *p;

	if (index_reserve(&l->pools) != PW_OK || undo_reserve(&l->undo, UNDO_RECORD(sizeof p)) != PW_OK)
		return NULL;
	p = pw_mem_zalloc(l->mem, sizeof *p);
	if (!p)
		return NULL;
	copy_text(p->name, sizeof p->name, name);
	tree_init(&p->owners, &l->arena);
	index_insert(&l->pools, p->name, p);
	undo_push(&l->undo, &made, l, &p, sizeof p);
	return p;
}

static enum pw_status host_set_place(struct ledger *l, struct host *h, unsigned place, struct pool *p)
{
	if (undo_reserve(&l->undo, UNDO_RECORD(sizeof p)) != PW_OK)
		return PW_NO_MEMORY;
	undo_save(&l->undo, &h->pools[place], sizeof p);
	h->pools[place] = p;
	return PW_OK;
}

static enum pw_status pool_attach(struct ledger *l, struct pool *p, const struct pool_spec *spec)
{
	unsigned place;

	for (size_t i = 0; i < l->hosts.count; i++) {
		struct host *h = l->hosts.items[i];

		if (host_pool(h, p->name, &place) && !spec_has(spec, h) && host_set_place(l, h, place, NULL) != PW_OK)
			return PW_NO_MEMORY;
	}
	for (size_t i = 0; i < spec->host_count; i++) {
		struct host *h = spec->hosts[i];

		if (host_pool(h, p->name, &place))
			continue;
		for (place = 1; h->pools[place]; place++)
			;
		if (host_set_place(l, h, place, p) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

enum pw_problem ledger_pool_put(struct ledger *l, const struct pool_spec *spec, struct pool **out, bool *created,
				struct refusal *why)
{
	struct pool *p = ledger_pool(l, spec->name);
	undo_mark mark = ledger_mark(l);
	enum pw_problem problem;
	bool made = !p;

	if (spec->frames > TREE_PAGES || spec->base > TREE_PAGES - spec->frames)
		return refuse(why, PROBLEM_INVALID_REQUEST, "base_pfn %" PRIu64 " + frames %" PRIu64 " pass 2^40",
			      spec->base, spec->frames);
	if (strcmp(spec->name, "local") == 0)
		return refuse(why, PROBLEM_INVALID_REQUEST, "a shared pool cannot be named local");
	problem = pool_check(l, p, spec, why);
	if (problem != PROBLEM_NONE)
		return problem;
	if (made && l->pools.count >= LEDGER_POOLS_MAX)
		return refuse(why, PROBLEM_LIMIT, "there are %d shared pools already", LEDGER_POOLS_MAX);
	if (made)
		p = pool_make(l, spec->name);
	if (!p || undo_reserve(&l->undo, 3 * UNDO_RECORD(8)) != PW_OK)
		goto no_memory;
	undo_save(&l->undo, &p->base, sizeof p->base);
	undo_save(&l->undo, &p->frames, sizeof p->frames);
	undo_save(&l->undo, &p->page_shift, sizeof p->page_shift);
	p->base = spec->base;
	p->frames = spec->frames;
	p->page_shift = spec->page_shift;
	if (pool_attach(l, p, spec) != PW_OK)
		goto no_memory;
	*out = p;
	*created = made;
	return PROBLEM_NONE;
no_memory:
	ledger_rollback(l, mark);
	return refuse_memory(why, "changing the pool");
}
