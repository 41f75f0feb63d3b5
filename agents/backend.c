#include "agents/backend.h"

#include "agents/machine.h"

#define MACHINE(name)                                    \
	{                                                \
		"emulated", #name, &machine_##name, NULL \
	}

/* clang-format off */
const struct backend_kind backend_kinds[] = {
	MACHINE(pef),
	MACHINE(tdx),
	MACHINE(pkvm),
	MACHINE(snp),
	MACHINE(cca),
	{ "kvm", NULL, NULL, backend_kvm_open },
	{ NULL, NULL, NULL, NULL },
};
/* clang-format on */

enum pw_status backend_open(const struct backend_kind *k, const struct backend_options *o, struct backend **out,
			    struct pw_err *err)
{
	return k->machine ? machine_open(k->machine, o, out, err) : k->open(o, out, err);
}
