/* engine/lifecycle.h
 *
 * The two lifecycle tables of the law (L3) as data: VM x event, and GFN x operation with residency.
 * docs/law.md prints them from here.
 */
#ifndef PW_ENGINE_LIFECYCLE_H
#define PW_ENGINE_LIFECYCLE_H
#include "engine/status.h"

#define VM_STATES(X)                 \
	X(VM_NORMAL, "normal")       \
	X(VM_TRANSIENT, "transient") \
	X(VM_SECURE, "secure")

#define VM_EVENTS(X)                   \
	X(VM_START, "start")           \
	X(VM_INIT_START, "init_start") \
	X(VM_INIT_DONE, "init_done")   \
	X(VM_INIT_ABORT, "init_abort") \
	X(VM_TERMINATE, "terminate")

/* A secure GFN is resident (bound to a secure frame) or out: two states here, one name on the wire. */
#define GFN_STATES(X)                    \
	X(GFN_NORMAL, "normal")          \
	X(GFN_SECURE_RESIDENT, "secure") \
	X(GFN_SECURE_OUT, "secure")      \
	X(GFN_SHARED, "shared")

/* The first four are what transitions ask for; the others are what VM events do to every GFN of a VM. */
#define GFN_OPS(X)                   \
	X(GFN_SHARE, "share")        \
	X(GFN_UNSHARE, "unshare")    \
	X(GFN_PAGE_IN, "page_in")    \
	X(GFN_PAGE_OUT, "page_out")  \
	X(GFN_UNSHARE_IN, "unshare") \
	X(GFN_RESET, "reset")        \
	X(GFN_INIT_DONE, "init_done")
/* GFN_UNSHARE_IN: unshare that carries a frame. GFN_RESET: abort and terminate. */

#define PW_ENUM_(name, text) name,
enum vm_state { VM_STATES(PW_ENUM_) VM_STATE_COUNT };
enum vm_event { VM_EVENTS(PW_ENUM_) VM_EVENT_COUNT };
enum gfn_state { GFN_STATES(PW_ENUM_) GFN_STATE_COUNT };
enum gfn_op { GFN_OPS(PW_ENUM_) GFN_OP_COUNT };
#undef PW_ENUM_

const char *vm_state_name(enum vm_state s);
const char *vm_event_name(enum vm_event e);
const char *gfn_state_name(enum gfn_state s);
const char *gfn_op_name(enum gfn_op op);

/* False where the table says error (or n/a); *next is written on true only. */
bool vm_step(enum vm_state s, enum vm_event e, enum vm_state *next) PW_MUST_CHECK;
bool gfn_step(enum gfn_state s, enum gfn_op op, enum gfn_state *next) PW_MUST_CHECK;

/* Does every cell hold a decision? Called by one test. */
bool lifecycle_is_total(void);

#endif
