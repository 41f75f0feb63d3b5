#include "engine/undo.h"

#include <assert.h>
#include <string.h>

/* A record: head, arguments padded to 16 bytes, and its whole size again, for walking backwards. */
struct head {
	const struct undo_ops *ops;
	void *ctx;
	size_t size; /* of the arguments */
};
static_assert(sizeof(struct head) + sizeof(size_t) == UNDO_RECORD(0), "UNDO_RECORD is what a record takes");

void undo_init(struct undo *u, struct pw_mem *mem)
{
	*u = (struct undo){ .mem = mem };
}

void undo_release(struct undo *u)
{
	pw_mem_free(u->mem, u->log, u->capacity);
	undo_init(u, u->mem);
}

static enum pw_status grow(struct undo *u, size_t need)
{
	size_t capacity = u->capacity ? u->capacity : 1024;
	unsigned char *log;

	while (capacity - u->used < need)
		capacity *= 2;
	log = pw_mem_alloc(u->mem, capacity);
	if (!log)
		return PW_NO_MEMORY;
	if (u->used)
		memcpy(log, u->log, u->used);
	pw_mem_free(u->mem, u->log, u->capacity);
	u->log = log;
	u->capacity = capacity;
	return PW_OK;
}

enum pw_status undo_reserve(struct undo *u, size_t bytes)
{
	return u->capacity - u->used >= bytes ? PW_OK : grow(u, bytes);
}

void undo_push(struct undo *u, const struct undo_ops *ops, void *ctx, const void *args, size_t size)
{
	size_t total = UNDO_RECORD(size);
	struct head head = { ops, ctx, size };
	unsigned char *at = u->log + u->used;

	assert(u->capacity - u->used >= total);
	memcpy(at, &head, sizeof head);
	if (size)
		memcpy(at + sizeof head, args, size);
	memcpy(at + total - sizeof total, &total, sizeof total);
	u->used += total;
}

static void write_back(void *ctx, const void *args)
{
	size_t size = ((const struct head *)args)[-1].size;

	memcpy(ctx, args, size);
}

void undo_save(struct undo *u, void *p, size_t size)
{
	static const struct undo_ops bytes = { .rollback = write_back };

	undo_push(u, &bytes, p, p, size);
}

undo_mark undo_here(const struct undo *u)
{
	return u->used;
}

void undo_rollback_last(struct undo *u)
{
	struct head head;
	size_t total;

	memcpy(&total, u->log + u->used - sizeof total, sizeof total);
	u->used -= total;
	memcpy(&head, u->log + u->used, sizeof head);
	if (head.ops->rollback)
		head.ops->rollback(head.ctx, u->log + u->used + sizeof head);
}

void undo_rollback(struct undo *u, undo_mark to)
{
	while (u->used > to)
		undo_rollback_last(u);
}

void undo_commit(struct undo *u)
{
	for (size_t at = 0; at < u->used;) {
		struct head head;

		memcpy(&head, u->log + at, sizeof head);
		if (head.ops->commit)
			head.ops->commit(head.ctx, u->log + at + sizeof head);
		at += UNDO_RECORD(head.size);
	}
	u->used = 0;
	if (u->capacity > UNDO_KEEP)
		undo_release(u);
}
