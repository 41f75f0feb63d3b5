/* tests/fuzz/fuzz_tdvf.c
 *
 * libFuzzer entry: a firmware image. What must hold for any input: nothing is read out of bounds, and sections of an
 * image that is taken lie inside it.
 */
#include <stdlib.h>

#include "api/measure_tdx.h"

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	uint64_t pages = 0;
	uint8_t out[MRTD_BYTES];
	struct tdvf t;

	if (tdvf_parse(data, size, &t, NULL) != PW_OK)
		return 0;
	for (unsigned i = 0; i < t.count; i++) {
		if ((uint64_t)t.section[i].offset + t.section[i].raw_size > size)
			abort();
		pages += t.section[i].size / MRTD_PAGE;
	}
	if (pages <= 64 && measure_tdx(data, size, MEASURE_TDX_BY_PAGE, out, NULL) != PW_OK)
		abort();
	return 0;
}
