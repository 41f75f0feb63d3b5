#include "tests/lib/cca_world.h"

#include <criterion/criterion.h>

static const uint8_t source[CCA_GRANULE] = { 0xa5 };

void world_begin(struct world *w)
{
	struct cca_config config = {
		.base = WORLD_BASE,
		.granules = WORLD_PAGES,
		.features0 = CCA_FEATURES0,
		.rec_aux_count = CCA_AUX_MAX,
	};

	*w = (struct world){ 0 };
	cr_assert_eq(cca_init(&w->m, &w->mem, &config), PW_OK);
}

struct cca_realm_params world_realm_params(void)
{
	return (struct cca_realm_params){
		.s2sz = 33,
		.num_bps = 1,
		.num_wps = 1,
		.vmid = 1,
		.rtt_base = WORLD_ROOT,
		.rtt_level_start = 1,
		.rtt_num_start = 1,
	};
}

struct cca_rec_params world_rec_params(void)
{
	struct cca_rec_params p = { .flags = CCA_REC_RUNNABLE, .pc = 0x80000000, .num_aux = CCA_AUX_MAX };

	for (unsigned i = 0; i < CCA_AUX_MAX; i++)
		p.aux[i] = WORLD_REC + (i + 1) * CCA_GRANULE;
	return p;
}

struct cca_call world_call(enum cca_command cmd, const uint64_t x[5])
{
	const struct cca_command_row *row = cca_command_row(cmd);
	struct cca_call call = { .cmd = cmd };

	for (unsigned i = 0; i < row->arg_count; i++)
		call.arg[row->args[i]] = x[i];
	if (cmd == CCA_DATA_CREATE)
		call.source = source;
	return call;
}

unsigned world_rmi(struct world *w, enum cca_command cmd, const uint64_t x[5])
{
	struct cca_call call = world_call(cmd, x);
	struct cca_realm_params realm = world_realm_params();
	struct cca_rec_params rec = world_rec_params();

	if (cmd == CCA_REALM_CREATE)
		call.realm = &realm;
	if (cmd == CCA_REC_CREATE)
		call.rec = &rec;
	cr_assert_eq(cca_rmi(&w->m, &call, &w->r), PW_OK);
	return CODE(w->r.status, w->r.index);
}

uint64_t world_run(struct world *w, enum cca_command cmd, uint64_t count, const uint64_t x[5])
{
	struct cca_call call = world_call(cmd, x);
	uint64_t done;

	cr_assert_eq(cca_rmi_run(&w->m, &call, count, &done, &w->r), PW_OK);
	return done;
}

static void must(struct world *w, unsigned code)
{
	struct pw_err err = { 0 };

	cr_assert_eq(code, CODE(CCA_SUCCESS, 0), "%s", err.msg);
}

void world_realm(struct world *w)
{
	world_begin(w);
	cr_assert_eq(RUN(w, CCA_GRANULE_DELEGATE, 64, G(0)), 64);
	must(w, RMI(w, CCA_REALM_CREATE, WORLD_RD, WORLD_HOST));
}

void world_tables(struct world *w)
{
	world_realm(w);
	must(w, RMI(w, CCA_RTT_CREATE, WORLD_RD, G(20), 0, 2));
	must(w, RMI(w, CCA_RTT_CREATE, WORLD_RD, G(21), WORLD_NS, 2));
	for (uint64_t i = 0; i < 2; i++) {
		must(w, RMI(w, CCA_RTT_CREATE, WORLD_RD, G(22 + i), i * WORLD_BLOCK, 3));
		must(w, RMI(w, CCA_RTT_CREATE, WORLD_RD, G(24 + i), WORLD_NS + i * WORLD_BLOCK, 3));
	}
	cr_assert_eq(RUN(w, CCA_GRANULE_DELEGATE, 1024, G(1024)), 1024);
}

void world_rec(struct world *w)
{
	world_tables(w);
	must(w, RMI(w, CCA_REC_CREATE, WORLD_RD, WORLD_REC, WORLD_HOST));
}

void world_activate(struct world *w)
{
	must(w, RMI(w, CCA_REALM_ACTIVATE, WORLD_RD));
}

void world_ask(struct world *w, uint64_t base, uint64_t top, enum cca_ripas value, bool change_destroyed)
{
	struct cca_rec *rec = cca_rec_at(&w->m, WORLD_REC);
	struct cca_rsi rsi;

	must(w, RMI(w, CCA_REC_ENTER, WORLD_REC, WORLD_HOST));
	cr_assert_eq(cca_rsi_ipa_state_set(rec, base, top, value, change_destroyed, &rsi), PW_OK);
	cr_assert(rsi.exits && rsi.exit == CCA_EXIT_RIPAS_CHANGE);
}

void world_end(struct world *w)
{
	struct pw_err err = { 0 };

	cr_expect(cca_check(&w->m, &err), "%s", err.msg);
	cca_release(&w->m);
	cr_expect_eq(w->mem.used, 0);
}
