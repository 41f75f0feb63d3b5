/* api/codec_vcpu.h
 *
 * What the host saw of a protected vCPU at its last exit: the body of PUT /v1/vms/{vm}/vcpus/{n}, and how journal and
 * picture keep it. An item, or a bit of one, that the exit does not show (engine/arch/pkvm_vcpu.h) is refused when an
 * agent reports it, and left out when journal or picture have it from a version that did not know better; no fault ever
 * quotes a value: nothing hidden gets further than the decoder (L10).
 */
#ifndef PW_API_CODEC_VCPU_H
#define PW_API_CODEC_VCPU_H
#include "api/codec.h"
#include "api/jsonw.h"
#include "engine/arch/pkvm_vcpu.h"

#define VCPU_VALUES_MAX 16 /* no exit shows more items */
struct vcpu_exit {
	enum pkvm_exit exit;
	unsigned count;
	struct {
		unsigned item; /* as pkvm_exit_item counts */
		uint64_t value;
	} values[VCPU_VALUES_MAX];
};

struct vcpu_body { /* {"boot_id","epoch","exit":NAME,"items":{NAME:value,...}} */
	const char *boot_id;
	uint64_t epoch;
	struct vcpu_exit seen;
};
CODEC_DECODER(vcpu);

/* The two members as they were written: the exit's name, and the object of items as JSON text. What is hidden today
 * is left out. */
bool vcpu_exit_read(const char *exit, const char *items, struct vcpu_exit *out, struct codec_fault *why) PW_MUST_CHECK;
void vcpu_items_write(struct jsonw *w, const struct vcpu_exit *x);
/* "0x...": registers use all of their 64 bits, and JSON's numbers do not. */
void vcpu_value_write(struct jsonw *w, const char *key, uint64_t value);
/* NULL: the item was not reported. */
const uint64_t *vcpu_exit_value(const struct vcpu_exit *x, unsigned item);

#endif
