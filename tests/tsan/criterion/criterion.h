/* tests/tsan/criterion/criterion.h
 *
 * A stand-in for Criterion under ThreadSanitizer, whose memory layout Criterion's own process isolation cannot have.
 * Each test runs in a forked child; a report of TSan ends that child with a status of its own, which fails the test.
 * It knows what our tests use and no more. It understands --json=FILE and ignores other arguments.
 */
#ifndef PW_TESTS_TSAN_CRITERION_H
#define PW_TESTS_TSAN_CRITERION_H
#include <stdarg.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#define SHIM_SKIPPED 77

struct criterion_test_params {
	size_t size;
	void *params;
	size_t length;
};
struct shim_extra {
	void (*init)(void), (*fini)(void);
	double timeout;
	int signal, exit_code;
	bool disabled;
	const char *description;
};
struct shim_test {
	const char *suite, *name;
	void (*run)(void);
	void (*run_with)(void *param);
	struct criterion_test_params (*params)(void);
	struct shim_extra extra;
	struct shim_test *next;
};
__attribute__((weak)) struct shim_test *shim_first, *shim_last, *shim_suites;
__attribute__((weak)) bool shim_failed;

__attribute__((weak)) void shim_add(struct shim_test *t)
{
	if (shim_last)
		shim_last->next = t;
	else
		shim_first = t;
	shim_last = t;
}

__attribute__((weak, format(printf, 6, 7))) void shim_check(bool ok, bool fatal, const char *file, int line,
							    const char *what, const char *fmt, ...)
{
	va_list ap;

	if (ok)
		return;
	fprintf(stderr, "%s:%d: %s: ", file, line, what);
	va_start(ap, fmt);
	vfprintf(stderr, fmt, ap);
	va_end(ap);
	fputc('\n', stderr);
	shim_failed = true;
	if (fatal)
		exit(1);
}

__attribute__((weak)) const struct shim_extra *shim_suite(const char *name)
{
	static const struct shim_extra none;

	for (struct shim_test *s = shim_suites; s; s = s->next)
		if (strcmp(s->suite, name) == 0)
			return &s->extra;
	return &none;
}

__attribute__((weak)) void shim_child(const struct shim_test *t, void *param)
{
	const struct shim_extra *suite = shim_suite(t->suite);
	void (*init)(void) = t->extra.init ? t->extra.init : suite->init; /* a test's own replaces its suite's */
	void (*fini)(void) = t->extra.fini ? t->extra.fini : suite->fini;

	if (init)
		init();
	if (t->params)
		t->run_with(param);
	else
		t->run();
	if (fini)
		fini();
	exit(shim_failed ? 1 : 0);
}

__attribute__((weak)) const char *shim_fork(const struct shim_test *t, void *param)
{
	int status = 0, wanted = t->extra.signal ? t->extra.signal : t->extra.exit_code;
	pid_t pid;

	fflush(NULL);
	pid = fork();
	if (pid == 0)
		shim_child(t, param);
	if (pid < 0 || waitpid(pid, &status, 0) != pid)
		return "FAILED";
	if (WIFEXITED(status) && WEXITSTATUS(status) == SHIM_SKIPPED)
		return "SKIPPED";
	if (t->extra.signal ? WIFSIGNALED(status) && WTERMSIG(status) == wanted
			    : WIFEXITED(status) && WEXITSTATUS(status) == wanted)
		return "PASSED";
	fprintf(stderr, "[FAIL] %s::%s (wait status %d)\n", t->suite, t->name, status);
	return "FAILED";
}

__attribute__((weak)) bool shim_report(FILE *json, const struct shim_test *t, void *param)
{
	static const char *comma = "";
	const char *verdict = shim_fork(t, param);

	if (json)
		fprintf(json, "%s{\"name\":\"%s\",\"status\":\"%s\"}\n", comma, t->name, verdict);
	comma = ",";
	return strcmp(verdict, "FAILED") != 0;
}

__attribute__((weak)) int main(int argc, char **argv)
{
	FILE *json = NULL;
	bool all = true;

	for (int i = 1; i < argc; i++)
		if (strncmp(argv[i], "--json=", 7) == 0)
			json = fopen(argv[i] + 7, "we");
	if (json)
		fputs("{\"test_suites\":[{\"tests\":[\n", json);
	for (struct shim_test *t = shim_first; t; t = t->next) {
		struct criterion_test_params p = { .length = 1 };

		if (t->params)
			p = t->params();
		for (size_t i = 0; i < p.length && !t->extra.disabled; i++)
			all &= shim_report(json, t, (char *)p.params + i * p.size);
	}
	if (json) {
		fputs("]}]}\n", json);
		fclose(json);
	}
	return all ? 0 : 1;
}

#define Test(suite_, name_, ...)                                                                           \
	static void suite_##_##name_##_body(void);                                                         \
	static struct shim_test suite_##_##name_##_test = {                                                \
		.suite = #suite_, .name = #name_, .run = suite_##_##name_##_body, .extra = { __VA_ARGS__ } \
	};                                                                                                 \
	__attribute__((constructor)) static void suite_##_##name_##_register(void)                         \
	{                                                                                                  \
		shim_add(&suite_##_##name_##_test);                                                        \
	}                                                                                                  \
	static void suite_##_##name_##_body(void)

#define TestSuite(suite_, ...)                                                                   \
	static struct shim_test suite_##_suite = { .suite = #suite_, .extra = { __VA_ARGS__ } }; \
	__attribute__((constructor)) static void suite_##_suite_register(void)                   \
	{                                                                                        \
		suite_##_suite.next = shim_suites;                                               \
		shim_suites = &suite_##_suite;                                                   \
	}                                                                                        \
	struct shim_test

#define ParameterizedTestParameters(suite_, name_) static struct criterion_test_params suite_##_##name_##_params(void)
#define ParameterizedTest(param_, suite_, name_, ...)                                            \
	static void suite_##_##name_##_body(param_);                                             \
	static void suite_##_##name_##_with(void *p)                                             \
	{                                                                                        \
		suite_##_##name_##_body(p);                                                      \
	}                                                                                        \
	static struct shim_test suite_##_##name_##_test = { .suite = #suite_,                    \
							    .name = #name_,                      \
							    .run_with = suite_##_##name_##_with, \
							    .params = suite_##_##name_##_params, \
							    .extra = { __VA_ARGS__ } };          \
	__attribute__((constructor)) static void suite_##_##name_##_register(void)               \
	{                                                                                        \
		shim_add(&suite_##_##name_##_test);                                              \
	}                                                                                        \
	static void suite_##_##name_##_body(param_)
#define cr_make_param_array(type_, array_, length_, ...)                               \
	(struct criterion_test_params)                                                 \
	{                                                                              \
		.size = sizeof(type_), .params = (void *)(array_), .length = (length_) \
	}

#define SHIM_A(c, what, ...)            shim_check((c), true, __FILE__, __LINE__, what, "" __VA_ARGS__)
#define SHIM_E(c, what, ...)            shim_check((c), false, __FILE__, __LINE__, what, "" __VA_ARGS__)
#define cr_fail(...)                    SHIM_E(false, "fail", __VA_ARGS__)
#define cr_assert_fail(...)             SHIM_A(false, "fail", __VA_ARGS__)
#define cr_assert(c, ...)               SHIM_A(!!(c), #c, __VA_ARGS__)
#define cr_expect(c, ...)               SHIM_E(!!(c), #c, __VA_ARGS__)
#define cr_assert_not(c, ...)           SHIM_A(!(c), "not " #c, __VA_ARGS__)
#define cr_expect_not(c, ...)           SHIM_E(!(c), "not " #c, __VA_ARGS__)
#define cr_assert_eq(a, b, ...)         SHIM_A((a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_expect_eq(a, b, ...)         SHIM_E((a) == (b), #a " == " #b, __VA_ARGS__)
#define cr_assert_neq(a, b, ...)        SHIM_A((a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_expect_neq(a, b, ...)        SHIM_E((a) != (b), #a " != " #b, __VA_ARGS__)
#define cr_assert_lt(a, b, ...)         SHIM_A((a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_expect_lt(a, b, ...)         SHIM_E((a) < (b), #a " < " #b, __VA_ARGS__)
#define cr_assert_leq(a, b, ...)        SHIM_A((a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_expect_leq(a, b, ...)        SHIM_E((a) <= (b), #a " <= " #b, __VA_ARGS__)
#define cr_assert_gt(a, b, ...)         SHIM_A((a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_expect_gt(a, b, ...)         SHIM_E((a) > (b), #a " > " #b, __VA_ARGS__)
#define cr_assert_geq(a, b, ...)        SHIM_A((a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_expect_geq(a, b, ...)        SHIM_E((a) >= (b), #a " >= " #b, __VA_ARGS__)
#define cr_assert_null(p, ...)          SHIM_A(!(p), #p " is null", __VA_ARGS__)
#define cr_expect_null(p, ...)          SHIM_E(!(p), #p " is null", __VA_ARGS__)
#define cr_assert_not_null(p, ...)      SHIM_A(!!(p), #p " is not null", __VA_ARGS__)
#define cr_expect_not_null(p, ...)      SHIM_E(!!(p), #p " is not null", __VA_ARGS__)
#define cr_assert_str_eq(a, b, ...)     SHIM_A(strcmp((a), (b)) == 0, #a " is " #b, __VA_ARGS__)
#define cr_expect_str_eq(a, b, ...)     SHIM_E(strcmp((a), (b)) == 0, #a " is " #b, __VA_ARGS__)
#define cr_assert_str_neq(a, b, ...)    SHIM_A(strcmp((a), (b)) != 0, #a " is not " #b, __VA_ARGS__)
#define cr_assert_str_empty(a, ...)     SHIM_A(!*(a), #a " is empty", __VA_ARGS__)
#define cr_assert_str_not_empty(a, ...) SHIM_A(!!*(a), #a " is not empty", __VA_ARGS__)
#define cr_assert_arr_eq(a, b, n, ...)  SHIM_A(memcmp((a), (b), (n)) == 0, #a " is " #b, __VA_ARGS__)
#define cr_expect_arr_eq(a, b, n, ...)  SHIM_E(memcmp((a), (b), (n)) == 0, #a " is " #b, __VA_ARGS__)
#define cr_log_warn(...)                (fprintf(stderr, __VA_ARGS__), fputc('\n', stderr))
#define cr_log_info(...)                cr_log_warn(__VA_ARGS__)
#define cr_log_error(...)               cr_log_warn(__VA_ARGS__)
#define cr_skip_test(...)               (cr_log_warn("skipped: " __VA_ARGS__), exit(SHIM_SKIPPED))
#define cr_skip(...)                    cr_skip_test(__VA_ARGS__)

#endif
