/*
 * The RMP's changes as lines of the log and as counts. The model calls `hear` under the lock of whoever drives the
 * machine; the counts are read by another thread, so they are atomic. Entries hold owners and numbers, nothing of what
 * is in a page (L10).
 */
#include "agents/snp_trace.h"

#include <stdio.h>

#include "agents/alog.h"

static void hear(void *ctx, const struct snp_transition *x)
{
	struct snp_trace *t = ctx;

	if (!machine_is_live(t->machine))
		return;
	atomic_fetch_add_explicit(&t->frames[x->from][x->to], x->count, memory_order_relaxed);
	alog(ALOG_DEBUG, "RMP transition",
	     "op=%s frame=%" PRIu64 " count=%" PRIu64 " from=%s to=%s from_asid=%u to_asid=%u from_gfn=%" PRIu64
	     " to_gfn=%" PRIu64,
	     x->op, x->pfn, x->count, snp_state_name(x->from), snp_state_name(x->to), x->from_asid, x->to_asid,
	     x->from_gfn, x->to_gfn);
}

void snp_trace_begin(struct snp_trace *t, const struct machine *x, struct snp *m)
{
	t->machine = x;
	m->trace = machine_is_traced(x) ? hear : NULL;
	m->trace_ctx = t;
}

static uint64_t count_of(const struct snp_trace *t, int from, int to)
{
	return atomic_load_explicit(&t->frames[from][to], memory_order_relaxed);
}

void snp_trace_figures(const struct snp_trace *t, backend_figure_fn fn, void *ctx)
{
	char labels[64];
	struct backend_figure figure = {
		.name = "pagewarden_rmp_transitions_total",
		.help = "Frames whose RMP entry an instruction or firmware command changed, by state before and after.",
		.labels = labels,
	};

	for (int from = 0; from < SNP_STATE_COUNT; from++)
		for (int to = 0; to < SNP_STATE_COUNT; to++) {
			figure.value = count_of(t, from, to);
			if (!figure.value)
				continue;
			snprintf(labels, sizeof labels, "from=\"%s\",to=\"%s\"", snp_state_name((enum snp_state)from),
				 snp_state_name((enum snp_state)to));
			fn(ctx, &figure);
		}
}
