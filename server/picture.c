#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "server/log.h"
#include "server/metrics.h"
#include "server/service_impl.h"

/*
 * The picture: what has changed since the last one is copied by the writer between two groups (so that it is exactly
 * the state after one revision), and written by the painter thread while the writer goes on.
 */

/* A picture with the memory that its texts and lists live in. Errors stick. */
struct picture_work {
	struct picture p;
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

static void work_free(struct picture_work *w)
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

static void take_vm(struct picture_work *w, struct vm *vm)
{
	const struct tree_visitor visitor = { take_span, take_run, w };
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
	w->vm = vm->id;
	w->law = arch_laws[vm->arch];
	if (w->p.full)
		tree_dirty_all(&vm->pages);
	tree_clean(&vm->pages, &visitor);
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

static void take_reason(struct picture_work *w, const struct quarantine_note *n)
{
	struct quarantine_row *row = MORE(w, quarantine, quarantine_count, quarantine_room);

	if (row)
		*row = (struct quarantine_row){ n->host,  copy(w, n->pool),   n->pfn,
						n->count, copy(w, n->reason), n->time_ms };
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

static void take_state(struct service *sv, struct picture_work *w, uint64_t since)
{
	const struct ledger *l = sv->ledger;

	for (size_t i = 0; i < ledger_host_count(l); i++) {
		take_host(w, ledger_host_at(l, i));
		take_attachments(w, ledger_host_at(l, i));
	}
	for (size_t i = 0; i < ledger_pool_count(l); i++)
		take_pool(w, ledger_pool_at(l, i));
	for (size_t i = 0; i < ledger_vm_count(l); i++)
		if (w->p.full || ledger_vm_at(l, i)->revision > since) {
			take_vm(w, ledger_vm_at(l, i));
			take_vcpus(sv, w, ledger_vm_at(l, i));
		}
	for (size_t i = 0; i < sv->operations.count; i++)
		if (w->p.full || ((const struct operation *)sv->operations.items[i])->revision > since)
			take_operation(w, sv->operations.items[i]);
	for (size_t i = 0; i < sv->tokens.count; i++)
		take_token(w, sv->tokens.items[i]);
	for (size_t i = 0; i < sv->quarantine_count; i++)
		take_reason(w, &sv->quarantine[i]);
	w->p.ends_from = sv->ends_from;
	for (size_t i = 0; i < sv->ends.count; i++)
		if (w->p.full || ((const struct end *)sv->ends.items[i])->revision > since)
			take_end(w, sv->ends.items[i]);
	for (size_t i = 0; i < sv->unknown.count; i++)
		take_unknown(w, sv->unknown.items[i]);
}

static struct picture_work *picture_make(struct service *sv)
{
	struct picture_work *w = calloc(1, sizeof *w);
	uint64_t since = sv->pictured;

	if (!w)
		return NULL;
	w->p.full = atomic_exchange(&sv->repaint, false) || since == 0;
	w->p.revision = sv->revision;
	w->p.deleted_vms = sv->deleted_vms;
	w->p.deleted_vm_count = sv->deleted_vm_count;
	w->p.deleted_operations = sv->deleted_operations;
	w->p.deleted_operation_count = sv->deleted_operation_count;
	sv->deleted_vms = sv->deleted_operations = NULL;
	sv->deleted_vm_count = sv->deleted_operation_count = 0;
	take_state(sv, w, since);
	if (w->failed) {
		atomic_store(&sv->repaint, true);
		work_free(w);
		return NULL;
	}
	return w;
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

void picture_take(struct service *sv)
{
	struct picture_work *w;

	pthread_rwlock_wrlock(&sv->lock);
	w = picture_make(sv);
	pthread_rwlock_unlock(&sv->lock);
	pthread_mutex_lock(&sv->mutex);
	sv->picture_wanted = false;
	sv->picture_ready = w;
	pthread_cond_signal(&sv->painter_wake);
	pthread_mutex_unlock(&sv->mutex);
}

/* Saving. */

static enum pw_status save(struct service *sv, struct picture_work *w, struct pw_err *err)
{
	uint64_t began = clock_monotonic_ns();
	enum pw_status st = store_save_picture(sv->store, &w->p, err);

	if (st == PW_OK) {
		metrics_time(TIME_CHECKPOINT, clock_monotonic_ns() - began);
		metrics_count(COUNT_CHECKPOINTS, 1);
		pthread_rwlock_wrlock(&sv->lock);
		sv->pictured = w->p.revision;
		pthread_rwlock_unlock(&sv->lock);
	} else {
		atomic_store(&sv->repaint, true);
	}
	work_free(w);
	return st;
}

static enum pw_status trim(struct service *sv, struct pw_err *err)
{
	const struct config *c = sv->config;
	uint64_t through = 0, by_size;

	if (store_in_doubt(sv->store))
		return PW_OK; /* nothing is written before that is settled */
	if (c->retain_hours)
		through = store_revision_before(sv->store, clock_utc_ms() - (int64_t)c->retain_hours * 3600 * 1000);
	if (c->retain_bytes) {
		by_size = store_revision_keeping(sv->store, c->retain_bytes);
		if (by_size > through)
			through = by_size;
	}
	return through ? store_trim(sv->store, through, err) : PW_OK;
}

/* Asks the writer for a picture and waits for it. With `mutex` held. */
static struct picture_work *picture_ask(struct service *sv)
{
	struct picture_work *w;

	sv->picture_wanted = true;
	pthread_cond_signal(&sv->wake);
	while (sv->picture_wanted && !sv->painter_stop)
		pthread_cond_wait(&sv->painter_wake, &sv->mutex);
	w = sv->picture_ready;
	sv->picture_ready = NULL;
	return w;
}

static void paint(struct service *sv, struct picture_work *w)
{
	struct pw_err err;

	if (w && save(sv, w, &err) != PW_OK)
		log_line(LOG_WARNING_, "the picture could not be saved: it will be whole next time", "error", err.msg,
			 NULL);
	if (store_wal_checkpoint(sv->store, &err) != PW_OK || trim(sv, &err) != PW_OK)
		log_line(LOG_WARNING_, "upkeep of the journal failed", "error", err.msg, NULL);
}

enum { UPKEEP_MS = 1000, DUTY = 8 }; /* at most an eighth of the time goes into pictures */

static void *painter_main(void *arg)
{
	struct service *sv = arg;
	int64_t due = clock_monotonic_ms() + (int64_t)sv->config->checkpoint_seconds * 1000;

	pthread_mutex_lock(&sv->mutex);
	while (!sv->painter_stop) {
		int64_t now = clock_monotonic_ms(), until = now + UPKEEP_MS, took;
		struct timespec at = { until / 1000, until % 1000 * 1000000 };
		struct picture_work *w = NULL;
		bool news;

		pthread_cond_timedwait(&sv->painter_wake, &sv->mutex, &at);
		if (sv->painter_stop)
			break;
		pthread_mutex_unlock(&sv->mutex);
		pthread_rwlock_rdlock(&sv->lock);
		news = sv->durable != sv->pictured || sv->repaint;
		pthread_rwlock_unlock(&sv->lock);
		pthread_mutex_lock(&sv->mutex);
		now = clock_monotonic_ms();
		if (now >= due && news)
			w = picture_ask(sv);
		pthread_mutex_unlock(&sv->mutex);
		paint(sv, w);
		took = clock_monotonic_ms() - now;
		if (w)
			due = clock_monotonic_ms() + took * DUTY + (int64_t)sv->config->checkpoint_seconds * 1000;
		pthread_mutex_lock(&sv->mutex);
	}
	pthread_mutex_unlock(&sv->mutex);
	return NULL;
}

enum pw_status painter_start(struct service *sv, struct pw_err *err)
{
	int e = pthread_create(&sv->painter, NULL, painter_main, sv);

	if (e)
		return pw_fail(err, PW_NO_MEMORY, "starting the painter thread: %s", strerror(e));
	sv->painter_runs = true;
	return PW_OK;
}

void painter_stop(struct service *sv)
{
	if (!sv->painter_runs)
		return;
	pthread_mutex_lock(&sv->mutex);
	sv->painter_stop = true;
	pthread_cond_signal(&sv->painter_wake);
	pthread_mutex_unlock(&sv->mutex);
	pthread_join(sv->painter, NULL);
	sv->painter_runs = false;
}

enum pw_status picture_last(struct service *sv, struct pw_err *err)
{
	struct picture_work *w;

	if (sv->picture_ready) {
		work_free(sv->picture_ready);
		sv->picture_ready = NULL;
		atomic_store(&sv->repaint, true);
	}
	if (sv->durable == sv->pictured && !sv->repaint)
		return PW_OK;
	w = picture_make(sv);
	if (!w)
		return pw_fail(err, PW_NO_MEMORY, "out of memory while saving the last picture");
	return save(sv, w, err);
}
