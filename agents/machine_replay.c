#include "agents/machine_impl.h"

#include <stdlib.h>
#include <string.h>

struct reader {
	struct machine *x;
	const uint64_t *at;
	size_t left;
	bool overrun;
	struct pw_err *err;
};

static uint64_t take(struct reader *r)
{
	if (!r->left) {
		r->overrun = true;
		return 0;
	}
	r->left--;
	return *r->at++;
}

static struct pw_uuid take_id(struct reader *r)
{
	uint64_t half[2];
	struct pw_uuid id;

	half[0] = take(r);
	half[1] = take(r);
	memcpy(id.b, half, sizeof half);
	return id;
}

static bool take_text(struct reader *r, char out[MACHINE_TEXT_MAX + 1])
{
	uint64_t len = take(r);

	if (len > MACHINE_TEXT_MAX)
		return false;
	memset(out, 0, MACHINE_TEXT_MAX + 1);
	for (uint64_t at = 0; at < len; at += sizeof(uint64_t)) {
		uint64_t word = take(r);

		memcpy(out + at, &word, len - at < sizeof word ? len - at : sizeof word);
	}
	return !r->overrun;
}

static bool take_slot(struct reader *r, struct slot *out)
{
	uint64_t number = take(r);

	out->base = take(r);
	out->pages = take(r);
	out->number = (uint32_t)number;
	return !r->overrun && number <= UINT32_MAX;
}

/* What the op that follows ran into; it is the last part of every op's record. */
static bool take_refusals(struct reader *r)
{
	uint64_t count = take(r);

	words_clear(&r->x->refused);
	for (uint64_t i = 0; i < count && !r->overrun; i++)
		words_add(&r->x->refused, take(r));
	return !r->overrun && !r->x->refused.failed;
}

static enum pw_status senseless(struct reader *r, const char *what)
{
	return pw_fail(r->err, PW_INVALID, "%s makes no sense", what);
}

static enum pw_status take_machine(struct reader *r)
{
	uint64_t magic = take(r), version = take(r), base, frames;
	char arch[MACHINE_TEXT_MAX + 1];

	if (magic != MACHINE_MAGIC || version != MACHINE_VERSION || r->x->firmware)
		return senseless(r, "its beginning");
	if (!take_text(r, arch))
		return senseless(r, "its beginning");
	base = take(r);
	frames = take(r);
	if (strcmp(arch, r->x->model->arch) != 0)
		return pw_fail(r->err, PW_CONFLICT, "it is of a machine of arch %.16s", arch);
	return machine_switch_on(r->x, base, frames, r->err);
}

static enum pw_status take_stuck(struct reader *r)
{
	uint64_t pfn = take(r), count = take(r), frames = r->x->pool.frames;
	char why[MACHINE_TEXT_MAX + 1];

	if (!take_text(r, why) || pfn < r->x->pool.base || count > frames || pfn - r->x->pool.base > frames - count)
		return senseless(r, "a stuck frame");
	for (uint64_t i = 0; i < count; i++)
		machine_frames_keep(&r->x->frames, pfn + i, why);
	return PW_OK;
}

static enum pw_status take_create(struct reader *r)
{
	struct backend_vm_spec spec = { .id = take_id(r) };
	uint64_t shared_bit = take(r), count = take(r);
	struct slot *slots;
	bool fine = count <= r->left / 3 && shared_bit < 64;
	enum pw_status st;

	slots = fine ? calloc(count + 1, sizeof *slots) : NULL;
	if (!slots)
		return fine ? pw_fail(r->err, PW_NO_MEMORY, "no memory") : senseless(r, "a VM");
	for (uint64_t i = 0; i < count; i++)
		fine &= take_slot(r, &slots[i]);
	spec.slots = slots;
	spec.slot_count = count;
	spec.shared_bit = (unsigned)shared_bit;
	st = fine && take_refusals(r) ? machine_create_vm(r->x, &spec, r->err) : senseless(r, "a VM");
	free(slots);
	return st;
}

static enum pw_status take_destroy(struct reader *r)
{
	struct pw_uuid id = take_id(r);

	return take_refusals(r) ? machine_destroy_vm(r->x, &id, r->err) : senseless(r, "the end of a VM");
}

static enum pw_status take_event(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	uint64_t e = take(r);

	if (e >= VM_EVENT_COUNT || !take_refusals(r))
		return senseless(r, "a VM event");
	return machine_vm_event(r->x, &id, (enum vm_event)e, r->err);
}

static enum pw_status take_map(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	struct slot s;

	if (!take_slot(r, &s) || !take_refusals(r))
		return senseless(r, "a slot");
	return machine_map_slot(r->x, &id, &s, r->err);
}

static enum pw_status take_unmap(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	uint64_t number = take(r);

	if (number > UINT32_MAX || !take_refusals(r))
		return senseless(r, "the end of a slot");
	return machine_unmap_slot(r->x, &id, (uint32_t)number, r->err);
}

static enum pw_status take_change(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	uint64_t op = take(r), gfn = take(r), count = take(r);

	if ((op != GFN_SHARE && op != GFN_UNSHARE && op != GFN_PAGE_OUT) || !take_refusals(r))
		return senseless(r, "a change of pages");
	return machine_change(r->x, &id, (enum gfn_op)op, gfn, count, NULL, r->err);
}

/* Takes the frames of a page-in and reserves them, as they were then. */
static bool take_frames(struct reader *r, uint64_t *pfns, uint64_t count)
{
	const struct machine_frames *f = &r->x->frames;
	uint64_t n;

	for (uint64_t at = 0; at < count; at += n) {
		uint64_t pfn = take(r);

		n = take(r);
		if (n == 0 || n > count - at || pfn < r->x->pool.base || n > r->x->pool.frames ||
		    pfn - r->x->pool.base > r->x->pool.frames - n)
			return false;
		for (uint64_t i = 0; i < n; i++) {
			for (int use = 0; use < FRAME_USE_COUNT; use++)
				if (machine_frames_have(f, (enum frame_use)use, pfn + i))
					return false;
			pfns[at + i] = pfn + i;
		}
		machine_frames_mark(&r->x->frames, FRAME_RESERVED, pfn, n);
	}
	return true;
}

static enum pw_status take_page_in(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	uint64_t gfn = take(r), count = take(r), *pfns;
	enum pw_status st;

	if (r->overrun || count == 0 || count > r->x->pool.frames)
		return senseless(r, "a page-in");
	pfns = calloc(count, sizeof *pfns);
	if (!pfns)
		return pw_fail(r->err, PW_NO_MEMORY, "no memory");
	st = take_frames(r, pfns, count) && take_refusals(r)
		     ? machine_change(r->x, &id, GFN_PAGE_IN, gfn, count, pfns, r->err)
		     : senseless(r, "a page-in");
	free(pfns);
	return st;
}

static enum pw_status take_ripas(struct reader *r)
{
	struct pw_uuid id = take_id(r);
	struct backend_ripas what = { .gfn = take(r) };
	uint64_t ram, keep, done;

	what.count = take(r);
	ram = take(r);
	keep = take(r);
	what.accept = take(r);
	what.ram = ram;
	what.keep = keep;
	if (ram > 1 || keep > 1 || !r->x->model->set_ripas || !take_refusals(r))
		return senseless(r, "a RIPAS");
	return machine_set_ripas(r->x, &id, &what, &done, r->err);
}

static enum pw_status take_record(struct reader *r)
{
	uint64_t kind = take(r);

	if (!r->x->firmware && kind != REC_MACHINE)
		return senseless(r, "its beginning");
	switch (kind) {
	case REC_MACHINE: return take_machine(r);
	case REC_STUCK: return take_stuck(r);
	case REC_CREATE: return take_create(r);
	case REC_DESTROY: return take_destroy(r);
	case REC_EVENT: return take_event(r);
	case REC_MAP: return take_map(r);
	case REC_UNMAP: return take_unmap(r);
	case REC_CHANGE: return take_change(r);
	case REC_PAGE_IN: return take_page_in(r);
	case REC_RIPAS: return take_ripas(r);
	default: return senseless(r, "a record"); /* a word from a file, not one of our enum */
	}
}

enum pw_status machine_replay(struct machine *x, const uint64_t *at, size_t count, struct pw_err *err)
{
	struct reader r = { .x = x, .at = at, .left = count, .err = err };
	enum pw_status st = PW_OK;

	x->replaying = true;
	while (st == PW_OK && r.left)
		st = take_record(&r);
	x->replaying = false;
	words_clear(&x->refused);
	return st;
}
