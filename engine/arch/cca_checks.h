/* engine/arch/cca_checks.h
 *
 * A command on its way: what its checks have found, for those that follow and for carrying it out.
 */
#ifndef PW_ENGINE_ARCH_CCA_CHECKS_H
#define PW_ENGINE_ARCH_CCA_CHECKS_H
#include "engine/arch/cca_impl.h"

struct cca_ctx {
	struct cca *m;
	const struct cca_call *call;
	const struct cca_command_row *row;
	struct cca_realm *realm;
	struct cca_rec *rec;
	struct cca_spot spot; /* where the walk ended */
	enum cca_entry_op op;
	uint64_t stop;  /* INIT_RIPAS, SET_RIPAS: the page where the range ends */
	uint64_t roots; /* REALM_CREATE: how many root tables */
};
#define CCA_SETS_MAX 4 /* of trees, by any command but those of RECs; reserved before its checks */

/* Starts a command and its answer. */
void cca_begin(struct cca_ctx *c, struct cca *m, const struct cca_call *call, struct cca_result *r);

/* Runs the checks; on false r->status, index and failed are written. */
bool cca_checks_pass(struct cca_ctx *c, struct cca_result *r);

/* INIT_RIPAS, SET_RIPAS: from c->spot to the first entry that may not change, at most `top` (pages). */
uint64_t cca_range_stop(const struct cca_ctx *c, uint64_t top);

/* Checks have passed, for `count` commands. PW_NO_MEMORY: nothing changed. */
enum pw_status cca_carry_out(struct cca_ctx *c, uint64_t count, struct cca_result *r) PW_MUST_CHECK;
/* A check has failed: the outputs that are there nevertheless. */
void cca_refused(struct cca_ctx *c, struct cca_result *r);

#endif
