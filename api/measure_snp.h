/* api/measure_snp.h
 *
 * The launch digest that an SEV-SNP guest will have: what QEMU and KVM measure of an OVMF image, of the kernel that
 * is booted directly, and of the first state of each vCPU.
 */
#ifndef PW_API_MEASURE_SNP_H
#define PW_API_MEASURE_SNP_H
#include "engine/arch/snp.h"

#define MEASURE_SNP_FEATURES ((uint64_t)1) /* SEV_FEATURES: SNP alone */

/* What one VMM's first state of a vCPU has that others have not. */
#define MEASURE_SNP_VMMS(X)                                                                        \
	X(MEASURE_SNP_QEMU, "qemu")         /* QEMU, and KVM of Linux 6.9 or newer */              \
	X(MEASURE_SNP_QEMU_OLD, "qemu-old") /* KVM before that leaves MXCSR and the FPU's FCW 0 */ \
	X(MEASURE_SNP_EC2, "ec2")           /* other segment attributes, and the CPUID page comes last */
#define PW_ENUM_(name, text) name,
enum measure_snp_vmm { MEASURE_SNP_VMMS(PW_ENUM_) MEASURE_SNP_VMM_COUNT };
#undef PW_ENUM_

struct measure_snp_blob {
	const uint8_t *bytes;
	size_t size;
};

struct measure_snp {
	struct measure_snp_blob ovmf;
	unsigned vcpus;
	uint32_t signature; /* of the vCPU's CPUID 1 EAX: measure_snp_signature */
	uint64_t features;
	enum measure_snp_vmm vmm;
	bool has_kernel; /* booted directly: its hashes are measured */
	struct measure_snp_blob kernel, initrd;
	const char *cmdline; /* NULL: empty */
};

/* PW_NOT_FOUND: no vCPU type of that name ("EPYC-v4", "EPYC-Milan" ...). */
enum pw_status measure_snp_signature(const char *type, uint32_t *out, struct pw_err *err) PW_MUST_CHECK;
enum pw_status measure_snp_vmm_named(const char *name, enum measure_snp_vmm *out, struct pw_err *err) PW_MUST_CHECK;

/* The VMSA page of a vCPU that starts at `eip`. */
void measure_snp_vmsa(const struct measure_snp *o, uint32_t eip, uint8_t page[SNP_PAGE]);

/* PW_INVALID: no vCPU, or an image that cannot be followed, or that has no room for a kernel's hashes. */
enum pw_status measure_snp(const struct measure_snp *o, uint8_t digest[SNP_DIGEST], struct pw_err *err) PW_MUST_CHECK;

/* `pagewarden measure snp`: of files, as hex digits. PW_STORAGE: one cannot be read. */
#define MEASURE_SNP_HEX (2 * SNP_DIGEST + 1)
struct measure_snp_files {
	const char *ovmf, *vcpu_type;          /* NULL type: EPYC-v4 */
	const char *kernel, *initrd, *cmdline; /* NULL: none */
	unsigned vcpus;
	uint64_t features;
	enum measure_snp_vmm vmm;
};
enum pw_status measure_snp_files(const struct measure_snp_files *f, char hex[MEASURE_SNP_HEX],
				 struct pw_err *err) PW_MUST_CHECK;

#endif
