#include "api/transitions_fast.h"

#include <string.h>

#include "api/json.h"

/*
 * Strings come to rest here. Agents name one or two pools; a body that names more than fit is left to the strict
 * decoder.
 */
#define POOLS_MAX 8
struct rest {
	char boot_id[BOOT_ID_MAX];
	unsigned pool_count;
	char pool[POOLS_MAX][POOL_NAME_MAX];
	struct item items[];
};

struct span {
	const char *text;
	size_t len;
};

struct scan {
	const char *at, *end;
	struct body *body;
	struct rest *rest;
	struct gfn_run *runs; /* of all items, one after the other; may move until the end */
	size_t run_count, run_room;
	size_t item_count, item_room;
	const char *vm; /* text of the UUID read last, or NULL */
	struct pw_uuid vm_id;
	struct span arch_name; /* of the architecture's operation looked up last */
	const struct arch_op *arch_op;
	const struct arch_law *arch_law;
};

static inline void skip_space(struct scan *s)
{
	while (s->at < s->end && (*s->at == ' ' || *s->at == '\n' || *s->at == '\r' || *s->at == '\t'))
		s->at++;
}

/* Takes `c` and the space around it. */
static inline bool take(struct scan *s, char c)
{
	skip_space(s);
	if (s->at == s->end || *s->at != c)
		return false;
	s->at++;
	skip_space(s);
	return true;
}

/* A string of printable ASCII without escapes. */
static bool take_string(struct scan *s, struct span *out)
{
	const char *from;

	skip_space(s);
	if (s->at == s->end || *s->at != '"')
		return false;
	for (from = ++s->at; s->at < s->end && *s->at != '"'; s->at++)
		if (*s->at < 0x20 || *s->at > 0x7e || *s->at == '\\')
			return false;
	if (s->at == s->end)
		return false;
	*out = (struct span){ from, (size_t)(s->at - from) };
	s->at++;
	return true;
}

/* Below 10^18, so that nothing can overflow. */
static inline bool take_number(struct scan *s, uint64_t lo, uint64_t hi, uint64_t *out)
{
	const char *from = s->at;
	uint64_t n = 0;

	while (s->at < s->end && (unsigned)(*s->at - '0') < 10 && s->at - from < 18)
		n = n * 10 + (unsigned)(*s->at++ - '0');
	if (s->at == from || (*from == '0' && s->at - from > 1) || n < lo || n > hi)
		return false;
	*out = n;
	return true; /* whatever follows, a fraction say, is no ',' or bracket, and so stops the caller */
}

static bool take_page(struct scan *s, uint64_t *out)
{
	return take_number(s, 0, TREE_PAGES - 1, out);
}

static bool take_count(struct scan *s, uint64_t first, uint64_t *out)
{
	return take_number(s, 1, TREE_PAGES - (first ? first : 1), out);
}

static bool take_bool(struct scan *s, bool *out)
{
	static const char yes[] = "true", no[] = "false";
	size_t left = (size_t)(s->end - s->at);

	*out = left >= 4 && memcmp(s->at, yes, 4) == 0;
	if (!*out && (left < 5 || memcmp(s->at, no, 5) != 0))
		return false;
	s->at += *out ? 4 : 5;
	return true;
}

/* Between two elements or members: true with *more, or at the closing bracket, which it takes. */
static inline bool take_next(struct scan *s, char bracket, bool *more)
{
	if (take(s, ',')) {
		*more = true;
		return true;
	}
	*more = false;
	return take(s, bracket);
}

/* The place of a member's name in `names`, its ':' taken too; seen members must not come again. */
static bool take_key(struct scan *s, const struct span *names, unsigned n, unsigned *seen, unsigned *out)
{
	struct span key;

	if (!take_string(s, &key) || !take(s, ':'))
		return false;
	for (unsigned i = 0; i < n; i++)
		if (names[i].len == key.len && memcmp(names[i].text, key.text, key.len) == 0) {
			*out = i;
			if (*seen & 1u << i)
				return false;
			*seen |= 1u << i;
			return true;
		}
	return false;
}

#define NAME(text)                    \
	{                             \
		text, sizeof text - 1 \
	}

static struct gfn_run *add_run(struct scan *s)
{
	if (s->run_count == s->run_room) {
		struct gfn_run *runs = body_grow(s->body, 2 * s->run_room, sizeof *runs);

		if (!runs)
			return NULL;
		s->runs = runs;
		s->run_room *= 2;
	}
	return &s->runs[s->run_count++];
}

struct part {
	unsigned seen;
	size_t first;   /* place of its first run */
	unsigned width; /* of its runs: 2 or 3 numbers */
	uint64_t gfn, count, pfn;
	struct span arch_op; /* the name of an architecture's operation; text NULL: it is one of the law */
	const char *pool, *frame_pool;
};

static bool take_pool(struct scan *s, const char **out)
{
	struct rest *rest = s->rest;
	struct span name;
	char *pool;

	if (!take_string(s, &name) || name.len >= POOL_NAME_MAX)
		return false;
	for (unsigned i = rest->pool_count; i-- > 0;)
		if (memcmp(rest->pool[i], name.text, name.len) == 0 && !rest->pool[i][name.len]) {
			*out = rest->pool[i];
			return true;
		}
	if (rest->pool_count == POOLS_MAX)
		return false;
	pool = rest->pool[rest->pool_count];
	memcpy(pool, name.text, name.len);
	pool[name.len] = '\0';
	if (!codec_is_pool_name(pool))
		return false;
	rest->pool_count++;
	*out = pool;
	return true;
}

static bool take_vm(struct scan *s, struct pw_uuid *out)
{
	struct span id;

	if (!take_string(s, &id) || id.len != PW_UUID_TEXT - 1)
		return false;
	if (!s->vm || memcmp(s->vm, id.text, id.len) != 0) {
		if (!pw_uuid_parse(id.text, id.len, &s->vm_id))
			return false;
		s->vm = id.text;
	}
	*out = s->vm_id;
	return true;
}

static bool take_op(struct scan *s, struct part *p, enum gfn_op *out)
{
	static const struct span ops[] = {
		[GFN_SHARE] = NAME("share"),
		[GFN_UNSHARE] = NAME("unshare"),
		[GFN_PAGE_IN] = NAME("page_in"),
		[GFN_PAGE_OUT] = NAME("page_out"),
	};
	struct span op;

	if (!take_string(s, &op))
		return false;
	for (unsigned i = 0; i < PW_ARRAY_LEN(ops); i++)
		if (ops[i].len == op.len && memcmp(ops[i].text, op.text, op.len) == 0) {
			*out = (enum gfn_op)i;
			return true;
		}
	p->arch_op = op;
	return true;
}

/* Whether there is such an operation is known when it is known whether there are frames. */
static bool find_arch_op(struct scan *s, const struct part *p, struct item *it)
{
	const struct span *name = &p->arch_op;

	if (!s->arch_op || s->arch_op->framed != it->framed || s->arch_name.len != name->len ||
	    memcmp(s->arch_name.text, name->text, name->len) != 0) {
		s->arch_op = arch_op_find(name->text, name->len, it->framed, &s->arch_law);
		s->arch_name = *name;
	}
	it->arch_op = s->arch_op;
	it->arch_law = s->arch_law;
	return it->arch_op;
}

/* Does the operation go with or without frames, as the item has them? */
static bool op_fits(struct scan *s, const struct part *p, struct item *it)
{
	if (p->arch_op.text)
		return find_arch_op(s, p, it);
	return it->framed ? it->op == GFN_PAGE_IN || it->op == GFN_UNSHARE : it->op != GFN_PAGE_IN;
}

static bool take_frame(struct scan *s, struct part *p)
{
	static const struct span names[] = { NAME("pool"), NAME("pfn") };
	unsigned seen = 0, which;
	bool more = true;

	if (!take(s, '{'))
		return false;
	while (more) {
		if (!take_key(s, names, PW_ARRAY_LEN(names), &seen, &which) ||
		    !(which == 0 ? take_pool(s, &p->frame_pool) : take_page(s, &p->pfn)) || !take_next(s, '}', &more))
			return false;
	}
	return seen == 3;
}

/* [gfn, count] or [gfn, count, pfn] */
static inline bool take_run(struct scan *s, struct gfn_run *run, unsigned *width)
{
	uint64_t pfn = 0;

	*width = 2;
	if (!take(s, '[') || !take_page(s, &run->gfn) || !take(s, ',') || !take_count(s, run->gfn, &run->count))
		return false;
	if (take(s, ',')) {
		if (!take_page(s, &pfn) || run->count > TREE_PAGES - pfn)
			return false;
		*width = 3;
	}
	run->pfn = pfn;
	return take(s, ']');
}

static bool take_runs(struct scan *s, struct part *p)
{
	bool more = true;

	if (!take(s, '['))
		return false;
	while (more) {
		struct gfn_run *run = add_run(s);
		unsigned width;

		if (!run || !take_run(s, run, &width) || (p->width && width != p->width) || !take_next(s, ']', &more))
			return false;
		p->width = width;
	}
	return true;
}

static bool take_gfns(struct scan *s, struct part *p)
{
	bool more = true;

	if (!take(s, '['))
		return false;
	while (more) {
		struct gfn_run *run = add_run(s);

		if (!run || !take_page(s, &run->gfn) || !take_next(s, ']', &more))
			return false;
		run->count = 1;
		run->pfn = 0;
	}
	return true;
}

/* After gfns only, whose runs it completes. */
static bool take_pfns(struct scan *s, struct part *p)
{
	bool more = true;
	size_t i;

	if (s->run_count == p->first || !take(s, '['))
		return false;
	for (i = p->first; more && i < s->run_count; i++)
		if (!take_page(s, &s->runs[i].pfn) || !take_next(s, ']', &more))
			return false;
	return !more && i == s->run_count;
}

enum member { M_VM, M_OP, M_GFN, M_COUNT, M_FRAME, M_RUNS, M_GFNS, M_PFNS, M_POOL, MEMBER_COUNT };
static const struct span member_names[MEMBER_COUNT] = {
	[M_VM] = NAME("vm"),       [M_OP] = NAME("op"),       [M_GFN] = NAME("gfn"),
	[M_COUNT] = NAME("count"), [M_FRAME] = NAME("frame"), [M_RUNS] = NAME("runs"),
	[M_GFNS] = NAME("gfns"),   [M_PFNS] = NAME("pfns"),   [M_POOL] = NAME("pool"),
};

static bool take_member(struct scan *s, struct part *p, struct item *it, enum member which)
{
	switch (which) {
	case M_VM: return take_vm(s, &it->vm);
	case M_OP: return take_op(s, p, &it->op);
	case M_GFN: return take_page(s, &p->gfn);
	case M_COUNT: return take_count(s, 0, &p->count);
	case M_FRAME: return take_frame(s, p);
	case M_RUNS: return take_runs(s, p);
	case M_GFNS: return take_gfns(s, p);
	case M_PFNS: return take_pfns(s, p);
	case M_POOL: return take_pool(s, &p->pool);
	case MEMBER_COUNT: break;
	}
	return false;
}

#define BIT(m) (1u << (m))
#define BASE   (BIT(M_VM) | BIT(M_OP))
/* Every set of members that makes an item. */
static const struct form {
	unsigned members;
	unsigned width; /* of its runs, where it has any */
	bool framed, single;
} forms[] = {
	{ BASE | BIT(M_GFN) | BIT(M_COUNT), 0, false, true },
	{ BASE | BIT(M_GFN) | BIT(M_COUNT) | BIT(M_FRAME), 0, true, true },
	{ BASE | BIT(M_RUNS), 2, false, false },
	{ BASE | BIT(M_RUNS) | BIT(M_POOL), 3, true, false },
	{ BASE | BIT(M_GFNS), 0, false, false },
	{ BASE | BIT(M_GFNS) | BIT(M_PFNS) | BIT(M_POOL), 0, true, false },
};

static const struct form *find_form(const struct part *p)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(forms); i++)
		if (forms[i].members == p->seen && forms[i].width == p->width)
			return &forms[i];
	return NULL;
}

static bool add_single(struct scan *s, const struct part *p)
{
	struct gfn_run *run = add_run(s);

	if (!run || p->count > TREE_PAGES - p->gfn || p->count > TREE_PAGES - p->pfn)
		return false;
	*run = (struct gfn_run){ p->gfn, p->count, p->pfn };
	return true;
}

static bool take_item(struct scan *s)
{
	struct part p = { .first = s->run_count };
	const struct form *form;
	bool more = true;
	struct item *it;
	unsigned which;

	if (s->item_count == s->item_room || s->item_count == CODEC_ITEMS_MAX || !take(s, '{'))
		return false;
	it = &s->rest->items[s->item_count++];
	while (more)
		if (!take_key(s, member_names, MEMBER_COUNT, &p.seen, &which) ||
		    !take_member(s, &p, it, (enum member)which) || !take_next(s, '}', &more))
			return false;
	form = find_form(&p);
	if (!form)
		return false;
	it->framed = form->framed;
	if (!op_fits(s, &p, it) || (form->single && !add_single(s, &p)))
		return false;
	it->pool = form->single ? p.frame_pool : p.pool;
	it->run_count = s->run_count - p.first;
	return true;
}

static bool take_items(struct scan *s)
{
	bool more = true;

	if (!take(s, '['))
		return false;
	while (more)
		if (!take_item(s) || !take_next(s, ']', &more))
			return false;
	return true;
}

static bool take_boot_id(struct scan *s)
{
	struct span id;

	if (!take_string(s, &id) || id.len < 1 || id.len >= BOOT_ID_MAX)
		return false;
	memcpy(s->rest->boot_id, id.text, id.len);
	s->rest->boot_id[id.len] = '\0';
	return true;
}

static bool take_body(struct scan *s, struct transitions_body *out)
{
	enum { B_BOOT_ID, B_EPOCH, B_SEQ, B_ATOMIC, B_ITEMS, B_COUNT };
	static const struct span names[B_COUNT] = { NAME("boot_id"), NAME("epoch"), NAME("batch_seq"), NAME("atomic"),
						    NAME("items") };
	unsigned seen = 0, which = 0, must = BIT(B_BOOT_ID) | BIT(B_EPOCH) | BIT(B_ITEMS);
	bool more = true, ok = take(s, '{');

	while (ok && more) {
		if (!take_key(s, names, B_COUNT, &seen, &which))
			return false;
		switch (which) {
		case B_BOOT_ID: ok = take_boot_id(s); break;
		case B_EPOCH: ok = take_number(s, 0, INT64_MAX, &out->epoch); break;
		case B_SEQ: ok = out->has_seq = take_number(s, 0, INT64_MAX, &out->seq); break;
		case B_ATOMIC: ok = take_bool(s, &out->atomic); break;
		default: ok = take_items(s); break;
		}
		ok = ok && take_next(s, '}', &more);
	}
	return ok && (seen & must) == must && s->at == s->end;
}

/* How many items can there be? Each has a brace of its own. */
static size_t count_braces(const char *text, size_t len)
{
	const char *at = text, *end = text + len;
	size_t n = 0;

	while (at < end && (at = memchr(at, '{', (size_t)(end - at)))) {
		n++;
		at++;
	}
	return n;
}

static bool make_room(struct scan *s, size_t len)
{
	size_t braces = count_braces(s->at, len);

	s->item_room = braces < CODEC_ITEMS_MAX ? braces : CODEC_ITEMS_MAX;
	s->run_room = len / 8 + 8;
	s->body = body_new();
	if (!s->body)
		return false;
	s->rest = body_alloc(s->body, 1, sizeof *s->rest + s->item_room * sizeof *s->rest->items);
	if (!s->rest || !body_alloc(s->body, 1, sizeof *s->runs))
		return false;
	s->runs = body_grow(s->body, s->run_room, sizeof *s->runs);
	return s->runs;
}

bool transitions_fast(const char *text, size_t len, struct transitions_body *out, struct body **owner)
{
	struct scan s = { .at = text, .end = text + len };
	struct transitions_body body = { .items = NULL };
	const struct gfn_run *runs;

	if (!make_room(&s, len) || !take_body(&s, &body)) {
		codec_release(s.body);
		return false;
	}
	runs = s.runs;
	for (size_t i = 0; i < s.item_count; i++) {
		s.rest->items[i].runs = runs;
		runs += s.rest->items[i].run_count;
	}
	body.boot_id = s.rest->boot_id;
	body.items = s.rest->items;
	body.count = s.item_count;
	*out = body;
	*owner = s.body;
	return true;
}
