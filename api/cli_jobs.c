/* The commands that the server does as jobs: verify and backup. They wait for the end, and show on a terminal how far
 * the job is. */
#include "api/cli.h"

#include <string.h>
#include <unistd.h>

#include "api/codec.h"

enum { WAIT_S = 2 };

static bool runs(json_t *job)
{
	const char *state = json_string_value(json_object_get(job, "state"));

	return state && strcmp(state, "running") == 0;
}

static void show_progress(json_t *job)
{
	double done = json_number_value(json_object_get(job, "done")),
	       total = json_number_value(json_object_get(job, "total"));

	fprintf(stderr, "\r%.0f of %.0f MiB", done / (1 << 20), total / (1 << 20));
	fflush(stderr);
}

/* Follows the job until it has ended; *r is always its newest answer. */
static enum cli_exit follow(struct cli *c, struct client_reply *r)
{
	bool terminal = isatty(STDERR_FILENO), shown = false;
	enum cli_exit code = CLI_DONE;
	struct cli_path path;

	while (code == CLI_DONE && runs(r->json)) {
		const char *id = json_string_value(json_object_get(r->json, "id"));

		cli_path_set(&path, "/v1/jobs/%s?wait=%d", id ? id : "", WAIT_S);
		client_reply_release(r);
		code = cli_call(c, "GET", path.text, NULL, WAIT_S, r);
		if (terminal && code == CLI_DONE && runs(r->json)) {
			show_progress(r->json);
			shown = true;
		}
	}
	if (shown)
		fputc('\n', stderr);
	return code;
}

/* Begins a job and prints its result, which stays in *r. */
static enum cli_exit run_job(struct cli *c, const char *path, json_t *body, struct client_reply *r, json_t **result)
{
	enum cli_exit code;
	json_t *problem;

	*r = (struct client_reply){ 0 };
	if (!body)
		return cli_no_memory();
	code = cli_call(c, "POST", path, body, 0, r);
	if (code == CLI_DONE)
		code = follow(c, r);
	if (code != CLI_DONE)
		return code;
	problem = json_object_get(r->json, "problem");
	*result = json_object_get(r->json, "result");
	if (!*result) {
		cli_report_problem(problem);
		return CLI_REFUSED;
	}
	if (c->json)
		cli_print_json(c, *result);
	else
		cli_print_members(c, *result);
	return CLI_DONE;
}

enum cli_exit cli_backup(struct cli *c)
{
	struct client_reply r;
	enum cli_exit code;
	json_t *result = NULL;

	if (!codec_is_pool_name(c->args[0]))
		return cli_usage("\"%s\" is not 1 to 63 characters a-z, 0-9 and -", c->args[0]);
	code = run_job(c, "/v1/backups", json_pack("{s:s}", "name", c->args[0]), &r, &result);
	client_reply_release(&r);
	return code;
}

enum cli_exit cli_verify(struct cli *c)
{
	struct client_reply r;
	json_t *result = NULL;
	enum cli_exit code = run_job(c, "/v1/verify", json_object(), &r, &result);

	if (code == CLI_DONE && !json_is_true(json_object_get(result, "ok"))) {
		fputs("pagewarden: the journal is not what the server wrote\n", stderr);
		code = CLI_BROKEN;
	}
	client_reply_release(&r);
	return code;
}
