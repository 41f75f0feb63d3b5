/* The recorded scenarios in tests/traces/tdx, replayed against the model. */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/replayed.h"

#define HEADER                                                                                          \
	"{\"type\":\"header\",\"format\":\"tdx-trace/1\",\"scenario\":\"s\",\"tdmr_pfns\":[0,1048575]," \
	"\"private_hkids\":[33,63],\"gpaw\":48,\"sept_levels\":4,\"max_pa\":52}\n"
#define RC     "\"rc\":\"0x0000000000000000\""
#define CREATE HEADER "{\"n\":1,\"op\":\"create\",\"td\":0,\"pfn\":256,\"hkid\":35," RC ",\"name\":\"\"}\n"
#define KEYS   CREATE "{\"n\":2,\"op\":\"keyconfig\",\"td\":0," RC "}\n"

Test(replay_tdx, all_recorded_steps_are_right, .timeout = 120)
{
	replay_traces("tests/traces/tdx*/*.jsonl", 7047);
}

Test(replay_tdx, a_step_that_differs_is_counted)
{
	static const struct {
		const char *text;
		uint64_t steps;
	} wrong[] = {
		{ HEADER "{\"n\":1,\"op\":\"create\",\"td\":0,\"pfn\":256,\"hkid\":32," RC "}\n", 1 },
		{ CREATE "{\"n\":2,\"op\":\"track\",\"td\":0,\"rc\":\"0x8000081000000000\",\"epoch\":1}\n", 2 },
		{ CREATE "{\"n\":2,\"op\":\"rdmd\",\"pfn\":256," RC ",\"pt\":\"TDCX\"}\n", 2 },
		{ CREATE "{\"n\":2,\"op\":\"rdmd\",\"pfn\":256," RC ",\"owner_pfn\":1}\n", 2 },
		{ CREATE "{\"n\":2,\"op\":\"rdmd\",\"pfn\":256," RC ",\"size\":1}\n", 2 },
		{ CREATE "{\"n\":2,\"op\":\"vcpu_exit\",\"td\":0,\"epoch\":1}\n", 2 },
		{ CREATE "{\"n\":2,\"op\":\"remove\",\"td\":0,\"gpa\":\"0x0\",\"level\":0,"
			 "\"rc\":\"0x8000081000000000\",\"out_pfn\":5}\n",
		  2 },
		{ CREATE "{\"n\":2,\"op\":\"block\",\"td\":0,\"gpa\":\"0x0\",\"level\":0,"
			 "\"rc\":\"0x8000081000000000\",\"after\":\"FREE\"}\n",
		  2 },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(wrong[i].text, &t, &err), PW_OK, "case %zu: %s", i, err.msg);
		cr_expect(t.steps == wrong[i].steps && t.wrong == 1, "case %zu", i);
	}
}

Test(replay_tdx, what_is_not_understood_is_refused)
{
	static const char *const bad[] = {
		"{\"type\":\"header\",\"format\":\"tdx-trace/2\"}\n",
		"{\"type\":\"header\",\"format\":\"tdx-trace/1\"}\n",
		"{\"type\":\"header\",\"format\":\"tdx-trace/1\",\"tdmr_pfns\":[5,4],\"private_hkids\":[33,63]}\n",
		"{\"type\":\"header\",\"format\":\"tdx-trace/1\",\"tdmr_pfns\":[0,4],\"private_hkids\":[33,63],\"gpaw\":57}\n",
		"{\"type\":\"header\",\"format\":\"tdx-trace/1\",\"tdmr_pfns\":[0,4],\"private_hkids\":[33,63],\"more\":1}\n",
		HEADER "{\"n\":1,\"op\":\"destroy\",\"td\":0," RC "}\n",
		HEADER "{\"n\":1,\"td\":0," RC "}\n",
		HEADER "{\"n\":1,\"op\":\"keyconfig\",\"td\":0," RC "}\n",
		CREATE "{\"n\":2,\"op\":\"keyconfig\"," RC "}\n",
		CREATE "{\"n\":2,\"op\":\"keyconfig\",\"td\":0}\n",
		CREATE "{\"n\":2,\"op\":\"keyconfig\",\"td\":0,\"rc\":0}\n",
		CREATE "{\"n\":2,\"op\":\"keyconfig\",\"td\":0,\"after\":\"FREE\"," RC "}\n",
		CREATE "{\"n\":2,\"op\":\"keyconfig\",\"td\":9999," RC "}\n",
		CREATE "{\"n\":2,\"op\":\"vcpu_enter\",\"td\":0}\n",
		CREATE "{\"n\":2,\"op\":\"aug\",\"td\":0,\"gpa\":\"0x0\",\"level\":0," RC "}\n",
		CREATE "{\"n\":2,\"op\":\"block\",\"td\":0,\"gpa\":\"zero\",\"level\":0," RC "}\n",
		KEYS "{\"n\":3,\"op\":\"init\",\"td\":0,\"gpaw\":2," RC "}\n",
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(bad[i], &t, &err), PW_INVALID, "case %zu", i);
		cr_expect(err.msg[0]);
		cr_expect_eq(t.wrong, 0);
	}
}
