#include "engine/arch/cca_host.h"

#include "engine/arch/cca_host_impl.h"

enum pw_status cca_host_rmi(struct cca_host *h, enum cca_command cmd, const uint64_t x[CCA_ARGS_MAX])
{
	const struct cca_command_row *row = cca_command_row(cmd);
	struct cca_call call = { .cmd = cmd };

	for (unsigned i = 0; i < row->arg_count; i++)
		call.arg[row->args[i]] = x[i];
	return cca_host_call(h, &call);
}

enum pw_status cca_host_call(struct cca_host *h, const struct cca_call *call)
{
	h->last_call = *call;
	h->last_call.source = NULL;
	h->alias.met = false;
	return cca_rmi(h->m, call, &h->last);
}

enum pw_status cca_host_run(struct cca_host *h, const struct cca_call *call, uint64_t count, uint64_t *done)
{
	static const enum cca_arg moves[] = { CCA_ARG_ADDR, CCA_ARG_IPA, CCA_ARG_DATA };
	enum pw_status st = cca_rmi_run(h->m, call, count, done, &h->last);

	h->last_call = *call;
	h->last_call.source = NULL;
	h->alias.met = false;
	for (size_t i = 0; i < PW_ARRAY_LEN(moves); i++)
		h->last_call.arg[moves[i]] += *done * CCA_GRANULE;
	return st;
}

struct cca_host_said cca_host_said(const struct cca_host *h)
{
	return (struct cca_host_said){ h->last_call, h->last };
}

void cca_host_say_again(struct cca_host *h, const struct cca_host_said *s)
{
	h->last_call = s->call;
	h->last = s->answer;
}

void cca_host_explain(const struct cca_host *h, struct pw_err *err)
{
	if (h->alias.met)
		(void)pw_fail(err, PW_CONFLICT,
			      "L9: both aliases of ipa 0x%" PRIx64 " would be mapped, its %s one is %s", h->alias.ipa,
			      h->alias.entry == CCA_ASSIGNED_NS ? "unprotected" : "protected",
			      cca_entry_name(h->alias.entry));
	else
		cca_explain(h->m, &h->last_call, &h->last, err);
}

/* Realms. */

static unsigned start_level(unsigned ipa_bits)
{
	return 4 - (ipa_bits - 8) / 9;
}

static uint64_t root_count(unsigned ipa_bits)
{
	unsigned full = 9 * (3 - start_level(ipa_bits)) + 21;

	return ipa_bits <= full ? 1 : (uint64_t)1 << (ipa_bits - full);
}

static enum pw_status realm_take(struct cca_host_realm *r, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st;

	st = cca_pool_take(h, CCA_USE_RD, r->number, 1, 1, &r->rd, code);
	if (st == PW_OK && *code == CCA_HOST_OK)
		st = cca_pool_take(h, CCA_USE_ROOT, r->number, r->root_count, r->root_count, &r->root, code);
	if (st == PW_OK && *code == CCA_HOST_OK)
		st = cca_pool_take(h, CCA_USE_SPARE, r->number, 1, 1, &r->spare, code);
	return st;
}

static enum pw_status realm_create(struct cca_host_realm *r, const struct cca_host_wish *w, uint64_t page,
				   enum cca_host_code *code)
{
	struct cca_realm_params p = {
		.s2sz = w->ipa_bits,
		.num_bps = 1,
		.num_wps = 1,
		.hash_algo = w->hash,
		.vmid = w->vmid,
		.rtt_base = r->root,
		.rtt_level_start = r->start,
		.rtt_num_start = r->root_count,
	};
	struct cca_call call = { .cmd = CCA_REALM_CREATE, .realm = &p };
	enum pw_status st;

	call.arg[CCA_ARG_RD] = r->rd;
	call.arg[CCA_ARG_PARAMS_PTR] = page;
	st = cca_host_call(r->host, &call);
	if (st == PW_OK && r->host->last.status != CCA_SUCCESS)
		*code = CCA_HOST_EIO;
	return st;
}

/* The host's own page that commands read their parameters from; kept. */
static enum pw_status own_page(struct cca_host *h, enum cca_host_code *code)
{
	*code = CCA_HOST_OK;
	return h->page ? PW_OK : cca_pool_take(h, CCA_USE_HOST, 0, 1, 1, &h->page, code);
}

/* All or nothing: what was taken goes back (LEAK-2). */
static enum pw_status realm_build(struct cca_host_realm *r, const struct cca_host_wish *w, enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status swept, st = own_page(h, code);
	struct cca_host_said said;

	if (st == PW_OK && *code == CCA_HOST_OK)
		st = realm_take(r, code);
	if (st == PW_OK && *code == CCA_HOST_OK)
		st = realm_create(r, w, h->page, code);
	if (st == PW_OK && *code == CCA_HOST_OK)
		return PW_OK;
	said = cca_host_said(h);
	swept = cca_pool_sweep(h, r->number);
	cca_host_say_again(h, &said);
	return st == PW_OK ? swept : st;
}

enum pw_status cca_host_realm_new(struct cca_host *h, const struct cca_host_wish *w, struct cca_host_realm **out,
				  enum cca_host_code *code)
{
	struct cca_host_realm *r;
	enum pw_status st;

	*code = CCA_HOST_EINVAL;
	if (w->ipa_bits < 32 || w->ipa_bits > 48)
		return PW_OK;
	r = pw_mem_zalloc(h->mem, sizeof *r);
	if (!r)
		return PW_NO_MEMORY;
	*r = (struct cca_host_realm){ .host = h, .number = h->realms_made, .ipa_bits = w->ipa_bits };
	r->start = start_level(w->ipa_bits);
	r->root_count = root_count(w->ipa_bits);
	st = realm_build(r, w, code);
	if (st != PW_OK || *code != CCA_HOST_OK) {
		pw_mem_free(h->mem, r, sizeof *r);
		return st;
	}
	h->realms_made++;
	r->spare_is_in = true;
	r->next = h->realms;
	h->realms = r;
	*out = r;
	return PW_OK;
}

enum pw_status cca_host_activate(struct cca_host_realm *r, enum cca_host_code *code)
{
	enum pw_status st;

	*code = CCA_HOST_EPERM;
	if (r->state != CCA_NEW)
		return PW_OK;
	st = CCA_HOST_RMI(r->host, CCA_REALM_ACTIVATE, r->rd);
	if (st != PW_OK)
		return st;
	*code = r->host->last.status == CCA_SUCCESS ? CCA_HOST_OK : CCA_HOST_EIO;
	if (*code == CCA_HOST_OK)
		r->state = CCA_ACTIVE;
	return PW_OK;
}

/* RECs. */

static uint64_t mpidr_of(uint64_t index)
{
	return (index & 0xf) | (index >> 4 & 0xff) << 8 | (index >> 12 & 0xff) << 16 | (index >> 20 & 0xff) << 32;
}

static enum pw_status rec_take(struct cca_host_realm *r, struct cca_rec_params *p, uint64_t *rec,
			       enum cca_host_code *code)
{
	struct cca_host *h = r->host;
	enum pw_status st = CCA_HOST_RMI(h, CCA_REC_AUX_COUNT, r->rd);

	if (st != PW_OK)
		return st;
	p->num_aux = h->last.out[CCA_OUT_AUX_COUNT];
	st = cca_pool_take(h, CCA_USE_REC, r->number, 1, 1, rec, code);
	for (uint64_t i = 0; i < p->num_aux && st == PW_OK && *code == CCA_HOST_OK; i++)
		st = cca_pool_take(h, CCA_USE_AUX, r->number, 1, 1, &p->aux[i], code);
	return st;
}

static enum pw_status rec_put(struct cca_host_realm *r, const struct cca_rec_params *p, uint64_t rec)
{
	enum pw_status st = rec ? cca_pool_put(r->host, rec, 1) : PW_OK;

	for (unsigned i = 0; i < CCA_AUX_MAX && st == PW_OK; i++)
		if (p->aux[i])
			st = cca_pool_put(r->host, p->aux[i], 1);
	return st;
}

enum pw_status cca_host_rec_new(struct cca_host_realm *r, uint64_t pc, bool runnable, enum cca_host_code *code)
{
	struct cca_rec_params p = { .flags = runnable, .pc = pc, .mpidr = mpidr_of(r->rec_count) };
	struct cca_call call = { .cmd = CCA_REC_CREATE, .rec = &p };
	struct cca_host_said said;
	enum pw_status st, put;
	uint64_t rec = 0;

	*code = r->state == CCA_NEW && r->rec_count < CCA_HOST_RECS_MAX ? CCA_HOST_OK : CCA_HOST_EPERM;
	if (*code != CCA_HOST_OK)
		return PW_OK;
	st = rec_take(r, &p, &rec, code);
	if (st == PW_OK && *code == CCA_HOST_OK) {
		call.arg[CCA_ARG_RD] = r->rd;
		call.arg[CCA_ARG_REC] = rec;
		call.arg[CCA_ARG_PARAMS_PTR] = r->host->page;
		st = cca_host_call(r->host, &call);
		if (st == PW_OK && r->host->last.status == CCA_SUCCESS) {
			r->recs[r->rec_count++] = rec;
			return PW_OK;
		}
		*code = CCA_HOST_EIO;
	}
	said = cca_host_said(r->host);
	put = rec_put(r, &p, rec);
	cca_host_say_again(r->host, &said);
	return st == PW_OK ? put : st;
}

enum pw_status cca_host_recs_end(struct cca_host_realm *r, enum cca_host_code *code)
{
	struct cca_host *h = r->host;

	*code = CCA_HOST_OK;
	while (r->rec_count) {
		uint64_t addr = r->recs[r->rec_count - 1], aux[CCA_AUX_MAX];
		const struct cca_rec *rec = cca_rec_at(h->m, addr);
		unsigned count = rec ? rec->num_aux : 0;
		enum pw_status st;

		for (unsigned i = 0; i < count; i++)
			aux[i] = rec->aux[i] << CCA_SHIFT;
		st = CCA_HOST_RMI(h, CCA_REC_DESTROY, addr);
		if (st != PW_OK)
			return st;
		if (h->last.status != CCA_SUCCESS) {
			*code = CCA_HOST_EIO;
			return PW_OK;
		}
		r->rec_count--;
		st = cca_pool_put(h, addr, 1);
		for (unsigned i = 0; i < count && st == PW_OK; i++)
			st = cca_pool_put(h, aux[i], 1);
		if (st != PW_OK)
			return st;
	}
	return PW_OK;
}
