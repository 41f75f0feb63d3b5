/* Threads that cannot be started: pthread_create returns its error and leaves errno alone. */
#include <criterion/criterion.h>
#include <dlfcn.h>
#include <errno.h>
#include <string.h>

#include "server/service_impl.h"

typedef int (*create_fn)(pthread_t *, const pthread_attr_t *, void *(*)(void *), void *);
static bool refuses;

/* In place of the library's, for the whole program. */
int pthread_create(pthread_t *id, const pthread_attr_t *attr, void *(*fn)(void *), void *arg)
{
	create_fn real;
	void *found = dlsym(RTLD_NEXT, "pthread_create");

	memcpy(&real, &found, sizeof real);
	return refuses ? EAGAIN : real(id, attr, fn, arg);
}

static void expect_reason(enum pw_status (*start)(struct service *sv, struct pw_err *err), const char *who)
{
	static struct service sv;
	struct pw_err err = { 0 };

	refuses = true;
	errno = EISDIR;
	cr_expect_eq(start(&sv, &err), PW_NO_MEMORY);
	refuses = false;
	cr_expect(strstr(err.msg, who) && strstr(err.msg, strerror(EAGAIN)), "%s", err.msg);
}

Test(threads, a_start_that_fails_says_why)
{
	expect_reason(writer_start, "writer");
	expect_reason(painter_start, "painter");
}
