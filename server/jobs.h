/* server/jobs.h
 *
 * Upkeep that takes long, by request: a verification, a backup. One at a time, on a thread of its own, which ends with
 * it. The last few are kept, until the server ends: /v1/jobs/{id} shows how far each is, or how it ended.
 */
#ifndef PW_SERVER_JOBS_H
#define PW_SERVER_JOBS_H
#include "server/request.h"
#include "store/store.h"

struct jobs;

enum pw_status jobs_new(struct service *sv, struct jobs **out, struct pw_err *err) PW_MUST_CHECK;
void jobs_drain(struct jobs *j); /* the one that runs is given up, who waits for it gets what there is */
void jobs_cut(struct jobs *j);   /* who still waits gets not-ready */
void jobs_free(struct jobs *j);  /* after both; waits for the one that runs. NULL is fine */

#endif
