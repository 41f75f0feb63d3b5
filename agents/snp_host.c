#include "agents/snp_host.h"

#include <string.h>

#define OWN_FRAMES   ((uint64_t)8 * SNP_LARGE) /* contexts and VMSA pages, and the bounce page */
#define MAX_ASID     1006                      /* as EPYC 9004 has */
#define POLICY       0x30000                   /* SMT allowed; bit 17 is always one */
#define VMSA_GFN     0xfffffffffu              /* where KVM measures it */
#define FRAME_LIMIT  ((uint64_t)1 << SNP_GFN_TAG_SHIFT)
#define RMP_COUNTERS 4   /* pages before the entries */
#define RMP_PER_PAGE 256 /* entries of 16 bytes */
#define SPARE_SETS   16  /* a step needs 2 at a time, its undo what their nodes hold at most */

/* Refusals. */

static enum pw_status refused(const struct snp_host *h, const char *code, struct pw_err *err)
{
	char why[200];

	snp_why_text(&h->m.why, why, sizeof why);
	return pw_fail(err, PW_BACKEND, "%s: %s", code, why);
}

static enum pw_status no_memory(struct pw_err *err)
{
	return pw_fail(err, PW_NO_MEMORY, "no memory for the state of SEV-SNP hardware");
}

static enum pw_status update(struct snp_host *h, const struct snp_rmpupdate *u, struct pw_err *err)
{
	enum snp_code code;

	if (snp_rmpupdate(&h->m, u, &code) != PW_OK)
		return no_memory(err);
	return code == SNP_OK ? PW_OK : refused(h, snp_code_name(code), err);
}

static enum pw_status command(struct snp_host *h, const struct snp_cmd *c, struct pw_err *err)
{
	enum snp_status status;

	if (snp_command(&h->m, c, &status) != PW_OK)
		return no_memory(err);
	return status == SNP_SUCCESS ? PW_OK : refused(h, snp_status_name(status), err);
}

enum pw_status snp_host_room(struct snp_host *h, struct pw_err *err)
{
	return arena_reserve_sets(&h->m.arena, SPARE_SETS) == PW_OK ? PW_OK : no_memory(err);
}

/* Life of the host. */

static uint64_t up_to_large(uint64_t n)
{
	return (n + SNP_LARGE - 1) / SNP_LARGE * SNP_LARGE;
}

/* Firmware's frames and the RMP: behind the pool if their numbers fit, else at the beginning of memory. */
static bool lay_out(const struct machine_pool *pool, struct snp_range *own, struct snp_config *c)
{
	uint64_t end = up_to_large(pool->base + pool->frames);
	uint64_t frames = OWN_FRAMES + up_to_large(pool->frames / 16); /* metadata for four times the pool */
	uint64_t rmp = up_to_large(RMP_COUNTERS + (end + frames) / (RMP_PER_PAGE - 1) + 1);

	if (pool->frames > FRAME_LIMIT)
		return false;
	*own = (struct snp_range){ end, frames };
	if (end + frames + rmp > FRAME_LIMIT)
		own->first = SNP_LARGE;
	c->rmp = (struct snp_range){ own->first + frames, rmp };
	c->frames = c->rmp.first + rmp > end ? c->rmp.first + rmp : end;
	return own->first == end || c->rmp.first + rmp <= pool->base;
}

static enum pw_status frame_find(struct snp_host *h, uint64_t *pfn, struct pw_err *err)
{
	uint64_t end = h->own.first + h->own.count;
	struct snp_run run;

	for (uint64_t at = h->own_from; at < end; at += run.count) {
		run = snp_run_at(&h->m, at, end);
		if (run.state != SNP_HYPERVISOR)
			continue;
		h->own_from = at;
		*pfn = at;
		return PW_OK;
	}
	h->own_from = end;
	return pw_fail(err, PW_BUSY, "firmware has all %" PRIu64 " frames beside the pool", h->own.count);
}

static enum pw_status frame_take(struct snp_host *h, uint64_t *pfn, struct pw_err *err)
{
	struct snp_rmpupdate u = { .assigned = true, .immutable = true };
	enum pw_status st = frame_find(h, &u.pfn, err);

	if (st == PW_OK)
		st = update(h, &u, err);
	if (st == PW_OK)
		*pfn = u.pfn;
	return st;
}

/* By way of PAGE_RECLAIM if only firmware can change the entry. What does not come back is not Hypervisor. */
static void frame_give(struct snp_host *h, uint64_t pfn)
{
	struct snp_cmd reclaim = { .op = SNP_CMD_PAGE_RECLAIM, .pfn = pfn };
	struct snp_rmpupdate u = { .pfn = pfn };
	struct snp_entry e;
	struct pw_err err;

	snp_read(&h->m, pfn, &e);
	if (e.immutable && command(h, &reclaim, &err) != PW_OK)
		return;
	if (update(h, &u, &err) == PW_OK && pfn < h->own_from)
		h->own_from = pfn;
}

static enum pw_status power_on(struct snp_host *h, const struct snp_config *c, struct pw_err *err)
{
	struct snp_cmd init = { .op = SNP_CMD_INIT };
	enum pw_status st = snp_init(&h->m, h->mem, c);

	if (st != PW_OK)
		return st == PW_NO_MEMORY ? no_memory(err) : pw_fail(err, st, "no such RMP");
	snp_trace_begin(&h->trace, h->machine, &h->m);
	h->m.strict = true;
	h->m.unmeasured = true;
	st = snp_host_room(h, err);
	if (st == PW_OK)
		st = command(h, &init, err);
	if (st == PW_OK)
		st = frame_take(h, &h->bounce, err);
	if (st != PW_OK)
		snp_release(&h->m);
	return st;
}

enum pw_status snp_host_open(struct machine *x, const struct machine_pool *pool, struct pw_mem *mem,
			     struct snp_host **out, struct pw_err *err)
{
	struct snp_config c = { .max_asid = MAX_ASID, .smt = true };
	struct snp_range own;
	struct snp_host *h;
	enum pw_status st;

	if (!lay_out(pool, &own, &c))
		return pw_fail(err, PW_INVALID, "no room for firmware beside frames %" PRIu64 "+%" PRIu64, pool->base,
			       pool->frames);
	h = pw_mem_zalloc(mem, sizeof *h);
	if (!h)
		return no_memory(err);
	h->mem = mem;
	h->machine = x;
	h->pool = *pool;
	h->own = own;
	h->own_from = own.first;
	arena_init(&h->nodes, mem);
	st = power_on(h, &c, err);
	if (st != PW_OK) {
		pw_mem_free(mem, h, sizeof *h);
		return st;
	}
	*out = h;
	return PW_OK;
}

void snp_host_close(struct snp_host *h)
{
	if (!h)
		return;
	snp_release(&h->m);
	arena_release(&h->nodes);
	pw_mem_free(h->mem, h->steps, h->step_room * sizeof *h->steps);
	pw_mem_free(h->mem, h, sizeof *h);
}

/* Life of a guest. */

/* An ASID that still counts pages, of frames that are stuck, can never be activated again. */
static unsigned asid_in(const struct snp_host *h, enum snp_asid_state s)
{
	for (unsigned asid = 1; asid <= h->m.max_asid; asid++)
		if (h->m.asids[asid] == s && h->m.pages[asid] == 0)
			return asid;
	return 0;
}

static enum pw_status asid_pick(struct snp_host *h, unsigned *asid, struct pw_err *err)
{
	struct snp_cmd flush = { .op = SNP_CMD_DF_FLUSH };
	enum pw_status st = PW_OK;

	*asid = asid_in(h, SNP_ASID_CLEAN);
	if (!*asid && asid_in(h, SNP_ASID_DIRTY)) {
		snp_wbinvd(&h->m);
		st = command(h, &flush, err);
		*asid = asid_in(h, SNP_ASID_CLEAN);
	}
	if (st == PW_OK && !*asid)
		return pw_fail(err, PW_BUSY, "all %u ASIDs are in use", h->m.max_asid);
	return st;
}

enum pw_status snp_host_start(struct snp_host *h, struct snp_host_guest *g, struct pw_err *err)
{
	static const enum snp_command life[] = { SNP_CMD_GCTX_CREATE, SNP_CMD_LAUNCH_START, SNP_CMD_ACTIVATE };
	struct snp_cmd c = { .policy = POLICY };
	enum pw_status st = snp_host_room(h, err);

	if (st == PW_OK)
		st = asid_pick(h, &c.asid, err);
	if (st == PW_OK)
		st = frame_take(h, &g->context, err);
	if (st != PW_OK)
		return st;
	c.context = g->context;
	for (size_t i = 0; st == PW_OK && i < PW_ARRAY_LEN(life); i++) {
		c.op = life[i];
		st = command(h, &c, err);
	}
	if (st == PW_OK)
		g->asid = c.asid;
	else
		snp_host_end(h, g);
	return st;
}

static enum pw_status launch(struct snp_host *h, const struct snp_host_guest *g, const struct snp_launch_page *page,
			     struct pw_err *err)
{
	enum snp_status status;
	size_t done;

	if (snp_launch_pages(&h->m, g->context, page, 1, &done, &status) != PW_OK)
		return no_memory(err);
	if (done == 1)
		return PW_OK;
	return refused(h, status == SNP_SUCCESS ? "LAUNCH_UPDATE not reached" : snp_status_name(status), err);
}

enum pw_status snp_host_finish(struct snp_host *h, struct snp_host_guest *g, struct pw_err *err)
{
	struct snp_launch_page vmsa = { .gfn = VMSA_GFN, .type = SNP_TYPE_VMSA, .size = SNP_4K };
	struct snp_cmd finish = { .op = SNP_CMD_LAUNCH_FINISH, .context = g->context };
	enum pw_status st = snp_host_room(h, err);

	if (st == PW_OK)
		st = frame_find(h, &vmsa.pfn, err);
	if (st == PW_OK)
		st = launch(h, g, &vmsa, err);
	if (st != PW_OK)
		return st;
	st = command(h, &finish, err);
	if (st == PW_OK)
		g->vmsa = vmsa.pfn;
	else
		frame_give(h, vmsa.pfn);
	return st;
}

void snp_host_end(struct snp_host *h, struct snp_host_guest *g)
{
	struct snp_cmd c = { .op = SNP_CMD_DECOMMISSION, .context = g->context };
	struct pw_err err;

	for (size_t i = 0; i < g->md_count; i++)
		if (g->md[i].frame)
			frame_give(h, g->md[i].frame);
	pw_mem_free(h->mem, g->md, g->md_room * sizeof *g->md);
	g->md = NULL;
	g->md_count = g->md_room = g->md_from = 0;
	if (g->vmsa)
		frame_give(h, g->vmsa);
	if (g->context && (!snp_guest(&h->m, g->context) || command(h, &c, &err) == PW_OK))
		frame_give(h, g->context);
	g->context = g->vmsa = 0;
	g->asid = 0;
	g->lost = 0;
}

/* Pages. */

enum pw_status snp_host_launch(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			       struct pw_err *err)
{
	struct snp_launch_page p = { .pfn = page->pfn, .gfn = page->gfn, .type = SNP_TYPE_NORMAL, .size = page->size };

	return launch(h, g, &p, err);
}

static enum pw_status assign(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			     bool immutable, struct pw_err *err)
{
	struct snp_rmpupdate u = { .pfn = page->pfn,
				   .assigned = true,
				   .immutable = immutable,
				   .size = page->size,
				   .asid = g->asid,
				   .gfn = page->gfn };

	return update(h, &u, err);
}

enum pw_status snp_host_accept(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			       struct pw_err *err)
{
	struct snp_target t = { .asid = g->asid, .gfn = page->gfn, .pfn = page->pfn, .size = page->size };
	struct pw_err undo_err;
	enum snp_code code;
	bool unchanged;
	enum pw_status st = assign(h, g, page, false, err);

	if (st != PW_OK)
		return st;
	if (snp_pvalidate(&h->m, &t, true, &code, &unchanged) != PW_OK)
		st = no_memory(err);
	else if (code != SNP_OK)
		st = refused(h, snp_code_name(code), err);
	if (st != PW_OK && snp_host_back(h, page, &undo_err) != PW_OK)
		machine_keep(h->machine, page->pfn, undo_err.msg);
	return st;
}

enum pw_status snp_host_back(struct snp_host *h, const struct snp_step *page, struct pw_err *err)
{
	struct snp_rmpupdate u = { .pfn = page->pfn, .size = page->size };

	return update(h, &u, err);
}

enum pw_status snp_host_refuse(struct snp_host *h, uint64_t pfn, struct pw_err *err)
{
	struct snp_rmpupdate u = { .pfn = pfn, .race = SNP_RACE_CPU };

	return update(h, &u, err);
}

enum pw_status snp_host_smash(struct snp_host *h, const struct snp_step *page, struct pw_err *err)
{
	struct snp_psmash p = { .pfn = page->pfn };
	enum snp_code code;

	if (snp_psmash(&h->m, &p, &code) != PW_OK)
		return no_memory(err);
	return code == SNP_OK ? PW_OK : refused(h, snp_code_name(code), err);
}

static enum pw_status reclaim(struct snp_host *h, const struct snp_step *page, struct pw_err *err)
{
	struct snp_cmd c = { .op = SNP_CMD_PAGE_RECLAIM, .pfn = page->pfn, .size = page->size };

	return command(h, &c, err);
}

/* Of 512 immutable pages that are alike. */
static enum pw_status unsmash(struct snp_host *h, const struct snp_step *page, struct pw_err *err)
{
	struct snp_cmd c = { .op = SNP_CMD_PAGE_UNSMASH, .pfn = page->pfn };

	return page->size == SNP_2M ? command(h, &c, err) : PW_OK;
}

enum pw_status snp_host_mend(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			     struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (uint64_t i = 0; st == PW_OK && i < SNP_LARGE; i++) {
		struct snp_step small = { .size = SNP_4K, .gfn = page->gfn + i, .pfn = page->pfn + i, .count = 1 };

		st = assign(h, g, &small, true, err);
	}
	if (st == PW_OK)
		st = unsmash(h, page, err);
	return st == PW_OK ? reclaim(h, page, err) : st;
}

/* Swapping. */

static struct snp_cmd swap_command(const struct snp_host *h, const struct snp_host_guest *g, uint64_t pfn,
				   uint64_t slot, enum snp_command op)
{
	return (struct snp_cmd){
		.op = op,
		.context = g->context,
		.pfn = op == SNP_CMD_SWAP_OUT ? pfn : h->bounce,
		.dst = op == SNP_CMD_SWAP_OUT ? h->bounce : pfn,
		.type = SNP_SWAP_DATA,
		.md = g->md[slot / SNP_MD_SLOTS].frame,
		.offset = (uint32_t)(slot % SNP_MD_SLOTS * (SNP_PAGE / SNP_MD_SLOTS)),
	};
}

/* All 4 KiB of the page, in order; on failure those that went are brought back by the opposite command. */
static enum pw_status swap_all(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			       const uint64_t *slots, enum snp_command op, struct pw_err *err)
{
	enum snp_command opposite = op == SNP_CMD_SWAP_OUT ? SNP_CMD_SWAP_IN : SNP_CMD_SWAP_OUT;
	enum pw_status st = PW_OK;
	struct pw_err undo_err;
	uint64_t done = 0;

	while (done < page->count) {
		struct snp_cmd c = swap_command(h, g, page->pfn + done, slots[done], op);

		st = command(h, &c, err);
		if (st != PW_OK)
			break;
		done++;
	}
	while (st != PW_OK && done > 0) {
		struct snp_cmd c = swap_command(h, g, page->pfn + done - 1, slots[done - 1], opposite);

		done--;
		if (command(h, &c, &undo_err) != PW_OK)
			machine_keep(h->machine, page->pfn + done, undo_err.msg);
	}
	return st;
}

/* Cuts an immutable page, does `op` to all of it and joins it again. */
static enum pw_status swap_page(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
				const uint64_t *slots, enum snp_command op, struct pw_err *err)
{
	enum pw_status st = page->size == SNP_2M ? snp_host_smash(h, page, err) : PW_OK, joined;
	struct pw_err join_err;

	if (st != PW_OK)
		return st;
	st = swap_all(h, g, page, slots, op, err);
	joined = unsmash(h, page, &join_err);
	if (st == PW_OK && joined != PW_OK)
		*err = join_err;
	return st == PW_OK ? joined : st;
}

/* Guest-Valid or Guest-Invalid; or Hypervisor again. */
static enum pw_status swap_end(struct snp_host *h, const struct snp_step *page, bool back, struct pw_err *err)
{
	enum pw_status st = reclaim(h, page, err);

	return st == PW_OK && back ? snp_host_back(h, page, err) : st;
}

static enum pw_status swap(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
			   const uint64_t *slots, enum snp_command op, struct pw_err *err)
{
	bool out = op == SNP_CMD_SWAP_OUT;
	enum pw_status st = assign(h, g, page, true, err), ended;
	struct pw_err end_err;

	if (st != PW_OK)
		return st;
	st = swap_page(h, g, page, slots, op, err);
	ended = swap_end(h, page, out == (st == PW_OK), &end_err);
	if (st == PW_OK && ended != PW_OK)
		*err = end_err;
	if (st != PW_OK && ended != PW_OK)
		machine_keep(h->machine, page->pfn, end_err.msg);
	return st == PW_OK ? ended : st;
}

enum pw_status snp_host_swap_out(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
				 const uint64_t *slots, struct pw_err *err)
{
	return swap(h, g, page, slots, SNP_CMD_SWAP_OUT, err);
}

enum pw_status snp_host_swap_in(struct snp_host *h, const struct snp_host_guest *g, const struct snp_step *page,
				const uint64_t *slots, struct pw_err *err)
{
	return swap(h, g, page, slots, SNP_CMD_SWAP_IN, err);
}

/* Metadata. */

static enum pw_status md_grow(struct snp_host *h, struct snp_host_guest *g, struct pw_err *err)
{
	size_t room = g->md_room ? 2 * g->md_room : 8;
	struct snp_md_page *grown;

	if (g->md_count < g->md_room)
		return PW_OK;
	grown = pw_mem_zalloc(h->mem, room * sizeof *grown);
	if (!grown)
		return no_memory(err);
	if (g->md_count)
		memcpy(grown, g->md, g->md_count * sizeof *grown);
	pw_mem_free(h->mem, g->md, g->md_room * sizeof *g->md);
	g->md = grown;
	g->md_room = room;
	return PW_OK;
}

/* A metadata page at the place g->md_from, which has none. */
static enum pw_status md_make(struct snp_host *h, struct snp_host_guest *g, struct pw_err *err)
{
	struct snp_cmd c = { .op = SNP_CMD_MD_INIT, .context = g->context };
	enum pw_status st = g->md_from == g->md_count ? md_grow(h, g, err) : PW_OK;

	if (st == PW_OK)
		st = snp_host_room(h, err);
	if (st == PW_OK)
		st = frame_take(h, &c.pfn, err);
	if (st != PW_OK)
		return st;
	st = command(h, &c, err);
	if (st != PW_OK) {
		frame_give(h, c.pfn);
		return st;
	}
	g->md[g->md_from] = (struct snp_md_page){ .frame = c.pfn };
	if (g->md_from == g->md_count)
		g->md_count++;
	return PW_OK;
}

static enum pw_status slot_take(struct snp_host *h, struct snp_host_guest *g, uint64_t *slot, struct pw_err *err)
{
	struct snp_md_page *page;
	enum pw_status st = PW_OK;
	unsigned bit;

	while (g->md_from < g->md_count && g->md[g->md_from].used == UINT64_MAX)
		g->md_from++;
	if (g->md_from == g->md_count || !g->md[g->md_from].frame)
		st = md_make(h, g, err);
	if (st != PW_OK)
		return st;
	page = &g->md[g->md_from];
	bit = (unsigned)__builtin_ctzll(~page->used);
	page->used |= (uint64_t)1 << bit;
	*slot = g->md_from * SNP_MD_SLOTS + bit;
	return PW_OK;
}

enum pw_status snp_host_slots_take(struct snp_host *h, struct snp_host_guest *g, uint64_t count, uint64_t *slots,
				   struct pw_err *err)
{
	enum pw_status st = PW_OK;

	for (uint64_t i = 0; i < count; i++) {
		st = slot_take(h, g, &slots[i], err);
		if (st == PW_OK)
			continue;
		while (i > 0)
			snp_host_slots_drop(h, g, slots[--i], 1);
		break;
	}
	return st;
}

void snp_host_slots_drop(struct snp_host *h, struct snp_host_guest *g, uint64_t first, uint64_t count)
{
	for (uint64_t slot = first; slot < first + count; slot++) {
		size_t at = (size_t)(slot / SNP_MD_SLOTS);

		g->md[at].used &= ~((uint64_t)1 << slot % SNP_MD_SLOTS);
		if (at < g->md_from)
			g->md_from = at;
		if (g->md[at].used)
			continue;
		frame_give(h, g->md[at].frame);
		g->md[at].frame = 0;
	}
}
