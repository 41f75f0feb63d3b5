#include <criterion/criterion.h>
#include <criterion/parameterized.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "agents/machine.h"
#include "agents/ops.h"
#include "agents/resync.h"

/*
 * The agent between an emulated machine and a real ledger: the engine's, behind a socket that speaks just enough HTTP.
 * The server can lose answers after it has acted, as a network does.
 */
#define PAGES  48
#define FRAMES 32
#define BOOT   "boot-1"

static const struct machine_model *const models[ARCH_COUNT] = {
	[ARCH_PEF] = &machine_pef, [ARCH_SNP] = &machine_snp,   [ARCH_TDX] = &machine_tdx,
	[ARCH_CCA] = &machine_cca, [ARCH_PKVM] = &machine_pkvm,
};

static struct {
	enum arch arch; /* ARCH_PEF unless a test says otherwise */
	struct pw_mem mem;
	struct ledger *ledger;
	struct host *host;
	struct vm *vm, *other;
	int listener;
	pthread_t thread;
	pthread_mutex_t lock;
	unsigned lose, batches; /* answers to lose; batches that were acted on */
	uint64_t last_seq;
	char *last_answer;

	struct agent_options options;
	struct agent agent;
	struct worker worker;
	char url[64];
} t;

static struct pw_uuid id_of(int n)
{
	struct pw_uuid id = { { 0 } };

	id.b[15] = (uint8_t)n;
	return id;
}

static json_t *vm_json(const struct vm *vm)
{
	char id[PW_UUID_TEXT], host[PW_UUID_TEXT];
	json_t *slots = json_array();

	pw_uuid_format(&vm->id, id);
	pw_uuid_format(&vm->host->id, host);
	for (size_t i = 0; i < vm->slot_count; i++)
		json_array_append_new(slots, json_pack("{s:I, s:I, s:I}", "slot", (json_int_t)vm->slots[i].number,
						       "base_gfn", (json_int_t)vm->slots[i].base, "pages",
						       (json_int_t)vm->slots[i].pages));
	return json_pack("{s:s, s:s, s:s, s:o}", "id", id, "host", host, "state", vm_state_name(vm->state), "slots",
			 slots);
}

static json_t *problem_of(const struct refusal *why)
{
	json_t *p = json_pack("{s:o, s:s}", "type", json_sprintf("/problems/%s", problem_slug(why->problem)), "detail",
			      why->detail);
	char vm[PW_UUID_TEXT];

	if (why->run_count) {
		pw_uuid_format(&why->runs[0].vm, vm);
		json_object_set_new(p, "conflicts",
				    json_pack("[{s:I, s:s}]", "pfn", (json_int_t)why->runs[0].pfn, "vm", vm));
	}
	return p;
}

static char *take_batch(const char *text, size_t len, int *status)
{
	struct transitions_body b;
	struct body *owner = NULL;
	struct codec_fault why;
	json_t *results = json_array(), *answer;

	cr_assert(codec_transitions(text, len, &b, &owner, &why), "%s: %s", why.pointer, why.detail);
	*status = 200;
	if (b.has_seq && t.last_answer && b.seq == t.last_seq) {
		codec_release(owner);
		json_decref(results);
		return strdup(t.last_answer);
	}
	cr_assert_gt(b.seq, t.last_seq, "numbers only grow");
	for (size_t i = 0; i < b.count; i++) {
		struct refusal refusal;
		bool changed;
		enum pw_problem p = ledger_apply(t.ledger, t.host, &b.items[i], &changed, &refusal);

		json_array_append_new(
			results, p == PROBLEM_NONE ? json_pack("{s:b}", "ok", 1)
						   : json_pack("{s:b, s:o}", "ok", 0, "problem", problem_of(&refusal)));
	}
	t.batches++;
	ledger_commit(t.ledger);
	answer = json_pack("{s:o}", "results", results);
	free(t.last_answer);
	t.last_answer = json_dumps(answer, JSON_COMPACT);
	t.last_seq = b.seq;
	json_decref(answer);
	codec_release(owner);
	return strdup(t.last_answer);
}

static char *take_event(const char *text, size_t len, int *status)
{
	struct lifecycle_body b;
	struct body *owner = NULL;
	struct codec_fault why;
	struct refusal refusal;
	json_t *answer;
	char *out;

	cr_assert(codec_lifecycle(text, len, &b, &owner, &why), "%s: %s", why.pointer, why.detail);
	*status = ledger_vm_event(t.ledger, t.vm, b.event, &refusal) == PROBLEM_NONE ? 200 : 409;
	ledger_commit(t.ledger);
	answer = *status == 200 ? vm_json(t.vm) : problem_of(&refusal);
	out = json_dumps(answer, 0);
	json_decref(answer);
	codec_release(owner);
	return out;
}

/* PUT and DELETE of a slot. A deletion is the holder's. */
static char *take_slot(const char *head, const char *text, size_t len, int *status)
{
	const char *number = strstr(head, "/slots/") + strlen("/slots/");
	bool put = strncmp(head, "PUT ", 4) == 0, created = false;
	struct slot slot = { .number = (uint32_t)strtoul(number, NULL, 10) };
	struct slot_body b = { 0 };
	struct body *owner = NULL;
	struct codec_fault why;
	struct refusal refusal;
	enum pw_problem p;
	json_t *answer;
	char *out;

	cr_assert(!put || codec_slot(text, len, &b, &owner, &why), "%s: %s", why.pointer, why.detail);
	cr_assert(put || strstr(head, "?boot_id=" BOOT "&epoch=1"), "%s", head);
	slot.base = b.base;
	slot.pages = b.pages;
	p = put ? ledger_slot_put(t.ledger, t.vm, &slot, &created, &refusal)
		: ledger_slot_delete(t.ledger, t.vm, slot.number, &refusal);
	*status = p == PROBLEM_NONE ? (created ? 201 : 200) : p == PROBLEM_SLOT_NOT_FOUND ? 404 : 409;
	ledger_commit(t.ledger);
	answer = p == PROBLEM_NONE ? vm_json(t.vm) : problem_of(&refusal);
	out = json_dumps(answer, 0);
	json_decref(answer);
	codec_release(owner);
	return out;
}

static char *serve(const char *head, const char *body, size_t len, int *status)
{
	json_t *vm;
	char *out;

	if (strstr(head, "/transitions "))
		return take_batch(body, len, status);
	if (strstr(head, "/lifecycle "))
		return take_event(body, len, status);
	if (strstr(head, "/slots/"))
		return take_slot(head, body, len, status);
	*status = 200;
	vm = vm_json(t.vm);
	out = json_dumps(vm, 0);
	json_decref(vm);
	return out;
}

/* One request from the connection into buf; its body, or NULL at the end. */
static char *read_request(int fd, char *buf, size_t size, size_t *len)
{
	size_t used = 0;
	char *end = NULL, *length;
	ssize_t n;

	while (!end) {
		n = read(fd, buf + used, size - 1 - used);
		if (n <= 0)
			return NULL;
		used += (size_t)n;
		buf[used] = '\0';
		end = strstr(buf, "\r\n\r\n");
	}
	*end = '\0';
	end += 4;
	length = strcasestr(buf, "Content-Length: ");
	*len = length ? strtoul(length + 16, NULL, 10) : 0;
	while ((size_t)(buf + used - end) < *len) {
		n = read(fd, buf + used, size - 1 - used);
		if (n <= 0)
			return NULL;
		used += (size_t)n;
	}
	return end;
}

static void talk(int fd)
{
	static char buf[1 << 20];
	size_t len;
	char *body;

	while ((body = read_request(fd, buf, sizeof buf, &len))) {
		int status;
		char *answer, *whole;
		bool lost;

		pthread_mutex_lock(&t.lock);
		answer = serve(buf, body, len, &status);
		lost = t.lose && strstr(buf, "/transitions ");
		t.lose -= lost;
		pthread_mutex_unlock(&t.lock);
		cr_assert_gt(
			asprintf(&whole,
				 "HTTP/1.1 %d X\r\nContent-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
				 status, strlen(answer), answer),
			0);
		if (!lost && write(fd, whole, strlen(whole)) < 0)
			lost = true;
		free(answer);
		free(whole);
		if (lost)
			return;
	}
}

static void *server(void *arg)
{
	int fd;

	while ((fd = accept(t.listener, NULL, NULL)) >= 0) {
		talk(fd);
		close(fd);
	}
	return NULL;
}

static void start_server(void)
{
	struct sockaddr_in at = { .sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK) };
	socklen_t size = sizeof at;

	t.listener = socket(AF_INET, SOCK_STREAM, 0);
	cr_assert(bind(t.listener, (struct sockaddr *)&at, sizeof at) == 0 && listen(t.listener, 8) == 0);
	cr_assert_eq(getsockname(t.listener, (struct sockaddr *)&at, &size), 0);
	snprintf(t.url, sizeof t.url, "http://127.0.0.1:%d", ntohs(at.sin_port));
	pthread_mutex_init(&t.lock, NULL);
	cr_assert_eq(pthread_create(&t.thread, NULL, server, NULL), 0);
}

static struct vm *new_vm(int n)
{
	struct slot slot = { 0, 0, PAGES };
	struct vm_spec spec = { .id = id_of(n), .host = t.host, .arch = t.arch, .slots = &slot, .slot_count = 1 };
	struct refusal why;
	struct vm *vm;

	cr_assert_eq(ledger_vm_create(t.ledger, &spec, &vm, &why), PROBLEM_NONE, "%s", why.detail);
	return vm;
}

static void make_ledger(void)
{
	struct host_spec spec = { .id = id_of(1),
				  .name = "h",
				  .boot_id = BOOT,
				  .arches = 1u << t.arch,
				  .has_local = true,
				  .frames = FRAMES,
				  .page_shift = models[t.arch]->page_shift };
	struct host_put put;
	struct refusal why;

	t.ledger = ledger_new(&t.mem);
	cr_assert_not_null(t.ledger);
	cr_assert_eq(ledger_host_put(t.ledger, &spec, &put, &why), PROBLEM_NONE, "%s", why.detail);
	t.host = put.host;
	t.vm = new_vm(2);
	t.other = new_vm(3);
	ledger_commit(t.ledger);
}

static void make_agent(const char *fault)
{
	struct backend_options bo = { .frames = FRAMES };
	struct backend *b;
	struct pw_err err = { 0 };

	cr_assert_eq(machine_open(models[t.arch], &bo, &b, &err), PW_OK, "%s", err.msg);
	if (fault)
		cr_assert_eq(backend_faulty_wrap(b, fault, &b, &err), PW_OK, "%s", err.msg);
	t.options = (struct agent_options){ .server = t.url, .host = "x", .host_id = id_of(1), .boot_id = BOOT };
	cr_assert_eq(agent_init(&t.agent, &t.options, b, &err), PW_OK, "%s", err.msg);
	t.agent.law = arch_laws[t.arch];
	t.agent.epoch = t.host->epoch;
	agent_stand_registered(&t.agent);
	cr_assert_eq(worker_open(&t.worker, &t.agent, &err), PW_OK, "%s", err.msg);
}

static void event(enum vm_event e)
{
	struct pw_err err = { 0 };
	struct refusal why;

	cr_assert_eq(ledger_vm_event(t.ledger, t.vm, e, &why), PROBLEM_NONE, "%s", why.detail);
	cr_assert_eq(t.agent.backend->ops->vm_event(t.agent.backend, &t.vm->id, e, &err), PW_OK, "%s", err.msg);
}

/* A VM that is secure and wholly paged out, on hardware and in the ledger. */
static void secure_vm(void)
{
	struct slot slot = { 0, 0, PAGES };
	struct backend_vm_spec spec = { .id = t.vm->id, .slots = &slot, .slot_count = 1 };
	struct pw_err err = { 0 };

	cr_assert_eq(t.agent.backend->ops->create_vm(t.agent.backend, &spec, &err), PW_OK, "%s", err.msg);
	event(VM_INIT_START);
	event(VM_INIT_DONE);
	ledger_commit(t.ledger);
}

static void set_up(void)
{
	alog_set_level(ALOG_ERROR);
	start_server();
	make_ledger();
}

static void tear_down(void)
{
	worker_close(&t.worker);
	agent_release(&t.agent);
	shutdown(t.listener, SHUT_RDWR);
	pthread_join(t.thread, NULL);
	close(t.listener);
	ledger_free(t.ledger);
	free(t.last_answer);
}

TestSuite(change, .init = set_up, .fini = tear_down, .timeout = 60);
TestSuite(each_arch, .timeout = 60);

static bool add_run(void *list, const struct backend_run *run)
{
	return run_list_add(list, run);
}

static bool complain(void *ctx, const struct difference *d)
{
	cr_assert_fail("GFN %lu+%lu: ledger %d frame %lu, hardware %d frame %lu", d->gfn, d->count, (int)d->ledger,
		       d->ledger_pfn, (int)d->hardware, d->hardware_pfn);
	return false;
}

static struct run_list hardware_runs(void)
{
	struct run_list h = { 0 };
	struct pw_err err;
	struct backend *b = t.agent.backend;

	cr_assert_eq(b->ops->read_state(b, &t.vm->id, 0, TREE_PAGES, add_run, &h, &err), PW_OK, "%s", err.msg);
	return h;
}

/* Hardware and ledger have the same pages in the same frames, and the ledger is sound. */
static void assert_agreement(void)
{
	struct run_list l = { 0 }, h = hardware_runs();
	struct gfn_view v;
	struct pw_err err;

	for (uint64_t at = 0; vm_next_run(t.vm, at, TREE_PAGES, &v); at = v.gfn + v.count)
		cr_assert(run_list_add(
			&l, &(struct backend_run){
				    .gfn = v.gfn, .count = v.count, .state = v.state, .pfn = v.pfn, .arch = v.arch }));
	resync_compare(&l, &h, complain, NULL);
	cr_assert(ledger_check(t.ledger, &err), "%s", err.msg);
	run_list_release(&l);
	run_list_release(&h);
}

static enum pw_status change(enum gfn_op op, uint64_t gfn, uint64_t count)
{
	struct change c = { .vm = t.vm->id, .op = op, .gfn = gfn, .count = count };
	enum pw_status st;

	changes_run(&t.worker, &c, 1);
	st = c.st;
	changes_release(&c, 1);
	return st;
}

static uint64_t digest(void)
{
	struct run_list h = hardware_runs();
	uint64_t d = resync_digest(&h);

	run_list_release(&h);
	return d;
}

ParameterizedTestParameters(each_arch, every_op_leaves_hardware_and_ledger_in_agreement)
{
	static enum arch all[] = { ARCH_PEF, ARCH_TDX, ARCH_PKVM, ARCH_SNP, ARCH_CCA };

	return cr_make_param_array(enum arch, all, PW_ARRAY_LEN(all));
}

ParameterizedTest(enum arch *arch, each_arch, every_op_leaves_hardware_and_ledger_in_agreement)
{
	t.arch = *arch;
	set_up();
	make_agent(NULL);
	secure_vm();
	cr_assert_eq(change(GFN_PAGE_IN, 0, 20), PW_OK);
	cr_assert_eq(t.vm->counts.pages[GFN_SECURE_RESIDENT], 20);
	assert_agreement();
	cr_assert_eq(change(GFN_SHARE, 10, 20), PW_OK);
	cr_assert_eq(t.vm->counts.pages[GFN_SHARED], 20);
	assert_agreement();
	cr_assert_eq(change(GFN_UNSHARE, 12, 4), PW_OK);
	assert_agreement();
	cr_assert_eq(change(GFN_UNSHARE_IN, 8, 22), PW_OK);
	cr_assert_eq(t.vm->counts.pages[GFN_SECURE_RESIDENT], 30);
	assert_agreement();
	cr_assert_eq(change(GFN_PAGE_OUT, 5, 10), PW_OK);
	cr_assert_eq(t.vm->counts.pages[GFN_SECURE_RESIDENT], 20);
	assert_agreement();
	tear_down();
}

Test(change, said_again_it_does_nothing_and_asks_nobody)
{
	unsigned batches;

	make_agent(NULL);
	secure_vm();
	cr_assert_eq(change(GFN_PAGE_IN, 0, 8), PW_OK);
	cr_assert_eq(change(GFN_SHARE, 20, 8), PW_OK);
	batches = t.batches;
	cr_assert_eq(change(GFN_PAGE_IN, 0, 8), PW_OK);
	cr_assert_eq(change(GFN_SHARE, 20, 8), PW_OK);
	cr_assert_eq(change(GFN_PAGE_OUT, 30, 8), PW_OK);
	cr_assert_eq(t.batches, batches);
}

Test(change, an_error_cell_or_a_gap_is_refused_before_anything_moves)
{
	uint64_t before;

	make_agent(NULL);
	secure_vm();
	cr_assert_eq(change(GFN_PAGE_IN, 0, 8), PW_OK);
	cr_assert_eq(change(GFN_SHARE, 4, 2), PW_OK);
	before = digest();
	cr_assert_eq(change(GFN_PAGE_OUT, 0, 8), PW_CONFLICT);
	cr_assert_eq(change(GFN_PAGE_IN, 0, 12), PW_CONFLICT);
	cr_assert_eq(change(GFN_PAGE_OUT, PAGES - 2, 4), PW_CONFLICT);
	cr_assert_eq(digest(), before);
	assert_agreement();
}

Test(change, without_free_frames_nothing_is_claimed)
{
	make_agent(NULL);
	secure_vm();
	cr_assert_eq(change(GFN_PAGE_IN, 0, FRAMES - 4), PW_OK);
	cr_assert_eq(change(GFN_PAGE_IN, FRAMES, 8), PW_BUSY);
	cr_assert_eq(t.vm->counts.pages[GFN_SECURE_RESIDENT], FRAMES - 4);
	assert_agreement();
}

Test(change, a_lost_answer_is_asked_for_again_and_acted_on_once)
{
	make_agent(NULL);
	secure_vm();
	t.lose = 3;
	cr_assert_eq(change(GFN_PAGE_IN, 0, 8), PW_OK);
	cr_assert_eq(t.batches, 1);
	cr_assert_eq(t.lose, 0);
	assert_agreement();
}

/* Each hardware op fails in turn: what was undone must be exactly what had been done, and a retry works. */
static struct failing {
	char fault[24];
	enum gfn_op op;
} failing[] = {
	{ "page_in:2", GFN_PAGE_IN },    { "page_in:3", GFN_PAGE_IN },    { "page_in:2", GFN_UNSHARE_IN },
	{ "page_in:3", GFN_UNSHARE_IN }, { "page_in:4", GFN_UNSHARE_IN }, { "reserve:2", GFN_PAGE_IN },
	{ "reserve:3", GFN_PAGE_IN },    { "reserve:3", GFN_UNSHARE_IN }, { "share:2", GFN_SHARE },
	{ "unshare:1", GFN_UNSHARE },    { "page_out:1", GFN_PAGE_OUT },
};

ParameterizedTestParameters(change, a_failure_of_hardware_is_undone_exactly)
{
	return cr_make_param_array(struct failing, failing, PW_ARRAY_LEN(failing));
}

ParameterizedTest(struct failing *f, change, a_failure_of_hardware_is_undone_exactly)
{
	/* out 0-3, resident 4-7, out 8-11, shared 20-23, out 24-27 */
	uint64_t gfn = f->op == GFN_PAGE_OUT ? 4 : 0,
		 count = f->op == GFN_PAGE_OUT || f->op == GFN_PAGE_IN ? 12 - gfn : 28;
	uint64_t before;

	make_agent(f->fault);
	secure_vm();
	cr_assert_eq(change(GFN_PAGE_IN, 4, 4), PW_OK);
	cr_assert_eq(change(GFN_SHARE, 20, 4), PW_OK);
	before = digest();
	cr_assert_eq(change(f->op, gfn, count), PW_BACKEND, "%s", f->fault);
	cr_assert_eq(digest(), before, "%s", f->fault);
	assert_agreement();
	cr_assert_eq(change(f->op, gfn, count), PW_OK, "%s: again", f->fault);
	assert_agreement();
}

/* Frame 0 is the lowest, which the machine hands out first; the ledger says that another VM has it. */
static void take_frame_zero(void)
{
	struct gfn_run run = { 0, 1, 0 };
	struct item it = {
		.vm = t.other->id, .op = GFN_PAGE_IN, .framed = true, .pool = "local", .runs = &run, .run_count = 1
	};
	struct refusal why;
	bool changed;

	cr_assert_eq(ledger_vm_event(t.ledger, t.other, VM_INIT_START, &why), PROBLEM_NONE);
	cr_assert_eq(ledger_apply(t.ledger, t.host, &it, &changed, &why), PROBLEM_NONE, "%s", why.detail);
	ledger_commit(t.ledger);
}

Test(change, a_frame_conflict_gives_the_frames_back_and_names_the_owner)
{
	struct change c = { .op = GFN_PAGE_IN, .gfn = 3, .count = 5 };
	struct pw_err err;
	uint64_t pfn, before;

	make_agent(NULL);
	secure_vm();
	take_frame_zero();
	before = digest();
	c.vm = t.vm->id;
	changes_run(&t.worker, &c, 1);
	cr_assert_eq(c.st, PW_CONFLICT);
	cr_assert_str_eq(json_string_value(json_object_get(c.trouble.problem, "type")), "/problems/frame-conflict");
	cr_assert_eq(json_array_size(json_object_get(c.trouble.problem, "conflicts")), 1);
	changes_release(&c, 1);
	cr_assert_eq(digest(), before);
	assert_agreement();
	cr_assert_eq(t.agent.backend->ops->reserve(t.agent.backend, &t.vm->id, 9, 1, &pfn, &err), PW_OK);
	cr_assert_eq(pfn, 0, "it was free again");
}

static enum pw_status operate(enum operation_kind kind, const char *params, struct trouble *trouble)
{
	struct operation op = { .kind = kind, .vm = t.vm->id, .params = json_loads(params, 0, NULL) };
	enum pw_status st = operation_run(&t.worker, &op, trouble);

	json_decref(op.params);
	return st;
}

static bool is_on_hardware(void)
{
	enum vm_state state;
	struct pw_err err;
	bool found;

	cr_assert_eq(hardware_vm(t.agent.backend, &t.vm->id, &found, &state, &err), PW_OK);
	return found;
}

static enum pw_status operate_again(enum operation_kind kind, const char *params, struct trouble *trouble)
{
	struct operation op = { .kind = kind, .vm = t.vm->id, .again = true, .params = json_loads(params, 0, NULL) };
	enum pw_status st = operation_run(&t.worker, &op, trouble);

	json_decref(op.params);
	return st;
}

Test(change, an_abort_of_a_vm_that_is_not_transient_is_refused_and_destroys_nothing)
{
	struct trouble trouble = { 0 };
	uint64_t before;

	make_agent(NULL);
	cr_assert_eq(operate(OPERATION_ABORT, "{}", &trouble), PW_CONFLICT, "nothing there");
	trouble_clear(&trouble);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"plain\":true}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert_eq(operate(OPERATION_ABORT, "{}", &trouble), PW_CONFLICT, "a plain one");
	cr_assert_str_eq(json_string_value(json_object_get(trouble.problem, "type")), "/problems/vm-transition");
	trouble_clear(&trouble);
	cr_assert_eq(operate_again(OPERATION_ABORT, "{}", &trouble), PW_CONFLICT, "it runs");
	trouble_clear(&trouble);
	cr_assert(t.vm->state == VM_NORMAL && is_on_hardware());
	cr_assert_eq(operate(OPERATION_TERMINATE, "{}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":8}", &trouble), PW_OK, "%s", trouble.err.msg);
	before = digest();
	cr_assert_eq(operate(OPERATION_ABORT, "{}", &trouble), PW_CONFLICT, "a secure one");
	cr_assert(t.vm->state == VM_SECURE && is_on_hardware() && digest() == before);
	assert_agreement();
	trouble_clear(&trouble);
}

Test(change, an_abort_that_is_delivered_again_is_done)
{
	struct trouble trouble = { 0 };

	make_agent(NULL);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":8}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert_eq(operate(OPERATION_TERMINATE, "{}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert(!is_on_hardware());
	cr_assert_eq(operate_again(OPERATION_ABORT, "{}", &trouble), PW_OK, "%s", trouble.err.msg);
	trouble_clear(&trouble);
}

Test(change, a_plain_launch_that_fails_leaves_nothing_behind)
{
	struct trouble trouble = { 0 };

	make_agent("run_vm:1");
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"plain\":true}", &trouble), PW_BACKEND);
	cr_assert(t.vm->state == VM_NORMAL && !is_on_hardware());
	trouble_clear(&trouble);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"plain\":true}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert(is_on_hardware());
	trouble_clear(&trouble);
}

static bool hardware_slot(void *ctx, const struct slot *s)
{
	*(unsigned *)ctx |= 1u << s->number;
	return true;
}

/* The slots that ledger and hardware have, a bit each. */
static unsigned ledger_slots(void)
{
	unsigned found = 0;

	for (size_t i = 0; i < t.vm->slot_count; i++)
		found |= 1u << t.vm->slots[i].number;
	return found;
}

static unsigned hardware_slots(void)
{
	unsigned found = 0, shared_bit;
	struct pw_err err = { 0 };

	cr_assert_eq(
		t.agent.backend->ops->read_slots(t.agent.backend, &t.vm->id, hardware_slot, &found, &shared_bit, &err),
		PW_OK, "%s", err.msg);
	return found;
}

#define PLUG   "{\"slot\":3,\"base_gfn\":1024,\"pages\":16}"
#define UNPLUG "{\"slot\":3}"

ParameterizedTestParameters(each_arch, a_slot_is_plugged_and_unplugged)
{
	static enum arch all[] = { ARCH_PEF, ARCH_TDX, ARCH_PKVM, ARCH_SNP, ARCH_CCA };

	return cr_make_param_array(enum arch, all, PW_ARRAY_LEN(all));
}

ParameterizedTest(enum arch *arch, each_arch, a_slot_is_plugged_and_unplugged)
{
	struct trouble trouble = { 0 };

	t.arch = *arch;
	set_up();

	make_agent(NULL);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":12}", &trouble), PW_OK, "%s", trouble.err.msg);
	for (int round = 0; round < 2; round++) {
		cr_assert_eq(operate(OPERATION_PLUG, PLUG, &trouble), PW_OK, "%s", trouble.err.msg);
		cr_assert_eq(operate_again(OPERATION_PLUG, PLUG, &trouble), PW_OK, "%s", trouble.err.msg);
		cr_assert(ledger_slots() == 9 && hardware_slots() == 9, "%u %u", ledger_slots(), hardware_slots());
		assert_agreement();
		cr_assert_eq(operate(OPERATION_PAGE_IN, "{\"gfn\":1024,\"count\":16}", &trouble), PW_OK, "%s",
			     trouble.err.msg);
		cr_assert_eq(t.vm->counts.pages[GFN_SECURE_RESIDENT], 28);
		cr_assert_eq(operate(OPERATION_UNPLUG, UNPLUG, &trouble), PW_OK, "%s", trouble.err.msg);
		cr_assert(ledger_slots() == 1 && hardware_slots() == 1, "%u %u", ledger_slots(), hardware_slots());
		cr_assert_eq(t.vm->counts.pages[GFN_SECURE_RESIDENT], 12);
		assert_agreement();
		cr_assert_eq(operate_again(OPERATION_UNPLUG, UNPLUG, &trouble), PW_OK, "%s", trouble.err.msg);
		cr_assert_eq(operate(OPERATION_UNPLUG, UNPLUG, &trouble), PW_CONFLICT, "never there");
		cr_assert_str_eq(json_string_value(json_object_get(trouble.problem, "type")),
				 "/problems/slot-not-found");
		trouble_clear(&trouble);
	}
	cr_assert_eq(operate(OPERATION_PAGE_IN, "{\"gfn\":12,\"count\":20}", &trouble), PW_OK,
		     "the frames are free: %s", trouble.err.msg);
	cr_assert_eq(operate(OPERATION_TERMINATE, "{}", &trouble), PW_OK, "%s", trouble.err.msg);
	trouble_clear(&trouble);
	tear_down();
}

Test(change, a_plug_that_hardware_refuses_takes_the_slot_back)
{
	struct trouble trouble = { 0 };

	make_agent("map_slot:2");
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":12}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert_eq(operate(OPERATION_PLUG, PLUG, &trouble), PW_BACKEND);
	cr_assert(strstr(trouble.err.msg, "injected"), "%s", trouble.err.msg);
	cr_assert(ledger_slots() == 1 && hardware_slots() == 1, "%u %u", ledger_slots(), hardware_slots());
	assert_agreement();
	trouble_clear(&trouble);
	cr_assert_eq(operate(OPERATION_PLUG, PLUG, &trouble), PW_OK, "%s", trouble.err.msg);
	assert_agreement();
	trouble_clear(&trouble);
}

Test(change, a_plug_that_fails_leaves_a_slot_that_was_there_before)
{
	struct slot slot = { 3, 1024, 16 };
	struct trouble trouble = { 0 };
	struct refusal why;
	bool created;

	make_agent("map_slot:2");
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":12}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert_eq(ledger_slot_put(t.ledger, t.vm, &slot, &created, &why), PROBLEM_NONE);
	cr_assert_eq(operate(OPERATION_PLUG, PLUG, &trouble), PW_BACKEND);
	cr_assert_eq(ledger_slots(), 9, "it was not this plug that made it");
	trouble_clear(&trouble);
}

Test(change, an_unplug_that_hardware_refuses_changes_nothing)
{
	struct trouble trouble = { 0 };
	uint64_t before;

	make_agent("unmap_slot:1");
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":12}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert_eq(operate(OPERATION_PLUG, PLUG, &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert_eq(operate(OPERATION_PAGE_IN, "{\"gfn\":1024,\"count\":16}", &trouble), PW_OK, "%s", trouble.err.msg);
	before = digest();
	cr_assert_eq(operate(OPERATION_UNPLUG, UNPLUG, &trouble), PW_BACKEND);
	cr_assert(ledger_slots() == 9 && hardware_slots() == 9 && digest() == before);
	assert_agreement();
	trouble_clear(&trouble);
	cr_assert_eq(operate(OPERATION_UNPLUG, UNPLUG, &trouble), PW_OK, "%s", trouble.err.msg);
	assert_agreement();
	trouble_clear(&trouble);
}

Test(change, a_plug_of_a_vm_that_no_hardware_has_is_the_ledgers_alone)
{
	struct trouble trouble = { 0 };

	make_agent(NULL);
	cr_assert_eq(operate(OPERATION_PLUG, PLUG, &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert(ledger_slots() == 9 && !is_on_hardware());
	cr_assert_eq(operate(OPERATION_UNPLUG, UNPLUG, &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert(ledger_slots() == 1 && !is_on_hardware());
	trouble_clear(&trouble);
}

Test(change, a_launch_makes_a_secure_vm_and_a_terminate_takes_it_away)
{
	struct trouble trouble = { 0 };

	make_agent(NULL);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":20,\"shared\":[[0,4]]}", &trouble), PW_OK, "%s",
		     trouble.err.msg);
	cr_assert_eq(t.vm->state, VM_SECURE);
	cr_assert(t.vm->counts.pages[GFN_SECURE_RESIDENT] == 20 && t.vm->counts.pages[GFN_SHARED] == 4);
	assert_agreement();
	cr_assert_eq(operate(OPERATION_LAUNCH, "{}", &trouble), PW_OK, "said again");
	assert_agreement();
	cr_assert_eq(operate(OPERATION_TERMINATE, "{}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert(t.vm->state == VM_NORMAL && !is_on_hardware());
	cr_assert_eq(operate(OPERATION_TERMINATE, "{}", &trouble), PW_OK, "said again");
	trouble_clear(&trouble);
}

Test(change, a_launch_takes_what_the_pool_has_unless_told)
{
	struct trouble trouble = { 0 };

	make_agent(NULL);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{}", &trouble), PW_OK, "%s", trouble.err.msg);
	cr_assert_eq(t.vm->counts.pages[GFN_SECURE_RESIDENT], FRAMES);
	assert_agreement();
	cr_assert_eq(operate(OPERATION_TERMINATE, "{}", &trouble), PW_OK);
	cr_assert_neq(operate(OPERATION_LAUNCH, "{\"resident\":1.0}", &trouble), PW_OK);
	cr_assert_str_eq(json_string_value(json_object_get(trouble.problem, "type")), "/problems/too-much-work");
	cr_assert(t.vm->state == VM_NORMAL && !is_on_hardware());
	trouble_clear(&trouble);
}

Test(change, a_launch_that_meets_a_frame_conflict_leaves_nothing_behind)
{
	struct trouble trouble = { 0 };
	json_t *problem;

	make_agent(NULL);
	take_frame_zero();
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":8}", &trouble), PW_CONFLICT);
	problem = trouble_problem(&trouble);
	cr_assert_str_eq(json_string_value(json_object_get(problem, "type")), "/problems/frame-conflict");
	cr_assert_not_null(json_object_get(problem, "conflicts"));
	cr_assert(t.vm->state == VM_NORMAL && !is_on_hardware());
	cr_assert_eq(t.other->counts.pages[GFN_SECURE_RESIDENT], 1, "what it had not touched is untouched");
	json_decref(problem);
	trouble_clear(&trouble);
}

static struct failing_launch {
	char fault[24];
} launches[] = { { "create_vm:1" }, { "vm_event:1" }, { "share:1" }, { "reserve:1" },
		 { "page_in:1" },   { "vm_event:2" }, { "run_vm:1" } };

ParameterizedTestParameters(change, a_launch_that_fails_leaves_nothing_behind_and_works_the_next_time)
{
	return cr_make_param_array(struct failing_launch, launches, PW_ARRAY_LEN(launches));
}

ParameterizedTest(struct failing_launch *f, change, a_launch_that_fails_leaves_nothing_behind_and_works_the_next_time)
{
	struct trouble trouble = { 0 };

	make_agent(f->fault);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":8,\"shared\":[[0,4]]}", &trouble), PW_BACKEND, "%s",
		     f->fault);
	cr_assert(strstr(trouble.err.msg, "injected"), "%s", trouble.err.msg);
	cr_assert(t.vm->state == VM_NORMAL && !is_on_hardware(), "%s", f->fault);
	cr_assert(agent_is_registered(&t.agent));
	trouble_clear(&trouble);
	cr_assert_eq(operate(OPERATION_LAUNCH, "{\"resident\":8,\"shared\":[[0,4]]}", &trouble), PW_OK, "%s: %s",
		     f->fault, trouble.err.msg);
	assert_agreement();
	trouble_clear(&trouble);
}

Test(change, a_range_that_fails_half_way_takes_back_its_first_half)
{
	struct trouble trouble = { 0 };
	uint64_t before;

	make_agent(NULL);
	secure_vm();
	cr_assert_eq(change(GFN_PAGE_IN, 10, 4), PW_OK);
	before = digest();
	/* as many as the pool has, of which some are taken: the first piece fits, the second does not */
	cr_assert_eq(operate(OPERATION_PAGE_IN, "{\"gfn\":16,\"count\":32}", &trouble), PW_BUSY);
	cr_assert_eq(digest(), before);
	assert_agreement();
	trouble_clear(&trouble);
}

Test(change, random_operations_keep_the_two_in_agreement)
{
	static const enum gfn_op ops[] = { GFN_SHARE, GFN_UNSHARE, GFN_UNSHARE_IN, GFN_PAGE_IN, GFN_PAGE_OUT };
	uint64_t random = 42;

	make_agent("page_in:20,page_out:11,share:9,unshare:7,reserve:25");
	secure_vm();
	for (int i = 0; i < 300; i++) {
		enum gfn_op op = ops[next_random(&random) % PW_ARRAY_LEN(ops)];
		uint64_t gfn = next_random(&random) % PAGES, count = 1 + next_random(&random) % (PAGES - gfn);

		(void)change(op, gfn, count < 10 ? count : 10);
		assert_agreement();
	}
	cr_assert_gt(t.batches, 50);
}
