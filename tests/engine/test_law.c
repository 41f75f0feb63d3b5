#include "engine/arch/law.h"
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <string.h>

static const struct arch_op *find(const char *name, bool framed, const struct arch_law **law)
{
	return arch_op_find(name, strlen(name), framed, law);
}

Test(law, tables_of_all_architectures_are_sound)
{
	cr_assert(arch_laws_are_sound());
}

Test(law, each_has_the_name_of_its_architecture_and_kvm_has_none)
{
	for (int a = 0; a < ARCH_COUNT; a++)
		if (a == ARCH_KVM)
			cr_expect_null(arch_laws[a]);
		else
			cr_expect_str_eq(arch_laws[a]->name, arch_name((enum arch)a));
}

Test(law, a_row_is_found_by_its_whole_name_and_whether_it_names_frames)
{
	const struct arch_law *law = NULL;
	const struct arch_op *with = find("snp.rmpupdate", true, &law), *without = find("snp.rmpupdate", false, NULL);

	cr_assert(with && without && with != without && with->framed && !without->framed);
	cr_assert_eq(law, arch_laws[ARCH_SNP]);
	cr_assert_not_null(find("pef.h_svm_page_in", true, NULL));
	cr_assert_null(find("pef.h_svm_page_in", false, NULL));
	cr_assert_null(find("snp.pvalidate", true, NULL));
	cr_assert_null(find("snp.rmpupdat", true, NULL));
	cr_assert_null(find("snp.rmpupdatee", true, NULL));
	cr_assert_null(find("rmpupdate", true, NULL));
	cr_assert_null(find("tdx.rmpupdate", true, NULL));
	cr_assert_null(find("share", false, NULL));
	cr_assert_null(find("", false, NULL));
	cr_assert_eq(arch_op_find("snp.rmpupdate and more", strlen("snp.rmpupdate"), true, NULL), with);
}

Test(law, every_row_of_every_law_is_found)
{
	for (int a = 0; a < ARCH_COUNT; a++)
		for (size_t i = 0; arch_laws[a] && i < arch_laws[a]->op_count; i++) {
			const struct arch_op *op = &arch_laws[a]->ops[i];
			const struct arch_law *law = NULL;

			cr_expect_eq(find(op->name, op->framed, &law), op, "%s", op->name);
			cr_expect_eq(law, arch_laws[a], "%s", op->name);
		}
}

Test(law, a_state_is_found_by_its_name_and_what_it_is)
{
	const struct arch_law *snp = arch_laws[ARCH_SNP];
	unsigned normal = arch_state_find(snp, "Hypervisor", GFN_NORMAL);
	unsigned shared = arch_state_find(snp, "Hypervisor", GFN_SHARED);

	cr_assert(normal != ARCH_REFUSED && shared != ARCH_REFUSED && normal != shared);
	cr_assert_eq(arch_state_find(snp, "Guest-Valid", GFN_SECURE_RESIDENT), snp->rest[GFN_SECURE_RESIDENT]);
	cr_assert_eq(arch_state_find(snp, "Guest-Valid", GFN_SECURE_OUT), ARCH_REFUSED);
	cr_assert_eq(arch_state_find(snp, "guest-valid", GFN_SECURE_RESIDENT), ARCH_REFUSED);
}

Test(law, an_operation_between_two_states_names_no_frames)
{
	const struct arch_law *snp = arch_laws[ARCH_SNP];
	unsigned invalid = arch_state_find(snp, "Guest-Invalid", GFN_SECURE_RESIDENT);
	unsigned valid = arch_state_find(snp, "Guest-Valid", GFN_SECURE_RESIDENT);
	unsigned normal = arch_state_find(snp, "Hypervisor", GFN_NORMAL);
	unsigned running = arch_vm_rest(snp, VM_SECURE);
	const struct arch_op *op = arch_op_between(snp, running, invalid, valid);

	cr_assert_not_null(op);
	cr_assert_str_eq(op->name, "snp.pvalidate");
	op = arch_op_between(snp, running, valid, invalid);
	cr_assert_not_null(op);
	cr_assert_str_eq(op->name, "snp.pvalidate_rescind");
	cr_assert_null(arch_op_between(snp, running, normal, valid), "that takes a frame");
}

/* LAUNCH_UPDATE is over once the guest runs: what it left undone in the ledger has another way, of two operations. */
Test(law, a_way_between_states_is_one_that_the_vms_state_has)
{
	const struct arch_law *snp = arch_laws[ARCH_SNP];
	unsigned launching = arch_vm_rest(snp, VM_TRANSIENT), running = arch_vm_rest(snp, VM_SECURE);
	unsigned pre = arch_state_find(snp, "Pre-Guest", GFN_SECURE_RESIDENT);
	unsigned invalid = arch_state_find(snp, "Guest-Invalid", GFN_SECURE_RESIDENT);
	unsigned valid = arch_state_find(snp, "Guest-Valid", GFN_SECURE_RESIDENT);

	cr_assert_str_eq(arch_op_between(snp, launching, pre, valid)->name, "snp.launch_update");
	cr_assert_str_eq(arch_op_between(snp, running, pre, valid)->name, "snp.page_reclaim");
	cr_assert_eq(arch_op_between(snp, running, pre, valid)->next[pre], invalid);
	cr_assert_str_eq(arch_op_between(snp, running, invalid, valid)->name, "snp.pvalidate");
	cr_assert_null(arch_op_between(snp, launching, valid, valid), "there is nothing to do");
}

/* From the law's table, not from its code. */
Test(law, pages_move_as_transitions_move_them)
{
	static const bool lawful[GFN_STATE_COUNT][GFN_STATE_COUNT] = {
		/*                         normal resident out  shared */
		[GFN_NORMAL] = { true, true, true, true },
		[GFN_SECURE_RESIDENT] = { false, true, true, true },
		[GFN_SECURE_OUT] = { false, true, true, true },
		[GFN_SHARED] = { false, true, true, true },
	};

	for (int now = 0; now < GFN_STATE_COUNT; now++)
		for (int next = 0; next < GFN_STATE_COUNT; next++)
			cr_expect_eq(arch_move_is_lawful((enum gfn_state)now, (enum gfn_state)next), lawful[now][next],
				     "%d to %d", now, next);
}

/* GHCI and MNG.INIT of TDX: bit 47 or 51, by the width of GPAs. RMM A5.2.1: the highest of 32 to 48 bits of an IPA. */
Test(law, only_tdx_and_cca_tell_aliases_by_an_address_bit)
{
	for (int a = 0; a < ARCH_COUNT; a++)
		for (unsigned bit = 0; arch_laws[a] && bit < 64; bit++)
			cr_expect_eq(arch_laws[a]->shared_bits >> bit & 1,
				     (a == ARCH_TDX && (bit == 47 || bit == 51)) ||
					     (a == ARCH_CCA && bit >= 31 && bit <= 47),
				     "%s, bit %u", arch_name((enum arch)a), bit);
}

/* POWER's rows against the reference's table of GFN operations and sub-states. */
Test(law, pef_moves_the_words_of_pfns)
{
	enum { NO, SI, SO, SH, X = ARCH_REFUSED };
	static const struct {
		const char *name;
		bool framed;
		uint8_t next[4];
	} rows[] = {
		{ "pef.h_svm_page_in", true, { SI, X, SI, SI } },
		{ "pef.h_svm_page_in_shared", false, { SH, SH, SH, SH } },
		{ "pef.h_svm_page_out", false, { NO, SO, SO, SH } },
	};
	const struct arch_law *pef = arch_laws[ARCH_PEF];

	for (size_t i = 0; i < PW_ARRAY_LEN(rows); i++)
		cr_expect(memcmp(find(rows[i].name, rows[i].framed, NULL)->next, rows[i].next, 4) == 0, "%s",
			  rows[i].name);
	for (int s = 0; s < VM_STATE_COUNT; s++)
		for (int op = 0; op < GFN_OP_COUNT; op++)
			cr_expect(!pef->trails[s][op].item && !pef->trails[s][op].done, "its agents use the law's own");
}
