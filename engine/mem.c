#include "engine/mem.h"

#include <stdlib.h>
#include <string.h>

void *pw_mem_alloc(struct pw_mem *mem, size_t size)
{
	void *p;

	if (mem->limit && (size > mem->limit || mem->used > mem->limit - size))
		return NULL;
	p = mem->alloc ? mem->alloc(mem->ctx, size) : malloc(size);
	if (p)
		mem->used += size;
	return p;
}

void *pw_mem_zalloc(struct pw_mem *mem, size_t size)
{
	void *p = pw_mem_alloc(mem, size);

	if (p)
		memset(p, 0, size);
	return p;
}

void pw_mem_free(struct pw_mem *mem, void *p, size_t size)
{
	if (!p)
		return;
	mem->used -= size;
	if (mem->free)
		mem->free(mem->ctx, p);
	else
		free(p);
}
