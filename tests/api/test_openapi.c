#include "api/openapi.h"

#include <criterion/criterion.h>
#include <ctype.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/codec_vcpu.h"
#include "api/operation_params.h"
#include "api/problem.h"
#include "server/request.h"

static json_t *document(void)
{
	json_error_t e;
	json_t *doc = json_loads(openapi_json(), JSON_REJECT_DUPLICATES, &e);

	cr_assert_not_null(doc, "%s", e.text);
	return doc;
}

/* What a "$ref" leads to, or v itself. */
static json_t *resolve(json_t *doc, json_t *v)
{
	const char *ref = json_string_value(json_object_get(v, "$ref"));
	char name[128];

	if (!ref)
		return v;
	cr_assert_eq(strncmp(ref, "#/", 2), 0, "%s", ref);
	v = doc;
	for (ref += 2; *ref; ref += strcspn(ref, "/"), ref += *ref == '/') {
		snprintf(name, sizeof name, "%.*s", (int)strcspn(ref, "/"), ref);
		v = json_object_get(v, name);
		cr_assert_not_null(v, "%s leads nowhere", name);
	}
	return resolve(doc, v);
}

static void check_refs(json_t *doc, json_t *v)
{
	const char *key;
	json_t *inner;
	size_t i;

	if (json_object_get(v, "$ref"))
		resolve(doc, v);
	json_object_foreach (v, key, inner)
		check_refs(doc, inner);
	json_array_foreach (v, i, inner)
		check_refs(doc, inner);
}

static json_t *operation_of(json_t *doc, const char *method, const char *pattern)
{
	char verb[16] = "";

	for (size_t i = 0; method[i] && i + 1 < sizeof verb; i++)
		verb[i] = (char)tolower(method[i]);
	return json_object_get(json_object_get(json_object_get(doc, "paths"), pattern), verb);
}

static bool is_routed(const char *verb, const char *pattern)
{
	for (const struct route *r = routes; r->method; r++)
		if (strcasecmp(r->method, verb) == 0 && strcmp(r->pattern, pattern) == 0)
			return true;
	return false;
}

Test(openapi, is_openapi_3_1_whose_references_lead_somewhere)
{
	json_t *doc = document();

	cr_assert_eq(strncmp(json_string_value(json_object_get(doc, "openapi")), "3.1", 3), 0);
	check_refs(doc, doc);
	json_decref(doc);
}

Test(openapi, describes_exactly_what_is_routed)
{
	json_t *doc = document(), *item, *op;
	const char *pattern, *verb;

	for (const struct route *r = routes; r->method; r++)
		if (strncmp(r->pattern, "/v1/", 4) == 0 || strcmp(r->pattern, "/openapi.json") == 0)
			cr_expect_not_null(operation_of(doc, r->method, r->pattern), "%s %s is not described",
					   r->method, r->pattern);
	json_object_foreach (json_object_get(doc, "paths"), pattern, item) {
		json_object_foreach (item, verb, op)
			cr_expect(strcmp(verb, "parameters") == 0 || is_routed(verb, pattern), "%s %s is not routed",
				  verb, pattern);
	}
	json_decref(doc);
}

static bool has_parameter(json_t *doc, json_t *list, const char *name)
{
	json_t *p;
	size_t i;

	json_array_foreach (list, i, p)
		if (strcmp(json_string_value(json_object_get(resolve(doc, p), "name")), name) == 0)
			return true;
	return false;
}

Test(openapi, describes_every_parameter_of_every_path)
{
	json_t *doc = document(), *item;
	const char *pattern;
	char name[64];

	json_object_foreach (json_object_get(doc, "paths"), pattern, item) {
		for (const char *at = strchr(pattern, '{'); at; at = strchr(at, '{')) {
			at++;
			snprintf(name, sizeof name, "%.*s", (int)strcspn(at, "}"), at);
			cr_expect(has_parameter(doc, json_object_get(item, "parameters"), name), "%s of %s", name,
				  pattern);
		}
	}
	json_decref(doc);
}

Test(openapi, knows_every_problem)
{
	json_t *doc = document(), *types, *type;
	const char *pointer[] = { "components", "schemas", "Problem", "properties", "type", "enum" };
	size_t i;

	types = doc;
	for (i = 0; i < PW_ARRAY_LEN(pointer); i++)
		types = json_object_get(types, pointer[i]);
	cr_assert_eq(json_array_size(types), PROBLEM_COUNT - 1);
	json_array_foreach (types, i, type) {
		enum pw_problem p;

		cr_expect(problem_from_slug(json_string_value(type) + strlen("/problems/"), &p));
	}
	json_decref(doc);
}

/* Bodies: the document's members are the decoder's. */
typedef bool (*take_fn)(const char *text, size_t len, struct codec_fault *why);
#define TAKE(name)                                                                     \
	static bool take_##name(const char *text, size_t len, struct codec_fault *why) \
	{                                                                              \
		struct name##_body body;                                               \
		struct body *owner;                                                    \
		bool ok = codec_##name(text, len, &body, &owner, why);                 \
                                                                                       \
		codec_release(owner);                                                  \
		return ok;                                                             \
	}
TAKE(host)
TAKE(current)
TAKE(fence)
TAKE(frames)
TAKE(pool)
TAKE(vm)
TAKE(slot)
TAKE(vcpu)
TAKE(lifecycle)
TAKE(transitions)
TAKE(operation)
TAKE(result)
TAKE(token)
TAKE(backup)

static const struct {
	const char *method, *pattern;
	take_fn take;
} bodies[] = {
	{ "PUT", "/v1/hosts/{host}", take_host },
	{ "POST", "/v1/hosts/{host}/heartbeat", take_current },
	{ "POST", "/v1/hosts/{host}/fence", take_fence },
	{ "POST", "/v1/hosts/{host}/quarantine", take_frames },
	{ "POST", "/v1/hosts/{host}/quarantine/release", take_frames },
	{ "POST", "/v1/hosts/{host}/transitions", take_transitions },
	{ "PUT", "/v1/pools/{pool}", take_pool },
	{ "POST", "/v1/vms", take_vm },
	{ "PUT", "/v1/vms/{vm}/slots/{slot}", take_slot },
	{ "PUT", "/v1/vms/{vm}/vcpus/{n}", take_vcpu },
	{ "POST", "/v1/vms/{vm}/lifecycle", take_lifecycle },
	{ "POST", "/v1/vms/{vm}/operations", take_operation },
	{ "POST", "/v1/operations/{op}/result", take_result },
	{ "POST", "/v1/tokens", take_token },
	{ "POST", "/v1/backups", take_backup },
};

/* The exits that may be reported are those that the document lists. */
Test(openapi, names_the_exits_that_a_vcpu_may_have)
{
	json_t *doc = document(), *name;
	json_t *schemas = json_object_get(json_object_get(doc, "components"), "schemas");
	json_t *names = json_object_get(json_object_get(schemas, "VcpuExit"), "enum");
	size_t i, reach = 0;

	for (int e = 0; e < PKVM_EXIT_COUNT; e++)
		reach += pkvm_exit_row((enum pkvm_exit)e)->reaches_host[PKVM_MAINLINE] ||
			 pkvm_exit_row((enum pkvm_exit)e)->reaches_host[PKVM_ANDROID];
	cr_expect_eq(json_array_size(names), reach);
	json_array_foreach (names, i, name) {
		struct codec_fault why;
		struct vcpu_exit x;

		cr_expect(vcpu_exit_read(json_string_value(name), "{}", &x, &why), "%s", json_string_value(name));
	}
	json_decref(doc);
}

static json_t *body_schema(json_t *doc, const char *method, const char *pattern)
{
	json_t *body = resolve(doc, json_object_get(operation_of(doc, method, pattern), "requestBody"));
	json_t *media = json_object_get(json_object_get(body, "content"), "application/json");

	cr_assert_not_null(media, "%s %s has no body", method, pattern);
	return resolve(doc, json_object_get(media, "schema"));
}

/* A decoder that knows the member refuses its value, and never the member. No member takes a bare [[[]]]. */
static void expect_known(take_fn take, const char *pattern, const char *name)
{
	struct codec_fault why;
	char text[128];

	snprintf(text, sizeof text, "{\"%s\":[[[]]]}", name);
	cr_expect(!take(text, strlen(text), &why));
	cr_expect(!strstr(why.detail, "is known here") && strncmp(why.pointer + 1, name, strlen(name)) == 0,
		  "%s, %s: %s: %s", pattern, name, why.pointer, why.detail);
}

Test(openapi, names_the_members_that_the_decoders_know)
{
	json_t *doc = document();

	for (size_t i = 0; i < PW_ARRAY_LEN(bodies); i++) {
		json_t *schema = body_schema(doc, bodies[i].method, bodies[i].pattern);
		json_t *required = json_object_get(schema, "required"), *member;
		struct codec_fault why;
		const char *name;
		bool found = false;
		size_t k;

		cr_expect(json_is_false(json_object_get(schema, "additionalProperties")), "%s", bodies[i].pattern);
		json_object_foreach (json_object_get(schema, "properties"), name, member)
			expect_known(bodies[i].take, bodies[i].pattern, name);
		cr_expect_eq(bodies[i].take("{}", 2, &why), json_array_size(required) == 0, "%s", bodies[i].pattern);
		json_array_foreach (required, k, member)
			found = found || strcmp(json_string_value(member), why.pointer + 1) == 0;
		cr_expect(found || json_array_size(required) == 0, "%s: %s", bodies[i].pattern, why.pointer);
	}
	json_decref(doc);
}

/* The schema of a kind's parameters; *required: a request of the kind must have some. */
static json_t *params_schema(json_t *doc, const char *kind, bool *required)
{
	json_t *one, *all = json_object_get(body_schema(doc, "POST", "/v1/vms/{vm}/operations"), "oneOf");
	size_t i;

	json_array_foreach (all, i, one) {
		json_t *members = json_object_get(one, "properties");
		const char *name = json_string_value(json_object_get(json_object_get(members, "kind"), "const"));

		if (!name || strcmp(name, kind) != 0)
			continue;
		*required = json_object_get(one, "required") != NULL;
		return resolve(doc, json_object_get(members, "params"));
	}
	cr_assert_fail("%s is not described", kind);
	return NULL;
}

static const char *const param_schemas[PARAM_TYPE_COUNT] = {
	[PARAM_FIRST] = "PageNumber",      [PARAM_COUNT] = "PageCount",   [PARAM_SLOT] = "SlotNumber",
	[PARAM_SHARE] = "PagesOrFraction", [PARAM_RUNS] = "Runs",         [PARAM_RIPAS] = "RipasRuns",
	[PARAM_GUEST] = "GuestParams",     [PARAM_TEXT] = "BackingGroup", [PARAM_HOST] = "Uuid",
};

static bool lists(json_t *names, const char *name)
{
	json_t *one;
	size_t i;

	json_array_foreach (names, i, one)
		if (strcmp(json_string_value(one), name) == 0)
			return true;
	return false;
}

static void expect_param(json_t *schema, const struct operation_param *p)
{
	json_t *member = json_object_get(json_object_get(schema, "properties"), p->name);
	const char *ref = json_string_value(json_object_get(member, "$ref"));
	const char *kind = operation_kind_name(p->kind);

	cr_expect_not_null(member, "%s of %s is not described", p->name, kind);
	cr_expect_eq(lists(json_object_get(schema, "required"), p->name), p->need == JSON_REQUIRED, "%s of %s", p->name,
		     kind);
	if (param_schemas[p->type])
		cr_expect(ref && strcmp(strrchr(ref, '/') + 1, param_schemas[p->type]) == 0, "%s of %s", p->name, kind);
	else
		cr_expect_str_eq(json_string_value(json_object_get(member, "type")), "boolean", "%s of %s", p->name,
				 kind);
}

Test(openapi, has_the_parameters_of_operations_as_the_table_has_them)
{
	json_t *doc = document();
	json_t *schemas = json_object_get(json_object_get(doc, "components"), "schemas");

	cr_expect_eq(json_array_size(json_object_get(json_object_get(schemas, "OperationKind"), "enum")),
		     OPERATION_KIND_COUNT);
	for (int k = 0; k < OPERATION_KIND_COUNT; k++) {
		const char *kind = operation_kind_name((enum operation_kind)k);
		bool required, must = false;
		json_t *schema = params_schema(doc, kind, &required);
		size_t rows = 0;

		cr_expect(lists(json_object_get(json_object_get(schemas, "OperationKind"), "enum"), kind), "%s", kind);
		cr_expect(json_is_false(json_object_get(schema, "additionalProperties")), "%s", kind);
		for (const struct operation_param *p = operation_params; p->name; p++) {
			if ((int)p->kind != k)
				continue;
			rows++;
			must = must || p->need == JSON_REQUIRED;
			expect_param(schema, p);
		}
		cr_expect_eq(json_object_size(json_object_get(schema, "properties")), rows, "%s", kind);
		cr_expect_eq(required, must, "%s", kind);
	}
	json_decref(doc);
}
