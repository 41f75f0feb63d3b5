/* The ledger's law of POWER PEF pages, held against the model: each row is done to a page in each state. */
#include "engine/arch/law.h"
#include "engine/arch/pef.h"
#include "engine/ledger.h"

#include <criterion/criterion.h>
#include <string.h>

#define FRAME 3 /* that an item names */

static const struct pef_call usual = { 0 }, refusing = { .uv_refuse = 1 };

struct world {
	struct pw_mem mem;
	struct pef m;
	struct pef_vm *vm;
};

static const struct arch_law *law(void)
{
	return arch_laws[ARCH_PEF];
}

/* What the law calls a word of pfns[]: by its flag. */
static unsigned law_state(enum pef_gfn_state s)
{
	static const struct {
		const char *name;
		enum gfn_state is;
	} words[PEF_GFN_STATE_COUNT] = {
		[PEF_SI] = { "KVMPPC_GFN_UVMEM_PFN", GFN_SECURE_RESIDENT },
		[PEF_SO] = { "KVMPPC_GFN_MEM_PFN", GFN_SECURE_OUT },
		[PEF_SH] = { "KVMPPC_GFN_SHARED", GFN_SHARED },
		[PEF_NO] = { "no flag", GFN_NORMAL },
	};
	unsigned found = arch_state_find(law(), words[s].name, words[s].is);

	cr_assert_neq(found, ARCH_REFUSED, "%s", words[s].name);
	return found;
}

static enum pef_gfn_state word(const struct world *w)
{
	return pef_state(w->vm, 0);
}

static bool event(struct world *w, enum pef_vm_event ev)
{
	enum pef_code code;

	cr_assert_eq(pef_vm_call(&w->m, w->vm, ev, &usual, &code), PW_OK);
	return code == PEF_H_SUCCESS;
}

static bool page_in(struct world *w, bool shared)
{
	const uint64_t frame = FRAME;
	struct pef_pages p = { .count = 1,
			       .order = PEF_PAGE_SHIFT,
			       .flags = shared ? PEF_PAGE_IN_SHARED : 0,
			       .frames = shared ? NULL : &frame };
	enum pef_code code;

	cr_assert_eq(pef_page_in(&w->m, w->vm, &p, &usual, &code), PW_OK);
	return code == PEF_H_SUCCESS;
}

static bool page_out(struct world *w)
{
	struct pef_pages p = { .count = 1, .order = PEF_PAGE_SHIFT };
	enum pef_code code;

	cr_assert_eq(pef_page_out(&w->m, w->vm, &p, &usual, &code), PW_OK);
	return code == PEF_H_SUCCESS;
}

static enum pef_code touch(struct world *w, const struct pef_call *how)
{
	enum pef_code code;

	cr_assert_eq(pef_touch(&w->m, w->vm, 0, 1, how, &code), PW_OK);
	return code;
}

/* A VM that is transient or secure, its only page in the state. False: no secure VM has such a page. */
static bool begin(struct world *w, bool secure, enum pef_gfn_state s)
{
	struct pef_slot slot = { 0, 0, 1 };
	enum pef_code code;

	*w = (struct world){ 0 };
	cr_assert_eq(pef_init(&w->m, &w->mem, FRAME + 1, PEF_LEFT_RESIDENT), PW_OK);
	cr_assert_eq(pef_vm_new(&w->m, true, true, &w->vm), PW_OK);
	cr_assert(pef_slot_add(&w->m, w->vm, &slot, &usual, &code) == PW_OK && code == PEF_H_SUCCESS);
	cr_assert(event(w, PEF_INIT_START));
	if (s == PEF_SI || s == PEF_SO)
		cr_assert(page_in(w, false));
	if (s == PEF_SO)
		cr_assert(page_out(w));
	if (s == PEF_SH)
		cr_assert(page_in(w, true));
	cr_assert(!secure || event(w, PEF_INIT_DONE));
	cr_assert(word(w) == s || (secure && s == PEF_NO));
	return word(w) == s;
}

static void end(struct world *w)
{
	cr_expect(pef_check(&w->m));
	pef_release(&w->m);
	cr_expect_eq(w->mem.used, 0);
}

/* The hypervisor's calls, as the model has them. False: refused, or there is nothing to call for. */

static bool do_page_in(struct world *w)
{
	return page_in(w, false);
}

static bool do_share(struct world *w)
{
	return page_in(w, true);
}

/* The host touches the page: the ultracall is made where its refusal would be a signal. */
static bool do_touch(struct world *w)
{
	return touch(w, &refusing) == PEF_SIGBUS && touch(w, &usual) == PEF_H_SUCCESS;
}

static const struct {
	const char *name;
	bool framed;
	bool (*call)(struct world *w);
} calls[] = {
	{ "pef.h_svm_page_in", true, do_page_in },
	{ "pef.h_svm_page_in_shared", false, do_share },
	{ "pef.h_svm_page_out", false, page_out },
	{ "pef.uv_page_out", false, do_touch },
};

static const struct arch_op *row(const char *name, bool framed)
{
	const struct arch_law *whose;
	const struct arch_op *op = arch_op_find(name, strlen(name), framed, &whose);

	cr_assert(op && whose == law(), "%s", name);
	return op;
}

/* A page that becomes resident takes the frame that is named, one that no longer is gives its frame back. */
static void compare(size_t call, bool secure, enum pef_gfn_state s)
{
	const struct arch_op *op = row(calls[call].name, calls[call].framed);
	uint8_t next = op->next[law_state(s)];
	struct world w;
	struct pef_run run;
	bool done;

	if (begin(&w, secure, s)) {
		done = calls[call].call(&w);
		cr_expect_eq(done, next != ARCH_REFUSED, "%s of %s: the model says %s", op->name, pef_gfn_state_name(s),
			     done ? "yes" : "no");
		cr_expect_eq(law_state(word(&w)), done ? next : law_state(s), "%s of %s: the model says %s", op->name,
			     pef_gfn_state_name(s), pef_gfn_state_name(word(&w)));
		cr_assert(pef_run_at(w.vm, 0, 1, &run));
		cr_expect(word(&w) != PEF_SI || run.frame == FRAME);
		cr_expect_eq(w.m.used, law()->states[law_state(word(&w))].is == GFN_SECURE_RESIDENT);
	}
	end(&w);
}

Test(pef_law, hypercalls_do_what_the_model_does)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(calls); i++)
		for (int s = 0; s < PEF_GFN_STATE_COUNT; s++) {
			compare(i, false, (enum pef_gfn_state)s);
			compare(i, true, (enum pef_gfn_state)s);
		}
}

/* The ultravisor's states of a page, as far as its calls on a page in order lead; from ultravisor svm_host.c. */
enum uv { UV_SECURE, UV_PAGEDOUT, UV_SHARED, UV_SHARED_INV, UV_HV_SHARING, UV_HV_UNSHARING, UV_ERROR };

/* clang-format off */
static const struct {
	const char *name;
	enum uv next[UV_SHARED_INV + 1];
} ultracalls[] = {
	/*                         SECURE         PAGEDOUT       SHARED           SHARED_INV */
	{ "pef.uv_page_in",      { UV_ERROR,      UV_SECURE,     UV_SHARED,       UV_SHARED } },
	{ "pef.uv_page_inval",   { UV_ERROR,      UV_ERROR,      UV_SHARED_INV,   UV_SHARED_INV } },
	{ "pef.uv_share_page",   { UV_HV_SHARING, UV_HV_SHARING, UV_SHARED,       UV_SHARED_INV } },
	{ "pef.uv_unshare_page", { UV_SECURE,     UV_PAGEDOUT,   UV_HV_UNSHARING, UV_HV_UNSHARING } },
};
/* clang-format on */

/* May the hypervisor's word be this while the ultravisor's state is that? A sharing waits for H_SVM_PAGE_IN. */
static bool agree(enum pef_gfn_state s, enum uv uv)
{
	switch (uv) {
	case UV_SECURE: return s == PEF_SI;
	case UV_PAGEDOUT: return s == PEF_SO;
	case UV_HV_SHARING: return s == PEF_SI || s == PEF_SO;
	case UV_SHARED:
	case UV_SHARED_INV:
	case UV_HV_UNSHARING: return s == PEF_SH;
	case UV_ERROR: break;
	}
	return false;
}

/* Is the call possible from each state that the ultravisor may have the page in, and the word still true after it?
 * A fault of a page that is paged in calls nobody and is over. */
static bool leaves_the_word(size_t call, enum pef_gfn_state s)
{
	if (s == PEF_SI && strcmp(ultracalls[call].name, "pef.uv_page_in") == 0)
		return true;
	for (enum uv uv = UV_SECURE; uv <= UV_SHARED_INV; uv++)
		if (agree(s, uv) && !agree(s, ultracalls[call].next[uv]))
			return false;
	return true;
}

/* They are of guests that run, in secure VMs: such a VM has no normal page. None changes a word. */
Test(pef_law, ultracalls_leave_the_word_or_are_refused)
{
	for (size_t i = 0; i < PW_ARRAY_LEN(ultracalls); i++)
		for (int s = 0; s < PEF_GFN_STATE_COUNT; s++) {
			unsigned from = law_state((enum pef_gfn_state)s);
			struct world w;
			bool possible =
				begin(&w, true, (enum pef_gfn_state)s) && leaves_the_word(i, (enum pef_gfn_state)s);

			cr_expect_eq(row(ultracalls[i].name, false)->next[from], possible ? from : ARCH_REFUSED,
				     "%s of %s", ultracalls[i].name, pef_gfn_state_name((enum pef_gfn_state)s));
			end(&w);
		}
}

/* A guest's request is its ultracall, then the hypercall by which the word follows. */
Test(pef_law, a_share_and_an_unshare_end_with_the_hypercall)
{
	static const enum pef_gfn_state secure[] = { PEF_SI, PEF_SO };
	unsigned s;

	for (size_t i = 0; i < PW_ARRAY_LEN(secure); i++) {
		s = row("pef.uv_share_page", false)->next[law_state(secure[i])];
		cr_assert_neq(s, ARCH_REFUSED);
		cr_expect_eq(row("pef.h_svm_page_in_shared", false)->next[s], law_state(PEF_SH));
	}
	s = row("pef.uv_unshare_page", false)->next[law_state(PEF_SH)];
	cr_assert_neq(s, ARCH_REFUSED);
	cr_expect_eq(row("pef.h_svm_page_in", true)->next[s], law_state(PEF_SI));
}

Test(pef_law, has_a_state_for_each_word_and_a_row_for_each_call)
{
	bool seen[PEF_GFN_STATE_COUNT] = { false };

	cr_assert_eq(law()->state_count, PEF_GFN_STATE_COUNT);
	cr_expect_eq(law()->op_count, PW_ARRAY_LEN(calls) + PW_ARRAY_LEN(ultracalls));
	for (int s = 0; s < PEF_GFN_STATE_COUNT; s++) {
		unsigned at = law_state((enum pef_gfn_state)s);

		cr_expect(!seen[at]);
		seen[at] = true;
		cr_expect_eq(law()->rest[law()->states[at].is], at);
	}
}
