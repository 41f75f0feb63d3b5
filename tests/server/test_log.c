#include "server/log.h"

#include <criterion/criterion.h>
#include <pthread.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

static FILE *capture;

/* Each test is a process of its own, so its standard error may be taken away for good. */
static void start_capture(void)
{
	capture = tmpfile();
	cr_assert_not_null(capture);
	fflush(stderr);
	dup2(fileno(capture), STDERR_FILENO);
}
TestSuite(log, .init = start_capture);

static const char *captured(void)
{
	static char text[1 << 20];
	ssize_t n = pread(fileno(capture), text, sizeof text - 1, 0);

	text[n > 0 ? n : 0] = '\0';
	return text;
}

/* A line without its time, which comes first. */
static const char *after_time(const char *line)
{
	unsigned y, mo, d, h, mi, s, ms;
	int n = 0;

	sscanf(line, "time=%4u-%2u-%2uT%2u:%2u:%2u.%3uZ %n", &y, &mo, &d, &h, &mi, &s, &ms, &n);
	cr_assert_eq(n, (int)strlen("time=2026-01-01T00:00:00.000Z "), "%s", line);
	return line + n;
}

Test(log, a_line_is_logfmt_with_its_pairs_in_order)
{
	log_line(LOG_INFO_, "listening", "address", "http://127.0.0.1:1", "n", "3", NULL);
	cr_assert_str_eq(after_time(captured()), "level=info msg=listening address=http://127.0.0.1:1 n=3\n");
}

Test(log, values_are_quoted_when_they_must_be_and_cannot_forge_lines)
{
	log_line(LOG_ERROR_, "two words", "a", "", "b", NULL, "c", "x=\"y\\z\"", "d", "1\n2\t\x7f", NULL);
	cr_assert_str_eq(after_time(captured()),
			 "level=error msg=\"two words\" a=\"\" b=\"\" c=\"x=\\\"y\\\\z\\\"\" d=\"1\\n2\\x09\\x7f\"\n");
}

Test(log, what_steers_a_terminal_is_shown_by_its_number)
{
	log_line(LOG_INFO_, "m", "c1",
		 "\xc2\x9b"
		 "2J",
		 "bidi", "a\xe2\x80\xae", "bytes", "\x9b\xff", "plain",
		 "M\xc3\xb6"
		 "bel",
		 NULL);
	cr_assert_str_eq(after_time(captured()), "level=info msg=m c1=\"\\u009b2J\" bidi=\"a\\u202e\" "
						 "bytes=\"\\x9b\\xff\" plain=M\xc3\xb6"
						 "bel\n");
}

Test(log, a_formatted_detail_is_one_member)
{
	log_detail(LOG_WARNING_, "slow", "%d of %s", 7, "ten");
	cr_assert_str_eq(after_time(captured()), "level=warning msg=slow detail=\"7 of ten\"\n");
}

Test(log, levels_below_the_threshold_are_silent)
{
	log_line(LOG_DEBUG_, "no", NULL);
	cr_assert_not(log_enabled(LOG_DEBUG_));
	log_set_level(LOG_ERROR_);
	log_line(LOG_WARNING_, "no", NULL);
	log_detail(LOG_INFO_, "no", "%s", "no");
	cr_assert_str_eq(captured(), "");
	log_set_level(LOG_DEBUG_);
	log_line(LOG_DEBUG_, "yes", NULL);
	cr_assert_str_eq(after_time(captured()), "level=debug msg=yes\n");
}

Test(log, level_names_are_known_both_ways)
{
	unsigned level = 99;

	cr_assert(log_level_from_name("error", &level) && level == LOG_ERROR_);
	cr_assert(log_level_from_name("debug", &level) && level == LOG_DEBUG_);
	cr_assert_not(log_level_from_name("DEBUG", &level));
	cr_assert_not(log_level_from_name("", &level));
	cr_assert_eq(level, LOG_DEBUG_);
}

Test(log, a_value_that_does_not_fit_is_cut_within_one_line)
{
	static char plain[5000], quoted[5000];
	const char *text;

	memset(plain, 'x', sizeof plain - 1);
	memset(quoted, '"', sizeof quoted - 1);
	log_line(LOG_INFO_, "long", "k", plain, "never", "seen", NULL);
	text = captured();
	cr_assert_eq(strchr(text, '\n'), text + strlen(text) - 1);
	cr_assert_leq(strlen(text), 2048);
	cr_assert_null(strstr(text, "never"));
	log_line(LOG_INFO_, "long", "k", quoted, NULL);
	text = strchr(captured(), '\n') + 1;
	cr_assert_eq(strchr(text, '\n'), text + strlen(text) - 1);
	cr_assert_leq(strlen(text), 2048);
	cr_assert_str_eq(text + strlen(text) - 5, "...\"\n");
}

#define LINES 200
static void *chatter(void *name)
{
	for (int i = 0; i < LINES; i++)
		log_line(LOG_INFO_, "one of many lines", "name", name, "end", "here", NULL);
	return NULL;
}

Test(log, lines_of_several_threads_do_not_mix)
{
	pthread_t threads[4];
	unsigned lines = 0;

	lseek(STDERR_FILENO, 0, SEEK_SET);
	for (int i = 0; i < 4; i++)
		pthread_create(&threads[i], NULL, chatter, (void *)"abcdefgh");
	for (int i = 0; i < 4; i++)
		pthread_join(threads[i], NULL);
	for (const char *at = captured(); *at; at = strchr(at, '\n') + 1, lines++)
		cr_assert_eq(
			strncmp(after_time(at), "level=info msg=\"one of many lines\" name=abcdefgh end=here\n", 58),
			0);
	cr_assert_eq(lines, 4 * LINES);
}
