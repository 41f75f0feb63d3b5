/* The agent's memory of what the ledger said, in two small files of the state folder: one line a VM, and one number.
 * It decides nothing; agents/resync.c asks it whether a recorded end is evidence (law L11). */
#include "agents/heard.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#include "agents/alog.h"
#include "agents/seq.h"

static enum pw_status write_vms(const struct heard *h, FILE *to)
{
	char id[PW_UUID_TEXT];

	for (size_t i = 0; i < h->n; i++) {
		pw_uuid_format(&h->v[i].vm, id);
		fprintf(to, "%s %" PRIu64 " %s\n", id, h->v[i].revision, h->v[i].plain ? "plain" : "secure");
	}
	return PW_OK;
}

static enum pw_status write_seen(const struct heard *h, FILE *to)
{
	fprintf(to, "%" PRIu64 "\n", atomic_load(&h->seen));
	return PW_OK;
}

/* Replaces the file by what `write` says. */
static enum pw_status replace(const struct heard *h, const char *path,
			      enum pw_status (*write)(const struct heard *h, FILE *to), struct pw_err *err)
{
	enum pw_status st = PW_OK;
	char *fresh;
	FILE *to;

	if (!path)
		return PW_OK;
	if (asprintf(&fresh, "%s.new", path) < 0)
		return pw_fail(err, PW_NO_MEMORY, "no memory for a path");
	to = fopen(fresh, "we");
	if (to)
		st = write(h, to);
	if (!to || ferror(to) | fclose(to) || rename(fresh, path) != 0)
		st = pw_fail(err, PW_STORAGE, "%s: %s", path, strerror(errno));
	free(fresh);
	return st;
}

static struct heard_vm *find(const struct heard *h, const struct pw_uuid *vm)
{
	for (size_t i = 0; i < h->n; i++)
		if (pw_uuid_equal(&h->v[i].vm, vm))
			return &h->v[i];
	return NULL;
}

static struct heard_vm *add(struct heard *h, const struct pw_uuid *vm)
{
	if (h->n == h->cap) {
		size_t cap = h->cap ? 2 * h->cap : 16;
		struct heard_vm *more = reallocarray(h->v, cap, sizeof *more);

		if (!more)
			return NULL;
		h->v = more;
		h->cap = cap;
	}
	h->v[h->n] = (struct heard_vm){ .vm = *vm };
	return &h->v[h->n++];
}

static bool read_vm(char *line, struct heard_vm *out)
{
	char *rest = strchr(line, ' '), *end;

	if (!rest || !pw_uuid_parse(line, (size_t)(rest - line), &out->vm))
		return false;
	errno = 0;
	out->revision = strtoull(rest, &end, 10);
	out->plain = strcmp(end, " plain\n") == 0;
	return errno == 0 && end != rest && (out->plain || strcmp(end, " secure\n") == 0);
}

/* Damage is nothing heard, never a reason to end a guest or not to start. */
static enum pw_status read_vms(struct heard *h, struct pw_err *err)
{
	FILE *f = h->vms_path ? fopen(h->vms_path, "re") : NULL;
	enum pw_status st = PW_OK;
	char line[128];

	while (f && st == PW_OK && fgets(line, sizeof line, f)) {
		struct heard_vm read = { 0 }, *vm;

		if (!read_vm(line, &read)) {
			alog(ALOG_WARNING, "a line is left out", "%s does not say what the ledger said of a VM",
			     h->vms_path);
			continue;
		}
		vm = find(h, &read.vm);
		vm = vm ? vm : add(h, &read.vm);
		if (vm)
			*vm = read;
		else
			st = pw_fail(err, PW_NO_MEMORY, "no memory for what the ledger said");
	}
	if (f)
		fclose(f);
	return st;
}

static void read_seen(struct heard *h)
{
	char text[32], *end;
	struct pw_err err;
	uint64_t seen;

	if (!h->seen_path || file_read_line(h->seen_path, text, sizeof text, &err) != PW_OK)
		return;
	errno = 0;
	seen = strtoull(text, &end, 10);
	if (errno == 0 && end != text && !*end && seen <= INT64_MAX)
		h->seen_kept = seen;
}

enum pw_status heard_open(struct heard *h, const char *dir, bool vms_last, struct pw_err *err)
{
	enum pw_status st;

	*h = (struct heard){ 0 };
	if (dir && vms_last)
		h->vms_path = path_join(dir, "vms-heard");
	if (dir)
		h->seen_path = path_join(dir, "revision-seen");
	if ((dir && vms_last && !h->vms_path) || (dir && !h->seen_path))
		return pw_fail(err, PW_NO_MEMORY, "no memory for a path");
	st = read_vms(h, err);
	read_seen(h);
	atomic_store(&h->seen, h->seen_kept);
	for (size_t i = 0; i < h->n; i++) /* each is a revision that was seen */
		if (h->v[i].revision != HEARD_NO_END)
			heard_see(h, h->v[i].revision);
	return st;
}

void heard_release(struct heard *h)
{
	free(h->vms_path);
	free(h->seen_path);
	free(h->v);
	*h = (struct heard){ 0 };
}

enum pw_status heard_put(struct heard *h, const struct pw_uuid *vm, uint64_t revision, bool plain, struct pw_err *err)
{
	struct heard_vm *known = find(h, vm), before;
	bool is_new = !known;
	enum pw_status st;

	if (known && known->revision == revision && known->plain == plain)
		return PW_OK;
	if (!known)
		known = add(h, vm);
	if (!known)
		return pw_fail(err, PW_NO_MEMORY, "no memory for what the ledger said");
	before = *known;
	*known = (struct heard_vm){ *vm, revision, plain };
	if (revision != HEARD_NO_END)
		heard_see(h, revision);
	st = replace(h, h->vms_path, write_vms, err);
	if (st != PW_OK && is_new)
		h->n--;
	else if (st != PW_OK)
		*known = before;
	return st;
}

void heard_drop(struct heard *h, const struct pw_uuid *vm)
{
	struct heard_vm *known = find(h, vm);
	struct pw_err err;

	if (!known)
		return;
	*known = h->v[--h->n];
	if (replace(h, h->vms_path, write_vms, &err) != PW_OK) /* it says too much, of a VM that is gone */
		alog(ALOG_WARNING, "not kept", "%s", err.msg);
}

const struct heard_vm *heard_of(const struct heard *h, const struct pw_uuid *vm)
{
	return find(h, vm);
}

bool heard_is_later(const struct heard *h, const struct pw_uuid *vm, uint64_t ended)
{
	const struct heard_vm *known = find(h, vm);

	return known && ended > known->revision;
}

void heard_see(struct heard *h, uint64_t revision)
{
	uint64_t seen = atomic_load(&h->seen);

	while (revision > seen && !atomic_compare_exchange_weak(&h->seen, &seen, revision))
		;
}

void heard_keep(struct heard *h)
{
	uint64_t seen = atomic_load(&h->seen);
	struct pw_err err;

	if (!h->seen_path || seen == h->seen_kept)
		return;
	if (replace(h, h->seen_path, write_seen, &err) == PW_OK)
		h->seen_kept = seen;
	else
		alog(ALOG_WARNING, "not kept", "%s", err.msg);
}

enum pw_status heard_restart(struct heard *h, uint64_t revision, struct pw_err *err)
{
	enum pw_status st;

	for (size_t i = 0; i < h->n; i++)
		h->v[i].revision = HEARD_NO_END;
	st = replace(h, h->vms_path, write_vms, err);
	if (st != PW_OK)
		return st;
	atomic_store(&h->seen, revision);
	heard_keep(h);
	return PW_OK;
}
