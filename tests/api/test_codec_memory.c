/* Each allocation of each decoder fails once: the answer is no_memory and never another value. Sanitizers bring their
 * own malloc, so there this is empty. */
#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/codec_vcpu.h"
#include "tests/lib/transitions_same.h"

#ifndef __has_feature
#define __has_feature(x) 0
#endif
#if !defined(__SANITIZE_ADDRESS__) && !defined(__SANITIZE_THREAD__) && !__has_feature(address_sanitizer) && \
	!__has_feature(thread_sanitizer)

void *__libc_malloc(size_t size);
void *__libc_calloc(size_t n, size_t size);
void *__libc_realloc(void *p, size_t size);

static _Thread_local long until_failure = -1; /* -1: none */
static _Thread_local bool fired;

static bool fails(void)
{
	if (until_failure < 0)
		return false;
	if (until_failure-- > 0)
		return false;
	fired = true;
	return true;
}

void *malloc(size_t size)
{
	return fails() ? NULL : __libc_malloc(size);
}

void *calloc(size_t n, size_t size)
{
	return fails() ? NULL : __libc_calloc(n, size);
}

void *realloc(void *p, size_t size)
{
	return fails() ? NULL : __libc_realloc(p, size);
}

#define ID "\"9b2d1c5e-0f4a-4f0b-8c3e-2f6a7b8c9d01\""

typedef bool (*take_fn)(const char *text, size_t len, struct body **owner, struct codec_fault *why);
#define TAKE(name, decoder)                                                                                 \
	static bool take_##name(const char *text, size_t len, struct body **owner, struct codec_fault *why) \
	{                                                                                                   \
		struct name##_body body;                                                                    \
                                                                                                            \
		return decoder(text, len, &body, owner, why);                                               \
	}
TAKE(host, codec_host)
TAKE(frames, codec_frames)
TAKE(pool, codec_pool)
TAKE(vm, codec_vm)
TAKE(operation, codec_operation)
TAKE(vcpu, codec_vcpu)

static const struct {
	take_fn take;
	const char *text;
} cases[] = {
	{ take_host, "{\"name\":\"h\",\"boot_id\":" ID ",\"backends\":[{\"arch\":\"pef\",\"kind\":\"emulated\"}],"
		     "\"pools\":[{\"pool\":\"local\",\"base_pfn\":0,\"frames\":1048576}]}" },
	{ take_frames, "{\"items\":[{\"pool\":\"x\",\"pfn\":0,\"count\":1,\"reason\":\"undelegate failed\"}]}" },
	{ take_pool, "{\"base_pfn\":0,\"frames\":1,\"hosts\":[" ID "]}" },
	{ take_vm, "{\"host\":" ID ",\"arch\":\"tdx\",\"slots\":[{\"slot\":0,\"base_gfn\":0,\"pages\":1}]}" },
	{ take_operation, "{\"kind\":\"launch\",\"params\":{\"shared\":[[1,2]]}}" },
	{ take_vcpu,
	  "{\"boot_id\":\"b\",\"epoch\":1,\"exit\":\"HVC CPU_ON\",\"items\":{\"x0\":\"0x84000003\",\"x1\":2}}" },
};

static void sweep(take_fn take, const char *text)
{
	unsigned refused = 0;

	for (long n = 0;; n++) {
		struct codec_fault why = { .no_memory = false };
		struct body *owner = NULL;
		bool ok;

		fired = false;
		until_failure = n;
		ok = take(text, strlen(text), &owner, &why);
		until_failure = -1;
		codec_release(owner);
		cr_assert(ok ? !fired : fired && why.no_memory, "%s, allocation %ld: %s", text, n, why.detail);
		if (!fired)
			break;
		refused++;
	}
	cr_assert_gt(refused, 5);
}

Test(codec_memory, is_the_only_excuse_when_it_runs_out)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		sweep(cases[i].take, cases[i].text);
}

static const char transitions[] =
	"{\"boot_id\":" ID ",\"epoch\":3,\"items\":[{\"vm\":" ID
	",\"op\":\"page_in\",\"pool\":\"a-pool-with-a-long-name\","
	"\"runs\":[[1234567890,1,1234567],[1234567892,1,1234568],[1234567894,1,1234569]]},"
	"{\"vm\":" ID
	",\"op\":\"share\",\"gfns\":[1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6,7,8,9,1,2,3,4,5,6]}]}";

Test(codec_memory, never_changes_what_a_batch_says)
{
	struct transitions_body want, got;
	struct body *wanted, *owner;
	struct codec_fault why;

	cr_assert(codec_transitions(transitions, sizeof transitions - 1, &want, &wanted, &why));
	for (unsigned strict = 0; strict < 2; strict++)
		for (long n = 0;; n++) {
			bool ok;

			fired = false;
			until_failure = n;
			ok = strict ? transitions_strict(transitions, sizeof transitions - 1, &got, &owner, &why)
				    : codec_transitions(transitions, sizeof transitions - 1, &got, &owner, &why);
			until_failure = -1;
			cr_assert(ok ? same_body(&want, &got) : why.no_memory, "allocation %ld: %s", n, why.detail);
			codec_release(owner);
			if (!fired)
				break;
		}
	codec_release(wanted);
}
#endif
