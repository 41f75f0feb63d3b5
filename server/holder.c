/*
 * Who may end what hardware has (L5): the holder, who names the host's current boot_id and epoch, or an admin's force,
 * which is for hosts that are powered off. Everybody else asks for an operation, which the host's agent carries out.
 * Nothing here changes state; what a request may not do is answered.
 */
#include <stdio.h>
#include <string.h>

#include "server/service_impl.h"

bool query_flag(struct request *r, const char *name, bool *out)
{
	const char *text = request_query(r, name);

	*out = text && strcmp(text, "true") == 0;
	if (!text || *out || strcmp(text, "false") == 0)
		return true;
	answer_problem(r, PROBLEM_INVALID_REQUEST, "query parameter %s: \"%.64s\" is not true or false", name, text);
	return false;
}

bool holder_from_query(struct request *r, struct holder *out)
{
	const char *epoch = request_query(r, "epoch");

	out->boot_id = request_query(r, "boot_id");
	if (!query_flag(r, "force", &out->force) || !query_u64(r, "epoch", 0, INT64_MAX, 0, &out->epoch))
		return false;
	if (!out->boot_id == !epoch)
		return true;
	answer_problem(r, PROBLEM_INVALID_REQUEST, "boot_id and epoch come together or not at all");
	return false;
}

bool force_allowed(struct request *r, bool force)
{
	if (!force || r->who.role == ROLE_ADMIN)
		return true;
	answer_problem(r, PROBLEM_FORBIDDEN, "force is for an admin: it says that the host is powered off");
	return false;
}

bool holder_is_sound(struct request *r, const struct host *h, const struct holder *by)
{
	if (!may_act_for(r, &h->id) || !force_allowed(r, by->force))
		return false;
	if (r->who.role == ROLE_AGENT && !by->boot_id) {
		answer_problem(r, PROBLEM_INVALID_REQUEST, "an agent gives boot_id and epoch");
		return false;
	}
	return !by->boot_id || host_is_held(r, h, by->boot_id, by->epoch);
}

/* `rest` of the sentence says what to do instead. */
static bool refuse_alive(struct request *r, const struct host *h, const char *rest)
{
	char host[PW_UUID_TEXT];
	struct refusal why;

	pw_uuid_format(&h->id, host);
	(void)refuse(&why, PROBLEM_HOST_ALIVE, "host %s is alive %s", host, rest);
	why.host = h->id;
	answer_refusal(r, &why);
	return false;
}

bool holder_may_release(const struct service *sv, struct request *r, const struct vm *vm, const struct holder *by,
			const char *instead)
{
	char rest[160];

	if (by->boot_id || by->force || !host_is_alive(sv, vm->host))
		return true;
	snprintf(rest, sizeof rest,
		 "and may have this: ask for operation %s, name the host's boot_id and epoch,"
		 " or force it if the host is powered off",
		 instead);
	return refuse_alive(r, vm->host, rest);
}

bool unbinding_allowed(const struct service *sv, struct request *r, const struct host *h)
{
	return !host_is_alive(sv, h) ||
	       refuse_alive(r, h,
			    "and VMs of it have some of these frames: name its boot_id and epoch, or fence it if it is"
			    " powered off");
}

bool fence_allowed(const struct service *sv, struct request *r, const struct host *h, bool force)
{
	return force || !host_is_alive(sv, h) ||
	       refuse_alive(r, h,
			    "and may run VMs: wait until its lease has ended, or force it if the host is powered off");
}
