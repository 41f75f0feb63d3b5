/* Which refusals repeat one of the last minute, and which are past their owner's budget; with a clock of its own. */
#include <criterion/criterion.h>
#include <string.h>

#include "server/refusals.h"
#include "tests/lib/store_dir.h"

static const struct refusal_limits limits = { .repeat_seconds = 60, .rate = 10, .burst = 50, .recent = 8 };
static struct refusals *t;
static int64_t now = 1700000000000;
static uint64_t revision;
static struct repeats lost;

static void setup(void)
{
	t = refusals_new(&limits);
	cr_assert_not_null(t);
}

static void teardown(void)
{
	refusals_free(t);
}

TestSuite(refusals, .init = setup, .fini = teardown, .timeout = 30);

static enum noted note(unsigned owner, unsigned what)
{
	struct pw_uuid id = test_uuid(owner);
	uint8_t key[REFUSAL_KEY] = { 0 };
	enum noted how;

	memcpy(key, &what, sizeof what);
	how = refusals_note(t, &id, key, now, revision + 1, &lost);
	revision += how == NOTED_NEW;
	return how;
}

static enum noted note_one(unsigned owner, unsigned what)
{
	enum noted how = note(owner, what);

	refusals_settle(t, SETTLED);
	return how;
}

static uint64_t count_of(uint64_t of)
{
	struct repeats p = { 0 };

	return refusals_find(t, of, &p) ? p.count : 0;
}

Test(refusals, same_one_within_a_minute_of_the_first_is_counted)
{
	struct repeats p;
	int64_t first = now;

	cr_assert_eq(note_one(1, 7), NOTED_NEW);
	for (unsigned i = 0; i < 59; i++) {
		now += 1000;
		cr_assert_eq(note_one(1, 7), NOTED_REPEAT);
	}
	cr_assert(refusals_find(t, 1, &p));
	cr_assert_eq(p.count, 60);
	cr_assert_eq(p.last_ms, first + 59000);
	now = first + 60000;
	cr_assert_eq(note_one(1, 7), NOTED_NEW, "a minute after the first, whenever the last was");
	cr_assert_eq(lost.revision, 1, "what was not saved is");
	cr_assert_eq(lost.count, 60);
	cr_assert_eq(count_of(2), 1);
}

Test(refusals, another_owner_or_another_refusal_is_another_violation)
{
	cr_assert_eq(note_one(1, 7), NOTED_NEW);
	cr_assert_eq(note_one(2, 7), NOTED_NEW);
	cr_assert_eq(note_one(1, 8), NOTED_NEW);
	cr_assert_eq(note_one(1, 7), NOTED_REPEAT);
	cr_assert_eq(count_of(1), 2);
	cr_assert_eq(count_of(2), 1);
	cr_assert_eq(count_of(3), 1);
}

static unsigned new_ones(unsigned owner, unsigned tries)
{
	static unsigned what;
	unsigned n = 0;

	for (unsigned i = 0; i < tries; i++)
		n += note_one(owner, ++what) == NOTED_NEW;
	return n;
}

Test(refusals, budget_is_a_burst_and_then_a_rate_for_each_owner)
{
	cr_assert_eq(new_ones(1, 1000), 50);
	cr_assert_eq(new_ones(2, 30), 30, "of another nothing is taken");
	now += 1000;
	cr_assert_eq(new_ones(1, 1000), 10);
	now += 100;
	cr_assert_eq(new_ones(1, 1000), 1);
	now += 3600000;
	cr_assert_eq(new_ones(1, 1000), 50, "never more than the burst");
	now -= 7200000;
	cr_assert_eq(new_ones(1, 10), 0, "a clock that was set back gives nothing");
	now += 1000;
	cr_assert_eq(new_ones(1, 100), 10);
}

Test(refusals, repeats_cost_nothing_of_the_budget)
{
	cr_assert_eq(note_one(1, 7), NOTED_NEW);
	for (unsigned i = 0; i < 10000; i++)
		cr_assert_eq(note_one(1, 7), NOTED_REPEAT);
	cr_assert_eq(new_ones(1, 100), 49);
}

Test(refusals, one_owners_many_push_out_his_own_alone)
{
	cr_assert_eq(note_one(2, 99), NOTED_NEW);
	cr_assert_eq(note_one(1, 98), NOTED_NEW);
	for (unsigned i = 0; i < limits.recent; i++)
		cr_assert_eq(note_one(1, 1000 + i), NOTED_NEW);
	cr_assert_eq(note_one(1, 98), NOTED_NEW, "the one not seen for longest is forgotten");
	cr_assert_eq(note_one(1, 1000 + limits.recent - 1), NOTED_REPEAT);
	cr_assert_eq(note_one(2, 99), NOTED_REPEAT);
}

Test(refusals, what_a_group_noted_is_taken_back_with_it)
{
	struct refusal_counts c;

	cr_assert_eq(note_one(1, 7), NOTED_NEW);
	cr_assert_eq(note(1, 7), NOTED_REPEAT);
	cr_assert_eq(count_of(1), 1, "nobody sees it before it is settled");
	cr_assert_eq(note(1, 8), NOTED_NEW);
	cr_assert_eq(count_of(2), 0);
	for (unsigned i = 0; i < 100; i++)
		(void)!note(1, 100 + i); /* more than are remembered, and than the budget has */
	refusals_settle(t, TAKEN_BACK);
	revision = 1;
	cr_assert_eq(note_one(1, 8), NOTED_NEW);
	cr_assert_eq(note_one(1, 9), NOTED_NEW);
	cr_assert_eq(new_ones(1, 1000), 47, "and the budget is as it was");
	refusals_last_hour(t, now, &c);
	cr_assert_eq(c.kept, 50);
	cr_assert_eq(c.not_kept, 953);
}

Test(refusals, unsaved_ones_are_told_until_they_were_saved)
{
	struct repeats some[4];

	cr_assert_eq(note_one(1, 1), NOTED_NEW);
	cr_assert_eq(note_one(1, 2), NOTED_NEW);
	cr_assert_eq(refusals_unsaved(t, some, 4), 0, "the first one is in its row");
	cr_assert_eq(note_one(1, 2), NOTED_REPEAT);
	cr_assert_eq(note_one(1, 1), NOTED_REPEAT);
	cr_assert_eq(refusals_unsaved(t, some, 1), 1);
	cr_assert_eq(refusals_unsaved(t, some, 4), 2);
	cr_assert_eq(some[0].revision, 2);
	cr_assert_eq(some[0].count, 2);
	cr_assert_eq(note_one(1, 2), NOTED_REPEAT); /* while they are being saved */
	refusals_saved(t, some, 2);
	cr_assert_eq(refusals_unsaved(t, some, 4), 1);
	cr_assert_eq(some[0].count, 3);
	refusals_saved(t, some, 1);
	cr_assert_eq(refusals_unsaved(t, some, 4), 0);
}

Test(refusals, one_that_came_again_while_it_was_saved_lets_the_others_go_first)
{
	struct repeats p;

	for (unsigned i = 0; i < 4; i++)
		note_one(1, 1 + i % 2);
	cr_assert_eq(refusals_unsaved(t, &p, 1), 1);
	cr_assert_eq(p.revision, 1);
	note_one(1, 1);
	refusals_saved(t, &p, 1);
	cr_assert_eq(refusals_unsaved(t, &p, 1), 1);
	cr_assert_eq(p.revision, 2);
	refusals_saved(t, &p, 1);
	cr_assert_eq(refusals_unsaved(t, &p, 1), 1);
	cr_assert(p.revision == 1 && p.count == 3);
}

Test(refusals, forgets_what_cannot_repeat)
{
	struct repeats some[4];

	cr_assert_eq(note_one(1, 1), NOTED_NEW);
	cr_assert_eq(note_one(1, 2), NOTED_NEW);
	cr_assert_eq(note_one(1, 2), NOTED_REPEAT);
	now += 3600000;
	for (unsigned i = 0; i < 20; i++)
		refusals_forget(t, now);
	cr_assert_eq(count_of(1), 0);
	cr_assert_eq(count_of(2), 2, "its repeat is not saved yet");
	refusals_saved(t, some, refusals_unsaved(t, some, 4));
	for (unsigned i = 0; i < 20; i++)
		refusals_forget(t, now);
	cr_assert_eq(count_of(2), 0);
}

Test(refusals, last_hour_is_counted_to_the_minute)
{
	struct refusal_counts c;

	refusals_load(t, now / 60000 - 30, &(struct refusal_counts){ .kept = 5, .repeats = 2 });
	cr_assert_eq(note_one(1, 1), NOTED_NEW);
	cr_assert_eq(note_one(1, 1), NOTED_REPEAT);
	refusals_last_hour(t, now, &c);
	cr_assert_eq(c.kept, 6);
	cr_assert_eq(c.repeats, 3);
	refusals_last_hour(t, now + 40 * 60000, &c);
	cr_assert_eq(c.kept, 1);
	refusals_last_hour(t, now + 61 * 60000, &c);
	cr_assert_eq(c.kept, 0);
}
