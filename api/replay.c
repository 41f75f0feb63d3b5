#include "api/replay.h"

#include <stdlib.h>
#include <string.h>

#include "api/json.h"

/* Reading members. */

enum pw_status replay_known(const json_t *object, const char *const *members, struct pw_err *err)
{
	const char *key;
	json_t *v;

	json_object_foreach ((json_t *)(uintptr_t)object, key, v) {
		size_t i = 0;

		while (members[i] && strcmp(members[i], key) != 0)
			i++;
		if (!members[i])
			return pw_fail(err, PW_INVALID, "unknown member \"%s\"", key);
	}
	return PW_OK;
}

enum pw_status replay_u64(const json_t *object, const char *member, uint64_t absent, uint64_t *out, struct pw_err *err)
{
	const json_t *v = json_object_get(object, member);
	const char *text = json_string_value(v);
	char *end;

	if (!v) {
		*out = absent;
		return PW_OK;
	}
	if (json_is_integer(v) && json_integer_value(v) >= 0) {
		*out = (uint64_t)json_integer_value(v);
		return PW_OK;
	}
	if (text && strncmp(text, "0x", 2) == 0 && strspn(text + 2, "0123456789abcdefABCDEF") == strlen(text + 2) &&
	    strlen(text) > 2 && strlen(text) <= 18) {
		*out = strtoull(text, &end, 16);
		return PW_OK;
	}
	return pw_fail(err, PW_INVALID, "member \"%s\" is not a number", member);
}

enum pw_status replay_str(const json_t *object, const char *member, const char **out, struct pw_err *err)
{
	*out = json_string_value(json_object_get(object, member));
	return *out ? PW_OK : pw_fail(err, PW_INVALID, "member \"%s\" is missing or not a string", member);
}

/* One scenario. */

struct scenario {
	const struct replay_format *format;
	void *model;
	const char *name;
	FILE *out;
	struct replay_tally *tally;
	uint64_t line;
};

static void print_json(FILE *out, const char *what, const json_t *json)
{
	char *text = json_dumps(json, JSON_COMPACT | JSON_ENCODE_ANY | JSON_SORT_KEYS);

	fprintf(out, "  %s %s\n", what, text ? text : "?");
	free(text);
}

static void differ(struct scenario *s, const json_t *step, const char *what, const json_t *expected, const json_t *got)
{
	if (!s->out)
		return;
	fprintf(s->out, "%s:%" PRIu64 ": %s\n", s->name, s->line, what);
	if (expected)
		print_json(s->out, "expected", expected);
	if (got)
		print_json(s->out, "got     ", got);
	print_json(s->out, "step    ", step);
}

/* Every result that the format looked at must be what the line says. */
static bool results_equal(struct scenario *s, const json_t *line, json_t *got)
{
	bool right = true;
	const char *key;
	json_t *v;

	json_object_foreach (got, key, v) {
		const json_t *expected = json_object_get(line, key);

		if (!json_equal(expected, v)) {
			differ(s, line, key, expected, v);
			right = false;
		}
	}
	return right;
}

static enum pw_status run_step(struct scenario *s, const json_t *line, struct pw_err *err)
{
	uint64_t before = s->format->digest(s->model);
	struct pw_err broken = { 0 };
	bool refused = false, right;
	json_t *got = NULL;
	enum pw_status st = s->format->step(s->model, line, &got, &refused, err);

	if (st != PW_OK)
		return st;
	right = results_equal(s, line, got);
	json_decref(got);
	if (refused && s->format->digest(s->model) != before) {
		differ(s, line, "a refused step changed something", NULL, NULL);
		right = false;
	}
	if (!s->format->check(s->model, &broken)) {
		differ(s, line, broken.msg, NULL, NULL);
		right = false;
	}
	s->tally->steps++;
	s->tally->wrong += !right;
	return PW_OK;
}

static enum pw_status open_model(struct scenario *s, const json_t *header, struct pw_err *err)
{
	const char *type, *format;

	if (replay_str(header, "type", &type, err) != PW_OK || replay_str(header, "format", &format, err) != PW_OK)
		return err->status;
	if (strcmp(type, "header") != 0)
		return pw_fail(err, PW_INVALID, "the first line is not a header");
	for (size_t i = 0; replay_formats[i]; i++)
		if (strcmp(replay_formats[i]->name, format) == 0) {
			s->format = replay_formats[i];
			return s->format->open(header, &s->model, err);
		}
	return pw_fail(err, PW_INVALID, "unknown format \"%s\"", format);
}

static enum pw_status run_line(struct scenario *s, const char *text, size_t len, struct pw_err *err)
{
	json_error_t e;
	bool no_memory = false;
	json_t *json = json_load_text(text, len, &e, &no_memory);
	enum pw_status st;

	if (no_memory)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	if (!json_is_object(json))
		st = pw_fail(err, PW_INVALID, "not a JSON object: %s", json ? "another type" : e.text);
	else
		st = s->format ? run_step(s, json, err) : open_model(s, json, err);
	json_decref(json);
	return st;
}

enum pw_status replay_file(FILE *in, const char *name, FILE *out, struct replay_tally *t, struct pw_err *err)
{
	struct scenario s = { .name = name, .out = out, .tally = t };
	enum pw_status st = PW_OK;
	size_t room = 0;
	char *line = NULL;
	ssize_t len;

	t->files++;
	while (st == PW_OK && (len = getline(&line, &room, in)) >= 0) {
		s.line++;
		if (strspn(line, " \t\r\n") < (size_t)len)
			st = run_line(&s, line, (size_t)len, err);
	}
	if (st == PW_OK && ferror(in))
		st = pw_fail(err, PW_STORAGE, "reading failed");
	else if (st == PW_OK && !s.format)
		st = pw_fail(err, PW_INVALID, "the file is empty");
	if (st != PW_OK)
		pw_wrap(err, "%s:%" PRIu64, name, s.line);
	if (s.model)
		s.format->close(s.model);
	free(line);
	return st;
}
