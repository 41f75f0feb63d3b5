/*
 * Which host, VM or token a command line means, and whether it is meant. Names are whatever their givers like: somebody
 * may call his VM as another's id begins. So an id comes before the beginning of one, and that before a name; what
 * destroys or frees takes no beginning at all, and asks.
 */
#include <ctype.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "api/cli.h"
#include "api/text.h"

enum { PREFIX_MIN = 4 }; /* less is a name */

struct search {
	const char *text; /* as given, and in lower case, as ids are */
	char lower[PW_UUID_TEXT];
	size_t len;               /* 0: too short or too long to begin an id */
	unsigned names, prefixes; /* how many fit */
	char by_name[PW_UUID_TEXT], by_prefix[PW_UUID_TEXT];
};

static bool search_item(void *ctx, json_t *item)
{
	const char *id = json_string_value(json_object_get(item, "id"));
	const char *name = json_string_value(json_object_get(item, "name"));
	struct search *s = ctx;

	if (!id || strlen(id) != PW_UUID_TEXT - 1)
		return true;
	if (name && strcmp(name, s->text) == 0) {
		memcpy(s->by_name, id, PW_UUID_TEXT);
		s->names++;
	}
	if (s->len && strncmp(id, s->lower, s->len) == 0) {
		memcpy(s->by_prefix, id, PW_UUID_TEXT);
		s->prefixes++;
	}
	return true;
}

/* True: it is an id, and nobody's name. */
static bool search_init(struct search *s, const char *text, char id[PW_UUID_TEXT])
{
	size_t n = strlen(text);
	struct pw_uuid uuid;

	*s = (struct search){ .text = text };
	if (n < PREFIX_MIN || n >= PW_UUID_TEXT)
		return false;
	for (size_t i = 0; i < n; i++)
		s->lower[i] = (char)tolower((unsigned char)text[i]);
	s->len = n;
	if (!pw_uuid_parse(s->lower, n, &uuid))
		return false;
	memcpy(id, s->lower, PW_UUID_TEXT);
	return true;
}

static enum cli_exit search_all(struct cli *c, const char *collection, struct search *s)
{
	struct pw_err err = { PW_OK, "" };
	struct cli_path path;
	enum cli_exit code;

	if (!*s->text)
		return cli_usage("an empty name");
	cli_path_set(&path, "/v1/%s?limit=1000", collection);
	code = cli_report(client_list(c->client, path.text, search_item, s, &err), &err);
	if (code != CLI_DONE || s->names || s->prefixes)
		return code;
	fprintf(stderr, "pagewarden: none of the %s has the name, or an id that begins with, \"", collection);
	text_print(stderr, s->text);
	fputs("\"\n", stderr);
	return CLI_NOT_FOUND;
}

static enum cli_exit fits_several(const struct search *s, const char *collection, unsigned n)
{
	return cli_usage("\"%s\" fits %u of the %s: give the id", s->text, n, collection);
}

enum cli_exit cli_resolve(struct cli *c, const char *collection, const char *text, char id[PW_UUID_TEXT])
{
	struct search s;
	enum cli_exit code;

	if (search_init(&s, text, id))
		return CLI_DONE;
	code = search_all(c, collection, &s);
	if (code != CLI_DONE)
		return code;
	if (s.prefixes > 1 || (!s.prefixes && s.names > 1))
		return fits_several(&s, collection, s.prefixes ? s.prefixes : s.names);
	memcpy(id, s.prefixes ? s.by_prefix : s.by_name, PW_UUID_TEXT);
	return CLI_DONE;
}

enum cli_exit cli_resolve_exactly(struct cli *c, const char *collection, const char *text, char id[PW_UUID_TEXT])
{
	struct search s;
	enum cli_exit code;

	if (search_init(&s, text, id))
		return CLI_DONE;
	code = search_all(c, collection, &s);
	if (code != CLI_DONE)
		return code;
	if (s.names > 1)
		return fits_several(&s, collection, s.names);
	if (!s.names)
		return cli_usage("\"%s\" is only the beginning of an id: this takes a full id or an exact name", text);
	if (s.prefixes > 1 || (s.prefixes && strcmp(s.by_prefix, s.by_name) != 0))
		return cli_usage("\"%s\" is the name of %s, but another id begins with it: give the full id", text,
				 s.by_name);
	memcpy(id, s.by_name, PW_UUID_TEXT);
	return CLI_DONE;
}

static bool is_yes(void)
{
	char line[16];

	if (!fgets(line, sizeof line, stdin))
		return false;
	line[strcspn(line, "\r\n")] = '\0';
	return strcasecmp(line, "yes") == 0 || strcasecmp(line, "y") == 0;
}

enum cli_exit cli_confirm(const struct cli *c, const char *fmt, ...)
{
	va_list ap;

	if (c->option[OPTION_YES])
		return CLI_DONE;
	fputs("pagewarden: ", stderr);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputs("\nIs this meant? (yes/no) ", stderr);
	if (is_yes())
		return CLI_DONE;
	fputs("pagewarden: nothing was done\n", stderr);
	return CLI_REFUSED;
}

enum cli_exit cli_may_confirm(const struct cli *c, const char *command)
{
	if (c->option[OPTION_YES] || isatty(STDIN_FILENO))
		return CLI_DONE;
	return cli_usage("%s destroys or frees, and there is no terminal to ask on: --yes says that it is meant",
			 command);
}
