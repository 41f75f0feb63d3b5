/* api/measure_tdx.h
 *
 * MRTD, the launch measurement of a TD: SHA-384 over what TDH.MEM.PAGE.ADD and TDH.MR.EXTEND leave in it, and what a
 * firmware image (TDVF, td-shim) asks to be added and extended.
 */
#ifndef PW_API_MEASURE_TDX_H
#define PW_API_MEASURE_TDX_H
#include <nettle/sha2.h>

#include "engine/status.h"

#define MRTD_BYTES 48
#define MRTD_CHUNK 256 /* bytes of one EXTEND */
#define MRTD_PAGE  4096

struct mrtd {
	struct sha384_ctx sha;
};
void mrtd_init(struct mrtd *m);                                                    /* MNG.INIT */
void mrtd_add(struct mrtd *m, uint64_t gpa);                                       /* PAGE.ADD: content is not hashed */
void mrtd_extend(struct mrtd *m, uint64_t gpa, const uint8_t content[MRTD_CHUNK]); /* MR.EXTEND */
void mrtd_final(struct mrtd *m, uint8_t out[MRTD_BYTES]);                          /* MR.FINALIZE */

#define TDVF_SECTION_TYPES(X)                 \
	X(TDVF_BFV, "BFV")                    \
	X(TDVF_CFV, "CFV")                    \
	X(TDVF_TD_HOB, "TD_HOB")              \
	X(TDVF_TEMP_MEM, "TempMem")           \
	X(TDVF_PERM_MEM, "PermMem")           \
	X(TDVF_PAYLOAD, "Payload")            \
	X(TDVF_PAYLOAD_PARAM, "PayloadParam") \
	X(TDVF_TD_INFO, "TD_INFO")
#define PW_ENUM_(name, text) name,
enum tdvf_section_type { TDVF_SECTION_TYPES(PW_ENUM_) TDVF_SECTION_TYPE_COUNT };
#undef PW_ENUM_
const char *tdvf_section_type_name(uint32_t type); /* NULL: not one that is known */

#define TDVF_EXTEND 1u /* attributes: its content is measured */
#define TDVF_AUG    2u /* not added before the TD runs: leaves no trace */

struct tdvf_section {
	uint32_t offset, raw_size; /* in the image */
	uint64_t gpa, size;        /* in memory; what the image does not give is zero */
	uint32_t type, attributes;
};

#define TDVF_SECTIONS 64
#define TDVF_PAGES    ((uint64_t)1 << 20) /* of all sections together: more is taken for a damaged image */
struct tdvf {
	struct tdvf_section section[TDVF_SECTIONS];
	unsigned count;
};
/* PW_INVALID: no TDVF descriptor, or one that cannot be followed; err says which section. */
enum pw_status tdvf_parse(const uint8_t *image, size_t size, struct tdvf *out, struct pw_err *err) PW_MUST_CHECK;

/* In which order a VMM extends the pages of one section. */
enum measure_tdx_order {
	MEASURE_TDX_BY_PAGE,    /* each page is added, then extended: mainline KVM */
	MEASURE_TDX_BY_SECTION, /* all pages are added, then all are extended: older stacks */
};
enum pw_status measure_tdx(const uint8_t *image, size_t size, enum measure_tdx_order order, uint8_t out[MRTD_BYTES],
			   struct pw_err *err) PW_MUST_CHECK;

/* `pagewarden measure tdx`: of a file, as hex digits. PW_STORAGE: it cannot be read. */
#define MRTD_HEX (2 * MRTD_BYTES + 1)
enum pw_status measure_tdx_file(const char *path, enum measure_tdx_order order, char hex[MRTD_HEX],
				struct pw_err *err) PW_MUST_CHECK;

#endif
