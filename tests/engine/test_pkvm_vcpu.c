#include "engine/arch/pkvm_vcpu.h"

#include <criterion/criterion.h>
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#define SECRET ((uint64_t)0x5ec2e75ec2e70000)
#define ESR_LOAD(rt, size, is_signed, is_64)                                                      \
	((uint64_t)0x24 << 26 | 1u << 24 | (uint64_t)(size) << 22 | (uint64_t)(is_signed) << 21 | \
	 (uint64_t)(rt) << 16 | (uint64_t)(is_64) << 15 | 7)
#define ESR_STORE(rt, size)     (ESR_LOAD(rt, size, 0, 1) | 1u << 6)
#define ESR_SYSREG(rt, is_read) ((uint64_t)0x18 << 26 | (uint64_t)(rt) << 5 | (is_read))
#define ESR_VALID               ((uint64_t)1 << 24)

/* Every register holds a secret of its own. */
static struct pkvm_vcpu secret_vcpu(enum pkvm_generation g, bool is_protected)
{
	struct pkvm_vcpu v;

	pkvm_vcpu_init(&v, g, is_protected, &(struct pkvm_vcpu_setup){ .primary = true });
	for (unsigned i = 0; i < 31; i++)
		v.ctxt.x[i] = SECRET + i;
	for (unsigned i = 0; i < PKVM_SYSREG_COUNT; i++)
		v.ctxt.sysregs[i] = SECRET + 0x100 + i;
	for (unsigned i = 0; i < 32; i++)
		v.ctxt.v[i][0] = v.ctxt.v[i][1] = SECRET + 0x200 + i;
	v.ctxt.sp = SECRET + 0x300;
	v.ctxt.pc = SECRET + 0x400;
	v.ctxt.pstate = 0x600003c5;
	v.ctxt.sysregs[PKVM_SCTLR] = SECRET | 1u << 25 | 1u << 24 | 1;
	return v;
}

static struct pkvm_trap trap_of(enum pkvm_exit e)
{
	struct pkvm_trap t = { .exit = e, .far = SECRET + 0x523, .ipa = 0x80001234 };

	if (e == PKVM_EXIT_LOAD)
		t.esr = ESR_LOAD(9, 2, 0, 1);
	else if (e == PKVM_EXIT_STORE)
		t.esr = ESR_STORE(9, 1);
	else if (e == PKVM_EXIT_SYSREG_READ || e == PKVM_EXIT_SYSREG_WRITE)
		t.esr = ESR_SYSREG(9, e == PKVM_EXIT_SYSREG_READ);
	else if (e == PKVM_EXIT_WFX)
		t.esr = (uint64_t)1 << 26 | 9 << 5;
	else
		t.esr = (uint64_t)0x16 << 26 | ESR_VALID | 9 << 5;
	return t;
}

Test(pkvm_vcpu, the_hypervisors_copy_is_small)
{
	cr_expect_lt(sizeof(struct pkvm_ctxt) + sizeof(struct pkvm_hyp_state), 2048);
	cr_expect_lt(sizeof(struct pkvm_host_view), 129);
}

/* Section 8: registers shown, whether the value goes in x0, PSTATE, endianness, page, low bits; what may come in. */
struct row {
	enum pkvm_exit e;
	unsigned regs;
	bool value, mode, endian, page, va;
	const char *may; /* Result Skip Fill Undef Abort */
};
static const struct row android_law[] = {
	{ PKVM_EXIT_MEM_RELINQUISH, 4, 0, 0, 0, 0, 0, "R" },
	{ PKVM_EXIT_DEVICE_POWER, 3, 0, 0, 0, 0, 0, "R" },
};
static const struct row law[] = {
	{ PKVM_EXIT_IRQ, 0, 0, 0, 0, 0, 0, "" },
	{ PKVM_EXIT_SERROR, 0, 0, 0, 0, 0, 0, "" },
	{ PKVM_EXIT_ILLEGAL, 0, 0, 0, 0, 0, 0, "" },
	{ PKVM_EXIT_WFX, 0, 0, 1, 0, 0, 0, "S" },
	{ PKVM_EXIT_CPU_ON, 2, 0, 0, 0, 0, 0, "R" },
	{ PKVM_EXIT_CPU_OFF, 1, 0, 0, 0, 0, 0, "R" },
	{ PKVM_EXIT_CPU_SUSPEND, 1, 0, 0, 0, 0, 0, "R" },
	{ PKVM_EXIT_SYSTEM_OFF, 1, 0, 0, 0, 0, 0, "R" },
	{ PKVM_EXIT_SYSTEM_RESET, 1, 0, 0, 0, 0, 0, "R" },
	{ PKVM_EXIT_SYSTEM_RESET2, 3, 0, 0, 0, 0, 0, "R" },
	{ PKVM_EXIT_AFFINITY_INFO, 3, 0, 0, 0, 0, 0, "R" },
	{ PKVM_EXIT_SYSREG_READ, 0, 0, 1, 0, 0, 0, "SFU" },
	{ PKVM_EXIT_SYSREG_WRITE, 0, 1, 1, 0, 0, 0, "SU" },
	{ PKVM_EXIT_IABT, 0, 0, 0, 0, 1, 0, "A" },
	{ PKVM_EXIT_LOAD, 0, 0, 1, 1, 1, 1, "SFA" },
	{ PKVM_EXIT_STORE, 0, 1, 1, 1, 1, 1, "SA" },
	{ PKVM_EXIT_OPAQUE, 0, 0, 1, 1, 1, 1, "A" },
	{ PKVM_EXIT_SHARE, 0, 0, 0, 0, 1, 0, "" },
};

static unsigned may_of(const char *letters)
{
	return (strchr(letters, 'R') ? PKVM_MAY_RESULT : 0) | (strchr(letters, 'S') ? PKVM_MAY_SKIP : 0) |
	       (strchr(letters, 'F') ? PKVM_MAY_FILL : 0) | (strchr(letters, 'U') ? PKVM_MAY_UNDEF : 0) |
	       (strchr(letters, 'A') ? PKVM_MAY_ABORT : 0);
}

static void check_exit(enum pkvm_generation g, const struct row *row)
{
	struct pkvm_vcpu v = secret_vcpu(g, true);
	struct pkvm_trap t = trap_of(row->e);
	struct pkvm_host_view want = { .exit = row->e, .esr = t.esr };

	want.reg_count = row->value ? 1 : row->regs;
	for (unsigned r = 0; r < row->regs; r++)
		want.x[r] = SECRET + r;
	if (row->value)
		want.x[0] = row->e == PKVM_EXIT_STORE ? (SECRET + 9) & 0xffff : SECRET + 9;
	if (row->mode)
		want.pstate = row->e == PKVM_EXIT_WFX ? 0x105 : 0x5;
	if (row->endian)
		want.sctlr = v.ctxt.sysregs[PKVM_SCTLR] & (3u << 24);
	if (row->page)
		want.ipa = 0x80001000;
	if (row->va)
		want.va = 0x523;
	if (row->e == PKVM_EXIT_LOAD || row->e == PKVM_EXIT_STORE)
		want.esr &= ~((uint64_t)0x1f << 16);
	else if (row->e == PKVM_EXIT_OPAQUE)
		want.esr &= ~ESR_VALID;
	else if (row->e == PKVM_EXIT_SHARE)
		want.esr = 0x90000047;
	else if (row->mode)
		want.esr &= ~((uint64_t)0x1f << 5);
	cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
	cr_expect_eq(memcmp(&v.view, &want, sizeof want), 0, "%s", pkvm_exit_name(row->e));
	cr_expect_eq(pkvm_exit_row(row->e)->may, may_of(row->may), "%s", pkvm_exit_name(row->e));
	cr_expect_null(pkvm_vcpu_sync(&v));
}

Test(pkvm_vcpu, each_exit_shows_what_the_law_says_and_no_more)
{
	cr_expect_eq(PW_ARRAY_LEN(law) + PW_ARRAY_LEN(android_law) + 1, PKVM_EXIT_COUNT, "and any other HVC");
	for (size_t i = 0; i < PW_ARRAY_LEN(law); i++) {
		check_exit(PKVM_MAINLINE, &law[i]);
		if (law[i].e != PKVM_EXIT_AFFINITY_INFO) /* which Android's hypervisor answers itself */
			check_exit(PKVM_ANDROID, &law[i]);
	}
	for (size_t i = 0; i < PW_ARRAY_LEN(android_law); i++)
		check_exit(PKVM_ANDROID, &android_law[i]);
}

Test(pkvm_vcpu, what_must_not_reach_the_host_does_not)
{
	static const enum pkvm_exit mainline[] = { PKVM_EXIT_MEM_RELINQUISH, PKVM_EXIT_DEVICE_POWER,
						   PKVM_EXIT_HVC_OTHER };
	static const enum pkvm_exit android[] = { PKVM_EXIT_AFFINITY_INFO, PKVM_EXIT_HVC_OTHER };
	struct pkvm_host_view nothing = { 0 };

	for (size_t i = 0; i < PW_ARRAY_LEN(mainline); i++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
		struct pkvm_trap t = trap_of(mainline[i]);

		cr_expect_eq(pkvm_vcpu_exit(&v, &t), PKVM_PANIC);
		cr_expect_eq(memcmp(&v.view, &nothing, sizeof nothing), 0);
	}
	for (size_t i = 0; i < PW_ARRAY_LEN(android); i++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_ANDROID, true);
		struct pkvm_trap t = trap_of(android[i]);

		cr_expect_eq(pkvm_vcpu_exit(&v, &t), PKVM_PANIC);
	}
	struct pkvm_vcpu v = secret_vcpu(PKVM_ANDROID, true);
	struct pkvm_trap t = trap_of(PKVM_EXIT_MEM_RELINQUISH);

	cr_expect_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
	cr_expect(v.view.reg_count == 4 && v.view.x[3] == SECRET + 3);
	t = trap_of(PKVM_EXIT_DEVICE_POWER);
	cr_expect_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
	cr_expect(v.view.reg_count == 3 && v.view.x[3] == 0);
}

/* It shows nothing of a guest and lets nothing in: there is no such exit. */
Test(pkvm_vcpu, any_other_call_has_nothing_to_show)
{
	struct pkvm_exit_item item;

	for (unsigned n = 0; pkvm_exit_item(PKVM_EXIT_HVC_OTHER, 0, n, &item); n++)
		cr_expect(item.bits == 0 || strcmp(item.name, "ESR_EL2") == 0, "%s", item.name);
	cr_expect_eq(pkvm_exit_row(PKVM_EXIT_HVC_OTHER)->may, 0);
}

/* A host that writes all it can, and wishes all there is. */
static struct pkvm_ctxt evil_ctxt(void)
{
	struct pkvm_ctxt c;

	memset(&c, 0xee, sizeof c);
	return c;
}

static unsigned registers_changed(const struct pkvm_ctxt *a, const struct pkvm_ctxt *b)
{
	const uint8_t *p = (const uint8_t *)a, *q = (const uint8_t *)b;
	unsigned n = 0;

	for (size_t i = 0; i < sizeof *a; i += 8)
		n += memcmp(p + i, q + i, 8) != 0;
	return n;
}

/* All but the value and the valid bit is as at an exit that can be decoded; all that the host may do is to inject. */
static void check_opaque(enum pkvm_generation g, const struct pkvm_trap *t)
{
	struct pkvm_vcpu v = secret_vcpu(g, true);
	struct pkvm_host_view want = { .exit = PKVM_EXIT_OPAQUE,
				       .esr = t->esr & ~ESR_VALID,
				       .ipa = 0x80001000,
				       .va = 0x523,
				       .pstate = 5,
				       .sctlr = v.ctxt.sysregs[PKVM_SCTLR] & (3u << 24) };
	struct pkvm_ctxt before = v.ctxt, host = { .x = { 1 } };

	cr_assert_eq(pkvm_vcpu_exit(&v, t), PKVM_OK);
	cr_expect_eq(memcmp(&v.view, &want, sizeof want), 0);
	cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .ctxt = &host, .skip = true, .undef = true }), PKVM_OK);
	cr_expect_eq(memcmp(&v.ctxt, &before, sizeof before), 0, "nothing is filled or skipped");
	cr_assert_eq(pkvm_vcpu_exit(&v, t), PKVM_OK);
	cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .ctxt = &host, .abort = true }), PKVM_OK);
	cr_expect_eq(v.ctxt.sysregs[PKVM_FAR], t->far);
}

/* A pair, SIMD: ISV 0. */
Test(pkvm_vcpu, an_abort_without_a_valid_syndrome_shows_the_fault_and_no_value)
{
	static const enum pkvm_exit exits[] = { PKVM_EXIT_LOAD, PKVM_EXIT_STORE, PKVM_EXIT_OPAQUE };

	for (int g = 0; g < PKVM_GENERATION_COUNT; g++)
		for (size_t i = 0; i < PW_ARRAY_LEN(exits); i++) {
			struct pkvm_trap t = trap_of(exits[i]);

			t.esr &= ~ESR_VALID;
			check_opaque((enum pkvm_generation)g, &t);
		}
}

Test(pkvm_vcpu, the_fault_that_stands_for_a_share_shows_its_page_and_takes_nothing)
{
	for (int g = 0; g < PKVM_GENERATION_COUNT; g++) {
		struct pkvm_vcpu v = secret_vcpu((enum pkvm_generation)g, true);
		struct pkvm_host_view want = { .exit = PKVM_EXIT_SHARE, .esr = 0x90000047, .ipa = 0x80001000 };
		struct pkvm_trap t = trap_of(PKVM_EXIT_SHARE);
		struct pkvm_ctxt before = v.ctxt, evil = evil_ctxt();
		struct pkvm_wish all = { .ctxt = &evil, .skip = true, .undef = true, .abort = true, .failed = true };

		cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
		cr_expect_eq(memcmp(&v.view, &want, sizeof want), 0);
		cr_assert_eq(pkvm_vcpu_enter(&v, &all), PKVM_OK);
		cr_expect_eq(v.ctxt.pc, before.pc - 4, "the call is made again");
		cr_expect_eq(registers_changed(&v.ctxt, &before), 1);
	}
}

Test(pkvm_vcpu, android_hides_what_is_not_registered_as_mmio)
{
	struct pkvm_vcpu v = secret_vcpu(PKVM_ANDROID, true);
	struct pkvm_trap t = trap_of(PKVM_EXIT_STORE);

	t.not_guarded = true;
	check_opaque(PKVM_ANDROID, &t);
	v = secret_vcpu(PKVM_MAINLINE, true);
	cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
	cr_expect_eq(v.view.exit, PKVM_EXIT_STORE);
}

Test(pkvm_vcpu, a_host_that_wishes_nothing_changes_nothing_but_results)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(law); i++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
		struct pkvm_ctxt before = v.ctxt, evil = evil_ctxt();
		struct pkvm_trap t = trap_of(law[i].e);
		unsigned want = strchr(law[i].may, 'R') ? 1 : 0;

		before.pc -= t.exit == PKVM_EXIT_SHARE ? 4 : 0;
		cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
		v.hyp.power = PKVM_POWER_ON;
		cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .ctxt = &evil, .dirty = true }), PKVM_OK);
		cr_expect_eq(registers_changed(&v.ctxt, &before), want, "%s", pkvm_exit_name(law[i].e));
	}
}

/* One wish after the other: the registers that may change, by how many words of the copy. */
Test(pkvm_vcpu, wishes_are_granted_where_the_exit_allows_them)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(law); i++)
		for (int wish = 0; wish < 3; wish++) {
			struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
			struct pkvm_ctxt evil = evil_ctxt();
			struct pkvm_wish w = {
				.ctxt = &evil, .skip = wish == 0, .undef = wish == 1, .abort = wish == 2
			};
			struct pkvm_trap t = trap_of(law[i].e);
			const char *may = law[i].may;
			uint64_t pc = v.ctxt.pc, vbar = v.ctxt.sysregs[PKVM_VBAR];
			bool skips = wish == 0 && strchr(may, 'S');
			bool faults = (wish == 1 && strchr(may, 'U')) || (wish == 2 && strchr(may, 'A'));

			pc -= t.exit == PKVM_EXIT_SHARE ? 4 : 0;
			cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
			v.hyp.power = PKVM_POWER_ON;
			cr_assert_eq(pkvm_vcpu_enter(&v, &w), PKVM_OK);
			cr_expect_eq(v.ctxt.pc,
				     skips    ? pc + 4
				     : faults ? vbar + 0x200
					      : pc,
				     "%s %d", pkvm_exit_name(law[i].e), wish);
			cr_expect_eq(v.ctxt.x[9] != SECRET + 9, skips && strchr(may, 'F'), "%s %d",
				     pkvm_exit_name(law[i].e), wish);
			cr_expect_eq(v.ctxt.x[10], SECRET + 10);
			if (faults)
				cr_expect_eq(v.ctxt.sysregs[PKVM_ELR], pc);
			cr_expect_eq(v.ctxt.sysregs[PKVM_FAR] == t.far, wish == 2 && faults);
			cr_expect_eq(v.hyp.exited, false);
			cr_expect_eq(v.view.esr, 0, "the view ends with the exit");
		}
}

Test(pkvm_vcpu, an_exit_is_answered_once)
{
	struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
	struct pkvm_trap t = trap_of(PKVM_EXIT_LOAD);
	struct pkvm_ctxt evil = evil_ctxt(), before;
	struct pkvm_wish w = { .ctxt = &evil, .skip = true };

	cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
	cr_assert_eq(pkvm_vcpu_enter(&v, &w), PKVM_OK);
	before = v.ctxt;
	cr_assert_eq(pkvm_vcpu_enter(&v, &w), PKVM_OK);
	cr_expect_eq(registers_changed(&v.ctxt, &before), 0);
}

Test(pkvm_vcpu, loads_are_clamped_and_extended_by_the_hypervisor)
{
	static const struct {
		unsigned size, is_signed, is_64;
		uint64_t value, want;
	} cases[] = {
		{ 0, 0, 1, 0xffffffffffffff80, 0x80 },
		{ 0, 1, 1, 0x80, 0xffffffffffffff80 },
		{ 0, 1, 0, 0x80, 0xffffff80 },
		{ 1, 0, 0, 0x12345678, 0x5678 },
		{ 1, 1, 1, 0x7fff, 0x7fff },
		{ 2, 0, 0, 0x123456789, 0x23456789 },
		{ 2, 1, 1, 0x80000000, 0xffffffff80000000 },
		{ 3, 0, 1, 0x8000000000000001, 0x8000000000000001 },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
		struct pkvm_ctxt host = { .x = { cases[i].value } };
		struct pkvm_trap t = { .exit = PKVM_EXIT_LOAD,
				       .esr = ESR_LOAD(30, cases[i].size, cases[i].is_signed, cases[i].is_64) };

		cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
		cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .ctxt = &host, .skip = true }), PKVM_OK);
		cr_expect_eq(v.ctxt.x[30], cases[i].want, "case %zu: %" PRIx64, i, v.ctxt.x[30]);
	}
	struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
	struct pkvm_ctxt host = evil_ctxt(), before = v.ctxt;
	struct pkvm_trap zero = { .exit = PKVM_EXIT_LOAD, .esr = ESR_LOAD(31, 3, 0, 1) };

	cr_assert_eq(pkvm_vcpu_exit(&v, &zero), PKVM_OK);
	cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .ctxt = &host, .skip = true }), PKVM_OK);
	cr_expect_eq(registers_changed(&v.ctxt, &before), 1, "the PC: the zero register takes nothing");
	zero = (struct pkvm_trap){ .exit = PKVM_EXIT_STORE, .esr = ESR_STORE(31, 3) };
	cr_assert_eq(pkvm_vcpu_exit(&v, &zero), PKVM_OK);
	cr_expect_eq(v.view.x[0], 0);
}

Test(pkvm_vcpu, exceptions_go_to_the_vector_of_where_they_came_from)
{
	static const struct {
		uint64_t mode, vector;
		unsigned ec;
	} cases[] = { { 0x0, 0x400, 0x24 }, { 0x4, 0x000, 0x25 }, { 0x5, 0x200, 0x25 } };

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
		struct pkvm_trap t = trap_of(PKVM_EXIT_OPAQUE);

		v.ctxt.pstate = cases[i].mode;
		cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
		cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .abort = true }), PKVM_OK);
		cr_expect_eq(v.ctxt.pc, v.ctxt.sysregs[PKVM_VBAR] + cases[i].vector);
		cr_expect_eq(v.ctxt.sysregs[PKVM_ESR] >> 26, cases[i].ec);
		cr_expect_eq(v.ctxt.sysregs[PKVM_SPSR], cases[i].mode);
		cr_expect_eq(v.ctxt.pstate, 0x3c5);
	}
}

Test(pkvm_vcpu, the_host_keeps_what_is_its_own)
{
	struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);

	v.hyp.hcr = 0x1001;
	cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .hcr = UINT64_MAX, .vsesr = 7 }), PKVM_OK);
	cr_expect_eq(v.hyp.hcr, 0x1001 | 1u << 8 | 1u << 13 | 1u << 14);
	cr_expect_eq(v.hyp.vsesr, 7);
}

/* Virtual interrupts are the host's, in and out, at every exit; what the guest does with them, the host sees. */
Test(pkvm_vcpu, list_registers_are_the_hosts_at_every_entry_and_exit)
{
	const struct pkvm_vgic none = { 0 };

	for (int e = 0; e < PKVM_EXIT_COUNT; e++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_ANDROID, e % 2 == 0);
		struct pkvm_vgic host = { .vmcr = 0xf800 };
		struct pkvm_trap t = trap_of((enum pkvm_exit)e);

		if (v.is_protected && !pkvm_exit_row(t.exit)->reaches_host[PKVM_ANDROID])
			continue;
		for (unsigned i = 0; i < PKVM_HOST_LRS; i++)
			host.lr[i] = ((uint64_t)1 << 62) + i;
		cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .vgic = &host }), PKVM_OK);
		cr_expect_eq(memcmp(&v.hyp.vgic, &host, sizeof host), 0);
		v.hyp.vgic.lr[15] ^= (uint64_t)3 << 62; /* the guest has acknowledged it */
		cr_expect_eq(memcmp(&v.vgic, &none, sizeof none), 0, "it runs");
		cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
		host.lr[15] = ((uint64_t)1 << 63) + 15;
		cr_expect_eq(memcmp(&v.vgic, &host, sizeof host), 0, "%s", pkvm_exit_name(t.exit));
		if (v.hyp.power != PKVM_POWER_ON)
			continue;
		cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ 0 }), PKVM_OK);
		cr_expect_eq(memcmp(&v.hyp.vgic, &none, sizeof none), 0);
	}
}

Test(pkvm_vcpu, a_non_protected_vcpu_works_as_ever)
{
	struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, false);
	struct pkvm_trap t = trap_of(PKVM_EXIT_IRQ);
	struct pkvm_ctxt host;

	cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
	cr_expect(v.view.pc == v.ctxt.pc && v.view.pstate == v.ctxt.pstate && v.view.va == t.far &&
		  v.view.ipa == t.ipa && v.view.esr == t.esr);
	cr_assert_not_null(pkvm_vcpu_sync(&v));
	host = *pkvm_vcpu_sync(&v);
	host.pc += 4;
	host.x[30] = 1;
	cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .ctxt = &host }), PKVM_OK);
	cr_expect_neq(v.ctxt.x[30], 1, "not marked dirty");
	cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .ctxt = &host, .dirty = true }), PKVM_OK);
	cr_expect(v.ctxt.x[30] == 1 && v.ctxt.pc == host.pc);
	t = trap_of(PKVM_EXIT_HVC_OTHER);
	cr_expect_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
}

Test(pkvm_vcpu, boot_state_of_a_protected_vcpu)
{
	struct pkvm_ctxt evil = evil_ctxt();
	struct pkvm_vcpu_setup s = { .primary = true, .pc = 0x8000, .x0 = 42, .mpidr = 3, .ctxt = &evil };
	struct pkvm_vcpu v;

	pkvm_vcpu_init(&v, PKVM_MAINLINE, true, &s);
	cr_expect(v.ctxt.pc == 0x8000 && v.ctxt.x[0] == 42 && v.ctxt.x[1] == 0 && v.ctxt.sp == 0);
	cr_expect(v.ctxt.sysregs[PKVM_MPIDR] == 3 && v.ctxt.sysregs[PKVM_VBAR] == 0);
	cr_expect_eq(v.hyp.power, PKVM_POWER_ON);
	s.primary = false;
	pkvm_vcpu_init(&v, PKVM_MAINLINE, true, &s);
	cr_expect(v.ctxt.pc == 0 && v.hyp.power == PKVM_POWER_OFF);
	cr_expect_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ 0 }), PKVM_EINVAL);
	pkvm_vcpu_init(&v, PKVM_MAINLINE, false, &s);
	cr_expect_eq(v.ctxt.x[7], evil.x[7]);
}

Test(pkvm_vcpu, features_that_a_protected_vm_has)
{
	static const struct {
		struct pkvm_vcpu_setup s;
		enum pkvm_code want;
	} cases[] = {
		{ { .features = PKVM_FEATURE_PSCI_0_2 }, PKVM_OK },
		{ { .features = PKVM_FEATURE_PTRAUTH_ADDRESS | PKVM_FEATURE_PTRAUTH_GENERIC }, PKVM_OK },
		{ { .features = PKVM_FEATURE_POWER_OFF }, PKVM_OK },
		{ { .features = PKVM_FEATURE_PMU_V3 }, PKVM_EINVAL },
		{ { .features = PKVM_FEATURE_PMU_V3, .pmu_permitted = true }, PKVM_OK },
		{ { .features = PKVM_FEATURE_SVE }, PKVM_EINVAL },
		{ { .features = PKVM_FEATURE_EL1_32BIT }, PKVM_EINVAL },
		{ { .features = PKVM_FEATURE_EL2 }, PKVM_EINVAL },
		{ { .features = PKVM_FEATURE_EL2_E2H0 }, PKVM_EINVAL },
		{ { .has_sme = true }, PKVM_EINVAL },
		{ { .lacks_fp = true }, PKVM_EINVAL },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		cr_expect_eq(pkvm_vcpu_allowed(true, &cases[i].s), cases[i].want, "case %zu", i);
		cr_expect_eq(pkvm_vcpu_allowed(false, &cases[i].s), PKVM_OK);
	}
}

/* Section 9. */
Test(pkvm_vcpu, power)
{
	struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
	struct pkvm_trap off = trap_of(PKVM_EXIT_CPU_OFF);

	v.ctxt.sysregs[PKVM_MPIDR] = 5;
	cr_expect_eq(pkvm_cpu_on(NULL, 0, 0), -2);
	cr_expect_eq(pkvm_cpu_on(&v, 0, 0), -4, "it is on");
	cr_assert_eq(pkvm_vcpu_exit(&v, &off), PKVM_OK);
	cr_expect_eq(v.hyp.power, PKVM_POWER_OFF);
	cr_expect_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ 0 }), PKVM_EINVAL);
	cr_expect_eq(pkvm_cpu_on(&v, 0x1000, 1), 0);
	cr_expect_eq(pkvm_cpu_on(&v, 0x2000, 2), -5, "pending");
	pkvm_power_failed(&v);
	cr_expect_eq(v.hyp.power, PKVM_POWER_OFF);
	cr_expect_eq(pkvm_cpu_on(&v, 0x3000, 3), 0);
	cr_expect_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ 0 }), PKVM_OK);
	cr_expect(v.hyp.power == PKVM_POWER_ON && v.ctxt.pc == 0x3000 && v.ctxt.x[0] == 3);
	cr_expect(v.ctxt.x[1] == 0 && v.ctxt.sysregs[PKVM_VBAR] == 0 && v.ctxt.sysregs[PKVM_MPIDR] == 5);
	pkvm_power_failed(&v);
	cr_expect_eq(v.hyp.power, PKVM_POWER_ON, "only what is pending can fail");
}

Test(pkvm_vcpu, a_cpu_on_that_the_host_fails_is_an_internal_failure)
{
	for (int how = 0; how < 3; how++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
		struct pkvm_trap t = trap_of(PKVM_EXIT_CPU_ON);
		struct pkvm_ctxt host = { .x = { how == 2 ? 0xbad : 0 } };

		cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
		cr_assert_eq(pkvm_vcpu_enter(&v, &(struct pkvm_wish){ .ctxt = &host, .failed = how == 1 }), PKVM_OK);
		cr_expect_eq((int64_t)v.ctxt.x[0], how ? -6 : 0);
	}
}

/* L10: nothing but what an exit shows is ever told, whichever way one asks. */
Test(pkvm_vcpu, items_show_the_view_and_say_why_the_rest_is_hidden)
{
	for (int e = -1; e < (int)PW_ARRAY_LEN(law); e++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
		struct pkvm_item item;
		unsigned shown = 0, n = 0;

		if (e >= 0) {
			struct pkvm_trap t = trap_of(law[e].e);

			cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
		}
		for (; pkvm_vcpu_item(&v, n, &item); n++) {
			shown += item.shown;
			cr_expect(item.shown ? !item.why : item.why && item.value == 0, "%s", item.name);
			cr_expect(item.name[0]);
		}
		cr_expect_eq(n, 31 + 3 + PKVM_SYSREG_COUNT + 4);
		cr_expect_eq(shown,
			     e < 0 ? 0
				   : 1 + (law[e].value ? 1 : law[e].regs) + law[e].mode + law[e].endian + law[e].page +
					     law[e].va,
			     "%s", e < 0 ? "no exit" : pkvm_exit_name(law[e].e));
	}
	struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, false);
	struct pkvm_item item;

	cr_assert(pkvm_vcpu_item(&v, 30, &item));
	cr_expect(item.shown && item.value == SECRET + 30 && strcmp(item.name, "x30") == 0);
}

Test(pkvm_vcpu, userspace_is_told_no)
{
	static const struct {
		enum pkvm_user_call c;
		enum pkvm_code want;
	} cases[] = {
		{ PKVM_USER_GET_REG, PKVM_EPERM },       { PKVM_USER_SET_REG, PKVM_EPERM },
		{ PKVM_USER_INIT_AGAIN, PKVM_EPERM },    { PKVM_USER_DEBUG, PKVM_EPERM },
		{ PKVM_USER_INJECT_ABORT, PKVM_EPERM },  { PKVM_USER_BAD_FEATURE, PKVM_EINVAL },
		{ PKVM_USER_OLD_PSCI, PKVM_EINVAL },     { PKVM_USER_COUNTER_OFFSET, PKVM_EINVAL },
		{ PKVM_USER_ABSENT, PKVM_ENXIO },        { PKVM_USER_SLOT_CHANGE, PKVM_EPERM },
		{ PKVM_USER_SLOT_READONLY, PKVM_EPERM }, { PKVM_USER_DIRTY_LOG, PKVM_EPERM },
	};

	cr_assert_eq(PW_ARRAY_LEN(cases), PKVM_USER_CALL_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		cr_expect_eq(pkvm_user_call(true, cases[i].c), cases[i].want, "%s", pkvm_user_call_name(cases[i].c));
		cr_expect_eq(pkvm_user_call(false, cases[i].c), PKVM_OK);
	}
}

/* The kernel's numbers; that of a panic is nobody else's. */
Test(pkvm_vcpu, codes_have_linuxs_numbers)
{
	static const struct {
		enum pkvm_code c;
		int value;
	} cases[] = {
		{ PKVM_OK, 0 },
		{ PKVM_EPERM, -EPERM },
		{ PKVM_ENOENT, -ENOENT },
		{ PKVM_ENXIO, -ENXIO },
		{ PKVM_E2BIG, -E2BIG },
		{ PKVM_EAGAIN, -EAGAIN },
		{ PKVM_ENOMEM, -ENOMEM },
		{ PKVM_EFAULT, -EFAULT },
		{ PKVM_EBUSY, -EBUSY },
		{ PKVM_EEXIST, -EEXIST },
		{ PKVM_EINVAL, -EINVAL },
		{ PKVM_ERANGE, -ERANGE },
		{ PKVM_EHWPOISON, -EHWPOISON },
	};

	cr_assert_eq(PW_ARRAY_LEN(cases) + 1, PKVM_CODE_COUNT);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		cr_expect_eq(pkvm_code_value(cases[i].c), cases[i].value, "%s", pkvm_code_name(cases[i].c));
		cr_expect_neq(pkvm_code_value(PKVM_PANIC), cases[i].value);
	}
}

/* Section 10. */
Test(pkvm_vcpu, feature_registers_are_clamped)
{
	const uint64_t all = 0x7777777777777777;
	static const struct {
		enum pkvm_id_register r;
		uint64_t want, granted; /* of a host that has 7 everywhere; with SVE and pointer authentication */
	} cases[] = {
		{ PKVM_ID_PFR0, 0x1101000011111111, 0x1101000111111111 },
		{ PKVM_ID_PFR1, 0x21, 0x21 },
		{ PKVM_ID_ISAR0, 0x7777777777777777, 0x7777777777777777 },
		{ PKVM_ID_ISAR1, 0x0011111111311002, 0x0011111111311112 },
		{ PKVM_ID_ISAR2, 0x1000000000000000, 0x1000000000001100 },
		{ PKVM_ID_MMFR0, 0x0000100000011122, 0x0000100000011122 },
		{ PKVM_ID_MMFR1, 0x0100001001302022, 0x0100001001302022 },
		{ PKVM_ID_MMFR2, 0x1021001100001011, 0x1021001100001011 },
		{ PKVM_ID_OTHER, 0, 0 },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		cr_expect_eq(pkvm_id_value(cases[i].r, all, false, false), cases[i].want, "%s: %016" PRIx64,
			     pkvm_id_register_name(cases[i].r), pkvm_id_value(cases[i].r, all, false, false));
		cr_expect_eq(pkvm_id_value(cases[i].r, all, true, true), cases[i].granted, "%s: %016" PRIx64,
			     pkvm_id_register_name(cases[i].r), pkvm_id_value(cases[i].r, all, true, true));
		if (cases[i].r != PKVM_ID_ISAR0)
			cr_expect_eq(pkvm_id_value(cases[i].r, 0, true, true), 0);
	}
	cr_expect_eq(pkvm_id_value(PKVM_ID_PFR0, 0xff0000, false, false), 0xff0000, "an absent feature stays absent");
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) /* 15 is more than 7 wherever it does not stand for that */
		if (cases[i].r != PKVM_ID_ISAR0)
			cr_expect_eq(pkvm_id_value(cases[i].r, UINT64_MAX, true, true),
				     cases[i].granted | (cases[i].r == PKVM_ID_PFR0 ? 0xff0000 : 0), "%s",
				     pkvm_id_register_name(cases[i].r));
	cr_expect_eq(pkvm_id_value(PKVM_ID_DFR0, all, true, true), pkvm_id_value(PKVM_ID_DFR0, 0, false, false));
}

Test(pkvm_vcpu, each_grant_is_for_its_own_feature)
{
	const uint64_t all = 0x7777777777777777;

	cr_expect_eq(pkvm_id_value(PKVM_ID_PFR0, all, true, false), 0x1101000111111111);
	cr_expect_eq(pkvm_id_value(PKVM_ID_PFR0, all, false, true), 0x1101000011111111);
	cr_expect_eq(pkvm_id_value(PKVM_ID_ISAR1, all, true, false), 0x0011111111311002);
	cr_expect_eq(pkvm_id_value(PKVM_ID_ISAR1, all, false, true), 0x0011111111311112);
	cr_expect_eq(pkvm_id_value(PKVM_ID_ISAR2, all, true, false), 0x1000000000000000);
	cr_expect_eq(pkvm_id_value(PKVM_ID_ISAR2, all, false, true), 0x1000000000001100);
}

static void check_trapped(const char *name, enum pkvm_trapped reads, enum pkvm_trapped writes)
{
	cr_expect_eq(pkvm_trapped(name, false), reads, "%s", name);
	cr_expect_eq(pkvm_trapped(name, true), writes, "%s", name);
}

Test(pkvm_vcpu, trapped_registers)
{
	static const struct {
		const char *name;
		enum pkvm_trapped reads, writes;
	} cases[] = {
		{ "ID_AA64SMFR0_EL1", PKVM_TRAP_ID, PKVM_TRAP_UNDEF },
		{ "PMCR_EL0", PKVM_TRAP_UNDEF, PKVM_TRAP_UNDEF },
		{ "LORC_EL1", PKVM_TRAP_UNDEF, PKVM_TRAP_UNDEF },
	};

	static const char *const hosts[] = { "REVIDR_EL1",     "CCSIDR_EL1",    "CLIDR_EL1",     "AIDR_EL1",
					     "CSSELR_EL1",     "CTR_EL0",       "ICC_SGI0R_EL1", "ICC_SGI1R_EL1",
					     "ICC_ASGI1R_EL1", "CNTP_TVAL_EL0", "CNTP_CTL_EL0",  "CNTP_CVAL_EL0" };
	static const char *const errors[] = { "ERRIDR_EL1",    "ERRSELR_EL1", "ERXFR_EL1",    "ERXCTLR_EL1",
					      "ERXSTATUS_EL1", "ERXADDR_EL1", "ERXMISC0_EL1", "ERXMISC1_EL1" };
	static const char *const ids[] = { "PFR0",  "PFR1",  "ISAR0", "ISAR1", "ISAR2",
					   "MMFR0", "MMFR1", "MMFR2", "MMFR4", "DFR0" };

	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++)
		check_trapped(cases[i].name, cases[i].reads, cases[i].writes);
	for (size_t i = 0; i < PW_ARRAY_LEN(hosts); i++)
		check_trapped(hosts[i], PKVM_TRAP_HOST, PKVM_TRAP_HOST);
	for (size_t i = 0; i < PW_ARRAY_LEN(errors); i++)
		check_trapped(errors[i], PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI);
	for (size_t i = 0; i < PW_ARRAY_LEN(ids); i++) {
		char name[32];

		snprintf(name, sizeof name, "ID_AA64%s_EL1", ids[i]);
		check_trapped(name, PKVM_TRAP_ID, PKVM_TRAP_UNDEF);
	}
}

/* Random exits and wishes: the host learns, and changes, no word that the row does not name. */
Test(pkvm_vcpu, random_runs_leak_nothing_and_steer_nothing)
{
	uint64_t seed = (uint64_t)time(NULL), x;
	const char *given = getenv("SEED");

	if (given)
		seed = strtoull(given, NULL, 10);
	fprintf(stderr, "SEED=%" PRIu64 "\n", seed);
	x = seed | 1;
	struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);

	for (unsigned step = 0; step < 20000; step++) {
		struct pkvm_ctxt evil = evil_ctxt(), before;
		struct pkvm_trap t;
		unsigned words, most;
		bool faults;

		x ^= x << 13, x ^= x >> 7, x ^= x << 17;
		t = trap_of((enum pkvm_exit)(x % PKVM_EXIT_COUNT));
		t.esr = t.exit == PKVM_EXIT_LOAD || t.exit == PKVM_EXIT_STORE
				? (t.esr & ~0x1fe0000u) | (x >> 8 & 0x1fe0000)
				: t.esr;
		if (pkvm_vcpu_exit(&v, &t) != PKVM_OK)
			continue;
		v.hyp.power = PKVM_POWER_ON;
		words = 0;
		for (unsigned i = 0; i < 4; i++)
			words += v.view.x[i] != 0;
		cr_assert_leq(words, v.view.reg_count, "seed %" PRIu64 " step %u", seed, step);
		cr_assert_eq(v.view.pc, 0);
		cr_assert(v.view.va <= 0xfff && !(v.view.ipa & 0xfff) && v.view.pstate <= 0x1ff);
		before = v.ctxt;
		struct pkvm_wish w = { .ctxt = &evil,
				       .skip = x >> 40 & 1,
				       .undef = x >> 41 & 1,
				       .abort = x >> 42 & 1,
				       .dirty = x >> 43 & 1 };

		cr_assert_eq(pkvm_vcpu_enter(&v, &w), PKVM_OK);
		faults = (w.undef || w.abort) && v.ctxt.sysregs[PKVM_ELR] == before.pc;
		most = faults ? 6 : 2; /* PC, PSTATE, ELR, SPSR, ESR, FAR; or the PC and a register */
		cr_assert_leq(registers_changed(&v.ctxt, &before), most, "seed %" PRIu64 " step %u", seed, step);
	}
}

/* The table without a vCPU and a vCPU after an exit say the same. */
Test(pkvm_vcpu, the_bits_of_an_exit_are_those_that_the_host_sees_after_it)
{
	for (int e = 0; e < PKVM_EXIT_COUNT; e++) {
		struct pkvm_vcpu v = secret_vcpu(PKVM_MAINLINE, true);
		struct pkvm_trap t = trap_of((enum pkvm_exit)e);
		struct pkvm_exit_item bits;
		struct pkvm_item item;
		unsigned n = 0;

		v.generation = pkvm_exit_row(t.exit)->reaches_host[PKVM_MAINLINE] ? PKVM_MAINLINE : PKVM_ANDROID;
		if (!pkvm_exit_row(t.exit)->reaches_host[v.generation])
			continue;
		cr_assert_eq(pkvm_vcpu_exit(&v, &t), PKVM_OK);
		for (; pkvm_vcpu_item(&v, n, &item); n++) {
			cr_assert(pkvm_exit_item(t.exit, v.view.esr, n, &bits));
			cr_expect_str_eq(bits.name, item.name);
			cr_expect_eq(bits.bits != 0, item.shown, "%s: %s", pkvm_exit_name(t.exit), item.name);
			cr_expect_eq(item.value & ~bits.bits, 0, "%s: %s", pkvm_exit_name(t.exit), item.name);
			cr_expect(bits.why && (item.shown || strcmp(bits.why, item.why) == 0));
		}
		cr_expect_not(pkvm_exit_item(t.exit, 0, n, &bits));
	}
}

Test(pkvm_vcpu, an_exit_shows_so_many_bits)
{
	static const struct {
		enum pkvm_exit exit;
		uint64_t esr;
		const char *name;
		uint64_t bits;
	} cells[] = {
		{ PKVM_EXIT_LOAD, 0, "ESR_EL2", ~((uint64_t)0x1f << 16) },
		{ PKVM_EXIT_SYSREG_READ, 0, "ESR_EL2", ~((uint64_t)0x1f << 5) },
		{ PKVM_EXIT_OPAQUE, 0, "ESR_EL2", ~ESR_VALID },
		{ PKVM_EXIT_IABT, 0, "ESR_EL2", UINT64_MAX },
		{ PKVM_EXIT_LOAD, 0, "fault IPA", ~(uint64_t)0xfff },
		{ PKVM_EXIT_LOAD, 0, "fault VA", 0xfff },
		{ PKVM_EXIT_IABT, 0, "fault VA", 0 },
		{ PKVM_EXIT_LOAD, 0, "pstate", 0x1f },
		{ PKVM_EXIT_LOAD, 0, "SCTLR", 3u << 24 },
		{ PKVM_EXIT_LOAD, 0, "x0", 0 },
		{ PKVM_EXIT_LOAD, ESR_LOAD(9, 3, 0, 1), "x0", 0 },
		{ PKVM_EXIT_OPAQUE, ESR_STORE(9, 3), "x0", 0 },
		{ PKVM_EXIT_OPAQUE, 0, "fault IPA", ~(uint64_t)0xfff },
		{ PKVM_EXIT_OPAQUE, 0, "fault VA", 0xfff },
		{ PKVM_EXIT_OPAQUE, 0, "pstate", 0x1f },
		{ PKVM_EXIT_OPAQUE, 0, "SCTLR", 3u << 24 },
		{ PKVM_EXIT_SHARE, ESR_STORE(9, 3), "x0", 0 },
		{ PKVM_EXIT_SHARE, 0, "ESR_EL2", 0x90000047 },
		{ PKVM_EXIT_SHARE, 0, "fault IPA", ~(uint64_t)0xfff },
		{ PKVM_EXIT_SHARE, 0, "fault VA", 0 },
		{ PKVM_EXIT_STORE, 0, "x0", 0 },
		{ PKVM_EXIT_STORE, ESR_STORE(9, 3) & ~ESR_VALID, "x0", 0 },
		{ PKVM_EXIT_STORE, ESR_LOAD(9, 3, 0, 1), "x0", 0 },
		{ PKVM_EXIT_STORE, ESR_STORE(9, 0), "x0", 0xff },
		{ PKVM_EXIT_STORE, ESR_STORE(9, 2), "x0", UINT32_MAX },
		{ PKVM_EXIT_STORE, ESR_STORE(9, 3), "x0", UINT64_MAX },
		{ PKVM_EXIT_CPU_ON, 0, "x1", UINT64_MAX },
		{ PKVM_EXIT_CPU_ON, 0, "x2", 0 },
		{ PKVM_EXIT_COUNT, 0, "ESR_EL2", 0 },
		{ PKVM_EXIT_COUNT, 0, "pc", 0 },
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(cells); i++) {
		struct pkvm_exit_item item;
		unsigned n = 0;

		while (pkvm_exit_item(cells[i].exit, cells[i].esr, n, &item) && strcmp(item.name, cells[i].name) != 0)
			n++;
		cr_expect_str_eq(item.name, cells[i].name);
		cr_expect_eq(item.bits, cells[i].bits, "row %zu: %#" PRIx64, i, item.bits);
	}
}

/* L10: two guests that differ in every bit of every register differ for the host in the bits of the exit's table only.
 */
Test(pkvm_vcpu, a_hidden_item_has_no_value_whatever_the_guest_has)
{
	for (int g = 0; g < PKVM_GENERATION_COUNT; g++)
		for (int e = 0; e < PKVM_EXIT_COUNT; e++) {
			struct pkvm_vcpu one = secret_vcpu((enum pkvm_generation)g, true), two = one;
			uint64_t *words = (uint64_t *)(void *)&two.ctxt;
			struct pkvm_trap t = trap_of((enum pkvm_exit)e);
			struct pkvm_item a, b;
			struct pkvm_exit_item bits;

			if (!pkvm_exit_row(t.exit)->reaches_host[g])
				continue;
			for (size_t i = 0; i < sizeof two.ctxt / sizeof *words; i++)
				words[i] = ~words[i];
			cr_assert_eq(pkvm_vcpu_exit(&one, &t), PKVM_OK);
			cr_assert_eq(pkvm_vcpu_exit(&two, &t), PKVM_OK);
			for (unsigned n = 0; pkvm_vcpu_item(&one, n, &a) && pkvm_vcpu_item(&two, n, &b); n++) {
				cr_assert(pkvm_exit_item(t.exit, one.view.esr, n, &bits));
				cr_expect_eq((a.value | b.value) & ~bits.bits, 0, "%s: %s", pkvm_exit_name(t.exit),
					     a.name);
				cr_expect(a.shown == b.shown && a.shown == (bits.bits != 0));
				cr_expect(a.shown || (a.why && a.value == 0 && b.value == 0), "%s: %s",
					  pkvm_exit_name(t.exit), a.name);
			}
		}
}
