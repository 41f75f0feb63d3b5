#include "server/config.h"

#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "server/log.h"

#define ARGS_MAX 16

static struct config config;
static struct pw_err err;
static char path[64];

static enum pw_status parse(char *const *envp, const char *const *flags)
{
	char *argv[ARGS_MAX] = { (char *)"pagewardend" };
	int argc = 1;

	for (; flags && *flags; flags++)
		argv[argc++] = (char *)*flags;
	err = (struct pw_err){ 0 };
	return config_parse(argc, argv, envp, &config, &err);
}
#define FLAGS(...) ((const char *const[]){ __VA_ARGS__, NULL })
#define ENV(...)   ((char *const[]){ __VA_ARGS__, NULL })

static const char *file_with(const char *text)
{
	int fd;

	snprintf(path, sizeof path, "/tmp/pw-test-config-XXXXXX");
	fd = mkstemp(path);
	cr_assert(fd >= 0 && write(fd, text, strlen(text)) == (ssize_t)strlen(text));
	close(fd);
	return path;
}

static void clean(void)
{
	if (path[0])
		unlink(path);
	path[0] = '\0';
	config_release(&config);
}
TestSuite(config, .fini = clean);

Test(config, without_anything_the_documented_defaults_hold)
{
	cr_assert_eq(parse(ENV(NULL), NULL), PW_OK, "%s", err.msg);
	cr_assert_str_eq(config.data, "./pagewarden-data");
	cr_assert_str_eq(config.listen, "127.0.0.1:8470");
	cr_assert(!config.tls_cert && !config.tls_key && !config.tls_client_ca);
	cr_assert_eq(config.log_level, LOG_INFO_);
	cr_assert_eq(config.threads, 2);
	cr_assert_eq(config.connections, 1024);
	cr_assert_eq(config.lease_seconds, 15);
	cr_assert_eq(config.checkpoint_seconds, 30);
	cr_assert_eq(config.stop_seconds, 10);
	cr_assert_eq(config.retain_hours, 720);
	cr_assert_eq(config.retain_bytes, UINT64_C(8) << 30);
	cr_assert_eq(config.memory_bytes, 0);
	cr_assert(!config.verify && !config.help && !config.version && !config.dump);
}

Test(config, flags_win_over_the_file_over_the_environment_over_the_defaults)
{
	const char *file = file_with("; a comment\n[pagewardend]\nthreads = 4\nlease-seconds=40 ; inline\n");

	cr_assert_eq(parse(ENV((char *)"PAGEWARDEN_THREADS=3", (char *)"PAGEWARDEN_LEASE_SECONDS=30",
			       (char *)"PAGEWARDEN_RETAIN_HOURS=3", (char *)"PAGEWARDEN_URL=else", (char *)"HOME=/"),
			   FLAGS("--threads", "5", "--config", file)),
		     PW_OK, "%s", err.msg);
	cr_assert_eq(config.threads, 5);
	cr_assert_eq(config.lease_seconds, 40);
	cr_assert_eq(config.retain_hours, 3);
	cr_assert_eq(config.checkpoint_seconds, 30);
}

Test(config, the_environment_can_name_the_file)
{
	char entry[96];

	snprintf(entry, sizeof entry, "PAGEWARDEN_CONFIG=%s", file_with("[pagewardend]\nthreads = 7\n"));
	cr_assert_eq(parse(ENV(entry), NULL), PW_OK, "%s", err.msg);
	cr_assert_eq(config.threads, 7);
}

Test(config, actions_and_the_equals_form_are_flags_too)
{
	cr_assert_eq(
		parse(ENV(NULL), FLAGS("--verify", "--print-config", "--data=/x", "--log-level=debug", "--tls-cert=")),
		PW_OK, "%s", err.msg);
	cr_assert(config.verify && config.dump && !config.help);
	cr_assert_str_eq(config.data, "/x");
	cr_assert_eq(config.log_level, LOG_DEBUG_);
	cr_assert_null(config.tls_cert);
}

Test(config, help_and_version_come_through_whatever_else_is_wrong)
{
	cr_assert_eq(parse(ENV((char *)"PAGEWARDEN_THREADS=x"), FLAGS("--help", "--config", "/nowhere")), PW_OK);
	cr_assert(config.help);
	config_release(&config);
	cr_assert_eq(parse(ENV((char *)"PAGEWARDEN_THREADS=x"), FLAGS("--version")), PW_OK);
	cr_assert(config.version);
}

static const struct sizes {
	const char *text;
	uint64_t bytes;
} sizes[] = {
	{ "0", 0 },
	{ "4096", 4096 },
	{ "3K", 3072 },
	{ "2M", 2097152 },
	{ "1G", 1073741824 },
	{ "18446744073709551615", UINT64_MAX },
	{ "17179869183G", UINT64_C(17179869183) << 30 },
};
Test(config, bytes_take_binary_suffixes)
{
	for (const struct sizes *c = sizes; c < sizes + PW_ARRAY_LEN(sizes); c++) {
		cr_assert_eq(parse(ENV(NULL), FLAGS("--retain-bytes", c->text)), PW_OK, "%s", err.msg);
		cr_assert_eq(config.retain_bytes, c->bytes);
		clean();
	}
}

/* What is refused, and a piece of the message that must name the culprit. */
static const struct refused {
	const char *flag, *value, *says;
} refused[] = {
	{ "--bogus", "1", "--bogus" },
	{ "bogus", NULL, "bogus" },
	{ "-x", NULL, "-x" },
	{ "--", NULL, "--" },
	{ "--thread", "2", "--thread" },
	{ "--threads", NULL, "--threads needs" },
	{ "--verify=1", NULL, "--verify takes no value" },
	{ "--threads", "0", "\"0\"" },
	{ "--threads", "257", "\"257\"" },
	{ "--threads", "", "\"\"" },
	{ "--threads", " 2", "\" 2\"" },
	{ "--threads", "+2", "\"+2\"" },
	{ "--threads", "-1", "\"-1\"" },
	{ "--threads", "2x", "\"2x\"" },
	{ "--threads", "0x2", "\"0x2\"" },
	{ "--threads", "2K", "\"2K\"" },
	{ "--threads", "99999999999999999999", "\"99999999999999999999\"" },
	{ "--connections", "4294967297", "\"4294967297\"" },
	{ "--retain-bytes", "18446744073709551616", "18446744073709551616" },
	{ "--retain-bytes", "17179869184G", "17179869184G" },
	{ "--retain-bytes", "1T", "1T" },
	{ "--retain-bytes", "1GG", "1GG" },
	{ "--retain-bytes", "K", "\"K\"" },
	{ "--log-level", "verbose", "\"verbose\"" },
	{ "--data", "", "data" },
	{ "--data", "a\nb", "data" },
	{ "--data", "a ;b", "data" },
	{ "--config", "/nowhere/at/all", "/nowhere/at/all" },
};
Test(config, wrong_flags_are_refused_by_name)
{
	for (const struct refused *c = refused; c < refused + PW_ARRAY_LEN(refused); c++) {
		struct config before = { .threads = 99 };

		config = before;
		cr_assert_eq(parse(ENV(NULL), FLAGS(c->flag, c->value)), PW_INVALID, "%s %s", c->flag,
			     c->value ? c->value : "");
		cr_assert_not_null(strstr(err.msg, c->says), "\"%s\" does not say %s", err.msg, c->says);
		cr_assert_eq(config.threads, 99, "a refused configuration must leave the result alone");
		config = (struct config){ 0 };
	}
}

static const struct broken_file {
	const char *text, *says;
} broken_files[] = {
	{ "[pagewardend]\ndata = /x\nspeed = 9\n", ":3: unknown option speed" },
	{ "[pagewardend]\nverify = 1\n", ":2: unknown option verify" },
	{ "[pagewardend]\nconfig = /x\n", ":2: unknown option config" },
	{ "threads = 2\n", ":1:" },
	{ "[other]\nthreads = 2\n", ":2:" },
	{ "[pagewardend]\n\nthreads = many\n", ":3: threads: \"many\"" },
	{ "[pagewardend]\nthreads = 2\nthreads = 3\n", ":3: given twice: threads" },
	{ "[pagewardend]\nthreads = 2\n  3\n", ":3: given twice: threads" },
	{ "[pagewardend]\nnonsense\n", ":2:" },
	{ "[pagewardend\n", ":1:" },
	{ "[pagewardend]\ndata = ", ":2: data must not be empty" },
	{ "[pagewardend]\n; 3456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789"
	  "0123456789012345678901234567890123456789012345678901234567890123456789012345678901234567890123456789 123456789\n"
	  "threads = 2\n",
	  ":2: the line is too long" },
};
Test(config, wrong_files_are_refused_with_their_line)
{
	for (const struct broken_file *c = broken_files; c < broken_files + PW_ARRAY_LEN(broken_files); c++) {
		cr_assert_eq(parse(ENV(NULL), FLAGS("--config", file_with(c->text))), PW_INVALID, "%s", c->text);
		cr_assert_not_null(strstr(err.msg, c->says), "\"%s\" does not say \"%s\"", err.msg, c->says);
		clean();
	}
}

Test(config, a_wrong_environment_is_refused_by_name)
{
	cr_assert_eq(parse(ENV((char *)"PAGEWARDEN_THREADS=x"), NULL), PW_INVALID);
	cr_assert_not_null(strstr(err.msg, "threads"), "%s", err.msg);
}

static char *printed(void)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	config_print(&config, f);
	fclose(f);
	return text;
}

Test(config, the_printed_form_parses_back_to_the_same)
{
	char *first, *second;

	cr_assert_eq(parse(ENV(NULL), FLAGS("--data", "/a dir;x", "--listen", "[::1]:0", "--tls-cert=c.pem",
					    "--retain-bytes=3M", "--log-level", "error", "--tls-key", "k#.pem")),
		     PW_OK, "%s", err.msg);
	first = printed();
	config_release(&config);
	cr_assert_eq(parse(ENV(NULL), FLAGS("--config", file_with(first))), PW_OK, "%s", err.msg);
	second = printed();
	cr_assert_str_eq(first, second);
	cr_assert_str_eq(config.data, "/a dir;x");
	cr_assert_eq(config.retain_bytes, 3u << 20);
	cr_assert_eq(config.log_level, LOG_ERROR_);
	free(first);
	free(second);
}

Test(config, usage_names_every_exit_code_and_default)
{
	char *text = NULL;
	size_t size;
	FILE *f = open_memstream(&text, &size);

	config_usage(f);
	fclose(f);
	cr_assert_not_null(strstr(text, "--checkpoint-seconds N"));
	cr_assert_not_null(strstr(text, "(default 127.0.0.1:8470)"));
	cr_assert_not_null(strstr(text, "0 done, 1 failed, 2 wrong usage, 5 --verify found damage"));
	free(text);
}
