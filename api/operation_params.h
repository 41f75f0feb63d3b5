/* api/operation_params.h
 *
 * The parameters of operations: one table from which requests are checked (api/codec.c), `pagewarden help operations`
 * is printed, and against which a test holds openapi.yaml.
 */
#ifndef PW_API_OPERATION_PARAMS_H
#define PW_API_OPERATION_PARAMS_H
#include "api/json.h"

#define OPERATION_RUNS_MAX  1024   /* in `shared` and in `ripas` */
#define OPERATION_RATE_MAX  100000 /* conversions a second, of a guest */
#define OPERATION_GROUP_MAX 63     /* bytes of `share_backing` */

/* Type, and what a value is, as a refusal and the help say it. */
#define PARAM_TYPES(X)                                                                        \
	X(PARAM_FIRST, "a page number below 2^40")                                            \
	X(PARAM_COUNT, "a number of pages, from 1; the run ends at 2^40 at the latest")       \
	X(PARAM_SLOT, "a slot number below 2^32")                                             \
	X(PARAM_BOOL, "true or false")                                                        \
	X(PARAM_SHARE, "a number of pages, or a fraction from 0.0 to 1.0")                    \
	X(PARAM_RUNS, "a list of at most 1024 runs [gfn, count]")                             \
	X(PARAM_RIPAS, "a list of at most 1024 runs [gfn, count, \"EMPTY\" or \"RAM\"]")      \
	X(PARAM_GUEST, "{\"seed\": N, \"rate\": 0 to 100000, \"idle\": BOOL}, each optional") \
	X(PARAM_TEXT, "a text of 1 to 63 bytes")                                              \
	X(PARAM_HOST, "the id of a host")
#define PW_ENUM_(name, text) name,
enum param_type { PARAM_TYPES(PW_ENUM_) PARAM_TYPE_COUNT };
#undef PW_ENUM_
const char *param_type_text(enum param_type t);

struct operation_param {
	enum operation_kind kind;
	const char *name;
	enum param_type type;
	enum json_need need;
	uint32_t arches; /* bit per arch whose VMs take it; 0: all */
	const char *help;
};
extern const struct operation_param operation_params[]; /* in order of kinds; ends with name NULL */

/* Reads the parameters of out->kind at member "params" of v, the request; an absent member is {}. Whatever it refuses
 * is PROBLEM_INVALID_PARAMS. Sets out->arches, out->narrow, out->host and
 * out->slot. */
bool operation_params_read(struct reader *r, json_t *v, struct operation_body *out) PW_MUST_CHECK;

#endif
