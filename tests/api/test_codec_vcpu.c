#include "api/codec_vcpu.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static struct vcpu_body body;
static struct codec_fault fault;

static bool take(const char *text)
{
	struct body *owner;
	bool ok = codec_vcpu(text, strlen(text), &body, &owner, &fault);

	codec_release(owner);
	return ok;
}

static char *written(const struct vcpu_exit *x)
{
	struct jsonw w;
	size_t len;

	jsonw_init(&w);
	vcpu_items_write(&w, x);
	return jsonw_finish(&w, &len);
}

/* A body whose x0, x1 ... and other items are all that an exit shows, every bit set. */
static char *whole(enum pkvm_exit e)
{
	const uint64_t widest = (uint64_t)7 << 22 | (uint64_t)1 << 6; /* and valid, of a write */
	struct pkvm_exit_item item;
	struct jsonw w;
	size_t len;

	jsonw_init(&w);
	jsonw_open(&w, '{');
	for (unsigned n = 0; pkvm_exit_item(e, widest, n, &item); n++)
		if (item.bits)
			vcpu_value_write(&w, item.name, item.bits);
	jsonw_close(&w, '}');
	return jsonw_finish(&w, &len);
}

Test(codec_vcpu, what_is_kept_is_read_as_it_was)
{
	for (int e = 0; e < PKVM_EXIT_COUNT; e++) {
		const char *name = pkvm_exit_name((enum pkvm_exit)e);
		char *items = whole((enum pkvm_exit)e), *again;
		struct vcpu_exit x, y;

		if (e == PKVM_EXIT_HVC_OTHER) {
			cr_expect_not(vcpu_exit_read(name, items, &x, &fault), "it never reaches the host");
			free(items);
			continue;
		}
		cr_assert(vcpu_exit_read(name, items, &x, &fault), "%s: %s", name, fault.detail);
		cr_expect_leq(x.count, VCPU_VALUES_MAX);
		again = written(&x);
		cr_expect_str_eq(again, items);
		cr_assert(vcpu_exit_read(name, again, &y, &fault));
		cr_expect_eq(y.count, x.count);
		free(again);
		free(items);
	}
}

Test(codec_vcpu, values_are_hexadecimal_or_integers)
{
	cr_assert(
		take("{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"HVC CPU_ON\",\"items\":{\"x1\":12,\"x0\":\"0xffffffffffffffff\"}}"),
		"%s", fault.detail);
	cr_expect_str_eq(pkvm_exit_name(body.seen.exit), "HVC CPU_ON");
	cr_expect_eq(body.epoch, 3);
	cr_expect_eq(*vcpu_exit_value(&body.seen, 0), UINT64_MAX);
	cr_expect_eq(*vcpu_exit_value(&body.seen, 1), 12);
	cr_expect_null(vcpu_exit_value(&body.seen, 2));
}

Test(codec_vcpu, a_fault_never_quotes_a_value)
{
	static const char *const items[] = { "\"x5\":\"0x5ec2e7\"",  "\"pc\":6210279",        "\"x0\":6210279",
					     "\"pstate\":6210279",   "\"x5\":[6210279]",      "\"x0\":\"0x5ec2e7 \"",
					     "\"fault VA\":6210279", "\"nothing\":\"5ec2e7\"" };
	static const char *const bodies[] = {
		"5ec2e7",
		"6210279",
		"\"5ec2e7\"",
		"[\"5ec2e7\",6210279]",
		"{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"5ec2e7\",\"items\":{}}",
		"{\"boot_id\":\"b\",\"epoch\":3,\"exit\":6210279,\"items\":{}}",
		"{\"boot_id\":\"b\",\"epoch\":\"5ec2e7\",\"exit\":\"interrupt\",\"items\":{}}",
		"{\"boot_id\":[6210279],\"epoch\":3,\"exit\":\"interrupt\",\"items\":{}}",
		"{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"interrupt\",\"items\":6210279}",
		"{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"interrupt\",\"items\":{},\"x0\":\"5ec2e7\"}",
		"{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"interrupt\",\"items\":{\"x0\":0x5ec2e7}}",
		"{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"interrupt\",\"items\":{\"x0\" \"0x5ec2e7\"}}",
		"{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"interrupt\",\"items\":{\"x0\" \"0x5ec2e7\",,",
		"{\"x0\" \"0x5ec2e7\" {{{{{{{{{{{{{{{{{{",
	};

	for (size_t i = 0; i < PW_ARRAY_LEN(items); i++) {
		char text[256];

		snprintf(text, sizeof text,
			 "{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"data abort, load\",\"items\":{%s}}", items[i]);
		cr_expect_not(take(text), "%s", text);
		cr_expect_eq(strncmp(fault.pointer, "/items/", 7), 0, "%s", fault.pointer);
		cr_expect_null(strstr(fault.detail, "5ec2e7"), "%s", fault.detail);
		cr_expect_null(strstr(fault.detail, "6210279"), "%s", fault.detail);
	}
	for (size_t i = 0; i < PW_ARRAY_LEN(bodies); i++) {
		cr_expect_not(take(bodies[i]), "%s", bodies[i]);
		cr_expect(fault.detail[0] && !strstr(fault.detail, "5ec2e7") && !strstr(fault.pointer, "5ec2e7"),
			  "%s: %s", fault.pointer, fault.detail);
		cr_expect(!strstr(fault.detail, "6210279") && !strstr(fault.pointer, "6210279"), "%s", fault.detail);
	}
}

/*
 * Everything there is to report against the field's rules, written down once more: all exits, with a syndrome or
 * without, valid or not, of any access width; all items; all bits.
 */
#define MODE   UINT64_C(0x1f)
#define ENDIAN (UINT64_C(3) << 24)
#define PAGE   (~UINT64_C(0xfff))
#define ISV    (UINT64_C(1) << 24)
#define WNR    (UINT64_C(1) << 6)
#define RT     (UINT64_C(0x1f) << 16)
#define SYS_RT (UINT64_C(0x1f) << 5)
static const struct rule {
	const char *exit;
	unsigned regs;
	uint64_t esr, pstate, sctlr, page, va;
} rules[] = {
	{ "interrupt", 0, UINT64_MAX, 0, 0, 0, 0 },
	{ "SError", 0, UINT64_MAX, 0, 0, 0, 0 },
	{ "illegal state", 0, UINT64_MAX, 0, 0, 0, 0 },
	{ "WFI, WFE", 0, ~SYS_RT, MODE | 0x100, 0, 0, 0 },
	{ "HVC CPU_ON", 2, UINT64_MAX, 0, 0, 0, 0 },
	{ "HVC CPU_OFF", 1, UINT64_MAX, 0, 0, 0, 0 },
	{ "HVC CPU_SUSPEND", 1, UINT64_MAX, 0, 0, 0, 0 },
	{ "HVC SYSTEM_OFF", 1, UINT64_MAX, 0, 0, 0, 0 },
	{ "HVC SYSTEM_RESET", 1, UINT64_MAX, 0, 0, 0, 0 },
	{ "HVC SYSTEM_RESET2", 3, UINT64_MAX, 0, 0, 0, 0 },
	{ "HVC AFFINITY_INFO", 3, UINT64_MAX, 0, 0, 0, 0 },
	{ "HVC MEM_RELINQUISH", 4, UINT64_MAX, 0, 0, 0, 0 },
	{ "HVC device power", 3, UINT64_MAX, 0, 0, 0, 0 },
	{ "system register, read", 0, ~SYS_RT, MODE, 0, 0, 0 },
	{ "system register, write", 1, ~SYS_RT, MODE, 0, 0, 0 },
	{ "instruction abort", 0, UINT64_MAX, 0, 0, PAGE, 0 },
	{ "data abort, load", 0, ~RT, MODE, ENDIAN, PAGE, 0xfff },
	{ "data abort, store", 1, ~RT, MODE, ENDIAN, PAGE, 0xfff },
	{ "data abort, not decodable", 0, ~ISV, MODE, ENDIAN, PAGE, 0xfff },
	{ "data abort, MEM_SHARE", 0, 0x90000047, 0, 0, PAGE, 0 },
};

/* The bits of an item that may be reported beside that syndrome (0: beside none). */
static uint64_t may_report(const struct rule *rule, const char *item, uint64_t esr)
{
	if (strcmp(item, "pstate") == 0)
		return rule->pstate;
	if (strcmp(item, "SCTLR") == 0)
		return rule->sctlr;
	if (strcmp(item, "fault IPA") == 0)
		return rule->page;
	if (strcmp(item, "fault VA") == 0)
		return rule->va;
	if (item[0] != 'x' || strtoul(item + 1, NULL, 10) >= rule->regs)
		return 0;
	if (strcmp(rule->exit, "data abort, store") != 0)
		return UINT64_MAX;
	return esr & ISV && esr & WNR ? UINT64_MAX >> (64 - (8u << (esr >> 22 & 3))) : 0;
}

/* The report: the syndrome before the item or after it, or none. */
static bool take_pair(const char *exit, const char *item, uint64_t value, const uint64_t *esr, bool esr_first)
{
	char text[512], one[64], other[64] = "";

	snprintf(one, sizeof one, "\"%s\":\"0x%" PRIx64 "\"", item, value);
	if (esr)
		snprintf(other, sizeof other, "\"ESR_EL2\":\"0x%" PRIx64 "\"", *esr);
	snprintf(text, sizeof text, "{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"%s\",\"items\":{%s%s%s}}", exit,
		 esr_first ? other : one, esr ? "," : "", esr_first ? one : other);
	return take(text);
}

static uint64_t next_random(uint64_t *x)
{
	*x ^= *x << 13, *x ^= *x >> 7, *x ^= *x << 17;
	return *x;
}

struct walk {
	uint64_t seed, x;
	unsigned long tried, taken;
};

static void check_value(struct walk *w, const struct rule *rule, const char *item, uint64_t value, const uint64_t *esr)
{
	uint64_t may = may_report(rule, item, esr ? *esr : 0);
	bool ok = take_pair(rule->exit, item, value, esr, esr && w->x & 1);

	w->tried++;
	w->taken += ok;
	cr_assert_eq(ok, may != 0 && !(value & ~may), "SEED=%" PRIu64 ": %s: %s=%#" PRIx64 ", ESR_EL2=%#" PRIx64 "%s",
		     w->seed, rule->exit, item, value, esr ? *esr : 0, esr ? "" : " (none)");
	if (!ok)
		cr_assert_str_eq(fault.pointer + 7, item, "SEED=%" PRIu64 ": %s", w->seed, fault.pointer);
	for (unsigned i = 0; ok && i < body.seen.count; i++) {
		struct pkvm_exit_item at;

		cr_assert(pkvm_exit_item(body.seen.exit, esr ? *esr : 0, body.seen.values[i].item, &at));
		cr_assert(strcmp(at.name, "ESR_EL2") == 0 ? body.seen.values[i].value == *esr
							  : body.seen.values[i].value == value);
	}
}

/* What nothing shows is tried with one bit and with all; the others with each. */
static void check_item(struct walk *w, const struct rule *rule, const char *item, const uint64_t *esr)
{
	uint64_t may = may_report(rule, item, esr ? *esr : 0);
	bool is_x0 = strcmp(item, "x0") == 0;

	check_value(w, rule, item, UINT64_C(1) << (next_random(&w->x) & 63), esr);
	check_value(w, rule, item, UINT64_MAX, esr);
	check_value(w, rule, item, next_random(&w->x), esr);
	for (unsigned bit = 0; (may || is_x0) && bit < 64; bit++)
		check_value(w, rule, item, UINT64_C(1) << bit, esr);
	if (may)
		check_value(w, rule, item, next_random(&w->x) & may, esr);
	check_value(w, rule, item, 0, esr);
}

static void check_rule(struct walk *w, const struct rule *rule)
{
	struct pkvm_exit_item item;

	for (unsigned kind = 0; kind < 17; kind++) {
		uint64_t fixed = (kind & 1 ? ISV : 0) | (kind & 8 ? WNR : 0) | (uint64_t)(kind >> 1 & 3) << 22;
		uint64_t esr = ((next_random(&w->x) & ~(ISV | WNR | UINT64_C(3) << 22)) | fixed) & rule->esr;

		if (rule->esr == 0x90000047)
			esr = rule->esr;
		for (unsigned n = 0; pkvm_exit_item(PKVM_EXIT_IRQ, 0, n, &item); n++)
			if (strcmp(item.name, "ESR_EL2") != 0)
				check_item(w, rule, item.name, kind < 16 ? &esr : NULL);
	}
	for (unsigned bit = 0; bit < 64; bit++) {
		uint64_t esr = UINT64_C(1) << bit;
		bool may = rule->esr == 0x90000047 ? esr == rule->esr : !(esr & ~rule->esr);

		cr_assert_eq(take_pair(rule->exit, "ESR_EL2", esr, NULL, false), may, "%s: bit %u", rule->exit, bit);
	}
}

Test(codec_vcpu, takes_what_the_field_shows_at_each_exit_and_not_one_bit_more, .timeout = 120)
{
	const char *given = getenv("SEED");
	struct walk w = { .seed = given ? strtoull(given, NULL, 10) : (uint64_t)time(NULL) };

	fprintf(stderr, "SEED=%" PRIu64 "\n", w.seed);
	w.x = w.seed | 1;
	cr_assert_eq(PW_ARRAY_LEN(rules) + 1, PKVM_EXIT_COUNT, "and any other HVC, which no host sees");
	for (size_t i = 0; i < PW_ARRAY_LEN(rules); i++)
		check_rule(&w, &rules[i]);
	cr_expect_gt(w.taken, 5000);
	cr_expect_gt(w.tried - w.taken, 50000);
}

/* A journal of a version that took x0 of a store without a valid syndrome. */
Test(codec_vcpu, what_an_older_version_took_and_is_hidden_is_left_out)
{
	struct vcpu_exit x;
	char *text;

	cr_assert(vcpu_exit_read("data abort, store", "{\"x0\":\"0x3\",\"pstate\":\"0x5\",\"ESR_EL2\":\"0x90000047\"}",
				 &x, &fault),
		  "%s", fault.detail);
	text = written(&x);
	cr_expect_str_eq(text, "{\"pstate\":\"0x5\",\"ESR_EL2\":\"0x90000047\"}");
	free(text);
	cr_assert(vcpu_exit_read("data abort, store", "{\"x0\":\"0xff\"}", &x, &fault));
	cr_expect_eq(x.count, 0);
	cr_expect_not(vcpu_exit_read("data abort, store", "{\"pstate\":\"0x205\"}", &x, &fault), "never taken");
}
