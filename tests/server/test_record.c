#include "server/record.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SEED = 20240607, RUNS_MAX = 40, ROUNDS = 300 };

/* xorshift64: the seed is all that it needs to be repeated. */
static uint64_t draw(uint64_t *state)
{
	*state ^= *state << 13;
	*state ^= *state >> 7;
	*state ^= *state << 17;
	return *state;
}

static struct pw_uuid uuid_of(uint64_t *state)
{
	struct pw_uuid id;

	for (size_t i = 0; i < sizeof id.b; i++)
		id.b[i] = (uint8_t)draw(state);
	return id;
}

static void add_event(struct records *r, const char *type)
{
	struct jsonw w;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_str(&w, "type", type);
	jsonw_m_u64(&w, "largest", UINT64_MAX);
	jsonw_close(&w, '}');
	record_event(r, &w);
}

static struct journal_row row_of(const struct records *r, uint64_t first, uint64_t count)
{
	cr_assert(!r->failed);
	return (struct journal_row){
		.first = first, .last = first + count - 1, .time_ms = 1000, .records = r->data, .size = r->used
	};
}

static void assert_same_item(const struct record_item *a, const struct record_item *b)
{
	cr_assert(pw_uuid_equal(&a->host, &b->host) && pw_uuid_equal(&a->item.vm, &b->item.vm));
	cr_assert_str_eq(a->actor, b->actor);
	cr_assert(a->item.op == b->item.op && a->item.framed == b->item.framed);
	cr_assert(a->item.arch_op == b->item.arch_op && a->item.arch_law == b->item.arch_law);
	if (a->item.framed)
		cr_assert_str_eq(a->item.pool, b->item.pool);
	cr_assert_eq(a->item.run_count, b->item.run_count);
	for (size_t i = 0; i < a->item.run_count; i++) {
		cr_assert_eq(a->item.runs[i].gfn, b->item.runs[i].gfn);
		cr_assert_eq(a->item.runs[i].count, b->item.runs[i].count);
		cr_assert_eq(a->item.framed ? a->item.runs[i].pfn : 0, b->item.runs[i].pfn);
	}
}

static void assert_comes_back(const struct record_item *it)
{
	struct records r = { 0 };
	struct record_reader rd;
	struct journal_row row;
	struct record rec;
	struct pw_err err;

	record_item(&r, it);
	row = row_of(&r, 7, 1);
	record_read_init(&rd, &row);
	cr_assert_eq(record_next(&rd, &rec, &err), PW_OK, "%s", err.msg);
	cr_assert(rec.is_item && rec.revision == 7 && rec.time_ms == 1000);
	assert_same_item(it, &rec.item);
	cr_assert_eq(record_next(&rd, &rec, &err), PW_NOT_FOUND);
	record_read_release(&rd);
	records_release(&r);
}

Test(record, items_at_the_edges_come_back_as_they_were)
{
	const struct gfn_run edges[] = {
		{ 0, 1, TREE_PAGES - 1 },
		{ TREE_PAGES - 1, 1, 0 },
		{ 0, TREE_PAGES, 0 },
		{ TREE_PAGES / 2, TREE_PAGES / 2, 1 },
		{ 0, 1, 0 },
	};
	char actor[128], pool[POOL_NAME_MAX];
	struct record_item it = { .actor = actor, .item = { .pool = pool, .runs = edges } };

	memset(actor, 'a', sizeof actor - 1);
	actor[sizeof actor - 1] = '\0';
	memset(pool, 'z', sizeof pool - 1);
	pool[sizeof pool - 1] = '\0';
	memset(it.host.b, 0xff, sizeof it.host.b);
	for (int op = GFN_SHARE; op < GFN_UNSHARE_IN; op++)
		for (int framed = 0; framed < 2; framed++)
			for (size_t n = 1; n <= PW_ARRAY_LEN(edges); n++) {
				it.item.op = (enum gfn_op)op;
				it.item.framed = framed;
				it.item.run_count = n;
				assert_comes_back(&it);
			}
}

static struct record_item any_item(uint64_t *state, struct gfn_run runs[RUNS_MAX])
{
	struct record_item it = { .host = uuid_of(state),
				  .actor = draw(state) % 2 ? "" : "agent of h",
				  .item = { .pool = "local" } };

	it.item.vm = uuid_of(state);
	it.item.op = (enum gfn_op)(draw(state) % GFN_UNSHARE_IN);
	it.item.framed = draw(state) % 2;
	if (draw(state) % 2) {
		const struct arch_law *law = arch_laws[draw(state) % ARCH_KVM];

		it.item.arch_law = law;
		it.item.arch_op = &law->ops[draw(state) % law->op_count];
		it.item.framed = it.item.arch_op->framed;
		it.item.op = 0;
	}
	it.item.run_count = 1 + draw(state) % RUNS_MAX;
	it.item.runs = runs;
	for (size_t i = 0; i < it.item.run_count; i++) {
		runs[i].count = 1 + draw(state) % ((uint64_t)1 << draw(state) % 40);
		runs[i].gfn = draw(state) % (TREE_PAGES - runs[i].count + 1);
		runs[i].pfn = draw(state) % (TREE_PAGES - runs[i].count + 1);
	}
	return it;
}

Test(record, any_item_comes_back_as_it_was)
{
	uint64_t state = SEED;

	for (int i = 0; i < ROUNDS; i++) {
		struct gfn_run runs[RUNS_MAX];
		struct record_item it = any_item(&state, runs);

		assert_comes_back(&it);
	}
}

Test(record, revisions_count_up_through_a_row_of_both_kinds)
{
	const struct gfn_run run = { 1, 2, 3 };
	const struct record_item it = {
		.actor = "x",
		.item = { .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = &run, .run_count = 1 }
	};
	struct records r = { 0 };
	struct record_reader rd;
	struct journal_row row;
	struct record rec;
	struct pw_err err;

	add_event(&r, "one");
	record_item(&r, &it);
	add_event(&r, "three");
	row = row_of(&r, 41, 3);
	record_read_init(&rd, &row);
	for (uint64_t n = 41; n < 44; n++) {
		cr_assert_eq(record_next(&rd, &rec, &err), PW_OK, "%s", err.msg);
		cr_assert(rec.revision == n && rec.is_item == (n == 42));
	}
	cr_assert_eq(rec.json_len, strlen("{\"type\":\"three\",\"largest\":18446744073709551615}"));
	cr_assert_eq(record_next(&rd, &rec, &err), PW_NOT_FOUND);
	record_read_release(&rd);
	records_release(&r);
}

/* Reads a row that may be damaged. What comes out as a record is one that the ledger can be asked to redo. */
static enum pw_status read_all(const void *data, size_t size)
{
	struct journal_row row = { .first = 1, .last = 9, .records = data, .size = size };
	struct record_reader rd;
	enum pw_status st;
	struct record rec;
	struct pw_err err;

	record_read_init(&rd, &row);
	while ((st = record_next(&rd, &rec, &err)) == PW_OK) {
		const struct item *it = &rec.item.item;

		if (!rec.is_item) {
			cr_assert(rec.json_len >= 2 && rec.json >= (const char *)data);
			cr_assert(rec.json + rec.json_len <= (const char *)data + size);
			continue;
		}
		cr_assert(it->op < GFN_UNSHARE_IN && it->run_count >= 1);
		cr_assert(!it->arch_op == !it->arch_law && (!it->arch_op || it->arch_op->framed == it->framed));
		for (size_t i = 0; i < it->run_count; i++) {
			const struct gfn_run *run = &it->runs[i];

			cr_assert(run->count >= 1 && run->count <= TREE_PAGES);
			cr_assert(run->gfn <= TREE_PAGES - run->count && run->pfn <= TREE_PAGES - run->count);
		}
	}
	record_read_release(&rd);
	return st;
}

static void make_row(struct records *r)
{
	uint64_t state = SEED;
	struct gfn_run runs[RUNS_MAX];

	for (int i = 0; i < 3; i++) {
		struct record_item it = any_item(&state, runs);

		if (!it.item.arch_op)
			it.item.framed = i != 1;
		record_item(r, &it);
		add_event(r, i ? "vm.created" : "token.created");
	}
	cr_assert_eq(read_all(r->data, r->used), PW_NOT_FOUND);
}

/* A copy of its own size, so that a sanitizer sees a read past the end. */
static char *copy_of(const char *data, size_t size)
{
	char *copy = malloc(size ? size : 1);

	cr_assert_not_null(copy);
	return memcpy(copy, data, size);
}

Test(record, every_truncation_is_refused_or_ends_between_two_records)
{
	struct records r = { 0 };
	unsigned whole = 0;

	make_row(&r);
	for (size_t size = 0; size < r.used; size++) {
		char *copy = copy_of(r.data, size);
		enum pw_status st = read_all(copy, size);

		cr_assert(st == PW_STORAGE || st == PW_NOT_FOUND, "cut to %zu: %s", size, pw_status_name(st));
		whole += st == PW_NOT_FOUND;
		free(copy);
	}
	cr_assert_eq(whole, 6, "six places are between records, and %u were taken for one", whole);
	records_release(&r);
}

Test(record, every_flip_of_a_byte_is_refused_or_gives_a_valid_record)
{
	const unsigned char flips[] = { 0x01, 0x02, 0x40, 0x80, 0xff };
	struct records r = { 0 };
	char *copy;

	make_row(&r);
	copy = copy_of(r.data, r.used);
	for (size_t at = 0; at < r.used; at++)
		for (size_t f = 0; f < PW_ARRAY_LEN(flips); f++) {
			enum pw_status st;

			copy[at] = (char)(r.data[at] ^ flips[f]);
			st = read_all(copy, r.used);
			cr_assert(st == PW_STORAGE || st == PW_NOT_FOUND, "byte %zu: %s", at, pw_status_name(st));
			copy[at] = r.data[at];
		}
	free(copy);
	records_release(&r);
}

Test(record, noise_never_reads_past_its_end)
{
	uint64_t state = SEED;

	for (int i = 0; i < 20 * ROUNDS; i++) {
		size_t size = draw(&state) % 200;
		char *noise = malloc(size ? size : 1);

		cr_assert_not_null(noise);
		for (size_t at = 0; at < size; at++)
			noise[at] = (char)draw(&state);
		if (size)
			noise[0] = (char)(1 + draw(&state) % 3);
		(void)read_all(noise, size);
		free(noise);
	}
}

static char *feed_of(const struct record *rec)
{
	struct jsonw w;
	size_t len;

	jsonw_init(&w);
	record_write(&w, rec);
	return jsonw_finish(&w, &len);
}

Test(record, the_feed_never_shows_what_is_private)
{
	static const char event[] = "{\"type\":\"token.created\",\"name\":\"n\",\"private\":\"5ec4e7\"}";
	const struct record rec = { .revision = 3, .json = event, .json_len = sizeof event - 1 };
	char *text = feed_of(&rec);

	cr_assert_not_null(text);
	cr_assert_null(strstr(text, "5ec4e7"), "%s", text);
	cr_assert_not_null(strstr(text, "\"revision\":3,"), "%s", text);
	cr_assert_not_null(strstr(text, "\"type\":\"token.created\",\"name\":\"n\"}"), "%s", text);
	free(text);
}

Test(record, an_operation_that_no_architecture_has_is_damage)
{
	const struct arch_op gone = { .name = "snp.rmpforget" };
	const struct gfn_run run = { 1, 2, 3 };
	const struct record_item it = {
		.actor = "x",
		.item = { .runs = &run, .run_count = 1, .arch_op = &gone, .arch_law = arch_laws[ARCH_SNP] }
	};
	struct records r = { 0 };

	record_item(&r, &it);
	cr_assert_eq(read_all(r.data, r.used), PW_STORAGE);
	records_release(&r);
}

Test(record, the_feed_names_an_architectures_operation)
{
	const struct gfn_run run = { 1, 2, 3 };
	struct record rec = { .revision = 3,
			      .is_item = true,
			      .item = { .actor = "x", .item = { .framed = true, .pool = "local", .runs = &run } } };
	char *text;

	rec.item.item.run_count = 1;
	rec.item.item.arch_op = arch_op_find("snp.rmpupdate", 13, true, &rec.item.item.arch_law);
	text = feed_of(&rec);
	cr_assert_not_null(text);
	cr_assert(strstr(text, "\"type\":\"gfn.snp.rmpupdate\"") && strstr(text, "\"op\":\"snp.rmpupdate\""), "%s",
		  text);
	free(text);
}

Test(record, clearing_keeps_little_memory)
{
	struct records r = { 0 };

	for (int i = 0; i < 60000; i++)
		add_event(&r, "something.that.happened");
	cr_assert(r.size > 1 << 20);
	records_clear(&r);
	cr_assert(!r.used && !r.size && !r.failed);
	add_event(&r, "small");
	records_clear(&r);
	cr_assert(!r.used && r.size);
	records_release(&r);
}

/* --- Large ones --- */

enum { LARGE = 4096 };

static void add_large(struct records *r, bool event)
{
	static struct gfn_run runs[LARGE];
	const struct record_item it = { .actor = "x",
					.item = { .op = GFN_SHARE, .runs = runs, .run_count = PW_ARRAY_LEN(runs) } };
	struct jsonw w;

	if (!event) {
		for (size_t i = 0; i < PW_ARRAY_LEN(runs); i++)
			runs[i] = (struct gfn_run){ .gfn = 100 + 2 * ((i * 7) % LARGE), .count = 1 };
		record_item(r, &it);
		return;
	}
	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_str(&w, "type", "test");
	jsonw_key(&w, "vms");
	jsonw_open(&w, '[');
	for (unsigned i = 0; i < LARGE; i++)
		jsonw_str(&w, "a } \" ] , text");
	jsonw_close(&w, ']');
	jsonw_m_u64(&w, "last", 5);
	jsonw_close(&w, '}');
	record_event(r, &w);
}

/* As the feed shows the records of a row, in brief past LARGE bytes. */
static char *feed_row(const struct journal_row *row, bool for_feed)
{
	struct record_reader rd;
	struct record rec;
	struct pw_err err;
	struct jsonw w;
	enum pw_status st;
	size_t len;

	jsonw_init(&w);
	jsonw_open(&w, '[');
	record_read_init(&rd, row);
	rd.for_feed = for_feed;
	while ((st = record_next(&rd, &rec, &err)) == PW_OK)
		record_write_brief(&w, &rec, LARGE);
	cr_assert_eq(st, PW_NOT_FOUND, "%s", err.msg);
	record_read_release(&rd);
	jsonw_close(&w, ']');
	return jsonw_finish(&w, &len);
}

/* Alike from a new journal, from an old one, and from memory. */
Test(record, a_large_one_is_told_in_brief)
{
	struct records old = { 0 }, fresh = { .brief_from = LARGE };
	char *brief = malloc(1 << 20), *text[4];
	struct journal_row row, cut;

	for (int i = 0; i < 2; i++) {
		struct records *r = i ? &fresh : &old;

		add_event(r, "small");
		add_large(r, false);
		add_large(r, true);
		add_event(r, "small");
	}
	row = row_of(&old, 5, 4);
	text[0] = feed_row(&row, true);
	row = row_of(&fresh, 5, 4);
	text[1] = feed_row(&row, true);
	text[2] = feed_row(&row, false);
	cr_assert_not_null(brief);
	cut = row;
	cut.records = brief;
	records_brief(&fresh, brief, &cut.size);
	cr_assert_lt(cut.size, 2048);
	text[3] = feed_row(&cut, true);
	for (int i = 1; i < 4; i++)
		cr_expect_str_eq(text[i], text[0]);
	cr_expect_not_null(strstr(text[0],
				  "\"runs_total\":4096,\"bounds\":[100,8191],\"link\":\"/v1/events?after=5&limit=1"
				  "&full=true\"}"),
			   "%s", text[0]);
	cr_expect_not_null(strstr(text[0], "\"type\":\"test\",\"last\":5,\"omitted\":[\"vms\"],\"link\":"), "%s",
			   text[0]);
	cr_assert_eq(read_all(fresh.data, fresh.used), PW_NOT_FOUND);
	cr_assert_eq(read_all(brief, cut.size), PW_STORAGE, "nobody takes a brief for the whole");
	for (size_t n = 1; n < fresh.used; n += n < 400 ? 1 : 97)
		(void)read_all(fresh.data, n);
	for (int i = 0; i < 4; i++)
		free(text[i]);
	free(brief);
	records_release(&old);
	records_release(&fresh);
}

Test(record, a_large_one_comes_back_whole)
{
	static struct gfn_run runs[LARGE];
	const struct record_item it = { .actor = "x",
					.item = { .op = GFN_SHARE, .runs = runs, .run_count = PW_ARRAY_LEN(runs) } };
	struct records r = { .brief_from = LARGE };
	struct journal_row row;
	struct record_reader rd;
	struct record rec;
	struct pw_err err;

	for (size_t i = 0; i < PW_ARRAY_LEN(runs); i++)
		runs[i] = (struct gfn_run){ .gfn = i * 3, .count = 2 };
	record_item(&r, &it);
	row = row_of(&r, 7, 1);
	record_read_init(&rd, &row);
	cr_assert_eq(record_next(&rd, &rec, &err), PW_OK, "%s", err.msg);
	cr_assert(rec.is_item);
	assert_same_item(&it, &rec.item);
	record_read_release(&rd);
	records_release(&r);
}

Test(record, what_is_taken_back_leaves_no_brief)
{
	struct records r = { .brief_from = LARGE };
	struct journal_row row;
	char *brief = malloc(1 << 20), *a, *b;
	size_t used;

	cr_assert_not_null(brief);
	add_event(&r, "first");
	used = r.used;
	add_large(&r, false);
	records_cut(&r, used);
	add_event(&r, "second");
	add_large(&r, true);
	row = row_of(&r, 1, 3);
	a = feed_row(&row, true);
	records_brief(&r, brief, &row.size);
	row.records = brief;
	b = feed_row(&row, true);
	cr_expect_str_eq(a, b);
	free(a);
	free(b);
	free(brief);
	records_release(&r);
}
