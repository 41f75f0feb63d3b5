/* pagewarden measure: the launch digest that a guest will have, from its firmware's image. */
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/cli.h"
#include "api/measure_snp.h"
#include "api/measure_tdx.h"

#define VCPUS_MAX 4096

/* The option's number, decimal or 0x...; `absent` if it was not given. False: it is none, or above `most`. */
static bool read_number(const struct cli *c, enum cli_option o, uint64_t absent, uint64_t most, uint64_t *out)
{
	const char *text = c->option[o];
	char *end;

	*out = absent;
	if (!text)
		return true;
	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	*out = strtoull(text, &end, 0);
	return !errno && !*end && *out <= most;
}

static enum cli_exit print_digest(enum pw_status st, const char *hex, const struct pw_err *err)
{
	if (st != PW_OK)
		return cli_usage("%s", err->msg);
	puts(hex);
	return CLI_DONE;
}

static enum cli_exit run_snp(const struct cli *c)
{
	struct measure_snp_files f = {
		.ovmf = c->option[OPTION_OVMF],
		.vcpu_type = c->option[OPTION_VCPU_TYPE],
		.kernel = c->option[OPTION_KERNEL],
		.initrd = c->option[OPTION_INITRD],
		.cmdline = c->option[OPTION_CMDLINE],
	};
	struct pw_err err = { PW_OK, "" };
	char hex[MEASURE_SNP_HEX];
	uint64_t vcpus;

	if (!f.ovmf)
		return cli_usage("measure snp needs --ovmf FILE");
	if ((f.initrd || f.cmdline) && !f.kernel)
		return cli_usage("--initrd and --cmdline go with --kernel");
	if (!read_number(c, OPTION_VCPUS, 1, VCPUS_MAX, &vcpus) || !vcpus)
		return cli_usage("--vcpus is a number from 1 to %d", VCPUS_MAX);
	if (!read_number(c, OPTION_FEATURES, MEASURE_SNP_FEATURES, UINT64_MAX, &f.features))
		return cli_usage("--features is a number of 64 bits");
	if (c->option[OPTION_VMM] && measure_snp_vmm_named(c->option[OPTION_VMM], &f.vmm, &err) != PW_OK)
		return cli_usage("%s", err.msg);
	f.vcpus = (unsigned)vcpus;
	return print_digest(measure_snp_files(&f, hex, &err), hex, &err);
}

static enum cli_exit run_tdx(const struct cli *c)
{
	struct pw_err err = { PW_OK, "" };
	char hex[MRTD_HEX];

	if (!c->option[OPTION_TDVF])
		return cli_usage("measure tdx needs --tdvf FILE");
	return print_digest(measure_tdx_file(c->option[OPTION_TDVF], MEASURE_TDX_BY_PAGE, hex, &err), hex, &err);
}

/* Which options each kind of guest has: others are a mistake. */
static const struct kind {
	const char *name;
	enum cli_exit (*run)(const struct cli *c);
	enum cli_option options[8];
	size_t option_count;
} kinds[] = {
	{ "snp",
	  run_snp,
	  { OPTION_OVMF, OPTION_VCPUS, OPTION_VCPU_TYPE, OPTION_FEATURES, OPTION_VMM, OPTION_KERNEL, OPTION_INITRD,
	    OPTION_CMDLINE },
	  8 },
	{ "tdx", run_tdx, { OPTION_TDVF }, 1 },
};

static bool has_option(const struct kind *kind, enum cli_option o)
{
	for (size_t i = 0; i < kind->option_count; i++)
		if (kind->options[i] == o)
			return true;
	return false;
}

enum cli_exit cli_measure(struct cli *c)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(kinds); i++) {
		if (strcmp(kinds[i].name, c->args[0]) != 0)
			continue;
		for (int o = OPTION_JSON + 1; o < OPTION_HELP; o++)
			if (c->option[o] && !has_option(&kinds[i], (enum cli_option)o))
				return cli_usage("measure %s does not have all of these options", kinds[i].name);
		return kinds[i].run(c);
	}
	return cli_usage("measure snp or measure tdx, not \"%.64s\"", c->args[0]);
}
