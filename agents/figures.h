/* agents/figures.h
 *
 * What hardware has done, as a file in Prometheus's text format for a collector that reads files (node_exporter's
 * textfile collector). The file is replaced as a whole, so that no reader ever sees half of one.
 */
#ifndef PW_AGENTS_FIGURES_H
#define PW_AGENTS_FIGURES_H
#include "agents/agent.h"

/* PW_STORAGE: the file is what it was before. PW_NO_MEMORY. */
enum pw_status figures_write(const char *path, const char *host, struct backend *b, struct pw_err *err) PW_MUST_CHECK;

/* A thread with a struct agent *: writes --metrics every few seconds until the agent stops. */
void *figures_loop(void *agent);

#endif
