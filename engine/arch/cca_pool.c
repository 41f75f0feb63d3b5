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
	return u == CCA_USE_FREE || u == CCA_USE_PART ? (uint64_t)u << USE_SHIFT : (uint64_t)u << USE_SHIFT | realm;
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

/* Undelegated again: free, if the whole host page is (LEAK-3). */
static void release(struct cca_host *h, uint64_t first, uint64_t count)
{
	uint64_t p = h->page_granules;
	struct tree_run run;

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

	uses_set(h, at, 1,
		 (uint64_t)CCA_USE_LEAKED << USE_SHIFT | (uint64_t)word_use(word) << LAST_SHIFT |
			 (uint64_t)CCA_GRANULE_UNDELEGATE << CMD_SHIFT | (uint64_t)h->last.status << STATUS_SHIFT |
			 (word & REALM_MASK));
	h->leaked++;
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

static enum pw_status undelegate(struct cca_host *h, uint64_t addr, uint64_t count)
{
	uint64_t done;

	for (uint64_t at = 0; at < count; at += done) {
		struct cca_call call = granule_call(CCA_GRANULE_UNDELEGATE, addr + (at << CCA_SHIFT));
		enum pw_status st;

		if (reserve(h) != PW_OK)
			return PW_NO_MEMORY;
		st = cca_rmi_run(h->m, &call, count - at, &done, &h->last);
		if (done)
			release(h, place(h, addr) + at, done);
		if (st != PW_OK)
			return st;
		if (at + done == count)
			break;
		if (reserve(h) != PW_OK)
			return PW_NO_MEMORY;
		leak(h, place(h, addr) + at + done);
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
	struct cca_result refused;
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
		st = cca_rmi_run(h->m, &call, count, &done, &h->last);
	if (st == PW_OK && done == count) {
		*addr = h->base + (at << CCA_SHIFT);
		*code = CCA_HOST_OK;
		return PW_OK;
	}
	refused = h->last;
	release(h, at + done, count - done);
	if (st == PW_OK && done)
		st = undelegate(h, h->base + (at << CCA_SHIFT), done);
	h->last = refused;
	*code = CCA_HOST_EIO;
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
		for (uint64_t i = 0; i < run.count; i++)
			if (!fits(u, cca_granule_state(h->m, h->base + ((at + i) << CCA_SHIFT))))
				return wrong(err, "LEAK-2: recorded use and granule differ",
					     h->base + ((at + i) << CCA_SHIFT));
	}
	if (free != h->free || leaked != h->leaked)
		return wrong(err, "the counts of free or leaked granules are wrong", h->base);
	return check_spares(h, err);
}
