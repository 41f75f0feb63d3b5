/* What a running REC does, and what the RMM answers it. */
#include "engine/arch/cca_impl.h"

static bool is_in_half(const struct cca_realm *r, uint64_t base, uint64_t top)
{
	return (base | top) % CCA_GRANULE == 0 && top > base && top <= (uint64_t)1 << (r->ipa_bits - 1);
}

static void rsi_return(struct cca_rsi *out, uint64_t x0)
{
	*out = (struct cca_rsi){ .count = 1, .x = { x0 } };
}

static void rec_exits(struct cca_rec *rec, enum cca_exit e, struct cca_rsi *out)
{
	rec->running = false;
	rec->abort_fits = false;
	out->exits = true;
	out->exit = e;
}

enum pw_status cca_rsi_ipa_state_set(struct cca_rec *rec, uint64_t base, uint64_t top, uint64_t ripas,
				     bool change_destroyed, struct cca_rsi *out)
{
	if (!rec->running)
		return PW_CONFLICT;
	rsi_return(out, CCA_RSI_ERROR_INPUT);
	if (!is_in_half(rec->realm, base, top) || ripas > CCA_RAM)
		return PW_OK;
	rec->ripas = (struct cca_ripas_request){
		.open = true,
		.base = base,
		.cursor = base,
		.end = top,
		.value = (enum cca_ripas)ripas,
		.change_destroyed = change_destroyed,
	};
	*out = (struct cca_rsi){ .ripas_base = base, .ripas_top = top, .ripas_value = rec->ripas.value };
	rec_exits(rec, CCA_EXIT_RIPAS_CHANGE, out);
	return PW_OK;
}

static enum cca_ripas ripas_of(uint64_t word)
{
	return (enum cca_ripas)cca_word_entry(word & ~TREE_LINEAR, false);
}

/* One table's entries at a time: the answer ends at the latest where the table of the walk does, or at a TABLE. */
enum pw_status cca_rsi_ipa_state_get(const struct cca_rec *rec, uint64_t base, uint64_t top, struct cca_rsi *out)
{
	const struct cca_realm *r = rec->realm;
	struct cca_spot s;
	struct tree_run run;
	enum cca_ripas ripas;
	uint64_t end, table, at;

	if (!rec->running)
		return PW_CONFLICT;
	rsi_return(out, CCA_RSI_ERROR_INPUT);
	if (!is_in_half(r, base, top))
		return PW_OK;
	s = cca_spot_at(r, base >> CCA_SHIFT, CCA_LEVELS - 1);
	ripas = ripas_of(s.word);
	table = cca_table_pages(s.level);
	end = (s.first & ~(table - 1)) + table;
	if (s.level < CCA_LEVELS - 1)
		(void)cca_any_table(r, s.level + 1, s.first, end, &end);
	for (at = s.first; at < end && at < top >> CCA_SHIFT; at += run.count) {
		run = tree_run_at(&r->entries, at, end);
		if (ripas_of(run.entry) != ripas)
			break;
	}
	at <<= CCA_SHIFT;
	*out = (struct cca_rsi){ .count = 3, .x = { CCA_RSI_SUCCESS, at < top ? at : top, ripas } };
	return PW_OK;
}

enum pw_status cca_rsi_psci(struct cca_rec *rec, uint32_t function, struct cca_rsi *out)
{
	if (!rec->running)
		return PW_CONFLICT;
	switch (function) {
	case CCA_PSCI_SYSTEM_OFF:
	case CCA_PSCI_SYSTEM_RESET: rec->realm->state = CCA_SYSTEM_OFF; break;
	case CCA_PSCI_CPU_OFF: rec->runnable = false; break;
	case CCA_PSCI_CPU_ON: rec->psci_open = true; break;
	default: return PW_INVALID;
	}
	*out = (struct cca_rsi){ .gpr0 = function };
	rec_exits(rec, CCA_EXIT_PSCI, out);
	return PW_OK;
}

enum pw_status cca_rec_exit(struct cca_rec *rec)
{
	struct cca_rsi out;

	if (!rec->running)
		return PW_CONFLICT;
	rec_exits(rec, CCA_EXIT_FIQ, &out);
	return PW_OK;
}

/* Protected: A5.2.9. */
static enum cca_access access_of(enum cca_entry e, bool fetches)
{
	switch (e) {
	case CCA_UNASSIGNED_EMPTY:
	case CCA_ASSIGNED_EMPTY: return CCA_ACCESS_ABORTS;
	case CCA_ASSIGNED_RAM: return CCA_ACCESS_WORKS;
	case CCA_ASSIGNED_NS: return fetches ? CCA_ACCESS_ABORTS : CCA_ACCESS_WORKS;
	case CCA_UNASSIGNED_NS: return fetches ? CCA_ACCESS_ABORTS : CCA_ACCESS_EXITS;
	case CCA_UNASSIGNED_RAM:
	case CCA_UNASSIGNED_DESTROYED:
	case CCA_ASSIGNED_DESTROYED:
	case CCA_TABLE:
	case CCA_TABLE_NS:
	case CCA_ENTRY_COUNT: break;
	}
	return CCA_ACCESS_EXITS;
}

enum pw_status cca_realm_access(struct cca_rec *rec, uint64_t ipa, bool fetches, enum cca_access *out)
{
	struct cca_rsi exit;
	enum cca_entry e;

	if (!rec->running)
		return PW_CONFLICT;
	if (ipa >> rec->realm->ipa_bits)
		return PW_INVALID;
	e = cca_spot_at(rec->realm, ipa >> CCA_SHIFT, CCA_LEVELS - 1).entry;
	*out = access_of(e, fetches);
	if (*out == CCA_ACCESS_EXITS) {
		rec_exits(rec, CCA_EXIT_SYNC, &exit);
		rec->abort_fits = e == CCA_UNASSIGNED_NS;
	}
	return PW_OK;
}
