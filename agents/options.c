#include "agents/options.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>

#include "agents/machine.h"

#define RESYNC_SECONDS_MAX 604800 /* a week */

enum option_kind { OPTION_TEXT, OPTION_NUMBER, OPTION_SWITCH, OPTION_LEVEL, OPTION_UUID };
struct option_row {
	const char *flag, *argument; /* argument NULL: a switch */
	enum option_kind kind;
	size_t at;
	const char *env, *help;
};

#define AT(member) offsetof(struct agent_options, member)
/* clang-format off */
static const struct option_row table[] = {
	{ "--server", "URL", OPTION_TEXT, AT(server), "PAGEWARDEN_SERVER", "the server (default http://127.0.0.1:8470)" },
	{ "--token-file", "FILE", OPTION_TEXT, AT(token_file), "PAGEWARDEN_TOKEN_FILE", "a file with the agent's token (else $PAGEWARDEN_TOKEN)" },
	{ "--ca", "FILE", OPTION_TEXT, AT(ca), NULL, "certificates (PEM) that the server's must descend from" },
	{ "--cert", "FILE", OPTION_TEXT, AT(cert), NULL, "the agent's own certificate, for mutual TLS" },
	{ "--key", "FILE", OPTION_TEXT, AT(key), NULL, "its private key" },
	{ "--host", "UUID", OPTION_UUID, AT(host), "PAGEWARDEN_HOST", "this host's id (default: made once, kept in DIR/host-id)" },
	{ "--name", "TEXT", OPTION_TEXT, AT(name), NULL, "this host's name (default: the machine's)" },
	{ "--backend", "KIND", OPTION_TEXT, AT(backend), NULL, "emulated (default) or kvm" },
	{ "--arch", "ARCH", OPTION_TEXT, AT(arch), NULL, "which emulated machine (below; default pef)" },
	{ "--frames", "N", OPTION_NUMBER, AT(frames), NULL, "pages in the local pool (default: the backend's)" },
	{ "--base-pfn", "N", OPTION_NUMBER, AT(base_pfn), NULL, "its first frame (default 0)" },
	{ "--boot-id", "TEXT", OPTION_TEXT, AT(boot_id), NULL, "which boot this is (default: the kernel's; of an emulated machine, kept with its state)" },
	{ "--state", "DIR", OPTION_TEXT, AT(state), NULL, "where identity, batch numbers and the emulated machine are kept" },
	{ "--fault", "SPEC", OPTION_TEXT, AT(fault), NULL, "make hardware fail: OP:N[:fail|:crash|:crash-after|:delay=MS], e.g. page_in:3; frame:N (emulated): the N-th frame asked back is kept" },
	{ "--guest-script", "FILE", OPTION_TEXT, AT(guest_script), NULL, "what emulated guests do (cca), line by line as FILE grows: VM ripas GFN COUNT EMPTY|RAM [keep] [accept=PAGES]" },
	{ "--load", "SPEC", OPTION_TEXT, AT(load), NULL, "make load: vms=N,pages=N,rate=N,seed=N (each may be left out)" },
	{ "--load-token-file", "FILE", OPTION_TEXT, AT(load_token_file), NULL, "an operator's token for --load (default: the agent's own)" },
	{ "--resync-seconds", "N", OPTION_NUMBER, AT(resync_seconds), NULL, "compare each VM with the ledger at least so often, spread out; 0: only when something changed (default 300)" },
	{ "--seed", "N", OPTION_NUMBER, AT(seed), NULL, "seed of what is random in the emulated machine" },
	{ "--once", NULL, OPTION_SWITCH, AT(once), NULL, "register, resync, and exit" },
	{ "--dump", NULL, OPTION_SWITCH, AT(dump), NULL, "print what the emulated machine in DIR has, and exit (beside its agent, if one runs)" },
	{ "--metrics", "FILE", OPTION_TEXT, AT(metrics), NULL, "keep what hardware has done in FILE, in Prometheus's text format (for a textfile collector)" },
	{ "--log-level", "LEVEL", OPTION_LEVEL, AT(log_level), "PAGEWARDEN_LOG_LEVEL", "error, warning, info (default) or debug" },
	{ "--help", NULL, OPTION_SWITCH, AT(help), NULL, "print this and exit" },
	{ "--version", NULL, OPTION_SWITCH, AT(version), NULL, "print the version and exit" },
};
/* clang-format on */

static bool to_number(const char *text, uint64_t *out)
{
	char *end;
	unsigned long long v;

	if (text[0] < '0' || text[0] > '9')
		return false;
	errno = 0;
	v = strtoull(text, &end, 0);
	if (errno || *end)
		return false;
	*out = v;
	return true;
}

static enum pw_status put(const struct option_row *row, const char *value, struct agent_options *o, struct pw_err *err)
{
	void *at = (char *)o + row->at;

	switch (row->kind) {
	case OPTION_TEXT: memcpy(at, &value, sizeof value); return PW_OK;
	case OPTION_SWITCH: memcpy(at, &(bool){ true }, sizeof(bool)); return PW_OK;
	case OPTION_NUMBER:
		if (to_number(value, at))
			return PW_OK;
		return pw_fail(err, PW_INVALID, "%s: '%s' is not a number from 0 to 2^64 - 1", row->flag, value);
	case OPTION_LEVEL:
		if (alog_level_from_name(value, at))
			return PW_OK;
		return pw_fail(err, PW_INVALID, "%s: '%s' is not a level", row->flag, value);
	case OPTION_UUID:
		memcpy(at, &value, sizeof value);
		if (pw_uuid_parse(value, strlen(value), &o->host_id))
			return PW_OK;
		return pw_fail(err, PW_INVALID, "%s: '%s' is not a UUID in lower case", row->flag, value);
	}
	return pw_fail(err, PW_INVALID, "%s", row->flag);
}

/* The row whose flag is arg or, before '=', begins it; *value is what follows the '='. */
static const struct option_row *find(const char *arg, const char **value)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(table); i++) {
		size_t n = strlen(table[i].flag);

		if (strncmp(arg, table[i].flag, n) != 0 || (arg[n] != '\0' && arg[n] != '='))
			continue;
		*value = arg[n] == '=' ? arg + n + 1 : NULL;
		return &table[i];
	}
	return NULL;
}

static enum pw_status parse_environment(char *(*env)(const char *), struct agent_options *o, struct pw_err *err)
{
	o->token = env("PAGEWARDEN_TOKEN");
	for (size_t i = 0; i < PW_ARRAY_LEN(table); i++) {
		const char *v = table[i].env ? env(table[i].env) : NULL;
		enum pw_status st;

		if (!v || !*v)
			continue;
		st = put(&table[i], v, o, err);
		if (st != PW_OK)
			return pw_wrap(err, "from %s", table[i].env);
	}
	return PW_OK;
}

enum pw_status options_parse(int argc, char *const *argv, char *(*env)(const char *), struct agent_options *out,
			     struct pw_err *err)
{
	struct agent_options o = {
		.server = "http://127.0.0.1:8470", .backend = "emulated", .resync_seconds = 300, .log_level = ALOG_INFO
	};
	enum pw_status st = parse_environment(env, &o, err);

	for (int i = 1; i < argc && st == PW_OK; i++) {
		const char *value = NULL;
		const struct option_row *row = find(argv[i], &value);

		if (!row)
			return pw_fail(err, PW_INVALID, "'%s' is not a flag; --help lists them", argv[i]);
		if (row->kind == OPTION_SWITCH && value)
			return pw_fail(err, PW_INVALID, "%s takes no value", row->flag);
		if (row->kind != OPTION_SWITCH && !value) {
			if (i + 1 >= argc)
				return pw_fail(err, PW_INVALID, "%s needs %s", row->flag, row->argument);
			value = argv[++i];
		}
		st = put(row, value, &o, err);
	}
	if (st != PW_OK)
		return st;
	if (o.resync_seconds > RESYNC_SECONDS_MAX)
		return pw_fail(err, PW_INVALID, "--resync-seconds is at most %d", RESYNC_SECONDS_MAX);
	if (!o.cert != !o.key)
		return pw_fail(err, PW_INVALID, "--cert and --key come together");
	*out = o;
	return PW_OK;
}

void options_usage(FILE *to)
{
	fputs("usage: pagewarden-agent [flags]\nRuns a host's confidential-VM memory under the fleet's ledger.\n\n",
	      to);
	for (size_t i = 0; i < PW_ARRAY_LEN(table); i++) {
		char left[40];

		snprintf(left, sizeof left, "%s %s", table[i].flag, table[i].argument ? table[i].argument : "");
		fprintf(to, "  %-24s %s", left, table[i].help);
		fprintf(to, table[i].env ? " [$%s]\n" : "%s\n", table[i].env ? table[i].env : "");
	}
	fputs("\nemulated machines (--arch):\n", to);
	for (const struct backend_kind *k = backend_kinds; k->backend; k++)
		if (k->machine)
			fprintf(to, "  %-6s %s\n", k->arch, k->machine->help);
	fputs("\nexit codes:\n", to);
#define LINE_(name, code, text) fprintf(to, "  %d  %s\n", code, text);
	AGENT_EXITS(LINE_)
#undef LINE_
}
