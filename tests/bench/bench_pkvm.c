/* How fast the model of arm64 pKVM is. Prints name, value, unit. */
#include "engine/arch/pkvm.h"

#include <stdio.h>
#include <stdlib.h>

#include "tests/bench/bench.h"

#define PAGES    ((uint64_t)1 << 22) /* 16 GiB */
#define TEBIBYTE ((uint64_t)1 << 28) /* pages */
#define META     ((uint64_t)1 << 30)
#define ROUNDS   ((uint64_t)4000000)

struct bench {
	struct pw_mem mem;
	struct pkvm m;
	struct pkvm_vm *secret, *plain;
};

static void need(bool ok, const char *what)
{
	if (ok)
		return;
	fprintf(stderr, "bench_pkvm: %s failed\n", what);
	exit(1);
}

static void page(struct bench *b, enum pkvm_page_op op, const struct pkvm_call *c)
{
	struct pkvm_answer a;

	need(pkvm_page_call(&b->m, op, c, &a) == PW_OK && a.code == PKVM_OK, pkvm_page_op_name(op));
}

static void leaf(struct bench *b, enum pkvm_leaf_op op, const struct pkvm_call *c)
{
	struct pkvm_answer a;

	need(pkvm_leaf_call(&b->m, op, c, &a) == PW_OK && a.code == PKVM_OK, pkvm_leaf_op_name(op));
}

static struct pkvm_vm *make_vm(struct bench *b, enum pkvm_kind kind, uint64_t own)
{
	struct pkvm_vm_params p = { .kind = kind,
				    .vcpus = 1,
				    .host_page = own,
				    .donated = (own + 1) << PKVM_PAGE_SHIFT,
				    .donated_pages = 1,
				    .table = (own + 2) << PKVM_PAGE_SHIFT,
				    .table_pages = 1 };
	enum pkvm_code code;
	unsigned handle;

	page(b, PKVM_HSH, &(struct pkvm_call){ .pfn = own });
	need(pkvm_reserve(&b->m, &handle, &code) == PW_OK && code == PKVM_OK, "reserve");
	need(pkvm_init_vm(&b->m, handle, &p, &code) == PW_OK && code == PKVM_OK, "init_vm");
	return pkvm_vm_of(&b->m, handle);
}

static void begin(struct bench *b)
{
	static const struct pkvm_region regions[] = { { 0, TEBIBYTE, false }, { META, 64, false } };

	*b = (struct bench){ 0 };
	need(pkvm_init(&b->m, &b->mem, PKVM_MAINLINE, regions, PW_ARRAY_LEN(regions), 1) == PW_OK, "init");
	b->secret = make_vm(b, PKVM_PROTECTED, META);
	b->plain = make_vm(b, PKVM_NON_PROTECTED, META + 8);
}

/* Each page is donated to a scattered GFN, shared to and fro at random, and reclaimed. */
static void pages_of_a_guest(struct bench *b)
{
	uint64_t x = 88172645463325252;
	double start = now_s();

	for (uint64_t n = 0; n < PAGES; n++)
		page(b, PKVM_HDG, &(struct pkvm_call){ .vm = b->secret, .gfn = n ^ 0x155, .pfn = n });
	report("pkvm_donate", (double)PAGES / (now_s() - start) * 1e-6, "M/s");
	start = now_s();
	for (uint64_t n = 0; n < ROUNDS / 2; n++) {
		struct pkvm_call c = { .vm = b->secret, .gfn = next(&x) % PAGES };

		leaf(b, PKVM_GSH, &c);
		leaf(b, PKVM_GUH, &c);
	}
	report("pkvm_share_unshare_random", (double)ROUNDS / (now_s() - start) * 1e-6, "M/s");
	report("pkvm_bytes_per_page", (double)b->mem.used / (double)PAGES, "bytes");
	need(pkvm_start_teardown(&b->m, pkvm_handle(b->secret)) == PKVM_OK, "teardown");
	start = now_s();
	for (uint64_t n = 0; n < PAGES; n++)
		leaf(b, PKVM_RCL, &(struct pkvm_call){ .vm = b->secret, .gfn = n });
	report("pkvm_reclaim", (double)PAGES / (now_s() - start) * 1e-6, "M/s");
}

static void share_and_pin(struct bench *b, const char *name, uint64_t step)
{
	uint64_t x = 88172645463325252;
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS / 4; n++) {
		struct pkvm_call c = { .pfn = next(&x) % (PAGES / step) * step };

		page(b, PKVM_HSH, &c);
		page(b, PKVM_PIN, &c);
		page(b, PKVM_UNPIN, &c);
		page(b, PKVM_HUH, &c);
	}
	report(name, (double)ROUNDS / (now_s() - start) * 1e-6, "M/s");
}

/* Where every other page is the hypervisor's; and where all are alike, so that each call unfolds a block or folds it.
 */
static void pages_of_the_host(struct bench *b)
{
	share_and_pin(b, "pkvm_share_pin_random_folded", 1);
	for (uint64_t n = 1; n < PAGES; n += 2)
		page(b, PKVM_HDH, &(struct pkvm_call){ .pfn = n });
	share_and_pin(b, "pkvm_share_pin_random", 2);
	for (uint64_t n = 1; n < PAGES; n += 2)
		page(b, PKVM_YDH, &(struct pkvm_call){ .pfn = n });
}

static void refusals(struct bench *b)
{
	uint64_t x = 88172645463325252, refused = 0;
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS; n++) {
		struct pkvm_answer a;

		need(pkvm_page_call(&b->m, PKVM_YDH, &(struct pkvm_call){ .pfn = next(&x) % PAGES }, &a) == PW_OK, "");
		refused += a.code == PKVM_EPERM;
	}
	need(refused == ROUNDS, "refusing");
	report("pkvm_refuse_random", (double)ROUNDS / (now_s() - start) * 1e-6, "M/s");
}

/* 1 TiB, block by block, into one GFN space and out again. */
static void terabyte(struct bench *b)
{
	double start = now_s();

	for (uint64_t at = 0; at < TEBIBYTE; at += PKVM_BLOCK_PAGES)
		page(b, PKVM_HSG,
		     &(struct pkvm_call){ .vm = b->plain, .gfn = at, .pfn = at, .nr = PKVM_BLOCK_PAGES, .prot = 7 });
	report("pkvm_share_1tib_by_blocks", now_s() - start, "s");
	report("pkvm_bytes_1tib", (double)(tree_bytes(&b->plain->leaves) + tree_bytes(&b->m.pages)), "bytes");
	start = now_s();
	for (uint64_t at = 0; at < TEBIBYTE; at += PKVM_BLOCK_PAGES)
		leaf(b, PKVM_HUG, &(struct pkvm_call){ .vm = b->plain, .gfn = at, .nr = PKVM_BLOCK_PAGES });
	report("pkvm_unshare_1tib_by_blocks", now_s() - start, "s");
}

static void runs(struct pkvm_vcpu *v)
{
	struct pkvm_trap trap = { .exit = PKVM_EXIT_LOAD, .esr = 0x93830007, .ipa = 0x9000000, .far = 0x9000010 };
	struct pkvm_ctxt host = { .x = { 42 } };
	struct pkvm_wish wish = { .ctxt = &host, .skip = true };
	double start = now_s();

	for (uint64_t n = 0; n < ROUNDS; n++)
		need(pkvm_vcpu_exit(v, &trap) == PKVM_OK && pkvm_vcpu_enter(v, &wish) == PKVM_OK, "a run");
	report("pkvm_exit_and_enter", (double)ROUNDS / (now_s() - start) * 1e-6, "M/s");
}

int main(void)
{
	struct pkvm_vcpu v;
	struct bench b;

	begin(&b);
	pages_of_the_host(&b);
	refusals(&b);
	pages_of_a_guest(&b);
	terabyte(&b);
	pkvm_release(&b.m);
	pkvm_vcpu_init(&v, PKVM_MAINLINE, true, &(struct pkvm_vcpu_setup){ .primary = true });
	runs(&v);
	return 0;
}
