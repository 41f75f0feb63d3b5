/* tests/lib/transitions_same.h
 *
 * The fast and the strict decoder of transitions must agree: whatever the fast one takes, the strict one takes, with
 * the same result.
 */
#ifndef PW_TESTS_LIB_TRANSITIONS_SAME_H
#define PW_TESTS_LIB_TRANSITIONS_SAME_H
#include <string.h>

#include "api/transitions_fast.h"

static inline bool same_item(const struct item *a, const struct item *b)
{
	bool same_pool = a->pool && b->pool ? strcmp(a->pool, b->pool) == 0 : a->pool == b->pool;

	return pw_uuid_equal(&a->vm, &b->vm) && a->op == b->op && a->arch_op == b->arch_op && a->vm_op == b->vm_op &&
	       a->arch_law == b->arch_law && a->framed == b->framed && same_pool && a->run_count == b->run_count &&
	       memcmp(a->runs, b->runs, a->run_count * sizeof *a->runs) == 0;
}

static inline bool same_body(const struct transitions_body *a, const struct transitions_body *b)
{
	if (strcmp(a->boot_id, b->boot_id) != 0 || a->epoch != b->epoch || a->has_seq != b->has_seq ||
	    a->seq != b->seq || a->atomic != b->atomic || a->count != b->count)
		return false;
	for (size_t i = 0; i < a->count; i++)
		if (!same_item(&a->items[i], &b->items[i]))
			return false;
	return true;
}

enum agreement { DISAGREE, BOTH_TOOK, STRICT_TOOK, NEITHER_TOOK };
static inline enum agreement decoders_agree(const char *text, size_t len)
{
	struct transitions_body fast, strict;
	struct body *fast_owner = NULL, *strict_owner = NULL;
	struct codec_fault why;
	bool mine = transitions_fast(text, len, &fast, &fast_owner);
	bool good = transitions_strict(text, len, &strict, &strict_owner, &why);
	enum agreement how = good ? STRICT_TOOK : NEITHER_TOOK;

	if (mine)
		how = good && same_body(&fast, &strict) ? BOTH_TOOK : DISAGREE;
	if (!good && !why.no_memory && !why.detail[0])
		how = DISAGREE;
	codec_release(fast_owner);
	codec_release(strict_owner);
	return how;
}

#endif
