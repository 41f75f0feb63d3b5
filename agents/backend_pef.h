/* agents/backend_pef.h
 *
 * An emulated POWER host with an ultravisor (engine/arch/pef.h) as a backend. Pages are 64 KiB; the local pool is its
 * secure memory.
 *
 * Which frame backs which page is the agent's choice (L5), so this machine takes no frame by itself:
 *  - `reserve` promises the lowest free frames, and `page_in` takes exactly reserved ones. Reservations are the
 *    agent's, not the machine's: they end with the process. A run longer than the whole pool is PW_INVALID.
 *  - VM_INIT_DONE leaves resident what was paged in before it. What is still normal then becomes secure and paged out
 *    (a real ultravisor host would give each such page a frame that nobody claimed). It needs no free frame. An agent
 *    that wants the real outcome asks read_state for normal GFNs first, and reserves, claims and pages them in.
 *  - `unshare`, and a slot mapped into a secure VM, give secure pages that are paged out; a slot mapped into a
 * transient VM is normal until VM_INIT_DONE.
 *
 * When `reserve` answers PW_BUSY, `wait` has WANT_PAGE_OUT requests for as many pages as were missing: the longest
 * resident ones, by a clock's hand that goes round the pool. Paging these out makes a repeated `reserve` succeed.
 *
 * With options.state the machine outlives its agent: each op is in the file whole or not at all before it returns,
 * whenever the process is killed. `close` then ends this process's use of the machine, and its VMs stay.
 */
#ifndef PW_AGENTS_BACKEND_PEF_H
#define PW_AGENTS_BACKEND_PEF_H
#include "agents/backend.h"
#include "engine/arch/pef.h"

#define BACKEND_PEF_FRAMES   4096 /* of the pool, by default */

/*
 * For tests: what a page holds, as one number. Zero is a page of zeroes. Tags are kept from the first write on: share
 * and unshare leave zeroes, paging out and in preserves, termination loses, abort preserves what was paged in.
 * PW_NOT_FOUND: no such VM, or a GFN outside its slots. PW_INVALID: too large a tag.
 */
#define BACKEND_PEF_TAG_LOST (((uint64_t)1 << 60) - 1)
enum pw_status backend_pef_write(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t tag,
				 struct pw_err *err) PW_MUST_CHECK;
enum pw_status backend_pef_read(struct backend *b, const struct pw_uuid *vm, uint64_t gfn, uint64_t *tag,
				struct pw_err *err) PW_MUST_CHECK;

/* For tests: the ultravisor refuses that many calls of the next op. */
void backend_pef_refuse(struct backend *b, uint64_t calls);
const struct pef *backend_pef_model(const struct backend *b);

#endif
