/* The file of last words: what was told of which VM survives the agent; damage counts as nothing heard. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include "agents/heard.h"

static const struct pw_uuid A = { { 1 } }, B = { { 2 } };
static struct pw_err err;
static char dir[64];
static struct heard h;

static void setup(void)
{
	snprintf(dir, sizeof dir, "/tmp/pw-heard-XXXXXX");
	cr_assert(mkdtemp(dir));
	cr_assert_eq(heard_open(&h, dir, true, &err), PW_OK, "%s", err.msg);
}

static void teardown(void)
{
	char command[100];

	heard_release(&h);
	snprintf(command, sizeof command, "rm -r %s", dir);
	cr_assert_eq(system(command), 0);
}

TestSuite(heard, .init = setup, .fini = teardown, .timeout = 20);

static void again(void)
{
	heard_release(&h);
	cr_assert_eq(heard_open(&h, dir, true, &err), PW_OK, "%s", err.msg);
}

static void put(const struct pw_uuid *vm, uint64_t revision, bool plain)
{
	cr_assert_eq(heard_put(&h, vm, revision, plain, &err), PW_OK, "%s", err.msg);
}

Test(heard, only_an_end_after_the_last_word_is_later)
{
	cr_assert(!heard_is_later(&h, &A, 100), "nothing was heard of it");
	put(&A, 50, false);
	cr_assert(!heard_is_later(&h, &A, 0));
	cr_assert(!heard_is_later(&h, &A, 50));
	cr_assert(heard_is_later(&h, &A, 51));
	cr_assert(!heard_is_later(&h, &B, 51));
	put(&A, 60, false);
	cr_assert(!heard_is_later(&h, &A, 51));
}

Test(heard, words_outlive_the_agent)
{
	put(&A, 50, false);
	put(&B, 70, true);
	again();
	cr_assert_eq(h.n, 2);
	cr_assert_eq(heard_of(&h, &A)->revision, 50);
	cr_assert(!heard_of(&h, &A)->plain && heard_of(&h, &B)->plain);
	heard_drop(&h, &A);
	again();
	cr_assert(!heard_of(&h, &A) && heard_of(&h, &B));
}

Test(heard, without_hardware_that_lasts_nothing_is_kept_of_vms)
{
	heard_release(&h);
	cr_assert_eq(heard_open(&h, dir, false, &err), PW_OK);
	put(&A, 50, false);
	heard_keep(&h);
	again();
	cr_assert_eq(h.n, 0);
	cr_assert_eq(h.seen, 50, "a revision that was seen is kept all the same");
}

Test(heard, a_ledger_that_went_back_has_no_evidence)
{
	put(&A, 50, true);
	put(&B, 90, false);
	cr_assert_eq(heard_restart(&h, 40, &err), PW_OK);
	for (int i = 0; i < 2; i++, again()) {
		cr_assert(!heard_is_later(&h, &A, UINT64_MAX - 1));
		cr_assert(heard_of(&h, &A)->plain);
		cr_assert_eq(h.seen, 40);
	}
	put(&A, 41, true);
	cr_assert(heard_is_later(&h, &A, 42));
	cr_assert(!heard_is_later(&h, &B, 42));
}

Test(heard, the_highest_revision_never_sinks_and_covers_each_word)
{
	heard_see(&h, 70);
	heard_see(&h, 60);
	cr_assert_eq(h.seen, 70);
	put(&A, 90, false);
	cr_assert_eq(h.seen, 90);
	again(); /* heard_keep was never called: the word is a revision that was seen */
	cr_assert_eq(h.seen, 90);
	heard_see(&h, 95);
	heard_keep(&h);
	again();
	cr_assert_eq(h.seen, 95);
}

static void spoil(const char *name, const char *text)
{
	char path[100];
	FILE *f;

	snprintf(path, sizeof path, "%s/%s", dir, name);
	f = fopen(path, "w");
	cr_assert(f && fputs(text, f) >= 0 && fclose(f) == 0);
}

Test(heard, damage_is_nothing_heard)
{
	put(&A, 50, false);
	spoil("vms-heard",
	      "00000000-0000-4000-8000-00000000000g 5 secure\nnonsense\n"
	      "02000000-0000-0000-0000-000000000000 7 secure\n"
	      "03000000-0000-0000-0000-000000000000 x secure\n04000000-0000-0000-0000-000000000000 7 odd\n");
	spoil("revision-seen", "a lot\n");
	again();
	cr_assert_eq(h.n, 1);
	cr_assert_eq(h.seen, 7);
	cr_assert_eq(heard_of(&h, &B)->revision, 7);
}

Test(heard, a_word_that_cannot_be_kept_is_not_taken)
{
	put(&A, 50, false);
	cr_assert_eq(chmod(dir, 0500), 0);
	if (access(dir, W_OK) == 0) { /* as root: a folder in the way */
		char path[100];

		cr_assert_eq(chmod(dir, 0700), 0);
		snprintf(path, sizeof path, "%s/vms-heard.new", dir);
		cr_assert_eq(mkdir(path, 0700), 0);
	}
	cr_assert_eq(heard_put(&h, &A, 60, false, &err), PW_STORAGE);
	cr_assert_eq(heard_put(&h, &B, 60, false, &err), PW_STORAGE);
	cr_assert_eq(heard_of(&h, &A)->revision, 50);
	cr_assert(!heard_of(&h, &B));
	cr_assert_eq(chmod(dir, 0700), 0);
}
