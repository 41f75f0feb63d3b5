#include "server/record.h"

#include <stdlib.h>
#include <string.h>

enum { KIND_EVENT = 1, KIND_ITEM = 2, KIND_ARCH_ITEM = 3, KEEP_BYTES = 1 << 20 };

void records_release(struct records *r)
{
	free(r->data);
	*r = (struct records){ 0 };
}

void records_clear(struct records *r)
{
	if (r->size > KEEP_BYTES)
		records_release(r);
	r->used = 0;
	r->failed = false;
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

void record_item(struct records *r, const struct record_item *it)
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

void record_event(struct records *r, struct jsonw *w)
{
	const unsigned char kind = KIND_EVENT;
	size_t len;
	char *text = jsonw_finish(w, &len);

	if (!text) {
		r->failed = true;
		return;
	}
	put(r, &kind, 1);
	put_varint(r, len);
	put(r, text, len);
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

enum pw_status record_next(struct record_reader *rd, struct record *out, struct pw_err *err)
{
	enum pw_status st = PW_STORAGE;
	unsigned char kind;

	if (rd->at == rd->row->size)
		return PW_NOT_FOUND;
	*out = (struct record){ .revision = rd->revision, .time_ms = rd->row->time_ms };
	if (take(rd, &kind, 1) && (kind == KIND_ITEM || kind == KIND_ARCH_ITEM)) {
		out->is_item = true;
		st = take_item(rd, kind, &out->item);
	} else if (kind == KIND_EVENT) {
		st = take_event(rd, out);
	}
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
		return event_host(rec->json, rec->json_len, out);
	*out = rec->item.host;
	return true;
}

/* The feed. */

static void write_item(struct jsonw *w, const struct record_item *it)
{
	char type[ARCH_OP_NAME_MAX + 4] = "gfn.";

	memccpy(type + 4, item_op_name(&it->item), 0, sizeof type - 5);
	jsonw_m_str(w, "type", type);
	jsonw_m_uuid(w, "host", &it->host);
	jsonw_m_uuid(w, "vm", &it->item.vm);
	jsonw_m_str(w, "actor", it->actor);
	jsonw_m_str(w, "op", item_op_name(&it->item));
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

void record_begin(struct jsonw *w, const struct record *rec)
{
	jsonw_open(w, '{');
	jsonw_m_u64(w, "revision", rec->revision);
	jsonw_m_time(w, "time", rec->time_ms);
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
