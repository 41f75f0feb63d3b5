/* What the ledger believes of CCA pages is what the RMM does: the law's table against the model's, and against commands
 * that the model carries out. */
#include "engine/arch/law.h"

#include <criterion/criterion.h>
#include <string.h>

#include "engine/ledger.h"
#include "tests/lib/cca_world.h"

extern const struct arch_law cca_law;

#define PAGE  ((uint64_t)0x3000) /* the page that is looked at */
#define ALIAS (WORLD_NS + PAGE)
#define DATA  G(1030)
#define NS_PA ((uint64_t)0x10000000)

static const enum cca_entry unassigned[] = { CCA_UNASSIGNED_EMPTY, CCA_UNASSIGNED_RAM, CCA_UNASSIGNED_DESTROYED };
static const enum cca_entry assigned[] = { CCA_ASSIGNED_EMPTY, CCA_ASSIGNED_RAM, CCA_ASSIGNED_DESTROYED };

static unsigned ripas_of(unsigned state)
{
	unsigned r = 0;

	while (state != cca_law_state(cca_law.states[state].is, unassigned[r]))
		cr_assert_lt(++r, CCA_RIPAS_COUNT);
	return r;
}

static enum cca_entry entry_of(unsigned state)
{
	bool resident = cca_law.states[state].is == GFN_SECURE_RESIDENT;

	return (resident ? assigned : unassigned)[ripas_of(state)];
}

static const struct arch_op *op_named(const char *name)
{
	for (size_t i = 0; i < cca_law.op_count; i++)
		if (strcmp(cca_law.ops[i].name, name) == 0)
			return &cca_law.ops[i];
	cr_assert_fail("no operation %s", name);
	return NULL;
}

Test(cca_law, states_are_an_entrys_ripas_in_each_state_of_the_law)
{
	bool seen[ARCH_STATES_MAX] = { 0 };

	cr_assert_eq(cca_law.state_count, GFN_STATE_COUNT * CCA_RIPAS_COUNT);
	for (int is = 0; is < GFN_STATE_COUNT; is++)
		for (int r = 0; r < CCA_RIPAS_COUNT; r++) {
			unsigned s = cca_law_state((enum gfn_state)is, unassigned[r]);

			cr_expect_eq(s, cca_law_state((enum gfn_state)is, assigned[r]));
			cr_expect(cca_law.states[s].is == (enum gfn_state)is && !seen[s]);
			seen[s] = true;
			if (is == GFN_SHARED)
				cr_expect_eq(strncmp(cca_law.states[s].name, "ASSIGNED_NS", 11), 0);
			else
				cr_expect_str_eq(cca_law.states[s].name, cca_entry_name(entry_of(s)));
		}
	for (int is = 0; is < GFN_STATE_COUNT; is++)
		cr_expect_eq(cca_law.rest[is], cca_law_state((enum gfn_state)is, CCA_UNASSIGNED_RAM));
}

Test(cca_law, names_tell_states_of_one_law_state_apart)
{
	for (unsigned a = 0; a < cca_law.state_count; a++)
		for (unsigned b = 0; b < a; b++)
			cr_expect(cca_law.states[a].is != cca_law.states[b].is ||
				  strcmp(cca_law.states[a].name, cca_law.states[b].name) != 0);
	for (size_t i = 0; i < cca_law.op_count; i++) {
		const struct arch_law *whose = NULL;
		const struct arch_op *op = &cca_law.ops[i];

		cr_expect(arch_op_find(op->name, strlen(op->name), op->framed, &whose) == op && whose == &cca_law);
		cr_expect_null(arch_op_find(op->name, strlen(op->name), !op->framed, NULL));
	}
}

/* One command a row: its cells of the protected entry, and of the unprotected one. */
static const struct {
	const char *name;
	enum cca_entry_op op;
	bool unprotected;
} commands[] = {
	{ "cca.data_create", CCA_OP_DATA_CREATE, false },
	{ "cca.data_create_unknown", CCA_OP_DATA_UNKNOWN, false },
	{ "cca.data_destroy", CCA_OP_DATA_DESTROY, false },
	{ "cca.rtt_init_ripas", CCA_OP_INIT_RIPAS, false },
	{ "cca.rtt_set_ripas_ram", CCA_OP_SET_RAM, false },
	{ "cca.rtt_set_ripas_empty", CCA_OP_SET_EMPTY, false },
	{ "cca.rtt_set_ripas_ram_cd", CCA_OP_SET_RAM_CD, false },
	{ "cca.rtt_set_ripas_empty_cd", CCA_OP_SET_EMPTY_CD, false },
	{ "cca.rtt_map_unprotected", CCA_OP_MAP, true },
	{ "cca.rtt_unmap_unprotected", CCA_OP_UNMAP, true },
	{ "cca.rtt_create", CCA_OP_UNFOLD, false },
	{ "cca.rtt_fold", CCA_OP_FOLD, false },
};

/* Where the RMM would, and the law does not: both aliases (L9), and RIPAS changes before or after their time. */
static bool law_refuses(enum cca_entry_op op, enum gfn_state is)
{
	if (op == CCA_OP_DATA_CREATE || op == CCA_OP_DATA_UNKNOWN)
		return is == GFN_SHARED;
	if (op == CCA_OP_MAP)
		return is == GFN_SECURE_RESIDENT;
	return op >= CCA_OP_SET_EMPTY && op <= CCA_OP_SET_RAM_CD && is == GFN_NORMAL;
}

/* What the cell makes of the state; a page that is taken is paged out. */
static unsigned by_cell(enum cca_entry_op op, bool unprotected, unsigned state)
{
	enum gfn_state is = cca_law.states[state].is;
	enum cca_entry own = entry_of(state), ns = is == GFN_SHARED ? CCA_ASSIGNED_NS : CCA_UNASSIGNED_NS;
	enum cca_entry *e = unprotected ? &ns : &own;
	const struct cca_cell *c = cca_cell(*e, op);

	if ((c->kind != CCA_MOVE && c->kind != CCA_SAME) || law_refuses(op, is))
		return ARCH_REFUSED;
	*e = c->next;
	is = is == GFN_NORMAL ? cca_project(CCA_NEW, own, ns) : cca_project(CCA_ACTIVE, own, ns);
	return cca_law_state(is, own);
}

Test(cca_law, rows_of_commands_are_the_models_cells)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(commands); i++)
		for (unsigned s = 0; s < cca_law.state_count; s++)
			cr_expect_eq(op_named(commands[i].name)->next[s],
				     by_cell(commands[i].op, commands[i].unprotected, s), "%s of %s (%s)",
				     commands[i].name, cca_law.states[s].name, gfn_state_name(cca_law.states[s].is));
}

Test(cca_law, rtt_destroy_is_what_a_dead_tables_parent_becomes)
{
	const struct arch_op *op = op_named("cca.rtt_destroy");

	cr_expect_eq(cca_cell(CCA_TABLE, CCA_OP_RTT_DESTROY)->next, CCA_UNASSIGNED_DESTROYED);
	for (unsigned s = 0; s < cca_law.state_count; s++) {
		bool dead = !cca_entry_kind(entry_of(s))->keeps_table;
		unsigned next = cca_law_state(cca_law.states[s].is, CCA_UNASSIGNED_DESTROYED);

		cr_expect_eq(op->next[s], dead ? next : ARCH_REFUSED, "%s", cca_law.states[s].name);
	}
}

/* The model with the page in a state. */

static bool passes(struct world *w, enum cca_command cmd, uint64_t b, uint64_t c, uint64_t d)
{
	return RMI(w, cmd, WORLD_RD, b, c, d) == CODE(CCA_SUCCESS, 0);
}

static bool create(struct world *w)
{
	return RMI(w, CCA_DATA_CREATE, WORLD_RD, DATA, PAGE, WORLD_HOST, 1) == CODE(CCA_SUCCESS, 0);
}

static bool create_unknown(struct world *w)
{
	return passes(w, CCA_DATA_CREATE_UNKNOWN, DATA, PAGE, 0);
}

static bool destroy(struct world *w)
{
	return passes(w, CCA_DATA_DESTROY, PAGE, 0, 0);
}

static bool map(struct world *w)
{
	return passes(w, CCA_RTT_MAP_UNPROTECTED, ALIAS, 3, NS_PA | 0xd8);
}

static bool unmap(struct world *w)
{
	return passes(w, CCA_RTT_UNMAP_UNPROTECTED, ALIAS, 3, 0);
}

static bool init_ripas(struct world *w)
{
	return passes(w, CCA_RTT_INIT_RIPAS, PAGE, PAGE + CCA_GRANULE, 0);
}

static bool set_ripas(struct world *w, enum cca_ripas value, bool cd)
{
	world_ask(w, PAGE, PAGE + CCA_GRANULE, value, cd);
	return RMI(w, CCA_RTT_SET_RIPAS, WORLD_RD, WORLD_REC, PAGE, PAGE + CCA_GRANULE) == CODE(CCA_SUCCESS, 0);
}

static void be(struct world *w, unsigned state, bool active)
{
	enum gfn_state is = cca_law.states[state].is;
	unsigned r = ripas_of(state);

	world_rec(w);
	if (r == CCA_RAM)
		cr_assert(init_ripas(w));
	if (r == CCA_DESTROYED)
		cr_assert(create(w) && destroy(w));
	if (is == GFN_SECURE_RESIDENT)
		cr_assert(create_unknown(w));
	if (is == GFN_SHARED)
		cr_assert(map(w));
	if (active)
		world_activate(w);
}

/* The state that the model shows; a realm that is NEW cannot tell paged out from normal. */
static unsigned shown(const struct world *w, bool booked)
{
	const struct cca_realm *realm = cca_realm_at(&w->m, WORLD_RD);
	enum cca_entry own = cca_walk(realm, PAGE, 3).entry, ns = cca_walk(realm, ALIAS, 3).entry;
	enum gfn_state is = cca_project(realm->state, own, ns);

	cr_assert(!cca_aliases_clash(own, ns));
	cr_assert_eq(is, cca_gfn_state(realm, PAGE >> CCA_SHIFT));
	return cca_law_state(is == GFN_NORMAL && booked ? GFN_SECURE_OUT : is, own);
}

/* Each row, as an agent's host carries it out: commands in order, those that the entry calls for. */

static bool is_live(const struct world *w, uint64_t ipa)
{
	enum cca_entry e = cca_walk(cca_realm_at(&w->m, WORLD_RD), ipa, 3).entry;

	return cca_entry_kind(e)->live;
}

static bool do_init(struct world *w)
{
	return init_ripas(w);
}

static bool do_ram(struct world *w)
{
	return set_ripas(w, CCA_RAM, false);
}

static bool do_empty(struct world *w)
{
	return set_ripas(w, CCA_EMPTY, false);
}

static bool do_ram_cd(struct world *w)
{
	return set_ripas(w, CCA_RAM, true);
}

static bool do_empty_cd(struct world *w)
{
	return set_ripas(w, CCA_EMPTY, true);
}

/* The realm asks only where its page was taken. */
static bool do_recover(struct world *w)
{
	enum cca_entry e = cca_walk(cca_realm_at(&w->m, WORLD_RD), PAGE, 3).entry;
	bool lost = e == CCA_UNASSIGNED_DESTROYED || e == CCA_ASSIGNED_DESTROYED;

	return !lost || set_ripas(w, CCA_RAM, true);
}

static bool do_rtt_destroy(struct world *w)
{
	bool done = passes(w, CCA_RTT_DESTROY, 0, 3, 0);

	/* for the walk to reach the page's level again, as an unfold does */
	return done && passes(w, CCA_RTT_CREATE, G(22), 0, 3);
}

static bool do_share(struct world *w)
{
	return (!is_live(w, PAGE) || destroy(w)) && (is_live(w, ALIAS) || map(w));
}

static bool do_unshare(struct world *w)
{
	return !is_live(w, ALIAS) || unmap(w);
}

static bool do_unshare_create(struct world *w)
{
	return do_unshare(w) && create(w);
}

static bool do_unshare_unknown(struct world *w)
{
	return do_unshare(w) && create_unknown(w);
}

static const struct deed {
	const char *name;
	bool (*act)(struct world *w);
	bool in_new, in_active;
	bool l9; /* the RMM lets what the law refuses */
} deeds[] = {
	{ "cca.data_create", create, true, false, true },
	{ "cca.data_create_unknown", create_unknown, true, true, true },
	{ "cca.data_destroy", destroy, true, true, false },
	{ "cca.rtt_init_ripas", do_init, true, false, false },
	{ "cca.rtt_set_ripas_ram", do_ram, false, true, false },
	{ "cca.rtt_set_ripas_empty", do_empty, false, true, false },
	{ "cca.rtt_set_ripas_ram_cd", do_ram_cd, false, true, false },
	{ "cca.rtt_set_ripas_empty_cd", do_empty_cd, false, true, false },
	{ "cca.rtt_set_ripas_ram_destroyed", do_recover, false, true, false },
	{ "cca.rtt_map_unprotected", map, true, true, true },
	{ "cca.rtt_unmap_unprotected", unmap, true, true, false },
	{ "cca.rtt_destroy", do_rtt_destroy, true, true, false },
	{ "cca.populate", create, true, false, true },
	{ "cca.share", do_share, true, true, false },
	{ "cca.unshare", do_unshare, true, true, false },
	{ "cca.unshare_populate", do_unshare_create, true, false, false },
	{ "cca.unshare_create_unknown", do_unshare_unknown, true, true, false },
};

static const struct deed *deed_named(const char *name)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(deeds); i++)
		if (strcmp(deeds[i].name, name) == 0)
			return &deeds[i];
	cr_assert_fail("no deed %s", name);
	return NULL;
}

/* Normal pages are those of a realm that is NEW; a page of it that is something else has left normal for good. */
static void expect_row(const struct deed *d, unsigned state, bool active)
{
	unsigned next = op_named(d->name)->next[state];
	bool normal = cca_law.states[state].is == GFN_NORMAL;
	struct world w;
	bool passed;

	if ((normal && active) || !(active ? d->in_active : d->in_new))
		return;
	be(&w, state, active);
	cr_assert_eq(shown(&w, !normal), state);
	if (next == ARCH_REFUSED && d->l9 && cca_law.states[state].is != GFN_NORMAL) {
		world_end(&w);
		return;
	}
	passed = d->act(&w);
	cr_expect_eq(passed, next != ARCH_REFUSED, "%s of %s", d->name, cca_law.states[state].name);
	if (next != ARCH_REFUSED)
		cr_expect_eq(shown(&w, !normal || cca_law.states[next].is != GFN_NORMAL), next, "%s of %s: %s", d->name,
			     cca_law.states[state].name,
			     cca_law.states[shown(&w, !normal || cca_law.states[next].is != GFN_NORMAL)].name);
	world_end(&w);
}

Test(cca_law, rows_are_what_the_model_does, .timeout = 60)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(deeds); i++)
		for (unsigned s = 0; s < cca_law.state_count; s++)
			for (int active = 0; active < 2; active++)
				expect_row(&deeds[i], s, active);
}

/* Where a trail ends. Only pages that were destroyed before the realm could ask for RAM are not at rest then. */

static unsigned told(const struct arch_trail *t, unsigned state)
{
	unsigned next = op_named(t->item)->next[state];

	return next == ARCH_REFUSED || !t->done ? next : op_named(t->done)->next[next];
}

static const enum gfn_op page_ops[] = { GFN_SHARE, GFN_UNSHARE, GFN_PAGE_IN, GFN_PAGE_OUT, GFN_UNSHARE_IN };

/* Written out: the realm gave the page up, and no operation of the law takes that back; anything else is RAM then. */
Test(cca_law, what_a_realm_gave_up_stays_empty_through_the_laws_operations)
{
	static const enum gfn_state all[] = { GFN_NORMAL, GFN_SECURE_RESIDENT, GFN_SECURE_OUT, GFN_SHARED };

	for (size_t i = 0; i < PW_ARRAY_LEN(all); i++)
		for (size_t k = 0; k < PW_ARRAY_LEN(all); k++) {
			cr_expect_eq(arch_page_after(&cca_law, cca_law_state(all[i], CCA_UNASSIGNED_EMPTY), all[k]),
				     cca_law_state(all[k], CCA_UNASSIGNED_EMPTY));
			cr_expect_eq(arch_page_after(&cca_law, cca_law_state(all[i], CCA_UNASSIGNED_RAM), all[k]),
				     cca_law_state(all[k], CCA_UNASSIGNED_RAM));
			cr_expect_eq(arch_page_after(&cca_law, cca_law_state(all[i], CCA_UNASSIGNED_DESTROYED), all[k]),
				     cca_law_state(all[k], CCA_UNASSIGNED_RAM));
		}
}

static const char *name_of(enum gfn_state is, enum cca_entry e, const char *op)
{
	unsigned next = op_named(op)->next[cca_law_state(is, e)];

	return next == ARCH_REFUSED ? "-" : cca_law.states[next].name;
}

/* A page that was EMPTY when its realm was made. The RMM has no command for it: the host left it alone. */
Test(cca_law, pages_may_be_left_empty_before_they_are_used)
{
	static const char op[] = "cca.ripas_left_empty";

	cr_expect_str_eq(name_of(GFN_NORMAL, CCA_UNASSIGNED_RAM, op), "UNASSIGNED/EMPTY");
	cr_expect_str_eq(name_of(GFN_NORMAL, CCA_UNASSIGNED_EMPTY, op), "UNASSIGNED/EMPTY");
	cr_expect_str_eq(name_of(GFN_NORMAL, CCA_UNASSIGNED_DESTROYED, op), "-");
	cr_expect_str_eq(name_of(GFN_SECURE_OUT, CCA_UNASSIGNED_RAM, op), "UNASSIGNED/EMPTY");
	cr_expect_str_eq(name_of(GFN_SECURE_OUT, CCA_UNASSIGNED_EMPTY, op), "UNASSIGNED/EMPTY");
	cr_expect_str_eq(name_of(GFN_SECURE_OUT, CCA_UNASSIGNED_DESTROYED, op), "-");
	cr_expect_str_eq(name_of(GFN_SHARED, CCA_UNASSIGNED_RAM, op), "ASSIGNED_NS, UNASSIGNED/EMPTY");
	cr_expect_str_eq(name_of(GFN_SHARED, CCA_UNASSIGNED_EMPTY, op), "ASSIGNED_NS, UNASSIGNED/EMPTY");
	cr_expect_str_eq(name_of(GFN_SHARED, CCA_UNASSIGNED_DESTROYED, op), "-");
	cr_expect_str_eq(name_of(GFN_SECURE_RESIDENT, CCA_ASSIGNED_EMPTY, op), "-");
	cr_expect_str_eq(name_of(GFN_SECURE_RESIDENT, CCA_ASSIGNED_RAM, op), "-");
	cr_expect_str_eq(name_of(GFN_SECURE_RESIDENT, CCA_ASSIGNED_DESTROYED, op), "-");
}

Test(cca_law, pages_that_are_normal_are_not_asked_for)
{
	static const enum cca_entry all[] = { CCA_UNASSIGNED_EMPTY, CCA_UNASSIGNED_RAM, CCA_UNASSIGNED_DESTROYED };

	for (size_t i = 0; i < PW_ARRAY_LEN(all); i++)
		cr_expect_str_eq(name_of(GFN_NORMAL, all[i], "cca.rtt_set_ripas_ram_destroyed"), "-");
}

Test(cca_law, a_guests_changes_have_their_items)
{
	cr_expect_str_eq(cca_law.ripas[0][0], "cca.rtt_set_ripas_empty_cd");
	cr_expect_str_eq(cca_law.ripas[0][1], "cca.rtt_set_ripas_empty");
	cr_expect_str_eq(cca_law.ripas[1][0], "cca.rtt_set_ripas_ram_cd");
	cr_expect_str_eq(cca_law.ripas[1][1], "cca.rtt_set_ripas_ram");
}

Test(cca_law, trails_do_the_laws_operations)
{
	for (int vm = VM_TRANSIENT; vm <= VM_SECURE; vm++)
		for (size_t i = 0; i < PW_ARRAY_LEN(page_ops); i++)
			for (unsigned s = 0; s < cca_law.state_count; s++) {
				const struct arch_trail *t = &cca_law.trails[vm][page_ops[i]];
				enum gfn_state is = cca_law.states[s].is, next;
				unsigned end;

				if (!gfn_step(is, page_ops[i], &next) || (vm == VM_SECURE && is == GFN_NORMAL))
					continue;
				end = told(t, s);
				cr_assert_neq(end, ARCH_REFUSED, "%s of %s", t->item, cca_law.states[s].name);
				cr_expect_eq(cca_law.states[end].is, next, "%s of %s", t->item, cca_law.states[s].name);
				if (vm == VM_SECURE && next != is)
					cr_expect_eq(end, arch_page_after(&cca_law, s, next), "%s of %s", t->item,
						     cca_law.states[s].name);
				if (vm == VM_TRANSIENT && next == GFN_SECURE_RESIDENT && next != is)
					cr_expect_eq(end, cca_law.rest[next]);
			}
}

Test(cca_law, trails_end_where_the_model_does, .timeout = 60)
{
	for (int vm = VM_TRANSIENT; vm <= VM_SECURE; vm++)
		for (size_t i = 0; i < PW_ARRAY_LEN(page_ops); i++)
			for (unsigned s = 0; s < cca_law.state_count; s++) {
				const struct arch_trail *t = &cca_law.trails[vm][page_ops[i]];
				enum gfn_state is = cca_law.states[s].is, next;
				struct world w;

				if (!gfn_step(is, page_ops[i], &next) || (vm == VM_SECURE && is == GFN_NORMAL))
					continue;
				be(&w, s, vm == VM_SECURE);
				cr_assert(deed_named(t->item)->act(&w), "%s of %s", t->item, cca_law.states[s].name);
				if (t->done)
					cr_assert(deed_named(t->done)->act(&w), "%s of %s", t->done,
						  cca_law.states[s].name);
				cr_expect_eq(shown(&w, true), told(t, s), "%s of %s", t->item, cca_law.states[s].name);
				world_end(&w);
			}
}

/* The agent's resync finds an operation for each difference that its machine can leave. */
Test(cca_law, destroyed_and_ram_lead_to_each_other)
{
	static const enum gfn_state dead[] = { GFN_SECURE_OUT, GFN_SHARED };

	for (size_t i = 0; i < PW_ARRAY_LEN(dead); i++) {
		unsigned destroyed = cca_law_state(dead[i], CCA_UNASSIGNED_DESTROYED), rest = cca_law.rest[dead[i]];

		cr_expect_not_null(arch_op_between(&cca_law, arch_vm_rest(&cca_law, VM_SECURE), rest, destroyed));
		cr_expect_not_null(arch_op_between(&cca_law, arch_vm_rest(&cca_law, VM_SECURE), destroyed, rest));
	}
	cr_expect_not_null(arch_op_between(&cca_law, arch_vm_rest(&cca_law, VM_SECURE),
					   cca_law_state(GFN_SECURE_RESIDENT, CCA_ASSIGNED_DESTROYED),
					   cca_law.rest[GFN_SECURE_RESIDENT]));
	cr_expect_not_null(arch_op_between(&cca_law, arch_vm_rest(&cca_law, VM_SECURE),
					   cca_law_state(GFN_NORMAL, CCA_UNASSIGNED_RAM),
					   cca_law_state(GFN_NORMAL, CCA_UNASSIGNED_DESTROYED)));
}

Test(cca_law, the_tables_are_sound)
{
	cr_expect(arch_laws_are_sound());
}
