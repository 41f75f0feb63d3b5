#include <criterion/criterion.h>
#include <string.h>

#include "agents/batch.h"

static struct pw_uuid vm_id(void)
{
	struct pw_uuid id;

	cr_assert(pw_uuid_parse("11111111-2222-4333-8444-555555555555", 36, &id));
	return id;
}

static void assert_json(json_t *got, const char *want)
{
	json_t *expected = json_loads(want, 0, NULL);
	char *text = json_dumps(got, JSON_COMPACT);

	cr_assert_not_null(expected);
	cr_assert(json_equal(got, expected), "%s", text);
	free(text);
	json_decref(expected);
	json_decref(got);
}

Test(batch, consecutive_frames_become_one_run)
{
	uint64_t pfns[] = { 7, 8, 9, 20, 21, 5 }, taken;
	struct gfn_run out[8];

	cr_assert_eq(runs_of_frames(100, 6, pfns, out, 8, &taken), 3);
	cr_assert_eq(taken, 6);
	cr_assert(out[0].gfn == 100 && out[0].count == 3 && out[0].pfn == 7);
	cr_assert(out[1].gfn == 103 && out[1].count == 2 && out[1].pfn == 20);
	cr_assert(out[2].gfn == 105 && out[2].count == 1 && out[2].pfn == 5);
}

Test(batch, a_full_list_of_runs_ends_where_the_next_run_would_begin)
{
	uint64_t pfns[] = { 7, 8, 30, 31, 50 }, taken;
	struct gfn_run out[2];

	cr_assert_eq(runs_of_frames(0, 5, pfns, out, 2, &taken), 2);
	cr_assert_eq(taken, 4);
	cr_assert_eq(runs_of_frames(0, 5, pfns, out, 0, &taken), 0);
	cr_assert_eq(taken, 0);
}

Test(batch, an_item_with_one_framed_run_names_its_frame)
{
	struct gfn_run run = { 16, 4, 99 };
	struct item it = {
		.vm = vm_id(), .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = &run, .run_count = 1
	};

	assert_json(batch_item(&it), "{\"vm\":\"11111111-2222-4333-8444-555555555555\",\"op\":\"page_in\",\"gfn\":16,"
				     "\"count\":4,\"frame\":{\"pool\":\"local\",\"pfn\":99}}");
}

Test(batch, an_item_with_several_runs_carries_them_as_lists)
{
	struct gfn_run runs[] = { { 1, 2, 10 }, { 5, 1, 20 } };
	struct item framed = {
		.vm = vm_id(), .op = GFN_UNSHARE, .framed = true, .pool = "local", .runs = runs, .run_count = 2
	};
	struct item bare = { .vm = vm_id(), .op = GFN_PAGE_OUT, .runs = runs, .run_count = 2 };

	assert_json(batch_item(&framed), "{\"vm\":\"11111111-2222-4333-8444-555555555555\",\"op\":\"unshare\","
					 "\"runs\":[[1,2,10],[5,1,20]],\"pool\":\"local\"}");
	assert_json(batch_item(&bare), "{\"vm\":\"11111111-2222-4333-8444-555555555555\",\"op\":\"page_out\","
				       "\"runs\":[[1,2],[5,1]]}");
}

Test(batch, the_body_is_numbered_and_says_who_speaks)
{
	struct gfn_run run = { 0, 1, 0 };
	struct item it = { .vm = vm_id(), .op = GFN_SHARE, .runs = &run, .run_count = 1 };

	assert_json(batch_body("boot", 3, 77, &it, 1),
		    "{\"boot_id\":\"boot\",\"epoch\":3,\"batch_seq\":77,\"items\":[{\"vm\":"
		    "\"11111111-2222-4333-8444-555555555555\",\"op\":\"share\",\"gfn\":0,\"count\":1}]}");
}

Test(batch, verdicts_keep_the_ledgers_problem)
{
	json_t *answer = json_loads("{\"results\":[{\"ok\":true},{\"ok\":false,\"problem\":{\"type\":"
				    "\"/problems/frame-conflict\",\"conflicts\":[{\"pfn\":4}]}}]}",
				    0, NULL);
	struct verdict v[2];

	cr_assert(batch_read(answer, v, 2));
	json_decref(answer);
	cr_assert(v[0].ok && !v[0].problem);
	cr_assert(!v[1].ok);
	cr_assert_eq(json_array_size(json_object_get(v[1].problem, "conflicts")), 1);
	verdicts_clear(v, 2);
	cr_assert_null(v[1].problem);
}

static const char *const wrong[] = { "{}",
				     "{\"results\":{}}",
				     "{\"results\":[{\"ok\":true}]}",
				     "{\"results\":[{\"ok\":true},{\"ok\":1}]}",
				     "{\"results\":[{\"ok\":true},7]}",
				     "[]" };

Test(batch, an_answer_of_another_shape_is_refused)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		json_t *answer = json_loads(wrong[i], 0, NULL);
		struct verdict v[2] = { 0 };

		cr_assert(!batch_read(answer, v, 2), "%s", wrong[i]);
		cr_assert_null(v[0].problem);
		json_decref(answer);
	}
}
