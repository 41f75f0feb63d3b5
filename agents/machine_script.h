/* agents/machine_script.h
 *
 * What guests of an emulated machine do, in a file that grows: each line that is appended while the agent runs is one
 * act of one guest. So a test, or somebody who looks for a fault, makes guests act at a time of his choice.
 *
 *     VM ripas GFN COUNT EMPTY|RAM [keep] [accept=PAGES]
 *
 * The guest says that these pages are no memory any more, or are again (CCA's RSI_IPA_STATE_SET): without
 * change_destroyed if `keep`, and the host goes along for so many pages only. Numbers are decimal. Empty lines and
 * those that begin with # are nothing; any other line is logged and passed over.
 */
#ifndef PW_AGENTS_MACHINE_SCRIPT_H
#define PW_AGENTS_MACHINE_SCRIPT_H
#include "agents/backend.h"

#define SCRIPT_LINE_MAX 255

/* Begins at the end of the file as it is now; there need not be one yet. NULL: no memory. */
struct machine_script *machine_script_open(const char *path);
void machine_script_close(struct machine_script *s);
/* The next act. False: no further line is complete yet. */
bool machine_script_next(struct machine_script *s, struct backend_request *out) PW_MUST_CHECK;

/* One line without its newline. False: it is none. */
bool machine_script_parse(const char *line, struct backend_request *out) PW_MUST_CHECK;

#endif
