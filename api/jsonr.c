#include "api/jsonr.h"

#include <jansson.h>
#include <string.h>

#include "api/json.h"

/* A struct jsonr is the json_t object itself, under a name that needs no jansson. */
static const json_t *object(const struct jsonr *j)
{
	return (const json_t *)(const void *)j;
}

struct jsonr *jsonr_parse(const char *text, size_t len)
{
	json_error_t error;
	bool no_memory;
	json_t *json = json_load_text(text, len, &error, &no_memory);

	if (json_is_object(json))
		return (struct jsonr *)(void *)json;
	json_decref(json);
	return NULL;
}

void jsonr_free(struct jsonr *j)
{
	json_decref((json_t *)(void *)j);
}

const char *jsonr_str(const struct jsonr *j, const char *member)
{
	return json_string_value(json_object_get(object(j), member));
}

bool jsonr_u64(const struct jsonr *j, const char *member, uint64_t *out)
{
	const json_t *v = json_object_get(object(j), member);

	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*out = (uint64_t)json_integer_value(v);
	return true;
}

bool jsonr_uuid(const struct jsonr *j, const char *member, struct pw_uuid *out)
{
	const char *text = jsonr_str(j, member);

	return text && pw_uuid_parse(text, strlen(text), out);
}

char *jsonr_text(const struct jsonr *j, const char *member, size_t *len)
{
	const json_t *v = json_object_get(object(j), member);
	char *text = v ? json_dumps(v, JSON_COMPACT | JSON_ENCODE_ANY) : NULL;

	if (text)
		*len = strlen(text);
	return text;
}
