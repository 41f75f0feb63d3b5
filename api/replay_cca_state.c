/* The state of the machine, as lines of cca-trace/1 tell it. */
#include <stdlib.h>
#include <string.h>

#include "api/replay_cca.h"
#include "engine/arch/cca_rim.h"

#define NAME_BYTES 48

/* Owners. */

static const struct cca_realm *realm_by_serial(const struct cca_model *x, uint64_t serial)
{
	for (size_t i = 0; i < x->m.realm_room; i++)
		if (x->m.realms[i] && x->m.realms[i]->serial == serial)
			return x->m.realms[i];
	return NULL;
}

enum pw_status cca_owner_put(struct cca_model *x, uint64_t rec, uint64_t serial, struct pw_err *err)
{
	struct cca_owner *grown;

	for (size_t i = 0; i < x->owner_count; i++)
		if (x->owners[i].rec == rec) {
			x->owners[i].serial = serial;
			return PW_OK;
		}
	grown = realloc(x->owners, (x->owner_count + 1) * sizeof *grown);
	if (!grown)
		return cca_no_memory(err);
	x->owners = grown;
	grown[x->owner_count++] = (struct cca_owner){ rec, serial };
	return PW_OK;
}

/* Whom the step is about: the realm of the RD, else the REC's owner. */
const struct cca_realm *cca_realm_of(const struct cca_model *x, const struct cca_call *call)
{
	const struct cca_realm *r = cca_realm_at(&x->m, call->arg[CCA_ARG_RD]);

	for (size_t i = 0; !r && i < x->owner_count; i++)
		if (x->owners[i].rec == call->arg[CCA_ARG_REC])
			r = realm_by_serial(x, x->owners[i].serial);
	return r;
}

/* State after a step. */

static json_t *rim_json(const struct cca_realm *realm)
{
	char text[2 * CCA_RIM_BYTES + 1];
	size_t bytes = cca_hash_bytes(realm->hash);

	for (size_t i = 0; i < bytes; i++)
		(void)snprintf(text + 2 * i, 3, "%02x", realm->rim[i]);
	return json_string(text);
}

/* Has the realm's measurement changed since a line last reported it? It counts as reported from now on. */
static enum pw_status rim_is_news(struct cca_model *x, const struct cca_realm *realm, bool *out, struct pw_err *err)
{
	struct cca_told *t = x->told, *end = t ? t + x->told_count : NULL;

	while (t < end && t->serial != realm->serial)
		t++;
	*out = t == end || memcmp(t->rim, realm->rim, sizeof t->rim) != 0;
	if (t == end) {
		struct cca_told *grown = realloc(x->told, (x->told_count + 1) * sizeof *t);

		if (!grown)
			return cca_no_memory(err);
		x->told = grown;
		t = &grown[x->told_count++];
		t->serial = realm->serial;
	}
	memcpy(t->rim, realm->rim, sizeof t->rim);
	return PW_OK;
}

/* "g7", or "g32-g47" as one state; "MIXED" if they differ. */
static enum pw_status granules_state(const struct cca_model *x, const char *name, json_t **out, struct pw_err *err)
{
	uint64_t first, last;
	const char *end;
	enum cca_granule s;

	if (name[0] != 'g' || !cca_read_number(name + 1, &end, &first))
		return pw_fail(err, PW_INVALID, "\"%s\" is no granule", name);
	last = first;
	if (*end && (strncmp(end, "-g", 2) != 0 || !cca_read_number(end + 2, &end, &last) || *end))
		return pw_fail(err, PW_INVALID, "\"%s\" is no run of granules", name);
	if (last < first || last >= x->m.config.granules)
		return pw_fail(err, PW_INVALID, "\"%s\" is not in memory", name);
	s = cca_granule_state(&x->m, CCA_REPLAY_MEMORY + first * CCA_GRANULE);
	*out = json_string(cca_granule_name(s));
	for (uint64_t i = first; i <= last && *out; i++)
		if (cca_granule_state(&x->m, CCA_REPLAY_MEMORY + i * CCA_GRANULE) != s) {
			json_decref(*out);
			*out = json_string("MIXED");
			break;
		}
	return *out ? PW_OK : cca_no_memory(err);
}

static enum pw_status post_granules(const struct cca_model *x, const json_t *asked, json_t *got, struct pw_err *err)
{
	json_t *list = json_object(), *state = NULL, *v;
	const char *name;
	enum pw_status st = cca_put(got, "granules", list, err);

	if (!json_is_object(asked))
		return pw_fail(err, PW_INVALID, "post.granules is not an object");
	json_object_foreach ((json_t *)(uintptr_t)asked, name, v) {
		if (st == PW_OK)
			st = granules_state(x, name, &state, err);
		if (st == PW_OK)
			st = cca_put(list, name, state, err);
	}
	return st;
}

static json_t *realm_json(const struct cca_realm *r)
{
	return json_pack("{s:s, s:I, s:I}", "state", cca_realm_state_name(r->state), "num_recs",
			 (json_int_t)r->num_recs, "rec_index", (json_int_t)r->rec_index);
}

static enum pw_status post_realm(struct cca_model *x, const struct cca_realm *r, const json_t *asked, json_t *got,
				 struct pw_err *err)
{
	static const char *const members[] = { "name", "state", "num_recs", "rec_index", "rim", NULL };
	json_t *o;
	bool news;

	if (!json_is_object(asked))
		return pw_fail(err, PW_INVALID, "post.realm is not an object");
	if (replay_known(asked, members, err) != PW_OK)
		return err->status;
	if (!r)
		return PW_OK;
	o = realm_json(r);
	if (cca_put(got, "realm", o, err) != PW_OK ||
	    cca_put(o, "name", json_sprintf("r%" PRIu64, r->serial), err) != PW_OK ||
	    rim_is_news(x, r, &news, err) != PW_OK)
		return err->status;
	return news || json_object_get(asked, "rim") ? cca_put(o, "rim", rim_json(r), err) : PW_OK;
}

/* state, ripas and desc of an entry; ripas "-" for NS if the line is of that kind. */
static enum pw_status put_entry(const struct cca_model *x, const struct cca_walk *w, const char *ns_ripas, json_t *o,
				struct pw_err *err)
{
	const char *ripas = cca_entry_ripas(w->entry);
	bool table = w->entry == CCA_TABLE || w->entry == CCA_TABLE_NS;

	if (!ripas && !table)
		ripas = ns_ripas;
	if (cca_put(o, "state", json_string(cca_entry_hipas(w->entry)), err) != PW_OK ||
	    (ripas && cca_put(o, "ripas", json_string(ripas), err) != PW_OK))
		return err->status;
	if (!cca_entry_kind(w->entry)->live || w->entry == CCA_ASSIGNED_DESTROYED)
		return PW_OK;
	return cca_put(o, "desc", cca_address_json(x, w->addr | w->attr), err);
}

static enum pw_status post_entry(const struct cca_model *x, const struct cca_realm *r, const json_t *asked,
				 json_t *list, struct pw_err *err)
{
	static const char *const members[] = { "ipa", "walk_level", "state", "ripas", "desc", NULL };
	struct cca_walk w;
	uint64_t ipa;
	json_t *o;

	if (!json_is_object(asked) || replay_known(asked, members, err) != PW_OK ||
	    replay_u64(asked, "ipa", UINT64_MAX, &ipa, err) != PW_OK || ipa >> 48)
		return pw_fail(err, PW_INVALID, "post.rtte is not a list of entries");
	w = cca_walk(r, ipa, CCA_LEVELS - 1);
	o = json_pack("{s:o, s:i}", "ipa", cca_hex_json(ipa), "walk_level", (int)w.level);
	if (cca_append(list, o, err) != PW_OK)
		return err->status;
	return put_entry(x, &w, "-", o, err);
}

static enum pw_status post_entries(const struct cca_model *x, const struct cca_realm *r, const json_t *asked,
				   json_t *got, struct pw_err *err)
{
	json_t *list = json_array();

	if (cca_put(got, "rtte", list, err) != PW_OK)
		return err->status;
	if (!json_is_array(asked))
		return pw_fail(err, PW_INVALID, "post.rtte is not an array");
	for (size_t i = 0; r && i < json_array_size(asked); i++)
		if (post_entry(x, r, json_array_get(asked, i), list, err) != PW_OK)
			return err->status;
	return PW_OK;
}

enum pw_status cca_post_json(struct cca_model *x, const json_t *asked, const struct cca_realm *r, json_t *got,
			     struct pw_err *err)
{
	static const char *const members[] = { "granules", "realm", "rtte", NULL };
	const json_t *granules = json_object_get(asked, "granules"), *realm = json_object_get(asked, "realm"),
		     *rtte = json_object_get(asked, "rtte");
	json_t *post = json_object();

	if (cca_put(got, "post", post, err) != PW_OK)
		return err->status;
	if (!json_is_object(asked))
		return pw_fail(err, PW_INVALID, "\"post\" is not an object");
	if (replay_known(asked, members, err) != PW_OK ||
	    (granules && post_granules(x, granules, post, err) != PW_OK) ||
	    (realm && post_realm(x, r, realm, post, err) != PW_OK) ||
	    (rtte && post_entries(x, r, rtte, post, err) != PW_OK))
		return err->status;
	return PW_OK;
}

/* Checkpoints. */

static enum pw_status all_granules(const struct cca_model *x, json_t *got, struct pw_err *err)
{
	json_t *list = json_object();
	uint64_t n = x->m.config.granules, end;
	char name[NAME_BYTES];

	if (cca_put(got, "granules", list, err) != PW_OK)
		return err->status;
	for (uint64_t at = 0; at < n; at = end) {
		enum cca_granule s = cca_granule_state(&x->m, CCA_REPLAY_MEMORY + at * CCA_GRANULE);

		for (end = at + 1; end < n && cca_granule_state(&x->m, CCA_REPLAY_MEMORY + end * CCA_GRANULE) == s;
		     end++)
			;
		if (s == CCA_UNDELEGATED)
			continue;
		(void)snprintf(name, sizeof name, end == at + 1 ? "g%" PRIu64 : "g%" PRIu64 "-g%" PRIu64, at, end - 1);
		if (cca_put(list, name, json_string(cca_granule_name(s)), err) != PW_OK)
			return err->status;
	}
	return PW_OK;
}

/* Does the entry go on with the one before, `pages` further? */
static bool goes_on(const struct cca_walk *before, const struct cca_walk *w)
{
	bool shown = cca_entry_kind(w->entry)->live && w->entry != CCA_ASSIGNED_DESTROYED;

	if (w->entry != before->entry || w->entry == CCA_TABLE || w->entry == CCA_TABLE_NS || w->attr != before->attr)
		return false;
	return !shown || w->addr - before->addr == w->first - before->first;
}

static enum pw_status list_run(const struct cca_model *x, const struct cca_walk *w, uint64_t count, json_t *list,
			       struct pw_err *err)
{
	json_t *o = json_pack("{s:o, s:i, s:I}", "ipa", cca_hex_json(w->first), "level", (int)w->level, "count",
			      (json_int_t)count);

	if (cca_append(list, o, err) != PW_OK)
		return err->status;
	return put_entry(x, w, NULL, o, err);
}

/* The entries of [ipa, end) at the level, in runs, children behind their table. */
static enum pw_status list_entries(const struct cca_model *x, const struct cca_realm *r, unsigned level, uint64_t ipa,
				   uint64_t end, json_t *list, struct pw_err *err)
{
	uint64_t size = cca_level_size(level), count;
	enum pw_status st = PW_OK;

	for (uint64_t at = ipa; at < end && st == PW_OK; at += count * size) {
		struct cca_walk first = cca_walk(r, at, level), last = first, next;

		for (count = 1; at + count * size < end; count++, last = next) {
			next = cca_walk(r, at + count * size, level);
			if (!goes_on(&last, &next))
				break;
		}
		st = list_run(x, &first, count, list, err);
		if (st == PW_OK && (first.entry == CCA_TABLE || first.entry == CCA_TABLE_NS))
			st = list_entries(x, r, level + 1, at, at + size, list, err);
	}
	return st;
}

static enum pw_status checkpoint_realm(struct cca_model *x, const struct cca_realm *r, json_t *realms,
				       struct pw_err *err)
{
	json_t *o = realm_json(r), *list = json_array();
	char name[NAME_BYTES];
	bool news;

	(void)snprintf(name, sizeof name, "r%" PRIu64, r->serial);
	if (cca_put(o, "rtt", list, err) != PW_OK) {
		json_decref(o);
		return err->status;
	}
	if (cca_put(realms, name, o, err) != PW_OK ||
	    cca_put(o, "rd", cca_address_json(x, r->rd << CCA_SHIFT), err) != PW_OK ||
	    cca_put(o, "rim", rim_json(r), err) != PW_OK || rim_is_news(x, r, &news, err) != PW_OK)
		return err->status;
	return list_entries(x, r, r->start, 0, (uint64_t)1 << r->ipa_bits, list, err);
}

enum pw_status cca_checkpoint(struct cca_model *x, const json_t *line, json_t *got, struct pw_err *err)
{
	static const char *const members[] = { "type", "n", "note", "granules", "realms", NULL };
	json_t *realms = json_object();
	enum pw_status st = replay_known(line, members, err);

	if (st == PW_OK &&
	    !(json_is_object(json_object_get(line, "granules")) && json_is_object(json_object_get(line, "realms"))))
		st = pw_fail(err, PW_INVALID, "a checkpoint without granules and realms");
	if (st == PW_OK)
		st = all_granules(x, got, err);
	if (st != PW_OK) {
		json_decref(realms);
		return st;
	}
	st = cca_put(got, "realms", realms, err);
	for (size_t i = 0; i < x->m.realm_room && st == PW_OK; i++)
		if (x->m.realms[i])
			st = checkpoint_realm(x, x->m.realms[i], realms, err);
	return st;
}
