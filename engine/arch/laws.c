#include <string.h>

#include "engine/arch/law.h"
#include "engine/ledger.h"

extern const struct arch_law pef_law, tdx_law, pkvm_law, snp_law, cca_law;
const struct arch_law *const arch_laws[ARCH_COUNT] = {
	[ARCH_PEF] = &pef_law, [ARCH_TDX] = &tdx_law, [ARCH_PKVM] = &pkvm_law,
	[ARCH_SNP] = &snp_law, [ARCH_CCA] = &cca_law,
};

const struct arch_op *arch_op_find(const char *name, size_t len, bool framed, const struct arch_law **law)
{
	for (int a = 0; a < ARCH_COUNT; a++) {
		const struct arch_law *l = arch_laws[a];

		for (size_t i = 0; l && i < l->op_count; i++) {
			if (l->ops[i].framed != framed || strlen(l->ops[i].name) != len ||
			    memcmp(l->ops[i].name, name, len) != 0)
				continue;
			if (law)
				*law = l;
			return &l->ops[i];
		}
	}
	return NULL;
}

unsigned arch_state_find(const struct arch_law *law, const char *name, enum gfn_state is)
{
	for (unsigned s = 0; s < law->state_count; s++)
		if (law->states[s].is == is && strcmp(law->states[s].name, name) == 0)
			return s;
	return ARCH_REFUSED;
}

const struct arch_op *arch_op_between(const struct arch_law *law, unsigned from, unsigned to)
{
	for (size_t i = 0; i < law->op_count; i++)
		if (!law->ops[i].framed && law->ops[i].next[from] == to)
			return &law->ops[i];
	return NULL;
}

bool arch_move_is_lawful(enum gfn_state now, enum gfn_state next)
{
	static const enum gfn_op ops[] = { GFN_SHARE, GFN_UNSHARE, GFN_UNSHARE_IN, GFN_PAGE_IN, GFN_PAGE_OUT };
	enum gfn_state to;

	for (size_t i = 0; i < sizeof ops / sizeof ops[0]; i++)
		if (gfn_step(now, ops[i], &to) && to == next)
			return true;
	return now == next;
}

static bool op_is_sound(const struct arch_law *l, const struct arch_op *op)
{
	if (strncmp(op->name, l->name, strlen(l->name)) != 0 || op->name[strlen(l->name)] != '.' || !op->rule ||
	    strlen(op->name) >= ARCH_OP_NAME_MAX)
		return false;
	for (unsigned s = 0; s < l->state_count; s++) {
		enum gfn_state now = l->states[s].is, next;

		if (op->next[s] == ARCH_REFUSED)
			continue;
		if (op->next[s] >= l->state_count)
			return false;
		next = l->states[op->next[s]].is;
		if (!arch_move_is_lawful(now, next))
			return false;
		if (!op->framed && next == GFN_SECURE_RESIDENT && now != GFN_SECURE_RESIDENT)
			return false; /* a frame is needed */
		if (op->framed && next != GFN_SECURE_RESIDENT && now != GFN_SECURE_RESIDENT)
			return false; /* of what use is the frame? */
	}
	return true;
}

static bool trail_is_sound(const struct arch_law *l, const struct arch_trail *t, bool framed)
{
	const struct arch_law *whose = l;

	if (t->item && !arch_op_find(t->item, strlen(t->item), framed, &whose))
		return false;
	return whose == l && (!t->done || (arch_op_find(t->done, strlen(t->done), false, &whose) && whose == l));
}

/* Is each state, and each row, found by its name? */
static bool names_are_sound(const struct arch_law *l)
{
	const struct arch_law *whose;

	for (unsigned s = 0; s < l->state_count; s++)
		if (!l->states[s].name || arch_state_find(l, l->states[s].name, l->states[s].is) != s)
			return false;
	for (size_t i = 0; i < l->op_count; i++)
		if (arch_op_find(l->ops[i].name, strlen(l->ops[i].name), l->ops[i].framed, &whose) != &l->ops[i])
			return false;
	return true;
}

static bool law_is_sound(const struct arch_law *l)
{
	if (l->state_count == 0 || l->state_count > ARCH_STATES_MAX || !names_are_sound(l))
		return false;
	for (int s = 0; s < GFN_STATE_COUNT; s++)
		if (l->rest[s] >= l->state_count || l->states[l->rest[s]].is != (enum gfn_state)s)
			return false;
	for (size_t i = 0; i < l->op_count; i++)
		if (!op_is_sound(l, &l->ops[i]))
			return false;
	for (int s = 0; s < VM_STATE_COUNT; s++)
		for (int op = 0; op < GFN_OP_COUNT; op++)
			if (!trail_is_sound(l, &l->trails[s][op], op == GFN_PAGE_IN || op == GFN_UNSHARE_IN))
				return false;
	return true;
}

bool arch_laws_are_sound(void)
{
	for (int a = 0; a < ARCH_COUNT; a++)
		if (arch_laws[a] && !law_is_sound(arch_laws[a]))
			return false;
	return true;
}
