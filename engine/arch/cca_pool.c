/* The host's granules: which are free, and what the others were given away for. */
#include <assert.h>

#include "engine/arch/cca_host_impl.h"

#define USE_SHIFT                 56
#define LAST_SHIFT                36 /* of a leak */
#define CMD_SHIFT                 31
#define STATUS_SHIFT              28
#define REALM_MASK                (((uint64_t)1 << 28) - 1)

#define TEXT_(name, text)         [name] = text,
#define TEXT3_(name, text, value) [name] = text,
#define VALUE_(name, text, value) [name] = value,
static const char *const use_names[CCA_HOST_USE_COUNT] = { CCA_HOST_USES(TEXT_) };
static const char *const code_names[CCA_HOST_CODE_COUNT] = { CCA_HOST_CODES(TEXT3_) };
static const int code_values[CCA_HOST_CODE_COUNT] = { CCA_HOST_CODES(VALUE_) };

const char *cca_host_use_name(enum cca_host_use u)
{
	return use_names[u];
}

const char *cca_host_code_name(enum cca_host_code c)
{
	return code_names[c];
}

int cca_host_code_value(enum cca_host_code c)
{
	return code_values[c];
}

static uint64_t use_word(enum cca_host_use u, uint64_t realm)
{
	return u == CCA_USE_FREE || u == CCA_USE_PART || u == CCA_USE_LENT ? (uint64_t)u << USE_SHIFT
									   : (uint64_t)u << USE_SHIFT | realm;
}

static enum cca_host_use word_use(uint64_t word)
{
	return (enum cca_host_use)(word >> USE_SHIFT & 0xf);
}

static uint64_t place(const struct cca_host *h, uint64_t addr)
{
	return (addr - h->base) >> CCA_SHIFT;
}

static void uses_set(struct cca_host *h, uint64_t first, uint64_t count, uint64_t word)
{
	enum pw_status st = tree_set(&h->uses, first, count, word);

	assert(st == PW_OK); /* reserved before */
	(void)st;
}

enum cca_host_use cca_host_use(const struct cca_host *h, uint64_t addr)
{
	bool inside = addr >= h->base && place(h, addr) < h->granules;

	return inside ? word_use(tree_get(&h->uses, place(h, addr))) : CCA_USE_FREE;
}

void cca_pool_set(struct cca_host *h, uint64_t addr, uint64_t count, enum cca_host_use use, uint64_t realm)
{
	uses_set(h, place(h, addr), count, use_word(use, realm));
}

/* Free pieces. */

/* A single granule may come out of a host page that is used already. */
static bool find(const struct cca_host *h, enum cca_host_use from, uint64_t count, uint64_t align, uint64_t *out)
{
	struct tree_run run;

	for (uint64_t at = from == CCA_USE_FREE ? h->low : 0; at < h->granules; at += run.count) {
		uint64_t first = (at + align - 1) / align * align;

		run = tree_run_at(&h->uses, at, h->granules);
		if (word_use(run.entry) != from || first - at >= run.count || run.count - (first - at) < count)
			continue;
		*out = first;
		return true;
	}
	return false;
}

static uint64_t whole_pages(const struct cca_host *h, uint64_t count)
{
	return (count + h->page_granules - 1) / h->page_granules * h->page_granules;
}

static bool find_any(const struct cca_host *h, uint64_t count, uint64_t align, uint64_t *out, bool *part)
{
	*part = count == 1 && h->page_granules > 1 && find(h, CCA_USE_PART, 1, 1, out);
	return *part ||
	       find(h, CCA_USE_FREE, whole_pages(h, count), align > h->page_granules ? align : h->page_granules, out);
}

bool cca_pool_has(const struct cca_host *h, uint64_t count, uint64_t align)
{
	uint64_t at;
	bool part;

	return find_any(h, count, align, &at, &part);
}

static bool is_lent(const struct cca_host *h, uint64_t at)
{
	return at >= h->lent && at - h->lent < h->lent_count;
}

/* Undelegated again: free, if the whole host page is (LEAK-3). */
static void release(struct cca_host *h, uint64_t first, uint64_t count)
{
	uint64_t p = h->page_granules;
	struct tree_run run;

	if (is_lent(h, first)) {
		uses_set(h, first, count, use_word(CCA_USE_LENT, 0));
		return;
	}
	uses_set(h, first, count, use_word(CCA_USE_PART, 0));
	for (uint64_t page = first / p * p; page < first + count; page += p) {
		run = tree_run_at(&h->uses, page, page + p);
		if (word_use(run.entry) != CCA_USE_PART || run.count != p)
			continue;
		uses_set(h, page, p, 0);
		h->free += p;
		if (page < h->low)
			h->low = page;
	}
}

static enum pw_status reserve(struct cca_host *h)
{
	return arena_reserve_sets(&h->arena, 4);
}

/* Leaks. */

static void leak(struct cca_host *h, uint64_t at)
{
	uint64_t word = tree_get(&h->uses, at);
	struct pw_err why;

	uses_set(h, at, 1,
		 (uint64_t)CCA_USE_LEAKED << USE_SHIFT | (uint64_t)word_use(word) << LAST_SHIFT |
			 (uint64_t)CCA_GRANULE_UNDELEGATE << CMD_SHIFT | (uint64_t)h->last.status << STATUS_SHIFT |
			 (word & REALM_MASK));
	h->leaked++;
	if (!is_lent(h, at) || !h->lender.kept)
		return;
	cca_host_explain(h, &why);
	h->lender.kept(h->lender.ctx, h->base + (at << CCA_SHIFT), why.msg);
}

bool cca_host_next_leak(const struct cca_host *h, uint64_t addr, struct cca_host_leak *out)
{
	struct tree_run run;

	for (uint64_t at = addr > h->base ? place(h, addr) : 0; at < h->granules; at += run.count) {
		run = tree_run_at(&h->uses, at, h->granules);
		if (word_use(run.entry) != CCA_USE_LEAKED)
			continue;
		*out = (struct cca_host_leak){
			.addr = h->base + (at << CCA_SHIFT),
			.last = (enum cca_host_use)(run.entry >> LAST_SHIFT & 0xf),
			.realm = run.entry & REALM_MASK,
			.cmd = (enum cca_command)(run.entry >> CMD_SHIFT & 0x1f),
			.status = (enum cca_status)(run.entry >> STATUS_SHIFT & 7),
		};
		return true;
	}
	return false;
}

/* Taking and putting back. */

static struct cca_call granule_call(enum cca_command cmd, uint64_t addr)
{
	struct cca_call call = { .cmd = cmd };

	call.arg[CCA_ARG_ADDR] = addr;
	return call;
}

/* Granules of one kind, lent or not; no more than are given back. */
static enum pw_status undelegate_some(struct cca_host *h, uint64_t at, uint64_t count, uint64_t *done)
{
	struct cca_call call = granule_call(CCA_GRANULE_UNDELEGATE, h->base + (at << CCA_SHIFT));
	enum pw_status st;

	*done = 0;
	if (reserve(h) != PW_OK)
		return PW_NO_MEMORY;
	st = cca_host_run(h, &call, count, done);
	if (*done)
		release(h, at, *done);
	return st;
}

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

/* How many from `at` on are lent, or are not, and whether EL3 is asked to refuse the one behind those. */
static uint64_t alike(const struct cca_host *h, uint64_t at, uint64_t count, bool *refuse)
{
	uint64_t n = count, given;

	*refuse = false;
	if (!is_lent(h, at))
		return at < h->lent && h->lent_count ? min_u64(n, h->lent - at) : n;
	n = min_u64(n, h->lent + h->lent_count - at);
	given = h->lender.gives_back ? h->lender.gives_back(h->lender.ctx, n) : n;
	*refuse = given < n;
	return min_u64(given, n);
}

static enum pw_status undelegate(struct cca_host *h, uint64_t addr, uint64_t count)
{
	uint64_t end = place(h, addr) + count, done;
	enum pw_status st;

	for (uint64_t at = place(h, addr); at < end; at += done) {
		bool refuse;
		uint64_t n = alike(h, at, end - at, &refuse);

		st = undelegate_some(h, at, n, &done);
		if (st == PW_OK && done == n && refuse) {
			h->m->el3_refuses = 1;
			at += n;
			st = undelegate_some(h, at, 1, &done);
			n = 1;
		}
		if (st != PW_OK)
			return st;
		if (done == n)
			continue;
		if (reserve(h) != PW_OK)
			return PW_NO_MEMORY;
		leak(h, at + done);
		done++;
	}
	return PW_OK;
}

enum pw_status cca_pool_put(struct cca_host *h, uint64_t addr, uint64_t count)
{
	return undelegate(h, addr, count);
}

enum pw_status cca_pool_take(struct cca_host *h, enum cca_host_use use, uint64_t realm, uint64_t count, uint64_t align,
			     uint64_t *addr, enum cca_host_code *code)
{
	struct cca_call call;
	struct cca_host_said said;
	uint64_t at, done = count;
	enum pw_status st = PW_OK;
	bool part;

	if (reserve(h) != PW_OK)
		return PW_NO_MEMORY;
	*code = CCA_HOST_ENOMEM;
	if (!find_any(h, count, align, &at, &part))
		return PW_OK;
	if (!part) {
		uses_set(h, at, whole_pages(h, count), use_word(CCA_USE_PART, 0));
		h->free -= whole_pages(h, count);
	}
	uses_set(h, at, count, use_word(use, realm));
	call = granule_call(CCA_GRANULE_DELEGATE, h->base + (at << CCA_SHIFT));
	if (use != CCA_USE_HOST)
		st = cca_host_run(h, &call, count, &done);
	if (st == PW_OK && done == count) {
		*addr = h->base + (at << CCA_SHIFT);
		*code = CCA_HOST_OK;
		return PW_OK;
	}
	said = cca_host_said(h);
	release(h, at + done, count - done);
	if (st == PW_OK && done)
		st = undelegate(h, h->base + (at << CCA_SHIFT), done);
	cca_host_say_again(h, &said);
	*code = CCA_HOST_EIO;
	return st;
}

/* Lent granules: what a realm's data is on, by its lender's choice. */

enum pw_status cca_host_lend(struct cca_host *h, uint64_t addr, uint64_t count, const struct cca_host_lender *lender)
{
	uint64_t at = place(h, addr);
	struct tree_run run;

	if (h->page_granules != 1 || h->lent_count || !count || addr % CCA_GRANULE || addr < h->base ||
	    at >= h->granules || count > h->granules - at)
		return PW_INVALID;
	run = tree_run_at(&h->uses, at, at + count);
	if (word_use(run.entry) != CCA_USE_FREE || run.count != count)
		return PW_INVALID;
	if (reserve(h) != PW_OK)
		return PW_NO_MEMORY;
	uses_set(h, at, count, use_word(CCA_USE_LENT, 0));
	h->free -= count;
	h->lent = at;
	h->lent_count = count;
	h->lender = *lender;
	return PW_OK;
}

/* Granules alike in record and state. */
struct lent_run {
	uint64_t count;
	enum cca_host_use use;
	uint64_t realm;
	enum cca_granule state;
};

static struct lent_run lent_run_at(const struct cca_host *h, uint64_t at, uint64_t end)
{
	uint64_t page = (h->base >> CCA_SHIFT) + at;
	struct tree_run use = tree_run_at(&h->uses, at, end);
	struct tree_run granule = tree_run_at(&h->m->granules, page, page + end - at);

	return (struct lent_run){ .count = min_u64(use.count, granule.count),
				  .use = word_use(use.entry),
				  .realm = use.entry & REALM_MASK,
				  .state = cca_granule_state(h->m, page << CCA_SHIFT) };
}

/* Still delegated, and without data. */
static bool is_idle(const struct lent_run *run)
{
	return run->use == CCA_USE_DATA && run->state == CCA_DELEGATED;
}

enum pw_status cca_pool_take_lent(struct cca_host *h, uint64_t realm, uint64_t addr, uint64_t count,
				  enum cca_host_code *code)
{
	uint64_t first = place(h, addr), end = first + count, done;
	struct lent_run run;
	enum pw_status st = PW_OK;

	*code = CCA_HOST_EINVAL;
	if (addr < h->base || !is_lent(h, first) || count > h->lent + h->lent_count - first)
		return PW_OK;
	for (uint64_t at = first; at < end; at += run.count) {
		run = lent_run_at(h, at, end);
		if (run.use != CCA_USE_LENT && !(is_idle(&run) && run.realm == realm))
			return PW_OK;
	}
	*code = CCA_HOST_OK;
	for (uint64_t at = first; at < end && st == PW_OK && *code == CCA_HOST_OK; at += run.count) {
		struct cca_call call = granule_call(CCA_GRANULE_DELEGATE, h->base + (at << CCA_SHIFT));

		run = lent_run_at(h, at, end);
		if (run.use != CCA_USE_LENT)
			continue;
		if (reserve(h) != PW_OK)
			return PW_NO_MEMORY;
		st = cca_host_run(h, &call, run.count, &done);
		if (done)
			uses_set(h, at, done, use_word(CCA_USE_DATA, realm));
		if (done < run.count)
			*code = CCA_HOST_EIO;
	}
	return st;
}

enum pw_status cca_host_put_lent(struct cca_host *h, uint64_t data, uint64_t count)
{
	uint64_t end = place(h, data) + count;
	struct lent_run run;
	enum pw_status st = PW_OK;

	for (uint64_t at = place(h, data); at < end && st == PW_OK; at += run.count) {
		run = lent_run_at(h, at, end);
		if (is_idle(&run))
			st = cca_pool_put(h, h->base + (at << CCA_SHIFT), run.count);
	}
	return st;
}

/* All of them, or EIO where EL3 refuses. */
static enum pw_status give_run(struct cca_host *h, uint64_t at, uint64_t count, enum cca_host_code *code)
{
	uint64_t end = at + count, done;
	enum pw_status st = PW_OK;

	while (at < end && st == PW_OK && *code == CCA_HOST_OK) {
		bool refuse;
		uint64_t n = alike(h, at, end - at, &refuse);

		st = undelegate_some(h, at, n, &done);
		if (st == PW_OK && done == n && refuse) {
			h->m->el3_refuses = 1;
			at += n;
			n = 1;
			st = undelegate_some(h, at, n, &done);
		}
		if (done < n)
			*code = CCA_HOST_EIO;
		at += done;
	}
	return st;
}

enum pw_status cca_host_give_lent(struct cca_host *h, uint64_t data, uint64_t count, enum cca_host_code *code)
{
	uint64_t end = place(h, data) + count;
	struct lent_run run;
	enum pw_status st = PW_OK;

	*code = CCA_HOST_OK;
	for (uint64_t at = place(h, data); at < end && st == PW_OK && *code == CCA_HOST_OK; at += run.count) {
		run = lent_run_at(h, at, end);
		if (is_idle(&run))
			st = give_run(h, at, run.count, code);
	}
	return st;
}

enum pw_status cca_pool_sweep(struct cca_host *h, uint64_t realm)
{
	struct tree_run run;

	for (uint64_t at = 0; at < h->granules; at += run.count) {
		enum cca_host_use u;

		run = tree_run_at(&h->uses, at, h->granules);
		u = word_use(run.entry);
		if (u <= CCA_USE_HOST || u == CCA_USE_LEAKED || (run.entry & REALM_MASK) != realm)
			continue;
		if (undelegate(h, h->base + (at << CCA_SHIFT), run.count) != PW_OK)
			return PW_NO_MEMORY;
	}
	return PW_OK;
}

/* Life. */

enum pw_status cca_host_init(struct cca_host *h, struct cca *m, struct pw_mem *mem, uint64_t base, uint64_t granules,
			     unsigned page_granules)
{
	uint64_t page = page_granules * CCA_GRANULE;

	if ((page_granules != 1 && page_granules != 4 && page_granules != 16) || base % page ||
	    granules % page_granules || granules > TREE_PAGES)
		return PW_INVALID;
	*h = (struct cca_host){
		.m = m, .mem = mem, .base = base, .granules = granules, .page_granules = page_granules
	};
	h->free = granules;
	h->realms_made = 1;
	arena_init(&h->arena, mem);
	tree_init(&h->uses, &h->arena);
	return PW_OK;
}

void cca_host_release(struct cca_host *h)
{
	struct cca_host_realm *r, *next;

	for (r = h->realms; r; r = next) {
		next = r->next;
		pw_mem_free(h->mem, r, sizeof *r);
	}
	tree_release(&h->uses);
	arena_release(&h->arena);
}

/* Checks. */

static bool fits(enum cca_host_use u, enum cca_granule g)
{
	switch (u) {
	case CCA_USE_FREE:
	case CCA_USE_PART:
	case CCA_USE_LENT:
	case CCA_USE_HOST: return g == CCA_UNDELEGATED;
	case CCA_USE_RD: return g == CCA_RD;
	case CCA_USE_ROOT:
	case CCA_USE_TABLE: return g == CCA_RTT;
	case CCA_USE_SPARE: return g == CCA_DELEGATED || g == CCA_RTT;
	case CCA_USE_HANDY: return g == CCA_DELEGATED;
	case CCA_USE_DATA: return g == CCA_DATA;
	case CCA_USE_REC: return g == CCA_REC;
	case CCA_USE_AUX: return g == CCA_REC_AUX;
	case CCA_USE_LEAKED: return g != CCA_UNDELEGATED;
	case CCA_HOST_USE_COUNT: break;
	}
	return false;
}

static bool wrong(struct pw_err *err, const char *what, uint64_t addr)
{
	(void)pw_fail(err, PW_CONFLICT, "%s: 0x%" PRIx64, what, addr);
	return false;
}

static bool check_spares(const struct cca_host *h, struct pw_err *err)
{
	for (const struct cca_host_realm *r = h->realms; r; r = r->next) {
		enum cca_granule g = cca_granule_state(h->m, r->spare);

		if (cca_host_use(h, r->spare) != CCA_USE_SPARE || g != (r->spare_is_in ? CCA_DELEGATED : CCA_RTT))
			return wrong(err, "SPARE-1: the guaranteed spare is not what it should be", r->spare);
		if (r->handy && cca_host_use(h, r->handy) != CCA_USE_HANDY)
			return wrong(err, "SPARE-2: the opportunistic spare is not recorded", r->handy);
	}
	return true;
}

bool cca_host_check(const struct cca_host *h, struct pw_err *err)
{
	uint64_t free = 0, leaked = 0;
	struct tree_run run;

	for (uint64_t at = 0; at < h->granules; at += run.count) {
		enum cca_host_use u;

		run = tree_run_at(&h->uses, at, h->granules);
		u = word_use(run.entry);
		free += u == CCA_USE_FREE ? run.count : 0;
		leaked += u == CCA_USE_LEAKED ? run.count : 0;
		if (u == CCA_USE_FREE && (at % h->page_granules || run.count % h->page_granules || at < h->low))
			return wrong(err, "LEAK-3: part of a host page is free", h->base + (at << CCA_SHIFT));
		if (u == CCA_USE_LENT && !(is_lent(h, at) && is_lent(h, at + run.count - 1)))
			return wrong(err, "a granule is recorded as lent, and is not", h->base + (at << CCA_SHIFT));
		for (uint64_t i = 0, n; i < run.count; i += n) {
			uint64_t addr = h->base + ((at + i) << CCA_SHIFT), page = addr >> CCA_SHIFT;

			n = tree_run_at(&h->m->granules, page, page + run.count - i).count;
			if (!fits(u, cca_granule_state(h->m, addr)))
				return wrong(err, "LEAK-2: recorded use and granule differ", addr);
		}
	}
	if (free != h->free || leaked != h->leaked)
		return wrong(err, "the counts of free or leaked granules are wrong", h->base);
	return check_spares(h, err);
}
