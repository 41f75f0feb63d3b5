/* agents/loadgen.h
 *
 * A load generator that behaves like guests do: VMs boot (most memory accepted, a bounce buffer shared), run (bursts
 * of conversions, ballooning, paging under pressure), end, and start anew. It is an ordinary client of the API: what
 * it wants becomes operations, which this host's agent carries out. Choosing is pure and follows from the seed.
 */
#ifndef PW_AGENTS_LOADGEN_H
#define PW_AGENTS_LOADGEN_H
#include "agents/agent.h"
#include "api/codec.h"

struct load_spec {
	uint64_t vms, pages, rate, seed; /* rate: operations a second, all VMs together */
};
/* "vms=2,pages=4096,rate=200,seed=7", each with a default. PW_INVALID names the culprit. */
enum pw_status load_spec_parse(const char *text, struct load_spec *out, struct pw_err *err) PW_MUST_CHECK;

/* What the generator believes of one VM, in units of LOAD_UNIT pages. */
#define LOAD_UNIT 16
enum load_unit { UNIT_IN, UNIT_OUT, UNIT_SHARED, UNIT_MIXED };
enum load_guest { GUEST_PLAYED, GUEST_REAL }; /* a real guest converts its pages itself: only its host is played */
struct load_vm {
	uint64_t pages, units;
	enum load_guest guest;
	unsigned char *unit;   /* owned; enum load_unit */
	uint64_t bounce;       /* units shared at boot */
	bool running, pressed; /* pressed: the pool was exhausted last time */
	uint64_t age, life;    /* actions since boot; how many it gets */
};
struct load_action {
	enum operation_kind kind;
	uint64_t gfn, count; /* pages; not of launch and terminate */
	bool resident;       /* of unshare */
};
enum pw_status load_vm_init(struct load_vm *vm, uint64_t pages, enum load_guest guest,
			    struct pw_err *err) PW_MUST_CHECK;
void load_vm_release(struct load_vm *vm);
/* Learns anew what is so: load_vm_forget, then each run of pages. Units that no run covers whole are mixed. */
void load_vm_forget(struct load_vm *vm);
void load_vm_learn(struct load_vm *vm, uint64_t gfn, uint64_t count, enum load_unit state);
struct load_action load_vm_next(struct load_vm *vm, uint64_t *random);
/* Tells how it ended; a failed action changed nothing. */
enum load_end { LOAD_DONE, LOAD_FAILED, LOAD_PRESSED };
void load_vm_ended(struct load_vm *vm, const struct load_action *a, enum load_end end);

struct load_job {
	struct agent *agent;
	const struct load_spec *spec;
	const char *token; /* an operator's, or NULL: the agent's */
};
void *load_loop(void *job); /* a thread */

#endif
