/* api/replay_cca.h
 *
 * The parts of the cca-trace/1 format: reading lines, and telling the state of the machine as lines do.
 */
#ifndef PW_API_REPLAY_CCA_H
#define PW_API_REPLAY_CCA_H
#include "api/replay.h"
#include "engine/arch/cca.h"

/* Nothing depends on where memory is, but that it is aligned; there is nothing at the second place. */
#define CCA_REPLAY_MEMORY ((uint64_t)0x5a5a40000000)
#define CCA_REPLAY_BAD    ((uint64_t)0x3b3b40000000)

struct cca_told { /* the last measurement that a line reported */
	uint64_t serial;
	uint8_t rim[CCA_RIM_BYTES];
};

struct cca_owner { /* of the REC that was last made in a granule: reports go on naming it when the REC is gone */
	uint64_t rec, serial;
};

struct cca_model {
	struct pw_mem mem;
	struct cca m;
	struct cca_told *told;
	struct cca_owner *owners;
	size_t told_count, owner_count;
};

/* What the host's pages hold. */
struct cca_operands {
	struct cca_realm_params realm;
	struct cca_rec_params rec;
	struct cca_run_params run;
	uint64_t source[CCA_GRANULE / sizeof(uint64_t)];
};

enum pw_status cca_no_memory(struct pw_err *err);
/* Put a new reference into an object or array; PW_NO_MEMORY if it or the value is NULL. */
enum pw_status cca_put(json_t *object, const char *key, json_t *value, struct pw_err *err);
enum pw_status cca_append(json_t *array, json_t *value, struct pw_err *err);

bool cca_read_hex(const char *text, uint64_t *out);                      /* "0x..." */
bool cca_read_number(const char *text, const char **end, uint64_t *out); /* decimal digits */
json_t *cca_hex_json(uint64_t value);
json_t *cca_address_json(const struct cca_model *x, uint64_t addr); /* by its name, if it has one */

/* The command `name` with the arguments and pages that the line gives; *p must live as long as *call. */
enum pw_status cca_read_call(const struct cca_model *x, const json_t *line, const char *name, struct cca_call *call,
			     struct cca_operands *p, struct pw_err *err);

/* Whom a step is about: the realm of the RD, else of the REC that was last made in the granule. */
const struct cca_realm *cca_realm_of(const struct cca_model *x, const struct cca_call *call);
enum pw_status cca_owner_put(struct cca_model *x, uint64_t rec, uint64_t serial, struct pw_err *err);

/* Put `post` as asked; put all granules and realms of a checkpoint. */
enum pw_status cca_post_json(struct cca_model *x, const json_t *asked, const struct cca_realm *r, json_t *got,
			     struct pw_err *err);
enum pw_status cca_checkpoint(struct cca_model *x, const json_t *line, json_t *got, struct pw_err *err);

#endif
