/* Reads the script of guests line by line as it grows. A file that has become shorter was written anew, and is read
 * from its beginning. Only the thread that waits for guests' wishes calls machine_script_next. */
#include "agents/machine_script.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "agents/alog.h"

struct machine_script {
	char *path; /* owned */
	long at;    /* in the file */
};

static long size_of(FILE *f)
{
	return fseek(f, 0, SEEK_END) == 0 ? ftell(f) : 0;
}

struct machine_script *machine_script_open(const char *path)
{
	struct machine_script *s = calloc(1, sizeof *s);
	FILE *f;

	if (!s)
		return NULL;
	s->path = strdup(path);
	if (!s->path) {
		free(s);
		return NULL;
	}
	f = fopen(path, "re");
	if (f) {
		s->at = size_of(f);
		(void)fclose(f);
	}
	return s;
}

void machine_script_close(struct machine_script *s)
{
	if (s)
		free(s->path);
	free(s);
}

/* The next word of *at, which is cut off; NULL: there is none. */
static char *word(char **at)
{
	char *w = strtok_r(NULL, " \t", at);

	return w && *w ? w : NULL;
}

static bool number(const char *text, uint64_t *out)
{
	uint64_t n = 0;

	if (!text || !*text)
		return false;
	for (; *text >= '0' && *text <= '9' && n < TREE_PAGES; text++)
		n = n * 10 + (uint64_t)(*text - '0');
	*out = n;
	return *text == '\0' && n <= TREE_PAGES;
}

static bool option(const char *text, struct backend_ripas *out)
{
	static const char accept[] = "accept=";

	if (strcmp(text, "keep") == 0) {
		out->keep = true;
		return true;
	}
	return strncmp(text, accept, sizeof accept - 1) == 0 && number(text + sizeof accept - 1, &out->accept);
}

static bool ripas(char **at, struct backend_ripas *out)
{
	const char *value;
	char *more;

	if (!number(word(at), &out->gfn) || !number(word(at), &out->count) || out->count == 0 ||
	    out->gfn >= TREE_PAGES || out->count > TREE_PAGES - out->gfn)
		return false;
	value = word(at);
	if (!value || (strcmp(value, "EMPTY") != 0 && strcmp(value, "RAM") != 0))
		return false;
	out->ram = strcmp(value, "RAM") == 0;
	out->accept = out->count;
	while ((more = word(at)))
		if (!option(more, out))
			return false;
	return true;
}

bool machine_script_parse(const char *line, struct backend_request *out)
{
	struct backend_request rq = { .want = WANT_RIPAS };
	char text[SCRIPT_LINE_MAX + 1], *at = text;
	const char *vm, *what;

	if (strlen(line) > SCRIPT_LINE_MAX)
		return false;
	memcpy(text, line, strlen(line) + 1);
	vm = word(&at);
	what = word(&at);
	if (!vm || !what || !pw_uuid_parse(vm, strlen(vm), &rq.vm) || strcmp(what, "ripas") != 0)
		return false;
	if (!ripas(&at, &rq.ripas))
		return false;
	rq.gfn = rq.ripas.gfn;
	rq.count = rq.ripas.count;
	*out = rq;
	return true;
}

/* The next complete line, without its newline; a longer one is cut. False: there is none yet. */
static bool read_line(struct machine_script *s, FILE *f, char *line, size_t size)
{
	size_t n = 0;
	int c;

	if (fseek(f, s->at, SEEK_SET) != 0)
		return false;
	while ((c = getc(f)) != EOF && c != '\n')
		if (n < size - 1)
			line[n++] = (char)c;
	line[n] = '\0';
	if (c != '\n')
		return false;
	s->at = ftell(f);
	return true;
}

bool machine_script_next(struct machine_script *s, struct backend_request *out)
{
	char line[SCRIPT_LINE_MAX + 2];
	FILE *f = fopen(s->path, "re");
	bool found = false;

	if (!f)
		return false;
	if (size_of(f) < s->at)
		s->at = 0;
	while (!found && read_line(s, f, line, sizeof line)) {
		if (line[strspn(line, " \t")] == '\0' || line[0] == '#')
			continue;
		found = machine_script_parse(line, out);
		if (!found)
			alog(ALOG_WARNING, "a line of the guests' script makes no sense", "%.80s", line);
	}
	(void)fclose(f);
	return found;
}
