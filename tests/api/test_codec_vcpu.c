#include "api/codec_vcpu.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

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
	const uint64_t widest = (uint64_t)3 << 22;
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

	for (size_t i = 0; i < PW_ARRAY_LEN(items); i++) {
		char text[256];

		snprintf(text, sizeof text,
			 "{\"boot_id\":\"b\",\"epoch\":3,\"exit\":\"data abort, load\",\"items\":{%s}}", items[i]);
		cr_expect_not(take(text), "%s", text);
		cr_expect_eq(strncmp(fault.pointer, "/items/", 7), 0, "%s", fault.pointer);
		cr_expect_null(strstr(fault.detail, "5ec2e7"), "%s", fault.detail);
		cr_expect_null(strstr(fault.detail, "6210279"), "%s", fault.detail);
	}
}
