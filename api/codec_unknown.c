/* The decoder of an agent's report of unknown VMs. Strict like all decoders of requests; an item's text is kept as it
 * came, because the list and the feed show the whole of it. */
#include "api/codec_unknown.h"

#include <string.h>

#include "api/json.h"

enum { ITEM_TEXT_MAX = 8192 };

#define TEXT_(name, text) [name] = text,
static const char *const reason_names[] = { UNKNOWN_REASONS(TEXT_) };

const char *unknown_reason_name(enum unknown_reason r)
{
	return reason_names[r];
}

static bool to_unknown_reason(struct reader *r, json_t *v, void *at)
{
	for (int i = 0; json_is_string(v) && i < UNKNOWN_REASON_COUNT; i++)
		if (strcmp(reason_names[i], json_string_value(v)) == 0) {
			*(enum unknown_reason *)at = (enum unknown_reason)i;
			return true;
		}
	return json_fault_value(r, v, "one of absent, elsewhere, normal, refused, disputed");
}

static bool to_word(struct reader *r, json_t *v, void *at)
{
	const char *text;

	return json_to_name(r, v, &text);
}

#define MUST(type, name, read, member)                                          \
	{                                                                       \
		name, JSON_REQUIRED, read, offsetof(type, member), JSON_NO_FLAG \
	}
static const struct json_field run_fields[] = {
	MUST(struct unknown_run, "gfn", json_to_page, gfn),
	MUST(struct unknown_run, "count", json_to_count, count),
	MUST(struct unknown_run, "pfn", json_to_page, pfn),
	{ "owner", JSON_OPTIONAL, json_to_uuid, offsetof(struct unknown_run, owner),
	  offsetof(struct unknown_run, has_owner) },
	{ "owner_gfn", JSON_OPTIONAL, json_to_page, offsetof(struct unknown_run, owner_gfn), JSON_NO_FLAG },
};

static bool to_runs(struct reader *r, json_t *v, void *at)
{
	struct unknown_item *out = at;
	json_t *run;
	size_t i;

	if (!json_check_array(r, v, 0, UNKNOWN_RUNS_MAX))
		return false;
	out->runs = body_alloc(r->body, json_array_size(v) + 1, sizeof *out->runs);
	if (!out->runs)
		return json_fault_memory(r);
	json_array_foreach (v, i, run) {
		struct unknown_run *to = &out->runs[i];

		json_enter_at(r, i);
		if (!json_read_object(r, run, run_fields, PW_ARRAY_LEN(run_fields), to) ||
		    !json_check_run(r, "count", to->gfn, to->count) || !json_check_run(r, "count", to->pfn, to->count))
			return false;
		json_leave(r);
	}
	out->run_count = json_array_size(v);
	return true;
}

static const struct json_field item_fields[] = {
	MUST(struct unknown_item, "vm", json_to_uuid, vm),
	MUST(struct unknown_item, "reason", to_unknown_reason, reason),
	MUST(struct unknown_item, "detail", json_to_reason, detail),
	{ "arch", JSON_REQUIRED, to_word, 0, JSON_NO_FLAG },
	{ "state", JSON_REQUIRED, to_word, 0, JSON_NO_FLAG },
	MUST(struct unknown_item, "pages", json_to_number, pages),
	MUST(struct unknown_item, "disputed_pages", json_to_number, disputed_pages),
	{ "disputed", JSON_REQUIRED, to_runs, 0, JSON_NO_FLAG },
};

static bool to_items(struct reader *r, json_t *v, void *at)
{
	struct unknown_body *out = at;
	json_t *item;
	size_t i;

	if (!json_check_array(r, v, 0, UNKNOWN_VMS_MAX))
		return false;
	out->items = body_alloc(r->body, json_array_size(v) + 1, sizeof *out->items);
	if (!out->items)
		return json_fault_memory(r);
	json_array_foreach (v, i, item) {
		json_enter_at(r, i);
		if (!json_read_object(r, item, item_fields, PW_ARRAY_LEN(item_fields), &out->items[i]) ||
		    !json_to_text(r, item, ITEM_TEXT_MAX, &out->items[i].text))
			return false;
		json_leave(r);
	}
	out->count = json_array_size(v);
	return true;
}

static const struct json_field unknown_fields[] = {
	MUST(struct unknown_body, "boot_id", json_to_boot_id, boot_id),
	MUST(struct unknown_body, "epoch", json_to_number, epoch),
	{ "items", JSON_REQUIRED, to_items, 0, JSON_NO_FLAG },
};

bool codec_unknown(const char *text, size_t len, struct unknown_body *out, struct body **owner, struct codec_fault *why)
{
	struct unknown_body body = { 0 };
	struct reader r;
	json_t *v = json_read_text(&r, text, len, why);

	*owner = NULL;
	if (!v)
		return false;
	if (!json_read_object(&r, v, unknown_fields, PW_ARRAY_LEN(unknown_fields), &body)) {
		codec_release(r.body);
		return false;
	}
	*out = body;
	*owner = r.body;
	return true;
}
