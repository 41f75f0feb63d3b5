/* The runs of a VM's tree as text, one row a stretch. A shattered table of 512 pages is one row of some kilobytes:
 * SQLite then costs per table, not per page. What is read is checked: the file is input. */
#include "store/extent.h"

#include <stdlib.h>
#include <string.h>

#define PLACE_MOST 0xffu
#define FLAGS      (GFN_ENTRY_RESIDENT | GFN_ENTRY_OUT | GFN_ENTRY_SHARED)
#define NUMBERS    (((uint64_t)1 << GFN_ENTRY_ARCH) - 1) /* place and PFN */
#define RUN_MOST   (EXTENT_ARCH_MAX + 96)                /* bytes of one run's text */

/* The number is the kind that the text has; the view in schema.c knows them too. */
enum kind { KIND_NORMAL, KIND_RESIDENT, KIND_OUT, KIND_SHARED, KIND_COUNT };
static const uint64_t kinds[KIND_COUNT] = { [KIND_NORMAL] = 0,
					    [KIND_RESIDENT] = GFN_ENTRY_RESIDENT,
					    [KIND_OUT] = GFN_ENTRY_OUT,
					    [KIND_SHARED] = GFN_ENTRY_SHARED };

void extent_begin(struct extent_text *t)
{
	t->used = 0;
}

static bool room_for(struct extent_text *t, size_t more)
{
	size_t room = t->room ? 2 * t->room : 4096;
	char *grown;

	if (t->room - t->used >= more)
		return true;
	grown = realloc(t->s, room);
	if (!grown)
		return false;
	t->s = grown;
	t->room = room;
	return true;
}

static void put_char(struct extent_text *t, char c)
{
	t->s[t->used++] = c;
}

/* Some 10^8 of these make a picture: printf would take as long as everything else together. */
static void put_number(struct extent_text *t, uint64_t v)
{
	char digits[20];
	size_t n = 0;

	do
		digits[n++] = (char)('0' + v % 10);
	while (v /= 10);
	while (n)
		put_char(t, digits[--n]);
}

static bool arch_state_fits(const struct extent_row *run)
{
	const char *name = run->arch_state;

	if (!(run->entry & GFN_ENTRY_ARCH_ANY) != !name)
		return false;
	for (size_t i = 0; name && name[i]; i++)
		if (i + 1 >= EXTENT_ARCH_MAX || name[i] < ' ' || name[i] > '~' || name[i] == '"' || name[i] == '\\')
			return false;
	return !name || *name;
}

static enum kind kind_of(uint64_t entry)
{
	enum kind k = KIND_NORMAL;

	while (k < KIND_COUNT && kinds[k] != (entry & FLAGS))
		k++;
	return k;
}

enum pw_status extent_add(struct extent_text *t, uint64_t base, const struct extent_row *run, struct pw_err *err)
{
	enum kind kind = kind_of(run->entry);
	bool numbered = kind == KIND_RESIDENT || run->entry & NUMBERS;

	if (!run->entry || run->entry & ~(FLAGS | GFN_ENTRY_ARCH_ANY | NUMBERS) || kind == KIND_COUNT)
		return pw_fail(err, PW_INVALID, "entry %#" PRIx64 " of a VM's tree stands for no state", run->entry);
	if (!arch_state_fits(run))
		return pw_fail(err, PW_INVALID, "picture: the entry of GFN %" PRIu64 " and its arch_state contradict",
			       run->gfn);
	if (!room_for(t, RUN_MOST))
		return pw_fail(err, PW_NO_MEMORY, "out of memory while saving extents");
	put_char(t, t->used ? ',' : '[');
	put_char(t, '[');
	put_number(t, run->gfn - base);
	put_char(t, ',');
	put_number(t, run->count);
	put_char(t, ',');
	put_number(t, kind);
	if (numbered) {
		put_char(t, ',');
		put_number(t, run->entry >> GFN_ENTRY_POOL & PLACE_MOST);
		put_char(t, ',');
		put_number(t, run->entry & TREE_NUMBER);
	}
	if (run->arch_state) {
		size_t n = strlen(run->arch_state);

		memcpy(t->s + t->used, numbered ? ",\"" : ",null,null,\"", numbered ? 2 : 12);
		t->used += numbered ? 2 : 12;
		memcpy(t->s + t->used, run->arch_state, n);
		t->used += n;
		put_char(t, '"');
	}
	put_char(t, ']');
	return PW_OK;
}

bool extent_end(struct extent_text *t)
{
	if (!t->used)
		return false;
	put_char(t, ']'); /* RUN_MOST has room for it */
	return true;
}

/* Reading. */

void extent_read_init(struct extent_reader *r, uint64_t base, const char *text)
{
	r->at = text;
	r->base = r->past = base;
}

static bool take(struct extent_reader *r, const char *text)
{
	size_t n = strlen(text);

	if (strncmp(r->at, text, n) != 0)
		return false;
	r->at += n;
	return true;
}

static bool take_number(struct extent_reader *r, uint64_t most, uint64_t *out)
{
	const char *from = r->at;
	uint64_t v = 0;

	for (; *r->at >= '0' && *r->at <= '9' && v <= most; r->at++)
		v = v * 10 + (uint64_t)(*r->at - '0');
	*out = v;
	return r->at > from && v <= most;
}

static bool take_arch_state(struct extent_reader *r)
{
	size_t n = strcspn(r->at, "\"");

	if (n == 0 || n >= sizeof r->arch_state || r->at[n] != '"')
		return false;
	memcpy(r->arch_state, r->at, n);
	r->arch_state[n] = '\0';
	r->at += n + 1;
	return true;
}

/* What follows the kind: ,place,pfn   ,place,pfn,"arch"   ,null,null,"arch"   or nothing. */
static bool take_rest(struct extent_reader *r, struct extent_row *out, enum kind kind)
{
	uint64_t place, pfn;

	if (take(r, ",null,null")) {
		if (kind == KIND_RESIDENT || *r->at != ',')
			return false;
	} else if (take(r, ",")) {
		if (!take_number(r, PLACE_MOST, &place) || !take(r, ",") || !take_number(r, TREE_NUMBER, &pfn))
			return false;
		out->entry |= place << GFN_ENTRY_POOL | pfn;
		if (kind == KIND_RESIDENT && out->count > TREE_PAGES - pfn)
			return false;
	} else if (kind == KIND_RESIDENT) {
		return false;
	}
	if (!take(r, ",\""))
		return out->entry != 0;
	out->arch_state = r->arch_state;
	return take_arch_state(r);
}

static bool take_run(struct extent_reader *r, struct extent_row *out)
{
	uint64_t offset, kind;

	if (!take(r, "[") || !take_number(r, TREE_PAGES - 1 - r->base, &offset) || !take(r, ","))
		return false;
	out->gfn = r->base + offset;
	if (out->gfn < r->past || !take_number(r, TREE_PAGES - out->gfn, &out->count) || !out->count || !take(r, ",") ||
	    !take_number(r, KIND_COUNT - 1, &kind))
		return false;
	out->entry = kinds[kind];
	return take_rest(r, out, (enum kind)kind) && take(r, "]");
}

enum pw_status extent_read(struct extent_reader *r, struct extent_row *out, struct pw_err *err)
{
	bool first = r->at[0] == '[' && r->at[1] == '[';

	if (!first && strcmp(r->at, "]") == 0) {
		r->at++;
		return PW_NOT_FOUND;
	}
	out->arch_state = NULL;
	if (!take(r, first ? "[" : ",") || !take_run(r, out))
		return pw_fail(err, PW_STORAGE,
			       "ledger.db: table gfn_span: runs: at GFN %" PRIu64 " or behind it: no run of a VM",
			       r->past);
	r->past = out->gfn + out->count;
	return PW_OK;
}
