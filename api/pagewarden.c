/* pagewarden: the command line of pagewardend. */
#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

#include "api/cli.h"
#include "api/operation_params.h"

#define BIT(o) (UINT64_C(1) << (o))
static enum cli_exit help(struct cli *c);
static enum cli_exit completion(struct cli *c);

static const struct command {
	const char *name, *arguments, *help;
	int min, max;     /* arguments */
	uint64_t options; /* beyond the global ones */
	enum cli_exit (*run)(struct cli *c);
	enum { REMOTE, LOCAL } place; /* LOCAL: needs no server */
} commands[] = {
	{ "hosts", "[HOST]", "the hosts, or one of them", 0, 1, BIT(OPTION_LIMIT), cli_hosts, REMOTE },
	{ "pools", "[POOL]", "the shared pools, or one of them", 0, 1, BIT(OPTION_LIMIT), cli_pools, REMOTE },
	{ "vms", "[VM]", "the VMs, or one of them", 0, 1,
	  BIT(OPTION_HOST) | BIT(OPTION_STATE) | BIT(OPTION_ARCH) | BIT(OPTION_LIMIT), cli_vms, REMOTE },
	{ "gfns", "VM", "a VM's memory map", 1, 1, BIT(OPTION_GFN) | BIT(OPTION_COUNT_) | BIT(OPTION_LIMIT), cli_gfns,
	  REMOTE },
	{ "frames", "[HOST]", "the bound frames of a host (--pool: of one of its pools), or of a shared pool", 0, 1,
	  BIT(OPTION_POOL) | BIT(OPTION_PFN) | BIT(OPTION_COUNT_) | BIT(OPTION_LIMIT), cli_frames, REMOTE },
	{ "who-owns", "HOST[/POOL] PFN", "whose frame is this?", 2, 2, 0, cli_who_owns, REMOTE },
	{ "history", "VM GFN", "what happened to a page, newest first", 2, 2, BIT(OPTION_COUNT_) | BIT(OPTION_LIMIT),
	  cli_history, REMOTE },
	{ "vcpu", "VM N", "what the host may see of a vCPU, and why not the rest (pkvm)", 2, 2, 0, cli_vcpu, REMOTE },
	{ "digests", "VM", "digests of a VM's memory map, for each GiB", 1, 1,
	  BIT(OPTION_GFN) | BIT(OPTION_COUNT_) | BIT(OPTION_LIMIT), cli_digests, REMOTE },
	{ "operations", "OPERATION | VM KIND",
	  "show an operation; or ask for one of a VM (kinds: pagewarden help operations)", 1, 2,
	  BIT(OPTION_YES) | BIT(OPTION_PARAMS) | BIT(OPTION_WAIT), cli_operations, REMOTE },
	{ "cancel", "OPERATION", "cancel a pending operation", 1, 1, 0, cli_cancel, REMOTE },
	{ "unknown", "", "VMs that hosts have and the ledger does not own", 0, 0, BIT(OPTION_HOST) | BIT(OPTION_LIMIT),
	  cli_unknown, REMOTE },
	{ "adopt", "VM", "an unknown VM: its host tries again to make it the ledger's", 1, 1,
	  BIT(OPTION_HOST) | BIT(OPTION_WAIT), cli_adopt, REMOTE },
	{ "end", "VM", "an unknown VM: its host ends the guest", 1, 1,
	  BIT(OPTION_HOST) | BIT(OPTION_YES) | BIT(OPTION_WAIT), cli_end, REMOTE },
	{ "plug", "VM SLOT BASE_GFN PAGES", "ask for a memory slot more: its host makes it", 4, 4, BIT(OPTION_WAIT),
	  cli_plug, REMOTE },
	{ "unplug", "VM SLOT", "ask for a memory slot less: its host empties it first", 2, 2,
	  BIT(OPTION_YES) | BIT(OPTION_WAIT), cli_unplug, REMOTE },
	{ "lifecycle", "VM EVENT",
	  "start, init_start, init_done, init_abort or terminate: facts, for who runs the hardware", 2, 2,
	  BIT(OPTION_YES) | BIT(OPTION_FORCE) | BIT(OPTION_BOOT_ID) | BIT(OPTION_EPOCH), cli_lifecycle, REMOTE },
	{ "delete", "VM [SLOT]", "forget a VM, or one of its slots (what runs: operations VM terminate, or unplug)", 1,
	  2, BIT(OPTION_YES) | BIT(OPTION_FORCE) | BIT(OPTION_BOOT_ID) | BIT(OPTION_EPOCH), cli_delete, REMOTE },
	{ "events", "", "what changed, oldest first", 0, 0, BIT(OPTION_AFTER) | BIT(OPTION_FOLLOW) | BIT(OPTION_LIMIT),
	  cli_events, REMOTE },
	{ "violations", "", "refused and illegal transitions, newest first", 0, 0,
	  BIT(OPTION_AFTER) | BIT(OPTION_HOST) | BIT(OPTION_VM) | BIT(OPTION_LIMIT), cli_violations, REMOTE },
	{ "tokens", "[create ROLE NAME | delete TOKEN]", "the tokens; a new one's secret is shown once", 0, 3,
	  BIT(OPTION_YES) | BIT(OPTION_HOST) | BIT(OPTION_LIMIT), cli_tokens, REMOTE },
	{ "fence", "HOST", "this host is powered off: release all that its VMs have", 1, 1,
	  BIT(OPTION_YES) | BIT(OPTION_FORCE), cli_fence, REMOTE },
	{ "quarantine", "HOST [add PFN | release PFN]", "frames that are never handed out", 1, 3,
	  BIT(OPTION_YES) | BIT(OPTION_POOL) | BIT(OPTION_COUNT_) | BIT(OPTION_REASON) | BIT(OPTION_LIMIT),
	  cli_quarantine, REMOTE },
	{ "summary", "", "the fleet in numbers", 0, 0, 0, cli_summary, REMOTE },
	{ "backup", "NAME", "copy the server's data into DATA/backups/NAME", 1, 1, 0, cli_backup, REMOTE },
	{ "verify", "", "verify the journal's hash chain and the tables' checksum", 0, 0, 0, cli_verify, REMOTE },
	{ "replay", "FILE...", "recorded scenarios of any architecture, against its model", 1, INT_MAX, 0, cli_replay,
	  LOCAL },
	{ "measure", "snp|tdx", "the launch digest that a guest will have", 1, 1,
	  BIT(OPTION_OVMF) | BIT(OPTION_VCPUS) | BIT(OPTION_VCPU_TYPE) | BIT(OPTION_FEATURES) | BIT(OPTION_VMM) |
		  BIT(OPTION_KERNEL) | BIT(OPTION_INITRD) | BIT(OPTION_CMDLINE) | BIT(OPTION_TDVF),
	  cli_measure, LOCAL },
	{ "completion", "bash|zsh", "completion for a shell", 1, 1, 0, completion, LOCAL },
	{ "help", "[COMMAND]", "this text, or a command's", 0, 1, 0, help, LOCAL },
};

static const struct option_text {
	const char *name, *value, *help;
} option_texts[] = {
#define PW_TEXT_(option, name, value, help) [option] = { name, value, help },
	CLI_OPTIONS(PW_TEXT_)
#undef PW_TEXT_
};

static bool is_global(int o)
{
	return o <= OPTION_JSON || o == OPTION_HELP;
}

static const struct command *find_command(const char *name)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(commands); i++)
		if (strcmp(commands[i].name, name) == 0)
			return &commands[i];
	return NULL;
}

static void print_option(int o)
{
	const struct option_text *t = &option_texts[o];
	char left[40];

	snprintf(left, sizeof left, "--%s%s%s", t->name, t->value ? " " : "", t->value ? t->value : "");
	printf("  %-20s  %s\n", left, t->help);
}

/* Each kind of operation with its parameters. */
static void print_kinds(void)
{
	puts("\nKinds, and what --params may hold (* must):");
	for (int k = 0; k < OPERATION_KIND_COUNT; k++) {
		printf("  %s\n", operation_kind_name((enum operation_kind)k));
		for (const struct operation_param *p = operation_params; p->name; p++)
			if ((int)p->kind == k)
				printf("    %c %-13s  %s: %s\n", p->need == JSON_REQUIRED ? '*' : ' ', p->name, p->help,
				       param_type_text(p->type));
	}
}

static void print_command_help(const struct command *cmd)
{
	printf("pagewarden %s %s\n  %s\n", cmd->name, cmd->arguments, cmd->help);
	for (int o = 0; o < CLI_OPTION_COUNT; o++)
		if (cmd->options & BIT(o))
			print_option(o);
	if (cmd->run == cli_operations)
		print_kinds();
}

static void print_help(void)
{
	static const struct {
		int code;
		const char *text;
	} exits[] = {
#define PW_TEXT_(name, code, text) { code, text },
		CLI_EXITS(PW_TEXT_)
#undef PW_TEXT_
	};

	puts("usage: pagewarden [OPTION...] COMMAND [ARGUMENT...]\n\nCommands:");
	for (size_t i = 0; i < PW_ARRAY_LEN(commands); i++)
		printf("  %-11s %-31s  %s\n", commands[i].name, commands[i].arguments, commands[i].help);
	puts("\nA HOST or VM is given by its id, the beginning of its id (4 characters or more), or its name, in this order.\n"
	     "What destroys or frees (fence, delete, end, tokens delete, quarantine release ...) takes a full id or an exact\n"
	     "name, and asks on a terminal; elsewhere it needs --yes. Numbers are decimal or 0x. What a request may ask for is\n"
	     "limited by the server: pagewardend --print-limits.");
	puts("\nOptions:");
	for (int o = 0; o < CLI_OPTION_COUNT; o++)
		if (is_global(o))
			print_option(o);
	puts("\nOptions of commands (pagewarden help COMMAND says which):");
	for (int o = 0; o < CLI_OPTION_COUNT; o++)
		if (!is_global(o))
			print_option(o);
	puts("\nOn a terminal tables are aligned; elsewhere they are tab-separated, without titles.\n\nExit codes:");
	for (size_t i = 0; i < PW_ARRAY_LEN(exits); i++)
		printf("  %d  %s\n", exits[i].code, exits[i].text);
}

static enum cli_exit help(struct cli *c)
{
	const struct command *cmd;

	if (!c->arg_count) {
		print_help();
		return CLI_DONE;
	}
	cmd = find_command(c->args[0]);
	if (!cmd)
		return cli_usage("there is no command \"%s\"", c->args[0]);
	print_command_help(cmd);
	return CLI_DONE;
}

static void print_words(const struct command *cmd)
{
	for (int o = 0; o < CLI_OPTION_COUNT; o++)
		if (is_global(o) || (cmd && cmd->options & BIT(o)))
			printf(" --%s", option_texts[o].name);
}

/* The first arguments of some commands are names that the server knows. */
static void print_bash(void)
{
	puts("_pagewarden() {\n\tlocal cur=${COMP_WORDS[COMP_CWORD]} cmd= w i words=\n"
	     "\tfor ((i = 1; i < COMP_CWORD; i++)); do\n\t\tcase ${COMP_WORDS[i]} in");
	fputs("\t\t--url|--token|--token-file|--ca|--cert|--key) ((i++)) ;;\n\t\t-*) ;;\n"
	      "\t\t*) cmd=${COMP_WORDS[i]}; break ;;\n\t\tesac\n\tdone\n\tcase $cmd in\n",
	      stdout);
	for (size_t i = 0; i < PW_ARRAY_LEN(commands); i++) {
		printf("\t%s) words=\"", commands[i].name);
		print_words(&commands[i]);
		fputs("\" ;;\n", stdout);
	}
	fputs("\t*) words=\"", stdout);
	for (size_t i = 0; i < PW_ARRAY_LEN(commands); i++)
		printf(" %s", commands[i].name);
	print_words(NULL);
	puts("\" ;;\n\tesac\n\tif [[ $cur != -* ]]; then\n\t\tcase $cmd in\n"
	     "\t\tvms|gfns|history|vcpu|digests|operations|plug|unplug|lifecycle|delete) words=$(pagewarden vms 2>/dev/null | cut -f1,2) ;;\n"
	     "\t\tadopt|end) words=$(pagewarden unknown 2>/dev/null | cut -f1) ;;\n"
	     "\t\thosts|frames|who-owns|fence|quarantine) words=$(pagewarden hosts 2>/dev/null | cut -f1,2) ;;\n"
	     "\t\treplay) COMPREPLY=($(compgen -f -- \"$cur\")); return ;;\n"
	     "\t\tmeasure) words=\"snp tdx\" ;;\n\t\tcompletion) words=\"bash zsh\" ;;\n\t\ttokens) words=\"create delete\" ;;\n\t\tesac\n\tfi\n"
	     "\tCOMPREPLY=($(compgen -W \"$words\" -- \"$cur\"))\n}\ncomplete -F _pagewarden pagewarden");
}

static enum cli_exit completion(struct cli *c)
{
	bool zsh = strcmp(c->args[0], "zsh") == 0;

	if (!zsh && strcmp(c->args[0], "bash") != 0)
		return cli_usage("completion knows bash and zsh, not \"%s\"", c->args[0]);
	if (zsh)
		puts("#compdef pagewarden\nautoload -U +X bashcompinit && bashcompinit");
	print_bash();
	return CLI_DONE;
}

/* Options may stand before and after the command's name. */
static enum cli_exit parse(struct cli *c, int argc, char **argv)
{
	struct option options[CLI_OPTION_COUNT + 1] = { { 0 } };
	int which;

	for (int o = 0; o < CLI_OPTION_COUNT; o++)
		options[o] = (struct option){ option_texts[o].name,
					      option_texts[o].value ? required_argument : no_argument, NULL, 256 + o };
	opterr = 0;
	while ((which = getopt_long(argc, argv, ":h", options, NULL)) != -1) {
		if (which == '?')
			return cli_usage("there is no option \"%s\"", argv[optind - 1]);
		if (which == ':')
			return cli_usage("%s needs a value", argv[optind - 1]);
		c->option[which == 'h' ? OPTION_HELP : which - 256] = optarg ? optarg : "";
	}
	c->args = argv + optind;
	c->arg_count = argc - optind;
	return CLI_DONE;
}

static enum cli_exit check(const struct cli *c, const struct command *cmd)
{
	if (c->arg_count < cmd->min || c->arg_count > cmd->max)
		return cli_usage("usage: pagewarden %s %s", cmd->name, cmd->arguments);
	for (int o = 0; o < CLI_OPTION_COUNT; o++)
		if (c->option[o] && !is_global(o) && !(cmd->options & BIT(o)))
			return cli_usage("%s has no option --%s", cmd->name, option_texts[o].name);
	return CLI_DONE;
}

static const char *setting(const struct cli *c, enum cli_option o, const char *variable)
{
	const char *value = c->option[o] ? c->option[o] : getenv(variable);

	return value && *value ? value : NULL;
}

/* The first line of the file. */
static enum cli_exit read_token(const char *file, char *out, size_t size)
{
	FILE *f = fopen(file, "re");
	bool ok;

	if (!f)
		return cli_usage("the token file %s cannot be read: %s", file, strerror(errno));
	ok = fgets(out, (int)size, f);
	fclose(f);
	out[ok ? strcspn(out, "\r\n") : 0] = '\0';
	return out[0] ? CLI_DONE : cli_usage("the token file %s is empty", file);
}

static enum cli_exit connect_client(struct cli *c)
{
	struct timespec now;
	struct client_options o = { .url = setting(c, OPTION_URL, "PAGEWARDEN_URL"), .attempts = 3 };
	const char *file = setting(c, OPTION_TOKEN_FILE, "PAGEWARDEN_TOKEN_FILE");
	char token[512] = "";
	struct pw_err err = { PW_OK, "" };
	enum cli_exit code = CLI_DONE;

	o.token = setting(c, OPTION_TOKEN, "PAGEWARDEN_TOKEN");
	if (c->option[OPTION_TOKEN_FILE] || (file && !o.token)) {
		if (c->option[OPTION_TOKEN])
			return cli_usage("--token and --token-file exclude each other");
		code = read_token(file ? file : "", token, sizeof token);
		o.token = token;
	}
	if (!o.url)
		o.url = "http://127.0.0.1:8470";
	o.ca = c->option[OPTION_CA];
	o.cert = c->option[OPTION_CERT];
	o.key = c->option[OPTION_KEY];
	clock_gettime(CLOCK_MONOTONIC, &now);
	o.jitter_seed = (uint64_t)now.tv_nsec ^ (uint64_t)getpid() << 32;
	if (code == CLI_DONE && client_open(&o, &c->client, &err) != PW_OK)
		code = cli_usage("%s", err.msg);
	explicit_bzero(token, sizeof token);
	return code;
}

static enum cli_exit run(int argc, char **argv)
{
	struct cli c = { .terminal = isatty(STDOUT_FILENO) };
	enum cli_exit code = parse(&c, argc, argv);
	const struct command *cmd;

	if (code != CLI_DONE)
		return code;
	if (!c.arg_count) {
		if (!c.option[OPTION_HELP])
			return cli_usage("which command?");
		print_help();
		return CLI_DONE;
	}
	cmd = find_command(c.args[0]);
	if (!cmd)
		return cli_usage("there is no command \"%s\"", c.args[0]);
	if (c.option[OPTION_HELP]) {
		print_command_help(cmd);
		return CLI_DONE;
	}
	c.args++;
	c.arg_count--;
	c.json = c.option[OPTION_JSON];
	code = check(&c, cmd);
	if (code == CLI_DONE && cmd->place == REMOTE)
		code = connect_client(&c);
	if (code == CLI_DONE)
		code = cmd->run(&c);
	client_close(c.client);
	if ((fflush(stdout) != 0 || ferror(stdout)) && code == CLI_DONE)
		code = CLI_REFUSED;
	return code;
}

int main(int argc, char **argv)
{
	return (int)run(argc, argv);
}
