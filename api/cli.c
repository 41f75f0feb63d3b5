#include "api/cli.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/text.h"
#include "engine/tree.h"

enum cli_exit cli_usage(const char *fmt, ...)
{
	va_list ap;

	fputs("pagewarden: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputs(" (see pagewarden help)\n", stderr);
	return CLI_USAGE;
}

enum cli_exit cli_no_memory(void)
{
	fputs("pagewarden: out of memory\n", stderr);
	return CLI_REFUSED;
}

bool cli_number(const char *what, const char *text, enum cli_range range, uint64_t *out)
{
	uint64_t end = range == CLI_PAGE ? TREE_PAGES : (uint64_t)1 << 63;
	bool hex = text[0] == '0' && text[1] == 'x';
	const char *digits = hex ? text + 2 : text;
	char *rest;

	errno = 0;
	*out = strtoull(digits, &rest, hex ? 16 : 10);
	if (strspn(digits, hex ? "0123456789abcdefABCDEF" : "0123456789") == strlen(digits) && *digits && !errno &&
	    *out < end)
		return true;
	cli_usage("%s \"%s\" is not a number below 2^%d", what, text, range == CLI_PAGE ? 40 : 63);
	return false;
}

void cli_path_set(struct cli_path *p, const char *fmt, ...)
{
	va_list ap;

	*p = (struct cli_path){ .has_query = false };
	va_start(ap, fmt);
	vsnprintf(p->text, sizeof p->text, fmt, ap);
	va_end(ap);
	p->has_query = strchr(p->text, '?');
}

void cli_path_query(struct cli_path *p, const char *name, const char *fmt, ...)
{
	size_t n = strlen(p->text);
	va_list ap;

	snprintf(p->text + n, sizeof p->text - n, "%c%s=", p->has_query ? '&' : '?', name);
	n = strlen(p->text);
	va_start(ap, fmt);
	vsnprintf(p->text + n, sizeof p->text - n, fmt, ap);
	va_end(ap);
	p->has_query = true;
}

bool cli_path_number(struct cli_path *p, const struct cli *c, enum cli_option o, enum cli_range range)
{
#define PW_NAME_(option, name, value, help) [option] = name,
	static const char *const names[] = { CLI_OPTIONS(PW_NAME_) };
#undef PW_NAME_
	uint64_t n;

	if (!c->option[o])
		return true;
	if (!cli_number(names[o], c->option[o], range, &n))
		return false;
	cli_path_query(p, names[o], "%" PRIu64, n);
	return true;
}

static uint64_t number_of(json_t *object, const char *name)
{
	return (uint64_t)json_integer_value(json_object_get(object, name));
}

static void report_run(json_t *run)
{
	const char *pool = json_string_value(json_object_get(run, "pool"));
	const char *vm = json_string_value(json_object_get(run, "vm"));

	fputs("  pool ", stderr);
	text_print(stderr, pool);
	fprintf(stderr, ", frame %" PRIu64 ", %" PRIu64 " pages", number_of(run, "pfn"), number_of(run, "count"));
	if (vm) {
		fputs(": VM ", stderr);
		text_print(stderr, vm);
		fprintf(stderr, " has them from GFN %" PRIu64 " on", number_of(run, "gfn"));
	}
	fputc('\n', stderr);
}

void cli_report_problem(json_t *problem)
{
	const char *detail = json_string_value(json_object_get(problem, "detail"));
	const char *type = json_string_value(json_object_get(problem, "type"));
	const char *id = json_string_value(json_object_get(problem, "request_id"));
	const char *flag = json_string_value(json_object_get(problem, "flag"));
	json_t *run, *oldest = json_object_get(problem, "oldest");
	size_t i;

	fputs("pagewarden: ", stderr);
	text_print(stderr, type && strncmp(type, "/problems/", 10) == 0 ? type + 10 : type);
	fputs(": ", stderr);
	text_print(stderr, detail);
	fputc('\n', stderr);
	json_array_foreach (json_object_get(problem, "conflicts"), i, run) {
		report_run(run);
	}
	json_array_foreach (json_object_get(problem, "frames"), i, run) {
		report_run(run);
	}
	if (json_object_get(problem, "conflict_frames"))
		fprintf(stderr, "  %" PRIu64 " frames in all\n", number_of(problem, "conflict_frames"));
	if (flag) {
		fputs("  the limit is the server's --", stderr);
		text_print(stderr, flag);
		fputs(" (pagewardend --print-limits lists them all)\n", stderr);
	}
	if (json_is_integer(oldest))
		fprintf(stderr, "  the oldest revision is %" PRIu64 "\n", number_of(problem, "oldest"));
	if (id) {
		fputs("  request ", stderr);
		text_print(stderr, id);
		fputc('\n', stderr);
	}
}

static enum cli_exit exit_of(enum pw_status st)
{
	switch (st) {
	case PW_OK: return CLI_DONE;
	case PW_NETWORK: return CLI_UNREACHABLE;
	case PW_NOT_FOUND: return CLI_NOT_FOUND;
	case PW_INVALID:
	case PW_CONFLICT:
	case PW_BUSY:
	case PW_DENIED:
	case PW_NO_MEMORY:
	case PW_STORAGE:
	case PW_UNKNOWN:
	case PW_BACKEND:
	case PW_STATUS_COUNT: break;
	}
	return CLI_REFUSED;
}

enum cli_exit cli_report(enum pw_status st, const struct pw_err *err)
{
	if (st != PW_OK) {
		fputs("pagewarden: ", stderr);
		text_print(stderr, err->msg);
		fputc('\n', stderr);
	}
	return exit_of(st);
}

enum cli_exit cli_call(struct cli *c, const char *method, const char *path, json_t *body, unsigned wait_s,
		       struct client_reply *reply)
{
	struct pw_err err = { PW_OK, "" };
	struct client_reply own = { 0 };
	struct client_reply *r = reply ? reply : &own;
	enum pw_status st = client_call(c->client, method, path, body, NULL, wait_s, r, &err);
	bool problem = st != PW_OK && json_object_get(r->json, "type");

	json_decref(body);
	if (problem) {
		cli_report_problem(r->json);
		if (c->json)
			cli_print_json(c, r->json);
	}
	if (!reply)
		client_reply_release(&own);
	return problem ? exit_of(st) : cli_report(st, &err);
}

struct listing {
	struct cli_table table;
	json_t *items; /* of --json */
	uint64_t left; /* how many more */
};

static bool list_item(void *ctx, json_t *item)
{
	struct listing *l = ctx;

	if (!l->items)
		cli_table_add(&l->table, item);
	else if (json_array_append(l->items, item) != 0)
		l->table.failed = true;
	return --l->left > 0 && !l->table.failed;
}

enum cli_exit cli_show_list(struct cli *c, const char *path, const struct cli_column *columns, size_t n)
{
	struct listing l = { .left = UINT64_MAX };
	struct pw_err err = { PW_OK, "" };
	enum cli_exit code;
	struct cli_path p;

	cli_path_set(&p, "%s", path);
	if (c->option[OPTION_LIMIT] && !cli_number("limit", c->option[OPTION_LIMIT], CLI_PAGE, &l.left))
		return CLI_USAGE;
	if (!l.left)
		return cli_usage("limit is at least 1");
	cli_path_query(&p, "limit", "%" PRIu64, l.left < 1000 ? l.left : 1000);
	cli_table_init(&l.table, columns, n);
	l.items = c->json ? json_array() : NULL;
	code = cli_report(client_list(c->client, p.text, list_item, &l, &err), &err);
	if (code == CLI_DONE && !c->json) {
		code = cli_table_print(&l.table, c->terminal, c->terminal);
	} else if (code == CLI_DONE) {
		json_t *answer = json_pack("{s:O}", "items", l.items);

		if (answer && !l.table.failed)
			cli_print_json(c, answer);
		else
			code = cli_no_memory();
		json_decref(answer);
	}
	json_decref(l.items);
	cli_table_release(&l.table);
	return code;
}

enum cli_exit cli_show(struct cli *c, const char *path)
{
	struct client_reply r;
	enum cli_exit code = cli_call(c, "GET", path, NULL, 0, &r);

	if (code == CLI_DONE && c->json)
		cli_print_json(c, r.json);
	else if (code == CLI_DONE)
		cli_print_members(c, r.json);
	client_reply_release(&r);
	return code;
}
