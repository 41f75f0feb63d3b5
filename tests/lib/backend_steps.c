/* Steps that tests take on a backend; see the header. */
#include "tests/lib/backend_steps.h"

#include <criterion/criterion.h>
#include <stdlib.h>

struct pw_err step_err;

void step_make_vm(struct backend *b, const struct pw_uuid *id, uint64_t pages)
{
	struct slot s = { 0, 0, pages };
	struct backend_vm_spec spec = { .id = *id, .slots = &s, .slot_count = 1 };

	cr_assert_eq(b->ops->create_vm(b, &spec, &step_err), PW_OK, "%s", step_err.msg);
}

void step_event(struct backend *b, const struct pw_uuid *id, enum vm_event e)
{
	cr_assert_eq(b->ops->vm_event(b, id, e, &step_err), PW_OK, "%s", step_err.msg);
}

void step_make_secure(struct backend *b, const struct pw_uuid *id, uint64_t pages)
{
	step_make_vm(b, id, pages);
	step_event(b, id, VM_INIT_START);
	step_event(b, id, VM_INIT_DONE);
}

enum pw_status step_try_in(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count)
{
	uint64_t *pfns = calloc(count, sizeof *pfns);
	enum pw_status st = b->ops->reserve(b, id, gfn, count, pfns, &step_err);

	if (st == PW_OK) {
		st = b->ops->page_in(b, id, gfn, count, pfns, &step_err);
		if (st != PW_OK)
			b->ops->unreserve(b, id, gfn, count, pfns);
	}
	free(pfns);
	return st;
}

void step_in(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count)
{
	cr_assert_eq(step_try_in(b, id, gfn, count), PW_OK, "%s", step_err.msg);
}

void step_out(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count)
{
	cr_assert_eq(b->ops->page_out(b, id, gfn, count, &step_err), PW_OK, "%s", step_err.msg);
}

void step_share(struct backend *b, const struct pw_uuid *id, uint64_t gfn, uint64_t count)
{
	cr_assert_eq(b->ops->share(b, id, gfn, count, &step_err), PW_OK, "%s", step_err.msg);
}
