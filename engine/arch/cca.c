#include "engine/arch/cca.h"

#include <assert.h>
#include <string.h>

#include "engine/arch/cca_impl.h"

#define STATE_SHIFT 56
#define SLOT_SHIFT  40
#define LEVEL_SHIFT 61
#define PAGES_MAX   TREE_PAGES /* of physical memory */

/* Granules. */

uint64_t cca_use_word(const struct cca_use *u)
{
	bool linear = u->state == CCA_DATA || u->state == CCA_RTT;

	return (linear ? TREE_LINEAR : 0) | (uint64_t)u->state << STATE_SHIFT | (uint64_t)u->slot << SLOT_SHIFT |
	       (uint64_t)u->level << LEVEL_SHIFT | u->number;
}

struct cca_use cca_word_use(uint64_t word)
{
	return (struct cca_use){
		.state = (enum cca_granule)(word >> STATE_SHIFT & 7),
		.slot = (unsigned)(word >> SLOT_SHIFT & 0xffff),
		.level = (unsigned)(word >> LEVEL_SHIFT & 3),
		.number = word & TREE_NUMBER,
	};
}

static bool in_memory(const struct cca *m, uint64_t page)
{
	uint64_t base = m->config.base >> CCA_SHIFT;

	return page >= base && page - base < m->config.granules;
}

uint64_t cca_granule_word(const struct cca *m, uint64_t page)
{
	return tree_get(&m->granules, page);
}

enum cca_granule cca_granule_state(const struct cca *m, uint64_t addr)
{
	uint64_t page = addr >> CCA_SHIFT;

	return in_memory(m, page) ? cca_word_use(cca_granule_word(m, page)).state : CCA_NOT_DELEGABLE;
}

bool cca_granule_is(const struct cca *m, uint64_t addr, enum cca_granule s)
{
	return addr % CCA_GRANULE == 0 && cca_granule_state(m, addr) == s;
}

void cca_tree_set(struct tree *t, uint64_t first, uint64_t count, uint64_t word)
{
	struct tree_spot spot;
	enum pw_status st;

	if (count == 1 && tree_find(t, first, &spot)) {
		tree_put(t, first, &spot, word);
		return;
	}
	st = tree_set(t, first, count, word);
	assert(st == PW_OK);
	(void)st;
}

void cca_granules_set(struct cca *m, uint64_t page, uint64_t count, uint64_t word)
{
	cca_tree_set(&m->granules, page, count, word);
}

struct cca_granule_view cca_granule_at(const struct cca *m, uint64_t addr)
{
	struct cca_granule_view v = { .state = cca_granule_state(m, addr) };
	struct cca_use u;

	if (v.state == CCA_UNDELEGATED || v.state == CCA_DELEGATED || v.state == CCA_NOT_DELEGABLE)
		return v;
	u = cca_word_use(cca_granule_word(m, addr >> CCA_SHIFT));
	v.realm = m->realms[u.slot];
	if (v.state == CCA_REC || v.state == CCA_REC_AUX)
		v.rec = m->recs[u.number];
	if (v.state == CCA_DATA)
		v.ipa = u.number << CCA_SHIFT;
	if (v.state == CCA_RTT) {
		v.level = u.level;
		v.ipa = (u.number * cca_table_pages(u.level)) << CCA_SHIFT;
	}
	return v;
}

struct cca_realm *cca_realm_at(const struct cca *m, uint64_t addr)
{
	if (!cca_granule_is(m, addr, CCA_RD))
		return NULL;
	return m->realms[cca_word_use(cca_granule_word(m, addr >> CCA_SHIFT)).slot];
}

struct cca_rec *cca_rec_at(const struct cca *m, uint64_t addr)
{
	if (!cca_granule_is(m, addr, CCA_REC))
		return NULL;
	return m->recs[cca_word_use(cca_granule_word(m, addr >> CCA_SHIFT)).number];
}

enum pw_status cca_carve_out(struct cca *m, uint64_t addr, uint64_t count)
{
	uint64_t page = addr >> CCA_SHIFT;
	struct tree_run run;

	if (addr % CCA_GRANULE || !count || count > m->config.granules || !in_memory(m, page) ||
	    !in_memory(m, page + count - 1))
		return PW_INVALID;
	run = tree_run_at(&m->granules, page, page + count);
	if (run.entry != 0 || run.count != count)
		return PW_INVALID;
	if (arena_reserve(&m->arena) != PW_OK)
		return PW_NO_MEMORY;
	cca_granules_set(m, page, count, (uint64_t)CCA_NOT_DELEGABLE << STATE_SHIFT);
	return PW_OK;
}

/* Life. */

enum pw_status cca_init(struct cca *m, struct pw_mem *mem, const struct cca_config *config)
{
	uint64_t base = config->base >> CCA_SHIFT;

	if (config->base % CCA_GRANULE || base >= PAGES_MAX || config->granules > PAGES_MAX - base ||
	    config->rec_aux_count > CCA_AUX_MAX)
		return PW_INVALID;
	*m = (struct cca){ .mem = mem, .config = *config };
	if (!m->config.pa_bits)
		m->config.pa_bits = 48;
	arena_init(&m->arena, mem);
	tree_init(&m->granules, &m->arena);
	return PW_OK;
}

void cca_release(struct cca *m)
{
	for (size_t i = 0; i < m->rec_room; i++)
		cca_rec_free(m, i);
	for (size_t i = 0; i < m->realm_room; i++)
		if (m->realms[i])
			cca_realm_free(m, m->realms[i]);
	pw_mem_free(m->mem, m->recs, m->rec_room * sizeof *m->recs);
	pw_mem_free(m->mem, m->realms, m->realm_room * sizeof *m->realms);
	tree_release(&m->granules);
	arena_release(&m->arena);
}

/* Doubles an array of pointers; the new half is NULL. */
static enum pw_status grow(struct cca *m, void *array, size_t *room)
{
	size_t wider = *room ? 2 * *room : 4;
	void *old, *p = pw_mem_zalloc(m->mem, wider * sizeof(void *));

	if (!p)
		return PW_NO_MEMORY;
	memcpy(&old, array, sizeof old);
	if (old)
		memcpy(p, old, *room * sizeof(void *));
	pw_mem_free(m->mem, old, *room * sizeof(void *));
	memcpy(array, &p, sizeof p);
	*room = wider;
	return PW_OK;
}

enum pw_status cca_realm_slot(struct cca *m, unsigned *slot)
{
	size_t i = 0;

	while (i < m->realm_room && m->realms[i])
		i++;
	if (i == m->realm_room && grow(m, &m->realms, &m->realm_room) != PW_OK)
		return PW_NO_MEMORY;
	*slot = (unsigned)i;
	return PW_OK;
}

enum pw_status cca_rec_slot(struct cca *m, size_t *slot)
{
	size_t i = 0;

	while (i < m->rec_room && m->recs[i])
		i++;
	if (i == m->rec_room && grow(m, &m->recs, &m->rec_room) != PW_OK)
		return PW_NO_MEMORY;
	*slot = i;
	return PW_OK;
}

void cca_realm_free(struct cca *m, struct cca_realm *r)
{
	tree_release(&r->entries);
	for (size_t i = 0; i < PW_ARRAY_LEN(r->tables); i++)
		tree_release(&r->tables[i]);
	m->realms[r->slot] = NULL;
	pw_mem_free(m->mem, r, sizeof *r);
}

void cca_rec_free(struct cca *m, size_t slot)
{
	pw_mem_free(m->mem, m->recs[slot], sizeof *m->recs[slot]);
	m->recs[slot] = NULL;
}

bool cca_vmid_is_used(const struct cca *m, uint16_t vmid)
{
	return m->vmids[vmid / 64] >> (vmid % 64) & 1;
}

void cca_vmid_set(struct cca *m, uint16_t vmid)
{
	m->vmids[vmid / 64] |= (uint64_t)1 << (vmid % 64);
}

void cca_vmid_clear(struct cca *m, uint16_t vmid)
{
	m->vmids[vmid / 64] &= ~((uint64_t)1 << (vmid % 64));
}

/* The law's states. */

enum vm_state cca_project_realm(enum cca_realm_state s)
{
	switch (s) {
	case CCA_NEW: return VM_TRANSIENT;
	case CCA_ACTIVE:
	case CCA_SYSTEM_OFF: return VM_SECURE;
	case CCA_REALM_STATE_COUNT: break;
	}
	return VM_NORMAL;
}

static bool is_assigned(enum cca_entry e)
{
	return e == CCA_ASSIGNED_EMPTY || e == CCA_ASSIGNED_RAM || e == CCA_ASSIGNED_DESTROYED;
}

bool cca_aliases_clash(enum cca_entry protected_, enum cca_entry unprotected)
{
	return is_assigned(protected_) && unprotected == CCA_ASSIGNED_NS;
}

enum gfn_state cca_project(enum cca_realm_state realm, enum cca_entry protected_, enum cca_entry unprotected)
{
	if (is_assigned(protected_))
		return GFN_SECURE_RESIDENT;
	if (unprotected == CCA_ASSIGNED_NS)
		return GFN_SHARED;
	return realm == CCA_NEW ? GFN_NORMAL : GFN_SECURE_OUT;
}

enum gfn_state cca_gfn_state(const struct cca_realm *realm, uint64_t gfn)
{
	uint64_t half = cca_space_pages(realm) / 2;

	if (gfn >= half)
		return GFN_NORMAL;
	return cca_project(realm->state, cca_spot_at(realm, gfn, CCA_LEVELS - 1).entry,
			   cca_spot_at(realm, gfn + half, CCA_LEVELS - 1).entry);
}
