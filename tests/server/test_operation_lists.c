/*
 * The lists of operations without a server: whatever was added, changed, taken back and forgotten, they hold what a
 * plain walk over all operations finds, in the order in which they were made.
 */
#include <criterion/criterion.h>
#include <stdlib.h>
#include <string.h>

#include "server/service_impl.h"

/* --- In place of http.c --- */

void request_resume(struct request *r)
{
}

const char *request_query(const struct request *r, const char *name)
{
	return NULL;
}

void request_each_query(const struct request *r, query_fn fn, void *ctx)
{
}

enum { HOSTS = 3, VMS = 5, KEPT = 6 };
static struct service sv;
static struct config config = { .host_finished = KEPT, .operations = 1000, .operation_hours = 1 };
static struct host_note notes[HOSTS];
static struct host *hosts[HOSTS];
static uint64_t random_state = 7;

static unsigned chance(unsigned n)
{
	random_state = random_state * 6364136223846793005u + 1442695040888963407u;
	return (unsigned)(random_state >> 33) % n;
}

static struct pw_uuid numbered(unsigned kind, unsigned n)
{
	return (struct pw_uuid){ { (uint8_t)(n * 37), (uint8_t)kind, (uint8_t)(n >> 8), (uint8_t)n, 0, 0, 0x40, 0,
				   0x80 } };
}

static void setup(void)
{
	memset(&sv, 0, sizeof sv);
	sv.config = &config;
	sv.ledger = ledger_new(&sv.mem);
	cr_assert(sv.ledger);
	index_init(&sv.operations, &sv.mem, operation_compare);
	index_init(&sv.vm_operations, &sv.mem, operation_vm_compare);
	for (unsigned i = 0; i < HOSTS; i++) {
		struct host_spec spec = { .id = numbered(1, i), .name = "h", .boot_id = "b", .page_shift = 12 };
		struct refusal why;

		cr_assert_eq(ledger_load_host(sv.ledger, &spec, 1, false, &hosts[i], &why), PROBLEM_NONE, "%s",
			     why.detail);
		notes[i] = (struct host_note){ .backends = NULL };
		hosts[i]->note = &notes[i];
	}
	ledger_commit(sv.ledger);
}

static void teardown(void)
{
	ledger_commit(sv.ledger);
	operations_release(&sv);
	free(sv.deleted_operations);
	ledger_free(sv.ledger);
	cr_expect_eq(sv.mem.used, 0, "memory is left over");
}

TestSuite(operation_lists, .init = setup, .fini = teardown, .timeout = 60);

static struct operation *add(unsigned n, unsigned host, unsigned vm)
{
	struct operation *made, o = { .id = numbered(2, n),
				      .host = numbered(1, host),
				      .vm = numbered(3, vm),
				      .kind = n % 3 ? OPERATION_SHARE : OPERATION_UNPLUG,
				      .state = OPERATION_PENDING,
				      .created_ms = n,
				      .revision = n,
				      .params = strdup(n % 3 ? "{}" : "{\"slot\":7}") };

	cr_assert_eq(operation_add(&sv, &o, &made), PW_OK);
	return made;
}

static void set(struct operation *o, enum operation_state state, int64_t now_ms)
{
	struct operation to = *o;

	to.state = state;
	to.deliver = false;
	to.slot = 0; /* a journal's record does not say it again */
	to.finished_ms = state == OPERATION_RUNNING ? 0 : now_ms;
	cr_assert_eq(operation_set(&sv, o, &to), PW_OK);
}

/* The list must hold what `belongs` to it, all of it, and in the order of creation if asked. */
static void check_list(const struct operation_list *l, enum operation_place p, size_t expected, bool ordered)
{
	const struct operation *before = NULL;
	size_t n = 0;

	for (const struct operation *o = l->oldest; o; o = o->at[p].newer) {
		cr_assert_eq(o->at[p].older, before);
		cr_assert(!ordered || !before || before->created_ms < o->created_ms);
		before = o;
		n++;
	}
	cr_assert_eq(l->newest, before);
	cr_assert_eq(l->count, n);
	cr_assert_eq(n, expected);
}

static void check(void)
{
	size_t active[HOSTS] = { 0 }, finished[HOSTS] = { 0 }, pending[HOSTS] = { 0 }, waiting[HOSTS] = { 0 };
	size_t vms[VMS] = { 0 }, states[OPERATION_STATE_COUNT] = { 0 }, all_finished = 0;

	cr_assert_eq(sv.operations.count, sv.vm_operations.count);
	for (size_t i = 0; i < sv.operations.count; i++) {
		const struct operation *o = sv.operations.items[i];
		unsigned h = o->host.b[3], v = o->vm.b[3];

		states[o->state]++;
		cr_assert_eq(o->slot, o->kind == OPERATION_UNPLUG ? 7 : 0);
		if (operation_is_active(o)) {
			active[h]++;
			vms[v]++;
			pending[h] += o->state == OPERATION_PENDING;
			waiting[h] += o->state == OPERATION_PENDING || o->deliver;
		} else {
			finished[h]++;
			all_finished++;
		}
	}
	cr_assert_eq(memcmp(states, sv.operation_counts, sizeof states), 0);
	check_list(&sv.finished, OPERATION_OF_FLEET, all_finished, false);
	for (unsigned h = 0; h < HOSTS; h++) {
		check_list(&notes[h].active, OPERATION_OF_HOST, active[h], true);
		check_list(&notes[h].finished, OPERATION_OF_HOST, finished[h], false);
		cr_assert_eq(notes[h].pending, pending[h]);
		cr_assert_eq(notes[h].waiting, waiting[h]);
	}
	for (unsigned v = 0; v < VMS; v++) {
		struct pw_uuid vm = numbered(3, v);
		size_t n = 0;

		for (struct operation *o = operation_of_vm(&sv, &vm, NULL); o; o = operation_of_vm(&sv, &vm, o))
			n++;
		cr_assert_eq(n, vms[v]);
		cr_assert_eq(vm_has_active_operation(&sv, &vm), n > 0);
	}
}

Test(operation_lists, hold_what_there_is_after_any_sequence)
{
	for (unsigned n = 1; n < 6000; n++) {
		struct operation *o =
			sv.operations.count ? sv.operations.items[chance((unsigned)sv.operations.count)] : NULL;

		switch (chance(8)) {
		case 0: ledger_commit(sv.ledger); break;
		case 1: ledger_rollback(sv.ledger, 0); break;
		case 2: operations_again(&sv, hosts[chance(HOSTS)]); break;
		case 3:
		case 4:
			if (o && operation_is_active(o))
				set(o, (enum operation_state)(OPERATION_RUNNING + chance(4)), n);
			break;
		default: add(n, chance(HOSTS), chance(VMS)); break;
		}
		if (n % 500 == 0) {
			ledger_commit(sv.ledger);
			operations_tick(&sv, n % 1000 ? n : INT64_MAX / 2);
		}
		check();
	}
}

Test(operation_lists, a_host_s_oldest_finished_ones_go_and_nobody_else_s)
{
	struct operation *other = add(1, 1, 0);

	set(other, OPERATION_FAILED, 1);
	for (unsigned n = 2; n < 30; n++)
		set(add(n, 0, 0), OPERATION_CANCELLED, n);
	cr_assert_eq(sv.finished.count, 29, "not before it is final");
	ledger_commit(sv.ledger);
	cr_assert_eq(sv.finished.count, KEPT + 1);
	cr_assert_eq(notes[0].finished.oldest->created_ms, 30 - KEPT);
	cr_assert_eq(operation_find(&sv, &other->id), other);
	cr_assert_eq(sv.deleted_operation_count, 28 - KEPT, "the picture is told");
	check();
}

Test(operation_lists, the_fleet_s_oldest_finished_ones_leave_half_for_others)
{
	config.operations = 12;
	for (unsigned n = 1; n < 30; n++)
		set(add(n, n % HOSTS, 0), OPERATION_CANCELLED, n);
	ledger_commit(sv.ledger);
	cr_assert_eq(sv.finished.count, 6);
	cr_assert_eq(sv.finished.oldest->created_ms, 24);
	check();
}

Test(operation_lists, finished_ones_are_kept_by_age)
{
	set(add(1, 0, 0), OPERATION_FAILED, 1000);
	set(add(2, 0, 0), OPERATION_FAILED, 2000);
	add(3, 0, 0);
	ledger_commit(sv.ledger);
	operations_tick(&sv, 3600000 + 1000);
	cr_assert_eq(sv.operations.count, 3);
	operations_tick(&sv, 3600000 + 1001);
	cr_assert_eq(sv.operations.count, 2);
	operations_tick(&sv, INT64_MAX / 2);
	cr_assert_eq(sv.operations.count, 1, "one that is not finished stays");
	check();
}

Test(operation_lists, an_operation_of_no_host_is_not_added)
{
	struct operation *made, o = { .id = numbered(2, 1), .host = numbered(1, 9), .vm = numbered(3, 0) };

	cr_assert_eq(operation_add(&sv, &o, &made), PW_NOT_FOUND);
	check();
}
