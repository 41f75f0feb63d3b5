#include "engine/alias.h"

enum pw_status alias_from_gpa_bit(unsigned shared_bit, unsigned page_shift, struct gfn_alias *out, struct pw_err *err)
{
	if (shared_bit < page_shift)
		return pw_fail(err, PW_INVALID, "GPA bit %u lies inside a page of 2^%u bytes", shared_bit, page_shift);
	if (shared_bit - page_shift >= 40)
		return pw_fail(err, PW_INVALID, "GPA bit %u is past the %u bits of a GPA", shared_bit, page_shift + 40);
	out->mask = (uint64_t)1 << (shared_bit - page_shift);
	return PW_OK;
}

uint64_t alias_unalias(struct gfn_alias a, uint64_t raw)
{
	return raw & ~a.mask;
}

bool alias_is_private(struct gfn_alias a, uint64_t raw)
{
	return a.mask && !(raw & a.mask);
}

bool alias_is_valid_gfn(struct gfn_alias a, uint64_t gfn, uint64_t count)
{
	uint64_t end = a.mask && a.mask < TREE_PAGES ? a.mask : TREE_PAGES;

	return gfn < end && count <= end - gfn;
}

bool alias_read(struct gfn_alias a, uint64_t raw, uint64_t *gfn)
{
	if (!alias_is_valid_gfn(a, alias_unalias(a, raw), 1))
		return false;
	*gfn = alias_unalias(a, raw);
	return true;
}
