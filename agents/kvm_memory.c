#include "agents/kvm_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#define PAGEMAP_PRESENT (UINT64_C(1) << 63)
#define PAGEMAP_PFN     ((UINT64_C(1) << 55) - 1)
#define PRESENCE_CHUNK  512

static size_t bytes(uint64_t pages)
{
	return (size_t)pages << KVM_PAGE_SHIFT;
}

static enum pw_status memfd_new(uint64_t pages, int *fd, struct pw_err *err)
{
	int got = memfd_create("pagewarden-guest", MFD_CLOEXEC);

	if (got < 0 || ftruncate(got, (off_t)bytes(pages))) {
		enum pw_status st = pw_fail(err, PW_BACKEND, "memfd of %" PRIu64 " pages: %s", pages, strerror(errno));

		if (got >= 0)
			close(got);
		return st;
	}
	*fd = got;
	return PW_OK;
}

enum pw_status backing_new(const struct kvm_vm *kvm, uint64_t pages, bool guest_memfd, const char *group,
			   struct kvm_backing **out, struct pw_err *err)
{
	struct kvm_backing *k = calloc(1, sizeof(*k));
	enum pw_status st;

	if (!k)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a slot");
	k->fd = -1;
	k->guest_memfd = guest_memfd;
	k->pages = pages;
	k->users = 1;
	k->group = group ? strdup(group) : NULL;
	if (group && !k->group)
		st = pw_fail(err, PW_NO_MEMORY, "no memory for a slot");
	else if (guest_memfd)
		st = kvm_vm_guest_memfd(kvm, bytes(pages), &k->fd, err);
	else
		st = memfd_new(pages, &k->fd, err);
	if (st) {
		backing_put(k);
		return st;
	}
	*out = k;
	return PW_OK;
}

enum pw_status backing_grow(struct kvm_backing *k, uint64_t pages, struct pw_err *err)
{
	if (pages <= k->pages)
		return PW_OK;
	if (ftruncate(k->fd, (off_t)bytes(pages)))
		return pw_fail(err, PW_BACKEND, "growing a memfd to %" PRIu64 " pages: %s", pages, strerror(errno));
	k->pages = pages;
	return PW_OK;
}

void backing_put(struct kvm_backing *k)
{
	if (!k || --k->users)
		return;
	if (k->fd >= 0)
		close(k->fd);
	free(k->group);
	free(k);
}

static void *map_file(const struct kvm_backing *k, uint64_t page, uint64_t count, int flags)
{
	void *at = mmap(NULL, bytes(count), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_NORESERVE | flags, k->fd,
			(off_t)bytes(page));

	if (at == MAP_FAILED)
		return NULL;
	(void)madvise(at, bytes(count), MADV_DONTDUMP); /* law L10: no guest memory in a core file, */
	(void)madvise(at, bytes(count), MADV_DONTFORK); /* nor in a child */
	return at;
}

enum pw_status memory_open(struct kvm_memory *m, const struct slot *slot, struct kvm_backing *k, struct pw_err *err)
{
	*m = (struct kvm_memory){ .slot = *slot, .backing = k };
	m->view = map_file(k, 0, slot->pages, 0);
	m->guest = k->guest_memfd ? m->view : map_file(k, 0, slot->pages, 0);
	if (!m->view || !m->guest) {
		enum pw_status st = pw_fail(err, PW_NO_MEMORY, "mapping slot %" PRIu32 " of %" PRIu64 " pages: %s",
					    slot->number, slot->pages, strerror(errno));

		memory_close(m);
		return st;
	}
	return PW_OK;
}

void memory_close(struct kvm_memory *m)
{
	if (m->guest && m->guest != m->view)
		munmap(m->guest, bytes(m->slot.pages));
	if (m->view)
		munmap(m->view, bytes(m->slot.pages));
	backing_put(m->backing);
	*m = (struct kvm_memory){ 0 };
}

static enum pw_status protect(struct kvm_memory *m, uint64_t page, uint64_t count, int prot, struct pw_err *err)
{
	if (!mprotect(m->view + bytes(page), bytes(count), prot))
		return PW_OK;
	return pw_fail(err, errno == ENOMEM ? PW_NO_MEMORY : PW_BACKEND,
		       "mprotect of gfn %" PRIu64 " and %" PRIu64 " more: %s", m->slot.base + page, count - 1,
		       strerror(errno));
}

enum pw_status memory_show(struct kvm_memory *m, uint64_t page, uint64_t count, struct pw_err *err)
{
	return protect(m, page, count, PROT_READ | PROT_WRITE, err);
}

enum pw_status memory_hide(struct kvm_memory *m, uint64_t page, uint64_t count, struct pw_err *err)
{
	return protect(m, page, count, PROT_NONE, err);
}

void memory_lock(struct kvm_memory *m, uint64_t page, uint64_t count)
{
	if (m->guest != m->view)
		(void)mlock(m->guest + bytes(page), bytes(count));
}

void memory_unlock(struct kvm_memory *m, uint64_t page, uint64_t count)
{
	if (m->guest != m->view)
		(void)munlock(m->guest + bytes(page), bytes(count));
}

enum pw_status memory_fill(struct kvm_memory *m, uint64_t page, uint64_t count, struct pw_err *err)
{
	int r;

	do
		r = fallocate(m->backing->fd, FALLOC_FL_KEEP_SIZE, (off_t)bytes(page), (off_t)bytes(count));
	while (r && errno == EINTR);
	if (!r)
		return PW_OK;
	return pw_fail(err, PW_BUSY, "no host memory for gfn %" PRIu64 " and %" PRIu64 " more: %s", m->slot.base + page,
		       count - 1, strerror(errno));
}

enum pw_status memory_punch(struct kvm_memory *m, uint64_t page, uint64_t count, struct pw_err *err)
{
	int r;

	do
		r = fallocate(m->backing->fd, FALLOC_FL_KEEP_SIZE | FALLOC_FL_PUNCH_HOLE, (off_t)bytes(page),
			      (off_t)bytes(count));
	while (r && errno == EINTR);
	if (!r)
		return PW_OK;
	return pw_fail(err, PW_BACKEND, "PUNCH_HOLE of gfn %" PRIu64 " and %" PRIu64 " more: %s", m->slot.base + page,
		       count - 1, strerror(errno));
}

enum pw_status memory_window_open(const struct kvm_memory *m, uint64_t page, uint64_t count, struct memory_window *w,
				  struct pw_err *err)
{
	uint8_t *at = map_file(m->backing, page, count, MAP_POPULATE);

	if (!at)
		return pw_fail(err, PW_NO_MEMORY, "mapping gfn %" PRIu64 " and %" PRIu64 " more: %s",
			       m->slot.base + page, count - 1, strerror(errno));
	*w = (struct memory_window){ .at = at, .count = count };
	return PW_OK;
}

void memory_window_close(struct memory_window *w)
{
	munmap(w->at, bytes(w->count));
	*w = (struct memory_window){ 0 };
}

enum pw_status memory_frames(const struct memory_window *w, int pagemap_fd, uint64_t *pfns, struct pw_err *err)
{
	off_t from = (off_t)((uintptr_t)w->at >> KVM_PAGE_SHIFT) * (off_t)sizeof(pfns[0]);
	size_t want = (size_t)w->count * sizeof(pfns[0]);
	size_t got = 0;

	while (got < want) {
		ssize_t n = pread(pagemap_fd, (char *)pfns + got, want - got, from + (off_t)got);

		if (n == 0 || (n < 0 && errno != EINTR))
			return pw_fail(err, PW_BACKEND, "reading /proc/self/pagemap: %s",
				       n ? strerror(errno) : "it ended");
		got += n > 0 ? (size_t)n : 0;
	}
	for (uint64_t i = 0; i < w->count; i++) {
		if (!(pfns[i] & PAGEMAP_PRESENT) || !(pfns[i] & PAGEMAP_PFN))
			return pw_fail(err, PW_BUSY,
				       "page %" PRIu64 " of a run has no frame: the host is out of memory", i);
		pfns[i] &= PAGEMAP_PFN;
	}
	return PW_OK;
}

struct presence memory_presence(const struct kvm_memory *m, uint64_t page, uint64_t count)
{
	struct presence p = { 0 };
	unsigned char in_core[PRESENCE_CHUNK];

	while (p.count < count) {
		uint64_t n = count - p.count < PRESENCE_CHUNK ? count - p.count : PRESENCE_CHUNK;

		if (mincore(m->view + bytes(page + p.count), bytes(n), in_core))
			memset(in_core, 1, sizeof(in_core)); /* then the tree is all we have */
		if (!p.count)
			p.present = in_core[0] & 1;
		for (uint64_t i = 0; i < n; i++, p.count++)
			if ((in_core[i] & 1) != p.present)
				return p;
	}
	return p;
}
