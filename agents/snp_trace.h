/* agents/snp_trace.h
 *
 * Who hears of each change of an emulated SEV-SNP host's RMP: control pages (contexts, VMSA and metadata pages, the
 * RMP's own) as well as guests'. Each run of frames that one instruction or firmware command changed is a line of the
 * agent's log at level debug, and is counted by the state before and after. Lines and counts are of the same calls.
 */
#ifndef PW_AGENTS_SNP_TRACE_H
#define PW_AGENTS_SNP_TRACE_H
#include <stdatomic.h>

#include "agents/machine.h"
#include "engine/arch/snp.h"

struct snp_trace {
	const struct machine *machine;                             /* borrowed; what is not live there is not heard */
	_Atomic uint64_t frames[SNP_STATE_COUNT][SNP_STATE_COUNT]; /* from, to */
};

/* Listens to m from now on, if the machine is traced; else m's calls cost what they did. */
void snp_trace_begin(struct snp_trace *t, const struct machine *x, struct snp *m);
/* Pairs of states that occurred. Any thread. */
void snp_trace_figures(const struct snp_trace *t, backend_figure_fn fn, void *ctx);

#endif
