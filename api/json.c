#include "api/json.h"

#include <pthread.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/text.h"

#define ALLOCATION_COST 16 /* bytes of an allocation beyond what was asked for */

/* Of jansson's allocator on this thread. Not const, since jansson hands its allocator no context. */
static _Thread_local bool allocation_failed;
static _Thread_local size_t allocated, allocated_max = SIZE_MAX;
static _Atomic size_t decoded_max = SIZE_MAX;

void codec_limit_decoded(size_t bytes)
{
	atomic_store(&decoded_max, bytes);
}

static void *noting_malloc(size_t size)
{
	void *p = NULL;

	allocated += size + ALLOCATION_COST;
	if (allocated <= allocated_max)
		p = malloc(size);
	if (!p)
		allocation_failed = true;
	return p;
}

static void set_allocator(void)
{
	json_set_alloc_funcs(noting_malloc, free);
}

json_t *json_load_text(const char *text, size_t len, json_error_t *e, bool *no_memory)
{
	static pthread_once_t once = PTHREAD_ONCE_INIT;
	json_t *v;

	*no_memory = pthread_once(&once, set_allocator) != 0;
	if (*no_memory)
		return NULL;
	allocation_failed = false;
	allocated = 0;
	v = json_loadb(text, len, JSON_REJECT_DUPLICATES | JSON_DECODE_ANY, e);
	if (!allocation_failed)
		return v;
	json_decref(v);
	*no_memory = true;
	return NULL;
}

struct block {
	struct block *next;
	max_align_t data[];
};
struct body {
	json_t *root;
	struct block *blocks;
};

struct body *body_new(void)
{
	return calloc(1, sizeof(struct body));
}

void *body_alloc(struct body *b, size_t n, size_t size)
{
	struct block *block;
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(bytes, sizeof *block, &bytes))
		return NULL;
	block = calloc(1, bytes);
	if (!block)
		return NULL;
	block->next = b->blocks;
	b->blocks = block;
	return block->data;
}

void *body_grow(struct body *b, size_t n, size_t size)
{
	struct block *block;
	size_t bytes;

	if (__builtin_mul_overflow(n, size, &bytes) || __builtin_add_overflow(bytes, sizeof *block, &bytes))
		return NULL;
	block = realloc(b->blocks, bytes);
	if (!block)
		return NULL;
	b->blocks = block;
	return block->data;
}

void codec_release(struct body *b)
{
	if (!b)
		return;
	for (struct block *block = b->blocks, *next; block; block = next) {
		next = block->next;
		free(block);
	}
	json_decref(b->root);
	free(b);
}

void text_trim_utf8(char *text)
{
	size_t n = strlen(text), tail = 0;
	unsigned char lead;

	while (tail < 4 && tail < n && ((unsigned char)text[n - 1 - tail] & 0xc0) == 0x80)
		tail++;
	if (tail == n)
		return;
	lead = (unsigned char)text[n - 1 - tail];
	if (lead >= 0xc0 && tail < (size_t)(lead >= 0xf0 ? 3 : lead >= 0xe0 ? 2 : 1))
		text[n - 1 - tail] = '\0';
}

/* A pointer is built step by step; one that does not fit is cut. */
struct pointer {
	char *text;
	size_t used, size;
};

static void pointer_char(struct pointer *p, char c)
{
	if (p->used + 1 < p->size)
		p->text[p->used++] = c;
	p->text[p->used] = '\0';
}

static void pointer_key(struct pointer *p, const char *key, size_t len)
{
	pointer_char(p, '/');
	for (size_t i = 0; i < len; i++) {
		if (key[i] == '~' || key[i] == '/') {
			pointer_char(p, '~');
			pointer_char(p, key[i] == '~' ? '0' : '1');
		} else {
			pointer_char(p, key[i]);
		}
	}
}

static void pointer_index(struct pointer *p, size_t index)
{
	char digits[24];
	int n = snprintf(digits, sizeof digits, "%zu", index);

	pointer_key(p, digits, (size_t)n);
}

static void write_pointer(struct reader *r, const char *member)
{
	struct pointer p = { r->why->pointer, 0, sizeof r->why->pointer };

	p.text[0] = '\0';
	for (unsigned i = 0; i < r->depth; i++) {
		if (r->path[i].key)
			pointer_key(&p, r->path[i].key, strlen(r->path[i].key));
		else
			pointer_index(&p, r->path[i].index);
	}
	if (member)
		pointer_key(&p, member, strlen(member));
	text_trim_utf8(r->why->pointer);
}

static PW_PRINTF(2, 0) void write_detail(struct codec_fault *why, const char *fmt, va_list ap)
{
	char detail[sizeof why->detail]; /* may quote what is not plain */

	vsnprintf(detail, sizeof detail, fmt, ap);
	text_trim_utf8(detail);
	text_copy(why->detail, sizeof why->detail, detail);
}

bool json_fault(struct reader *r, const char *fmt, ...)
{
	va_list ap;

	write_pointer(r, NULL);
	va_start(ap, fmt);
	write_detail(r->why, fmt, ap);
	va_end(ap);
	return false;
}

bool json_fault_at(struct reader *r, const char *key, const char *fmt, ...)
{
	va_list ap;

	write_pointer(r, key);
	va_start(ap, fmt);
	write_detail(r->why, fmt, ap);
	va_end(ap);
	return false;
}

bool json_fault_memory(struct reader *r)
{
	r->why->no_memory = true;
	return json_fault(r, "no memory to decode the body");
}

bool json_fault_value(struct reader *r, json_t *v, const char *must)
{
	char shown[80];
	size_t n = 0;

	if (!r->is_secret)
		n = json_dumpb(v, shown, sizeof shown - 4, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
	if (n > sizeof shown - 4) {
		n = sizeof shown - 4;
		memcpy(shown + n, "...", 3);
		n += 3;
	}
	shown[n] = '\0';
	return json_fault(r, "%s is not %s", n ? shown : "this value", must);
}

void json_enter(struct reader *r, const char *key)
{
	r->path[r->depth++] = (struct json_step){ key, 0 };
}

void json_enter_at(struct reader *r, size_t index)
{
	r->path[r->depth++] = (struct json_step){ NULL, index };
}

void json_leave(struct reader *r)
{
	r->depth--;
}

/*
 * Walks text[0, end) far enough to know which value it ends in. Used before parsing (does it nest too deeply?) and
 * after a syntax error (where is it?), so it takes any bytes.
 */
struct place {
	unsigned depth;
	bool in_key;  /* the next string of this object is a key */
	bool crowded; /* this object has too many members */
	struct {
		bool object;
		size_t index;
		const char *key; /* its raw text */
		size_t key_len;
	} level[JSON_NESTING_MAX + 1];
};

static size_t string_end(const char *text, size_t at, size_t end)
{
	while (at < end && text[at] != '"')
		at += text[at] == '\\' ? 2 : 1;
	return at < end ? at : end;
}

static void place_open(struct place *p, bool object)
{
	p->level[p->depth].object = object;
	p->level[p->depth].index = 0;
	p->level[p->depth].key = NULL;
	p->in_key = object;
	p->depth++;
}

/* False if it nests deeper than allowed, or an object has more members than any may have: *p is where. */
static bool locate(struct place *p, const char *text, size_t end)
{
	for (size_t i = 0; i < end; i++) {
		switch (text[i]) {
		case '{':
		case '[':
			if (p->depth == JSON_NESTING_MAX)
				return false;
			place_open(p, text[i] == '{');
			break;
		case '}':
		case ']':
			if (p->depth)
				p->depth--;
			p->in_key = false;
			break;
		case ',':
			if (p->depth) {
				p->in_key = p->level[p->depth - 1].object;
				p->crowded = ++p->level[p->depth - 1].index == JSON_MEMBERS_MAX && p->in_key;
				if (p->crowded)
					return false;
			}
			break;
		case ':': p->in_key = false; break;
		case '"': {
			size_t from = i + 1;

			i = string_end(text, from, end);
			if (p->in_key && p->depth) {
				p->level[p->depth - 1].key = text + from;
				p->level[p->depth - 1].key_len = i - from;
			}
			break;
		}
		default: break;
		}
	}
	return true;
}

/* Keys come from raw text that may be no UTF-8 at all; what is not plain ASCII is shown as '?'. */
static void place_write(const struct place *p, char *out, size_t size)
{
	struct pointer to = { out, 0, size };

	out[0] = '\0';
	for (unsigned i = 0; i < p->depth; i++) {
		if (!p->level[i].object)
			pointer_index(&to, p->level[i].index);
		else if (p->level[i].key)
			pointer_key(&to, p->level[i].key, p->level[i].key_len);
	}
	for (char *c = out; *c; c++)
		if (*c < 0x20 || *c == 0x7f)
			*c = '?';
}

/* In a text that is no JSON a value may stand where a key is looked for. */
static void point_at(struct reader *r, const struct place *p)
{
	if (!r->is_secret)
		place_write(p, r->why->pointer, sizeof r->why->pointer);
}

static bool fits_nesting(struct reader *r, const char *text, size_t len)
{
	struct place p = { .depth = 0 };

	if (locate(&p, text, len))
		return true;
	if (p.crowded)
		p.depth--;
	point_at(r, &p);
	if (p.crowded)
		snprintf(r->why->detail, sizeof r->why->detail, "an object with more than %d members",
			 JSON_MEMBERS_MAX);
	else
		snprintf(r->why->detail, sizeof r->why->detail, "the body nests more than %d deep", JSON_NESTING_MAX);
	return false;
}

static void syntax_fault(struct reader *r, const char *text, size_t len, const json_error_t *e)
{
	struct place p = { .depth = 0 };
	size_t end = e->position > 0 ? (size_t)e->position : 0;
	char *detail = r->why->detail;

	if (!locate(&p, text, end < len ? end : len))
		p.depth = 0;
	point_at(r, &p);
	snprintf(detail, sizeof r->why->detail, "line %d, column %d: %s", e->line, e->column,
		 r->is_secret ? "this is not JSON" : e->text);
	text_trim_utf8(detail);
}

static void decoded_fault(struct reader *r)
{
	r->why->problem = PROBLEM_TOO_MUCH_WORK;
	r->why->flag = "decoded-bytes";
	r->why->limit = atomic_load(&decoded_max);
	json_fault(r, "the body takes more than %" PRIu64 " bytes when it is decoded (--decoded-bytes)", r->why->limit);
}

static json_t *read_text(struct reader *r, const char *text, size_t len)
{
	json_error_t e;
	bool no_memory, is_large;

	*r->why = (struct codec_fault){ .no_memory = false };
	if (!fits_nesting(r, text, len))
		return NULL;
	r->body = body_new();
	if (!r->body) {
		json_fault_memory(r);
		return NULL;
	}
	allocated_max = atomic_load(&decoded_max);
	r->body->root = json_load_text(text, len, &e, &no_memory);
	is_large = allocated > allocated_max;
	allocated_max = SIZE_MAX;
	if (r->body->root)
		return r->body->root;
	if (is_large)
		decoded_fault(r);
	else if (no_memory)
		json_fault_memory(r);
	else
		syntax_fault(r, text, len, &e);
	codec_release(r->body);
	return NULL;
}

json_t *json_read_text(struct reader *r, const char *text, size_t len, struct codec_fault *why)
{
	*r = (struct reader){ .why = why };
	return read_text(r, text, len);
}

json_t *json_read_secret(struct reader *r, const char *text, size_t len, struct codec_fault *why)
{
	*r = (struct reader){ .why = why, .is_secret = true };
	return read_text(r, text, len);
}

static const struct json_field *find_field(const struct json_field *fields, size_t n, const char *name)
{
	for (size_t i = 0; i < n; i++)
		if (strcmp(fields[i].name, name) == 0)
			return &fields[i];
	return NULL;
}

static bool read_member(struct reader *r, json_t *v, const struct json_field *f, void *out)
{
	if (!f->read(r, v, (char *)out + f->at))
		return false;
	if (f->flag != JSON_NO_FLAG)
		*(bool *)((char *)out + f->flag) = true;
	return true;
}

bool json_read_object(struct reader *r, json_t *v, const struct json_field *fields, size_t n, void *out)
{
	uint32_t seen = 0;
	const char *name;
	json_t *member;

	if (!json_is_object(v))
		return json_fault_value(r, v, "an object");
	json_object_foreach (v, name, member) {
		const struct json_field *f = find_field(fields, n, name);

		json_enter(r, name);
		if (!f)
			return json_fault(r, "no member \"%s\" is known here", name);
		if (!read_member(r, member, f, out))
			return false;
		json_leave(r);
		seen |= (uint32_t)1 << (f - fields);
	}
	for (size_t i = 0; i < n; i++)
		if (fields[i].need == JSON_REQUIRED && !(seen & (uint32_t)1 << i))
			return json_fault_at(r, fields[i].name, "\"%s\" is missing", fields[i].name);
	return true;
}

bool json_check_array(struct reader *r, json_t *v, size_t lo, size_t hi)
{
	size_t n = json_array_size(v);

	if (!json_is_array(v))
		return json_fault_value(r, v, "an array");
	if (lo == hi && n != lo)
		return json_fault(r, "%zu elements, where %zu are needed", n, lo);
	if (n < lo || n > hi)
		return json_fault(r, "%zu elements, where %zu to %zu are allowed", n, lo, hi);
	return true;
}

bool json_read_range(struct reader *r, json_t *v, uint64_t lo, uint64_t hi, uint64_t *out)
{
	json_int_t n = json_integer_value(v);
	char must[80];

	if (!json_is_integer(v) || n < 0 || (uint64_t)n < lo || (uint64_t)n > hi) {
		snprintf(must, sizeof must, "an integer from %" PRIu64 " to %" PRIu64, lo, hi);
		return json_fault_value(r, v, must);
	}
	*out = (uint64_t)n;
	return true;
}

bool json_check_run(struct reader *r, const char *at, uint64_t first, uint64_t count)
{
	if (count > TREE_PAGES - first)
		return json_fault_at(r, at, "%" PRIu64 " pages from %" PRIu64 " on pass 2^40", count, first);
	return true;
}

bool json_to_page(struct reader *r, json_t *v, void *at)
{
	return json_read_range(r, v, 0, TREE_PAGES - 1, at);
}

bool json_to_count(struct reader *r, json_t *v, void *at)
{
	return json_read_range(r, v, 1, TREE_PAGES - 1, at);
}

bool json_to_number(struct reader *r, json_t *v, void *at)
{
	return json_read_range(r, v, 0, INT64_MAX, at);
}

bool json_to_bool(struct reader *r, json_t *v, void *at)
{
	if (!json_is_boolean(v))
		return json_fault_value(r, v, "true or false");
	*(bool *)at = json_is_true(v);
	return true;
}

bool json_to_uuid(struct reader *r, json_t *v, void *at)
{
	if (!json_is_string(v) || !pw_uuid_parse(json_string_value(v), json_string_length(v), at))
		return json_fault_value(r, v, "a UUID in lower case");
	return true;
}

static bool to_text(struct reader *r, json_t *v, size_t room, const char *what, void *at)
{
	size_t n = json_string_length(v);

	if (!json_is_string(v) || n < 1 || n >= room || !text_is_plain(json_string_value(v)))
		return json_fault_value(r, v, what);
	*(const char **)at = json_string_value(v);
	return true;
}

bool json_to_name(struct reader *r, json_t *v, void *at)
{
	return to_text(r, v, CODEC_NAME_MAX, "a text of 1 to 127 bytes without control or format characters", at);
}

bool json_to_reason(struct reader *r, json_t *v, void *at)
{
	return to_text(r, v, CODEC_REASON_MAX, "a text of 1 to 511 bytes without control or format characters", at);
}

static bool is_boot_id(const char *s)
{
	size_t n = 0;

	for (; s[n]; n++)
		if (n == BOOT_ID_MAX - 1 || s[n] < 0x20 || s[n] > 0x7e)
			return false;
	return n > 0;
}

bool json_to_boot_id(struct reader *r, json_t *v, void *at)
{
	if (!json_is_string(v) || !is_boot_id(json_string_value(v)))
		return json_fault_value(r, v, "1 to 64 printable ASCII characters");
	*(const char **)at = json_string_value(v);
	return true;
}

bool json_to_pool(struct reader *r, json_t *v, void *at)
{
	if (!json_is_string(v) || !codec_is_pool_name(json_string_value(v)))
		return json_fault_value(r, v, "a name of 1 to 63 characters a-z, 0-9 and -");
	*(const char **)at = json_string_value(v);
	return true;
}

bool json_to_value(struct reader *r, json_t *v, void *at)
{
	*(json_t **)at = v;
	return true;
}

bool json_to_text(struct reader *r, json_t *v, size_t max, const char **at)
{
	size_t n = json_dumpb(v, NULL, 0, JSON_COMPACT);
	char *text;

	if (n > max)
		return json_fault(r, "%zu bytes, where at most %zu are allowed", n, max);
	text = n ? body_alloc(r->body, n + 1, 1) : NULL;
	if (!text || json_dumpb(v, text, n, JSON_COMPACT) != n)
		return json_fault_memory(r);
	*at = text;
	return true;
}

bool json_check_texts(struct reader *r, json_t *v)
{
	const char *name, *text = json_string_value(v);
	json_t *inner;
	size_t i;

	if (text && !text_is_plain(text))
		return json_fault_value(r, v, "a text without control or format characters");
	json_array_foreach (v, i, inner) {
		json_enter_at(r, i);
		if (!json_check_texts(r, inner))
			return false;
		json_leave(r);
	}
	json_object_foreach (v, name, inner) {
		json_enter(r, name);
		if (!text_is_plain(name))
			return json_fault(r, "the member's name has control or format characters");
		if (!json_check_texts(r, inner))
			return false;
		json_leave(r);
	}
	return true;
}

bool json_to_document(struct reader *r, json_t *v, void *at)
{
	if (!json_is_object(v))
		return json_fault_value(r, v, "an object");
	return json_check_texts(r, v) && json_to_text(r, v, CODEC_DOCUMENT_MAX, at);
}
