#include "agents/kvm_layout.h"

#include <stdlib.h>
#include <string.h>

void layout_init(struct layout *l, const struct kvm_vm *kvm, uint32_t first_id)
{
	*l = (struct layout){ .kvm = kvm, .next_id = first_id };
}

void layout_release(struct layout *l)
{
	free(l->runs);
	free(l->free_ids);
	*l = (struct layout){ 0 };
}

/* The first run that ends after gfn. */
static size_t find(const struct layout *l, uint64_t gfn)
{
	size_t low = 0, high = l->count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (l->runs[mid].gfn + l->runs[mid].count <= gfn)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static bool make_room(struct layout *l)
{
	size_t room = l->room ? l->room * 2 : 16;
	struct layout_run *runs;

	if (l->count < l->room)
		return true;
	runs = realloc(l->runs, room * sizeof(runs[0]));
	if (!runs)
		return false;
	l->runs = runs;
	l->room = room;
	return true;
}

static bool take_id(struct layout *l, uint32_t *id)
{
	if (l->free_count) {
		*id = l->free_ids[--l->free_count];
		return true;
	}
	if (l->next_id >= l->kvm->caps.slots)
		return false;
	*id = l->next_id++;
	return true;
}

static void give_id(struct layout *l, uint32_t id)
{
	if (l->free_count == l->free_room) {
		uint32_t room = l->free_room ? l->free_room * 2 : 16;
		uint32_t *ids = realloc(l->free_ids, room * sizeof(ids[0]));

		if (!ids)
			return; /* one number fewer */
		l->free_ids = ids;
		l->free_room = room;
	}
	l->free_ids[l->free_count++] = id;
}

static enum pw_status tell_kvm(const struct layout *l, const struct layout_run *r, struct pw_err *err)
{
	const struct kvm_memory *m = r->memory;
	const uint64_t offset = (r->gfn - m->slot.base) << KVM_PAGE_SHIFT;
	const struct kvm_region region = {
		.id = r->id,
		.gpa = r->gfn << KVM_PAGE_SHIFT,
		.size = r->count << KVM_PAGE_SHIFT,
		.host = m->guest + offset,
		.guest_memfd = m->backing->guest_memfd ? m->backing->fd : -1,
		.offset = offset,
	};

	return kvm_vm_set_region(l->kvm, &region, err);
}

/* Without a KVM slot the pages are emulated, so whatever is short here is no failure. */
static void add(struct layout *l, const struct kvm_memory *m, uint64_t gfn, uint64_t count)
{
	struct layout_run r = { .memory = m, .gfn = gfn, .count = count };
	size_t at = find(l, gfn);

	if (!count || !make_room(l) || !take_id(l, &r.id))
		return;
	if (tell_kvm(l, &r, NULL)) {
		give_id(l, r.id);
		return;
	}
	memmove(&l->runs[at + 1], &l->runs[at], (l->count - at) * sizeof(r));
	l->runs[at] = r;
	l->count++;
}

static enum pw_status delete_at(struct layout *l, size_t at, struct pw_err *err)
{
	const struct kvm_region gone = { .id = l->runs[at].id, .guest_memfd = -1 };
	enum pw_status st = kvm_vm_set_region(l->kvm, &gone, err);

	if (st)
		return st;
	give_id(l, gone.id);
	l->count--;
	memmove(&l->runs[at], &l->runs[at + 1], (l->count - at) * sizeof(l->runs[0]));
	return PW_OK;
}

static bool may_join(const struct layout *l, const struct layout_run *r, const struct layout_run *with)
{
	bool scarce = l->count > l->kvm->caps.slots / 2;

	return with->memory == r->memory && (with->count <= r->count || scarce);
}

/* Grows *r by its neighbours, whose slots it takes over. */
static void absorb(struct layout *l, struct layout_run *r)
{
	for (;;) {
		size_t at = find(l, r->gfn);
		const struct layout_run *before = at ? &l->runs[at - 1] : NULL;
		const struct layout_run *after = at < l->count ? &l->runs[at] : NULL;

		if (before && before->gfn + before->count == r->gfn && may_join(l, r, before)) {
			const struct layout_run old = *before;

			if (delete_at(l, at - 1, NULL))
				return;
			r->gfn = old.gfn;
			r->count += old.count;
		} else if (after && after->gfn == r->gfn + r->count && may_join(l, r, after)) {
			const uint64_t more = after->count;

			if (delete_at(l, at, NULL))
				return;
			r->count += more;
		} else {
			return;
		}
	}
}

static void show_gap(struct layout *l, const struct kvm_memory *m, uint64_t gfn, uint64_t count)
{
	struct layout_run r = { .memory = m, .gfn = gfn, .count = count };

	absorb(l, &r);
	add(l, m, r.gfn, r.count);
}

void layout_show(struct layout *l, const struct kvm_memory *m, uint64_t gfn, uint64_t count)
{
	const uint64_t end = gfn + count;

	while (gfn < end) {
		size_t at = find(l, gfn);
		uint64_t next = at < l->count && l->runs[at].gfn < end ? l->runs[at].gfn : end;
		uint64_t past = next < end ? next + l->runs[at].count : end; /* of the run that is there already */

		if (next > gfn)
			show_gap(l, m, gfn, next - gfn);
		gfn = past > gfn ? past : end;
	}
}

enum pw_status layout_hide(struct layout *l, uint64_t gfn, uint64_t count, struct pw_err *err)
{
	const uint64_t end = gfn + count;

	for (;;) {
		size_t at = find(l, gfn);
		struct layout_run old;
		enum pw_status st;

		if (at == l->count || l->runs[at].gfn >= end)
			return PW_OK;
		old = l->runs[at];
		st = delete_at(l, at, err);
		if (st)
			return st;
		if (old.gfn < gfn)
			add(l, old.memory, old.gfn, gfn - old.gfn);
		if (old.gfn + old.count > end)
			add(l, old.memory, end, old.gfn + old.count - end);
	}
}
