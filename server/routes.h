/* server/routes.h
 *
 * Every action that a route names (server/routes.c is the table). `_act` and plain names run under the state's lock:
 * reads on an HTTP thread, changes on the writer thread. `enum handled` ones are handlers of their own.
 */
#ifndef PW_SERVER_ROUTES_H
#define PW_SERVER_ROUTES_H
#include "server/request.h"

/* A list's cursor that is a UUID: *cursor NULL if there is none. False: answered. */
bool query_cursor(struct request *r, struct pw_uuid *after, const char **cursor) PW_MUST_CHECK;

/* hosts.c */
void hosts_list(struct service *sv, struct request *r);
void host_get(struct service *sv, struct request *r);
enum handled host_put(struct service *sv, struct request *r);
void host_put_act(struct service *sv, struct request *r);
enum handled host_heartbeat(struct service *sv, struct request *r);
void heartbeat_act(struct service *sv, struct request *r);
bool host_fence_prepare(struct service *sv, struct request *r);
void host_fence_act(struct service *sv, struct request *r);

/* quarantine.c */
void quarantine_list(struct service *sv, struct request *r);
bool frames_prepare(struct service *sv, struct request *r);
void quarantine_act(struct service *sv, struct request *r);
void quarantine_release_act(struct service *sv, struct request *r);

/* pools.c */
void pools_list(struct service *sv, struct request *r);
void pool_get(struct service *sv, struct request *r);
bool pool_prepare(struct service *sv, struct request *r);
void pool_put_act(struct service *sv, struct request *r);
void host_frames(struct service *sv, struct request *r);
void pool_frames(struct service *sv, struct request *r);

/* vms.c */
void vms_list(struct service *sv, struct request *r);
void vm_get(struct service *sv, struct request *r);
bool vm_prepare(struct service *sv, struct request *r);
void vm_create_act(struct service *sv, struct request *r);
void vm_delete_act(struct service *sv, struct request *r);
bool slot_prepare(struct service *sv, struct request *r);
void slot_put_act(struct service *sv, struct request *r);
void slot_delete_act(struct service *sv, struct request *r);
bool lifecycle_prepare(struct service *sv, struct request *r);
void lifecycle_act(struct service *sv, struct request *r);
void vm_gfns(struct service *sv, struct request *r);
void vm_map(struct service *sv, struct request *r);
void vm_digests(struct service *sv, struct request *r);

/* unknown.c */
void unknown_list(struct service *sv, struct request *r);
bool unknown_prepare(struct service *sv, struct request *r);
void unknown_put_act(struct service *sv, struct request *r);

/* vcpus.c */
void vcpu_get(struct service *sv, struct request *r);
bool vcpu_prepare(struct service *sv, struct request *r);
void vcpu_put_act(struct service *sv, struct request *r);

/* transitions.c */
bool transitions_prepare(struct service *sv, struct request *r);
void transitions_act(struct service *sv, struct request *r);

/* operations.c */
bool operation_prepare(struct service *sv, struct request *r);
void operation_create_act(struct service *sv, struct request *r);
enum handled operation_get(struct service *sv, struct request *r);
void operation_get_act(struct service *sv, struct request *r);
void operation_cancel_act(struct service *sv, struct request *r);
enum handled host_operations(struct service *sv, struct request *r);
void host_operations_act(struct service *sv, struct request *r);
bool result_prepare(struct service *sv, struct request *r);
void operation_result_act(struct service *sv, struct request *r);
void vm_operations(struct service *sv, struct request *r);

/* tokens.c */
void tokens_list(struct service *sv, struct request *r);
bool token_prepare(struct service *sv, struct request *r);
void token_create_act(struct service *sv, struct request *r);
void token_delete_act(struct service *sv, struct request *r);

/* events.c and history.c: read the store, on threads of their own (reads.h) and under no lock */
enum handled events_get(struct service *sv, struct request *r);
enum handled violations_get(struct service *sv, struct request *r);
enum handled vm_history(struct service *sv, struct request *r);
void history_missing_act(struct service *sv, struct request *r);

/* status.c */
enum handled healthz(struct service *sv, struct request *r);
enum handled readyz(struct service *sv, struct request *r);
void metrics_act(struct service *sv, struct request *r);
enum handled summary_get(struct service *sv, struct request *r);
void summary_act(struct service *sv, struct request *r);
enum handled openapi_get(struct service *sv, struct request *r);

/* jobs.c */
enum handled backup_post(struct service *sv, struct request *r);
enum handled verify_post(struct service *sv, struct request *r);
enum handled job_get(struct service *sv, struct request *r);
void job_act(struct service *sv, struct request *r); /* nothing: a job is no change */

#endif
