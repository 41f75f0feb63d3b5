/* api/codec.h
 *
 * Request bodies, from JSON to plain structs, strict as the contract says: unknown members, wrong types, numbers out of
 * range, duplicate keys, bad UTF-8 and nesting over 16 are refused with a JSON Pointer to the culprit.
 * Strings in a decoded struct are borrowed from it (`body` owns all): codec_release frees everything.
 */
#ifndef PW_API_CODEC_H
#define PW_API_CODEC_H
#include "engine/ledger.h"

struct codec_fault {
	char pointer[256];       /* RFC 6901; "" is the whole body */
	char detail[256];        /* a sentence that names the offending value */
	bool no_memory;          /* it is not the body's fault */
	enum pw_problem problem; /* PROBLEM_NONE: invalid-request */
	const char *flag;        /* static: the limit that the body passes, which is `limit`; NULL: none */
	uint64_t limit;
};

#define CODEC_ITEMS_MAX    65536
#define CODEC_NAME_MAX     128   /* bytes of a name, the NUL included */
#define CODEC_REASON_MAX   512   /* of the reason of a quarantine */
#define CODEC_DOCUMENT_MAX 65536 /* of what is kept as it came: backends, parameters, a problem */

struct body;                        /* what a decode allocated; opaque */
void codec_release(struct body *b); /* NULL is fine */
/* The memory that the values of one body may take, from now on; there is no bound before. Any thread. */
void codec_limit_decoded(size_t bytes);

/* Each returns false with *why, or true; then *owner (NULL on false) must be released after the struct was used. */
#define CODEC_DECODER(name)                                                                           \
	bool codec_##name(const char *text, size_t len, struct name##_body *out, struct body **owner, \
			  struct codec_fault *why) PW_MUST_CHECK

struct host_body { /* PUT /v1/hosts/{host} */
	const char *name, *boot_id;
	const char *backends;      /* JSON text of the array as given (compact), members unknown to us included */
	const char *agent_version; /* or NULL */
	uint32_t arches;           /* bit per arch */
	bool has_local;
	uint64_t base, frames;
	unsigned page_shift;    /* default 12; 12..30 */
	uint64_t revision_seen; /* the highest that the agent ever saw; 0: not said */
};
CODEC_DECODER(host);

struct current_body { /* {"boot_id","epoch"}: heartbeat */
	const char *boot_id;
	uint64_t epoch;
};
CODEC_DECODER(current);

struct empty_body { /* "" or {}: verify */
	char none;
};
CODEC_DECODER(empty);

struct fence_body { /* POST /v1/hosts/{host}/fence; "" is {} */
	bool force; /* although the host's lease lives */
};
CODEC_DECODER(fence);

struct frames_body {         /* POST quarantine and quarantine/release */
	const char *boot_id; /* NULL if absent */
	uint64_t epoch;
	struct {
		const char *pool;
		uint64_t pfn, count;
		const char *reason; /* "" if absent */
	} * items;
	size_t count;
};
CODEC_DECODER(frames);

/* Does a backend of that architecture, in a host's backends as registered, say that it has this GPA bit? */
bool codec_backend_has_shared_bit(const char *backends, enum arch a, unsigned bit);

struct pool_body { /* PUT /v1/pools/{pool} */
	uint64_t base, frames;
	unsigned page_shift;
	struct pw_uuid *hosts;
	size_t host_count;
};
CODEC_DECODER(pool);

struct vm_body { /* POST /v1/vms */
	bool has_id;
	struct pw_uuid id, host;
	const char *name; /* or NULL */
	enum arch arch;
	struct slot *slots;
	size_t slot_count;
	unsigned shared_bit; /* GPA bit 13..63; 0: absent */
	bool adopted;        /* its host's hardware has it already: for the host's agent, with boot_id and epoch */
	const char *boot_id; /* NULL if absent; boot_id and epoch come together or not at all */
	uint64_t epoch;
};
CODEC_DECODER(vm);

struct slot_body { /* PUT /v1/vms/{vm}/slots/{n} */
	uint64_t base, pages;
};
CODEC_DECODER(slot);

struct lifecycle_body { /* POST /v1/vms/{vm}/lifecycle */
	enum vm_event event;
	const char *boot_id; /* NULL if absent; boot_id and epoch come together or not at all */
	uint64_t epoch;
	bool adopted; /* hardware was in that state already; only said in the feed */
	bool force;
};
CODEC_DECODER(lifecycle);

struct transitions_body { /* POST /v1/hosts/{host}/transitions */
	const char *boot_id;
	uint64_t epoch;
	bool has_seq, atomic;
	uint64_t seq;
	struct item *items; /* gfns, runs and gfn/count all become runs; neighbouring single pages are NOT merged */
	size_t count;
};
CODEC_DECODER(transitions);

#define OPERATION_KINDS(X)                  \
	X(OPERATION_LAUNCH, "launch")       \
	X(OPERATION_TERMINATE, "terminate") \
	X(OPERATION_SHARE, "share")         \
	X(OPERATION_UNSHARE, "unshare")     \
	X(OPERATION_PAGE_IN, "page_in")     \
	X(OPERATION_PAGE_OUT, "page_out")   \
	X(OPERATION_ABORT, "abort")         \
	X(OPERATION_PLUG, "plug")           \
	X(OPERATION_UNPLUG, "unplug")       \
	X(OPERATION_ADOPT, "adopt")         \
	X(OPERATION_END, "end")
#define OPERATION_STATES(X)                 \
	X(OPERATION_PENDING, "pending")     \
	X(OPERATION_RUNNING, "running")     \
	X(OPERATION_SUCCEEDED, "succeeded") \
	X(OPERATION_FAILED, "failed")       \
	X(OPERATION_CANCELLED, "cancelled")
#define PW_ENUM_(name, text) name,
enum operation_kind { OPERATION_KINDS(PW_ENUM_) OPERATION_KIND_COUNT };
enum operation_state { OPERATION_STATES(PW_ENUM_) OPERATION_STATE_COUNT };
#undef PW_ENUM_
const char *operation_kind_name(enum operation_kind k);
const char *operation_state_name(enum operation_state s);
bool operation_kind_from_name(const char *name, enum operation_kind *out) PW_MUST_CHECK;
bool operation_state_from_name(const char *name, enum operation_state *out) PW_MUST_CHECK;

struct operation_body { /* POST /v1/vms/{vm}/operations */
	enum operation_kind kind;
	const char *params; /* compact JSON text of the object, "{}" if absent. Checked:
			       operation_params.h */
	uint32_t arches;    /* bit per arch whose VMs take these parameters */
	const char *narrow; /* static text: the parameter that is not for all of them; NULL: there is none */
	bool has_host;
	struct pw_uuid host; /* whose VM is meant */
	struct slot slot;    /* what the parameters name by slot, first page and number of pages, as far as they do */
};
CODEC_DECODER(operation);

struct result_body { /* POST /v1/operations/{op}/result */
	const char *boot_id;
	uint64_t epoch;
	enum operation_state state; /* succeeded or failed */
	const char *problem;        /* compact JSON text of an object, or NULL; only with failed */
};
CODEC_DECODER(result);

#define ROLES(X)             X(ROLE_ADMIN, "admin") X(ROLE_OPERATOR, "operator") X(ROLE_VIEWER, "viewer") X(ROLE_AGENT, "agent")
#define PW_ENUM_(name, text) name,
enum role { ROLES(PW_ENUM_) ROLE_COUNT };
#undef PW_ENUM_
const char *role_name(enum role r);
bool role_from_name(const char *name, enum role *out) PW_MUST_CHECK;

struct token_body { /* POST /v1/tokens */
	enum role role;
	bool has_host; /* exactly with role agent */
	struct pw_uuid host;
	const char *name;
};
CODEC_DECODER(token);

struct backup_body { /* POST /v1/backups {"name"}: a folder in DATA/backups, [a-z0-9-]{1,63} */
	const char *name;
};
CODEC_DECODER(backup);

bool codec_is_pool_name(const char *name); /* [a-z0-9-]{1,63} */

#endif
