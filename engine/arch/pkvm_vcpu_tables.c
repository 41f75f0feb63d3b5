#include "engine/arch/pkvm_vcpu.h"

#include <string.h>

#define TEXT_(name, text)         [name] = text,
#define TEXT3_(name, text, value) [name] = text,
#define VALUE_(name, text, value) [name] = value,
#define TEXTID_(name)             [PKVM_ID_##name] = #name,
static const char *const code_names[PKVM_CODE_COUNT] = { PKVM_CODES(TEXT3_) };
static const int code_values[PKVM_CODE_COUNT] = { PKVM_CODES(VALUE_) };
static const char *const exit_names[PKVM_EXIT_COUNT] = { PKVM_EXITS(TEXT_) };
static const char *const power_names[PKVM_POWER_COUNT] = { PKVM_POWERS(TEXT_) };
static const char *const user_call_names[PKVM_USER_CALL_COUNT] = { PKVM_USER_CALLS(TEXT_) };
static const char *const id_register_names[PKVM_ID_COUNT] = { PKVM_ID_REGISTERS(TEXTID_) };

const char *pkvm_code_name(enum pkvm_code c)
{
	return code_names[c];
}

int pkvm_code_value(enum pkvm_code c)
{
	return code_values[c];
}

const char *pkvm_exit_name(enum pkvm_exit e)
{
	return exit_names[e];
}

const char *pkvm_power_name(enum pkvm_power p)
{
	return power_names[p];
}

const char *pkvm_user_call_name(enum pkvm_user_call c)
{
	return user_call_names[c];
}

const char *pkvm_id_register_name(enum pkvm_id_register r)
{
	return id_register_names[r];
}

/* clang-format off */

/* What flows out at each exit of a protected vCPU, and what may flow in. */
#define BOTH    { true, true }
#define MAIN    { true, false }
#define ANDROID { false, true }
#define NEVER   { false, false }
#define ROW(who, regs, value, mode, endian, syndrome, page, va, may)                                          \
	{ true, who, regs, value, PKVM_MODE_##mode, endian, PKVM_ESR_##syndrome, page, va, may }
#define RESULT PKVM_MAY_RESULT
#define SKIP   PKVM_MAY_SKIP
#define FILL   PKVM_MAY_FILL
#define UNDEF  PKVM_MAY_UNDEF
#define ABORT  PKVM_MAY_ABORT

static const struct pkvm_exit_row exit_rows[PKVM_EXIT_COUNT] = {
	/*                                who      x  value  mode         endian syndrome     page   va     may */
	[PKVM_EXIT_IRQ]             = ROW(BOTH,    0, false, HIDDEN,      false, WHOLE,       false, false, 0),
	[PKVM_EXIT_SERROR]          = ROW(BOTH,    0, false, HIDDEN,      false, WHOLE,       false, false, 0),
	[PKVM_EXIT_ILLEGAL]         = ROW(BOTH,    0, false, HIDDEN,      false, WHOLE,       false, false, 0),
	[PKVM_EXIT_WFX]             = ROW(BOTH,    0, false, SHOWN_A_SET, false, NO_REGISTER, false, false, SKIP),
	[PKVM_EXIT_CPU_ON]          = ROW(BOTH,    2, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_CPU_OFF]         = ROW(BOTH,    1, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_CPU_SUSPEND]     = ROW(BOTH,    1, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_SYSTEM_OFF]      = ROW(BOTH,    1, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_SYSTEM_RESET]    = ROW(BOTH,    1, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_SYSTEM_RESET2]   = ROW(BOTH,    3, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_AFFINITY_INFO]   = ROW(MAIN,    3, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_MEM_RELINQUISH]  = ROW(ANDROID, 4, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_DEVICE_POWER]    = ROW(ANDROID, 3, false, HIDDEN,      false, WHOLE,       false, false, RESULT),
	[PKVM_EXIT_HVC_OTHER]       = ROW(NEVER,   0, false, HIDDEN,      false, WHOLE,       false, false, 0),
	[PKVM_EXIT_SYSREG_READ]     = ROW(BOTH,    0, false, SHOWN,       false, NO_REGISTER, false, false, FILL | SKIP | UNDEF),
	[PKVM_EXIT_SYSREG_WRITE]    = ROW(BOTH,    0, true,  SHOWN,       false, NO_REGISTER, false, false, SKIP | UNDEF),
	[PKVM_EXIT_IABT]            = ROW(BOTH,    0, false, HIDDEN,      false, WHOLE,       true,  false, ABORT),
	[PKVM_EXIT_LOAD]            = ROW(BOTH,    0, false, SHOWN,       true,  NO_REGISTER, true,  true,  FILL | SKIP | ABORT),
	[PKVM_EXIT_STORE]           = ROW(BOTH,    0, true,  SHOWN,       true,  NO_REGISTER, true,  true,  SKIP | ABORT),
	[PKVM_EXIT_OPAQUE]          = ROW(BOTH,    0, false, SHOWN,       true,  NO_VALID,    true,  true,  ABORT),
	[PKVM_EXIT_SHARE]           = ROW(BOTH,    0, false, HIDDEN,      false, SHARE,       true,  false, 0),
};
#undef BOTH
#undef MAIN
#undef ANDROID
#undef NEVER
#undef ROW
#undef RESULT
#undef SKIP
#undef FILL
#undef UNDEF
#undef ABORT

static const struct pkvm_power_row power_rows[PKVM_POWER_COUNT] = {
	/*                       CPU_ON                    runs   resets */
	[PKVM_POWER_OFF]     = { 0,                        false, false },
	[PKVM_POWER_PENDING] = { PKVM_PSCI_ON_PENDING,     true,  true  },
	[PKVM_POWER_ON]      = { PKVM_PSCI_ALREADY_ON,     true,  false },
};

/* Of a protected VM. */
static const enum pkvm_code user_codes[PKVM_USER_CALL_COUNT] = {
	[PKVM_USER_GET_REG]        = PKVM_EPERM,
	[PKVM_USER_SET_REG]        = PKVM_EPERM,
	[PKVM_USER_INIT_AGAIN]     = PKVM_EPERM,
	[PKVM_USER_DEBUG]          = PKVM_EPERM,
	[PKVM_USER_INJECT_ABORT]   = PKVM_EPERM,
	[PKVM_USER_BAD_FEATURE]    = PKVM_EINVAL,
	[PKVM_USER_OLD_PSCI]       = PKVM_EINVAL,
	[PKVM_USER_COUNTER_OFFSET] = PKVM_EINVAL,
	[PKVM_USER_ABSENT]         = PKVM_ENXIO,
	[PKVM_USER_SLOT_CHANGE]    = PKVM_EPERM,
	[PKVM_USER_SLOT_READONLY]  = PKVM_EPERM,
	[PKVM_USER_DIRTY_LOG]      = PKVM_EPERM,
};

/* The greatest value of each field. A maximum that the source names by its feature alone is taken for 1: inferred. */
#define FIELD(reg, name, shift, max)           { PKVM_ID_##reg, #name, shift, max, false, PKVM_GRANTED, false }
#define NAMED(reg, name, shift)                { PKVM_ID_##reg, #name, shift, 1, false, PKVM_GRANTED, true }
#define SIGNED(reg, name, shift, max)          { PKVM_ID_##reg, #name, shift, max, true, PKVM_GRANTED, false }
#define GRANT(reg, name, shift, grant)         { PKVM_ID_##reg, #name, shift, 1, false, PKVM_IF_##grant, true }

static const struct pkvm_id_field id_fields[] = {
	FIELD(PFR0, EL0, 0, 1), FIELD(PFR0, EL1, 4, 1), FIELD(PFR0, EL2, 8, 1), FIELD(PFR0, EL3, 12, 1),
	SIGNED(PFR0, FP, 16, 1), SIGNED(PFR0, AdvSIMD, 20, 1), NAMED(PFR0, GIC, 24), FIELD(PFR0, RAS, 28, 1),
	GRANT(PFR0, SVE, 32, SVE), NAMED(PFR0, DIT, 48), FIELD(PFR0, CSV2, 56, 1), NAMED(PFR0, CSV3, 60),
	NAMED(PFR1, BT, 0), FIELD(PFR1, SSBS, 4, 2),
	FIELD(ISAR1, DPB, 0, 2), GRANT(ISAR1, APA, 4, PTRAUTH), GRANT(ISAR1, API, 8, PTRAUTH),
	NAMED(ISAR1, JSCVT, 12), NAMED(ISAR1, FCMA, 16), FIELD(ISAR1, LRCPC, 20, 3), NAMED(ISAR1, GPA, 24),
	NAMED(ISAR1, GPI, 28), NAMED(ISAR1, FRINTTS, 32), NAMED(ISAR1, SB, 36), NAMED(ISAR1, SPECRES, 40),
	NAMED(ISAR1, BF16, 44), NAMED(ISAR1, DGH, 48), NAMED(ISAR1, I8MM, 52),
	GRANT(ISAR2, GPA3, 8, PTRAUTH), GRANT(ISAR2, APA3, 12, PTRAUTH), NAMED(ISAR2, ATS1A, 60),
	FIELD(MMFR0, PARANGE, 0, 2), FIELD(MMFR0, ASIDBITS, 4, 2), NAMED(MMFR0, BIGEND, 8), NAMED(MMFR0, SNSMEM, 12),
	NAMED(MMFR0, BIGENDEL0, 16), NAMED(MMFR0, EXS, 44),
	FIELD(MMFR1, HAFDBS, 0, 2), FIELD(MMFR1, VMIDBits, 4, 2), FIELD(MMFR1, HPDS, 12, 2), FIELD(MMFR1, PAN, 20, 3),
	NAMED(MMFR1, SpecSEI, 24), NAMED(MMFR1, ETS, 36), NAMED(MMFR1, CMOW, 56),
	NAMED(MMFR2, CnP, 0), NAMED(MMFR2, UAO, 4), NAMED(MMFR2, IESB, 12), NAMED(MMFR2, AT, 32), NAMED(MMFR2, IDS, 36),
	NAMED(MMFR2, TTL, 48), FIELD(MMFR2, BBM, 52, 2), NAMED(MMFR2, E0PD, 60),
};
#undef FIELD
#undef NAMED
#undef SIGNED
#undef GRANT

/* Register accesses that trap to EL2. What is not listed is undefined. */
static const struct {
	const char *name;
	enum pkvm_trapped reads, writes;
} trapped_registers[] = {
	{ "REVIDR_EL1",       PKVM_TRAP_HOST,   PKVM_TRAP_HOST   }, { "CCSIDR_EL1",    PKVM_TRAP_HOST,   PKVM_TRAP_HOST   },
	{ "CLIDR_EL1",        PKVM_TRAP_HOST,   PKVM_TRAP_HOST   }, { "AIDR_EL1",      PKVM_TRAP_HOST,   PKVM_TRAP_HOST   },
	{ "CSSELR_EL1",       PKVM_TRAP_HOST,   PKVM_TRAP_HOST   }, { "CTR_EL0",       PKVM_TRAP_HOST,   PKVM_TRAP_HOST   },
	{ "ICC_SGI0R_EL1",    PKVM_TRAP_HOST,   PKVM_TRAP_HOST   }, { "ICC_SGI1R_EL1", PKVM_TRAP_HOST,   PKVM_TRAP_HOST   },
	{ "ICC_ASGI1R_EL1",   PKVM_TRAP_HOST,   PKVM_TRAP_HOST   }, { "CNTP_TVAL_EL0", PKVM_TRAP_HOST,   PKVM_TRAP_HOST   },
	{ "CNTP_CTL_EL0",     PKVM_TRAP_HOST,   PKVM_TRAP_HOST   }, { "CNTP_CVAL_EL0", PKVM_TRAP_HOST,   PKVM_TRAP_HOST   },
	{ "ERRIDR_EL1",       PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI }, { "ERRSELR_EL1",   PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI },
	{ "ERXFR_EL1",        PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI }, { "ERXCTLR_EL1",   PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI },
	{ "ERXSTATUS_EL1",    PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI }, { "ERXADDR_EL1",   PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI },
	{ "ERXMISC0_EL1",     PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI }, { "ERXMISC1_EL1",  PKVM_TRAP_RAZ_WI, PKVM_TRAP_RAZ_WI },
	{ "ID_AA64PFR0_EL1",  PKVM_TRAP_ID,     PKVM_TRAP_UNDEF  }, { "ID_AA64PFR1_EL1",  PKVM_TRAP_ID,  PKVM_TRAP_UNDEF  },
	{ "ID_AA64ISAR0_EL1", PKVM_TRAP_ID,     PKVM_TRAP_UNDEF  }, { "ID_AA64ISAR1_EL1", PKVM_TRAP_ID,  PKVM_TRAP_UNDEF  },
	{ "ID_AA64ISAR2_EL1", PKVM_TRAP_ID,     PKVM_TRAP_UNDEF  }, { "ID_AA64MMFR0_EL1", PKVM_TRAP_ID,  PKVM_TRAP_UNDEF  },
	{ "ID_AA64MMFR1_EL1", PKVM_TRAP_ID,     PKVM_TRAP_UNDEF  }, { "ID_AA64MMFR2_EL1", PKVM_TRAP_ID,  PKVM_TRAP_UNDEF  },
	{ "ID_AA64MMFR4_EL1", PKVM_TRAP_ID,     PKVM_TRAP_UNDEF  }, { "ID_AA64DFR0_EL1",  PKVM_TRAP_ID,  PKVM_TRAP_UNDEF  },
};
/* clang-format on */

const struct pkvm_exit_row *pkvm_exit_row(enum pkvm_exit e)
{
	return &exit_rows[e];
}

const struct pkvm_power_row *pkvm_power_row(enum pkvm_power p)
{
	return &power_rows[p];
}

enum pkvm_code pkvm_user_call(bool is_protected, enum pkvm_user_call c)
{
	return is_protected ? user_codes[c] : PKVM_OK;
}

const struct pkvm_id_field *pkvm_id_fields(size_t *count)
{
	*count = PW_ARRAY_LEN(id_fields);
	return id_fields;
}

/* Other registers of the ID space read 0 as well. */
enum pkvm_trapped pkvm_trapped(const char *name, bool is_write)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(trapped_registers); i++)
		if (strcmp(trapped_registers[i].name, name) == 0)
			return is_write ? trapped_registers[i].writes : trapped_registers[i].reads;
	return strncmp(name, "ID_", 3) == 0 && !is_write ? PKVM_TRAP_ID : PKVM_TRAP_UNDEF;
}
