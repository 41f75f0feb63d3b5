#include "agents/machine_impl.h"

#include <stdlib.h>
#include <string.h>

#define STRETCH ((uint64_t)512)
#define WORD    ((uint64_t)64)

static uint64_t min_u64(uint64_t a, uint64_t b)
{
	return a < b ? a : b;
}

enum pw_status machine_frames_init(struct machine_frames *f, const struct machine_pool *pool)
{
	*f = (struct machine_frames){ .base = pool->base - pool->base % STRETCH, .first = pool->base % STRETCH };
	f->end = f->first + pool->frames;
	f->low = f->first;
	f->low_stretch = (f->first + STRETCH - 1) / STRETCH * STRETCH;
	for (int use = 0; use < FRAME_USE_COUNT; use++)
		f->map[use] = calloc(f->end / WORD + 1, sizeof *f->map[use]);
	if (f->map[FRAME_USED] && f->map[FRAME_RESERVED] && f->map[FRAME_STUCK])
		return PW_OK;
	machine_frames_release(f);
	return PW_NO_MEMORY;
}

void machine_frames_release(struct machine_frames *f)
{
	for (int use = 0; use < FRAME_USE_COUNT; use++)
		free(f->map[use]);
	for (size_t i = 0; i < f->stuck_count; i++)
		free(f->stuck[i].why);
	free(f->stuck);
	*f = (struct machine_frames){ 0 };
}

/* The bits of [bit, end) that lie in bit's word, as a mask of it. */
static uint64_t mask_at(uint64_t bit, uint64_t end)
{
	uint64_t n = min_u64(end - bit, WORD - bit % WORD);

	return (n == WORD ? UINT64_MAX : ((uint64_t)1 << n) - 1) << bit % WORD;
}

static uint64_t next_word(uint64_t bit)
{
	return (bit / WORD + 1) * WORD;
}

void machine_frames_mark(struct machine_frames *f, enum frame_use use, uint64_t pfn, uint64_t count)
{
	uint64_t end = pfn - f->base + count;

	for (uint64_t bit = pfn - f->base; bit < end; bit = next_word(bit)) {
		uint64_t *word = &f->map[use][bit / WORD], mask = mask_at(bit, end);

		f->count[use] += (uint64_t)__builtin_popcountll(mask & ~*word);
		*word |= mask;
	}
}

void machine_frames_clear(struct machine_frames *f, enum frame_use use, uint64_t pfn, uint64_t count)
{
	uint64_t first = pfn - f->base, end = first + count;

	for (uint64_t bit = first; bit < end; bit = next_word(bit)) {
		uint64_t *word = &f->map[use][bit / WORD], mask = mask_at(bit, end);

		f->count[use] -= (uint64_t)__builtin_popcountll(mask & *word);
		*word &= ~mask;
	}
	f->low = min_u64(f->low, first);
	f->low_stretch = min_u64(f->low_stretch, first - first % STRETCH);
}

bool machine_frames_have(const struct machine_frames *f, enum frame_use use, uint64_t pfn)
{
	uint64_t bit = pfn - f->base;

	if (pfn < f->base + f->first || bit >= f->end)
		return false;
	return f->map[use][bit / WORD] >> bit % WORD & 1;
}

uint64_t machine_frames_free(const struct machine_frames *f)
{
	uint64_t n = f->end - f->first;

	for (int use = 0; use < FRAME_USE_COUNT; use++)
		n -= f->count[use];
	return n;
}

static uint64_t taken(const struct machine_frames *f, uint64_t word)
{
	return f->map[FRAME_USED][word] | f->map[FRAME_RESERVED][word] | f->map[FRAME_STUCK][word];
}

/* The lowest run of free frames, of at most `most`, as bits; there must be one. */
static uint64_t lowest_free(struct machine_frames *f, uint64_t most, uint64_t *count)
{
	uint64_t at, n = 0;

	while (!(~taken(f, f->low / WORD) >> f->low % WORD))
		f->low = next_word(f->low);
	f->low += (uint64_t)__builtin_ctzll(~taken(f, f->low / WORD) >> f->low % WORD);
	for (at = f->low; n < most && at < f->end && !(taken(f, at / WORD) >> at % WORD & 1); at++)
		n++;
	*count = n;
	return f->low;
}

/* The lowest aligned stretch of free frames; false: there is none. */
static bool free_stretch(struct machine_frames *f, uint64_t *out)
{
	for (; f->low_stretch + STRETCH <= f->end; f->low_stretch += STRETCH) {
		uint64_t any = f->low_stretch < f->first;

		for (uint64_t w = 0; w < STRETCH / WORD; w++)
			any |= taken(f, f->low_stretch / WORD + w);
		if (any)
			continue;
		*out = f->low_stretch;
		return true;
	}
	return false;
}

bool machine_frames_reserve(struct machine_frames *f, uint64_t gfn, uint64_t count, uint64_t *pfns)
{
	uint64_t n, bit;

	if (count > machine_frames_free(f))
		return false;
	for (uint64_t at = 0; at < count; at += n) {
		uint64_t page = gfn + at, left = count - at;

		if (page % STRETCH == 0 && left >= STRETCH && free_stretch(f, &bit))
			n = STRETCH;
		else
			bit = lowest_free(f, min_u64(left, STRETCH - page % STRETCH), &n);
		machine_frames_mark(f, FRAME_RESERVED, f->base + bit, n);
		for (uint64_t i = 0; i < n; i++)
			pfns[at + i] = f->base + bit + i;
	}
	return true;
}

uint64_t machine_frames_reserved(struct machine_frames *f, const uint64_t *pfns, uint64_t count)
{
	uint64_t low = f->low, low_stretch = f->low_stretch, n = 0;

	for (; n < count && machine_frames_have(f, FRAME_RESERVED, pfns[n]); n++)
		machine_frames_clear(f, FRAME_RESERVED, pfns[n], 1);
	for (uint64_t i = 0; i < n; i++)
		machine_frames_mark(f, FRAME_RESERVED, pfns[i], 1);
	f->low = low;
	f->low_stretch = low_stretch;
	return n;
}

/* Stuck frames and why. */

static size_t stuck_index(const struct machine_frames *f, uint64_t pfn)
{
	size_t low = 0, high = f->stuck_count;

	while (low < high) {
		size_t mid = low + (high - low) / 2;

		if (f->stuck[mid].pfn < pfn)
			low = mid + 1;
		else
			high = mid;
	}
	return low;
}

static bool stuck_grow(struct machine_frames *f)
{
	size_t room = f->stuck_room ? 2 * f->stuck_room : 8;
	struct stuck_frame *grown;

	if (f->stuck_count < f->stuck_room)
		return true;
	grown = reallocarray(f->stuck, room, sizeof *grown);
	if (!grown)
		return false;
	f->stuck = grown;
	f->stuck_room = room;
	return true;
}

/* The bitmap alone says what is stuck; without memory the reason is missing, no more. */
void machine_frames_keep(struct machine_frames *f, uint64_t pfn, const char *why)
{
	size_t i = stuck_index(f, pfn);

	if (pfn < f->base + f->first || pfn >= f->base + f->end || machine_frames_have(f, FRAME_STUCK, pfn))
		return;
	machine_frames_clear(f, FRAME_RESERVED, pfn, 1);
	machine_frames_clear(f, FRAME_USED, pfn, 1);
	machine_frames_mark(f, FRAME_STUCK, pfn, 1);
	if (!stuck_grow(f))
		return;
	memmove(&f->stuck[i + 1], &f->stuck[i], (f->stuck_count - i) * sizeof *f->stuck);
	f->stuck[i] = (struct stuck_frame){ pfn, strdup(why) };
	f->stuck_count++;
}

static const char *why_stuck(const struct machine_frames *f, uint64_t pfn)
{
	size_t i = stuck_index(f, pfn);

	if (i < f->stuck_count && f->stuck[i].pfn == pfn && f->stuck[i].why)
		return f->stuck[i].why;
	return "firmware would not give it back";
}

bool machine_frames_stuck_at(const struct machine_frames *f, uint64_t pfn, struct backend_run *out)
{
	uint64_t end = f->base + f->end;

	if (f->count[FRAME_STUCK] == 0)
		return false;
	while (pfn < end && !machine_frames_have(f, FRAME_STUCK, pfn))
		pfn++;
	if (pfn >= end)
		return false;
	*out = (struct backend_run){ .pfn = pfn, .count = 1, .why = why_stuck(f, pfn) };
	while (machine_frames_have(f, FRAME_STUCK, pfn + out->count) &&
	       strcmp(why_stuck(f, pfn + out->count), out->why) == 0)
		out->count++;
	return true;
}

bool machine_frames_check(const struct machine_frames *f)
{
	uint64_t seen[FRAME_USE_COUNT] = { 0 }, stretch;
	struct machine_frames copy = *f;

	for (uint64_t bit = 0; bit < f->end; bit++) {
		unsigned uses = 0;

		for (int use = 0; use < FRAME_USE_COUNT; use++) {
			bool is = f->map[use][bit / WORD] >> bit % WORD & 1;

			uses += is;
			seen[use] += is;
		}
		if (uses > 1 || (bit < f->first && uses) || (bit >= f->first && bit < f->low && !uses))
			return false;
	}
	for (int use = 0; use < FRAME_USE_COUNT; use++)
		if (seen[use] != f->count[use])
			return false;
	copy.low_stretch = 0;
	return !free_stretch(&copy, &stretch) || stretch >= f->low_stretch;
}
