/* engine/arch/cca_host.h
 *
 * The host's side of CCA: which granules it gave away and why, and the sequences of RMI commands that build a realm,
 * change its memory and take it down again. Here is decided what a kernel driver decides: find-map-level, walk-retry on
 * RMI_ERROR_RTT, what to do when a granule does not come back.
 *
 * SPARE-1  Each realm has one guaranteed spare granule, delegated before the realm is made. It serves for nothing but
 *          the table that unfolds a block which is torn down, or put back as it was (cca_host_restore_lent), and is
 *          back before the next block is touched. Blocks of level 2 only, so that one is enough: the host never folds
 *          further.
 * SPARE-2  What a fold gives back may serve the same operation again; at its end it is given up.
 * SPARE-3  Tearing down takes no granule from the pool.
 * SPARE-4  A table that turns out to be there already leaves its granule as in SPARE-2.
 * LEAK-1   A granule that cannot be undelegated is never used again: it is written down with its last use, its realm,
 *          the command and its code, counted, and the rest goes on.
 * LEAK-2   Every delegated granule has a use in the records (cca_host_check), also when making a realm failed half-way.
 * LEAK-3   A host page of several granules is free only when all of them are undelegated.
 * L9       Nothing is mapped at one alias while the other is mapped (EEXIST). The RMM would let it.
 *
 * Granules that are lent (cca_host_lend) are in the records like all others, but the host takes none by itself: who
 * lent them names those that shall hold a realm's data (cca_host_map_lent), and hears of each that does not come back.
 */
#ifndef PW_ENGINE_ARCH_CCA_HOST_H
#define PW_ENGINE_ARCH_CCA_HOST_H
#include "engine/arch/cca.h"

#define CCA_HOST_USES(X)                                                               \
	X(CCA_USE_FREE, "free")                                                        \
	X(CCA_USE_PART, "part of a used host page") /* undelegated, the page is not */ \
	X(CCA_USE_LENT, "lent")                     /* undelegated */                  \
	X(CCA_USE_HOST, "host")                     /* parameter and run pages */      \
	X(CCA_USE_RD, "rd")                                                            \
	X(CCA_USE_ROOT, "root table")                                                  \
	X(CCA_USE_SPARE, "guaranteed spare")                                           \
	X(CCA_USE_HANDY, "opportunistic spare")                                        \
	X(CCA_USE_TABLE, "table")                                                      \
	X(CCA_USE_DATA, "data")                                                        \
	X(CCA_USE_REC, "rec")                                                          \
	X(CCA_USE_AUX, "rec_aux")                                                      \
	X(CCA_USE_LEAKED, "leaked")

#define CCA_HOST_CODES(X)                                                          \
	X(CCA_HOST_OK, "ok", 0)                                                    \
	X(CCA_HOST_EPERM, "EPERM", -1)    /* the realm is past the state for it */ \
	X(CCA_HOST_EIO, "EIO", -5)        /* the RMM refused; see the answer */    \
	X(CCA_HOST_ENOMEM, "ENOMEM", -12) /* no granule is free */                 \
	X(CCA_HOST_EEXIST, "EEXIST", -17)                                          \
	X(CCA_HOST_EINVAL, "EINVAL", -22)                                          \
	X(CCA_HOST_ENOSPARE, "no spare", -1000) /* SPARE-1 is broken */

#define PW_ENUM_(name, text)         name,
#define PW_ENUM3_(name, text, value) name,
enum cca_host_use { CCA_HOST_USES(PW_ENUM_) CCA_HOST_USE_COUNT };
enum cca_host_code { CCA_HOST_CODES(PW_ENUM3_) CCA_HOST_CODE_COUNT };
#undef PW_ENUM_
#undef PW_ENUM3_
const char *cca_host_use_name(enum cca_host_use u);
const char *cca_host_code_name(enum cca_host_code c);
int cca_host_code_value(enum cca_host_code c);

#define CCA_HOST_RECS_MAX 64
#define CCA_HOST_NS_ATTR  0xd8 /* normal memory, read and write */
struct cca_host_realm {
	struct cca_host_realm *next;
	struct cca_host *host; /* borrowed */
	uint64_t rd;           /* address; also names the realm in the records */
	uint64_t number;       /* in the records of uses */
	unsigned ipa_bits, start;
	uint64_t root, root_count;
	enum cca_realm_state state; /* as the host believes it */
	uint64_t spare;             /* address of the guaranteed spare */
	bool spare_is_in;           /* false while it is a table */
	uint64_t handy;             /* 0: none */
	uint64_t recs[CCA_HOST_RECS_MAX];
	unsigned rec_count;
	bool gone; /* from the RMM: its granules are being put back */
};

struct cca_host_leak {
	uint64_t addr;
	enum cca_host_use last;
	uint64_t realm; /* number */
	enum cca_command cmd;
	enum cca_status status;
};

/* Who lent granules. */
struct cca_host_lender {
	/* How many of the next `count` are undelegated before EL3 refuses one. NULL: all, as far as it goes. */
	uint64_t (*gives_back)(void *ctx, uint64_t count);
	void (*kept)(void *ctx, uint64_t addr, const char *why); /* LEAK-1. NULL: nobody asks */
	void *ctx;
};

struct cca_host {
	struct cca *m;      /* borrowed: the RMM */
	struct pw_mem *mem; /* borrowed */
	struct arena arena;
	uint64_t base, granules; /* the pool: addresses [base, base + granules * 4 KiB) */
	unsigned page_granules;  /* granules in one host page */
	struct tree uses;        /* granule of the pool, from 0 -> use, realm, leak */
	uint64_t free, leaked;   /* granules */
	uint64_t low;            /* no granule below is free */
	uint64_t page;           /* the host's own, for parameters; 0: not yet taken */
	uint64_t realms_made;
	struct cca_host_realm *realms;
	uint64_t lent, lent_count; /* granules of the pool, from 0 */
	struct cca_host_lender lender;
	struct cca_call last_call; /* to the RMM; its pages are void */
	struct cca_result last;    /* of the RMM, for EIO */
	/* L9: what was in the way of the last mapping, before the RMM was asked. */
	struct cca_host_alias {
		bool met;
		uint64_t ipa; /* protected */
		enum cca_entry entry;
	} alias;
};

/* page_granules: 1, 4 or 16 granules. PW_INVALID: another number, or a pool that is no multiple of it. */
enum pw_status cca_host_init(struct cca_host *h, struct cca *m, struct pw_mem *mem, uint64_t base, uint64_t granules,
			     unsigned page_granules) PW_MUST_CHECK;
void cca_host_release(struct cca_host *h); /* forgets realms; the RMM keeps its own */
/* Once. PW_INVALID: not free granules of the pool, or host pages of several granules. */
enum pw_status cca_host_lend(struct cca_host *h, uint64_t addr, uint64_t count,
			     const struct cca_host_lender *lender) PW_MUST_CHECK;
/* What the last command met, in words (cca_explain); or which alias was in the way. */
void cca_host_explain(const struct cca_host *h, struct pw_err *err);

/*
 * The deepest level that mapping [base, end) needs at base: the largest entry that base is aligned to and that fits, no
 * higher than `top_level`.
 */
unsigned cca_host_map_level(unsigned top_level, uint64_t base, uint64_t end);

/*
 * The operations. PW_OK: *code says how it ended; with anything but OK the RMM and the records agree, and what had been
 * done before stays done (creating a realm or REC: nothing stays). PW_NO_MEMORY: the model's own memory; the same, and
 * the operation may be repeated.
 */
struct cca_host_wish {
	unsigned ipa_bits;
	uint16_t vmid;
	enum cca_hash hash;
};
enum pw_status cca_host_realm_new(struct cca_host *h, const struct cca_host_wish *w, struct cca_host_realm **out,
				  enum cca_host_code *code) PW_MUST_CHECK;
/* EINVAL: not page aligned, or its end is below its base; EPERM: the realm is not NEW. Asks the RMM only then. */
enum pw_status cca_host_init_ripas(struct cca_host_realm *r, uint64_t base, uint64_t end,
				   enum cca_host_code *code) PW_MUST_CHECK;
/* Measured contents while NEW: one page. EPERM: the realm is not NEW. */
enum pw_status cca_host_populate(struct cca_host_realm *r, uint64_t ipa, const void *source, bool measure,
				 enum cca_host_code *code) PW_MUST_CHECK;
/* Pages of unknown contents for [base, end), aligned 2 MiB stretches as blocks where the pool has them in one piece. */
enum pw_status cca_host_map(struct cca_host_realm *r, uint64_t base, uint64_t end,
			    enum cca_host_code *code) PW_MUST_CHECK;
/*
 * Lent granules from `data` on (or such as are delegated for this realm already) for the `count` pages from `base` on,
 * aligned 2 MiB stretches as blocks. source: measured contents of each while NEW; NULL: unknown contents. Whatever the
 * code, granules that hold no data then are still delegated: cca_host_put_lent.
 */
enum pw_status cca_host_map_lent(struct cca_host_realm *r, uint64_t base, uint64_t count, uint64_t data,
				 const void *source, enum cca_host_code *code) PW_MUST_CHECK;
/* The same for pages that cca_host_unmap_lent has taken: what was a block needs no granule of the pool to be one. */
enum pw_status cca_host_restore_lent(struct cca_host_realm *r, uint64_t base, uint64_t count, uint64_t data,
				     const void *source, enum cca_host_code *code) PW_MUST_CHECK;
/* Takes pages from the realm that are resident on lent granules. The granules stay delegated, as above. */
enum pw_status cca_host_unmap_lent(struct cca_host_realm *r, uint64_t base, uint64_t count,
				   enum cca_host_code *code) PW_MUST_CHECK;
/* Undelegates what is DELEGATED of these lent granules; what EL3 keeps is a leak. */
enum pw_status cca_host_put_lent(struct cca_host *h, uint64_t data, uint64_t count) PW_MUST_CHECK;
/* The same, to be undone where it fails: up to the first that EL3 keeps, which is none (EIO). */
enum pw_status cca_host_give_lent(struct cca_host *h, uint64_t data, uint64_t count,
				  enum cca_host_code *code) PW_MUST_CHECK;
/* Folds the tables of level 3 between base and end (of either half) that fold. Those that do not are left. */
enum pw_status cca_host_fold(struct cca_host_realm *r, uint64_t base, uint64_t end) PW_MUST_CHECK;
/* The host's memory from `pa` at the unprotected alias of [base, end), in entries as large as alignment allows. */
enum pw_status cca_host_map_ns(struct cca_host_realm *r, uint64_t base, uint64_t end, uint64_t pa,
			       enum cca_host_code *code) PW_MUST_CHECK;
enum pw_status cca_host_unmap_ns(struct cca_host_realm *r, uint64_t base, uint64_t end,
				 enum cca_host_code *code) PW_MUST_CHECK;
/* Takes pages back. A block that is only partly in the range keeps a table, for which ENOMEM is an answer. */
enum pw_status cca_host_unmap(struct cca_host_realm *r, uint64_t base, uint64_t end,
			      enum cca_host_code *code) PW_MUST_CHECK;
enum pw_status cca_host_rec_new(struct cca_host_realm *r, uint64_t pc, bool runnable,
				enum cca_host_code *code) PW_MUST_CHECK;
enum pw_status cca_host_activate(struct cca_host_realm *r, enum cca_host_code *code) PW_MUST_CHECK;
/* Serves the open request of a REC from `base`, where it stands, as far as the RMM lets it: tables where it needs them.
 * Goes up to `end`, and never past what the realm asked for; *done is where the request stands then. */
enum pw_status cca_host_set_ripas(struct cca_host_realm *r, uint64_t rec, uint64_t base, uint64_t end, uint64_t *done,
				  enum cca_host_code *code) PW_MUST_CHECK;
/* Takes it all down, and frees *r unless the code is EIO (a REC runs, for one) or ENOSPARE. */
enum pw_status cca_host_realm_end(struct cca_host_realm *r, enum cca_host_code *code) PW_MUST_CHECK;

enum cca_host_use cca_host_use(const struct cca_host *h, uint64_t addr);
/* The next leaked granule at or after `addr`. */
bool cca_host_next_leak(const struct cca_host *h, uint64_t addr, struct cca_host_leak *out) PW_MUST_CHECK;
/* SPARE-1, LEAK-2, LEAK-3, and that counts are right. */
bool cca_host_check(const struct cca_host *h, struct pw_err *err);

#endif
