/* libFuzzer entry over every decoder of api/codec.h. The first byte chooses one; the rest is the body.
 * For transitions it also holds the fast decoder against the strict one. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/codec_vcpu.h"
#include "tests/lib/transitions_same.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

#define FUZZ(name)                                                    \
	static void fuzz_##name(const char *text, size_t len)         \
	{                                                             \
		struct name##_body body;                              \
		struct codec_fault why;                               \
		struct body *owner;                                   \
                                                                      \
		if (codec_##name(text, len, &body, &owner, &why))     \
			codec_release(owner);                         \
		else if (!why.no_memory && (!why.detail[0] || owner)) \
			abort();                                      \
	}
FUZZ(host)
FUZZ(current)
FUZZ(empty)
FUZZ(fence)
FUZZ(frames)
FUZZ(pool)
FUZZ(vm)
FUZZ(slot)
FUZZ(lifecycle)
FUZZ(operation)
FUZZ(result)
FUZZ(token)
FUZZ(backup)
FUZZ(vcpu)

static void fuzz_transitions(const char *text, size_t len)
{
	if (decoders_agree(text, len) == DISAGREE)
		abort();
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static void (*const targets[])(const char *, size_t) = {
		fuzz_host,      fuzz_current,   fuzz_empty,  fuzz_frames, fuzz_pool,   fuzz_vm,   fuzz_slot,
		fuzz_lifecycle, fuzz_operation, fuzz_result, fuzz_token,  fuzz_backup, fuzz_vcpu, fuzz_fence,
	};
	char *text;

	if (!size)
		return 0;
	text = malloc(size); /* a copy of exactly that size, so that reading past its end shows */
	if (!text)
		return 0;
	memcpy(text, data + 1, size - 1);
	if (data[0] % 32 < PW_ARRAY_LEN(targets))
		targets[data[0] % 32](text, size - 1);
	else
		fuzz_transitions(text, size - 1);
	free(text);
	return 0;
}
