/* What the ledger knows of a realm's pages: entries of its translation table, as far as the law's state leaves open. */
#include "engine/arch/cca.h"
#include "engine/arch/law.h"

/* clang-format off */

/* N, A, O, S: normal, resident, paged out, shared; E, R, D: RIPAS of the protected entry. That a page of a realm which
 * is NEW is paged out, and not normal, is in the host's books alone. */
enum state { N_E, N_R, N_D, A_E, A_R, A_D, O_E, O_R, O_D, S_E, S_R, S_D, STATES, NO = ARCH_REFUSED };

/* Of the VM: its realm's. One that is activated is ACTIVE and runs nothing until init_done. */
enum { NEW, ACTIVATED, ACTIVE, SYSTEM_OFF, VM_STATES };
#define ANY     1u << NEW | 1u << ACTIVATED | 1u << ACTIVE | 1u << SYSTEM_OFF
#define IS_NEW  1u << NEW, "RMM A2.1, B4.3: the realm is NEW, else RMI_ERROR_REALM"
#define ASKED   1u << ACTIVE | 1u << SYSTEM_OFF, "RMM A5.4: a REC of the realm asked for it, so it has run"
#define EVER    ANY, "RMM B4.3: no state of the realm is asked for"

#define ROW(ne, nr, nd, ae, ar, ad, oe, or_, od, se, sr, sd) \
	{ [N_E] = ne, [N_R] = nr, [N_D] = nd, [A_E] = ae, [A_R] = ar, [A_D] = ad, \
	  [O_E] = oe, [O_R] = or_, [O_D] = od, [S_E] = se, [S_R] = sr, [S_D] = sd }
#define SAME ROW(N_E, N_R, N_D, A_E, A_R, A_D, O_E, O_R, O_D, S_E, S_R, S_D)

/* The names of items that trails have too. */
#define CREATE           "cca.data_create"
#define CREATE_UNKNOWN   "cca.data_create_unknown"
#define DESTROY          "cca.data_destroy"
#define RECOVER          "cca.rtt_set_ripas_ram_destroyed"
#define SET_RAM          "cca.rtt_set_ripas_ram"
#define SET_RAM_CD       "cca.rtt_set_ripas_ram_cd"
#define SET_EMPTY        "cca.rtt_set_ripas_empty"
#define SET_EMPTY_CD     "cca.rtt_set_ripas_empty_cd"
#define POPULATE         "cca.populate"
#define SHARE            "cca.share"
#define UNSHARE          "cca.unshare"
#define UNSHARE_POPULATE "cca.unshare_populate"
#define UNSHARE_UNKNOWN  "cca.unshare_create_unknown"

static const struct arch_op ops[] = {
	/* Commands, as engine/arch/cca_tables.c has their cells; mapping both aliases is refused by L9, not by the RMM. */
	/*                N: E  R    D        A: E  R    D        O: E  R    D        S: E  R    D   */
	{ CREATE, true, "RMM B4.3.1, A5.3.5", IS_NEW,
		ROW(        A_R, A_R, A_R,    NO,  NO,  NO,     A_R, A_R, A_R,    NO,  NO,  NO) },
	{ CREATE_UNKNOWN, true, "RMM B4.3.2, A5.3.5", EVER,
		ROW(        A_E, A_R, A_D,    NO,  NO,  NO,     A_E, A_R, A_D,    NO,  NO,  NO) },
	{ DESTROY, false, "RMM B4.3.3, A5.3.5", EVER,
		ROW(        NO,  NO,  NO,     O_E, O_D, O_D,    NO,  NO,  NO,     NO,  NO,  NO) },
	{ "cca.rtt_init_ripas", false, "RMM B4.3.18, A5.2.4; DESTROYED as TF-RMM rtt.c", IS_NEW,
		ROW(        N_R, N_R, NO,     NO,  NO,  NO,     O_R, O_R, NO,     S_R, S_R, NO) },
	{ SET_RAM_CD, false, "RMM B4.3.21, A5.4: the realm asked for RAM, change_destroyed", ASKED,
		ROW(        NO,  NO,  NO,     A_R, A_R, A_R,    O_R, O_R, O_R,    S_R, S_R, S_R) },
	{ SET_EMPTY_CD, false, "RMM B4.3.21, A5.4: the realm asked for EMPTY, change_destroyed", ASKED,
		ROW(        NO,  NO,  NO,     A_E, A_E, A_E,    O_E, O_E, O_E,    S_E, S_E, S_E) },
	{ SET_RAM, false, "RMM B4.3.21, A5.4: the realm asked for RAM", ASKED,
		ROW(        NO,  NO,  NO,     A_R, A_R, NO,     O_R, O_R, NO,     S_R, S_R, NO) },
	{ SET_EMPTY, false, "RMM B4.3.21, A5.4: the realm asked for EMPTY", ASKED,
		ROW(        NO,  NO,  NO,     A_E, A_E, NO,     O_E, O_E, NO,     S_E, S_E, NO) },
	{ "cca.rtt_map_unprotected", false, "RMM B4.3.19, A5.3.5; with a protected alias: L9", EVER,
		ROW(        S_E, S_R, S_D,    NO,  NO,  NO,     S_E, S_R, S_D,    NO,  NO,  NO) },
	{ "cca.rtt_unmap_unprotected", false, "RMM B4.3.22, A5.3.5", EVER,
		ROW(        NO,  NO,  NO,     NO,  NO,  NO,     NO,  NO,  NO,     O_E, O_R, O_D) },
	{ "cca.rtt_destroy", false, "RMM B4.3.16, A5.5.8: what the parent of dead entries becomes", EVER,
		ROW(        N_D, N_D, N_D,    NO,  NO,  NO,     O_D, O_D, O_D,    S_D, S_D, S_D) },
	{ "cca.rtt_create", false, "RMM B4.3.15, A5.5.7", EVER, SAME },
	{ "cca.rtt_fold", false, "RMM B4.3.17, A5.5.6", EVER, SAME },

	/* What was destroyed is asked for again, what the realm gave up is not. */
	{ RECOVER, false, "RMM B4.3.21, A5.4: the realm asked for RAM where a page was DESTROYED, change_destroyed", ASKED,
		ROW(        NO,  NO,  NO,     A_E, A_R, A_R,    O_E, O_R, O_R,    S_E, S_R, S_R) },
	/* No command: how REALM_CREATE makes all pages, which the rest state takes for initialised. */
	{ "cca.ripas_left_empty", false, "RMM B4.3.9, A5.2.4: EMPTY from the beginning, no RTT_INIT_RIPAS here", IS_NEW,
		ROW(        N_E, N_E, NO,     NO,  NO,  NO,     O_E, O_E, NO,     S_E, S_E, NO) },

	/* What an agent does to a page in one go: the commands above, in this order, where the entry calls for them. */
	{ POPULATE, true, "RMM B4.3.1, B4.3.2: DATA_CREATE; DATA_CREATE_UNKNOWN only where RIPAS is RAM", IS_NEW,
		ROW(        A_R, A_R, A_R,    NO,  NO,  NO,     A_R, A_R, A_R,    NO,  NO,  NO) },
	{ SHARE, false, "RMM B4.3.3, B4.3.19: DATA_DESTROY, RTT_MAP_UNPROTECTED", EVER,
		ROW(        S_E, S_R, S_D,    S_E, S_D, S_D,    S_E, S_R, S_D,    S_E, S_R, S_D) },
	{ UNSHARE, false, "RMM B4.3.22: RTT_UNMAP_UNPROTECTED; a page that nothing maps is only booked", EVER,
		ROW(        O_E, O_R, O_D,    A_E, A_R, A_D,    O_E, O_R, O_D,    O_E, O_R, O_D) },
	{ UNSHARE_POPULATE, true, "RMM B4.3.22, B4.3.1, B4.3.2: RTT_UNMAP_UNPROTECTED, then the same", IS_NEW,
		ROW(        A_R, A_R, A_R,    NO,  NO,  NO,     A_R, A_R, A_R,    A_R, A_R, A_R) },
	{ UNSHARE_UNKNOWN, true, "RMM B4.3.22, B4.3.2: RTT_UNMAP_UNPROTECTED, DATA_CREATE_UNKNOWN", EVER,
		ROW(        A_E, A_R, A_D,    NO,  NO,  NO,     A_E, A_R, A_D,    A_E, A_R, A_D) },
};
#undef ROW
#undef SAME

static const struct arch_vm_op vm_ops[] = {
	{ "cca.realm_activate", "RMM B4.3.8, A2.1: the realm is NEW, else RMI_ERROR_REALM",
	  { [NEW] = ACTIVATED, [ACTIVATED] = NO, [ACTIVE] = NO, [SYSTEM_OFF] = NO } },
	{ "cca.psci_system_off", "RMM A2.1: the realm calls PSCI SYSTEM_OFF or SYSTEM_RESET; there is no way back",
	  { [NEW] = NO, [ACTIVATED] = NO, [ACTIVE] = SYSTEM_OFF, [SYSTEM_OFF] = NO } },
};

/* What a realm gave up stays EMPTY until it asks for it, or the host creates it with contents (RMM A5.3.5: DATA_CREATE);
 * of what was destroyed the law's operations say that the realm asked for it again. */
#define TO(r) { [GFN_NORMAL] = N_##r, [GFN_SECURE_RESIDENT] = A_##r, [GFN_SECURE_OUT] = O_##r, [GFN_SHARED] = S_##r }
static const uint8_t after[STATES][GFN_STATE_COUNT] = {
	[N_E] = TO(E), [N_R] = TO(R), [N_D] = TO(R), [A_E] = TO(E), [A_R] = TO(R), [A_D] = TO(R),
	[O_E] = TO(E), [O_R] = TO(R), [O_D] = TO(R), [S_E] = TO(E), [S_R] = TO(R), [S_D] = TO(R),
};
#undef TO

extern const struct arch_law cca_law;
const struct arch_law cca_law = {
	.name = "cca",
	.state_count = STATES,
	.states = {
		[N_E] = { "UNASSIGNED/EMPTY", GFN_NORMAL },
		[N_R] = { "UNASSIGNED/RAM", GFN_NORMAL },
		[N_D] = { "UNASSIGNED/DESTROYED", GFN_NORMAL },
		[A_E] = { "ASSIGNED/EMPTY", GFN_SECURE_RESIDENT },
		[A_R] = { "ASSIGNED/RAM", GFN_SECURE_RESIDENT },
		[A_D] = { "ASSIGNED/DESTROYED", GFN_SECURE_RESIDENT },
		[O_E] = { "UNASSIGNED/EMPTY", GFN_SECURE_OUT },
		[O_R] = { "UNASSIGNED/RAM", GFN_SECURE_OUT },
		[O_D] = { "UNASSIGNED/DESTROYED", GFN_SECURE_OUT },
		[S_E] = { "ASSIGNED_NS, UNASSIGNED/EMPTY", GFN_SHARED },
		[S_R] = { "ASSIGNED_NS", GFN_SHARED },
		[S_D] = { "ASSIGNED_NS, UNASSIGNED/DESTROYED", GFN_SHARED },
	},
	/* RIPAS is RAM wherever the host has initialised it or the realm could ask for it. */
	.rest = { [GFN_NORMAL] = N_R, [GFN_SECURE_RESIDENT] = A_R, [GFN_SECURE_OUT] = O_R, [GFN_SHARED] = S_R },
	.after = after,
	.ripas = { { SET_EMPTY_CD, SET_EMPTY }, { SET_RAM_CD, SET_RAM } },
	.ops = ops,
	.op_count = PW_ARRAY_LEN(ops),
	.trails = {
		/* Nobody can ask for RAM yet: what was resident stays DESTROYED until it is created again. */
		[VM_TRANSIENT] = {
			[GFN_PAGE_IN] = { POPULATE, NULL },
			[GFN_UNSHARE_IN] = { UNSHARE_POPULATE, NULL },
			[GFN_SHARE] = { SHARE, NULL },
			[GFN_UNSHARE] = { UNSHARE, NULL },
			[GFN_PAGE_OUT] = { DESTROY, NULL },
		},
		[VM_SECURE] = {
			[GFN_PAGE_IN] = { CREATE_UNKNOWN, RECOVER },
			[GFN_UNSHARE_IN] = { UNSHARE_UNKNOWN, RECOVER },
			[GFN_SHARE] = { SHARE, RECOVER },
			[GFN_UNSHARE] = { UNSHARE, RECOVER },
			[GFN_PAGE_OUT] = { DESTROY, RECOVER },
		},
	},
	/* RMM A5.2.1: the highest bit of an IPA; an IPA space has 32 to 48 bits. */
	.shared_bits = ((uint64_t)1 << 48) - ((uint64_t)1 << 31),
	.vm_states = {
		[NEW] = { "NEW", VM_TRANSIENT, ACTIVE },
		[ACTIVATED] = { "ACTIVE", VM_TRANSIENT, ACTIVE },
		[ACTIVE] = { "ACTIVE", VM_SECURE, NO },
		[SYSTEM_OFF] = { "SYSTEM_OFF", VM_SECURE, NO },
	},
	.vm_state_count = VM_STATES,
	.vm_ops = vm_ops,
	.vm_op_count = PW_ARRAY_LEN(vm_ops),
	.sealed = "cca.realm_activate",
};
/* clang-format on */

unsigned cca_law_state(enum gfn_state is, enum cca_entry protected_)
{
	static const unsigned first[GFN_STATE_COUNT] = {
		[GFN_NORMAL] = N_E, [GFN_SECURE_RESIDENT] = A_E, [GFN_SECURE_OUT] = O_E, [GFN_SHARED] = S_E
	};
	unsigned ripas = 0;

	if (protected_ >= CCA_ASSIGNED_EMPTY && protected_ <= CCA_ASSIGNED_DESTROYED)
		ripas = (unsigned)(protected_ - CCA_ASSIGNED_EMPTY);
	else if (protected_ <= CCA_UNASSIGNED_DESTROYED)
		ripas = (unsigned)(protected_ - CCA_UNASSIGNED_EMPTY);
	return first[is] + ripas;
}
