/* api/cli.h
 *
 * What the commands of pagewarden (the command line) share: options, exit codes, one call to the server, tables.
 */
#ifndef PW_API_CLI_H
#define PW_API_CLI_H
#include "api/client.h"

#define CLI_EXITS(X)                                                                                           \
	X(CLI_DONE, 0, "done")                                                                                 \
	X(CLI_REFUSED, 1,                                                                                      \
	  "the server refused, its problem is printed; or the answer was not yes. replay: a step differs")     \
	X(CLI_USAGE, 2, "the command line is wrong, or a name fits several. replay: a file is not understood") \
	X(CLI_UNREACHABLE, 3, "the server could not be reached")                                               \
	X(CLI_NOT_FOUND, 4, "there is no such host, VM, operation ...")                                        \
	X(CLI_BROKEN, 5, "verify: the journal is damaged or was tampered with")
#define PW_ENUM_(name, code, text) name = code,
enum cli_exit { CLI_EXITS(PW_ENUM_) };
#undef PW_ENUM_

/* Name, what its value is (NULL: a flag without one), help. The global ones come first, up to OPTION_JSON. */
#define CLI_OPTIONS(X)                                                                                       \
	X(OPTION_URL, "url", "URL", "the server (PAGEWARDEN_URL; default http://127.0.0.1:8470)")            \
	X(OPTION_TOKEN, "token", "SECRET", "bearer token (PAGEWARDEN_TOKEN); others can see a command line") \
	X(OPTION_TOKEN_FILE, "token-file", "FILE", "file that holds the token (PAGEWARDEN_TOKEN_FILE)")      \
	X(OPTION_CA, "ca", "FILE", "PEM file of the authorities to trust")                                   \
	X(OPTION_CERT, "cert", "FILE", "PEM file of this client's certificate")                              \
	X(OPTION_KEY, "key", "FILE", "PEM file of its private key")                                          \
	X(OPTION_JSON, "json", NULL, "print the API's JSON")                                                 \
	X(OPTION_GFN, "gfn", "G", "from this guest frame number on")                                         \
	X(OPTION_PFN, "pfn", "P", "from this physical frame number on")                                      \
	X(OPTION_COUNT_, "count", "N", "so many pages")                                                      \
	X(OPTION_POOL, "pool", "POOL", "frames of this pool")                                                \
	X(OPTION_HOST, "host", "HOST", "of this host alone")                                                 \
	X(OPTION_VM, "vm", "VM", "of this VM alone")                                                         \
	X(OPTION_STATE, "state", "STATE", "in this state alone")                                             \
	X(OPTION_ARCH, "arch", "ARCH", "of this architecture alone")                                         \
	X(OPTION_AFTER, "after", "R", "what came after this revision")                                       \
	X(OPTION_FOLLOW, "follow", NULL, "keep waiting for more")                                            \
	X(OPTION_LIMIT, "limit", "N", "at most so many lines")                                               \
	X(OPTION_PARAMS, "params", "JSON", "parameters of the operation, an object")                         \
	X(OPTION_WAIT, "wait", NULL, "until the operation has ended")                                        \
	X(OPTION_YES, "yes", NULL, "what destroys or frees is meant: do not ask")                            \
	X(OPTION_REASON, "reason", "TEXT", "why the frames are put into quarantine")                         \
	X(OPTION_FORCE, "force", NULL, "the host is powered off: end what its hardware had")                 \
	X(OPTION_BOOT_ID, "boot-id", "ID", "speak as the host's holder: its boot id, with --epoch")          \
	X(OPTION_EPOCH, "epoch", "N", "and its epoch")                                                       \
	X(OPTION_OVMF, "ovmf", "FILE", "measure snp: the firmware's image")                                  \
	X(OPTION_VCPUS, "vcpus", "N", "measure snp: how many (default 1)")                                   \
	X(OPTION_VCPU_TYPE, "vcpu-type", "TYPE", "measure snp: QEMU's name (default EPYC-v4)")               \
	X(OPTION_FEATURES, "features", "X", "measure snp: SEV_FEATURES (default 1)")                         \
	X(OPTION_VMM, "vmm", "VMM", "measure snp: qemu (default), qemu-old (KVM before 6.9) or ec2")         \
	X(OPTION_KERNEL, "kernel", "FILE", "measure snp: a kernel that is booted directly")                  \
	X(OPTION_INITRD, "initrd", "FILE", "measure snp: its initrd")                                        \
	X(OPTION_CMDLINE, "cmdline", "TEXT", "measure snp: its command line")                                \
	X(OPTION_TDVF, "tdvf", "FILE", "measure tdx: the firmware's image")                                  \
	X(OPTION_HELP, "help", NULL, "this text")
#define PW_ENUM_(name, option, value, help) name,
enum cli_option { CLI_OPTIONS(PW_ENUM_) CLI_OPTION_COUNT };
#undef PW_ENUM_

struct cli {
	struct client *client;
	const char *option[CLI_OPTION_COUNT]; /* the value ("" of a flag), or NULL */
	char **args;                          /* after the command's name */
	int arg_count;
	bool json, terminal;
};

/* The commands, which api/pagewarden.c lists. Each checks its arguments beyond their number. */
enum cli_exit cli_hosts(struct cli *c);
enum cli_exit cli_pools(struct cli *c);
enum cli_exit cli_vms(struct cli *c);
enum cli_exit cli_gfns(struct cli *c);
enum cli_exit cli_vcpu(struct cli *c);
enum cli_exit cli_frames(struct cli *c);
enum cli_exit cli_who_owns(struct cli *c);
enum cli_exit cli_history(struct cli *c);
enum cli_exit cli_digests(struct cli *c);
enum cli_exit cli_events(struct cli *c);
enum cli_exit cli_violations(struct cli *c);
enum cli_exit cli_summary(struct cli *c);
enum cli_exit cli_verify(struct cli *c);
enum cli_exit cli_operations(struct cli *c);
enum cli_exit cli_cancel(struct cli *c);
enum cli_exit cli_unknown(struct cli *c);
enum cli_exit cli_adopt(struct cli *c);
enum cli_exit cli_end(struct cli *c);
enum cli_exit cli_plug(struct cli *c);
enum cli_exit cli_unplug(struct cli *c);
enum cli_exit cli_lifecycle(struct cli *c);
enum cli_exit cli_delete(struct cli *c);
enum cli_exit cli_tokens(struct cli *c);
enum cli_exit cli_fence(struct cli *c);
enum cli_exit cli_quarantine(struct cli *c);
enum cli_exit cli_backup(struct cli *c);
enum cli_exit cli_replay(struct cli *c);  /* needs no server */
enum cli_exit cli_measure(struct cli *c); /* nor does this */

/* Prints "pagewarden: ..." to stderr; returns CLI_USAGE. */
enum cli_exit cli_usage(const char *fmt, ...) PW_PRINTF(1, 2);
enum cli_exit cli_no_memory(void);                                     /* CLI_REFUSED */
enum cli_exit cli_report(enum pw_status st, const struct pw_err *err); /* of a call; prints what is not PW_OK */

/* Numbers: decimal or 0x, below 2^40 (PAGE) or 2^63 (REVISION). False: not one, and said so. */
enum cli_range { CLI_PAGE, CLI_REVISION };
bool cli_number(const char *what, const char *text, enum cli_range range, uint64_t *out) PW_MUST_CHECK;

/* A path, perhaps with a query already, then a query that grows. Text that goes in is a UUID, a number or a checked
 * name: nothing needs escapes. */
struct cli_path {
	char text[512];
	bool has_query;
};
void cli_path_set(struct cli_path *p, const char *fmt, ...) PW_PRINTF(2, 3);
void cli_path_query(struct cli_path *p, const char *name, const char *fmt, ...) PW_PRINTF(3, 4);
/* Adds the numeric option as a query member if it was given. False: it is no number. */
bool cli_path_number(struct cli_path *p, const struct cli *c, enum cli_option o, enum cli_range range) PW_MUST_CHECK;

/*
 * The id of a host ("hosts"), VM ("vms") or token ("tokens") that is given by its id, else the beginning of its id (4
 * characters or more), else its name. Anything but CLI_DONE has been reported.
 */
enum cli_exit cli_resolve(struct cli *c, const char *collection, const char *text, char id[PW_UUID_TEXT]) PW_MUST_CHECK;
/* The same by the full id or the exact name alone, for what must not meet the wrong one. */
enum cli_exit cli_resolve_exactly(struct cli *c, const char *collection, const char *text,
				  char id[PW_UUID_TEXT]) PW_MUST_CHECK;

/*
 * What destroys or frees is asked for on a terminal, unless --yes was given: cli_may_confirm comes first (CLI_USAGE:
 * there is no terminal), cli_confirm says what is about to be done, once that is known (CLI_REFUSED: the answer was not
 * yes).
 */
enum cli_exit cli_may_confirm(const struct cli *c, const char *command) PW_MUST_CHECK;
enum cli_exit cli_confirm(const struct cli *c, const char *fmt, ...) PW_PRINTF(2, 3) PW_MUST_CHECK;

/*
 * One call. What is not CLI_DONE has been reported, with the conflicts that the problem names. The reply, the caller's
 * to release, may be NULL. body is consumed.
 */
enum cli_exit cli_call(struct cli *c, const char *method, const char *path, json_t *body, unsigned wait_s,
		       struct client_reply *reply) PW_MUST_CHECK;
void cli_report_problem(json_t *problem); /* to stderr */

/* A table: its columns say where in an item each cell comes from: "name", "pages.shared"; "*" is all the rest. */
struct cli_column {
	const char *title, *path;
};
struct cli_table {
	const struct cli_column *columns;
	size_t column_count;
	char ***rows;
	size_t row_count, room;
	bool failed; /* no memory: table_print says so */
};
void cli_table_init(struct cli_table *t, const struct cli_column *columns, size_t n);
void cli_table_add(struct cli_table *t, json_t *item);
/* Aligned, with titles, on a terminal; else tab-separated without. Empties the table. */
enum cli_exit cli_table_print(struct cli_table *t, bool terminal, bool titles);
void cli_table_release(struct cli_table *t);

void cli_print_json(const struct cli *c, json_t *v);
void cli_print_json_line(json_t *v);                         /* on one line, on a terminal too */
void cli_print_members(const struct cli *c, json_t *object); /* one a line, nested ones as a.b */
/* Lists (all pages of it, or --limit), or shows one object. */
enum cli_exit cli_show_list(struct cli *c, const char *path, const struct cli_column *columns, size_t n);
enum cli_exit cli_show(struct cli *c, const char *path);

#endif
