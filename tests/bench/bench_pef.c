/* How fast the model of a POWER host with an ultravisor is. Prints name, value, unit. */
#include "engine/arch/pef.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/bench.h"

#define PAGES  ((uint64_t)1 << 22) /* 256 GiB of 64 KiB pages */
#define ROUNDS ((uint64_t)4000000)

struct bench {
	struct pw_mem mem;
	struct pef m;
	struct pef_vm *vm;
};

static void need(enum pw_status st, enum pef_code code, const char *what)
{
	if (st == PW_OK && code == PEF_H_SUCCESS)
		return;
	fprintf(stderr, "bench_pef: %s: %s\n", what, pef_code_name(code));
	exit(1);
}

static void event(struct bench *b, enum pef_vm_event e)
{
	enum pef_code code = PEF_H_SUCCESS;
	enum pw_status st = pef_vm_call(&b->m, b->vm, e, &(struct pef_call){ 0 }, &code);

	need(st, code, pef_vm_event_name(e));
}

static void page(struct bench *b, uint64_t gfn, uint64_t count, bool in, uint64_t flags)
{
	struct pef_pages p = { .gfn = gfn, .count = count, .flags = flags, .order = PEF_PAGE_SHIFT };
	enum pef_code code = PEF_H_SUCCESS;
	enum pw_status st = in ? pef_page_in(&b->m, b->vm, &p, &(struct pef_call){ 0 }, &code)
			       : pef_page_out(&b->m, b->vm, &p, &(struct pef_call){ 0 }, &code);

	need(st, code, in ? "page-in" : "page-out");
}

static void begin(struct bench *b)
{
	enum pef_code code = PEF_H_SUCCESS;
	enum pw_status st = pef_init(&b->m, &b->mem, PAGES, PEF_LEFT_OUT);

	need(st, code, "init");
	need(pef_vm_new(&b->m, true, true, &b->vm), code, "a VM");
	st = pef_slot_add(&b->m, b->vm, &(struct pef_slot){ 0, 0, PAGES }, &(struct pef_call){ 0 }, &code);
	need(st, code, "a slot");
	event(b, PEF_INIT_START);
	event(b, PEF_INIT_DONE);
}

static void at_random(struct bench *b, const char *name)
{
	uint64_t x = 88172645463325252;
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS / 4; n++) {
		uint64_t gfn = next(&x) % PAGES;

		page(b, gfn, 1, false, 0);
		page(b, gfn, 1, true, 0);
		page(b, gfn, 1, true, PEF_PAGE_IN_SHARED);
		page(b, gfn, 1, true, 0);
	}
	report(name, (double)ROUNDS / (now_s() - start) * 1e-6, "M/s");
}

int main(void)
{
	struct bench b = { 0 };
	double start;

	begin(&b);
	start = now_s();
	page(&b, 0, PAGES, true, 0);
	report("pef_page_in_256gib_at_once", now_s() - start, "s");
	at_random(&b, "pef_out_in_share_in_random_folded");
	for (uint64_t n = 1; n < PAGES; n += 2)
		page(&b, n, 1, false, 0);
	report("pef_bytes_per_page", (double)b.mem.used / (double)PAGES, "bytes");
	for (uint64_t n = 1; n < PAGES; n += 2)
		page(&b, n, 1, true, 0);
	start = now_s();
	for (uint64_t n = 0; n < PAGES; n++)
		page(&b, n, 1, false, 0);
	report("pef_page_out", (double)PAGES / (now_s() - start) * 1e-6, "M/s");
	start = now_s();
	for (uint64_t n = 0; n < PAGES; n++)
		page(&b, n ^ 0x155, 1, true, 0);
	report("pef_page_in_scattered", (double)PAGES / (now_s() - start) * 1e-6, "M/s");
	at_random(&b, "pef_out_in_share_in_random");
	start = now_s();
	event(&b, PEF_SVM_OFF);
	report("pef_svm_off", now_s() - start, "s");
	pef_release(&b.m);
	return 0;
}
