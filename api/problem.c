#include "api/problem.h"

#include <string.h>

#include "api/json.h"

unsigned problem_status(enum pw_problem p)
{
	switch (p) {
	case PROBLEM_NONE: return 200;
	case PROBLEM_INVALID_REQUEST: return 400;
	case PROBLEM_UNAUTHORIZED: return 401;
	case PROBLEM_FORBIDDEN: return 403;
	case PROBLEM_VM_NOT_FOUND:
	case PROBLEM_HOST_NOT_FOUND:
	case PROBLEM_POOL_NOT_FOUND:
	case PROBLEM_SLOT_NOT_FOUND:
	case PROBLEM_OPERATION_NOT_FOUND:
	case PROBLEM_TOKEN_NOT_FOUND:
	case PROBLEM_NOT_FOUND: return 404;
	case PROBLEM_METHOD_NOT_ALLOWED: return 405;
	case PROBLEM_VM_NOT_ON_HOST:
	case PROBLEM_VM_TRANSITION:
	case PROBLEM_GFN_OUT_OF_SLOT:
	case PROBLEM_GFN_TRANSITION:
	case PROBLEM_FRAME_OUT_OF_POOL:
	case PROBLEM_FRAME_QUARANTINED:
	case PROBLEM_FRAME_CONFLICT:
	case PROBLEM_HOST_FENCED:
	case PROBLEM_HOST_ALIVE:
	case PROBLEM_POOL_IN_USE:
	case PROBLEM_POOL_MISMATCH:
	case PROBLEM_VM_EXISTS:
	case PROBLEM_BACKUP_EXISTS:
	case PROBLEM_VM_BUSY:
	case PROBLEM_SLOT_OVERLAP:
	case PROBLEM_STALE_BATCH:
	case PROBLEM_BATCH_REJECTED:
	case PROBLEM_OPERATION_STATE:
	case PROBLEM_UNKNOWN_VM:
	case PROBLEM_LIMIT: return 409;
	case PROBLEM_COMPACTED: return 410;
	case PROBLEM_STALE: return 412;
	case PROBLEM_TOO_LARGE:
	case PROBLEM_TOO_MUCH_WORK: return 413;
	case PROBLEM_URI_TOO_LONG: return 414;
	case PROBLEM_MEDIA_TYPE: return 415;
	case PROBLEM_ARCH_UNSUPPORTED:
	case PROBLEM_INVALID_PARAMS:
	case PROBLEM_IDEMPOTENCY: return 422;
	case PROBLEM_RATE_LIMITED: return 429;
	case PROBLEM_HEAD_TOO_LARGE: return 431;
	case PROBLEM_INTERNAL:
	case PROBLEM_BACKEND:
	case PROBLEM_DRIFT: return 500;
	case PROBLEM_STORAGE:
	case PROBLEM_OUTCOME_UNKNOWN:
	case PROBLEM_NO_MEMORY:
	case PROBLEM_BUSY:
	case PROBLEM_NOT_READY: return 503;
	case PROBLEM_HTTP_VERSION: return 505;
	case PROBLEM_COUNT: break;
	}
	return 500;
}

/* Retryable is what the server cannot do now, and may be able to do later without anybody changing the request. */
bool problem_is_retryable(enum pw_problem p)
{
	return problem_status(p) == 503 || p == PROBLEM_RATE_LIMITED;
}

static void write_owners(struct jsonw *w, const char *name, const struct refusal *why)
{
	jsonw_key(w, name);
	jsonw_open(w, '[');
	for (unsigned i = 0; i < why->run_count && i < REFUSAL_RUNS_MAX; i++) {
		const struct frame_run *run = &why->runs[i];

		jsonw_open(w, '{');
		jsonw_m_str(w, "pool", run->pool);
		jsonw_m_u64(w, "pfn", run->pfn);
		jsonw_m_u64(w, "count", run->count);
		jsonw_m_uuid(w, "vm", &run->vm);
		jsonw_m_u64(w, "gfn", run->gfn);
		jsonw_close(w, '}');
	}
	jsonw_close(w, ']');
}

static void write_conflicts(struct jsonw *w, const struct refusal *why)
{
	write_owners(w, "conflicts", why);
	jsonw_m_u64(w, "conflict_frames", why->frames);
}

static void write_unknown_vm(struct jsonw *w, const struct refusal *why)
{
	jsonw_m_uuid(w, "vm", &why->vm);
	jsonw_m_u64(w, "pages", why->pages);
	jsonw_m_str(w, "reason", why->reason);
	write_owners(w, "disputed", why);
	jsonw_m_u64(w, "disputed_frames", why->frames);
}

static void write_vm_not_found(struct jsonw *w, const struct refusal *why)
{
	jsonw_m_uuid(w, "vm", &why->vm);
	if (why->ended)
		jsonw_m_u64(w, "ended", why->ended);
}

static void write_frames(struct jsonw *w, const struct refusal *why)
{
	jsonw_key(w, "frames");
	jsonw_open(w, '[');
	for (unsigned i = 0; i < why->run_count && i < REFUSAL_RUNS_MAX; i++) {
		jsonw_open(w, '{');
		jsonw_m_str(w, "pool", why->runs[i].pool);
		jsonw_m_u64(w, "pfn", why->runs[i].pfn);
		jsonw_m_u64(w, "count", why->runs[i].count);
		jsonw_close(w, '}');
	}
	jsonw_close(w, ']');
}

static void write_gfn_transition(struct jsonw *w, const struct refusal *why)
{
	jsonw_m_u64(w, "gfn", why->gfn);
	jsonw_m_str(w, "state", gfn_state_name(why->gfn_state));
	jsonw_m_bool(w, "resident", why->gfn_state == GFN_SECURE_RESIDENT);
	jsonw_m_str(w, "op", why->op);
	if (why->arch_state)
		jsonw_m_str(w, "arch_state", why->arch_state);
}

static void write_vm_transition(struct jsonw *w, const struct refusal *why)
{
	jsonw_m_str(w, "state", vm_state_name(why->vm_state));
	if (why->arch_state)
		jsonw_m_str(w, "arch_state", why->arch_state);
	if (why->op)
		jsonw_m_str(w, "op", why->op);
	else
		jsonw_m_str(w, "event", vm_event_name(why->vm_event));
}

static void write_members(struct jsonw *w, const struct refusal *why)
{
	switch (why->problem) {
	case PROBLEM_FRAME_CONFLICT: write_conflicts(w, why); return;
	case PROBLEM_FRAME_QUARANTINED: write_frames(w, why); return;
	case PROBLEM_FRAME_OUT_OF_POOL: jsonw_m_str(w, "pool", why->pool); return;
	case PROBLEM_GFN_TRANSITION: write_gfn_transition(w, why); return;
	case PROBLEM_GFN_OUT_OF_SLOT: jsonw_m_u64(w, "gfn", why->gfn); return;
	case PROBLEM_VM_TRANSITION: write_vm_transition(w, why); return;
	case PROBLEM_HOST_ALIVE:
	case PROBLEM_VM_NOT_ON_HOST: jsonw_m_uuid(w, "host", &why->host); return;
	case PROBLEM_VM_NOT_FOUND: write_vm_not_found(w, why); return;
	case PROBLEM_UNKNOWN_VM: write_unknown_vm(w, why); return;
	case PROBLEM_NONE:
	case PROBLEM_HOST_NOT_FOUND:
	case PROBLEM_HOST_FENCED:
	case PROBLEM_POOL_NOT_FOUND:
	case PROBLEM_POOL_IN_USE:
	case PROBLEM_POOL_MISMATCH:
	case PROBLEM_BACKUP_EXISTS:
	case PROBLEM_VM_EXISTS:
	case PROBLEM_VM_BUSY:
	case PROBLEM_SLOT_OVERLAP:
	case PROBLEM_SLOT_NOT_FOUND:
	case PROBLEM_ARCH_UNSUPPORTED:
	case PROBLEM_STALE_BATCH:
	case PROBLEM_BATCH_REJECTED:
	case PROBLEM_INVALID_PARAMS:
	case PROBLEM_OPERATION_NOT_FOUND:
	case PROBLEM_OPERATION_STATE:
	case PROBLEM_TOKEN_NOT_FOUND:
	case PROBLEM_INVALID_REQUEST:
	case PROBLEM_UNAUTHORIZED:
	case PROBLEM_FORBIDDEN:
	case PROBLEM_NOT_FOUND:
	case PROBLEM_METHOD_NOT_ALLOWED:
	case PROBLEM_URI_TOO_LONG:
	case PROBLEM_HEAD_TOO_LARGE:
	case PROBLEM_HTTP_VERSION:
	case PROBLEM_TOO_LARGE:
	case PROBLEM_TOO_MUCH_WORK:
	case PROBLEM_RATE_LIMITED:
	case PROBLEM_BUSY:
	case PROBLEM_MEDIA_TYPE:
	case PROBLEM_IDEMPOTENCY:
	case PROBLEM_STALE:
	case PROBLEM_COMPACTED:
	case PROBLEM_STORAGE:
	case PROBLEM_OUTCOME_UNKNOWN:
	case PROBLEM_NO_MEMORY:
	case PROBLEM_LIMIT:
	case PROBLEM_NOT_READY:
	case PROBLEM_INTERNAL:
	case PROBLEM_BACKEND:
	case PROBLEM_DRIFT:
	case PROBLEM_COUNT: return;
	}
}

static void write_limit(struct jsonw *w, const struct refusal *why)
{
	jsonw_m_str(w, "flag", why->flag);
	jsonw_m_u64(w, "limit", why->limit);
	jsonw_m_u64(w, "asked", why->asked);
}

void problem_write_brief(struct jsonw *w, enum pw_problem p)
{
	char text[64];

	snprintf(text, sizeof text, "/problems/%s", problem_slug(p));
	jsonw_open(w, '{');
	jsonw_m_str(w, "type", text);
	jsonw_m_u64(w, "status", problem_status(p));
	jsonw_close(w, '}');
}

void problem_write(struct jsonw *w, const struct refusal *why, const char *request_id, enum problem_end end)
{
	char text[sizeof why->detail + sizeof "/problems/"] = "/problems/";
	size_t n = strlen(text);

	strncat(text, problem_slug(why->problem), sizeof text - n - 1);
	jsonw_open(w, '{');
	jsonw_m_str(w, "type", text);
	jsonw_m_str(w, "title", problem_title(why->problem));
	jsonw_m_u64(w, "status", problem_status(why->problem));
	memcpy(text, why->detail, sizeof why->detail);
	text_trim_utf8(text); /* a long detail may have been cut inside a character */
	jsonw_m_str(w, "detail", text);
	jsonw_m_bool(w, "retryable", problem_is_retryable(why->problem));
	if (request_id)
		jsonw_m_str(w, "request_id", request_id);
	write_members(w, why);
	if (why->flag)
		write_limit(w, why);
	if (end == PROBLEM_CLOSED)
		jsonw_close(w, '}');
}
