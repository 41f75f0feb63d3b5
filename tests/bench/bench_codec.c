/* How long POST transitions takes to decode: one item of 1024 single-page runs, and a tiny page_in. */
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#include "api/transitions_fast.h"

static double now(void)
{
	struct timespec t;

	clock_gettime(CLOCK_MONOTONIC, &t);
	return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static bool decode(const char *text, size_t len, bool strict)
{
	struct transitions_body body;
	struct codec_fault why;
	struct body *owner;
	bool ok = strict ? transitions_strict(text, len, &body, &owner, &why)
			 : codec_transitions(text, len, &body, &owner, &why);

	if (ok)
		codec_release(owner);
	return ok;
}

static void measure(const char *what, const char *text, size_t len, unsigned rounds)
{
	for (int strict = 0; strict < 2; strict++) {
		double from = now();

		for (unsigned i = 0; i < rounds; i++)
			if (!decode(text, len, strict)) {
				fprintf(stderr, "%s: refused\n", what);
				exit(1);
			}
		printf("%-24s %-7s %6zu bytes %9.3f us\n", what, strict ? "strict" : "decode", len,
		       (now() - from) / rounds);
	}
}

#define HEAD "{\"boot_id\":\"6f1c1b1e-5d4c-4b0e-9a37-0c5b7f2d9a10\",\"epoch\":3,\"batch_seq\":17,\"items\":["
#define VM   "{\"vm\":\"9b2d1c5e-0f4a-4f0b-8c3e-2f6a7b8c9d01\","

int main(void)
{
	static const char tiny[] = HEAD VM "\"op\":\"page_in\",\"gfn\":262143,\"count\":1,"
					   "\"frame\":{\"pool\":\"local\",\"pfn\":1048575}}]}";
	static char batch[1 << 16];
	size_t n = (size_t)snprintf(batch, sizeof batch, HEAD VM "\"op\":\"share\",\"runs\":[");

	for (unsigned i = 0; i < 1024; i++)
		n += (size_t)snprintf(batch + n, sizeof batch - n, "%s[%u,1]", i ? "," : "", 100000 + 2 * i);
	n += (size_t)snprintf(batch + n, sizeof batch - n, "]}]}");
	measure("one page_in", tiny, sizeof tiny - 1, 100000);
	measure("1024 runs", batch, n, 1000);
	return 0;
}
