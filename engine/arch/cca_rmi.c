#include <string.h>

#include "engine/arch/cca_checks.h"
#include "engine/arch/cca_rim.h"

/* `count` times the command at once: its first has passed the checks, and the others would. */
typedef enum pw_status (*carry_fn)(struct cca_ctx *c, uint64_t count, struct cca_result *r);

static uint64_t arg(const struct cca_ctx *c, enum cca_arg a)
{
	return c->call->arg[a];
}

static uint64_t arg_page(const struct cca_ctx *c, enum cca_arg a)
{
	return c->call->arg[a] >> CCA_SHIFT;
}

static void tell(struct cca_result *r, enum cca_out o, uint64_t x)
{
	r->out[o] = x;
	r->valid |= 1u << o;
}

static void realm_use(struct cca_ctx *c, enum cca_granule s, unsigned level, uint64_t number, uint64_t page,
		      uint64_t count)
{
	struct cca_use u = { s, c->realm->slot, level, number };

	cca_granules_set(c->m, page, count, cca_use_word(&u));
}

static void give_back(struct cca *m, uint64_t page, uint64_t count)
{
	cca_granules_set(m, page, count, CCA_WORD_DELEGATED);
}

/* Entries of one kind, with consecutive outputs if they have any. */
static void entries_set(struct cca_ctx *c, uint64_t first, uint64_t pages, enum cca_entry e, uint64_t out,
			uint64_t attr)
{
	cca_tree_set(&c->realm->entries, first, pages, cca_entry_word(e, out, attr));
}

static struct cca_rim rim_of(const struct cca_realm *r)
{
	struct cca_rim rim = { .hash = r->hash };

	memcpy(rim.value, r->rim, sizeof rim.value);
	return rim;
}

static void rim_put(struct cca_realm *r, const struct cca_rim *rim)
{
	memcpy(r->rim, rim->value, sizeof r->rim);
}

/* Granules and registers. */

static enum pw_status version(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	return PW_OK;
}

static enum pw_status features(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	tell(r, CCA_OUT_VALUE, arg(c, CCA_ARG_INDEX) == 0 ? c->m->config.features0 : 0);
	return PW_OK;
}

static enum pw_status delegate(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	cca_granules_set(c->m, arg_page(c, CCA_ARG_ADDR), count, CCA_WORD_DELEGATED);
	return PW_OK;
}

static enum pw_status undelegate(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	cca_granules_set(c->m, arg_page(c, CCA_ARG_ADDR), count, 0);
	return PW_OK;
}

/* Data. */

static enum pw_status data_unknown(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	uint64_t page = arg_page(c, CCA_ARG_IPA), data = arg_page(c, CCA_ARG_DATA);

	realm_use(c, CCA_DATA, 0, page, data, count);
	entries_set(c, page, count, cca_cell(c->spot.entry, c->op)->next, data, 0);
	return PW_OK;
}

static enum pw_status data_create(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	struct cca_rim rim = rim_of(c->realm);

	cca_rim_data(&rim, arg(c, CCA_ARG_IPA), count, arg(c, CCA_ARG_FLAGS), c->call->source);
	rim_put(c->realm, &rim);
	return data_unknown(c, count, r);
}

static enum pw_status data_destroy(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	uint64_t page = arg_page(c, CCA_ARG_IPA), data = c->spot.word & TREE_NUMBER, last = page + count - 1;

	give_back(c->m, data, count);
	entries_set(c, page, count, cca_cell(c->spot.entry, c->op)->next, 0, 0);
	c->spot = cca_spot_at(c->realm, last, CCA_LEVELS - 1);
	tell(r, CCA_OUT_DATA, (data + count - 1) << CCA_SHIFT);
	tell(r, CCA_OUT_TOP, cca_skip_dead(c->realm, &c->spot, last << CCA_SHIFT));
	return PW_OK;
}

/* Realms. */

static enum pw_status realm_activate(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	c->realm->state = CCA_ACTIVE;
	return PW_OK;
}

static void realm_fill(struct cca_ctx *c, struct cca_realm *realm, unsigned slot)
{
	const struct cca_realm_params *p = c->call->realm;
	struct cca_rim rim = { .hash = p->hash_algo == CCA_SHA512 ? CCA_SHA512 : CCA_SHA256 };

	cca_rim_start(&rim, p);
	realm->rd = arg_page(c, CCA_ARG_RD);
	realm->serial = c->m->realms_made++;
	realm->slot = slot;
	realm->state = CCA_NEW;
	realm->ipa_bits = (unsigned)p->s2sz;
	realm->start = (unsigned)p->rtt_level_start;
	realm->root_count = (unsigned)c->roots;
	realm->root = p->rtt_base >> CCA_SHIFT;
	realm->vmid = p->vmid;
	realm->hash = rim.hash;
	rim_put(realm, &rim);
	tree_init(&realm->entries, &c->m->arena);
	for (size_t i = 0; i < PW_ARRAY_LEN(realm->tables); i++)
		tree_init(&realm->tables[i], &c->m->arena);
}

static enum pw_status realm_create(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	struct cca_realm *realm;
	unsigned slot;

	if (cca_realm_slot(c->m, &slot) != PW_OK)
		return PW_NO_MEMORY;
	realm = pw_mem_zalloc(c->m->mem, sizeof *realm);
	if (!realm)
		return PW_NO_MEMORY;
	realm_fill(c, realm, slot);
	c->m->realms[slot] = realm;
	c->realm = realm;
	cca_vmid_set(c->m, realm->vmid);
	realm_use(c, CCA_RD, 0, 0, realm->rd, 1);
	realm_use(c, CCA_RTT, realm->start, 0, realm->root, realm->root_count);
	return PW_OK;
}

static enum pw_status realm_destroy(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	struct cca_realm *realm = c->realm;

	give_back(c->m, realm->rd, 1);
	give_back(c->m, realm->root, realm->root_count);
	cca_vmid_clear(c->m, realm->vmid);
	cca_realm_free(c->m, realm);
	return PW_OK;
}

/* RECs. */

static void rec_fill(struct cca_ctx *c, struct cca_rec *rec)
{
	const struct cca_rec_params *p = c->call->rec;

	rec->realm = c->realm;
	rec->granule = arg_page(c, CCA_ARG_REC);
	rec->index = c->realm->rec_index++;
	rec->mpidr = p->mpidr;
	rec->runnable = p->flags & CCA_REC_RUNNABLE;
	rec->num_aux = (unsigned)p->num_aux;
	for (unsigned i = 0; i < rec->num_aux; i++)
		rec->aux[i] = p->aux[i] >> CCA_SHIFT;
	c->realm->num_recs++;
}

static enum pw_status rec_create(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	struct cca_rim rim = rim_of(c->realm);
	struct cca_rec *rec;
	size_t slot;

	if (arena_reserve_sets(&c->m->arena, CCA_AUX_MAX + 1) != PW_OK || cca_rec_slot(c->m, &slot) != PW_OK)
		return PW_NO_MEMORY;
	rec = pw_mem_zalloc(c->m->mem, sizeof *rec);
	if (!rec)
		return PW_NO_MEMORY;
	rec_fill(c, rec);
	c->m->recs[slot] = rec;
	realm_use(c, CCA_REC, 0, slot, rec->granule, 1);
	for (unsigned i = 0; i < rec->num_aux; i++)
		realm_use(c, CCA_REC_AUX, 0, slot, rec->aux[i], 1);
	if (rec->runnable) {
		cca_rim_rec(&rim, c->call->rec);
		rim_put(c->realm, &rim);
	}
	arena_trim(&c->m->arena);
	return PW_OK;
}

static enum pw_status rec_destroy(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	struct cca_rec *rec = c->rec;
	size_t slot = cca_word_use(cca_granule_word(c->m, rec->granule)).number;

	if (arena_reserve_sets(&c->m->arena, CCA_AUX_MAX + 1) != PW_OK)
		return PW_NO_MEMORY;
	give_back(c->m, rec->granule, 1);
	for (unsigned i = 0; i < rec->num_aux; i++)
		give_back(c->m, rec->aux[i], 1);
	rec->realm->num_recs--;
	cca_rec_free(c->m, slot);
	arena_trim(&c->m->arena);
	return PW_OK;
}

/* The realm's open request ends here: it learns how far the host went (A5.4). */
static enum pw_status rec_enter(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	struct cca_ripas_request *q = &c->rec->ripas;
	bool rejects = c->call->run && c->call->run->flags & CCA_ENTER_REJECT_RIPAS;

	if (q->open) {
		r->rsi_count = 3;
		r->rsi[0] = CCA_RSI_SUCCESS;
		r->rsi[1] = q->cursor;
		r->rsi[2] = q->value == CCA_RAM && q->cursor != q->end && rejects ? CCA_RSI_REJECTED : 0;
	}
	*q = (struct cca_ripas_request){ 0 };
	c->rec->running = true;
	return PW_OK;
}

static enum pw_status rec_aux_count(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	tell(r, CCA_OUT_AUX_COUNT, c->m->config.rec_aux_count);
	return PW_OK;
}

/* Tables. */

static uint64_t parent_pages(const struct cca_ctx *c, unsigned level)
{
	return cca_entry_pages(level - 1);
}

static struct tree *tables_of(const struct cca_ctx *c, unsigned level)
{
	return &c->realm->tables[level - 1];
}

/* Entries keep their outputs where the cell's next state has any. */
static void entries_become(struct cca_ctx *c, uint64_t first, uint64_t pages, enum cca_entry next)
{
	uint64_t word = tree_get(&c->realm->entries, first);
	enum cca_entry now = cca_word_entry(word, cca_is_unprotected(c->realm, first));

	if (now != next)
		entries_set(c, first, pages, next, word & TREE_NUMBER, cca_word_attr(word));
}

static enum pw_status rtt_create(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	unsigned level = (unsigned)arg(c, CCA_ARG_LEVEL);
	uint64_t page = arg_page(c, CCA_ARG_IPA), rtt = arg_page(c, CCA_ARG_RTT), at = cca_table_index(level, page);

	realm_use(c, CCA_RTT, level, at, rtt, count);
	cca_tree_set(tables_of(c, level), at, count, TREE_LINEAR | rtt);
	entries_become(c, page, count * parent_pages(c, level), cca_cell(c->spot.entry, c->op)->next);
	return PW_OK;
}

/* The tables are gone; the walk's entry is what is there now. */
static void tables_drop(struct cca_ctx *c, unsigned level, uint64_t count, struct cca_result *r)
{
	uint64_t page = arg_page(c, CCA_ARG_IPA), rtt = c->spot.word;

	give_back(c->m, rtt, count);
	cca_tree_set(tables_of(c, level), cca_table_index(level, page), count, 0);
	tell(r, CCA_OUT_RTT, (rtt + count - 1) << CCA_SHIFT);
}

static enum pw_status rtt_destroy(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	unsigned level = (unsigned)arg(c, CCA_ARG_LEVEL);
	uint64_t page = arg_page(c, CCA_ARG_IPA), pages = parent_pages(c, level), last = page + (count - 1) * pages;

	tables_drop(c, level, count, r);
	entries_set(c, page, count * pages, cca_cell(c->spot.entry, c->op)->next, 0, 0);
	c->spot = cca_spot_at(c->realm, last, level - 1);
	tell(r, CCA_OUT_TOP, cca_skip_dead(c->realm, &c->spot, last << CCA_SHIFT));
	return PW_OK;
}

static enum pw_status rtt_fold(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	unsigned level = (unsigned)arg(c, CCA_ARG_LEVEL);
	uint64_t page = arg_page(c, CCA_ARG_IPA), word = tree_get(&c->realm->entries, page);
	enum cca_entry child = cca_word_entry(word, cca_is_unprotected(c->realm, page));

	tables_drop(c, level, count, r);
	entries_become(c, page, count * parent_pages(c, level), cca_cell(child, c->op)->next);
	if (level == 2 && child >= CCA_ASSIGNED_EMPTY && child <= CCA_ASSIGNED_DESTROYED)
		r->unverified = "protected 1 GiB blocks follow from the rules of folding; no recording has one";
	return PW_OK;
}

static enum pw_status rtt_read(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	struct cca_walk w = cca_walk(c->realm, arg(c, CCA_ARG_IPA), (unsigned)arg(c, CCA_ARG_LEVEL));
	bool table = w.entry == CCA_TABLE || w.entry == CCA_TABLE_NS;
	uint64_t word = cca_entry_word(w.entry, 0, 0);

	tell(r, CCA_OUT_WALK_LEVEL, w.level);
	tell(r, CCA_OUT_STATE, table ? 2 : cca_entry_kind(w.entry)->live);
	tell(r, CCA_OUT_DESC, w.entry == CCA_ASSIGNED_DESTROYED ? 0 : w.addr | w.attr);
	tell(r, CCA_OUT_RIPAS, cca_entry_ripas(w.entry) ? cca_word_entry(word & ~TREE_LINEAR, false) : CCA_EMPTY);
	return PW_OK;
}

/* The unprotected half. */

static enum pw_status map_unprotected(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	uint64_t desc = arg(c, CCA_ARG_DESC);

	entries_set(c, c->spot.first, cca_entry_pages(c->spot.level), cca_cell(c->spot.entry, c->op)->next,
		    desc >> CCA_SHIFT, desc & (CCA_GRANULE - 1));
	return PW_OK;
}

static enum pw_status unmap_unprotected(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	entries_set(c, c->spot.first, cca_entry_pages(c->spot.level), cca_cell(c->spot.entry, c->op)->next, 0, 0);
	c->spot = cca_spot_at(c->realm, c->spot.first, c->spot.level);
	tell(r, CCA_OUT_TOP, cca_skip_dead(c->realm, &c->spot, arg(c, CCA_ARG_IPA)));
	return PW_OK;
}

/* RIPAS. */

/* All changes lie in entries of one table, so the nodes that the first change needs are all that are needed. */
static void range_change(struct cca_ctx *c)
{
	struct tree_run run;

	for (uint64_t at = c->spot.first; at < c->stop; at += run.count) {
		enum cca_entry e;

		run = tree_run_at(&c->realm->entries, at, c->stop);
		e = cca_cell(cca_word_entry(run.entry, false), c->op)->next;
		entries_set(c, at, run.count, e, run.entry & TREE_NUMBER, 0);
	}
}

static enum pw_status init_ripas(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	uint64_t pages = cca_entry_pages(c->spot.level);
	struct cca_rim rim = rim_of(c->realm);

	for (uint64_t at = c->spot.first; at < c->stop; at += pages)
		cca_rim_ripas(&rim, at << CCA_SHIFT, (at + pages) << CCA_SHIFT);
	rim_put(c->realm, &rim);
	range_change(c);
	tell(r, CCA_OUT_OUT_TOP, c->stop << CCA_SHIFT);
	return PW_OK;
}

static enum pw_status set_ripas(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	range_change(c);
	c->rec->ripas.cursor = c->stop << CCA_SHIFT;
	tell(r, CCA_OUT_OUT_TOP, c->stop << CCA_SHIFT);
	return PW_OK;
}

static const carry_fn carry[CCA_COMMAND_COUNT] = {
	[CCA_VERSION_CMD] = version,
	[CCA_GRANULE_DELEGATE] = delegate,
	[CCA_GRANULE_UNDELEGATE] = undelegate,
	[CCA_DATA_CREATE] = data_create,
	[CCA_DATA_CREATE_UNKNOWN] = data_unknown,
	[CCA_DATA_DESTROY] = data_destroy,
	[CCA_REALM_ACTIVATE] = realm_activate,
	[CCA_REALM_CREATE] = realm_create,
	[CCA_REALM_DESTROY] = realm_destroy,
	[CCA_REC_CREATE] = rec_create,
	[CCA_REC_DESTROY] = rec_destroy,
	[CCA_REC_ENTER] = rec_enter,
	[CCA_RTT_CREATE] = rtt_create,
	[CCA_RTT_DESTROY] = rtt_destroy,
	[CCA_RTT_MAP_UNPROTECTED] = map_unprotected,
	[CCA_RTT_READ_ENTRY] = rtt_read,
	[CCA_RTT_UNMAP_UNPROTECTED] = unmap_unprotected,
	[CCA_FEATURES] = features,
	[CCA_RTT_FOLD] = rtt_fold,
	[CCA_REC_AUX_COUNT] = rec_aux_count,
	[CCA_RTT_INIT_RIPAS] = init_ripas,
	[CCA_RTT_SET_RIPAS] = set_ripas,
};

/* Answers that are there though the command was refused, and answers that no recording shows. */
void cca_refused(struct cca_ctx *c, struct cca_result *r)
{
	if (c->row->tells_top && r->status == CCA_ERROR_RTT)
		tell(r, CCA_OUT_TOP, cca_skip_dead(c->realm, &c->spot, arg(c, CCA_ARG_IPA)));
	if (r->failed->kind == CCA_CHECK_EL3) {
		c->m->el3_refuses--;
		if (c->call->cmd == CCA_GRANULE_UNDELEGATE)
			r->unverified = "TF-RMM stops the machine where EL3 refuses an UNDELEGATE";
	}
	if (r->failed->kind == CCA_CHECK_FEATURES && c->call->realm->flags & CCA_REALM_LPA2)
		r->unverified = "LPA2 is offered by the features, and outside this model";
}

void cca_begin(struct cca_ctx *c, struct cca *m, const struct cca_call *call, struct cca_result *r)
{
	const struct cca_command_row *row = cca_command_row(call->cmd);

	*c = (struct cca_ctx){ .m = m, .call = call, .row = row, .op = row->op };
	r->status = CCA_SUCCESS;
	r->index = r->valid = r->rsi_count = 0;
	r->failed = NULL;
	r->unverified = NULL;
	if (call->cmd == CCA_VERSION_CMD) {
		tell(r, CCA_OUT_LOWER, CCA_VERSION);
		tell(r, CCA_OUT_HIGHER, CCA_VERSION);
	}
}

enum pw_status cca_carry_out(struct cca_ctx *c, uint64_t count, struct cca_result *r)
{
	return carry[c->call->cmd](c, count, r);
}

enum pw_status cca_rmi(struct cca *m, const struct cca_call *call, struct cca_result *r)
{
	struct cca_ctx c;

	cca_begin(&c, m, call, r);
	if (arena_reserve_sets(&m->arena, CCA_SETS_MAX) != PW_OK)
		return PW_NO_MEMORY;
	if (cca_checks_pass(&c, r))
		return cca_carry_out(&c, 1, r);
	cca_refused(&c, r);
	return PW_OK;
}

/* The machine's form. */

static const enum cca_out *outputs(enum cca_command cmd, size_t *count)
{
	static const enum cca_out version_outs[] = { CCA_OUT_LOWER, CCA_OUT_HIGHER },
				  data[] = { CCA_OUT_DATA, CCA_OUT_TOP }, rtt[] = { CCA_OUT_RTT, CCA_OUT_TOP },
				  top[] = { CCA_OUT_TOP },
				  entry[] = { CCA_OUT_WALK_LEVEL, CCA_OUT_STATE, CCA_OUT_DESC, CCA_OUT_RIPAS },
				  value[] = { CCA_OUT_VALUE }, aux[] = { CCA_OUT_AUX_COUNT },
				  range[] = { CCA_OUT_OUT_TOP };
	static const struct {
		const enum cca_out *outs;
		size_t count;
	} table[CCA_COMMAND_COUNT] = {
		[CCA_VERSION_CMD] = { version_outs, PW_ARRAY_LEN(version_outs) },
		[CCA_DATA_DESTROY] = { data, PW_ARRAY_LEN(data) },
		[CCA_RTT_DESTROY] = { rtt, PW_ARRAY_LEN(rtt) },
		[CCA_RTT_FOLD] = { rtt, 1 },
		[CCA_RTT_UNMAP_UNPROTECTED] = { top, PW_ARRAY_LEN(top) },
		[CCA_RTT_READ_ENTRY] = { entry, PW_ARRAY_LEN(entry) },
		[CCA_FEATURES] = { value, PW_ARRAY_LEN(value) },
		[CCA_REC_AUX_COUNT] = { aux, PW_ARRAY_LEN(aux) },
		[CCA_RTT_INIT_RIPAS] = { range, PW_ARRAY_LEN(range) },
		[CCA_RTT_SET_RIPAS] = { range, PW_ARRAY_LEN(range) },
	};

	*count = table[cmd].count;
	return table[cmd].outs;
}

enum pw_status cca_smc(struct cca *m, uint64_t x[CCA_ARGS_MAX + 1], const struct cca_call *pages)
{
	struct cca_call call = *pages;
	const struct cca_command_row *row;
	struct cca_result r;
	const enum cca_out *outs;
	int cmd = 0;
	size_t n;

	if (x[0] == CCA_FID_PSCI_COMPLETE)
		return PW_INVALID;
	while (cmd < CCA_COMMAND_COUNT && cca_command_fid((enum cca_command)cmd) != x[0])
		cmd++;
	if (cmd == CCA_COMMAND_COUNT) {
		x[0] = CCA_UNKNOWN_FID;
		return PW_OK;
	}
	call.cmd = (enum cca_command)cmd;
	row = cca_command_row(call.cmd);
	for (unsigned i = 0; i < row->arg_count; i++)
		call.arg[row->args[i]] = x[i + 1];
	if (cca_rmi(m, &call, &r) != PW_OK)
		return PW_NO_MEMORY;
	x[0] = (uint64_t)r.status | (uint64_t)r.index << 8;
	outs = outputs(call.cmd, &n);
	for (size_t i = 0; i < n; i++)
		x[i + 1] = r.valid >> outs[i] & 1 ? r.out[outs[i]] : 0;
	return PW_OK;
}
