/*
 * Taking a picture of the state, in pieces: the writer copies some milliseconds' worth of what has changed between two
 * groups, and the painter saves that while the writer goes on. What changes again after it was copied comes again with
 * a later piece. When one piece is enough for a whole pass over the state, then everything that was copied reads as the
 * state does at that moment: the picture is exactly the state after one revision.
 */
#include "server/picture.h"

#include <stdlib.h>
#include <string.h>

#define PIECE_NS     2000000 /* the writer copies for so long at a time */
#define ROWS_A_LOOK  16      /* ... and looks at the clock so often */
#define NODES_A_LOOK 16      /* tables of a tree */
#define PASSES_MAX   64      /* a state that changes faster than it is copied: the last piece takes what there is */

/* A piece, with the memory that its texts and lists live in. Errors stick. */
struct picture_work {
	struct picture p;
	uint64_t until_ns;
	unsigned looked;
	size_t host_room, pool_room, attachment_room, vm_room, slot_room, vcpu_room, extent_room, quarantine_room,
		operation_room, token_room, end_room, unknown_room;
	char **texts; /* copies */
	size_t text_count, text_room;
	struct pw_uuid vm; /* whose extents are being taken */
	const struct arch_law *law;
	bool failed;
};

/* Room for one more element; NULL after a failure. */
static void *more(struct picture_work *w, void *list, size_t *count, size_t *room, size_t size)
{
	void **at = list;
	char *grown;

	if (w->failed)
		return NULL;
	if (*count == *room) {
		size_t next = *room ? 2 * *room : 64;

		grown = realloc(*at, next * size);
		if (!grown) {
			w->failed = true;
			return NULL;
		}
		*at = grown;
		*room = next;
	}
	return (char *)*at + (*count)++ * size;
}
#define MORE(w, list, n, room) more(w, &(w)->p.list, &(w)->p.n, &(w)->room, sizeof *(w)->p.list)

static const char *copy(struct picture_work *w, const char *text)
{
	char **slot, *s;

	if (!text || !*text)
		return "";
	slot = more(w, &w->texts, &w->text_count, &w->text_room, sizeof *slot);
	s = slot ? strdup(text) : NULL;
	if (slot)
		*slot = s;
	if (!s)
		w->failed = true;
	return s ? s : "";
}

void picture_free(struct picture_work *w)
{
	if (!w)
		return;
	for (size_t i = 0; i < w->text_count; i++)
		free(w->texts[i]);
	free(w->texts);
	free(w->p.hosts);
	free(w->p.pools);
	free(w->p.attachments);
	free(w->p.vms);
	free(w->p.slots);
	free(w->p.vcpus);
	free(w->p.deleted_vms);
	free(w->p.extents);
	free(w->p.quarantine);
	free(w->p.operations);
	free(w->p.deleted_operations);
	free(w->p.tokens);
	free(w->p.ends);
	free(w->p.unknown);
	free(w);
}

/* Taking. On the writer thread, under the state's lock. */

static void take_host(struct picture_work *w, const struct host *h)
{
	const struct host_note *note = host_note(h);
	const struct pool *p = h->pools[0];
	struct host_row *row = MORE(w, hosts, host_count, host_room);

	if (!row)
		return;
	*row = (struct host_row){ .id = h->id,
				  .epoch = h->epoch,
				  .fenced = h->fenced,
				  .unreachable = note->unreachable,
				  .arches = h->arches,
				  .has_local = p && p->frames,
				  .base = p ? p->base : 0,
				  .frames = p ? p->frames : 0,
				  .page_shift = h->page_shift,
				  .last_seen_ms = note->last_seen_ms,
				  .revision = h->revision };
	row->name = copy(w, h->name);
	row->boot_id = copy(w, h->boot_id);
	row->backends = copy(w, note->backends);
	row->agent_version = copy(w, note->agent_version);
}

static void take_attachments(struct picture_work *w, const struct host *h)
{
	for (unsigned i = 1; i < HOST_POOLS_MAX; i++) {
		struct attachment_row *row;

		if (!h->pools[i])
			continue;
		row = MORE(w, attachments, attachment_count, attachment_room);
		if (row)
			*row = (struct attachment_row){ copy(w, h->pools[i]->name), h->id, i };
	}
}

static void take_pool(struct picture_work *w, const struct pool *p)
{
	struct pool_row *row = MORE(w, pools, pool_count, pool_room);

	if (row)
		*row = (struct pool_row){ copy(w, p->name), p->base, p->frames, p->page_shift, p->revision };
}

static void take_span(void *ctx, uint64_t first, uint64_t count)
{
	struct picture_work *w = ctx;
	struct extent_row *row = MORE(w, extents, extent_count, extent_room);

	if (row)
		*row = (struct extent_row){ w->vm, first, count, 0, NULL };
}

/* The name of a state that is not the one at rest, as the picture has it. */
static const char *arch_state_at(const struct arch_law *law, uint64_t entry)
{
	uint64_t arch = (entry & GFN_ENTRY_ARCH_ANY) >> GFN_ENTRY_ARCH;

	return arch ? law->states[arch - 1].name : NULL;
}

static void take_run(void *ctx, const struct tree_run *run)
{
	struct picture_work *w = ctx;
	struct extent_row *row = MORE(w, extents, extent_count, extent_room);

	if (row)
		*row = (struct extent_row){ w->vm, run->first, run->count, run->entry,
					    arch_state_at(w->law, run->entry) };
}

static void take_vcpus(const struct service *sv, struct picture_work *w, const struct vm *vm)
{
	struct vcpu_kept kept;
	char *items;

	for (size_t i = 0; vcpu_next(sv, vm, i, &kept, &items); i++) {
		struct vcpu_row *row = MORE(w, vcpus, vcpu_count, vcpu_room);

		if (row)
			*row = (struct vcpu_row){ vm->id,         (unsigned)kept.vcpu, kept.exit,
						  copy(w, items), kept.time_ms,        kept.revision };
		w->failed = w->failed || !items;
		free(items);
	}
}

/* Is it time to let go of the state? Always takes something first, so that it comes to an end. */
static bool enough(struct picture_work *w)
{
	return w->failed || (++w->looked % ROWS_A_LOOK == 0 && clock_monotonic_ns() >= w->until_ns);
}

static void take_vm_row(const struct service *sv, struct picture_work *w, struct vm *vm)
{
	struct vm_row *row = MORE(w, vms, vm_count, vm_room);

	if (!row)
		return;
	*row = (struct vm_row){ .id = vm->id,
				.host = vm->host->id,
				.name = copy(w, vm->name),
				.arch = arch_name(vm->arch),
				.state = vm_state_name(vm->state),
				.arch_state = vm_arch_state(vm),
				.epoch = vm->epoch,
				.shared_bit = vm->shared_bit,
				.revision = vm->revision,
				.ended = vm->ended,
				.on_hardware = vm->on_hardware };
	for (size_t i = 0; i < vm->slot_count; i++) {
		struct slot_row *slot = MORE(w, slots, slot_count, slot_room);

		if (slot)
			*slot = (struct slot_row){ vm->id, vm->slots[i] };
	}
	take_vcpus(sv, w, vm);
}

/* False: the rest of its tree is for the next piece. */
static bool take_tree(struct picture_work *w, struct vm *vm)
{
	const struct tree_visitor visitor = { take_span, take_run, w };

	w->vm = vm->id;
	w->law = arch_laws[vm->arch];
	while (!tree_clean_some(&vm->pages, &visitor, NODES_A_LOOK))
		if (w->failed || clock_monotonic_ns() >= w->until_ns)
			return false;
	return true;
}

static void take_operation(struct picture_work *w, const struct operation *o)
{
	struct operation_row *row = MORE(w, operations, operation_count, operation_room);

	if (row)
		*row = (struct operation_row){ .id = o->id,
					       .vm = o->vm,
					       .host = o->host,
					       .kind = operation_kind_name(o->kind),
					       .state = operation_state_name(o->state),
					       .params = copy(w, o->params),
					       .problem = copy(w, o->problem),
					       .host_epoch = o->host_epoch,
					       .created_ms = o->created_ms,
					       .started_ms = o->started_ms,
					       .finished_ms = o->finished_ms,
					       .revision = o->revision };
}

static void take_token(struct picture_work *w, const struct token *t)
{
	struct token_row *row = MORE(w, tokens, token_count, token_room);

	if (!row)
		return;
	*row = (struct token_row){ .id = t->id,
				   .role = role_name(t->role),
				   .name = copy(w, t->name),
				   .host = t->host,
				   .created_ms = t->created_ms,
				   .revision = t->revision };
	memcpy(row->hash, t->hash, sizeof row->hash);
}

static void take_quarantine(const struct service *sv, struct picture_work *w, const struct pool *p)
{
	const struct pw_uuid shared = { { 0 } };
	struct frame_view f;

	for (uint64_t at = 0; p && p->quarantined && pool_next_quarantined(sv->ledger, p, at, TREE_PAGES, &f);
	     at = f.pfn + f.count) {
		struct quarantine_row *row = MORE(w, quarantine, quarantine_count, quarantine_room);

		if (!row)
			return;
		*row = (struct quarantine_row){
			p->host ? p->host->id : shared, copy(w, p->name), f.pfn, f.count, copy(w, f.reason), f.time_ms
		};
	}
}

static void take_end(struct picture_work *w, const struct end *e)
{
	struct end_row *row = MORE(w, ends, end_count, end_room);

	if (row)
		*row = (struct end_row){ e->vm, e->slot, e->host, e->revision, e->time_ms };
}

static void take_unknown(struct picture_work *w, const struct unknown *u)
{
	struct unknown_row *row = MORE(w, unknown, unknown_count, unknown_room);

	if (row)
		*row = (struct unknown_row){ u->host, u->vm, copy(w, u->report), u->since_ms, u->revision };
}

/* Each takes what is at that place of its list, if it has changed. False: it is not through with it. */

static bool take_host_at(struct service *sv, struct picture_work *w, size_t i)
{
	struct host *h = ledger_host_at(sv->ledger, i);

	sv->taking.at = h->id;
	if (sv->taking.pass == 1 || h->revision > sv->taking.since ||
	    host_note(h)->pictured != host_note(h)->unreachable)
		take_host(w, h);
	host_note(h)->pictured = host_note(h)->unreachable;
	return true;
}

static bool take_vm_at(struct service *sv, struct picture_work *w, size_t i)
{
	struct vm *vm = ledger_vm_at(sv->ledger, i);
	struct taking *t = &sv->taking;

	if (!t->inside || !pw_uuid_equal(&t->at, &vm->id)) {
		t->at = vm->id;
		if (!t->all && vm->revision <= t->since)
			return true;
		take_vm_row(sv, w, vm);
		if (t->all)
			tree_dirty_all(&vm->pages);
	}
	t->inside = !take_tree(w, vm);
	return !t->inside;
}

static bool take_operation_at(struct service *sv, struct picture_work *w, size_t i)
{
	const struct operation *o = sv->operations.items[i];

	sv->taking.at = o->id;
	if (sv->taking.all || o->revision > sv->taking.since)
		take_operation(w, o);
	return true;
}

static size_t host_count(const struct service *sv)
{
	return ledger_host_count(sv->ledger);
}

static size_t host_after(const struct service *sv, const struct pw_uuid *id)
{
	return ledger_host_after(sv->ledger, id);
}

static size_t vm_count(const struct service *sv)
{
	return ledger_vm_count(sv->ledger);
}

/* One whose tree is not through yet comes again, if it is there still. */
static size_t vm_after(const struct service *sv, const struct pw_uuid *id)
{
	size_t after = ledger_vm_after(sv->ledger, id);

	return sv->taking.inside && after && pw_uuid_equal(&ledger_vm_at(sv->ledger, after - 1)->id, id) ? after - 1
													 : after;
}

static size_t operation_count(const struct service *sv)
{
	return sv->operations.count;
}

static size_t operation_after(const struct service *sv, const struct pw_uuid *id)
{
	return index_after(&sv->operations, id);
}

static const struct list {
	size_t (*count)(const struct service *sv);
	size_t (*after)(const struct service *sv, const struct pw_uuid *id);
	bool (*take)(struct service *sv, struct picture_work *w, size_t i);
} lists[] = {
	{ host_count, host_after, take_host_at },
	{ vm_count, vm_after, take_vm_at },
	{ operation_count, operation_after, take_operation_at },
};

/* Goes on with a list where the last piece ended. False: it is not at its end. */
static bool take_list(struct service *sv, struct picture_work *w, const struct list *l)
{
	struct taking *t = &sv->taking;

	for (size_t i = t->begun ? l->after(sv, &t->at) : 0; i < l->count(sv); i++) {
		t->begun = true;
		if (!l->take(sv, w, i) || enough(w))
			return false;
	}
	t->begun = false;
	return true;
}

static bool take_lists(struct service *sv, struct picture_work *w)
{
	struct taking *t = &sv->taking;

	for (; t->list < PW_ARRAY_LEN(lists); t->list++)
		if (!take_list(sv, w, &lists[t->list]))
			return false;
	return true;
}

/* What comes whole. */
static void take_rest(const struct service *sv, struct picture_work *w)
{
	const struct ledger *l = sv->ledger;

	for (size_t i = 0; i < ledger_host_count(l); i++)
		take_attachments(w, ledger_host_at(l, i));
	for (size_t i = 0; i < ledger_pool_count(l); i++)
		take_pool(w, ledger_pool_at(l, i));
	for (size_t i = 0; i < sv->tokens.count; i++)
		take_token(w, sv->tokens.items[i]);
	for (size_t i = 0; i < ledger_host_count(l); i++)
		take_quarantine(sv, w, ledger_host_at(l, i)->pools[0]);
	for (size_t i = 0; i < ledger_pool_count(l); i++)
		take_quarantine(sv, w, ledger_pool_at(l, i));
	w->p.ends_from = sv->ends_from;
	for (size_t i = 0; i < sv->ends.count; i++)
		if (w->p.full || ((const struct end *)sv->ends.items[i])->revision > sv->pictured)
			take_end(w, sv->ends.items[i]);
	for (size_t i = 0; i < sv->unknown.count; i++)
		take_unknown(w, sv->unknown.items[i]);
}

static void taking_begin(struct service *sv)
{
	bool full = atomic_exchange(&sv->repaint, false) || sv->pictured == 0;

	sv->taking = (struct taking){ .full = full, .since = sv->pictured };
}

/* The first pass takes all hosts, since a host that was heard of has changed without a revision. */
static void pass_begin(struct service *sv)
{
	struct taking *t = &sv->taking;

	if (t->pass)
		t->since = t->began;
	t->all = t->full && !t->pass;
	t->began = sv->revision;
	t->pass++;
	t->list = 0;
	t->begun = t->inside = false;
}

static void take_deleted(struct service *sv, struct picture_work *w)
{
	w->p.deleted_vms = sv->deleted_vms;
	w->p.deleted_vm_count = sv->deleted_vm_count;
	w->p.deleted_operations = sv->deleted_operations;
	w->p.deleted_operation_count = sv->deleted_operation_count;
	if (sv->deleted_vm_count)
		sv->taking.inside = false; /* it may be that one, made again */
	sv->deleted_vms = sv->deleted_operations = NULL;
	sv->deleted_vm_count = sv->deleted_operation_count = 0;
}

/* A pass that began with this piece and ends with it has seen the whole state as it is now. */
static bool take_piece(struct service *sv, struct picture_work *w)
{
	struct taking *t = &sv->taking;
	bool whole = t->list == PW_ARRAY_LEN(lists) || !t->pass;

	if (whole)
		pass_begin(sv);
	if (whole && t->pass > PASSES_MAX)
		w->until_ns = UINT64_MAX;
	return take_lists(sv, w) && whole;
}

struct picture_work *picture_piece(struct service *sv, bool fresh)
{
	struct picture_work *w = calloc(1, sizeof *w);

	if (!w) {
		atomic_store(&sv->repaint, true);
		return NULL;
	}
	if (fresh)
		taking_begin(sv);
	else
		w->failed = atomic_load(&sv->repaint); /* it is not known any more what was deleted */
	w->until_ns = clock_monotonic_ns() + PIECE_NS;
	w->p.full = sv->taking.full;
	w->p.revision = sv->revision;
	take_deleted(sv, w);
	w->p.more = !take_piece(sv, w);
	if (!w->p.more)
		take_rest(sv, w);
	if (!w->failed)
		return w;
	atomic_store(&sv->repaint, true);
	picture_free(w);
	return NULL;
}

const struct picture *picture_of(const struct picture_work *w)
{
	return &w->p;
}

bool note_deleted(struct pw_uuid **list, size_t *count, const struct pw_uuid *id, _Atomic bool *repaint)
{
	struct pw_uuid *grown = realloc(*list, (*count + 1) * sizeof *grown);

	if (!grown) {
		atomic_store(repaint, true);
		return false;
	}
	*list = grown;
	grown[(*count)++] = *id;
	return true;
}
