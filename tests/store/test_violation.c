#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <stdio.h>
#include <string.h>

#include "tests/lib/store_dir.h"

static struct store_dir d;
static struct pw_err err;

static void add(uint64_t revision, unsigned host, unsigned vm)
{
	char json[32];
	struct violation v = {
		.revision = revision, .time_ms = store_put_time(revision), .actor = "agent", .json = json
	};

	snprintf(json, sizeof json, "{\"n\":%" PRIu64 "}", revision);
	if (host)
		v.host = test_uuid(host);
	if (vm)
		v.vm = test_uuid(vm);
	cr_assert_eq(store_violation_add(d.s, &v, &err), PW_OK, "%s", err.msg);
}

/* Revisions 1..8: host 1 has the odd ones, host 2 the even ones; VM 5 has 1, 2, 5, 6; 9 has neither. */
static void setup(void)
{
	store_dir_make(&d);
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	for (unsigned r = 1; r <= 8; r++)
		add(r, r % 2 ? 1 : 2, (r - 1) / 2 % 2 ? 6 : 5);
	add(9, 0, 0);
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
}

static void teardown(void)
{
	store_dir_remove(&d);
}

TestSuite(violation, .init = setup, .fini = teardown, .timeout = 20);

struct seen {
	uint64_t revision[32];
	unsigned n;
};

static void note(void *ctx, const struct violation *v)
{
	struct seen *seen = ctx;
	char json[32];

	snprintf(json, sizeof json, "{\"n\":%" PRIu64 "}", v->revision);
	cr_assert_str_eq(v->json, json);
	cr_assert_str_eq(v->actor, "agent");
	cr_assert_eq(v->time_ms, store_put_time(v->revision));
	cr_assert_eq(pw_uuid_is_nil(&v->host), v->revision == 9);
	cr_assert_eq(pw_uuid_is_nil(&v->vm), v->revision == 9);
	seen->revision[seen->n++] = v->revision;
}

static struct filter_case {
	unsigned host, vm;
	uint64_t after, before;
	unsigned limit;
	unsigned n;
	uint64_t expected[9];
} cases[] = {
	{ 0, 0, 0, 0, 100, 9, { 9, 8, 7, 6, 5, 4, 3, 2, 1 } },
	{ 0, 0, 3, 0, 100, 6, { 9, 8, 7, 6, 5, 4 } },
	{ 0, 0, 0, 4, 100, 3, { 3, 2, 1 } },
	{ 0, 0, 2, 6, 100, 3, { 5, 4, 3 } },
	{ 0, 0, 0, 0, 2, 2, { 9, 8 } },
	{ 0, 0, 0, 8, 2, 2, { 7, 6 } },
	{ 1, 0, 0, 0, 100, 4, { 7, 5, 3, 1 } },
	{ 2, 0, 2, 0, 2, 2, { 8, 6 } },
	{ 0, 5, 0, 0, 100, 4, { 6, 5, 2, 1 } },
	{ 1, 5, 0, 0, 100, 2, { 5, 1 } },
	{ 7, 0, 0, 0, 100, 0, { 0 } },
	{ 1, 7, 0, 0, 100, 0, { 0 } },
	{ 0, 0, UINT64_MAX, 0, 100, 0, { 0 } },
	{ 0, 0, 0, UINT64_MAX, 1, 1, { 9 } },
};

ParameterizedTestParameters(violation, filters_and_pages)
{
	return cr_make_param_array(struct filter_case, cases, PW_ARRAY_LEN(cases));
}
ParameterizedTest(struct filter_case *c, violation, filters_and_pages)
{
	struct violation_filter f = { .after = c->after, .before = c->before, .limit = c->limit };
	struct seen seen = { 0 };

	if (c->host)
		f.host = test_uuid(c->host);
	if (c->vm)
		f.vm = test_uuid(c->vm);
	cr_assert_eq(store_violations(d.s, &f, note, &seen, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(seen.n, c->n);
	cr_assert_eq(memcmp(seen.revision, c->expected, c->n * sizeof c->expected[0]), 0);
}

Test(violation, page_never_splits_a_revision)
{
	struct violation_filter f = { .limit = 1 };
	struct seen seen = { 0 };

	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	for (unsigned i = 0; i < 3; i++)
		add(10, 1, 5);
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
	cr_assert_eq(store_violations(d.s, &f, note, &seen, &err), PW_OK);
	cr_assert_eq(seen.n, 3);
}

struct counted {
	uint64_t violations, refusals;
};

static void add_up(void *ctx, int64_t time_ms, uint64_t violations, uint64_t refusals)
{
	struct counted *c = ctx;

	(void)time_ms;
	c->violations += violations;
	c->refusals += refusals;
}

static struct counted counted_since(int64_t since_ms)
{
	struct counted c = { 0 };

	cr_assert_eq(store_violation_count(d.s, since_ms, add_up, &c, &err), PW_OK, "%s", err.msg);
	return c;
}

Test(violation, count_is_from_a_time_on)
{
	cr_assert_eq(counted_since(store_put_time(7)).violations, 3);
	cr_assert_eq(counted_since(0).violations, 9);
	cr_assert_eq(counted_since(INT64_MAX).violations, 0);
}

Test(violation, goes_with_its_group)
{
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	add(10, 1, 5);
	cr_assert_eq(counted_since(0).violations, 9, "uncommitted");
	store_rollback(d.s);
	cr_assert_eq(counted_since(0).violations, 9);
}

static void note_repeats(void *ctx, const struct violation *v)
{
	struct violation *out = ctx;

	if (v->revision == out->revision)
		*out = (struct violation){ .revision = v->revision, .count = v->count, .last_ms = v->last_ms };
}

static void repeat(uint64_t revision, uint64_t count, int64_t last_ms)
{
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_violation_repeats(d.s, revision, count, last_ms, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(store_commit(d.s, &err), PW_OK, "%s", err.msg);
}

Test(violation, repeats_are_counted_and_never_fewer)
{
	struct violation_filter f = { .limit = 100 };
	struct violation v = { .revision = 5 };

	cr_assert_eq(store_violations(d.s, &f, note_repeats, &v, &err), PW_OK);
	cr_assert_eq(v.count, 1);
	cr_assert_eq(v.last_ms, store_put_time(5));
	repeat(5, 70, store_put_time(5) + 900);
	repeat(5, 60, store_put_time(5) + 800);
	repeat(500, 2, 9); /* it is gone */
	store_dir_reopen(&d);
	cr_assert_eq(store_violations(d.s, &f, note_repeats, &v, &err), PW_OK);
	cr_assert_eq(v.count, 70);
	cr_assert_eq(v.last_ms, store_put_time(5) + 900);
	cr_assert_eq(counted_since(0).refusals, 78);
	cr_assert_eq(counted_since(0).violations, 9);
}

Test(violation, row_with_nonsense_is_refused)
{
	struct violation_filter f = { .limit = 100 };

	store_tamper(d.path, "journal.db",
		     "UPDATE violation SET host = 'xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx' WHERE revision = 9");
	cr_assert_eq(store_violations(d.s, &f, note, &(struct seen){ 0 }, &err), PW_STORAGE);
	cr_assert(strstr(err.msg, "journal.db: table violation: host"), "%s", err.msg);
}

Test(violation, number_that_no_column_holds_is_invalid)
{
	struct violation v = { .revision = UINT64_MAX, .actor = "", .json = "{}" };

	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_violation_add(d.s, &v, &err), PW_INVALID);
	store_rollback(d.s);
}
