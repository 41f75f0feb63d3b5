#include <string.h>

#include "api/json.h"
#include "api/transitions_fast.h"

/* One ITEM, before it is known which of its three forms it has. */
struct item_draft {
	struct pw_uuid vm;
	enum gfn_op op;
	const char *arch_op;            /* the name of an architecture's operation, in place of op; or NULL */
	const struct arch_vm_op *vm_op; /* a step of the VM itself, in place of op; or NULL */
	const struct arch_law *law;     /* whose vm_op is */
	bool has_gfn, has_count;
	uint64_t gfn, count;
	const char *pool;
	json_t *frame, *runs, *gfns, *pfns; /* borrowed */
};

/* The row that an item with or without frames means by this name. */
static const struct arch_op *arch_row(const char *name, bool framed, const struct arch_law **law)
{
	return arch_op_find(name, strlen(name), framed, law);
}

static bool to_op(struct reader *r, json_t *v, void *at)
{
	static const enum gfn_op ops[] = { GFN_SHARE, GFN_UNSHARE, GFN_PAGE_IN, GFN_PAGE_OUT };
	const char *name = json_is_string(v) ? json_string_value(v) : "";
	struct item_draft *d = at;

	for (size_t i = 0; i < PW_ARRAY_LEN(ops); i++)
		if (strcmp(gfn_op_name(ops[i]), name) == 0) {
			d->op = ops[i];
			return true;
		}
	d->vm_op = arch_vm_op_find(name, strlen(name), &d->law);
	if (d->vm_op)
		return true;
	if (arch_row(name, false, NULL) || arch_row(name, true, NULL)) {
		d->arch_op = name;
		return true;
	}
	return json_fault_value(r, v, "one of share, unshare, page_in, page_out, or an operation of an architecture");
}

#define AT(member) offsetof(struct item_draft, member)
static const struct json_field item_fields[] = {
	{ "vm", JSON_REQUIRED, json_to_uuid, AT(vm), JSON_NO_FLAG },
	{ "op", JSON_REQUIRED, to_op, 0, JSON_NO_FLAG },
	{ "gfn", JSON_OPTIONAL, json_to_page, AT(gfn), AT(has_gfn) },
	{ "count", JSON_OPTIONAL, json_to_count, AT(count), AT(has_count) },
	{ "frame", JSON_OPTIONAL, json_to_value, AT(frame), JSON_NO_FLAG },
	{ "runs", JSON_OPTIONAL, json_to_value, AT(runs), JSON_NO_FLAG },
	{ "gfns", JSON_OPTIONAL, json_to_value, AT(gfns), JSON_NO_FLAG },
	{ "pfns", JSON_OPTIONAL, json_to_value, AT(pfns), JSON_NO_FLAG },
	{ "pool", JSON_OPTIONAL, json_to_pool, AT(pool), JSON_NO_FLAG },
};
#undef AT

struct frame_draft {
	const char *pool;
	uint64_t pfn;
};
static const struct json_field frame_fields[] = {
	{ "pool", JSON_REQUIRED, json_to_pool, offsetof(struct frame_draft, pool), JSON_NO_FLAG },
	{ "pfn", JSON_REQUIRED, json_to_page, offsetof(struct frame_draft, pfn), JSON_NO_FLAG },
};

/* Members that another form of the item has, and this one has not. */
static bool check_absent(struct reader *r, const char *name, const void *member, const char *form)
{
	return !member || json_fault_at(r, name, "\"%s\" does not go with %s", name, form);
}

/* May, or must, an item of this op name frames? `at` is where they are, or should be. Sets what it->framed decides. */
static bool check_framed(struct reader *r, const struct item_draft *d, struct item *it, bool framed, const char *at)
{
	const char *name = d->arch_op ? d->arch_op : gfn_op_name(d->op);
	bool fits;

	it->framed = framed;
	if (d->arch_op) {
		it->arch_op = arch_row(name, framed, &it->arch_law);
		fits = it->arch_op;
	} else {
		fits = framed ? d->op == GFN_PAGE_IN || d->op == GFN_UNSHARE : d->op != GFN_PAGE_IN;
	}
	return fits || json_fault_at(r, at, framed ? "%s takes no frames" : "%s needs frames", name);
}

static bool check_pool(struct reader *r, const struct item_draft *d, bool framed)
{
	if (framed && !d->pool)
		return json_fault_at(r, "pool", "\"pool\" is missing: whose frames are these?");
	if (!framed && d->pool)
		return json_fault_at(r, "pool", "\"pool\" is there, but no frames are");
	return true;
}

/* gfn, count and perhaps frame */
static bool read_single(struct reader *r, const struct item_draft *d, struct item *it, struct gfn_run *run)
{
	struct frame_draft frame = { NULL, 0 };

	if (!d->has_gfn || !d->has_count)
		return json_fault_at(r, d->has_gfn ? "count" : "gfn", "\"%s\" is missing",
				     d->has_gfn ? "count" : "gfn");
	if (!check_absent(r, "pfns", d->pfns, "gfn and count") || !check_absent(r, "pool", d->pool, "gfn and count") ||
	    !check_framed(r, d, it, d->frame, "frame") || !json_check_run(r, "count", d->gfn, d->count))
		return false;
	if (d->frame) {
		json_enter(r, "frame");
		if (!json_read_object(r, d->frame, frame_fields, PW_ARRAY_LEN(frame_fields), &frame) ||
		    !json_check_run(r, "pfn", frame.pfn, d->count))
			return false;
		json_leave(r);
	}
	*run = (struct gfn_run){ d->gfn, d->count, frame.pfn };
	it->pool = frame.pool;
	it->run_count = 1;
	return true;
}

static bool read_element(struct reader *r, json_t *array, size_t i, json_read_fn read, uint64_t *out)
{
	json_enter_at(r, i);
	if (!read(r, json_array_get(array, i), out))
		return false;
	json_leave(r);
	return true;
}

/* [gfn, count] or [gfn, count, pfn] */
static bool read_run(struct reader *r, json_t *v, size_t width, struct gfn_run *run)
{
	if (!json_check_array(r, v, 2, 3))
		return false;
	if (json_array_size(v) != width)
		return json_fault(r, "%zu numbers, where the first run has %zu", json_array_size(v), width);
	if (!read_element(r, v, 0, json_to_page, &run->gfn) || !read_element(r, v, 1, json_to_count, &run->count) ||
	    !json_check_run(r, "1", run->gfn, run->count))
		return false;
	return width == 2 ||
	       (read_element(r, v, 2, json_to_page, &run->pfn) && json_check_run(r, "2", run->pfn, run->count));
}

static bool read_runs(struct reader *r, const struct item_draft *d, struct item *it, struct gfn_run *run)
{
	size_t width, i;
	json_t *v;

	if (!check_absent(r, "frame", d->frame, "runs") || !check_absent(r, "pfns", d->pfns, "runs"))
		return false;
	width = json_array_size(json_array_get(d->runs, 0));
	json_enter(r, "runs");
	json_array_foreach (d->runs, i, v) {
		json_enter_at(r, i);
		if (!read_run(r, v, width, &run[i]))
			return false;
		json_leave(r);
	}
	json_leave(r);
	it->pool = d->pool;
	it->run_count = json_array_size(d->runs);
	return check_framed(r, d, it, width == 3, "runs") && check_pool(r, d, width == 3);
}

static bool read_gfns(struct reader *r, const struct item_draft *d, struct item *it, struct gfn_run *run)
{
	size_t n = json_array_size(d->gfns);

	if (!check_absent(r, "frame", d->frame, "gfns") || !check_framed(r, d, it, d->pfns, "pfns") ||
	    !check_pool(r, d, d->pfns))
		return false;
	json_enter(r, "gfns");
	for (size_t i = 0; i < n; i++) {
		if (!read_element(r, d->gfns, i, json_to_page, &run[i].gfn))
			return false;
		run[i].count = 1;
	}
	json_leave(r);
	if (d->pfns) {
		json_enter(r, "pfns");
		if (!json_check_array(r, d->pfns, n, n))
			return false;
		for (size_t i = 0; i < n; i++)
			if (!read_element(r, d->pfns, i, json_to_page, &run[i].pfn))
				return false;
		json_leave(r);
	}
	it->pool = d->pool;
	it->run_count = n;
	return true;
}

/* A step of the VM itself: neither pages nor frames go with it. */
static bool read_vm_op(struct reader *r, const struct item_draft *d, struct item *it)
{
	static const uint64_t there;
	const struct {
		const char *name;
		const void *member;
	} members[] = {
		{ "gfn", d->has_gfn ? &there : NULL },
		{ "count", d->has_count ? &there : NULL },
		{ "frame", d->frame },
		{ "runs", d->runs },
		{ "gfns", d->gfns },
		{ "pfns", d->pfns },
		{ "pool", d->pool },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(members); i++)
		if (!check_absent(r, members[i].name, members[i].member, d->vm_op->name))
			return false;
	it->vm = d->vm;
	it->vm_op = d->vm_op;
	it->arch_law = d->law;
	return true;
}

/* Is there exactly one form, and how many runs has it? 0: refused. */
static size_t count_runs(struct reader *r, const struct item_draft *d)
{
	bool single = d->has_gfn || d->has_count;
	json_t *list = d->runs ? d->runs : d->gfns;
	const char *name = d->runs ? "runs" : "gfns";

	if (single + !!d->runs + !!d->gfns != 1) {
		if (single || list)
			json_fault_at(r, single ? name : "gfns", "only one of gfn and count, runs, gfns can be there");
		else
			json_fault(r, "gfn and count, runs or gfns must be there");
		return 0;
	}
	if (single)
		return 1;
	json_enter(r, name);
	if (!json_check_array(r, list, 1, SIZE_MAX / 2))
		return 0;
	json_leave(r);
	return json_array_size(list);
}

static bool read_item(struct reader *r, json_t *v, struct item *it)
{
	struct item_draft d = { .pool = NULL };
	struct gfn_run *runs;
	size_t n;

	if (!json_read_object(r, v, item_fields, PW_ARRAY_LEN(item_fields), &d))
		return false;
	if (d.vm_op)
		return read_vm_op(r, &d, it);
	n = count_runs(r, &d);
	if (!n)
		return false;
	runs = body_alloc(r->body, n, sizeof *runs);
	if (!runs)
		return json_fault_memory(r);
	it->vm = d.vm;
	it->op = d.op;
	it->runs = runs;
	if (d.runs)
		return read_runs(r, &d, it, runs);
	return d.gfns ? read_gfns(r, &d, it, runs) : read_single(r, &d, it, runs);
}

static bool to_items(struct reader *r, json_t *v, void *at)
{
	struct transitions_body *out = at;
	json_t *item;
	size_t i;

	if (!json_check_array(r, v, 1, CODEC_ITEMS_MAX))
		return false;
	out->items = body_alloc(r->body, json_array_size(v), sizeof *out->items);
	if (!out->items)
		return json_fault_memory(r);
	json_array_foreach (v, i, item) {
		json_enter_at(r, i);
		if (!read_item(r, item, &out->items[i]))
			return false;
		json_leave(r);
	}
	out->count = json_array_size(v);
	return true;
}

#define AT(member) offsetof(struct transitions_body, member)
static const struct json_field transitions_fields[] = {
	{ "boot_id", JSON_REQUIRED, json_to_boot_id, AT(boot_id), JSON_NO_FLAG },
	{ "epoch", JSON_REQUIRED, json_to_number, AT(epoch), JSON_NO_FLAG },
	{ "batch_seq", JSON_OPTIONAL, json_to_number, AT(seq), AT(has_seq) },
	{ "atomic", JSON_OPTIONAL, json_to_bool, AT(atomic), JSON_NO_FLAG },
	{ "items", JSON_REQUIRED, to_items, 0, JSON_NO_FLAG },
};
#undef AT

bool transitions_strict(const char *text, size_t len, struct transitions_body *out, struct body **owner,
			struct codec_fault *why)
{
	struct transitions_body body = { .items = NULL };
	struct reader r;
	json_t *v;

	*owner = NULL;
	v = json_read_text(&r, text, len, why);
	if (!v)
		return false;
	if (!json_read_object(&r, v, transitions_fields, PW_ARRAY_LEN(transitions_fields), &body)) {
		codec_release(r.body);
		return false;
	}
	*out = body;
	*owner = r.body;
	return true;
}

bool codec_transitions(const char *text, size_t len, struct transitions_body *out, struct body **owner,
		       struct codec_fault *why)
{
	return transitions_fast(text, len, out, owner) || transitions_strict(text, len, out, owner, why);
}
