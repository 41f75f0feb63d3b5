#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "tests/lib/store_dir.h"

static struct store_dir d;
static struct pw_err err;

static void setup(void)
{
	store_dir_make(&d);
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
}

static void teardown(void)
{
	store_rollback(d.s);
	store_dir_remove(&d);
}

TestSuite(answer, .init = setup, .fini = teardown, .timeout = 20);

static void save(const char *scope, const char *key, unsigned status, int64_t expires_ms)
{
	struct answer a = { .status = status,
			    .headers = "Location: /v1/vms/1\n",
			    .body = "{\"a\":\0 1}",
			    .size = 9,
			    .expires_ms = expires_ms };

	memset(a.request_hash, (int)status & 0xff, sizeof a.request_hash);
	cr_assert_eq(store_answer_save(d.s, scope, key, &a, &err), PW_OK, "%s", err.msg);
}

static unsigned find(const char *scope, const char *key, int64_t now_ms)
{
	struct answer a = { 0 };
	enum pw_status st = store_answer_find(d.s, scope, key, now_ms, &a, &err);
	uint8_t hash[STORE_HASH];

	if (st == PW_NOT_FOUND)
		return 0;
	cr_assert_eq(st, PW_OK, "%s", err.msg);
	cr_assert_str_eq(a.headers, "Location: /v1/vms/1\n");
	cr_assert_eq(a.size, 9);
	cr_assert_eq(memcmp(a.body, "{\"a\":\0 1}", 9), 0);
	memset(hash, (int)a.status & 0xff, sizeof hash);
	cr_assert_eq(memcmp(a.request_hash, hash, sizeof hash), 0);
	free(a.memory);
	return a.status;
}

static void next_group(void)
{
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
}

Test(answer, saved_one_is_found_in_its_group_and_after)
{
	save("token", "key", 201, 1000);
	cr_assert_eq(find("token", "key", 5), 201);
	next_group();
	cr_assert_eq(find("token", "key", 5), 201);
	cr_assert_eq(find("token", "other", 5), 0);
	cr_assert_eq(find("other", "key", 5), 0);
}

Test(answer, goes_with_its_group)
{
	save("token", "key", 201, 1000);
	store_rollback(d.s);
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(find("token", "key", 5), 0);
}

Test(answer, saving_again_replaces)
{
	save("host", "batch", 200, 1000);
	save("host", "batch", 409, 2000);
	cr_assert_eq(find("host", "batch", 1500), 409);
}

Test(answer, survives_reopening)
{
	save("token", "key", 201, 1000);
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
	store_dir_reopen(&d);
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(find("token", "key", 5), 201);
}

Test(answer, expired_one_is_not_found)
{
	save("token", "key", 201, 1000);
	cr_assert_eq(find("token", "key", 999), 201);
	cr_assert_eq(find("token", "key", 1000), 0);
}

Test(answer, expiry_takes_the_oldest_first_and_no_more_than_asked)
{
	static const char *const keys[] = { "a", "b", "c", "d" };
	unsigned gone = 9;

	for (unsigned i = 0; i < 4; i++)
		save("token", keys[i], 201, 400 - (int64_t)i * 100);
	cr_assert_eq(store_answers_expire(d.s, 300, 2, &gone, &err), PW_OK);
	cr_assert_eq(gone, 2);
	next_group();
	cr_assert_eq(store_ask(d.path, "journal.db", "SELECT count(*) FROM answer"), 2);
	cr_assert_eq(find("token", "a", 0), 201);
	cr_assert_eq(find("token", "b", 0), 201);
	cr_assert_eq(store_answers_expire(d.s, 300, 100, &gone, &err), PW_OK);
	cr_assert_eq(gone, 1);
	cr_assert_eq(find("token", "b", 0), 0);
	cr_assert_eq(find("token", "a", 0), 201);
}

Test(answer, empty_one_and_one_of_a_megabyte_come_back)
{
	static char big[1 << 20];
	struct answer a = { .status = 204, .headers = "", .body = NULL, .size = 0, .expires_ms = 9 }, out;

	cr_assert_eq(store_answer_save(d.s, "t", "empty", &a, &err), PW_OK, "%s", err.msg);
	memset(big, 'x', sizeof big);
	a.body = big;
	a.size = sizeof big;
	cr_assert_eq(store_answer_save(d.s, "t", "big", &a, &err), PW_OK, "%s", err.msg);
	next_group();
	cr_assert_eq(store_answer_find(d.s, "t", "empty", 0, &out, &err), PW_OK);
	cr_assert_eq(out.size, 0);
	cr_assert_str_eq(out.headers, "");
	free(out.memory);
	cr_assert_eq(store_answer_find(d.s, "t", "big", 0, &out, &err), PW_OK);
	cr_assert(out.size == sizeof big && memcmp(out.body, big, sizeof big) == 0);
	free(out.memory);
}

Test(answer, row_with_nonsense_is_refused)
{
	save("token", "key", 201, 1000);
	cr_assert_eq(store_commit(d.s, &err), PW_OK);
	store_tamper(d.path, "journal.db", "PRAGMA ignore_check_constraints = 1; UPDATE answer SET status = -5");
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
	cr_assert_eq(store_answer_find(d.s, "token", "key", 0, &(struct answer){ 0 }, &err), PW_STORAGE);
	cr_assert(strstr(err.msg, "journal.db: table answer: status"), "%s", err.msg);
}

Test(answer, failed_save_spoils_the_group)
{
	struct answer a = { .status = 1000, .headers = "", .body = "", .size = 0 };

	cr_assert_eq(store_answer_save(d.s, "t", "k", &a, &err), PW_STORAGE);
	cr_assert_eq(store_commit(d.s, &err), PW_CONFLICT);
	cr_assert_eq(store_begin(d.s, &err), PW_OK);
}
