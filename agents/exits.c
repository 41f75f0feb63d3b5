#include "agents/exits.h"

#include <string.h>

/* Its own place, or another VM's: then that one's next report is sent though it may be known. */
static struct exit_told *place_of(struct agent *a, const struct pw_uuid *vm)
{
	uint64_t mix;

	memcpy(&mix, vm, sizeof mix);
	return &a->exits[next_random(&mix) % EXITS_TOLD_MAX];
}

static uint64_t hash_text(uint64_t h, const char *text)
{
	for (; *text; text++)
		h = (h ^ (unsigned char)*text) * 0x100000001b3;
	return h;
}

static uint64_t hash_exit(const struct backend_exit *x)
{
	uint64_t h = hash_text(0xcbf29ce484222325, x->exit);

	for (size_t i = 0; i < x->count; i++) {
		h = hash_text(h, x->items[i].name) ^ x->items[i].value;
		h = next_random(&h);
	}
	return h ? h : 1;
}

static void say_refused(struct agent *a, const struct trouble *t)
{
	if (!a->exit_refused)
		alog(ALOG_WARNING, "what vCPUs show is not told", "%s", t->err.msg);
	a->exit_refused = true;
}

void exits_report(struct worker *w, const struct pw_uuid *vm)
{
	struct agent *a = w->agent;
	const struct backend_ops *ops = a->backend->ops;
	struct exit_told told = { .vm = *vm }, *known;
	struct trouble t = { 0 };
	struct backend_exit x;

	if (!a->law || !ops->last_exit || ops->last_exit(a->backend, vm, 0, &x, &t.err) != PW_OK)
		return;
	told.hash = hash_exit(&x);
	known = place_of(a, vm);
	if (known->hash == told.hash && pw_uuid_equal(&known->vm, vm))
		return;
	if (remote_vcpu_exit(w, vm, 0, &x, &t) == PW_OK) {
		*known = told;
		a->exit_refused = false;
	} else {
		say_refused(a, &t);
	}
	trouble_clear(&t);
}

void exits_forget(struct agent *a, const struct pw_uuid *vm)
{
	*place_of(a, vm) = (struct exit_told){ 0 };
}
