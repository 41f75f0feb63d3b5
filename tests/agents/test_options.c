#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/options.h"

static char *empty(const char *name)
{
	return NULL;
}

static char *full(const char *name)
{
	static char token[] = "secret", server[] = "http://h:1", level[] = "debug";

	if (strcmp(name, "PAGEWARDEN_TOKEN") == 0)
		return token;
	if (strcmp(name, "PAGEWARDEN_SERVER") == 0)
		return server;
	return strcmp(name, "PAGEWARDEN_LOG_LEVEL") == 0 ? level : NULL;
}

#define PARSE(env, o, err, ...)                                                           \
	options_parse((int)PW_ARRAY_LEN(((const char *const[]){ "agent", __VA_ARGS__ })), \
		      (char *const *)(uintptr_t)(const char *const[]){ "agent", __VA_ARGS__ }, env, o, err)

Test(options, both_spellings_of_a_value_work)
{
	struct agent_options o;
	struct pw_err err = { 0 };

	cr_assert_eq(PARSE(empty, &o, &err, "--frames", "4096", "--base-pfn=0x100", "--once", "--log-level=error"),
		     PW_OK, "%s", err.msg);
	cr_assert(o.frames == 4096 && o.base_pfn == 256 && o.once && o.log_level == ALOG_ERROR);
	cr_assert_str_eq(o.server, "http://127.0.0.1:8470");
	cr_assert_str_eq(o.backend, "emulated");
	cr_assert_eq(o.resync_seconds, 300);
	cr_assert_eq(PARSE(empty, &o, &err, "--resync-seconds", "0"), PW_OK, "%s", err.msg);
	cr_assert_eq(o.resync_seconds, 0);
	cr_assert_eq(PARSE(empty, &o, &err, "--resync-seconds=604801"), PW_INVALID);
	cr_assert(strstr(err.msg, "--resync-seconds"), "%s", err.msg);
}

Test(options, flags_win_over_the_environment)
{
	struct agent_options o;
	struct pw_err err = { 0 };

	cr_assert_eq(PARSE(full, &o, &err, "--server", "https://other"), PW_OK);
	cr_assert_str_eq(o.server, "https://other");
	cr_assert_str_eq(o.token, "secret");
	cr_assert_eq(o.log_level, ALOG_DEBUG);
}

static const char *const wrong[][2] = {
	{ "--frames", "many" },       { "--frames", "-1" },     { "--frames", "1x" }, { "--log-level", "loud" },
	{ "--host", "not-a-uuid" },   { "--once=1", "--once" }, { "--what", "1" },    { "frames", "1" },
	{ "--cert", "/only/a/cert" }, { "--name=x", "--seed" },
};

Test(options, mistakes_are_refused_by_name)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(wrong); i++) {
		struct agent_options o = { .frames = 77 };
		struct pw_err err = { 0 };

		cr_assert_eq(PARSE(empty, &o, &err, wrong[i][0], wrong[i][1]), PW_INVALID, "%s", wrong[i][0]);
		cr_assert(err.msg[0]);
		cr_assert_eq(o.frames, 77);
	}
}

Test(options, a_host_is_a_uuid_in_lower_case)
{
	struct agent_options o;
	struct pw_err err = { 0 };
	char text[PW_UUID_TEXT];

	cr_assert_eq(PARSE(empty, &o, &err, "--host", "11111111-2222-4333-8444-55555555abcd"), PW_OK);
	pw_uuid_format(&o.host_id, text);
	cr_assert_str_eq(text, "11111111-2222-4333-8444-55555555abcd");
	cr_assert_eq(PARSE(empty, &o, &err, "--host", "11111111-2222-4333-8444-55555555ABCD"), PW_INVALID);
}

Test(options, usage_names_every_flag_and_exit_code)
{
	char *text;
	size_t size;
	FILE *to = open_memstream(&text, &size);

	options_usage(to);
	fclose(to);
	cr_assert(strstr(text, "--token-file FILE") && strstr(text, "--load SPEC") && strstr(text, "\n  5  "));
	free(text);
}

Test(alog, a_line_cannot_be_forged_by_its_values)
{
	char line[128];

	alog_format(line, sizeof line, ALOG_INFO, "said", "a\"b\\c\nlevel=error");
	cr_assert_str_eq(line, "level=info msg=\"said\" detail=\"a\\\"b\\\\c\\x0alevel=error\"");
}

Test(alog, what_steers_a_terminal_is_shown_by_its_number)
{
	char line[128];

	alog_format(line, sizeof line, ALOG_INFO, "said", "\x1b[2J \xc2\x9b \xe2\x80\xae \xff \xc3\xa4");
	cr_assert_str_eq(line, "level=info msg=\"said\" detail=\"\\x1b[2J \\u009b \\u202e \\xff \xc3\xa4\"");
}

Test(alog, a_long_value_is_cut_and_still_quoted)
{
	char line[48];

	alog_format(line, sizeof line, ALOG_WARNING, "m", "xxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxxx");
	cr_assert_lt(strlen(line), sizeof line);
	cr_assert_eq(line[strlen(line) - 1], '"');
}
