#include "agents/backend.h"

const struct backend_kind backend_kinds[] = {
	{ "emulated", "pef", "an exact model of a POWER host with an ultravisor (64 KiB pages)", backend_pef_open },
	{ "kvm", NULL, "real VMs on /dev/kvm", backend_kvm_open },
	{ NULL, NULL, NULL, NULL },
};
