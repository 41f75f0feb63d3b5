/* The recorded scenarios in tests/traces/cca, replayed against the CCA model. */
#include <criterion/criterion.h>
#include <string.h>

#include "tests/lib/replayed.h"

#define HEADER                                                                                                \
	"{\"type\":\"header\",\"format\":\"cca-trace/1\",\"scenario\":\"s\",\"features0\":\"0x283fc104130\"," \
	"\"rec_aux_count\":16,\"granules\":64,\"pa_align\":\"0x200000\"}\n"
#define RET      "\"ret\":{\"status\":\"RMI_SUCCESS\",\"index\":0}"
#define DELEGATE "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"fid\":\"0xc4000151\",\"args\":{\"addr\":\"g1\"}," RET
#define STEP     DELEGATE "}\n"

Test(replay_cca, all_recorded_steps_are_right)
{
	replay_traces("tests/traces/cca/*.jsonl", 1758);
}

Test(replay_cca, a_step_that_differs_is_counted)
{
	static const char *const wrong[] = {
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"fid\":\"0xc4000151\",\"args\":{\"addr\":\"bad0\"}," RET
		       "}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"fid\":\"0xc4000152\",\"args\":{\"addr\":\"g1\"}," RET
		       "}\n",
		HEADER DELEGATE ",\"post\":{\"granules\":{\"g1\":\"UNDELEGATED\"}}}\n",
		HEADER DELEGATE ",\"post\":{\"granules\":{\"g1-g2\":\"DELEGATED\"}}}\n",
		HEADER DELEGATE ",\"post\":{\"realm\":{\"name\":\"r0\"}}}\n",
		HEADER DELEGATE ",\"post\":{\"rtte\":[{\"ipa\":\"0x0\"}]}}\n",
		HEADER DELEGATE ",\"out\":{\"top\":\"0x0\"}}\n",
		HEADER DELEGATE ",\"rep\":{\"count\":2,\"step\":{\"addr\":0}}}\n",
		HEADER "{\"n\":1,\"cmd\":\"VERSION\",\"fid\":\"0xc4000150\",\"args\":{\"req\":\"0x10000\"}," RET "}\n",
		HEADER "{\"type\":\"final\",\"granules\":{\"g0\":\"DELEGATED\"},\"realms\":{}}\n",
		HEADER "{\"type\":\"checkpoint\",\"granules\":{},\"realms\":{\"r0\":{}}}\n",
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(wrong[i], &t, &err), PW_OK, "case %zu: %s", i, err.msg);
		cr_expect(t.steps == 1 && t.wrong == 1, "case %zu", i);
	}
}

Test(replay_cca, what_is_not_understood_is_refused)
{
	static const char *const bad[] = {
		"{\"type\":\"header\",\"format\":\"cca-trace/2\"}\n",
		"{\"type\":\"header\",\"format\":\"cca-trace/1\",\"granules\":1,\"colour\":1}\n",
		"{\"type\":\"header\",\"format\":\"cca-trace/1\",\"granules\":0}\n",
		"{\"type\":\"header\",\"format\":\"cca-trace/1\",\"granules\":1,\"rec_aux_count\":17}\n",
		"{\"type\":\"header\",\"format\":\"cca-trace/1\",\"granules\":1,\"pa_align\":\"0x30\"}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_PAINT\",\"args\":{}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"PSCI_COMPLETE\",\"args\":{}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"args\":{\"addr\":\"g1\",\"rd\":\"g1\"}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"args\":{}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\"," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"args\":{\"addr\":\"g64\"}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"args\":{\"addr\":\"h1\"}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"args\":{\"addr\":\"g1+8\"}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"GRANULE_DELEGATE\",\"args\":{\"addr\":\"g1\"}}\n",
		HEADER DELEGATE ",\"colour\":1}\n",
		HEADER DELEGATE ",\"post\":{\"vms\":{}}}\n",
		HEADER DELEGATE ",\"post\":{\"granules\":{\"g70\":\"RD\"}}}\n",
		HEADER DELEGATE ",\"post\":{\"granules\":{\"x\":\"RD\"}}}\n",
		HEADER DELEGATE ",\"post\":{\"granules\":[]}}\n",
		HEADER DELEGATE ",\"post\":[]}\n",
		HEADER DELEGATE ",\"post\":{\"realm\":{\"owner\":1}}}\n",
		HEADER DELEGATE ",\"rep\":{\"count\":0,\"step\":{}}}\n",
		HEADER DELEGATE ",\"rep\":{\"count\":2,\"step\":{\"ipa\":1}}}\n",
		HEADER DELEGATE ",\"rep\":{\"count\":2,\"step\":{\"addr\":\"1\"}}}\n",
		HEADER DELEGATE ",\"rep\":{\"count\":2}}\n",
		HEADER DELEGATE ",\"params\":{}}\n",
		HEADER DELEGATE ",\"src_fill\":\"0x1\"}\n",
		HEADER DELEGATE ",\"guest\":[]}\n",
		HEADER "{\"type\":\"middle\"}\n",
		HEADER "{\"type\":\"final\"}\n",
		HEADER "{\"type\":\"final\",\"granules\":{},\"realms\":{},\"vms\":{}}\n",
		HEADER "{\"n\":1,\"cmd\":\"REALM_CREATE\",\"args\":{\"rd\":\"g1\",\"params_ptr\":\"g2\"},"
		       "\"params\":{\"colour\":1}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"REALM_CREATE\",\"args\":{\"rd\":\"g1\",\"params_ptr\":\"g2\"},"
		       "\"params\":{\"vmid\":65536}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"REC_CREATE\",\"args\":{\"rd\":\"g1\",\"rec\":\"g3\",\"params_ptr\":\"g2\"},"
		       "\"params\":{\"gprs\":[1,2,3,4,5,6,7,8,9]}," RET "}\n",
		HEADER "{\"n\":1,\"cmd\":\"RTT_MAP_UNPROTECTED\",\"args\":{\"rd\":\"g1\",\"ipa\":\"0x0\",\"level\":3,"
		       "\"desc\":{\"pa\":\"0x0\"}}," RET "}\n",
		HEADER
		"{\"n\":1,\"cmd\":\"RTT_READ_ENTRY\",\"args\":{\"rd\":\"g1\",\"ipa\":\"0x0\",\"level\":\"3\"}," RET
		"}\n",
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(bad[i], &t, &err), PW_INVALID, "case %zu", i);
		cr_expect_eq(t.steps, 0, "case %zu", i);
	}
}

/* A realm that runs: what it does is understood, or refused loudly. */
#define CREATE                                                                                                         \
	"{\"n\":2,\"cmd\":\"GRANULE_DELEGATE\",\"fid\":\"0xc4000151\",\"args\":{\"addr\":\"g2\"},"                     \
	"\"rep\":{\"count\":30,\"step\":{\"addr\":1}}," RET "}\n"                                                      \
	"{\"n\":3,\"cmd\":\"REALM_CREATE\",\"fid\":\"0xc4000158\",\"args\":{\"rd\":\"g1\",\"params_ptr\":\"g60\"},"    \
	"\"params\":{\"s2sz\":33,\"rtt_level_start\":1,\"rtt_num_start\":1,\"rtt_base\":\"g2\",\"vmid\":1}," RET "}\n" \
	"{\"n\":4,\"cmd\":\"REC_CREATE\",\"fid\":\"0xc400015a\",\"args\":{\"rd\":\"g1\",\"rec\":\"g3\","               \
	"\"params_ptr\":\"g60\"},\"params\":{\"flags\":1,\"num_aux\":16,\"aux\":[\"g4\",\"g5\",\"g6\",\"g7\","         \
	"\"g8\",\"g9\",\"g10\",\"g11\",\"g12\",\"g13\",\"g14\",\"g15\",\"g16\",\"g17\",\"g18\",\"g19\"]}," RET "}\n"   \
	"{\"n\":5,\"cmd\":\"REALM_ACTIVATE\",\"fid\":\"0xc4000157\",\"args\":{\"rd\":\"g1\"}," RET "}\n"
#define ENTER(guest, rest)                                                                                    \
	HEADER STEP CREATE                                                                                    \
		"{\"n\":6,\"cmd\":\"REC_ENTER\",\"fid\":\"0xc400015c\",\"args\":{\"rec\":\"g3\",\"run_ptr\":" \
		"\"g60\"},\"flags\":\"0x0\",\"guest\":[" guest "]," RET rest "}\n"

Test(replay_cca, what_a_realm_does_is_checked)
{
	static const struct {
		const char *text;
		uint64_t wrong;
	} cases[] = {
		{ ENTER("", ",\"exit\":{\"reason\":\"FIQ\"},\"guest_log\":[]"), 0 },
		{ ENTER("", ",\"exit\":{\"reason\":\"PSCI\"},\"guest_log\":[]"), 1 },
		{ ENTER("{\"exit\":\"FIQ\"}", ",\"exit\":{\"reason\":\"FIQ\"},\"guest_log\":[]"), 0 },
		{ ENTER("{\"exit\":\"IRQ\"}", ",\"exit\":{\"reason\":\"IRQ\"},\"guest_log\":[]"), 0 },
		{ ENTER("{\"rsi\":\"PSCI_SYSTEM_RESET\"}",
			",\"exit\":{\"reason\":\"PSCI\",\"gpr0\":\"0x84000009\"},\"guest_log\":[]"),
		  0 },
		{ ENTER("{\"rsi\":\"IPA_STATE_SET\",\"base\":\"0x0\",\"top\":\"0x1000\",\"ripas\":\"DEV\"}",
			",\"exit\":{\"reason\":\"FIQ\"},\"guest_log\":[{\"rsi_ret\":[\"0x1\"]}]"),
		  0 },
		{ ENTER("{\"host\":\"REC_DESTROY\",\"args\":{\"rec\":\"g3\"}}",
			",\"exit\":{\"reason\":\"FIQ\"},\"guest_log\":[{\"host_ret\":{\"status\":\"RMI_ERROR_REC\","
			"\"index\":0}}]"),
		  0 },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(cases[i].text, &t, &err), PW_OK, "case %zu: %s", i, err.msg);
		cr_expect_eq(t.wrong, cases[i].wrong, "case %zu", i);
	}
}

Test(replay_cca, what_a_realm_cannot_do_is_refused)
{
	static const char *const bad[] = {
		ENTER("{\"rsi\":\"SING\"}", ""),
		ENTER("{\"rsi\":\"PSCI_SYSTEM_OFF\",\"base\":\"0x0\"}", ""),
		ENTER("{\"rsi\":\"IPA_STATE_GET\",\"base\":\"0x0\",\"top\":\"0x1000\",\"ripas\":\"RAM\"}", ""),
		ENTER("{\"rsi\":\"IPA_STATE_SET\",\"base\":\"0x0\",\"top\":\"0x1000\",\"ripas\":\"ROM\"}", ""),
		ENTER("{\"rsi\":\"IPA_STATE_SET\",\"base\":\"0x0\",\"top\":\"0x1000\"}", ""),
		ENTER("{\"exit\":\"SERROR\"}", ""),
		ENTER("{\"host\":\"REC_PAINT\",\"args\":{}}", ""),
		ENTER("{\"host\":\"REC_DESTROY\",\"args\":{\"rec\":\"g3\"},\"ret\":{}}", ""),
		ENTER("1", ""),
		HEADER STEP CREATE
		"{\"n\":6,\"cmd\":\"REC_ENTER\",\"args\":{\"rec\":\"g3\",\"run_ptr\":\"g60\"},\"guest\":1," RET "}\n",
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		struct replay_tally t = { 0 };
		struct pw_err err = { 0 };

		cr_expect_eq(replay_text(bad[i], &t, &err), PW_INVALID, "case %zu", i);
		cr_expect_eq(t.steps, 5, "case %zu", i);
	}
}
