/*
 * The backend's figures in a file. The text is made in memory, written to FILE.tmp beside it and renamed over FILE; a
 * failure is logged once until a write works again, and disturbs nothing else.
 */
#include "agents/figures.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define EVERY_MS 5000

struct page {
	FILE *to;
	const char *host;
	const char *name; /* of the last figure; NULL: none yet */
};

static void add(void *ctx, const struct backend_figure *f)
{
	struct page *p = ctx;

	if (!p->name || strcmp(p->name, f->name) != 0)
		fprintf(p->to, "# HELP %s %s\n# TYPE %s counter\n", f->name, f->help, f->name);
	p->name = f->name;
	fprintf(p->to, "%s{host=\"%s\"%s%s} %" PRIu64 "\n", f->name, p->host, f->labels[0] ? "," : "", f->labels,
		f->value);
}

static char *text_of(const char *host, struct backend *b, size_t *len)
{
	char *text = NULL;
	struct page p = { .to = open_memstream(&text, len), .host = host };

	if (!p.to)
		return NULL;
	b->ops->figures(b, add, &p);
	if (fclose(p.to) == 0)
		return text;
	free(text);
	return NULL;
}

static bool put_file(const char *path, const char *text, size_t len)
{
	FILE *f = fopen(path, "we");
	bool ok;

	if (!f)
		return false;
	ok = fwrite(text, 1, len, f) == len;
	return fclose(f) == 0 && ok;
}

static bool replace_file(const char *path, const char *text, size_t len, struct pw_err *err)
{
	char *beside;

	if (asprintf(&beside, "%s.tmp", path) < 0) {
		pw_fail(err, PW_NO_MEMORY, "no memory for a path");
		return false;
	}
	if (!put_file(beside, text, len) || rename(beside, path) != 0) {
		pw_fail(err, PW_STORAGE, "%s: %s", path, strerror(errno));
		unlink(beside);
		free(beside);
		return false;
	}
	free(beside);
	return true;
}

enum pw_status figures_write(const char *path, const char *host, struct backend *b, struct pw_err *err)
{
	size_t len;
	char *text = text_of(host, b, &len);
	bool ok;

	if (!text)
		return pw_fail(err, PW_NO_MEMORY, "no memory for %s", path);
	ok = replace_file(path, text, len, err);
	free(text);
	return ok ? PW_OK : err->status;
}

void *figures_loop(void *agent)
{
	struct agent *a = agent;
	bool failed = false;
	uint64_t next = 0;

	while (!agent_is_stopping(a)) {
		uint64_t now = now_ms();
		struct pw_err err = { 0 };
		enum pw_status st;

		if (now < next) {
			agent_pause(a, (unsigned)(next - now));
			continue;
		}
		next = now + EVERY_MS;
		st = figures_write(a->options->metrics, a->host, a->backend, &err);
		if (st != PW_OK && !failed)
			alog(ALOG_WARNING, "metrics are not written", "%s", err.msg);
		failed = st != PW_OK;
	}
	return NULL;
}
