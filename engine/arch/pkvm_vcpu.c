#include "engine/arch/pkvm_vcpu.h"

#include <string.h>

#define PSTATE_MODE    0x1fu
#define PSTATE_A       0x100u
#define PSTATE_EL1H    0x3c5u /* EL1 on its own stack, DAIF masked */
#define SCTLR_ENDIAN   (((uint64_t)1 << 25) | ((uint64_t)1 << 24))
#define PAGE_BITS      ((uint64_t)0xfff)

/* ESR_EL2. */
#define ESR_VALID      ((uint64_t)1 << 24)
#define ESR_SIGNED     ((uint64_t)1 << 21)
#define ESR_64         ((uint64_t)1 << 15)
#define ESR_WRITE      ((uint64_t)1 << 6)
#define ESR_DATA_SHIFT 16
#define ESR_SYS_SHIFT  5
#define ESR_REGISTER   ((uint64_t)0x1f)
#define ESR_IL         ((uint64_t)1 << 25)
#define ESR_EC_SHIFT   26
#define EC_UNKNOWN     0x00u
#define EC_IABT_LOWER  0x20u
#define EC_DABT_LOWER  0x24u
#define FSC_EXTERNAL   0x10u
#define ZERO_REGISTER  31u

static bool is_data_abort(enum pkvm_exit e)
{
	return e == PKVM_EXIT_LOAD || e == PKVM_EXIT_STORE;
}

static unsigned register_shift(enum pkvm_exit e)
{
	return is_data_abort(e) ? ESR_DATA_SHIFT : ESR_SYS_SHIFT;
}

static unsigned access_bits(uint64_t esr)
{
	return 8u << (esr >> 22 & 3);
}

static uint64_t clamp(uint64_t value, unsigned bits)
{
	return bits < 64 ? value & (((uint64_t)1 << bits) - 1) : value;
}

/* Setting up. */

enum pkvm_code pkvm_vcpu_allowed(bool is_protected, const struct pkvm_vcpu_setup *s)
{
	unsigned allowed = PKVM_FEATURE_POWER_OFF | PKVM_FEATURE_PSCI_0_2 | PKVM_FEATURE_PTRAUTH_ADDRESS |
			   PKVM_FEATURE_PTRAUTH_GENERIC | (s->pmu_permitted ? PKVM_FEATURE_PMU_V3 : 0);

	if (is_protected && (s->features & ~allowed || s->has_sme || s->lacks_fp))
		return PKVM_EINVAL;
	return PKVM_OK;
}

void pkvm_vcpu_init(struct pkvm_vcpu *v, enum pkvm_generation g, bool is_protected, const struct pkvm_vcpu_setup *s)
{
	bool is_off = s->features & PKVM_FEATURE_POWER_OFF || (is_protected && !s->primary);

	memset(v, 0, sizeof *v);
	v->generation = g;
	v->is_protected = is_protected;
	v->hyp.power = is_off ? PKVM_POWER_OFF : PKVM_POWER_ON;
	v->ctxt.pstate = PSTATE_EL1H;
	v->ctxt.sysregs[PKVM_MPIDR] = s->mpidr;
	if (!is_protected) {
		if (s->ctxt)
			v->ctxt = *s->ctxt;
		v->hyp.power = PKVM_POWER_ON; /* the host sees to it */
	} else if (s->primary) {
		v->ctxt.pc = s->pc;
		v->ctxt.x[0] = s->x0;
	}
}

void pkvm_vcpu_release(struct pkvm_vcpu *v)
{
	explicit_bzero(v, sizeof *v);
}

/* Out. */

/* What the instruction stores or writes. */
static uint64_t shown_value(const struct pkvm_vcpu *v, const struct pkvm_trap *t)
{
	uint64_t n = t->esr >> register_shift(t->exit) & ESR_REGISTER;
	uint64_t value = n == ZERO_REGISTER ? 0 : v->ctxt.x[n];

	return is_data_abort(t->exit) ? clamp(value, access_bits(t->esr)) : value;
}

static uint64_t shown_syndrome(enum pkvm_syndrome s, enum pkvm_exit e, uint64_t esr)
{
	switch (s) {
	case PKVM_ESR_WHOLE: break;
	case PKVM_ESR_NO_REGISTER: return esr & ~(ESR_REGISTER << register_shift(e));
	case PKVM_ESR_NO_VALID: return esr & ~ESR_VALID;
	case PKVM_ESR_SHARE: return PKVM_SHARE_SYNDROME;
	}
	return esr;
}

static uint64_t shown_pstate(enum pkvm_mode m, uint64_t pstate)
{
	switch (m) {
	case PKVM_MODE_HIDDEN: break;
	case PKVM_MODE_SHOWN: return pstate & PSTATE_MODE;
	case PKVM_MODE_SHOWN_A_SET: return (pstate & PSTATE_MODE) | PSTATE_A;
	}
	return 0;
}

static void show_protected(struct pkvm_vcpu *v, const struct pkvm_trap *t)
{
	const struct pkvm_exit_row *row = pkvm_exit_row(t->exit);
	struct pkvm_host_view *view = &v->view;

	view->exit = t->exit;
	view->reg_count = row->value ? 1 : row->regs;
	for (unsigned i = 0; i < row->regs; i++)
		view->x[i] = v->ctxt.x[i];
	if (row->value)
		view->x[0] = shown_value(v, t);
	view->pstate = shown_pstate(row->mode, v->ctxt.pstate);
	view->sctlr = row->endianness ? v->ctxt.sysregs[PKVM_SCTLR] & SCTLR_ENDIAN : 0;
	view->esr = shown_syndrome(row->syndrome, t->exit, t->esr);
	view->ipa = row->page ? t->ipa & ~PAGE_BITS : 0;
	view->va = row->va_low ? t->far & PAGE_BITS : 0;
}

static void show_all(struct pkvm_vcpu *v, const struct pkvm_trap *t)
{
	v->view = (struct pkvm_host_view){
		.esr = t->esr, .ipa = t->ipa, .va = t->far, .pc = v->ctxt.pc, .pstate = v->ctxt.pstate, .exit = t->exit
	};
}

/* Without a valid syndrome nobody knows which register a load or store is about. */
static bool is_opaque(const struct pkvm_vcpu *v, const struct pkvm_trap *t)
{
	bool is_mmio = v->generation != PKVM_ANDROID || !t->not_guarded;

	return v->is_protected && is_data_abort(t->exit) && !(is_mmio && t->esr & ESR_VALID);
}

enum pkvm_code pkvm_vcpu_exit(struct pkvm_vcpu *v, const struct pkvm_trap *t)
{
	struct pkvm_trap seen = *t;

	if (is_opaque(v, t))
		seen.exit = PKVM_EXIT_OPAQUE;
	if (v->is_protected && !pkvm_exit_row(seen.exit)->reaches_host[v->generation])
		return PKVM_PANIC;
	v->vgic = v->hyp.vgic;
	memset(&v->view, 0, sizeof v->view);
	v->hyp.exit = seen.exit;
	v->hyp.exited = true;
	v->hyp.esr = t->esr;
	v->hyp.far = t->far;
	v->hyp.ipa = t->ipa;
	if (!v->is_protected) {
		show_all(v, &seen);
		return PKVM_OK;
	}
	show_protected(v, &seen);
	if (seen.exit == PKVM_EXIT_CPU_OFF)
		v->hyp.power = PKVM_POWER_OFF;
	else if (seen.exit == PKVM_EXIT_SHARE)
		v->ctxt.pc -= 4; /* the call is made again */
	return PKVM_OK;
}

const struct pkvm_ctxt *pkvm_vcpu_sync(const struct pkvm_vcpu *v)
{
	return v->is_protected ? NULL : &v->ctxt;
}

/* In. */

/* Takes an exception to EL1, as hardware does. */
static void inject(struct pkvm_vcpu *v, uint64_t esr)
{
	struct pkvm_ctxt *c = &v->ctxt;
	uint64_t mode = c->pstate & 0xf, vector = mode == 5 ? 0x200 : mode == 4 ? 0x000 : 0x400;

	c->sysregs[PKVM_ELR] = c->pc;
	c->sysregs[PKVM_SPSR] = c->pstate;
	c->sysregs[PKVM_ESR] = esr | ESR_IL;
	c->pc = c->sysregs[PKVM_VBAR] + vector;
	c->pstate = PSTATE_EL1H;
}

static void inject_undef(struct pkvm_vcpu *v)
{
	inject(v, (uint64_t)EC_UNKNOWN << ESR_EC_SHIFT);
}

static void inject_abort(struct pkvm_vcpu *v)
{
	uint64_t ec = v->hyp.exit == PKVM_EXIT_IABT ? EC_IABT_LOWER : EC_DABT_LOWER;
	bool same_level = (v->ctxt.pstate & 0xc) != 0;

	v->ctxt.sysregs[PKVM_FAR] = v->hyp.far;
	inject(v, (ec + same_level) << ESR_EC_SHIFT | FSC_EXTERNAL);
}

/* x0 of the host into the register that the hypervisor decoded. */
static void fill(struct pkvm_vcpu *v, uint64_t value)
{
	uint64_t esr = v->hyp.esr, n = esr >> register_shift(v->hyp.exit) & ESR_REGISTER;

	if (v->hyp.exit == PKVM_EXIT_LOAD) {
		unsigned bits = access_bits(esr);
		uint64_t sign = (uint64_t)1 << (bits - 1);

		value = clamp(value, bits);
		if (esr & ESR_SIGNED)
			value = (value ^ sign) - sign;
		if (!(esr & ESR_64))
			value = clamp(value, 32);
	}
	if (n != ZERO_REGISTER)
		v->ctxt.x[n] = value;
}

static uint64_t call_result(const struct pkvm_vcpu *v, const struct pkvm_wish *w)
{
	uint64_t x0 = w->ctxt ? w->ctxt->x[0] : 0;

	if (v->hyp.exit == PKVM_EXIT_CPU_ON && (w->failed || x0))
		return (uint64_t)(int64_t)PKVM_PSCI_INTERNAL_FAILURE;
	return x0;
}

static void take_wish(struct pkvm_vcpu *v, const struct pkvm_wish *w)
{
	unsigned may = v->hyp.exited ? pkvm_exit_row(v->hyp.exit)->may : 0;

	if (may & PKVM_MAY_RESULT)
		v->ctxt.x[0] = call_result(v, w);
	if (may & PKVM_MAY_ABORT && w->abort) {
		inject_abort(v);
	} else if (may & PKVM_MAY_UNDEF && w->undef) {
		inject_undef(v);
	} else if (may & PKVM_MAY_SKIP && w->skip) {
		if (may & PKVM_MAY_FILL)
			fill(v, w->ctxt ? w->ctxt->x[0] : 0);
		v->ctxt.pc += 4;
	}
}

/* A vCPU that another one turned on starts where that said. */
static void reset(struct pkvm_vcpu *v)
{
	uint64_t mpidr = v->ctxt.sysregs[PKVM_MPIDR];

	memset(&v->ctxt, 0, sizeof v->ctxt);
	v->ctxt.sysregs[PKVM_MPIDR] = mpidr;
	v->ctxt.pc = v->hyp.entry;
	v->ctxt.x[0] = v->hyp.entry_x0;
	v->ctxt.pstate = PSTATE_EL1H;
	v->hyp.power = PKVM_POWER_ON;
	v->hyp.exited = false;
}

enum pkvm_code pkvm_vcpu_enter(struct pkvm_vcpu *v, const struct pkvm_wish *w)
{
	const struct pkvm_power_row *power = pkvm_power_row(v->hyp.power);

	if (v->is_protected && !power->runs)
		return PKVM_EINVAL;
	v->hyp.hcr = (v->hyp.hcr & ~PKVM_HCR_HOST) | (w->hcr & PKVM_HCR_HOST);
	v->hyp.vsesr = w->vsesr;
	v->hyp.vgic = w->vgic ? *w->vgic : (struct pkvm_vgic){ 0 };
	if (!v->is_protected && w->dirty && w->ctxt)
		v->ctxt = *w->ctxt;
	if (v->is_protected && power->resets)
		reset(v);
	else if (v->is_protected)
		take_wish(v, w);
	v->hyp.exited = false;
	memset(&v->view, 0, sizeof v->view);
	return PKVM_OK;
}

/* Power. */

int pkvm_cpu_on(struct pkvm_vcpu *target, uint64_t entry, uint64_t x0)
{
	int result = target ? pkvm_power_row(target->hyp.power)->cpu_on : PKVM_PSCI_INVALID_PARAMS;

	if (result)
		return result;
	target->hyp.power = PKVM_POWER_PENDING;
	target->hyp.entry = entry;
	target->hyp.entry_x0 = x0;
	return 0;
}

void pkvm_power_failed(struct pkvm_vcpu *target)
{
	if (target->hyp.power == PKVM_POWER_PENDING)
		target->hyp.power = PKVM_POWER_OFF;
}

/* PSCI functions, and as what the host sees them; the host's are known to PSCI_FEATURES as well. */
#define FN_VERSION  0x84000000u
#define FN_FEATURES 0x8400000Au
#define VERSION_1_1 0x10001
static const struct {
	uint32_t function;
	enum pkvm_exit exit;
} psci[] = {
	{ 0x84000001u, PKVM_EXIT_CPU_SUSPEND },
	{ 0xC4000001u, PKVM_EXIT_CPU_SUSPEND },
	{ 0x84000002u, PKVM_EXIT_CPU_OFF },
	{ 0x84000003u, PKVM_EXIT_CPU_ON },
	{ 0xC4000003u, PKVM_EXIT_CPU_ON },
	{ PKVM_FN_AFFINITY_32, PKVM_EXIT_AFFINITY_INFO },
	{ PKVM_FN_AFFINITY, PKVM_EXIT_AFFINITY_INFO },
	{ 0x84000008u, PKVM_EXIT_SYSTEM_OFF },
	{ 0x84000009u, PKVM_EXIT_SYSTEM_RESET },
	{ 0x84000012u, PKVM_EXIT_SYSTEM_RESET2 },
	{ 0xC4000012u, PKVM_EXIT_SYSTEM_RESET2 },
};

static bool psci_exit(uint64_t function, enum pkvm_exit *out)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(psci); i++)
		if (psci[i].function == function) {
			*out = psci[i].exit;
			return true;
		}
	return false;
}

static bool is_hypervisors(uint64_t function)
{
	return function == PKVM_FN_FEATURES || function == PKVM_FN_MEMINFO || function == PKVM_FN_MEM_SHARE ||
	       function == PKVM_FN_MEM_UNSHARE || function == PKVM_FN_MMIO_GUARD;
}

bool pkvm_psci_call(enum pkvm_generation g, const uint64_t x[4], struct pkvm_hvc *out)
{
	enum pkvm_exit exit;

	if (is_hypervisors(x[0]) || (g == PKVM_ANDROID && x[0] == PKVM_FN_MEM_RELINQUISH))
		return false;
	*out = (struct pkvm_hvc){ .result = PKVM_PSCI_NOT_SUPPORTED };
	if (x[0] == FN_VERSION)
		out->result = VERSION_1_1;
	else if (x[0] == FN_FEATURES && (x[1] == FN_VERSION || x[1] == FN_FEATURES || psci_exit(x[1], &exit)))
		out->result = 0;
	else if (psci_exit(x[0], &exit) && pkvm_exit_row(exit)->reaches_host[g])
		*out = (struct pkvm_hvc){ .end = PKVM_HVC_TO_HOST, .exit = exit };
	return true;
}

/* Feature registers. */

#define DFR0_NOTHING  0x6u /* the debug architecture of Armv8.0 is the least there is */
#define MMFR4_NOTHING 0x0u

static uint64_t field_value(const struct pkvm_id_field *f, uint64_t host, bool sve, bool ptrauth)
{
	uint64_t value = host >> f->shift & 0xf;

	if ((f->grant == PKVM_IF_SVE && !sve) || (f->grant == PKVM_IF_PTRAUTH && !ptrauth))
		return 0;
	if (!f->is_signed || value < 8)
		value = value < f->max ? value : f->max;
	return value << f->shift;
}

uint64_t pkvm_id_value(enum pkvm_id_register r, uint64_t host, bool sve, bool ptrauth)
{
	uint64_t value = 0;
	size_t count;
	const struct pkvm_id_field *f = pkvm_id_fields(&count);

	if (r == PKVM_ID_ISAR0)
		return host;
	if (r == PKVM_ID_DFR0)
		return DFR0_NOTHING;
	if (r == PKVM_ID_MMFR4)
		return MMFR4_NOTHING;
	for (size_t i = 0; i < count; i++)
		if (f[i].reg == r)
			value |= field_value(&f[i], host, sve, ptrauth);
	return value;
}

/* What may be said of a vCPU. */

/* clang-format off */
#define X_NAMES(X)                                                                                                \
	X(0) X(1) X(2) X(3) X(4) X(5) X(6) X(7) X(8) X(9) X(10) X(11) X(12) X(13) X(14) X(15) X(16) X(17) X(18) \
	X(19) X(20) X(21) X(22) X(23) X(24) X(25) X(26) X(27) X(28) X(29) X(30)
/* clang-format on */
#define X_TEXT_(n)   "x" #n,
#define REG_TEXT_(n) #n,
static const char *const x_names[] = { X_NAMES(X_TEXT_) };
static const char *const sysreg_names[] = { PKVM_SYSREGS(REG_TEXT_) };

enum {
	ITEM_SP = PW_ARRAY_LEN(x_names),
	ITEM_PC,
	ITEM_PSTATE,
	ITEM_SYSREGS,
	ITEM_ESR = ITEM_SYSREGS + PKVM_SYSREG_COUNT,
	ITEM_IPA,
	ITEM_VA,
	ITEM_VECTORS,
	ITEM_COUNT
};

#define HIDDEN_GUESTS "the guest's own; the hypervisor shows it at no exit"
#define HIDDEN_EXIT   "the guest's own; this exit does not show it"
#define HIDDEN_RUNS   "the guest's own; there is no exit that awaits the host"
#define HIDDEN_ISV \
	"the guest's own; of a store the host sees it only if the syndrome (ESR_EL2) is a valid one of a write: ISV 1, WnR 1"
#define HIDDEN_WIDE "wider than an item; the register interface has it"
#define SHOWN_WHOLE "this exit shows it to the host"
#define SHOWN_BITS  "this exit shows these bits to the host; the others are the guest's own"

static const char *why_hidden(const struct pkvm_vcpu *v)
{
	return v->hyp.exited ? HIDDEN_EXIT : HIDDEN_RUNS;
}

static struct pkvm_item item(const char *name, bool shown, uint64_t value, const char *why)
{
	return (struct pkvm_item){ name, shown, shown ? value : 0, shown ? NULL : why };
}

/* The fault record, SIMD. */
static struct pkvm_item last_item(const struct pkvm_vcpu *v, unsigned n)
{
	const struct pkvm_exit_row *row = pkvm_exit_row(v->hyp.exit);
	bool all = !v->is_protected, exited = v->hyp.exited;

	if (n == ITEM_ESR)
		return item("ESR_EL2", exited, v->view.esr, why_hidden(v));
	if (n == ITEM_IPA)
		return item("fault IPA", exited && (all || row->page), v->view.ipa, why_hidden(v));
	if (n == ITEM_VA)
		return item("fault VA", exited && (all || row->va_low), v->view.va, why_hidden(v));
	return item("v0-v31", false, 0, all ? HIDDEN_WIDE : HIDDEN_GUESTS);
}

static struct pkvm_item x_item(const struct pkvm_vcpu *v, unsigned n)
{
	if (!v->is_protected)
		return item(x_names[n], true, v->ctxt.x[n], NULL);
	if (v->hyp.exited && n < v->view.reg_count)
		return item(x_names[n], true, v->view.x[n], NULL);
	return item(x_names[n], false, 0, n < PW_ARRAY_LEN(v->view.x) ? why_hidden(v) : HIDDEN_GUESTS);
}

static struct pkvm_item core_item(const struct pkvm_vcpu *v, unsigned n)
{
	bool all = !v->is_protected;
	bool mode = v->hyp.exited && pkvm_exit_row(v->hyp.exit)->mode != PKVM_MODE_HIDDEN;

	if (n == ITEM_SP)
		return item("sp", all, v->ctxt.sp, HIDDEN_GUESTS);
	if (n == ITEM_PC)
		return item("pc", all, v->ctxt.pc, HIDDEN_GUESTS);
	return item("pstate", all || mode, all ? v->ctxt.pstate : v->view.pstate, why_hidden(v));
}

static struct pkvm_item sysreg_item(const struct pkvm_vcpu *v, unsigned n)
{
	bool all = !v->is_protected, endian = v->hyp.exited && pkvm_exit_row(v->hyp.exit)->endianness;

	if (n == PKVM_SCTLR)
		return item(sysreg_names[n], all || endian, all ? v->ctxt.sysregs[n] : v->view.sctlr, why_hidden(v));
	return item(sysreg_names[n], all, v->ctxt.sysregs[n], HIDDEN_GUESTS);
}

bool pkvm_vcpu_item(const struct pkvm_vcpu *v, unsigned n, struct pkvm_item *out)
{
	if (n >= ITEM_COUNT)
		return false;
	if (n < ITEM_SP)
		*out = x_item(v, n);
	else if (n < ITEM_SYSREGS)
		*out = core_item(v, n);
	else if (n < ITEM_ESR)
		*out = sysreg_item(v, n - ITEM_SYSREGS);
	else
		*out = last_item(v, n);
	return true;
}

/* The same by the table alone. */

static uint64_t syndrome_bits(const struct pkvm_exit_row *row, enum pkvm_exit e)
{
	return shown_syndrome(row->syndrome, e, UINT64_MAX);
}

/* What is stored; of an access that cannot be decoded, or that is no write, it is hidden whatever the exit is called.
 */
static uint64_t stored_bits(uint64_t esr)
{
	return esr & ESR_VALID && esr & ESR_WRITE ? clamp(UINT64_MAX, access_bits(esr)) : 0;
}

static uint64_t x_bits(const struct pkvm_exit_row *row, enum pkvm_exit e, uint64_t esr, unsigned n)
{
	if (n == 0 && row->value)
		return is_data_abort(e) ? stored_bits(esr) : UINT64_MAX;
	return n < row->regs ? UINT64_MAX : 0;
}

static uint64_t exit_bits(enum pkvm_exit e, uint64_t esr, unsigned n)
{
	const struct pkvm_exit_row *row;

	if (e >= PKVM_EXIT_COUNT)
		return 0;
	row = pkvm_exit_row(e);
	switch (n) {
	case ITEM_PSTATE: return shown_pstate(row->mode, UINT64_MAX);
	case ITEM_SYSREGS + PKVM_SCTLR: return row->endianness ? SCTLR_ENDIAN : 0;
	case ITEM_ESR: return syndrome_bits(row, e);
	case ITEM_IPA: return row->page ? ~PAGE_BITS : 0;
	case ITEM_VA: return row->va_low ? PAGE_BITS : 0;
	default: return n < ITEM_SP ? x_bits(row, e, esr, n) : 0;
	}
}

/* May any exit show it? */
static bool is_ever_shown(unsigned n)
{
	return n < PW_ARRAY_LEN(((struct pkvm_host_view *)0)->x) || n == ITEM_PSTATE ||
	       n == ITEM_SYSREGS + PKVM_SCTLR || n == ITEM_ESR || n == ITEM_IPA || n == ITEM_VA;
}

static const char *item_name(unsigned n)
{
	static const char *const core[] = { "sp", "pc", "pstate" };
	static const char *const last[] = { "ESR_EL2", "fault IPA", "fault VA", "v0-v31" };

	if (n < ITEM_SP)
		return x_names[n];
	if (n < ITEM_SYSREGS)
		return core[n - ITEM_SP];
	return n < ITEM_ESR ? sysreg_names[n - ITEM_SYSREGS] : last[n - ITEM_ESR];
}

static const char *exit_why(enum pkvm_exit e, unsigned n, uint64_t bits)
{
	if (bits)
		return bits == UINT64_MAX ? SHOWN_WHOLE : SHOWN_BITS;
	if (!is_ever_shown(n))
		return HIDDEN_GUESTS;
	if (e == PKVM_EXIT_COUNT)
		return HIDDEN_RUNS;
	return n == 0 && pkvm_exit_row(e)->value ? HIDDEN_ISV : HIDDEN_EXIT;
}

bool pkvm_exit_item(enum pkvm_exit e, uint64_t esr, unsigned n, struct pkvm_exit_item *out)
{
	if (n >= ITEM_COUNT)
		return false;
	*out = (struct pkvm_exit_item){ .name = item_name(n), .bits = exit_bits(e, esr, n) };
	out->constant = n == ITEM_ESR && e < PKVM_EXIT_COUNT && pkvm_exit_row(e)->syndrome == PKVM_ESR_SHARE;
	out->why = exit_why(e, n, out->bits);
	return true;
}

/* Digest. */

static uint64_t mix(uint64_t h, uint64_t x)
{
	h = (h ^ x) * 0x9e3779b97f4a7c15u;
	return h ^ h >> 29;
}

static uint64_t mix_vgic(uint64_t h, const struct pkvm_vgic *g)
{
	for (size_t i = 0; i < PKVM_HOST_LRS; i++)
		h = mix(h, g->lr[i]);
	return mix(h, g->vmcr);
}

uint64_t pkvm_vcpu_digest(const struct pkvm_vcpu *v)
{
	const struct pkvm_hyp_state *s = &v->hyp;
	const struct pkvm_host_view *view = &v->view;
	uint64_t words[sizeof v->ctxt / sizeof(uint64_t)], h = v->is_protected;

	static_assert(sizeof v->ctxt % sizeof(uint64_t) == 0, "registers are words, without padding");
	memcpy(words, &v->ctxt, sizeof v->ctxt);
	for (size_t i = 0; i < PW_ARRAY_LEN(words); i++)
		h = mix(h, words[i]);
	h = mix(mix(mix(mix(h, s->hcr), s->mdcr), s->cptr), s->vsesr);
	h = mix(mix(mix(mix(mix(h, s->esr), s->far), s->ipa), s->entry), s->entry_x0);
	h = mix(mix(mix(h, s->exit), s->power), s->exited);
	h = mix_vgic(mix_vgic(h, &s->vgic), &v->vgic);
	h = mix(mix(mix(mix(h, view->esr), view->ipa), view->va), view->reg_count);
	for (size_t i = 0; i < PW_ARRAY_LEN(view->x); i++)
		h = mix(h, view->x[i]);
	return mix(mix(mix(mix(h, view->pc), view->pstate), view->sctlr), view->exit);
}
