#include "api/measure_tdx.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define BLOCK      128 /* what names a call, in the hash */
#define GPA_AT     16
#define FILE_MAX   ((size_t)256 << 20)
#define GUID_BYTES 16
#define TABLE_END  32                /* bytes between the GUID table and the image's end */
#define ENTRY      (GUID_BYTES + 2u) /* length and GUID after an entry's data */
#define DESCRIPTOR 16
#define SECTION    32

static const uint8_t guid_footer[GUID_BYTES] = { 0xde, 0x82, 0xb5, 0x96, 0xb2, 0x1f, 0xf7, 0x45,
						 0xba, 0xea, 0xa3, 0x66, 0xc5, 0x5a, 0x08, 0x2d };
static const uint8_t guid_tdvf[GUID_BYTES] = { 0x35, 0x65, 0x7a, 0xe4, 0x4a, 0x98, 0x98, 0x47,
					       0x86, 0x5e, 0x46, 0x85, 0xa7, 0xbf, 0x8e, 0xc2 };

/* The hash. */

static void put_call(struct mrtd *m, const char *name, uint64_t gpa)
{
	uint8_t block[BLOCK] = { 0 };

	memcpy(block, name, strlen(name));
	for (unsigned i = 0; i < 8; i++)
		block[GPA_AT + i] = (uint8_t)(gpa >> (8 * i));
	sha384_update(&m->sha, sizeof block, block);
}

void mrtd_init(struct mrtd *m)
{
	sha384_init(&m->sha);
}

void mrtd_add(struct mrtd *m, uint64_t gpa)
{
	put_call(m, "MEM.PAGE.ADD", gpa);
}

void mrtd_extend(struct mrtd *m, uint64_t gpa, const uint8_t content[MRTD_CHUNK])
{
	put_call(m, "MR.EXTEND", gpa);
	sha384_update(&m->sha, MRTD_CHUNK, content);
}

void mrtd_final(struct mrtd *m, uint8_t out[MRTD_BYTES])
{
	sha384_digest(&m->sha, MRTD_BYTES, out);
}

/* The descriptor. */

#define TEXT_(name, text) [name] = text,
static const char *const type_names[TDVF_SECTION_TYPE_COUNT] = { TDVF_SECTION_TYPES(TEXT_) };
#undef TEXT_

const char *tdvf_section_type_name(uint32_t type)
{
	return type < TDVF_SECTION_TYPE_COUNT ? type_names[type] : NULL;
}

static uint32_t le16(const uint8_t *p)
{
	return (uint32_t)p[0] | (uint32_t)p[1] << 8;
}

static uint32_t le32(const uint8_t *p)
{
	return le16(p) | le16(p + 2) << 16;
}

static uint64_t le64(const uint8_t *p)
{
	return le32(p) | (uint64_t)le32(p + 4) << 32;
}

/* Looks through the GUID table, backwards from its footer, for the distance of the descriptor from the end. */
static bool find_by_guid(const uint8_t *image, size_t size, size_t *at)
{
	size_t end, first;

	if (size < TABLE_END + ENTRY || memcmp(image + size - TABLE_END - GUID_BYTES, guid_footer, GUID_BYTES) != 0)
		return false;
	end = size - TABLE_END - ENTRY;
	if (le16(image + end) < ENTRY || le16(image + end) - ENTRY > end)
		return false;
	first = end - (le16(image + end) - ENTRY);
	while (end - first >= ENTRY) {
		const uint8_t *tail = image + end - ENTRY;
		size_t length = le16(tail);

		if (length < ENTRY || length > end - first)
			return false;
		if (memcmp(tail + 2, guid_tdvf, GUID_BYTES) == 0 && length >= ENTRY + 4) {
			*at = size - le32(tail - 4);
			return le32(tail - 4) <= size;
		}
		end -= length;
	}
	return false;
}

/* td-shim without the table: the descriptor's offset stands 32 bytes before the end. */
static bool find_by_offset(const uint8_t *image, size_t size, size_t *at)
{
	if (size < TABLE_END)
		return false;
	*at = le32(image + size - TABLE_END);
	return true;
}

static bool is_descriptor(const uint8_t *image, size_t size, size_t at)
{
	return at <= size && size - at >= DESCRIPTOR && memcmp(image + at, "TDVF", 4) == 0;
}

static enum pw_status check_section(const struct tdvf *t, unsigned n, size_t size, struct pw_err *err)
{
	const struct tdvf_section *s = &t->section[n];

	if (s->gpa % MRTD_PAGE || s->size % MRTD_PAGE)
		return pw_fail(err, PW_INVALID, "section %u: GPA or size is not a multiple of 4 KiB", n);
	if (s->gpa >> 52 || s->size > TDVF_PAGES * MRTD_PAGE)
		return pw_fail(err, PW_INVALID, "section %u: 0x%" PRIx64 " bytes at GPA 0x%" PRIx64, n, s->size,
			       s->gpa);
	if (s->raw_size > s->size || s->offset > size || s->raw_size > size - s->offset)
		return pw_fail(err, PW_INVALID, "section %u: its data is larger than its memory, or than the image", n);
	for (unsigned k = 0; k < n; k++) {
		const struct tdvf_section *o = &t->section[k];

		if (s->gpa < o->gpa + o->size && o->gpa < s->gpa + s->size)
			return pw_fail(err, PW_INVALID, "sections %u and %u overlap", k, n);
	}
	return PW_OK;
}

static struct tdvf_section read_section(const uint8_t *p)
{
	return (struct tdvf_section){ .offset = le32(p),
				      .raw_size = le32(p + 4),
				      .gpa = le64(p + 8),
				      .size = le64(p + 16),
				      .type = le32(p + 24),
				      .attributes = le32(p + 28) };
}

enum pw_status tdvf_parse(const uint8_t *image, size_t size, struct tdvf *out, struct pw_err *err)
{
	uint64_t pages = 0;
	size_t at;
	uint32_t n;

	if (!(find_by_guid(image, size, &at) && is_descriptor(image, size, at)) &&
	    !(find_by_offset(image, size, &at) && is_descriptor(image, size, at)))
		return pw_fail(err, PW_INVALID, "no TDVF descriptor: not the firmware of a TD");
	if (le32(image + at + 8) != 1)
		return pw_fail(err, PW_INVALID, "TDVF descriptor of version %" PRIu32 ", not 1", le32(image + at + 8));
	n = le32(image + at + 12);
	if (n > TDVF_SECTIONS || n > (size - at - DESCRIPTOR) / SECTION)
		return pw_fail(err, PW_INVALID, "TDVF descriptor with %" PRIu32 " sections", n);
	out->count = n;
	for (unsigned i = 0; i < n; i++) {
		out->section[i] = read_section(image + at + DESCRIPTOR + (size_t)i * SECTION);
		if (check_section(out, i, size, err) != PW_OK)
			return err ? err->status : PW_INVALID;
		pages += out->section[i].size / MRTD_PAGE;
	}
	if (pages > TDVF_PAGES)
		return pw_fail(err, PW_INVALID, "the sections have %" PRIu64 " pages", pages);
	return PW_OK;
}

/* Measuring an image. */

static void extend_page(struct mrtd *m, const uint8_t *image, const struct tdvf_section *s, uint64_t at)
{
	uint8_t page[MRTD_PAGE] = { 0 };
	size_t have = at < s->raw_size ? (size_t)(s->raw_size - at) : 0;

	if (have)
		memcpy(page, image + s->offset + at, have < MRTD_PAGE ? have : MRTD_PAGE);
	for (unsigned i = 0; i < MRTD_PAGE; i += MRTD_CHUNK)
		mrtd_extend(m, s->gpa + at + i, page + i);
}

static void measure_section(struct mrtd *m, const uint8_t *image, const struct tdvf_section *s,
			    enum measure_tdx_order order)
{
	bool extends = s->attributes & TDVF_EXTEND;

	if (s->attributes & TDVF_AUG)
		return;
	for (uint64_t at = 0; at < s->size; at += MRTD_PAGE) {
		mrtd_add(m, s->gpa + at);
		if (extends && order == MEASURE_TDX_BY_PAGE)
			extend_page(m, image, s, at);
	}
	for (uint64_t at = 0; extends && order == MEASURE_TDX_BY_SECTION && at < s->size; at += MRTD_PAGE)
		extend_page(m, image, s, at);
}

enum pw_status measure_tdx(const uint8_t *image, size_t size, enum measure_tdx_order order, uint8_t out[MRTD_BYTES],
			   struct pw_err *err)
{
	struct tdvf t;
	enum pw_status st = tdvf_parse(image, size, &t, err);
	struct mrtd m;

	if (st != PW_OK)
		return st;
	mrtd_init(&m);
	for (unsigned i = 0; i < t.count; i++)
		measure_section(&m, image, &t.section[i], order);
	mrtd_final(&m, out);
	return PW_OK;
}

/* The whole file; the caller frees it. */
static enum pw_status read_file(const char *path, uint8_t **image, size_t *size, struct pw_err *err)
{
	FILE *f = fopen(path, "re");
	enum pw_status st = PW_OK;
	struct stat about;
	size_t bytes;

	*image = NULL;
	if (!f)
		return pw_fail(err, PW_STORAGE, "%s cannot be read: %s", path, strerror(errno));
	if (fstat(fileno(f), &about) != 0 || !S_ISREG(about.st_mode)) {
		fclose(f);
		return pw_fail(err, PW_STORAGE, "%s is not a file", path);
	}
	bytes = (size_t)about.st_size;
	if (bytes > FILE_MAX)
		st = pw_fail(err, PW_INVALID, "%s is larger than any firmware: %zu bytes", path, bytes);
	else if (!(*image = malloc(bytes + 1)))
		st = pw_fail(err, PW_NO_MEMORY, "no memory for %zu bytes of %s", bytes, path);
	else if ((*size = fread(*image, 1, bytes, f)) != bytes)
		st = pw_fail(err, PW_STORAGE, "%s cannot be read whole", path);
	fclose(f);
	return st;
}

enum pw_status measure_tdx_file(const char *path, enum measure_tdx_order order, char hex[MRTD_HEX], struct pw_err *err)
{
	uint8_t mrtd[MRTD_BYTES], *image;
	size_t size = 0;
	enum pw_status st = read_file(path, &image, &size, err);

	if (st == PW_OK)
		st = measure_tdx(image, size, order, mrtd, err);
	if (st == PW_OK)
		for (unsigned i = 0; i < MRTD_BYTES; i++)
			snprintf(hex + (size_t)2 * i, 3, "%02x", mrtd[i]);
	free(image);
	return st;
}
