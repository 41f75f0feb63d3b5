/* api/codec_unknown.h
 *
 * What an agent tells of VMs that its hardware has and the ledger does not own (law L11): the body of
 * PUT /v1/hosts/{host}/unknown-vms. Also the reasons, which both ends share.
 */
#ifndef PW_API_CODEC_UNKNOWN_H
#define PW_API_CODEC_UNKNOWN_H
#include "api/codec.h"

#define UNKNOWN_REASONS(X)                                                                    \
	X(UNKNOWN_ABSENT, "absent")       /* the ledger has no such VM */                     \
	X(UNKNOWN_ELSEWHERE, "elsewhere") /* the ledger places it on another host */          \
	X(UNKNOWN_NORMAL, "normal")       /* the ledger says normal, and not since its end */ \
	X(UNKNOWN_REFUSED, "refused")     /* the ledger refuses to adopt it */                \
	X(UNKNOWN_DISPUTED, "disputed")   /* adopted, but frames of it are others' in the ledger */
#define PW_ENUM_(name, text) name,
enum unknown_reason { UNKNOWN_REASONS(PW_ENUM_) UNKNOWN_REASON_COUNT };
#undef PW_ENUM_
const char *unknown_reason_name(enum unknown_reason r);

#define UNKNOWN_VMS_MAX  1024 /* that one host reports */
#define UNKNOWN_RUNS_MAX 16   /* disputed runs that a report names; the rest is counted */

/* Pages on frames that are somebody else's in the ledger. */
struct unknown_run {
	uint64_t gfn, count, pfn;
	bool has_owner; /* else the frames are in quarantine */
	struct pw_uuid owner;
	uint64_t owner_gfn;
};
struct unknown_item {
	struct pw_uuid vm;
	enum unknown_reason reason;
	const char *detail;
	uint64_t pages, disputed_pages;
	struct unknown_run *runs; /* disputed */
	size_t run_count;
	const char *text; /* the whole item as compact JSON */
};

struct unknown_body { /* {"boot_id","epoch","items":[ITEM,...]}: all that the host has to report */
	const char *boot_id;
	uint64_t epoch;
	struct unknown_item *items;
	size_t count;
};
CODEC_DECODER(unknown);

#endif
