#include "server/record.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* KIND_LARGE: the lengths of a brief and of a whole record of another kind, four bytes each, the low one first; then
 * both. KIND_BRIEF is the same without the whole; never in a journal. */
enum { KIND_EVENT = 1, KIND_ITEM = 2, KIND_ARCH_ITEM = 3, KIND_LARGE = 4, KIND_BRIEF = 5, KEEP_BYTES = 1 << 20 };
enum { LARGE_HEAD = 9, RUN_BYTES = 24 /* of a run in the feed, about */, MEMBER_BYTES = 512 /* kept in a brief */ };

void records_release(struct records *r)
{
	free(r->data);
	free(r->whole);
	*r = (struct records){ .brief_from = r->brief_from };
}

void records_clear(struct records *r)
{
	if (r->size > KEEP_BYTES)
		records_release(r);
	r->used = 0;
	r->whole_count = 0;
	r->failed = false;
}

void records_cut(struct records *r, size_t used)
{
	r->used = used;
	while (r->whole_count && r->whole[r->whole_count - 1].at >= used)
		r->whole_count--;
}

static unsigned char *room(struct records *r, size_t n)
{
	size_t size = r->size ? r->size : 4096;
	char *data;

	if (r->failed)
		return NULL;
	if (r->size - r->used >= n)
		return (unsigned char *)r->data + r->used;
	while (size - r->used < n)
		size *= 2;
	data = realloc(r->data, size);
	if (!data) {
		r->failed = true;
		return NULL;
	}
	r->data = data;
	r->size = size;
	return (unsigned char *)data + r->used;
}

static void put(struct records *r, const void *p, size_t n)
{
	unsigned char *at = room(r, n);

	if (!at)
		return;
	memcpy(at, p, n);
	r->used += n;
}

/* LEB128: seven bits a byte, low ones first. */
static size_t varint_write(unsigned char *at, uint64_t v)
{
	size_t n = 0;

	for (; v >= 0x80; v >>= 7)
		at[n++] = (unsigned char)(v | 0x80);
	at[n++] = (unsigned char)v;
	return n;
}

static void put_varint(struct records *r, uint64_t v)
{
	unsigned char *at = room(r, 10);

	if (at)
		r->used += varint_write(at, v);
}

static void put_text(struct records *r, const char *s)
{
	put_varint(r, strlen(s));
	put(r, s, strlen(s));
}

/* Runs are mostly near each other: differences, the sign in the lowest bit. */
static uint64_t zigzag(uint64_t from, uint64_t to)
{
	return to >= from ? (to - from) << 1 : (from - to) << 1 | 1;
}

static uint64_t unzigzag(uint64_t from, uint64_t z)
{
	return z & 1 ? from - (z >> 1) : from + (z >> 1);
}

/* What the item does: an operation of the law by its number, one of an architecture by its name. */
static void put_op(struct records *r, const struct item *it)
{
	unsigned char head[3] = { it->arch_op ? KIND_ARCH_ITEM : KIND_ITEM, it->framed };

	if (!it->arch_op) {
		head[1] = (unsigned char)it->op;
		head[2] = it->framed;
	}
	put(r, head, it->arch_op ? 2 : 3);
	if (it->arch_op)
		put_text(r, it->arch_op->name);
}

static void put_u32(char *at, size_t v)
{
	for (unsigned i = 0; i < 4; i++)
		at[i] = (char)(v >> (8 * i));
}

static bool whole_keep(struct records *r, const struct record_whole *whole)
{
	if (r->whole_count == r->whole_capacity) {
		size_t capacity = r->whole_capacity ? 2 * r->whole_capacity : 16;
		struct record_whole *more = reallocarray(r->whole, capacity, sizeof *more);

		if (!more)
			return false;
		r->whole = more;
		r->whole_capacity = capacity;
	}
	r->whole[r->whole_count++] = *whole;
	return true;
}

/* The head of a large record and its brief, which is released. */
static void large_begin(struct records *r, struct jsonw *brief, struct record_whole *out)
{
	char head[LARGE_HEAD] = { KIND_LARGE };
	size_t len = 0;
	char *text = jsonw_finish(brief, &len);

	out->head = r->used;
	put_u32(head + 1, len);
	put(r, head, sizeof head);
	if (text)
		put(r, text, len);
	else
		r->failed = true;
	free(text);
	out->at = r->used;
}

static void large_end(struct records *r, struct record_whole *whole)
{
	whole->ends = r->used;
	if (r->failed || whole->ends - whole->at > UINT32_MAX || !whole_keep(r, whole)) {
		r->failed = true;
		return;
	}
	put_u32(r->data + whole->head + 5, whole->ends - whole->at);
}

void records_brief(const struct records *r, char *out, size_t *size)
{
	size_t from = 0, n = 0;

	for (size_t i = 0; i < r->whole_count; i++) {
		const struct record_whole *w = &r->whole[i];

		memcpy(out + n, r->data + from, w->at - from);
		out[n + w->head - from] = KIND_BRIEF;
		n += w->at - from;
		from = w->ends;
	}
	if (r->used > from)
		memcpy(out + n, r->data + from, r->used - from);
	*size = n + r->used - from;
}

static void put_item(struct records *r, const struct record_item *it)
{
	uint64_t gfn = 0, pfn = 0;

	put_op(r, &it->item);
	put(r, it->host.b, sizeof it->host.b);
	put(r, it->item.vm.b, sizeof it->item.vm.b);
	put_text(r, it->actor);
	if (it->item.framed)
		put_text(r, it->item.pool);
	put_varint(r, it->item.run_count);
	for (size_t i = 0; i < it->item.run_count; i++) {
		const struct gfn_run *run = &it->item.runs[i];
		unsigned char *at = room(r, 30);
		size_t n;

		if (!at)
			return;
		n = varint_write(at, zigzag(gfn, run->gfn));
		n += varint_write(at + n, run->count);
		if (it->item.framed)
			n += varint_write(at + n, zigzag(pfn, run->pfn));
		r->used += n;
		gfn = run->gfn + run->count;
		pfn = run->pfn + run->count;
	}
}

static void write_brief(struct jsonw *w, const struct record *rec);

/* What the feed tells of a large record goes before it. */
static void brief_begin(struct records *r, const struct record *rec, struct record_whole *whole)
{
	struct jsonw brief;

	jsonw_init(&brief);
	jsonw_open(&brief, '{');
	write_brief(&brief, rec);
	jsonw_close(&brief, '}');
	large_begin(r, &brief, whole);
}

void record_item(struct records *r, const struct record_item *it)
{
	struct record rec = { .is_item = true, .item = *it };
	bool large = r->brief_from && it->item.run_count > r->brief_from / RUN_BYTES;
	struct record_whole whole;

	if (large)
		brief_begin(r, &rec, &whole);
	put_item(r, it);
	if (large)
		large_end(r, &whole);
}

static void put_event(struct records *r, const char *text, size_t len)
{
	const unsigned char kind = KIND_EVENT;

	put(r, &kind, 1);
	put_varint(r, len);
	put(r, text, len);
}

void record_event(struct records *r, struct jsonw *w)
{
	size_t len;
	char *text = jsonw_finish(w, &len);
	struct record rec = { .json = text, .json_len = len };
	bool large = r->brief_from && text && len > r->brief_from;
	struct record_whole whole;

	if (!text) {
		r->failed = true;
		return;
	}
	if (large)
		brief_begin(r, &rec, &whole);
	put_event(r, text, len);
	if (large)
		large_end(r, &whole);
	free(text);
}

/* Reading: a row is input, whatever wrote it. */

void record_read_init(struct record_reader *rd, const struct journal_row *row)
{
	*rd = (struct record_reader){ .row = row, .revision = row->first };
}

void record_read_release(struct record_reader *rd)
{
	free(rd->runs);
	rd->runs = NULL;
}

static bool take(struct record_reader *rd, void *out, size_t n)
{
	if (rd->row->size - rd->at < n)
		return false;
	memcpy(out, (const char *)rd->row->records + rd->at, n);
	rd->at += n;
	return true;
}

static bool take_varint(struct record_reader *rd, uint64_t *out)
{
	uint64_t v = 0;

	for (unsigned shift = 0; shift < 64; shift += 7) {
		unsigned char c;

		if (!take(rd, &c, 1))
			return false;
		v |= (uint64_t)(c & 0x7f) << shift;
		if (!(c & 0x80)) {
			*out = v;
			return true;
		}
	}
	return false;
}

static bool take_text(struct record_reader *rd, char *out, size_t size)
{
	uint64_t len;

	if (!take_varint(rd, &len) || len >= size || !take(rd, out, len))
		return false;
	out[len] = '\0';
	return true;
}

static bool take_run(struct record_reader *rd, bool framed, struct gfn_run *prev, struct gfn_run *out)
{
	uint64_t z;

	*out = (struct gfn_run){ 0 };
	if (!take_varint(rd, &z) || !take_varint(rd, &out->count))
		return false;
	out->gfn = unzigzag(prev->gfn, z);
	if (framed) {
		if (!take_varint(rd, &z))
			return false;
		out->pfn = unzigzag(prev->pfn, z);
	}
	*prev = (struct gfn_run){ out->gfn + out->count, 0, out->pfn + out->count };
	return out->count >= 1 && out->count <= TREE_PAGES && out->gfn <= TREE_PAGES - out->count &&
	       out->pfn <= TREE_PAGES - out->count;
}

static bool take_op(struct record_reader *rd, struct item *it)
{
	unsigned char head[2];

	if (!take(rd, head, 2) || head[0] >= GFN_UNSHARE_IN || head[1] > 1)
		return false;
	it->op = (enum gfn_op)head[0];
	it->framed = head[1];
	return true;
}

static bool take_arch_op(struct record_reader *rd, struct item *it)
{
	unsigned char framed;
	char name[ARCH_OP_NAME_MAX];

	if (!take(rd, &framed, 1) || framed > 1 || !take_text(rd, name, sizeof name))
		return false;
	it->framed = framed;
	it->arch_op = arch_op_find(name, strlen(name), framed, &it->arch_law);
	return it->arch_op;
}

static enum pw_status take_item(struct record_reader *rd, unsigned char kind, struct record_item *it)
{
	struct gfn_run prev = { 0 };
	uint64_t n;

	if (!(kind == KIND_ARCH_ITEM ? take_arch_op(rd, &it->item) : take_op(rd, &it->item)) ||
	    !take(rd, it->host.b, sizeof it->host.b) || !take(rd, it->item.vm.b, sizeof it->item.vm.b) ||
	    !take_text(rd, rd->actor, sizeof rd->actor))
		return PW_STORAGE;
	it->actor = rd->actor;
	it->item.pool = rd->pool;
	if (it->item.framed && !take_text(rd, rd->pool, sizeof rd->pool))
		return PW_STORAGE;
	if (!take_varint(rd, &n) || n < 1 || n > (rd->row->size - rd->at) / 2)
		return PW_STORAGE;
	if (n > rd->run_capacity) {
		struct gfn_run *runs = realloc(rd->runs, n * sizeof *runs);

		if (!runs)
			return PW_NO_MEMORY;
		rd->runs = runs;
		rd->run_capacity = n;
	}
	for (size_t i = 0; i < n; i++)
		if (!take_run(rd, it->item.framed, &prev, &rd->runs[i]))
			return PW_STORAGE;
	it->item.runs = rd->runs;
	it->item.run_count = n;
	return PW_OK;
}

static enum pw_status take_event(struct record_reader *rd, struct record *out)
{
	uint64_t len;

	if (!take_varint(rd, &len) || rd->row->size - rd->at < len || len < 2)
		return PW_STORAGE;
	out->json = (const char *)rd->row->records + rd->at;
	out->json_len = len;
	rd->at += len;
	return PW_OK;
}

static enum pw_status take_whole(struct record_reader *rd, unsigned char kind, struct record *out)
{
	if (kind == KIND_EVENT)
		return take_event(rd, out);
	out->is_item = kind == KIND_ITEM || kind == KIND_ARCH_ITEM;
	return out->is_item ? take_item(rd, kind, &out->item) : PW_STORAGE;
}

static bool take_u32(struct record_reader *rd, size_t *out)
{
	unsigned char b[4];

	if (!take(rd, b, sizeof b))
		return false;
	*out = (size_t)b[0] | (size_t)b[1] << 8 | (size_t)b[2] << 16 | (size_t)b[3] << 24;
	return true;
}

static enum pw_status take_large(struct record_reader *rd, unsigned char kind, struct record *out)
{
	size_t whole, ends;
	unsigned char inner;
	enum pw_status st;

	if (!take_u32(rd, &out->brief_len) || !take_u32(rd, &whole) || out->brief_len < 2 ||
	    rd->row->size - rd->at < out->brief_len)
		return PW_STORAGE;
	out->brief = (const char *)rd->row->records + rd->at;
	rd->at += out->brief_len;
	if (kind == KIND_BRIEF)
		return rd->for_feed ? PW_OK : PW_STORAGE;
	if (rd->row->size - rd->at < whole)
		return PW_STORAGE;
	ends = rd->at + whole;
	if (rd->for_feed) {
		rd->at = ends;
		return PW_OK;
	}
	if (!take(rd, &inner, 1))
		return PW_STORAGE;
	st = take_whole(rd, inner, out);
	return st == PW_OK && rd->at != ends ? PW_STORAGE : st;
}

enum pw_status record_next(struct record_reader *rd, struct record *out, struct pw_err *err)
{
	enum pw_status st = PW_STORAGE;
	unsigned char kind;

	if (rd->at == rd->row->size)
		return PW_NOT_FOUND;
	*out = (struct record){ .revision = rd->revision, .time_ms = rd->row->time_ms };
	if (take(rd, &kind, 1))
		st = kind == KIND_LARGE || kind == KIND_BRIEF ? take_large(rd, kind, out) : take_whole(rd, kind, out);
	if (st == PW_NO_MEMORY)
		return pw_fail(err, st, "out of memory while reading revision %" PRIu64, rd->revision);
	if (st != PW_OK)
		return pw_fail(err, st, "the record of revision %" PRIu64 " is damaged", rd->revision);
	rd->revision++;
	return PW_OK;
}

bool event_host(const char *json, size_t len, struct pw_uuid *out)
{
	static const char member[] = "\"host\":\"";
	const char *at = memmem(json, len, member, sizeof member - 1);

	if (!at || len - (size_t)(at - json) < sizeof member - 1 + PW_UUID_TEXT)
		return false;
	return pw_uuid_parse(at + sizeof member - 1, PW_UUID_TEXT - 1, out);
}

bool record_host(const struct record *rec, struct pw_uuid *out)
{
	if (!rec->is_item)
		return rec->json ? event_host(rec->json, rec->json_len, out)
				 : event_host(rec->brief, rec->brief_len, out);
	*out = rec->item.host;
	return true;
}

/* The feed. */

static void write_item_head(struct jsonw *w, const struct record_item *it)
{
	char type[ARCH_OP_NAME_MAX + 4] = "gfn.";

	memccpy(type + 4, item_op_name(&it->item), 0, sizeof type - 5);
	jsonw_m_str(w, "type", type);
	jsonw_m_uuid(w, "host", &it->host);
	jsonw_m_uuid(w, "vm", &it->item.vm);
	jsonw_m_str(w, "actor", it->actor);
	jsonw_m_str(w, "op", item_op_name(&it->item));
}

static void write_item(struct jsonw *w, const struct record_item *it)
{
	write_item_head(w, it);
	if (it->item.run_count == 1) {
		jsonw_m_u64(w, "gfn", it->item.runs[0].gfn);
		jsonw_m_u64(w, "count", it->item.runs[0].count);
		if (it->item.framed) {
			jsonw_key(w, "frame");
			jsonw_open(w, '{');
			jsonw_m_str(w, "pool", it->item.pool);
			jsonw_m_u64(w, "pfn", it->item.runs[0].pfn);
			jsonw_close(w, '}');
		}
		return;
	}
	jsonw_key(w, "runs");
	jsonw_open(w, '[');
	for (size_t i = 0; i < it->item.run_count; i++) {
		jsonw_open(w, '[');
		jsonw_u64(w, it->item.runs[i].gfn);
		jsonw_u64(w, it->item.runs[i].count);
		if (it->item.framed)
			jsonw_u64(w, it->item.runs[i].pfn);
		jsonw_close(w, ']');
	}
	jsonw_close(w, ']');
	if (it->item.framed)
		jsonw_m_str(w, "pool", it->item.pool);
}

/* How much of an event's text is for the feed: a token's private part, last in its event, is not. */
static size_t public_length(const struct record *rec)
{
	static const char token[] = "{\"type\":\"token.created\"", private[] = ",\"private\":";
	const char *at;

	if (rec->json_len < sizeof token || memcmp(rec->json, token, sizeof token - 1) != 0)
		return rec->json_len - 1;
	at = memmem(rec->json, rec->json_len, private, sizeof private - 1);
	return at ? (size_t)(at - rec->json) : rec->json_len - 1;
}

/* What there is of many runs: how many, and within which pages. */
static void write_bounds(struct jsonw *w, const struct item *it)
{
	uint64_t first = UINT64_MAX, end = 0;

	for (size_t i = 0; i < it->run_count; i++) {
		const struct gfn_run *run = &it->runs[i];

		first = run->gfn < first ? run->gfn : first;
		end = run->gfn + run->count > end ? run->gfn + run->count : end;
	}
	jsonw_m_u64(w, "runs_total", it->run_count);
	jsonw_key(w, "bounds");
	jsonw_open(w, '[');
	jsonw_u64(w, first);
	jsonw_u64(w, end - first);
	jsonw_close(w, ']');
	if (it->framed)
		jsonw_m_str(w, "pool", it->pool);
}

/* Behind the JSON string that begins here; strings are ours, and well formed. */
static const char *skip_string(const char *at, const char *end)
{
	for (at++; at < end && *at != '"'; at++)
		at += *at == '\\';
	return at < end ? at + 1 : end;
}

static const char *skip_value(const char *at, const char *end)
{
	unsigned depth = 0;

	while (at < end) {
		if (*at == '"') {
			at = skip_string(at, end);
			continue;
		}
		if (depth == 0 && (*at == ',' || *at == '}'))
			break;
		depth += *at == '{' || *at == '[';
		depth -= *at == '}' || *at == ']';
		at++;
	}
	return at;
}

/* An event's short members; the names of the others. */
static void write_short_members(struct jsonw *w, const char *json, size_t len)
{
	const char *at = json + 1, *end = json + len - 1, *value, *ends;
	struct jsonw omitted;

	jsonw_init(&omitted);
	jsonw_open(&omitted, '[');
	for (; at < end; at = ends + 1) {
		value = skip_string(at, end);
		ends = skip_value(value, end);
		if (ends - at <= MEMBER_BYTES)
			jsonw_raw(w, at, (size_t)(ends - at));
		else
			jsonw_raw(&omitted, at, (size_t)(value - at));
	}
	jsonw_close(&omitted, ']');
	if (omitted.failed)
		w->failed = true;
	else
		jsonw_m_raw(w, "omitted", omitted.data, omitted.used);
	jsonw_release(&omitted);
}

/* A brief's members. */
static void write_brief(struct jsonw *w, const struct record *rec)
{
	if (rec->is_item) {
		write_item_head(w, &rec->item);
		write_bounds(w, &rec->item.item);
	} else {
		write_short_members(w, rec->json, rec->json_len);
	}
}

static void write_moment(struct jsonw *w, const struct record *rec)
{
	jsonw_open(w, '{');
	jsonw_m_u64(w, "revision", rec->revision);
	jsonw_m_time(w, "time", rec->time_ms);
}

static bool is_large(const struct record *rec, size_t most)
{
	return most && (rec->is_item ? rec->item.item.run_count > most / RUN_BYTES : rec->json_len > most);
}

void record_write_brief(struct jsonw *w, const struct record *rec, size_t most)
{
	char link[64];

	if (!rec->brief && !is_large(rec, most)) {
		record_write(w, rec);
		return;
	}
	write_moment(w, rec);
	if (rec->brief)
		jsonw_raw(w, rec->brief + 1, rec->brief_len - 2);
	else
		write_brief(w, rec);
	snprintf(link, sizeof link, "/v1/events?after=%" PRIu64 "&limit=1&full=true", rec->revision - 1);
	jsonw_m_str(w, "link", link);
	jsonw_close(w, '}');
}

void record_begin(struct jsonw *w, const struct record *rec)
{
	write_moment(w, rec);
	if (rec->is_item) {
		write_item(w, &rec->item);
	} else {
		jsonw_raw(w, rec->json + 1, public_length(rec) - 1);
	}
}

void record_write(struct jsonw *w, const struct record *rec)
{
	record_begin(w, rec);
	jsonw_close(w, '}');
}
