/*
 * The index of history behind a journal of random records, against a scan of the same: its newest part in memory, the
 * rest in many small segments. By VM and by frame; after a start; with cursors; and when it was thrown away.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "server/history_index.h"
#include "tests/lib/store_dir.h"

enum { VMS = 3, RECORDS = 3000, TAIL = 500, PAGES = 600, WAIT_MS = 60000 };

struct touch { /* one run of one record */
	unsigned vm;
	uint64_t revision, gfn, count, pfn;
	bool framed, all; /* all: the VM as a whole */
};
static struct touch touches[RECORDS * 4];
static size_t touch_count;
static struct store_dir d;
static struct history_index *x;
static struct records records;
static uint64_t revision, state;
static const uint64_t seed = 7;

static uint64_t below(uint64_t n)
{
	uint64_t z = state += 0x9e3779b97f4a7c15;

	z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9;
	z = (z ^ z >> 27) * 0x94d049bb133111eb;
	return (z ^ z >> 31) % n;
}

static void start_index(void)
{
	struct pw_err err = { 0 };

	cr_assert_eq(history_index_start(d.s, TAIL, &x, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(history_index_reached(x, revision, WAIT_MS), revision);
}

static void start(void)
{
	state = seed;
	store_dir_make(&d);
}

static void finish(void)
{
	history_index_stop(x);
	records_release(&records);
	store_dir_remove(&d);
}
TestSuite(history_index, .init = start, .fini = finish, .timeout = 120);

static void put_item(void)
{
	struct gfn_run runs[3];
	bool framed = below(2);
	unsigned vm = (unsigned)below(VMS);
	size_t n = 1 + below(PW_ARRAY_LEN(runs));

	revision++;
	for (size_t i = 0; i < n; i++) {
		runs[i] = (struct gfn_run){ below(PAGES), 1 + below((uint64_t)1 << below(8)), below(PAGES) };
		touches[touch_count++] =
			(struct touch){ vm, revision, runs[i].gfn, runs[i].count, runs[i].pfn, framed, false };
	}
	record_item(&records, &(struct record_item){ test_uuid(99),
						     "an agent",
						     { .vm = test_uuid(vm),
						       .op = framed ? GFN_PAGE_IN : GFN_SHARE,
						       .framed = framed,
						       .pool = "local",
						       .runs = runs,
						       .run_count = n } });
}

static void put_event(void)
{
	unsigned vm = (unsigned)below(VMS);
	bool told = below(2);
	struct pw_uuid id = test_uuid(vm);
	struct jsonw w;

	revision++;
	jsonw_init(&w);
	jsonw_open(&w, '{');
	jsonw_m_str(&w, "type", told ? "vm.lifecycle" : "operation.created");
	jsonw_m_str(&w, "actor", "an agent");
	jsonw_m_uuid(&w, "vm", &id);
	jsonw_close(&w, '}');
	record_event(&records, &w);
	if (told)
		touches[touch_count++] = (struct touch){ .vm = vm, .revision = revision, .all = true };
}

static void put_rows(unsigned n)
{
	struct pw_err err = { 0 };

	for (unsigned i = 0; i < n;) {
		struct journal_row row = { .first = revision + 1, .time_ms = 1700000000000 };

		for (uint64_t many = 1 + below(20); many > 0 && i < n; many--, i++) {
			if (below(10))
				put_item();
			else
				put_event();
		}
		row.last = revision;
		row.records = records.data;
		row.size = records.used;
		cr_assert_eq(store_begin(d.s, &err), PW_OK, "%s", err.msg);
		cr_assert_eq(store_append(d.s, &row, &err), PW_OK, "%s", err.msg);
		cr_assert_eq(store_commit(d.s, &err), PW_OK, "%s", err.msg);
		records_clear(&records);
	}
}

static bool hits(const struct touch *t, bool by_frame, unsigned vm, uint64_t first, uint64_t n)
{
	uint64_t at = by_frame ? t->pfn : t->gfn;

	if (by_frame ? !t->framed : t->vm != vm)
		return false;
	return (t->all && !by_frame) || (at < first + n && first < at + t->count);
}

/* All revisions of a window, in answers of at most `limit`, are those that a scan finds, newest first. */
static void compare_one(bool by_frame, unsigned vm, uint64_t first, uint64_t n, size_t limit)
{
	struct history_window w = { .first = first, .count = n, .before = INT64_MAX };
	struct pw_uuid id = test_uuid(by_frame ? 99 : vm);
	uint64_t left, work = 0, last = UINT64_MAX;
	struct history_entry out[50];
	size_t found, at = touch_count;
	struct pw_err err = { 0 };

	if (by_frame)
		history_of_frames(&id, "local", w.subject);
	else
		history_of_vm(&id, w.subject);
	do {
		cr_assert_eq(history_index_find(x, &w, UINT64_MAX, out, limit, &found, &left, &work, &err), PW_OK, "%s",
			     err.msg);
		for (size_t i = 0; i < found; i++) {
			while (at > 0 &&
			       (touches[at - 1].revision == last || !hits(&touches[at - 1], by_frame, vm, first, n)))
				at--;
			cr_assert(at > 0 && touches[at - 1].revision == out[i].revision,
				  "seed %" PRIu64 ": %s %" PRIu64 "+%" PRIu64 ": revision %" PRIu64, seed,
				  by_frame ? "pfn" : "gfn", first, n, out[i].revision);
			last = out[i].revision;
		}
		w.before = left;
	} while (left);
	while (at > 0 && (touches[at - 1].revision == last || !hits(&touches[at - 1], by_frame, vm, first, n)))
		at--;
	cr_assert_eq(at, 0, "revision %" PRIu64 " was not found", at ? touches[at - 1].revision : 0);
}

static void compare(unsigned rounds)
{
	for (unsigned i = 0; i < rounds; i++)
		compare_one(below(2), (unsigned)below(VMS), below(PAGES), 1 + below(below(2) ? 1 : 100), 1 + below(50));
}

Test(history_index, finds_what_a_scan_finds)
{
	put_rows(RECORDS / 2);
	start_index();
	compare(200);
	put_rows(RECORDS / 2); /* while it follows */
	cr_assert_eq(history_index_reached(x, revision, WAIT_MS), revision);
	compare(200);
	cr_expect_gt(store_ask(d.path, "history.db", "SELECT count(*) FROM segment"), 3);
}

Test(history_index, goes_on_after_a_start)
{
	put_rows(RECORDS / 2);
	start_index();
	history_index_stop(x);
	store_dir_reopen(&d);
	put_rows(RECORDS / 4);
	start_index();
	compare(100);
}

Test(history_index, is_made_anew_when_it_is_wrong)
{
	put_rows(RECORDS / 2);
	start_index();
	history_index_is_wrong(x, "the test says so");
	cr_assert_eq(history_index_reached(x, revision, WAIT_MS), revision);
	compare(100);
}
