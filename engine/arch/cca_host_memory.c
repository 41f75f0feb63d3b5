/* A realm's memory: tables where the RMM wants them, blocks where there can be some, and taking it all down. */
#include "engine/arch/cca_host_impl.h"

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

static uint64_t half_of(const struct cca_host_realm *r)
{
	return (uint64_t)1 << (r->ipa_bits - 1);
}

/* Levels. */

static unsigned map_level(unsigned top_level, uint64_t alignment, uint64_t base, uint64_t end)
{
	unsigned level = CCA_LEVELS - 1;

	while (level > top_level) {
		uint64_t size = cca_level_size(level - 1);

		if (alignment % size || end - base < size)
			break;
		level--;
	}
	return level;
}

unsigned cca_host_map_level(unsigned top_level, uint64_t base, uint64_t end)
{
	return map_level(top_level, base, base, end);
}

static bool is_range(const struct cca_host_realm *r, uint64_t base, uint64_t end)
{
	return (base | end) % CCA_GRANULE == 0 && base <= end && end <= half_of(r);
}

/* L9: is one of the pages mapped at the other alias than the one that is to be mapped now? */
static bool meets_alias(struct cca_host_realm *r, uint64_t base, uint64_t end, bool unprotected)
{
	const struct cca_realm *realm = cca_realm_at(r->host->m, r->rd);
	uint64_t half = unprotected ? 0 : half_of(r) >> CCA_SHIFT, to = end >> CCA_SHIFT;
	struct cca_pages other;

	for (uint64_t at = base >> CCA_SHIFT; at < to; at += other.count) {
		other = cca_pages_at(realm, half + at, half + to);
		if (unprotected ? cca_aliases_clash(other.entry, CCA_ASSIGNED_NS)
				: cca_aliases_clash(CCA_ASSIGNED_RAM, other.entry)) {
			r->host->alias = (struct cca_host_alias){ true, at << CCA_SHIFT, other.entry };
			return true;
		}
	}
	return false;
}

/* How mapping [base, end) begins. */
static enum cca_host_code may_map(struct cca_host_realm *r, uint64_t base, uint64_t end, bool unprotected)
{
	if (!is_range(r, base, end))
		return CCA_HOST_EINVAL;
	return meets_alias(r, base, end, unprotected) ? CCA_HOST_EEXIST : CCA_HOST_OK;
}

/* Spares and tables. */

enum pw_status cca_host_keep(struct cca_host_realm *r, uint64_t addr)
{
	if (r->handy)
		return cca_pool_put(r->host, addr, 1);
	if (arena_reserve(&r->host->arena) != PW_OK)
		return PW_NO_MEMORY;
	cca_pool_set(r->host, addr, 1, CCA_USE_HANDY, r->number);
	r->handy = addr;
	return PW_OK;
}

enum pw_status cca_host_drain(struct cca_host_realm *r)
{
	uint64_t addr = r->handy;

	r->handy = 0;
	return addr ? cca_pool_put(r->host, addr, 1) : PW_OK;
}

/* What the operation has done stays; its opportunistic spare does not. */
static enum pw_status finish(struct cca_host_realm *r, enum pw_status st)
{
	struct cca_host_said said = cca_host_said(r->host);
	enum pw_status drained = cca_host_drain(r);

	cca_host_say_again(r->host, &said);
	return st == PW_OK ? drained : st;
}

static enum pw_status table_granule(struct cca_host_realm *r, uint64_t *addr, enum cca_host_code *code)
{
	*code = CCA_HOST_OK;
	if (!r->handy)
		return cca_pool_take(r->host, CCA_USE_TABLE, r->number, 1, 1, addr, code);
	if (arena_reserve(&r->host->arena) != PW_OK)
		return PW_NO_MEMORY;
	*addr = r->handy;
	r->handy = 0;
	cca_pool_set(r->host, *addr, 1, CCA_USE_TABLE, r->number);
	return PW_OK;
}

/* One table; that it is there already is as good (SPARE-4). */
static enum pw_status table(struct cca_host_realm *r, uint64_t ipa, unsigned level, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	uint64_t rtt, at = ipa & ~(cca_level_size(level - 1) - 1);
	enum pw_status st = table_granule(r, &rtt, code);

	if (st != PW_OK || *code != CCA_HOST_OK)
		return st;
	st = CCA_HOST_RMI(h, CCA_RTT_CREATE, r->rd, rtt, at, level);
	if (st == PW_OK && h->last.status == CCA_SUCCESS)
		return PW_OK;
	if (st == PW_OK && !(h->last.status == CCA_ERROR_RTT && h->last.index == level - 1))
		*code = CCA_HOST_EIO;
	return st == PW_OK ? cca_host_keep(r, rtt) : st;
}

enum pw_status cca_host_tables(struct cca_host_realm *r, uint64_t ipa, unsigned from, unsigned to,
			       enum cca_host_code *code)
{
	enum pw_status st = PW_OK;

	*code = CCA_HOST_OK;
	for (unsigned level = from; level <= to && st == PW_OK && *code == CCA_HOST_OK; level++)
		st = table(r, ipa, level, code);
	return st;
}

/* A command that has failed at a level above the wanted one finds tables there the next time. */
static enum pw_status retry(struct cca_host_realm *r, uint64_t ipa, unsigned wanted, enum cca_host_code *code)
{
	const struct cca_result *last = &r->host->last;

	if (last->status == CCA_ERROR_RTT && last->index < wanted)
		return cca_host_tables(r, ipa, last->index + 1, wanted, code);
	*code = last->status == CCA_ERROR_RTT ? CCA_HOST_EEXIST : CCA_HOST_EIO;
	return PW_OK;
}

/* RIPAS. */

static enum pw_status ripas(struct cca_host_realm *r, uint64_t rec, uint64_t base, uint64_t end, uint64_t *done,
			    enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st = PW_OK;

	*code = CCA_HOST_OK;
	for (*done = base; *done < end && st == PW_OK && *code == CCA_HOST_OK;) {
		st = rec ? CCA_HOST_RMI(h, CCA_RTT_SET_RIPAS, r->rd, rec, *done, end)
			 : CCA_HOST_RMI(h, CCA_RTT_INIT_RIPAS, r->rd, *done, end);
		if (st != PW_OK)
			break;
		if (h->last.status == CCA_SUCCESS)
			*done = h->last.out[CCA_OUT_OUT_TOP];
		else
			st = retry(r, *done, cca_host_map_level(r->start, *done, end), code);
	}
	if (*code == CCA_HOST_EEXIST)
		*code = CCA_HOST_EIO;
	return finish(r, st);
}

enum pw_status cca_host_init_ripas(struct cca_host_realm *r, uint64_t base, uint64_t end, enum cca_host_code *code)
{
	uint64_t done;

	*code = r->state != CCA_NEW ? CCA_HOST_EPERM : CCA_HOST_EINVAL;
	if (r->state != CCA_NEW || !is_range(r, base, end))
		return PW_OK;
	return ripas(r, 0, base, end, &done, code);
}

/* Where the realm's request ends, as its exit told: base and top of the run page. */
static uint64_t asked_up_to(const struct cca_host_realm *r, uint64_t rec, uint64_t end)
{
	const struct cca_rec *asks = cca_rec_at(r->host->m, rec);

	return asks && asks->ripas.open ? min_u64(end, asks->ripas.end) : end;
}

enum pw_status cca_host_set_ripas(struct cca_host_realm *r, uint64_t rec, uint64_t base, uint64_t end, uint64_t *done,
				  enum cca_host_code *code)
{
	*done = base;
	*code = CCA_HOST_EINVAL;
	return is_range(r, base, end) ? ripas(r, rec, base, asked_up_to(r, rec, end), done, code) : PW_OK;
}

/* Pages. */

static enum pw_status data_retried(struct cca_host_realm *r, struct cca_call *call, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st;

	call->arg[CCA_ARG_RD] = r->rd;
	do {
		st = cca_host_call(h, call);
		*code = CCA_HOST_OK;
		if (st != PW_OK || h->last.status == CCA_SUCCESS)
			return st;
		st = retry(r, call->arg[CCA_ARG_IPA], CCA_LEVELS - 1, code);
	} while (st == PW_OK && *code == CCA_HOST_OK);
	return st;
}

/* One page; its granule goes back if the RMM does not take it. */
static enum pw_status data_page(struct cca_host_realm *r, struct cca_call *call, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	struct cca_host_said said;
	enum pw_status put, st;

	st = cca_pool_take(h, CCA_USE_DATA, r->number, 1, 1, &call->arg[CCA_ARG_DATA], code);
	if (st != PW_OK || *code != CCA_HOST_OK)
		return st;
	st = data_retried(r, call, code);
	if (st == PW_OK && *code == CCA_HOST_OK)
		return PW_OK;
	said = cca_host_said(h);
	put = cca_pool_put(h, call->arg[CCA_ARG_DATA], 1);
	cca_host_say_again(h, &said);
	return st == PW_OK ? put : st;
}

enum pw_status cca_host_populate(struct cca_host_realm *r, uint64_t ipa, const void *source, bool measure,
				 enum cca_host_code *code)
{
	struct cca_call call = { .cmd = CCA_DATA_CREATE, .source = source };

	*code = r->state != CCA_NEW ? CCA_HOST_EPERM : may_map(r, ipa, ipa + CCA_GRANULE, false);
	if (*code != CCA_HOST_OK)
		return PW_OK;
	call.arg[CCA_ARG_IPA] = ipa;
	call.arg[CCA_ARG_SRC] = r->host->page;
	call.arg[CCA_ARG_FLAGS] = measure;
	return finish(r, data_page(r, &call, code));
}

/* 512 pages in one piece, folded into a block. */
static enum pw_status data_block(struct cca_host_realm *r, uint64_t ipa, enum cca_host_code *code)
{
	struct cca_call call = { .cmd = CCA_DATA_CREATE_UNKNOWN };
	struct cca_host *h = r->host;
	struct cca_host_said said;
	uint64_t data, done = 0;
	enum pw_status put, st;

	st = cca_pool_take(h, CCA_USE_DATA, r->number, CCA_HOST_BLOCK, CCA_HOST_BLOCK, &data, code);
	if (st != PW_OK || *code != CCA_HOST_OK)
		return st;
	call.arg[CCA_ARG_IPA] = ipa;
	call.arg[CCA_ARG_DATA] = data;
	st = data_retried(r, &call, code);
	if (st == PW_OK && *code == CCA_HOST_OK) {
		call.arg[CCA_ARG_IPA] += CCA_GRANULE;
		call.arg[CCA_ARG_DATA] += CCA_GRANULE;
		st = cca_host_run(h, &call, CCA_HOST_BLOCK - 1, &done);
		done++;
		*code = h->last.status == CCA_SUCCESS ? CCA_HOST_OK : CCA_HOST_EEXIST;
	}
	if (done < CCA_HOST_BLOCK) {
		said = cca_host_said(h);
		put = cca_pool_put(h, data + done * CCA_GRANULE, CCA_HOST_BLOCK - done);
		cca_host_say_again(h, &said);
		return st == PW_OK ? put : st;
	}
	st = CCA_HOST_RMI(h, CCA_RTT_FOLD, r->rd, ipa, CCA_LEVELS - 1);
	if (st == PW_OK && h->last.status == CCA_SUCCESS)
		st = cca_host_keep(r, h->last.out[CCA_OUT_RTT]);
	return st;
}

enum pw_status cca_host_map(struct cca_host_realm *r, uint64_t base, uint64_t end, enum cca_host_code *code)
{
	enum pw_status st = PW_OK;
	uint64_t step;

	*code = may_map(r, base, end, false);
	if (*code != CCA_HOST_OK)
		return PW_OK;
	for (uint64_t at = base; at < end && st == PW_OK && *code == CCA_HOST_OK; at += step) {
		struct cca_call call = { .cmd = CCA_DATA_CREATE_UNKNOWN };

		step = cca_level_size(cca_host_map_level(CCA_HOST_BLOCK_LEVEL, at, end));
		if (step > CCA_GRANULE && cca_pool_has(r->host, CCA_HOST_BLOCK, CCA_HOST_BLOCK)) {
			st = data_block(r, at, code);
			continue;
		}
		step = CCA_GRANULE;
		call.arg[CCA_ARG_IPA] = at;
		st = data_page(r, &call, code);
	}
	return finish(r, st);
}

/* Taking pages back. */

/* 512 pages, or as many as are left below `end`, below a table of level 3. */
static enum pw_status pages_destroy(struct cca_host_realm *r, uint64_t base, uint64_t end, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st = PW_OK;

	*code = CCA_HOST_OK;
	for (uint64_t at = base; at < end && st == PW_OK;) {
		st = CCA_HOST_RMI(h, CCA_DATA_DESTROY, r->rd, at);
		if (st != PW_OK)
			break;
		if (h->last.status != CCA_SUCCESS && h->last.out[CCA_OUT_TOP] <= at) {
			*code = CCA_HOST_EIO;
			break;
		}
		at = h->last.out[CCA_OUT_TOP];
		if (h->last.status == CCA_SUCCESS)
			st = cca_pool_put(h, h->last.out[CCA_OUT_DATA], 1);
	}
	return st;
}

/* The same for a block whose pages are known to follow each other. */
static enum pw_status run_destroy(struct cca_host_realm *r, uint64_t ipa, uint64_t data)
{
	struct cca_call call = { .cmd = CCA_DATA_DESTROY };
	uint64_t done;
	enum pw_status st;

	call.arg[CCA_ARG_RD] = r->rd;
	call.arg[CCA_ARG_IPA] = ipa;
	st = cca_host_run(r->host, &call, CCA_HOST_BLOCK, &done);
	return st == PW_OK && done ? cca_pool_put(r->host, data, done) : st;
}

/* The guaranteed spare unfolds a block. */
static enum pw_status spare_out(struct cca_host_realm *r, uint64_t ipa, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st;

	*code = r->spare_is_in ? CCA_HOST_OK : CCA_HOST_ENOSPARE;
	if (*code != CCA_HOST_OK)
		return PW_OK;
	st = CCA_HOST_RMI(h, CCA_RTT_CREATE, r->rd, r->spare, ipa, CCA_LEVELS - 1);
	if (st != PW_OK)
		return st;
	if (h->last.status == CCA_SUCCESS)
		r->spare_is_in = false;
	else
		*code = CCA_HOST_EIO;
	return PW_OK;
}

/* The table that the guaranteed spare served as goes, and the spare is in again. Folding keeps the RIPAS of what was
 * below; RTT_DESTROY would make it DESTROYED, also where the realm gave the pages up. */
static enum pw_status spare_back(struct cca_host_realm *r, uint64_t ipa, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st = CCA_HOST_RMI(h, CCA_RTT_FOLD, r->rd, ipa, CCA_LEVELS - 1);

	if (st == PW_OK && h->last.status == CCA_ERROR_RTT)
		st = CCA_HOST_RMI(h, CCA_RTT_DESTROY, r->rd, ipa, CCA_LEVELS - 1);
	if (st != PW_OK)
		return st;
	if (h->last.status != CCA_SUCCESS || h->last.out[CCA_OUT_RTT] != r->spare)
		*code = CCA_HOST_EIO;
	else
		r->spare_is_in = true;
	return PW_OK;
}

/* SPARE-1, SPARE-3: nothing but the spare is needed, and it comes back before the next block. */
static enum pw_status block_destroy(struct cca_host_realm *r, uint64_t ipa, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	uint64_t data;
	enum pw_status st = CCA_HOST_RMI(h, CCA_RTT_READ_ENTRY, r->rd, ipa, CCA_HOST_BLOCK_LEVEL);

	if (st != PW_OK)
		return st;
	data = h->last.out[CCA_OUT_DESC];
	st = spare_out(r, ipa, code);
	if (st != PW_OK || *code != CCA_HOST_OK)
		return st;
	st = data ? run_destroy(r, ipa, data) : pages_destroy(r, ipa, ipa + cca_level_size(CCA_HOST_BLOCK_LEVEL), code);
	return st == PW_OK && *code == CCA_HOST_OK ? spare_back(r, ipa, code) : st;
}

/* A block is in the way of a page: all of it goes, or it becomes a table that stays. */
static enum pw_status unblock(struct cca_host_realm *r, uint64_t at, uint64_t end, uint64_t *next,
			      enum cca_host_code *code)
{
	uint64_t size = cca_level_size(CCA_HOST_BLOCK_LEVEL);

	*next = at;
	*code = CCA_HOST_EIO;
	if (r->host->last.index != CCA_HOST_BLOCK_LEVEL)
		return PW_OK;
	if (at % size || end - at < size)
		return cca_host_tables(r, at, CCA_LEVELS - 1, CCA_LEVELS - 1, code);
	*next = at + size;
	return block_destroy(r, at, code);
}

static enum pw_status unmap(struct cca_host_realm *r, uint64_t base, uint64_t end, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st = PW_OK;

	*code = CCA_HOST_OK;
	for (uint64_t at = base; at < end && st == PW_OK && *code == CCA_HOST_OK;) {
		uint64_t here = at;

		st = CCA_HOST_RMI(h, CCA_DATA_DESTROY, r->rd, here);
		if (st != PW_OK)
			break;
		if (h->last.status == CCA_SUCCESS) {
			at = min_u64(end, h->last.out[CCA_OUT_TOP]);
			st = cca_pool_put(h, h->last.out[CCA_OUT_DATA], 1);
		} else if (h->last.status != CCA_ERROR_RTT) {
			*code = CCA_HOST_EIO;
		} else if (h->last.out[CCA_OUT_TOP] > here) {
			at = h->last.out[CCA_OUT_TOP];
		} else {
			st = unblock(r, here, end, &at, code);
		}
	}
	return st;
}

enum pw_status cca_host_unmap(struct cca_host_realm *r, uint64_t base, uint64_t end, enum cca_host_code *code)
{
	*code = CCA_HOST_EINVAL;
	return is_range(r, base, end) ? finish(r, unmap(r, base, end, code)) : PW_OK;
}

/* Lent granules. */

static uint64_t next_block(uint64_t ipa, uint64_t end)
{
	uint64_t size = cca_level_size(CCA_HOST_BLOCK_LEVEL);

	return min_u64(end, (ipa & ~(size - 1)) + size);
}

/* What a fold gives back: the guaranteed spare, if an operation on its block was broken off. */
static enum pw_status folded(struct cca_host_realm *r)
{
	uint64_t rtt = r->host->last.out[CCA_OUT_RTT];

	if (rtt != r->spare)
		return cca_host_keep(r, rtt);
	r->spare_is_in = true;
	return PW_OK;
}

static enum pw_status fold_one(struct cca_host_realm *r, uint64_t ipa)
{
	uint64_t first = ipa & ~(cca_level_size(CCA_HOST_BLOCK_LEVEL) - 1);
	enum pw_status st = CCA_HOST_RMI(r->host, CCA_RTT_FOLD, r->rd, first, CCA_LEVELS - 1);

	return st == PW_OK && r->host->last.status == CCA_SUCCESS ? folded(r) : st;
}

enum pw_status cca_host_fold(struct cca_host_realm *r, uint64_t base, uint64_t end)
{
	enum pw_status st = PW_OK;

	for (uint64_t at = base; at < end && st == PW_OK; at = next_block(at, end))
		st = fold_one(r, at);
	return finish(r, st);
}

/* Pages below one table of level 3, which is made where it lacks. */
static enum pw_status lent_stretch(struct cca_host_realm *r, struct cca_call *call, uint64_t count,
				   enum cca_host_code *code)
{
	uint64_t ipa = call->arg[CCA_ARG_IPA], data = call->arg[CCA_ARG_DATA], done;
	enum pw_status st = PW_OK;

	call->arg[CCA_ARG_RD] = r->rd;
	for (uint64_t at = 0; at < count && st == PW_OK && *code == CCA_HOST_OK; at += done) {
		call->arg[CCA_ARG_IPA] = ipa + at * CCA_GRANULE;
		call->arg[CCA_ARG_DATA] = data + at * CCA_GRANULE;
		st = cca_host_run(r->host, call, count - at, &done);
		if (st == PW_OK && done < count - at)
			st = retry(r, call->arg[CCA_ARG_IPA], CCA_LEVELS - 1, code);
	}
	if (st != PW_OK || *code != CCA_HOST_OK || (ipa ^ data) % cca_level_size(CCA_HOST_BLOCK_LEVEL))
		return st;
	return fold_one(r, ipa);
}

/* The first stretch of at most `count` pages; *done: how many it has. */
static enum pw_status lent_first(struct cca_host_realm *r, uint64_t ipa, uint64_t count, uint64_t data,
				 const void *source, uint64_t *done, enum cca_host_code *code)
{
	struct cca_call call = { .cmd = source ? CCA_DATA_CREATE : CCA_DATA_CREATE_UNKNOWN, .source = source };

	*done = (next_block(ipa, ipa + count * CCA_GRANULE) - ipa) >> CCA_SHIFT;
	call.arg[CCA_ARG_IPA] = ipa;
	call.arg[CCA_ARG_DATA] = data;
	call.arg[CCA_ARG_SRC] = r->host->page;
	call.arg[CCA_ARG_FLAGS] = source != NULL;
	return lent_stretch(r, &call, *done, code);
}

enum pw_status cca_host_map_lent(struct cca_host_realm *r, uint64_t base, uint64_t count, uint64_t data,
				 const void *source, enum cca_host_code *code)
{
	uint64_t done;
	enum pw_status st;

	*code = may_map(r, base, base + count * CCA_GRANULE, false);
	if (*code != CCA_HOST_OK)
		return PW_OK;
	st = cca_pool_take_lent(r->host, r->number, data, count, code);
	for (uint64_t at = 0; at < count && st == PW_OK && *code == CCA_HOST_OK; at += done)
		st = lent_first(r, base + at * CCA_GRANULE, count - at, data + at * CCA_GRANULE, source, &done, code);
	return finish(r, st);
}

/* The spare unfolds what was a block, if there is no table; folding it again brings it back. */
static enum pw_status spare_for_block(struct cca_host_realm *r, uint64_t ipa, uint64_t data, uint64_t count,
				      enum cca_host_code *code)
{
	uint64_t block = cca_level_size(CCA_HOST_BLOCK_LEVEL);
	enum pw_status st;

	if ((ipa | data) % block || count < CCA_HOST_BLOCK)
		return PW_OK;
	st = spare_out(r, ipa, code);
	if (st == PW_OK && *code == CCA_HOST_EIO && r->host->last.status == CCA_ERROR_RTT)
		*code = CCA_HOST_OK;
	return st;
}

enum pw_status cca_host_restore_lent(struct cca_host_realm *r, uint64_t base, uint64_t count, uint64_t data,
				     const void *source, enum cca_host_code *code)
{
	uint64_t done;
	enum pw_status st;

	*code = may_map(r, base, base + count * CCA_GRANULE, false);
	if (*code != CCA_HOST_OK)
		return PW_OK;
	st = cca_pool_take_lent(r->host, r->number, data, count, code);
	for (uint64_t at = 0; at < count && st == PW_OK && *code == CCA_HOST_OK; at += done) {
		uint64_t ipa = base + at * CCA_GRANULE, from = data + at * CCA_GRANULE;

		st = spare_for_block(r, ipa, from, count - at, code);
		if (st == PW_OK && *code == CCA_HOST_OK)
			st = lent_first(r, ipa, count - at, from, source, &done, code);
	}
	return finish(r, st);
}

/* A whole block, by the spare; or a table for the pages that stay. */
static enum pw_status lent_block(struct cca_host_realm *r, uint64_t ipa, uint64_t end, uint64_t *next,
				 enum cca_host_code *code)
{
	struct cca_call call = { .cmd = CCA_DATA_DESTROY };
	uint64_t size = cca_level_size(CCA_HOST_BLOCK_LEVEL), done;
	enum pw_status st;

	*next = ipa;
	if (ipa % size || end - ipa < size)
		return cca_host_tables(r, ipa, CCA_LEVELS - 1, CCA_LEVELS - 1, code);
	st = spare_out(r, ipa, code);
	if (st != PW_OK || *code != CCA_HOST_OK)
		return st;
	call.arg[CCA_ARG_RD] = r->rd;
	call.arg[CCA_ARG_IPA] = ipa;
	st = cca_host_run(r->host, &call, CCA_HOST_BLOCK, &done);
	if (st == PW_OK && done < CCA_HOST_BLOCK)
		*code = CCA_HOST_EIO;
	*next = ipa + size;
	return st == PW_OK && *code == CCA_HOST_OK ? spare_back(r, ipa, code) : st;
}

enum pw_status cca_host_unmap_lent(struct cca_host_realm *r, uint64_t base, uint64_t count, enum cca_host_code *code)
{
	uint64_t end = base + count * CCA_GRANULE, done;
	struct cca_host *h = r->host;
	enum pw_status st = PW_OK;

	*code = is_range(r, base, end) ? CCA_HOST_OK : CCA_HOST_EINVAL;
	for (uint64_t at = base; at < end && st == PW_OK && *code == CCA_HOST_OK;) {
		struct cca_call call = { .cmd = CCA_DATA_DESTROY };
		uint64_t n = (next_block(at, end) - at) >> CCA_SHIFT;

		call.arg[CCA_ARG_RD] = r->rd;
		call.arg[CCA_ARG_IPA] = at;
		st = cca_host_run(h, &call, n, &done);
		at += done * CCA_GRANULE;
		if (st != PW_OK || done == n)
			continue;
		if (h->last.status == CCA_ERROR_RTT && h->last.index == CCA_HOST_BLOCK_LEVEL &&
		    h->last.out[CCA_OUT_TOP] == at)
			st = lent_block(r, at, end, &at, code);
		else
			*code = CCA_HOST_EIO;
	}
	return finish(r, st);
}

/* The host's own memory, at the unprotected alias. */

static unsigned top_level(const struct cca_host_realm *r)
{
	return r->start ? r->start : 1;
}

/* Where there are tables already, the entries below them. */
static enum pw_status map_ns_one(struct cca_host_realm *r, uint64_t ipa, uint64_t pa, unsigned *level,
				 enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st;

	for (;;) {
		*code = CCA_HOST_OK;
		st = CCA_HOST_RMI(h, CCA_RTT_MAP_UNPROTECTED, r->rd, ipa, *level, pa | CCA_HOST_NS_ATTR);
		if (st != PW_OK || h->last.status == CCA_SUCCESS)
			return st;
		if (h->last.status == CCA_ERROR_RTT && h->last.index == *level && *level < CCA_LEVELS - 1) {
			st = CCA_HOST_RMI(h, CCA_RTT_READ_ENTRY, r->rd, ipa, *level);
			if (st != PW_OK)
				return st;
			*code = h->last.out[CCA_OUT_STATE] == CCA_HOST_IS_TABLE ? CCA_HOST_OK : CCA_HOST_EEXIST;
			++*level;
		} else {
			st = retry(r, ipa, *level, code);
		}
		if (st != PW_OK || *code != CCA_HOST_OK)
			return st;
	}
}

enum pw_status cca_host_map_ns(struct cca_host_realm *r, uint64_t base, uint64_t end, uint64_t pa,
			       enum cca_host_code *code)
{
	enum pw_status st = PW_OK;
	unsigned level;

	*code = pa % CCA_GRANULE == 0 ? may_map(r, base, end, true) : CCA_HOST_EINVAL;
	if (*code != CCA_HOST_OK)
		return PW_OK;
	for (uint64_t at = base; at < end && st == PW_OK && *code == CCA_HOST_OK; at += cca_level_size(level)) {
		level = map_level(top_level(r), at | (pa + (at - base)), at, end);
		st = map_ns_one(r, half_of(r) + at, pa + (at - base), &level, code);
	}
	return finish(r, st);
}

/* An entry above pages: gone as a whole, or turned into a table. */
static enum pw_status unmap_ns_block(struct cca_host_realm *r, uint64_t ipa, uint64_t end, uint64_t *next,
				     enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	unsigned level = h->last.index;
	uint64_t size = cca_level_size(level);
	enum pw_status st;

	*next = ipa;
	*code = CCA_HOST_OK;
	if (ipa % size || end - ipa < size)
		return cca_host_tables(r, ipa, level + 1, level + 1, code);
	st = CCA_HOST_RMI(h, CCA_RTT_UNMAP_UNPROTECTED, r->rd, ipa, level);
	if (st == PW_OK && h->last.status != CCA_SUCCESS)
		*code = CCA_HOST_EIO;
	*next = ipa + size;
	return st;
}

enum pw_status cca_host_unmap_ns(struct cca_host_realm *r, uint64_t base, uint64_t end, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st = PW_OK;
	uint64_t half = half_of(r), to = half + end;

	*code = is_range(r, base, end) ? CCA_HOST_OK : CCA_HOST_EINVAL;
	for (uint64_t at = half + base; at < to && st == PW_OK && *code == CCA_HOST_OK;) {
		st = CCA_HOST_RMI(h, CCA_RTT_UNMAP_UNPROTECTED, r->rd, at, CCA_LEVELS - 1);
		if (st != PW_OK)
			break;
		if (h->last.status != CCA_SUCCESS && h->last.status != CCA_ERROR_RTT)
			*code = CCA_HOST_EIO;
		else if (h->last.out[CCA_OUT_TOP] > at)
			at = h->last.out[CCA_OUT_TOP];
		else
			st = unmap_ns_block(r, at, to, &at, code);
	}
	return finish(r, st);
}

/* The end of a realm. */

static enum pw_status table_gone(struct cca_host_realm *r, uint64_t rtt)
{
	if (rtt != r->spare)
		return cca_pool_put(r->host, rtt, 1);
	r->spare_is_in = true;
	return PW_OK;
}

/* Every table of the level in [base, end), after those below it (the host's duties, by `top` and index). */
static enum pw_status tables_destroy(struct cca_host_realm *r, unsigned level, uint64_t base, uint64_t end,
				     enum cca_host_code *code)
{
	uint64_t size = cca_level_size(level - 1);
	struct cca_host *h = r->host;
	enum pw_status st = PW_OK;

	for (uint64_t at = base; at < end && st == PW_OK && *code == CCA_HOST_OK;) {
		uint64_t top;

		st = CCA_HOST_RMI(h, CCA_RTT_DESTROY, r->rd, at, level);
		if (st != PW_OK)
			break;
		top = h->last.out[CCA_OUT_TOP];
		if (h->last.status == CCA_SUCCESS) {
			at = top > at ? top : at + size;
			st = table_gone(r, h->last.out[CCA_OUT_RTT]);
		} else if (h->last.status != CCA_ERROR_RTT) {
			*code = CCA_HOST_EIO;
		} else if (top > at) {
			at = top;
		} else if (h->last.index == level && level < CCA_LEVELS - 1) {
			st = tables_destroy(r, level + 1, at, at + size, code);
		} else if (at >= half_of(r) && h->last.index < level) {
			at += size; /* an NS block: nothing below it */
		} else {
			*code = CCA_HOST_EIO;
		}
	}
	return st;
}

static void forget(struct cca_host_realm *r)
{
	struct cca_host_realm **at = &r->host->realms;

	while (*at != r)
		at = &(*at)->next;
	*at = r->next;
	pw_mem_free(r->host->mem, r, sizeof *r);
}

static enum pw_status memory_end(struct cca_host_realm *r, enum cca_host_code *code)
{
	enum pw_status st;

	/* A table that a teardown left behind half-way holds the spare: it goes first. */
	st = r->spare_is_in ? PW_OK : unmap(r, 0, half_of(r), code);
	if (st == PW_OK && !r->spare_is_in) {
		*code = CCA_HOST_OK;
		st = tables_destroy(r, r->start + 1, 0, half_of(r), code);
	}
	if (st == PW_OK)
		st = unmap(r, 0, half_of(r), code);
	return st == PW_OK && *code == CCA_HOST_OK ? tables_destroy(r, r->start + 1, 0, 2 * half_of(r), code) : st;
}

enum pw_status cca_host_realm_end(struct cca_host_realm *r, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st = PW_OK;

	*code = CCA_HOST_OK;
	if (!r->gone) {
		st = cca_host_recs_end(r, code);
		if (st == PW_OK && *code == CCA_HOST_OK)
			st = memory_end(r, code);
		if (st != PW_OK || *code != CCA_HOST_OK)
			return st;
		st = CCA_HOST_RMI(h, CCA_REALM_DESTROY, r->rd);
		if (st != PW_OK)
			return st;
		if (h->last.status != CCA_SUCCESS) {
			*code = CCA_HOST_EIO;
			return PW_OK;
		}
		r->gone = true;
	}
	st = cca_pool_sweep(h, r->number);
	if (st == PW_OK)
		forget(r);
	return st;
}
