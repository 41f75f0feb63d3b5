#include "engine/status.h"

#include <criterion/criterion.h>
#include <string.h>

Test(status, each_has_a_name_of_its_own)
{
	for (int a = 0; a < PW_STATUS_COUNT; a++)
		for (int b = 0; b < a; b++)
			cr_assert_str_neq(pw_status_name((enum pw_status)a), pw_status_name((enum pw_status)b));
	cr_assert_str_eq(pw_status_name(PW_NOT_FOUND), "not-found");
	cr_assert_str_eq(pw_status_name(PW_STATUS_COUNT), "unknown");
}

Test(status, a_failure_is_status_and_message)
{
	struct pw_err err;

	cr_assert_eq(pw_fail(&err, PW_CONFLICT, "frame %d", 7), PW_CONFLICT);
	cr_assert_eq(err.status, PW_CONFLICT);
	cr_assert_str_eq(err.msg, "frame 7");
	cr_assert_eq(pw_fail(NULL, PW_BUSY, "frame %d", 7), PW_BUSY);
}

Test(status, a_wrap_puts_context_in_front)
{
	struct pw_err err;

	pw_fail(&err, PW_STORAGE, "disk full");
	cr_assert_eq(pw_wrap(&err, "saving VM %d", 3), PW_STORAGE);
	cr_assert_str_eq(err.msg, "saving VM 3: disk full");
}

Test(status, long_messages_are_cut_not_overrun)
{
	struct pw_err err;

	pw_fail(&err, PW_STORAGE, "%0200d", 1);
	for (int i = 0; i < 100; i++)
		cr_assert_eq(pw_wrap(&err, "%050d", i), PW_STORAGE);
	cr_assert_eq(strlen(err.msg), sizeof err.msg - 1);
	cr_assert_eq(pw_wrap(&err, "%01000d", 1), PW_STORAGE);
	cr_assert_lt(strlen(err.msg), sizeof err.msg);
}
