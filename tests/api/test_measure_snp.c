#include "api/measure_snp.h"

#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define IMAGE    8192
#define METADATA 1024 /* from the image's end */
#define FOOTER   (IMAGE - 32 - 18)

static void le(uint8_t *at, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

/* An image that is made by hand: all kinds of sections, and the tables that OVMF has at its end. */

static const uint32_t sections[][3] = {
	{ 0x800000, 0x3000, 1 }, { 0x80d000, 0x1000, 2 },    { 0x80e000, 0x1000, 3 },
	{ 0x80f000, 0x1000, 4 }, { 0x810000, 0x1000, 0x10 },
};

/* Entries as they lie in memory: data, length, GUID. */
static const uint8_t table[] = {
	0x00, 0x0c, 0x81, 0x00, 0x00, 0x04, 0x00, 0x00, 26,   0,    0x1f, 0x37, 0x55,
	0x72, 0x3b, 0x3a, 0x04, 0x4b, 0x92, 0x7b, 0x1d, 0xa6, 0xef, 0xa8, 0xd4, 0x54, /* where a kernel's hashes go */
	0x04, 0xb0, 0x80, 0x00, 22,   0,    0xde, 0x71, 0xf7, 0x00, 0x7e, 0x1a, 0xcb,
	0x4f, 0x89, 0x0e, 0x68, 0xc7, 0x7e, 0x2f, 0xb4, 0x4e, /* where other vCPUs start */
	0x00, 0x04, 0x00, 0x00, 22,   0,    0x66, 0x65, 0x88, 0xdc, 0x4a, 0x98, 0x98,
	0x47, 0xa7, 0x5e, 0x55, 0x85, 0xa7, 0xbf, 0x67, 0xcc, /* where the metadata is */
	88,   0,    0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45, 0xba, 0xea, 0xa3,
	0x66, 0xc5, 0x5a, 0x08, 0x2d, /* the table */
};

static void make_image(uint8_t image[IMAGE])
{
	uint8_t *md = image + IMAGE - METADATA;

	for (size_t i = 0; i < IMAGE; i++)
		image[i] = (uint8_t)(i * 7 + 3);
	memcpy(md, "ASEV", 4);
	le(md + 4, 16 + sizeof sections, 4);
	le(md + 8, 1, 4);
	le(md + 12, PW_ARRAY_LEN(sections), 4);
	for (size_t i = 0; i < PW_ARRAY_LEN(sections); i++)
		for (size_t k = 0; k < 3; k++)
			le(md + 16 + 12 * i + 4 * k, sections[i][k], 4);
	memcpy(image + IMAGE - 32 - sizeof table, table, sizeof table);
}

static void expect_digest(const uint8_t digest[SNP_DIGEST], const char *expected)
{
	char hex[MEASURE_SNP_HEX];

	for (size_t i = 0; i < SNP_DIGEST; i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	cr_expect_str_eq(hex, expected);
}

/* Published: SHA-384 of the boot processor's page of an EPYC-v4. */
Test(measure_snp, the_first_state_of_a_vcpu_is_as_published)
{
	struct measure_snp o = { .features = MEASURE_SNP_FEATURES };
	uint8_t page[SNP_PAGE], digest[SNP_DIGEST];

	cr_assert_eq(measure_snp_signature("EPYC-v4", &o.signature, NULL), PW_OK);
	measure_snp_vmsa(&o, 0xfffffff0, page);
	snp_sha384(page, sizeof page, digest);
	expect_digest(digest, "77920c4c629ff47e90c0e174fc1ad0eb6fa664f88cd4739488058a8c6cb1a77b"
			      "3856f55378e9518d0da99452d51c553a");
}

/* The digests come from another implementation, written from the same documents in another language. */
Test(measure_snp, images_measure_as_another_implementation_says)
{
	static const struct {
		unsigned vcpus;
		const char *type;
		uint64_t features;
		enum measure_snp_vmm vmm;
		const char *kernel, *initrd, *cmdline, *digest;
	} cases[] = {
		{ 1, "EPYC-v4", 1, MEASURE_SNP_QEMU, NULL, NULL, NULL,
		  "fa2c94632e420bbba4206fa2e6a1c97ed30f20cb165e00327081ffefcd8098d4217bfb78829784054950c705d38b17b7" },
		{ 4, "EPYC-Milan", 0x21, MEASURE_SNP_QEMU, NULL, NULL, NULL,
		  "29dfdd93ea401ea3e022dce33e33f29c584771d424c117d9ff24b4c6de987c810abe12e341d284683a4ed84df43c19e4" },
		{ 1, "EPYC-v4", 1, MEASURE_SNP_QEMU_OLD, NULL, NULL, NULL,
		  "67586bce4b1c10ba6c0f03e147d215bfd299d0355c9f98e1d616f30f577150e8e687d89a721193623695eb591c6b992f" },
		{ 2, "EPYC-v4", 1, MEASURE_SNP_EC2, NULL, NULL, NULL,
		  "ae894ea0ce189613b078a38ad526da2f936ee3c05b0354601a0574148e6cd50198a03a42d9de8995c3ad070f7d6911c5" },
		{ 2, "EPYC-v4", 1, MEASURE_SNP_QEMU, "the kernel", "the initrd", "console=ttyS0",
		  "383be37b4510ad658e5d16fe6936ac77e19dc70fad835d9b1aa051da5afe1cb7ae645c4c69790e3043aff67b69125bee" },
		{ 1, "EPYC-v4", 1, MEASURE_SNP_QEMU, "", NULL, NULL,
		  "ba1e7837d85f4f8bb63fd205653e8f78bbf93b33b1e0bf41fb259e2b5018a4b307487f4de575b53233c6f26b0d21e804" },
	};
	uint8_t image[IMAGE], digest[SNP_DIGEST];

	make_image(image);
	for (size_t i = 0; i < PW_ARRAY_LEN(cases); i++) {
		struct measure_snp o = { .ovmf = { image, IMAGE },
					 .vcpus = cases[i].vcpus,
					 .features = cases[i].features,
					 .vmm = cases[i].vmm,
					 .has_kernel = cases[i].kernel,
					 .cmdline = cases[i].cmdline };
		struct pw_err err = { 0 };

		cr_assert_eq(measure_snp_signature(cases[i].type, &o.signature, &err), PW_OK);
		if (cases[i].kernel)
			o.kernel =
				(struct measure_snp_blob){ (const uint8_t *)cases[i].kernel, strlen(cases[i].kernel) };
		if (cases[i].initrd)
			o.initrd =
				(struct measure_snp_blob){ (const uint8_t *)cases[i].initrd, strlen(cases[i].initrd) };
		cr_assert_eq(measure_snp(&o, digest, &err), PW_OK, "%s", err.msg);
		expect_digest(digest, cases[i].digest);
	}
}

/* Damage. */

static enum pw_status measure(const uint8_t *image, size_t size, unsigned vcpus, bool kernel)
{
	struct measure_snp o = { .ovmf = { image, size }, .vcpus = vcpus, .features = 1, .has_kernel = kernel };
	uint8_t digest[SNP_DIGEST];
	struct pw_err err = { 0 };

	return measure_snp(&o, digest, &err);
}

Test(measure_snp, what_cannot_be_followed_is_refused)
{
	uint8_t image[IMAGE], *md = image + IMAGE - METADATA;

	make_image(image);
	cr_expect_eq(measure(image, IMAGE, 0, false), PW_INVALID, "no vCPU");
	cr_expect_eq(measure(image, IMAGE - 1, 1, false), PW_INVALID, "no whole pages");
	cr_expect_eq(measure(image, 0, 1, false), PW_INVALID);
	cr_expect_eq(measure(image, IMAGE, 2, true), PW_OK);
	md[0] = 'B';
	cr_expect_eq(measure(image, IMAGE, 1, false), PW_INVALID, "magic");
	make_image(image);
	md[8] = 2;
	cr_expect_eq(measure(image, IMAGE, 1, false), PW_INVALID, "version");
	make_image(image);
	le(md + 12, 1000, 4);
	cr_expect_eq(measure(image, IMAGE, 1, false), PW_INVALID, "too many sections");
	make_image(image);
	le(md + 20, 0xfffff000, 4);
	le(md + 32, 0xfffff000, 4);
	cr_expect_eq(measure(image, IMAGE, 1, false), PW_INVALID, "a huge section");
	make_image(image);
	le(md + 16, 0x800001, 4);
	cr_expect_eq(measure(image, IMAGE, 1, false), PW_INVALID, "part of a page");
	make_image(image);
	le(md + 24, 9, 4);
	cr_expect_eq(measure(image, IMAGE, 1, false), PW_INVALID, "unknown type");
	make_image(image);
	le(md + 12, 4, 4);
	cr_expect_eq(measure(image, IMAGE, 1, true), PW_INVALID, "no room for a kernel's hashes");
	make_image(image);
	image[FOOTER + 2] ^= 1;
	cr_expect_eq(measure(image, IMAGE, 1, false), PW_OK, "an image without tables has no sections");
	cr_expect_eq(measure(image, IMAGE, 2, false), PW_INVALID, "but nowhere to start a second vCPU");
	make_image(image);
	le(image + FOOTER, 9000, 2);
	cr_expect_eq(measure(image, IMAGE, 2, false), PW_INVALID, "a table larger than the image");
}

Test(measure_snp, no_damage_is_followed_out_of_the_image)
{
	uint64_t x = 88172645463325252;
	uint8_t *image = malloc(IMAGE);

	cr_assert_not_null(image);
	for (int i = 0; i < 600; i++) {
		make_image(image);
		for (int k = 0; k < 3; k++) {
			size_t at;

			x ^= x << 13;
			x ^= x >> 7;
			x ^= x << 17;
			at = x % 3 ? IMAGE - 32 - sizeof table + x / 3 % sizeof table : IMAGE - METADATA + x / 3 % 76;
			image[at] = (uint8_t)(x >> 32);
		}
		le(image + IMAGE - METADATA + 22, 0, 2); /* sections stay small, so that this takes no time */
		(void)!measure(image, IMAGE, 2, i % 2);
	}
	free(image);
}

Test(measure_snp, files_are_measured_too)
{
	char path[] = "/tmp/pw-measure-snp-XXXXXX", hex[MEASURE_SNP_HEX];
	struct measure_snp_files f = { .ovmf = path, .vcpus = 1, .features = 1 };
	uint8_t image[IMAGE];
	struct pw_err err = { 0 };
	int fd = mkstemp(path);

	cr_assert_geq(fd, 0);
	make_image(image);
	cr_assert_eq(write(fd, image, IMAGE), IMAGE);
	close(fd);
	cr_assert_eq(measure_snp_files(&f, hex, &err), PW_OK, "%s", err.msg);
	cr_assert_str_eq(
		hex,
		"fa2c94632e420bbba4206fa2e6a1c97ed30f20cb165e00327081ffefcd8098d4217bfb78829784054950c705d38b17b7");
	f.kernel = "/nonexistent/kernel";
	cr_assert_eq(measure_snp_files(&f, hex, &err), PW_STORAGE);
	f.kernel = NULL;
	f.vcpu_type = "Xeon";
	cr_assert_eq(measure_snp_files(&f, hex, &err), PW_NOT_FOUND);
	unlink(path);
}

Test(measure_snp, vmms_have_names)
{
	enum measure_snp_vmm vmm;

	cr_assert_eq(measure_snp_vmm_named("ec2", &vmm, NULL), PW_OK);
	cr_assert_eq(vmm, MEASURE_SNP_EC2);
	cr_assert_eq(measure_snp_vmm_named("xen", &vmm, NULL), PW_NOT_FOUND);
}
