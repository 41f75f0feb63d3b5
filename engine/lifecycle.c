#include "engine/lifecycle.h"

#define TEXT_(name, text) [name] = text,
static const char *const vm_state_names[] = { VM_STATES(TEXT_) };
static const char *const vm_event_names[] = { VM_EVENTS(TEXT_) };
static const char *const gfn_state_names[] = { GFN_STATES(TEXT_) };
static const char *const gfn_op_names[] = { GFN_OPS(TEXT_) };

const char *vm_state_name(enum vm_state s)
{
	return vm_state_names[s];
}

const char *vm_event_name(enum vm_event e)
{
	return vm_event_names[e];
}

const char *gfn_state_name(enum gfn_state s)
{
	return gfn_state_names[s];
}

const char *gfn_op_name(enum gfn_op op)
{
	return gfn_op_names[op];
}

struct edge {
	enum { UNDECIDED, MOVE, REFUSE } kind;
	unsigned next;
};
#define NO                \
	{                 \
		REFUSE, 0 \
	}

/* clang-format off */
#define TO(s) { MOVE, VM_##s }
#define ROW(start, init_start, init_done, init_abort, terminate)                                          \
	{ [VM_START] = start, [VM_INIT_START] = init_start, [VM_INIT_DONE] = init_done,                   \
	  [VM_INIT_ABORT] = init_abort, [VM_TERMINATE] = terminate }

static const struct edge vm_edges[VM_STATE_COUNT][VM_EVENT_COUNT] = {
	/*                      start       init_start     init_done   init_abort  terminate  */
	[VM_NORMAL]    = ROW(TO(NORMAL), TO(TRANSIENT), NO,         NO,         TO(NORMAL)),
	[VM_SECURE]    = ROW(NO,         NO,            NO,         NO,         TO(NORMAL)),
	[VM_TRANSIENT] = ROW(NO,         NO,            TO(SECURE), TO(NORMAL), TO(NORMAL)),
};
#undef TO
#undef ROW

#define TO(s) { MOVE, GFN_##s }
#define ROW(share, unshare, unshare_in, page_in, page_out, reset, init_done)                              \
	{ [GFN_SHARE] = share, [GFN_UNSHARE] = unshare, [GFN_UNSHARE_IN] = unshare_in,                    \
	  [GFN_PAGE_IN] = page_in, [GFN_PAGE_OUT] = page_out, [GFN_RESET] = reset,                        \
	  [GFN_INIT_DONE] = init_done }
#define IN  SECURE_RESIDENT
#define OUT SECURE_OUT
#define TO_(s) TO(s)

/* page_in of a normal GFN: only a transient VM has normal GFNs (a secure VM's become secure at init_done). */
static const struct edge gfn_edges[GFN_STATE_COUNT][GFN_OP_COUNT] = {
	/*                           share       unshare  unshare+frame page_in page_out  reset       init_done  */
	[GFN_NORMAL]          = ROW(TO(SHARED), TO_(OUT), TO_(IN),      TO_(IN), NO,       TO(NORMAL), TO_(OUT)),
	[GFN_SECURE_RESIDENT] = ROW(TO(SHARED), TO_(IN),  NO,           NO,      TO_(OUT), TO(NORMAL), TO_(IN)),
	[GFN_SECURE_OUT]      = ROW(TO(SHARED), TO_(OUT), TO_(IN),      TO_(IN), NO,       TO(NORMAL), TO_(OUT)),
	[GFN_SHARED]          = ROW(TO(SHARED), TO_(OUT), TO_(IN),      NO,      NO,       TO(NORMAL), TO(SHARED)),
};
/* clang-format on */

bool vm_step(enum vm_state s, enum vm_event e, enum vm_state *next)
{
	const struct edge *edge = &vm_edges[s][e];

	if (edge->kind != MOVE)
		return false;
	*next = (enum vm_state)edge->next;
	return true;
}

bool gfn_step(enum gfn_state s, enum gfn_op op, enum gfn_state *next)
{
	const struct edge *edge = &gfn_edges[s][op];

	if (edge->kind != MOVE)
		return false;
	*next = (enum gfn_state)edge->next;
	return true;
}

bool lifecycle_is_total(void)
{
	for (int s = 0; s < VM_STATE_COUNT; s++)
		for (int e = 0; e < VM_EVENT_COUNT; e++)
			if (vm_edges[s][e].kind == UNDECIDED)
				return false;
	for (int s = 0; s < GFN_STATE_COUNT; s++)
		for (int op = 0; op < GFN_OP_COUNT; op++)
			if (gfn_edges[s][op].kind == UNDECIDED)
				return false;
	return true;
}
