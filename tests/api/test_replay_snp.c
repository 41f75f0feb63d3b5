#include "tests/lib/replayed.h"

#include <criterion/criterion.h>
#include <string.h>

#define HEADER                                                                                                    \
	"{\"type\":\"header\",\"format\":\"snp-trace/1\",\"scenario\":\"t\",\"frames\":4096,\"rmp\":[2048,2063]," \
	"\"max_asid\":15,\"hv_fixed\":[7,3000]}\n"
#define STEP(op, args, ret, post) \
	"{\"n\":1,\"op\":\"" op "\",\"args\":{" args "},\"ret\":" ret ",\"post\":{" post "}}\n"
#define PAGE(pfn, state, asid, gfn, size) \
	"\"" pfn "\":{\"state\":\"" state "\",\"asid\":" asid ",\"gfn\":" gfn ",\"size\":\"" size "\"}"
#define PAGES(list) "\"pages\":{" list "}"

Test(replay_snp, the_recorded_scenarios_replay_without_a_wrong_step)
{
	replay_traces("tests/traces/snp/*.jsonl", 169);
}

static const struct good {
	const char *what, *steps;
} good[] = {
	{ "HV-Fixed, the RMP and what is past it",
	  STEP("RMPUPDATE", "\"pfn\":7", "2",
	       PAGES(PAGE("7", "HV-Fixed", "0", "0", "4K") "," PAGE("2048", "Firmware", "0", "0", "4K") "," PAGE(
		       "4096", "Default", "0", "0", "4K"))) },
	{ "2 MiB pages",
	  STEP("RMPUPDATE", "\"pfn\":512,\"assigned\":1,\"asid\":5,\"gfn\":1024,\"size\":\"2M\"", "0",
	       PAGES(PAGE("512", "Guest-Invalid", "5", "1024", "2M") "," PAGE("515", "Guest-Invalid", "5", "1027",
									      "2M")))
		  STEP("PVALIDATE", "\"asid\":5,\"gfn\":1024,\"pfn\":512,\"size\":\"4K\",\"validate\":1", "\"NPF\"",
		       "") STEP("PVALIDATE", "\"asid\":5,\"gfn\":1024,\"pfn\":512,\"size\":\"2M\",\"validate\":1",
				"{\"code\":0,\"cf\":0}", PAGES("\"1000\":{\"state\":\"Guest-Valid\"}"))
			  STEP("PVALIDATE", "\"asid\":5,\"gfn\":1024,\"pfn\":512,\"size\":\"2M\",\"validate\":true",
			       "{\"code\":0,\"cf\":1}", "") STEP("PSMASH", "\"pfn\":512", "0",
								 PAGES(PAGE("515", "Guest-Valid", "5", "1027", "4K")))
				  STEP("PVALIDATE",
				       "\"asid\":5,\"gfn\":1024,\"pfn\":512,\"size\":\"2M\",\"validate\":0",
				       "{\"code\":6}", "") STEP("PSMASH", "\"pfn\":512", "4", "")
					  STEP("PSMASH", "\"pfn\":512", "7", "") },
	{ "metadata and moves",
	  STEP("RMPUPDATE", "\"pfn\":300,\"assigned\":1,\"immutable\":1", "0",
	       "") STEP("SNP_GCTX_CREATE", "\"ctx\":300", "0",
			"") STEP("SNP_LAUNCH_START", "\"ctx\":300,\"policy\":\"0x30000\"", "0",
				 "") STEP("SNP_ACTIVATE", "\"ctx\":300,\"asid\":5", "0", "")
		  STEP("RMPUPDATE", "\"pfn\":301,\"assigned\":1,\"immutable\":1", "0", "") STEP(
			  "SNP_MD_INIT", "\"ctx\":300,\"pfn\":301", "0", PAGES("\"301\":{\"state\":\"Metadata\"}"))
			  STEP("RMPUPDATE", "\"pfn\":302,\"assigned\":1,\"asid\":5,\"gfn\":9,\"immutable\":1", "0", "")
				  STEP("RMPUPDATE", "\"pfn\":303,\"assigned\":1,\"asid\":5,\"gfn\":8,\"immutable\":1",
				       "0", "") STEP("SNP_PAGE_MOVE", "\"ctx\":300,\"src\":302,\"dst\":303", "0",
						     PAGES(PAGE("303", "Guest-Invalid", "5", "9", "4K")))
					  STEP("SNP_LAUNCH_UPDATE",
					       "\"ctx\":300,\"pfn\":302,\"type\":1,\"hex\":\"00Ff\",\"vmpl\":[1,2,3],"
					       "\"imi\":0",
					       "26",
					       "\"digest\":{\"300\":\"000000000000000000000000000000000000000000000"
					       "000000000000000000000000000000000000000000000000000\"}")
						  STEP("SNP_PAGE_UNSMASH", "\"pfn\":512", "26", "")
							  STEP("SNP_DECOMMISSION", "\"ctx\":300", "0", "")
								  STEP("WBINVD", "", "0", "")
									  STEP("SNP_DF_FLUSH", "", "0", "") },
};

static void check_good(const struct good *c)
{
	struct replay_tally t = { 0 };
	struct pw_err err = { 0 };
	char text[8192];

	snprintf(text, sizeof text, "%s%s", HEADER, c->steps);
	cr_assert_eq(replay_text(text, &t, &err), PW_OK, "%s: %s", c->what, err.msg);
	cr_assert_eq(t.wrong, 0, "%s", c->what);
	cr_assert_gt(t.steps, 0);
}

Test(replay_snp, steps_that_are_right_pass)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(good); i++)
		check_good(&good[i]);
}

/* Nothing that is not understood, and nothing wrong, passes. */
static const struct bad {
	const char *text;
	enum pw_status st;
} bad[] = {
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "1", ""), PW_OK },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "\"NPF\"", ""), PW_OK },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", PAGES("\"8\":{\"state\":\"Reclaim\"}")), PW_OK },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", PAGES("\"8\":{\"asid\":1}")), PW_OK },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", PAGES("\"8\":{\"gfn\":1}")), PW_OK },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", PAGES("\"8\":{\"size\":\"2M\"}")), PW_OK },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", "\"digest\":{\"8\":\"00\"}"), PW_OK },
	{ HEADER STEP("PSMASH", "\"pfn\":512", "3", ""), PW_OK },
	{ HEADER STEP("RMPUPDATES", "\"pfn\":8", "0", ""), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8,\"vm\":1", "0", ""), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "", "0", ""), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":\"8\"", "0", ""), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":-8", "0", ""), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8,\"size\":\"1G\"", "0", ""), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8,\"assigned\":2", "0", ""), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", "\"frames\":{}"), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", PAGES("\"8\":{\"vmsa\":1}")), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", PAGES("\"x\":{\"asid\":1}")), PW_INVALID },
	{ HEADER STEP("RMPUPDATE", "\"pfn\":8", "0", PAGES("\"8\":1")), PW_INVALID },
	{ HEADER STEP("SNP_LAUNCH_UPDATE", "\"ctx\":1,\"pfn\":8,\"type\":1,\"hex\":\"0g\"", "0", ""), PW_INVALID },
	{ HEADER STEP("SNP_LAUNCH_UPDATE", "\"ctx\":1,\"pfn\":8,\"type\":1,\"hex\":\"00\",\"fill\":1", "0", ""),
	  PW_INVALID },
	{ HEADER STEP("SNP_LAUNCH_UPDATE", "\"ctx\":1,\"pfn\":8,\"type\":1,\"vmpl\":[1]", "0", ""), PW_INVALID },
	{ HEADER "{\"n\":1,\"op\":\"WBINVD\",\"args\":{},\"ret\":0,\"note\":1}\n", PW_INVALID },
	{ HEADER "{\"n\":1,\"op\":\"WBINVD\",\"args\":{}}\n", PW_INVALID },
	{ "{\"type\":\"header\",\"format\":\"snp-trace/2\"}\n", PW_INVALID },
	{ "{\"type\":\"header\",\"format\":\"snp-trace/1\",\"frames\":16,\"rmp\":[8,99]}\n", PW_INVALID },
	{ "{\"type\":\"header\",\"format\":\"snp-trace/1\",\"frames\":16,\"rmp\":[8]}\n", PW_INVALID },
	{ "{\"type\":\"header\",\"format\":\"snp-trace/1\",\"frames\":16,\"hv_fixed\":[16]}\n", PW_INVALID },
	{ "{\"type\":\"header\",\"format\":\"snp-trace/1\",\"frames\":16,\"smt\":true}\n", PW_INVALID },
	{ "{\"type\":\"header\",\"format\":\"snp-trace/1\",\"frames\":16,\"max_asid\":1024}\n", PW_INVALID },
};

static void check_bad(const struct bad *c)
{
	struct replay_tally t = { 0 };
	struct pw_err err = { 0 };
	enum pw_status st = replay_text(c->text, &t, &err);

	cr_assert_eq(st, c->st, "%s: %s", c->text, err.msg);
	if (st == PW_OK)
		cr_assert_eq(t.wrong, 1, "%s", c->text);
}

Test(replay_snp, what_is_wrong_or_unknown_is_said_loudly)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++)
		check_bad(&bad[i]);
}
