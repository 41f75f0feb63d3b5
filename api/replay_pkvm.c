/* pkvm-trace/1: page ownership of arm64 pKVM (tests/traces/README.md). */
#include <stdlib.h>
#include <string.h>

#include "api/replay.h"
#include "engine/arch/pkvm.h"

#define NAME_BYTES 64
#define PAGES_MAX  ((uint64_t)1 << 30)

/* What VMs need of their own lies apart: the host's structure, the hypervisor's, the root of stage 2. */
#define OWN_PAGES  ((uint64_t)1 << 32)
#define OWN_EACH   ((uint64_t)3)

struct replay {
	struct pw_mem mem;
	struct pkvm model;
	bool has_model;
	uint64_t pages;
	struct pkvm_vm *vms[PKVM_VMS_MAX];
	char names[PKVM_VMS_MAX][NAME_BYTES];
	size_t vm_count;
};

/* The header. */

static struct pkvm_vm *vm_named(const struct replay *r, const char *name, size_t len)
{
	for (size_t i = 0; i < r->vm_count; i++)
		if (strlen(r->names[i]) == len && memcmp(r->names[i], name, len) == 0)
			return r->vms[i];
	return NULL;
}

static bool read_kind(const char *text, enum pkvm_kind *out)
{
	for (int k = 0; k < PKVM_KIND_COUNT; k++)
		if (strcmp(pkvm_kind_name((enum pkvm_kind)k), text) == 0) {
			*out = (enum pkvm_kind)k;
			return true;
		}
	return false;
}

/* A VM in state CREATED, with pages of its own. */
static enum pw_status make_vm(struct replay *r, enum pkvm_kind kind, struct pkvm_vm **out)
{
	uint64_t own = OWN_PAGES + r->vm_count * OWN_EACH;
	struct pkvm_vm_params p = { .kind = kind,
				    .vcpus = 1,
				    .host_page = own,
				    .donated = (own + 1) << PKVM_PAGE_SHIFT,
				    .donated_pages = 1,
				    .table = (own + 2) << PKVM_PAGE_SHIFT,
				    .table_pages = 1 };
	struct pkvm_call share = { .pfn = own };
	struct pkvm_answer a;
	enum pkvm_code code;
	unsigned handle;

	if (pkvm_page_call(&r->model, PKVM_HSH, &share, &a) != PW_OK ||
	    pkvm_reserve(&r->model, &handle, &code) != PW_OK)
		return PW_NO_MEMORY;
	if (a.code != PKVM_OK || code != PKVM_OK)
		return PW_INVALID;
	if (pkvm_init_vm(&r->model, handle, &p, &code) != PW_OK)
		return PW_NO_MEMORY;
	*out = pkvm_vm_of(&r->model, handle);
	return code == PKVM_OK ? PW_OK : PW_INVALID;
}

static enum pw_status read_vm(struct replay *r, const json_t *json, struct pw_err *err)
{
	static const char *const members[] = { "name", "kind", NULL };
	const char *name, *text;
	enum pkvm_kind kind;
	enum pw_status st;

	if (!json_is_object(json))
		return pw_fail(err, PW_INVALID, "a VM is not an object");
	if (replay_known(json, members, err) != PW_OK || replay_str(json, "name", &name, err) != PW_OK ||
	    replay_str(json, "kind", &text, err) != PW_OK)
		return pw_wrap(err, "VM");
	if (!*name || strlen(name) >= NAME_BYTES || vm_named(r, name, strlen(name)) || r->vm_count == PKVM_VMS_MAX)
		return pw_fail(err, PW_INVALID, "VM \"%.64s\": a bad name, twice the same, or too many", name);
	if (!read_kind(text, &kind))
		return pw_fail(err, PW_INVALID, "VM %s: unknown kind \"%.64s\"", name, text);
	st = make_vm(r, kind, &r->vms[r->vm_count]);
	if (st != PW_OK)
		return pw_fail(err, st, "VM %s: it cannot be made", name);
	memcpy(r->names[r->vm_count++], name, strlen(name) + 1);
	return PW_OK;
}

static enum pw_status read_vms(struct replay *r, const json_t *vms, struct pw_err *err)
{
	json_t *vm;
	size_t i;

	if (!json_is_array(vms))
		return pw_fail(err, PW_INVALID, "member \"vms\" is missing or not an array");
	json_array_foreach (vms, i, vm) {
		enum pw_status st = read_vm(r, vm, err);

		if (st != PW_OK)
			return st;
	}
	return PW_OK;
}

static enum pw_status start_pages(struct replay *r, const char *start, struct pw_err *err)
{
	struct pkvm_call c = { .pfn = 0, .calls = r->pages };
	struct pkvm_answer a;

	if (strcmp(start, pkvm_joint_name(PKVM_A)) == 0)
		return PW_OK;
	if (strcmp(start, pkvm_joint_name(PKVM_B)) != 0)
		return pw_fail(err, PW_INVALID, "pages start in A or B, not in \"%.64s\"", start);
	if (pkvm_page_call(&r->model, PKVM_HDH, &c, &a) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	return PW_OK;
}

static enum pw_status read_header(struct replay *r, const json_t *header, struct pw_err *err)
{
	static const char *const members[] = { "type", "format", "scenario", "pages", "start", "vms", NULL };
	struct pkvm_region regions[] = { { 0, 0, false }, { OWN_PAGES, OWN_EACH * PKVM_VMS_MAX, false } };
	const char *start;

	if (replay_known(header, members, err) != PW_OK || replay_u64(header, "pages", 0, &r->pages, err) != PW_OK ||
	    replay_str(header, "start", &start, err) != PW_OK)
		return err->status;
	if (!r->pages || r->pages > PAGES_MAX)
		return pw_fail(err, PW_INVALID, "member \"pages\" is missing or out of range");
	regions[0].count = r->pages;
	if (pkvm_init(&r->model, &r->mem, PKVM_MAINLINE, regions, PW_ARRAY_LEN(regions), 1) != PW_OK)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	r->has_model = true;
	if (start_pages(r, start, err) != PW_OK)
		return err->status;
	return read_vms(r, json_object_get(header, "vms"), err);
}

static void close_replay(void *model)
{
	struct replay *r = model;

	if (r->has_model)
		pkvm_release(&r->model);
	free(r);
}

static enum pw_status open_replay(const json_t *header, void **model, struct pw_err *err)
{
	struct replay *r = calloc(1, sizeof *r);
	enum pw_status st;

	if (!r)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	st = read_header(r, header, err);
	if (st == PW_OK)
		*model = r;
	else
		close_replay(r);
	return st;
}

/* Steps. */

enum target { BY_PAGE, BY_PAGE_AND_GFN, BY_GFN, BY_VM };

static const struct op {
	const char *name;
	enum target target;
	bool takes_nr;
	int op; /* enum pkvm_page_op or, if by_leaf, enum pkvm_leaf_op */
	bool by_leaf;
} ops[] = {
	{ "HSH", BY_PAGE, false, PKVM_HSH, false },         { "HUH", BY_PAGE, false, PKVM_HUH, false },
	{ "HDH", BY_PAGE, false, PKVM_HDH, false },         { "YDH", BY_PAGE, false, PKVM_YDH, false },
	{ "PIN", BY_PAGE, false, PKVM_PIN, false },         { "UNPIN", BY_PAGE, false, PKVM_UNPIN, false },
	{ "HSF", BY_PAGE, false, PKVM_HSF, false },         { "HUF", BY_PAGE, false, PKVM_HUF, false },
	{ "FRC", BY_PAGE, false, PKVM_FRC, false },         { "HSG", BY_PAGE_AND_GFN, true, PKVM_HSG, false },
	{ "HDG", BY_PAGE_AND_GFN, false, PKVM_HDG, false }, { "HUG", BY_PAGE_AND_GFN, true, PKVM_HUG, true },
	{ "GSH", BY_GFN, false, PKVM_GSH, true },           { "GUH", BY_GFN, false, PKVM_GUH, true },
	{ "RCL", BY_GFN, false, PKVM_RCL, true },           { "TEARDOWN", BY_VM, false, 0, false },
};

static const struct op *find_op(const json_t *line, struct pw_err *err)
{
	const char *name;

	if (replay_str(line, "op", &name, err) != PW_OK)
		return NULL;
	for (size_t i = 0; i < PW_ARRAY_LEN(ops); i++)
		if (strcmp(ops[i].name, name) == 0)
			return &ops[i];
	pw_fail(err, PW_INVALID, "unknown op \"%.64s\"", name);
	return NULL;
}

/* Decimal digits to the end of the text. */
static bool read_digits(const char *text, uint64_t *out)
{
	size_t n = strspn(text, "0123456789");

	if (!n || n > 15 || text[n])
		return false;
	*out = strtoull(text, NULL, 10);
	return true;
}

static bool read_page(const struct replay *r, const char *name, uint64_t *out)
{
	return name[0] == 'p' && read_digits(name + 1, out) && *out < r->pages;
}

static enum pw_status page_arg(const struct replay *r, const json_t *args, uint64_t *out, struct pw_err *err)
{
	const char *name;

	if (replay_str(args, "page", &name, err) != PW_OK)
		return err->status;
	return read_page(r, name, out) ? PW_OK : pw_fail(err, PW_INVALID, "unknown page \"%.64s\"", name);
}

static enum pw_status vm_arg(const struct replay *r, const json_t *args, struct pkvm_vm **out, struct pw_err *err)
{
	const char *name;

	if (replay_str(args, "vm", &name, err) != PW_OK)
		return err->status;
	*out = vm_named(r, name, strlen(name));
	return *out ? PW_OK : pw_fail(err, PW_INVALID, "unknown VM \"%.64s\"", name);
}

static enum pw_status gfn_arg(const json_t *args, uint64_t *out, struct pw_err *err)
{
	if (!json_object_get(args, "gfn"))
		return pw_fail(err, PW_INVALID, "member \"gfn\" is missing");
	return replay_u64(args, "gfn", 0, out, err);
}

static enum pw_status read_args(const struct replay *r, const struct op *op, const json_t *args, struct pkvm_call *c,
				struct pw_err *err)
{
	static const char *const by_page[] = { "page", NULL }, *const by_both[] = { "page", "vm", "gfn", NULL },
				 *const by_both_nr[] = { "page", "vm", "gfn", "nr", NULL },
				 *const by_gfn[] = { "vm", "gfn", NULL }, *const by_vm[] = { "vm", NULL };
	const char *const *const members[] = { [BY_PAGE] = by_page,
					       [BY_PAGE_AND_GFN] = op->takes_nr ? by_both_nr : by_both,
					       [BY_GFN] = by_gfn,
					       [BY_VM] = by_vm };
	bool has_page = op->target == BY_PAGE || op->target == BY_PAGE_AND_GFN;
	bool has_gfn = op->target == BY_GFN || op->target == BY_PAGE_AND_GFN;

	*c = (struct pkvm_call){ .nr = 1 };
	if (!json_is_object(args))
		return pw_fail(err, PW_INVALID, "%s without args", op->name);
	if (replay_known(args, members[op->target], err) != PW_OK ||
	    (has_page && page_arg(r, args, &c->pfn, err) != PW_OK) ||
	    (op->target != BY_PAGE && vm_arg(r, args, &c->vm, err) != PW_OK) ||
	    (has_gfn && gfn_arg(args, &c->gfn, err) != PW_OK) || replay_u64(args, "nr", 1, &c->nr, err) != PW_OK)
		return pw_wrap(err, "%s", op->name);
	if (!c->nr)
		return pw_fail(err, PW_INVALID, "%s of no page", op->name);
	return PW_OK;
}

static enum pw_status run_op(struct replay *r, const struct op *op, const struct pkvm_call *c, enum pkvm_code *code,
			     struct pw_err *err)
{
	struct pkvm_answer a = { .code = PKVM_OK };
	enum pw_status st = PW_OK;

	if (op->target == BY_VM)
		a.code = pkvm_start_teardown(&r->model, pkvm_handle(c->vm));
	else if (op->by_leaf)
		st = pkvm_leaf_call(&r->model, (enum pkvm_leaf_op)op->op, c, &a);
	else
		st = pkvm_page_call(&r->model, (enum pkvm_page_op)op->op, c, &a);
	*code = a.code;
	return st == PW_OK ? PW_OK : pw_fail(err, st, "out of memory");
}

/* Results. */

/* A ret must be one that the hypervisor can give: a misspelt one would else just differ. */
static enum pw_status check_ret(const json_t *ret, struct pw_err *err)
{
	const char *text = json_string_value(ret);

	if (json_is_integer(ret) && json_integer_value(ret) == 0)
		return PW_OK;
	for (int c = PKVM_OK + 1; text && c < PKVM_CODE_COUNT; c++)
		if (strcmp(pkvm_code_name((enum pkvm_code)c), text) == 0)
			return PW_OK;
	return pw_fail(err, PW_INVALID, "member \"ret\" is missing or unknown");
}

static json_t *page_json(const struct pkvm_page *p, const json_t *asked, struct pw_err *err)
{
	static const char *const members[] = { "host", "hyp", "pins", "guests", NULL };
	json_t *got = json_object();
	int failed = !got;

	if (!json_is_object(asked)) {
		pw_fail(err, PW_INVALID, "a page in post is not an object");
		failed = 1;
	} else if (replay_known(asked, members, err) != PW_OK) {
		failed = 1;
	}
	if (!failed && json_object_get(asked, "host"))
		failed |=
			json_object_set_new(got, "host", json_string(pkvm_page_state_name(pkvm_joint_host(p->joint))));
	if (!failed && json_object_get(asked, "hyp"))
		failed |= json_object_set_new(got, "hyp", json_string(pkvm_page_state_name(pkvm_joint_hyp(p->joint))));
	if (!failed && json_object_get(asked, "pins"))
		failed |= json_object_set_new(got, "pins", json_integer((json_int_t)p->pins));
	if (!failed && json_object_get(asked, "guests"))
		failed |= json_object_set_new(got, "guests", json_integer((json_int_t)p->guests));
	if (!failed)
		return got;
	json_decref(got);
	return NULL;
}

static json_t *pages_json(const struct replay *r, const json_t *asked, struct pw_err *err)
{
	json_t *got = json_object(), *v;
	const char *key;

	json_object_foreach ((json_t *)(uintptr_t)asked, key, v) {
		struct pkvm_page p;
		uint64_t pfn;
		json_t *one;

		if (!read_page(r, key, &pfn)) {
			pw_fail(err, PW_INVALID, "post names page \"%.64s\"", key);
			goto fail;
		}
		p = pkvm_page_at(&r->model, pfn, pfn + 1);
		one = page_json(&p, v, err);
		if (!one || json_object_set_new(got, key, one) != 0)
			goto fail;
	}
	return got;
fail:
	json_decref(got);
	return NULL;
}

/* "vm:gfn" */
static bool read_gfn_key(const struct replay *r, const char *key, struct pkvm_vm **vm, uint64_t *gfn)
{
	const char *colon = strrchr(key, ':');

	if (!colon || !read_digits(colon + 1, gfn) || *gfn >= TREE_PAGES)
		return false;
	*vm = vm_named(r, key, (size_t)(colon - key));
	return *vm;
}

static json_t *gfns_json(const struct replay *r, const json_t *asked, struct pw_err *err)
{
	json_t *got = json_object(), *v;
	const char *key;

	json_object_foreach ((json_t *)(uintptr_t)asked, key, v) {
		struct pkvm_vm *vm;
		enum pkvm_page_state s;
		uint64_t gfn;

		if (!read_gfn_key(r, key, &vm, &gfn)) {
			pw_fail(err, PW_INVALID, "post names GFN \"%.64s\"", key);
			goto fail;
		}
		s = pkvm_leaf_at(vm, gfn, gfn + 1).state;
		if (json_object_set_new(got, key, json_string(pkvm_page_state_name(s))) != 0)
			goto fail;
	}
	return got;
fail:
	json_decref(got);
	return NULL;
}

static json_t *post_json(const struct replay *r, const json_t *post, struct pw_err *err)
{
	static const char *const members[] = { "pages", "gfns", NULL };
	const json_t *pages = json_object_get(post, "pages"), *gfns = json_object_get(post, "gfns");
	json_t *got;

	if (!json_is_object(post) || (pages && !json_is_object(pages)) || (gfns && !json_is_object(gfns))) {
		pw_fail(err, PW_INVALID, "member \"post\" is missing, or what it holds is not an object");
		return NULL;
	}
	if (replay_known(post, members, err) != PW_OK)
		return NULL;
	got = json_object();
	if (pages && got && json_object_set_new(got, "pages", pages_json(r, pages, err)) != 0)
		goto fail;
	if (gfns && got && json_object_set_new(got, "gfns", gfns_json(r, gfns, err)) != 0)
		goto fail;
	return got;
fail:
	json_decref(got);
	return NULL;
}

static enum pw_status step(void *model, const json_t *line, json_t **got, bool *refused, struct pw_err *err)
{
	static const char *const members[] = { "n", "op", "args", "ret", "post", NULL };
	struct replay *r = model;
	const struct op *op = find_op(line, err);
	struct pkvm_call c;
	enum pkvm_code code;
	json_t *post, *ret;

	if (!op || replay_known(line, members, err) != PW_OK ||
	    read_args(r, op, json_object_get(line, "args"), &c, err) != PW_OK ||
	    check_ret(json_object_get(line, "ret"), err) != PW_OK || run_op(r, op, &c, &code, err) != PW_OK)
		return err->status;
	*refused = code != PKVM_OK;
	err->status = PW_OK;
	post = post_json(r, json_object_get(line, "post"), err);
	if (!post)
		return err->status == PW_INVALID ? PW_INVALID : pw_fail(err, PW_NO_MEMORY, "out of memory");
	ret = code == PKVM_OK ? json_integer(0) : json_string(pkvm_code_name(code));
	*got = json_pack("{s:o, s:o}", "ret", ret, "post", post);
	return *got ? PW_OK : pw_fail(err, PW_NO_MEMORY, "out of memory");
}

static uint64_t digest(const void *model)
{
	return pkvm_digest(&((const struct replay *)model)->model);
}

static bool check(const void *model, struct pw_err *err)
{
	if (pkvm_check(&((const struct replay *)model)->model))
		return true;
	pw_fail(err, PW_CONFLICT, "an invariant is broken");
	return false;
}

const struct replay_format replay_pkvm = {
	.name = "pkvm-trace/1",
	.open = open_replay,
	.close = close_replay,
	.step = step,
	.digest = digest,
	.check = check,
};
