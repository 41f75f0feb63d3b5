#include <stdio.h>
#include <string.h>
#include <strings.h>

#include "api/cli.h"
#include "api/codec.h"
#include "api/text.h"

#define SHOW(c, path, columns) cli_show_list(c, path, columns, PW_ARRAY_LEN(columns))

static const struct cli_column host_columns[] = {
	{ "ID", "id" },       { "NAME", "name" },           { "STATE", "state" },
	{ "EPOCH", "epoch" }, { "FRAMES", "frames_total" }, { "BOUND", "frames_bound" },
	{ "VMS", "vms" },     { "LAST SEEN", "last_seen" },
};

enum cli_exit cli_hosts(struct cli *c)
{
	char id[PW_UUID_TEXT];
	struct cli_path path;
	enum cli_exit code;

	if (!c->arg_count)
		return SHOW(c, "/v1/hosts", host_columns);
	code = cli_resolve(c, "hosts", c->args[0], id);
	if (code != CLI_DONE)
		return code;
	cli_path_set(&path, "/v1/hosts/%s", id);
	return cli_show(c, path.text);
}

static const struct cli_column pool_columns[] = {
	{ "POOL", "pool" },          { "BASE", "base_pfn" },         { "FRAMES", "frames" },
	{ "BOUND", "frames_bound" }, { "PAGE SHIFT", "page_shift" }, { "HOSTS", "hosts" },
};

enum cli_exit cli_pools(struct cli *c)
{
	struct cli_path path;

	if (!c->arg_count)
		return SHOW(c, "/v1/pools", pool_columns);
	if (!codec_is_pool_name(c->args[0]))
		return cli_usage("\"%s\" is not the name of a pool", c->args[0]);
	cli_path_set(&path, "/v1/pools/%s", c->args[0]);
	return cli_show(c, path.text);
}

static const struct cli_column vm_columns[] = {
	{ "ID", "id" },
	{ "NAME", "name" },
	{ "HOST", "host" },
	{ "ARCH", "arch" },
	{ "STATE", "state" },
	{ "NORMAL", "pages.normal" },
	{ "RESIDENT", "pages.secure_resident" },
	{ "OUT", "pages.secure_out" },
	{ "SHARED", "pages.shared" },
};

static bool is_word(const char *text)
{
	return text[strspn(text, "abcdefghijklmnopqrstuvwxyz_0123456789")] == '\0';
}

static enum cli_exit add_words(const struct cli *c, struct cli_path *path)
{
	if (c->option[OPTION_STATE] && !is_word(c->option[OPTION_STATE]))
		return cli_usage("\"%s\" is no state", c->option[OPTION_STATE]);
	if (c->option[OPTION_ARCH] && !is_word(c->option[OPTION_ARCH]))
		return cli_usage("\"%s\" is no architecture", c->option[OPTION_ARCH]);
	if (c->option[OPTION_STATE])
		cli_path_query(path, "state", "%s", c->option[OPTION_STATE]);
	if (c->option[OPTION_ARCH])
		cli_path_query(path, "arch", "%s", c->option[OPTION_ARCH]);
	return CLI_DONE;
}

/* --host and --vm as query members. */
static enum cli_exit add_subjects(struct cli *c, struct cli_path *path)
{
	static const struct {
		enum cli_option option;
		const char *collection, *member;
	} subjects[] = { { OPTION_HOST, "hosts", "host" }, { OPTION_VM, "vms", "vm" } };
	char id[PW_UUID_TEXT];

	for (size_t i = 0; i < PW_ARRAY_LEN(subjects); i++) {
		const char *text = c->option[subjects[i].option];
		enum cli_exit code = text ? cli_resolve(c, subjects[i].collection, text, id) : CLI_DONE;

		if (code != CLI_DONE)
			return code;
		if (text)
			cli_path_query(path, subjects[i].member, "%s", id);
	}
	return CLI_DONE;
}

enum cli_exit cli_vms(struct cli *c)
{
	char id[PW_UUID_TEXT];
	struct cli_path path;
	enum cli_exit code;

	if (c->arg_count) {
		code = cli_resolve(c, "vms", c->args[0], id);
		if (code != CLI_DONE)
			return code;
		cli_path_set(&path, "/v1/vms/%s", id);
		return cli_show(c, path.text);
	}
	cli_path_set(&path, "/v1/vms");
	code = add_words(c, &path);
	if (code == CLI_DONE)
		code = add_subjects(c, &path);
	return code == CLI_DONE ? SHOW(c, path.text, vm_columns) : code;
}

/* first (--gfn or --pfn) and --count. The server takes a first without a count for one page; here it is all from there.
 */
static bool add_window(struct cli_path *path, const struct cli *c, enum cli_option first)
{
	uint64_t from = 0;

	if (!cli_path_number(path, c, first, CLI_PAGE) || !cli_path_number(path, c, OPTION_COUNT_, CLI_PAGE))
		return false;
	if (!c->option[first] || c->option[OPTION_COUNT_])
		return true;
	if (!cli_number("number", c->option[first], CLI_PAGE, &from))
		return false;
	cli_path_query(path, "count", "%" PRIu64, TREE_PAGES - 1 - from + !!from);
	return true;
}

/* /v1/vms/{vm}/WHAT?gfn=&count= */
static enum cli_exit vm_path(struct cli *c, const char *what, struct cli_path *path)
{
	char id[PW_UUID_TEXT];
	enum cli_exit code = cli_resolve(c, "vms", c->args[0], id);

	if (code != CLI_DONE)
		return code;
	cli_path_set(path, "/v1/vms/%s/%s", id, what);
	return add_window(path, c, OPTION_GFN) ? CLI_DONE : CLI_USAGE;
}

enum cli_exit cli_gfns(struct cli *c)
{
	static const struct cli_column columns[] = {
		{ "GFN", "gfn" },
		{ "PAGES", "count" },
		{ "STATE", "state" },
		{ "RESIDENT", "resident" },
		{ "POOL", "frame.pool" },
		{ "PFN", "frame.pfn" },
		{ "ARCH STATE", "arch_state" },
	};
	struct cli_path path;
	enum cli_exit code = vm_path(c, "gfns", &path);

	return code == CLI_DONE ? SHOW(c, path.text, columns) : code;
}

enum cli_exit cli_digests(struct cli *c)
{
	static const struct cli_column columns[] = { { "GFN", "gfn" }, { "PAGES", "count" }, { "DIGEST", "digest" } };
	struct cli_path path;
	enum cli_exit code = vm_path(c, "digests", &path);

	return code == CLI_DONE ? SHOW(c, path.text, columns) : code;
}

enum cli_exit cli_history(struct cli *c)
{
	static const struct cli_column columns[] = {
		{ "REVISION", "revision" }, { "TIME", "time" }, { "TYPE", "type" },
		{ "ACTOR", "actor" },       { "WHAT", "*" },
	};
	struct cli_path path;
	enum cli_exit code;
	uint64_t gfn;

	if (!cli_number("GFN", c->args[1], CLI_PAGE, &gfn))
		return CLI_USAGE;
	code = vm_path(c, "history", &path);
	if (code != CLI_DONE)
		return code;
	cli_path_query(&path, "gfn", "%" PRIu64, gfn);
	return SHOW(c, path.text, columns);
}

static void print_vcpu_title(json_t *vcpu)
{
	const char *exit = json_string_value(json_object_get(vcpu, "exit"));
	const char *time = json_string_value(json_object_get(vcpu, "time"));

	if (exit && time) {
		fputs("At its last exit (", stdout);
		text_print(stdout, exit);
		fputs(", ", stdout);
		text_print(stdout, time);
		puts(") the host saw:");
	} else if (json_is_false(json_object_get(vcpu, "protected"))) {
		puts("The VM is not protected: nothing of its vCPUs is kept.");
	} else {
		puts("No exit was reported.");
	}
}

enum cli_exit cli_vcpu(struct cli *c)
{
	static const struct cli_column columns[] = {
		{ "ITEM", "name" }, { "VISIBLE", "visible" }, { "VALUE", "value" }, { "BITS", "bits" }, { "WHY", "why" }
	};
	char id[PW_UUID_TEXT];
	struct client_reply r;
	struct cli_table table;
	struct cli_path path;
	enum cli_exit code;
	json_t *item;
	uint64_t n;
	size_t i;

	if (!cli_number("vCPU", c->args[1], CLI_PAGE, &n))
		return CLI_USAGE;
	code = cli_resolve(c, "vms", c->args[0], id);
	if (code != CLI_DONE)
		return code;
	cli_path_set(&path, "/v1/vms/%s/vcpus/%" PRIu64, id, n);
	code = cli_call(c, "GET", path.text, NULL, 0, &r);
	if (code == CLI_DONE && c->json) {
		cli_print_json(c, r.json);
	} else if (code == CLI_DONE) {
		if (c->terminal)
			print_vcpu_title(r.json);
		cli_table_init(&table, columns, PW_ARRAY_LEN(columns));
		json_array_foreach (json_object_get(r.json, "items"), i, item) {
			cli_table_add(&table, item);
		}
		code = cli_table_print(&table, c->terminal, true);
		cli_table_release(&table);
	}
	client_reply_release(&r);
	return code;
}

static enum cli_exit frames_path(struct cli *c, struct cli_path *path)
{
	const char *pool = c->option[OPTION_POOL];
	char id[PW_UUID_TEXT];
	enum cli_exit code;

	if (pool && !codec_is_pool_name(pool))
		return cli_usage("\"%s\" is not the name of a pool", pool);
	if (!c->arg_count) {
		if (!pool)
			return cli_usage("frames needs a HOST or --pool");
		cli_path_set(path, "/v1/pools/%s/frames", pool);
	} else {
		code = cli_resolve(c, "hosts", c->args[0], id);
		if (code != CLI_DONE)
			return code;
		cli_path_set(path, "/v1/hosts/%s/frames", id);
		cli_path_query(path, "pool", "%s", pool ? pool : "local");
	}
	return add_window(path, c, OPTION_PFN) ? CLI_DONE : CLI_USAGE;
}

enum cli_exit cli_frames(struct cli *c)
{
	static const struct cli_column columns[] = {
		{ "PFN", "pfn" }, { "PAGES", "count" },           { "VM", "vm" },
		{ "GFN", "gfn" }, { "ARCH STATE", "arch_state" },
	};
	struct cli_path path;
	enum cli_exit code = frames_path(c, &path);

	return code == CLI_DONE ? SHOW(c, path.text, columns) : code;
}

/* Is the frame among a host's quarantined ones? */
struct frame_search {
	const char *pool;
	uint64_t pfn;
	bool found;
};

static bool search_frame(void *ctx, json_t *item)
{
	const char *pool = json_string_value(json_object_get(item, "pool"));
	uint64_t pfn = (uint64_t)json_integer_value(json_object_get(item, "pfn"));
	uint64_t count = (uint64_t)json_integer_value(json_object_get(item, "count"));
	struct frame_search *s = ctx;

	s->found = pool && strcmp(pool, s->pool) == 0 && s->pfn >= pfn && s->pfn - pfn < count;
	return !s->found;
}

static enum cli_exit print_owner(struct cli *c, const char *host, const struct frame_search *frame, json_t *run)
{
	const char *vm = json_string_value(json_object_get(run, "vm"));
	struct frame_search s = *frame;
	struct client_reply r = { 0 };
	struct cli_path path;
	struct pw_err err;

	if (!vm) {
		cli_path_set(&path, "/v1/hosts/%s/quarantine?limit=1000", host);
		if (client_list(c->client, path.text, search_frame, &s, &err) != PW_OK)
			s.found = false; /* it is not bound, which is what was asked */
		puts(s.found ? "quarantined" : "free");
		return CLI_DONE;
	}
	cli_path_set(&path, "/v1/vms/%s", vm);
	if (client_call(c->client, "GET", path.text, NULL, NULL, 0, &r, &err) == PW_OK)
		run = json_object_get(r.json, "name") && json_object_set(run, "name", json_object_get(r.json, "name"))
			      ? NULL
			      : run;
	client_reply_release(&r);
	if (!run)
		return cli_no_memory();
	cli_print_members(c, run);
	return CLI_DONE;
}

enum cli_exit cli_who_owns(struct cli *c)
{
	struct frame_search frame = { .pool = "local" };
	char id[PW_UUID_TEXT], *slash = strchr(c->args[0], '/');
	struct client_reply r;
	struct cli_path path;
	enum cli_exit code;

	if (!cli_number("PFN", c->args[1], CLI_PAGE, &frame.pfn))
		return CLI_USAGE;
	if (slash) {
		*slash = '\0';
		frame.pool = slash + 1;
		if (!codec_is_pool_name(frame.pool))
			return cli_usage("\"%s\" is not the name of a pool", frame.pool);
	}
	code = cli_resolve(c, "hosts", c->args[0], id);
	if (code != CLI_DONE)
		return code;
	cli_path_set(&path, "/v1/hosts/%s/frames?pool=%s&pfn=%" PRIu64 "&count=1", id, frame.pool, frame.pfn);
	code = cli_call(c, "GET", path.text, NULL, 0, &r);
	if (code == CLI_DONE && c->json)
		cli_print_json(c, r.json);
	else if (code == CLI_DONE)
		code = print_owner(c, id, &frame, json_array_get(json_object_get(r.json, "items"), 0));
	client_reply_release(&r);
	return code;
}

static const struct cli_column event_columns[] = {
	{ "REVISION", "revision" }, { "TIME", "time" }, { "TYPE", "type" }, { "HOST", "host" }, { "VM", "vm" },
	{ "ACTOR", "actor" },       { "MORE", "*" },
};

static enum cli_exit print_events(struct cli *c, json_t *items, bool titles)
{
	struct cli_table table;
	enum cli_exit code = CLI_DONE;
	json_t *item;
	size_t i;

	cli_table_init(&table, event_columns, PW_ARRAY_LEN(event_columns));
	json_array_foreach (items, i, item) {
		if (c->json)
			cli_print_json_line(item);
		else
			cli_table_add(&table, item);
	}
	if (!c->json && json_array_size(items))
		code = cli_table_print(&table, c->terminal, titles);
	fflush(stdout);
	cli_table_release(&table);
	return code;
}

/* What had been trimmed is said, and skipped; anything else ends it. */
static bool skip_trimmed(const struct client_reply *r, uint64_t *after)
{
	json_t *oldest = json_object_get(r->json, "oldest");

	if (r->problem != PROBLEM_COMPACTED || json_integer_value(oldest) <= 0 ||
	    (uint64_t)json_integer_value(oldest) - 1 <= *after)
		return false;
	*after = (uint64_t)json_integer_value(oldest) - 1;
	return true;
}

static enum cli_exit read_events(struct cli *c, uint64_t after, uint64_t limit)
{
	bool follow = c->option[OPTION_FOLLOW], titles = c->terminal;
	enum cli_exit code;
	json_t *items, *next;

	do {
		struct client_reply r;
		struct cli_path path;
		size_t n;

		cli_path_set(&path, "/v1/events");
		cli_path_query(&path, "after", "%" PRIu64, after);
		cli_path_query(&path, "limit", "%" PRIu64, limit < 1000 ? limit : 1000);
		if (follow)
			cli_path_query(&path, "wait", "25");
		code = cli_call(c, "GET", path.text, NULL, follow ? 25 : 0, &r);
		if (code != CLI_DONE) {
			bool skipped = skip_trimmed(&r, &after);

			client_reply_release(&r);
			if (!skipped)
				return code;
			continue;
		}
		items = json_object_get(r.json, "items");
		next = json_object_get(r.json, "next");
		n = json_array_size(items);
		code = print_events(c, items, titles);
		titles = titles && !n;
		if (json_is_integer(next))
			after = (uint64_t)json_integer_value(next);
		limit -= n < limit ? n : limit;
		client_reply_release(&r);
		if (code != CLI_DONE || ferror(stdout) || (!follow && !n))
			return code;
	} while (limit);
	return CLI_DONE;
}

enum cli_exit cli_events(struct cli *c)
{
	uint64_t after = 0, limit = UINT64_MAX;

	if ((c->option[OPTION_AFTER] && !cli_number("after", c->option[OPTION_AFTER], CLI_REVISION, &after)) ||
	    (c->option[OPTION_LIMIT] && !cli_number("limit", c->option[OPTION_LIMIT], CLI_PAGE, &limit)))
		return CLI_USAGE;
	if (!limit)
		return cli_usage("limit is at least 1");
	return read_events(c, after, limit);
}

enum cli_exit cli_violations(struct cli *c)
{
	static const struct cli_column columns[] = {
		{ "REVISION", "revision" },    { "TIME", "time" },   { "HOST", "host" }, { "VM", "vm" },
		{ "PROBLEM", "problem.type" }, { "TIMES", "count" }, { "LAST", "last" }, { "DETAIL", "problem.detail" },
	};
	struct cli_path path;
	enum cli_exit code;

	cli_path_set(&path, "/v1/violations");
	if (!cli_path_number(&path, c, OPTION_AFTER, CLI_REVISION))
		return CLI_USAGE;
	code = add_subjects(c, &path);
	return code == CLI_DONE ? SHOW(c, path.text, columns) : code;
}

enum cli_exit cli_summary(struct cli *c)
{
	return cli_show(c, "/v1/summary");
}
