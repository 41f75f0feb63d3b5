#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cli.h"
#include "api/text.h"

void cli_table_init(struct cli_table *t, const struct cli_column *columns, size_t n)
{
	*t = (struct cli_table){ .columns = columns, .column_count = n };
}

static void empty(struct cli_table *t)
{
	for (size_t i = 0; i < t->row_count; i++) {
		for (size_t j = 0; j < t->column_count; j++)
			free(t->rows[i][j]);
		free(t->rows[i]);
	}
	t->row_count = 0;
}

void cli_table_release(struct cli_table *t)
{
	empty(t);
	free(t->rows);
	t->rows = NULL;
	t->room = 0;
}

/* Nothing that a server sends may steer the terminal, or break a line or column. Consumes the text. */
static char *tame(char *text)
{
	char *shown = text ? text_shown(text) : NULL;

	free(text);
	return shown;
}

static char *join(json_t *array)
{
	char *text = strdup(""), *longer;
	json_t *v;
	size_t i;

	json_array_foreach (array, i, v) {
		const char *word = json_string_value(v);

		if (!word) { /* not a list of words */
			free(text);
			return json_dumps(array, JSON_COMPACT);
		}
		if (!text || asprintf(&longer, "%s%s%s", text, i ? "," : "", word) < 0)
			longer = NULL;
		free(text);
		text = longer;
	}
	return text;
}

static char *value_text(json_t *v)
{
	char *text = NULL;

	switch (json_typeof(v)) {
	case JSON_STRING: text = strdup(json_string_value(v)); break;
	case JSON_TRUE: text = strdup("yes"); break;
	case JSON_FALSE: text = strdup("no"); break;
	case JSON_NULL: text = strdup("-"); break;
	case JSON_ARRAY: text = join(v); break;
	case JSON_OBJECT:
	case JSON_INTEGER:
	case JSON_REAL: text = json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY); break;
	}
	if (text && !*text) {
		free(text);
		text = strdup("-");
	}
	return tame(text);
}

static bool is_shown(const struct cli_table *t, const char *name)
{
	for (size_t i = 0; i < t->column_count; i++) {
		const char *path = t->columns[i].path;
		size_t n = strcspn(path, ".");

		if (strncmp(path, name, n) == 0 && !name[n])
			return true;
	}
	return false;
}

static char *rest_text(const struct cli_table *t, json_t *item)
{
	char *text = strdup(""), *longer;
	const char *name;
	json_t *v;

	json_object_foreach (item, name, v) {
		char *value;

		if (is_shown(t, name))
			continue;
		value = value_text(v);
		if (!text || !value || asprintf(&longer, "%s%s%s=%s", text, *text ? " " : "", name, value) < 0)
			longer = NULL;
		free(value);
		free(text);
		text = longer;
	}
	return tame(text);
}

static json_t *find(json_t *item, const char *path)
{
	char name[64];
	size_t n;

	while (item && *path) {
		n = strcspn(path, ".");
		if (n >= sizeof name)
			return NULL;
		memcpy(name, path, n);
		name[n] = '\0';
		item = json_object_get(item, name);
		path += n + (path[n] == '.');
	}
	return item;
}

static char *cell_text(const struct cli_table *t, json_t *item, const char *path)
{
	json_t *v;

	if (strcmp(path, "*") == 0)
		return rest_text(t, item);
	v = find(item, path);
	return v ? value_text(v) : strdup("-");
}

static char **add_row(struct cli_table *t)
{
	char **row;

	if (t->row_count == t->room) {
		size_t room = t->room ? 2 * t->room : 64;
		char ***rows = realloc(t->rows, room * sizeof *rows);

		if (!rows)
			return NULL;
		t->rows = rows;
		t->room = room;
	}
	row = calloc(t->column_count, sizeof *row);
	if (row)
		t->rows[t->row_count++] = row;
	return row;
}

void cli_table_add(struct cli_table *t, json_t *item)
{
	char **row = add_row(t);

	if (!row)
		t->failed = true;
	for (size_t i = 0; row && i < t->column_count; i++) {
		row[i] = cell_text(t, item, t->columns[i].path);
		if (!row[i])
			t->failed = true;
	}
}

static size_t width_of(const char *text)
{
	size_t n = 0;

	for (; *text; text++)
		n += ((unsigned char)*text & 0xc0) != 0x80;
	return n;
}

static void print_cell(const char *text, size_t width, bool is_last)
{
	fputs(text, stdout);
	for (size_t n = width_of(text); !is_last && n < width + 2; n++)
		putchar(' ');
}

static void print_aligned(const struct cli_table *t, bool titles)
{
	size_t last = t->column_count - 1;
	size_t width[16] = { 0 };

	for (size_t j = 0; j < t->column_count; j++) {
		width[j] = width_of(t->columns[j].title);
		for (size_t i = 0; i < t->row_count; i++)
			if (width_of(t->rows[i][j]) > width[j])
				width[j] = width_of(t->rows[i][j]);
	}
	for (size_t j = 0; titles && j <= last; j++)
		print_cell(t->columns[j].title, width[j], j == last);
	if (titles)
		putchar('\n');
	for (size_t i = 0; i < t->row_count; i++) {
		for (size_t j = 0; j <= last; j++)
			print_cell(t->rows[i][j], width[j], j == last);
		putchar('\n');
	}
}

static void print_tabbed(const struct cli_table *t)
{
	for (size_t i = 0; i < t->row_count; i++)
		for (size_t j = 0; j < t->column_count; j++)
			printf("%s%c", t->rows[i][j], j + 1 < t->column_count ? '\t' : '\n');
}

enum cli_exit cli_table_print(struct cli_table *t, bool terminal, bool titles)
{
	if (t->failed)
		return cli_no_memory();
	if (terminal)
		print_aligned(t, titles);
	else
		print_tabbed(t);
	fflush(stdout);
	empty(t);
	return CLI_DONE;
}

static void print_json(json_t *v, size_t format)
{
	char *text = json_dumps(v, JSON_ENCODE_ANY | format);

	if (text)
		text_print_json(stdout, text);
	else
		cli_no_memory();
	free(text);
	putchar('\n');
	fflush(stdout);
}

void cli_print_json(const struct cli *c, json_t *v)
{
	print_json(v, c->terminal ? JSON_INDENT(2) : JSON_COMPACT);
}

void cli_print_json_line(json_t *v)
{
	print_json(v, JSON_COMPACT);
}

static void print_member(const struct cli *c, const char *prefix, const char *name, json_t *v)
{
	char path[128], *text, *shown;
	const char *inner;
	json_t *member;

	snprintf(path, sizeof path, "%s%s%s", prefix, *prefix ? "." : "", name);
	if (json_is_object(v) && json_object_size(v)) {
		json_object_foreach (v, inner, member) {
			print_member(c, path, inner, member);
		}
		return;
	}
	text = value_text(v);
	shown = text_shown(path);
	printf(c->terminal ? "%-24s  %s\n" : "%s\t%s\n", shown ? shown : "?", text ? text : "?");
	free(shown);
	free(text);
}

void cli_print_members(const struct cli *c, json_t *object)
{
	const char *name;
	json_t *v;

	json_object_foreach (object, name, v) {
		print_member(c, "", name, v);
	}
	fflush(stdout);
}
