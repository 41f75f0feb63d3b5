#include "api/codec_vcpu.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/json.h"

static bool reaches_host(enum pkvm_exit e)
{
	const struct pkvm_exit_row *row = pkvm_exit_row(e);

	for (int g = 0; g < PKVM_GENERATION_COUNT; g++)
		if (row->reaches_host[g])
			return true;
	return false;
}

static bool exit_from_name(const char *name, enum pkvm_exit *out)
{
	for (int e = 0; e < PKVM_EXIT_COUNT; e++)
		if (strcmp(pkvm_exit_name((enum pkvm_exit)e), name) == 0) {
			*out = (enum pkvm_exit)e;
			return reaches_host(*out);
		}
	return false;
}

static bool to_exit(struct reader *r, json_t *v, void *at)
{
	if (!json_is_string(v) || !exit_from_name(json_string_value(v), at))
		return json_fault_value(r, v, "the name of an exit that reaches the host");
	return true;
}

static bool to_items(struct reader *r, json_t *v, void *at)
{
	if (!json_is_object(v))
		return json_fault(r, "the items are an object: their names and values");
	*(json_t **)at = v;
	return true;
}

static bool parse_hex(const char *text, uint64_t *out)
{
	static const char digits[] = "0123456789abcdef";
	size_t n = strlen(text);

	if (n < 3 || n > 18 || text[0] != '0' || text[1] != 'x')
		return false;
	*out = 0;
	for (const char *c = text + 2; *c; c++) {
		const char *digit = strchr(digits, *c);

		if (!digit)
			return false;
		*out = *out << 4 | (uint64_t)(digit - digits);
	}
	return true;
}

static bool parse_value(json_t *v, uint64_t *out)
{
	if (json_is_string(v))
		return parse_hex(json_string_value(v), out);
	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*out = (uint64_t)json_integer_value(v);
	return true;
}

#define SYNDROME "ESR_EL2"
/* Where items are from. */
struct items_source {
	uint64_t esr; /* the syndrome among them; 0: none */
	bool is_kept; /* by journal or picture */
};

static bool item_from_name(enum pkvm_exit e, uint64_t esr, const char *name, unsigned *n, struct pkvm_exit_item *out)
{
	for (*n = 0; pkvm_exit_item(e, esr, *n, out); ++*n)
		if (strcmp(out->name, name) == 0)
			return true;
	return false;
}

/* Does the exit show that much of the item? */
static bool is_shown(struct reader *r, enum pkvm_exit e, const struct pkvm_exit_item *item, uint64_t value)
{
	if (value & ~item->bits)
		return json_fault_at(r, item->name,
				     "%s has bits that are hidden at the exit \"%s\", which shows %#" PRIx64,
				     item->name, pkvm_exit_name(e), item->bits);
	if (item->constant && value != item->bits)
		return json_fault_at(r, item->name, "%s at the exit \"%s\" is always %#" PRIx64, item->name,
				     pkvm_exit_name(e), item->bits);
	return true;
}

static bool read_value(struct reader *r, const struct items_source *from, const char *name, json_t *v,
		       struct vcpu_exit *out)
{
	struct pkvm_exit_item item;
	uint64_t value;
	unsigned n;

	if (!item_from_name(out->exit, from->esr, name, &n, &item))
		return json_fault_at(r, name, "a vCPU has no such item");
	if (!item.bits && from->is_kept)
		return true;
	if (!item.bits)
		return json_fault_at(r, name, "%s is hidden at the exit \"%s\": %s", item.name,
				     pkvm_exit_name(out->exit), item.why);
	if (!parse_value(v, &value))
		return json_fault_at(r, name, "%s is neither \"0x\" with up to 16 digits nor an integer below 2^63",
				     item.name);
	if (!is_shown(r, out->exit, &item, value))
		return false;
	if (out->count == VCPU_VALUES_MAX)
		return json_fault_at(r, name, "more than %d items", VCPU_VALUES_MAX);
	out->values[out->count].item = n;
	out->values[out->count++].value = value;
	return true;
}

/* What a store shows, its syndrome says. */
static bool read_items(struct reader *r, json_t *items, bool is_kept, struct vcpu_exit *out)
{
	struct items_source from = { .is_kept = is_kept };
	json_t *syndrome = json_object_get(items, SYNDROME), *v;
	const char *name;

	json_enter(r, "items");
	if (syndrome && !parse_value(syndrome, &from.esr))
		from.esr = 0;
	json_object_foreach (items, name, v)
		if (!read_value(r, &from, name, v, out))
			return false;
	json_leave(r);
	return true;
}

struct vcpu_draft {
	struct vcpu_body body;
	json_t *items;
};
#define MUST(name, read, member)                                                             \
	{                                                                                    \
		name, JSON_REQUIRED, read, offsetof(struct vcpu_draft, member), JSON_NO_FLAG \
	}
static const struct json_field vcpu_fields[] = {
	MUST("boot_id", json_to_boot_id, body.boot_id),
	MUST("epoch", json_to_number, body.epoch),
	MUST("exit", to_exit, body.seen.exit),
	MUST("items", to_items, items),
};
/* As journal and picture have it. */
static const struct json_field kept_fields[] = {
	MUST("exit", to_exit, body.seen.exit),
	MUST("items", to_items, items),
};

static bool read_vcpu(const char *text, size_t len, const struct json_field *fields, size_t n, struct vcpu_body *out,
		      struct body **owner, struct codec_fault *why)
{
	struct vcpu_draft draft = { .items = NULL };
	struct reader r;
	json_t *v;

	*owner = NULL;
	v = json_read_secret(&r, text, len, why);
	if (!v)
		return false;
	if (!json_read_object(&r, v, fields, n, &draft) ||
	    !read_items(&r, draft.items, fields == kept_fields, &draft.body.seen)) {
		codec_release(r.body);
		return false;
	}
	*out = draft.body;
	*owner = r.body;
	return true;
}

bool codec_vcpu(const char *text, size_t len, struct vcpu_body *out, struct body **owner, struct codec_fault *why)
{
	return read_vcpu(text, len, vcpu_fields, PW_ARRAY_LEN(vcpu_fields), out, owner, why);
}

bool vcpu_exit_read(const char *exit, const char *items, struct vcpu_exit *out, struct codec_fault *why)
{
	struct vcpu_body b;
	struct body *owner;
	struct jsonw w;
	size_t len;
	char *text;
	bool ok;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_str(&w, "exit", exit);
	jsonw_m_raw(&w, "items", items, strlen(items));
	jsonw_close(&w, '}');
	text = jsonw_finish(&w, &len);
	if (!text) {
		*why = (struct codec_fault){ .detail = "out of memory", .no_memory = true };
		return false;
	}
	ok = read_vcpu(text, len, kept_fields, PW_ARRAY_LEN(kept_fields), &b, &owner, why);
	free(text);
	if (ok)
		*out = b.seen;
	codec_release(owner);
	return ok;
}

void vcpu_value_write(struct jsonw *w, const char *key, uint64_t value)
{
	char text[19];

	snprintf(text, sizeof text, "0x%" PRIx64, value);
	jsonw_m_str(w, key, text);
}

void vcpu_items_write(struct jsonw *w, const struct vcpu_exit *x)
{
	struct pkvm_exit_item item;

	jsonw_open(w, '{');
	for (unsigned i = 0; i < x->count; i++)
		if (pkvm_exit_item(x->exit, 0, x->values[i].item, &item))
			vcpu_value_write(w, item.name, x->values[i].value);
	jsonw_close(w, '}');
}

const uint64_t *vcpu_exit_value(const struct vcpu_exit *x, unsigned item)
{
	for (unsigned i = 0; i < x->count; i++)
		if (x->values[i].item == item)
			return &x->values[i].value;
	return NULL;
}
