/* The recorded scenarios in tests/traces/pef, and those written beside them, replayed against the model. */
#include <criterion/criterion.h>
#include <string.h>

#include "tests/lib/replayed.h"

#define HEADER                                                                           \
	"{\"type\":\"header\",\"format\":\"pef-trace/1\",\"scenario\":\"s\",\"pool\":2," \
	"\"vms\":[{\"name\":\"v0\",\"gfns\":4,\"radix\":true,\"opted_in\":true}]}\n"
#define START(post)                                                             \
	HEADER "{\"n\":1,\"op\":\"H_SVM_INIT_START\",\"args\":{\"vm\":\"v0\"}," \
	       "\"ret\":\"H_SUCCESS\",\"post\":" post "}\n"

Test(replay_pef, all_recorded_steps_are_right)
{
	replay_traces("tests/traces/pef/*.jsonl", 158);
}

/* Steps beyond the recordings; the answers are from the law. */
Test(replay_pef, written_scenarios_are_right)
{
	replay_traces("tests/traces/pef-written/*.jsonl", 21);
}

Test(replay_pef, a_step_that_differs_is_counted)
{
	static const char *const wrong[] = {
		START("{\"vms\":{\"v0\":\"secure\"}}"),
		START("{\"gfns\":{\"v0:0\":\"SI0\"}}"),
		START("{\"pool_used\":1}"),
		HEADER
		"{\"n\":1,\"op\":\"H_SVM_INIT_DONE\",\"args\":{\"vm\":\"v0\"},\"ret\":\"H_SUCCESS\",\"post\":{}}\n",
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(wrong[i], &t, &err), PW_OK, "%s", err.msg);
		cr_expect(t.steps == 1 && t.wrong == 1, "case %zu", i);
	}
}

Test(replay_pef, what_is_not_understood_is_refused)
{
	static const char *const bad[] = {
		"",
		"[]\n",
		"{\"type\":\"header\",\"format\":\"pef-trace/2\",\"pool\":2,\"vms\":[]}\n",
		"{\"type\":\"header\",\"format\":\"pef-trace/1\",\"pool\":2,\"vms\":[],\"more\":1}\n",
		START("{\"frames\":1}"),
		START("{\"vms\":{\"v9\":\"normal\"}}"),
		START("{\"gfns\":{\"v0\":\"NO\"}}"),
		START("7"),
		HEADER
		"{\"n\":1,\"op\":\"H_SVM_TPM_COMM\",\"args\":{\"vm\":\"v0\"},\"ret\":\"H_SUCCESS\",\"post\":{}}\n",
		HEADER "{\"n\":1,\"op\":\"HOST_TOUCH\",\"args\":{\"vm\":\"v0\"},\"ret\":\"H_SUCCESS\",\"post\":{}}\n",
		HEADER "{\"n\":1,\"op\":\"HOST_TOUCH\",\"args\":{\"vm\":\"v0\",\"gfn\":0,\"order\":16},"
		       "\"ret\":\"H_SUCCESS\",\"post\":{}}\n",
		HEADER
		"{\"n\":1,\"op\":\"HOST_TOUCH\",\"args\":{\"vm\":\"v0\",\"gfn\":-1},\"ret\":\"H_SUCCESS\",\"post\":{}}\n",
		HEADER
		"{\"n\":1,\"op\":\"HOST_TOUCH\",\"args\":{\"vm\":\"v0\",\"gfn\":0},\"ret\":\"H_WHAT\",\"post\":{}}\n",
		HEADER "{\"n\":1,\"op\":\"HOST_TOUCH\",\"args\":{\"vm\":\"v0\",\"gfn\":0},\"ret\":\"H_SUCCESS\"}\n",
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(bad[i], &t, &err), PW_INVALID, "case %zu", i);
		cr_expect(err.msg[0]);
	}
}
