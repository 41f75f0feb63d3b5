#include "api/codec.h"

#include <stdlib.h>
#include <string.h>

#include "api/json.h"
#include "api/operation_params.h"

#define TEXT_(name, text) [name] = text,
#define WORD_(name, text) " " text
static const char *const operation_kind_names[] = { OPERATION_KINDS(TEXT_) };
static const char *const operation_state_names[] = { OPERATION_STATES(TEXT_) };
static const char *const role_names[] = { ROLES(TEXT_) };
static const char *const vm_event_names[] = { VM_EVENTS(TEXT_) };
static const char *const arch_names[] = { ARCHES(TEXT_) };

static bool find_name(const char *const *names, int n, const char *name, int *out)
{
	for (int i = 0; i < n; i++)
		if (strcmp(names[i], name) == 0) {
			*out = i;
			return true;
		}
	return false;
}

const char *operation_kind_name(enum operation_kind k)
{
	return operation_kind_names[k];
}

const char *operation_state_name(enum operation_state s)
{
	return operation_state_names[s];
}

const char *role_name(enum role r)
{
	return role_names[r];
}

bool operation_kind_from_name(const char *name, enum operation_kind *out)
{
	int i;

	if (!find_name(operation_kind_names, OPERATION_KIND_COUNT, name, &i))
		return false;
	*out = (enum operation_kind)i;
	return true;
}

bool operation_state_from_name(const char *name, enum operation_state *out)
{
	int i;

	if (!find_name(operation_state_names, OPERATION_STATE_COUNT, name, &i))
		return false;
	*out = (enum operation_state)i;
	return true;
}

bool role_from_name(const char *name, enum role *out)
{
	int i;

	if (!find_name(role_names, ROLE_COUNT, name, &i))
		return false;
	*out = (enum role)i;
	return true;
}

bool codec_is_pool_name(const char *name)
{
	size_t n = strspn(name, "abcdefghijklmnopqrstuvwxyz0123456789-");

	return n >= 1 && n < POOL_NAME_MAX && !name[n];
}

/* Readers of what has a list of names. */
static bool read_listed(struct reader *r, json_t *v, const char *const *names, int n, const char *must, int *out)
{
	if (!json_is_string(v) || !find_name(names, n, json_string_value(v), out))
		return json_fault_value(r, v, must);
	return true;
}

static bool to_event(struct reader *r, json_t *v, void *at)
{
	int i;

	if (!read_listed(r, v, vm_event_names, VM_EVENT_COUNT,
			 "one of start, init_start, init_done, init_abort, terminate", &i))
		return false;
	*(enum vm_event *)at = (enum vm_event)i;
	return true;
}

static bool to_arch(struct reader *r, json_t *v, void *at)
{
	int i;

	if (!read_listed(r, v, arch_names, ARCH_COUNT, "one of pef, tdx, pkvm, snp, cca, kvm", &i))
		return false;
	*(enum arch *)at = (enum arch)i;
	return true;
}

static bool to_kind(struct reader *r, json_t *v, void *at)
{
	int i;

	if (!read_listed(r, v, operation_kind_names, OPERATION_KIND_COUNT, "one of" OPERATION_KINDS(WORD_), &i))
		return false;
	*(enum operation_kind *)at = (enum operation_kind)i;
	return true;
}

static bool to_result_state(struct reader *r, json_t *v, void *at)
{
	int i;

	if (!read_listed(r, v, operation_state_names, OPERATION_STATE_COUNT, "succeeded or failed", &i))
		return false;
	if (i != OPERATION_SUCCEEDED && i != OPERATION_FAILED)
		return json_fault_value(r, v, "succeeded or failed");
	*(enum operation_state *)at = (enum operation_state)i;
	return true;
}

static bool to_role(struct reader *r, json_t *v, void *at)
{
	int i;

	if (!read_listed(r, v, role_names, ROLE_COUNT, "one of admin, operator, viewer, agent", &i))
		return false;
	*(enum role *)at = (enum role)i;
	return true;
}

static bool to_page_shift(struct reader *r, json_t *v, void *at)
{
	uint64_t n;

	if (!json_read_range(r, v, 12, 30, &n))
		return false;
	*(unsigned *)at = (unsigned)n;
	return true;
}

/* boot_id and epoch come together or not at all. */
static bool check_holder(struct reader *r, bool has_boot_id, bool has_epoch)
{
	if (has_boot_id == has_epoch)
		return true;
	return json_fault_at(r, has_boot_id ? "epoch" : "boot_id",
			     "\"boot_id\" and \"epoch\" come together or not at all");
}

#define MUST(type, name, read, member)                                          \
	{                                                                       \
		name, JSON_REQUIRED, read, offsetof(type, member), JSON_NO_FLAG \
	}
#define MAY(type, name, read, member)                                           \
	{                                                                       \
		name, JSON_OPTIONAL, read, offsetof(type, member), JSON_NO_FLAG \
	}
#define MAY_FLAG(type, name, read, member, flag)                                        \
	{                                                                               \
		name, JSON_OPTIONAL, read, offsetof(type, member), offsetof(type, flag) \
	}
#define READ(r, v, fields, out) json_read_object(r, v, fields, PW_ARRAY_LEN(fields), out)

/* PUT /v1/hosts/{host} */

enum { SHARED_BIT_MIN = 13, SHARED_BIT_MAX = 63 };

/* "shared_bits": [47]: by these GPA bits the backend tells shared aliases. */
static bool check_shared_bits(struct reader *r, json_t *bits)
{
	uint64_t n;
	json_t *bit;
	size_t i;

	if (!bits)
		return true;
	json_enter(r, "shared_bits");
	if (!json_check_array(r, bits, 0, 64))
		return false;
	json_array_foreach (bits, i, bit) {
		json_enter_at(r, i);
		if (!json_read_range(r, bit, SHARED_BIT_MIN, SHARED_BIT_MAX, &n))
			return false;
		json_leave(r);
	}
	json_leave(r);
	return true;
}

static bool read_backend(struct reader *r, json_t *v, uint32_t *arches)
{
	json_t *arch = json_object_get(v, "arch"), *kind = json_object_get(v, "kind");
	enum arch a;

	if (!json_is_object(v))
		return json_fault_value(r, v, "an object");
	if (!arch || !kind)
		return json_fault_at(r, arch ? "kind" : "arch", "\"%s\" is missing", arch ? "kind" : "arch");
	json_enter(r, "arch");
	if (!to_arch(r, arch, &a))
		return false;
	json_leave(r);
	json_enter(r, "kind");
	if (!json_is_string(kind) ||
	    (strcmp(json_string_value(kind), "emulated") != 0 && strcmp(json_string_value(kind), "kvm") != 0))
		return json_fault_value(r, kind, "emulated or kvm");
	json_leave(r);
	*arches |= (uint32_t)1 << a;
	return check_shared_bits(r, json_object_get(v, "shared_bits"));
}

bool codec_backend_has_shared_bit(const char *backends, enum arch a, unsigned bit)
{
	json_t *list = json_loads(backends, JSON_REJECT_DUPLICATES, NULL), *backend, *one;
	bool has = false;
	size_t i, k;

	json_array_foreach (list, i, backend) {
		const char *arch = json_string_value(json_object_get(backend, "arch"));

		if (!arch || strcmp(arch, arch_name(a)) != 0)
			continue;
		json_array_foreach (json_object_get(backend, "shared_bits"), k, one)
			has |= json_is_integer(one) && json_integer_value(one) == (json_int_t)bit;
	}
	json_decref(list);
	return has;
}

static bool to_backends(struct reader *r, json_t *v, void *at)
{
	struct host_body *out = at;
	json_t *backend;
	size_t i;

	if (!json_check_array(r, v, 0, 64))
		return false;
	json_array_foreach (v, i, backend) {
		json_enter_at(r, i);
		if (!read_backend(r, backend, &out->arches))
			return false;
		json_leave(r);
	}
	return json_check_texts(r, v) && json_to_text(r, v, CODEC_DOCUMENT_MAX, &out->backends);
}

struct local_pool {
	const char *pool;
	uint64_t base, frames;
	unsigned page_shift;
};
static const struct json_field local_pool_fields[] = {
	MUST(struct local_pool, "pool", json_to_pool, pool),
	MUST(struct local_pool, "base_pfn", json_to_page, base),
	MUST(struct local_pool, "frames", json_to_count, frames),
	MAY(struct local_pool, "page_shift", to_page_shift, page_shift),
};

static bool to_local_pool(struct reader *r, json_t *v, void *at)
{
	struct local_pool local = { .page_shift = 12 };
	struct host_body *out = at;

	if (!json_check_array(r, v, 0, 1))
		return false;
	if (json_array_size(v) == 0)
		return true;
	json_enter_at(r, 0);
	if (!READ(r, json_array_get(v, 0), local_pool_fields, &local))
		return false;
	if (strcmp(local.pool, "local") != 0)
		return json_fault_at(r, "pool", "\"%s\": a host brings only its pool \"local\"", local.pool);
	if (!json_check_run(r, "frames", local.base, local.frames))
		return false;
	json_leave(r);
	out->has_local = true;
	out->base = local.base;
	out->frames = local.frames;
	out->page_shift = local.page_shift;
	return true;
}

static const struct json_field host_fields[] = {
	MUST(struct host_body, "name", json_to_name, name),
	MUST(struct host_body, "boot_id", json_to_boot_id, boot_id),
	{ "backends", JSON_REQUIRED, to_backends, 0, JSON_NO_FLAG },
	{ "pools", JSON_REQUIRED, to_local_pool, 0, JSON_NO_FLAG },
	MAY(struct host_body, "agent_version", json_to_name, agent_version),
	MAY(struct host_body, "revision_seen", json_to_number, revision_seen),
};

static bool read_host(struct reader *r, json_t *v, struct host_body *out)
{
	out->page_shift = 12;
	return READ(r, v, host_fields, out);
}

/* {"boot_id","epoch"} */

static const struct json_field current_fields[] = {
	MUST(struct current_body, "boot_id", json_to_boot_id, boot_id),
	MUST(struct current_body, "epoch", json_to_number, epoch),
};

static bool read_current(struct reader *r, json_t *v, struct current_body *out)
{
	return READ(r, v, current_fields, out);
}

/* POST quarantine and quarantine/release */

typedef __typeof__(*((struct frames_body *)0)->items) frames_item;
static const struct json_field frames_item_fields[] = {
	MUST(frames_item, "pool", json_to_pool, pool),
	MUST(frames_item, "pfn", json_to_page, pfn),
	MUST(frames_item, "count", json_to_count, count),
	MAY(frames_item, "reason", json_to_reason, reason),
};

static bool to_frames_items(struct reader *r, json_t *v, void *at)
{
	struct frames_body *out = at;
	json_t *item;
	size_t i;

	if (!json_check_array(r, v, 1, CODEC_ITEMS_MAX))
		return false;
	out->items = body_alloc(r->body, json_array_size(v), sizeof *out->items);
	if (!out->items)
		return json_fault_memory(r);
	json_array_foreach (v, i, item) {
		out->items[i].reason = "";
		json_enter_at(r, i);
		if (!READ(r, item, frames_item_fields, &out->items[i]) ||
		    !json_check_run(r, "count", out->items[i].pfn, out->items[i].count))
			return false;
		json_leave(r);
	}
	out->count = json_array_size(v);
	return true;
}

struct frames_draft {
	struct frames_body body;
	bool has_boot_id, has_epoch;
};
static const struct json_field frames_fields[] = {
	MAY_FLAG(struct frames_draft, "boot_id", json_to_boot_id, body.boot_id, has_boot_id),
	MAY_FLAG(struct frames_draft, "epoch", json_to_number, body.epoch, has_epoch),
	MUST(struct frames_draft, "items", to_frames_items, body),
};

static bool read_frames(struct reader *r, json_t *v, struct frames_body *out)
{
	struct frames_draft draft = { .has_epoch = false };

	if (!READ(r, v, frames_fields, &draft) || !check_holder(r, draft.has_boot_id, draft.has_epoch))
		return false;
	*out = draft.body;
	return true;
}

/* PUT /v1/pools/{pool} */

static int compare_uuid(const void *a, const void *b)
{
	return memcmp(a, b, sizeof(struct pw_uuid));
}

static bool check_distinct(struct reader *r, const struct pw_uuid *ids, size_t n)
{
	struct pw_uuid *sorted = body_alloc(r->body, n, sizeof *sorted);
	char text[PW_UUID_TEXT];

	if (!sorted)
		return json_fault_memory(r);
	if (n)
		memcpy(sorted, ids, n * sizeof *sorted);
	qsort(sorted, n, sizeof *sorted, compare_uuid);
	for (size_t i = 1; i < n; i++)
		if (pw_uuid_equal(&sorted[i - 1], &sorted[i])) {
			pw_uuid_format(&sorted[i], text);
			return json_fault(r, "%s is there twice", text);
		}
	return true;
}

static bool to_hosts(struct reader *r, json_t *v, void *at)
{
	struct pool_body *out = at;
	json_t *id;
	size_t i;

	if (!json_check_array(r, v, 0, LEDGER_HOSTS_MAX))
		return false;
	out->hosts = body_alloc(r->body, json_array_size(v), sizeof *out->hosts);
	if (!out->hosts)
		return json_fault_memory(r);
	json_array_foreach (v, i, id) {
		json_enter_at(r, i);
		if (!json_to_uuid(r, id, &out->hosts[i]))
			return false;
		json_leave(r);
	}
	out->host_count = json_array_size(v);
	return check_distinct(r, out->hosts, out->host_count);
}

static const struct json_field pool_fields[] = {
	MUST(struct pool_body, "base_pfn", json_to_page, base),
	MUST(struct pool_body, "frames", json_to_count, frames),
	MAY(struct pool_body, "page_shift", to_page_shift, page_shift),
	{ "hosts", JSON_REQUIRED, to_hosts, 0, JSON_NO_FLAG },
};

static bool read_pool(struct reader *r, json_t *v, struct pool_body *out)
{
	out->page_shift = 12;
	return READ(r, v, pool_fields, out) && json_check_run(r, "frames", out->base, out->frames);
}

/* POST /v1/vms, PUT /v1/vms/{vm}/slots/{n} */

static bool to_slot_number(struct reader *r, json_t *v, void *at)
{
	uint64_t n;

	if (!json_read_range(r, v, 0, UINT32_MAX, &n))
		return false;
	*(uint32_t *)at = (uint32_t)n;
	return true;
}

static const struct json_field vm_slot_fields[] = {
	MUST(struct slot, "slot", to_slot_number, number),
	MUST(struct slot, "base_gfn", json_to_page, base),
	MUST(struct slot, "pages", json_to_count, pages),
};

static bool to_slots(struct reader *r, json_t *v, void *at)
{
	struct vm_body *out = at;
	json_t *slot;
	size_t i;

	if (!json_check_array(r, v, 0, VM_SLOTS_MAX))
		return false;
	out->slots = body_alloc(r->body, json_array_size(v), sizeof *out->slots);
	if (!out->slots)
		return json_fault_memory(r);
	json_array_foreach (v, i, slot) {
		json_enter_at(r, i);
		if (!READ(r, slot, vm_slot_fields, &out->slots[i]) ||
		    !json_check_run(r, "pages", out->slots[i].base, out->slots[i].pages))
			return false;
		json_leave(r);
	}
	out->slot_count = json_array_size(v);
	return true;
}

static bool to_shared_bit(struct reader *r, json_t *v, void *at)
{
	uint64_t n;

	if (!json_read_range(r, v, SHARED_BIT_MIN, SHARED_BIT_MAX, &n))
		return false;
	*(unsigned *)at = (unsigned)n;
	return true;
}

static const struct json_field gpa_fields[] = {
	MUST(struct vm_body, "shared_bit", to_shared_bit, shared_bit),
};

static bool to_gpa(struct reader *r, json_t *v, void *at)
{
	return READ(r, v, gpa_fields, at);
}

struct vm_draft {
	struct vm_body body; /* first: readers of lists fill it by its address */
	bool has_boot_id, has_epoch;
};
static const struct json_field vm_fields[] = {
	MAY_FLAG(struct vm_draft, "id", json_to_uuid, body.id, body.has_id),
	MAY(struct vm_draft, "name", json_to_name, body.name),
	MUST(struct vm_draft, "host", json_to_uuid, body.host),
	MUST(struct vm_draft, "arch", to_arch, body.arch),
	{ "slots", JSON_REQUIRED, to_slots, 0, JSON_NO_FLAG },
	{ "gpa", JSON_OPTIONAL, to_gpa, 0, JSON_NO_FLAG },
	MAY(struct vm_draft, "adopted", json_to_bool, body.adopted),
	MAY_FLAG(struct vm_draft, "boot_id", json_to_boot_id, body.boot_id, has_boot_id),
	MAY_FLAG(struct vm_draft, "epoch", json_to_number, body.epoch, has_epoch),
};

static bool read_vm(struct reader *r, json_t *v, struct vm_body *out)
{
	struct vm_draft draft = { .has_epoch = false };

	if (!READ(r, v, vm_fields, &draft) || !check_holder(r, draft.has_boot_id, draft.has_epoch))
		return false;
	if (draft.body.adopted && (!draft.body.boot_id || !draft.body.has_id))
		return json_fault_at(r, "adopted", "who adopts a VM gives its id, boot_id and epoch");
	*out = draft.body;
	return true;
}

static const struct json_field slot_fields[] = {
	MUST(struct slot_body, "base_gfn", json_to_page, base),
	MUST(struct slot_body, "pages", json_to_count, pages),
};

static bool read_slot(struct reader *r, json_t *v, struct slot_body *out)
{
	return READ(r, v, slot_fields, out) && json_check_run(r, "pages", out->base, out->pages);
}

/* POST /v1/vms/{vm}/lifecycle */

struct lifecycle_draft {
	struct lifecycle_body body;
	bool has_boot_id, has_epoch;
};
static const struct json_field lifecycle_fields[] = {
	MUST(struct lifecycle_draft, "event", to_event, body.event),
	MAY_FLAG(struct lifecycle_draft, "boot_id", json_to_boot_id, body.boot_id, has_boot_id),
	MAY_FLAG(struct lifecycle_draft, "epoch", json_to_number, body.epoch, has_epoch),
	MAY(struct lifecycle_draft, "adopted", json_to_bool, body.adopted),
	MAY(struct lifecycle_draft, "force", json_to_bool, body.force),
};

static bool read_lifecycle(struct reader *r, json_t *v, struct lifecycle_body *out)
{
	struct lifecycle_draft draft = { .has_epoch = false };

	if (!READ(r, v, lifecycle_fields, &draft) || !check_holder(r, draft.has_boot_id, draft.has_epoch))
		return false;
	*out = draft.body;
	return true;
}

/* Operations, tokens, backups */

static const struct json_field operation_fields[] = {
	MUST(struct operation_body, "kind", to_kind, kind),
	MAY(struct operation_body, "params", json_to_document, params),
};

static bool read_operation(struct reader *r, json_t *v, struct operation_body *out)
{
	out->params = "{}";
	return READ(r, v, operation_fields, out) && operation_params_read(r, v, out);
}

static const struct json_field result_fields[] = {
	MUST(struct result_body, "boot_id", json_to_boot_id, boot_id),
	MUST(struct result_body, "epoch", json_to_number, epoch),
	MUST(struct result_body, "state", to_result_state, state),
	MAY(struct result_body, "problem", json_to_document, problem),
};

static bool read_result(struct reader *r, json_t *v, struct result_body *out)
{
	if (!READ(r, v, result_fields, out))
		return false;
	if (out->problem && out->state != OPERATION_FAILED)
		return json_fault_at(r, "problem", "only a failed operation has a problem");
	return true;
}

static const struct json_field token_fields[] = {
	MUST(struct token_body, "role", to_role, role),
	MAY_FLAG(struct token_body, "host", json_to_uuid, host, has_host),
	MUST(struct token_body, "name", json_to_name, name),
};

static bool read_token(struct reader *r, json_t *v, struct token_body *out)
{
	if (!READ(r, v, token_fields, out))
		return false;
	if (out->has_host != (out->role == ROLE_AGENT))
		return json_fault_at(r, "host", "a token of role agent names its host, and no other token does");
	return true;
}

static const struct json_field backup_fields[] = {
	MUST(struct backup_body, "name", json_to_pool, name),
};

static bool read_backup(struct reader *r, json_t *v, struct backup_body *out)
{
	return READ(r, v, backup_fields, out);
}

/* *out is written, and somebody gets the body, only when all of it was read. */
#define DEFINE_DECODER(name)                                                                          \
	bool codec_##name(const char *text, size_t len, struct name##_body *out, struct body **owner, \
			  struct codec_fault *why)                                                    \
	{                                                                                             \
		struct name##_body body;                                                              \
		struct reader r;                                                                      \
		json_t *v;                                                                            \
                                                                                                      \
		memset(&body, 0, sizeof body);                                                        \
		*owner = NULL;                                                                        \
		v = json_read_text(&r, text, len, why);                                               \
		if (!v)                                                                               \
			return false;                                                                 \
		if (!read_##name(&r, v, &body)) {                                                     \
			codec_release(r.body);                                                        \
			return false;                                                                 \
		}                                                                                     \
		*out = body;                                                                          \
		*owner = r.body;                                                                      \
		return true;                                                                          \
	}

DEFINE_DECODER(host)
DEFINE_DECODER(current)
DEFINE_DECODER(frames)
DEFINE_DECODER(pool)
DEFINE_DECODER(vm)
DEFINE_DECODER(slot)
DEFINE_DECODER(lifecycle)
DEFINE_DECODER(operation)
DEFINE_DECODER(result)
DEFINE_DECODER(token)
DEFINE_DECODER(backup)

/* An absent body is an empty object. */
static bool read_optional(const char *text, size_t len, const struct json_field *fields, size_t n, void *out,
			  struct codec_fault *why)
{
	struct reader r;
	json_t *v = len ? json_read_text(&r, text, len, why) : NULL;
	bool ok = !len || (v && json_read_object(&r, v, fields, n, out));

	if (v)
		codec_release(r.body);
	return ok;
}

bool codec_empty(const char *text, size_t len, struct empty_body *out, struct body **owner, struct codec_fault *why)
{
	struct empty_body body = { 0 };

	*owner = NULL;
	if (!read_optional(text, len, NULL, 0, &body, why))
		return false;
	*out = body;
	return true;
}

bool codec_fence(const char *text, size_t len, struct fence_body *out, struct body **owner, struct codec_fault *why)
{
	static const struct json_field fields[] = { MAY(struct fence_body, "force", json_to_bool, force) };
	struct fence_body body = { .force = false };

	*owner = NULL;
	if (!read_optional(text, len, fields, PW_ARRAY_LEN(fields), &body, why))
		return false;
	*out = body;
	return true;
}
