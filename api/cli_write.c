#include <stdio.h>
#include <string.h>

#include "api/cli.h"
#include "api/codec.h"

/* Prints what a call answered, one member a line or as JSON. */
static enum cli_exit call_and_print(struct cli *c, const char *method, const char *path, json_t *body)
{
	struct client_reply r;
	enum cli_exit code;

	if (!body)
		return cli_no_memory();
	code = cli_call(c, method, path, body, 0, &r);
	if (code == CLI_DONE && c->json && r.json)
		cli_print_json(c, r.json);
	else if (code == CLI_DONE)
		cli_print_members(c, r.json);
	client_reply_release(&r);
	return code;
}

static bool is_uuid(const char *text)
{
	struct pw_uuid id;

	return pw_uuid_parse(text, strlen(text), &id);
}

/* Operations */

static bool has_ended(json_t *operation)
{
	const char *text = json_string_value(json_object_get(operation, "state"));
	enum operation_state state;

	return text && operation_state_from_name(text, &state) && state != OPERATION_PENDING &&
	       state != OPERATION_RUNNING;
}

static enum cli_exit print_operation(struct cli *c, json_t *operation)
{
	const char *state = json_string_value(json_object_get(operation, "state"));
	json_t *problem = json_object_get(operation, "problem");

	if (c->json)
		cli_print_json(c, operation);
	else
		cli_print_members(c, operation);
	if (!c->option[OPTION_WAIT] || !state || strcmp(state, "succeeded") == 0)
		return CLI_DONE;
	if (problem)
		cli_report_problem(problem);
	else
		fprintf(stderr, "pagewarden: the operation was %s\n", state);
	return CLI_REFUSED;
}

static enum cli_exit show_operation(struct cli *c, const char *id)
{
	unsigned wait_s = c->option[OPTION_WAIT] ? 25 : 0;
	struct client_reply r;
	struct cli_path path;
	enum cli_exit code;

	cli_path_set(&path, "/v1/operations/%s", id);
	if (wait_s)
		cli_path_query(&path, "wait", "%u", wait_s);
	code = cli_call(c, "GET", path.text, NULL, wait_s, &r);
	while (code == CLI_DONE && wait_s && !has_ended(r.json)) {
		client_reply_release(&r);
		code = cli_call(c, "GET", path.text, NULL, wait_s, &r);
	}
	if (code == CLI_DONE)
		code = print_operation(c, r.json);
	client_reply_release(&r);
	return code;
}

static enum cli_exit start_operation(struct cli *c, const char *vm, const char *kind, json_t *params)
{
	json_t *body = json_pack("{s:s, s:O*}", "kind", kind, "params", params);
	char operation[PW_UUID_TEXT] = "";
	struct client_reply r;
	struct cli_path path;
	enum cli_exit code;
	const char *id;

	if (!body)
		return cli_no_memory();
	cli_path_set(&path, "/v1/vms/%s/operations", vm);
	code = cli_call(c, "POST", path.text, body, 0, &r);
	id = json_string_value(json_object_get(r.json, "id"));
	if (code == CLI_DONE && id && is_uuid(id))
		memcpy(operation, id, sizeof operation);
	if (code == CLI_DONE && (!c->option[OPTION_WAIT] || !operation[0])) {
		if (c->json)
			cli_print_json(c, r.json);
		else
			cli_print_members(c, r.json);
	}
	client_reply_release(&r);
	return code == CLI_DONE && c->option[OPTION_WAIT] && operation[0] ? show_operation(c, operation) : code;
}

static bool is_destructive(enum operation_kind kind)
{
	return kind == OPERATION_TERMINATE || kind == OPERATION_ABORT || kind == OPERATION_UNPLUG ||
	       kind == OPERATION_END;
}

/* Finds the VM. What destroys or frees must name it exactly, and be meant; `what` says what becomes of it. */
static enum cli_exit find_vm(struct cli *c, const char *what, char vm[PW_UUID_TEXT])
{
	enum cli_exit code = what ? cli_may_confirm(c, what) : CLI_DONE;

	if (code != CLI_DONE)
		return code;
	if (!what)
		return cli_resolve(c, "vms", c->args[0], vm);
	code = cli_resolve_exactly(c, "vms", c->args[0], vm);
	return code == CLI_DONE ? cli_confirm(c, "%s: VM %s", what, vm) : code;
}

enum cli_exit cli_operations(struct cli *c)
{
	const char *text = c->option[OPTION_PARAMS];
	enum operation_kind kind;
	char vm[PW_UUID_TEXT];
	json_t *params = NULL;
	enum cli_exit code;

	if (c->arg_count == 1 && text)
		return cli_usage("--params goes with a VM and a KIND");
	if (c->arg_count == 1 && !is_uuid(c->args[0]))
		return cli_usage("\"%s\" is not the id of an operation", c->args[0]);
	if (c->arg_count == 1)
		return show_operation(c, c->args[0]);
	if (!operation_kind_from_name(c->args[1], &kind))
		return cli_usage("\"%s\" is not a kind of operation", c->args[1]);
	if (text) {
		params = json_loads(text, JSON_REJECT_DUPLICATES, NULL);
		if (!json_is_object(params)) {
			json_decref(params);
			return cli_usage("--params is not a JSON object");
		}
	}
	code = find_vm(c, is_destructive(kind) ? c->args[1] : NULL, vm);
	if (code == CLI_DONE)
		code = start_operation(c, vm, c->args[1], params);
	json_decref(params);
	return code;
}

enum cli_exit cli_cancel(struct cli *c)
{
	struct cli_path path;

	if (!is_uuid(c->args[0]))
		return cli_usage("\"%s\" is not the id of an operation", c->args[0]);
	cli_path_set(&path, "/v1/operations/%s", c->args[0]);
	return cli_call(c, "DELETE", path.text, NULL, 0, NULL);
}

/* Unknown VMs */

enum cli_exit cli_unknown(struct cli *c)
{
	static const struct cli_column columns[] = {
		{ "VM", "vm" },       { "HOST", "host" },     { "ARCH", "arch" },
		{ "STATE", "state" }, { "PAGES", "pages" },   { "DISPUTED", "disputed_pages" },
		{ "SINCE", "since" }, { "REASON", "reason" }, { "DETAIL", "detail" },
	};
	char host[PW_UUID_TEXT];
	struct cli_path path;
	enum cli_exit code;

	cli_path_set(&path, "/v1/unknown-vms");
	if (c->option[OPTION_HOST]) {
		code = cli_resolve(c, "hosts", c->option[OPTION_HOST], host);
		if (code != CLI_DONE)
			return code;
		cli_path_query(&path, "host", "%s", host);
	}
	return cli_show_list(c, path.text, columns, PW_ARRAY_LEN(columns));
}

/* The ledger may have no such VM: an id is taken as it is. */
static enum cli_exit decide(struct cli *c, const char *kind, const char *what)
{
	char vm[PW_UUID_TEXT], host[PW_UUID_TEXT];
	json_t *params = NULL;
	enum cli_exit code = find_vm(c, what, vm);

	if (code == CLI_DONE && c->option[OPTION_HOST]) {
		code = cli_resolve_exactly(c, "hosts", c->option[OPTION_HOST], host);
		params = code == CLI_DONE ? json_pack("{s:s}", "host", host) : NULL;
		if (code == CLI_DONE && !params)
			return cli_no_memory();
	}
	if (code == CLI_DONE)
		code = start_operation(c, vm, kind, params);
	json_decref(params);
	return code;
}

enum cli_exit cli_adopt(struct cli *c)
{
	return decide(c, "adopt", NULL);
}

enum cli_exit cli_end(struct cli *c)
{
	return decide(c, "end", "end (the guest's memory is lost)");
}

/* VMs */

static enum cli_exit ask_for_slot(struct cli *c, const char *kind, const char *what, json_t *params)
{
	char vm[PW_UUID_TEXT];
	enum cli_exit code = params ? find_vm(c, what, vm) : cli_no_memory();

	if (code == CLI_DONE)
		code = start_operation(c, vm, kind, params);
	json_decref(params);
	return code;
}

enum cli_exit cli_plug(struct cli *c)
{
	uint64_t slot, base, pages;

	if (!cli_number("SLOT", c->args[1], CLI_PAGE, &slot) || !cli_number("BASE_GFN", c->args[2], CLI_PAGE, &base) ||
	    !cli_number("PAGES", c->args[3], CLI_PAGE, &pages))
		return CLI_USAGE;
	return ask_for_slot(c, "plug", NULL,
			    json_pack("{s:I, s:I, s:I}", "slot", (json_int_t)slot, "base_gfn", (json_int_t)base,
				      "pages", (json_int_t)pages));
}

enum cli_exit cli_unplug(struct cli *c)
{
	uint64_t slot;

	if (!cli_number("SLOT", c->args[1], CLI_PAGE, &slot))
		return CLI_USAGE;
	return ask_for_slot(c, "unplug", "unplug a slot", json_pack("{s:I}", "slot", (json_int_t)slot));
}

/* --boot-id and --epoch, which come together; the epoch is 0 without. The boot id needs no escapes. */
static enum cli_exit read_holder(const struct cli *c, uint64_t *epoch)
{
	const char *boot_id = c->option[OPTION_BOOT_ID], *text = c->option[OPTION_EPOCH];
	size_t n = boot_id ? strspn(boot_id, "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789._-") : 0;

	*epoch = 0;
	if (!boot_id != !text)
		return cli_usage("--boot-id and --epoch come together or not at all");
	if (!boot_id)
		return CLI_DONE;
	if (n == 0 || n > 64 || boot_id[n])
		return cli_usage("\"%s\" is not a boot id of 1 to 64 letters, digits, '.', '_' and '-'", boot_id);
	return cli_number("epoch", text, CLI_REVISION, epoch) ? CLI_DONE : CLI_USAGE;
}

enum cli_exit cli_lifecycle(struct cli *c)
{
	bool ends = strcmp(c->args[1], "terminate") == 0 || strcmp(c->args[1], "init_abort") == 0;
	const char *boot_id = c->option[OPTION_BOOT_ID];
	char vm[PW_UUID_TEXT];
	struct cli_path path;
	uint64_t epoch;
	enum cli_exit code = read_holder(c, &epoch);
	json_t *body;

	if (code == CLI_DONE)
		code = find_vm(c, ends ? c->args[1] : NULL, vm);
	if (code != CLI_DONE)
		return code;
	body = json_pack("{s:s, s:s*}", "event", c->args[1], "boot_id", boot_id);
	if (body && boot_id)
		json_object_set_new(body, "epoch", json_integer((json_int_t)epoch));
	if (body && c->option[OPTION_FORCE])
		json_object_set_new(body, "force", json_true());
	cli_path_set(&path, "/v1/vms/%s/lifecycle", vm);
	return call_and_print(c, "POST", path.text, body);
}

enum cli_exit cli_delete(struct cli *c)
{
	char vm[PW_UUID_TEXT];
	struct cli_path path;
	uint64_t epoch, slot = 0;
	enum cli_exit code = read_holder(c, &epoch);

	if (code == CLI_DONE && c->arg_count == 1 && c->option[OPTION_BOOT_ID])
		return cli_usage("--boot-id goes with a SLOT: a VM that hardware has is ended by operation terminate");
	if (code == CLI_DONE && c->arg_count == 2 && !cli_number("SLOT", c->args[1], CLI_PAGE, &slot))
		return CLI_USAGE;
	if (code == CLI_DONE)
		code = find_vm(c, c->arg_count == 1 ? "delete" : "delete a slot", vm);
	if (code != CLI_DONE)
		return code;
	if (c->arg_count == 1)
		cli_path_set(&path, "/v1/vms/%s", vm);
	else
		cli_path_set(&path, "/v1/vms/%s/slots/%" PRIu64, vm, slot);
	if (c->option[OPTION_BOOT_ID]) {
		cli_path_query(&path, "boot_id", "%s", c->option[OPTION_BOOT_ID]);
		cli_path_query(&path, "epoch", "%" PRIu64, epoch);
	}
	if (c->option[OPTION_FORCE])
		cli_path_query(&path, "force", "true");
	return cli_call(c, "DELETE", path.text, NULL, 0, NULL);
}

/* Tokens */

static enum cli_exit create_token(struct cli *c)
{
	char host[PW_UUID_TEXT];
	enum cli_exit code;
	enum role role;
	bool agent;

	if (c->arg_count != 3 || !role_from_name(c->args[1], &role))
		return cli_usage("tokens create needs a role (admin, operator, viewer or agent) and a name");
	agent = role == ROLE_AGENT;
	if (agent != !!c->option[OPTION_HOST])
		return cli_usage("--host goes with role agent, and with no other");
	if (!agent)
		return call_and_print(c, "POST", "/v1/tokens",
				      json_pack("{s:s, s:s}", "role", c->args[1], "name", c->args[2]));
	/* A host's token may well be made before the host registers, by its id. */
	code = cli_resolve_exactly(c, "hosts", c->option[OPTION_HOST], host);
	if (code != CLI_DONE)
		return code;
	return call_and_print(c, "POST", "/v1/tokens",
			      json_pack("{s:s, s:s, s:s}", "role", c->args[1], "name", c->args[2], "host", host));
}

static enum cli_exit delete_token(struct cli *c)
{
	char id[PW_UUID_TEXT];
	struct cli_path path;
	enum cli_exit code;

	if (c->arg_count != 2)
		return cli_usage("tokens delete needs the id or the name of a token");
	code = cli_may_confirm(c, "tokens delete");
	if (code == CLI_DONE)
		code = cli_resolve_exactly(c, "tokens", c->args[1], id);
	if (code == CLI_DONE)
		code = cli_confirm(c, "delete token %s: who uses it is shut out", id);
	if (code != CLI_DONE)
		return code;
	cli_path_set(&path, "/v1/tokens/%s", id);
	return cli_call(c, "DELETE", path.text, NULL, 0, NULL);
}

enum cli_exit cli_tokens(struct cli *c)
{
	static const struct cli_column columns[] = {
		{ "ID", "id" }, { "ROLE", "role" }, { "NAME", "name" }, { "HOST", "host" }, { "CREATED", "created" },
	};

	if (!c->arg_count)
		return cli_show_list(c, "/v1/tokens", columns, PW_ARRAY_LEN(columns));
	if (strcmp(c->args[0], "create") == 0)
		return create_token(c);
	if (strcmp(c->args[0], "delete") == 0)
		return delete_token(c);
	return cli_usage("tokens knows create and delete, not \"%s\"", c->args[0]);
}

/* Hosts */

enum cli_exit cli_fence(struct cli *c)
{
	char host[PW_UUID_TEXT];
	enum cli_exit code = cli_may_confirm(c, "fence");
	struct cli_path path;

	if (code == CLI_DONE)
		code = cli_resolve_exactly(c, "hosts", c->args[0], host);
	if (code == CLI_DONE)
		code = cli_confirm(c, "fence host %s: all that its VMs have is released", host);
	if (code != CLI_DONE)
		return code;
	cli_path_set(&path, "/v1/hosts/%s/fence", host);
	return call_and_print(c, "POST", path.text, json_pack("{s:b}", "force", !!c->option[OPTION_FORCE]));
}

/* quarantine HOST add|release PFN */
static enum cli_exit change_quarantine(struct cli *c)
{
	char host[PW_UUID_TEXT];
	const char *pool = c->option[OPTION_POOL] ? c->option[OPTION_POOL] : "local";
	bool add = strcmp(c->args[1], "add") == 0;
	uint64_t pfn, count = 1;
	struct cli_path path;
	enum cli_exit code;

	if ((!add && strcmp(c->args[1], "release") != 0) || c->arg_count != 3)
		return cli_usage("quarantine HOST is followed by add PFN, release PFN or nothing");
	if (!codec_is_pool_name(pool))
		return cli_usage("\"%s\" is not the name of a pool", pool);
	if (!cli_number("PFN", c->args[2], CLI_PAGE, &pfn) ||
	    (c->option[OPTION_COUNT_] && !cli_number("count", c->option[OPTION_COUNT_], CLI_PAGE, &count)))
		return CLI_USAGE;
	code = add ? CLI_DONE : cli_may_confirm(c, "quarantine release");
	if (code == CLI_DONE)
		code = cli_resolve_exactly(c, "hosts", c->args[0], host);
	if (code == CLI_DONE && !add)
		code = cli_confirm(
			c, "release %" PRIu64 " frames of pool %s from %" PRIu64 " on, for host %s, to be handed out",
			count, pool, pfn, host);
	if (code != CLI_DONE)
		return code;
	cli_path_set(&path, "/v1/hosts/%s/quarantine%s", host, add ? "" : "/release");
	return call_and_print(c, "POST", path.text,
			      json_pack("{s:[{s:s, s:I, s:I, s:s}]}", "items", "pool", pool, "pfn", (json_int_t)pfn,
					"count", (json_int_t)count, "reason",
					c->option[OPTION_REASON] ? c->option[OPTION_REASON] : "by hand"));
}

enum cli_exit cli_quarantine(struct cli *c)
{
	static const struct cli_column columns[] = {
		{ "POOL", "pool" }, { "PFN", "pfn" }, { "PAGES", "count" }, { "REASON", "reason" }, { "TIME", "time" },
	};
	char host[PW_UUID_TEXT];
	struct cli_path path;
	enum cli_exit code;

	if (c->arg_count > 1)
		return change_quarantine(c);
	code = cli_resolve(c, "hosts", c->args[0], host);
	if (code != CLI_DONE)
		return code;
	cli_path_set(&path, "/v1/hosts/%s/quarantine", host);
	return cli_show_list(c, path.text, columns, PW_ARRAY_LEN(columns));
}
