/* store/extent.h
 *
 * The runs of one stretch of a VM's tree as a row of gfn_span has them, and back. The text is JSON, so that the view
 * gfn_extent can show it in plain sqlite3: [[offset,count,kind,pool_place,pfn,"arch_state"],...], where `offset` counts
 * from the row's gfn, `kind` is the place in extent_kinds, and what stands last is left out (null) if there is none.
 * The architecture's state (GFN_ENTRY_ARCH) goes by its name, since its number means nothing outside of this program's
 * tables: entries are read without it (0: of a normal GFN).
 */
#ifndef PW_STORE_EXTENT_H
#define PW_STORE_EXTENT_H
#include "store/store.h"

/* A stretch's text grows here; zeroed at first. The text is s, `used` bytes long. */
struct extent_text {
	char *s; /* heap; freed by who owns the struct */
	size_t used, room;
};
void extent_begin(struct extent_text *t);
/*
 * PW_INVALID    no VM's tree has such an entry, its arch_state does not go with it, or cannot be written
 * PW_NO_MEMORY  nothing was added
 */
enum pw_status extent_add(struct extent_text *t, uint64_t base, const struct extent_row *run,
			  struct pw_err *err) PW_MUST_CHECK;
bool extent_end(struct extent_text *t) PW_MUST_CHECK; /* false: it has no run */

#define EXTENT_ARCH_MAX 64
struct extent_reader {
	const char *at; /* borrowed; at its end once there are no more */
	uint64_t base;  /* the row's gfn */
	uint64_t past;  /* end of the run before */
	char arch_state[EXTENT_ARCH_MAX];
};
void extent_read_init(struct extent_reader *r, uint64_t base, const char *text);
/*
 * The next run, in ascending order; all of *out but its vm. out->arch_state lives in *r until the next call.
 * PW_NOT_FOUND  there are no more
 * PW_STORAGE    the text is not what extent_add writes
 */
enum pw_status extent_read(struct extent_reader *r, struct extent_row *out, struct pw_err *err) PW_MUST_CHECK;

#endif
