/* engine/mem.h
 *
 * Where the engine's memory comes from: the caller's allocator, counted and bounded. A refused allocation is an
 * ordinary answer (NULL), which every caller turns into PW_NO_MEMORY with nothing changed.
 */
#ifndef PW_ENGINE_MEM_H
#define PW_ENGINE_MEM_H
#include "engine/status.h"

struct pw_mem {
	void *(*alloc)(void *ctx, size_t size); /* NULL: malloc */
	void (*free)(void *ctx, void *p);       /* NULL: free */
	void *ctx;
	size_t used;  /* bytes handed out and not given back */
	size_t limit; /* 0: none */
};

/* Uninitialised memory, aligned for any type; NULL if the allocator refuses or the limit would be passed. */
void *pw_mem_alloc(struct pw_mem *mem, size_t size) PW_MUST_CHECK;
void *pw_mem_zalloc(struct pw_mem *mem, size_t size) PW_MUST_CHECK;

/* `size` is what it was allocated with. p may be NULL. */
void pw_mem_free(struct pw_mem *mem, void *p, size_t size);

#endif
