#include <criterion/criterion.h>
#include <string.h>

#include "server/http.h"

static enum handled nothing(struct service *sv, struct request *r)
{
	return DONE;
}

#define ROUTE(m, p)                                                              \
	{                                                                        \
		.method = m, .pattern = p, .roles = EVERYBODY, .handle = nothing \
	}
static const struct route table[] = {
	ROUTE("GET", "/"),
	ROUTE("GET", "/healthz"),
	ROUTE("GET", "/v1/vms"),
	ROUTE("POST", "/v1/vms"),
	ROUTE("GET", "/v1/vms/{vm}"),
	ROUTE("DELETE", "/v1/vms/{vm}"),
	ROUTE("PUT", "/v1/vms/{vm}/slots/{n}"),
	ROUTE("GET", "/v1/pools/{pool}/frames"),
	ROUTE("GET", "/v1/a/{x}/{y}/other"),
	ROUTE("GET", "/v1/a/{x}/fixed/last"),
	ROUTE("GET", "/v1/a/{x}/{y}/{z}"),
	{ .method = NULL },
};

struct found {
	const struct route *route;
	const char *args[3];
	char allow[64];
	char storage[256];
};

static struct found *look(struct found *f, const char *method, const char *target)
{
	f->route = http_route(table, method, target, f->storage, f->args, f->allow);
	return f;
}

static const struct match {
	const char *method, *target, *pattern, *args[3];
} matches[] = {
	{ "GET", "/", "/", { 0 } },
	{ "GET", "/?x=/v1/vms", "/", { 0 } },
	{ "GET", "/healthz", "/healthz", { 0 } },
	{ "HEAD", "/healthz", "/healthz", { 0 } },
	{ "POST", "/v1/vms", "/v1/vms", { 0 } },
	{ "GET", "/v1/vms?limit=3", "/v1/vms", { 0 } },
	{ "GET", "/v1/vms/abc", "/v1/vms/{vm}", { "abc" } },
	{ "GET", "/v1/vms/a%2Fb", "/v1/vms/{vm}", { "a/b" } },
	{ "GET", "/v1/vms/a+b", "/v1/vms/{vm}", { "a+b" } },
	{ "GET", "/v1/vms/%e2%82%ac", "/v1/vms/{vm}", { "\xe2\x82\xac" } },
	{ "GET", "/%76%31/vms", "/v1/vms", { 0 } },
	{ "PUT", "/v1/vms/abc/slots/7", "/v1/vms/{vm}/slots/{n}", { "abc", "7" } },
	{ "GET", "/v1/a/1/2/3", "/v1/a/{x}/{y}/{z}", { "1", "2", "3" } },
	{ "GET", "/v1/a/1/fixed/last", "/v1/a/{x}/fixed/last", { "1" } },
	{ "GET", "http://host:1/v1/vms/abc?x", "/v1/vms/{vm}", { "abc" } },
};

Test(http_route, what_the_table_has_is_found)
{
	for (const struct match *c = matches; c < matches + PW_ARRAY_LEN(matches); c++) {
		struct found f;

		cr_assert_not_null(look(&f, c->method, c->target)->route, "%s %s", c->method, c->target);
		cr_assert_str_eq(f.route->pattern, c->pattern);
		for (int i = 0; i < 3; i++) {
			cr_assert_eq(!f.args[i], !c->args[i], "%s: args[%d]", c->target, i);
			if (c->args[i])
				cr_assert_str_eq(f.args[i], c->args[i]);
		}
	}
}

static const char *const strangers[] = {
	"",
	"x",
	"*",
	"//",
	"/v1",
	"/v1/",
	"/v1/vms/",
	"/v1//vms",
	"/V1/vms",
	"/v1/vmsx",
	"/v1/vm",
	"/v1/vms/a/b",
	"/v1/vms/a/slots/",
	"/v1/vms/%",
	"/v1/vms/%2",
	"/v1/vms/%zz",
	"/v1/vms/a%00b",
	"/v1/vms/%ff",
	"/v1/vms/%c3",
	"/v1/vms/%ed%a0%80",
	"/v1/vms/\x80",
	"/v1/vms/a b",
	"/v1/vms#x",
	"http://host",
	"/1/2/3/4/5/6/7/8/9",
	"/{vm}",
	"/v1/vms/../vms/a/b",
	"?/",
};

Test(http_route, anything_else_is_not_found_and_has_no_methods)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(strangers); i++) {
		struct found f;

		cr_assert_null(look(&f, "GET", strangers[i])->route, "%s", strangers[i]);
		cr_assert_str_eq(f.allow, "", "%s", strangers[i]);
	}
}

Test(http_route, another_method_gets_the_list_of_those_that_are_served)
{
	struct found f;

	cr_assert_null(look(&f, "PUT", "/v1/vms")->route);
	cr_assert_str_eq(f.allow, "GET, POST");
	cr_assert_null(look(&f, "OPTIONS", "/v1/vms/abc?q=1")->route);
	cr_assert_str_eq(f.allow, "GET, DELETE");
	cr_assert_null(look(&f, "HEAD", "/v1/vms/abc/slots/1")->route);
	cr_assert_str_eq(f.allow, "PUT");
	cr_assert_null(look(&f, "get", "/healthz")->route);
	cr_assert_null(f.args[0]);
}

Test(http_route, storage_of_the_targets_size_is_enough)
{
	const char *target = "/v1/a/1/2/3";
	char *storage = malloc(strlen(target) + 1);
	struct found f;

	cr_assert_not_null(http_route(table, "GET", target, storage, f.args, f.allow));
	cr_assert_str_eq(f.args[2], "3");
	free(storage);
}
