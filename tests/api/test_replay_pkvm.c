/* The recorded scenarios in tests/traces/pkvm, and those written beside them, replayed against the model. */
#include <criterion/criterion.h>
#include <string.h>

#include "tests/lib/replayed.h"

#define HEADER                                                                                             \
	"{\"type\":\"header\",\"format\":\"pkvm-trace/1\",\"scenario\":\"s\",\"pages\":2,\"start\":\"A\"," \
	"\"vms\":[{\"name\":\"v0\",\"kind\":\"any\"}]}\n"
#define STEP(op, args, ret, post) "{\"n\":1,\"op\":\"" op "\",\"args\":" args ",\"ret\":" ret ",\"post\":" post "}\n"
#define HSH(ret, post)            HEADER STEP("HSH", "{\"page\":\"p0\"}", ret, post)

Test(replay_pkvm, all_recorded_steps_are_right)
{
	replay_traces("tests/traces/pkvm/*.jsonl", 241);
}

Test(replay_pkvm, written_scenarios_are_right)
{
	replay_traces("tests/traces/pkvm-written/*.jsonl", 100);
}

Test(replay_pkvm, a_step_that_differs_is_counted)
{
	static const char *const wrong[] = {
		HSH("\"-EPERM\"", "{}"),
		HSH("0", "{\"pages\":{\"p0\":{\"host\":\"OWNED\"}}}"),
		HSH("0", "{\"pages\":{\"p0\":{\"hyp\":\"NOPAGE\"}}}"),
		HSH("0", "{\"pages\":{\"p0\":{\"pins\":1}}}"),
		HSH("0", "{\"pages\":{\"p0\":{\"guests\":1}}}"),
		HSH("0", "{\"gfns\":{\"v0:0\":\"OWNED\"}}"),
		HSH("0", "{\"pages\":{\"p1\":{\"host\":\"SHARED\"}}}"),
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(wrong[i], &t, &err), PW_OK, "case %zu: %s", i, err.msg);
		cr_expect(t.steps == 1 && t.wrong == 1, "case %zu", i);
	}
}

Test(replay_pkvm, what_is_not_understood_is_refused)
{
#define VMS(vms) "{\"type\":\"header\",\"format\":\"pkvm-trace/1\",\"pages\":1,\"start\":\"A\",\"vms\":" vms "}\n"
	static const char *const bad[] = {
		"{\"type\":\"header\",\"format\":\"pkvm-trace/2\",\"pages\":1,\"start\":\"A\",\"vms\":[]}\n",
		"{\"type\":\"header\",\"format\":\"pkvm-trace/1\",\"pages\":1,\"start\":\"A\",\"vms\":[],\"more\":1}\n",
		"{\"type\":\"header\",\"format\":\"pkvm-trace/1\",\"pages\":1,\"start\":\"H\",\"vms\":[]}\n",
		"{\"type\":\"header\",\"format\":\"pkvm-trace/1\",\"pages\":0,\"start\":\"A\",\"vms\":[]}\n",
		"{\"type\":\"header\",\"format\":\"pkvm-trace/1\",\"start\":\"A\",\"vms\":[]}\n",
		"{\"type\":\"header\",\"format\":\"pkvm-trace/1\",\"pages\":1,\"start\":\"A\"}\n",
		VMS("[7]"),
		VMS("[{\"name\":\"v0\",\"kind\":\"secure\"}]"),
		VMS("[{\"name\":\"v0\"}]"),
		VMS("[{\"name\":\"v0\",\"kind\":\"any\",\"more\":1}]"),
		VMS("[{\"name\":\"v0\",\"kind\":\"any\"},{\"name\":\"v0\",\"kind\":\"any\"}]"),
		HSH("0", "{\"frames\":{}}"),
		HSH("0", "{\"pages\":{\"p2\":{}}}"),
		HSH("0", "{\"pages\":{\"p\":{}}}"),
		HSH("0", "{\"pages\":{\"p0x\":{}}}"),
		HSH("0", "{\"pages\":{\"p0\":{\"ffa\":\"OWNED\"}}}"),
		HSH("0", "{\"pages\":{\"p0\":7}}"),
		HSH("0", "{\"pages\":7}"),
		HSH("0", "{\"gfns\":{\"v0\":\"OWNED\"}}"),
		HSH("0", "{\"gfns\":{\"v1:0\":\"OWNED\"}}"),
		HSH("0", "{\"gfns\":{\"v0:\":\"OWNED\"}}"),
		HSH("0", "7"),
		HSH("1", "{}"),
		HSH("\"-EWHAT\"", "{}"),
		HSH("null", "{}"),
		HEADER "{\"n\":1,\"op\":\"HSH\",\"args\":{\"page\":\"p0\"},\"ret\":0}\n",
		HEADER "{\"n\":1,\"op\":\"HSH\",\"args\":{\"page\":\"p0\"},\"post\":{}}\n",
		HEADER "{\"n\":1,\"op\":\"HSH\",\"args\":{\"page\":\"p0\"},\"ret\":0,\"post\":{},\"more\":1}\n",
		HEADER STEP("HSX", "{\"page\":\"p0\"}", "0", "{}"),
		HEADER STEP("HSH", "{}", "0", "{}"),
		HEADER STEP("HSH", "7", "0", "{}"),
		HEADER STEP("HSH", "{\"page\":\"p0\",\"vm\":\"v0\"}", "0", "{}"),
		HEADER STEP("HDG", "{\"page\":\"p0\",\"vm\":\"v0\",\"gfn\":0,\"nr\":1}", "0", "{}"),
		HEADER STEP("HDG", "{\"page\":\"p0\",\"vm\":\"v0\"}", "0", "{}"),
		HEADER STEP("HDG", "{\"page\":\"p0\",\"vm\":\"v0\",\"gfn\":\"0\"}", "0", "{}"),
		HEADER STEP("HSG", "{\"page\":\"p0\",\"vm\":\"v0\",\"gfn\":0,\"nr\":0}", "0", "{}"),
		HEADER STEP("GSH", "{\"page\":\"p0\",\"vm\":\"v0\",\"gfn\":0}", "0", "{}"),
		HEADER STEP("TEARDOWN", "{\"vm\":\"v1\"}", "0", "{}"),
		HEADER STEP("TEARDOWN", "{\"vm\":\"v0\",\"gfn\":0}", "0", "{}"),
		HEADER "{\"type\":\"checkpoint\"}\n",
	};
#undef VMS

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(bad[i], &t, &err), PW_INVALID, "case %zu", i);
		cr_expect(err.msg[0] && t.steps == 0 && strncmp(err.msg, "text:", 5) == 0, "case %zu: %s", i, err.msg);
	}
}
