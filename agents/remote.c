#include "agents/remote.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "api/problem.h"
#include "api/text.h"

void trouble_clear(struct trouble *t)
{
	json_decref(t->problem);
	*t = (struct trouble){ 0 };
}

static json_t *problem_json(const struct refusal *why)
{
	struct jsonw w;
	json_t *json = NULL;
	char *text;
	size_t len;

	jsonw_init(&w);
	problem_write(&w, why, NULL, PROBLEM_CLOSED);
	text = jsonw_finish(&w, &len);
	jsonw_release(&w);
	if (text)
		json = json_loadb(text, len, 0, NULL);
	free(text);
	return json;
}

json_t *trouble_problem(const struct trouble *t)
{
	struct refusal why;
	json_t *json;

	if (t->problem)
		return json_incref(t->problem);
	(void)refuse(&why, PROBLEM_BACKEND, "%s", "");
	text_copy(why.detail, sizeof why.detail, t->err.msg[0] ? t->err.msg : pw_status_name(t->err.status));
	json = problem_json(&why);
	if (json && t->err.status == PW_BUSY) /* no free frames: later there may be */
		json_object_set_new(json, "retryable", json_true());
	return json;
}

enum pw_status trouble_refuse(struct trouble *t, const struct refusal *why)
{
	json_decref(t->problem);
	t->problem = problem_json(why);
	return pw_fail(&t->err, PW_CONFLICT, "%s", why->detail);
}

enum pw_status trouble_adopt(struct trouble *t, json_t *problem)
{
	const char *detail = json_string_value(json_object_get(problem, "detail"));
	const char *title = json_string_value(json_object_get(problem, "title"));

	json_decref(t->problem);
	t->problem = json_is_object(problem) ? json_incref(problem) : NULL;
	return pw_fail(&t->err, PW_CONFLICT, "%s", detail ? detail : title ? title : "refused by the ledger");
}

bool json_u64_member(json_t *object, const char *key, uint64_t *out)
{
	json_t *v = json_object_get(object, key);

	if (!json_is_integer(v) || json_integer_value(v) < 0)
		return false;
	*out = (uint64_t)json_integer_value(v);
	return true;
}

bool json_uuid_member(json_t *object, const char *key, struct pw_uuid *out)
{
	const char *text = json_string_value(json_object_get(object, key));

	return text && pw_uuid_parse(text, strlen(text), out);
}

static bool is_worth_asking_again(const struct client_reply *r)
{
	json_t *problem = r->json;

	if (r->status == 0 || r->status == 429 || (r->status >= 502 && r->status <= 504))
		return true;
	return r->status >= 400 && json_is_true(json_object_get(problem, "retryable"));
}

/* Ends a call that was answered: a refusal becomes trouble. */
static enum pw_status settle(struct worker *w, enum pw_status st, struct client_reply *r, struct trouble *t)
{
	if (st == PW_OK)
		return PW_OK;
	if (r->status >= 400 && json_is_object(r->json)) {
		json_decref(t->problem);
		t->problem = json_incref(r->json);
	}
	if (r->problem == PROBLEM_HOST_FENCED)
		agent_stand_apart(w->agent, t->err.msg);
	return st;
}

static void random_key(char out[PW_UUID_TEXT])
{
	uint8_t bytes[16];
	struct pw_uuid id;

	random_bytes(bytes, sizeof bytes);
	id = pw_uuid_from_random(bytes);
	pw_uuid_format(&id, out);
}

enum pw_status remote_call(struct worker *w, const char *method, const char *path, json_t *body, const char *key,
			   struct client_reply *out, struct trouble *t)
{
	struct agent *a = w->agent;
	const volatile sig_atomic_t *stop = w->in_hand || strcmp(method, "GET") != 0 ? &a->stop_late : &a->stop_now;
	uint64_t random = now_ms();
	char fresh[PW_UUID_TEXT];
	enum pw_status st;

	if (!key && strcmp(method, "POST") == 0) {
		random_key(fresh); /* one key for all tries: each is the same request */
		key = fresh;
	}
	for (unsigned tries = 0, wait_s = 0;; tries++) {
		*out = (struct client_reply){ 0 };
		client_set_stop(w->client, stop);
		st = client_call(w->client, method, path, body, key, 0, out, &t->err);
		client_set_stop(w->client, &a->stop_now);
		if (st == PW_OK || st == PW_NO_MEMORY || !is_worth_asking_again(out))
			return settle(w, st, out, t);
		if (tries == 0)
			alog(ALOG_WARNING, "no answer from the server", "%s %s: %s", method, path, t->err.msg);
		if (__atomic_load_n(stop, __ATOMIC_RELAXED))
			return PW_NETWORK; /* PW_BUSY is said of frames alone */
		wait_s = out->retry_after_s;
		client_reply_release(out);
		agent_pause(w->agent, backoff_ms(tries, &random) + wait_s * 1000);
	}
}

static int by_base(const void *a, const void *b)
{
	const struct slot *x = a, *y = b;

	return x->base < y->base ? -1 : x->base > y->base;
}

static bool read_slots(json_t *slots, struct remote_vm *vm)
{
	size_t n = json_array_size(slots), i;
	json_t *item;

	if (!json_is_array(slots) || n > VM_SLOTS_MAX)
		return false;
	vm->slots = calloc(n + 1, sizeof *vm->slots);
	if (!vm->slots)
		return false;
	json_array_foreach (slots, i, item) {
		uint64_t number;
		struct slot *s = &vm->slots[i];

		if (!json_u64_member(item, "slot", &number) || !json_u64_member(item, "base_gfn", &s->base) ||
		    !json_u64_member(item, "pages", &s->pages))
			return false;
		if (number > UINT32_MAX || s->base >= TREE_PAGES || s->pages > TREE_PAGES - s->base)
			return false;
		s->number = (uint32_t)number;
	}
	vm->slot_count = n;
	qsort(vm->slots, n, sizeof *vm->slots, by_base);
	return true;
}

static bool read_vm_state(json_t *json, enum vm_state *out)
{
	const char *text = json_string_value(json_object_get(json, "state"));

	for (int i = 0; text && i < VM_STATE_COUNT; i++) {
		if (strcmp(text, vm_state_name((enum vm_state)i)) != 0)
			continue;
		*out = (enum vm_state)i;
		return true;
	}
	return false;
}

/* An older server says nothing of ends. */
static bool read_ends(json_t *ends, struct remote_vm *vm)
{
	size_t n = json_array_size(ends), i;
	json_t *item;

	vm->ends = calloc(n + 1, sizeof *vm->ends);
	if (!vm->ends)
		return false;
	json_array_foreach (ends, i, item) {
		uint64_t number;

		if (!json_u64_member(item, "slot", &number) || number > UINT32_MAX ||
		    !json_u64_member(item, "ended", &vm->ends[i].revision))
			return false;
		vm->ends[i].slot = (uint32_t)number;
	}
	vm->end_count = n;
	return true;
}

uint64_t remote_slot_end(const struct remote_vm *vm, uint32_t slot)
{
	for (size_t i = 0; i < vm->end_count; i++)
		if (vm->ends[i].slot == slot)
			return vm->ends[i].revision;
	return 0;
}

void remote_vm_release(struct remote_vm *vm)
{
	free(vm->slots);
	free(vm->ends);
	*vm = (struct remote_vm){ 0 };
}

bool remote_vm_read(json_t *json, struct remote_vm *out)
{
	struct remote_vm vm = { 0 };
	uint64_t bit = 0;

	if (!json_uuid_member(json, "id", &vm.id) || !json_uuid_member(json, "host", &vm.host) ||
	    !read_vm_state(json, &vm.state) || !read_slots(json_object_get(json, "slots"), &vm) ||
	    !read_ends(json_object_get(json, "slots_ended"), &vm)) {
		remote_vm_release(&vm);
		return false;
	}
	vm.on_hardware = json_is_true(json_object_get(json, "on_hardware"));
	if (!json_u64_member(json, "revision", &vm.revision))
		vm.revision = 0;
	if (!json_u64_member(json, "ended", &vm.ended))
		vm.ended = 0;
	if (json_u64_member(json_object_get(json, "gpa"), "shared_bit", &bit) && bit < 64)
		vm.shared_bit = (unsigned)bit;
	*out = vm;
	return true;
}

enum pw_status remote_vm_get(struct worker *w, const struct pw_uuid *id, struct remote_vm *out, struct trouble *t)
{
	char path[96], text[PW_UUID_TEXT];
	struct client_reply r;
	enum pw_status st;

	pw_uuid_format(id, text);
	snprintf(path, sizeof path, "/v1/vms/%s", text);
	st = remote_call(w, "GET", path, NULL, NULL, &r, t);
	*out = (struct remote_vm){ .id = *id };
	if (st != PW_OK && r.problem == PROBLEM_VM_NOT_FOUND) {
		st = PW_NOT_FOUND;
		if (!json_u64_member(r.json, "ended", &out->ended))
			out->ended = 0;
	}
	if (st == PW_OK && !remote_vm_read(r.json, out))
		st = pw_fail(&t->err, PW_INVALID, "the server's answer to %s is not a VM", path);
	client_reply_release(&r);
	return st;
}

enum pw_status remote_operation_runs(struct worker *w, const struct pw_uuid *vm, bool *runs, struct trouble *t)
{
	char path[96], text[PW_UUID_TEXT];
	struct client_reply r;
	enum pw_status st;

	pw_uuid_format(vm, text);
	snprintf(path, sizeof path, "/v1/vms/%s/operations?state=running&limit=1", text);
	st = remote_call(w, "GET", path, NULL, NULL, &r, t);
	if (st == PW_OK)
		*runs = json_array_size(json_object_get(r.json, "items")) > 0;
	client_reply_release(&r);
	return st;
}

/* {"boot_id","epoch"} of now; NULL: no memory. */
static json_t *credentials(struct agent *a)
{
	return json_pack("{s:s, s:I}", "boot_id", a->boot_id, "epoch", (json_int_t)agent_epoch(a));
}

/* body is consumed; NULL: there was no memory for it. makes: the type of event that it makes, at the revision in the
 * answer, or NULL. *revision (may be NULL): that revision. */
static enum pw_status send_body(struct worker *w, const char *method, const char *path, json_t *body, const char *makes,
				uint64_t *revision, struct trouble *t)
{
	struct client_reply r = { 0 };
	uint64_t seen;
	enum pw_status st;

	if (!body)
		return pw_fail(&t->err, PW_NO_MEMORY, "no memory for a request");
	st = remote_call(w, method, path, body, NULL, &r, t);
	if (st == PW_OK && json_u64_member(r.json, "revision", &seen)) {
		heard_see(&w->agent->heard, seen);
		if (makes)
			own_add(&w->agent->own, seen, seen, makes);
		if (revision)
			*revision = seen;
	}
	client_reply_release(&r);
	json_decref(body);
	return st;
}

static enum pw_status post(struct worker *w, const char *path, json_t *body, const char *makes, struct trouble *t)
{
	return send_body(w, "POST", path, body, makes, NULL, t);
}

enum pw_status remote_event_at(struct worker *w, const struct pw_uuid *vm, enum vm_event e, enum told told,
			       uint64_t *revision, struct trouble *t)
{
	char path[96], text[PW_UUID_TEXT];
	json_t *body = credentials(w->agent);

	pw_uuid_format(vm, text);
	snprintf(path, sizeof path, "/v1/vms/%s/lifecycle", text);
	if (body && (json_object_set_new(body, "event", json_string(vm_event_name(e))) != 0 ||
		     (told == TOLD_AS_ADOPTED && json_object_set_new(body, "adopted", json_true()) != 0))) {
		json_decref(body);
		body = NULL;
	}
	if (revision)
		*revision = 0;
	return send_body(w, "POST", path, body, "vm.lifecycle", revision, t);
}

enum pw_status remote_event(struct worker *w, const struct pw_uuid *vm, enum vm_event e, struct trouble *t)
{
	return remote_event_at(w, vm, e, TOLD_AS_NEWS, NULL, t);
}

static json_t *slots_json(const struct backend_vm_spec *spec)
{
	json_t *slots = json_array();
	int failed = 0;

	for (size_t i = 0; slots && i < spec->slot_count; i++)
		failed |= json_array_append_new(
			slots, json_pack("{s:I, s:I, s:I}", "slot", (json_int_t)spec->slots[i].number, "base_gfn",
					 (json_int_t)spec->slots[i].base, "pages", (json_int_t)spec->slots[i].pages));
	if (!failed)
		return slots;
	json_decref(slots);
	return NULL;
}

enum pw_status remote_adopt(struct worker *w, const struct backend_vm_spec *spec, struct trouble *t)
{
	struct agent *a = w->agent;
	char id[PW_UUID_TEXT];
	json_t *body;

	pw_uuid_format(&spec->id, id);
	body = json_pack("{s:s, s:s, s:s, s:o, s:b, s:s, s:I}", "id", id, "host", a->host, "arch", a->info.arch,
			 "slots", slots_json(spec), "adopted", 1, "boot_id", a->boot_id, "epoch",
			 (json_int_t)agent_epoch(a));
	if (body && spec->shared_bit &&
	    json_object_set_new(body, "gpa", json_pack("{s:i}", "shared_bit", (int)spec->shared_bit)) != 0) {
		json_decref(body);
		body = NULL;
	}
	return post(w, "/v1/vms", body, "vm.created", t);
}

/* A boot id is printable ASCII: what a query does not take as it is, is written as %XX. */
static void escape(const char *text, char *out, size_t size)
{
	size_t n = 0;

	for (; *text && n + 4 <= size; text++) {
		bool plain = (*text >= '0' && *text <= '9') || (*text >= 'a' && *text <= 'z') ||
			     (*text >= 'A' && *text <= 'Z') || strchr("-._~", *text);

		n += (size_t)snprintf(out + n, size - n, plain ? "%c" : "%%%02X", (unsigned char)*text);
	}
	out[n] = '\0';
}

enum pw_status remote_slot_put(struct worker *w, const struct pw_uuid *vm, const struct slot *s, struct trouble *t)
{
	char path[128], text[PW_UUID_TEXT];

	pw_uuid_format(vm, text);
	snprintf(path, sizeof path, "/v1/vms/%s/slots/%" PRIu32, text, s->number);
	return send_body(w, "PUT", path,
			 json_pack("{s:I, s:I}", "base_gfn", (json_int_t)s->base, "pages", (json_int_t)s->pages),
			 "slot.added", NULL, t);
}

enum pw_status remote_slot_delete(struct worker *w, const struct pw_uuid *vm, uint32_t number, struct trouble *t)
{
	char path[400], text[PW_UUID_TEXT], boot_id[3 * BOOT_ID_MAX];
	struct client_reply r = { 0 };
	enum pw_status st;

	pw_uuid_format(vm, text);
	escape(w->agent->boot_id, boot_id, sizeof boot_id);
	snprintf(path, sizeof path, "/v1/vms/%s/slots/%" PRIu32 "?boot_id=%s&epoch=%" PRIu64, text, number, boot_id,
		 agent_epoch(w->agent));
	st = remote_call(w, "DELETE", path, NULL, NULL, &r, t);
	if (st != PW_OK && r.problem == PROBLEM_SLOT_NOT_FOUND) { /* gone already */
		trouble_clear(t);
		st = PW_OK;
	}
	client_reply_release(&r);
	return st;
}

enum pw_status remote_unknown(struct worker *w, json_t *items, struct trouble *t)
{
	char path[96];
	json_t *body = credentials(w->agent);

	snprintf(path, sizeof path, "/v1/hosts/%s/unknown-vms", w->agent->host);
	if (body && json_object_set(body, "items", items) != 0) {
		json_decref(body);
		body = NULL;
	}
	return send_body(w, "PUT", path, body, NULL, NULL, t);
}

static enum pw_status say_result(struct worker *w, const char *operation, json_t *problem, struct trouble *t)
{
	char path[128];
	json_t *body = credentials(w->agent);
	int failed = 0;

	snprintf(path, sizeof path, "/v1/operations/%.60s/result", operation);
	if (body) {
		failed |= json_object_set_new(body, "state", json_string(problem ? "failed" : "succeeded"));
		failed |= problem ? json_object_set(body, "problem", problem) : 0;
	}
	if (failed) {
		json_decref(body);
		body = NULL;
	}
	return post(w, path, body, NULL, t);
}

/* An operation must end: a problem that the server does not take, for its length or its texts, is said in short. */
enum pw_status remote_result(struct worker *w, const char *operation, json_t *problem, struct trouble *t)
{
	enum pw_status st = say_result(w, operation, problem, t);
	json_int_t status = json_integer_value(json_object_get(t->problem, "status"));
	const char *detail = json_string_value(json_object_get(problem, "detail"));
	struct refusal why;
	json_t *brief;

	if (st == PW_OK || !problem || (status != 400 && status != 413))
		return st;
	trouble_clear(t);
	(void)refuse(&why, PROBLEM_BACKEND, "%s", "");
	text_copy(why.detail, sizeof why.detail, detail ? detail : "the problem is longer than the server takes");
	brief = problem_json(&why);
	st = say_result(w, operation, brief ? brief : problem, t);
	json_decref(brief);
	return st;
}

enum pw_status remote_quarantine(struct worker *w, json_t *items, struct trouble *t)
{
	char path[96];
	json_t *body = credentials(w->agent);

	snprintf(path, sizeof path, "/v1/hosts/%s/quarantine", w->agent->host);
	if (!body) {
		json_decref(items);
	} else if (json_object_set_new(body, "items", items) != 0) {
		json_decref(body);
		body = NULL;
	}
	return post(w, path, body, "quarantine.added", t);
}

static json_t *exit_items(const struct backend_exit *x)
{
	json_t *items = json_object();
	char value[19];
	int failed = 0;

	for (size_t i = 0; items && i < x->count; i++) {
		snprintf(value, sizeof value, "0x%" PRIx64, x->items[i].value);
		failed |= json_object_set_new(items, x->items[i].name, json_string(value));
	}
	if (!failed)
		return items;
	json_decref(items);
	return NULL;
}

enum pw_status remote_vcpu_exit(struct worker *w, const struct pw_uuid *vm, unsigned vcpu, const struct backend_exit *x,
				struct trouble *t)
{
	char path[96], text[PW_UUID_TEXT];
	json_t *body = credentials(w->agent);
	struct client_reply r = { 0 };
	enum pw_status st;

	pw_uuid_format(vm, text);
	snprintf(path, sizeof path, "/v1/vms/%s/vcpus/%u", text, vcpu);
	if (!body || json_object_set_new(body, "exit", json_string(x->exit)) != 0 ||
	    json_object_set_new(body, "items", exit_items(x)) != 0) {
		json_decref(body);
		return pw_fail(&t->err, PW_NO_MEMORY, "no memory for a request");
	}
	st = settle(w, client_call(w->client, "PUT", path, body, NULL, 0, &r, &t->err), &r, t);
	client_reply_release(&r);
	json_decref(body);
	return st;
}
