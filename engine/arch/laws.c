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

const struct arch_op *arch_op_between(const struct arch_law *law, unsigned vm, unsigned from, unsigned to)
{
	const struct arch_op *first[ARCH_STATES_MAX] = { NULL }; /* of the way to each state that was reached */
	unsigned queue[ARCH_STATES_MAX], head = 0, tail = 0;

	if (from == to || law->states[from].is != law->states[to].is)
		return NULL;
	for (queue[tail++] = from; head < tail && !first[to]; head++)
		for (size_t i = 0; i < law->op_count; i++) {
			const struct arch_op *op = &law->ops[i];
			unsigned next = op->next[queue[head]];

			if (op->framed || !arch_op_fits_vm(op, vm) || next == ARCH_REFUSED || next == from ||
			    first[next] || law->states[next].is != law->states[to].is)
				continue;
			first[next] = queue[head] == from ? op : first[queue[head]];
			queue[tail++] = next;
		}
	return first[to];
}

const struct arch_vm_op *arch_vm_op_find(const char *name, size_t len, const struct arch_law **law)
{
	for (int a = 0; a < ARCH_COUNT; a++)
		for (size_t i = 0; arch_laws[a] && i < arch_laws[a]->vm_op_count; i++) {
			const struct arch_vm_op *op = &arch_laws[a]->vm_ops[i];

			if (strlen(op->name) != len || memcmp(op->name, name, len) != 0)
				continue;
			if (law)
				*law = arch_laws[a];
			return op;
		}
	return NULL;
}

unsigned arch_vm_state_find(const struct arch_law *law, const char *name, enum vm_state is)
{
	for (unsigned s = 0; s < law->vm_state_count; s++)
		if (law->vm_states[s].is == is && strcmp(law->vm_states[s].name, name) == 0)
			return s;
	return ARCH_REFUSED;
}

unsigned arch_vm_rest(const struct arch_law *law, enum vm_state is)
{
	return is == VM_SECURE ? law->vm_states[0].done : 0;
}

unsigned arch_page_after(const struct arch_law *law, unsigned from, enum gfn_state next)
{
	return law->after ? law->after[from][next] : law->rest[next];
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

static bool name_is_sound(const struct arch_law *l, const char *name)
{
	return strncmp(name, l->name, strlen(l->name)) == 0 && name[strlen(l->name)] == '.' &&
	       strlen(name) < ARCH_OP_NAME_MAX;
}

static bool op_is_sound(const struct arch_law *l, const struct arch_op *op)
{
	if (!name_is_sound(l, op->name) || !op->rule || !op->vms || op->vms >> l->vm_state_count || !op->vms_rule)
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

/* Is the item of a trail legal in a VM at rest, in whose state the agent sends it? */
static bool trail_fits_vm(const struct arch_law *l, enum vm_state vm, const char *name, bool framed)
{
	const struct arch_op *op = name ? arch_op_find(name, strlen(name), framed, NULL) : NULL;

	return !op || arch_op_fits_vm(op, arch_vm_rest(l, vm));
}

/* A VM begins transient, and becomes secure by init_done. */
static bool vm_states_are_sound(const struct arch_law *l)
{
	if (l->vm_state_count == 0 || l->vm_state_count > ARCH_VM_STATES_MAX || l->vm_states[0].is != VM_TRANSIENT ||
	    l->vm_states[0].done == ARCH_REFUSED)
		return false;
	for (unsigned s = 0; s < l->vm_state_count; s++) {
		const struct arch_vm_state *state = &l->vm_states[s];

		if (!state->name || state->is == VM_NORMAL || arch_vm_state_find(l, state->name, state->is) != s)
			return false;
		if (state->done == ARCH_REFUSED)
			continue;
		if (state->is != VM_TRANSIENT || state->done >= l->vm_state_count ||
		    l->vm_states[state->done].is != VM_SECURE)
			return false;
	}
	return true;
}

static bool vm_op_is_sound(const struct arch_law *l, const struct arch_vm_op *op)
{
	const struct arch_law *whose = NULL;
	size_t len = strlen(op->name);

	if (!name_is_sound(l, op->name) || !op->rule || arch_vm_op_find(op->name, len, &whose) != op || whose != l ||
	    arch_op_find(op->name, len, true, NULL) || arch_op_find(op->name, len, false, NULL))
		return false;
	for (unsigned s = 0; s < l->vm_state_count; s++)
		if (op->next[s] != ARCH_REFUSED &&
		    (op->next[s] >= l->vm_state_count || l->vm_states[op->next[s]].is != l->vm_states[s].is))
			return false;
	return true;
}

static bool vms_are_sound(const struct arch_law *l)
{
	const char *const told[] = { l->sealed, l->ending };
	const struct arch_law *whose = NULL;

	if (!vm_states_are_sound(l))
		return false;
	for (size_t i = 0; i < l->vm_op_count; i++)
		if (!vm_op_is_sound(l, &l->vm_ops[i]))
			return false;
	for (size_t i = 0; i < PW_ARRAY_LEN(told); i++)
		if (told[i] && (!arch_vm_op_find(told[i], strlen(told[i]), &whose) || whose != l))
			return false;
	return true;
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

/* Is what is left of each state one of the law's state that the page has come to? Pages at rest stay so. */
static bool after_is_sound(const struct arch_law *l)
{
	for (unsigned s = 0; s < l->state_count; s++)
		for (int g = 0; g < GFN_STATE_COUNT; g++) {
			unsigned to = arch_page_after(l, s, (enum gfn_state)g);

			if (to >= l->state_count || l->states[to].is != (enum gfn_state)g)
				return false;
			if (s == l->rest[l->states[s].is] && to != l->rest[g])
				return false;
		}
	return true;
}

static bool ripas_is_sound(const struct arch_law *l)
{
	for (int i = 0; i < 4; i++) {
		const char *name = l->ripas[i / 2][i % 2];
		const struct arch_law *whose = l;

		if (name && (!arch_op_find(name, strlen(name), false, &whose) || whose != l))
			return false;
	}
	return true;
}

static bool law_is_sound(const struct arch_law *l)
{
	if (l->state_count == 0 || l->state_count > ARCH_STATES_MAX || !names_are_sound(l) || !vms_are_sound(l))
		return false;
	for (int s = 0; s < GFN_STATE_COUNT; s++)
		if (l->rest[s] >= l->state_count || l->states[l->rest[s]].is != (enum gfn_state)s)
			return false;
	if (!after_is_sound(l) || !ripas_is_sound(l))
		return false;
	for (size_t i = 0; i < l->op_count; i++)
		if (!op_is_sound(l, &l->ops[i]))
			return false;
	for (int s = 0; s < VM_STATE_COUNT; s++)
		for (int op = 0; op < GFN_OP_COUNT; op++) {
			const struct arch_trail *t = &l->trails[s][op];
			bool framed = op == GFN_PAGE_IN || op == GFN_UNSHARE_IN;

			if (!trail_is_sound(l, t, framed) || !trail_fits_vm(l, (enum vm_state)s, t->item, framed) ||
			    !trail_fits_vm(l, (enum vm_state)s, t->done, false))
				return false;
		}
	return true;
}

bool arch_laws_are_sound(void)
{
	for (int a = 0; a < ARCH_COUNT; a++)
		if (arch_laws[a] && !law_is_sound(arch_laws[a]))
			return false;
	return true;
}
