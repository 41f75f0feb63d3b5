/* The tables of docs/arch-items.md are those of engine/arch/. */
#include <criterion/criterion.h>
#include <string.h>

#include "engine/arch/law.h"
#include "engine/ledger.h"
#include "tests/lib/docs.h"

static const char *const law_names[GFN_STATE_COUNT] = {
	[GFN_NORMAL] = "normal",
	[GFN_SECURE_RESIDENT] = "secure, resident",
	[GFN_SECURE_OUT] = "secure, out",
	[GFN_SHARED] = "shared",
};
static const struct {
	enum arch arch;
	const char *title;
} sections[] = {
	{ ARCH_PEF, "POWER PEF" }, { ARCH_SNP, "AMD SEV-SNP" }, { ARCH_TDX, "Intel TDX" },
	{ ARCH_CCA, "Arm CCA" },   { ARCH_PKVM, "pKVM" },
};

/* A state by its name, with what it is in the law where that tells two apart. */
static void print_state(FILE *out, const struct arch_law *law, unsigned s)
{
	bool alone = true;

	for (unsigned other = 0; other < law->state_count; other++)
		alone &= other == s || strcmp(law->states[other].name, law->states[s].name) != 0;
	fprintf(out, alone ? " %s |" : " %s (%s) |", law->states[s].name, law_names[law->states[s].is]);
}

static void print_states(FILE *out, const struct arch_law *law)
{
	fputs("| state | in the law | at rest |\n", out);
	docs_rule(out, 3);
	for (unsigned s = 0; s < law->state_count; s++)
		fprintf(out, "| %s | %s | %s |\n", law->states[s].name, law_names[law->states[s].is],
			law->rest[law->states[s].is] == s ? "yes" : "");
}

static void print_op(FILE *out, const struct arch_law *law, const struct arch_op *op)
{
	fprintf(out, "| `%s` | %s |", op->name, op->framed ? "yes" : "");
	for (unsigned s = 0; s < law->state_count; s++) {
		if (op->next[s] == ARCH_REFUSED)
			fputs(" - |", out);
		else if (op->next[s] == s)
			fputs(" stays |", out);
		else
			print_state(out, law, op->next[s]);
	}
	fprintf(out, " %s |\n", op->rule);
}

static void print_ops(FILE *out, const struct arch_law *law)
{
	fputs("| operation | frames |", out);
	for (unsigned s = 0; s < law->state_count; s++)
		print_state(out, law, s);
	fputs(" rule |\n", out);
	docs_rule(out, law->state_count + 3);
	for (size_t i = 0; i < law->op_count; i++)
		print_op(out, law, &law->ops[i]);
}

static void print_vm_state(FILE *out, const struct arch_law *law, unsigned s)
{
	bool alone = true;

	for (unsigned other = 0; other < law->vm_state_count; other++)
		alone &= other == s || strcmp(law->vm_states[other].name, law->vm_states[s].name) != 0;
	fprintf(out, alone ? "%s" : "%s (%s)", law->vm_states[s].name, vm_state_name(law->vm_states[s].is));
}

static void print_vm_states(FILE *out, const struct arch_law *law)
{
	fputs("| state of the VM | in the law | init_done leads to |\n", out);
	docs_rule(out, 3);
	for (unsigned s = 0; s < law->vm_state_count; s++) {
		const struct arch_vm_state *state = &law->vm_states[s];

		fprintf(out, "| %s | %s | ", state->name, vm_state_name(state->is));
		if (state->done == ARCH_REFUSED)
			fputs("-", out);
		else
			print_vm_state(out, law, state->done);
		fputs(" |\n", out);
	}
}

static void print_legal_states(FILE *out, const struct arch_law *law, const struct arch_op *op)
{
	const char *between = "";

	if (op->vms == (1u << law->vm_state_count) - 1) {
		fputs("any", out);
		return;
	}
	for (unsigned s = 0; s < law->vm_state_count; s++) {
		if (!arch_op_fits_vm(op, s))
			continue;
		fputs(between, out);
		print_vm_state(out, law, s);
		between = ", ";
	}
}

static void print_vm_column(FILE *out, const struct arch_law *law)
{
	fputs("| operation | frames | while the VM is | rule |\n", out);
	docs_rule(out, 4);
	for (size_t i = 0; i < law->op_count; i++) {
		const struct arch_op *op = &law->ops[i];

		fprintf(out, "| `%s` | %s | ", op->name, op->framed ? "yes" : "");
		print_legal_states(out, law, op);
		fprintf(out, " | %s |\n", op->vms_rule);
	}
}

static void print_vm_ops(FILE *out, const struct arch_law *law)
{
	if (law->vm_op_count == 0)
		return;
	fputs("\n| step | from | to | rule |\n", out);
	docs_rule(out, 4);
	for (size_t i = 0; i < law->vm_op_count; i++)
		for (unsigned s = 0; s < law->vm_state_count; s++) {
			if (law->vm_ops[i].next[s] == ARCH_REFUSED)
				continue;
			fprintf(out, "| `%s` | ", law->vm_ops[i].name);
			print_vm_state(out, law, s);
			fputs(" | ", out);
			print_vm_state(out, law, law->vm_ops[i].next[s]);
			fprintf(out, " | %s |\n", law->vm_ops[i].rule);
		}
}

static void print_page(FILE *out)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(sections); i++) {
		const struct arch_law *law = arch_laws[sections[i].arch];

		fprintf(out, "%s## %s (`%s`)\n\n", i ? "\n" : "", sections[i].title, law->name);
		print_states(out, law);
		fputs("\n", out);
		print_ops(out, law);
		fputs("\n", out);
		print_vm_states(out, law);
		fputs("\n", out);
		print_vm_column(out, law);
		print_vm_ops(out, law);
	}
}

Test(arch_docs, the_page_shows_every_architecture)
{
	static const docs_print_fn tables[] = { print_page };
	unsigned seen = 0;

	for (size_t i = 0; i < PW_ARRAY_LEN(sections); i++)
		seen |= 1u << sections[i].arch;
	for (int a = 0; a < ARCH_COUNT; a++)
		cr_expect_eq(seen >> a & 1, arch_laws[a] != NULL, "%s", arch_name((enum arch)a));
	docs_expect("docs/arch-items.md", tables, PW_ARRAY_LEN(tables));
}
