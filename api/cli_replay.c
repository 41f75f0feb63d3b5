/* pagewarden replay: recorded scenarios against the models of their architectures. */
#include <errno.h>
#include <stdio.h>
#include <string.h>

#include "api/cli.h"
#include "api/replay.h"
#include "api/text.h"

/* What a file holds may be in it. */
static void complain(const char *text)
{
	fputs("pagewarden: ", stderr);
	text_print(stderr, text);
	fputc('\n', stderr);
}

/* False: the file could not be read, or was not understood to its end. */
static bool replay_one(const char *name, struct replay_tally *t)
{
	struct pw_err err = { PW_OK, "" };
	FILE *in = fopen(name, "re");
	enum pw_status st;

	if (!in) {
		fprintf(stderr, "pagewarden: %s: %s\n", name, strerror(errno));
		t->files++;
		return false;
	}
	st = replay_file(in, name, stdout, t, &err);
	fclose(in);
	if (st != PW_OK)
		complain(err.msg);
	return st == PW_OK;
}

enum cli_exit cli_replay(struct cli *c)
{
	struct replay_tally t = { 0 };
	bool understood = true;

	for (int i = 0; i < c->arg_count; i++)
		understood &= replay_one(c->args[i], &t);
	printf("%" PRIu64 " files, %" PRIu64 " steps, %" PRIu64 " wrong\n", t.files, t.steps, t.wrong);
	if (!understood)
		return CLI_USAGE;
	return t.wrong ? CLI_REFUSED : CLI_DONE;
}
