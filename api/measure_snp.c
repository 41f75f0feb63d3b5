#include "api/measure_snp.h"

#include <errno.h>
#include <nettle/sha2.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define FOUR_GIB       ((uint64_t)1 << 32)
#define FILE_MAX       ((size_t)1 << 30)
#define PAGES_MAX      ((uint64_t)1 << 20) /* of all sections together: more is taken for a damaged image */
#define GUID_BYTES     16
#define ENTRY          (GUID_BYTES + 2u) /* length and GUID after an entry's data */
#define TABLE_END      32                /* bytes between the GUID table and the image's end */
#define HEADER         16
#define SECTION        12
#define HASHES         168 /* the table of three hashes, before its padding */
#define HASHES_PADDED  176
#define HASH_ENTRY     50
#define SHA256         32
#define BSP_EIP        0xfffffff0u
#define VMSA_GFN       ((uint64_t)0xfffffffff)
#define METADATA_MAGIC 0x56455341u /* "ASEV" */

/* GUIDs as they lie in memory: the first three fields little-endian. */
#define GUID(a, b, c, d, e)                                                                                     \
	{                                                                                                       \
		(uint8_t)((uint32_t)(a)), (uint8_t)((uint32_t)(a) >> 8), (uint8_t)((uint32_t)(a) >> 16),        \
			(uint8_t)((uint32_t)(a) >> 24), (uint8_t)(b), (uint8_t)((b) >> 8), (uint8_t)(c),        \
			(uint8_t)((c) >> 8), (uint8_t)((d) >> 8), (uint8_t)(d), (uint8_t)((uint64_t)(e) >> 40), \
			(uint8_t)((uint64_t)(e) >> 32), (uint8_t)((uint64_t)(e) >> 24),                         \
			(uint8_t)((uint64_t)(e) >> 16), (uint8_t)((uint64_t)(e) >> 8), (uint8_t)(e)             \
	}
static const uint8_t guid_footer[] = GUID(0x96b582de, 0x1fb2, 0x45f7, 0xbaea, 0xa366c55a082d);
static const uint8_t guid_metadata[] = GUID(0xdc886566, 0x984a, 0x4798, 0xa75e, 0x5585a7bf67cc);
static const uint8_t guid_reset[] = GUID(0x00f771de, 0x1a7e, 0x4fcb, 0x890e, 0x68c77e2fb44e);
static const uint8_t guid_hash_place[] = GUID(0x7255371f, 0x3a3b, 0x4b04, 0x927b, 0x1da6efa8d454);
static const uint8_t guid_hashes[] = GUID(0x9438d606, 0x4f22, 0x4cc9, 0xb479, 0xa793d411fd21);
static const uint8_t guid_cmdline[] = GUID(0x97d02dd8, 0xbd20, 0x4c94, 0xaa78, 0xe7714d36ab2a);
static const uint8_t guid_initrd[] = GUID(0x44baf731, 0x3a2f, 0x4bd7, 0x9af1, 0x41e29169781d);
static const uint8_t guid_kernel[] = GUID(0x4de79437, 0xabd2, 0x427f, 0xb835, 0xd5b172d2045b);

/* vCPU types. */

static const struct vcpu_type {
	const char *name;
	uint32_t signature;
} vcpu_types[] = {
	{ "EPYC", 0x800f12 },          { "EPYC-v1", 0x800f12 },      { "EPYC-v2", 0x800f12 },
	{ "EPYC-IBPB", 0x800f12 },     { "EPYC-v3", 0x800f12 },      { "EPYC-v4", 0x800f12 },
	{ "EPYC-Rome", 0x830f10 },     { "EPYC-Rome-v1", 0x830f10 }, { "EPYC-Rome-v2", 0x830f10 },
	{ "EPYC-Rome-v3", 0x830f10 },  { "EPYC-Milan", 0xa00f11 },   { "EPYC-Milan-v1", 0xa00f11 },
	{ "EPYC-Milan-v2", 0xa00f11 }, { "EPYC-Genoa", 0xa10f10 },   { "EPYC-Genoa-v1", 0xa10f10 },
	{ "EPYC-Turin", 0xb00f00 },
};

enum pw_status measure_snp_signature(const char *type, uint32_t *out, struct pw_err *err)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(vcpu_types); i++)
		if (strcmp(vcpu_types[i].name, type) == 0) {
			*out = vcpu_types[i].signature;
			return PW_OK;
		}
	return pw_fail(err, PW_NOT_FOUND, "there is no vCPU type \"%.64s\"", type);
}

#define TEXT_(name, text) [name] = text,
static const char *const vmm_names[MEASURE_SNP_VMM_COUNT] = { MEASURE_SNP_VMMS(TEXT_) };
#undef TEXT_

enum pw_status measure_snp_vmm_named(const char *name, enum measure_snp_vmm *out, struct pw_err *err)
{
	for (int i = 0; i < MEASURE_SNP_VMM_COUNT; i++)
		if (strcmp(vmm_names[i], name) == 0) {
			*out = (enum measure_snp_vmm)i;
			return PW_OK;
		}
	return pw_fail(err, PW_NOT_FOUND, "there is no VMM \"%.64s\"", name);
}

/* Numbers in images. */

static uint64_t le(const uint8_t *at, unsigned bytes)
{
	uint64_t value = 0;

	for (unsigned i = 0; i < bytes; i++)
		value |= (uint64_t)at[i] << (8 * i);
	return value;
}

static void put_le(uint8_t *at, uint64_t value, unsigned bytes)
{
	for (unsigned i = 0; i < bytes; i++)
		at[i] = (uint8_t)(value >> (8 * i));
}

/* The first state of a vCPU. */

/* What VMMs differ in. The attributes of CS are the boot processor's, and another's. */
static const struct habits {
	uint16_t cs_first, cs_other, ss, tr;
	bool rdx_is_signature;
	uint32_t mxcsr;
	uint16_t fcw;
	bool cpuid_last;
} habits[MEASURE_SNP_VMM_COUNT] = {
	[MEASURE_SNP_QEMU] = { 0x9b, 0x9b, 0x93, 0x8b, true, 0x1f80, 0x37f, false },
	[MEASURE_SNP_QEMU_OLD] = { 0x9b, 0x9b, 0x93, 0x8b, true, 0, 0, false },
	[MEASURE_SNP_EC2] = { 0x9a, 0x9b, 0x92, 0x83, false, 0, 0, true },
};

static void put_segment(uint8_t *page, unsigned at, uint16_t selector, uint16_t attributes, uint64_t base)
{
	put_le(page + at, selector, 2);
	put_le(page + at + 2, attributes, 2);
	put_le(page + at + 4, 0xffff, 4);
	put_le(page + at + 8, base, 8);
}

void measure_snp_vmsa(const struct measure_snp *o, uint32_t eip, uint8_t page[SNP_PAGE])
{
	static const struct {
		unsigned at;
		uint64_t value;
	} registers[] = {
		{ 0x0d0, 0x1000 },             /* EFER: SVME */
		{ 0x148, 0x40 },               /* CR4: MCE */
		{ 0x158, 0x10 },               /* CR0 */
		{ 0x160, 0x400 },              /* DR7 */
		{ 0x168, 0xffff0ff0 },         /* DR6 */
		{ 0x170, 2 },                  /* RFLAGS */
		{ 0x268, 0x0007040600070406 }, /* PAT */
		{ 0x3e8, 1 },                  /* XCR0 */
	};
	static const struct {
		unsigned at;
		uint16_t attributes;
	} segments[] = { { 0x00, 0x93 }, { 0x30, 0x93 }, { 0x40, 0x93 }, { 0x50, 0x93 },
			 { 0x60, 0 },    { 0x70, 0x82 }, { 0x80, 0 } }; /* ES DS FS GS, GDTR LDTR IDTR */
	const struct habits *h = &habits[o->vmm];

	memset(page, 0, SNP_PAGE);
	for (size_t i = 0; i < PW_ARRAY_LEN(registers); i++)
		put_le(page + registers[i].at, registers[i].value, 8);
	for (size_t i = 0; i < PW_ARRAY_LEN(segments); i++)
		put_segment(page, segments[i].at, 0, segments[i].attributes, 0);
	put_segment(page, 0x10, 0xf000, eip == BSP_EIP ? h->cs_first : h->cs_other, eip & 0xffff0000u);
	put_segment(page, 0x20, 0, h->ss, 0);
	put_segment(page, 0x90, 0, h->tr, 0);
	put_le(page + 0x178, eip & 0xffff, 8);
	put_le(page + 0x310, h->rdx_is_signature ? o->signature : 0, 8);
	put_le(page + 0x3b0, o->features, 8);
	put_le(page + 0x408, h->mxcsr, 4);
	put_le(page + 0x410, h->fcw, 2);
}

/* The tables at the end of the image. */

/* The data of the entry, or NULL. The table is walked from its end downwards. */
static const uint8_t *find_entry(const struct measure_snp_blob *b, const uint8_t guid[GUID_BYTES], size_t at_least)
{
	size_t end, first;

	if (b->size < TABLE_END + ENTRY)
		return NULL;
	end = b->size - TABLE_END - ENTRY;
	if (memcmp(b->bytes + end + 2, guid_footer, GUID_BYTES) != 0)
		return NULL;
	first = (size_t)le(b->bytes + end, 2);
	if (first < ENTRY || first - ENTRY > end)
		return NULL;
	first = end - (first - ENTRY);
	while (end - first >= ENTRY) {
		size_t size = (size_t)le(b->bytes + end - ENTRY, 2);

		if (size < ENTRY || size > end - first)
			return NULL;
		if (memcmp(b->bytes + end - GUID_BYTES, guid, GUID_BYTES) == 0)
			return size - ENTRY >= at_least ? b->bytes + end - size : NULL;
		end -= size;
	}
	return NULL;
}

#define SECTION_TYPES(X)           \
	X(SECTION_MEMORY, 1)       \
	X(SECTION_SECRETS, 2)      \
	X(SECTION_CPUID, 3)        \
	X(SECTION_CALLING_AREA, 4) \
	X(SECTION_KERNEL_HASHES, 0x10)
#define PW_ENUM_(name, value) name = value,
enum section_type { SECTION_TYPES(PW_ENUM_) };
#undef PW_ENUM_

struct sections {
	const uint8_t *bytes; /* SECTION each */
	size_t count;
};

/* An image without metadata has no sections. */
static enum pw_status find_sections(const struct measure_snp_blob *b, struct sections *out, struct pw_err *err)
{
	const uint8_t *entry = find_entry(b, guid_metadata, 4);
	uint64_t offset, count;

	*out = (struct sections){ 0 };
	if (!entry)
		return PW_OK;
	offset = le(entry, 4);
	if (offset < HEADER || offset > b->size || le(b->bytes + b->size - offset, 4) != METADATA_MAGIC)
		return pw_fail(err, PW_INVALID, "the image has no SEV metadata where its table says");
	out->bytes = b->bytes + b->size - offset;
	count = le(out->bytes + 12, 4);
	if (le(out->bytes + 8, 4) != 1)
		return pw_fail(err, PW_INVALID, "the SEV metadata has another version than 1");
	if (count > (offset - HEADER) / SECTION)
		return pw_fail(err, PW_INVALID, "the SEV metadata ends past the image");
	out->bytes += HEADER;
	out->count = (size_t)count;
	return PW_OK;
}

/* The kernel's hashes. */

static void put_hash(uint8_t *at, const uint8_t guid[GUID_BYTES], const void *data, size_t size, size_t more)
{
	static const uint8_t zero[1];
	struct sha256_ctx sha;

	memcpy(at, guid, GUID_BYTES);
	put_le(at + GUID_BYTES, HASH_ENTRY, 2);
	sha256_init(&sha);
	sha256_update(&sha, size, data ? data : zero);
	sha256_update(&sha, more, zero);
	sha256_digest(&sha, SHA256, at + ENTRY);
}

/* The page with the hashes of command line, initrd and kernel. */
static void put_hashes(const struct measure_snp *o, uint8_t *table)
{
	const char *cmdline = o->cmdline ? o->cmdline : "";

	memcpy(table, guid_hashes, GUID_BYTES);
	put_le(table + GUID_BYTES, HASHES, 2);
	put_hash(table + ENTRY, guid_cmdline, cmdline, strlen(cmdline), 1);
	put_hash(table + ENTRY + HASH_ENTRY, guid_initrd, o->initrd.bytes, o->initrd.size, 0);
	put_hash(table + ENTRY + (size_t)2 * HASH_ENTRY, guid_kernel, o->kernel.bytes, o->kernel.size, 0);
}

/* The launch. */

static void add_pages(uint8_t digest[SNP_DIGEST], enum snp_page_type type, uint64_t gpa, uint64_t pages,
		      const uint8_t *content)
{
	struct snp_measured page = { .type = type };

	for (uint64_t i = 0; i < pages; i++) {
		page.gfn = (gpa >> 12) + i;
		page.content = content ? content + i * SNP_PAGE : NULL;
		snp_digest_extend(digest, &page);
	}
}

static enum pw_status add_hashes(const struct measure_snp *o, uint64_t gpa, uint64_t pages, uint8_t digest[SNP_DIGEST],
				 struct pw_err *err)
{
	const uint8_t *place = find_entry(&o->ovmf, guid_hash_place, 4);
	uint8_t page[SNP_PAGE] = { 0 };
	uint64_t offset;

	if (!o->has_kernel) {
		add_pages(digest, SNP_TYPE_ZERO, gpa, pages, NULL);
		return PW_OK;
	}
	if (!place || le(place, 4) == 0 || pages != 1)
		return pw_fail(err, PW_INVALID, "the image does not say where a kernel's hashes go");
	offset = le(place, 4) & (SNP_PAGE - 1);
	if (offset > SNP_PAGE - HASHES_PADDED)
		return pw_fail(err, PW_INVALID, "a kernel's hashes do not fit into their page");
	put_hashes(o, page + offset);
	add_pages(digest, SNP_TYPE_NORMAL, gpa, 1, page);
	return PW_OK;
}

static enum pw_status add_section(const struct measure_snp *o, const uint8_t *section, uint8_t digest[SNP_DIGEST],
				  struct pw_err *err)
{
	uint64_t gpa = le(section, 4), size = le(section + 4, 4), pages = size / SNP_PAGE;
	uint32_t type = (uint32_t)le(section + 8, 4);

	if (gpa % SNP_PAGE || size % SNP_PAGE)
		return pw_fail(err, PW_INVALID, "the section at 0x%" PRIx64 " is not of whole pages", gpa);
	switch (type) {
	case SECTION_MEMORY:
	case SECTION_CALLING_AREA: add_pages(digest, SNP_TYPE_ZERO, gpa, pages, NULL); return PW_OK;
	case SECTION_SECRETS: add_pages(digest, SNP_TYPE_SECRETS, gpa, 1, NULL); return PW_OK;
	case SECTION_CPUID: add_pages(digest, SNP_TYPE_CPUID, gpa, 1, NULL); return PW_OK;
	case SECTION_KERNEL_HASHES: return add_hashes(o, gpa, pages, digest, err);
	default: return pw_fail(err, PW_INVALID, "section type 0x%" PRIx32 " is not known", type);
	}
}

static uint32_t section_type(const struct sections *s, size_t i)
{
	return (uint32_t)le(s->bytes + i * SECTION + 8, 4);
}

/* The sections whose turn it is: all but the CPUID page's, or that alone. */
static enum pw_status add_sections(const struct measure_snp *o, const struct sections *s, bool last,
				   uint8_t digest[SNP_DIGEST], struct pw_err *err)
{
	for (size_t i = 0; i < s->count; i++) {
		bool is_last = habits[o->vmm].cpuid_last && section_type(s, i) == SECTION_CPUID;

		if (is_last == last && add_section(o, s->bytes + i * SECTION, digest, err) != PW_OK)
			return err ? err->status : PW_INVALID;
	}
	return PW_OK;
}

static enum pw_status check_sections(const struct measure_snp *o, const struct sections *s, struct pw_err *err)
{
	uint64_t pages = 0;
	bool hashes = false;

	for (size_t i = 0; i < s->count; i++) {
		pages += le(s->bytes + i * SECTION + 4, 4) / SNP_PAGE;
		hashes |= section_type(s, i) == SECTION_KERNEL_HASHES;
	}
	if (pages > PAGES_MAX)
		return pw_fail(err, PW_INVALID, "the SEV metadata asks for %" PRIu64 " pages", pages);
	if (o->has_kernel && !hashes)
		return pw_fail(err, PW_INVALID, "the image has no room for a kernel's hashes");
	return PW_OK;
}

static enum pw_status add_vcpus(const struct measure_snp *o, uint8_t digest[SNP_DIGEST], struct pw_err *err)
{
	const uint8_t *reset = find_entry(&o->ovmf, guid_reset, 4);
	uint8_t page[SNP_PAGE];

	if (o->vcpus > 1 && !reset)
		return pw_fail(err, PW_INVALID, "the image does not say where other vCPUs start");
	for (unsigned i = 0; i < o->vcpus; i++) {
		measure_snp_vmsa(o, i ? (uint32_t)le(reset, 4) : BSP_EIP, page);
		add_pages(digest, SNP_TYPE_VMSA, VMSA_GFN << 12, 1, page);
	}
	return PW_OK;
}

enum pw_status measure_snp(const struct measure_snp *o, uint8_t digest[SNP_DIGEST], struct pw_err *err)
{
	uint8_t ld[SNP_DIGEST] = { 0 };
	size_t size = o->ovmf.size;
	struct sections s;
	enum pw_status st;

	if (!o->vcpus)
		return pw_fail(err, PW_INVALID, "a guest has a vCPU at least");
	if (!size || size % SNP_PAGE || size > FOUR_GIB)
		return pw_fail(err, PW_INVALID, "the image is not of whole pages below 4 GiB");
	st = find_sections(&o->ovmf, &s, err);
	if (st == PW_OK)
		st = check_sections(o, &s, err);
	if (st != PW_OK)
		return st;
	add_pages(ld, SNP_TYPE_NORMAL, FOUR_GIB - size, size / SNP_PAGE, o->ovmf.bytes);
	st = add_sections(o, &s, false, ld, err);
	if (st == PW_OK)
		st = add_sections(o, &s, true, ld, err);
	if (st == PW_OK)
		st = add_vcpus(o, ld, err);
	if (st == PW_OK)
		memcpy(digest, ld, SNP_DIGEST);
	return st;
}

/* Files. */

static enum pw_status read_open(FILE *in, const char *path, struct measure_snp_blob *out, struct pw_err *err)
{
	struct stat about;
	uint8_t *bytes;
	size_t size;

	if (fstat(fileno(in), &about) != 0)
		return pw_fail(err, PW_STORAGE, "%s: %s", path, strerror(errno));
	if (about.st_size < 0 || (uint64_t)about.st_size > FILE_MAX)
		return pw_fail(err, PW_INVALID, "%s is too large", path);
	size = (size_t)about.st_size;
	bytes = malloc(size + 1);
	if (!bytes)
		return pw_fail(err, PW_NO_MEMORY, "out of memory");
	if (fread(bytes, 1, size, in) != size) {
		free(bytes);
		return pw_fail(err, PW_STORAGE, "%s: reading failed", path);
	}
	out->bytes = bytes;
	out->size = size;
	return PW_OK;
}

/* NULL is an empty file. */
static enum pw_status read_file(const char *path, struct measure_snp_blob *out, struct pw_err *err)
{
	enum pw_status st;
	FILE *in;

	if (!path)
		return PW_OK;
	in = fopen(path, "re");
	if (!in)
		return pw_fail(err, PW_STORAGE, "%s: %s", path, strerror(errno));
	st = read_open(in, path, out, err);
	fclose(in);
	return st;
}

static void blob_free(const struct measure_snp_blob *b)
{
	free((uint8_t *)(uintptr_t)b->bytes);
}

enum pw_status measure_snp_files(const struct measure_snp_files *f, char hex[MEASURE_SNP_HEX], struct pw_err *err)
{
	struct measure_snp o = { .vcpus = f->vcpus, .features = f->features, .vmm = f->vmm, .cmdline = f->cmdline };
	uint8_t digest[SNP_DIGEST] = { 0 };
	enum pw_status st = measure_snp_signature(f->vcpu_type ? f->vcpu_type : "EPYC-v4", &o.signature, err);

	o.has_kernel = f->kernel;
	if (st == PW_OK)
		st = read_file(f->ovmf, &o.ovmf, err);
	if (st == PW_OK)
		st = read_file(f->kernel, &o.kernel, err);
	if (st == PW_OK)
		st = read_file(f->initrd, &o.initrd, err);
	if (st == PW_OK)
		st = measure_snp(&o, digest, err);
	for (size_t i = 0; st == PW_OK && i < SNP_DIGEST; i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	blob_free(&o.ovmf);
	blob_free(&o.kernel);
	blob_free(&o.initrd);
	return st;
}
