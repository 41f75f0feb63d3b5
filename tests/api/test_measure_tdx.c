#include "api/measure_tdx.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IMAGE 0x4000
#define AT    0x3000 /* the descriptor */

static void hex_of(const uint8_t *bytes, char out[MRTD_HEX])
{
	for (unsigned i = 0; i < MRTD_BYTES; i++)
		snprintf(out + (size_t)2 * i, 3, "%02x", bytes[i]);
}

static void expect_final(struct mrtd *m, const char *want)
{
	uint8_t out[MRTD_BYTES];
	char hex[MRTD_HEX];

	mrtd_final(m, out);
	hex_of(out, hex);
	cr_expect_str_eq(hex, want);
}

/* Published: what a TD with nothing, one page, and one page with all its content has for MRTD. */
Test(measure_tdx, published_vectors_are_reproduced)
{
	uint8_t page[MRTD_PAGE];
	struct mrtd m;

	for (unsigned i = 0; i < sizeof page; i++)
		page[i] = (uint8_t)i;
	mrtd_init(&m);
	expect_final(
		&m, "38b060a751ac96384cd9327eb1b1e36a21fdb71114be07434c0cc7bf63f6e1da274edebfe76f65fbd51ad2f14898b95b");
	mrtd_init(&m);
	mrtd_add(&m, 0);
	expect_final(
		&m, "8f3e9a8aca6784eab874f7aa4dda5d49104a88047f1f86695ef2a88f5691a90e34aac48ce45ffa1f5a23c7d62980d570");
	mrtd_init(&m);
	mrtd_add(&m, 0x80000000);
	for (unsigned i = 0; i < sizeof page; i += MRTD_CHUNK)
		mrtd_extend(&m, 0x80000000u + i, page + i);
	expect_final(
		&m, "f3b4d86843605e544e3db9c6e67fac5ee866c1709720d41fc191cb54b83b8a6c21a00678fa778c4a7785e09bf790c499");
}

/* An image that is made by hand. */

static void le(uint8_t *p, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		p[i] = (uint8_t)(value >> (8 * i));
}

static const struct tdvf_section made[] = {
	{ 0x1000, 0x1800, 0xffffe000, 0x2000, TDVF_BFV, TDVF_EXTEND },
	{ 0, 0, 0x809000, 0x2000, TDVF_TD_HOB, 0 },
	{ 0, 0, 0x100000, 0x100000, TDVF_PERM_MEM, TDVF_AUG },
	{ 0x100, 0x20, 0x820000, 0x1000, TDVF_CFV, 0 },
};

static void put_section(uint8_t *image, unsigned n, const struct tdvf_section *s)
{
	uint8_t *p = image + AT + 16 + 32 * n;

	le(p, s->offset, 4);
	le(p + 4, s->raw_size, 4);
	le(p + 8, s->gpa, 8);
	le(p + 16, s->size, 8);
	le(p + 24, s->type, 4);
	le(p + 28, s->attributes, 4);
}

static uint8_t *put_entry(uint8_t *end, unsigned data, const char *guid)
{
	memcpy(end - 16, guid, 16);
	le(end - 18, data + 18, 2);
	return end - 18 - data;
}

static void make_image(uint8_t image[IMAGE], bool with_table)
{
	uint8_t *end = image + IMAGE - 32;

	for (unsigned i = 0; i < IMAGE; i++)
		image[i] = (uint8_t)(i * 7);
	memcpy(image + AT, "TDVF", 4);
	le(image + AT + 4, 16 + 32 * PW_ARRAY_LEN(made), 4);
	le(image + AT + 8, 1, 4);
	le(image + AT + 12, PW_ARRAY_LEN(made), 4);
	for (unsigned i = 0; i < PW_ARRAY_LEN(made); i++)
		put_section(image, i, &made[i]);
	le(image + IMAGE - 32, AT, 4);
	if (!with_table)
		return;
	le(image + IMAGE - 32, 0, 4);
	end = put_entry(end, 0, "\xde\x82\xb5\x96\xb2\x1f\xf7\x45\xba\xea\xa3\x66\xc5\x5a\x08\x2d");
	end = put_entry(end, 7, "another's entry ");
	le(end - 22, IMAGE - AT, 4);
	end = put_entry(end, 4, "\x35\x65\x7a\xe4\x4a\x98\x98\x47\x86\x5e\x46\x85\xa7\xbf\x8e\xc2");
	le(image + IMAGE - 50, (uint64_t)(image + IMAGE - 32 - end), 2);
}

static const struct {
	enum measure_tdx_order order;
	const char *want; /* computed by another implementation of SHA-384, from the same rules */
} orders[] = {
	{ MEASURE_TDX_BY_PAGE,
	  "aa552d57d37fa54cc12d8d646504e5bc526b31b855e40745d8239f9ab0487c22db2b3084f1d55b554bfcaba330784eb1" },
	{ MEASURE_TDX_BY_SECTION,
	  "7641d48beb1c2a02ec8a13302b97c9e72ada5e1188e81b9982a16f607c9ca112dabd615b2e6963975e12931f6bd24947" },
};

Test(measure_tdx, images_are_measured_in_both_orders)
{
	uint8_t image[IMAGE], out[MRTD_BYTES];
	struct pw_err err = { 0 };
	char hex[MRTD_HEX];

	for (int with_table = 0; with_table < 2; with_table++)
		for (size_t i = 0; i < PW_ARRAY_LEN(orders); i++) {
			make_image(image, with_table);
			cr_assert_eq(measure_tdx(image, IMAGE, orders[i].order, out, &err), PW_OK, "%s", err.msg);
			hex_of(out, hex);
			cr_expect_str_eq(hex, orders[i].want);
		}
}

Test(measure_tdx, files_are_measured)
{
	char path[] = "/tmp/pw-tdvf-XXXXXX", hex[MRTD_HEX];
	int fd = mkstemp(path);
	uint8_t image[IMAGE];
	struct pw_err err = { 0 };

	make_image(image, true);
	cr_assert(fd >= 0 && write(fd, image, IMAGE) == IMAGE);
	close(fd);
	cr_expect_eq(measure_tdx_file(path, MEASURE_TDX_BY_PAGE, hex, &err), PW_OK, "%s", err.msg);
	cr_expect_str_eq(hex, orders[0].want);
	unlink(path);
	cr_expect_eq(measure_tdx_file(path, MEASURE_TDX_BY_PAGE, hex, &err), PW_STORAGE);
	cr_expect_eq(measure_tdx_file("/tmp", MEASURE_TDX_BY_PAGE, hex, &err), PW_STORAGE);
}

/* One flaw each. */
static const struct {
	unsigned at, bytes;
	uint64_t value;
	const char *says;
} flaws[] = {
	{ AT, 4, 0, "no TDVF descriptor" },
	{ AT + 8, 4, 2, "version 2" },
	{ AT + 12, 4, 65, "65 sections" },
	{ AT + 12, 4, UINT32_MAX, "sections" },
	{ AT + 16 + 8, 8, 0xffffe001, "4 KiB" },
	{ AT + 16 + 16, 8, 0x2001, "4 KiB" },
	{ AT + 16 + 8, 8, 1ull << 52, "section 0" },
	{ AT + 16 + 16, 8, 1ull << 40, "section 0" },
	{ AT + 16 + 4, 4, 0x2001, "larger" },
	{ AT + 16, 4, IMAGE - 0x17ff, "larger" },
	{ AT + 16, 4, UINT32_MAX, "larger" },
	{ AT + 48 + 8, 8, 0xfffff000, "sections 0 and 1 overlap" },
	{ IMAGE - 50, 2, 17, "no TDVF descriptor" },
	{ IMAGE - 50, 2, UINT16_MAX, "no TDVF descriptor" },
	{ IMAGE - 50 - 25 + 7, 2, 0, "no TDVF descriptor" },
	{ IMAGE - 50 - 25 + 7, 2, 9999, "no TDVF descriptor" },
};

Test(measure_tdx, damaged_images_are_refused)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(flaws); i++) {
		uint8_t image[IMAGE], out[MRTD_BYTES];
		struct pw_err err = { 0 };

		make_image(image, true);
		le(image + flaws[i].at, flaws[i].value, flaws[i].bytes);
		cr_expect_eq(measure_tdx(image, IMAGE, MEASURE_TDX_BY_PAGE, out, &err), PW_INVALID, "case %zu", i);
		cr_expect(strstr(err.msg, flaws[i].says), "case %zu: %s", i, err.msg);
	}
}

Test(measure_tdx, short_images_are_refused)
{
	uint8_t image[IMAGE];
	struct tdvf t;

	make_image(image, true);
	for (size_t size = 0; size < 600; size++) {
		uint8_t *copy = malloc(size + 1);

		cr_assert(copy);
		memcpy(copy, image + IMAGE - size, size);
		cr_expect_eq(tdvf_parse(copy, size, &t, NULL), PW_INVALID, "%zu bytes", size);
		free(copy);
	}
}

Test(measure_tdx, section_types_have_names)
{
	cr_expect_str_eq(tdvf_section_type_name(TDVF_TD_HOB), "TD_HOB");
	cr_expect_null(tdvf_section_type_name(99));
}
