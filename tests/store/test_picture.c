#include <criterion/criterion.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "store/extent.h"
#include "store/schema.h"
#include "tests/lib/store_dir.h"

static struct store_dir d;
static struct pw_err err;

static void setup(void)
{
	store_dir_make(&d);
	store_fill(d.s, 1, 20);
}

static void teardown(void)
{
	store_dir_remove(&d);
}

TestSuite(picture, .init = setup, .fini = teardown, .timeout = 20);

/* What was loaded, one line a row: compared as text. */
struct loaded {
	char text[16384];
	size_t n;
	unsigned refuse_at, rows;
};

__attribute__((format(printf, 3, 4))) static enum pw_status line(struct loaded *l, struct pw_err *e, const char *fmt,
								 ...)
{
	va_list ap;

	if (++l->rows == l->refuse_at)
		return pw_fail(e, PW_NOT_FOUND, "refused by the test");
	va_start(ap, fmt);
	l->n += (size_t)vsnprintf(l->text + l->n, sizeof l->text - l->n, fmt, ap);
	va_end(ap);
	cr_assert_lt(l->n, sizeof l->text);
	return PW_OK;
}

static unsigned number_of(const struct pw_uuid *id)
{
	return pw_uuid_is_nil(id) ? 0 : (unsigned)id->b[14] << 8 | id->b[15];
}

static enum pw_status on_host(void *ctx, const struct host_row *r, struct pw_err *e)
{
	return line(ctx, e,
		    "host %u %s %s %s %s %" PRIu64 " %d %d %#x %" PRIu64 " %" PRIu64 " %u %" PRId64 " %" PRIu64 " %d\n",
		    number_of(&r->id), r->name, r->boot_id, r->backends, r->agent_version, r->epoch, r->fenced,
		    r->has_local, r->arches, r->base, r->frames, r->page_shift, r->last_seen_ms, r->revision,
		    r->unreachable);
}

static enum pw_status on_pool(void *ctx, const struct pool_row *r, struct pw_err *e)
{
	return line(ctx, e, "pool %s %" PRIu64 " %" PRIu64 " %u %" PRIu64 "\n", r->name, r->base, r->frames,
		    r->page_shift, r->revision);
}

static enum pw_status on_attachment(void *ctx, const struct attachment_row *r, struct pw_err *e)
{
	return line(ctx, e, "attachment %s %u %u\n", r->pool, number_of(&r->host), r->place);
}

static enum pw_status on_vm(void *ctx, const struct vm_row *r, struct pw_err *e)
{
	return line(ctx, e, "vm %u %u %s %s %s %s %" PRIu64 " %u %" PRIu64 " %" PRIu64 "%s\n", number_of(&r->id),
		    number_of(&r->host), r->name, r->arch, r->state, r->arch_state, r->epoch, r->shared_bit,
		    r->revision, r->ended, r->on_hardware ? " on hardware" : "");
}

static enum pw_status on_slot(void *ctx, const struct slot_row *r, struct pw_err *e)
{
	return line(ctx, e, "slot %u %u %" PRIu64 " %" PRIu64 "\n", number_of(&r->vm), r->slot.number, r->slot.base,
		    r->slot.pages);
}

static enum pw_status on_vcpu(void *ctx, const struct vcpu_row *r, struct pw_err *e)
{
	return line(ctx, e, "vcpu %u %u %s %s %" PRId64 " %" PRIu64 "\n", number_of(&r->vm), r->vcpu, r->exit, r->items,
		    r->time_ms, r->revision);
}

static enum pw_status on_quarantine(void *ctx, const struct quarantine_row *r, struct pw_err *e)
{
	return line(ctx, e, "quarantine %u %s %" PRIu64 " %" PRIu64 " %s %" PRId64 "\n", number_of(&r->host), r->pool,
		    r->pfn, r->count, r->reason, r->time_ms);
}

static enum pw_status on_extent(void *ctx, const struct extent_row *r, struct pw_err *e)
{
	return line(ctx, e, "extent %u %" PRIu64 " %" PRIu64 " %#" PRIx64 "%s%s\n", number_of(&r->vm), r->gfn, r->count,
		    r->entry, r->arch_state ? " " : "", r->arch_state ? r->arch_state : "");
}

static enum pw_status on_operation(void *ctx, const struct operation_row *r, struct pw_err *e)
{
	return line(ctx, e,
		    "operation %u %u %u %s %s %s %s %" PRIu64 " %" PRId64 " %" PRId64 " %" PRId64 " %" PRIu64 "\n",
		    number_of(&r->id), number_of(&r->vm), number_of(&r->host), r->kind, r->state, r->params, r->problem,
		    r->host_epoch, r->created_ms, r->started_ms, r->finished_ms, r->revision);
}

static enum pw_status on_token(void *ctx, const struct token_row *r, struct pw_err *e)
{
	return line(ctx, e, "token %u %s %s %u %02x%02x %" PRId64 " %" PRIu64 "\n", number_of(&r->id), r->role, r->name,
		    number_of(&r->host), r->hash[0], r->hash[31], r->created_ms, r->revision);
}

static enum pw_status on_end(void *ctx, const struct end_row *r, struct pw_err *e)
{
	return line(ctx, e, "end %u %" PRId64 " %u %" PRIu64 " %" PRId64 "\n", number_of(&r->vm), r->slot,
		    number_of(&r->host), r->revision, r->time_ms);
}

static enum pw_status on_unknown(void *ctx, const struct unknown_row *r, struct pw_err *e)
{
	return line(ctx, e, "unknown %u %u %s %" PRId64 " %" PRIu64 "\n", number_of(&r->host), number_of(&r->vm),
		    r->report, r->since_ms, r->revision);
}

static enum pw_status try_load(struct loaded *l, uint64_t *revision)
{
	const struct picture_reader r = { l,        on_host, on_pool,       on_attachment, on_vm,
					  on_slot,  on_vcpu, on_quarantine, on_extent,     on_operation,
					  on_token, on_end,  on_unknown };

	return store_load_picture(d.s, &r, revision, &err);
}

static void expect(uint64_t revision, const char *text)
{
	static struct loaded l;
	uint64_t at = 99;

	memset(&l, 0, sizeof l);
	cr_assert_eq(try_load(&l, &at), PW_OK, "%s", err.msg);
	cr_assert_eq(at, revision);
	cr_assert_str_eq(l.text, text);
}

#define RESIDENT(place, pfn) (GFN_ENTRY_RESIDENT | (uint64_t)(place) << GFN_ENTRY_POOL | (pfn))
#define ARCH(state)          ((uint64_t)((state) + 1) << GFN_ENTRY_ARCH)

/* Everything once: two hosts, a pool of both, two VMs. */
struct world {
	struct host_row hosts[2];
	struct pool_row pools[1];
	struct attachment_row attachments[2];
	struct vm_row vms[2];
	struct slot_row slots[3];
	struct extent_row extents[8];
	struct quarantine_row quarantine[2];
	struct operation_row operations[2];
	struct token_row tokens[2];
	struct picture p;
};

static struct world make_world(void)
{
	struct pw_uuid h1 = test_uuid(1), h2 = test_uuid(2), v5 = test_uuid(5), v6 = test_uuid(6);
	struct world w = {
		.hosts = { { h1, "a", "boot-1", "[{\"arch\":\"snp\"}]", "1.0", 3, false, true, 0x8, 16, 1024, 12, 500,
			     7, false },
			   { h2, "b", "boot-2", "[]", "", 1, true, false, 0x1, 0, 0, 12, -1, 8, true } },
		.pools = { { "cxl", 4096, 512, 12, 9 } },
		.attachments = { { "cxl", h2, 1 }, { "cxl", h1, 2 } },
		.vms = { { v5, h1, "web", "snp", "secure", "RUNNING", 2, 0, 10, 4, true },
			 { v6, h2, NULL, "pef", "normal", "", 1, 47, 11, 11, false } },
		.slots = { { v5, { 0, 0, 100 } }, { v5, { 7, 512, 600 } }, { v6, { 0, 0, 8 } } },
		.extents = { { v5, 0, 512, 0, NULL },
			     { v5, 0, 10, RESIDENT(0, 100), NULL },
			     { v5, 10, 5, GFN_ENTRY_OUT, NULL },
			     { v5, 20, 1, GFN_ENTRY_SHARED | ARCH(0), "Lent" },
			     { v5, 512, 512, 0, NULL },
			     { v5, 600, 2, RESIDENT(2, 4096) | ARCH(14), "Guest-Invalid" },
			     { v6, 0, 512, 0, NULL },
			     { v6, 3, 1, ARCH(1), "no flag" } },
		.quarantine = { { h1, "local", 50, 2, "rmp", 123 }, { .pool = "cxl", 4100, 1, "poison", 124 } },
		.operations = { { test_uuid(30), v5, h1, "launch", "succeeded", "{}", "", 3, 1, 2, 3, 12 },
				{ test_uuid(31), v5, h1, "share", "pending", "{\"gfn\":1}", "", 0, 4, 0, 0, 13 } },
		.tokens = { { test_uuid(40), "admin", "root", { { 0 } }, { 0xab, [31] = 0xcd }, 1, 1 },
			    { test_uuid(41), "agent", "a", h1, { 0x01 }, 2, 2 } },
	};

	return w;
}

static void save(struct world *w, uint64_t revision)
{
	w->p = (struct picture){
		.revision = revision,
		.full = true,
		.hosts = w->hosts,
		.host_count = 2,
		.pools = w->pools,
		.pool_count = 1,
		.attachments = w->attachments,
		.attachment_count = 2,
		.vms = w->vms,
		.vm_count = 2,
		.slots = w->slots,
		.slot_count = 3,
		.extents = w->extents,
		.extent_count = 8,
		.quarantine = w->quarantine,
		.quarantine_count = 2,
		.operations = w->operations,
		.operation_count = 2,
		.tokens = w->tokens,
		.token_count = 2,
	};
	cr_assert_eq(store_save_picture(d.s, &w->p, &err), PW_OK, "%s", err.msg);
}

#define HOSTS                                                                     \
	"host 1 a boot-1 [{\"arch\":\"snp\"}] 1.0 3 0 1 0x8 16 1024 12 500 7 0\n" \
	"host 2 b boot-2 []  1 1 0 0x1 0 0 12 -1 8 1\n"
#define POOLS      "pool cxl 4096 512 12 9\nattachment cxl 1 2\nattachment cxl 2 1\n"
#define VM5        "vm 5 1 web snp secure RUNNING 2 0 10 4 on hardware\n"
#define VM6        "vm 6 2  pef normal  1 47 11 11\n"
#define SLOTS      "slot 5 0 0 100\nslot 5 7 512 600\nslot 6 0 0 8\n"
#define QUARANTINE "quarantine 1 local 50 2 rmp 123\nquarantine 0 cxl 4100 1 poison 124\n"
#define EXTENTS                                             \
	"extent 5 0 10 0x8000000000000064\n"                \
	"extent 5 10 5 0x4000000000000000\n"                \
	"extent 5 20 1 0x2000000000000000 Lent\n"           \
	"extent 5 600 2 0x8000020000001000 Guest-Invalid\n" \
	"extent 6 3 1 0 no flag\n"
/* In the order in which they ended, those that did not first. */
#define OPERATIONS                                                 \
	"operation 31 5 1 share pending {\"gfn\":1}  0 4 0 0 13\n" \
	"operation 30 5 1 launch succeeded {}  3 1 2 3 12\n"
#define TOKENS "token 40 admin root 0 abcd 1 1\ntoken 41 agent a 1 0100 2 2\n"

Test(picture, there_is_none_at_first)
{
	expect(0, "");
}

Test(picture, full_one_comes_back_as_it_was_saved)
{
	struct world w = make_world();

	save(&w, 13);
	expect(13, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
	store_dir_reopen(&d);
	expect(13, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
}

Test(picture, people_read_states_and_pool_names)
{
	struct world w = make_world();

	save(&w, 13);
	cr_assert_eq(store_ask(d.path, "ledger.db",
			       "SELECT count(*) FROM gfn_map WHERE state = 'secure' AND resident AND pool = 'cxl'"
			       " AND pfn = 4096 AND vm = '42000000-0000-0000-0000-000000000005'"),
		     1);
	cr_assert_eq(store_ask(d.path, "ledger.db", "SELECT count(*) FROM gfn_map WHERE pool = 'local'"), 1);
}

Test(picture, full_one_forgets_the_old)
{
	struct world w = make_world();
	struct picture empty = { .revision = 14, .full = true };

	save(&w, 13);
	cr_assert_eq(store_save_picture(d.s, &empty, &err), PW_OK, "%s", err.msg);
	expect(14, "");
}

/* The small tables come whole, so every partial picture carries them. */
static struct picture partial(const struct world *w, uint64_t revision)
{
	struct picture p = w->p;

	return (struct picture){ .revision = revision,
				 .pools = p.pools,
				 .pool_count = p.pool_count,
				 .attachments = p.attachments,
				 .attachment_count = p.attachment_count,
				 .quarantine = p.quarantine,
				 .quarantine_count = p.quarantine_count,
				 .tokens = p.tokens,
				 .token_count = p.token_count };
}

Test(picture, vcpus_come_and_go_with_their_vm)
{
	struct pw_uuid v5 = test_uuid(5), v6 = test_uuid(6);
	struct world w = make_world();
	struct vcpu_row rows[] = { { v5, 0, "interrupt", "{}", 900, 12 },
				   { v5, 511, "HVC CPU_ON", "{\"x0\":\"0xc4000003\"}", -1, 13 },
				   { v6, 1, "SError", "{}", 901, 11 } };
	struct picture p;

	save(&w, 13);
	p = partial(&w, 14);
	p.vms = w.vms;
	p.vm_count = 2;
	p.slots = w.slots;
	p.slot_count = 3;
	p.vcpus = rows;
	p.vcpu_count = 3;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	expect(14, HOSTS POOLS VM5 VM6 SLOTS "vcpu 5 0 interrupt {} 900 12\n"
					     "vcpu 5 511 HVC CPU_ON {\"x0\":\"0xc4000003\"} -1 13\n"
					     "vcpu 6 1 SError {} 901 11\n" QUARANTINE EXTENTS OPERATIONS TOKENS);
	p.revision = 15; /* VM 5 changed, and has one left; VM 6 did not */
	p.vm_count = 1;
	p.slot_count = 2;
	p.vcpu_count = 1;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	expect(15, HOSTS POOLS VM5 VM6 SLOTS
	       "vcpu 5 0 interrupt {} 900 12\nvcpu 6 1 SError {} 901 11\n" QUARANTINE EXTENTS OPERATIONS TOKENS);
	save(&w, 16);
	expect(16, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
}

Test(picture, ends_come_and_are_forgotten_by_their_age)
{
	struct pw_uuid h1 = test_uuid(1), v5 = test_uuid(5), v9 = test_uuid(9);
	struct world w = make_world();
	struct end_row rows[] = { { v5, 7, h1, 12, 900 }, { v9, -1, h1, 13, 901 }, { v9, 0, h1, 14, 902 } };
	struct unknown_row unknown[] = { { h1, v9, "{\"vm\":9}", 903, 15 } };
	struct picture p;

	save(&w, 13);
	p = partial(&w, 14);
	p.ends = rows;
	p.end_count = 3;
	p.unknown = unknown;
	p.unknown_count = 1;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	store_dir_reopen(&d);
	expect(14, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS
	       "end 5 7 1 12 900\nend 9 -1 1 13 901\nend 9 0 1 14 902\nunknown 1 9 {\"vm\":9} 903 15\n");
	rows[0] = (struct end_row){ v9, 0, h1, 16, 904 }; /* again */
	p = partial(&w, 16);
	p.ends_from = 13;
	p.ends = rows;
	p.end_count = 1;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	expect(16,
	       HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS "end 9 -1 1 13 901\nend 9 0 1 16 904\n");
	save(&w, 17);
	expect(17, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
}

Test(picture, span_voids_the_rows_that_begin_inside_it_and_nothing_else)
{
	struct pw_uuid v5 = test_uuid(5), v6 = test_uuid(6);
	struct world w = make_world();
	struct extent_row rows[] = { { v5, 256, 768, 0, NULL },
				     { v5, 520, 3, GFN_ENTRY_SHARED, NULL },
				     { v5, 1024, 512, 0, NULL },
				     { v6, 0, 512, 0, NULL } };
	struct picture p;

	save(&w, 13);
	p = partial(&w, 14);
	p.extents = rows;
	p.extent_count = PW_ARRAY_LEN(rows);
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	expect(14, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE "extent 5 0 10 0x8000000000000064\n"
							"extent 5 10 5 0x4000000000000000\n"
							"extent 5 20 1 0x2000000000000000 Lent\n"
							"extent 5 520 3 0x2000000000000000\n" OPERATIONS TOKENS);
}

Test(picture, partial_one_updates_by_id_and_drops_what_it_names)
{
	struct pw_uuid v6 = test_uuid(6), o30 = test_uuid(30);
	struct world w = make_world();
	struct slot_row slot = { test_uuid(5), { 1, 2048, 4 } };
	struct picture p;

	save(&w, 13);
	p = partial(&w, 15);
	w.hosts[1].fenced = false;
	w.hosts[1].epoch = 2;
	p.hosts = &w.hosts[1];
	p.host_count = 1;
	w.vms[0].state = "normal";
	w.vms[0].arch_state = NULL;
	w.vms[0].revision = 15;
	w.vms[0].on_hardware = false;
	p.vms = w.vms;
	p.vm_count = 1;
	p.slots = &slot;
	p.slot_count = 1;
	p.deleted_vms = &v6;
	p.deleted_vm_count = 1;
	w.operations[1].state = "running";
	p.operations = &w.operations[1];
	p.operation_count = 1;
	p.deleted_operations = &o30;
	p.deleted_operation_count = 1;
	p.token_count = 1;
	p.quarantine_count = 0;
	p.attachment_count = 1;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	expect(15, "host 1 a boot-1 [{\"arch\":\"snp\"}] 1.0 3 0 1 0x8 16 1024 12 500 7 0\n"
		   "host 2 b boot-2 []  2 0 0 0x1 0 0 12 -1 8 1\n"
		   "pool cxl 4096 512 12 9\nattachment cxl 2 1\n"
		   "vm 5 1 web snp normal  2 0 15 4\n"
		   "slot 5 1 2048 4\n"
		   "extent 5 0 10 0x8000000000000064\n"
		   "extent 5 10 5 0x4000000000000000\n"
		   "extent 5 20 1 0x2000000000000000 Lent\n"
		   "extent 5 600 2 0x8000020000001000 Guest-Invalid\n"
		   "operation 31 5 1 share running {\"gfn\":1}  0 4 0 0 13\n"
		   "token 40 admin root 0 abcd 1 1\n");
}

Test(picture, vm_that_was_deleted_and_made_again_has_nothing_of_the_old)
{
	struct pw_uuid v5 = test_uuid(5);
	struct world w = make_world();
	struct picture p;

	save(&w, 13);
	p = partial(&w, 14);
	p.deleted_vms = &v5;
	p.deleted_vm_count = 1;
	p.vms = w.vms;
	p.vm_count = 1;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	expect(14, HOSTS POOLS VM6 VM5 "slot 6 0 0 8\n" QUARANTINE "extent 6 3 1 0 no flag\n" OPERATIONS TOKENS);
}

Test(picture, refused_one_leaves_the_old)
{
	struct world w = make_world();
	static const char too_long[] = "a name that is longer than any that an architecture has for its states";
	struct extent_row bad[] = { { test_uuid(77), 700, 1, GFN_ENTRY_OUT, NULL },
				    { test_uuid(5), 700, 1, GFN_ENTRY_OUT | GFN_ENTRY_SHARED, NULL },
				    { test_uuid(5), 700, 1, TREE_TABLE, NULL },
				    { test_uuid(5), 700, 1, GFN_ENTRY_OUT | (uint64_t)1 << 52, NULL },
				    { test_uuid(5), 700, 1, GFN_ENTRY_OUT | ARCH(0), NULL },
				    { test_uuid(5), 700, 1, GFN_ENTRY_OUT, "Lent" },
				    { test_uuid(5), 700, 1, GFN_ENTRY_OUT | ARCH(0), "" },
				    { test_uuid(5), 700, 1, GFN_ENTRY_OUT | ARCH(0), "a\"b" },
				    { test_uuid(5), 700, 1, GFN_ENTRY_OUT | ARCH(0), "a\\b" },
				    { test_uuid(5), 700, 1, GFN_ENTRY_OUT | ARCH(0), too_long },
				    { test_uuid(5), 699, 1, GFN_ENTRY_OUT, NULL },
				    { test_uuid(5), 701, 2, GFN_ENTRY_OUT, NULL },
				    { test_uuid(5), 700, UINT64_MAX, GFN_ENTRY_OUT, NULL } };
	struct extent_row rows[2];
	struct picture p;

	save(&w, 13);
	for (size_t i = 0; i < PW_ARRAY_LEN(bad); i++) {
		p = partial(&w, 14);
		p.token_count = 0;
		p.extents = rows;
		p.extent_count = 2;
		rows[0] = (struct extent_row){ bad[i].vm, 700, 2, 0, NULL };
		rows[1] = bad[i];
		cr_assert_eq(store_save_picture(d.s, &p, &err), PW_INVALID, "%zu", i);
		expect(13, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
	}
	p.extents = rows + 1;
	p.extent_count = 1;
	rows[1] = (struct extent_row){ test_uuid(5), 700, 1, GFN_ENTRY_OUT, NULL };
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_INVALID, "a run of no span");
	p = partial(&w, 12);
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_CONFLICT, "older");
	w.vms[0].state = "nonsense";
	p = partial(&w, 14);
	p.vms = w.vms;
	p.vm_count = 1;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_STORAGE, "the schema holds what it can");
	expect(13, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
}

Test(picture, callback_ends_the_loading_with_its_status)
{
	struct world w = make_world();
	uint64_t revision = 99;

	save(&w, 13);
	for (unsigned at = 1; at <= 21; at++) {
		static struct loaded l;

		memset(&l, 0, sizeof l);
		l.refuse_at = at;
		cr_assert_eq(try_load(&l, &revision), PW_NOT_FOUND, "row %u", at);
		cr_assert_eq(l.rows, at);
	}
	cr_assert_eq(revision, 99);
}

static const struct {
	const char *table, *column, *value;
} nonsense[] = {
	{ "host", "id", "'42000000-0000-0000-0000-00000000000X'" },
	{ "host", "epoch", "-1" },
	{ "host", "arches", "1 << 40" },
	{ "pool", "frames", "1 << 50" },
	{ "pool_host", "place", "256" },
	{ "vm", "host", "'x'" },
	{ "vm", "shared_bit", "64" },
	{ "slot", "pages", "1 << 41" },
	{ "quarantine", "count", "1 << 41" },
	{ "gfn_span", "gfn", "1 << 41" },
	{ "gfn_span", "runs", "''" },
	{ "operation", "vm", "'x'" },
	{ "token", "hash", "x'00'" },
	{ "token", "host", "'x'" },
};

Test(picture, row_that_we_would_not_have_written_is_refused_by_name)
{
	static struct loaded l;
	char sql[256], name[128];
	uint64_t revision;

	for (size_t i = 0; i < PW_ARRAY_LEN(nonsense); i++) {
		struct world w = make_world();

		save(&w, 13);
		snprintf(
			sql, sizeof sql,
			"PRAGMA ignore_check_constraints = 1; UPDATE %s SET %s = %s WHERE %s = (SELECT max(%s) FROM %s)",
			nonsense[i].table, nonsense[i].column, nonsense[i].value, nonsense[i].column,
			nonsense[i].column, nonsense[i].table);
		store_tamper(d.path, "ledger.db", sql);
		memset(&l, 0, sizeof l);
		cr_assert_eq(try_load(&l, &revision), PW_STORAGE, "%s", sql);
		snprintf(name, sizeof name, "ledger.db: table %s: %s", nonsense[i].table, nonsense[i].column);
		cr_assert(strstr(err.msg, name), "%s: %s", sql, err.msg);
	}
}

Test(picture, runs_that_we_would_not_have_written_are_refused)
{
	static const char *const runs[] = {
		"[",
		"[]",
		"[[]]",
		"[[0,1,2]",
		"[[0,1,2]]]",
		"[[0,1,2]] ",
		" [[0,1,2]]",
		"[[0,1,2],]",
		"[[0,1,2],[0,1,3]]",
		"[[5,1,2],[4,1,3]]",
		"[[0,1,4]]",
		"[[-1,1,2]]",
		"[[0,0,2]]",
		"[[0,1,0]]",
		"[[0,1,1]]",
		"[[0,1,1,null,null,\"Lent\"]]",
		"[[0,1,2,null,null]]",
		"[[0,1,2,0]]",
		"[[0,1,2,256,0]]",
		"[[0,1,2,0,1099511627776]]",
		"[[0,2,1,0,1099511627775]]",
		"[[0,1,2,0,0,\"\"]]",
		"[[0,1,2,0,0,\"Lent]]",
		"[[0,1,2,0,0,\"a name that is longer than any that an architecture has for its states\"]]",
		"[[0,1,2,0,0,\"Lent\",1]]",
		"[[0,1099511627777,2]]",
		"[[1099511627776,1,2]]",
		"[[0,99999999999999999999999999,2]]",
		"[{\"gfn\":1}]",
	};
	static struct loaded l;
	char all[256];
	uint64_t revision;

	for (size_t i = 0; i < PW_ARRAY_LEN(runs); i++) {
		struct world w = make_world();

		save(&w, 13);
		snprintf(all, sizeof all, "UPDATE gfn_span SET runs = '%s'", runs[i]);
		store_tamper(d.path, "ledger.db", all);
		memset(&l, 0, sizeof l);
		cr_assert_eq(try_load(&l, &revision), PW_STORAGE, "%s", runs[i]);
		cr_assert(strstr(err.msg, "gfn_span"), "%s", err.msg);
	}
}

Test(picture, one_that_does_not_meet_the_journal_is_refused)
{
	static struct loaded l;
	struct world w = make_world();
	uint64_t revision;

	save(&w, 21);
	cr_assert_eq(try_load(&l, &revision), PW_STORAGE, "ahead of the journal, which ends at 20");
	store_fill(d.s, 21, 25);
	cr_assert_eq(try_load(&l, &revision), PW_OK);
	cr_assert_eq(store_trim(d.s, 25, &err), PW_OK);
	save(&w, 19);
	cr_assert_eq(try_load(&l, &revision), PW_STORAGE, "the journal begins at 22");
}

Test(picture, missing_revision_stops_the_start)
{
	store_close(d.s);
	d.s = NULL;
	store_tamper(d.path, "ledger.db", "DELETE FROM meta");
	cr_assert_eq(store_open(d.path, &d.s, &err), PW_STORAGE);
	cr_assert(strstr(err.msg, "meta"), "%s", err.msg);
}

Test(picture, every_run_is_read_as_it_was_written)
{
	static const uint64_t flags[] = { 0, GFN_ENTRY_RESIDENT, GFN_ENTRY_OUT, GFN_ENTRY_SHARED };
	uint64_t seed = 88172645463325252u;
	struct extent_text t = { 0 };

	for (unsigned i = 0; i < 20000; i++) {
		struct extent_row run = { .gfn = 1000 + i % 512, .count = 1 + i % 7 }, back;
		struct extent_reader rd;

		seed ^= seed << 13;
		seed ^= seed >> 7;
		seed ^= seed << 17;
		run.entry = flags[i % 4] | (seed >> 4 & (i & 4 ? ((uint64_t)1 << 52) - 1 : GFN_ENTRY_ARCH_ANY));
		run.arch_state = run.entry & GFN_ENTRY_ARCH_ANY ? "ASSIGNED_NS, UNASSIGNED/EMPTY" : NULL;
		if (!run.entry || (i % 4 == 1 && (run.entry & TREE_NUMBER) + run.count > TREE_PAGES))
			continue;
		extent_begin(&t);
		cr_assert_eq(extent_add(&t, 1000, &run, &err), PW_OK, "%#" PRIx64, run.entry);
		run.gfn += 100;
		cr_assert_eq(extent_add(&t, 1000, &run, &err), PW_OK);
		cr_assert(extent_end(&t));
		t.s[t.used] = '\0';
		extent_read_init(&rd, 1000, t.s);
		for (int n = 0; n < 2; n++) {
			cr_assert_eq(extent_read(&rd, &back, &err), PW_OK, "%s: %s", t.s, err.msg);
			cr_assert_eq(back.gfn, 1000 + i % 512 + (n ? 100 : 0));
			cr_assert(back.count == run.count && back.entry == (run.entry & ~GFN_ENTRY_ARCH_ANY), "%s",
				  t.s);
			cr_assert(!back.arch_state == !run.arch_state &&
				  (!run.arch_state || strcmp(back.arch_state, run.arch_state) == 0));
		}
		cr_assert_eq(extent_read(&rd, &back, &err), PW_NOT_FOUND);
	}
	free(t.s);
}

/* Whoever reads the file with sqlite3 sees extents, whatever rows hold them. */
Test(picture, view_shows_what_rows_hold)
{
	struct pw_uuid v5 = test_uuid(5);
	struct world w = make_world();
	static struct extent_row rows[513];
	struct picture p;

	save(&w, 13);
	rows[0] = (struct extent_row){ v5, 2048, 512, 0, NULL };
	for (uint64_t i = 0; i < 512; i++)
		rows[i + 1] =
			(struct extent_row){ v5, 2048 + i, 1, i % 2 ? RESIDENT(2, 70 + i) : GFN_ENTRY_SHARED, NULL };
	p = partial(&w, 14);
	p.extents = rows;
	p.extent_count = PW_ARRAY_LEN(rows);
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(store_ask(d.path, "ledger.db", "SELECT count(*) FROM gfn_span WHERE gfn >= 2048"), 1);
	cr_assert_eq(
		store_ask(d.path, "ledger.db",
			  "SELECT count(*) FROM gfn_extent WHERE gfn >= 2048 AND count = 1 AND arch_state IS NULL AND"
			  " CASE gfn % 2 WHEN 1 THEN state = 'secure' AND resident = 1 AND pool_place = 2"
			  " AND pfn = 70 + gfn - 2048 ELSE state = 'shared' AND resident = 0"
			  " AND pool_place IS NULL AND pfn IS NULL END"),
		512);
	cr_assert_eq(store_ask(d.path, "ledger.db",
			       "SELECT count(*) FROM gfn_extent WHERE gfn < 2048 AND (gfn, count, state, resident,"
			       " ifnull(pool_place, -1), ifnull(pfn, -1), ifnull(arch_state, '')) IN (VALUES"
			       " (0, 10, 'secure', 1, 0, 100, ''), (10, 5, 'secure', 0, -1, -1, ''),"
			       " (20, 1, 'shared', 0, -1, -1, 'Lent'), (600, 2, 'secure', 1, 2, 4096, 'Guest-Invalid'),"
			       " (3, 1, 'normal', 0, -1, -1, 'no flag'))"),
		     5);
}

Test(picture, parts_are_one_picture_as_of_the_last)
{
	struct pw_uuid v5 = test_uuid(5), v6 = test_uuid(6);
	struct world w = make_world();
	struct picture p;

	save(&w, 13);
	p = (struct picture){ .revision = 14, .more = true };
	p.vms = w.vms; /* a VM before its host */
	w.vms[1].host = test_uuid(3);
	p.vm_count = 2;
	p.extents = (struct extent_row[]){ { v5, 0, 512, 0, NULL }, { v5, 1, 1, GFN_ENTRY_OUT, NULL } };
	p.extent_count = 2;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(store_ask(d.path, "ledger.db", "SELECT revision FROM meta"), 13, "nobody sees a part");
	p = partial(&w, 15);
	p.hosts =
		(struct host_row[]){ { test_uuid(3), "c", "b", "[]", "", 1, false, false, 0, 0, 0, 12, 0, 15, false } };
	p.host_count = 1;
	p.deleted_vms = &v6;
	p.deleted_vm_count = 1;
	p.extents = (struct extent_row[]){ { v5, 0, 512, 0, NULL }, { v5, 2, 1, GFN_ENTRY_SHARED, NULL } };
	p.extent_count = 2;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	store_dir_reopen(&d);
	cr_assert(store_picture_is_sealed(d.s) && !store_picture_lost(d.s));
	expect(15,
	       HOSTS "host 3 c b []  1 0 0 0 0 0 12 0 15 0\n" POOLS VM5 QUARANTINE "extent 5 2 1 0x2000000000000000\n"
		     "extent 5 600 2 0x8000020000001000 Guest-Invalid\n" OPERATIONS TOKENS);
}

Test(picture, parts_without_a_last_one_leave_the_old)
{
	struct world w = make_world();
	struct picture p = { .revision = 14, .full = true, .more = true };

	save(&w, 13);
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	store_drop_picture(d.s);
	store_drop_picture(d.s);
	expect(13, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_OK, "%s", err.msg);
	store_dir_reopen(&d); /* as after a stop that had no time left */
	cr_assert(store_picture_is_sealed(d.s) && !store_picture_lost(d.s));
	expect(13, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
	p.more = false;
	p.vms = w.vms;
	p.vm_count = 1;
	cr_assert_eq(store_save_picture(d.s, &p, &err), PW_STORAGE, "a VM without its host");
	expect(13, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
	save(&w, 14);
	expect(14, HOSTS POOLS VM5 VM6 SLOTS QUARANTINE EXTENTS OPERATIONS TOKENS);
}

/* An upgrade loses nothing, also where the journal no longer has what the picture was made of. */
Test(picture, one_of_a_row_an_extent_is_loaded)
{
	static const char rows[] =
		"INSERT INTO host VALUES ('42000000-0000-0000-0000-000000000001', 'h', 'b', '[]', '', 1, 0, 1, 8, 0, 64,"
		" 12, 0, 1, 0);"
		"INSERT INTO vm (number, id, host, name, arch, state, epoch, shared_bit, revision) VALUES"
		" (3, '42000000-0000-0000-0000-000000000005', '42000000-0000-0000-0000-000000000001', 'v', 'snp',"
		" 'secure', 1, 0, 1);"
		"INSERT INTO gfn_extent VALUES (3, 0, 4, 'secure', 1, 0, 7, NULL), (3, 4, 1, 'shared', 0, NULL, NULL, NULL),"
		" (3, 512, 3, 'secure', 0, NULL, NULL, NULL), (3, 515, 2, 'secure', 1, 2, 90, 'Guest-Invalid'),"
		" (3, 517, 1, 'normal', 0, NULL, NULL, 'no flag'), (3, 600, 1, 'secure', 0, 1, 5, NULL);"
		"UPDATE meta SET revision = 20;"
		"INSERT INTO checksum VALUES ('gfn_extent', 6, zeroblob(32));";
	struct db db = { 0 };
	char path[STORE_PATH + 16];

	cr_assert_eq(store_save_picture(d.s, &(struct picture){ .revision = 20, .full = true }, &err), PW_OK);
	cr_assert_eq(store_trim(d.s, 15, &err), PW_OK, "%s", err.msg);
	store_close(d.s);
	d.s = NULL;
	snprintf(path, sizeof path, "%s/ledger.db", d.path);
	cr_assert_eq(remove(path), 0);
	cr_assert_eq(db_open(&db, d.path, "ledger.db", SQLITE_OPEN_READWRITE | SQLITE_OPEN_CREATE, &err), PW_OK);
	cr_assert_eq(schema_upgrade(&db, SCHEMA_LEDGER, 8, &err), PW_OK, "%s", err.msg);
	cr_assert_eq(db_exec(&db, rows, &err), PW_OK, "%s", err.msg);
	db_close(&db);
	store_dir_reopen(&d);
	cr_assert_not(store_picture_is_sealed(d.s), "the next one must be whole");
	expect(20, "host 1 h b []  1 0 1 0x8 0 64 12 0 1 0\n"
		   "vm 5 1 v snp secure  1 0 1 0\n"
		   "extent 5 0 4 0x8000000000000007\n"
		   "extent 5 4 1 0x2000000000000000\n"
		   "extent 5 512 3 0x4000000000000000\n"
		   "extent 5 515 2 0x800002000000005a Guest-Invalid\n"
		   "extent 5 517 1 0 no flag\n"
		   "extent 5 600 1 0x4000010000000005\n");
	cr_assert_eq(store_ask(d.path, "ledger.db", "SELECT count(*) FROM checksum"), 0);
}
