/* agents/remote.h
 *
 * What the agent asks of the server. Every worker thread has its own client; answers that are facts for the ledger
 * (transitions, events, results) are asked for until they come.
 */
#ifndef PW_AGENTS_REMOTE_H
#define PW_AGENTS_REMOTE_H
#include "agents/agent.h"
#include "api/codec.h"

/* Why something did not work. Zero it before use; trouble_clear after. */
struct trouble {
	struct pw_err err;
	json_t *problem; /* the ledger's own words, or NULL; owned */
};
void trouble_clear(struct trouble *t);
/* The problem object for an operation's result: the ledger's own, else one made from err. New reference or NULL. */
json_t *trouble_problem(const struct trouble *t);
/* Fills t from a refusal that the agent saw itself; returns a status that fits. */
enum pw_status trouble_refuse(struct trouble *t, const struct refusal *why);
/* Takes over `problem` (borrowed) as the ledger's refusal; always PW_CONFLICT. */
enum pw_status trouble_adopt(struct trouble *t, json_t *problem);

/*
 * client_call, repeated with jittered back-off until the server answers (or says why not). When the agent stops it
 * gives up at once (PW_NETWORK), or after the agent's grace: a change, and whatever is asked for what is in hand. A
 * host-fenced answer makes the agent stand apart (agent_stand_apart). *out must be released in every case.
 */
enum pw_status remote_call(struct worker *w, const char *method, const char *path, json_t *body, const char *key,
			   struct client_reply *out, struct trouble *t) PW_MUST_CHECK;

struct slot_end {
	uint32_t slot;
	uint64_t revision;
};
struct remote_vm {
	struct pw_uuid id, host;
	enum vm_state state;
	bool on_hardware; /* the ledger says that hardware may have it */
	unsigned shared_bit;
	struct slot *slots; /* sorted by base; owned */
	size_t slot_count;
	uint64_t revision;     /* of its last change */
	uint64_t ended;        /* at which it last fell to normal, or was created */
	struct slot_end *ends; /* of slots that were deleted; owned */
	size_t end_count;
};
uint64_t remote_slot_end(const struct remote_vm *vm, uint32_t slot); /* of that number's last deletion; 0: none */
void remote_vm_release(struct remote_vm *vm);
/* Reads a VM object as the server sends it; false: not one, or no memory. */
bool remote_vm_read(json_t *json, struct remote_vm *out) PW_MUST_CHECK;
/* PW_NOT_FOUND: the ledger has no such VM; out->ended is then the revision of its deletion, 0: not known. */
enum pw_status remote_vm_get(struct worker *w, const struct pw_uuid *id, struct remote_vm *out,
			     struct trouble *t) PW_MUST_CHECK;
/* Has an operation of the VM been handed out that is not finished? */
enum pw_status remote_operation_runs(struct worker *w, const struct pw_uuid *vm, bool *runs,
				     struct trouble *t) PW_MUST_CHECK;
enum pw_status remote_event(struct worker *w, const struct pw_uuid *vm, enum vm_event e,
			    struct trouble *t) PW_MUST_CHECK;
/* The same; *revision (may be NULL) is the VM's in the answer. */
enum told { TOLD_AS_NEWS, TOLD_AS_ADOPTED }; /* did hardware have it before? */
enum pw_status remote_event_at(struct worker *w, const struct pw_uuid *vm, enum vm_event e, enum told told,
			       uint64_t *revision, struct trouble *t) PW_MUST_CHECK;
/* Hardware has a VM that the ledger does not show: makes it there, in state normal. */
enum pw_status remote_adopt(struct worker *w, const struct backend_vm_spec *spec, struct trouble *t) PW_MUST_CHECK;
enum pw_status remote_slot_put(struct worker *w, const struct pw_uuid *vm, const struct slot *s,
			       struct trouble *t) PW_MUST_CHECK;
/* As the holder says it. A slot that is not there is gone: PW_OK. */
enum pw_status remote_slot_delete(struct worker *w, const struct pw_uuid *vm, uint32_t number,
				  struct trouble *t) PW_MUST_CHECK;
/* items: all that this host has to report of unknown VMs; borrowed. */
enum pw_status remote_unknown(struct worker *w, json_t *items, struct trouble *t) PW_MUST_CHECK;
enum pw_status remote_result(struct worker *w, const char *operation, json_t *problem, struct trouble *t) PW_MUST_CHECK;
/* items: [{"pool","pfn","count","reason"}], consumed. */
enum pw_status remote_quarantine(struct worker *w, json_t *items, struct trouble *t) PW_MUST_CHECK;
/* PUT of what the host saw of a vCPU. Asked for once only: nothing depends on it. */
enum pw_status remote_vcpu_exit(struct worker *w, const struct pw_uuid *vm, unsigned vcpu, const struct backend_exit *x,
				struct trouble *t) PW_MUST_CHECK;

bool json_u64_member(json_t *object, const char *key, uint64_t *out) PW_MUST_CHECK;
bool json_uuid_member(json_t *object, const char *key, struct pw_uuid *out) PW_MUST_CHECK;

#endif
