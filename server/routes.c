#include "server/routes.h"

#include <string.h>

#include "server/service_impl.h"

#define ADMIN   ROLE_BIT(ROLE_ADMIN)
#define OPERATE (ADMIN | ROLE_BIT(ROLE_OPERATOR))
#define AGENT   (ADMIN | ROLE_BIT(ROLE_AGENT)) /* an agent: of that host alone */
#define HOLDER  ROLE_BIT(ROLE_AGENT)           /* the agent of that host, nobody else */
#define VM_WORK (OPERATE | ROLE_BIT(ROLE_AGENT))

/* clang-format off */
const struct route routes[] = {
	/* what is asked most, first */
	{ "POST",   "/v1/hosts/{host}/transitions",        AGENT,     handle_change,   transitions_prepare, transitions_act },
	{ "GET",    "/v1/hosts/{host}/frames",             EVERYBODY, handle_read,     NULL, host_frames },
	{ "POST",   "/v1/hosts/{host}/heartbeat",          AGENT,     host_heartbeat,  NULL, heartbeat_act },
	{ "GET",    "/v1/vms/{vm}/gfns",                   EVERYBODY, handle_read,     NULL, vm_gfns },

	{ "GET",    "/v1/hosts",                           EVERYBODY, handle_read,     NULL, hosts_list },
	{ "GET",    "/v1/hosts/{host}",                    EVERYBODY, handle_read,     NULL, host_get },
	{ "PUT",    "/v1/hosts/{host}",                    AGENT,     host_put,        NULL, host_put_act },
	{ "POST",   "/v1/hosts/{host}/fence",              ADMIN,     handle_change,   host_fence_prepare, host_fence_act },
	{ "GET",    "/v1/hosts/{host}/quarantine",         EVERYBODY, handle_read,     NULL, quarantine_list },
	{ "POST",   "/v1/hosts/{host}/quarantine",         AGENT,     handle_change,   frames_prepare, quarantine_act },
	{ "POST",   "/v1/hosts/{host}/quarantine/release", ADMIN,     handle_change,   frames_prepare, quarantine_release_act },
	{ "GET",    "/v1/hosts/{host}/operations",         AGENT,     host_operations, NULL, host_operations_act },
	{ "PUT",    "/v1/hosts/{host}/unknown-vms",        AGENT,     handle_change,   unknown_prepare, unknown_put_act },
	{ "GET",    "/v1/unknown-vms",                     EVERYBODY, handle_read,     NULL, unknown_list },

	{ "GET",    "/v1/pools",                           EVERYBODY, handle_read,     NULL, pools_list },
	{ "GET",    "/v1/pools/{pool}",                    EVERYBODY, handle_read,     NULL, pool_get },
	{ "PUT",    "/v1/pools/{pool}",                    ADMIN,     handle_change,   pool_prepare, pool_put_act },
	{ "GET",    "/v1/pools/{pool}/frames",             EVERYBODY, handle_read,     NULL, pool_frames },

	{ "GET",    "/v1/vms",                             EVERYBODY, handle_read,     NULL, vms_list },
	{ "POST",   "/v1/vms",                             VM_WORK,   handle_change,   vm_prepare, vm_create_act },
	{ "GET",    "/v1/vms/{vm}",                        EVERYBODY, handle_read,     NULL, vm_get },
	{ "DELETE", "/v1/vms/{vm}",                        OPERATE,   handle_change,   NULL, vm_delete_act },
	{ "PUT",    "/v1/vms/{vm}/slots/{slot}",           VM_WORK,   handle_change,   slot_prepare, slot_put_act },
	{ "DELETE", "/v1/vms/{vm}/slots/{slot}",           VM_WORK,   handle_change,   NULL, slot_delete_act },
	{ "POST",   "/v1/vms/{vm}/lifecycle",              AGENT,     handle_change,   lifecycle_prepare, lifecycle_act },
	{ "GET",    "/v1/vms/{vm}/vcpus/{n}",              EVERYBODY, handle_read,     NULL, vcpu_get },
	{ "PUT",    "/v1/vms/{vm}/vcpus/{n}",              HOLDER,    handle_change,   vcpu_prepare, vcpu_put_act },
	{ "GET",    "/v1/vms/{vm}/map",                    EVERYBODY, handle_read,     NULL, vm_map },
	{ "GET",    "/v1/vms/{vm}/digests",                EVERYBODY, handle_read,     NULL, vm_digests },
	{ "GET",    "/v1/vms/{vm}/history",                EVERYBODY, vm_history,      NULL, history_missing_act },
	{ "GET",    "/v1/vms/{vm}/operations",             EVERYBODY, handle_read,     NULL, vm_operations },
	{ "POST",   "/v1/vms/{vm}/operations",             OPERATE,   handle_change,   operation_prepare, operation_create_act },

	{ "GET",    "/v1/operations/{op}",                 EVERYBODY, operation_get,   NULL, operation_get_act },
	{ "DELETE", "/v1/operations/{op}",                 OPERATE,   handle_change,   NULL, operation_cancel_act },
	{ "POST",   "/v1/operations/{op}/result",          AGENT,     handle_change,   result_prepare, operation_result_act },

	{ "GET",    "/v1/events",                          EVERYBODY, events_get,      NULL, NULL },
	{ "GET",    "/v1/violations",                      EVERYBODY, violations_get,  NULL, NULL },
	{ "GET",    "/v1/summary",                         EVERYBODY, summary_get,     NULL, summary_act },

	{ "GET",    "/v1/tokens",                          ADMIN,     handle_read,     NULL, tokens_list },
	{ "POST",   "/v1/tokens",                          ADMIN,     handle_change,   token_prepare, token_create_act },
	{ "DELETE", "/v1/tokens/{token}",                  ADMIN,     handle_change,   NULL, token_delete_act },
	{ "POST",   "/v1/backups",                         ADMIN,     backup_post,     NULL, job_act },
	{ "POST",   "/v1/verify",                          ADMIN,     verify_post,     NULL, job_act },
	{ "GET",    "/v1/jobs/{job}",                      ADMIN,     job_get,         NULL, NULL },

	{ "GET",    "/openapi.json",                       EVERYBODY, openapi_get,     NULL, NULL },
	{ "GET",    "/metrics",                            EVERYBODY, handle_read,     NULL, metrics_act },
	{ "GET",    "/healthz",                            NO_TOKEN,  healthz,         NULL, NULL },
	{ "GET",    "/readyz",                             NO_TOKEN,  readyz,          NULL, NULL },
	{ 0 },
};
/* clang-format on */

bool query_cursor(struct request *r, struct pw_uuid *after, const char **cursor)
{
	*cursor = request_query(r, "cursor");
	if (!*cursor || pw_uuid_parse(*cursor, strlen(*cursor), after))
		return true;
	answer_problem(r, PROBLEM_INVALID_REQUEST, "cursor %s is none that a list gave", *cursor);
	return false;
}

void list_begin(struct jsonw *w)
{
	jsonw_init(w);
	jsonw_open(w, '{');
	jsonw_key(w, "items");
	jsonw_open(w, '[');
}

bool list_is_long(const struct service *sv, const struct jsonw *w)
{
	return sv->config->answer_bytes && w->used > sv->config->answer_bytes;
}

bool list_goes_on(const struct service *sv, const struct jsonw *w, uint64_t *limit)
{
	if (*limit == 0 || list_is_long(sv, w))
		return false;
	--*limit;
	return true;
}

void list_end(struct jsonw *w, const char *next_cursor, const uint64_t *revision)
{
	jsonw_close(w, ']');
	if (revision)
		jsonw_m_u64(w, "revision", *revision);
	if (next_cursor)
		jsonw_m_str(w, "next_cursor", next_cursor);
	jsonw_close(w, '}');
}
