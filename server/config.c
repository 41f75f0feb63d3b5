#include "server/config.h"

#include <errno.h>
#include <ini.h>
#include <stdlib.h>
#include <string.h>

#include "server/log.h"

#define SECTION    "pagewardend"
#define ENV_PREFIX "PAGEWARDEN_"
#define NO_LIMIT   UINT64_MAX
#define VALUE_MAX  160 /* a line of the file has 199 bytes */

/* An ACTION is only known on the command line, and takes no argument; FILE is read before everything else. */
enum kind { KIND_FILE, KIND_TEXT, KIND_OPTIONAL, KIND_NUMBER, KIND_BYTES, KIND_LEVEL, KIND_ACTION };

/* A limit is an option with a unit. The order is that of --help, --print-config and docs/limits.md. */
static const struct option {
	const char *name, *arg, *help;
	enum kind kind;
	size_t at; /* in struct config */
	const char *absent;
	uint64_t min, max;
	const char *unit; /* of a limit: what it counts, as in "17 connections" */
} options[] = {
#define AT(field) offsetof(struct config, field)
#define TEXT(name, arg, field, absent, help)                              \
	{                                                                 \
		name, arg, help, KIND_TEXT, AT(field), absent, 0, 0, NULL \
	}
#define OPTIONAL(name, field, help)                                          \
	{                                                                    \
		name, "FILE", help, KIND_OPTIONAL, AT(field), "", 0, 0, NULL \
	}
#define LIMIT(name, field, absent, min, max, unit, help)                        \
	{                                                                       \
		name, "N", help, KIND_NUMBER, AT(field), absent, min, max, unit \
	}
#define BYTES(name, field, absent, min, help)                                              \
	{                                                                                  \
		name, "BYTES", help, KIND_BYTES, AT(field), absent, min, NO_LIMIT, "bytes" \
	}
#define ACTION(name, field, help)                                          \
	{                                                                  \
		name, NULL, help, KIND_ACTION, AT(field), NULL, 0, 0, NULL \
	}
	{ "config", "FILE", "read options from FILE: lines NAME = VALUE under [" SECTION "]", KIND_FILE, 0, NULL, 0, 0,
	  NULL },
	TEXT("data", "DIR", data, "./pagewarden-data", "where the ledger lives; made if it is not there"),
	TEXT("listen", "ADDR:PORT", listen, "127.0.0.1:8470",
	     "like 127.0.0.1:8470 or [::1]:8470; port 0: any free one"),
	OPTIONAL("tls-cert", tls_cert, "PEM certificate chain; needed to listen beyond this machine"),
	OPTIONAL("tls-key", tls_key, "PEM private key of that certificate"),
	OPTIONAL("tls-client-ca", tls_client_ca, "PEM authorities: clients must show a certificate of theirs"),
	{ "log-level", "LEVEL", "error, warning, info or debug", KIND_LEVEL, AT(log_level), "info", 0, 0, NULL },

	/* Threads and connections. */
	LIMIT("threads", threads, "2", 1, 256, "threads", "HTTP threads"),
	LIMIT("connections", connections, "1024", 1, 100000, "connections", "connections at a time, at most"),
	LIMIT("writer-ms", writer_ms, "5", 1, 1000, "milliseconds",
	      "changes hold the ledger's state for so long at a time; then others and readers have their turn"),
	LIMIT("batch-work", batch_work, "16777216", 65536, 1000000000, "steps",
	      "work of an atomic batch, which is decided in one piece (a step: one table or run of pages looked at)"),
	LIMIT("wake-rate", wake_rate, "10000", 100, 1000000, "long polls a second",
	      "long polls that have news are woken so fast at most: agents first, then feeds"),
	LIMIT("address-connections", address_connections, "0", 0, 100000, "connections",
	      "of them from one address, at most; 0: three quarters of them, which is also the most"),
	LIMIT("reserve-connections", reserve_connections, "64", 1, 100000, "connections",
	      "beyond them, for /healthz, admins and agents"),
	LIMIT("head-seconds", head_seconds, "10", 1, 3600, "seconds", "a request's head must be here within"),
	LIMIT("body-seconds", body_seconds, "60", 1, 3600, "seconds", "and then its body"),
	LIMIT("answer-seconds", answer_seconds, "60", 1, 3600, "seconds", "an answer must be taken within"),
	LIMIT("idle-seconds", idle_seconds, "120", 1, 86400, "seconds", "a connection may be idle between requests"),
	BYTES("head-bytes", head_bytes, "32K", 4096, "memory for a request's head, for each connection"),

	/* Bodies. */
	BYTES("body-bytes", body_bytes, "1M", 1024, "a request's body, at most"),
	BYTES("agent-body-bytes", agent_body_bytes, "16M", 1024, "an agent's request's body, at most"),
	BYTES("bodies-bytes", bodies_bytes, "256M", 65536, "the bodies of all requests together, at most"),
	BYTES("decoded-bytes", decoded_bytes, "256M", 65536, "the values of one body when it is decoded, at most"),

	/* Long reads: history, feeds that are far behind, violations. */
	LIMIT("read-threads", read_threads, "2", 1, 64, "threads", "threads for long reads"),
	LIMIT("read-queue", read_queue, "64", 1, 100000, "long reads",
	      "long reads that wait for a thread, at most; one a token"),
	BYTES("feed-bytes", feed_bytes, "16M", 0,
	      "of the newest events are kept in memory: who follows them reads no disk"),
	BYTES("event-bytes", event_bytes, "16K", 4096, "a larger event is told in brief, with a link to all of it"),
	BYTES("answer-bytes", answer_bytes, "1M", 4096,
	      "a list's answer ends behind the item that passes this: next_cursor goes on"),

	/* Hosts. */
	LIMIT("item-work", item_work, "1048576", 65536, 1u << 31, "steps",
	      "of work that one item of a request may take, beside some for each of its runs"),
	LIMIT("quarantine-ranges", quarantine_ranges, "65536", 1, 16777216, "ranges",
	      "ranges of frames that can be in quarantine in one pool: a host's own, or a shared one"),
	LIMIT("lease-seconds", lease_seconds, "15", 1, 3600, "seconds", "a host silent for longer is unreachable"),

	/* Operations. */
	LIMIT("host-operations", host_operations, "1000", 1, 1000000, "operations",
	      "unfinished operations of one host"),
	LIMIT("host-finished", host_finished, "1000", 1, 1000000, "operations",
	      "finished operations that are kept of one host; the oldest go first"),
	LIMIT("operations", operations, "100000", 2, 10000000, "operations",
	      "operations of all hosts; finished ones have half of it"),
	LIMIT("operation-hours", operation_hours, "24", 1, 8760, "hours", "keep a finished operation this long"),
	LIMIT("operation-bytes", operation_bytes, "4096", 64, 65536, "bytes", "parameters of one operation"),
	LIMIT("result-bytes", result_bytes, "8192", 512, 65536, "bytes", "the problem of one operation's result"),

	/* Pictures and stops. */
	LIMIT("checkpoint-seconds", checkpoint_seconds, "30", 1, 86400, "seconds",
	      "bring the readable tables up to date at most this often"),
	LIMIT("stop-seconds", stop_seconds, "10", 1, 600, "seconds",
	      "at a stop, wait so long for answers that are under way"),
	LIMIT("last-picture-seconds", last_picture_seconds, "2", 0, 600, "seconds",
	      "at a stop, then save the readable tables for so long; else the next start reads more journal"),
	LIMIT("picture-stale-seconds", picture_stale_seconds, "600", 1, 86400, "seconds",
	      "not ready once the readable tables could not be saved for so long"),

	/* Violations. */
	LIMIT("violation-repeat-seconds", violation_repeat_seconds, "60", 1, 3600, "seconds",
	      "the same refusal again within this time is counted with the first one"),
	LIMIT("violation-rate", violation_rate, "100", 1, 100000, "violations a second",
	      "new violations of a host (or token) that are recorded; what is more is counted"),
	LIMIT("violation-burst", violation_burst, "1000", 1, 1000000, "violations",
	      "new violations of a host (or token) that may come at once"),
	LIMIT("violation-recent", violation_recent, "1024", 1, 1000000, "violations",
	      "of each host (or token) that are remembered, to count their repeats"),

	/* What is kept. */
	LIMIT("retain-hours", retain_hours, "720", 0, 1000000, "hours", "keep the journal this long; 0: no bound"),
	BYTES("retain-bytes", retain_bytes, "8G", 0,
	      "and no more of it than this (K, M, G: 2^10, 2^20, 2^30); 0: no bound"),
	BYTES("memory-bytes", memory_bytes, "0", 0, "limit of the ledger's memory; 0: none"),

	ACTION("verify", verify, "check the journal's hash chain and the tables' checksum, report, exit"),
	ACTION("print-config", dump, "print the configuration as a file for --config, exit"),
	ACTION("print-limits", limits, "print every limit with its default and range as a Markdown table, exit"),
	ACTION("version", version, "print the version, exit"),
	ACTION("help", help, "print this, exit"),
#undef AT
#undef TEXT
#undef OPTIONAL
#undef LIMIT
#undef BYTES
#undef ACTION
};
#define OPTION_COUNT PW_ARRAY_LEN(options)

static void *member(struct config *c, const struct option *o)
{
	return (char *)c + o->at;
}

static const void *const_member(const struct config *c, const struct option *o)
{
	return (const char *)c + o->at;
}

static const struct option *option_named(const char *name, size_t len)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (strlen(options[i].name) == len && memcmp(options[i].name, name, len) == 0)
			return &options[i];
	return NULL;
}

/* --- Values --- */

static unsigned suffix_shift(const char *s)
{
	switch (*s) {
	case 'K': return 10;
	case 'M': return 20;
	case 'G': return 30;
	default: return 0;
	}
}

static bool parse_number(const struct option *o, const char *text, uint64_t *out)
{
	unsigned shift;
	uint64_t v;
	char *end;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	v = strtoull(text, &end, 10);
	if (errno)
		return false;
	shift = o->kind == KIND_BYTES ? suffix_shift(end) : 0;
	end += shift != 0;
	if (*end || v > UINT64_MAX >> shift)
		return false;
	*out = v << shift;
	return *out >= o->min && *out <= o->max;
}

/* What the file's syntax can say: no control characters, no blanks at the ends, no comment. */
static bool is_sayable(const char *s)
{
	size_t len = strlen(s);

	if (len > VALUE_MAX || *s == ';' || *s == ' ' || (len && s[len - 1] == ' ') || strstr(s, " ;"))
		return false;
	for (; *s; s++)
		if ((unsigned char)*s < ' ' || *s == 0x7f)
			return false;
	return true;
}

static enum pw_status set_text(struct config *c, const struct option *o, const char *text, struct pw_err *err)
{
	char **to = member(c, o), *copy;

	if (!*text && o->kind == KIND_TEXT)
		return pw_fail(err, PW_INVALID, "%s must not be empty", o->name);
	if (!is_sayable(text))
		return pw_fail(err, PW_INVALID,
			       "%s: at most %d characters, no control characters, blanks at the ends or \" ;\"",
			       o->name, VALUE_MAX);
	copy = *text ? strdup(text) : NULL;
	if (*text && !copy)
		return pw_fail(err, PW_NO_MEMORY, "no memory for the configuration");
	free(*to);
	*to = copy;
	return PW_OK;
}

static enum pw_status set_number(struct config *c, const struct option *o, const char *text, struct pw_err *err)
{
	uint64_t v;

	if (!parse_number(o, text, &v)) {
		if (o->kind == KIND_BYTES)
			return pw_fail(err, PW_INVALID, "%s: \"%s\" is not a number of bytes like 512M or 8G", o->name,
				       text);
		return pw_fail(err, PW_INVALID, "%s: \"%s\" is not a number from %" PRIu64 " to %" PRIu64, o->name,
			       text, o->min, o->max);
	}
	if (o->kind == KIND_BYTES)
		*(uint64_t *)member(c, o) = v;
	else
		*(unsigned *)member(c, o) = (unsigned)v;
	return PW_OK;
}

static enum pw_status set(struct config *c, const struct option *o, const char *text, struct pw_err *err)
{
	switch (o->kind) {
	case KIND_TEXT:
	case KIND_OPTIONAL: return set_text(c, o, text, err);
	case KIND_NUMBER:
	case KIND_BYTES: return set_number(c, o, text, err);
	case KIND_LEVEL:
		if (log_level_from_name(text, member(c, o)))
			return PW_OK;
		return pw_fail(err, PW_INVALID, "%s: \"%s\" is none of error, warning, info, debug", o->name, text);
	case KIND_ACTION: *(bool *)member(c, o) = true; return PW_OK;
	case KIND_FILE: return PW_OK; /* has been read */
	}
	return PW_OK;
}

/* --- Sources, from the weakest to the strongest --- */

static enum pw_status set_defaults(struct config *c, struct pw_err *err)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].absent) {
			enum pw_status st = set(c, &options[i], options[i].absent, err);

			if (st != PW_OK)
				return st;
		}
	return PW_OK;
}

/* PAGEWARDEN_LOG_LEVEL for log-level. */
static const char *in_environment(const struct option *o, char *const *envp)
{
	const char *prefix = ENV_PREFIX;
	size_t skip = strlen(prefix), len = strlen(o->name);

	for (; envp && *envp; envp++) {
		const char *e = *envp;
		size_t i = 0;

		if (strncmp(e, prefix, skip) != 0)
			continue;
		e += skip;
		while (i < len && e[i] == (o->name[i] == '-' ? '_' : (char)(o->name[i] - 'a' + 'A')))
			i++;
		if (i == len && e[len] == '=')
			return e + len + 1;
	}
	return NULL;
}

static enum pw_status set_from_environment(struct config *c, char *const *envp, struct pw_err *err)
{
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		const char *text = options[i].kind == KIND_ACTION ? NULL : in_environment(&options[i], envp);

		if (text && set(c, &options[i], text, err) != PW_OK)
			return pw_wrap(err, "environment, " ENV_PREFIX "*");
	}
	return PW_OK;
}

struct reading {
	FILE *file;
	struct config *config;
	const char *path;
	unsigned line;
	bool seen[OPTION_COUNT];
	enum pw_status status;
	struct pw_err *err;
};

static int fail_line(struct reading *r, const char *what, const char *name)
{
	if (r->status == PW_OK)
		r->status =
			pw_fail(r->err, PW_INVALID, "%s:%u: %s%s%s", r->path, r->line, what, *name ? " " : "", name);
	return 0;
}

/* inih would take the rest of a long line for the next line. */
static char *next_line(char *text, int size, void *ctx)
{
	struct reading *r = ctx;

	if (r->status != PW_OK || !fgets(text, size, r->file))
		return NULL;
	r->line++;
	if (!strchr(text, '\n') && !feof(r->file)) {
		(void)fail_line(r, "the line is too long", "");
		return NULL;
	}
	return text;
}

static int take_pair(void *ctx, const char *section, const char *name, const char *value)
{
	struct reading *r = ctx;
	const struct option *o = option_named(name, strlen(name));

	if (r->status != PW_OK)
		return 0;
	if (strcmp(section, SECTION) != 0)
		return fail_line(r, "options belong under [" SECTION "]:", name);
	if (!o || o->kind == KIND_ACTION || o->kind == KIND_FILE)
		return fail_line(r, "unknown option", name);
	if (r->seen[o - options])
		return fail_line(r, "given twice:", name);
	r->seen[o - options] = true;
	r->status = set(r->config, o, value, r->err);
	if (r->status != PW_OK)
		r->status = pw_wrap(r->err, "%s:%u", r->path, r->line);
	return r->status == PW_OK;
}

static enum pw_status set_from_file(struct config *c, const char *path, struct pw_err *err)
{
	struct reading r = { .config = c, .path = path, .err = err };
	int bad_line;

	r.file = fopen(path, "re");
	if (!r.file)
		return pw_fail(err, PW_INVALID, "--config %s: %s", path, strerror(errno));
	bad_line = ini_parse_stream(next_line, &r, take_pair, &r);
	if (r.status == PW_OK && ferror(r.file))
		r.status = pw_fail(err, PW_INVALID, "--config %s: cannot be read", path);
	if (r.status == PW_OK && bad_line)
		r.status = pw_fail(err, PW_INVALID, "%s:%d: neither [section] nor NAME = VALUE", path, bad_line);
	fclose(r.file);
	return r.status;
}

/* One flag of the command line: "--name value", "--name=value" or "--name". Advances *i over what it used. */
static enum pw_status next_flag(int argc, char *const *argv, int *i, const struct option **o, const char **value,
				struct pw_err *err)
{
	const char *text = argv[(*i)++], *equals = strchr(text, '=');
	size_t len = equals ? (size_t)(equals - text) : strlen(text);

	*o = strcmp(text, "-h") == 0 ? option_named("help", 4) : NULL;
	if (!*o && len > 2 && strncmp(text, "--", 2) == 0)
		*o = option_named(text + 2, len - 2);
	if (!*o)
		return pw_fail(err, PW_INVALID, "unknown option %s; --help lists them", text);
	*value = equals ? equals + 1 : NULL;
	if ((*o)->kind == KIND_ACTION)
		return equals ? pw_fail(err, PW_INVALID, "--%s takes no value", (*o)->name) : PW_OK;
	if (!*value && *i < argc)
		*value = argv[(*i)++];
	return *value ? PW_OK : pw_fail(err, PW_INVALID, "--%s needs its %s", (*o)->name, (*o)->arg);
}

static enum pw_status set_from_flags(struct config *c, int argc, char *const *argv, struct pw_err *err)
{
	const struct option *o;
	const char *value;
	enum pw_status st = PW_OK;

	for (int i = 1; i < argc && st == PW_OK;) {
		st = next_flag(argc, argv, &i, &o, &value, err);
		if (st == PW_OK)
			st = set(c, o, value, err);
	}
	return st;
}

/* Checks the flags' syntax and finds what decides how the rest is read: --config, --help, --version. */
static enum pw_status look_ahead(int argc, char *const *argv, struct config *c, const char **file, struct pw_err *err)
{
	const struct option *o;
	const char *value;

	for (int i = 1; i < argc;) {
		enum pw_status st = next_flag(argc, argv, &i, &o, &value, err);

		if (st != PW_OK)
			return st;
		if (o->kind == KIND_FILE)
			*file = value;
		else if (o->kind == KIND_ACTION)
			*(bool *)member(c, o) = true;
	}
	return PW_OK;
}

enum pw_status config_parse(int argc, char *const *argv, char *const *envp, struct config *out, struct pw_err *err)
{
	const char *file = in_environment(&options[0], envp);
	struct config c = { 0 };
	enum pw_status st;

	st = set_defaults(&c, err);
	if (st == PW_OK)
		st = look_ahead(argc, argv, &c, &file, err);
	if (st == PW_OK && (c.help || c.version))
		goto out;
	if (st == PW_OK)
		st = set_from_environment(&c, envp, err);
	if (st == PW_OK && file && *file)
		st = set_from_file(&c, file, err);
	if (st == PW_OK)
		st = set_from_flags(&c, argc, argv, err);
out:
	if (st == PW_OK)
		*out = c;
	else
		config_release(&c);
	return st;
}

void config_release(struct config *c)
{
	for (size_t i = 0; i < OPTION_COUNT; i++)
		if (options[i].kind == KIND_TEXT || options[i].kind == KIND_OPTIONAL)
			free(*(char **)member(c, &options[i]));
	*c = (struct config){ 0 };
}

void config_usage(FILE *to)
{
	fputs("usage: pagewardend [OPTION...]\n\nThe fleet-wide ledger of confidential-VM memory.\n\n", to);
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		const struct option *o = &options[i];
		char flag[48];

		snprintf(flag, sizeof flag, "--%s %s", o->name, o->arg ? o->arg : "");
		fprintf(to, "  %-26s %s", flag, o->help);
		if (o->absent && *o->absent)
			fprintf(to, " (default %s)", o->absent);
		fputc('\n', to);
	}
	fputs("\nFlags win over the file, the file over the environment (" ENV_PREFIX
	      "LOG_LEVEL for log-level, and so on).\n"
	      "SIGTERM and SIGINT stop in order, a second SIGINT at once (the journal is safe at any moment); SIGHUP reads\n"
	      "log-level and the TLS certificate again.\n\n"
	      "Exit codes: 0 done, 1 failed, 2 wrong usage, 5 --verify found damage.\n",
	      to);
}

static const char *level_name(unsigned level)
{
#define TEXT_(name, text) [name] = text,
	static const char *const names[LOG_LEVEL_COUNT] = { LOG_LEVELS(TEXT_) };
#undef TEXT_
	return names[level];
}

static void print_option(const struct config *c, const struct option *o, FILE *to)
{
	const void *at = const_member(c, o);
	const char *text;

	switch (o->kind) {
	case KIND_FILE:
	case KIND_ACTION: return;
	case KIND_TEXT:
	case KIND_OPTIONAL:
		text = *(char *const *)at;
		if (text)
			fprintf(to, "%s = %s\n", o->name, text);
		return;
	case KIND_NUMBER: fprintf(to, "%s = %u\n", o->name, *(const unsigned *)at); return;
	case KIND_BYTES: fprintf(to, "%s = %" PRIu64 "\n", o->name, *(const uint64_t *)at); return;
	case KIND_LEVEL: fprintf(to, "%s = %s\n", o->name, level_name(*(const unsigned *)at)); return;
	}
}

void config_print(const struct config *c, FILE *to)
{
	fputs("[" SECTION "]\n", to);
	for (size_t i = 0; i < OPTION_COUNT; i++)
		print_option(c, &options[i], to);
}

struct config_limit config_limit(const struct config *c, const char *name)
{
	const struct option *o = option_named(name, strlen(name));
	const void *at = const_member(c, o);

	return (struct config_limit){
		.name = o->name,
		.unit = o->unit,
		.value = o->kind == KIND_BYTES ? *(const uint64_t *)at : *(const unsigned *)at,
	};
}

static void print_range(const struct option *o, FILE *to)
{
	if (o->max == NO_LIMIT)
		fprintf(to, "from %" PRIu64, o->min);
	else
		fprintf(to, "%" PRIu64 " to %" PRIu64, o->min, o->max);
}

void config_limits(FILE *to)
{
	fputs("| limit | default | range | unit | what it bounds |\n| --- | --- | --- | --- | --- |\n", to);
	for (size_t i = 0; i < OPTION_COUNT; i++) {
		const struct option *o = &options[i];

		if (!o->unit)
			continue;
		fprintf(to, "| `--%s` | %s | ", o->name, o->absent);
		print_range(o, to);
		fprintf(to, " | %s | %s |\n", o->unit, o->help);
	}
}
