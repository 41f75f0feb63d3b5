/* Why a command was refused, in words. */
#include <inttypes.h>
#include <stdio.h>

#include "engine/arch/cca_impl.h"

/* What the granule is, and whose. */
static void describe_granule(const struct cca *m, uint64_t addr, char *out, size_t size)
{
	struct cca_granule_view v = cca_granule_at(m, addr);
	const char *state = cca_granule_name(v.state);

	if (addr % CCA_GRANULE)
		(void)snprintf(out, size, "0x%" PRIx64 " is misaligned", addr);
	else if (v.state == CCA_DATA)
		(void)snprintf(out, size, "0x%" PRIx64 " is DATA of realm %" PRIu64 " at ipa 0x%" PRIx64, addr,
			       v.realm->serial, v.ipa);
	else if (v.state == CCA_RTT)
		(void)snprintf(out, size, "0x%" PRIx64 " is RTT of realm %" PRIu64 ", level %u from ipa 0x%" PRIx64,
			       addr, v.realm->serial, v.level, v.ipa);
	else if (v.rec)
		(void)snprintf(out, size, "0x%" PRIx64 " is %s of realm %" PRIu64 ", REC %" PRIu64, addr, state,
			       v.realm->serial, v.rec->index);
	else if (v.realm)
		(void)snprintf(out, size, "0x%" PRIx64 " is %s of realm %" PRIu64, addr, state, v.realm->serial);
	else
		(void)snprintf(out, size, "0x%" PRIx64 " is %s", addr, state);
}

static void describe_entry(const struct cca *m, const struct cca_call *call, unsigned level, char *out, size_t size)
{
	const struct cca_realm *r = cca_realm_at(m, call->arg[CCA_ARG_RD]);
	bool range = call->cmd == CCA_RTT_INIT_RIPAS || call->cmd == CCA_RTT_SET_RIPAS;
	uint64_t ipa = call->arg[range ? CCA_ARG_BASE : CCA_ARG_IPA];
	struct cca_walk w;

	if (!r)
		return;
	w = cca_walk(r, ipa, level);
	(void)snprintf(out, size, "ipa 0x%" PRIx64 " of realm %" PRIu64 " is %s at level %u", ipa, r->serial,
		       cca_entry_name(w.entry), w.level);
}

static void describe_realm(const struct cca *m, const struct cca_call *call, char *out, size_t size)
{
	const struct cca_realm *r = cca_realm_at(m, call->arg[CCA_ARG_RD]);
	const struct cca_rec *rec = cca_rec_at(m, call->arg[CCA_ARG_REC]);

	if (!r && rec)
		r = rec->realm;
	if (!r)
		return;
	(void)snprintf(out, size, "realm %" PRIu64 " is %s with %" PRIu64 " RECs, the next REC is %" PRIu64 "%s",
		       r->serial, cca_realm_state_name(r->state), r->num_recs, r->rec_index,
		       rec && rec->running ? ", the REC is running" : "");
}

void cca_explain(const struct cca *m, const struct cca_call *call, const struct cca_result *r, struct pw_err *err)
{
	const struct cca_command_row *row = cca_command_row(call->cmd);
	char what[120] = "";
	char wanted[40] = "";

	if (!r->failed) {
		*err = (struct pw_err){ 0 };
		return;
	}
	if (r->failed->kind == CCA_CHECK_EL3) {
		describe_granule(m, call->arg[CCA_ARG_ADDR], what, sizeof what);
	} else if (r->failed->kind == CCA_CHECK_GRANULE) {
		describe_granule(m, call->arg[r->failed->arg], what, sizeof what);
		(void)snprintf(wanted, sizeof wanted, " %s (%s)", cca_granule_name(r->failed->state),
			       cca_arg_name(r->failed->arg));
	} else if (r->status == CCA_ERROR_RTT) {
		describe_entry(m, call, r->index, what, sizeof what);
	} else {
		describe_realm(m, call, what, sizeof what);
	}
	(void)pw_fail(err, PW_CONFLICT, "%s: %s,%u: step %td: must hold: %s%s%s%s (%s%s)", cca_command_name(call->cmd),
		      cca_status_name(r->status), r->index, r->failed - row->checks + 1,
		      cca_check_text(r->failed->kind), wanted, what[0] ? "; " : "", what, row->source,
		      r->unverified ? ", not verified" : "");
}
